//! The journal: an append-only sequence of records in segment files.
//!
//! A *position* counts the bytes of frames since the journal began; a segment is named by the
//! position at which it starts, so a position finds its segment. A frame is the record's length,
//! a CRC-32 over position and record, and the record. The position in the checksum keeps a stale
//! or misplaced frame from passing for a record.
//!
//! Writers bring whole batches of frames ([`Frames`]), and batches are written one at a time.
//! After a write error the journal takes nothing more: what the failed batch left in the file is
//! unknown, so the process has to stop and recover from the file (f41).

mod read;
mod sync;

pub use read::{Cursor, Damage, Next, Place, Salvage, Segment, Segments, Torn};

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use self::sync::Syncer;
use super::Durability;
use crate::core::record::{self, Record, RecordError};

/// A segment's first bytes: what it is, the version of its records, where it starts.
const MAGIC: &[u8; 8] = b"TOLLJRNL";
/// Magic, version (u16), durability (u8: 1 is `power`), a zero byte, start (u64), CRC-32 of all
/// that.
const HEADER: usize = 24;
/// Length and checksum before each record.
const FRAME: usize = 8;
/// No record is longer: a length above it is damage, not a reason to allocate.
pub const MAX_RECORD: usize = 1 << 20;
/// A segment that has reached this many bytes is sealed.
pub const SEGMENT_SIZE: u64 = 64 << 20;

/// Frames waiting to be written, and the position they will be written at is not known yet: the
/// checksum is finished by [`Journal::append`].
#[derive(Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
    starts: Vec<u32>,
}

impl Frames {
    /// Adds one record, which is encoded where it is written from.
    ///
    /// # Errors
    /// When it cannot be encoded: nothing was added then.
    pub fn push(&mut self, record: &Record<'_>) -> Result<(), RecordError> {
        self.push_with(|bytes| record.encode(bytes))
    }

    /// Adds the record that `encode` writes behind the bytes it is given.
    fn push_with<E>(
        &mut self,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; FRAME]);
        if let Err(error) = encode(&mut self.bytes) {
            self.bytes.truncate(start);
            return Err(error);
        }
        if let Some((head, record)) = self.bytes[start..].split_first_chunk_mut::<FRAME>() {
            debug_assert!(record.len() <= MAX_RECORD);
            head[..4].copy_from_slice(&(record.len() as u32).to_le_bytes());
            head[4..].copy_from_slice(&crc32fast::hash(record).to_le_bytes());
        }
        self.starts.push(start as u32);
        Ok(())
    }

    /// Adds the bytes of a record as they are.
    pub fn push_bytes(&mut self, record: &[u8]) {
        let Ok(()) = self.push_with(|bytes| {
            bytes.extend_from_slice(record);
            Ok::<(), Infallible>(())
        });
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// How many records wait.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Forgets everything, keeping the memory.
    fn clear(&mut self) {
        self.bytes.clear();
        self.starts.clear();
    }

    /// Binds each frame to the position it is about to be written at.
    fn bind(&mut self, position: u64) {
        for &start in &self.starts {
            let at = start as usize + 4;
            if let Some(slot) = self.bytes.get_mut(at..at + 4)
                && let Ok(crc) = <[u8; 4]>::try_from(&*slot)
            {
                let bound = bound_crc(u32::from_le_bytes(crc), position + u64::from(start));
                slot.copy_from_slice(&bound.to_le_bytes());
            }
        }
    }
}

/// The checksum of a record at a position. Mixing is a bijection of the CRC for any position, so
/// it detects exactly what the CRC detects, and a frame elsewhere is refused.
fn bound_crc(crc: u32, position: u64) -> u32 {
    let mixed = position.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    crc ^ (mixed >> 32) as u32
}

/// The journal, open for writing.
#[derive(Debug)]
pub struct Journal {
    segment_size: u64,
    durability: Durability,
    writer: Mutex<Writer>,
    /// How many records were appended. Stored by the writer, read by followers.
    records: AtomicU64,
    syncer: Syncer,
}

#[derive(Debug)]
struct Writer {
    file: Arc<File>,
    start: u64,
    position: u64,
    /// The synced position that the newest mark in the file tells.
    marked: u64,
    /// Where the thread is to look for space again.
    ask_at: u64,
}

