//! Single things as documents: what the admin API shows and takes, with the org file's keys, and
//! the tags that tell whether one has changed.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::rows::{
    Details, Key, KeyKind, Licence, Plan, Profile, Rows, Secret, Settings, Table, Term, User, hex,
    zone_name,
};
use super::snapshot::{ActsFor, Org};
use crate::core::account::Version;
use crate::core::cycle::Schedule;
use crate::core::ids::Id;

/// A kind of thing that an edit can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The org's own settings.
    Org,
    /// A contract period.
    Term,
    /// A plan.
    Plan,
    /// A group.
    Group,
    /// A user.
    User,
    /// A licence.
    Licence,
    /// A product profile.
    Profile,
    /// A rate card.
    RateCard,
    /// A key.
    Key,
}

/// A thing as it is shown. Writing the document back changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thing {
    /// The org file's keys of its section; what is not set is absent.
    pub document: Value,
    /// Equal for equal documents only: a strong entity tag (RFC 9110, section 8.8.3), without
    /// its quotes.
    pub etag: String,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Org,
        Self::Term,
        Self::Plan,
        Self::Group,
        Self::User,
        Self::Licence,
        Self::Profile,
        Self::RateCard,
        Self::Key,
    ];

    /// The section's name in the org file, or `licence`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Org => "org",
            Self::Term => "term",
            Self::Plan => "plan",
            Self::Group => "group",
            Self::User => "user",
            Self::Licence => "licence",
            Self::Profile => "profile",
            Self::RateCard => "rate_card",
            Self::Key => "key",
        }
    }

    /// The key that holds its id.
    pub const fn id_key(self) -> &'static str {
        match self {
            Self::RateCard => "version",
            _ => "id",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Kind {
    type Err = ();
    fn from_str(word: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|kind| kind.word() == word).ok_or(())
    }
}

impl Thing {
    /// A document and its tag.
    pub fn new(document: Value) -> Self {
        // Keys of an object are sorted, so equal documents have equal texts.
        let digest = Sha256::digest(document.to_string().as_bytes());
        Self { document, etag: hex(&digest[..16]) }
    }
}

/// The tag of an org as a whole: of its lists, and of what `apply` starts from.
pub fn org_tag(version: Version) -> String {
    format!("{}.{}", version.epoch, version.number)
}

/// One thing of an org in the snapshot, which holds no rows of users and licences: for those this
/// is `None`.
pub fn of_org(org: &Org, kind: Kind, id: &str) -> Option<Thing> {
    match kind {
        Kind::Org => {
            let own = org.id.as_str() == id;
            own.then(|| Thing::new(settings(&org.id, &org.details.settings, &org.schedule)))
        }
        _ => of_details(&org.details, kind, id),
    }
}

/// Things of an org by id, after one: at most `limit`, and whether there are more. Users and
/// licences are not among them.
pub fn list(org: &Org, kind: Kind, after: Option<&str>, limit: usize) -> (Vec<Thing>, bool) {
    let details = &org.details;
    let ids: Vec<&Id> = match kind {
        Kind::Org | Kind::User | Kind::Licence => Vec::new(),
        Kind::Term => ids_after(&details.terms, after, limit),
        Kind::Plan => ids_after(&details.plans, after, limit),
        Kind::Group => ids_after(&details.groups, after, limit),
        Kind::Profile => ids_after(&details.profiles, after, limit),
        Kind::RateCard => ids_after(&details.cards, after, limit),
        Kind::Key => ids_after(&details.keys, after, limit),
    };
    let shown = ids.iter().take(limit);
    let things = shown.filter_map(|id| of_details(details, kind, id.as_str())).collect();
    (things, ids.len() > limit)
}

/// One thing of what a change has loaded.
pub fn of_rows(rows: &Rows, kind: Kind, id: &Id) -> Option<Thing> {
    match kind {
        Kind::Org => {
            let own = rows.id == *id;
            own.then(|| Thing::new(settings(&rows.id, &rows.details.settings, &rows.schedule)))
        }
        Kind::User => rows.users.get(id).map(|row| {
            let held = rows.licences.iter().filter(|(_, row)| row.holder.as_ref() == Some(id));
            Thing::new(user(id, row, held.map(|(id, row)| (id, &row.value))))
        }),
        Kind::Licence => rows.licences.get(id).map(|row| of_licence(id, row)),
        _ => of_details(&rows.details, kind, id.as_str()),
    }
}

/// A licence.
pub fn of_licence(id: &Id, row: &Licence) -> Thing {
    let mut document = licence(id, row);
    if let (Some(user), Some(map)) = (&row.holder, document.as_object_mut()) {
        map.insert("user".to_owned(), json!(user));
    }
    Thing::new(document)
}

