//! D30 and D31: what a capture keeps, what it returns, and who pays what exceeds a hold.

use proptest::prelude::*;
use smallvec::SmallVec;

use super::super::super::account::{LegKind, Legs, Taken, View};
use super::super::super::price::{Price, Quote};
use super::super::settlement::plan_excess;
use super::super::{Excess, MAX_PLANS, Settlement, Split, merge, settle};
use super::races::{changes, disturb, quotes, setups};
use super::world::{
    Outcome, PLENTY, Setup, World, cases, covers, premium, price, principal, seat_only, user,
};
use crate::core::entitlement::Overage;
use crate::core::refusal::DecidedBy;

pub fn sum(legs: &[Taken], kind: LegKind) -> u64 {
    legs.iter().filter(|leg| leg.kind == kind).map(|leg| leg.amount).sum()
}

fn hold(world: &mut World, quote: &Quote) -> Option<Legs> {
    match world.run(quote, |_, _| {}).0 {
        Outcome::Done(legs, _) => Some(legs),
        _ => None,
    }
}

/// Returns what is not kept, and gives the legs as captured.
pub fn capture(world: &mut World, legs: &Legs, keep: &[u64]) -> Legs {
    assert_eq!(legs.len(), keep.len());
    let kept = legs.iter().zip(keep).map(|(leg, keep)| Taken { amount: *keep, ..*leg });
    for (leg, keep) in legs.iter().zip(keep) {
        let balance = &mut world.balances[usize::from(leg.slot)];
        balance.held -= leg.amount;
        balance.captured += keep;
    }
    kept.collect()
}

/// Plans and posts an excess until it is done; `between` may change balances before each post.
fn pay(
    world: &mut World,
    excess: &Excess,
    pool: bool,
    mut between: impl FnMut(usize, &mut World),
) -> Option<Legs> {
    let mut view = View::default();
    for posts in 0..MAX_PLANS {
        let post = plan_excess(excess, pool, &world.position, &view);
        between(posts, world);
        match world.post(&post) {
            Ok(legs) => return Some(legs),
            Err(seen) => view = *seen,
        }
    }
    None
}

/// D30 and D31's first half once more, in u128.
fn rule(legs: &Legs, actual: &Price) -> ([u64; 3], Option<Excess>) {
    let wide = |kind| u128::from(sum(legs, kind));
    let (s, p) = (wide(LegKind::Licence), wide(LegKind::Pool));
    let x = p + wide(LegKind::Overage);
    let (cost, full) = (u128::from(actual.cost.micro()), u128::from(actual.operations.micro()));
    let seat = s.min(cost);
    let rest = cost - seat;
    let due = if cost == 0 { 0 } else { (full * rest).div_ceil(cost) };
    let narrow = |value: u128| u64::try_from(value).unwrap();
    if due <= x && (due > 0 || rest == 0) {
        let pool = p.min(due);
        return ([narrow(seat), narrow(pool), narrow(due - pool)], None);
    }
    let covered = (rest * x).checked_div(due).unwrap_or(0);
    let excess = Excess { credits: narrow(rest - covered), operations: narrow(due - x) };
    ([narrow(s), narrow(p), narrow(x - p)], Some(excess))
}

/// What D31 says each pays of an excess: seat, pool and overage, overdraft.
fn excess_rule(world: &World, split: Split, excess: &Excess, pool: bool) -> [u64; 3] {
    let position = &world.position;
    let has: u64 = (0..position.licences).map(|slot| world.available(slot)).sum();
    let side = world.side().filter(|_| pool);
    let payable = side.map_or(0, |side| world.payable().min(world.available(side.draw)));
    let (credits, operations) = (u128::from(excess.credits), u128::from(excess.operations));
    let whole = split == Split::Whole
        && has < excess.credits
        && operations > 0
        && operations <= u128::from(payable);
    let seat = if whole { 0 } else { u128::from(has).min(credits) };
    let rest = credits - seat;
    let due = (operations * rest).div_ceil(credits);
    let paid = due.min(u128::from(payable));
    let uncovered = rest - (rest * paid).checked_div(due).unwrap_or(0);
    let overdraft = if position.overdraft.is_some() { uncovered } else { due - paid };
    [seat, paid, overdraft].map(|value| u64::try_from(value).unwrap())
}

