//! A real `redis-server` of a test's own, on a free loopback port, which ends with it.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server.
pub struct RedisServer {
    process: Child,
    pub port: u16,
    /// Its files.
    _dir: TempDir,
}

impl RedisServer {
    /// One that keeps nothing on disk.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// One with other settings: `["--appendonly", "yes"]`.
    pub fn start_with(settings: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Free now; somebody else may take it first, and then there is another.
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut command = Command::new("redis-server");
            command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
            command.arg("--dir").arg(dir.path()).args(settings).stdout(Stdio::null());
            let process = command.spawn();
            let mut process =
                process.expect("redis-server does not start: install the package redis-server");
            while process.try_wait().unwrap().is_none() {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Self { process, port, _dir: dir };
                }
                assert!(Instant::now() < deadline, "redis-server does not answer");
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(Instant::now() < deadline, "redis-server ends at once");
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Both fail only where it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
