//! The audit: who changed what, and when.

use serde_json::{Value, json};

use crate::admin::call::{Call, Reply};
use crate::admin::page::{behind, cursor, page};
use crate::admin::problem::Problem;
use crate::directory::administration::AuditQuery;
use crate::directory::snapshot::Org;

/// Changes of an org, newest first.
pub async fn of_org(call: Call) -> Result<Reply, Problem> {
    let org = call.org()?;
    list(&call, Some(&org)).await
}

/// Changes of tokens and of what belongs to no org, newest first.
pub async fn of_all(call: Call) -> Result<Reply, Problem> {
    list(&call, None).await
}

async fn list(call: &Call, org: Option<&Org>) -> Result<Reply, Problem> {
    let name = format!("{}/audit", org.map_or("", |org| org.id.as_str()));
    let before = call.query("cursor").map(|text| behind(&name, text)).transpose()?;
    let text = |name: &str| call.query(name).map(str::to_owned);
    let query = AuditQuery {
        before: before.and_then(|seq| seq.parse().ok()),
        limit: call.limit(),
        kind: text("kind"),
        id: text("id"),
        who: text("who"),
        from: call.parsed("from"),
        to: call.parsed("to"),
    };
    let part = call.admin.directory.audit(org.map(|org| &org.id), &query).await?;
    let items: Vec<Value> = part.entries.iter().map(|entry| json!(entry)).collect();
    let next = part.next.map(|seq| cursor(&name, &seq.to_string()));
    Ok(Reply::of(page(call, org, items, next)))
}
