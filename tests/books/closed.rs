//! Cycles that are long over: their accounts go, and nothing ever opens them again. On every engine.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use tollgate::books::embedded::{Engine as InFiles, Options};
use tollgate::books::{Adjustment, Ask, Books, BooksError, Posted, Resolution, Resolved, embedded};
use tollgate::cli::ledger::verify;
use tollgate::core::account::{Account, AccountKind, Balance};
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::core::cycle::Label;

use crate::engine::{Engine, NOW, account, ask, done, id, run, take, temporary};
use crate::engine_redis::OnRedis;

pub fn at_day(day: u64) -> Timestamp {
    NOW + SignedDuration::from_hours(24 * day as i64)
}

/// Books with cycles.
trait Cycles: Sized + Sync {
    type Session: Books + Clone;

    /// How often races are tried.
    const ROUNDS: u64;

    fn begin() -> Self;

    fn session(&self) -> Self::Session;

    /// With a charge of each of these days.
    fn spent(self, days: impl Iterator<Item = u64>) -> Self {
        let session = self.session();
        days.for_each(|day| spend(&session, day));
        drop(session);
        self
    }

    /// Another process has them since.
    fn again(self, day: u64) -> Self;

    /// They see of what time their records are.
    fn look(&self);

    /// How many accounts go.
    fn close(&self, day: u64) -> usize;

    /// How many there are, in whatever keeps them.
    fn accounts(&self) -> usize;

    /// Nothing in the records contradicts another.
    fn verify(&self);
}

/// The embedded books, in small files.
struct OnFiles {
    engine: InFiles,
    dir: TempDir,
}

impl Cycles for OnFiles {
    type Session = embedded::Session;

    const ROUNDS: u64 = 20;

    fn begin() -> Self {
        let dir = temporary();
        Self { engine: open(dir.path(), 0), dir }
    }

    fn session(&self) -> Self::Session {
        self.engine.session()
    }

    fn again(self, day: u64) -> Self {
        let Self { engine, dir } = self;
        drop(engine);
        Self { engine: open(dir.path(), day), dir }
    }

    fn look(&self) {
        assert!(self.engine.snapshot(NOW).unwrap());
    }

    fn close(&self, day: u64) -> usize {
        self.engine.close_cycles(at_day(day)).unwrap()
    }

    fn accounts(&self) -> usize {
        accounts(&self.engine)
    }

    fn verify(&self) {
        let verified = verify(self.dir.path()).unwrap();
        assert!(verified.findings().is_empty(), "{:?}", verified.findings());
    }
}

impl Cycles for OnRedis {
    type Session = <Self as Engine>::Session;

    const ROUNDS: u64 = 2;

    fn begin() -> Self {
        Self::start()
    }

    fn session(&self) -> Self::Session {
        Engine::session(self)
    }

    fn again(self, day: u64) -> Self {
        self.restart_at(at_day(day))
    }

    fn look(&self) {}

    fn close(&self, day: u64) -> usize {
        self.close_cycles(at_day(day))
    }

    fn accounts(&self) -> usize {
        self.stored_accounts()
    }

    fn verify(&self) {
        self.all();
        assert_eq!(self.findings(), []);
    }
}

/// A licence's account in the cycle of a day: a new one every 30 days.
pub fn of_day(day: u64) -> Account<'static> {
    let mut account = account("a", 1_000, 1);
    account.key.period = Label::of_day((day / 30 * 30) as i32);
    account.name.period = account.key.period;
    account
}

pub fn hold(books: &impl Books, charge: u64, day: u64, account: &Account<'_>) -> Posted {
    let post = take(1, &[0]);
    let asked = Ask { now: at_day(day), ..ask(charge, std::slice::from_ref(account), &post) };
    run(books.hold(&asked)).unwrap()
}

pub fn capture(books: &impl Books, charge: u64, day: u64) {
    let memo = OutcomeMemo::default();
    let keep = [1];
    let state = State::Captured;
    let resolution = Resolution::plain(state, &keep, at_day(day), &memo);
    assert!(matches!(run(books.resolve(id(charge), &resolution)).unwrap(), Resolved::Done(..)));
}

