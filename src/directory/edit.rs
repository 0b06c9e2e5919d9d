//! Edits of single things: what the rows of an org become by one. Pure; a document is one of
//! them, and every other is put in the words of a document wherever it can be.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::apply::{self, Surroundings};
use super::file::{self, Document, Problem, Source};
use super::rows::{KeyKind, Licence, MadeBy, Rows, Secret, Table};
use super::snapshot::{ActsFor, MAX_LICENCES};
use super::store::Scope;
use super::things::{self, Kind, Thing};
use crate::core::ids::Id;

/// One change of an org.
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

/// Which users and licences of the org an edit looks at.
pub fn scope(edit: &Edit, org: &Rows) -> Scope {
    let mut scope = Named::default();
    match edit {
        Edit::Document(document) => return document_scope(document),
        Edit::Put { kind, id, body, .. } => {
            let id = id.clone().or_else(|| body.text(kind.id_key())?.parse().ok());
            scope.body(*kind, id.as_ref(), body.value(), org);
        }
        Edit::Delete { kind: Kind::User, id } => scope.users.extend([id.clone()]),
        Edit::Delete { kind: Kind::Licence, id } => scope.licences.extend([id.clone()]),
        Edit::Delete { kind: Kind::Profile, id } => scope.profiles.extend([id.clone()]),
        Edit::Delete { kind, id } => {
            let (users, licences, profiles) = Default::default();
            let namers_of = Some((*kind, id.clone()));
            return Scope::Some { users, licences, profiles, namers_of };
        }
        Edit::Assign { licence, user } => {
            scope.licences.extend([licence.clone()]);
            scope.users.extend(user.clone());
        }
        Edit::Member { user, .. } => scope.users.extend([user.clone()]),
        Edit::Rotate { .. } | Edit::DropSecret { .. } => {}
    }
    scope.done()
}

/// The users and licences that one of them is shown with.
pub fn scope_of_one(kind: Kind, id: &Id) -> Scope {
    let mut scope = Named::default();
    match kind {
        Kind::User => scope.users.extend([id.clone()]),
        _ => scope.licences.extend([id.clone()]),
    }
    scope.done()
}

/// The ids of users, licences and profiles that something names.
#[derive(Default)]
struct Named {
    users: BTreeSet<Id>,
    licences: BTreeSet<Id>,
    profiles: BTreeSet<Id>,
}

impl Named {
    fn done(self) -> Scope {
        let Self { users, licences, profiles } = self;
        Scope::Some { users, licences, profiles, namers_of: None }
    }

    fn kind(&mut self, kind: &KeyKind) {
        match kind {
            KeyKind::User(user) => self.users.extend([user.clone()]),
            KeyKind::Service(ActsFor::Some { users, .. }) => self.users.extend(users.clone()),
            KeyKind::Service(ActsFor::Everyone) | KeyKind::Principal(_) => {}
        }
    }

    /// What a body names, read leniently: a body that makes no sense is refused later.
    fn body(&mut self, kind: Kind, id: Option<&Id>, body: &Value, org: &Rows) {
        let ids = |pointer: &str, key: &str| {
            let list = body.pointer(pointer).and_then(Value::as_array);
            let text = |value: &Value| value.pointer(key)?.as_str()?.parse().ok();
            list.into_iter().flatten().filter_map(text).collect::<Vec<Id>>()
        };
        let one = |key: &str| body.get(key)?.as_str()?.parse::<Id>().ok();
        match kind {
            Kind::User => {
                self.users.extend(id.cloned());
                self.licences.extend(ids("/licences", "/id"));
            }
            Kind::Licence => {
                self.licences.extend(id.cloned());
                self.users.extend(one("user"));
            }
            Kind::Profile if body.get("users").is_some() => {
                self.profiles.extend(id.cloned());
                self.users.extend(ids("/users", ""));
            }
            Kind::Key => {
                self.users.extend(one("user"));
                self.users.extend(ids("/acts_for/users", ""));
                if let Some(row) = id.and_then(|id| org.details.keys.get(id)) {
                    self.kind(&row.kind);
                }
            }
            _ => {}
        }
    }
}

