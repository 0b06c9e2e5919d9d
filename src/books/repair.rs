//! Repair of damaged books, by an operator's word only. What cannot be read cannot be invented,
//! and a balance is a sum: records behind a damaged place mean nothing without it. So there are
//! two repairs, and neither guesses:
//!
//! - **Damage behind the newest whole snapshot**: the journal ends before the damaged place. What
//!   whole records stand behind it is told, kept in a copy, and lost to the balances.
//! - **Damage before a whole snapshot**: balances stand on the snapshot and lose nothing. The
//!   segments before it are put aside, and the ledger is verified from the snapshot on.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::fold::Fold;
use super::journal::{Cursor, Damage, Next, Place, Segments, Torn};
use super::recover::{RecoverError, recover};
use super::snapshot;
use crate::core::amount::Credits;
use crate::core::charge::State;
use crate::core::ids::ChargeId;
use crate::core::record::{Finish, Lasting, Leg, Record, instant};

/// Why books cannot be repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// A gateway runs on them (f44).
    #[error("{0} is in use by another process; stop the gateway first")]
    Locked(PathBuf),
    /// There is nothing to start from.
    #[error("{0}: neither the journal's beginning nor a snapshot can be read; restore a backup")]
    NoBase(PathBuf),
    /// What repairing would not mend: a newer version, the file system.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The file system.
    #[error("the books' files: {0}")]
    Io(#[from] io::Error),
}

/// What a repair would do. Nothing is done by making one; the books are locked while it lives.
#[derive(Debug)]
pub struct Repair {
    dir: PathBuf,
    /// What is damaged, in words.
    pub findings: Vec<String>,
    /// Files that are put aside whole.
    pub aside: Vec<PathBuf>,
    /// Where the journal ends from now on, when something behind it is lost.
    pub cut: Option<Place>,
    /// What is lost behind the cut.
    pub loss: Loss,
    /// What the next start cuts by itself: it is no damage.
    pub torn: Option<Torn>,
    /// Where the ledger begins, when what was before it is put aside.
    pub begins: Option<u64>,
    _lock: File,
}

/// What stands behind a cut: whole records that no balance will know of any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Bytes behind the cut, readable or not.
    pub bytes: u64,
    /// Whole records among them.
    pub records: u64,
    /// Charges that were held behind the cut.
    pub holds: u64,
    /// Charges that were captured behind it, and what they cost.
    pub captures: u64,
    /// Their cost together.
    pub cost: Credits,
    /// Charges held before the cut whose end is lost: the next start resolves them as in doubt.
    pub reopened: u64,
    /// Adjustments by admins.
    pub adjustments: u64,
    /// Names of accounts that the records take from or give to.
    pub accounts: BTreeSet<String>,
    /// The oldest and the newest instant among the records.
    pub times: Option<(Timestamp, Timestamp)>,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Repaired {
    /// Where copies of all that was cut or put aside are, and the report.
    pub kept_in: PathBuf,
    /// What was done, in words, with every lost record.
    pub report: PathBuf,
}

