//! Holds of streams, a slice at a time (D29, f82): an event that goes beyond what is held waits
//! until the next slice is held too, and the stream ends before it when nothing can pay that.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use http::header::HeaderValue;
use smallvec::SmallVec;

use super::Refused;
use super::hold::{Held, grown_note, unavailable};
use super::usage::{Fed, Reading};
use crate::books::{Amended, Amendment, Books, Known};
use crate::core::account::{Post, View};
use crate::core::amount::{Credits, MICRO, Operations};
use crate::core::charge::{Flags, OutcomeMemo};
use crate::core::note::HeldNote;
use crate::core::price::{Price, Quote, Tier};
use crate::core::refusal::{Both, Code, Refusal};
use crate::core::waterfall::{self, MAX_PLANS, Observed};
use crate::telemetry::{BooksOperation, BooksResult};

/// The longest event that is kept back until all of it is there.
const MAX_KEPT: usize = 1 << 20;
/// How often a slice that nothing can pay is halved before no more is held than an event needs.
const MAX_HALVINGS: usize = 6;

/// A quantity for each meter, in millionths.
type Quantities = SmallVec<[u64; 2]>;

/// How a hold is topped up while its stream runs.
#[derive(Debug)]
pub struct Slices {
    /// How much one slice is; less where that could not be paid.
    sizes: Quantities,
    /// The request's id, for the event that ends a stream.
    pub request_id: HeaderValue,
    gate: Gate,
}

/// What becomes of the bytes of a stream next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Some may pass, or wait for the capture.
    Pass,
    /// An event came that is not paid for.
    TopUp,
    /// More has to come.
    Read,
}

/// Lets the whole events of a stream pass that are paid for.
#[derive(Debug, Default)]
struct Gate {
    /// What came and was not looked at.
    come: VecDeque<Bytes>,
    /// An event that is not whole yet, or is not paid for. Pieces of it are put together, because
    /// a backend may send it byte by byte.
    kept: Vec<u8>,
    /// What is kept is whole, and waits for a slice.
    unpaid: bool,
    /// What has passed ends in the middle of an event.
    torn: bool,
    /// Its events cannot be told apart from outside: its pieces pass as they are.
    coded: bool,
}

impl Slices {
    /// For a charge that was just held, on a route that asks for slices; what is free needs none.
    pub fn of<B: Books + 'static>(held: &Held<B>, request_id: &HeaderValue) -> Option<Box<Self>> {
        held.metered().filter(|metered| metered.sliced)?;
        if held.quoted.quote.tier == Tier::Standard {
            return None;
        }
        // Less than one at a time would ask the books for each event.
        let sizes = held.quoted.quantities.iter().map(|quantity| (*quantity).max(MICRO)).collect();
        Some(Box::new(Self { sizes, request_id: request_id.clone(), gate: Gate::default() }))
    }

    /// Says how the stream comes: whether its events may be told apart.
    pub fn begin(&mut self, reading: &Reading) {
        self.gate.coded = !reading.is_open_stream();
    }

    /// Halves the slices of the rest of the stream, because nothing can pay such a one; false where
    /// they are as small as they may be.
    fn halve(&mut self) -> bool {
        let smaller: Quantities = self.sizes.iter().map(|size| (size / 2).max(MICRO)).collect();
        let is_less = smaller != self.sizes;
        self.sizes = smaller;
        is_less
    }

    /// Takes the next piece.
    pub fn push(&mut self, piece: Bytes) {
        self.gate.come.push_back(piece);
    }

    /// Reads on in what came, up to an event that is beyond what is `held`. What may pass is added
    /// to `passing`, and what tells that the answer is complete to `waiting`.
    pub fn next(
        &mut self,
        reading: &mut Reading,
        held: &[u64],
        passing: &mut VecDeque<Bytes>,
        waiting: &mut VecDeque<Bytes>,
    ) -> Next {
        self.gate.next(reading, held, passing, waiting)
    }

    /// Gives up an event that did not end: the body did.
    pub fn rest(&mut self) -> Option<Bytes> {
        self.gate.take_kept()
    }

    /// Whether what has passed ends with a whole event, so that another may follow it.
    pub fn may_end_cleanly(&self) -> bool {
        !self.gate.torn && !self.gate.coded
    }
}

