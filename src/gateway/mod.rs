//! The data plane. A request goes one way, each stage takes one type and returns the next or a
//! refusal, and every refusal leaves by one door, [`problem`]:
//!
//! `bytes → identify → Caller → admit → Permit → route + quote → Quoted → hold → Held → forward →
//! MeteredBody → settle`

mod access;
pub mod admit;
pub mod answers;
mod body;
mod carry;
pub mod current;
mod dress;
mod endpoint;
mod flow;
pub mod form;
mod forward;
pub mod head;
pub mod health;
mod hold;
mod identify;
pub mod inject;
pub mod jobs;
mod later;
mod meter_body;
mod once;
mod outgoing;
pub mod pace;
pub mod pick;
pub mod problem;
mod proxies;
pub mod quote;
mod reserved;
pub mod route;
mod screen;
mod settle;
mod slices;
pub mod span;
pub mod upstream;
pub mod usage;
mod wire;
pub mod worker;

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::header::{EXPECT, HeaderValue};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::SignedDuration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::books::Books;
use crate::core::refusal::{Code, Refusal};
use crate::telemetry::{OrgMeters, Outcome};
use admit::Permit;
use body::{ClientBody, Taken};
use current::Current;
use dress::{Dressing, X_REQUEST_ID};
use forward::Forwarded;
use head::Facts;
use hold::{Holding, Wanted};
pub use later::{count_expired, count_voided};
use meter_body::{Content, Reply};
use outgoing::{Outgoing, Upload};
use pace::Late;
use problem::Manner;
pub use problem::Refused;
use quote::Asked;
use slices::Slices;
use wire::Wire;
use worker::Turn;
pub use worker::{ChargeIds, Charges, Connection, FoundAnswer, FoundCharge, FoundNote, Worker};

