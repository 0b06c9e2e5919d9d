//! The archive's connections: one that writes, and some that read beside it.

use std::sync::atomic::{AtomicUsize, Ordering};

use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteSynchronous;
use tokio::sync::{Mutex, MutexGuard};

use super::ArchiveError;
use crate::sql::{Link, Place, Schema};

/// How many look-ups read at once.
const READERS: usize = 3;

/// One set of files for both engines.
static MIGRATIONS: Migrator = sqlx::migrate!("src/ledger/migrations");

static SCHEMA: Schema = Schema {
    migrations: &MIGRATIONS,
    // The directory may be in the same database.
    noted_in: "_archive_migrations",
    // What a power failure takes is archived again.
    synchronous: SqliteSynchronous::Normal,
    // The threads' names let a measurement tell the archive's CPU from the gateway's.
    threads: "archive-sql",
    writer: None,
};

/// A link of its own to the database, for changes too.
pub(super) fn link(place: Place) -> Link {
    Link::new(place, &SCHEMA, false)
}

/// Links to the database, made when they are needed and again when they were lost.
pub(super) struct Database {
    writer: Mutex<Link>,
    readers: [Mutex<Link>; READERS],
    next: AtomicUsize,
}

impl Database {
    /// Opens it, with a schema that is up to date.
    pub(super) async fn open(place: Place) -> Result<Self, ArchiveError> {
        let link = |reads_only| Mutex::new(Link::new(place.clone(), &SCHEMA, reads_only));
        let readers = std::array::from_fn(|_| link(true));
        let database = Self { writer: link(false), readers, next: AtomicUsize::new(0) };
        database.writer().await.connection().await?;
        Ok(database)
    }

    /// Whoever changes something waits here for its turn.
    pub(super) async fn writer(&self) -> MutexGuard<'_, Link> {
        self.writer.lock().await
    }

    /// One that is free, or the next one in turn.
    pub(super) async fn reader(&self) -> MutexGuard<'_, Link> {
        if let Some(free) = self.readers.iter().find_map(|reader| reader.try_lock().ok()) {
            return free;
        }
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.readers[next % READERS].lock().await
    }

    pub(super) async fn close(&self) {
        for link in self.readers.iter().chain([&self.writer]) {
            // There is nothing left to do where it fails.
            let _ = link.lock().await.close().await;
        }
    }
}
