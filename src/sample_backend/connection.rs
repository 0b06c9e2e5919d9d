//! One client's connection, to its end or to the one that a request asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::TcpStream;

use super::{Sample, respond};

const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long connections may take to finish their answers at shutdown.
const GRACE: Duration = Duration::from_secs(2);

/// Whether a connection is to be reset and not closed: set by the request that asks for it.
pub(super) type Reset = Arc<AtomicBool>;

/// Serves a connection until its client or the backend leaves.
pub(super) async fn serve(stream: TcpStream, sample: Arc<Sample>) {
    // An answer in two writes would wait for the client's delayed acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "nodelay");
    }
    let (reset, shutdown) = (Reset::default(), sample.stop.clone());
    let asked = reset.clone();
    let service = service_fn(move |request| {
        Box::pin(respond::handle(request, sample.clone(), asked.clone()))
    });
    let mut connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let ended = tokio::select! {
        // Not shut down by hyper: a connection whose end was told cannot be reset any more.
        ended = std::future::poll_fn(|context| connection.poll_without_shutdown(context)) => ended,
        () = shutdown.cancelled() => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            let rest = std::future::poll_fn(|context| connection.poll_without_shutdown(context));
            tokio::time::timeout(GRACE, rest).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection");
    }
    if reset.load(Ordering::Relaxed) {
        // Closed without lingering, it is reset.
        let stream = connection.into_parts().io.into_inner();
        if let Err(error) = SockRef::from(&stream).set_linger(Some(Duration::ZERO)) {
            tracing::debug!(%error, "linger");
        }
    }
}
