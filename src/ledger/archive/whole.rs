//! All that is archived of books in Redis, as of one moment: for whoever builds them again or adds them
//! up.

use super::database::link;
use super::more;
use super::records::lasting;
use super::{ArchiveError, key_bytes};
use crate::books::redis::rebuild::Open;
use crate::core::account::{AccountKey, Grant, Version};
use crate::core::record::{Adjust, Finish, Lasting, Once, Record, Resolve};
use crate::sql::{Link, Place, Row, Transaction, query};

/// How many rows are read at once.
const PAGE: i64 = 2_000;

/// An archive of books in Redis.
pub struct Reader(Link);

/// What it has, and had at one moment.
pub struct Whole<'a> {
    transaction: Transaction<'a>,
    books: Books,
}

/// The books that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Books {
    number: i64,
    /// False where the archive was there before it wrote down all that is read here.
    sure: bool,
}

/// What is known of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Archived {
    /// The position up to which its ledger is archived.
    pub position: u64,
    /// Cycles before it are closed: the label's digits.
    pub closed: u32,
    /// Up to which position each of its terms is archived.
    pub terms: Vec<(String, u64)>,
    /// The last archived call of each session.
    pub sessions: Vec<(String, u64)>,
    /// How many of its records could not be read, or were missing.
    pub dead: u64,
}

/// A charge as it is archived.
pub struct KeptCharge {
    /// Its id.
    pub id: [u8; 16],
    hold: Vec<u8>,
    resolution: Option<Vec<u8>>,
    /// What else there is to it.
    pub open: Option<Open>,
}

/// An adjustment as it is archived.
pub struct KeptAdjustment {
    place: i64,
    /// Whose.
    pub org: String,
    record: Vec<u8>,
    /// The key under which it was made once.
    pub once: Option<Once>,
}

/// An account that was named.
pub struct KeptAccount {
    /// The account.
    pub key: AccountKey,
    /// Its name.
    pub name: String,
    /// Its newest grant, where it is kept.
    pub grant: Grant,
}

impl KeptCharge {
    /// Its hold, and its end; `None` where they cannot be read.
    pub fn read(&self) -> Option<(Lasting<'_>, Option<Resolve<'_>>)> {
        let hold = lasting(&self.hold)?;
        let end = match self.resolution.as_deref().map(Record::decode) {
            None => None,
            Some(Ok(Record::Resolve(resolve) | Record::Finish(Finish { resolve, .. }))) => {
                Some(resolve)
            }
            Some(_) => return None,
        };
        Some((hold, end))
    }
}

impl KeptAdjustment {
    /// Its record; `None` where it cannot be read.
    pub fn read(&self) -> Option<Adjust<'_>> {
        match Record::decode(&self.record) {
            Ok(Record::Adjust(adjust)) => Some(adjust),
            _ => None,
        }
    }
}

impl Reader {
    /// Opens an archive.
    ///
    /// # Errors
    /// When the database cannot be opened or migrated.
    pub async fn open(place: Place) -> Result<Self, ArchiveError> {
        let mut link = link(place);
        link.connection().await?;
        Ok(Self(link))
    }

    /// Waits until nobody archives entries of a shard any more that were read before.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn rests(&mut self, shard: usize) -> Result<(), ArchiveError> {
        if self.0.is_shared() {
            let mut transaction = self.0.begin().await?;
            let sql = "SELECT position FROM shards WHERE shard = $1 FOR UPDATE";
            query(sql).bind(shard as i64).fetch_optional(&mut transaction).await?;
            transaction.commit().await?;
        }
        Ok(())
    }

    /// All that it has of the books of an epoch; `None` where it has nothing of them.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn whole(&mut self, epoch: &str) -> Result<Option<Whole<'_>>, ArchiveError> {
        let mut transaction = self.0.begin_to_read().await?;
        let select = query("SELECT number, sure FROM archived_books WHERE epoch = $1");
        let row = select.bind(epoch).fetch_optional(&mut transaction).await?;
        let Some(row) = row else { return Ok(None) };
        let (number, sure): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        Ok(Some(Whole { transaction, books: Books { number, sure: sure == 1 } }))
    }

    /// Closes it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn close(mut self) -> Result<(), ArchiveError> {
        Ok(self.0.close().await?)
    }
}

