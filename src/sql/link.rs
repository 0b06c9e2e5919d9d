//! Where a database is, and a connection to it that is made again when it was lost.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};
use sqlx::migrate::{Migration, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, SqlSafeStr};

use super::{Connection, PATIENCE, Transaction, in_time, query};

/// Where a database is.
#[derive(Clone, Debug)]
pub enum Place {
    /// In a file of SQLite.
    File(PathBuf),
    /// In a database of a PostgreSQL server, by URL. The URL may hold a password.
    Server(SecretString),
}

/// What a store keeps in a database. Several stores may share one of a server.
pub struct Schema {
    /// Its tables, for SQLite; for PostgreSQL the words that differ are replaced.
    pub migrations: &'static Migrator,
    /// The table in which a server notes what was done of them.
    pub noted_in: &'static str,
    /// How much of it a power failure may take from a file.
    pub synchronous: SqliteSynchronous,
    /// What the threads of a file's connections are called, before a number.
    pub threads: &'static str,
    /// Who changes it on a server holds this lock to the end of the transaction, so that there is
    /// one writer however many gateways there are.
    pub writer: Option<i64>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The database failed.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error(transparent)]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The server was asked a moment ago, and did not answer.
    #[error("{0}")]
    Away(String),
}

/// A connection for changes or for reading, made when it is needed.
pub struct Link {
    place: Place,
    schema: &'static Schema,
    reads_only: bool,
    connection: Option<Connection>,
    /// Whether there was one before: the schema was up to date then.
    was_there: bool,
    /// When a server did not answer, and what was told then.
    away: Option<(Instant, String)>,
}

/// How many rows the database's thread reads ahead of whoever asked: with few of them the two
/// threads wake each other all the time when an org is read.
const AHEAD: usize = 4096;

/// For how long a server that did not answer is not asked again: everybody who waited for their
/// turn meanwhile is told at once, and not one after the other.
const REST: Duration = Duration::from_secs(1);

/// What the URL of a server may say behind a `?`.
const PARAMETERS: [&str; 9] =
    ["sslmode", "sslrootcert", "sslcert", "sslkey", "host", "port", "user", "password", "dbname"];
const NO_URL: &str = "the URL is not understood: expected one like \
                      postgres://user:password@host:5432/database?sslmode=verify-full";

impl Place {
    /// A connection, with a schema that is up to date unless it is only read from. The first one may
    /// take as long as that takes.
    async fn connect(
        &self,
        of: &Schema,
        reads_only: bool,
        is_first: bool,
    ) -> Result<Connection, LinkError> {
        match self {
            Self::File(file) => {
                let threads = of.threads;
                let mut options = SqliteConnectOptions::new()
                    .filename(file)
                    .thread_name(move |number| format!("{threads}-{number}"))
                    .disable_statement_logging();
                if reads_only {
                    let options = options.read_only(true);
                    return Ok(Connection::file(options.connect().await?));
                }
                options = options
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(of.synchronous)
                    .row_buffer_size(AHEAD);
                let mut connection = options.connect().await?;
                of.migrations.run_direct(None, &mut connection, false).await?;
                Ok(Connection::file(connection))
            }
            Self::Server(_) => {
                let connect = async { self.server()?.connect().await };
                let mut connection = in_time(connect, &mut false).await?;
                // Else it tells at every start that the tables are there.
                let quiet = sqlx::query("SET client_min_messages = warning");
                in_time(quiet.execute(&mut connection), &mut false).await?;
                if !reads_only {
                    let migrator = on_a_server(of);
                    let migrating = migrator.run_direct(None, &mut connection, false);
                    let patience = if is_first { Duration::MAX } else { PATIENCE };
                    let migrated = tokio::time::timeout(patience, migrating).await;
                    migrated
                        .map_err(|_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))??;
                }
                let mut connection = Connection::server(connection);
                // A gateway that stands still in the middle of a change must not keep the others
                // from theirs.
                let sql = "SET idle_in_transaction_session_timeout = '60s'";
                query(sql).execute(&mut connection).await?;
                Ok(connection)
            }
        }
    }

    /// How to reach the server.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn server(&self) -> Result<PgConnectOptions, sqlx::Error> {
        let Self::Server(url) = self else {
            return Err(sqlx::Error::Configuration("no server".into()));
        };
        let url = url.expose_secret();
        let wrong = |what: String| sqlx::Error::Configuration(what.into());
        let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
        let mut names =
            parameters.split('&').map(|pair| pair.split('=').next().unwrap_or_default());
        // One that is misspelt is otherwise only warned of, with its value.
        if let Some(name) = names.find(|name| !name.is_empty() && !PARAMETERS.contains(name)) {
            return Err(wrong(format!("the URL has the unknown parameter {name}")));
        }
        // Of a text that is no URL nothing is shown: it may hold the password anywhere.
        let options: PgConnectOptions = url.parse().map_err(|_| wrong(NO_URL.to_owned()))?;
        Ok(options.application_name("tollgate").disable_statement_logging())
    }
}

