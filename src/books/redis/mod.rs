//! The engine on Redis: balances in Redis, shared by many gateways.
//!
//! An org's accounts are all in one **shard**, whose keys share a hash slot. One call of a small
//! function library (`lua/`) applies a batch of operations to a shard: balances, open
//! holds and the ledger's entry change in the same step, or none of them does.
//!
//! A batch is done exactly once, because a **session** numbers its batches for each shard and has
//! one in flight: Redis keeps the last number with its reply, gives the same reply to the same
//! number, and refuses any number but the next. So a reply that was lost is asked for again, and a
//! call that comes late changes nothing.
//!
//! - `agree`: what all gateways have to be configured alike.
//! - `pack`: MessagePack, as the library speaks it.
//! - `wire`: operations and replies, with `stored` for a hold as it is there.
//! - `foreign`: both, for whoever tries to break them.
//! - `place`: where the books are, as `books.url` says.
//! - `node`: a connection to one server, and what its errors mean.
//! - `link`: whom a call is sent to, with `slots`: which server has which keys.
//! - `check`: what a server has to be like.
//! - `library`: the function library.
//! - `session`: the [`Books`](super::Books) of a worker.
//! - `welcome`: what a shard says to a session that enters it.
//! - `entrance`: how a session comes to use a shard, also of a server that has lost something.
//! - `again`: what a shard has lost is done again.
//! - `journal`: what was acknowledged, on this gateway's disk, with `sent` (what was asked last).
//! - `recorded`: captures that Redis was silent to.
//! - `drive`: takes a session's operations to Redis, and renews it.
//! - `owners`: the holds of sessions that nobody hears of any more (D36).
//! - `cycles`: those that are long over.
//! - `ledger`: the records of a shard's stream.
//! - `look`: what lists and gauges show.
//! - `stream`: how far the streams are, and trimming.
//! - `carry`: books as a whole, where they move, with `carried` (what it says to a shard).
//! - `repair`: a shard that is not whole any more, with `rebuild` (what its records add up to)
//!   and `refill` (what its keys are filled with).

mod again;
mod agree;
mod carried;
pub mod carry;
mod check;
mod cycles;
mod drive;
mod entrance;
#[doc(hidden)]
pub mod foreign;
mod journal;
pub mod ledger;
mod library;
mod link;
mod look;
mod node;
mod owners;
mod pack;
mod place;
mod queue;
pub mod rebuild;
mod recorded;
mod refill;
pub mod repair;
mod sent;
mod session;
mod slots;
mod stored;
mod stream;
mod together;
mod welcome;
mod wire;

pub use look::Owed;
pub use session::Session;
pub use stream::LedgerEntry;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue, Value};
use secrecy::{ExposeSecret, SecretString};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::link::{CallError, Link};
use self::place::Place;
use self::wire::Endable;
use super::{BooksError, OpenCharge, forgotten_before};
use crate::core::charge::State;
use crate::core::ids::ChargeId;

/// How many charges or keys one sweep of a shard ends.
const MAX_SWEEP: u64 = 1_000;
/// How much later a hold with names ends at a gateway that does not look after it.
const LAST_WORD: Duration = Duration::from_secs(60);

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
    /// The local journal of what Redis acknowledged.
    #[error("the journal of what Redis acknowledged: {0}")]
    Journal(std::io::Error),
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
    /// One URL, or the several of a Cluster with spaces between them; they may hold a password.
    pub url: SecretString,
    /// What every key begins with.
    pub prefix: String,
    /// How many shards there are: fixed for as long as the books exist.
    pub shards: usize,
    /// This gateway's name: no two that run have the same. It outlives a restart, so that a
    /// gateway that comes back resolves at once what it left open.
    pub gateway: String,
    /// Which books these are.
    pub epoch: String,
    /// Whether they are made where they are not there; else that is an error: they are lost.
    pub make: bool,
    /// How long a call may take before its connection is given up.
    pub call_timeout: Duration,
    /// How long a request waits for its answer.
    pub deadline: Duration,
    /// How long others wait for a session that is not heard of before they resolve its holds (D36).
    /// A session is heard of four times in it; one that was not in half of it forwards nothing.
    pub owner_timeout: Duration,
    /// How long a shard that comes back is closed at most, until every gateway has done again what it
    /// has lost.
    pub rejoin_timeout: Duration,
    /// Whether a change counts only when a replica has it too.
    pub replica: bool,
    /// How long a capture waits for Redis before this gateway's disk counts as the record (D30).
    pub settle_timeout: Duration,
    /// Where this gateway keeps what Redis acknowledged to it; without it nothing can be done again.
    pub journal: Option<PathBuf>,
}

