//! SQLite or PostgreSQL behind one connection: the same statements with `$1` for values, which are
//! texts, whole numbers and bytes, and rows that are read in the same way.
//!
//! - `link`: where a database is, and a connection to it that is made again when it was lost.
//!
//! A server may fall silent; each of its answers is waited for a while only, and a connection that
//! failed so is not used again.

pub mod link;

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{
    AssertSqlSafe, ColumnIndex, Connection as _, Database, Decode, Error, Postgres, Row as _,
    SqlSafeStr, SqlStr, Sqlite, Type,
};

pub use link::{Link, LinkError, Place, Schema};

/// How long an answer of a server is waited for.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A connection to one of the two.
pub struct Connection {
    engine: Engine,
    /// An answer did not come: what comes next may be the answer to something else.
    lost: bool,
    /// A transaction was begun, and neither committed nor rolled back.
    open: bool,
}

enum Engine {
    Sqlite(SqliteConnection),
    Postgres(Box<PgConnection>),
}

/// A row of a result.
pub enum Row {
    /// Of SQLite.
    Sqlite(SqliteRow),
    /// Of PostgreSQL.
    Postgres(PgRow),
}

/// A value of a statement.
#[derive(Clone, Debug)]
pub enum Value {
    /// A text, or nothing in its place.
    Text(Option<String>),
    /// A number, or nothing in its place.
    Number(Option<i64>),
    /// Bytes, or nothing in their place.
    Bytes(Option<Vec<u8>>),
}

/// A statement with its values.
pub struct Query {
    sql: SqlStr,
    /// Its places for values are `?`, and in the order of the values.
    is_unnumbered: bool,
    values: Vec<Value>,
}

/// What is changed together. Dropped, it is rolled back before the connection is used again.
pub struct Transaction<'a>(&'a mut Connection);

/// A statement that has no values yet.
pub fn query(sql: impl SqlSafeStr) -> Query {
    Query { sql: sql.into_sql_str(), is_unnumbered: false, values: Vec::new() }
}

/// A statement that inserts rows: `into` names table and columns.
pub fn insert(
    into: &str,
    rows: impl IntoIterator<Item = impl IntoIterator<Item = Value>>,
) -> Query {
    rows_between(into, rows, "")
}

/// A statement with rows of values between what stands before them and behind them.
///
/// It has thousands of values, and SQLite looks for each numbered one among all of them.
pub fn rows_between(
    before: &str,
    rows: impl IntoIterator<Item = impl IntoIterator<Item = Value>>,
    behind: &str,
) -> Query {
    let mut sql = format!("{before} VALUES ");
    let mut values = Vec::new();
    for row in rows {
        sql.push_str(if values.is_empty() { "(" } else { ", (" });
        for (place, value) in row.into_iter().enumerate() {
            values.push(value);
            sql.push_str(if place == 0 { "?" } else { ", ?" });
        }
        sql.push(')');
    }
    sql.push_str(behind);
    // Our own text, with nothing in it but places for values.
    Query { sql: AssertSqlSafe(sql).into_sql_str(), is_unnumbered: true, values }
}

/// The same statement with `$1` and so on for `?`.
fn numbered(sql: &str) -> SqlStr {
    let mut pieces = sql.split('?');
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for (at, piece) in pieces.enumerate() {
        text.push_str(&format!("${}{piece}", at + 1));
    }
    AssertSqlSafe(text).into_sql_str()
}

impl Query {
    /// Adds the value of the next `$n`.
    #[must_use]
    pub fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// All rows.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn fetch_all(self, db: &mut Connection) -> Result<Vec<Row>, Error> {
        match &mut db.engine {
            Engine::Sqlite(engine) => {
                let rows = self.on::<Sqlite>().fetch_all(engine).await?;
                Ok(rows.into_iter().map(Row::Sqlite).collect())
            }
            Engine::Postgres(engine) => {
                let rows = self.numbered().on::<Postgres>().fetch_all(&mut **engine);
                let rows = in_time(rows, &mut db.lost).await?;
                Ok(rows.into_iter().map(Row::Postgres).collect())
            }
        }
    }

    /// The first row, if there is one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn fetch_optional(self, db: &mut Connection) -> Result<Option<Row>, Error> {
        match &mut db.engine {
            Engine::Sqlite(engine) => {
                Ok(self.on::<Sqlite>().fetch_optional(engine).await?.map(Row::Sqlite))
            }
            Engine::Postgres(engine) => {
                let row = self.numbered().on::<Postgres>().fetch_optional(&mut **engine);
                Ok(in_time(row, &mut db.lost).await?.map(Row::Postgres))
            }
        }
    }

    /// The first row.
    ///
    /// # Errors
    /// When the database fails, or there is none.
    pub async fn fetch_one(self, db: &mut Connection) -> Result<Row, Error> {
        self.fetch_optional(db).await?.ok_or(Error::RowNotFound)
    }

    /// How many rows were changed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn execute(self, db: &mut Connection) -> Result<u64, Error> {
        match &mut db.engine {
            Engine::Sqlite(engine) => {
                Ok(self.on::<Sqlite>().execute(engine).await?.rows_affected())
            }
            Engine::Postgres(engine) => {
                let done = self.numbered().on::<Postgres>().execute(&mut **engine);
                Ok(in_time(done, &mut db.lost).await?.rows_affected())
            }
        }
    }

    fn numbered(self) -> Self {
        if !self.is_unnumbered {
            return self;
        }
        Self { sql: numbered(self.sql.as_str()), is_unnumbered: false, ..self }
    }

    fn on<DB: Database>(self) -> sqlx::query::Query<'static, DB, DB::Arguments>
    where
        DB::Arguments: sqlx::IntoArguments<DB>,
        Option<String>: sqlx::Encode<'static, DB> + Type<DB>,
        Option<i64>: sqlx::Encode<'static, DB> + Type<DB>,
        Option<Vec<u8>>: sqlx::Encode<'static, DB> + Type<DB>,
    {
        self.values.into_iter().fold(sqlx::query(self.sql), |query, value| match value {
            Value::Text(text) => query.bind(text),
            Value::Number(number) => query.bind(number),
            Value::Bytes(bytes) => query.bind(bytes),
        })
    }
}

