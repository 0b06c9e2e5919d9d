//! The holds API: work that does not pass through the proxy is held, and captured or voided by the
//! key that held it. A hold that nobody resolves ends by itself.

use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::Refused;
use super::super::hold::unavailable;
use super::super::identify::Caller;
use super::super::later::{Ending, Later};
use super::super::once;
use super::super::worker::Worker;
use super::asked::{Asked, Priced, Quantities, quantities, there};
use crate::books::{
    Amendment, Ask, Books, BooksError, InDoubt, KnownCharge, Lasting, Once, Posted,
};
use crate::core::amount::{Credits, Text};
use crate::core::charge::{ChargeDocument, HoldMemo, State};
use crate::core::ids::{ChargeId, Id};
use crate::core::note::{self, HoldNote, OutcomeNote};
use crate::core::refusal::{Code, Refusal};
use crate::core::waterfall::{MAX_PLANS, decide};
use crate::directory::snapshot::Mode;
use crate::telemetry::{BooksOperation, BooksResult, Outcome};

/// The name that stands for a route in charges of this API.
pub const ROUTE: &str = "holds";

const DEFAULT_TTL: SignedDuration = SignedDuration::from_mins(10);
const MAX_TTL: SignedDuration = SignedDuration::from_hours(24);

/// A hold, as its caller is told.
pub struct Made {
    /// The charge.
    pub document: ChargeDocument,
    /// True where it was made before, under the same key (D35).
    pub again: bool,
}

/// Holds what a body asks for, once a key where it comes with one.
///
/// # Errors
/// `bad_request` for a `ttl` that is none, `unquotable`, `unpriced`, `idempotency_key_reused`,
/// `rate_limited` where no more keys are remembered, those of the waterfall, `books_contended`,
/// `books_unavailable`.
pub async fn hold<B: Books>(
    worker: &Worker<B>,
    caller: &Caller,
    asked: &Asked<'_>,
    (request_id, once): (Option<&str>, Option<Once>),
    now: Timestamp,
) -> Result<Made, Refused> {
    let expires = now.saturating_add(ttl(asked)?).map_err(|_| bad_ttl())?;
    let priced = asked.price(caller, now)?;
    let charge = worker.ids.next(now).at_home(caller.org.home);
    let moment = caller.org.moment(now);
    let position = caller.org.position(caller.payer(), &moment, now);
    let Priced { quote, rates, quantities } = priced;
    let what = (asked.feature.as_str(), ROUTE, named(&quantities));
    let memo = caller.memo(&moment, &quote, what, request_id);
    let is_observed = caller.org.mode == Mode::Observe;
    let mut known = None;
    for plans in 0..=MAX_PLANS {
        let planned = decide(&quote, &position, (known.as_ref(), plans), is_observed);
        let (post, observed) = match planned {
            Ok(planned) => planned,
            // A seat that is used up by now refuses no repetition.
            Err(refusal) => match once::known(worker, once.as_ref()).await? {
                None => return Err(refusal.into()),
                Some(made) => match repeat(worker, caller, once, made, now).await? {
                    Some(made) => return Ok(made),
                    None => return Err(refusal.into()),
                },
            },
        };
        let observed = is_observed.then(|| (&observed.unwrap_or_default()).into());
        let rates = Some(rates.clone());
        let note = note::encode(&HoldNote { rates, observed, ..HoldNote::default() });
        let ask = Ask {
            charge,
            accounts: &position.accounts,
            post: &post,
            now,
            in_doubt: InDoubt::Void,
            memo: &memo,
            lasting: Some(Lasting { expires: Some(expires), once, note: &note }),
        };
        let began = Instant::now();
        let posted = worker.books.hold(&ask).await;
        let result = match &posted {
            Ok(Posted::Done(..)) => BooksResult::Done,
            Ok(_) => BooksResult::Short,
            Err(_) => BooksResult::Failed,
        };
        worker.meters.books(BooksOperation::Hold, result, began.elapsed());
        match posted {
            Ok(Posted::Done(..)) => {
                caller.meters.request(None, Outcome::Held, Some(201));
                let open = worker.books.open_charge(charge).await;
                let open = open.map_err(|error| unavailable(&error))?;
                // Nobody knows its id yet who could have resolved it.
                let open = open.ok_or_else(super::no_charge)?;
                let document = Later::read(&open)?.open_document();
                return Ok(Made { document, again: false });
            }
            Ok(Posted::Short(view)) => known = Some(view),
            Ok(Posted::Known(made)) => {
                if let Some(made) = repeat(worker, caller, once, made, now).await? {
                    return Ok(made);
                }
            }
            Err(BooksError::TooManyKeys) => return Err(once::too_many()),
            Err(error) => return Err(unavailable(&error)),
        }
    }
    let detail = "holds under this key ended each time that it was looked for; try again";
    Err(Refusal::new(Code::BooksContended, detail).into())
}

