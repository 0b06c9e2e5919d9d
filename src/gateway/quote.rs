//! Quotes: how much a request asks for, with which attributes, and what that costs.
//!
//! Every place is compiled at load. A quantity or attribute that is there but cannot be read is
//! `unquotable`; a default stands for absence only.

mod attribute;
pub mod content;
mod place;
mod quantity;
mod query;

use std::borrow::Cow;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderName};
use smallvec::SmallVec;

use super::Refused;
use super::pick::Picker;
use super::route::Metered;
use super::usage::Rules;
use crate::core::amount::MICRO;
use crate::core::ids::Id;
use crate::core::price::{Measure, Quote, RateCard, Rates};
use crate::core::refusal::{Code, Refusal};
use attribute::Attribute;
use content::Content;
use place::Place;
pub use quantity::{Quantity, quantity_of};
pub use query::{key_looks_like, parameter, unescape};

/// Where everything that decides a price is read.
#[derive(Debug, Default)]
pub struct Pricing {
    /// What is counted; at least one.
    pub meters: Vec<Meter>,
    attributes: Vec<Attribute>,
    /// Pointers into the request's body.
    request: Picker,
    /// Its body is a form.
    form: bool,
    /// Its body's bytes are counted.
    bytes: bool,
    /// Where the actual usage of each of them is told.
    pub usage: Arc<Rules>,
}

/// One thing that is counted.
#[derive(Debug)]
pub struct Meter {
    /// Its name; `None` for a route's only meter.
    pub name: Option<Id>,
    /// Where the quantity is read.
    pub quantity: Quantity,
}

/// What of a request may decide its price.
pub struct Asked<'a> {
    /// Its headers, without those that are not forwarded.
    pub headers: &'a HeaderMap,
    /// Its query, as received.
    pub query: Option<&'a str>,
    /// Its path parameters.
    pub params: &'a matchit::Params<'a, 'a>,
    /// Its body, where it is held.
    pub body: &'a [u8],
    /// How long its body is, held or not.
    pub length: u64,
}

/// A priced request: everything a capture needs to price what was really used.
#[derive(Clone, Debug)]
pub struct Quoted {
    /// The card it was priced by (D23).
    pub card: Arc<RateCard>,
    /// The price.
    pub quote: Quote,
    /// What it asks for, by meter, in millionths.
    pub quantities: SmallVec<[u64; 2]>,
    /// Attribute values, by the route's attributes; `None` where absent.
    values: SmallVec<[Option<Arc<str>>; 4]>,
}

impl Quoted {
    /// The price of other quantities under the same card and attributes.
    ///
    /// # Errors
    /// `unquotable` when the price is beyond what an amount can hold.
    pub fn again(&self, metered: &Metered, quantities: &[u64]) -> Result<Quote, Refusal> {
        metered.pricing.price(&self.card, metered.feature.as_str(), quantities, &self.values)
    }

    /// The rates of its price, to be kept with its charge.
    ///
    /// # Errors
    /// None for what was priced.
    pub fn rates(&self, metered: &Metered) -> Result<Rates, Refusal> {
        let (feature, pricing) = (metered.feature.as_str(), &metered.pricing);
        let measures = pricing.measures(&self.quantities);
        self.card.rates(feature, &pricing.named(&self.values), &measures)
    }
}

impl Quoted {
    /// Asks for one of each meter at least where slices are held: nothing is none.
    ///
    /// # Errors
    /// `unquotable` when the price is beyond what an amount can hold.
    pub fn hold_something(&mut self, metered: &Metered) -> Result<(), Refusal> {
        if metered.sliced && self.quantities.iter().any(|quantity| *quantity < MICRO) {
            self.quantities.iter_mut().for_each(|quantity| *quantity = (*quantity).max(MICRO));
            self.quote = self.again(metered, &self.quantities)?;
        }
        Ok(())
    }
}

/// The refusal of a request whose price cannot be read.
pub fn unquotable(detail: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::new(Code::Unquotable, detail)
}

impl Pricing {
    /// True when the request's body must be held to be priced. Its length may be known before.
    pub fn holds_body(&self, length: Option<u64>) -> bool {
        !self.request.is_empty() || self.form || (self.bytes && length.is_none())
    }

    /// True where the body would be read as JSON (`json` says that something else reads it so) and
    /// as a form, and no body is both.
    pub fn is_torn(&self, json: bool) -> bool {
        self.form && (json || !self.request.is_empty())
    }

    /// Names of path parameters that are read.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        let places = self.meters.iter().flat_map(|meter| meter.quantity.places());
        let places = places.chain(self.attributes.iter().map(|attribute| &attribute.place));
        places.filter_map(|place| match place {
            Place::Path(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Headers that are read.
    pub fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        let places = self.meters.iter().flat_map(|meter| meter.quantity.places());
        let places = places.chain(self.attributes.iter().map(|attribute| &attribute.place));
        places.filter_map(|place| match place {
            Place::Header(name) => Some(name),
            _ => None,
        })
    }

    /// Prices a request by a rate card.
    ///
    /// # Errors
    /// `unquotable` for what cannot be read, `unpriced` for what has no rate.
    pub fn quote(
        &self,
        feature: &str,
        card: &Arc<RateCard>,
        asked: &Asked<'_>,
    ) -> Result<Quoted, Refused> {
        let content = self.content(asked)?;
        let mut quantities = SmallVec::new();
        for meter in &self.meters {
            quantities.push(meter.quantity.read(asked, &content)?);
        }
        let mut values = SmallVec::new();
        for attribute in &self.attributes {
            values.push(attribute.read(asked, &content)?);
        }
        let quote = self.price(card, feature, &quantities, &values)?;
        Ok(Quoted { card: Arc::clone(card), quote, quantities, values })
    }

    fn content<'a>(&self, asked: &Asked<'a>) -> Result<Content<'a>, Refusal> {
        if self.bytes || self.form || !self.request.is_empty() {
            content::refuse_encoded(asked.headers)?;
        }
        if self.form {
            return Ok(Content::Form(content::form(asked.headers, asked.body)?));
        }
        if self.request.is_empty() {
            return Ok(Content::Unread);
        }
        Ok(Content::Json(content::json(asked.headers, asked.body, &self.request)?))
    }

    fn price(
        &self,
        card: &RateCard,
        feature: &str,
        quantities: &[u64],
        values: &[Option<Arc<str>>],
    ) -> Result<Quote, Refusal> {
        card.quote(feature, &self.named(values), &self.measures(quantities))
    }

    fn measures(&self, quantities: &[u64]) -> SmallVec<[Measure<'_>; 2]> {
        (self.meters.iter().zip(quantities))
            .map(|(meter, &quantity)| Measure {
                meter: meter.name.as_ref().map(Id::as_str),
                quantity,
            })
            .collect()
    }

    fn named<'a>(&'a self, values: &'a [Option<Arc<str>>]) -> SmallVec<[(&'a str, &'a str); 4]> {
        let attributes = self.attributes.iter().zip(values);
        attributes
            .filter_map(|(attribute, value)| Some((attribute.name.as_str(), value.as_deref()?)))
            .collect()
    }
}

#[cfg(test)]
mod tests;
