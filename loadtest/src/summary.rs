//! What the phases of a run come to: figures by name, and what a report shows.

use std::collections::BTreeMap;

use crate::draw::How;
use crate::driver::{Arrivals, Stats, percentiles};
use crate::measure;
use crate::result::{self, Bar, Lane, Load, Machine, Phase, Report, median, merge};
use crate::run::{Facts, Phases};
use crate::scenario::Scenario;

/// A report without audit and verdicts.
pub fn scenario(
    scenario: &Scenario,
    short: bool,
    machine: Machine,
    phases: &Phases,
    facts: &Facts,
) -> Report {
    let mut report = empty(&scenario.name, &scenario.about, short, machine);
    for (phase, rounds) in phases {
        if !phase.warm {
            report.phases.push(summed(&phase.name, rounds));
            figures(&mut report, &phase.name, rounds);
        }
    }
    report.loads = loads(&report.phases);
    report.bars = bars(&report.phases);
    let restarts = facts.restarts.borrow();
    report.spread("restart.ready_s", restarts.clone());
    report.figure("start.rss_mb", megabytes(facts.empty));
    report.figure("applied.rss_mb", megabytes(facts.applied));
    let users: u64 = scenario.users.iter().map(|group| group.count).sum();
    let rise = facts.applied.saturating_sub(facts.empty);
    report.figure("applied.bytes_per_user", rise as f64 / users as f64);
    if let Some(last) = phases.iter().flat_map(|(_, rounds)| rounds).next_back()
        && let Some(sample) = last.samples.last()
    {
        let rise = sample.rss_mb - megabytes(facts.empty);
        report.figure("end.bytes_per_user", rise * 1e6 / users as f64);
        let charges: u64 = all(phases).map(|stats| stats.counts.served).sum();
        let rule = journal_rule(charges, users);
        report.figure("end.journal_of_rule", sample.journal_mb * 1e6 / rule);
    }
    if short {
        report
            .notes
            .push("a short form: it shows that it works, and its figures mean nothing".to_owned());
    }
    report
}

/// Nothing yet.
pub fn empty(name: &str, about: &str, short: bool, machine: Machine) -> Report {
    Report {
        name: name.to_owned(),
        about: about.to_owned(),
        short,
        machine,
        phases: Vec::new(),
        loads: Vec::new(),
        bars: Vec::new(),
        figures: BTreeMap::new(),
        verdicts: Vec::new(),
        audit: Vec::new(),
        notes: Vec::new(),
    }
}

