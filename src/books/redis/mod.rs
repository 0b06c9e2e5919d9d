//! The engine on Redis: balances in Redis, shared by many gateways.
//!
//! An org's accounts are all in one **shard**, whose keys share a hash slot. One call of a small
//! function library (`tollgate.lua`) applies a batch of operations to a shard: balances, open
//! holds and the ledger's entry change in the same step, or none of them does.
//!
//! A batch is done exactly once, because a **session** numbers its batches for each shard and has
//! one in flight: Redis keeps the last number with its reply, gives the same reply to the same
//! number, and refuses any number but the next. So a reply that was lost is asked for again, and a
//! call that comes late changes nothing.
//!
//! - `pack`: MessagePack, as the library speaks it.
//! - `wire`: operations and replies.
//! - `link`: the connection, and what its errors mean.
//! - `library`: the function library.
//! - `session`: the [`Books`](super::Books) of a worker.
//! - `drive`: takes a session's operations to Redis.
//! - `ledger`: the records of a shard's stream.
//! - `stream`: how far the streams are, and trimming.

mod drive;
pub mod ledger;
mod library;
mod link;
mod pack;
mod session;
mod stream;
mod wire;

pub use session::Session;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use redis::{Client, Cmd, Value};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::link::{CallError, Link};
use self::pack::In;
use self::wire::StoredHold;
use super::{BooksError, OpenCharge, forgotten_before};
use crate::core::account::{AccountKey, Balance};
use crate::core::charge::State;
use crate::core::ids::ChargeId;

/// How many charges or keys one sweep of a shard ends.
const MAX_SWEEP: u64 = 1_000;

/// Why the books on Redis cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address.
    #[error("the address of Redis: {0}")]
    Address(String),
    /// Redis does not answer, or says no.
    #[error("Redis: {0}")]
    Redis(String),
    /// What is there is not what was asked for.
    #[error("the books in Redis: {0}")]
    Books(String),
}

impl From<BooksError> for OpenError {
    fn from(error: BooksError) -> Self {
        Self::Books(error.to_string())
    }
}

impl From<CallError> for OpenError {
    fn from(error: CallError) -> Self {
        Self::Redis(error.to_string())
    }
}

/// Where the books are, and how this gateway uses them.
#[derive(Clone, Debug)]
pub struct Options {
    /// `redis://` and so on.
    pub url: String,
    /// What every key begins with.
    pub prefix: String,
    /// How many shards there are: fixed for as long as the books exist.
    pub shards: usize,
    /// This gateway's name: no two that run have the same. It outlives a restart, so that a
    /// gateway that comes back resolves at once what it left open.
    pub gateway: String,
    /// Which books these are.
    pub epoch: String,
    /// How long a call may take before its connection is given up.
    pub call_timeout: Duration,
    /// How long a request waits for its answer.
    pub deadline: Duration,
}

/// The books on Redis, open.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    /// Serves whoever is no worker.
    session: Session,
}

/// What the sessions of an engine share.
#[derive(Debug)]
pub(super) struct Shared {
    link: Link,
    /// For what is long to read (f37).
    reads: Link,
    prefix: String,
    shards: usize,
    gateway: String,
    /// Which life of the gateway this is.
    incarnation: String,
    sessions: AtomicU32,
    epoch: String,
    deadline: Duration,
    tasks: TaskTracker,
    runtime: Handle,
    /// Cancelled when the engine goes: nobody drives any more.
    end: CancellationToken,
}

/// The keys of a shard, in the library's order.
#[derive(Clone, Debug)]
pub(super) struct Keys([String; 9]);

const HOLDS: usize = 3;
const ENDING: usize = 4;
const SESSIONS: usize = 7;
const LEDGER: usize = 8;

impl Keys {
    fn function(&self, name: &str, args: &[Vec<u8>]) -> Cmd {
        let mut command = redis::cmd("FCALL");
        command.arg(name).arg(self.0.len()).arg(&self.0[..]).arg(args);
        command
    }
}

impl Shared {
    fn keys(&self, shard: usize) -> Keys {
        let names =
            ["meta", "accounts", "names", "holds", "ending", "once", "kept", "sessions", "ledger"];
        Keys(names.map(|name| format!("{}:{{s{shard}}}:{name}", self.prefix)))
    }

    fn next_session(self: &Arc<Self>) -> Session {
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        Session::start(self, format!("{}/{}/{number}", self.gateway, self.incarnation))
    }
}

