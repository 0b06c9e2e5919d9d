//! Backends, as one worker reaches them: which address a request goes to, how long it may take,
//! and when it is sent again.
//!
//! A request is sent again only where nothing of it can have been processed (f16): no connection,
//! or one that ended before anything was written to it; or where its method is safe, its body
//! empty, and a connection that had been idle ended before an answer (RFC 9110 section 9.2.2,
//! RFC 9112 section 9.3.1).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::timeout_at;
use tokio_util::task::TaskTracker;

use super::endpoint::Endpoint;
use super::flow::Lease;
use super::health::{Addresses, Standing};
use super::outgoing::{Outgoing, Upload};
use crate::config;
use crate::core::ids::Id;

/// How many addresses a request is tried at that finds no connection.
const MAX_TRIES: usize = 3;

/// Why a backend did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is no connection, so nothing was sent.
    Unreachable,
    /// The exchange broke, or the answer is none that can be passed on.
    Broken,
    /// No response head in time.
    Timeout,
    /// Whoever asked for it says no by now: nothing was sent, or nothing again.
    Withheld,
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
    /// Its name.
    pub name: Id,
    /// How long a response's head may take, from the end of the request.
    pub response_timeout: Duration,
    /// How long the next piece of a response's body may take.
    pub idle_timeout: Duration,
    /// How long a body may take as a whole.
    pub body_timeout: Duration,
    /// What the backend is shown instead of the caller's credential.
    pub credential: Option<(HeaderName, HeaderValue)>,
    /// Its addresses.
    pub(super) endpoints: Arc<[Endpoint]>,
    /// Shared with all workers.
    health: Arc<Addresses>,
    /// Where the search for an address begins; only this worker's requests count it up.
    next: AtomicUsize,
    /// Tasks that drive connections. Nobody waits for them: what they carry is waited for.
    drivers: TaskTracker,
}

/// What became of a request that was given to a connection.
enum Sent {
    Answered(Response<Incoming>),
    /// The connection had ended; nothing was written.
    Unsent(Box<Request<Outgoing>>),
    Failed(Failure),
}

impl Upstream {
    /// True when these are its addresses: then nothing of the backend's configuration differs.
    pub fn reaches(&self, addresses: &Arc<Addresses>) -> bool {
        Arc::ptr_eq(&self.health, addresses)
    }

    /// The same backend at another place of the configuration, with the same connections.
    pub fn at(self: &Arc<Self>, index: usize) -> Arc<Self> {
        if index == self.index {
            return Arc::clone(self);
        }
        Arc::new(Self {
            index,
            name: self.name.clone(),
            credential: self.credential.clone(),
            endpoints: Arc::clone(&self.endpoints),
            health: Arc::clone(&self.health),
            next: AtomicUsize::new(0),
            drivers: self.drivers.clone(),
            ..**self
        })
    }

