//! A gateway of the real binary, and everything around it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tempfile::TempDir;

use super::redis::RedisServer;
use super::{Answer, Backend, Call, Client, Org, PATIENCE, until};

/// The operator's token.
pub const TOKEN: &str = "test-operator-token-000000000001";
/// What the backend is shown instead of a caller's key.
pub const MEDIA_TOKEN: &str = "the-backends-own-secret";
/// What time it is, unless a test says otherwise: no test depends on the real time of day.
pub const NOON: &str = "2026-11-20T12:00:00Z";

/// How a gateway is started.
#[derive(Clone, Debug)]
pub struct Setup {
    /// More keys of `[gateway]`.
    pub gateway: String,
    /// `[limits]`, and whatever else comes before the upstreams.
    pub limits: String,
    /// `gateway.drain_delay`.
    pub drain: String,
    /// Where the clock stands; `None` for the system's.
    pub clock: Option<String>,
    /// How many files it may have open; `None` for as many as the tests.
    pub open_files: Option<u32>,
    /// More of the process's environment, which wins over the file.
    pub environment: Vec<(String, String)>,
}

impl Default for Setup {
    fn default() -> Self {
        let (gateway, limits, drain) = (String::new(), String::new(), "0s".to_owned());
        let (clock, environment) = (Some(NOON.to_owned()), Vec::new());
        Self { gateway, limits, drain, clock, open_files: None, environment }
    }
}

/// A gateway, its backend and its files. At the end of every test that did not fail the books
/// are verified from the records (D37).
pub struct World {
    pub backend: Backend,
    dir: TempDir,
    setup: Setup,
    process: Option<Process>,
    /// Ended after it.
    _redis: Option<Arc<RedisServer>>,
    /// A test made it panic, and has seen that.
    pub may_have_panicked: bool,
}

struct Process {
    child: Child,
    gateway: SocketAddr,
    admin: SocketAddr,
    ops: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

/// The binary, with so many open files at most.
fn limited(open_files: u32) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &open_files.to_string()]);
    command.arg(env!("CARGO_BIN_EXE_tollgate"));
    with_environment(command)
}

/// The binary, with an environment of the tests' own.
pub fn tollgate() -> Command {
    with_environment(Command::new(env!("CARGO_BIN_EXE_tollgate")))
}

fn with_environment(mut command: Command) -> Command {
    command.env_clear().env("TOLLGATE_ADMIN_TOKEN", TOKEN).env("MEDIA_TOKEN", MEDIA_TOKEN);
    command.env("NO_COLOR", "1").env("RUST_LOG", "info");
    command
}

impl World {
    /// A gateway with this org.
    pub fn new(org: &Org) -> Self {
        Self::with(Setup::default(), org)
    }

