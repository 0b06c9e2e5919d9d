//! Places of a request where a text or a number may stand.

use std::borrow::Cow;

use http::header::HeaderName;
use serde_json::value::RawValue;

use super::content::{Content, is_like};
use super::query::{parameter, unescape};
use super::{Asked, Pricing, unquotable};
use crate::core::refusal::Refusal;

/// Where something is read.
#[derive(Debug)]
pub enum Place {
    /// What a pointer into the body leads to, by its number.
    Json(usize),
    /// A header.
    Header(HeaderName),
    /// A parameter of the query.
    Query(String),
    /// A parameter of the path.
    Path(String),
    /// A field of a form.
    Form(String),
    /// Nowhere: its default is its value.
    Constant,
}

/// What stands at a place.
pub enum Found<'a> {
    /// A value of JSON, as it is written.
    Json(&'a RawValue),
    /// A text.
    Text(Cow<'a, str>),
}

impl Pricing {
    /// Compiles where something is read: the one place that is named, in the order json, header,
    /// query, path, form.
    pub(super) fn place(&mut self, named: [&Option<String>; 5]) -> Result<Place, String> {
        Ok(match named.map(Option::as_deref) {
            [Some(pointer), ..] => Place::Json(self.pointer(pointer)?),
            [_, Some(name), ..] => {
                let name = name.parse().map_err(|_| format!("{name:?} is not a header's name"))?;
                Place::Header(name)
            }
            [_, _, Some(name), ..] => Place::Query(name.to_owned()),
            [_, _, _, Some(name), _] => Place::Path(name.to_owned()),
            [.., Some(name)] => {
                self.form = true;
                Place::Form(name.to_owned())
            }
            _ => Place::Constant,
        })
    }

    pub(super) fn pointer(&mut self, pointer: &str) -> Result<usize, String> {
        self.request.add(pointer).map_err(|error| error.to_string())
    }
}

impl Place {
    /// What a request has there; `None` where it has nothing.
    ///
    /// # Errors
    /// `unquotable` where a backend could find something else.
    pub fn find<'a>(
        &self,
        asked: &Asked<'a>,
        content: &Content<'a>,
    ) -> Result<Option<Found<'a>>, Refusal> {
        let text = match (self, content) {
            (Place::Json(at), Content::Json(picked)) => return Ok(picked[*at].map(Found::Json)),
            (Place::Form(name), Content::Form(form)) => {
                let text = form.text(name).map_err(|why| unquotable(why.to_string()))?;
                text.map(Cow::Borrowed)
            }
            (Place::Header(name), _) => header(asked, name)?,
            (Place::Query(name), _) => parameter(asked.query.unwrap_or_default(), name)?,
            (Place::Path(name), _) => match asked.params.get(name) {
                None => None,
                Some(text) => Some(unescape(text, false)?),
            },
            (Place::Json(_) | Place::Form(_) | Place::Constant, _) => None,
        };
        Ok(text.map(Found::Text))
    }
}

fn header<'a>(asked: &Asked<'a>, name: &HeaderName) -> Result<Option<Cow<'a, str>>, Refusal> {
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
