//! Cycles that are long over: their accounts go, and nothing ever opens them again.

use std::sync::atomic::{AtomicBool, Ordering};

use jiff::{SignedDuration, Timestamp};
use tollgate::books::embedded::{Engine, Options};
use tollgate::books::{Adjustment, Ask, Books, BooksError, Posted, Resolution, Resolved};
use tollgate::cli::ledger::verify;
use tollgate::core::account::{Account, AccountKind, Balance};
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::core::cycle::Label;

use crate::engine::{NOW, account, ask, done, id, run, take, temporary};

fn at_day(day: u64) -> Timestamp {
    NOW + SignedDuration::from_hours(24 * day as i64)
}

/// A licence's account in the cycle of a day: a new one every 30 days.
fn of_day(day: u64) -> Account<'static> {
    let mut account = account("a", 1_000, 1);
    account.key.period = Label::of_day((day / 30 * 30) as i32);
    account.name.period = account.key.period;
    account
}

fn hold(books: &impl Books, charge: u64, day: u64, account: &Account<'_>) -> Posted {
    let post = take(1, &[0]);
    let asked = Ask { now: at_day(day), ..ask(charge, std::slice::from_ref(account), &post) };
    run(books.hold(&asked)).unwrap()
}

fn capture(books: &impl Books, charge: u64, day: u64) {
    let memo = OutcomeMemo::default();
    let keep = [1];
    let state = State::Captured;
    let resolution = Resolution::plain(state, &keep, at_day(day), &memo);
    assert!(matches!(run(books.resolve(id(charge), &resolution)).unwrap(), Resolved::Done(..)));
}

fn spend(books: &impl Books, day: u64) {
    assert!(done(hold(books, day, day, &of_day(day))).is_some());
    capture(books, day, day);
}

fn open(dir: &std::path::Path, day: u64) -> Engine {
    let options = Options { segment_size: 1 << 12, ..Options::default() };
    Engine::open_with(dir, at_day(day), options).unwrap()
}

fn accounts(engine: &Engine) -> usize {
    let mut count = 0;
    engine.for_each_balance(|_, _, _| count += 1);
    count
}

#[test]
fn d06_accounts_of_cycles_that_are_long_over_leave_memory_and_snapshots() {
    let dir = temporary();
    let mut sizes = Vec::new();
    for year in 0..4 {
        let engine = open(dir.path(), year * 360);
        let session = engine.session();
        for day in year * 360..(year + 1) * 360 {
            spend(&session, day);
        }
        drop((session, engine));
        // A start reads the records, and with them what time they are of.
        let engine = open(dir.path(), (year + 1) * 360);
        engine.close_cycles(at_day((year + 1) * 360)).unwrap();
        sizes.push(accounts(&engine));
        assert!(engine.snapshot(NOW).unwrap());
        drop(engine);
    }
    // The last hundred days touch five cycles at most.
    assert!(sizes.iter().all(|&size| size <= 5), "{sizes:?}");
    // The record of the last closing is behind the last snapshot.
    assert!(open(dir.path(), 1_440).snapshot(NOW).unwrap());
    let verified = verify(dir.path()).unwrap();
    assert!(verified.findings().is_empty(), "{:?}", verified.findings());
    let (_, newest) = tollgate::books::snapshot::list(dir.path()).unwrap().pop().unwrap();
    let fold = tollgate::books::snapshot::read(&newest).unwrap();
    assert!(fold.accounts.len() <= 5, "{}", fold.accounts.len());
    assert!(fold.closed > of_day(1_200).key.period && fold.closed < of_day(1_400).key.period);
}

#[test]
fn f46_a_closed_cycle_is_empty_for_ever_also_after_a_restart() {
    let dir = temporary();
    let engine = open(dir.path(), 0);
    (0..200).for_each(|day| spend(&engine.session(), day));
    drop(engine);
    let engine = open(dir.path(), 200);
    assert!(engine.close_cycles(at_day(200)).unwrap() > 0);
    let see = |engine: &Engine| {
        let (session, old, current) = (engine.session(), of_day(0), of_day(199));
        assert!(session.is_closed(&old.key) && !session.is_closed(&current.key));
        let Posted::Short(view) = hold(&session, 1_000, 0, &old) else { panic!("it was opened") };
        assert_eq!(view.get(0), Some(Balance::default()));
        let view = run(session.balances(&[old])).unwrap();
        assert_eq!(view.get(0), Some(Balance::default()));
        for delta in [1, -1] {
            let adjustment =
                Adjustment { key: None, account: &of_day(0), delta, now: at_day(200), memo: b"" };
            assert_eq!(run(session.adjust(&adjustment)), Err(BooksError::Closed));
        }
        // What somebody owes for that cycle can still be written down, and forgiven.
        let mut owed = of_day(0);
        (owed.key.kind, owed.name.kind) = (AccountKind::Overdraft, AccountKind::Overdraft);
        let adjustment =
            Adjustment { key: None, account: &owed, delta: 1, now: at_day(200), memo: b"" };
        assert!(run(session.adjust(&adjustment)).is_ok());
    };
    see(&engine);
    drop(engine);
    see(&open(dir.path(), 200));
    let verified = verify(dir.path()).unwrap();
    assert!(verified.findings().is_empty(), "{:?}", verified.findings());
}

