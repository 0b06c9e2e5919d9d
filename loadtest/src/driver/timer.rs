//! A timer that is exact: the event loop's own are of milliseconds, and what is measured is less.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The kernel's timer.
pub struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    /// One that is not set.
    ///
    /// # Errors
    /// When there is no descriptor to be had.
    pub fn new() -> anyhow::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[expect(deprecated, reason = "sound here: an owned descriptor stays the same one")]
        let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
        Ok(Self(timer))
    }

    /// Comes back at `due`, or at once where that is over or the timer fails.
    pub async fn wait_until(&self, due: Instant) {
        let left = due.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let timer = Itimerspec { it_interval: zero, it_value: value };
        if timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &timer).is_err() {
            return;
        }
        let Ok(mut ready) = self.0.readable().await else { return };
        // Setting it again takes back that it is readable; the loop need not be told so by a read.
        ready.clear_ready();
    }
}
