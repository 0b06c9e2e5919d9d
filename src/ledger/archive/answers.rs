//! The answers of charges that were made under a key (D35), kept for who asks again.

use std::collections::HashMap;

use jiff::Timestamp;

use super::batch::chunks;
use super::{Archive, ArchiveError, LOOK_AGAIN, Mark, PATIENCE};
use crate::books::KEPT_KEYS;
use crate::core::ids::ChargeId;
use crate::sql::{Connection, Value, query, rows_between};

/// Answers by their charges: when the first one of a charge was given, and the last one.
pub(super) type Answers = HashMap<[u8; 16], (i64, Vec<u8>)>;

/// Adds the answer of a record, where it has one.
pub(super) fn add(answers: &mut Answers, charge: [u8; 16], at: i64, message: &[u8]) {
    if !message.is_empty() {
        answers.entry(charge).or_insert_with(|| (at, Vec::new())).1 = message.to_vec();
    }
}

pub(super) async fn write(answers: &Answers, db: &mut Connection) -> Result<(), sqlx::Error> {
    let rows: Vec<_> = answers.iter().collect();
    for some in chunks(&rows) {
        let values = some.iter().map(|(charge, (at, message))| {
            [Value::from(&charge[..]), (*at).into(), message.into()]
        });
        let into = "INSERT INTO answers (charge, at, message)";
        let behind = " ON CONFLICT (charge) DO UPDATE SET message = excluded.message";
        rows_between(into, values, behind).execute(&mut *db).await?;
    }
    Ok(())
}

impl Archive {
    /// The HTTP message that answered a charge's request, if it is kept.
    ///
    /// # Errors
    /// When the database fails, or is behind the mark.
    pub async fn answer(
        &self,
        charge: ChargeId,
        mark: Mark,
    ) -> Result<Option<Vec<u8>>, ArchiveError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            // Asked before the look-up: what is archived after it is not what it saw.
            let caught_up = self.has(mark).await?;
            let mut link = self.database.reader().await;
            let select = query("SELECT message FROM answers WHERE charge = $1");
            let found = select.bind(&charge.0[..]).fetch_optional(link.ready().await?).await?;
            drop(link);
            if let Some(row) = found {
                return Ok(Some(row.try_get(0)?));
            }
            if caught_up {
                return Ok(None);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(ArchiveError::Behind);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Forgets answers whose keys are forgotten. Returns how many went.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_answers(&self, now: Timestamp) -> Result<u64, ArchiveError> {
        // An answer is never older than its hold, so its key went first.
        let before = now.as_microsecond().saturating_sub(KEPT_KEYS.as_micros() as i64);
        let delete = query(
            "DELETE FROM answers WHERE charge IN \
             (SELECT charge FROM answers WHERE at < $1 ORDER BY at LIMIT 1000)",
        );
        let mut link = self.database.writer().await;
        Ok(delete.bind(before).execute(link.ready().await?).await?)
    }
}
