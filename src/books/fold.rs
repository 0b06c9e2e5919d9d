//! The state of the books as their records add up to it: what recovery starts from, and what a
//! snapshot stores. Snapshots are folded from the journal, never copied from live memory, so
//! that they cannot hold what was not written.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

use crate::core::account::{AccountKey, Balance, Version};
use crate::core::charge::{Flags, InDoubt, State};
use crate::core::cycle::Label;
use crate::core::record::{
    Adjust, Amend, Carried, CarriedKey, Hold, Known, Lasting, Leg, Once, Opening, Record, Resolve,
    add_legs,
};
use smallvec::SmallVec;

/// Why records do not add up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// A leg of an account that no record opened.
    #[error("a leg names an account that was never opened: {0:?}")]
    UnknownAccount(AccountKey),
    /// A resolution or an amendment of a charge that is not open.
    #[error("charge {0:02x?} is resolved or amended but not open")]
    NotOpen([u8; 16]),
    /// A charge that is captured late, and is open.
    #[error("charge {0:02x?} is captured late but still open")]
    StillOpen([u8; 16]),
    /// A charge that was held twice.
    #[error("charge {0:02x?} is held twice")]
    HeldTwice([u8; 16]),
    /// An amount that leaves its range, or a capture above its hold.
    #[error("an amount is out of range")]
    Range,
    /// An account of a cycle that was closed is opened again.
    #[error("an account of a cycle that was closed is opened again: {0:?}")]
    Closed(AccountKey),
    /// A cycle is closed in which something is held.
    #[error("a cycle is closed while something is held in it: {0:?}")]
    StillHeld(AccountKey),
}

/// An account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoldAccount {
    /// Its name.
    pub name: Box<str>,
    /// What it has.
    pub balance: Balance,
    /// Where its base comes from.
    pub version: Version,
}

/// An open hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoldHold {
    /// Microseconds since the Unix epoch.
    pub at: i64,
    /// What resolves it if its owner disappears.
    pub in_doubt: InDoubt,
    /// What it took.
    pub legs: SmallVec<[Leg; 2]>,
    /// The hold's memo.
    pub memo: Box<[u8]>,
    /// When it ends by itself: it outlives its process.
    pub expires: Option<i64>,
    /// The key under which it was made once.
    pub once: Option<Once>,
    /// What is known of its use.
    pub known: Option<Known>,
    /// The hold's note.
    pub note: Box<[u8]>,
}

/// A charge that was made under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoldOnce {
    /// The charge.
    pub charge: [u8; 16],
    /// What the request was.
    pub request: [u8; 16],
    /// When it was held, in microseconds since the Unix epoch.
    pub at: i64,
    /// False while it is open.
    pub captured: bool,
}

/// Every account and every open hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fold {
    /// Accounts by key.
    pub accounts: HashMap<AccountKey, FoldAccount>,
    /// Open holds by charge.
    pub holds: HashMap<[u8; 16], FoldHold>,
    /// Charges by the scope and key under which they are made once: those that are open or
    /// captured.
    pub once: HashMap<(u64, [u8; 16]), FoldOnce>,
    /// Accounts of cycles that began before this label are gone.
    pub closed: Label,
    /// The last days (UTC, since the Unix epoch) on which records were made, at most [`DAYS`].
    pub days: BTreeSet<i32>,
}

/// How many days of records lie between a cycle that is closed and the newest record. No cycle is
/// longer than 46 days (D6), so in no zone and under no anchor it is the current one or the one
/// before. Days on which something was recorded count, and not the time between them: a clock that
/// jumps ahead makes one day of it.
pub const DAYS: usize = 100;

/// Microseconds of a day.
pub const DAY: i64 = 86_400_000_000;

impl Fold {
    /// The label below which cycles can be closed, as far as time goes.
    pub fn closable(&self) -> Label {
        match self.days.first() {
            Some(day) if self.days.len() == DAYS => Label::of_day(*day),
            _ => Label::NONE,
        }
    }

    fn note(&mut self, at: i64) {
        let Ok(day) = i32::try_from(at.div_euclid(DAY)) else { return };
        if self.days.last() != Some(&day) && self.days.insert(day) && self.days.len() > DAYS {
            self.days.pop_first();
        }
    }

    /// Forgets the keys of captured charges that were held before an instant.
    pub fn forget_once(&mut self, before: i64) {
        self.once.retain(|_, known| !known.captured || known.at >= before);
    }

    /// Applies one record.
    ///
    /// # Errors
    /// [`FoldError`] when the record contradicts those before it; the state is then of no use.
    pub fn apply(&mut self, record: &Record<'_>) -> Result<(), FoldError> {
        if let Some(at) = record.at() {
            self.note(at);
        }
        for opening in record.openings() {
            if opening.key.is_closed(self.closed) {
                return Err(FoldError::Closed(opening.key));
            }
            self.open(opening);
        }
        match record {
            Record::Hold(hold) => self.hold(hold, None),
            Record::Lasting(lasting) => self.hold(&lasting.hold, Some(lasting)),
            Record::Amend(amend) => self.amend(amend),
            Record::Resolve(resolve) => self.resolve(resolve),
            Record::Finish(finish) => self.resolve(&finish.resolve),
            Record::Adjust(adjust) => self.adjust(adjust),
            Record::Synced(_) => Ok(()),
            Record::Close(close) => self.close(close.below),
            Record::Carried(carried) => self.carried(carried),
        }
    }

    fn open(&mut self, opening: &Opening<'_>) {
        let account = self.accounts.entry(opening.key).or_insert_with(|| FoldAccount {
            name: opening.name.into(),
            balance: Balance { base: opening.grant.base, ..Balance::default() },
            version: opening.grant.version,
        });
        if opening.grant.version > account.version {
            account.balance.base = opening.grant.base;
            account.version = opening.grant.version;
        }
    }

