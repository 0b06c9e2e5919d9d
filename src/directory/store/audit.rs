//! The audit: who changed what, and when, in the order of the changes.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{BATCH, StoreError, load};
use crate::core::ids::Id;
use crate::sql::{self, Connection, query};

/// One changed thing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// Its place in the order of all changes.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// The name of whoever asked.
    pub who: String,
    /// What kind of thing it is.
    pub kind: String,
    /// Which.
    pub id: String,
    /// The change in one line.
    pub line: String,
    /// Its values before; `null` for what is new.
    pub before: Option<Value>,
    /// Its values after; `null` for what is removed.
    pub after: Option<Value>,
    /// The version of the org that the change made, if it made one.
    pub version: Option<u64>,
}

/// Which entries are wanted.
#[derive(Clone, Debug, Default)]
pub struct AuditQuery {
    /// Only those before this place: where a page ended.
    pub before: Option<u64>,
    /// At most so many.
    pub limit: usize,
    /// Only this kind of thing.
    pub kind: Option<String>,
    /// Only the thing with this id.
    pub id: Option<String>,
    /// Only what this one did.
    pub who: Option<String>,
    /// From when (included).
    pub from: Option<Timestamp>,
    /// Until when (excluded).
    pub to: Option<Timestamp>,
}

/// Entries, newest first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AuditPage {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Where the next page begins; `None` at the end. A page may be short and not the last: it
    /// looks at a bounded number of rows.
    pub next: Option<u64>,
}

/// An entry that is to be written.
#[derive(Clone)]
pub struct Line {
    /// What kind of thing it is.
    pub kind: &'static str,
    /// Which.
    pub id: String,
    /// The change in one line.
    pub line: String,
    /// Its values before, as JSON.
    pub before: Option<String>,
    /// Its values after, as JSON.
    pub after: Option<String>,
}

/// Who made entries, when, and in which org.
pub struct Origin<'a> {
    /// The org's id, or empty for what belongs to none.
    pub org: &'a str,
    /// The version that they made.
    pub version: Option<i64>,
    /// The name of whoever asked.
    pub who: &'a str,
    /// When.
    pub at: Timestamp,
}

/// How many rows one page looks at.
const WINDOW: i64 = 10_000;

/// Writes an entry for each of `things`. The caller commits.
///
/// # Errors
/// When the database fails.
pub async fn write_lines<T>(
    db: &mut Connection,
    origin: &Origin<'_>,
    things: &[T],
    line: fn(&T) -> Line,
) -> Result<(), StoreError> {
    let count = i64::try_from(things.len()).unwrap_or(i64::MAX);
    let sql = "UPDATE directory SET audit_seq = audit_seq + $1 RETURNING audit_seq";
    let last: i64 = query(sql).bind(count).fetch_one(&mut *db).await?.try_get(0)?;
    let at = instant(origin.at);
    let mut seq = last - count;
    for things in things.chunks(BATCH) {
        let into = "INSERT INTO audit_entry (seq, org, version, who, at, kind, thing, line, \
                    before_change, after_change)";
        let rows = things.iter().map(|thing| {
            seq += 1;
            let line = line(thing);
            [
                seq.into(),
                origin.org.into(),
                origin.version.into(),
                origin.who.into(),
                at.as_str().into(),
                line.kind.into(),
                line.id.into(),
                line.line.into(),
                line.before.into(),
                line.after.into(),
            ]
        });
        sql::insert(into, rows).execute(&mut *db).await?;
    }
    Ok(())
}

/// A page of the entries of an org; of what belongs to none where `org` is empty.
///
/// # Errors
/// When the database fails, or holds what cannot be read.
pub async fn page(
    db: &mut Connection,
    org: &str,
    query: &AuditQuery,
) -> Result<AuditPage, StoreError> {
    let before = query.before.and_then(|seq| i64::try_from(seq).ok()).unwrap_or(i64::MAX);
    // The first row beyond the window: what the page looks at is between the two.
    let sql = "SELECT seq FROM audit_entry WHERE org = $1 AND seq < $2 \
               ORDER BY seq DESC LIMIT 1 OFFSET $3";
    let beyond = sql::query(sql).bind(org).bind(before).bind(WINDOW).fetch_optional(&mut *db);
    let beyond: Option<i64> = beyond.await?.map(|row| row.try_get(0)).transpose()?;
    let sql = "SELECT * FROM audit_entry WHERE org = $1 AND seq < $2 AND seq > $3 \
               AND ($4 IS NULL OR kind = $4) AND ($5 IS NULL OR thing = $5) \
               AND ($6 IS NULL OR who = $6) AND ($7 IS NULL OR at >= $7) \
               AND ($8 IS NULL OR at < $8) ORDER BY seq DESC LIMIT $9";
    let wanted = i64::try_from(query.limit).unwrap_or(i64::MAX - 1);
    let rows = sql::query(sql)
        .bind(org)
        .bind(before)
        .bind(beyond.unwrap_or(0))
        .bind(query.kind.as_deref())
        .bind(query.id.as_deref())
        .bind(query.who.as_deref())
        .bind(query.from.map(instant))
        .bind(query.to.map(instant))
        .bind(wanted + 1)
        .fetch_all(&mut *db)
        .await?;
    let more = rows.len() > query.limit;
    let entries: Result<Vec<Entry>, StoreError> =
        rows.iter().take(query.limit).map(entry).collect();
    let entries = entries?;
    let next = match entries.last() {
        Some(last) if more => Some(last.seq),
        _ => beyond.and_then(|seq| u64::try_from(seq).ok()?.checked_add(1)),
    };
    Ok(AuditPage { entries, next })
}

/// The entries after `seen` up to `last` with their orgs, oldest first; `None` where there are too
/// many to look at.
///
/// # Errors
/// As [`page`].
pub async fn between(
    db: &mut Connection,
    seen: i64,
    last: i64,
) -> Result<Option<Vec<(String, Entry)>>, StoreError> {
    if last - seen > WINDOW {
        return Ok(None);
    }
    let sql = "SELECT * FROM audit_entry WHERE seq > $1 AND seq <= $2 ORDER BY seq";
    let rows = query(sql).bind(seen).bind(last).fetch_all(db).await?;
    let entries: Result<Vec<_>, StoreError> =
        rows.iter().map(|row| Ok((row.try_get("org")?, entry(row)?))).collect();
    let entries = entries?;
    // One that is missing may have named anything.
    Ok((i64::try_from(entries.len()) == Ok(last - seen)).then_some(entries))
}

fn entry(row: &sql::Row) -> Result<Entry, StoreError> {
    let number = |value: i64| {
        u64::try_from(value).map_err(|_| StoreError::Damaged(format!("audit entry {value}")))
    };
    let values = |column: &str| -> Result<Option<Value>, StoreError> {
        let text: Option<String> = row.try_get(column)?;
        text.map(|_| load::json(row, column)).transpose()
    };
    Ok(Entry {
        seq: number(row.try_get("seq")?)?,
        at: load::parsed(row, "at")?,
        who: row.try_get("who")?,
        kind: row.try_get("kind")?,
        id: row.try_get("thing")?,
        line: row.try_get("line")?,
        before: values("before_change")?,
        after: values("after_change")?,
        version: row.try_get::<Option<i64>, _>("version")?.map(number).transpose()?,
    })
}

/// An instant as a text of one length, so that texts sort as instants do.
pub fn instant(at: Timestamp) -> String {
    format!("{at:.6}")
}

/// The org of an entry as it is stored.
pub fn org_text(org: Option<&Id>) -> &str {
    org.map_or("", Id::as_str)
}
