//! Deleting segments that nobody needs any more. The journal then begins later, as it does after
//! a repair that put its beginning aside: balances stand on a snapshot, charges in the archive.
//!
//! A segment goes when all of these hold, the oldest first:
//!
//! - it ends at the oldest kept snapshot or before it, and there are two, both of which read back
//!   whole now: one of them may be lost, and the other still starts the books;
//! - the archive has all of it, safe against power failure;
//! - its newest record is older than what the operator wants to keep.
//!
//! The directory is synced after each, so that a power failure cannot bring back one whose
//! successor is gone: what is left is at any moment a journal without a hole.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use jiff::Timestamp;

use super::journal::{Cursor, Next, Segment, Segments};
use super::recover::{RecoverError, decode};
use super::snapshot;

/// At most so many segments go in one pass: nobody waits for it, but a disk may.
const A_PASS: usize = 16;

/// When the newest records of the oldest segments were made, by the segments' starts; `None` for
/// one without a record. So that a pass need not read again what the one before has read.
pub type Ages = BTreeMap<u64, Option<i64>>;

/// The segments that may go if the archive has them, oldest first, each with its end: those whose
/// records are all older than `before`, and that end before the oldest of two snapshots.
///
/// # Errors
/// When a segment cannot be read: damage is told, and never deleted.
pub fn candidates(
    dir: &Path,
    before: Timestamp,
    ages: &mut Ages,
) -> Result<Vec<(Segment, u64)>, RecoverError> {
    let mut found = Vec::new();
    let segments = Segments::list(dir)?;
    let snapshots = snapshot::list(dir)?;
    let first = segments.as_slice().first().map_or(0, |segment| segment.start);
    ages.retain(|start, _| *start >= first);
    let [(base, _), _, ..] = snapshots.as_slice() else { return Ok(found) };
    for pair in segments.as_slice().windows(2).take(A_PASS) {
        let end = pair[1].start;
        if end > *base {
            break;
        }
        let start = pair[0].start;
        let newest = match ages.get(&start) {
            Some(newest) => *newest,
            None => newest_record(dir, start, end)?,
        };
        ages.insert(start, newest);
        if newest.is_some_and(|newest| newest >= before.as_microsecond()) {
            break;
        }
        found.push((pair[0].clone(), end));
    }
    Ok(found)
}

/// Deletes of `candidates` those that the archive has, which is everything before `archived`.
/// Returns how many went.
///
/// # Errors
/// Whatever the file system says.
pub fn delete(dir: &Path, candidates: &[(Segment, u64)], archived: u64) -> io::Result<usize> {
    let going = candidates.iter().take_while(|(_, end)| *end <= archived);
    let mut count = 0;
    for (segment, _) in going {
        if count == 0 {
            for (_, path) in snapshot::list(dir)? {
                snapshot::check(&path)?;
            }
        }
        std::fs::remove_file(&segment.path)?;
        File::open(dir)?.sync_all()?;
        count += 1;
    }
    Ok(count)
}

/// When the newest record between two positions was made.
fn newest_record(dir: &Path, from: u64, to: u64) -> Result<Option<i64>, RecoverError> {
    let mut cursor = Cursor::new(dir, from);
    let mut newest = None;
    while cursor.position() < to {
        let position = cursor.position();
        if cursor.next()? == Next::End {
            break;
        }
        newest = newest.max(decode(dir, &cursor.record, position)?.at());
    }
    Ok(newest)
}
