//! Forwarding: a request goes to its backend, and its charge is settled by what comes back.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue, TRAILER};
use http::{Request, Response, response};
use tokio::time::timeout_at;
use tokio_util::task::TaskTracker;

use super::Refused;
use super::answers::Draft;
use super::body;
use super::carry::Carried;
use super::dress::undress;
use super::flow::{Break, Flow};
use super::hold::{Held, Stage};
use super::identify::Caller;
use super::jobs;
use super::meter_body::{self, Content, End, MeteredBody, Read, settle as settle_by};
use super::outgoing::{Outgoing, Upload};
use super::route::Route;
use super::settle::{self, Actual, Settled};
use super::upstream::{Failure, Upstream};
use super::usage::{Names, Reading};
use super::worker::Worker;
use crate::books::{Books, InDoubt};
use crate::config::OnDisconnect;
use crate::core::charge::State;
use crate::core::refusal::{Code, Refusal};
use crate::telemetry::{Outcome, Phase};

/// The largest response that is read whole before its head is sent, so that its receipt can say
/// `captured`.
pub(super) const SMALL: u64 = 64 << 10;
/// How often the connection's task is let run to bring the next piece of a response that does
/// not say how long it is.
const PATIENCE: usize = 3;

/// A response on its way to the client.
pub struct Forwarded<B: Books + 'static> {
    /// Its head and body.
    pub response: Response<Content<B>>,
    /// How long the backend was waited for.
    pub waited: Duration,
}

/// Forwards a request of a free route.
///
/// # Errors
/// 502 and 504 when the backend does not answer, also not how the job stands that the request does
/// something to; `books_unavailable` when the end of a job cannot be recorded, or it cannot be known
/// which job the request does something to; `too_many_in_flight` when that can be followed no more.
pub async fn free<B: Books + 'static>(
    worker: &Arc<Worker<B>>,
    caller: &Caller,
    upstream: &Arc<Upstream>,
    route: &Route,
    mut request: Request<Outgoing>,
    upload: &Upload,
) -> Result<Forwarded<B>, Refused> {
    if let Some(unknown) = jobs::unknown(worker, caller, (route, upstream), &request) {
        // On the heap: its future would lie in every request's.
        Box::pin(jobs::take_up(worker, caller, unknown)).await?;
    }
    let polled = jobs::polled(worker, caller, upstream, &mut request);
    if polled.is_none()
        && let Some(touched) = jobs::touched(worker, upstream, &request)
    {
        // On the heap: its future would lie in every request's.
        Box::pin(jobs::ask_ahead(worker, touched)).await?;
    }
    let sent = Instant::now();
    let answer = upstream.send(request, upload, || true).await;
    let waited = sent.elapsed();
    worker.meters.upstream(upstream.index, Phase::Headers, waited);
    let (response, lease) =
        answer.map_err(|failure| Refused { waited, ..no_answer(failure, upload, false) })?;
    let (mut head, body) = response.into_parts();
    undress(&mut head);
    caller.meters.request(Some(route.index), Outcome::Free, Some(head.status.as_u16()));
    let flow = Flow::new(body, lease);
    if let Some(polled) = polled {
        let response = Box::pin(polled.pass(worker, upstream, head, flow)).await?;
        return Ok(Forwarded { response, waited });
    }
    let response = Response::from_parts(head, Content::Passed(flow));
    Ok(Forwarded { response, waited })
}

/// Forwards a request that is paid for, and settles its charge by what comes back.
///
/// # Errors
/// 502 and 504 when the backend does not answer; `books_unavailable` when the hold may not be there
/// any more, and when the end of the charge cannot be recorded, because then nobody may have the
/// answer (D30).
pub async fn metered<B: Books + 'static>(
    mut held: Box<Held<B>>,
    request: Request<Outgoing>,
) -> Result<Forwarded<B>, Refused> {
    // Its drop voids it.
    if !may_forward(&held) {
        return Err(failed(Failure::Withheld, false));
    }
    if cancelled_by_leaving(&held).is_some() {
        held.stage = Stage::Cancellable;
        return exchange(held, request).await;
    }
    held.stage = Stage::Forwarded;
    let tasks = held.worker.tasks.clone();
    Carried::new(&tasks, exchange(held, request)).await
}

/// A gateway that was paused is not sure of its holds any more (D36).
fn may_forward<B: Books + 'static>(held: &Held<B>) -> bool {
    held.told.is_some_and(|told| held.worker.books.may_forward(held.charge, told))
}

