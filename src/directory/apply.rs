//! What an org becomes by an org file: rows before, and the document, to rows after. Pure.
//!
//! A section that is absent is left alone; a present one creates and updates by id and keeps what
//! it omits, unless `[apply] prune` names it. A key that is missing means its default.

mod references;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::file::{Document, Entry, KeyEntry, Problem, Problems, UserEntry};
use super::reassign::reassign;
use super::rows::{Key, Licence, MadeBy, Profile, Row, Rows, Secret, Table, User, zone, zone_name};
use super::snapshot::KeyHash;
use crate::core::cycle::Schedule;
use crate::core::ids::Id;

/// What planning needs beside the org itself.
pub struct Surroundings<'a> {
    /// The org and key that a secret already belongs to.
    pub owner: &'a dyn Fn(&KeyHash) -> Option<(Id, Id)>,
    /// Makes the secret of a new key that names none, and gives its hash.
    pub make_secret: &'a mut dyn FnMut(&Id) -> KeyHash,
}

/// What the org becomes. `current` is `None` for an org that does not exist yet.
///
/// # Errors
/// Every problem of the document and every undefined reference; then nothing may be applied.
pub fn plan(
    id: &Id,
    current: Option<&Rows>,
    document: &Document,
    surroundings: &mut Surroundings<'_>,
    now: Timestamp,
) -> Result<Rows, Vec<Problem>> {
    let problems = Problems::from(document.problems.clone());
    if problems.are_too_many() {
        return Err(problems.into_inner());
    }
    let problem = |pointer: &str, detail: String| problems.note(pointer, detail);
    match &document.org {
        None if current.is_none() => {
            problem("/org", format!("org {id} does not exist; an [org] section makes it"));
        }
        Some(org) if org.id.as_ref().is_some_and(|own| own != id) => {
            problem("/org/id", format!("this document was sent to org {id}"));
        }
        _ => {}
    }
    let mut next = current.cloned().unwrap_or_else(|| Rows::empty(id.clone()));
    settle_org(&mut next, current.is_none(), document, now);
    let pruned = |section: &str| document.prune.iter().any(|named| named == section);
    let by = |section| (document.made_by, pruned(section));
    merge(&mut next.details.terms, &document.terms, by("term"), Clone::clone);
    merge(&mut next.details.plans, &document.plans, by("plan"), Clone::clone);
    merge(&mut next.details.groups, &document.groups, by("group"), Clone::clone);
    merge(&mut next.details.profiles, &document.profiles, by("profile"), |entry| Profile {
        groups: sorted(&entry.profile.groups),
        ..entry.profile.clone()
    });
    merge(&mut next.details.cards, &document.cards, by("rate_card"), Clone::clone);
    settle_users(&mut next, document, pruned("user"), now);
    settle_members(&mut next, document);
    settle_keys(&mut next, document, pruned("key"), surroundings, &problems);
    references::check(&next, document, &problems);
    let problems = problems.into_inner();
    if problems.is_empty() { Ok(next) } else { Err(problems) }
}

fn settle_org(next: &mut Rows, new: bool, document: &Document, now: Timestamp) {
    let Some(org) = &document.org else { return };
    next.details.settings = org.settings.clone();
    // An unknown zone was noted when the document was read.
    let Some(zone) = zone(&org.zone) else { return };
    let latest = next.schedule.latest();
    if new {
        next.schedule = Schedule::new(org.anchor, zone);
    } else if latest.anchor != org.anchor || zone_name(&latest.zone) != zone_name(&zone) {
        next.schedule.change(now, org.anchor, zone);
    }
}

/// Creates and updates by id; with `prune`, removes what a file made and this one omits.
fn merge<E, T>(
    table: &mut Table<T>,
    section: &Option<Vec<Entry<E>>>,
    (made_by, prune): (MadeBy, bool),
    value: impl Fn(&E) -> T,
) {
    let Some(entries) = section else { return };
    if prune {
        let named: HashSet<&Id> = entries.iter().map(|entry| &entry.id).collect();
        table.retain(|id, row| row.made_by == MadeBy::Api || named.contains(id));
    }
    for entry in entries {
        put(table, &entry.id, made_by, value(&entry.value));
    }
}

/// Puts a value in a table; whoever made its row first stays its maker.
fn put<T>(table: &mut Table<T>, id: &Id, made_by: MadeBy, value: T) {
    let made_by = table.get(id).map_or(made_by, |row| row.made_by);
    table.insert(id.clone(), Arc::new(Row { made_by, value }));
}

fn sorted(ids: &[Id]) -> Vec<Id> {
    ids.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect()
}