/// The hold that was made under the same key, as it is now; `None` where it has ended meanwhile
/// without a charge, so that its key is free.
async fn repeat<B: Books>(
    worker: &Worker<B>,
    caller: &Caller,
    once: Option<Once>,
    made: KnownCharge,
    now: Timestamp,
) -> Result<Option<Made>, Refused> {
    if once.is_none_or(|once| once.request != made.request) {
        return Err(once::reused());
    }
    // Its record, or that of its end, may still wait to be written, and nobody is told before. An
    // amendment of nothing waits behind it.
    let nothing = Amendment::nothing(now);
    if !made.captured {
        let waited = worker.books.amend(made.charge, &nothing).await;
        waited.map_err(|error| unavailable(&error))?;
    }
    let found = worker.charges.find(made.charge).await.map_err(|error| unavailable(&error))?;
    let charged = |charge: &ChargeDocument| matches!(charge.state, State::Held | State::Captured);
    let Some(document) = found.filter(charged) else { return Ok(None) };
    caller.meters.request(None, Outcome::Free, Some(200));
    worker.meters.replayed();
    Ok(Some(Made { document, again: true }))
}

fn named(quantities: &Quantities) -> Vec<(Option<&str>, u64)> {
    quantities.iter().map(|(meter, n)| (meter.as_ref().map(Id::as_str), *n)).collect()
}

fn ttl(asked: &Asked<'_>) -> Result<SignedDuration, Refused> {
    let Some(text) = &asked.ttl else { return Ok(DEFAULT_TTL) };
    let ttl: SignedDuration = text.parse().map_err(|_| bad_ttl())?;
    if ttl < SignedDuration::from_secs(1) || ttl > MAX_TTL { Err(bad_ttl()) } else { Ok(ttl) }
}

fn bad_ttl() -> Refused {
    let detail = "`ttl` is a duration from \"1s\" to \"24h\", like \"10m\"";
    Refusal::new(Code::BadRequest, detail).into()
}

/// What a body of `capture` asks for; nothing is the whole hold.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capture<'a> {
    #[serde(borrow, default, deserialize_with = "there")]
    quantity: Option<&'a RawValue>,
    credits: Option<Credits>,
}

/// What was asked of a hold, and its canonical form.
pub struct Wanted {
    quantities: Option<Quantities>,
    credits: Option<Credits>,
    void: bool,
    canonical: String,
}

impl Wanted {
    /// A void.
    pub fn void() -> Self {
        Self { quantities: None, credits: None, void: true, canonical: "void".to_owned() }
    }

