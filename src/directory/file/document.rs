//! What an org file says, section by section.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use jiff::Timestamp;
use jiff::civil::Date;
use serde_json::Value;

use super::reader::{Object, Problem, Problems, note};
use super::{SHORTEST_SECRET, hash_secret};
use crate::core::cycle::Anchor;
use crate::core::ids::Id;
use crate::core::price::{Rate, RateCard, RateCardFile};
use crate::directory::rows::{
    Group, KeyKind, MadeBy, Plan, Profile, Settings, Term, User, When, zone,
};
use crate::directory::snapshot::{ActsFor, KeyHash, MAX_LICENCES, Mode};

/// Every section.
pub const SECTIONS: &[&str] =
    &["apply", "org", "term", "plan", "group", "user", "profile", "rate_card", "key"];
/// The keys of `[apply]`.
pub const APPLY_KEYS: &[&str] = &["prune"];
/// The keys of `[org]`.
pub const ORG_KEYS: &[&str] = &[
    "id",
    "timezone",
    "anchor",
    "contract",
    "products",
    "offers",
    "bases",
    "overage",
    "split",
    "mode",
    "on_reassign",
    "pool_limit",
];
/// The keys of `[[term]]`.
pub const TERM_KEYS: &[&str] = &["id", "start", "end", "pool", "price_per_operation", "currency"];
/// The keys of `[[plan]]`.
pub const PLAN_KEYS: &[&str] = &["id", "credits"];
/// The keys of `[[group]]`.
pub const GROUP_KEYS: &[&str] = &["id"];
/// The keys of `[[user]]`.
pub const USER_KEYS: &[&str] = &["id", "email", "suspended", "pool_limit", "licences", "groups"];
/// The keys of a user's `licences`.
pub const LICENCE_KEYS: &[&str] = &["id", "plan", "priority", "expires"];
/// The keys of a licence as a thing of its own, in the admin API.
pub const OWN_LICENCE_KEYS: &[&str] = &["id", "plan", "user", "priority", "expires"];
/// The keys of a rotation, in the admin API.
pub const ROTATION_KEYS: &[&str] = &["secret", "until"];
/// The keys of `[[profile]]`.
pub const PROFILE_KEYS: &[&str] =
    &["id", "product", "shared_credits", "users", "groups", "pool_limit", "overage"];
/// The keys of `[[rate_card]]`.
pub const RATE_CARD_KEYS: &[&str] =
    &["version", "offer", "effective", "operations_per_credit", "rate"];
/// The keys of `[[rate_card.rate]]`.
pub const RATE_KEYS: &[&str] =
    &["feature", "meter", "when", "unit", "credits", "operations", "tier", "pool"];
/// The keys of `[[key]]`.
pub const KEY_KEYS: &[&str] = &[
    "id",
    "kind",
    "user",
    "profile",
    "acts_for",
    "pool_limit",
    "secret",
    "secret_env",
    "secret_file",
];
/// The keys of a key's `acts_for`, where it is not `"*"`.
pub const ACTS_FOR_KEYS: &[&str] = &["users", "groups"];

/// An org file that was read. A section that is `None` was absent.
#[derive(Clone, Debug, Default)]
pub struct Document {
    /// `[apply] prune`: sections of which what a file made and this one omits is removed.
    pub prune: Vec<String>,
    /// Who makes what it makes.
    pub made_by: MadeBy,
    /// `[org]`
    pub org: Option<OrgEntry>,
    /// `[[term]]`
    pub terms: Option<Vec<Entry<Term>>>,
    /// `[[plan]]`
    pub plans: Option<Vec<Entry<Plan>>>,
    /// `[[group]]`
    pub groups: Option<Vec<Entry<Group>>>,
    /// `[[user]]`
    pub users: Option<Vec<Entry<UserEntry>>>,
    /// `[[profile]]`
    pub profiles: Option<Vec<Entry<ProfileEntry>>>,
    /// `[[rate_card]]`
    pub cards: Option<Vec<Entry<RateCardFile>>>,
    /// `[[key]]`
    pub keys: Option<Vec<Entry<KeyEntry>>>,
    /// Everything wrong with it that can be seen without knowing the org.
    pub problems: Vec<Problem>,
}

/// One element of a section.
#[derive(Clone, Debug)]
pub struct Entry<T> {
    /// Where it is in the document.
    pub pointer: String,
    /// Its id.
    pub id: Id,
    /// What it says.
    pub value: T,
}

