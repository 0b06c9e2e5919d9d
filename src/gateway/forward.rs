//! Forwarding: what a backend is shown of a request, and what a client is shown of its response.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderMap,
    HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{Request, Response, Version, response};
use smallvec::SmallVec;
use tokio_util::task::TaskTracker;

use super::Refused;
use super::carry::Carried;
use super::hold::{Held, Stage};
use super::identify::Caller;
use super::meter_body::{Content, End, MeteredBody, Reading, settle as settle_by};
use super::route::Route;
use super::settle::{self, Actual, Settled};
use super::upstream::{Failure, Flow, Outgoing, Upstream};
use super::worker::{Connection, Worker};
use crate::books::{Books, InDoubt};
use crate::config::OnDisconnect;
use crate::core::charge::State;
use crate::core::ids::Id;
use crate::core::refusal::{Code, Refusal};
use crate::telemetry::{Outcome, Phase};

/// The largest response that is read whole before its head is sent, so that its receipt can say
/// `captured`.
const SMALL: u64 = 64 << 10;
/// How often the connection's task is let run to bring the next piece of a response that does
/// not say how long it is.
const PATIENCE: usize = 3;

/// The request's id, in both directions.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const TOLLGATE_ORG: HeaderName = HeaderName::from_static("tollgate-org");
const TOLLGATE_USER: HeaderName = HeaderName::from_static("tollgate-user");
const TOLLGATE_CHARGE: HeaderName = HeaderName::from_static("tollgate-charge");
const TOLLGATE_RECEIPT: HeaderName = HeaderName::from_static("tollgate-receipt");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// A response on its way to the client.
pub struct Forwarded<B: Books + 'static> {
    /// Its head and body.
    pub response: Response<Content<B>>,
    /// How long the backend was waited for.
    pub waited: Duration,
}

/// Removes what belongs to the connection it came over, and what only the gateway says
/// (f60, f61). Run before a request is priced: a header that is not forwarded decides no price.
pub fn strip(headers: &mut HeaderMap) {
    let mut gone: SmallVec<[HeaderName; 8]> = SmallVec::new();
    for name in headers.keys() {
        if is_hop_by_hop(name) || is_ours(name) {
            gone.push(name.clone());
        }
    }
    for value in headers.get_all(CONNECTION) {
        for token in value.as_bytes().split(|byte| *byte == b',') {
            let token = token.trim_ascii();
            if !token.eq_ignore_ascii_case(b"keep-alive") && !token.eq_ignore_ascii_case(b"close") {
                gone.extend(HeaderName::from_bytes(token));
            }
        }
    }
    for name in gone {
        headers.remove(name);
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    // Names that http knows compare as one number each.
    *name == CONNECTION
        || *name == TRANSFER_ENCODING
        || *name == TE
        || *name == TRAILER
        || *name == UPGRADE
        || *name == PROXY_AUTHENTICATE
        || *name == PROXY_AUTHORIZATION
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
}

/// `Tollgate-*` in any spelling that a backend could take for it: CGI and its heirs turn every
/// `-` into `_`.
fn is_ours(name: &HeaderName) -> bool {
    let bytes = name.as_str().as_bytes();
    bytes.len() > 8 && bytes.starts_with(b"tollgate") && matches!(bytes[8], b'-' | b'_')
}

/// The id a caller gave its request, if it may be passed on.
pub fn own_request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let id = headers.get(X_REQUEST_ID)?;
    let visible = |bytes: &[u8]| bytes.iter().all(|byte| (0x21..=0x7e).contains(byte));
    ((1..=128).contains(&id.len()) && visible(id.as_bytes())).then(|| id.clone())
}

/// A request as the backend is shown it, from one that was stripped.
#[derive(Debug)]
pub struct Dressing<'a> {
    /// The connection it came over.
    pub peer: &'a HeaderValue,
    /// Whether that is a proxy whose word is believed.
    pub trusted: bool,
    /// The charge's id as text, if there is one.
    pub charge: Option<HeaderValue>,
    /// The request's id.
    pub request_id: HeaderValue,
}

