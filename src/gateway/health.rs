//! Health of backends' addresses: learned from traffic by every worker, asked for by one task of
//! the process where the configuration says so, and shared, so that what one worker learned all
//! know and one verdict is told in metrics.
//!
//! Health orders the choice between several addresses; it refuses nothing. Where no address is in
//! use, the one whose time out ends first is tried, so a backend of one address is always tried.
//! One address does not pay for what another did: only a success of its own brings it back.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http::header::HOST;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

use crate::config;

/// So many failures in a row take an address out of use.
const LIMIT: u32 = 5;
/// For how long at first; it doubles with each failed probe.
const FIRST_TIME_OUT: Duration = Duration::from_secs(1);
/// How often it doubles.
const DOUBLINGS: u32 = 5;
/// The longest that a check waits for its answer.
const MAX_CHECK: Duration = Duration::from_secs(5);

/// An address of a backend. Written where its health changes, by whoever finds that; read at every
/// choice.
#[derive(Debug)]
struct Address {
    /// `host:port`, as the configuration has it.
    authority: Box<str>,
    /// Failures in a row, as traffic has them.
    failures: AtomicU32,
    /// Out of use until then, in milliseconds after [`Addresses::began`]; 0: in use. Whoever finds
    /// the time over moves it on and sends the one request that decides (half open).
    out_until: AtomicU64,
    /// The last check failed.
    down: AtomicBool,
}

/// The addresses of a backend.
#[derive(Debug)]
pub struct Addresses {
    upstream: Box<str>,
    began: Instant,
    list: Box<[Address]>,
    check: Option<Check>,
}

#[derive(Clone, Debug)]
struct Check {
    path: Box<str>,
    interval: Duration,
    timeout: Duration,
}

/// Whether an address may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is in use.
    InUse,
    /// It is out of use, and this request finds out whether it still has to be, after so many
    /// failures.
    Probe(u32),
    /// It is out of use.
    Out,
}

impl Addresses {
    /// The addresses of a backend, all in use.
    pub fn new(config: &config::Upstream) -> Self {
        let address = |url: &String| Address {
            authority: url.trim_start_matches("http://").trim_end_matches('/').into(),
            failures: AtomicU32::new(0),
            out_until: AtomicU64::new(0),
            down: AtomicBool::new(false),
        };
        let check = config.health.as_ref().map(|health| Check {
            path: health.path.as_str().into(),
            interval: health.interval,
            timeout: health.interval.min(MAX_CHECK),
        });
        Self {
            upstream: config.name.as_str().into(),
            began: Instant::now(),
            list: config.urls.iter().map(address).collect(),
            check,
        }
    }

    fn now(&self) -> u64 {
        // From 1, because 0 is no time.
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// Whether an address may be chosen for a request that is sent now.
    pub fn standing(&self, at: usize) -> Standing {
        let address = &self.list[at];
        if address.down.load(Relaxed) {
            return Standing::Out;
        }
        let until = address.out_until.load(Relaxed);
        if until == 0 {
            return Standing::InUse;
        }
        let now = self.now();
        let failures = address.failures.load(Relaxed);
        let next = now.saturating_add(time_out(failures));
        let claimed = until <= now
            && address.out_until.compare_exchange(until, next, Relaxed, Relaxed).is_ok();
        if claimed { Standing::Probe(failures) } else { Standing::Out }
    }

    /// Where to try when none is in use, of those that are not in the set `tried`: what checks
    /// found down comes after what only traffic did.
    pub fn least_out(&self, tried: u64) -> Option<usize> {
        let out = |at: &usize| {
            let address = &self.list[*at];
            (address.down.load(Relaxed), address.out_until.load(Relaxed))
        };
        (0..self.list.len()).filter(|at| tried & (1 << at) == 0).min_by_key(out)
    }

    /// An address answered.
    pub fn worked(&self, at: usize) {
        let address = &self.list[at];
        // Read first: a healthy address's cache line stays with every worker.
        if address.failures.load(Relaxed) == 0 {
            return;
        }
        let failures = address.failures.swap(0, Relaxed);
        address.out_until.store(0, Relaxed);
        if failures >= LIMIT {
            tracing::info!(
                upstream = &*self.upstream,
                address = &*address.authority,
                "in use again"
            );
        }
    }

    /// There was no connection to an address, no answer, or one that says that it failed. `probe`
    /// is of a request that was to find out whether the address is still out of use.
    pub fn failed(&self, at: usize, probe: Option<u32>) {
        let address = &self.list[at];
        let counts = |known: u32| match probe {
            // Of several probes that were under way together the first counts.
            Some(before) => known == before,
            // Of what was under way when it went out of use, nothing more is learned; nor of what
            // was sent because no address is in use.
            None => known < LIMIT,
        };
        let next = |known: u32| counts(known).then(|| known.saturating_add(1));
        let Ok(before) = address.failures.fetch_update(Relaxed, Relaxed, next) else { return };
        let failures = before.saturating_add(1);
        if failures < LIMIT {
            return;
        }
        address.out_until.store(self.now().saturating_add(time_out(failures)), Relaxed);
        if failures == LIMIT {
            tracing::warn!(
                upstream = &*self.upstream,
                address = &*address.authority,
                "out of use after failures in a row"
            );
        }
    }

    /// Whether at least one address is in use. One whose time out is over is not before it answered.
    pub fn healthy(&self) -> bool {
        let in_use = |address: &Address| {
            !address.down.load(Relaxed) && address.failures.load(Relaxed) < LIMIT
        };
        self.list.iter().any(in_use)
    }

    /// The backend's name.
    pub fn upstream(&self) -> &str {
        &self.upstream
    }

    /// Asks every address how it is, at the configured interval, until the end. Does nothing where
    /// no check is configured.
    pub async fn check(self: Arc<Self>, end: CancellationToken) {
        let Some(check) = self.check.clone() else { return };
        let mut ticks = tokio::time::interval(check.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = end.cancelled() => return,
            }
            let mut asked = JoinSet::new();
            for at in 0..self.list.len() {
                let (own, check) = (Arc::clone(&self), check.clone());
                asked.spawn(async move {
                    let answer = timeout(check.timeout, ask(&own.list[at].authority, &check.path));
                    own.told(at, answer.await.ok().flatten() == Some(true));
                });
            }
            while asked.join_next().await.is_some() {}
        }
    }

