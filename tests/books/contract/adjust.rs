//! What is given and taken by an admin's word, and once under a key.

use tollgate::books::{Adjusted, Adjustment, Books, BooksError, KEPT_KEYS, Key, KeyOf};
use tollgate::core::account::{Account, Source};

use super::{adjust, hold};
use crate::engine::{Engine, account, ask, balance, name, payer, post, run, second};

/// Adjusts so many seconds later, under a key.
fn under(
    session: &impl Books,
    key: u8,
    account: &Account<'_>,
    delta: i64,
    after: i64,
) -> Result<Adjusted, BooksError> {
    let key = Some(Key::new("acme", KeyOf::Adjustment, [key; 16]));
    let adjustment = Adjustment { key, account, delta, now: second(after), memo: b"why" };
    run(session.adjust(&adjustment))
}

pub fn adjustments_go_up_and_down<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let a = account("a", 10, 1);
    assert_eq!(adjust(&session, &a, -4).unwrap(), balance(10, -4, 0, 0));
    assert_eq!(adjust(&session, &a, 1).unwrap(), balance(10, -3, 0, 0));
    assert!(hold(&session, 1, &[a], 8).is_none());
    assert!(hold(&session, 2, &[a], 7).is_some());
    assert_eq!(adjust(&session, &a, -9).unwrap().remaining(), -9);
    assert_eq!(adjust(&session, &a, 12).unwrap().available(), 3);
    drop(session);
    assert_eq!(engine.restart().all()[&name("a")], balance(10, 0, 0, 0));
}

pub fn a_sum_that_would_leave_its_range_is_refused<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let a = account("a", 10, 1);
    adjust(&session, &a, 5).unwrap();
    for delta in [i64::MAX, i64::MAX - 5, i64::MIN, i64::MIN + 1] {
        assert_eq!(adjust(&session, &a, delta), Err(BooksError::Range), "{delta}");
    }
    // And the sum of two that are each in range.
    let most = (1 << 53) - 1;
    let c = account("c", 10, 1);
    adjust(&session, &c, -most).unwrap();
    assert_eq!(adjust(&session, &c, -1), Err(BooksError::Range));
    adjust(&session, &c, most).unwrap();
    let too_much = Source { forced: true, ..Source::take(u64::MAX, [payer(0)]) };
    let beyond = post([Source::take(1, [payer(0)]), too_much]);
    let refused = run(session.hold(&ask(1, &[a], &beyond)));
    assert!(matches!(refused, Err(BooksError::Range)));
    drop(session);
    let engine = engine.restart();
    assert_eq!(engine.all()[&name("a")], balance(10, 5, 0, 0));
    assert_eq!(engine.all()[&name("c")], balance(10, 0, 0, 0));
}

pub fn f26_what_is_adjusted_under_a_key_is_adjusted_once<E: Engine>() {
    let engine = E::start();
    let (session, other) = (engine.session(), engine.session());
    let (a, b) = (account("a", 10, 1), account("b", 10, 1));
    let five = balance(10, 5, 0, 0);
    assert_eq!(under(&session, 1, &a, 5, 0), Ok(Adjusted::Done(five)));
    // Whoever asks, and whenever.
    assert_eq!(under(&session, 1, &a, 5, 0), Ok(Adjusted::Before(five)));
    assert!(hold(&session, 1, &[a], 3).is_some());
    assert_eq!(under(&other, 1, &a, 5, 60), Ok(Adjusted::Before(balance(10, 5, 3, 0))));
    // It is always the same.
    assert_eq!(under(&session, 1, &a, 6, 0), Err(BooksError::KeyReused));
    assert_eq!(under(&session, 1, &a, -5, 0), Err(BooksError::KeyReused));
    assert_eq!(under(&session, 1, &b, 5, 0), Err(BooksError::KeyReused));
    // Others are others, and one that was refused has left no key.
    assert_eq!(under(&session, 2, &a, -1, 0), Ok(Adjusted::Done(balance(10, 4, 3, 0))));
    assert_eq!(under(&session, 3, &a, i64::MAX, 0), Err(BooksError::Range));
    assert_eq!(under(&session, 3, &a, 1, 0), Ok(Adjusted::Done(balance(10, 5, 3, 0))));
    let kept = KEPT_KEYS.as_secs();
    assert_eq!(under(&session, 1, &a, 5, kept), Ok(Adjusted::Before(balance(10, 5, 3, 0))));
    assert_eq!(engine.all()[&name("a")], balance(10, 5, 3, 0));
    assert_eq!(under(&session, 1, &b, 7, kept + 1), Ok(Adjusted::Done(balance(10, 7, 0, 0))));
}

pub fn f19_keys_of_adjustments_are_forgotten_in_their_time<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let a = account("a", 10, 1);
    for (key, after) in [(1, 0), (2, 100)] {
        under(&session, key, &a, 1, after).unwrap();
    }
    let kept = KEPT_KEYS.as_secs();
    engine.expire(second(kept + 50));
    // Asked as of then, so that nothing but the sweep has forgotten it.
    assert!(matches!(under(&session, 2, &a, 1, 0), Ok(Adjusted::Before(_))));
    assert!(matches!(under(&session, 1, &a, 1, 0), Ok(Adjusted::Done(_))));
    engine.expire(second(2 * kept + 200));
    assert_eq!(engine.all()[&name("a")], balance(10, 3, 0, 0));
}
