//! What is taken for an open charge beyond its hold, and known of it.

use tollgate::books::{Amended, Amendment, Ask, Books, BooksError, InDoubt, OpenCharge, Resolved};
use tollgate::core::account::{Account, LegKind, Post, Source};
use tollgate::core::charge::State;

use super::{adjust, available, capture, hold, void};
use crate::engine::{
    Engine, account, amendment, ask, balance, capped, done, id, known, name, payer, poll_once,
    post, run, second, take, until,
};

fn amend(session: &impl Books, charge: u64, amendment: &Amendment<'_>) -> Amended {
    run(session.amend(id(charge), amendment)).unwrap()
}

fn more<'a>(accounts: &'a [Account<'a>], post: &'a Post) -> Amendment<'a> {
    Amendment { extra: Some((accounts, post)), ..amendment() }
}

fn open(session: &impl Books, charge: u64) -> OpenCharge {
    run(session.open_charge(id(charge))).unwrap().unwrap()
}

fn legs(session: &impl Books, charge: u64) -> Vec<(String, LegKind, u64)> {
    let legs = open(session, charge).legs.into_iter();
    legs.map(|leg| (leg.account, leg.kind, leg.amount)).collect()
}

pub fn d24_an_amendment_is_whole_or_nothing<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let accounts = [account("a", 10, 1), account("b", 5, 1)];
    assert!(hold(&session, 1, &accounts[..1], 4).is_some());
    let short = post([Source::take(6, [payer(0)]), Source::take(6, [payer(1)])]);
    match amend(&session, 1, &Amendment { note: Some(b"no"), ..more(&accounts, &short) }) {
        Amended::Short(view) => assert_eq!([0, 1].map(|slot| available(&view, slot)), [6, 5]),
        other => panic!("b cannot give 6: {other:?}"),
    }
    assert_eq!(engine.all()[&name("a")], balance(10, 0, 4, 0));
    assert!(!engine.all().contains_key(&name("b")));
    let left = open(&session, 1);
    assert_eq!((left.legs.len(), &*left.note), (1, &b""[..]));
    let enough = post([Source::take(6, [payer(0)]), Source::take(5, [payer(1)])]);
    match amend(&session, 1, &more(&accounts, &enough)) {
        Amended::Done(legs, view) => {
            let taken: Vec<_> = legs.iter().map(|leg| (leg.slot, leg.amount)).collect();
            assert_eq!(taken, [(0, 6), (1, 5)]);
            // By the slots of the hold.
            assert_eq!(view.get(0), Some(balance(10, 0, 10, 0)));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(void(&session, 1), Resolved::Done(..)));
    drop(session);
    let all = engine.restart().all();
    assert_eq!(all[&name("a")], balance(10, 0, 0, 0));
    assert_eq!(all[&name("b")], balance(5, 0, 0, 0));
}

pub fn an_amendment_joins_the_legs_of_its_hold<E: Engine>() {
    let engine = E::start();
    let (mine, other) = (engine.session(), engine.session());
    let accounts = [account("a", 10, 1), account("b", 20, 1), account("cap", 9, 1)];
    assert!(hold(&mine, 1, &accounts[..1], 4).is_some());
    // The account of the hold is another slot here, and is asked first as another kind of payer.
    let turned = [accounts[2], accounts[1], accounts[0]];
    let by_cap = post([Source::take(3, [capped(1, 0)]), Source::take(2, [payer(2)])]);
    assert!(matches!(amend(&other, 1, &more(&turned, &by_cap)), Amended::Done(..)));
    let again = post([Source::take(1, [capped(1, 0)]), Source::take(5, [payer(1)])]);
    assert!(matches!(amend(&mine, 1, &more(&turned, &again)), Amended::Done(..)));
    let expected = [
        (name("a"), LegKind::Licence, 6),
        (name("b"), LegKind::Overage, 4),
        (name("cap"), LegKind::Cap, 4),
        (name("b"), LegKind::Licence, 5),
    ];
    assert_eq!(legs(&mine, 1), expected);
    match capture(&mine, 1, &[5, 1, 2, 3]) {
        Resolved::Done(_, view) => assert_eq!(view.get(0), Some(balance(10, 0, 0, 5))),
        other => panic!("{other:?}"),
    }
    drop((mine, other));
    let all = engine.restart().all();
    assert_eq!(all[&name("a")], balance(10, 0, 0, 5));
    assert_eq!(all[&name("b")], balance(20, 0, 0, 4));
    assert_eq!(all[&name("cap")], balance(9, 0, 0, 2));
}

pub fn an_amendment_is_begun_when_it_is_called_and_recorded_when_it_is_told<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let accounts = [account("a", 10, 1)];
    let (four, six) = (take(4, &[0]), take(6, &[0]));
    run(async {
        let asked = Ask { lasting: until(60), ..ask(1, &accounts, &four) };
        // Not waited for: whoever amends meets it all the same.
        let held = session.hold(&asked);
        let mut amended = Box::pin(session.amend(id(1), &more(&accounts, &six)));
        assert_eq!(session.balances(&accounts).await.unwrap().get(0).unwrap().held, 10);
        assert!(!E::IN_ORDER || !poll_once(&mut amended).await, "told before it is recorded");
        // Given up is not undone.
        drop(amended);
        assert!(done(held.await.unwrap()).is_some());
        assert!(matches!(session.amend(id(1), &amendment()).await.unwrap(), Amended::Done(..)));
    });
    drop(session);
    let engine = engine.restart();
    assert_eq!(engine.all()[&name("a")], balance(10, 0, 10, 0));
    assert_eq!(legs(&engine.session(), 1), [(name("a"), LegKind::Licence, 10)]);
}

