//! Configuration as the contract has it: names are fixed, unknown keys are errors. Every key is
//! read, also those of parts that are not built yet; `check` says so where one is used.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::ids::Id;

mod document;
mod environment;
mod error;
mod job;
mod load;
mod network;
mod not_built;
mod reload;
mod route;
pub mod secret;
mod table;
mod text;
mod upstream;
mod validate;
mod watch;

#[cfg(test)]
mod tests;

pub use environment::environment;
pub use error::{ConfigError, Place, Problem};
pub use job::{Job, Report};
pub use load::{DEFAULT_FILE, Loaded, from_bytes, load};
pub use network::Network;
pub use reload::{Changes, changes, put_live};
pub use route::{
    Attribute, Compat, Equals, Front, Hold, Idempotency, InjectWhen, Measured, Meter, Mode, Number,
    OnDisconnect, Pick, Progress, Quantity, Route, Usage,
};
pub use table::{Table, is_pointer, parameters, statuses};
pub use text::Url;
pub use upstream::{Credential, Health, MAX_URLS, Upstream};
pub use watch::{WATCH_INTERVAL, Watch};

/// The whole file.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[gateway]`
    pub gateway: Gateway,
    /// `[admin]`
    pub admin: Admin,
    /// `[ops]`
    pub ops: Ops,
    /// `[log]`
    pub log: Log,
    /// `[traces]`
    pub traces: Traces,
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
    /// `[auth]`
    pub auth: Auth,
    /// `[envoy]`
    pub envoy: Envoy,
}

/// The data plane.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// Where generation traffic is taken.
    pub listen: SocketAddr,
    /// Workers; 0 means one per core.
    pub workers: usize,
    /// How long to keep serving after SIGTERM.
    #[serde(with = "text::duration")]
    pub drain_delay: Duration,
    /// How long to let requests finish after that.
    #[serde(with = "text::duration")]
    pub drain_timeout: Duration,
    /// CIDRs whose `Forwarded` and `X-Forwarded-*` are believed.
    pub trusted_proxies: Vec<Network>,
    /// How long a request's head may take.
    #[serde(with = "text::duration")]
    pub header_timeout: Duration,
    /// How long a request's body may keep the gateway waiting.
    #[serde(with = "text::duration")]
    pub body_timeout: Duration,
    /// How long a connection may be kept without a request.
    #[serde(with = "text::duration")]
    pub idle_timeout: Duration,
    /// How long a client may keep its answer waiting.
    #[serde(with = "text::duration")]
    pub write_timeout: Duration,
}

/// The administrators' listener.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Where admin requests are taken.
    pub listen: SocketAddr,
    /// Where the operator's token is read from; else `$TOLLGATE_ADMIN_TOKEN`; else one is made.
    pub token_file: Option<PathBuf>,
}

/// The operators' listener.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ops {
    /// Where metrics and health are served.
    pub listen: SocketAddr,
    /// Which orgs have their own metric label.
    pub org_label: OrgLabel,
}

/// Which orgs have their own metric label; the rest is `other`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged, expecting = "`all`, `none` or a list of org ids")]
pub enum OrgLabel {
    /// `all` or `none`.
    Word(OrgLabelWord),
    /// These.
    List(Vec<Id>),
}

impl OrgLabel {
    /// What the orgs without a label of their own share.
    pub const OTHER: &str = "other";

    /// Whether an org has a label of its own.
    pub fn names(&self, org: &str) -> bool {
        match self {
            Self::Word(OrgLabelWord::All) => true,
            Self::Word(OrgLabelWord::None) => false,
            Self::List(list) => list.iter().any(|listed| listed.as_str() == org),
        }
    }
}

/// See [`OrgLabel`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OrgLabelWord {
    /// Every org.
    All,
    /// No org.
    None,
}

/// What is logged, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// text or json.
    pub format: LogFormat,
    /// error, warn, info, debug or trace.
    pub level: LogLevel,
    /// A line for each request of the data plane.
    pub access: bool,
}

/// Where traces go (the feature `otel`).
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Traces {
    /// A collector that takes OTLP over HTTP, like `http://127.0.0.1:4318`; absent: no traces.
    pub endpoint: Option<String>,
    /// Of the requests that come without a trace, every so many are traced.
    pub one_in: std::num::NonZeroU32,
    /// What the collector is shown.
    pub credential: Option<Credential>,
}

/// How a line is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `time level target: message key=value`
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// The least that matters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What is broken.
    Error,
    /// And what may become so.
    Warn,
    /// And what the process does.
    #[default]
    Info,
    /// And how.
    Debug,
    /// And everything else.
    Trace,
}

