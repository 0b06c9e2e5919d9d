//! The waterfall: seat → pool → overage, planned as one post (D24–D27) and settled exactly (D30,
//! D31). Pure: the books make a plan atomic, and return balances to plan again on.

mod observed;
mod settlement;
mod settling;

pub use self::observed::{Observed, decide};
pub use self::settlement::{Excess, Settlement, grow, merge, settle};
pub use self::settling::Settling;

use smallvec::{SmallVec, smallvec};

use super::account::{Account, Balance, LegKind, Payer, Post, Slot, Source, View};
use super::amount::{Credits, Operations, prorate_down, prorate_up};
use super::cycle::Cycle;
use super::entitlement::{DrawLimit, Overage};
use super::ids::Id;
use super::price::{Price, Quote, Tier};
use super::refusal::{Both, Code, Facts, Missing, Refusal};

/// How often a post that failed is planned again before `books_contended`.
pub const MAX_PLANS: usize = 32;

/// How often it is planned on what there is in the step of the post. Who was overtaken as often pays by
/// what there was when it was read, if that is still there: as if it had been done right then.
const EXACT_PLANS: usize = 4;

/// What a seat does with a charge it can pay only in part (D25).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// The seat pays what it has, the pool the rest.
    #[default]
    Split,
    /// The pool pays it whole.
    Whole,
}

/// The accounts behind pool access.
#[derive(Clone, Debug)]
pub struct PoolSide {
    /// The pool of the current term.
    pub pool: Slot,
    /// The org's overage of the term; absent where overage is refused.
    pub overage: Option<Slot>,
    /// The granting profile's own overage cap, counted beside the org's.
    pub profile_cap: Option<Slot>,
    /// The caller's draws of the cycle.
    pub draw: Slot,
    /// The policy that `overage` stands for.
    pub policy: Overage,
    /// The limit that `draw` has, and who set it.
    pub limit: Option<DrawLimit>,
    /// The granting profile.
    pub profile: Id,
}

/// How a caller stands to the pool.
#[derive(Clone, Debug)]
pub enum PoolAccess {
    /// No access, and what is missing for it.
    None(Vec<Missing>),
    /// Access, but no term now.
    NoTerm,
    /// Access.
    Open(PoolSide),
}

/// Who took what from a licence's account that several users share in a cycle (D10): an account
/// of its own counts what one of them took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// The licence.
    pub licence: Slot,
    /// The account that counts.
    pub account: Slot,
    /// True for what the caller takes from another's account, which is counted from now on;
    /// false for what somebody else took from the caller's.
    pub own: bool,
}