    /// A capture.
    ///
    /// # Errors
    /// `bad_request` where it says both, `unquotable` for a quantity that is none.
    pub fn capture(body: &Capture<'_>) -> Result<Self, Refused> {
        let quantities = body.quantity.map(|raw| quantities(raw.get())).transpose()?;
        let canonical = match (&quantities, body.credits) {
            (None, None) => "whole".to_owned(),
            (None, Some(credits)) => format!("credits {credits}"),
            (Some(quantities), None) => {
                let meter = |(name, quantity): &(Option<Id>, u64)| {
                    let name = name.as_ref().map_or("", Id::as_str);
                    format!(" {name}={}", Text::new(*quantity).as_str())
                };
                format!("quantity{}", quantities.iter().map(meter).collect::<String>())
            }
            (Some(_), Some(_)) => {
                let detail = "a capture names `quantity` or `credits`, not both";
                return Err(Refusal::new(Code::BadRequest, detail).into());
            }
        };
        Ok(Self { quantities, credits: body.credits, void: false, canonical })
    }

    fn ending(&self, memo: &HoldMemo<'_>) -> Result<Ending, Refusal> {
        match (&self.quantities, self.credits) {
            _ if self.void => Ok(Ending::Void),
            (None, None) => Ok(Ending::Whole),
            (None, Some(credits)) => Ok(Ending::Cost(credits)),
            (Some(quantities), _) => {
                // In the order in which they were held; the names must be those.
                let of = |(meter, _): &(Option<&str>, u64)| {
                    let named =
                        |(name, _): &&(Option<Id>, u64)| name.as_ref().map(Id::as_str) == *meter;
                    quantities.iter().find(named).map(|(_, quantity)| *quantity)
                };
                let used: Option<Vec<u64>> = memo.measures.iter().map(of).collect();
                let used = used.filter(|used| used.len() == quantities.len());
                let wrong = || Refusal::new(Code::Unquotable, "these are not the hold's meters");
                used.map(Ending::Used).ok_or_else(wrong)
            }
        }
    }
}

/// Resolves a hold as its key wants.
///
/// # Errors
/// `unknown_route` (404) where the key has no such hold, `already_resolved`, `unquotable`,
/// `books_unavailable`.
pub async fn resolve<B: Books + 'static>(
    worker: &Worker<B>,
    caller: &Caller,
    id: ChargeId,
    wanted: &Wanted,
    now: Timestamp,
) -> Result<ChargeDocument, Refused> {
    let open = worker.books.open_charge(id).await.map_err(|error| unavailable(&error))?;
    if let Some(open) = open {
        let later = Later::read(&open)?;
        let memo = later.memo();
        let own = memo.org == caller.org.id.as_str()
            && memo.key == caller.key.id.as_str()
            && memo.route == ROUTE;
        if !own {
            return Err(super::no_charge());
        }
        let ending = wanted.ending(memo)?;
        let note = OutcomeNote { asked: Some(wanted.canonical.clone()), uncovered: None };
        if let Some(document) = later.end(worker, &ending, note, now).await? {
            return Ok(document);
        }
    }
    again(worker, caller, id, wanted).await
}

/// A hold that was resolved: the same wish is told the same again.
async fn again<B: Books>(
    worker: &Worker<B>,
    caller: &Caller,
    id: ChargeId,
    wanted: &Wanted,
) -> Result<ChargeDocument, Refused> {
    let found = worker.charges.find(id).await.map_err(|error| unavailable(&error))?;
    let own = |charge: &ChargeDocument| {
        charge.org == caller.org.id.as_str()
            && charge.key == caller.key.id.as_str()
            && charge.route == ROUTE
    };
    let charge = found.filter(own).ok_or_else(super::no_charge)?;
    let note = worker.charges.note(id).await.map_err(|error| unavailable(&error))?;
    let note: OutcomeNote = note::decode(&note);
    let same = match charge.state {
        State::Captured => note.asked.as_deref() == Some(wanted.canonical.as_str()),
        // Whoever voided it.
        State::Voided => wanted.void,
        State::Held | State::Expired => false,
    };
    if same {
        return Ok(charge);
    }
    let detail = format!("the charge is {} already", charge.state);
    Err(Refusal::new(Code::AlreadyResolved, detail).into())
}
