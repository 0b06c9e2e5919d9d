//! The archive: a row for each charge, written behind the journal by a thread of its own, so that
//! a charge can be looked up long after it was settled. It follows the journal's records and
//! commits its position with them, so a crash repeats nothing and loses nothing.

mod adjustments;
mod answers;
mod dead;
mod rebuild;
mod records;

pub use adjustments::KeptLeg;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{QueryBuilder, Sqlite};
use tokio_util::sync::CancellationToken;

use self::records::{amended, decoded, document};
use crate::books::journal::{Cursor, Damage, Next};
use crate::core::account::AccountKey;
use crate::core::charge::{ChargeDocument, HoldMemo, State};
use crate::core::ids::ChargeId;
use crate::core::record::{Amend, Finish, Hold, Lasting, Record, Resolve, instant};

/// Records per transaction at most.
const BATCH: usize = 4096;
/// Rows per statement: below every database's bound on parameters.
const ROWS: usize = 256;
/// How long the archive rests when it has caught up.
const REST: Duration = Duration::from_millis(200);
/// How long a look-up waits for the archive to catch up with the record it asks for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the archive cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The database.
    #[error("the archive's database: {0}")]
    Sql(#[from] sqlx::Error),
    /// Its schema.
    #[error("the archive's schema: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The journal.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// A row whose record cannot be read.
    #[error("{0} cannot be read")]
    Unreadable(String),
    /// It did not catch up with the journal in time.
    #[error("the archive is behind the journal")]
    Behind,
}

/// The archive of a data dir. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Archive {
    pool: SqlitePool,
    journal: PathBuf,
    progress: Arc<Progress>,
}

/// How far the archive is. Stored by the following task only.
#[derive(Debug, Default)]
struct Progress {
    position: AtomicU64,
    /// Microseconds since the epoch: when the last archived record was made; 0 for none yet.
    newest: AtomicI64,
    /// Records of earlier processes that were not archived when the archive was opened.
    backlog: u64,
    /// Records archived since.
    records: AtomicU64,
    /// Records that are kept, and could not be read.
    dead: AtomicU64,
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
        let options = SqliteConnectOptions::new()
            .filename(data_dir.join("archive.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(Duration::from_secs(5))
            // The threads' names let a measurement tell the archive's CPU from the gateway's.
            .thread_name(|id| format!("archive-sql-{id}"));
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
        sqlx::migrate!("src/ledger/migrations").run(&pool).await?;
        let position = rebuild::start(&pool, journal, recovered).await?;
        let progress = Progress {
            position: AtomicU64::new(position),
            backlog: rebuild::count(journal, position)?.saturating_sub(written),
            dead: AtomicU64::new(dead::count(&pool).await?),
            ..Progress::default()
        };
        Ok(Self { pool, journal: journal.to_owned(), progress: Arc::new(progress) })
    }

    /// The journal's position up to which everything is archived.
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
        let query = sqlx::query_as("PRAGMA wal_checkpoint(FULL)");
        let (busy, log, synced): (i64, i64, i64) = query.fetch_one(&self.pool).await?;
        if busy == 0 && log == synced { Ok(position) } else { Err(ArchiveError::Behind) }
    }