impl Repair {
    /// Looks at the books in `dir` without changing anything, and locks them.
    ///
    /// # Errors
    /// [`RepairError`]: nothing can be done by a repair then.
    pub fn plan(dir: &Path) -> Result<Self, RepairError> {
        let lock = OpenOptions::new().create(true).append(true).open(dir.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => RepairError::Locked(dir.to_owned()),
            TryLockError::Error(error) => RepairError::Io(error),
        })?;
        let segments = Segments::list(dir)?;
        segments.check_versions().map_err(RecoverError::from)?;
        let mut repair = Self {
            dir: dir.to_owned(),
            findings: Vec::new(),
            aside: Vec::new(),
            cut: None,
            loss: Loss::default(),
            torn: None,
            begins: None,
            _lock: lock,
        };
        let snapshots = repair.whole_snapshots()?;
        let first = segments.as_slice().first().map_or(0, |segment| segment.start);
        let newest = snapshots.last().map(|(position, _)| *position);
        if newest.is_none() && first > 0 {
            return Err(RepairError::NoBase(dir.to_owned()));
        }
        repair.check_end(&segments, newest.unwrap_or(0))?;
        if let Some(newest) = newest {
            repair.check_history(&segments, &snapshots, first, newest)?;
        }
        Ok(repair)
    }

    /// True when there is nothing to repair.
    pub fn is_needless(&self) -> bool {
        self.findings.is_empty()
    }

    /// Snapshots that read back; the others are put aside.
    fn whole_snapshots(&mut self) -> Result<Vec<(u64, PathBuf)>, RepairError> {
        let mut whole = Vec::new();
        for (position, path) in snapshot::list(&self.dir)? {
            if let Some(version) = snapshot::newer(&path)? {
                return Err(RecoverError::from(Damage::Newer { path, version }).into());
            }
            match snapshot::read(&path) {
                Ok(_) => whole.push((position, path)),
                Err(error) => {
                    self.findings.push(format!("{}: damaged snapshot: {error}", path.display()));
                    self.aside.push(path);
                }
            }
        }
        Ok(whole)
    }

    /// Reads from the newest whole snapshot to the end, and finds what has to be cut.
    fn check_end(&mut self, segments: &Segments, newest: u64) -> Result<(), RepairError> {
        let read = match read_on(&self.dir, newest) {
            Ok(torn) => {
                self.torn = torn;
                return Ok(());
            }
            Err(read) => *read,
        };
        let position = match &read.error {
            RecoverError::Damage(Damage::Newer { .. } | Damage::Io { .. })
            | RecoverError::Io(_) => return Err(read.error.into()),
            RecoverError::Damage(_) | RecoverError::Contradiction { .. } => read.position,
        };
        self.findings.push(in_one_line(&read.error));
        let behind = |start: u64| start >= position;
        for segment in segments.as_slice().iter().filter(|segment| behind(segment.start)) {
            self.aside.push(segment.path.clone());
        }
        // A segment that starts at the position is put aside whole; one that holds it is cut.
        let holds = segments.place(position).filter(|place| {
            let length = std::fs::metadata(&place.path).map_or(0, |data| data.len());
            place.offset < length && !self.aside.contains(&place.path)
        });
        self.loss = lost(segments, position, &read.fold)?;
        self.cut = holds;
        Ok(())
    }

    /// Reads what is before the newest whole snapshot, and finds from where on it is whole.
    fn check_history(
        &mut self,
        segments: &Segments,
        snapshots: &[(u64, PathBuf)],
        first: u64,
        newest: u64,
    ) -> Result<(), RepairError> {
        let oldest = snapshots.iter().map(|(position, _)| *position);
        let oldest = oldest.filter(|position| *position >= first).min().unwrap_or(newest);
        // A ledger that was begun at a snapshot has nothing to be verified before it.
        let from = if first == 0 { 0 } else { oldest };
        let Err(error) = read_to(&self.dir, from, newest) else { return Ok(()) };
        self.findings.push(in_one_line(&error));
        let whole = |position: &u64| read_to(&self.dir, *position, newest).is_ok();
        let begins = snapshots.iter().map(|(position, _)| *position).find(whole).unwrap_or(newest);
        for segment in segments.as_slice().iter().filter(|segment| segment.start < begins) {
            self.aside.push(segment.path.clone());
        }
        for (_, path) in snapshots.iter().filter(|(position, _)| *position < begins) {
            self.aside.push(path.clone());
        }
        self.begins = Some(begins);
        Ok(())
    }

    /// Does it: copies first, then a report, then the change. A repair that dies in the middle
    /// has lost nothing, and is begun again.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn apply(self, now: Timestamp) -> Result<Repaired, RepairError> {
        let kept_in = fresh(&self.dir)?;
        let report = kept_in.join("report.txt");
        if let Some(cut) = &self.cut {
            let copy = kept_in.join(cut.path.file_name().unwrap_or_default());
            std::fs::copy(&cut.path, &copy)?;
            File::open(&copy)?.sync_all()?;
        }
        self.report(&report, now)?;
        sync_dir(&kept_in)?;
        sync_dir(&self.dir)?;
        // Newest first: what is left at any moment is a journal that ends earlier.
        let mut aside: Vec<&PathBuf> = self.aside.iter().collect();
        aside.sort();
        for path in aside.into_iter().rev() {
            std::fs::rename(path, kept_in.join(path.file_name().unwrap_or_default()))?;
        }
        sync_dir(&kept_in)?;
        if let Some(cut) = &self.cut {
            let file = OpenOptions::new().write(true).open(&cut.path)?;
            file.set_len(cut.offset)?;
            file.sync_all()?;
        }
        sync_dir(&self.dir)?;
        Ok(Repaired { kept_in, report })
    }

    fn report(&self, path: &Path, now: Timestamp) -> Result<(), RepairError> {
        let mut out = BufWriter::new(OpenOptions::new().create_new(true).write(true).open(path)?);
        writeln!(out, "repaired at {now}")?;
        for finding in &self.findings {
            writeln!(out, "found: {finding}")?;
        }
        for aside in &self.aside {
            writeln!(out, "put aside: {}", aside.display())?;
        }
        if let Some(begins) = self.begins {
            writeln!(out, "the ledger begins at position {begins}")?;
        }
        if let Some(cut) = &self.cut {
            writeln!(out, "cut: {} at byte {}", cut.path.display(), cut.offset)?;
        }
        for line in self.loss.lines() {
            writeln!(out, "{line}")?;
        }
        if self.loss.records > 0
            && let Some(from) = self.cut.as_ref().map(|cut| cut.position).or(self.first_aside())
        {
            let mut salvage = Segments::list(&self.dir)?.salvage(from);
            while let Some((place, bytes)) = salvage.next_record().map_err(RecoverError::from)? {
                let record = Record::decode(&bytes).ok();
                if let Some(line) = record.as_ref().and_then(describe) {
                    writeln!(out, "lost: {} {line}", place.position)?;
                }
            }
        }
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Ok(())
    }

    /// Where the first segment starts that is put aside because of what is before it.
    fn first_aside(&self) -> Option<u64> {
        let segments = Segments::list(&self.dir).ok()?;
        let begins = self.begins.unwrap_or(0);
        let aside = |start: u64, path: &PathBuf| start >= begins && self.aside.contains(path);
        let mut starts = segments.as_slice().iter();
        starts.find(|segment| aside(segment.start, &segment.path)).map(|segment| segment.start)
    }
}

