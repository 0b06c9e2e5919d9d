//! D28: what observe mode posts for what it does not refuse, and what nobody pays.

use proptest::prelude::*;

use super::super::super::account::{LegKind, Legs, Taken, View};
use super::super::super::amount::Operations;
use super::super::super::entitlement::Overage;
use super::super::super::price::{Price, Quote};
use super::super::super::refusal::Code;
use super::super::{Excess, MAX_PLANS, Observed, Settling, Split, decide, merge};
use super::races::{changes, disturb, quotes, setups};
use super::settlement::{actual, capture, sum, used};
use super::table::{self, full};
use super::world::{Outcome, PLENTY, World, cases, covers, premium, price, seat_only, user};

/// Plans and posts in observe mode until something is done; `between` may change balances before
/// the post of each number.
fn observe(
    world: &mut World,
    quote: &Quote,
    mut between: impl FnMut(usize, &mut World),
) -> (Legs, View, Option<Observed>) {
    let mut known: Option<View> = None;
    for plans in 0..=MAX_PLANS {
        let planned = (known.as_ref(), plans);
        let (post, observed) = decide(quote, &world.position, planned, true).unwrap();
        between(plans, world);
        match world.post(&post) {
            Ok(legs) => return (legs, world.view(&post), observed),
            Err(seen) => known = Some(*seen),
        }
    }
    panic!("observe mode refuses nothing");
}

/// Settles in observe mode and pays what exceeds the hold; `between` may change balances before
/// the post of each number.
fn settle(
    world: &mut World,
    legs: &Legs,
    observed: Option<Observed>,
    pool: bool,
    actual: &Price,
    mut between: impl FnMut(usize, &mut World),
) -> (Legs, Option<Observed>) {
    let observed = Some(observed.unwrap_or_default());
    let mut settling = Settling::used(legs, actual, pool, observed);
    let kept = capture(world, legs, &settling.keep);
    for posts in 0.. {
        let (post, observed) = settling.post(Some(&world.position));
        between(posts, world);
        match world.post(&post.unwrap_or_default()) {
            Ok(extra) => return (merge(&kept, &extra), observed),
            Err(seen) if settling.may_be_short() => settling.short(*seen),
            Err(_) => break,
        }
    }
    panic!("a capture never fails for lack of credit");
}

fn micro(observed: Option<Observed>) -> (u64, u64) {
    let uncovered = observed.unwrap_or_default().uncovered;
    (uncovered.credits.micro(), uncovered.operations.micro())
}

fn describe(world: &World, legs: &Legs, observed: Option<Observed>) -> String {
    let paid = world.describe(&Outcome::Done(legs.clone(), View::default()));
    let (credits, operations) = micro(observed);
    let code = observed.and_then(|observed| observed.code).map_or("-", Code::as_str);
    format!("{paid} | {code} {credits}/{operations}")
}

#[test]
fn d28_golden_table_of_what_is_paid_of_what_would_be_refused() {
    for (name, setup, quote, expected) in table::observed() {
        let mut world = setup.world();
        let (legs, _, observed) = observe(&mut world, &quote, |_, _| {});
        assert_eq!(describe(&world, &legs, observed), expected, "{name}");
    }
}

#[test]
fn d28_what_is_done_is_paid_by_the_balances_of_its_step() {
    // What licence 0, and then the pool, have when the observed post arrives; it was planned on
    // 60 credits and 3 Operations.
    for (name, seat, pool, expected) in [
        ("nothing moved", 60, 3, "licence0 60, pool 3, limit 3 | pool_exhausted 10/1"),
        ("the seat has one less", 59, 3, "licence0 59, pool 3, limit 3 | pool_exhausted 17/2"),
        ("the seat has one more", 61, 3, "licence0 61, pool 3, limit 3 | pool_exhausted 10/1"),
        ("the pool is empty", 60, 0, "licence0 60 | pool_exhausted 40/4"),
        ("the pool has more", 60, 5, "licence0 60, pool 4, limit 4 | - 0/0"),
        ("the seat can pay after all", 100, 3, "licence0 100 | - 0/0"),
    ] {
        let mut world = user(&[60]).pool(3).world();
        let (legs, _, observed) = observe(&mut world, &full(), |posts, world| {
            if posts == 2 {
                world.set(0, seat);
                world.set(world.pool_slot(), pool);
            }
        });
        assert_eq!(describe(&world, &legs, observed), expected, "{name}");
    }
}

