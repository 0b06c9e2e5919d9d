//! `tollgate demo`: a sample backend, a gateway on the embedded books and two sample orgs, with
//! no configuration and no other program. Everything it writes goes to a directory of its own,
//! which is removed when it ends.

mod walk;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::JoinHandle;

use anyhow::{Context, bail};
use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;

use super::output::say;
use super::{FAILED, fail, serve};
use crate::app::{App, Options as AppOptions};
use crate::config;
use crate::directory::file::Source;
use crate::sample_backend::SampleBackend;

/// See `--help`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tollgate demo                       serve until Ctrl-C, and print curl lines to try
  tollgate demo --once                play the walk, print every receipt, and exit
  tollgate demo --port-base 18080     use ports 18080 to 18083")]
pub struct Options {
    /// Play the walk and exit: 0 if every step came out as the rules say
    #[arg(long)]
    once: bool,
    /// Use this port and the next three, instead of 8080, 8081, 9090 and 9100 (with --once: free
    /// ports)
    #[arg(long, value_name = "N")]
    port_base: Option<u16>,
}

/// The configuration of the demo's gateway.
const CONFIG: &str = include_str!("tollgate.toml");
/// The demo's orgs.
const ORGS: [&str; 2] = [include_str!("acme.toml"), include_str!("globex.toml")];
/// The demo's keys, by org. They are no secrets: they only open the demo.
pub(super) const KEYS: [(&str, &str); 2] =
    [("acme", "tg_demo_acme_studio_0001"), ("globex", "tg_demo_globex_studio_01")];

/// Runs the command.
pub fn run(options: &Options) -> ExitCode {
    if !options.once {
        serve::log_to_stderr();
    }
    match demo(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => fail(FAILED, "a step did not come out as the rules say"),
        Err(error) => fail(FAILED, format!("{error:#}")),
    }
}

fn demo(options: &Options) -> anyhow::Result<bool> {
    let ports = ports(options)?;
    let dir = Scratch::new()?;
    let backend = Backend::start(ports[3])?;
    let app = start_gateway(&dir.0, &ports, backend.address)?;
    let played = serve_demo(options, &app, &backend);
    let stopped = app.shut_down();
    backend.stop();
    stopped?;
    played
}

fn serve_demo(options: &Options, app: &App, backend: &Backend) -> anyhow::Result<bool> {
    let token = token(app)?;
    for org in ORGS {
        apply(app.admin(), &token, org)?;
    }
    if options.once {
        return walk::play(app.gateway(), app.admin(), &token);
    }
    say(&format!("{}\n", welcome(app, backend)))?;
    serve::wait_for_signal(app.failed())?;
    say("stopping\n")?;
    Ok(true)
}

/// Gateway, admin, ops, backend.
fn ports(options: &Options) -> anyhow::Result<[u16; 4]> {
    match (options.port_base, options.once) {
        (Some(base), _) if base > u16::MAX - 3 => bail!("--port-base is at most {}", u16::MAX - 3),
        (Some(base), _) => Ok([base, base + 1, base + 2, base + 3]),
        (None, true) => Ok([0; 4]),
        (None, false) => Ok([8080, 8081, 9090, 9100]),
    }
}

fn start_gateway(dir: &Path, ports: &[u16; 4], backend: SocketAddr) -> anyhow::Result<App> {
    let text = CONFIG
        .replace("@GATEWAY@", &ports[0].to_string())
        .replace("@ADMIN@", &ports[1].to_string())
        .replace("@OPS@", &ports[2].to_string())
        .replace("@BACKEND@", &backend.port().to_string())
        .replace("@DATA@", &dir.join("data").display().to_string());
    let path = dir.join("tollgate.toml");
    std::fs::write(&path, text)?;
    let loaded = config::load(Some(&path), std::iter::empty())?;
    App::start(&loaded.config, AppOptions::default())
        .context("if a port is taken, choose others with --port-base")
}

fn token(app: &App) -> anyhow::Result<SecretString> {
    let path = app.token_file().context("the demo's gateway makes its own token")?;
    Ok(std::fs::read_to_string(path)?.trim().to_owned().into())
}

fn apply(admin: SocketAddr, token: &SecretString, text: &str) -> anyhow::Result<()> {
    let source = Source::from_toml(text)?;
    let org = source.org_id().context("the org file names no org")?;
    let url = format!("http://{admin}/v1/orgs/{org}/apply");
    let mut answer = ureq::post(&url)
        .config()
        .proxy(None)
        .http_status_as_error(false)
        .build()
        .header("Authorization", format!("Bearer {}", token.expose_secret()))
        .header("Content-Type", "application/json")
        .send(&source.to_json()[..])?;
    if !answer.status().is_success() {
        bail!("{org}: {}", answer.body_mut().read_to_string()?);
    }
    Ok(())
}

