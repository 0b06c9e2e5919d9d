//! How a gateway comes to its Redis: users with few rights, protocols, TLS, and what is told where
//! it does not.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tollgate::books::redis::{self, OpenError, Options};
use tollgate::books::{Books, BooksError, OpenCharge};
use tollgate::core::account::Balance;
use tollgate::core::charge::{OutcomeMemo, State};

use crate::engine::{Engine, NOW, account, ask, balance, done, id, resolution, take};
use crate::engine_redis::{EventLoop, OnRedis, options};
use crate::fault_proxy::FaultProxy;
use crate::redis_server::{FREE, RedisServer, SENTINEL, until};

pub const PASSWORD: &str = "canary-2d7e";

/// The user that the documentation shows, as `ACL SETUSER` takes it.
pub fn documented_user() -> Vec<String> {
    let document = include_str!("../../docs/scaling.md");
    let line = document.lines().find(|line| line.starts_with("ACL SETUSER tollgate "));
    let line = line.unwrap().replace("PASSWORD", PASSWORD);
    line.split_ascii_whitespace().map(str::to_owned).collect()
}

/// The engine under the documented user, in the protocol's third version.
pub struct Restricted(OnRedis);

impl Engine for Restricted {
    type Session = redis::Session;

    const IN_ORDER: bool = false;

    fn start() -> Self {
        Self(OnRedis::start_as(|server| {
            let user = documented_user();
            let user: Vec<&str> = user.iter().map(String::as_str).collect();
            server.command::<String>(&user).unwrap();
            format!("redis://tollgate:{PASSWORD}@127.0.0.1:{}?protocol=resp3", server.port)
        }))
    }

    fn session(&self) -> Self::Session {
        self.0.session()
    }

    fn restart_at(self, now: Timestamp) -> Self {
        Self(self.0.restart_at(now))
    }

    fn expire(&self, now: Timestamp) -> Vec<(OpenCharge, State)> {
        self.0.expire(now)
    }

    fn all(&self) -> BTreeMap<String, Balance> {
        self.0.all()
    }
}

fn opened(runtime: &EventLoop, url: &str) -> Result<redis::Engine, OpenError> {
    let handle = &runtime.handle;
    let options = Options { url: url.into(), ..options(&RedisServer::shared()) };
    handle.block_on(redis::Engine::open(options, handle.clone(), NOW))
}

/// What is said at the start, which is never the password.
fn refusal(runtime: &EventLoop, url: &str) -> String {
    let error = opened(runtime, url).unwrap_err();
    let told = format!("{error} {error:?}");
    assert!(!told.contains(PASSWORD), "{told}");
    error.to_string()
}

/// Makes a charge and captures it.
fn charge(runtime: &EventLoop, session: &redis::Session, number: u64) -> Result<(), BooksError> {
    let (accounts, ten, memo) = ([account("a", 1000, 1)], take(10, &[0]), OutcomeMemo::default());
    let asked = ask(number, &accounts, &ten);
    let posted = runtime.handle.block_on(session.hold(&asked))?;
    assert!(done(posted).is_some());
    let capture = resolution(State::Captured, &[7], &memo);
    runtime.handle.block_on(session.resolve(id(number), &capture)).map(|_| ())
}

#[test]
fn the_documented_user_also_sees_and_ends_what_others_left() {
    let server = RedisServer::start();
    let user = documented_user();
    let user: Vec<&str> = user.iter().map(String::as_str).collect();
    server.command::<String>(&user).unwrap();
    let runtime = EventLoop::start();
    let of = |gateway: &str| {
        let url = format!("redis://tollgate:{PASSWORD}@127.0.0.1:{}?protocol=resp3", server.port);
        let timeout = Duration::from_millis(50);
        let (url, gateway) = (url.into(), gateway.into());
        let options = Options { url, gateway, owner_timeout: timeout, ..options(&server) };
        let opening = redis::Engine::open(options, runtime.handle.clone(), NOW);
        runtime.handle.block_on(opening).unwrap()
    };
    let (lost, other) = (of("lost"), of("other"));
    let (accounts, ten) = ([account("a", 1000, 1)], take(10, &[0]));
    let session = lost.session();
    let asked = ask(1, &accounts, &ten);
    assert!(done(runtime.handle.block_on(session.hold(&asked)).unwrap()).is_some());
    drop((session, lost));
    let run = |ended: &mut usize| {
        *ended += runtime.handle.block_on(other.resolve_absent(NOW)).whole().unwrap().len();
    };
    let mut ended = 0;
    while ended == 0 {
        run(&mut ended);
    }
    assert_eq!((ended, runtime.handle.block_on(other.open_holds()).unwrap()), (1, 0));
    assert!(runtime.handle.block_on(other.expire(NOW)).whole().unwrap().is_empty());
    let entries = runtime.handle.block_on(other.ledger(0, 0, 100)).unwrap();
    assert!(!entries.is_empty());
    let trimmed = runtime.handle.block_on(other.trim_ledger(0, entries[0].0)).unwrap();
    assert_eq!(trimmed, 1);
    assert!(runtime.handle.block_on(other.ledger_end(0)).unwrap().is_some());
    runtime.handle.block_on(other.ahead(NOW)).unwrap();
    // Nothing was refused behind the engine's back.
    let log: Vec<::redis::Value> = server.command(&["ACL", "LOG"]).unwrap();
    assert_eq!(log, []);
}

