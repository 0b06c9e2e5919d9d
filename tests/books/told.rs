//! What the engine tells of itself: what a start found and did, how much is written, and that it
//! has failed.

use std::path::Path;

use tollgate::books::embedded::{Engine, Options, Recovery};
use tollgate::books::journal::{Cursor, Next};
use tollgate::books::{Adjustment, Ask, Books, BooksError, InDoubt};
use tollgate::core::amount::Credits;
use tollgate::core::charge::{Flags, HoldMemo, OutcomeMemo, State};
use tollgate::core::cycle::Label;
use tollgate::core::price::Price;
use tollgate::core::record::Record;

use crate::engine::{
    NOW, account, ask, balance, balances, done, id, name, resolution, run, take, temporary,
};

/// Every record from a position on, with its bytes.
fn records(dir: &Path, from: u64) -> Vec<Vec<u8>> {
    let (mut cursor, mut records) = (Cursor::new(dir, from), Vec::new());
    while cursor.next().unwrap() == Next::Record {
        records.push(cursor.record.clone());
    }
    records
}

#[test]
fn d36_a_start_tells_what_it_found_and_writes_what_became_of_it() {
    let dir = temporary();
    let cost = Credits::from_micro(7_000_000).unwrap();
    let memo = HoldMemo {
        org: "acme",
        user: Some("alice"),
        key: "studio",
        feature: "text-to-image",
        route: "/v1/images",
        measures: Vec::new(),
        price: Price { cost, ..Price::default() },
        pool: true,
        rate_card: "2026-11",
        cycle: Label::NONE,
        term: None,
        profile: None,
        request_id: None,
    };
    let memo = postcard::to_stdvec(&memo).unwrap();
    let accounts = [account("a", 10, 1), account("b", 10, 1)];
    let engine = Engine::open(dir.path(), NOW).unwrap();
    assert_eq!(engine.recovery(), Recovery::default());
    for (charge, in_doubt) in [(1, InDoubt::Void), (2, InDoubt::Capture)] {
        let post = take(6, &[0, 1]);
        let asked = Ask { in_doubt, memo: &memo, ..ask(charge, &accounts, &post) };
        assert!(done(run(engine.session().hold(&asked)).unwrap()).is_some());
    }
    let position = engine.written();
    assert_eq!(engine.records_written(), 2);
    drop(engine);
    let found = records(dir.path(), 0).len() as u64;
    let engine = Engine::open(dir.path(), NOW).unwrap();
    let expected = Recovery {
        records: found,
        accounts: 2,
        voided: 1,
        captured: 1,
        lasting: 0,
        torn_bytes: 0,
        position,
    };
    assert_eq!(engine.recovery(), expected);
    let mut outcomes = Vec::new();
    for bytes in records(dir.path(), position) {
        if let Record::Resolve(resolve) = Record::decode(&bytes).unwrap() {
            outcomes.push((resolve.state, resolve.memo));
        }
    }
    outcomes.sort_by_key(|(state, _)| *state == State::Voided);
    // It says what it captured, and that nobody knows how it ended.
    let in_doubt = |cost| OutcomeMemo { cost, measures: None, flags: Flags::IN_DOUBT };
    let captured = (State::Captured, in_doubt(cost));
    assert_eq!(outcomes, [captured, (State::Voided, in_doubt(Credits::ZERO))]);
}

#[test]
fn an_account_is_told_as_a_post_would_find_it() {
    let dir = temporary();
    let engine = Engine::open(dir.path(), NOW).unwrap();
    let a = account("a", 10, 1);
    assert_eq!(engine.balance(&a), balance(10, 0, 0, 0));
    assert!(done(run(engine.session().hold(&ask(1, &[a], &take(4, &[0])))).unwrap()).is_some());
    assert_eq!(engine.balance(&a), balance(10, 0, 4, 0));
    assert_eq!(engine.balance(&account("a", 20, 2)), balance(20, 0, 4, 0));
}

/// Its directory is gone, so that no next segment can be made.
#[test]
fn f41_books_that_have_failed_take_nothing_and_say_why() {
    let dir = temporary();
    let options = Options { segment_size: 1 << 10, ..Options::default() };
    let engine = Engine::open_with(dir.path(), NOW, options).unwrap();
    let session = engine.session();
    let accounts = [account("a", 1_000_000, 1)];
    let post = take(1, &[0]);
    let hold = |charge| run(session.hold(&ask(charge, &accounts, &post))).map(done);
    assert!(hold(0).unwrap().is_some());
    assert!(!engine.has_failed() && engine.failure().is_none());
    assert!(run(session.balances(&accounts)).is_ok() && session.flush().is_ok());
    std::fs::remove_dir_all(dir.path()).unwrap();
    let failed = engine.failed();
    let last = (1..1_000_000).find(|charge| hold(*charge).is_err()).unwrap();
    let why = run(failed);
    assert!(engine.has_failed());
    assert_eq!(engine.failure(), Some(why));

    // Nothing is taken in memory either, whose records could never be written.
    let before = balances(&engine)[&name("a")];
    let memo = OutcomeMemo::default();
    let adjustment =
        Adjustment { key: None, account: &accounts[0], delta: -1, now: NOW, memo: b"" };
    assert!(matches!(hold(last + 1), Err(BooksError::Unavailable(_))));
    assert!(matches!(run(session.adjust(&adjustment)), Err(BooksError::Unavailable(_))));
    let voided = run(session.resolve(id(0), &resolution(State::Voided, &[], &memo)));
    assert!(matches!(voided, Err(BooksError::Unavailable(_))));
    assert!(matches!(run(session.balances(&accounts)), Err(BooksError::Unavailable(_))));
    assert_eq!(balances(&engine)[&name("a")], before);
    assert!(run(session.open_charge(id(last + 1))).unwrap().is_none());
    assert!(matches!(engine.session().flush(), Err(BooksError::Unavailable(_))));
    assert!(!engine.snapshot(NOW).unwrap());
    assert!(engine.close().is_err());
}
