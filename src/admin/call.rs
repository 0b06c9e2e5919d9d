//! One request to the admin API, from its bytes to its answer: who asks, whether they may, what
//! exactly they ask. Whatever an [`Endpoint`] does not say is refused here, before its handler
//! runs.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use axum::response::Response;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Admin;
use super::endpoint::{Endpoint, Scope, TOML, Takes};
use super::page::USUAL;
use super::problem::{Code, Problem, respond};
use super::who::Who;
use crate::core::ids::{ChargeId, Id};
use crate::directory::change::{Answer, Applied, Condition, Once, OnceKey, Write};
use crate::directory::file::Source;
use crate::directory::rows::hex;
use crate::directory::snapshot::{Org, User};

/// A request that was let through.
pub struct Call {
    /// What the API works on.
    pub admin: Arc<Admin>,
    /// Who asks.
    pub who: Who,
    /// When.
    pub now: Timestamp,
    /// The body, if there is one.
    pub body: Option<Source>,
    /// What the thing must be before it is changed.
    pub condition: Condition,
    /// What makes it happen once, if the caller wants that.
    pub once: Option<OnceKey>,
    params: Params,
    query: Vec<(&'static str, String)>,
}

/// The parameters of a path.
pub type Params = Vec<(String, String)>;

/// A success.
#[derive(Debug, Default)]
pub struct Reply {
    /// The status, where it is not the endpoint's.
    pub status: Option<u16>,
    /// The tag of the thing, where that is not simply its document's.
    pub etag: Option<String>,
    /// The body.
    pub body: Option<Value>,
}

impl Reply {
    /// A body.
    pub fn of(body: Value) -> Self {
        Self { body: Some(body), ..Self::default() }
    }

    /// A body and its tag.
    pub fn tagged(body: Value, etag: String) -> Self {
        Self { body: Some(body), etag: Some(etag), status: None }
    }

    fn respond(self, endpoint: &Endpoint) -> Response {
        let mut response = respond(self.status.unwrap_or(endpoint.status), self.body.as_ref());
        let tag = match (self.etag, self.body) {
            (None, Some(body)) if endpoint.is_safe() => {
                Some(hex(&Sha256::digest(body.to_string().as_bytes())[..16]))
            }
            (tag, _) => tag,
        };
        let tag = tag.and_then(|tag| HeaderValue::from_str(&format!("\"{tag}\"")).ok());
        if let Some(tag) = tag {
            response.headers_mut().insert(header::ETAG, tag);
        }
        response
    }
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self { status: Some(answer.status), etag: answer.etag, body: answer.body }
    }
}

/// The header that names a request, in both directions.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The header that makes a POST happen once.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest name of a request or of what happens once.
const LONGEST_NAME: usize = 128;

/// Answers a request to an endpoint.
pub async fn serve(
    endpoint: &'static Endpoint,
    admin: Arc<Admin>,
    params: Params,
    request: Request,
) -> Response {
    let name = Name::of(request.headers(), admin.clock.now());
    let response = match answer(endpoint, admin, params, request).await {
        Ok(reply) => reply.respond(endpoint),
        Err(problem) => {
            if problem.code.status() >= 500 {
                let (request_id, code) = (name.text(), problem.code.word());
                tracing::error!(request_id, code, endpoint = endpoint.name, "not done");
            }
            problem.respond(name.text())
        }
    };
    name.onto(response)
}

/// Refuses a request to what is no endpoint; but says so only to those who may ask at all.
pub async fn refuse(admin: Arc<Admin>, request: Request, problem: Problem) -> Response {
    let now = admin.clock.now();
    let name = Name::of(request.headers(), now);
    let problem = Who::of(&admin, request.headers(), now).err().unwrap_or(problem);
    name.onto(problem.respond(name.text()))
}

async fn answer(
    endpoint: &'static Endpoint,
    admin: Arc<Admin>,
    params: Params,
    request: Request,
) -> Result<Reply, Problem> {
    let (head, body) = request.into_parts();
    let now = admin.clock.now();
    let who = Who::of(&admin, &head.headers, now)?;
    who.may(endpoint, &params)?;
    let query = read_query(endpoint, &head.uri)?;
    let condition = read_condition(endpoint, &head.headers)?;
    let bytes = match &endpoint.takes {
        Some(takes) => read_body(takes, &head.headers, body).await?,
        None => Bytes::new(),
    };
    let once = read_once(endpoint, &who, &head.headers, &head.uri, &bytes)?;
    let body = match &endpoint.takes {
        Some(takes) if takes.required || !bytes.is_empty() => {
            Some(read_source(&head.headers, &bytes)?)
        }
        _ => None,
    };
    let call = Call { admin, who, now, body, condition, once, params, query };
    call.check_scope(endpoint.scope)?;
    if endpoint.is_safe() {
        return endpoint.answer(call).await;
    }
    // A task of its own: a client that leaves must not stop a change halfway.
    #[expect(
        clippy::disallowed_methods,
        reason = "awaited right here; it only must not be dropped"
    )]
    let done = tokio::spawn(endpoint.answer(call)).await;
    done.unwrap_or_else(|error| {
        tracing::error!(%error, endpoint = endpoint.name, "a change panicked");
        Err(Problem::internal())
    })
}

