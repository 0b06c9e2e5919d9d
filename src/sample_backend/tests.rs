//! Over a real socket, with a client that sees every byte, broken ends included.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

mod chat;
mod failures;
mod made;
mod remembered;
mod reports;
mod videos;

struct Running {
    addr: SocketAddr,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
    tasks: TaskTracker,
}

async fn start() -> Running {
    start_with(None).await
}

async fn start_with(report: Option<Report>) -> Running {
    let backend = SampleBackend::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let (addr, stop) = (backend.local_addr(), CancellationToken::new());
    let tasks = TaskTracker::new();
    let served = tasks.spawn(backend.reporting(report).run(stop.clone()));
    Running { addr, stop, served, tasks }
}

impl Running {
    async fn send(&self, head: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let length = body.len();
        let request = format!(
            "{head}\r\nHost: sample\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// The head and what came of the body.
    async fn ask(&self, head: &str, body: &str) -> (String, String) {
        let mut stream = self.send(head, body).await;
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        let (head, body) = all.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    }

    async fn ask_json(&self, head: &str, body: &str) -> Value {
        let (head, body) = self.ask(head, body).await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
        serde_json::from_str(&body).unwrap()
    }

    /// What `/sample/` tells.
    async fn seen(&self, of: &str) -> Value {
        self.ask_json(&format!("GET /sample/{of} HTTP/1.1"), "").await
    }

    /// Waits until a count of the stats is that.
    async fn counted(&self, pointer: &str, expected: u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stats = self.seen("stats").await;
            if stats.pointer(pointer).and_then(Value::as_u64) == Some(expected) {
                return;
            }
            assert!(Instant::now() < deadline, "{pointer} is not {expected}: {stats}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.served.await.unwrap();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

const PATIENCE: Duration = Duration::from_secs(30);
const IMAGES: &str = "POST /v1/images/generate HTTP/1.1";
const CHAT: &str = "POST /v1/chat/completions HTTP/1.1";
const VIDEOS: &str = "POST /v1/videos HTTP/1.1";
const UPLOADS: &str = "POST /v1/uploads HTTP/1.1";

/// The data of a stream's events, `[DONE]` included.
fn events(body: &str) -> Vec<&str> {
    body.lines().filter_map(|line| line.strip_prefix("data: ")).collect()
}

/// Everything up to the end of a connection, and how it ended.
async fn drain(mut stream: TcpStream) -> (Vec<u8>, std::io::Result<usize>) {
    let mut all = Vec::new();
    let reading = stream.read_to_end(&mut all);
    let ended = tokio::time::timeout(PATIENCE, reading).await.expect("the connection never ends");
    (all, ended)
}