/// Everything that can pay for a caller, at one instant: fixed when a charge is planned (D7).
#[derive(Clone, Debug)]
pub struct Position<'a> {
    /// Every account, by slot.
    pub accounts: SmallVec<[Account<'a>; 8]>,
    /// How many of them, from the first on, are the seat's licences in burn order (D3).
    pub licences: Slot,
    /// Who shares licences with whom; empty unless one changed hands in this cycle.
    pub tallies: SmallVec<[Tally; 1]>,
    /// What the user owes; absent for principals.
    pub overdraft: Option<Slot>,
    /// The pool.
    pub pool: PoolAccess,
    /// The org's choice for charges a seat can pay in part.
    pub split: Split,
    /// The cycle of seat and draws.
    pub cycle: Cycle,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a box would allocate for every request")]
pub enum Plan {
    /// Ask the books this.
    Post(Post),
    /// Tell the caller this.
    Refuse(Refusal),
}

/// Plans a charge. Without a view the first post names only the seat and the user's overdraft;
/// a post that failed is planned again on the balances it returned, until one is done or all
/// accounts of the waterfall are known from one step and refuse.
pub fn plan(quote: &Quote, position: &Position<'_>, view: Option<&View>) -> Plan {
    let cost = quote.price.cost.micro();
    if quote.tier == Tier::Standard {
        let look = (0..position.licences).chain(position.look()).collect();
        return Plan::Post(Post { sources: SmallVec::new(), look });
    }
    if position.overdraft.is_none() && !position.is_open(quote) {
        // A principal has nothing but the pool, so no balance can change the answer.
        return position.decide(quote, 0, &View::default());
    }
    let seat = view.and_then(|view| position.seat_available(view));
    match (seat, view) {
        (None, _) | (_, None) if position.licences > 0 || !position.is_open(quote) => {
            Plan::Post(position.seat_post(cost))
        }
        (seat, view) => {
            let seat = seat.unwrap_or(0);
            match view.filter(|view| position.is_complete(quote, view)) {
                Some(view) => position.decide(quote, seat, view),
                // Either the seat cannot pay, or the user owes: both are decided on all balances.
                None => Plan::Post(position.spill_post(&quote.price, seat)),
            }
        }
    }
}

impl Position<'_> {
    /// Σ available of the licences; `None` unless all of them are known.
    pub fn seat_available(&self, view: &View) -> Option<u64> {
        (0..self.licences).try_fold(0u64, |sum, slot| {
            view.get(slot).map(|balance| sum.saturating_add(balance.available()))
        })
    }

    /// What of a licence's account is the caller's own (D10): `held` and `captured` are what the
    /// caller took, and what others took is no longer granted. What remains is the same.
    pub fn own(&self, licence: Slot, view: &View) -> Balance {
        let whole = view.get(licence).unwrap_or_else(|| Balance {
            base: self.accounts[usize::from(licence)].grant.base,
            ..Balance::default()
        });
        let mut tallies = self.tallies.iter().filter(|tally| tally.licence == licence).peekable();
        let Some(first) = tallies.peek() else { return whole };
        let own = first.own;
        let sum = tallies.fold([0_u64; 2], |[held, captured], tally| {
            let part = view.get(tally.account).unwrap_or_default();
            [held.saturating_add(part.held), captured.saturating_add(part.captured)]
        });
        // Accounts that are read one after the other may disagree for a moment.
        let [held, captured] = match own {
            true => [sum[0].min(whole.held), sum[1].min(whole.captured)],
            false => [whole.held.saturating_sub(sum[0]), whole.captured.saturating_sub(sum[1])],
        };
        let others = (whole.held - held).saturating_add(whole.captured - captured);
        let adjusted = whole.adjusted.saturating_sub_unsigned(others);
        Balance { base: whole.base, adjusted, held, captured }
    }

    /// The pool's accounts, if the caller may use them for this quote.
    fn open(&self, quote: &Quote) -> Option<&PoolSide> {
        match &self.pool {
            PoolAccess::Open(side) if quote.pool => Some(side),
            _ => None,
        }
    }

    fn is_open(&self, quote: &Quote) -> bool {
        self.open(quote).is_some()
    }

    /// True when the view holds every account that decides about this quote.
    fn is_complete(&self, quote: &Quote, view: &View) -> bool {
        let known = |slot: Slot| view.get(slot).is_some();
        let seat = (0..self.licences).all(known) && self.overdraft.is_none_or(known);
        seat && self.open(quote).is_none_or(|side| {
            known(side.pool)
                && known(side.draw)
                && side.overage.is_none_or(known)
                && side.profile_cap.is_none_or(known)
        })
    }

    /// The slot of the pool, to be shown in the receipt of whoever has access.
    fn look(&self) -> SmallVec<[Slot; 4]> {
        match &self.pool {
            PoolAccess::Open(side) => smallvec![side.pool],
            _ => SmallVec::new(),
        }
    }

    fn seat_payers(&self) -> impl Iterator<Item = Payer> {
        (0..self.licences).map(|slot| {
            let counts = |tally: &&Tally| tally.own && tally.licence == slot;
            let cap = self.tallies.iter().find(counts).map(|tally| tally.account);
            Payer { slot, kind: LegKind::Licence, cap }
        })
    }

    /// The user must owe nothing.
    fn solvent(&self) -> Option<Source> {
        let payer = Payer { slot: self.overdraft?, kind: LegKind::Overdraft, cap: None };
        Some(Source { solvent: true, ..Source::take(0, [payer]) })
    }

    /// The seat pays in full, or nothing happens.
    fn seat_post(&self, cost: u64) -> Post {
        let seat = Source::take(cost, self.seat_payers());
        Post { sources: self.solvent().into_iter().chain([seat]).collect(), look: self.look() }
    }

    /// The seat pays `seat`, which is all it has, and the pool the rest.
    fn spill_post(&self, price: &Price, seat: u64) -> Post {
        let cost = price.cost.micro();
        let (seat_part, below) = match self.split {
            Split::Whole if seat < cost => (0, cost),
            // A seat that could pay all of it is asked for all of it: only a debt was in its way,
            // and that may be paid by now.
            _ => (seat.min(cost), seat.min(cost).saturating_add(1)),
        };
        let operations = prorate_up(cost - seat_part, price.operations.micro(), cost);
        let mut sources: SmallVec<[Source; 4]> = self.solvent().into_iter().collect();
        if self.licences > 0 {
            // The guard proves that the seat really cannot pay in full (D1).
            let seat = Source::take(seat_part, self.seat_payers());
            sources.push(Source { below: Some(below), ..seat });
        }
        if let PoolAccess::Open(side) = &self.pool {
            sources.push(Source::take(operations, side.payers()));
            sources.push(side.draw_source(operations));
        }
        Post { sources, look: self.look() }
    }

    /// Decides on balances that were all read in one step.
    fn decide(&self, quote: &Quote, seat: u64, view: &View) -> Plan {
        let price = &quote.price;
        let refuse = |code, detail| Plan::Refuse(self.refusal(quote, code, detail, seat, view));
        if self.owes(view) {
            return refuse(
                Code::Overdrawn,
                "ask an admin for an adjustment, or wait for the reset",
            );
        }
        if self.licences > 0 && seat >= price.cost.micro() {
            return Plan::Post(self.seat_post(price.cost.micro()));
        }
        let side = match &self.pool {
            PoolAccess::Open(side) if quote.pool => side,
            PoolAccess::NoTerm if quote.pool => {
                return refuse(Code::NoActiveTerm, "no contract period of the pool is active now");
            }
            _ if self.overdraft.is_none() => {
                return refuse(
                    Code::PoolAccessDenied,
                    "ask an admin for what `pool.missing` lists",
                );
            }
            _ => {
                return refuse(
                    Code::SeatExhausted,
                    "ask an admin for what `pool.missing` lists, or wait for the reset",
                );
            }
        };
        let spill = self.spill_post(price, seat);
        let needed = spill.sources.last().map_or(0, |draw| draw.take);
        let available = |slot: Slot| view.get(slot).map_or(0, |balance| balance.available());
        if available(side.draw) < needed {
            return refuse(
                Code::PoolLimitReached,
                "the limit on pool draws of this cycle is reached",
            );
        }
        if available(side.pool).saturating_add(side.overage_available(view)) < needed {
            return match side.policy {
                Overage::Reject => refuse(Code::PoolExhausted, "the org's pool cannot pay this"),
                _ => refuse(Code::OverageCapReached, "pool and overage cap cannot pay this"),
            };
        }
        Plan::Post(spill)
    }

    fn owes(&self, view: &View) -> bool {
        self.overdraft.and_then(|slot| view.get(slot)).is_some_and(|b| b.remaining() < 0)
    }

    fn refusal(
        &self,
        quote: &Quote,
        code: Code,
        detail: &'static str,
        seat: u64,
        view: &View,
    ) -> Refusal {
        let available = |slot: Slot| view.get(slot).map_or(0, |balance| balance.available());
        let (operations, missing, decided_by) = match &self.pool {
            PoolAccess::Open(side) if quote.pool => {
                let pool = available(side.pool).saturating_add(side.overage_available(view));
                let decided_by = side.limit.as_ref().filter(|_| code == Code::PoolLimitReached);
                (pool.min(available(side.draw)), None, decided_by.map(|limit| limit.decided_by))
            }
            PoolAccess::None(missing) => {
                let feature = (!quote.pool).then_some(Missing::Feature);
                (0, Some(missing.iter().copied().chain(feature).collect()), None)
            }
            PoolAccess::NoTerm if quote.pool => (0, None, None),
            PoolAccess::Open(_) | PoolAccess::NoTerm => (0, Some(vec![Missing::Feature]), None),
        };
        let profile = match (&self.pool, decided_by) {
            (PoolAccess::Open(side), Some(super::refusal::DecidedBy::Profile)) => {
                Some(side.profile.clone())
            }
            _ => None,
        };
        Refusal {
            facts: Some(Box::new(Facts {
                required: Both { credits: quote.price.cost, operations: quote.price.operations },
                available: Both {
                    credits: clamp_credits(seat),
                    operations: clamp_operations(operations),
                },
                resets_at: self.overdraft.map(|_| self.cycle.end),
                missing,
                decided_by: decided_by.map(|by| (by, profile)),
            })),
            ..Refusal::new(code, detail)
        }
    }
}

