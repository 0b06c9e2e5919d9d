//! The difference between two states of an org into the database.

use std::sync::Arc;

use jiff::Timestamp;

use super::audit::{self, Line, Origin};
use super::{BATCH, StoreError};
use crate::core::amount::Operations;
use crate::core::ids::Id;
use crate::core::price::RateCardFile;
use crate::directory::difference::Change;
use crate::directory::rows::{
    Details, Key, Licence, Plan, Profile, Row, Rows, Table, Term, User, hex, word, zone_name,
};
use crate::sql::{self, Connection, query};

/// Writes what differs, under the next version of the org. The caller commits.
///
/// # Errors
/// `Stale` where the org is not at `version` (0 where it is new) any more; nothing may be
/// committed then.
pub async fn write(
    db: &mut Connection,
    before: Option<&Rows>,
    after: &Rows,
    version: u64,
    changes: &[Change],
    who: &str,
    at: Timestamp,
) -> Result<u64, StoreError> {
    let org = &after.id;
    let next = version + 1;
    let (old, new) = (i64::try_from(version), i64::try_from(next));
    let (Ok(old), Ok(new)) = (old, new) else {
        return Err(StoreError::Damaged(format!("version {version}")));
    };
    let done = if before.is_some() {
        let sql = "UPDATE org SET version = $1 WHERE id = $2 AND version = $3";
        query(sql).bind(new).bind(org.as_str()).bind(old).execute(&mut *db).await?
    } else {
        let sql = "INSERT INTO org (id, version, products, offers, bases, overage, split, mode, \
                   on_reassign) VALUES ($1, $2, '', '', '', '', '', '', '') \
                   ON CONFLICT (id) DO NOTHING";
        query(sql).bind(org.as_str()).bind(new).execute(&mut *db).await?
    };
    if done != 1 {
        return Err(StoreError::Stale(org.to_string()));
    }
    write_org(db, before, after).await?;
    let empty = Rows::empty(org.clone());
    let before = before.unwrap_or(&empty);
    write_details(db, org, &before.details, &after.details).await?;
    write_users(db, org, &before.users, &after.users).await?;
    write_licences(db, org, &before.licences, &after.licences).await?;
    let origin = Origin { org: org.as_str(), version: Some(new), who, at };
    audit::write_lines(db, &origin, changes, |change| Line::from(change)).await?;
    Ok(next)
}

async fn write_org(
    db: &mut Connection,
    before: Option<&Rows>,
    after: &Rows,
) -> Result<(), StoreError> {
    let (org, settings) = (&after.id, &after.details.settings);
    if before.is_none_or(|before| before.details.settings != *settings) {
        let sql = "UPDATE org SET contract = $2, products = $3, offers = $4, bases = $5, \
                   overage = $6, split = $7, mode = $8, on_reassign = $9, pool_limit = $10 \
                   WHERE id = $1";
        query(sql)
            .bind(org.as_str())
            .bind(settings.contract.as_ref().map(Id::as_str))
            .bind(json(&settings.products)?)
            .bind(json(&settings.offers)?)
            .bind(json(&settings.bases)?)
            .bind(json(&settings.overage)?)
            .bind(json(&settings.split)?)
            .bind(json(&settings.mode)?)
            .bind(json(&settings.on_reassign)?)
            .bind(micro(settings.pool_limit))
            .execute(&mut *db)
            .await?;
    }
    if before.is_none_or(|before| before.schedule != after.schedule) {
        delete(db, "DELETE FROM era WHERE org = $1 AND $2 = $2", org, org).await?;
        for (place, era) in (0_i64..).zip(after.schedule.eras()) {
            let sql = "INSERT INTO era (org, place, starts_at, anchor, zone) \
                       VALUES ($1, $2, $3, $4, $5)";
            query(sql)
                .bind(org.as_str())
                .bind(place)
                .bind(era.from.map(|from| from.to_string()))
                .bind(json(&era.anchor)?)
                .bind(zone_name(&era.zone))
                .execute(&mut *db)
                .await?;
        }
    }
    Ok(())
}

