//! Who may do what: orgs, users, licences, profiles, rate cards and keys.
//!
//! The database is the truth, the [`snapshot`] is what requests read. [`Directory::apply`] makes
//! one change at a time: database first, then the snapshot, so that the next request after it
//! returns sees the change.

pub mod apply;
pub mod build;
pub mod difference;
pub mod file;
pub mod reassign;
pub mod rows;
pub mod snapshot;
pub mod store;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use secrecy::SecretString;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::Mutex;

use self::build::{Builder, Unbuildable};
use self::difference::Change;
use self::file::{Document, Problem};
use self::rows::{Rows, Table};
use self::snapshot::{KeyHash, Live, Org, Snapshot, Users};
use self::store::{Audit, Scope, StoreError};
use crate::core::account::Version;
use crate::core::ids::Id;

/// Every org, in the database and in memory.
pub struct Directory {
    live: Arc<Live>,
    epoch: u32,
    /// Held for the whole of a change: there is one writer, and the snapshot is swapped by
    /// whoever holds it.
    database: Mutex<SqliteConnection>,
}

/// What a document changed, or would change.
#[derive(Debug)]
pub struct Applied {
    /// Each thing that came, went or became different; none when the org already was what the
    /// document says.
    pub changes: Vec<Change>,
    /// Secrets that were made for keys that named none, by key. They are shown once; only their
    /// hashes are kept. None on a dry run.
    pub secrets: Vec<(Id, SecretString)>,
    /// The org's version now.
    pub version: Version,
}

/// Why nothing was applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The document is wrong, or names what is not there.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database holds what cannot be.
    #[error("the directory's database is damaged: {0}")]
    Damaged(#[from] Unbuildable),
    /// No random bytes for a secret.
    #[error("no randomness for a secret: {0}")]
    Random(String),
}

impl Directory {
    /// Opens the directory of a data dir and reads every org into memory. A new directory has
    /// epoch 1; one that was restored or copied is opened with a `least_epoch` above the newest
    /// that its books have seen, so that its grants count as newer (D42).
    ///
    /// # Errors
    /// When the database cannot be opened or read.
    pub async fn open(data_dir: &Path, least_epoch: u32) -> Result<Self, ApplyError> {
        let mut database = store::open(data_dir).await?;
        let epoch = store::raise_epoch(&mut database, least_epoch).await?;
        let mut snapshot = Snapshot::default();
        for id in store::org_ids(&mut database).await? {
            let Some((rows, number)) = store::load_details(&mut database, &id).await? else {
                continue;
            };
            let mut builder = Builder::new(&id, &rows.details, &rows.schedule);
            let users = all_users(&mut database, &mut builder).await?;
            snapshot.keys.extend(builder.keys());
            let org = build::org(&rows, users, Version { epoch, number })?;
            snapshot.orgs.insert(id.clone(), Arc::new(org));
        }
        Ok(Self { live: Arc::new(Live::new(snapshot)), epoch, database: Mutex::new(database) })
    }

