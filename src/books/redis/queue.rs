//! What waits for a shard, and how whoever asked hears of it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::wire::{self, Reply};
use crate::books::{BooksError, Resolution};
use crate::core::charge::{OutcomeMemo, State};
use crate::core::ids::ChargeId;

/// The most operations of a batch, and the most bytes: so long nobody else is served by Redis.
const MAX_BATCH: usize = 256;
const MAX_BATCH_BYTES: usize = 1 << 20;

/// What waits for a shard.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) waiting: Mutex<VecDeque<Pending>>,
    pub(super) wake: Notify,
    /// Written by the session's driver here, read by whoever asks whether to forward.
    pub(super) lease: Mutex<Option<Lease>>,
}

/// What a gateway knows of how Redis sees its session in a shard (D36). Taken from its own
/// monotonic clock, and never later than what Redis saw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    /// When the last call was sent whose reply came.
    pub(super) renewed: Instant,
    /// Since when no call was longer on its way than others wait before they resolve its holds.
    pub(super) unbroken: Instant,
}

impl Queue {
    /// Takes a hold back that nobody forwards: from the queue, or by a void where it was sent.
    pub(super) fn take_back(&self, charge: ChargeId, at: Timestamp) {
        let mut waiting = self.waiting.lock();
        let is_it = |pending: &Pending| pending.charge == charge && pending.kind == Kind::Hold(at);
        if let Some(place) = waiting.iter().position(is_it) {
            waiting.remove(place);
        } else if let Some(void) = Pending::void(charge, at) {
            waiting.push_back(void);
            self.wake.notify_one();
        }
    }

    /// Voids a hold that nobody forwards, before all that waits.
    pub(super) fn void(&self, charge: ChargeId, at: Timestamp) {
        if let Some(void) = Pending::void(charge, at) {
            self.waiting.lock().push_front(void);
            self.wake.notify_one();
        }
    }
}

impl Lease {
    /// After a reply to a call that was sent then; `half` is the time for which one may forward.
    pub(super) fn renew(before: Option<Self>, sent: Instant, half: Duration) -> Self {
        let now = Instant::now();
        let is_unbroken = |lease: &Self| now.duration_since(lease.renewed) < half;
        let unbroken = before.filter(is_unbroken).map_or(now, |lease| lease.unbroken);
        Self { renewed: sent, unbroken }
    }
}

/// An operation that waits for its reply.
#[derive(Debug)]
pub(super) struct Pending {
    /// Encoded.
    pub(super) op: Vec<u8>,
    /// The charge it is about, or zeros.
    pub(super) charge: ChargeId,
    pub(super) kind: Kind,
    /// When whoever waits is told that nothing is heard of it.
    pub(super) until: Instant,
    /// Nobody, once the answer was given up.
    pub(super) answer: Option<oneshot::Sender<Result<Told, BooksError>>>,
}

/// A reply, and when the call was sent that it answers.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) reply: Reply,
    pub(super) sent: Instant,
}

impl Pending {
    /// The void of a hold that nobody forwards, at the instant at which it was asked for.
    pub(super) fn void(charge: ChargeId, at: Timestamp) -> Option<Self> {
        let memo = OutcomeMemo::default();
        let void = Resolution::plain(State::Voided, &[], at, &memo);
        let op = wire::resolve(charge, &void).ok()?;
        Some(Self { op, charge, kind: Kind::GivesBack, until: Instant::now(), answer: None })
    }

    pub(super) fn gives_back(&self) -> bool {
        matches!(self.kind, Kind::GivesBack | Kind::Promised)
    }

    pub(super) fn answer(&mut self, answer: Result<Told, BooksError>) {
        if let Some(waiter) = self.answer.take() {
            // Who gave up waiting wants no answer.
            let _ = waiter.send(answer);
        }
    }
}

/// What kind of operation is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One that nobody waits for any more when it is made is voided, at its instant.
    Hold(Timestamp),
    /// Changes something, and would do so twice if it was done twice.
    Takes,
    /// Done also where memory is short, what ends charges; only once however often it is done.
    GivesBack,
    /// As this; it is a promise, and nobody is told that it waits.
    Promised,
    Reads,
}

/// What whoever drives has told.
pub(super) fn heard(
    told: Result<Result<Told, BooksError>, oneshot::error::RecvError>,
) -> Result<Told, BooksError> {
    match told.map_err(|_| BooksError::Unavailable("the gateway is stopping".into()))?? {
        Told { reply: Reply::Refused(error), .. } => Err(error),
        told => Ok(told),
    }
}

pub(super) fn silent() -> BooksError {
    BooksError::Unavailable("Redis is silent".into())
}

/// As many as one batch takes.
pub(super) fn take(waiting: &mut VecDeque<Pending>) -> Vec<Pending> {
    let mut bytes = 0;
    let fits = |pending: &&Pending| {
        bytes += pending.op.len();
        bytes <= MAX_BATCH_BYTES
    };
    let count = waiting.iter().take(MAX_BATCH).take_while(fits).count();
    // One that is too long by itself goes by itself.
    waiting.drain(..count.max(usize::from(!waiting.is_empty()))).collect()
}

/// What is asked again of a batch that was not executed; the rest is told why not.
pub(super) fn give_up(
    batch: Vec<Pending>,
    why: &str,
    goes_on: impl Fn(&Pending) -> bool,
) -> Vec<Pending> {
    batch
        .into_iter()
        .filter_map(|mut pending| {
            if goes_on(&pending) {
                return Some(pending);
            }
            pending.answer(Err(BooksError::Unavailable(why.into())));
            None
        })
        .collect()
}

/// What is asked again although it was refused; whoever waits is told why at once.
pub(super) fn refused<T: IntoIterator<Item = Pending> + FromIterator<Pending>>(
    asked: T,
    why: &str,
    goes_on: impl Fn(&Pending) -> bool,
) -> T {
    let told = asked.into_iter().map(|mut pending| {
        if pending.kind != Kind::Promised {
            pending.answer(Err(BooksError::Unavailable(why.into())));
        }
        pending
    });
    told.filter(goes_on).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(bytes: usize) -> Pending {
        Pending {
            op: vec![0; bytes],
            charge: ChargeId([0; 16]),
            kind: Kind::Takes,
            until: Instant::now(),
            answer: None,
        }
    }

    #[test]
    fn a_batch_is_bounded_and_never_empty() {
        let mut waiting: VecDeque<Pending> = (0..600).map(|_| pending(10)).collect();
        assert_eq!(take(&mut waiting).len(), MAX_BATCH);
        assert_eq!(take(&mut waiting).len(), MAX_BATCH);
        assert_eq!(take(&mut waiting).len(), 600 - 2 * MAX_BATCH);
        assert!(take(&mut waiting).is_empty());
        waiting.extend([pending(10), pending(MAX_BATCH_BYTES), pending(2 * MAX_BATCH_BYTES)]);
        assert_eq!(take(&mut waiting).len(), 1);
        assert_eq!(take(&mut waiting).len(), 1);
        assert_eq!(take(&mut waiting).len(), 1);
        assert!(take(&mut waiting).is_empty());
    }
}
