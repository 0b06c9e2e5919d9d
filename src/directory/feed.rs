//! What other gateways change in a shared directory: loaded and put in force within a second.
//!
//! Who commits a change notifies the others in the same transaction. A notification may be lost
//! with the connection that it was to come by, so everybody also asks, twice a second and cheaply,
//! how far the audit is. Only what the audit names since then is loaded. While the server is away
//! traffic goes on with the snapshot there is.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::Notify;

use super::build::{self, Builder, Unbuildable};
use super::change::ApplyError;
use super::rows::{Licence, Plan, Profile, Rows, Settings, Show, User};
use super::snapshot::{Live, Snapshot, Users};
use super::store::audit::{self, Entry};
use super::store::{self, Position, Scope, StoreError};
use super::token::Tokens;
use super::{Directory, Writer};
use crate::core::account::Version;
use crate::core::ids::Id;
use crate::sql::{Connection, PATIENCE, Place, query};

/// How often is asked whether something changed.
const POLL: Duration = Duration::from_millis(500);
/// How long after a lost connection notifications are listened for again.
const REST: Duration = Duration::from_secs(1);
/// What notifications of changes are called.
const CHANNEL: &str = "tollgate_directory";

impl Directory {
    /// Follows what other gateways change until it is dropped. It returns at once where nobody else
    /// can change anything.
    pub async fn follow(&self) {
        let place = self.place.clone();
        if matches!(place, Place::File(_)) {
            return;
        }
        let heard = Notify::new();
        tokio::select! {
            () = listen(&place, &heard) => {}
            () = self.poll(&heard) => {}
        }
    }

    async fn poll(&self, heard: &Notify) {
        let mut away = false;
        loop {
            // Whichever comes first.
            let _ = tokio::time::timeout(POLL, heard.notified()).await;
            match self.catch_up().await {
                Ok(_) if away => tracing::info!("the directory's database is back"),
                Err(error) if !away => {
                    tracing::warn!(
                        %error,
                        "the directory's database is away; traffic goes on with what is known, \
                         changes are refused"
                    );
                }
                _ => {}
            }
            away = self.live.away();
        }
    }

    /// Puts in force what others changed; true where there was something.
    ///
    /// # Errors
    /// When the database fails; what is in force stays so.
    pub async fn catch_up(&self) -> Result<bool, ApplyError> {
        let mut database = self.database.lock().await;
        let asked = Instant::now();
        let done = self.load_newer(&mut database).await;
        database.link.settle().await;
        self.live.checked(done.is_ok().then_some(asked));
        done
    }

    async fn load_newer(&self, database: &mut Writer) -> Result<bool, ApplyError> {
        let Writer { link, at } = database;
        if store::position(link.connection().await?).await? == *at {
            return Ok(false);
        }
        let mut transaction = link.begin_to_read().await?;
        let newer = newer(&mut transaction, &self.live, *at).await?;
        transaction.commit().await.map_err(StoreError::from)?;
        let Some((snapshot, position)) = newer else { return Ok(false) };
        self.live.swap(snapshot);
        *at = position;
        Ok(true)
    }
}

/// Tells the others of a change, when it is committed; and which state that will be.
pub async fn announce(
    db: &mut Connection,
    org: &str,
    version: Version,
) -> Result<Position, StoreError> {
    if db.is_shared() {
        let what = format!("{org} {}", version.number);
        query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(what).execute(&mut *db).await?;
    }
    store::position(db).await
}

/// Notes each notification, for as long as whoever waits for it.
pub(super) async fn listen(place: &Place, heard: &Notify) {
    loop {
        let Err(error) = listen_once(place, heard).await;
        tracing::debug!(%error, "no notifications of changes; the directory is asked for them");
        tokio::time::sleep(REST).await;
    }
}

async fn listen_once(place: &Place, heard: &Notify) -> Result<Infallible, sqlx::Error> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(PATIENCE)
        .max_lifetime(None)
        .idle_timeout(None)
        .connect_with(place.server()?)
        .await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen(CHANNEL).await?;
    loop {
        // None after a connection that broke: what was notified meanwhile is lost.
        listener.try_recv().await?;
        heard.notify_one();
    }
}

/// Every org, and in which state the directory is.
pub async fn everything(db: &mut Connection) -> Result<(Snapshot, Position), ApplyError> {
    let at = store::position(db).await?;
    let tokens = Tokens::new(store::tokens::load(db).await?);
    let mut snapshot = Snapshot { tokens, ..Snapshot::default() };
    for (org, _) in store::orgs(db).await? {
        load(db, &mut snapshot, &org, &Touched::everybody(), at.epoch).await?;
    }
    Ok((snapshot, at))
}

