//! What time it is. Everything that depends on time takes `now`; this is the one place it comes
//! from, so that a test clock moves the whole program at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;

/// The source of `now`: the system's clock, or one that is set by hand.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicI64>>);

impl Clock {
    /// A clock that stands at `start` until it is set (`--test-clock`).
    pub fn manual(start: Timestamp) -> Self {
        Self(Some(Arc::new(AtomicI64::new(start.as_microsecond()))))
    }

    /// The time, to the microsecond for a clock that is set by hand.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            None => Timestamp::now(),
            Some(micros) => {
                let micros = micros.load(Ordering::Relaxed);
                Timestamp::from_microsecond(micros).unwrap_or(Timestamp::UNIX_EPOCH)
            }
        }
    }

    /// Sets a manual clock; false for the system's, which nobody sets.
    pub fn set(&self, to: Timestamp) -> bool {
        self.0.as_ref().is_some_and(|micros| {
            micros.store(to.as_microsecond(), Ordering::Relaxed);
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_manual_clock_can_be_set() {
        let noon: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let copy = clock.clone();
        assert!(copy.set(noon));
        assert_eq!(clock.now(), noon);
        assert!(!Clock::default().set(noon));
    }
}
