//! A generative backend that makes nothing of value: what `tollgate sample-backend` runs, and what
//! the demo meters. It answers as image, chat, video and upload services do, fails where a request
//! asks it to ([`ask`]), and remembers what reached it ([`seen`]), so that an audit can compare.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use jobs::Jobs;
pub use report::{BadReport, Report};
use seen::Seen;

mod answer;
mod ask;
mod chat;
mod connection;
mod endpoint;
mod images;
mod jobs;
mod plan;
mod report;
mod respond;
mod script;
mod seen;
mod uploads;
mod videos;

/// The header that asks for a failure.
pub const FAIL: HeaderName = HeaderName::from_static("x-sample-fail");
/// The header that says what usage to tell.
pub const USAGE: HeaderName = HeaderName::from_static("x-sample-usage");
/// The header that says how many milliseconds to wait before each piece of a body.
pub const PACE: HeaderName = HeaderName::from_static("x-sample-pace");
/// The header that says how many tokens an answer of the chat is long.
pub const TOKENS: HeaderName = HeaderName::from_static("x-sample-tokens");
/// The header that says how a video job goes.
pub const JOB: HeaderName = HeaderName::from_static("x-sample-job");
/// The response header that tells the usage again, for routes that read it there.
pub const TOLD: HeaderName = HeaderName::from_static("x-usage");

const CHARGE: HeaderName = HeaderName::from_static("tollgate-charge");

/// Bounds: a sample must not be what fills a machine.
const MAX_CONNECTIONS: usize = 4096;

/// A bound sample backend, not yet serving.
#[derive(Debug)]
pub struct SampleBackend {
    listener: TcpListener,
    local: SocketAddr,
    report: Option<Report>,
}

/// What all its connections share.
#[derive(Debug)]
struct Sample {
    /// Locked for as long as one request is written down or looked up.
    seen: Arc<Mutex<Seen>>,
    /// Locked for as long as one job is made, looked at or ended.
    jobs: Mutex<Jobs>,
    report: Option<Report>,
    /// Connections, and jobs that end by themselves.
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl SampleBackend {
    /// Binds; the port may be 0.
    pub async fn bind(addr: SocketAddr) -> io::Result<SampleBackend> {
        let listener = TcpListener::bind(addr).await?;
        let local = listener.local_addr()?;
        Ok(SampleBackend { listener, local, report: None })
    }

    /// Reports there how each job ended.
    #[must_use]
    pub fn reporting(mut self, report: Option<Report>) -> SampleBackend {
        self.report = report;
        self
    }

    /// The address it is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Serves until `shutdown`, then lets answers that have begun finish for a moment.
    pub async fn run(self, shutdown: CancellationToken) {
        let sample = Arc::new(Sample {
            seen: Arc::default(),
            jobs: Mutex::new(Jobs::new()),
            report: self.report,
            tasks: TaskTracker::new(),
            stop: shutdown.clone(),
        });
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = accept(&self.listener, &room) => accepted,
            };
            let Some((stream, permit)) = accepted else { continue };
            let serving = connection::serve(stream, sample.clone());
            sample.tasks.spawn(async move {
                serving.await;
                drop(permit);
            });
        }
        drop(self.listener);
        sample.tasks.close();
        sample.tasks.wait().await;
    }
}

/// The next connection that there is room for; `None` where the system had none to give (out of
/// file descriptors, or a client that left before it was accepted).
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            tracing::warn!(%error, "accept");
            // Without a pause, a process out of file descriptors would spin here.
            tokio::time::sleep(Duration::from_millis(20)).await;
            None
        }
    }
}

#[cfg(test)]
mod tests;
