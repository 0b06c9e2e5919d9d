//! Holds that end without their owner (D34, D36).

use std::iter::repeat;
use std::sync::Arc;

use jiff::Timestamp;

use super::super::open::{Open, OpenHold};
use super::{Queue, Session, Step, Written};
use crate::books::{Abandoned, BooksError, OpenCharge, Resolution};
use crate::core::charge::{Flags, State};
use crate::core::ids::ChargeId;

/// How many holds of a session one sweep ends.
const MAX_SWEEP: usize = 1_000;

impl Session {
    /// Ends the holds whose time is over, at most so many as one sweep ends, and records it.
    pub(in crate::books::embedded) fn expire(
        &self,
        now: Timestamp,
    ) -> Result<Vec<(OpenCharge, State)>, BooksError> {
        let mut ended = Vec::new();
        for charge in self.due(now.as_microsecond()) {
            ended.extend(self.expire_one(charge, now)?);
        }
        self.flush()?;
        Ok(ended)
    }

    fn due(&self, now: i64) -> Vec<[u8; 16]> {
        let queue = self.0.queue.lock();
        let due = queue.expiring.iter().take_while(|(at, _)| *at <= now).map(|(_, charge)| charge);
        let is_open = |charge: &&[u8; 16]| {
            queue.open.get(*charge).is_some_and(|open| open.resolved.is_none())
        };
        due.filter(is_open).take(MAX_SWEEP).copied().collect()
    }

    /// Ends one of them, unless it was resolved or goes on longer since it was found: what it is
    /// by now decides how it ends.
    fn expire_one(
        &self,
        charge: [u8; 16],
        now: Timestamp,
    ) -> Result<Option<(OpenCharge, State)>, BooksError> {
        let mut queue = self.0.queue.lock();
        let hold = match queue.open.get(&charge) {
            Some(Open { hold, resolved: None }) => Arc::clone(hold),
            _ => return Ok(None),
        };
        if hold.expires().is_none_or(|at| at > now.as_microsecond()) {
            return Ok(None);
        }
        let Some((ended, mut wait)) = self.end_in(&mut queue, &hold, now, State::Expired)? else {
            return Ok(None);
        };
        // Nobody waits for it by itself.
        wait.batch = 0;
        Ok(Some((ended.charge, ended.state)))
    }

    /// Ends a hold of any session that its owner gives up.
    pub(super) fn abandon_now(
        &self,
        charge: ChargeId,
        now: Timestamp,
    ) -> Result<Option<(Abandoned, Written)>, BooksError> {
        let shared = &self.0.shared;
        shared.check()?;
        // Mostly it is this session's own.
        if let Some(ended) = self.abandon_here(charge, now)? {
            return Ok(Some(ended));
        }
        for session in shared.sessions() {
            if let Some(ended) = session.abandon_here(charge, now)? {
                return Ok(Some(ended));
            }
        }
        Ok(None)
    }

    fn abandon_here(
        &self,
        charge: ChargeId,
        now: Timestamp,
    ) -> Result<Option<(Abandoned, Written)>, BooksError> {
        let mut queue = self.0.queue.lock();
        let Some(Open { hold, resolved: None }) = queue.open.get(&charge.0) else {
            return Ok(None);
        };
        let hold = Arc::clone(hold);
        self.end_in(&mut queue, &hold, now, State::Voided)
    }

    /// Ends a hold as it says by now; `free` is what it is called where nothing is charged.
    fn end_in(
        &self,
        queue: &mut Queue,
        hold: &OpenHold,
        now: Timestamp,
        free: State,
    ) -> Result<Option<(Abandoned, Written)>, BooksError> {
        let (mut state, keep, mut memo) = hold.in_doubt();
        if state == State::Voided && free == State::Expired {
            (state, memo.flags) = (State::Expired, Flags::default());
        }
        let resolution = Resolution::plain(state, &keep, now, &memo);
        let resolved = self.resolve_in(queue, ChargeId(hold.charge), &resolution)?;
        let Some(Step::Written { wait, .. }) = resolved else { return Ok(None) };
        let mut charge = hold.describe();
        for (leg, keep) in charge.legs.iter_mut().zip(keep.into_iter().chain(repeat(0))) {
            leg.amount = leg.amount.min(keep);
        }
        Ok(Some((Abandoned { state, charge }, wait)))
    }
}
