//! Adjustments in the archive, and the legs that a refund gives back.

use std::time::Duration;

use super::records::{decoded, kept};
use super::{Archive, ArchiveError, PATIENCE, key_bytes};
use crate::core::account::{AccountKey, AccountName, LegKind};
use crate::core::adjustment::{AdjustMemo, AdjustmentDocument};
use crate::core::ids::ChargeId;
use crate::core::record::{Adjust, Record, instant};

/// What an account gave to a charge in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptLeg {
    /// The account.
    pub account: AccountKey,
    /// The ids it is named by.
    pub ids: [Box<str>; 2],
    /// What the leg stands for.
    pub kind: LegKind,
    /// Millionths of the account's unit, above zero.
    pub amount: u64,
}

/// A row of the archive: what the journal recorded of an adjustment.
pub(super) struct Row {
    pub(super) id: [u8; 16],
    /// `None` where it cannot be read: then the account's name says it.
    org: Option<String>,
    charge: Option<[u8; 16]>,
    key: Vec<u8>,
    record: Vec<u8>,
    position: u64,
}

impl Row {
    /// The row of a record, and what is wrong with its memo. A memo that cannot be read still
    /// makes a row where its id can, so that whoever repeats the adjustment finds it made.
    pub(super) fn new(
        adjust: &Adjust<'_>,
        bytes: &[u8],
        position: u64,
    ) -> (Option<Self>, Option<postcard::Error>) {
        let row = |id, org, charge| {
            let (key, record) = (key_bytes(&adjust.key), bytes.to_vec());
            Self { id, org, charge, key, record, position }
        };
        match postcard::from_bytes::<AdjustMemo<'_>>(adjust.memo) {
            Ok(memo) => (Some(row(memo.id, Some(memo.org.to_owned()), memo.charge)), None),
            Err(error) => (own_id(adjust.memo).map(|id| row(id, None, None)), Some(error)),
        }
    }

    pub(super) async fn write(&self, db: &mut sqlx::SqliteConnection) -> Result<(), sqlx::Error> {
        // What is archived again is as the journal has it; its place stays.
        let sql = "INSERT INTO adjustments (id, org, charge, record, position) VALUES (?1, \
                   coalesce(?2, (SELECT substr(name, 1, instr(name, '/') - 1) FROM accounts \
                   WHERE key = ?3), ''), ?4, ?5, ?6) ON CONFLICT (id) DO UPDATE SET \
                   charge = excluded.charge, record = excluded.record, \
                   position = excluded.position";
        sqlx::query(sql)
            .bind(&self.id[..])
            .bind(&self.org)
            .bind(&self.key)
            .bind(self.charge.as_ref().map(|charge| &charge[..]))
            .bind(&self.record)
            .bind(self.position as i64)
            .execute(db)
            .await?;
        Ok(())
    }
}

/// The id that a memo begins with, whatever follows it.
pub(super) fn own_id(memo: &[u8]) -> Option<[u8; 16]> {
    // Bytes with their length before them.
    let (id, _): (&[u8], _) = postcard::take_from_bytes(memo).ok()?;
    id.try_into().ok()
}

impl Archive {
    /// The adjustment with this id, if the journal up to `written` has it.
    ///
    /// # Errors
    /// When the database fails, or the archive does not catch up in time.
    pub async fn adjustment(
        &self,
        id: ChargeId,
        written: u64,
    ) -> Result<Option<AdjustmentDocument>, ArchiveError> {
        self.caught_up(written).await?;
        let query = sqlx::query_scalar("SELECT record FROM adjustments WHERE id = ?");
        let found: Option<Vec<u8>> = query.bind(&id.0[..]).fetch_optional(&self.pool).await?;
        match found {
            Some(record) => self.describe(&record).await.map(Some),
            None => Ok(None),
        }
    }

