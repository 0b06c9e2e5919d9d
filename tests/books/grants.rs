//! What an account is granted: in which records it stands, and how far an admin can change it.

use std::collections::BTreeMap;
use std::path::Path;

use tempfile::TempDir;
use tollgate::books::embedded::Engine;
use tollgate::books::journal::{Cursor, MAX_RECORD, Next};
use tollgate::books::{Adjusted, Adjustment, Ask, Books, BooksError, Resolution};
use tollgate::core::account::{Account, Balance, Grant, Source, Version};
use tollgate::core::amount::MAX_MICRO;
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::core::record::Record;

use crate::engine::{
    NOW, account, ask, balance, balances, done, id, name, payer, post, resolution, run, take,
    temporary,
};

fn open() -> (TempDir, Engine) {
    let dir = temporary();
    let engine = Engine::open(dir.path(), NOW).unwrap();
    (dir, engine)
}

fn restarted(dir: &Path, engine: Engine) -> BTreeMap<String, Balance> {
    drop(engine);
    balances(&Engine::open(dir, NOW).unwrap())
}

fn hold(session: &impl Books, charge: u64, accounts: &[Account<'_>], amount: u64) -> bool {
    let post = take(amount, &[0]);
    done(run(session.hold(&ask(charge, accounts, &post))).unwrap()).is_some()
}

fn adjust(session: &impl Books, account: &Account<'_>, delta: i64) -> Result<Balance, BooksError> {
    let adjustment = Adjustment { key: None, account, delta, now: NOW, memo: b"why" };
    run(session.adjust(&adjustment)).map(Adjusted::balance)
}

/// The bases and versions that each record names, in order.
fn openings(dir: &Path) -> Vec<Vec<(u64, u64)>> {
    let (mut cursor, mut found) = (Cursor::new(dir, 0), Vec::new());
    while cursor.next().unwrap() == Next::Record {
        let record = Record::decode(&cursor.record).unwrap();
        if matches!(record, Record::Synced(_)) {
            continue;
        }
        let grants = record.openings().iter().map(|opening| opening.grant);
        found.push(grants.map(|grant| (grant.base, grant.version.number)).collect());
    }
    found
}

#[test]
fn d42_a_grant_that_is_written_is_not_written_again() {
    let (dir, engine) = open();
    let session = engine.session();
    let memo = OutcomeMemo::default();
    let first = account("a", 10, 1);
    assert!(hold(&session, 1, &[first], 1));
    assert!(hold(&session, 2, &[first], 1));
    adjust(&session, &first, 1).unwrap();
    let extra = take(1, &[0]);
    let captured = resolution(State::Captured, &[1], &memo);
    let captured = Resolution { extra: Some((&[first], &extra)), ..captured };
    run(session.resolve(id(1), &captured)).unwrap();
    // Another grant of the same amount says nothing new.
    assert!(hold(&session, 3, &[account("a", 10, 2)], 1));
    let raised = account("a", 20, 3);
    adjust(&session, &raised, -1).unwrap();
    adjust(&session, &raised, 1).unwrap();
    let (none, once) = (Vec::new, |grant| vec![grant]);
    let written = [once((10, 1)), none(), none(), none(), none(), once((20, 3)), none()];
    assert_eq!(openings(dir.path()), written);
}

#[test]
fn d42_a_grant_is_repeated_until_a_record_with_it_is_written() {
    let (dir, engine) = open();
    let (mine, other) = (engine.session(), engine.session());
    let (old, new) = ([account("a", 10, 1)], [account("a", 20, 2)]);
    let post = take(1, &[0]);
    run(async {
        let [first, second] = [ask(1, &old, &post), ask(2, &new, &post)];
        let older = mine.hold(&first);
        let newer = other.hold(&second);
        // That the older grant is written does not write the newer one.
        older.await.unwrap();
        mine.hold(&ask(3, &new, &post)).await.unwrap();
        newer.await.unwrap();
        mine.hold(&ask(4, &new, &post)).await.unwrap();
    });
    let again = vec![(20, 2)];
    assert_eq!(openings(dir.path()), [vec![(10, 1)], again.clone(), again, vec![]]);
}

#[test]
fn d42_of_two_grants_of_one_version_the_first_counts() {
    let (_dir, engine) = open();
    let session = engine.session();
    assert!(hold(&session, 1, &[account("a", 10, 1)], 4));
    let again = account("a", 20, 1);
    assert_eq!(run(session.balances(&[again])).unwrap().get(0), Some(balance(10, 0, 4, 0)));
    assert!(!hold(&session, 2, &[again], 7));
    adjust(&session, &again, -1).unwrap();
    assert_eq!(balances(&engine)[&name("a")], balance(10, -1, 4, 0));
}

#[test]
fn f24_what_the_directory_grants_nothing_is_opened_too() {
    let (dir, engine) = open();
    let session = engine.session();
    let granted_nothing = |id| Account { grant: Grant::default(), ..account(id, 0, 0) };
    assert_eq!(granted_nothing("a").grant.version, Version::default());
    let forced = post([Source { forced: true, ..Source::take(3, [payer(0)]) }]);
    let accounts = [granted_nothing("a")];
    assert!(done(run(session.hold(&ask(1, &accounts, &forced))).unwrap()).is_some());
    adjust(&session, &granted_nothing("b"), 5).unwrap();
    assert!(done(run(session.hold(&ask(2, &accounts, &forced))).unwrap()).is_some());
    drop(session);
    assert_eq!(openings(dir.path()), [vec![(0, 0)], vec![(0, 0)], vec![]]);
    let found = restarted(dir.path(), engine);
    assert_eq!(found[&name("a")], balance(0, 0, 0, 0));
    assert_eq!(found[&name("b")], balance(0, 5, 0, 0));
}

#[test]
fn f24_what_nothing_is_taken_from_is_not_opened() {
    let (_dir, engine) = open();
    let accounts = [account("owes", 0, 1), account("a", 10, 1), account("seen", 5, 1)];
    let solvent = Source { solvent: true, ..Source::take(0, [payer(0)]) };
    let mut post = post([solvent, Source::take(1, [payer(1)])]);
    post.look.push(2);
    let view = done(run(engine.session().hold(&ask(1, &accounts, &post))).unwrap()).unwrap();
    assert_eq!((view.get(0), view.get(2)), (Some(balance(0, 0, 0, 0)), Some(balance(5, 0, 0, 0))));
    assert_eq!(balances(&engine), [(name("a"), balance(10, 0, 1, 0))].into());
}

/// What was captured can be given back, and no account has more than an amount can be.
#[test]
fn f57_an_adjustment_leaves_at_most_the_largest_amount() {
    let (_dir, engine) = open();
    let session = engine.session();
    let memo = OutcomeMemo::default();
    let largest = MAX_MICRO as i64;
    let full = account("full", MAX_MICRO, 1);
    assert!(hold(&session, 1, &[full], 5));
    run(session.resolve(id(1), &resolution(State::Captured, &[5], &memo))).unwrap();
    assert_eq!(adjust(&session, &full, 6), Err(BooksError::Range));
    assert_eq!(adjust(&session, &full, 5), Ok(balance(MAX_MICRO, 5, 0, 5)));

    let empty = account("empty", 0, 1);
    assert_eq!(adjust(&session, &empty, largest), Ok(balance(0, largest, 0, 0)));
    assert_eq!(adjust(&session, &empty, 1), Err(BooksError::Range));
    adjust(&session, &empty, -largest).unwrap();
    assert_eq!(adjust(&session, &empty, -largest), Ok(balance(0, -largest, 0, 0)));
    assert_eq!(adjust(&session, &empty, -1), Err(BooksError::Range));

    // A newer grant counts before the adjustment, and one that is refused changes nothing.
    let small = account("small", 1, 1);
    adjust(&session, &small, 1).unwrap();
    let grown = account("small", MAX_MICRO, 2);
    assert_eq!(adjust(&session, &grown, 1), Err(BooksError::Range));
    assert_eq!(balances(&engine)[&name("small")], balance(1, 1, 0, 0));
    // Who has more already loses nothing by an adjustment that gives nothing.
    assert_eq!(adjust(&session, &grown, 0), Ok(balance(MAX_MICRO, 1, 0, 0)));
}

#[test]
fn a_memo_may_have_a_quarter_of_a_record() {
    let (dir, engine) = open();
    let session = engine.session();
    let accounts = [account("a", 10, 1)];
    let post = take(4, &[0]);
    let memo = vec![b'x'; MAX_RECORD / 4 + 1];
    let with = |length| Ask { memo: &memo[..length], ..ask(1, &accounts, &post) };
    let refused = run(session.hold(&with(MAX_RECORD / 4 + 1)));
    assert!(matches!(refused, Err(BooksError::Range)));
    assert!(done(run(session.hold(&with(MAX_RECORD / 4))).unwrap()).is_some());
    drop(session);
    assert_eq!(restarted(dir.path(), engine)[&name("a")], balance(10, 0, 0, 0));
}

#[test]
fn every_open_charge_is_listed_whoever_holds_it() {
    let (_dir, engine) = open();
    let (mine, other) = (engine.session(), engine.session());
    let accounts = [account("a", 10, 1)];
    assert!(engine.list_open().is_empty());
    assert!(hold(&mine, 1, &accounts, 1));
    assert!(hold(&other, 2, &accounts, 2));
    let list = || {
        let open = engine.list_open().into_iter();
        open.map(|open| (open.charge, open.legs[0].amount)).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(list(), [(id(1), 1), (id(2), 2)].into());
    let memo = OutcomeMemo::default();
    run(mine.resolve(id(1), &resolution(State::Voided, &[], &memo))).unwrap();
    assert_eq!(list(), [(id(2), 2)].into());
}
