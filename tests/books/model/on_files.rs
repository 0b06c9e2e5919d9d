//! The engine on files: what it writes down, and crashes that leave a part of that.

use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use tollgate::books::embedded::{Engine, Options, Session};
use tollgate::books::{Adjustment, Ask, Books, BooksError, InDoubt, Posted, snapshot};
use tollgate::core::account::{AccountKey, Balance, LegKind, Payer, Post, Source};
use tollgate::core::charge::State;
use tollgate::core::ids::ChargeId;

use super::disk;
use super::naive::{Id, RECOVERED};
use super::play::{Answer, Future, Play, check_view, poll};
use super::subject::{Subject, Waits};
use super::world::{Random, START};
use crate::engine::{id as charge_id, temporary};

pub struct OnFiles {
    dir: TempDir,
    engine: Option<Engine>,
    segment_size: u64,
}

impl OnFiles {
    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    fn open(&self, now: Timestamp) -> Engine {
        let options = Options { segment_size: self.segment_size, ..Options::default() };
        Engine::open_with(self.dir.path(), now, options).unwrap()
    }
}

impl Subject for OnFiles {
    type Session = Session;

    const AT_ONCE: bool = false;
    const KINDS: &'static [&'static str] =
        &["torn", "snapshot", "snapshot lost", "pruned", "closed", "already", "amended already"];

    fn start(random: &mut Random) -> Self {
        let segment_size = [1 << 10, 1 << 13, 1 << 16, 1 << 20][random.below(4)];
        let mut files = Self { dir: temporary(), engine: None, segment_size };
        files.engine = Some(files.open(START));
        files
    }

    fn session(&self) -> Session {
        self.engine().session()
    }

    /// What needs no record is there at once.
    fn tell<T>(&self, mut future: Waits<'_, T>) -> T {
        poll(&mut future).expect("nothing to wait for")
    }

    fn begin(&self, future: &mut Future) -> Option<Answer> {
        assert!(poll(future).is_none(), "an answer came before its record was written");
        None
    }

    fn finish(&self, mut future: Future) -> Answer {
        let answer = poll(&mut future);
        answer.or_else(|| poll(&mut future)).expect("written after two turns")
    }

    fn expire(&self, now: Timestamp) -> Vec<(ChargeId, State)> {
        let ended = self.engine().expire(now).unwrap();
        ended.into_iter().map(|(open, state)| (open.charge, state)).collect()
    }

    fn balances(&mut self) -> Vec<(AccountKey, Balance)> {
        let mut all = Vec::new();
        self.engine().for_each_balance(|key, _, balance| all.push((key, balance)));
        all
    }

    fn open_holds(&self) -> usize {
        self.engine().open_holds().0
    }

    fn look_after(play: &mut Play<Self>, die: usize) {
        match die {
            950..956 => {
                if play.subject.engine().snapshot(play.now).unwrap() {
                    play.saw("snapshot");
                }
            }
            956..960 => prune(play),
            _ => close_cycles(play),
        }
    }

    /// Somebody asks for what a cycle left that is over.
    fn ask_for_the_past(play: &mut Play<Self>) {
        let id = play.world.any(&mut play.random);
        if !play.model.closed.contains(&id) {
            return;
        }
        let account = play.world.newest(id);
        let post = Post {
            sources: [Source::take(1, [Payer { slot: 0, kind: LegKind::Licence, cap: None }])]
                .into_iter()
                .collect(),
            ..Post::default()
        };
        let ask = Ask {
            charge: charge_id(u64::MAX - play.step),
            accounts: &[account],
            post: &post,
            now: play.now,
            in_doubt: InDoubt::Void,
            memo: b"",
            lasting: None,
        };
        match play.ready(Box::pin(play.sessions[0].hold(&ask))) {
            Ok(Posted::Short(view)) => check_view(&[Some((0, 0, 0, 0))], &view),
            other => panic!("account {id} is closed: {other:?}"),
        }
        let adjustment =
            Adjustment { key: None, account: &account, delta: 1, now: play.now, memo: b"why" };
        let adjusted = play.ready(Box::pin(play.sessions[0].adjust(&adjustment)));
        assert_eq!(adjusted, Err(BooksError::Closed));
    }

    /// The process dies in the middle of a write, or between two.
    fn crash(play: &mut Play<Self>) {
        // So that what a snapshot has is not too old to be asked for.
        if play.random.percent(30) && play.subject.engine().snapshot(play.now).unwrap() {
            play.saw("snapshot");
        }
        let acknowledged = play.subject.engine().written();
        let mut order = play.random.some_of(3, 3);
        order.retain(|&session| play.model.is_waiting(session));
        for &session in &order {
            flush(play, session);
        }
        play.flights.clear();
        let end = play.subject.engine().written();
        let session_count = play.sessions.len();
        play.sessions.clear();
        play.subject.engine = None;
        lose_snapshot(play);
        let (survived, mut position) = cut(play, acknowledged, end);
        let left_open = play.model.crash(&order, survived, play.now.as_microsecond());
        let (voided, captured, lasting) = left_open;
        let mut is_first = true;
        loop {
            let engine = play.subject.open(play.now);
            if is_first {
                let recovery = engine.recovery();
                assert_eq!((recovery.voided, recovery.captured, recovery.lasting), left_open);
                *play.seen.entry("left open").or_default() += (voided + captured) as u64;
                *play.seen.entry("outlived its process").or_default() += lasting as u64;
            }
            is_first = false;
            if play.random.percent(70) {
                play.sessions = (0..session_count).map(|_| engine.session()).collect();
                play.subject.engine = Some(engine);
                break;
            }
            play.saw("crash in recovery");
            let end = engine.written();
            drop(engine);
            position = cut(play, position, end).1;
        }
        play.world.restart();
        play.adopt();
        play.check_everything();
    }
}

