//! The directory's database: every org's rows, and who changed them.
//!
//! The SQL keeps to what SQLite and PostgreSQL share. Only checked states are written, so what
//! cannot be read back is damage and an error.

pub mod audit;
pub mod link;
mod load;
pub mod once;
pub mod sql;
pub mod tokens;
mod write;

use self::sql::{Connection, query};
use crate::core::ids::Id;

pub use link::{Link, Place};
pub use load::{LicenceQuery, Scope, licences, load_details, load_people, users_page};
pub use write::write;

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
