//! Operations as the library takes them, and its replies.
//!
//! An operation is an array whose places mean the same here and in the function of `lua/` that takes it
//! apart (`op[2]`, `op[3]`, …); nothing else says so, and both change together. Accounts, and what is
//! stored of a hold, are those of the head of `lua/books.lua`.

use smallvec::SmallVec;

use super::pack::{In, Malformed, Out};
use super::stored::StoredHold;
use crate::books::{
    Adjustment, Amendment, Ask, BooksError, InDoubt, Key, KnownCharge, Lasting, MAX_KEYS,
    MAX_NAMED, MAX_SCOPE, MORE_KEYS, OpenCharge, Resolution, bounded, forgotten_before, unowned,
};
use crate::core::account::{Account, AccountKey, Balance, LegKind, Legs, Post, Slot, Taken, View};
use crate::core::amount::MAX_MICRO;
use crate::core::charge::{Flags, OutcomeMemo, State};
use crate::core::cycle::Label;
use crate::core::ids::ChargeId;

/// Kinds of operations.
mod kind {
    pub const HOLD: u64 = 1;
    pub const RESOLVE: u64 = 2;
    pub const AMEND: u64 = 3;
    pub const END: u64 = 4;
    pub const ADJUST: u64 = 5;
    pub const READ: u64 = 6;
    pub const SWEEP: u64 = 7;
    pub const LOOK: u64 = 8;
    pub const FIND: u64 = 9;
}

pub(super) fn hold(ask: &Ask<'_>) -> Result<Vec<u8>, BooksError> {
    let Lasting { expires, once, note } = ask.lasting.unwrap_or_default();
    let mut out = Out::default();
    out.array(12).uint(kind::HOLD).bytes(&ask.charge.0);
    put_post(&mut out, ask.accounts, ask.post)?;
    out.int(ask.now.as_microsecond()).int(expires.map_or(0, |at| at.as_microsecond()));
    match once {
        None => out.flag(false),
        Some(once) => {
            let before = forgotten_before(ask.now.as_microsecond());
            let field = once_field(once.scope, &once.key);
            out.array(6).bytes(&field).bytes(&field[..8]).bytes(&once.request);
            out.int(before).uint(u64::from(MAX_SCOPE)).uint(MAX_KEYS as u64)
        }
    };
    let (state, memo) = unowned(ask.in_doubt, ask.memo);
    let how = if state == State::Captured { WHOLE } else { VOID };
    out.array(2).uint(how).bytes(&encode(&memo)?);
    out.uint(u64::from(ask.in_doubt == InDoubt::Capture));
    out.bytes(bounded(ask.memo)?).bytes(bounded(note)?);
    Ok(out.into_bytes())
}

/// What becomes of a hold without its owner.
pub(super) const VOID: u64 = 0;
pub(super) const WHOLE: u64 = 1;
pub(super) const USED: u64 = 2;

pub(super) fn resolve(
    charge: ChargeId,
    resolution: &Resolution<'_>,
) -> Result<Vec<u8>, BooksError> {
    let mut out = Out::default();
    out.array(13).uint(kind::RESOLVE).bytes(&charge.0).uint(code(resolution.state));
    put_keep(&mut out, resolution.keep);
    put_extra(&mut out, resolution.extra)?;
    out.int(resolution.now.as_microsecond()).bytes(&encode(resolution.memo)?);
    out.bytes(bounded(resolution.note)?).bytes(bounded(resolution.answer)?);
    // A capture counts also where others have voided the charge; what is not one comes too late.
    match resolution.state {
        State::Captured => {
            let memo = resolution.memo;
            let late = OutcomeMemo { flags: memo.flags | Flags::LATE, ..memo.clone() };
            out.bytes(&encode(&late)?)
        }
        _ => out.flag(false),
    };
    out.uint(MAX_ENDED);
    Ok(out.into_bytes())
}

/// The same resolution as one that somebody was promised: it counts also where its charge has ended in
/// its time.
pub(super) fn promised(op: &[u8]) -> Vec<u8> {
    let mut out = Out::default();
    // Behind the length, which is one byte.
    out.array(14).raw(op.get(1..).unwrap_or_default()).flag(true);
    out.into_bytes()
}