#[test]
fn f47_a_jump_ahead_closes_nothing_and_an_open_hold_keeps_its_cycle() {
    let dir = temporary();
    let engine = open(dir.path(), 0);
    (0..99).for_each(|day| spend(&engine.session(), day));
    spend(&engine.session(), 100_000);
    drop(engine);
    let engine = open(dir.path(), 100_000);
    assert_eq!(engine.close_cycles(at_day(100_000)).unwrap(), 0);
    assert!(!engine.session().is_closed(&of_day(0).key), "99 days and a jump are no 100 days");
    // A hold of long ago is open while a hundred days pass.
    let session = engine.session();
    assert!(done(hold(&session, 5_000, 40, &of_day(40))).is_some());
    (200..400).for_each(|day| spend(&session, day));
    // A snapshot tells what time the records are of.
    assert!(engine.snapshot(NOW).unwrap());
    engine.close_cycles(at_day(400)).unwrap();
    assert!(!session.is_closed(&of_day(40).key));
    capture(&session, 5_000, 400);
    engine.close_cycles(at_day(400)).unwrap();
    assert!(session.is_closed(&of_day(40).key));
}

#[test]
fn f22_posts_that_race_the_closing_of_their_cycle_are_whole_or_nothing() {
    for round in 0..20 {
        let dir = temporary();
        let engine = open(dir.path(), 0);
        (0..200).for_each(|day| spend(&engine.session(), day));
        drop(engine);
        let engine = open(dir.path(), 200);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..2_u64 {
                let (session, stop) = (engine.session(), &stop);
                scope.spawn(move || {
                    let mut charge = 10_000 + thread * 1_000_000;
                    while !stop.load(Ordering::Relaxed) {
                        charge += 1;
                        // A caller whose clock is months behind.
                        if done(hold(&session, charge, 0, &of_day(0))).is_some() {
                            capture(&session, charge, 0);
                        }
                        let adjustment = Adjustment {
                            key: None,
                            account: &of_day(0),
                            delta: 1,
                            now: at_day(0),
                            memo: b"",
                        };
                        let adjusted = run(session.adjust(&adjustment));
                        assert!(adjusted.is_ok() || adjusted == Err(BooksError::Closed));
                    }
                });
            }
            for _ in 0..200 + round {
                engine.close_cycles(at_day(200)).unwrap();
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
        });
        drop(engine);
        // The records add up, and nobody opened what was closed.
        let verified = verify(dir.path()).unwrap();
        assert!(verified.findings().is_empty(), "{:?}", verified.findings());
        drop(open(dir.path(), 200));
    }
}

/// Its clock is right and its cycle is not: a caller that slept for months.
#[test]
fn f47_no_cycle_is_closed_in_which_something_is_held_however_late_it_was() {
    let dir = temporary();
    let engine = open(dir.path(), 0);
    (0..200).for_each(|day| spend(&engine.session(), day));
    drop(engine);
    let engine = open(dir.path(), 200);
    let session = engine.session();
    assert!(done(hold(&session, 5_000, 200, &of_day(0))).is_some());
    assert_eq!(engine.close_cycles(at_day(200)).unwrap(), 0);
    assert!(!session.is_closed(&of_day(0).key));
    let before = accounts(&engine);
    capture(&session, 5_000, 200);
    let gone = engine.close_cycles(at_day(200)).unwrap();
    assert!(session.is_closed(&of_day(0).key));
    assert_eq!((gone > 0, accounts(&engine)), (true, before - gone));
    let verified = verify(dir.path()).unwrap();
    assert!(verified.findings().is_empty(), "{:?}", verified.findings());
}

/// What settles an open hold may take from its cycle where it holds nothing, and only from that.
#[test]
fn f47_an_open_hold_keeps_the_accounts_of_its_cycle_and_no_older_ones() {
    let dir = temporary();
    let engine = open(dir.path(), 0);
    (0..400).for_each(|day| spend(&engine.session(), day));
    drop(engine);
    let engine = open(dir.path(), 400);
    let session = engine.session();
    let mut owed = of_day(130);
    (owed.key.kind, owed.name.kind) = (AccountKind::Overdraft, AccountKind::Overdraft);
    assert!(done(hold(&session, 5_000, 130, &owed)).is_some());
    engine.close_cycles(at_day(400)).unwrap();
    assert!(session.is_closed(&of_day(30).key) && !session.is_closed(&of_day(90).key));
    assert!(done(hold(&session, 5_001, 400, &of_day(130))).is_some());
}
