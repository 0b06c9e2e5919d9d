//! A response's body, and the connection it comes from.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::endpoint::Link;
use super::upstream::Upstream;

/// A connection that is in use; given back when its response was read to the end, closed when it
/// is dropped before that: what is under way on it is then nobody's, and the backend stops.
pub struct Lease {
    upstream: Arc<Upstream>,
    endpoint: usize,
    /// `None` once it was given back.
    pub(super) link: Option<Link>,
}

impl Lease {
    /// Of a connection to one of a backend's addresses.
    pub fn new(upstream: &Arc<Upstream>, endpoint: usize, link: Link) -> Self {
        upstream.endpoints[endpoint].in_flight.fetch_add(1, Relaxed);
        Self { upstream: Arc::clone(upstream), endpoint, link: Some(link) }
    }

    /// Puts the connection back for the next request.
    fn give_back(mut self) {
        if let Some(link) = self.link.take() {
            self.upstream.endpoints[self.endpoint].give_back(link);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.upstream.endpoints[self.endpoint].in_flight.fetch_sub(1, Relaxed);
        if let Some(link) = &self.link {
            link.close();
        }
    }
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum Break {
    /// The backend broke the connection, or what it sent is no body.
    #[error("the backend broke off its response")]
    Broken(#[from] hyper::Error),
    /// The next piece did not come in time, or the whole takes too long.
    #[error("the backend did not go on with its response in time")]
    Stalled,
}

/// A response's body. Trailers are kept for who asks for those that were declared; of themselves
/// they are not passed on, and decide nothing (f68).
pub struct Flow {
    body: Incoming,
    trailers: Option<HeaderMap>,
    /// `None` once the body came to its end.
    lease: Option<Lease>,
    patience: Patience,
}

/// How long the next piece is waited for. Nothing is set up before a piece has to be waited for:
/// most bodies come with their heads.
struct Patience {
    idle: Duration,
    whole: Duration,
    /// The wait under way, and the end of all waiting.
    timer: Option<(Pin<Box<Sleep>>, Instant)>,
    /// Something came since the timer was set.
    moved: bool,
}

impl Patience {
    /// Whether it is over. Polled while there is nothing to read.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some((timer, until)) = &mut self.timer {
            if std::mem::take(&mut self.moved) {
                timer.as_mut().reset((Instant::now() + self.idle).min(*until));
            }
            return timer.as_mut().poll(context);
        }
        let now = Instant::now();
        self.moved = false;
        let until = now + self.whole;
        let timer = Box::pin(tokio::time::sleep_until((now + self.idle).min(until)));
        let (timer, _) = self.timer.insert((timer, until));
        timer.as_mut().poll(context)
    }
}

impl Flow {
    /// A body that has just begun.
    pub fn new(body: Incoming, lease: Lease) -> Self {
        let (idle, whole) = (lease.upstream.idle_timeout, lease.upstream.body_timeout);
        let patience = Patience { idle, whole, timer: None, moved: false };
        let mut flow = Self { body, trailers: None, lease: Some(lease), patience };
        flow.release_at_end();
        flow
    }

    /// How long it says it is.
    pub fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    /// The trailers that came behind its end.
    pub fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    /// Whether it is known to be over.
    pub fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn release_at_end(&mut self) {
        if self.body.is_end_stream()
            && let Some(lease) = self.lease.take()
        {
            lease.give_back();
        }
    }

    /// The next piece; `None` at a clean end.
    pub fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Break>>> {
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
                ready!(self.patience.poll(context));
                self.lease = None;
                return Poll::Ready(Some(Err(Break::Stalled)));
            };
            match frame {
                Some(Ok(frame)) => {
                    self.patience.moved = true;
                    self.release_at_end();
                    match frame.into_data() {
                        Ok(data) => return Poll::Ready(Some(Ok(data))),
                        Err(other) => self.trailers = other.into_trailers().ok(),
                    }
                }
                Some(Err(error)) => {
                    self.lease = None;
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => {
                    if let Some(lease) = self.lease.take() {
                        lease.give_back();
                    }
                    return Poll::Ready(None);
                }
            }
        }
    }

    /// The next piece; `None` at a clean end.
    pub async fn next(&mut self) -> Option<Result<Bytes, Break>> {
        std::future::poll_fn(|context| self.poll_data(context)).await
    }
}

/// A body of which something was read before it was passed on.
pub struct Begun {
    prefix: VecDeque<Bytes>,
    flow: Flow,
}

impl Begun {
    /// After what was read of it.
    pub fn new(prefix: VecDeque<Bytes>, flow: Flow) -> Self {
        Self { prefix, flow }
    }

    /// How long it says it is.
    pub fn size_hint(&self) -> SizeHint {
        let rest = self.flow.size_hint().exact();
        rest.map_or_else(SizeHint::new, |rest| SizeHint::with_exact(rest + length_of(&self.prefix)))
    }

    /// Whether it is known to be over.
    pub fn is_end_stream(&self) -> bool {
        self.prefix.is_empty() && self.flow.is_end_stream()
    }

    /// The next piece; `None` at a clean end.
    pub fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Break>>> {
        match self.prefix.pop_front() {
            Some(piece) => Poll::Ready(Some(Ok(piece))),
            None => self.flow.poll_data(context),
        }
    }
}

/// How many bytes there are.
pub fn length_of(pieces: &VecDeque<Bytes>) -> u64 {
    pieces.iter().map(|piece| piece.len() as u64).sum()
}
