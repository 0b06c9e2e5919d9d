//! Routes: what is metered, where quantities and usage are read, and what is charged.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::job::Job;
use super::text;
use crate::core::charge::InDoubt;
use crate::core::ids::Id;

/// What happens when a client leaves early (D33).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDisconnect {
    /// Read the backend to its end, settle on what it reports.
    #[default]
    Finish,
    /// Stop the backend, settle on what was delivered.
    Cancel,
}

/// A route: what is metered, where it goes, how it is priced.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The method; `None` for any.
    pub method: Option<String>,
    /// The path, in matchit's syntax.
    pub path: String,
    /// The upstream's name.
    pub upstream: Id,
    /// The feature it meters; required unless free.
    pub feature: Option<Id>,
    /// Authenticated and forwarded, not metered.
    #[serde(default)]
    pub free: bool,
    /// How much is asked for.
    pub quantity: Option<Quantity>,
    /// What else the price depends on.
    #[serde(default)]
    pub attributes: BTreeMap<Id, Attribute>,
    /// Where the actual usage is told.
    pub usage: Option<Usage>,
    /// Several meters (D41), each with its quantity and usage.
    #[serde(default)]
    pub meter: Vec<Meter>,
    /// Values set in a JSON request body before it is forwarded, by pointer.
    #[serde(default)]
    pub inject: BTreeMap<String, toml::Value>,
    /// They are set in requests that say this, and in all where it is absent.
    pub inject_when: Option<InjectWhen>,
    /// Which statuses are charged: `2xx` or `404`.
    #[serde(default = "defaults::charge_on")]
    pub charge_on: Vec<String>,
    /// finish or cancel.
    #[serde(default)]
    pub on_disconnect: OnDisconnect,
    /// void or capture, when the backend does not answer in time.
    #[serde(default)]
    pub on_timeout: InDoubt,
    /// void or capture, when the gateway died in between.
    #[serde(default)]
    pub in_doubt: InDoubt,
    /// The largest request body that is held to be priced.
    #[serde(default = "defaults::max_body", with = "text::size")]
    pub max_body: u64,
    /// `slice`: the hold is topped up as a stream runs.
    pub hold: Option<Hold>,
    /// What shows how far a stream has come, where it is held in slices.
    pub progress: Option<Progress>,
    /// last, sum or max, where usage is told several times.
    pub pick: Option<Pick>,
    /// The last SSE event of a stream is the receipt.
    #[serde(default)]
    pub sse_receipt: bool,
    /// `openai`: refusals in OpenAI's error body.
    pub compat: Option<Compat>,
    /// The status of refusals for lack of credit.
    pub exhausted_status: Option<u16>,
    /// enforce or observe.
    pub mode: Option<Mode>,
    /// `hold` or `capture`: another gateway forwards, and asks this one first.
    pub front: Option<Front>,
    /// What becomes of an `Idempotency-Key`.
    pub idempotency: Option<Idempotency>,
    /// What it answers is a job, and is charged by how that ends.
    pub job: Option<Job>,
}

/// How a hold is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// A slice at a time, topped up as the stream runs.
    Slice,
}

/// What shows how far a stream has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Progress {
    /// The usage that was told so far.
    #[default]
    Usage,
    /// That, and each event with data is at least one.
    Events,
}

/// Which usage counts where a stream tells it several times (f15).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pick {
    /// The last.
    #[default]
    Last,
    /// All of them together.
    Sum,
    /// The largest.
    Max,
}

/// Whose error body refusals are wrapped in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compat {
    /// OpenAI's.
    Openai,
}

/// Whether the decision is carried out (D28).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Refuse what cannot be paid.
    Enforce,
    /// Refuse nothing, record what would have been.
    Observe,
}

/// How a route that another gateway fronts is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Front {
    /// By the holds API.
    Hold,
    /// At once, when it is allowed.
    Capture,
}

/// What becomes of an `Idempotency-Key` (D35).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Idempotency {
    /// It is honoured where it is sent.
    #[default]
    Optional,
    /// A request without one is refused.
    Required,
    /// It is passed on, and means nothing to the gateway.
    Off,
}

/// One meter of a route.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Meter {
    /// Its name, as rates have it.
    pub name: Id,
    /// How much is asked for.
    pub quantity: Option<Quantity>,
    /// Where the actual usage is told.
    pub usage: Option<Usage>,
    /// What shows how far a stream has come, where it is held in slices.
    pub progress: Option<Progress>,
}

impl Route {
    /// Everything that is multiplied or counted on its own.
    pub fn factors(&self) -> impl Iterator<Item = &Quantity> {
        let meters = self.meter.iter().filter_map(|meter| meter.quantity.as_ref());
        self.quantity.iter().chain(meters).flat_map(Quantity::factors)
    }

    /// Pointers into the request's body that decide its price.
    pub fn pointers(&self) -> impl Iterator<Item = &str> {
        let counted = self.factors().flat_map(|quantity| [&quantity.json, &quantity.count]);
        let named = self.attributes.values().map(|attribute| &attribute.json);
        counted.chain(named).filter_map(|pointer| pointer.as_deref())
    }

    /// Whether its price is read from a form.
    pub fn reads_form(&self) -> bool {
        self.factors().any(|quantity| {
            let Quantity { form, form_bytes, form_files, .. } = quantity;
            [form, form_bytes, form_files].into_iter().any(Option::is_some)
        }) || self.attributes.values().any(|attribute| attribute.form.is_some())
    }
}