impl std::str::FromStr for Place {
    type Err = &'static str;
    /// `sqlite:FILE`, or the URL of a database.
    fn from_str(text: &str) -> Result<Self, &'static str> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Ok(Self::Server(text.into()));
        }
        let file = text.strip_prefix("sqlite:").filter(|file| !file.is_empty());
        file.map(|file| Self::File(file.into())).ok_or("expected sqlite:FILE or postgres://…")
    }
}

/// The words of the migrations that PostgreSQL has others for. Its texts are compared byte by byte,
/// as SQLite and Rust do, whatever the database's language: what an id sorts before must not depend
/// on where it is kept.
const WORDS: [(&str, &str); 4] = [
    (" TEXT", " TEXT COLLATE \"C\""),
    (" BLOB", " BYTEA"),
    (" INTEGER PRIMARY KEY AUTOINCREMENT", " BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"),
    (" INTEGER", " BIGINT"),
];

/// The same migrations for PostgreSQL.
fn on_a_server(schema: &Schema) -> Migrator {
    let migration = |of: &Migration| {
        let mut sql = of.sql.as_str().to_owned();
        for (word, other) in WORDS {
            sql = sql.replace(word, other);
        }
        let sql = AssertSqlSafe(sql).into_sql_str();
        Migration::new(of.version, of.description.clone(), of.migration_type, sql, of.no_tx)
    };
    let migrations: Vec<Migration> = schema.migrations.iter().map(migration).collect();
    Migrator {
        migrations: Cow::Owned(migrations),
        table_name: Cow::Borrowed(schema.noted_in),
        ..Migrator::DEFAULT
    }
}

impl Link {
    /// A link that is not made yet.
    pub const fn new(place: Place, schema: &'static Schema, reads_only: bool) -> Self {
        Self { place, schema, reads_only, connection: None, was_there: false, away: None }
    }

    /// Whether others write to the same database.
    pub const fn is_shared(&self) -> bool {
        matches!(self.place, Place::Server(_))
    }

    /// The connection, made again where it was lost.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn connection(&mut self) -> Result<&mut Connection, LinkError> {
        if let Some(mut connection) = self.connection.take() {
            // What is wrong with it is told by the one that is made instead.
            let settled = connection.settle().await.is_ok();
            if settled && !connection.is_lost() {
                return Ok(self.connection.insert(connection));
            }
        }
        if let Some((when, told)) = &self.away
            && when.elapsed() < REST
        {
            return Err(LinkError::Away(told.clone()));
        }
        match self.place.connect(self.schema, self.reads_only, !self.was_there).await {
            Ok(connection) => {
                (self.away, self.was_there) = (None, true);
                Ok(self.connection.insert(connection))
            }
            Err(error) => {
                self.away = Some((Instant::now(), error.to_string()));
                Err(error)
            }
        }
    }

    /// Begins what is read together.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn begin_to_read(&mut self) -> Result<Transaction<'_>, LinkError> {
        let shared = self.is_shared();
        let mut transaction = self.ready().await?.begin().await?;
        if shared {
            let sql = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY";
            query(sql).execute(&mut transaction).await?;
        }
        Ok(transaction)
    }

    /// Begins a change, when nobody else makes one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn begin(&mut self) -> Result<Transaction<'_>, LinkError> {
        let lock = self.schema.writer.filter(|_| self.is_shared());
        let mut transaction = self.ready().await?.begin().await?;
        if let Some(lock) = lock {
            query("SELECT pg_advisory_xact_lock($1)").bind(lock).execute(&mut transaction).await?;
        }
        Ok(transaction)
    }

    /// The connection, made again also where a server ended it meanwhile.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn ready(&mut self) -> Result<&mut Connection, LinkError> {
        if self.is_shared() && self.connection.is_some() {
            // What is wrong is told by the connection that is made instead.
            let _ = query("SELECT 1").execute(self.connection().await?).await;
        }
        self.connection().await
    }

    /// Ends a change that was not made, and with it the lock that keeps others from theirs.
    pub async fn settle(&mut self) {
        if let Some(connection) = &mut self.connection {
            // Where it fails there is no connection any more, and the database does it by itself.
            let _ = connection.settle().await;
        }
    }

    /// Closes the connection.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn close(&mut self) -> Result<(), LinkError> {
        match self.connection.take() {
            Some(connection) => Ok(connection.close().await?),
            None => Ok(()),
        }
    }
}
