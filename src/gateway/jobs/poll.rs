//! Polls: those of clients, which pass through and are read on the way, and the gateway's own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue};
use http::{Method, Request, Response, response};
use http_body::Body;
use tokio::time::timeout;

use super::super::Refused;
use super::super::carry::Carried;
use super::super::dress::{TOLLGATE_ORG, X_REQUEST_ID};
use super::super::flow::Flow;
use super::super::forward::{self, Gathered};
use super::super::identify::{Caller, TOLLGATE_USER};
use super::super::later::Later;
use super::super::meter_body::Content;
use super::super::outgoing::{Outgoing, Upload};
use super::super::quote::unescape;
use super::super::upstream::Upstream;
use super::super::usage::Reading;
use super::super::worker::Worker;
use super::{Asking, Charges, settle};
use crate::books::{Books, OpenCharge};

/// How long a question of the gateway's own may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many one task asks for, so that it does not outlive its configuration for long.
const IN_A_ROW: usize = 16;

/// A client's poll of jobs that are open.
pub struct Polled(Charges);

/// Which open jobs a request of a free route asks for. Its answer is believed only where nothing
/// but the path decides it, and the jobs are of the caller's own org: nobody should be able to
/// have an answer made that tells of another end. What it is not believed in is passed on, and
/// asked for by the gateway itself.
pub fn polled<B>(
    worker: &Worker<B>,
    caller: &Caller,
    upstream: &Upstream,
    request: &mut Request<Outgoing>,
) -> Option<Box<Polled>> {
    if worker.jobs.is_empty()
        || *request.method() != Method::GET
        || request.uri().query().is_some()
        || !request.body().is_end_stream()
    {
        return None;
    }
    let path = unescape(request.uri().path(), false).ok()?;
    let charges = worker.jobs.at(upstream.name.as_str(), &path, caller.org.id.as_str());
    if charges.is_empty() {
        return None;
    }
    drop(path);
    // It is read as it comes, so it should come as it is (f74).
    request.headers_mut().remove(ACCEPT_ENCODING);
    Some(Box::new(Polled(charges)))
}

impl Polled {
    /// Reads an answer on its way to the client, who has it only when what it tells is settled.
    ///
    /// # Errors
    /// `books_unavailable`.
    pub async fn pass<B: Books + 'static>(
        self,
        worker: &Arc<Worker<B>>,
        upstream: &Upstream,
        head: response::Parts,
        mut flow: Flow,
    ) -> Result<Response<Content<B>>, Refused> {
        if !tells(&head) {
            return Ok(Response::from_parts(head, Content::Passed(flow)));
        }
        let until = Instant::now() + upstream.response_timeout;
        let reading = &mut Reading::default();
        let content = match forward::gather(&mut flow, reading, usize::MAX, until).await {
            Gathered::Whole(bytes) if bytes.len() as u64 > forward::SMALL => {
                Content::Whole(Some(bytes))
            }
            Gathered::Whole(bytes) => {
                let (own, text) = (Arc::clone(worker), bytes.clone());
                let work = async move {
                    for charge in self.0 {
                        settle::settle(&own, charge, &text, own.clock.now()).await?;
                    }
                    Ok::<_, Refused>(())
                };
                // What is begun is counted, whoever leaves.
                let settled = Carried::new(&worker.tasks, work).await;
                settled.map_err(|refused| Refused { counted: true, ..refused })?;
                Content::Whole(Some(bytes))
            }
            Gathered::Broken(bytes, _) => Content::Broken(Some(bytes)),
            Gathered::Open(read) => Content::begun(read, flow),
        };
        Ok(Response::from_parts(head, content))
    }
}

/// Whether an answer is a status document that can be read.
fn tells(head: &response::Parts) -> bool {
    head.status.as_u16() == 200 && !head.headers.contains_key(CONTENT_ENCODING)
}

/// Asks for the jobs whose time has come, in tasks of this worker: so many at once of each
/// upstream. To be called with each sweep.
pub fn ask_those_due<B: Books + 'static>(worker: &Arc<Worker<B>>) {
    if worker.jobs.is_empty() {
        return;
    }
    let now = Instant::now();
    for upstream in worker.jobs.backends_due(now) {
        while let Some(first) = worker.jobs.take_due(&upstream, now) {
            let (worker, tasks) = (Arc::clone(worker), &worker.tasks);
            tasks.spawn(async move {
                let upstream = first.upstream.clone();
                let mut next = Some(first);
                for _ in 0..IN_A_ROW {
                    let Some(asking) = next else { return };
                    ask(&worker, &asking).await;
                    drop(asking);
                    if worker.drain.is_cancelled() {
                        return;
                    }
                    next = worker.jobs.take_due(&upstream, Instant::now());
                }
            });
        }
    }
}

/// Asks for one job, and settles its charge where it is over. What failed is asked for again.
async fn ask<B: Books + 'static>(worker: &Worker<B>, asking: &Asking) {
    let charge = asking.charge;
    let open = match worker.books.open_charge(charge).await {
        Ok(Some(open)) => open,
        Ok(None) => return worker.jobs.remove(charge),
        Err(_) => return,
    };
    // A reload may have taken the upstream away, and another one may bring it back.
    let upstream = worker.upstreams.iter().find(|known| *known.name.as_str() == *asking.upstream);
    let Some((upstream, request)) = upstream.zip(request(&open, upstream)) else { return };
    let answered = tokio::select! {
        biased;
        () = worker.drain.cancelled() => return,
        answered = timeout(PATIENCE, answer(upstream, request)) => answered,
    };
    if let Ok(Some(text)) = answered
        && let Err(refused) = settle::settle(worker, charge, &text, worker.clock.now()).await
    {
        tracing::warn!(%charge, detail = %refused.refusal.detail, "a job's charge is not settled");
    }
}

/// The question. It comes without the charge's id: what comes with that is paid work.
fn request(open: &OpenCharge, upstream: Option<&Arc<Upstream>>) -> Option<Request<Outgoing>> {
    let later = Later::read(open).ok()?;
    let memo = later.memo();
    let mut request = Request::get(later.job()?.path.as_str())
        .header(ACCEPT, HeaderValue::from_static("application/json"))
        .header(TOLLGATE_ORG, memo.org)
        .header(X_REQUEST_ID, open.charge.to_string());
    if let Some(user) = memo.user {
        request = request.header(TOLLGATE_USER, user);
    }
    if let Some((name, secret)) = upstream.and_then(|upstream| upstream.credential.as_ref()) {
        request = request.header(name, secret);
    }
    request.body(Outgoing::Whole(None)).ok()
}

/// The text of a status document, if that was answered.
async fn answer(upstream: &Arc<Upstream>, request: Request<Outgoing>) -> Option<Bytes> {
    let (response, lease) = upstream.send(request, &Upload::default()).await.ok()?;
    let (head, body) = response.into_parts();
    let mut flow = Flow::new(body, lease);
    if !tells(&head) {
        return None;
    }
    let until = Instant::now() + PATIENCE;
    match forward::gather(&mut flow, &mut Reading::default(), usize::MAX, until).await {
        Gathered::Whole(bytes) if bytes.len() as u64 <= forward::SMALL => Some(bytes),
        _ => None,
    }
}
