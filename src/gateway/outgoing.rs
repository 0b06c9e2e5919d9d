//! A request's body on its way to a backend, and what becomes of the rest of it when the backend
//! answers before it has read all (f64).

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;

use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::body::ClientBody;

/// The most that is read of a body that no backend takes any more, and for how long: then its
/// client's connection is closed. A client that reads its answer only after its last byte gets it
/// so, and one that never ends is not served for ever.
const MAX_DRAINED: u64 = 1 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// A request's body on its way to a backend.
#[derive(Debug)]
pub enum Outgoing {
    /// It was held to be priced, or there is none.
    Whole(Option<Bytes>),
    /// It passes through as it comes.
    Streamed(Streamed),
}

/// A body that passes through. Trailers are not passed on (f68).
#[derive(Debug)]
pub struct Streamed {
    /// `None` once it is being drained.
    body: Option<ClientBody>,
    upload: Upload,
    /// Reading has begun, or may begin without telling the client to continue.
    readable: bool,
    tasks: TaskTracker,
}

impl Outgoing {
    /// A body that passes through. `expects` says that its client waits for `100 Continue` before
    /// it sends any of it; what is left of it is drained in `tasks`.
    pub fn streamed(body: ClientBody, upload: Upload, expects: bool, tasks: &TaskTracker) -> Self {
        if body.is_end_stream() {
            return Self::Whole(None);
        }
        let tasks = tasks.clone();
        Self::Streamed(Streamed { body: Some(body), upload, readable: !expects, tasks })
    }
}

/// How far a body that passes through has come: what its answer lacks while it is not all there
/// may be the client's doing, and not the backend's.
#[derive(Clone, Debug, Default)]
pub struct Upload(Option<Arc<Progress>>);

#[derive(Debug, Default)]
struct Progress {
    /// One of the constants below.
    state: AtomicU8,
    pieces: AtomicU64,
    ended: OnceLock<Instant>,
}

const OPEN: u8 = 0;
const ENDED: u8 = 1;
const BROKE_OFF: u8 = 2;
const LATE: u8 = 3;

impl Upload {
    /// Of a body that may still be coming.
    pub fn of(body: &ClientBody) -> Self {
        Self((!body.is_end_stream()).then(Arc::default))
    }

    /// Whether the client broke it off, or did not go on with it.
    pub fn broke_off(&self) -> bool {
        self.is(BROKE_OFF) || self.is_late()
    }

    /// Whether the client took too long to go on with it.
    pub fn is_late(&self) -> bool {
        self.is(LATE)
    }

    /// Whether there may be more of it.
    pub fn is_open(&self) -> bool {
        self.is(OPEN)
    }

    /// How many pieces of it were passed on.
    pub fn pieces(&self) -> u64 {
        self.0.as_ref().map_or(0, |progress| progress.pieces.load(Relaxed))
    }

    /// When its last piece was passed on; `None` while it is open, and where it was there at once.
    pub fn ended(&self) -> Option<Instant> {
        self.0.as_ref().and_then(|progress| progress.ended.get().copied())
    }

    fn is(&self, state: u8) -> bool {
        self.0.as_ref().is_some_and(|progress| progress.state.load(Relaxed) == state)
    }

    fn moved(&self) {
        if let Some(progress) = &self.0 {
            progress.pieces.fetch_add(1, Relaxed);
        }
    }

    fn end(&self, state: u8) {
        if let Some(progress) = &self.0 {
            progress.state.store(state, Relaxed);
            let _ = progress.ended.set(Instant::now());
        }
    }
}

impl Streamed {
    fn poll_data(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        self.readable = true;
        // Its end forgets whose it was.
        let late = body.is_late();
        let frame = ready!(Pin::new(&mut *body).poll_frame(context));
        match frame {
            Some(Ok(frame)) if frame.is_data() => {
                self.upload.moved();
                if body.is_end_stream() {
                    self.upload.end(ENDED);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.upload.end(if late { LATE } else { BROKE_OFF });
                Poll::Ready(Some(Err(error)))
            }
            // Trailers, or the end.
            _ => {
                self.upload.end(ENDED);
                Poll::Ready(None)
            }
        }
    }
}

impl Drop for Streamed {
    /// The backend wants no more of it.
    fn drop(&mut self) {
        let Some(body) = self.body.take() else { return };
        let worthwhile = self.readable
            && self.upload.is_open()
            && body.size_hint().lower() <= MAX_DRAINED
            && tokio::runtime::Handle::try_current().is_ok();
        if worthwhile {
            self.tasks.spawn(async move {
                // Whether it ended or not: there is nobody to tell.
                let _ = timeout(DRAIN_TIME, drain(body)).await;
            });
        }
    }
}

async fn drain(mut body: ClientBody) {
    let mut drained = 0;
    while let Some(Ok(frame)) = body.frame().await {
        drained += frame.data_ref().map_or(0, |piece| piece.len() as u64);
        if drained > MAX_DRAINED {
            return;
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Streamed(streamed) => streamed.poll_data(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Streamed(streamed) => streamed.body.as_ref().is_none_or(Body::is_end_stream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Streamed(streamed) => {
                let hint = streamed.body.as_ref().map(Body::size_hint);
                hint.unwrap_or_else(|| SizeHint::with_exact(0))
            }
        }
    }
}
