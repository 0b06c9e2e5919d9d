//! Jobs (D34): a submission is answered before anything is made, so its charge is held until the
//! job's status document says how it ended. Whoever sees that first settles the charge: a poll
//! that passes through, the gateway's own, or the backend's report. All that is needed stands in
//! the hold's note; the index of open jobs is made from that again at each start.

mod ahead;
mod poll;
mod report;
mod rules;
mod settle;
mod status;
mod submit;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::Refused;
use super::quote::unescape;
use crate::books::OpenCharge;
use crate::core::charge::HoldMemo;
use crate::core::ids::ChargeId;
use crate::core::note::{self, HoldNote, JobNote};
use crate::core::refusal::{Code, Refusal};

pub use ahead::{ask_ahead, touched};
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
/// How many jobs of one backend are asked for at once.
const AT_ONCE: usize = 32;
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
    /// When it is asked for once more, before its charge ends by itself.
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
    due: BTreeSet<(Instant, ChargeId)>,
    asked: usize,
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
        let note: HoldNote = note::decode(&open.note);
        let memo = postcard::from_bytes::<HoldMemo<'_>>(&open.memo);
        if let (Some(job), Ok(memo)) = (note.job, memo) {
            let left = open.expires.map_or(SignedDuration::ZERO, |end| end.duration_since(now));
            self.insert(open.charge, memo.org, &job, (Duration::ZERO, left));
        }
    }

    /// Adds a job that was just submitted, and so much later is ended by itself.
    fn put(&self, charge: ChargeId, org: &str, job: &JobNote, left: SignedDuration) {
        self.insert(charge, org, job, (Duration::from_millis(job.poll), left));
    }

    fn insert(
        &self,
        charge: ChargeId,
        org: &str,
        job: &JobNote,
        (first, left): (Duration, SignedDuration),
    ) {
        let now = Instant::now();
        let left = Duration::try_from(left).unwrap_or_default();
        let last = left.checked_sub(LAST_WORD).map(|until| now + until);
        let due = sooner(now + first, last, now);
        let root = job.path.get(..job.root).filter(|root| !root.is_empty()).unwrap_or(&job.path);
        let (Ok(path), Ok(root)) = (unescape(&job.path, false), unescape(root, false)) else {
            return;
        };
        let mut index = self.index.lock();
        let backend = index.backends.entry(job.upstream.as_str().into()).or_default();
        backend.paths.entry((*path).into()).or_default().push(charge);
        if root != path {
            backend.paths.entry((*root).into()).or_default().push(charge);
        }
        backend.due.insert((due, charge));
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
        self.count.store(index.open.len(), Relaxed);
        if let Some(count) = index.orgs.get_mut(&job.org) {
            *count -= 1;
            if *count == 0 {
                index.orgs.remove(&job.org);
            }
        }
        let Some(backend) = index.backends.get_mut(&job.upstream) else { return };
        if let Some(due) = job.due {
            backend.due.remove(&(due, charge));
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
        let is_due = |backend: &&Backend| {
            backend.asked < AT_ONCE && backend.due.first().is_some_and(|(due, _)| *due <= now)
        };
        let due = index.backends.iter().filter(|(_, backend)| is_due(backend));
        due.map(|(name, _)| name.clone()).collect()
    }

    /// The job of an upstream whose time came first, if so few are asked for that it may be.
    fn take_due(self: &Arc<Self>, upstream: &str, now: Instant) -> Option<Asking> {
        let mut index = self.index.lock();
        let index = &mut *index;
        let backend = index.backends.get_mut(upstream)?;
        if backend.asked >= AT_ONCE || backend.due.first().is_none_or(|(due, _)| *due > now) {
            return None;
        }
        let (_, charge) = backend.due.pop_first()?;
        backend.asked += 1;
        let began = Instant::now();
        if let Some(job) = index.open.get_mut(&charge) {
            (job.due, job.asked) = (None, Some(began));
        }
        Some(Asking {
            jobs: Arc::clone(self),
            upstream: upstream.into(),
            charge,
            began,
            told: false,
        })
    }
}

