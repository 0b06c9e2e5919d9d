//! Rate cards and quotes (D19–D23, D41): exact prices, rounded up once, on the total.

mod rates;

pub use self::rates::{AppliedRate, Rates};

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::amount::{Credits, Fraction, MAX_MICRO, Operations, Ratio, prorate_up};
use super::ids::Id;
use super::refusal::{Code, Refusal};

/// Whether a feature debits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Debits credits.
    #[default]
    Premium,
    /// Recorded at zero, never refused for lack of credit.
    Standard,
}

/// The price of a feature under conditions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// The feature it prices.
    pub feature: Id,
    /// The meter it prices; `None` for a route's only meter (D41).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meter: Option<Id>,
    /// Attribute values that must all be present.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub when: BTreeMap<Id, String>,
    /// What one is called: `image`, `second`, `token`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Id>,
    /// Credits per unit. Absent for standard features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credits: Option<Ratio>,
    /// Operations per unit, instead of the card's ratio (D20).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<Ratio>,
    /// Premium or standard.
    #[serde(default)]
    pub tier: Tier,
    /// False where only seats may pay.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub pool: bool,
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_true(value: &bool) -> bool {
    *value
}

/// A rate card as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateCardFile {
    /// The name charges and receipts quote; unique in the org.
    pub version: Id,
    /// The offer product whose profiles use this card; `None` for everyone else (D20).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offer: Option<Id>,
    /// From when it is in force; `None` for always (D23).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Timestamp>,
    /// Operations for one credit.
    pub operations_per_credit: Ratio,
    /// The prices.
    #[serde(default, rename = "rate")]
    pub rates: Vec<Rate>,
}

/// What is wrong with a rate card.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateCardError {
    /// Two rates would match the same request equally well (D19).
    #[error(
        "rates {0} and {1} of feature {2} match the same requests equally well; \
         give one of them another condition"
    )]
    Ambiguous(usize, usize, Id),
    /// A premium rate without a price (D25: a premium rate is above zero).
    #[error("rate {0} of feature {1} is premium, so it needs `credits` above zero")]
    NoCredits(usize, Id),
    /// A premium rate that costs the pool nothing.
    #[error(
        "rate {0} of feature {1} would cost the pool nothing: `operations` and \
         `operations_per_credit` must be above zero, or `pool = false`"
    )]
    NoOperations(usize, Id),
    /// A standard rate with a price.
    #[error(
        "rate {0} of feature {1} is standard, so it can have neither `credits` nor `operations`"
    )]
    PricedStandard(usize, Id),
    /// Rates of one feature disagree on the tier.
    #[error("rates {0} and {1} of feature {2} differ in tier but price meters of one request")]
    MixedTiers(usize, usize, Id),
}

/// A rate card that was checked, with its rates found by feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateCard {
    file: RateCardFile,
    /// Indexes into the file's rates by feature, most specific first.
    by_feature: BTreeMap<Id, Vec<usize>>,
}

/// How much of what a request asks for, by meter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measure<'a> {
    /// The meter's name; `None` for a route's only meter.
    pub meter: Option<&'a str>,
    /// Millionths of the unit.
    pub quantity: u64,
}

/// An exact price, each of its two sides rounded up once (D21, D25).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// What a seat pays.
    pub cost: Credits,
    /// What the pool would pay for the whole.
    pub operations: Operations,
}

impl Price {
    /// The price of other credits, in the proportion of this one (D25: the Operations of a part
    /// are rounded up).
    pub fn of_cost(&self, cost: Credits) -> Option<Self> {
        let held = self.cost.micro();
        if held == 0 {
            return (cost == Credits::ZERO).then(Self::default);
        }
        let operations = prorate_up(self.operations.micro(), cost.micro(), held);
        Some(Self { cost, operations: Operations::from_micro(operations)? })
    }
}

/// What a request would cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// The price.
    pub price: Price,
    /// Whether it debits at all.
    pub tier: Tier,
    /// False where only seats may pay.
    pub pool: bool,
    /// The rate card's version (D23).
    pub rate_card: Id,
}

/// The attributes of a request: names with values.
pub type Attributes<'a> = [(&'a str, &'a str)];

