//! The books on the server that Sentinels name.

use std::time::Duration;

use tollgate::books::redis::{self, Options};
use tollgate::books::{Books, BooksError};

use crate::engine::{NOW, account, ask, balance, done, take};
use crate::engine_redis::{EventLoop, folded, options};
use crate::redis_server::{RedisServer, SENTINEL, until};

const PATIENCE: Duration = Duration::from_secs(60);
const PASSWORD: &str = "canary-70b1";

/// A master with a replica, and the Sentinel that watches them.
struct Watched {
    servers: [RedisServer; 2],
    sentinel: RedisServer,
}

impl Watched {
    fn start() -> Self {
        let login = ["--requirepass", PASSWORD, "--masterauth", PASSWORD];
        let settings = [&login[..], &["--repl-diskless-sync-delay", "0"]].concat();
        let servers = [(); 2].map(|()| RedisServer::start_with(&settings));
        let master = servers[0].port.to_string();
        servers[1].command::<()>(&["REPLICAOF", "127.0.0.1", &master]).unwrap();
        servers[0].until_followed();
        let sentinel = RedisServer::start_with(&[SENTINEL]);
        let command = |words: &[&str]| sentinel.command::<()>(words).unwrap();
        command(&["SENTINEL", "MONITOR", "books", "127.0.0.1", &master, "1"]);
        command(&["SENTINEL", "SET", "books", "auth-pass", PASSWORD]);
        Self { servers, sentinel }
    }

    /// One Sentinel that is not there, and one that is.
    fn url(&self, master: &str) -> String {
        let port = self.sentinel.port;
        format!("redis+sentinel://:{PASSWORD}@127.0.0.1:1,127.0.0.1:{port}/{master}")
    }
}

fn opened(
    runtime: &EventLoop,
    url: &str,
    replica: bool,
) -> Result<redis::Engine, redis::OpenError> {
    // It is not heard of by itself: what it writes may be lost with the old master.
    let owner_timeout = 60 * PATIENCE;
    let shared = options(&RedisServer::shared());
    let options = Options { url: url.into(), deadline: PATIENCE, owner_timeout, replica, ..shared };
    runtime.handle.block_on(redis::Engine::open(options, runtime.handle.clone(), NOW))
}

#[test]
fn f27_whoever_sentinels_name_after_a_failover_is_asked() {
    goes_on_after_a_failover(false);
}

/// The old master follows the new one, which waits for it then.
#[test]
fn f27_whoever_sentinels_name_after_a_failover_waits_for_its_own_replica() {
    goes_on_after_a_failover(true);
}

fn goes_on_after_a_failover(replica: bool) {
    let watched = Watched::start();
    let runtime = EventLoop::start();
    let engine = opened(&runtime, &watched.url("books"), replica).unwrap();
    let session = engine.session();
    let hold = |number: u64| -> Result<bool, BooksError> {
        let (accounts, ten) = ([account("a", 1000, 1)], take(10, &[0]));
        let posted = runtime.handle.block_on(session.hold(&ask(number, &accounts, &ten)))?;
        Ok(done(posted).is_some())
    };
    assert!(hold(1).unwrap() && hold(2).unwrap());
    let replica_is_in_step = || {
        let told = |at: usize| watched.servers[at].command::<String>(&["INFO", "replication"]);
        let offset = |at: usize, field: &str| {
            let told = told(at).unwrap();
            told.lines().find_map(|line| line.strip_prefix(field).map(str::to_owned))
        };
        offset(0, "master_repl_offset:") == offset(1, "slave_repl_offset:")
    };
    // Nothing is lost on the way.
    until("the Sentinel knows of the replica", || {
        let known: Vec<::redis::Value> =
            watched.sentinel.command(&["SENTINEL", "REPLICAS", "books"]).unwrap();
        known.len() == 1 && replica_is_in_step()
    });
    until("the replica may take over", || {
        watched.sentinel.command::<()>(&["SENTINEL", "FAILOVER", "books"]).is_ok()
    });
    until("the old master follows the new one", || {
        // It ends all connections when it does.
        let told = watched.servers[0].command(&["INFO", "replication"]);
        told.is_ok_and(|told: String| told.contains("role:slave"))
    });
    assert!(hold(3).unwrap());
    let told: String = watched.servers[1].command(&["INFO", "replication"]).unwrap();
    assert!(told.contains("role:master"));
    let expected = balance(1000, 0, 30, 0);
    let all = runtime.handle.block_on(engine.balances()).unwrap();
    assert_eq!(all.iter().map(|found| found.2).collect::<Vec<_>>(), [expected]);
    assert!(folded(&engine, &runtime.handle).into_values().eq([expected]));
}

#[test]
fn f81_what_sentinels_do_not_know_is_told() {
    let watched = Watched::start();
    let runtime = EventLoop::start();
    let port = watched.sentinel.port;
    for (url, told) in [
        (watched.url("other"), "knows of no master other"),
        (format!("redis+sentinel://127.0.0.1:{port}/books"), "asks for a password"),
        (format!("redis+sentinel://127.0.0.1:{}/books", watched.servers[0].port), "is no Sentinel"),
        ("redis+sentinel://127.0.0.1:1/books".to_owned(), "127.0.0.1:1: "),
    ] {
        let error = opened(&runtime, &url, false).unwrap_err().to_string();
        assert!(error.contains(told) && !error.contains(PASSWORD), "{url}: {error}");
    }
}