    fn told(&self, at: usize, well: bool) {
        let address = &self.list[at];
        let (upstream, name) = (&*self.upstream, &*address.authority);
        match (address.down.swap(!well, Relaxed), well) {
            (false, false) => tracing::warn!(upstream, address = name, "the health check failed"),
            (true, true) => {
                // What traffic found before is out of date.
                address.failures.store(0, Relaxed);
                address.out_until.store(0, Relaxed);
                tracing::info!(upstream, address = name, "the health check passed");
            }
            _ => {}
        }
    }
}

/// How long an address is out of use after so many failures, in milliseconds.
fn time_out(failures: u32) -> u64 {
    let first = u64::try_from(FIRST_TIME_OUT.as_millis()).unwrap_or(u64::MAX);
    first << failures.saturating_sub(LIMIT).min(DOUBLINGS)
}

/// Whether an address answers a check with a success; `None` where it does not answer.
async fn ask(authority: &str, path: &str) -> Option<bool> {
    let stream = TcpStream::connect(authority).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = Request::get(path).header(HOST, authority).body(Empty::<Bytes>::new()).ok()?;
    let mut answering = pin!(sender.send_request(request));
    let answer = tokio::select! {
        biased;
        answer = answering.as_mut() => answer,
        // It drives the exchange, and may end with the answer.
        _ = connection => answering.await,
    };
    Some(answer.ok()?.status().is_success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(count: usize) -> Addresses {
        let urls: Vec<String> = (1..=count).map(|port| format!("\"http://h:{port}\"")).collect();
        let text = format!("name = \"media\"\nurls = [{}]", urls.join(", "));
        Addresses::new(&toml::from_str(&text).unwrap())
    }

    #[test]
    fn failures_in_a_row_take_an_address_out_and_an_answer_brings_it_back() {
        let addresses = addresses(2);
        for _ in 1..LIMIT {
            addresses.failed(0, None);
        }
        addresses.worked(0);
        for _ in 1..LIMIT {
            addresses.failed(0, None);
            assert_eq!(addresses.standing(0), Standing::InUse);
        }
        addresses.failed(0, None);
        assert_eq!(
            (addresses.standing(0), addresses.standing(1)),
            (Standing::Out, Standing::InUse)
        );
        assert!(addresses.healthy());
        addresses.worked(0);
        assert_eq!(addresses.standing(0), Standing::InUse);
    }

    #[test]
    fn when_the_time_is_over_one_request_probes() {
        let addresses = addresses(1);
        for _ in 0..LIMIT {
            addresses.failed(0, None);
        }
        assert!(!addresses.healthy());
        addresses.list[0].out_until.store(1, Relaxed);
        assert!(!addresses.healthy(), "it has not answered yet");
        assert_eq!(addresses.standing(0), Standing::Probe(LIMIT));
        assert_eq!(addresses.standing(0), Standing::Out, "one at a time");
        addresses.failed(0, Some(LIMIT));
        let until = addresses.list[0].out_until.load(Relaxed);
        assert!(until > addresses.now() + 1500, "the time out doubles");
        // What was under way meanwhile adds nothing, nor does a probe that was slower.
        for _ in 0..100 {
            addresses.failed(0, None);
            addresses.failed(0, Some(LIMIT));
        }
        assert_eq!(addresses.list[0].out_until.load(Relaxed), until);
    }

    #[test]
    fn a_failed_check_takes_an_address_out_whatever_traffic_says() {
        let addresses = addresses(2);
        addresses.told(0, false);
        addresses.worked(0);
        assert_eq!(addresses.standing(0), Standing::Out);
        assert_eq!(addresses.least_out(0), Some(1));
        addresses.told(1, false);
        assert!(!addresses.healthy());
        addresses.told(0, true);
        assert_eq!(addresses.standing(0), Standing::InUse);
    }
}