async fn write_details(
    db: &mut Connection,
    org: &Id,
    before: &Details,
    after: &Details,
) -> Result<(), StoreError> {
    for id in gone_or_changed(&before.terms, &after.terms) {
        delete(db, "DELETE FROM term WHERE org = $1 AND id = $2", org, id).await?;
    }
    insert_terms(db, org, &new_or_changed(&before.terms, &after.terms)).await?;
    for id in gone_or_changed(&before.plans, &after.plans) {
        delete(db, "DELETE FROM plan WHERE org = $1 AND id = $2", org, id).await?;
    }
    insert_plans(db, org, &new_or_changed(&before.plans, &after.plans)).await?;
    for id in gone_or_changed(&before.groups, &after.groups) {
        delete(db, "DELETE FROM org_group WHERE org = $1 AND id = $2", org, id).await?;
    }
    for (id, row) in new_or_changed(&before.groups, &after.groups) {
        query("INSERT INTO org_group (org, id, made_by) VALUES ($1, $2, $3)")
            .bind(org.as_str())
            .bind(id.as_str())
            .bind(row.made_by.word())
            .execute(&mut *db)
            .await?;
    }
    for id in gone_or_changed(&before.profiles, &after.profiles) {
        delete(db, "DELETE FROM profile WHERE org = $1 AND id = $2", org, id).await?;
        let sql = "DELETE FROM profile_group WHERE org = $1 AND profile_id = $2";
        delete(db, sql, org, id).await?;
    }
    insert_profiles(db, org, &new_or_changed(&before.profiles, &after.profiles)).await?;
    for id in gone_or_changed(&before.cards, &after.cards) {
        delete(db, "DELETE FROM rate_card WHERE org = $1 AND id = $2", org, id).await?;
    }
    insert_cards(db, org, &new_or_changed(&before.cards, &after.cards)).await?;
    for id in gone_or_changed(&before.keys, &after.keys) {
        delete(db, "DELETE FROM org_key WHERE org = $1 AND id = $2", org, id).await?;
        delete(db, "DELETE FROM key_secret WHERE org = $1 AND key_id = $2", org, id).await?;
    }
    insert_keys(db, org, &new_or_changed(&before.keys, &after.keys)).await
}

type Changed<'a, T> = Vec<(&'a Id, &'a Arc<Row<T>>)>;

fn new_or_changed<'a, T: PartialEq>(before: &Table<T>, after: &'a Table<T>) -> Changed<'a, T> {
    after.iter().filter(|(id, row)| before.get(*id) != Some(row)).collect()
}

fn gone_or_changed<'a, T: PartialEq>(
    before: &'a Table<T>,
    after: &'a Table<T>,
) -> impl Iterator<Item = &'a Id> {
    before.iter().filter(|(id, row)| after.get(*id) != Some(row)).map(|(id, _)| id)
}

async fn delete(
    db: &mut Connection,
    sql: &'static str,
    org: &Id,
    id: &Id,
) -> Result<(), sqlx::Error> {
    query(sql).bind(org.as_str()).bind(id.as_str()).execute(db).await?;
    Ok(())
}

