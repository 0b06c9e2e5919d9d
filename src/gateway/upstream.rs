//! Backends: a pool of connections per worker and backend, last in, first out.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderName, HeaderValue};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::body::ClientBody;
use crate::config;

/// How many idle connections a worker keeps to one backend.
const MAX_IDLE: usize = 512;

/// A request's body on its way to a backend.
#[derive(Debug)]
pub enum Outgoing {
    /// It was held to be priced.
    Whole(Option<Bytes>),
    /// It passes through as it comes.
    Streamed(ClientBody, Upload),
}

/// Whether the client broke off a body that passes through: what its answer then lacks is the
/// client's doing, and not the backend's.
#[derive(Clone, Debug, Default)]
pub struct Upload(Option<Arc<AtomicBool>>);

impl Upload {
    /// Of a body that may still be coming.
    pub fn of(body: &ClientBody) -> Self {
        Self((!body.is_end_stream()).then(Arc::default))
    }

    /// Whether it broke off.
    pub fn broke_off(&self) -> bool {
        self.0.as_ref().is_some_and(|broke| broke.load(Relaxed))
    }

    fn break_off(&self) {
        if let Some(broke) = &self.0 {
            broke.store(true, Relaxed);
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Outgoing::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Outgoing::Streamed(body, upload) => {
                let frame = std::task::ready!(Pin::new(body).poll_frame(context));
                if let Some(Err(_)) = &frame {
                    upload.break_off();
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Outgoing::Streamed(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Outgoing::Streamed(body, _) => body.size_hint(),
        }
    }
}

/// Why a backend did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is no connection, so nothing was sent.
    Unreachable,
    /// The exchange broke.
    Broken,
    /// No response head in time.
    Timeout,
}

/// Why an upstream cannot be used as configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("upstream {name}: {problem}")]
pub struct UpstreamError {
    name: String,
    problem: &'static str,
}

/// A backend, as one worker reaches it.
pub struct Upstream {
    /// Its place in the configuration, for metrics.
    pub index: usize,
    /// How long a response's head may take.
    pub response_timeout: Duration,
    /// What the backend is shown instead of the caller's credential.
    pub credential: Option<(HeaderName, HeaderValue)>,
    connect_timeout: Duration,
    endpoints: Box<[Endpoint]>,
    /// Where the next request goes; only this worker's requests count it up.
    next: AtomicUsize,
    /// Tasks that drive connections. Nobody waits for them: what they carry is waited for.
    drivers: TaskTracker,
}

struct Endpoint {
    authority: HeaderValue,
    /// `host:port`.
    address: Box<str>,
    /// Connections without a request, the last used on top. Only this worker's tasks take the
    /// lock, so it is never waited for.
    idle: Mutex<Vec<SendRequest<Outgoing>>>,
}

/// A connection that is in use; given back when its response was read to the end, closed when
/// it is dropped before that.
pub struct Lease {
    upstream: Arc<Upstream>,
    endpoint: usize,
    sender: SendRequest<Outgoing>,
}

impl Lease {
    /// Puts the connection back for the next request.
    pub fn give_back(self) {
        if !self.sender.is_closed() {
            let mut idle = self.upstream.endpoints[self.endpoint].idle.lock();
            if idle.len() < MAX_IDLE {
                idle.push(self.sender);
            }
        }
    }
}

impl Upstream {
    /// A backend from its configuration, and the header it is shown instead of the caller's.
    ///
    /// # Errors
    /// What is wrong with its URLs.
    pub fn new(
        index: usize,
        config: &config::Upstream,
        credential: Option<(HeaderName, HeaderValue)>,
    ) -> Result<Self, UpstreamError> {
        let fail = |problem| UpstreamError { name: config.name.to_string(), problem };
        let endpoints: Box<[Endpoint]> = (config.urls.iter())
            .map(|url| endpoint(url).ok_or_else(|| fail("`urls` are like \"http://host:port\"")))
            .collect::<Result<_, _>>()?;
        if endpoints.is_empty() {
            return Err(fail("`urls` is empty"));
        }
        Ok(Self {
            index,
            response_timeout: config.response_timeout,
            credential,
            connect_timeout: config.connect_timeout,
            endpoints,
            next: AtomicUsize::new(0),
            drivers: TaskTracker::new(),
        })
    }

    /// Sends a request and waits for the response's head.
    ///
    /// A request that found its pooled connection closed before anything was sent is sent once
    /// more on a new one (f16); nothing else is ever repeated.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn send(
        self: &Arc<Self>,
        request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        match timeout(self.response_timeout, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::Timeout),
        }
    }

