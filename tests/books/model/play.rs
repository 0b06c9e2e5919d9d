//! One world played: the same operations on the books and on the model.

mod more;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use tollgate::books::embedded::{Engine, Options, Session};
use tollgate::books::snapshot;
use tollgate::books::{
    Adjusted, Adjustment, Amended, Ask, Books, BooksError, InDoubt, Posted, Resolution, Resolved,
};
use tollgate::core::account::{
    Account, Balance, LegKind, Legs, Payer, Post, Slot, Source, Taken, View,
};
use tollgate::core::charge::{OutcomeMemo, State};

use super::ask::{Asked, number};
use super::naive::{End, Grant, Hold, Id, Leg, Model, RECOVERED, Sums};
use super::world::{ROLE_COUNT, Random, START, World};
use super::{EVERYTHING, disk};
use crate::engine::{id as charge_id, temporary};

/// What the slots of a hold's accounts meant.
type Slots = Vec<Option<(Id, Grant)>>;

/// What every long run must have come across.
pub const KINDS: [&str; 38] = [
    "held",
    "short",
    "captured",
    "voided",
    "extra",
    "extra short",
    "already",
    "unknown",
    "adjusted up",
    "adjusted down",
    "granted",
    "reset",
    "dropped",
    "dropped unpolled",
    "forced",
    "crash",
    "torn",
    "crash in recovery",
    "snapshot",
    "snapshot lost",
    "pruned",
    "closed",
    "left open",
    "lasting",
    "made once",
    "known",
    "key over",
    "amended",
    "amended extra",
    "amended short",
    "amended already",
    "amended unknown",
    "finished",
    "expired",
    "ended captured",
    "outlived its process",
    "amended after its process",
    "resolved after its process",
];

type Future = Pin<Box<dyn std::future::Future<Output = Answer>>>;

enum Answer {
    Posted(Result<Posted, BooksError>),
    Resolved(Result<Resolved, BooksError>),
    Amended(Result<Amended, BooksError>),
    Adjusted(Result<Balance, BooksError>),
}

/// What an answer in flight has to say. Views of resolutions and adjustments are those of the
/// moment of the answer.
enum Expected {
    Held(Vec<Leg>, Vec<Option<Sums>>),
    Amended(Vec<Leg>, Vec<Option<Sums>>),
    Resolved(Vec<Leg>, Vec<Option<(Id, Grant)>>),
    Already(State),
    Adjusted(Id),
}

struct Flight {
    future: Future,
    expected: Expected,
    accounts: Vec<Id>,
    session: usize,
    batch: u64,
}

pub struct Play {
    random: Random,
    world: World,
    model: Model,
    /// How often each session has written; the last one is the engine's own.
    batches: [u64; 3],
    dir: TempDir,
    engine: Option<Engine>,
    sessions: Vec<Session>,
    segment_size: u64,
    flights: Vec<Flight>,
    /// Charges, with what the hold's slots meant and, once resolved, to what.
    charges: Vec<(Slots, Option<State>)>,
    /// Accounts that this step touched.
    touched: Vec<Id>,
    now: Timestamp,
    pub step: u64,
    pub seen: BTreeMap<&'static str, u64>,
}

