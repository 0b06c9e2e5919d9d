//! Reading the journal: by recovery, by the archive and by the verifier, also while it is being
//! written.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

mod scan;

pub use scan::{Place, Salvage, Torn};

use super::{FRAME, HEADER, MAGIC, MAX_RECORD, bound_crc};
use crate::books::Durability;
use crate::core::record;

/// What is wrong with the journal, and where.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// A record is not what was written, and there is more behind it: it is no torn tail.
    #[error(
        "{path}: damaged record at byte {offset}: {what} (position {position}{}); {REPAIR}",
        behind(valid.as_ref()),
        path = place.path.display(),
        offset = place.offset,
        position = place.position
    )]
    Record {
        /// Where it stands.
        place: Place,
        /// What is wrong with it.
        what: String,
        /// The first whole record behind it.
        valid: Option<Place>,
    },
    /// A segment's header is not what was written, and the segment is not empty.
    #[error(
        "{path}: damaged header: {what} (position {position}{}); {REPAIR}",
        behind(Some(valid)),
        path = place.path.display(),
        position = place.position
    )]
    Header {
        /// Where its first record stands.
        place: Place,
        /// What is wrong with it.
        what: String,
        /// The first whole record behind it.
        valid: Place,
    },
    /// The journal was written by a newer version.
    #[error("{path}: written by a newer version of Tollgate (record version {version}); upgrade")]
    Newer {
        /// The segment.
        path: PathBuf,
        /// The version it says.
        version: u16,
    },
    /// A segment is missing.
    #[error("{dir}: no segment holds position {position}; {REPAIR}")]
    Gap {
        /// The journal's directory.
        dir: PathBuf,
        /// What was looked for.
        position: u64,
    },
    /// The file system.
    #[error("{path}: {error}")]
    Io {
        /// What was read.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

/// What to do about damage.
const REPAIR: &str = "nothing was changed; `tollgate books repair` shows what can be kept";

fn behind(valid: Option<&Place>) -> String {
    let Some(valid) = valid else { return String::new() };
    let file = valid.path.file_name().unwrap_or_default().display();
    format!(
        "; a whole record follows at byte {} of {file}, position {}",
        valid.offset, valid.position
    )
}

/// A segment file.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The position of its first record.
    pub start: u64,
    /// The file.
    pub path: PathBuf,
}

/// The segments of a journal, by position.
#[derive(Clone, Debug, Default)]
pub struct Segments(Vec<Segment>);

impl Segments {
    /// Lists a journal's directory.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn list(dir: &Path) -> io::Result<Self> {
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let digits = name.strip_suffix(".journal").filter(|digits| digits.len() == 20);
            if let Some(start) = digits.and_then(|digits| digits.parse().ok()) {
                segments.push(Segment { start, path });
            }
        }
        segments.sort_by_key(|segment| segment.start);
        Ok(Self(segments))
    }

    /// The segments, oldest first.
    pub fn as_slice(&self) -> &[Segment] {
        &self.0
    }

    /// The last segment that starts before `position`.
    pub fn last_before(&self, position: u64) -> Option<&Segment> {
        self.0.iter().rev().find(|segment| segment.start < position)
    }

    /// The segments that start at `position` or behind it.
    pub fn from(&self, position: u64) -> impl Iterator<Item = &Segment> {
        self.0.iter().filter(move |segment| segment.start >= position)
    }

    /// The segment that holds `position`.
    fn find(&self, position: u64) -> Option<&Segment> {
        self.0.iter().rev().find(|segment| segment.start <= position)
    }

    /// Where a position is on the disk.
    pub fn place(&self, position: u64) -> Option<Place> {
        let segment = self.find(position)?;
        let offset = HEADER as u64 + position - segment.start;
        Some(Place { path: segment.path.clone(), offset, position })
    }

    /// Every whole record from `position` on, whatever stands between them.
    pub fn salvage(&self, position: u64) -> Salvage {
        Salvage::new(&self.0, position)
    }

    /// Refuses a journal that a newer version has written to, wherever it did.
    ///
    /// # Errors
    /// [`Damage::Newer`] names the segment.
    pub fn check_versions(&self) -> Result<(), Damage> {
        for segment in &self.0 {
            let mut header = [0; HEADER];
            let io = |error| Damage::Io { path: segment.path.clone(), error };
            let mut file = File::open(&segment.path).map_err(io)?;
            if read_whole(&mut file, &mut header).map_err(io)? {
                refuse_newer(&header, segment)?;
            }
        }
        Ok(())
    }
}

