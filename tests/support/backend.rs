//! A backend that records what it is sent and answers as the request's `X-Script` header says.
//! It speaks HTTP by hand, so that it can also break it.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How the backend answers one request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Script {
    /// The status.
    pub status: u16,
    /// The body; `None` for a small JSON document.
    pub body: Option<String>,
    /// So many more bytes of spaces behind the body.
    pub pad: usize,
    /// More headers.
    pub headers: Vec<(String, String)>,
    /// Answers only once the test opens this gate.
    pub gate: Option<String>,
    /// Sends the head and half of the body, and the rest once the test opens this gate.
    pub half: Option<String>,
    /// Without a Content-Length, in chunks.
    pub chunked: bool,
    /// Closes the connection before the body is whole.
    pub truncate: bool,
    /// Closes the connection without an answer.
    pub hang_up: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            status: 200,
            body: None,
            pad: 0,
            headers: Vec::new(),
            gate: None,
            half: None,
            chunked: false,
            truncate: false,
            hang_up: false,
        }
    }
}

impl Script {
    /// A body that tells usage as the test routes read it.
    pub fn usage(usage: impl std::fmt::Display) -> Self {
        Self::body(format!("{{\"usage\":{{\"images\":{usage}}}}}"))
    }

    /// This body.
    pub fn body(body: impl Into<String>) -> Self {
        Self { body: Some(body.into()), ..Self::default() }
    }

    /// This status.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// Waits for a gate before it answers.
    pub fn gate(gate: &str) -> Self {
        Self { gate: Some(gate.to_owned()), ..Self::default() }
    }
}

/// A request as the backend saw it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub method: String,
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The head as it came, byte for byte.
    pub head: String,
    /// The other side left before it was answered.
    pub abandoned: bool,
}

impl Seen {
    /// A header's only value; panics if there are two.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} is there twice: {self:?}");
        value
    }

    /// Whether its answer waits for a gate.
    pub fn is_gated(&self) -> bool {
        self.header("x-script").is_some_and(|script| script.contains("\"gate\":\""))
    }

    /// The charge it was forwarded under.
    pub fn charge(&self) -> Option<&str> {
        self.header("tollgate-charge")
    }
}

struct Shared {
    seen: Mutex<Vec<Seen>>,
    gates: watch::Sender<HashSet<String>>,
    connections: watch::Sender<usize>,
}

/// The backend, on a thread of its own.
pub struct Backend {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    pub fn start() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        // Hundreds connect at once, and a connection that is not queued fails.
        listener.listen(4096).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = std::net::TcpListener::from(listener);
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            gates: watch::Sender::default(),
            connections: watch::Sender::default(),
        });
        let stop = CancellationToken::new();
        let (for_thread, end) = (Arc::clone(&shared), stop.clone());
        let thread = std::thread::spawn(move || {
            super::run(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                let tasks = TaskTracker::new();
                loop {
                    tokio::select! {
                        () = end.cancelled() => return,
                        accepted = listener.accept() => {
                            let (stream, _) = accepted.unwrap();
                            for_thread.connections.send_modify(|count| *count += 1);
                            let shared = Arc::clone(&for_thread);
                            tasks.spawn(async move {
                                // A peer that leaves ends its connection, and nothing else.
                                let _ = serve(stream, &shared).await;
                            });
                        }
                    }
                }
            });
        });
        Self { address, shared, stop, thread: Some(thread) }
    }

    /// Everything it was sent so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// What it was sent after so many requests.
    pub fn seen_from(&self, at: usize) -> Vec<Seen> {
        self.shared.seen.lock().unwrap()[at..].to_vec()
    }

    /// How many requests it was sent so far.
    pub fn count(&self) -> usize {
        self.shared.seen.lock().unwrap().len()
    }

    /// The last request.
    pub fn last(&self) -> Seen {
        self.shared.seen.lock().unwrap().last().cloned().expect("the backend saw nothing")
    }

    /// How many connections were made to it.
    pub fn connections(&self) -> usize {
        *self.shared.connections.borrow()
    }

    /// Lets everything pass that waits at a gate, now and later.
    pub fn open(&self, gate: &str) {
        self.shared.gates.send_modify(|gates| {
            gates.insert(gate.to_owned());
        });
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads what a peer sends.
struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Wire {
    async fn more(&mut self) -> std::io::Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Up to and without `end`.
    async fn line(&mut self, end: &[u8]) -> std::io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                let line = self.buffer[..at].to_vec();
                self.buffer.drain(..at + end.len());
                return Ok(line);
            }
            self.more().await?;
        }
    }

    async fn bytes(&mut self, count: usize) -> std::io::Result<Vec<u8>> {
        while self.buffer.len() < count {
            self.more().await?;
        }
        Ok(self.buffer.drain(..count).collect())
    }

    async fn head(&mut self) -> std::io::Result<Seen> {
        let head = String::from_utf8(self.line(b"\r\n\r\n").await?).unwrap();
        let mut lines = head.split("\r\n");
        let mut first = lines.next().unwrap().split(' ');
        let mut seen = Seen {
            method: first.next().unwrap().to_owned(),
            target: first.next().unwrap().to_owned(),
            head: head.clone(),
            ..Seen::default()
        };
        let headers = lines.filter_map(|line| line.split_once(':'));
        seen.headers = headers
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Ok(seen)
    }

    async fn body(&mut self, seen: &Seen) -> std::io::Result<Vec<u8>> {
        let mut body = Vec::new();
        if let Some(length) = seen.header("content-length") {
            let length = length.parse().unwrap();
            body = self.bytes(length).await?;
        } else if seen.header("transfer-encoding").is_some() {
            loop {
                let size = String::from_utf8(self.line(b"\r\n").await?).unwrap();
                let size = usize::from_str_radix(size.trim(), 16).unwrap();
                let chunk = self.bytes(size).await?;
                self.line(b"\r\n").await?;
                body.extend(chunk);
                if size == 0 {
                    break;
                }
            }
        }
        Ok(body)
    }
}

