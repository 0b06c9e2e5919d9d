//! Response bodies: chunks pass through untouched while their usage is looked for, and the end
//! reaches the client only after the capture is recorded (D30).

mod leave;
mod rest;
mod sliced;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio_util::task::TaskTracker;

use super::admit::Permit;
use super::carry::Carried;
use super::flow::{Begun, Flow, length_of};
use super::hold::Held;
use super::route::Metered;
use super::settle::{self, Actual};
use super::slices::Next;
use super::usage::{Names, Reading};
use super::worker::Turn;
use crate::books::Books;
use crate::telemetry::Phase;
use leave::{leave, truncated};
use rest::Rest;
pub use rest::{missing_end, passed};

/// The most bytes that are read of a response that nobody waits for.
const MAX_DRAINED: u64 = 64 << 20;
/// The most bytes behind `[DONE]` that are kept back for a trailer which tells usage.
const MAX_WAITING: usize = 64 << 10;

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
    /// The same, with trailers behind it.
    Trailed(Option<Bytes>, Option<HeaderMap>),
    /// Not metered, or voided.
    Passed(Flow),
    /// Settled when it ends.
    Metered(Box<MeteredBody<B>>),
    /// The backend broke off after this.
    Broken(Option<Bytes>),
    /// It has begun, and is neither metered nor to be settled.
    Begun(Box<Begun>),
}

impl<B: Books + 'static> Content<B> {
    /// A body of which this was read and nothing waits.
    pub fn begun(read: Read, flow: Flow) -> Self {
        Self::Begun(Box::new(Begun::new(read.prefix, flow)))
    }
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
            Content::Trailed(bytes, trailers) => {
                let data = bytes.take().filter(|bytes| !bytes.is_empty()).map(Frame::data);
                let frame = data.or_else(|| trailers.take().map(Frame::trailers));
                return Poll::Ready(frame.map(Ok));
            }
            Content::Passed(flow) => {
                let data = std::task::ready!(flow.poll_data(context));
                data.map(|data| data.map_err(BodyError::from))
            }
            Content::Metered(body) => return body.poll_frame(context),
            Content::Begun(begun) => {
                let data = std::task::ready!(begun.poll_data(context));
                data.map(|data| data.map_err(BodyError::from))
            }
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
            Content::Trailed(bytes, trailers) => bytes.is_none() && trailers.is_none(),
            Content::Passed(flow) => flow.is_end_stream(),
            Content::Metered(body) => matches!(body.state, State::Done),
            Content::Begun(begun) => begun.is_end_stream(),
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
            Content::Begun(begun) => begun.size_hint(),
            // Nothing trails behind a length that was told.
            Content::Trailed(..) | Content::Broken(_) => SizeHint::new(),
        }
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
    /// Nothing could pay its next slice (f82).
    Stopped,
}

/// Settles a charge by how its response ended (D30, D32, D33).
///
/// # Errors
/// `books_unavailable` when the end could not be recorded.
pub async fn settle<B: Books + 'static>(
    held: &mut Held<B>,
    reading: &mut Reading,
    end: End,
    status: u16,
) -> Result<settle::Settled, super::Refused> {
    let Some(metered) = held.route.metered.as_ref() else {
        return settle::void(held, Some(status)).await;
    };
    let quoted = &held.quoted.quantities;
    let has_usage = metered.pricing.usage.has_usage();
    reading.end(end == End::Complete);
    let so_far = || match reading.so_far(quoted) {
        (quantities, true) => Actual::Reported(quantities),
        (quantities, false) => Actual::Counted(quantities),
    };
    let actual = match end {
        End::Complete => Some(reading.actual(quoted)),
        End::Stopped => Some(so_far()),
        _ if !has_usage && end != (End::Abandoned { delivered: true }) => None,
        End::Truncated => reading.reported(quoted).map(Actual::Reported),
        End::Abandoned { delivered } => {
            let reported = reading.reported(quoted).map(Actual::Reported);
            let sliced = || if held.slices.is_some() { so_far() } else { Actual::Missing };
            reported.or_else(|| delivered.then(sliced))
        }
    };
    let told = (reading.is_conflicting(), reading.is_unreadable());
    held.worker.meters.usage(held.route.index, told.0, told.1);
    match actual {
        Some(actual) => settle::capture(held, &actual, Some(status)).await,
        None => settle::void(held, Some(status)).await,
    }
}

/// What was asked for when a body is to end: what is set behind it when the charge is settled.
type Settling = Carried<Result<Bytes, super::Refused>>;

