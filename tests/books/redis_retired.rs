//! What a gateway did before it was given up, and went on under another name, is done again like the
//! rest when Redis loses it (f27, f36).

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use ::redis::Commands;
use jiff::SignedDuration;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tollgate::books::redis::{Engine, Options, Session};
use tollgate::books::{Adjustment, Books, BooksError, Resolved};
use tollgate::core::account::Balance;
use tollgate::core::charge::{OutcomeMemo, State};

use crate::engine::{NOW, account, ask, balance, done, id, name, resolution, take, temporary};
use crate::engine_redis::{EventLoop, options};
use crate::fault_proxy::FaultProxy;
use crate::redis_server::{RedisServer, until};

const PATIENCE: Duration = Duration::from_secs(60);

struct Gateway {
    engine: Engine,
    session: Session,
    runtime: EventLoop,
}

impl Gateway {
    fn start(server: &RedisServer, port: u16, gateway: &str, dir: &Path) -> Self {
        Self::hasty(server, port, gateway, dir, PATIENCE)
    }

    /// Which waits no longer for a reply.
    fn hasty(
        server: &RedisServer,
        port: u16,
        gateway: &str,
        dir: &Path,
        call_timeout: Duration,
    ) -> Self {
        let options = Options {
            url: format!("redis://127.0.0.1:{port}").into(),
            gateway: gateway.into(),
            call_timeout,
            deadline: PATIENCE,
            owner_timeout: Duration::from_millis(800),
            rejoin_timeout: Duration::from_millis(200),
            journal: Some(dir.join(gateway)),
            ..options(server)
        };
        let runtime = EventLoop::start();
        let opening = Engine::open(options, runtime.handle.clone(), NOW);
        let engine = runtime.handle.block_on(opening).unwrap();
        Self { session: engine.session(), engine, runtime }
    }

    fn found(&self) -> Balance {
        let all = self.runtime.handle.block_on(self.engine.balances()).unwrap();
        all.into_iter().find(|(_, found, _)| *found == name("a")).unwrap().2
    }

    /// Takes the sessions of "one" away.
    fn gives_up_one(&self, server: &RedisServer) {
        let mut connection = connection(server);
        let mut is_there = || {
            let names: Vec<String> = connection.hkeys("tollgate:{s0}:sessions").unwrap();
            names.iter().any(|name| name.starts_with("one/"))
        };
        while is_there() {
            self.runtime.handle.block_on(self.engine.resolve_absent(NOW)).whole().unwrap();
        }
    }

