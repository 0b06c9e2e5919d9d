//! What is looked at now and then, for lists and gauges. It is read on a connection of its own, in
//! pieces, so that no charge waits for it (f37).

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use jiff::Timestamp;
use parking_lot::Mutex;

use super::pack::{In, Malformed};
use super::stored::StoredHold;
use super::{Engine, HOLDS, Keys, NAMES, OpenError};
use crate::books::{Books, OpenCharge};
use crate::core::account::{Account, AccountKey, Balance};
use crate::core::charge::State;
use crate::core::cycle::Label;
use crate::core::ids::ChargeId;
use crate::core::record::instant;

/// How many balances are read at once; a view has room for this many.
const BALANCES: usize = 32;

/// What the users of an org owe in a cycle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owed {
    /// The org's id.
    pub org: String,
    /// The cycle.
    pub period: Label,
    /// Millionths of a credit.
    pub amount: u64,
}

impl Owed {
    /// Of a field of a shard's `meta`, where it is one of these.
    fn read((field, value): (String, Vec<u8>)) -> Option<Self> {
        let (period, org) = field.strip_prefix("owed:")?.split_once(':')?;
        let amount = std::str::from_utf8(&value).ok()?.parse().ok()?;
        Some(Self { org: org.to_owned(), period: Label::from_digits(period.parse().ok()?), amount })
    }
}

/// What was seen when it was last looked.
#[derive(Debug, Default)]
pub struct Seen {
    holds: Mutex<(usize, Option<Timestamp>)>,
    balances: Mutex<HashMap<AccountKey, Balance>>,
    owed: Mutex<Vec<Owed>>,
    redone: AtomicU64,
    failed: AtomicBool,
    /// Captured and voided.
    in_doubt: Mutex<[usize; 2]>,
}

impl Seen {
    /// How many holds were open, and since when the oldest was.
    pub fn open_holds(&self) -> (usize, Option<Timestamp>) {
        *self.holds.lock()
    }

    /// An account's balance, where it was one of those looked at.
    pub fn balance(&self, key: &AccountKey) -> Option<Balance> {
        self.balances.lock().get(key).copied()
    }

    /// What users owe, by org and cycle.
    pub fn owed(&self) -> Vec<Owed> {
        self.owed.lock().clone()
    }

    /// How many batches this gateway has done again that Redis had lost.
    pub fn redone(&self) -> u64 {
        self.redone.load(Relaxed)
    }

    pub(super) fn did_again(&self) {
        self.redone.fetch_add(1, Relaxed);
    }

    /// How many holds were resolved at the start that this gateway had left open: captured, voided.
    pub fn in_doubt(&self) -> [usize; 2] {
        *self.in_doubt.lock()
    }

    pub(super) fn resolved(&self, state: State) {
        self.in_doubt.lock()[usize::from(state != State::Captured)] += 1;
    }

    /// True where Redis did not answer.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Relaxed)
    }
}

impl Engine {
    /// What was seen when it was last looked.
    pub fn seen(&self) -> &Seen {
        &self.shared.seen
    }

    /// Counts open holds, and notes whether Redis answers to that: it is all that probes show of it.
    ///
    /// # Errors
    /// When Redis does not answer; what was seen before stays.
    pub async fn count(&self) -> Result<(), OpenError> {
        let counted = self.open_holds().await;
        self.shared.seen.failed.store(counted.is_err(), Relaxed);
        self.shared.seen.holds.lock().0 = counted?;
        Ok(())
    }

    /// Looks for the oldest hold, at these accounts, and at what users owe.
    ///
    /// # Errors
    /// When Redis does not answer; what was seen before stays.
    pub async fn look(&self, accounts: &[Account<'_>]) -> Result<(), OpenError> {
        let mut oldest = None::<i64>;
        for shard in 0..self.shared.shards {
            let mut at = 0;
            loop {
                let (next, holds) = self.some_holds(shard, at).await?;
                oldest = oldest.into_iter().chain(holds.iter().map(|(_, hold)| hold.at)).min();
                at = next;
                if at == 0 {
                    break;
                }
            }
        }
        self.shared.seen.holds.lock().1 = oldest.map(instant);
        let mut balances = HashMap::new();
        for some in accounts.chunks(BALANCES) {
            let view = self.session.balances(some).await?;
            let balance = |slot: usize| view.get(slot as u8).unwrap_or_default();
            balances.extend(some.iter().enumerate().map(|(slot, of)| (of.key, balance(slot))));
        }
        *self.shared.seen.balances.lock() = balances;
        let mut owed = Vec::new();
        for shard in 0..self.shared.shards {
            let fields = self.of_meta(shard, "owed:*").await?;
            owed.extend(fields.into_iter().filter_map(Owed::read));
        }
        *self.shared.seen.owed.lock() = owed;
        Ok(())
    }

    /// How many holds are open.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn open_holds(&self) -> Result<usize, OpenError> {
        let mut open = 0;
        for shard in 0..self.shared.shards {
            let command = redis::cmd("HLEN").arg(&self.shared.keys(shard).0[HOLDS]).clone();
            open += self.read::<usize>(&command).await?;
        }
        Ok(open)
    }

