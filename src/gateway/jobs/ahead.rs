//! What clients send to a job's path that is no poll. They could have what was made, and then make
//! the backend forget the job before the gateway asks: nobody would pay. So whatever could change
//! a job is sent only when the gateway has asked how it stands, and whatever else looks at one has
//! it asked for soon.

use std::sync::Arc;
use std::time::Instant;

use http::{Method, Request};
use tokio::time::{Duration, sleep};
use tokio_util::sync::CancellationToken;

use super::super::Refused;
use super::super::carry::Carried;
use super::super::outgoing::Outgoing;
use super::super::quote::unescape;
use super::super::upstream::Upstream;
use super::super::worker::Worker;
use super::queue::Place;
use super::{APART, Asking, Charges, Index, Jobs, PATIENCE, poll};
use crate::books::Books;
use crate::core::ids::ChargeId;
use crate::core::refusal::{Code, Refusal};

/// How many segments below its own path are a job's.
const MAX_BELOW: usize = 8;
/// How often it is looked whether a question that somebody else asks is answered.
const LOOK: Duration = Duration::from_millis(20);

/// The open jobs, of whichever org, that a request may change: those it names, or that it names
/// something of. One that only looks at them changes nothing, and has them asked for soon.
pub fn touched<B>(
    worker: &Worker<B>,
    upstream: &Upstream,
    request: &Request<Outgoing>,
) -> Option<Charges> {
    if worker.jobs.is_empty() {
        return None;
    }
    let path = unescape(request.uri().path(), false).ok()?;
    let upstream = upstream.name.as_str();
    if [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method()) {
        worker.jobs.hasten(upstream, &path, Instant::now());
        return None;
    }
    let charges = worker.jobs.index.lock().below(upstream, &path);
    (!charges.is_empty()).then_some(charges)
}

/// Asks how these jobs stand, and settles those that are over.
///
/// # Errors
/// 502 and 504 where the backend does not tell; `books_unavailable`.
pub async fn ask_ahead<B: Books + 'static>(
    worker: &Arc<Worker<B>>,
    charges: Charges,
) -> Result<(), Refused> {
    let own = Arc::clone(worker);
    let work = async move {
        let came = Instant::now();
        for charge in charges {
            ask(&own, charge, came).await?;
        }
        Ok(())
    };
    // What is begun is settled, whoever leaves.
    Carried::new(&worker.tasks, work).await
}

/// Comes back when a question is answered that began after `came`, whoever asked it.
async fn ask<B: Books + 'static>(
    worker: &Worker<B>,
    charge: ChargeId,
    came: Instant,
) -> Result<(), Refused> {
    let refused = |code, detail| Err(Refusal::new(code, detail).into());
    while came.elapsed() < PATIENCE {
        match worker.jobs.ahead(charge, came, Instant::now()) {
            Ahead::Known => return Ok(()),
            Ahead::Unknown => {
                let detail = "the backend does not tell how the job stands, which is asked before \
                              anything is done to it; nothing was sent";
                return refused(Code::UpstreamFailed, detail);
            }
            // Who waits for it is no less in flight because the worker drains.
            Ahead::Ask(mut asking) => {
                poll::ask(worker, &mut asking, &CancellationToken::new()).await?;
            }
            Ahead::Wait => sleep(LOOK).await,
        }
    }
    let detail = "the backend did not tell in time how the job stands; nothing was sent";
    refused(Code::UpstreamTimeout, detail)
}

/// What there is to do before a request is sent that may change a job.
enum Ahead {
    /// Nothing: the backend told how it stands, or it is over.
    Known,
    /// Nothing: it did not tell.
    Unknown,
    /// To ask.
    Ask(Asking),
    /// To wait: it is being asked for, or was just now.
    Wait,
}

impl Jobs {
    fn ahead(self: &Arc<Self>, charge: ChargeId, came: Instant, now: Instant) -> Ahead {
        let mut index = self.index.lock();
        let Some(job) = index.open.get(&charge) else { return Ahead::Known };
        match job.answered {
            Some((began, true)) if began >= came => return Ahead::Known,
            Some((began, false)) if began >= came => return Ahead::Unknown,
            _ => {}
        }
        let is_early = job.asked.is_some_and(|asked| now < asked + APART);
        if is_early {
            return Ahead::Wait;
        }
        self.begin(&mut index, charge, Place::Common, now).map_or(Ahead::Wait, Ahead::Ask)
    }

    /// Has the jobs that are there or above asked for as soon as may be.
    fn hasten(&self, upstream: &str, path: &str, now: Instant) {
        let mut index = self.index.lock();
        let charges = index.below(upstream, path);
        let Index { open, backends, .. } = &mut *index;
        let Some(backend) = backends.get_mut(upstream) else { return };
        for charge in charges {
            let Some(job) = open.get_mut(&charge) else { continue };
            let soon = job.asked.map_or(now, |asked| now.max(asked + APART));
            if let Some(due) = job.due.filter(|due| soon < *due) {
                backend.queue.remove(charge, due, job.last);
                backend.queue.put(charge, soon, job.last);
                job.due = Some(soon);
            }
        }
    }
}