/// What a look through all shards ended. A shard that fails keeps the others from nothing.
#[derive(Debug, Default)]
pub struct Swept {
    /// How each hold ended that did.
    pub ended: Vec<(OpenCharge, State)>,
    /// Why the first shard failed that did.
    pub failed: Option<OpenError>,
}

impl Swept {
    fn note(&mut self, done: Result<(), OpenError>) {
        self.failed = self.failed.take().or(done.err());
    }

    /// What ended, where no shard failed.
    ///
    /// # Errors
    /// Why the first one failed.
    pub fn whole(self) -> Result<Vec<(OpenCharge, State)>, OpenError> {
        self.failed.map_or(Ok(self.ended), Err)
    }
}

/// The books on Redis, open.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    /// Serves whoever is no worker.
    session: Session,
    /// Sessions that were not heard of lately.
    silent: owners::Silent,
}

/// What the sessions of an engine share.
#[derive(Debug)]
pub(super) struct Shared {
    link: Link,
    /// Where one server has all shards.
    together: Option<together::Together>,
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
    owner_timeout: Duration,
    rejoin_timeout: Duration,
    journal: Option<Arc<journal::Journal>>,
    settle_timeout: Duration,
    /// How long a server waits for a replica each time that it is asked, where changes count only then.
    replica: Option<Duration>,
    recorded: Option<Arc<recorded::Recorded>>,
    /// Whoever reads the journal, and does again what is in it, has it.
    reading: tokio::sync::Mutex<()>,
    /// Of each shard the term in which this gateway has done its part again.
    entered: Box<[tokio::sync::Mutex<String>]>,
    /// Of each shard the names under which sessions of this life go on no more.
    retired: Box<[Mutex<BTreeSet<String>>]>,
    /// Of each shard, that a term has begun: sessions that have nothing to ask enter too.
    began: Box<[watch::Sender<()>]>,
    tasks: TaskTracker,
    runtime: Handle,
    seen: look::Seen,
    /// Of each shard.
    closed: Box<[cycles::Closed]>,
    /// Cancelled when nobody is to ask any more: what was asked is still done.
    closing: CancellationToken,
    /// Cancelled when the engine goes: nobody drives any more.
    end: CancellationToken,
}

/// The keys of a shard, in the library's order.
#[derive(Clone, Debug)]
pub(super) struct Keys([String; 10]);

const META: usize = 0;
const ACCOUNTS: usize = 1;
const NAMES: usize = 2;
const HOLDS: usize = 3;
const ENDING: usize = 4;
const SESSIONS: usize = 7;
const LEDGER: usize = 8;

impl Keys {
    fn new(prefix: &str, shard: usize) -> Self {
        let names = [
            "meta", "accounts", "names", "holds", "ending", "once", "kept", "sessions", "ledger",
            "ended",
        ];
        Self(names.map(|name| format!("{prefix}:{{s{shard}}}:{name}")))
    }

    fn function(&self, name: &str, args: &[Vec<u8>]) -> Cmd {
        let mut command = redis::cmd("FCALL");
        command.arg(name).arg(self.0.len()).arg(&self.0[..]).arg(args);
        command
    }
}

impl Shared {
    /// The shard of an org, or of a charge, by its home.
    fn shard_of(&self, home: u16) -> usize {
        usize::from(home) % self.shards
    }

    fn keys(&self, shard: usize) -> Keys {
        Keys::new(&self.prefix, shard)
    }

