//! Settlement: a charge is captured on what was really used, or voided. It never refuses for
//! lack of credit (D30, D31), and it belongs to a carried future, never to a handler's.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use smallvec::SmallVec;

use super::Refused;
use super::hold::{Held, Stage, grown_note, unavailable};
use super::worker::Worker;
use crate::books::{Amended, Amendment, Books, BooksError, Known, Resolution, Resolved};
use crate::core::account::{LegKind, Legs, Taken, sum_of};
use crate::core::charge::{Flags, OutcomeMemo, State};
use crate::core::ids::ChargeId;
use crate::core::note::{self, HeldNote, OutcomeNote};
use crate::core::refusal::Both;
use crate::core::waterfall::{self, Observed, Settling};
use crate::telemetry::{BooksOperation, BooksResult, Outcome};

/// What was really used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actual {
    /// The route does not tell usage: what was quoted.
    Quoted,
    /// The route tells usage, but the backend did not: the whole hold, flagged.
    Missing,
    /// Quantities by meter, in millionths.
    Reported(SmallVec<[u64; 2]>),
    /// The same as far as is known, flagged: the backend did not tell all of them.
    Counted(SmallVec<[u64; 2]>),
}

/// How a charge ended.
#[derive(Clone, Debug)]
pub struct Settled {
    /// Captured or voided.
    pub state: State,
    /// Credits charged, in millionths.
    pub cost: u64,
    /// Who paid.
    pub legs: Legs,
}

impl Settled {
    /// The receipt as the last event of a stream.
    pub fn event<B: Books + 'static>(&self, held: &Held<B>) -> Vec<u8> {
        held.receipt_event(self.state, self.cost, &self.legs)
    }
}

/// Captures a charge on what was really used.
///
/// # Errors
/// `books_unavailable` when the capture could not be recorded.
pub async fn capture<B: Books + 'static>(
    held: &mut Held<B>,
    actual: &Actual,
    status: Option<u16>,
) -> Result<Settled, Refused> {
    let _span = held.spans.child("settle");
    let (mut settling, mut memo) = begin(held, actual);
    if held.draft.is_some() && settling.has_excess() {
        match Box::pin(take(held, &mut settling, &memo)).await {
            Ok(None) => {}
            Ok(Some(resolved)) => return ended(held, Ok(resolved), status),
            Err(BooksError::Range) => (settling, memo) = without_excess(held),
            Err(error) => return Err(unamended(held, &error, status)),
        }
    }
    let mut state = State::Captured;
    let (extra, observed) = loop {
        memo.cost = settling.cost;
        let answer = match held.draft {
            Some(_) if !settling.has_excess() => Box::pin(foretell(held, &settling)).await,
            _ => Bytes::new(),
        };
        let (observed, posting) = post(held, &settling, &memo, &answer);
        match posting.await {
            Ok(Resolved::Done(extra, after)) => {
                held.stage = Stage::Resolved;
                if answer.is_empty() {
                    held.standing.update(&after);
                } else {
                    // What is recorded is what is sent.
                    held.worker.answers.put(held.charge, answer);
                }
                break (extra, observed);
            }
            // Balances moved since they were known, so some other charge got through.
            Ok(Resolved::Short(view)) if settling.may_be_short() => settling.short(view),
            Err(BooksError::Range) if settling.has_excess() => {
                (settling, memo) = without_excess(held);
            }
            // What more there is to it is known when the books have it.
            Ok(Resolved::Recorded) => {
                held.stage = Stage::Resolved;
                state = State::Held;
                if !answer.is_empty() {
                    held.worker.answers.put(held.charge, answer);
                }
                break (Legs::new(), observed);
            }
            other => return ended(held, other, status),
        }
    };
    let cost = settling.cost.micro();
    let kept = kept(held, &settling);
    let legs = if extra.is_empty() { kept } else { waterfall::merge(&kept, &extra) };
    let sum = |kind| sum_of(&legs, kind);
    let meters = &held.caller.meters;
    meters.request(Some(held.route.index), outcome(observed.as_ref()), status);
    if let Some(observed) = &observed {
        meters.uncovered(observed.uncovered.operations.micro());
    }
    let (seat, pool) = (sum(LegKind::Licence), sum(LegKind::Pool));
    meters.captured(Some(held.route.index), seat, pool, sum(LegKind::Overage));
    Ok(Settled { state, cost, legs })
}