    /// The position before which charges may be missing, because the archive was built again
    /// behind a journal without its beginning; 0: none are.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn begins(&self) -> Result<u64, ArchiveError> {
        let query = sqlx::query_scalar("SELECT begins FROM progress WHERE id = 1");
        let begins: i64 = query.fetch_one(&self.pool).await?;
        Ok(begins as u64)
    }

    /// How many records are not archived, if the process has `written` so many.
    pub fn lag(&self, written: u64) -> u64 {
        let made = self.progress.backlog + written;
        made.saturating_sub(self.progress.records.load(Ordering::Acquire))
    }

    /// When the last record was made that this process archived.
    pub fn newest(&self) -> Option<Timestamp> {
        let at = self.progress.newest.load(Ordering::Acquire);
        (at != 0).then(|| instant(at))
    }

    /// How many records of the journal could not be read: they are kept, and nothing is known of
    /// their charges or adjustments.
    pub fn dead_letters(&self) -> u64 {
        self.progress.dead.load(Ordering::Acquire)
    }

    /// When the newest archived charge was held, to the millisecond; from its id (RFC 9562).
    ///
    /// # Errors
    /// When the database fails.
    pub async fn newest_charge(&self) -> Result<Option<Timestamp>, ArchiveError> {
        let newest: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT max(id) FROM charges").fetch_one(&self.pool).await?;
        let millis = newest.iter().flat_map(|id| &id[..id.len().min(6)]);
        let millis = millis.fold(0_i64, |sum, byte| sum << 8 | i64::from(*byte));
        Ok(newest.and_then(|_| Timestamp::from_millisecond(millis).ok()))
    }

    /// Follows the journal until `stop`, and then to its end.
    ///
    /// # Errors
    /// When the journal is damaged or the database fails for good; charges are still made and
    /// recorded then, and archived when the cause is gone.
    pub async fn follow(&self, stop: CancellationToken) -> Result<(), ArchiveError> {
        let mut cursor = Cursor::new(&self.journal, self.position());
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
            batch.add(&cursor.record, cursor.position());
        }
        if batch.is_empty() {
            return Ok(false);
        }
        if batch.write(&self.pool, cursor.position()).await? {
            self.progress.dead.store(dead::count(&self.pool).await?, Ordering::Release);
        }
        // A batch of marks only says nothing about time.
        if batch.newest != 0 {
            self.progress.newest.store(batch.newest, Ordering::Release);
        }
        self.progress.records.fetch_add(batch.records as u64, Ordering::Release);
        self.progress.position.store(cursor.position(), Ordering::Release);
        Ok(true)
    }

    /// A charge as of `written`: a hold whose end may be recorded, but not archived yet, is waited
    /// for, so that whoever was told of a capture does not read that it is held.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn charge(
        &self,
        id: ChargeId,
        written: u64,
    ) -> Result<Option<ChargeDocument>, ArchiveError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            // Asked before the look-up: what is archived after it is not what it saw.
            let caught_up = self.position() >= written;
            let found = self.look_up(id).await?;
            let resolved = found.as_ref().is_some_and(|charge| charge.state != State::Held);
            if resolved || caught_up || tokio::time::Instant::now() >= deadline {
                return Ok(found);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn look_up(&self, id: ChargeId) -> Result<Option<ChargeDocument>, ArchiveError> {
        let row: Option<(Vec<u8>, Option<Vec<u8>>)> =
            sqlx::query_as("SELECT hold, resolution FROM charges WHERE id = ?")
                .bind(&id.0[..])
                .fetch_optional(&self.pool)
                .await?;
        let Some((hold, resolution)) = row else { return Ok(None) };
        let (hold, resolution) = decoded(&hold, resolution.as_deref())?;
        let resolve = resolution.as_ref().map(|(resolve, _)| resolve);
        let names = self.names(&hold.hold, resolve).await?;
        Ok(Some(document(&hold, resolution, &names).map_err(unreadable)?))
    }

    /// What was noted when a charge was resolved; nothing where it was not.
    ///
    /// # Errors
    /// When the database fails or is behind.
    pub async fn note(&self, id: ChargeId, written: u64) -> Result<Vec<u8>, ArchiveError> {
        self.caught_up(written).await?;
        let select = sqlx::query_scalar("SELECT resolution FROM charges WHERE id = ?");
        let row: Option<Option<Vec<u8>>> =
            select.bind(&id.0[..]).fetch_optional(&self.pool).await?;
        match row.flatten().as_deref().map(Record::decode) {
            Some(Ok(Record::Finish(finish))) => Ok(finish.note.to_vec()),
            Some(Err(_)) => Err(unreadable("an archived resolution")),
            _ => Ok(Vec::new()),
        }
    }

    async fn names(
        &self,
        hold: &Hold<'_>,
        resolution: Option<&Resolve<'_>>,
    ) -> Result<HashMap<AccountKey, String>, ArchiveError> {
        let mut names = HashMap::new();
        let extra = resolution.map(|resolve| resolve.extra.as_slice()).unwrap_or_default();
        for leg in hold.legs.iter().chain(extra) {
            names.insert(leg.key, self.name(&leg.key).await?);
        }
        Ok(names)
    }

    /// Closes the database.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// Rows to write in one transaction.
#[derive(Default)]
struct Batch {
    charges: HashMap<[u8; 16], Row>,
    /// Resolutions of charges whose rows are there already.
    resolutions: Vec<([u8; 16], Vec<u8>, u64)>,
    /// Amendments of charges whose rows are there already.
    amendments: Vec<([u8; 16], Vec<u8>, u64)>,
    answers: Vec<answers::Answer>,
    adjustments: Vec<adjustments::Row>,
    dead: Vec<dead::Letter>,
    accounts: HashMap<AccountKey, String>,
    newest: i64,
    records: usize,
}

struct Row {
    org: String,
    user: Option<String>,
    key: String,
    hold: Vec<u8>,
    resolution: Option<Vec<u8>>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Adds a record that ends at `position`.
    fn add(&mut self, bytes: &[u8], position: u64) {
        self.records += 1;
        let record = match Record::decode(bytes) {
            Ok(record) => record,
            Err(error) => return self.bury(position, &[], &error, bytes),
        };
        for opening in record.openings() {
            self.accounts.insert(opening.key, opening.name.to_owned());
        }
        match &record {
            Record::Hold(hold) | Record::Lasting(Lasting { hold, .. }) => {
                self.newest = hold.at;
                let memo: HoldMemo<'_> = match postcard::from_bytes(hold.memo) {
                    Ok(memo) => memo,
                    Err(error) => return self.bury(position, &hold.charge, &error, bytes),
                };
                let row = Row {
                    org: memo.org.to_owned(),
                    user: memo.user.map(str::to_owned),
                    key: memo.key.to_owned(),
                    hold: bytes.to_vec(),
                    resolution: None,
                };
                self.charges.insert(hold.charge, row);
            }
            Record::Amend(amend) => {
                self.newest = amend.at;
                self.answers.extend(answers::Answer::of(amend.charge, amend.at, amend.answer));
                self.amend(amend, bytes, position);
            }
            Record::Resolve(resolve) | Record::Finish(Finish { resolve, .. }) => {
                self.newest = resolve.at;
                if let Record::Finish(finish) = &record {
                    let (charge, at) = (resolve.charge, resolve.at);
                    self.answers.extend(answers::Answer::of(charge, at, finish.answer));
                }
                match self.charges.get_mut(&resolve.charge) {
                    Some(row) => row.resolution = Some(bytes.to_vec()),
                    None => self.resolutions.push((resolve.charge, bytes.to_vec(), position)),
                }
            }
            Record::Adjust(adjust) => {
                self.newest = adjust.at;
                let (row, error) = adjustments::Row::new(adjust, bytes, position);
                if let Some(error) = error {
                    let id = row.as_ref().map(|row| row.id);
                    self.bury(position, id.as_ref().map_or(&[], |id| &id[..]), &error, bytes);
                }
                self.adjustments.extend(row);
            }
            Record::Synced(_) | Record::Close(_) => {}
        }
    }

    /// What more a charge took, or is known of it: its row has the hold as it is now.
    fn amend(&mut self, amend: &Amend<'_>, bytes: &[u8], position: u64) {
        match self.charges.get_mut(&amend.charge) {
            None => self.amendments.push((amend.charge, bytes.to_vec(), position)),
            Some(row) => match amended(&row.hold, amend) {
                Some(hold) => row.hold = hold,
                None => self.bury(position, &amend.charge, &"its hold cannot be read", bytes),
            },
        }
    }

    /// Keeps a record that cannot be read as it is.
    fn bury(&mut self, position: u64, id: &[u8], what: &dyn std::fmt::Display, bytes: &[u8]) {
        let (id, what, record) = (id.to_vec(), what.to_string(), bytes.to_vec());
        self.dead.push(dead::Letter { position, id, what, record });
    }

    /// Writes all of it; true when there are dead letters in it.
    async fn write(&self, pool: &SqlitePool, position: u64) -> Result<bool, sqlx::Error> {
        let mut transaction = pool.begin().await?;
        let accounts: Vec<_> = self.accounts.iter().collect();
        for some in accounts.chunks(ROWS) {
            let mut insert = QueryBuilder::<Sqlite>::new("INSERT INTO accounts (key, name) ");
            insert.push_values(some, |mut row, (key, name)| {
                row.push_bind(key_bytes(key)).push_bind(name.as_str());
            });
            insert.push(" ON CONFLICT DO NOTHING");
            insert.build().execute(&mut *transaction).await?;
        }
        // In the order of their ids, which is that of time: the table grows at its end.
        let mut rows: Vec<_> = self.charges.iter().collect();
        rows.sort_unstable_by_key(|(id, _)| **id);
        for some in rows.chunks(ROWS) {
            let mut insert = QueryBuilder::<Sqlite>::new(
                "INSERT INTO charges (id, org, user_id, key_id, hold, resolution) ",
            );
            insert.push_values(some, |mut to, (id, row)| {
                to.push_bind(&id[..])
                    .push_bind(&row.org)
                    .push_bind(&row.user)
                    .push_bind(&row.key)
                    .push_bind(&row.hold)
                    .push_bind(&row.resolution);
            });
            // What is archived again is as the journal has it.
            insert.push(
                " ON CONFLICT (id) DO UPDATE SET hold = excluded.hold, \
                 resolution = excluded.resolution",
            );
            insert.build().execute(&mut *transaction).await?;
        }
        for letter in &self.dead {
            letter.write(&mut transaction).await?;
        }
        let mut has_dead = !self.dead.is_empty();
        for (id, bytes, position) in &self.resolutions {
            let update = sqlx::query("UPDATE charges SET resolution = ? WHERE id = ?");
            let update = update.bind(bytes).bind(&id[..]).execute(&mut *transaction).await?;
            if update.rows_affected() == 0 {
                has_dead |= dead::resolution(&mut transaction, *position, id, bytes).await?;
            }
        }
        for (id, bytes, position) in &self.amendments {
            has_dead |= records::amend(&mut transaction, *position, id, bytes).await?;
        }
        for answer in &self.answers {
            answer.write(&mut transaction).await?;
        }
        for row in &self.adjustments {
            row.write(&mut transaction).await?;
        }
        sqlx::query("UPDATE progress SET position = ? WHERE id = 1")
            .bind(position as i64)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        // Told when they are kept, so once.
        if let Some(first) = self.dead.first() {
            tracing::error!(
                records = self.dead.len(),
                position = first.position,
                what = first.what,
                "records of the journal cannot be read: the archive keeps them as they are, and \
                 goes on; balances lose nothing"
            );
        }
        Ok(has_dead)
    }
}

fn key_bytes(key: &AccountKey) -> Vec<u8> {
    // A fixed-size value of plain integers always encodes.
    postcard::to_stdvec(key).unwrap_or_default()
}

fn unreadable(what: impl Into<String>) -> ArchiveError {
    ArchiveError::Unreadable(what.into())
}
