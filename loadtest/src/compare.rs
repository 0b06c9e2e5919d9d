//! `compare`: systems in turn, in rounds, against one backend and with the same draws: P1, P2 and
//! P4 in a closed loop at capacity, P8 in an open loop at half of it.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::audit::{self, Driven, Found};
use crate::backend::Seen;
use crate::cpu;
use crate::draw::How;
use crate::driver::{Arrivals, Lane, Spec, Stats};
use crate::gateway::{Gateway, Metrics};
use crate::measure::{self, Plan, Watched};
use crate::org;
use crate::peers::NGINX;
use crate::progress::Progress;
use crate::request::Kind;
use crate::result::{Machine, Report, load_now, median, number};
use crate::run::{self, Backend};
use crate::scenario::{BackendOptions, Expect, GatewayOptions, Group, Scenario};
use crate::summary;
use crate::system;

/// A server that has idle time wakes up for less work at a time, so its cost per request rises by
/// half: a round counts only where each system had its core to itself and was the bottleneck.
const BUSY: f64 = 0.75;
/// Fewer rounds are no result to quote.
const QUOTABLE: usize = 5;
/// How many connections; the same for all.
const CONNECTIONS: usize = 64;

/// How long the gateway may take to settle what the driver has got.
const SETTLING: Duration = Duration::from_secs(5);

/// See `--help`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Rounds, in each of which every system has its turn; 5 have to count
    #[arg(long, default_value_t = 7)]
    pub rounds: u64,
    /// Seconds of each measured run
    #[arg(long, default_value_t = 8.0)]
    pub seconds: f64,
    /// Users who pay; there are as many who have nothing left
    #[arg(long, default_value_t = 100_000)]
    pub users: u64,
}

/// A system under test, on one of its routes.
struct Contender {
    name: &'static str,
    lane: Rc<Lane>,
    watched: Vec<Watched>,
    /// Whether its answers are refusals.
    refuses: bool,
    /// Whether the gateway's books are asked about it.
    gateway: bool,
}

