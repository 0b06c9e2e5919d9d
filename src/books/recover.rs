//! Recovery: the newest whole snapshot, and the records behind it.

use std::path::Path;

use super::fold::{Fold, FoldError};
use super::journal::{Cursor, Damage, Next};
use super::snapshot;
use crate::core::record::Record;

/// Why the books cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The journal is damaged.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// The records contradict each other.
    #[error("the journal contradicts itself at position {position}: {error}")]
    Contradiction {
        /// Where the record ends.
        position: u64,
        /// How.
        error: FoldError,
    },
    /// The file system.
    #[error("the books' files: {0}")]
    Io(#[from] std::io::Error),
}

/// What was recovered.
#[derive(Debug)]
pub struct Recovered {
    /// The state.
    pub fold: Fold,
    /// The position behind the last whole record.
    pub position: u64,
    /// How many records were read behind the snapshot.
    pub records: u64,
}

/// Folds everything in `dir`, up to `until` where given (which must be a record's end).
///
/// # Errors
/// [`RecoverError`] says what and where; nothing was changed.
pub fn recover(dir: &Path, until: Option<u64>) -> Result<Recovered, RecoverError> {
    let (from, fold) = newest_snapshot(dir, until)?;
    let mut recovered = Recovered { fold, position: from, records: 0 };
    let mut cursor = Cursor::new(dir, from);
    while until.is_none_or(|until| cursor.position() < until) && cursor.next()? == Next::Record {
        let position = cursor.position();
        let contradiction = |error| RecoverError::Contradiction { position, error };
        let record = Record::decode(&cursor.record).map_err(|error| Damage::Record {
            path: dir.to_owned(),
            offset: position,
            what: error.to_string(),
        })?;
        recovered.fold.apply(&record).map_err(contradiction)?;
        recovered.records += 1;
        recovered.position = position;
    }
    Ok(recovered)
}

/// A snapshot that does not read back is passed over for the one before it, or for the journal
/// from its beginning.
fn newest_snapshot(dir: &Path, until: Option<u64>) -> std::io::Result<(u64, Fold)> {
    for (position, path) in snapshot::list(dir)?.into_iter().rev() {
        if until.is_some_and(|until| position > until) {
            continue;
        }
        match snapshot::read(&path) {
            Ok(fold) => return Ok((position, fold)),
            Err(error) => tracing::warn!(%error, "a snapshot is passed over"),
        }
    }
    Ok((0, Fold::default()))
}
