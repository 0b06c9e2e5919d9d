//! Recovery: the newest whole snapshot, and the records behind it.

use std::path::Path;

use super::fold::{Fold, FoldError};
use super::journal::{Cursor, Damage, Next, Segments, Torn};
use super::snapshot;
use crate::core::record::Record;

/// Why the books cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The journal is damaged.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// The records contradict each other.
    #[error("the journal contradicts itself in the record at position {position}: {error}")]
    Contradiction {
        /// Where the record begins.
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
    /// What a torn write left behind them, if the end was looked at.
    pub torn: Option<Torn>,
}

/// Folds everything in `dir`, up to `until` where given (which must be a record's end). Without
/// it nobody may be writing: what stands behind the last whole record is then told apart.
///
/// # Errors
/// [`RecoverError`] says what and where; nothing was changed.
pub fn recover(dir: &Path, until: Option<u64>) -> Result<Recovered, RecoverError> {
    Segments::list(dir)?.check_versions()?;
    let (from, fold) = newest_snapshot(dir, until)?;
    let mut recovered = Recovered { fold, position: from, records: 0, torn: None };
    let mut cursor = Cursor::new(dir, from);
    while until.is_none_or(|until| cursor.position() < until) && cursor.next()? == Next::Record {
        let position = recovered.position;
        let contradiction = |error| RecoverError::Contradiction { position, error };
        recovered.fold.apply(&decode(dir, &cursor.record, position)?).map_err(contradiction)?;
        recovered.records += 1;
        recovered.position = cursor.position();
    }
    if until.is_none() {
        if from > 0 && Segments::list(dir)?.as_slice().is_empty() {
            return Err(Damage::Gap { dir: dir.to_owned(), position: from }.into());
        }
        recovered.torn = cursor.tail()?;
    }
    Ok(recovered)
}

/// A record whose checksum is right and that is none all the same was written so.
pub(super) fn decode<'a>(
    dir: &Path,
    bytes: &'a [u8],
    position: u64,
) -> Result<Record<'a>, RecoverError> {
    Record::decode(bytes).map_err(|error| {
        let place = Segments::list(dir).ok().and_then(|segments| segments.place(position));
        match place {
            Some(place) => Damage::Record { place, what: error.to_string(), valid: None }.into(),
            None => Damage::Gap { dir: dir.to_owned(), position }.into(),
        }
    })
}

/// A snapshot that does not read back is passed over for the one before it, or for the journal
/// from its beginning; one of a newer version is not (f45).
fn newest_snapshot(dir: &Path, until: Option<u64>) -> Result<(u64, Fold), RecoverError> {
    let snapshots = snapshot::list(dir)?;
    for (_, path) in &snapshots {
        if let Some(version) = snapshot::newer(path)? {
            return Err(Damage::Newer { path: path.clone(), version }.into());
        }
    }
    for (position, path) in snapshots.into_iter().rev() {
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