/// The next slice of a stream's hold, and the stream that waits for it.
type ToppingUp<B> =
    Pin<Box<dyn Future<Output = (Box<Open<B>>, Result<(), super::Refused>)> + Send>>;

enum State<B: Books + 'static> {
    /// Pieces pass through.
    Streaming(Box<Open<B>>),
    /// An event waits until it is held for.
    ToppingUp(ToppingUp<B>, TaskTracker),
    /// What tells a client that its answer is complete waits for the capture.
    Settling(Settling, Box<Rest>),
    /// The charge is captured, and the rest passes.
    Settled(Box<Rest>),
    Done,
}

/// A response that is being sent before its charge is settled.
struct Open<B: Books + 'static> {
    held: Box<Held<B>>,
    reading: Reading,
    flow: Flow,
    /// What was read before the head was sent.
    prefix: VecDeque<Bytes>,
    /// What was read from where the body says that it is done.
    waiting: VecDeque<Bytes>,
    /// The trailers that are passed on.
    trailers: Names,
    status: u16,
    delivered: bool,
    /// What is missing behind it before an event may be set there.
    gap: &'static [u8],
    began: Instant,
}

/// A body that settles its charge before it ends, and whoever drops it.
pub struct MeteredBody<B: Books + 'static> {
    state: State<B>,
    /// What is still to be sent, where the response says how long it is.
    remaining: Option<u64>,
}

/// What was read of a body before its head was sent, and fed to its reading.
#[derive(Debug, Default)]
pub struct Read {
    /// What may pass.
    pub prefix: VecDeque<Bytes>,
    /// What waits, from where the body says that it is done.
    pub waiting: VecDeque<Bytes>,
}

impl Read {
    /// How much there is of it.
    pub fn len(&self) -> u64 {
        length_of(&self.prefix) + length_of(&self.waiting)
    }

    /// Adds a piece of which so much may pass.
    pub fn push(&mut self, mut piece: Bytes, passes: usize) {
        let waits = piece.split_off(passes.min(piece.len()));
        if !piece.is_empty() {
            self.prefix.push_back(piece);
        }
        if !waits.is_empty() {
            self.waiting.push_back(waits);
        }
    }
}