/// Runs it.
///
/// # Errors
/// When something does not start, or the audit of a run fails.
pub async fn run(options: &Options, binary: &Path) -> anyhow::Result<Report> {
    let load_before = load_now();
    let mut progress = Progress::default();
    let dir = run::scratch()?;
    progress.say("compare: starting");
    let scenario = users(options.users)?;
    let backend = Backend::start(&BackendOptions::default(), dir.path()).await?;
    let mut gateway = Gateway::start(
        binary,
        &dir.path().join("tollgate"),
        &GatewayOptions::default(),
        backend.address,
    )
    .await?;
    gateway.apply(&scenario).await?;
    let nginx = NGINX.start(&dir.path().join("peer"), backend.address).await?;

    let mut tasks = JoinSet::new();
    let tollgate: Vec<Watched> =
        run::watched(&gateway, &backend).into_iter().filter(|one| one.system).collect();
    let lane = |name: &str, to, letter, kind, receipts, tasks: &mut JoinSet<()>| {
        let callers = org::callers(&scenario, letter, &gateway.secret);
        let name = name.to_owned();
        let timeout = Duration::from_secs(10);
        let (users, draw, seed) = (options.users, How::Zipf, 1);
        let spec = Spec {
            name,
            to,
            kind,
            callers,
            users,
            draw,
            seed,
            connections: CONNECTIONS,
            timeout,
            events: 0,
            receipts,
        };
        Lane::start(spec, tasks)
    };
    let forwards = lane("nginx", nginx.address, 'a', Kind::Image, false, &mut tasks)?;
    let metered = lane("metered", gateway.address, 'a', Kind::Image, true, &mut tasks)?;
    let free = lane("free", gateway.address, 'a', Kind::Free, true, &mut tasks)?;
    let refused = lane("refused", gateway.address, 'b', Kind::Image, true, &mut tasks)?;
    let direct = lane("direct", backend.address, 'a', Kind::Image, false, &mut tasks)?;
    let ours = |name, lane, refuses| Contender {
        name,
        lane,
        watched: tollgate.clone(),
        refuses,
        gateway: true,
    };
    let contenders = [
        Contender {
            name: NGINX.name,
            lane: forwards,
            watched: nginx.watched(),
            refuses: false,
            gateway: false,
        },
        ours("metered route", metered, false),
        ours("free route", free, false),
        ours("refusal", refused, true),
    ];
    let mut course = Course {
        backend: &backend,
        gateway: &gateway,
        progress,
        driven: Driven::default(),
        seen: Seen::default(),
        options,
    };
    let mut closed: Vec<Vec<measure::Phase>> = contenders.iter().map(|_| Vec::new()).collect();
    let mut alone: Vec<measure::Phase> = Vec::new();
    for round in 1..=options.rounds {
        alone.push(course.backend_alone(&direct, round).await?);
        for (contender, done) in contenders.iter().zip(&mut closed) {
            let length = Duration::from_secs_f64(options.seconds);
            done.push(course.turn(contender, round, Arrivals::Closed { length }).await?);
        }
    }
    let rate = half(&closed)?;
    let straight = Contender {
        name: "backend alone",
        lane: direct,
        watched: vec![backend.watched()],
        refuses: false,
        gateway: false,
    };
    let open_contenders = [&straight, &contenders[0], &contenders[1]];
    let mut open: Vec<Vec<measure::Phase>> = open_contenders.iter().map(|_| Vec::new()).collect();
    for round in 1..=options.rounds {
        for (contender, done) in open_contenders.iter().zip(&mut open) {
            let length = Duration::from_secs_f64(options.seconds);
            done.push(course.turn(contender, round, Arrivals::Open { rate, length }).await?);
        }
    }
    let Course { mut progress, driven, seen, .. } = course;
    progress.say("compare: audit");
    let lines = last_audit(&mut gateway, &driven, seen).await?;
    drop(tasks);

    let programs = [("tollgate", binary, "--version"), ("nginx", Path::new("nginx"), "-v")];
    let machine = Machine::look(load_before, &programs);
    let about = "Tollgate's metered route against nginx that only forwards, its own free route, and its own refusals.";
    let mut report = summary::empty("compare", about, false, machine);
    report.audit = lines.0;
    report.figure("archive_us_per_charge", lines.1 as f64 / driven.metered.max(1) as f64);
    capacity(&mut report, &contenders, closed, &alone);
    latency(&mut report, &open_contenders, &open);
    report.judge(&targets());
    for verdict in &mut report.verdicts {
        // They are told: whether a system is fast enough is for a person to decide.
        verdict.counts = false;
    }
    Ok(report)
}

/// What all turns have in common.
struct Course<'a> {
    backend: &'a Backend,
    gateway: &'a Gateway,
    progress: Progress,
    driven: Driven,
    /// What the backend saw of the gateway's turns.
    seen: Seen,
    options: &'a Options,
}

