//! Runs a scenario: starts everything, drives the phases, audits, and states what came of it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::audit::{self, Driven, Found};
use crate::backend::{Orders, Seen};
use crate::cpu;
use crate::driver::{Arrivals, Charge, Lane, Spec};
use crate::gateway::{Gateway, Metrics};
use crate::http;
use crate::measure::{self, Happened, Plan, Watched};
use crate::org;
use crate::progress::Progress;
use crate::result::{Machine, Report, load_now};
use crate::scenario::{BackendOptions, Phase, Scenario, What};
use crate::summary;
use crate::system::{self, DRIVER_CORE, Process};

/// Of more users the sum over all of them takes too long to ask for.
const SUMMED: u64 = 200_000;

/// A directory that is removed, where nginx's worker, which may be nobody, can reach its own.
///
/// # Errors
/// When it cannot be made.
pub fn scratch() -> anyhow::Result<TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let target = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target"));
    std::fs::create_dir_all(target)?;
    let dir = tempfile::Builder::new().prefix("loadtest-").tempdir_in(target.canonicalize()?)?;
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755))?;
    Ok(dir)
}

/// The mock backend as a process.
pub struct Backend {
    process: Process,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Backend {
    /// On the driver's core.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(options: &BackendOptions, dir: &Path) -> anyhow::Result<Self> {
        let [address] = system::free()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["backend", "--listen", &address.to_string()]);
        command.args(["--events", &options.events.to_string()]);
        command.args(["--event-delay-ms", &options.event_delay_ms.to_string()]);
        command.args(["--idle-seconds", &options.idle_seconds.to_string()]);
        let mut process =
            Process::start("backend", &mut command, DRIVER_CORE, &dir.join("backend.log"))?;
        process.wait_for(address, "/backend/status").await?;
        Ok(Self { process, address })
    }

    /// What it saw.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn seen(&self) -> anyhow::Result<Seen> {
        let answer = http::ask(self.address, "GET", "/backend/status", &[], b"").await?;
        Ok(serde_json::from_slice(&answer.body)?)
    }

    async fn order(&self, orders: Orders) -> anyhow::Result<()> {
        let body = serde_json::to_vec(&orders)?;
        let answer = http::ask(self.address, "POST", "/backend/orders", &[], &body).await?;
        ensure!(answer.status == 200, "the backend: {}", answer.text());
        Ok(())
    }

    /// Its process.
    pub fn watched(&self) -> Watched {
        let pid = self.process.pid();
        Watched { name: "backend".to_owned(), pid, children: true, system: false }
    }
}

/// This process.
pub fn driver() -> Watched {
    let pid = std::process::id();
    Watched { name: "driver".to_owned(), pid, children: false, system: false }
}

/// Those who are watched beside a gateway.
pub fn watched(gateway: &Gateway, backend: &Backend) -> Vec<Watched> {
    let names = ["gateway", "redis"];
    let system = gateway.pids().into_iter().zip(names);
    let mut all: Vec<Watched> = system
        .map(|(pid, name)| Watched { name: name.to_owned(), pid, children: true, system: true })
        .collect();
    all.push(backend.watched());
    all.push(driver());
    all
}

/// What is needed to know of a run beside its phases.
#[derive(Default)]
pub struct Facts {
    /// Seconds from its start until the gateway was ready, of each that was started again.
    pub restarts: RefCell<Vec<f64>>,
    /// Bytes of the gateway before it had users, and with them.
    pub empty: u64,
    /// With them.
    pub applied: u64,
}

struct Run<'a> {
    scenario: &'a Scenario,
    gateway: Gateway,
    backend: Backend,
    driven: Driven,
    charges: Vec<Charge>,
    facts: Facts,
    wrong: Vec<String>,
    /// What is in the metrics of lives that are over is not known.
    forgotten: bool,
    moved: bool,
}

/// Runs it.
///
/// # Errors
/// When something does not start, or ends by itself.
pub async fn run(scenario: &Scenario, binary: &Path, short: bool) -> anyhow::Result<Report> {
    let mut progress = Progress::default();
    let load_before = load_now();
    let dir = scratch()?;
    progress.say(&format!("{}: starting", scenario.name));
    let backend = Backend::start(&scenario.backend, dir.path()).await?;
    let gateway_dir = dir.path().join("tollgate");
    let gateway = Gateway::start(binary, &gateway_dir, &scenario.gateway, backend.address).await?;
    let memory = |gateway: &Gateway| {
        gateway.pids().first().map_or(Ok(0), |pid| Ok::<u64, anyhow::Error>(cpu::holds(*pid)?.rss))
    };
    let mut facts = Facts { empty: memory(&gateway)?, ..Facts::default() };
    gateway.apply(scenario).await?;
    facts.applied = memory(&gateway)?;
    let mut run = Run {
        scenario,
        gateway,
        backend,
        driven: Driven::default(),
        charges: Vec::new(),
        facts,
        wrong: Vec::new(),
        forgotten: false,
        moved: false,
    };
    let mut tasks = JoinSet::new();
    let lanes = run.lanes(&mut tasks)?;
    let phases = run.phases(&lanes, &mut progress).await?;
    progress.say(&format!("{}: audit", scenario.name));
    let (lines, mut notes) = run.audit().await?;
    drop(tasks);
    let programs =
        [("tollgate", binary, "--version"), ("redis", Path::new("redis-server"), "--version")];
    let programs = &programs[..if scenario.gateway.redis { 2 } else { 1 }];
    let machine = Machine::look(load_before, programs);
    notes.append(&mut run.wrong);
    let mut report = summary::scenario(scenario, short, machine, &phases, &run.facts);
    report.figure("total.credits", run.driven.receipts.seat.as_f64());
    report.figure("total.pool_operations", run.driven.receipts.pool.as_f64());
    report.figure("total.overage_operations", run.driven.receipts.overage.as_f64());
    report.audit = lines;
    report.notes.append(&mut notes);
    report.judge(&scenario.expect);
    Ok(report)
}

