//! The closing of cycles on Redis: by several gateways, half done, lost, and late.

use std::path::PathBuf;
use std::time::Duration;

use ::redis::Commands;
use tempfile::TempDir;
use tollgate::books::redis::carry::Shards;
use tollgate::books::redis::{Engine, Options, Owed};
use tollgate::books::{Adjustment, Ask, Books, Posted, Resolution, Resolved};
use tollgate::core::account::{Account, AccountKind, Grant, Stem};
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::core::cycle::Label;

use crate::closed::{at_day, capture, hold, of_day, spend};
use crate::engine::{NOW, account, ask, done, id, run, take};
use crate::engine_redis::{EventLoop, folded, options};
use crate::fault_proxy::FaultProxy;
use crate::redis_server::{RedisServer, until};

/// A gateway with a journal of its own.
struct Gateway {
    engine: Engine,
    runtime: EventLoop,
}

impl Gateway {
    fn open(server: &RedisServer, name: &str, journal: &TempDir) -> Self {
        Self::open_at(&server.url(), server, name, journal)
    }

    fn open_at(url: &str, server: &RedisServer, name: &str, journal: &TempDir) -> Self {
        let runtime = EventLoop::start();
        let options = Options {
            url: url.into(),
            gateway: name.into(),
            journal: Some(PathBuf::from(journal.path())),
            rejoin_timeout: Duration::from_millis(200),
            owner_timeout: Duration::from_secs(600),
            deadline: Duration::from_secs(60),
            ..options(server)
        };
        let opening = Engine::open(options, runtime.handle.clone(), NOW);
        let engine = runtime.handle.block_on(opening).unwrap();
        Self { engine, runtime }
    }

    fn close(&self, day: u64) -> usize {
        self.runtime.handle.block_on(self.engine.close_cycles(at_day(day))).unwrap()
    }

    fn is_as_recorded(&self) -> usize {
        let all = self.runtime.handle.block_on(self.engine.balances()).unwrap();
        let all: std::collections::BTreeMap<_, _> =
            all.into_iter().map(|(_, name, balance)| (name, balance)).collect();
        assert_eq!(folded(&self.engine, &self.runtime.handle), all);
        all.len()
    }
}

fn stored(server: &RedisServer) -> usize {
    server.ask(&["HLEN", "tollgate:{s0}:accounts"])
}

fn connection(server: &RedisServer) -> ::redis::Connection {
    ::redis::Client::open(server.url()).unwrap().get_connection().unwrap()
}

fn stored_account(server: &RedisServer, field: &[u8]) -> Vec<u8> {
    connection(server).hget("tollgate:{s0}:accounts", field).unwrap()
}

/// As whoever is killed before he has forgotten all accounts of a closed cycle leaves it.
fn half_forgotten(server: &RedisServer, field: &[u8], account: &[u8]) {
    let mut connection = connection(server);
    for (key, value) in [("accounts", account), ("names", b"acme/licence/a/1970-01-01")] {
        let put: u64 = connection.hset(format!("tollgate:{{s0}}:{key}"), field, value).unwrap();
        assert_eq!(put, 1);
    }
    server.ask::<i64>(&["HINCRBY", "tollgate:{s0}:meta", "accounts", "1"]);
    server.ask::<i64>(&["HDEL", "tollgate:{s0}:meta", "forgotten"]);
}

#[test]
fn f05_what_one_gateway_began_to_forget_is_forgotten_by_another() {
    let (server, journals) = (RedisServer::start(), [(); 2].map(|()| tempfile::tempdir().unwrap()));
    let [one, other] = [0, 1].map(|at| Gateway::open(&server, ["one", "other"][at], &journals[at]));
    let session = one.engine.session();
    (0..200).for_each(|day| spend(&session, day));
    let before = stored(&server);
    let field = of_day(0).key.to_bytes();
    let account = stored_account(&server, &field);
    let gone = one.close(200);
    assert!(gone >= 2);
    assert_eq!((stored(&server), other.close(200)), (before - gone, 0));
    half_forgotten(&server, &field, &account);
    // Nobody sees it meanwhile.
    assert_eq!(one.is_as_recorded(), before - gone);
    assert!(matches!(hold(&session, 1_000, 0, &of_day(0)), Posted::Short(_)));
    let shards = Shards::new(&server.url().into(), "tollgate", 1).unwrap();
    let read = one.runtime.handle.block_on(shards.read("1", Duration::ZERO)).unwrap();
    assert_eq!(read.fold.accounts.len(), before - gone);
    assert_eq!((other.close(200), one.close(200)), (1, 0));
    assert_eq!(stored(&server), before - gone);
    one.is_as_recorded();
    // Each knows it when it has looked.
    assert!(other.engine.session().is_closed("acme", &of_day(0).key));
}