impl Gate {
    fn next(
        &mut self,
        reading: &mut Reading,
        held: &[u64],
        passing: &mut VecDeque<Bytes>,
        waiting: &mut VecDeque<Bytes>,
    ) -> Next {
        if self.unpaid {
            if is_beyond(reading, held) {
                return Next::TopUp;
            }
            self.unpaid = false;
            self.end_event(passing);
            return Next::Pass;
        }
        let Some(mut piece) = self.come.pop_front() else { return Next::Read };
        let mut paid = 0;
        while paid < piece.len() {
            match reading.next(&piece[paid..]) {
                Fed::On => break,
                Fed::Event(end) if is_beyond(reading, held) => {
                    let rest = piece.split_off(paid + end);
                    if !rest.is_empty() {
                        self.come.push_front(rest);
                    }
                    self.kept.extend_from_slice(&piece.split_off(paid));
                    self.unpaid = true;
                    put(passing, piece);
                    return Next::Pass;
                }
                Fed::Event(end) => {
                    self.end_event(passing);
                    paid += end;
                }
                Fed::Done => {
                    // The rest waits, from the beginning of the event that says so.
                    let waits = piece.split_off(paid);
                    put(passing, piece);
                    waiting.extend(self.take_kept());
                    put(waiting, waits);
                    waiting.append(&mut self.come);
                    return Next::Pass;
                }
            }
        }
        let begun = piece.split_off(paid);
        put(passing, piece);
        self.keep(begun, passing);
        Next::Pass
    }

    /// An event is paid for: what was kept of it passes.
    fn end_event(&mut self, passing: &mut VecDeque<Bytes>) {
        if let Some(kept) = self.take_kept() {
            passing.push_back(kept);
        }
        self.torn = false;
    }

    /// Keeps the beginning of an event back, as long as it is none of an excessive length.
    fn keep(&mut self, begun: Bytes, passing: &mut VecDeque<Bytes>) {
        if self.kept.len() + begun.len() > MAX_KEPT {
            passing.extend(self.take_kept().into_iter().chain([begun]));
            self.torn = true;
        } else {
            self.kept.extend_from_slice(&begun);
        }
    }

    fn take_kept(&mut self) -> Option<Bytes> {
        (!self.kept.is_empty()).then(|| std::mem::take(&mut self.kept).into())
    }
}

/// Adds what is there.
fn put(pieces: &mut VecDeque<Bytes>, piece: Bytes) {
    if !piece.is_empty() {
        pieces.push_back(piece);
    }
}

/// Whether it is beyond what is held, as far as is known: where nobody can tell, it is.
fn is_beyond(reading: &Reading, held: &[u64]) -> bool {
    reading.is_lost() || reading.progress().zip(held).any(|(progress, held)| progress > *held)
}

/// Holds as many slices more as the stream's progress needs; where nothing can pay those, smaller
/// ones, and at last no more than what lets the waiting event pass. So the last credits of a seat
/// pay for events down to the last, with few records.
///
/// # Errors
/// What the waterfall refuses with, `unquotable` beyond what can be charged, `books_contended`,
/// `books_unavailable`; `already_resolved` where somebody else ended the charge, `upstream_failed`
/// where nobody can tell how far the stream came. Nothing more is held then.
pub async fn top_up<B: Books + 'static>(
    held: &mut Held<B>,
    reading: &Reading,
) -> Result<(), Refused> {
    if held.slices.is_none() {
        return Ok(());
    }
    if reading.is_lost() {
        let detail = "the backend's stream is encoded in a way that cannot be read";
        return Err(Refusal::new(Code::UpstreamFailed, detail).into());
    }
    let before = held.quoted.quantities.iter().zip(reading.progress());
    let least: Quantities = before.map(|(held, progress)| progress.max(*held)).collect();
    for _ in 0..=MAX_HALVINGS {
        let Some(slices) = &held.slices else { break };
        let slice = held_for(&held.quoted.quantities, reading.progress(), &slices.sizes);
        if slice == least {
            break;
        }
        match hold(held, reading, slice).await {
            Err(refused) if is_short(refused.refusal.code) => {}
            done => return done,
        }
        // What is held for one of several meters ahead of time could be what another one lacks.
        if !reading.moves_one() || !held.slices.as_mut().is_some_and(|slices| slices.halve()) {
            break;
        }
    }
    hold(held, reading, least).await
}

/// Whether less could be paid.
fn is_short(code: Code) -> bool {
    use Code::{NoActiveTerm, OverageCapReached, PoolExhausted, PoolLimitReached, SeatExhausted};
    matches!(
        code,
        SeatExhausted | NoActiveTerm | PoolLimitReached | PoolExhausted | OverageCapReached
    )
}

