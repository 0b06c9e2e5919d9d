//! The rates that priced a charge, kept with it: what was really used has the same price also when
//! it is known much later, whatever became of the rate card (D23).

use serde::{Deserialize, Serialize};

use super::{Attributes, Measure, Price, RateCard, Tier, total};
use crate::core::amount::Ratio;
use crate::core::refusal::Refusal;

/// What one unit of a meter costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedRate {
    /// Credits per unit.
    pub credits: Ratio,
    /// Operations per unit, instead of the card's ratio (D20).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<Ratio>,
}

/// The rates of a charge, by meter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    /// Whether it debits at all.
    pub tier: Tier,
    /// Operations for one credit.
    pub operations_per_credit: Ratio,
    /// In the order of its meters; none for a standard feature.
    pub meters: Vec<AppliedRate>,
}

impl Rates {
    /// The price of quantities; `None` where it is beyond what an amount can hold, or where there
    /// are other meters than rates.
    pub fn price(&self, quantities: &[u64]) -> Option<Price> {
        match self.tier {
            Tier::Standard => Some(Price::default()),
            Tier::Premium if quantities.len() != self.meters.len() => None,
            Tier::Premium => {
                let rates = self.meters.iter().copied().zip(quantities.iter().copied());
                total(rates.map(Some), self.operations_per_credit)
            }
        }
    }
}

impl RateCard {
    /// The rates that price a request: those that [`RateCard::quote`] uses.
    ///
    /// # Errors
    /// `unpriced`, like a quote.
    pub fn rates(
        &self,
        feature: &str,
        attributes: &Attributes<'_>,
        measures: &[Measure<'_>],
    ) -> Result<Rates, Refusal> {
        let rates = self.matching(feature, attributes, measures)?;
        Ok(Rates {
            tier: rates.first().map_or(Tier::Standard, |(rate, _)| rate.tier),
            operations_per_credit: self.file.operations_per_credit,
            meters: rates.iter().filter_map(|(rate, _)| rate.applied()).collect(),
        })
    }
}