    /// Whether connections that the one gives back are there for the other.
    #[cfg(test)]
    pub fn shares_connections(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.endpoints, &other.endpoints)
    }

    /// A backend from its configuration, the header it is shown instead of the caller's, and the
    /// health of its addresses.
    ///
    /// # Errors
    /// What is wrong with its URLs.
    pub fn new(
        index: usize,
        config: &config::Upstream,
        credential: Option<(HeaderName, HeaderValue)>,
        health: Arc<Addresses>,
    ) -> Result<Self, UpstreamError> {
        let fail = |problem| UpstreamError { name: config.name.to_string(), problem };
        let endpoint = |url: &String| {
            Endpoint::new(url, config.connect_timeout)
                .ok_or_else(|| fail("`urls` are like \"http://host:port\""))
        };
        let endpoints: Arc<[Endpoint]> =
            config.urls.iter().map(endpoint).collect::<Result<_, _>>()?;
        if endpoints.is_empty() || endpoints.len() > config::MAX_URLS {
            return Err(fail("`urls` is empty, or too long"));
        }
        Ok(Self {
            index,
            name: config.name.clone(),
            response_timeout: config.response_timeout,
            idle_timeout: config.idle_timeout,
            body_timeout: config.body_timeout,
            credential,
            endpoints,
            health,
            next: AtomicUsize::new(0),
            drivers: TaskTracker::new(),
        })
    }

    /// The address with the fewest requests of this worker under way among those in use and not
    /// in the set `tried`; one whose time out is over goes first, because one request finds out
    /// for all: it is a probe, after so many failures. Where none is in use, one is tried all the
    /// same; that is no probe, and only its success counts.
    fn choose(&self, tried: u64) -> Option<(usize, Option<u32>)> {
        let count = self.endpoints.len();
        if tried.count_ones() as usize >= count.min(MAX_TRIES) {
            return None;
        }
        if count == 1 {
            let probe = match self.health.standing(0) {
                Standing::Probe(failures) => Some(failures),
                _ => None,
            };
            return Some((0, probe));
        }
        let first = self.next.fetch_add(1, Relaxed) % count;
        let mut best: Option<(usize, usize)> = None;
        for at in (first..count).chain(0..first).filter(|at| tried & (1 << at) == 0) {
            match self.health.standing(at) {
                Standing::Out => {}
                Standing::Probe(failures) => return Some((at, Some(failures))),
                Standing::InUse => {
                    let load = self.endpoints[at].in_flight.load(Relaxed);
                    if best.is_none_or(|(_, least)| load < least) {
                        best = Some((at, load));
                    }
                }
            }
        }
        let in_use = best.map(|(at, _)| (at, None));
        in_use.or_else(|| self.health.least_out(tried).map(|at| (at, None)))
    }

    /// Sends a request and waits for the response's head. `upload` is how far its body has come, and
    /// `may` is asked before each time that it is sent: finding a connection takes time.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn send(
        self: &Arc<Self>,
        mut request: Request<Outgoing>,
        upload: &Upload,
        may: impl Fn() -> bool,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        let mut tried = 0;
        while let Some((at, probe)) = self.choose(tried) {
            tried |= 1 << at;
            let endpoint = &self.endpoints[at];
            request.headers_mut().insert(HOST, endpoint.authority.clone());
            let mut pooled = endpoint.take();
            loop {
                let (link, reused) = match pooled.take() {
                    Some(link) => (link, true),
                    None => match endpoint.connect(&self.drivers).await {
                        Some(connected) => connected,
                        None => break,
                    },
                };
                let mut lease = Lease::new(self, at, link);
                if !may() {
                    return Err(Failure::Withheld);
                }
                let again = if reused { repeatable(&request) } else { None };
                match self.exchange(&mut lease, request, upload).await {
                    Sent::Answered(response) => {
                        endpoint.answered.fetch_add(1, Relaxed);
                        if response.status().is_server_error() {
                            self.health.failed(at, probe);
                        } else {
                            self.health.worked(at);
                        }
                        return Ok((response, lease));
                    }
                    Sent::Unsent(unsent) => {
                        request = *unsent;
                        if !reused {
                            break;
                        }
                    }
                    Sent::Failed(failure) => match again {
                        Some(again) if failure == Failure::Broken => request = again,
                        _ => {
                            // Whoever breaks off an upload, or does not go on with it, harms only
                            // its own request.
                            if !upload.broke_off() && !upload.is_open() {
                                self.health.failed(at, probe);
                            }
                            return Err(failure);
                        }
                    },
                }
            }
            self.health.failed(at, probe);
        }
        Err(Failure::Unreachable)
    }

    async fn exchange(
        &self,
        lease: &mut Lease,
        request: Request<Outgoing>,
        upload: &Upload,
    ) -> Sent {
        let Some(link) = &mut lease.link else { return Sent::Unsent(Box::new(request)) };
        let mut answering = std::pin::pin!(link.sender.try_send_request(request));
        let began = Instant::now();
        let mut pieces = upload.pieces();
        let mut until = began + self.response_timeout;
        loop {
            return match timeout_at(until.into(), answering.as_mut()).await {
                Ok(Ok(mut response)) => {
                    if sound(&mut response) {
                        Sent::Answered(response)
                    } else {
                        Sent::Failed(Failure::Broken)
                    }
                }
                Ok(Err(mut error)) => match error.take_message() {
                    Some(unsent) => Sent::Unsent(Box::new(unsent)),
                    None => Sent::Failed(Failure::Broken),
                },
                // The time runs from the end of the request, and for as long as its body moves.
                Err(_) => {
                    let moved = upload.is_open() && upload.pieces() != pieces;
                    pieces = upload.pieces();
                    let from = if moved { Some(Instant::now()) } else { upload.ended() };
                    let next = from.map(|from| from + self.response_timeout);
                    match next.filter(|next| *next > until && began.elapsed() < self.body_timeout) {
                        Some(next) => until = next,
                        None => return Sent::Failed(Failure::Timeout),
                    }
                    continue;
                }
            };
        }
    }

    /// How many connections wait for a request.
    pub fn idle(&self) -> usize {
        self.endpoints.iter().map(Endpoint::idle).sum()
    }
}

