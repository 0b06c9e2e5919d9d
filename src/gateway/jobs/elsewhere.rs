//! Jobs that other gateways took. Whoever shares books with them finds a job there by its path when
//! a request comes for it, and looks after it from then on as if it were its own: who polls it to its
//! end through one gateway, or has it deleted, pays as through the other. One of them settles it.

use std::sync::Arc;

use http::{Method, Request};
use smallvec::SmallVec;

use super::super::Refused;
use super::super::hold::unavailable;
use super::super::identify::Caller;
use super::super::once::digest;
use super::super::outgoing::Outgoing;
use super::super::quote::unescape;
use super::super::route::Route;
use super::super::upstream::Upstream;
use super::super::worker::Worker;
use super::ahead::above;
use super::{Jobs, until_last};
use crate::books::{Books, BooksError, Key, KeyOf, OpenCharge};
use crate::core::note::JobNote;

/// Names of jobs in the books.
type Names = SmallVec<[Key; 2]>;

/// What a request may ask for or change that this gateway does not look after.
pub struct Unknown {
    names: Names,
    /// It only looks.
    looks: bool,
}

/// Under which names others find a job: by the path of its status document, and by the one that
/// names it. None where nobody else has these books.
pub fn names<B: Books>(worker: &Worker<B>, org: &str, job: &JobNote) -> Names {
    let paths = super::paths(job).filter(|_| worker.books.is_shared());
    let Some((path, root)) = paths else { return Names::new() };
    let mut names: Names = [path, root].iter().map(|path| name(org, &job.upstream, path)).collect();
    names.dedup();
    names
}

fn name(org: &str, upstream: &str, path: &str) -> Key {
    Key::new(org, KeyOf::Job, digest([upstream.as_bytes(), path.as_bytes()]))
}

/// The names of the jobs that a request of a free route may mean, where only the books can tell:
/// those of its caller's org, at paths that routes to this upstream submit jobs to. What only looks
/// at a job that is known here is not asked for; what may change one is, because several charges
/// may have that job.
pub fn unknown<B: Books>(
    worker: &Worker<B>,
    caller: &Caller,
    (route, upstream): (&Route, &Upstream),
    request: &Request<Outgoing>,
) -> Option<Unknown> {
    if !worker.books.is_shared() || !worker.routes.has_jobs(route.upstream) {
        return None;
    }
    let path = unescape(request.uri().path(), false).ok()?;
    let (org, of) = (caller.org.id.as_str(), upstream.name.as_str());
    let looks = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    let may_be = |path: &&str| worker.routes.may_be_job(route.upstream, path);
    let names: Names = above(&path).filter(may_be).map(|path| name(org, of, path)).collect();
    let is_known = || looks && !worker.jobs.index.lock().below(of, &path).is_empty();
    (!names.is_empty() && !is_known()).then_some(Unknown { names, looks })
}

/// Takes up the jobs that have these names.
///
/// # Errors
/// For what may change a job: `books_unavailable`, and `too_many_in_flight` where there is no room.
/// What only looks at one goes on, and whoever took the job asks for it.
pub async fn take_up<B: Books + 'static>(
    worker: &Arc<Worker<B>>,
    caller: &Caller,
    unknown: Unknown,
) -> Result<(), Refused> {
    let taken = take(worker, caller.org.id.as_str(), &unknown.names).await;
    if unknown.looks { Ok(()) } else { taken }
}

async fn take<B: Books>(worker: &Worker<B>, org: &str, names: &[Key]) -> Result<(), Refused> {
    let away = |error: BooksError| unavailable(&error);
    for charge in worker.books.named(names).await.map_err(away)? {
        if worker.jobs.knows(charge) {
            continue;
        }
        worker.jobs.admit(org)?;
        if let Some(open) = worker.books.open_charge(charge).await.map_err(away)? {
            worker.jobs.share(&open, worker);
        }
    }
    Ok(())
}

impl Jobs {
    /// Looks after a job that another gateway took, and asks for too: so there is no hurry, unless
    /// its time is as good as over.
    fn share<B>(&self, open: &OpenCharge, worker: &Worker<B>) {
        super::read(open, worker.clock.now(), |org, job, left| match until_last(left) {
            Some(_) => self.put(open.charge, org, job, left),
            None => self.take_up(open.charge, org, job, left),
        });
    }
}