/// Makes the request that goes to the backend. Headers are moved.
pub fn dress(
    mut parts: Parts,
    body: Outgoing,
    caller: &Caller,
    route: &Route,
    upstream: &Upstream,
    dressing: Dressing<'_>,
) -> Request<Outgoing> {
    let headers = &mut parts.headers;
    headers.reserve(8);
    if caller.by_authorization {
        headers.remove(AUTHORIZATION);
    }
    headers.remove(EXPECT);
    let mut value = dressing.peer.clone();
    if dressing.trusted {
        if let Some(before) = headers.get(X_FORWARDED_FOR) {
            let chain = [before.as_bytes(), b", ", value.as_bytes()].concat();
            value = HeaderValue::from_bytes(&chain).unwrap_or(value);
        }
    } else {
        headers.remove(FORWARDED);
    }
    headers.insert(X_FORWARDED_FOR, value);
    if !dressing.trusted || !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if let Some(host) = headers.remove(HOST)
        && (!dressing.trusted || !headers.contains_key(X_FORWARDED_HOST))
    {
        headers.insert(X_FORWARDED_HOST, host);
    }
    headers.insert(TOLLGATE_ORG, id(&caller.org.id));
    if let Some(user) = &caller.user {
        headers.insert(TOLLGATE_USER, id(&user.id));
    }
    if let Some(charge) = dressing.charge {
        headers.insert(TOLLGATE_CHARGE, charge);
    }
    headers.insert(X_REQUEST_ID, dressing.request_id);
    if let Some((name, secret)) = &upstream.credential {
        headers.insert(name.clone(), secret.clone());
    }
    if route.metered.as_ref().is_some_and(|metered| !metered.pricing.response.is_empty()) {
        // Usage is read from the body as it comes, so it must come as it is (f74).
        headers.remove(ACCEPT_ENCODING);
    }
    if parts.uri.scheme().is_some() || parts.uri.authority().is_some() {
        let path = parts.uri.path_and_query().cloned();
        parts.uri = path.map(http::Uri::from).unwrap_or_default();
    }
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    Request::from_parts(parts, body)
}

fn id(id: &Id) -> HeaderValue {
    // Ids are visible ASCII.
    HeaderValue::from_str(id.as_str()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Removes from a response what belongs to the backend's connection and what only the gateway
/// says.
fn undress(head: &mut response::Parts) {
    strip(&mut head.headers);
    head.headers.remove(RATE_LIMIT);
    head.headers.remove(RATE_LIMIT_POLICY);
    head.version = Version::HTTP_11;
    head.extensions.clear();
}

/// Forwards a request of a free route.
///
/// # Errors
/// 502 and 504 when the backend does not answer.
pub async fn free<B: Books + 'static>(
    worker: &Worker<B>,
    caller: &Caller,
    upstream: &Arc<Upstream>,
    route: &Route,
    request: Request<Outgoing>,
) -> Result<Forwarded<B>, Refused> {
    let sent = Instant::now();
    let answer = upstream.send(request).await;
    let waited = sent.elapsed();
    worker.meters.upstream(upstream.index, Phase::Headers, waited);
    let (response, lease) =
        answer.map_err(|failure| Refused { waited, ..failed(failure, false) })?;
    let (mut head, body) = response.into_parts();
    undress(&mut head);
    caller.meters.request(Some(route.index), Outcome::Free, Some(head.status.as_u16()));
    let content = Content::Passed(Flow::new(body, lease));
    Ok(Forwarded { response: Response::from_parts(head, content), waited })
}

/// Forwards a request that is paid for, and settles its charge by what comes back.
///
/// # Errors
/// 502 and 504 when the backend does not answer; `books_unavailable` when the end of the charge
/// cannot be recorded, because then nobody may have the answer (D30).
pub async fn metered<B: Books + 'static>(
    mut held: Box<Held<B>>,
    request: Request<Outgoing>,
) -> Result<Forwarded<B>, Refused> {
    if cancelled_by_leaving(&held).is_some() {
        // Dropped before anything was delivered, the charge is voided (D33).
        return exchange(held, request).await;
    }
    held.stage = Stage::Forwarded;
    let tasks = held.worker.tasks.clone();
    Carried::new(&tasks, exchange(held, request)).await
}