/// The `[org]` section.
#[derive(Clone, Debug)]
pub struct OrgEntry {
    /// Which org.
    pub id: Option<Id>,
    /// Its settings.
    pub settings: Settings,
    /// On which day cycles start.
    pub anchor: Anchor,
    /// The zone's name.
    pub zone: String,
}

/// One `[[user]]`; lists keep the document's order, so that problems name the right place.
#[derive(Clone, Debug)]
pub struct UserEntry {
    /// The user, without profiles.
    pub user: User,
    /// The user's licences.
    pub licences: Vec<Entry<LicenceEntry>>,
}

/// One of a user's licences.
#[derive(Clone, Debug)]
pub struct LicenceEntry {
    /// Its plan.
    pub plan: Id,
    /// The lower number burns first.
    pub priority: u32,
    /// Until when it pays.
    pub expires: Option<When>,
}

/// One `[[profile]]`.
#[derive(Clone, Debug)]
pub struct ProfileEntry {
    /// The profile.
    pub profile: Profile,
    /// Users it names directly; `None` leaves them alone, which no file can say.
    pub users: Option<Vec<Id>>,
}

/// One `[[key]]`.
#[derive(Clone, Debug)]
pub struct KeyEntry {
    /// What it may do.
    pub kind: KeyKind,
    /// Its own limit on draws.
    pub pool_limit: Option<crate::core::amount::Operations>,
    /// The hash of its secret, where one is given.
    pub secret: Option<KeyHash>,
}

/// The priority of a licence that names none.
const PRIORITY: u32 = 1;

/// Reads a document, noting every problem.
pub fn read(value: &Value) -> Document {
    let problems = Problems::default();
    let mut document = Document::default();
    if let Some(root) = Object::new(value, String::new(), SECTIONS, &problems) {
        document.prune = prune(&root);
        document.org = root.object("org", ORG_KEYS).map(|object| org(&object));
        document.terms = section(&root, "term", TERM_KEYS, "id", &problems, term);
        document.plans = section(&root, "plan", PLAN_KEYS, "id", &problems, plan);
        document.groups = section(&root, "group", GROUP_KEYS, "id", &problems, |_| Some(Group));
        document.users =
            section(&root, "user", USER_KEYS, "id", &problems, |object| user(object, &problems));
        document.profiles = section(&root, "profile", PROFILE_KEYS, "id", &problems, profile);
        document.cards =
            section(&root, "rate_card", RATE_CARD_KEYS, "version", &problems, rate_card);
        document.keys = section(&root, "key", KEY_KEYS, "id", &problems, key);
        one_holder_each(&document, &problems);
    }
    document.problems = problems.into_inner();
    document
}