async fn serve(stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut wire = Wire { stream, buffer: Vec::new() };
    loop {
        let seen = wire.head().await?;
        let script = seen.header("x-script").or_else(|| seen.header("x-stainless-script"));
        let script: Script = match script {
            Some(text) => serde_json::from_str(text).unwrap(),
            None => Script::default(),
        };
        let is_head = seen.method == "HEAD";
        let at = {
            let mut all = shared.seen.lock().unwrap();
            all.push(seen.clone());
            all.len() - 1
        };
        match wire.body(&seen).await {
            Ok(body) => shared.seen.lock().unwrap()[at].body = body,
            Err(error) => {
                shared.seen.lock().unwrap()[at].abandoned = true;
                return Err(error);
            }
        }
        if !wait(&mut wire, shared, script.gate.as_deref()).await {
            shared.seen.lock().unwrap()[at].abandoned = true;
            return Ok(());
        }
        if script.hang_up {
            return Ok(());
        }
        let body = script.body.clone().unwrap_or_else(|| "{\"ok\":true}".to_owned());
        let body = body + &" ".repeat(script.pad);
        let whole = !matches!(script.status, 204 | 304) && !is_head;
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", script.status);
        for (name, value) in &script.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if script.chunked {
            head += "transfer-encoding: chunked\r\n";
        } else if script.status != 204 {
            let length = body.len() + if script.truncate { 10 } else { 0 };
            head += &format!("content-length: {length}\r\n");
        }
        head += "content-type: application/json\r\n\r\n";
        // In one piece but where a gate is waited for: how many turns a peer needs for it must not
        // be a matter of how fast this machine is.
        let mut piece = head.into_bytes();
        if whole {
            let (first, rest) = body.as_bytes().split_at(body.len() / 2);
            put(&mut piece, first, script.chunked);
            if let Some(gate) = &script.half {
                wire.stream.write_all(&std::mem::take(&mut piece)).await?;
                if !wait(&mut wire, shared, Some(gate)).await {
                    shared.seen.lock().unwrap()[at].abandoned = true;
                    return Ok(());
                }
            }
            put(&mut piece, rest, script.chunked);
            if script.chunked && !script.truncate {
                piece.extend_from_slice(b"0\r\n\r\n");
            }
        }
        wire.stream.write_all(&piece).await?;
        if whole && script.truncate {
            return Ok(());
        }
    }
}

fn put(piece: &mut Vec<u8>, bytes: &[u8], chunked: bool) {
    if chunked && !bytes.is_empty() {
        piece.extend_from_slice(format!("{:x}\r\n", bytes.len()).as_bytes());
        piece.extend_from_slice(bytes);
        piece.extend_from_slice(b"\r\n");
    } else {
        piece.extend_from_slice(bytes);
    }
}

/// Waits for a gate; false if the peer left meanwhile.
async fn wait(wire: &mut Wire, shared: &Shared, gate: Option<&str>) -> bool {
    let Some(gate) = gate else { return true };
    let mut gates = shared.gates.subscribe();
    let mut byte = [0; 1];
    tokio::select! {
        opened = gates.wait_for(|gates| gates.contains(gate)) => opened.is_ok(),
        // No peer of this backend pipelines, so whatever can be read is the end.
        _ = wire.stream.peek(&mut byte) => false,
    }
}
