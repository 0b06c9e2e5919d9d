//! The archive: a row for each charge, written behind the books, so that a charge can be looked up
//! long after it was settled. It follows their records, those of the journal by a thread of its own
//! into a file, those of shards on Redis from any number of gateways into one database, and commits
//! its position with them: a crash repeats nothing and loses nothing.

mod adjustments;
mod answers;
mod batch;
mod database;
mod dead;
mod more;
mod moving;
mod rebuild;
mod records;
mod shards;
mod terms;
pub mod whole;

pub use adjustments::KeptLeg;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use self::adjustments::name_of;
use self::batch::Batch;
use self::database::Database;
use self::records::{decoded, document};
use self::shards::Shards;
use crate::books::journal::{Cursor, Damage, Next};
use crate::books::redis::{Engine, OpenError};
use crate::core::account::AccountKey;
use crate::core::charge::{ChargeDocument, State};
use crate::core::ids::ChargeId;
use crate::core::record::{Hold, Record, Resolve, instant};
use crate::sql::{Connection, LinkError, Place, query};

/// Records per transaction at most.
const BATCH: usize = 4096;
/// How long the archive rests when it has caught up.
const REST: Duration = Duration::from_millis(200);
/// How long a look-up waits for the archive to catch up with the record it asks for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it looks again meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How many archived entries of each shard stay in its stream, unless said otherwise.
pub const KEPT_ENTRIES: u64 = 1_000;

/// Why the archive cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The database.
    #[error("the archive's database: {0}")]
    Sql(#[from] sqlx::Error),
    /// Its schema.
    #[error("the archive's schema: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The database's server was asked a moment ago, and did not answer.
    #[error("the archive's database cannot be reached, {0}")]
    Away(String),
    /// The journal.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// The shards.
    #[error(transparent)]
    Books(#[from] OpenError),
    /// A row whose record cannot be read.
    #[error("{0} cannot be read")]
    Unreadable(String),
    /// It did not catch up with the books in time.
    #[error("the archive is behind the books")]
    Behind,
}

impl From<LinkError> for ArchiveError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Sql(error) => Self::Sql(error),
            LinkError::Migrate(error) => Self::Migrate(error),
            LinkError::Away(told) => Self::Away(told),
        }
    }
}

/// Up to where whoever looks something up knows that there are records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Which shard; 0 for the journal.
    pub shard: u16,
    /// The position in it; 0 to wait for nothing.
    pub position: u64,
}

impl Mark {
    /// A position of the journal.
    pub const fn journal(position: u64) -> Self {
        Self { shard: 0, position }
    }
}

/// Where a record stands.
#[derive(Clone, Copy, Debug)]
struct At {
    shard: i64,
    /// Where it ends in the journal, or which entry of the shard it is in.
    position: u64,
    /// Which record of the entry it is.
    part: i64,
}

impl At {
    const fn journal(position: u64) -> Self {
        Self { shard: -1, position, part: 0 }
    }
}

/// An archive. Cheap to clone.
///
/// A connection to a server lives on the event loop that first needed it; it is made again where
/// that has ended.
#[derive(Clone)]
pub struct Archive {
    source: Source,
    database: Arc<Database>,
    progress: Arc<Progress>,
}

/// What is archived.
#[derive(Clone)]
enum Source {
    /// The journal in this directory.
    Journal(PathBuf),
    /// The streams of books on Redis.
    Shards(Arc<Shards>),
}

/// How far the archive is. Stored by the following task only.
#[derive(Debug, Default)]
struct Progress {
    position: AtomicU64,
    /// Microseconds since the epoch: when the last archived record was made; 0 for none yet.
    newest: AtomicI64,
    /// Records of earlier processes that were not archived when the archive was opened.
    backlog: u64,
    /// Records archived since, or entries of shards.
    records: AtomicU64,
    /// Records that are kept, and could not be read.
    dead: AtomicU64,
}

