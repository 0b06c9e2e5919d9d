//! The gateway that is loaded: the program as it is, with its own commands and its own API.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::exact::Amount;
use crate::http;
use crate::org;
use crate::scenario::{GatewayOptions, Scenario};
use crate::system::{self, ANY_CORE, Process, SYSTEM_CORE};

const CONFIG: &str = include_str!("../peers/gateway.toml");
/// As docs/scaling.md says; without the rewriting of its file, which would be another process.
const REDIS: &str = "bind 127.0.0.1\nsave \"\"\nappendonly yes\nappendfsync everysec\n\
                     auto-aof-rewrite-percentage 0\nmaxmemory-policy noeviction\n";
/// How long a command may take: an org of a million users is applied in minutes.
const COMMAND: Duration = Duration::from_secs(3600);

/// What the metrics say was charged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Requests by outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// Credits captured.
    pub credits: Amount,
    /// Operations of pools.
    pub pool: Amount,
    /// Operations past them.
    pub overage: Amount,
    /// Requests whose work is not done.
    pub in_flight: u64,
    /// Records that are not archived yet.
    pub lag: u64,
    /// Records that cannot be archived.
    pub dead: u64,
}

impl Metrics {
    /// Sums over all labels but outcome and source.
    pub fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = split(line) else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let amount = Amount::parse(value.as_bytes()).unwrap_or_default();
            let count = amount.as_millionths() / 1_000_000;
            match name {
                "tollgate_requests_total" => {
                    let outcome = label(labels, "outcome").unwrap_or_default().to_owned();
                    *metrics.outcomes.entry(outcome).or_default() += count;
                }
                "tollgate_credits_captured_total" => metrics.credits = metrics.credits.plus(amount),
                "tollgate_operations_captured_total" => match label(labels, "source") {
                    Some("pool") => metrics.pool = metrics.pool.plus(amount),
                    _ => metrics.overage = metrics.overage.plus(amount),
                },
                "tollgate_in_flight_requests" => metrics.in_flight += count,
                "tollgate_ledger_lag_records" => metrics.lag += count,
                "tollgate_ledger_dead_letters" => metrics.dead += count,
                _ => {}
            }
        }
        metrics.outcomes.retain(|_, count| *count > 0);
        metrics
    }

    /// What was counted between two looks.
    pub fn since(&self, before: &Self) -> Self {
        let mut since = self.clone();
        for (outcome, count) in &before.outcomes {
            if let Some(now) = since.outcomes.get_mut(outcome) {
                *now = now.saturating_sub(*count);
            }
        }
        since.outcomes.retain(|_, count| *count > 0);
        since.credits = self.credits.less(before.credits);
        since.pool = self.pool.less(before.pool);
        since.overage = self.overage.less(before.overage);
        since
    }

    /// Requests with this outcome.
    pub fn of(&self, outcome: &str) -> u64 {
        self.outcomes.get(outcome).copied().unwrap_or(0)
    }
}

/// A sample's series and its value. Texts in labels may hold blanks.
fn split(line: &str) -> Option<(&str, &str)> {
    let end = line.rfind('}').map_or_else(|| line.find(' '), |at| Some(at + 1))?;
    Some((&line[..end], line[end..].split_whitespace().next()?))
}

/// A label's text, as it is escaped.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let start = labels.find(&format!("{name}=\""))? + name.len() + 2;
    let text = &labels[start..];
    text.find('"').map(|end| &text[..end])
}

/// The gateway, and the Redis that it needs.
pub struct Gateway {
    binary: PathBuf,
    dir: PathBuf,
    token: String,
    /// The secret of orgs' keys.
    pub secret: String,
    options: GatewayOptions,
    /// Where it takes requests.
    pub address: SocketAddr,
    admin: SocketAddr,
    ops: SocketAddr,
    process: Process,
    redis: Option<Process>,
}

