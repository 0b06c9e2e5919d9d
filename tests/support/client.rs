//! A client over hyper that keeps its connection and shows answers as they came.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{PATIENCE, Script};

/// A request.
#[derive(Clone, Debug)]
pub struct Call {
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Call {
    pub fn new(method: &'static str, path: &str) -> Self {
        let headers = vec![("host".to_owned(), "gateway.test".to_owned())];
        Self { method, path: path.to_owned(), headers, body: Bytes::new() }
    }

    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    pub fn post(path: &str, body: impl Into<Bytes>) -> Self {
        Self::with("POST", path, body)
    }

    /// Any method, with a body.
    pub fn with(method: &'static str, path: &str, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::new(method, path) }
    }

    /// Adds a header; also a second one of the same name.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Shows a key.
    pub fn key(self, secret: &str) -> Self {
        self.header("authorization", &format!("Bearer {secret}"))
    }

    /// Acts for a user of the sample org, by its service key.
    pub fn user(self, user: &str) -> Self {
        self.key(super::org::STUDIO).header("tollgate-user", user)
    }

    /// Tells the backend how to answer.
    pub fn script(self, script: &Script) -> Self {
        self.header("x-script", &serde_json::to_string(script).unwrap())
    }

    /// The same in a header of which the gateway believes that it decides nothing.
    pub fn script_plainly(self, script: &Script) -> Self {
        self.header("x-stainless-script", &serde_json::to_string(script).unwrap())
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The body came to a clean end.
    pub whole: bool,
}

impl Answer {
    /// A header's only value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next().map(|value| value.to_str().unwrap());
        assert!(values.next().is_none(), "{name} is there twice");
        value
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The receipt, read by a parser of structured fields; text and tokens alike as text.
    pub fn receipt(&self) -> BTreeMap<String, String> {
        let text =
            self.header("tollgate-receipt").unwrap_or_else(|| panic!("no receipt: {self:?}"));
        let dictionary = sfv::Parser::new(text).parse::<sfv::Dictionary>().unwrap();
        let member = |entry: sfv::ListEntry| match entry {
            sfv::ListEntry::Item(sfv::Item { bare_item: sfv::BareItem::String(text), params }) => {
                assert!(params.is_empty());
                text.as_str().to_owned()
            }
            sfv::ListEntry::Item(sfv::Item { bare_item: sfv::BareItem::Token(word), params }) => {
                assert!(params.is_empty());
                word.as_str().to_owned()
            }
            other => panic!("{other:?}"),
        };
        dictionary
            .into_iter()
            .map(|(key, entry)| (key.as_str().to_owned(), member(entry)))
            .collect()
    }

    /// One value of the receipt.
    #[track_caller]
    pub fn told(&self, key: &str) -> String {
        let receipt = self.receipt();
        receipt.get(key).cloned().unwrap_or_else(|| panic!("no {key} in {receipt:?}"))
    }

    /// Checks values of the receipt.
    #[track_caller]
    pub fn tells(&self, expected: &[(&str, &str)]) -> &Self {
        let receipt = self.receipt();
        for (key, value) in expected {
            assert_eq!(receipt.get(*key).map(String::as_str), Some(*value), "{key}: {receipt:?}");
        }
        self
    }

    /// Checks that it is a problem with this status and code.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{code}: {text}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{text}");
        let problem = self.json();
        assert_eq!(problem["code"], code, "{text}");
        assert_eq!(problem["status"], status, "{text}");
        assert_eq!(problem["type"], format!("/.tollgate/problems/{code}"));
        for key in ["title", "detail"] {
            assert!(problem[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {text}");
        }
        assert_eq!(problem["request_id"].as_str(), self.header("x-request-id"), "{text}");
        assert!(self.header("x-request-id").is_some_and(|id| !id.is_empty()));
        assert_eq!(self.header("tollgate-receipt"), None);
        problem
    }

    /// Checks that it is whole and has this status.
    #[track_caller]
    pub fn is(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert!(self.whole, "the body broke off");
        self
    }
}

/// A connection.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinSet<()>,
}

impl Client {
    pub async fn connect(to: SocketAddr) -> Self {
        Self::try_connect(to).await.expect("no connection to the gateway")
    }

    pub async fn try_connect(to: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(to).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // Whoever waits for the answer is told.
            let _ = connection.await;
        });
        Some(Self { sender, driver })
    }

    /// Sends a request, and returns when the head of its answer is there.
    pub async fn begin(&mut self, call: &Call) -> Result<Response<Incoming>, hyper::Error> {
        let mut request = Request::builder().method(call.method).uri(&call.path);
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(call.body.clone())).unwrap();
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }

    /// Sends a request and reads its answer to the end.
    pub async fn try_send(&mut self, call: &Call) -> Result<Answer, hyper::Error> {
        let response = self.begin(call).await?;
        let (head, mut body) = response.into_parts();
        let (mut bytes, mut whole) = (Vec::new(), true);
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => bytes.extend_from_slice(frame.data_ref().map_or(b"", |data| data)),
                Err(_) => {
                    whole = false;
                    break;
                }
            }
        }
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: bytes.into(),
            whole,
        })
    }

    /// Sends a request that must be answered, in time.
    pub async fn send(&mut self, call: &Call) -> Answer {
        let answer = timeout(PATIENCE, self.try_send(call)).await;
        answer
            .unwrap_or_else(|_| panic!("no answer in time: {call:?}"))
            .unwrap_or_else(|error| panic!("{error}: {call:?}"))
    }

    /// Sends a request, and leaves when some of the answer's body has arrived.
    pub async fn leave_after_some(mut self, call: &Call) {
        let mut response = timeout(PATIENCE, self.begin(call)).await.unwrap().unwrap();
        let frame = timeout(PATIENCE, response.body_mut().frame()).await.unwrap();
        frame.expect("no body").expect("a broken body");
        self.leave().await;
    }

    /// Leaves: the connection is closed without regard to what is in flight.
    pub async fn leave(mut self) {
        self.driver.shutdown().await;
    }
}

/// Sends all requests over so many connections, each taking the next as soon as it is free. All
/// connections are there before the first request is sent.
pub async fn burst(to: SocketAddr, calls: Vec<Call>, connections: usize) -> Vec<Answer> {
    burst_over(&[to], calls, connections).await
}

/// The same over several gateways, each with as many connections.
pub async fn burst_over(to: &[SocketAddr], calls: Vec<Call>, connections: usize) -> Vec<Answer> {
    let (calls, next) = (Arc::new(calls), Arc::new(AtomicUsize::new(0)));
    let start = Arc::new(Barrier::new(connections));
    let mut clients = JoinSet::new();
    for to in to.iter().cycle().take(connections).copied() {
        let (calls, next, start) = (Arc::clone(&calls), Arc::clone(&next), Arc::clone(&start));
        clients.spawn(async move {
            let mut client = Client::connect(to).await;
            start.wait().await;
            let mut answers = Vec::new();
            while let Some(call) = calls.get(next.fetch_add(1, Ordering::Relaxed)) {
                answers.push(client.send(call).await);
            }
            answers
        });
    }
    clients.join_all().await.into_iter().flatten().collect()
}

/// Sends these bytes and returns everything that comes back until the other side closes.
pub async fn raw(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    read.expect("the connection was not closed").unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}
