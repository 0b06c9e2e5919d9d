//! A generative backend that makes nothing of value: what `tollgate sample-backend` runs, and what
//! the demo meters. It answers as an image, a video and a chat service do, fails where a request
//! asks it to, and counts what reached it, so that an audit can compare.
//!
//! `X-Sample-Fail` is one of `500`, `hang` (no answer until shutdown), `truncate` (the connection
//! breaks in the middle of the body), `no-usage` (the body does not tell any) and `slow` (the body
//! comes in pieces). `X-Sample-Usage` is the usage told instead of the true one; it is any JSON, so
//! that a gateway can be shown what it must not believe.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use answer::{Answer, Refused};
use script::Script;

mod answer;
mod script;

/// The header that asks for a failure.
pub const FAIL: HeaderName = HeaderName::from_static("x-sample-fail");
/// The header that says what usage to tell.
pub const USAGE: HeaderName = HeaderName::from_static("x-sample-usage");
/// The response header that tells the usage again, for routes that read it there.
pub const TOLD: HeaderName = HeaderName::from_static("x-usage");

const CHARGE: HeaderName = HeaderName::from_static("tollgate-charge");

/// Bounds: a sample must not be what fills a machine.
const MAX_CONNECTIONS: usize = 4096;
const MAX_BODY: usize = 1 << 20;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long connections may take to finish their answers at shutdown.
const GRACE: Duration = Duration::from_secs(2);
/// What `slow` waits before each piece of the body.
const PACE: Duration = Duration::from_millis(100);

/// A bound sample backend, not yet serving.
#[derive(Debug)]
pub struct SampleBackend {
    listener: TcpListener,
    local: SocketAddr,
}

/// A failure that a request can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fail {
    Status500,
    Hang,
    Truncate,
    NoUsage,
    Slow,
}

/// What is counted; one of a fixed set, whatever paths callers invent.
#[derive(Debug, Default)]
struct Stats {
    images: AtomicU64,
    videos: AtomicU64,
    chat: AtomicU64,
    models: AtomicU64,
    healthz: AtomicU64,
    other: AtomicU64,
    charges: AtomicU64,
    failures: AtomicU64,
}

/// The server stopped while it was hanging a request: the connection breaks without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the sample backend stopped before it answered")]
struct Stopped;

impl SampleBackend {
    /// Binds; the port may be 0.
    pub async fn bind(addr: SocketAddr) -> io::Result<SampleBackend> {
        let listener = TcpListener::bind(addr).await?;
        let local = listener.local_addr()?;
        Ok(SampleBackend { listener, local })
    }

    /// The address it is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Serves until `shutdown`, then lets answers that have begun finish for a moment.
    pub async fn run(self, shutdown: CancellationToken) {
        let stats = Arc::new(Stats::default());
        let connections = TaskTracker::new();
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = accept(&self.listener, &room) => accepted,
            };
            let Some((stream, permit)) = accepted else { continue };
            let (stats, shutdown) = (stats.clone(), shutdown.clone());
            connections.spawn(async move {
                serve(stream, stats, shutdown).await;
                drop(permit);
            });
        }
        drop(self.listener);
        connections.close();
        connections.wait().await;
    }
}

impl Fail {
    fn from_headers(headers: &HeaderMap) -> Result<Option<Fail>, Refused> {
        let Some(asked) = headers.get(FAIL) else { return Ok(None) };
        Ok(Some(match asked.as_bytes() {
            b"500" => Fail::Status500,
            b"hang" => Fail::Hang,
            b"truncate" => Fail::Truncate,
            b"no-usage" => Fail::NoUsage,
            b"slow" => Fail::Slow,
            _ => {
                return Err(Refused("x-sample-fail is 500, hang, truncate, no-usage or slow"));
            }
        }))
    }
}

