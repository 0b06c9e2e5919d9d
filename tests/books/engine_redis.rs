//! The engine on Redis, with a server of its own.

use std::collections::BTreeMap;
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tollgate::books::OpenCharge;
use tollgate::books::fold::Fold;
use tollgate::books::redis::ledger::Entry;
use tollgate::books::redis::{self, Options};
use tollgate::core::account::Balance;
use tollgate::core::charge::State;
use tollgate::ledger::verify::{Finding, Verifier};

use crate::engine::{Engine, NOW};
use crate::redis_server::RedisServer;

pub struct OnRedis {
    engine: redis::Engine,
    options: Options,
    // Below the engine, so that it ends before they do.
    runtime: EventLoop,
    server: RedisServer,
}

/// An event loop on a thread of its own, as a worker has one.
pub struct EventLoop {
    pub handle: Handle,
    end: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl EventLoop {
    pub fn start() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (handle, end) = (runtime.handle().clone(), CancellationToken::new());
        let ended = end.clone();
        let thread = std::thread::spawn(move || runtime.block_on(ended.cancelled()));
        Self { handle, end, thread: Some(thread) }
    }
}

impl Drop for EventLoop {
    /// When this comes back, nothing runs there any more, and what it had open is closed.
    fn drop(&mut self) {
        self.end.cancel();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|ended| ended.is_ok()) || std::thread::panicking());
    }
}

/// One gateway's books on a server.
pub fn options(server: &RedisServer) -> Options {
    Options {
        url: server.url().into(),
        prefix: "tollgate".into(),
        shards: 1,
        gateway: "gateway-1".into(),
        epoch: "1".into(),
        make: true,
        call_timeout: Duration::from_secs(5),
        deadline: Duration::from_secs(10),
        owner_timeout: Duration::from_secs(10),
        rejoin_timeout: Duration::from_secs(10),
        settle_timeout: Duration::from_secs(10),
        replica: false,
        journal: None,
    }
}

fn open(runtime: &EventLoop, options: &Options, now: Timestamp) -> redis::Engine {
    let handle = &runtime.handle;
    handle.block_on(redis::Engine::open(options.clone(), handle.clone(), now)).unwrap()
}

impl OnRedis {
    /// With another URL of a server of its own.
    pub fn start_as(url: impl FnOnce(&RedisServer) -> String) -> Self {
        let (runtime, server) = (EventLoop::start(), RedisServer::start());
        let options = Options { url: url(&server).into(), ..options(&server) };
        Self { engine: open(&runtime, &options, NOW), options, runtime, server }
    }
}

impl OnRedis {
    /// Closes cycles, and says how many accounts went.
    pub fn close_cycles(&self, now: Timestamp) -> usize {
        self.runtime.handle.block_on(self.engine.close_cycles(now)).unwrap()
    }

    /// How many accounts the server has, with as many names, and as many as it counts.
    pub fn stored_accounts(&self) -> usize {
        let [accounts, names] = ["accounts", "names"]
            .map(|key| self.server.ask::<usize>(&["HLEN", &format!("tollgate:{{s0}}:{key}")]));
        let counted: usize = self.server.ask(&["HGET", "tollgate:{s0}:meta", "accounts"]);
        assert_eq!((names, counted), (accounts, accounts));
        accounts
    }

    /// What the verifier finds in the ledger.
    pub fn findings(&self) -> Vec<Finding> {
        let (mut verifier, mut position) = (Verifier::default(), 0);
        loop {
            let reading = self.engine.ledger(0, position, 100);
            let entries = self.runtime.handle.block_on(reading).unwrap();
            let Some((last, _)) = entries.last() else { break };
            position = *last;
            for (_, bytes) in &entries {
                Entry::read(bytes).unwrap().records.iter().for_each(|record| verifier.see(record));
            }
        }
        verifier.findings().to_vec()
    }
}

/// Every account as the ledger's records add up to it.
pub fn folded(engine: &redis::Engine, handle: &Handle) -> BTreeMap<String, Balance> {
    folded_in(engine, handle, 0)
}

/// The same of one shard of several.
pub fn folded_in(
    engine: &redis::Engine,
    handle: &Handle,
    shard: usize,
) -> BTreeMap<String, Balance> {
    let mut fold = Fold::default();
    let mut position = 0;
    loop {
        let entries = handle.block_on(engine.ledger(shard, position, 100)).unwrap();
        for (at, bytes) in &entries {
            assert_eq!(*at, position + 1);
            position = *at;
            for record in Entry::read(bytes).unwrap().records {
                fold.apply(&record).unwrap();
            }
        }
        if entries.is_empty() {
            break;
        }
    }
    fold.accounts.into_values().map(|account| (account.name.into(), account.balance)).collect()
}

impl Engine for OnRedis {
    type Session = redis::Session;

    const IN_ORDER: bool = false;

    fn start() -> Self {
        Self::start_as(RedisServer::url)
    }

    fn session(&self) -> Self::Session {
        self.engine.session()
    }

    fn restart_at(self, now: Timestamp) -> Self {
        let Self { engine, options, runtime, server } = self;
        drop(engine);
        Self { engine: open(&runtime, &options, now), options, runtime, server }
    }

    fn expire(&self, now: Timestamp) -> Vec<(OpenCharge, State)> {
        self.runtime.handle.block_on(self.engine.expire(now)).whole().unwrap()
    }

    fn all(&self) -> BTreeMap<String, Balance> {
        let all = self.runtime.handle.block_on(self.engine.balances()).unwrap();
        let all = all.into_iter().map(|(_, name, balance)| (name, balance)).collect();
        assert_eq!(
            folded(&self.engine, &self.runtime.handle),
            all,
            "what the ledger adds up to (D37)"
        );
        all
    }
}
