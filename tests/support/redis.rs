//! A real `redis-server` of a test's own, on a free loopback port, which ends with it.

#![expect(clippy::disallowed_methods, reason = "a test waits for a server to start")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// A setting that is a free port, another one each time.
pub const FREE: &str = "(free)";

/// The setting that makes it a Sentinel, which keeps nothing.
pub const SENTINEL: &str = "--sentinel";

/// What `--requirepass` says.
fn password(settings: &[String]) -> Option<&str> {
    let at = settings.iter().position(|word| word == "--requirepass")?;
    Some(&settings[at + 1])
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

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

    /// One with other settings: `["--appendonly", "yes"]`. [`FREE`] is a port that is free.
    pub fn start_with(settings: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Free now; somebody else may take it first, and then there is another.
            let word = |word: &&str| match *word {
                FREE => free_port().to_string(),
                word => word.to_owned(),
            };
            let settings: Vec<String> = settings.iter().map(word).collect();
            let port = free_port();
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
        let password = password(&self.settings).map(|password| format!(":{password}@"));
        format!("redis://{}127.0.0.1:{}", password.unwrap_or_default(), self.port)
    }

    /// What a setting came to.
    pub fn setting(&self, name: &str) -> &str {
        let at = self.settings.iter().position(|setting| setting == name).unwrap();
        &self.settings[at + 1]
    }

    /// A command, on a connection of its own.
    pub fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let mut connection = redis::Client::open(self.url())?.get_connection()?;
        redis::cmd(words[0]).arg(&words[1..]).query(&mut connection)
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

    /// Waits until it counts a replica that has told what it has. What a replica tells of its link
    /// comes before that.
    pub fn until_followed(&self) {
        until("a replica is in step", || {
            // Something to have, and nothing that a later look would find.
            self.ask::<()>(&["PUBLISH", "anybody", "there"]);
            let told: String = self.ask(&["INFO", "replication"]);
            told.contains("state=online") && !told.contains("offset=0,")
        });
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
        self.start_again_with(&[]);
    }

    /// With other settings besides.
    pub fn start_again_with(&mut self, settings: &[&str]) {
        let more = settings.iter().map(|word| (*word).to_owned());
        let settings: Vec<String> = self.settings.iter().cloned().chain(more).collect();
        let process = run(self.port, &settings, &self.dir);
        self.process = process.expect("its port was free, and still is");
    }
}

/// A server that answers; `None` where it ends at once.
fn run(port: u16, settings: &[String], dir: &TempDir) -> Option<Child> {
    let mut command = Command::new("redis-server");
    let port_text = port.to_string();
    if settings.iter().any(|word| word == SENTINEL) {
        // It writes into the file what it knows.
        let file = dir.path().join("sentinel.conf");
        std::fs::write(&file, format!("port {port}\nbind 127.0.0.1\n")).unwrap();
        command.arg(file);
    } else {
        command.args(["--port", &port_text, "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--databases", "10000", "--dir"]).arg(dir.path());
    }
    command.args(settings).stdout(Stdio::null());
    let started = command.spawn();
    let mut process =
        started.expect("redis-server does not start: install the package redis-server");
    let deadline = Instant::now() + PATIENCE;
    while process.try_wait().unwrap().is_none() {
        if is_behind(port, password(settings), process.id()) {
            return Some(process);
        }
        assert!(Instant::now() < deadline, "redis-server does not answer");
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Whether this process is the server behind a port, and not one of another test that was first.
fn is_behind(port: u16, password: Option<&str>, process: u32) -> bool {
    let Ok(mut connection) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let login = password.map(|password| format!("AUTH {password}\r\n")).unwrap_or_default();
    let asked = connection
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| connection.write_all(format!("{login}INFO server\r\n").as_bytes()));
    let lines = BufReader::new(connection).lines().map_while(Result::ok);
    // An error is an answer too.
    let mut answers = lines.filter(|line| line.starts_with("process_id:") || line.starts_with('-'));
    asked.is_ok() && answers.next().is_some_and(|line| line == format!("process_id:{process}"))
}

/// Asks until it is so.
pub fn until(what: &str, mut ask: impl FnMut() -> bool) {
    let deadline = Instant::now() + 2 * PATIENCE;
    while !ask() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Both fail only where it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
