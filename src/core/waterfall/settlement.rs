//! Settlement: what a capture keeps of a hold (D30), and who pays what exceeds it (D31).

use smallvec::SmallVec;

use super::super::account::{LegKind, Legs, Payer, Post, Slot, Source, Taken, View, sum_of};
use super::super::amount::{prorate_down, prorate_up};
use super::super::price::Price;
use super::{PoolAccess, PoolSide, Position, Split};

/// How much of each leg is captured, by the hold's order.
pub type Keep = SmallVec<[u64; 6]>;

/// What of a hold a capture keeps, and what it still owes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// How much of each leg is captured; the rest returns (D30).
    pub keep: Keep,
    /// What the hold does not cover (D31).
    pub excess: Option<Excess>,
}

/// What was used beyond a hold (D31).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Excess {
    /// E, in micro-credits.
    pub credits: u64,
    /// x′ − x, in micro-Operations.
    pub operations: u64,
}

/// Settles a hold on the actual price (D30), and says what exceeds it (D31).
pub fn settle(legs: &[Taken], actual: &Price) -> Settlement {
    settle_beside(legs, &Excess::default(), actual).0
}

/// The same for a hold of which a part is uncovered: it stands where overage would, behind the
/// pool. Also says what of it is left.
pub(super) fn settle_beside(
    legs: &[Taken],
    uncovered: &Excess,
    actual: &Price,
) -> (Settlement, Excess) {
    let cost = actual.cost.micro();
    let seat_held = sum_of(legs, LegKind::Licence);
    let pool_held = sum_of(legs, LegKind::Pool);
    let overage_held = sum_of(legs, LegKind::Overage);
    let operations_held = pool_held + overage_held + uncovered.operations;
    let seat = seat_held.min(cost);
    let rest = cost - seat;
    let operations = prorate_up(rest, actual.operations.micro(), cost);
    // Where the pool may not pay a rate has no price in Operations: whatever the seat's part
    // and what is uncovered do not come to is excess.
    let within = match operations {
        0 => rest.min(uncovered.credits),
        _ if operations > operations_held => prorate_down(rest, operations_held, operations),
        _ => rest,
    };
    let beyond = operations > operations_held || within < rest;
    let excess = beyond.then(|| Excess {
        credits: rest - within,
        operations: operations - operations_held.min(operations),
    });
    let kept = operations.min(operations_held);
    let pool = pool_held.min(kept);
    let overage = overage_held.min(kept - pool);
    let paid = pool + overage;
    let left =
        Excess { credits: within - prorate_down(within, paid, kept), operations: kept - paid };
    (Settlement { keep: keep(legs, seat, pool, overage, paid), excess }, left)
}

/// Spreads what is kept over the legs, first legs first, so that what returns goes to the last.
fn keep(legs: &[Taken], mut seat: u64, mut pool: u64, mut overage: u64, limit: u64) -> Keep {
    let mut kept = Keep::new();
    for leg in legs {
        let part = match leg.kind {
            LegKind::Licence => take_from(&mut seat, leg.amount),
            LegKind::Pool => take_from(&mut pool, leg.amount),
            LegKind::Overage => take_from(&mut overage, leg.amount),
            LegKind::Limit => limit.min(leg.amount),
            LegKind::Cap => kept.last().copied().unwrap_or(0).min(leg.amount),
            LegKind::Overdraft => leg.amount,
        };
        kept.push(part);
    }
    kept
}

fn take_from(rest: &mut u64, bound: u64) -> u64 {
    let part = (*rest).min(bound);
    *rest -= part;
    part
}

/// Plans an excess on balances of the hold's own cycle and term: each account pays what it can,
/// and what nobody can pay becomes overdraft (D31). The post fails only when balances moved
/// since `view`; it is then planned again on those it returned. `pool` is false for a rate that
/// only seats may pay. A view that lacks an account plans a post that names all of them.
pub fn plan_excess(excess: &Excess, pool: bool, position: &Position<'_>, view: &View) -> Post {
    let side = side_of(position, pool);
    let (mut post, unpaid) = spread(excess, side, true, position, view);
    post.sources.extend(owed(position, side, &unpaid));
    post
}

