//! The answer to a submission: which job it is, and what of its charge is kept until that is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_ENCODING;
use http::{Response, response};
use smallvec::SmallVec;

use super::super::Refused;
use super::super::answers::Draft;
use super::super::flow::{Break, Flow};
use super::super::forward::{self, Forwarded, Gathered};
use super::super::hold::{Held, Stage};
use super::super::meter_body::Content;
use super::super::settle::{self, Actual, Settled};
use super::super::usage::Reading;
use super::elsewhere;
use super::rules::Told;
use super::status::{Standing, Used};
use crate::books::{Amended, Amendment, Books, BooksError, Resolved};
use crate::core::charge::State;
use crate::core::note::{self, HoldNote, JobNote};
use crate::telemetry::{Outcome, Phase};

/// Reads the answer to a submission that charges, and keeps its charge for who sees the job's
/// end. An answer that names no job is charged whole, flagged: nobody could follow it.
///
/// # Errors
/// 502 where the answer broke off, which costs nothing; `books_unavailable` when what becomes of
/// the charge cannot be recorded, because then nobody may have the answer (D30).
pub async fn submitted<B: Books + 'static>(
    mut held: Box<Held<B>>,
    mut head: response::Parts,
    mut flow: Flow,
    waited: Duration,
) -> Result<Forwarded<B>, Refused> {
    let began = Instant::now();
    let until = began + held.worker.upstreams[held.route.upstream].response_timeout;
    let most = (usize::MAX, forward::SMALL);
    let gathered = forward::gather(&mut flow, &mut Reading::default(), most, until).await;
    let took = began.elapsed();
    held.worker.meters.upstream(held.route.upstream, Phase::Body, took);
    let waited = waited + took;
    let status = head.status.as_u16();
    let (settled, content) = match gathered {
        Gathered::Whole(bytes) => {
            if held.once.is_some() {
                held.draft = Some(Box::new(Draft::new(&head, &bytes)));
            }
            let settled = follow(&mut held, &head, &bytes).await?;
            (settled, Content::Whole(Some(bytes)))
        }
        Gathered::Broken(_, cause) => {
            settle::void(&mut held, Some(status)).await?;
            return Err(forward::broke_off(matches!(cause, Break::Stalled)));
        }
        Gathered::Open(read) if read.len() <= forward::SMALL => {
            settle::void(&mut held, Some(status)).await?;
            return Err(forward::broke_off(true));
        }
        Gathered::Open(read) => {
            nameless(&held);
            let settled = settle::capture(&mut held, &Actual::Missing, Some(status)).await?;
            (settled, Content::begun(read, flow))
        }
    };
    forward::receipt(&mut head, &held, &settled);
    Ok(Forwarded { response: Response::from_parts(head, content), waited })
}

/// Settles a charge whose job is over or unknown, or else keeps it.
async fn follow<B: Books + 'static>(
    held: &mut Box<Held<B>>,
    head: &response::Parts,
    text: &[u8],
) -> Result<Settled, Refused> {
    let status = Some(head.status.as_u16());
    // Nothing encoded was asked for.
    let is_read =
        text.len() as u64 <= forward::SMALL && !head.headers.contains_key(CONTENT_ENCODING);
    let text = if is_read { text } else { &[] };
    let rules = held.metered().and_then(|metered| metered.job.as_deref());
    let told = rules.map_or(Told::Nothing, |rules| rules.read(&held.quoted.quantities, text));
    let actual = match told {
        Told::Begun(job) => return keep(held, job, status).await,
        Told::Over(Standing::Failed) => return settle::void(held, status).await,
        Told::Over(Standing::Succeeded(Used::Unasked)) => Actual::Quoted,
        Told::Over(Standing::Succeeded(Used::Told(used))) => {
            Actual::Reported(SmallVec::from_vec(used))
        }
        Told::Over(Standing::Succeeded(Used::Missing)) => Actual::Missing,
        // Whoever reads an answer tells of no job that goes on as of one that is over.
        Told::Over(Standing::Running) | Told::Nothing => {
            nameless(held);
            Actual::Missing
        }
    };
    settle::capture(held, &actual, status).await
}

/// Tells of an answer that nobody can follow.
fn nameless<B: Books + 'static>(held: &Held<B>) {
    tracing::warn!(charge = %held.charge, route = %held.route.name, "a submission names no job");
}

/// Records what the job's end needs, before anybody has the answer.
async fn keep<B: Books + 'static>(
    held: &mut Box<Held<B>>,
    job: JobNote,
    status: Option<u16>,
) -> Result<Settled, Refused> {
    let worker = Arc::clone(&held.worker);
    let now = worker.clock.now();
    let metered = held.metered();
    let deadline = metered.and_then(|metered| metered.job.as_ref()).map(|rules| rules.deadline);
    let expires = now.saturating_add(deadline.unwrap_or_default()).unwrap_or(now);
    let rates = metered.and_then(|metered| held.quoted.rates(metered).ok());
    // Whoever settles it goes on in its mode.
    let observed = held.observed.as_deref().copied();
    let observed = held.is_observed().then(|| (&observed.unwrap_or_default()).into());
    let note = HoldNote { rates, observed, job: Some(job), ..HoldNote::default() };
    let encoded = note::encode(&note);
    let org = held.caller.org.id.as_str();
    let names = note.job.as_ref().map(|job| elsewhere::names(&worker, org, job));
    let names = names.unwrap_or_default();
    let cost = held.quoted.quote.price.cost.micro();
    let answer = answer(held, cost);
    let amendment = Amendment {
        extra: None,
        known: None,
        expires: Some(expires),
        names: &names,
        note: Some(&encoded),
        answer: &answer,
        now,
    };
    match worker.books.amend(held.charge, &amendment).await {
        // From here on it is not its request that settles it.
        Ok(Amended::Done(..)) => held.stage = Stage::Resolved,
        Ok(Amended::Already(state)) if state != State::Voided => {
            return settle::ended(held, Ok(Resolved::Already(state)), status);
        }
        // Others gave this gateway up meanwhile (D36), and nobody follows the job: it is charged
        // whole, late.
        Ok(_) => return settle::capture(held, &Actual::Missing, status).await,
        // Nothing was changed, and nothing can be: what nobody can follow is charged whole.
        Err(BooksError::Range) => {
            tracing::error!(charge = %held.charge, "what a job's end needs cannot be recorded");
            return settle::capture(held, &Actual::Missing, status).await;
        }
        Err(error) => return Err(settle::unamended(held, &error, status)),
    }
    held.caller.meters.request(Some(held.route.index), Outcome::Held, status);
    if !answer.is_empty() {
        // What is recorded is what is sent. Whoever finds the job open looks for it.
        worker.answers.put(held.charge, answer);
    }
    if let Some(job) = &note.job {
        worker.jobs.put(held.charge, held.caller.org.id.as_str(), job, expires.duration_since(now));
        // A report may have come first.
        if let Ok(None) = worker.books.open_charge(held.charge).await {
            worker.jobs.remove(held.charge);
        }
    }
    Ok(Settled { state: State::Held, cost, legs: held.legs.clone() })
}

/// The answer as its client gets it, where it came under a key and is small enough to be kept.
fn answer<B: Books + 'static>(held: &Held<B>, cost: u64) -> Bytes {
    let Some(draft) = &held.draft else { return Bytes::new() };
    let fields: Vec<_> = held.fields(State::Held, cost, &held.legs).collect();
    draft.message(&fields, b"").unwrap_or_default()
}
