//! Which rows an edit looks at, so that an org of a million users is not read for one of them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Edit;
use crate::core::ids::Id;
use crate::directory::file::Document;
use crate::directory::rows::{KeyKind, Rows};
use crate::directory::snapshot::ActsFor;
use crate::directory::store::Scope;
use crate::directory::things::Kind;

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
