//! Metrics, with the contract's names. Labels come from configuration and the directory only, so
//! no request can make a new one (f75).
//!
//! Each worker counts into its own [`Meters`], so that workers share no cache line; a scrape adds
//! them up. Amounts are counted in whole millionths. Only the exposition divides, into the double
//! that the format and its readers have: exact below 2^33 units, and the nearest double above.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::config::{OrgLabel, OrgLabelWord};
use crate::core::amount::MICRO;
use crate::core::ids::Id;
use crate::core::refusal::Code;

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
}

impl OrgMeters {
    fn new(label: &str, routes: usize) -> Self {
        Self {
            label: label.into(),
            routes: (0..=routes).map(|_| OnceLock::new()).collect(),
            refusals: std::array::from_fn(|_| AtomicU64::new(0)),
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

    /// Counts what a capture took, in millionths: credits of the seat, Operations of the pool and
    /// past it.
    pub fn captured(&self, route: usize, seat: u64, pool: u64, overage: u64) {
        let meters = self.route(Some(route));
        meters.credits.fetch_add(seat, Relaxed);
        if pool > 0 {
            meters.pool.fetch_add(pool, Relaxed);
        }
        if overage > 0 {
            meters.overage.fetch_add(overage, Relaxed);
        }
    }
}

/// What one worker counts.
#[derive(Debug)]
pub struct Meters {
    telemetry: Arc<Shared>,
    /// Read on the first request of a connection, written when an org is first seen.
    orgs: RwLock<HashMap<Id, Arc<OrgMeters>>>,
    /// Of all orgs without a label of their own.
    other: Arc<OrgMeters>,
    /// Of requests whose org is not known.
    nobody: Arc<OrgMeters>,
    overhead: Box<[Histogram]>,
    upstreams: Box<[[Histogram; 2]]>,
    books: [[Histogram; 3]; 2],
}

impl Meters {
    /// The meters of an org; kept by the caller for as long as a connection acts for it.
    pub fn org(&self, org: &Id) -> Arc<OrgMeters> {
        let labelled = match &self.telemetry.label {
            OrgLabel::Word(OrgLabelWord::All) => true,
            OrgLabel::Word(OrgLabelWord::None) => false,
            OrgLabel::List(list) => list.contains(org),
        };
        if !labelled {
            return Arc::clone(&self.other);
        }
        if let Some(meters) = self.orgs.read().get(org) {
            return Arc::clone(meters);
        }
        let new = || Arc::new(OrgMeters::new(org.as_str(), self.telemetry.routes.len()));
        Arc::clone(self.orgs.write().entry(org.clone()).or_insert_with(new))
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
    routes: Vec<RouteLabels>,
    upstreams: Vec<String>,
    /// Added to at start, read by scrapes.
    workers: Mutex<Vec<Arc<Meters>>>,
    /// Added to at start, read by scrapes.
    watches: Mutex<Vec<(&'static str, &'static str, Watch)>>,
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
        f.debug_struct("Telemetry").field("routes", &self.routes.len()).finish_non_exhaustive()
    }
}

impl Telemetry {
    /// Metrics for these routes and upstreams, in the order of the configuration.
    pub fn new(label: OrgLabel, routes: Vec<RouteLabels>, upstreams: Vec<String>) -> Self {
        let shared = Arc::new(Shared {
            label,
            routes,
            upstreams,
            workers: Mutex::default(),
            watches: Mutex::default(),
        });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Collected(Arc::clone(&shared))));
        Self { shared, registry }
    }

    /// The meters of one more worker.
    pub fn worker(&self) -> Arc<Meters> {
        let routes = self.shared.routes.len();
        let histograms = |bounds| [(); 3].map(|()| Histogram::new(bounds));
        let meters = Arc::new(Meters {
            telemetry: Arc::clone(&self.shared),
            orgs: RwLock::default(),
            other: Arc::new(OrgMeters::new("other", routes)),
            nobody: Arc::new(OrgMeters::new(NONE, routes)),
            overhead: (0..=routes).map(|_| Histogram::new(OVERHEAD_BOUNDS)).collect(),
            upstreams: (self.shared.upstreams.iter())
                .map(|_| [(); 2].map(|()| Histogram::new(UPSTREAM_BOUNDS)))
                .collect(),
            books: [histograms(BOOKS_BOUNDS), histograms(BOOKS_BOUNDS)],
        });
        self.shared.workers.lock().push(Arc::clone(&meters));
        meters
    }

