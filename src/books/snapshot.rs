//! Snapshot files: the fold of all records before a position, so that recovery need not read
//! them again. A snapshot is written beside the old one and renamed over nothing: a crash leaves
//! either none or a whole one. The newest that reads back whole is used.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::fold::{Fold, FoldAccount, FoldHold, FoldOnce};
use crate::core::account::{AccountKey, Balance, Version};
use crate::core::charge::InDoubt;
use crate::core::cycle::Label;
use crate::core::record::{Known, Leg, Once, VERSION};

const MAGIC: &[u8; 8] = b"TOLLSNAP";

/// One entry of a snapshot file.
#[derive(Serialize, Deserialize)]
enum Entry<'a> {
    Account {
        key: AccountKey,
        name: &'a str,
        balance: Balance,
        version: Version,
    },
    Hold {
        #[serde(with = "serde_bytes")]
        charge: [u8; 16],
        at: i64,
        in_doubt: InDoubt,
        legs: SmallVec<[Leg; 2]>,
        #[serde(borrow, with = "serde_bytes")]
        memo: &'a [u8],
    },
    /// The last entry: how many came before it.
    End {
        entries: u64,
    },
    /// What is closed, and the days of the last records (since version 2).
    Time {
        closed: Label,
        days: Vec<i32>,
    },
    /// What there is to know of the hold before it beyond a plain one (since version 3).
    Lasting {
        #[serde(with = "serde_bytes")]
        charge: [u8; 16],
        expires: Option<i64>,
        once: Option<Once>,
        known: Option<Known>,
        #[serde(borrow, with = "serde_bytes")]
        note: &'a [u8],
    },
    /// A charge that is made once (since version 3).
    Once {
        scope: u64,
        #[serde(with = "serde_bytes")]
        key: [u8; 16],
        #[serde(with = "serde_bytes")]
        charge: [u8; 16],
        #[serde(with = "serde_bytes")]
        request: [u8; 16],
        at: i64,
        captured: bool,
    },
}

/// Writes the fold of everything before `position`, safe against power failure, and removes the
/// snapshots before the last two that read back whole.
///
/// # Errors
/// Whatever the file system says.
pub fn write(dir: &Path, position: u64, fold: &Fold) -> io::Result<()> {
    let temporary = dir.join("snapshot.tmp");
    let file = BufWriter::new(File::create(&temporary)?);
    let mut out = Out { file, scratch: Vec::new(), entries: 0 };
    out.file.write_all(MAGIC)?;
    out.file.write_all(&VERSION.to_le_bytes())?;
    for (key, account) in &fold.accounts {
        let FoldAccount { name, balance, version } = account;
        out.entry(&Entry::Account { key: *key, name, balance: *balance, version: *version })?;
    }
    for (charge, hold) in &fold.holds {
        let FoldHold { at, in_doubt, legs, memo, expires, once, known, note } = hold;
        let (charge, at, in_doubt, legs) = (*charge, *at, *in_doubt, legs.clone());
        out.entry(&Entry::Hold { charge, at, in_doubt, legs, memo })?;
        if expires.is_some() || once.is_some() || known.is_some() || !note.is_empty() {
            let (expires, once, known) = (*expires, *once, known.clone());
            out.entry(&Entry::Lasting { charge, expires, once, known, note })?;
        }
    }
    for ((scope, key), known) in &fold.once {
        let FoldOnce { charge, request, at, captured } = *known;
        out.entry(&Entry::Once { scope: *scope, key: *key, charge, request, at, captured })?;
    }
    out.entry(&Entry::Time { closed: fold.closed, days: fold.days.iter().copied().collect() })?;
    out.end()?;
    let file = out.file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    std::fs::rename(&temporary, dir.join(format!("{position:020}.snapshot")))?;
    File::open(dir)?.sync_all()?;
    // Once the journal's beginning is deleted only a snapshot can start the books: one that does
    // not read back pushes no whole one out.
    let mut whole = 0;
    for (_, path) in list(dir)?.iter().rev() {
        if whole == 2 {
            std::fs::remove_file(path)?;
        } else if check(path).is_ok() {
            whole += 1;
        }
    }
    Ok(())
}

