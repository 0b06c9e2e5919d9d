//! One request to the admin API, from its bytes to its answer: who asks, whether they may, what
//! exactly they ask. Whatever an [`Endpoint`] does not say is refused here, before its handler
//! runs.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use super::Admin;
use super::ask::{
    Name, check_length, is_toml, read_body, read_condition, read_document, read_once, read_query,
    read_source, told_length,
};
use super::documents;
use super::endpoint::{Endpoint, Scope};
use super::page::USUAL;
use super::problem::{Code, Problem, respond};
use super::who::Who;
use crate::core::ids::{ChargeId, Id};
use crate::directory::change::{Answer, Applied, Condition, Once, OnceKey, Write};
use crate::directory::file::{Document, MOST_PROBLEMS, Source};
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
    /// The body, if there is one and it is no org file.
    pub body: Option<Source>,
    /// The org file, if the body is one.
    pub document: Option<Document>,
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

/// Answers a request to an endpoint.
pub async fn serve(
    endpoint: &'static Endpoint,
    admin: Arc<Admin>,
    params: Params,
    request: Request,
) -> Response {
    let name = Name::of(request.headers(), admin.clock.now());
    let response = match answer(endpoint, admin, params, request).await {
        Ok(response) => response,
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
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let now = admin.clock.now();
    let who = Who::of(&admin, &head.headers, now)?;
    who.may(endpoint, &params)?;
    let query = read_query(endpoint, &head.uri)?;
    let condition = read_condition(endpoint, &head.headers)?;
    let (toml, told) = (is_toml(&head.headers), told_length(&head.headers));
    let document = endpoint.takes.as_ref().is_some_and(|takes| takes.document);
    let mut permits = None;
    let bytes = match &endpoint.takes {
        Some(takes) => {
            let most = documents::most(takes, &who, toml);
            check_length(told, most)?;
            let held = if document { admin.documents.hold(&who, told).await? } else { None };
            let bytes = read_body(takes, most, &head.headers, body).await?;
            let turn = if document { admin.documents.turn(bytes.len()).await? } else { None };
            permits = Some((held, turn));
            bytes
        }
        None => Bytes::new(),
    };
    let changes = admin.changes.clone();
    let rest = async move {
        let once = read_once(endpoint, &who, &head.headers, &head.uri, &bytes)?;
        let (body, document) = match &endpoint.takes {
            Some(takes) if takes.document => (None, Some(read_document(toml, &bytes)?)),
            Some(takes) if takes.required || !bytes.is_empty() => {
                (Some(read_source(&bytes)?), None)
            }
            _ => (None, None),
        };
        drop(bytes);
        let call = Call { admin, who, now, body, document, condition, once, params, query };
        call.check_scope(endpoint.scope)?;
        let reply = endpoint.answer(call).await?;
        drop(permits);
        Ok(reply.respond(endpoint))
    };
    if endpoint.is_safe() {
        return rest.await;
    }
    // A task of its own: a client that leaves must not stop a change halfway, nor does the end of
    // the process. A document has a thread of its own, from its bytes to its answer: what it says
    // can take seconds to read, and the event loop has others to answer.
    let done = if document {
        let runtime = Handle::current();
        changes.spawn_blocking(move || runtime.block_on(rest)).await
    } else {
        changes.spawn(rest).await
    };
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

    /// The org file.
    ///
    /// # Errors
    /// `invalid` where there is none, or where so much is wrong that nothing else matters.
    pub fn document(&mut self) -> Result<Document, Problem> {
        let document = self.document.take();
        let document = document.ok_or_else(|| Problem::invalid("", "a body is needed"))?;
        if document.problems.len() > MOST_PROBLEMS {
            return Err(document.problems.into());
        }
        Ok(document)
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
