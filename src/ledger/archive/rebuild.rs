//! Where the archive goes on at a start, and how it is built again when it and the journal do not
//! fit each other.

use std::collections::HashSet;
use std::path::Path;

use super::adjustments::own_id;
use super::{ArchiveError, At, Batch, write};
use crate::books::journal::{Cursor, Damage, Next, Segments};
use crate::books::snapshot;
use crate::core::account::Grant;
use crate::core::record::{Hold, Lasting, Record, instant};
use crate::sql::{Connection, query};

/// The position to archive from, when the journal was recovered up to `recovered`.
pub(super) async fn start(
    db: &mut Connection,
    journal: &Path,
    recovered: u64,
) -> Result<u64, ArchiveError> {
    let select = query("SELECT position, begins FROM progress WHERE id = 1");
    let row = select.fetch_one(&mut *db).await?;
    let (position, begins): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    let (position, first) = (position as u64, first(journal)?);
    if position > recovered || (position >= first && is_inside(journal, position, recovered)?) {
        return rewind(db, journal).await;
    }
    if position < first {
        begin_later(db, journal, position, first).await?;
        return Ok(first);
    }
    if begins > 0 {
        tracing::warn!(
            position = begins,
            "the archive was once built again without the journal's beginning: charges from \
             before this position may not be found"
        );
    }
    Ok(position)
}

/// True when no record of the journal begins at `position`, though there are more behind it: the
/// journal lost what the archive knows, and was written again before the archive saw that, by a
/// start that did not come to it.
fn is_inside(journal: &Path, position: u64, recovered: u64) -> Result<bool, Damage> {
    if position == recovered {
        return Ok(false);
    }
    match Cursor::new(journal, position).next() {
        Ok(next) => Ok(next == Next::End),
        Err(error @ (Damage::Io { .. } | Damage::Newer { .. })) => Err(error),
        // If it is damage, building it again finds it too, before anything is deleted.
        Err(_) => Ok(true),
    }
}

/// The position at which the journal begins.
fn first(journal: &Path) -> Result<u64, Damage> {
    let io = |error| Damage::Io { path: journal.to_owned(), error };
    let segments = Segments::list(journal).map_err(io)?;
    Ok(segments.as_slice().first().map_or(0, |segment| segment.start))
}

/// The archive was removed, or is older than the oldest segment: what stood in between is kept
/// nowhere else. It is built again from what there is: the oldest snapshot names the accounts and
/// has the charges that were open, the journal has the rest.
async fn begin_later(
    db: &mut Connection,
    journal: &Path,
    position: u64,
    first: u64,
) -> Result<(), ArchiveError> {
    let mut cursor = Cursor::new(journal, first);
    let since = match cursor.next()? {
        Next::Record => Record::decode(&cursor.record).ok().and_then(|record| record.at()),
        Next::End => None,
    };
    tracing::error!(
        from = position,
        to = first,
        since = since.map(|at| instant(at).to_string()),
        "the archive lacks what the journal has deleted: it is built again from what there is; \
         charges settled before that are not found any more, balances lose nothing"
    );
    let mut batch = Batch::default();
    let io = |error| Damage::Io { path: journal.to_owned(), error };
    let snapshots = snapshot::list(journal).map_err(io)?;
    let mut bases = snapshots.iter().filter(|(at, _)| *at >= first);
    if let Some(fold) = bases.find_map(|(_, path)| snapshot::read(path).ok()) {
        for (key, account) in fold.accounts {
            let grant = Grant { base: account.balance.base, version: account.version };
            batch.open(key, &account.name, grant);
        }
        for (charge, hold) in &fold.holds {
            let record = Record::Lasting(Lasting {
                hold: Hold {
                    charge: *charge,
                    at: hold.at,
                    in_doubt: hold.in_doubt,
                    openings: Default::default(),
                    legs: hold.legs.clone(),
                    memo: &hold.memo,
                },
                expires: hold.expires,
                once: hold.once,
                note: &hold.note,
            });
            let mut bytes = Vec::new();
            record
                .encode(&mut bytes)
                .map_err(|error| ArchiveError::Unreadable(format!("an open hold: {error}")))?;
            batch.add(&record, &bytes, At::journal(first));
        }
    }
    // First what is told at every start, should this one die in between.
    let update = query("UPDATE progress SET begins = $1 WHERE id = 1").bind(first as i64);
    update.execute(&mut *db).await?;
    write(db, &batch, first).await?;
    Ok(())
}

