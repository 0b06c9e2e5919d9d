//! The data plane. A request goes one way, each stage takes one type and returns the next or a
//! refusal, and every refusal leaves by one door, [`problem`]:
//!
//! `bytes → identify → Caller → admit → Permit → route + quote → Quoted → hold → Held → forward →
//! MeteredBody → settle`

pub mod admit;
mod carry;
mod dress;
mod endpoint;
mod flow;
mod forward;
pub mod health;
mod hold;
mod identify;
mod meter_body;
mod outgoing;
mod pick;
pub mod problem;
mod quote;
mod reserved;
pub mod route;
mod settle;
pub mod upstream;
pub mod worker;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{EXPECT, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use crate::books::Books;
use crate::core::refusal::{Code, Refusal};
use crate::telemetry::{OrgMeters, Outcome};
use admit::Permit;
use dress::{Dressing, X_REQUEST_ID};
use forward::Forwarded;
use meter_body::{Content, Reply};
use outgoing::{Outgoing, Upload};
pub use problem::Refused;
use quote::Asked;
pub use worker::{ChargeIds, Charges, Connection, FoundCharge, Worker};

/// The pipeline.
async fn serve<B: Books + 'static>(
    worker: &Arc<Worker<B>>,
    connection: &Connection,
    request: Request<Incoming>,
    trace: &mut Trace,
) -> Result<(Forwarded<B>, Option<Permit>), Refused> {
    let (mut parts, body) = request.into_parts();
    trace.request_id = dress::own_request_id(&parts.headers);
    screen(&parts)?;
    let now = worker.clock.now();
    if let Some(path) = parts.uri.path().strip_prefix(reserved::PREFIX) {
        return reserved::answer(worker, connection, &parts, path, now, trace).await;
    }
    let shown = identify::authenticate(worker, connection, &parts.headers, now)?;
    trace.meters = Some(Arc::clone(shown.meters()));
    let caller = shown.identify()?;
    let permit = Some(worker.limits.admit(&caller)?);
    dress::strip(&mut parts.headers);
    let matched = worker.routes.find(&parts.method, parts.uri.path())?;
    let route = Arc::clone(&matched.route);
    trace.route = Some(route.index);
    let upstream = &worker.upstreams[route.upstream];
    let Some(metered) = &route.metered else {
        let request_id = trace.id(worker, now);
        let dressing = Dressing { caller: &caller, connection, charge: None, request_id };
        let upload = Upload::of(&body);
        let expects = parts.headers.contains_key(EXPECT);
        let body = Outgoing::streamed(body, upload.clone(), expects, &worker.tasks);
        let request = dress::dress(parts, body, &route, upstream, dressing);
        let sent = forward::free(worker, &caller, upstream, &route, request, &upload);
        return Ok((sent.await?, permit));
    };
    trace.exhausted_status = metered.exhausted_status;
    let upload = Upload::of(&body);
    let (body, priced) = if metered.pricing.reads_body() {
        let bytes = forward::read_body(&parts.headers, body, metered.max_body).await?;
        (Outgoing::Whole(Some(bytes.clone())), bytes)
    } else {
        let expects = parts.headers.contains_key(EXPECT);
        (Outgoing::streamed(body, upload.clone(), expects, &worker.tasks), Bytes::new())
    };
    let asked = Asked {
        headers: &parts.headers,
        query: parts.uri.query(),
        params: &matched.params,
        body: &priced,
    };
    let card = caller.org.card(caller.payer().access().ok(), now).ok_or_else(no_card)?;
    let quoted = metered.pricing.quote(metered.feature.as_str(), card, &asked)?;
    drop(matched);
    let route = Arc::clone(&route);
    let request_id = trace.request_id.as_ref();
    let mut held = hold::hold(worker, caller, route, quoted, now, request_id).await?;
    held.upload = upload;
    let charge = id_header(held.charge);
    let request_id = trace.request_id.get_or_insert_with(|| charge.clone()).clone();
    let charge = Some(charge);
    let dressing = Dressing { caller: &held.caller, connection, charge, request_id };
    let request = dress::dress(parts, body, &held.route, upstream, dressing);
    Ok((forward::metered(held, request).await?, permit))
}

/// What is known of a request so far, for whatever its response will be.
#[derive(Default)]
struct Trace {
    meters: Option<Arc<OrgMeters>>,
    route: Option<usize>,
    request_id: Option<HeaderValue>,
    exhausted_status: Option<u16>,
}