    /// Adjustments of an org with their places, newest first: at most `limit`, those before a
    /// place where one is given.
    ///
    /// # Errors
    /// As with [`Archive::adjustment`].
    pub async fn adjustments(
        &self,
        org: &str,
        before: Option<i64>,
        limit: usize,
        written: u64,
    ) -> Result<Vec<(i64, AdjustmentDocument)>, ArchiveError> {
        self.caught_up(written).await?;
        let sql = "SELECT place, record FROM adjustments WHERE org = ? AND place < ? \
                   ORDER BY place DESC LIMIT ?";
        let query = sqlx::query_as(sql).bind(org).bind(before.unwrap_or(i64::MAX));
        let rows: Vec<(i64, Vec<u8>)> = query.bind(limit as i64).fetch_all(&self.pool).await?;
        let mut described = Vec::with_capacity(rows.len());
        for (place, record) in rows {
            described.push((place, self.describe(&record).await?));
        }
        Ok(described)
    }

    /// What was given back of a charge, in the order of its legs.
    ///
    /// # Errors
    /// As with [`Archive::adjustment`].
    pub async fn given_back(
        &self,
        charge: ChargeId,
        written: u64,
    ) -> Result<Vec<AdjustmentDocument>, ArchiveError> {
        self.caught_up(written).await?;
        let sql = "SELECT record FROM adjustments WHERE charge = ? ORDER BY place";
        let query = sqlx::query_scalar(sql).bind(&charge.0[..]);
        let records: Vec<Vec<u8>> = query.fetch_all(&self.pool).await?;
        let mut described = Vec::with_capacity(records.len());
        for record in records {
            described.push(self.describe(&record).await?);
        }
        Ok(described)
    }

    /// What a resolved charge took in the end, limits and caps included.
    ///
    /// # Errors
    /// As with [`Archive::adjustment`].
    pub async fn legs(&self, charge: ChargeId, written: u64) -> Result<Vec<KeptLeg>, ArchiveError> {
        self.caught_up(written).await?;
        let sql = "SELECT hold, resolution FROM charges WHERE id = ?";
        let row: Option<(Vec<u8>, Option<Vec<u8>>)> =
            sqlx::query_as(sql).bind(&charge.0[..]).fetch_optional(&self.pool).await?;
        let Some((hold, Some(resolution))) = row else { return Ok(Vec::new()) };
        let (hold, resolution) = decoded(&hold, Some(&resolution))?;
        let resolve = resolution.as_ref().map(|(resolve, _)| resolve);
        let mut legs = Vec::new();
        for leg in kept(&hold.hold, resolve).into_iter().filter(|leg| leg.amount > 0) {
            let name = self.name(&leg.key).await?;
            let Some(read) = AccountName::read(&name, &leg.key) else {
                let what = format!("the name of an account: {name:?}");
                return Err(ArchiveError::Unreadable(what));
            };
            let ids = read.ids.map(Box::from);
            legs.push(KeptLeg { account: leg.key, ids, kind: leg.kind, amount: leg.amount });
        }
        Ok(legs)
    }

    async fn describe(&self, record: &[u8]) -> Result<AdjustmentDocument, ArchiveError> {
        let unreadable = || ArchiveError::Unreadable("an archived adjustment".to_owned());
        let Ok(Record::Adjust(adjust)) = Record::decode(record) else { return Err(unreadable()) };
        let memo: AdjustMemo<'_> = match postcard::from_bytes(adjust.memo) {
            Ok(memo) => memo,
            // A dead letter: what it did is known, not who asked for it, and why.
            Err(_) => {
                let id = own_id(adjust.memo).ok_or_else(unreadable)?;
                AdjustMemo { id, org: "", who: "", reason: "", charge: None }
            }
        };
        let name = self.name(&adjust.key).await?;
        Ok(memo.document(&name, adjust.key.kind, adjust.delta, instant(adjust.at)))
    }

    /// The name of an account that was opened.
    pub(super) async fn name(&self, key: &AccountKey) -> Result<String, ArchiveError> {
        let query = sqlx::query_scalar("SELECT name FROM accounts WHERE key = ?");
        let name: Option<String> = query.bind(key_bytes(key)).fetch_optional(&self.pool).await?;
        Ok(name.unwrap_or_default())
    }

    /// Waits until everything up to a position is archived: what is not there then was not made.
    pub(super) async fn caught_up(&self, written: u64) -> Result<(), ArchiveError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.position() < written {
            if tokio::time::Instant::now() >= deadline {
                return Err(ArchiveError::Behind);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}
