//! The thread that makes what is written survive a power failure, and that has the next segment
//! ready before the writer needs it. No writer ever waits for a disk, except when a whole
//! segment was filled while the one before it was being synced.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use tokio::sync::watch;

/// The next segment's file before it has its name.
const NEXT: &str = "next.segment";
/// How much space is reserved at a time. Half of it at least is always ahead of the writer, which
/// is more than all open holds need to settle (f40).
const CHUNK: u64 = 8 << 20;
/// How long until a full disk is asked for space again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What the journal and its thread share.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) dir: PathBuf,
    segment_size: u64,
    /// [`CHUNK`], or less for small segments.
    chunk: u64,
    /// The position up to which the file is written. Stored by the writer, read by followers.
    pub(super) written: AtomicU64,
    /// The position up to which records survive a power failure. Stored by the thread.
    synced: AtomicU64,
    /// Wakes those who wait for it.
    told: watch::Sender<()>,
    /// Nothing is written or synced any more (f41).
    failed: AtomicBool,
    /// Why; wakes those whose business it is.
    failure: watch::Sender<Option<String>>,
    /// There is no space for another segment: what is there is for settling (f40).
    full: AtomicBool,
    jobs: Mutex<Jobs>,
    wake: Condvar,
    done: Condvar,
}

#[derive(Debug)]
struct Jobs {
    /// Segments that are full and not synced yet.
    sealed: Vec<Arc<File>>,
    current: Arc<File>,
    /// The position at which `current` starts, and how much of it has its space.
    start: u64,
    reserved: u64,
    /// How far the writer was when it last told.
    position: u64,
    /// The directory has a name that a power failure would take (f43).
    is_dir_dirty: bool,
    /// The position that somebody waits for.
    wanted: u64,
    /// The next segment, with the space it begins with.
    next: Option<File>,
    stop: bool,
}

/// The thread.
#[derive(Debug)]
pub(super) struct Syncer {
    pub(super) progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// Begins to sync a journal whose newest segment is `current`; nothing is waited for.
    pub(super) fn start(
        dir: &Path,
        segment_size: u64,
        position: u64,
        current: Arc<File>,
    ) -> io::Result<Self> {
        let chunk = CHUNK.min(segment_size);
        let jobs = Jobs {
            sealed: Vec::new(),
            current,
            start: position,
            reserved: chunk,
            position,
            is_dir_dirty: false,
            wanted: 0,
            next: None,
            stop: false,
        };
        let progress = Arc::new(Progress {
            dir: dir.to_owned(),
            segment_size,
            chunk,
            written: AtomicU64::new(position),
            synced: AtomicU64::new(position),
            told: watch::Sender::new(()),
            failed: AtomicBool::new(false),
            failure: watch::Sender::new(None),
            full: AtomicBool::new(false),
            jobs: Mutex::new(jobs),
            wake: Condvar::new(),
            done: Condvar::new(),
        });
        // A killed process leaves it.
        match std::fs::remove_file(dir.join(NEXT)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let theirs = Arc::clone(&progress);
        let builder = std::thread::Builder::new().name("journal-sync".into());
        let thread = builder.spawn(move || theirs.run())?;
        Ok(Self { progress, thread: Some(thread) })
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.progress.jobs.lock().stop = true;
        self.progress.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            // It ends by its loop; a panic in it was reported by the hook.
            let _ended = thread.join();
        }
        let _unused = std::fs::remove_file(self.progress.dir.join(NEXT));
    }
}

impl Progress {
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Why it has failed, as soon as it has.
    pub(super) fn failure(&self) -> watch::Receiver<Option<String>> {
        self.failure.subscribe()
    }

