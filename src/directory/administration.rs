//! What administrators ask of the directory beside changes of an org: tokens, the audit, what only
//! the database has, and requests that change something elsewhere once.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::change::{Answer, Applied, ApplyError, Begun, OnceKey, Write, Written};
use super::edit::scope_of_one;
use super::file::{Problem, Source};
use super::rows::Rows;
use super::snapshot::Snapshot;
use super::store::audit::{self, Line, Origin};
use super::store::once::{self, Kept};
use super::store::{self, StoreError};
use super::things::{self, Kind, Thing};
use super::token::{self, NewToken, Token, Tokens};
use super::{Directory, Writer, answered, before, feed, make_secret};
use crate::core::account::Version;
use crate::core::ids::Id;
use crate::sql::{Connection, Link, query};

pub use super::store::LicenceQuery;
pub use super::store::audit::{AuditPage, AuditQuery};

/// An entry of the audit about what happened outside the directory.
pub struct Note<'a> {
    /// In which org.
    pub org: &'a Id,
    /// Who asked.
    pub who: &'a str,
    /// When.
    pub now: Timestamp,
    /// What kind of thing changed.
    pub kind: &'static str,
    /// Which.
    pub id: String,
    /// The change in one line.
    pub line: String,
    /// Its values before.
    pub before: Option<serde_json::Value>,
    /// Its values after.
    pub after: Option<serde_json::Value>,
}

/// As long as it is there, nobody else who shares the directory has one.
pub struct Alone {
    /// The lock ends with its connection.
    _link: Option<Link>,
}

