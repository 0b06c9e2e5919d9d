//! What the gateway itself answers, under `/.tollgate/`: a user's own balance, quotes, holds,
//! charges, reports of jobs, and the pages of problems.

mod asked;
mod holds;
mod quotes;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, LOCATION};
use http::request::Parts;
use http::{Method, Response};
use jiff::Timestamp;
use serde::Serialize;

use self::asked::Asked;
use self::holds::{Made, Wanted};
use super::admit::Permit;
use super::body::{self, ClientBody};
use super::carry::Carried;
use super::forward::Forwarded;
use super::hold::unavailable;
use super::identify::{self, Caller, Shown};
use super::jobs;
use super::meter_body::Content;
use super::worker::{Connection, Worker};
use super::{Refused, Trace, once, problem};
use crate::books::Books;
use crate::config::Idempotency;
use crate::core::balance::BalanceDocument;
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
/// Those of identification and admission, `unknown_route`, `method_not_allowed`, those of the
/// body, and of what it asks for.
pub async fn answer<B: Books + 'static>(
    worker: &Arc<Worker<B>>,
    connection: &Connection,
    (parts, body): (&Parts, ClientBody),
    path: &str,
    now: Timestamp,
    trace: &mut Trace,
) -> Result<(Forwarded<B>, Option<Arc<Permit>>), Refused> {
    if let Some(page) = path.strip_prefix("problems/").and_then(problem::page) {
        only(parts, Method::GET)?;
        worker.meters.nobody().request(None, Outcome::Free, Some(200));
        return Ok((reply("text/markdown; charset=utf-8", page.into()), None));
    }
    if let Some(id) = path.strip_prefix("v1/jobs/") {
        only(parts, Method::POST)?;
        return Ok((Box::pin(report(worker, parts, body, id)).await?, None));
    }
    let shown = identify::authenticate(worker, connection, &parts.headers, now)?;
    trace.meters = Some(Arc::clone(shown.meters()));
    if let "v1/quotes" | "v1/holds" = path {
        only(parts, Method::POST)?;
        let room = &worker.limits.room;
        let body = body::whole(&parts.headers, body, asked::MAX_BODY, room).await?;
        return ask(worker, shown, path, (parts, body), trace).await;
    }
    let resolving = path.strip_prefix("v1/holds/").and_then(|rest| rest.split_once('/'));
    let charge_id = path.strip_prefix("v1/charges/").or(resolving.map(|(id, _)| id));
    // A service key may ask for a charge without naming a user: then it sees those it made.
    let caller = if charge_id.is_some() && shown.is_unnamed_service() {
        shown.key_alone()
    } else {
        shown.identify()?
    };
    let permit = Arc::new(worker.limits.admit(&caller)?);
    if let Some((id, verb @ ("capture" | "void"))) = resolving {
        only(parts, Method::POST)?;
        let room = &worker.limits.room;
        let body = body::whole(&parts.headers, body, asked::MAX_BODY, room).await?;
        let wanted = match verb {
            "capture" => {
                Wanted::capture(&asked::read(if body.is_empty() { b"{}" } else { &body })?)?
            }
            _ => Wanted::void(),
        };
        let id: ChargeId = id.parse().map_err(|_| no_charge())?;
        let at = worker.clock.now();
        let (own, tasks) = (Arc::clone(worker), worker.tasks.clone());
        // What is begun is counted, whoever leaves.
        let work = async move { holds::resolve(&own, &caller, id, &wanted, at).await };
        let document = Carried::new(&tasks, work).await?;
        return Ok((json(&document)?, Some(permit)));
    }
    let response = if path == "v1/me/credits" {
        only(parts, Method::GET)?;
        json(&credits(worker, &caller, now).await?)?
    } else if let (Some(id), None) = (charge_id, resolving) {
        only(parts, Method::GET)?;
        json(&charge(worker, id, &caller).await?)?
    } else {
        let detail = "the gateway has nothing under this path";
        return Err(Refusal::new(Code::UnknownRoute, detail).into());
    };
    caller.meters.request(None, Outcome::Free, Some(200));
    Ok((response, Some(permit)))
}

