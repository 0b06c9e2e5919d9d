use std::collections::HashMap;

use super::*;
use crate::books::{Adjusted, Adjustment, Ask, Books, InDoubt, Posted, Resolved};
use crate::core::account::{
    Account, AccountKind, AccountName, Grant, LegKind, Payer, Post, Source, Stem, Version, View,
};
use crate::core::charge::OutcomeMemo;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn account(id: &'static str, base: u64, number: u64) -> Account<'static> {
    let period = "2026-11-01".parse().unwrap();
    let kind = AccountKind::Licence;
    Account {
        key: AccountKey { stem: Stem::new(&["acme", id]), period, kind },
        name: AccountName { org: "acme", kind, ids: [id, ""], period },
        grant: Grant { base, version: Version { epoch: 1, number } },
    }
}

fn payer(slot: Slot) -> Payer {
    Payer { slot, kind: LegKind::Licence, cap: None }
}

fn take(amount: u64, slots: &[Slot]) -> Post {
    let source = Source::take(amount, slots.iter().map(|&slot| payer(slot)));
    Post { sources: [source].into_iter().collect(), look: Default::default() }
}

fn id(n: u64) -> ChargeId {
    ChargeId::v7(n, u128::from(n))
}

fn ask<'a>(charge: u64, accounts: &'a [Account<'a>], post: &'a Post) -> Ask<'a> {
    let charge = id(charge);
    Ask { charge, accounts, post, now: NOW, in_doubt: InDoubt::Void, memo: b"", lasting: None }
}

fn resolution<'a>(state: ChargeState, keep: &'a [u64], memo: &'a OutcomeMemo) -> Resolution<'a> {
    Resolution::plain(state, keep, NOW, memo)
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn held(posted: Result<Posted, BooksError>) -> Option<View> {
    match posted.unwrap() {
        Posted::Done(_, view) => Some(view),
        Posted::Short(_) | Posted::Known(_) => None,
    }
}

fn open(dir: &Path) -> Engine {
    Engine::open(dir, NOW).unwrap()
}

/// Every balance by name, of live memory and of the files, which must agree.
fn balances(engine: &Engine) -> HashMap<String, Balance> {
    engine.session.flush().unwrap();
    let mut live = HashMap::new();
    engine.for_each_balance(|_, name, balance| {
        live.insert(name.to_owned(), balance);
    });
    live.retain(|_, balance| *balance != Balance::default());
    let recorded = recover(engine.dir(), None).unwrap().fold;
    let recorded: HashMap<String, Balance> =
        recorded.accounts.into_values().map(|a| (a.name.into_string(), a.balance)).collect();
    assert_eq!(live, recorded);
    live
}

/// Sessions and what they share know each other; printing them came to no end.
#[test]
fn an_engine_and_a_session_can_be_printed() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let session = engine.session();
    for n in 1..=50 {
        held(run(session.hold(&ask(n, &[account("a", 100, 1)], &take(1, &[0]))))).unwrap();
    }
    let printed = format!("{engine:#?} {session:#?}");
    assert!(printed.contains("accounts: 1,") && printed.len() < 1000, "{printed}");
}

#[test]
fn f24_an_unseen_account_is_created_and_debited_in_one_step() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let session = engine.session();
    let accounts = [account("a", 10, 1), account("b", 5, 1)];
    let view = held(run(session.hold(&ask(1, &accounts, &take(12, &[0, 1]))))).unwrap();
    assert_eq!(view.get(0).unwrap().held, 10);
    assert_eq!(view.get(1).unwrap(), Balance { base: 5, adjusted: 0, held: 2, captured: 0 });
    assert!(held(run(session.hold(&ask(2, &accounts, &take(4, &[0, 1]))))).is_none());
    assert!(held(run(session.hold(&ask(3, &accounts, &take(3, &[0, 1]))))).is_some());
    assert_eq!(balances(&engine).len(), 2);
}

#[test]
fn d24_a_short_post_changes_nothing_and_returns_every_account() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let accounts = [account("a", 10, 1), account("b", 5, 1)];
    let mut post = take(10, &[0]);
    post.sources.push(Source::take(6, [payer(1)]));
    match run(engine.session().hold(&ask(1, &accounts, &post))).unwrap() {
        Posted::Short(view) => {
            assert_eq!(view.get(0).unwrap().available(), 10);
            assert_eq!(view.get(1).unwrap().available(), 5);
        }
        other => panic!("b cannot give 6: {other:?}"),
    }
    assert!(balances(&engine).is_empty());
}

