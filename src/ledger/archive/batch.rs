//! What is archived in one transaction.

use std::collections::HashMap;
use std::fmt::Display;

use super::answers::{self, Answers};
use super::more::{self, Said};
use super::records::{self, amended};
use super::{At, adjustments, dead, key_bytes};
use crate::books::redis::ledger::{More, Name};
use crate::books::redis::rebuild::Open;
use crate::core::account::{AccountKey, Grant};
use crate::core::charge::{Flags, HoldMemo};
use crate::core::record::{Amend, Finish, Hold, Lasting, Record, Resolve};
use crate::sql::{Connection, Value, query, rows_between};

/// Rows per statement: below every database's bound on parameters.
const ROWS: usize = 256;

/// Rows to write in one transaction.
#[derive(Default)]
pub(super) struct Batch {
    charges: HashMap<[u8; 16], Row>,
    /// Resolutions of charges whose rows are there already.
    resolutions: Vec<Step>,
    /// Amendments of charges whose rows are there already.
    amendments: Vec<Step>,
    answers: Answers,
    adjustments: Vec<adjustments::Row>,
    dead: Vec<dead::Letter>,
    /// With their newest grant.
    pub(super) accounts: HashMap<AccountKey, (String, Grant)>,
    carried: Vec<(At, Vec<u8>)>,
    /// The number of the books in Redis that they are of.
    pub(super) books: Option<i64>,
    /// When the last of its records was made; 0 for none that says so.
    pub(super) newest: i64,
    pub(super) records: usize,
}

struct Row {
    org: String,
    user: Option<String>,
    key: String,
    hold: Vec<u8>,
    resolution: Option<Vec<u8>>,
    more: Option<Open>,
}

/// A record of a charge, as it is kept.
struct Step {
    charge: [u8; 16],
    record: Vec<u8>,
    at: At,
    more: StepMore,
}

/// What else is said of a step.
#[derive(Default)]
struct StepMore {
    /// The names that its charge has from then on.
    names: Option<Vec<Name>>,
    /// What is to be remembered of an end.
    ended: Option<Open>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Adds a record by its bytes.
    pub(super) fn read(&mut self, bytes: &[u8], at: At) {
        match Record::decode(bytes) {
            Ok(record) => self.add(&record, bytes, at),
            Err(error) => {
                self.records += 1;
                self.bury(at, &[], &error, bytes);
            }
        }
    }

    /// Adds a record, which is kept as `bytes`.
    pub(super) fn add(&mut self, record: &Record<'_>, bytes: &[u8], at: At) {
        self.add_said(record, bytes, at, None);
    }

    /// Adds an account, under the newest of its grants.
    pub(super) fn open(&mut self, key: AccountKey, name: &str, grant: Grant) {
        let (_, known) = self.accounts.entry(key).or_insert_with(|| (name.to_owned(), grant));
        if grant.version > known.version {
            *known = grant;
        }
    }

    /// Adds a record of books in Redis, with what else is said there.
    pub(super) fn add_said(
        &mut self,
        record: &Record<'_>,
        bytes: &[u8],
        at: At,
        said: Option<&Said<'_>>,
    ) {
        self.records += 1;
        for opening in record.openings() {
            self.open(opening.key, opening.name, opening.grant);
        }
        match record {
            Record::Hold(hold) | Record::Lasting(Lasting { hold, .. }) => {
                self.hold(hold, bytes, at, said.map(Said::open))
            }
            Record::Amend(amend) => {
                self.newest = amend.at;
                answers::add(&mut self.answers, amend.charge, amend.at, amend.answer);
                self.amend(amend, bytes, at, said.and_then(Said::names));
            }
            Record::Resolve(resolve) => self.resolve(resolve, bytes, at, said),
            Record::Finish(Finish { resolve, answer, .. }) => {
                answers::add(&mut self.answers, resolve.charge, resolve.at, answer);
                self.resolve(resolve, bytes, at, said);
            }
            Record::Adjust(adjust) => {
                self.newest = adjust.at;
                let (mut row, error) = adjustments::Row::new(adjust, bytes, at);
                if let Some(error) = error {
                    let id = row.as_ref().map(|row| row.id);
                    self.bury(at, id.as_ref().map_or(&[], |id| &id[..]), &error, bytes);
                }
                if let (Some(row), Some(Said { more: Some(More::Key(once)), .. })) =
                    (&mut row, said)
                {
                    row.once = Some(more::encode(once));
                }
                self.adjustments.extend(row);
            }
            // Its charges and adjustments are in the archive of the books they were made in.
            Record::Carried(carried) => {
                self.newest = carried.at;
                self.carried.extend(said.map(|_| (at, bytes.to_vec())));
            }
            Record::Synced(_) | Record::Close(_) => {}
        }
    }