    /// Closes the journal for good, and tells whoever waits. The first reason is the one.
    pub(super) fn fail(&self, what: &str, error: &io::Error) {
        self.failed.store(true, Ordering::Release);
        self.failure.send_if_modified(|known| {
            let is_first = known.is_none();
            known.get_or_insert_with(|| format!("{what}: {error}"));
            is_first
        });
        self.told.send_replace(());
        // Under the lock, so that nobody is between looking and waiting.
        let _jobs = self.jobs.lock();
        self.wake.notify_all();
        self.done.notify_all();
    }

    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    pub(super) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Asks for everything up to `position` to be synced.
    pub(super) fn want(&self, position: u64) {
        let mut jobs = self.jobs.lock();
        if position > jobs.wanted {
            jobs.wanted = position;
            self.wake.notify_all();
        }
    }

    /// How many bytes the writer may write before it calls [`Progress::went_on`] again.
    pub(super) fn stride(&self) -> u64 {
        self.chunk / 4
    }

    /// Has the thread look whether more space is needed.
    pub(super) fn went_on(&self, position: u64) {
        self.jobs.lock().position = position;
        self.wake.notify_all();
    }

    /// Waits until everything up to `position` is synced; false when it never will be.
    pub(super) async fn wait(&self, position: u64) -> bool {
        let mut told = self.told.subscribe();
        // Subscribed first: what is synced from here on wakes this.
        while self.synced() < position && !self.has_failed() {
            if told.changed().await.is_err() {
                break;
            }
        }
        self.synced() >= position
    }

    /// As [`Progress::wait`], on a thread that may wait.
    pub(super) fn wait_blocking(&self, position: u64) -> bool {
        self.want(position);
        let mut jobs = self.jobs.lock();
        while self.synced() < position && !self.has_failed() {
            self.done.wait(&mut jobs);
        }
        self.synced() >= position
    }

