//! What an org file says, section by section.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use jiff::Timestamp;
use jiff::civil::Date;
use serde_json::Value;

use super::keys::{
    ACTS_FOR_KEYS, APPLY_KEYS, GROUP_KEYS, KEY_KEYS, LICENCE_KEYS, LISTS, ORG_KEYS,
    OWN_LICENCE_KEYS, PLAN_KEYS, PROFILE_KEYS, RATE_CARD_KEYS, ROTATION_KEYS, SECTIONS, TERM_KEYS,
    USER_KEYS,
};
use super::reader::{Object, Problem, Problems, note};
use super::{SHORTEST_SECRET, hash_secret};
use crate::core::cycle::Anchor;
use crate::core::ids::Id;
use crate::core::price::{Rate, RateCard, RateCardFile};
use crate::directory::rows::{
    Group, KeyKind, MadeBy, Plan, Profile, Settings, Term, User, When, zone,
};
use crate::directory::snapshot::{ActsFor, KeyHash, MAX_LICENCES};

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

/// Reads a document from its tree, noting the problems.
pub fn read(value: &Value) -> Document {
    let problems = Problems::default();
    let mut reading = Reading::new(&problems);
    reading.root(value);
    for &name in LISTS {
        let Some(list) = value.get(name) else { continue };
        let Value::Array(elements) = list else {
            note(&problems, format!("/{name}"), "expected a list");
            continue;
        };
        reading.begin(name);
        for (index, element) in elements.iter().enumerate() {
            if problems.are_too_many() {
                break;
            }
            reading.element(name, index, element);
        }
    }
    let mut document = reading.done();
    document.problems = problems.into_inner();
    document
}

/// A document that is being read, one section after the other.
pub struct Reading<'a> {
    document: Document,
    problems: &'a Problems,
    seen: Seen,
}

/// Which of a section's entries has an id.
type Seen = HashMap<Id, usize>;

impl<'a> Reading<'a> {
    /// Nothing is read yet.
    pub fn new(problems: &'a Problems) -> Self {
        Self { document: Document::default(), problems, seen: Seen::default() }
    }

    /// Reads what is no list, and notes what is no section.
    pub fn root(&mut self, value: &Value) {
        if let Some(root) = Object::new(value, String::new(), SECTIONS, self.problems) {
            self.document.prune = prune(&root);
            self.document.org = root.object("org", ORG_KEYS).map(|object| org(&object));
        }
    }

    /// Begins one of [`LISTS`].
    pub fn begin(&mut self, section: &str) {
        self.seen = Seen::default();
        let document = &mut self.document;
        match section {
            "term" => document.terms = Some(Vec::new()),
            "plan" => document.plans = Some(Vec::new()),
            "group" => document.groups = Some(Vec::new()),
            "user" => document.users = Some(Vec::new()),
            "profile" => document.profiles = Some(Vec::new()),
            "rate_card" => document.cards = Some(Vec::new()),
            "key" => document.keys = Some(Vec::new()),
            _ => {}
        }
    }

    /// Reads an element of the section that was begun.
    pub fn element(&mut self, section: &str, index: usize, value: &Value) {
        let Self { document, problems, seen } = self;
        let object = |keys: &'static [&'static str]| {
            Object::new(value, format!("/{section}/{index}"), keys, problems)
        };
        match section {
            "term" => put(&mut document.terms, seen, object(TERM_KEYS), "id", term),
            "plan" => put(&mut document.plans, seen, object(PLAN_KEYS), "id", plan),
            "group" => put(&mut document.groups, seen, object(GROUP_KEYS), "id", |_| Some(Group)),
            "user" => put(&mut document.users, seen, object(USER_KEYS), "id", user),
            "profile" => put(&mut document.profiles, seen, object(PROFILE_KEYS), "id", profile),
            "rate_card" => {
                put(&mut document.cards, seen, object(RATE_CARD_KEYS), "version", rate_card);
            }
            "key" => put(&mut document.keys, seen, object(KEY_KEYS), "id", key),
            _ => {}
        }
    }

    /// What was read.
    pub fn done(self) -> Document {
        one_holder_each(&self.document, self.problems);
        self.document
    }
}

/// Reads one element of a section; one that has no id or makes no sense is noted and left out,
/// and so is the second of two with one id.
fn put<T>(
    entries: &mut Option<Vec<Entry<T>>>,
    seen: &mut Seen,
    object: Option<Object<'_>>,
    id_key: &str,
    read: impl Fn(&Object<'_>) -> Option<T>,
) {
    let (Some(entries), Some(object)) = (entries, object) else { return };
    let id = object.required::<Id>(id_key);
    let value = read(&object);
    let (Some(id), Some(value)) = (id, value) else { return };
    match seen.entry(id.clone()) {
        Slot::Occupied(first) => {
            let first = entries.get(*first.get()).map_or("", |entry| &entry.pointer);
            object.note(id_key, format!("{id} is already at {first}"));
        }
        Slot::Vacant(slot) => {
            slot.insert(entries.len());
            entries.push(Entry { pointer: object.pointer, id, value });
        }
    }
}

fn ids(object: &Object<'_>, key: &str) -> Vec<Id> {
    object.list(key).unwrap_or_default().into_iter().map(|(_, id)| id).collect()
}

fn prune(root: &Object<'_>) -> Vec<String> {
    let Some(apply) = root.object("apply", APPLY_KEYS) else { return Vec::new() };
    let named: Vec<(usize, String)> = apply.list("prune").unwrap_or_default();
    for (index, section) in &named {
        if !LISTS.contains(&section.as_str()) {
            let expected = LISTS.join(", ");
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

fn user(object: &Object<'_>) -> Option<UserEntry> {
    let mut licences = Some(Vec::new());
    let mut seen = Seen::default();
    for licence in object.objects("licences", LICENCE_KEYS) {
        put(&mut licences, &mut seen, licence, "id", held_licence);
    }
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
        if problems.are_too_many() {
            break;
        }
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
