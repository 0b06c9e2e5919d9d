//! The local journal: what Redis has acknowledged to this gateway, so that it can be done again where
//! Redis has lost it.
//!
//! Each shard has a file that is written and, when that is full, the one that was written before it.
//! So what is kept is bounded, and covers the newest of what was acknowledged. Written before anybody
//! is told, and not synced: a gateway that is killed has what it wrote, and a machine that loses power
//! lacks what its kernel had not written. That is missed only where Redis lacks it too.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// How long a shard's file gets, in bytes; there are two of each.
const MAX_FILE: u64 = 32 << 20;
/// Length and checksum in front of each record, four bytes each.
const FRAME: usize = 8;

/// A batch that was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Batch<'a> {
    pub(super) session: &'a str,
    pub(super) number: u64,
    /// The term and the entry of the shard's ledger that it has.
    pub(super) term: &'a str,
    pub(super) entry: u64,
    /// As they were sent.
    #[serde(with = "serde_bytes")]
    pub(super) ops: &'a [u8],
    /// As it came.
    #[serde(with = "serde_bytes")]
    pub(super) reply: &'a [u8],
}

/// A term of a shard's ledger: its name, and the last entry of the terms before it that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Term {
    pub(super) name: String,
    pub(super) from: u64,
}

impl Batch<'_> {
    /// Whether the shard has the batch.
    pub(super) fn is_there(&self, terms: &[Term]) -> bool {
        is_there(self.term, self.entry, terms)
    }
}

/// Whether the shard has an entry of a term. What came behind the entry from which the next term went
/// on is lost, and so is a term that the shard does not know, unless it begins behind it.
fn is_there(term: &str, entry: u64, terms: &[Term]) -> bool {
    let end = match terms.iter().position(|known| known.name == term) {
        Some(at) => terms.get(at + 1),
        None => terms.first(),
    };
    end.is_none_or(|next| entry <= next.from)
}

/// Which batch of a session was kept last.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) number: u64,
    pub(super) term: String,
    pub(super) entry: u64,
}

impl Kept {
    /// Whether the shard has lost it: `known` is the last number that it has of the session.
    pub(super) fn is_lost(&self, known: Option<u64>, terms: &[Term]) -> bool {
        known.is_none_or(|known| known < self.number) && !is_there(&self.term, self.entry, terms)
    }
}

/// The files of all shards.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    writers: Box<[Mutex<Writer>]>,
}

#[derive(Debug)]
struct Writer {
    file: File,
    /// Of whole records.
    length: u64,
}

impl Journal {
    /// Opens the journal of these books in a directory. That of other books stays: a gateway may have
    /// been started with the wrong directory, and nobody else has what is in it.
    pub(super) fn open(dir: &Path, epoch: &str, shards: usize) -> std::io::Result<Self> {
        let ours = dir.join(epoch);
        std::fs::create_dir_all(&ours)?;
        for other in std::fs::read_dir(dir)? {
            let other = other?;
            if other.path() != ours && other.file_type()?.is_dir() {
                let path = other.path();
                tracing::warn!(path = %path.display(), "the journal of other books is here too");
            }
        }
        let writer = |shard| Ok(Mutex::new(Writer::open(&current(&ours, shard))?));
        let writers = (0..shards).map(writer).collect::<std::io::Result<_>>()?;
        Ok(Self { dir: ours, writers })
    }

    /// Where it is.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps a batch, and says whether it did. One that cannot be kept is told to the log: nobody waits for
    /// it, and it is only missed where Redis loses it too.
    pub(super) fn keep(&self, shard: usize, batch: &Batch<'_>) -> bool {
        let written = self.write(shard, batch);
        if let Err(error) = &written {
            tracing::error!(shard, %error, "what Redis acknowledged is not kept on this disk");
        }
        written.is_ok()
    }

    fn write(&self, shard: usize, batch: &Batch<'_>) -> std::io::Result<()> {
        let frame = frame(batch)?;
        let mut writer = self.writers[shard].lock();
        if writer.length >= MAX_FILE {
            let path = current(&self.dir, shard);
            match std::fs::rename(&path, before(&self.dir, shard)) {
                // It was renamed before, and the next one could not be opened then.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                renamed => renamed?,
            }
            *writer = Writer::open(&path)?;
        }
        let written = writer.file.write_all(&frame);
        match written {
            Ok(()) => writer.length += frame.len() as u64,
            // What follows must not stand behind half a record.
            Err(_) => writer.file.set_len(writer.length)?,
        }
        written
    }

    /// All that is kept of a shard, in the order in which it was done; for [`batches`].
    pub(super) fn read(&self, shard: usize) -> std::io::Result<[Vec<u8>; 2]> {
        // Nobody writes meanwhile, and nobody changes the files' names.
        let _writer = self.writers[shard].lock();
        Ok([read(&before(&self.dir, shard))?, read(&current(&self.dir, shard))?])
    }
}

impl Writer {
    fn open(path: &Path) -> std::io::Result<Self> {
        let bytes = read(path)?;
        let length = batches(&bytes).last().map_or(0, |(end, _)| end as u64);
        let file = File::options().create(true).append(true).open(path)?;
        if length < bytes.len() as u64 {
            file.set_len(length)?;
        }
        Ok(Self { file, length })
    }
}

fn current(dir: &Path, shard: usize) -> PathBuf {
    dir.join(format!("s{shard}"))
}

fn before(dir: &Path, shard: usize) -> PathBuf {
    dir.join(format!("s{shard}.before"))
}

