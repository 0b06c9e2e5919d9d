//! Holds: a charge is planned and posted until the books did it or the waterfall refuses, and
//! is then owned by a [`Held`] that cannot be dropped without settling it (D33).

use std::sync::Arc;
use std::time::Instant;

use http::header::{HeaderName, HeaderValue};
use jiff::Timestamp;

use super::admit::Permit;
use super::answers::Draft;
use super::dress::{RATE_LIMIT, RATE_LIMIT_POLICY, TOLLGATE_RECEIPT};
use super::identify::Caller;
use super::outgoing::Upload;
use super::quote::Quoted;
use super::route::{Metered, Route};
use super::slices::Slices;
use super::span::Context;
use super::worker::Worker;
use super::{Refused, once};
use crate::books::{
    Ask, Books, BooksError, InDoubt, KnownCharge, Lasting, Once, Posted, Resolution,
};
use crate::core::account::{LegKind, Legs, Slot, View};
use crate::core::charge::{OutcomeMemo, State};
use crate::core::ids::{ChargeId, Id};
use crate::core::note::{self, HeldNote, HoldNote};
use crate::core::receipt::{self, Receipt};
use crate::core::refusal::{Code, Refusal};
use crate::core::waterfall::{self, MAX_PLANS, Observed, PoolAccess, Position};
use crate::directory::snapshot::{Mode, Moment};
use crate::telemetry::{BooksOperation, BooksResult, Outcome};

/// A charge that is held, and everything its settlement needs. Whatever becomes of the request,
/// dropping this resolves the charge: it is armed before the books are asked, so that a client
/// that vanishes during the call still voids (f06).
pub struct Held<B: Books + 'static> {
    /// Whose books hold it.
    pub worker: Arc<Worker<B>>,
    /// Its id.
    pub charge: ChargeId,
    /// Who asked.
    pub caller: Caller,
    /// The route that was priced.
    pub route: Arc<Route>,
    /// The price.
    pub quoted: Quoted,
    /// The cycle and term it belongs to (D7).
    pub moment: Arc<Moment>,
    /// When it was held.
    pub now: Timestamp,
    /// When it was told to be held, once it was.
    pub told: Option<Instant>,
    /// What was taken.
    pub legs: Legs,
    /// What is left, for receipts.
    pub standing: Standing,
    /// The balances it was taken from, right after; an excess is planned on them.
    pub seen: View,
    /// Whether the request's body came whole.
    pub upload: Upload,
    /// The client takes trailers.
    pub takes_trailers: bool,
    /// Where what is done for it is traced.
    pub spans: Context,
    /// How far it came.
    pub stage: Stage,
    /// The key it is made under (D35).
    pub once: Option<Once>,
    /// Its answer, where that is kept for who asks again under the key.
    pub draft: Option<Box<Draft>>,
    /// What would have been refused of it, or is not paid by anybody, in observe mode (D28).
    pub observed: Option<Box<Observed>>,
    /// How it is topped up, where it is a slice of what a stream may come to.
    pub slices: Option<Box<Slices>>,
    /// Its place among the requests in flight: work that goes on for a client that left still
    /// fills it.
    _permit: Arc<Permit>,
}

/// How far a charge came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing was sent to the backend.
    Held,
    /// The backend may have worked, nothing was delivered, and whoever leaves now cancels (D33).
    Cancellable,
    /// The books failed at the hold, and may have made it all the same. Its request is refused,
    /// and counts as that.
    Refused,
    /// The backend may have worked.
    Forwarded,
    /// The books were asked to resolve it, or to keep it for who sees its job's end.
    Resolved,
}

/// What a caller has left after the last step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing {
    licences: Slot,
    pool_slot: Option<Slot>,
    /// Credits left and granted; `None` without a seat.
    seat: Option<(u64, u64)>,
    /// Operations left; `None` without pool access.
    pool: Option<u64>,
}

impl Standing {
    fn new(position: &Position<'_>) -> Self {
        let pool_slot = match &position.pool {
            PoolAccess::Open(side) => Some(side.pool),
            _ => None,
        };
        Self {
            licences: position.licences,
            pool_slot,
            seat: position.overdraft.map(|_| (0, 0)),
            pool: pool_slot.map(|_| 0),
        }
    }

    /// Takes over what a later step returned.
    pub fn update(&mut self, view: &View) {
        let licences = 0..self.licences;
        let seat = licences.into_iter().try_fold((0_u64, 0_u64), |(left, granted), slot| {
            let balance = view.get(slot)?;
            Some((
                left.saturating_add(balance.available()),
                granted.saturating_add(balance.granted()),
            ))
        });
        if let (Some(known), Some(seat)) = (&mut self.seat, seat) {
            *known = seat;
        }
        let pool = self.pool_slot.and_then(|slot| view.get(slot));
        if let Some(balance) = pool {
            self.pool = Some(balance.available());
        }
    }
}

