//! The contract of `Books`, for every engine alike.

mod adjust;
mod amend;
mod expire;
mod once;

pub use adjust::*;
pub use amend::*;
pub use expire::*;
pub use once::*;

// What the rule decides on balances, on these balances.
pub use crate::golden::{
    d14_d17_d24_d26_d31_golden_table_of_refusals, d24_d25_d26_golden_table_of_what_is_paid,
    d28_golden_table_of_what_is_paid_of_what_would_be_refused,
};

use tollgate::books::{
    Adjusted, Adjustment, Ask, Books, BooksError, InDoubt, Posted, Resolution, Resolved,
};
use tollgate::core::account::{Account, Balance, LegKind, Slot, Source, View};
use tollgate::core::charge::{OutcomeMemo, State};

use crate::engine::{
    Engine, NOW, account, ask, balance, capped, done, id, legs, name, payer, poll_once, post,
    resolution, run, take,
};

macro_rules! suite {
    ($engine:ty) => {
        crate::contract::suite!($engine:
            d24_d25_d26_golden_table_of_what_is_paid
            d14_d17_d24_d26_d31_golden_table_of_refusals
            d28_golden_table_of_what_is_paid_of_what_would_be_refused
            d24_a_post_is_whole_or_nothing
            d24_sources_are_taken_from_in_order
            guards_decide_at_their_borders
            a_cap_that_two_payers_share_counts_once
            a_hold_is_begun_when_it_is_called
            f06_a_dropped_answer_is_done_work
            acknowledged_is_recorded
            d36_holds_left_open_are_resolved_at_the_next_start
            a_charge_is_resolved_once
            f23_of_two_resolutions_the_first_wins
            a_resolution_returns_every_account_the_hold_named
            d31_an_extra_post_is_captured_with_the_hold_or_not_at_all
            what_is_kept_is_never_more_than_what_was_held
            d42_the_newest_grant_wins
            d42_a_grant_outlives_the_process
            adjustments_go_up_and_down
            f26_what_is_adjusted_under_a_key_is_adjusted_once
            f19_keys_of_adjustments_are_forgotten_in_their_time
            a_sum_that_would_leave_its_range_is_refused
            d06_another_cycle_is_another_account
            f24_an_unseen_account_is_opened_by_its_first_debit
            d29_a_charge_of_zero_has_no_legs
            an_open_charge_is_described
            a_memo_without_bound_is_refused
            f22_many_threads_are_given_exactly_what_there_is
            d24_an_amendment_is_whole_or_nothing
            an_amendment_joins_the_legs_of_its_hold
            an_amendment_is_begun_when_it_is_called_and_recorded_when_it_is_told
            f23_what_is_resolved_or_unknown_is_not_amended
            f03_what_is_known_of_its_use_resolves_a_hold_that_is_left_open
            a_note_and_an_expiry_are_as_they_were_last_amended
            an_amendment_without_bound_is_refused
            f82_an_amendment_takes_what_there_is_and_no_more
            f17_of_many_holds_under_one_key_one_is_made
            f17_a_key_is_free_when_the_void_of_its_charge_is_recorded
            f17_a_hold_that_is_refused_leaves_no_key
            f18_a_key_tells_what_its_request_was
            f19_a_key_outlives_its_process_and_ends_after_its_retention
            f20_the_keys_of_two_scopes_are_unrelated
            d35_a_hold_that_ends_by_itself_frees_its_key_unless_it_is_captured
            d34_d36_a_hold_ends_by_itself_as_it_says
            d34_a_lasting_hold_outlives_its_process
            d36_a_charge_is_abandoned_as_the_next_start_would_end_it
            d34_a_hold_that_is_prolonged_ends_later
            f23_of_an_end_and_a_resolution_the_first_wins
        );
    };
    ($engine:ty: $($test:ident)*) => {
        $(#[test]
        fn $test() {
            crate::contract::$test::<$engine>();
        })*
    };
}
pub(crate) use suite;

fn available(view: &View, slot: Slot) -> u64 {
    view.get(slot).unwrap().available()
}

