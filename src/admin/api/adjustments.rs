//! Adjustments: an admin adds to an account or takes from it, or gives back what a charge took.
//!
//! The books and the directory are two stores, so an adjustment is known by an id that is in its
//! record: what is repeated under one `Idempotency-Key` asks the ledger whether it was made. The
//! books make it once under that id, because one that was answered with 503 may be made later; and
//! once under its charge what a refund gives back, whoever asks for it.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::admin::call::{Call, Reply, unknown_user};
use crate::admin::new_id;
use crate::admin::page::{behind, cursor, page};
use crate::admin::problem::{Code, Problem};
use crate::books::{Adjusted, Adjustment, Books, BooksError, Key, KeyOf};
use crate::core::account::{Account, AccountKind, AccountName, Grant};
use crate::core::adjustment::{AdjustMemo, AdjustmentDocument, parse_signed};
use crate::core::charge::State;
use crate::core::ids::{ChargeId, Id};
use crate::core::waterfall::PoolAccess;
use crate::directory::administration::Note;
use crate::directory::change::{Answer, Begun, OnceKey};
use crate::directory::file::{Object, read_one};
use crate::directory::snapshot::{Org, Payer};
use crate::ledger::archive::KeptLeg;

/// The keys of an adjustment's body.
pub const ADJUST_KEYS: &[&str] = &["account", "user", "licence", "amount", "reason"];
/// The keys of a refund's body.
pub const REFUND_KEYS: &[&str] = &["reason"];
/// The longest reason, in characters.
const LONGEST_REASON: usize = 1_000;
/// How often it is looked again what was given back of a charge, where a part was meanwhile.
const ATTEMPTS: usize = 3;

/// Adjustments, newest first.
pub async fn list(call: Call) -> Result<Reply, Problem> {
    let org = call.org()?;
    let name = format!("{}/adjustments", org.id);
    let before = call.query("cursor").map(|text| behind(&name, text)).transpose()?;
    let before = before.and_then(|place| place.parse().ok());
    let limit = call.limit();
    let mut found = call.admin.charges.adjustments(org.id.as_str(), before, limit + 1).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().filter(|_| more);
    let next = last.map(|(place, _)| cursor(&name, &place.to_string()));
    let items: Vec<Value> = found.iter().map(|(_, found)| json!(found)).collect();
    Ok(Reply::of(page(&call, Some(&org), items, next)))
}

/// What is asked.
struct Asked {
    account: AccountKind,
    user: Option<Id>,
    licence: Option<Id>,
    delta: i64,
    reason: String,
}

/// Adds to an account of the current cycle or term, or takes from it.
pub async fn adjust(mut call: Call) -> Result<Reply, Problem> {
    let asked = read_one(call.body()?.value(), ADJUST_KEYS, read)?;
    let org = call.org()?;
    let once = call.once.take();
    // Two of one key would both find that the other had not been made yet.
    let admin = std::sync::Arc::clone(&call.admin);
    let _one_at_a_time = admin.adjusting.lock().await;
    let _at_one_gateway = admin.directory.alone().await?;
    let id = match begin(&call, &org, once.as_ref()).await? {
        Started::Done(reply) => return Ok(reply),
        Started::As(id) => id,
    };
    let document = match admin.charges.adjustment(id).await? {
        Some(made) => made,
        None => undone(&call, once.as_ref(), make(&call, &org, id, &asked).await).await?,
    };
    record(&call, &org, once.as_ref(), &[&document], json!(document)).await
}

