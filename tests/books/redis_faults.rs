//! What a bad network between gateway and Redis does to the books: nothing.
//!
//! `TOLLGATE_FAULT_CHARGES` makes another number of charges, `TOLLGATE_FAULT_SEED` replays one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tollgate::books::redis::{self, Options};
use tollgate::books::{Ask, Books, BooksError, Posted, Resolution, Resolved};
use tollgate::core::account::Account;
use tollgate::core::charge::{OutcomeMemo, State};

use crate::engine::{NOW, account, ask, balance, id, name, take};
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