async fn exchange<B: Books + 'static>(
    mut held: Box<Held<B>>,
    request: Request<Outgoing>,
) -> Result<Forwarded<B>, Refused> {
    let upstream = Arc::clone(&held.worker.upstreams[held.route.upstream]);
    let sent = Instant::now();
    let answer = upstream.send(request).await;
    let waited = sent.elapsed();
    held.worker.meters.upstream(upstream.index, Phase::Headers, waited);
    let (response, lease) = match answer {
        Ok(answer) => answer,
        Err(failure) => return Err(Refused { waited, ..unanswered(held, failure).await }),
    };
    let (mut head, body) = response.into_parts();
    undress(&mut head);
    let status = head.status.as_u16();
    let flow = Flow::new(body, lease);
    let charges = held.metered().is_some_and(|metered| metered.charges(status));
    if !charges {
        let settled = settle::void(&mut held, Some(status)).await?;
        receipt(&mut head, &held, &settled);
        let response = Response::from_parts(head, Content::Passed(flow));
        return Ok(Forwarded { response, waited });
    }
    deliver(held, head, flow, waited).await
}

async fn deliver<B: Books + 'static>(
    mut held: Box<Held<B>>,
    mut head: response::Parts,
    mut flow: Flow,
    waited: Duration,
) -> Result<Forwarded<B>, Refused> {
    let status = head.status.as_u16();
    let mut reading = match held.metered() {
        Some(metered) => Reading::new(metered, &head.headers),
        None => Reading::default(),
    };
    let began = Instant::now();
    let gathered = match flow.size_hint().exact() {
        Some(length) if length > SMALL => Gathered::Open(Vec::new()),
        Some(_) => gather(&mut flow, &mut reading, usize::MAX).await,
        None => gather(&mut flow, &mut reading, PATIENCE).await,
    };
    let took = began.elapsed();
    let waited = waited + took;
    let (end, bytes) = match gathered {
        Gathered::Whole(bytes) => (End::Complete, bytes),
        Gathered::Broken(bytes) => (End::Truncated, bytes),
        Gathered::Open(prefix) => {
            let state = held.receipt(State::Held, held.quoted.quote.price.cost.micro(), &held.legs);
            head.headers.insert(TOLLGATE_RECEIPT, state);
            rate_limits(&mut head, &held);
            let body = MeteredBody::new(held, reading, flow, prefix, status);
            let content = Content::Metered(Box::new(body));
            return Ok(Forwarded { response: Response::from_parts(head, content), waited });
        }
    };
    held.worker.meters.upstream(held.route.upstream, Phase::Body, took);
    let tasks = cancelled_by_leaving(&held);
    let work = async move {
        let settled = settle_by(&mut held, &reading, end, status).await;
        (held, settled)
    };
    let (held, settled) = secured(tasks, work).await;
    let settled = settled?;
    if end == End::Truncated && settled.state == State::Voided {
        let mut refused = failed(Failure::Broken, true);
        refused.refusal.detail = "the backend broke off its response; nothing was charged".into();
        return Err(refused);
    }
    receipt(&mut head, &held, &settled);
    let content = match end {
        End::Complete => Content::Whole(Some(bytes)),
        _ => Content::Broken(Some(bytes)),
    };
    Ok(Forwarded { response: Response::from_parts(head, content), waited })
}

/// What was read of a response before its head was sent.
enum Gathered {
    /// All of it.
    Whole(Bytes),
    /// All there will be.
    Broken(Bytes),
    /// What was there at once, or fitted.
    Open(Vec<Bytes>),
}

/// Reads a body up to the small bound, for as long as there is something to read: `patience`
/// counts how often the connection's task may be waited for.
async fn gather(flow: &mut Flow, reading: &mut Reading, patience: usize) -> Gathered {
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut size = 0;
    let mut waits = 0;
    loop {
        let polled = if patience == usize::MAX {
            Poll::Ready(flow.next().await)
        } else {
            std::future::poll_fn(|context| Poll::Ready(flow.poll_data(context))).await
        };
        match polled {
            Poll::Pending if waits == patience => return Gathered::Open(pieces),
            Poll::Pending => {
                waits += 1;
                tokio::task::yield_now().await;
            }
            Poll::Ready(None) => return Gathered::Whole(join(pieces, size)),
            Poll::Ready(Some(Err(_))) => return Gathered::Broken(join(pieces, size)),
            Poll::Ready(Some(Ok(piece))) => {
                reading.feed(&piece);
                size += piece.len();
                pieces.push(piece);
                if flow.is_end_stream() {
                    return Gathered::Whole(join(pieces, size));
                }
                if size as u64 > SMALL {
                    return Gathered::Open(pieces);
                }
            }
        }
    }
}

