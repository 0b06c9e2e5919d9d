//! Response bodies: chunks pass through untouched while their usage is looked for, and the end
//! reaches the client only after the capture is recorded (D30).

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::time::timeout;

use super::admit::Permit;
use super::carry::Carried;
use super::flow::{Begun, Break, Flow, length_of};
use super::hold::Held;
use super::settle::{self, Actual};
use super::usage::{Names, Reading};
use super::worker::Turn;
use crate::books::Books;
use crate::config::OnDisconnect;
use crate::telemetry::Phase;

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
    let actual = match end {
        End::Complete => Some(reading.actual(quoted)),
        _ if !has_usage && end != (End::Abandoned { delivered: true }) => None,
        End::Truncated => reading.reported(quoted).map(Actual::Reported),
        End::Abandoned { delivered } => {
            let reported = reading.reported(quoted).map(Actual::Reported);
            reported.or(delivered.then_some(Actual::Missing))
        }
    };
    let told = (reading.is_conflicting(), reading.is_unreadable());
    held.worker.meters.usage(held.route.index, told.0, told.1);
    match actual {
        Some(actual) => settle::capture(held, &actual, Some(status)).await,
        None => settle::void(held, Some(status)).await,
    }
}

type Settling = Carried<Result<(), super::Refused>>;

enum State<B: Books + 'static> {
    /// Pieces pass through.
    Streaming(Box<Open<B>>),
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
    began: Instant,
}

/// What is sent when the charge is captured.
struct Rest {
    pieces: VecDeque<Bytes>,
    /// What the backend sends after that. It changes nothing any more.
    flow: Option<Flow>,
    trailers: Option<HeaderMap>,
    passing: Names,
}

impl Rest {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if let Some(flow) = &mut self.flow {
            match std::task::ready!(flow.poll_data(context)) {
                Some(Ok(piece)) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => self.trailers = passed(flow.take_trailers(), &self.passing),
            }
            self.flow = None;
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_over(&self) -> bool {
        let flows = self.flow.as_ref().is_some_and(|flow| !flow.is_end_stream());
        self.pieces.is_empty() && !flows && self.trailers.is_none()
    }
}

/// The trailers that were declared; nothing else trails (f68).
pub fn passed(trailers: Option<HeaderMap>, names: &Names) -> Option<HeaderMap> {
    let trailers = trailers.filter(|_| !names.is_empty())?;
    let mut passed = HeaderMap::new();
    for name in names {
        for value in trailers.get_all(name) {
            passed.append(name, value.clone());
        }
    }
    (!passed.is_empty()).then_some(passed)
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
        let remaining = flow.size_hint().exact().map(|rest| rest + ahead);
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
                    let State::Settling(_, rest) = std::mem::replace(&mut self.state, State::Done)
                    else {
                        continue;
                    };
                    if settled.is_err() {
                        return Poll::Ready(Some(Err("the charge could not be recorded".into())));
                    }
                    self.state = State::Settled(rest);
                }
                State::Streaming(open) => {
                    if let Some(piece) = open.prefix.pop_front() {
                        let is_last = self.remaining == Some(piece.len() as u64);
                        if !is_last {
                            open.delivered = true;
                            return Poll::Ready(Some(Ok(Frame::data(piece))));
                        }
                        open.waiting.push_back(piece);
                        self.settle(End::Complete, false);
                        continue;
                    }
                    if open.is_complete() {
                        self.settle(End::Complete, true);
                        continue;
                    }
                    match std::task::ready!(open.flow.poll_data(context)) {
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
                            open.delivered = true;
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
        let Open { mut held, mut reading, mut flow, waiting, trailers, status, began, .. } = *open;
        let passing = trailers;
        held.worker.meters.upstream(held.route.upstream, Phase::Body, began.elapsed());
        let trailers = if goes_on { None } else { flow.take_trailers() };
        if let Some(trailers) = &trailers {
            reading.trailers(trailers);
        }
        let trailers = passed(trailers, &passing);
        let flow = goes_on.then_some(flow);
        let tasks = held.worker.tasks.clone();
        let work = async move { settle(&mut held, &mut reading, end, status).await.map(drop) };
        let rest = Rest { pieces: waiting, flow, trailers, passing };
        self.state = State::Settling(Carried::new(&tasks, work), Box::new(rest));
    }
}

impl<B: Books + 'static> Open<B> {
    /// Whether the body said that it is done, and all is told, or enough follows that it may not
    /// be waited for any longer.
    fn is_complete(&self) -> bool {
        let size = || self.waiting.iter().map(Bytes::len).sum::<usize>();
        self.reading.is_done() && (self.reading.is_final() || size() > MAX_WAITING)
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
    let is_complete = open.is_complete();
    let Open { mut held, mut reading, mut flow, delivered, status, .. } = *open;
    let finishes =
        held.metered().is_some_and(|metered| metered.on_disconnect == OnDisconnect::Finish);
    let mut end = End::Abandoned { delivered };
    if is_complete {
        end = End::Complete;
    } else if finishes {
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
    let _ = settle(&mut held, &mut reading, end, status).await;
}

/// Reads what is left of a response, up to where it says that it is done; false where that is too
/// much.
async fn drain(flow: &mut Flow, reading: &mut Reading) -> Result<bool, Break> {
    let mut bytes = 0;
    while let Some(piece) = flow.next().await {
        let piece = piece?;
        bytes += piece.len() as u64;
        reading.feed(&piece);
        if reading.is_done() && reading.is_final() {
            return Ok(true);
        }
        if bytes > MAX_DRAINED {
            return Ok(false);
        }
    }
    if let Some(trailers) = flow.take_trailers() {
        reading.trailers(&trailers);
    }
    Ok(true)
}
