//! The thread that keeps the books' files in order.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::books::{self, embedded::Engine};
use crate::clock::Clock;
use crate::config::Books;
use crate::ledger::archive::Archive;
use crate::self_check::SelfCheck;

/// How often sealed segments are looked for, to fold them into a snapshot.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(10);

/// How often old answers are looked for.
const FORGET_INTERVAL: Duration = Duration::from_secs(10);

/// How often old answers are deleted at one time: each time a thousand go at most.
const MAX_ROUNDS: usize = 100;

/// What the thread needs that keeps the books' files in order.
pub(super) struct Keeping {
    engine: Arc<Engine>,
    archive: Archive,
    clock: Clock,
    /// How long the journal is kept; `None`: for ever.
    keep: Option<SignedDuration>,
    /// Why nothing could be deleted, when it was last said.
    told: String,
}

impl Keeping {
    /// Of these books, configured so; nothing where there are no files.
    pub(super) fn new(
        engine: &books::Engine,
        archive: &Archive,
        clock: &Clock,
        config: &Books,
    ) -> Option<Self> {
        let engine = Arc::clone(engine.embedded()?);
        let days = config.retention_days;
        let keep = (days > 0).then(|| SignedDuration::from_hours(24 * i64::from(days)));
        let (archive, clock) = (archive.clone(), clock.clone());
        Some(Self { engine, archive, clock, keep, told: String::new() })
    }

    /// Deletes segments that are old, in a snapshot and archived.
    async fn prune(&mut self) {
        let Some(before) = self.keep.and_then(|keep| self.clock.now().checked_sub(keep).ok())
        else {
            return;
        };
        let why = match self.pruned(before).await {
            Ok(count) => {
                if count > 0 {
                    tracing::info!(segments = count, %before, "old segments are deleted");
                }
                String::new()
            }
            Err(error) => format!("{error:#}"),
        };
        if why != self.told && !why.is_empty() {
            tracing::error!(error = why, "old segments cannot be deleted");
        }
        self.told = why;
    }

    async fn pruned(&self, before: Timestamp) -> anyhow::Result<usize> {
        if self.engine.prunable(before)?.is_none() {
            return Ok(0);
        }
        let archived = self.archive.kept().await?;
        Ok(self.engine.prune(before, archived)?)
    }
}

/// Forgets, now and then, the answers that were kept for keys which are forgotten by now (D35).
/// Goes on until it is dropped.
pub(super) async fn forget(archive: &Archive, clock: &Clock) {
    loop {
        tokio::time::sleep(FORGET_INTERVAL).await;
        for _ in 0..MAX_ROUNDS {
            match archive.forget_answers(clock.now()).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    let what = "answers that nobody can ask for any more are not deleted";
                    tracing::error!(%error, "{what}");
                    break;
                }
            }
        }
    }
}

/// The thread that folds sealed segments into snapshots, closes cycles that are long over, deletes
/// old segments, and compares what is in memory with what is recorded.
pub(super) fn start(
    keeping: Option<Keeping>,
    mut self_check: SelfCheck,
    end: &CancellationToken,
) -> anyhow::Result<Option<JoinHandle<()>>> {
    let Some(mut keeping) = keeping else { return Ok(None) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let end = end.clone();
    let work = async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(SNAPSHOT_INTERVAL) => {}
                () = end.cancelled() => return,
            }
            if let Err(error) = keeping.engine.snapshot(keeping.clock.now()) {
                tracing::error!(%error, "no snapshot was written; the next start takes longer");
            }
            match keeping.engine.close_cycles(keeping.clock.now()) {
                Ok(0) => {}
                Ok(accounts) => tracing::info!(accounts, "cycles that are long over are closed"),
                // The books have failed, and say so themselves.
                Err(error) => tracing::error!(%error, "no cycle can be closed"),
            }
            keeping.prune().await;
            if let Err(error) = self_check.tick(&keeping.engine) {
                tracing::error!(%error, "balances cannot be compared with their records");
            }
        }
    };
    let thread = std::thread::Builder::new().name("books-snapshot".to_owned());
    Ok(Some(thread.spawn(move || runtime.block_on(work))?))
}
