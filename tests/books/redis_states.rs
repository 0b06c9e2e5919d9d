//! What a Redis that is down, full, busy, emptied or damaged does to the books: it is told, nothing
//! is charged for nothing, and no account fills again.

use std::time::Duration;

use tokio::task::JoinSet;
use tollgate::books::redis::{self, Options, Session};
use tollgate::books::{Amended, Amendment, Ask, Books, BooksError, Posted, Resolved};
use tollgate::core::account::{Account, Source};
use tollgate::core::amount::MAX_MICRO;
use tollgate::core::charge::{OutcomeMemo, State};

use crate::engine::{
    NOW, account, amendment, ask, balance, done, id, key, name, payer, post, resolution, take,
    under,
};
use crate::engine_redis::{EventLoop, folded, options};
use crate::redis_connect::errors;
use crate::redis_server::{RedisServer, until};

/// A gateway that gives up soon.
struct Gateway {
    engine: redis::Engine,
    session: Session,
    runtime: EventLoop,
    server: RedisServer,
}

impl Gateway {
    fn start(settings: &[&str]) -> Self {
        let server = RedisServer::start_with(settings);
        let runtime = EventLoop::start();
        let options = Options {
            call_timeout: Duration::from_millis(200),
            deadline: Duration::from_millis(500),
            ..options(&server)
        };
        // A busy machine may be slower than it waits for.
        let open = || {
            let opening = redis::Engine::open(options.clone(), runtime.handle.clone(), NOW);
            runtime.handle.block_on(opening)
        };
        let engine = (0..20).find_map(|_| open().ok()).unwrap_or_else(|| open().unwrap());
        Self { session: engine.session(), engine, runtime, server }
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.handle.block_on(future)
    }

    fn hold(&self, charge: u64) -> Result<Posted, BooksError> {
        let accounts = [account("a", 100, 1)];
        let ten = take(10, &[0]);
        let asked = Ask { lasting: under(key(1, charge as u8, 7)), ..ask(charge, &accounts, &ten) };
        self.run(self.session.hold(&asked))
    }

    /// Runs on the event loop itself: what is asked in one turn comes to Redis in one batch.
    fn in_one_turn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let mut tasks = JoinSet::new();
        tasks.spawn_on(future, &self.runtime.handle);
        self.run(tasks.join_next()).unwrap().unwrap()
    }

    fn capture(&self, charge: u64, keep: u64) -> Result<Resolved, BooksError> {
        let memo = OutcomeMemo::default();
        let keep = [keep];
        self.run(self.session.resolve(id(charge), &resolution(State::Captured, &keep, &memo)))
    }

    /// Asks until it works again.
    fn works_again(&self, charge: u64) {
        for attempt in 0..100 {
            if self.hold(charge + attempt).is_ok_and(|posted| done(posted).is_some()) {
                return;
            }
        }
        panic!("it never works again");
    }

    /// A command by somebody else.
    fn command(&self, words: &[&str]) -> String {
        ask_redis(&mut self.connection(), words)
    }

    fn connection(&self) -> ::redis::Connection {
        ::redis::Client::open(self.server.url()).unwrap().get_connection().unwrap()
    }

    fn found(&self) -> tollgate::core::account::Balance {
        let all = self.run(self.engine.balances()).unwrap();
        let found = all.into_iter().find(|(_, found, _)| *found == name("a")).unwrap().2;
        assert_eq!(folded(&self.engine, &self.runtime.handle)[&name("a")], found);
        found
    }
}

/// A command's answer, or what was said instead.
fn ask_redis(connection: &mut ::redis::Connection, words: &[&str]) -> String {
    let mut command = ::redis::cmd(words[0]);
    command.arg(&words[1..]);
    format!("{:?}", command.query::<::redis::Value>(connection))
}

fn is_unavailable<T: std::fmt::Debug>(asked: Result<T, BooksError>, why: &str) {
    match asked {
        Err(BooksError::Unavailable(told)) if told.contains(why) => {}
        other => panic!("{other:?}, and not {why}"),
    }
}

#[test]
fn f31_a_library_that_is_gone_is_loaded_again() {
    let gateway = Gateway::start(&[]);
    assert!(done(gateway.hold(1).unwrap()).is_some());
    gateway.command(&["FUNCTION", "FLUSH"]);
    assert!(matches!(gateway.capture(1, 4).unwrap(), Resolved::Done(..)));
    gateway.command(&["FUNCTION", "FLUSH"]);
    assert!(done(gateway.hold(2).unwrap()).is_some());
    assert_eq!(gateway.found(), balance(100, 0, 10, 4));
}

/// What there is of the books, without their sessions.
fn contents(gateway: &Gateway) -> Vec<String> {
    let keys = ["meta", "accounts", "names", "holds", "ending", "once", "kept", "ledger", "ended"];
    keys.map(|key| gateway.command(&["DUMP", &format!("tollgate:{{s0}}:{key}")])).into()
}

