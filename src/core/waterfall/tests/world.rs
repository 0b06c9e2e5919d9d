//! A caller with balances, and books that do exactly what the contract of `books` says, for one
//! caller at a time. `tests/books` has the same callers on real books.

use proptest::test_runner::Config as ProptestConfig;
use smallvec::SmallVec;

use crate::core::account::{Balance, LegKind, Legs, Payer, Post, Slot, Source, Taken, View};
use crate::core::amount::{Credits, Operations};
use crate::core::cycle::{Anchor, Schedule};
use crate::core::entitlement::{DrawLimit, Overage};
use crate::core::price::{Price, Quote, Tier};
use crate::core::refusal::{DecidedBy, Missing, Refusal};
use crate::core::waterfall::{self, MAX_PLANS, Plan, PoolAccess, PoolSide, Position, Split, plan};

/// What draws and pools without a bound have.
pub const PLENTY: i64 = 1 << 52;

/// How a property is tested: found failures are printed whole, so none is written to a file.
pub fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        max_global_rejects: 1_000_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

pub fn price(cost: u64, operations: u64) -> Price {
    Price {
        cost: Credits::from_micro(cost).unwrap(),
        operations: Operations::from_micro(operations).unwrap(),
    }
}

fn quote(price: Price, tier: Tier, pool: bool) -> Quote {
    Quote { price, tier, pool, rate_card: "2026-11".parse().unwrap() }
}

pub fn premium(cost: u64, operations: u64) -> Quote {
    quote(price(cost, operations), Tier::Premium, true)
}

pub fn seat_only(cost: u64, operations: u64) -> Quote {
    quote(price(cost, operations), Tier::Premium, false)
}

pub fn standard() -> Quote {
    quote(price(0, 0), Tier::Standard, true)
}

/// How the pool stands to the caller.
#[derive(Clone, Debug)]
enum Access {
    None(Vec<Missing>),
    NoTerm,
    Open { pool: i64, overage: Option<i64>, cap: Option<i64>, draw: i64 },
}

/// A caller, by what each account has left; negative for what is in the red.
#[derive(Clone, Debug)]
pub struct Setup {
    licences: Vec<i64>,
    principal: bool,
    owes: i64,
    access: Access,
    policy: Overage,
    decided_by: Option<DecidedBy>,
    split: Split,
}

pub fn user(licences: &[i64]) -> Setup {
    Setup {
        licences: licences.to_vec(),
        principal: false,
        owes: 0,
        access: Access::None(vec![Missing::Offer]),
        policy: Overage::Reject,
        decided_by: None,
        split: Split::Split,
    }
}

pub fn principal() -> Setup {
    Setup { principal: true, ..user(&[]) }
}

impl Setup {
    pub fn missing(self, missing: &[Missing]) -> Self {
        Self { access: Access::None(missing.to_vec()), ..self }
    }

    pub fn no_term(self) -> Self {
        Self { access: Access::NoTerm, ..self }
    }

    pub fn owes(self, owes: i64) -> Self {
        Self { owes, ..self }
    }

    pub fn whole(self) -> Self {
        Self { split: Split::Whole, ..self }
    }

    pub fn pool(self, pool: i64) -> Self {
        Self { access: Access::Open { pool, overage: None, cap: None, draw: PLENTY }, ..self }
    }

    pub fn overage(mut self, policy: Overage, left: i64) -> Self {
        if let Access::Open { overage, .. } = &mut self.access {
            *overage = Some(left);
        }
        Self { policy, ..self }
    }

    pub fn profile_cap(mut self, left: i64) -> Self {
        if let Access::Open { cap, .. } = &mut self.access {
            *cap = Some(left);
        }
        self
    }

    pub fn limit(mut self, left: i64, by: DecidedBy) -> Self {
        if let Access::Open { draw, .. } = &mut self.access {
            *draw = left;
        }
        Self { decided_by: Some(by), ..self }
    }