#[test]
fn d28_balances_that_never_hold_still_are_left_alone() {
    let mut world = user(&[60]).pool(3).world();
    let mut seat = 60;
    let (legs, view, observed) = observe(&mut world, &full(), |posts, world| {
        if posts > 0 {
            seat -= 1;
            world.set(0, seat);
        }
    });
    assert_eq!(describe(&world, &legs, observed), "nothing | books_contended 100/10");
    assert!(world.position.seat_available(&view).is_some(), "the receipt tells what is left");
    let refusal = decide(&full(), &world.position, (Some(&view), MAX_PLANS), false).unwrap_err();
    assert_eq!(refusal.code, Code::BooksContended);
}

#[test]
fn d28_receipts_show_what_is_left_of_seat_and_pool() {
    for (setup, quote) in [
        (user(&[60, 7]).pool(3), full()),
        (user(&[60, 7]).pool(3), seat_only(100, 10)),
        (user(&[60, 7]).pool(3).owes(1), premium(1, 1)),
    ] {
        let mut world = setup.world();
        let (_, view, observed) = observe(&mut world, &quote, |_, _| {});
        assert!(observed.is_some_and(|observed| observed.code.is_some()));
        assert!(world.position.seat_available(&view).is_some());
        assert!(view.get(world.pool_slot()).is_some());
    }
}

// A table is read by rows, whatever their width.
#[rustfmt::skip]
#[test]
fn d28_d30_d31_what_is_used_returns_to_nobody_first_and_is_owed_by_nobody() {
    // 60 credits of the seat, 3 of 4 Operations of the pool: 10 credits or 1 Operation uncovered.
    let short = || user(&[60]).pool(3).overage(Overage::BillUpTo(Operations::MAX), 0);
    // What is there when it is settled: of the seat, of the pool, past it.
    let rows: Vec<(&str, Price, [i64; 3], &str)> = vec![
        ("the quote", price(100, 10), [0, 0, 9], "licence0 60, pool 3, limit 3 | overage_cap_reached 10/1"),
        ("less, all paid", price(90, 9), [0, 0, 0], "licence0 60, pool 3, limit 3 | overage_cap_reached 0/0"),
        ("less, the pool has some back", price(80, 8), [0, 0, 0], "licence0 60, pool 2, limit 2 | overage_cap_reached 0/0"),
        ("less than the seat", price(30, 3), [0, 0, 0], "licence0 30 | overage_cap_reached 0/0"),
        ("nothing", price(0, 0), [0, 0, 0], "nothing | overage_cap_reached 0/0"),
        ("more, and nobody can", price(120, 12), [0, 0, 0], "licence0 60, pool 3, limit 3 | overage_cap_reached 30/3"),
        ("more, past the pool is not for it", price(120, 12), [0, 0, 9], "licence0 60, pool 3, limit 3 | overage_cap_reached 30/3"),
        ("more, the pool can", price(120, 12), [0, 9, 9], "licence0 60, pool 5, limit 5 | overage_cap_reached 10/1"),
        ("more, the seat can", price(120, 12), [15, 0, 0], "licence0 75, pool 3, limit 3 | overage_cap_reached 15/2"),
    ];
    for (name, actual, [seat, pool, overage], expected) in rows {
        let mut world = short().world();
        let (legs, _, observed) = observe(&mut world, &full(), |_, _| {});
        let side = world.side().unwrap();
        let past = side.overage.unwrap();
        let (legs, observed) = settle(&mut world, &legs, observed, true, &actual, |posts, world| {
            if posts == 0 {
                world.set(0, seat);
                world.set(world.pool_slot(), pool);
                world.set(past, overage);
            }
        });
        assert_eq!(describe(&world, &legs, observed), expected, "{name}");
    }
}

#[test]
fn d28_what_was_not_refused_may_end_past_the_pool_and_is_not_owed_either() {
    for (setup, expected) in [
        (user(&[100]), "licence0 100 | - 20/2"),
        (user(&[110]), "licence0 110 | - 10/1"),
        (
            user(&[100]).pool(1).overage(Overage::Bill, PLENTY),
            "licence0 100, pool 1, overage 1, limit 2 | - 0/0",
        ),
        (user(&[100]).pool(1).overage(Overage::Bill, 0), "licence0 100, pool 1, limit 1 | - 10/1"),
    ] {
        let mut world = setup.world();
        let (legs, _, observed) = observe(&mut world, &full(), |_, _| {});
        assert_eq!(observed, None);
        let (legs, observed) =
            settle(&mut world, &legs, observed, true, &price(120, 12), |_, _| {});
        assert_eq!(describe(&world, &legs, observed), expected);
    }
}

