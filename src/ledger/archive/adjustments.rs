//! Adjustments in the archive, and the legs that a refund gives back.

use super::records::{decoded, kept};
use super::{Archive, ArchiveError, At, LOOK_AGAIN, Mark, PATIENCE, key_bytes};
use crate::core::account::{AccountKey, AccountName, LegKind};
use crate::core::adjustment::{AdjustMemo, AdjustmentDocument};
use crate::core::ids::ChargeId;
use crate::core::record::{Adjust, Record, instant};
use crate::sql::{Connection, Value, query};

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
    at: At,
    /// The key under which it was made once.
    pub(super) once: Option<Vec<u8>>,
}

impl Row {
    /// The row of a record, and what is wrong with its memo. A memo that cannot be read still
    /// makes a row where its id can, so that whoever repeats the adjustment finds it made.
    pub(super) fn new(
        adjust: &Adjust<'_>,
        bytes: &[u8],
        at: At,
    ) -> (Option<Self>, Option<postcard::Error>) {
        let row = |id, org, charge| {
            let (key, record) = (key_bytes(&adjust.key), bytes.to_vec());
            Self { id, org, charge, key, record, at, once: None }
        };
        match postcard::from_bytes::<AdjustMemo<'_>>(adjust.memo) {
            Ok(memo) => (Some(row(memo.id, Some(memo.org.to_owned()), memo.charge)), None),
            Err(error) => (own_id(adjust.memo).map(|id| row(id, None, None)), Some(error)),
        }
    }

    /// `books` is the number of those in Redis that it was made in.
    pub(super) async fn write(
        &self,
        db: &mut Connection,
        books: Option<i64>,
    ) -> Result<(), sqlx::Error> {
        let org = match &self.org {
            Some(org) => org.clone(),
            None => name(db, &self.key).await?.split('/').next().unwrap_or_default().to_owned(),
        };
        // What is archived again is as it was recorded; its place stays. The places of an org are
        // in the order of its records, because all of them are in one journal or shard, which one
        // after the other archives.
        let sql = "INSERT INTO adjustments (id, org, charge, record, position, once, books) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO UPDATE SET \
                   charge = excluded.charge, record = excluded.record, \
                   position = excluded.position, once = excluded.once, books = excluded.books";
        let insert = query(sql).bind(&self.id[..]).bind(org);
        let insert = insert.bind(Value::Bytes(self.charge.map(Vec::from))).bind(&self.record);
        let insert = insert.bind(self.at.position as i64).bind(Value::Bytes(self.once.clone()));
        insert.bind(Value::Number(books)).execute(db).await?;
        Ok(())
    }
}

/// The id that a memo begins with, whatever follows it.
pub(super) fn own_id(memo: &[u8]) -> Option<[u8; 16]> {
    // Bytes with their length before them.
    let (id, _): (&[u8], _) = postcard::take_from_bytes(memo).ok()?;
    id.try_into().ok()
}

/// The name of an account that was opened, by its encoded key.
async fn name(db: &mut Connection, key: &[u8]) -> Result<String, sqlx::Error> {
    let row = query("SELECT name FROM accounts WHERE key = $1").bind(key).fetch_optional(db);
    row.await?.map_or_else(|| Ok(String::new()), |row| row.try_get(0))
}

/// The name of an account that was opened.
pub(super) async fn name_of(db: &mut Connection, key: &AccountKey) -> Result<String, ArchiveError> {
    Ok(name(db, &key_bytes(key)).await?)
}

async fn describe(db: &mut Connection, record: &[u8]) -> Result<AdjustmentDocument, ArchiveError> {
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
    let name = name_of(db, &adjust.key).await?;
    Ok(memo.document(&name, adjust.key.kind, adjust.delta, instant(adjust.at)))
}

impl Archive {
    /// The adjustment with this id, if it was made up to the mark.
    ///
    /// # Errors
    /// When the database fails, or the archive does not catch up in time.
    pub async fn adjustment(
        &self,
        id: ChargeId,
        mark: Mark,
    ) -> Result<Option<AdjustmentDocument>, ArchiveError> {
        self.caught_up(mark).await?;
        let mut link = self.database.reader().await;
        let db = link.ready().await?;
        let select = query("SELECT record FROM adjustments WHERE id = $1").bind(&id.0[..]);
        let Some(row) = select.fetch_optional(db).await? else { return Ok(None) };
        let record: Vec<u8> = row.try_get(0)?;
        describe(db, &record).await.map(Some)
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
        mark: Mark,
    ) -> Result<Vec<(i64, AdjustmentDocument)>, ArchiveError> {
        self.caught_up(mark).await?;
        let mut link = self.database.reader().await;
        let db = link.ready().await?;
        let sql = "SELECT place, record FROM adjustments WHERE org = $1 AND place < $2 \
                   ORDER BY place DESC LIMIT $3";
        let select = query(sql).bind(org).bind(before.unwrap_or(i64::MAX)).bind(limit as i64);
        let mut described = Vec::new();
        for row in select.fetch_all(db).await? {
            let record: Vec<u8> = row.try_get(1)?;
            described.push((row.try_get(0)?, describe(db, &record).await?));
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
        mark: Mark,
    ) -> Result<Vec<AdjustmentDocument>, ArchiveError> {
        self.caught_up(mark).await?;
        let mut link = self.database.reader().await;
        let db = link.ready().await?;
        let sql = "SELECT record FROM adjustments WHERE charge = $1 ORDER BY place";
        let mut described = Vec::new();
        for row in query(sql).bind(&charge.0[..]).fetch_all(db).await? {
            let record: Vec<u8> = row.try_get(0)?;
            described.push(describe(db, &record).await?);
        }
        Ok(described)
    }

    /// What a resolved charge took in the end, limits and caps included.
    ///
    /// # Errors
    /// As with [`Archive::adjustment`].
    pub async fn legs(&self, charge: ChargeId, mark: Mark) -> Result<Vec<KeptLeg>, ArchiveError> {
        self.caught_up(mark).await?;
        let mut link = self.database.reader().await;
        let db = link.ready().await?;
        let sql = "SELECT hold, resolution FROM charges WHERE id = $1";
        let found = query(sql).bind(&charge.0[..]).fetch_optional(db).await?;
        let Some(row) = found else { return Ok(Vec::new()) };
        let (hold, resolution): (Vec<u8>, Option<Vec<u8>>) = (row.try_get(0)?, row.try_get(1)?);
        let Some(resolution) = resolution else { return Ok(Vec::new()) };
        let (hold, resolution) = decoded(&hold, Some(&resolution))?;
        let resolve = resolution.as_ref().map(|(resolve, _)| resolve);
        let mut legs = Vec::new();
        for leg in kept(&hold.hold, resolve).into_iter().filter(|leg| leg.amount > 0) {
            let name = name_of(db, &leg.key).await?;
            let Some(read) = AccountName::read(&name, &leg.key) else {
                let what = format!("the name of an account: {name:?}");
                return Err(ArchiveError::Unreadable(what));
            };
            let ids = read.ids.map(Box::from);
            legs.push(KeptLeg { account: leg.key, ids, kind: leg.kind, amount: leg.amount });
        }
        Ok(legs)
    }

    /// Waits until everything up to a mark is archived: what is not there then was not made.
    pub(super) async fn caught_up(&self, mark: Mark) -> Result<(), ArchiveError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !self.has(mark).await? {
            if tokio::time::Instant::now() >= deadline {
                return Err(ArchiveError::Behind);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }
}
