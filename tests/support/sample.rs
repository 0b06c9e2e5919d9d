//! `tollgate sample-backend`: the program's own backend, of which tests need the jobs.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::Value;

use super::world::tollgate;

/// What reports carry.
pub const REPORT_SECRET: &str = "the-backends-secret-for-reports";

/// The program, which ends with the test.
pub struct Sample {
    process: Option<Child>,
    pub address: SocketAddr,
    /// The gateway that jobs are reported to.
    report: Option<SocketAddr>,
}

impl Sample {
    pub fn start() -> Self {
        Self::reporting(None)
    }

    /// One that reports how jobs end to the gateway at this address.
    pub fn reporting(report: Option<SocketAddr>) -> Self {
        let mut sample = Self { process: None, address: ([127, 0, 0, 1], 0).into(), report };
        sample.go_on();
        sample
    }

    /// Kills it: it knows nothing of its jobs when it goes on.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("the sample backend does not run");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Stops it for good where it stands: it takes connections and answers nothing.
    pub fn pause(&self) {
        let pid = self.process.as_ref().unwrap().id().to_string();
        let sent = Command::new("sh").args(["-c", "kill -STOP \"$0\"", &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Starts it, at the address that it had.
    pub fn go_on(&mut self) {
        let mut command = tollgate();
        command.args(["sample-backend", "--listen", &self.address.to_string()]);
        if let Some(gateway) = self.report {
            let url = format!("http://{gateway}/.tollgate/v1/jobs/{{charge}}");
            command.args(["--report", &url]);
            command.env("TOLLGATE_SAMPLE_REPORT_SECRET", format!("Bearer {REPORT_SECRET}"));
        }
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit("http://").next().unwrap();
        self.address = address.parse().unwrap_or_else(|_| panic!("not serving: {line}"));
        self.process = Some(process);
    }

    fn get(&self, path: &str) -> Value {
        let url = format!("http://{}{path}", self.address);
        let text = ureq::get(&url).call().unwrap().body_mut().read_to_string().unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// What it has seen.
    pub fn stats(&self) -> Value {
        self.get("/sample/stats")
    }

    /// What it was asked for at this path, of the last thousand requests.
    pub fn requests(&self, path: &str) -> Vec<Value> {
        let list = self.get(&format!("/sample/requests?path={path}"));
        list["items"].as_array().unwrap().clone()
    }

    /// How often that was.
    pub fn asked(&self, path: &str) -> usize {
        self.requests(path).len()
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// An address that nobody listens at, also while a gateway that had it is started again: of a port
/// that the system gives to nobody by itself.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() as u16;
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + first.wrapping_mul(97).wrapping_add(next) % 10_000;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener.local_addr().unwrap();
        }
    }
}
