//! What the keys of a shard are filled with that is built again; see the head comment of `lua/books.lua`.

use std::collections::BTreeMap;

use super::carried::{owed, packed, stored};
use super::ledger::Name;
use super::pack::Out;
use super::rebuild::{Ended, Held, Kept, Rebuilt};
use super::repair::{ACCOUNTS, ENDED, ENDING, HOLDS, KEPT, NAMES, ONCE, SESSIONS};
use super::wire::{self, code, encode, once_field};
use crate::books::unowned;
use crate::core::account::AccountKey;
use crate::core::charge::{Flags, InDoubt, OutcomeMemo, State};
use crate::core::record::{Leg, Once};

/// The first of the slots of a hold's accounts whose slots nobody knows any more: no gateway names so
/// many in one post, so it passes over what it is told of them.
const FIRST_SLOT: u64 = 128;

/// Fields or scores of a key, each with what stands there.
pub(super) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// What the keys of a shard are filled with.
pub(super) struct Filled {
    pub(super) keys: BTreeMap<usize, Pairs>,
    /// As `meta` counts them: accounts, holds, ending, keys, scopes, kept, ended, sessions.
    pub(super) counts: [usize; 8],
    /// What else there is in `meta`.
    pub(super) meta: Pairs,
}

impl Filled {
    pub(super) fn new(built: &Rebuilt, now: i64) -> Self {
        let mut keys = BTreeMap::<usize, Pairs>::new();
        let mut put =
            |key, field: Vec<u8>, value| keys.entry(key).or_default().push((field, value));
        for (key, account) in &built.accounts {
            put(ACCOUNTS, key.to_bytes().to_vec(), stored(account));
            put(NAMES, key.to_bytes().to_vec(), account.name.as_bytes().to_vec());
        }
        let mut named = BTreeMap::<Name, Vec<[u8; 16]>>::new();
        let mut ending = 0;
        for (charge, held) in &built.holds {
            put(HOLDS, charge.to_vec(), hold(built, held));
            if let Some(expires) = held.expires.filter(|expires| *expires > 0) {
                ending += 1;
                put(ENDING, score(expires), charge.to_vec());
            }
            for name in &held.open.names {
                named.entry(*name).or_default().push(*charge);
            }
        }
        let mut scopes = BTreeMap::<[u8; 8], u64>::new();
        let mut count = |field: &Name| {
            let scope: [u8; 8] = std::array::from_fn(|at| field[at]);
            *scopes.entry(scope).or_default() += 1;
        };
        let mut kept = 0;
        for (field, known) in &built.once {
            count(field);
            put(ONCE, field.to_vec(), once(known));
            if known.captured {
                kept += 1;
                put(KEPT, score(known.at), field.to_vec());
            }
        }
        for (field, charges) in &named {
            count(field);
            let mut out = Out::default();
            out.array(1).array(charges.len());
            for charge in charges {
                out.bytes(charge);
            }
            put(ONCE, field.to_vec(), out.into_bytes());
        }
        for (scope, count) in &scopes {
            put(ONCE, scope.to_vec(), packed(*count));
        }
        for (charge, end) in &built.ended {
            put(ENDED, charge.to_vec(), ended(built, end));
            put(KEPT, score(end.at), charge.to_vec());
        }
        for (session, number) in &built.sessions {
            let mut mark = Out::default();
            mark.uint(*number).int(now).bytes(b"");
            put(SESSIONS, session.clone().into_bytes(), mark.into_bytes());
            put(SESSIONS, format!("{session}:r").into_bytes(), Vec::new());
        }
        let counts = [
            built.accounts.len(),
            built.holds.len(),
            ending,
            built.once.len() + named.len(),
            scopes.len(),
            kept + built.ended.len(),
            built.ended.len(),
            built.sessions.len(),
        ];
        Self { keys, counts, meta: meta(built) }
    }
}

/// What `meta` has besides what it counts: what users owe, and what there is to closing cycles. Accounts
/// of closed ones are not made again.
fn meta(built: &Rebuilt) -> Pairs {
    let mut meta = vec![(b"forgotten".to_vec(), score(built.closed.digits().into()))];
    let owed = owed(&built.accounts, built.closed).into_iter();
    meta.extend(owed.map(|(field, sum)| (field.into_bytes(), sum.to_string().into_bytes())));
    if let Some(last) = built.days.last() {
        let mut days = Out::default();
        days.array(built.days.len());
        for day in &built.days {
            days.int((*day).into());
        }
        meta.push((b"day".to_vec(), score((*last).into())));
        meta.push((b"days".to_vec(), days.into_bytes()));
    }
    meta
}

