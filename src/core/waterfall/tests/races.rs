//! D24 to D26 on random balances that change between plan and post: whatever is done or refused
//! is what the rule says of the balances of that very step.

use proptest::prelude::*;

use super::super::super::account::{LegKind, Legs, Slot, View};
use super::super::super::entitlement::Overage;
use super::super::super::price::Quote;
use super::super::super::refusal::{Code, DecidedBy, Missing, Refusal};
use super::super::{EXACT_PLANS, MAX_PLANS, PoolAccess, Split, decide};
use super::world::{Outcome, Setup, World, cases, premium, principal, seat_only, user};

/// The sums that a charge takes from the seat, the pool and overage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Paid {
    seat: u64,
    pool: u64,
    overage: u64,
}

/// What D17, D24, D25, D26 and D31 say of a request on these balances, written down once more.
fn rule(world: &World, quote: &Quote) -> Result<Paid, Code> {
    let position = &world.position;
    let (cost, full) = (quote.price.cost.micro(), quote.price.operations.micro());
    if let Some(slot) = position.overdraft
        && world.balances[usize::from(slot)].remaining() < 0
    {
        return Err(Code::Overdrawn);
    }
    let has: u64 = (0..position.licences).map(|slot| world.available(slot)).sum();
    let is_user = position.overdraft.is_some();
    if is_user && has >= cost {
        return Ok(Paid { seat: cost, pool: 0, overage: 0 });
    }
    let side = match &position.pool {
        PoolAccess::NoTerm if quote.pool => return Err(Code::NoActiveTerm),
        PoolAccess::Open(side) if quote.pool => side,
        _ if is_user => return Err(Code::SeatExhausted),
        _ => return Err(Code::PoolAccessDenied),
    };
    let seat = if position.split == Split::Whole { 0 } else { has };
    let needed = if cost == 0 {
        0
    } else {
        let (cost, rest) = (u128::from(cost), u128::from(cost - seat));
        let product = u128::from(full) * rest;
        let up = u128::from(!product.is_multiple_of(cost));
        u64::try_from(product / cost + up).unwrap()
    };
    if needed > world.available(side.draw) {
        return Err(Code::PoolLimitReached);
    }
    if needed > world.payable() {
        return Err(match side.policy {
            Overage::Reject => Code::PoolExhausted,
            Overage::Bill | Overage::BillUpTo(_) => Code::OverageCapReached,
        });
    }
    let pool = needed.min(world.available(side.pool));
    Ok(Paid { seat, pool, overage: needed - pool })
}

pub fn left() -> impl Strategy<Value = i64> {
    prop_oneof![4 => -3i64..40, 1 => 0i64..1 << 52]
}

fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1u64..60, 1 => 1u64..1 << 52]
}

pub fn quotes() -> impl Strategy<Value = Quote> {
    let priced = (amount(), amount(), 0u8..8).prop_map(|(cost, operations, kind)| match kind {
        0 => seat_only(cost, operations),
        1 => seat_only(cost, 0),
        _ => premium(cost, operations),
    });
    prop_oneof![20 => priced, 1 => Just(premium(0, 0))]
}

pub fn setups() -> impl Strategy<Value = Setup> {
    let licences = proptest::collection::vec(left(), 0..4);
    let owes = prop_oneof![6 => Just(0i64), 1 => 1i64..9];
    let pool = (left(), left(), proptest::option::of(left()), proptest::option::of(left()));
    (licences, owes, pool, 0u8..10, any::<bool>(), any::<bool>()).prop_map(
        |(licences, owes, (pool, overage, cap, limit), access, whole, bills)| {
            let mut setup = match access {
                0 => principal(),
                1..4 => user(&licences).owes(owes),
                _ => user(&licences),
            };
            setup = match access {
                9 => setup.no_term(),
                8 => setup.missing(&[Missing::Offer]),
                _ => setup.pool(pool),
            };
            if bills {
                setup = setup.overage(Overage::Bill, overage);
                setup = cap.map_or(setup.clone(), |left| setup.profile_cap(left));
            }
            setup = limit.map_or(setup.clone(), |left| setup.limit(left, DecidedBy::Org));
            if whole { setup.whole() } else { setup }
        },
    )
}

/// Changes of balances before the first posts: which account, and what it has then.
pub fn changes() -> impl Strategy<Value = Vec<(Slot, i64)>> {
    proptest::collection::vec((0u8..8, left()), 0..4)
}