/// Who changes books on what they say holds this lock of PostgreSQL meanwhile.
const ADJUSTER: i64 = 0x746f_6c6c_6761_7461;
/// How long it is waited for, and how often it is looked.
const ALONE_WITHIN: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl Directory {
    /// Waits, for a while, until nobody else who shares the directory changes books on what they
    /// say: two gateways would both find that a charge was not given back yet.
    ///
    /// # Errors
    /// When the database fails, or somebody else takes too long.
    pub async fn alone(&self) -> Result<Alone, ApplyError> {
        self.alone_within(ALONE_WITHIN).await
    }

    pub(super) async fn alone_within(&self, long: Duration) -> Result<Alone, ApplyError> {
        let mut link = store::link(self.place.clone(), true);
        if !link.is_shared() {
            return Ok(Alone { _link: None });
        }
        let until = Instant::now() + long;
        loop {
            // The server would go on to wait for who is gone.
            let lock = query("SELECT pg_try_advisory_lock($1)").bind(ADJUSTER);
            let row = lock.fetch_one(link.connection().await?).await.map_err(StoreError::from)?;
            let is_alone: bool = row.try_get(0).map_err(StoreError::from)?;
            if is_alone {
                return Ok(Alone { _link: Some(link) });
            }
            if Instant::now() >= until {
                return Err(ApplyError::Busy);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// A user as an edit would find it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn user(&self, org: &Id, user: &Id) -> Result<Option<Thing>, ApplyError> {
        self.one(org, Kind::User, user).await
    }

    /// A licence, also one that nobody holds.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn licence(&self, org: &Id, licence: &Id) -> Result<Option<Thing>, ApplyError> {
        self.one(org, Kind::Licence, licence).await
    }

    async fn one(&self, org: &Id, kind: Kind, id: &Id) -> Result<Option<Thing>, ApplyError> {
        let mut reader = self.reader.lock().await;
        let mut rows = Rows::empty(org.clone());
        store::load_people(reader.connection().await?, &mut rows, &scope_of_one(kind, id)).await?;
        Ok(things::of_rows(&rows, kind, id))
    }

    /// Licences by id, and after which id the next page begins.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn licences(
        &self,
        org: &Id,
        query: &LicenceQuery,
    ) -> Result<(Vec<Thing>, Option<Id>), ApplyError> {
        let mut reader = self.reader.lock().await;
        let (licences, more) = store::licences(reader.connection().await?, org, query).await?;
        let next = licences.last().filter(|_| more).map(|(id, _)| id.clone());
        Ok((licences.iter().map(|(id, row)| things::of_licence(id, row)).collect(), next))
    }

    /// What changed in an org, newest first; without one, what belongs to none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn audit(
        &self,
        org: Option<&Id>,
        query: &AuditQuery,
    ) -> Result<AuditPage, ApplyError> {
        let mut reader = self.reader.lock().await;
        Ok(audit::page(reader.connection().await?, audit::org_text(org), query).await?)
    }

    /// Makes a token. Its secret is in the result, once.
    ///
    /// # Errors
    /// [`ApplyError::Invalid`] lists every problem of the body.
    pub async fn create_token(&self, body: &Source, write: Write) -> Result<Written, ApplyError> {
        let mut database = self.database.lock().await;
        let written = self.create_token_with(&mut database, body, write).await;
        database.link.settle().await;
        written
    }

    async fn create_token_with(
        &self,
        database: &mut Writer,
        body: &Source,
        write: Write,
    ) -> Result<Written, ApplyError> {
        let (mut transaction, position) = self.begin_change(database).await?;
        if let Some(answer) = before(&mut transaction, &write).await? {
            return Ok(Written::Before(answer));
        }
        let new = NewToken::read(body).map_err(ApplyError::Invalid)?;
        let snapshot = Snapshot::clone(&self.live.load());
        let problems = undefined(&new, &snapshot);
        if !problems.is_empty() {
            return Err(ApplyError::Invalid(problems));
        }
        let tokens = &snapshot.tokens;
        if tokens.get(new.id.as_str()).is_some() {
            return Err(ApplyError::Conflict(format!("token {} is there already", new.id)));
        }
        if tokens.iter().len() >= token::MOST {
            let detail = format!("there are {} tokens already; revoke one first", token::MOST);
            return Err(ApplyError::Conflict(detail));
        }
        let (secret, hash) = make_secret("tga_")?;
        let NewToken { id, role, org, profiles, expires } = new;
        let (created_at, created_by) = (write.now, write.who.clone());
        let token = Token { id, hash, role, org, profiles, created_at, created_by, expires };
        let id = token.id.clone();
        let mut applied = done(Some(&token));
        if write.dry_run {
            return Ok(Written::Now(applied));
        }
        store::tokens::insert(&mut transaction, &token).await?;
        let line = format!("+ token {id} {}", token.role.word());
        note(&mut transaction, &token, &write, line, true).await?;
        answered(&mut transaction, &write, &applied).await?;
        let next = feed::announce(&mut transaction, "", Version::default()).await?;
        transaction.commit().await.map_err(StoreError::from)?;
        *position = next;
        let others = tokens.iter().map(|token| Token::clone(token));
        let tokens = Tokens::new(others.chain([token]));
        self.live.swap(Snapshot { tokens, ..snapshot });
        applied.secrets = vec![(id, secret)];
        Ok(Written::Now(applied))
    }

    /// Revokes a token: it is refused from the next request on.
    ///
    /// # Errors
    /// Where there is no such token, and when the database fails.
    pub async fn revoke_token(&self, id: &Id, write: Write) -> Result<Written, ApplyError> {
        let mut database = self.database.lock().await;
        let written = self.revoke_token_with(&mut database, id, write).await;
        database.link.settle().await;
        written
    }

    async fn revoke_token_with(
        &self,
        database: &mut Writer,
        id: &Id,
        write: Write,
    ) -> Result<Written, ApplyError> {
        let (mut transaction, position) = self.begin_change(database).await?;
        if let Some(answer) = before(&mut transaction, &write).await? {
            return Ok(Written::Before(answer));
        }
        let snapshot = Snapshot::clone(&self.live.load());
        let found = snapshot.tokens.get(id.as_str()).cloned();
        let token = found.ok_or_else(|| ApplyError::NotFound(format!("token {id}")))?;
        let applied = done(None);
        if write.dry_run {
            return Ok(Written::Now(applied));
        }
        store::tokens::delete(&mut transaction, id).await?;
        note(&mut transaction, &token, &write, format!("- token {id}"), false).await?;
        answered(&mut transaction, &write, &applied).await?;
        let next = feed::announce(&mut transaction, "", Version::default()).await?;
        transaction.commit().await.map_err(StoreError::from)?;
        *position = next;
        let others = snapshot.tokens.iter().filter(|token| token.id != *id);
        let tokens = Tokens::new(others.map(|token| Token::clone(token)));
        self.live.swap(Snapshot { tokens, ..snapshot });
        Ok(Written::Now(applied))
    }

    /// Begins an operation outside the directory that a request asks for, as `operation`: an id
    /// by which its outcome can be found if this process ends before [`Self::record`].
    ///
    /// # Errors
    /// [`ApplyError::KeyReused`], [`ApplyError::AnswerGone`] and [`ApplyError::TooManyKeys`], and
    /// when the database fails.
    pub async fn begin(
        &self,
        key: &OnceKey,
        operation: &str,
        now: Timestamp,
    ) -> Result<Begun, ApplyError> {
        let mut database = self.database.lock().await;
        let begun = begin(&mut database, key, operation, now).await;
        database.link.settle().await;
        begun
    }

    /// Records in the audit what was done outside the directory, and the answer to the request
    /// that asked for it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn record(
        &self,
        note: Note<'_>,
        done: Option<(&OnceKey, &Answer)>,
    ) -> Result<(), ApplyError> {
        let mut database = self.database.lock().await;
        let recorded = record(&mut database, note, done).await;
        database.link.settle().await;
        recorded
    }

    /// Forgets that an operation was begun, because it is certain that nothing was done.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn abandon(&self, key: &OnceKey) -> Result<(), ApplyError> {
        let mut database = self.database.lock().await;
        Ok(once::forget(database.link.connection().await?, key).await?)
    }
}