#[test]
fn f81_a_start_that_is_refused_says_why_and_not_the_password() {
    let server = RedisServer::start();
    let runtime = EventLoop::start();
    let (port, command) = (server.port, |words: &[&str]| server.command::<String>(words).unwrap());
    command(&["ACL", "SETUSER", "u", "on", &format!(">{PASSWORD}"), "~*", "+@all", "-info"]);
    let refused = |user: &str| refusal(&runtime, &format!("redis://{user}127.0.0.1:{port}"));
    for (user, told) in [
        (format!("u:{PASSWORD}x@"), "the user or the password in books.url is wrong"),
        (format!("nobody:{PASSWORD}@"), "the user or the password in books.url is wrong"),
        (format!("u:{PASSWORD}@"), "+info"),
    ] {
        assert!(refused(&user).contains(told), "{}", refused(&user));
    }
    command(&["ACL", "SETUSER", "u", "+info", "-fcall"]);
    assert!(refused(&format!("u:{PASSWORD}@")).contains("NoPerm"));
    command(&["ACL", "SETUSER", "u", "+fcall", "-function"]);
    assert!(refused(&format!("u:{PASSWORD}@")).contains("NoPerm"));
    command(&["CONFIG", "SET", "requirepass", PASSWORD]);
    assert!(refused("").contains("asks for a password"), "{}", refused(""));
    let closed = refusal(&runtime, "redis://127.0.0.1:1");
    assert!(closed.contains("127.0.0.1:1: "), "{closed}");
}

#[test]
fn f28_a_redis_that_may_evict_is_refused_and_one_without_appendonly_is_not() {
    let runtime = EventLoop::start();
    for policy in ["allkeys-lru", "volatile-ttl"] {
        let server = RedisServer::start_with(&["--maxmemory-policy", policy]);
        let told = refusal(&runtime, &server.url());
        let (names, says) = (told.contains(policy), told.contains("`maxmemory-policy noeviction`"));
        assert!(names && says, "{told}");
        // Nothing was made before it was looked at.
        assert_eq!(server.command::<u64>(&["DBSIZE"]).unwrap(), 0);
    }
    // Appending nothing is a warning.
    let server = RedisServer::start();
    assert!(opened(&runtime, &server.url()).is_ok());
}

