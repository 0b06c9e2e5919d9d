//! One world played: the same operations on the books and on the model.

mod more;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use jiff::{SignedDuration, Timestamp};
use tollgate::books::{
    Adjusted, Adjustment, Amended, Ask, Books, BooksError, InDoubt, Posted, Resolution, Resolved,
};
use tollgate::core::account::{Account, Balance, Legs, Slot, Taken, View};
use tollgate::core::charge::{OutcomeMemo, State};

use super::EVERYTHING;
use super::ask::{Asked, number};
use super::naive::{End, Grant, Hold, Id, Leg, Model, RECOVERED, Sums};
use super::subject::{SESSIONS, Subject};
use super::world::{ROLE_COUNT, Random, START, World};
use crate::engine::id as charge_id;

/// What the slots of a hold's accounts meant.
type Slots = Vec<Option<(Id, Grant)>>;

/// What every long run must have come across, whatever the engine.
pub const KINDS: [&str; 31] = [
    "held",
    "short",
    "captured",
    "voided",
    "extra",
    "extra short",
    "unknown",
    "adjusted up",
    "adjusted down",
    "granted",
    "reset",
    "dropped",
    "dropped unpolled",
    "forced",
    "crash",
    "crash in recovery",
    "left open",
    "lasting",
    "made once",
    "known",
    "key over",
    "amended",
    "amended extra",
    "amended short",
    "amended unknown",
    "finished",
    "expired",
    "ended captured",
    "outlived its process",
    "resolved after its process",
    "amended after its process",
];

pub type Future = Pin<Box<dyn std::future::Future<Output = Answer>>>;

pub enum Answer {
    Posted(Result<Posted, BooksError>),
    Resolved(Result<Resolved, BooksError>),
    Amended(Result<Amended, BooksError>),
    Adjusted(Result<Balance, BooksError>),
}

/// What an answer in flight has to say.
enum Expected {
    Held(Vec<Leg>, Vec<Option<Sums>>),
    Amended(Vec<Leg>, Vec<Option<Sums>>),
    Resolved(Vec<Leg>, Then),
    Already(State),
    Adjusted(Id, Then),
}

/// The balances of a resolution's or adjustment's answer.
enum Then {
    /// Those of the moment at which it was asked.
    Asked(Vec<Option<Sums>>),
    /// Those of the moment of the answer.
    Told(Vec<Option<(Id, Grant)>>),
}

pub struct Flight {
    future: Future,
    /// What came already.
    told: Option<Answer>,
    expected: Expected,
    accounts: Vec<Id>,
    session: usize,
    batch: u64,
}

pub struct Play<S: Subject> {
    pub(super) random: Random,
    pub(super) world: World,
    pub(super) model: Model,
    /// How often each session has written; the last one is the engine's own.
    batches: [u64; SESSIONS],
    pub(super) subject: S,
    pub(super) sessions: Vec<S::Session>,
    /// Which was asked last.
    last: usize,
    pub(super) flights: Vec<Flight>,
    /// Charges, with what the hold's slots meant and, once resolved, to what.
    pub(super) charges: Vec<(Slots, Option<State>)>,
    /// Accounts that this step touched.
    touched: Vec<Id>,
    pub(super) now: Timestamp,
    pub step: u64,
    pub seen: BTreeMap<&'static str, u64>,
}

impl<S: Subject> Play<S> {
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let subject = S::start(&mut random);
        // Half of the worlds have one session, half have two.
        let sessions = (0..1 + seed % 2).map(|_| subject.session()).collect();
        let world = World::new(&mut random);
        Self {
            random,
            world,
            model: Model::new(S::AT_ONCE),
            batches: [0; SESSIONS],
            subject,
            sessions,
            last: 0,
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
                if !S::AT_ONCE {
                    self.check_touched();
                }
                if self.step.is_multiple_of(EVERYTHING) {
                    self.check_everything();
                }
            }
            // What is asked before anybody waits goes in few calls.
            self.check_touched();
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

    fn crash(&mut self) {
        self.saw("crash");
        S::crash(self);
    }