    /// Every account's balance, with its name.
    ///
    /// # Errors
    /// When Redis does not answer, or not as expected.
    pub async fn balances(&self) -> Result<Vec<(AccountKey, String, Balance)>, OpenError> {
        let mut all = Vec::new();
        let odd = || OpenError::Books("an account that cannot be read".into());
        for shard in 0..self.shared.shards {
            let Keys([meta, accounts, names, ..]) = self.shared.keys(shard);
            let accounts: Vec<(Vec<u8>, Vec<u8>)> =
                self.read(&redis::cmd("HGETALL").arg(accounts).clone()).await?;
            let names: HashMap<Vec<u8>, String> =
                self.read(&redis::cmd("HGETALL").arg(names).clone()).await?;
            // What is closed is gone, also where it is not forgotten yet.
            let closed: Option<u32> =
                self.read(&redis::cmd("HGET").arg(meta).arg("closed").clone()).await?;
            let closed = Label::from_digits(closed.unwrap_or_default());
            for (key, bytes) in accounts {
                let name = names.get(&key).cloned().ok_or_else(odd)?;
                let key: [u8; 21] = key.try_into().map_err(|_| odd())?;
                let key = AccountKey::from_bytes(&key).ok_or_else(odd)?;
                if key.is_closed(closed) {
                    continue;
                }
                let mut input = In::new(&bytes);
                let mut balance = || {
                    let (base, adjusted) = (input.uint()?, input.int()?);
                    let (held, captured) = (input.uint()?, input.uint()?);
                    Ok::<_, Malformed>(Balance { base, adjusted, held, captured })
                };
                all.push((key, name, balance().map_err(|_| odd())?));
            }
        }
        Ok(all)
    }

    /// Every open hold, in no order; one that is made or ends meanwhile is among them or not.
    ///
    /// # Errors
    /// When Redis does not answer, or not as expected.
    pub async fn list_open(&self) -> Result<Vec<OpenCharge>, OpenError> {
        self.list(|_, _| true).await
    }

    /// Open holds that outlive their process, and whose process is not there any more: jobs, which
    /// somebody else has to ask for now.
    ///
    /// # Errors
    /// When Redis does not answer, or not as expected.
    pub async fn orphans(&self) -> Result<Vec<OpenCharge>, OpenError> {
        let lasts = |hold: &StoredHold| hold.expires > 0;
        self.list(|hold, sessions| lasts(hold) && !sessions.contains(&hold.owner)).await
    }

    async fn list(
        &self,
        is_wanted: impl Fn(&StoredHold, &HashSet<String>) -> bool,
    ) -> Result<Vec<OpenCharge>, OpenError> {
        let mut open = HashMap::new();
        for shard in 0..self.shared.shards {
            let sessions = self.owners(shard).await?.into_iter().map(|owner| owner.name).collect();
            let mut at = 0;
            loop {
                let (next, mut holds) = self.some_holds(shard, at).await?;
                holds.retain(|(_, hold)| is_wanted(hold, &sessions));
                let names = self.names(shard, &holds).await?;
                for (charge, hold) in holds {
                    let name = |leg: &(AccountKey, _, _)| names.get(&leg.0).cloned();
                    let names: Vec<String> =
                        hold.legs.iter().map(|leg| name(leg).unwrap_or_default()).collect();
                    open.insert(charge, hold.describe(charge, names));
                }
                at = next;
                if at == 0 {
                    break;
                }
            }
        }
        Ok(open.into_values().collect())
    }

    /// The names of the accounts that holds took from.
    async fn names(
        &self,
        shard: usize,
        holds: &[(ChargeId, StoredHold)],
    ) -> Result<HashMap<AccountKey, String>, OpenError> {
        let keys = holds.iter().flat_map(|(_, hold)| hold.legs.iter().map(|leg| leg.0));
        let mut keys: Vec<AccountKey> = keys.collect();
        keys.sort_unstable();
        keys.dedup();
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let mut command = redis::cmd("HMGET");
        command.arg(&self.shared.keys(shard).0[NAMES]);
        for key in &keys {
            command.arg(&key.to_bytes());
        }
        let names: Vec<Option<String>> = self.read(&command).await?;
        let known = keys.into_iter().zip(names);
        Ok(known.filter_map(|(key, name)| Some((key, name?))).collect())
    }
}