    pub fn world(self) -> World {
        let mut left = self.licences.clone();
        let mut push = |has: i64| {
            left.push(has);
            (left.len() - 1) as Slot
        };
        let overdraft = (!self.principal).then(|| push(-self.owes));
        let pool = match self.access {
            Access::None(missing) => PoolAccess::None(missing),
            Access::NoTerm => PoolAccess::NoTerm,
            Access::Open { pool, overage, cap, draw } => PoolAccess::Open(PoolSide {
                pool: push(pool),
                draw: push(draw),
                overage: overage.map(&mut push),
                profile_cap: cap.map(&mut push),
                policy: self.policy,
                limit: self
                    .decided_by
                    .map(|decided_by| DrawLimit { limit: Operations::MAX, decided_by }),
                profile: "creative".parse().unwrap(),
            }),
        };
        let schedule = Schedule::new(Anchor::CalendarMonth, jiff::tz::TimeZone::UTC);
        let position = Position {
            accounts: SmallVec::new(),
            licences: self.licences.len() as Slot,
            tallies: Default::default(),
            overdraft,
            pool,
            split: self.split,
            cycle: schedule.cycle_at("2026-11-20T00:00:00Z".parse().unwrap()),
        };
        World { position, balances: left.into_iter().map(balance).collect() }
    }
}

/// A balance with something of everything, that has `left` remaining.
fn balance(left: i64) -> Balance {
    let (held, captured) = (3, 4);
    if left >= 0 {
        Balance { base: left as u64 + 9, adjusted: -2, held, captured }
    } else {
        Balance { base: 5, adjusted: left + 2, held, captured }
    }
}

/// How many credits each leg covers; `overdraft` is the slot of a user's, whose unit is credits.
pub fn covers(legs: &[Taken], cost: Credits, overdraft: Option<Slot>) -> Vec<u64> {
    let in_credits = |leg: &Taken| {
        leg.kind == LegKind::Licence || overdraft.is_some_and(|slot| slot == leg.slot)
    };
    let legs: Vec<_> = legs.iter().map(|leg| (leg.kind, leg.amount, in_credits(leg))).collect();
    waterfall::covers(&legs, cost)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done(Legs, View),
    Refused(Refusal),
    Contended,
}

/// Plans and posts until something comes of it; `ask` does a post, by its number.
pub fn run(
    position: &Position<'_>,
    quote: &Quote,
    mut ask: impl FnMut(usize, &Post) -> Result<(Legs, View), Box<View>>,
) -> (Outcome, usize) {
    let mut view: Option<View> = None;
    for posts in 0..MAX_PLANS {
        let post = match plan(quote, position, view.as_ref()) {
            Plan::Post(post) => post,
            Plan::Refuse(refusal) => return (Outcome::Refused(refusal), posts),
        };
        match ask(posts, &post) {
            Ok((legs, view)) => return (Outcome::Done(legs, view), posts + 1),
            Err(seen) => view = Some(*seen),
        }
    }
    (Outcome::Contended, MAX_PLANS)
}

/// A caller's position and the balances behind it.
#[derive(Clone, Debug)]
pub struct World {
    pub position: Position<'static>,
    pub balances: Vec<Balance>,
}

impl World {
    pub fn available(&self, slot: Slot) -> u64 {
        self.balances[usize::from(slot)].available()
    }

    pub fn set(&mut self, slot: Slot, left: i64) {
        self.balances[usize::from(slot)] = balance(left);
    }

    pub fn side(&self) -> Option<&PoolSide> {
        match &self.position.pool {
            PoolAccess::Open(side) => Some(side),
            _ => None,
        }
    }

    pub fn pool_slot(&self) -> Slot {
        self.side().unwrap().pool
    }

    /// What pool and overage can give together.
    pub fn payable(&self) -> u64 {
        self.side().map_or(0, |side| {
            let overage = side.overage.map_or(0, |slot| self.available(slot));
            let cap = side.profile_cap.map_or(u64::MAX, |slot| self.available(slot));
            self.available(side.pool) + overage.min(cap)
        })
    }