/// The pipeline.
async fn serve<B: Books + 'static>(
    worker: &Arc<Worker<B>>,
    connection: &Connection,
    (request, facts): (Request<ClientBody>, Facts),
    trace: &mut Trace,
) -> Result<(Forwarded<B>, Option<Arc<Permit>>), Refused> {
    let (mut parts, body) = request.into_parts();
    trace.request_id = dress::own_request_id(&parts.headers);
    screen::screen(&parts, facts)?;
    let now = worker.clock.now();
    if let Some(path) = parts.uri.path().strip_prefix(reserved::PREFIX) {
        return reserved::answer(worker, connection, (&parts, body), path, now, trace).await;
    }
    let shown = identify::authenticate(worker, connection, &parts.headers, now)?;
    trace.meters = Some(Arc::clone(shown.meters()));
    let caller = shown.identify()?;
    if worker.access_log {
        trace.who = Some(access::Who::of(&caller));
    }
    let permit = Arc::new(worker.limits.admit(&caller)?);
    let takes_trailers = dress::takes_trailers(&parts.headers);
    dress::strip(&mut parts.headers, |name| proxies::is_unbelieved(connection, name));
    let matched = worker.routes.find(&parts.method, parts.uri.path())?;
    let route = Arc::clone(&matched.route);
    trace.route = Some(route.index);
    trace.manner = route.manner;
    let upstream = &worker.upstreams[route.upstream];
    let Some(metered) = &route.metered else {
        still_serving(worker)?;
        let request_id = trace.id(worker, now);
        let dressing = Dressing { caller: &caller, connection, charge: None, request_id };
        let upload = Upload::of(&body);
        let expects = parts.headers.contains_key(EXPECT);
        let body = Outgoing::streamed(body, upload.clone(), expects, &worker.tasks);
        let request = dress::dress(parts, body, &route, upstream, dressing);
        let span = trace.span.context().child("upstream");
        let mut request = request;
        span.propagate(request.headers_mut());
        let sent = forward::free(worker, &caller, upstream, &route, request, &upload);
        return Ok((sent.await?, Some(permit)));
    };
    let upload = Upload::of(&body);
    let (mut caller, mut now) = (caller, now);
    let key = once::key(metered.idempotency, &parts.headers)?;
    let passing = (&upload, &worker.tasks);
    let room = &worker.limits.room;
    let hold = key.is_some();
    let mut body = Taken::take(metered, hold, &parts.headers, body, room, passing).await?;
    if body.is_held() {
        // Priced and held at the instant at which all of it is known: a body may take its time.
        let began = std::mem::replace(&mut now, worker.clock.now());
        if now.duration_since(began) >= SHORT {
            caller = caller.again(worker, now)?;
        }
    }
    let asked = Asked {
        headers: &parts.headers,
        query: parts.uri.query(),
        params: &matched.params,
        body: body.bytes(),
        length: body.length(),
    };
    let card = caller.org.card_for(caller.payer(), now)?;
    let mut quoted = metered.pricing.quote(metered.feature.as_str(), card, &asked)?;
    quoted.hold_something(metered)?;
    let once = once::once(metered, &caller, key, &parts, body.bytes())?;
    if metered.job.is_some() && once::known(worker, once.as_ref()).await?.is_none() {
        worker.jobs.admit(caller.org.id.as_str())?;
    }
    if let Some(inject) = &metered.inject {
        body.inject(inject, &mut parts.headers)?;
    }
    drop(matched);
    let route = Arc::clone(&route);
    let request_id = trace.request_id.as_ref();
    let spans = trace.span.context();
    let span = spans.child("hold");
    still_serving(worker)?;
    let wanted = Wanted { caller, route, quoted, once, now, request_id };
    let holding = hold::hold(worker, &permit, wanted).await?;
    span.end(Vec::new);
    let mut held = match holding {
        Holding::Made(held) => held,
        Holding::Known(held, known) => {
            trace.id(worker, now);
            // On the heap: its future would lie in every request's.
            return Ok((Box::pin(once::again(held, known)).await?, Some(permit)));
        }
    };
    held.spans = spans;
    held.upload = upload;
    held.takes_trailers = takes_trailers;
    let charge = id_header(held.charge);
    let request_id = trace.request_id.get_or_insert_with(|| charge.clone()).clone();
    held.slices = Slices::of(&held, &request_id);
    let charge = Some(charge);
    let dressing = Dressing { caller: &held.caller, connection, charge, request_id };
    let request = dress::dress(parts, body.outgoing(), &held.route, upstream, dressing);
    Ok((forward::metered(held, request).await?, Some(permit)))
}

/// How old what is known of a caller may be when it is decided upon: what an admin takes away is
/// gone within a second (D9, D13).
const SHORT: SignedDuration = SignedDuration::from_millis(500);

/// What is known of a request so far, for whatever its response will be.
#[derive(Default)]
struct Trace {
    meters: Option<Arc<OrgMeters>>,
    route: Option<usize>,
    request_id: Option<HeaderValue>,
    /// How its refusals look.
    manner: Manner,
    span: span::Span,
    /// Who asked, where requests are logged.
    who: Option<access::Who>,
}

impl Trace {
    /// The route's name, for logs.
    fn name<'w, B>(&self, worker: &'w Worker<B>) -> &'w str {
        self.route.and_then(|at| worker.routes.name(at)).unwrap_or("-")
    }

    /// The request's id; made where the caller sent none.
    fn id<B>(&mut self, worker: &Worker<B>, now: jiff::Timestamp) -> HeaderValue {
        self.request_id.get_or_insert_with(|| id_header(worker.ids.next(now))).clone()
    }
}