    /// A gateway that is set up so, with this org.
    pub fn with(setup: Setup, org: &Org) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let backend = Backend::start();
        let (mut setup, mut redis) = (setup, None);
        // The whole suite runs on both engines.
        let is_told = setup.environment.iter().any(|(key, _)| key == "TOLLGATE__BOOKS__ENGINE");
        if in_redis_too() && !is_told {
            let server = RedisServer::shared();
            setup.environment.extend(in_redis(&server.database()));
            redis = Some(server);
        }
        let process = None;
        let mut world =
            Self { backend, dir, setup, process, _redis: redis, may_have_panicked: false };
        world.start();
        world.apply(org);
        world
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("tollgate.toml")
    }

    /// Its data dir.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Starts the gateway on its data, on new ports.
    pub fn start(&mut self) {
        self.try_start().unwrap_or_else(|log| panic!("not serving: {log:?}"));
    }

    /// As [`Self::start`]; what it said where it ended instead.
    pub fn try_start(&mut self) -> Result<(), Vec<String>> {
        assert!(self.process.is_none(), "it runs");
        let text = include_str!("gateway.toml")
            .replace("@gateway@", &self.setup.gateway)
            .replace("@drain@", &self.setup.drain)
            .replace("@limits@", &self.setup.limits)
            .replace("@data@", &self.data().display().to_string())
            .replace("@backend@", &self.backend.address.to_string())
            // A port below every range that is given to others, with no service of its own.
            .replace("@dead@", "127.0.0.1:2");
        std::fs::write(self.config(), text).unwrap();
        let mut command = match self.setup.open_files {
            None => tollgate(),
            Some(count) => limited(count),
        };
        command.arg("serve").arg("-c").arg(self.config());
        if let Some(clock) = &self.setup.clock {
            command.args(["--test-clock", clock]);
        }
        command.envs(self.setup.environment.clone());
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (serving, is_serving) = mpsc::channel();
        let lines = Arc::clone(&log);
        // It ends with the process.
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if let Some((_, addresses)) = line.split_once("serving gateway=") {
                    let _ = serving.send(addresses.to_owned());
                }
                lines.lock().unwrap().push(line);
            }
        });
        let Ok(addresses) = is_serving.recv_timeout(PATIENCE) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(log.lock().unwrap().clone());
        };
        let mut found = addresses
            .split_whitespace()
            .map(|part| part.trim_start_matches("admin=").trim_start_matches("ops="))
            .map(|address| address.parse::<SocketAddr>().unwrap());
        let mut next = || found.next().unwrap();
        let (gateway, admin, ops) = (next(), next(), next());
        self.process = Some(Process { child, gateway, admin, ops, log });
        Ok(())
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("the gateway does not run")
    }

    pub fn gateway(&self) -> SocketAddr {
        self.process().gateway
    }

    /// What it logged so far.
    pub fn log(&self) -> Vec<String> {
        self.process().log.lock().unwrap().clone()
    }

    /// Its log, also after it has stopped.
    pub fn log_lines(&self) -> Arc<Mutex<Vec<String>>> {
        Arc::clone(&self.process().log)
    }

    /// Makes the org be this.
    pub fn apply(&self, org: &Org) {
        let output = self.try_apply(&org.toml());
        assert!(output.status.success(), "{output:?}\n{}", org.toml());
    }

    pub fn try_apply(&self, toml: &str) -> Output {
        let path = self.dir.path().join("org.toml");
        std::fs::write(&path, toml).unwrap();
        tollgate().arg("apply").arg(path).args(["--admin", &self.admin_url()]).output().unwrap()
    }

    /// The admin listener as `--admin` takes it.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.process().admin)
    }

    /// The ops listener.
    pub fn ops_address(&self) -> SocketAddr {
        self.process().ops
    }

    /// Changes the configuration's file, as an editor does: another file in its place.
    pub fn edit(&self, change: impl FnOnce(String) -> String) {
        let next = self.dir.path().join("tollgate.toml.next");
        std::fs::write(&next, change(std::fs::read_to_string(self.config()).unwrap())).unwrap();
        std::fs::rename(next, self.config()).unwrap();
    }

    /// Waits until the configuration was read again, with success or not.
    pub async fn reloaded(&self, successful: bool) {
        let expected = f64::from(u8::from(successful));
        let name = "tollgate_config_last_reload_successful";
        let as_expected = || (self.metric(name, &[]) == expected).then_some(());
        until("the configuration was read again", as_expected).await;
    }

    /// Moves the test clock: `{"now": …}`, `{"jump": …}` or `{"pass": …}`.
    pub fn clock(&self, to: &Value) -> (u16, Value) {
        let mut answer = ureq::put(format!("http://{}/v1/test/clock", self.process().admin))
            .config()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build()
            .header("Authorization", format!("Bearer {TOKEN}"))
            .send(to.to_string())
            .unwrap();
        let body = answer.body_mut().read_to_string().unwrap();
        (answer.status().as_u16(), serde_json::from_str(&body).unwrap())
    }

    /// Lets time pass until then.
    #[track_caller]
    pub fn pass_until(&self, now: &str) {
        let (status, answer) = self.clock(&serde_json::json!({ "now": now }));
        assert_eq!(status, 200, "{answer}");
    }

    /// Waits until a line of the log contains all of these.
    pub async fn logged(&self, parts: &[&str]) -> String {
        let has = |line: &&String| parts.iter().all(|part| line.contains(part));
        until("it is logged", || self.log().iter().find(has).cloned()).await
    }

    /// Tries to start another gateway on the same data.
    pub fn serve_again(&self) -> Output {
        tollgate().arg("serve").arg("-c").arg(self.config()).output().unwrap()
    }

    /// Kills the gateway where it stands.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("the gateway does not run");
        process.child.kill().unwrap();
        process.child.wait().unwrap();
    }

    /// Asks the gateway to stop.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    pub fn signal(&self, name: &str) {
        let pid = self.process().child.id().to_string();
        let script = format!("kill -{name} \"$0\"");
        let sent = Command::new("sh").args(["-c", &script, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until it has stopped.
    pub async fn stopped(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the gateway does not run");
        until("the gateway stops", || process.child.try_wait().unwrap()).await
    }

    /// From the next start on its environment has nothing more.
    pub fn plain_environment(&mut self) {
        self.setup.environment.clear();
    }

    /// From the next start on this is in its environment.
    pub fn environment(&mut self, environment: &[(String, String)]) {
        self.setup.environment = environment.to_vec();
    }

    /// Stops and starts it, with the clock somewhere else.
    pub async fn move_clock(&mut self, to: &str) {
        self.terminate();
        assert!(self.stopped().await.success());
        self.setup.clock = Some(to.to_owned());
        self.start();
    }

    /// Kills it and starts it, with the clock somewhere else.
    pub fn crash_and_move_clock(&mut self, to: &str) {
        self.kill();
        self.setup.clock = Some(to.to_owned());
        self.start();
    }

    /// One request over a connection of its own.
    pub async fn send(&self, call: &Call) -> Answer {
        Client::connect(self.gateway()).await.send(call).await
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.gateway()).await
    }

    fn get(&self, from: SocketAddr, path: &str, token: Option<&str>) -> (u16, String) {
        let mut request = ureq::get(format!("http://{from}{path}"))
            .config()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build();
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let mut answer = request.call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    }

    /// Where the admin API is.
    pub fn admin_address(&self) -> SocketAddr {
        self.process().admin
    }

    /// Asks the admin listener, with this token.
    pub fn admin_as(&self, path: &str, token: Option<&str>) -> (u16, String) {
        self.get(self.process().admin, path, token)
    }

    /// Asks the ops listener.
    pub fn ops(&self, path: &str) -> (u16, String) {
        self.get(self.ops_address(), path, None)
    }

    /// Asks the admin API.
    pub fn admin(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.get(self.admin_address(), path, Some(TOKEN));
        (status, serde_json::from_str(&body).unwrap())
    }

    /// A user's balance document.
    #[track_caller]
    pub fn balance(&self, user: &str) -> Value {
        let (status, balance) = self.admin(&format!("/v1/orgs/acme/users/{user}/balance"));
        assert_eq!(status, 200, "{balance}");
        balance
    }

    /// Checks what a user's seat has captured, holds and has left, and what was drawn.
    #[track_caller]
    pub fn seat(&self, user: &str, captured: &str, available: &str, drawn: &str) {
        let balance = self.balance(user);
        let seat = &balance["seat"];
        let found =
            [&seat["captured"], &seat["held"], &seat["available"], &balance["pool"]["drawn"]];
        assert_eq!(found, [captured, "0", available, drawn], "{balance}");
    }

    /// The pool document.
    pub fn pool(&self) -> Value {
        let (status, pool) = self.admin("/v1/orgs/acme/pool");
        assert_eq!(status, 200, "{pool}");
        pool
    }

    /// A charge's document, if there is such a charge.
    pub fn try_charge(&self, id: &str) -> Option<Value> {
        let (status, charge) = self.admin(&format!("/v1/orgs/acme/charges/{id}"));
        (status == 200).then_some(charge)
    }

    #[track_caller]
    pub fn charge(&self, id: &str) -> Value {
        self.try_charge(id).unwrap_or_else(|| panic!("there is no charge {id}"))
    }

    /// The charge under which the backend saw its last request.
    #[track_caller]
    pub fn last_charge(&self) -> Value {
        let seen = self.backend.last();
        self.charge(seen.charge().expect("forwarded without a charge"))
    }

    /// The sum of a metric's samples whose labels contain all of these.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (status, text) = self.ops("/metrics");
        assert_eq!(status, 200);
        let samples = text.lines().filter_map(|line| line.strip_prefix(name));
        let samples = samples.filter(|rest| rest.starts_with(['{', ' ']));
        samples
            .filter(|rest| labels.iter().all(|label| rest.contains(label)))
            .map(|rest| rest.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    /// Waits until no hold is open.
    pub async fn settled(&self) {
        let none = || (self.metric("tollgate_holds_open", &[]) == 0.0).then_some(());
        until("no hold is open", none).await;
    }

    /// Checks that the backend saw nothing that was not held, and that nothing but what it saw
    /// is charged to these users: credits of the seat, and Operations.
    pub async fn accounts_for(&self, users: &[&str]) {
        self.settled().await;
        let mut charged: std::collections::BTreeMap<String, [u64; 2]> = Default::default();
        for seen in self.backend.seen() {
            let Some(id) = seen.charge() else { continue };
            let charge = self.charge(id);
            let user = charge["user"].as_str().unwrap_or("-").to_owned();
            let sums = charged.entry(user).or_default();
            if charge["state"] == "captured" {
                for leg in charge["legs"].as_array().unwrap() {
                    let at = match leg["kind"].as_str().unwrap() {
                        "licence" => 0,
                        "pool" | "overage" => 1,
                        _ => continue,
                    };
                    sums[at] += micro(&leg["amount"]);
                }
            }
        }
        for user in users {
            let balance = self.balance(user);
            let stated = [micro(&balance["seat"]["captured"]), micro(&balance["pool"]["drawn"])];
            let summed = charged.get(*user).copied().unwrap_or_default();
            assert_eq!(stated, summed, "{user}: balance and charges that the backend saw");
        }
    }

    /// `ledger verify`, on whatever state the data is in.
    pub fn verify(&self) {
        // Books that are elsewhere have no files of which these could be the records.
        if !self.data().join("books").exists() {
            return;
        }
        let output =
            tollgate().args(["ledger", "verify", "-c"]).arg(self.config()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

/// Whether this is the run of the suite on books in Redis.
pub fn in_redis_too() -> bool {
    std::env::var("TOLLGATE_TEST_BOOKS").as_deref() == Ok("redis")
}

/// An environment of a gateway whose books are in Redis, which a busy machine is given time for.
pub fn in_redis(url: &str) -> [(String, String); 3] {
    [("ENGINE", "redis"), ("URL", url), ("TIMEOUT", "30s")]
        .map(|(key, value)| (format!("TOLLGATE__BOOKS__{key}"), value.to_owned()))
}

/// Millionths of an amount.
pub fn micro(amount: &Value) -> u64 {
    tollgate::core::amount::parse_micro(amount.as_str().unwrap()).unwrap()
}

impl Drop for World {
    fn drop(&mut self) {
        let ran = self.process.take().map(|mut process| {
            let alive = process.child.try_wait().ok().flatten().is_none();
            let _ = process.child.kill();
            let _ = process.child.wait();
            (alive, process.log)
        });
        if std::thread::panicking() {
            if let Some((_, log)) = ran {
                let log = log.lock().unwrap();
                eprintln!("the gateway's log:\n{}", log.join("\n"));
            }
            return;
        }
        self.verify();
        if let Some((alive, log)) = ran {
            assert!(alive, "the gateway died: {:?}", log.lock().unwrap());
            let log = log.lock().unwrap();
            let panicked = log.iter().any(|line| line.contains("panicked"));
            assert!(!panicked || self.may_have_panicked, "{log:#?}");
        }
    }
}
