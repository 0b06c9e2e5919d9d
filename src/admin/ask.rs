//! What a request asks, read strictly: its name, query, conditions and body. What the endpoint does
//! not take is refused, never ignored.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Query;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use axum::response::Response;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::endpoint::{Endpoint, TOML, Takes};
use super::problem::{Code, Problem};
use super::who::Who;
use crate::directory::change::{Condition, OnceKey};
use crate::directory::file::{Document, Source};

/// The header that names a request, in both directions.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The header that makes a POST happen once.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest name of a request.
const LONGEST_NAME: usize = 128;

/// What a request is called: in its answer, and in logs.
pub struct Name(HeaderValue);

impl Name {
    /// The name that the request brings along, or a new one.
    pub fn of(headers: &HeaderMap, now: Timestamp) -> Self {
        let own = headers.get(X_REQUEST_ID).filter(|value| {
            let bytes = value.as_bytes();
            (1..=LONGEST_NAME).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
        });
        Self(own.cloned().unwrap_or_else(|| {
            let id = super::new_id(now).to_string();
            HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("-"))
        }))
    }

    /// Its text.
    pub fn text(&self) -> &str {
        self.0.to_str().unwrap_or("-")
    }

    /// Puts it on the answer.
    pub fn onto(&self, mut response: Response) -> Response {
        response.headers_mut().insert(X_REQUEST_ID, self.0.clone());
        response
    }
}

/// The query parameters that the endpoint takes; anything else is refused.
pub fn read_query(endpoint: &Endpoint, uri: &Uri) -> Result<Vec<(&'static str, String)>, Problem> {
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|_| Problem::invalid("", "the query cannot be read"))?;
    let mut read: Vec<(&'static str, String)> = Vec::new();
    for (name, value) in pairs.0 {
        let wrong = |detail: String| Problem::invalid(&format!("/{name}"), detail);
        let known = endpoint.query.iter().find(|known| known.name == name);
        let known = known.ok_or_else(|| {
            let names: Vec<&str> = endpoint.query.iter().map(|known| known.name).collect();
            wrong(match names.as_slice() {
                [] => "there are no query parameters here".to_owned(),
                names => format!("expected one of {}", names.join(", ")),
            })
        })?;
        if read.iter().any(|(name, _)| *name == known.name) {
            return Err(wrong("is there twice".to_owned()));
        }
        known.shape.check(&value).map_err(wrong)?;
        read.push((known.name, value));
    }
    Ok(read)
}

/// The tags of a precondition, without their quotes.
fn tags(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Vec<String>>, Problem> {
    let mut tags = Vec::new();
    for value in headers.get_all(name) {
        let text =
            value.to_str().map_err(|_| Problem::invalid("", format!("{name}: not a tag")))?;
        tags.extend(text.split(',').map(|tag| tag.trim().to_owned()));
    }
    Ok((!tags.is_empty()).then_some(tags))
}

/// What the thing must be before it is changed.
pub fn read_condition(endpoint: &Endpoint, headers: &HeaderMap) -> Result<Condition, Problem> {
    if endpoint.is_safe() {
        return Ok(Condition::Any);
    }
    let (matches, none) =
        (tags(headers, &header::IF_MATCH)?, tags(headers, &header::IF_NONE_MATCH)?);
    let wrong = |detail: &str| Err(Problem::invalid("", detail));
    match (matches, none) {
        (None, None) => Ok(Condition::Any),
        _ if !endpoint.conditional => wrong("there is no tag to compare here"),
        (Some(_), Some(_)) => wrong("If-Match and If-None-Match contradict each other"),
        (None, Some(tags)) if tags == ["*"] => Ok(Condition::Absent),
        (None, Some(_)) => wrong("If-None-Match: only * makes sense for a change"),
        (Some(tags), None) if tags == ["*"] => Ok(Condition::Exists),
        (Some(tags), None) => {
            let strong = |tag: &String| {
                let inner = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
                inner.filter(|inner| !inner.contains('"')).map(str::to_owned)
            };
            let is_tag = |tag: &String| strong(&tag.replacen("W/", "", 1)).is_some();
            if !tags.iter().all(is_tag) {
                return wrong("If-Match: expected * or tags in quotes");
            }
            // Weak tags never match strongly (RFC 9110, section 13.1.1).
            Ok(Condition::Matches(tags.iter().filter_map(strong).collect()))
        }
    }
}

/// The key under which the request happens once, if it has one.
pub fn read_once(
    endpoint: &Endpoint,
    who: &Who,
    headers: &HeaderMap,
    uri: &Uri,
    body: &[u8],
) -> Result<Option<OnceKey>, Problem> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(key) = keys.next().filter(|_| endpoint.once) else { return Ok(None) };
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    let digest = Sha256::new()
        .chain_update(endpoint.method)
        .chain_update([0])
        .chain_update(target)
        .chain_update([0])
        .chain_update(body);
    let text = key.to_str().ok().filter(|_| keys.next().is_none());
    let once = text.and_then(|key| OnceKey::new(&who.name, key, &digest.finalize().into()));
    once.map(Some).ok_or_else(|| {
        let detail = "Idempotency-Key: expected one, of 1 to 255 visible ASCII characters";
        Problem::invalid("", detail)
    })
}

