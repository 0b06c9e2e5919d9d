//! What came of a phase on a lane.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::Spec;
use super::exchange::Outcome;
use crate::exact::Amount;
use crate::http::Receipt;

/// The longest latency that is told apart, in microseconds: two minutes.
const LONGEST: u64 = 120_000_000;
/// How many charges are kept to be looked up.
const SAMPLE: usize = 64;

/// How many requests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Answered as they should be.
    pub served: u64,
    /// Refused by the gateway: 4xx.
    pub refused: u64,
    /// The gateway could not serve: 5xx.
    pub unavailable: u64,
    /// The backend failed, as it was told to.
    pub planted: u64,
    /// Answered with something that is no answer.
    pub wrong: u64,
    /// Sent, and nobody knows.
    pub unknown: u64,
    /// Not sent: there was no connection.
    pub unsent: u64,
    /// Due, and not sent in the phase and some time after it.
    pub dropped: u64,
}

/// A charge to be looked up.
#[derive(Clone, Copy, Debug)]
pub struct Charge {
    /// Its id.
    pub id: [u8; 36],
    /// What the receipt says that it cost; nothing where it was not final.
    pub cost: Option<Amount>,
    /// Whose.
    pub user: u64,
}

/// One second of a phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Second {
    /// Served answers.
    pub served: u64,
    /// Refusals.
    pub refused: u64,
    /// All else.
    pub failed: u64,
    /// Latency of what was served, in microseconds.
    pub p50_us: u64,
    /// And of all but the slowest in a hundred.
    pub p99_us: u64,
    /// The slowest.
    pub max_us: u64,
}

/// What is counted.
pub struct Stats {
    /// When it began, and how long it took until all was answered.
    pub began: Instant,
    /// How long it took until all was answered.
    pub took: Duration,
    /// How many were sent, or tried.
    pub sent: u64,
    /// How they ended.
    pub counts: Counts,
    /// What receipts say in all that are final.
    pub receipts: Receipt,
    /// Receipts that are not final.
    pub held: u64,
    /// What all that was served has to cost.
    pub cost: Amount,
    /// What those may have cost of which nobody knows.
    pub unknown_cost: Amount,
    /// Refusals by code.
    pub codes: Vec<(String, u64)>,
    /// Latency of what was served, in microseconds from the intended instant.
    pub served: Histogram<u64>,
    /// Of refusals.
    pub refused: Histogram<u64>,
    /// Until the first byte, of what was served.
    pub first: Histogram<u64>,
    /// Second by second, by when the answer was whole.
    pub seconds: Vec<Second>,
    /// Some charges.
    pub charges: Vec<Charge>,
    /// The first thing that was wrong, in words.
    pub wrong: Option<String>,
    second: Histogram<u64>,
}

impl Stats {
    /// Nothing yet.
    ///
    /// # Errors
    /// Never: the bounds are right.
    pub fn new() -> anyhow::Result<Self> {
        let histogram = |digits| Histogram::new_with_bounds(1, LONGEST, digits);
        Ok(Self {
            began: Instant::now(),
            took: Duration::ZERO,
            sent: 0,
            counts: Counts::default(),
            receipts: Receipt::default(),
            held: 0,
            cost: Amount::default(),
            unknown_cost: Amount::default(),
            codes: Vec::with_capacity(16),
            served: histogram(3)?,
            refused: histogram(3)?,
            first: histogram(3)?,
            seconds: Vec::with_capacity(3700),
            charges: Vec::with_capacity(SAMPLE),
            wrong: None,
            second: histogram(2)?,
        })
    }

    pub(super) fn begin(&mut self, at: Instant) {
        self.began = at;
        self.seconds.push(Second::default());
    }

    pub(super) fn end(&mut self, now: Instant) {
        self.close_second();
        self.took = now.saturating_duration_since(self.began);
    }

