//! Observe mode (D28): what would be refused is let through. Whoever can pay pays, out of seat and
//! pool alone; what nobody pays is uncovered, which is neither overage nor owed.

use super::super::account::{LegKind, Payer, Post, Source, Taken, View};
use super::super::price::{Price, Quote};
use super::super::refusal::{Both, Code, Refusal};
use super::settlement::{settle_beside, side_of, spread};
use super::{
    Excess, MAX_PLANS, Plan, Position, Settlement, clamp_credits, clamp_operations, plan, stand,
};

/// What there is to a charge of observe mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Why it would have been refused, if it would.
    pub code: Option<Code>,
    /// What nobody pays of it.
    pub uncovered: Both,
}

/// Plans a charge, for the time of number `plans`, on what is known. Where it is `observed`,
/// nothing is refused: what is posted instead is what can be paid, of the balances that refuse.
///
/// # Errors
/// The refusal, where it is to be told.
pub fn decide(
    quote: &Quote,
    position: &Position<'_>,
    (known, plans): (Option<&View>, usize),
    observed: bool,
) -> Result<(Post, Option<Observed>), Refusal> {
    let contended = || {
        let detail = "others spent from the same accounts while this was decided; try again";
        Refusal::new(Code::BooksContended, detail)
    };
    let planned =
        if plans < MAX_PLANS { plan(quote, position, known) } else { Plan::Refuse(contended()) };
    let refusal = match planned {
        Plan::Post(mut post) => {
            stand(&mut post, plans);
            return Ok((post, None));
        }
        Plan::Refuse(refusal) if observed => refusal,
        Plan::Refuse(refusal) => return Err(refusal),
    };
    let Price { cost, operations } = payable(&quote.price, quote.pool);
    let whole = Excess { credits: cost.micro(), operations: operations.micro() };
    let side = side_of(position, quote.pool);
    let (mut post, unpaid) = match known.filter(|_| plans < MAX_PLANS) {
        Some(view) => spread(&whole, side, false, position, view),
        // Nobody is known to have anything, or what they have does not hold still.
        None => (Post::default(), whole),
    };
    // What decides is named too: a post that is short is planned again on all of it.
    let overdraft = position.overdraft.map(|slot| (slot, LegKind::Overdraft, None));
    let overage = side.and_then(|side| Some((side.overage?, LegKind::Overage, side.profile_cap)));
    let named = [overdraft, overage].into_iter().flatten();
    post.sources
        .extend(named.map(|(slot, kind, cap)| Source::take(0, [Payer { slot, kind, cap }])));
    post.look = (0..position.licences).chain(position.look()).collect();
    stand(&mut post, plans);
    Ok((post, Some(Observed { code: Some(refusal.code), uncovered: both(&unpaid) })))
}

impl Observed {
    /// Settles a hold on the actual price: what is not used is first taken off what nobody paid.
    pub fn settle(&mut self, legs: &[Taken], pool: bool, actual: &Price) -> Settlement {
        let (settlement, left) =
            settle_beside(legs, &micro(&self.uncovered), &payable(actual, pool));
        self.uncovered = both(&left);
        settlement
    }

    /// Plans an excess: what nobody can pay is uncovered as well. Past the pool is only taken for
    /// what was not refused, and nothing at all where nobody is named to take `from`. Also gives
    /// what there is to the charge when the post is done.
    pub fn pay(
        &self,
        excess: &Excess,
        pool: bool,
        from: Option<(&Position<'_>, &View)>,
    ) -> (Post, Self) {
        let excess = Excess { operations: if pool { excess.operations } else { 0 }, ..*excess };
        let overage = self.code.is_none();
        let (post, unpaid) = match from {
            Some((position, view)) => {
                spread(&excess, side_of(position, pool), overage, position, view)
            }
            None => (Post::default(), excess),
        };
        (post, self.and(&Self { code: None, uncovered: both(&unpaid) }))
    }

    /// What there is to a charge of which the other one is a part more.
    pub fn and(&self, other: &Self) -> Self {
        let (one, more) = (micro(&self.uncovered), micro(&other.uncovered));
        let uncovered = both(&Excess {
            credits: one.credits.saturating_add(more.credits),
            operations: one.operations.saturating_add(more.operations),
        });
        Self { code: self.code.or(other.code), uncovered }
    }
}

/// A price as far as anybody may pay it: Operations only where the pool may.
fn payable(price: &Price, pool: bool) -> Price {
    if pool { *price } else { Price { cost: price.cost, ..Price::default() } }
}

fn micro(both: &Both) -> Excess {
    Excess { credits: both.credits.micro(), operations: both.operations.micro() }
}

fn both(excess: &Excess) -> Both {
    Both { credits: clamp_credits(excess.credits), operations: clamp_operations(excess.operations) }
}