/// What of the org a document can touch or names.
fn document_scope(document: &Document) -> Scope {
    // Pruning can break a reference from anywhere.
    if !document.prune.is_empty() {
        return Scope::All;
    }
    let mut named = Named::default();
    for entry in document.users.iter().flatten() {
        named.users.insert(entry.id.clone());
        named.licences.extend(entry.value.licences.iter().map(|licence| licence.id.clone()));
    }
    for entry in document.profiles.iter().flatten() {
        named.profiles.insert(entry.id.clone());
        named.users.extend(entry.value.users.iter().flatten().cloned());
    }
    for entry in document.keys.iter().flatten() {
        named.kind(&entry.value.kind);
    }
    named.done()
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
    let planned = |document: &Document, surroundings: &mut Surroundings<'_>| {
        apply::plan(org, current, document, surroundings, now).map_err(Refused::Invalid)
    };
    let (rows, kind, body, how) = match (edit, current) {
        (Edit::Document(document), _) => return planned(document, surroundings),
        (Edit::Put { kind: kind @ Kind::Org, body, how, .. }, _) => {
            (current.cloned().unwrap_or_else(|| Rows::empty(org.clone())), kind, body, *how)
        }
        (_, None) => return Err(Refused::NotFound(format!("org {org}"))),
        (Edit::Put { kind, body, how, .. }, Some(rows)) => (rows.clone(), kind, body, *how),
        (edit, Some(rows)) => return change(edit, rows.clone(), surroundings, now),
    };
    let target = edit.target(org).ok_or_else(|| {
        let detail = "expected the id of what is to be made: 1 to 128 characters from \
                      A-Z a-z 0-9 . _ @ + -, starting with a letter or digit";
        invalid(kind.id_key(), detail)
    })?;
    let there = current.and_then(|rows| things::of_rows(rows, *kind, &target.1));
    let body = complete(*kind, &target.1, body.value(), there, how)?;
    if *kind == Kind::Licence {
        return put_licence(rows, &target.1, &body, now);
    }
    let (wrapped, pointer) = match kind {
        Kind::Org => (json!({ "org": body }), "/org".to_owned()),
        _ => (json!({ kind.word(): [body] }), format!("/{kind}/0")),
    };
    let mut document = Source::from_value(wrapped).document();
    document.made_by = MadeBy::Api;
    for profile in document.profiles.iter_mut().flatten() {
        if body.get("users").is_none() {
            profile.value.users = None;
        }
    }
    planned(&document, surroundings).map_err(|refused| match refused {
        Refused::Invalid(problems) => Refused::Invalid(within(problems, &pointer)),
        other => other,
    })
}

/// The whole body of a thing: merged with what is there, and with its id.
fn complete(
    kind: Kind,
    id: &Id,
    body: &Value,
    there: Option<Thing>,
    how: How,
) -> Result<Value, Refused> {
    match (how, &there) {
        (How::Create, Some(_)) => {
            return Err(Refused::Conflict(format!("{kind} {id} is there already")));
        }
        (How::Merge, None) => return Err(Refused::NotFound(format!("{kind} {id}"))),
        _ => {}
    }
    let mut there = there.map(|thing| thing.document);
    let mut body = body.clone();
    if let (Kind::Key, Some(given)) = (kind, body.as_object_mut()) {
        // They are shown with the key and changed by rotation only.
        let shown = there.as_mut().and_then(|there| there.as_object_mut()?.remove("secrets"));
        if given.remove("secrets").is_some_and(|secrets| shown != Some(secrets)) {
            return Err(invalid("secrets", "are changed by rotation only"));
        }
    }
    let mut body = match (how, there) {
        (How::Merge, Some(there)) => merged(there, body),
        _ => body,
    };
    if let Some(map) = body.as_object_mut() {
        let named = map.entry(kind.id_key()).or_insert_with(|| json!(id));
        if named.as_str().is_some_and(|named| named != id.as_str()) {
            return Err(invalid(kind.id_key(), &format!("this was sent to {kind} {id}")));
        }
    }
    Ok(body)
}

/// A JSON merge patch (RFC 7396, section 2). It is as deep as the patch, which a parser bounded.
fn merged(target: Value, patch: Value) -> Value {
    let Value::Object(patch) = patch else { return patch };
    let mut target = match target {
        Value::Object(map) => map,
        _ => serde_json::Map::new(),
    };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(&key);
        } else {
            let before = target.remove(&key).unwrap_or(Value::Null);
            target.insert(key, merged(before, value));
        }
    }
    Value::Object(target)
}

fn put_licence(mut next: Rows, id: &Id, body: &Value, now: Timestamp) -> Result<Rows, Refused> {
    let (user, entry) = file::licence(body).map_err(Refused::Invalid)?;
    if !next.details.plans.contains_key(&entry.plan) {
        return Err(invalid("plan", &format!("there is no plan {}", entry.plan)));
    }
    let before = next.licences.get(id).map(|row| &row.value);
    let licence = Licence {
        plan: entry.plan,
        holder: before.and_then(|before| before.holder.clone()),
        priority: entry.priority,
        expires: entry.expires,
        moved: before.and_then(|before| before.moved.clone()),
    };
    may_hold(&next, id, user.as_ref())?;
    apply::assign(&mut next, id, licence, user.as_ref(), MadeBy::Api, now);
    Ok(next)
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
        Edit::Delete { kind, id } => delete(&mut next, *kind, id, now)?,
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

fn delete(next: &mut Rows, kind: Kind, id: &Id, now: Timestamp) -> Result<(), Refused> {
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

/// Problems of a document as problems of the one thing in it.
fn within(problems: Vec<Problem>, pointer: &str) -> Vec<Problem> {
    let inside = |problem: Problem| Problem {
        pointer: problem.pointer.strip_prefix(pointer).unwrap_or(&problem.pointer).to_owned(),
        ..problem
    };
    problems.into_iter().map(inside).collect()
}