pub fn f23_what_is_resolved_or_unknown_is_not_amended<E: Engine>() {
    let engine = E::start();
    let (mine, other) = (engine.session(), engine.session());
    let accounts = [account("a", 10, 1)];
    let post = take(3, &[0]);
    let more = more(&accounts, &post);
    assert!(matches!(amend(&mine, 1, &more), Amended::Unknown));
    assert!(hold(&mine, 1, &accounts, 4).is_some());
    run(async {
        let memo = Default::default();
        let captured = crate::engine::resolution(State::Captured, &[4], &memo);
        let resolved = mine.resolve(id(1), &captured);
        // Its record waits, and the answer must not outrun it.
        let again = other.amend(id(1), &more).await.unwrap();
        let is_already = matches!(again, Amended::Already(State::Captured));
        assert!(is_already || !E::IN_ORDER, "{again:?}");
        assert!(matches!(resolved.await.unwrap(), Resolved::Done(..)));
    });
    assert!(matches!(amend(&mine, 1, &more), Amended::Unknown | Amended::Already(_)));
    assert_eq!(engine.all()[&name("a")], balance(10, 0, 0, 4));
}

pub fn f03_what_is_known_of_its_use_resolves_a_hold_that_is_left_open<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let accounts = [account("a", 100, 1), account("b", 100, 1)];
    let ten = take(10, &[0]);
    let (three, all) = (known(&[3]), known(&[u64::MAX, 2, 9]));
    for (charge, in_doubt) in [(1, InDoubt::Void), (2, InDoubt::Capture), (3, InDoubt::Void)] {
        let asked = Ask { in_doubt, ..ask(charge, &accounts, &ten) };
        assert!(done(run(session.hold(&asked)).unwrap()).is_some());
    }
    let of_b = take(5, &[1]);
    for charge in [1, 2] {
        let known = Amendment { known: Some(&three), ..amendment() };
        assert!(matches!(amend(&session, charge, &known), Amended::Done(..)));
    }
    // What is taken later leaves what is known; it counts legs as they are with its amendment.
    assert!(matches!(amend(&session, 2, &more(&accounts, &ten)), Amended::Done(..)));
    let known = Amendment { known: Some(&all), ..more(&accounts, &of_b) };
    assert!(matches!(amend(&session, 3, &known), Amended::Done(..)));
    drop(session);
    let engine = engine.restart().restart();
    assert_eq!(engine.all()[&name("a")], balance(100, 0, 0, 3 + 3 + 10));
    assert_eq!(engine.all()[&name("b")], balance(100, 0, 0, 2));
}

pub fn a_note_and_an_expiry_are_as_they_were_last_amended<E: Engine>() {
    let mut engine = E::start();
    let accounts = [account("a", 10, 1)];
    assert!(hold(&engine.session(), 1, &accounts, 4).is_some());
    let steps = [
        (Amendment { note: Some(b"one"), ..amendment() }, None, &b"one"[..]),
        (Amendment { expires: Some(second(60)), ..amendment() }, Some(60), b"one"),
        (Amendment { note: Some(b""), ..amendment() }, Some(60), b""),
        (
            Amendment { expires: Some(second(30)), note: Some(b"two"), ..amendment() },
            Some(30),
            b"two",
        ),
        (Amendment { answer: b"HTTP/1.1 202 Accepted", ..amendment() }, Some(30), b"two"),
    ];
    for (amendment, expires, note) in steps {
        assert!(matches!(amend(&engine.session(), 1, &amendment), Amended::Done(..)));
        if expires.is_some() {
            engine = engine.restart();
        }
        let open = open(&engine.session(), 1);
        assert_eq!((open.expires, &*open.note), (expires.map(second), note));
        assert_eq!(open.legs.len(), 1);
    }
}

pub fn an_amendment_without_bound_is_refused<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    assert!(hold(&session, 1, &[account("a", 10, 1)], 4).is_some());
    let long = vec![b'x'; 2 << 20];
    for refused in
        [Amendment { note: Some(&long), ..amendment() }, Amendment { answer: &long, ..amendment() }]
    {
        assert!(matches!(run(session.amend(id(1), &refused)), Err(BooksError::Range)));
    }
    assert!(matches!(capture(&session, 1, &[4]), Resolved::Done(..)));
}

pub fn f82_an_amendment_takes_what_there_is_and_no_more<E: Engine>() {
    let engine = E::start();
    let accounts = [account("a", 1_000, 1)];
    for charge in 0..4 {
        assert!(hold(&engine.session(), charge, &accounts, 1).is_some());
    }
    let taken: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4_u64)
            .map(|thread| {
                let session = engine.session();
                scope.spawn(move || {
                    let (accounts, three) = ([account("a", 1_000, 1)], take(3, &[0]));
                    // Every charge is topped up by every thread.
                    let amend = |n: &u64| {
                        let amended = amend(&session, (thread + n) % 4, &more(&accounts, &three));
                        matches!(amended, Amended::Done(..))
                    };
                    (0..300).filter(amend).count() as u64
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(taken, 996 / 3);
    let session = engine.session();
    assert_eq!(engine.all()[&name("a")], balance(1_000, 0, 1_000, 0));
    let held: u64 = (0..4).flat_map(|charge| legs(&session, charge)).map(|leg| leg.2).sum();
    assert_eq!(held, 1_000);
    adjust(&session, &accounts[0], 2).unwrap();
    assert!(matches!(amend(&session, 0, &more(&accounts, &take(3, &[0]))), Amended::Short(_)));
}