/// What is to be held.
pub struct Wanted<'a> {
    /// Who asks.
    pub caller: Caller,
    /// The route that was priced.
    pub route: Arc<Route>,
    /// The price.
    pub quoted: Quoted,
    /// The key it is made under, if any.
    pub once: Option<Once>,
    /// When it was priced.
    pub now: Timestamp,
    /// The request's id, where it has one of its own.
    pub request_id: Option<&'a HeaderValue>,
}

/// What became of it.
pub enum Holding<B: Books + 'static> {
    /// It is held.
    Made(Box<Held<B>>),
    /// Nothing is held: another charge has its key (D35).
    Known(Box<Held<B>>, KnownCharge),
}

/// Holds the price of a request.
///
/// # Errors
/// Refusals of the waterfall (402, or 403 for a principal without pool access), `rate_limited`
/// where no more keys are remembered, `books_contended` and `books_unavailable`.
pub async fn hold<B: Books + 'static>(
    worker: &Arc<Worker<B>>,
    permit: &Arc<Permit>,
    wanted: Wanted<'_>,
) -> Result<Holding<B>, Refused> {
    let Wanted { caller, route, quoted, once, now, request_id } = wanted;
    let moment = caller.org.moment(now);
    let mut held = Box::new(Held {
        worker: Arc::clone(worker),
        charge: worker.ids.next(now).at_home(caller.org.home),
        caller,
        route,
        quoted,
        moment,
        now,
        told: None,
        legs: Legs::new(),
        standing: Standing::default(),
        seen: View::default(),
        upload: Upload::default(),
        takes_trailers: false,
        spans: Context::default(),
        stage: Stage::Held,
        once,
        draft: None,
        observed: None,
        slices: None,
        _permit: Arc::clone(permit),
    });
    match held.post(request_id.and_then(|id| id.to_str().ok())).await {
        Ok(Ok((legs, standing))) => {
            held.legs = legs;
            held.standing = standing;
            Ok(Holding::Made(held))
        }
        Ok(Err(known)) => {
            held.stage = Stage::Resolved;
            Ok(Holding::Known(held, known))
        }
        Err(refused) => {
            held.stage = match refused.refusal.code {
                Code::BooksUnavailable => Stage::Refused,
                // Every post that was asked for came back with nothing changed.
                _ => Stage::Resolved,
            };
            // A seat that is used up by now refuses no repetition.
            if held.stage != Stage::Resolved {
                return Err(refused);
            }
            match once::known(worker, once.as_ref()).await? {
                Some(known) => Ok(Holding::Known(held, known)),
                None => Err(refused),
            }
        }
    }
}

