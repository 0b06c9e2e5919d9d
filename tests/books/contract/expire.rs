//! Holds that outlive their process and end by themselves.

use tollgate::books::{Amended, Amendment, Ask, Books, InDoubt, Resolved};
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::core::ids::ChargeId;

use super::{capture, void};
use crate::engine::{
    Engine, account, amendment, ask, balance, done, id, known, name, resolution, run, second, take,
    until,
};

fn hold(session: &impl Books, charge: u64, expires: i64, in_doubt: InDoubt) {
    let (accounts, ten) = ([account("a", 100, 1)], take(10, &[0]));
    let asked = Ask { in_doubt, lasting: until(expires), ..ask(charge, &accounts, &ten) };
    assert!(done(run(session.hold(&asked)).unwrap()).is_some());
}

/// What ended, and how, by the charges' order.
fn ended<E: Engine>(engine: &E, after: i64) -> Vec<(ChargeId, State)> {
    let ended = engine.expire(second(after)).into_iter();
    let mut ended: Vec<_> = ended.map(|(open, state)| (open.charge, state)).collect();
    ended.sort_by_key(|(charge, _)| *charge);
    ended
}

pub fn d34_d36_a_hold_ends_by_itself_as_it_says<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    hold(&session, 1, 60, InDoubt::Void);
    hold(&engine.session(), 2, 60, InDoubt::Capture);
    hold(&session, 3, 60, InDoubt::Void);
    hold(&session, 4, 61, InDoubt::Void);
    let three = known(&[3]);
    let used = Amendment { known: Some(&three), ..amendment() };
    assert!(matches!(run(session.amend(id(3), &used)).unwrap(), Amended::Done(..)));
    assert_eq!(ended(&engine, 59), []);
    let expected = [(1, State::Expired), (2, State::Captured), (3, State::Captured)];
    assert_eq!(ended(&engine, 60), expected.map(|(charge, state)| (id(charge), state)));
    assert_eq!(ended(&engine, 60), []);
    assert_eq!(engine.all()[&name("a")], balance(100, 0, 10, 13));
    assert!(matches!(capture(&session, 1, &[10]), Resolved::Unknown | Resolved::Already(_)));
    drop(session);
    // What ended is recorded, and the last one still ends at its time.
    let engine = engine.restart_at(second(1_000));
    assert_eq!(engine.all()[&name("a")], balance(100, 0, 10, 13));
    assert_eq!(ended(&engine, 1_000), [(id(4), State::Expired)]);
    assert_eq!(engine.all()[&name("a")], balance(100, 0, 0, 13));
}

pub fn d36_a_charge_is_abandoned_as_the_next_start_would_end_it<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let (accounts, ten) = ([account("a", 100, 1), account("b", 100, 1)], take(10, &[0]));
    let (three, all) = (known(&[3]), known(&[u64::MAX; 3]));
    let of_b = take(5, &[1]);
    let recorded = [None, None, Some((&three, None)), Some((&all, Some((&accounts[..], &of_b))))];
    let doubts = [InDoubt::Void, InDoubt::Capture, InDoubt::Void, InDoubt::Void];
    for (charge, (in_doubt, recorded)) in (1..).zip(doubts.into_iter().zip(recorded)) {
        let asked = Ask { in_doubt, ..ask(charge, &accounts, &ten) };
        assert!(done(run(session.hold(&asked)).unwrap()).is_some());
        if let Some((known, extra)) = recorded {
            let used = Amendment { known: Some(known), extra, ..amendment() };
            assert!(matches!(run(session.amend(id(charge), &used)).unwrap(), Amended::Done(..)));
        }
    }
    let other = engine.session();
    for (charge, state, kept) in [
        (1, State::Voided, &[0][..]),
        (2, State::Captured, &[10]),
        (3, State::Captured, &[3]),
        (4, State::Captured, &[10, 5]),
    ] {
        // By any session.
        let abandoned = run(other.abandon(id(charge), second(1))).unwrap().unwrap();
        let legs: Vec<u64> = abandoned.charge.legs.iter().map(|leg| leg.amount).collect();
        assert_eq!((abandoned.state, &legs[..]), (state, kept));
        assert!(run(session.abandon(id(charge), second(1))).unwrap().is_none());
    }
    for charge in [1, 2] {
        assert!(matches!(void(&session, charge), Resolved::Unknown | Resolved::Already(_)));
    }
    drop((session, other));
    let engine = engine.restart();
    assert_eq!(engine.all()[&name("a")], balance(100, 0, 0, 10 + 3 + 10));
    assert_eq!(engine.all()[&name("b")], balance(100, 0, 0, 5));
}

