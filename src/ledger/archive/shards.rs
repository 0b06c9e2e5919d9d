//! The archive behind the shards of books on Redis: any number of gateways archive them, each entry
//! once.
//!
//! A step archives some entries of one shard in one transaction, which locks the shard's row, and
//! changes its position: who does not get the lock goes on to the next shard, and the lock of a
//! gateway that dies goes with its connection. Entries leave the stream when they are committed,
//! so while the database is away the streams keep what is not archived.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::batch::Batch;
use super::more::{self, Said, Sessions};
use super::terms::Terms;
use super::{Archive, ArchiveError, At, REST, dead};
use crate::books::redis::ledger::Entry;
use crate::books::redis::{Engine, LedgerEntry, OpenError};
use crate::sql::{Connection, Link, Value, query, rows_between};

/// Entries that are asked for at once: each has at most some hundred records, and mostly few.
const PAGE: usize = 64;
/// Entries, and bytes of them, per transaction; a page more of either.
const MOST: usize = 1024;
const MOST_BYTES: usize = 4 << 20;

/// The shards that are followed.
#[derive(Debug)]
pub(super) struct Shards {
    engine: Arc<Engine>,
    /// How many archived entries of each shard stay in its stream.
    keep: u64,
    /// The number of these books in the archive.
    books: AtomicI64,
    known: Mutex<Vec<Known>>,
}

/// What was last seen of a shard.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The term that was archived last.
    term: String,
    end: u64,
    position: u64,
    /// An entry that was not archived when it was seen, and since when.
    waits: Option<(u64, Instant)>,
}

impl Known {
    fn has_end(&mut self, end: u64) {
        self.end = end;
        if self.waits.is_none() && end > self.position {
            self.waits = Some((end, Instant::now()));
        }
    }

    fn has_position(&mut self, position: u64) {
        self.position = position;
        if self.waits.is_some_and(|(entry, _)| entry <= position) {
            self.waits = None;
            self.has_end(self.end);
        }
    }
}

impl Shards {
    pub(super) fn new(engine: Arc<Engine>, keep: u64) -> Self {
        let known = Mutex::new(vec![Known::default(); engine.shards()]);
        Self { engine, keep, books: AtomicI64::new(0), known }
    }

    /// A row for these books and for each shard, where there is none yet.
    pub(super) async fn begin(&self, db: &mut Connection) -> Result<(), sqlx::Error> {
        let number = more::number_of(&mut *db, self.engine.epoch()).await?;
        self.books.store(number, Ordering::Release);
        let rows =
            (0..self.engine.shards()).map(|shard| [(shard as i64).into(), Value::from(0_i64)]);
        let into = "INSERT INTO shards (shard, position)";
        rows_between(into, rows, " ON CONFLICT DO NOTHING").execute(db).await?;
        Ok(())
    }

    /// How many entries are not archived.
    pub(super) fn lag(&self) -> u64 {
        let known = self.known.lock();
        known.iter().map(|shard| shard.end.saturating_sub(shard.position)).sum()
    }

