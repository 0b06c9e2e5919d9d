//! The decision table of the waterfall, and what stands behind every row: [`world`] drives plan
//! → post → plan again against the smallest books that do what the books' contract says.

mod arithmetic;
mod observed;
mod races;
mod settlement;
mod settling;
mod table;
mod world;

use super::super::refusal::{Code, DecidedBy};
use table::{check, full};
use world::{premium, principal, standard, user};

#[test]
fn d24_d25_d26_golden_table_of_what_is_paid() {
    check(table::paid(), |world, quote| world.run(quote, |_, _| {}));
}

#[test]
fn d14_d17_d24_d26_d31_golden_table_of_refusals_in_the_order_of_the_decision() {
    check(table::refused(), |world, quote| world.run(quote, |_, _| {}));
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
