//! Quotes: how much a request asks for, with which attributes, and what that costs.
//!
//! Every place is compiled at load. A quantity or attribute that is there but cannot be read is
//! `unquotable`; a default stands for absence only.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName};
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::Refused;
use super::pick::{Picked, Picker};
use super::route::Metered;
use super::screen::looks_like;
use super::usage::Rules;
use crate::config;
use crate::core::amount::parse_micro;
use crate::core::ids::Id;
use crate::core::price::{Measure, Quote, RateCard};
use crate::core::refusal::{Code, Refusal};

/// Where everything that decides a price is read.
#[derive(Debug, Default)]
pub struct Pricing {
    /// What is counted; at least one.
    pub meters: Vec<Meter>,
    attributes: Vec<Attribute>,
    /// Pointers into the request's body.
    request: Picker,
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

/// Where a quantity is read.
#[derive(Debug)]
pub struct Quantity {
    place: Place,
    default: Option<u64>,
}

#[derive(Debug)]
struct Attribute {
    name: Id,
    place: Place,
    default: Option<Arc<str>>,
    map: Option<BTreeMap<String, Arc<str>>>,
}

#[derive(Debug)]
enum Place {
    Json(usize),
    Header(HeaderName),
    Query(String),
    Path(String),
    /// The default is the value.
    Constant,
}

/// What of a request may decide its price.
pub struct Asked<'a> {
    /// Its headers, without those that are not forwarded.
    pub headers: &'a HeaderMap,
    /// Its query, as received.
    pub query: Option<&'a str>,
    /// Its path parameters.
    pub params: &'a matchit::Params<'a, 'a>,
    /// Its body, where the route reads it.
    pub body: &'a [u8],
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
}

fn unquotable(detail: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::new(Code::Unquotable, detail)
}

impl Pricing {
    /// True when the request's body decides the price, so that it must be held.
    pub fn reads_body(&self) -> bool {
        !self.request.is_empty()
    }

    /// Names of path parameters that are read.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        let places = self.meters.iter().map(|meter| &meter.quantity.place);
        let places = places.chain(self.attributes.iter().map(|attribute| &attribute.place));
        places.filter_map(|place| match place {
            Place::Path(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Headers that are read.
    pub fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        let places = self.meters.iter().map(|meter| &meter.quantity.place);
        let places = places.chain(self.attributes.iter().map(|attribute| &attribute.place));
        places.filter_map(|place| match place {
            Place::Header(name) => Some(name),
            _ => None,
        })
    }

    /// Compiles where a quantity is read; without a place it counts one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn quantity(&mut self, from: Option<&config::Quantity>) -> Result<Quantity, String> {
        let one = config::Quantity {
            constant: Some(config::Number::Whole(1)),
            ..config::Quantity::default()
        };
        let from = from.unwrap_or(&one);
        let number = |number: &config::Number| {
            let text = match number {
                config::Number::Whole(whole) => Cow::Owned(whole.to_string()),
                config::Number::Decimal(text) => Cow::Borrowed(text.as_str()),
            };
            parse_micro(&text).map_err(|error| format!("quantity {text:?}: {error}"))
        };
        let constant = from.constant.as_ref().map(number).transpose()?;
        let default = from.default.as_ref().map(number).transpose()?;
        let place = self.place(
            [&from.json, &from.header, &from.query, &from.path],
            constant.is_some(),
            "quantity",
        )?;
        Ok(Quantity { place, default: constant.or(default) })
    }

    /// Compiles where an attribute is read.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn attribute(&mut self, name: Id, from: &config::Attribute) -> Result<(), String> {
        let place = self.place(
            [&from.json, &from.header, &from.query, &from.path],
            from.constant.is_some(),
            name.as_str(),
        )?;
        let map = from.map.as_ref().map(|map| {
            let shared = |(key, value): (&String, &String)| (key.clone(), value.as_str().into());
            map.iter().map(shared).collect()
        });
        let default = from.constant.as_ref().or(from.default.as_ref());
        let default = default.map(|text| text.as_str().into());
        self.attributes.push(Attribute { name, place, default, map });
        Ok(())
    }