fn hold(session: &impl Books, charge: u64, accounts: &[Account<'_>], amount: u64) -> Option<View> {
    let slots: Vec<Slot> = (0..accounts.len() as Slot).collect();
    done(run(session.hold(&ask(charge, accounts, &take(amount, &slots)))).unwrap())
}

fn capture(session: &impl Books, charge: u64, keep: &[u64]) -> Resolved {
    let memo = OutcomeMemo::default();
    run(session.resolve(id(charge), &resolution(State::Captured, keep, &memo))).unwrap()
}

fn void(session: &impl Books, charge: u64) -> Resolved {
    let memo = OutcomeMemo::default();
    run(session.resolve(id(charge), &resolution(State::Voided, &[], &memo))).unwrap()
}

pub fn adjust(
    session: &impl Books,
    account: &Account<'_>,
    delta: i64,
) -> Result<Balance, BooksError> {
    let adjustment = Adjustment { key: None, account, delta, now: NOW, memo: b"why" };
    run(session.adjust(&adjustment)).map(Adjusted::balance)
}

pub fn d24_a_post_is_whole_or_nothing<E: Engine>() {
    let engine = E::start();
    let accounts = [account("a", 10, 1), account("b", 5, 1), account("c", 7, 1)];
    let mut short = post([Source::take(10, [payer(0)]), Source::take(6, [payer(1)])]);
    short.look.push(2);
    match run(engine.session().hold(&ask(1, &accounts, &short))).unwrap() {
        Posted::Short(view) => {
            assert_eq!([0, 1, 2].map(|slot| available(&view, slot)), [10, 5, 7]);
        }
        other => panic!("b cannot give 6: {other:?}"),
    }
    assert!(engine.all().is_empty());
    let enough = post([Source::take(10, [payer(0)]), Source::take(5, [payer(1)])]);
    assert!(done(run(engine.session().hold(&ask(2, &accounts, &enough))).unwrap()).is_some());
}

pub fn d24_sources_are_taken_from_in_order<E: Engine>() {
    let engine = E::start();
    let accounts = [account("a", 10, 1), account("b", 10, 1), account("c", 10, 1)];
    let posted = run(engine.session().hold(&ask(1, &accounts, &take(15, &[2, 0, 1])))).unwrap();
    let (legs, view) = legs(posted).unwrap();
    let legs: Vec<(Slot, u64)> = legs.iter().map(|leg| (leg.slot, leg.amount)).collect();
    assert_eq!(legs, [(2, 10), (0, 5)]);
    assert_eq!([0, 1, 2].map(|slot| available(&view, slot)), [5, 10, 0]);
}

pub fn guards_decide_at_their_borders<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let mut charge = 0;
    let mut is_done = |accounts: &[Account<'_>], source: Source| {
        charge += 1;
        done(run(session.hold(&ask(charge, accounts, &post([source])))).unwrap()).is_some()
    };
    let [a, owes, free, cap] =
        [account("a", 10, 1), account("owes", 0, 1), account("free", 10, 1), account("cap", 3, 1)];

    let below = |below| Source { below: Some(below), ..Source::take(10, [payer(0)]) };
    assert!(!is_done(&[a], below(10)));
    assert!(is_done(&[a], below(11)));

    let solvent = || Source { solvent: true, ..Source::take(0, [payer(0)]) };
    assert!(is_done(&[owes], solvent()), "nothing left is not yet in the red");
    let forced = Source { forced: true, ..Source::take(4, [payer(0)]) };
    assert!(is_done(&[owes], forced));
    assert!(!is_done(&[owes], solvent()));
    assert!(!is_done(&[owes], Source::take(1, [payer(0)])));

    assert!(!is_done(&[free, cap], Source::take(4, [capped(0, 1)])));
    assert!(is_done(&[free, cap], Source::take(3, [capped(0, 1)])));
    let all = engine.all();
    assert_eq!(all[&name("free")], balance(10, 0, 3, 0));
    assert_eq!(all[&name("cap")], balance(3, 0, 3, 0));
    assert_eq!(all[&name("owes")], balance(0, 0, 4, 0));
}

pub fn a_cap_that_two_payers_share_counts_once<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let accounts = [account("a", 10, 1), account("b", 10, 1), account("cap", 6, 1)];
    let shared = |amount| post([Source::take(amount, [capped(0, 2), capped(1, 2)])]);
    let asked = run(session.hold(&ask(1, &accounts, &shared(8)))).unwrap();
    assert!(done(asked).is_none(), "the cap has 6, not 6 for each");
    assert!(engine.all().is_empty());
    assert!(done(run(session.hold(&ask(2, &accounts, &shared(6)))).unwrap()).is_some());
}

