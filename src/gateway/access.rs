//! What is logged of requests. The access log: a line for each, where `log.access` asks for it;
//! nothing is gathered for it where not. And failures, but not thousands a second of the same.
//!
//! Queries and bodies are left out, because they may hold secrets; what a client
//! chose is escaped by the log's format (f76).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use http::{Method, Request, Uri};

use super::Trace;
use super::identify::Caller;
use super::worker::Connection;
use crate::directory::snapshot::{Key, Org, User};

/// Who asked.
pub struct Who {
    org: Arc<Org>,
    key: Arc<Key>,
    user: Option<Arc<User>>,
}

impl Who {
    /// A caller, kept until the line is written.
    pub fn of(caller: &Caller) -> Self {
        let Caller { org, key, user, .. } = caller;
        Self { org: Arc::clone(org), key: Arc::clone(key), user: user.clone() }
    }
}

/// What is known of a request before it is served.
pub struct Line {
    peer: http::HeaderValue,
    method: Method,
    uri: Uri,
}

impl Line {
    /// Begins with the request's head.
    pub fn new<T>(connection: &Connection, request: &Request<T>) -> Self {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        Self { peer: connection.peer.clone(), method, uri }
    }

    /// Writes the line when the response's head is ready.
    pub fn write(&self, trace: &Trace, status: u16, took: Duration, waited: Duration) {
        let id = |id: Option<&str>| id.map(str::to_owned);
        let who = trace.who.as_ref();
        tracing::info!(
            target: "tollgate::access",
            request_id = trace.request_id.as_ref().and_then(|id| id.to_str().ok()),
            peer = self.peer.to_str().ok(),
            method = self.method.as_str(),
            path = self.uri.path(),
            status,
            org = id(who.map(|who| who.org.id.as_str())),
            key = id(who.map(|who| who.key.id.as_str())),
            user = id(who.and_then(|who| who.user.as_ref()).map(|user| user.id())),
            took_us = micros(took),
            backend_us = micros(waited),
            "request"
        );
    }
}

/// How many failures are told a second, over all workers: in an outage every request fails, and
/// a log that cannot be written as fast would stop the workers.
const FAILURES: u64 = 50;

/// The current second, since the first failure, in the upper half; failures in it below.
static WINDOW: AtomicU64 = AtomicU64::new(0);
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Counts a failure. If it may be told: how many of the second before were not.
pub fn may_tell() -> Option<u64> {
    told(&WINDOW, BEGAN.elapsed().as_secs() + 1)
}

/// Whether the next failure may be told. It is not counted by this: who tells of it counts it.
pub fn tells() -> bool {
    tells_in(WINDOW.load(Relaxed), BEGAN.elapsed().as_secs() + 1)
}

fn tells_in(window: u64, second: u64) -> bool {
    window >> 32 != second || window & 0xffff_ffff < FAILURES
}

fn told(window: &AtomicU64, second: u64) -> Option<u64> {
    let next = |old: u64| if old >> 32 == second { old + 1 } else { second << 32 | 1 };
    let old = window.fetch_update(Relaxed, Relaxed, |old| Some(next(old))).unwrap_or(0);
    let (count, before) = (next(old) & 0xffff_ffff, old & 0xffff_ffff);
    match count {
        1 => Some(before.saturating_sub(FAILURES)),
        count => (count <= FAILURES).then_some(0),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_up_to_a_number_a_second_and_the_rest_is_counted() {
        let window = AtomicU64::new(0);
        let told_in = |second| (0..FAILURES + 7).filter_map(|_| told(&window, second)).collect();
        let first: Vec<u64> = told_in(1);
        assert_eq!(first, vec![0; FAILURES as usize]);
        // To ask is not to count.
        let known = window.load(Relaxed);
        assert!(!tells_in(known, 1) && tells_in(known, 2));
        let second: Vec<u64> = told_in(2);
        assert_eq!((second[0], second.len() as u64), (7, FAILURES));
        assert!(second[1..].iter().all(|untold| *untold == 0));
    }
}