    fn place(
        &mut self,
        [json, header, query, path]: [&Option<String>; 4],
        constant: bool,
        what: &str,
    ) -> Result<Place, String> {
        match (json, header, query, path, constant) {
            (Some(pointer), None, None, None, false) => {
                Ok(Place::Json(self.request.add(pointer).map_err(|error| error.to_string())?))
            }
            (None, Some(name), None, None, false) => {
                let name = name.parse().map_err(|_| format!("{name:?} is not a header's name"))?;
                Ok(Place::Header(name))
            }
            (None, None, Some(name), None, false) => Ok(Place::Query(name.clone())),
            (None, None, None, Some(name), false) => Ok(Place::Path(name.clone())),
            (None, None, None, None, true) => Ok(Place::Constant),
            _ => Err(format!("`{what}` needs exactly one of json, header, query, path, const")),
        }
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
        let mut picked = Picked::new();
        if self.reads_body() {
            if asked.headers.contains_key(CONTENT_ENCODING) {
                return Err(unquotable("a body that is priced must not be encoded").into());
            }
            if is_form(asked.headers) {
                return Err(unquotable("a body that is priced is JSON and not a form").into());
            }
            if !is_utf8(asked.headers) {
                return Err(unquotable("a body that is priced is in UTF-8").into());
            }
            picked = self.request.pick_strictly(asked.body).map_err(|error| {
                unquotable(format!("the body is not the JSON that is priced: {error}"))
            })?;
        }
        let mut quantities = SmallVec::new();
        for meter in &self.meters {
            quantities.push(meter.quantity.read(asked, &picked)?);
        }
        let mut values = SmallVec::new();
        for attribute in &self.attributes {
            values.push(attribute.read(asked, &picked)?);
        }
        let quote = self.price(card, feature, &quantities, &values)?;
        Ok(Quoted { card: Arc::clone(card), quote, quantities, values })
    }

    fn price(
        &self,
        card: &RateCard,
        feature: &str,
        quantities: &[u64],
        values: &[Option<Arc<str>>],
    ) -> Result<Quote, Refusal> {
        let measures: SmallVec<[Measure<'_>; 2]> = (self.meters.iter().zip(quantities))
            .map(|(meter, &quantity)| Measure {
                meter: meter.name.as_ref().map(Id::as_str),
                quantity,
            })
            .collect();
        let attributes: SmallVec<[(&str, &str); 4]> = (self.attributes.iter().zip(values))
            .filter_map(|(attribute, value)| Some((attribute.name.as_str(), value.as_deref()?)))
            .collect();
        card.quote(feature, &attributes, &measures)
    }
}

impl Quantity {
    fn read(&self, asked: &Asked<'_>, picked: &Picked<'_>) -> Result<u64, Refusal> {
        let text = match &self.place {
            Place::Json(at) => match picked[*at] {
                None => None,
                Some(raw) => return quantity_of(raw).ok_or_else(|| bad_quantity(raw.get())),
            },
            place => place.text(asked)?,
        };
        match (text, self.default) {
            (Some(text), _) => parse_micro(&text).map_err(|_| bad_quantity(&text)),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(unquotable("the request does not say how much it asks for")),
        }
    }
}

fn bad_quantity(text: &str) -> Refusal {
    let shown: String = text.chars().take(32).collect();
    unquotable(format!(
        "a quantity is a non-negative number with at most six decimals, got {shown:?}"
    ))
}

/// A quantity as JSON tells it: a number, or a string that holds one. The text is read as it
/// stands, so that no double ever stands between (f56).
pub fn quantity_of(raw: &RawValue) -> Option<u64> {
    let text = raw.get();
    if !text.starts_with('"') {
        return parse_micro(text).ok();
    }
    let text: Cow<'_, str> = serde_json::from_str(text).ok()?;
    parse_micro(&text).ok()
}

impl Attribute {
    fn read(&self, asked: &Asked<'_>, picked: &Picked<'_>) -> Result<Option<Arc<str>>, Refusal> {
        let text = match &self.place {
            Place::Json(at) => match picked[*at] {
                None => None,
                Some(raw) => Some(self.scalar(raw)?),
            },
            place => place.text(asked)?,
        };
        let Some(text) = text else {
            return Ok(self.default.clone());
        };
        match &self.map {
            Some(map) => match map.get(&*text) {
                Some(value) => Ok(Some(Arc::clone(value))),
                None => Err(self.unmapped(map)),
            },
            None if text.len() <= MAX_VALUE => Ok(Some(text.into())),
            None => Err(unquotable(format!("the value of `{}` is too long", self.name))),
        }
    }

    fn scalar<'a>(&self, raw: &'a RawValue) -> Result<Cow<'a, str>, Refusal> {
        let text = raw.get();
        let refuse = || {
            unquotable(format!("the value of `{}` is neither text, number nor boolean", self.name))
        };
        match text.as_bytes().first() {
            // A text without escapes is what stands between its quotes.
            Some(b'"') => match text.get(1..text.len() - 1).filter(|text| !text.contains('\\')) {
                Some(plain) => Ok(Cow::Borrowed(plain)),
                None => serde_json::from_str(text).map(Cow::Owned).map_err(|_| refuse()),
            },
            Some(b'{' | b'[' | b'n') | None => Err(refuse()),
            Some(_) => Ok(Cow::Borrowed(text)),
        }
    }

    fn unmapped(&self, map: &BTreeMap<String, Arc<str>>) -> Refusal {
        let accepted: Vec<&str> = map.keys().map(String::as_str).collect();
        unquotable(format!("`{}` takes one of: {}", self.name, accepted.join(", ")))
    }
}

/// The longest attribute value that is looked up without a map, in bytes.
const MAX_VALUE: usize = 256;

