//! Dead letters: records that cannot be read. They are kept as they are, counted and told of, and
//! the archive goes on behind them: one record must not keep all others from being found.

use sqlx::sqlite::{SqliteConnection, SqlitePool};

/// A record that could not be read.
pub(super) struct Letter {
    /// Where it ends in the journal.
    pub(super) position: u64,
    /// Its charge or its own id, where that could be read; else nothing.
    pub(super) id: Vec<u8>,
    /// What is wrong with it.
    pub(super) what: String,
    pub(super) record: Vec<u8>,
}

impl Letter {
    pub(super) async fn write(&self, db: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let sql = "INSERT INTO dead_letters (position, id, what, record) VALUES (?, ?, ?, ?) \
                   ON CONFLICT DO NOTHING";
        sqlx::query(sql)
            .bind(self.position as i64)
            .bind(&self.id)
            .bind(&self.what)
            .bind(&self.record)
            .execute(db)
            .await?;
        Ok(())
    }
}

/// The end of a charge without a row: kept beside its hold, if that is a dead letter. Otherwise
/// the hold was deleted from the journal before the archive was built again. True when it was
/// kept.
pub(super) async fn resolution(
    db: &mut SqliteConnection,
    position: u64,
    charge: &[u8],
    record: &[u8],
) -> Result<bool, sqlx::Error> {
    let sql = "INSERT INTO dead_letters (position, id, what, record) \
               SELECT ?1, ?2, 'the end of a charge whose hold cannot be read', ?3 \
               WHERE EXISTS (SELECT 1 FROM dead_letters WHERE id = ?2) ON CONFLICT DO NOTHING";
    let insert = sqlx::query(sql).bind(position as i64).bind(charge).bind(record);
    Ok(insert.execute(db).await?.rows_affected() > 0)
}

/// How many there are.
pub(super) async fn count(pool: &SqlitePool) -> Result<u64, sqlx::Error> {
    let count: i64 =
        sqlx::query_scalar("SELECT count(*) FROM dead_letters").fetch_one(pool).await?;
    Ok(count.unsigned_abs())
}
