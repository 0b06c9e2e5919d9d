//! Polls: those of clients, which pass through and are read on the way, and the gateway's own.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue,
};
use http::{Method, Request, Response, response};
use http_body::Body;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::super::Refused;
use super::super::access;
use super::super::carry::Carried;
use super::super::dress::{TOLLGATE_ORG, X_REQUEST_ID};
use super::super::flow::Flow;
use super::super::forward::{self, Gathered};
use super::super::hold::unavailable;
use super::super::identify::{Caller, TOLLGATE_USER};
use super::super::later::Later;
use super::super::meter_body::Content;
use super::super::outgoing::{Outgoing, Upload};
use super::super::quote::unescape;
use super::super::upstream::Upstream;
use super::super::usage::Reading;
use super::super::worker::Worker;
use super::{Asking, Charges, PATIENCE, settle};
use crate::books::{Books, OpenCharge};

/// The longest status document that is read: some say again what was asked for.
const MAX_DOCUMENT: u64 = 1 << 20;

/// How many one task asks for, so that it does not outlive its configuration for long.
const IN_A_ROW: usize = 16;

/// A client's poll of jobs that are open.
pub struct Polled(Charges);

/// Which open jobs a request of a free route asks for. Its answer is believed only where nothing
/// but the path decides it, and the jobs are of the caller's own org: nobody should be able to
/// have an answer made that tells of another end. What is not believed is passed on, and asked for
/// by the gateway itself ([`super::touched`]).
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
        || !is_plain(request.headers(), upstream)
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

/// Headers that decide nothing of what a status document says: what any client sends, and what the
/// gateway sets itself. Some backends are told by others to leave fields out, or to tell another
/// method.
const PLAIN: [&str; 22] = [
    "accept-encoding",
    "accept-language",
    "cache-control",
    "connection",
    "content-length",
    "content-type",
    "forwarded",
    "host",
    "if-modified-since",
    "if-none-match",
    "pragma",
    "te",
    "tollgate-org",
    "tollgate-user",
    "traceparent",
    "tracestate",
    "user-agent",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-request-id",
];

fn is_plain(headers: &HeaderMap, upstream: &Upstream) -> bool {
    let credential = upstream.credential.as_ref().map(|(name, _)| name);
    headers.iter().all(|(name, value)| match name.as_str() {
        "accept" => [&b"*/*"[..], b"application/json"].contains(&value.as_bytes()),
        // What OpenAI's clients tell of themselves.
        own if own.starts_with("x-stainless-") => true,
        own => PLAIN.contains(&own) || credential == Some(name),
    })
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
        let gathered = forward::gather(&mut flow, reading, (usize::MAX, MAX_DOCUMENT), until).await;
        let content = match gathered {
            Gathered::Whole(bytes) if bytes.len() as u64 > MAX_DOCUMENT => {
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
    let kind = head.headers.get(CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
    head.status.as_u16() == 200
        && !head.headers.contains_key(CONTENT_ENCODING)
        // That would be kept back for as long as it goes on.
        && !kind.to_ascii_lowercase().starts_with(b"text/event-stream")
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
                    let Some(mut asking) = next else { return };
                    if let Err(refused) = ask(&worker, &mut asking, &worker.drain).await {
                        let (charge, detail) = (asking.charge, &refused.refusal.detail);
                        tracing::warn!(%charge, %detail, "a job's charge is not settled");
                    }
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
///
/// # Errors
/// `books_unavailable`.
pub(super) async fn ask<B: Books + 'static>(
    worker: &Worker<B>,
    asking: &mut Asking,
    stop: &CancellationToken,
) -> Result<(), Refused> {
    let charge = asking.charge;
    let open = worker.books.open_charge(charge).await.map_err(|error| unavailable(&error))?;
    let Some(open) = open else {
        worker.jobs.remove(charge);
        return Ok(());
    };
    // A reload may have taken the upstream away, and another one may bring it back.
    let upstream = worker.upstreams.iter().find(|known| *known.name.as_str() == *asking.upstream);
    let Some((upstream, request)) = upstream.zip(request(&open, upstream)) else { return Ok(()) };
    let answered = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        answered = timeout(asking.patience, answer(upstream, request)) => answered,
    };
    let answered = answered.unwrap_or(Answer::Nothing);
    if let Answer::Document(text) = &answered {
        settle::settle(worker, charge, text, worker.clock.now()).await?;
    }
    if matches!(answered, Answer::Other)
        && let Some(untold) = access::may_tell()
    {
        tracing::warn!(%charge, untold, "the backend answers no status document of this job");
    }
    asking.told = !matches!(answered, Answer::Nothing);
    Ok(())
}

/// The question. It comes without `Tollgate-Charge`: what comes with that is paid work.
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

/// What a question is answered with.
enum Answer {
    /// The text of a status document.
    Document(Bytes),
    /// Something else, which will hardly be another one soon.
    Other,
    /// Nothing, or that the backend cannot answer now.
    Nothing,
}

async fn answer(upstream: &Arc<Upstream>, request: Request<Outgoing>) -> Answer {
    let Ok((response, lease)) = upstream.send(request, &Upload::default(), || true).await else {
        return Answer::Nothing;
    };
    let (head, body) = response.into_parts();
    let mut flow = Flow::new(body, lease);
    if !tells(&head) {
        let may_pass = head.status.is_server_error() || head.status.as_u16() == 429;
        return if may_pass { Answer::Nothing } else { Answer::Other };
    }
    let until = Instant::now() + PATIENCE;
    let most = (usize::MAX, MAX_DOCUMENT);
    match forward::gather(&mut flow, &mut Reading::default(), most, until).await {
        Gathered::Whole(bytes) if bytes.len() as u64 <= MAX_DOCUMENT => Answer::Document(bytes),
        Gathered::Open(read) if read.len() <= MAX_DOCUMENT => Answer::Nothing,
        Gathered::Broken(..) => Answer::Nothing,
        Gathered::Whole(_) | Gathered::Open(_) => Answer::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::pin::pin;
    use std::time::Duration;

    use super::*;
    use crate::gateway::tests::bench::{Bench, Step};
    use crate::gateway::tests::jobs::VIDEOS;

    #[tokio::test]
    async fn d34_f72_a_question_that_hangs_is_given_up_when_the_gateway_stops() {
        let bench = Bench::with(VIDEOS).await;
        bench.backend.answers("200 OK", r#"{"id": "a"}"#);
        assert_eq!(bench.post("/v1/videos", "alice", "{}").await.receipt()["state"], "held");
        bench.backend.plays([Step::Wait]);
        let (worker, stop) = (&bench.worker, CancellationToken::new());
        let soon = Instant::now() + Duration::from_secs(60);
        let mut asking = worker.jobs.take_due("media", soon).unwrap();
        {
            let mut question = pin!(ask(worker, &mut asking, &stop));
            tokio::select! {
                biased;
                answered = &mut question => panic!("nobody answers: {}", answered.is_ok()),
                () = bench.until("it is asked for", || bench.backend.seen().len() == 2) => {}
            }
            stop.cancel();
            tokio::select! {
                biased;
                given_up = &mut question => assert!(given_up.is_ok()),
                () = ready(()) => panic!("it is waited for"),
            }
        }
        assert!(!asking.told);
        drop(asking);
        // It is asked for again, by whoever serves then.
        assert_eq!(worker.jobs.len(), 1);
        assert!(worker.jobs.take_due("media", soon).is_some());
    }
}
