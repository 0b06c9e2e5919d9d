//! Who may do what: orgs, users, licences, profiles, rate cards and keys.
//!
//! The database is the truth, the [`snapshot`] is what requests read. [`Directory::write`] makes
//! one change at a time: database first, then the snapshot, so that the next request after it
//! returns sees the change.

pub mod administration;
pub mod apply;
pub mod books;
pub mod build;
pub mod change;
pub mod copy;
pub mod difference;
pub mod edit;
mod feed;
pub mod file;
pub mod reassign;
pub mod rows;
pub mod search;
pub mod snapshot;
pub mod store;
pub mod things;
pub mod token;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use secrecy::SecretString;
use tokio::sync::Mutex;

use self::build::{Builder, Unbuildable};
use self::change::{Answer, Write, Written};
use self::edit::Edit;
use self::file::Document;
use self::rows::{Rows, Table};
use self::snapshot::{KeyHash, Live, Org, Snapshot, Users};
use self::store::once::Kept;
use self::store::{Position, StoreError};
use self::things::Kind;
use crate::core::account::Version;
use crate::core::ids::Id;
use crate::sql::{Connection, Link, Transaction};

pub use self::change::{Applied, ApplyError};
pub use crate::sql::Place;

/// Every org, in the database and in memory.
pub struct Directory {
    live: Arc<Live>,
    place: Place,
    /// Held for the whole of a change: there is one writer, and the snapshot is swapped by
    /// whoever holds it.
    database: Mutex<Writer>,
    /// For lists that only the database has, so that they wait for no change.
    reader: Mutex<Link>,
}

/// What changes are made with.
struct Writer {
    link: Link,
    /// Which state the snapshot in force is of.
    at: Position,
}

impl Directory {
    /// Opens a directory, that of a data dir or of a server, and reads every org into memory. A
    /// new directory has epoch 1; one that was restored is opened with a `least_epoch` above the
    /// newest that its books have seen, so that its grants count as newer (D42).
    ///
    /// # Errors
    /// When the database cannot be opened or read.
    pub async fn open(place: impl Into<Place>, least_epoch: u32) -> Result<Self, ApplyError> {
        let place = place.into();
        let mut link = store::link(place.clone(), false);
        store::raise_epoch(link.connection().await?, least_epoch).await?;
        let mut transaction = link.begin_to_read().await?;
        let (snapshot, at) = feed::everything(&mut transaction).await?;
        transaction.commit().await.map_err(StoreError::from)?;
        let mut reader = store::link(place.clone(), true);
        reader.connection().await?;
        let live = Arc::new(Live::new(snapshot));
        if link.is_shared() {
            live.checked(Some(Instant::now()));
        }
        let database = Mutex::new(Writer { link, at });
        Ok(Self { live, place, database, reader: Mutex::new(reader) })
    }

