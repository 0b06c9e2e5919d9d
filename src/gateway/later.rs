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
use crate::core::note::{self, HoldNote, JobNote};
use crate::core::price::Price;
use crate::core::record::instant;
use crate::core::refusal::{Code, Refusal};
use crate::core::waterfall::{self, Excess, MAX_PLANS, Position, Settlement};
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
        note: &[u8],
        now: Timestamp,
    ) -> Result<Option<ChargeDocument>, Refused> {
        let (price, mut memo) = self.price(ending)?;
        let held: Legs = self.taken();
        let Settlement { keep, mut excess } = match ending {
            Ending::Void => Settlement { keep: SmallVec::new(), excess: None },
            Ending::Whole | Ending::Missing => {
                Settlement { keep: held.iter().map(|leg| leg.amount).collect(), excess: None }
            }
            Ending::Used(_) | Ending::Cost(_) => waterfall::settle(&held, &price),
        };
        let state = if *ending == Ending::Void { State::Voided } else { State::Captured };
        let snapshot = Arc::clone(&worker.live.load());
        let org = snapshot.orgs.get(self.memo.org);
        let position = org.and_then(|org| self.position(&snapshot, org));
        if excess.is_some() && position.is_none() {
            // Who would owe it is gone: there is no account that could show it.
            tracing::error!(charge = %self.open.charge, "an excess of somebody who is gone");
            excess = None;
        }
        let (mut known, mut plans): (Option<View>, usize) = (None, 0);
        let extra = loop {
            let post = excess.as_ref().zip(position.as_ref()).map(|(excess, position)| {
                (&position.accounts[..], self.pay(excess, position, known.as_ref(), plans))
            });
            let extra = post.as_ref().map(|(accounts, post)| (*accounts, post));
            let resolution =
                Resolution { state, keep: &keep, extra, now, memo: &memo, note, answer: &[] };
            match settle::resolve(worker, self.open.charge, &resolution).await {
                Ok(Resolved::Done(extra, _)) => break extra,
                Ok(Resolved::Short(view)) if plans < MAX_PLANS => {
                    (known, plans) = (Some(view), plans + 1);
                }
                Ok(_) => return Ok(None),
                // The excess does not fit into its accounts: the hold is captured all the same.
                Err(BooksError::Range) if excess.is_some() => {
                    tracing::error!(charge = %self.open.charge, "an excess is beyond what accounts hold");
                    excess = None;
                    memo.cost = self.memo.price.cost;
                }
                Err(error) => return Err(unavailable(&error)),
            }
        };
        let legs = self.kept(&keep, &extra, position.as_ref());
        self.count(worker, org, state, &legs);
        // To the microsecond, as records have it.
        let at = instant(now.as_microsecond());
        Ok(Some(self.document(Some((state, at, memo)), &legs)))
    }

    /// The charge as long as it is open.
    pub fn open_document(&self) -> ChargeDocument {
        self.document(None, &self.open_legs())
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

    fn pay(
        &self,
        excess: &Excess,
        position: &Position<'_>,
        known: Option<&View>,
        plans: usize,
    ) -> Post {
        if plans == MAX_PLANS {
            return waterfall::owe(excess, self.memo.pool, position);
        }
        let nothing = View::new(0);
        waterfall::plan_excess(excess, self.memo.pool, position, known.unwrap_or(&nothing))
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
        legs: &[Line],
    ) -> ChargeDocument {
        let record = ChargeRecord {
            id: self.open.charge,
            held_at: self.open.held_at,
            expires: self.open.expires,
            memo: self.memo.clone(),
            resolved,
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
        record.document(leg_documents(&lines, record.cost()))
    }

    /// Counts it with the org: under the route that it was made on, or else what was captured under
    /// one that meters the same feature. The end of a job is nobody's request.
    fn count<B: Books>(
        &self,
        worker: &Worker<B>,
        org: Option<&Arc<Org>>,
        state: State,
        legs: &[Line],
    ) {
        let Some(org) = org else { return };
        let meters = worker.meters.org(&org.id);
        let captured = state == State::Captured;
        let outcome = if captured { Outcome::Captured } else { Outcome::Voided };
        let route = worker.routes.named(self.memo.route, self.memo.feature);
        let status = if self.note.job.is_none() { Some(200) } else { None };
        meters.request(route, outcome, status);
        if captured {
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

/// Counts what a charge took that ended by itself, captured whole.
pub fn count_captured<B: Books>(worker: &Worker<B>, open: &OpenCharge) {
    let Ok(later) = Later::read(open) else { return };
    let snapshot = worker.live.load();
    if let Some(org) = snapshot.orgs.get(later.memo.org) {
        later.count_legs(worker, org, &later.open_legs());
    }
}

fn is_named(key: &Arc<Key>, org: &Org, id: &str) -> bool {
    key.org == org.id && key.id.as_str() == id
}