    /// The next segment's file in exchange for the one that is full, named `name`. `None` when
    /// it is not ready and the full one can still grow.
    pub(super) fn roll(
        &self,
        name: &Path,
        position: u64,
        can_wait: bool,
        begin: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<Option<Arc<File>>> {
        let mut jobs = self.jobs.lock();
        jobs.position = position;
        while !can_wait && jobs.next.is_none() && !self.is_full() && !self.has_failed() {
            self.wake.notify_all();
            self.done.wait(&mut jobs);
        }
        let Some(next) = jobs.next.take() else { return Ok(None) };
        begin(&next)?;
        std::fs::rename(self.dir.join(NEXT), name)?;
        let file = Arc::new(next);
        let full = std::mem::replace(&mut jobs.current, Arc::clone(&file));
        jobs.sealed.push(full);
        jobs.start = position;
        jobs.reserved = self.chunk;
        jobs.is_dir_dirty = true;
        self.wake.notify_all();
        Ok(Some(file))
    }

    fn run(&self) {
        let _whatever_happens = FailOnPanic(self);
        if let Err(error) = self.serve() {
            // Never tried again: the kernel may have dropped what it could not write (f41).
            self.fail("a segment cannot be synced, or made", &error);
        }
    }

    fn serve(&self) -> io::Result<()> {
        loop {
            let mut jobs = self.jobs.lock();
            while !jobs.stop && !self.has_failed() && !self.has_work(&jobs) {
                if !self.is_full() {
                    self.wake.wait(&mut jobs);
                } else if self.wake.wait_for(&mut jobs, ASK_AGAIN).timed_out() {
                    break;
                }
            }
            if jobs.stop || self.has_failed() {
                return Ok(());
            }
            // Read under the lock: whatever is written up to here is in these files.
            let position = self.written.load(Ordering::Acquire);
            if jobs.wanted > self.synced() || !jobs.sealed.is_empty() {
                let sealed = std::mem::take(&mut jobs.sealed);
                let is_dir_dirty = std::mem::take(&mut jobs.is_dir_dirty);
                let current = Arc::clone(&jobs.current);
                drop(jobs);
                for file in sealed {
                    file.sync_data()?;
                }
                current.sync_data()?;
                if is_dir_dirty {
                    File::open(&self.dir)?.sync_all()?;
                }
                self.synced.store(position, Ordering::Release);
                self.told.send_replace(());
                jobs = self.jobs.lock();
            }
            if self.needs_space(&jobs) || self.needs_next(&jobs) || self.is_full() {
                let had_space = !self.is_full();
                drop(jobs);
                let made = self.make_space();
                self.note_space(had_space, made)?;
                jobs = self.jobs.lock();
            }
            // Under the lock, so that nobody is between looking and waiting.
            self.done.notify_all();
            drop(jobs);
        }
    }

    fn has_work(&self, jobs: &Jobs) -> bool {
        let needs = self.needs_space(jobs) || self.needs_next(jobs);
        !jobs.sealed.is_empty() || jobs.wanted > self.synced() || (needs && !self.is_full())
    }

    fn needs_space(&self, jobs: &Jobs) -> bool {
        let is_near = jobs.position - jobs.start + self.chunk / 2 >= jobs.reserved;
        is_near && jobs.reserved < self.segment_size
    }

    fn needs_next(&self, jobs: &Jobs) -> bool {
        let length = jobs.position - jobs.start;
        jobs.next.is_none() && length + self.chunk / 2 >= self.segment_size
    }

    fn make_space(&self) -> io::Result<()> {
        let mut jobs = self.jobs.lock();
        if self.needs_space(&jobs) {
            let (current, from) = (Arc::clone(&jobs.current), jobs.reserved);
            drop(jobs);
            reserve(&current, from, self.chunk)?;
            jobs = self.jobs.lock();
            if Arc::ptr_eq(&jobs.current, &current) {
                jobs.reserved = from + self.chunk;
            }
        }
        if self.needs_next(&jobs) {
            drop(jobs);
            let path = self.dir.join(NEXT);
            let made = create(&path, self.chunk);
            if made.is_err() {
                let _partial = std::fs::remove_file(&path);
            }
            let made = made?;
            self.jobs.lock().next = Some(made);
        }
        Ok(())
    }

    /// Notes whether there is space: without it only open charges settle.
    fn note_space(&self, had_space: bool, made: io::Result<()>) -> io::Result<()> {
        match made {
            Err(error) if !is_no_space(&error) => return Err(error),
            Err(error) if had_space => {
                tracing::error!(%error, "no space for the journal: only open charges settle");
                self.full.store(true, Ordering::Relaxed);
            }
            Ok(()) if !had_space => {
                tracing::warn!("there is space for the journal again: charges are admitted");
                self.full.store(false, Ordering::Relaxed);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Nobody may wait for a thread that a defect has ended.
struct FailOnPanic<'a>(&'a Progress);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = io::Error::other("a defect; the log has the panic");
            self.0.fail("the thread that syncs segments has ended", &error);
        }
    }
}

/// Creates a segment's file with the space it begins with.
pub(super) fn create(path: &Path, segment_size: u64) -> io::Result<File> {
    let file = OpenOptions::new().append(true).create_new(true).open(path)?;
    reserve(&file, 0, CHUNK.min(segment_size))?;
    Ok(file)
}

/// Reserves space without changing the file's length: what is written there is never refused for
/// want of it.
fn reserve(file: &File, from: u64, length: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, from, length) {
        // Not every file system can.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// True when a disk or a quota is full.
fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn f41_a_panic_of_the_thread_that_syncs_fails_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let file = Arc::new(create(&dir.path().join("segment"), 64).unwrap());
        let syncer = Syncer::start(dir.path(), 64, 100, file).unwrap();
        let mut failure = syncer.progress.failure();
        let waiting = Arc::clone(&syncer.progress);
        let blocked = std::thread::spawn(move || waiting.wait_blocking(200));
        // Its arithmetic is checked, and nothing is written before the segment's start.
        syncer.progress.went_on(50);
        let told = failure.wait_for(Option::is_some);
        let told = tokio::time::timeout(Duration::from_secs(20), told).await.unwrap();
        assert!(told.unwrap().as_ref().unwrap().contains("has ended"));
        assert!(!syncer.progress.wait(200).await);
        assert!(!blocked.join().unwrap());
    }
}