/// Begins again: a power failure or a repair has taken records from the journal that are archived
/// already. Returns the position to archive from.
async fn rewind(db: &mut Connection, journal: &Path) -> Result<u64, ArchiveError> {
    let first = first(journal)?;
    tracing::warn!(from = first, "the archive knows of more than the journal: it is built again");
    let Found { newest_hold, adjustments, moved } = Found::read(journal, first)?;
    let mut transaction = db.begin().await?;
    if first == 0 && moved.is_none() {
        query("DELETE FROM charges").execute(&mut transaction).await?;
        query("DELETE FROM accounts").execute(&mut transaction).await?;
        query("DELETE FROM dead_letters").execute(&mut transaction).await?;
        query("DELETE FROM answers").execute(&mut transaction).await?;
    } else {
        // What was before is kept nowhere else. Ids grow with time: what is newer than the newest
        // hold is not in the journal.
        let delete = query("DELETE FROM charges WHERE id > $1").bind(&newest_hold[..]);
        delete.execute(&mut transaction).await?;
        let delete = query("DELETE FROM answers WHERE charge > $1").bind(&newest_hold[..]);
        delete.execute(&mut transaction).await?;
        let delete =
            query("DELETE FROM dead_letters WHERE position > $1 AND shard = -1").bind(first as i64);
        delete.execute(&mut transaction).await?;
    }
    // An adjustment must not be said to be made that the balances do not have. Not all are made
    // anew, as charges are: lists go by their places. Before the journal's beginning it lost none.
    let sql = "SELECT id, record FROM adjustments WHERE position > $1 OR $1 = 0";
    let select = query(sql);
    let mut lost = 0;
    for row in select.bind(first as i64).fetch_all(&mut transaction).await? {
        let (id, record): (Vec<u8>, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        let at = Record::decode(&record).ok().and_then(|record| record.at());
        if !adjustments.contains(&id) && moved <= at {
            let delete = query("DELETE FROM adjustments WHERE id = $1").bind(id);
            lost += delete.execute(&mut transaction).await?;
        }
    }
    if lost > 0 {
        tracing::warn!(lost, "adjustments that the journal lost are not shown any more");
    }
    let update = query("UPDATE progress SET position = $1, begins = min(begins, $1) WHERE id = 1");
    update.bind(first as i64).execute(&mut transaction).await?;
    transaction.commit().await?;
    Ok(first)
}

/// What of a journal tells what it lost.
#[derive(Default)]
struct Found {
    newest_hold: [u8; 16],
    /// Ids.
    adjustments: HashSet<Vec<u8>>,
    /// When its books came from others, if they did: what is older is in the archive only.
    moved: Option<i64>,
}

impl Found {
    fn read(journal: &Path, from: u64) -> Result<Self, Damage> {
        let mut cursor = Cursor::new(journal, from);
        let mut found = Self::default();
        while cursor.next()? == Next::Record {
            match Record::decode(&cursor.record) {
                Ok(Record::Hold(hold) | Record::Lasting(Lasting { hold, .. })) => {
                    found.newest_hold = found.newest_hold.max(hold.charge);
                }
                Ok(Record::Carried(carried)) => {
                    found.moved = Some(carried.at);
                    found.newest_hold = found.newest_hold.max(last_id_before(carried.at));
                }
                Ok(Record::Adjust(adjust)) => {
                    found.adjustments.extend(own_id(adjust.memo).map(Vec::from));
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

/// The last id that a charge can have which was held before an instant.
fn last_id_before(at: i64) -> [u8; 16] {
    let millis = u64::try_from(at / 1_000).unwrap_or(0).to_be_bytes();
    let mut id = [0; 16];
    id[..6].copy_from_slice(&millis[2..]);
    id
}

/// How many records there are from a position on.
pub(super) fn count(journal: &Path, position: u64) -> Result<u64, Damage> {
    let mut cursor = Cursor::new(journal, position);
    let mut records = 0;
    while cursor.next()? == Next::Record {
        records += 1;
    }
    Ok(records)
}
