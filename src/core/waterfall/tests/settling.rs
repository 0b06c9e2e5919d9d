//! The steps of a settlement: who is asked for an excess, on what, how often, and what is left
//! where nobody can be.

use proptest::prelude::*;

use super::super::super::account::{LegKind, Legs, Post, Taken, View};
use super::super::super::price::{Price, Quote};
use super::super::super::refusal::Code;
use super::super::{MAX_PLANS, Observed, Settling, merge};
use super::races::{changes, disturb, quotes, setups};
use super::settlement::{actual, capture, sum, used};
use super::world::{Outcome, World, cases, covers, premium, price, principal, seat_only, user};

fn hold(world: &mut World, quote: &Quote) -> Option<Legs> {
    match world.run(quote, |_, _| {}).0 {
        Outcome::Done(legs, _) => Some(legs),
        _ => None,
    }
}

/// What a hold of 10 credits and one Operation settles to that came to 30.
fn thrice(world: &mut World, observed: Option<Observed>) -> (Legs, Settling) {
    let legs = hold(world, &premium(10, 1)).unwrap();
    let settling = Settling::used(&legs, &price(30, 3), true, observed);
    assert!(settling.has_excess());
    assert_eq!((settling.cost.micro(), &settling.keep[..]), (30, &[10][..]));
    (legs, settling)
}

/// What a post takes, by its sources.
fn takes(post: &Post) -> Vec<u64> {
    post.sources.iter().map(|source| source.take).collect()
}

/// Asks as often as may be, of books in which somebody was faster each time: the last post.
fn contended(world: &World, settling: &mut Settling) -> (Post, Option<Observed>) {
    let mut asked = 0;
    while settling.may_be_short() {
        let (post, _) = settling.post(Some(&world.position));
        settling.short(world.view(&post.unwrap()));
        asked += 1;
    }
    assert_eq!(asked, MAX_PLANS);
    let (post, observed) = settling.post(Some(&world.position));
    (post.unwrap(), observed)
}

#[test]
fn d30_without_an_excess_nothing_is_taken_and_nobody_is_needed() {
    let mut world = user(&[10]).pool(9).world();
    let legs = hold(&mut world, &premium(10, 1)).unwrap();
    let settling = Settling::used(&legs, &price(4, 1), true, None);
    assert_eq!((settling.cost.micro(), &settling.keep[..]), (4, &[4][..]));
    assert!(!settling.has_excess() && settling.has_debtor(None));
    assert_eq!(settling.post(Some(&world.position)), (None, None));
    let void = Settling::default();
    assert_eq!((void.cost.micro(), void.keep.len(), void.post(None)), (0, 0, (None, None)));
}

#[test]
fn d31_an_excess_is_planned_on_what_is_known_and_again_on_what_came_back() {
    let mut world = user(&[15]).pool(1).world();
    let (_, mut settling) = thrice(&mut world, None);
    // Nothing is known yet: the post names all, and owes all.
    let (post, observed) = settling.post(Some(&world.position));
    let post = post.unwrap();
    assert_eq!((takes(&post), observed), (vec![0, 0, 0, 20], None));
    assert!(settling.may_be_short());
    settling.short(world.view(&post));
    // Five of the seat, one Operation for ten of the rest, and five are owed.
    let (post, _) = settling.post(Some(&world.position));
    let post = post.unwrap();
    assert_eq!(takes(&post), [5, 1, 1, 8]);
    assert!(world.post(&post).is_ok());
}

#[test]
fn d31_where_accounts_change_each_time_the_excess_is_owed_whole() {
    let mut world = user(&[100]).pool(9).world();
    let (_, mut settling) = thrice(&mut world, None);
    let (post, observed) = contended(&world, &mut settling);
    assert_eq!((takes(&post), observed), (vec![20], None));
    world.set(0, 0);
    let legs = world.post(&post).expect("taken from whoever has it or not");
    assert_eq!(sum(&legs, LegKind::Overdraft), 20);
}

#[test]
fn d28_where_accounts_change_each_time_the_excess_is_uncovered_whole_and_nobody_owes() {
    let before = Observed { code: Some(Code::SeatExhausted), ..Observed::default() };
    let mut world = user(&[100]).pool(9).world();
    let (_, mut settling) = thrice(&mut world, Some(before));
    let (post, observed) = contended(&world, &mut settling);
    let observed = observed.unwrap();
    assert_eq!((takes(&post), observed.code), (vec![], before.code));
    let uncovered = observed.uncovered;
    assert_eq!((uncovered.credits.micro(), uncovered.operations.micro()), (20, 2));
}