/// How long a body says it is.
pub fn told_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Whether a body is TOML.
pub fn is_toml(headers: &HeaderMap) -> bool {
    media_type(headers).eq_ignore_ascii_case(TOML)
}

/// Refuses a body that says it is larger than it may be, before a byte of it is read (f71).
pub fn check_length(told: Option<u64>, most: usize) -> Result<(), Problem> {
    if told.is_some_and(|length| length > most as u64) { Err(too_large(most)) } else { Ok(()) }
}

fn too_large(most: usize) -> Problem {
    let detail = format!("a body here is at most {most} bytes");
    Problem::new(Code::BodyTooLarge, detail)
}

/// The body, if it is of a type that is read here, and no larger than it may be.
pub async fn read_body(
    takes: &Takes,
    most: usize,
    headers: &HeaderMap,
    body: Body,
) -> Result<Bytes, Problem> {
    let told = told_length(headers);
    let chunked = headers.contains_key(header::TRANSFER_ENCODING);
    if takes.required || chunked || told.unwrap_or(0) > 0 {
        check_media(takes, headers)?;
    }
    let reading = collect(Limited::new(body, most), told);
    match tokio::time::timeout(BODY_TIMEOUT, reading).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(most)),
        Ok(Err(_)) => Err(Problem::invalid("", "the body broke off")),
        Err(_) => Err(Problem::new(Code::RequestTimeout, "the body did not arrive in time")),
    }
}

/// The bytes of a body, held once.
async fn collect(
    mut body: Limited<Body>,
    told: Option<u64>,
) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    let told = told.and_then(|length| usize::try_from(length).ok());
    let mut bytes = Vec::with_capacity(told.unwrap_or(0));
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes.into())
}

fn check_media(takes: &Takes, headers: &HeaderMap) -> Result<(), Problem> {
    let refuse = |detail: String| Err(Problem::new(Code::UnsupportedMediaType, detail));
    if headers.contains_key(header::CONTENT_ENCODING) {
        return refuse("a body is sent as it is, without Content-Encoding".to_owned());
    }
    let media = media_type(headers);
    if takes.media.iter().any(|known| media.eq_ignore_ascii_case(known)) {
        return Ok(());
    }
    refuse(format!("expected Content-Type: {}", takes.media.join(" or ")))
}

/// The media type of a body, without its parameters.
fn media_type(headers: &HeaderMap) -> &str {
    let mut all = headers.get_all(header::CONTENT_TYPE).iter();
    let only = all.next().filter(|_| all.next().is_none()).and_then(|value| value.to_str().ok());
    only.and_then(|text| text.split(';').next()).unwrap_or_default().trim()
}

/// What an org file says.
pub fn read_document(toml: bool, bytes: &[u8]) -> Result<Document, Problem> {
    let text = std::str::from_utf8(bytes);
    let text = text.map_err(|_| Problem::invalid("", "the body is not UTF-8"))?;
    let document =
        if toml { Source::from_toml(text)?.document() } else { Document::from_json(bytes)? };
    Ok(document)
}

/// What a body says.
pub fn read_source(bytes: &[u8]) -> Result<Source, Problem> {
    if std::str::from_utf8(bytes).is_err() {
        return Err(Problem::invalid("", "the body is not UTF-8"));
    }
    let source = Source::from_json(bytes)?;
    if !source.value().is_object() {
        return Err(Problem::invalid("", "expected an object"));
    }
    Ok(source)
}