pub fn a_hold_is_begun_when_it_is_called<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let accounts = [account("a", 10, 1)];
    let post = take(10, &[0]);
    let memo = OutcomeMemo::default();
    run(async {
        let asked = ask(1, &accounts, &post);
        let held = session.hold(&asked);
        // A guard that voids before anybody waited for the hold must meet it.
        let voided = session.resolve(id(1), &resolution(State::Voided, &[], &memo)).await;
        assert!(matches!(voided.unwrap(), Resolved::Done(..)));
        assert!(done(held.await.unwrap()).is_some());
        assert!(session.open_charge(id(1)).await.unwrap().is_none());
    });
    assert_eq!(engine.all()[&name("a")], balance(10, 0, 0, 0));
}

pub fn f06_a_dropped_answer_is_done_work<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let accounts = [account("a", 10, 1)];
    let post = take(4, &[0]);
    let memo = OutcomeMemo::default();
    run(async {
        drop(session.hold(&ask(1, &accounts, &post)));
        let asked = ask(2, &accounts, &post);
        let mut polled = Box::pin(session.hold(&asked));
        let is_told = poll_once(&mut polled).await;
        assert!(!(is_told && E::IN_ORDER), "told before it is recorded");
        drop(polled);
        assert_eq!(session.balances(&accounts).await.unwrap().get(0).unwrap().held, 8);
        drop(session.resolve(id(1), &resolution(State::Captured, &[3], &memo)));
        drop(session.resolve(id(2), &resolution(State::Voided, &[], &memo)));
        for charge in [1, 2] {
            assert!(session.open_charge(id(charge)).await.unwrap().is_none());
        }
    });
    drop(session);
    assert_eq!(engine.restart().all()[&name("a")], balance(10, 0, 0, 3));
}

pub fn acknowledged_is_recorded<E: Engine>() {
    let mut engine = E::start();
    let a = account("a", 100, 1);
    for round in 0..5 {
        let session = engine.session();
        assert!(hold(&session, round, &[a], 10).is_some());
        assert!(matches!(capture(&session, round, &[7]), Resolved::Done(..)));
        adjust(&session, &a, 2).unwrap();
        drop(session);
        engine = engine.restart();
        let rounds = round + 1;
        let expected = balance(100, 2 * rounds as i64, 0, 7 * rounds);
        assert_eq!(engine.all()[&name("a")], expected);
    }
}

pub fn d36_holds_left_open_are_resolved_at_the_next_start<E: Engine>() {
    let engine = E::start();
    let accounts = [account("a", 10, 1), account("cap", 10, 1)];
    let session = engine.session();
    let post = post([Source::take(4, [capped(0, 1)])]);
    assert!(done(run(session.hold(&ask(1, &accounts, &post))).unwrap()).is_some());
    let captured = Ask { in_doubt: InDoubt::Capture, ..ask(2, &accounts, &post) };
    assert!(done(run(session.hold(&captured)).unwrap()).is_some());
    drop(session);
    let engine = engine.restart().restart();
    assert_eq!(engine.all()[&name("a")], balance(10, 0, 0, 4));
    assert_eq!(engine.all()[&name("cap")], balance(10, 0, 0, 4));
    let late = void(&engine.session(), 1);
    assert!(matches!(late, Resolved::Unknown | Resolved::Already(State::Voided)), "{late:?}");
}

pub fn a_charge_is_resolved_once<E: Engine>() {
    let engine = E::start();
    let (mine, other) = (engine.session(), engine.session());
    let accounts = [account("a", 10, 1)];
    assert!(matches!(void(&mine, 1), Resolved::Unknown));
    assert!(hold(&mine, 1, &accounts, 10).is_some());
    assert!(matches!(capture(&other, 1, &[7]), Resolved::Done(..)));
    for session in [&mine, &other] {
        let again = void(session, 1);
        assert!(matches!(again, Resolved::Unknown | Resolved::Already(State::Captured)));
    }
    assert_eq!(engine.all()[&name("a")], balance(10, 0, 0, 7));
}

pub fn f23_of_two_resolutions_the_first_wins<E: Engine>() {
    let engine = E::start();
    let (mine, other) = (engine.session(), engine.session());
    assert!(hold(&mine, 1, &[account("a", 10, 1)], 10).is_some());
    let memo = OutcomeMemo::default();
    let is_first = run(async {
        let first = mine.resolve(id(1), &resolution(State::Captured, &[10], &memo));
        let second = other.resolve(id(1), &resolution(State::Voided, &[], &memo)).await.unwrap();
        let first = first.await.unwrap();
        if E::IN_ORDER || matches!(first, Resolved::Done(..)) {
            assert!(matches!(second, Resolved::Unknown | Resolved::Already(State::Captured)));
            assert!(matches!(first, Resolved::Done(..)));
            true
        } else {
            assert!(matches!((first, second), (Resolved::Unknown, Resolved::Done(..))));
            false
        }
    });
    let captured = if is_first { 10 } else { 0 };
    assert_eq!(engine.all()[&name("a")], balance(10, 0, 0, captured));
}