    /// Sees that a shard is of these books; makes it where that may be.
    async fn find(&self, shard: usize, make: bool) -> Result<(), OpenError> {
        let keys = self.keys(shard);
        let there = match make {
            true => {
                let epoch = [self.epoch.clone().into_bytes()];
                let create = keys.function(library::CREATE, &epoch);
                Some(self.make(&create).await?)
            }
            false => {
                let epoch = redis::cmd("HGET").arg(&keys.0[META]).arg("epoch").clone();
                Option::<Vec<u8>>::from_redis_value(self.reads.send(&epoch).await?)
                    .map_err(|error| OpenError::Redis(error.to_string()))?
            }
        };
        match there {
            Some(epoch) if epoch == self.epoch.as_bytes() => Ok(()),
            Some(epoch) => {
                let (epoch, ours) = (String::from_utf8_lossy(&epoch), &self.epoch);
                Err(OpenError::Books(format!(
                    "shard {shard} belongs to the books {epoch}, and this directory's are {ours}"
                )))
            }
            None => Err(OpenError::Books(format!(
                "shard {shard} is gone, so nothing is served from it: restore Redis from its files, \
                 or build it again from the archive with `tollgate books repair`"
            ))),
        }
    }

    /// Makes a shard, which may be asked for again: a replica that has just come needs a moment.
    async fn make(&self, create: &Cmd) -> Result<Vec<u8>, CallError> {
        let began = Instant::now();
        loop {
            match self.reads.call_kept(create, self.replica).await {
                Err(CallError::Unknown(_)) if began.elapsed() < self.rejoin_timeout => {}
                made => return made,
            }
        }
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
    /// [`OpenError`]: why, and what to do about it where the settings of a server are the reason.
    pub async fn open(
        options: Options,
        runtime: Handle,
        now: Timestamp,
    ) -> Result<Self, OpenError> {
        let place = Place::read(options.url.expose_secret()).map_err(OpenError::Address)?;
        let random = getrandom::u64().map_err(|error| OpenError::Books(error.to_string()))?;
        let journal = |dir: &PathBuf| journal::Journal::open(dir, &options.epoch, options.shards);
        let journal = options.journal.as_ref().map(journal).transpose();
        let recorded = |dir: &PathBuf| {
            recorded::Recorded::open(&dir.join(format!("{}.captures", options.epoch)))
        };
        // Their directory is made with the journal.
        let journal = journal.map_err(OpenError::Journal)?;
        let recorded = options.journal.as_ref().map(recorded).transpose();
        let shared = Arc::new(Shared {
            recorded: recorded.map_err(OpenError::Journal)?.map(Arc::new),
            settle_timeout: options.settle_timeout,
            // The server's reply is to come before its connection is given up.
            replica: options.replica.then_some(options.call_timeout / 2),
            journal: journal.map(Arc::new),
            rejoin_timeout: options.rejoin_timeout,
            reading: tokio::sync::Mutex::default(),
            entered: (0..options.shards.max(1)).map(|_| tokio::sync::Mutex::default()).collect(),
            retired: (0..options.shards.max(1)).map(|_| Mutex::default()).collect(),
            began: (0..options.shards.max(1)).map(|_| watch::Sender::new(())).collect(),
            together: place.is_one_server().then(Default::default),
            link: Link::new(place.clone(), options.call_timeout),
            // No charge waits for what is long to read.
            reads: Link::new(place, options.call_timeout.max(Duration::from_secs(5))),
            prefix: options.prefix,
            shards: options.shards.max(1),
            gateway: options.gateway,
            incarnation: format!("{random:016x}"),
            sessions: AtomicU32::new(0),
            epoch: options.epoch,
            deadline: options.deadline,
            owner_timeout: options.owner_timeout,
            tasks: TaskTracker::new(),
            runtime,
            seen: look::Seen::default(),
            closed: (0..options.shards.max(1)).map(|_| cycles::Closed::default()).collect(),
            closing: CancellationToken::new(),
            end: CancellationToken::new(),
        });
        check::servers(&shared.link, options.replica).await.map_err(OpenError::Redis)?;
        library::load(&shared.link).await.map_err(OpenError::Redis)?;
        for shard in 0..shared.shards {
            shared.find(shard, options.make).await?;
        }
        let session = shared.next_session();
        let engine = Self { shared, session, silent: owners::Silent::default() };
        engine.agrees().await?;
        engine.see_closed().await?;
        engine.earlier_lives_enter().await?;
        engine.settle_recorded().await;
        engine.resolve_left_open(now).await;
        Ok(engine)
    }

    /// A new session. Each worker has one.
    pub fn session(&self) -> Session {
        self.shared.next_session()
    }

    /// Waits until what was asked is done, for as long as anybody waits for Redis; what is asked from
    /// now on is not. What is not done then is resolved by whoever starts next, or by others.
    pub async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(self.shared.deadline, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("Redis has not answered to all that was asked");
        }
    }

