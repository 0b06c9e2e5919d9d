//! What was told, by pointer: which of several counts, and whether all of it could be read.

use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::super::pick::Picked;
use super::super::quote::quantity_of;
use crate::config::Pick;
use crate::core::amount::{MAX_MICRO, MICRO};

/// What was told so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pick: Pick,
    told: SmallVec<[Option<u64>; 2]>,
    /// How much more one text may tell.
    most: SmallVec<[u64; 2]>,
    /// What is not known cannot be added up, and what was not looked at may have been the last.
    lost: bool,
    /// Something that was told could not be read (f56).
    pub unreadable: bool,
    /// Values differ of which one counts (f15).
    pub conflicting: bool,
    /// How many events with data a stream had.
    pub events: u32,
}

impl Tally {
    pub fn new(pick: Pick, pointers: usize) -> Self {
        let (told, most) =
            (SmallVec::from_elem(None, pointers), SmallVec::from_elem(MAX_MICRO, pointers));
        Self { pick, told, most, ..Self::default() }
    }

    /// Bounds what one text may tell beyond what was told, or counted, before.
    pub fn bound(&mut self, pointer: usize, most: u64) {
        self.most[pointer] = most;
    }

    /// What a pointer's values come to.
    pub fn get(&self, pointer: usize) -> Option<u64> {
        if self.lost { None } else { self.told.get(pointer).copied().flatten() }
    }

    /// Takes what one text tells.
    pub fn take(&mut self, picked: &Picked<'_>) {
        for (at, raw) in picked.iter().enumerate() {
            // `null` is how a text says that it does not tell.
            if let Some(raw) = raw.filter(|raw| raw.get() != "null") {
                self.add(at, raw);
            }
        }
    }

    fn add(&mut self, at: usize, raw: &RawValue) {
        let Some(value) = quantity_of(raw) else { return self.broken() };
        let Some(slot) = self.told.get_mut(at) else { return };
        let before = match self.pick {
            Pick::Sum => 0,
            Pick::Last | Pick::Max => slot.unwrap_or(0).max(u64::from(self.events) * MICRO),
        };
        if value.saturating_sub(before) > self.most[at] {
            return self.broken();
        }
        let Some(before) = *slot else { return *slot = Some(value) };
        *slot = match self.pick {
            Pick::Last => {
                self.conflicting |= before != value;
                Some(value)
            }
            Pick::Max => Some(before.max(value)),
            Pick::Sum => match before.checked_add(value).filter(|sum| *sum <= MAX_MICRO) {
                None => return self.broken(),
                sum => sum,
            },
        };
    }

    /// Something could not be read. The others count all the same, but for a sum.
    pub fn broken(&mut self) {
        self.unreadable = true;
        self.lost |= self.pick == Pick::Sum;
    }

    /// The rest is not looked at, so nothing is known.
    pub fn lose(&mut self) {
        (self.unreadable, self.lost, self.conflicting) = (true, true, false);
    }
}