    fn hold(&mut self, hold: &Hold<'_>, bytes: &[u8], at: At, more: Option<Open>) {
        self.newest = hold.at;
        let memo: HoldMemo<'_> = match postcard::from_bytes(hold.memo) {
            Ok(memo) => memo,
            Err(error) => return self.bury(at, &hold.charge, &error, bytes),
        };
        let row = Row {
            org: memo.org.to_owned(),
            user: memo.user.map(str::to_owned),
            key: memo.key.to_owned(),
            hold: bytes.to_vec(),
            resolution: None,
            more,
        };
        self.charges.insert(hold.charge, row);
    }

    fn resolve(&mut self, resolve: &Resolve<'_>, bytes: &[u8], at: At, said: Option<&Said<'_>>) {
        // Whoever held it may still do that again.
        let ended = said.and_then(Said::ended);
        self.newest = resolve.at;
        let (charge, record) = (resolve.charge, bytes.to_vec());
        // It comes behind another end of the charge, and counts instead of it.
        if resolve.memo.flags.has(Flags::LATE) {
            self.resolutions.retain(|step| step.charge != charge);
        }
        match self.charges.get_mut(&charge) {
            Some(row) => {
                row.resolution = Some(record);
                row.more = ended;
            }
            None => {
                let more = StepMore { names: None, ended };
                self.resolutions.push(Step { charge, record, at, more });
            }
        }
    }

    /// What more a charge took, or is known of it: its row has the hold as it is now.
    fn amend(&mut self, amend: &Amend<'_>, bytes: &[u8], at: At, names: Option<Vec<Name>>) {
        let (charge, record) = (amend.charge, bytes.to_vec());
        match self.charges.get_mut(&charge) {
            None => {
                let more = StepMore { names, ended: None };
                self.amendments.push(Step { charge, record, at, more });
            }
            Some(row) => {
                if let Some(open) = &mut row.more {
                    open.amend(amend, names.as_deref());
                }
                match amended(&row.hold, amend) {
                    Some(hold) => row.hold = hold,
                    None => self.bury(at, &charge, &"its hold cannot be read", bytes),
                }
            }
        }
    }

    /// Keeps a record that cannot be read as it is, or the place of what is missing.
    pub(super) fn bury(&mut self, at: At, id: &[u8], what: &dyn Display, bytes: &[u8]) {
        let (id, what, record) = (id.to_vec(), what.to_string(), bytes.to_vec());
        self.dead.push(dead::Letter { at, id, what, record });
    }

    /// Writes all of it; true when there are dead letters in it.
    pub(super) async fn write(&self, db: &mut Connection) -> Result<bool, sqlx::Error> {
        self.write_accounts(db).await?;
        self.write_charges(db).await?;
        for letter in &self.dead {
            letter.write(db).await?;
        }
        let mut has_dead = !self.dead.is_empty();
        has_dead |= self.write_resolutions(db).await?;
        for Step { charge, record, at, more } in &self.amendments {
            has_dead |= records::amend(db, *at, charge, record, more.names.as_deref()).await?;
        }
        answers::write(&self.answers, db).await?;
        for row in &self.adjustments {
            row.write(db, self.books).await?;
        }
        if let Some(books) = self.books {
            more::write_carried(db, books, &self.carried).await?;
        }
        Ok(has_dead)
    }

    async fn write_accounts(&self, db: &mut Connection) -> Result<(), sqlx::Error> {
        let accounts: Vec<_> = self.accounts.iter().collect();
        for some in chunks(&accounts) {
            let values = some.iter().map(|(key, (name, grant))| {
                let version = grant.version;
                let epoch = Value::from(i64::from(version.epoch));
                let (base, number) = (grant.base as i64, version.number as i64);
                [key_bytes(key).into(), name.into(), base.into(), epoch, number.into()]
            });
            let into = "INSERT INTO accounts (key, name, base, epoch, number)";
            let behind = " ON CONFLICT (key) DO UPDATE SET base = excluded.base, \
                          epoch = excluded.epoch, number = excluded.number \
                          WHERE accounts.epoch IS NULL OR excluded.epoch > accounts.epoch \
                          OR (excluded.epoch = accounts.epoch AND excluded.number > accounts.number)";
            rows_between(into, values, behind).execute(&mut *db).await?;
        }
        Ok(())
    }

    async fn write_charges(&self, db: &mut Connection) -> Result<(), sqlx::Error> {
        // In the order of their ids, which is that of time: the table grows at its end.
        let mut rows: Vec<_> = self.charges.iter().collect();
        rows.sort_unstable_by_key(|(id, _)| **id);
        for some in chunks(&rows) {
            let values = some.iter().map(|(id, row)| {
                let (org, user, key) =
                    ((&row.org).into(), row.user.clone().into(), (&row.key).into());
                let more = Value::Bytes(row.more.as_ref().map(more::encode));
                let (hold, resolution) = ((&row.hold).into(), (&row.resolution).into());
                let books = Value::Number(self.books);
                [Value::from(&id[..]), org, user, key, hold, resolution, more, books]
            });
            let into =
                "INSERT INTO charges (id, org, user_id, key_id, hold, resolution, more, books)";
            // What is archived again is as it was recorded.
            let behind = " ON CONFLICT (id) DO UPDATE SET hold = excluded.hold, \
                          resolution = excluded.resolution, more = excluded.more, \
                          books = excluded.books";
            rows_between(into, values, behind).execute(&mut *db).await?;
        }
        Ok(())
    }

    async fn write_resolutions(&self, db: &mut Connection) -> Result<bool, sqlx::Error> {
        let mut has_dead = false;
        for some in chunks(&self.resolutions) {
            let values = some.iter().map(|step| {
                let more = Value::Bytes(step.more.ended.as_ref().map(more::encode));
                [(&step.charge[..]).into(), (&step.record).into(), more]
            });
            // Both databases call the columns of such rows so.
            let behind = ") AS ends WHERE charges.id = ends.column1";
            let update = "UPDATE charges SET resolution = ends.column2, more = ends.column3 FROM (";
            let done = rows_between(update, values, behind).execute(&mut *db).await?;
            if done == some.len() as u64 {
                continue;
            }
            for Step { charge, record, at, .. } in some {
                let sql = "SELECT 1 FROM charges WHERE id = $1";
                if query(sql).bind(&charge[..]).fetch_optional(&mut *db).await?.is_none() {
                    has_dead |= dead::resolution(&mut *db, *at, charge, record).await?;
                }
            }
        }
        Ok(has_dead)
    }

    /// Tells of its dead letters; when they are kept, so once.
    pub(super) fn tell(&self) {
        if let Some(first) = self.dead.first() {
            tracing::error!(
                records = self.dead.len(),
                shard = first.at.shard,
                position = first.at.position,
                what = first.what,
                "records cannot be read or are missing: the archive keeps what there is of them, \
                 and goes on; balances lose nothing"
            );
        }
    }
}

/// Rows in statements of few different lengths, so that each is prepared once.
pub(super) fn chunks<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let largest = rows.len().min(ROWS).checked_ilog2()?;
        let (some, rest) = rows.split_at(1 << largest);
        rows = rest;
        Some(some)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn chunks_are_all_rows_in_few_lengths() {
        for count in [0, 1, 7, 255, 256, 257, 1_000] {
            let rows: Vec<usize> = (0..count).collect();
            let chunks: Vec<&[usize]> = super::chunks(&rows).collect();
            assert_eq!(chunks.concat(), rows);
            assert!(chunks.iter().all(|some| some.len().is_power_of_two() && some.len() <= 256));
        }
    }
}
