//! What the bodies of quotes and holds ask for: a feature, how much of it, with which attributes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::super::Refused;
use super::super::identify::Caller;
use crate::core::amount::{MICRO, parse_micro};
use crate::core::ids::Id;
use crate::core::price::{Measure, Quote, RateCard, Rates};
use crate::core::refusal::{Code, Refusal};

/// The longest body, in bytes.
pub const MAX_BODY: u64 = 64 << 10;

/// A body of `quotes` or `holds`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked<'a> {
    /// For whom, where the key does not say.
    pub user: Option<Id>,
    /// The feature.
    pub feature: Id,
    #[serde(borrow, default, deserialize_with = "there")]
    quantity: Option<&'a RawValue>,
    #[serde(default)]
    attributes: BTreeMap<Id, String>,
    /// How long a hold lasts.
    pub ttl: Option<String>,
}

/// A value that is there, `null` too: that is no quantity.
pub fn there<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// Quantities by meter, in millionths; the only meter has no name.
pub type Quantities = Vec<(Option<Id>, u64)>;

/// Reads a body.
///
/// # Errors
/// `bad_request`, with what was expected.
pub fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refused> {
    let read = serde_json::from_slice(body);
    read.map_err(|error| Refusal::new(Code::BadRequest, format!("the body: {error}")).into())
}

impl Asked<'_> {
    /// Prices it by the card of who asks.
    ///
    /// # Errors
    /// `unquotable`, `unpriced`.
    pub fn price(&self, caller: &Caller, now: Timestamp) -> Result<Priced, Refusal> {
        let card: &RateCard = caller.org.card_for(caller.payer(), now)?;
        let quantities = match self.quantity {
            None => vec![(None, MICRO)],
            Some(raw) => quantities(raw.get())?,
        };
        let attributes: Vec<(&str, &str)> =
            self.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let measures = quantities.iter().map(|(meter, quantity)| Measure {
            meter: meter.as_ref().map(Id::as_str),
            quantity: *quantity,
        });
        let measures: Vec<Measure<'_>> = measures.collect();
        let feature = self.feature.as_str();
        let quote = card.quote(feature, &attributes, &measures)?;
        let rates = card.rates(feature, &attributes, &measures)?;
        Ok(Priced { quote, rates, quantities })
    }
}

/// What was asked for, priced.
pub struct Priced {
    /// The price.
    pub quote: Quote,
    /// How it came about.
    pub rates: Rates,
    /// Of how much.
    pub quantities: Quantities,
}

/// A quantity: a number or text, or an object of them by meter.
///
/// # Errors
/// `unquotable`.
pub fn quantities(raw: &str) -> Result<Quantities, Refusal> {
    if !raw.starts_with('{') {
        return Ok(vec![(None, micro(raw)?)]);
    }
    let meters: BTreeMap<Id, &RawValue> = serde_json::from_str(raw).map_err(|_| wrong())?;
    if meters.is_empty() {
        return Err(wrong());
    }
    let meter = |(name, raw): (Id, &RawValue)| Ok((Some(name), micro(raw.get())?));
    meters.into_iter().map(meter).collect()
}

fn micro(raw: &str) -> Result<u64, Refusal> {
    let text = match raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(text) => text,
        None => raw,
    };
    parse_micro(text).map_err(|_| wrong())
}

fn wrong() -> Refusal {
    let detail = "a quantity is a number with at most six decimals, or numbers by meter";
    Refusal::new(Code::Unquotable, detail)
}
