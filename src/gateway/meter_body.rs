//! Response bodies: chunks pass through untouched while their usage is looked for, and the end
//! reaches the client only after the capture is recorded (D30).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http_body::{Body, Frame, SizeHint};
use smallvec::SmallVec;
use tokio::time::timeout;

use super::admit::Permit;
use super::carry::Carried;
use super::flow::{Break, Flow};
use super::hold::Held;
use super::quote::{UsagePlace, quantity_of};
use super::route::Metered;
use super::settle::{self, Actual};
use super::worker::Turn;
use crate::books::Books;
use crate::config::OnDisconnect;
use crate::core::amount::parse_micro;
use crate::telemetry::Phase;

/// The most bytes of a response that are kept to find usage in; beyond them it is missing.
const MAX_KEPT: usize = 1 << 20;
/// The most bytes that are read of a response that nobody waits for.
const MAX_DRAINED: u64 = 64 << 20;

/// Why a body ends early: the client sees a broken response.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A response's body, and its place among the requests in flight.
pub struct Reply<B: Books + 'static> {
    content: Content<B>,
    _permit: Option<Arc<Permit>>,
    _turn: Turn,
}

/// What a response's body is made of.
pub enum Content<B: Books + 'static> {
    /// All of it is here, and settled.
    Whole(Option<Bytes>),
    /// Not metered, or voided.
    Passed(Flow),
    /// Settled when it ends.
    Metered(Box<MeteredBody<B>>),
    /// The backend broke off after this.
    Broken(Option<Bytes>),
}

impl<B: Books + 'static> Reply<B> {
    /// A body that holds its request's place until it was sent, and its connection's turn.
    pub fn new(content: Content<B>, permit: Option<Arc<Permit>>, turn: Turn) -> Self {
        Self { content, _permit: permit, _turn: turn }
    }
}

impl<B: Books + 'static> Body for Reply<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let data = match &mut self.content {
            Content::Whole(bytes) => return Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Content::Passed(flow) => {
                let data = std::task::ready!(flow.poll_data(context));
                data.map(|data| data.map_err(BodyError::from))
            }
            Content::Metered(body) => std::task::ready!(body.poll_data(context)),
            Content::Broken(rest) => match rest.take() {
                Some(bytes) if !bytes.is_empty() => {
                    *rest = Some(Bytes::new());
                    Some(Ok(bytes))
                }
                Some(_) => {
                    // hyper sends what it has while a body is pending; an error at once would
                    // take back the head and what came with it.
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                None => Some(Err("the backend broke off".into())),
            },
        };
        Poll::Ready(data.map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Content::Passed(flow) => flow.is_end_stream(),
            Content::Metered(body) => matches!(body.state, State::Done),
            Content::Broken(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::Passed(flow) => flow.size_hint(),
            Content::Metered(body) => {
                body.remaining.map_or_else(SizeHint::new, SizeHint::with_exact)
            }
            Content::Broken(_) => SizeHint::new(),
        }
    }
}

/// What a response has told of its usage so far.
#[derive(Debug, Default)]
pub struct Reading {
    /// By meter, from headers.
    told: SmallVec<[Option<u64>; 2]>,
    /// The body, where its usage is told there.
    kept: Vec<u8>,
    /// The body is read for usage, and is not too long for it.
    keeps: bool,
}

impl Reading {
    /// Begins with the response's head.
    pub fn new(metered: &Metered, headers: &HeaderMap) -> Self {
        if !metered.pricing.has_usage() {
            return Self::default();
        }
        let told = metered.pricing.meters.iter().map(|meter| match &meter.usage {
            Some(UsagePlace::Header(name)) => {
                // Of several the first valid one counts (f15).
                let mut texts =
                    headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
                texts.find_map(|text| parse_micro(text.trim()).ok())
            }
            _ => None,
        });
        // Encoded although nobody asked for it: it is not inspected, so nothing it could unpack to
        // fills the memory (f74).
        let encoded = || headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
        let keeps = !metered.pricing.response.is_empty() && !encoded();
        Self { told: told.collect(), kept: Vec::new(), keeps }
    }

    /// Reads one more piece of the body.
    pub fn feed(&mut self, piece: &[u8]) {
        if !self.keeps {
            return;
        }
        if self.kept.len() + piece.len() > MAX_KEPT {
            (self.keeps, self.kept) = (false, Vec::new());
        } else {
            self.kept.extend_from_slice(piece);
        }
    }

