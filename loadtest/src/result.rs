//! A result: what a run measured, as JSON. Reports are drawn of it, and other results compared with
//! it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::audit::Line;
use crate::driver::{Counts, Second};
use crate::measure::{Sample, Used};
use crate::scenario::Expect;

/// All of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The scenario, or `compare`.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// A short form measures nothing.
    pub short: bool,
    /// Where and of what.
    pub machine: Machine,
    /// Phases in their order, each once.
    pub phases: Vec<Phase>,
    /// Curves by a load that grows.
    #[serde(default)]
    pub loads: Vec<Load>,
    /// CPU per request, by system.
    #[serde(default)]
    pub bars: Vec<Bar>,
    /// All that can be compared with another result.
    pub figures: BTreeMap<String, Figure>,
    /// What was expected, and what came of it.
    pub verdicts: Vec<Verdict>,
    /// What was compared, and does it agree.
    pub audit: Vec<Line>,
    /// What a reader has to know.
    pub notes: Vec<String>,
}

/// Where, when and of what.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// When it ended.
    pub at: String,
    /// The processor.
    pub processor: String,
    /// How many cores.
    pub cores: usize,
    /// The kernel.
    pub kernel: String,
    /// Memory in megabytes.
    pub memory_mb: u64,
    /// How many wanted to run, at the beginning and at the end.
    pub load: Vec<String>,
    /// Programs, and the commit.
    pub versions: BTreeMap<String, String>,
}

/// A figure of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// The median, where there were several rounds.
    pub value: f64,
    /// Of each round.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<f64>,
}

/// A phase, over all rounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// Seconds, of all rounds.
    pub took: f64,
    /// Lanes.
    pub lanes: Vec<Lane>,
    /// CPU by process, of all rounds.
    pub used: Vec<Used>,
    /// The first round, second by second.
    pub samples: Vec<Sample>,
    /// What happened, and when.
    pub marks: Vec<(f64, String)>,
}

/// A lane in a phase.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lane {
    /// Its name.
    pub name: String,
    /// What was to be sent in a second; `None` in a closed loop.
    pub rate: Option<f64>,
    /// How requests ended.
    pub counts: Counts,
    /// Refusals by code.
    pub codes: Vec<(String, u64)>,
    /// Latency of what was served: share that is faster, microseconds.
    pub served: Vec<(f64, u64)>,
    /// Of refusals.
    pub refused: Vec<(f64, u64)>,
    /// Until the first byte.
    pub first: Vec<(f64, u64)>,
    /// The first round, second by second.
    pub seconds: Vec<Second>,
}

/// Latency over load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    /// Whose.
    pub name: String,
    /// Requests a second, and the latencies p50, p99, p99.9 in microseconds.
    pub points: Vec<(f64, [u64; 3])>,
}

/// What a request costs on a system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bar {
    /// The system, and what it did.
    pub name: String,
    /// Microseconds of CPU per request, by process.
    pub parts: Vec<(String, f64)>,
}

/// What became of an expectation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// The expectation.
    pub expect: Expect,
    /// The figure, or the ratio; `None` where there was nothing to measure.
    pub value: Option<f64>,
    /// Whether it is within its bounds.
    pub met: bool,
    /// Whether it counts: not in a short form, unless it holds there too.
    pub counts: bool,
}

impl Report {
    /// Sets a figure.
    pub fn figure(&mut self, name: impl Into<String>, value: f64) {
        self.figures.insert(name.into(), Figure { value, rounds: Vec::new() });
    }

    /// Sets a figure of several rounds; nothing where there are none.
    pub fn spread(&mut self, name: impl Into<String>, rounds: Vec<f64>) {
        if let Some(value) = median(&rounds) {
            self.figures.insert(name.into(), Figure { value, rounds });
        }
    }