/// Which requests are given the values of `inject`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct InjectWhen {
    /// A JSON pointer into the request body (RFC 6901).
    pub json: String,
    /// What is there.
    pub equals: Equals,
}

/// What a request says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged, expecting = "true, false or a text")]
pub enum Equals {
    /// Yes or no.
    Flag(bool),
    /// A text.
    Text(String),
}

/// Where a quantity is read: exactly one place, and what its absence means.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quantity {
    /// A JSON pointer into the request body (RFC 6901).
    pub json: Option<String>,
    /// A JSON pointer to an array, whose items are counted.
    pub count: Option<String>,
    /// A header's name.
    pub header: Option<String>,
    /// A query parameter's name.
    pub query: Option<String>,
    /// A path parameter's name.
    pub path: Option<String>,
    /// The name of a form's field.
    pub form: Option<String>,
    /// The name of a form's field whose files' bytes are counted.
    pub form_bytes: Option<String>,
    /// The name of a form's field whose files are counted.
    pub form_files: Option<String>,
    /// The request body itself.
    pub body: Option<Measured>,
    /// The product of these, none of which is a product.
    pub times: Option<Vec<Quantity>>,
    /// Always this.
    #[serde(rename = "const")]
    pub constant: Option<Number>,
    /// When the place is absent.
    pub default: Option<Number>,
}

impl Quantity {
    /// What [`Quantity::is_one_place`] expects.
    pub const EXPECTED: &str = "exactly one of json, count, header, query, path, form, form_bytes, form_files, body, times, const";

    /// How many factors a product has. More than four that come to an amount may not fit into an
    /// integer of 128 bits on the way there.
    pub const FACTORS: std::ops::RangeInclusive<usize> = 2..=4;

    /// Whether it names one place.
    pub fn is_one_place(&self) -> bool {
        let Self { json, count, header, query, path, form, form_bytes, form_files, .. } = self;
        let texts = [json, count, header, query, path, form, form_bytes, form_files];
        let named = texts.into_iter().filter(|text| text.is_some()).count();
        let others = [self.body.is_some(), self.times.is_some(), self.constant.is_some()];
        named + others.into_iter().filter(|there| *there).count() == 1
    }

    /// Its factors; one that is no product is its own.
    pub fn factors(&self) -> &[Self] {
        self.times.as_deref().unwrap_or(std::slice::from_ref(self))
    }
}

/// What is measured of a request body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Measured {
    /// Its bytes.
    Bytes,
}

/// A number in a file: `2`, or `"0.5"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged, expecting = "a whole number, or an exact decimal in quotes like \"0.5\"")]
pub enum Number {
    /// A whole number.
    Whole(u64),
    /// An exact decimal.
    Decimal(String),
}

/// Where an attribute is read, and what its values are called in rates.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attribute {
    /// A JSON pointer into the request body (RFC 6901).
    pub json: Option<String>,
    /// A header's name.
    pub header: Option<String>,
    /// A query parameter's name.
    pub query: Option<String>,
    /// A path parameter's name.
    pub path: Option<String>,
    /// The name of a form's field.
    pub form: Option<String>,
    /// Always this.
    #[serde(rename = "const")]
    pub constant: Option<String>,
    /// When the place is absent.
    pub default: Option<String>,
    /// From what is read to what rates say; a value that is not listed is refused.
    pub map: Option<BTreeMap<String, String>>,
}

impl Attribute {
    /// What [`Attribute::is_one_place`] expects.
    pub const EXPECTED: &str = "exactly one of json, header, query, path, form, const";

    /// Whether it names one place.
    pub fn is_one_place(&self) -> bool {
        let Self { json, header, query, path, form, constant, .. } = self;
        let texts = [json, header, query, path, form, constant];
        texts.into_iter().filter(|text| text.is_some()).count() == 1
    }
}

/// Where the actual usage is told: in one place. An endpoint that answers whole or as a stream
/// tells it in a body either way, so there may be a pointer for each kind of body.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Usage {
    /// A JSON pointer into the response body.
    pub json: Option<String>,
    /// A JSON pointer into the events of a stream.
    pub sse_json: Option<String>,
    /// A JSON pointer into the lines of a stream.
    pub ndjson_json: Option<String>,
    /// A response header's name.
    pub header: Option<String>,
    /// The name of a trailer that the response declares.
    pub trailer: Option<String>,
}

impl Usage {
    /// What [`Usage::is_one_place`] expects.
    pub const EXPECTED: &str = "exactly one of header, trailer, or of the pointers json, sse_json, ndjson_json at least one";

    /// Whether it names one place.
    pub fn is_one_place(&self) -> bool {
        let body = self.json.is_some() || self.sse_json.is_some() || self.ndjson_json.is_some();
        let places = [body, self.header.is_some(), self.trailer.is_some()];
        places.into_iter().filter(|named| *named).count() == 1
    }

    /// Whether it is told in a stream, where it may be told several times.
    pub fn is_streamed(&self) -> bool {
        self.sse_json.is_some() || self.ndjson_json.is_some()
    }
}

mod defaults {
    pub fn charge_on() -> Vec<String> {
        vec!["2xx".to_owned()]
    }
    pub fn max_body() -> u64 {
        1 << 20
    }
}
