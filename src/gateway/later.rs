//! Charges that are settled by somebody who did not make them: all that is needed is in the
//! books' own records, so it does not matter which process made the hold, or when.

use std::sync::Arc;

use jiff::Timestamp;
use smallvec::SmallVec;

use super::Refused;
use super::hold::unavailable;
use super::settle;
use super::worker::Worker;
use crate::books::{Books, BooksError, OpenCharge, Resolution, Resolved};
use crate::core::account::{AccountKind, LegKind, Legs, Post, Slot, Taken, View};
use crate::core::amount::Credits;
use crate::core::charge::{
    ChargeDocument, ChargeRecord, Flags, HoldMemo, LegLine, OutcomeMemo, State, leg_documents,
};
use crate::core::note::{self, HoldNote, JobNote, OutcomeNote};
use crate::core::price::Price;
use crate::core::record::instant;
use crate::core::refusal::{Code, Refusal};
use crate::core::waterfall::{self, Excess, MAX_PLANS, Observed, Position, Settlement};
use crate::directory::snapshot::{Key, KeyKind, Org, Payer, Snapshot};
use crate::telemetry::Outcome;

/// How a charge ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing is charged.
    Void,
    /// What was held is charged.
    Whole,
    /// What was used is charged, in millionths by meter.
    Used(Vec<u64>),
    /// So many credits are charged.
    Cost(Credits),
    /// What was used should have been told and was not: what was held is charged, flagged (D30).
    Missing,
}

/// The account of a leg, what runs out there, what the leg stands for, and how much it is.
type Line = (String, AccountKind, LegKind, u64);

/// An open charge, and what its records say.
pub struct Later<'a> {
    open: &'a OpenCharge,
    memo: HoldMemo<'a>,
    note: HoldNote,
}

impl<'a> Later<'a> {
    /// Reads an open charge.
    ///
    /// # Errors
    /// `books_unavailable` where its memo cannot be read.
    pub fn read(open: &'a OpenCharge) -> Result<Self, Refused> {
        let memo = postcard::from_bytes(&open.memo).map_err(|error| {
            let what = format!("the memo of charge {}: {error}", open.charge);
            unavailable(&BooksError::Unavailable(what))
        })?;
        Ok(Self { open, memo, note: note::decode(&open.note) })
    }