pub fn a_resolution_returns_every_account_the_hold_named<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let accounts = [account("a", 10, 1), account("b", 5, 1), account("seen", 9, 1)];
    let mut post = take(4, &[0, 1]);
    post.look.push(2);
    assert!(done(run(session.hold(&ask(1, &accounts, &post))).unwrap()).is_some());
    match capture(&session, 1, &[3]) {
        Resolved::Done(_, view) => {
            assert_eq!(view.get(0), Some(balance(10, 0, 0, 3)));
            assert_eq!(view.get(1), Some(balance(5, 0, 0, 0)), "named, but not needed");
            assert_eq!(view.get(2), Some(balance(9, 0, 0, 0)), "looked at");
        }
        other => panic!("{other:?}"),
    }
}

pub fn d31_an_extra_post_is_captured_with_the_hold_or_not_at_all<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let held = [account("a", 10, 1)];
    let others = [account("b", 5, 1), account("owes", 0, 1)];
    assert!(hold(&session, 1, &held, 10).is_some());
    let memo = OutcomeMemo::default();
    let with = |extra| {
        let extra = Some((&others[..], extra));
        Resolution { extra, ..resolution(State::Captured, &[10], &memo) }
    };
    let too_much = take(6, &[0]);
    match run(session.resolve(id(1), &with(&too_much))).unwrap() {
        Resolved::Short(view) => assert_eq!(available(&view, 0), 5),
        other => panic!("{other:?}"),
    }
    assert!(run(session.open_charge(id(1))).unwrap().is_some());
    let forced = Source { forced: true, ..Source::take(1, [payer(1)]) };
    let enough = post([Source::take(5, [payer(0)]), forced]);
    match run(session.resolve(id(1), &with(&enough))).unwrap() {
        Resolved::Done(legs, _) => assert_eq!(legs.len(), 2),
        other => panic!("{other:?}"),
    }
    drop(session);
    let all = engine.restart().all();
    assert_eq!(all[&name("a")], balance(10, 0, 0, 10));
    assert_eq!(all[&name("b")], balance(5, 0, 0, 5));
    assert_eq!(all[&name("owes")], balance(0, 0, 0, 1));
}

pub fn what_is_kept_is_never_more_than_what_was_held<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    assert!(hold(&session, 1, &[account("a", 10, 1), account("b", 10, 1)], 12).is_some());
    assert!(matches!(capture(&session, 1, &[11, u64::MAX, 3]), Resolved::Done(..)));
    drop(session);
    let all = engine.restart().all();
    assert_eq!(all[&name("a")], balance(10, 0, 0, 10));
    assert_eq!(all[&name("b")], balance(10, 0, 0, 2));
}

pub fn d42_the_newest_grant_wins<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let held = |charge, base, number, amount| {
        hold(&session, charge, &[account("a", base, number)], amount).is_some()
    };
    assert!(held(1, 10, 1, 10));
    assert!(held(2, 20, 3, 6));
    assert!(!held(3, 99, 2, 5), "an older version came late");
    assert!(held(4, 0, 2, 4));
    assert!(!held(5, 15, 4, 1), "a lower grant leaves it in the red, which is empty");
    let mut next_epoch = account("a", 21, 0);
    next_epoch.grant.version.epoch = 2;
    assert!(hold(&session, 6, &[next_epoch], 1).is_some());
    assert_eq!(engine.all()[&name("a")], balance(21, 0, 21, 0));
}

pub fn d42_a_grant_outlives_the_process<E: Engine>() {
    let mut engine = E::start();
    for number in 1..6 {
        let session = engine.session();
        let base = 10 * number;
        assert!(hold(&session, number, &[account("a", base, number)], base).is_some());
        assert!(hold(&session, 100 + number, &[account("a", 999, number - 1)], 1).is_none());
        drop(session);
        engine = engine.restart();
        assert_eq!(engine.all()[&name("a")], balance(base, 0, 0, 0));
    }
}

