//! Charges that are settled by somebody who did not make them: all that is needed is in the
//! books' own records, so it does not matter which process made the hold, or when.

use std::sync::Arc;

use jiff::Timestamp;

use super::Refused;
use super::hold::unavailable;
use super::settle;
use super::worker::Worker;
use crate::books::{Books, BooksError, OpenCharge, Resolution, Resolved};
use crate::core::account::{AccountKind, LegKind, Legs, Slot, Taken};
use crate::core::amount::Credits;
use crate::core::charge::{
    ChargeDocument, ChargeRecord, Flags, HoldMemo, LegLine, OutcomeMemo, State, leg_documents,
};
use crate::core::note::{self, HoldNote, JobNote, OutcomeNote};
use crate::core::record::instant;
use crate::core::refusal::{Code, Refusal};
use crate::core::waterfall::{Observed, Position, Settling};
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

    /// What an ending captures, and what the ledger should remember of it beside its cost.
    fn begin(&self, ending: &Ending) -> Result<(Settling, OutcomeMemo), Refusal> {
        let beyond = || Refusal::new(Code::Unquotable, "the cost is beyond what can be charged");
        let mut memo = OutcomeMemo::default();
        let price = match ending {
            Ending::Void => return Ok((Settling::default(), memo)),
            Ending::Whole => return Ok((self.whole(), memo)),
            Ending::Missing => {
                memo.flags = Flags::USAGE_MISSING;
                return Ok((self.whole(), memo));
            }
            Ending::Cost(cost) => self.memo.price.of_cost(*cost),
            Ending::Used(quantities) => {
                memo.measures = Some(quantities.clone());
                self.note.rates.as_ref().and_then(|rates| rates.price(quantities))
            }
        };
        let price = price.ok_or_else(beyond)?;
        Ok((Settling::used(&self.taken(), &price, self.memo.pool, self.observed()), memo))
    }

    fn whole(&self) -> Settling {
        let cost = self.note.held.as_ref().map_or(self.memo.price.cost, |held| held.cost);
        Settling::whole(&self.taken(), cost, self.observed())
    }

    /// Gives up an excess that nobody can pay or owe: the hold is captured as it is, flagged.
    fn without_excess(&self, why: &str) -> (Settling, OutcomeMemo) {
        tracing::error!(charge = %self.open.charge, "an excess {why}");
        (self.whole(), OutcomeMemo { flags: Flags::USAGE_MISSING, ..OutcomeMemo::default() })
    }

    fn observed(&self) -> Option<Observed> {
        self.note.observed.as_ref().map(Observed::from)
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
        let (mut settling, mut memo) = self.begin(ending)?;
        let state = if *ending == Ending::Void { State::Voided } else { State::Captured };
        let snapshot = Arc::clone(&worker.live.load());
        let org = snapshot.orgs.get(self.memo.org);
        let position = org.and_then(|org| self.position(&snapshot, org));
        if !settling.has_debtor(position.as_ref()) {
            // There is no account that could show it.
            (settling, memo) = self.without_excess("of somebody who is gone");
        }
        let accounts = position.as_ref().map(|position| &position.accounts[..]);
        if let Some(accounts) = accounts.filter(|_| settling.has_excess()) {
            // Without them it is planned once more.
            if let Ok(seen) = worker.books.balances(accounts).await {
                settling = settling.knowing(&seen);
            }
        }
        let (extra, is_recorded) = loop {
            memo.cost = settling.cost;
            let (owed, uncovered) = settling.at_last().post(position.as_ref());
            note.uncovered = uncovered.map(|observed| observed.uncovered);
            let plain = Resolution::plain(state, &settling.keep, now, &memo);
            let encoded = note::encode(&note);
            let extra = accounts.zip(owed.as_ref());
            let last = Resolution { extra, note: &encoded, ..plain.clone() };
            let (post, observed) = settling.post(position.as_ref());
            note.uncovered = observed.map(|observed| observed.uncovered);
            let encoded = note::encode(&note);
            let resolution = Resolution {
                extra: accounts.zip(post.as_ref()),
                note: &encoded,
                last: post.is_some().then_some(&last),
                ..plain
            };
            match settle::resolve(worker, self.open.charge, &resolution).await {
                Ok(Resolved::Done(extra, _)) => break (extra, false),
                Ok(Resolved::Recorded) => break (Legs::new(), true),
                Ok(Resolved::Short(view)) if settling.may_be_short() => settling.short(view),
                Ok(_) => return Ok(None),
                Err(BooksError::Range) if settling.has_excess() => {
                    (settling, memo) = self.without_excess("is beyond what accounts hold");
                }
                Err(error) => return Err(unavailable(&error)),
            }
        };
        let legs = self.kept(&settling.keep, &extra, position.as_ref());
        let uncovered = note.uncovered.unwrap_or_default();
        let observed = self.observed().map(|observed| Observed { uncovered, ..observed });
        self.count(worker, org, (state, observed), &legs);
        if is_recorded {
            // What more there is to it is known when the books have it.
            return Ok(Some(self.open_document()));
        }
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

/// Counts a charge that an administrator voided, as it was known last. One that would not have
/// ended by itself has a request, which finds it resolved and counts that. Where that request is
/// gone, because it could not record its end, it has counted it as held, and nothing is counted
/// here: nobody knows which requests are gone.
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
