//! Charges that are made once under a key (D35).

use tollgate::books::{
    Ask, Books, InDoubt, KEPT_KEYS, KnownCharge, Lasting, Once, Posted, Resolved,
};
use tollgate::core::account::Account;
use tollgate::core::charge::{OutcomeMemo, State};

use super::{capture, void};
use crate::engine::{
    Engine, NOW, account, ask, balance, done, id, key, name, resolution, run, second, take, under,
};

/// Holds something under a key.
fn hold(session: &impl Books, charge: u64, once: Once, after: i64) -> Posted {
    hold_of(session, charge, once, after, &[account("a", 100, 1)])
}

fn hold_of(
    session: &impl Books,
    charge: u64,
    once: Once,
    after: i64,
    accounts: &[Account<'_>],
) -> Posted {
    let one = take(10, &[0]);
    let now = second(after);
    run(session.hold(&Ask { lasting: under(once), now, ..ask(charge, accounts, &one) })).unwrap()
}

/// Who has the key.
fn of(session: &impl Books, scope: u64, key: &[u8; 16]) -> Option<KnownCharge> {
    run(session.known(scope, key)).unwrap()
}

/// Who has the key, whom both ways to ask name.
#[track_caller]
fn has(session: &impl Books, once: Once, charge: u64, captured: bool) {
    let expected = KnownCharge { charge: id(charge), request: once.request, captured };
    assert_eq!(of(session, once.scope, &once.key), Some(expected));
    match hold(session, 999, Once { request: [0; 16], ..once }, 0) {
        Posted::Known(known) => assert_eq!(known, expected),
        other => panic!("{other:?}"),
    }
}

pub fn f17_of_many_holds_under_one_key_one_is_made<E: Engine>() {
    for round in 0..10 {
        let engine = E::start();
        let made: Vec<Vec<u64>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4_u64)
                .map(|thread| {
                    let session = engine.session();
                    scope.spawn(move || {
                        let is_made = |n: &u64| {
                            let charge = thread << 32 | n;
                            match hold(&session, charge, key(1, *n as u8, 7), 0) {
                                Posted::Done(..) => true,
                                Posted::Known(known) => {
                                    assert!(!known.captured && known.charge != id(charge));
                                    false
                                }
                                Posted::Short(_) => panic!("there is enough"),
                            }
                        };
                        (0..10).filter(is_made).collect()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut made: Vec<u64> = made.into_iter().flatten().collect();
        made.sort_unstable();
        assert_eq!(made, (0..10).collect::<Vec<u64>>(), "round {round}");
        assert_eq!(engine.all()[&name("a")], balance(100, 0, 100, 0));
    }
}

pub fn f17_a_key_is_free_when_the_void_of_its_charge_is_recorded<E: Engine>() {
    let engine = E::start();
    let (mine, other) = (engine.session(), engine.session());
    let once = key(1, 1, 7);
    assert!(done(hold(&mine, 1, once, 0)).is_some());
    let memo = OutcomeMemo::default();
    run(async {
        let voided = mine.resolve(id(1), &resolution(State::Voided, &[], &memo));
        // A crash now leaves the charge open, and then no other may have been made.
        let accounts = [account("a", 100, 1)];
        let one = take(10, &[0]);
        let asked = Ask { lasting: under(once), ..ask(2, &accounts, &one) };
        let early = other.hold(&asked).await.unwrap();
        let is_known = matches!(early, Posted::Known(known) if known.charge == id(1));
        // Where nothing is there before it is recorded, the void may be recorded by now.
        let is_made = !E::IN_ORDER && matches!(early, Posted::Done(..));
        assert!(is_known || is_made, "{early:?}");
        assert!(matches!(voided.await.unwrap(), Resolved::Done(..)));
        if is_known {
            assert_eq!(mine.known(1, &once.key).await.unwrap(), None);
            assert!(done(other.hold(&asked).await.unwrap()).is_some());
        }
    });
    has(&mine, once, 2, false);
    // Of the dead process's holds nobody is charged for, so that one may be made again.
    drop((mine, other));
    let engine = engine.restart();
    assert_eq!(of(&engine.session(), 1, &once.key), None);
    assert!(done(hold(&engine.session(), 3, once, 0)).is_some());
}

pub fn f17_a_hold_that_is_refused_leaves_no_key<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let once = key(1, 1, 7);
    let little = [account("b", 9, 1)];
    assert!(matches!(hold_of(&session, 1, once, 0, &little), Posted::Short(_)));
    assert_eq!(of(&session, 1, &once.key), None);
    let accounts = [account("a", 100, 1)];
    let one = take(10, &[0]);
    let note = vec![b'x'; 2 << 20];
    let lasting = Some(Lasting { once: Some(once), note: &note, ..Lasting::default() });
    run(session.hold(&Ask { lasting, ..ask(2, &accounts, &one) })).unwrap_err();
    assert_eq!(of(&session, 1, &once.key), None);
    assert!(done(hold(&session, 3, once, 0)).is_some());
    has(&session, once, 3, false);
}

pub fn f18_a_key_tells_what_its_request_was<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let once = key(1, 1, 7);
    assert!(done(hold(&session, 1, once, 0)).is_some());
    has(&session, once, 1, false);
    assert!(matches!(capture(&session, 1, &[4]), Resolved::Done(..)));
    has(&session, once, 1, true);
    assert!(!matches!(void(&session, 1), Resolved::Done(..)));
    has(&session, once, 1, true);
    assert_eq!(engine.all()[&name("a")], balance(100, 0, 0, 4));
}

pub fn f19_a_key_outlives_its_process_and_ends_after_its_retention<E: Engine>() {
    let kept = KEPT_KEYS.as_secs();
    let engine = E::start();
    let session = engine.session();
    // Many, so that their order in a map is not that of time.
    for n in 0..10 {
        assert!(done(hold(&session, n, key(1, n as u8, 7), n as i64)).is_some());
        capture(&session, n, &[10]);
    }
    drop(session);
    let engine = engine.restart_at(second(60));
    let session = engine.session();
    for n in 0..10 {
        has(&session, key(1, n as u8, 7), n, true);
    }
    let free = [account("free", 100, 1)];
    assert!(matches!(hold_of(&session, 100, key(1, 3, 7), kept + 3, &free), Posted::Known(_)));
    assert!(done(hold_of(&session, 100, key(1, 3, 7), kept + 4, &free)).is_some());
    has(&session, key(1, 3, 7), 100, false);
    // Also nobody holds under it.
    engine.expire(second(kept + 5));
    let known = |n: u8| of(&session, 1, &[n; 16]).map(|known| known.charge);
    assert_eq!([4, 5, 9].map(known), [None, Some(id(5)), Some(id(9))]);
    assert_eq!(known(3), Some(id(100)));
    // One that is open is not forgotten.
    assert!(matches!(hold_of(&session, 101, key(1, 3, 7), 9 * kept, &free), Posted::Known(_)));
    engine.expire(second(9 * kept));
    assert_eq!(known(3), Some(id(100)));
    assert_eq!(known(9), None);
    drop(session);
    // And none is remembered that is over at the next start.
    let engine = engine.restart_at(second(9 * kept));
    assert!((0..10).all(|n| of(&engine.session(), 1, &[n; 16]).is_none()));
}

pub fn f20_the_keys_of_two_scopes_are_unrelated<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    for (charge, once) in [(1, key(1, 1, 7)), (2, key(2, 1, 7)), (3, key(1, 2, 7))] {
        assert!(done(hold(&session, charge, once, 0)).is_some());
    }
    void(&session, 2);
    has(&session, key(1, 1, 7), 1, false);
    assert_eq!(of(&session, 2, &[1; 16]), None);
}

pub fn d35_a_hold_that_ends_by_itself_frees_its_key_unless_it_is_captured<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let accounts = [account("a", 100, 1)];
    let one = take(10, &[0]);
    for (charge, in_doubt) in [(1, InDoubt::Void), (2, InDoubt::Capture)] {
        let lasting =
            Lasting { expires: Some(second(60)), once: Some(key(1, charge as u8, 7)), note: b"" };
        let asked = Ask { in_doubt, lasting: Some(lasting), ..ask(charge, &accounts, &one) };
        assert!(done(run(session.hold(&asked)).unwrap()).is_some());
    }
    drop(session);
    // They outlive their process, with their keys.
    let engine = engine.restart_at(NOW);
    let session = engine.session();
    has(&session, key(1, 1, 7), 1, false);
    has(&session, key(1, 2, 7), 2, false);
    assert_eq!(engine.expire(second(60)).len(), 2);
    assert_eq!(of(&session, 1, &[1; 16]), None);
    has(&session, key(1, 2, 7), 2, true);
}
