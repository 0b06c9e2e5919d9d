//! What has to be done now and then for the whole process, in one place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::books::embedded::{Engine, Session};
use crate::clock::{CHECK_INTERVAL, Clock};
use crate::core::charge::State;
use crate::directory::Directory;
use crate::gateway::admit::TIDY_INTERVAL;
use crate::gateway::current::Current;
use crate::gateway::{self, Worker};

/// How long jobs that an earlier process left open are asked for at least before those end whose
/// time was over meanwhile.
const FIRST_WORD: Duration = Duration::from_secs(5);
/// And at most, where their backends do not answer: other holds wait for that too.
const LAST_CHANCE: Duration = Duration::from_secs(60);

/// Goes on until it is dropped.
pub(super) async fn upkeep(
    (current, engine, directory): (Arc<Current<Session>>, Arc<Engine>, Arc<Directory>),
    in_doubt: Arc<[AtomicU64; 2]>,
    clock: Clock,
) {
    tokio::join!(directory.follow(), tidy(current, engine, in_doubt, clock));
}

async fn tidy(
    current: Arc<Current<Session>>,
    engine: Arc<Engine>,
    in_doubt: Arc<[AtomicU64; 2]>,
    clock: Clock,
) {
    let began = Instant::now();
    let mut check = tokio::time::interval(CHECK_INTERVAL);
    let mut tidy = tokio::time::interval(TIDY_INTERVAL);
    loop {
        tokio::select! {
            _ = check.tick() => {
                // A clock that is moved by hand is checked by whoever moves it.
                if !clock.is_manual() {
                    clock.watch();
                }
                let worker = current.load();
                let jobs = &worker.jobs;
                if may_end(began.elapsed(), !jobs.is_empty(), jobs.owes_questions()) {
                    expire(&engine, &in_doubt, &clock, &worker);
                }
            }
            // All workers share them.
            _ = tidy.tick() => current.load().limits.tidy(),
        }
    }
}

/// Whether holds whose time is over may end so long after the start, where jobs are open or not,
/// and where some are still to be asked for whose deadline passed while nobody served.
fn may_end(passed: Duration, are_open: bool, are_owed: bool) -> bool {
    !are_open || passed >= LAST_CHANCE || (passed >= FIRST_WORD && !are_owed)
}

fn expire(engine: &Engine, in_doubt: &[AtomicU64; 2], clock: &Clock, worker: &Worker<Session>) {
    match engine.expire(clock.now()) {
        Ok(ended) => {
            for (open, state) in &ended {
                worker.jobs.remove(open.charge);
                gateway::count_expired(worker, open, *state);
                in_doubt[usize::from(*state != State::Captured)].fetch_add(1, Relaxed);
                tracing::info!(charge = %open.charge, %state, "a hold ended that nobody resolved");
            }
        }
        // The books have failed, and say so themselves.
        Err(error) => tracing::error!(%error, "holds whose time is over do not end"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d34_no_job_ends_before_it_was_asked_for_unless_that_takes_too_long() {
        for (seconds, are_open, are_owed, expected) in [
            (0, false, false, true),
            (0, true, false, false),
            (4, true, false, false),
            (5, true, false, true),
            (5, true, true, false),
            (59, true, true, false),
            (60, true, true, true),
        ] {
            let may = may_end(Duration::from_secs(seconds), are_open, are_owed);
            assert_eq!(may, expected, "{seconds} {are_open} {are_owed}");
        }
    }
}
