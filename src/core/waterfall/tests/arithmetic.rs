//! D25 against arithmetic that shares nothing with the core's: how much each account pays, and
//! how many credits of the cost it covers.

use proptest::prelude::*;

use super::super::super::account::{LegKind, Legs, Taken};
use super::super::super::entitlement::Overage;
use super::world::{Outcome, PLENTY, cases, covers, premium, price, principal, user};
use crate::core::amount::{Credits, MAX_MICRO};

/// The smallest n with n·c ≥ a·b, found by comparing, not by dividing.
fn up(a: u64, b: u64, c: u64) -> u64 {
    let (product, c) = (u128::from(a) * u128::from(b), u128::from(c));
    let (mut low, mut high) = (0u64, u64::MAX);
    while low < high {
        let middle = low + (high - low) / 2;
        if u128::from(middle) * c >= product { high = middle } else { low = middle + 1 }
    }
    low
}

/// The largest n with n·c ≤ a·b.
fn down(a: u64, b: u64, c: u64) -> u64 {
    let above = up(a, b, c);
    if u128::from(above) * u128::from(c) == u128::from(a) * u128::from(b) {
        above
    } else {
        above - 1
    }
}

fn sum(legs: &[Taken], kind: LegKind) -> u64 {
    legs.iter().filter(|leg| leg.kind == kind).map(|leg| leg.amount).sum()
}

fn covered(legs: &Legs, covers: &[u64], kind: LegKind) -> u64 {
    legs.iter().zip(covers).filter(|(leg, _)| leg.kind == kind).map(|(_, covers)| covers).sum()
}

fn hold(seat: u64, pool: u64, cost: u64, operations: u64) -> Legs {
    let setup = user(&[seat as i64]).pool(pool as i64).overage(Overage::Bill, PLENTY);
    let (outcome, _) = setup.world().run(&premium(cost, operations), |_, _| {});
    match outcome {
        Outcome::Done(legs, _) => legs,
        refused => panic!("{refused:?}"),
    }
}

/// Seat credits, pool Operations, overage Operations; then the credits the latter two cover.
fn split(seat: u64, pool: u64, cost: u64, operations: u64) -> [u64; 5] {
    let legs = hold(seat, pool, cost, operations);
    let covers = covers(&legs, Credits::from_micro(cost).unwrap(), None);
    [
        sum(&legs, LegKind::Licence),
        sum(&legs, LegKind::Pool),
        sum(&legs, LegKind::Overage),
        covered(&legs, &covers, LegKind::Pool),
        covered(&legs, &covers, LegKind::Overage),
    ]
}

#[test]
fn d25_worked_examples() {
    const ONE: u64 = 1_000_000;
    // The contract's receipt: 100 credits at 0.02 Operations, of which the seat has 30.
    assert_eq!(
        split(30 * ONE, 1_000 * ONE, 100 * ONE, 2 * ONE),
        [30 * ONE, 1_400_000, 0, 70 * ONE, 0]
    );
    // One micro-credit is left to pay, which costs less than one micro-Operation: one is due.
    assert_eq!(split(99, 10, 100, 2), [99, 1, 0, 1, 0]);
    // 2·2/3 = 1.33 Operations rounds up; the pool has half of it, and covers ⌊2·1/2⌋ credit.
    assert_eq!(split(1, 1, 3, 2), [1, 1, 1, 1, 1]);
    // The pool's part rounds down: ⌊7·1/3⌋ = 2, and overage covers the other 5.
    assert_eq!(split(0, 1, 7, 3), [0, 1, 2, 2, 5]);
    // Where Operations are dearer than credits, a part can cover nothing at all.
    assert_eq!(split(0, 3, 2, 10), [0, 3, 7, 0, 2]);
    // The largest price there is, with a seat that has one micro-credit.
    assert_eq!(split(1, 0, MAX_MICRO, 1 << 51), [1, 0, 1 << 51, 0, MAX_MICRO - 1]);
}

#[test]
fn d25_legs_cover_the_cost_also_over_several_licences_and_limits() {
    let leg = |slot, kind, amount| Taken { slot, kind, amount };
    let legs = [
        leg(0, LegKind::Licence, 10),
        leg(1, LegKind::Licence, 20),
        leg(3, LegKind::Pool, 2),
        leg(4, LegKind::Overage, 1),
        leg(5, LegKind::Cap, 1),
        leg(6, LegKind::Limit, 3),
        leg(2, LegKind::Overdraft, 7),
    ];
    let covers = covers(&legs, price(47, 0).cost, Some(2));
    assert_eq!(covers, [10, 20, 6, 4, 0, 0, 7]);
}

#[test]
fn d31_a_principals_overdraft_covers_like_the_pool_it_falls_on() {
    let mut world = principal().pool(5).world();
    let (outcome, _) = world.run(&premium(10, 5), |_, _| {});
    let Outcome::Done(mut legs, _) = outcome else { panic!("{outcome:?}") };
    let pool = world.pool_slot();
    legs.push(Taken { slot: pool, kind: LegKind::Overdraft, amount: 5 });
    let covers = covers(&legs, price(20, 0).cost, None);
    assert_eq!(covers.iter().sum::<u64>(), 20);
    assert_eq!(covers.last(), Some(&10));
}

proptest! {
    #![proptest_config(cases(4_000))]

    #[test]
    fn d25_a_split_is_exact(
        cost in prop_oneof![1u64..100, 1..=MAX_MICRO],
        operations in prop_oneof![1u64..100, 1..1u64 << 52],
        seat in prop_oneof![0u64..100, 0..1u64 << 52],
        pool in prop_oneof![0u64..100, 0..1u64 << 52],
    ) {
        let [s, p, over, pool_covers, over_covers] = split(seat, pool, cost, operations);
        prop_assert_eq!(s, seat.min(cost));
        let x = up(operations, cost - s, cost);
        prop_assert_eq!(p, pool.min(x));
        prop_assert_eq!(over, x - p);
        prop_assert_eq!(s + pool_covers + over_covers, cost);
        if x > 0 {
            prop_assert_eq!(pool_covers, down(cost - s, p, x));
        }
    }

    #[test]
    fn d25_more_in_the_seat_never_costs_the_pool_more(
        cost in 1u64..1 << 40, operations in 1u64..1 << 40, seat in 0u64..1 << 40, more in 0u64..1 << 40,
    ) {
        let paid = |seat| {
            let [_, pool, overage, ..] = split(seat, 1 << 30, cost, operations);
            (pool + overage, overage)
        };
        let (poor, rich) = (paid(seat), paid(seat + more));
        prop_assert!(rich.0 <= poor.0 && rich.1 <= poor.1);
    }

    #[test]
    fn d25_a_dearer_request_never_costs_the_pool_less(
        cost in 1u64..1 << 40, more in 0u64..1 << 40, seat in 0u64..1 << 40, per_credit in 1u64..50,
    ) {
        let paid = |cost: u64| {
            let operations = up(cost, per_credit, 50);
            let [_, pool, overage, ..] = split(seat, 1 << 30, cost, operations);
            pool + overage
        };
        // The full price in Operations is itself rounded up, so a micro-Operation is the bound.
        prop_assert!(paid(cost) <= paid(cost + more) + 1);
    }
}