async fn exchange<B: Books + 'static>(
    mut held: Box<Held<B>>,
    mut request: Request<Outgoing>,
) -> Result<Forwarded<B>, Refused> {
    let upstream = Arc::clone(&held.worker.upstreams[held.route.upstream]);
    let span = held.spans.child("upstream");
    span.propagate(request.headers_mut());
    let sent = Instant::now();
    let answer = upstream.send(request, &held.upload, || may_forward(&held)).await;
    span.end(Vec::new);
    let waited = sent.elapsed();
    held.worker.meters.upstream(upstream.index, Phase::Headers, waited);
    let (response, lease) = match answer {
        Ok(answer) => answer,
        Err(failure) => return Err(Refused { waited, ..unanswered(held, failure).await }),
    };
    let (mut head, body) = response.into_parts();
    // Where a defect would be: the only way to show what one does to a charge (f83). A release has
    // no such line.
    debug_assert!(!head.headers.contains_key("x-planted-panic"), "planted by a test");
    let declared = held.metered().map(|metered| metered.pricing.usage.declared(&head.headers));
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
    if held.metered().is_some_and(|metered| metered.job.is_some()) {
        // On the heap: its future would lie in every request's.
        return Box::pin(jobs::submitted(held, head, flow, waited)).await;
    }
    deliver(held, head, flow, declared.unwrap_or_default(), waited).await
}

async fn deliver<B: Books + 'static>(
    mut held: Box<Held<B>>,
    mut head: response::Parts,
    mut flow: Flow,
    declared: Names,
    waited: Duration,
) -> Result<Forwarded<B>, Refused> {
    let status = head.status.as_u16();
    let mut reading = match held.metered() {
        Some(metered) => Reading::new(&metered.pricing.usage, &head.headers, declared.clone()),
        None => Reading::default(),
    };
    begin(&mut held, &mut head, &mut reading);
    let tells = meter_body::tells(&held, &reading);
    let passing = if held.takes_trailers { declared } else { Names::new() };
    for name in &passing {
        head.headers.append(TRAILER, HeaderValue::from(name.clone()));
    }
    let began = Instant::now();
    let until = began + held.worker.upstreams[held.route.upstream].response_timeout;
    let gathered = match flow.size_hint().exact() {
        // What comes at once may still be more than is held.
        _ if held.slices.is_some() => Gathered::Open(Read::default()),
        Some(length) if length > SMALL => Gathered::Open(Read::default()),
        Some(_) => gather(&mut flow, &mut reading, (usize::MAX, SMALL), until).await,
        None => gather(&mut flow, &mut reading, (PATIENCE, SMALL), until).await,
    };
    let took = began.elapsed();
    let waited = waited + took;
    let mut stalled = false;
    let (end, mut bytes) = match gathered {
        Gathered::Whole(bytes) => (End::Complete, bytes),
        Gathered::Broken(bytes, cause) => {
            stalled = matches!(cause, Break::Stalled);
            (End::Truncated, bytes)
        }
        Gathered::Open(read) => {
            let cost = held.quoted.quote.price.cost.micro();
            tell(&mut head, held.fields(State::Held, cost, &held.legs));
            // From here on its body knows what a client that leaves has got.
            held.stage = Stage::Forwarded;
            let body = MeteredBody::new(held, reading, flow, read, passing, status);
            let content = Content::Metered(Box::new(body));
            return Ok(Forwarded { response: Response::from_parts(head, content), waited });
        }
    };
    held.worker.meters.upstream(held.route.upstream, Phase::Body, took);
    let trailers = flow.take_trailers();
    if let Some(trailers) = &trailers {
        reading.trailers(trailers);
    }
    let trailers = meter_body::passed(trailers, &passing);
    let tells = tells && end == End::Complete && !bytes.is_empty();
    if tells {
        bytes = [&*bytes, meter_body::missing_end(&bytes)].concat().into();
    }
    if held.once.is_some() && end == End::Complete && trailers.is_none() {
        let mut draft = Draft::new(&head, &bytes);
        draft.tells = tells;
        held.draft = Some(Box::new(draft));
    }
    let settled = match cancelled_by_leaving(&held) {
        None => settle_by(&mut held, &mut reading, end, status).await,
        Some(tasks) => {
            let settling = async move {
                let settled = settle_by(&mut held, &mut reading, end, status).await;
                (held, settled)
            };
            let settled;
            (held, settled) = Carried::new(&tasks, settling).await;
            settled
        }
    }?;
    if end == End::Truncated && settled.state == State::Voided {
        return Err(broke_off(stalled));
    }
    receipt(&mut head, &held, &settled);
    if tells {
        bytes = [bytes, settled.event(&held).into()].concat().into();
    }
    let content = match end {
        End::Complete if trailers.is_some() => Content::Trailed(Some(bytes), trailers),
        End::Complete => Content::Whole(Some(bytes)),
        _ => Content::Broken(Some(bytes)),
    };
    Ok(Forwarded { response: Response::from_parts(head, content), waited })
}