/// Who may pay Operations.
pub(super) fn side_of<'p>(position: &'p Position<'_>, pool: bool) -> Option<&'p PoolSide> {
    match &position.pool {
        PoolAccess::Open(side) if pool => Some(side),
        _ => None,
    }
}

/// What each account can pay of an excess, and what nobody can; nothing past the pool where
/// `overage` is false.
pub(super) fn spread(
    excess: &Excess,
    side: Option<&PoolSide>,
    overage: bool,
    position: &Position<'_>,
    view: &View,
) -> (Post, Excess) {
    let available = |slot: Slot| view.get(slot).map_or(0, |balance| balance.available());
    let (pool_available, draw_available) = side.map_or((0, 0), |side| {
        let beyond = if overage { side.overage_available(view) } else { 0 };
        (available(side.pool).saturating_add(beyond), available(side.draw))
    });
    let payable = pool_available.min(draw_available);
    let seat_available = position.seat_available(view).unwrap_or(0);
    let whole = position.split == Split::Whole
        && seat_available < excess.credits
        && payable >= excess.operations
        && excess.operations > 0;
    let seat = if whole { 0 } else { seat_available.min(excess.credits) };
    let rest = excess.credits - seat;
    let operations = prorate_up(rest, excess.operations, excess.credits);
    let paid = operations.min(payable);

    let mut post = Post::default();
    if position.licences > 0 {
        let drained =
            (seat < excess.credits).then_some(if whole { excess.credits } else { seat + 1 });
        let source = Source::take(seat, position.seat_payers());
        post.sources.push(Source { below: drained, ..source });
    }
    if let Some(side) = side {
        let short = |has: u64| (paid < operations && has == paid).then_some(paid + 1);
        let payers = Source::take(paid, side.payers().take(if overage { 2 } else { 1 }));
        post.sources.push(Source { below: short(pool_available), ..payers });
        let draw = side.draw_source(paid);
        post.sources.push(Source { below: short(draw_available), ..draw });
    }
    let credits = rest - prorate_down(rest, paid, operations);
    (post, Excess { credits, operations: operations - paid })
}

/// An excess that is owed whole: what is posted where balances moved each time it was planned.
pub fn owe(excess: &Excess, pool: bool, position: &Position<'_>) -> Post {
    let sources = owed(position, side_of(position, pool), excess).into_iter().collect();
    Post { sources, ..Post::default() }
}

/// What nobody can pay: the user's overdraft in credits, or a principal's, which falls on the
/// pool, in Operations.
fn owed(position: &Position<'_>, side: Option<&PoolSide>, unpaid: &Excess) -> Option<Source> {
    let (amount, slot) = match (position.overdraft, side) {
        (Some(slot), _) => (unpaid.credits, slot),
        (None, Some(side)) => (unpaid.operations, side.pool),
        (None, None) => return None,
    };
    let payer = Payer { slot, kind: LegKind::Overdraft, cap: None };
    Some(Source { forced: true, ..Source::take(amount, [payer]) })
}

/// Adds what was taken to the legs of a hold, as the books do: one leg per account and kind, new
/// ones behind those that are there.
pub fn grow(legs: &mut Legs, taken: &[Taken]) {
    for leg in taken {
        match legs.iter_mut().find(|known| known.slot == leg.slot && known.kind == leg.kind) {
            Some(known) => known.amount = known.amount.saturating_add(leg.amount),
            None => legs.push(*leg),
        }
    }
}

/// Adds what an excess took to what was kept of a hold: one leg per account and kind.
pub fn merge(kept: &[Taken], extra: &[Taken]) -> Legs {
    let mut legs: Legs = kept.iter().copied().filter(|leg| leg.amount > 0).collect();
    for leg in extra.iter().filter(|leg| leg.amount > 0) {
        match legs.iter_mut().find(|known| known.slot == leg.slot && known.kind == leg.kind) {
            Some(known) => known.amount += leg.amount,
            None => legs.push(*leg),
        }
    }
    legs
}
