//! One request, from its head to its answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::json;

use super::answer::{Answer, Content, Refused};
use super::ask::{Ask, Fail};
use super::connection::Reset;
use super::endpoint::Endpoint;
use super::jobs::Touch;
use super::script::{Script, Waiting};
use super::{Sample, TOLD, chat, images, uploads, videos};

/// Bodies that are kept while they are read; a form's is longer.
const MAX_BODY: usize = 1 << 20;
const MAX_FORM: usize = 16 << 20;
/// Bodies that are only counted.
const MAX_UPLOAD: u64 = 1 << 30;

/// No answer: the backend stopped while it was hanging a request, or the request asked for that.
#[derive(Debug, thiserror::Error)]
#[error("the sample backend has no answer")]
pub(super) struct NoAnswer;

/// A request's body as far as it is needed, and its length.
struct Read {
    bytes: Bytes,
    length: u64,
}

/// Answers a request, or fails as it asks.
pub(super) async fn handle(
    request: Request<Incoming>,
    sample: Arc<Sample>,
    reset: Reset,
) -> Result<Response<Script>, NoAnswer> {
    let (head, body) = request.into_parts();
    if let Some(seen) = head.uri.path().strip_prefix("/sample/") {
        return Ok(tell(&sample, seen, head.uri.query().unwrap_or_default()));
    }
    let mut waiting = Waiting::new(&sample.seen);
    if head.method == Method::HEAD {
        // It gets no body that could be left.
        waiting.is_served();
    }
    let number = sample.seen.lock().note(&head);
    let ask = match Ask::from_headers(&head.headers) {
        Ok(ask) => ask,
        Err(refused) => return Ok(refuse(&sample, number, &refused, waiting)),
    };
    // The body is read before any failure, as a backend that fails while it generates does.
    let Some(read) = read(&head, body).await else {
        let error =
            Answer::error(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large, or broke off");
        return Ok(respond(&sample, number, error, None, waiting));
    };
    sample.seen.lock().note_bytes(number, read.length);
    match ask.fail {
        Some(Fail::Hang) => {
            sample.stop.cancelled().await;
            waiting.is_served();
            return Err(NoAnswer);
        }
        Some(Fail::Reset) => {
            reset.store(true, Ordering::Relaxed);
            waiting.is_served();
            return Err(NoAnswer);
        }
        Some(Fail::Status(status)) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let error = Answer::error(status, "failed, as asked");
            return Ok(respond(&sample, number, error, None, waiting));
        }
        _ => {}
    }
    Ok(match answer(&sample, &head, &read, &ask, number) {
        Ok(answer) => respond(&sample, number, answer, Some((&ask, reset)), waiting),
        Err(refused) => refuse(&sample, number, &refused, waiting),
    })
}

async fn read(head: &Parts, mut body: Incoming) -> Option<Read> {
    let is_upload = matches!(Endpoint::of(head.uri.path()), Some((Endpoint::Uploads, _)));
    if !is_upload || uploads::is_form(&head.headers) {
        let bound = if is_upload { MAX_FORM } else { MAX_BODY };
        let bytes = Limited::new(body, bound).collect().await.ok()?.to_bytes();
        let length = u64::try_from(bytes.len()).ok()?;
        return Some(Read { bytes, length });
    }
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame.ok()?.data_ref().map_or(0, |data| u64::try_from(data.len()).unwrap_or(0));
        if length > MAX_UPLOAD {
            return None;
        }
    }
    Some(Read { bytes: Bytes::new(), length })
}

fn answer(
    sample: &Arc<Sample>,
    head: &Parts,
    read: &Read,
    ask: &Ask,
    number: u64,
) -> Result<Answer, Refused> {
    let (body, told) = (&read.bytes, &ask.told);
    let Some((endpoint, id)) = Endpoint::of(head.uri.path()) else {
        return Ok(Answer::error(StatusCode::NOT_FOUND, "no such path"));
    };
    if !endpoint.methods().contains(&head.method) {
        let mut refused = Answer::error(StatusCode::METHOD_NOT_ALLOWED, "no such method here");
        let methods: Vec<&str> = endpoint.methods().iter().map(Method::as_str).collect();
        refused.header = Some((ALLOW, methods.join(", ")));
        return Ok(refused);
    }
    match endpoint {
        Endpoint::Images | Endpoint::Generations => images::images(body, told),
        Endpoint::Chat => chat::chat(body, ask, number),
        Endpoint::Videos => videos::submit(sample, &head.headers, body, told),
        Endpoint::Video if head.method == Method::GET => {
            Ok(videos::touch(sample, id, Touch::Poll, told))
        }
        Endpoint::Video | Endpoint::VideoCancel => {
            Ok(videos::touch(sample, id, Touch::Cancel, told))
        }
        Endpoint::Uploads => uploads::upload(&head.headers, body, read.length, told, number),
        Endpoint::Models => {
            let models = json!([{ "id": "sample", "object": "model", "owned_by": "tollgate" }]);
            Answer::json(&json!({ "object": "list", "data": models }), None)
        }
        Endpoint::Healthz => Answer::json(&json!({ "status": "ok" }), None),
    }
}

fn refuse(sample: &Sample, number: u64, refused: &Refused, waiting: Waiting) -> Response<Script> {
    respond(sample, number, Answer::error(StatusCode::BAD_REQUEST, refused.0), None, waiting)
}

/// The response; what it asks of the body is played by it.
fn respond(
    sample: &Sample,
    number: u64,
    answer: Answer,
    asked: Option<(&Ask, Reset)>,
    waiting: Waiting,
) -> Response<Script> {
    sample.seen.lock().note_status(number, answer.status.as_u16());
    let (fail, pace) = asked.as_ref().map_or((None, None), |(ask, _)| (ask.fail, ask.pace));
    let reset = asked.map(|(_, reset)| reset).filter(|_| fail == Some(Fail::ResetMid));
    dress(answer, |body| match fail {
        Some(Fail::HangMid) => Script::silent(body, pace, sample.stop.clone(), waiting),
        Some(Fail::Truncate | Fail::ResetMid) => Script::broken(body, pace, reset, waiting),
        _ => Script::whole(body, pace, waiting),
    })
}

fn dress(answer: Answer, script: impl FnOnce(Content) -> Script) -> Response<Script> {
    let mut headers = HeaderMap::new();
    match &answer.body {
        Content::Events(..) => {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        }
        Content::Json(json) => {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            // Told also where the body will break off: that is how the client can see that it did.
            headers.insert(CONTENT_LENGTH, HeaderValue::from(json.len()));
        }
    }
    if answer.status == StatusCode::TOO_MANY_REQUESTS {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    let told = answer.usage.map(|usage| (TOLD, usage));
    for (name, value) in told.into_iter().chain(answer.header) {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    let mut response = Response::new(script(answer.body));
    *response.status_mut() = answer.status;
    *response.headers_mut() = headers;
    response
}

/// What was seen, to whoever asks.
fn tell(sample: &Sample, of: &str, query: &str) -> Response<Script> {
    let jobs = sample.jobs.lock().to_json();
    let found = match of {
        "stats" => Some(sample.seen.lock().stats(&jobs)),
        "requests" => Some(sample.seen.lock().requests(query)),
        "charges" => Some(sample.seen.lock().charges(query)),
        _ => None,
    };
    let not_found = || Answer::error(StatusCode::NOT_FOUND, "no such path");
    let answer = found.and_then(|found| Answer::json(&found, None).ok()).unwrap_or_else(not_found);
    dress(answer, |body| Script::whole(body, None, Waiting::default()))
}