pub fn disturb(world: &mut World, change: Option<&(Slot, i64)>) {
    if let Some((slot, left)) = change
        && usize::from(*slot) < world.balances.len()
    {
        // An overdraft account has nothing to give.
        let owed = Some(*slot) == world.position.overdraft;
        world.set(*slot, if owed { (*left).min(0) } else { *left });
    }
}

#[test]
fn d24_balances_that_move_between_plan_and_post() {
    let full = || premium(100, 10);
    // What licence 0, and then the pool, have when the second post arrives; it was planned on 60
    // credits and 10 Operations.
    for (name, whole, seat, pool, expected) in [
        ("nothing moved", false, 60, 10, "licence0 60, pool 4, limit 4"),
        ("the seat has one less", false, 59, 10, "licence0 59, pool 5, limit 5"),
        ("the seat has one more", false, 61, 10, "licence0 61, pool 4, limit 4"),
        ("the seat is empty", false, 0, 10, "pool 10, limit 10"),
        ("the seat can pay after all", false, 100, 10, "licence0 100"),
        ("the pool has just enough", false, 60, 4, "licence0 60, pool 4, limit 4"),
        ("the pool has too little", false, 60, 3, "pool_exhausted has 60/3"),
        ("whole, nothing moved", true, 60, 10, "pool 10, limit 10"),
        ("whole, the seat is one short", true, 99, 10, "pool 10, limit 10"),
        ("whole, the seat can pay after all", true, 100, 10, "licence0 100"),
        ("whole, the pool has too little", true, 60, 9, "pool_exhausted has 60/9"),
    ] {
        let setup = user(&[60]).pool(10);
        let mut world = if whole { setup.whole() } else { setup }.world();
        let (outcome, _) = world.run(&full(), |posts, world| {
            if posts == 1 {
                world.set(0, seat);
                world.set(world.pool_slot(), pool);
            }
        });
        assert_eq!(world.describe(&outcome), expected, "{name}");
    }
}

#[test]
fn d17_a_limit_that_just_suffices_is_enough_on_any_plan() {
    for (limit, expected) in
        [(4, "licence0 61, pool 4, limit 4"), (3, "pool_limit_reached has 61/3 by User")]
    {
        let mut world = user(&[60]).pool(10).limit(limit, DecidedBy::User).world();
        let (outcome, _) = world.run(&premium(100, 10), |posts, world| {
            if posts == 1 {
                world.set(0, 61);
            }
        });
        assert_eq!(world.describe(&outcome), expected);
    }
}

#[test]
fn d24_a_decision_that_balances_overtake_every_time_ends_as_contended() {
    let mut world = user(&[60]).pool(10).world();
    let mut seat = 60;
    let (outcome, posts) = world.run(&premium(100, 10), |posts, world| {
        if posts > 0 {
            seat -= 1;
            world.set(0, seat);
        }
    });
    assert_eq!((outcome, posts), (Outcome::Contended, MAX_PLANS));
}

/// Plans and posts, from the plan of number `first` on, until something comes of it. Also gives the
/// balances that the last plan was made on.
fn ask(
    world: &mut World,
    quote: &Quote,
    first: usize,
    mut between: impl FnMut(usize, &mut World),
) -> (Result<Legs, Refusal>, World) {
    let (mut known, mut read): (Option<View>, _) = (None, world.clone());
    for plans in first.. {
        let planned = decide(quote, &world.position, (known.as_ref(), plans), false);
        let post = match planned {
            Ok((post, _)) => post,
            Err(refusal) => return (Err(refusal), read),
        };
        between(plans - first, world);
        match world.post(&post) {
            Ok(legs) => return (Ok(legs), read),
            Err(seen) => (known, read) = (Some(*seen), world.clone()),
        }
    }
    unreachable!("there is a last plan")
}

#[test]
fn d25_who_is_overtaken_each_time_pays_by_what_was_read() {
    // A seat that has more each time, and one that can pay every other time.
    type Seat = fn(usize) -> i64;
    let more: Seat = |posts| 60 + posts as i64;
    let whole: Seat = |posts| if posts.is_multiple_of(2) { 0 } else { 100 };
    let cases =
        [(more, "licence0 63, pool 4, limit 4", EXACT_PLANS), (whole, "pool 10, limit 10", 5)];
    for (seat, expected, plans) in cases {
        let mut world = user(&[60]).pool(10).world();
        let mut asked = 0;
        let (done, _) = ask(&mut world, &premium(100, 10), 0, |posts, world| {
            asked = posts;
            world.set(0, seat(posts));
        });
        let done = Outcome::Done(done.unwrap(), View::default());
        assert_eq!((world.describe(&done), asked), (expected.to_owned(), plans));
    }
}