/// Answers a quote, or makes a hold.
async fn ask<B: Books + 'static>(
    worker: &Arc<Worker<B>>,
    shown: Shown<'_>,
    path: &str,
    (parts, body): (&Parts, Bytes),
    trace: &mut Trace,
) -> Result<(Forwarded<B>, Option<Arc<Permit>>), Refused> {
    let now = worker.clock.now();
    let asked: Asked<'_> = asked::read(&body)?;
    let caller = match &asked.user {
        Some(user) => shown.identify_as(user.as_str())?,
        None => shown.identify()?,
    };
    let permit = Arc::new(worker.limits.admit(&caller)?);
    if path == "v1/quotes" {
        let quote = quotes::quote(worker, &caller, &asked, now).await?;
        caller.meters.request(None, Outcome::Free, Some(200));
        return Ok((json(&quote)?, Some(permit)));
    }
    super::still_serving(worker)?;
    let key = once::key(Idempotency::Optional, &parts.headers)?;
    let once = key.map(|key| once::of_hold(&caller, &key, parts, &body));
    let request_id = trace.request_id.clone();
    drop(asked);
    let (own, tasks) = (Arc::clone(worker), worker.tasks.clone());
    // What is begun is counted, whoever leaves.
    let work = async move {
        let asked: Asked<'_> = asked::read(&body)?;
        let request_id = request_id.as_ref().and_then(|id| id.to_str().ok());
        holds::hold(&own, &caller, &asked, (request_id, once), now).await
    };
    let Made { document, again } = Carried::new(&tasks, work).await?;
    let mut forwarded = json(&document)?;
    let headers = forwarded.response.headers_mut();
    if again {
        headers.insert(once::IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    } else {
        *forwarded.response.status_mut() = problem::CREATED;
    }
    if let Ok(at) = HeaderValue::from_str(&format!("{PREFIX}v1/charges/{}", document.charge)) {
        forwarded.response.headers_mut().insert(LOCATION, at);
    }
    Ok((forwarded, Some(permit)))
}

/// Takes a backend's report of how a job stands.
async fn report<B: Books + 'static>(
    worker: &Arc<Worker<B>>,
    parts: &Parts,
    body: ClientBody,
    id: &str,
) -> Result<Forwarded<B>, Refused> {
    let upstreams = jobs::reporter(worker, &parts.headers)?;
    let body = body::whole(&parts.headers, body, jobs::MAX_BODY, &worker.limits.room).await?;
    let charge: ChargeId = id.parse().map_err(|_| no_charge())?;
    let own = Arc::clone(worker);
    // What is begun is counted, whoever leaves.
    let work = async move { jobs::report(&own, &upstreams, charge, &body).await };
    let reported = Carried::new(&worker.tasks, work).await?;
    worker.meters.nobody().request(None, Outcome::Free, Some(200));
    json(&reported)
}

/// The balance of the user who asks.
async fn credits<B: Books + 'static>(
    worker: &Worker<B>,
    caller: &Caller,
    now: Timestamp,
) -> Result<BalanceDocument, Refused> {
    let Some(user) = caller.user.as_deref() else {
        let detail = "a principal has no seat whose credits could be shown";
        return Err(Refusal::new(Code::KeyNotAllowed, detail).into());
    };
    let moment = caller.org.moment(now);
    let position = caller.org.position(Payer::User(user), &moment, now);
    let balances = worker.books.balances(&position.accounts).await;
    let view = balances.map_err(|error| unavailable(&error))?;
    Ok(user.balance(&caller.org, &position, &view))
}

/// A charge, for its user, or for its key where that acts for nobody. To anyone else it does not
/// exist; so an app that passes on what one user asks is not shown what it did for another.
async fn charge<B: Books + 'static>(
    worker: &Worker<B>,
    id: &str,
    caller: &Caller,
) -> Result<ChargeDocument, Refused> {
    let id: ChargeId = id.parse().map_err(|_| no_charge())?;
    let found = worker.charges.find(id).await.map_err(|error| unavailable(&error))?;
    let own = |charge: &ChargeDocument| {
        let own = match &caller.user {
            Some(user) => charge.user.as_deref() == Some(user.id()),
            None => charge.key == caller.key.id.as_str(),
        };
        own && charge.org == caller.org.id.as_str()
    };
    found.filter(own).ok_or_else(no_charge)
}

/// The refusal where there is no such charge, or none that the caller may know of.
fn no_charge() -> Refused {
    Refusal::new(Code::UnknownRoute, "there is no such charge").into()
}

/// Refuses other methods than the one a path takes; HEAD is a GET.
fn only(parts: &Parts, method: Method) -> Result<(), Refused> {
    let is_get = method == Method::GET;
    if parts.method == method || (is_get && parts.method == Method::HEAD) {
        return Ok(());
    }
    let refusal = Refusal::new(Code::MethodNotAllowed, format!("this path takes {method}"));
    let allow = HeaderValue::from_static(if is_get { "GET, HEAD" } else { "POST" });
    Err(Refused { allow: Some(allow), ..refusal.into() })
}

fn json<B: Books + 'static>(document: &impl Serialize) -> Result<Forwarded<B>, Refused> {
    let body = serde_json::to_vec(document).map_err(|error| {
        tracing::error!(%error, "a document does not serialise");
        Refused::from(Refusal::new(Code::Internal, "the document cannot be written"))
    })?;
    Ok(reply("application/json", body.into()))
}

fn reply<B: Books + 'static>(kind: &'static str, body: Bytes) -> Forwarded<B> {
    let mut response = Response::new(Content::Whole(Some(body)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    debug_assert!(!response.headers().contains_key(ALLOW));
    Forwarded { response, waited: Duration::ZERO }
}
