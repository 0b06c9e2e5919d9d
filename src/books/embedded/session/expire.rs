//! Holds that end by themselves (D34, D36).

use std::sync::Arc;

use jiff::Timestamp;

use super::super::open::Open;
use super::{Session, Step};
use crate::books::{BooksError, OpenCharge, Resolution};
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
        let (mut state, keep, mut memo) = hold.in_doubt();
        if state == State::Voided {
            (state, memo.flags) = (State::Expired, Flags::default());
        }
        let resolution = Resolution::plain(state, &keep, now, &memo);
        match self.resolve_in(&mut queue, ChargeId(charge), &resolution)? {
            Some(Step::Written { mut wait, .. }) => {
                // Nobody waits for it by itself.
                wait.batch = 0;
                Ok(Some((hold.describe(), state)))
            }
            _ => Ok(None),
        }
    }
}
