//! Things of the directory, one like the other: terms, plans, groups, profiles, rate cards, keys,
//! users and licences.

use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::admin::call::{Call, Reply};
use crate::admin::endpoint::Answering;
use crate::admin::page::{behind, cursor, page, select};
use crate::admin::problem::Problem;
use crate::core::ids::Id;
use crate::directory::administration::LicenceQuery;
use crate::directory::change::{Answer, Applied, Written};
use crate::directory::edit::{Edit, How, Membership};
use crate::directory::file::Source;
use crate::directory::things::{self, Kind, Thing};

/// All things of a kind.
pub fn list(call: Call, kind: Kind) -> Answering {
    Box::pin(async move {
        let org = call.org()?;
        let (all, _) = things::list(&org, kind, None, usize::MAX);
        let named = all.into_iter().filter_map(|thing| {
            let id = thing.document[kind.id_key()].as_str()?.to_owned();
            let own = kind != Kind::Profile || call.who.has_profile(&id);
            own.then_some((id, thing.document))
        });
        let (items, next) = select(&call, &format!("{}/{kind}", org.id), named.collect())?;
        Ok(Reply::tagged(page(&call, Some(&org), items, next), things::org_tag(org.version)))
    })
}

/// Licences, which are many: read from the database by part.
pub async fn licences(call: Call) -> Result<Reply, Problem> {
    let org = call.org()?;
    let list = format!("{}/licences", org.id);
    let after = call.query("cursor").map(|text| behind(&list, text)).transpose()?;
    let query = LicenceQuery {
        after: after.and_then(|id| id.parse().ok()),
        limit: call.limit(),
        user: call.parsed("user"),
        plan: call.parsed("plan"),
        unassigned: call.parsed("unassigned").unwrap_or(false),
    };
    let (found, next) = call.admin.directory.licences(&org.id, &query).await?;
    let items = found.into_iter().map(|thing| thing.document).collect();
    let next = next.map(|id| cursor(&list, id.as_str()));
    Ok(Reply::tagged(page(&call, Some(&org), items, next), things::org_tag(org.version)))
}

/// One thing.
pub fn read(call: Call, kind: Kind) -> Answering {
    Box::pin(async move {
        let org = call.org()?;
        let id = call.id(kind.word())?;
        let directory = &call.admin.directory;
        let found = match kind {
            Kind::User => directory.user(&org.id, &id).await?,
            Kind::Licence => directory.licence(&org.id, &id).await?,
            _ => things::of_org(&org, kind, id.as_str()),
        };
        let thing = found.ok_or_else(|| Problem::not_found(&format!("{kind} with this id")))?;
        Ok(Reply::tagged(thing.document, thing.etag))
    })
}

/// Creates a thing, which must not be there yet.
pub fn create(call: Call, kind: Kind) -> Answering {
    Box::pin(put(call, kind, None, How::Create))
}

/// Creates or replaces a thing.
pub fn replace(call: Call, kind: Kind) -> Answering {
    Box::pin(async move {
        let id = call.id(kind.word())?;
        put(call, kind, Some(id), How::Replace).await
    })
}

/// Changes some of a thing (RFC 7396).
pub fn merge(call: Call, kind: Kind) -> Answering {
    Box::pin(async move {
        let id = call.id(kind.word())?;
        put(call, kind, Some(id), How::Merge).await
    })
}

async fn put(mut call: Call, kind: Kind, id: Option<Id>, how: How) -> Result<Reply, Problem> {
    let body = call.body()?;
    change(call, Edit::Put { kind, id, body, how }).await
}

/// Removes a thing that nothing names any more.
pub fn delete(call: Call, kind: Kind) -> Answering {
    Box::pin(async move {
        let id = call.id(kind.word())?;
        change(call, Edit::Delete { kind, id }).await
    })
}

/// Puts the user of the path into its group or profile, or takes them out.
pub async fn set_member(call: Call, member: bool) -> Result<Reply, Problem> {
    let user = call.id("user")?;
    let of = match call.param("group") {
        "" => Membership::Profile(call.id("profile")?),
        _ => Membership::Group(call.id("group")?),
    };
    change(call, Edit::Member { of, user, member }).await.map(|_| Reply::default())
}

/// Gives a key a second secret.
pub async fn rotate(mut call: Call) -> Result<Reply, Problem> {
    let key = call.id("key")?;
    let body = call.body.take().unwrap_or_else(|| Source::from_value(json!({})));
    change(call, Edit::Rotate { key, body }).await
}

/// Takes one of two secrets from a key.
pub async fn drop_secret(call: Call) -> Result<Reply, Problem> {
    let (key, secret) = (call.id("key")?, call.param("secret").to_owned());
    change(call, Edit::DropSecret { key, secret }).await.map(|_| Reply::default())
}

async fn change(mut call: Call, edit: Edit) -> Result<Reply, Problem> {
    let org = call.id("org")?;
    let status = if matches!(edit, Edit::Put { how: How::Create, .. }) { 201 } else { 200 };
    let write = call.write(move |applied| answer(applied, status));
    match call.admin.directory.write(&org, edit, write).await? {
        Written::Before(answer) => Ok(answer.into()),
        Written::Now(applied) => Ok(reply(&applied)),
    }
}

/// What a repetition is told: the same, but for secrets, which are shown once.
fn answer(applied: &Applied, status: u16) -> Answer {
    let thing = applied.thing.as_ref();
    let etag = thing.map(|thing| thing.etag.clone());
    Answer { status, etag, body: thing.map(|thing| thing.document.clone()) }
}

fn reply(applied: &Applied) -> Reply {
    let Some(Thing { document, etag }) = &applied.thing else { return Reply::default() };
    let mut body = document.clone();
    if let ([(_, secret)], Some(map)) = (applied.secrets.as_slice(), body.as_object_mut()) {
        map.insert("secret".to_owned(), Value::from(secret.expose_secret()));
    }
    Reply::tagged(body, etag.clone())
}