/// D28 once more, in u128: what seat and pool pay of a charge that would be refused.
fn rule(world: &World, quote: &Quote, whole: bool) -> ([u64; 2], (u64, u64)) {
    let position = &world.position;
    let has: u64 = (0..position.licences).map(|slot| world.available(slot)).sum();
    let side = world.side().filter(|_| quote.pool);
    let payable = side.map_or(0, |side| world.available(side.pool).min(world.available(side.draw)));
    let cost = u128::from(quote.price.cost.micro());
    let full = if quote.pool { u128::from(quote.price.operations.micro()) } else { 0 };
    let seat = if whole { 0 } else { u128::from(has).min(cost) };
    let rest = cost - seat;
    let due = if cost == 0 { 0 } else { (full * rest).div_ceil(cost) };
    let paid = due.min(u128::from(payable));
    let covered = (rest * paid).checked_div(due).unwrap_or(0);
    let narrow = |value: u128| u64::try_from(value).unwrap();
    ([narrow(seat), narrow(paid)], (narrow(rest - covered), narrow(due - paid)))
}

fn adds_up(
    world: &World,
    legs: &[Taken],
    observed: Option<Observed>,
    cost: u64,
) -> Result<(), TestCaseError> {
    let (uncovered, _) = micro(observed);
    prop_assert!(uncovered <= cost);
    let covered = price(cost - uncovered, 0).cost;
    let covers = covers(legs, covered, world.position.overdraft);
    prop_assert_eq!(covers.iter().sum::<u64>() + uncovered, cost);
    prop_assert_eq!(sum(legs, LegKind::Overdraft), 0);
    if observed.is_some_and(|observed| observed.code.is_some()) {
        prop_assert_eq!(sum(legs, LegKind::Overage), 0);
        prop_assert_eq!(sum(legs, LegKind::Cap), 0);
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(6_000))]

    #[test]
    fn d28_legs_and_what_is_uncovered_add_up_to_the_cost_and_nobody_owes(
        setup in setups(), quote in quotes(), cost in used(), operations in used(), like in 0u8..6,
        before in changes(), drained in changes(), after in changes(),
    ) {
        let mut world = setup.world();
        let mut step = world.clone();
        let (legs, _, observed) = observe(&mut world, &quote, |posts, world| {
            disturb(world, before.get(posts));
            step = world.clone();
        });
        adds_up(&world, &legs, observed, quote.price.cost.micro())?;
        if let Some(seen) = observed {
            prop_assert!(seen.code.is_some_and(|code| code != Code::BooksContended));
            let paid = [sum(&legs, LegKind::Licence), sum(&legs, LegKind::Pool)];
            let split = rule(&step, &quote, false);
            // Only who owes leaves a charge whole to a pool that can pay it.
            let whole = world.position.split == Split::Whole && seen.code == Some(Code::Overdrawn);
            let found = (paid, micro(observed));
            prop_assert!(found == split || whole && found == rule(&step, &quote, true), "{found:?}");
            prop_assert_eq!(sum(&legs, LegKind::Limit), paid[1]);
        }
        let actual = actual(&quote, cost, operations, like);
        let held = legs.clone();
        let (legs, settled) =
            settle(&mut world, &legs, observed, quote.pool, &actual, |posts, world| {
                let drained = if posts == 0 { &drained[..] } else { &[] };
                for change in drained.iter().chain(after.get(posts)) {
                    disturb(world, Some(change));
                }
            });
        adds_up(&world, &legs, settled, actual.cost.micro())?;
        prop_assert_eq!(
            settled.and_then(|settled| settled.code), observed.and_then(|observed| observed.code)
        );
        if actual == quote.price {
            prop_assert_eq!(&legs, &merge(&held, &[]));
            prop_assert_eq!(micro(settled), micro(observed));
        }
    }
}

#[test]
fn d28_what_only_seats_may_pay_has_no_price_in_operations() {
    let mut world = user(&[60]).pool(10).world();
    let quote = seat_only(100, 10);
    let (legs, _, observed) = observe(&mut world, &quote, |_, _| {});
    let (legs, observed) = settle(&mut world, &legs, observed, false, &price(130, 13), |_, _| {});
    assert_eq!(describe(&world, &legs, observed), "licence0 60 | seat_exhausted 70/0");
    let observed = Observed { code: None, ..Observed::default() };
    let excess = Excess { credits: 5, operations: 2 };
    assert_eq!(micro(Some(observed.pay(&excess, false, None).1)), (5, 0));
    assert_eq!(micro(Some(observed.pay(&excess, true, None).1)), (5, 2));
}
