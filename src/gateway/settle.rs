//! Settlement: a charge is captured on what was really used, or voided. It never refuses for
//! lack of credit (D30, D31), and it belongs to a carried future, never to a handler's.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use smallvec::SmallVec;

use super::Refused;
use super::hold::{Held, Stage, observed_note, unavailable};
use super::worker::Worker;
use crate::books::{Amended, Amendment, Books, BooksError, Known, Resolution, Resolved};
use crate::core::account::{LegKind, Legs, Post, Taken, View, sum_of};
use crate::core::charge::{Flags, OutcomeMemo, State};
use crate::core::ids::ChargeId;
use crate::core::note::{self, OutcomeNote};
use crate::core::price::Price;
use crate::core::waterfall::{self, Excess, MAX_PLANS, Observed, Settlement};
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
    let (mut price, mut memo) = price(held, actual);
    memo.cost = price.cost;
    let mut observed = held.observed.clone();
    let Settlement { mut keep, mut excess } = match (actual, &mut observed) {
        (Actual::Reported(_) | Actual::Counted(_), None) => waterfall::settle(&held.legs, &price),
        (Actual::Reported(_) | Actual::Counted(_), Some(observed)) => {
            observed.settle(&held.legs, held.quoted.quote.pool, &price)
        }
        _ => Settlement { keep: held.legs.iter().map(|leg| leg.amount).collect(), excess: None },
    };
    if held.draft.is_some() && excess.is_some() {
        match Box::pin(take(held, &mut excess, &mut observed, &memo)).await {
            Ok(None) => keep = held.legs.iter().map(|leg| leg.amount).collect(),
            Ok(Some(resolved)) => return ended(held, Ok(resolved), status),
            Err(BooksError::Range) => {}
            Err(error) => return ended(held, Err(error), status),
        }
    }
    let mut known = None;
    let mut plans = 0;
    let extra = loop {
        let answer = match held.draft {
            Some(_) if excess.is_none() => {
                Box::pin(foretell(held, &keep, price.cost.micro())).await
            }
            _ => Bytes::new(),
        };
        let owed = excess.as_ref().map(|excess| (excess, known.as_deref(), plans));
        let (paid, posting) = post(held, &keep, owed, observed.as_deref(), &memo, &answer);
        match posting.await {
            Ok(Resolved::Done(extra, after)) => {
                held.stage = Stage::Resolved;
                observed = paid;
                if answer.is_empty() {
                    held.standing.update(&after);
                } else {
                    // What is recorded is what is sent.
                    held.worker.answers.put(held.charge, answer);
                }
                break extra;
            }
            // Balances moved since `known`, so some other charge got through.
            Ok(Resolved::Short(view)) if plans < MAX_PLANS => {
                (known, plans) = (Some(Box::new(view)), plans + 1);
            }
            // The excess does not fit into its accounts: the hold is captured all the same.
            Err(BooksError::Range) if excess.is_some() => {
                tracing::error!(charge = %held.charge, "an excess is beyond what accounts hold");
                excess = None;
                observed.clone_from(&held.observed);
                price = held.quoted.quote.price;
                memo.cost = price.cost;
            }
            other => return ended(held, other, status),
        }
    };
    let kept: Legs =
        (held.legs.iter().zip(&keep)).map(|(leg, &amount)| Taken { amount, ..*leg }).collect();
    let legs = if extra.is_empty() { kept } else { waterfall::merge(&kept, &extra) };
    let sum = |kind| sum_of(&legs, kind);
    let meters = &held.caller.meters;
    meters.request(Some(held.route.index), outcome(observed.as_deref()), status);
    if let Some(observed) = &observed {
        meters.uncovered(observed.uncovered.operations.micro());
    }
    let (seat, pool) = (sum(LegKind::Licence), sum(LegKind::Pool));
    meters.captured(Some(held.route.index), seat, pool, sum(LegKind::Overage));
    Ok(Settled { state: State::Captured, cost: price.cost.micro(), legs })
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

/// The price to capture, and what the ledger should remember of it.
fn price<B: Books + 'static>(held: &Held<B>, actual: &Actual) -> (Price, OutcomeMemo) {
    let quoted = held.quoted.quote.price;
    let missing = OutcomeMemo { flags: Flags::USAGE_MISSING, ..OutcomeMemo::default() };
    match (actual, held.metered()) {
        (Actual::Quoted, _) => (quoted, OutcomeMemo::default()),
        (Actual::Reported(quantities) | Actual::Counted(quantities), Some(metered)) => {
            // Usage that is beyond what an amount can hold is as good as none (f56, f57).
            match held.quoted.again(metered, quantities) {
                Ok(quote) => {
                    let measures = Some(quantities.to_vec());
                    let flags = match actual {
                        Actual::Counted(_) => Flags::USAGE_MISSING,
                        _ => Flags::default(),
                    };
                    (quote.price, OutcomeMemo { measures, flags, ..OutcomeMemo::default() })
                }
                Err(_) => {
                    held.worker.meters.usage(held.route.index, false, true);
                    (quoted, missing)
                }
            }
        }
        _ => (quoted, missing),
    }
}

/// What a captured charge counts as: what would have been refused is told apart (D28).
pub(super) fn outcome(observed: Option<&Observed>) -> Outcome {
    let refused = observed.is_some_and(|observed| observed.code.is_some());
    if refused { Outcome::Observed } else { Outcome::Captured }
}

