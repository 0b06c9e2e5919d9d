//! The balance document: what a user may still use, from a position and the balances of its
//! accounts (D11).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::account::{Slot, View};
use super::amount::Text;
use super::refusal::Missing;
use super::waterfall::{PoolAccess, Position};

/// The document. Amounts are texts, because an admin's view may also show negative ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalanceDocument {
    /// The org.
    pub org: String,
    /// The user.
    pub user: String,
    /// The cycle the numbers are of.
    pub cycle: CycleDocument,
    /// All licences together.
    pub seat: SeatDocument,
    /// The user's side of the pool.
    pub pool: PoolDocument,
    /// What the user owes, in credits (D31).
    pub overdraft: String,
}

/// A cycle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CycleDocument {
    /// Its label.
    pub label: String,
    /// Its first instant.
    pub start: Timestamp,
    /// The first instant after it.
    pub end: Timestamp,
}

/// A seat: the sum of its licences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatDocument {
    /// Credits granted for the cycle.
    pub granted: String,
    /// Credits of open charges.
    pub held: String,
    /// Credits used.
    pub captured: String,
    /// Credits left.
    pub available: String,
    /// By licence, in burn order (D3).
    pub licences: Vec<LicenceDocument>,
}

/// One licence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LicenceDocument {
    /// Its id.
    pub id: String,
    /// Its plan.
    pub plan: String,
    /// Credits granted for the cycle.
    pub granted: String,
    /// Credits of open charges.
    pub held: String,
    /// Credits used.
    pub captured: String,
    /// Credits left.
    pub available: String,
}

/// The user's side of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolDocument {
    /// Whether there is access.
    pub access: bool,
    /// What is missing for it.
    pub missing: Vec<Missing>,
    /// Operations the user may draw in a cycle; `null` for no limit.
    pub limit: Option<String>,
    /// Operations drawn in this cycle, from pool and overage together.
    pub drawn: String,
}

/// The document of a user at `position`. `view` should hold every account of the position; one
/// that it lacks counts as never used. `plan_of` names the plan of a licence.
///
/// `limit` is shown also while no term is active.
pub fn document<'a>(
    org: &str,
    user: &str,
    position: &Position<'_>,
    view: &View,
    limit: Option<super::amount::Operations>,
    plan_of: impl Fn(&str) -> &'a str,
) -> BalanceDocument {
    let balance = |slot: Slot| view.get(slot).unwrap_or_default();
    let text = |micro: u64| Text::of_sum(micro).as_str().to_owned();
    let mut sum = [0_u64; 4];
    let licence = |slot: Slot| {
        let balance = position.own(slot, view);
        let row = [balance.granted(), balance.held, balance.captured, balance.available()];
        for (total, part) in sum.iter_mut().zip(row) {
            *total = total.saturating_add(part);
        }
        let id = position.accounts[usize::from(slot)].name.ids[0];
        let [granted, held, captured, available] = row.map(text);
        let plan = plan_of(id).to_owned();
        LicenceDocument { id: id.to_owned(), plan, granted, held, captured, available }
    };
    let licences = (0..position.licences).map(licence).collect();
    let [granted, held, captured, available] = sum.map(text);
    let used = |slot: Slot| {
        let balance = balance(slot);
        balance.held.saturating_add(balance.captured)
    };
    let (access, missing, drawn) = match &position.pool {
        PoolAccess::None(missing) => (false, missing.clone(), 0),
        PoolAccess::NoTerm => (true, Vec::new(), 0),
        PoolAccess::Open(side) => (true, Vec::new(), used(side.draw)),
    };
    let owed = position.overdraft.map_or(0, |slot| (-balance(slot).remaining()).max(0));
    let cycle = position.cycle;
    BalanceDocument {
        org: org.to_owned(),
        user: user.to_owned(),
        cycle: CycleDocument { label: cycle.label.to_string(), start: cycle.start, end: cycle.end },
        seat: SeatDocument { granted, held, captured, available, licences },
        pool: PoolDocument {
            access,
            missing,
            limit: limit.map(|limit| text(limit.micro())),
            drawn: text(drawn),
        },
        overdraft: text(u64::try_from(owed).unwrap_or(u64::MAX)),
    }
}

#[cfg(test)]
mod tests;