impl<B: Books + 'static> MeteredBody<B> {
    /// A body that has just begun, after what was read of it. `trailers` are passed on.
    pub fn new(
        held: Box<Held<B>>,
        reading: Reading,
        flow: Flow,
        read: Read,
        trailers: Names,
        status: u16,
    ) -> Self {
        let ahead = read.len();
        let Read { prefix, waiting } = read;
        let length = flow.size_hint().exact().filter(|_| !grows(&held, &reading));
        let remaining = length.map(|rest| rest + ahead);
        let began = Instant::now();
        let open = Open {
            held,
            reading,
            flow,
            prefix,
            waiting,
            trailers,
            status,
            delivered: false,
            gap: b"",
            began,
        };
        Self { state: State::Streaming(Box::new(open)), remaining }
    }

    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(self.poll_any(context));
        if let (Some(rest), Some(Ok(frame))) = (&mut self.remaining, &frame) {
            *rest = rest.saturating_sub(frame.data_ref().map_or(0, |piece| piece.len() as u64));
        }
        let is_over = match &self.state {
            State::Settled(rest) => rest.is_over(),
            _ => false,
        };
        if is_over || !matches!(frame, Some(Ok(_))) {
            self.state = State::Done;
        }
        Poll::Ready(frame)
    }

    fn poll_any(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            match &mut self.state {
                State::Done => return Poll::Ready(None),
                State::Settled(rest) => return rest.poll(context),
                State::Settling(settling, _) => {
                    let settled = std::task::ready!(Pin::new(settling).poll(context));
                    let State::Settling(_, mut rest) =
                        std::mem::replace(&mut self.state, State::Done)
                    else {
                        continue;
                    };
                    match settled {
                        Ok(last) => rest.last = last,
                        Err(refused) => {
                            let why = refused.refusal.code.title();
                            return Poll::Ready(Some(Err(why.into())));
                        }
                    }
                    self.state = State::Settled(rest);
                }
                State::ToppingUp(topping_up, _) => {
                    let (open, held) = std::task::ready!(topping_up.as_mut().poll(context));
                    match held {
                        Ok(()) => self.state = State::Streaming(open),
                        Err(refused) => self.stop(*open, refused),
                    }
                }
                State::Streaming(open) => {
                    if let Some(piece) = open.prefix.pop_front() {
                        let is_last = self.remaining == Some(piece.len() as u64);
                        if !is_last {
                            open.delivers(&piece);
                            return Poll::Ready(Some(Ok(Frame::data(piece))));
                        }
                        open.waiting.push_back(piece);
                        self.settle(End::Complete, false);
                        continue;
                    }
                    match open.next() {
                        Next::Pass => continue,
                        Next::TopUp => {
                            self.top_up();
                            continue;
                        }
                        Next::Read => {}
                    }
                    if open.is_complete() {
                        self.settle(End::Complete, true);
                        continue;
                    }
                    match std::task::ready!(open.flow.poll_data(context)) {
                        Some(Ok(piece)) if open.held.slices.is_some() => open.push(piece),
                        Some(Ok(mut piece)) => {
                            let waits = piece.split_off(open.reading.feed(&piece));
                            if !waits.is_empty() {
                                open.waiting.push_back(waits);
                            }
                            if piece.is_empty() {
                                continue;
                            }
                            if self.remaining == Some(piece.len() as u64) {
                                open.waiting.push_back(piece);
                                self.settle(End::Complete, false);
                                continue;
                            }
                            open.delivers(&piece);
                            return Poll::Ready(Some(Ok(Frame::data(piece))));
                        }
                        None => {
                            self.settle(End::Complete, false);
                        }
                        Some(Err(error)) => {
                            let end = truncated(&open.held, &error, open.delivered);
                            self.settle(end, false);
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

    /// Begins to settle. What waits passes after that, and what the backend still sends, if it
    /// `goes_on`.
    fn settle(&mut self, end: End, goes_on: bool) {
        let State::Streaming(open) = std::mem::replace(&mut self.state, State::Done) else {
            return;
        };
        let Open { mut held, mut reading, mut flow, mut waiting, trailers, .. } = *open;
        let Open { status, began, gap, .. } = *open;
        let passing = trailers;
        held.worker.meters.upstream(held.route.upstream, Phase::Body, began.elapsed());
        let trailers = if goes_on { None } else { flow.take_trailers() };
        if let Some(trailers) = &trailers {
            reading.trailers(trailers);
        }
        let trailers = passed(trailers, &passing);
        let flow = goes_on.then_some(flow);
        let tasks = held.worker.tasks.clone();
        waiting.extend(held.slices.as_mut().and_then(|slices| slices.rest()));
        let tells = end == End::Complete && tells(&held, &reading);
        let work = async move {
            let settled = settle(&mut held, &mut reading, end, status).await?;
            Ok(if tells { settled.event(&held).into() } else { Bytes::new() })
        };
        let rest = Rest { pieces: waiting, flow, last: Bytes::new(), gap, trailers, passing };
        self.state = State::Settling(Carried::new(&tasks, work), Box::new(rest));
    }
}

/// Whether events may be set behind those of a stream.
pub fn grows<B: Books + 'static>(held: &Held<B>, reading: &Reading) -> bool {
    held.metered().is_some_and(Metered::appends) && reading.is_open_stream()
}

/// Whether the receipt is the last of them.
pub fn tells<B: Books + 'static>(held: &Held<B>, reading: &Reading) -> bool {
    held.metered().is_some_and(|metered| metered.sse_receipt) && reading.is_open_stream()
}

impl<B: Books + 'static> Open<B> {
    /// Whether the body said that it is done, and all is told, or enough follows that it may not
    /// be waited for any longer.
    fn is_complete(&self) -> bool {
        let size = || self.waiting.iter().map(Bytes::len).sum::<usize>();
        self.reading.is_done() && (self.reading.is_final() || size() > MAX_WAITING)
    }

    /// A piece is given to the client.
    fn delivers(&mut self, piece: &[u8]) {
        self.delivered = true;
        self.gap = missing_end(piece);
    }
}

impl<B: Books + 'static> Drop for MeteredBody<B> {
    /// The client left: what remains belongs to a task (D33, f08).
    fn drop(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Done);
        if tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        match state {
            State::Streaming(open) => {
                let tasks = open.held.worker.tasks.clone();
                tasks.spawn(leave(open));
            }
            State::ToppingUp(topping_up, tasks) => {
                tasks.spawn(async move {
                    let (open, topped_up) = topping_up.await;
                    match topped_up {
                        Ok(()) => leave(open).await,
                        Err(refused) => sliced::stop(*open, &refused).await,
                    }
                });
            }
            _ => {}
        }
    }
}