/// How an excess is paid on what is known; owed whole where balances moved too often. In observe
/// mode nobody owes anything, and what nobody pays is told beside it.
fn pay<B: Books + 'static>(
    held: &Held<B>,
    (excess, known, plans): (&Excess, Option<&View>, usize),
    observed: Option<&Observed>,
) -> (Post, Option<Box<Observed>>) {
    let (position, pool) = (held.position(), held.quoted.quote.pool);
    let (nothing, last) = (View::new(0), plans == MAX_PLANS);
    let view = known.unwrap_or(&nothing);
    if held.is_observed() {
        let observed = observed.copied().unwrap_or_default();
        let from = (!last).then_some((&position, view));
        let (post, observed) = observed.pay(excess, pool, from);
        return (post, Some(Box::new(observed)));
    }
    let post = match last {
        true => waterfall::owe(excess, pool, &position),
        false => waterfall::plan_excess(excess, pool, &position, view),
    };
    (post, None)
}

/// Takes an excess before the capture, where the answer is kept: its receipt stands in the
/// capture's record, and says who paid. Returns how the charge was resolved, if it was.
async fn take<B: Books + 'static>(
    held: &mut Held<B>,
    excess: &mut Option<Excess>,
    observed: &mut Option<Box<Observed>>,
    memo: &OutcomeMemo,
) -> Result<Option<Resolved>, BooksError> {
    let (mut known, mut plans) = (None::<View>, 0);
    while let Some(owed) = excess {
        let (post, paid) = pay(held, (owed, known.as_ref(), plans), observed.as_deref());
        match amend(held, &post, memo, paid.as_deref()).await? {
            Amended::Done(taken, _) => {
                waterfall::grow(&mut held.legs, &taken);
                held.observed.clone_from(&paid);
                *observed = paid;
                *excess = None;
            }
            Amended::Short(view) if plans < MAX_PLANS => (known, plans) = (Some(view), plans + 1),
            // What is owed is taken from whoever has it or not.
            Amended::Short(view) => return Ok(Some(Resolved::Short(view))),
            Amended::Already(state) => return Ok(Some(Resolved::Already(state))),
            Amended::Unknown => return Ok(Some(Resolved::Unknown)),
        }
    }
    Ok(None)
}

fn amend<B: Books + 'static>(
    held: &Held<B>,
    post: &Post,
    memo: &OutcomeMemo,
    observed: Option<&Observed>,
) -> impl Future<Output = Result<Amended, BooksError>> + Send + use<B> {
    let position = held.position();
    // Who resolves it without its owner finds what nobody pays of it as it is now.
    let note = observed.map(observed_note);
    // And all that is held, whoever the rest is taken from: the books keep no more than there is.
    let keep = SmallVec::from_elem(u64::MAX, held.legs.len() + post.sources.len());
    let known = Known { keep, memo: memo.clone() };
    let amendment = Amendment {
        extra: Some((&position.accounts, post)),
        known: Some(&known),
        expires: None,
        note: note.as_deref(),
        answer: &[],
        now: held.worker.clock.now(),
    };
    held.worker.books.amend(held.charge, &amendment)
}

/// Writes down the answer as its client gets it when so much of each leg is captured, with its
/// receipt; nothing where it is too large to keep. What the caller has left is said by the
/// balances of right before the capture, because it is recorded with it.
async fn foretell<B: Books + 'static>(held: &mut Held<B>, keep: &[u64], cost: u64) -> Bytes {
    // Without balances there is no capture either.
    let Ok(standing) = held.foresee(keep).await else { return Bytes::new() };
    held.standing = standing;
    let kept: Legs =
        (held.legs.iter().zip(keep)).map(|(leg, &amount)| Taken { amount, ..*leg }).collect();
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
    keep: &[u64],
    owed: Option<(&Excess, Option<&View>, usize)>,
    observed: Option<&Observed>,
    memo: &OutcomeMemo,
    answer: &[u8],
) -> (Option<Box<Observed>>, impl Future<Output = Result<Resolved, BooksError>> + Send + use<B>) {
    let now = held.worker.clock.now();
    let capture = |extra, note: &Option<Box<Observed>>| {
        let note = note.as_deref().map_or(Vec::new(), |observed| {
            note::encode(&OutcomeNote {
                uncovered: Some(observed.uncovered),
                ..OutcomeNote::default()
            })
        });
        let state = State::Captured;
        let capture = Resolution { state, keep, extra, now, memo, note: &note, answer };
        resolve(&held.worker, held.charge, &capture)
    };
    match owed {
        None => {
            let observed = observed.copied().map(Box::new);
            let capturing = capture(None, &observed);
            (observed, capturing)
        }
        Some(owed) => {
            let (post, observed) = pay(held, owed, observed);
            let position = held.position();
            let capturing = capture(Some((&position.accounts[..], &post)), &observed);
            (observed, capturing)
        }
    }
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
            Ok(Resolved::Done(..)) => BooksResult::Done,
            Ok(_) => BooksResult::Short,
            Err(_) => BooksResult::Failed,
        };
        meters.books(BooksOperation::Resolve, result, asked.elapsed());
        resolved
    }
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
        Ok(_) => State::Voided,
    };
    tracing::warn!(%charge, %state, "the charge was resolved by someone else");
    held.caller.meters.request(Some(held.route.index), Outcome::InDoubt, status);
    let captured = state == State::Captured;
    let cost = if captured { held.quoted.quote.price.cost.micro() } else { 0 };
    let legs = if captured { held.legs.clone() } else { Legs::new() };
    Ok(Settled { state, cost, legs })
}
