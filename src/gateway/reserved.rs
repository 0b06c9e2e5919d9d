//! What the gateway itself answers, under `/.tollgate/`: a user's own balance, charges, and the
//! pages of problems.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Method, Response};
use jiff::Timestamp;

use super::admit::Permit;
use super::forward::Forwarded;
use super::hold::unavailable;
use super::identify::{self, Caller};
use super::meter_body::Content;
use super::worker::{Connection, Worker};
use super::{Refused, Trace, problem};
use crate::books::Books;
use crate::core::charge::ChargeDocument;
use crate::core::ids::ChargeId;
use crate::core::refusal::{Code, Refusal};
use crate::directory::snapshot::Payer;
use crate::telemetry::Outcome;

/// Paths that are never forwarded.
pub const PREFIX: &str = "/.tollgate/";

/// Answers a request under the reserved prefix; `path` is what follows it.
///
/// # Errors
/// Those of identification and admission, `unknown_route`, `method_not_allowed`,
/// `books_unavailable`.
pub async fn answer<B: Books + 'static>(
    worker: &Arc<Worker<B>>,
    connection: &Connection,
    parts: &Parts,
    path: &str,
    now: Timestamp,
    trace: &mut Trace,
) -> Result<(Forwarded<B>, Option<Arc<Permit>>), Refused> {
    if let Some(page) = path.strip_prefix("problems/").and_then(problem::page) {
        get_only(parts)?;
        worker.meters.nobody().request(None, Outcome::Free, Some(200));
        return Ok((reply("text/markdown; charset=utf-8", page.into()), None));
    }
    let shown = identify::authenticate(worker, connection, &parts.headers, now)?;
    trace.meters = Some(Arc::clone(shown.meters()));
    let charge_id = path.strip_prefix("v1/charges/");
    // A service key may ask for a charge without naming a user: then it sees those it made.
    let caller = if charge_id.is_some() && shown.is_unnamed_service() {
        shown.key_alone()
    } else {
        shown.identify()?
    };
    let permit = worker.limits.admit(&caller)?;
    let body = if path == "v1/me/credits" {
        get_only(parts)?;
        credits(worker, &caller, now).await?
    } else if let Some(id) = charge_id {
        get_only(parts)?;
        serde_json::to_vec(&charge(worker, id, &caller).await?)
    } else {
        let detail = "the gateway has nothing under this path";
        return Err(Refusal::new(Code::UnknownRoute, detail).into());
    };
    let body = body.map_err(|error| {
        tracing::error!(%error, "a document does not serialise");
        Refused::from(Refusal::new(Code::Internal, "the document cannot be written"))
    })?;
    caller.meters.request(None, Outcome::Free, Some(200));
    Ok((reply("application/json", body.into()), Some(Arc::new(permit))))
}

/// The balance of the user who asks.
async fn credits<B: Books + 'static>(
    worker: &Worker<B>,
    caller: &Caller,
    now: Timestamp,
) -> Result<serde_json::Result<Vec<u8>>, Refused> {
    let Some(user) = caller.user.as_deref() else {
        let detail = "a principal has no seat whose credits could be shown";
        return Err(Refusal::new(Code::KeyNotAllowed, detail).into());
    };
    let moment = caller.org.moment(now);
    let position = caller.org.position(Payer::User(user), &moment, now);
    let balances = worker.books.balances(&position.accounts).await;
    let view = balances.map_err(|error| unavailable(&error))?;
    let document = user.balance(&caller.org, &position, &view);
    Ok(serde_json::to_vec(&document))
}

/// A charge, for its user, or for its key where that acts for nobody. To anyone else it does not
/// exist; so an app that passes on what one user asks is not shown what it did for another.
async fn charge<B: Books + 'static>(
    worker: &Worker<B>,
    id: &str,
    caller: &Caller,
) -> Result<ChargeDocument, Refused> {
    let unknown = || Refused::from(Refusal::new(Code::UnknownRoute, "there is no such charge"));
    let id: ChargeId = id.parse().map_err(|_| unknown())?;
    let found = worker.charges.find(id).await.map_err(|error| unavailable(&error))?;
    let own = |charge: &ChargeDocument| {
        let own = match &caller.user {
            Some(user) => charge.user.as_deref() == Some(user.id()),
            None => charge.key == caller.key.id.as_str(),
        };
        own && charge.org == caller.org.id.as_str()
    };
    found.filter(own).ok_or_else(unknown)
}

fn get_only(parts: &Parts) -> Result<(), Refused> {
    if parts.method == Method::GET || parts.method == Method::HEAD {
        return Ok(());
    }
    let refusal = Refusal::new(Code::MethodNotAllowed, "this path takes GET");
    Err(Refused { allow: Some(HeaderValue::from_static("GET, HEAD")), ..refusal.into() })
}

fn reply<B: Books + 'static>(kind: &'static str, body: Bytes) -> Forwarded<B> {
    let mut response = Response::new(Content::Whole(Some(body)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    debug_assert!(!response.headers().contains_key(ALLOW));
    Forwarded { response, waited: Duration::ZERO }
}
