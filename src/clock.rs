//! What time it is. Everything that depends on time takes `now`; this is the one place it comes
//! from.
//!
//! The time is the system's, carried on by a monotonic timer, so that it never goes back and
//! never jumps by itself (f46, f47). [`Clock::watch`] compares the two once a second:
//!
//! - The system's clock is ahead by up to [`STEP`]: the time follows at once.
//! - It is further ahead (set, or the machine was suspended): the time runs on, and nothing that
//!   depends on it happens (no cycle resets, no term ends, no licence or key expires) until the
//!   system's clock has stood there for [`HOLD_OFF`]. Then the time follows.
//! - It is behind: the time runs at half its speed until the system's clock has caught up.
//!
//! Deadlines, intervals and rates are measured on the monotonic timer alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;

/// By how much two readings may differ before it counts as a jump.
const STEP: Duration = Duration::from_secs(10);
/// How long a jump ahead is held off.
const HOLD_OFF: Duration = Duration::from_secs(300);
/// How often to call [`Clock::watch`].
pub const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The source of `now`: the system's clock, or one that is moved by hand. All numbers are
/// microseconds.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: Source,
    /// The time is this and what has elapsed. Written by `check`.
    offset: AtomicI64,
    /// But never less than this. Written by `check`, and by `not_before` at the start.
    floor: AtomicI64,
    watch: Mutex<Watch>,
}

#[derive(Debug)]
enum Source {
    System(Instant),
    /// `--test-clock`.
    Manual {
        system: AtomicI64,
        elapsed: AtomicI64,
    },
}

/// What the last check saw.
#[derive(Debug, Default)]
struct Watch {
    checked: i64,
    /// What had elapsed when a jump ahead was first seen.
    jumped: Option<i64>,
    behind: bool,
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    /// The system's clock jumped ahead by so much; the time does not follow yet.
    Ahead(Duration),
    /// It is where it was before the jump.
    Back,
    /// It has stood ahead for [`HOLD_OFF`]: the time has followed.
    Followed(Duration),
    /// It was set back by so much; the time goes slowly until it has caught up.
    Behind(Duration),
    /// It has caught up.
    CaughtUp,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(Source::System(Instant::now()))
    }
}

impl Clock {
    /// A clock that stands at `start` until it is moved (`--test-clock`).
    pub fn manual(start: Timestamp) -> Self {
        let system = AtomicI64::new(start.as_microsecond());
        Self::new(Source::Manual { system, elapsed: AtomicI64::new(0) })
    }

    fn new(source: Source) -> Self {
        let (elapsed, system) = source.read();
        let offset = AtomicI64::new(system - elapsed);
        let floor = AtomicI64::new(i64::MIN);
        Self(Arc::new(Inner { source, offset, floor, watch: Mutex::default() }))
    }

    /// The time, to the microsecond; never earlier than it was.
    pub fn now(&self) -> Timestamp {
        timestamp(self.0.at(self.0.source.elapsed()))
    }

    /// The time is not before `past`, which was recorded by an earlier process: a clock that was
    /// set back between two starts must not open a closed cycle again (f46).
    pub fn not_before(&self, past: Timestamp) {
        let (elapsed, past) = (self.0.source.elapsed(), past.as_microsecond());
        if self.0.at(elapsed) < past {
            self.0.offset.store(past - elapsed, Relaxed);
        }
    }

    /// How far the system's clock is ahead of the time, in microseconds; negative: behind.
    pub fn offset(&self) -> i64 {
        let (elapsed, system) = self.0.source.read();
        system.saturating_sub(self.0.at(elapsed))
    }

