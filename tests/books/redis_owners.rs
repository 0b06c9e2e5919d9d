//! Gateways that are not heard of any more (D36): their holds are resolved once, by whoever sees it,
//! and they forward nothing when they come back.
//!
//! A gateway is paused by a proxy that keeps what it sends, or what it is sent. Timeouts are short, and
//! conditions are waited for: a slow machine makes these tests longer, and nothing else.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ::redis::Commands;
use tokio::task::JoinSet;
use tollgate::books::redis::{self, Options, Session};
use tollgate::books::{
    Adjustment, Amended, Amendment, Ask, Books, BooksError, InDoubt, OpenCharge, Posted,
    Resolution, Resolved,
};
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::core::ids::ChargeId;
use tollgate::core::record::Record;

use crate::engine::{
    NOW, account, amendment, ask, balance, done, id, known, name, resolution, run, second, take,
    until,
};
use crate::engine_redis::{EventLoop, folded, options};
use crate::fault_proxy::FaultProxy;
use crate::redis_server::RedisServer;

/// After which others resolve; long enough that a machine does something in half of it.
const TIMEOUT: Duration = Duration::from_millis(800);
const PATIENCE: Duration = Duration::from_secs(120);
const HOLDS: &str = "tollgate:{s0}:holds";
const SESSIONS: &str = "tollgate:{s0}:sessions";

/// A gateway's books, behind a proxy of its own.
struct Gateway {
    engine: redis::Engine,
    session: Session,
    runtime: EventLoop,
    proxy: FaultProxy,
}

impl Gateway {
    fn start(server: &RedisServer, gateway: &str) -> Self {
        let proxy = FaultProxy::start(server.port, 0);
        let options = Options {
            url: format!("redis://127.0.0.1:{}", proxy.port).into(),
            gateway: gateway.into(),
            call_timeout: PATIENCE,
            deadline: PATIENCE,
            owner_timeout: TIMEOUT,
            ..options(server)
        };
        let runtime = EventLoop::start();
        let opening = redis::Engine::open(options, runtime.handle.clone(), NOW);
        let engine = runtime.handle.block_on(opening).unwrap();
        Self { session: engine.session(), engine, runtime, proxy }
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.handle.block_on(future)
    }

