//! Removing one thing, unless others still name it.

use std::sync::Arc;

use jiff::Timestamp;

use super::Refused;
use crate::core::ids::Id;
use crate::directory::apply;
use crate::directory::rows::{KeyKind, Licence, MadeBy, Rows, Table};
use crate::directory::snapshot::ActsFor;
use crate::directory::things::Kind;

/// Takes a thing out of the rows.
///
/// # Errors
/// Where it is not there, or is still named.
pub fn remove(next: &mut Rows, kind: Kind, id: &Id, now: Timestamp) -> Result<(), Refused> {
    let not_found = || Refused::NotFound(format!("{kind} {id}"));
    let cycle = next.schedule.cycle_at(now);
    let details = &mut next.details;
    let was_there = match kind {
        Kind::Org => {
            return Err(Refused::Conflict("an org cannot be deleted: its ledger names it".into()));
        }
        Kind::Term => details.terms.remove(id).is_some(),
        Kind::Plan => details.plans.remove(id).is_some(),
        Kind::Group => details.groups.remove(id).is_some(),
        Kind::RateCard => details.cards.remove(id).is_some(),
        Kind::Key => details.keys.remove(id).is_some(),
        Kind::Profile => {
            for row in next.users.values_mut().filter(|row| row.profiles.contains(id)) {
                Arc::make_mut(row).value.profiles.retain(|profile| profile != id);
            }
            details.profiles.remove(id).is_some()
        }
        Kind::User => {
            let was_there = next.users.remove(id).is_some();
            let held = next.licences.iter().filter(|(_, row)| row.holder.as_ref() == Some(id));
            let held: Vec<(Id, Licence)> =
                held.map(|(id, row)| (id.clone(), row.value.clone())).collect();
            for (licence, value) in held {
                apply::assign(next, &licence, value, None, MadeBy::Api, now);
            }
            was_there
        }
        Kind::Licence => {
            let row = next.licences.remove(id).ok_or_else(not_found)?;
            // Made again under its id it would forget who used it in this cycle (D10).
            let used = row.moved.as_ref().filter(|moved| moved.until > cycle.start);
            match (&row.holder, used) {
                (Some(holder), _) => {
                    let detail = format!("licence {id} is held by {holder}; unassign it first");
                    return Err(Refused::Conflict(detail));
                }
                (None, Some(moved)) => {
                    let until = moved.until;
                    let detail = format!(
                        "licence {id} was held in the cycle that ends at {until}; it can be \
                         deleted after that, and pays nothing until then"
                    );
                    return Err(Refused::Conflict(detail));
                }
                (None, None) => true,
            }
        }
    };
    if !was_there {
        return Err(not_found());
    }
    match namer(next, kind, id) {
        Some(by) => Err(Refused::Conflict(format!("{kind} {id} is still named by {by}"))),
        None => Ok(()),
    }
}

/// What still names a thing that is removed: the first one found.
fn namer(next: &Rows, kind: Kind, id: &Id) -> Option<String> {
    fn find<T>(table: &Table<T>, word: &str, names: impl Fn(&T) -> bool) -> Option<String> {
        let (by, _) = table.iter().find(|(_, row)| names(&row.value))?;
        Some(format!("{word} {by}"))
    }
    let keys = &next.details.keys;
    match kind {
        Kind::Plan => find(&next.licences, "licence", |row| row.plan == *id),
        Kind::Group => {
            let in_key = |row: &KeyKind| matches!(row, KeyKind::Service(ActsFor::Some { groups, .. }) if groups.contains(id));
            find(&next.users, "user", |row| row.groups.contains(id))
                .or_else(|| find(&next.details.profiles, "profile", |row| row.groups.contains(id)))
                .or_else(|| find(keys, "key", |row| in_key(&row.kind)))
        }
        Kind::User => find(keys, "key", |row| match &row.kind {
            KeyKind::User(user) => user == id,
            KeyKind::Service(ActsFor::Some { users, .. }) => users.contains(id),
            KeyKind::Service(ActsFor::Everyone) | KeyKind::Principal(_) => false,
        }),
        Kind::Profile => {
            find(keys, "key", |row| matches!(&row.kind, KeyKind::Principal(own) if own == id))
        }
        Kind::Org | Kind::Term | Kind::Licence | Kind::RateCard | Kind::Key => None,
    }
}
