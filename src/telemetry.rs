//! Metrics, with the contract's names. Labels come from configuration and the directory only, so
//! no request can make a new one (f75).
//!
//! Each worker counts into its own [`Meters`], so that workers share no cache line; a scrape adds
//! them up. Amounts are counted in whole millionths. Only the exposition divides, into the double
//! that the format and its readers have: exact below 2^33 units, and the nearest double above.

mod expose;
#[cfg(feature = "otel")]
pub mod spans;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use prometheus_client::registry::Registry;

use crate::config::OrgLabel;
use crate::core::ids::Id;
use crate::core::refusal::Code;
use expose::{Collected, Sums};

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Outcome {
    /// Charged.
    Captured,
    /// Forwarded or not, but not charged.
    Voided,
    /// Its charge could not be settled by the one who held it.
    Held,
    /// Refused.
    Refused,
    /// Let through in observe mode.
    Observed,
    /// On a free route.
    Free,
    /// Settled without its owner.
    InDoubt,
    /// A defect, or a backend that failed without a charge.
    Error,
}

impl Outcome {
    const WORDS: [&'static str; 8] =
        ["captured", "voided", "held", "refused", "observed", "free", "in_doubt", "error"];
}

/// The label for what has no org or no route: no id can be this, because ids start with a letter
/// or a digit and routes with a slash.
const NONE: &str = "-";
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
const OVERHEAD_BOUNDS: &[u64] = &[
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
];
const UPSTREAM_BOUNDS: &[u64] = &[
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
    120_000_000_000,
    300_000_000_000,
    600_000_000_000,
];
const BOOKS_BOUNDS: &[u64] = &[
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    5_000_000,
    25_000_000,
    100_000_000,
    1_000_000_000,
    5_000_000_000,
];

/// A histogram of durations with fixed buckets, without a lock.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    counts: Box<[AtomicU64]>,
    nanoseconds: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [u64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, nanoseconds: AtomicU64::new(0) }
    }

    /// Counts a duration.
    pub fn observe(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = self.bounds.iter().position(|bound| nanoseconds <= *bound);
        self.counts[bucket.unwrap_or(self.bounds.len())].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Relaxed);
    }
}

/// Which step of the backend a duration is of.
#[derive(Clone, Copy, Debug)]
pub enum Phase {
    /// From sending to the response's head.
    Headers,
    /// From the head to the end.
    Body,
}

/// What the books were asked.
#[derive(Clone, Copy, Debug)]
pub enum BooksOperation {
    /// A hold.
    Hold,
    /// A capture or a void.
    Resolve,
}

/// What the books answered.
#[derive(Clone, Copy, Debug)]
pub enum BooksResult {
    /// Done.
    Done,
    /// Changed nothing.
    Short,
    /// Failed.
    Failed,
}

/// What one worker counted for one org and route.
#[derive(Debug, Default)]
struct RouteMeters {
    requests: [[AtomicU64; CLASSES.len()]; Outcome::WORDS.len()],
    credits: AtomicU64,
    pool: AtomicU64,
    overage: AtomicU64,
}

/// What one worker counts for one org, or for all orgs that share a label.
#[derive(Debug)]
pub struct OrgMeters {
    label: Box<str>,
    /// One per route and a last one for requests without a route; made at first use, because
    /// most orgs use few of the routes.
    routes: Box<[OnceLock<Box<RouteMeters>>]>,
    refusals: [AtomicU64; Code::ALL.len()],
    uncovered: AtomicU64,
}

impl OrgMeters {
    fn new(label: &str, routes: usize) -> Self {
        Self {
            label: label.into(),
            routes: (0..=routes).map(|_| OnceLock::new()).collect(),
            refusals: std::array::from_fn(|_| AtomicU64::new(0)),
            uncovered: AtomicU64::new(0),
        }
    }

    fn route(&self, route: Option<usize>) -> &RouteMeters {
        let last = self.routes.len() - 1;
        self.routes[route.unwrap_or(last).min(last)].get_or_init(Box::default)
    }

    /// Counts a request that came to its end. `status` is `None` where nobody was there to see
    /// one.
    pub fn request(&self, route: Option<usize>, outcome: Outcome, status: Option<u16>) {
        let class = status.map_or(0, |status| usize::from(status / 100).min(CLASSES.len() - 1));
        self.route(route).requests[outcome as usize][class].fetch_add(1, Relaxed);
    }

