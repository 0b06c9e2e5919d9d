//! The difference between two states of an org, as lines that people read and audit rows keep.

use std::fmt;

use super::rows::{Fields, Rows, Show, Shown, Table, zone_name};
use crate::core::ids::Id;

/// One thing that came, went or became different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it is: the section's name, or `licence`.
    pub what: &'static str,
    /// Its id.
    pub id: Id,
    /// Its values before; `None` for what is new.
    pub before: Option<Fields>,
    /// Its values after; `None` for what is removed.
    pub after: Option<Fields>,
}

/// Every change from one state to the next, in the order of the org file's sections.
pub fn compare(before: Option<&Rows>, after: &Rows) -> Vec<Change> {
    let mut changes = Vec::new();
    let fields = before.map(org_fields);
    let next = org_fields(after);
    if fields.as_ref() != Some(&next) {
        let id = after.id.clone();
        changes.push(Change { what: "org", id, before: fields, after: Some(next) });
    }
    let empty = Rows::empty(after.id.clone());
    let before = before.unwrap_or(&empty);
    tables(&before.details.terms, &after.details.terms, &mut changes);
    tables(&before.details.plans, &after.details.plans, &mut changes);
    tables(&before.details.groups, &after.details.groups, &mut changes);
    tables(&before.users, &after.users, &mut changes);
    tables(&before.licences, &after.licences, &mut changes);
    tables(&before.details.profiles, &after.details.profiles, &mut changes);
    tables(&before.details.cards, &after.details.cards, &mut changes);
    tables(&before.details.keys, &after.details.keys, &mut changes);
    changes
}

fn org_fields(rows: &Rows) -> Fields {
    let era = rows.schedule.latest();
    let anchor = super::rows::word(&era.anchor);
    let mut fields = vec![
        ("timezone", Shown::Text(zone_name(&era.zone).to_owned())),
        ("anchor", Shown::Text(anchor)),
    ];
    fields.extend(rows.details.settings.fields());
    fields
}

fn tables<T: Show + PartialEq>(before: &Table<T>, after: &Table<T>, changes: &mut Vec<Change>) {
    let mut push = |id: &Id, before: Option<Fields>, after: Option<Fields>| {
        changes.push(Change { what: T::WORD, id: id.clone(), before, after });
    };
    for (id, row) in after {
        match before.get(id) {
            None => push(id, None, Some(row.fields())),
            Some(old) if old.value != row.value => {
                push(id, Some(old.fields()), Some(row.fields()));
            }
            Some(_) => {}
        }
    }
    for (id, row) in before.iter().filter(|(id, _)| !after.contains_key(*id)) {
        push(id, Some(row.fields()), None);
    }
}

impl Change {
    /// Values as the JSON object that the audit keeps.
    pub fn json(fields: &Fields) -> String {
        let value = |shown: &Shown| match shown {
            Shown::Text(text) => serde_json::Value::from(text.as_str()),
            Shown::List(ids) => ids.iter().map(|id| id.as_str()).collect(),
        };
        let map = fields.iter().map(|(key, shown)| ((*key).to_owned(), value(shown))).collect();
        serde_json::Value::Object(map).to_string()
    }
}

impl fmt::Display for Change {
    /// `+ user alice`, `~ plan cc-pro credits 4000 → 5000`, `- key studio`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, id) = (self.what, &self.id);
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => {
                write!(f, "~ {what} {id}")?;
                let mut separator = " ";
                for ((key, old), (_, new)) in before.iter().zip(after) {
                    if old != new {
                        write!(f, "{separator}{key}")?;
                        difference(old, new, f)?;
                        separator = ", ";
                    }
                }
                Ok(())
            }
            (None, _) => write!(f, "+ {what} {id}"),
            (_, None) => write!(f, "- {what} {id}"),
        }
    }
}

fn difference(old: &Shown, new: &Shown, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match (old, new) {
        (Shown::List(old), Shown::List(new)) => {
            for id in new.iter().filter(|id| !old.contains(id)) {
                write!(f, " +{id}")?;
            }
            for id in old.iter().filter(|id| !new.contains(id)) {
                write!(f, " -{id}")?;
            }
            Ok(())
        }
        (Shown::Text(old), Shown::Text(new)) => write!(f, " {old} → {new}"),
        _ => Ok(()),
    }
}
