//! A Redis that comes back with less than it acknowledged (f27, f34): every gateway does again what was
//! acknowledged to it, and then the books are what they were, whoever comes first, whoever was
//! restarted, and whoever has done what to whose hold.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::redis::Commands;
use jiff::Timestamp;
use tempfile::TempDir;
use tollgate::books::redis::{self, Options, Session};
use tollgate::books::{
    Adjustment, Amended, Amendment, Ask, Books, BooksError, Key, OpenCharge, Posted, Resolved,
};
use tollgate::core::account::{Account, Balance};
use tollgate::core::charge::{OutcomeMemo, State};

use crate::engine::{
    NOW, account, amendment, ask, balance, done, id, key, name, resolution, take, under,
};
use crate::engine_redis::{EventLoop, folded, options};
use crate::redis_server::RedisServer;

pub const NAMES: [&str; 3] = ["a", "b", "c"];

/// A gateway, as long as it runs.
pub struct Running {
    pub engine: Arc<redis::Engine>,
    session: Session,
    pub runtime: EventLoop,
}

pub struct Gateway {
    name: String,
    pub journal: TempDir,
    pub running: Option<Running>,
}

pub struct Several {
    pub server: RedisServer,
    pub gateways: Vec<Gateway>,
    patience: Duration,
    pub settle_timeout: Duration,
    pub deadline: Duration,
    /// What time it is for a gateway that is started.
    pub now: Timestamp,
}

impl Several {
    pub fn start(count: usize, patience: Duration) -> Self {
        let server = RedisServer::start();
        let gateway = |at| Gateway {
            name: format!("gateway-{at}"),
            journal: tempfile::tempdir().unwrap(),
            running: None,
        };
        let (settle_timeout, deadline) = (Duration::from_secs(60), Duration::from_secs(60));
        let gateways = (0..count).map(gateway).collect();
        let mut books = Self { server, gateways, patience, settle_timeout, deadline, now: NOW };
        (0..count).for_each(|at| books.open(at));
        books
    }

    fn options(&self, at: usize) -> Options {
        let gateway = &self.gateways[at];
        Options {
            gateway: gateway.name.clone(),
            journal: Some(PathBuf::from(gateway.journal.path())),
            rejoin_timeout: self.patience,
            owner_timeout: Duration::from_secs(600),
            deadline: self.deadline,
            settle_timeout: self.settle_timeout,
            ..options(&self.server)
        }
    }

    pub fn open(&mut self, at: usize) {
        let runtime = EventLoop::start();
        let opening = redis::Engine::open(self.options(at), runtime.handle.clone(), self.now);
        let engine = runtime.handle.block_on(opening).unwrap();
        let session = engine.session();
        self.gateways[at].running = Some(Running { engine: Arc::new(engine), session, runtime });
    }

    pub fn run<T>(&self, at: usize, what: impl AsyncFnOnce(&Session) -> T) -> T {
        let running = self.gateways[at].running.as_ref().unwrap();
        running.runtime.handle.block_on(what(&running.session))
    }

    pub fn hold(&self, at: usize, asked: &Ask<'_>) -> Result<Posted, BooksError> {
        self.run(at, async |session| session.hold(asked).await)
    }

    pub fn capture(&self, at: usize, charge: u64, keep: u64) -> Resolved {
        let memo = OutcomeMemo::default();
        let keep = [keep];
        self.run(at, async |session| {
            session.resolve(id(charge), &resolution(State::Captured, &keep, &memo)).await.unwrap()
        })
    }

    pub fn connection(&self) -> ::redis::Connection {
        ::redis::Client::open(self.server.url()).unwrap().get_connection().unwrap()
    }

    /// What is to be found when the server is started again.
    pub fn save(&self) {
        let saved: String = ::redis::cmd("SAVE").query(&mut self.connection()).unwrap();
        assert_eq!(saved, "OK");
    }

    pub fn crash(&mut self) {
        self.server.kill();
        self.server.start_again();
    }

    pub fn balances(&self, at: usize) -> BTreeMap<String, Balance> {
        let Running { engine, runtime, .. } = self.gateways[at].running.as_ref().unwrap();
        let all = runtime.handle.block_on(engine.balances()).unwrap();
        all.into_iter().map(|(_, name, balance)| (name, balance)).collect()
    }

