//! Reading the journal: by recovery, by the archive and by the verifier, also while it is being
//! written.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::{FRAME, HEADER, MAGIC, MAX_RECORD, bound_crc};
use crate::books::Durability;
use crate::core::record;

/// What is wrong with the journal, and where.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// A record is not what was written.
    #[error("{path}: damaged record at byte {offset}: {what}")]
    Record {
        /// The segment.
        path: PathBuf,
        /// The offset in the file.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
    /// A segment's header is not what was written.
    #[error("{path}: damaged header: {what}")]
    Header {
        /// The segment.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
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
    #[error("{dir}: no segment holds position {position}")]
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

    /// The segment that holds `position`, and whether it is the last.
    fn find(&self, position: u64) -> Option<(&Segment, bool)> {
        let index = self.0.iter().rposition(|segment| segment.start <= position)?;
        Some((&self.0[index], index + 1 == self.0.len()))
    }
}

/// What a cursor finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A record is in the buffer.
    Record,
    /// Nothing more is written, or what follows in the last segment is not whole: while the
    /// journal is being written it will be, after a crash it is a torn tail.
    End,
}

/// Reads records in order, from any position that a record starts at.
#[derive(Debug)]
pub struct Cursor {
    dir: PathBuf,
    position: u64,
    open: Option<OpenSegment>,
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
        Self { dir: dir.to_owned(), position, open: None, record: Vec::new() }
    }

    /// The position of the next record.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Reads the next record into [`Cursor::record`].
    ///
    /// # Errors
    /// [`Damage`] says what and where. An incomplete or wrong frame is damage when a later
    /// segment exists, because a segment is sealed whole; else it is the [`Next::End`].
    #[expect(clippy::should_implement_trait, reason = "an iterator would lend nothing out")]
    pub fn next(&mut self) -> Result<Next, Damage> {
        let mut is_sealed = false;
        loop {
            if self.open.is_none() && !self.open_segment()? {
                return Ok(Next::End);
            }
            match self.read_frame()? {
                Ok(()) => return Ok(Next::Record),
                Err(what) => {
                    let Some(open) = self.open.take() else { return Ok(Next::End) };
                    let segments = self.segments()?;
                    // Sealed at exactly this position: go on in the next segment.
                    if segments
                        .from(self.position)
                        .any(|s| s.start == self.position && s.start != open.start)
                    {
                        is_sealed = false;
                        continue;
                    }
                    if segments.from(open.start + 1).next().is_some() {
                        // The writer may have finished the segment after it was read here and
                        // before its successor was seen. It is whole now: read once more.
                        if !is_sealed {
                            is_sealed = true;
                            continue;
                        }
                        let offset = HEADER as u64 + self.position - open.start;
                        return Err(Damage::Record { path: open.path, offset, what });
                    }
                    return Ok(Next::End);
                }
            }
        }
    }

    fn segments(&self) -> Result<Segments, Damage> {
        Segments::list(&self.dir).map_err(|error| Damage::Io { path: self.dir.clone(), error })
    }

    /// Opens the segment that holds the position; false when there is none yet, or its header is
    /// still being written.
    fn open_segment(&mut self) -> Result<bool, Damage> {
        let segments = self.segments()?;
        let Some((segment, last)) = segments.find(self.position) else {
            if segments.as_slice().is_empty() {
                return Ok(false);
            }
            return Err(Damage::Gap { dir: self.dir.clone(), position: self.position });
        };
        let io = |error| Damage::Io { path: segment.path.clone(), error };
        let mut file = File::open(&segment.path).map_err(io)?;
        let mut header = [0; HEADER];
        if !read_whole(&mut file, &mut header).map_err(io)? {
            let path = segment.path.clone();
            return if last { Ok(false) } else { Err(Damage::Header { path, what: "cut short" }) };
        }
        check_header(&header, segment)?;
        file.seek(SeekFrom::Start(HEADER as u64 + self.position - segment.start)).map_err(io)?;
        let reader = BufReader::with_capacity(1 << 18, file);
        self.open = Some(OpenSegment { path: segment.path.clone(), start: segment.start, reader });
        Ok(true)
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

fn check_header(header: &[u8; HEADER], segment: &Segment) -> Result<(), Damage> {
    let damaged = |what| Err(Damage::Header { path: segment.path.clone(), what });
    if &header[..8] != MAGIC {
        return damaged("this is not a journal segment");
    }
    let version = u16::from_le_bytes([header[8], header[9]]);
    if version > record::VERSION {
        return Err(Damage::Newer { path: segment.path.clone(), version });
    }
    let durability = if header[10] == 1 { Durability::Power } else { Durability::Process };
    if *header != super::header(segment.start, durability) {
        return damaged("its checksum or start does not match its name");
    }
    Ok(())
}
