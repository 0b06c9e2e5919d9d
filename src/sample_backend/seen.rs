//! What reached the backend, for tests and audits: `/sample/stats`, `/sample/requests` and
//! `/sample/charges`. Requests to these are not in it. Everything is bounded, whatever callers
//! invent.

use std::collections::{BTreeMap, HashMap, VecDeque};

use http::header::HeaderMap;
use http::request::Parts;
use serde::Serialize;
use serde_json::{Value, json};

use super::answer::clipped;
use super::endpoint::Endpoint;
use super::{CHARGE, FAIL};

/// So many requests are remembered, the last ones.
const MAX_REQUESTS: usize = 1024;
/// So many charges are told apart; those that come later are only counted.
const MAX_CHARGES: usize = 262_144;
/// So many charges are listed.
const MAX_LISTED: usize = 1000;
/// Of a path and of a header's value so much is kept.
const MAX_TEXT: usize = 256;
/// The headers that are kept beside `Tollgate-*`; none of them is a credential.
const KEPT: &[&str] =
    &["content-length", "content-type", "idempotency-key", "traceparent", "x-request-id"];
const MAX_HEADERS: usize = 16;

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    total: u64,
    endpoints: [u64; Endpoint::ALL.len()],
    other: u64,
    charged: u64,
    failures: u64,
    /// Clients that left before they had their answer.
    pub abandoned: u64,
    /// Reports of jobs that somebody took.
    pub reports_taken: u64,
    /// Reports of jobs that nobody took.
    pub reports_lost: u64,
    requests: VecDeque<Entry>,
    charges: HashMap<Box<str>, u32>,
    /// Requests under a charge that is not told apart.
    uncounted: u64,
}

/// A request.
#[derive(Debug, Serialize)]
struct Entry {
    number: u64,
    method: String,
    path: String,
    charge: Option<String>,
    headers: BTreeMap<String, String>,
    /// The length of its body, once that was read.
    bytes: Option<u64>,
    /// What it was answered, once it was.
    status: Option<u16>,
}

impl Seen {
    /// Writes a request down; its number.
    pub(super) fn note(&mut self, request: &Parts) -> u64 {
        self.total += 1;
        let path = request.uri.path();
        let counter = match Endpoint::of(path) {
            Some((endpoint, _)) => &mut self.endpoints[endpoint as usize],
            None => &mut self.other,
        };
        *counter += 1;
        self.failures += u64::from(request.headers.contains_key(FAIL));
        let charge = request.headers.get(CHARGE).map(|charge| text(charge.as_bytes()));
        if let Some(charge) = &charge {
            self.count_charge(charge);
        }
        if self.requests.len() == MAX_REQUESTS {
            self.requests.pop_front();
        }
        self.requests.push_back(Entry {
            number: self.total,
            method: clipped(request.method.as_str(), MAX_TEXT).to_owned(),
            path: clipped(path, MAX_TEXT).to_owned(),
            charge,
            headers: kept(&request.headers),
            bytes: None,
            status: None,
        });
        self.total
    }

    fn count_charge(&mut self, charge: &str) {
        self.charged += 1;
        if let Some(count) = self.charges.get_mut(charge) {
            *count = count.saturating_add(1);
        } else if self.charges.len() < MAX_CHARGES {
            self.charges.insert(charge.into(), 1);
        } else {
            self.uncounted += 1;
        }
    }

    /// Its body was read.
    pub(super) fn note_bytes(&mut self, number: u64, bytes: u64) {
        if let Some(entry) = self.entry(number) {
            entry.bytes = Some(bytes);
        }
    }

    /// It is answered.
    pub(super) fn note_status(&mut self, number: u64, status: u16) {
        if let Some(entry) = self.entry(number) {
            entry.status = Some(status);
        }
    }

    fn entry(&mut self, number: u64) -> Option<&mut Entry> {
        let first = self.requests.front()?.number;
        let at = usize::try_from(number.checked_sub(first)?).ok()?;
        self.requests.get_mut(at)
    }

    /// All counts.
    pub(super) fn stats(&self, jobs: &Value) -> Value {
        let count = |endpoint: Endpoint| self.endpoints[endpoint as usize];
        let mut requests: BTreeMap<&str, u64> =
            Endpoint::ALL.into_iter().map(|endpoint| (endpoint.path(), count(endpoint))).collect();
        requests.insert("other", self.other);
        json!({
            "requests": requests,
            "charges": self.charged,
            "failures": self.failures,
            "abandoned": self.abandoned,
            "jobs": jobs,
            "reports": { "taken": self.reports_taken, "lost": self.reports_lost },
        })
    }

    /// The last requests, oldest first: `last` of them, of this `charge` or `path`.
    pub(super) fn requests(&self, query: &str) -> Value {
        let (charge, path) = (member(query, "charge"), member(query, "path"));
        let last = member(query, "last").and_then(|last| last.parse().ok()).unwrap_or(MAX_REQUESTS);
        let is_asked = |entry: &&Entry| {
            charge.is_none_or(|charge| entry.charge.as_deref() == Some(charge))
                && path.is_none_or(|path| entry.path == path)
        };
        let found: Vec<&Entry> = self.requests.iter().filter(is_asked).collect();
        let from = found.len().saturating_sub(last);
        json!({ "total": self.total, "items": found[from..] })
    }

    /// How many requests came under each charge: of one, if it is named, or of those with at least
    /// `min`, as many as are listed.
    pub(super) fn charges(&self, query: &str) -> Value {
        let min = member(query, "min").and_then(|min| min.parse().ok()).unwrap_or(1);
        let charge = member(query, "charge");
        let all = self.charges.iter().map(|(id, count)| (&**id, *count));
        let found: Vec<(&str, u32)> = all
            .filter(|(id, count)| *count >= min && charge.is_none_or(|charge| charge == *id))
            .collect();
        let items: BTreeMap<&str, u32> = found.iter().take(MAX_LISTED).copied().collect();
        json!({
            "known": self.charges.len(),
            "uncounted": self.uncounted,
            "matching": found.len(),
            "items": items,
        })
    }
}

/// A member of a query, as it stands there.
fn member<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut members = query.split('&').filter_map(|member| member.split_once('='));
    members.find(|(known, _)| *known == name).map(|(_, value)| value)
}

fn kept(headers: &HeaderMap) -> BTreeMap<String, String> {
    let is_kept = |name: &str| name.starts_with("tollgate-") || KEPT.contains(&name);
    headers
        .iter()
        .filter(|(name, _)| is_kept(name.as_str()))
        .take(MAX_HEADERS)
        .map(|(name, value)| (name.as_str().to_owned(), text(value.as_bytes())))
        .collect()
}

fn text(bytes: &[u8]) -> String {
    clipped(&String::from_utf8_lossy(bytes), MAX_TEXT).to_owned()
}
