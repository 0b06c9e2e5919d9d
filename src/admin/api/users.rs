//! Users as administrators see them: each with their balance (D11).

use std::sync::Arc;

use serde_json::{Value, json};

use crate::admin::Admin;
use crate::admin::call::{Call, Reply};
use crate::admin::page::{behind, cursor, page};
use crate::admin::problem::Problem;
use crate::books::Books;
use crate::core::balance::BalanceDocument;
use crate::core::ids::Id;
use crate::directory::search::{Field, UserQuery, UserSearch};
use crate::directory::snapshot::{Moment, Org, Payer, User};

/// After so many users others get a turn: a page of an org of a million looks at all of them.
const TURN: usize = 1_000;

/// Every user with their balance, those without use too.
pub async fn list(call: Call) -> Result<Reply, Problem> {
    let org = call.org()?;
    let sort = call.query("sort").unwrap_or("id");
    let list = format!("{}/users/{sort}", org.id);
    let wanted: Option<Id> = call.parsed("profile");
    let profiles = match (&wanted, call.who.profiles()) {
        (Some(wanted), _) if !call.who.has_profile(wanted.as_str()) => {
            return Err(Problem::invalid("/profile", "the token is not for this profile"));
        }
        (Some(wanted), _) => Some(vec![wanted.clone()]),
        (None, own) => own.map(<[Id]>::to_vec),
    };
    let mut search = UserSearch::new(UserQuery {
        q: call.query("q").map(str::to_owned),
        sort: sort.parse().map_err(|detail: String| Problem::invalid("/sort", detail))?,
        limit: call.limit(),
        cursor: call.query("cursor").map(|text| behind(&list, text)).transpose()?,
        group: call.parsed("group"),
        profiles,
    })
    .map_err(|wrong| Problem::from(vec![wrong]))?;
    let moment = org.moment(call.now);
    let field = search.field();
    for (index, user) in org.users.iter().enumerate() {
        if index % TURN == TURN - 1 {
            tokio::task::yield_now().await;
        }
        if !search.wants(&org, user) {
            continue;
        }
        let value = match field {
            Field::Id => 0,
            _ => {
                let position = org.position(Payer::User(user), &moment, call.now);
                let view = call.admin.books.balances(&position.accounts).await?;
                field.value(&position, &view)
            }
        };
        search.offer(user, value);
    }
    let (found, next) = search.page();
    let mut items = Vec::with_capacity(found.len());
    for user in found {
        items.push(item(&call, &org, &user, &moment).await?);
    }
    let next = next.map(|inner| cursor(&list, &inner));
    Ok(Reply::of(page(&call, Some(&org), items, next)))
}

/// A user in a list: the balance document with what the directory adds.
async fn item(call: &Call, org: &Org, user: &User, moment: &Moment) -> Result<Value, Problem> {
    let balance = balance_of(&call.admin, org, user, moment, call.now).await?;
    let mut item = json!(balance);
    item["email"] = json!(user.email());
    item["groups"] = json!(user.standing.groups);
    Ok(item)
}

/// One user's balance.
pub async fn balance(call: Call) -> Result<Reply, Problem> {
    let org = call.org()?;
    let user: Arc<User> = call.user(&org)?;
    let moment = org.moment(call.now);
    Ok(Reply::of(json!(balance_of(&call.admin, &org, &user, &moment, call.now).await?)))
}

/// A user's balance document.
///
/// # Errors
/// When the books fail.
pub async fn balance_of(
    admin: &Admin,
    org: &Org,
    user: &User,
    moment: &Moment,
    now: jiff::Timestamp,
) -> Result<BalanceDocument, Problem> {
    let position = org.position(Payer::User(user), moment, now);
    let view = admin.books.balances(&position.accounts).await?;
    Ok(user.balance(org, &position, &view))
}