impl Index {
    /// Forgets an upstream without a job.
    fn forget(&mut self, upstream: &str) {
        let is_idle = |backend: &Backend| backend.paths.is_empty() && backend.asked == 0;
        if self.backends.get(upstream).is_some_and(is_idle) {
            self.backends.remove(upstream);
        }
    }
}

/// When a job is asked for that is due then, and a last time at `last`, unless it was `asked` for
/// since.
fn sooner(due: Instant, last: Option<Instant>, asked: Instant) -> Instant {
    last.filter(|last| *last > asked).map_or(due, |last| due.min(last))
}

/// A job that is being asked for. Its drop puts it back for the next time, twice as far away.
struct Asking {
    jobs: Arc<Jobs>,
    upstream: Box<str>,
    charge: ChargeId,
    began: Instant,
    /// Whether the answer says how the job stands.
    told: bool,
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut index = self.jobs.index.lock();
        let index = &mut *index;
        let Some(backend) = index.backends.get_mut(&self.upstream) else { return };
        backend.asked -= 1;
        match index.open.get_mut(&self.charge) {
            Some(job) if job.due.is_none() => {
                // A question that took its time may have begun before the last moment to ask.
                let due = sooner(Instant::now() + job.wait, job.last, self.began);
                job.wait = (job.wait * 2).min(LONGEST_WAIT.max(job.wait));
                (job.due, job.answered) = (Some(due), Some((self.began, self.told)));
                backend.due.insert((due, self.charge));
            }
            _ => index.forget(&self.upstream),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charge(at: u128) -> ChargeId {
        ChargeId::v7(1, at)
    }

    fn note(upstream: &str, job: u128) -> JobNote {
        let path = format!("/jobs/a%20{job}");
        JobNote { upstream: upstream.to_owned(), path, poll: 1_000, ..JobNote::default() }
    }

    /// Until their charges end by themselves.
    const DAY: SignedDuration = SignedDuration::from_hours(24);

    #[test]
    fn d34_a_job_is_asked_for_a_last_time_before_its_charge_ends() {
        let (now, day) = (Instant::now(), Duration::from_secs(24 * 3600));
        let last = Some(now + day);
        for (due, last, expected) in [
            (now + day * 2, last, now + day),
            (now + day / 2, last, now + day / 2),
            (now + day * 2, None, now + day * 2),
            // It was asked for.
            (now + day, Some(now), now + day),
            // What was asked since a while is answered behind the last moment.
            (now + day, Some(now + day / 4), now + day / 4),
        ] {
            assert_eq!(sooner(due, last, now), expected);
        }
        let jobs = Jobs::default();
        let note = JobNote { poll: 3_600_000, ..note("media", 1) };
        jobs.put(charge(1), "acme", &note, SignedDuration::from_mins(10));
        let due = jobs.index.lock().open[&charge(1)].due.unwrap();
        let left = due.duration_since(now);
        assert!((590..=596).contains(&left.as_secs()), "{left:?}");
        // That moment may pass while an earlier question is not answered.
        let jobs = Arc::new(jobs);
        let asking = jobs.take_due("media", due).unwrap();
        let last = asking.began + Duration::from_nanos(1);
        jobs.index.lock().open.get_mut(&charge(1)).unwrap().last = Some(last);
        drop(asking);
        assert_eq!(jobs.index.lock().open[&charge(1)].due, Some(last));
        drop(jobs.take_due("media", last).unwrap());
        assert!(jobs.take_due("media", last + LONGEST_WAIT).is_none());
    }

    #[test]
    fn d34_one_org_leaves_some_jobs_to_others() {
        let jobs = Jobs::default();
        for at in 0..MAX_OF_ORG as u128 {
            assert!(jobs.admit("acme").is_ok());
            jobs.put(charge(at), "acme", &note("media", at), DAY);
        }
        assert_eq!(jobs.admit("acme").unwrap_err().refusal.code, Code::TooManyInFlight);
        assert!(jobs.admit("globex").is_ok());
        jobs.remove(charge(7));
        assert!(jobs.admit("acme").is_ok());
        for at in 0..MAX_OF_ORG as u128 {
            jobs.remove(charge(at));
        }
        assert!(jobs.index.lock().orgs.is_empty());
    }

    #[test]
    fn d34_a_job_is_asked_for_after_a_while_and_then_twice_as_long_apart() {
        let jobs = Arc::new(Jobs::default());
        let began = Instant::now();
        jobs.put(charge(1), "acme", &note("media", 1), DAY);
        let mut before = began;
        for wait in [1, 1, 2, 4, 8, 16, 32, 60, 60] {
            let early = before + Duration::from_millis(wait * 1_000 - 1);
            assert!(jobs.take_due("media", early).is_none(), "{wait}");
            assert!(jobs.backends_due(early).is_empty());
            let due = Instant::now() + Duration::from_secs(wait);
            assert_eq!(jobs.backends_due(due), [Box::from("media")]);
            let asking = jobs.take_due("media", due).unwrap();
            assert!(jobs.take_due("media", due + LONGEST_WAIT * 2).is_none(), "it is asked for");
            before = Instant::now();
            drop(asking);
        }
    }

    #[test]
    fn d34_so_many_jobs_of_an_upstream_are_asked_for_at_once() {
        let jobs = Arc::new(Jobs::default());
        let later = Instant::now() + Duration::from_secs(5);
        for at in 0..AT_ONCE as u128 + 1 {
            jobs.put(charge(at), "acme", &note("hangs", at), DAY);
        }
        jobs.put(charge(99), "acme", &note("works", 99), DAY);
        let asked: Vec<Asking> = std::iter::from_fn(|| jobs.take_due("hangs", later)).collect();
        assert_eq!(asked.len(), AT_ONCE);
        assert_eq!(jobs.backends_due(later), [Box::from("works")]);
        assert!(jobs.take_due("works", later).is_some());
        drop(asked);
        assert!(jobs.take_due("hangs", later).is_some());
    }

    #[test]
    fn d34_no_more_jobs_are_open_than_may_be() {
        let jobs = Jobs::default();
        for at in 0..MAX_OPEN as u128 {
            assert!(jobs.admit("globex").is_ok());
            jobs.put(charge(at), "acme", &note("media", at), DAY);
        }
        let refused = jobs.admit("globex").unwrap_err();
        assert_eq!((refused.refusal.code, refused.retry_after), (Code::TooManyInFlight, Some(5)));
        jobs.remove(charge(7));
        assert!(jobs.admit("globex").is_ok());
    }

    #[test]
    fn d34_a_job_that_is_over_leaves_nothing_whoever_still_asks_for_it() {
        let jobs = Arc::new(Jobs::default());
        let later = Instant::now() + Duration::from_secs(5);
        for at in 0..4 {
            jobs.put(
                charge(at),
                if at == 3 { "else" } else { "acme" },
                &note("media", at / 2),
                DAY,
            );
        }
        assert_eq!(jobs.at("media", "/jobs/a 0", "acme")[..], [charge(0), charge(1)]);
        assert_eq!(jobs.at("media", "/jobs/a 1", "acme")[..], [charge(2)]);
        assert_eq!(jobs.at("media", "/jobs/a 1", "else")[..], [charge(3)]);
        for (upstream, path) in [("other", "/jobs/a 0"), ("media", "/jobs/a%200"), ("media", "/")] {
            assert!(jobs.at(upstream, path, "acme").is_empty());
        }
        let asking = jobs.take_due("media", later).unwrap();
        for at in 0..4 {
            assert!(jobs.is_open(charge(at)));
            jobs.remove(charge(at));
            jobs.remove(charge(at));
        }
        assert!(jobs.is_empty() && !jobs.is_open(charge(0)));
        assert_eq!(jobs.index.lock().backends.len(), 1, "somebody still asks");
        drop(asking);
        assert!(jobs.index.lock().backends.is_empty());
    }
}