/// What a cursor finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A record is in the buffer.
    Record,
    /// Nothing more is written, or what follows is not whole and nothing whole is behind it: while
    /// the journal is being written it will be, after a crash it is a torn tail ([`Cursor::tail`]).
    End,
}

/// Reads records in order, from any position that a record starts at.
#[derive(Debug)]
pub struct Cursor {
    dir: PathBuf,
    position: u64,
    open: Option<OpenSegment>,
    /// Why there was no record at the position.
    why: String,
    /// The last record read.
    pub record: Vec<u8>,
}

#[derive(Debug)]
struct OpenSegment {
    path: PathBuf,
    start: u64,
    reader: BufReader<File>,
}

impl Cursor {
    /// A cursor at `position`.
    pub fn new(dir: &Path, position: u64) -> Self {
        Self { dir: dir.to_owned(), position, open: None, why: String::new(), record: Vec::new() }
    }

    /// The position of the next record.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Reads the next record into [`Cursor::record`].
    ///
    /// # Errors
    /// [`Damage`] says what and where. An incomplete or wrong frame in a segment that has a
    /// successor is damage when anything whole is behind it. In the last segment it is the
    /// [`Next::End`]: the journal may be being written, and whoever knows that it is not asks
    /// [`Cursor::tail`].
    #[expect(clippy::should_implement_trait, reason = "an iterator would lend nothing out")]
    pub fn next(&mut self) -> Result<Next, Damage> {
        let mut is_sealed = false;
        loop {
            let opened = if self.open.is_none() { self.open_segment()? } else { Ok(()) };
            let read = if opened.is_ok() { self.read_frame()? } else { opened };
            let Err(why) = read else { return Ok(Next::Record) };
            self.why = why;
            let open = self.open.take();
            let segments = self.segments()?;
            let Some(current) = segments.find(self.position) else { return Ok(Next::End) };
            // Sealed at exactly this position: go on in the next segment.
            if open.as_ref().is_some_and(|open| open.start != current.start)
                && current.start == self.position
            {
                is_sealed = false;
                continue;
            }
            if segments.from(current.start + 1).next().is_none() {
                return Ok(Next::End);
            }
            // The writer may have finished the segment after it was read here and before its
            // successor was seen. It is whole now: read once more.
            if !is_sealed {
                is_sealed = true;
                continue;
            }
            self.tail()?;
            return Ok(Next::End);
        }
    }

    /// What stands behind a cursor that has come to the [`Next::End`]: nothing, or what a torn
    /// write left. After a process died it is at most a part of one write; after a power failure
    /// also whatever of the last segments had not reached the disk.
    ///
    /// Whole records behind the place make it damage, because to cut them would lose what somebody
    /// was told. Not so in a segment whose records were told only when they were synced, while no
    /// mark says that the place was: a power failure may keep what is behind what it takes.
    ///
    /// # Errors
    /// When it is damage; when a newer version has written there.
    pub fn tail(&self) -> Result<Option<Torn>, Damage> {
        let segments = self.segments()?;
        segments.check_versions()?;
        let Some(place) = segments.place(self.position) else { return Ok(None) };
        let io = |error| Damage::Io { path: place.path.clone(), error };
        let header = self.header_at(&segments)?;
        let mut salvage = segments.salvage(self.position);
        if let Some((valid, bytes)) = salvage.next_record()? {
            if header.is_ok() && valid.position == self.position {
                // It was being written.
                return Ok(None);
            }
            let is_told = match header {
                Ok(Durability::Power) => salvage.tells_synced(self.position, bytes)?,
                _ => true,
            };
            match header {
                Err(what) => return Err(Damage::Header { place, what, valid }),
                Ok(_) if is_told => {
                    let (what, valid) = (self.why.clone(), Some(valid));
                    return Err(Damage::Record { place, what, valid });
                }
                Ok(_) => {}
            }
        }
        if header.is_ok() && std::fs::metadata(&place.path).map_err(io)?.len() < place.offset {
            // Whoever told this position has seen more than there is.
            return Err(Damage::Gap { dir: self.dir.clone(), position: self.position });
        }
        let bytes = scan::bytes_behind(segments.as_slice(), &place).map_err(io)?;
        let what = header.err().unwrap_or_else(|| self.why.clone());
        Ok((bytes > 0).then_some(Torn { place, what, bytes }))
    }

