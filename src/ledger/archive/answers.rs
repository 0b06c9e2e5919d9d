//! The answers of charges that were made under a key (D35), kept for who asks again.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::SqliteConnection;

use super::{Archive, ArchiveError, PATIENCE};
use crate::books::KEPT_KEYS;
use crate::core::ids::ChargeId;

/// An answer.
pub(super) struct Answer {
    charge: [u8; 16],
    at: i64,
    message: Vec<u8>,
}

impl Answer {
    /// Of a record; `None` where it has none.
    pub(super) fn of(charge: [u8; 16], at: i64, message: &[u8]) -> Option<Self> {
        (!message.is_empty()).then(|| Self { charge, at, message: message.to_vec() })
    }

    pub(super) async fn write(&self, db: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let sql = "INSERT INTO answers (charge, at, message) VALUES (?, ?, ?) \
                   ON CONFLICT (charge) DO UPDATE SET message = excluded.message";
        let insert = sqlx::query(sql).bind(&self.charge[..]).bind(self.at).bind(&self.message);
        insert.execute(db).await?;
        Ok(())
    }
}

impl Archive {
    /// The HTTP message that answered a charge's request, if it is kept.
    ///
    /// # Errors
    /// When the database fails, or is behind what was `written`.
    pub async fn answer(
        &self,
        charge: ChargeId,
        written: u64,
    ) -> Result<Option<Vec<u8>>, ArchiveError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            // Asked before the look-up: what is archived after it is not what it saw.
            let caught_up = self.position() >= written;
            let select = sqlx::query_scalar("SELECT message FROM answers WHERE charge = ?");
            let found = select.bind(&charge.0[..]).fetch_optional(&self.pool).await?;
            if found.is_some() || caught_up {
                return Ok(found);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(ArchiveError::Behind);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Forgets answers whose keys are forgotten. Returns how many went.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_answers(&self, now: Timestamp) -> Result<u64, ArchiveError> {
        // An answer is never older than its hold, so its key went first.
        let before = now.as_microsecond().saturating_sub(KEPT_KEYS.as_micros() as i64);
        let delete = sqlx::query(
            "DELETE FROM answers WHERE charge IN \
             (SELECT charge FROM answers WHERE at < ? ORDER BY at LIMIT 1000)",
        );
        Ok(delete.bind(before).execute(&self.pool).await?.rows_affected())
    }
}