fn id_header(id: crate::core::ids::ChargeId) -> HeaderValue {
    // Hexadecimal digits and hyphens.
    HeaderValue::from_str(id.text(&mut [0; 36])).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Refuses whatever comes after the worker stopped accepting connections: its task tracker is
/// closed then.
fn still_serving<B>(worker: &Worker<B>) -> Result<(), Refused> {
    if worker.tasks.is_closed() {
        let detail = "this gateway is shutting down; another one, or its successor, serves";
        return Err(Refusal::new(Code::Draining, detail).into());
    }
    Ok(())
}

/// Answers one request, whatever becomes of it.
async fn answer<B: Books + 'static>(
    worker: &Arc<Worker<B>>,
    connection: Arc<Connection>,
    request: (Request<ClientBody>, Facts),
) -> Response<Reply<B>> {
    let began = Instant::now();
    let span = worker.tracer.begin(request.0.headers());
    let mut trace = Trace { span, ..Trace::default() };
    // Who is refused before its route is known is answered in that route's manner all the same.
    let target = (worker.routes.have_manners())
        .then(|| (request.0.method().clone(), request.0.uri().clone()));
    let line = worker.access_log.then(|| access::Line::new(&connection, &request.0));
    let (response, permit, waited) = match serve(worker, &connection, request, &mut trace).await {
        Ok((Forwarded { response, waited }, permit)) => (response, permit, waited),
        Err(refused) => {
            if let (None, Some((method, uri))) = (trace.route, target)
                && let Ok(matched) = worker.routes.find(&method, uri.path())
            {
                trace.manner = matched.route.manner;
            }
            refuse(worker, &mut trace, refused)
        }
    };
    let mut response = response.map(|content| Reply::new(content, permit, Turn(connection)));
    let took = began.elapsed();
    if let Some(line) = line {
        line.write(&trace, response.status().as_u16(), took, waited);
    }
    std::mem::take(&mut trace.span).end(|| {
        let request_id = trace.request_id.as_ref().and_then(|id| id.to_str().ok());
        vec![
            ("http.route", trace.name(worker).to_owned()),
            ("http.response.status_code", response.status().as_u16().to_string()),
            ("tollgate.request_id", request_id.unwrap_or_default().to_owned()),
        ]
    });
    if let Some(id) = trace.request_id {
        response.headers_mut().insert(X_REQUEST_ID, id);
    }
    worker.meters.overhead(trace.route, took.saturating_sub(waited));
    response
}

fn refuse<B: Books + 'static>(
    worker: &Worker<B>,
    trace: &mut Trace,
    refused: Refused,
) -> (Response<Content<B>>, Option<Arc<Permit>>, Duration) {
    let id = trace.id(worker, worker.clock.now());
    let request_id = id.to_str().unwrap_or_default();
    let (response, body) = problem::respond(&refused, request_id, trace.manner);
    let code = refused.refusal.code;
    if code >= Code::BooksUnavailable
        && code != Code::Draining
        && let Some(untold) = access::may_tell()
    {
        let (code, route, detail) = (code.as_str(), trace.name(worker), &refused.refusal.detail);
        tracing::warn!(request_id, code, route, %detail, untold, "a request failed");
    }
    let meters = trace.meters.as_ref().unwrap_or(worker.meters.nobody());
    meters.refusal(code);
    if !refused.counted {
        let broken = code >= Code::UpstreamUnreachable;
        let outcome = if broken { Outcome::Error } else { Outcome::Refused };
        meters.request(trace.route, outcome, Some(response.status().as_u16()));
    }
    (response.map(|()| Content::Whole(Some(body))), None, refused.waited)
}

/// The largest header block, and the most that is buffered of a connection at once.
const MAX_HEADER_BLOCK: usize = 64 << 10;
/// How long a client is listened to that was told to stop, so that it gets to read why (RFC 9112,
/// 9.6), and how many bytes.
const FAREWELL: Duration = Duration::from_secs(5);
const MAX_FAREWELL: usize = 1 << 20;

