//! The engine on a real Redis. A process that dies loses what Redis has not done yet: that is held
//! back there until the process is gone, and so the same seed comes to the same books.

use std::collections::BTreeMap;

use jiff::Timestamp;
use tollgate::books::fold::Fold;
use tollgate::books::redis::ledger::Entry;
use tollgate::books::redis::{Engine, Options, Session};
use tollgate::books::{Adjusted, Adjustment, Ask, Books, InDoubt};
use tollgate::core::account::{AccountKey, Balance};
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::core::ids::ChargeId;

use super::ask::Asked;
use super::play::{Answer, Future, Play, poll};
use super::subject::{Subject, Waits};
use super::world::{Random, START};
use crate::engine::{id as charge_id, resolution};
use crate::engine_redis::{EventLoop, options};
use crate::redis_server::RedisServer;

/// So long that no world takes it: nothing depends on the machine's speed.
const LONG: std::time::Duration = std::time::Duration::from_secs(3_600);
/// After so long an answer does not come any more.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
/// How many entries of the ledger are read at once.
const PAGE: usize = 1_000;

pub struct OnRedis {
    /// `None` for a moment, when the process has died.
    engine: Option<Engine>,
    // Below the engine, so that it ends before they do.
    runtime: Option<EventLoop>,
    server: RedisServer,
    /// What the ledger adds up to, and up to where.
    fold: Fold,
    position: u64,
}

impl OnRedis {
    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    fn wait<T>(&self, future: impl std::future::Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().handle.block_on(future)
    }

    /// Another process opens the books.
    fn open(&mut self, now: Timestamp) {
        let runtime = EventLoop::start();
        let options = Options {
            call_timeout: LONG,
            deadline: PATIENCE,
            owner_timeout: LONG,
            ..options(&self.server)
        };
        let opening = Engine::open(options, runtime.handle.clone(), now);
        self.engine = Some(runtime.handle.block_on(opening).unwrap());
        self.runtime = Some(runtime);
    }

    /// The process is gone, with its connections.
    fn die(&mut self) {
        self.engine = None;
        self.runtime = None;
    }

    /// Says something to the server itself.
    fn command(&self, words: &[&str]) {
        let client = ::redis::Client::open(self.server.url()).unwrap();
        let mut connection = client.get_connection().unwrap();
        let mut command = ::redis::cmd(words[0]);
        command.arg(&words[1..]).exec(&mut connection).unwrap();
    }

    /// Every account as the records add up to it (D37).
    fn folded(&mut self) -> BTreeMap<String, Balance> {
        loop {
            let entries = self.wait(self.engine().ledger(0, self.position, PAGE)).unwrap();
            if entries.is_empty() {
                break;
            }
            for (at, bytes) in entries {
                assert_eq!(at, self.position + 1);
                self.position = at;
                for record in Entry::read(&bytes).unwrap().records {
                    self.fold.apply(&record).unwrap();
                }
            }
        }
        let accounts = self.fold.accounts.values();
        accounts.map(|account| (account.name.to_string(), account.balance)).collect()
    }
}

impl Subject for OnRedis {
    type Session = Session;

    const AT_ONCE: bool = true;
    const KINDS: &'static [&'static str] =
        &["lost", "captured late", "captured late extra", "captured late short", "already over"];

    fn start(_random: &mut Random) -> Self {
        let (server, fold) = (RedisServer::start(), Fold::default());
        let mut new = Self { engine: None, runtime: None, server, fold, position: 0 };
        new.open(START);
        new
    }

    fn session(&self) -> Session {
        self.engine().session()
    }

    fn tell<T>(&self, future: Waits<'_, T>) -> T {
        self.wait(future)
    }

    fn begin(&self, future: &mut Future) -> Option<Answer> {
        let _timers = self.runtime.as_ref().unwrap().handle.enter();
        poll(future)
    }

    fn finish(&self, future: Future) -> Answer {
        self.wait(future)
    }

    fn expire(&self, now: Timestamp) -> Vec<(ChargeId, State)> {
        let ended = self.wait(self.engine().expire(now)).whole().unwrap();
        ended.into_iter().map(|(open, state)| (open.charge, state)).collect()
    }

    fn balances(&mut self) -> Vec<(AccountKey, Balance)> {
        let all = self.wait(self.engine().balances()).unwrap();
        let named = all.iter().map(|(_, name, balance)| (name.clone(), *balance)).collect();
        assert_eq!(self.folded(), named, "what the ledger adds up to (D37)");
        all.into_iter().map(|(key, _, balance)| (key, balance)).collect()
    }

    fn open_holds(&self) -> usize {
        self.wait(self.engine().open_holds()).unwrap()
    }

    fn crash(play: &mut Play<Self>) {
        play.wait_for_all();
        play.flights.clear();
        if play.random.percent(60) {
            play.subject.command(&["CLIENT", "PAUSE", "3600000", "WRITE"]);
            ask_in_vain(play);
        }
        let sessions = play.sessions.len();
        play.sessions.clear();
        play.subject.die();
        // Whatever it sent is given up with its connections.
        play.subject.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        play.subject.command(&["CLIENT", "UNPAUSE"]);
        let (voided, captured, lasting) = play.model.crash(&[], 0, play.now.as_microsecond());
        play.model.forget(play.now.as_microsecond());
        play.subject.open(play.now);
        let resolved = play.subject.engine().seen().in_doubt();
        assert_eq!(resolved, [captured, voided]);
        *play.seen.entry("left open").or_default() += (voided + captured) as u64;
        *play.seen.entry("outlived its process").or_default() += lasting as u64;
        while play.random.percent(30) {
            play.saw("crash in recovery");
            play.subject.die();
            play.subject.open(play.now);
            assert_eq!(play.subject.engine().seen().in_doubt(), [0, 0]);
        }
        play.sessions = (0..sessions).map(|_| play.subject.session()).collect();
        play.world.restart();
        play.check_everything();
    }
}

/// What is asked of a Redis that does nothing any more: of that there must be no trace.
fn ask_in_vain(play: &mut Play<OnRedis>) {
    for at in 0..=play.random.below(8) as u64 {
        play.saw("lost");
        let asked = Asked::random(&mut play.random, &play.world, &play.model);
        let session = play.random.below(play.sessions.len());
        let (session, now) = (play.sessions[session].clone(), play.now);
        let open: Vec<u64> = play.model.live.open.keys().copied().collect();
        match play.random.below(3) {
            0 if !open.is_empty() => {
                let charge = charge_id(open[play.random.below(open.len())]);
                let memo = OutcomeMemo::default();
                let state = if play.random.percent(50) { State::Voided } else { State::Captured };
                drop(session.resolve(charge, &resolution(state, &[5, 5], &memo)));
            }
            1 => {
                let account = asked.accounts[0];
                let adjust = async move {
                    let change =
                        Adjustment { key: None, account: &account, delta: 7, now, memo: b"why" };
                    Answer::Adjusted(session.adjust(&change).await.map(Adjusted::balance))
                };
                let mut adjust: Future = Box::pin(adjust);
                assert!(play.subject.begin(&mut adjust).is_none(), "Redis does nothing");
            }
            _ => drop(session.hold(&Ask {
                charge: charge_id(2_000_000 + 10 * play.step + at),
                accounts: &asked.accounts,
                post: &asked.post,
                now,
                in_doubt: InDoubt::Void,
                memo: b"",
                lasting: None,
            })),
        }
    }
}