impl Play {
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let dir = temporary();
        let segment_size = [1 << 10, 1 << 13, 1 << 16, 1 << 20][random.below(4)];
        let engine =
            Engine::open_with(dir.path(), START, Options { segment_size, ..Options::default() })
                .unwrap();
        // Half of the worlds have one session, half have two.
        let sessions = (0..1 + seed % 2).map(|_| engine.session()).collect();
        let world = World::new(&mut random);
        Self {
            random,
            world,
            model: Model::default(),
            batches: [0; 3],
            dir,
            engine: Some(engine),
            sessions,
            segment_size,
            flights: Vec::new(),
            charges: Vec::new(),
            touched: Vec::new(),
            now: START,
            step: 0,
            seen: BTreeMap::new(),
        }
    }

    /// Turns of an event loop, each with some operations before anything is written.
    pub fn run(&mut self, steps: u64) {
        while self.step < steps {
            for _ in 0..=self.random.below(16) {
                self.operate();
                self.step += 1;
                self.saw("operations");
                self.check_touched();
                if self.step.is_multiple_of(EVERYTHING) {
                    self.check_everything();
                }
            }
            if self.random.below(40) == 0 {
                self.crash();
            }
            while !self.flights.is_empty() {
                let at = self.random.below(self.flights.len());
                let flight = self.flights.swap_remove(at);
                self.land(flight);
                self.check_touched();
            }
        }
        self.crash();
    }

    fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn operate(&mut self) {
        // Some eleven years in a world, so that holds are open for months.
        let minutes = if self.random.percent(10) { 12_000 } else { 60 };
        self.now += SignedDuration::from_mins(self.random.up_to(minutes) as i64);
        if self.world.pass(self.now, &mut self.random) {
            self.saw("reset");
        }
        match self.random.below(1000) {
            0..400 => self.hold(),
            400..750 => self.resolve(),
            750..850 => self.amend(),
            850..900 => self.adjust(),
            900..950 => {
                let role = self.random.below(ROLE_COUNT);
                self.world.grant(role, &mut self.random);
                self.saw("granted");
            }
            950..956 => {
                if self.engine().snapshot(self.now).unwrap() {
                    self.saw("snapshot");
                }
            }
            956..960 => self.prune(),
            960..964 => self.close_cycles(),
            964..977 => self.settle_debts(),
            977..985 => self.expire(),
            _ => self.look(),
        }
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    fn session(&mut self) -> usize {
        self.random.below(self.sessions.len())
    }

    fn hold(&mut self) {
        let asked = Asked::random(&mut self.random, &self.world, &self.model);
        let session = self.session();
        let charge = self.charges.len() as u64;
        let capture_in_doubt = self.random.percent(30);
        let named = asked.all_named();
        let (at, more) = (self.now.as_microsecond(), self.more());
        let once = more.once.as_ref();
        let owner = once.map_or(Ok(None), |(key, _)| self.model.live.owner(*key, at));
        let memo = charge.to_le_bytes();
        let future = self.sessions[session].hold(&Ask {
            charge: charge_id(charge),
            accounts: &asked.accounts,
            post: &asked.post,
            now: self.now,
            in_doubt: if capture_in_doubt { InDoubt::Capture } else { InDoubt::Void },
            memo: &memo,
            lasting: more::lasting(&more),
        });
        let future: Future = Box::pin(async move { Answer::Posted(future.await) });
        if let Ok(Some(owner)) = owner {
            return self.is_known(future, owner);
        }
        let (is_lasting, is_once) = (more.expires.is_some(), more.once.is_some());
        let legs = Vec::new();
        let hold = Hold { at, more, legs, capture_in_doubt, home: session, resolving: false };
        let expected = self.model.hold(charge, asked.extra(&named), hold);
        let view = self.view(&asked.named);
        self.touched.extend(named.iter().map(|(id, _)| *id));
        match expected {
            Some(legs) => {
                let is_forced = asked.post.sources.iter().any(|source| source.forced);
                for (is, what) in [
                    (true, "held"),
                    (is_forced, "forced"),
                    (is_lasting, "lasting"),
                    (is_once, "made once"),
                    (owner.is_err(), "key over"),
                ] {
                    if is {
                        self.saw(what);
                    }
                }
                self.charges.push((asked.named, None));
                self.fly(future, Expected::Held(legs, view), asked.ids, session);
            }
            None => {
                self.saw("short");
                match ready(future) {
                    Answer::Posted(Ok(Posted::Short(found))) => check_view(&view, &found),
                    _ => panic!("the books took what is not there"),
                }
            }
        }
    }

    fn resolve(&mut self) {
        let session = self.session();
        let Some(number) = self.pick_charge() else { return };
        let memo = OutcomeMemo::default();
        let hold = self.model.live.open.get(&number).filter(|hold| !hold.resolving).cloned();
        let capture = self.random.percent(70);
        let state = if capture { State::Captured } else { State::Voided };
        let keep: Vec<u64> = match (&hold, capture) {
            (Some(hold), true) => {
                let count = self.random.below(hold.legs.len() + 2);
                self.keep(&hold.legs, count)
            }
            _ => Vec::new(),
        };
        let extra = (capture && self.random.percent(15))
            .then(|| Asked::random(&mut self.random, &self.world, &self.model));
        let resolution = Resolution {
            state,
            keep: &keep,
            extra: extra.as_ref().map(|extra| (&extra.accounts[..], &extra.post)),
            now: self.now,
            memo: &memo,
            note: if self.random.percent(10) { b"note" } else { b"" },
            answer: if self.random.percent(10) { b"HTTP/1.1 200 OK" } else { b"" },
        };
        let is_finish = !resolution.note.is_empty() || !resolution.answer.is_empty();
        let future = self.sessions[session].resolve(charge_id(number), &resolution);
        let future: Future = Box::pin(async move { Answer::Resolved(future.await) });
        let Some(hold) = hold else {
            return self.resolve_again(number, future);
        };
        let home = hold.home;
        let named = extra.as_ref().map_or(Vec::new(), Asked::all_named);
        let with = extra.as_ref().map(|extra| extra.extra(&named));
        let end = if capture { End::Capture } else { End::Void };
        let done = self.model.resolve(number, end, &keep, with);
        self.touched.extend(named.iter().map(|(id, _)| *id));
        self.touched.extend(hold.legs.iter().map(|leg| leg.account));
        match (done, extra) {
            (Some(legs), extra) => {
                self.saw(if capture { "captured" } else { "voided" });
                if is_finish {
                    self.saw("finished");
                }
                if home == RECOVERED {
                    self.saw("resolved after its process");
                }
                if !legs.is_empty() {
                    self.saw("extra");
                }
                let (named, resolved) = &mut self.charges[number as usize];
                *resolved = Some(state);
                let expected = Expected::Resolved(legs, named.clone());
                self.fly(future, expected, extra.map_or(Vec::new(), |extra| extra.ids), home);
            }
            (None, Some(extra)) => {
                self.saw("extra short");
                let view = self.view(&extra.named);
                match ready(future) {
                    Answer::Resolved(Ok(Resolved::Short(found))) => check_view(&view, &found),
                    _ => panic!("the books took an extra that is not there"),
                }
            }
            (None, None) => unreachable!("nothing but an extra can be short"),
        }
    }

    fn resolve_again(&mut self, number: u64, future: Future) {
        let resolving = self.model.live.open.get(&number).map(|hold| hold.home);
        match resolving {
            Some(home) => {
                self.saw("already");
                let state = self.charges[number as usize].1.unwrap();
                self.fly(future, Expected::Already(state), Vec::new(), home);
            }
            None => {
                self.saw("unknown");
                let answer = ready(future);
                assert!(matches!(answer, Answer::Resolved(Ok(Resolved::Unknown))));
            }
        }
    }

    /// Mostly an open charge; sometimes one that was resolved, or never was.
    fn pick_charge(&mut self) -> Option<u64> {
        match self.random.below(100) {
            0..2 => Some(self.charges.len() as u64 + 1_000_000),
            2..6 if !self.charges.is_empty() => Some(self.random.below(self.charges.len()) as u64),
            _ if self.model.live.open.is_empty() => None,
            _ => {
                let open = &self.model.live.open;
                let at = self.random.below(open.len());
                open.keys().nth(at).copied()
            }
        }
    }

    fn adjust(&mut self) {
        let role = self.random.below(ROLE_COUNT);
        let delta = self.random.up_to(80) as i64 - 40;
        self.adjust_by(self.world.current(role), delta);
    }

    /// An admin forgives what an account is in the red.
    fn settle_debts(&mut self) {
        for role in 0..ROLE_COUNT {
            let id = self.world.current(role);
            let (base, adjusted, held, captured) = self.model.live.sums(id);
            let left = base + adjusted - held - captured;
            if left < 0 {
                let more = if self.world.is_overdraft(id) { 0 } else { 100 };
                return self.adjust_by(id, (more - left) as i64);
            }
        }
    }

    fn adjust_by(&mut self, id: Id, delta: i64) {
        let session = self.session();
        let grant = self.world.brought(id, &mut self.random);
        let account = self.world.account(id, grant);
        self.saw(if delta < 0 { "adjusted down" } else { "adjusted up" });
        self.model.adjust(session, id, delta, grant);
        let (own, now) = (self.sessions[session].clone(), self.now);
        let mut future: Future = Box::pin(async move {
            let adjustment = Adjustment { key: None, account: &account, delta, now, memo: b"why" };
            Answer::Adjusted(own.adjust(&adjustment).await.map(Adjusted::balance))
        });
        // An adjustment begins when it is first polled.
        assert!(poll(&mut future).is_none(), "an answer came before its record was written");
        self.touched.push(id);
        let (expected, batch) = (Expected::Adjusted(id), self.batches[session]);
        self.flights.push(Flight { future, expected, accounts: Vec::new(), session, batch });
    }

    /// Reads: balances as a post would find them, and open charges.
    fn look(&mut self) {
        self.ask_for_the_past();
        let asked = Asked::random(&mut self.random, &self.world, &self.model);
        let session = self.session();
        let named = asked.ids.iter().zip(&asked.accounts).map(|(&id, account)| {
            let version = account.grant.version;
            Some((id, Grant { base: account.grant.base, version: (version.epoch, version.number) }))
        });
        let view = self.view(&named.collect::<Vec<_>>());
        let found = ready(Box::pin(self.sessions[session].balances(&asked.accounts))).unwrap();
        check_view(&view, &found);
        if let Some(number) = self.pick_charge() {
            let charge = charge_id(number);
            let open = ready(Box::pin(self.sessions[session].open_charge(charge))).unwrap();
            let expected = self.model.live.open.get(&number);
            assert_eq!(open.is_some(), expected.is_some());
            let amounts = open.iter().flat_map(|open| open.legs.iter().map(|leg| leg.amount));
            assert!(amounts.eq(expected.iter().flat_map(|e| e.legs.iter().map(|leg| leg.amount))));
            if let (Some(open), Some(expected)) = (open, expected) {
                let expires = open.expires.map(Timestamp::as_microsecond);
                assert_eq!((expires, &*open.note), (expected.more.expires, &*expected.more.note));
            }
        }
    }

    /// The future is polled once or not at all, and maybe dropped at once.
    fn fly(&mut self, mut future: Future, expected: Expected, accounts: Vec<Id>, session: usize) {
        if self.random.percent(60) {
            assert!(poll(&mut future).is_none(), "an answer came before its record was written");
        } else if self.random.percent(5) {
            self.saw("dropped unpolled");
            drop(future);
            return self.written(session, self.batches[session]);
        }
        let batch = self.batches[session];
        self.flights.push(Flight { future, expected, accounts, session, batch });
    }

    /// Whoever waited for a batch has written it, and all that came before.
    fn written(&mut self, session: usize, batch: u64) {
        if self.batches[session] == batch {
            self.model.flush(session);
            self.batches[session] += 1;
        }
    }

    /// The answer is waited for, or given up.
    fn land(&mut self, mut flight: Flight) {
        if self.random.percent(20) {
            self.saw("dropped");
            drop(flight.future);
            return self.written(flight.session, flight.batch);
        }
        let mut answer = poll(&mut flight.future);
        if answer.is_none() {
            answer = poll(&mut flight.future);
        }
        self.written(flight.session, flight.batch);
        let leg = |leg: &Taken| Leg {
            account: flight.accounts[usize::from(leg.slot)],
            kind: number(leg.kind),
            amount: leg.amount,
        };
        let by_slot = |legs: &Legs| -> Vec<Leg> { legs.iter().map(leg).collect() };
        match (flight.expected, answer.expect("written after two turns")) {
            (Expected::Held(legs, view), Answer::Posted(Ok(Posted::Done(taken, found)))) => {
                assert_eq!(by_slot(&taken), legs);
                check_view(&view, &found);
            }
            (Expected::Amended(legs, view), Answer::Amended(Ok(Amended::Done(taken, found)))) => {
                assert_eq!(by_slot(&taken), legs);
                check_view(&view, &found);
            }
            (Expected::Already(state), Answer::Amended(Ok(Amended::Already(found)))) => {
                assert_eq!(found, state);
            }
            (
                Expected::Resolved(legs, named),
                Answer::Resolved(Ok(Resolved::Done(taken, found))),
            ) => {
                assert_eq!(by_slot(&taken), legs);
                check_view(&self.view(&named), &found);
            }
            (Expected::Already(state), Answer::Resolved(Ok(Resolved::Already(found)))) => {
                assert_eq!(found, state);
            }
            (Expected::Adjusted(id), Answer::Adjusted(Ok(found))) => {
                assert_eq!(sums(found), self.model.live.sums(id));
            }
            _ => panic!("another answer than the model's"),
        }
    }

    /// What the model sees in the slots that are named.
    fn view(&self, named: &[Option<(Id, Grant)>]) -> Vec<Option<Sums>> {
        let seen = |(id, grant)| self.model.live.sums_under(id, grant);
        named.iter().map(|named| named.map(seen)).collect()
    }

    fn check_touched(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        let unseen = Grant { base: 0, version: (0, 0) };
        let accounts: Vec<Account<'_>> =
            touched.iter().map(|&id| self.world.account(id, unseen)).collect();
        let found = ready(Box::pin(self.sessions[0].balances(&accounts))).unwrap();
        for (slot, id) in touched.iter().enumerate() {
            let found = sums(found.get(slot as Slot).unwrap());
            assert_eq!(found, self.model.live.sums(*id), "account {id}");
        }
    }

    fn check_everything(&mut self) {
        let mut found = BTreeMap::new();
        self.engine().for_each_balance(|key, _, balance| {
            found.insert(self.world.id(&key), sums(balance));
        });
        for id in self.model.live.ids() {
            let found = found.remove(&id);
            assert_eq!(found, Some(self.model.live.sums(id)), "account {id}");
        }
        // What only failed posts named is there, and empty.
        assert!(found.values().all(|sums| *sums == (0, 0, 0, 0)), "{found:?}");
        assert_eq!(self.engine().open_holds().0, self.model.live.open.len());
        self.check_keys();
    }

    /// Segments go that nothing stands on any more. No balance notices.
    fn prune(&mut self) {
        let engine = self.engine();
        let archived = engine.written();
        let damaged = |(_, path): &(u64, PathBuf)| snapshot::check(path).is_err();
        match engine.prune(self.now + SignedDuration::from_hours(1), archived) {
            Ok(0) => {}
            Ok(_) => self.saw("pruned"),
            Err(error) => {
                let snapshots = snapshot::list(self.dir.path()).unwrap();
                assert!(snapshots.iter().any(damaged), "{error}");
            }
        }
    }

    /// Cycles that are long over are closed: nothing is held there, and nothing can be taken again.
    fn close_cycles(&mut self) {
        let before = self.model.live.ids();
        let written = self.engine().written();
        let forgotten = self.engine().close_cycles(self.now).unwrap();
        if self.engine().written() == written {
            return assert_eq!(forgotten, 0);
        }
        self.all_written();
        let closed: Vec<Id> = before
            .into_iter()
            .filter(|&id| {
                let account = self.world.newest(id);
                self.sessions[0].is_closed(&account.key)
            })
            .collect();
        for &id in &closed {
            let age = self.world.age(id, self.now);
            assert!(age > 92, "account {id} is closed after {age} days");
            assert!(self.model.live.sums(id).2 == 0, "account {id} is closed with something held");
        }
        assert!(forgotten >= closed.len());
        self.model.close(&closed);
        if !closed.is_empty() {
            self.saw("closed");
        }
    }

    /// Somebody asks for what a cycle left that is over.
    fn ask_for_the_past(&mut self) {
        let id = self.world.any(&mut self.random);
        if !self.model.closed.contains(&id) {
            return;
        }
        let account = self.world.newest(id);
        let post = Post {
            sources: [Source::take(1, [Payer { slot: 0, kind: LegKind::Licence, cap: None }])]
                .into_iter()
                .collect(),
            ..Post::default()
        };
        let ask = Ask {
            charge: charge_id(u64::MAX - self.step),
            accounts: &[account],
            post: &post,
            now: self.now,
            in_doubt: InDoubt::Void,
            memo: b"",
            lasting: None,
        };
        match ready(Box::pin(self.sessions[0].hold(&ask))) {
            Ok(Posted::Short(view)) => check_view(&[Some((0, 0, 0, 0))], &view),
            other => panic!("account {id} is closed: {other:?}"),
        }
        let adjustment =
            Adjustment { key: None, account: &account, delta: 1, now: self.now, memo: b"why" };
        let adjusted = ready(Box::pin(self.sessions[0].adjust(&adjustment)));
        assert_eq!(adjusted, Err(BooksError::Closed));
    }

    /// The newest of two snapshots does not read back any more.
    fn lose_snapshot(&mut self) {
        let snapshots = snapshot::list(self.dir.path()).unwrap();
        if let [_, (_, newest)] = snapshots.as_slice()
            && self.random.percent(25)
        {
            if self.random.percent(50) {
                std::fs::remove_file(newest).unwrap();
            } else {
                std::fs::write(newest, b"TOLLSNAP").unwrap();
            }
            self.saw("snapshot lost");
        }
    }

    /// The process dies in the middle of a write, or between two.
    fn crash(&mut self) {
        self.saw("crash");
        // So that what a snapshot has is not too old to be asked for.
        if self.random.percent(30) && self.engine().snapshot(self.now).unwrap() {
            self.saw("snapshot");
        }
        let acknowledged = self.engine().written();
        let mut order = self.random.some_of(3, 3);
        order.retain(|&session| self.model.is_waiting(session));
        for &session in &order {
            self.flush(session);
        }
        self.flights.clear();
        let end = self.engine().written();
        let session_count = self.sessions.len();
        self.sessions.clear();
        self.engine = None;
        self.lose_snapshot();
        let (survived, mut position) = self.cut(acknowledged, end);
        let left_open = self.model.crash(&order, survived);
        let (voided, captured, lasting) = left_open;
        let mut is_first = true;
        loop {
            let engine = Engine::open_with(
                self.dir.path(),
                self.now,
                Options { segment_size: self.segment_size, ..Options::default() },
            )
            .unwrap();
            if is_first {
                let recovery = engine.recovery();
                assert_eq!((recovery.voided, recovery.captured, recovery.lasting), left_open);
                *self.seen.entry("left open").or_default() += (voided + captured) as u64;
                *self.seen.entry("outlived its process").or_default() += lasting as u64;
            }
            is_first = false;
            if self.random.percent(70) {
                self.sessions = (0..session_count).map(|_| engine.session()).collect();
                self.engine = Some(engine);
                break;
            }
            self.saw("crash in recovery");
            let end = engine.written();
            drop(engine);
            position = self.cut(position, end).1;
        }
        self.world.restart();
        self.adopt();
        self.check_everything();
    }

    fn cut(&mut self, acknowledged: u64, end: u64) -> (usize, u64) {
        let at = match self.random.below(4) {
            0 => acknowledged,
            1 => end,
            _ => acknowledged + self.random.up_to(end - acknowledged),
        };
        let torn_header = self.random.percent(20).then(|| self.random.up_to(23));
        let (survived, position) = disk::cut(self.dir.path(), acknowledged, at, torn_header);
        if position < at {
            self.saw("torn");
        }
        (survived, position)
    }
}

fn sums(balance: Balance) -> Sums {
    let Balance { base, adjusted, held, captured } = balance;
    (base.into(), adjusted.into(), held.into(), captured.into())
}

fn check_view(expected: &[Option<Sums>], found: &View) {
    for (slot, expected) in expected.iter().enumerate() {
        assert_eq!(found.get(slot as Slot).map(sums), *expected, "slot {slot}");
    }
}

fn poll<T>(future: &mut Pin<Box<dyn std::future::Future<Output = T> + '_>>) -> Option<T> {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Some(answer),
        Poll::Pending => None,
    }
}

/// The answer of what needs no record.
fn ready<T>(mut future: Pin<Box<dyn std::future::Future<Output = T> + '_>>) -> T {
    poll(&mut future).expect("nothing to wait for")
}