impl Progress {
    /// So many more are archived, and so many are dead letters by now, where that changed.
    fn archived(&self, records: usize, newest: i64, dead: Option<u64>) {
        if let Some(dead) = dead {
            self.dead.store(dead, Ordering::Release);
        }
        // A batch of marks only says nothing about time.
        if newest != 0 {
            self.newest.store(newest, Ordering::Release);
        }
        self.records.fetch_add(records as u64, Ordering::Release);
    }
}

impl Archive {
    /// Opens the archive in `data_dir`, which follows the journal in `journal`. Of the previous
    /// process the journal was recovered up to `recovered`; this one has written so many records.
    ///
    /// # Errors
    /// When the database cannot be opened or migrated.
    pub async fn open(
        data_dir: &Path,
        journal: &Path,
        recovered: u64,
        written: u64,
    ) -> Result<Self, ArchiveError> {
        let database = Database::open(Place::File(data_dir.join("archive.db"))).await?;
        let mut link = database.writer().await;
        let db = link.connection().await?;
        let position = rebuild::start(db, journal, recovered).await?;
        let progress = Progress {
            position: AtomicU64::new(position),
            backlog: rebuild::count(journal, position)?.saturating_sub(written),
            dead: AtomicU64::new(dead::count(db).await?),
            ..Progress::default()
        };
        drop(link);
        let source = Source::Journal(journal.to_owned());
        Ok(Self { source, database: Arc::new(database), progress: Arc::new(progress) })
    }

    /// Opens an archive that follows the shards of books on Redis, and keeps so many archived
    /// entries of each in its stream. Gateways that share the books share the archive: on a server,
    /// where the directory may be in the same database. In a file it is for one gateway only.
    ///
    /// # Errors
    /// When the database cannot be opened or migrated.
    pub async fn of_shards(
        place: Place,
        engine: Arc<Engine>,
        keep: u64,
    ) -> Result<Self, ArchiveError> {
        let database = Database::open(place).await?;
        let shards = Shards::new(engine, keep);
        let mut link = database.writer().await;
        let db = link.connection().await?;
        shards.begin(db).await?;
        let dead = AtomicU64::new(dead::count(db).await?);
        drop(link);
        let progress = Progress { dead, ..Progress::default() };
        let source = Source::Shards(Arc::new(shards));
        Ok(Self { source, database: Arc::new(database), progress: Arc::new(progress) })
    }

    /// The journal's position up to which everything is archived; 0 where shards are archived.
    pub fn position(&self) -> u64 {
        self.progress.position.load(Ordering::Acquire)
    }

    /// The journal's position up to which everything is archived and survives a power failure:
    /// what is committed is in a log that the database syncs when it takes it over.
    ///
    /// # Errors
    /// When the database fails, or somebody who reads it keeps it from being synced.
    pub async fn kept(&self) -> Result<u64, ArchiveError> {
        let position = self.position();
        if position == 0 {
            return Ok(0);
        }
        let mut link = self.database.writer().await;
        let checkpoint = query("PRAGMA wal_checkpoint(FULL)").fetch_one(link.connection().await?);
        let row = checkpoint.await?;
        let (busy, log, synced): (i64, i64, i64) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if busy == 0 && log == synced { Ok(position) } else { Err(ArchiveError::Behind) }
    }

