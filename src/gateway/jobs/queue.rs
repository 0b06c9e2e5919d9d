//! Which jobs of one backend are asked for next, and how many at once.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::core::ids::ChargeId;

/// How many jobs of one backend are asked for at once; and as many more for a last time, which
/// cannot wait until others are given up that hang.
pub(super) const AT_ONCE: usize = 32;

/// The jobs of one backend that wait for their next question, and how many are asked for.
#[derive(Debug, Default)]
pub(super) struct Queue {
    due: BTreeSet<(Instant, ChargeId)>,
    /// Those of them that are to be asked for a last time, by when.
    last: BTreeSet<(Instant, ChargeId)>,
    asked: usize,
    asked_last: usize,
}

/// The places that there are for questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Common,
    /// Only of last questions.
    Last,
}

impl Queue {
    /// Adds a job that is asked for when it is due, and for a last time where there is one to come.
    pub(super) fn put(&mut self, charge: ChargeId, due: Instant, last: Option<Instant>) {
        self.due.insert((due, charge));
        self.last.extend(last.map(|last| (last, charge)));
    }

    /// Takes out what was [put](Self::put).
    pub(super) fn remove(&mut self, charge: ChargeId, due: Instant, last: Option<Instant>) {
        self.due.remove(&(due, charge));
        if let Some(last) = last {
            self.last.remove(&(last, charge));
        }
    }

    /// The job whose time came first, if there is a place for its question.
    pub(super) fn next(&self, now: Instant) -> Option<(ChargeId, Place)> {
        let first = |jobs: &BTreeSet<(Instant, ChargeId)>, asked| {
            let (at, charge) = jobs.first().filter(|_| asked < AT_ONCE)?;
            (*at <= now).then_some(*charge)
        };
        let last = first(&self.last, self.asked_last).map(|charge| (charge, Place::Last));
        last.or_else(|| first(&self.due, self.asked).map(|charge| (charge, Place::Common)))
    }

    /// How many are asked for in places of this kind.
    pub(super) fn asked(&mut self, place: Place) -> &mut usize {
        match place {
            Place::Common => &mut self.asked,
            Place::Last => &mut self.asked_last,
        }
    }

    /// Whether nobody asks for any.
    pub(super) fn is_idle(&self) -> bool {
        self.asked + self.asked_last == 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn charge(at: u128) -> ChargeId {
        ChargeId::v7(1, at)
    }

    #[test]
    fn d34_last_questions_have_places_of_their_own_and_then_the_common_ones() {
        let (now, mut queue) = (Instant::now(), Queue::default());
        let later = now + Duration::from_secs(1);
        queue.put(charge(1), now, None);
        queue.put(charge(2), later, Some(later));
        *queue.asked(Place::Common) = AT_ONCE;
        assert_eq!(queue.next(now), None, "no place is free, and no last question due");
        assert_eq!(queue.next(later), Some((charge(2), Place::Last)));
        *queue.asked(Place::Last) = AT_ONCE;
        assert_eq!(queue.next(later), None, "so many are bounded too");
        *queue.asked(Place::Common) -= 1;
        assert_eq!(queue.next(later), Some((charge(1), Place::Common)));
        queue.remove(charge(1), now, None);
        assert_eq!(queue.next(later), Some((charge(2), Place::Common)));
        queue.remove(charge(2), later, Some(later));
        assert!(queue.due.is_empty() && queue.last.is_empty() && !queue.is_idle());
    }
}
