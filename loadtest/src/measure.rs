//! One phase: lanes that send, processes that are watched, and things that happen at instants.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::cpu::{self, Cpu};
use crate::driver::{Arrivals, Lane, Stats};
use crate::progress::Progress;

/// A process that is watched.
#[derive(Clone, Debug)]
pub struct Watched {
    /// What it is called in the report.
    pub name: String,
    /// Its id.
    pub pid: u32,
    /// Whether its children are part of it: not the driver's, which are all that it started.
    pub children: bool,
    /// Whether it is part of the system under test.
    pub system: bool,
}

/// CPU that a process took in a phase.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Used {
    /// Which.
    pub name: String,
    /// Microseconds, but for archive threads.
    pub cpu_us: u64,
    /// Microseconds of archive threads.
    pub archive_us: u64,
    /// Whether it is part of the system under test.
    pub system: bool,
}

/// The system under test at a moment.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds since the phase began.
    pub at: f64,
    /// Resident megabytes, of a million bytes, of the first process.
    pub rss_mb: f64,
    /// Its open files and sockets.
    pub descriptors: u64,
    /// Megabytes of the journal's segments.
    pub journal_mb: f64,
}

/// What came of a phase.
pub struct Phase {
    /// What was sent, in the order of the lanes.
    pub lanes: Vec<(Rc<Lane>, Arrivals, Stats)>,
    /// CPU by process; none where one was started again meanwhile.
    pub used: Vec<Used>,
    /// Second by second.
    pub samples: Vec<Sample>,
    /// What happened, and when.
    pub marks: Vec<(f64, String)>,
    /// Seconds until all was answered.
    pub took: f64,
}

/// What happened at an instant: in words, and who is watched from now on, where that changed.
pub type Happened = (String, Option<Vec<Watched>>);

/// What happens where there are no instants.
///
/// # Errors
/// Always: nothing happens.
pub async fn nothing(_: usize) -> anyhow::Result<Happened> {
    anyhow::bail!("nothing happens")
}

/// What a phase is made of.
pub struct Plan<'a> {
    /// What it is called while it runs.
    pub title: &'a str,
    /// Who sends.
    pub lanes: Vec<(Rc<Lane>, Arrivals)>,
    /// Who is watched; the first one's memory is sampled.
    pub watched: Vec<Watched>,
    /// Where the journal is.
    pub journal: Option<PathBuf>,
    /// When something happens.
    pub instants: Vec<Duration>,
}

/// Runs a phase to its end. What happens at the instants, in their order, `act` does.
///
/// # Errors
/// When a process is gone, or `act` fails.
pub async fn run(
    plan: Plan<'_>,
    progress: &mut Progress,
    mut act: impl AsyncFnMut(usize) -> anyhow::Result<Happened>,
) -> anyhow::Result<Phase> {
    let Plan { title, lanes, mut watched, journal, instants } = plan;
    let before: Vec<Cpu> = read(&watched)?;
    let start = Instant::now();
    let mut running = JoinSet::new();
    for (index, (lane, arrivals)) in lanes.iter().enumerate() {
        let (lane, arrivals) = (Rc::clone(lane), *arrivals);
        running.spawn_local(async move { (index, lane.run(arrivals, start).await) });
    }
    let mut stats: Vec<Option<Stats>> = lanes.iter().map(|_| None).collect();
    let (mut samples, mut marks) = (Vec::new(), Vec::new());
    let mut next_act = 0;
    let mut next_sample = start;
    let mut restarted = false;
    while !running.is_empty() {
        let happens = instants.get(next_act).map(|at| start + *at);
        let wake = happens.map_or(next_sample, |at| at.min(next_sample));
        tokio::select! {
            biased;
            Some(done) = running.join_next() => {
                let (index, told) = done?;
                stats[index] = Some(told?);
                continue;
            }
            () = tokio::time::sleep_until(wake.into()) => {}
        }
        if happens.is_some_and(|at| at <= Instant::now()) {
            let at = start.elapsed().as_secs_f64();
            let (what, others) = act(next_act).await?;
            marks.push((at, what));
            if let Some(others) = others {
                watched = others;
                restarted = true;
            }
            next_act += 1;
        }
        if next_sample <= Instant::now() {
            samples.extend(sample(&watched, journal.as_deref(), start));
            progress.show(title, start, &lanes);
            next_sample += Duration::from_secs(1);
        }
    }
    samples.extend(sample(&watched, journal.as_deref(), start));
    let used = if restarted { Vec::new() } else { used(&watched, &before)? };
    let took = start.elapsed().as_secs_f64();
    let mut ended = Vec::with_capacity(lanes.len());
    for ((lane, arrivals), stats) in lanes.into_iter().zip(stats) {
        ended.push((lane, arrivals, stats.context("a lane told nothing")?));
    }
    Ok(Phase { lanes: ended, used, samples, marks, took })
}

fn read(watched: &[Watched]) -> anyhow::Result<Vec<Cpu>> {
    let read = |one: &Watched| if one.children { cpu::read(&[one.pid]) } else { cpu::own(one.pid) };
    watched.iter().map(read).collect()
}

fn used(watched: &[Watched], before: &[Cpu]) -> anyhow::Result<Vec<Used>> {
    let now = read(watched)?;
    let since = watched.iter().zip(now.iter().zip(before)).map(|(one, (now, before))| {
        let cpu = now.since(before)?;
        let name = one.name.clone();
        Ok(Used { name, cpu_us: cpu.system, archive_us: cpu.archive, system: one.system })
    });
    since.collect()
}

/// Nothing where the process is just being started again.
fn sample(
    watched: &[Watched],
    journal: Option<&std::path::Path>,
    start: Instant,
) -> Option<Sample> {
    let holds = cpu::holds(watched.first()?.pid).ok()?;
    let journal_mb = journal.map_or(0.0, |journal| cpu::disk(journal, ".journal") as f64 / 1e6);
    Some(Sample {
        at: start.elapsed().as_secs_f64(),
        rss_mb: holds.rss as f64 / 1e6,
        descriptors: holds.descriptors,
        journal_mb,
    })
}