/// The paths of the jobs that a path may be something of: it itself, and those above it.
pub(super) fn above<'p>(path: &'p str) -> impl Iterator<Item = &'p str> {
    let next = |path: &&'p str| Some(path.rsplit_once('/')?.0);
    std::iter::successors(Some(path), next).take(MAX_BELOW + 1)
}

impl Index {
    /// The charges whose job this path names, or something of.
    pub(super) fn below(&self, upstream: &str, path: &str) -> Charges {
        let Some(backend) = self.backends.get(upstream) else { return Charges::new() };
        let mut charges: Charges =
            above(path).filter_map(|path| backend.paths.get(path)).flatten().copied().collect();
        charges.sort_unstable();
        charges.dedup();
        charges
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::note::JobNote;

    fn charge(at: u128) -> ChargeId {
        ChargeId::v7(1, at)
    }

    fn put(jobs: &Jobs, at: u128, path: &str, root: usize) {
        let (upstream, path) = ("media".to_owned(), path.to_owned());
        let note = JobNote { upstream, path, root, poll: 3_600_000, ..JobNote::default() };
        jobs.put(charge(at), "acme", &note, jiff::SignedDuration::from_hours(24));
    }

    #[test]
    fn d34_what_is_below_a_jobs_own_path_is_the_jobs() {
        let jobs = Jobs::default();
        put(&jobs, 1, "/v1/videos/a%20b/status", "/v1/videos/a%20b".len());
        put(&jobs, 2, "/v1/videos/c", 0);
        let below = |path: &str| jobs.index.lock().below("media", path).to_vec();
        for path in ["", "/status", "/", "/content/1.mp4", "/a/b/c/d/e/f/g/h"] {
            assert_eq!(below(&format!("/v1/videos/a b{path}")), [charge(1)], "{path}");
            assert_eq!(below(&format!("/v1/videos/c{path}")), [charge(2)], "{path}");
        }
        for path in ["/", "/v1/videos", "/v1/videos/a", "/v1/videos/c.json", "/v1/videos/cc"] {
            assert!(below(path).is_empty(), "{path}");
        }
        // Only the status document itself is one that tells an end.
        assert!(jobs.at("media", "/v1/videos/a b", "acme").is_empty());
        assert_eq!(jobs.at("media", "/v1/videos/a b/status", "acme")[..], [charge(1)]);
        jobs.remove(charge(1));
        jobs.remove(charge(2));
        assert!(jobs.index.lock().backends.is_empty());
    }

    #[test]
    fn d34_whoever_changes_a_job_waits_for_a_question_of_later_and_asks_it_once_a_second() {
        let jobs = Arc::new(Jobs::default());
        put(&jobs, 1, "/v1/videos/a", 0);
        let came = Instant::now();
        let Ahead::Ask(mut first) = jobs.ahead(charge(1), came, came) else { panic!() };
        assert!(matches!(jobs.ahead(charge(1), came, came), Ahead::Wait), "it is asked for");
        first.told = true;
        drop(first);
        assert!(matches!(jobs.ahead(charge(1), came, came), Ahead::Known));
        // What was asked before it came tells nothing.
        let later = came + Duration::from_millis(1);
        assert!(
            matches!(jobs.ahead(charge(1), later, later), Ahead::Wait),
            "it was just asked for"
        );
        let Ahead::Ask(second) = jobs.ahead(charge(1), later, came + APART) else { panic!() };
        drop(second);
        assert!(matches!(jobs.ahead(charge(1), later, came + APART), Ahead::Unknown));
        jobs.remove(charge(1));
        assert!(matches!(jobs.ahead(charge(1), later, later), Ahead::Known));
    }

    #[test]
    fn d34_a_look_at_a_job_has_it_asked_for_soon_and_not_more_than_once_a_second() {
        let jobs = Arc::new(Jobs::default());
        put(&jobs, 1, "/v1/videos/a", 0);
        let now = Instant::now();
        assert!(jobs.backends_due(now).is_empty());
        jobs.hasten("media", "/v1/videos/b", now);
        jobs.hasten("else", "/v1/videos/a", now);
        assert!(jobs.backends_due(now).is_empty());
        jobs.hasten("media", "/v1/videos/a/content", now);
        drop(jobs.take_due("media", now).unwrap());
        let asked = jobs.index.lock().open[&charge(1)].asked.unwrap();
        jobs.hasten("media", "/v1/videos/a", asked);
        assert!(jobs.take_due("media", asked + APART - Duration::from_millis(1)).is_none());
        assert!(jobs.take_due("media", asked + APART).is_some());
    }
}
