//! A crash, on the files: what was not yet acknowledged is there up to some byte.

use std::path::{Path, PathBuf};

use tollgate::core::record::Record;

use crate::engine::files;

const HEADER: u64 = 24;

/// A segment file, and the positions from which and up to which it goes.
fn segments(dir: &Path) -> Vec<(u64, u64, PathBuf)> {
    let mut segments = Vec::new();
    for path in files(dir) {
        let name = path.file_name().unwrap().to_str().unwrap();
        if let Some(start) = name.strip_suffix(".journal") {
            let start: u64 = start.parse().unwrap();
            let length = std::fs::metadata(&path).unwrap().len();
            segments.push((start, start + length.saturating_sub(HEADER), path));
        }
    }
    segments
}

/// Cuts the journal at position `cut`. Returns how many whole records of the books are left
/// behind `acknowledged`, and the position behind all that is left.
pub fn cut(dir: &Path, acknowledged: u64, cut: u64, torn_header: Option<u64>) -> (usize, u64) {
    let (mut survived, mut position) = (0, acknowledged);
    for (start, end, path) in segments(dir) {
        let bytes = std::fs::read(&path).unwrap();
        while position >= start && position < end {
            let at = (HEADER + position - start) as usize;
            let length = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            if position + 8 + u64::from(length) > cut {
                break;
            }
            let record = &bytes[at + 8..at + 8 + length as usize];
            // A mark of what is synced is nobody's answer.
            survived += usize::from(!matches!(Record::decode(record), Ok(Record::Synced(_))));
            position += 8 + u64::from(length);
        }
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        if start > cut {
            std::fs::remove_file(&path).unwrap();
        } else if let (true, Some(bytes)) = (start == cut, torn_header) {
            file.set_len(bytes).unwrap();
        } else if end > cut {
            file.set_len(HEADER + cut - start).unwrap();
        }
    }
    (survived, position)
}