/// Serves a connection until the client closes it, or the worker drains: then what is being
/// served is finished, and the connection is closed.
pub async fn serve_connection<B: Books + 'static>(
    current: Arc<Current<B>>,
    stream: TcpStream,
    peer: SocketAddr,
) {
    // A response is one write, and waiting for more would only add latency.
    let _ = stream.set_nodelay(true);
    let worker = current.load();
    let drain = worker.drain.clone();
    let connection = Arc::new(Connection::new(&worker, peer));
    worker.pulse.watch(&connection);
    // An idle connection does not keep an old configuration in memory.
    drop(worker);
    let (serving, own) = (Arc::clone(&current), Arc::clone(&connection));
    let service = service_fn(move |request: Request<Incoming>| {
        let (worker, connection) = (serving.load(), Arc::clone(&own));
        let facts = connection.request_began(!request.body().is_end_stream());
        let request = request.map(|body| ClientBody::new(body, &connection));
        async move { Ok::<_, Infallible>(answer(&worker, connection, (request, facts)).await) }
    });
    // More than hyper's 100 headers would cost an allocation a request.
    let mut served = http1::Builder::new()
        .header_read_timeout(None)
        .max_header_size(MAX_HEADER_BLOCK)
        .max_buf_size(MAX_HEADER_BLOCK)
        .serve_connection(TokioIo::new(Wire::new(stream, Arc::clone(&connection))), service);
    std::future::poll_fn(|context| {
        connection.pace.wakes(context.waker());
        Poll::Ready(())
    })
    .await;
    let ended = tokio::select! {
        biased;
        ended = &mut served => ended,
        () = drain.cancelled() => {
            std::pin::Pin::new(&mut served).graceful_shutdown();
            (&mut served).await
        }
    };
    let (stream, sends) = served.into_parts().io.into_inner().into_inner();
    let refused = ended.err().and_then(|error| unreadable(&connection, &error));
    if refused.is_some() || (sends && connection.unread.load(Relaxed)) {
        let answer = refused.map(|refused| alone(&current.load(), &refused));
        let _ = tokio::time::timeout(FAREWELL, part(stream, answer)).await;
    }
}

/// Why a head could not be read, where the client can be told: no answer is under way, and it is
/// no client that left or never said anything.
fn unreadable(connection: &Connection, error: &hyper::Error) -> Option<Refused> {
    if !connection.pace.is_between_requests() {
        return None;
    }
    let facts = Facts::from_bits(connection.facts.load(Relaxed));
    let refusal = if error.is_parse_too_large() && facts.has(Facts::BEYOND) {
        Refusal::new(Code::BodyTooLarge, "the header content-length is more than any route takes")
    } else if error.is_parse_too_large() {
        Refusal::new(Code::HeadersTooLarge, "a header block is at most 64 KiB and 100 headers")
    } else if error.is_parse() {
        Refusal::new(Code::BadRequest, format!("the request is not HTTP/1.1: {error}"))
    } else if connection.pace.late() == Some(Late::Header) {
        Refusal::new(Code::RequestTimeout, "the request's head did not come in time")
    } else {
        return None;
    };
    Some(refusal.into())
}

/// The answer to a client that hyper does not serve; counted like any other refusal.
fn alone<B: Books + 'static>(worker: &Worker<B>, refused: &Refused) -> Vec<u8> {
    let (now, meters) = (worker.clock.now(), worker.meters.nobody());
    let id = worker.ids.next(now);
    meters.refusal(refused.refusal.code);
    let status = problem::status(refused.refusal.code).as_u16();
    meters.request(None, Outcome::Refused, Some(status));
    problem::respond_alone(refused, id.text(&mut [0; 36]), now)
}

/// Sends a last answer, ends this side, and reads on for a while: a connection that is closed
/// with bytes unread is reset, and the client may never see what it was told.
async fn part(mut stream: TcpStream, answer: Option<Vec<u8>>) -> std::io::Result<()> {
    if let Some(answer) = answer {
        stream.write_all(&answer).await?;
    }
    stream.shutdown().await?;
    let mut rest = stream.take(MAX_FAREWELL as u64);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
    Ok(())
}

/// Turns a client away that is one too many. Never waits.
pub fn turn_away<B: Books + 'static>(worker: &Worker<B>, stream: TcpStream) {
    let detail = "the gateway has as many connections as it may have";
    let mut refused = Refused::from(Refusal::new(Code::TooManyInFlight, detail));
    refused.retry_after = Some(1);
    let answer = alone(worker, &refused);
    // The event loop knows nothing of the stream yet, and a fresh one takes this much at once.
    let Ok(mut stream) = stream.into_std() else { return };
    // What the client has sent already is read, so that the answer reaches it.
    let _ = stream.read(&mut [0; 4096]);
    let _ = stream.write(&answer);
}

#[cfg(test)]
mod tests;