impl Call {
    /// The org in the path.
    ///
    /// # Errors
    /// `not_found`.
    pub fn org(&self) -> Result<Arc<Org>, Problem> {
        let id = self.param("org");
        let found = self.admin.directory.live().load().orgs.get(id).cloned();
        found.ok_or_else(|| Problem::not_found("org with this id"))
    }

    /// A parameter of the path; the text is empty for one that the path does not have.
    pub fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// An id in the path.
    ///
    /// # Errors
    /// `not_found` for what cannot be one.
    pub fn id(&self, name: &str) -> Result<Id, Problem> {
        self.param(name).parse().map_err(|_| Problem::not_found(&format!("{name} with this id")))
    }

    /// The charge in the path.
    ///
    /// # Errors
    /// `not_found` for what cannot be one.
    pub fn charge(&self) -> Result<ChargeId, Problem> {
        self.param("charge").parse().map_err(|_| unknown_charge())
    }

    /// The user in the path.
    ///
    /// # Errors
    /// `not_found`.
    pub fn user(&self, org: &Org) -> Result<Arc<User>, Problem> {
        org.users.get(self.param("user")).cloned().ok_or_else(unknown_user)
    }

    /// A query parameter.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// A query parameter that was checked to be of some type.
    pub fn parsed<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.query(name).and_then(|text| text.parse().ok())
    }

    /// How many items a list is to have.
    pub fn limit(&self) -> usize {
        self.parsed("limit").unwrap_or(USUAL)
    }

    /// The body.
    ///
    /// # Errors
    /// `invalid` where there is none.
    pub fn body(&mut self) -> Result<Source, Problem> {
        self.body.take().ok_or_else(|| Problem::invalid("", "a body is needed"))
    }

    /// How the directory is to make a change for this call. `answer` is what a repetition under
    /// the same `Idempotency-Key` is told.
    pub fn write(&mut self, answer: impl Fn(&Applied) -> Answer + Send + Sync + 'static) -> Write {
        let once = self.once.take().map(|key| Once { key, answer: Box::new(answer) });
        let condition = self.condition.clone();
        Write { condition, once, ..Write::new(self.who.name.clone(), self.now) }
    }

    fn check_scope(&self, scope: Scope) -> Result<(), Problem> {
        if self.who.profiles().is_none() {
            return Ok(());
        }
        match scope {
            Scope::User => {
                let org = self.org()?;
                let user = self.user(&org)?;
                // Whom a token may not see does not exist for it.
                if self.who.sees(&org, &user) { Ok(()) } else { Err(unknown_user()) }
            }
            Scope::Profile if !self.who.has_profile(self.param("profile")) => {
                Err(Problem::new(Code::Forbidden, "the token is not for this profile"))
            }
            Scope::Org => Err(Problem::new(Code::Forbidden, "the token is for some profiles only")),
            Scope::Profile | Scope::Listed | Scope::All => Ok(()),
        }
    }
}

/// There is no such user, or none that the token may see.
pub fn unknown_user() -> Problem {
    Problem::not_found("user with this id")
}

/// There is no such charge, or none that the token may see.
pub fn unknown_charge() -> Problem {
    Problem::not_found("charge with this id in this org")
}

/// What a request is called: in its answer, and in logs.
struct Name(HeaderValue);

impl Name {
    fn of(headers: &HeaderMap, now: Timestamp) -> Self {
        let own = headers.get(X_REQUEST_ID).filter(|value| {
            let bytes = value.as_bytes();
            (1..=LONGEST_NAME).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
        });
        Self(own.cloned().unwrap_or_else(|| {
            let id = super::new_id(now).to_string();
            HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("-"))
        }))
    }

    fn text(&self) -> &str {
        self.0.to_str().unwrap_or("-")
    }

    fn onto(&self, mut response: Response) -> Response {
        response.headers_mut().insert(X_REQUEST_ID, self.0.clone());
        response
    }
}

fn read_query(endpoint: &Endpoint, uri: &Uri) -> Result<Vec<(&'static str, String)>, Problem> {
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

fn read_condition(endpoint: &Endpoint, headers: &HeaderMap) -> Result<Condition, Problem> {
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

fn read_once(
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

async fn read_body(takes: &Takes, headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
    let too_large = || {
        let detail = format!("a body here is at most {} bytes", takes.most);
        Problem::new(Code::BodyTooLarge, detail)
    };
    let told = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let told: Option<u64> = told.and_then(|text| text.parse().ok());
    // Refused before a byte of it is read (f71).
    if told.is_some_and(|length| length > takes.most as u64) {
        return Err(too_large());
    }
    let chunked = headers.contains_key(header::TRANSFER_ENCODING);
    if takes.required || chunked || told.unwrap_or(0) > 0 {
        check_media(takes, headers)?;
    }
    let reading = Limited::new(body, takes.most).collect();
    match tokio::time::timeout(BODY_TIMEOUT, reading).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Problem::invalid("", "the body broke off")),
        Err(_) => Err(Problem::new(Code::RequestTimeout, "the body did not arrive in time")),
    }
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

fn read_source(headers: &HeaderMap, bytes: &[u8]) -> Result<Source, Problem> {
    let source = match std::str::from_utf8(bytes) {
        Ok(text) if media_type(headers).eq_ignore_ascii_case(TOML) => Source::from_toml(text),
        Ok(_) => Source::from_json(bytes),
        Err(_) => return Err(Problem::invalid("", "the body is not UTF-8")),
    };
    source.map_err(|error| Problem::invalid("", error.to_string()))
}