#[test]
fn guards_below_solvent_and_cap() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let session = engine.session();
    let accounts = [account("a", 10, 1), account("owes", 0, 1), account("cap", 3, 1)];
    let guarded = |below| {
        let mut post = take(10, &[0]);
        post.sources[0].below = Some(below);
        post
    };
    assert!(held(run(session.hold(&ask(1, &accounts, &guarded(10))))).is_none());
    assert!(held(run(session.hold(&ask(2, &accounts, &guarded(11))))).is_some());

    let mut forced = take(4, &[1]);
    forced.sources[0].forced = true;
    assert!(held(run(session.hold(&ask(3, &accounts, &forced)))).is_some());
    let mut solvent = take(0, &[1]);
    solvent.sources[0].solvent = true;
    assert!(held(run(session.hold(&ask(4, &accounts, &solvent)))).is_none());

    let free = [account("c", 10, 1), account("cap", 3, 1)];
    let capped = |amount| {
        let mut post = take(amount, &[0]);
        post.sources[0].payers[0].cap = Some(1);
        post
    };
    assert!(held(run(session.hold(&ask(5, &free, &capped(4))))).is_none());
    let view = held(run(session.hold(&ask(6, &free, &capped(3))))).unwrap();
    assert_eq!((view.get(0).unwrap().held, view.get(1).unwrap().held), (3, 3));
}

#[test]
fn a_charge_is_resolved_once() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let (mine, other) = (engine.session(), engine.session());
    let accounts = [account("a", 10, 1)];
    held(run(mine.hold(&ask(1, &accounts, &take(10, &[0]))))).unwrap();
    let memo = OutcomeMemo::default();
    let capture = resolution(ChargeState::Captured, &[7], &memo);
    match run(other.resolve(id(1), &capture)).unwrap() {
        Resolved::Done(_, view) => {
            let balance = Balance { base: 10, adjusted: 0, held: 0, captured: 7 };
            assert_eq!(view.get(0), Some(balance));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(run(mine.resolve(id(1), &capture)).unwrap(), Resolved::Unknown));
    assert_eq!(balances(&engine)["acme/licence/a/2026-11-01"].available(), 3);
}

#[test]
fn a_second_resolution_in_the_same_turn_meets_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let session = engine.session();
    let accounts = [account("a", 10, 1)];
    held(run(session.hold(&ask(1, &accounts, &take(10, &[0]))))).unwrap();
    let memo = OutcomeMemo::default();
    let capture = resolution(ChargeState::Captured, &[10], &memo);
    let void = resolution(ChargeState::Voided, &[], &memo);
    run(async {
        let first = session.resolve(id(1), &capture);
        let second = session.resolve(id(1), &void).await.unwrap();
        assert!(matches!(second, Resolved::Already(ChargeState::Captured)));
        assert!(matches!(first.await.unwrap(), Resolved::Done(..)));
    });
    assert_eq!(balances(&engine)["acme/licence/a/2026-11-01"].captured, 10);
}

#[test]
fn f06_a_future_that_is_dropped_still_did_its_work() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let session = engine.session();
    let accounts = [account("a", 10, 1)];
    let post = take(10, &[0]);
    let asked = ask(1, &accounts, &post);
    run(async {
        let mut hold = Box::pin(session.hold(&asked));
        let pending = std::future::poll_fn(|context| {
            std::task::Poll::Ready(hold.as_mut().poll(context).is_pending())
        });
        assert!(pending.await);
        drop(hold);
    });
    assert_eq!(balances(&engine)["acme/licence/a/2026-11-01"].held, 10);
    let memo = OutcomeMemo::default();
    drop(session.resolve(id(1), &resolution(ChargeState::Voided, &[], &memo)));
    assert_eq!(balances(&engine)["acme/licence/a/2026-11-01"].available(), 10);
    assert_eq!(engine.open_holds().0, 0);
}

