//! A response body that plays its pieces, at once or one by one, to its end, to a break or to a
//! silence.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::answer::Content;
use super::connection::Reset;
use super::seen::Seen;

/// What is left of a body to play.
pub(super) struct Script {
    next: Option<Bytes>,
    rest: Box<dyn Iterator<Item = Bytes> + Send>,
    /// The wait before the next piece, and how long each is.
    pace: Option<(Pin<Box<Sleep>>, Duration)>,
    end: End,
    waiting: Waiting,
}

/// What follows the last piece.
enum End {
    Clean,
    /// Nothing, until shutdown.
    Silence(Pin<Box<WaitForCancellationFutureOwned>>),
    /// An error, after hyper had one chance to write what it has: it drops what it still buffers.
    BreakAfterFlush(Option<Reset>),
    Break,
}

/// A client that waits for an answer. Dropped, it has left.
#[derive(Default)]
pub(super) struct Waiting(Option<Arc<Mutex<Seen>>>);

impl Waiting {
    pub(super) fn new(seen: &Arc<Mutex<Seen>>) -> Waiting {
        Waiting(Some(seen.clone()))
    }

    /// It got what there was for it.
    pub(super) fn is_served(&mut self) {
        self.0 = None;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(seen) = self.0.take() {
            seen.lock().abandoned += 1;
        }
    }
}

impl Script {
    /// All pieces, then the end; each after a wait, if there is a pace.
    pub(super) fn whole(content: Content, pace: Option<Duration>, waiting: Waiting) -> Script {
        match content {
            Content::Json(json) if pace.is_none() => {
                Script::new(1, Box::new(std::iter::once(json)), pace, End::Clean, waiting)
            }
            content => {
                let (count, pieces) = pieces(content);
                Script::new(count, pieces, pace, End::Clean, waiting)
            }
        }
    }

    /// The first half, then an error, on which hyper closes the connection or, asked so, it is
    /// reset. Usage is told in the second half.
    pub(super) fn broken(
        content: Content,
        pace: Option<Duration>,
        reset: Option<Reset>,
        waiting: Waiting,
    ) -> Script {
        let (count, pieces) = pieces(content);
        Script::new(count / 2, pieces, pace, End::BreakAfterFlush(reset), waiting)
    }

    /// The first half, then nothing until shutdown.
    pub(super) fn silent(
        content: Content,
        pace: Option<Duration>,
        stop: CancellationToken,
        waiting: Waiting,
    ) -> Script {
        let (count, pieces) = pieces(content);
        let end = End::Silence(Box::pin(stop.cancelled_owned()));
        Script::new(count / 2, pieces, pace, end, waiting)
    }

    fn new(
        count: usize,
        pieces: Box<dyn Iterator<Item = Bytes> + Send>,
        pace: Option<Duration>,
        end: End,
        waiting: Waiting,
    ) -> Script {
        let mut rest = Box::new(pieces.take(count));
        let pace = pace.map(|pace| (Box::pin(tokio::time::sleep(pace)), pace));
        Script { next: rest.next(), rest, pace, end, waiting }
    }

    fn end(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut self.end {
            End::Clean => {
                self.waiting.is_served();
                return Poll::Ready(None);
            }
            End::Silence(stop) => ready!(stop.as_mut().poll(context)),
            End::BreakAfterFlush(reset) => {
                if let Some(reset) = reset {
                    reset.store(true, Ordering::Relaxed);
                }
                self.end = End::Break;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            End::Break => {}
        }
        self.waiting.is_served();
        Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())))
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.next.is_none() {
            return self.end(context);
        }
        if let Some((sleep, pace)) = &mut self.pace {
            ready!(sleep.as_mut().poll(context));
            let next = Instant::now() + *pace;
            sleep.as_mut().reset(next);
        }
        let piece = self.next.take();
        self.next = self.rest.next();
        if self.is_end_stream() {
            // Where the length was told, nobody asks for what follows the last piece.
            self.waiting.is_served();
        }
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_none() && matches!(self.end, End::Clean)
    }
}

/// A body's pieces, and how many; a document is halved, so that it has a middle.
fn pieces(content: Content) -> (usize, Box<dyn Iterator<Item = Bytes> + Send>) {
    match content {
        Content::Json(mut json) => {
            let rest = json.split_off(json.len() / 2);
            (2, Box::new([json, rest].into_iter()))
        }
        Content::Events(count, events) => (count, events),
    }
}