/// Captures more than was held and gives all that was paid in the end.
fn capture_more(setup: Setup, quote: &Quote, actual: &Price) -> (World, Legs) {
    let mut world = setup.world();
    let legs = hold(&mut world, quote).unwrap();
    let settlement = settle(&legs, actual);
    let kept = capture(&mut world, &legs, &settlement.keep);
    let extra = pay(&mut world, &settlement.excess.unwrap(), quote.pool, |_, _| {}).unwrap();
    (world, merge(&kept, &extra))
}

fn text(legs: &Legs) -> String {
    let word = |leg: &Taken| format!("{:?} {}", leg.kind, leg.amount).to_lowercase();
    legs.iter().map(word).collect::<Vec<_>>().join(", ")
}

#[test]
fn d30_f14_what_is_not_used_returns_to_the_last_legs_first() {
    let mut world = user(&[30, 0, 40])
        .pool(2)
        .overage(Overage::Bill, PLENTY)
        .profile_cap(9)
        .limit(50, DecidedBy::User)
        .world();
    let legs = hold(&mut world, &premium(100, 10)).unwrap();
    assert_eq!(text(&legs), "licence 30, licence 40, pool 2, overage 1, cap 1, limit 3");
    for (cost, operations, kept) in [
        (100, 10, [30, 40, 2, 1, 1, 3]),
        (85, 9, [30, 40, 2, 0, 0, 2]),
        (75, 8, [30, 40, 1, 0, 0, 1]),
        (70, 7, [30, 40, 0, 0, 0, 0]),
        (69, 7, [30, 39, 0, 0, 0, 0]),
        (30, 3, [30, 0, 0, 0, 0, 0]),
        (1, 1, [1, 0, 0, 0, 0, 0]),
        (0, 0, [0, 0, 0, 0, 0, 0]),
    ] {
        let keep = SmallVec::from_slice(&kept);
        assert_eq!(settle(&legs, &price(cost, operations)), Settlement { keep, excess: None });
    }
}

// A table is read by rows, whatever their width.
#[rustfmt::skip]
#[test]
fn d31_f13_worked_examples() {
    let table = [
        ("the seat has more", user(&[100]), premium(10, 1), price(30, 3), "licence 30"),
        ("nothing is left", user(&[10]), premium(10, 1), price(30, 3), "licence 10, overdraft 20"),
        ("seat, then pool", user(&[20]).pool(9), premium(10, 1), price(30, 3), "licence 20, pool 1, limit 1"),
        ("all of it, and a rest", user(&[20]).pool(1), premium(10, 5), price(30, 15), "licence 20, pool 1, limit 1, overdraft 8"),
        ("limit before pool", user(&[10]).pool(9).limit(1, DecidedBy::User), premium(10, 5), price(20, 10), "licence 10, pool 1, limit 1, overdraft 8"),
        ("own cap before the org's", user(&[10]).pool(0).overage(Overage::Bill, PLENTY).profile_cap(2), premium(10, 5), price(20, 10), "licence 10, overage 2, cap 2, limit 2, overdraft 6"),
        ("a feature for seats only", user(&[10]).pool(9), seat_only(10, 5), price(20, 10), "licence 10, overdraft 10"),
        ("without Operations", user(&[10]).pool(9), seat_only(10, 0), price(20, 0), "licence 10, overdraft 10"),
        ("whole", user(&[15]).pool(9).whole(), premium(10, 5), price(20, 10), "licence 10, pool 5, limit 5"),
        ("whole, pool too small", user(&[15]).pool(3).whole(), premium(10, 5), price(20, 10), "licence 15, pool 3, limit 3"),
        ("whole, the seat has just enough", user(&[20]).pool(9).whole(), premium(10, 5), price(20, 10), "licence 20"),
        ("whole, without Operations", user(&[15]).pool(9).whole(), seat_only(10, 0), price(20, 0), "licence 15, overdraft 5"),
        ("nothing was held", user(&[5]), premium(0, 0), price(7, 1), "licence 5, overdraft 2"),
        ("principal", principal().pool(9), premium(10, 5), price(20, 10), "pool 9, limit 9, overdraft 1"),
        ("principal at its limit", principal().pool(9).limit(5, DecidedBy::Key), premium(10, 5), price(20, 10), "pool 5, limit 5, overdraft 5"),
    ];
    for (name, setup, quote, actual, expected) in table {
        let (world, legs) = capture_more(setup, &quote, &actual);
        assert_eq!(text(&legs), expected, "{name}");
        // Whoever owes is refused from now on (D31); a principal's debt is the pool's.
        let (outcome, _) = world.clone().run(&premium(1, 1), |_, _| {});
        let owes = world.position.overdraft.is_some() && sum(&legs, LegKind::Overdraft) > 0;
        assert_eq!(world.describe(&outcome).starts_with("overdrawn"), owes, "{name}");
    }
}

