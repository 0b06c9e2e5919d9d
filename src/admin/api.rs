//! The endpoints of the admin API.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Admin;
use super::problem::Problem;
use crate::books::Books;
use crate::core::account::{Account, Balance};
use crate::core::amount::Text;
use crate::core::balance::BalanceDocument;
use crate::core::entitlement::Overage;
use crate::core::ids::{ChargeId, Id};
use crate::directory::file::Source;
use crate::directory::snapshot::{Moment, Org, Payer, User};

type Result<T> = std::result::Result<Json<T>, Problem>;

/// Options of `apply`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyQuery {
    #[serde(default)]
    dry_run: bool,
}

/// Makes an org be what the document says; or, as a dry run, tells the difference.
pub async fn apply(
    State(admin): State<Arc<Admin>>,
    Path(org): Path<String>,
    query: std::result::Result<Query<ApplyQuery>, QueryRejection>,
    headers: HeaderMap,
    body: std::result::Result<Bytes, BytesRejection>,
) -> Result<Value> {
    let (Query(query), body) = (query?, body?);
    let org: Id = org.parse().map_err(|_| Problem::not_found("org with such an id"))?;
    let is_toml = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("application/toml"));
    let source = match std::str::from_utf8(&body) {
        Ok(text) if is_toml => Source::from_toml(text).map_err(|error| error.to_string()),
        Ok(_) if !is_toml => Source::from_json(&body).map_err(|error| error.to_string()),
        _ => Err("the document is not UTF-8".to_owned()),
    };
    let source = source.map_err(|detail| Problem::invalid("", &detail))?;
    let now = admin.clock.now();
    let directory = Arc::clone(&admin.directory);
    // A task of its own: a client that leaves must not stop a change halfway.
    let applying = async move {
        directory.apply(&org, &source.document(), query.dry_run, "operator", now).await
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "awaited right here; it only must not be dropped"
    )]
    let applied = tokio::spawn(applying).await.map_err(|error| {
        tracing::error!(%error, "apply panicked");
        Problem::internal()
    })??;
    let changes: Vec<String> = applied.changes.iter().map(ToString::to_string).collect();
    let secrets: serde_json::Map<String, Value> = applied
        .secrets
        .iter()
        .map(|(key, secret)| {
            (key.to_string(), Value::from(secrecy::ExposeSecret::expose_secret(secret)))
        })
        .collect();
    Ok(Json(json!({
        "changes": changes,
        "secrets": secrets,
        "dry_run": query.dry_run,
        "version": applied.version,
    })))
}

/// Which part of a list is wanted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    #[serde(default = "default_limit")]
    limit: usize,
    cursor: Option<String>,
}

fn default_limit() -> usize {
    100
}

/// A page of a list.
#[derive(Debug, Serialize)]
pub struct Page<T> {
    items: Vec<T>,
    next_cursor: Option<String>,
    as_of: Timestamp,
    time_zone: String,
}

/// A user in a list: the balance document with what the directory adds.
#[derive(Debug, Serialize)]
pub struct UserItem {
    #[serde(flatten)]
    balance: BalanceDocument,
    email: Option<String>,
    groups: Vec<Id>,
}

/// Every user with their balance, in the order of their ids; those without use too (D11).
pub async fn users(
    State(admin): State<Arc<Admin>>,
    Path(org): Path<String>,
    query: std::result::Result<Query<ListQuery>, QueryRejection>,
) -> Result<Page<UserItem>> {
    let Query(query) = query?;
    if !(1..=1000).contains(&query.limit) {
        return Err(Problem::invalid("/limit", "expected 1 to 1000"));
    }
    let org = find_org(&admin, &org)?;
    let now = admin.clock.now();
    let after = query.cursor.as_deref();
    let mut wanted: Vec<&Arc<User>> = org
        .users
        .iter()
        .filter(|user| after.is_none_or(|after| user.id.as_str() > after))
        .collect();
    let more = wanted.len() > query.limit;
    if more {
        wanted.select_nth_unstable_by(query.limit, |a, b| a.id.cmp(&b.id));
        wanted.truncate(query.limit);
    }
    wanted.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    let moment = org.moment(now);
    let mut items = Vec::new();
    for user in &wanted {
        items.push(UserItem {
            balance: balance_of(&admin, &org, user, &moment, now).await?,
            email: user.email.as_deref().map(str::to_owned),
            groups: user.groups.to_vec(),
        });
    }
    let next_cursor = wanted.last().filter(|_| more).map(|user| user.id.to_string());
    let time_zone = org.schedule.zone_at(now).iana_name().unwrap_or("UTC").to_owned();
    Ok(Json(Page { items, next_cursor, as_of: now, time_zone }))
}