    /// Plans and posts until something comes of it. `between` may change balances before the
    /// post of each number.
    pub fn run(
        &mut self,
        quote: &Quote,
        mut between: impl FnMut(usize, &mut Self),
    ) -> (Outcome, usize) {
        let position = self.position.clone();
        run(&position, quote, |posts, post| {
            between(posts, self);
            self.post(post).map(|legs| (legs, self.view(post)))
        })
    }

    /// All of the post, or nothing and the balances it named.
    pub fn post(&mut self, post: &Post) -> Result<Legs, Box<View>> {
        let mut after = self.balances.clone();
        let mut legs = Legs::new();
        for source in &post.sources {
            if self.take(source, &mut after, &mut legs).is_none() {
                return Err(Box::new(self.view(post)));
            }
        }
        self.balances = after;
        Ok(legs)
    }

    fn take(&self, source: &Source, after: &mut [Balance], legs: &mut Legs) -> Option<()> {
        let at = |payer: &Payer| usize::from(payer.slot);
        let has = |after: &[Balance], payer: &Payer| {
            let cap = payer.cap.map_or(u64::MAX, |cap| after[usize::from(cap)].available());
            after[at(payer)].available().min(cap)
        };
        let sum: u64 = source.payers.iter().map(|payer| has(after, payer)).sum();
        let red = source.payers.iter().any(|payer| after[at(payer)].remaining() < 0);
        if source.below.is_some_and(|below| sum >= below) || source.solvent && red {
            return None;
        }
        let mut rest = source.take;
        for payer in &source.payers {
            let part = if source.forced { rest } else { rest.min(has(after, payer)) };
            if part == 0 {
                continue;
            }
            rest -= part;
            after[at(payer)].held += part;
            legs.push(Taken { slot: payer.slot, kind: payer.kind, amount: part });
            if let Some(cap) = payer.cap {
                after[usize::from(cap)].held += part;
                legs.push(Taken { slot: cap, kind: LegKind::Cap, amount: part });
            }
        }
        (rest == 0).then_some(())
    }

    /// The balances of what a post names.
    pub fn view(&self, post: &Post) -> View {
        let mut view = View::new(self.balances.len());
        let payers = post.sources.iter().flat_map(|source| &source.payers);
        let named = payers.flat_map(|payer| [Some(payer.slot), payer.cap]).flatten();
        for slot in named.chain(post.look.iter().copied()) {
            view.set(slot, self.balances[usize::from(slot)]);
        }
        view
    }

    /// What came of a request, in one line.
    pub fn describe(&self, outcome: &Outcome) -> String {
        describe(outcome)
    }
}

/// What came of a request, in one line.
pub fn describe(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Contended => "contended".to_owned(),
        Outcome::Done(legs, _) if legs.is_empty() => "nothing".to_owned(),
        Outcome::Done(legs, _) => {
            let texts: Vec<String> = legs
                .iter()
                .map(|leg| match leg.kind {
                    LegKind::Licence => format!("licence{} {}", leg.slot, leg.amount),
                    kind => format!("{kind:?} {}", leg.amount).to_lowercase(),
                })
                .collect();
            texts.join(", ")
        }
        Outcome::Refused(refusal) => {
            let facts = refusal.facts.as_ref().unwrap();
            let has = facts.available;
            let mut text = format!(
                "{} has {}/{}",
                refusal.code.as_str(),
                has.credits.micro(),
                has.operations.micro()
            );
            if let Some(missing) = &facts.missing {
                text += " missing";
                for missing in missing {
                    text += &format!(" {missing:?}").to_lowercase();
                }
            }
            if let Some((by, profile)) = &facts.decided_by {
                text += &format!(" by {by:?}");
                text += &profile.as_ref().map(|id| format!(" {id}")).unwrap_or_default();
            }
            text
        }
    }
}