    /// Counts a refusal.
    pub fn refusal(&self, code: Code) {
        self.refusals[code as usize].fetch_add(1, Relaxed);
    }

    /// Counts what nobody paid of a capture in observe mode, in millionths of an Operation.
    pub fn uncovered(&self, operations: u64) {
        self.uncovered.fetch_add(operations, Relaxed);
    }

    /// Counts what a capture took, in millionths: credits of the seat, Operations of the pool and
    /// past it.
    pub fn captured(&self, route: Option<usize>, seat: u64, pool: u64, overage: u64) {
        let meters = self.route(route);
        meters.credits.fetch_add(seat, Relaxed);
        if pool > 0 {
            meters.pool.fetch_add(pool, Relaxed);
        }
        if overage > 0 {
            meters.overage.fetch_add(overage, Relaxed);
        }
    }
}

/// What one worker counts under one configuration. A reload gives it new ones; what the old ones
/// counted is kept when nobody counts into them any more.
#[derive(Debug)]
pub struct Meters {
    telemetry: Arc<Shared>,
    labels: Arc<Labels>,
    /// Read on the first request of a connection, written when an org is first seen.
    orgs: RwLock<HashMap<Id, Arc<OrgMeters>>>,
    /// Of all orgs without a label of their own.
    other: Arc<OrgMeters>,
    /// Of requests whose org is not known.
    nobody: Arc<OrgMeters>,
    overhead: Box<[Histogram]>,
    /// By route: responses whose usage told conflicting values, and ones that could not be read.
    usage: Box<[[AtomicU64; 2]]>,
    upstreams: Box<[[Histogram; 2]]>,
    books: [[Histogram; 3]; 2],
}

impl Meters {
    /// The meters of an org; kept by the caller for as long as a connection acts for it.
    pub fn org(&self, org: &Id) -> Arc<OrgMeters> {
        if !self.telemetry.label.names(org.as_str()) {
            return Arc::clone(&self.other);
        }
        if let Some(meters) = self.orgs.read().get(org) {
            return Arc::clone(meters);
        }
        let new = || Arc::new(OrgMeters::new(org.as_str(), self.labels.routes.len()));
        Arc::clone(self.orgs.write().entry(org.clone()).or_insert_with(new))
    }

    /// Counts a charge that was settled without its owner, as its route says: captured, or voided.
    pub fn in_doubt(&self, captured: bool) {
        self.telemetry.in_doubt[usize::from(!captured)].fetch_add(1, Relaxed);
    }

    /// Counts an answer that was given again to a request under the same key.
    pub fn replayed(&self) {
        self.telemetry.replays.fetch_add(1, Relaxed);
    }

    /// The meters of requests whose org is not known.
    pub fn nobody(&self) -> &Arc<OrgMeters> {
        &self.nobody
    }

    /// Counts the time a request spent in the gateway.
    pub fn overhead(&self, route: Option<usize>, duration: Duration) {
        let last = self.overhead.len() - 1;
        self.overhead[route.unwrap_or(last).min(last)].observe(duration);
    }

