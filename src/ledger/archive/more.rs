//! What is archived of books in Redis besides their records, so that they can be built again: whose a
//! hold is, what is known of its use, its names; keys of adjustments; what other books carried there;
//! and which calls of each session are archived.

use std::collections::HashMap;

use serde::Serialize;

use super::At;
use super::batch::chunks;
use crate::books::KEPT_KEYS;
use crate::books::redis::ledger::{End, Entry, More, Name};
use crate::books::redis::rebuild::Open;
use crate::sql::{Connection, Value, query, rows_between};

/// What is said with a record.
pub(super) struct Said<'a> {
    session: &'a str,
    /// It is done again, because Redis had lost it.
    again: bool,
    pub(super) more: Option<&'a More>,
}

impl<'a> Said<'a> {
    /// With one of the records of an entry.
    pub(super) fn new(entry: &'a Entry<'_>, part: usize) -> Self {
        let more = entry.more.iter().find(|(at, _)| *at == part).map(|(_, more)| more);
        Self { session: entry.session, again: entry.before.is_some(), more }
    }

    /// What there is to a hold besides its record.
    pub(super) fn open(&self) -> Open {
        Open::of(self.session, self.more)
    }

    /// What is to be remembered of an end: whoever held the charge may still do that again, and its key
    /// may be another one's.
    pub(super) fn ended(&self) -> Option<Open> {
        let End { remembered, has_key } = match self.more {
            Some(More::End(end)) => *end,
            _ => End::default(),
        };
        let remembered = remembered || self.again;
        let open = || Open { has_key, remembered, ..Open::default() };
        (remembered || has_key.is_some()).then(open)
    }

    /// The names that are given to a charge.
    pub(super) fn names(&self) -> Option<Vec<Name>> {
        match self.more {
            Some(More::Names(names)) => Some(names.clone()),
            _ => None,
        }
    }
}

/// What was kept of an open charge.
pub(super) fn open(bytes: &[u8]) -> Option<Open> {
    postcard::from_bytes(bytes).ok()
}

/// The bytes of what is kept.
pub(super) fn encode(what: &impl Serialize) -> Vec<u8> {
    // Plain structures always encode.
    postcard::to_allocvec(what).unwrap_or_default()
}

/// The number of the books of an epoch.
pub(super) async fn number_of(db: &mut Connection, epoch: &str) -> Result<i64, sqlx::Error> {
    let mut transaction = db.begin().await?;
    let is_there = async |db: &mut Connection, sql: &'static str| {
        Ok::<_, sqlx::Error>(query(sql).fetch_optional(db).await?.is_some())
    };
    // An archive that was begun by a build that did not write it down.
    let others = is_there(&mut transaction, "SELECT 1 FROM archived_books LIMIT 1").await?;
    let sql = "SELECT 1 FROM shards WHERE position > 0 LIMIT 1";
    let sure = others || !is_there(&mut transaction, sql).await?;
    let insert = "INSERT INTO archived_books (epoch, sure) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    query(insert).bind(epoch).bind(i64::from(sure)).execute(&mut transaction).await?;
    let select = query("SELECT number FROM archived_books WHERE epoch = $1").bind(epoch);
    let number = select.fetch_one(&mut transaction).await?.try_get(0)?;
    transaction.commit().await?;
    Ok(number)
}

pub(super) async fn write_carried(
    db: &mut Connection,
    books: i64,
    carried: &[(At, Vec<u8>)],
) -> Result<(), sqlx::Error> {
    for (at, record) in carried {
        let sql = "INSERT INTO carried (books, shard, position, part, record) \
                   VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
        let insert = query(sql).bind(books).bind(at.shard).bind(at.position as i64);
        insert.bind(at.part).bind(record).execute(&mut *db).await?;
    }
    Ok(())
}

/// The last calls of sessions in one shard.
pub(super) type Sessions = HashMap<String, u64>;

/// Writes down which calls are archived by now, and forgets sessions that made none for as long as
/// anything is remembered.
pub(super) async fn write_sessions(
    db: &mut Connection,
    shard: usize,
    sessions: &Sessions,
    at: i64,
) -> Result<(), sqlx::Error> {
    let rows: Vec<_> = sessions.iter().collect();
    for some in chunks(&rows) {
        let values = some.iter().map(|(session, number)| {
            let (shard, number) = (Value::from(shard as i64), Value::from(**number as i64));
            [shard, (*session).into(), number, at.into()]
        });
        let into = "INSERT INTO shard_sessions (shard, session, number, at)";
        // What is done again has the numbers that it had.
        let behind = " ON CONFLICT (shard, session) DO UPDATE SET at = \
                      CASE WHEN excluded.at > shard_sessions.at \
                      THEN excluded.at ELSE shard_sessions.at END, number = \
                      CASE WHEN excluded.number > shard_sessions.number \
                      THEN excluded.number ELSE shard_sessions.number END";
        rows_between(into, values, behind).execute(&mut *db).await?;
    }
    if at > 0 {
        let before = at.saturating_sub(KEPT_KEYS.as_micros() as i64);
        let delete = query("DELETE FROM shard_sessions WHERE shard = $1 AND at < $2");
        delete.bind(shard as i64).bind(before).execute(db).await?;
    }
    Ok(())
}
