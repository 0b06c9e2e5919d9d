//! One address of a backend, as one worker reaches it: its idle connections, the last used on
//! top, and how a new one is made.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use http::header::HeaderValue;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::outgoing::Outgoing;

/// How many idle connections a worker keeps to one address.
const MAX_IDLE: usize = 512;
/// How many times a connection is asked for within its time: a listener whose queue is full drops
/// what asks, and the system asks again only after a second.
const ATTEMPTS: u32 = 4;
/// How often that is done over again while the address answers others: it is busy, not down.
const ROUNDS: usize = 10;

/// A connection to a backend, and the task that drives it.
pub struct Link {
    /// Takes requests.
    pub sender: SendRequest<Outgoing>,
    driver: AbortHandle,
}

impl Link {
    /// Closes the connection at once, also where it is being written to.
    pub fn close(&self) {
        self.driver.abort();
    }
}

/// An address.
pub struct Endpoint {
    /// `host` or `host:port`, as requests name it.
    pub authority: HeaderValue,
    /// How many requests of this worker are under way.
    pub in_flight: AtomicUsize,
    /// How many requests of this worker were answered.
    pub answered: AtomicUsize,
    /// `host:port`.
    address: Arc<str>,
    connect_timeout: Duration,
    /// Connections without a request. Only this worker's tasks take the lock, so it is never
    /// waited for.
    idle: Mutex<Vec<Link>>,
    /// How many wait for a connection, and would take one that is given back.
    waiting: AtomicUsize,
    given_back: Notify,
}

impl Endpoint {
    /// An address from its URL; `None` where that is more than scheme, host and port.
    pub fn new(url: &str, connect_timeout: Duration) -> Option<Self> {
        let uri: http::Uri = url.parse().ok()?;
        let authority = uri.authority()?;
        let plain = uri.scheme() == Some(&http::uri::Scheme::HTTP)
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none()
            && !authority.as_str().contains('@');
        if !plain {
            return None;
        }
        let port = authority.port_u16().unwrap_or(80);
        Some(Self {
            authority: HeaderValue::from_str(authority.as_str()).ok()?,
            in_flight: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            address: format!("{}:{port}", authority.host()).into(),
            connect_timeout,
            idle: Mutex::default(),
            waiting: AtomicUsize::new(0),
            given_back: Notify::new(),
        })
    }

    /// The connection used last that can take a request at once.
    pub fn take(&self) -> Option<Link> {
        let mut idle = self.idle.lock();
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            if idle[at].sender.is_closed() {
                idle.remove(at);
            } else if idle[at].sender.is_ready() {
                return Some(idle.remove(at));
            }
        }
        None
    }

    /// Puts a connection back for the next request. One that is still writing its request, or
    /// whose state is not known to be clean, is closed instead (f64).
    pub fn give_back(&self, link: Link) {
        if link.sender.is_closed() {
            return;
        }
        if !link.sender.is_ready() {
            link.close();
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(link);
            if self.waiting.load(Relaxed) > 0 {
                self.given_back.notify_one();
            }
        }
    }

    /// How many connections wait for a request.
    pub fn idle(&self) -> usize {
        self.idle.lock().iter().filter(|link| !link.sender.is_closed()).count()
    }

    /// A new connection, or one that another request gives back meanwhile: a backend that accepts
    /// slowly, or few connections, is not down. The flag says that it was used before. `None` when
    /// there is neither within the connect timeout, or within [`ROUNDS`] of them where other
    /// requests are answered meanwhile.
    pub async fn connect(&self, drivers: &TaskTracker) -> Option<(Link, bool)> {
        let _waiting = Waiting::new(&self.waiting);
        let handed_over = async {
            loop {
                self.given_back.notified().await;
                if let Some(link) = self.take() {
                    return link;
                }
            }
        };
        tokio::select! {
            biased;
            link = handed_over => Some((link, true)),
            link = self.dial(drivers) => Some((link?, false)),
        }
    }

    async fn dial(&self, drivers: &TaskTracker) -> Option<Link> {
        for _ in 0..ROUNDS {
            let answered = self.answered.load(Relaxed);
            if let Some(result) = self.reach().await {
                return self.shake_hands(result.ok()?, drivers).await;
            }
            if self.answered.load(Relaxed) == answered {
                return None;
            }
        }
        None
    }

    /// A connection, or why there is none; `None` when neither was told in time.
    async fn reach(&self) -> Option<io::Result<TcpStream>> {
        let mut attempts = JoinSet::new();
        for _ in 0..ATTEMPTS {
            let address = Arc::clone(&self.address);
            attempts.spawn(async move { TcpStream::connect(&*address).await });
            // What was asked for before goes on beside it.
            if let Ok(first) = timeout(self.connect_timeout / ATTEMPTS, attempts.join_next()).await
            {
                return first?.ok();
            }
        }
        None
    }

    async fn shake_hands(&self, stream: TcpStream, drivers: &TaskTracker) -> Option<Link> {
        // A head and a small body are one write; waiting for more would only add latency.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        let driving = drivers.spawn(async move {
            // An error here is told to whoever waits for the response.
            let _ = connection.await;
        });
        Some(Link { sender, driver: driving.abort_handle() })
    }
}

/// One more who waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f80_an_endpoint_is_a_plain_authority() {
        let endpoint = |url| Endpoint::new(url, Duration::from_secs(1));
        for url in ["http://127.0.0.1:9100", "http://backend", "http://[::1]:80/"] {
            assert!(endpoint(url).is_some(), "{url}");
        }
        for url in ["https://a", "a:80", "http://a/b", "http://u:p@a", "http://a?x", "/", ""] {
            assert!(endpoint(url).is_none(), "{url}");
        }
        assert_eq!(&*endpoint("http://backend").unwrap().address, "backend:80");
    }
}