#[test]
fn credits_return_only_after_their_record_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let session = engine.session();
    let accounts = [account("a", 10, 1)];
    run(async {
        held(session.hold(&ask(1, &accounts, &take(10, &[0]))).await).unwrap();
        let memo = OutcomeMemo::default();
        let voided = session.resolve(id(1), &resolution(ChargeState::Voided, &[], &memo));
        // Not written yet: a post of another worker must not use what is only about to return.
        let early = engine.session().hold(&ask(2, &accounts, &take(1, &[0]))).await;
        assert!(held(early).is_none());
        voided.await.unwrap();
        let late = engine.session().hold(&ask(3, &accounts, &take(10, &[0]))).await;
        assert!(held(late).is_some());
    });
}

#[test]
fn d42_the_newest_grant_wins_and_nothing_overwrites_what_was_used() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let session = engine.session();
    let hold = |charge, base, number, amount| {
        let accounts = [account("a", base, number)];
        held(run(session.hold(&ask(charge, &accounts, &take(amount, &[0])))))
    };
    assert!(hold(1, 10, 1, 10).is_some());
    assert!(hold(2, 20, 3, 6).is_some());
    // An older version comes late: it neither lowers nor raises.
    assert!(hold(3, 99, 2, 5).is_none());
    assert!(hold(4, 0, 2, 4).is_some());
    let balance = balances(&engine)["acme/licence/a/2026-11-01"];
    assert_eq!(balance, Balance { base: 20, adjusted: 0, held: 20, captured: 0 });
    // A lower grant leaves the account in the red, which counts as empty.
    assert!(hold(5, 15, 4, 1).is_none());
}

#[test]
fn adjustments_go_down_at_once_and_up_when_written() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let session = engine.session();
    let account = account("a", 10, 1);
    let adjust = |delta| {
        let (account, memo) = (&account, b"why");
        let adjustment = Adjustment { key: None, account, delta, now: NOW, memo };
        run(session.adjust(&adjustment)).map(Adjusted::balance)
    };
    assert_eq!(adjust(-4).unwrap().available(), 6);
    assert_eq!(adjust(1).unwrap().available(), 7);
    let accounts = [account];
    assert!(held(run(session.hold(&ask(1, &accounts, &take(8, &[0]))))).is_none());
    assert!(held(run(session.hold(&ask(2, &accounts, &take(7, &[0]))))).is_some());
    assert_eq!(balances(&engine).len(), 1);
}

#[test]
fn d36_holds_left_open_are_resolved_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let accounts = [account("a", 10, 1)];
    {
        let engine = open(dir.path());
        let session = engine.session();
        held(run(session.hold(&ask(1, &accounts, &take(3, &[0]))))).unwrap();
        let post = take(4, &[0]);
        let captured = Ask { in_doubt: InDoubt::Capture, ..ask(2, &accounts, &post) };
        held(run(session.hold(&captured))).unwrap();
    }
    for start in 0..3 {
        let engine = open(dir.path());
        let balance = balances(&engine)["acme/licence/a/2026-11-01"];
        assert_eq!(balance, Balance { base: 10, adjusted: 0, held: 0, captured: 4 });
        let expected = if start == 0 { (1, 1) } else { (0, 0) };
        assert_eq!((engine.recovery().voided, engine.recovery().captured), expected);
        assert_eq!(engine.open_holds(), (0, None));
    }
}

#[test]
fn f44_a_second_engine_on_the_same_dir_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    assert!(matches!(Engine::open(dir.path(), NOW), Err(OpenError::Locked(_))));
    drop(engine);
    open(dir.path());
}

#[test]
fn recovery_starts_from_a_snapshot_and_ends_in_the_same_state() {
    let dir = tempfile::tempdir().unwrap();
    let accounts = [account("a", 1_000_000, 1), account("b", 1_000_000, 1)];
    let memo = OutcomeMemo::default();
    let before = {
        let engine = Engine::open_with(
            dir.path(),
            NOW,
            Options { segment_size: 1024, ..Options::default() },
        )
        .unwrap();
        let session = engine.session();
        for n in 0..400 {
            held(run(session.hold(&ask(n, &accounts, &take(n, &[0, 1]))))).unwrap();
            if n % 3 != 0 {
                let kept = [n / 2];
                let capture = resolution(ChargeState::Captured, &kept, &memo);
                run(session.resolve(id(n), &capture)).unwrap();
            }
            if n % 100 == 50 {
                assert!(engine.snapshot(NOW).unwrap());
                assert!(!engine.snapshot(NOW).unwrap());
            }
        }
        balances(&engine)
    };
    let folded = recover(dir.path(), None).unwrap();
    assert!(folded.records < 700, "{} records were read again", folded.records);
    for (_, path) in snapshot::list(dir.path()).unwrap() {
        std::fs::remove_file(path).unwrap();
    }
    let whole = recover(dir.path(), None).unwrap();
    assert_eq!(whole.fold, folded.fold);
    let recorded: HashMap<String, Balance> =
        whole.fold.accounts.into_values().map(|a| (a.name.into_string(), a.balance)).collect();
    assert_eq!(recorded, before);
}

