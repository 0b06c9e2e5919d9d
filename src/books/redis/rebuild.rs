//! A shard as the records of its ledger add up to it: what is written where it is built again.
//!
//! Charges that are archived come one by one, each with its end, in the order of their holds; what came
//! later, as entries of the ledger in their order.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::ledger::{Back, End, Entry, More, Name};
use super::wire::{MAX_ENDED, once_field};
use crate::books::fold::{DAY, DAYS, FoldAccount};
use crate::core::account::{AccountKey, Balance, Grant};
use crate::core::charge::{Flags, InDoubt, State};
use crate::core::cycle::Label;
use crate::core::ids::ChargeId;
use crate::core::record::{
    Adjust, Amend, Carried, Finish, Hold, Known, Lasting, Leg, Once, Opening, Record, Resolve,
    add_legs,
};

/// How many contradictions are told.
const TOLD: usize = 20;

/// What there is to an open charge besides its record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// The session that made it.
    pub owner: String,
    /// What is known of its use.
    pub known: Option<Known>,
    /// Its names.
    pub names: Vec<Name>,
    /// Where it was put back by another than its owner: which entry has what it was then.
    pub carried: Option<u64>,
    /// Of one that was captured, whether it has its key, where that is not what its end says.
    pub has_key: Option<bool>,
    /// Its end is remembered whatever that says: it was done again, because Redis had lost it, or another
    /// session than its owner's made it.
    pub remembered: bool,
}

impl Open {
    /// What is said with the record of a hold.
    pub fn of(session: &str, more: Option<&More>) -> Self {
        match more {
            Some(More::Back(Back { owner, known, names, carried })) => Self {
                owner: owner.clone(),
                known: known.clone(),
                names: names.clone(),
                carried: Some(*carried),
                ..Self::default()
            },
            _ => Self { owner: session.to_owned(), ..Self::default() },
        }
    }

    /// Takes over what an amendment says.
    pub fn amend(&mut self, amend: &Amend<'_>, names: Option<&[Name]>) {
        if amend.known.is_some() {
            self.known.clone_from(&amend.known);
        }
        if let Some(names) = names {
            self.names = names.to_vec();
        }
    }
}

/// An open hold.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) at: i64,
    pub(super) expires: Option<i64>,
    pub(super) once: Option<Once>,
    pub(super) legs: SmallVec<[Leg; 2]>,
    pub(super) in_doubt: InDoubt,
    pub(super) memo: Box<[u8]>,
    pub(super) note: Box<[u8]>,
    pub(super) open: Open,
}

/// A charge that ended without its owner.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) state: State,
    /// When.
    pub(super) at: i64,
    /// What it took, where it can still be captured, and under which key it was held when.
    pub(super) legs: Option<(SmallVec<[Leg; 2]>, Option<Once>, i64)>,
}

/// Who has a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// `None` for an adjustment.
    pub(super) charge: Option<[u8; 16]>,
    pub(super) request: [u8; 16],
    pub(super) captured: bool,
    pub(super) at: i64,
}

/// A shard.
#[derive(Debug, Default)]
pub struct Rebuilt {
    pub(super) accounts: BTreeMap<AccountKey, FoldAccount>,
    pub(super) holds: BTreeMap<[u8; 16], Held>,
    pub(super) once: HashMap<Name, Kept>,
    pub(super) ended: BTreeMap<[u8; 16], Ended>,
    pub(super) sessions: BTreeMap<String, u64>,
    pub(super) closed: Label,
    /// Names and grants of accounts that may be used.
    known: HashMap<AccountKey, (Box<str>, Grant)>,
    /// Who has each key by what is archived, and since when.
    had: HashMap<Name, (i64, Kept)>,
    /// What ended, and was made under a key, before this is forgotten.
    before: i64,
    /// How many charges it was built of.
    pub charges: u64,
    /// How many adjustments.
    pub adjustments: u64,
    /// When the newest record was made, in microseconds since the Unix epoch.
    pub newest: i64,
    /// The last days on which something was recorded that is known, as `meta` has them.
    pub(super) days: BTreeSet<i32>,
    /// What does not fit, some of it.
    pub odd: Vec<String>,
}

