//! Charges: those that are open, one by its id, and the end of one that nobody settles.

use serde_json::json;

use crate::admin::call::{Call, Reply, unknown_charge};
use crate::admin::page::{page, select};
use crate::admin::problem::{Code, Problem};
use crate::books::{Books, Resolution, Resolved};
use crate::core::charge::{ChargeDocument, OutcomeMemo, State};
use crate::core::ids::ChargeId;
use crate::directory::administration::Note;
use crate::directory::snapshot::Org;

/// Open charges, in the order of their ids, which is that of time.
pub async fn holds(call: Call) -> Result<Reply, Problem> {
    let org = call.org()?;
    let wanted = call.query("user");
    let open = call.admin.charges.open(org.id.as_str()).await?;
    let seen = open.into_iter().filter(|charge| {
        wanted.is_none_or(|user| charge.user.as_deref() == Some(user))
            && call.who.sees_id(&org, charge.user.as_deref())
    });
    let items = seen.map(|charge| (charge.charge.clone(), json!(charge))).collect();
    let (items, next) = select(&call, &format!("{}/holds", org.id), items)?;
    Ok(Reply::of(page(&call, Some(&org), items, next)))
}

/// A charge of the org.
pub async fn read(call: Call) -> Result<Reply, Problem> {
    let (org, id) = (call.org()?, call.charge()?);
    Ok(Reply::of(json!(find(&call, &org, id).await?)))
}

/// A charge of the org that the token sees.
///
/// # Errors
/// `not_found`, `books_unavailable`.
pub async fn find(call: &Call, org: &Org, id: ChargeId) -> Result<ChargeDocument, Problem> {
    let found = call.admin.charges.find(id).await?;
    let own = |charge: &ChargeDocument| {
        charge.org == org.id.as_str() && call.who.sees_id(org, charge.user.as_deref())
    };
    found.filter(own).ok_or_else(unknown_charge)
}

/// Voids an open charge. To do so again changes nothing; one that was captured stays.
pub async fn void(call: Call) -> Result<Reply, Problem> {
    let (org, id) = (call.org()?, call.charge()?);
    let before = find(&call, &org, id).await?;
    let memo = OutcomeMemo::default();
    let resolution = Resolution::plain(State::Voided, &[], call.now, &memo);
    let is_done = before.state == State::Held
        && matches!(call.admin.books.resolve(id, &resolution).await?, Resolved::Done(..));
    let mut noted = Ok(());
    if is_done {
        let note = Note {
            org: &org.id,
            who: &call.who.name,
            now: call.now,
            kind: "hold",
            id: id.to_string(),
            line: format!("- hold {id}"),
            before: Some(json!(before)),
            after: None,
        };
        noted = call.admin.directory.record(note, None).await;
    }
    let after = find(&call, &org, id).await;
    if is_done {
        // What it was when it ended, because it may have become a job meanwhile; or what it was
        // before, where the archive does not tell.
        (call.admin.voided)(id, after.as_ref().unwrap_or(&before));
    }
    noted?;
    let after = after?;
    match after.state {
        State::Voided | State::Expired => Ok(Reply::of(json!(after))),
        state => {
            let detail = format!("the charge is {state}; a refund gives back what it took");
            Err(Problem::new(Code::Conflict, detail))
        }
    }
}