    /// Charges ten under the first of these ids that is not refused for being late.
    fn charge_ten(&self, first: u64) {
        let (accounts, ten) = ([account("a", 1000, 1)], take(10, &[0]));
        let memo = OutcomeMemo::default();
        let ended = resolution(State::Captured, &[10], &memo);
        for charge in first..first + 100 {
            match self.runtime.handle.block_on(self.session.hold(&ask(charge, &accounts, &ten))) {
                Ok(posted) => {
                    assert!(done(posted).is_some());
                    let resolved = self.session.resolve(id(charge), &ended);
                    let resolved = self.runtime.handle.block_on(resolved).unwrap();
                    assert!(matches!(resolved, Resolved::Done(..)));
                    return;
                }
                Err(BooksError::Unavailable(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("it never holds");
    }
}

fn connection(server: &RedisServer) -> ::redis::Connection {
    ::redis::Client::open(server.url()).unwrap().get_connection().unwrap()
}

#[test]
fn f27_f36_what_a_removed_session_did_is_done_again_by_the_gateway_that_went_on() {
    let (mut server, dir) = (RedisServer::start(), temporary());
    let proxy = FaultProxy::start(server.port, 1);
    let one = Gateway::start(&server, proxy.port, "one", dir.path());
    let other = Gateway::start(&server, server.port, "other", dir.path());
    server.snapshot();
    one.charge_ten(1);
    // It stands still, and is given up.
    proxy.keep_requests("");
    other.gives_up_one(&server);
    proxy.release();
    one.charge_ten(1000);
    server.kill();
    server.start_again();
    let accounts = [account("a", 1000, 1)];
    for gateway in [&one, &other] {
        gateway.runtime.handle.block_on(gateway.session.balances(&accounts)).unwrap();
    }
    assert_eq!(one.found(), balance(1000, 0, 0, 20));
}

/// How many calls of the library a server has had since it was started.
pub fn calls(server: &RedisServer) -> u64 {
    let told: String = server.ask(&["INFO", "commandstats"]);
    let line = told.lines().find(|line| line.starts_with("cmdstat_fcall:")).unwrap();
    line.split(['=', ',']).nth(1).unwrap().parse().unwrap()
}

#[test]
fn f27_f34_what_was_done_again_by_a_call_without_a_reply_is_not_done_once_more() {
    for (is_killed, is_given_up) in [(false, false), (true, false), (true, true)] {
        let (mut server, dir) = (RedisServer::start(), temporary());
        let proxy = FaultProxy::start(server.port, 1);
        let timeout = Duration::from_millis(300);
        let one = Gateway::hasty(&server, proxy.port, "one", dir.path(), timeout);
        one.charge_ten(1);
        server.snapshot();
        one.charge_ten(1000);
        one.charge_ten(2000);
        // Nothing tells that one of these was made before.
        let accounts = [account("a", 1000, 1)];
        let more = Adjustment { account: &accounts[0], delta: 7, now: NOW, memo: b"", key: None };
        one.runtime.handle.block_on(one.session.adjust(&more)).unwrap();
        server.kill();
        server.start_again();
        // It does it again, and is not told.
        proxy.keep_replies_with("again");
        let (session, mut asked) = (one.session.clone(), JoinSet::new());
        let asking = async move { session.balances(&[account("a", 1000, 1)]).await.map(|_| ()) };
        asked.spawn_on(asking, &one.runtime.handle);
        until("it is done again", || proxy.kept() > 0);
        if is_killed {
            drop(one);
            if is_given_up {
                let other = Gateway::start(&server, server.port, "other", dir.path());
                other.runtime.handle.block_on(other.session.balances(&accounts)).unwrap();
                other.gives_up_one(&server);
            }
            proxy.release();
        } else {
            let before = calls(&server);
            until("it asks once more", || calls(&server) > before);
            proxy.release();
            let answers = one.runtime.handle.block_on(asked.join_all());
            assert_eq!(answers, [Ok(())]);
            drop(one);
        }
        // Its sessions go, and in the next run it is asked what of theirs is lost.
        drop(Gateway::start(&server, proxy.port, "one", dir.path()));
        server.snapshot();
        server.kill();
        server.start_again();
        let one = Gateway::start(&server, proxy.port, "one", dir.path());
        one.runtime.handle.block_on(one.session.balances(&accounts)).unwrap();
        assert_eq!(one.found(), balance(1000, 7, 0, 30), "{is_killed} {is_given_up}");
    }
}

/// A gateway has captured, and Redis has done that; the gateway has not heard of it, and will not.
struct Untold {
    server: RedisServer,
    proxy: FaultProxy,
    dir: TempDir,
    one: Option<Gateway>,
    other: Gateway,
    asked: JoinSet<Result<Resolved, BooksError>>,
}

impl Untold {
    fn new() -> Self {
        let (server, dir) = (RedisServer::start(), temporary());
        let proxy = FaultProxy::start(server.port, 1);
        let timeout = Duration::from_millis(300);
        let one = Gateway::hasty(&server, proxy.port, "one", dir.path(), timeout);
        let other = Gateway::start(&server, server.port, "other", dir.path());
        one.charge_ten(1);
        let (accounts, ten) = ([account("a", 1000, 1)], take(10, &[0]));
        one.runtime.handle.block_on(one.session.hold(&ask(1000, &accounts, &ten))).unwrap();
        server.snapshot();
        proxy.keep_replies_with("done");
        let (session, mut asked) = (one.session.clone(), JoinSet::new());
        let asking = async move {
            let memo = OutcomeMemo::default();
            session.resolve(id(1000), &resolution(State::Captured, &[10], &memo)).await
        };
        asked.spawn_on(asking, &one.runtime.handle);
        until("it is captured", || other.found() == balance(1000, 0, 0, 20));
        // From here on it reaches nobody.
        proxy.point_to(0);
        Self { server, proxy, dir, one: Some(one), other, asked }
    }

    fn is_killed(&mut self) {
        self.one = None;
        self.asked = JoinSet::new();
    }

    /// Its sessions are taken away.
    fn is_given_up(&self) {
        self.other.gives_up_one(&self.server);
    }

    fn is_back(&self) {
        self.proxy.release();
        self.proxy.point_to(self.server.port);
    }

    fn lives_again(&mut self) {
        self.is_back();
        self.one = Some(Gateway::start(&self.server, self.proxy.port, "one", self.dir.path()));
    }

    /// An older file is put back, and both enter.
    fn an_older_file_has_it_again(mut self, killed: bool) {
        self.server.kill();
        self.server.start_again();
        if killed {
            self.lives_again();
        }
        let one = self.one.as_ref().unwrap();
        for gateway in [one, &self.other] {
            let accounts = [account("a", 1000, 1)];
            gateway.runtime.handle.block_on(gateway.session.balances(&accounts)).unwrap();
        }
        assert_eq!(one.found(), balance(1000, 0, 0, 20));
    }
}

#[test]
fn f27_what_a_killed_gateway_was_not_told_is_done_again_after_its_next_life_has_begun() {
    for is_given_up in [false, true] {
        let mut untold = Untold::new();
        untold.is_killed();
        if is_given_up {
            untold.is_given_up();
        }
        untold.lives_again();
        untold.one = None;
        untold.an_older_file_has_it_again(true);
    }
}

#[test]
fn f27_f36_what_a_gateway_was_not_told_before_it_was_given_up_is_done_again() {
    let mut untold = Untold::new();
    untold.is_given_up();
    untold.is_back();
    let one = untold.one.as_ref().unwrap();
    // It asks once more, as another session.
    let told = one.runtime.handle.block_on(untold.asked.join_next()).unwrap().unwrap();
    assert!(matches!(told, Ok(Resolved::Unknown)), "{told:?}");
    assert_eq!(one.found(), balance(1000, 0, 0, 20));
    untold.an_older_file_has_it_again(false);
}

#[test]
fn f36_last_replies_of_sessions_that_went_are_bounded_and_forgotten_in_two_days() {
    for (left_before, kept) in [(0, 1), (999, 1), (1000, 0)] {
        let untold = Untold::new();
        let mut connection = connection(&untold.server);
        let meta = "tollgate:{s0}:meta";
        let () = connection.hset(meta, "left", left_before).unwrap();
        let mut left = || {
            let all: HashMap<String, Vec<u8>> = connection.hgetall(meta).unwrap();
            let names = all.keys().filter(|name| name.starts_with("the last reply of ")).count();
            (names, String::from_utf8_lossy(&all["left"]).into_owned())
        };
        untold.is_given_up();
        assert_eq!(left(), (kept, (left_before + kept).to_string()));
        let expires = |hours| {
            let now = NOW + SignedDuration::from_hours(hours);
            let (accounts, Gateway { runtime, engine, session }) =
                ([account("a", 1000, 1)], &untold.other);
            // While a call waits, both are asked for in the next one.
            untold.server.ask::<()>(&["CLIENT", "PAUSE", "300", "WRITE"]);
            let expire = || engine.expire(now);
            let all = async { tokio::join!(session.balances(&accounts), expire(), expire()) };
            let (_, one, another) = runtime.handle.block_on(all);
            one.whole().unwrap();
            another.whole().unwrap();
        };
        expires(47);
        assert_eq!(left(), (kept, (left_before + kept).to_string()));
        expires(49);
        assert_eq!(left(), (0, left_before.to_string()));
        untold.other.charge_ten(2000);
    }
}
