//! Rows out of the database.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::StoreError;
use crate::core::amount::{Credits, MAX_MICRO, Operations};
use crate::core::cycle::{Era, Schedule};
use crate::core::ids::Id;
use crate::core::price::RateCardFile;
use crate::directory::rows::{
    Details, Group, Key, Licence, MadeBy, Plan, Profile, Row, Rows, Secret, Settings, Table, Term,
    User, zone,
};
use crate::directory::snapshot::KeyHash;
use crate::directory::things::Kind;
use crate::sql::{self, Connection, query};

/// Which users, with their licences, a change looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of them, and unassigned licences too.
    All,
    /// These, and these licences with their holders, and the direct members of these profiles.
    Some {
        /// Users by id.
        users: BTreeSet<Id>,
        /// Licences by id.
        licences: BTreeSet<Id>,
        /// Profiles by id.
        profiles: BTreeSet<Id>,
        /// One user or licence that names this group or plan, if there is one.
        namers_of: Option<(Kind, Id)>,
    },
}

/// Above this many users the whole org is read at once instead of user by user.
const MANY: usize = 2_000;

/// How many users are read at once.
const PAGE: i64 = 4096;

/// An org's rows without users and licences, and its version; `None` where there is no such org.
///
/// # Errors
/// When the database fails, or holds what cannot be read.
pub async fn load_details(
    db: &mut Connection,
    org: &Id,
) -> Result<Option<(Rows, u64)>, StoreError> {
    let found = query("SELECT * FROM org WHERE id = $1")
        .bind(org.as_str())
        .fetch_optional(&mut *db)
        .await?;
    let Some(row) = found else { return Ok(None) };
    let version = version(&row)?;
    let mut rows = Rows::empty(org.clone());
    rows.schedule = schedule(db, org).await?;
    let mut details = Details { settings: settings(&row)?, ..Details::default() };
    for row in of_org(db, "SELECT * FROM term WHERE org = $1", org).await? {
        put(&mut details.terms, &row, term(&row)?)?;
    }
    for row in of_org(db, "SELECT * FROM plan WHERE org = $1", org).await? {
        let credits = amount(row.try_get("credits")?)?;
        let credits = Credits::from_micro(credits).ok_or_else(|| damaged("credits", credits))?;
        put(&mut details.plans, &row, Plan { credits })?;
    }
    for row in of_org(db, "SELECT * FROM org_group WHERE org = $1", org).await? {
        put(&mut details.groups, &row, Group)?;
    }
    for row in of_org(db, "SELECT * FROM profile WHERE org = $1", org).await? {
        put(&mut details.profiles, &row, profile(&row)?)?;
    }
    let sql = "SELECT * FROM profile_group WHERE org = $1 ORDER BY profile_id, group_id";
    for row in of_org(db, sql, org).await? {
        let id: Id = parsed(&row, "profile_id")?;
        if let Some(profile) = details.profiles.get_mut(&id) {
            Arc::make_mut(profile).value.groups.push(parsed(&row, "group_id")?);
        }
    }
    for row in of_org(db, "SELECT * FROM rate_card WHERE org = $1", org).await? {
        put::<RateCardFile>(&mut details.cards, &row, json(&row, "card")?)?;
    }
    for row in of_org(db, "SELECT * FROM org_key WHERE org = $1", org).await? {
        let kind = json(&row, "kind")?;
        let pool_limit = operations(&row, "pool_limit")?;
        put(&mut details.keys, &row, Key { kind, pool_limit, secrets: Vec::new() })?;
    }
    let sql = "SELECT * FROM key_secret WHERE org = $1 ORDER BY hash";
    for row in of_org(db, sql, org).await? {
        let id: Id = parsed(&row, "key_id")?;
        let secret = Secret { hash: hash(&row)?, expires: optional(&row, "expires")? };
        if let Some(key) = details.keys.get_mut(&id) {
            Arc::make_mut(key).value.secrets.push(secret);
        }
    }
    rows.details = details;
    Ok(Some((rows, version)))
}