#[test]
fn f33_an_error_in_the_middle_of_a_call_leaves_nothing_of_it() {
    let gateway = Gateway::start(&[]);
    let accounts = [account("a", 100, 1), account("b", 100, 1)];
    let ten = [take(10, &[0]), take(10, &[1])];
    let hold = |charge: u64, slot: usize| gateway.session.hold(&ask(charge, &accounts, &ten[slot]));
    for slot in [0, 1] {
        assert!(done(gateway.run(hold(1 + slot as u64, slot)).unwrap()).is_some());
    }
    let (hash, field) = ("tollgate:{s0}:accounts", accounts[1].key.to_bytes());
    let mut connection = gateway.connection();
    let whole: Vec<u8> = ::redis::cmd("HGET").arg(hash).arg(&field).query(&mut connection).unwrap();
    let mut store = |value: &[u8]| {
        ::redis::cmd("HSET").arg(hash).arg(&field).arg(value).exec(&mut connection).unwrap();
    };
    // Texts where there are to be numbers: they are met when the first hold is worked on already.
    store(&b"\xa1x".repeat(6));
    let before = contents(&gateway);
    let session = gateway.session.clone();
    let told = gateway.in_one_turn(async move {
        let accounts = [account("a", 100, 1), account("b", 100, 1)];
        let ten = [take(10, &[0]), take(10, &[1])];
        let hold = |charge, slot: usize| session.hold(&ask(charge, &accounts, &ten[slot]));
        tokio::join!(hold(3, 0), hold(4, 1), hold(5, 0))
    });
    for told in [told.0, told.1, told.2] {
        is_unavailable(told, "");
    }
    assert_eq!(contents(&gateway), before);
    store(&whole);
    gateway.works_again(10);
    assert_eq!(gateway.found(), balance(100, 0, 20, 0), "nobody waits for the three any more");
}

#[test]
fn f34_what_was_emptied_or_deleted_is_refused_and_fills_no_account_again() {
    let keys =
        ["meta", "accounts", "names", "holds", "once", "kept", "sessions", "ledger", "ended"];
    for lost in keys {
        let gateway = Gateway::start(&[]);
        assert!(done(gateway.hold(1).unwrap()).is_some());
        assert!(done(gateway.hold(2).unwrap()).is_some());
        gateway.capture(1, 10).unwrap();
        assert!(done(gateway.hold(5).unwrap()).is_some());
        assert!(gateway.run(gateway.session.abandon(id(5), NOW)).unwrap().is_some());
        let deleted = gateway.command(&["DEL", &format!("tollgate:{{s0}}:{lost}")]);
        assert_eq!(deleted, "Ok(int(1))", "{lost}");
        let why = if lost == "meta" { "epoch" } else { "damaged" };
        is_unavailable(gateway.hold(3), why);
        is_unavailable(gateway.capture(2, 1), why);
        // Nobody joins it either.
        let accounts = [account("a", 100, 1)];
        let joining = gateway.engine.session();
        is_unavailable(gateway.run(joining.balances(&accounts)), why);
        let there = gateway.command(&["HLEN", "tollgate:{s0}:accounts"]);
        let expected = if lost == "accounts" { "Ok(int(0))" } else { "Ok(int(1))" };
        assert_eq!(there, expected, "{lost}: nothing is opened");
    }
    let gateway = Gateway::start(&[]);
    assert!(done(gateway.hold(1).unwrap()).is_some());
    gateway.command(&["FLUSHALL"]);
    is_unavailable(gateway.hold(2), "epoch");
    is_unavailable(gateway.capture(1, 1), "epoch");
    assert_eq!(gateway.command(&["DBSIZE"]), "Ok(int(0))");
}

#[test]
fn f28_without_memory_nothing_is_taken_and_what_is_open_settles() {
    let gateway = Gateway::start(&["--maxmemory-policy", "noeviction"]);
    assert!(done(gateway.hold(1).unwrap()).is_some());
    gateway.command(&["CONFIG", "SET", "maxmemory", "1"]);
    is_unavailable(gateway.hold(2), "maxmemory");
    assert!(matches!(gateway.capture(1, 4).unwrap(), Resolved::Done(..)));
    gateway.command(&["CONFIG", "SET", "maxmemory", "0"]);
    assert!(done(gateway.hold(3).unwrap()).is_some());
    assert_eq!(gateway.found(), balance(100, 0, 10, 4));
}

#[test]
fn f28_a_redis_whose_disk_refuses_writes_takes_nothing_and_goes_on_when_it_does_not() {
    let settings = ["--appendonly", "yes", "--enable-protected-configs", "yes"];
    let gateway = Gateway::start(&settings);
    assert!(done(gateway.hold(1).unwrap()).is_some());
    // A snapshot cannot have the name of a directory that is there.
    let snapshot = |file: &str, status: &str| {
        gateway.command(&["CONFIG", "SET", "save", "3600 1", "dbfilename", file]);
        gateway.command(&["BGSAVE"]);
        until("it has been tried", || {
            let told = gateway.command(&["INFO", "persistence"]);
            told.contains(&format!("rdb_last_bgsave_status:{status}"))
        });
    };
    snapshot("appendonlydir", "err");
    let before = contents(&gateway);
    is_unavailable(gateway.hold(2), "");
    assert!(errors(&gateway.server, "MISCONF") > 0);
    is_unavailable(gateway.capture(1, 4), "");
    assert_eq!(contents(&gateway), before);
    snapshot("dump.rdb", "ok");
    gateway.works_again(100);
    // What is open settles without being asked for again.
    assert_eq!(gateway.found(), balance(100, 0, 10, 4));
}