impl Row {
    /// The value of a column.
    ///
    /// # Errors
    /// Where there is no such column, or it holds something else.
    pub fn try_get<'r, T, I>(&'r self, column: I) -> Result<T, Error>
    where
        T: Decode<'r, Sqlite> + Type<Sqlite> + Decode<'r, Postgres> + Type<Postgres>,
        I: ColumnIndex<SqliteRow> + ColumnIndex<PgRow>,
    {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }
}

impl Connection {
    /// One to a file.
    pub const fn file(connection: SqliteConnection) -> Self {
        Self { engine: Engine::Sqlite(connection), lost: false, open: false }
    }

    /// One to a server.
    pub fn server(connection: PgConnection) -> Self {
        Self { engine: Engine::Postgres(Box::new(connection)), lost: false, open: false }
    }

    /// Whether others write to the same database.
    pub const fn is_shared(&self) -> bool {
        matches!(self.engine, Engine::Postgres(_))
    }

    /// Whether it is of no use any more.
    pub const fn is_lost(&self) -> bool {
        self.lost
    }

    /// Begins what is changed together.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn begin(&mut self) -> Result<Transaction<'_>, Error> {
        self.settle().await?;
        self.open = true;
        query("BEGIN").execute(self).await?;
        Ok(Transaction(self))
    }

    /// Rolls back what was begun and dropped.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn settle(&mut self) -> Result<(), Error> {
        if self.open {
            query("ROLLBACK").execute(self).await?;
            self.open = false;
        }
        Ok(())
    }

    /// Closes it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn close(mut self) -> Result<(), Error> {
        match self.engine {
            Engine::Sqlite(engine) => engine.close().await,
            Engine::Postgres(engine) => in_time(engine.close(), &mut self.lost).await,
        }
    }
}

impl Transaction<'_> {
    /// Makes it so.
    ///
    /// # Errors
    /// When the database fails: whether it was done is then not known.
    pub async fn commit(self) -> Result<(), Error> {
        query("COMMIT").execute(self.0).await?;
        self.0.open = false;
        Ok(())
    }
}

impl Deref for Transaction<'_> {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        self.0
    }
}

impl DerefMut for Transaction<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        self.0
    }
}

/// What a server answers, if it does so in time. Any failure but a refusal of the statement itself
/// ends the connection.
pub async fn in_time<T>(
    answer: impl Future<Output = Result<T, Error>>,
    lost: &mut bool,
) -> Result<T, Error> {
    // Whoever drops this leaves an answer behind that nobody reads.
    let before = std::mem::replace(lost, true);
    let answer = tokio::time::timeout(PATIENCE, answer).await;
    let answer = answer.unwrap_or_else(|_| Err(Error::Io(std::io::ErrorKind::TimedOut.into())));
    *lost = before
        || answer.as_ref().is_err_and(|error| match error {
            // Class 57: an administrator ends sessions, or the server is on its way down or up.
            Error::Database(error) => error.code().is_some_and(|code| code.starts_with("57")),
            Error::RowNotFound | Error::ColumnNotFound(_) | Error::ColumnDecode { .. } => false,
            _ => true,
        });
    answer
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(Some(text.to_owned()))
    }
}

impl From<&String> for Value {
    fn from(text: &String) -> Self {
        Self::Text(Some(text.clone()))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}

impl From<Option<&str>> for Value {
    fn from(text: Option<&str>) -> Self {
        Self::Text(text.map(str::to_owned))
    }
}

impl From<Option<String>> for Value {
    fn from(text: Option<String>) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(Some(number))
    }
}

impl From<Option<i64>> for Value {
    fn from(number: Option<i64>) -> Self {
        Self::Number(number)
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(Some(bytes.to_vec()))
    }
}

impl From<&Vec<u8>> for Value {
    fn from(bytes: &Vec<u8>) -> Self {
        Self::Bytes(Some(bytes.clone()))
    }
}

impl From<&Option<Vec<u8>>> for Value {
    fn from(bytes: &Option<Vec<u8>>) -> Self {
        Self::Bytes(bytes.clone())
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(Some(bytes))
    }
}