#[test]
fn d28_d31_of_somebody_who_is_gone_nothing_is_owed_and_in_observe_mode_nothing_is_lost() {
    let mut world = user(&[10]).world();
    let (_, settling) = thrice(&mut world, None);
    assert!(settling.has_debtor(Some(&world.position)) && !settling.has_debtor(None));
    // Nor of a principal that has no pool any more, or whose feature only seats may pay.
    let (open, shut) = (principal().pool(9).world(), principal().no_term().world());
    assert!(settling.has_debtor(Some(&open.position)));
    assert!(!settling.has_debtor(Some(&shut.position)));
    let legs = hold(&mut user(&[10]).world(), &seat_only(10, 0)).unwrap();
    let seats = Settling::used(&legs, &price(30, 0), false, None);
    assert!(!seats.has_debtor(Some(&open.position)));
    assert_eq!(settling.post(None), (None, None));
    let mut world = user(&[10]).world();
    let (_, settling) = thrice(&mut world, Some(Observed::default()));
    assert!(settling.has_debtor(None));
    let (post, observed) = settling.post(None);
    assert_eq!((post, observed.unwrap().uncovered.credits.micro()), (Some(Post::default()), 20));
}

#[test]
fn f56_an_excess_that_is_given_up_leaves_the_hold_whole_at_its_own_price() {
    // Half of the hold is of a meter that costs no Operations, and all of what was used is: what is
    // kept of the pool's legs for the actual price is nothing, and for the hold's all of it.
    let mut world = principal().pool(9).world();
    let legs = hold(&mut world, &premium(10, 5)).unwrap();
    let settling = Settling::used(&legs, &price(20, 0), true, None);
    assert!(settling.has_excess());
    assert_eq!(&settling.keep[..], [0, 0]);
    let whole = Settling::whole(&legs, price(10, 5).cost, None);
    assert_eq!((&whole.keep[..], whole.cost.micro()), (&[5, 5][..], 10));
    assert!(!whole.has_excess());
    assert_eq!(whole.post(Some(&world.position)), (None, None));
    // What nobody pays of it stays what it was.
    let mut seat = user(&[6]).world();
    let observed = Observed { code: Some(Code::SeatExhausted), ..Observed::default() };
    let legs = hold(&mut seat, &seat_only(6, 0)).unwrap();
    let whole = Settling::whole(&legs, price(10, 0).cost, Some(observed));
    assert_eq!(whole.post(None), (None, Some(observed)));
}

/// Settles until it is done; `between` may change balances before the post of each number.
fn settle(
    world: &mut World,
    legs: &[Taken],
    actual: &Price,
    pool: bool,
    mut between: impl FnMut(usize, &mut World),
) -> Legs {
    let mut settling = Settling::used(legs, actual, pool, None);
    let kept = capture(world, &Legs::from_slice(legs), &settling.keep);
    for posts in 0.. {
        let (post, _) = settling.post(Some(&world.position));
        between(posts, world);
        match world.post(&post.unwrap_or_default()) {
            Ok(extra) => return merge(&kept, &extra),
            Err(seen) if settling.may_be_short() => settling.short(*seen),
            Err(_) => break,
        }
    }
    panic!("a capture never fails for lack of credit");
}

proptest! {
    #![proptest_config(cases(3_000))]

    #[test]
    fn d31_legs_cover_what_is_charged_however_balances_move(
        setup in setups(), quote in quotes(), cost in used(), operations in used(), like in 0u8..6,
        changes in changes(),
    ) {
        let mut world = setup.world();
        let legs = hold(&mut world, &quote);
        prop_assume!(legs.is_some());
        let actual = actual(&quote, cost, operations, like);
        let legs = settle(&mut world, &legs.unwrap(), &actual, quote.pool, |posts, world| {
            disturb(world, changes.get(posts));
        });
        let covers = covers(&legs, actual.cost, world.position.overdraft);
        prop_assert_eq!(covers.iter().sum::<u64>(), actual.cost.micro());
    }
}

#[test]
fn d24_what_is_known_is_of_one_step() {
    // A second answer replaces the first one: balances of two steps are never planned on together.
    let mut world = user(&[15]).pool(1).world();
    let (_, mut settling) = thrice(&mut world, None);
    let (post, _) = settling.post(Some(&world.position));
    settling.short(world.view(&post.unwrap()));
    settling.short(View::default());
    assert_eq!(takes(&settling.post(Some(&world.position)).0.unwrap()), [0, 0, 0, 20]);
}
