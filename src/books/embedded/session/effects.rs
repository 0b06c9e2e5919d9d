//! What records make true once they are written, and not before: credits.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::once::OnceKeys;
use super::super::open::{Open, OpenHolds};
use super::super::table::{Entry, Places};
use crate::core::account::{Grant, Slot, Version};
use crate::core::charge::State;
use crate::core::ids::ChargeId;

/// What takes effect once its record is written.
#[derive(Debug)]
pub(super) enum After {
    /// A grant need not be repeated any more, if it is still this one.
    GrantWritten(Arc<Entry>, Version),
    /// Legs leave `held`; what is kept goes to `captured`, the rest is available again.
    Settle([u8; 16]),
    /// An upward adjustment.
    Raise(Arc<Entry>, i64),
}

pub(super) fn note_grants(after: &mut Vec<After>, openings: &[(Slot, Grant)], places: &Places) {
    for (slot, grant) in openings {
        if let Some(entry) = &places[usize::from(*slot)].entry {
            after.push(After::GrantWritten(Arc::clone(entry), grant.version));
        }
    }
}

/// What a written record makes true.
pub(super) fn take_effect(
    effect: After,
    open: &mut OpenHolds,
    expiring: &mut BTreeSet<(i64, [u8; 16])>,
    keys: &OnceKeys,
) {
    match effect {
        After::GrantWritten(entry, version) => {
            let mut state = entry.state.lock();
            if state.version == version {
                state.unwritten = false;
            }
        }
        After::Settle(charge) => {
            let Some(Open { hold, resolved: Some((state, keep)) }) = open.remove(&charge) else {
                return;
            };
            if let Some(lasting) = &hold.lasting {
                if let Some(at) = lasting.expires {
                    expiring.remove(&(at, charge));
                }
                if let Some(once) = &lasting.once {
                    keys.end(once, ChargeId(charge), state == State::Captured);
                }
            }
            for (leg, keep) in hold.legs.iter().zip(keep) {
                if let Some(entry) = &hold.places[usize::from(leg.slot)].entry {
                    let balance = &mut entry.state.lock().balance;
                    // The hold put exactly this much there, and leaves once.
                    balance.held -= leg.amount;
                    balance.captured += keep;
                }
            }
        }
        After::Raise(entry, delta) => {
            let balance = &mut entry.state.lock().balance;
            balance.adjusted = balance.adjusted.saturating_add(delta);
        }
    }
}
