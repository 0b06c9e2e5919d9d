//! Configuration as the contract has it: names are fixed, unknown keys are errors. Every key is
//! read, also those of parts that are not built yet; `check` says so where one is used.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::books::InDoubt;
use crate::core::ids::Id;

/// The whole file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[gateway]`
    pub gateway: Gateway,
    /// `[admin]`
    pub admin: Admin,
    /// `[ops]`
    pub ops: Ops,
    /// `[data]`
    pub data: Data,
    /// `[books]`
    pub books: Books,
    /// `[directory]`
    pub directory: Directory,
    /// `[limits]`
    pub limits: Limits,
    /// `[[upstream]]`
    pub upstream: Vec<Upstream>,
    /// `[[route]]`
    pub route: Vec<Route>,
}

/// The data plane.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// Where generation traffic is taken.
    pub listen: SocketAddr,
    /// Workers; 0 means one per core.
    pub workers: usize,
    /// How long to keep serving after SIGTERM.
    #[serde(with = "duration")]
    pub drain_delay: Duration,
    /// How long to let requests finish after that.
    #[serde(with = "duration")]
    pub drain_timeout: Duration,
    /// CIDRs whose `Forwarded` and `X-Forwarded-*` are believed.
    pub trusted_proxies: Vec<String>,
}

/// The administrators' listener.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Where admin requests are taken.
    pub listen: SocketAddr,
    /// Where the operator's token is read from; else `$TOLLGATE_ADMIN_TOKEN`; else one is made.
    pub token_file: Option<PathBuf>,
}

/// The operators' listener.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ops {
    /// Where metrics and health are served.
    pub listen: SocketAddr,
    /// Which orgs have their own metric label.
    pub org_label: OrgLabel,
}

/// Which orgs have their own metric label; the rest is `other`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum OrgLabel {
    /// `all` or `none`.
    Word(OrgLabelWord),
    /// These.
    List(Vec<Id>),
}

/// See [`OrgLabel`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OrgLabelWord {
    /// Every org.
    All,
    /// No org.
    None,
}

/// Where files are.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// The data dir: journal, directory, archive. One process at a time.
    pub dir: PathBuf,
}

/// Which engine keeps the balances.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// In memory, with a journal.
    #[default]
    Embedded,
    /// In Redis.
    Redis,
}

/// What an acknowledged change survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// `kill -9`.
    #[default]
    Process,
    /// A power failure.
    Power,
    /// The loss of the Redis master.
    Replica,
}

/// One URL, or several.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// The books.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Books {
    /// embedded or redis.
    pub engine: Engine,
    /// process, power or replica.
    pub durability: Durability,
    /// Redis.
    pub url: Option<OneOrMany>,
    /// An environment variable that holds `url`.
    pub url_env: Option<String>,
    /// A file that holds `url`.
    pub url_file: Option<PathBuf>,
    /// How many shards the orgs are spread over; fixed at creation.
    pub shards: u16,
    /// After how long without renewal others may resolve a hold.
    #[serde(with = "duration")]
    pub owner_timeout: Duration,
    /// How long a shard waits for its sessions.
    #[serde(with = "duration")]
    pub rejoin_timeout: Duration,
    /// How long a capture waits for Redis.
    #[serde(with = "duration")]
    pub settle_timeout: Duration,
}

/// The directory.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Directory {
    /// PostgreSQL; default is SQLite in the data dir.
    pub url: Option<String>,
    /// Globs of org files, applied at start and on change.
    pub org_files: Vec<String>,
}

/// A rate with a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Requests a second.
    pub rps: std::num::NonZeroU32,
    /// How many may come at once; default is `rps`.
    pub burst: Option<std::num::NonZeroU32>,
}

/// Rate limits, per replica.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// For each user (and each principal key).
    pub per_user: Option<RateLimit>,
    /// For each org.
    pub per_org: Option<RateLimit>,
    /// Requests in flight, over all workers.
    pub max_in_flight: usize,
}

/// A generative backend.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Its name in routes and metrics.
    pub name: Id,
    /// `http://host:port`, one or more.
    pub urls: Vec<String>,
    /// How long a connection may take.
    #[serde(default = "defaults::connect_timeout", with = "duration")]
    pub connect_timeout: Duration,
    /// How long the response's headers may take.
    #[serde(default = "defaults::response_timeout", with = "duration")]
    pub response_timeout: Duration,
    /// Active health checks.
    pub health: Option<Health>,
    /// What the backend is shown instead of the caller's credential.
    pub credential: Option<Credential>,
}

/// An active health check.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// What is asked for.
    pub path: String,
    /// How often.
    #[serde(default = "defaults::health_interval", with = "duration")]
    pub interval: Duration,
}

/// A backend's credential: where it is read from, and the header it goes into.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The header's name.
    #[serde(default = "defaults::credential_header")]
    pub header: String,
    /// What stands before the secret, with a space.
    pub scheme: Option<String>,
    /// The environment variable that holds it.
    pub env: Option<String>,
    /// The file that holds it.
    pub file: Option<PathBuf>,
}