#[test]
fn f27_a_server_that_became_a_replica_takes_nothing_and_is_waited_for() {
    let server = RedisServer::start();
    let runtime = EventLoop::start();
    let deadline = Duration::from_millis(100);
    let patient = Options { deadline: Duration::from_secs(60), ..options(&server) };
    let hasty = Options { gateway: "hasty".into(), deadline, ..options(&server) };
    let [patient, hasty] = [patient, hasty].map(|options| {
        let opening = redis::Engine::open(options, runtime.handle.clone(), NOW);
        runtime.handle.block_on(opening).unwrap()
    });
    let (waiting, session) = (patient.session(), hasty.session());
    charge(&runtime, &waiting, 1).unwrap();
    charge(&runtime, &session, 2).unwrap();
    // Of a master that is not there: it keeps what it has.
    server.command::<String>(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    let told = refusal(&runtime, &server.url());
    assert!(told.contains("it is a replica"), "{told}");
    match charge(&runtime, &session, 3) {
        Err(BooksError::Unavailable(_)) => {}
        other => panic!("{other:?}"),
    }
    let refused = || errors(&server, "READONLY");
    let before = refused();
    let mut waits = JoinSet::new();
    let hold = async move {
        let (accounts, ten) = ([account("a", 1000, 1)], take(10, &[0]));
        waiting.hold(&ask(4, &accounts, &ten)).await.map(done)
    };
    waits.spawn_on(hold, &runtime.handle);
    until("it is refused", || refused() > before);
    server.command::<String>(&["REPLICAOF", "NO", "ONE"]).unwrap();
    let view = runtime.handle.block_on(waits.join_next()).unwrap().unwrap().unwrap();
    assert_eq!(view.unwrap().get(0), Some(balance(1000, 0, 10, 14)));
    charge(&runtime, &session, 5).unwrap();
}

/// How often a server has answered with an error.
pub fn errors(server: &RedisServer, code: &str) -> u64 {
    let told: String = server.command(&["INFO", "errorstats"]).unwrap();
    let line = told.lines().find_map(|line| line.strip_prefix(&format!("errorstat_{code}:count=")));
    line.map_or(0, |count| count.trim_end().parse().unwrap())
}

/// Certificates of an authority of our own.
struct Certificates(TempDir);

impl Certificates {
    fn make() -> Self {
        let made = Self(tempfile::tempdir().unwrap());
        std::fs::write(made.path("config"), "[req]\ndistinguished_name = name\n[name]\n").unwrap();
        made.openssl("ca", "/CN=authority", &["-addext", "basicConstraints=critical,CA:TRUE"]);
        for name in ["server", "client"] {
            let signed = ["-CA", "ca.pem", "-CAkey", "ca.key"];
            let is_no_ca = ["-addext", "basicConstraints=critical,CA:FALSE"];
            let host = ["-addext", "subjectAltName=IP:127.0.0.1"];
            made.openssl(name, "/CN=a", &[&signed[..], &is_no_ca[..], &host[..]].concat());
        }
        made
    }

    fn openssl(&self, name: &str, subject: &str, more: &[&str]) {
        let (key, certificate) = (format!("{name}.key"), format!("{name}.pem"));
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
        command
            .args(["-config", "config", "-nodes", "-days", "2", "-subj", subject, "-keyout", &key]);
        command.args(["-out", &certificate]).args(more).current_dir(self.0.path());
        let made = command.output().expect("openssl does not start: install the package openssl");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// A server that speaks TLS on another port.
    fn server(&self, clients: &str) -> RedisServer {
        self.server_with(clients, &[])
    }

    fn server_with(&self, clients: &str, more: &[&str]) -> RedisServer {
        let [ca, certificate, key] = ["ca.pem", "server.pem", "server.key"].map(|at| self.path(at));
        let files = ["--tls-cert-file", &certificate, "--tls-key-file", &key];
        let port = ["--tls-port", FREE, "--tls-ca-cert-file", &ca, "--tls-auth-clients", clients];
        RedisServer::start_with(&[more, &port[..], &files[..]].concat())
    }
}

#[test]
fn tls_is_verified_and_what_does_not_fit_is_told() {
    let made = Certificates::make();
    let (open, closed) = (made.server("no"), made.server("yes"));
    let runtime = EventLoop::start();
    let port = |server: &RedisServer| server.setting("--tls-port").to_owned();
    let [ca, certificate, key] = ["ca.pem", "client.pem", "client.key"].map(|at| made.path(at));
    let trusting =
        |server: &RedisServer| format!("rediss://127.0.0.1:{}?sslrootcert={ca}", port(server));
    let known = format!("{}&sslcert={certificate}&sslkey={key}", trusting(&closed));
    let third = format!("{}&protocol=resp3", trusting(&open));
    for (number, url) in (1..).zip([trusting(&open), known, third]) {
        let engine = opened(&runtime, &url).unwrap();
        charge(&runtime, &engine.session(), number).unwrap();
        assert_eq!(runtime.handle.block_on(engine.open_holds()).unwrap(), 0);
    }
    let other = port(&open);
    for (url, told) in [
        (format!("rediss://127.0.0.1:{other}"), "?sslrootcert="),
        (format!("rediss://localhost:{other}?sslrootcert={ca}"), "not for the host in books.url"),
        // Whether the server's word or the end of its connection is first, and which end.
        (trusting(&closed), "Redis: "),
        // Whether the greeting has the end of a line in it, which Redis would answer.
        (format!("rediss://127.0.0.1:{}?sslrootcert={ca}", open.port), "Redis: "),
    ] {
        let refused = refusal(&runtime, &url);
        assert!(refused.contains(told), "{url}: {refused}");
    }
    // The other way round nothing is said: the connection ends.
    let refused = refusal(&runtime, &format!("redis://127.0.0.1:{other}"));
    assert!(refused.contains("rediss:// in books.url"), "{refused}");
}

#[test]
fn f27_sentinels_and_the_master_that_they_name_are_asked_over_tls() {
    let made = Certificates::make();
    let master = made.server("no");
    // What it asks others it asks over TLS too.
    let sentinel = made.server_with("no", &[SENTINEL, "--tls-replication", "yes"]);
    let port = |server: &RedisServer| server.setting("--tls-port").to_owned();
    let monitor = ["SENTINEL", "MONITOR", "books", "127.0.0.1", &port(&master), "1"];
    sentinel.command::<()>(&monitor).unwrap();
    let (runtime, ca) = (EventLoop::start(), made.path("ca.pem"));
    let at = |port: &str| format!("rediss+sentinel://127.0.0.1:1,127.0.0.1:{port}/books");
    let engine = opened(&runtime, &format!("{}?sslrootcert={ca}", at(&port(&sentinel)))).unwrap();
    charge(&runtime, &engine.session(), 1).unwrap();
    // It went to the port that speaks TLS, and nowhere in the clear.
    assert_eq!(runtime.handle.block_on(engine.balances()).unwrap().len(), 1);
    assert_eq!(master.command::<u64>(&["HLEN", "tollgate:{s0}:accounts"]).unwrap(), 1);
    let refused = refusal(&runtime, &at(&port(&sentinel)));
    assert!(refused.contains("?sslrootcert="), "{refused}");
    // The Sentinel answers in the clear too; what it names does not.
    refusal(&runtime, &format!("redis+sentinel://127.0.0.1:{}/books", sentinel.port));
}

#[test]
fn f37_a_big_read_that_does_not_come_through_delays_no_call() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.port, 1);
    let runtime = EventLoop::start();
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let engine = std::sync::Arc::new(opened(&runtime, &url).unwrap());
    let session = engine.session();
    charge(&runtime, &session, 1).unwrap();
    // From here on the connection stands still on which balances are read.
    proxy.keep_requests("HGETALL");
    let mut reading = JoinSet::new();
    let reader = std::sync::Arc::clone(&engine);
    reading.spawn_on(async move { reader.balances().await.unwrap().len() }, &runtime.handle);
    until("it is kept", || proxy.kept() > 0);
    charge(&runtime, &session, 2).unwrap();
    assert!(reading.try_join_next().is_none(), "it was not waited for");
    proxy.release();
    assert_eq!(runtime.handle.block_on(reading.join_next()).unwrap().unwrap(), 1);
}