#[test]
fn f22_many_threads_admit_exactly_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let admitted: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4_u64)
            .map(|thread| {
                let session = engine.session();
                scope.spawn(move || {
                    let accounts = [account("a", 500, 1), account("b", 500, 1)];
                    // Half of them name the accounts the other way round.
                    let order: [Slot; 2] = if thread % 2 == 0 { [0, 1] } else { [1, 0] };
                    let count = |n: &u64| {
                        let asked = thread * 1_000_000 + n;
                        held(run(session.hold(&ask(asked, &accounts, &take(1, &order))))).is_some()
                    };
                    (0..1000).filter(count).count()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(admitted, 1000);
    let all = balances(&engine);
    assert!(all.values().all(|balance| balance.available() == 0));
}

#[test]
fn f44_a_session_that_outlives_its_engine_keeps_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let session = open(dir.path()).session();
    assert!(matches!(Engine::open(dir.path(), NOW), Err(OpenError::Locked(_))));
    drop(session);
    open(dir.path());
}

#[test]
fn d36_all_that_was_left_open_is_written_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let accounts = [account("a", 1_000, 1)];
    {
        let session = open(dir.path()).session();
        for n in 0..300 {
            held(run(session.hold(&ask(n, &accounts, &take(1, &[0]))))).unwrap();
        }
    }
    // Segments are sealed between writes: one write for all leaves one sealed segment.
    let engine =
        Engine::open_with(dir.path(), NOW, Options { segment_size: 1, ..Options::default() })
            .unwrap();
    assert_eq!(engine.recovery().voided, 300);
    let segments = crate::books::journal::Segments::list(dir.path()).unwrap();
    assert!(segments.as_slice().len() <= 4, "{} segments", segments.as_slice().len());
}

/// The guard over the overdraft is looked up before the post waits for its licence. Who is in
/// the red by the time that the licence is locked must not be served.
#[test]
fn d31_an_account_opened_while_a_post_waits_is_read_in_its_step() {
    use super::table::Into;
    use crate::core::cycle::Label;

    let named = |kind, base| {
        let period = Label::NONE;
        Account {
            key: AccountKey { stem: Stem::new(&["acme", "alice"]), period, kind },
            name: AccountName { org: "acme", kind, ids: ["alice", ""], period },
            grant: Grant { base, version: Version { epoch: 1, number: 1 } },
        }
    };
    let accounts = [named(AccountKind::Overdraft, 0), named(AccountKind::Licence, 9)];
    let payer = |slot, kind| Payer { slot, kind, cap: None };
    let solvent = Source { solvent: true, ..Source::take(0, [payer(0, LegKind::Overdraft)]) };
    let pays = Source::take(1, [payer(1, LegKind::Licence)]);
    let post = Post { sources: [solvent, pays].into_iter().collect(), ..Post::default() };
    let table = Table::default();
    let licence = table.get_or_open(&accounts[1]);
    let locked = licence.state.lock();
    std::thread::scope(|scope| {
        let posting = scope.spawn(|| table::apply(&table, &accounts, &post, Into::Held));
        // The table and this test have it; a third is the post, which has passed the overdraft.
        while Arc::strong_count(&licence) < 3 {
            std::thread::yield_now();
        }
        table.get_or_open(&accounts[0]).state.lock().balance.captured = 5;
        drop(locked);
        let Ok(Err(view)) = posting.join().unwrap() else { panic!("served in the red") };
        assert_eq!(view.get(0).unwrap().captured, 5);
        assert_eq!(view.get(1).unwrap().held, 0);
    });
}

mod hashing;