/// Voids a charge: everything returns.
///
/// # Errors
/// `books_unavailable` when the void could not be recorded.
pub async fn void<B: Books + 'static>(
    held: &mut Held<B>,
    status: Option<u16>,
) -> Result<Settled, Refused> {
    let _span = held.spans.child("settle");
    let memo = OutcomeMemo::default();
    let now = held.worker.clock.now();
    let void = Resolution::plain(State::Voided, &[], now, &memo);
    let resolving = resolve(&held.worker, held.charge, &void);
    match resolving.await {
        Ok(Resolved::Done(_, after)) => {
            held.stage = Stage::Resolved;
            held.standing.update(&after);
        }
        other => return ended(held, other, status),
    }
    held.caller.meters.request(Some(held.route.index), Outcome::Voided, status);
    Ok(Settled { state: State::Voided, cost: 0, legs: Legs::new() })
}

/// What is captured, and what the ledger should remember of it beside its cost.
fn begin<B: Books + 'static>(held: &Held<B>, actual: &Actual) -> (Settling, OutcomeMemo) {
    let quoted = &held.quoted;
    let memo = |flags| OutcomeMemo { flags, ..OutcomeMemo::default() };
    let (quantities, flags) = match actual {
        Actual::Quoted => return (whole(held), memo(Flags::default())),
        Actual::Missing => return (whole(held), memo(Flags::USAGE_MISSING)),
        Actual::Reported(quantities) => (quantities, Flags::default()),
        Actual::Counted(quantities) => (quantities, Flags::USAGE_MISSING),
    };
    let Some(Ok(quote)) = held.metered().map(|metered| quoted.again(metered, quantities)) else {
        // Usage that is beyond what an amount can hold is as good as none (f56, f57).
        held.worker.meters.usage(held.route.index, false, true);
        return (whole(held), memo(Flags::USAGE_MISSING));
    };
    let settling =
        Settling::used(&held.legs, &quote.price, quoted.quote.pool, held.observed_so_far());
    // Only an excess looks at what is known.
    let settling = if settling.has_excess() { settling.knowing(&held.seen) } else { settling };
    (settling, OutcomeMemo { measures: Some(quantities.to_vec()), ..memo(flags) })
}

fn whole<B: Books + 'static>(held: &Held<B>) -> Settling {
    Settling::whole(&held.legs, held.quoted.quote.price.cost, held.observed_so_far())
}

/// Gives up an excess that does not fit into its accounts: the hold is captured as it is, flagged.
fn without_excess<B: Books + 'static>(held: &Held<B>) -> (Settling, OutcomeMemo) {
    tracing::error!(charge = %held.charge, "an excess is beyond what accounts hold");
    (whole(held), OutcomeMemo { flags: Flags::USAGE_MISSING, ..OutcomeMemo::default() })
}

/// The legs as they are captured.
fn kept<B: Books + 'static>(held: &Held<B>, settling: &Settling) -> Legs {
    let legs = held.legs.iter().zip(&settling.keep);
    legs.map(|(leg, &amount)| Taken { amount, ..*leg }).collect()
}

/// What a captured charge counts as: what would have been refused is told apart (D28).
pub(super) fn outcome(observed: Option<&Observed>) -> Outcome {
    let refused = observed.is_some_and(|observed| observed.code.is_some());
    if refused { Outcome::Observed } else { Outcome::Captured }
}