    /// Compares with the system's clock and logs what is found; to be called every
    /// [`CHECK_INTERVAL`].
    pub fn watch(&self) {
        match self.check() {
            None => {}
            Some(Finding::Ahead(by)) => tracing::error!(
                seconds = by.as_secs(),
                held_off_for = ?HOLD_OFF,
                "the system's clock jumped ahead; nothing resets or expires by it yet"
            ),
            Some(Finding::Back) => tracing::info!("the system's clock is right again"),
            Some(Finding::Followed(by)) => tracing::error!(
                seconds = by.as_secs(),
                "the system's clock has stayed ahead and is followed now"
            ),
            Some(Finding::Behind(by)) => tracing::error!(
                seconds = by.as_secs(),
                "the system's clock was set back; time goes at half speed until it has caught up"
            ),
            Some(Finding::CaughtUp) => tracing::info!("the system's clock has caught up"),
        }
    }

    fn check(&self) -> Option<Finding> {
        let (elapsed, system) = self.0.source.read();
        let now = self.0.at(elapsed);
        let mut watch = self.0.watch.lock();
        let since = elapsed - std::mem::replace(&mut watch.checked, elapsed);
        let ahead = system.saturating_sub(now);
        let gap = Duration::from_micros(ahead.unsigned_abs());
        if ahead > micros(STEP) {
            watch.behind = false;
            let jumped = watch.jumped;
            let first = *watch.jumped.get_or_insert(elapsed);
            if elapsed - first < micros(HOLD_OFF) {
                return jumped.is_none().then_some(Finding::Ahead(gap));
            }
            watch.jumped = None;
            self.0.offset.store(system - elapsed, Relaxed);
            return Some(Finding::Followed(gap));
        }
        let returned = watch.jumped.take().is_some();
        if ahead >= 0 {
            self.0.offset.store(system - elapsed, Relaxed);
        } else {
            self.0.floor.store(now, Relaxed);
            let slower = (-ahead).min(since / 2);
            self.0.offset.store(now - elapsed - slower, Relaxed);
        }
        let behind = -ahead > micros(STEP) || (watch.behind && ahead < 0);
        let was_behind = std::mem::replace(&mut watch.behind, behind);
        match (was_behind, behind) {
            (false, true) => Some(Finding::Behind(gap)),
            (true, false) => Some(Finding::CaughtUp),
            _ => returned.then_some(Finding::Back),
        }
    }

    /// True for a clock that is moved by hand.
    pub fn is_manual(&self) -> bool {
        matches!(self.0.source, Source::Manual { .. })
    }

    /// Lets time pass until `to`, on a manual clock. False, and nothing happened, for the
    /// system's clock, and for a time that has passed.
    pub fn set(&self, to: Timestamp) -> bool {
        let Source::Manual { system, elapsed } = &self.0.source else { return false };
        let by = to.as_microsecond() - self.now().as_microsecond();
        if by < 0 {
            return false;
        }
        system.fetch_add(by, Relaxed);
        elapsed.fetch_add(by, Relaxed);
        true
    }

    /// Sets what a manual clock takes for the system's, while no time passes.
    pub fn jump(&self, to: Timestamp) -> bool {
        let Source::Manual { system, .. } = &self.0.source else { return false };
        system.store(to.as_microsecond(), Relaxed);
        true
    }
}

impl Clock {
    /// One second passes on a manual clock, and on the system's with it.
    pub fn pass_second(&self) {
        if let Source::Manual { system, elapsed } = &self.0.source {
            system.fetch_add(1_000_000, Relaxed);
            elapsed.fetch_add(1_000_000, Relaxed);
            self.watch();
        }
    }
}

impl Inner {
    fn at(&self, elapsed: i64) -> i64 {
        self.offset.load(Relaxed).saturating_add(elapsed).max(self.floor.load(Relaxed))
    }
}

impl Source {
    /// What has elapsed since the clock was made.
    fn elapsed(&self) -> i64 {
        match self {
            Self::System(start) => micros(start.elapsed()),
            Self::Manual { elapsed, .. } => elapsed.load(Relaxed),
        }
    }

