//! What a scenario's file says: who there is, what they send in which phases, what goes wrong
//! meanwhile, and what has to come of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::draw::How;
use crate::exact::Amount;
use crate::request::Kind;

/// The directory of scenarios.
pub const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");

/// A scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name: the file's.
    #[serde(skip_deserializing)]
    pub name: String,
    /// What it shows, in a sentence.
    pub about: String,
    /// Of all that is drawn.
    #[serde(default = "one")]
    pub seed: u64,
    /// How often all phases are run, one after the other.
    #[serde(default = "one")]
    pub rounds: u64,
    /// The orgs.
    #[serde(default)]
    pub org: Orgs,
    /// Groups of users.
    pub users: Vec<Group>,
    /// Who sends what.
    pub flow: Vec<Flow>,
    /// How much, when.
    pub phase: Vec<Phase>,
    /// What goes wrong.
    #[serde(default)]
    pub fault: Vec<Fault>,
    /// What has to come of it.
    #[serde(default)]
    pub expect: Vec<Expect>,
    /// The gateway.
    #[serde(default)]
    pub gateway: GatewayOptions,
    /// The backend.
    #[serde(default)]
    pub backend: BackendOptions,
}

/// Orgs, all alike; users are dealt out to them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Orgs {
    /// How many.
    pub count: u64,
    /// Operations of each pool.
    pub pool: Amount,
    /// What happens past it, as the org file says it.
    pub overage: String,
}

/// Users that are alike.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// How many.
    pub count: u64,
    /// Credits a cycle of each of a user's licences, in the order in which they burn.
    #[serde(default)]
    pub licences: Vec<Amount>,
    /// Whether they have access to the pool.
    #[serde(default)]
    pub pool: bool,
}

/// A lane of requests.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// Its name.
    pub name: String,
    /// For which group.
    pub users: String,
    /// What.
    pub request: Kind,
    /// How users are drawn.
    #[serde(default)]
    pub draw: How,
    /// Over how many connections at most.
    #[serde(default = "sixty_four")]
    pub connections: usize,
    /// Seconds after which an answer has not come.
    #[serde(default = "ten")]
    pub timeout: u64,
}

/// A stretch of time with the same load.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// How long it is.
    pub seconds: f64,
    /// Requests a second, by flow: open loop.
    #[serde(default)]
    pub rate: BTreeMap<String, f64>,
    /// Flows that send as soon as they have their answers.
    #[serde(default)]
    pub closed: Vec<String>,
    /// Instead of a rate: this part of what the flow reached in the last phase before in which it
    /// was closed.
    #[serde(default)]
    pub share: BTreeMap<String, f64>,
    /// The phase is run once for each, with rates and shares times this.
    #[serde(default)]
    pub steps: Vec<f64>,
    /// Counted in the audit only.
    #[serde(default)]
    pub warm: bool,
    /// How long it is in the short form, at most.
    #[serde(default = "two")]
    pub short: f64,
}

/// Something that happens in a phase of the first round.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// In which phase.
    pub phase: String,
    /// How many seconds after its beginning.
    pub at: f64,
    /// What.
    pub what: What,
    /// For how long, where it has a length.
    #[serde(default)]
    pub seconds: f64,
    /// The time that the gateway's clock is set to.
    pub to: Option<String>,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The backend answers nothing.
    BackendStall,
    /// The backend answers every third request with 503.
    BackendErrors,
    /// Redis answers nothing.
    RedisStall,
    /// The gateway is killed and started again.
    GatewayKill,
    /// The gateway is told to end, and started again.
    GatewayStop,
    /// The gateway's clock is moved.
    Clock,
}

/// A bound of a figure, or of a ratio of two.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Of which figure.
    pub figure: String,
    /// Divided by this one.
    pub over: Option<String>,
    /// The most that it may be.
    pub at_most: Option<f64>,
    /// The least.
    pub at_least: Option<f64>,
    /// It holds whatever the machine does, in the short form too.
    #[serde(default)]
    pub exact: bool,
}

/// How the gateway is started.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayOptions {
    /// The time at which its clock stands; without it the clock is the system's.
    pub clock: Option<String>,
    /// Books in Redis.
    pub redis: bool,
    /// Event loops.
    pub workers: u64,
}