impl Stats {
    fn count(&self, path: &str, headers: &HeaderMap) {
        let counter = match path {
            "/v1/images/generate" => &self.images,
            "/v1/videos" => &self.videos,
            "/v1/chat/completions" => &self.chat,
            "/v1/models" => &self.models,
            "/healthz" => &self.healthz,
            _ => &self.other,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if headers.contains_key(CHARGE) {
            self.charges.fetch_add(1, Ordering::Relaxed);
        }
        if headers.contains_key(FAIL) {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn to_json(&self) -> serde_json::Value {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "requests": {
                "/v1/images/generate": read(&self.images),
                "/v1/videos": read(&self.videos),
                "/v1/chat/completions": read(&self.chat),
                "/v1/models": read(&self.models),
                "/healthz": read(&self.healthz),
                "other": read(&self.other),
            },
            "charges": read(&self.charges),
            "failures": read(&self.failures),
        })
    }
}

/// The next connection that there is room for; `None` where the system had none to give (out of
/// file descriptors, or a client that left before it was accepted).
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            tracing::warn!(%error, "accept");
            // Without a pause, a process out of file descriptors would spin here.
            tokio::time::sleep(Duration::from_millis(20)).await;
            None
        }
    }
}

async fn serve(stream: TcpStream, stats: Arc<Stats>, shutdown: CancellationToken) {
    // An answer in two writes would wait for the client's delayed acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "nodelay");
    }
    let stop = shutdown.clone();
    let service = service_fn(move |request| handle(request, stats.clone(), stop.clone()));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection");
    }
}

async fn handle(
    request: Request<Incoming>,
    stats: Arc<Stats>,
    shutdown: CancellationToken,
) -> Result<Response<Script>, Stopped> {
    let (head, body) = request.into_parts();
    if head.uri.path() == "/sample/stats" {
        return Ok(whole(StatusCode::OK, stats.to_json().to_string()));
    }
    stats.count(head.uri.path(), &head.headers);
    let fail = match Fail::from_headers(&head.headers) {
        Ok(fail) => fail,
        Err(refused) => return Ok(problem(StatusCode::BAD_REQUEST, refused.0)),
    };
    // The body is read before any failure, as a backend that fails while it generates does.
    let Ok(body) = Limited::new(body, MAX_BODY).collect().await else {
        return Ok(problem(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large, or broke off"));
    };
    match fail {
        Some(Fail::Hang) => {
            shutdown.cancelled().await;
            return Err(Stopped);
        }
        Some(Fail::Status500) => {
            return Ok(problem(StatusCode::INTERNAL_SERVER_ERROR, "failed, as asked"));
        }
        _ => {}
    }
    let told = head.headers.get(USAGE);
    let allowed = match head.uri.path() {
        "/v1/models" | "/healthz" => Method::GET,
        "/v1/images/generate" | "/v1/videos" | "/v1/chat/completions" => Method::POST,
        _ => return Ok(problem(StatusCode::NOT_FOUND, "no such path")),
    };
    if head.method != allowed {
        let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, "no such method here");
        if let Ok(value) = HeaderValue::from_str(allowed.as_str()) {
            response.headers_mut().insert(ALLOW, value);
        }
        return Ok(response);
    }
    let answer = answer::answer(
        head.uri.path(),
        &body.to_bytes(),
        told.map(HeaderValue::as_bytes),
        fail == Some(Fail::NoUsage),
    );
    Ok(match answer {
        Ok(answer) => respond(answer, fail),
        Err(refused) => problem(StatusCode::BAD_REQUEST, refused.0),
    })
}

fn respond(answer: Answer, fail: Option<Fail>) -> Response<Script> {
    let streamed = answer.streamed;
    let length: usize = answer.pieces.iter().map(|piece| piece.len()).sum();
    let body = match fail {
        Some(Fail::Truncate) => Script::broken(answer.pieces),
        Some(Fail::Slow) => Script::paced(answer.pieces, PACE),
        _ => Script::plain(answer.pieces),
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    if streamed {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    } else {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // Told also where the body will break off: that is how the client can see that it did.
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    if let Some(told) = answer.usage.and_then(|usage| HeaderValue::from_str(&usage).ok()) {
        headers.insert(TOLD, told);
    }
    response
}

fn whole(status: StatusCode, json: String) -> Response<Script> {
    let answer = Answer { pieces: vec![json.into()], streamed: false, usage: None };
    let mut response = respond(answer, None);
    *response.status_mut() = status;
    response
}

fn problem(status: StatusCode, message: &str) -> Response<Script> {
    whole(status, json!({ "error": { "message": message } }).to_string())
}

#[cfg(test)]
mod tests;