impl Engine {
    /// Opens the books, makes them where there are none, and resolves what this gateway's last
    /// life left open (D36). Tasks run on `runtime`.
    ///
    /// # Errors
    /// [`OpenError`] says what to do about it.
    pub async fn open(
        options: Options,
        runtime: Handle,
        now: Timestamp,
    ) -> Result<Self, OpenError> {
        let client = || {
            let client = Client::open(options.url.as_str());
            client.map_err(|error| OpenError::Address(error.to_string()))
        };
        let random = getrandom::u64().map_err(|error| OpenError::Books(error.to_string()))?;
        let shared = Arc::new(Shared {
            link: Link::new(client()?, options.call_timeout),
            reads: Link::new(client()?, options.call_timeout.max(Duration::from_secs(5))),
            prefix: options.prefix,
            shards: options.shards.max(1),
            gateway: options.gateway,
            incarnation: format!("{random:016x}"),
            sessions: AtomicU32::new(0),
            epoch: options.epoch,
            deadline: options.deadline,
            tasks: TaskTracker::new(),
            runtime,
            end: CancellationToken::new(),
        });
        library::load(&shared.link).await.map_err(OpenError::Redis)?;
        for shard in 0..shared.shards {
            let args = [shared.epoch.clone().into_bytes()];
            let create = shared.keys(shard).function(library::CREATE, &args);
            let epoch = shared.link.call(&create).await?;
            if epoch != args[0] {
                let epoch = String::from_utf8_lossy(&epoch);
                return Err(OpenError::Books(format!("shard {shard} is of epoch {epoch}")));
            }
        }
        let session = shared.next_session();
        let engine = Self { shared, session };
        engine.resolve_left_open(now).await?;
        Ok(engine)
    }

    /// A new session. Each worker has one.
    pub fn session(&self) -> Session {
        self.shared.next_session()
    }

    /// Resolves what earlier lives of this gateway left open, but what outlives its process.
    async fn resolve_left_open(&self, now: Timestamp) -> Result<(), OpenError> {
        for shard in 0..self.shared.shards {
            let gone = self.gone(shard).await?;
            if gone.is_empty() {
                continue;
            }
            for (charge, hold) in self.holds(shard).await? {
                if hold.expires == 0 && gone.contains(&hold.owner) {
                    self.session.end(shard, charge, now, false).await?;
                }
            }
            for session in gone {
                let args = [session.into_bytes()];
                let leave = self.shared.keys(shard).function(library::LEAVE, &args);
                self.shared.link.call(&leave).await?;
            }
            self.session.sweep(shard, forgotten_before(now.as_microsecond()), MAX_SWEEP).await?;
        }
        Ok(())
    }

    /// The sessions of earlier lives of this gateway.
    async fn gone(&self, shard: usize) -> Result<Vec<String>, OpenError> {
        let mine = format!("{}/", self.shared.gateway);
        let this = format!("{mine}{}/", self.shared.incarnation);
        let command = redis::cmd("HKEYS").arg(&self.shared.keys(shard).0[SESSIONS]).clone();
        let names: Vec<Vec<u8>> = self.read(&command).await?;
        let names = names.into_iter().filter_map(|name| String::from_utf8(name).ok());
        let is_gone = |name: &String| {
            name.starts_with(&mine) && !name.starts_with(&this) && !name.ends_with(":r")
        };
        Ok(names.filter(is_gone).collect())
    }

    /// The open holds of a shard.
    async fn holds(&self, shard: usize) -> Result<Vec<(ChargeId, StoredHold)>, OpenError> {
        let command = redis::cmd("HGETALL").arg(&self.shared.keys(shard).0[HOLDS]).clone();
        let pairs: Vec<(Vec<u8>, Vec<u8>)> = self.read(&command).await?;
        let malformed = |error: pack::Malformed| OpenError::Books(error.to_string());
        let hold = |(charge, bytes): (Vec<u8>, Vec<u8>)| {
            let charge = charge.try_into().map_err(|_| OpenError::Books("a charge's id".into()))?;
            let hold = StoredHold::read(&mut In::new(&bytes)).map_err(malformed)?;
            Ok((ChargeId(charge), hold))
        };
        pairs.into_iter().map(hold).collect()
    }