impl Rebuilt {
    /// One that has nothing yet. What is forgotten in its time is so if it was before this instant.
    pub fn new(before: i64, closed: Label) -> Self {
        Self { before, closed, ..Self::default() }
    }

    /// An account that records may name, under its newest grant.
    pub fn know(&mut self, key: AccountKey, name: &str, grant: Grant) {
        self.known.insert(key, (name.into(), grant));
    }

    /// The last call of a session.
    pub fn heard(&mut self, session: &str, number: u64) {
        let last = self.sessions.entry(session.to_owned()).or_default();
        *last = number.max(*last);
    }

    /// How many accounts, open holds and keys there are.
    pub fn counts(&self) -> [usize; 3] {
        [self.accounts.len(), self.holds.len(), self.once.len()]
    }

    /// Something was recorded then.
    fn recorded(&mut self, at: i64) {
        self.newest = self.newest.max(at);
        let Ok(day) = i32::try_from(at.div_euclid(DAY)) else { return };
        if self.days.insert(day) && self.days.len() > DAYS {
            self.days.pop_first();
        }
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if self.odd.len() < TOLD {
            self.odd.push(what());
        }
    }

    fn open(&mut self, opening: &Opening<'_>) {
        let account = self.account(opening.key, Some(opening.name));
        if opening.grant.version > account.version {
            account.balance.base = opening.grant.base;
            account.version = opening.grant.version;
        }
    }

    fn account(&mut self, key: AccountKey, name: Option<&str>) -> &mut FoldAccount {
        let known = &self.known;
        self.accounts.entry(key).or_insert_with(|| {
            let known = known.get(&key);
            let grant = known.map(|(_, grant)| *grant).unwrap_or_default();
            let balance = Balance { base: grant.base, ..Balance::default() };
            let name = known.map(|(name, _)| &**name).or(name).unwrap_or_default();
            FoldAccount { name: name.into(), balance, version: grant.version }
        })
    }

    /// Adds to what an account holds and has captured.
    fn add(&mut self, leg: &Leg, held: i64, captured: u64) {
        let balance = &mut self.account(leg.key, None).balance;
        let now = balance.held.checked_add_signed(held);
        let (Some(held), Some(captured)) = (now, balance.captured.checked_add(captured)) else {
            return self.note(|| format!("an amount of {:?} is out of range", leg.key));
        };
        (balance.held, balance.captured) = (held, captured);
    }

    fn take(&mut self, legs: &[Leg]) {
        for leg in legs {
            self.add(leg, leg.amount as i64, 0);
        }
    }

    /// Somebody has a key since then. Who has it now is who came last.
    fn has(&mut self, once: &Once, since: i64, charge: Option<[u8; 16]>, captured: bool, at: i64) {
        if captured && at < self.before {
            return;
        }
        let kept = Kept { charge, request: once.request, captured, at };
        let had = self.had.entry(once_field(once.scope, &once.key)).or_insert((since, kept));
        if since >= had.0 {
            *had = (since, kept);
        }
    }

    /// A charge that is archived.
    pub fn charge(&mut self, lasting: &Lasting<'_>, end: Option<&Resolve<'_>>, open: Option<Open>) {
        self.charges += 1;
        let Hold { charge, at, .. } = lasting.hold;
        let Some(end) = end else { return self.held(lasting, open.unwrap_or_default(), true) };
        self.recorded(at);
        lasting.hold.openings.iter().for_each(|opening| self.open(opening));
        let late = end.memo.flags.has(Flags::LATE);
        // What came later has its accounts too.
        self.take(&lasting.hold.legs);
        for (index, leg) in lasting.hold.legs.iter().enumerate() {
            let keep = end.keep.get(index).copied().filter(|_| !late).unwrap_or(0);
            self.add(leg, -(leg.amount as i64), keep.min(leg.amount));
        }
        self.extra(end);
        let open = open.unwrap_or_default();
        let has_key = open.has_key.unwrap_or(!late) && end.state == State::Captured;
        if let Some(once) = lasting.once.filter(|_| has_key) {
            self.has(&once, end.at, Some(charge), true, at);
        }
        self.remember(end, open.remembered, &lasting.hold.legs, lasting.once, at);
    }