    /// What is known of who asked for what.
    pub fn memo(&self) -> &HoldMemo<'a> {
        &self.memo
    }

    /// Where the outcome is told, where the charge is a job's.
    pub fn job(&self) -> Option<&JobNote> {
        self.note.job.as_ref()
    }

    /// The price of an ending, and what the ledger should remember of it.
    fn price(&self, ending: &Ending) -> Result<(Price, OutcomeMemo), Refusal> {
        let held = self.memo.price;
        let beyond = || Refusal::new(Code::Unquotable, "the cost is beyond what can be charged");
        let mut flags = Flags::default();
        let (price, measures) = match ending {
            Ending::Void => return Ok((Price::default(), OutcomeMemo::default())),
            Ending::Whole => (held, None),
            Ending::Missing => {
                flags = Flags::USAGE_MISSING;
                (held, None)
            }
            Ending::Cost(cost) => (held.of_cost(*cost).ok_or_else(beyond)?, None),
            Ending::Used(quantities) => {
                let price = self.note.rates.as_ref().and_then(|rates| rates.price(quantities));
                (price.ok_or_else(beyond)?, Some(quantities.clone()))
            }
        };
        Ok((price, OutcomeMemo { cost: price.cost, measures, flags }))
    }

    /// Resolves the charge; `None` where somebody else did, or nobody holds it any more.
    ///
    /// # Errors
    /// `unquotable` for what has no price, `books_unavailable`.
    pub async fn end<B: Books + 'static>(
        &self,
        worker: &Worker<B>,
        ending: &Ending,
        mut note: OutcomeNote,
        now: Timestamp,
    ) -> Result<Option<ChargeDocument>, Refused> {
        let (price, mut memo) = self.price(ending)?;
        let held: Legs = self.taken();
        let before = self.note.observed.as_ref().map(Observed::from);
        let mut observed = before.filter(|_| *ending != Ending::Void);
        let Settlement { keep, mut excess } = match (ending, &mut observed) {
            (Ending::Void, _) => Settlement { keep: SmallVec::new(), excess: None },
            (Ending::Whole | Ending::Missing, _) => {
                Settlement { keep: held.iter().map(|leg| leg.amount).collect(), excess: None }
            }
            (_, None) => waterfall::settle(&held, &price),
            (_, Some(observed)) => observed.settle(&held, self.memo.pool, &price),
        };
        let state = if *ending == Ending::Void { State::Voided } else { State::Captured };
        let snapshot = Arc::clone(&worker.live.load());
        let org = snapshot.orgs.get(self.memo.org);
        let position = org.and_then(|org| self.position(&snapshot, org));
        if excess.is_some() && position.is_none() && observed.is_none() {
            // Who would owe it is gone: there is no account that could show it.
            tracing::error!(charge = %self.open.charge, "an excess of somebody who is gone");
            excess = None;
        }
        let (mut known, mut plans): (Option<View>, usize) = (None, 0);
        let extra = loop {
            let known_now = (known.as_ref(), plans);
            let (post, paid) = match &excess {
                None => (None, observed),
                Some(excess) => self.pay(excess, position.as_ref(), known_now, observed),
            };
            note.uncovered = paid.map(|observed| observed.uncovered);
            let encoded = note::encode(&note);
            let accounts = position.as_ref().map(|position| &position.accounts[..]);
            let extra = accounts.zip(post.as_ref());
            let resolution = Resolution {
                state,
                keep: &keep,
                extra,
                now,
                memo: &memo,
                note: &encoded,
                answer: &[],
            };
            match settle::resolve(worker, self.open.charge, &resolution).await {
                Ok(Resolved::Done(extra, _)) => break extra,
                Ok(Resolved::Short(view)) if plans < MAX_PLANS => {
                    (known, plans) = (Some(view), plans + 1);
                }
                Ok(_) => return Ok(None),
                // The excess does not fit into its accounts: the hold is captured all the same.
                Err(BooksError::Range) if excess.is_some() => {
                    tracing::error!(charge = %self.open.charge, "an excess is beyond what accounts hold");
                    (excess, observed) = (None, before);
                    memo.cost = self.memo.price.cost;
                }
                Err(error) => return Err(unavailable(&error)),
            }
        };
        let legs = self.kept(&keep, &extra, position.as_ref());
        let observed = before
            .map(|before| Observed { uncovered: note.uncovered.unwrap_or_default(), ..before });
        self.count(worker, org, (state, observed), &legs);
        // To the microsecond, as records have it.
        let at = instant(now.as_microsecond());
        Ok(Some(self.document(Some((state, at, memo)), note, &legs)))
    }

    /// The charge as long as it is open.
    pub fn open_document(&self) -> ChargeDocument {
        self.document(None, OutcomeNote::default(), &self.open_legs())
    }

    fn open_legs(&self) -> Vec<Line> {
        let legs = self.open.legs.iter();
        legs.map(|leg| (leg.account.clone(), leg.account_kind, leg.kind, leg.amount)).collect()
    }

    fn taken(&self) -> Legs {
        let leg = |(at, leg): (usize, &crate::books::OpenLeg)| Taken {
            slot: at as Slot,
            kind: leg.kind,
            amount: leg.amount,
        };
        self.open.legs.iter().enumerate().map(leg).collect()
    }

    /// Who pays an excess: the accounts of the hold's own cycle and term (D31).
    fn position<'s>(&'s self, snapshot: &'s Snapshot, org: &'s Org) -> Option<Position<'s>> {
        let payer = match self.memo.user {
            Some(user) => Payer::User(org.users.get(user)?),
            None => {
                let own = |key: &&Arc<Key>| is_named(key, org, self.memo.key);
                let key = snapshot.keys.values().find(own)?;
                let KeyKind::Principal(access) = &key.kind else { return None };
                Payer::Principal(key, access)
            }
        };
        let moment = org.moment_at(self.open.held_at);
        Some(org.position(payer, &moment, self.open.held_at))
    }

    /// How an excess is paid: by those who can, and what nobody can is owed, or uncovered where
    /// the charge is one of observe mode (D28).
    fn pay(
        &self,
        excess: &Excess,
        position: Option<&Position<'_>>,
        (known, plans): (Option<&View>, usize),
        observed: Option<Observed>,
    ) -> (Option<Post>, Option<Observed>) {
        let (nothing, pool) = (View::new(0), self.memo.pool);
        let (view, last) = (known.unwrap_or(&nothing), plans == MAX_PLANS);
        if let Some(observed) = observed {
            let from = position.filter(|_| !last).map(|position| (position, view));
            let (post, observed) = observed.pay(excess, pool, from);
            return (Some(post), Some(observed));
        }
        let post = position.map(|position| match last {
            true => waterfall::owe(excess, pool, position),
            false => waterfall::plan_excess(excess, pool, position, view),
        });
        (post, None)
    }

    /// What was charged, by account and kind.
    fn kept(&self, keep: &[u64], extra: &[Taken], position: Option<&Position<'_>>) -> Vec<Line> {
        let kept = keep.iter().copied().chain(std::iter::repeat(0));
        let mut legs: Vec<_> = (self.open.legs.iter().zip(kept))
            .map(|(leg, amount)| (leg.account.clone(), leg.account_kind, leg.kind, amount))
            .collect();
        for leg in extra {
            let Some(account) = position.and_then(|p| p.accounts.get(usize::from(leg.slot))) else {
                continue;
            };
            let (name, kind) = (account.name.to_string(), account.key.kind);
            match legs.iter_mut().find(|known| (&known.0, known.2) == (&name, leg.kind)) {
                Some(known) => known.3 += leg.amount,
                None => legs.push((name, kind, leg.kind, leg.amount)),
            }
        }
        legs
    }

    fn document(
        &self,
        resolved: Option<(State, Timestamp, OutcomeMemo)>,
        note: OutcomeNote,
        legs: &[Line],
    ) -> ChargeDocument {
        let record = ChargeRecord {
            id: self.open.charge,
            held_at: self.open.held_at,
            expires: self.open.expires,
            memo: self.memo.clone(),
            resolved,
            notes: (self.note.clone(), note),
        };
        let lines: Vec<LegLine<'_>> = legs
            .iter()
            .map(|(account, account_kind, kind, amount)| LegLine {
                account,
                account_kind: *account_kind,
                kind: *kind,
                amount: *amount,
            })
            .collect();
        record.document(leg_documents(&lines, record.covered()))
    }

    /// Counts it with the org: under the route that it was made on, or else what was captured under
    /// one that meters the same feature. The end of a job is nobody's request.
    fn count<B: Books>(
        &self,
        worker: &Worker<B>,
        org: Option<&Arc<Org>>,
        (state, observed): (State, Option<Observed>),
        legs: &[Line],
    ) {
        let Some(org) = org else { return };
        let meters = worker.meters.org(&org.id);
        let captured = state == State::Captured;
        let outcome = if captured { settle::outcome(observed.as_ref()) } else { Outcome::Voided };
        let route = worker.routes.named(self.memo.route, self.memo.feature);
        let status = if self.note.job.is_none() { Some(200) } else { None };
        meters.request(route, outcome, status);
        if captured {
            if let Some(observed) = observed {
                meters.uncovered(observed.uncovered.operations.micro());
            }
            self.count_legs(worker, org, legs);
        }
    }

    fn count_legs<B: Books>(&self, worker: &Worker<B>, org: &Org, legs: &[Line]) {
        let sum = |kind| legs.iter().filter(|leg| leg.2 == kind).map(|leg| leg.3).sum();
        let (seat, pool) = (sum(LegKind::Licence), sum(LegKind::Pool));
        let routes = &worker.routes;
        let route = routes.named(self.memo.route, self.memo.feature);
        let route = route.or_else(|| routes.of_feature(self.memo.feature));
        worker.meters.org(&org.id).captured(route, seat, pool, sum(LegKind::Overage));
    }
}