/// How the backend is started.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackendOptions {
    /// Events of a chat.
    pub events: u64,
    /// Milliseconds between them.
    pub event_delay_ms: u64,
    /// Seconds between the two events of an idle stream.
    pub idle_seconds: u64,
}

impl Default for Orgs {
    fn default() -> Self {
        let pool = Amount::millionths(0).plus(Amount::millionths(1_000_000).times(1_000_000));
        Self { count: 1, pool, overage: "\"reject\"".to_owned() }
    }
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self { clock: None, redis: false, workers: 1 }
    }
}

impl Default for BackendOptions {
    fn default() -> Self {
        Self { events: 200, event_delay_ms: 0, idle_seconds: 30 }
    }
}

const fn one() -> u64 {
    1
}

const fn two() -> f64 {
    2.0
}

const fn ten() -> u64 {
    10
}

const fn sixty_four() -> usize {
    64
}

impl Scenario {
    /// Of a file, or by its name in the directory of scenarios.
    ///
    /// # Errors
    /// When it is not there, or says what cannot be done.
    pub fn load(name: &str) -> anyhow::Result<Self> {
        let path = if name.ends_with(".toml") {
            PathBuf::from(name)
        } else {
            Path::new(DIRECTORY).join(name).with_extension("toml")
        };
        let known = || format!("{}: there are {}", path.display(), names().join(", "));
        let text = std::fs::read_to_string(&path).with_context(known)?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Self::parse(&stem, &text).with_context(|| path.display().to_string())
    }

    fn parse(name: &str, text: &str) -> anyhow::Result<Self> {
        let mut scenario: Self = toml::from_str(text)?;
        name.clone_into(&mut scenario.name);
        scenario.phase = scenario.phase.iter().flat_map(Phase::stepped).collect();
        scenario.check()?;
        Ok(scenario)
    }

    fn check(&self) -> anyhow::Result<()> {
        let flow = |name: &String| self.flow.iter().any(|flow| flow.name == *name);
        ensure!(self.users.len() <= 26, "at most 26 groups of users");
        for group in &self.users {
            ensure!((1..10_000_000).contains(&group.count), "users {}: 1 to 9999999", group.name);
        }
        ensure!((1..100_000).contains(&self.org.count), "1 to 99999 orgs");
        for flow in &self.flow {
            ensure!(
                self.group(&flow.users).is_some(),
                "flow {}: no users {}",
                flow.name,
                flow.users
            );
            ensure!(flow.connections > 0, "flow {}: no connections", flow.name);
        }
        for (index, phase) in self.phase.iter().enumerate() {
            let named = phase.rate.keys().chain(&phase.closed).chain(phase.share.keys());
            for name in named.clone() {
                ensure!(flow(name), "phase {}: there is no flow {name}", phase.name);
                let times = named.clone().filter(|other| *other == name).count();
                ensure!(times == 1, "phase {}: {name} twice", phase.name);
            }
            let before = &self.phase[..index];
            for name in phase.share.keys() {
                let known = before.iter().any(|phase| phase.closed.contains(name));
                ensure!(known, "phase {}: {name} was never closed before it", phase.name);
            }
            ensure!(phase.seconds > 0.0, "phase {}: no time", phase.name);
            let rates = phase.rate.values().chain(phase.share.values());
            for rate in rates {
                ensure!(*rate > 0.0, "phase {}: a rate that is not above 0", phase.name);
            }
        }
        for fault in &self.fault {
            let phase = self.phase.iter().find(|phase| phase.name == fault.phase);
            let phase = phase.with_context(|| format!("there is no phase {}", fault.phase))?;
            ensure!(
                fault.at + fault.seconds < phase.seconds,
                "a fault that is over only when phase {} is",
                phase.name
            );
            ensure!(
                (fault.what == What::Clock) == fault.to.is_some(),
                "a clock needs `to`, and nothing else has it"
            );
            ensure!(
                fault.what != What::Clock || self.gateway.clock.is_some(),
                "only a clock that stands can be moved: gateway.clock"
            );
            ensure!(fault.what != What::RedisStall || self.gateway.redis, "there is no Redis");
        }
        for expect in &self.expect {
            let bounds = expect.at_most.is_some() || expect.at_least.is_some();
            ensure!(bounds, "{}: nothing is expected", expect.figure);
        }
        Ok(())
    }