    pub(super) fn saw(&mut self, what: &'static str) {
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
            die @ 950..964 => S::look_after(self, die),
            964..977 => self.settle_debts(),
            977..985 => self.expire(),
            _ => self.look(),
        }
    }

    /// Who asks next.
    fn session(&mut self) -> usize {
        let session = self.random.below(self.sessions.len());
        self.asks(session)
    }

    /// Calls of different sessions may overtake each other where nobody waits for them.
    pub(super) fn asks(&mut self, session: usize) -> usize {
        if S::AT_ONCE && self.last != session {
            self.wait_for_all();
            self.last = session;
        }
        session
    }

    /// All that was asked is done, when this comes back.
    pub(super) fn wait_for_all(&self) {
        let last = &self.sessions[self.last];
        self.subject.tell(Box::pin(last.known(0, &[0; 16]))).unwrap();
    }

    /// The answer of what needs no record.
    pub(super) fn ready<T>(&self, future: Pin<Box<dyn std::future::Future<Output = T> + '_>>) -> T {
        self.subject.tell(future)
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
        if let Some((key, _)) = once.filter(|_| owner.is_err()) {
            self.model.forget_key(key);
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
                match self.ready(future) {
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
        let late = self.model.voided_by_others(number).filter(|_| capture);
        let legs = hold.as_ref().map(|hold| hold.legs.clone()).or(late);
        let keep: Vec<u64> = match (&legs, capture) {
            (Some(legs), true) => {
                let count = self.random.below(legs.len() + 2);
                self.keep(legs, count)
            }
            _ => Vec::new(),
        };
        let is_late = hold.is_none() && legs.is_some();
        let extra = (capture && self.random.percent(if is_late { 50 } else { 15 }))
            .then(|| Asked::random(&mut self.random, &self.world, &self.model));
        let resolution = Resolution {
            state,
            keep: &keep,
            extra: extra.as_ref().map(|extra| (&extra.accounts[..], &extra.post)),
            now: self.now,
            memo: &memo,
            note: if self.random.percent(10) { b"note" } else { b"" },
            answer: if self.random.percent(10) { b"HTTP/1.1 200 OK" } else { b"" },
            last: None,
        };
        let is_finish = !resolution.note.is_empty() || !resolution.answer.is_empty();
        let future = self.sessions[session].resolve(charge_id(number), &resolution);
        let future: Future = Box::pin(async move { Answer::Resolved(future.await) });
        let Some(hold) = hold else {
            if capture && legs.is_some() {
                return self.capture_late(number, future, &keep, extra);
            }
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
                self.model.tell(session, number, end, hold.clone(), self.now.as_microsecond());
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
                let then = named.clone();
                let expected = Expected::Resolved(legs, self.then(then));
                self.fly(future, expected, extra.map_or(Vec::new(), |extra| extra.ids), home);
            }
            (None, Some(extra)) => {
                self.saw("extra short");
                let view = self.view(&extra.named);
                match self.ready(future) {
                    Answer::Resolved(Ok(Resolved::Short(found))) => check_view(&view, &found),
                    _ => panic!("the books took an extra that is not there"),
                }
            }
            (None, None) => unreachable!("nothing but an extra can be short"),
        }
    }

    /// The balances that an answer shows.
    fn then(&self, named: Vec<Option<(Id, Grant)>>) -> Then {
        if S::AT_ONCE { Then::Asked(self.view(&named)) } else { Then::Told(named) }
    }

    fn resolve_again(&mut self, number: u64, future: Future) {
        if let Some(ended) = self.model.ended(number) {
            return self.is_over(ended, future);
        }
        let resolving = self.model.live.open.get(&number).map(|hold| hold.home);
        match resolving {
            Some(home) => {
                self.saw("already");
                let state = self.charges[number as usize].1.unwrap();
                self.fly(future, Expected::Already(state), Vec::new(), home);
            }
            None => {
                self.saw("unknown");
                let answer = self.ready(future);
                assert!(matches!(answer, Answer::Resolved(Ok(Resolved::Unknown))));
            }
        }
    }

    /// Mostly an open charge; sometimes one that was resolved, or never was.
    fn pick_charge(&mut self) -> Option<u64> {
        match self.random.below(100) {
            0..2 => Some(self.charges.len() as u64 + 1_000_000),
            2..6 if !self.charges.is_empty() => Some(self.random.below(self.charges.len()) as u64),
            6..16 if self.model.ended_count() > 0 => {
                let at = self.random.below(self.model.ended_count());
                self.model.ended_at(at)
            }
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
        let told = self.subject.begin(&mut future);
        self.touched.push(id);
        // The account as the model has it.
        let then = self.then(vec![Some((id, Grant { base: 0, version: (0, 0) }))]);
        let (expected, batch) = (Expected::Adjusted(id, then), self.batches[session]);
        self.flights.push(Flight { future, told, expected, accounts: Vec::new(), session, batch });
    }

    /// Reads: balances as a post would find them, and open charges.
    fn look(&mut self) {
        S::ask_for_the_past(self);
        let asked = Asked::random(&mut self.random, &self.world, &self.model);
        let session = self.session();
        let named = asked.ids.iter().zip(&asked.accounts).map(|(&id, account)| {
            let version = account.grant.version;
            Some((id, Grant { base: account.grant.base, version: (version.epoch, version.number) }))
        });
        let view = self.view(&named.collect::<Vec<_>>());
        let found = self.sessions[session].balances(&asked.accounts);
        let found = self.ready(Box::pin(found)).unwrap();
        check_view(&view, &found);
        if let Some(number) = self.pick_charge() {
            let charge = charge_id(number);
            let open = self.sessions[session].open_charge(charge);
            let open = self.ready(Box::pin(open)).unwrap();
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
        let mut told = None;
        if self.random.percent(60) {
            told = self.subject.begin(&mut future);
        } else if self.random.percent(5) && !(S::AT_ONCE && matches!(expected, Expected::Held(..)))
        {
            self.saw("dropped unpolled");
            drop(future);
            return self.written(session, self.batches[session]);
        }
        let batch = self.batches[session];
        self.flights.push(Flight { future, told, expected, accounts, session, batch });
    }

    /// Whoever waited for a batch has written it, and all that came before.
    fn written(&mut self, session: usize, batch: u64) {
        if self.batches[session] == batch {
            self.model.flush(session);
            self.batches[session] += 1;
        }
    }

    /// The answer is waited for, or given up.
    fn land(&mut self, flight: Flight) {
        // A hold that nobody waits for is voided where it is not known at once whether it was made.
        let is_kept = S::AT_ONCE && matches!(flight.expected, Expected::Held(..));
        if self.random.percent(20) && !is_kept {
            self.saw("dropped");
            drop(flight.future);
            return self.written(flight.session, flight.batch);
        }
        let answer = flight.told.unwrap_or_else(|| self.subject.finish(flight.future));
        self.written(flight.session, flight.batch);
        let leg = |leg: &Taken| Leg {
            account: flight.accounts[usize::from(leg.slot)],
            kind: number(leg.kind),
            amount: leg.amount,
        };
        let by_slot = |legs: &Legs| -> Vec<Leg> { legs.iter().map(leg).collect() };
        match (flight.expected, answer) {
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
                Expected::Resolved(legs, then),
                Answer::Resolved(Ok(Resolved::Done(taken, found))),
            ) => {
                assert_eq!(by_slot(&taken), legs);
                check_view(&self.shown(&then), &found);
            }
            (Expected::Already(state), Answer::Resolved(Ok(Resolved::Already(found)))) => {
                assert_eq!(found, state);
            }
            (Expected::Adjusted(id, then), Answer::Adjusted(Ok(found))) => {
                assert_eq!(Some(sums(found)), self.shown(&then)[0], "account {id}");
            }
            _ => panic!("another answer than the model's"),
        }
    }

    fn shown(&self, then: &Then) -> Vec<Option<Sums>> {
        match then {
            Then::Asked(view) => view.clone(),
            Then::Told(named) => self.view(named),
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
        self.asks(0);
        let found = self.sessions[0].balances(&accounts);
        let found = self.ready(Box::pin(found)).unwrap();
        for (slot, id) in touched.iter().enumerate() {
            let found = sums(found.get(slot as Slot).unwrap());
            assert_eq!(found, self.model.live.sums(*id), "account {id}");
        }
    }

    pub(super) fn check_everything(&mut self) {
        self.asks(0);
        self.wait_for_all();
        let mut found = BTreeMap::new();
        for (key, balance) in self.subject.balances() {
            found.insert(self.world.id(&key), sums(balance));
        }
        for id in self.model.live.ids() {
            let found = found.remove(&id);
            assert_eq!(found, Some(self.model.live.sums(id)), "account {id}");
        }
        // What only failed posts named is there, and empty.
        assert!(found.values().all(|sums| *sums == (0, 0, 0, 0)), "{found:?}");
        assert_eq!(self.subject.open_holds(), self.model.live.open.len());
        self.check_keys();
    }
}

fn sums(balance: Balance) -> Sums {
    let Balance { base, adjusted, held, captured } = balance;
    (base.into(), adjusted.into(), held.into(), captured.into())
}

pub fn check_view(expected: &[Option<Sums>], found: &View) {
    for (slot, expected) in expected.iter().enumerate() {
        assert_eq!(found.get(slot as Slot).map(sums), *expected, "slot {slot}");
    }
}

pub fn poll<T>(future: &mut Pin<Box<dyn std::future::Future<Output = T> + '_>>) -> Option<T> {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Some(answer),
        Poll::Pending => None,
    }
}