impl<B: Books + 'static> Held<B> {
    /// What is metered on its route. A charge is made on metered routes only.
    pub fn metered(&self) -> Option<&Metered> {
        self.route.metered.as_ref()
    }

    /// True where nothing of it is refused for lack of credit, and nothing is owed (D28): its
    /// route or its org say so.
    pub fn is_observed(&self) -> bool {
        self.caller.org.mode == Mode::Observe
            || self.metered().is_some_and(|metered| metered.observed)
    }

    /// What there is to it by now in observe mode; `None` where that is not the mode.
    pub fn observed_so_far(&self) -> Option<Observed> {
        self.is_observed().then(|| self.observed.as_deref().copied().unwrap_or_default())
    }

    /// Everything that can pay, as it was when the charge was planned.
    pub fn position(&self) -> Position<'_> {
        self.caller.org.position(self.caller.payer(), &self.moment, self.now)
    }

    async fn post(
        &mut self,
        request_id: Option<&str>,
    ) -> Result<Result<(Legs, Standing), KnownCharge>, Refused> {
        let memo = self.memo(request_id);
        let mut known: Option<Box<View>> = None;
        for plans in 0..=MAX_PLANS {
            let asked = Instant::now();
            let (mut standing, asking) = self.ask(&memo, known.as_deref(), plans)?;
            let posted = asking.await;
            let told = Instant::now();
            let result = match &posted {
                Ok(Posted::Done(..)) => BooksResult::Done,
                Ok(Posted::Short(_)) => BooksResult::Short,
                Ok(Posted::Known(_)) => BooksResult::Short,
                Err(_) => BooksResult::Failed,
            };
            self.worker.meters.books(BooksOperation::Hold, result, told - asked);
            match posted {
                Ok(Posted::Done(legs, after)) => {
                    self.told = Some(told);
                    standing.update(&after);
                    self.seen = after;
                    return Ok(Ok((legs, standing)));
                }
                Ok(Posted::Short(view)) => known = Some(Box::new(view)),
                Ok(Posted::Known(known)) => return Ok(Err(known)),
                Err(BooksError::TooManyKeys) => return Err(once::too_many()),
                Err(error) => return Err(unavailable(&error)),
            }
        }
        // The last plan takes from nobody, or was refused.
        Err(Refusal::new(Code::Internal, "a post of nothing was not done").into())
    }

    /// Plans on what is known, and asks the books. All of the asking happens in this call; the
    /// future only waits, and is small, because it lives in every request's.
    fn ask(
        &mut self,
        memo: &[u8],
        known: Option<&View>,
        plans: usize,
    ) -> Result<(Standing, impl Future<Output = Result<Posted, BooksError>> + Send + use<B>), Refused>
    {
        let (position, observed) = (self.position(), self.is_observed());
        let planned = (known, plans);
        let (post, observed) = waterfall::decide(&self.quoted.quote, &position, planned, observed)?;
        let note = observed.as_ref().map_or(Vec::new(), observed_note);
        let lasting = Lasting { expires: None, once: self.once, note: &note };
        let ask = Ask {
            charge: self.charge,
            accounts: &position.accounts,
            post: &post,
            now: self.now,
            in_doubt: self.metered().map_or(InDoubt::Void, |metered| metered.in_doubt),
            memo,
            lasting: (self.once.is_some() || observed.is_some()).then_some(lasting),
        };
        let asked = (Standing::new(&position), self.worker.books.hold(&ask));
        drop(position);
        self.observed = observed.map(Box::new);
        Ok(asked)
    }

    fn memo(&self, request_id: Option<&str>) -> Vec<u8> {
        let (feature, meters) = match self.metered() {
            Some(metered) => (metered.feature.as_str(), &metered.pricing.meters[..]),
            None => ("", &[][..]),
        };
        let names = meters.iter().map(|meter| meter.name.as_ref().map(Id::as_str));
        let measures = names.zip(self.quoted.quantities.iter().copied()).collect();
        let what = (feature, &*self.route.name, measures);
        self.caller.memo(&self.moment, &self.quoted.quote, what, request_id)
    }

    /// What a response tells of the charge: its receipt, and the limits of a seat that stands
    /// alone.
    pub fn fields(
        &self,
        state: State,
        cost: u64,
        legs: &Legs,
    ) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<B> {
        let limits = self.rate_limits().into_iter();
        let limits =
            limits.flat_map(|(policy, limit)| [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, limit)]);
        std::iter::once((TOLLGATE_RECEIPT, self.receipt(state, cost, legs))).chain(limits)
    }

    /// The receipt as a header's value.
    fn receipt(&self, state: State, cost: u64, legs: &Legs) -> HeaderValue {
        let card = self.quoted.quote.rate_card.as_str();
        self.complete(Receipt::new(self.charge, state, cost, legs, card), &self.standing)
    }

    /// A receipt with what its caller has left.
    pub fn complete<'a>(&'a self, receipt: Receipt<'a>, standing: &Standing) -> HeaderValue {
        let mut text = Vec::with_capacity(288);
        self.filled(receipt, standing).write(&mut text);
        header(text)
    }

    fn filled<'a>(&'a self, mut receipt: Receipt<'a>, standing: &Standing) -> Receipt<'a> {
        receipt.seat_remaining = standing.seat.map(|(left, _)| left);
        receipt.resets = standing.seat.map(|_| self.moment.resets.as_str());
        receipt.pool_remaining = standing.pool;
        let observed = self.observed.as_ref().and_then(|observed| observed.code);
        receipt.would_refuse = receipt.would_refuse.or(observed.map(Code::as_str));
        receipt
    }

    /// The receipt as the last event of a stream.
    pub fn receipt_event(&self, state: State, cost: u64, legs: &Legs) -> Vec<u8> {
        let card = self.quoted.quote.rate_card.as_str();
        let receipt = Receipt::new(self.charge, state, cost, legs, card);
        let json = self.filled(receipt, &self.standing).json();
        [b"event: tollgate.receipt\ndata: ", &*json, b"\n\n"].concat()
    }

    /// What the caller has left by the balances of now, once so much of each leg is captured and
    /// the rest has returned.
    ///
    /// # Errors
    /// When the books fail.
    pub async fn foresee(&self, keep: &[u64]) -> Result<Standing, BooksError> {
        let position = self.position();
        let mut view = self.worker.books.balances(&position.accounts).await?;
        for (leg, keep) in self.legs.iter().zip(keep) {
            if let Some(balance) = view.get_mut(leg.slot) {
                balance.held = balance.held.saturating_sub(leg.amount);
                balance.captured = balance.captured.saturating_add(*keep);
            }
        }
        let mut standing = Standing::new(&position);
        standing.update(&view);
        Ok(standing)
    }

    /// The `RateLimit-Policy` and `RateLimit` fields of a seat without pool access.
    fn rate_limits(&self) -> Option<(HeaderValue, HeaderValue)> {
        let (left, granted) = self.standing.seat?;
        if self.caller.payer().access().is_ok() {
            return None;
        }
        let cycle = &self.moment.cycle;
        let (mut policy, mut limit) = (Vec::with_capacity(48), Vec::with_capacity(32));
        let window = cycle.end.as_second() - cycle.start.as_second();
        receipt::write_rate_limit_policy(granted, window, &mut policy);
        receipt::write_rate_limit(left, cycle.end.as_second() - self.now.as_second(), &mut limit);
        Some((header(policy), header(limit)))
    }
}