    pub fn open_charge(&self, at: usize, charge: u64) -> Option<OpenCharge> {
        self.run(at, async |session| session.open_charge(id(charge)).await.unwrap())
    }

    /// Every gateway has entered.
    pub fn all_enter(&self) {
        let accounts: [Account<'_>; 1] = [account("a", 1000, 1)];
        for at in 0..self.gateways.len() {
            if self.gateways[at].running.is_some() {
                self.run(at, async |session| session.balances(&accounts).await.unwrap());
                // Its own session too, which resolves what is left open.
                let Running { engine, runtime, .. } = self.gateways[at].running.as_ref().unwrap();
                assert!(runtime.handle.block_on(engine.expire(NOW)).whole().unwrap().is_empty());
            }
        }
    }

    /// How many batches a gateway has done again.
    fn redone(&self, at: usize) -> u64 {
        self.gateways[at].running.as_ref().unwrap().engine.seen().redone()
    }

    pub fn is_as_recorded(&self, at: usize) {
        let Running { engine, runtime, .. } = self.gateways[at].running.as_ref().unwrap();
        assert_eq!(folded(engine, &runtime.handle), self.balances(at));
    }
}

#[test]
fn f27_f34_what_an_older_file_does_not_have_is_done_again_and_nothing_twice() {
    let mut books = Several::start(2, Duration::from_millis(200));
    let (accounts, take_ten) = ([account("a", 100, 1)], take(10, &[0]));
    books.hold(0, &ask(1, &accounts, &take_ten)).unwrap();
    books.save();
    books.hold(0, &ask(2, &accounts, &take_ten)).unwrap();
    books.hold(1, &ask(3, &accounts, &take_ten)).unwrap();
    assert!(matches!(books.capture(0, 1, 4), Resolved::Done(..)));
    assert!(matches!(books.capture(1, 3, 7), Resolved::Done(..)));
    assert_eq!(books.balances(0)[&name("a")], balance(100, 0, 10, 11));
    for _ in 0..2 {
        // The same file again: what was done again is lost again.
        books.crash();
        books.all_enter();
        assert_eq!(books.balances(0)[&name("a")], balance(100, 0, 10, 11));
        books.is_as_recorded(0);
    }
    // The second hold and the first capture, twice; and of the other one its hold and its capture.
    assert_eq!([0, 1].map(|at| books.redone(at)), [4, 4]);
    // And goes on.
    assert!(matches!(books.capture(0, 2, 10), Resolved::Done(..)));
    assert!(matches!(books.capture(0, 1, 4), Resolved::Already(State::Captured)));
    assert!(done(books.hold(1, &ask(4, &accounts, &take_ten)).unwrap()).is_some());
    assert_eq!(books.balances(1)[&name("a")], balance(100, 0, 10, 21));
    books.is_as_recorded(1);
}

#[test]
fn f27_a_shard_that_lost_nothing_opens_when_all_have_entered_and_not_before() {
    let mut books = Several::start(2, Duration::from_secs(3600));
    let (accounts, take_ten) = ([account("a", 100, 1)], take(10, &[0]));
    books.hold(0, &ask(1, &accounts, &take_ten)).unwrap();
    books.hold(1, &ask(2, &accounts, &take_ten)).unwrap();
    books.save();
    books.crash();
    let mark: Option<Vec<u8>> = books.connection().hget("tollgate:{s0}:meta", "run").unwrap();
    // Its call waits for the other gateway's.
    std::thread::scope(|scope| {
        let one = scope.spawn(|| books.capture(0, 1, 4));
        let opening = || books.connection().hget("tollgate:{s0}:meta", "opening").unwrap();
        let mut opens: Option<Vec<u8>> = opening();
        while opens == mark {
            opens = opening();
        }
        assert!(!one.is_finished());
        assert!(matches!(books.capture(1, 2, 5), Resolved::Done(..)));
        assert!(matches!(one.join().unwrap(), Resolved::Done(..)));
    });
    assert_eq!(books.balances(0)[&name("a")], balance(100, 0, 0, 9));
}

#[test]
fn f27_what_was_spent_meanwhile_is_an_overdraft_that_is_seen() {
    let mut books = Several::start(2, Duration::from_millis(100));
    let (accounts, take_ten) = ([account("a", 10, 1)], take(10, &[0]));
    books.save();
    books.hold(0, &ask(1, &accounts, &take_ten)).unwrap();
    assert!(matches!(books.capture(0, 1, 10), Resolved::Done(..)));
    books.crash();
    // The other one is not waited for, and what is there is spent.
    assert!(done(books.hold(1, &ask(2, &accounts, &take_ten)).unwrap()).is_some());
    assert!(matches!(books.capture(1, 2, 10), Resolved::Done(..)));
    books.all_enter();
    assert_eq!(books.balances(0)[&name("a")], balance(10, 0, 0, 20));
    assert!(matches!(books.hold(1, &ask(3, &accounts, &take_ten)).unwrap(), Posted::Short(_)));
    books.is_as_recorded(0);
}

#[test]
fn f27_a_gateway_that_was_killed_too_does_it_again_when_it_starts() {
    let mut books = Several::start(2, Duration::from_millis(100));
    let (accounts, take_ten) = ([account("a", 100, 1)], take(10, &[0]));
    books.save();
    books.hold(0, &ask(1, &accounts, &take_ten)).unwrap();
    books.hold(0, &ask(2, &accounts, &take_ten)).unwrap();
    assert!(matches!(books.capture(0, 1, 6), Resolved::Done(..)));
    books.gateways[0].running = None;
    books.crash();
    books.all_enter();
    assert_eq!(books.balances(1), BTreeMap::new());
    books.open(0);
    // What it had left open is resolved.
    assert_eq!(books.balances(1)[&name("a")], balance(100, 0, 0, 6));
    books.is_as_recorded(0);
    // Once: it has entered.
    books.gateways[0].running = None;
    books.open(0);
    assert_eq!(books.balances(1)[&name("a")], balance(100, 0, 0, 6));
}

#[test]
fn f27_f20_what_was_only_told_in_a_batch_does_not_keep_the_rest_of_it_from_being_done_again() {
    let mut books = Several::start(1, Duration::from_millis(100));
    let (accounts, take_ten) = ([account("a", 100, 1)], take(10, &[0]));
    let used = || Ask { lasting: under(key(0, 1, 1)), ..ask(1, &accounts, &take_ten) };
    books.hold(0, &used()).unwrap();
    assert!(matches!(books.capture(0, 1, 10), Resolved::Done(..)));
    books.save();
    // What is asked behind the first goes in one call, because that one waits.
    let pause = ::redis::cmd("CLIENT").arg("PAUSE").arg(300).arg("WRITE").clone();
    pause.exec(&mut books.connection()).unwrap();
    books.run(0, async |session| {
        let first = session.hold(&ask(2, &accounts, &take_ten));
        tokio::time::sleep(Duration::from_millis(50)).await;
        let again = session.hold(&Ask { charge: id(3), ..used() });
        let other = session.hold(&ask(4, &accounts, &take_ten));
        assert!(done(first.await.unwrap()).is_some());
        assert!(matches!(again.await.unwrap(), Posted::Known(_)));
        assert!(done(other.await.unwrap()).is_some());
    });
    books.crash();
    books.all_enter();
    assert_eq!(books.balances(0)[&name("a")], balance(100, 0, 20, 10));
    books.is_as_recorded(0);
}

/// A small generator: the same numbers for the same seed.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// What somebody does to books.
fn something(books: &mut Several, random: &mut Random, charges: &mut Vec<u64>, next: &mut u64) {
    let at = random.below(books.gateways.len());
    let one = NAMES[random.below(3)];
    match random.below(40) {
        // A gateway that is killed, and started again.
        0 => {
            books.gateways[at].running = None;
            books.open(at);
        }
        number => something_asked(books, (at, one), number % 9, random, charges, next),
    }
}

fn name_of(number: u8) -> Key {
    Key { scope: 3, key: [number; 16] }
}

pub fn names(random: &mut Random) -> Vec<Key> {
    (0..random.below(3)).map(|_| name_of(random.below(8) as u8)).collect()
}

/// What a gateway asks of books.
fn something_asked(
    books: &Several,
    (at, one): (usize, &'static str),
    what: usize,
    random: &mut Random,
    charges: &mut Vec<u64>,
    next: &mut u64,
) {
    let some = |random: &mut Random, charges: &[u64]| match charges {
        [] => 0,
        charges => charges[random.below(charges.len())],
    };
    match what {
        0..=3 => {
            *next += 1;
            let (accounts, post) = ([account(one, 100_000, 1)], take(10, &[0]));
            let asked = ask(*next, &accounts, &post);
            let once = key(1, random.below(20) as u8, 7);
            let lasting = if random.below(2) == 0 { under(once) } else { None };
            if matches!(books.hold(at, &Ask { lasting, ..asked }).unwrap(), Posted::Done(..)) {
                charges.push(*next);
            }
        }
        4 | 5 => {
            let charge = some(random, charges);
            let keep = [random.below(11) as u64, random.below(6) as u64];
            let state = if random.below(3) == 0 { State::Voided } else { State::Captured };
            let memo = OutcomeMemo::default();
            books.run(at, async |session| {
                session.resolve(id(charge), &resolution(state, &keep, &memo)).await.unwrap()
            });
        }
        6 => {
            let charge = some(random, charges);
            let (accounts, post) = ([account(one, 100_000, 1)], take(5, &[0]));
            let names = names(random);
            let amended = books.run(at, async |session| {
                let extra = Some((&accounts[..], &post));
                let amendment = Amendment { extra, names: &names, ..amendment() };
                session.amend(id(charge), &amendment).await.unwrap()
            });
            assert!(!matches!(amended, Amended::Short(_)));
        }
        7 => {
            let charge = some(random, charges);
            books.run(at, async |session| session.abandon(id(charge), NOW).await.unwrap());
        }
        _ => {
            let account = account(one, 100_000, 1);
            let delta = random.below(7) as i64 - 3;
            let key =
                (random.below(2) == 0).then(|| Key { scope: 2, key: [random.below(50) as u8; 16] });
            let adjustment = Adjustment { account: &account, delta, now: NOW, memo: b"why", key };
            // A key that was used for another one is refused.
            let _ = books.run(at, async |session| session.adjust(&adjustment).await);
        }
    }
}

/// All that anybody can ask of books.
pub fn seen(
    books: &Several,
    at: usize,
    charges: &[u64],
) -> (BTreeMap<String, Balance>, Vec<String>) {
    let mut told = Vec::new();
    for charge in charges {
        told.push(match books.open_charge(at, *charge) {
            None => format!("{charge}: not open"),
            Some(open) => {
                let mut legs: Vec<String> =
                    open.legs.iter().map(|leg| format!("{leg:?}")).collect();
                legs.sort_unstable();
                format!("{charge}: {legs:?} {:?} {:?}", open.expires, open.memo)
            }
        });
    }
    for number in 0..20 {
        let once = key(1, number, 7);
        let known =
            books.run(at, async |session| session.known(once.scope, &once.key).await.unwrap());
        told.push(format!("{number}: {known:?}"));
    }
    for number in 0..8 {
        let names = [name_of(number)];
        let mut found = books.run(at, async |session| session.named(&names).await.unwrap());
        found.sort_unstable();
        told.push(format!("name {number}: {found:?}"));
    }
    (books.balances(at), told)
}

fn plays(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut books = Several::start(3, Duration::from_millis(50));
    let (mut charges, mut next) = (Vec::new(), 0);
    for round in 0..4 {
        for _ in 0..random.below(15) {
            something(&mut books, &mut random, &mut charges, &mut next);
        }
        books.save();
        for _ in 0..random.below(30) {
            something(&mut books, &mut random, &mut charges, &mut next);
        }
        let before = seen(&books, 0, &charges);
        books.crash();
        // Whoever comes first.
        let first = random.below(3);
        let accounts: [Account<'_>; 1] = [account("a", 100_000, 1)];
        books.run(first, async |session| session.balances(&accounts).await.unwrap());
        books.all_enter();
        let after = seen(&books, 0, &charges);
        assert_eq!(after.0, before.0, "seed {seed}, round {round}");
        for (now, then) in after.1.iter().zip(&before.1) {
            assert_eq!(now, then, "seed {seed}, round {round}");
        }
        books.is_as_recorded(0);
    }
}

#[test]
fn f27_f34_after_any_history_the_books_are_what_they_were() {
    let seeds = std::env::var("TOLLGATE_TEST_REJOINS").map_or(12, |count| count.parse().unwrap());
    for seed in 1..=seeds {
        plays(seed);
    }
}
