//! Administrators' tokens in the database.

use super::{StoreError, load};
use crate::core::ids::Id;
use crate::directory::rows::{hex, word};
use crate::directory::token::Token;
use crate::sql::{Connection, query};

/// Every token.
///
/// # Errors
/// When the database fails, or holds what cannot be read.
pub async fn load(db: &mut Connection) -> Result<Vec<Token>, StoreError> {
    let rows = query("SELECT * FROM admin_token ORDER BY id").fetch_all(db).await?;
    rows.iter()
        .map(|row| {
            let role: String = row.try_get("role")?;
            Ok(Token {
                id: load::parsed(row, "id")?,
                hash: load::hash(row)?,
                role: role.parse().map_err(|()| StoreError::Damaged(format!("role {role}")))?,
                org: load::optional(row, "org")?,
                profiles: load::json(row, "profiles")?,
                created_at: load::parsed(row, "created_at")?,
                created_by: row.try_get("created_by")?,
                expires: load::optional(row, "expires")?,
            })
        })
        .collect()
}

/// Adds a token. The caller commits.
///
/// # Errors
/// When the database fails.
pub async fn insert(db: &mut Connection, token: &Token) -> Result<(), StoreError> {
    let sql = "INSERT INTO admin_token (id, hash, role, org, profiles, created_at, created_by, \
               expires) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    query(sql)
        .bind(token.id.as_str())
        .bind(hex(&token.hash))
        .bind(token.role.word())
        .bind(token.org.as_ref().map(Id::as_str))
        .bind(word(&token.profiles))
        .bind(token.created_at.to_string())
        .bind(token.created_by.as_str())
        .bind(token.expires.map(|expires| expires.to_string()))
        .execute(db)
        .await?;
    Ok(())
}

/// Removes a token. The caller commits.
///
/// # Errors
/// When the database fails.
pub async fn delete(db: &mut Connection, id: &Id) -> Result<(), StoreError> {
    query("DELETE FROM admin_token WHERE id = $1").bind(id.as_str()).execute(db).await?;
    Ok(())
}