/// Segments go that nothing stands on any more. No balance notices.
fn prune(play: &mut Play<OnFiles>) {
    let engine = play.subject.engine();
    let archived = engine.written();
    let damaged = |(_, path): &(u64, PathBuf)| snapshot::check(path).is_err();
    match engine.prune(play.now + SignedDuration::from_hours(1), archived) {
        Ok(0) => {}
        Ok(_) => play.saw("pruned"),
        Err(error) => {
            let snapshots = snapshot::list(play.subject.dir.path()).unwrap();
            assert!(snapshots.iter().any(damaged), "{error}");
        }
    }
}

/// Cycles that are long over are closed: nothing is held there, and nothing can be taken again.
fn close_cycles(play: &mut Play<OnFiles>) {
    let before = play.model.live.ids();
    let written = play.subject.engine().written();
    let forgotten = play.subject.engine().close_cycles(play.now).unwrap();
    if play.subject.engine().written() == written {
        return assert_eq!(forgotten, 0);
    }
    play.all_written();
    let closed: Vec<Id> = before
        .into_iter()
        .filter(|&id| {
            let account = play.world.newest(id);
            play.sessions[0].is_closed(account.name.org, &account.key)
        })
        .collect();
    for &id in &closed {
        let age = play.world.age(id, play.now);
        assert!(age > 92, "account {id} is closed after {age} days");
        assert!(play.model.live.sums(id).2 == 0, "account {id} is closed with something held");
    }
    assert!(forgotten >= closed.len());
    play.model.close(&closed);
    if !closed.is_empty() {
        play.saw("closed");
    }
}

/// The newest of two snapshots does not read back any more.
fn lose_snapshot(play: &mut Play<OnFiles>) {
    let snapshots = snapshot::list(play.subject.dir.path()).unwrap();
    if let [_, (_, newest)] = snapshots.as_slice()
        && play.random.percent(25)
    {
        if play.random.percent(50) {
            std::fs::remove_file(newest).unwrap();
        } else {
            std::fs::write(newest, b"TOLLSNAP").unwrap();
        }
        play.saw("snapshot lost");
    }
}

fn cut(play: &mut Play<OnFiles>, acknowledged: u64, end: u64) -> (usize, u64) {
    let at = match play.random.below(4) {
        0 => acknowledged,
        1 => end,
        _ => acknowledged + play.random.up_to(end - acknowledged),
    };
    let torn_header = play.random.percent(20).then(|| play.random.up_to(23));
    let (survived, position) = disk::cut(play.subject.dir.path(), acknowledged, at, torn_header);
    if position < at {
        play.saw("torn");
    }
    (survived, position)
}

/// Writes what waits. Nobody has the engine's own session; its next answer is given up.
fn flush(play: &mut Play<OnFiles>, session: usize) {
    if session < RECOVERED {
        play.sessions[session].flush().unwrap()
    } else {
        play.give_up(session)
    }
}
