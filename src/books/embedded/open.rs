//! A hold that is not resolved yet, as the embedded books keep it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use smallvec::SmallVec;

use super::table::{Places, Table};
use crate::books::{Known, Once, OpenCharge, OpenLeg, unowned};
use crate::core::account::{AccountKey, Legs, Slot, View};
use crate::core::charge::{Flags, InDoubt, OutcomeMemo, State};
use crate::core::ids::ChargeId;
use crate::core::record::instant;

/// A hold that is not resolved yet.
#[derive(Clone, Debug)]
pub(super) struct OpenHold {
    pub(super) charge: [u8; 16],
    pub(super) at: i64,
    pub(super) places: Places,
    /// Accounts that were named before anything had opened them.
    pub(super) unopened: Vec<(Slot, AccountKey)>,
    pub(super) legs: Legs,
    pub(super) memo: Box<[u8]>,
    pub(super) in_doubt: InDoubt,
    /// What there is beyond a plain hold.
    pub(super) lasting: Option<Box<Lasting>>,
}

/// What there is to a hold beyond a plain one.
#[derive(Clone, Debug, Default)]
pub(super) struct Lasting {
    pub(super) expires: Option<i64>,
    pub(super) once: Option<Once>,
    pub(super) known: Option<Known>,
    pub(super) note: Box<[u8]>,
}

/// How much of each leg is captured.
pub(super) type Keep = SmallVec<[u64; 6]>;

/// Open holds by the charge's id.
pub(super) type OpenHolds = HashMap<[u8; 16], Open, BuildHasherDefault<ChargeHasher>>;

/// A hold made through this session, until the record of its resolution is written.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) hold: Arc<OpenHold>,
    /// Set once, by whoever resolves it: how, and how much of each leg is captured.
    pub(super) resolved: Option<(State, Keep)>,
}

/// Charge ids end in random bits that only gateways choose: they need no hashing.
#[derive(Default)]
pub(super) struct ChargeHasher(u64);

impl Hasher for ChargeHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last_chunk() {
            // Multiplied, because the table looks at the highest bits too.
            self.0 = u64::from_le_bytes(*last).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }
    fn write_usize(&mut self, _length: usize) {}
}

impl OpenHold {
    /// The balances of the accounts that the hold named, by its slots.
    pub(super) fn view(&self, table: &Table) -> View {
        let mut view = View::new(self.places.len());
        for (slot, place) in self.places.iter().enumerate() {
            if let Some(entry) = &place.entry {
                view.set(slot as Slot, entry.state.lock().under(&place.grant));
            }
        }
        for (slot, key) in &self.unopened {
            view.set(*slot, table.balance(key, &self.places[usize::from(*slot)].grant));
        }
        view
    }

    pub(super) fn describe(&self) -> OpenCharge {
        let legs = self.legs.iter().filter_map(|leg| {
            let entry = self.places[usize::from(leg.slot)].entry.as_ref()?;
            Some(OpenLeg {
                account: entry.name.to_string(),
                account_kind: entry.key.kind,
                kind: leg.kind,
                amount: leg.amount,
            })
        });
        OpenCharge {
            charge: ChargeId(self.charge),
            held_at: instant(self.at),
            memo: self.memo.clone(),
            legs: legs.collect(),
            expires: self.expires().map(instant),
            note: self.lasting.as_ref().map_or_else(Box::default, |lasting| lasting.note.clone()),
        }
    }

    pub(super) fn expires(&self) -> Option<i64> {
        self.lasting.as_ref().and_then(|lasting| lasting.expires)
    }

    /// How the hold is resolved without its owner (D36): on the last use that was recorded, else
    /// as its route says.
    pub(super) fn in_doubt(&self) -> (State, Keep, OutcomeMemo) {
        if let Some(known) = self.lasting.as_ref().and_then(|lasting| lasting.known.as_ref()) {
            let memo =
                OutcomeMemo { flags: known.memo.flags | Flags::IN_DOUBT, ..known.memo.clone() };
            return (State::Captured, known.keep.clone(), memo);
        }
        let (state, memo) = unowned(self.in_doubt, &self.memo);
        let keep = match state {
            State::Captured => self.legs.iter().map(|leg| leg.amount).collect(),
            _ => Keep::new(),
        };
        (state, keep, memo)
    }
}