/// Holds so much in all, and records how far the stream came: that is charged if the gateway dies
/// (f03).
async fn hold<B: Books + 'static>(
    held: &mut Held<B>,
    reading: &Reading,
    quantities: Quantities,
) -> Result<(), Refused> {
    let Some(metered) = held.metered() else { return Ok(()) };
    let before = &held.quoted;
    let quote = before.again(metered, &quantities)?;
    let Some(price) = difference(&quote.price, &before.quote.price) else {
        held.quoted.quantities = quantities;
        return Ok(());
    };
    let slice = Quote { price, ..quote.clone() };
    let (known, left) = known(held, reading)?;
    let is_observed = held.is_observed();
    let mut view: Option<View> = None;
    for plans in 0..=MAX_PLANS {
        let planned = (view.as_ref(), plans);
        let (post, beyond) = waterfall::decide(&slice, &held.position(), planned, is_observed)?;
        let observed = match (&held.observed, beyond) {
            (Some(before), Some(beyond)) => Some(before.and(&beyond)),
            (before, beyond) => before.as_deref().copied().or(beyond),
        };
        let uncovered = observed.unwrap_or_default().uncovered;
        let now_held =
            HeldNote { cost: quote.price.cost, measures: quantities.to_vec(), uncovered };
        let captured = observed.map(|observed| Observed { uncovered: left, ..observed });
        let note = grown_note(now_held, captured.as_ref());
        match amend(held, &post, &known, &note).await? {
            Amended::Done(taken, after) => {
                waterfall::grow(&mut held.legs, &taken);
                held.standing.update(&after);
                held.observed = observed.map(Box::new);
                (held.quoted.quote, held.quoted.quantities) = (quote, quantities);
                return Ok(());
            }
            Amended::Short(balances) => view = Some(balances),
            Amended::Already(_) | Amended::Unknown => {
                let detail = "somebody else ended the charge of this stream";
                return Err(Refusal::new(Code::AlreadyResolved, detail).into());
            }
        }
    }
    // The last plan takes from nobody, or was refused.
    Err(Refusal::new(Code::Internal, "a post of nothing was not done").into())
}

/// What is held when each meter that came further than it was paid for has so many slices more
/// that it is paid for.
fn held_for(held: &[u64], progress: impl IntoIterator<Item = u64>, sizes: &[u64]) -> Quantities {
    let meters = held.iter().zip(progress).zip(sizes);
    meters
        .map(|((held, progress), size)| {
            let slices = progress.saturating_sub(*held).div_ceil(*size);
            held.saturating_add(slices.saturating_mul(*size))
        })
        .collect()
}

/// What a price has more than another one; `None` where that is nothing a seat would pay. It is
/// made up for by the slice after it, because the sum is exact then.
fn difference(price: &Price, before: &Price) -> Option<Price> {
    let cost = price.cost.micro().saturating_sub(before.cost.micro());
    let operations = price.operations.micro().saturating_sub(before.operations.micro());
    let (cost, operations) = (Credits::from_micro(cost)?, Operations::from_micro(operations)?);
    (cost != Credits::ZERO).then_some(Price { cost, operations })
}

/// What is captured if the gateway dies: what was delivered, which is held already. In observe mode
/// also what nobody pays of it.
fn known<B: Books + 'static>(held: &Held<B>, reading: &Reading) -> Result<(Known, Both), Refused> {
    let quoted = &held.quoted;
    let (quantities, all_told) = reading.within(&quoted.quantities);
    let price = match held.metered() {
        Some(metered) => quoted.again(metered, &quantities)?.price,
        None => quoted.quote.price,
    };
    let mut observed = held.observed.clone();
    let settlement = match &mut observed {
        Some(observed) => observed.settle(&held.legs, quoted.quote.pool, &price),
        None => waterfall::settle(&held.legs, &price),
    };
    // Of several meters at different prices, the pool may have paid the cheaper ones only.
    let uncovered = settlement.excess.map_or(0, |excess| excess.credits);
    let cost = Credits::from_micro(price.cost.micro().saturating_sub(uncovered));
    let flags = if all_told { Flags::default() } else { Flags::USAGE_MISSING };
    let memo =
        OutcomeMemo { cost: cost.unwrap_or_default(), measures: Some(quantities.to_vec()), flags };
    let left = observed.map(|observed| observed.uncovered).unwrap_or_default();
    Ok((Known { keep: settlement.keep, memo }, left))
}

async fn amend<B: Books + 'static>(
    held: &Held<B>,
    post: &Post,
    known: &Known,
    note: &[u8],
) -> Result<Amended, Refused> {
    let asked = Instant::now();
    let amending = {
        let position = held.position();
        let amendment = Amendment {
            extra: Some((&position.accounts, post)),
            known: Some(known),
            expires: None,
            names: &[],
            note: Some(note),
            answer: &[],
            now: held.worker.clock.now(),
        };
        held.worker.books.amend(held.charge, &amendment)
    };
    let amended = amending.await;
    let result = match &amended {
        Ok(Amended::Done(..)) => BooksResult::Done,
        Ok(_) => BooksResult::Short,
        Err(_) => BooksResult::Failed,
    };
    held.worker.meters.books(BooksOperation::Hold, result, asked.elapsed());
    amended.map_err(|error| unavailable(&error))
}

#[cfg(test)]
mod tests;
