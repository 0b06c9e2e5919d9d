//! Edits of single things: what the rows of an org become by one. Pure; a document is one of
//! them, and every other is put in the words of a document wherever it can be.

mod put;
mod remove;
mod scope;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use self::put::Put;
use super::apply::{self, Surroundings};
use super::file::{self, Document, Problem, Source};
use super::rows::{MadeBy, Rows, Secret};
use super::snapshot::MAX_LICENCES;
use super::things::{self, Kind};
use crate::core::ids::Id;

pub use self::scope::{scope, scope_of_one};

/// One change of an org.
#[expect(clippy::large_enum_variant, reason = "one is made for each change and moved once")]
pub enum Edit {
    /// Makes the org be what a document says.
    Document(Document),
    /// Creates or changes one thing.
    Put {
        /// What it is.
        kind: Kind,
        /// Which; `None` where the body says.
        id: Option<Id>,
        /// The org file's keys of its section. A licence has those of a user's `licences`, and
        /// `user`. A profile without `users` keeps its members.
        body: Source,
        /// What is done where it is there already, or is not.
        how: How,
    },
    /// Removes one thing. What is still named by others stays.
    Delete {
        /// What it is.
        kind: Kind,
        /// Which.
        id: Id,
    },
    /// Gives a licence to a user, or takes it from whoever holds it (D9, D10).
    Assign {
        /// Which.
        licence: Id,
        /// To whom; `None` for nobody.
        user: Option<Id>,
    },
    /// Puts a user into a group or profile, or takes one out.
    Member {
        /// Of what.
        of: Membership,
        /// Who.
        user: Id,
        /// In, or out.
        member: bool,
    },
    /// Gives a key a second secret, which is live at once. The body may hold `secret`, else one
    /// is made; and `until`, when the first ceases to be, else it lives until it is dropped.
    Rotate {
        /// Which.
        key: Id,
        /// See above.
        body: Source,
    },
    /// Ends a rotation: one of a key's two secrets is refused from now on.
    DropSecret {
        /// Which key.
        key: Id,
        /// The secret, as the key's document names it.
        secret: String,
    },
}

/// What is done with a thing that is there already, or is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It must not be there yet.
    Create,
    /// It is created or replaced: a missing key means its default.
    Replace,
    /// It must be there, and only the keys that are named change: a JSON merge patch (RFC 7396).
    Merge,
}

/// What a user can be a direct member of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Membership {
    /// A group.
    Group(Id),
    /// A profile.
    Profile(Id),
}

/// Why an edit is not done.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// The body is wrong, or names what is not there.
    Invalid(Vec<Problem>),
    /// What is to be changed is not there.
    NotFound(String),
    /// It cannot be done to what is there.
    Conflict(String),
}

impl Edit {
    /// The thing that is edited; `None` for documents and for bodies that do not name one.
    pub fn target(&self, org: &Id) -> Option<(Kind, Id)> {
        match self {
            Self::Document(_) => None,
            Self::Put { kind: Kind::Org, .. } => Some((Kind::Org, org.clone())),
            Self::Put { kind, id, body, .. } => {
                let named = || body.text(kind.id_key())?.parse().ok();
                Some((*kind, id.clone().or_else(named)?))
            }
            Self::Delete { kind, id } => Some((*kind, id.clone())),
            Self::Assign { licence, .. } => Some((Kind::Licence, licence.clone())),
            Self::Member { user, .. } => Some((Kind::User, user.clone())),
            Self::Rotate { key, .. } | Self::DropSecret { key, .. } => {
                Some((Kind::Key, key.clone()))
            }
        }
    }
}

/// What the org becomes. `current` is `None` for an org that does not exist yet.
///
/// # Errors
/// Why nothing may be changed.
pub fn plan(
    edit: &Edit,
    org: &Id,
    current: Option<&Rows>,
    surroundings: &mut Surroundings<'_>,
    now: Timestamp,
) -> Result<Rows, Refused> {
    match (edit, current) {
        (Edit::Document(document), _) => {
            apply::plan(org, current, document, surroundings, now).map_err(Refused::Invalid)
        }
        (Edit::Put { kind, body, how, .. }, _) if current.is_some() || *kind == Kind::Org => {
            let Some((_, id)) = edit.target(org) else {
                let detail = "expected the id of what is to be made: 1 to 128 characters from \
                              A-Z a-z 0-9 . _ @ + -, starting with a letter or digit";
                return Err(invalid(kind.id_key(), detail));
            };
            let put = Put { kind: *kind, id: &id, body: body.value(), how: *how };
            put.plan(org, current, surroundings, now)
        }
        (_, None) => Err(Refused::NotFound(format!("org {org}"))),
        (edit, Some(rows)) => change(edit, rows.clone(), surroundings, now),
    }
}

