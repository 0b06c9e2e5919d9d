//! Reports: a backend tells by itself how a job stands.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderMap};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::super::Refused;
use super::super::hold::unavailable;
use super::super::identify;
use super::super::later::Later;
use super::super::worker::Worker;
use super::settle;
use crate::books::Books;
use crate::core::charge::State;
use crate::core::ids::ChargeId;
use crate::core::refusal::{Code, Refusal};

/// The largest report.
pub const MAX_BODY: u64 = 64 << 10;

/// Who may report of an upstream's jobs.
pub struct Reporter {
    upstream: Box<str>,
    /// Of what it shows.
    hash: [u8; 32],
}

impl Reporter {
    /// Whoever shows this secret.
    pub fn new(upstream: &str, secret: &SecretString) -> Self {
        let hash = Sha256::digest(secret.expose_secret().as_bytes()).into();
        Self { upstream: upstream.into(), hash }
    }
}

/// What a report is answered with.
#[derive(Debug, Serialize)]
pub struct Reported {
    charge: String,
    state: State,
}

/// The upstreams that whoever shows this may report of.
///
/// # Errors
/// `bad_request`, `unauthenticated`; `unknown_route` where nobody may report at all.
pub fn reporter<B>(worker: &Worker<B>, headers: &HeaderMap) -> Result<Vec<Box<str>>, Refused> {
    if worker.reporters.is_empty() {
        let detail = "no route takes reports of its jobs";
        return Err(Refusal::new(Code::UnknownRoute, detail).into());
    }
    let shown = identify::single(headers, &AUTHORIZATION)?;
    let detail = "send the secret of reports as `Authorization: Bearer <secret>`";
    let unknown = || Refused::from(Refusal::new(Code::Unauthenticated, detail));
    let shown: [u8; 32] = Sha256::digest(identify::bearer(shown.ok_or_else(unknown)?)?).into();
    // All of them are compared, however early one is the same (f79).
    let same = worker.reporters.iter().filter(|known| bool::from(known.hash.ct_eq(&shown)));
    let upstreams: Vec<Box<str>> = same.map(|known| known.upstream.clone()).collect();
    if upstreams.is_empty() { Err(unknown()) } else { Ok(upstreams) }
}

/// Takes a report of a job of one of these upstreams.
///
/// # Errors
/// `bad_request` where it is not JSON; `unknown_route` (404) where they have no such job;
/// `books_contended` where its submission is not answered yet; `books_unavailable`.
pub async fn report<B: Books + 'static>(
    worker: &Arc<Worker<B>>,
    upstreams: &[Box<str>],
    charge: ChargeId,
    body: &Bytes,
) -> Result<Reported, Refused> {
    if let Err(error) = serde_json::from_slice::<IgnoredAny>(body) {
        return Err(Refusal::new(Code::BadRequest, format!("the body: {error}")).into());
    }
    let unknown = || Refused::from(Refusal::new(Code::UnknownRoute, "there is no such job"));
    let open = worker.books.open_charge(charge).await.map_err(|error| unavailable(&error))?;
    if let Some(open) = open {
        let later = Later::read(&open)?;
        match later.job() {
            Some(job) if upstreams.iter().any(|own| **own == *job.upstream) => {}
            None if submits(worker, later.memo().route, upstreams) => {
                let detail = "the answer to its submission is on its way; report it again";
                return Err(Refusal::new(Code::BooksContended, detail).into());
            }
            _ => return Err(unknown()),
        }
        if let Some(state) = settle::settle(worker, charge, body, worker.clock.now()).await? {
            return Ok(Reported { charge: charge.to_string(), state });
        }
    }
    // It was settled before, by whoever.
    let found = worker.charges.find(charge).await.map_err(|error| unavailable(&error))?;
    let found = found.ok_or_else(unknown)?;
    if !submits(worker, &found.route, upstreams) {
        return Err(unknown());
    }
    Ok(Reported { charge: found.charge, state: found.state })
}

/// Whether a route of this name submits jobs to one of these upstreams.
fn submits<B>(worker: &Worker<B>, route: &str, upstreams: &[Box<str>]) -> bool {
    let own = |at: usize| {
        let upstream = worker.upstreams.get(at);
        upstream.is_some_and(|to| upstreams.iter().any(|own| **own == *to.name.as_str()))
    };
    worker.routes.submit(route).any(own)
}
