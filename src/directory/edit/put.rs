//! Creating or changing one thing: its body becomes a document of that one thing.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{How, Refused, invalid, may_hold};
use crate::core::ids::Id;
use crate::directory::apply::{self, Surroundings};
use crate::directory::file::{self, Problem, Source};
use crate::directory::rows::{Licence, MadeBy, Rows};
use crate::directory::things::{self, Kind, Thing};

/// One thing that is to be so.
pub struct Put<'a> {
    /// What it is.
    pub kind: Kind,
    /// Which.
    pub id: &'a Id,
    /// As it was sent.
    pub body: &'a Value,
    /// What is done where it is there already, or is not.
    pub how: How,
}

impl Put<'_> {
    /// What the org becomes.
    ///
    /// # Errors
    /// Why nothing may be changed.
    pub fn plan(
        &self,
        org: &Id,
        current: Option<&Rows>,
        surroundings: &mut Surroundings<'_>,
        now: Timestamp,
    ) -> Result<Rows, Refused> {
        let Self { kind, id, .. } = *self;
        let there = current.and_then(|rows| things::of_rows(rows, kind, id));
        let body = self.complete(there)?;
        if let (Kind::Licence, Some(rows)) = (kind, current) {
            return put_licence(rows.clone(), id, &body, now);
        }
        let keeps_members = body.get("users").is_none();
        let (wrapped, pointer) = match kind {
            Kind::Org => (json!({ "org": body }), "/org".to_owned()),
            _ => (json!({ kind.word(): [body] }), format!("/{kind}/0")),
        };
        let mut document = Source::from_value(wrapped).document();
        document.made_by = MadeBy::Api;
        for profile in document.profiles.iter_mut().flatten().filter(|_| keeps_members) {
            profile.value.users = None;
        }
        let planned = apply::plan(org, current, &document, surroundings, now);
        planned.map_err(|problems| Refused::Invalid(within(problems, &pointer)))
    }

    /// The whole body of a thing: merged with what is there, and with its id.
    fn complete(&self, there: Option<Thing>) -> Result<Value, Refused> {
        let Self { kind, id, body, how } = *self;
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

/// Problems of a document as problems of the one thing in it.
fn within(problems: Vec<Problem>, pointer: &str) -> Vec<Problem> {
    let inside = |problem: Problem| Problem {
        pointer: problem.pointer.strip_prefix(pointer).unwrap_or(&problem.pointer).to_owned(),
        ..problem
    };
    problems.into_iter().map(inside).collect()
}