    /// The position before which charges may be missing, because the archive was built again
    /// behind a journal without its beginning; 0: none are.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn begins(&self) -> Result<u64, ArchiveError> {
        let mut link = self.database.reader().await;
        let select = query("SELECT begins FROM progress WHERE id = 1");
        let begins: i64 = select.fetch_one(link.ready().await?).await?.try_get(0)?;
        Ok(begins as u64)
    }

    /// How many records are not archived, if the process has `written` so many; of shards, how
    /// many entries were not when this gateway last looked, whoever made them.
    pub fn lag(&self, written: u64) -> u64 {
        if let Source::Shards(shards) = &self.source {
            return shards.lag();
        }
        let made = self.progress.backlog + written;
        made.saturating_sub(self.progress.records.load(Ordering::Acquire))
    }

    /// Of shards: how long ago this gateway first saw the entry that has waited longest to be
    /// archived by anybody.
    pub fn waits(&self) -> Duration {
        match &self.source {
            Source::Journal(_) => Duration::ZERO,
            Source::Shards(shards) => shards.waits(),
        }
    }

    /// How many records, or entries of shards, this process has archived.
    pub fn archived(&self) -> u64 {
        self.progress.records.load(Ordering::Acquire)
    }

    /// When the last record was made that this process archived.
    pub fn newest(&self) -> Option<Timestamp> {
        let at = self.progress.newest.load(Ordering::Acquire);
        (at != 0).then(|| instant(at))
    }

    /// How many records could not be read, and how often entries of shards were missing: they are
    /// kept, and nothing is known of their charges or adjustments.
    pub fn dead_letters(&self) -> u64 {
        self.progress.dead.load(Ordering::Acquire)
    }

    /// When the newest archived charge was held, to the millisecond; from its id (RFC 9562).
    ///
    /// # Errors
    /// When the database fails.
    pub async fn newest_charge(&self) -> Result<Option<Timestamp>, ArchiveError> {
        let mut link = self.database.reader().await;
        let select = query("SELECT id FROM charges ORDER BY id DESC LIMIT 1");
        let row = select.fetch_optional(link.ready().await?).await?;
        let newest: Option<Vec<u8>> = row.map(|row| row.try_get(0)).transpose()?;
        let millis = newest.iter().flat_map(|id| &id[..id.len().min(6)]);
        let millis = millis.fold(0_i64, |sum, byte| sum << 8 | i64::from(*byte));
        Ok(newest.and_then(|_| Timestamp::from_millisecond(millis).ok()))
    }

    /// Follows the journal or the shards until `stop`, and then to their end.
    ///
    /// # Errors
    /// When the journal is damaged or the database fails for good; charges are still made and
    /// recorded then, and archived when the cause is gone. With shards only after `stop`.
    pub async fn follow(&self, stop: CancellationToken) -> Result<(), ArchiveError> {
        let journal = match &self.source {
            Source::Journal(journal) => journal,
            Source::Shards(shards) => return self.follow_shards(shards, stop).await,
        };
        let mut cursor = Cursor::new(journal, self.position());
        loop {
            let last = stop.is_cancelled();
            while self.step(&mut cursor).await? {}
            if last {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(REST) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Archives one batch; false when there was nothing to archive.
    async fn step(&self, cursor: &mut Cursor) -> Result<bool, ArchiveError> {
        let mut batch = Batch::default();
        for _ in 0..BATCH {
            if cursor.next()? == Next::End {
                break;
            }
            batch.read(&cursor.record, At::journal(cursor.position()));
        }
        if batch.is_empty() {
            return Ok(false);
        }
        let mut link = self.database.writer().await;
        let done = write(link.connection().await?, &batch, cursor.position()).await;
        // Where it was not committed, nobody waits for the lock.
        link.settle().await;
        let dead = done?;
        drop(link);
        self.progress.archived(batch.records, batch.newest, dead);
        self.progress.position.store(cursor.position(), Ordering::Release);
        Ok(true)
    }

    /// Whether everything up to a mark is archived.
    async fn has(&self, mark: Mark) -> Result<bool, ArchiveError> {
        if let Source::Journal(_) = &self.source {
            return Ok(self.position() >= mark.position);
        }
        if mark.position == 0 {
            return Ok(true);
        }
        let mut link = self.database.reader().await;
        let select = query("SELECT position FROM shards WHERE shard = $1");
        let select = select.bind(i64::from(mark.shard)).fetch_one(link.ready().await?);
        let position: i64 = select.await?.try_get(0)?;
        Ok(position as u64 >= mark.position)
    }

    /// A charge as of a mark: a hold whose end may be recorded, but not archived yet, is waited
    /// for, so that whoever was told of a capture does not read that it is held.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn charge(
        &self,
        id: ChargeId,
        mark: Mark,
    ) -> Result<Option<ChargeDocument>, ArchiveError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            // Asked before the look-up: what is archived after it is not what it saw.
            let caught_up = self.has(mark).await?;
            let found = self.look_up(id).await?;
            let resolved = found.as_ref().is_some_and(|charge| charge.state != State::Held);
            if resolved || caught_up || tokio::time::Instant::now() >= deadline {
                return Ok(found);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn look_up(&self, id: ChargeId) -> Result<Option<ChargeDocument>, ArchiveError> {
        let mut link = self.database.reader().await;
        let db = link.ready().await?;
        let select = query("SELECT hold, resolution FROM charges WHERE id = $1").bind(&id.0[..]);
        let Some(row) = select.fetch_optional(db).await? else { return Ok(None) };
        let (hold, resolution): (Vec<u8>, Option<Vec<u8>>) = (row.try_get(0)?, row.try_get(1)?);
        let (hold, resolution) = decoded(&hold, resolution.as_deref())?;
        let resolve = resolution.as_ref().map(|(resolve, _)| resolve);
        let names = names(db, &hold.hold, resolve).await?;
        Ok(Some(document(&hold, resolution, &names).map_err(unreadable)?))
    }

    /// What was noted when a charge was resolved; nothing where it was not.
    ///
    /// # Errors
    /// When the database fails or is behind.
    pub async fn note(&self, id: ChargeId, mark: Mark) -> Result<Vec<u8>, ArchiveError> {
        self.caught_up(mark).await?;
        let mut link = self.database.reader().await;
        let select = query("SELECT resolution FROM charges WHERE id = $1").bind(&id.0[..]);
        let row = select.fetch_optional(link.ready().await?).await?;
        let resolution: Option<Option<Vec<u8>>> = row.map(|row| row.try_get(0)).transpose()?;
        match resolution.flatten().as_deref().map(Record::decode) {
            Some(Ok(Record::Finish(finish))) => Ok(finish.note.to_vec()),
            Some(Err(_)) => Err(unreadable("an archived resolution")),
            _ => Ok(Vec::new()),
        }
    }

    /// Closes the database.
    pub async fn close(&self) {
        self.database.close().await;
    }
}

/// Writes a batch of the journal, and the position it leads to. How many dead letters there are
/// then, where it has some.
async fn write(
    db: &mut Connection,
    batch: &Batch,
    position: u64,
) -> Result<Option<u64>, ArchiveError> {
    let mut transaction = db.begin().await?;
    let has_dead = batch.write(&mut transaction).await?;
    let update = query("UPDATE progress SET position = $1 WHERE id = 1").bind(position as i64);
    update.execute(&mut transaction).await?;
    let dead = if has_dead { Some(dead::count(&mut transaction).await?) } else { None };
    transaction.commit().await?;
    batch.tell();
    Ok(dead)
}

async fn names(
    db: &mut Connection,
    hold: &Hold<'_>,
    resolution: Option<&Resolve<'_>>,
) -> Result<HashMap<AccountKey, String>, ArchiveError> {
    let mut names = HashMap::new();
    let extra = resolution.map(|resolve| resolve.extra.as_slice()).unwrap_or_default();
    for leg in hold.legs.iter().chain(extra) {
        names.insert(leg.key, name_of(db, &leg.key).await?);
    }
    Ok(names)
}

fn key_bytes(key: &AccountKey) -> Vec<u8> {
    // A fixed-size value of plain integers always encodes.
    postcard::to_stdvec(key).unwrap_or_default()
}

fn unreadable(what: impl Into<String>) -> ArchiveError {
    ArchiveError::Unreadable(what.into())
}
