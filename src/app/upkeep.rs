//! What has to be done now and then for the whole process, in one place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use jiff::SignedDuration;
use tokio::time::MissedTickBehavior;

use crate::books::redis::{Engine as InRedis, OpenError};
use crate::books::{Engine, Session};
use crate::clock::{CHECK_INTERVAL, Clock};
use crate::core::account::Account;
use crate::core::charge::State;
use crate::directory::Directory;
use crate::gateway::admit::TIDY_INTERVAL;
use crate::gateway::current::Current;
use crate::gateway::{self, Worker};
use crate::ops;

/// How long jobs that an earlier process left open are asked for at least before those end whose
/// time was over meanwhile.
const FIRST_WORD: Duration = Duration::from_secs(5);
/// And at most, where their backends do not answer: other holds wait for that too.
const LAST_CHANCE: Duration = Duration::from_secs(60);

/// How often books that are elsewhere are asked whether they are there.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked whether cycles are long over.
const CLOSE_INTERVAL: Duration = Duration::from_secs(60);
/// How far a gateway's time may be ahead of that of books that others share.
const MAX_AHEAD: SignedDuration = SignedDuration::from_secs(5);
/// How long a scrape waits for them.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// Every how many times jobs of gateways that are gone are looked for.
const ADOPT_EVERY: u32 = 15;

/// Goes on until it is dropped.
pub(super) async fn upkeep(
    (current, engine, directory): (Arc<Current<Session>>, Engine, Arc<Directory>),
    in_doubt: Arc<[AtomicU64; 2]>,
    clock: Clock,
) {
    tokio::join!(
        directory.follow(),
        tidy(&current, &clock),
        end_holds(&current, &engine, &in_doubt, &clock),
        watch(&current, &engine),
        close_cycles(&engine, &clock),
    );
}

/// The clock, and what limits remember. Waits for nobody.
async fn tidy(current: &Current<Session>, clock: &Clock) {
    let mut check = tokio::time::interval(CHECK_INTERVAL);
    let mut tidy = tokio::time::interval(TIDY_INTERVAL);
    loop {
        tokio::select! {
            // A clock that is moved by hand is checked by whoever moves it.
            _ = check.tick() => if !clock.is_manual() { clock.watch() },
            // All workers share them.
            _ = tidy.tick() => current.load().limits.tidy(),
        }
    }
}

/// Holds whose time is over, and those whose owners are gone.
async fn end_holds(
    current: &Current<Session>,
    engine: &Engine,
    in_doubt: &[AtomicU64; 2],
    clock: &Clock,
) {
    let began = Instant::now();
    let mut check = tokio::time::interval(CHECK_INTERVAL);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        check.tick().await;
        let worker = current.load();
        let jobs = &worker.jobs;
        let may = may_end(began.elapsed(), !jobs.is_empty(), jobs.owes_questions());
        if may && !is_ahead(engine, clock).await {
            expire(engine, in_doubt, clock, &worker).await;
        }
    }
}

/// Whether this gateway's time is ahead of that of the books it shares: it would end what is not over
/// for the others (f47). Then it does not look for gateways that are gone either.
async fn is_ahead(engine: &Engine, clock: &Clock) -> bool {
    let Engine::Redis(engine) = engine else { return false };
    if clock.is_manual() {
        return false;
    }
    let ahead = engine.ahead(clock.now()).await.unwrap_or_default();
    if ahead > MAX_AHEAD {
        tracing::error!(%ahead, "this gateway's clock is ahead of Redis': it ends no holds");
    }
    ahead > MAX_AHEAD
}

/// Sees whether books in Redis answer, and looks after the jobs of gateways that are gone.
async fn watch(current: &Current<Session>, engine: &Engine) {
    let Engine::Redis(engine) = engine else { return };
    let mut count = tokio::time::interval(COUNT_INTERVAL);
    count.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut counts, mut is_there) = (0_u32, true);
    loop {
        count.tick().await;
        let mut seen = engine.count().await;
        if seen.is_ok() && counts.is_multiple_of(ADOPT_EVERY) {
            seen = adopt(current, engine).await;
        }
        counts = counts.wrapping_add(1);
        if let Err(error) = &seen
            && is_there
        {
            tracing::error!(%error, "the books in Redis are away");
        } else if seen.is_ok() && !is_there {
            tracing::info!("the books in Redis are back");
        }
        is_there = seen.is_ok();
    }
}

/// Closes cycles that are long over in books in Redis, and forgets their accounts; embedded ones have a
/// thread for it.
async fn close_cycles(engine: &Engine, clock: &Clock) {
    let Engine::Redis(engine) = engine else { return };
    let mut check = tokio::time::interval(CLOSE_INTERVAL);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        check.tick().await;
        match engine.close_cycles(clock.now()).await {
            Ok(0) => {}
            Ok(accounts) => tracing::info!(accounts, "cycles that are long over are closed"),
            Err(error) => tracing::warn!(%error, "cycles are not closed yet"),
        }
    }
}

/// Reads from books in Redis what gauges show: open holds, and each org's pool. Where they do not
/// answer, gauges show what was seen last.
pub(super) fn look(engine: &Engine, current: &Arc<Current<Session>>) -> ops::Look {
    let Engine::Redis(engine) = engine.clone() else {
        return Arc::new(|| Box::pin(std::future::ready(())));
    };
    let current = Arc::clone(current);
    Arc::new(move || {
        let (engine, current) = (Arc::clone(&engine), Arc::clone(&current));
        Box::pin(async move {
            let look = look_at(&current, &engine);
            if let Ok(Err(error)) = tokio::time::timeout(LOOK_TIMEOUT, look).await {
                tracing::warn!(%error, "gauges show what was seen of the books before");
            }
        })
    })
}

async fn look_at(current: &Current<Session>, engine: &InRedis) -> Result<(), OpenError> {
    engine.count().await?;
    let worker = current.load();
    let (snapshot, now) = (worker.live.load(), worker.clock.now());
    let moments: Vec<_> = snapshot.orgs.values().map(|org| (org, org.moment(now))).collect();
    let pools = moments.iter().filter_map(|(org, moment)| org.pool_accounts(moment));
    let pools: Vec<Account<'_>> = pools.flatten().collect();
    engine.look(&pools).await
}

/// Takes up the jobs of gateways that are gone.
async fn adopt(current: &Current<Session>, engine: &InRedis) -> Result<(), OpenError> {
    let worker = current.load();
    for orphan in engine.orphans().await? {
        if !worker.jobs.knows(orphan.charge) {
            worker.jobs.adopt(&orphan, worker.clock.now());
        }
    }
    Ok(())
}

/// Whether holds whose time is over may end so long after the start, where jobs are open or not,
/// and where some are still to be asked for whose deadline passed while nobody served.
fn may_end(passed: Duration, are_open: bool, are_owed: bool) -> bool {
    !are_open || passed >= LAST_CHANCE || (passed >= FIRST_WORD && !are_owed)
}

async fn expire(
    engine: &Engine,
    in_doubt: &[AtomicU64; 2],
    clock: &Clock,
    worker: &Worker<Session>,
) {
    let looks_after = |charge| worker.jobs.may_end(charge);
    let (ended, failed) = engine.expire(clock.now(), looks_after).await;
    for (open, state) in &ended {
        worker.jobs.remove(open.charge);
        gateway::count_expired(worker, open, *state);
        in_doubt[usize::from(*state != State::Captured)].fetch_add(1, Relaxed);
        tracing::info!(charge = %open.charge, %state, "a hold ended that nobody resolved");
    }
    if let Some(error) = failed {
        tracing::error!(%error, "holds whose time is over do not end");
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