impl Course<'_> {
    /// A warm-up, a measured run, and the audit of both.
    async fn turn(
        &mut self,
        contender: &Contender,
        round: u64,
        arrivals: Arrivals,
    ) -> anyhow::Result<measure::Phase> {
        let (seen, metrics) = (self.backend.seen().await?.requests, self.gateway.metrics().await?);
        let warm = Duration::from_secs_f64(self.options.seconds.min(1.0));
        contender.lane.reseed(round + 1000)?;
        let before = self.phase(contender, round, Arrivals::Closed { length: warm }).await?;
        // The same draws in the same order for all.
        contender.lane.reseed(round)?;
        let done = self.phase(contender, round, arrivals).await?;

        let mut driven = Driven::default();
        for phase in [&before, &done] {
            for (lane, _, stats) in &phase.lanes {
                ensure!(stats.wrong.is_none(), "{}: {:?}", contender.name, stats.wrong);
                check(contender, stats)?;
                driven.add(lane.spec().kind, stats);
            }
        }
        let deadline = Instant::now() + SETTLING;
        let now = loop {
            let now = self.since(seen, &metrics).await?;
            let differing = differing(contender, &driven, &now);
            if differing.is_empty() {
                break now;
            }
            let why = differing.join("; ");
            ensure!(Instant::now() < deadline, "AUDIT: {}: {why}", contender.name);
            system::pause().await;
        };
        if !contender.gateway {
            return Ok(done);
        }
        self.seen.requests += now.backend.requests;
        for phase in [&before, &done] {
            phase
                .lanes
                .iter()
                .for_each(|(lane, _, stats)| self.driven.add(lane.spec().kind, stats));
        }
        Ok(done)
    }

    /// What backend and metrics counted since a look at both. The archive may be behind; it is
    /// waited for at the end.
    async fn since(&self, seen: u64, before: &Metrics) -> anyhow::Result<Found> {
        let requests = self.backend.seen().await?.requests - seen;
        let backend = Seen { requests, failed: 0, bytes: 0 };
        let metrics = Metrics { lag: 0, ..self.gateway.metrics().await?.since(before) };
        Ok(Found { backend, metrics: Some(metrics), ..Found::default() })
    }

    async fn phase(
        &mut self,
        contender: &Contender,
        round: u64,
        arrivals: Arrivals,
    ) -> anyhow::Result<measure::Phase> {
        let title = format!("round {round} of {}: {}", self.options.rounds, contender.name);
        let lanes = vec![(Rc::clone(&contender.lane), arrivals)];
        let watched = contender.watched.clone();
        let plan = Plan { title: &title, lanes, watched, journal: None, instants: Vec::new() };
        measure::run(plan, &mut self.progress, measure::nothing).await
    }

    /// What the backend reaches on a core of its own: in each round, because how much a shared
    /// machine gives changes with time.
    async fn backend_alone(
        &mut self,
        direct: &Rc<Lane>,
        round: u64,
    ) -> anyhow::Result<measure::Phase> {
        let pid = self.backend.watched().pid;
        system::pin(pid, system::SYSTEM_CORE)?;
        direct.reseed(round)?;
        let length = Duration::from_secs_f64(self.options.seconds.min(1.0));
        let watched = vec![self.backend.watched(), run::driver()];
        let lanes = vec![(Rc::clone(direct), Arrivals::Closed { length })];
        let plan = Plan {
            title: "the backend alone",
            lanes,
            watched,
            journal: None,
            instants: Vec::new(),
        };
        let done = measure::run(plan, &mut self.progress, measure::nothing).await;
        system::pin(pid, system::DRIVER_CORE)?;
        done
    }
}

/// What does not agree with what the driver got. Of a peer nothing is known but what the backend
/// saw, and nobody's books may have moved.
fn differing(contender: &Contender, driven: &Driven, found: &Found) -> Vec<String> {
    if contender.gateway {
        return audit::findings(&audit::compare(driven, found));
    }
    let mut differing = audit::findings(&audit::of_backend(driven, found.backend));
    let counted = found.metrics.iter().filter(|metrics| !metrics.outcomes.is_empty());
    differing.extend(counted.map(|metrics| format!("the gateway counted {:?}", metrics.outcomes)));
    differing
}

/// Only right answers count.
fn check(contender: &Contender, stats: &Stats) -> anyhow::Result<()> {
    let counts = &stats.counts;
    let right = if contender.refuses { counts.refused } else { counts.served };
    let all = stats.sent + counts.dropped;
    ensure!(
        right == all && right > 0,
        "{}: {right} of {all} answers are right: {counts:?}",
        contender.name
    );
    let code =
        contender.refuses.then(|| stats.codes.iter().all(|(code, _)| code == "seat_exhausted"));
    ensure!(code != Some(false), "{}: {:?}", contender.name, stats.codes);
    Ok(())
}

fn rate(phase: &measure::Phase) -> f64 {
    let answered =
        phase.lanes.iter().map(|(_, _, stats)| stats.counts.served + stats.counts.refused);
    answered.sum::<u64>() as f64 / phase.took
}

/// Half of what the slower of nginx and the metered route reaches: a rate that both can serve.
fn half(closed: &[Vec<measure::Phase>]) -> anyhow::Result<f64> {
    let reached =
        closed.iter().take(2).map(|rounds| median(&rounds.iter().map(rate).collect::<Vec<_>>()));
    let slower = reached.collect::<Option<Vec<f64>>>().context("nothing was measured")?;
    Ok(slower.into_iter().fold(f64::MAX, f64::min) / 2.0)
}