async fn insert_terms(
    db: &mut Connection,
    org: &Id,
    rows: &Changed<'_, Term>,
) -> Result<(), StoreError> {
    for (id, row) in rows {
        let sql = "INSERT INTO term (org, id, made_by, start_on, end_on, pool, \
                   price_per_operation, currency) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
        query(sql)
            .bind(org.as_str())
            .bind(id.as_str())
            .bind(row.made_by.word())
            .bind(row.start.to_string())
            .bind(row.end.to_string())
            .bind(micro(Some(row.pool)))
            .bind(row.price_per_operation.map(|price| price.to_string()))
            .bind(row.currency.as_ref().map(Id::as_str))
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

async fn insert_plans(
    db: &mut Connection,
    org: &Id,
    rows: &Changed<'_, Plan>,
) -> Result<(), StoreError> {
    for (id, row) in rows {
        query("INSERT INTO plan (org, id, made_by, credits) VALUES ($1, $2, $3, $4)")
            .bind(org.as_str())
            .bind(id.as_str())
            .bind(row.made_by.word())
            .bind(row.credits.micro().cast_signed())
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

async fn insert_profiles(
    db: &mut Connection,
    org: &Id,
    rows: &Changed<'_, Profile>,
) -> Result<(), StoreError> {
    for (id, row) in rows {
        let sql = "INSERT INTO profile (org, id, made_by, product, shared_credits, pool_limit, \
                   overage) VALUES ($1, $2, $3, $4, $5, $6, $7)";
        query(sql)
            .bind(org.as_str())
            .bind(id.as_str())
            .bind(row.made_by.word())
            .bind(row.product.as_str())
            .bind(i64::from(row.shared_credits))
            .bind(micro(row.pool_limit))
            .bind(row.overage.as_ref().map(json).transpose()?)
            .execute(&mut *db)
            .await?;
        for group in &row.groups {
            let sql = "INSERT INTO profile_group (org, profile_id, group_id) VALUES ($1, $2, $3)";
            query(sql)
                .bind(org.as_str())
                .bind(id.as_str())
                .bind(group.as_str())
                .execute(&mut *db)
                .await?;
        }
    }
    Ok(())
}

async fn insert_cards(
    db: &mut Connection,
    org: &Id,
    rows: &Changed<'_, RateCardFile>,
) -> Result<(), StoreError> {
    for (id, row) in rows {
        query("INSERT INTO rate_card (org, id, made_by, card) VALUES ($1, $2, $3, $4)")
            .bind(org.as_str())
            .bind(id.as_str())
            .bind(row.made_by.word())
            .bind(json(&row.value)?)
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

async fn insert_keys(
    db: &mut Connection,
    org: &Id,
    rows: &Changed<'_, Key>,
) -> Result<(), StoreError> {
    for (id, row) in rows {
        let sql = "INSERT INTO org_key (org, id, made_by, kind, pool_limit) \
                   VALUES ($1, $2, $3, $4, $5)";
        query(sql)
            .bind(org.as_str())
            .bind(id.as_str())
            .bind(row.made_by.word())
            .bind(json(&row.kind)?)
            .bind(micro(row.pool_limit))
            .execute(&mut *db)
            .await?;
        for secret in &row.secrets {
            let sql = "INSERT INTO key_secret (hash, org, key_id, expires) VALUES ($1, $2, $3, $4)";
            query(sql)
                .bind(hex(&secret.hash))
                .bind(org.as_str())
                .bind(id.as_str())
                .bind(secret.expires.map(|expires| expires.to_string()))
                .execute(&mut *db)
                .await?;
        }
    }
    Ok(())
}

async fn write_users(
    db: &mut Connection,
    org: &Id,
    before: &Table<User>,
    after: &Table<User>,
) -> Result<(), StoreError> {
    for id in gone_or_changed(before, after) {
        delete(db, "DELETE FROM org_user WHERE org = $1 AND id = $2", org, id).await?;
        delete(db, "DELETE FROM group_member WHERE org = $1 AND user_id = $2", org, id).await?;
        delete(db, "DELETE FROM profile_user WHERE org = $1 AND user_id = $2", org, id).await?;
    }
    for rows in new_or_changed(before, after).chunks(BATCH) {
        let into = "INSERT INTO org_user (org, id, made_by, email, suspended, pool_limit)";
        let values = rows.iter().map(|(id, row)| {
            [
                org.as_str().into(),
                id.as_str().into(),
                row.made_by.word().into(),
                row.email.as_deref().into(),
                i64::from(row.suspended).into(),
                micro(row.pool_limit).into(),
            ]
        });
        sql::insert(into, values).execute(&mut *db).await?;
        let groups = rows.iter().flat_map(|(id, row)| row.groups.iter().map(move |of| (*id, of)));
        let into = "INSERT INTO group_member (org, user_id, group_id)";
        insert_members(db, into, org, groups.collect()).await?;
        let profiles =
            rows.iter().flat_map(|(id, row)| row.profiles.iter().map(move |of| (*id, of)));
        let into = "INSERT INTO profile_user (org, user_id, profile_id)";
        insert_members(db, into, org, profiles.collect()).await?;
    }
    Ok(())
}

async fn insert_members(
    db: &mut Connection,
    into: &'static str,
    org: &Id,
    members: Vec<(&Id, &Id)>,
) -> Result<(), StoreError> {
    for members in members.chunks(BATCH) {
        let values = members
            .iter()
            .map(|(user, of)| [org.as_str().into(), user.as_str().into(), of.as_str().into()]);
        sql::insert(into, values).execute(&mut *db).await?;
    }
    Ok(())
}

async fn write_licences(
    db: &mut Connection,
    org: &Id,
    before: &Table<Licence>,
    after: &Table<Licence>,
) -> Result<(), StoreError> {
    for id in gone_or_changed(before, after) {
        delete(db, "DELETE FROM licence WHERE org = $1 AND id = $2", org, id).await?;
    }
    for rows in new_or_changed(before, after).chunks(BATCH) {
        let into = "INSERT INTO licence (org, id, made_by, plan, holder, priority, expires, moved)";
        let values = rows.iter().map(|(id, row)| {
            [
                org.as_str().into(),
                id.as_str().into(),
                row.made_by.word().into(),
                row.plan.as_str().into(),
                row.holder.as_ref().map(Id::as_str).into(),
                i64::from(row.priority).into(),
                row.expires.map(|expires| expires.to_string()).into(),
                row.moved.as_ref().map(word).into(),
            ]
        });
        sql::insert(into, values).execute(&mut *db).await?;
    }
    Ok(())
}

impl From<&Change> for Line {
    fn from(change: &Change) -> Self {
        Self {
            kind: change.what,
            id: change.id.to_string(),
            line: change.to_string(),
            before: change.before.as_ref().map(Change::json),
            after: change.after.as_ref().map(Change::json),
        }
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Damaged(error.to_string()))
}

fn micro(amount: Option<Operations>) -> Option<i64> {
    amount.map(|amount| amount.micro().cast_signed())
}