fn settle_users(next: &mut Rows, document: &Document, prune: bool, now: Timestamp) {
    let Some(entries) = &document.users else { return };
    let profiles_before: BTreeMap<Id, Vec<Id>> = entries
        .iter()
        .filter_map(|entry| Some((entry.id.clone(), next.users.get(&entry.id)?.profiles.clone())))
        .collect();
    let made_by = document.made_by;
    merge(&mut next.users, &document.users, (made_by, prune), |entry: &UserEntry| User {
        groups: sorted(&entry.user.groups),
        ..entry.user.clone()
    });
    // Which profiles name a user is said by the profiles.
    for (id, profiles) in profiles_before {
        if let Some(row) = next.users.get_mut(&id) {
            Arc::make_mut(row).value.profiles = profiles;
        }
    }
    let mut wanted: BTreeMap<&Id, (&Id, &super::file::LicenceEntry)> = BTreeMap::new();
    for entry in entries {
        for licence in &entry.value.licences {
            wanted.insert(&licence.id, (&entry.id, &licence.value));
        }
    }
    // What a named user no longer holds, and what a removed user held, lies unassigned.
    let named: HashSet<&Id> = entries.iter().map(|entry| &entry.id).collect();
    let dropped: Vec<Id> = next
        .licences
        .iter()
        .filter(|(id, row)| {
            let holder = row.holder.as_ref();
            let lost = |holder: &Id| named.contains(holder) || !next.users.contains_key(holder);
            !wanted.contains_key(id) && holder.is_some_and(lost)
        })
        .map(|(id, _)| id.clone())
        .collect();
    for id in dropped {
        if let Some(row) = next.licences.get(&id) {
            let value = row.value.clone();
            assign(next, &id, value, None, made_by, now);
        }
    }
    for (id, (holder, entry)) in wanted {
        let before = next.licences.get(id).map(|row| &row.value);
        let value = Licence {
            plan: entry.plan.clone(),
            holder: before.and_then(|before| before.holder.clone()),
            priority: entry.priority,
            expires: entry.expires,
            moved: before.and_then(|before| before.moved.clone()),
        };
        assign(next, id, value, Some(holder), made_by, now);
    }
}

/// Puts a licence, whose holder is still the one before, into the hands of another, or of nobody
/// (D10).
pub fn assign(
    next: &mut Rows,
    id: &Id,
    mut licence: Licence,
    to: Option<&Id>,
    made_by: MadeBy,
    now: Timestamp,
) {
    if licence.holder.as_ref() != to {
        licence.moved = reassign(
            licence.holder.as_ref(),
            licence.moved.as_ref(),
            to,
            next.details.settings.on_reassign,
            &next.schedule.cycle_at(now),
        );
        licence.holder = to.cloned();
    }
    put(&mut next.licences, id, made_by, licence);
}

/// Makes the users whom each profile of the document names exactly its direct members.
fn settle_members(next: &mut Rows, document: &Document) {
    let Some(entries) = &document.profiles else { return };
    let mut named: BTreeMap<&Id, HashSet<&Id>> = BTreeMap::new();
    for entry in entries {
        if let Some(users) = &entry.value.users {
            named.insert(&entry.id, users.iter().collect());
        }
    }
    let mut wanted: BTreeMap<&Id, Vec<&Id>> = BTreeMap::new();
    for (profile, users) in &named {
        for user in users {
            wanted.entry(*user).or_default().push(*profile);
        }
    }
    for (id, row) in &mut next.users {
        let wanted = wanted.get(id).map_or(&[][..], Vec::as_slice);
        let kept = |profile: &Id| {
            !named.contains_key(profile) && next.details.profiles.contains_key(profile)
        };
        let mut profiles: Vec<Id> = wanted.iter().map(|profile| (*profile).clone()).collect();
        profiles.extend(row.profiles.iter().filter(|profile| kept(profile)).cloned());
        profiles.sort_unstable();
        if profiles != row.profiles {
            Arc::make_mut(row).value.profiles = profiles;
        }
    }
}

fn settle_keys(
    next: &mut Rows,
    document: &Document,
    prune: bool,
    surroundings: &mut Surroundings<'_>,
    problems: &Problems,
) {
    let Some(entries) = &document.keys else { return };
    let mut live: BTreeMap<Id, Vec<Secret>> = BTreeMap::new();
    let mut given: BTreeMap<KeyHash, &Id> = BTreeMap::new();
    for entry in entries {
        let before = next.details.keys.get(&entry.id).map(|row| &row.secrets);
        let secrets = match (entry.value.secret, before) {
            (Some(hash), Some(before)) if before.iter().any(|secret| secret.hash == hash) => {
                before.clone()
            }
            (Some(hash), _) => vec![Secret { hash, expires: None }],
            (None, Some(before)) => before.clone(),
            (None, None) => {
                let hash = (surroundings.make_secret)(&entry.id);
                vec![Secret { hash, expires: None }]
            }
        };
        for secret in &secrets {
            let owner = (surroundings.owner)(&secret.hash);
            let other = owner.is_some_and(|owner| owner != (next.id.clone(), entry.id.clone()));
            if other || given.insert(secret.hash, &entry.id).is_some() {
                // Not whose it is: that may be another org's business.
                problems.note(format!("{}/secret", entry.pointer), "belongs to another key");
            }
        }
        live.insert(entry.id.clone(), secrets);
    }
    let by = (document.made_by, prune);
    merge(&mut next.details.keys, &document.keys, by, |entry: &KeyEntry| Key {
        kind: entry.kind.clone(),
        pool_limit: entry.pool_limit,
        secrets: Vec::new(),
    });
    for (id, secrets) in live {
        if let Some(row) = next.details.keys.get_mut(&id) {
            Arc::make_mut(row).value.secrets = secrets;
        }
    }
}