impl Whole<'_> {
    /// False where the books had begun before the archive wrote down all that belongs to them, so that
    /// what adds up to it may be something else than they had.
    pub fn is_sure(&self) -> bool {
        self.books.sure
    }

    /// What is known of a shard.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn shard(&mut self, shard: usize) -> Result<Archived, ArchiveError> {
        let shard = shard as i64;
        let db = &mut self.transaction;
        let select = query("SELECT position, closed FROM shards WHERE shard = $1").bind(shard);
        let (position, closed): (i64, i64) = match select.fetch_optional(db).await? {
            Some(row) => (row.try_get(0)?, row.try_get(1)?),
            None => (0, 0),
        };
        let pairs = |rows: Vec<Row>| {
            let pair = |row: &Row| Ok((row.try_get(0)?, row.try_get::<i64, _>(1)? as u64));
            rows.iter().map(pair).collect::<Result<Vec<(String, u64)>, sqlx::Error>>()
        };
        let terms = query("SELECT term, through FROM shard_terms WHERE shard = $1").bind(shard);
        let terms = pairs(terms.fetch_all(db).await?)?;
        let sql = "SELECT session, number FROM shard_sessions WHERE shard = $1";
        let sessions = pairs(query(sql).bind(shard).fetch_all(db).await?)?;
        let dead = query("SELECT count(*) FROM dead_letters WHERE shard = $1").bind(shard);
        let dead: i64 = dead.fetch_one(db).await?.try_get(0)?;
        let closed = u32::try_from(closed).unwrap_or_default();
        Ok(Archived { position: position as u64, closed, terms, sessions, dead: dead as u64 })
    }

    /// Some accounts, in the order of their keys.
    ///
    /// # Errors
    /// When the database fails, or a key cannot be read.
    pub async fn accounts(
        &mut self,
        behind: Option<&AccountKey>,
    ) -> Result<Vec<KeptAccount>, ArchiveError> {
        let sql = "SELECT key, name, base, epoch, number FROM accounts WHERE key > $1 \
                   ORDER BY key LIMIT $2";
        let behind = behind.map(key_bytes).unwrap_or_default();
        let rows = query(sql).bind(behind).bind(PAGE).fetch_all(&mut self.transaction).await?;
        let account = |row: Row| {
            let key: Vec<u8> = row.try_get(0)?;
            let key = postcard::from_bytes(&key);
            let key = key.map_err(|_| ArchiveError::Unreadable("an archived account".into()))?;
            let number = |column: usize| {
                Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.unwrap_or_default())
            };
            let (base, epoch, version) = (number(2)?, number(3)?, number(4)?);
            let epoch = u32::try_from(epoch).unwrap_or_default();
            let version = Version { epoch, number: version as u64 };
            let grant = Grant { base: base as u64, version };
            Ok(KeptAccount { key, name: row.try_get(1)?, grant })
        };
        rows.into_iter().map(account).collect()
    }

    /// When the newest charge was held, in microseconds since the Unix epoch.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn newest(&mut self) -> Result<Option<i64>, ArchiveError> {
        let sql = "SELECT hold FROM charges WHERE books = $1 OR (books IS NULL AND $2 = 0) \
                   ORDER BY id DESC LIMIT 1";
        let select = query(sql).bind(self.books.number).bind(i64::from(self.books.sure));
        let Some(row) = select.fetch_optional(&mut self.transaction).await? else {
            return Ok(None);
        };
        let hold: Vec<u8> = row.try_get(0)?;
        Ok(lasting(&hold).map(|lasting| lasting.hold.at))
    }

    /// Some charges, in the order of their ids.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn charges(&mut self, behind: [u8; 16]) -> Result<Vec<KeptCharge>, ArchiveError> {
        let sql = "SELECT id, hold, resolution, more FROM charges WHERE id > $1 \
                   AND (books = $2 OR (books IS NULL AND $3 = 0)) ORDER BY id LIMIT $4";
        let select = query(sql).bind(&behind[..]).bind(self.books.number);
        let select = select.bind(i64::from(self.books.sure)).bind(PAGE);
        let charge = |row: Row| {
            let id: Vec<u8> = row.try_get(0)?;
            let id = id.try_into();
            let id = id.map_err(|_| ArchiveError::Unreadable("the id of a charge".into()))?;
            let more: Option<Vec<u8>> = row.try_get(3)?;
            let open = more.as_deref().and_then(more::open);
            Ok(KeptCharge { id, hold: row.try_get(1)?, resolution: row.try_get(2)?, open })
        };
        select.fetch_all(&mut self.transaction).await?.into_iter().map(charge).collect()
    }

    /// Some adjustments, in their order.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn adjustments(
        &mut self,
        behind: Option<&KeptAdjustment>,
    ) -> Result<Vec<KeptAdjustment>, ArchiveError> {
        let sql = "SELECT place, org, record, once FROM adjustments WHERE place > $1 \
                   AND (books = $2 OR (books IS NULL AND $3 = 0)) ORDER BY place LIMIT $4";
        let select = query(sql).bind(behind.map_or(i64::MIN, |last| last.place));
        let select = select.bind(self.books.number).bind(i64::from(self.books.sure)).bind(PAGE);
        let adjustment = |row: Row| {
            let once: Option<Vec<u8>> = row.try_get(3)?;
            let once = once.as_deref().and_then(|once| postcard::from_bytes(once).ok());
            let (place, org, record) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            Ok(KeptAdjustment { place, org, record, once })
        };
        select.fetch_all(&mut self.transaction).await?.into_iter().map(adjustment).collect()
    }

    /// What came from other books, with the shards where it came: records.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn carried(&mut self) -> Result<Vec<(usize, Vec<u8>)>, ArchiveError> {
        let sql = "SELECT shard, record FROM carried WHERE books = $1 \
                   ORDER BY shard, position, part";
        let rows = query(sql).bind(self.books.number).fetch_all(&mut self.transaction).await?;
        let record = |row: &Row| Ok((row.try_get::<i64, _>(0)? as usize, row.try_get(1)?));
        rows.iter().map(record).collect()
    }
}