/// A copy of a request that may be processed twice: its method is safe, and it has no body.
fn repeatable(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    if !request.method().is_safe() || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(Outgoing::Whole(None));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// Whether a response may be passed on: its framing has one meaning for everybody (RFC 9112
/// section 6.3), and it is an answer and not another protocol, which nobody asked for (f65).
fn sound(response: &mut Response<Incoming>) -> bool {
    !response.status().is_informational() && one_framing(response.headers_mut())
}

/// Whether the framing is said in one way. A length that is said several times alike is said once
/// from here on.
fn one_framing(headers: &mut HeaderMap) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    let digits = |length: &HeaderValue| {
        !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit)
    };
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let mut several = false;
    let sound = match (length, codings.next()) {
        (None, None) => true,
        (Some(length), None) => {
            let alike = |other: &HeaderValue| {
                several = true;
                other == length
            };
            digits(length) && lengths.all(alike)
        }
        (None, Some(coding)) => {
            coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none()
        }
        (Some(_), Some(_)) => false,
    };
    if several && let Some(length) = length.cloned() {
        headers.insert(CONTENT_LENGTH, length);
    }
    sound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_with_the_fewest_requests_under_way_is_next() {
        let text = r#"name = "m"
            urls = ["http://h:1", "http://h:2", "http://h:3"]"#;
        let config: config::Upstream = toml::from_str(text).unwrap();
        let health = Arc::new(Addresses::new(&config));
        let upstream = Upstream::new(0, &config, None, Arc::clone(&health)).unwrap();
        let turns: Vec<_> = (0..6).filter_map(|_| upstream.choose(0)).map(|(at, _)| at).collect();
        assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
        for (at, count) in [(0, 3), (1, 1), (2, 2)] {
            upstream.endpoints[at].in_flight.store(count, Relaxed);
        }
        for _ in 0..3 {
            assert_eq!(upstream.choose(0), Some((1, None)));
            assert_eq!(upstream.choose(0b010), Some((2, None)));
        }
        assert_eq!(upstream.choose(0b111), None);
        // Out of use is out of the choice, until nothing else is left.
        for _ in 0..5 {
            health.failed(1, None);
        }
        assert_eq!(upstream.choose(0), Some((2, None)));
        assert_eq!(upstream.choose(0b101), Some((1, None)));
    }

    #[test]
    fn what_is_sent_because_no_address_is_in_use_is_no_probe() {
        let text = "name = \"m\"\nurls = [\"http://h:1\", \"http://h:2\"]";
        let config: config::Upstream = toml::from_str(text).unwrap();
        let health = Arc::new(Addresses::new(&config));
        let upstream = Upstream::new(0, &config, None, Arc::clone(&health)).unwrap();
        (0..5).for_each(|_| (0..2).for_each(|at| health.failed(at, None)));
        for _ in 0..100 {
            let (at, probe) = upstream.choose(0).unwrap();
            assert_eq!(probe, None, "the time out is not over");
            health.failed(at, probe);
        }
    }

    #[test]
    fn f63_a_response_is_framed_in_one_way() {
        let sound = |fields: &[(&str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
            }
            one_framing(&mut headers).then(|| headers.get_all(CONTENT_LENGTH).iter().count())
        };
        let (length, coding) = ("content-length", "transfer-encoding");
        assert_eq!(sound(&[]), Some(0));
        assert_eq!(sound(&[(length, "5")]), Some(1));
        assert_eq!(sound(&[(length, "5"), (length, "5")]), Some(1));
        assert_eq!(sound(&[(coding, "Chunked")]), Some(0));
        for fields in [
            &[(length, "5"), (length, "6")][..],
            &[(length, "5, 5")],
            &[(length, "+5")],
            &[(length, "")],
            &[(length, "5"), (coding, "chunked")],
            &[(coding, "chunked"), (coding, "chunked")],
            &[(coding, "gzip, chunked")],
            &[(coding, "identity")],
        ] {
            assert_eq!(sound(fields), None, "{fields:?}");
        }
    }
}