impl Journal {
    /// Opens the journal in `dir` for writing at `position`, which recovery found to be its end:
    /// whatever a torn write left behind it is cut, and a new segment is begun there.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn open(
        dir: &Path,
        position: u64,
        segment_size: u64,
        durability: Durability,
    ) -> io::Result<Self> {
        let segments = Segments::list(dir)?;
        if let Some(last) = segments.last_before(position) {
            let file = OpenOptions::new().write(true).open(&last.path)?;
            let length = HEADER as u64 + position - last.start;
            if file.metadata()?.len() < length {
                // A snapshot knows of more than the journal has. To go on would write zeros in
                // between, and lose whatever is missing without a word.
                let what = format!("{}: shorter than the snapshot says", last.path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            file.set_len(length)?;
        }
        // At most two segments of the process before can be on their way to the disk still.
        let before = segments.as_slice().iter().rev().filter(|s| s.start < position);
        for segment in before.take(2) {
            File::open(&segment.path)?.sync_data()?;
        }
        for torn in segments.from(position) {
            std::fs::remove_file(&torn.path)?;
        }
        let path = dir.join(segment_name(position));
        let file = sync::create(&path, segment_size)?;
        write_header(&file, position, durability)?;
        file.sync_data()?;
        File::open(dir)?.sync_all()?;
        let file = Arc::new(file);
        let syncer = Syncer::start(dir, segment_size, position, Arc::clone(&file))?;
        Ok(Self {
            segment_size,
            durability,
            writer: Mutex::new(Writer {
                file,
                start: position,
                position,
                marked: 0,
                ask_at: position,
            }),
            records: AtomicU64::new(0),
            syncer,
        })
    }

    /// Writes frames, and forgets them. When it returns, a killed process has still written them;
    /// what a power failure leaves is [`Journal::survives`]' answer.
    ///
    /// # Errors
    /// After the first error the journal is closed to all writers for good.
    pub fn append(&self, frames: &mut Frames) -> io::Result<u64> {
        let progress = &self.syncer.progress;
        let mut writer = self.writer.lock();
        if self.has_failed() {
            return Err(io::Error::other("the journal failed before; restart to recover"));
        }
        let synced = progress.synced();
        if synced > writer.marked {
            // Recovery takes what is wrong before a mark for damage, not for a torn tail.
            frames.push(&Record::Synced(synced)).map_err(io::Error::other)?;
            writer.marked = synced;
        }
        frames.bind(writer.position);
        if let Err(error) = self.write(&mut writer, &frames.bytes) {
            progress.fail("a record cannot be written", &error);
            return Err(error);
        }
        self.records.fetch_add(frames.len() as u64, Ordering::Relaxed);
        frames.clear();
        progress.written.store(writer.position, Ordering::Release);
        if writer.position >= writer.ask_at {
            writer.ask_at = writer.position + progress.stride();
            progress.went_on(writer.position);
        }
        if self.durability == Durability::Power {
            progress.want(writer.position);
        }
        Ok(writer.position)
    }

    fn write(&self, writer: &mut Writer, bytes: &[u8]) -> io::Result<()> {
        // Finishes short writes and goes on after interruptions (f42).
        (&*writer.file).write_all(bytes)?;
        writer.position += bytes.len() as u64;
        let length = writer.position - writer.start;
        if length >= self.segment_size {
            // The next one is nearly always ready; if not, this one grows before anybody waits.
            let can_wait = length < 2 * self.segment_size;
            let start = writer.position;
            let name = self.dir().join(segment_name(start));
            let begin = |file: &File| write_header(file, start, self.durability);
            if let Some(file) = self.syncer.progress.roll(&name, start, can_wait, begin)? {
                writer.file = file;
                writer.start = start;
            }
        }
        Ok(())
    }

    /// Waits until everything up to `position` survives what the durability says.
    ///
    /// # Errors
    /// When it never will (f41): the journal is closed then.
    pub async fn survives(&self, position: u64) -> io::Result<()> {
        let survives = match self.durability {
            Durability::Process => self.written() >= position,
            Durability::Power => self.syncer.progress.wait(position).await,
        };
        if survives { Ok(()) } else { Err(io::Error::other("the journal failed")) }
    }

    /// The position up to which records are written.
    pub fn written(&self) -> u64 {
        self.syncer.progress.written.load(Ordering::Acquire)
    }

    /// How many records were appended since the journal was opened.
    pub fn records_written(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// The position at which the segment being written starts: all before it is sealed.
    pub fn sealed(&self) -> u64 {
        self.writer.lock().start
    }

    /// True after a write error.
    pub fn has_failed(&self) -> bool {
        self.syncer.progress.has_failed()
    }

    /// Why there was one, as soon as there is.
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.syncer.progress.failure()
    }

    /// True while there is no space for another segment: what is left is for settling (f40).
    pub fn is_full(&self) -> bool {
        self.syncer.progress.is_full()
    }

    /// Makes all that is written survive a power failure; waits for the disk.
    ///
    /// # Errors
    /// When the file system could not; the journal is then closed, and never synced again (f41).
    pub fn sync(&self) -> io::Result<()> {
        let is_synced = self.syncer.progress.wait_blocking(self.written());
        if is_synced { Ok(()) } else { Err(io::Error::other("the journal failed")) }
    }

    /// Where the segments are.
    pub fn dir(&self) -> &Path {
        &self.syncer.progress.dir
    }
}

fn segment_name(start: u64) -> String {
    format!("{start:020}.journal")
}

fn write_header(mut file: &File, start: u64, durability: Durability) -> io::Result<()> {
    file.write_all(&header(record::VERSION, start, durability))
}

fn header(version: u16, start: u64, durability: Durability) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..10].copy_from_slice(&version.to_le_bytes());
    bytes[10] = u8::from(durability == Durability::Power);
    bytes[12..20].copy_from_slice(&start.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..20]);
    bytes[20..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests;