    /// A group of users, and the letter that their names begin with.
    pub fn group(&self, name: &str) -> Option<(char, &Group)> {
        let letters = 'a'..='z';
        letters.zip(&self.users).find(|(_, group)| group.name == name)
    }

    /// A short form, which shows that it works and measures nothing.
    pub fn short(mut self) -> Self {
        self.rounds = 1;
        for group in &mut self.users {
            group.count = group.count.min(2000);
        }
        self.org.count = self.org.count.min(10);
        for flow in &mut self.flow {
            flow.connections = flow.connections.min(200);
        }
        for phase in &mut self.phase {
            let before = phase.seconds;
            phase.seconds = before.min(phase.short);
            for rate in phase.rate.values_mut() {
                *rate = rate.min(300.0);
            }
            // Other things run beside a test, and what was reached once is not there for ever.
            for share in phase.share.values_mut() {
                *share *= 0.3;
            }
            for fault in self.fault.iter_mut().filter(|fault| fault.phase == phase.name) {
                fault.at *= phase.seconds / before;
                fault.seconds = fault.seconds.min(0.5);
            }
        }
        self.backend.idle_seconds = self.backend.idle_seconds.min(3);
        self
    }
}

impl Phase {
    fn stepped(&self) -> Vec<Self> {
        if self.steps.is_empty() {
            return vec![self.clone()];
        }
        let step = |by: &f64| {
            let mut phase = self.clone();
            phase.name = format!("{} {by}", self.name);
            phase.steps.clear();
            for rate in phase.rate.values_mut().chain(phase.share.values_mut()) {
                *rate *= by;
            }
            phase
        };
        self.steps.iter().map(step).collect()
    }

    /// What flows do in it.
    pub fn flows(&self) -> impl Iterator<Item = &String> {
        self.rate.keys().chain(&self.closed).chain(self.share.keys())
    }
}

/// The names of all scenarios.
pub fn names() -> Vec<String> {
    let entries = std::fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let stem = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    let toml =
        entries.map(|entry| entry.path()).filter(|path| path.extension() == Some("toml".as_ref()));
    let mut names: Vec<String> = toml.filter_map(stem).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_can_be_read() {
        let names = names();
        assert!(names.len() >= 15, "{names:?}");
        for name in names {
            let scenario = Scenario::load(&name).unwrap();
            assert!(!scenario.expect.is_empty(), "{name} expects nothing");
        }
    }

    const FINE: &str = r#"
        about = "x"
        [[users]]
        name = "all"
        count = 10
        [[flow]]
        name = "f"
        users = "all"
        request = "image"
        [[phase]]
        name = "p"
        seconds = 1
        rate = { f = 100.0 }
        steps = [0.5, 1.0]
    "#;

    #[test]
    fn steps_are_phases_of_their_own() {
        let scenario = Scenario::parse("x", FINE).unwrap();
        let rates: Vec<_> =
            scenario.phase.iter().map(|phase| (&*phase.name, phase.rate["f"])).collect();
        assert_eq!(rates, [("p 0.5", 50.0), ("p 1", 100.0)]);
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for (from, to) in [
            ("users = \"all\"", "users = \"none\""),
            ("{ f = 100.0 }", "{ g = 100.0 }"),
            ("{ f = 100.0 }", "{ f = 0.0 }"),
            ("count = 10", "count = 0"),
            ("count = 10", "cuont = 10"),
            ("rate =", "share ="),
            (
                "about = \"x\"",
                "about = \"x\"\n[[fault]]\nphase = \"q\"\nat = 1.0\nwhat = \"backend-stall\"",
            ),
            (
                "about = \"x\"",
                "about = \"x\"\n[[fault]]\nphase = \"p 1\"\nat = 0.5\nwhat = \"redis-stall\"",
            ),
            (
                "about = \"x\"",
                "about = \"x\"\n[[fault]]\nphase = \"p 1\"\nat = 0.5\nseconds = 0.5\nwhat = \"backend-stall\"",
            ),
            ("about = \"x\"", "about = \"x\"\n[[expect]]\nfigure = \"a\""),
        ] {
            let text = FINE.replace(from, to);
            assert_ne!(text, FINE);
            Scenario::parse("x", &text).unwrap_err();
        }
    }
}
