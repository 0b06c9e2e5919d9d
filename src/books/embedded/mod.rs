//! The embedded engine: balances in memory, every change in the journal. One process per data
//! dir; a killed process loses nothing that it acknowledged.

mod once;
mod open;
mod session;
mod table;

pub use session::Session;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};

use self::once::OnceKeys;
use self::open::{Lasting, OpenHold};
use self::session::Inner;
use self::table::{Entry, Place, Places, State, Table};
use super::fold::{DAY, Fold, FoldHold, FoldOnce};
use super::journal::{Journal, SEGMENT_SIZE};
use super::prune::{self, Ages};
use super::recover::{RecoverError, recover};
use super::{
    BooksError, Durability, KnownCharge, Once, OpenCharge, Resolution, forgotten_before, snapshot,
};
use crate::core::account::{Account, AccountKey, Balance, Grant, Legs, Slot, Taken};
use crate::core::charge::State as ChargeState;
use crate::core::cycle::Label;
use crate::core::ids::ChargeId;

/// Why the embedded books cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the data dir (f44).
    #[error("{0} is in use by another process; one gateway per data dir")]
    Locked(PathBuf),
    /// The file system.
    #[error("{path}: {error}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What it said.
        error: std::io::Error,
    },
    /// The journal.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The holds of the previous process could not be resolved.
    #[error(transparent)]
    Books(#[from] BooksError),
}

/// The embedded books of a data dir, open.
pub struct Engine {
    shared: Arc<Shared>,
    /// Resolves what the previous process left open, and serves whoever is no worker.
    session: Session,
    /// What recovery found.
    recovery: Recovery,
    /// Serialises whatever folds or deletes files.
    files: Mutex<Files>,
}

/// What is known of the files.
#[derive(Debug)]
struct Files {
    /// The position of the last snapshot.
    snapshot: u64,
    /// Up to which label cycles are long over, by the records in it.
    closable: Label,
    ages: Ages,
}

/// What recovery found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Records read behind the newest snapshot.
    pub records: u64,
    /// Accounts known.
    pub accounts: usize,
    /// Holds of the previous process that were voided.
    pub voided: usize,
    /// Holds of the previous process that were captured, as their routes said.
    pub captured: usize,
    /// Holds of the previous process that outlive it.
    pub lasting: usize,
    /// Bytes that a torn write had left at the journal's end, and that were cut (f38).
    pub torn_bytes: u64,
    /// The journal's position behind the last record of the previous process.
    pub position: u64,
}

/// What the sessions of an engine share.
pub(super) struct Shared {
    table: Table,
    journal: Journal,
    once: OnceKeys,
    /// Grows by one for each session; written only when a session is made.
    sessions: RwLock<Vec<Arc<Inner>>>,
    /// Locked while anybody can still write, which a session can that outlives the engine; the
    /// lock goes with the file.
    _lock: File,
}

impl Shared {
    /// Refuses whatever comes after a write error.
    fn check(&self) -> Result<(), BooksError> {
        if self.journal.has_failed() {
            return Err(BooksError::Unavailable("the journal failed; restart to recover".into()));
        }
        Ok(())
    }

    /// Refuses what would take more while there is no space for it (f40). What is open settles.
    fn check_space(&self) -> Result<(), BooksError> {
        self.check()?;
        if self.journal.is_full() {
            return Err(BooksError::Unavailable("no space left for the journal".into()));
        }
        Ok(())
    }

    /// Waits until all up to a position survives what the durability says.
    async fn survives(&self, position: u64) -> Result<(), BooksError> {
        let survives = self.journal.survives(position).await;
        survives.map_err(|error| BooksError::Unavailable(error.to_string()))
    }

    fn sessions(&self) -> Vec<Session> {
        self.sessions.read().iter().cloned().map(Session::of).collect()
    }

    fn find_open(&self, charge: ChargeId) -> Option<Arc<OpenHold>> {
        self.sessions.read().iter().find_map(|session| session.find(&charge.0))
    }
}

/// How the books are kept.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes after which the journal goes on in another file.
    pub segment_size: u64,
    /// What an acknowledged change survives.
    pub durability: Durability,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_size: SEGMENT_SIZE, durability: Durability::Process }
    }
}