fn all(phases: &Phases) -> impl Iterator<Item = &Stats> {
    let rounds = phases.iter().flat_map(|(_, rounds)| rounds);
    rounds.flat_map(|round| round.lanes.iter().map(|(_, _, stats)| stats))
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// What docs/data-dir.md says that the journal takes: 200 bytes a charge, 80 more for each account
/// that is used for the first time, and up to three segments.
fn journal_rule(charges: u64, users: u64) -> f64 {
    const SEGMENT: f64 = 64.0 * 1024.0 * 1024.0;
    200.0 * charges as f64 + 80.0 * (2 * users) as f64 + 3.0 * SEGMENT
}

/// All rounds of a phase as one: histograms are added, not their percentiles.
pub fn summed(name: &str, rounds: &[measure::Phase]) -> Phase {
    let mut phase = Phase {
        name: name.to_owned(),
        took: rounds.iter().map(|round| round.took).sum(),
        lanes: Vec::new(),
        used: Vec::new(),
        samples: rounds.first().map_or(Vec::new(), |round| round.samples.clone()),
        marks: rounds.first().map_or(Vec::new(), |round| round.marks.clone()),
    };
    for round in rounds {
        for used in &round.used {
            match phase.used.iter_mut().find(|known| known.name == used.name) {
                Some(known) => {
                    known.cpu_us += used.cpu_us;
                    known.archive_us += used.archive_us;
                }
                None => phase.used.push(used.clone()),
            }
        }
    }
    let lanes = rounds.first().map_or(0, |round| round.lanes.len());
    phase.lanes = (0..lanes).filter_map(|index| lane(rounds, index)).collect();
    phase
}

fn lane(rounds: &[measure::Phase], index: usize) -> Option<Lane> {
    let first = rounds.first()?.lanes.get(index)?;
    let (lane, arrivals, stats) = first;
    let mut counts = stats.counts;
    let mut codes: BTreeMap<String, u64> = stats.codes.iter().cloned().collect();
    let mut served = stats.served.clone();
    let mut refused = stats.refused.clone();
    let mut until_first = stats.first.clone();
    for (_, _, more) in rounds.iter().skip(1).filter_map(|round| round.lanes.get(index)) {
        counts.served += more.counts.served;
        counts.refused += more.counts.refused;
        counts.unavailable += more.counts.unavailable;
        counts.planted += more.counts.planted;
        counts.wrong += more.counts.wrong;
        counts.unknown += more.counts.unknown;
        counts.unsent += more.counts.unsent;
        counts.dropped += more.counts.dropped;
        for (code, count) in &more.codes {
            *codes.entry(code.clone()).or_default() += count;
        }
        merge(&mut served, &more.served);
        merge(&mut refused, &more.refused);
        merge(&mut until_first, &more.first);
    }
    let rate = match arrivals {
        Arrivals::Open { rate, .. } => Some(*rate),
        Arrivals::Closed { .. } => None,
    };
    Some(Lane {
        name: lane.spec().name.clone(),
        rate,
        counts,
        codes: codes.into_iter().collect(),
        served: percentiles(&served),
        refused: percentiles(&refused),
        first: percentiles(&until_first),
        seconds: stats.seconds.clone(),
    })
}

/// Figures of a phase: `PHASE.FLOW.WHAT` and `PHASE.system.WHAT`, each of every round.
pub fn figures(report: &mut Report, name: &str, rounds: &[measure::Phase]) {
    let lanes = rounds.first().map_or(0, |round| round.lanes.len());
    for index in 0..lanes {
        let stats = || rounds.iter().filter_map(|round| round.lanes.get(index));
        let Some((lane, _, _)) = stats().next() else { continue };
        let flow = format!("{name}.{}", lane.spec().name);
        let mut set = |what: &str, of: &dyn Fn(&Stats) -> f64| {
            report
                .spread(format!("{flow}.{what}"), stats().map(|(_, _, stats)| of(stats)).collect());
        };
        let per_second = |count: u64, stats: &Stats| count as f64 / stats.took.as_secs_f64();
        set("served", &|stats| stats.counts.served as f64);
        set("refused", &|stats| stats.counts.refused as f64);
        set("failed", &|stats| {
            let counts = &stats.counts;
            let failed = counts.unavailable + counts.planted + counts.wrong + counts.unknown;
            (failed + counts.unsent + counts.dropped) as f64
        });
        set("unknown", &|stats| stats.counts.unknown as f64);
        set("served_per_s", &|stats| per_second(stats.counts.served, stats));
        set("refused_per_s", &|stats| per_second(stats.counts.refused, stats));
        let quantiles = [("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)];
        let any = |of: fn(&Stats) -> u64| stats().any(|(_, _, stats)| of(stats) > 0);
        let (served, refused) = (any(|stats| stats.served.len()), any(|stats| stats.refused.len()));
        for (what, quantile) in quantiles {
            if served {
                set(what, &|stats| stats.served.value_at_quantile(quantile) as f64);
                set(&format!("first_{what}"), &|stats| {
                    stats.first.value_at_quantile(quantile) as f64
                });
            }
            if refused {
                set(&format!("refused_{what}"), &|stats| {
                    stats.refused.value_at_quantile(quantile) as f64
                });
            }
        }
        let outage =
            rounds.iter().filter_map(|round| round.lanes.get(index)).map(|(_, _, stats)| {
                stats
                    .seconds
                    .iter()
                    .filter(|second| second.failed > second.served + second.refused)
                    .count() as f64
            });
        report.spread(format!("{flow}.seconds_mostly_failed"), outage.collect());
    }
    system(report, name, rounds);
}

fn system(report: &mut Report, name: &str, rounds: &[measure::Phase]) {
    let measured = || rounds.iter().filter(|round| round.used.iter().any(|used| used.system));
    let answers = |round: &measure::Phase| {
        let counts =
            round.lanes.iter().map(|(_, _, stats)| stats.counts.served + stats.counts.refused);
        counts.sum::<u64>().max(1) as f64
    };
    let used = |round: &measure::Phase| {
        let ours = round.used.iter().filter(|used| used.system);
        ours.fold((0, 0), |(cpu, archive), used| (cpu + used.cpu_us, archive + used.archive_us))
    };
    let mut set = |what: &str, of: &dyn Fn(&measure::Phase) -> f64| {
        report.spread(format!("{name}.system.{what}"), measured().map(of).collect());
    };
    set("cpu_us_per_request", &|round| used(round).0 as f64 / answers(round));
    set("archive_us_per_request", &|round| used(round).1 as f64 / answers(round));
    set("core_busy", &|round| (used(round).0 + used(round).1) as f64 / 1e6 / round.took);
    let Some(round) = rounds.last() else { return };
    let (Some(first), Some(last)) = (round.samples.first(), round.samples.last()) else { return };
    let most = |of: fn(&measure::Sample) -> f64| round.samples.iter().map(of).fold(0.0, f64::max);
    let rise_mb = most(|sample| sample.rss_mb) - first.rss_mb;
    report.figure(format!("{name}.system.rss_mb"), last.rss_mb);
    report.figure(format!("{name}.system.rss_rise_mb"), rise_mb);
    report.figure(format!("{name}.system.descriptors"), most(|sample| sample.descriptors as f64));
    report.figure(format!("{name}.system.journal_mb"), last.journal_mb);
    // What each connection takes that is there at the most, where all are opened in the phase.
    let opened = most(|sample| sample.descriptors as f64) - first.descriptors as f64;
    if opened >= 100.0 {
        report.figure(format!("{name}.system.kb_per_descriptor"), rise_mb * 1e3 / opened);
    }
    let seats: u64 = round
        .lanes
        .iter()
        .filter(|(lane, ..)| lane.spec().draw == How::Each)
        .map(|(_, _, stats)| stats.counts.served)
        .sum();
    if seats > 0 {
        let rise = last.rss_mb - first.rss_mb;
        report.figure(format!("{name}.system.bytes_per_seat"), rise * 1e6 / seats as f64);
    }
    growth(report, name, &round.samples);
}

/// Between the second tenth and the last, of a phase that is long enough to have tenths.
fn growth(report: &mut Report, name: &str, samples: &[measure::Sample]) {
    let tenth = samples.len() / 10;
    if tenth == 0 {
        return;
    }
    let (early, late) = (&samples[tenth..2 * tenth], &samples[samples.len() - tenth..]);
    let mut set = |what: &str, of: fn(&measure::Sample) -> f64| {
        let middle = |part: &[measure::Sample]| median(&part.iter().map(of).collect::<Vec<_>>());
        if let (Some(early), Some(late)) = (middle(early), middle(late)) {
            report.figure(format!("{name}.system.{what}"), late - early);
        }
    };
    set("rss_growth_mb", |sample| sample.rss_mb);
    set("descriptors_growth", |sample| sample.descriptors as f64);
}

/// Latency over load, of phases that are steps of one and the same.
fn loads(phases: &[Phase]) -> Vec<Load> {
    let mut loads: Vec<Load> = Vec::new();
    for phase in phases {
        let Some((base, step)) = phase.name.rsplit_once(' ') else { continue };
        if step.parse::<f64>().is_err() {
            continue;
        }
        for lane in &phase.lanes {
            let Some(rate) = lane.rate else { continue };
            let name = format!("{base}, {}", lane.name);
            let point = (rate, [0.5, 0.99, 0.999].map(|share| at(&lane.served, share)));
            match loads.iter_mut().find(|load| load.name == name) {
                Some(load) => load.points.push(point),
                None => loads.push(Load { name, points: vec![point] }),
            }
        }
    }
    loads
}

/// The latency of a curve at a share, or of the largest that it has.
pub fn at(curve: &[(f64, u64)], share: f64) -> u64 {
    let known = curve.iter().rev().find(|(known, _)| *known <= share + 1e-9);
    known.map_or(0, |(_, latency)| *latency)
}

fn bars(phases: &[Phase]) -> Vec<Bar> {
    let measured = phases.iter().filter(|phase| !phase.used.is_empty());
    measured.filter_map(|phase| bar(&phase.name, phase)).collect()
}

/// What an answer costs in a phase, by process; nothing where there was none.
pub fn bar(name: &str, phase: &Phase) -> Option<Bar> {
    let answers: u64 =
        phase.lanes.iter().map(|lane| lane.counts.served + lane.counts.refused).sum();
    if answers == 0 {
        return None;
    }
    let each = |us: u64| us as f64 / answers as f64;
    let ours = phase.used.iter().filter(|used| used.system);
    let mut parts: Vec<(String, f64)> =
        ours.map(|used| (used.name.clone(), each(used.cpu_us))).collect();
    let archive: u64 = phase.used.iter().map(|used| used.archive_us).sum();
    if archive > 0 {
        parts.push(("archive".to_owned(), each(archive)));
    }
    Some(Bar { name: name.to_owned(), parts })
}

/// The rows of the table of phases, and its head.
pub fn rows(report: &Report) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let head = vec![
        "phase, flow",
        "asked/s",
        "served",
        "refused",
        "failed",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "CPU µs",
    ];
    let ms = |us: u64| format!("{:.2}", us as f64 / 1e3);
    let mut rows = Vec::new();
    for phase in &report.phases {
        let cpu = report.value(&format!("{}.system.cpu_us_per_request", phase.name));
        for lane in &phase.lanes {
            let counts = &lane.counts;
            let failed = counts.unavailable
                + counts.planted
                + counts.wrong
                + counts.unknown
                + counts.unsent
                + counts.dropped;
            let curve = if lane.served.len() > 1 { &lane.served } else { &lane.refused };
            let count = |count: u64| result::number(count as f64);
            rows.push(vec![
                format!("{}, {}", phase.name, lane.name),
                lane.rate.map_or("closed".to_owned(), |rate| result::number(rate.round())),
                count(counts.served),
                count(counts.refused),
                count(failed),
                ms(at(curve, 0.5)),
                ms(at(curve, 0.99)),
                ms(at(curve, 0.999)),
                cpu.map_or("-".to_owned(), |cpu| format!("{cpu:.1}")),
            ]);
        }
    }
    (head, rows)
}
