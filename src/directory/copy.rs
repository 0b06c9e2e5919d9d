//! A directory into another database, with all that it knows.

use super::store::{self, StoreError};
use crate::sql::{Connection, LinkError, Place, Query, Row, Value, insert, query};

/// Every table but `directory` itself and `books` (a copy has none yet): its name, how many of its
/// columns are its key, and the columns; `#` marks numbers.
const TABLES: &[(&str, usize, &str)] = &[
    (
        "org",
        1,
        "id version# contract products offers bases overage split mode on_reassign pool_limit#",
    ),
    ("era", 2, "org place# starts_at anchor zone"),
    ("term", 2, "org id made_by start_on end_on pool# price_per_operation currency"),
    ("plan", 2, "org id made_by credits#"),
    ("org_group", 2, "org id made_by"),
    ("org_user", 2, "org id made_by email suspended# pool_limit#"),
    ("licence", 2, "org id made_by plan holder priority# expires moved"),
    ("group_member", 3, "org user_id group_id"),
    ("profile", 2, "org id made_by product shared_credits# pool_limit# overage"),
    ("profile_group", 3, "org profile_id group_id"),
    ("profile_user", 3, "org user_id profile_id"),
    ("rate_card", 2, "org id made_by card"),
    ("org_key", 2, "org id made_by kind pool_limit#"),
    ("key_secret", 1, "hash org key_id expires"),
    ("audit_entry", 1, "seq# org version# who at kind thing line before_change after_change"),
    ("admin_token", 1, "id hash role org profiles created_at created_by expires"),
    ("idempotency", 2, "token once_key fingerprint operation answer at"),
];

/// How many rows are read and written at once.
const PAGE: usize = 500;

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Orgs.
    pub orgs: usize,
    /// Rows, of everything.
    pub rows: usize,
    /// The epoch of the copy (D42).
    pub epoch: u32,
}

