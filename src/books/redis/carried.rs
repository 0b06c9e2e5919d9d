//! What moving books says to a shard: two scripts, and accounts, keys and entries as they are stored.

use std::collections::BTreeMap;

use super::ledger::CARRIED;
use super::pack::{In, Malformed, Out};
use super::wire::once_field;
use crate::books::fold::{FoldAccount, FoldOnce};
use crate::core::account::{AccountKey, AccountKind, Balance, Version};
use crate::core::cycle::Label;

/// The session of the entries that books begin with which were moved here.
const SESSION: &str = "moved";

/// Shuts a shard: KEYS meta, holds, sessions; ARGV epoch, seq, silence, the epoch it has then.
pub(super) const SHUT: &str = "
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'seq')
if meta[1] == ARGV[4] then return 'shut' end
if meta[1] ~= ARGV[1] then return 'it belongs to other books' end
if meta[2] ~= ARGV[2] then return 'it was used meanwhile' end
if redis.call('HLEN', KEYS[2]) > 0 then return 'it has open holds' end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
for _, name in ipairs(redis.call('HKEYS', KEYS[3])) do
    if string.sub(name, -2) ~= ':r' then
        local _, seen = cmsgpack.unpack(redis.call('HGET', KEYS[3], name))
        if now - seen < tonumber(ARGV[3]) then return 'a gateway uses it: ' .. name end
    end
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[4])
return 'shut'";

/// Gives a shard back that was shut: KEYS meta; ARGV epoch, the one that it has since.
pub(super) const OPEN_AGAIN: &str = "
if redis.call('HGET', KEYS[1], 'epoch') == ARGV[2] then
    redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
end";

/// An account as it is stored.
pub(super) fn account(
    key: &[u8],
    name: &str,
    bytes: &[u8],
) -> Result<(AccountKey, FoldAccount), Malformed> {
    let key = key.try_into().ok().and_then(AccountKey::from_bytes);
    let key = key.ok_or_else(|| Malformed("an account of no kind".into()))?;
    let mut input = In::new(bytes);
    let (base, adjusted) = (input.uint()?, input.int()?);
    let (held, captured) = (input.uint()?, input.uint()?);
    let epoch = u32::try_from(input.uint()?);
    let epoch = epoch.map_err(|_| Malformed("an epoch beyond 32 bits".into()))?;
    let version = Version { epoch, number: input.uint()? };
    let balance = Balance { base, adjusted, held, captured };
    Ok((key, FoldAccount { name: name.into(), balance, version }))
}

pub(super) fn stored(account: &FoldAccount) -> Vec<u8> {
    let FoldAccount { balance, version, .. } = account;
    let mut out = Out::default();
    out.uint(balance.base).int(balance.adjusted).uint(balance.held).uint(balance.captured);
    out.uint(version.epoch.into()).uint(version.number);
    out.into_bytes()
}

/// What the users of an org owe in a cycle that is not closed, as a shard's `meta` has it: field and sum.
pub(super) fn owed<'a>(
    accounts: impl IntoIterator<Item = (&'a AccountKey, &'a FoldAccount)>,
    closed: Label,
) -> BTreeMap<String, u64> {
    let mut owed = BTreeMap::<String, u64>::new();
    for (key, FoldAccount { name, balance, .. }) in accounts {
        let owes = u64::try_from(-balance.remaining()).unwrap_or(0);
        if key.kind == AccountKind::Overdraft && owes > 0 && key.period >= closed {
            let org = name.split('/').next().unwrap_or_default();
            let sum = owed.entry(format!("owed:{}:{org}", key.period.digits())).or_default();
            *sum = sum.saturating_add(owes);
        }
    }
    owed
}

/// The key of a charge as it is stored: charge, request, whether it is captured, when it was held.
/// Nothing of what is no charge's: the key of an adjustment, and a name.
pub(super) fn kept_key(bytes: &[u8]) -> Result<Option<FoldOnce>, Malformed> {
    let mut input = In::new(bytes);
    input.array()?;
    let Ok(Ok(charge)) = input.bytes().map(TryFrom::try_from) else { return Ok(None) };
    let request = input.fixed()?;
    Ok(Some(FoldOnce { charge, request, captured: input.flag()?, at: input.int()? }))
}

pub(super) fn packed(number: u64) -> Vec<u8> {
    let mut out = Out::default();
    out.uint(number);
    out.into_bytes()
}

/// An entry of the ledger that says what comes from other books.
pub(super) fn entry(
    number: u64,
    at: i64,
    accounts: &[(&AccountKey, &FoldAccount)],
    keys: &[(&(u64, [u8; 16]), &FoldOnce)],
) -> Vec<u8> {
    let mut out = Out::default();
    out.array(3).bytes(SESSION.as_bytes()).uint(number).array(1);
    out.array(5).uint(CARRIED.into()).int(at).array(accounts.len());
    for (key, account) in accounts {
        let FoldAccount { name, balance, version } = account;
        out.array(5).bytes(&key.to_bytes()).bytes(name.as_bytes()).uint(balance.base);
        out.uint(version.epoch.into()).uint(version.number);
    }
    out.array(2 * accounts.len());
    for (_, account) in accounts {
        out.int(account.balance.adjusted).uint(account.balance.captured);
    }
    out.array(4 * keys.len());
    for ((scope, key), known) in keys {
        out.bytes(&once_field(*scope, key)).bytes(&known.request).bytes(&known.charge);
        out.int(known.at);
    }
    out.into_bytes()
}
