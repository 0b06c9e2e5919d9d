//! `compare`: systems in turn, in rounds, against one backend and with the same draws: P1 to P4 in a
//! closed loop at capacity, P8 in an open loop at half of it.

mod figures;

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
use crate::peers::{PEERS, Running};
use crate::progress::Progress;
use crate::request::Kind;
use crate::result::{Machine, Report, load_now};
use crate::run::{self, Backend};
use crate::scenario::{BackendOptions, GatewayOptions, Group, Scenario};
use crate::summary;
use crate::system;

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
    /// Only these peers, instead of all that are installed: nginx, haproxy, nginx-redis, envoy, or none
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub peers: Option<Vec<String>>,
}

/// A system under test, on one of its routes.
struct Contender {
    name: &'static str,
    lane: Rc<Lane>,
    watched: Vec<Watched>,
    /// Whether its answers are refusals.
    refuses: bool,
    /// Which gateway it is, or which peer.
    who: Who,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// Whose books are asked about it.
    Gateway(usize),
    /// Whose counters are, where it has some.
    Peer(usize),
    /// Nobody stands before the backend.
    Backend,
}

/// What our own contenders are called.
const METERED: &str = "metered route";
const FREE: &str = "free route";
const REFUSAL: &str = "refusal";
const IN_REDIS: &str = "metered, books in Redis";
const ALONE: &str = "backend alone";

/// Runs it.
///
/// # Errors
/// When a part of ours does not start, or the audit of a run fails.
pub async fn run(options: &Options, binary: &Path) -> anyhow::Result<Report> {
    let load_before = load_now();
    let mut progress = Progress::default();
    let dir = run::scratch()?;
    progress.say("compare: starting");
    let scenario = users(options.users)?;
    let backend = Backend::start(&BackendOptions::default(), dir.path()).await?;
    let mut gateways = Vec::new();
    for (name, redis) in [("embedded", false), ("redis", true)] {
        let wanted = GatewayOptions { redis, ..GatewayOptions::default() };
        let dir = dir.path().join(name);
        let gateway = Gateway::start(binary, &dir, &wanted, backend.address).await?;
        gateway.apply(&scenario).await?;
        gateways.push(gateway);
    }
    let mut notes = Vec::new();
    let peers = start_peers(options, &dir.path().join("peers"), &backend, &mut notes).await?;
    let mut tasks = JoinSet::new();
    let (contenders, direct) =
        contenders(options, &scenario, &gateways, &peers, &backend, &mut tasks)?;

    let mut course = Course {
        backend: &backend,
        gateways: &gateways,
        peers: &peers,
        progress,
        driven: vec![Driven::default(); gateways.len()],
        seen: vec![Seen::default(); gateways.len()],
        options,
    };
    let mut closed: Vec<Vec<measure::Phase>> = contenders.iter().map(|_| Vec::new()).collect();
    let mut alone: Vec<measure::Phase> = Vec::new();
    let length = Duration::from_secs_f64(options.seconds);
    for round in 1..=options.rounds {
        alone.push(course.backend_alone(&direct.lane, round).await?);
        for (contender, done) in contenders.iter().zip(&mut closed) {
            done.push(course.turn(contender, round, Arrivals::Closed { length }).await?);
        }
    }
    // P8 is of these, where nginx is there.
    let nginx = contenders.iter().position(|contender| contender.name == PEERS[0].name);
    let metered = contenders.iter().position(|contender| contender.name == METERED);
    let mut open = Vec::new();
    if let (Some(nginx), Some(metered)) = (nginx, metered) {
        let rate = figures::half(&[&closed[nginx], &closed[metered]])?;
        let three = [&direct, &contenders[nginx], &contenders[metered]];
        open = three.map(|contender| (contender.name, Vec::new())).into();
        for round in 1..=options.rounds {
            for (contender, (_, done)) in three.iter().zip(&mut open) {
                done.push(course.turn(contender, round, Arrivals::Open { rate, length }).await?);
            }
        }
    }
    let Course { mut progress, driven, seen, .. } = course;
    progress.say("compare: audit");
    drop(tasks);
    let mut programs = vec![("tollgate", binary, "--version")];
    let parts = peers.iter().flat_map(|(index, _)| PEERS[*index].parts);
    programs.extend(parts.map(|part| (part.name, Path::new(part.version.0), part.version.1)));
    let machine = Machine::look(load_before, &programs);
    let about =
        "Tollgate's metered route against its peers, its own free route, and its own refusals.";
    let mut report = summary::empty("compare", about, false, machine);
    report.notes = notes;
    for ((gateway, of), (driven, seen)) in
        gateways.iter_mut().zip(["", ", books in Redis"]).zip(driven.iter().zip(seen))
    {
        let (mut lines, archive) = last_audit(gateway, driven, seen).await?;
        lines.iter_mut().for_each(|line| line.what += of);
        report.audit.append(&mut lines);
        let each = archive as f64 / driven.metered.max(1) as f64;
        report.figure(format!("archive_us_per_charge{of}"), each);
    }
    figures::capacity(&mut report, &contenders, closed, &alone);
    figures::latency(&mut report, &open);
    figures::judge(&mut report);
    Ok(report)
}

