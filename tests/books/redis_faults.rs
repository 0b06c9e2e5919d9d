//! What a bad network between gateway and Redis does to the books: nothing.
//!
//! `TOLLGATE_FAULT_CHARGES` makes another number of charges, `TOLLGATE_FAULT_SEED` replays one;
//! `tests/network-campaign` sets them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tollgate::books::redis::{self, Options};
use tollgate::books::{Ask, Books, BooksError, Posted, Resolution, Resolved};
use tollgate::core::account::Account;
use tollgate::core::charge::{OutcomeMemo, State};

use crate::engine::{NOW, account, ask, balance, id, name, take, until};
use crate::engine_redis::{EventLoop, folded, options};
use crate::fault_proxy::{FaultProxy, KINDS};
use crate::redis_server::RedisServer;

/// Charges of one run of the tests; a hundred thousand by hand.
const CHARGES: u64 = 10_000;
/// How many of them are made at once.
const AT_ONCE: u64 = 32;
const ACCOUNTS: [&str; 4] = ["a", "b", "c", "d"];
const GRANT: u64 = 1_000_000_000;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// What the answers came to.
#[derive(Default)]
struct Told {
    captured: [AtomicU64; ACCOUNTS.len()],
    /// Answers that did not come in time.
    unknown: AtomicU64,
}

/// Makes one charge, and settles it somehow.
async fn charge(session: &redis::Session, number: u64, told: &Told) {
    let at = number as usize % ACCOUNTS.len();
    let accounts: [Account<'_>; 1] = [account(ACCOUNTS[at], GRANT, 1)];
    let (amount, kept) = (1 + number % 7, number % 5);
    let post = take(amount, &[0]);
    let asked: Ask<'_> = ask(number, &accounts, &post);
    match session.hold(&asked).await {
        Ok(Posted::Done(legs, _)) => assert_eq!(legs[0].amount, amount),
        Ok(other) => panic!("there is enough: {other:?}"),
        Err(BooksError::Unavailable(_)) => {
            told.unknown.fetch_add(1, Ordering::SeqCst);
            return;
        }
        Err(error) => panic!("{error}"),
    }
    let (memo, keep) = (OutcomeMemo::default(), [kept]);
    let state = if number.is_multiple_of(3) { State::Voided } else { State::Captured };
    let keep = if state == State::Captured { &keep[..] } else { &[] };
    let settled = session.resolve(id(number), &Resolution::plain(state, keep, NOW, &memo)).await;
    match settled {
        Ok(Resolved::Done(..)) if state == State::Captured => {
            told.captured[at].fetch_add(kept.min(amount), Ordering::SeqCst);
        }
        Ok(Resolved::Done(..)) => {}
        other => panic!("its own charge: {other:?}"),
    }
}

#[test]
fn f26_f35_a_bad_network_loses_doubles_and_leaves_nothing() {
    let charges = number("TOLLGATE_FAULT_CHARGES", CHARGES);
    let seed = number("TOLLGATE_FAULT_SEED", u64::from(std::process::id()));
    eprintln!("TOLLGATE_FAULT_SEED={seed}");
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.port, seed);
    let bad = Options {
        url: format!("redis://127.0.0.1:{}", proxy.port).into(),
        call_timeout: Duration::from_millis(200),
        deadline: Duration::from_secs(60),
        ..options(&server)
    };
    let runtime = EventLoop::start();
    let handle = &runtime.handle;
    let engine = handle.block_on(redis::Engine::open(bad, handle.clone(), NOW)).unwrap();
    proxy.set_active(true);
    let (told, next) = (Arc::new(Told::default()), Arc::new(AtomicU64::new(0)));
    let sessions = [engine.session(), engine.session()];
    let mut tasks = JoinSet::new();
    for task in 0..AT_ONCE {
        let session = sessions[task as usize % 2].clone();
        let (told, next) = (Arc::clone(&told), Arc::clone(&next));
        tasks.spawn_on(
            async move {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= charges {
                        return;
                    }
                    charge(&session, number, &told).await;
                }
            },
            handle,
        );
    }
    handle.block_on(tasks.join_all());
    proxy.set_active(false);
    let counts = proxy.counts();
    for (kind, count) in KINDS.iter().zip(counts) {
        assert!(count > 0 || charges < CHARGES, "{kind} never happened: {counts:?}");
    }
    assert_eq!(told.unknown.load(Ordering::SeqCst), 0, "a minute is enough");
    // Asked behind all that a session was asked.
    for session in &sessions {
        handle.block_on(session.balances(&[account("a", GRANT, 1)])).unwrap();
    }
    assert_eq!(handle.block_on(engine.open_holds()).unwrap(), 0);
    let all = handle.block_on(engine.balances()).unwrap();
    for (at, which) in ACCOUNTS.iter().enumerate() {
        let captured = told.captured[at].load(Ordering::SeqCst);
        let found = all.iter().find(|(_, found, _)| *found == name(which)).unwrap().2;
        assert_eq!(found, balance(GRANT, 0, 0, captured), "{which}, after {counts:?}");
        assert_eq!(folded(&engine, handle)[&name(which)], found);
    }
}