/// Begins an operation elsewhere, unless it was begun before.
async fn begin(
    database: &mut Writer,
    key: &OnceKey,
    operation: &str,
    now: Timestamp,
) -> Result<Begun, ApplyError> {
    let mut transaction = database.link.begin().await?;
    match once::find(&mut transaction, key, now).await? {
        Some(Kept::Other) => return Err(ApplyError::KeyReused),
        Some(Kept::TooLarge) => return Err(ApplyError::AnswerGone),
        Some(Kept::NoRoom) => return Err(ApplyError::TooManyKeys),
        Some(Kept::Begun(operation)) => return Ok(Begun::Again(operation)),
        Some(Kept::Answered(answer)) => return Ok(Begun::Before(answer)),
        None => {}
    }
    once::keep(&mut transaction, key, operation, None, now).await?;
    transaction.commit().await.map_err(StoreError::from)?;
    Ok(Begun::Fresh)
}

/// Records what was done elsewhere, and the answer.
async fn record(
    database: &mut Writer,
    note: Note<'_>,
    done: Option<(&OnceKey, &Answer)>,
) -> Result<(), ApplyError> {
    let mut transaction = database.link.begin().await?;
    let Note { org, who, now, kind, id, line, before, after } = note;
    let origin = Origin { org: org.as_str(), version: None, who, at: now };
    let text = |value: Option<serde_json::Value>| value.map(|value| value.to_string());
    let line = Line { kind, id, line, before: text(before), after: text(after) };
    audit::write_lines(&mut transaction, &origin, &[line], Line::clone).await?;
    if let Some((key, answer)) = done {
        once::keep(&mut transaction, key, "", Some(answer), now).await?;
    }
    Ok(transaction.commit().await.map_err(StoreError::from)?)
}

/// What a token names that is not there.
fn undefined(new: &NewToken, snapshot: &Snapshot) -> Vec<Problem> {
    let Some(id) = &new.org else { return Vec::new() };
    let Some(org) = snapshot.orgs.get(id) else {
        let detail = format!("there is no org {id}");
        return vec![Problem { pointer: "/org".to_owned(), detail }];
    };
    let named = new.profiles.iter().enumerate();
    let missing = named.filter(|(_, profile)| !org.details.profiles.contains_key(*profile));
    missing
        .map(|(index, profile)| Problem {
            pointer: format!("/profiles/{index}"),
            detail: format!("there is no profile {profile}"),
        })
        .collect()
}

fn done(token: Option<&Token>) -> Applied {
    Applied {
        changes: Vec::new(),
        secrets: Vec::new(),
        version: Version::default(),
        thing: token.map(|token| Thing::new(token.document())),
    }
}

async fn note(
    database: &mut Connection,
    token: &Token,
    write: &Write,
    line: String,
    made: bool,
) -> Result<(), StoreError> {
    let org = audit::org_text(token.org.as_ref());
    let origin = Origin { org, version: None, who: &write.who, at: write.now };
    let values = Some(token.document().to_string());
    let (before, after) = if made { (None, values) } else { (values, None) };
    let line = Line { kind: "token", id: token.id.to_string(), line, before, after };
    audit::write_lines(database, &origin, &[line], Line::clone).await
}
