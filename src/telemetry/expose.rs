//! The exposition: cells added up over workers, and written under the contract's names.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::{CLASSES, Histogram, Meters, NONE, Outcome, Shared};
use crate::core::amount::MICRO;
use crate::core::refusal::Code;

#[derive(Debug)]
pub(super) struct Collected(pub(super) Arc<Shared>);

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
            // The encoder adds the suffix of counters itself.
            let counted = name.strip_suffix("_total");
            let kind = if counted.is_some() { MetricType::Counter } else { MetricType::Gauge };
            let mut family = to.encode_descriptor(counted.unwrap_or(name), help, None, kind)?;
            for (labels, value) in values() {
                // An empty set of labels would be written as empty braces.
                match (labels.is_empty(), counted) {
                    (true, _) => family.encode_gauge(&value)?,
                    (false, None) => family.encode_family(&labels)?.encode_gauge(&value)?,
                    (false, Some(_)) => {
                        family
                            .encode_family(&labels)?
                            .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
                    }
                }
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