    /// The snapshot in force, for the hot path.
    pub fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live)
    }

    /// Makes an org be what a document says, whole or not at all.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn apply(
        &self,
        org: &Id,
        document: &Document,
        dry_run: bool,
        who: &str,
        now: Timestamp,
    ) -> Result<Applied, ApplyError> {
        let write = Write { dry_run, ..Write::new(who, now) };
        match self.write(org, Edit::Document(document.clone()), write).await? {
            Written::Now(applied) => Ok(applied),
            // There is no key by which it could be known.
            Written::Before(_) => Err(ApplyError::AnswerGone),
        }
    }

    /// Makes one change of an org, whole or not at all: row, audit and the answer to a repeated
    /// request are one transaction. When this returns, the next request sees the change.
    ///
    /// Run it in a task that nobody drops: dropped between the commit and its acknowledgement,
    /// the change would be in the database but not in force until the next one.
    ///
    /// # Errors
    /// [`ApplyError::Invalid`] lists every problem of the body.
    pub async fn write(&self, org: &Id, edit: Edit, write: Write) -> Result<Written, ApplyError> {
        let mut database = self.database.lock().await;
        let written = self.write_with(&mut database, org, edit, write).await;
        database.link.settle().await;
        written
    }

    async fn write_with(
        &self,
        database: &mut Writer,
        org: &Id,
        edit: Edit,
        write: Write,
    ) -> Result<Written, ApplyError> {
        let (mut transaction, position) = self.begin_change(database).await?;
        if let Some(answer) = before(&mut transaction, &write).await? {
            return Ok(Written::Before(answer));
        }
        let loaded = store::load_details(&mut transaction, org).await?;
        let (mut current, number) = loaded.map_or((None, 0), |(rows, number)| (Some(rows), number));
        if let Some(rows) = &mut current {
            let scope = edit::scope(&edit, rows);
            store::load_people(&mut transaction, rows, &scope).await?;
        }
        let current = current.as_ref();
        let at = |number| Version { epoch: position.epoch, number };
        let target = edit.target(org);
        let thing =
            |rows: &Rows| target.as_ref().and_then(|(kind, id)| things::of_rows(rows, *kind, id));
        let tag = || match edit {
            Edit::Document(_) => current.map(|_| things::org_tag(at(number))),
            _ => current.and_then(thing).map(|thing| thing.etag),
        };
        if !write.condition.holds(tag) {
            return Err(ApplyError::Stale);
        }
        let (next, secrets) = self.plan(org, current, &edit, write.now)?;
        let changes = difference::compare(current, &next);
        let version = at(number);
        let mut applied = Applied { thing: thing(&next), changes, secrets: Vec::new(), version };
        if write.dry_run {
            return Ok(Written::Now(applied));
        }
        let mut snapshot = None;
        if !applied.changes.is_empty() {
            let (changes, who) = (&applied.changes, &write.who);
            let number =
                store::write(&mut transaction, current, &next, number, changes, who, write.now);
            applied.version = at(number.await?);
            let built = self.next_snapshot(&mut transaction, current, &next, applied.version);
            snapshot = Some(built.await?);
        }
        answered(&mut transaction, &write, &applied).await?;
        let next = feed::announce(&mut transaction, org.as_str(), applied.version).await?;
        transaction.commit().await.map_err(StoreError::from)?;
        *position = next;
        if let Some(snapshot) = snapshot {
            self.live.swap(snapshot);
        }
        applied.secrets = secrets;
        Ok(Written::Now(applied))
    }

    /// Closes the database.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn close(self) -> Result<(), StoreError> {
        self.reader.into_inner().close().await?;
        Ok(self.database.into_inner().link.close().await?)
    }

    /// Begins a change, on top of whatever others have changed.
    async fn begin_change<'a>(
        &self,
        database: &'a mut Writer,
    ) -> Result<(Transaction<'a>, &'a mut Position), ApplyError> {
        let Writer { link, at } = database;
        let mut transaction = link.begin().await?;
        if transaction.is_shared()
            && let Some((snapshot, position)) =
                feed::newer(&mut transaction, &self.live, *at).await?
        {
            self.live.swap(snapshot);
            *at = position;
        }
        Ok((transaction, at))
    }

    fn plan(
        &self,
        org: &Id,
        current: Option<&Rows>,
        edit: &Edit,
        now: Timestamp,
    ) -> Result<(Rows, Vec<(Id, SecretString)>), ApplyError> {
        let live = self.live.load();
        if let Edit::Delete { kind: Kind::Profile, id } = edit
            && let Some(token) = live.tokens.naming(org, id)
        {
            let detail = format!("profile {id} is still named by token {}", token.id);
            return Err(ApplyError::Conflict(detail));
        }
        let mut secrets = Vec::new();
        let mut failed = None;
        let mut surroundings = apply::Surroundings {
            owner: &|hash| live.keys.get(hash).map(|key| (key.org.clone(), key.id.clone())),
            make_secret: &mut |key| match make_secret("tg_") {
                Ok((secret, hash)) => {
                    secrets.push((key.clone(), secret));
                    hash
                }
                Err(error) => {
                    failed = Some(error);
                    KeyHash::default()
                }
            },
        };
        let planned = edit::plan(edit, org, current, &mut surroundings, now);
        match failed {
            Some(error) => Err(error),
            None => Ok((planned?, secrets)),
        }
    }

    async fn next_snapshot(
        &self,
        database: &mut Connection,
        before: Option<&Rows>,
        after: &Rows,
        version: Version,
    ) -> Result<Snapshot, ApplyError> {
        let mut snapshot = Snapshot::clone(&self.live.load());
        let mut builder = Builder::new(&after.id, &after.details, &after.schedule);
        let previous = snapshot.orgs.get(&after.id).zip(before);
        let users = match previous {
            Some((org, before)) if !touches_everybody(before, after) => {
                some_users(org, before, after, &mut builder)?
            }
            _ => feed::all_users(database, &mut builder).await?,
        };
        feed::put(&mut snapshot, after, &builder, users, version)?;
        Ok(snapshot)
    }
}

