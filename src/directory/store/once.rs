//! Answers to requests that carried an Idempotency-Key, so that a repeated one changes nothing
//! and is told the same. Bounded in count, size and time; at the bound a new key is refused, because
//! a request that is forgotten would change something twice.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::audit::instant;
use super::{StoreError, load};
use crate::directory::rows::hex;
use crate::sql::{Connection, query};

/// A request that may come twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnceKey {
    /// Whose key it is: the id of the token that asked.
    token: String,
    key: String,
    fingerprint: String,
}

/// What was answered. It holds no secret: what is shown once is not kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The tag of what was made, without quotes.
    pub etag: Option<String>,
    /// The body.
    pub body: Option<Value>,
}

/// What is known of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Its key came with another request.
    Other,
    /// It was begun as this operation, and its end is not known.
    Begun(String),
    /// It was answered.
    Answered(Answer),
    /// It was answered with more than is kept.
    TooLarge,
    /// It is not known, and its token has sent as many keys as are kept.
    NoRoom,
}

/// For how long a repeated request is known. One whose end is not known stays until it is.
pub const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);
/// How many requests of one token may begin within that time. Tokens do not share a bound: none of
/// them can take another's place.
pub const MOST: i64 = 10_000;
/// The largest answer that is kept, in bytes.
pub const LARGEST: usize = 16 << 10;
/// The longest Idempotency-Key.
pub const LONGEST_KEY: usize = 255;

impl OnceKey {
    /// The `key` that the holder of `token` sent with a request of this `fingerprint` (a digest
    /// of method, path, query and body); `None` unless the key is 1 to 255 visible ASCII
    /// characters.
    pub fn new(token: &str, key: &str, fingerprint: &[u8; 32]) -> Option<Self> {
        let fits = (1..=LONGEST_KEY).contains(&key.len())
            && key.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Self {
            token: token.to_owned(),
            key: key.to_owned(),
            fingerprint: hex(fingerprint),
        })
    }
}

/// What is known of a request at `now`.
///
/// # Errors
/// When the database fails.
pub async fn find(
    db: &mut Connection,
    once: &OnceKey,
    now: Timestamp,
) -> Result<Option<Kept>, StoreError> {
    let sql = "SELECT * FROM idempotency WHERE token = $1 AND once_key = $2 \
               AND (at > $3 OR answer IS NULL)";
    let row = query(sql)
        .bind(&once.token)
        .bind(&once.key)
        .bind(oldest(now))
        .fetch_optional(&mut *db)
        .await?;
    let Some(row) = row else {
        let sql = "SELECT at FROM idempotency WHERE token = $1 AND at > $2 \
                   ORDER BY at DESC LIMIT 1 OFFSET $3";
        let row = query(sql).bind(&once.token).bind(oldest(now)).bind(MOST - 1);
        return Ok(row.fetch_optional(db).await?.map(|_| Kept::NoRoom));
    };
    if row.try_get::<&str, _>("fingerprint")? != once.fingerprint {
        return Ok(Some(Kept::Other));
    }
    let answer: Option<String> = row.try_get("answer")?;
    Ok(Some(match answer.as_deref() {
        None => Kept::Begun(row.try_get("operation")?),
        Some("") => Kept::TooLarge,
        Some(_) => Kept::Answered(load::json(&row, "answer")?),
    }))
}

/// Keeps what became of a request; without an answer it is only begun, as `operation`. The
/// caller commits.
///
/// # Errors
/// When the database fails.
pub async fn keep(
    db: &mut Connection,
    once: &OnceKey,
    operation: &str,
    answer: Option<&Answer>,
    now: Timestamp,
) -> Result<(), StoreError> {
    forget(db, once).await?;
    let answer = answer.map(|answer| {
        let text = serde_json::to_string(answer).unwrap_or_default();
        if text.len() > LARGEST { String::new() } else { text }
    });
    let sql = "INSERT INTO idempotency (token, once_key, fingerprint, operation, answer, at) \
               VALUES ($1, $2, $3, $4, $5, $6)";
    query(sql)
        .bind(&once.token)
        .bind(&once.key)
        .bind(&once.fingerprint)
        .bind(operation)
        .bind(answer)
        .bind(instant(now))
        .execute(&mut *db)
        .await?;
    let sql = "DELETE FROM idempotency WHERE at <= $1 AND answer IS NOT NULL";
    query(sql).bind(oldest(now)).execute(db).await?;
    Ok(())
}

/// Forgets a request, which may then come again. The caller commits.
///
/// # Errors
/// When the database fails.
pub async fn forget(db: &mut Connection, once: &OnceKey) -> Result<(), StoreError> {
    let sql = "DELETE FROM idempotency WHERE token = $1 AND once_key = $2";
    query(sql).bind(&once.token).bind(&once.key).execute(db).await?;
    Ok(())
}

fn oldest(now: Timestamp) -> String {
    instant(now.checked_sub(REMEMBERED).unwrap_or(Timestamp::MIN))
}