/// What may or may not have been captured, and what certainly was.
#[derive(Default)]
struct Bounds {
    told: AtomicU64,
    doubtful: AtomicU64,
    /// How many were captured, how many were so before, and how many were not made.
    kinds: [AtomicU64; 3],
}

/// Makes one charge while others may resolve it, and captures it somehow.
async fn doubtful_charge(session: &redis::Session, number: u64, bounds: &Bounds) {
    let (accounts, seven) = ([account("a", GRANT, 1)], take(7, &[0]));
    // Some outlive whoever asks for them, and are nobody's where he never knew of them.
    let lasting = if number.is_multiple_of(3) { until(60) } else { None };
    let count = |kind: usize| bounds.kinds[kind].fetch_add(1, Ordering::SeqCst);
    match session.hold(&Ask { lasting, ..ask(number, &accounts, &seven) }).await {
        Ok(Posted::Done(..)) => {}
        Err(BooksError::Unavailable(_)) => {
            count(2);
            return;
        }
        other => panic!("{other:?}"),
    }
    let (memo, keep) = (OutcomeMemo::default(), [1 + number % 7]);
    let capture = Resolution::plain(State::Captured, &keep, NOW, &memo);
    match session.resolve(id(number), &capture).await {
        Ok(Resolved::Done(..)) => {
            count(0);
            bounds.told.fetch_add(keep[0], Ordering::SeqCst);
        }
        // Its own capture, of which the answer was lost with its session.
        Ok(Resolved::Already(State::Captured) | Resolved::Unknown) => {
            count(1);
            bounds.doubtful.fetch_add(keep[0], Ordering::SeqCst);
        }
        other => panic!("nobody else captures, and a void is captured late: {other:?}"),
    }
}

#[test]
fn d36_f23_f26_gateways_that_are_lost_and_found_again_leave_exact_books() {
    let charges = number("TOLLGATE_FAULT_CHARGES", CHARGES) / 5;
    let seed = number("TOLLGATE_FAULT_SEED", u64::from(std::process::id()));
    eprintln!("TOLLGATE_FAULT_SEED={seed}");
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.port, seed);
    let timeout = Duration::from_millis(60);
    let good = Options {
        gateway: "other".into(),
        deadline: Duration::from_secs(60),
        owner_timeout: timeout,
        ..options(&server)
    };
    let bad = Options {
        url: format!("redis://127.0.0.1:{}", proxy.port).into(),
        gateway: "lost".into(),
        call_timeout: Duration::from_millis(100),
        ..good.clone()
    };
    let runtimes = [EventLoop::start(), EventLoop::start()];
    let [lost, other] = [(bad, &runtimes[0]), (good, &runtimes[1])].map(|(options, runtime)| {
        let handle = &runtime.handle;
        handle.block_on(redis::Engine::open(options, handle.clone(), NOW)).unwrap()
    });
    proxy.set_active(true);
    let (bounds, next) = (Arc::new(Bounds::default()), Arc::new(AtomicU64::new(0)));
    let session = lost.session();
    let mut tasks = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (session, bounds, next) = (session.clone(), Arc::clone(&bounds), Arc::clone(&next));
        let charging = async move {
            loop {
                let number = next.fetch_add(1, Ordering::SeqCst);
                if number >= charges {
                    return;
                }
                doubtful_charge(&session, number, &bounds).await;
            }
        };
        tasks.spawn_on(charging, &runtimes[0].handle);
    }
    let mut ended = 0;
    let resolve =
        || runtimes[1].handle.block_on(other.resolve_absent(NOW)).whole().unwrap().len() as u64;
    while next.load(Ordering::SeqCst) < charges {
        ended += resolve();
    }
    proxy.set_active(false);
    runtimes[0].handle.block_on(tasks.join_all());
    let patience = Instant::now() + Duration::from_secs(60);
    while runtimes[1].handle.block_on(other.open_holds()).unwrap() > 0 {
        ended += resolve();
        assert!(Instant::now() < patience, "a hold is nobody's");
    }
    let kinds = bounds.kinds.each_ref().map(|kind| kind.load(Ordering::SeqCst));
    eprintln!("captured, before, not made: {kinds:?}; ended by others: {ended}");
    let all = runtimes[1].handle.block_on(other.balances()).unwrap();
    let found = all.iter().find(|(_, found, _)| *found == name("a")).unwrap().2;
    assert_eq!(folded(&other, &runtimes[1].handle)[&name("a")], found);
    let told = bounds.told.load(Ordering::SeqCst);
    let most = told + bounds.doubtful.load(Ordering::SeqCst);
    assert_eq!(found, balance(GRANT, 0, 0, found.captured));
    assert!((told..=most).contains(&found.captured), "{told} to {most}: {found:?}");
}