/// Phases of all rounds, by name, in the order of the first.
pub type Phases = Vec<(Phase, Vec<measure::Phase>)>;

impl Run<'_> {
    fn lanes(&self, tasks: &mut JoinSet<()>) -> anyhow::Result<BTreeMap<String, Rc<Lane>>> {
        let mut lanes = BTreeMap::new();
        for (index, flow) in self.scenario.flow.iter().enumerate() {
            let (letter, group) = self.scenario.group(&flow.users).context("no such users")?;
            let spec = Spec {
                name: flow.name.clone(),
                to: self.gateway.address,
                kind: flow.request,
                callers: org::callers(self.scenario, letter, &self.gateway.secret),
                users: group.count,
                draw: flow.draw,
                seed: self.scenario.seed + index as u64,
                connections: flow.connections,
                timeout: Duration::from_secs(flow.timeout),
                events: self.scenario.backend.events,
                receipts: true,
            };
            lanes.insert(flow.name.clone(), Lane::start(spec, tasks)?);
        }
        Ok(lanes)
    }

    async fn phases(
        &mut self,
        lanes: &BTreeMap<String, Rc<Lane>>,
        progress: &mut Progress,
    ) -> anyhow::Result<Phases> {
        let scenario = self.scenario;
        let mut all: Phases =
            scenario.phase.iter().map(|phase| (phase.clone(), Vec::new())).collect();
        for round in 0..scenario.rounds {
            for index in 0..all.len() {
                let phase = all[index].0.clone();
                let plan = lanes_of(&phase, lanes, &all, round)?;
                let title = format!("{} {} {}", scenario.name, round + 1, phase.name);
                let done = self.phase(&title, &phase, plan, round, progress).await?;
                for (lane, _, stats) in &done.lanes {
                    self.driven.add(lane.spec().kind, stats);
                    self.charges.extend(&stats.charges);
                    if let Some(wrong) = &stats.wrong {
                        self.wrong.push(format!("{title}, {}: {wrong}", lane.spec().name));
                    }
                }
                self.gateway.check()?;
                all[index].1.push(done);
            }
        }
        Ok(all)
    }

    async fn phase(
        &mut self,
        title: &str,
        phase: &Phase,
        lanes: Vec<(Rc<Lane>, Arrivals)>,
        round: u64,
        progress: &mut Progress,
    ) -> anyhow::Result<measure::Phase> {
        let mut acts = Vec::new();
        let faults =
            self.scenario.fault.iter().filter(|fault| fault.phase == phase.name && round == 0);
        for fault in faults {
            acts.push((Duration::from_secs_f64(fault.at), fault, true));
            if fault.seconds > 0.0 {
                acts.push((Duration::from_secs_f64(fault.at + fault.seconds), fault, false));
            }
        }
        acts.sort_by_key(|(at, ..)| *at);
        let plan = Plan {
            title,
            lanes,
            watched: watched(&self.gateway, &self.backend),
            journal: Some(self.gateway.journal()),
            instants: acts.iter().map(|(at, ..)| *at).collect(),
        };
        let act = async |index: usize| -> anyhow::Result<Happened> {
            let (_, fault, begins) = &acts[index];
            self.act(fault.what, fault.to.as_deref(), fault.seconds, *begins).await
        };
        measure::run(plan, progress, act).await
    }

    async fn act(
        &mut self,
        what: What,
        to: Option<&str>,
        seconds: f64,
        begins: bool,
    ) -> anyhow::Result<Happened> {
        let fine = Orders::default();
        let said = match (what, begins) {
            (What::BackendStall, true) => {
                let stall_ms = (seconds * 1000.0) as u64;
                self.backend.order(Orders { stall_ms, ..fine }).await?;
                "the backend stalls"
            }
            (What::BackendErrors, true) => {
                self.backend.order(Orders { fail_every: 3, fail_status: 503, ..fine }).await?;
                "the backend fails"
            }
            (What::BackendStall | What::BackendErrors, false) => {
                self.backend.order(fine).await?;
                "the backend is well"
            }
            (What::RedisStall, begins) => {
                self.gateway.stall_redis(begins)?;
                if begins { "Redis stalls" } else { "Redis goes on" }
            }
            (What::GatewayKill | What::GatewayStop, true) => {
                let signal = if what == What::GatewayKill { Signal::KILL } else { Signal::TERM };
                let ready = self.gateway.restart(signal).await?;
                self.facts.restarts.borrow_mut().push(ready.as_secs_f64());
                self.forgotten = true;
                let said = if what == What::GatewayKill { "killed" } else { "stopped" };
                return Ok((said.to_owned(), Some(watched(&self.gateway, &self.backend))));
            }
            (What::Clock, true) => {
                let to = to.context("no time")?;
                self.gateway.set_clock(to).await?;
                self.moved = true;
                return Ok((format!("clock {to}"), None));
            }
            (What::GatewayKill | What::GatewayStop | What::Clock, false) => "over",
        };
        Ok((said.to_owned(), None))
    }

    /// Asks everybody, ends the gateway, and compares.
    async fn audit(&mut self) -> anyhow::Result<(Vec<audit::Line>, Vec<String>)> {
        let mut notes = Vec::new();
        let metrics: Metrics = self.gateway.settle().await?;
        let scenario = self.scenario;
        let mut found = Found { backend: self.backend.seen().await?, ..Found::default() };
        if self.forgotten {
            notes.push(
                "audit: the metrics of a gateway that was started again are not compared"
                    .to_owned(),
            );
        } else {
            found.metrics = Some(metrics);
        }
        let users: u64 = scenario.users.iter().map(|group| group.count).sum();
        if self.moved {
            notes.push(
                "audit: balances of the cycle of now are not all there is, and not compared"
                    .to_owned(),
            );
        } else if users > SUMMED {
            notes.push(format!("audit: balances of more than {SUMMED} users are not summed"));
        } else {
            found.captured = Some(self.gateway.captured(scenario.org.count).await?);
        }
        found.archived = Some(self.archived().await?);
        self.gateway.end(Signal::TERM).await?;
        found.verified = self.gateway.verify().await?;
        if found.verified.is_none() {
            notes.push("audit: books in Redis have no records to verify by themselves".to_owned());
        }
        Ok((audit::compare(&self.driven, &found), notes))
    }

    /// Looks charges up that the driver was told of, evenly among them.
    async fn archived(&self) -> anyhow::Result<(u64, u64)> {
        let step = (self.charges.len() / 200).max(1);
        let (mut asked, mut right) = (0, 0);
        for charge in self.charges.iter().step_by(step) {
            let org = org::name(charge.user % self.scenario.org.count);
            let id = std::str::from_utf8(&charge.id)?;
            let document = self.gateway.admin(&format!("/v1/orgs/{org}/charges/{id}")).await;
            asked += 1;
            let Ok(document) = document else { continue };
            let cost = charge.cost.map(|cost| cost.to_string());
            let same = cost.is_none() || document["cost"].as_str() == cost.as_deref();
            right += u64::from(same && document["state"] == "captured");
        }
        Ok((asked, right))
    }
}