impl Trace {
    /// The request's id; made where the caller sent none.
    fn id<B>(&mut self, worker: &Worker<B>, now: jiff::Timestamp) -> HeaderValue {
        self.request_id.get_or_insert_with(|| id_header(worker.ids.next(now))).clone()
    }
}

fn id_header(id: crate::core::ids::ChargeId) -> HeaderValue {
    // Hexadecimal digits and hyphens.
    HeaderValue::from_str(id.text(&mut [0; 36])).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Refuses what no stage should see.
fn screen(parts: &Parts) -> Result<(), Refused> {
    // The connection's buffer bounds what it waits for, not what came in one piece.
    let block = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    if block.sum::<usize>() > MAX_HEADER_BLOCK {
        let detail = "a request's header block is at most 64 KiB";
        return Err(Refusal::new(Code::HeadersTooLarge, detail).into());
    }
    if parts.method == Method::CONNECT {
        return Err(Refusal::new(Code::NotImplemented, "the gateway opens no tunnels").into());
    }
    route::check_path(parts.uri.path())?;
    if parts.headers.contains_key(UPGRADE) {
        return Err(Refusal::new(Code::NotImplemented, "the gateway upgrades to nothing").into());
    }
    Ok(())
}

fn no_card() -> Refused {
    Refusal::new(Code::Unpriced, "no rate card of the org is in force").into()
}

/// Answers one request, whatever becomes of it.
async fn answer<B: Books + 'static>(
    worker: &Arc<Worker<B>>,
    connection: &Connection,
    request: Request<Incoming>,
) -> Response<Reply<B>> {
    let began = Instant::now();
    let mut trace = Trace::default();
    let (mut response, waited) = match serve(worker, connection, request, &mut trace).await {
        Ok((Forwarded { response, waited }, permit)) => {
            (response.map(|content| Reply::new(content, permit)), waited)
        }
        Err(refused) => refuse(worker, &mut trace, &refused),
    };
    if let Some(id) = trace.request_id {
        response.headers_mut().insert(X_REQUEST_ID, id);
    }
    worker.meters.overhead(trace.route, began.elapsed().saturating_sub(waited));
    response
}

fn refuse<B: Books + 'static>(
    worker: &Worker<B>,
    trace: &mut Trace,
    refused: &Refused,
) -> (Response<Reply<B>>, Duration) {
    let id = trace.id(worker, worker.clock.now());
    let request_id = id.to_str().unwrap_or_default();
    let (response, body) = problem::respond(refused, request_id, trace.exhausted_status);
    let code = refused.refusal.code;
    let meters = trace.meters.as_ref().unwrap_or(worker.meters.nobody());
    meters.refusal(code);
    if !refused.counted {
        let broken = code >= Code::UpstreamUnreachable;
        let outcome = if broken { Outcome::Error } else { Outcome::Refused };
        meters.request(trace.route, outcome, Some(response.status().as_u16()));
    }
    let response = response.map(|()| Reply::new(Content::Whole(Some(body)), None));
    (response, refused.waited)
}

/// How long a request's header block may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// The most headers of a request.
const MAX_HEADERS: usize = 128;
/// The largest header block, and the most that is buffered of a connection at once.
const MAX_HEADER_BLOCK: usize = 64 << 10;

/// Serves a connection until the client closes it, or the worker drains: then what is being
/// served is finished, and the connection is closed.
pub async fn serve_connection<B: Books + 'static>(
    worker: Arc<Worker<B>>,
    stream: TcpStream,
    peer: SocketAddr,
) {
    // A response is one write, and waiting for more would only add latency.
    let _ = stream.set_nodelay(true);
    let connection = Arc::new(Connection::new(&worker, peer));
    let drain = worker.drain.clone();
    let service = service_fn(move |request| {
        let worker = Arc::clone(&worker);
        let connection = Arc::clone(&connection);
        async move { Ok::<_, Infallible>(answer(&worker, &connection, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BLOCK)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    // Errors are the client's: it left, or did not speak HTTP. Both were answered or counted.
    tokio::select! {
        biased;
        _ = served.as_mut() => {}
        () = drain.cancelled() => {
            served.as_mut().graceful_shutdown();
            let _ = served.await;
        }
    }
}

#[cfg(test)]
mod tests;