    /// Counts an answer, or what came instead.
    pub(super) fn book(
        &mut self,
        spec: &Spec,
        user: u64,
        intended: Instant,
        first: Option<Instant>,
        now: Instant,
        outcome: &Outcome,
    ) {
        self.turn_to(now);
        let took = micros(now, intended);
        let cost = spec.kind.cost(user, spec.events);
        let second = self.seconds.last_mut();
        match outcome {
            Outcome::Served { receipt } => {
                self.counts.served += 1;
                self.cost = self.cost.plus(cost);
                self.served.saturating_record(took);
                self.second.saturating_record(took);
                self.first.saturating_record(first.map_or(took, |first| micros(first, intended)));
                second.into_iter().for_each(|second| second.served += 1);
                if let Some(receipt) = receipt {
                    self.keep(receipt, user);
                }
                return;
            }
            Outcome::Refused { status, .. } if *status < 500 => {
                self.counts.refused += 1;
                self.refused.saturating_record(took);
                second.into_iter().for_each(|second| second.refused += 1);
                return;
            }
            Outcome::Refused { .. } => self.counts.unavailable += 1,
            Outcome::Planted => self.counts.planted += 1,
            Outcome::Wrong(why, status) => {
                self.counts.wrong += 1;
                self.wrong.get_or_insert_with(|| format!("status {status}, {why}"));
            }
            Outcome::Unknown(why) => {
                self.counts.unknown += 1;
                self.unknown_cost = self.unknown_cost.plus(cost);
                self.wrong.get_or_insert_with(|| (*why).to_owned());
            }
            Outcome::Unsent => self.counts.unsent += 1,
        }
        second.into_iter().for_each(|second| second.failed += 1);
    }

    /// Counts a request that had no connection in time. Its latency is at least this, and it is
    /// counted, because to leave it out would make a system look fast that is not there.
    pub(super) fn dropped(&mut self, intended: Instant, now: Instant) {
        self.counts.dropped += 1;
        self.served.saturating_record(micros(now, intended));
    }

    pub(super) fn code(&mut self, code: &str) {
        match self.codes.iter_mut().find(|(known, _)| known == code) {
            Some((_, count)) => *count += 1,
            // Requests make no names: there are as many as the gateway has codes.
            None => self.codes.push((code.to_owned(), 1)),
        }
    }

    fn keep(&mut self, receipt: &Receipt, user: u64) {
        if receipt.captured {
            let sum = &mut self.receipts;
            sum.cost = sum.cost.plus(receipt.cost);
            sum.seat = sum.seat.plus(receipt.seat);
            sum.pool = sum.pool.plus(receipt.pool);
            sum.overage = sum.overage.plus(receipt.overage);
        } else {
            self.held += 1;
        }
        let cost = receipt.captured.then_some(receipt.cost);
        let charge = Charge { id: receipt.charge, cost, user };
        let served = self.counts.served;
        if self.charges.len() < SAMPLE {
            self.charges.push(charge);
        } else if served.is_multiple_of(97) {
            self.charges[(served / 97) as usize % SAMPLE] = charge;
        }
    }

    fn turn_to(&mut self, now: Instant) {
        let second = now.saturating_duration_since(self.began).as_secs() as usize;
        while self.seconds.len() <= second {
            self.close_second();
            self.seconds.push(Second::default());
        }
    }

    fn close_second(&mut self) {
        if let Some(second) = self.seconds.last_mut()
            && !self.second.is_empty()
        {
            second.p50_us = self.second.value_at_quantile(0.5);
            second.p99_us = self.second.value_at_quantile(0.99);
            second.max_us = self.second.max();
            self.second.reset();
        }
    }
}

fn micros(now: Instant, then: Instant) -> u64 {
    now.saturating_duration_since(then).as_micros() as u64
}

/// Points of a percentile curve: the share of requests that are faster, and the latency.
pub fn percentiles(histogram: &Histogram<u64>) -> Vec<(f64, u64)> {
    let shares = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999];
    // A percentile with fewer than one request above it is the largest of them once more.
    let last = 1.0 - 1.0 / histogram.len().max(1) as f64;
    let known = shares.into_iter().filter(|share| *share <= last);
    known.map(|share| (share, histogram.value_at_quantile(share))).collect()
}