/// Adds the users and licences in scope to an org's rows.
///
/// # Errors
/// As [`load_details`].
pub async fn load_people(
    db: &mut Connection,
    rows: &mut Rows,
    scope: &Scope,
) -> Result<(), StoreError> {
    let org = &rows.id.clone();
    let Scope::Some { users, licences, profiles, namers_of } = scope else {
        return load_everybody(db, org, rows).await;
    };
    let mut wanted = users.clone();
    let mut licences = licences.clone();
    match namers_of {
        Some((Kind::Group, group)) => {
            let sql = "SELECT user_id FROM group_member WHERE org = $1 AND group_id = $2 LIMIT 1";
            for row in of_org_and(db, sql, org, group).await? {
                wanted.insert(parsed(&row, "user_id")?);
            }
        }
        Some((Kind::Plan, plan)) => {
            let sql = "SELECT id FROM licence WHERE org = $1 AND plan = $2 LIMIT 1";
            for row in of_org_and(db, sql, org, plan).await? {
                licences.insert(parsed(&row, "id")?);
            }
        }
        _ => {}
    }
    for id in profiles {
        let sql = "SELECT user_id FROM profile_user WHERE org = $1 AND profile_id = $2";
        for row in of_org_and(db, sql, org, id).await? {
            wanted.insert(parsed(&row, "user_id")?);
        }
    }
    if wanted.len() > MANY {
        return load_everybody(db, org, rows).await;
    }
    for id in &licences {
        let sql = "SELECT * FROM licence WHERE org = $1 AND id = $2";
        for row in of_org_and(db, sql, org, id).await? {
            let licence = licence(&row)?;
            wanted.extend(licence.holder.clone());
            put(&mut rows.licences, &row, licence)?;
        }
    }
    for id in &wanted {
        let page = users_between(db, org, id.as_str(), id.as_str()).await?;
        rows.users.extend(page.users);
        rows.licences.extend(page.licences);
    }
    Ok(())
}

/// Which licences are wanted.
#[derive(Clone, Debug, Default)]
pub struct LicenceQuery {
    /// Only those after this id: where a page ended.
    pub after: Option<Id>,
    /// At most so many.
    pub limit: usize,
    /// Only those that this user holds.
    pub user: Option<Id>,
    /// Only those of this plan.
    pub plan: Option<Id>,
    /// Only those that nobody holds.
    pub unassigned: bool,
}

/// Licences by id, and whether there are more.
///
/// # Errors
/// As [`load_details`].
pub async fn licences(
    db: &mut Connection,
    org: &Id,
    query: &LicenceQuery,
) -> Result<(Vec<(Id, Licence)>, bool), StoreError> {
    let sql = "SELECT * FROM licence WHERE org = $1 AND id > $2 \
               AND ($3 IS NULL OR holder = $3) AND ($4 IS NULL OR plan = $4) \
               AND ($5 = 0 OR holder IS NULL) ORDER BY id LIMIT $6";
    let rows = sql::query(sql)
        .bind(org.as_str())
        .bind(query.after.as_ref().map_or("", Id::as_str))
        .bind(query.user.as_ref().map(Id::as_str))
        .bind(query.plan.as_ref().map(Id::as_str))
        .bind(i64::from(query.unassigned))
        .bind(i64::try_from(query.limit).unwrap_or(i64::MAX - 1) + 1)
        .fetch_all(db)
        .await?;
    let shown = rows.iter().take(query.limit);
    let licences: Result<_, StoreError> =
        shown.map(|row| Ok((parsed(row, "id")?, licence(row)?))).collect();
    Ok((licences?, rows.len() > query.limit))
}

async fn load_everybody(db: &mut Connection, org: &Id, rows: &mut Rows) -> Result<(), StoreError> {
    let mut after = None;
    while let Some(page) = users_page(db, org, after.as_ref()).await? {
        after = page.users.last_key_value().map(|(id, _)| id.clone());
        rows.users.extend(page.users);
        rows.licences.extend(page.licences);
    }
    for row in of_org(db, "SELECT * FROM licence WHERE org = $1 AND holder IS NULL", org).await? {
        put(&mut rows.licences, &row, licence(&row)?)?;
    }
    Ok(())
}

/// Users with their licences.
pub struct Page {
    /// Users by id.
    pub users: Table<User>,
    /// What they hold.
    pub licences: Table<Licence>,
}

/// The next users by id after one, some thousands at a time; `None` at the end.
///
/// # Errors
/// As [`load_details`].
pub async fn users_page(
    db: &mut Connection,
    org: &Id,
    after: Option<&Id>,
) -> Result<Option<Page>, StoreError> {
    let after = after.map_or("", Id::as_str);
    let sql = "SELECT MIN(id) AS first, MAX(id) AS last FROM (SELECT id FROM org_user \
               WHERE org = $1 AND id > $2 ORDER BY id LIMIT $3) AS page";
    let row = query(sql).bind(org.as_str()).bind(after).bind(PAGE).fetch_one(&mut *db).await?;
    let (first, last): (Option<String>, Option<String>) =
        (row.try_get("first")?, row.try_get("last")?);
    match first.zip(last) {
        None => Ok(None),
        Some((first, last)) => Ok(Some(users_between(db, org, &first, &last).await?)),
    }
}