/// A gateway has looked at all open holds, and what it asks for is on its way.
#[test]
fn f22_a_hold_that_comes_between_keeps_its_cycle_open() {
    let (server, journals) = (RedisServer::start(), [(); 2].map(|()| tempfile::tempdir().unwrap()));
    let other = Gateway::open(&server, "other", &journals[0]);
    let session = other.engine.session();
    (0..200).for_each(|day| spend(&session, day));
    let proxy = FaultProxy::start(server.port, 1);
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let one = Gateway::open_at(&url, &server, "one", &journals[1]);
    // Its session has joined.
    run(one.engine.session().balances(&[of_day(199)])).unwrap();
    proxy.keep_requests("tollgate_1_settle");
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| one.close(200));
        until("it is on its way", || proxy.kept() > 0);
        assert!(done(hold(&session, 1_000, 200, &of_day(0))).is_some());
        proxy.release();
        assert_eq!(closing.join().unwrap(), 0);
    });
    one.is_as_recorded();
    capture(&session, 1_000, 200);
    assert!(one.close(200) > 0);
    one.is_as_recorded();
}

#[test]
fn d06_f27_a_closing_that_redis_lost_is_done_again_by_whoever_looks_next() {
    let (mut server, journal) = (RedisServer::start(), tempfile::tempdir().unwrap());
    let gateway = Gateway::open(&server, "one", &journal);
    let session = gateway.engine.session();
    (0..150).for_each(|day| spend(&session, day));
    server.snapshot();
    (150..200).for_each(|day| spend(&session, day));
    let gone = gateway.close(200);
    let left = stored(&server);
    assert!(gone >= 2);
    (200..205).for_each(|day| spend(&session, day));
    server.kill();
    server.start_again();
    // All that was spent is done again, and nothing of what was closed.
    (205..210).for_each(|day| spend(&session, day));
    assert_eq!(gateway.is_as_recorded(), left + gone);
    assert_eq!((gateway.close(210), stored(&server)), (gone, left));
    assert!(matches!(hold(&session, 1_000, 0, &of_day(0)), Posted::Short(_)));
    gateway.is_as_recorded();
}

#[test]
fn d06_f27_what_a_gateway_does_again_after_its_cycle_was_closed_opens_nothing() {
    let (mut server, journals) =
        (RedisServer::start(), [(); 2].map(|()| tempfile::tempdir().unwrap()));
    let one = Gateway::open(&server, "one", &journals[0]);
    server.snapshot();
    let late = Gateway::open(&server, "late", &journals[1]);
    let session = late.engine.session();
    // One that is settled, one that is open, and one of an account that has no cycle.
    let mut other = account("b", 1_000, 1);
    (other.key.period, other.name.period) = (Label::NONE, Label::NONE);
    let of_a_term = [other];
    spend(&session, 0);
    assert!(done(hold(&session, 500, 0, &of_day(0))).is_some());
    assert!(done(hold(&session, 501, 0, &of_a_term[0])).is_some());
    capture(&session, 501, 0);
    drop((session, late));
    server.kill();
    server.start_again();
    let session = one.engine.session();
    (1..200).for_each(|day| spend(&session, day));
    let gone = one.close(200);
    assert!(gone >= 2);
    let left = stored(&server);
    // It was away for half a year, and Redis has lost what it knew.
    let late = Gateway::open(&server, "late", &journals[1]);
    assert_eq!(late.is_as_recorded(), left + 1);
    assert_eq!((late.close(200), stored(&server)), (0, left + 1));
    assert!(late.engine.session().is_closed("acme", &of_day(0).key));
    let open = late.runtime.handle.block_on(late.engine.open_holds()).unwrap();
    assert_eq!(open, 0);
    // And goes on.
    let one_more = take(1, &[0]);
    let asked = ask(502, &of_a_term, &one_more);
    assert!(done(run(late.engine.session().hold(&asked)).unwrap()).is_some());
}

