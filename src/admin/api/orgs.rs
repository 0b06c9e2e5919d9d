//! Orgs as a whole: their settings, what an org file makes of them, their pool.

use std::sync::Arc;

use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::admin::call::{Call, Reply};
use crate::admin::page::{page, select};
use crate::admin::problem::Problem;
use crate::books::Books;
use crate::core::account::Balance;
use crate::core::amount::Text;
use crate::core::entitlement::Overage;
use crate::directory::change::{Answer, Applied, Written};
use crate::directory::edit::Edit;
use crate::directory::snapshot::Org;
use crate::directory::things::{self, Kind};

/// The orgs that the token sees.
pub async fn list(call: Call) -> Result<Reply, Problem> {
    let live = Arc::clone(&call.admin.directory.live().load());
    let seen = live.orgs.values().filter(|org| call.who.sees_org(&org.id));
    let items = seen.filter_map(|org| {
        let thing = things::of_org(org, Kind::Org, org.id.as_str())?;
        Some((org.id.to_string(), thing.document))
    });
    let (items, next) = select(&call, "orgs", items.collect())?;
    Ok(Reply::of(page(&call, None, items, next)))
}

/// An org's settings.
pub async fn read(call: Call) -> Result<Reply, Problem> {
    let org = call.org()?;
    let thing = things::of_org(&org, Kind::Org, org.id.as_str());
    let thing = thing.ok_or_else(Problem::internal)?;
    Ok(Reply::tagged(thing.document, thing.etag))
}

/// Makes an org be what the document says; or, as a dry run, tells the difference.
pub async fn apply(mut call: Call) -> Result<Reply, Problem> {
    let org = call.id("org")?;
    let document = call.document()?;
    let dry_run = call.parsed("dry_run").unwrap_or(false);
    let mut write = call.write(move |applied| Answer {
        status: 200,
        etag: None,
        body: Some(told(applied, dry_run, false)),
    });
    write.dry_run = dry_run;
    match call.admin.directory.write(&org, Edit::Document(document), write).await? {
        Written::Before(answer) => Ok(answer.into()),
        Written::Now(applied) => {
            let tag = things::org_tag(applied.version);
            Ok(Reply::tagged(told(&applied, dry_run, true), tag))
        }
    }
}

fn told(applied: &Applied, dry_run: bool, with_secrets: bool) -> Value {
    let changes: Vec<String> = applied.changes.iter().map(ToString::to_string).collect();
    let secrets = applied.secrets.iter().filter(|_| with_secrets);
    let secrets: serde_json::Map<String, Value> = secrets
        .map(|(key, secret)| (key.to_string(), Value::from(secret.expose_secret())))
        .collect();
    json!({
        "changes": changes,
        "secrets": secrets,
        "dry_run": dry_run,
        "version": applied.version,
    })
}

/// The org's pool in the current term.
pub async fn pool(call: Call) -> Result<Reply, Problem> {
    let org = call.org()?;
    Ok(Reply::of(pool_of(&call, &org).await?))
}

async fn pool_of(call: &Call, org: &Arc<Org>) -> Result<Value, Problem> {
    let moment = org.moment(call.now);
    let Some(accounts) = org.pool_accounts(&moment) else {
        return Ok(json!({
            "org": org.id, "term": null, "granted": "0", "held": "0", "captured": "0",
            "available": "0", "overage": overage(&org.overage, Balance::default()),
            "forecast": { "exhausts_at": null },
        }));
    };
    let view = call.admin.books.balances(&accounts).await?;
    let [pool, over] = [0, 1].map(|slot| view.get(slot).unwrap_or_default());
    let term = &org.terms[moment.term.unwrap_or(0)].term;
    Ok(json!({
        "org": org.id,
        "term": { "id": term.id, "start": term.start, "end": term.end },
        "granted": text(pool.granted()),
        "held": text(pool.held),
        "captured": text(pool.captured),
        "available": text(pool.available()),
        "overage": overage(&org.overage, over),
        "forecast": { "exhausts_at": exhausts_at(&pool, term.start, term.end, call.now) },
    }))
}

fn text(micro: u64) -> String {
    Text::of_sum(micro).as_str().to_owned()
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