pub(super) fn amend(charge: ChargeId, amendment: &Amendment<'_>) -> Result<Vec<u8>, BooksError> {
    let mut out = Out::default();
    out.array(12).uint(kind::AMEND).bytes(&charge.0);
    put_extra(&mut out, amendment.extra)?;
    out.int(amendment.now.as_microsecond());
    out.int(amendment.expires.map_or(0, |at| at.as_microsecond()));
    match amendment.known {
        None => out.flag(false),
        Some(known) => {
            let memo =
                OutcomeMemo { flags: known.memo.flags | Flags::IN_DOUBT, ..known.memo.clone() };
            out.array(3).uint(USED).bytes(&encode(&memo)?);
            put_keep(&mut out, &known.keep);
            &mut out
        }
    };
    match amendment.note {
        None => out.flag(false),
        Some(note) => out.bytes(bounded(note)?),
    };
    out.bytes(bounded(amendment.answer)?);
    match amendment.known {
        None => out.flag(false),
        Some(known) => out.bytes(&encode(known)?),
    };
    match amendment.names {
        [] => out.flag(false),
        names => {
            out.array(4);
            put_fields(&mut out, names);
            let most = MAX_KEYS + MORE_KEYS;
            out.uint(u64::from(MAX_SCOPE)).uint(most as u64).uint(MAX_NAMED as u64)
        }
    };
    Ok(out.into_bytes())
}

/// Which holds are ended without their owner.
#[derive(Clone, Copy, Debug)]
pub(super) enum Endable<'a> {
    /// Whichever is asked for.
    Any,
    /// One whose time is over, and so many microseconds ago where it has names.
    Due(u64),
    /// One whose owner still has the mark that somebody saw; an empty one of an owner that is not
    /// registered.
    Absent(&'a [u8]),
}

/// Ends a hold without its owner.
pub(super) fn end(charge: ChargeId, at: i64, which: Endable<'_>) -> Vec<u8> {
    let mut out = Out::default();
    out.array(6).uint(kind::END).bytes(&charge.0).int(at);
    match which {
        Endable::Due(wait) => out.uint(wait),
        Endable::Any | Endable::Absent(_) => out.flag(false),
    };
    match which {
        Endable::Absent(mark) => out.bytes(mark),
        Endable::Any | Endable::Due(_) => out.flag(false),
    };
    out.uint(MAX_ENDED);
    out.into_bytes()
}

/// How many charges that ended without their owner a shard remembers: some 300 bytes each. Whoever
/// is late for one that is not remembered is told that it is unknown.
pub(super) const MAX_ENDED: u64 = 100_000;

pub(super) fn adjust(adjustment: &Adjustment<'_>) -> Result<Vec<u8>, BooksError> {
    if adjustment.delta.unsigned_abs() > MAX_MICRO {
        return Err(BooksError::Range);
    }
    let mut out = Out::default();
    out.array(6).uint(kind::ADJUST);
    put_account(&mut out, adjustment.account)?;
    out.int(adjustment.delta).int(adjustment.now.as_microsecond());
    out.bytes(bounded(adjustment.memo)?);
    match adjustment.key {
        None => out.flag(false),
        Some(Key { scope, key }) => {
            let before = forgotten_before(adjustment.now.as_microsecond());
            let field = once_field(scope, &key);
            out.array(6).bytes(&field).bytes(&field[..8]).bytes(&adjustment.content());
            out.int(before).uint(u64::from(MAX_SCOPE)).uint((MAX_KEYS + MORE_KEYS) as u64)
        }
    };
    Ok(out.into_bytes())
}

