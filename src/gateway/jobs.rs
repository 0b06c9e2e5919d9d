//! Jobs (D34): a submission is answered before anything is made, so its charge is held until the
//! job's status document says how it ended. Whoever sees that first settles the charge: a poll
//! that passes through, the gateway's own, or the backend's report. All that is needed stands in
//! the hold's note; the index of open jobs is made from that again at each start.

mod ahead;
mod elsewhere;
mod poll;
mod queue;
mod report;
mod rules;
mod settle;
mod status;
mod submit;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use smallvec::SmallVec;

use self::queue::{Place, Queue};
use super::Refused;
use super::quote::unescape;
use crate::books::OpenCharge;
use crate::core::charge::HoldMemo;
use crate::core::ids::ChargeId;
use crate::core::note::{self, HoldNote, JobNote};
use crate::core::refusal::{Code, Refusal};

pub use ahead::{ask_ahead, touched};
pub use elsewhere::{take_up, unknown};
pub use poll::{Polled, ask_those_due, polled};
pub use report::{MAX_BODY, Reported, Reporter, report, reporter};
pub use rules::Rules;
pub use submit::submitted;

/// How many jobs may be open: some 2 KiB each, with their holds.
const MAX_OPEN: usize = 50_000;
/// How many of them one org may have, so that it leaves some to others.
const MAX_OF_ORG: usize = MAX_OPEN / 4;
/// How long before its charge ends by itself a job is asked for a last time.
const LAST_WORD: Duration = Duration::from_secs(5);
/// How long a question may take at most.
const PATIENCE: Duration = Duration::from_secs(10);
/// And at least, however soon the last one is to come.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);
/// The longest wait between two questions, unless the first is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How far apart questions about one job are at least, whatever clients do.
const APART: Duration = Duration::from_secs(1);

/// Charges, of which a job mostly has one.
pub type Charges = SmallVec<[ChargeId; 1]>;

/// The open jobs, over all workers. Its lock is a leaf.
#[derive(Debug, Default)]
pub struct Jobs {
    /// How many there are, so that whoever has none takes no lock.
    count: AtomicUsize,
    index: Mutex<Index>,
}

#[derive(Debug, Default)]
struct Index {
    open: HashMap<ChargeId, Job>,
    /// How many each org has.
    orgs: HashMap<Box<str>, usize>,
    /// By the name of the upstream.
    backends: HashMap<Box<str>, Backend>,
    /// Those whose time was over when they were taken up, and who were not asked for since.
    overdue: HashSet<ChargeId>,
}

#[derive(Debug)]
struct Job {
    upstream: Box<str>,
    /// As it is read, with nothing escaped.
    path: Box<str>,
    /// The same as far as it names the job: what is there and below is the job's.
    root: Box<str>,
    org: Box<str>,
    /// When it is asked for next; `None` while it is.
    due: Option<Instant>,
    /// When it is asked for once more, before its charge ends by itself; `None` once it was.
    last: Option<Instant>,
    wait: Duration,
    /// When it was asked for last.
    asked: Option<Instant>,
    /// When that was whose question is answered, and whether that says how the job stands.
    answered: Option<(Instant, bool)>,
}

/// What there is of one upstream; gone with its last job.
#[derive(Debug, Default)]
struct Backend {
    /// By the path of the status document, and by the one that names the job. A backend may give
    /// one job to several submissions.
    paths: HashMap<Box<str>, Charges>,
    queue: Queue,
}

