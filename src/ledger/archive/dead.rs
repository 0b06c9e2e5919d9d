//! Dead letters: records that cannot be read, or are missing. They are kept as they are, counted
//! and told of, and the archive goes on behind them: one record must not keep all others from
//! being found.

use super::At;
use crate::sql::{Connection, query};

/// A record that could not be read.
pub(super) struct Letter {
    pub(super) at: At,
    /// Its charge or its own id, where that could be read; else nothing.
    pub(super) id: Vec<u8>,
    /// What is wrong with it.
    pub(super) what: String,
    pub(super) record: Vec<u8>,
}

impl Letter {
    pub(super) async fn write(&self, db: &mut Connection) -> Result<(), sqlx::Error> {
        let sql = "INSERT INTO dead_letters (shard, position, part, id, what, record) \
                   VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
        let insert = query(sql).bind(self.at.shard).bind(self.at.position as i64);
        let insert = insert.bind(self.at.part).bind(&self.id).bind(&self.what).bind(&self.record);
        insert.execute(db).await?;
        Ok(())
    }
}

/// The end of a charge without a row: kept beside its hold, if that is a dead letter. Otherwise
/// the hold was deleted from the journal before the archive was built again. True when it was
/// kept.
pub(super) async fn resolution(
    db: &mut Connection,
    at: At,
    charge: &[u8],
    record: &[u8],
) -> Result<bool, sqlx::Error> {
    let sql = "INSERT INTO dead_letters (shard, position, part, id, what, record) \
               SELECT $1, $2, $3, $4, 'the end of a charge whose hold cannot be read', $5 \
               WHERE EXISTS (SELECT 1 FROM dead_letters WHERE id = $4) ON CONFLICT DO NOTHING";
    let insert = query(sql).bind(at.shard).bind(at.position as i64).bind(at.part);
    Ok(insert.bind(charge).bind(record).execute(db).await? > 0)
}

/// How many there are.
pub(super) async fn count(db: &mut Connection) -> Result<u64, sqlx::Error> {
    let row = query("SELECT count(*) FROM dead_letters").fetch_one(db).await?;
    let count: i64 = row.try_get(0)?;
    Ok(count.unsigned_abs())
}
