//! Two sessions on two threads on the same accounts: whatever the order turns out to be, no
//! account ever spends what it has not, and at rest the sums are exact, in memory and after a
//! restart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use tollgate::books::{Adjustment, Amended, Amendment, Ask, Books, Resolution, Resolved};
use tollgate::core::account::{Account, Balance, Legs, Slot, Source};
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::core::ids::ChargeId;

use crate::engine::{
    Embedded, Engine, NOW, account, amendment, ask, balance, capped, id, known, legs, name, payer,
    post, run, second, take, until,
};

const IDS: [&str; 4] = ["a", "b", "pool", "cap"];
const OPERATIONS: u64 = 15_000;

/// What one thread knows that it did: legs captured, legs still held, adjustments, by account.
#[derive(Default)]
struct Done {
    captured: [u64; 4],
    held: [u64; 4],
    adjusted: [i64; 4],
}

/// The accounts as every thread names them; the order differs, so that locks are asked for in
/// different orders.
fn accounts(reversed: bool) -> Vec<Account<'static>> {
    let mut accounts: Vec<_> = IDS.iter().map(|id| account(id, 400, 1)).collect();
    if reversed {
        accounts.reverse();
    }
    accounts
}

fn add(to: &mut [u64; 4], legs: &Legs, reversed: bool, keep: impl Fn(usize, u64) -> u64) {
    for (index, leg) in legs.iter().enumerate() {
        let slot = usize::from(leg.slot);
        to[if reversed { 3 - slot } else { slot }] += keep(index, leg.amount);
    }
}

/// One thread: holds some, resolves its own and sometimes the other's, and adjusts up what is
/// used up. `raised` is what was adjusted before anybody could rely on it.
async fn work(session: impl Books, thread: u64, raised: &AtomicI64) -> Done {
    let reversed = thread == 1;
    let accounts = accounts(reversed);
    let slot = |account: Slot| if reversed { 3 - account } else { account };
    let memo = OutcomeMemo::default();
    let mut done = Done::default();
    let mut open: Vec<(ChargeId, Legs)> = Vec::new();
    for n in 0..OPERATIONS {
        let charge = thread << 40 | n;
        let split = || {
            let seat = Source::take(1 + n % 3, [payer(slot(0)), payer(slot(1))]);
            post([seat, Source::take(n % 4, [capped(slot(2), slot(3))])])
        };
        let asked = if n % 2 == 0 { take(1 + n % 5, &[slot(1), slot(0)]) } else { split() };
        if let Some((legs, view)) =
            legs(session.hold(&ask(charge, &accounts, &asked)).await.unwrap())
        {
            for leg in &legs {
                // Nothing here is forced or lowered, so nothing may ever be in the red.
                assert!(view.get(leg.slot).unwrap().remaining() >= 0, "overspent at {n}");
            }
            open.push((id(charge), legs));
        }
        if n % 3 == 0 && !open.is_empty() {
            let (charge, legs) = open.swap_remove(n as usize * 7 % open.len());
            let part = n % 4;
            let kept = |_, amount: u64| if part == 3 { 0 } else { amount * part / 2 };
            let keep: Vec<u64> =
                legs.iter().map(|leg| kept(0, leg.amount).min(leg.amount)).collect();
            let state = if part == 3 { State::Voided } else { State::Captured };
            let resolution = Resolution::plain(state, &keep, NOW, &memo);
            let resolving = session.resolve(charge, &resolution);
            if n % 5 == 0 {
                drop(resolving);
            } else {
                assert!(matches!(resolving.await.unwrap(), Resolved::Done(..)));
            }
            add(&mut done.captured, &legs, reversed, |index, _| keep[index]);
        }
        if n % 50 == 0 {
            let which = (n / 50 % 4) as Slot;
            let account = &accounts[usize::from(slot(which))];
            let adjustment = Adjustment { key: None, account, delta: 90, now: NOW, memo: b"more" };
            raised.fetch_add(90, Ordering::SeqCst);
            session.adjust(&adjustment).await.unwrap();
            done.adjusted[usize::from(which)] += 90;
        }
    }
    for (_, legs) in &open {
        add(&mut done.held, legs, reversed, |_, amount| amount);
    }
    done
}

