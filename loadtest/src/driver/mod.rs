//! The load: lanes of connections, each with an arrival rate of its own.
//!
//! Open loop: the k-th request of a lane is meant for `start + k / rate`, whatever became of those
//! before it, and its latency is counted from then. Where every connection is busy it waits, and
//! the waiting is in its latency. Closed loop: each connection sends as soon as it has its answer,
//! for capacity.
//!
//! All of it runs on one event loop, and a request allocates nothing.

mod exchange;
mod stats;
mod timer;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;

pub use exchange::Outcome;
pub use stats::{Charge, Counts, Second, Stats, percentiles};

use crate::draw::{Draw, How};
use crate::request::{Callers, Kind, Requests};
use exchange::Wire;
use timer::Timer;

/// How long requests that are due may wait at a phase's end before they count as dropped.
const GRACE: Duration = Duration::from_secs(5);

/// What a lane sends, where to, and over how many connections at most.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// Where to.
    pub to: SocketAddr,
    /// What.
    pub kind: Kind,
    /// For whom.
    pub callers: Callers,
    /// How many users, and how they are drawn.
    pub users: u64,
    /// How they are drawn.
    pub draw: How,
    /// The seed of the draw.
    pub seed: u64,
    /// How many connections.
    pub connections: usize,
    /// After how long an answer has not come.
    pub timeout: Duration,
    /// How many events a stream of the backend has.
    pub events: u64,
    /// Whether answers carry receipts: of a gateway on a metered route.
    pub receipts: bool,
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// So many a second, for so long.
    Open {
        /// Requests a second.
        rate: f64,
        /// For how long.
        length: Duration,
    },
    /// As soon as the one before is answered, for so long.
    Closed {
        /// For how long.
        length: Duration,
    },
}

#[derive(Clone, Copy, Debug)]
enum Schedule {
    None,
    Open { start: Instant, interval: f64, next: u64, count: u64, until: Instant },
    Closed { until: Instant },
}

/// A request to be sent.
#[derive(Clone, Copy, Debug)]
struct Job {
    intended: Instant,
    user: u64,
}

#[derive(Default)]
struct Slot {
    job: Option<Job>,
    parked: Option<Waker>,
}

struct State {
    schedule: Schedule,
    draw: Draw,
    slots: Vec<Slot>,
    parked: VecDeque<usize>,
    in_flight: usize,
    stats: Stats,
}

/// Connections that send one kind of request for one group of users.
pub struct Lane {
    spec: Spec,
    requests: Requests,
    state: RefCell<State>,
    /// The pacer waits for a connection to be free.
    idle: Cell<bool>,
    turn: Notify,
    over: Notify,
}

impl Lane {
    /// Ready to send; its tasks are born in `tasks`.
    ///
    /// # Errors
    /// When there is nobody to send for, or no timer to be had.
    pub fn start(spec: Spec, tasks: &mut JoinSet<()>) -> anyhow::Result<Rc<Self>> {
        let requests = Requests::new(spec.kind, &spec.callers);
        let draw = Draw::new(spec.users, spec.draw, spec.seed)?;
        let slots = std::iter::repeat_with(Slot::default).take(spec.connections).collect();
        let parked = VecDeque::with_capacity(spec.connections);
        let stats = Stats::new()?;
        let state = State { schedule: Schedule::None, draw, slots, parked, in_flight: 0, stats };
        let lane = Rc::new(Self {
            spec,
            requests,
            state: RefCell::new(state),
            idle: Cell::new(false),
            turn: Notify::new(),
            over: Notify::new(),
        });
        let timer = Timer::new()?;
        tasks.spawn_local(Rc::clone(&lane).pace(timer));
        for slot in 0..lane.spec.connections {
            tasks.spawn_local(Rc::clone(&lane).send(slot));
        }
        Ok(lane)
    }

    /// What it sends.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Begins another sequence of users.
    ///
    /// # Errors
    /// As [`Draw::new`].
    pub fn reseed(&self, seed: u64) -> anyhow::Result<()> {
        self.state.borrow_mut().draw = Draw::new(self.spec.users, self.spec.draw, seed)?;
        Ok(())
    }

    /// Sends, until all that arrived is answered or given up, and tells what came of it.
    ///
    /// # Errors
    /// When there is no room to count in.
    pub async fn run(&self, arrivals: Arrivals, start: Instant) -> anyhow::Result<Stats> {
        let fresh = Stats::new()?;
        let length = {
            let mut state = self.state.borrow_mut();
            state.stats = fresh;
            state.stats.begin(start);
            let (schedule, length) = match arrivals {
                Arrivals::Open { rate, length } => {
                    let count = (rate * length.as_secs_f64()).round() as u64;
                    let count = state.draw.left().map_or(count, |left| count.min(left));
                    let until = start + length;
                    let open =
                        Schedule::Open { start, interval: 1.0 / rate, next: 0, count, until };
                    (open, length)
                }
                Arrivals::Closed { length } => (Schedule::Closed { until: start + length }, length),
            };
            state.schedule = schedule;
            for slot in &mut state.slots {
                if let Some(waker) = slot.parked.take() {
                    waker.wake();
                }
            }
            state.parked.clear();
            length
        };
        self.turn.notify_one();
        tokio::time::sleep_until((start + length).into()).await;
        let end = tokio::time::Instant::now() + GRACE;
        while !self.is_over() {
            if tokio::time::timeout_at(end, self.over.notified()).await.is_err() {
                self.drop_the_rest();
                break;
            }
        }
        while !self.is_over() {
            self.over.notified().await;
        }
        let mut state = self.state.borrow_mut();
        state.stats.end(Instant::now());
        let fresh = Stats::new()?;
        Ok(std::mem::replace(&mut state.stats, fresh))
    }