    fn held(&mut self, lasting: &Lasting<'_>, open: Open, is_archived: bool) {
        let Lasting { hold, expires, once, note } = lasting;
        hold.openings.iter().for_each(|opening| self.open(opening));
        self.take(&hold.legs);
        self.recorded(hold.at);
        match once {
            Some(once) if is_archived => {
                self.has(once, hold.at, Some(hold.charge), false, hold.at);
            }
            Some(Once { scope, key, request }) => {
                let (charge, request) = (Some(hold.charge), *request);
                let kept = Kept { charge, request, captured: false, at: hold.at };
                self.once.insert(once_field(*scope, key), kept);
            }
            None => {}
        }
        let held = Held {
            at: hold.at,
            expires: *expires,
            once: *once,
            legs: hold.legs.clone(),
            in_doubt: hold.in_doubt,
            memo: hold.memo.into(),
            note: (*note).into(),
            open,
        };
        if self.holds.insert(hold.charge, held).is_some() {
            self.note(|| format!("{} is held twice", ChargeId(hold.charge)));
        }
    }

    /// What an end captures beyond its hold.
    fn extra(&mut self, end: &Resolve<'_>) {
        self.recorded(end.at);
        end.openings.iter().for_each(|opening| self.open(opening));
        for leg in &end.extra {
            self.add(leg, 0, leg.amount);
        }
    }

    /// Remembers an end that was made without its owner, in its time, or done again.
    fn remember(
        &mut self,
        end: &Resolve<'_>,
        remembered: bool,
        legs: &[Leg],
        once: Option<Once>,
        held_at: i64,
    ) {
        let flags = end.memo.flags;
        let was_due = end.state == State::Expired;
        let is_known = flags.has(Flags::IN_DOUBT) || flags.has(Flags::LATE) || was_due;
        if end.at < self.before || !(remembered || is_known) {
            return;
        }
        let was_given_up = end.state == State::Voided && flags.has(Flags::IN_DOUBT);
        let can_be_late = was_given_up || was_due;
        let legs = can_be_late.then(|| (SmallVec::from_slice(legs), once, held_at));
        self.ended.insert(end.charge, Ended { state: end.state, at: end.at, legs });
    }

    /// An adjustment that is archived.
    pub fn adjust(&mut self, adjust: &Adjust<'_>, once: Option<&Once>) {
        self.adjusted(adjust);
        if let Some(once) = once {
            self.has(once, adjust.at, None, true, adjust.at);
        }
    }

    fn adjusted(&mut self, adjust: &Adjust<'_>) {
        self.adjustments += 1;
        self.recorded(adjust.at);
        adjust.openings.iter().for_each(|opening| self.open(opening));
        let balance = &mut self.account(adjust.key, None).balance;
        match balance.adjusted.checked_add(adjust.delta) {
            Some(adjusted) => balance.adjusted = adjusted,
            None => self.note(|| format!("an amount of {:?} is out of range", adjust.key)),
        }
    }

    /// What came from other books.
    pub fn carried(&mut self, carried: &Carried<'_>) {
        for (opening, used) in carried.openings.iter().zip(&carried.used) {
            self.open(opening);
            let balance = &mut self.account(opening.key, None).balance;
            balance.adjusted = balance.adjusted.saturating_add(used.adjusted);
            balance.captured = balance.captured.saturating_add(used.captured);
        }
        self.newest = self.newest.max(carried.at);
        for key in &carried.keys {
            self.has(&key.once, key.held_at, Some(key.charge), true, key.held_at);
        }
    }

    /// All that is archived has come: who has which key.
    pub fn archived(&mut self) {
        let had = std::mem::take(&mut self.had).into_iter();
        self.once.extend(had.map(|(field, (_, kept))| (field, kept)));
    }