/// One user's balance.
pub async fn balance(
    State(admin): State<Arc<Admin>>,
    Path((org, user)): Path<(String, String)>,
) -> Result<BalanceDocument> {
    let org = find_org(&admin, &org)?;
    let user = org.users.get(&user).ok_or_else(|| Problem::not_found("user with this id"))?;
    let now = admin.clock.now();
    let moment = org.moment(now);
    Ok(Json(balance_of(&admin, &org, user, &moment, now).await?))
}

async fn balance_of(
    admin: &Admin,
    org: &Org,
    user: &User,
    moment: &Moment,
    now: Timestamp,
) -> std::result::Result<BalanceDocument, Problem> {
    let position = org.position(Payer::User(user), moment, now);
    let read = admin.books.balances(&position.accounts).await;
    let view = read.map_err(|error| Problem::books(&error))?;
    Ok(user.balance(org, &position, &view))
}

/// The org's pool in the current term.
pub async fn pool(State(admin): State<Arc<Admin>>, Path(org): Path<String>) -> Result<Value> {
    let org = find_org(&admin, &org)?;
    let now = admin.clock.now();
    let moment = org.moment(now);
    let Some(accounts) = org.pool_accounts(&moment) else {
        return Ok(Json(json!({
            "org": org.id, "term": null, "granted": "0", "held": "0", "captured": "0",
            "available": "0", "overage": overage(&org.overage, Balance::default()),
            "forecast": { "exhausts_at": null },
        })));
    };
    let [pool, over] = read_two(&admin, &accounts).await?;
    let term = &org.terms[moment.term.unwrap_or(0)].term;
    Ok(Json(json!({
        "org": org.id,
        "term": { "id": term.id, "start": term.start, "end": term.end },
        "granted": text(pool.granted()),
        "held": text(pool.held),
        "captured": text(pool.captured),
        "available": text(pool.available()),
        "overage": overage(&org.overage, over),
        "forecast": { "exhausts_at": exhausts_at(&pool, term.start, term.end, now) },
    })))
}

async fn read_two(
    admin: &Admin,
    accounts: &[Account<'_>; 2],
) -> std::result::Result<[Balance; 2], Problem> {
    let read = admin.books.balances(accounts).await;
    let view = read.map_err(|error| Problem::books(&error))?;
    Ok([view.get(0).unwrap_or_default(), view.get(1).unwrap_or_default()])
}

fn text(micro: u64) -> String {
    Text::new(micro).as_str().to_owned()
}

fn overage(policy: &Overage, balance: Balance) -> Value {
    let (word, cap) = match policy {
        Overage::Reject => ("reject", None),
        Overage::Bill => ("bill", None),
        Overage::BillUpTo(cap) => ("bill_up_to", Some(cap.to_string())),
    };
    json!({ "policy": word, "cap": cap, "held": text(balance.held), "captured": text(balance.captured) })
}

/// When the pool is used up if it goes on being used as fast as in the term so far; `None` when
/// it lasts to the term's end.
fn exhausts_at(
    pool: &Balance,
    start: Timestamp,
    end: Timestamp,
    now: Timestamp,
) -> Option<Timestamp> {
    let elapsed = now.duration_since(start).as_secs();
    if pool.captured == 0 || elapsed <= 0 {
        return None;
    }
    let seconds = i128::from(pool.available()) * i128::from(elapsed) / i128::from(pool.captured);
    let seconds = i64::try_from(seconds).ok()?;
    let at = now.checked_add(jiff::SignedDuration::from_secs(seconds)).ok()?;
    (at < end).then_some(at)
}

/// A charge of the org.
pub async fn charge(
    State(admin): State<Arc<Admin>>,
    Path((org, charge)): Path<(String, String)>,
) -> Result<crate::core::charge::ChargeDocument> {
    let unknown = || Problem::not_found("charge with this id in this org");
    let id: ChargeId = charge.parse().map_err(|_| unknown())?;
    let found = admin.charges.find(id).await.map_err(|error| Problem::books(&error))?;
    found.filter(|charge| charge.org == org).map(Json).ok_or_else(unknown)
}

fn find_org(admin: &Admin, id: &str) -> std::result::Result<Arc<Org>, Problem> {
    let live = admin.directory.live();
    let found = live.load().orgs.get(id).cloned();
    found.ok_or_else(|| Problem::not_found("org with this id"))
}