    fn balance(&mut self, key: AccountKey) -> Result<&mut Balance, FoldError> {
        let account = self.accounts.get_mut(&key).ok_or(FoldError::UnknownAccount(key))?;
        Ok(&mut account.balance)
    }

    fn hold(&mut self, hold: &Hold<'_>, lasting: Option<&Lasting<'_>>) -> Result<(), FoldError> {
        self.take(&hold.legs)?;
        let once = lasting.and_then(|lasting| lasting.once);
        if let Some(Once { scope, key, request }) = once {
            let (charge, at) = (hold.charge, hold.at);
            self.once.insert((scope, key), FoldOnce { charge, request, at, captured: false });
        }
        let open = FoldHold {
            at: hold.at,
            in_doubt: hold.in_doubt,
            legs: hold.legs.clone(),
            memo: hold.memo.into(),
            expires: lasting.and_then(|lasting| lasting.expires),
            once,
            known: None,
            note: lasting.map_or(&[][..], |lasting| lasting.note).into(),
        };
        match self.holds.insert(hold.charge, open) {
            None => Ok(()),
            Some(_) => Err(FoldError::HeldTwice(hold.charge)),
        }
    }

    fn take(&mut self, legs: &[Leg]) -> Result<(), FoldError> {
        for leg in legs {
            let balance = self.balance(leg.key)?;
            balance.held = balance.held.checked_add(leg.amount).ok_or(FoldError::Range)?;
        }
        Ok(())
    }

    fn amend(&mut self, amend: &Amend<'_>) -> Result<(), FoldError> {
        self.take(&amend.legs)?;
        let not_open = FoldError::NotOpen(amend.charge);
        let hold = self.holds.get_mut(&amend.charge).ok_or(not_open)?;
        add_legs(&mut hold.legs, &amend.legs);
        if amend.known.is_some() {
            hold.known.clone_from(&amend.known);
        }
        hold.expires = amend.expires.or(hold.expires);
        if let Some(note) = amend.note {
            hold.note = note[..].into();
        }
        Ok(())
    }

    fn resolve(&mut self, resolve: &Resolve<'_>) -> Result<(), FoldError> {
        if resolve.memo.flags.has(Flags::LATE) {
            return self.late(resolve);
        }
        let hold = self.holds.remove(&resolve.charge).ok_or(FoldError::NotOpen(resolve.charge))?;
        if let Some(Once { scope, key, .. }) = hold.once
            && let Entry::Occupied(mut known) = self.once.entry((scope, key))
            && known.get().charge == resolve.charge
        {
            // Whoever was not charged may try again.
            match resolve.state {
                State::Captured => known.get_mut().captured = true,
                _ => drop(known.remove()),
            }
        }
        for (index, leg) in hold.legs.iter().enumerate() {
            let keep = resolve.keep.get(index).copied().unwrap_or(0);
            let balance = self.balance(leg.key)?;
            if keep > leg.amount {
                return Err(FoldError::Range);
            }
            balance.held = balance.held.checked_sub(leg.amount).ok_or(FoldError::Range)?;
            balance.captured = balance.captured.checked_add(keep).ok_or(FoldError::Range)?;
        }
        for leg in &resolve.extra {
            let balance = self.balance(leg.key)?;
            balance.captured = balance.captured.checked_add(leg.amount).ok_or(FoldError::Range)?;
        }
        Ok(())
    }

    /// What was voided without its owner is captured all the same.
    fn late(&mut self, resolve: &Resolve<'_>) -> Result<(), FoldError> {
        if self.holds.contains_key(&resolve.charge) {
            return Err(FoldError::StillOpen(resolve.charge));
        }
        for Leg { key, amount, .. } in &resolve.extra {
            let balance = self.balance(*key)?;
            balance.captured = balance.captured.checked_add(*amount).ok_or(FoldError::Range)?;
        }
        Ok(())
    }

    /// What other books knew.
    fn carried(&mut self, carried: &Carried<'_>) -> Result<(), FoldError> {
        if carried.used.len() != carried.openings.len() {
            return Err(FoldError::Range);
        }
        for (opening, used) in carried.openings.iter().zip(&carried.used) {
            let balance = self.balance(opening.key)?;
            let captured = balance.captured.checked_add(used.captured);
            balance.captured = captured.ok_or(FoldError::Range)?;
            let adjusted = balance.adjusted.checked_add(used.adjusted);
            balance.adjusted = adjusted.ok_or(FoldError::Range)?;
        }
        for CarriedKey { once, charge, held_at } in &carried.keys {
            let (charge, request) = (*charge, once.request);
            let known = FoldOnce { charge, request, at: *held_at, captured: true };
            self.once.insert((once.scope, once.key), known);
        }
        Ok(())
    }

    fn close(&mut self, below: Label) -> Result<(), FoldError> {
        let held = |(key, account): &(&AccountKey, &FoldAccount)| {
            key.is_closed(below) && account.balance.held > 0
        };
        if let Some((key, _)) = self.accounts.iter().find(held) {
            return Err(FoldError::StillHeld(*key));
        }
        self.accounts.retain(|key, _| !key.is_closed(below));
        self.closed = self.closed.max(below);
        Ok(())
    }

    fn adjust(&mut self, adjust: &Adjust<'_>) -> Result<(), FoldError> {
        let balance = self.balance(adjust.key)?;
        balance.adjusted = balance.adjusted.checked_add(adjust.delta).ok_or(FoldError::Range)?;
        Ok(())
    }
}