#[test]
fn d25_a_debt_that_is_paid_between_two_plans_leaves_the_seat_to_pay() {
    for whole in [false, true] {
        let setup = user(&[100]).pool(10).owes(1);
        let mut world = if whole { setup.whole() } else { setup }.world();
        let overdraft = world.position.overdraft.unwrap();
        let (done, _) = ask(&mut world, &premium(100, 10), EXACT_PLANS, |posts, world| {
            if posts == 1 {
                world.set(overdraft, 0);
            }
        });
        let done = Outcome::Done(done.unwrap(), View::default());
        assert_eq!(world.describe(&done), "licence0 100", "whole: {whole}");
    }
}

fn took(legs: &Legs) -> Paid {
    let sum =
        |kind| -> u64 { legs.iter().filter(|leg| leg.kind == kind).map(|leg| leg.amount).sum() };
    let (seat, pool) = (sum(LegKind::Licence), sum(LegKind::Pool));
    Paid { seat, pool, overage: sum(LegKind::Overage) }
}

proptest! {
    #![proptest_config(cases(4_000))]

    #[test]
    fn d25_who_was_overtaken_takes_what_the_rule_says_of_the_seat_that_was_read(
        setup in setups(), quote in quotes(), changes in changes(),
    ) {
        let mut world = setup.world();
        let mut step = world.clone();
        let (done, read) = ask(&mut world, &quote, EXACT_PLANS, |posts, world| {
            disturb(world, changes.get(posts));
            step = world.clone();
        });
        match done {
            Ok(legs) => {
                // The seat as it was read, all others as they were in the step of the post. What
                // was planned without a look at anything is posted to a seat that can pay it.
                let took = took(&legs);
                let mut told = step.clone();
                let licences = 0..step.position.licences;
                for slot in licences.clone().map(usize::from) {
                    told.balances[slot] = read.balances[slot];
                }
                let is_either = [&told, &step].iter().any(|on| rule(on, &quote) == Ok(took));
                prop_assert!(is_either, "{:?}", took);
                prop_assert!(took.seat <= licences.map(|slot| step.available(slot)).sum());
            }
            Err(refusal) => prop_assert_eq!(rule(&read, &quote), Err(refusal.code)),
        }
    }

    #[test]
    fn d24_what_is_done_is_the_rule_on_the_balances_of_that_step(
        setup in setups(), quote in quotes(), changes in changes(),
    ) {
        let mut world = setup.world();
        let mut step = world.clone();
        let (outcome, _) = world.run(&quote, |posts, world| {
            disturb(world, changes.get(posts));
            step = world.clone();
        });
        match (rule(&step, &quote), &outcome) {
            (Ok(paid), Outcome::Done(legs, _)) => {
                let sum = |kind| -> u64 {
                    legs.iter().filter(|leg| leg.kind == kind).map(|leg| leg.amount).sum()
                };
                prop_assert_eq!(took(legs), paid);
                let side = world.side();
                prop_assert_eq!(sum(LegKind::Limit), paid.pool + paid.overage);
                let capped = side.is_some_and(|side| side.profile_cap.is_some());
                prop_assert_eq!(sum(LegKind::Cap), if capped { paid.overage } else { 0 });
                prop_assert_eq!(sum(LegKind::Overdraft), 0);
            }
            (Err(code), Outcome::Refused(refusal)) => prop_assert_eq!(code, refusal.code),
            (rule, outcome) => prop_assert!(false, "{:?} but {:?}", rule, outcome),
        }
    }

    #[test]
    fn d24_credit_for_k_admits_exactly_k(
        k in 0u64..30, cost in 1u64..50, licences in 1usize..4, spare in 0u64..50, asks in 30usize..60,
    ) {
        let spare = spare % cost;
        let mut parts = vec![0; licences];
        for unit in 0..k * cost + spare {
            parts[unit as usize % licences] += 1;
        }
        let mut world = user(&parts).world();
        let done = (0..asks)
            .filter(|_| {
                matches!(world.run(&premium(cost, 1), |_, _| {}).0, Outcome::Done(..))
            })
            .count();
        prop_assert_eq!(done as u64, k);
        prop_assert_eq!((0..licences as Slot).map(|slot| world.available(slot)).sum::<u64>(), spare);
    }
}