    /// The value of a figure.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.figures.get(name).map(|figure| figure.value)
    }

    /// Holds what was measured against what is expected.
    pub fn judge(&mut self, expected: &[Expect]) {
        for expect in expected {
            let value = match &expect.over {
                None => self.value(&expect.figure),
                Some(over) => self.ratio(&expect.figure, over),
            };
            let within = |value: f64| {
                expect.at_most.is_none_or(|most| value <= most)
                    && expect.at_least.is_none_or(|least| value >= least)
            };
            let counts = !self.short || expect.exact;
            let met = value.is_some_and(within);
            self.verdicts.push(Verdict { expect: expect.clone(), value, met, counts });
        }
    }

    /// Within rounds, where both have as many.
    fn ratio(&self, figure: &str, over: &str) -> Option<f64> {
        let (figure, over) = (self.figures.get(figure)?, self.figures.get(over)?);
        let paired = figure.rounds.iter().zip(&over.rounds).map(|(one, other)| one / other);
        let ratios: Vec<f64> = paired.collect();
        let same = figure.rounds.len() == over.rounds.len();
        let ratio = median(&ratios).filter(|_| same).unwrap_or(figure.value / over.value);
        ratio.is_finite().then_some(ratio)
    }

    /// Why this is no result, or one that failed.
    pub fn failures(&self) -> Vec<String> {
        let mut failures: Vec<String> = crate::audit::findings(&self.audit)
            .into_iter()
            .map(|line| format!("AUDIT: {line}"))
            .collect();
        let missed = self.verdicts.iter().filter(|verdict| verdict.counts && !verdict.met);
        failures.extend(missed.map(|verdict| format!("expected {}", verdict.text())));
        failures
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(path).with_context(|| path.display().to_string())?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no result", path.display()))
    }
}

impl Verdict {
    /// Met or not, in a word.
    pub fn word(&self, short: bool) -> &'static str {
        match self.met {
            true => "met",
            false if short && !self.counts => "not judged in a short form",
            false => "MISSED",
        }
    }

    /// In words.
    pub fn text(&self) -> String {
        let expect = &self.expect;
        let over = expect.over.as_ref().map_or(String::new(), |over| format!(" ÷ {over}"));
        let most = expect.at_most.map_or(String::new(), |most| format!(" ≤ {}", number(most)));
        let least = expect.at_least.map_or(String::new(), |least| format!(" ≥ {}", number(least)));
        let value = self.value.map_or("not measured".to_owned(), number);
        format!("{}{over}{least}{most}: {value}", expect.figure)
    }
}

/// The middle one; of two the mean.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.get((sorted.len().max(1) - 1) / 2)?, sorted.get(sorted.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

/// As a person reads it: four digits that mean something.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 1000.0 || (value.fract() == 0.0 && size < 1e15) {
        let digits = format!("{:.0}", size);
        let mut grouped = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                grouped.push(',');
            }
            grouped.push(digit);
        }
        return if value < 0.0 { format!("-{grouped}") } else { grouped };
    }
    let places = if size >= 100.0 {
        1
    } else if size >= 1.0 {
        2
    } else {
        3
    };
    format!("{value:.places$}")
}

/// Adds one histogram's counts to another's: percentiles are never averaged.
pub fn merge(all: &mut Histogram<u64>, more: &Histogram<u64>) {
    // Their bounds are the same, so there is always room.
    let _ = all.add(more);
}

impl Machine {
    /// This one, now, and the programs of these commands.
    pub fn look(load_before: String, programs: &[(&str, &Path, &str)]) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let line = |text: &str, key: &str| {
            let found = text.lines().find(|line| line.starts_with(key));
            found.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let memory = line(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let memory = memory.split(' ').next().and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0);
        let mut versions = BTreeMap::new();
        for (name, program, argument) in programs {
            versions.insert((*name).to_owned(), told(Command::new(program).arg(argument)));
        }
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let mut git = Command::new("git");
        git.args(["-C", root, "describe", "--always", "--dirty", "--abbrev=12"]);
        versions.insert("commit".to_owned(), told(&mut git));
        Self {
            at: told(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"])),
            processor: line(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cores: read("/proc/cpuinfo")
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_mb: memory / 1000,
            load: vec![load_before, load_now()],
            versions,
        }
    }
}

/// How many want to run: the first three numbers of the kernel's line.
pub fn load_now() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// The first line with something in it that a command prints, wherever it does.
fn told(command: &mut Command) -> String {
    let Ok(done) = command.output() else { return "not there".to_owned() };
    let text = if done.stdout.is_empty() { done.stderr } else { done.stdout };
    let text = String::from_utf8_lossy(&text);
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0]), Some(5.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
    }

    #[test]
    fn numbers_are_readable() {
        let texts = [0.0123, 1.5, 123.45, 1234.5, 1_234_567.0, 7.0].map(number);
        assert_eq!(texts, ["0.012", "1.50", "123.5", "1,234", "1,234,567", "7"]);
    }
}
