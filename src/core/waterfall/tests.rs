//! The decision table of the waterfall, and what stands behind every row: [`world`] drives plan
//! → post → plan again against the smallest books that do what the books' contract says.

mod arithmetic;
mod observed;
mod races;
mod settlement;
mod settling;
mod world;

use super::super::amount::Operations;
use super::super::entitlement::Overage;
use super::super::refusal::{Code, DecidedBy, Missing};
use world::{Setup, premium, principal, seat_only, standard, user};

use super::super::price::Quote;

/// One outcome: its name, who asks, for what, how many posts it takes, and what comes of it.
type Row = (&'static str, Setup, Quote, usize, &'static str);

/// Plays every row and prints the whole table where one of them differs.
fn check(rows: Vec<Row>) {
    let mut table = String::new();
    let mut wrong = 0;
    for (name, setup, quote, posts, expected) in rows {
        let mut world = setup.world();
        let (outcome, took) = world.run(&quote, |_, _| {});
        let (outcome, expected) =
            (format!("{} | {took}", world.describe(&outcome)), format!("{expected} | {posts}"));
        let mark = if outcome == expected { "  " } else { "! " };
        table += &format!("{mark}{name:<42} {outcome}\n");
        if outcome != expected {
            wrong += 1;
            table += &format!("  {:<42} {expected}\n", "expected:");
        }
    }
    assert_eq!(wrong, 0, "rows that differ (outcome | posts):\n{table}");
}

/// Every request costs 100 credits or 10 Operations, in millionths, so that a seat's part of 1
/// leaves ⌈9.9⌉ = 10 Operations and a part of 91 leaves ⌈0.9⌉ = 1.
fn full() -> Quote {
    premium(100, 10)
}

// A table is read by rows, whatever their width.
#[rustfmt::skip]
#[test]
fn d24_d25_d26_golden_table_of_what_is_paid() {
    let split = || user(&[60]).pool(6);
    let capped = |left| user(&[60]).pool(3).overage(Overage::BillUpTo(Operations::MAX), left);
    let own_cap = |left| user(&[]).pool(3).overage(Overage::Bill, 1_000).profile_cap(left);
    check(vec![
        ("standard tier", user(&[]), standard(), 1, "nothing"),
        ("standard tier, in debt", user(&[]).owes(5), standard(), 1, "nothing"),
        ("standard tier, principal, no term", principal().no_term(), standard(), 1, "nothing"),
        ("cost 0", user(&[50]).pool(5), premium(0, 0), 1, "nothing"),
        ("cost 0, empty seat, no access", user(&[]), premium(0, 0), 1, "nothing"),
        ("seat pays, one licence", user(&[100]), full(), 1, "licence0 100"),
        ("seat pays, burn order", user(&[0, 60, 70]), full(), 1, "licence1 60, licence2 40"),
        ("seat pays, pool untouched", user(&[100]).pool(9), full(), 1, "licence0 100"),
        ("seat pays, seat-only feature", user(&[100]).pool(9), seat_only(100, 10), 1, "licence0 100"),
        ("seat pays without a term", user(&[100]).no_term(), full(), 1, "licence0 100"),
        ("seat pays, whole", user(&[100]).pool(9).whole(), full(), 1, "licence0 100"),
        ("split", split(), full(), 2, "licence0 60, pool 4, limit 4"),
        ("split over licences", user(&[30, 0, 31]).pool(6), full(), 2, "licence0 30, licence2 31, pool 4, limit 4"),
        ("split, rounded up", user(&[91]).pool(1), full(), 2, "licence0 91, pool 1, limit 1"),
        ("split, one micro short", user(&[99]).pool(1), full(), 2, "licence0 99, pool 1, limit 1"),
        ("split, pool to its last micro", user(&[60]).pool(4), full(), 2, "licence0 60, pool 4, limit 4"),
        ("split, bill", user(&[60]).pool(3).overage(Overage::Bill, 9), full(), 2, "licence0 60, pool 3, overage 1, limit 4"),
        ("split, cap with room", capped(7), full(), 2, "licence0 60, pool 3, overage 1, limit 4"),
        ("split, exactly at the cap", capped(1), full(), 2, "licence0 60, pool 3, overage 1, limit 4"),
        ("split, exactly at the limit", split().limit(4, DecidedBy::User), full(), 2, "licence0 60, pool 4, limit 4"),
        ("bill, own cap with room", own_cap(8), full(), 1, "pool 3, overage 7, cap 7, limit 10"),
        ("bill, exactly at the own cap", own_cap(7), full(), 1, "pool 3, overage 7, cap 7, limit 10"),
        ("whole", user(&[60]).pool(10).whole(), full(), 2, "pool 10, limit 10"),
        ("whole, over the pool", user(&[60]).pool(3).overage(Overage::Bill, 9).whole(), full(), 2, "pool 3, overage 7, limit 10"),
        ("seat empty", user(&[0, 0]).pool(10), full(), 2, "pool 10, limit 10"),
        ("seat in the red", user(&[-5, 60]).pool(10), full(), 2, "licence1 60, pool 4, limit 4"),
        ("no licences", user(&[]).pool(10), full(), 1, "pool 10, limit 10"),
        ("principal", principal().pool(10), full(), 1, "pool 10, limit 10"),
        ("principal, bill", principal().pool(0).overage(Overage::Bill, 90), full(), 1, "overage 10, limit 10"),
    ]);
}

