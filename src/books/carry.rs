//! Books that go on where others ended: a journal that begins with what those had, and whether both
//! say the same.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use super::Durability;
use super::fold::{Fold, FoldAccount, FoldOnce};
use super::journal::{Frames, Journal, SEGMENT_SIZE};
use crate::core::account::{AccountKey, Grant};
use crate::core::cycle::Label;
use crate::core::record::{Carried, CarriedKey, Close, Once, Opening, Record, Used};

/// How many accounts or keys a record names: far below what a record can hold.
const CHUNK: usize = 256;
/// Says of which books a journal is the continuation.
const MARK: &str = "moved-from";

/// Whether a directory has books, or files of any.
///
/// # Errors
/// Whatever the file system says.
pub fn has_books(dir: &Path) -> io::Result<bool> {
    match std::fs::read_dir(dir) {
        Ok(mut files) => Ok(files.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether what a directory has was written by [`write`] from the books of this name.
pub fn is_from(dir: &Path, name: &str) -> bool {
    std::fs::read_to_string(dir.join(MARK)).is_ok_and(|mark| mark == name)
}

/// Writes a journal into a directory that is not there, and syncs it; `from` names the books that
/// it continues.
///
/// # Errors
/// Whatever the file system says.
pub fn write(dir: &Path, from: &str, fold: &Fold, at: i64) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut mark = File::create(dir.join(MARK))?;
    mark.write_all(from.as_bytes())?;
    mark.sync_all()?;
    let journal = Journal::open(dir, 0, SEGMENT_SIZE, Durability::Process)?;
    if fold.closed > Label::NONE {
        append(&journal, &Record::Close(Close { at, below: fold.closed }))?;
    }
    let accounts: Vec<(&AccountKey, &FoldAccount)> = fold.accounts.iter().collect();
    for some in accounts.chunks(CHUNK) {
        append(&journal, &Record::Carried(carried(at, some, &[])))?;
    }
    let keys: Vec<(&(u64, [u8; 16]), &FoldOnce)> = fold.once.iter().collect();
    for some in keys.chunks(CHUNK) {
        append(&journal, &Record::Carried(carried(at, &[], some)))?;
    }
    journal.sync()?;
    drop(journal);
    File::open(dir)?.sync_all()?;
    dir.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

fn append(journal: &Journal, record: &Record<'_>) -> io::Result<()> {
    let mut frames = Frames::default();
    frames.push(record).map_err(io::Error::other)?;
    journal.append(&mut frames).map(|_| ())
}

fn carried<'a>(
    at: i64,
    accounts: &[(&AccountKey, &'a FoldAccount)],
    keys: &[(&(u64, [u8; 16]), &FoldOnce)],
) -> Carried<'a> {
    let opening = |(key, account): &(&AccountKey, &'a FoldAccount)| {
        let grant = Grant { base: account.balance.base, version: account.version };
        Opening { key: **key, name: &account.name, grant }
    };
    let used = |(_, account): &(&AccountKey, &FoldAccount)| Used {
        adjusted: account.balance.adjusted,
        captured: account.balance.captured,
    };
    let key = |((scope, key), known): &(&(u64, [u8; 16]), &FoldOnce)| {
        let once = Once { scope: *scope, key: *key, request: known.request };
        CarriedKey { once, charge: known.charge, held_at: known.at }
    };
    Carried {
        at,
        openings: accounts.iter().map(opening).collect(),
        used: accounts.iter().map(used).collect(),
        keys: keys.iter().map(key).collect(),
    }
}

/// In what two books differ, some of it.
pub fn differences(one: &Fold, other: &Fold) -> Vec<String> {
    const MOST: usize = 10;
    let mut found = Vec::new();
    for (key, account) in &one.accounts {
        let there = other.accounts.get(key);
        if there != Some(account) {
            let there = there.map(|there| (there.balance, there.version));
            let here = (account.balance, account.version);
            found.push(format!("{}: {here:?} and {there:?}", account.name));
        }
    }
    for (key, account) in &other.accounts {
        if !one.accounts.contains_key(key) {
            found.push(format!("{}: is only in the second", account.name));
        }
    }
    let keys = [one, other].map(|fold| fold.once.len());
    if one.once != other.once {
        found.push(format!("{} and {} keys of charges, or others", keys[0], keys[1]));
    }
    if one.closed != other.closed {
        found.push(format!("cycles closed before {} and {}", one.closed, other.closed));
    }
    found.sort();
    found.truncate(MOST);
    found
}
