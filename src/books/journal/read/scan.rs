//! Looking for whole records where the journal cannot be read in order: a frame's checksum is
//! bound to its position, so whatever passes it stands where it was written.

use std::io;
use std::path::PathBuf;
use std::vec::IntoIter;

use super::{Damage, FRAME, HEADER, MAX_RECORD, Segment, bound_crc};
use crate::core::record::Record;

/// A place in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The segment.
    pub path: PathBuf,
    /// The offset in the file, in bytes.
    pub offset: u64,
    /// The position in the journal.
    pub position: u64,
}

/// Every whole record from a position on, whatever stands between them.
#[derive(Debug)]
pub struct Salvage {
    rest: IntoIter<Segment>,
    /// From which position on in the first segment.
    from: u64,
    open: Option<Whole>,
}

/// A segment in memory: bounded by what a segment holds, and read only where one is damaged.
#[derive(Debug)]
struct Whole {
    segment: Segment,
    bytes: Vec<u8>,
    at: usize,
}

impl Salvage {
    pub(super) fn new(segments: &[Segment], from: u64) -> Self {
        let holds = segments.iter().rposition(|segment| segment.start <= from).unwrap_or(0);
        let rest = segments.get(holds..).unwrap_or_default().to_vec().into_iter();
        Self { rest, from, open: None }
    }

    /// The next whole record, and where it stands.
    ///
    /// # Errors
    /// When a segment cannot be read at all.
    pub fn next_record(&mut self) -> Result<Option<(Place, Vec<u8>)>, Damage> {
        loop {
            if let Some(found) = self.open.as_mut().and_then(Whole::find) {
                return Ok(Some(found));
            }
            let Some(segment) = self.rest.next() else { return Ok(None) };
            let bytes = std::fs::read(&segment.path)
                .map_err(|error| Damage::Io { path: segment.path.clone(), error })?;
            let skipped = self.from.saturating_sub(segment.start);
            let at = usize::try_from(skipped).unwrap_or(usize::MAX).saturating_add(HEADER);
            self.open = Some(Whole { segment, bytes, at });
        }
    }
}

impl Salvage {
    /// Whether this record or one behind it is a mark that all up to behind `position` was on the
    /// disk.
    pub(super) fn tells_synced(&mut self, position: u64, first: Vec<u8>) -> Result<bool, Damage> {
        let mut record = Some(first);
        while let Some(bytes) = record {
            if matches!(Record::decode(&bytes), Ok(Record::Synced(synced)) if synced > position) {
                return Ok(true);
            }
            record = self.next_record()?.map(|(_, bytes)| bytes);
        }
        Ok(false)
    }
}

impl Whole {
    /// The next whole record; the search goes on behind it.
    fn find(&mut self) -> Option<(Place, Vec<u8>)> {
        while let Some(frame) = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk::<FRAME>) {
            let length = u32::from_le_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
            let crc = u32::from_le_bytes([frame[4], frame[5], frame[6], frame[7]]);
            let position = self.segment.start + (self.at - HEADER) as u64;
            let start = self.at + FRAME;
            if (1..=MAX_RECORD).contains(&length)
                && let Some(record) = self.bytes.get(start..start + length)
                && bound_crc(crc32fast::hash(record), position) == crc
            {
                let (path, offset) = (self.segment.path.clone(), self.at as u64);
                let record = record.to_vec();
                self.at = start + length;
                return Some((Place { path, offset, position }, record));
            }
            self.at += 1;
        }
        None
    }
}

/// What a torn write left at the journal's end, to be cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// Where the first byte of it stands.
    pub place: Place,
    /// Why it is not a record.
    pub what: String,
    /// How many bytes it has, later segments that hold nothing included.
    pub bytes: u64,
}

/// How many bytes stand behind a position: the rest of its segment, and all of the later ones.
pub(super) fn bytes_behind(segments: &[Segment], place: &Place) -> io::Result<u64> {
    let mut bytes = 0;
    for segment in segments.iter().filter(|segment| segment.path >= place.path) {
        let length = std::fs::metadata(&segment.path)?.len();
        bytes +=
            if segment.path == place.path { length.saturating_sub(place.offset) } else { length };
    }
    Ok(bytes)
}