#[test]
fn f25_a_redis_that_was_down_serves_again_with_all_that_it_said() {
    let mut gateway = Gateway::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    assert!(done(gateway.hold(1).unwrap()).is_some());
    gateway.server.kill();
    is_unavailable(gateway.hold(2), "");
    // Nobody waits for it any more; it is done when there is a Redis again.
    is_unavailable(gateway.capture(1, 4), "");
    gateway.server.start_again();
    gateway.works_again(100);
    // The hold whose caller was told no is void.
    assert_eq!(gateway.found(), balance(100, 0, 10, 4));
    assert_eq!(gateway.run(gateway.engine.open_holds()).unwrap(), 1);
}

#[test]
fn f30_a_redis_that_is_busy_with_somebodys_script_is_waited_for() {
    let gateway = Gateway::start(&["--busy-reply-threshold", "50"]);
    assert!(done(gateway.hold(1).unwrap()).is_some());
    let (mut somebody, mut operator) = (gateway.connection(), gateway.connection());
    let busy =
        std::thread::spawn(move || ask_redis(&mut somebody, &["EVAL", "while true do end", "0"]));
    while !ask_redis(&mut operator, &["PING"]).contains("BUSY") {}
    is_unavailable(gateway.hold(2), "");
    assert_eq!(ask_redis(&mut operator, &["SCRIPT", "KILL"]), "Ok(ok)");
    busy.join().unwrap();
    gateway.works_again(100);
    assert_eq!(gateway.found().captured, 0);
    assert_eq!(gateway.run(gateway.engine.open_holds()).unwrap(), 2);
}

#[test]
fn f57_an_account_gives_no_more_than_a_number_can_hold() {
    let gateway = Gateway::start(&[]);
    let accounts: [Account<'_>; 1] = [account("a", 100, 1)];
    let forced = |amount| Source { forced: true, ..Source::take(amount, [payer(0)]) };
    let hold = |charge, amount| {
        gateway.run(gateway.session.hold(&ask(charge, &accounts, &post([forced(amount)]))))
    };
    assert!(done(hold(1, MAX_MICRO - 5).unwrap()).is_some());
    assert!(matches!(hold(2, 6), Err(BooksError::Range)));
    assert!(done(hold(3, 5).unwrap()).is_some());
    assert!(matches!(hold(4, 1), Err(BooksError::Range)));
    assert_eq!(gateway.found(), balance(100, 0, MAX_MICRO, 0));
    gateway.capture(1, MAX_MICRO).unwrap();
    assert_eq!(gateway.found(), balance(100, 0, 5, MAX_MICRO - 5));
    // What was captured counts as what is held.
    assert!(matches!(hold(5, 1), Err(BooksError::Range)));
}

#[test]
fn d24_a_hold_is_shown_as_it_is_at_its_place_of_a_batch_whatever_comes_behind() {
    let gateway = Gateway::start(&[]);
    assert!(done(gateway.hold(1).unwrap()).is_some());
    let session = gateway.session.clone();
    let seen = gateway.in_one_turn(async move {
        let accounts = [account("a", 100, 1), account("b", 100, 1)];
        let more = post([Source::take(4, [payer(0)]), Source::take(5, [payer(1)])]);
        let short = post([Source::take(4, [payer(0)]), Source::take(101, [payer(1)])]);
        let look = || async {
            let open = session.open_charge(id(1)).await.unwrap().unwrap();
            let amounts: Vec<u64> = open.legs.iter().map(|leg| leg.amount).collect();
            (amounts, open.note)
        };
        let amend = |extra, note: &'static [u8]| {
            let amendment = Amendment { extra: Some((&accounts[..], extra)), ..amendment() };
            let amended = Amendment { note: Some(note), ..amendment };
            session.amend(id(1), &amended)
        };
        let refused = async { amend(&short, b"refused").await.unwrap() };
        let made = async { amend(&more, b"made").await.unwrap() };
        // Each asks when it is polled, in this order.
        let asked = tokio::join!(biased; look(), refused, look(), made, look());
        assert!(matches!(asked.1, Amended::Short(_)) && matches!(asked.3, Amended::Done(..)));
        [asked.0, asked.2, asked.4].map(|(amounts, note)| (amounts, note.to_vec()))
    });
    let before = (vec![10], Vec::new());
    assert_eq!(seen, [before.clone(), before, (vec![14, 5], b"made".to_vec())]);
}