fn ids_after<'a, T>(table: &'a Table<T>, after: Option<&str>, limit: usize) -> Vec<&'a Id> {
    use std::ops::Bound::{Excluded, Unbounded};
    let from = after.map_or(Unbounded, Excluded);
    let rest = table.range::<str, _>((from, Unbounded));
    rest.map(|(id, _)| id).take(limit.saturating_add(1)).collect()
}

fn of_details(details: &Details, kind: Kind, id: &str) -> Option<Thing> {
    fn pair<'a, T>(table: &'a Table<T>, id: &str) -> Option<(&'a Id, &'a T)> {
        table.get_key_value(id).map(|(id, row)| (id, &row.value))
    }
    let document = match kind {
        Kind::Org | Kind::User | Kind::Licence => None,
        Kind::Term => pair(&details.terms, id).map(|(id, row)| term(id, row)),
        Kind::Plan => pair(&details.plans, id).map(|(id, row)| plan(id, row)),
        Kind::Group => pair(&details.groups, id).map(|(id, _)| json!({ "id": id })),
        Kind::Profile => pair(&details.profiles, id).map(|(id, row)| profile(id, row)),
        Kind::RateCard => {
            pair(&details.cards, id).and_then(|(_, row)| serde_json::to_value(row).ok())
        }
        Kind::Key => pair(&details.keys, id).map(|(id, row)| key(id, row)),
    };
    document.map(Thing::new)
}

/// The object less what is null: a key that is not set is absent.
fn object(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            Value::Object(map.into_iter().filter(|(_, value)| !value.is_null()).collect())
        }
        other => other,
    }
}

fn settings(id: &Id, settings: &Settings, schedule: &Schedule) -> Value {
    let era = schedule.latest();
    object(json!({
        "id": id,
        "timezone": zone_name(&era.zone),
        "anchor": era.anchor,
        "contract": settings.contract,
        "products": settings.products,
        "offers": settings.offers,
        "bases": settings.bases,
        "overage": settings.overage,
        "split": settings.split,
        "mode": settings.mode,
        "on_reassign": settings.on_reassign,
        "pool_limit": settings.pool_limit,
    }))
}

fn term(id: &Id, row: &Term) -> Value {
    object(json!({
        "id": id,
        "start": row.start,
        "end": row.end,
        "pool": row.pool,
        "price_per_operation": row.price_per_operation,
        "currency": row.currency,
    }))
}

fn plan(id: &Id, row: &Plan) -> Value {
    json!({ "id": id, "credits": row.credits })
}

fn user<'a>(id: &Id, row: &User, held: impl Iterator<Item = (&'a Id, &'a Licence)>) -> Value {
    object(json!({
        "id": id,
        "email": row.email,
        "suspended": row.suspended,
        "pool_limit": row.pool_limit,
        "groups": row.groups,
        "licences": held.map(|(id, row)| licence(id, row)).collect::<Vec<_>>(),
    }))
}

fn licence(id: &Id, row: &Licence) -> Value {
    object(json!({
        "id": id,
        "plan": row.plan,
        "priority": row.priority,
        "expires": row.expires.map(|expires| expires.to_string()),
    }))
}

/// The users a profile names are its members, a list of their own: an org may have a million.
fn profile(id: &Id, row: &Profile) -> Value {
    object(json!({
        "id": id,
        "product": row.product,
        "shared_credits": row.shared_credits,
        "pool_limit": row.pool_limit,
        "overage": row.overage,
        "groups": row.groups,
    }))
}

fn key(id: &Id, row: &Key) -> Value {
    let mut map = Map::new();
    let (kind, names, value) = match &row.kind {
        KeyKind::Service(ActsFor::Everyone) => ("service", "acts_for", json!("*")),
        KeyKind::Service(ActsFor::Some { users, groups }) => {
            ("service", "acts_for", json!({ "users": users, "groups": groups }))
        }
        KeyKind::User(user) => ("user", "user", json!(user)),
        KeyKind::Principal(profile) => ("principal", "profile", json!(profile)),
    };
    map.insert("id".to_owned(), json!(id));
    map.insert("kind".to_owned(), json!(kind));
    map.insert(names.to_owned(), value);
    map.insert("pool_limit".to_owned(), json!(row.pool_limit));
    let secrets = row
        .secrets
        .iter()
        .map(|secret| object(json!({ "id": secret_id(secret), "expires": secret.expires })));
    map.insert("secrets".to_owned(), secrets.collect());
    object(Value::Object(map))
}

/// How a secret is named: a few digits of its hash tell two of them apart and give neither away.
pub fn secret_id(secret: &Secret) -> String {
    hex(&secret.hash[..4])
}