// A table is read by rows, whatever their width.
#[rustfmt::skip]
#[test]
fn d14_d17_d24_d26_d31_golden_table_of_refusals_in_the_order_of_the_decision() {
    use Missing::{Base, Eligibility, Offer};
    let limited = |by| user(&[60]).pool(9).limit(3, by);
    let capped = |left| user(&[60]).pool(3).overage(Overage::BillUpTo(Operations::MAX), left);
    let own_cap = |left| user(&[60]).pool(3).overage(Overage::Bill, 1_000).profile_cap(left);
    check(vec![
        ("overdrawn, before all else", user(&[0]).owes(1), full(), 1, "overdrawn has 0/0 missing offer"),
        ("overdrawn, though the seat has credits", user(&[100]).owes(1), full(), 1, "overdrawn has 100/0 missing offer"),
        ("overdrawn, with pool access", user(&[9]).pool(10).owes(1), full(), 2, "overdrawn has 9/10"),
        ("overdrawn, seat and pool could pay", user(&[100]).pool(10).owes(1), full(), 2, "overdrawn has 100/10"),
        ("overdrawn, whole", user(&[100]).pool(10).whole().owes(1), full(), 2, "overdrawn has 100/10"),
        ("overdrawn, no licences", user(&[]).pool(10).owes(1), full(), 1, "overdrawn has 0/10"),
        ("overdrawn, no term", user(&[100]).no_term().owes(1), full(), 1, "overdrawn has 100/0"),
        ("overdrawn, seat-only feature", user(&[100]).pool(10).owes(1), seat_only(100, 10), 1, "overdrawn has 100/0 missing feature"),
        ("overdrawn, cost 0", user(&[100]).pool(10).owes(1), premium(0, 0), 2, "overdrawn has 100/10"),
        ("seat_exhausted, eligibility", user(&[99]).missing(&[Eligibility]), full(), 1, "seat_exhausted has 99/0 missing eligibility"),
        ("seat_exhausted, offer", user(&[99]).missing(&[Offer]), full(), 1, "seat_exhausted has 99/0 missing offer"),
        ("seat_exhausted, base", user(&[99]).missing(&[Base]), full(), 1, "seat_exhausted has 99/0 missing base"),
        ("seat_exhausted, feature", user(&[99]).pool(10), seat_only(100, 10), 1, "seat_exhausted has 99/0 missing feature"),
        ("seat_exhausted, feature, no term", user(&[99]).no_term(), seat_only(100, 10), 1, "seat_exhausted has 99/0 missing feature"),
        ("seat_exhausted, offer and feature", user(&[99]).missing(&[Offer]), seat_only(100, 10), 1, "seat_exhausted has 99/0 missing offer feature"),
        ("seat_exhausted, all", user(&[]).missing(&[Eligibility, Offer, Base]), full(), 1, "seat_exhausted has 0/0 missing eligibility offer base"),
        ("no_active_term", user(&[99]).no_term(), full(), 1, "no_active_term has 99/0"),
        ("no_active_term, principal", principal().no_term(), full(), 0, "no_active_term has 0/0"),
        ("pool_limit_reached by user", limited(DecidedBy::User), full(), 2, "pool_limit_reached has 60/3 by User"),
        ("pool_limit_reached by profile", limited(DecidedBy::Profile), full(), 2, "pool_limit_reached has 60/3 by Profile creative"),
        ("pool_limit_reached by org", limited(DecidedBy::Org), full(), 2, "pool_limit_reached has 60/3 by Org"),
        ("pool_limit_reached by key", principal().pool(10).limit(9, DecidedBy::Key), full(), 1, "pool_limit_reached has 0/9 by Key"),
        ("pool_limit_reached before the pool", user(&[60]).pool(3).limit(3, DecidedBy::Org), full(), 2, "pool_limit_reached has 60/3 by Org"),
        ("pool_limit_reached, whole", user(&[60]).pool(99).limit(9, DecidedBy::Org).whole(), full(), 2, "pool_limit_reached has 60/9 by Org"),
        ("pool_exhausted", user(&[60]).pool(3), full(), 2, "pool_exhausted has 60/3"),
        ("pool_exhausted, whole", user(&[99]).pool(9).whole(), full(), 2, "pool_exhausted has 99/9"),
        ("pool_exhausted, pool in the red", user(&[60]).pool(-3), full(), 2, "pool_exhausted has 60/0"),
        ("pool_exhausted, principal", principal().pool(9), full(), 1, "pool_exhausted has 0/9"),
        ("overage_cap_reached, one micro above", capped(0), full(), 2, "overage_cap_reached has 60/3"),
        ("overage_cap_reached, cap in the red", capped(-1), full(), 2, "overage_cap_reached has 60/3"),
        ("overage_cap_reached, own cap", own_cap(0), full(), 2, "overage_cap_reached has 60/3"),
        ("pool_access_denied", principal().missing(&[Offer]), full(), 0, "pool_access_denied has 0/0 missing offer"),
        ("pool_access_denied, cost 0", principal().missing(&[Offer]), premium(0, 0), 0, "pool_access_denied has 0/0 missing offer"),
        ("pool_access_denied, feature", principal().pool(99), seat_only(100, 10), 0, "pool_access_denied has 0/0 missing feature"),
    ]);
}