    async fn read<T: redis::FromRedisValue>(&self, command: &Cmd) -> Result<T, OpenError> {
        let value: Value = match self.shared.reads.send(command).await {
            // The connection may have broken long ago; all that is asked here may be asked twice, also
            // the little that writes (`agree`, trimming).
            Err(CallError::NotExecuted(_) | CallError::Unknown(_)) => {
                self.shared.reads.send(command).await?
            }
            sent => sent?,
        };
        redis::from_redis_value(value).map_err(|error| OpenError::Redis(error.to_string()))
    }

    /// Ends the holds whose time is over, as their records say (D34, D36), a bounded number at
    /// once, and forgets keys and ends that are old.
    pub async fn expire(&self, now: Timestamp) -> Swept {
        self.expire_but(now, |_| true).await
    }

    /// As [`Engine::expire`], but a hold with names that this gateway does not look after has
    /// [`LAST_WORD`] more: whoever does is to ask a last time before it ends (D34).
    pub async fn expire_but(
        &self,
        now: Timestamp,
        looks_after: impl Fn(ChargeId) -> bool,
    ) -> Swept {
        let mut swept = Swept::default();
        for shard in 0..self.shared.shards {
            let done = self.expire_in(shard, now, &looks_after, &mut swept.ended).await;
            swept.note(done);
        }
        swept
    }

    async fn expire_in(
        &self,
        shard: usize,
        now: Timestamp,
        looks_after: &impl Fn(ChargeId) -> bool,
        ended: &mut Vec<(OpenCharge, State)>,
    ) -> Result<(), OpenError> {
        let at = now.as_microsecond();
        let long_ago = at.saturating_sub(LAST_WORD.as_micros() as i64);
        let all = self.due(shard, i64::MIN, long_ago).await?;
        let own = self.due(shard, long_ago.saturating_add(1), at).await?;
        let own = own.into_iter().map(|charge| {
            let wait = if looks_after(charge) { Duration::ZERO } else { LAST_WORD };
            (charge, wait)
        });
        let due = all.into_iter().map(|charge| (charge, Duration::ZERO)).chain(own);
        // All of them are asked for at once, and so go in few calls.
        let asked: Vec<_> = due
            .map(|(charge, wait)| {
                let due = Endable::Due(wait.as_micros() as u64);
                self.session.end(shard, charge, now, due)
            })
            .collect();
        for end in asked {
            ended.extend(end.await?.map(|end| (end.charge, end.state)));
        }
        let before = forgotten_before(now.as_microsecond());
        Ok(self.session.sweep(shard, before, MAX_SWEEP).await?)
    }

    /// Some of the holds that end by themselves in this time, both ends included.
    async fn due(&self, shard: usize, from: i64, to: i64) -> Result<Vec<ChargeId>, OpenError> {
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command.arg(&self.shared.keys(shard).0[ENDING]).arg(from).arg(to);
        command.arg("LIMIT").arg(0).arg(MAX_SWEEP);
        let due: Vec<Vec<u8>> = self.read(&command).await?;
        let id = |charge: Vec<u8>| charge.try_into().ok().map(ChargeId);
        Ok(due.into_iter().filter_map(id).collect())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.end.cancel();
    }
}