/// The snapshots in `dir`, oldest first, by the position they were folded to.
///
/// # Errors
/// Whatever the file system says.
pub fn list(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let digits = name.strip_suffix(".snapshot").filter(|digits| digits.len() == 20);
        if let Some(position) = digits.and_then(|digits| digits.parse().ok()) {
            found.push((position, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The version of a snapshot, where it is newer than this one's.
///
/// # Errors
/// Whatever the file system says.
pub fn newer(path: &Path) -> io::Result<Option<u16>> {
    let mut head = Vec::new();
    File::open(path)?.take(10).read_to_end(&mut head)?;
    let version = head.strip_prefix(MAGIC).and_then(|rest| rest.first_chunk());
    Ok(version.map(|version| u16::from_le_bytes(*version)).filter(|version| *version > VERSION))
}

/// Reads a snapshot.
///
/// # Errors
/// When the file is not a whole snapshot of this version.
pub fn read(path: &Path) -> io::Result<Fold> {
    let mut fold = Fold::default();
    for_each(path, |entry| match entry {
        Entry::Account { key, name, balance, version } => {
            let account = FoldAccount { name: name.into(), balance, version };
            fold.accounts.insert(key, account);
        }
        Entry::Hold { charge, at, in_doubt, legs, memo } => {
            let (memo, note) = (memo.into(), Box::default());
            let (expires, once, known) = (None, None, None);
            let hold = FoldHold { at, in_doubt, legs, memo, expires, once, known, note };
            fold.holds.insert(charge, hold);
        }
        Entry::Lasting { charge, expires, once, known, note } => {
            if let Some(hold) = fold.holds.get_mut(&charge) {
                (hold.expires, hold.once, hold.known) = (expires, once, known);
                hold.note = note.into();
            }
        }
        Entry::Once { scope, key, charge, request, at, captured } => {
            fold.once.insert((scope, key), FoldOnce { charge, request, at, captured });
        }
        Entry::Time { closed, days } => {
            (fold.closed, fold.days) = (closed, days.into_iter().collect());
        }
        Entry::End { .. } => {}
    })?;
    Ok(fold)
}

/// Reads a snapshot to its end, and keeps nothing of it.
///
/// # Errors
/// When the file is not a whole snapshot of this version.
pub fn check(path: &Path) -> io::Result<()> {
    for_each(path, |_| {})
}

/// Every entry of a snapshot.
fn for_each(path: &Path, mut see: impl FnMut(Entry<'_>)) -> io::Result<()> {
    let invalid = |what: &str| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()))
    };
    let mut file = BufReader::with_capacity(1 << 18, File::open(path)?);
    let mut head = [0; 10];
    file.read_exact(&mut head)?;
    let version = u16::from_le_bytes([head[8], head[9]]);
    if &head[..8] != MAGIC || !(1..=VERSION).contains(&version) {
        return Err(invalid("not a snapshot of this version, or of one before it"));
    }
    let mut bytes = Vec::new();
    let mut entries = 0;
    loop {
        let mut frame = [0; 8];
        file.read_exact(&mut frame)?;
        let word = |at: usize| {
            u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
        };
        if word(0) as usize > super::journal::MAX_RECORD {
            return Err(invalid("an entry is too long"));
        }
        bytes.resize(word(0) as usize, 0);
        file.read_exact(&mut bytes)?;
        if crc32fast::hash(&bytes) != word(4) {
            return Err(invalid("an entry's checksum is wrong"));
        }
        match postcard::from_bytes(&bytes).map_err(|_| invalid("an entry cannot be read"))? {
            Entry::End { entries: expected } if expected == entries => return Ok(()),
            Entry::End { .. } => return Err(invalid("entries are missing")),
            entry => see(entry),
        }
        entries += 1;
    }
}

struct Out {
    file: BufWriter<File>,
    scratch: Vec<u8>,
    entries: u64,
}

impl Out {
    fn entry(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        bytes = postcard::to_extend(entry, bytes).map_err(io::Error::other)?;
        self.file.write_all(&(bytes.len() as u32).to_le_bytes())?;
        self.file.write_all(&crc32fast::hash(&bytes).to_le_bytes())?;
        self.file.write_all(&bytes)?;
        self.scratch = bytes;
        self.entries += 1;
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.entry(&Entry::End { entries: self.entries })
    }
}