/// Refuses a holder that does not exist, or whose seat is full.
fn may_hold(rows: &Rows, licence: &Id, user: Option<&Id>) -> Result<(), Refused> {
    let Some(user) = user else { return Ok(()) };
    if !rows.users.contains_key(user) {
        return Err(invalid("user", &format!("there is no user {user}")));
    }
    let others = rows
        .licences
        .iter()
        .filter(|(id, row)| row.holder.as_ref() == Some(user) && *id != licence);
    if others.count() >= MAX_LICENCES {
        return Err(invalid("user", &format!("a seat has at most {MAX_LICENCES} licences")));
    }
    Ok(())
}

fn change(
    edit: &Edit,
    mut next: Rows,
    surroundings: &mut Surroundings<'_>,
    now: Timestamp,
) -> Result<Rows, Refused> {
    match edit {
        Edit::Document(_) | Edit::Put { .. } => {}
        Edit::Delete { kind, id } => remove::remove(&mut next, *kind, id, now)?,
        Edit::Assign { licence, user } => {
            let there = next.licences.get(licence).map(|row| row.value.clone());
            let value = there.ok_or_else(|| Refused::NotFound(format!("licence {licence}")))?;
            may_hold(&next, licence, user.as_ref())?;
            apply::assign(&mut next, licence, value, user.as_ref(), MadeBy::Api, now);
        }
        Edit::Member { of, user, member } => set_member(&mut next, of, user, *member)?,
        Edit::Rotate { key, body } => rotate(&mut next, key, body.value(), surroundings, now)?,
        Edit::DropSecret { key, secret } => drop_secret(&mut next, key, secret, now)?,
    }
    Ok(next)
}

fn set_member(next: &mut Rows, of: &Membership, user: &Id, member: bool) -> Result<(), Refused> {
    let (there, word, id) = match of {
        Membership::Group(id) => (next.details.groups.contains_key(id), "group", id),
        Membership::Profile(id) => (next.details.profiles.contains_key(id), "profile", id),
    };
    if !there {
        return Err(Refused::NotFound(format!("{word} {id}")));
    }
    let missing = || Refused::NotFound(format!("user {user}"));
    let row = Arc::make_mut(next.users.get_mut(user).ok_or_else(missing)?);
    let list = match of {
        Membership::Group(_) => &mut row.value.groups,
        Membership::Profile(_) => &mut row.value.profiles,
    };
    match (list.binary_search(id), member) {
        (Err(place), true) => list.insert(place, id.clone()),
        (Ok(place), false) => drop(list.remove(place)),
        (Ok(_), true) | (Err(_), false) => {}
    }
    Ok(())
}

fn rotate(
    next: &mut Rows,
    key: &Id,
    body: &Value,
    surroundings: &mut Surroundings<'_>,
    now: Timestamp,
) -> Result<(), Refused> {
    let missing = || Refused::NotFound(format!("key {key}"));
    let row = Arc::make_mut(next.details.keys.get_mut(key).ok_or_else(missing)?);
    let (given, until) = file::rotation(body).map_err(Refused::Invalid)?;
    if until.is_some_and(|until| until <= now) {
        return Err(invalid("until", "must be in the future"));
    }
    let secrets = &mut row.value.secrets;
    secrets.retain(|secret| secret.expires.is_none_or(|end| now < end));
    if secrets.len() > 1 {
        let detail = format!("key {key} has two live secrets; drop one of them first");
        return Err(Refused::Conflict(detail));
    }
    if given.is_some_and(|hash| (surroundings.owner)(&hash).is_some()) {
        return Err(invalid("secret", "is that of a key already"));
    }
    for old in secrets.iter_mut() {
        old.expires = match (old.expires, until) {
            (Some(end), Some(until)) => Some(end.min(until)),
            (end, until) => end.or(until),
        };
    }
    let hash = given.unwrap_or_else(|| (surroundings.make_secret)(key));
    secrets.push(Secret { hash, expires: None });
    secrets.sort_unstable_by_key(|secret| secret.hash);
    Ok(())
}

fn drop_secret(next: &mut Rows, key: &Id, secret: &str, now: Timestamp) -> Result<(), Refused> {
    let missing = || Refused::NotFound(format!("secret {secret:?} of key {key}"));
    let row = Arc::make_mut(next.details.keys.get_mut(key).ok_or_else(missing)?);
    let secrets = &mut row.value.secrets;
    let named: Vec<_> = secrets.iter().filter(|own| things::secret_id(own) == secret).collect();
    let [named] = named.as_slice() else { return Err(missing()) };
    let hash = named.hash;
    secrets.retain(|own| own.hash != hash);
    if !secrets.iter().any(|own| own.expires.is_none_or(|end| now < end)) {
        let detail = format!("this is the only live secret of key {key}; rotate or delete the key");
        return Err(Refused::Conflict(detail));
    }
    Ok(())
}

fn invalid(key: &str, detail: &str) -> Refused {
    Refused::Invalid(vec![Problem { pointer: format!("/{key}"), detail: detail.to_owned() }])
}