impl Loss {
    /// What is lost, for people.
    pub fn lines(&self) -> Vec<String> {
        if self.bytes == 0 {
            return vec!["no record is lost".to_owned()];
        }
        let mut lines = vec![format!(
            "behind the damage: {} bytes with {} whole records: {} holds, {} captures of {} \
             credits, {} adjustments",
            self.bytes, self.records, self.holds, self.captures, self.cost, self.adjustments
        )];
        if let Some((from, to)) = self.times {
            lines.push(format!("they were made from {from} to {to}"));
        }
        if self.reopened > 0 {
            lines.push(format!(
                "{} charges from before lose their end: the next start resolves them as in doubt",
                self.reopened
            ));
        }
        if !self.accounts.is_empty() {
            lines
                .push(format!("{} accounts get back what these records took", self.accounts.len()));
        }
        lines
    }
}

/// Where reading stopped, with the state before it.
struct Stopped {
    error: RecoverError,
    position: u64,
    fold: Fold,
}

/// Reads from a snapshot's position to the end.
fn read_on(dir: &Path, from: u64) -> Result<Option<Torn>, Box<Stopped>> {
    let mut fold = Fold::default();
    let base = match from {
        0 => Ok(()),
        _ => recover(dir, Some(from)).map(|found| fold = found.fold),
    };
    let mut cursor = Cursor::new(dir, from);
    let mut position = from;
    let mut step = || -> Result<bool, RecoverError> {
        position = cursor.position();
        if cursor.next()? == Next::End {
            return Ok(false);
        }
        let record = super::recover::decode(dir, &cursor.record, position)?;
        fold.apply(&record).map_err(|error| RecoverError::Contradiction { position, error })?;
        Ok(true)
    };
    let read = base.and_then(|()| {
        loop {
            match step() {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    });
    let end = read.and_then(|()| cursor.tail().map_err(RecoverError::from));
    end.map_err(|error| Box::new(Stopped { error, position, fold }))
}

/// Reads from one position to another, which must be records' ends.
fn read_to(dir: &Path, from: u64, to: u64) -> Result<(), RecoverError> {
    let mut cursor = Cursor::new(dir, from);
    while cursor.position() < to {
        let position = cursor.position();
        if cursor.next()? == Next::End {
            cursor.tail()?;
            return Err(Damage::Gap { dir: dir.to_owned(), position }.into());
        }
        super::recover::decode(dir, &cursor.record, position)?;
    }
    Ok(())
}

/// Adds up what stands behind a position.
fn lost(segments: &Segments, position: u64, before: &Fold) -> Result<Loss, RepairError> {
    let mut loss = Loss::default();
    for segment in segments.as_slice() {
        let length = std::fs::metadata(&segment.path)?.len();
        let place = segments.place(position).filter(|place| place.path == segment.path);
        loss.bytes += match place {
            Some(place) => length.saturating_sub(place.offset),
            None if segment.start >= position => length,
            None => 0,
        };
    }
    let mut names: std::collections::HashMap<_, String> =
        before.accounts.iter().map(|(key, account)| (*key, account.name.to_string())).collect();
    let mut salvage = segments.salvage(position);
    while let Some((_, bytes)) = salvage.next_record().map_err(RecoverError::from)? {
        let Ok(record) = Record::decode(&bytes) else { continue };
        loss.records += u64::from(!matches!(record, Record::Synced(_) | Record::Close(_)));
        for opening in record.openings() {
            names.entry(opening.key).or_insert_with(|| opening.name.to_owned());
        }
        let (at, legs) = match &record {
            Record::Hold(hold) | Record::Lasting(Lasting { hold, .. }) => {
                loss.holds += 1;
                (hold.at, hold.legs.clone())
            }
            Record::Amend(amend) => (amend.at, amend.legs.clone()),
            Record::Resolve(resolve) | Record::Finish(Finish { resolve, .. }) => {
                if resolve.state == State::Captured {
                    loss.captures += 1;
                    let sum = loss.cost.micro().checked_add(resolve.memo.cost.micro());
                    loss.cost = sum.and_then(Credits::from_micro).unwrap_or(loss.cost);
                }
                let held = before.holds.get(&resolve.charge);
                loss.reopened += u64::from(held.is_some());
                let legs = held.map(|hold| hold.legs.clone()).unwrap_or_default();
                (resolve.at, legs.into_iter().chain(resolve.extra.iter().copied()).collect())
            }
            // What is lost is closed again by whoever goes on.
            Record::Synced(_) | Record::Close(_) => continue,
            Record::Carried(carried) => {
                let opened = carried.openings.iter().map(|opening| opening.name.to_owned());
                loss.accounts.extend(opened);
                (carried.at, smallvec::SmallVec::new())
            }
            Record::Adjust(adjust) => {
                loss.adjustments += 1;
                loss.accounts.extend(names.get(&adjust.key).cloned());
                (adjust.at, smallvec::SmallVec::new())
            }
        };
        loss.accounts.extend(legs.iter().filter_map(|leg| names.get(&leg.key).cloned()));
        let at = instant(at);
        let (from, to) = loss.times.unwrap_or((at, at));
        loss.times = Some((from.min(at), to.max(at)));
    }
    Ok(loss)
}

/// One record, in one line of the report.
fn describe(record: &Record<'_>) -> Option<String> {
    let legs = |legs: &[Leg]| {
        let leg = |leg: &Leg| format!(" {} {:?}={}", leg.kind.word(), leg.key.stem, leg.amount);
        legs.iter().map(leg).collect::<String>()
    };
    Some(match record {
        Record::Synced(_) => return None,
        Record::Close(close) => {
            format!("{} cycles before {} closed", instant(close.at), close.below)
        }
        Record::Carried(carried) => {
            let (at, accounts) = (instant(carried.at), carried.openings.len());
            format!("{at} {accounts} accounts from other books")
        }
        Record::Hold(hold) | Record::Lasting(Lasting { hold, .. }) => {
            format!("{} hold {}{}", instant(hold.at), ChargeId(hold.charge), legs(&hold.legs))
        }
        Record::Amend(amend) => format!(
            "{} amendment of {}{}",
            instant(amend.at),
            ChargeId(amend.charge),
            legs(&amend.legs)
        ),
        Record::Resolve(resolve) | Record::Finish(Finish { resolve, .. }) => format!(
            "{} {} {} cost={} keep={:?}{}",
            instant(resolve.at),
            resolve.state.word(),
            ChargeId(resolve.charge),
            resolve.memo.cost,
            resolve.keep,
            legs(&resolve.extra)
        ),
        Record::Adjust(adjust) => {
            format!("{} adjustment {:?} {:+}", instant(adjust.at), adjust.key.stem, adjust.delta)
        }
    })
}

/// What is wrong, without what to do about it: that is being done.
fn in_one_line(error: &RecoverError) -> String {
    let text = error.to_string();
    text.split("; nothing was changed").next().unwrap_or_default().to_owned()
}

/// A directory that was not there, in `dir`.
fn fresh(dir: &Path) -> io::Result<PathBuf> {
    let mut number = 1_u32;
    loop {
        let path = dir.join(format!("repair-{number}"));
        match std::fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
