//! The one door through which every refusal leaves, and the only place with status codes: RFC
//! 9457 bodies, and the page behind each problem's `type`.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde::Serialize;

use super::dress::TOLLGATE_RECEIPT;
use crate::config::Compat;
use crate::core::ids::Id;
use crate::core::refusal::{Both, Code, DecidedBy, Facts, Missing, Refusal};

/// A refusal, and what its response says beside it.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// After how many seconds it may be tried again.
    pub retry_after: Option<u32>,
    /// Which methods the path takes.
    pub allow: Option<HeaderValue>,
    /// True when the request had a charge, whose end is what counts in `requests_total`.
    pub counted: bool,
    /// How long the backend was waited for.
    pub waited: Duration,
    /// The receipt of the charge that was made before.
    pub receipt: Option<Box<HeaderValue>>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let (retry_after, allow, receipt) = (None, None, None);
        Self { refusal, retry_after, allow, counted: false, waited: Duration::ZERO, receipt }
    }
}

/// How a route's refusals look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// The status of refusals for lack of credit, instead of 402.
    pub exhausted: Option<u16>,
    /// In whose error body they are.
    pub compat: Option<Compat>,
}

/// Where the pages of problems are.
pub const PAGES: &str = "/.tollgate/problems/";

/// The status of what a request made.
pub const CREATED: StatusCode = StatusCode::CREATED;

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// The status of a code.
pub fn status(code: Code) -> StatusCode {
    use Code::*;
    match code {
        HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        BadRequest | UserRequired | Unquotable | IdempotencyKeyRequired => StatusCode::BAD_REQUEST,
        NotImplemented => StatusCode::NOT_IMPLEMENTED,
        Misdirected => StatusCode::MISDIRECTED_REQUEST,
        Unauthenticated => StatusCode::UNAUTHORIZED,
        UnknownUser | UserSuspended | KeyNotAllowed | PoolAccessDenied => StatusCode::FORBIDDEN,
        RateLimited | TooManyInFlight => StatusCode::TOO_MANY_REQUESTS,
        UnknownRoute => StatusCode::NOT_FOUND,
        MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        Unpriced | IdempotencyKeyReused => StatusCode::UNPROCESSABLE_ENTITY,
        IdempotencyInFlight | AlreadyCharged | AlreadyResolved => StatusCode::CONFLICT,
        Overdrawn | SeatExhausted | NoActiveTerm | PoolLimitReached | PoolExhausted
        | OverageCapReached => StatusCode::PAYMENT_REQUIRED,
        BooksUnavailable | BooksContended | Draining => StatusCode::SERVICE_UNAVAILABLE,
        UpstreamUnreachable | UpstreamFailed => StatusCode::BAD_GATEWAY,
        UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
        Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// True for refusals that no retry helps against before someone adds credit or a cycle ends.
fn is_exhaustion(code: Code) -> bool {
    (Code::Overdrawn..=Code::PoolAccessDenied).contains(&code)
}

/// Seconds after which a refusal may be tried again, where it is not known better.
fn default_retry(code: Code) -> Option<u32> {
    match code {
        Code::IdempotencyInFlight | Code::BooksUnavailable | Code::BooksContended => Some(1),
        Code::Draining => Some(5),
        _ => None,
    }
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'a str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    required: Option<Both>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available: Option<Both>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resets_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<PoolFacts<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decided_by: Option<DecidedBy>,
}

#[derive(Serialize)]
struct PoolFacts<'a> {
    access: bool,
    missing: &'a [Missing],
    /// Where a profile's limit decided: which one.
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<&'a Id>,
}

/// OpenAI's error body, with the whole problem beside the members its clients read.
#[derive(Serialize)]
struct OpenAi<'a> {
    error: OpenAiError<'a>,
}

#[derive(Serialize)]
struct OpenAiError<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: &'static str,
    /// The whole problem document.
    problem: &'a Problem<'a>,
}