fn welcome(app: &App, backend: &Backend) -> String {
    let (gateway, admin, ops) = (app.gateway(), app.admin(), app.ops());
    let [(_, acme), (_, globex)] = KEYS;
    let token = app.token_file().map(|path| path.display().to_string()).unwrap_or_default();
    format!(
        "Tollgate demo. Ctrl-C ends it and removes everything it wrote.

  gateway  http://{gateway}     admin  http://{admin}     metrics  http://{ops}/metrics
  backend  http://{backend}     admin token in {token}

Users of acme (key {acme}; overage is refused):
  alice  250 credits, pool access    bob    100 credits, no pool access
  carol   10 credits, at most 3 Operations of the pool a cycle    dave  100 credits
Users of globex (key {globex}; a pool of 3 Operations, overage is billed):
  erin    10 credits, pool access

An image costs 1 credit, a second of video 100 credits (or 2 Operations), a token of chat a
thousandth of a credit. A video is a job: what it costs is held until a poll, or the gateway's own
question, sees its end. Try:

1. The seat pays:
  curl -i http://{gateway}/v1/images/generate -H 'Authorization: Bearer {acme}' \\
    -H 'Tollgate-User: alice' -H 'Content-Type: application/json' -d '{{\"n\": 1}}'
2. More video than the seat can pay: it is split, the pool pays the rest (run it twice):
  curl -i http://{gateway}/v1/videos -H 'Authorization: Bearer {acme}' \\
    -H 'Tollgate-User: alice' -H 'Content-Type: application/json' \\
    -d '{{\"seconds\": 2, \"resolution\": \"1080p\"}}'
3. No pool access: the second one is refused with `seat_exhausted` (402):
  curl -i http://{gateway}/v1/videos -H 'Authorization: Bearer {acme}' \\
    -H 'Tollgate-User: bob' -H 'Content-Type: application/json' \\
    -d '{{\"seconds\": 1, \"resolution\": \"1080p\"}}'
4. A failed generation costs nothing:
  curl -i http://{gateway}/v1/images/generate -H 'Authorization: Bearer {acme}' \\
    -H 'Tollgate-User: dave' -H 'Content-Type: application/json' \\
    -H 'X-Sample-Fail: 500' -d '{{}}'
5. Past the pool, billed later:
  curl -i http://{gateway}/v1/videos -H 'Authorization: Bearer {globex}' \\
    -H 'Tollgate-User: erin' -H 'Content-Type: application/json' \\
    -d '{{\"seconds\": 2, \"resolution\": \"1080p\"}}'
6. A job that fails costs nothing; its id is in the first answer:
  curl http://{gateway}/v1/videos -H 'Authorization: Bearer {acme}' \\
    -H 'Tollgate-User: dave' -H 'Content-Type: application/json' \\
    -H 'X-Sample-Job: end=failed' -d '{{\"seconds\": 1}}'
  curl http://{gateway}/v1/videos/ID -H 'Authorization: Bearer {acme}' -H 'Tollgate-User: dave'
7. A chat that streams; its last event is the receipt:
  curl -N http://{gateway}/v1/chat/completions -H 'Authorization: Bearer {acme}' \\
    -H 'Tollgate-User: dave' -H 'Content-Type: application/json' -H 'X-Sample-Pace: 200' \\
    -d '{{\"messages\": [], \"max_tokens\": 10, \"stream\": true}}'
8. What is left:
  curl http://{gateway}/.tollgate/v1/me/credits -H 'Authorization: Bearer {acme}' \\
    -H 'Tollgate-User: alice'
  TOLLGATE_ADMIN_TOKEN=$(cat {token}) tollgate balance alice --org acme --admin http://{admin}
  curl http://{admin}/v1/orgs/acme/users -H \"Authorization: Bearer $(cat {token})\"
",
        backend = backend.address
    )
}

/// The sample backend on a thread of its own.
struct Backend {
    address: SocketAddr,
    stop: CancellationToken,
    thread: JoinHandle<()>,
}

impl Backend {
    fn start(port: u16) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let backend = runtime
            .block_on(SampleBackend::bind(address))
            .with_context(|| format!("the sample backend on {address}; see --port-base"))?;
        let address = backend.local_addr();
        let stop = CancellationToken::new();
        let run = backend.run(stop.clone());
        let thread = std::thread::Builder::new()
            .name("sample-backend".to_owned())
            .spawn(move || runtime.block_on(run))?;
        Ok(Self { address, stop, thread })
    }

    fn stop(self) {
        self.stop.cancel();
        if self.thread.join().is_err() {
            fail(FAILED, "the sample backend panicked");
        }
    }
}

/// A directory that is removed with everything in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let unique = getrandom::u64().map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
        let path = std::env::temp_dir().join(format!("tollgate-demo-{unique:016x}"));
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            fail(FAILED, format!("{} is left behind: {error}", self.0.display()));
        }
    }
}