    /// Counts what was wrong with the usage that a response told.
    pub fn usage(&self, route: usize, conflicting: bool, unreadable: bool) {
        let Some(counts) = self.usage.get(route) else { return };
        for (count, _) in counts.iter().zip([conflicting, unreadable]).filter(|(_, is)| *is) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Counts the time a backend took.
    pub fn upstream(&self, upstream: usize, phase: Phase, duration: Duration) {
        if let Some(phases) = self.upstreams.get(upstream) {
            phases[phase as usize].observe(duration);
        }
    }

    /// Counts the time the books took.
    pub fn books(&self, operation: BooksOperation, result: BooksResult, duration: Duration) {
        self.books[operation as usize][result as usize].observe(duration);
    }

    fn all(&self) -> Vec<Arc<OrgMeters>> {
        let fixed = [Arc::clone(&self.other), Arc::clone(&self.nobody)];
        self.orgs.read().values().cloned().chain(fixed).collect()
    }
}

/// One value of a watched gauge, with its labels.
pub type Sample = (Vec<(&'static str, String)>, f64);

type Watch = Box<dyn Fn() -> Vec<Sample> + Send + Sync>;

/// Everything there is to scrape.
pub struct Telemetry {
    shared: Arc<Shared>,
    registry: Registry,
}

struct Shared {
    label: OrgLabel,
    /// Charges settled without their owner: captured and voided.
    in_doubt: Arc<[AtomicU64; 2]>,
    /// Answers that were given again.
    replays: Arc<AtomicU64>,
    /// Added to at start and by reloads, read by scrapes.
    workers: Mutex<Workers>,
    /// Added to at start, read by scrapes.
    watches: Mutex<Vec<(&'static str, &'static str, Watch)>>,
}

/// Who counts, and what those counted who no longer do.
#[derive(Default)]
struct Workers {
    live: Vec<Arc<Meters>>,
    /// By label, so that it grows with the names that configurations had and not with reloads.
    retired: Sums,
}

impl Workers {
    /// All that was ever counted; takes in those that only scrapes still know.
    fn sums(&mut self) -> Sums {
        let retired = &mut self.retired;
        self.live.retain(|meters| {
            let counts = Arc::strong_count(meters) > 1;
            if !counts {
                retired.add(meters);
            }
            counts
        });
        let mut sums = retired.clone();
        self.live.iter().for_each(|meters| sums.add(meters));
        sums
    }
}

/// What metrics call what a configuration has, in its order.
#[derive(Clone, Debug, Default)]
pub struct Labels {
    /// Its routes.
    pub routes: Vec<RouteLabels>,
    /// Its upstreams.
    pub upstreams: Vec<String>,
}

/// What metrics call a route.
#[derive(Clone, Debug)]
pub struct RouteLabels {
    /// Its name.
    pub route: String,
    /// Its feature, unless it is free.
    pub feature: Option<String>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("label", &self.label).finish_non_exhaustive()
    }
}

impl Telemetry {
    /// Metrics of a process, with these labels for orgs.
    pub fn new(label: OrgLabel) -> Self {
        let (in_doubt, replays, workers, watches) = Default::default();
        let shared = Arc::new(Shared { label, in_doubt, replays, workers, watches });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Collected(Arc::clone(&shared))));
        Self { shared, registry }
    }

    /// The meters of one more worker, or of one that takes another configuration.
    pub fn worker(&self, labels: &Arc<Labels>) -> Arc<Meters> {
        let routes = labels.routes.len();
        let histograms = |bounds| [(); 3].map(|()| Histogram::new(bounds));
        let meters = Arc::new(Meters {
            telemetry: Arc::clone(&self.shared),
            labels: Arc::clone(labels),
            orgs: RwLock::default(),
            other: Arc::new(OrgMeters::new(OrgLabel::OTHER, routes)),
            nobody: Arc::new(OrgMeters::new(NONE, routes)),
            overhead: (0..=routes).map(|_| Histogram::new(OVERHEAD_BOUNDS)).collect(),
            usage: (0..routes).map(|_| [const { AtomicU64::new(0) }; 2]).collect(),
            upstreams: (labels.upstreams.iter())
                .map(|_| [(); 2].map(|()| Histogram::new(UPSTREAM_BOUNDS)))
                .collect(),
            books: [histograms(BOOKS_BOUNDS), histograms(BOOKS_BOUNDS)],
        });
        self.shared.workers.lock().live.push(Arc::clone(&meters));
        meters
    }

    /// A metric whose values are asked for at every scrape: a counter where its name ends in
    /// `_total`, else a gauge.
    pub fn watch(
        &self,
        name: &'static str,
        help: &'static str,
        values: impl Fn() -> Vec<Sample> + Send + Sync + 'static,
    ) {
        self.shared.watches.lock().push((name, help, Box::new(values)));
    }

    /// How many charges of this process were settled without their owner: captured and voided.
    pub fn in_doubt(&self) -> Arc<[AtomicU64; 2]> {
        Arc::clone(&self.shared.in_doubt)
    }

    /// How many answers of this process were given again.
    pub fn replays(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.shared.replays)
    }

    /// The exposition, in OpenMetrics' text format.
    pub fn expose(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    /// The media type of [`Telemetry::expose`].
    pub const MEDIA_TYPE: &'static str =
        "application/openmetrics-text; version=1.0.0; charset=utf-8";
}

#[cfg(test)]
mod tests;
