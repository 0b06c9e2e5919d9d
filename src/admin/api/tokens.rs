//! Tokens of this API.

use std::sync::Arc;

use secrecy::ExposeSecret;
use serde_json::Value;

use crate::admin::call::{Call, Reply};
use crate::admin::page::{page, select};
use crate::admin::problem::Problem;
use crate::directory::change::{Answer, Written};

fn unknown() -> Problem {
    Problem::not_found("token with this id")
}

/// Every token but the one that the process was started with.
pub async fn list(call: Call) -> Result<Reply, Problem> {
    let live = Arc::clone(&call.admin.directory.live().load());
    let items = live.tokens.iter().map(|token| (token.id.to_string(), token.document()));
    let (items, next) = select(&call, "tokens", items.collect())?;
    Ok(Reply::of(page(&call, None, items, next)))
}

/// One token, without its secret.
pub async fn read(call: Call) -> Result<Reply, Problem> {
    let live = Arc::clone(&call.admin.directory.live().load());
    let token = live.tokens.get(call.param("token")).ok_or_else(unknown)?;
    Ok(Reply::of(token.document()))
}

/// Makes a token; its secret is shown this once.
pub async fn create(mut call: Call) -> Result<Reply, Problem> {
    let body = call.body()?;
    let write = call.write(|applied| {
        let thing = applied.thing.as_ref();
        Answer { status: 201, etag: None, body: thing.map(|thing| thing.document.clone()) }
    });
    let applied = match call.admin.directory.create_token(&body, write).await? {
        Written::Before(answer) => return Ok(answer.into()),
        Written::Now(applied) => applied,
    };
    let mut document = applied.thing.map(|thing| thing.document).unwrap_or_default();
    if let (Some((_, secret)), Some(map)) = (applied.secrets.first(), document.as_object_mut()) {
        map.insert("secret".to_owned(), Value::from(secret.expose_secret()));
    }
    Ok(Reply::of(document))
}

/// Revokes a token.
pub async fn revoke(mut call: Call) -> Result<Reply, Problem> {
    let id = call.param("token").parse().map_err(|_| unknown())?;
    let write = call.write(|_| Answer { status: 204, etag: None, body: None });
    call.admin.directory.revoke_token(&id, write).await?;
    Ok(Reply::default())
}
