//! Which books a directory is for. What a directory grants its books give out, so a second set of
//! books would give all of it out once more. The first gateway writes down which ones it has, and
//! one with others is refused.

use super::store::StoreError;
use super::{ApplyError, Directory};
use crate::sql::{Query, Row, query};

/// The books that give out what a directory grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItsBooks {
    /// `embedded` or `redis`.
    pub engine: String,
    /// The id of the data dir, or the epoch of the books in Redis.
    pub name: String,
    /// How many shards there are; 1 where there are none.
    pub shards: u16,
    /// True once they have been made: where they are gone then, they are lost and not new.
    pub made: bool,
}

fn read(row: &Row) -> Result<ItsBooks, StoreError> {
    let shards = u16::try_from(row.try_get::<i64, _>("shards")?);
    Ok(ItsBooks {
        engine: row.try_get("engine")?,
        name: row.try_get("name")?,
        shards: shards.map_err(|_| StoreError::Damaged("shards of books".into()))?,
        made: row.try_get::<i64, _>("made")? == 1,
    })
}

impl Directory {
    /// Writes down which books this directory has, unless that is known; says which ones they are.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn its_books(&self, wanted: &ItsBooks) -> Result<ItsBooks, ApplyError> {
        let mut writer = self.database.lock().await;
        let mut transaction = writer.link.begin().await?;
        let sql = "INSERT INTO books (id, engine, name, shards, made) VALUES (1, $1, $2, $3, $4) \
                   ON CONFLICT (id) DO NOTHING";
        query(sql)
            .bind(wanted.engine.as_str())
            .bind(wanted.name.as_str())
            .bind(i64::from(wanted.shards))
            .bind(i64::from(wanted.made))
            .execute(&mut transaction)
            .await
            .map_err(StoreError::from)?;
        let row = query("SELECT engine, name, shards, made FROM books");
        let row = row.fetch_one(&mut transaction).await.map_err(StoreError::from)?;
        let found = read(&row)?;
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(found)
    }

    /// Which books this directory has, if it has any yet.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn books(&self) -> Result<Option<ItsBooks>, ApplyError> {
        let mut writer = self.database.lock().await;
        let mut transaction = writer.link.begin().await?;
        let row = query("SELECT engine, name, shards, made FROM books");
        let row = row.fetch_optional(&mut transaction).await.map_err(StoreError::from)?;
        let found = row.as_ref().map(read).transpose()?;
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(found)
    }

    /// Its books are others from now on, which have been made of those that it had. False, and
    /// nothing is changed, where it has others.
    ///
    /// # Errors
    /// When the database fails: then it is not known which ones it has.
    pub async fn move_books(&self, from: &ItsBooks, to: &ItsBooks) -> Result<bool, ApplyError> {
        let sql = "UPDATE books SET engine = $1, name = $2, shards = $3, made = 1 \
                   WHERE engine = $4 AND name = $5";
        let change = query(sql).bind(to.engine.as_str()).bind(to.name.as_str());
        let change = change.bind(i64::from(to.shards));
        self.change_books(change.bind(from.engine.as_str()).bind(from.name.as_str())).await
    }

    /// Writes down that its books have been made.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn its_books_are_made(&self) -> Result<(), ApplyError> {
        self.change_books(query("UPDATE books SET made = 1")).await.map(|_| ())
    }

    /// Forgets which books it had, where it had those: the next gateway's are its books from then
    /// on, and what they have not counted is given out again. False where it had others.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_books(&self, name: &str) -> Result<bool, ApplyError> {
        self.change_books(query("DELETE FROM books WHERE name = $1").bind(name)).await
    }

    async fn change_books(&self, change: Query) -> Result<bool, ApplyError> {
        let mut writer = self.database.lock().await;
        let mut transaction = writer.link.begin().await?;
        let changed = change.execute(&mut transaction).await.map_err(StoreError::from)?;
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(changed > 0)
    }
}