pub fn spend(books: &impl Books, day: u64) {
    assert!(done(hold(books, day, day, &of_day(day))).is_some());
    capture(books, day, day);
}

fn open(dir: &Path, day: u64) -> InFiles {
    let options = Options { segment_size: 1 << 12, ..Options::default() };
    InFiles::open_with(dir, at_day(day), options).unwrap()
}

fn accounts(engine: &InFiles) -> usize {
    let mut count = 0;
    engine.for_each_balance(|_, _, _| count += 1);
    count
}

#[test]
fn d06_accounts_of_cycles_that_are_long_over_leave_memory_and_snapshots() {
    let dir = temporary();
    let mut sizes = Vec::new();
    for year in 0..4 {
        let engine = open(dir.path(), year * 360);
        let session = engine.session();
        for day in year * 360..(year + 1) * 360 {
            spend(&session, day);
        }
        drop((session, engine));
        // A start reads the records, and with them what time they are of.
        let engine = open(dir.path(), (year + 1) * 360);
        engine.close_cycles(at_day((year + 1) * 360)).unwrap();
        sizes.push(accounts(&engine));
        assert!(engine.snapshot(NOW).unwrap());
        drop(engine);
    }
    // The last hundred days touch five cycles at most.
    assert!(sizes.iter().all(|&size| size <= 5), "{sizes:?}");
    // The record of the last closing is behind the last snapshot.
    assert!(open(dir.path(), 1_440).snapshot(NOW).unwrap());
    let verified = verify(dir.path()).unwrap();
    assert!(verified.findings().is_empty(), "{:?}", verified.findings());
    let (_, newest) = tollgate::books::snapshot::list(dir.path()).unwrap().pop().unwrap();
    let fold = tollgate::books::snapshot::read(&newest).unwrap();
    assert!(fold.accounts.len() <= 5, "{}", fold.accounts.len());
    assert!(fold.closed > of_day(1_200).key.period && fold.closed < of_day(1_400).key.period);
}

/// A year with it leaves no more than a hundred days of it.
fn shrinks<E: Cycles>() {
    let mut books = E::begin();
    for year in 0..2 {
        books = books.spent(year * 360..(year + 1) * 360).again((year + 1) * 360);
        assert!(books.close((year + 1) * 360) >= 7);
        assert!(books.accounts() <= 5, "{}", books.accounts());
        assert_eq!(books.close((year + 1) * 360), 0);
    }
    books.verify();
}

#[test]
fn d06_accounts_of_cycles_that_are_long_over_are_gone() {
    shrinks::<OnFiles>();
    shrinks::<OnRedis>();
}

fn stays_closed<E: Cycles>() {
    let books = E::begin().spent(0..200).again(200);
    assert!(books.close(200) > 0);
    let see = |books: &E| {
        let (session, old, current) = (books.session(), of_day(0), of_day(199));
        assert!(session.is_closed("acme", &old.key) && !session.is_closed("acme", &current.key));
        let Posted::Short(view) = hold(&session, 1_000, 0, &old) else { panic!("it was opened") };
        assert_eq!(view.get(0), Some(Balance::default()));
        let view = run(session.balances(&[old])).unwrap();
        assert_eq!(view.get(0), Some(Balance::default()));
        for delta in [1, -1] {
            let adjustment =
                Adjustment { key: None, account: &of_day(0), delta, now: at_day(200), memo: b"" };
            assert_eq!(run(session.adjust(&adjustment)), Err(BooksError::Closed));
        }
        // Nothing is forced on it either.
        let mut forced = take(1, &[0]);
        forced.sources[0].forced = true;
        let accounts = [of_day(0)];
        let asked = Ask { now: at_day(200), ..ask(1_001, &accounts, &forced) };
        assert_eq!(run(session.hold(&asked)).err(), Some(BooksError::Range));
        // What somebody owes for that cycle can still be written down, and forgiven.
        let mut owed = of_day(0);
        (owed.key.kind, owed.name.kind) = (AccountKind::Overdraft, AccountKind::Overdraft);
        let adjustment =
            Adjustment { key: None, account: &owed, delta: 1, now: at_day(200), memo: b"" };
        assert!(run(session.adjust(&adjustment)).is_ok());
    };
    see(&books);
    let books = books.again(200);
    see(&books);
    books.verify();
}

