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

use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteSynchronous;

use crate::core::ids::Id;
use crate::sql::{Connection, Link, LinkError, Place, Schema, query};

pub use load::{LicenceQuery, Scope, licences, load_details, load_people, users_page};
pub use write::write;

/// One set of files for both engines.
static MIGRATIONS: Migrator = sqlx::migrate!("src/directory/migrations");

static SCHEMA: Schema = Schema {
    migrations: &MIGRATIONS,
    noted_in: "_sqlx_migrations",
    // A change that was acknowledged survives a power failure.
    synchronous: SqliteSynchronous::Full,
    threads: "directory-sql",
    writer: Some(0x746f_6c6c_6761_7465),
};

/// Rows of one statement: a statement costs more than a row, and holds at most 32,766 values.
const BATCH: usize = 500;

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
    /// The server was asked a moment ago, and did not answer.
    #[error("the directory's database cannot be reached, {0}")]
    Away(String),
}

impl From<LinkError> for StoreError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Sql(error) => Self::Sql(error),
            LinkError::Migrate(error) => Self::Migrate(error),
            LinkError::Away(told) => Self::Away(told),
        }
    }
}

impl Place {
    /// The directory's file in a data dir.
    pub fn in_data_dir(data_dir: &Path) -> Self {
        Self::File(data_dir.join("directory.db"))
    }
}

impl From<&Path> for Place {
    fn from(data_dir: &Path) -> Self {
        Self::in_data_dir(data_dir)
    }
}

/// A link to a directory that is not made yet.
pub const fn link(place: Place, reads_only: bool) -> Link {
    Link::new(place, &SCHEMA, reads_only)
}

/// Which state of the whole directory this is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Higher in a restored or copied directory (D42).
    pub epoch: u32,
    /// How many entries the audit has: every change makes at least one.
    pub seq: i64,
}

/// Raises the epoch to `least` where it is lower.
///
/// # Errors
/// When the database fails.
pub async fn raise_epoch(connection: &mut Connection, least: u32) -> Result<(), StoreError> {
    let sql = "UPDATE directory SET epoch = $1 WHERE epoch < $1";
    query(sql).bind(i64::from(least)).execute(connection).await?;
    Ok(())
}

/// The state that the database is in.
///
/// # Errors
/// When the database fails.
pub async fn position(connection: &mut Connection) -> Result<Position, StoreError> {
    let row = query("SELECT epoch, audit_seq FROM directory").fetch_one(connection).await?;
    let epoch: i64 = row.try_get("epoch")?;
    let epoch = u32::try_from(epoch).map_err(|_| StoreError::Damaged(format!("epoch {epoch}")))?;
    Ok(Position { epoch, seq: row.try_get("audit_seq")? })
}

/// The ids of all orgs, and their versions.
///
/// # Errors
/// When the database fails.
pub async fn orgs(connection: &mut Connection) -> Result<Vec<(Id, u64)>, StoreError> {
    let rows = query("SELECT id, version FROM org ORDER BY id").fetch_all(connection).await?;
    rows.iter().map(|row| Ok((load::parsed(row, "id")?, load::version(row)?))).collect()
}