/// Reads the elements of a section; those that have no id or make no sense are noted and left
/// out, and so is the second of two with one id.
fn section<T>(
    parent: &Object<'_>,
    name: &str,
    keys: &[&str],
    id_key: &str,
    problems: &Problems,
    read: impl Fn(&Object<'_>) -> Option<T>,
) -> Option<Vec<Entry<T>>> {
    let mut seen: HashMap<Id, String> = HashMap::new();
    let mut entries = Vec::new();
    for (_, object) in parent.objects(name, keys)? {
        let id = object.required::<Id>(id_key);
        let value = read(&object);
        let (Some(id), Some(value)) = (id, value) else { continue };
        match seen.entry(id.clone()) {
            Slot::Occupied(first) => {
                let detail = format!("{id} is already at {}", first.get());
                note(problems, object.at(id_key), detail);
            }
            Slot::Vacant(slot) => {
                slot.insert(object.pointer.clone());
                entries.push(Entry { pointer: object.pointer, id, value });
            }
        }
    }
    Some(entries)
}

fn ids(object: &Object<'_>, key: &str) -> Vec<Id> {
    object.list(key).unwrap_or_default().into_iter().map(|(_, id)| id).collect()
}

fn prune(root: &Object<'_>) -> Vec<String> {
    let Some(apply) = root.object("apply", APPLY_KEYS) else { return Vec::new() };
    let named: Vec<(usize, String)> = apply.list("prune").unwrap_or_default();
    for (index, section) in &named {
        if !SECTIONS[2..].contains(&section.as_str()) {
            let expected = SECTIONS[2..].join(", ");
            apply.note(&format!("prune/{index}"), format!("expected one of {expected}"));
        }
    }
    named.into_iter().map(|(_, section)| section).collect()
}

fn org(object: &Object<'_>) -> OrgEntry {
    let anchor = object.or_default("anchor");
    if matches!(anchor, Anchor::Day(day) if !(1..=31).contains(&day)) {
        object.note("anchor/day", "expected a day from 1 to 31");
    }
    let name: String = object.optional("timezone").unwrap_or_else(|| "UTC".to_owned());
    if zone(&name).is_none() {
        object.note("timezone", format!("{name:?} is not a time zone of the IANA database"));
    }
    let default = Settings::default();
    let list = |key: &str, default: Vec<Id>| match object.raw(key) {
        Some(_) => ids(object, key),
        None => default,
    };
    let settings = Settings {
        contract: object.optional("contract"),
        products: ids(object, "products"),
        offers: list("offers", default.offers),
        bases: list("bases", default.bases),
        overage: object.or_default("overage"),
        split: object.or_default("split"),
        mode: object.or_default("mode"),
        on_reassign: object.or_default("on_reassign"),
        pool_limit: object.optional("pool_limit"),
    };
    if settings.mode == Mode::Observe {
        object.note("mode", "\"observe\" is not built yet; only \"enforce\" is");
    }
    OrgEntry { id: object.required("id"), settings, anchor, zone: name }
}

fn term(object: &Object<'_>) -> Option<Term> {
    let (start, end) = (object.required::<Date>("start"), object.required::<Date>("end"));
    let pool = object.required("pool");
    let price_per_operation = object.optional("price_per_operation");
    let currency = object.optional("currency");
    let (start, end) = (start?, end?);
    if end <= start {
        object.note("end", format!("must be after the start, {start}"));
    }
    Some(Term { start, end, pool: pool?, price_per_operation, currency })
}

fn plan(object: &Object<'_>) -> Option<Plan> {
    Some(Plan { credits: object.required("credits")? })
}

fn user(object: &Object<'_>, problems: &Problems) -> Option<UserEntry> {
    let licences = section(object, "licences", LICENCE_KEYS, "id", problems, held_licence);
    let licences = licences.unwrap_or_default();
    if licences.len() > MAX_LICENCES {
        object.note("licences", format!("a seat has at most {MAX_LICENCES} licences"));
    }
    let email: Option<String> = object.optional("email");
    if email.as_ref().is_some_and(|email| email.len() > 254 || email.chars().any(char::is_control))
    {
        object.note("email", "expected at most 254 characters, none of them a control character");
    }
    let user = User {
        email,
        suspended: object.or_default("suspended"),
        pool_limit: object.optional("pool_limit"),
        groups: ids(object, "groups"),
        profiles: Vec::new(),
    };
    Some(UserEntry { user, licences })
}

/// Reads a licence that stands for itself: who is to hold it, and the licence.
///
/// # Errors
/// Everything wrong with it.
pub fn licence(value: &Value) -> Result<(Option<Id>, LicenceEntry), Vec<Problem>> {
    read_one(value, OWN_LICENCE_KEYS, |object| {
        let (_, user) = (object.required::<Id>("id"), object.optional("user"));
        Some((user, held_licence(object)?))
    })
}

/// Reads a rotation: the hash of the new secret, where one is given, and until when the old one
/// lives.
///
/// # Errors
/// Everything wrong with it.
pub fn rotation(value: &Value) -> Result<(Option<KeyHash>, Option<Timestamp>), Vec<Problem>> {
    read_one(value, ROTATION_KEYS, |object| Some((secret(object), object.optional("until"))))
}

/// Reads one object that is no part of an org file.
pub fn read_one<T>(
    value: &Value,
    keys: &[&str],
    read: impl FnOnce(&Object<'_>) -> Option<T>,
) -> Result<T, Vec<Problem>> {
    let problems = Problems::default();
    let read = Object::new(value, String::new(), keys, &problems).and_then(|object| read(&object));
    match (read, problems.into_inner()) {
        (Some(read), problems) if problems.is_empty() => Ok(read),
        (_, problems) => Err(problems),
    }
}

fn held_licence(object: &Object<'_>) -> Option<LicenceEntry> {
    let priority = object.optional("priority").unwrap_or(PRIORITY);
    let expires = object.optional("expires");
    Some(LicenceEntry { plan: object.required("plan")?, priority, expires })
}

fn profile(object: &Object<'_>) -> Option<ProfileEntry> {
    let users = ids(object, "users");
    let profile = |product| Profile {
        product,
        shared_credits: object.or_default("shared_credits"),
        pool_limit: object.optional("pool_limit"),
        overage: object.optional("overage"),
        groups: ids(object, "groups"),
    };
    let product = object.required("product");
    // Read even without a product, so that what else is wrong is told at the same time.
    let profile = profile(product.clone().or_else(|| "none".parse().ok())?);
    product.map(|_| ProfileEntry { profile, users: Some(users) })
}

fn rate_card(object: &Object<'_>) -> Option<RateCardFile> {
    let rates = object.raw("rate").and_then(Value::as_array).map_or(0, Vec::len);
    let read: Vec<(usize, Rate)> = object.list("rate").unwrap_or_default();
    let complete = read.len() == rates;
    let version = object.raw("version").and_then(Value::as_str).and_then(|text| text.parse().ok());
    let offer = object.optional("offer");
    let effective = object.optional("effective");
    let operations_per_credit = object.required("operations_per_credit");
    let file = RateCardFile {
        version: version?,
        offer,
        effective,
        operations_per_credit: operations_per_credit?,
        rates: read.into_iter().map(|(_, rate)| rate).collect(),
    };
    // Indexes in these messages are those of the file, so it must have been read whole.
    if complete && let Err(error) = RateCard::new(file.clone()) {
        object.note("rate", error.to_string());
    }
    Some(file)
}

fn key(object: &Object<'_>) -> Option<KeyEntry> {
    let secret = secret(object);
    let pool_limit = object.optional("pool_limit");
    let kind: Option<String> = object.required("kind");
    let kind = match kind?.as_str() {
        "service" => Some(KeyKind::Service(acts_for(object))),
        "user" => object.required("user").map(KeyKind::User),
        "principal" => object.required("profile").map(KeyKind::Principal),
        _ => {
            object.note("kind", "expected \"service\", \"user\" or \"principal\"");
            return None;
        }
    };
    let own = match &kind {
        Some(KeyKind::Service(_)) => "acts_for",
        Some(KeyKind::User(_)) => "user",
        Some(KeyKind::Principal(_)) => "profile",
        None => return None,
    };
    for other in ["acts_for", "user", "profile"].into_iter().filter(|other| *other != own) {
        if object.raw(other).is_some() {
            object.note(other, format!("does not go with this kind of key, which has `{own}`"));
        }
    }
    if pool_limit.is_some() && own != "profile" {
        object.note("pool_limit", "only a principal has a limit of its own; set the user's");
    }
    Some(KeyEntry { kind: kind?, pool_limit, secret })
}

fn acts_for(object: &Object<'_>) -> ActsFor {
    match object.raw("acts_for") {
        None => ActsFor::Everyone,
        Some(Value::String(star)) if star == "*" => ActsFor::Everyone,
        Some(Value::Object(_)) => {
            let lists = object.object("acts_for", ACTS_FOR_KEYS);
            let list = |key| lists.as_ref().map_or_else(Vec::new, |lists| ids(lists, key));
            ActsFor::Some { users: list("users"), groups: list("groups") }
        }
        Some(_) => {
            object.note("acts_for", "expected \"*\" or { users = […], groups = […] }");
            ActsFor::Some { users: Vec::new(), groups: Vec::new() }
        }
    }
}

fn secret(object: &Object<'_>) -> Option<KeyHash> {
    let given: Vec<&str> = ["secret", "secret_env", "secret_file"]
        .into_iter()
        .filter(|source| object.raw(source).is_some())
        .collect();
    match given.as_slice() {
        [] => None,
        ["secret"] => {
            // Not read with the others: their messages quote the value.
            let secret = object.raw("secret").and_then(Value::as_str);
            let fits = |secret: &&str| {
                secret.len() >= SHORTEST_SECRET && secret.bytes().all(|b| b.is_ascii_graphic())
            };
            let secret = secret.filter(fits);
            if secret.is_none() {
                object.note(
                    "secret",
                    format!("expected at least {SHORTEST_SECRET} visible ASCII characters"),
                );
            }
            secret.map(hash_secret)
        }
        [one] => {
            object.note(one, "is resolved where the file is read, not where it is sent");
            None
        }
        [first, rest @ ..] => {
            for other in rest {
                object.note(other, format!("cannot be given beside `{first}`"));
            }
            None
        }
    }
}

/// A licence is assigned to at most one user.
fn one_holder_each(document: &Document, problems: &Problems) {
    let mut holders: HashMap<&Id, &Id> = HashMap::new();
    for user in document.users.iter().flatten() {
        for licence in &user.value.licences {
            if let Some(first) = holders.insert(&licence.id, &user.id)
                && *first != user.id
            {
                let detail = format!("licence {} is also assigned to {first}", licence.id);
                note(problems, format!("{}/id", licence.pointer), detail);
            }
        }
    }
}
