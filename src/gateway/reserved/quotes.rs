//! `POST /.tollgate/v1/quotes`: what a request would cost, and whether it would be served now.
//! Nothing is held.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::Refused;
use super::super::hold::unavailable;
use super::super::identify::Caller;
use super::super::worker::Worker;
use super::asked::Asked;
use crate::books::Books;
use crate::core::waterfall::{Plan, plan};

/// The answer to a quote's body.
///
/// # Errors
/// `unquotable`, `unpriced`, `books_unavailable`.
pub async fn quote<B: Books>(
    worker: &Worker<B>,
    caller: &Caller,
    asked: &Asked<'_>,
    now: Timestamp,
) -> Result<Value, Refused> {
    let priced = asked.price(caller, now)?;
    let moment = caller.org.moment(now);
    let position = caller.org.position(caller.payer(), &moment, now);
    let balances = worker.books.balances(&position.accounts).await;
    let view = balances.map_err(|error| unavailable(&error))?;
    let refusal = match plan(&priced.quote, &position, Some(&view)) {
        Plan::Post(_) => None,
        Plan::Refuse(refusal) => Some(refusal),
    };
    let balance = caller.user.as_ref().map(|user| user.balance(&caller.org, &position, &view));
    Ok(json!({
        "cost": priced.quote.price.cost,
        "operations": priced.quote.price.operations,
        "verdict": if refusal.is_none() { "allow" } else { "refuse" },
        "code": refusal.as_ref().map(|refusal| refusal.code.as_str()),
        "detail": refusal.as_ref().map(|refusal| &refusal.detail),
        "rate_card": priced.quote.rate_card,
        "balance": balance,
    }))
}
