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

/// Cells added up over workers and configurations, by label.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    requests: BTreeMap<(String, String, usize, usize), u64>,
    refusals: BTreeMap<(String, usize), u64>,
    credits: BTreeMap<(String, String), u64>,
    operations: BTreeMap<(String, String, &'static str), u64>,
    uncovered: BTreeMap<String, u64>,
    conflicts: BTreeMap<String, u64>,
    unreadable: BTreeMap<String, u64>,
    overhead: BTreeMap<String, Bars>,
    upstreams: BTreeMap<(String, &'static str), Bars>,
    books: BTreeMap<(&'static str, &'static str), Bars>,
}

/// A histogram added up.
#[derive(Clone, Debug, Default)]
struct Bars {
    bounds: &'static [u64],
    counts: Vec<u64>,
    nanoseconds: u64,
}

impl Bars {
    fn add(&mut self, part: &Histogram) {
        if self.counts.is_empty() {
            self.bounds = part.bounds;
            self.counts = vec![0; part.counts.len()];
        }
        for (sum, cell) in self.counts.iter_mut().zip(&part.counts) {
            *sum += cell.load(Relaxed);
        }
        self.nanoseconds += part.nanoseconds.load(Relaxed);
    }
}

impl Sums {
    /// Adds what one worker counted.
    pub(super) fn add(&mut self, worker: &Meters) {
        let labels = &*worker.labels;
        let name = |at: usize| labels.routes.get(at).map_or(NONE, |labels| &labels.route);
        for org in worker.all() {
            let label = || org.label.to_string();
            for (code, cell) in org.refusals.iter().enumerate() {
                add(&mut self.refusals, cell, || (label(), code));
            }
            add(&mut self.uncovered, &org.uncovered, label);
            let made = org.routes.iter().enumerate();
            for (route, meters) in made.filter_map(|(at, meters)| Some((at, meters.get()?))) {
                for (outcome, classes) in meters.requests.iter().enumerate() {
                    for (class, cell) in classes.iter().enumerate() {
                        let key = || (label(), name(route).to_owned(), outcome, class);
                        add(&mut self.requests, cell, key);
                    }
                }
                let feature = || {
                    let labels = labels.routes.get(route);
                    labels.and_then(|labels| labels.feature.clone()).unwrap_or(NONE.to_owned())
                };
                add(&mut self.credits, &meters.credits, || (label(), feature()));
                add(&mut self.operations, &meters.pool, || (label(), feature(), "pool"));
                add(&mut self.operations, &meters.overage, || (label(), feature(), "overage"));
            }
        }
        for (route, [conflicts, unreadable]) in worker.usage.iter().enumerate() {
            add(&mut self.conflicts, conflicts, || name(route).to_owned());
            add(&mut self.unreadable, unreadable, || name(route).to_owned());
        }
        for (route, part) in worker.overhead.iter().enumerate() {
            self.overhead.entry(name(route).to_owned()).or_default().add(part);
        }
        for (upstream, parts) in labels.upstreams.iter().zip(&worker.upstreams) {
            for (phase, part) in ["headers", "body"].into_iter().zip(parts) {
                self.upstreams.entry((upstream.clone(), phase)).or_default().add(part);
            }
        }
        for (operation, parts) in ["hold", "resolve"].into_iter().zip(&worker.books) {
            for (result, part) in ["done", "short", "failed"].into_iter().zip(parts) {
                self.books.entry((operation, result)).or_default().add(part);
            }
        }
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
        let sums = shared.workers.lock().sums();
        encode_counters(&mut to, &sums)?;
        encode_histograms(&mut to, &sums)?;
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
                    (true, None) => family.encode_gauge(&value)?,
                    (true, Some(_)) => {
                        family.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
                    }
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

fn encode_counters(to: &mut DescriptorEncoder<'_>, sums: &Sums) -> fmt::Result {
    const COUNTER: MetricType = MetricType::Counter;
    let help = "Requests that came to their end";
    let mut family = to.encode_descriptor("tollgate_requests", help, None, COUNTER)?;
    for ((org, route, outcome, class), value) in &sums.requests {
        let labels = [
            ("org", org.as_str()),
            ("route", route.as_str()),
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
    let help = "Operations that nobody paid in observe mode";
    let mut family = to.encode_descriptor("tollgate_uncovered_operations", help, None, COUNTER)?;
    for (org, micro) in &sums.uncovered {
        let value = units(*micro);
        let labels = [("org", org.as_str())];
        family.encode_family(&labels)?.encode_counter::<NoLabelSet, f64, u64>(&value, None)?;
    }
    for (name, help, counts) in [
        ("tollgate_usage_conflicts", "Responses that told usage in two ways", &sums.conflicts),
        (
            "tollgate_usage_unreadable",
            "Responses that told usage which could not be read",
            &sums.unreadable,
        ),
    ] {
        let mut family = to.encode_descriptor(name, help, None, COUNTER)?;
        for (route, value) in counts {
            let labels = [("route", route.as_str())];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(value, None)?;
        }
    }
    Ok(())
}

fn encode_histograms(to: &mut DescriptorEncoder<'_>, sums: &Sums) -> fmt::Result {
    const HISTOGRAM: MetricType = MetricType::Histogram;
    let name = "tollgate_overhead_duration_seconds";
    let help = "Time in the gateway, less waiting for the backend";
    let mut family = to.encode_descriptor(name, help, None, HISTOGRAM)?;
    for (route, bars) in &sums.overhead {
        encode_histogram(&mut family, &[("route", route.as_str())], bars)?;
    }
    let name = "tollgate_upstream_duration_seconds";
    let mut family = to.encode_descriptor(name, "Waiting for the backend", None, HISTOGRAM)?;
    for ((upstream, phase), bars) in &sums.upstreams {
        let labels = [("upstream", upstream.as_str()), ("phase", *phase)];
        encode_histogram(&mut family, &labels, bars)?;
    }
    let name = "tollgate_books_duration_seconds";
    let mut family = to.encode_descriptor(name, "Waiting for the books", None, HISTOGRAM)?;
    for ((operation, result), bars) in &sums.books {
        encode_histogram(&mut family, &[("operation", *operation), ("result", *result)], bars)?;
    }
    Ok(())
}

fn encode_histogram(
    family: &mut prometheus_client::encoding::MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    bars: &Bars,
) -> fmt::Result {
    let count: u64 = bars.counts.iter().sum();
    if count == 0 {
        return Ok(());
    }
    let bounds = bars.bounds.iter().map(|bound| seconds(*bound)).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(bars.counts.iter().copied()).collect();
    let mut series = family.encode_family(labels)?;
    series.encode_histogram::<NoLabelSet>(seconds(bars.nanoseconds), count, &buckets, None)
}