    /// Makes a hold, as often as it takes: a machine may be so slow that it comes too late.
    fn hold(&self, first: u64, asked: &Ask<'_>) -> u64 {
        for charge in first..first + 100 {
            let asked = Ask { charge: id(charge), ..asked.clone() };
            match self.run(self.session.hold(&asked)) {
                Ok(posted) => {
                    assert!(done(posted).is_some());
                    return charge;
                }
                Err(BooksError::Unavailable(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("it never holds");
    }

    fn hold_ten(&self, first: u64) -> u64 {
        self.hold(first, &ask(first, &[account("a", 1000, 1)], &take(10, &[0])))
    }

    fn resolve_absent(&self) -> Vec<(OpenCharge, State)> {
        self.run(self.engine.resolve_absent(NOW)).whole().unwrap()
    }

    /// Resolves what others left until a gateway has no session any more.
    fn resolve_until_gone(&self, server: &RedisServer, gateway: &str) -> Vec<(ChargeId, State)> {
        let mut ended = Vec::new();
        wait_for(|| {
            ended.extend(
                self.resolve_absent().into_iter().map(|(open, state)| (open.charge, state)),
            );
            of_gateway(server, gateway).is_empty()
        });
        ended
    }

    fn balance(&self) -> tollgate::core::account::Balance {
        let all = self.run(self.engine.balances()).unwrap();
        let found = all.into_iter().find(|(_, found, _)| *found == name("a")).unwrap().2;
        assert_eq!(folded(&self.engine, &self.runtime.handle)[&name("a")], found);
        found
    }
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it never comes");
        run(async { tokio::time::sleep(Duration::from_millis(5)).await });
    }
}

fn connection(server: &RedisServer) -> ::redis::Connection {
    ::redis::Client::open(server.url()).unwrap().get_connection().unwrap()
}

/// The sessions of a gateway, with their marks.
fn of_gateway(server: &RedisServer, gateway: &str) -> BTreeMap<String, Vec<u8>> {
    let all: BTreeMap<String, Vec<u8>> = connection(server).hgetall(SESSIONS).unwrap();
    let is_of = |name: &str| name.starts_with(&format!("{gateway}/")) && !name.ends_with(":r");
    all.into_iter().filter(|(name, _)| is_of(name)).collect()
}

fn is_open(server: &RedisServer, charge: u64) -> bool {
    connection(server).hexists(HOLDS, &id(charge).0[..]).unwrap()
}

fn is_unavailable<T: std::fmt::Debug>(asked: Result<T, BooksError>) {
    assert!(matches!(asked, Err(BooksError::Unavailable(_))), "{asked:?}");
}

#[test]
fn d36_an_idle_session_renews_and_one_that_never_joined_sends_nothing() {
    let server = RedisServer::start();
    let gateway = Gateway::start(&server, "a");
    let never = gateway.engine.session();
    assert!(of_gateway(&server, "a").is_empty());
    gateway.hold_ten(1);
    let ledger = || gateway.run(gateway.engine.ledger(0, 0, 1000)).unwrap().len();
    let (mut seen, entries) = (of_gateway(&server, "a"), ledger());
    for _ in 0..3 {
        wait_for(|| of_gateway(&server, "a") != seen);
        let now = of_gateway(&server, "a");
        assert!(now.keys().eq(seen.keys()));
        seen = now;
    }
    assert_eq!((seen.len(), ledger()), (1, entries));
    drop(never);
}

#[test]
fn d36_two_gateways_that_see_a_third_one_absent_resolve_its_holds_once() {
    let server = RedisServer::start();
    let absent = Gateway::start(&server, "a");
    let voided: Vec<u64> = (0..40).map(|n| absent.hold_ten(1000 * (n + 1))).collect();
    let (accounts, ten) = ([account("a", 1000, 1)], take(10, &[0]));
    let captures = Ask { in_doubt: InDoubt::Capture, ..ask(1, &accounts, &ten) };
    let captured = absent.hold(100_000, &captures);
    let used = absent.hold_ten(200_000);
    let three = known(&[3]);
    let three = Amendment { known: Some(&three), ..amendment() };
    assert!(matches!(absent.run(absent.session.amend(id(used), &three)), Ok(Amended::Done(..))));
    let lasts = absent.hold(300_000, &Ask { lasting: until(60), ..ask(1, &accounts, &ten) });
    drop(absent);

    let gateways = ["b", "c"].map(|name| Gateway::start(&server, name));
    let ended: Vec<(ChargeId, State)> = std::thread::scope(|scope| {
        let resolving = gateways.each_ref().map(|gateway| {
            let server = &server;
            scope.spawn(move || gateway.resolve_until_gone(server, "a"))
        });
        resolving.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let mut expected: BTreeMap<ChargeId, State> =
        voided.iter().map(|charge| (id(*charge), State::Voided)).collect();
    expected.extend([(id(captured), State::Captured), (id(used), State::Captured)]);
    assert_eq!(ended.len(), expected.len(), "{ended:?}");
    assert_eq!(BTreeMap::from_iter(ended), expected);
    // What outlives its process does so here too, and ends in its time.
    assert_eq!(gateways[0].balance(), balance(1000, 0, 10, 13));
    let expired = gateways[1].run(gateways[1].engine.expire(second(60))).whole().unwrap();
    let expired: Vec<_> = expired.iter().map(|(open, state)| (open.charge, *state)).collect();
    assert_eq!(expired, [(id(lasts), State::Expired)]);
    assert_eq!(gateways[0].balance(), balance(1000, 0, 0, 13));
}

#[test]
fn d36_an_owner_that_comes_back_before_its_holds_are_ended_keeps_them() {
    let server = RedisServer::start();
    let (owner, other) = (Gateway::start(&server, "a"), Gateway::start(&server, "b"));
    let charge = owner.hold_ten(1);
    owner.proxy.keep_requests("");
    // It joins when it has read everything, and is about to end the first hold.
    other.proxy.keep_requests("tollgate_1_join");
    let stop = AtomicBool::new(false);
    let ended = std::thread::scope(|scope| {
        let resolving = scope.spawn(|| {
            let mut ended = Vec::new();
            while !stop.load(Ordering::SeqCst) {
                ended.extend(other.resolve_absent());
            }
            ended
        });
        wait_for(|| other.proxy.kept() > 0);
        let seen = of_gateway(&server, "a");
        owner.proxy.release();
        wait_for(|| of_gateway(&server, "a") != seen);
        stop.store(true, Ordering::SeqCst);
        other.proxy.release();
        resolving.join().unwrap()
    });
    assert!(ended.is_empty(), "{ended:?}");
    assert!(is_open(&server, charge));
    let first = of_gateway(&server, "a");
    assert_eq!(first.len(), 1);
    let (memo, keep) = (OutcomeMemo::default(), [10]);
    let captured = resolution(State::Captured, &keep, &memo);
    let captured = owner.run(owner.session.resolve(id(charge), &captured));
    assert!(matches!(captured, Ok(Resolved::Done(..))), "{captured:?}");
    assert!(of_gateway(&server, "a").keys().eq(first.keys()), "it is the same session");
    assert_eq!(owner.balance(), balance(1000, 0, 0, 10));
}

/// A hold of ten whose answer nobody waits for yet.
fn begin(gateway: &Gateway, charge: u64) -> JoinSet<Result<Posted, BooksError>> {
    let (accounts, ten) = ([account("a", 1000, 1)], take(10, &[0]));
    let asked = gateway.session.hold(&ask(charge, &accounts, &ten));
    let mut task = JoinSet::new();
    task.spawn_on(asked, &gateway.runtime.handle);
    task
}

#[test]
fn f36_paused_gateway_does_not_forward() {
    let server = RedisServer::start();
    let paused = Gateway::start(&server, "a");
    let before = paused.hold_ten(1);
    let held = Instant::now();
    // It is paused between sending and reading, and nobody else looks.
    paused.proxy.keep_replies();
    let task = begin(&paused, 1000);
    wait_for(|| is_open(&server, 1000));
    let at_least = Instant::now();
    wait_for(|| at_least.elapsed() >= TIMEOUT / 2);
    wait_for(|| !paused.session.may_forward(id(before), held));
    paused.proxy.release();
    is_unavailable(paused.run(task.join_all()).remove(0));
    wait_for(|| !is_open(&server, 1000));

    // Paused again, and its holds are resolved meanwhile.
    let other = Gateway::start(&server, "b");
    let after = paused.hold_ten(2000);
    paused.proxy.keep_replies();
    let task = begin(&paused, 3000);
    wait_for(|| is_open(&server, 3000));
    let ended = other.resolve_until_gone(&server, "a");
    let of = |charge| ended.iter().filter(|(ended, _)| *ended == id(charge)).count();
    assert_eq!((of(3000), of(before), of(after)), (1, 1, 1), "{ended:?}");
    let at_least = Instant::now();
    wait_for(|| at_least.elapsed() >= TIMEOUT / 2);
    paused.proxy.release();
    is_unavailable(paused.run(task.join_all()).remove(0));

    // It goes on with what it is asked from now on, and with nothing of before.
    let mut charge = 4000;
    wait_for(|| {
        charge = paused.hold_ten(charge + 1);
        paused.session.may_forward(id(charge), Instant::now())
    });
    assert!(!paused.session.may_forward(id(before), held));
    let resolved = |charge: u64| {
        let entries = other.run(other.engine.ledger(0, 0, 10_000)).unwrap();
        let mut found = 0;
        for (_, bytes) in &entries {
            let records = redis::ledger::Entry::read(bytes).unwrap().records;
            let is_its = |record: &&Record<'_>| matches!(record, Record::Resolve(resolve) if resolve.charge == id(charge).0);
            found += records.iter().filter(is_its).count();
        }
        found
    };
    assert_eq!([before, 1000, after, 3000].map(resolved), [1; 4]);
    assert_eq!(other.balance().captured, 0);
}

/// What a session is told of an operation that was on its way when it was removed. The operation has
/// `marker` in it. It is given a charge of its own that is open.
fn while_removed<T: Send>(
    server: &RedisServer,
    name: &str,
    marker: &'static str,
    operation: impl FnOnce(&Gateway, ChargeId) -> T + Send,
) -> T {
    let (removed, other) = (Gateway::start(server, name), Gateway::start(server, "other"));
    let charge = removed.hold_ten(1000 * u64::from(name.as_bytes()[0]));
    let before = of_gateway(server, name);
    removed.proxy.keep_requests(marker);
    let told = std::thread::scope(|scope| {
        let asked = scope.spawn(|| operation(&removed, id(charge)));
        wait_for(|| removed.proxy.kept() > 0);
        let ended = other.resolve_until_gone(server, name);
        assert!(ended.contains(&(id(charge), State::Voided)), "{ended:?}");
        removed.proxy.release();
        asked.join().unwrap()
    });
    removed.hold_ten(charge + 500);
    // A call under the old name may still be on its way.
    let after = of_gateway(server, name);
    assert_eq!(after.len(), 1);
    assert!(after.keys().all(|name| !before.contains_key(name)), "{before:?}, then {after:?}");
    told
}

#[test]
fn d36_a_removed_session_delivers_what_is_safe_under_another_name() {
    const MARKER: &str = "the proxy keeps this";
    let server = RedisServer::start();
    let accounts = [account("a", 1000, 1)];
    let (memo, ten) = (OutcomeMemo::default(), take(10, &[0]));
    let resolve = |state, keep: &'static [u64]| {
        let memo = &memo;
        move |gateway: &Gateway, charge| {
            let resolution =
                Resolution { note: MARKER.as_bytes(), ..resolution(state, keep, memo) };
            gateway.run(gateway.session.resolve(charge, &resolution))
        }
    };
    let captured = while_removed(&server, "c", MARKER, resolve(State::Captured, &[4]));
    assert!(matches!(captured, Ok(Resolved::Done(..))), "{captured:?}");
    let voided = while_removed(&server, "v", MARKER, resolve(State::Voided, &[]));
    assert!(matches!(voided, Ok(Resolved::Already(State::Voided))), "{voided:?}");
    is_unavailable(while_removed(&server, "h", MARKER, |gateway, _| {
        let asked = Ask { memo: MARKER.as_bytes(), ..ask(1, &accounts, &ten) };
        gateway.run(gateway.session.hold(&asked))
    }));
    is_unavailable(while_removed(&server, "j", MARKER, |gateway, _| {
        let memo = MARKER.as_bytes();
        let adjustment = Adjustment { key: None, account: &accounts[0], delta: 5, now: NOW, memo };
        gateway.run(gateway.session.adjust(&adjustment))
    }));
    let read = while_removed(&server, "r", "acme/licence", |gateway, _| {
        gateway.run(gateway.session.balances(&accounts))
    });
    assert!(read.unwrap().get(0).is_some());
    let last = Gateway::start(&server, "z");
    assert_eq!((last.balance().adjusted, last.balance().captured), (0, 4));
    assert!(!is_open(&server, 1));
}