/// What OpenAI's clients know a kind of error by.
fn openai_type(code: Code, status: StatusCode) -> &'static str {
    match status {
        _ if is_exhaustion(code) => "insufficient_quota",
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

/// The status of a refusal, its kind of body, and the body.
fn describe(
    refusal: &Refusal,
    request_id: &str,
    manner: Manner,
) -> (StatusCode, &'static str, Vec<u8>) {
    let code = refusal.code;
    let mut status = status(code);
    if status == StatusCode::PAYMENT_REQUIRED {
        let other = manner.exhausted.and_then(|status| StatusCode::from_u16(status).ok());
        status = other.unwrap_or(status);
    }
    let facts = refusal.facts.as_deref();
    let name = code.as_str();
    let kind = [PAGES, name].concat();
    let problem = Problem {
        r#type: &kind,
        title: code.title(),
        status: status.as_u16(),
        detail: &refusal.detail,
        code: name,
        request_id,
        required: facts.map(|facts| facts.required),
        available: facts.map(|facts| facts.available),
        resets_at: facts.and_then(|facts| facts.resets_at),
        pool: facts.map(pool_facts),
        decided_by: facts.and_then(|facts| facts.decided_by.as_ref()).map(|(by, _)| *by),
    };
    // A structure of texts and numbers always serialises.
    let (kind, body) = match manner.compat {
        None => ("application/problem+json", serde_json::to_vec(&problem).unwrap_or_default()),
        Some(Compat::Openai) => ("application/json", openai(&problem, code, status)),
    };
    (status, kind, body)
}

/// What ends a stream that cannot go on: an event `error` with what a response would have for its
/// body.
pub fn event(refused: &Refused, request_id: &str, manner: Manner) -> Vec<u8> {
    // JSON of ours is one line.
    let (_, _, body) = describe(&refused.refusal, request_id, manner);
    [b"event: error\ndata: ", &*body, b"\n\n"].concat()
}

/// The response to a refused request, in the manner of its route.
pub fn respond(refused: &Refused, request_id: &str, manner: Manner) -> (Response<()>, Bytes) {
    let Refused { refusal, retry_after, allow, receipt, .. } = refused;
    let code = refusal.code;
    let (status, kind, body) = describe(refusal, request_id, manner);
    let mut response = Response::new(());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if code == Code::Unauthenticated {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if is_exhaustion(code) || code == Code::AlreadyCharged {
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    } else if let Some(seconds) = retry_after.or(default_retry(code)) {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(allow) = allow {
        headers.insert(ALLOW, allow.clone());
    }
    if let Some(receipt) = receipt {
        headers.insert(TOLLGATE_RECEIPT, HeaderValue::clone(receipt));
    }
    if closes(code) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    (response, body.into())
}

fn openai(problem: &Problem<'_>, code: Code, status: StatusCode) -> Vec<u8> {
    let error = OpenAiError {
        message: problem.detail,
        r#type: openai_type(code, status),
        param: None,
        code: problem.code,
        problem,
    };
    serde_json::to_vec(&OpenAi { error }).unwrap_or_default()
}

/// True where it is not sure what comes next over the connection.
fn closes(code: Code) -> bool {
    code <= Code::Misdirected || code == Code::RequestTimeout
}

/// The same as bytes, for a client that hyper does not serve. The connection is closed behind it.
pub fn respond_alone(refused: &Refused, request_id: &str, now: Timestamp) -> Vec<u8> {
    let (mut response, body) = respond(refused, request_id, Manner::default());
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    let status = response.status();
    let reason = status.canonical_reason().unwrap_or_default();
    let date = now.strftime("%a, %d %b %Y %H:%M:%S GMT");
    let mut bytes = format!(
        "HTTP/1.1 {} {reason}\r\ndate: {date}\r\nx-request-id: {request_id}\r\ncontent-length: {}\r\n",
        status.as_str(),
        body.len(),
    )
    .into_bytes();
    for (name, value) in response.headers() {
        bytes.extend_from_slice(
            &[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat(),
        );
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&body);
    bytes
}

fn pool_facts(facts: &Facts) -> PoolFacts<'_> {
    PoolFacts {
        access: facts.missing.is_none(),
        missing: facts.missing.as_deref().unwrap_or_default(),
        profile: facts.decided_by.as_ref().and_then(|(_, profile)| profile.as_ref()),
    }
}

/// The page of a problem: its section in the documentation.
pub fn page(name: &str) -> Option<&'static str> {
    const DOCS: &str = include_str!("../../docs/problems.md");
    Code::ALL.iter().find(|code| code.as_str() == name)?;
    DOCS.split("\n## ").find(|section| {
        section
            .strip_prefix('`')
            .and_then(|rest| rest.split_once('`'))
            .is_some_and(|(code, _)| code == name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(refused: &Refused) -> serde_json::Value {
        serde_json::from_slice(&respond(refused, "id-1", Manner::default()).1).unwrap()
    }

    #[test]
    fn every_code_has_a_page_and_an_error_status() {
        for code in Code::ALL {
            let page = page(code.as_str()).unwrap_or_else(|| panic!("{code:?} has no page"));
            assert!(page.len() > 80, "{code:?}");
            let status = status(*code);
            assert!(status.is_client_error() || status.is_server_error());
            assert!(page.contains(&status.as_u16().to_string()), "{code:?} says no {status}");
        }
        assert_eq!(page("nonsense"), None);
    }

    #[test]
    fn d14_exhaustion_says_what_is_missing_and_asks_for_no_retry() {
        let facts = Facts {
            missing: Some(vec![Missing::Offer, Missing::Base]),
            resets_at: Some(Timestamp::UNIX_EPOCH),
            ..Facts::default()
        };
        let refusal = Refusal {
            facts: Some(Box::new(facts)),
            ..Refusal::new(Code::SeatExhausted, "used up")
        };
        let refused = Refused::from(refusal);
        let (response, _) = respond(&refused, "id-1", Manner::default());
        assert_eq!(response.status(), 402);
        assert_eq!(response.headers()["x-should-retry"], "false");
        assert!(!response.headers().contains_key("retry-after"));
        let body = body(&refused);
        assert_eq!(body["type"], "/.tollgate/problems/seat_exhausted");
        assert_eq!(
            body["pool"],
            serde_json::json!({"access": false, "missing": ["offer", "base"]})
        );
        assert_eq!(body["required"], serde_json::json!({"credits": "0", "operations": "0"}));
        assert_eq!(body["resets_at"], "1970-01-01T00:00:00Z");
        assert_eq!(body["request_id"], "id-1");
        let manner = Manner { exhausted: Some(429), compat: Some(Compat::Openai) };
        let (response, bytes) = respond(&refused, "id-1", manner);
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["content-type"], "application/json");
        let error = &serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()["error"];
        assert_eq!(error["type"], "insufficient_quota");
        assert_eq!(error["code"], "seat_exhausted");
        assert_eq!(error["message"], "used up");
        assert_eq!(error["problem"]["status"], 429);
        assert_eq!(error["problem"]["pool"], body["pool"]);
    }

    #[test]
    fn d17_a_limit_names_who_set_it() {
        let decided_by = Some((DecidedBy::Profile, Some("ffs".parse().unwrap())));
        let facts = Facts { decided_by, ..Facts::default() };
        let refusal = Refusal {
            facts: Some(Box::new(facts)),
            ..Refusal::new(Code::PoolLimitReached, "limit")
        };
        let body = body(&refusal.into());
        assert_eq!(body["decided_by"], "profile");
        assert_eq!(body["pool"]["profile"], "ffs");
        assert_eq!(body["pool"]["access"], true);
    }

    #[test]
    fn others_say_when_to_retry_how_to_authenticate_and_which_method() {
        let plain = |code| Refused::from(Refusal::new(code, ""));
        let header = |refused: &Refused, name: &str| {
            let (response, _) = respond(refused, "", Manner::default());
            response.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(header(&plain(Code::Draining), "retry-after").as_deref(), Some("5"));
        assert_eq!(
            header(&plain(Code::Unauthenticated), "www-authenticate").as_deref(),
            Some("Bearer")
        );
        let allow = Some(HeaderValue::from_static("GET"));
        let refused = Refused { allow, ..plain(Code::MethodNotAllowed) };
        assert_eq!(header(&refused, "allow").as_deref(), Some("GET"));
        assert_eq!(header(&plain(Code::UnknownRoute), "x-should-retry"), None);
    }
}