/// Where files are.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// The data dir: journal, directory, archive. One process at a time.
    pub dir: PathBuf,
}

/// Which engine keeps the balances.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// In memory, with a journal.
    #[default]
    Embedded,
    /// In Redis.
    Redis,
}

/// What an acknowledged change survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged, expecting = "a URL or a list of URLs")]
pub enum OneOrMany {
    /// One.
    One(Url),
    /// Several.
    Many(Vec<Url>),
}

/// The books.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Books {
    /// embedded or redis.
    pub engine: Engine,
    /// process, power or replica.
    pub durability: Durability,
    /// Bytes after which the journal goes on in another file.
    #[serde(with = "text::size")]
    pub segment_size: u64,
    /// Days after which what is archived may leave the journal; 0: never.
    pub retention_days: u32,
    /// Redis.
    pub url: Option<OneOrMany>,
    /// An environment variable that holds `url`.
    pub url_env: Option<String>,
    /// A file that holds `url`.
    pub url_file: Option<PathBuf>,
    /// How many shards the orgs are spread over; fixed at creation.
    pub shards: u16,
    /// How long a request waits for Redis.
    #[serde(with = "text::duration")]
    pub timeout: Duration,
    /// After how long without renewal others may resolve a hold.
    #[serde(with = "text::duration")]
    pub owner_timeout: Duration,
    /// How long a shard waits for its sessions.
    #[serde(with = "text::duration")]
    pub rejoin_timeout: Duration,
    /// How long a capture waits for Redis.
    #[serde(with = "text::duration")]
    pub settle_timeout: Duration,
}

/// The directory.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Directory {
    /// PostgreSQL; default is SQLite in the data dir.
    pub url: Option<Url>,
    /// Globs of org files, applied at start and on change.
    pub org_files: Vec<String>,
}

/// A rate with a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Requests a second.
    pub rps: std::num::NonZeroU32,
    /// How many may come at once; default is `rps`.
    pub burst: Option<std::num::NonZeroU32>,
}

/// Rate limits, per replica.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// For each user (and each principal key).
    pub per_user: Option<RateLimit>,
    /// For each org.
    pub per_org: Option<RateLimit>,
    /// Requests in flight, over all workers.
    pub max_in_flight: usize,
    /// Connections of clients, over all workers.
    pub max_connections: usize,
    /// Bytes of request bodies that are held to be priced, over all workers.
    #[serde(with = "text::size")]
    pub max_buffered: u64,
}

/// Credentials beyond the directory's keys.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// `[auth.jwt]`
    pub jwt: Option<Jwt>,
}

/// Whose JWTs are believed.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// What `iss` must be.
    pub issuer: String,
    /// What `aud` must hold.
    pub audience: String,
    /// Where the issuer's keys are fetched.
    pub jwks_url: Option<Url>,
    /// A file that holds the issuer's keys.
    pub jwks_file: Option<PathBuf>,
    /// The claim that holds the org's id.
    pub org_claim: Option<String>,
    /// The claim that holds the user's id.
    pub user_claim: Option<String>,
    /// What happens to a user the directory does not know.
    #[serde(default)]
    pub on_unknown_user: OnUnknownUser,
}

/// What happens to a user the directory does not know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnknownUser {
    /// The request is refused.
    #[default]
    Refuse,
    /// The user is added to the directory.
    Create,
}

/// Envoy's gRPC services.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Envoy {
    /// Where `ext_authz` and `ext_proc` are served; absent: nowhere.
    pub listen: Option<SocketAddr>,
}

impl Config {
    /// The effective configuration as TOML, with secrets hidden.
    ///
    /// # Errors
    /// When a value in `inject` has no TOML form; what came from a file always has one.
    pub fn print(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
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
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
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
            segment_size: 64 << 20,
            retention_days: 90,
            url: None,
            url_env: None,
            url_file: None,
            shards: 32,
            timeout: Duration::from_secs(2),
            owner_timeout: Duration::from_secs(10),
            rejoin_timeout: Duration::from_secs(10),
            settle_timeout: Duration::from_secs(5),
        }
    }
}

impl Default for Traces {
    fn default() -> Self {
        Self { endpoint: None, one_in: std::num::NonZeroU32::MIN, credential: None }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_user: None,
            per_org: None,
            max_in_flight: 10_000,
            max_connections: 20_000,
            max_buffered: 256 << 20,
        }
    }
}