/// What the books keep with a hold of observe mode, for whoever settles it.
pub fn observed_note(observed: &Observed) -> Vec<u8> {
    note::encode(&HoldNote { observed: Some(observed.into()), ..HoldNote::default() })
}

/// What they keep with a hold that more was taken for: also what is held by now.
pub fn grown_note(held: HeldNote, observed: Option<&Observed>) -> Vec<u8> {
    let observed = observed.map(Into::into);
    note::encode(&HoldNote { observed, held: Some(held), ..HoldNote::default() })
}

/// A header's value from text of our own making, which is visible ASCII.
fn header(text: Vec<u8>) -> HeaderValue {
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text))
        .unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The refusal for books that do not answer. Why they do not is for the log, not for callers; the
/// failure itself is told, and counted, where the request is refused.
pub fn unavailable(error: &BooksError) -> Refused {
    if super::access::tells() {
        tracing::error!(%error, "the books did not do what was asked");
    }
    Refusal::new(Code::BooksUnavailable, "nothing was charged that was not recorded").into()
}

impl<B: Books + 'static> Drop for Held<B> {
    fn drop(&mut self) {
        match self.stage {
            Stage::Resolved => {}
            // Books that others share take back themselves what they cannot tell of; one void more of
            // each refusal would be all that waits for them.
            Stage::Refused if self.worker.books.is_shared() => {}
            Stage::Held | Stage::Refused => self.give_back(),
            Stage::Cancellable if !std::thread::panicking() && !self.worker.is_cut_off() => {
                self.give_back();
            }
            // Only a defect or the end of the process comes here: whoever forwards settles.
            Stage::Cancellable | Stage::Forwarded => self.abandon(),
        }
    }
}

/// How a charge ends whose guard is dropped before it is settled. It takes effect by being called;
/// a task waits for its record to be written.
impl<B: Books + 'static> Held<B> {
    fn give_back(&self) {
        let (now, memo) = (self.worker.clock.now(), OutcomeMemo::default());
        let void = Resolution::plain(State::Voided, &[], now, &memo);
        let voiding = self.worker.books.resolve(self.charge, &void);
        if tokio::runtime::Handle::try_current().is_ok() {
            self.worker.tasks.spawn(async move {
                if let Err(error) = voiding.await {
                    not_recorded(&error);
                }
            });
        }
        if self.stage != Stage::Refused {
            self.caller.meters.request(Some(self.route.index), Outcome::Voided, None);
        }
    }

    /// Ends it as the next start would, were the process killed here (D36).
    fn abandon(&self) {
        let (route, meters) = (Some(self.route.index), Arc::clone(&self.caller.meters));
        meters.request(route, Outcome::InDoubt, None);
        let abandoning = self.worker.books.abandon(self.charge, self.worker.clock.now());
        if tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let all = Arc::clone(&self.worker.meters);
        self.worker.tasks.spawn(async move {
            let abandoned = match abandoning.await {
                Ok(Some(abandoned)) => abandoned,
                Ok(None) => return,
                Err(error) => return not_recorded(&error),
            };
            let captured = abandoned.state == State::Captured;
            all.in_doubt(captured);
            if captured {
                let legs = &abandoned.charge.legs;
                let sum = |kind| -> u64 {
                    legs.iter().filter(|leg| leg.kind == kind).map(|leg| leg.amount).sum()
                };
                let (seat, pool) = (sum(LegKind::Licence), sum(LegKind::Pool));
                meters.captured(route, seat, pool, sum(LegKind::Overage));
                let note: HoldNote = note::decode(&abandoned.charge.note);
                let uncovered = note.observed.map_or(0, |it| it.uncovered.operations.micro());
                meters.uncovered(uncovered);
            }
        });
    }
}

fn not_recorded(error: &BooksError) {
    tracing::error!(%error, "the end of an abandoned charge is not recorded");
}