impl Gateway {
    /// Serves, with no org yet.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(
        binary: &Path,
        dir: &Path,
        options: &GatewayOptions,
        backend: SocketAddr,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let [address, admin, ops, redis_address] = system::free()?;
        let redis = if options.redis { Some(start_redis(dir, redis_address).await?) } else { None };
        let books = match options.redis {
            true => format!("engine = \"redis\"\nurl = \"redis://{redis_address}\""),
            false => "engine = \"embedded\"\ndurability = \"process\"".to_owned(),
        };
        system::fill(
            CONFIG,
            &dir.join("tollgate.toml"),
            &[
                ("GATEWAY", &address),
                ("ADMIN", &admin),
                ("OPS", &ops),
                ("BACKEND", &backend),
                ("WORKERS", &options.workers),
                ("BOOKS", &books),
                ("DIR", &dir.display()),
            ],
        )?;
        let token = secret()?;
        let process = spawn(binary, dir, &token, options.clock.as_deref())?;
        let mut gateway = Self {
            binary: binary.to_owned(),
            dir: dir.to_owned(),
            token,
            secret: format!("tg_{}", secret()?),
            options: options.clone(),
            address,
            admin,
            ops,
            process,
            redis,
        };
        gateway.process.wait_for(ops, "/readyz").await?;
        Ok(gateway)
    }

    /// Makes the scenario's orgs be there.
    ///
    /// # Errors
    /// When one is refused.
    pub async fn apply(&self, scenario: &Scenario) -> anyhow::Result<()> {
        let file = self.dir.join("org.toml");
        for number in 0..scenario.org.count {
            org::write(scenario, number, &self.secret, &file)?;
            let mut command = Command::new(&self.binary);
            command.arg("apply").arg(&file).args(["--admin", &format!("http://{}", self.admin)]);
            let done = self.command(command).await?;
            let end = |bytes: &[u8]| {
                String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(2000)..]).into_owned()
            };
            ensure!(
                done.status.success(),
                "apply: {}\n{}{}",
                done.status,
                end(&done.stdout),
                end(&done.stderr)
            );
        }
        std::fs::remove_file(&file)?;
        Ok(())
    }

    /// What this life of it has counted.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn metrics(&self) -> anyhow::Result<Metrics> {
        let answer = http::ask(self.ops, "GET", "/metrics", &[], b"").await?;
        ensure!(answer.status == 200, "/metrics answered {}", answer.status);
        Ok(Metrics::parse(&answer.text()))
    }

    /// Waits until nothing is in flight and all is archived.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn settle(&self) -> anyhow::Result<Metrics> {
        let deadline = Instant::now() + Duration::from_secs(300);
        loop {
            let metrics = self.metrics().await?;
            if metrics.in_flight == 0 && metrics.lag == 0 {
                return Ok(metrics);
            }
            ensure!(Instant::now() < deadline, "it does not settle: {metrics:?}");
            system::pause().await;
        }
    }

    /// A document of the admin API.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn admin(&self, path: &str) -> anyhow::Result<Value> {
        let token = format!("Bearer {}", self.token);
        let answer = http::ask(self.admin, "GET", path, &[("Authorization", &token)], b"").await?;
        ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.text());
        answer.json()
    }

    /// Moves the clock, which stands.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn set_clock(&self, to: &str) -> anyhow::Result<()> {
        let token = format!("Bearer {}", self.token);
        let headers = [("Authorization", token.as_str()), ("Content-Type", "application/json")];
        let body = serde_json::json!({ "now": to }).to_string();
        let answer =
            http::ask(self.admin, "PUT", "/v1/test/clock", &headers, body.as_bytes()).await?;
        ensure!(answer.status == 200, "the clock: {} {}", answer.status, answer.text());
        Ok(())
    }

    /// What was captured of all users' seats in the cycle of now, by the admin API.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn captured(&self, orgs: u64) -> anyhow::Result<Amount> {
        let mut sum = Amount::default();
        for number in 0..orgs {
            let list = format!("/v1/orgs/{}/users?limit=1000", org::name(number));
            let mut path = list.clone();
            loop {
                let page = self.admin(&path).await?;
                for item in page["items"].as_array().context("no items")? {
                    let text = item["seat"]["captured"].as_str().context("no captured")?;
                    sum = sum.plus(Amount::parse(text.as_bytes()).context("no amount")?);
                }
                let Some(cursor) = page["next_cursor"].as_str() else { break };
                path = format!("{list}&cursor={cursor}");
            }
        }
        Ok(sum)
    }

    /// Processes whose time and memory are its own: itself first.
    pub fn pids(&self) -> Vec<u32> {
        let redis = self.redis.as_ref().map(Process::pid);
        std::iter::once(self.process.pid()).chain(redis).collect()
    }

    /// Where the journal's segments are.
    pub fn journal(&self) -> PathBuf {
        self.dir.join("data/books")
    }

    /// Stops Redis, or lets it go on.
    ///
    /// # Errors
    /// When there is none.
    pub fn stall_redis(&self, stalled: bool) -> anyhow::Result<()> {
        let redis = self.redis.as_ref().context("there is no Redis")?;
        redis.signal(if stalled { Signal::STOP } else { Signal::CONT })
    }

    /// Ends it and starts it again; how long it took from then until it was ready.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn restart(&mut self, signal: Signal) -> anyhow::Result<Duration> {
        self.end(signal).await?;
        let began = Instant::now();
        self.process = spawn(&self.binary, &self.dir, &self.token, self.options.clock.as_deref())?;
        self.process.wait_for(self.ops, "/readyz").await?;
        Ok(began.elapsed())
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it ends badly.
    pub async fn end(&mut self, signal: Signal) -> anyhow::Result<()> {
        let well = self.process.stop(signal).await?;
        ensure!(well || signal == Signal::KILL, "tollgate ended badly:\n{}", self.process.tail());
        Ok(())
    }

    /// Fails where it has ended by itself.
    ///
    /// # Errors
    /// When it has.
    pub fn check(&mut self) -> anyhow::Result<()> {
        self.process.check()
    }

    /// Adds up the records of the journal: the count of charges, and of those that are open.
    /// Nothing where the records are Redis'.
    ///
    /// # Errors
    /// When something does not add up.
    pub async fn verify(&self) -> anyhow::Result<Option<(u64, u64)>> {
        if self.redis.is_some() {
            return Ok(None);
        }
        let mut command = Command::new(&self.binary);
        command
            .args(["ledger", "verify", "--output", "json", "-c"])
            .arg(self.dir.join("tollgate.toml"));
        let done = self.command(command).await?;
        let text = String::from_utf8_lossy(&done.stdout);
        if !done.status.success() {
            bail!(
                "AUDIT: ledger verify: {}\n{text}{}",
                done.status,
                String::from_utf8_lossy(&done.stderr)
            );
        }
        let report: Value = serde_json::from_str(&text)?;
        let count =
            |name: &str| report[name].as_u64().with_context(|| format!("no {name}: {text}"));
        Ok(Some((count("charges")?, count("open")?)))
    }

    async fn command(&self, mut command: Command) -> anyhow::Result<Output> {
        let mut pinned = Command::new("taskset");
        pinned.args(["-c", ANY_CORE]).arg(command.get_program()).args(command.get_args());
        pinned.env("TOLLGATE_ADMIN_TOKEN", &self.token).stdin(Stdio::null());
        command = pinned;
        // A thread, because the pipes have to be read while it runs.
        let run = tokio::task::spawn_blocking(move || command.output());
        let done = tokio::time::timeout(COMMAND, run).await.context("a command does not end")?;
        Ok(done??)
    }
}