/// Its owner was away for a while, and its account is not forgotten yet.
#[test]
fn f23_nothing_is_captured_late_in_a_cycle_that_is_closed() {
    let (server, journals) = (RedisServer::start(), [(); 2].map(|()| tempfile::tempdir().unwrap()));
    let [one, other] = [0, 1].map(|at| Gateway::open(&server, ["one", "other"][at], &journals[at]));
    let session = one.engine.session();
    (0..200).for_each(|day| spend(&session, day));
    assert!(done(hold(&session, 1_000, 200, &of_day(0))).is_some());
    assert!(run(other.engine.session().abandon(id(1_000), at_day(200))).unwrap().is_some());
    let field = of_day(0).key.to_bytes();
    let account = stored_account(&server, &field);
    assert!(other.close(200) >= 2);
    half_forgotten(&server, &field, &account);
    let memo = OutcomeMemo::default();
    let late = Resolution::plain(State::Captured, &[10], at_day(200), &memo);
    let resolved = run(session.resolve(id(1_000), &late)).unwrap();
    assert!(matches!(resolved, Resolved::Already(State::Voided)), "{resolved:?}");
    one.is_as_recorded();
}

/// What a user owes in a cycle.
pub fn debt(user: &'static str, org: &'static str, day: u64) -> Account<'static> {
    let mut owed = of_day(day);
    let ids = [user, ""];
    owed.key.stem = Stem::new(&[org, user]);
    (owed.key.kind, owed.name.kind) = (AccountKind::Overdraft, AccountKind::Overdraft);
    (owed.name.org, owed.name.ids, owed.grant) = (org, ids, Grant::default());
    owed
}

#[test]
fn d31_what_users_owe_is_summed_by_org_and_cycle_whoever_looks() {
    let (server, journals) = (RedisServer::start(), [(); 2].map(|()| tempfile::tempdir().unwrap()));
    let [one, other] = [0, 1].map(|at| Gateway::open(&server, ["one", "other"][at], &journals[at]));
    let session = one.engine.session();
    let owed = || {
        other.runtime.handle.block_on(other.engine.look(&[])).unwrap();
        let mut owed = other.engine.seen().owed();
        owed.sort_by(|a, b| (&a.org, a.period).cmp(&(&b.org, b.period)));
        let told = |owed: Owed| (owed.org, owed.period, owed.amount);
        owed.into_iter().map(told).collect::<Vec<_>>()
    };
    let forced = |amount: u64| {
        let mut forced = take(amount, &[0]);
        forced.sources[0].forced = true;
        forced
    };
    let charge = |number: u64, account: Account<'static>, amount: u64| {
        let (accounts, post) = ([account], forced(amount));
        let asked = Ask { now: at_day(0), ..ask(number, &accounts, &post) };
        assert!(done(run(session.hold(&asked)).unwrap()).is_some());
    };
    let adjust = |account: Account<'static>, delta: i64| {
        let adjustment =
            Adjustment { key: None, account: &account, delta, now: at_day(0), memo: b"" };
        run(session.adjust(&adjustment)).unwrap();
    };
    let cycle = |day: u64| of_day(day).key.period;
    assert_eq!(owed(), []);
    charge(1, debt("u", "acme", 0), 10);
    charge(2, debt("v", "acme", 0), 5);
    charge(3, debt("u", "acme", 30), 7);
    charge(4, debt("u", "beta", 0), 1);
    let acme = |day: u64, amount: u64| ("acme".to_owned(), cycle(day), amount);
    let beta = ("beta".to_owned(), cycle(0), 1);
    assert_eq!(owed(), [acme(0, 15), acme(30, 7), beta.clone()]);
    // Of ten one is kept, and the other hold is given back.
    capture(&session, 1, 0);
    let memo = OutcomeMemo::default();
    let void = Resolution::plain(State::Voided, &[], at_day(0), &memo);
    assert!(matches!(run(session.resolve(id(2), &void)).unwrap(), Resolved::Done(..)));
    assert_eq!(owed(), [acme(0, 1), acme(30, 7), beta.clone()]);
    // What is forgiven is not owed, and more than that is nobody else's.
    adjust(debt("u", "acme", 30), 9);
    adjust(debt("u", "acme", 0), -2);
    assert_eq!(owed(), [acme(0, 3), beta.clone()]);
    adjust(debt("u", "acme", 30), -3);
    assert_eq!(owed(), [acme(0, 3), acme(30, 1), beta]);
    // Of cycles that are closed nothing is shown.
    capture(&session, 3, 0);
    capture(&session, 4, 0);
    (100..300).for_each(|day| spend(&session, day));
    assert!(one.close(300) > 0);
    adjust(debt("u", "acme", 0), -2);
    assert_eq!(owed(), []);
    one.is_as_recorded();
}