    async fn read<T: redis::FromRedisValue>(&self, command: &Cmd) -> Result<T, OpenError> {
        let value: Value = match self.shared.reads.send(command).await {
            // The connection may have broken long ago, and a reader may ask twice.
            Err(CallError::NotExecuted(_) | CallError::Unknown(_)) => {
                self.shared.reads.send(command).await?
            }
            sent => sent?,
        };
        redis::from_redis_value(value).map_err(|error| OpenError::Redis(error.to_string()))
    }

    /// Ends the holds whose time is over, as their records say (D34, D36), a bounded number at
    /// once, and forgets keys that are old. Returns how each hold ended that did.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn expire(&self, now: Timestamp) -> Result<Vec<(OpenCharge, State)>, OpenError> {
        let mut ended = Vec::new();
        for shard in 0..self.shared.shards {
            let mut command = redis::cmd("ZRANGEBYSCORE");
            command.arg(&self.shared.keys(shard).0[ENDING]).arg("-inf").arg(now.as_microsecond());
            command.arg("LIMIT").arg(0).arg(MAX_SWEEP);
            let due: Vec<Vec<u8>> = self.read(&command).await?;
            for charge in due {
                let Ok(charge) = charge.try_into() else { continue };
                let charge = ChargeId(charge);
                let end = self.session.end(shard, charge, now, true).await?;
                ended.extend(end.map(|end| (end.charge, end.state)));
            }
            let before = forgotten_before(now.as_microsecond());
            self.session.sweep(shard, before, MAX_SWEEP).await?;
        }
        Ok(ended)
    }

    /// How many holds are open.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn open_holds(&self) -> Result<usize, OpenError> {
        let mut open = 0;
        for shard in 0..self.shared.shards {
            let command = redis::cmd("HLEN").arg(&self.shared.keys(shard).0[HOLDS]).clone();
            open += self.read::<usize>(&command).await?;
        }
        Ok(open)
    }

    /// Every account's balance, with its name.
    ///
    /// # Errors
    /// When Redis does not answer, or not as expected.
    pub async fn balances(&self) -> Result<Vec<(AccountKey, String, Balance)>, OpenError> {
        let mut all = Vec::new();
        let odd = || OpenError::Books("an account that cannot be read".into());
        for shard in 0..self.shared.shards {
            let Keys([_, accounts, names, ..]) = self.shared.keys(shard);
            let accounts: Vec<(Vec<u8>, Vec<u8>)> =
                self.read(&redis::cmd("HGETALL").arg(accounts).clone()).await?;
            let names: std::collections::HashMap<Vec<u8>, String> =
                self.read(&redis::cmd("HGETALL").arg(names).clone()).await?;
            for (key, bytes) in accounts {
                let name = names.get(&key).cloned().ok_or_else(odd)?;
                let key: [u8; 21] = key.try_into().map_err(|_| odd())?;
                let key = AccountKey::from_bytes(&key).ok_or_else(odd)?;
                let mut input = In::new(&bytes);
                let mut balance = || {
                    let (base, adjusted) = (input.uint()?, input.int()?);
                    let (held, captured) = (input.uint()?, input.uint()?);
                    Ok::<_, pack::Malformed>(Balance { base, adjusted, held, captured })
                };
                all.push((key, name, balance().map_err(|_| odd())?));
            }
        }
        Ok(all)
    }
}

/// An entry of a stream: its id, and its fields.
type StreamEntry = (String, Vec<(Vec<u8>, Vec<u8>)>);

/// An entry of a shard's ledger: its position, and its bytes for [`ledger::Entry::read`].
pub type LedgerEntry = (u64, Vec<u8>);

impl Engine {
    /// Entries of a shard's ledger behind a position, so many at most.
    ///
    /// # Errors
    /// When Redis does not answer, or not as expected.
    pub async fn ledger(
        &self,
        shard: usize,
        behind: u64,
        most: usize,
    ) -> Result<Vec<LedgerEntry>, OpenError> {
        let mut command = redis::cmd("XRANGE");
        command.arg(&self.shared.keys(shard).0[LEDGER]).arg(format!("({behind}-0")).arg("+");
        command.arg("COUNT").arg(most);
        let entries: Vec<StreamEntry> = self.read(&command).await?;
        let odd = || OpenError::Books("an entry of the ledger that nobody of ours wrote".into());
        let entry = |(id, fields): StreamEntry| {
            let position = id.strip_suffix("-0").and_then(|id| id.parse().ok()).ok_or_else(odd)?;
            let (_, bytes) = fields.into_iter().next().ok_or_else(odd)?;
            Ok((position, bytes))
        };
        entries.into_iter().map(entry).collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.end.cancel();
    }
}