/// The snapshot of the state that the database is in, if that is not the one at `at`.
pub async fn newer(
    db: &mut Connection,
    live: &Live,
    at: Position,
) -> Result<Option<(Snapshot, Position)>, ApplyError> {
    let now = store::position(db).await?;
    if now == at {
        return Ok(None);
    }
    // Copied, or restored from a backup that is older than what is known here.
    if now.epoch != at.epoch || now.seq < at.seq {
        return Ok(Some(everything(db).await?));
    }
    let mut snapshot = Snapshot::clone(&live.load());
    let (orgs, tokens) = match audit::between(db, at.seq, now.seq).await? {
        Some(entries) => touched(&entries)?,
        None => (differing(db, &snapshot).await?, true),
    };
    if tokens {
        snapshot.tokens = Tokens::new(store::tokens::load(db).await?);
    }
    for (org, touched) in orgs {
        load(db, &mut snapshot, &org, &touched, now.epoch).await?;
    }
    Ok(Some((snapshot, now)))
}

/// What of an org has to be loaded beside its details.
#[derive(Debug, Default, PartialEq, Eq)]
struct Touched {
    everybody: bool,
    users: BTreeSet<Id>,
    licences: BTreeSet<Id>,
}

impl Touched {
    fn everybody() -> Self {
        Self { everybody: true, ..Self::default() }
    }
}

/// Orgs whose version is not the one in the snapshot, where there are too many entries to look at.
async fn differing(
    db: &mut Connection,
    snapshot: &Snapshot,
) -> Result<BTreeMap<Id, Touched>, StoreError> {
    let known = |id: &Id| snapshot.orgs.get(id).map(|org| org.version.number);
    let orgs = store::orgs(db).await?.into_iter();
    let differing = orgs.filter(|(id, version)| known(id) != Some(*version));
    Ok(differing.map(|(id, _)| (id, Touched::everybody())).collect())
}

/// What entries of the audit name, and whether tokens are among it.
fn touched(entries: &[(String, Entry)]) -> Result<(BTreeMap<Id, Touched>, bool), StoreError> {
    let mut orgs: BTreeMap<Id, Touched> = BTreeMap::new();
    let mut tokens = false;
    for (org, entry) in entries {
        if entry.version.is_none() {
            tokens |= entry.kind == "token";
            continue;
        }
        let damaged = |id: &str| StoreError::Damaged(format!("audit entry {}: {id}", entry.seq));
        let org: Id = org.parse().map_err(|_| damaged(org))?;
        let touched = orgs.entry(org).or_default();
        let id = || entry.id.parse().map_err(|_| damaged(&entry.id));
        match entry.kind.as_str() {
            User::WORD => {
                touched.users.insert(id()?);
            }
            Licence::WORD => {
                touched.licences.insert(id()?);
                // Who held it has it no more.
                let holder = entry.before.as_ref().and_then(|fields| fields["holder"].as_str());
                touched.users.extend(holder.and_then(|holder| holder.parse().ok()));
            }
            Settings::WORD | Profile::WORD | Plan::WORD | "" => touched.everybody = true,
            // Of terms, groups, rate cards and keys nothing stands with a user.
            _ => {}
        }
    }
    Ok((orgs, tokens))
}

/// Puts an org into the snapshot as it is in the database.
async fn load(
    db: &mut Connection,
    snapshot: &mut Snapshot,
    id: &Id,
    touched: &Touched,
    epoch: u32,
) -> Result<(), ApplyError> {
    let Some((mut rows, number)) = store::load_details(db, id).await? else { return Ok(()) };
    let known = snapshot.orgs.get(id).filter(|_| !touched.everybody).map(Arc::clone);
    if known.is_some() {
        let scope = Scope::Some {
            users: touched.users.clone(),
            licences: touched.licences.clone(),
            profiles: BTreeSet::new(),
            namers_of: None,
        };
        store::load_people(db, &mut rows, &scope).await?;
    }
    let mut builder = Builder::new(id, &rows.details, &rows.schedule);
    let users = match known {
        Some(org) => {
            let built = builder.users(&rows.users, &rows.licences)?;
            let gone = touched.users.iter().filter(|user| !rows.users.contains_key(*user));
            org.users.with(built, gone)
        }
        None => all_users(db, &mut builder).await?,
    };
    Ok(put(snapshot, &rows, &builder, users, Version { epoch, number })?)
}

/// Every user of an org.
pub async fn all_users(
    db: &mut Connection,
    builder: &mut Builder<'_>,
) -> Result<Users, ApplyError> {
    let mut users = Users::new([]);
    let mut after = None;
    while let Some(page) = store::users_page(db, builder.org(), after.as_ref()).await? {
        for user in builder.users(&page.users, &page.licences)? {
            users.insert(user);
        }
        after = page.users.last_key_value().map(|(id, _)| id.clone());
    }
    Ok(users)
}

/// Puts an org with these users into the snapshot.
pub fn put(
    snapshot: &mut Snapshot,
    rows: &Rows,
    builder: &Builder<'_>,
    users: Users,
    version: Version,
) -> Result<(), Unbuildable> {
    let org = build::org(rows, users, version)?;
    snapshot.keys.retain(|_, key| key.org != rows.id);
    snapshot.keys.extend(builder.keys());
    snapshot.orgs.insert(rows.id.clone(), Arc::new(org));
    Ok(())
}