    /// What has elapsed, and the system's time.
    fn read(&self) -> (i64, i64) {
        let system = match self {
            Self::System(_) => Timestamp::now().as_microsecond(),
            Self::Manual { system, .. } => system.load(Relaxed),
        };
        (self.elapsed(), system)
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn timestamp(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;

    fn noon() -> Timestamp {
        "2026-11-20T12:00:00Z".parse().unwrap()
    }

    /// Time passes, the system's clock with it, and each second is checked.
    fn pass(clock: &Clock, seconds: i64) -> Vec<Finding> {
        let mut found = Vec::new();
        for _ in 0..seconds {
            let before = clock.now();
            let Source::Manual { system, elapsed } = &clock.0.source else { unreachable!() };
            system.fetch_add(1_000_000, Relaxed);
            elapsed.fetch_add(1_000_000, Relaxed);
            found.extend(clock.check());
            assert!(clock.now() >= before, "it goes back");
        }
        found
    }

    #[test]
    fn only_a_manual_clock_can_be_moved_and_only_ahead() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let copy = clock.clone();
        assert!(copy.set(noon()));
        assert_eq!(clock.now(), noon());
        assert!(!clock.set(noon() - 1.second()));
        assert_eq!(clock.check(), None, "time that passes is no jump");
        assert!(!Clock::default().set(noon()) && !Clock::default().jump(noon()));
    }

    #[test]
    fn the_system_s_time_is_followed() {
        let clock = Clock::default();
        let (before, now) = (Timestamp::now(), clock.now());
        assert!(now.duration_since(before).abs() < jiff::SignedDuration::from_secs(5));
        assert_eq!(clock.check(), None);
        // Small steps ahead, as of a clock that is kept right, are taken at once.
        let clock = Clock::manual(noon());
        clock.jump(noon() + 9.seconds());
        assert_eq!(clock.check(), None);
        assert_eq!(clock.now(), noon() + 9.seconds());
    }

    #[test]
    fn f46_a_clock_that_is_set_back_takes_no_time_back() {
        let clock = Clock::manual(noon());
        pass(&clock, 5);
        clock.jump(noon() - 60.seconds());
        let now = clock.now();
        let found = pass(&clock, 1);
        assert_eq!(found, [Finding::Behind(Duration::from_secs(65))]);
        assert!(clock.now() >= now);
        // At half speed it takes twice as long as it was behind.
        let found = pass(&clock, 140);
        assert_eq!(found, [Finding::CaughtUp]);
        assert_eq!(clock.offset(), 0);
    }

    #[test]
    fn f46_a_start_with_a_clock_that_was_set_back_goes_on_where_records_end() {
        let clock = Clock::manual(noon());
        clock.not_before(noon() - 1.second());
        assert_eq!(clock.now(), noon());
        clock.not_before(noon() + 400.hours());
        assert_eq!(clock.now(), noon() + 400.hours());
        let found = pass(&clock, 3);
        assert!(matches!(found[..], [Finding::Behind(_)]), "{found:?}");
        assert!(clock.now() >= noon() + 400.hours());
    }

    #[test]
    fn f47_a_clock_far_ahead_is_held_off_and_believed_when_it_stays() {
        let clock = Clock::manual(noon());
        clock.jump(noon() + 8760.hours());
        let found = pass(&clock, 1);
        assert_eq!(found, [Finding::Ahead(Duration::from_secs(8760 * 3600))]);
        assert_eq!(clock.now(), noon() + 1.second());
        // It returns in time: nothing has happened.
        assert_eq!(pass(&clock, 298), []);
        clock.jump(clock.now());
        assert_eq!(pass(&clock, 1), [Finding::Back]);
        assert_eq!(clock.now(), noon() + 300.seconds());
        // It stays: then the machine was suspended, or the clock was wrong before.
        clock.jump(noon() + 8760.hours());
        let found = pass(&clock, 310);
        assert!(matches!(found[..], [Finding::Ahead(_), Finding::Followed(_)]), "{found:?}");
        assert!(clock.now() >= noon() + 8760.hours());
    }
}