/// Which lanes send how much in a phase.
fn lanes_of(
    phase: &Phase,
    lanes: &BTreeMap<String, Rc<Lane>>,
    before: &Phases,
    round: u64,
) -> anyhow::Result<Vec<(Rc<Lane>, Arrivals)>> {
    let length = Duration::from_secs_f64(phase.seconds);
    let mut plan = Vec::new();
    for name in phase.flows() {
        let lane = lanes.get(name).with_context(|| format!("no flow {name}"))?;
        let arrivals = match (phase.rate.get(name), phase.share.get(name)) {
            (Some(rate), _) => Arrivals::Open { rate: *rate, length },
            (None, Some(share)) => {
                let reached = reached(name, before, round)?;
                Arrivals::Open { rate: (share * reached).max(1.0), length }
            }
            (None, None) => Arrivals::Closed { length },
        };
        plan.push((Rc::clone(lane), arrivals));
    }
    Ok(plan)
}

/// What a flow reached a second in the last phase before in which it was closed, in this round.
fn reached(flow: &str, before: &Phases, round: u64) -> anyhow::Result<f64> {
    let round = usize::try_from(round)?;
    let done = before.iter().filter(|(phase, _)| phase.closed.iter().any(|name| name == flow));
    let lanes = done.filter_map(|(_, rounds)| rounds.get(round)).flat_map(|phase| &phase.lanes);
    let mut ours = lanes.filter(|(lane, ..)| lane.spec().name == flow);
    let (_, _, stats) = ours.next_back().with_context(|| format!("{flow} was never closed"))?;
    Ok((stats.counts.served + stats.counts.refused) as f64 / stats.took.as_secs_f64())
}

/// The release binary of this tree.
///
/// # Errors
/// When it does not build.
pub fn build() -> anyhow::Result<PathBuf> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let status = Command::new("cargo")
        .args(["build", "--release", "--bin", "tollgate"])
        .current_dir(root)
        .status()?;
    ensure!(status.success(), "the gateway does not build");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join("release/tollgate"))
}
