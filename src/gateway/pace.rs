//! How long a client may take: for a head, for a body, for reading its answer, and for nothing at
//! all between two requests (f72).
//!
//! No request has a timer. Connections write down since when they wait for their client, on a
//! coarse clock that costs a load, and one sweep of the worker ends those that waited too long.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::worker::Connection;
use crate::config;

/// How often waits are looked at; deadlines are kept to about as much.
pub const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// Deadlines, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Deadlines {
    header: u64,
    body: u64,
    idle: u64,
    write: u64,
}

/// A worker's connections, and the clock they wait by.
#[derive(Debug)]
pub struct Pulse {
    /// Milliseconds that the worker served, from 1. Written by [`Pulse::sweep`] only.
    now: Arc<AtomicU64>,
    deadlines: Deadlines,
    /// When the last sweep was. Locked by the sweep only.
    last: Mutex<Instant>,
    /// Locked by a new connection and by the sweep, both of the worker's thread.
    connections: Mutex<Vec<Weak<Connection>>>,
}

impl Pulse {
    /// A clock that begins now.
    pub fn new(config: &config::Gateway) -> Self {
        let milliseconds = |of: Duration| u64::try_from(of.as_millis()).unwrap_or(u64::MAX);
        Self {
            now: Arc::new(AtomicU64::new(1)),
            deadlines: Deadlines {
                header: milliseconds(config.header_timeout),
                body: milliseconds(config.body_timeout),
                idle: milliseconds(config.idle_timeout),
                write: milliseconds(config.write_timeout),
            },
            last: Mutex::new(Instant::now()),
            connections: Mutex::default(),
        }
    }

    /// The pace of a connection that has just been made.
    pub fn pace(&self) -> Pace {
        let now = Arc::clone(&self.now);
        let since = AtomicU64::new(now.load(Relaxed));
        // What a new connection waits for is its first head.
        let phase = AtomicU8::new(Phase::Head as u8);
        Pace {
            now,
            phase,
            since,
            began: AtomicBool::new(false),
            turn: AtomicU32::new(0),
            uploading: AtomicBool::new(false),
            body: Wait::default(),
            write: Wait::default(),
            late: AtomicU8::new(0),
            waker: Mutex::default(),
        }
    }

    /// Watches over a connection from the next sweep on.
    pub fn watch(&self, connection: &Arc<Connection>) {
        self.connections.lock().push(Arc::downgrade(connection));
    }

    /// Moves the clock on, and ends the connections whose client took too long. To be called
    /// every [`SWEEP_INTERVAL`].
    pub fn sweep(&self) {
        let mut last = self.last.lock();
        let passed = last.elapsed();
        *last = Instant::now();
        // Time in which the worker itself stood still is no client's delay.
        let passed = passed.min(2 * SWEEP_INTERVAL);
        let now = self.now.load(Relaxed) + u64::try_from(passed.as_millis()).unwrap_or(0);
        self.now.store(now, Relaxed);
        self.connections.lock().retain(|connection| {
            let Some(connection) = connection.upgrade() else { return false };
            connection.pace.judge(now, &self.deadlines);
            true
        });
    }
}

/// Where a connection is in its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// A head has begun, or the connection has.
    Head,
    /// A request is being served.
    Serving,
    /// Its answer was handed to be written.
    Answered,
    /// Its answer was written. Nothing came since.
    Idle,
}

/// What a client took too long for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Late {
    /// The rest of a head.
    Header = 1,
    /// The rest of a body.
    Body,
    /// The next request, or the first.
    Idle,
    /// To read its answer.
    Write,
}

/// Since when one connection waits for its client, and for what. Written by the worker's thread
/// only; atomic because tasks must be `Send`.
#[derive(Debug)]
pub struct Pace {
    now: Arc<AtomicU64>,
    phase: AtomicU8,
    /// When the phase began.
    since: AtomicU64,
    /// Whether anything of the head came.
    began: AtomicBool,
    /// Counts requests, so that what is left of one does not speak for the next.
    turn: AtomicU32,
    /// A request's body is still read, perhaps beyond its answer.
    uploading: AtomicBool,
    body: Wait,
    write: Wait,
    /// A [`Late`]; 0 while the client keeps its time.
    late: AtomicU8,
    /// Of the connection's task.
    waker: Mutex<Option<Waker>>,
}

/// Time spent waiting for bytes, of which each byte that moves pays one millisecond back: who
/// moves a kilobyte a second is never late, and who stalls is late after the deadline, however
/// much came before.
#[derive(Debug, Default)]
struct Wait {
    /// 0: not waiting.
    since: AtomicU64,
    debt: AtomicU64,
}

