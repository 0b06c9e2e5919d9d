//! The control listeners, of administrators and operators: few connections, on the event loop
//! that does everything but generation traffic. Whoever is slow, or says nothing, is not waited
//! for, and there is a bound on how many may be (f72).

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How many connections one of these listeners has at a time.
const MAX_CONNECTIONS: usize = 256;
/// How long it rests when no connection can be accepted.
const REST: Duration = Duration::from_secs(1);

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For a head, from the connection's beginning or the answer before it.
    pub header: Duration,
    /// To take the next bytes of its answer.
    pub write: Duration,
}

/// Serves a listener until the end; connections are tasks of `tasks`. One that is too many is
/// closed at once: to make it wait would only move the crowd to where nobody sees it.
pub async fn control<S, B>(
    listener: TcpListener,
    service: S,
    deadlines: Deadlines,
    tasks: TaskTracker,
    end: CancellationToken,
) where
    S: Clone + Send + 'static,
    TowerToHyperService<S>:
        Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(deadlines.header);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = end.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                tracing::warn!(%error, "a control listener can accept no connection");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        // An answer is one write, and waiting for more would only add latency.
        let _ = stream.set_nodelay(true);
        let stream = Patient { stream, patience: deadlines.write, wait: None };
        let service = TowerToHyperService::new(service.clone());
        let served = http.serve_connection(TokioIo::new(stream), service);
        let end = end.clone();
        tasks.spawn(async move {
            let mut served = std::pin::pin!(served);
            let ended = tokio::select! {
                ended = served.as_mut() => ended,
                () = end.cancelled() => {
                    served.as_mut().graceful_shutdown();
                    served.await
                }
            };
            // A client that left, or was left, is no news.
            drop((ended, place));
        });
    }
}

/// A connection whose client may not keep its answer waiting for ever.
struct Patient {
    stream: TcpStream,
    patience: Duration,
    /// Since the client takes nothing.
    wait: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(context, bytes) {
            self.wait = None;
            return Poll::Ready(written);
        }
        let patience = self.patience;
        let wait = self.wait.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(wait.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