pub(super) fn read(accounts: &[&Account<'_>]) -> Result<Vec<u8>, BooksError> {
    let mut out = Out::default();
    out.array(2).uint(kind::READ).array(accounts.len());
    for account in accounts {
        put_account(&mut out, account)?;
    }
    Ok(out.into_bytes())
}

/// Forgets what is forgotten in its time (keys of captured charges, and how charges ended without
/// their owner) and was there before an instant, so many at most.
pub(super) fn sweep(before: i64, most: u64) -> Vec<u8> {
    let mut out = Out::default();
    out.array(3).uint(kind::SWEEP).int(before).uint(most);
    out.into_bytes()
}

pub(super) fn look(charge: ChargeId) -> Vec<u8> {
    let mut out = Out::default();
    out.array(2).uint(kind::LOOK).bytes(&charge.0);
    out.into_bytes()
}

pub(super) fn find(scope: u64, key: &[u8; 16]) -> Vec<u8> {
    let mut out = Out::default();
    out.array(2).uint(kind::FIND).bytes(&once_field(scope, key));
    out.into_bytes()
}

/// The open charges that have one of these names.
pub(super) fn named(names: &[Key]) -> Vec<u8> {
    let mut out = Out::default();
    out.array(2).uint(kind::FIND);
    put_fields(&mut out, names);
    out.into_bytes()
}

fn put_fields(out: &mut Out, names: &[Key]) {
    out.array(names.len());
    for Key { scope, key } in names {
        out.bytes(&once_field(*scope, key));
    }
}

pub(super) fn once_field(scope: u64, key: &[u8; 16]) -> [u8; 24] {
    let mut field = [0; 24];
    field[..8].copy_from_slice(&scope.to_be_bytes());
    field[8..].copy_from_slice(key);
    field
}

fn put_account(out: &mut Out, account: &Account<'_>) -> Result<(), BooksError> {
    let Account { key, name, grant } = account;
    if grant.base > MAX_MICRO || grant.version.number > MAX_MICRO {
        return Err(BooksError::Range);
    }
    let ends = match key.kind.ends_with_its_cycle() {
        true => key.period.digits(),
        false => Label::NONE.digits(),
    };
    out.array(6).bytes(&key.to_bytes()).uint(u64::from(ends)).uint(grant.base);
    out.uint(u64::from(grant.version.epoch)).uint(grant.version.number);
    out.bytes(name.to_string().as_bytes());
    Ok(())
}

fn put_post(out: &mut Out, accounts: &[Account<'_>], post: &Post) -> Result<(), BooksError> {
    out.array(accounts.len());
    for account in accounts {
        put_account(out, account)?;
    }
    let there = |slot: Slot| usize::from(slot) < accounts.len();
    let mut named: SmallVec<[AccountKey; 8]> = SmallVec::new();
    let mut slots: SmallVec<[Slot; 8]> = SmallVec::new();
    out.array(post.sources.len());
    for source in &post.sources {
        let below = source.below.map_or(-1, |below| below.min(MAX_MICRO + 1) as i64);
        if source.take > MAX_MICRO {
            return Err(BooksError::Range);
        }
        out.array(5).uint(source.take).int(below).flag(source.solvent).flag(source.forced);
        out.array(3 * source.payers.len());
        for payer in &source.payers {
            out.uint(u64::from(payer.slot)).uint(payer.kind as u64);
            out.int(payer.cap.map_or(-1, i64::from));
            for slot in [Some(payer.slot), payer.cap].into_iter().flatten() {
                if !there(slot) {
                    return Err(BooksError::Range);
                }
                if !slots.contains(&slot) {
                    slots.push(slot);
                    named.push(accounts[usize::from(slot)].key);
                }
            }
        }
    }
    // Two slots of one account would each have all of it.
    named.sort_unstable();
    if named.windows(2).any(|pair| pair[0] == pair[1]) || !post.look.iter().all(|s| there(*s)) {
        return Err(BooksError::Range);
    }
    out.array(post.look.len());
    for slot in &post.look {
        out.uint(u64::from(*slot));
    }
    Ok(())
}

fn put_extra(out: &mut Out, extra: Option<(&[Account<'_>], &Post)>) -> Result<(), BooksError> {
    match extra {
        Some((accounts, post)) => put_post(out, accounts, post),
        None => {
            out.array(0).flag(false).array(0);
            Ok(())
        }
    }
}

pub(super) fn put_keep(out: &mut Out, keep: &[u64]) {
    out.array(keep.len());
    for keep in keep {
        out.uint(*keep.min(&MAX_MICRO));
    }
}

pub(super) fn encode<T: serde::Serialize>(what: &T) -> Result<Vec<u8>, BooksError> {
    postcard::to_allocvec(what).map_err(|error| BooksError::Unavailable(error.to_string()))
}

pub(super) fn code(state: State) -> u64 {
    match state {
        State::Held => 0,
        State::Captured => 1,
        State::Voided => 2,
        State::Expired => 3,
    }
}

pub(super) fn state_of(code: u8) -> Result<State, Malformed> {
    match code {
        0 => Ok(State::Held),
        1 => Ok(State::Captured),
        2 => Ok(State::Voided),
        3 => Ok(State::Expired),
        _ => Err(Malformed(format!("a state {code}"))),
    }
}

/// What became of an operation.
#[derive(Debug)]
pub(super) enum Reply {
    Done(Legs, View),
    /// An open hold, or one that has ended just now: how, and of each leg as much as is captured.
    Ended(State, OpenCharge),
    Short(View),
    Known(KnownCharge),
    Unknown,
    /// A charge that ended without its owner.
    Already(State),
    /// Open charges.
    Found(Vec<ChargeId>),
    /// What was adjusted under a key before: the balance now.
    Again(View),
    Refused(BooksError),
    /// Nobody knows yet: some session has not entered since Redis came back.
    Unsure,
}

/// What a call came to.
#[derive(Debug)]
pub(super) enum Called {
    /// Every operation was worked on.
    Done(Done),
    /// Nothing was: why, and for a session the last number it has used.
    Refused(String, Option<u64>),
}

/// What became of a batch.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) replies: Vec<Reply>,
    /// The entry of the shard's ledger; zero where nothing was changed.
    pub(super) entry: u64,
    /// The term that it belongs to.
    pub(super) term: String,
}

/// Reads the reply to the call with this tag; `charges` are those of its operations, in order.
pub(super) fn reply(bytes: &[u8], tag: u64, charges: &[ChargeId]) -> Result<Called, Malformed> {
    let mut input = In::new(bytes);
    let count = input.array()?;
    let status = input.text()?;
    if status != "done" {
        let detail = if count > 1 { input.uint().ok() } else { None };
        return Ok(Called::Refused(status.to_owned(), detail));
    }
    match input.uint()? {
        found if found == tag => {}
        found => return Err(Malformed(format!("the reply to call {found}, and not to {tag}"))),
    }
    input.tuple(charges.len())?;
    let replies = charges.iter().map(|charge| one(&mut input, *charge));
    let replies = replies.collect::<Result<Vec<Reply>, Malformed>>()?;
    let (entry, term) = (input.uint()?, input.text()?.to_owned());
    input.end()?;
    Ok(Called::Done(Done { replies, entry, term }))
}

/// How many operations a batch has.
pub(super) fn count(ops: &[u8]) -> Result<usize, Malformed> {
    In::new(ops).array()
}

fn one(input: &mut In<'_>, charge: ChargeId) -> Result<Reply, Malformed> {
    let count = input.array()?;
    Ok(match input.small()? {
        0 if count == 4 => {
            let (_, _) = (legs(input)?, view(input)?);
            return ended(input, charge);
        }
        0 => {
            let done = Reply::Done(legs(input)?, view(input)?);
            if count > 3 {
                // What it was of another session: for whoever does this again.
                input.flag()?;
                input.bytes()?;
            }
            done
        }
        1 => Reply::Short(view(input)?),
        2 => Reply::Known(KnownCharge {
            charge: ChargeId(input.fixed()?),
            request: input.fixed()?,
            captured: input.flag()?,
        }),
        3 => Reply::Unknown,
        4 => Reply::Refused(BooksError::Closed),
        5 => Reply::Refused(BooksError::Range),
        6 => Reply::Refused(BooksError::TooManyKeys),
        7 => Reply::Already(state_of(input.small()?)?),
        8 => {
            let count = input.array()?;
            let charges = (0..count).map(|_| Ok(ChargeId(input.fixed()?)));
            Reply::Found(charges.collect::<Result<_, Malformed>>()?)
        }
        9 => {
            legs(input)?;
            Reply::Again(view(input)?)
        }
        10 => Reply::Refused(BooksError::KeyReused),
        11 => Reply::Unsure,
        code => return Err(Malformed(format!("a status {code}"))),
    })
}

fn legs(input: &mut In<'_>) -> Result<Legs, Malformed> {
    let count = input.array()?;
    (0..count / 3)
        .map(|_| {
            let slot = input.small()?;
            Ok(Taken { slot, kind: leg_kind(input.small()?)?, amount: input.uint()? })
        })
        .collect()
}

pub(super) fn leg_kind(code: u8) -> Result<LegKind, Malformed> {
    let kind = LegKind::ALL.into_iter().find(|kind| *kind as u8 == code);
    kind.ok_or_else(|| Malformed(format!("a leg of kind {code}")))
}

fn view(input: &mut In<'_>) -> Result<View, Malformed> {
    let count = input.array()?;
    let mut balances: SmallVec<[(Slot, Balance); 8]> = SmallVec::new();
    for _ in 0..count / 5 {
        let slot = input.small()?;
        let (base, adjusted) = (input.uint()?, input.int()?);
        let (held, captured) = (input.uint()?, input.uint()?);
        balances.push((slot, Balance { base, adjusted, held, captured }));
    }
    let slots = balances.iter().map(|(slot, _)| usize::from(*slot) + 1).max();
    let mut view = View::new(slots.unwrap_or(0));
    for (slot, balance) in balances {
        view.set(slot, balance);
    }
    Ok(view)
}

/// `{state, kept, hold, names}`.
fn ended(input: &mut In<'_>, charge: ChargeId) -> Result<Reply, Malformed> {
    input.tuple(4)?;
    let state = state_of(input.small()?)?;
    let count = input.array()?;
    let kept = (0..count).map(|_| input.uint()).collect::<Result<Vec<u64>, _>>()?;
    let mut hold = StoredHold::read(input)?;
    let count = input.array()?;
    let names = (0..count).map(|_| Ok(input.text()?.to_owned()));
    let names = names.collect::<Result<Vec<String>, Malformed>>()?;
    if names.len() != hold.legs.len() {
        return Err(Malformed(format!("{} names of {} legs", names.len(), hold.legs.len())));
    }
    if state != State::Held {
        for (at, leg) in hold.legs.iter_mut().enumerate() {
            leg.2 = kept.get(at).copied().unwrap_or(0);
        }
    }
    Ok(Reply::Ended(state, hold.describe(charge, names)))
}
