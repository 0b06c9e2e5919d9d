//! Quotes: what a request would cost, and whether it would be served now. Nothing is held.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::admin::call::{Call, Reply, unknown_user};
use crate::admin::problem::Problem;
use crate::books::Books;
use crate::core::amount::{MICRO, parse_micro};
use crate::core::ids::Id;
use crate::core::price::Measure;
use crate::core::refusal::Refusal;
use crate::core::waterfall::{Plan, plan};
use crate::directory::file::{Object, read_one};
use crate::directory::snapshot::{Payer, User};

/// The keys of a body.
pub const QUOTE_KEYS: &[&str] = &["user", "feature", "quantity", "attributes"];

/// What is asked.
struct Asked {
    user: Id,
    feature: Id,
    /// Millionths by meter.
    quantities: Vec<(Option<Id>, u64)>,
    attributes: BTreeMap<Id, String>,
}

/// Prices a request of a user, and says what the waterfall would do with it.
pub async fn quote(mut call: Call) -> Result<Reply, Problem> {
    let asked = read_one(call.body()?.value(), QUOTE_KEYS, read)?;
    let org = call.org()?;
    let user = org.users.get(asked.user.as_str()).filter(|user| call.who.sees(&org, user));
    let user: &User = user.ok_or_else(unknown_user)?;
    let payer = Payer::User(user);
    let invalid = |refusal: Refusal| Problem::invalid("/feature", refusal.detail);
    let card = org.card_for(payer, call.now).map_err(invalid)?;
    let attributes: Vec<(&str, &str)> =
        asked.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let measures: Vec<Measure<'_>> = (asked.quantities.iter())
        .map(|(meter, quantity)| Measure {
            meter: meter.as_ref().map(Id::as_str),
            quantity: *quantity,
        })
        .collect();
    let quote = card.quote(asked.feature.as_str(), &attributes, &measures).map_err(invalid)?;
    let moment = org.moment(call.now);
    let position = org.position(payer, &moment, call.now);
    let view = call.admin.books.balances(&position.accounts).await?;
    let planned = || match plan(&quote, &position, Some(&view)) {
        Plan::Post(_) => Ok(()),
        Plan::Refuse(refusal) => Err(refusal),
    };
    let refusal = user.active().and_then(|()| planned()).err();
    Ok(Reply::of(json!({
        "cost": quote.price.cost,
        "operations": quote.price.operations,
        "verdict": if refusal.is_none() { "allow" } else { "refuse" },
        "code": refusal.as_ref().map(|refusal| refusal.code.as_str()),
        "detail": refusal.as_ref().map(|refusal| &refusal.detail),
        "rate_card": quote.rate_card,
        "balance": user.balance(&org, &position, &view),
    })))
}

fn read(object: &Object<'_>) -> Option<Asked> {
    let (user, feature) = (object.required("user"), object.required("feature"));
    let attributes = object.or_default("attributes");
    let quantities = quantities(object);
    Some(Asked { user: user?, feature: feature?, quantities: quantities?, attributes })
}

/// The quantity of the only meter, or those of several by name; one where nothing is said.
fn quantities(object: &Object<'_>) -> Option<Vec<(Option<Id>, u64)>> {
    let wrong = |key: &str| {
        let detail = "expected a whole number, or an amount as a text like \"1.5\"";
        object.note(key, detail);
    };
    match object.raw("quantity") {
        None => Some(vec![(None, MICRO)]),
        Some(Value::Object(meters)) if !meters.is_empty() => {
            let mut read = Vec::new();
            for (name, value) in meters {
                let key = format!("quantity/{}", name.replace('~', "~0").replace('/', "~1"));
                match (name.parse::<Id>(), micro(value)) {
                    (Ok(meter), Some(quantity)) => read.push((Some(meter), quantity)),
                    _ => wrong(&key),
                }
            }
            (read.len() == meters.len()).then_some(read)
        }
        Some(value) => {
            let quantity = micro(value);
            if quantity.is_none() {
                wrong("quantity");
            }
            Some(vec![(None, quantity?)])
        }
    }
}

fn micro(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => parse_micro(text).ok(),
        // A number with a fraction was rounded on the way here already.
        Value::Number(number) => parse_micro(&number.as_u64()?.to_string()).ok(),
        _ => None,
    }
}