/// A record with its length and checksum.
pub(super) fn frame<T: Serialize>(record: &T) -> std::io::Result<Vec<u8>> {
    let frame = postcard::to_extend(record, vec![0; FRAME]);
    let mut frame = frame.map_err(|error| std::io::Error::other(error.to_string()))?;
    let length = u32::try_from(frame.len() - FRAME).map_err(std::io::Error::other)?;
    let crc = crc32fast::hash(&frame[FRAME..]);
    frame[..4].copy_from_slice(&length.to_le_bytes());
    frame[4..FRAME].copy_from_slice(&crc.to_le_bytes());
    Ok(frame)
}

/// The records of a file, and where each ends. What is not whole was written when the gateway was
/// killed, and is the end. So damage in the middle hides what stands behind it, and so does a record of
/// another build's layout, which has no version here: whoever opens the file cuts it there.
pub(super) fn frames(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let head = bytes.get(at..at + FRAME)?;
        let word =
            |from: usize| Some(u32::from_le_bytes(head.get(from..from + 4)?.try_into().ok()?));
        let record = bytes.get(at + FRAME..)?.get(..word(0)? as usize)?;
        if crc32fast::hash(record) != word(4)? {
            return None;
        }
        at += FRAME + record.len();
        Some((at, record))
    })
}

/// A file's bytes; none of one that is not there.
pub(super) fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

/// The batches of a file, and where each ends.
pub(super) fn batches(bytes: &[u8]) -> impl Iterator<Item = (usize, Batch<'_>)> {
    frames(bytes).map_while(|(end, record)| Some((end, postcard::from_bytes(record).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(number: u64) -> Batch<'static> {
        Batch { session: "a/1/0", number, term: "x-1", entry: 2 * number, ops: b"ops", reply: b"r" }
    }

    fn numbers(journal: &Journal, shard: usize) -> Vec<u64> {
        let files = journal.read(shard).unwrap();
        files.iter().flat_map(|bytes| batches(bytes).map(|(_, batch)| batch.number)).collect()
    }

    #[test]
    fn f27_what_was_acknowledged_is_there_after_a_kill_at_any_byte() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), "books", 2).unwrap();
        for number in 1..=3 {
            journal.keep(1, &batch(number));
        }
        assert_eq!((numbers(&journal, 0), numbers(&journal, 1)), (vec![], vec![1, 2, 3]));
        drop(journal);
        let path = dir.path().join("books/s1");
        let whole = std::fs::read(&path).unwrap();
        let ends: Vec<usize> = batches(&whole).map(|(end, _)| end).collect();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let journal = Journal::open(dir.path(), "books", 2).unwrap();
            let kept = ends.iter().filter(|end| **end <= cut).count() as u64;
            // And what is written behind it is read.
            journal.keep(1, &batch(9));
            let expected: Vec<u64> = (1..=kept).chain([9]).collect();
            assert_eq!(numbers(&journal, 1), expected, "{cut}");
        }
        let other = Journal::open(dir.path(), "other", 2).unwrap();
        assert_eq!(numbers(&other, 1), [0; 0]);
        drop(other);
        let again = Journal::open(dir.path(), "books", 2).unwrap();
        assert_eq!(
            numbers(&again, 1).last(),
            Some(&9),
            "what belongs to other books is theirs still"
        );
    }

    #[test]
    fn f27_a_shard_keeps_the_newest_and_no_more_than_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), "books", 1).unwrap();
        let ops = vec![7; 1 << 20];
        for number in 1..=100 {
            journal.keep(0, &Batch { ops: &ops, ..batch(number) });
        }
        let kept = numbers(&journal, 0);
        assert_eq!(kept.last(), Some(&100));
        assert!(kept.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{kept:?}");
        assert!((32..=66).contains(&kept.len()), "{}", kept.len());
    }

    #[test]
    fn f27_a_file_that_could_not_be_begun_is_begun_with_the_next_batch() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), "books", 1).unwrap();
        let ops = vec![7; MAX_FILE as usize];
        journal.keep(0, &Batch { ops: &ops, ..batch(1) });
        // Where the next file is to be, nothing can be opened.
        let path = dir.path().join("books/s0");
        std::fs::rename(&path, dir.path().join("books/s0.before")).unwrap();
        std::fs::create_dir(&path).unwrap();
        std::fs::create_dir(path.join("full")).unwrap();
        journal.keep(0, &batch(2));
        std::fs::remove_dir_all(&path).unwrap();
        journal.keep(0, &batch(3));
        assert_eq!(numbers(&journal, 0), [1, 3]);
    }

    #[test]
    fn f27_f34_what_is_lost_is_what_came_behind_the_entry_that_its_next_term_goes_on_from() {
        let term = |name: &str, from| Term { name: name.into(), from };
        let terms = [term("a", 0), term("b", 100), term("c", 150)];
        let there = |term, entry| Batch { term, entry, ..batch(1) }.is_there(&terms);
        assert!(there("a", 100) && !there("a", 101) && !there("a", 140));
        assert!(there("b", 150) && !there("b", 151) && there("c", 151) && there("c", 9000));
        // A term of which the shard has never heard is lost as a whole.
        assert!(!there("x", 1) && !there("x", 120));
        // Where the oldest terms are not listed any more, what was before them is there.
        let of_old = |entry| Batch { term: "x", entry, ..batch(1) }.is_there(&terms[1..]);
        assert!(of_old(100) && !of_old(101));
        let lost =
            |entry, known| Kept { number: 7, term: "a".into(), entry }.is_lost(known, &terms);
        assert!(lost(101, None) && lost(101, Some(6)));
        // It was done again, or its session was removed.
        assert!(!lost(101, Some(7)) && !lost(100, None));
    }
}
