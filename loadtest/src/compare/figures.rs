//! What the turns come to: ratios of systems that stood side by side in one round.

use anyhow::Context;

use super::{Contender, FREE, IN_REDIS, METERED, REFUSAL};
use crate::measure;
use crate::result::{Report, median, number};
use crate::scenario::Expect;
use crate::summary;

/// A server that has idle time wakes up for less work at a time, so its cost per request rises by
/// half: a round counts only where each system had its core to itself and was the bottleneck.
const BUSY: f64 = 0.75;
/// Fewer rounds are no result to quote.
const QUOTABLE: usize = 5;
/// The targets that are ratios of CPU, of whom, and over whom.
const RATIOS: &[(&str, &str, &str)] = &[
    ("P1", METERED, "nginx"),
    ("P2", METERED, FREE),
    ("P3", IN_REDIS, "nginx + Lua + Redis"),
    ("P4", REFUSAL, METERED),
    ("metered_over_haproxy", METERED, "HAProxy"),
    ("metered_over_envoy", METERED, "Envoy"),
];

fn rate(phase: &measure::Phase) -> f64 {
    let answered =
        phase.lanes.iter().map(|(_, _, stats)| stats.counts.served + stats.counts.refused);
    answered.sum::<u64>() as f64 / phase.took
}

/// Half of what the slower of these reaches: a rate that all can serve.
pub fn half(closed: &[&Vec<measure::Phase>]) -> anyhow::Result<f64> {
    let reached = closed.iter().map(|rounds| median(&rounds.iter().map(rate).collect::<Vec<_>>()));
    let slower = reached.collect::<Option<Vec<f64>>>().context("nothing was measured")?;
    Ok(slower.into_iter().fold(f64::MAX, f64::min) / 2.0)
}

/// P1 to P4, of the rounds that are comparable.
pub fn capacity(
    report: &mut Report,
    contenders: &[Contender],
    mut closed: Vec<Vec<measure::Phase>>,
    alone: &[measure::Phase],
) {
    let rounds = alone.len();
    let busy = |round: usize| {
        let shares = closed.iter().map(|rounds| {
            let phase = &rounds[round];
            let used: u64 = phase.used.iter().map(|used| used.cpu_us + used.archive_us).sum();
            used as f64 / 1e6 / phase.took
        });
        shares.fold(f64::MAX, f64::min) >= BUSY
    };
    let good: Vec<bool> = (0..rounds).map(busy).collect();
    let count = good.iter().filter(|good| **good).count();
    report.notes.push(format!(
        "{count} of {rounds} rounds kept every system at least {:.0} % busy",
        BUSY * 100.0
    ));
    let quotable = count >= QUOTABLE;
    if quotable {
        for phases in &mut closed {
            let mut keep = good.iter();
            phases.retain(|_| keep.next().copied().unwrap_or(false));
        }
    } else {
        report.notes.push(format!("fewer than {QUOTABLE} such rounds: no result to quote"));
    }
    for (contender, phases) in contenders.iter().zip(&closed) {
        let phase = summary::summed(contender.name, phases);
        report.bars.extend(summary::bar(contender.name, &phase));
        report.phases.push(phase);
        summary::figures(report, contender.name, phases);
    }
    let cpu = |name: &str| {
        let figure = report.figures.get(&format!("{name}.system.cpu_us_per_request"));
        figure.map_or(Vec::new(), |figure| figure.rounds.clone())
    };
    let ratios: Vec<(&str, Vec<f64>)> = RATIOS
        .iter()
        .map(|(target, above, below)| {
            let (above, below) = (cpu(above), cpu(below));
            (*target, above.iter().zip(&below).map(|(above, below)| above / below).collect())
        })
        .collect();
    for (name, values) in ratios {
        report.spread(name, values);
    }
    let fastest = |round: usize| {
        // A refusal asks nothing of the backend.
        let served = closed.iter().zip(contenders).filter(|(_, contender)| !contender.refuses);
        served.filter_map(|(rounds, _)| rounds.get(round)).map(rate).fold(0.0, f64::max)
    };
    let kept: Vec<f64> = if quotable {
        alone.iter().zip(&good).filter(|(_, good)| **good).map(|(phase, _)| rate(phase)).collect()
    } else {
        alone.iter().map(rate).collect()
    };
    let headroom: Vec<f64> =
        kept.iter().enumerate().map(|(round, reached)| reached / fastest(round)).collect();
    report.spread("backend.served_per_s", kept);
    let driver = |phase: &measure::Phase| {
        let used = phase.used.iter().find(|used| used.name == "driver");
        used.map(|used| used.cpu_us as f64 / (rate(phase) * phase.took))
    };
    report.spread("driver_us_per_request", alone.iter().filter_map(driver).collect());
    report.spread("backend_headroom", headroom);
}

/// P8: what a system adds to the backend's own latency, at the same rate: of the backend alone, nginx
/// and the metered route; nothing where they were not measured.
pub fn latency(report: &mut Report, open: &[(&str, Vec<measure::Phase>)]) {
    let [(_, direct), (_, nginx), (_, ours)] = open else { return };
    for (name, phases) in open {
        let name = format!("{name} at half");
        report.phases.push(summary::summed(&name, phases));
        summary::figures(report, &name, phases);
    }
    for (what, quantile) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
        let of = |phases: &[measure::Phase]| -> Vec<f64> {
            let stats = phases.iter().flat_map(|phase| &phase.lanes);
            stats.map(|(_, _, stats)| stats.served.value_at_quantile(quantile) as f64).collect()
        };
        let (direct, nginx, ours) = (of(direct), of(nginx), of(ours));
        let rounds = direct.iter().zip(&nginx).zip(&ours);
        let added = rounds
            .map(|((direct, nginx), ours)| ((nginx - direct).max(1.0), (ours - direct).max(1.0)));
        report.spread(format!("P8.{what}"), added.map(|(nginx, ours)| ours / nginx).collect());
        report.spread(
            format!("P8.{what}_whole"),
            nginx.iter().zip(&ours).map(|(nginx, ours)| ours / nginx).collect(),
        );
    }
    if let Some(rate) = direct.first().map(rate) {
        report.notes.push(format!(
            "P8 at {} requests a second, half of what the slower of both reaches",
            number(rate.round())
        ));
    }
}

/// Holds the figures against their targets. They are told: whether a system is fast enough is for a
/// person to decide.
pub fn judge(report: &mut Report) {
    let most = |figure: &str, most: f64| Expect {
        figure: figure.to_owned(),
        over: None,
        at_most: Some(most),
        at_least: None,
        exact: false,
    };
    let musts = [("P1", 1.15), ("P2", 1.15), ("P3", 0.65), ("P4", 0.6)];
    let mut targets: Vec<Expect> = musts.map(|(figure, must)| most(figure, must)).into();
    targets.extend(["P8.p50", "P8.p99", "P8.p999"].map(|figure| most(figure, 1.3)));
    let headroom = Expect { at_most: None, at_least: Some(2.0), ..most("backend_headroom", 0.0) };
    targets.push(headroom);
    targets.retain(|target| report.figures.contains_key(&target.figure));
    report.judge(&targets);
    for verdict in &mut report.verdicts {
        verdict.counts = false;
    }
}