/// True where every user may have other licences, grants or pool access than before.
fn touches_everybody(before: &Rows, after: &Rows) -> bool {
    let (old, new) = (&before.details, &after.details);
    old.settings != new.settings
        || old.profiles != new.profiles
        || before.schedule != after.schedule
        || old.plans.iter().any(|(id, plan)| new.plans.get(id) != Some(plan))
}

/// The users that changed, and who holds or held a licence that did.
fn some_users(
    org: &Org,
    before: &Rows,
    after: &Rows,
    builder: &mut Builder<'_>,
) -> Result<Users, Unbuildable> {
    let mut touched: BTreeSet<&Id> = differing(&before.users, &after.users).collect();
    for id in differing(&before.licences, &after.licences) {
        for rows in [before, after] {
            touched.extend(rows.licences.get(id).and_then(|row| row.holder.as_ref()));
        }
    }
    let rebuilt: Table<rows::User> = touched
        .iter()
        .filter_map(|id| Some(((*id).clone(), Arc::clone(after.users.get(*id)?))))
        .collect();
    let built = builder.users(&rebuilt, &after.licences)?;
    let removed = touched.into_iter().filter(|id| !after.users.contains_key(*id));
    Ok(org.users.with(built, removed))
}

fn differing<'a, T: PartialEq>(
    before: &'a Table<T>,
    after: &'a Table<T>,
) -> impl Iterator<Item = &'a Id> {
    let changed = after.iter().filter(|(id, row)| before.get(*id) != Some(row));
    let removed = before.iter().filter(|(id, _)| !after.contains_key(*id));
    changed.chain(removed).map(|(id, _)| id)
}

/// The answer that a repeated request had, if this is one.
async fn before(database: &mut Connection, write: &Write) -> Result<Option<Answer>, ApplyError> {
    let Some(once) = write.once.as_ref().filter(|_| !write.dry_run) else { return Ok(None) };
    match store::once::find(database, &once.key, write.now).await? {
        None => Ok(None),
        Some(Kept::Answered(answer)) => Ok(Some(answer)),
        Some(Kept::TooLarge) => Err(ApplyError::AnswerGone),
        Some(Kept::NoRoom) => Err(ApplyError::TooManyKeys),
        // What is begun without an answer is no change of the directory.
        Some(Kept::Other | Kept::Begun(_)) => Err(ApplyError::KeyReused),
    }
}

/// Keeps the answer to a request that may be repeated.
async fn answered(
    database: &mut Connection,
    write: &Write,
    applied: &Applied,
) -> Result<(), ApplyError> {
    if let Some(once) = &write.once {
        let answer = (once.answer)(applied);
        store::once::keep(database, &once.key, "", Some(&answer), write.now).await?;
    }
    Ok(())
}

/// A secret and its hash. The prefix tells people what it is for.
fn make_secret(prefix: &str) -> Result<(SecretString, KeyHash), ApplyError> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| ApplyError::Random(error.to_string()))?;
    let secret = format!("{prefix}{}", rows::hex(&random));
    let hash = file::hash_secret(&secret);
    Ok((secret.into(), hash))
}

#[cfg(test)]
mod tests;