async fn users_between(
    db: &mut Connection,
    org: &Id,
    first: &str,
    last: &str,
) -> Result<Page, StoreError> {
    let mut page = Page { users: Table::new(), licences: Table::new() };
    // Only what is used: each value of each row is copied on its way from the database.
    let sql = "SELECT id, made_by, email, suspended, pool_limit FROM org_user \
               WHERE org = $1 AND id >= $2 AND id <= $3";
    for row in between(db, sql, org, first, last).await? {
        let user = User {
            email: row.try_get("email")?,
            suspended: row.try_get::<i64, _>("suspended")? != 0,
            pool_limit: operations(&row, "pool_limit")?,
            groups: Vec::new(),
            profiles: Vec::new(),
        };
        put(&mut page.users, &row, user)?;
    }
    // As one text, because a row costs much more than its bytes; ids hold no blanks.
    let sql = "SELECT string_agg(user_id || ' ' || group_id, ' ') AS members FROM group_member \
               WHERE org = $1 AND user_id >= $2 AND user_id <= $3";
    for row in between(db, sql, org, first, last).await? {
        members(&mut page.users, row.try_get::<Option<&str>, _>("members")?.unwrap_or_default())?;
    }
    let sql = "SELECT user_id, profile_id FROM profile_user \
               WHERE org = $1 AND user_id >= $2 AND user_id <= $3 ORDER BY user_id, profile_id";
    for row in between(db, sql, org, first, last).await? {
        if let Some(user) = page.users.get_mut(row.try_get::<&str, _>("user_id")?) {
            Arc::make_mut(user).value.profiles.push(parsed(&row, "profile_id")?);
        }
    }
    let sql = "SELECT id, made_by, plan, holder, priority, expires, moved FROM licence \
               WHERE org = $1 AND holder >= $2 AND holder <= $3";
    for row in between(db, sql, org, first, last).await? {
        put(&mut page.licences, &row, licence(&row)?)?;
    }
    Ok(page)
}

/// Puts users into groups: each user's id and behind it the group's, in no order.
fn members(users: &mut Table<User>, text: &str) -> Result<(), StoreError> {
    let mut known: BTreeSet<Id> = BTreeSet::new();
    let mut words = text.split_terminator(' ');
    while let (Some(user), Some(group)) = (words.next(), words.next()) {
        let Some(user) = users.get_mut(user) else { continue };
        let group = match known.get(group) {
            Some(group) => group.clone(),
            None => {
                let group: Id = group.parse().map_err(|error| damaged("group_id", error))?;
                known.insert(group.clone());
                group
            }
        };
        let groups = &mut Arc::make_mut(user).value.groups;
        let place = groups.partition_point(|other| *other < group);
        groups.insert(place, group);
    }
    Ok(())
}

async fn of_org(
    db: &mut Connection,
    sql: &'static str,
    org: &Id,
) -> Result<Vec<sql::Row>, sqlx::Error> {
    query(sql).bind(org.as_str()).fetch_all(db).await
}

async fn of_org_and(
    db: &mut Connection,
    sql: &'static str,
    org: &Id,
    id: &Id,
) -> Result<Vec<sql::Row>, sqlx::Error> {
    query(sql).bind(org.as_str()).bind(id.as_str()).fetch_all(db).await
}

async fn between(
    db: &mut Connection,
    sql: &'static str,
    org: &Id,
    first: &str,
    last: &str,
) -> Result<Vec<sql::Row>, sqlx::Error> {
    query(sql).bind(org.as_str()).bind(first).bind(last).fetch_all(db).await
}

async fn schedule(db: &mut Connection, org: &Id) -> Result<Schedule, StoreError> {
    let mut eras = Vec::new();
    for row in of_org(db, "SELECT * FROM era WHERE org = $1 ORDER BY place", org).await? {
        let name: String = row.try_get("zone")?;
        eras.push(Era {
            from: optional(&row, "starts_at")?,
            anchor: json(&row, "anchor")?,
            zone: zone(&name).ok_or_else(|| damaged("zone", name))?,
        });
    }
    Schedule::from_eras(eras).ok_or_else(|| damaged("eras of org", org))
}