    fn segments(&self) -> Result<Segments, Damage> {
        Segments::list(&self.dir).map_err(|error| Damage::Io { path: self.dir.clone(), error })
    }

    /// Opens the segment that holds the position; the inner error says why it cannot be read
    /// from: there is none yet, or its header is not whole.
    fn open_segment(&mut self) -> Result<Result<(), String>, Damage> {
        let segments = self.segments()?;
        let Some(segment) = segments.find(self.position) else {
            if segments.as_slice().is_empty() {
                return Ok(Err("there is no segment".into()));
            }
            return Err(Damage::Gap { dir: self.dir.clone(), position: self.position });
        };
        let io = |error| Damage::Io { path: segment.path.clone(), error };
        let mut file = File::open(&segment.path).map_err(io)?;
        if let Err(what) = read_header(&mut file, segment)? {
            return Ok(Err(what));
        }
        file.seek(SeekFrom::Start(HEADER as u64 + self.position - segment.start)).map_err(io)?;
        let reader = BufReader::with_capacity(1 << 18, file);
        self.open = Some(OpenSegment { start: segment.start, path: segment.path.clone(), reader });
        Ok(Ok(()))
    }

    /// What is wrong with the header of the segment that holds the position.
    fn header_at(&self, segments: &Segments) -> Result<Result<Durability, String>, Damage> {
        let Some(segment) = segments.find(self.position) else {
            return Ok(Err("there is no segment".into()));
        };
        let io = |error| Damage::Io { path: segment.path.clone(), error };
        read_header(&mut File::open(&segment.path).map_err(io)?, segment)
    }

    /// Reads one frame; the inner error says why there is none.
    fn read_frame(&mut self) -> Result<Result<(), String>, Damage> {
        let Some(open) = self.open.as_mut() else { return Ok(Err("not open".into())) };
        let io = |error| Damage::Io { path: open.path.clone(), error };
        let mut frame = [0; FRAME];
        if !read_whole(&mut open.reader, &mut frame).map_err(io)? {
            return Ok(Err("its length and checksum are cut short".into()));
        }
        let word = |at: usize| {
            u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
        };
        let length = word(0) as usize;
        if length == 0 || length > MAX_RECORD {
            return Ok(Err(format!("its length says {length}")));
        }
        self.record.resize(length, 0);
        if !read_whole(&mut open.reader, &mut self.record).map_err(io)? {
            return Ok(Err("it is cut short".into()));
        }
        if bound_crc(crc32fast::hash(&self.record), self.position) != word(4) {
            return Ok(Err("its checksum is wrong".into()));
        }
        self.position += (FRAME + length) as u64;
        Ok(Ok(()))
    }
}

/// Fills the buffer; false when the file ends before.
fn read_whole(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads a segment's header; the inner error says why it is none.
fn read_header(file: &mut File, segment: &Segment) -> Result<Result<Durability, String>, Damage> {
    let io = |error| Damage::Io { path: segment.path.clone(), error };
    let mut header = [0; HEADER];
    if !read_whole(file, &mut header).map_err(io)? {
        return Ok(Err("its header is cut short".into()));
    }
    refuse_newer(&header, segment)?;
    if !header.starts_with(MAGIC) {
        return Ok(Err("this is not a journal segment".into()));
    }
    let durability = durability(&header);
    let version = u16::from_le_bytes([header[8], header[9]]);
    if version == 0 || header != super::header(version, segment.start, durability) {
        return Ok(Err("its checksum or start does not match its name".into()));
    }
    Ok(Ok(durability))
}

fn durability(header: &[u8; HEADER]) -> Durability {
    if header[10] == 1 { Durability::Power } else { Durability::Process }
}

fn refuse_newer(header: &[u8; HEADER], segment: &Segment) -> Result<(), Damage> {
    let version = u16::from_le_bytes([header[8], header[9]]);
    if header.starts_with(MAGIC) && version > record::VERSION {
        return Err(Damage::Newer { path: segment.path.clone(), version });
    }
    Ok(())
}