    /// What an entry of the ledger did that is not archived.
    pub fn entry(&mut self, entry: &Entry<'_>) {
        self.heard(entry.session, entry.number);
        let again = entry.before.is_some();
        for (at, record) in entry.records.iter().enumerate() {
            let more = entry.more.iter().find(|(of, _)| *of == at).map(|(_, more)| more);
            match record {
                Record::Hold(hold) => {
                    let (expires, once, note) = (None, None, &[][..]);
                    let lasting = Lasting { hold: hold.clone(), expires, once, note };
                    self.charges += 1;
                    self.held(&lasting, Open::of(entry.session, more), false);
                }
                Record::Lasting(lasting) => {
                    self.charges += 1;
                    self.held(lasting, Open::of(entry.session, more), false);
                }
                Record::Amend(amend) => self.amend(amend, more),
                Record::Resolve(resolve) | Record::Finish(Finish { resolve, .. }) => {
                    let End { remembered, has_key } = match more {
                        Some(More::End(end)) => *end,
                        _ => End::default(),
                    };
                    self.resolve(resolve, again || remembered, has_key == Some(true));
                }
                Record::Adjust(adjust) => {
                    self.adjusted(adjust);
                    if let Some(More::Key(Once { scope, key, request })) = more {
                        let (at, request) = (adjust.at, *request);
                        let kept = Kept { charge: None, request, captured: true, at };
                        self.once.insert(once_field(*scope, key), kept);
                    }
                }
                Record::Carried(carried) => {
                    self.carried(carried);
                    self.archived();
                }
                Record::Close(close) => self.closed = self.closed.max(close.below),
                Record::Synced(_) => {}
            }
        }
    }

    fn amend(&mut self, amend: &Amend<'_>, more: Option<&More>) {
        amend.openings.iter().for_each(|opening| self.open(opening));
        self.recorded(amend.at);
        let Some(held) = self.holds.get_mut(&amend.charge) else {
            return self.note(|| format!("{} is amended and not open", ChargeId(amend.charge)));
        };
        let names = match more {
            Some(More::Names(names)) => Some(&names[..]),
            _ => None,
        };
        held.open.amend(amend, names);
        add_legs(&mut held.legs, &amend.legs);
        held.expires = amend.expires.or(held.expires);
        if let Some(note) = amend.note {
            held.note = note[..].into();
        }
        self.take(&amend.legs);
    }

    fn resolve(&mut self, end: &Resolve<'_>, remembered: bool, has_key: bool) {
        if end.memo.flags.has(Flags::LATE) {
            self.extra(end);
            let before = self.ended.get(&end.charge).and_then(|ended| ended.legs.clone());
            if let (Some((_, Some(Once { scope, key, request }), at)), true) = (before, has_key) {
                let kept = Kept { charge: Some(end.charge), request, captured: true, at };
                self.once.insert(once_field(scope, &key), kept);
            }
            return self.remember(end, remembered, &[], None, 0);
        }
        let Some(held) = self.holds.remove(&end.charge) else {
            return self.note(|| format!("{} ends and is not open", ChargeId(end.charge)));
        };
        for (index, leg) in held.legs.iter().enumerate() {
            let keep = end.keep.get(index).copied().unwrap_or(0).min(leg.amount);
            self.add(leg, -(leg.amount as i64), keep);
        }
        self.extra(end);
        if let Some(Once { scope, key, .. }) = held.once {
            let field = once_field(scope, &key);
            let is_its = |kept: &&mut Kept| kept.charge == Some(end.charge);
            if let Some(kept) = self.once.get_mut(&field).filter(is_its) {
                match end.state {
                    State::Captured => kept.captured = true,
                    _ => drop(self.once.remove(&field)),
                }
            }
        }
        self.remember(end, remembered, &held.legs, held.once, held.at);
    }

    /// All of it has come: what is forgotten in its time is, and so are closed cycles.
    pub fn finish(&mut self) {
        let (before, closed) = (self.before, self.closed);
        self.once.retain(|_, kept| !kept.captured || kept.at >= before);
        self.ended.retain(|_, ended| ended.at >= before);
        if let Some(more) = self.ended.len().checked_sub(MAX_ENDED as usize) {
            let mut at: Vec<i64> = self.ended.values().map(|ended| ended.at).collect();
            at.sort_unstable();
            let oldest = at.get(more).copied().unwrap_or(i64::MAX);
            self.ended.retain(|_, ended| ended.at >= oldest);
        }
        self.accounts.retain(|key, account| !key.is_closed(closed) || account.balance.held > 0);
    }
}