/// Counts a charge that ended by itself, free or captured whole. It is nobody's request.
pub fn count_expired<B: Books>(worker: &Worker<B>, open: &OpenCharge, state: State) {
    let Ok(later) = Later::read(open) else { return };
    let snapshot = worker.live.load();
    let Some(org) = snapshot.orgs.get(later.memo.org) else { return };
    let meters = worker.meters.org(&org.id);
    let route = worker.routes.named(later.memo.route, later.memo.feature);
    meters.request(route, Outcome::InDoubt, None);
    if state == State::Captured {
        later.count_legs(worker, org, &later.open_legs());
        if let Some(observed) = &later.note.observed {
            meters.uncovered(observed.uncovered.operations.micro());
        }
    }
}

/// Counts a charge that an administrator voided. One that would not have ended by itself has a
/// request, which finds it resolved and counts that.
pub fn count_voided<B: Books>(worker: &Worker<B>, charge: &ChargeDocument) {
    let snapshot = worker.live.load();
    let Some(org) = snapshot.orgs.get(charge.org.as_str()) else { return };
    if charge.expires_at.is_some() {
        let route = worker.routes.named(&charge.route, &charge.feature);
        worker.meters.org(&org.id).request(route, Outcome::Voided, None);
    }
}

fn is_named(key: &Arc<Key>, org: &Org, id: &str) -> bool {
    key.org == org.id && key.id.as_str() == id
}