fn join(mut pieces: Vec<Bytes>, size: usize) -> Bytes {
    match pieces.len() {
        0 => Bytes::new(),
        1 => pieces.swap_remove(0),
        _ => {
            let mut whole = BytesMut::with_capacity(size);
            for piece in &pieces {
                whole.extend_from_slice(piece);
            }
            whole.freeze()
        }
    }
}

/// Where a client that leaves cancels the exchange: the tasks that a capture must go on in,
/// because a capture that has begun is not cancelled.
fn cancelled_by_leaving<B: Books + 'static>(held: &Held<B>) -> Option<TaskTracker> {
    let cancels =
        held.metered().is_some_and(|metered| metered.on_disconnect == OnDisconnect::Cancel);
    cancels.then(|| held.worker.tasks.clone())
}

async fn secured<T: Send + 'static>(
    tasks: Option<TaskTracker>,
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    match tasks {
        None => work.await,
        Some(tasks) => Carried::new(&tasks, work).await,
    }
}

/// Settles a charge whose request got no answer (D32, f10).
async fn unanswered<B: Books + 'static>(mut held: Box<Held<B>>, failure: Failure) -> Refused {
    let captures = failure == Failure::Timeout
        && held.metered().is_some_and(|metered| metered.on_timeout == InDoubt::Capture);
    let refused = failed(failure, true);
    let status = Some(super::problem::status(refused.refusal.code).as_u16());
    let settled = if captures {
        let tasks = cancelled_by_leaving(&held);
        let work = async move { settle::capture(&mut held, &Actual::Missing, status).await };
        secured(tasks, work).await
    } else {
        settle::void(&mut held, status).await
    };
    match settled {
        Ok(_) => refused,
        Err(unrecorded) => unrecorded,
    }
}

fn failed(failure: Failure, counted: bool) -> Refused {
    let refusal = match failure {
        Failure::Unreachable => Refusal::new(
            Code::UpstreamUnreachable,
            "no connection to the backend; nothing was sent",
        ),
        Failure::Broken => Refusal::new(Code::UpstreamFailed, "the backend broke the connection"),
        Failure::Timeout => {
            Refusal::new(Code::UpstreamTimeout, "the backend did not answer in time")
        }
    };
    Refused { counted, ..refusal.into() }
}

fn receipt<B: Books + 'static>(head: &mut response::Parts, held: &Held<B>, settled: &Settled) {
    let receipt = held.receipt(settled.state, settled.cost, &settled.legs);
    head.headers.insert(TOLLGATE_RECEIPT, receipt);
    rate_limits(head, held);
}

fn rate_limits<B: Books + 'static>(head: &mut response::Parts, held: &Held<B>) {
    if let Some((policy, limit)) = held.rate_limits() {
        head.headers.insert(RATE_LIMIT_POLICY, policy);
        head.headers.insert(RATE_LIMIT, limit);
    }
}

/// Reads a request's body that decides its price, up to the route's bound.
///
/// # Errors
/// `body_too_large`, before reading where the request says so; `bad_request` where it breaks off.
pub async fn read_body(
    headers: &HeaderMap,
    mut body: hyper::body::Incoming,
    bound: u64,
) -> Result<Bytes, Refused> {
    let too_large = || {
        let detail = format!("this route takes bodies of at most {bound} bytes");
        Refused::from(Refusal::new(Code::BodyTooLarge, detail))
    };
    let told = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if told.and_then(|text| text.parse::<u64>().ok()).is_some_and(|length| length > bound) {
        return Err(too_large());
    }
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut size = 0;
    while let Some(frame) = http_body_util::BodyExt::frame(&mut body).await {
        let frame = frame.map_err(|_| {
            Refused::from(Refusal::new(Code::BadRequest, "the request's body broke off"))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        size += data.len();
        if size as u64 > bound {
            return Err(too_large());
        }
        pieces.push(data);
    }
    Ok(join(pieces, size))
}

/// The dressing of a request that came over a connection.
pub fn dressing(
    connection: &Connection,
    charge: Option<HeaderValue>,
    request_id: HeaderValue,
) -> Dressing<'_> {
    Dressing { peer: &connection.peer, trusted: connection.trusted, charge, request_id }
}
