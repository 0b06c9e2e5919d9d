//! A response body that plays its pieces, at once or one by one, to its end or to a break.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep};

/// What is left of a body to play.
#[derive(Debug)]
pub(super) struct Script {
    pieces: VecDeque<Bytes>,
    /// The wait before the next piece, and how long each is.
    pace: Option<(Pin<Box<Sleep>>, Duration)>,
    end: End,
}

/// What follows the last piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Clean,
    /// An error, after hyper had one chance to write what it has: it drops what it still buffers.
    BreakAfterFlush,
    Break,
}

impl Script {
    /// All pieces, then the end.
    pub(super) fn plain(pieces: Vec<Bytes>) -> Script {
        Script { pieces: pieces.into(), pace: None, end: End::Clean }
    }

    /// All pieces, each after a wait; a body of one piece is halved, so that it has a middle.
    pub(super) fn paced(pieces: Vec<Bytes>, pace: Duration) -> Script {
        let sleep = Box::pin(tokio::time::sleep(pace));
        Script { pieces: halved(pieces).into(), pace: Some((sleep, pace)), end: End::Clean }
    }

    /// The first half, then an error, on which hyper closes the connection. Usage is told in the
    /// second half.
    pub(super) fn broken(pieces: Vec<Bytes>) -> Script {
        let mut pieces = halved(pieces);
        pieces.truncate(pieces.len() / 2);
        Script { pieces: pieces.into(), pace: None, end: End::BreakAfterFlush }
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.pieces.is_empty() {
            return match self.end {
                End::Clean => Poll::Ready(None),
                End::BreakAfterFlush => {
                    self.end = End::Break;
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
                End::Break => Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into()))),
            };
        }
        if let Some((sleep, pace)) = &mut self.pace {
            ready!(sleep.as_mut().poll(context));
            let next = Instant::now() + *pace;
            sleep.as_mut().reset(next);
        }
        Poll::Ready(self.pieces.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.end == End::Clean
    }
}

fn halved(mut pieces: Vec<Bytes>) -> Vec<Bytes> {
    if let [only] = pieces.as_mut_slice() {
        let rest = only.split_off(only.len() / 2);
        pieces.push(rest);
    }
    pieces
}