fn spawn(binary: &Path, dir: &Path, token: &str, clock: Option<&str>) -> anyhow::Result<Process> {
    let mut command = Command::new(binary);
    command.args(["serve", "-c"]).arg(dir.join("tollgate.toml")).env("TOLLGATE_ADMIN_TOKEN", token);
    if let Some(clock) = clock {
        command.args(["--test-clock", clock]);
    }
    Process::start("tollgate", &mut command, SYSTEM_CORE, &dir.join("tollgate.log"))
}

async fn start_redis(dir: &Path, address: SocketAddr) -> anyhow::Result<Process> {
    let dir = dir.join("redis");
    std::fs::create_dir_all(&dir)?;
    let config = dir.join("redis.conf");
    let text = format!("{REDIS}port {}\ndir {}\n", address.port(), dir.display());
    std::fs::write(&config, text)?;
    let mut command = Command::new("redis-server");
    command.arg(&config);
    let mut process = Process::start("redis", &mut command, SYSTEM_CORE, &dir.join("log"))?;
    let ready = process.wait_until_connected(address).await;
    ready.context("on Debian: apt-get install redis-server")?;
    Ok(process)
}

fn secret() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# TYPE tollgate_requests counter
tollgate_requests_total{org=\"a, \\\"}\",route=\"r\",outcome=\"captured\",status_class=\"2xx\"} 40
tollgate_requests_total{org=\"b\",route=\"r\",outcome=\"captured\",status_class=\"2xx\"} 2
tollgate_requests_total{org=\"b\",route=\"f\",outcome=\"free\",status_class=\"2xx\"} 7
tollgate_requests_total{org=\"b\",route=\"f\",outcome=\"refused\",status_class=\"4xx\"} 0
tollgate_credits_captured_total{org=\"a\",feature=\"x\"} 100.5
tollgate_operations_captured_total{org=\"a\",feature=\"x\",source=\"pool\"} 0.02
tollgate_operations_captured_total{org=\"a\",feature=\"x\",source=\"overage\"} 3
tollgate_in_flight_requests 1
";

    #[test]
    fn metrics_are_summed_over_all_labels_but_the_outcome() {
        let metrics = Metrics::parse(TEXT);
        assert_eq!(
            metrics.outcomes,
            BTreeMap::from([("captured".to_owned(), 42), ("free".to_owned(), 7)])
        );
        assert_eq!(metrics.credits.to_string(), "100.5");
        assert_eq!(
            (metrics.pool.to_string(), metrics.overage.to_string()),
            ("0.02".into(), "3".into())
        );
        assert_eq!(metrics.in_flight, 1);
        let before = Metrics::parse("tollgate_requests_total{outcome=\"captured\"} 40\n");
        assert_eq!(metrics.since(&before).of("captured"), 2);
    }
}