fn score(at: i64) -> Vec<u8> {
    at.to_string().into_bytes()
}

fn once(known: &Kept) -> Vec<u8> {
    let mut out = Out::default();
    let charge = known.charge.as_ref().map_or(&[][..], |charge| charge);
    out.array(4).bytes(charge).bytes(&known.request).flag(known.captured).int(known.at);
    out.into_bytes()
}

fn put_legs(out: &mut Out, legs: &[Leg]) {
    out.array(3 * legs.len());
    for leg in legs {
        out.bytes(&leg.key.to_bytes()).uint(leg.kind as u64).uint(leg.amount);
    }
}

/// The accounts of legs, as an operation names them.
fn put_named(out: &mut Out, built: &Rebuilt, legs: &[Leg]) -> u64 {
    let mut keys: Vec<AccountKey> = Vec::new();
    for leg in legs {
        if !keys.contains(&leg.key) {
            keys.push(leg.key);
        }
    }
    out.array(6 * keys.len());
    for (slot, key) in (FIRST_SLOT..).zip(&keys) {
        let account = built.accounts.get(key);
        let (base, version) = account
            .map_or_else(Default::default, |account| (account.balance.base, account.version));
        let ends = if key.kind.ends_with_its_cycle() { key.period.digits() } else { 0 };
        out.uint(slot).bytes(&key.to_bytes()).uint(ends.into()).uint(base);
        out.uint(version.epoch.into()).uint(version.number);
    }
    FIRST_SLOT + keys.len() as u64
}

fn put_once<'a>(out: &'a mut Out, once: &Once) -> &'a mut Out {
    out.bytes(&once_field(once.scope, &once.key)).bytes(&once.request)
}

/// An open hold as it is stored; see the head comment of `lua/books.lua`.
fn hold(built: &Rebuilt, held: &Held) -> Vec<u8> {
    let Held { at, expires, once, legs, in_doubt, memo, note, open } = held;
    let mut out = Out::default();
    let more = match (&open.names[..], open.carried) {
        (_, Some(_)) => 2,
        ([], None) => 0,
        _ => 1,
    };
    out.array(11 + more).bytes(open.owner.as_bytes()).int(*at).int(expires.unwrap_or(0));
    match once {
        None => out.flag(false),
        Some(once) => put_once(out.array(2), once),
    };
    put_legs(&mut out, legs);
    let slots = put_named(&mut out, built, legs);
    out.uint(slots);
    match &open.known {
        Some(known) => {
            let flags = known.memo.flags | Flags::IN_DOUBT;
            let memo = OutcomeMemo { flags, ..known.memo.clone() };
            out.array(3).uint(wire::USED).bytes(&encode(&memo).unwrap_or_default());
            wire::put_keep(&mut out, &known.keep);
        }
        None => {
            let (state, memo) = unowned(*in_doubt, memo);
            let captures = state == State::Captured;
            let how = if captures { wire::WHOLE } else { wire::VOID };
            out.array(2).uint(how).bytes(&encode(&memo).unwrap_or_default());
        }
    }
    let doubt = *in_doubt == InDoubt::Capture;
    out.uint(doubt.into()).bytes(memo).bytes(note);
    if more > 0 {
        match &open.names[..] {
            [] => out.flag(false),
            names => out.array(names.len()),
        };
        for name in &open.names {
            out.bytes(name);
        }
    }
    if let Some(carried) = open.carried {
        out.uint(carried);
    }
    out.into_bytes()
}

/// How a charge ended, as it is stored.
fn ended(built: &Rebuilt, end: &Ended) -> Vec<u8> {
    let mut out = Out::default();
    let Some((legs, once, held_at)) = &end.legs else {
        out.array(1).uint(code(end.state));
        return out.into_bytes();
    };
    out.array(if once.is_some() { 4 } else { 3 }).uint(code(end.state));
    put_legs(&mut out, legs);
    put_named(&mut out, built, legs);
    if let Some(once) = once {
        put_once(out.array(3), once).int(*held_at);
    }
    out.into_bytes()
}