    /// A gauge whose values are asked for at every scrape.
    pub fn watch(
        &self,
        name: &'static str,
        help: &'static str,
        values: impl Fn() -> Vec<Sample> + Send + Sync + 'static,
    ) {
        self.shared.watches.lock().push((name, help, Box::new(values)));
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

#[derive(Debug)]
struct Collected(Arc<Shared>);

/// Cells added up over the workers, by label.
#[derive(Default)]
struct Sums {
    requests: BTreeMap<(String, usize, usize, usize), u64>,
    refusals: BTreeMap<(String, usize), u64>,
    credits: BTreeMap<(String, String), u64>,
    operations: BTreeMap<(String, String, &'static str), u64>,
}

impl Sums {
    fn of(shared: &Shared, workers: &[Arc<Meters>]) -> Self {
        let mut sums = Self::default();
        for org in workers.iter().flat_map(|worker| worker.all()) {
            let label = || org.label.to_string();
            for (code, cell) in org.refusals.iter().enumerate() {
                add(&mut sums.refusals, cell, || (label(), code));
            }
            let made = org.routes.iter().enumerate();
            for (route, meters) in made.filter_map(|(at, meters)| Some((at, meters.get()?))) {
                for (outcome, classes) in meters.requests.iter().enumerate() {
                    for (class, cell) in classes.iter().enumerate() {
                        add(&mut sums.requests, cell, || (label(), route, outcome, class));
                    }
                }
                let feature = || {
                    let labels = shared.routes.get(route);
                    labels.and_then(|labels| labels.feature.clone()).unwrap_or(NONE.to_owned())
                };
                add(&mut sums.credits, &meters.credits, || (label(), feature()));
                add(&mut sums.operations, &meters.pool, || (label(), feature(), "pool"));
                add(&mut sums.operations, &meters.overage, || (label(), feature(), "overage"));
            }
        }
        sums
    }
}

fn add<K: Ord>(to: &mut BTreeMap<K, u64>, cell: &AtomicU64, key: impl FnOnce() -> K) {
    let value = cell.load(Relaxed);
    if value > 0 {
        *to.entry(key()).or_default() += value;
    }
}

/// Millionths as the double nearest to the exact value.
fn units(micro: u64) -> f64 {
    micro as f64 / MICRO as f64
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

impl Collector for Collected {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let shared = &*self.0;
        let workers = shared.workers.lock().clone();
        encode_counters(&mut to, shared, &Sums::of(shared, &workers))?;
        encode_histograms(&mut to, shared, &workers)?;
        let build = [("version", env!("CARGO_PKG_VERSION"))];
        let help = "The program that runs";
        let mut family =
            to.encode_descriptor("tollgate_build_info", help, None, MetricType::Gauge)?;
        family.encode_family(&build)?.encode_gauge(&1_i64)?;
        for (name, help, values) in shared.watches.lock().iter() {
            let mut family = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (labels, value) in values() {
                family.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}

fn encode_counters(to: &mut DescriptorEncoder<'_>, shared: &Shared, sums: &Sums) -> fmt::Result {
    const COUNTER: MetricType = MetricType::Counter;
    let route = |index: usize| shared.routes.get(index).map_or(NONE, |labels| &labels.route);
    let help = "Requests that came to their end";
    let mut family = to.encode_descriptor("tollgate_requests", help, None, COUNTER)?;
    for ((org, at, outcome, class), value) in &sums.requests {
        let labels = [
            ("org", org.as_str()),
            ("route", route(*at)),
            ("outcome", Outcome::WORDS[*outcome]),
            ("status_class", CLASSES[*class]),
        ];
        family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(value, None)?;
    }
    let help = "Requests refused";
    let mut family = to.encode_descriptor("tollgate_refusals", help, None, COUNTER)?;
    for ((org, code), value) in &sums.refusals {
        let labels = [("org", org.as_str()), ("code", Code::ALL[*code].as_str())];
        family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(value, None)?;
    }
    let help = "Credits captured from seats";
    let mut family = to.encode_descriptor("tollgate_credits_captured", help, None, COUNTER)?;
    for ((org, feature), micro) in &sums.credits {
        let labels = [("org", org.as_str()), ("feature", feature.as_str())];
        let value = units(*micro);
        family.encode_family(&labels)?.encode_counter::<NoLabelSet, f64, u64>(&value, None)?;
    }
    let help = "Operations captured from the pool and past it";
    let mut family = to.encode_descriptor("tollgate_operations_captured", help, None, COUNTER)?;
    for ((org, feature, source), micro) in &sums.operations {
        let labels = [("org", org.as_str()), ("feature", feature.as_str()), ("source", source)];
        let value = units(*micro);
        family.encode_family(&labels)?.encode_counter::<NoLabelSet, f64, u64>(&value, None)?;
    }
    Ok(())
}

fn encode_histograms(
    to: &mut DescriptorEncoder<'_>,
    shared: &Shared,
    workers: &[Arc<Meters>],
) -> fmt::Result {
    const HISTOGRAM: MetricType = MetricType::Histogram;
    let name = "tollgate_overhead_duration_seconds";
    let help = "Time in the gateway, less waiting for the backend";
    let mut family = to.encode_descriptor(name, help, None, HISTOGRAM)?;
    for route in 0..=shared.routes.len() {
        let label = shared.routes.get(route).map_or(NONE, |labels| &labels.route);
        let parts = workers.iter().map(|worker| &worker.overhead[route]);
        encode_histogram(&mut family, &[("route", label)], parts)?;
    }
    let name = "tollgate_upstream_duration_seconds";
    let mut family = to.encode_descriptor(name, "Waiting for the backend", None, HISTOGRAM)?;
    for (index, upstream) in shared.upstreams.iter().enumerate() {
        for (phase, word) in ["headers", "body"].into_iter().enumerate() {
            let parts = workers.iter().map(|worker| &worker.upstreams[index][phase]);
            let labels = [("upstream", upstream.as_str()), ("phase", word)];
            encode_histogram(&mut family, &labels, parts)?;
        }
    }
    let name = "tollgate_books_duration_seconds";
    let mut family = to.encode_descriptor(name, "Waiting for the books", None, HISTOGRAM)?;
    for (operation, word) in ["hold", "resolve"].into_iter().enumerate() {
        for (result, answer) in ["done", "short", "failed"].into_iter().enumerate() {
            let parts = workers.iter().map(|worker| &worker.books[operation][result]);
            encode_histogram(&mut family, &[("operation", word), ("result", answer)], parts)?;
        }
    }
    Ok(())
}

fn encode_histogram<'a>(
    family: &mut prometheus_client::encoding::MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    parts: impl Iterator<Item = &'a Histogram>,
) -> fmt::Result {
    let (mut sum, mut count, mut buckets) = (0, 0, Vec::new());
    for part in parts {
        if buckets.is_empty() {
            let bounds = part.bounds.iter().map(|bound| seconds(*bound));
            buckets = bounds.chain([f64::INFINITY]).map(|bound| (bound, 0)).collect();
        }
        sum += part.nanoseconds.load(Relaxed);
        for (bucket, cell) in buckets.iter_mut().zip(&part.counts) {
            let value = cell.load(Relaxed);
            bucket.1 += value;
            count += value;
        }
    }
    if count == 0 {
        return Ok(());
    }
    let mut series = family.encode_family(labels)?;
    series.encode_histogram::<NoLabelSet>(seconds(sum), count, &buckets, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn telemetry(label: OrgLabel) -> Telemetry {
        let route = RouteLabels { route: "/v1/images".into(), feature: Some("image".into()) };
        Telemetry::new(label, vec![route], vec!["media".into()])
    }

    #[test]
    fn counters_of_all_workers_are_added_up_and_amounts_are_decimals() {
        let telemetry = telemetry(OrgLabel::Word(OrgLabelWord::All));
        for worker in [telemetry.worker(), telemetry.worker()] {
            let org = worker.org(&"acme".parse().unwrap());
            org.request(Some(0), Outcome::Captured, Some(200));
            org.captured(0, 1_250_001, 20_000, 0);
            org.refusal(Code::SeatExhausted);
            worker.overhead(Some(0), Duration::from_micros(30));
        }
        let text = telemetry.expose();
        for line in [
            "tollgate_requests_total{org=\"acme\",route=\"/v1/images\",outcome=\"captured\",status_class=\"2xx\"} 2\n",
            "tollgate_credits_captured_total{org=\"acme\",feature=\"image\"} 2.500002\n",
            "tollgate_operations_captured_total{org=\"acme\",feature=\"image\",source=\"pool\"} 0.04\n",
            "tollgate_refusals_total{org=\"acme\",code=\"seat_exhausted\"} 2\n",
            "tollgate_overhead_duration_seconds_bucket{le=\"0.00005\",route=\"/v1/images\"} 2\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("overage"));
    }

    #[test]
    fn f75_orgs_without_a_label_of_their_own_share_one() {
        let telemetry = telemetry(OrgLabel::List(vec!["acme".parse().unwrap()]));
        let worker = telemetry.worker();
        for org in ["acme", "bolt", "crux"] {
            worker.org(&org.parse().unwrap()).request(None, Outcome::Refused, Some(404));
        }
        let text = telemetry.expose();
        assert!(
            text.contains("{org=\"other\",route=\"-\",outcome=\"refused\",status_class=\"4xx\"} 2")
        );
        assert!(text.contains("{org=\"acme\",route=\"-\","));
        assert!(!text.contains("bolt"));
    }

    #[test]
    fn watched_gauges_are_asked_at_every_scrape() {
        let telemetry = telemetry(OrgLabel::Word(OrgLabelWord::None));
        telemetry
            .watch("tollgate_in_flight_requests", "Requests in flight", || vec![(vec![], 3.0)]);
        assert!(telemetry.expose().contains("tollgate_in_flight_requests 3.0\n"));
    }
}