impl Wait {
    fn begin(&self, now: u64) {
        if self.since.load(Relaxed) == 0 {
            self.since.store(now, Relaxed);
        }
    }

    fn end(&self, now: u64, bytes: usize) {
        let (since, debt) = (self.since.load(Relaxed), self.debt.load(Relaxed));
        if since == 0 && debt == 0 {
            return;
        }
        let waited = if since == 0 { 0 } else { now.saturating_sub(since) };
        self.since.store(0, Relaxed);
        self.debt.store((debt + waited).saturating_sub(bytes as u64), Relaxed);
    }

    fn is_over(&self, now: u64, deadline: u64) -> bool {
        let since = self.since.load(Relaxed);
        since != 0 && self.debt.load(Relaxed) + now.saturating_sub(since) > deadline
    }

    fn forget(&self) {
        self.since.store(0, Relaxed);
        self.debt.store(0, Relaxed);
    }
}

impl Pace {
    fn now(&self) -> u64 {
        self.now.load(Relaxed)
    }

    fn is(&self, phase: Phase) -> bool {
        self.phase.load(Relaxed) == phase as u8
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
        self.since.store(self.now(), Relaxed);
    }

    /// Who is woken when the client is late.
    pub fn wakes(&self, waker: &Waker) {
        *self.waker.lock() = Some(waker.clone());
    }

    /// What the client took too long for, if it did.
    pub fn late(&self) -> Option<Late> {
        match self.late.load(Relaxed) {
            0 => None,
            1 => Some(Late::Header),
            2 => Some(Late::Body),
            3 => Some(Late::Idle),
            _ => Some(Late::Write),
        }
    }

    /// True between an answer and the next request: what is written then is not an answer of the
    /// pipeline.
    pub fn is_between_requests(&self) -> bool {
        self.is(Phase::Head) || self.is(Phase::Idle)
    }

    /// Some of a head came.
    pub fn head_came(&self) {
        self.began.store(true, Relaxed);
        if self.is(Phase::Idle) {
            self.enter(Phase::Head);
        }
    }

    /// A head is whole, and its request is served.
    pub fn request_began(&self, uploading: bool) {
        self.phase.store(Phase::Serving as u8, Relaxed);
        self.turn.store(self.turn().wrapping_add(1), Relaxed);
        self.uploading.store(uploading, Relaxed);
        self.body.forget();
        self.write.forget();
    }

    /// Which request is served.
    pub fn turn(&self) -> u32 {
        self.turn.load(Relaxed)
    }

    /// An answer was handed to be written.
    pub fn answered(&self) {
        self.phase.store(Phase::Answered as u8, Relaxed);
    }

    /// Everything handed to be written was. True where that ends an answer.
    pub fn flushed(&self) -> bool {
        let ends = self.is(Phase::Answered);
        if ends {
            self.began.store(false, Relaxed);
            self.enter(Phase::Idle);
        }
        ends
    }

    /// True while a request's body is still read.
    pub fn is_uploading(&self) -> bool {
        self.uploading.load(Relaxed)
    }

    /// Nothing more is read of a request's body.
    pub fn upload_ended(&self) {
        self.uploading.store(false, Relaxed);
        self.body.forget();
    }

    /// Someone waits for more of a request's body.
    pub fn body_awaited(&self) {
        self.body.begin(self.now());
    }

    /// So many bytes of a request's body came.
    pub fn body_came(&self, bytes: usize) {
        self.body.end(self.now(), bytes);
    }

    /// The client's side takes nothing now.
    pub fn write_awaited(&self) {
        self.write.begin(self.now());
    }

    /// The client's side took so many bytes.
    pub fn written(&self, bytes: usize) {
        self.write.end(self.now(), bytes);
    }

    fn judge(&self, now: u64, deadlines: &Deadlines) {
        let waited = now.saturating_sub(self.since.load(Relaxed));
        let late = if self.body.is_over(now, deadlines.body) {
            Late::Body
        } else if self.write.is_over(now, deadlines.write) {
            Late::Write
        } else if self.is(Phase::Head) && waited > deadlines.header {
            if self.began.load(Relaxed) { Late::Header } else { Late::Idle }
        } else if self.is(Phase::Idle) && !self.is_uploading() && waited > deadlines.idle {
            Late::Idle
        } else {
            return;
        };
        self.late.store(late as u8, Relaxed);
        if let Some(waker) = &*self.waker.lock() {
            waker.wake_by_ref();
        }
    }
}