impl Place {
    /// The text at any place but JSON; `None` where absent.
    fn text<'a>(&self, asked: &Asked<'a>) -> Result<Option<Cow<'a, str>>, Refusal> {
        match self {
            Place::Header(name) => {
                if asked.headers.keys().any(|other| other != name && is_like(other, name)) {
                    return Err(unquotable(format!("a header could be taken for {name}")));
                }
                let mut values = asked.headers.get_all(name).iter();
                match (values.next(), values.next()) {
                    (None, _) => Ok(None),
                    (Some(value), None) => match value.to_str() {
                        Ok(text) => Ok(Some(Cow::Borrowed(text.trim()))),
                        Err(_) => Err(unquotable(format!("the header {name} is not plain text"))),
                    },
                    _ => Err(unquotable(format!("the header {name} is there twice"))),
                }
            }
            Place::Query(name) => query(asked.query.unwrap_or_default(), name),
            Place::Path(name) => match asked.params.get(name) {
                None => Ok(None),
                Some(text) => Ok(Some(unescape(text, false)?)),
            },
            Place::Json(_) | Place::Constant => Ok(None),
        }
    }
}

fn is_like(one: &HeaderName, other: &HeaderName) -> bool {
    looks_like(one.as_str().as_bytes(), other.as_str().as_bytes())
}

/// True for a body that a backend reads as a form's fields, whatever else it could be read as.
fn is_form(headers: &HeaderMap) -> bool {
    let told = headers.iter().filter(|(name, _)| is_like(name, &CONTENT_TYPE));
    let mut parts = told.flat_map(|(_, value)| value.as_bytes().split(|b| b";,".contains(b)));
    parts.any(|part| {
        let (part, multipart) = (part.trim_ascii(), b"multipart/");
        part.eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
            || part.get(..multipart.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(multipart))
    })
}

/// True unless a body is said to be in another character encoding than JSON's: a backend that
/// believes it reads other characters.
fn is_utf8(headers: &HeaderMap) -> bool {
    let told = headers.iter().filter(|(name, _)| is_like(name, &CONTENT_TYPE));
    let mut parameters = told.flat_map(|(_, value)| value.as_bytes().split(|b| b";,".contains(b)));
    parameters.all(|parameter| {
        let mut sides = parameter.splitn(2, |&byte| byte == b'=');
        let name = sides.next().unwrap_or_default().trim_ascii();
        let Some(value) = sides.next() else { return true };
        let value = value.trim_ascii();
        let value = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
        !name.eq_ignore_ascii_case(b"charset") || value.eq_ignore_ascii_case(b"utf-8")
    })
}

/// The value of a parameter. What some backend could read as another value of it is refused.
fn query<'a>(query: &'a str, name: &str) -> Result<Option<Cow<'a, str>>, Refusal> {
    // Some split at semicolons, and some end at a NUL.
    if query.contains(';') || query.contains("%00") {
        return Err(unquotable("a query that is priced must not have a semicolon or NUL"));
    }
    let mut found = None;
    for pair in query.split('&') {
        let (spelt, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = unescape(spelt, true)?;
        if key == name && !escapes_needlessly(spelt) {
            if found.is_some() {
                return Err(unquotable(format!("the parameter {name} is there twice")));
            }
            found = Some(unescape(value, true)?);
            continue;
        }
        // Some resolve escapes twice.
        let again = unescape(&key, true).unwrap_or(Cow::Borrowed(&key));
        if key_looks_like(&again, name) {
            return Err(unquotable(format!("a parameter could be taken for {name}")));
        }
    }
    Ok(found)
}

/// True where an escape stands for what needs none (RFC 3986, 2.3): a client that means a name
/// to be read writes it plainly.
fn escapes_needlessly(text: &str) -> bool {
    text.split('%').skip(1).any(|rest| {
        let byte = rest.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
    })
}

/// True for keys of a query that readers take for a name that ignore case, trim, make
/// underscores of what a variable's name cannot have, or make a list of `name[]`.
fn key_looks_like(key: &str, name: &str) -> bool {
    // Upper case first, as the keys of bodies are compared.
    let fold = |c: char| {
        let plain = if c.is_alphanumeric() || c == '[' { c } else { '_' };
        plain.to_uppercase().flat_map(char::to_lowercase)
    };
    let mut key = key.trim().chars().flat_map(fold);
    let mut name = name.trim().chars().flat_map(fold);
    name.all(|c| key.next() == Some(c)) && matches!(key.next(), None | Some('['))
}

/// Resolves escapes, and `+` in a query.
pub fn unescape(text: &str, plus: bool) -> Result<Cow<'_, str>, Refusal> {
    if !text.bytes().any(|byte| byte == b'%' || (plus && byte == b'+')) {
        return Ok(Cow::Borrowed(text));
    }
    let broken = || unquotable("a parameter has a broken escape");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut hex = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                let (high, low) = hex().zip(hex()).ok_or_else(broken)?;
                (high * 16 + low) as u8
            }
            b'+' if plus => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).map(Cow::Owned).map_err(|_| broken())
}

#[cfg(test)]
mod tests;