#[test]
fn d36_a_gateway_that_waits_otherwise_than_those_that_run_does_not_start_beside_them() {
    let (server, runtime) = (RedisServer::start(), EventLoop::start());
    let timeout = Duration::from_secs(3);
    let with = |gateway: &str, owner_timeout| {
        let options = Options { gateway: gateway.into(), owner_timeout, ..options(&server) };
        let opening = redis::Engine::open(options, runtime.handle.clone(), NOW);
        runtime.handle.block_on(opening).map_err(|error| error.to_string())
    };
    let first = with("first", timeout).unwrap();
    let session = first.session();
    charge(&runtime, &session, 1).unwrap();
    let told = with("second", 2 * timeout).unwrap_err();
    let expected = "the gateway first runs with owner_timeout 3s and rejoin_timeout 10s, and this one \
                    has owner_timeout 6s and rejoin_timeout 10s: all gateways need the same";
    assert!(told.contains(expected), "{told}");
    let second = with("second", timeout).unwrap();
    drop((session, first, second));
    // Nobody that runs has the old one.
    until("all are gone", || with("third", 2 * timeout).is_ok());
}

#[test]
fn f83_what_was_asked_is_done_before_an_engine_is_closed() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.port, 1);
    let runtime = EventLoop::start();
    let engine = opened(&runtime, &format!("redis://127.0.0.1:{}", proxy.port)).unwrap();
    let session = engine.session();
    let (accounts, ten, memo) = ([account("a", 1000, 1)], take(10, &[0]), OutcomeMemo::default());
    for number in [1, 2] {
        let asked = ask(number, &accounts, &ten);
        assert!(done(runtime.handle.block_on(session.hold(&asked)).unwrap()).is_some());
    }
    let void = resolution(State::Voided, &[], &memo);
    proxy.keep_requests("tollgate_1_settle");
    // Nobody waits for them; the second is asked when the first is answered.
    drop(session.resolve(id(1), &void));
    until("it is on its way", || proxy.kept() > 0);
    drop(session.resolve(id(2), &void));
    drop(session);
    let (is_closed, began) = (AtomicBool::new(false), Instant::now());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Whoever does not wait is gone by then.
            until("it waits", || {
                is_closed.load(SeqCst) || began.elapsed() > Duration::from_millis(500)
            });
            proxy.release();
        });
        runtime.handle.block_on(engine.close());
        drop((engine, runtime));
        is_closed.store(true, SeqCst);
    });
    assert_eq!(server.command(&["HLEN", "tollgate:{s0}:holds"]), Ok(0));
}