    async fn exchange(
        self: &Arc<Self>,
        mut request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        let count = self.endpoints.len();
        let first = if count > 1 { self.next.fetch_add(1, Relaxed) % count } else { 0 };
        let mut pooled = self.endpoints[first].take();
        for attempt in 0..=count {
            let endpoint = match pooled {
                Some(_) => first,
                None => (first + attempt) % count,
            };
            let mut sender = match pooled.take() {
                Some(sender) => sender,
                None => match self.connect(endpoint).await {
                    Some(sender) => sender,
                    None if attempt + 1 < count => continue,
                    None => return Err(Failure::Unreachable),
                },
            };
            let authority = self.endpoints[endpoint].authority.clone();
            request.headers_mut().insert(HOST, authority);
            match sender.try_send_request(request).await {
                // The gateway asks for no other protocol, so nobody could speak it (f65).
                Ok(response) if response.status().is_informational() => {
                    return Err(Failure::Broken);
                }
                Ok(response) => {
                    return Ok((response, Lease { upstream: Arc::clone(self), endpoint, sender }));
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(Failure::Broken),
                },
            }
        }
        Err(Failure::Unreachable)
    }

    /// How many connections wait for a request.
    pub fn idle(&self) -> usize {
        let open = |endpoint: &Endpoint| {
            endpoint.idle.lock().iter().filter(|sender| !sender.is_closed()).count()
        };
        self.endpoints.iter().map(open).sum()
    }

    async fn connect(&self, endpoint: usize) -> Option<SendRequest<Outgoing>> {
        let address = &*self.endpoints[endpoint].address;
        let stream = timeout(self.connect_timeout, TcpStream::connect(address)).await.ok()?.ok()?;
        // A head and a small body are one write; waiting for more would only add latency.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        self.drivers.spawn(async move {
            // An error here is told to whoever waits for the response.
            let _ = connection.await;
        });
        Some(sender)
    }
}

impl Endpoint {
    /// The connection used last that can take a request at once.
    fn take(&self) -> Option<SendRequest<Outgoing>> {
        let mut idle = self.idle.lock();
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            if idle[at].is_closed() {
                idle.remove(at);
            } else if idle[at].is_ready() {
                return Some(idle.remove(at));
            }
        }
        None
    }
}

fn endpoint(url: &str) -> Option<Endpoint> {
    let uri: http::Uri = url.parse().ok()?;
    let authority = uri.authority()?;
    let plain = uri.scheme() == Some(&http::uri::Scheme::HTTP)
        && matches!(uri.path(), "" | "/")
        && uri.query().is_none()
        && !authority.as_str().contains('@');
    if !plain {
        return None;
    }
    let port = authority.port_u16().unwrap_or(80);
    Some(Endpoint {
        authority: HeaderValue::from_str(authority.as_str()).ok()?,
        address: format!("{}:{port}", authority.host()).into(),
        idle: Mutex::default(),
    })
}

/// A response's body, and the connection it comes from. Trailers are not passed on.
pub struct Flow {
    body: Incoming,
    lease: Option<Lease>,
}

impl Flow {
    /// A body that has just begun.
    pub fn new(body: Incoming, lease: Lease) -> Self {
        let mut flow = Self { body, lease: Some(lease) };
        flow.release_at_end();
        flow
    }

    /// How long it says it is.
    pub fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    /// Whether it is known to be over.
    pub fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn release_at_end(&mut self) {
        if self.body.is_end_stream()
            && let Some(lease) = self.lease.take()
        {
            lease.give_back();
        }
    }

    /// The next piece; `None` at a clean end.
    pub fn poll_data(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, hyper::Error>>> {
        loop {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    self.release_at_end();
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                Some(Err(error)) => {
                    self.lease = None;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    if let Some(lease) = self.lease.take() {
                        lease.give_back();
                    }
                    return Poll::Ready(None);
                }
            }
        }
    }

    /// The next piece; `None` at a clean end.
    pub async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        std::future::poll_fn(|context| self.poll_data(context)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f80_an_endpoint_is_a_plain_authority() {
        for url in ["http://127.0.0.1:9100", "http://backend", "http://[::1]:80/"] {
            assert!(endpoint(url).is_some(), "{url}");
        }
        for url in ["https://a", "a:80", "http://a/b", "http://u:p@a", "http://a?x", "/", ""] {
            assert!(endpoint(url).is_none(), "{url}");
        }
        assert_eq!(&*endpoint("http://backend").unwrap().address, "backend:80");
    }
}
