//! How a charge is settled, step by step: what of its hold is kept, and who is asked for what
//! exceeds it, until the books have done it. One for whoever settles, the request that made the
//! charge or somebody later. Pure: the caller asks the books.

use super::super::account::{Post, Taken, View};
use super::super::amount::Credits;
use super::super::price::Price;
use super::settlement::{Keep, owe, plan_excess, settle, side_of};
use super::{Excess, MAX_PLANS, Observed, Position, Settlement, Split, stand};

/// Where a settlement stands. The default keeps and charges nothing.
#[derive(Clone, Debug, Default)]
pub struct Settling {
    /// Credits charged.
    pub cost: Credits,
    /// How much of each leg is captured, by the hold's order.
    pub keep: Keep,
    /// What the hold does not cover (D31).
    excess: Option<Excess>,
    /// False for a rate that only seats may pay.
    pool: bool,
    /// What there is to what is kept in observe mode; `None` where that is not the mode.
    observed: Option<Observed>,
    /// What is known of the accounts that pay an excess, and how often they had changed by then.
    known: (View, usize),
}

impl Settling {
    /// A hold that is captured as it is, at the price that it was held for.
    pub fn whole(legs: &[Taken], cost: Credits, observed: Option<Observed>) -> Self {
        let keep = legs.iter().map(|leg| leg.amount).collect();
        Self { cost, keep, observed, ..Self::default() }
    }

    /// A hold that is captured on the actual price (D30).
    pub fn used(
        legs: &[Taken],
        actual: &Price,
        pool: bool,
        mut observed: Option<Observed>,
    ) -> Self {
        let Settlement { keep, excess } = match &mut observed {
            Some(observed) => observed.settle(legs, pool, actual),
            None => settle(legs, actual),
        };
        Self { cost: actual.cost, keep, excess, pool, observed, ..Self::default() }
    }

    /// Plans an excess on balances that were seen before; nothing of them has to be true any more.
    #[must_use]
    pub fn knowing(self, seen: &View) -> Self {
        Self { known: (seen.clone(), self.known.1), ..self }
    }

    /// What is asked where nobody can be told that it is short: the last plan.
    #[must_use]
    pub fn at_last(&self) -> Self {
        Self { known: (View::default(), MAX_PLANS), ..self.clone() }
    }

    /// True where more is taken than was held.
    pub fn has_excess(&self) -> bool {
        self.excess.is_some()
    }

    /// True where there is an account for what nobody can pay of an excess, or none is needed.
    pub fn has_debtor(&self, position: Option<&Position<'_>>) -> bool {
        let owes = |position: &Position<'_>| {
            position.overdraft.is_some() || side_of(position, self.pool).is_some()
        };
        self.excess.is_none() || self.observed.is_some() || position.is_some_and(owes)
    }

    /// What the books are to take beside what is kept, if anything, and what there is to the charge
    /// in observe mode once they did. Who can pays an excess, and what nobody can is owed (D31), or
    /// uncovered in observe mode (D28); where accounts changed too often, all of it is.
    pub fn post(&self, position: Option<&Position<'_>>) -> (Option<Post>, Option<Observed>) {
        let Some(excess) = &self.excess else { return (None, self.observed) };
        let last = !self.may_be_short();
        // Nothing guards a seat that pays beside a pool that could pay all by now.
        let is_whole = position.is_some_and(|position| position.split == Split::Whole);
        let nothing = View::default();
        let view = if is_whole && self.known.1 == 0 { &nothing } else { &self.known.0 };
        if let Some(observed) = &self.observed {
            let from = position.filter(|_| !last).map(|position| (position, view));
            let (mut post, observed) = observed.pay(excess, self.pool, from);
            stand(&mut post, self.known.1);
            return (Some(post), Some(observed));
        }
        let post = position.map(|position| match last {
            true => owe(excess, self.pool, position),
            false => {
                let mut post = plan_excess(excess, self.pool, position, view);
                stand(&mut post, self.known.1);
                post
            }
        });
        (post, None)
    }

    /// False once a post takes from nobody who could not have it: books that do not do that one
    /// do none.
    pub fn may_be_short(&self) -> bool {
        self.known.1 < MAX_PLANS
    }

    /// Goes on after a post that was short, on the balances that it returned.
    pub fn short(&mut self, view: View) {
        self.known = (view, self.known.1 + 1);
    }
}