#[test]
fn d31_a_pool_that_grows_while_it_pays_all_is_not_asked_again() {
    let mut world = user(&[10]).pool(5).world();
    let legs = hold(&mut world, &premium(10, 5)).unwrap();
    let settlement = settle(&legs, &price(20, 10));
    capture(&mut world, &legs, &settlement.keep);
    let mut posts = 0;
    let extra = pay(&mut world, &settlement.excess.unwrap(), true, |post, world| {
        posts = post + 1;
        if post == 1 {
            world.set(world.pool_slot(), 9);
        }
    });
    assert_eq!((text(&extra.unwrap()).as_str(), posts), ("pool 5, limit 5", 2));
}

#[test]
fn d30_d31_legs_that_paid_nothing_are_not_shown() {
    let leg = |slot, kind, amount| Taken { slot, kind, amount };
    let kept = [leg(0, LegKind::Licence, 0), leg(1, LegKind::Pool, 2)];
    let extra = [leg(1, LegKind::Pool, 3), leg(2, LegKind::Overdraft, 0)];
    assert_eq!(merge(&kept, &extra)[..], [leg(1, LegKind::Pool, 5)]);
}

#[test]
fn d31_debt_ends_with_an_adjustment() {
    let (mut world, legs) = capture_more(user(&[10]), &premium(10, 1), &price(15, 2));
    assert_eq!(sum(&legs, LegKind::Overdraft), 5);
    world.set(0, 100);
    let slot = usize::from(world.position.overdraft.unwrap());
    for (adjusted, admitted) in [(0, false), (4, false), (5, true)] {
        // The fixture's own history of the account is 7 micro beside the debt.
        world.balances[slot].base = 9;
        world.balances[slot].adjusted = adjusted - 2;
        let (outcome, _) = world.clone().run(&premium(1, 1), |_, _| {});
        assert_eq!(matches!(outcome, Outcome::Done(..)), admitted, "{adjusted}: {outcome:?}");
    }
}

/// An actual price beside a held one. A card's pool rates always cost Operations, so that only
/// a price for seats can be without.
pub fn actual(quote: &Quote, cost: u64, operations: u64, like: u8) -> Price {
    let held = quote.price.cost.micro();
    let cost = match like {
        0 => held,
        1..4 => cost % (held + 1),
        _ => cost,
    };
    let operations = match like {
        0 => quote.price.operations.micro(),
        _ if cost == 0 => 0,
        _ if quote.pool => operations.max(1),
        _ => operations,
    };
    price(cost, operations)
}

pub fn used() -> impl Strategy<Value = u64> {
    prop_oneof![3 => 0u64..150, 1 => 0u64..1 << 52]
}

