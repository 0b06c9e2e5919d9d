//! A worker: what one event loop needs to serve requests, and a connection it serves.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use http::header::HeaderValue;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admit::Limits;
use super::answers::Answers;
use super::head::Facts;
use super::identify::Known;
use super::jobs::{Jobs, Reporter};
use super::pace::{Pace, Pulse};
use super::route::Routes;
use super::span::Tracer;
use super::upstream::Upstream;
use crate::books::{Books, BooksError};
use crate::clock::Clock;
use crate::config::Network;
use crate::core::charge::ChargeDocument;
use crate::core::ids::ChargeId;
use crate::directory::snapshot::Live;
use crate::telemetry::Meters;

/// What one worker serves with. Nothing in it is shared with another worker but the snapshot,
/// the clock and the limits, so that workers do not wait for each other's cache lines.
pub struct Worker<B> {
    /// Which configuration this is of: grows with each reload.
    pub generation: u64,
    /// The configuration's routes.
    pub routes: Routes,
    /// The configuration's upstreams, in its order.
    pub upstreams: Vec<Arc<Upstream>>,
    /// The directory as it is now.
    pub live: Arc<Live>,
    /// The worker's session with the books.
    pub books: B,
    /// Charges that may be read back.
    pub charges: Arc<dyn Charges>,
    /// Recent answers to requests with a key, over all workers.
    pub answers: Arc<Answers>,
    /// Jobs that are not over, over all workers.
    pub jobs: Arc<Jobs>,
    /// Who may report how jobs stand.
    pub reporters: Arc<[Reporter]>,
    /// Rates and requests in flight, over all workers.
    pub limits: Arc<Limits>,
    /// What time it is.
    pub clock: Clock,
    /// What the worker counts.
    pub meters: Arc<Meters>,
    /// Where tasks that outlive their request are born, and waited for when the worker drains.
    pub tasks: TaskTracker,
    /// Makes charge ids.
    pub ids: ChargeIds,
    /// Its connections, and how long their clients may take.
    pub pulse: Arc<Pulse>,
    /// Whose `Forwarded` and `X-Forwarded-*` are believed.
    pub trusted_proxies: Vec<Network>,
    /// Where requests are traced.
    pub tracer: Tracer,
    /// Whether each request is logged.
    pub access_log: bool,
    /// Ends keep-alive: connections finish what they serve, and close.
    pub drain: CancellationToken,
    /// Cancelled when what is not finished is dropped with the event loop.
    pub cut_off: CancellationToken,
}

impl<B> Worker<B> {
    /// True where work is dropped because the process ends, and not because a client left.
    pub fn is_cut_off(&self) -> bool {
        self.cut_off.is_cancelled()
    }
}

/// Charges, open or resolved, as they may be read back by id.
pub trait Charges: Send + Sync {
    /// A charge's document.
    fn find(&self, charge: ChargeId) -> FoundCharge<'_>;

    /// The encoded [`crate::core::note::OutcomeNote`] of a resolved charge; nothing where it has
    /// none.
    fn note(&self, charge: ChargeId) -> FoundNote<'_>;

    /// The HTTP message that was recorded with its capture, if one was, and it is still kept.
    fn answer(&self, charge: ChargeId) -> FoundAnswer<'_>;
}

/// A note that is being looked up.
pub type FoundNote<'a> = Pin<Box<dyn Future<Output = Result<Vec<u8>, BooksError>> + Send + 'a>>;

/// A charge that is being looked up.
pub type FoundCharge<'a> =
    Pin<Box<dyn Future<Output = Result<Option<ChargeDocument>, BooksError>> + Send + 'a>>;

/// An answer that is being looked up.
pub type FoundAnswer<'a> =
    Pin<Box<dyn Future<Output = Result<Option<Vec<u8>>, BooksError>> + Send + 'a>>;

/// A client's connection. Its fields are written by the worker's thread only.
pub struct Connection {
    /// The client's address, as `X-Forwarded-For` has it.
    pub peer: HeaderValue,
    /// Whether what the client says of where it forwards from is believed; decided when it comes.
    pub trusted: bool,
    /// Whom its last request was from. Written and read by the connection's own task only; the
    /// lock is never waited for.
    pub last: Mutex<Option<Known>>,
    /// How long the client takes.
    pub pace: Pace,
    /// The [`Facts`] of the head that came last, until its request is served.
    pub facts: AtomicU8,
    /// The last request's body was not read to its end.
    pub unread: AtomicBool,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Connection {
    /// A connection from `peer`.
    pub fn new<B: Books>(worker: &Worker<B>, peer: SocketAddr) -> Self {
        let ip = peer.ip().to_canonical();
        let text = HeaderValue::from_str(&ip.to_string());
        Self {
            peer: text.unwrap_or_else(|_| HeaderValue::from_static("unknown")),
            trusted: worker.trusted_proxies.iter().any(|network| network.contains(ip)),
            last: Mutex::default(),
            pace: worker.pulse.pace(),
            facts: AtomicU8::new(0),
            unread: AtomicBool::new(false),
        }
    }

    /// A request begins; returns what the bytes of its head showed.
    pub fn request_began(&self, uploading: bool) -> Facts {
        self.pace.request_began(uploading);
        self.unread.store(false, Ordering::Relaxed);
        let facts = self.facts.load(Ordering::Relaxed);
        self.facts.store(0, Ordering::Relaxed);
        Facts::from_bits(facts)
    }
}

/// An answer that is being sent; its drop says that the last of it was handed to be written.
pub struct Turn(pub Arc<Connection>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.pace.answered();
    }
}

/// Makes charge ids: the time and 74 bits that no other worker makes in the same millisecond.
///
/// The bits come from two counters, started at random and each mixed by a bijection (the
/// finaliser of SplitMix64): one worker never makes the same bits twice, and two workers meet
/// with the probability of two random draws. Ids are names, not secrets; a charge is shown to
/// its user and its key only.
#[derive(Debug)]
pub struct ChargeIds {
    seeds: [u64; 2],
    count: AtomicU64,
}

impl ChargeIds {
    /// Ids from the system's randomness.
    ///
    /// # Errors
    /// When the system has none.
    pub fn new() -> Result<Self, getrandom::Error> {
        Ok(Self { seeds: [getrandom::u64()?, getrandom::u64()?], count: AtomicU64::new(0) })
    }

    /// The next id.
    pub fn next(&self, now: Timestamp) -> ChargeId {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let high = mix(self.seeds[0].wrapping_add(count));
        let low = mix(self.seeds[1].wrapping_add(count));
        let unix_ms = u64::try_from(now.as_millisecond()).unwrap_or(0);
        ChargeId::v7(unix_ms, u128::from(high) << 64 | u128::from(low))
    }
}

fn mix(counter: u64) -> u64 {
    let mut bits = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charge_ids_never_repeat_within_a_worker() {
        let ids = ChargeIds::new().unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let made: std::collections::HashSet<ChargeId> =
            (0..10_000).map(|_| ids.next(now)).collect();
        assert_eq!(made.len(), 10_000);
    }
}