async fn make(
    call: &Call,
    org: &Org,
    id: ChargeId,
    asked: &Asked,
) -> Result<AdjustmentDocument, Problem> {
    let moment = org.moment(call.now);
    let pool = org.pool_accounts(&moment);
    let user = asked.user.as_ref().and_then(|user| org.users.get(user.as_str()));
    let position = user.map(|user| org.position(Payer::User(user), &moment, call.now));
    let conflict = |detail: &str| Problem::new(Code::Conflict, detail);
    let account = match (asked.account, &position, &pool) {
        (AccountKind::Pool, _, Some([pool, _])) => pool,
        (AccountKind::Overage, _, Some([_, overage])) => overage,
        (AccountKind::Pool | AccountKind::Overage, _, None) => {
            return Err(conflict("the org has no term now"));
        }
        (AccountKind::Tally, ..) => return Err(Problem::invalid("/account", "only counts")),
        (_, None, _) => return Err(Problem::invalid("/user", "there is no such user")),
        (AccountKind::Licence, Some(position), _) => {
            let wanted = |account: &&Account<'_>| {
                asked.licence.as_ref().is_none_or(|id| account.name.ids[0] == id.as_str())
            };
            let licences = &position.accounts[..usize::from(position.licences)];
            licences.iter().find(wanted).ok_or_else(|| {
                Problem::invalid("/licence", "the user has no such licence that pays now")
            })?
        }
        (AccountKind::Overdraft, Some(position), _) => {
            let slot = position.overdraft.ok_or_else(unknown_user)?;
            &position.accounts[usize::from(slot)]
        }
        (AccountKind::Draw, Some(position), _) => match &position.pool {
            PoolAccess::Open(side) => &position.accounts[usize::from(side.draw)],
            _ => return Err(conflict("the user has no access to a pool now")),
        },
    };
    let key = Key::new(org.id.as_str(), KeyOf::Adjustment, id.0);
    let what = What { key, account, delta: asked.delta, reason: &asked.reason, charge: None };
    if let Some(made) = post(call, org, id, &what).await? {
        return Ok(made);
    }
    // An attempt whose end was not known was made after it was asked for here.
    let made = call.admin.charges.adjustment(id).await?;
    made.ok_or_else(|| BooksError::KeyReused.into())
}

/// What the books are asked for.
struct What<'a> {
    /// It is made once under it.
    key: Key,
    account: &'a Account<'a>,
    delta: i64,
    reason: &'a str,
    /// Whose part it gives back.
    charge: Option<ChargeId>,
}