impl Jobs {
    /// How many are open.
    pub fn len(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Refuses one more job than may be open, or than one org may have open.
    ///
    /// # Errors
    /// `too_many_in_flight`.
    pub fn admit(&self, org: &str) -> Result<(), Refused> {
        let of_org = || self.index.lock().orgs.get(org).copied().unwrap_or_default();
        if self.len() < MAX_OPEN && of_org() < MAX_OF_ORG {
            return Ok(());
        }
        let detail = "as many jobs are open as may be; try again when some have ended";
        let mut refused = Refused::from(Refusal::new(Code::TooManyInFlight, detail));
        refused.retry_after = Some(5);
        Err(refused)
    }

    /// Takes up what an earlier process left open, to be asked for at once.
    pub fn adopt(&self, open: &OpenCharge, now: Timestamp) {
        read(open, now, |org, job, left| self.take_up(open.charge, org, job, left));
    }

    fn take_up(&self, charge: ChargeId, org: &str, job: &JobNote, left: SignedDuration) {
        let last = until_last(left);
        // Where the time for it is over, the first question is the last.
        self.insert(charge, org, job, (Duration::ZERO, Some(last.unwrap_or_default())));
        let mut index = self.index.lock();
        if last.is_none() && index.open.contains_key(&charge) {
            index.overdue.insert(charge);
        }
    }

    /// Whether it is asked for here.
    pub fn knows(&self, charge: ChargeId) -> bool {
        self.index.lock().open.contains_key(&charge)
    }

    /// Whether it is asked for here, and need not be before its charge ends by itself.
    pub fn may_end(&self, charge: ChargeId) -> bool {
        let index = self.index.lock();
        index.open.contains_key(&charge) && !index.overdue.contains(&charge)
    }

    /// Whether some that were taken up with no time left have not been asked for yet.
    pub fn owes_questions(&self) -> bool {
        !self.is_empty() && !self.index.lock().overdue.is_empty()
    }

    /// Adds a job that was just submitted, and so much later is ended by itself.
    fn put(&self, charge: ChargeId, org: &str, job: &JobNote, left: SignedDuration) {
        self.insert(charge, org, job, (Duration::from_millis(job.poll), until_last(left)));
    }

    fn insert(
        &self,
        charge: ChargeId,
        org: &str,
        job: &JobNote,
        (first, last): (Duration, Option<Duration>),
    ) {
        let now = Instant::now();
        let last = last.map(|until| now + until);
        let due = sooner(now + first, last);
        let Some((path, root)) = paths(job) else { return };
        let mut index = self.index.lock();
        // Others may have taken it up first.
        if index.open.contains_key(&charge) {
            return;
        }
        let backend = index.backends.entry(job.upstream.as_str().into()).or_default();
        backend.paths.entry((*path).into()).or_default().push(charge);
        if root != path {
            backend.paths.entry((*root).into()).or_default().push(charge);
        }
        backend.queue.put(charge, due, last);
        let wait = Duration::from_millis(job.poll);
        let job = Job {
            upstream: job.upstream.as_str().into(),
            path: (*path).into(),
            root: (*root).into(),
            org: org.into(),
            due: Some(due),
            last,
            wait,
            asked: None,
            answered: None,
        };
        *index.orgs.entry(org.into()).or_default() += 1;
        index.open.insert(charge, job);
        self.count.store(index.open.len(), Relaxed);
    }

    /// Forgets a job whose charge is not open any more.
    pub fn remove(&self, charge: ChargeId) {
        if self.is_empty() {
            return;
        }
        let mut index = self.index.lock();
        let index = &mut *index;
        let Some(job) = index.open.remove(&charge) else { return };
        index.overdue.remove(&charge);
        self.count.store(index.open.len(), Relaxed);
        if let Some(count) = index.orgs.get_mut(&job.org) {
            *count -= 1;
            if *count == 0 {
                index.orgs.remove(&job.org);
            }
        }
        let Some(backend) = index.backends.get_mut(&job.upstream) else { return };
        if let Some(due) = job.due {
            backend.queue.remove(charge, due, job.last);
        }
        for path in [&job.path, &job.root] {
            if let Some(charges) = backend.paths.get_mut(path) {
                charges.retain(|known| *known != charge);
                if charges.is_empty() {
                    backend.paths.remove(path);
                }
            }
        }
        index.forget(&job.upstream);
    }

    /// Whether a charge is an open job's.
    pub fn is_open(&self, charge: ChargeId) -> bool {
        !self.is_empty() && self.index.lock().open.contains_key(&charge)
    }

    /// The charges of an org whose job has its status document there.
    fn at(&self, upstream: &str, path: &str, org: &str) -> Charges {
        let index = self.index.lock();
        let charges = index.backends.get(upstream).and_then(|backend| backend.paths.get(path));
        let is_own = |job: &Job| *job.org == *org && *job.path == *path;
        let own = |charge: &&ChargeId| index.open.get(*charge).is_some_and(is_own);
        charges.into_iter().flatten().filter(own).copied().collect()
    }

    /// The upstreams with a job whose time has come.
    fn backends_due(&self, now: Instant) -> Vec<Box<str>> {
        let index = self.index.lock();
        let due = index.backends.iter().filter(|(_, backend)| backend.queue.next(now).is_some());
        due.map(|(name, _)| name.clone()).collect()
    }

    /// The job of an upstream whose time came first, if so few are asked for that it may be.
    fn take_due(self: &Arc<Self>, upstream: &str, now: Instant) -> Option<Asking> {
        let mut index = self.index.lock();
        let (charge, place) = index.backends.get(upstream)?.queue.next(now)?;
        self.begin(&mut index, charge, place, Instant::now())
    }

    /// Begins a question about a job; `None` where it is being asked for.
    fn begin(
        self: &Arc<Self>,
        index: &mut Index,
        charge: ChargeId,
        place: Place,
        now: Instant,
    ) -> Option<Asking> {
        let job = index.open.get_mut(&charge)?;
        let queue = &mut index.backends.get_mut(&job.upstream)?.queue;
        queue.remove(charge, job.due.take()?, job.last);
        *queue.asked(place) += 1;
        job.asked = Some(now);
        let patience = patience(job.last, now);
        job.last = job.last.filter(|last| *last > now);
        let (jobs, upstream) = (Arc::clone(self), job.upstream.clone());
        Some(Asking { jobs, upstream, charge, place, began: now, patience, told: false })
    }
}

impl Index {
    /// Forgets an upstream without a job.
    fn forget(&mut self, upstream: &str) {
        let is_idle = |backend: &Backend| backend.paths.is_empty() && backend.queue.is_idle();
        if self.backends.get(upstream).is_some_and(is_idle) {
            self.backends.remove(upstream);
        }
    }
}

/// Tells of an open charge its org, its job, and when it ends by itself, where it is a job's.
fn read(open: &OpenCharge, now: Timestamp, and: impl FnOnce(&str, &JobNote, SignedDuration)) {
    let note: HoldNote = note::decode(&open.note);
    let memo = postcard::from_bytes::<HoldMemo<'_>>(&open.memo);
    if let (Some(job), Ok(memo)) = (note.job, memo) {
        let left = open.expires.map_or(SignedDuration::ZERO, |end| end.duration_since(now));
        and(memo.org, &job, left);
    }
}

/// The path of a job's status document, and the one that names it, with nothing escaped.
fn paths(job: &JobNote) -> Option<(Cow<'_, str>, Cow<'_, str>)> {
    let root = job.path.get(..job.root).filter(|root| !root.is_empty()).unwrap_or(&job.path);
    Some((unescape(&job.path, false).ok()?, unescape(root, false).ok()?))
}

/// How long it is until a job is asked for a last time, whose charge ends after so long; `None`
/// where that moment is over.
fn until_last(left: SignedDuration) -> Option<Duration> {
    Duration::try_from(left).unwrap_or_default().checked_sub(LAST_WORD)
}

/// When a job is asked for that is due then, and a last time at `last`.
fn sooner(due: Instant, last: Option<Instant>) -> Instant {
    last.map_or(due, |last| due.min(last))
}

/// How long a question that begins now may take: one that hangs must not keep the last one from
/// being asked.
fn patience(last: Option<Instant>, now: Instant) -> Duration {
    let left = last.map(|last| last.saturating_duration_since(now)).filter(|left| !left.is_zero());
    left.map_or(PATIENCE, |left| left.clamp(LEAST_PATIENCE, PATIENCE))
}

/// A job that is being asked for. Its drop puts it back for the next time, twice as far away.
struct Asking {
    jobs: Arc<Jobs>,
    upstream: Box<str>,
    charge: ChargeId,
    place: Place,
    began: Instant,
    /// How long it may take.
    patience: Duration,
    /// Whether the answer says how the job stands.
    told: bool,
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut index = self.jobs.index.lock();
        let index = &mut *index;
        index.overdue.remove(&self.charge);
        let Some(backend) = index.backends.get_mut(&self.upstream) else { return };
        *backend.queue.asked(self.place) -= 1;
        match index.open.get_mut(&self.charge) {
            Some(job) if job.due.is_none() => {
                // Where it took its time, the moment of the last question may be over by now.
                let due = sooner(Instant::now() + job.wait, job.last);
                job.wait = (job.wait * 2).min(LONGEST_WAIT.max(job.wait));
                (job.due, job.answered) = (Some(due), Some((self.began, self.told)));
                backend.queue.put(self.charge, due, job.last);
            }
            _ => index.forget(&self.upstream),
        }
    }
}