impl PoolSide {
    /// Pool first, then overage.
    fn payers(&self) -> impl Iterator<Item = Payer> {
        let pool = Payer { slot: self.pool, kind: LegKind::Pool, cap: None };
        let overage =
            self.overage.map(|slot| Payer { slot, kind: LegKind::Overage, cap: self.profile_cap });
        std::iter::once(pool).chain(overage)
    }

    fn draw_source(&self, operations: u64) -> Source {
        Source::take(operations, [Payer { slot: self.draw, kind: LegKind::Limit, cap: None }])
    }

    fn overage_available(&self, view: &View) -> u64 {
        let available = |slot: Slot| view.get(slot).map_or(0, |balance| balance.available());
        let own = self.overage.map_or(0, available);
        self.profile_cap.map_or(own, |cap| own.min(available(cap)))
    }
}

fn clamp_credits(micro: u64) -> Credits {
    Credits::from_micro(micro).unwrap_or(Credits::MAX)
}

fn clamp_operations(micro: u64) -> Operations {
    Operations::from_micro(micro).unwrap_or(Operations::MAX)
}

/// Lets the plan of this number stand although accounts have more by now than it says, where it was
/// overtaken too often.
fn stand(post: &mut Post, plans: usize) {
    if plans >= EXACT_PLANS {
        post.sources.iter_mut().for_each(|source| source.below = None);
    }
}

/// How many credits of `cost` each paying leg covers, by the legs' order (D25): legs in credits
/// cover themselves, Operations share the rest, each rounded down but the last. Σ covers = cost.
/// A leg is its kind, its amount and whether that is credits.
pub fn covers(legs: &[(LegKind, u64, bool)], cost: Credits) -> Vec<u64> {
    let sum = |credits: bool| -> u64 {
        let paying = legs.iter().filter(|(kind, _, unit)| kind.pays() && *unit == credits);
        paying.map(|(_, amount, _)| amount).sum()
    };
    let rest = cost.micro().saturating_sub(sum(true));
    let total = sum(false);
    let mut paid = 0;
    let mut covered = 0;
    legs.iter()
        .map(|(kind, amount, credits)| match (kind.pays(), credits) {
            (false, _) => 0,
            (true, true) => *amount,
            (true, false) => {
                paid += amount;
                let share = prorate_down(rest, paid, total) - covered;
                covered += share;
                share
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