#[test]
fn d01_the_seat_pays_in_full_before_the_pool_is_touched() {
    let mut world = user(&[250]).pool(1_000).world();
    let paid: Vec<String> = (0..4)
        .map(|_| {
            let (outcome, _) = world.run(&full(), |_, _| {});
            world.describe(&outcome)
        })
        .collect();
    assert_eq!(
        paid,
        ["licence0 100", "licence0 100", "licence0 50, pool 5, limit 5", "pool 10, limit 10"]
    );
}

#[test]
fn d03_licences_are_one_quota() {
    let mut world = user(&[4_000, 2_000, 2_000]).world();
    let mut admitted = 0;
    while let (world::Outcome::Done(..), 1) = world.run(&full(), |_, _| {}) {
        admitted += 1;
    }
    assert_eq!(admitted, 80);
}

#[test]
fn d18_a_principal_draws_under_its_keys_limit_and_has_no_seat_to_reset() {
    let mut world = principal().pool(1_000).limit(25, DecidedBy::Key).world();
    for _ in 0..2 {
        assert!(matches!(world.run(&full(), |_, _| {}).0, world::Outcome::Done(..)));
    }
    let (outcome, _) = world.run(&full(), |_, _| {});
    let world::Outcome::Refused(refusal) = outcome else { panic!("{outcome:?}") };
    assert_eq!(refusal.code, Code::PoolLimitReached);
    assert_eq!(refusal.facts.unwrap().resets_at, None);
}

#[test]
fn d27_at_the_reset_the_seat_pays_first_again() {
    let mut world = user(&[100]).pool(1_000).world();
    let mut paid = || {
        let (outcome, _) = world.run(&full(), |_, _| {});
        let text = world.describe(&outcome);
        // A reset is a new account: the seat's and the draws', but not the pool's.
        if text.starts_with("pool") {
            world.set(0, 100);
        }
        text
    };
    assert_eq!([paid(), paid(), paid()], ["licence0 100", "pool 10, limit 10", "licence0 100"]);
}

#[test]
fn receipts_of_every_charge_show_what_is_left() {
    // The contract: `seat-remaining` is absent only without a seat, `pool-remaining` only
    // without access; also where nothing is paid.
    for quote in [standard(), premium(0, 0), full(), premium(10, 1)] {
        let mut world = user(&[60, 7]).pool(50).world();
        let (outcome, _) = world.run(&quote, |_, _| {});
        let world::Outcome::Done(_, view) = outcome else { panic!("{outcome:?}") };
        let seat = world.position.seat_available(&view);
        assert_eq!(seat, Some(67u64.saturating_sub(quote.price.cost.micro())), "{quote:?}");
        assert!(view.get(world.pool_slot()).is_some(), "{quote:?}");
    }
}