pub fn d06_another_cycle_is_another_account<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let november = account("a", 10, 1);
    let mut december = november;
    december.key.period = "2026-12-01".parse().unwrap();
    december.name.period = december.key.period;
    assert!(hold(&session, 1, &[november], 10).is_some());
    assert!(hold(&session, 2, &[november], 1).is_none());
    assert!(hold(&session, 3, &[december], 10).is_some());
    assert!(matches!(capture(&session, 1, &[9]), Resolved::Done(..)));
    assert_eq!(engine.all()[&name("a")], balance(10, 0, 0, 9));
    assert_eq!(engine.all()["acme/licence/a/2026-12-01"], balance(10, 0, 10, 0));
}

pub fn f24_an_unseen_account_is_opened_by_its_first_debit<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let accounts = [account("a", 10, 1), account("b", 5, 1)];
    let seen = run(session.balances(&accounts)).unwrap();
    assert_eq!([0, 1].map(|slot| available(&seen, slot)), [10, 5]);
    assert!(engine.all().is_empty());
    let view = hold(&session, 1, &accounts, 12).unwrap();
    assert_eq!(view.get(1), Some(balance(5, 0, 2, 0)));
    drop(session);
    assert_eq!(engine.restart().all().len(), 2);
}

pub fn d29_a_charge_of_zero_has_no_legs<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let nothing = post([]);
    let (legs, _) = legs(run(session.hold(&ask(1, &[], &nothing))).unwrap()).unwrap();
    assert!(legs.is_empty());
    assert!(matches!(capture(&session, 1, &[]), Resolved::Done(..)));
    assert!(!matches!(capture(&session, 1, &[]), Resolved::Done(..)));
    assert!(engine.all().is_empty());
}

pub fn an_open_charge_is_described<E: Engine>() {
    let engine = E::start();
    let accounts = [account("a", 10, 1), account("cap", 10, 1)];
    let post = post([Source::take(4, [capped(0, 1)])]);
    let asked = Ask { memo: b"for whom", ..ask(1, &accounts, &post) };
    assert!(done(run(engine.session().hold(&asked)).unwrap()).is_some());
    let open = run(engine.session().open_charge(id(1))).unwrap().unwrap();
    assert_eq!((open.charge, open.held_at, &*open.memo), (id(1), NOW, &b"for whom"[..]));
    let legs: Vec<_> =
        open.legs.into_iter().map(|leg| (leg.account, leg.kind, leg.amount)).collect();
    assert_eq!(legs, [(name("a"), LegKind::Overage, 4), (name("cap"), LegKind::Cap, 4)]);
}

pub fn a_memo_without_bound_is_refused<E: Engine>() {
    let engine = E::start();
    let session = engine.session();
    let accounts = [account("a", 10, 1)];
    let post = take(4, &[0]);
    let memo = vec![b'x'; 2 << 20];
    let asked = Ask { memo: &memo, ..ask(1, &accounts, &post) };
    assert!(matches!(run(session.hold(&asked)), Err(BooksError::Range)));
    let adjustment =
        Adjustment { key: None, account: &accounts[0], delta: 1, now: NOW, memo: &memo };
    assert_eq!(run(session.adjust(&adjustment)), Err(BooksError::Range));
    assert!(hold(&session, 2, &accounts, 10).is_some());
    drop(session);
    assert_eq!(engine.restart().all()[&name("a")], balance(10, 0, 0, 0));
}

pub fn f22_many_threads_are_given_exactly_what_there_is<E: Engine>() {
    for round in 0..5 {
        let engine = E::start();
        let admitted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|thread: u64| {
                    let session = engine.session();
                    scope.spawn(move || {
                        // Half of them name the accounts the other way round.
                        let (first, second) =
                            if thread.is_multiple_of(2) { (0, 1) } else { (1, 0) };
                        let accounts =
                            [account("a", 300, 1), account("b", 200, 1), account("cap", 450, 1)];
                        let post = post([Source::take(1, [capped(first, 2), capped(second, 2)])]);
                        let admits = |n: &u64| {
                            let asked = ask(thread << 32 | n, &accounts, &post);
                            done(run(session.hold(&asked)).unwrap()).is_some()
                        };
                        (0..300).filter(admits).count()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(admitted, 450, "round {round}");
        let all = engine.all();
        assert_eq!(all[&name("cap")], balance(450, 0, 450, 0));
        assert_eq!(all[&name("a")].held + all[&name("b")].held, 450);
    }
}