/// P1, P2 and P4, of the rounds that are comparable.
fn capacity(
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
    let cpu = |index: usize| {
        let name = format!("{}.system.cpu_us_per_request", contenders[index].name);
        report.figures.get(&name).map_or(Vec::new(), |figure| figure.rounds.clone())
    };
    let ratio = |above: usize, below: usize| -> Vec<f64> {
        cpu(above).iter().zip(&cpu(below)).map(|(above, below)| above / below).collect()
    };
    let ratios = [("P1", ratio(1, 0)), ("P2", ratio(1, 2)), ("P4", ratio(3, 1))];
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

/// P8: what a system adds to the backend's own latency, at the same rate.
fn latency(report: &mut Report, contenders: &[&Contender], open: &[Vec<measure::Phase>]) {
    for (contender, phases) in contenders.iter().zip(open) {
        let name = format!("{} at half", contender.name);
        report.phases.push(summary::summed(&name, phases));
        summary::figures(report, &name, phases);
    }
    for (what, quantile) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
        let of = |index: usize| -> Vec<f64> {
            let stats = open[index].iter().flat_map(|phase| &phase.lanes);
            stats.map(|(_, _, stats)| stats.served.value_at_quantile(quantile) as f64).collect()
        };
        let (direct, nginx, ours) = (of(0), of(1), of(2));
        let rounds = direct.iter().zip(&nginx).zip(&ours);
        let added = rounds
            .map(|((direct, nginx), ours)| ((nginx - direct).max(1.0), (ours - direct).max(1.0)));
        report.spread(format!("P8.{what}"), added.map(|(nginx, ours)| ours / nginx).collect());
        report.spread(
            format!("P8.{what}_whole"),
            nginx.iter().zip(&ours).map(|(nginx, ours)| ours / nginx).collect(),
        );
    }
    if let Some(rate) = open.first().and_then(|rounds| rounds.first()).map(rate) {
        report.notes.push(format!(
            "P8 at {} requests a second, half of what the slower of both reaches",
            number(rate.round())
        ));
    }
}

/// What docs/performance.md demands.
fn targets() -> Vec<Expect> {
    let most = |figure: &str, most: f64| Expect {
        figure: figure.to_owned(),
        over: None,
        at_most: Some(most),
        at_least: None,
        exact: false,
    };
    let mut targets = vec![most("P1", 1.15), most("P2", 1.15), most("P4", 0.6)];
    targets.extend(["P8.p50", "P8.p99", "P8.p999"].map(|figure| most(figure, 1.3)));
    let headroom = Expect { at_most: None, at_least: Some(2.0), ..most("backend_headroom", 0.0) };
    targets.push(headroom);
    targets
}

/// The users of P1: three licences each, and as many who have nothing left.
fn users(count: u64) -> anyhow::Result<Scenario> {
    let mut scenario = Scenario::load("exhausted-flood")?;
    "compare".clone_into(&mut scenario.name);
    for group in &mut scenario.users {
        group.count = count;
    }
    let empty: &mut Group = scenario.users.last_mut().context("no users")?;
    empty.licences = vec![empty.licences[0]; 3];
    Ok(scenario)
}

/// Over all turns of the gateway: the metrics, the records and the archive. With it the CPU of the
/// archive's threads until they had caught up.
async fn last_audit(
    gateway: &mut Gateway,
    driven: &Driven,
    seen: Seen,
) -> anyhow::Result<(Vec<audit::Line>, u64)> {
    let metrics = gateway.settle().await?;
    let archive = cpu::read(&gateway.pids())?.archive;
    let captured = gateway.captured(1).await?;
    gateway.end(Signal::TERM).await?;
    let verified = gateway.verify().await?;
    let found = Found {
        backend: seen,
        metrics: Some(metrics),
        verified,
        captured: Some(captured),
        archived: None,
    };
    Ok((audit::compare(driven, &found), archive))
}
