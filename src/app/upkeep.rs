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

/// How long jobs that an earlier process left open may be asked for before those end whose time was
/// over meanwhile.
const FIRST_WORD: Duration = Duration::from_secs(5);

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
                if worker.jobs.is_empty() || began.elapsed() >= FIRST_WORD {
                    expire(&engine, &in_doubt, &clock, &worker);
                }
            }
            // All workers share them.
            _ = tidy.tick() => current.load().limits.tidy(),
        }
    }
}

fn expire(engine: &Engine, in_doubt: &[AtomicU64; 2], clock: &Clock, worker: &Worker<Session>) {
    match engine.expire(clock.now()) {
        Ok(ended) => {
            for (open, state) in &ended {
                worker.jobs.remove(open.charge);
                if *state == State::Captured {
                    gateway::count_captured(worker, open);
                }
                in_doubt[usize::from(*state != State::Captured)].fetch_add(1, Relaxed);
                tracing::info!(charge = %open.charge, %state, "a hold ended that nobody resolved");
            }
        }
        // The books have failed, and say so themselves.
        Err(error) => tracing::error!(%error, "holds whose time is over do not end"),
    }
}
