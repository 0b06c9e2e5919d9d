//! Attributes: what else a price depends on.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::value::RawValue;

use super::content::Content;
use super::place::{Found, Place};
use super::{Asked, Pricing, unquotable};
use crate::config;
use crate::core::ids::Id;
use crate::core::refusal::Refusal;

/// Where an attribute is read, and what its values are called in rates.
#[derive(Debug)]
pub struct Attribute {
    /// Its name, as rates have it.
    pub name: Id,
    /// Where it is read.
    pub place: Place,
    default: Option<Arc<str>>,
    map: Option<BTreeMap<String, Arc<str>>>,
}

impl Pricing {
    /// Compiles where an attribute is read.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn attribute(&mut self, name: Id, from: &config::Attribute) -> Result<(), String> {
        if !from.is_one_place() {
            return Err(format!("`{name}` needs {}", config::Attribute::EXPECTED));
        }
        let config::Attribute { json, header, query, path, form, .. } = from;
        let place = self.place([json, header, query, path, form])?;
        let map = from.map.as_ref().map(|map| {
            let shared = |(key, value): (&String, &String)| (key.clone(), value.as_str().into());
            map.iter().map(shared).collect()
        });
        let default = from.constant.as_ref().or(from.default.as_ref());
        let default = default.map(|text| text.as_str().into());
        self.attributes.push(Attribute { name, place, default, map });
        Ok(())
    }
}

impl Attribute {
    /// Its value in a request; `None` where it has none.
    ///
    /// # Errors
    /// `unquotable` for what cannot be read, or is not in its map.
    pub fn read<'a>(
        &self,
        asked: &Asked<'a>,
        content: &Content<'a>,
    ) -> Result<Option<Arc<str>>, Refusal> {
        let text = match self.place.find(asked, content)? {
            None => return Ok(self.default.clone()),
            Some(Found::Json(raw)) => self.scalar(raw)?,
            Some(Found::Text(text)) => text,
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
