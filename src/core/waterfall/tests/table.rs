//! The golden tables of the decision: a row for each outcome. They are played here against the
//! smallest books there are, and by `tests/books` against real ones.

use crate::core::amount::Operations;
use crate::core::entitlement::Overage;
use crate::core::price::Quote;
use crate::core::refusal::{DecidedBy, Missing};

use super::world::{
    Outcome, Setup, World, describe, premium, principal, seat_only, standard, user,
};

/// One outcome: its name, who asks, for what, how many posts it takes, and what comes of it.
pub type Row = (&'static str, Setup, Quote, usize, &'static str);

/// One outcome of observe mode: its name, who asks, for what, and what is paid of it.
pub type Observed = (&'static str, Setup, Quote, &'static str);

/// Plays every row and prints the whole table where one of them differs.
pub fn check(rows: Vec<Row>, mut play: impl FnMut(&mut World, &Quote) -> (Outcome, usize)) {
    let mut table = String::new();
    let mut wrong = 0;
    for (name, setup, quote, posts, expected) in rows {
        let mut world = setup.world();
        let (outcome, took) = play(&mut world, &quote);
        let (outcome, expected) =
            (format!("{} | {took}", describe(&outcome)), format!("{expected} | {posts}"));
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
pub fn full() -> Quote {
    premium(100, 10)
}

// A table is read by rows, whatever their width.
#[rustfmt::skip]
pub fn paid() -> Vec<Row> {
    let split = || user(&[60]).pool(6);
    let capped = |left| user(&[60]).pool(3).overage(Overage::BillUpTo(Operations::MAX), left);
    let own_cap = |left| user(&[]).pool(3).overage(Overage::Bill, 1_000).profile_cap(left);
    vec![
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
    ]
}

// A table is read by rows, whatever their width.
#[rustfmt::skip]
pub fn refused() -> Vec<Row> {
    use Missing::{Base, Eligibility, Offer};
    let limited = |by| user(&[60]).pool(9).limit(3, by);
    let capped = |left| user(&[60]).pool(3).overage(Overage::BillUpTo(Operations::MAX), left);
    let own_cap = |left| user(&[60]).pool(3).overage(Overage::Bill, 1_000).profile_cap(left);
    vec![
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
    ]
}

// A table is read by rows, whatever their width.
#[rustfmt::skip]
pub fn observed() -> Vec<Observed> {
    let capped = |left| user(&[60]).pool(3).overage(Overage::BillUpTo(Operations::MAX), left);
    vec![
        ("standard tier", user(&[]).owes(5), standard(), "nothing | - 0/0"),
        ("the seat pays", user(&[100]), full(), "licence0 100 | - 0/0"),
        ("the pool pays the rest", user(&[60]).pool(4), full(), "licence0 60, pool 4, limit 4 | - 0/0"),
        ("overage as policy says", user(&[60]).pool(3).overage(Overage::Bill, 9), full(), "licence0 60, pool 3, overage 1, limit 4 | - 0/0"),
        ("overdrawn, the seat can pay", user(&[100]).owes(1), full(), "licence0 100 | overdrawn 0/0"),
        ("overdrawn, seat and pool", user(&[60]).pool(9).owes(1), full(), "licence0 60, pool 4, limit 4 | overdrawn 0/0"),
        ("overdrawn, whole", user(&[60]).pool(10).whole().owes(1), full(), "pool 10, limit 10 | overdrawn 0/0"),
        ("overdrawn, no overage", user(&[60]).pool(3).overage(Overage::Bill, 9).owes(1), full(), "licence0 60, pool 3, limit 3 | overdrawn 10/1"),
        ("seat_exhausted", user(&[60]), full(), "licence0 60 | seat_exhausted 40/4"),
        ("seat_exhausted, burn order", user(&[30, 0, 31]), full(), "licence0 30, licence2 31 | seat_exhausted 39/4"),
        ("seat_exhausted, nothing left", user(&[0]), full(), "nothing | seat_exhausted 100/10"),
        ("seat_exhausted, in the red", user(&[-5, 60]), full(), "licence1 60 | seat_exhausted 40/4"),
        ("seat_exhausted, seat-only feature", user(&[60]).pool(10), seat_only(100, 10), "licence0 60 | seat_exhausted 40/0"),
        ("no_active_term", user(&[60]).no_term(), full(), "licence0 60 | no_active_term 40/4"),
        ("pool_limit_reached", user(&[60]).pool(9).limit(3, DecidedBy::User), full(), "licence0 60, pool 3, limit 3 | pool_limit_reached 10/1"),
        ("pool_limit_reached, less pool", user(&[60]).pool(2).limit(3, DecidedBy::User), full(), "licence0 60, pool 2, limit 2 | pool_limit_reached 20/2"),
        ("pool_limit_reached, whole", user(&[60]).pool(99).limit(9, DecidedBy::Org).whole(), full(), "licence0 60, pool 4, limit 4 | pool_limit_reached 0/0"),
        ("pool_exhausted", user(&[60]).pool(3), full(), "licence0 60, pool 3, limit 3 | pool_exhausted 10/1"),
        ("pool_exhausted, rounded", user(&[1]).pool(3), full(), "licence0 1, pool 3, limit 3 | pool_exhausted 70/7"),
        ("pool_exhausted, in the red", user(&[60]).pool(-3), full(), "licence0 60 | pool_exhausted 40/4"),
        ("pool_exhausted, principal", principal().pool(9), full(), "pool 9, limit 9 | pool_exhausted 10/1"),
        ("overage_cap_reached", capped(0), full(), "licence0 60, pool 3, limit 3 | overage_cap_reached 10/1"),
        ("overage_cap_reached, some left", user(&[0]).pool(3).overage(Overage::Bill, 6), full(), "pool 3, limit 3 | overage_cap_reached 70/7"),
        ("pool_access_denied", principal().missing(&[Missing::Offer]), full(), "nothing | pool_access_denied 100/10"),
        ("pool_access_denied, feature", principal().pool(99), seat_only(100, 10), "nothing | pool_access_denied 100/0"),
    ]
}
