//! `durability = "replica"`: what is acknowledged outlives its master.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tollgate::books::redis::{Engine, Options, Session};
use tollgate::books::{Books, BooksError, Posted, Resolved};
use tollgate::core::charge::{OutcomeMemo, State};

use crate::engine::{NOW, account, ask, balance, done, id, name, resolution, take};
use crate::engine_redis::{EventLoop, folded, options};
use crate::fault_proxy::FaultProxy;
use crate::redis_server::{RedisServer, until};

/// How long a request waits where a replica is away.
const SHORT: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(60);
const GRANT: u64 = 1_000_000;

fn server() -> RedisServer {
    RedisServer::start_with(&["--repl-diskless-sync-delay", "0"])
}

/// Has a server follow another, and waits until it has told that one what it has.
fn follow(replica: &RedisServer, master: &RedisServer) {
    replica.command::<()>(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]).unwrap();
    master.until_followed();
}

/// A replica of what nobody is behind gets nothing more.
fn cut(replica: &RedisServer) {
    replica.command::<()>(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
}

/// A gateway's part, with nothing on its own disk.
fn with(url: &str, gateway: &str, deadline: Duration) -> Options {
    Options {
        url: url.into(),
        gateway: gateway.into(),
        replica: true,
        call_timeout: Duration::from_millis(400),
        deadline,
        journal: None,
        ..options(&RedisServer::shared())
    }
}

fn open(runtime: &EventLoop, options: Options) -> Engine {
    let handle = runtime.handle.clone();
    runtime.handle.block_on(Engine::open(options, handle, NOW)).unwrap()
}

async fn hold(session: &Session, number: u64) -> Result<bool, BooksError> {
    let (accounts, ten) = ([account("a", GRANT, 1)], take(10, &[0]));
    Ok(done(session.hold(&ask(number, &accounts, &ten)).await?).is_some())
}

async fn capture(session: &Session, number: u64) -> Result<Resolved, BooksError> {
    let memo = OutcomeMemo::default();
    session.resolve(id(number), &resolution(State::Captured, &[7], &memo)).await
}

#[test]
fn f27_nothing_is_acknowledged_that_no_replica_has_and_it_goes_on_by_itself() {
    let (master, replica) = (server(), server());
    follow(&replica, &master);
    let runtime = EventLoop::start();
    let timeout = Duration::from_secs(5);
    let gateway = |name: &str| {
        let url = master.url();
        open(&runtime, Options { owner_timeout: timeout, ..with(&url, name, SHORT) })
    };
    let (engine, other) = (gateway("one"), gateway("other"));
    let session = engine.session();
    let mut next = 0;
    let mut one_more = || {
        next += 1;
        (next, runtime.handle.block_on(hold(&session, next)))
    };
    let mut first = 0;
    until("a hold", || {
        let told;
        (first, told) = one_more();
        told == Ok(true)
    });
    let of = |engine: &Engine| runtime.handle.block_on(engine.balances()).unwrap()[0].2;
    // Whatever the machine was too slow for before that is given back.
    until("one is held", || of(&other).held == 10);
    replica.pause(true);
    // The master has done it, and nobody was told that he may forward.
    assert!(matches!(one_more().1, Err(BooksError::Unavailable(_))));
    until("the master has done it", || of(&other).held == 20);
    // Its session is heard of all the same: nobody ends what it holds.
    let began = std::time::Instant::now();
    while began.elapsed() < timeout + timeout / 2 {
        let ended = runtime.handle.block_on(other.resolve_absent(NOW)).whole().unwrap();
        assert!(ended.is_empty(), "{ended:?}");
    }
    assert!(matches!(one_more().1, Err(BooksError::Unavailable(_))));
    replica.pause(false);
    until("it goes on", || one_more().1 == Ok(true));
    // What nobody was told of is given back.
    until("the others are void", || of(&other).held == 20);
    // A capture that is not acknowledged in time is made all the same.
    let told = runtime.handle.block_on(capture(&session, first));
    assert!(matches!(told, Ok(Resolved::Done(..)) | Err(BooksError::Unavailable(_))), "{told:?}");
    until("the first one is captured", || of(&other) == balance(GRANT, 0, 10, 7));
    assert_eq!(folded(&engine, &runtime.handle)[&name("a")], of(&other));
}

/// What the answers came to.
#[derive(Default)]
struct Told {
    ends: AtomicBool,
    held: AtomicU64,
    captured: AtomicU64,
    /// Captures of which nothing was heard in time.
    doubtful: AtomicU64,
    refused: AtomicU64,
}

/// Charges until it is told to end.
async fn charging(session: Session, next: Arc<AtomicU64>, told: Arc<Told>) {
    while !told.ends.load(Ordering::SeqCst) {
        let number = next.fetch_add(1, Ordering::SeqCst);
        match hold(&session, number).await {
            Ok(is_held) => assert!(is_held),
            Err(BooksError::Unavailable(_)) => {
                told.refused.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            Err(error) => panic!("{error}"),
        }
        told.held.fetch_add(1, Ordering::SeqCst);
        match capture(&session, number).await {
            // One that the books do not know of would be a hold that was acknowledged and is lost.
            Ok(Resolved::Done(..)) => told.captured.fetch_add(1, Ordering::SeqCst),
            Err(BooksError::Unavailable(_)) => told.doubtful.fetch_add(1, Ordering::SeqCst),
            other => panic!("its own charge: {other:?}"),
        };
    }
}

#[test]
fn f27_what_was_acknowledged_before_a_master_died_is_at_the_replica_that_takes_over() {
    let (mut master, replica, next_replica) = (server(), server(), server());
    follow(&replica, &master);
    let proxy = FaultProxy::start(master.port, 1);
    let runtime = EventLoop::start();
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let options = Options { owner_timeout: 60 * PATIENCE, ..with(&url, "one", SHORT) };
    let engine = open(&runtime, options);
    let (told, next) = (Arc::new(Told::default()), Arc::new(AtomicU64::new(1)));
    let mut tasks = JoinSet::new();
    for session in [engine.session(), engine.session()] {
        for _ in 0..8 {
            let charging = charging(session.clone(), Arc::clone(&next), Arc::clone(&told));
            tasks.spawn_on(charging, &runtime.handle);
        }
    }
    let count = |of: &AtomicU64| of.load(Ordering::SeqCst);
    let more = |of: &AtomicU64, many: u64| {
        let before = count(of);
        until("charges go on", || count(of) > before + many);
    };
    more(&told.captured, 200);
    // What the master does from here on is nowhere else.
    cut(&replica);
    let doubtful = count(&told.doubtful);
    more(&told.refused, 40);
    assert!(count(&told.doubtful) <= doubtful + 16, "each task has one charge");
    master.kill();
    replica.command::<()>(&["REPLICAOF", "NO", "ONE"]).unwrap();
    follow(&next_replica, &replica);
    proxy.point_to(replica.port);
    more(&told.captured, 200);
    told.ends.store(true, Ordering::SeqCst);
    runtime.handle.block_on(tasks.join_all());
    // Behind all that was asked.
    let captured = || runtime.handle.block_on(engine.balances()).unwrap()[0].2;
    until("what was asked is done", || captured().held == 0);
    let (least, most) = (count(&told.captured), count(&told.captured) + count(&told.doubtful));
    let found = captured().captured / 7;
    assert!((least..=most).contains(&found), "{least} <= {found} <= {most}");
    assert_eq!(folded(&engine, &runtime.handle)[&name("a")], captured());
}

#[test]
fn f27_a_master_without_a_replica_is_refused_at_the_start() {
    let (master, replica) = (server(), server());
    let runtime = EventLoop::start();
    let opened = |url: String| {
        let options = with(&url, "one", PATIENCE);
        let opening = Engine::open(options, runtime.handle.clone(), NOW);
        runtime.handle.block_on(opening).map_err(|error| error.to_string())
    };
    let told = opened(master.url()).unwrap_err();
    assert!(told.contains("no replica follows it") && told.contains("replicaof"), "{told}");
    follow(&replica, &master);
    master.command::<()>(&["ACL", "SETUSER", "u", "on", ">p", "~*", "+@all", "-wait"]).unwrap();
    let told = opened(format!("redis://u:p@127.0.0.1:{}", master.port)).unwrap_err();
    assert!(told.contains("+wait"), "{told}");
    let engine = opened(master.url()).unwrap();
    let (accounts, ten) = ([account("a", GRANT, 1)], take(10, &[0]));
    let held = engine.session().hold(&ask(1, &accounts, &ten));
    assert!(matches!(runtime.handle.block_on(held), Ok(Posted::Done(..))));
    let there: u64 = replica.command(&["HLEN", "tollgate:{s0}:holds"]).unwrap();
    assert_eq!(there, 1, "what is told is there");
}