    /// The snapshot in force, for the hot path.
    pub fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live)
    }

    /// Makes an org be what a document says, whole or not at all. When this returns, the next
    /// request sees it.
    ///
    /// Run it in a task that nobody drops: dropped between the commit and its acknowledgement,
    /// the change would be in the database but not in force until the next one.
    ///
    /// # Errors
    /// [`ApplyError::Invalid`] lists every problem of the document.
    pub async fn apply(
        &self,
        org: &Id,
        document: &Document,
        dry_run: bool,
        who: &str,
        now: Timestamp,
    ) -> Result<Applied, ApplyError> {
        let mut database = self.database.lock().await;
        let mut transaction = database.begin().await.map_err(StoreError::from)?;
        let loaded = store::load_rows(&mut transaction, org, &scope(document)).await?;
        let (current, version) = match loaded {
            Some((rows, version)) => (Some(rows), version),
            None => (None, 0),
        };
        let mut secrets = Vec::new();
        let next = self.plan(org, current.as_ref(), document, &mut secrets, now)?;
        let changes = difference::compare(current.as_ref(), &next);
        let at = |number| Version { epoch: self.epoch, number };
        if dry_run || changes.is_empty() {
            return Ok(Applied { changes, secrets: Vec::new(), version: at(version) });
        }
        let audit = Audit { who, at: now, changes: &changes };
        let version =
            at(store::write(&mut transaction, current.as_ref(), &next, version, &audit).await?);
        let snapshot =
            self.next_snapshot(&mut transaction, current.as_ref(), &next, version).await?;
        transaction.commit().await.map_err(StoreError::from)?;
        self.live.swap(snapshot);
        Ok(Applied { changes, secrets, version })
    }

    /// Closes the database.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn close(self) -> Result<(), StoreError> {
        store::close(self.database.into_inner()).await
    }

    fn plan(
        &self,
        org: &Id,
        current: Option<&Rows>,
        document: &Document,
        secrets: &mut Vec<(Id, SecretString)>,
        now: Timestamp,
    ) -> Result<Rows, ApplyError> {
        let live = self.live.load();
        let mut failed = None;
        let mut surroundings = apply::Surroundings {
            owner: &|hash| live.keys.get(hash).map(|key| (key.org.clone(), key.id.clone())),
            make_secret: &mut |key| match make_secret() {
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
        let planned = apply::plan(org, current, document, &mut surroundings, now);
        match failed {
            Some(error) => Err(error),
            None => planned.map_err(ApplyError::Invalid),
        }
    }

    async fn next_snapshot(
        &self,
        database: &mut SqliteConnection,
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
            _ => all_users(database, &mut builder).await?,
        };
        snapshot.keys.retain(|_, key| key.org != after.id);
        snapshot.keys.extend(builder.keys());
        let org = build::org(after, users, version)?;
        snapshot.orgs.insert(after.id.clone(), Arc::new(org));
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
    let removed = removed.map(|id| (id.clone(), None));
    Ok(org.users.with(built.into_iter().map(|user| (user.id.clone(), Some(user))).chain(removed)))
}

fn differing<'a, T: PartialEq>(
    before: &'a Table<T>,
    after: &'a Table<T>,
) -> impl Iterator<Item = &'a Id> {
    let changed = after.iter().filter(|(id, row)| before.get(*id) != Some(row));
    let removed = before.iter().filter(|(id, _)| !after.contains_key(*id));
    changed.chain(removed).map(|(id, _)| id)
}

async fn all_users(
    database: &mut SqliteConnection,
    builder: &mut Builder<'_>,
) -> Result<Users, ApplyError> {
    let mut users = Users::new([]);
    let mut after = None;
    while let Some(page) = store::users_page(database, builder.org(), after.as_ref()).await? {
        for user in builder.users(&page.users, &page.licences)? {
            users.insert(user);
        }
        after = page.users.last_key_value().map(|(id, _)| id.clone());
    }
    Ok(users)
}

/// What of the org a document can touch or names.
fn scope(document: &Document) -> Scope {
    let mut users = BTreeSet::new();
    let mut licences = BTreeSet::new();
    let mut profiles = BTreeSet::new();
    for entry in document.users.iter().flatten() {
        users.insert(entry.id.clone());
        licences.extend(entry.value.licences.iter().map(|licence| licence.id.clone()));
    }
    for entry in document.profiles.iter().flatten() {
        profiles.insert(entry.id.clone());
        users.extend(entry.value.users.iter().cloned());
    }
    for entry in document.keys.iter().flatten() {
        match &entry.value.kind {
            rows::KeyKind::User(user) => drop(users.insert(user.clone())),
            rows::KeyKind::Service(snapshot::ActsFor::Some { users: named, .. }) => {
                users.extend(named.iter().cloned());
            }
            rows::KeyKind::Service(snapshot::ActsFor::Everyone) | rows::KeyKind::Principal(_) => {}
        }
    }
    // Pruning can break a reference from anywhere.
    if !document.prune.is_empty() {
        return Scope::All;
    }
    Scope::Some { users, licences, profiles }
}

fn make_secret() -> Result<(SecretString, KeyHash), ApplyError> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| ApplyError::Random(error.to_string()))?;
    let secret = format!("tg_{}", rows::hex(&random));
    let hash = file::hash_secret(&secret);
    Ok((secret.into(), hash))
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests;
