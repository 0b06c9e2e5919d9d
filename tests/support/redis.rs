//! A real `redis-server` of a test's own, on a free loopback port, which ends with it.

#![expect(clippy::disallowed_methods, reason = "a test waits for a server to start")]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server.
pub struct RedisServer {
    process: Child,
    pub port: u16,
    settings: Vec<String>,
    /// Its files.
    dir: TempDir,
}

impl RedisServer {
    /// One that keeps nothing on disk.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// One with other settings: `["--appendonly", "yes"]`.
    pub fn start_with(settings: &[&str]) -> Self {
        let more = ["--databases", "10000"];
        let settings: Vec<String> =
            settings.iter().chain(&more).map(|word| (*word).to_owned()).collect();
        let dir = tempfile::tempdir().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Free now; somebody else may take it first, and then there is another.
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            if let Some(process) = run(port, &settings, &dir) {
                return Self { process, port, settings, dir };
            }
            assert!(Instant::now() < deadline, "redis-server ends at once");
        }
    }

    /// One for everybody who needs one at the same time, with a database for each.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<RedisServer>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap();
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let server = Arc::new(Self::start());
        *shared = Arc::downgrade(&server);
        server
    }

    /// The URL of a database of this server that nobody else has.
    pub fn database(&self) -> String {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        format!("{}/{}", self.url(), NEXT.fetch_add(1, Ordering::Relaxed))
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Stops it where it stands, or lets it go on.
    pub fn pause(&self, still: bool) {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, if still { Signal::STOP } else { Signal::CONT }).unwrap();
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// What it answers to a command.
    pub fn ask<T: ::redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = ::redis::cmd(words[0]);
        command.arg(&words[1..]);
        let client = ::redis::Client::open(self.url()).unwrap();
        command.query(&mut client.get_connection().unwrap()).unwrap()
    }

    /// A snapshot of what it has now.
    pub fn snapshot(&self) -> Vec<u8> {
        self.ask::<()>(&["SAVE"]);
        fs::read(self.dir.path().join("dump.rdb")).unwrap()
    }

    /// While it does not run: puts a snapshot in the place of its append-only file.
    pub fn put_back(&self, snapshot: &[u8]) {
        let dir = self.dir.path().join("appendonlydir");
        fs::remove_dir_all(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("appendonly.aof.1.base.rdb"), snapshot).unwrap();
        let manifest = "file appendonly.aof.1.base.rdb seq 1 type b\n";
        fs::write(dir.join("appendonly.aof.manifest"), manifest).unwrap();
    }

    /// Starts it again, on the same port and files.
    pub fn start_again(&mut self) {
        let process = run(self.port, &self.settings, &self.dir);
        self.process = process.expect("its port was free, and still is");
    }
}

/// A server that answers; `None` where it ends at once.
fn run(port: u16, settings: &[String], dir: &TempDir) -> Option<Child> {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
    command.arg("--dir").arg(dir.path()).args(settings).stdout(Stdio::null());
    let started = command.spawn();
    let mut process =
        started.expect("redis-server does not start: install the package redis-server");
    let deadline = Instant::now() + PATIENCE;
    while process.try_wait().unwrap().is_none() {
        if is_behind(port, process.id()) {
            return Some(process);
        }
        assert!(Instant::now() < deadline, "redis-server does not answer");
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Whether this process is the server behind a port, and not one of another test that was first.
fn is_behind(port: u16, process: u32) -> bool {
    let Ok(mut connection) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut told = String::new();
    let asked = connection
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| connection.write_all(b"INFO server\r\nQUIT\r\n"))
        .and_then(|()| connection.read_to_string(&mut told));
    asked.is_ok() && told.contains(&format!("\r\nprocess_id:{process}\r\n"))
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Both fail only where it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