/// Prepares for what may be set behind the events of a stream: its length is not known any more.
/// What is no stream is settled as on any other route.
fn begin<B: Books + 'static>(
    held: &mut Held<B>,
    head: &mut response::Parts,
    reading: &mut Reading,
) {
    match &mut held.slices {
        Some(slices) if reading.is_stream() => slices.begin(reading),
        slices => *slices = None,
    }
    if meter_body::grows(held, reading) {
        head.headers.remove(CONTENT_LENGTH);
    }
}

/// What was read of a response before its head was sent.
pub(super) enum Gathered {
    /// All of it.
    Whole(Bytes),
    /// All there will be.
    Broken(Bytes, Break),
    /// What was there at once, or fitted.
    Open(Read),
}

/// Reads a body up to so many bytes, for as long as there is something to read: `patience`
/// counts how often the connection's task may be waited for. A backend that hangs is waited for
/// `until` then, so that no hold stays open for it when its client has left (D33).
pub(super) async fn gather(
    flow: &mut Flow,
    reading: &mut Reading,
    (patience, most): (usize, u64),
    until: Instant,
) -> Gathered {
    let mut pieces: Vec<Bytes> = Vec::new();
    // How much of them may pass before the charge is settled.
    let (mut size, mut passes) = (0, 0);
    let mut waits = 0;
    loop {
        let polled = if patience == usize::MAX {
            match timeout_at(until.into(), flow.next()).await {
                Ok(piece) => Poll::Ready(piece),
                Err(_) => return Gathered::Open(split(pieces, passes)),
            }
        } else {
            std::future::poll_fn(|context| Poll::Ready(flow.poll_data(context))).await
        };
        match polled {
            Poll::Pending if waits == patience => return Gathered::Open(split(pieces, passes)),
            Poll::Pending => {
                waits += 1;
                tokio::task::yield_now().await;
            }
            Poll::Ready(None) => return Gathered::Whole(join(pieces, size)),
            Poll::Ready(Some(Err(cause))) => return Gathered::Broken(join(pieces, size), cause),
            Poll::Ready(Some(Ok(piece))) => {
                passes += reading.feed(&piece);
                size += piece.len();
                pieces.push(piece);
                if flow.is_end_stream() {
                    return Gathered::Whole(join(pieces, size));
                }
                if size as u64 > most {
                    return Gathered::Open(split(pieces, passes));
                }
            }
        }
    }
}

/// Divides what was read into what may pass, and what waits.
fn split(pieces: Vec<Bytes>, mut passes: usize) -> Read {
    let mut read = Read::default();
    for piece in pieces {
        let part = passes.min(piece.len());
        passes -= part;
        read.push(piece, part);
    }
    read
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

/// Settles a charge whose request got no answer (D32, f10).
async fn unanswered<B: Books + 'static>(mut held: Box<Held<B>>, failure: Failure) -> Refused {
    let captures = failure == Failure::Timeout
        && held.metered().is_some_and(|metered| metered.on_timeout == InDoubt::Capture);
    let refused = no_answer(failure, &held.upload, true);
    let status = Some(super::problem::status(refused.refusal.code).as_u16());
    let settled = if captures {
        // Carried, because a capture that has begun is not cancelled by leaving.
        let tasks = held.worker.tasks.clone();
        let work = async move { settle::capture(&mut held, &Actual::Missing, status).await };
        Carried::new(&tasks, work).await
    } else {
        settle::void(&mut held, status).await
    };
    match settled {
        Ok(_) => refused,
        Err(unrecorded) => unrecorded,
    }
}

/// Why there is no answer. A backend that failed for want of the rest of a body did not fail.
fn no_answer(failure: Failure, upload: &Upload, counted: bool) -> Refused {
    if failure == Failure::Broken && upload.is_late() {
        return Refused { counted, ..body::too_late() };
    }
    failed(failure, counted)
}

/// The refusal where an answer is not whole and its charge is voided.
pub(super) fn broke_off(stalled: bool) -> Refused {
    let (failure, how) =
        if stalled { (Failure::Timeout, "stalled") } else { (Failure::Broken, "broke off") };
    let mut refused = failed(failure, true);
    refused.refusal.detail =
        format!("the backend {how} in its response; nothing was charged").into();
    refused
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
        Failure::Withheld => Refusal::new(
            Code::BooksUnavailable,
            "this gateway was not heard of by the books for a while; nothing was sent",
        ),
    };
    Refused { counted, ..refusal.into() }
}

pub(super) fn receipt<B: Books + 'static>(
    head: &mut response::Parts,
    held: &Held<B>,
    settled: &Settled,
) {
    tell(head, held.fields(settled.state, settled.cost, &settled.legs));
}

/// Sets these fields, whatever the backend said there.
fn tell(head: &mut response::Parts, fields: impl Iterator<Item = (HeaderName, HeaderValue)>) {
    for (name, value) in fields {
        head.headers.insert(name, value);
    }
}
