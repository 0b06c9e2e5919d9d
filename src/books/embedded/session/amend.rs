//! What is taken for an open charge beyond its hold, and what is recorded of it.

use std::sync::Arc;

use smallvec::SmallVec;

use super::super::open::{Open, OpenHold};
use super::super::table::{self, Applied, Into, Place};
use super::{Session, Written, describe, legs_of, note_grants, push};
use crate::books::{Amended, Amendment, BooksError, bounded};
use crate::core::account::{Account, Slot, Taken};
use crate::core::ids::ChargeId;
use crate::core::record::{self, Record};

impl Session {
    pub(super) fn amend_now(
        &self,
        charge: ChargeId,
        amendment: &Amendment<'_>,
    ) -> Result<(Amended, Option<Written>), BooksError> {
        let shared = &self.0.shared;
        if amendment.extra.is_some() { shared.check_space() } else { shared.check() }?;
        bounded(amendment.note.unwrap_or_default())?;
        bounded(amendment.answer)?;
        if let Some(amended) = self.amend_here(charge, amendment)? {
            return Ok(amended);
        }
        for session in shared.sessions() {
            if let Some(amended) = session.amend_here(charge, amendment)? {
                return Ok(amended);
            }
        }
        Ok((Amended::Unknown, None))
    }

    /// Amends a hold of this session; `None` when it has none of this id.
    fn amend_here(
        &self,
        charge: ChargeId,
        amendment: &Amendment<'_>,
    ) -> Result<Option<(Amended, Option<Written>)>, BooksError> {
        let mut queue = self.0.queue.lock();
        let Some(Open { hold, resolved }) = queue.open.get(&charge.0) else { return Ok(None) };
        // Made where it is returned: dropped in here it would wait for the lock that is held.
        let wait = |batch| Written { session: self.clone(), batch };
        if let Some((state, _)) = *resolved {
            return Ok(Some((Amended::Already(state), Some(wait(queue.batch)))));
        }
        let (accounts, applied) = match amendment.extra {
            None => (&[][..], None),
            Some((accounts, post)) => {
                // Its slots must be numbers of the hold's.
                if hold.places.len() + count_new(hold, accounts) > usize::from(Slot::MAX) {
                    return Err(BooksError::Range);
                }
                match table::apply(&self.0.shared.table, accounts, post, Into::Held)? {
                    Ok(applied) => (accounts, Some(applied)),
                    Err(view) => return Ok(Some((Amended::Short(view), None))),
                }
            }
        };
        let mut next = OpenHold::clone(hold);
        let before = next.expires();
        if let Some(applied) = &applied {
            grow(&mut next, applied, accounts);
        }
        let expires = amendment.expires.map(|at| at.as_microsecond());
        let lasting = next.lasting.get_or_insert_default();
        lasting.expires = expires.or(lasting.expires);
        if amendment.known.is_some() {
            lasting.known = amendment.known.cloned();
        }
        if let Some(note) = amendment.note {
            lasting.note = note.into();
        }
        let (mut openings, mut legs) = (SmallVec::new(), SmallVec::new());
        if let Some(applied) = &applied {
            openings = describe(&applied.openings, &applied.places);
            legs = legs_of(&applied.legs, accounts);
        }
        let record = Record::Amend(record::Amend {
            charge: charge.0,
            at: amendment.now.as_microsecond(),
            openings,
            legs,
            known: amendment.known.cloned(),
            expires,
            note: amendment.note.map(serde_bytes::Bytes::new),
            answer: amendment.answer,
        });
        push(&mut queue.frames, &record)?;
        drop(record);
        if let Some(applied) = &applied {
            note_grants(&mut queue.after, &applied.openings, &applied.places);
        }
        if let Some(at) = before {
            queue.expiring.remove(&(at, charge.0));
        }
        let view = next.view(&self.0.shared.table);
        queue.adopt(Arc::new(next));
        let legs = applied.map(|applied| applied.legs).unwrap_or_default();
        Ok(Some((Amended::Done(legs, view), Some(wait(queue.batch)))))
    }
}

/// How many of these accounts the hold has no place for.
fn count_new(hold: &OpenHold, accounts: &[Account<'_>]) -> usize {
    let has = |account: &Account<'_>| {
        let names = |place: &Place| place.entry.as_ref().is_some_and(|e| e.key == account.key);
        hold.places.iter().any(names)
    };
    accounts.iter().filter(|account| !has(account)).count()
}

/// Adds what was taken to a hold, as [`record::add_legs`] does to its record: one leg per account
/// and kind, new ones behind those that are there.
fn grow(hold: &mut OpenHold, applied: &Applied, accounts: &[Account<'_>]) {
    for taken in &applied.legs {
        let key = accounts[usize::from(taken.slot)].key;
        let same = |leg: &&mut Taken| {
            let entry = hold.places[usize::from(leg.slot)].entry.as_ref();
            leg.kind == taken.kind && entry.is_some_and(|entry| entry.key == key)
        };
        if let Some(leg) = hold.legs.iter_mut().find(same) {
            // The books took the sum from one account.
            leg.amount = leg.amount.saturating_add(taken.amount);
            continue;
        }
        let names = |place: &Place| place.entry.as_ref().is_some_and(|entry| entry.key == key);
        let slot = hold.places.iter().position(names).unwrap_or_else(|| {
            let Place { entry, grant } = &applied.places[usize::from(taken.slot)];
            hold.places.push(Place { entry: entry.clone(), grant: *grant });
            hold.places.len() - 1
        });
        hold.legs.push(Taken { slot: slot as Slot, ..*taken });
    }
}