fn sums(threads: &[Done], reopened: bool) -> BTreeMap<String, Balance> {
    let sum = |of: &dyn Fn(&Done) -> u64| threads.iter().map(of).sum::<u64>();
    let balance = |at: usize| Balance {
        base: 400,
        adjusted: threads.iter().map(|done| done.adjusted[at]).sum(),
        held: if reopened { 0 } else { sum(&|done| done.held[at]) },
        captured: sum(&|done| done.captured[at]),
    };
    IDS.iter().enumerate().map(|(at, id)| (name(id), balance(at))).collect()
}

#[test]
fn d24_two_threads_on_the_same_accounts_lose_and_invent_nothing() {
    for _ in 0..4 {
        let engine = Embedded::start();
        let raised = AtomicI64::new(0);
        let threads: Vec<Done> = std::thread::scope(|scope| {
            let (engine, raised) = (&engine, &raised);
            let begin = |thread| scope.spawn(move || run(work(engine.session(), thread, raised)));
            let threads: Vec<_> = (0..2).map(begin).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let all = engine.all();
        assert_eq!(all, sums(&threads, false));
        let adjusted: i64 = all.values().map(|balance| balance.adjusted).sum();
        assert_eq!(adjusted, raised.into_inner());
        // What is open now is voided at the next start.
        assert_eq!(engine.restart().all(), sums(&threads, true));
    }
}

#[test]
fn a_charge_that_two_threads_resolve_is_resolved_by_one() {
    let engine = Embedded::start();
    let accounts = [account("a", 1_000, 1)];
    let session = engine.session();
    for n in 0..1_000 {
        let held = run(session.hold(&ask(n, &accounts, &take(1, &[0])))).unwrap();
        assert!(legs(held).is_some());
    }
    let resolve_all = |state: State| {
        let session = engine.session();
        let memo = OutcomeMemo::default();
        move || {
            run(async {
                let mut done = 0;
                for n in 0..1_000 {
                    let resolution = Resolution::plain(state, &[1], NOW, &memo);
                    let resolved = session.resolve(id(n), &resolution).await.unwrap();
                    done += u64::from(matches!(resolved, Resolved::Done(..)));
                }
                done
            })
        }
    };
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(resolve_all(State::Captured));
        let second = scope.spawn(resolve_all(State::Captured));
        (first.join().unwrap(), second.join().unwrap())
    });
    assert_eq!(first + second, 1_000);
    let balance = Balance { base: 1_000, adjusted: 0, held: 0, captured: 1_000 };
    assert_eq!(engine.all()[&name("a")], balance);
}

/// Who was told that a hold goes on longer finds it open, and what was recorded of its use counts.
#[test]
fn f23_a_hold_that_is_prolonged_while_it_ends_does_one_of_both() {
    let engine = Embedded::start();
    let accounts = [account("a", 10_000, 1)];
    let session = engine.session();
    for n in 0..5_000 {
        let one = take(1, &[0]);
        let asked = Ask { lasting: until(60), ..ask(n, &accounts, &one) };
        drop(session.hold(&asked));
    }
    let (begun, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let (ended, prolonged) = std::thread::scope(|scope| {
        let ends = scope.spawn(|| {
            let mut ended = BTreeSet::new();
            while begun.load(Ordering::SeqCst) < 100 {
                std::thread::yield_now();
            }
            while !is_over.load(Ordering::SeqCst) {
                ended.extend(engine.expire(second(60)).into_iter().map(|(open, _)| open.charge));
            }
            ended
        });
        let (other, begun) = (engine.session(), &begun);
        let prolongs = scope.spawn(move || {
            let used = known(&[1]);
            let longer = Amendment { expires: Some(second(90)), known: Some(&used), ..amendment() };
            // From the other end than that from which they end.
            let amended = |n: &u64| {
                begun.fetch_add(1, Ordering::SeqCst);
                matches!(run(other.amend(id(*n), &longer)).unwrap(), Amended::Done(..))
            };
            (0..5_000).rev().filter(amended).map(id).collect::<BTreeSet<_>>()
        });
        let prolonged = prolongs.join().unwrap();
        is_over.store(true, Ordering::SeqCst);
        (ends.join().unwrap(), prolonged)
    });
    let both: Vec<_> = ended.intersection(&prolonged).collect();
    assert!(both.is_empty(), "{} ended that go on longer", both.len());
    assert_eq!(ended.len() + prolonged.len(), 5_000);
    assert!(!ended.is_empty() && !prolonged.is_empty());
    let held = prolonged.len() as u64;
    assert_eq!(engine.all()[&name("a")], balance(10_000, 0, held, 0));
    assert_eq!(engine.expire(second(90)).len() as u64, held.min(1_000));
}
