//! Checks that everything that is named exists, in the org as it would become.

use std::collections::HashSet;

use super::super::file::{Document, Problems};
use super::super::rows::{KeyKind, Profile, Rows, Table};
use super::super::snapshot::ActsFor;
use crate::core::ids::Id;

/// Notes undefined references, and terms that overlap.
pub fn check(next: &Rows, document: &Document, problems: &Problems) {
    let check = Check { next, problems };
    check.document(document);
    check.others(document);
    check.terms(document);
}

struct Check<'a> {
    next: &'a Rows,
    problems: &'a Problems,
}

/// Where the references of something that the document does not name broke.
const PRUNE: &str = "/apply/prune";

impl Check<'_> {
    fn problem(&self, pointer: impl Into<String>, detail: String) {
        self.problems.note(pointer, detail);
    }

    fn known<T>(&self, table: &Table<T>, word: &str, id: &Id, pointer: impl Into<String>) {
        if !table.contains_key(id) {
            self.problem(pointer, format!("there is no {word} {id}"));
        }
    }

    fn all_known<T>(&self, table: &Table<T>, word: &str, ids: &[Id], pointer: &str) {
        for (index, id) in ids.iter().enumerate() {
            self.known(table, word, id, format!("{pointer}/{index}"));
        }
    }

    fn document(&self, document: &Document) {
        let next = self.next;
        let (details, products) = (&next.details, &next.details.settings.products);
        for entry in document.users.iter().flatten() {
            if self.problems.are_too_many() {
                return;
            }
            let at = |key: &str| format!("{}/{key}", entry.pointer);
            self.all_known(&details.groups, "group", &entry.value.user.groups, &at("groups"));
            for licence in &entry.value.licences {
                let pointer = format!("{}/plan", licence.pointer);
                self.known(&details.plans, "plan", &licence.value.plan, pointer);
            }
        }
        for entry in document.profiles.iter().flatten() {
            let at = |key: &str| format!("{}/{key}", entry.pointer);
            let Profile { product, groups, .. } = &entry.value.profile;
            if !products.contains(product) {
                let detail = format!("{product} is not among the org's products");
                self.problem(at("product"), detail);
            }
            self.all_known(&details.groups, "group", groups, &at("groups"));
            let users = entry.value.users.as_deref().unwrap_or_default();
            self.all_known(&next.users, "user", users, &at("users"));
        }
        for entry in document.cards.iter().flatten() {
            if let Some(offer) = entry.value.offer.as_ref().filter(|own| !products.contains(own)) {
                let detail = format!("{offer} is not among the org's products");
                self.problem(format!("{}/offer", entry.pointer), detail);
            }
        }
        for entry in document.keys.iter().flatten() {
            self.key(&entry.value.kind, &entry.pointer);
        }
    }

    fn key(&self, kind: &KeyKind, pointer: &str) {
        let next = self.next;
        match kind {
            KeyKind::User(user) => {
                self.known(&next.users, "user", user, format!("{pointer}/user"));
            }
            KeyKind::Principal(profile) => {
                let table = &next.details.profiles;
                self.known(table, "profile", profile, format!("{pointer}/profile"));
            }
            KeyKind::Service(ActsFor::Everyone) => {}
            KeyKind::Service(ActsFor::Some { users, groups }) => {
                self.all_known(&next.users, "user", users, &format!("{pointer}/acts_for/users"));
                let pointer = format!("{pointer}/acts_for/groups");
                self.all_known(&next.details.groups, "group", groups, &pointer);
            }
        }
    }

    /// What the document does not name can only have lost what it refers to by pruning, or a
    /// product.
    fn others(&self, document: &Document) {
        let next = self.next;
        let details = &next.details;
        let profiles = ids_of(document.profiles.iter().flatten().map(|entry| &entry.id));
        for (id, row) in details.profiles.iter().filter(|(id, _)| !profiles.contains(id)) {
            if !details.settings.products.contains(&row.product) {
                let detail = format!("profile {id} is of product {}", row.product);
                self.problem("/org/products", detail);
            }
            self.still_there(&details.groups, "group", &row.groups, "profile", id);
        }
        let cards = ids_of(document.cards.iter().flatten().map(|entry| &entry.id));
        for (id, row) in details.cards.iter().filter(|(id, _)| !cards.contains(id)) {
            if let Some(offer) = &row.offer
                && !details.settings.products.contains(offer)
            {
                self.problem("/org/products", format!("rate card {id} is of offer {offer}"));
            }
        }
        if document.prune.is_empty() {
            return;
        }
        let users = ids_of(document.users.iter().flatten().map(|entry| &entry.id));
        for (id, row) in next.users.iter().filter(|(id, _)| !users.contains(id)) {
            self.still_there(&details.groups, "group", &row.groups, "user", id);
        }
        for (id, row) in &next.licences {
            let named = row.holder.as_ref().is_some_and(|holder| users.contains(holder));
            if !named {
                let plan = std::slice::from_ref(&row.plan);
                self.still_there(&details.plans, "plan", plan, "licence", id);
            }
        }
        let keys = ids_of(document.keys.iter().flatten().map(|entry| &entry.id));
        for (id, row) in details.keys.iter().filter(|(id, _)| !keys.contains(id)) {
            match &row.kind {
                KeyKind::Service(ActsFor::Everyone) => {}
                KeyKind::Service(ActsFor::Some { users, groups }) => {
                    self.still_there(&next.users, "user", users, "key", id);
                    self.still_there(&details.groups, "group", groups, "key", id);
                }
                KeyKind::User(user) => {
                    self.still_there(&next.users, "user", std::slice::from_ref(user), "key", id);
                }
                KeyKind::Principal(profile) => {
                    let profile = std::slice::from_ref(profile);
                    self.still_there(&details.profiles, "profile", profile, "key", id);
                }
            }
        }
    }

    fn still_there<T>(&self, table: &Table<T>, word: &str, ids: &[Id], user_word: &str, user: &Id) {
        for id in ids.iter().filter(|id| !table.contains_key(*id)) {
            self.problem(PRUNE, format!("{word} {id} is still named by {user_word} {user}"));
        }
    }

    fn terms(&self, document: &Document) {
        let mut terms: Vec<_> = self.next.details.terms.iter().collect();
        terms.sort_by_key(|(_, term)| (term.start, term.end));
        for pair in terms.windows(2) {
            let ((first, one), (second, other)) = (pair[0], pair[1]);
            if other.start < one.end {
                let entries = || document.terms.iter().flatten();
                let named = entries()
                    .find(|entry| entry.id == *second)
                    .or_else(|| entries().find(|entry| entry.id == *first));
                let pointer = named.map_or("/term", |entry| &entry.pointer);
                self.problem(pointer, format!("terms {first} and {second} overlap"));
            }
        }
    }
}

fn ids_of<'a>(ids: impl Iterator<Item = &'a Id>) -> HashSet<&'a Id> {
    ids.collect()
}