pub fn d34_a_lasting_hold_outlives_its_process<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    hold(&session, 1, 60, InDoubt::Void);
    hold(&session, 2, 60, InDoubt::Capture);
    let (seven, two) = (known(&[7]), known(&[2]));
    for known in [&seven, &two] {
        let used = Amendment { known: Some(known), note: Some(b"job 7"), ..amendment() };
        assert!(matches!(run(session.amend(id(2), &used)).unwrap(), Amended::Done(..)));
    }
    drop(session);
    let engine = engine.restart().restart();
    let session = engine.session();
    assert_eq!(engine.all()[&name("a")], balance(100, 0, 20, 0));
    let open = run(session.open_charge(id(2))).unwrap().unwrap();
    assert_eq!((open.expires, &*open.note), (Some(second(60)), &b"job 7"[..]));
    // Whoever serves now settles it, as if it had held it itself.
    match capture(&session, 1, &[4]) {
        Resolved::Done(_, view) => assert_eq!(view.get(0), Some(balance(100, 0, 10, 4))),
        other => panic!("{other:?}"),
    }
    assert_eq!(ended(&engine, 60), [(id(2), State::Captured)]);
    drop(session);
    assert_eq!(engine.restart().all()[&name("a")], balance(100, 0, 0, 6));
}

pub fn d34_a_hold_that_is_prolonged_ends_later<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    for charge in [1, 2, 3] {
        hold(&session, charge, 60, InDoubt::Void);
    }
    // One that has no end is given one.
    let accounts = [account("a", 100, 1)];
    assert!(done(run(session.hold(&ask(4, &accounts, &take(10, &[0])))).unwrap()).is_some());
    for (charge, expires) in [(1, 90), (2, 30), (4, 70)] {
        let prolonged = Amendment { expires: Some(second(expires)), ..amendment() };
        assert!(matches!(run(session.amend(id(charge), &prolonged)).unwrap(), Amended::Done(..)));
    }
    assert_eq!(ended(&engine, 30), [(id(2), State::Expired)]);
    assert_eq!(ended(&engine, 60), [(id(3), State::Expired)]);
    drop(session);
    let engine = engine.restart();
    assert_eq!(ended(&engine, 89), [(id(4), State::Expired)]);
    assert_eq!(ended(&engine, 90), [(id(1), State::Expired)]);
}

pub fn f23_of_an_end_and_a_resolution_the_first_wins<E: Engine>() {
    let engine = E::start();
    let (mine, other) = (engine.session(), engine.session());
    hold(&mine, 1, 60, InDoubt::Void);
    hold(&mine, 2, 60, InDoubt::Capture);
    let memo = OutcomeMemo::default();
    let is_captured = run(async {
        // Called, and its record waits.
        let captured = mine.resolve(id(1), &resolution(State::Captured, &[4], &memo));
        let at_once =
            std::thread::scope(|scope| scope.spawn(|| ended(&engine, 60)).join().unwrap());
        let is_captured = matches!(captured.await.unwrap(), Resolved::Done(..));
        let expired = [(id(1), State::Expired), (id(2), State::Captured)];
        assert_eq!(at_once, expired[usize::from(is_captured)..], "of the first there is one end");
        assert!(is_captured || !E::IN_ORDER, "the first was captured before");
        is_captured
    });
    for session in [&mine, &other] {
        let late = void(session, 2);
        assert!(matches!(late, Resolved::Unknown | Resolved::Already(State::Captured)), "{late:?}");
    }
    let captured = if is_captured { 14 } else { 10 };
    assert_eq!(engine.all()[&name("a")], balance(100, 0, 0, captured));
}