    /// What is known so far of the run that goes on.
    pub fn look<T>(&self, ask: impl FnOnce(&Stats) -> T) -> T {
        ask(&self.state.borrow().stats)
    }

    fn is_over(&self) -> bool {
        let state = self.state.borrow();
        state.in_flight == 0 && state.exhausted(Instant::now())
    }

    /// What was due and had no connection is an answer that never came.
    fn drop_the_rest(&self) {
        let mut state = self.state.borrow_mut();
        let now = Instant::now();
        if let Schedule::Open { start, interval, next, count, .. } = state.schedule {
            for number in next..count {
                let intended = start + Duration::from_secs_f64(interval * number as f64);
                state.stats.dropped(intended, now);
            }
        }
        state.schedule = Schedule::None;
    }

    /// The next request for a connection that is free: at once where one is due, else when the
    /// pacer gives it one.
    async fn next(&self, slot: usize) -> Job {
        std::future::poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if let Some(job) = state.slots[slot].job.take() {
                return Poll::Ready(job);
            }
            if let Some(job) = state.take(Instant::now()) {
                return Poll::Ready(job);
            }
            if state.slots[slot].parked.replace(context.waker().clone()).is_none() {
                state.parked.push_back(slot);
                if self.idle.replace(false) {
                    self.turn.notify_one();
                }
            }
            Poll::Pending
        })
        .await
    }

    async fn send(self: Rc<Self>, slot: usize) {
        let mut wire = Wire::new(&self.spec);
        let mut request = Vec::with_capacity(1024);
        loop {
            let job = self.next(slot).await;
            self.requests.write(job.user, &mut request);
            let (outcome, first) = wire.exchange(&request).await;
            let mut state = self.state.borrow_mut();
            let now = Instant::now();
            state.stats.book(&self.spec, job.user, job.intended, first, now, &outcome);
            if let Outcome::Refused { code: Some(code), .. } = outcome {
                state.stats.code(wire.text(code));
            }
            state.in_flight -= 1;
            if state.in_flight == 0 && state.exhausted(now) {
                self.over.notify_one();
            }
        }
    }

    /// Gives requests to connections that are free, each when it is due.
    async fn pace(self: Rc<Self>, timer: Timer) {
        loop {
            match self.give() {
                Some(next) => timer.wait_until(next).await,
                None => self.turn.notified().await,
            }
        }
    }

    /// Gives out what is due. When the next one is; `None` where somebody else will say.
    fn give(&self) -> Option<Instant> {
        let mut state = self.state.borrow_mut();
        self.idle.set(false);
        while let Some(slot) = state.parked.front().copied() {
            let Schedule::Open { start, interval, next, count, .. } = state.schedule else {
                return None;
            };
            if next >= count {
                return None;
            }
            let due = start + Duration::from_secs_f64(interval * next as f64);
            let now = Instant::now();
            if due > now {
                return Some(due);
            }
            state.parked.pop_front();
            let job = state.take(now);
            let slot = &mut state.slots[slot];
            slot.job = job;
            if let Some(waker) = slot.parked.take() {
                waker.wake();
            }
        }
        self.idle.set(true);
        None
    }
}

impl State {
    /// A request that is due.
    fn take(&mut self, now: Instant) -> Option<Job> {
        let intended = match &mut self.schedule {
            Schedule::None => return None,
            Schedule::Closed { until } if now < *until => now,
            Schedule::Closed { .. } => return None,
            Schedule::Open { start, interval, next, count, .. } => {
                let due = *start + Duration::from_secs_f64(*interval * *next as f64);
                if *next >= *count || due > now {
                    return None;
                }
                *next += 1;
                due
            }
        };
        let Some(user) = self.draw.user() else {
            self.schedule = Schedule::None;
            return None;
        };
        self.in_flight += 1;
        self.stats.sent += 1;
        Some(Job { intended, user })
    }

    /// Whether nothing will be sent any more.
    fn exhausted(&self, now: Instant) -> bool {
        match self.schedule {
            Schedule::None => true,
            Schedule::Closed { until } => now >= until,
            Schedule::Open { next, count, until, .. } => next >= count && now >= until,
        }
    }
}