/// Those that can be started, by their places in the list; who cannot is told of in the notes.
async fn start_peers(
    options: &Options,
    dir: &Path,
    backend: &Backend,
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<(usize, Running)>> {
    let known = |name: &String| name == "none" || PEERS.iter().any(|peer| peer.key == name);
    let asked = options.peers.iter().flatten();
    ensure!(asked.clone().all(known), "--peers: one of them is not known; see --help");
    let mut running = Vec::new();
    for (index, peer) in PEERS.iter().enumerate() {
        if options.peers.as_ref().is_some_and(|names| !names.iter().any(|name| name == peer.key)) {
            notes.push(format!("{} was not asked for", peer.name));
            continue;
        }
        match peer.start(dir, backend.address, options.users).await {
            Ok(started) => {
                notes.push(format!("{} {}", peer.name, peer.does));
                running.push((index, started));
            }
            Err(error) => {
                notes.push(format!("NOT MEASURED: {} does not run: {error:#}", peer.name))
            }
        }
    }
    Ok(running)
}

/// All that take turns, and the way to the backend alone.
fn contenders(
    options: &Options,
    scenario: &Scenario,
    gateways: &[Gateway],
    peers: &[(usize, Running)],
    backend: &Backend,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<(Vec<Contender>, Contender)> {
    let mut lane = |name: &str, to, secret: &str, letter, kind, receipts| {
        let spec = Spec {
            name: name.to_owned(),
            to,
            kind,
            callers: org::callers(scenario, letter, secret),
            users: options.users,
            draw: How::Zipf,
            seed: 1,
            connections: CONNECTIONS,
            timeout: Duration::from_secs(10),
            events: 0,
            receipts,
        };
        Lane::start(spec, tasks)
    };
    let mut all = Vec::new();
    let secret = &gateways[0].secret;
    for (place, (index, peer)) in peers.iter().enumerate() {
        let lane = lane(PEERS[*index].key, peer.address, secret, 'a', Kind::Image, false)?;
        let (name, watched) = (PEERS[*index].name, peer.watched());
        all.push(Contender { name, lane, watched, refuses: false, who: Who::Peer(place) });
    }
    for (name, key, index, letter, kind) in [
        (METERED, "metered", 0, 'a', Kind::Image),
        (FREE, "free", 0, 'a', Kind::Free),
        (REFUSAL, "refused", 0, 'b', Kind::Image),
        (IN_REDIS, "metered", 1, 'a', Kind::Image),
    ] {
        let gateway = &gateways[index];
        let lane = lane(key, gateway.address, &gateway.secret, letter, kind, true)?;
        let watched = run::watched(gateway, backend);
        let watched = watched.into_iter().filter(|one| one.system).collect();
        let who = Who::Gateway(index);
        all.push(Contender { name, lane, watched, refuses: name == REFUSAL, who });
    }
    let direct = Contender {
        name: ALONE,
        lane: lane("direct", backend.address, secret, 'a', Kind::Image, false)?,
        watched: vec![backend.watched()],
        refuses: false,
        who: Who::Backend,
    };
    Ok((all, direct))
}

/// What all turns have in common.
struct Course<'a> {
    backend: &'a Backend,
    gateways: &'a [Gateway],
    peers: &'a [(usize, Running)],
    progress: Progress,
    /// What the driver got of each gateway.
    driven: Vec<Driven>,
    /// What the backend saw of each gateway's turns.
    seen: Vec<Seen>,
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
        let before_all = self.look(contender).await?;
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
            let now = self.look(contender).await?;
            let differing = differing(&driven, &before_all, &now);
            if differing.is_empty() {
                break now;
            }
            let why = differing.join("; ");
            ensure!(Instant::now() < deadline, "AUDIT: {}: {why}", contender.name);
            system::pause().await;
        };
        if let Who::Gateway(index) = contender.who {
            self.seen[index].requests += now.requests - before_all.requests;
            for (lane, _, stats) in before.lanes.iter().chain(&done.lanes) {
                self.driven[index].add(lane.spec().kind, stats);
            }
        }
        Ok(done)
    }

    /// What everybody says who counts.
    async fn look(&self, contender: &Contender) -> anyhow::Result<Look> {
        let requests = self.backend.seen().await?.requests;
        let (mut own, mut others) = (None, Vec::new());
        for (index, gateway) in self.gateways.iter().enumerate() {
            let metrics = gateway.metrics().await?;
            if contender.who == Who::Gateway(index) {
                own = Some(metrics);
            } else {
                others.push(metrics);
            }
        }
        let taken = match contender.who {
            Who::Peer(place) => self.peers[place].1.taken().await?,
            _ => None,
        };
        Ok(Look { requests, own, others, taken })
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

/// What is counted at a moment.
struct Look {
    /// By the backend.
    requests: u64,
    /// By the gateway whose turn it is.
    own: Option<Metrics>,
    /// By the other gateways, which nobody asks for anything.
    others: Vec<Metrics>,
    /// Credits, by a peer that counts.
    taken: Option<u64>,
}

/// What does not agree with what the driver got. Of a peer is known what the backend saw, and its
/// counters where it has some. The archive may be behind; it is waited for at the end.
fn differing(driven: &Driven, before: &Look, now: &Look) -> Vec<String> {
    let backend = Seen { requests: now.requests - before.requests, failed: 0, bytes: 0 };
    let lines = match (&before.own, &now.own) {
        (Some(before), Some(now)) => {
            let metrics = Some(Metrics { lag: 0, ..now.since(before) });
            audit::compare(driven, &Found { backend, metrics, ..Found::default() })
        }
        _ => audit::of_backend(driven, backend),
    };
    let mut differing = audit::findings(&lines);
    for (before, now) in before.others.iter().zip(&now.others) {
        let since = now.since(before).outcomes;
        if !since.is_empty() {
            differing.push(format!("another gateway counted {since:?}"));
        }
    }
    if let (Some(before), Some(now)) = (before.taken, now.taken)
        && now - before != driven.metered
    {
        let taken = now - before;
        differing.push(format!("{taken} credits taken for {} answers", driven.metered));
    }
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

/// Over all turns of a gateway: the metrics, the records and the archive. With it the CPU of the
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