#[test]
fn f46_a_closed_cycle_is_empty_for_ever_also_after_a_restart() {
    stays_closed::<OnFiles>();
    stays_closed::<OnRedis>();
}

fn a_jump<E: Cycles>() {
    let books = E::begin().spent((0..99).chain([100_000])).again(100_000);
    assert_eq!(books.close(100_000), 0);
    let session = books.session();
    assert!(!session.is_closed("acme", &of_day(0).key), "99 days and a jump are no 100 days");
    // A hold of long ago is open while a hundred days pass.
    assert!(done(hold(&session, 5_000, 40, &of_day(40))).is_some());
    (200..400).for_each(|day| spend(&session, day));
    books.look();
    books.close(400);
    assert!(!session.is_closed("acme", &of_day(40).key));
    capture(&session, 5_000, 400);
    books.close(400);
    assert!(session.is_closed("acme", &of_day(40).key));
    books.verify();
}

#[test]
fn f47_a_jump_ahead_closes_nothing_and_an_open_hold_keeps_its_cycle() {
    a_jump::<OnFiles>();
    a_jump::<OnRedis>();
}

/// Callers whose clock is months behind, while their cycle is closed.
fn race<E: Cycles>() {
    for round in 0..E::ROUNDS {
        let books = E::begin().spent(0..200).again(200);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..2_u64 {
                let (books, stop) = (&books, &stop);
                scope.spawn(move || {
                    let session = books.session();
                    let mut charge = 10_000 + thread * 1_000_000;
                    while !stop.load(Ordering::Relaxed) {
                        charge += 1;
                        if done(hold(&session, charge, 0, &of_day(0))).is_some() {
                            capture(&session, charge, 0);
                        }
                        let adjustment = Adjustment {
                            key: None,
                            account: &of_day(0),
                            delta: 1,
                            now: at_day(0),
                            memo: b"",
                        };
                        let adjusted = run(session.adjust(&adjustment));
                        assert!(adjusted.is_ok() || adjusted == Err(BooksError::Closed));
                    }
                });
            }
            for _ in 0..200 + round {
                books.close(200);
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
        });
        // The records add up, and nobody opened what was closed.
        let books = books.again(200);
        books.verify();
    }
}

#[test]
fn f22_posts_that_race_the_closing_of_their_cycle_are_whole_or_nothing() {
    race::<OnFiles>();
    race::<OnRedis>();
}

/// Its clock is right and its cycle is not: a caller that slept for months.
fn is_held<E: Cycles>() {
    let books = E::begin().spent(0..200).again(200);
    let session = books.session();
    assert!(done(hold(&session, 5_000, 200, &of_day(0))).is_some());
    assert_eq!(books.close(200), 0);
    assert!(!session.is_closed("acme", &of_day(0).key));
    let before = books.accounts();
    capture(&session, 5_000, 200);
    let gone = books.close(200);
    assert!(session.is_closed("acme", &of_day(0).key));
    assert_eq!((gone > 0, books.accounts()), (true, before - gone));
    books.verify();
}

#[test]
fn f47_no_cycle_is_closed_in_which_something_is_held_however_late_it_was() {
    is_held::<OnFiles>();
    is_held::<OnRedis>();
}

/// What settles an open hold may take from its cycle where it holds nothing, and only from that.
fn keeps_its_own<E: Cycles>() {
    let books = E::begin().spent(0..400).again(400);
    let session = books.session();
    let mut owed = of_day(130);
    (owed.key.kind, owed.name.kind) = (AccountKind::Overdraft, AccountKind::Overdraft);
    assert!(done(hold(&session, 5_000, 130, &owed)).is_some());
    books.close(400);
    assert!(session.is_closed("acme", &of_day(30).key));
    assert!(!session.is_closed("acme", &of_day(90).key));
    assert!(done(hold(&session, 5_001, 400, &of_day(130))).is_some());
    books.verify();
}

#[test]
fn f47_an_open_hold_keeps_the_accounts_of_its_cycle_and_no_older_ones() {
    keeps_its_own::<OnFiles>();
    keeps_its_own::<OnRedis>();
}
