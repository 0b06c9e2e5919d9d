//! A PostgreSQL server of the tests' own, on a free port of the loopback: made in a temporary
//! directory, and ended with whoever started it, also where that is killed.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;

/// What must be in no output.
pub const PASSWORD: &str = "canary-77aa1c";

/// A process that was given this port uses the server there, and starts none.
const PORT: &str = "TOLLGATE_TESTS_POSTGRES";

/// How long a server may take to start or end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server.
pub struct Postgres {
    pub port: u16,
    /// None where somebody else runs it.
    running: Option<(TempDir, Child)>,
}

impl Postgres {
    /// One for everybody who needs one at the same time.
    pub async fn shared() -> Arc<Self> {
        static SHARED: tokio::sync::Mutex<Weak<Postgres>> =
            tokio::sync::Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let server = Arc::new(Self::start().await);
        *shared = Arc::downgrade(&server);
        server
    }

    /// One that nobody else uses.
    pub async fn start() -> Self {
        if let Some(port) = given() {
            return Self { port, running: None };
        }
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let password = dir.path().join("password");
        fs::create_dir(&data).unwrap();
        fs::write(&password, PASSWORD).unwrap();
        if getuid().is_root() {
            // The server does not run as root.
            let all = [dir.path(), &data, &password];
            done(Command::new("chown").arg("postgres:").args(all).output().unwrap());
        }
        let mut initdb = program("initdb");
        initdb.arg("-D").arg(&data).arg("--pwfile").arg(&password).args([
            "--username=postgres",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            // A language in which texts do not sort as bytes do, where the machine has one.
            "--locale-provider=icu",
            "--icu-locale=en-US",
            "--locale=C",
            "--no-sync",
        ]);
        done(initdb.output().unwrap());
        loop {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut child = serve(&data, port);
            // Somebody else may have taken the port meanwhile.
            if answers(port, &mut child).await {
                return Self { port, running: Some((dir, child)) };
            }
        }
    }

    /// The URL of a new database.
    pub fn database(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{}_{number}", std::process::id());
        done(psql(self.port, "postgres", &format!("CREATE DATABASE {name}")));
        self.url(&name)
    }

    /// The URL of a database.
    pub fn url(&self, name: &str) -> String {
        format!("postgres://postgres:{PASSWORD}@127.0.0.1:{}/{name}", self.port)
    }

    /// What a database answers, a row a line.
    pub fn ask(&self, url: &str, sql: &str) -> String {
        done(psql(self.port, url.rsplit('/').next().unwrap(), sql))
    }

    /// Lets every process of the server stand still, or go on.
    pub fn pause(&self, still: bool) {
        self.signal(if still { Signal::STOP } else { Signal::CONT });
    }

    /// Kills every process of the server.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let (_, child) = self.running.as_mut().unwrap();
        child.wait().unwrap();
    }

    /// Starts the server again on what it left.
    pub async fn start_again(&mut self) {
        let (dir, child) = self.running.as_mut().unwrap();
        *child = serve(&dir.path().join("data"), self.port);
        assert!(answers(self.port, child).await, "PostgreSQL does not start again");
    }

    fn signal(&self, signal: Signal) {
        let (dir, _) = self.running.as_ref().expect("a server of its own");
        let pid = fs::read_to_string(dir.path().join("data/postmaster.pid")).unwrap();
        let server: i32 = pid.lines().next().unwrap().parse().unwrap();
        for pid in children(server).into_iter().chain([server]) {
            // One of them may have ended by itself.
            let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
        }
    }

    /// A command that uses this server where its tests start one.
    pub fn lend(&self, command: &mut Command) {
        command.env(PORT, self.port.to_string());
    }
}

/// The port of a server that somebody else runs for this process.
pub fn given() -> Option<u16> {
    std::env::var(PORT).ok()?.parse().ok()
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some((_, child)) = &mut self.running {
            // What it reads ends, and it ends the server.
            drop(child.stdin.take());
            child.wait().unwrap();
        }
    }
}

/// The server below a shell that waits for the end of its input: that comes with the end of the
/// process that starts it, however that ends.
fn serve(data: &Path, port: u16) -> Child {
    let server = program("postgres");
    let below = "exec 3<&0; \"$@\" & pid=$!; \
                 (read -r _ <&3; kill -INT $pid 2>/dev/null) & wait $pid";
    let mut shell = Command::new("sh");
    shell.args(["-c", below, "sh"]).arg(server.get_program()).args(server.get_args());
    shell.arg("-D").arg(data).args(["-p", &port.to_string()]);
    for setting in [
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        "fsync=off",
        "max_connections=200",
        "logging_collector=off",
    ] {
        shell.args(["-c", setting]);
    }
    let log = fs::File::create(data.with_file_name("log")).unwrap();
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

/// Waits until a server answers; false where it ended instead.
async fn answers(port: u16, child: &mut Child) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !psql(port, "postgres", "SELECT 1").status.success() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(Instant::now() < deadline, "PostgreSQL does not start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

/// A program of the server, as a user that it runs as. Where it is not installed the test fails.
fn program(name: &str) -> Command {
    let path = found(name);
    if !getuid().is_root() {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(path);
    command
}

fn found(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    // Where Debian has what only a server's administrator calls.
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        dirs.extend(versions.map(|version| version.unwrap().path().join("bin")));
    }
    let found = dirs.into_iter().map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} of PostgreSQL is not installed: tests/run installs it"))
}

fn psql(port: u16, database: &str, sql: &str) -> Output {
    let mut psql = Command::new(found("psql"));
    psql.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port.to_string(), "-d", database]);
    psql.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]).env("PGPASSWORD", PASSWORD);
    psql.env("PGCONNECT_TIMEOUT", "5").output().unwrap()
}

fn done(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn children(of: i32) -> Vec<i32> {
    let status = |pid: i32| fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let parent = |stat: String| -> Option<i32> {
        // The name before it is in parentheses, and may hold anything.
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| status(*pid).and_then(parent) == Some(of)).collect()
}