/// Takes an excess before the capture, where the answer is kept: its receipt stands in the
/// capture's record, and says who paid. Returns how the charge was resolved, if it was.
async fn take<B: Books + 'static>(
    held: &mut Held<B>,
    settling: &mut Settling,
    memo: &OutcomeMemo,
) -> Result<Option<Resolved>, BooksError> {
    let memo = OutcomeMemo { cost: settling.cost, ..memo.clone() };
    loop {
        let (observed, amending) = amend(held, settling, &memo);
        match amending.await? {
            Amended::Done(taken, _) => {
                waterfall::grow(&mut held.legs, &taken);
                *settling = Settling::whole(&held.legs, memo.cost, observed);
                held.observed = observed.map(Box::new);
                return Ok(None);
            }
            Amended::Short(view) if settling.may_be_short() => settling.short(view),
            // What is owed is taken from whoever has it or not.
            Amended::Short(view) => return Ok(Some(Resolved::Short(view))),
            // Others gave this gateway up meanwhile (D36): what is captured now is captured late,
            // with the excess.
            Amended::Already(State::Voided) | Amended::Unknown => return Ok(None),
            Amended::Already(state) => return Ok(Some(Resolved::Already(state))),
        }
    }
}

/// Asks the books to take an excess for the hold; also gives what there is to it then, in observe
/// mode.
fn amend<B: Books + 'static>(
    held: &Held<B>,
    settling: &Settling,
    memo: &OutcomeMemo,
) -> (Option<Observed>, impl Future<Output = Result<Amended, BooksError>> + Send + use<B>) {
    let position = held.position();
    let (post, observed) = settling.post(Some(&position));
    let measures = memo.measures.as_deref().unwrap_or(&held.quoted.quantities);
    let uncovered = observed.unwrap_or_default().uncovered;
    let now_held = HeldNote { cost: memo.cost, measures: measures.to_vec(), uncovered };
    let note = grown_note(now_held, observed.as_ref());
    // Who resolves it without its owner captures all that is held, whoever the rest is taken from:
    // the books keep no more than there is.
    let sources = post.as_ref().map_or(0, |post| post.sources.len());
    let keep = SmallVec::from_elem(u64::MAX, held.legs.len() + sources);
    let known = Known { keep, memo: memo.clone() };
    let amendment = Amendment {
        extra: post.as_ref().map(|post| (&position.accounts[..], post)),
        known: Some(&known),
        expires: None,
        names: &[],
        note: Some(&note),
        answer: &[],
        now: held.worker.clock.now(),
    };
    (observed, held.worker.books.amend(held.charge, &amendment))
}

/// Writes down the answer as its client gets it when this is captured, with its receipt; nothing
/// where it is too large to keep. What the caller has left is said by the balances of right before
/// the capture, because it is recorded with it.
async fn foretell<B: Books + 'static>(held: &mut Held<B>, settling: &Settling) -> Bytes {
    // Without balances there is no capture either.
    let Ok(standing) = held.foresee(&settling.keep).await else { return Bytes::new() };
    held.standing = standing;
    let (cost, kept) = (settling.cost.micro(), kept(held, settling));
    let fields: Vec<_> = held.fields(State::Captured, cost, &kept).collect();
    let Some(draft) = &held.draft else { return Bytes::new() };
    let last = match draft.tells {
        true => held.receipt_event(State::Captured, cost, &kept),
        false => Vec::new(),
    };
    draft.message(&fields, &last).unwrap_or_default()
}