/// Why nothing was copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// One of the databases failed.
    #[error("{0}: {1}")]
    Store(&'static str, #[source] StoreError),
    /// There is no directory to copy.
    #[error("--from: there is no file {0}")]
    Absent(String),
    /// There is one already where the copy should go.
    #[error("--to: there is a directory already ({0} has rows); a copy needs an empty database")]
    NotEmpty(&'static str),
}

/// Copies a directory as it is at one moment, whole or not at all. The copy has a higher epoch, so
/// that its grants count as newer than those that the books have from the first one (D42).
///
/// # Errors
/// Where there is nothing to copy, where the copy would not be alone, and when a database fails.
pub async fn copy(from: Place, to: Place) -> Result<Copied, CopyError> {
    if let Place::File(file) = &from
        && !file.is_file()
    {
        return Err(CopyError::Absent(file.display().to_string()));
    }
    let of = |error: LinkError| CopyError::Store("--from", error.into());
    let on = |error: LinkError| CopyError::Store("--to", error.into());
    let (mut from, mut to) = (store::link(from, false), store::link(to, false));
    let mut source = from.begin_to_read().await.map_err(of)?;
    let mut target = to.begin().await.map_err(on)?;
    for (table, ..) in TABLES {
        let any = statement(format!("SELECT 1 FROM {table} LIMIT 1"));
        if any.fetch_optional(&mut target).await.map_err(|error| on(error.into()))?.is_some() {
            return Err(CopyError::NotEmpty(table));
        }
    }
    let at = store::position(&mut source).await;
    let at = at.map_err(|error| CopyError::Store("--from", error))?;
    let empty = store::position(&mut target).await;
    let empty = empty.map_err(|error| CopyError::Store("--to", error))?;
    let mut copied = Copied { epoch: at.epoch.max(empty.epoch) + 1, ..Copied::default() };
    for (table, keys, columns) in TABLES {
        let mut last: Option<Vec<Value>> = None;
        loop {
            let rows = page(&mut source, table, *keys, columns, last.as_deref()).await;
            let rows = rows.map_err(|error| of(error.into()))?;
            let Some(end) = rows.last() else { break };
            last = Some(end[..*keys].to_vec());
            copied.rows += rows.len();
            copied.orgs += if *table == "org" { rows.len() } else { 0 };
            let into = format!("INSERT INTO {table} ({})", names(columns).join(", "));
            let done = insert(&into, rows).execute(&mut target).await;
            done.map_err(|error| on(error.into()))?;
        }
    }
    let state = query("UPDATE directory SET epoch = $1, audit_seq = $2");
    let state = state.bind(i64::from(copied.epoch)).bind(at.seq).execute(&mut target).await;
    state.map_err(|error| on(error.into()))?;
    target.commit().await.map_err(|error| on(error.into()))?;
    source.commit().await.map_err(|error| of(error.into()))?;
    from.close().await.map_err(of)?;
    to.close().await.map_err(on)?;
    Ok(copied)
}

/// The rows behind the one with the key `last`.
async fn page(
    db: &mut Connection,
    table: &str,
    keys: usize,
    columns: &str,
    last: Option<&[Value]>,
) -> Result<Vec<Vec<Value>>, sqlx::Error> {
    let names = names(columns);
    let key = names[..keys].join(", ");
    let places: Vec<String> = (1..=keys).map(|number| format!("${number}")).collect();
    let behind =
        last.map_or_else(String::new, |_| format!("WHERE ({key}) > ({})", places.join(", ")));
    let names = names.join(", ");
    let sql = format!("SELECT {names} FROM {table} {behind} ORDER BY {key} LIMIT {PAGE}");
    let query = last.unwrap_or_default().iter().cloned().fold(statement(sql), Query::bind);
    query.fetch_all(db).await?.iter().map(|row| values(row, columns)).collect()
}

/// Our own text: the names above, with places for values.
fn statement(sql: String) -> Query {
    query(sqlx::AssertSqlSafe(sql))
}

fn names(columns: &str) -> Vec<&str> {
    columns.split(' ').map(|column| column.trim_end_matches('#')).collect()
}

fn values(row: &Row, columns: &str) -> Result<Vec<Value>, sqlx::Error> {
    let value = |column: &str| match column.strip_suffix('#') {
        Some(name) => Ok(Value::Number(row.try_get(name)?)),
        None => Ok(Value::Text(row.try_get(column)?)),
    };
    columns.split(' ').map(value).collect()
}

#[cfg(test)]
pub mod tests {
    //! What is copied, and whether it is all.

    use super::*;

    /// All that the tables above hold, in one order.
    pub async fn everything(place: Place) -> Vec<(&'static str, Vec<String>)> {
        let mut link = store::link(place, false);
        let db = link.connection().await.unwrap();
        let mut all = Vec::new();
        for (table, keys, columns) in TABLES {
            let (mut last, mut rows) = (None::<Vec<Value>>, Vec::new());
            loop {
                let page = page(db, table, *keys, columns, last.as_deref()).await.unwrap();
                let Some(end) = page.last() else { break };
                last = Some(end[..*keys].to_vec());
                rows.extend(page.iter().map(|row| format!("{row:?}")));
            }
            all.push((*table, rows));
        }
        all
    }

    #[tokio::test]
    async fn every_column_of_every_table_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let mut link = store::link(Place::in_data_dir(dir.path()), false);
        let db = link.connection().await.unwrap();
        let sql = "SELECT t.name AS name, \
                   group_concat(c.name || CASE c.type WHEN 'BIGINT' THEN '#' ELSE '' END, ' ') \
                   AS columns, SUM(c.pk > 0) AS keys \
                   FROM sqlite_schema AS t, pragma_table_info(t.name) AS c \
                   WHERE t.type = 'table' AND t.name NOT IN ('_sqlx_migrations', 'directory', 'books') \
                   GROUP BY t.name ORDER BY t.name";
        let mut copied = TABLES.to_vec();
        copied.sort_unstable();
        for (row, (table, keys, columns)) in
            query(sql).fetch_all(db).await.unwrap().iter().zip(&copied)
        {
            assert_eq!(row.try_get::<&str, _>("name").unwrap(), *table);
            assert_eq!(row.try_get::<&str, _>("columns").unwrap(), *columns, "{table}");
            assert_eq!(row.try_get::<i64, _>("keys").unwrap(), *keys as i64, "{table}");
        }
        let tables = query(sql).fetch_all(db).await.unwrap();
        assert_eq!(tables.len(), copied.len());
    }
}