    /// What was really used, as told by what was read.
    pub fn actual(&self, metered: &Metered, quoted: &[u64]) -> Actual {
        if !metered.pricing.has_usage() {
            return Actual::Quoted;
        }
        self.reported(metered, quoted).map_or(Actual::Missing, Actual::Reported)
    }

    /// The same of a body that is not complete: only a report counts.
    fn reported(&self, metered: &Metered, quoted: &[u64]) -> Option<SmallVec<[u64; 2]>> {
        let picker = &metered.pricing.response;
        let picked = if self.keeps { picker.pick(&self.kept).ok()? } else { SmallVec::new() };
        let meters = metered.pricing.meters.iter().zip(&self.told).zip(quoted);
        meters
            .map(|((meter, told), quoted)| match &meter.usage {
                None => Some(*quoted),
                Some(UsagePlace::Header(_)) => *told,
                Some(UsagePlace::Json(at)) => {
                    picked.get(*at).copied().flatten().and_then(quantity_of)
                }
            })
            .collect()
    }
}

/// How a body that is metered came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All of it arrived.
    Complete,
    /// The backend broke off (f11).
    Truncated,
    /// Nobody reads on: the client left, and the rest is cancelled or beyond its bound (D33).
    Abandoned {
        /// Whether the client got some of it.
        delivered: bool,
    },
}

/// Settles a charge by how its response ended (D30, D32, D33).
///
/// # Errors
/// `books_unavailable` when the end could not be recorded.
pub async fn settle<B: Books + 'static>(
    held: &mut Held<B>,
    reading: &Reading,
    end: End,
    status: u16,
) -> Result<settle::Settled, super::Refused> {
    let Some(metered) = held.route.metered.as_ref() else {
        return settle::void(held, Some(status)).await;
    };
    let quoted = &held.quoted.quantities;
    let actual = match end {
        End::Complete => Some(reading.actual(metered, quoted)),
        _ if !metered.pricing.has_usage() && end != (End::Abandoned { delivered: true }) => None,
        End::Truncated => reading.reported(metered, quoted).map(Actual::Reported),
        End::Abandoned { delivered } => {
            let reported = metered.pricing.has_usage().then(|| reading.reported(metered, quoted));
            reported.flatten().map(Actual::Reported).or(delivered.then_some(Actual::Missing))
        }
    };
    match actual {
        Some(actual) => settle::capture(held, &actual, Some(status)).await,
        None => settle::void(held, Some(status)).await,
    }
}

type Settling = Carried<Result<(), super::Refused>>;

enum State<B: Books + 'static> {
    /// Pieces pass through.
    Streaming(Box<Open<B>>),
    /// All pieces but the last have passed; the last waits for the capture.
    Settling(Settling, Option<Bytes>),
    Done,
}

/// A response that is being sent before its charge is settled.
struct Open<B: Books + 'static> {
    held: Box<Held<B>>,
    reading: Reading,
    flow: Flow,
    /// What was read before the head was sent.
    prefix: std::collections::VecDeque<Bytes>,
    status: u16,
    delivered: bool,
    began: Instant,
}

/// A body that settles its charge before it ends, and whoever drops it.
pub struct MeteredBody<B: Books + 'static> {
    state: State<B>,
    /// What is still to be sent, where the response says how long it is.
    remaining: Option<u64>,
}