/// What happens when a client leaves early (D33).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDisconnect {
    /// Read the backend to its end, settle on what it reports.
    #[default]
    Finish,
    /// Stop the backend, settle on what was delivered.
    Cancel,
}

/// A route: what is metered, where it goes, how it is priced.
#[derive(Debug, Clone, Deserialize)]
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
    #[serde(default = "defaults::max_body", with = "size")]
    pub max_body: u64,
    /// `slice`: the hold is topped up as a stream runs.
    pub hold: Option<String>,
    /// last, sum or max, where usage is told several times.
    pub pick: Option<String>,
    /// The last SSE event of a stream is the receipt.
    #[serde(default)]
    pub sse_receipt: bool,
    /// `openai`: refusals in OpenAI's error body.
    pub compat: Option<String>,
    /// The status of refusals for lack of credit.
    pub exhausted_status: Option<u16>,
    /// enforce or observe.
    pub mode: Option<String>,
}

/// One meter of a route.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meter {
    /// Its name, as rates have it.
    pub name: Id,
    /// How much is asked for.
    pub quantity: Option<Quantity>,
    /// Where the actual usage is told.
    pub usage: Option<Usage>,
}

/// Where a quantity is read: exactly one place, and what its absence means.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quantity {
    /// A JSON pointer into the request body (RFC 6901).
    pub json: Option<String>,
    /// A header's name.
    pub header: Option<String>,
    /// A query parameter's name.
    pub query: Option<String>,
    /// A path parameter's name.
    pub path: Option<String>,
    /// Always this.
    #[serde(rename = "const")]
    pub constant: Option<Number>,
    /// When the place is absent.
    pub default: Option<Number>,
}

/// A number in a file: `2`, or `"0.5"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Number {
    /// A whole number.
    Whole(u64),
    /// An exact decimal.
    Decimal(String),
}

/// Where an attribute is read, and what its values are called in rates.
#[derive(Debug, Clone, Default, Deserialize)]
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
    /// Always this.
    #[serde(rename = "const")]
    pub constant: Option<String>,
    /// When the place is absent.
    pub default: Option<String>,
    /// From what is read to what rates say; a value that is not listed is refused.
    pub map: Option<BTreeMap<String, String>>,
}

/// Where the actual usage is told: exactly one place.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Usage {
    /// A JSON pointer into the response body.
    pub json: Option<String>,
    /// A JSON pointer into the events of a stream.
    pub sse_json: Option<String>,
    /// A response header's name.
    pub header: Option<String>,
}

mod defaults {
    use std::time::Duration;

    pub fn connect_timeout() -> Duration {
        Duration::from_secs(1)
    }
    pub fn response_timeout() -> Duration {
        Duration::from_secs(120)
    }
    pub fn health_interval() -> Duration {
        Duration::from_secs(5)
    }
    pub fn credential_header() -> String {
        "Authorization".to_owned()
    }
    pub fn charge_on() -> Vec<String> {
        vec!["2xx".to_owned()]
    }
    pub fn max_body() -> u64 {
        1 << 20
    }
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8080).into(),
            workers: 0,
            drain_delay: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(30),
            trusted_proxies: Vec::new(),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 8081).into(), token_file: None }
    }
}

impl Default for Ops {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 9090).into(), org_label: OrgLabel::Word(OrgLabelWord::All) }
    }
}

impl Default for Data {
    fn default() -> Self {
        Self { dir: "./tollgate-data".into() }
    }
}

impl Default for Books {
    fn default() -> Self {
        Self {
            engine: Engine::Embedded,
            durability: Durability::Process,
            url: None,
            url_env: None,
            url_file: None,
            shards: 32,
            owner_timeout: Duration::from_secs(10),
            rejoin_timeout: Duration::from_secs(10),
            settle_timeout: Duration::from_secs(5),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_user: None, per_org: None, max_in_flight: 10_000 }
    }
}

/// Durations as `"5s"`, `"250ms"`, `"2m"`.
mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, de};

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        let expected =
            || de::Error::custom(format!("expected a duration like \"5s\", got {text:?}"));
        let span: jiff::SignedDuration = text.parse().map_err(|_| expected())?;
        span.try_into().map_err(|_| expected())
    }
}

/// Sizes as `"1MiB"`, `"64KiB"`, `"512"`.
mod size {
    use serde::{Deserialize, Deserializer, de};

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        let (digits, unit) =
            text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let factor = match unit.trim() {
            "" | "B" => Some(1),
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            "GiB" => Some(1_u64 << 30),
            _ => None,
        };
        let value = digits.parse::<u64>().ok().zip(factor).and_then(|(n, f)| n.checked_mul(f));
        value.ok_or_else(|| {
            de::Error::custom(format!("expected a size like \"1MiB\", got {text:?}"))
        })
    }
}