/// Asks the books to capture what is kept, and to take an excess in the same step; also gives what
/// there is to the charge once that is done, in observe mode. All of the asking happens in this
/// call; the future only waits, and is small, because it lives in every request's.
fn post<B: Books + 'static>(
    held: &Held<B>,
    settling: &Settling,
    memo: &OutcomeMemo,
    answer: &[u8],
) -> (Option<Observed>, impl Future<Output = Result<Resolved, BooksError>> + Send + use<B>) {
    let position = settling.has_excess().then(|| held.position());
    let (post, observed) = settling.post(position.as_ref());
    let accounts = position.as_ref().map(|position| &position.accounts[..]);
    let capture = Resolution {
        extra: accounts.zip(post.as_ref()),
        note: &noted(held, observed),
        answer,
        ..Resolution::plain(State::Captured, &settling.keep, held.worker.clock.now(), memo)
    };
    if post.is_none() {
        return (observed, resolve(&held.worker, held.charge, &capture));
    }
    let (owed, uncovered) = settling.at_last().post(position.as_ref());
    let extra = accounts.zip(owed.as_ref());
    let last = Resolution { extra, note: &noted(held, uncovered), ..capture.clone() };
    let capture = Resolution { last: Some(&last), ..capture };
    (observed, resolve(&held.worker, held.charge, &capture))
}

/// What the ledger should remember of a charge in observe mode. Nothing is noted of one to which
/// there is nothing.
fn noted<B: Books + 'static>(held: &Held<B>, observed: Option<Observed>) -> Vec<u8> {
    let uncovered = observed.map(|observed| observed.uncovered);
    let uncovered = uncovered.filter(|it| held.observed.is_some() || *it != Both::default());
    uncovered
        .map_or(Vec::new(), |_| note::encode(&OutcomeNote { uncovered, ..OutcomeNote::default() }))
}

/// Asks the books to resolve a charge, and measures how long they take.
pub(super) fn resolve<B: Books + 'static>(
    worker: &Worker<B>,
    charge: ChargeId,
    resolution: &Resolution<'_>,
) -> impl Future<Output = Result<Resolved, BooksError>> + Send + use<B> {
    let asked = Instant::now();
    let resolving = worker.books.resolve(charge, resolution);
    let meters = Arc::clone(&worker.meters);
    async move {
        let resolved = resolving.await;
        let result = match &resolved {
            Ok(Resolved::Done(..) | Resolved::Recorded) => BooksResult::Done,
            Ok(_) => BooksResult::Short,
            Err(_) => BooksResult::Failed,
        };
        meters.books(BooksOperation::Resolve, result, asked.elapsed());
        resolved
    }
}

/// What remains when an amendment could not be recorded: the charge is as it was, or as it was to be,
/// and is settled on what is known of it when it is dropped.
pub(super) fn unamended<B: Books + 'static>(
    held: &Held<B>,
    error: &BooksError,
    status: Option<u16>,
) -> Refused {
    held.caller.meters.request(Some(held.route.index), Outcome::Held, status);
    Refused { counted: true, ..unavailable(error) }
}

/// What remains when the books did not settle as asked: they could not record it, or somebody
/// else had settled it.
pub(super) fn ended<B: Books + 'static>(
    held: &mut Held<B>,
    resolved: Result<Resolved, BooksError>,
    status: Option<u16>,
) -> Result<Settled, Refused> {
    held.stage = Stage::Resolved;
    let charge = held.charge;
    let state = match resolved {
        Err(error) => {
            held.caller.meters.request(Some(held.route.index), Outcome::Held, status);
            let mut refused = unavailable(&error);
            refused.counted = true;
            return Err(refused);
        }
        Ok(Resolved::Already(state)) => state,
        // It may even be captured, by this very call: where books are elsewhere, its reply was lost
        // and its session removed meanwhile, nobody here knows. What it is stands at
        // `/.tollgate/v1/charges/{id}`.
        Ok(Resolved::Unknown) if held.worker.books.is_shared() => State::Held,
        Ok(_) => State::Voided,
    };
    tracing::warn!(%charge, %state, "the charge was resolved by someone else");
    held.caller.meters.request(Some(held.route.index), Outcome::InDoubt, status);
    let costs = matches!(state, State::Captured | State::Held);
    let cost = if costs { held.quoted.quote.price.cost.micro() } else { 0 };
    let legs = if costs { held.legs.clone() } else { Legs::new() };
    Ok(Settled { state, cost, legs })
}