impl RateCard {
    /// Checks a card and sorts its rates.
    ///
    /// # Errors
    /// The first [`RateCardError`] found; a card with one is not used at all.
    pub fn new(file: RateCardFile) -> Result<Self, RateCardError> {
        let mut by_feature: BTreeMap<Id, Vec<usize>> = BTreeMap::new();
        for (index, rate) in file.rates.iter().enumerate() {
            check_rate(index, rate, &file)?;
            by_feature.entry(rate.feature.clone()).or_default().push(index);
        }
        for (feature, indexes) in &mut by_feature {
            check_pairs(feature, indexes, &file.rates)?;
            indexes.sort_by_key(|&index| std::cmp::Reverse(file.rates[index].when.len()));
        }
        Ok(Self { file, by_feature })
    }

    /// The card as it is written.
    pub fn file(&self) -> &RateCardFile {
        &self.file
    }

    /// Prices a request: the exact sum over its meters, rounded up once.
    ///
    /// # Errors
    /// `unpriced` where a meter has no rate (D22), `unquotable` where the price is beyond what
    /// an amount can hold (f57).
    pub fn quote(
        &self,
        feature: &str,
        attributes: &Attributes<'_>,
        measures: &[Measure<'_>],
    ) -> Result<Quote, Refusal> {
        let rates = self.matching(feature, attributes, measures)?;
        let tier = rates.first().map_or(Tier::Standard, |(rate, _)| rate.tier);
        let price = match tier {
            Tier::Standard => Price::default(),
            Tier::Premium => self.price(&rates).ok_or_else(too_dear)?,
        };
        Ok(Quote {
            price,
            tier,
            pool: rates.iter().all(|(rate, _)| rate.pool),
            rate_card: self.file.version.clone(),
        })
    }

    /// The rate of each measure, with its quantity; there is at least one.
    fn matching(
        &self,
        feature: &str,
        attributes: &Attributes<'_>,
        measures: &[Measure<'_>],
    ) -> Result<SmallVec<[(&Rate, u64); 4]>, Refusal> {
        let indexes = self.by_feature.get(feature).map_or(&[][..], Vec::as_slice);
        let mut rates = SmallVec::new();
        for measure in measures {
            let rate = indexes.iter().map(|&index| &self.file.rates[index]).find(|rate| {
                rate.meter.as_ref().map(Id::as_str) == measure.meter
                    && rate.when.iter().all(|(name, value)| {
                        attributes.iter().any(|(n, v)| *n == name.as_str() && v == value)
                    })
            });
            let rate = rate.ok_or_else(|| unpriced(&self.file.version, measure, attributes))?;
            rates.push((rate, measure.quantity));
        }
        if rates.is_empty() {
            return Err(Refusal::new(Code::Unpriced, "the request has nothing to measure"));
        }
        Ok(rates)
    }

    fn price(&self, rates: &[(&Rate, u64)]) -> Option<Price> {
        let ratio = self.file.operations_per_credit;
        if let [(rate, quantity)] = rates {
            // The usual request has one meter; these products fit for every honest price, and
            // where they do not the exact sum below decides.
            let credits = rate.credits?;
            let fast = ceil_product(*quantity, credits).zip(match rate.operations {
                Some(own) => ceil_product(*quantity, own),
                None => ceil_product_of_two(*quantity, credits, ratio),
            });
            if let Some((cost, operations)) = fast {
                return Some(Price {
                    cost: Credits::from_micro(cost)?,
                    operations: Operations::from_micro(operations)?,
                });
            }
        }
        let applied = rates.iter().map(|(rate, quantity)| Some((rate.applied()?, *quantity)));
        total(applied, ratio)
    }
}

impl Rate {
    /// What it takes of each unit; `None` for a standard rate.
    fn applied(&self) -> Option<AppliedRate> {
        Some(AppliedRate { credits: self.credits?, operations: self.operations })
    }
}

/// The exact sum over meters, each side rounded up once (D21, D41).
fn total(
    rates: impl Iterator<Item = Option<(AppliedRate, u64)>>,
    operations_per_credit: Ratio,
) -> Option<Price> {
    let (mut cost, mut operations) = (Fraction::ZERO, Fraction::ZERO);
    for rate in rates {
        let (rate, quantity) = rate?;
        let credits = Fraction::integer(quantity).times(rate.credits)?;
        let own = match rate.operations {
            Some(own) => Fraction::integer(quantity).times(own)?,
            None => credits.times(operations_per_credit)?,
        };
        cost = cost.plus(credits)?;
        operations = operations.plus(own)?;
    }
    Some(Price {
        cost: Credits::from_micro(cost.ceil()?)?,
        operations: Operations::from_micro(operations.ceil()?)?,
    })
}

/// `⌈quantity · ratio⌉`, or `None` beyond the bound of an amount.
fn ceil_product(quantity: u64, ratio: Ratio) -> Option<u64> {
    let (numerator, denominator) = ratio.parts();
    let whole = (u128::from(quantity) * numerator).div_ceil(denominator);
    u64::try_from(whole).ok().filter(|&micro| micro <= MAX_MICRO)
}

/// `⌈quantity · a · b⌉`, or `None` where a product does not fit.
fn ceil_product_of_two(quantity: u64, a: Ratio, b: Ratio) -> Option<u64> {
    let (a_numerator, a_denominator) = a.parts();
    let (b_numerator, b_denominator) = b.parts();
    let numerator = (u128::from(quantity) * a_numerator).checked_mul(b_numerator)?;
    let whole = numerator.div_ceil(a_denominator.checked_mul(b_denominator)?);
    u64::try_from(whole).ok().filter(|&micro| micro <= MAX_MICRO)
}

fn check_rate(index: usize, rate: &Rate, file: &RateCardFile) -> Result<(), RateCardError> {
    let feature = || rate.feature.clone();
    match rate.tier {
        Tier::Standard if rate.credits.is_some() || rate.operations.is_some() => {
            Err(RateCardError::PricedStandard(index, feature()))
        }
        Tier::Standard => Ok(()),
        Tier::Premium if rate.credits.is_none_or(Ratio::is_zero) => {
            Err(RateCardError::NoCredits(index, feature()))
        }
        Tier::Premium => {
            let operations = rate.operations.unwrap_or(file.operations_per_credit);
            if rate.pool && operations.is_zero() {
                return Err(RateCardError::NoOperations(index, feature()));
            }
            Ok(())
        }
    }
}

fn check_pairs(feature: &Id, indexes: &[usize], rates: &[Rate]) -> Result<(), RateCardError> {
    for (at, &left) in indexes.iter().enumerate() {
        for &right in &indexes[at + 1..] {
            let (a, b) = (&rates[left], &rates[right]);
            let harmless =
                if a.meter == b.meter { a.when.len() != b.when.len() } else { a.tier == b.tier };
            if harmless || !compatible(a, b) {
                continue;
            }
            // Some request meets the conditions of both. That is fine where a more specific rate
            // takes every such request away from one of them.
            let mut both = a.when.clone();
            both.extend(b.when.clone());
            let outdone = |rate: &Rate| {
                indexes.iter().map(|&index| &rates[index]).any(|other| {
                    other.meter == rate.meter
                        && other.when.len() > rate.when.len()
                        && other.when.iter().all(|(name, value)| both.get(name) == Some(value))
                })
            };
            if outdone(a) || outdone(b) {
                continue;
            }
            return Err(if a.meter == b.meter {
                RateCardError::Ambiguous(left, right, feature.clone())
            } else {
                RateCardError::MixedTiers(left, right, feature.clone())
            });
        }
    }
    Ok(())
}

/// True when one request can meet the conditions of both.
fn compatible(a: &Rate, b: &Rate) -> bool {
    a.when.iter().all(|(name, value)| b.when.get(name).is_none_or(|other| other == value))
}

fn unpriced(version: &Id, measure: &Measure<'_>, attributes: &Attributes<'_>) -> Refusal {
    let listed: Vec<String> =
        attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let meter = measure.meter.map(|meter| format!(", meter {meter}")).unwrap_or_default();
    Refusal::new(
        Code::Unpriced,
        format!(
            "rate card {version} has no rate for this feature with [{}]{meter}",
            listed.join(", ")
        ),
    )
}

fn too_dear() -> Refusal {
    Refusal::new(Code::Unquotable, "the cost is beyond the largest amount, 9007199254.740991")
}

#[cfg(test)]
mod tests;