/// Locks a file that only one process may have. Tries for a moment: a program that is being started
/// by the one that has just ended keeps the lock until it begins.
///
/// # Errors
/// When another process has it.
pub fn lock_alone(file: &File) -> Result<(), TryLockError> {
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if began.elapsed() < LOCK_PATIENCE => {
                #[expect(clippy::disallowed_methods, reason = "at the start, before any worker")]
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return done,
        }
    }
}

/// How long it is tried.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

impl Engine {
    /// Opens the books in `dir`, recovers them, and resolves the holds of the previous process
    /// (D36).
    ///
    /// # Errors
    /// [`OpenError`] says what to do about it; the journal is untouched then.
    pub fn open(dir: &Path, now: Timestamp) -> Result<Self, OpenError> {
        Self::open_with(dir, now, Options::default())
    }

    /// As [`Engine::open`], with other options.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_with(dir: &Path, now: Timestamp, options: Options) -> Result<Self, OpenError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| OpenError::Io { path, error }
        };
        std::fs::create_dir_all(dir).map_err(io(dir))?;
        let lock_path = dir.join("lock");
        let lock = File::create(&lock_path).map_err(io(&lock_path))?;
        lock_alone(&lock).map_err(|error| match error {
            TryLockError::WouldBlock => OpenError::Locked(dir.to_owned()),
            TryLockError::Error(error) => OpenError::Io { path: lock_path.clone(), error },
        })?;
        let mut recovered = recover(dir, None)?;
        recovered.fold.forget_once(forgotten_before(now.as_microsecond()));
        if let Some(torn) = &recovered.torn {
            tracing::warn!(
                file = %torn.place.path.display(),
                byte = torn.place.offset,
                position = torn.place.position,
                bytes = torn.bytes,
                why = torn.what,
                "the journal's torn tail is cut: nothing in it was acknowledged to survive"
            );
        }
        let Options { segment_size, durability } = options;
        let journal = Journal::open(dir, recovered.position, segment_size, durability);
        let journal = journal.map_err(io(dir))?;
        let closable = recovered.fold.closable();
        let Fold { accounts, holds, once, closed, .. } = recovered.fold;
        let table = Table::new(closed);
        for (key, account) in accounts {
            let balance = account.balance;
            let state = State { balance, version: account.version, unwritten: false };
            table.insert(Entry { key, name: account.name, state: Mutex::new(state) });
        }
        let sessions = RwLock::default();
        let shared = Shared { table, journal, once: OnceKeys::default(), sessions, _lock: lock };
        for ((scope, key), FoldOnce { charge, request, at, captured }) in once {
            let charge = KnownCharge { charge: ChargeId(charge), request, captured };
            shared.once.adopt(&Once { scope, key, request }, charge, at);
        }
        let shared = Arc::new(shared);
        let session = Session::register(&shared);
        let recovery = Recovery {
            records: recovered.records,
            accounts: shared.table.len(),
            torn_bytes: recovered.torn.map_or(0, |torn| torn.bytes),
            position: recovered.position,
            ..Recovery::default()
        };
        let snapshot = snapshot::list(dir).map_err(io(dir))?.last().map_or(0, |(at, _)| *at);
        let files = Mutex::new(Files { snapshot, closable, ages: Ages::new() });
        let mut engine = Self { shared, session, recovery, files };
        engine.resolve_left_open(holds, now)?;
        Ok(engine)
    }

    /// Resolves the holds of the previous process as their records say, but those that outlive
    /// it. Their records go through the journal like any other, so a crash in the middle leaves
    /// the rest for the next start.
    fn resolve_left_open(
        &mut self,
        holds: std::collections::HashMap<[u8; 16], FoldHold>,
        now: Timestamp,
    ) -> Result<(), BooksError> {
        for (charge, hold) in holds {
            let open = self.reopen(charge, hold);
            let (state, keep, memo) = open.in_doubt();
            let lasts = open.expires().is_some();
            self.session.adopt(open);
            if lasts {
                self.recovery.lasting += 1;
                continue;
            }
            match state {
                ChargeState::Captured => self.recovery.captured += 1,
                _ => self.recovery.voided += 1,
            }
            let resolution = Resolution::plain(state, &keep, now, &memo);
            self.session.resolve_left_open(ChargeId(charge), &resolution)?;
        }
        self.session.flush()
    }

    /// Ends the holds whose time is over, as their records say (D34, D36), a bounded number at
    /// once, and forgets keys that are old. Returns how each hold ended that did.
    ///
    /// # Errors
    /// [`BooksError::Unavailable`] when it cannot be recorded.
    pub fn expire(&self, now: Timestamp) -> Result<Vec<(OpenCharge, ChargeState)>, BooksError> {
        self.shared.once.sweep(now.as_microsecond());
        let mut ended = Vec::new();
        for session in self.shared.sessions() {
            ended.append(&mut session.expire(now)?);
        }
        Ok(ended)
    }

    /// A recovered hold in the shape of a live one.
    fn reopen(&self, charge: [u8; 16], hold: FoldHold) -> OpenHold {
        let mut places = Places::new();
        let mut legs = Legs::new();
        for leg in &hold.legs {
            legs.push(Taken { slot: places.len() as Slot, kind: leg.kind, amount: leg.amount });
            // Its accounts have the grant that their records say.
            places.push(Place { entry: self.shared.table.get(&leg.key), grant: Grant::default() });
        }
        let FoldHold { at, in_doubt, memo, expires, once, known, note, .. } = hold;
        let plain = expires.is_none() && once.is_none() && known.is_none() && note.is_empty();
        let lasting = (!plain).then(|| Box::new(Lasting { expires, once, known, note }));
        OpenHold { charge, at, places, unopened: Vec::new(), legs, memo, in_doubt, lasting }
    }

    /// A new session. Each worker has one.
    pub fn session(&self) -> Session {
        Session::register(&self.shared)
    }

    /// What recovery found and did.
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// How many holds are open, and since when the oldest is.
    pub fn open_holds(&self) -> (usize, Option<Timestamp>) {
        let sessions = self.shared.sessions.read();
        let (count, oldest) = sessions
            .iter()
            .map(|session| session.open_holds())
            .fold((0, None::<i64>), |(count, oldest), (more, at)| {
                (count + more, oldest.into_iter().chain(at).min())
            });
        (count, oldest.map(crate::core::record::instant))
    }

    /// Every open charge.
    pub fn list_open(&self) -> Vec<OpenCharge> {
        let sessions = self.shared.sessions.read();
        let holds = sessions.iter().flat_map(|session| session.list_open());
        holds.map(|hold| hold.describe()).collect()
    }

    /// Every account's balance as it is in memory, for the self-check: they must equal what the
    /// records add up to.
    pub fn for_each_balance(&self, mut see: impl FnMut(AccountKey, &str, Balance)) {
        self.shared.table.for_each(|entry| {
            let balance = entry.state.lock().balance;
            see(entry.key, &entry.name, balance);
        });
    }

    /// The balance of an account as a post would find it now.
    pub fn balance(&self, account: &Account<'_>) -> Balance {
        self.shared.table.balance(&account.key, &account.grant)
    }

    /// How many records this process has written.
    pub fn records_written(&self) -> u64 {
        self.shared.journal.records_written()
    }

    /// The position up to which records are written.
    pub fn written(&self) -> u64 {
        self.shared.journal.written()
    }

    /// True after a write error: nothing is taken any more, and the process has to be restarted.
    pub fn has_failed(&self) -> bool {
        self.shared.journal.has_failed()
    }

    /// Why the books have failed, if they have.
    pub fn failure(&self) -> Option<String> {
        self.shared.journal.failure().borrow().clone()
    }

    /// Waits until the books fail, and says why; most never do.
    pub fn failed(&self) -> impl Future<Output = String> + Send + use<> {
        let mut failure = self.shared.journal.failure();
        async move {
            let why = failure.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
            match why {
                Some(why) => why,
                // The books are gone, and can fail no more.
                None => std::future::pending().await,
            }
        }
    }

    /// Where the journal is.
    pub fn dir(&self) -> &Path {
        self.shared.journal.dir()
    }

    /// Writes a snapshot of all sealed segments, if there are any behind the last one. Takes
    /// long; for a thread of its own.
    ///
    /// # Errors
    /// The journal is read again for it, so damage is found here too.
    pub fn snapshot(&self, now: Timestamp) -> Result<bool, RecoverError> {
        let mut files = self.files.lock();
        let sealed = self.shared.journal.sealed();
        // What a sync failed on may be read back and still not be on the disk (f41).
        if sealed <= files.snapshot || self.has_failed() {
            return Ok(false);
        }
        let mut recovered = recover(self.dir(), Some(sealed))?;
        recovered.fold.forget_once(forgotten_before(now.as_microsecond()));
        snapshot::write(self.dir(), sealed, &recovered.fold)?;
        files.snapshot = sealed;
        files.closable = recovered.fold.closable();
        Ok(true)
    }

    /// Closes the cycles that are long over by the time of what is recorded (D6), and forgets
    /// their accounts. Nothing is ever taken from them again, whatever the clock says. Returns how
    /// many accounts went.
    ///
    /// # Errors
    /// [`BooksError::Unavailable`] when it cannot be recorded.
    pub fn close_cycles(&self, now: Timestamp) -> Result<usize, BooksError> {
        let files = self.files.lock();
        let table = &self.shared.table;
        let oldest = self.shared.sessions().iter().filter_map(|s| s.inner().open_holds().1).min();
        // What an open hold may still take from is of its own cycle (D7), which no more than 46
        // days before it began.
        let open = oldest.map_or(Label::MAX, |at| Label::of_day((at / DAY) as i32 - 47));
        let below = files.closable.min(open);
        if below <= table.closed() || !table.close(below) {
            return Ok(0);
        }
        // Whoever did not see it has queued what it recorded.
        for session in self.shared.sessions() {
            session.flush()?;
        }
        self.session.close(now, below)?;
        Ok(table.forget_closed())
    }

    /// Up to which position segments could be deleted whose records are all older than `before`,
    /// if the archive has them.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub fn prunable(&self, before: Timestamp) -> Result<Option<u64>, RecoverError> {
        let mut files = self.files.lock();
        let found = prune::candidates(self.dir(), before, &mut files.ages)?;
        Ok(found.last().map(|(_, end)| *end))
    }

    /// Deletes segments whose records are all older than `before`, as far as a snapshot stands
    /// behind them and the archive has them for good, which is up to `archived`. Returns how many
    /// went.
    ///
    /// # Errors
    /// When something does not read back: nothing is deleted then.
    pub fn prune(&self, before: Timestamp, archived: u64) -> Result<usize, RecoverError> {
        let mut files = self.files.lock();
        let found = prune::candidates(self.dir(), before, &mut files.ages)?;
        Ok(prune::delete(self.dir(), &found, archived)?)
    }

    /// Writes and syncs all that waits, at the end of a process.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn close(&self) -> Result<(), BooksError> {
        for session in self.shared.sessions() {
            session.flush()?;
        }
        let synced = self.shared.journal.sync();
        synced.map_err(|error| BooksError::Unavailable(error.to_string()))
    }
}

/// What the books hold is in a circle of sessions and what they share, and is too much to print.
impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("dir", &self.dir())
            .field("accounts", &self.shared.table.len())
            .field("sessions", &self.shared.sessions.read().len())
            .field("records_written", &self.records_written())
            .field("written", &self.written())
            .field("failure", &self.failure())
            .finish_non_exhaustive()
    }
}

impl Drop for Engine {
    /// Sessions and what they share hold each other; without this nothing of it would ever be
    /// freed, nor the lock.
    fn drop(&mut self) {
        self.shared.sessions.write().clear();
    }
}

impl Session {
    fn register(shared: &Arc<Shared>) -> Self {
        let session = Self::new(Arc::clone(shared));
        shared.sessions.write().push(Arc::clone(session.inner()));
        session
    }
}

#[cfg(test)]
mod tests;