fn settings(row: &sql::Row) -> Result<Settings, StoreError> {
    Ok(Settings {
        contract: optional(row, "contract")?,
        products: json(row, "products")?,
        offers: json(row, "offers")?,
        bases: json(row, "bases")?,
        overage: json(row, "overage")?,
        split: json(row, "split")?,
        mode: json(row, "mode")?,
        on_reassign: json(row, "on_reassign")?,
        pool_limit: operations(row, "pool_limit")?,
    })
}

fn term(row: &sql::Row) -> Result<Term, StoreError> {
    Ok(Term {
        start: parsed(row, "start_on")?,
        end: parsed(row, "end_on")?,
        pool: operations(row, "pool")?.unwrap_or_default(),
        price_per_operation: optional(row, "price_per_operation")?,
        currency: optional(row, "currency")?,
    })
}

fn profile(row: &sql::Row) -> Result<Profile, StoreError> {
    let overage: Option<String> = row.try_get("overage")?;
    Ok(Profile {
        product: parsed(row, "product")?,
        shared_credits: row.try_get::<i64, _>("shared_credits")? != 0,
        pool_limit: operations(row, "pool_limit")?,
        overage: overage.map(|_| json(row, "overage")).transpose()?,
        groups: Vec::new(),
    })
}

fn licence(row: &sql::Row) -> Result<Licence, StoreError> {
    let priority: i64 = row.try_get("priority")?;
    let moved: Option<String> = row.try_get("moved")?;
    Ok(Licence {
        plan: parsed(row, "plan")?,
        holder: optional(row, "holder")?,
        priority: u32::try_from(priority).map_err(|_| damaged("priority", priority))?,
        expires: optional(row, "expires")?,
        moved: moved.map(|_| json(row, "moved")).transpose()?,
    })
}

fn put<T>(table: &mut Table<T>, row: &sql::Row, value: T) -> Result<(), StoreError> {
    let made_by = match row.try_get("made_by")? {
        "api" => MadeBy::Api,
        _ => MadeBy::File,
    };
    table.insert(parsed(row, "id")?, Arc::new(Row { made_by, value }));
    Ok(())
}

/// The version of an org.
pub fn version(row: &sql::Row) -> Result<u64, StoreError> {
    let version: i64 = row.try_get("version")?;
    u64::try_from(version).map_err(|_| damaged("version", version))
}

fn damaged(what: &str, value: impl Display) -> StoreError {
    StoreError::Damaged(format!("{what}: {value}"))
}

/// A text column that has to be there.
pub fn parsed<T: FromStr<Err: Display>>(row: &sql::Row, column: &str) -> Result<T, StoreError> {
    let text: &str = row.try_get(column)?;
    text.parse().map_err(|error| damaged(column, error))
}

/// A text column that may be absent.
pub fn optional<T: FromStr<Err: Display>>(
    row: &sql::Row,
    column: &str,
) -> Result<Option<T>, StoreError> {
    let text: Option<&str> = row.try_get(column)?;
    text.map(|text| text.parse().map_err(|error| damaged(column, error))).transpose()
}

/// A text column that holds JSON.
pub fn json<T: DeserializeOwned>(row: &sql::Row, column: &str) -> Result<T, StoreError> {
    serde_json::from_str(row.try_get(column)?).map_err(|error| damaged(column, error))
}

fn operations(row: &sql::Row, column: &str) -> Result<Option<Operations>, StoreError> {
    let micro: Option<i64> = row.try_get(column)?;
    let micro = micro.map(amount).transpose()?;
    Ok(micro.and_then(Operations::from_micro))
}

fn amount(micro: i64) -> Result<u64, StoreError> {
    u64::try_from(micro)
        .ok()
        .filter(|micro| *micro <= MAX_MICRO)
        .ok_or_else(|| damaged("amount", micro))
}

/// The hash of a secret.
pub fn hash(row: &sql::Row) -> Result<KeyHash, StoreError> {
    let text: &str = row.try_get("hash")?;
    let mut hash = KeyHash::default();
    if text.len() != hash.len() * 2 || !text.is_ascii() {
        return Err(damaged("hash of a secret", text.len()));
    }
    for (index, byte) in hash.iter_mut().enumerate() {
        let digits = &text[index * 2..index * 2 + 2];
        *byte = u8::from_str_radix(digits, 16).map_err(|error| damaged("hash", error))?;
    }
    Ok(hash)
}