/// Asks the books, and describes what they did; nothing where it had been done before.
async fn post(
    call: &Call,
    org: &Org,
    id: ChargeId,
    what: &What<'_>,
) -> Result<Option<AdjustmentDocument>, Problem> {
    let What { key, account, delta, reason, charge } = *what;
    let (org, who) = (org.id.as_str(), call.who.name.as_str());
    let memo = AdjustMemo { id: id.0, org, who, reason, charge: charge.map(|charge| charge.0) };
    // Without its memo it would not be known to have been made.
    let bytes = postcard::to_stdvec(&memo).map_err(|error| {
        tracing::error!(%error, "an adjustment's memo cannot be encoded");
        Problem::internal()
    })?;
    // As precise as the record, so that whoever reads it there reads the same.
    let now = Timestamp::from_microsecond(call.now.as_microsecond()).unwrap_or(call.now);
    let adjustment = Adjustment { key: Some(key), account, delta, now, memo: &bytes };
    match call.admin.books.adjust(&adjustment).await {
        Ok(Adjusted::Done(_)) => {}
        // What was done can differ where another cycle has begun since.
        Ok(Adjusted::Before(_)) | Err(BooksError::KeyReused) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    Ok(Some(memo.document(&account.name.to_string(), account.key.kind, delta, now)))
}

/// Gives back what a captured charge took: to each account its part. Once for each charge.
pub async fn refund(mut call: Call) -> Result<Reply, Problem> {
    let reason = read_one(call.body()?.value(), REFUND_KEYS, reason)?;
    let (org, charge) = (call.org()?, call.charge()?);
    let once = call.once.take();
    let admin = std::sync::Arc::clone(&call.admin);
    let _one_at_a_time = admin.adjusting.lock().await;
    let _at_one_gateway = admin.directory.alone().await?;
    let own = match begin(&call, &org, once.as_ref()).await? {
        Started::Done(reply) => return Ok(reply),
        Started::As(id) => id,
    };
    let mut attempts = 0;
    let given = loop {
        let taken = undone(&call, once.as_ref(), taken(&call, &org, charge, own).await).await?;
        if let Some(given) = give_back(&call, &org, taken, &reason, charge).await? {
            break given;
        }
        attempts += 1;
        if attempts == ATTEMPTS {
            return Err(BooksError::KeyReused.into());
        }
    };
    let body = json!({ "charge": charge, "adjustments": given });
    let given: Vec<&AdjustmentDocument> = given.iter().collect();
    record(&call, &org, once.as_ref(), &given, body).await
}

/// What a charge took, and what of it was given back.
struct Taken {
    legs: Vec<KeptLeg>,
    given: Vec<AdjustmentDocument>,
    /// The id of the first part that is given back.
    first: ChargeId,
}

async fn taken(call: &Call, org: &Org, id: ChargeId, own: ChargeId) -> Result<Taken, Problem> {
    let conflict = |detail: &str| Err(Problem::new(Code::Conflict, detail));
    let charge = super::charges::find(call, org, id).await?;
    if charge.state != State::Captured {
        return conflict(&format!("the charge is {}, so it took nothing", charge.state));
    }
    let ledger = &call.admin.charges;
    let (mut legs, given) = (ledger.legs(id).await?, ledger.given_back(id).await?);
    // A tally only tells what was taken; nothing of it can be given back.
    legs.retain(|leg| AccountKind::ADJUSTED.contains(&leg.account.kind));
    if legs.is_empty() {
        return conflict("the charge took nothing");
    }
    // Before its first part, so that it is given back whole or not at all.
    if legs.iter().any(|leg| call.admin.books.is_closed(org.id.as_str(), &leg.account)) {
        return Err(BooksError::Closed.into());
    }
    // A crash may have left a part; the rest follows under the ids that it began with.
    let first = given.first().and_then(|first| first.id.parse().ok()).unwrap_or(own);
    if given.len() >= legs.len() && first != own {
        return conflict("the charge was given back already");
    }
    Ok(Taken { legs, given, first })
}

/// Gives back what was not given back yet, and returns all parts; nothing where a part was given
/// back since it was asked for, by an attempt whose end was not known.
async fn give_back(
    call: &Call,
    org: &Org,
    taken: Taken,
    reason: &str,
    charge: ChargeId,
) -> Result<Option<Vec<AdjustmentDocument>>, Problem> {
    let Taken { legs, mut given, first } = taken;
    for (index, leg) in legs.iter().enumerate().skip(given.len()) {
        match give_back_part(call, org, first, (index, leg), reason, charge).await? {
            Some(part) => given.push(part),
            None => return Ok(None),
        }
    }
    Ok(Some(given))
}

async fn give_back_part(
    call: &Call,
    org: &Org,
    first: ChargeId,
    (index, leg): (usize, &KeptLeg),
    reason: &str,
    charge: ChargeId,
) -> Result<Option<AdjustmentDocument>, Problem> {
    // The account was opened by the charge; what the directory grants it stays as it is.
    let (kind, period) = (leg.account.kind, leg.account.period);
    let [outer, inner] = &leg.ids;
    let name = AccountName { org: org.id.as_str(), kind, ids: [outer, inner], period };
    let account = Account { key: leg.account, name, grant: Grant::default() };
    let delta = i64::try_from(leg.amount).map_err(|_| Problem::internal())?;
    let key = Key::new(org.id.as_str(), KeyOf::Refund, charge.and_then(index).0);
    let what = What { key, account: &account, delta, reason, charge: Some(charge) };
    post(call, org, first.and_then(index), &what).await
}

/// How an operation begins.
enum Started {
    /// It was done before.
    Done(Reply),
    /// Under this id: a new one, or that of an attempt whose end is not known.
    As(ChargeId),
}

async fn begin(call: &Call, org: &Org, once: Option<&OnceKey>) -> Result<Started, Problem> {
    let new = new_id(call.now).at_home(org.home);
    let Some(once) = once else { return Ok(Started::As(new)) };
    Ok(match call.admin.directory.begin(once, &new.to_string(), call.now).await? {
        Begun::Fresh => Started::As(new),
        Begun::Again(id) => Started::As(id.parse().map_err(|_| Problem::internal())?),
        Begun::Before(answer) => Started::Done(answer.into()),
    })
}

/// Lets an operation be begun anew under its key where it is certain that it changed nothing.
async fn undone<T>(
    call: &Call,
    once: Option<&OnceKey>,
    result: Result<T, Problem>,
) -> Result<T, Problem> {
    if let (Err(problem), Some(once)) = (&result, once)
        && problem.code.status() < 500
    {
        call.admin.directory.abandon(once).await?;
    }
    result
}

/// Audits what was done, and keeps the answer for repetitions.
async fn record(
    call: &Call,
    org: &Org,
    once: Option<&OnceKey>,
    made: &[&AdjustmentDocument],
    body: Value,
) -> Result<Reply, Problem> {
    let answer = Answer { status: 201, etag: None, body: Some(body.clone()) };
    for (index, adjustment) in made.iter().enumerate() {
        let AdjustmentDocument { id, account, amount, unit, .. } = adjustment;
        let note = Note {
            org: &org.id,
            who: &call.who.name,
            now: call.now,
            kind: "adjustment",
            id: id.clone(),
            line: format!("+ adjustment {id} of {account} by {amount} {unit}"),
            before: None,
            after: Some(json!(adjustment)),
        };
        let last = index + 1 == made.len();
        let done = once.filter(|_| last).map(|once| (once, &answer));
        call.admin.directory.record(note, done).await?;
    }
    Ok(Reply::of(body))
}

fn read(object: &Object<'_>) -> Option<Asked> {
    let account = account(object);
    let (user, licence) = (object.optional("user"), object.optional("licence"));
    let delta = amount(object);
    let reason = reason(object);
    let account = account?;
    let of_org = matches!(account, AccountKind::Pool | AccountKind::Overage);
    if of_org && object.raw("user").is_some() {
        object.note("user", "the pool and what is used past it are the org's");
    }
    if !of_org && object.raw("user").is_none() {
        object.note("user", "is required for an account of a user");
    }
    if account != AccountKind::Licence && object.raw("licence").is_some() {
        object.note("licence", "only goes with the account `licence`");
    }
    Some(Asked { account, user, licence, delta: delta?, reason: reason? })
}

fn account(object: &Object<'_>) -> Option<AccountKind> {
    let word: String = object.required("account")?;
    let found = AccountKind::ADJUSTED.into_iter().find(|kind| kind.word() == word);
    if found.is_none() {
        let words = AccountKind::ADJUSTED.map(AccountKind::word).join(", ");
        object.note("account", format!("expected one of {words}"));
    }
    found
}

fn amount(object: &Object<'_>) -> Option<i64> {
    let text: String = object.required("amount")?;
    let delta = parse_signed(&text).filter(|delta| *delta != 0);
    if delta.is_none() {
        object.note("amount", "expected an amount other than zero, like \"10\" or \"-2.5\"");
    }
    delta
}

fn reason(object: &Object<'_>) -> Option<String> {
    let text: String = object.required("reason")?;
    let long = !(1..=LONGEST_REASON).contains(&text.chars().count());
    if long || text.chars().any(char::is_control) {
        let detail = "expected 1 to 1,000 characters, none of them a control character";
        object.note("reason", detail);
        return None;
    }
    Some(text)
}