    /// For how long the one has waited that has waited longest.
    pub(super) fn waits(&self) -> Duration {
        let known = self.known.lock();
        let since = known.iter().filter_map(|shard| Some(shard.waits?.1)).min();
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn knows(&self, shard: usize, tell: impl FnOnce(&mut Known)) {
        if let Some(known) = self.known.lock().get_mut(shard) {
            tell(known);
        }
    }

    /// The shards whose position is not the end of their ledger, with that end.
    async fn behind(&self, archive: &Archive) -> Result<Vec<(usize, u64)>, ArchiveError> {
        let mut ends = Vec::with_capacity(self.engine.shards());
        for shard in 0..self.engine.shards() {
            let ledger = self.engine.ledger_terms(shard).await?;
            let mut is_new = false;
            if let Some(ledger) = &ledger {
                let term = ledger.terms.last().map(|(name, _)| name);
                self.knows(shard, |known| {
                    known.has_end(ledger.end);
                    is_new = term.is_some_and(|term| *term != known.term);
                });
            }
            ends.push(ledger.map(|ledger| (ledger.end, is_new)));
        }
        let mut link = archive.database.writer().await;
        let rows = query("SELECT shard, position FROM shards").fetch_all(link.ready().await?);
        let mut behind = Vec::new();
        for row in rows.await? {
            let (shard, position): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            let (shard, position) = (shard as usize, position as u64);
            self.knows(shard, |known| known.has_position(position));
            let end = ends.get(shard).copied().flatten();
            if let Some((end, _)) = end.filter(|(end, is_new)| *is_new || *end != position) {
                behind.push((shard, end));
            }
        }
        Ok(behind)
    }

    /// Entries behind a position, some at most; and whether that is all there are.
    async fn entries(
        &self,
        shard: usize,
        position: u64,
    ) -> Result<(Vec<LedgerEntry>, bool), OpenError> {
        let (mut entries, mut bytes, mut behind) = (Vec::new(), 0, position);
        while entries.len() < MOST && bytes < MOST_BYTES {
            let page = self.engine.ledger(shard, behind, PAGE).await?;
            let is_last = page.len() < PAGE;
            for (at, entry) in page {
                (behind, bytes) = (at, bytes + entry.len());
                entries.push((at, entry));
            }
            if is_last {
                return Ok((entries, true));
            }
        }
        Ok((entries, false))
    }
}

impl Archive {
    /// Follows the shards until `stop`, and then to where they end. Whatever is away is tried again
    /// for as long.
    pub(super) async fn follow_shards(
        &self,
        shards: &Shards,
        stop: CancellationToken,
    ) -> Result<(), ArchiveError> {
        let mut away = false;
        loop {
            let last = stop.is_cancelled();
            let done = self.round(shards).await;
            if last {
                return done;
            }
            match &done {
                Ok(()) if away => tracing::info!("the archive goes on"),
                Err(error) if !away => tracing::error!(
                    %error,
                    "the archive is behind; charges are still made, and Redis keeps their records"
                ),
                _ => {}
            }
            away = done.is_err();
            tokio::select! {
                () = tokio::time::sleep(REST) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Archives what there is of every shard now that nobody else is at.
    async fn round(&self, shards: &Shards) -> Result<(), ArchiveError> {
        let mut behind = shards.behind(self).await?;
        let mut odd = Ok(());
        while !behind.is_empty() {
            let mut more = Vec::new();
            for (shard, end) in behind {
                match self.step_of(shards, shard).await {
                    Ok(Some(position)) if position < end => more.push((shard, end)),
                    Ok(_) => {}
                    // What is wrong with one shard must not keep the others from theirs.
                    Err(error @ ArchiveError::Books(OpenError::Books(_))) => odd = Err(error),
                    Err(error) => return Err(error),
                }
            }
            behind = more;
        }
        odd
    }

    /// One step of a shard: the position it led to, `None` where somebody else is at it.
    async fn step_of(&self, shards: &Shards, shard: usize) -> Result<Option<u64>, ArchiveError> {
        let mut link = self.database.writer().await;
        let done = self.step_on(&mut link, shards, shard).await;
        // Where it was not committed, nobody waits for the lock.
        link.settle().await;
        drop(link);
        let Some((from, position)) = done? else { return Ok(None) };
        shards.knows(shard, |known| known.has_position(position));
        if position > from && position > shards.keep {
            shards.engine.trim_ledger(shard, position - shards.keep).await?;
        }
        Ok(Some(position))
    }

    async fn step_on(
        &self,
        link: &mut Link,
        shards: &Shards,
        shard: usize,
    ) -> Result<Option<(u64, u64)>, ArchiveError> {
        let mut transaction = link.begin().await?;
        let sql = match transaction.is_shared() {
            true => "SELECT position FROM shards WHERE shard = $1 FOR UPDATE SKIP LOCKED",
            // Nobody else writes there.
            false => "SELECT position FROM shards WHERE shard = $1",
        };
        let row = query(sql).bind(shard as i64).fetch_optional(&mut transaction).await?;
        let Some(row) = row else { return Ok(None) };
        let from: i64 = row.try_get(0)?;
        let from = from as u64;
        // Read under the lock, so that nobody has archived more than this meanwhile.
        let Some(ledger) = shards.engine.ledger_terms(shard).await? else { return Ok(None) };
        let terms = Terms::read(&mut transaction, shard, ledger.terms.clone()).await?;
        let mut read = Read::new(shards, shard, (from, ledger.end), &terms).await?;
        read.batch.books = Some(shards.books.load(Ordering::Acquire));
        // Another Redis may have answered in between, whose entries are not of these terms: they would
        // count as archived, and what is done again of them would not be.
        let still = shards.engine.ledger_terms(shard).await?;
        if !still.is_some_and(|now| now.terms == ledger.terms && now.end >= ledger.end) {
            return Ok(None);
        }
        let Read { batch, entries, position, sessions, .. } = read;
        let mut dead = None;
        if batch.write(&mut transaction).await? {
            dead = Some(dead::count(&mut transaction).await?);
        }
        let update = query("UPDATE shards SET position = $1 WHERE shard = $2");
        update.bind(position as i64).bind(shard as i64).execute(&mut transaction).await?;
        // What is closed by the end of the ledger may be so by an entry that is not archived yet.
        if position >= ledger.end {
            let update = query("UPDATE shards SET closed = $1 WHERE shard = $2");
            let update = update.bind(i64::from(ledger.closed.digits()));
            update.bind(shard as i64).execute(&mut transaction).await?;
        }
        more::write_sessions(&mut transaction, shard, &sessions, batch.newest).await?;
        terms.archived(&mut transaction, shard, position).await?;
        transaction.commit().await?;
        batch.tell();
        self.progress.archived(entries, batch.newest, dead);
        shards.knows(shard, |known| known.term = terms.last().to_owned());
        Ok(Some((from, position)))
    }
}

/// What was read of a shard.
struct Read<'a> {
    batch: Batch,
    entries: usize,
    /// Up to where it leads.
    position: u64,
    sessions: Sessions,
    terms: &'a Terms,
}

impl<'a> Read<'a> {
    /// Entries behind a position, where the ledger was given entries up to `end`.
    async fn new(
        shards: &Shards,
        shard: usize,
        (from, end): (u64, u64),
        terms: &'a Terms,
    ) -> Result<Self, OpenError> {
        let start = terms.go_on(from);
        let (batch, sessions) = (Batch::default(), Sessions::new());
        let mut read = Self { batch, entries: 0, position: start, sessions, terms };
        if start < from {
            // Gateways do them again, each in an entry of its own.
            read.miss(shard, start + 1, from, "Redis has lost entries that are archived");
        }
        let (entries, is_all) = shards.entries(shard, start).await?;
        read.entries = entries.len();
        for (position, bytes) in &entries {
            if *position > read.position + 1 {
                read.miss(shard, read.position + 1, position - 1, "entries are missing");
            }
            read.entry(At { shard: shard as i64, position: *position, part: 0 }, bytes);
            read.position = *position;
        }
        if is_all && end > read.position {
            read.miss(shard, read.position + 1, end, "entries are missing");
            read.position = end;
        }
        Ok(read)
    }

    fn miss(&mut self, shard: usize, first: u64, last: u64, why: &str) {
        let at = At { shard: shard as i64, position: last, part: 0 };
        self.batch.bury(at, &[], &format!("{why}: {first} to {last}"), &[]);
    }

    fn entry(&mut self, at: At, bytes: &[u8]) {
        let entry = match Entry::read(bytes) {
            Ok(entry) => entry,
            Err(error) => return self.batch.bury(at, &[], &error, bytes),
        };
        let last = self.sessions.entry(entry.session.to_owned()).or_default();
        *last = entry.number.max(*last);
        // What was archived before Redis lost it is here.
        if entry.before.is_some_and(|(term, position)| self.terms.has(term, position)) {
            return;
        }
        for (part, record) in (0..).zip(&entry.records) {
            let at = At { part, ..at };
            let mut own = Vec::new();
            match record.encode(&mut own) {
                Ok(()) => {
                    let said = Said::new(&entry, part as usize);
                    self.batch.add_said(record, &own, at, Some(&said));
                }
                Err(error) => self.batch.bury(at, &[], &error, bytes),
            }
        }
    }
}