impl<B: Books + 'static> MeteredBody<B> {
    /// A body that has just begun, after `prefix`.
    pub fn new(
        held: Box<Held<B>>,
        reading: Reading,
        flow: Flow,
        prefix: Vec<Bytes>,
        status: u16,
    ) -> Self {
        let ahead: u64 = prefix.iter().map(|piece| piece.len() as u64).sum();
        let remaining = flow.size_hint().exact().map(|rest| rest + ahead);
        let prefix = prefix.into();
        let began = Instant::now();
        let open = Open { held, reading, flow, prefix, status, delivered: false, began };
        Self { state: State::Streaming(Box::new(open)), remaining }
    }

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            match &mut self.state {
                State::Done => return Poll::Ready(None),
                State::Settling(settling, last) => {
                    let settled = std::task::ready!(Pin::new(settling).poll(context));
                    let last = last.take();
                    self.state = State::Done;
                    if settled.is_err() {
                        return Poll::Ready(Some(Err("the charge could not be recorded".into())));
                    }
                    if last.is_some() {
                        self.remaining = self.remaining.map(|_| 0);
                    }
                    return Poll::Ready(last.map(Ok));
                }
                State::Streaming(open) => {
                    let piece = match open.prefix.pop_front() {
                        // It was fed when it was read.
                        Some(piece) => Some(Ok(piece)),
                        None => {
                            let piece = std::task::ready!(open.flow.poll_data(context));
                            if let Some(Ok(piece)) = &piece {
                                open.reading.feed(piece);
                            }
                            piece
                        }
                    };
                    match piece {
                        Some(Ok(piece)) => {
                            let rest =
                                self.remaining.map(|rest| rest.saturating_sub(piece.len() as u64));
                            if rest == Some(0) {
                                self.settle(End::Complete, Some(piece));
                                continue;
                            }
                            self.remaining = rest;
                            open.delivered = true;
                            return Poll::Ready(Some(Ok(piece)));
                        }
                        None => self.settle(End::Complete, None),
                        Some(Err(error)) => {
                            let end = truncated(&open.held, &error, open.delivered);
                            self.settle(end, None);
                            // Settled by a task of its own; the client is only told that the
                            // response is broken.
                            self.state = State::Done;
                            return Poll::Ready(Some(Err(error.into())));
                        }
                    }
                }
            }
        }
    }

    fn settle(&mut self, end: End, last: Option<Bytes>) {
        let State::Streaming(open) = std::mem::replace(&mut self.state, State::Done) else {
            return;
        };
        let Open { mut held, reading, status, began, .. } = *open;
        held.worker.meters.upstream(held.route.upstream, Phase::Body, began.elapsed());
        let tasks = held.worker.tasks.clone();
        let work = async move { settle(&mut held, &reading, end, status).await.map(drop) };
        self.state = State::Settling(Carried::new(&tasks, work), last);
    }
}

impl<B: Books + 'static> Drop for MeteredBody<B> {
    /// The client left: what remains belongs to a task (D33, f08).
    fn drop(&mut self) {
        let State::Streaming(open) = std::mem::replace(&mut self.state, State::Done) else {
            return;
        };
        let tasks = open.held.worker.tasks.clone();
        if tokio::runtime::Handle::try_current().is_ok() {
            tasks.spawn(leave(open));
        }
    }
}

/// The end of a response that broke off. Where the client broke off its request first, or keeps
/// the backend waiting for the rest of it, the backend could not finish: that is a client that
/// left, or else whoever never ends an upload would have its answer for nothing.
fn truncated<B: Books + 'static>(held: &Held<B>, error: &Break, delivered: bool) -> End {
    let waits = matches!(error, Break::Stalled) && held.upload.is_open();
    if waits || held.upload.broke_off() { End::Abandoned { delivered } } else { End::Truncated }
}

async fn leave<B: Books + 'static>(open: Box<Open<B>>) {
    let Open { mut held, mut reading, mut flow, delivered, status, .. } = *open;
    let finishes =
        held.metered().is_some_and(|metered| metered.on_disconnect == OnDisconnect::Finish);
    let mut end = End::Abandoned { delivered };
    if finishes {
        let bound: Duration = held.worker.upstreams[held.route.upstream].response_timeout;
        let drained = timeout(bound, drain(&mut flow, &mut reading)).await;
        end = match drained {
            Ok(Ok(true)) => End::Complete,
            Ok(Err(error @ Break::Broken(_))) => truncated(&held, &error, delivered),
            _ => end,
        };
    }
    // The connection is closed before the books are asked, so that a backend whose work nobody
    // wants stops.
    drop(flow);
    // What could not be recorded was logged where it failed.
    let _ = settle(&mut held, &reading, end, status).await;
}

/// Reads what is left of a response; false where that is too much.
async fn drain(flow: &mut Flow, reading: &mut Reading) -> Result<bool, Break> {
    let mut bytes = 0;
    while let Some(piece) = flow.next().await {
        let piece = piece?;
        bytes += piece.len() as u64;
        reading.feed(&piece);
        if bytes > MAX_DRAINED {
            return Ok(false);
        }
    }
    Ok(true)
}
