//! A client that sends bytes, for whatever a library would repair.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;
use super::org::OWN;

/// A connection.
pub struct Peer {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer as it came.
#[derive(Clone, Debug)]
pub struct Told {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// A head with the usual lines, these, and the empty one. It shows the first user's key.
pub fn head(line: &str, more: &str) -> String {
    format!("{line}\r\nhost: gateway.test\r\nauthorization: Bearer {OWN}\r\n{more}\r\n")
}

impl Peer {
    pub async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    /// Sends bytes; true where the other side still takes them.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).await.is_ok()
    }

    async fn more(&mut self) -> bool {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await;
        read.expect("neither an answer nor an end").is_ok_and(|count| count > 0)
    }

    /// The next answer, whole; `None` where the connection ends before it begins.
    pub async fn try_answer(&mut self) -> Option<Told> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|part| part == b"\r\n\r\n") {
                break at;
            }
            if !self.more().await {
                assert!(self.buffer.is_empty(), "{:?}", String::from_utf8_lossy(&self.buffer));
                return None;
            }
        };
        let text = String::from_utf8(self.buffer.drain(..end + 4).collect()).unwrap();
        let mut lines = text.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.map(|line| line.split_once(": ").unwrap());
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
        let mut told = Told { status, headers: headers.collect(), body: String::new() };
        if status != 100 {
            let length: usize = told.header("content-length").unwrap_or("0").parse().unwrap();
            while self.buffer.len() < length {
                assert!(self.more().await, "an answer that broke off: {text}");
            }
            told.body = String::from_utf8(self.buffer.drain(..length).collect()).unwrap();
        }
        Some(told)
    }

    /// The next answer.
    pub async fn answer(&mut self) -> Told {
        self.try_answer().await.expect("the connection was closed without an answer")
    }

    /// Waits until the other side has closed, without another byte.
    pub async fn ends(&mut self) {
        while self.more().await {}
        assert!(self.buffer.is_empty(), "{:?}", String::from_utf8_lossy(&self.buffer));
    }
}

impl Told {
    /// A header's only value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} is there twice: {self:?}");
        value
    }

    /// Checks that it is a problem with this status and code, like every other one.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{code}: {self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem: Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["request_id"].as_str(), self.header("x-request-id"), "{self:?}");
        assert!(self.header("x-request-id").is_some_and(|id| !id.is_empty()), "{self:?}");
        assert!(self.header("date").is_some(), "{self:?}");
        problem
    }
}
