//! The directory's database: every org's rows, and who changed them.
//!
//! The SQL keeps to what SQLite and PostgreSQL share. Only checked states are written, so what
//! cannot be read back is damage and an error.

pub mod audit;
mod load;
pub mod once;
pub mod tokens;
mod write;

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};

pub use load::{LicenceQuery, Scope, licences, load_details, load_people, users_page};
pub use write::write;

/// Rows of one statement: a statement costs more than a row, and holds at most 32,766 values.
const BATCH: usize = 500;

/// How many rows the database's thread reads ahead of whoever asked: with few of them the two
/// threads wake each other all the time when an org is read.
const AHEAD: usize = 4096;

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed.
    #[error("the directory's database: {0}")]
    Sql(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the directory's schema: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// What is stored cannot be read.
    #[error("the directory's database is damaged: {0}")]
    Damaged(String),
    /// Somebody else changed the org in between.
    #[error("org {0} was changed in between")]
    Stale(String),
}

/// Opens the database of a data dir, making or upgrading it where needed.
///
/// # Errors
/// When the file cannot be opened, or is newer than this program.
pub async fn open(data_dir: &Path) -> Result<SqliteConnection, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(data_dir.join("directory.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // A change that was acknowledged survives a power failure.
        .synchronous(SqliteSynchronous::Full)
        .row_buffer_size(AHEAD)
        .disable_statement_logging();
    let mut connection = options.connect().await?;
    sqlx::migrate!("src/directory/migrations").run(&mut connection).await?;
    Ok(connection)
}

/// Opens the database of a data dir a second time, to read from it.
///
/// # Errors
/// When the file cannot be opened.
pub async fn open_to_read(data_dir: &Path) -> Result<SqliteConnection, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(data_dir.join("directory.db"))
        .read_only(true)
        .disable_statement_logging();
    Ok(options.connect().await?)
}

/// Raises the epoch to `least` where it is lower, and says what it is.
///
/// # Errors
/// When the database fails.
pub async fn raise_epoch(connection: &mut SqliteConnection, least: u32) -> Result<u32, StoreError> {
    sqlx::query("UPDATE directory SET epoch = $1 WHERE epoch < $1")
        .bind(i64::from(least))
        .execute(&mut *connection)
        .await?;
    let row = sqlx::query("SELECT epoch FROM directory").fetch_one(connection).await?;
    let epoch: i64 = row.try_get(0)?;
    u32::try_from(epoch).map_err(|_| StoreError::Damaged(format!("epoch {epoch}")))
}

/// The ids of all orgs.
///
/// # Errors
/// When the database fails.
pub async fn org_ids(
    connection: &mut SqliteConnection,
) -> Result<Vec<crate::core::ids::Id>, StoreError> {
    let rows = sqlx::query("SELECT id FROM org ORDER BY id").fetch_all(connection).await?;
    rows.iter().map(|row| load::parsed(row, "id")).collect()
}

/// Closes the database.
///
/// # Errors
/// When the database fails.
pub async fn close(connection: SqliteConnection) -> Result<(), StoreError> {
    Ok(connection.close().await?)
}
