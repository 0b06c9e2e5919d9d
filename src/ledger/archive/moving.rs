//! What an archive has to do with books that move: whether it has all of those that end, and that it
//! begins with those that go on where they ended.

use super::database::Database;
use super::terms::Terms;
use super::{Archive, ArchiveError};
use crate::sql::{Place, query};

impl Archive {
    /// Whether everything of a journal that ends at a position is archived.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn has_journal(place: Place, end: u64) -> Result<bool, ArchiveError> {
        let database = Database::open(place).await?;
        let mut link = database.writer().await;
        let select = query("SELECT position FROM progress WHERE id = 1");
        let position: i64 = select.fetch_one(link.connection().await?).await?.try_get(0)?;
        drop(link);
        database.close().await;
        Ok(position as u64 == end)
    }

    /// The first shard of which not everything is archived; of each there is given where its ledger
    /// ends, and its terms.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn lacks_of_shards(
        place: Place,
        ledgers: &[(u64, Vec<(String, u64)>)],
    ) -> Result<Option<usize>, ArchiveError> {
        let database = Database::open(place).await?;
        let mut link = database.writer().await;
        let db = link.connection().await?;
        let mut lacks = None;
        for (shard, (end, terms)) in ledgers.iter().enumerate() {
            let select = query("SELECT position FROM shards WHERE shard = $1").bind(shard as i64);
            let row = select.fetch_optional(&mut *db).await?;
            let position: i64 = row.map(|row| row.try_get(0)).transpose()?.unwrap_or(0);
            let terms = Terms::read(&mut *db, shard, terms.clone()).await?;
            if (position as u64) < *end || terms.go_on(position as u64) < *end {
                lacks = Some(shard);
                break;
            }
        }
        drop(link);
        database.close().await;
        Ok(lacks)
    }

    /// Shards begin anew, whatever is known of others that had their numbers. What is archived stays.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn begin_shards(place: Place) -> Result<(), ArchiveError> {
        let tables =
            ["DELETE FROM shards", "DELETE FROM shard_terms", "DELETE FROM shard_sessions"];
        Self::change(place, &tables).await
    }

    /// A journal begins anew, whatever is known of another one. What is archived stays.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn begin_journal(place: Place) -> Result<(), ArchiveError> {
        Self::change(place, &["UPDATE progress SET position = 0, begins = 0"]).await
    }

    async fn change(place: Place, statements: &[&'static str]) -> Result<(), ArchiveError> {
        let database = Database::open(place).await?;
        let mut link = database.writer().await;
        let mut transaction = link.connection().await?.begin().await?;
        for statement in statements {
            query(*statement).execute(&mut transaction).await?;
        }
        transaction.commit().await?;
        drop(link);
        database.close().await;
        Ok(())
    }
}