proptest! {
    #![proptest_config(cases(6_000))]

    #[test]
    fn d30_a_capture_keeps_what_the_rule_says(
        setup in setups(), quote in quotes(), cost in used(), operations in used(), like in 0u8..6,
    ) {
        let mut world = setup.world();
        let before = world.balances.clone();
        let legs = hold(&mut world, &quote);
        prop_assume!(legs.is_some());
        let legs = legs.unwrap();
        let actual = actual(&quote, cost, operations, like);
        let settlement = settle(&legs, &actual);
        let (paid, excess) = rule(&legs, &actual);
        prop_assert_eq!(settlement.excess, excess);
        let kept = capture(&mut world, &legs, &settlement.keep);
        let sums = [LegKind::Licence, LegKind::Pool, LegKind::Overage].map(|kind| sum(&kept, kind));
        prop_assert_eq!(sums, paid);
        for (kept, leg) in kept.iter().zip(&legs) {
            prop_assert!(kept.amount <= leg.amount);
        }
        prop_assert_eq!(sum(&kept, LegKind::Limit), sums[1] + sums[2]);
        if sum(&legs, LegKind::Cap) > 0 {
            prop_assert_eq!(sum(&kept, LegKind::Cap), sums[2]);
        }
        // Last legs first: none of a kind keeps anything after one that returned something.
        let licences: Vec<usize> =
            (0..legs.len()).filter(|&at| legs[at].kind == LegKind::Licence).collect();
        for pair in licences.windows(2) {
            prop_assert!(kept[pair[0]].amount == legs[pair[0]].amount || kept[pair[1]].amount == 0);
        }
        if actual == quote.price {
            prop_assert_eq!(&kept, &legs);
            prop_assert_eq!(excess, None);
        }
        // What returned is really back: every account lost what it keeps, and no more.
        for (slot, balance) in before.iter().enumerate() {
            let kept: u64 =
                kept.iter().filter(|leg| usize::from(leg.slot) == slot).map(|leg| leg.amount).sum();
            prop_assert_eq!(balance.remaining() - i128::from(kept), world.balances[slot].remaining());
        }
        if excess.is_none() {
            let covers = covers(&kept, actual.cost, None);
            prop_assert_eq!(covers.iter().sum::<u64>(), actual.cost.micro());
        }
    }

    #[test]
    fn d31_an_excess_is_paid_by_who_can_and_owed_by_who_cannot(
        setup in setups(), quote in quotes(), cost in used(), operations in used(),
        drained in changes(), changes in changes(),
    ) {
        let mut world = setup.world();
        let legs = hold(&mut world, &quote);
        prop_assume!(legs.is_some());
        let legs = legs.unwrap();
        let actual = actual(&quote, cost, operations, 5);
        let settlement = settle(&legs, &actual);
        prop_assume!(settlement.excess.is_some());
        let excess = settlement.excess.unwrap();
        let kept = capture(&mut world, &legs, &settlement.keep);
        for change in &drained {
            disturb(&mut world, Some(change));
        }
        let mut step = world.clone();
        let extra = pay(&mut world, &excess, quote.pool, |posts, world| {
            disturb(world, changes.get(posts));
            step = world.clone();
        });
        prop_assert!(extra.is_some(), "a capture never fails for lack of credit");
        let extra = extra.unwrap();
        let seat = sum(&extra, LegKind::Licence);
        let drawn = sum(&extra, LegKind::Pool) + sum(&extra, LegKind::Overage);
        let owed = sum(&extra, LegKind::Overdraft);
        let rule = |split| excess_rule(&step, split, &excess, quote.pool);
        let paid = [seat, drawn, owed];
        // A pool that could not pay the whole excess when it was planned, and could when it was
        // posted, is the one change that leaves the split standing.
        let grew = !changes.is_empty() && paid == rule(Split::Split);
        prop_assert!(grew || paid == rule(world.position.split), "{:?}", paid);
        prop_assert_eq!(sum(&extra, LegKind::Limit), drawn);
        let overdraft = world.position.overdraft;
        for (slot, balance) in step.balances.iter().enumerate() {
            let taken = |forced: bool| -> i128 {
                let of = |leg: &&Taken| {
                    usize::from(leg.slot) == slot && (leg.kind == LegKind::Overdraft) == forced
                };
                extra.iter().filter(of).map(|leg| i128::from(leg.amount)).sum()
            };
            // Nothing gives what it does not have, but for what is recorded as overdraft.
            prop_assert!(taken(false) <= i128::from(balance.available()));
            let after = world.balances[slot].remaining();
            prop_assert_eq!(balance.remaining() - taken(false) - taken(true), after);
        }
        let legs = merge(&kept, &extra);
        let covers = covers(&legs, actual.cost, overdraft);
        prop_assert_eq!(covers.iter().sum::<u64>(), actual.cost.micro());
        let total = |legs: &[Taken]| legs.iter().map(|leg| u128::from(leg.amount)).sum::<u128>();
        prop_assert_eq!(total(&legs), total(&kept) + total(&extra));
        let mut accounts: Vec<_> = legs.iter().map(|leg| (leg.slot, leg.kind)).collect();
        accounts.sort_unstable();
        accounts.dedup();
        prop_assert_eq!(accounts.len(), legs.len(), "one leg an account and kind");
    }
}
