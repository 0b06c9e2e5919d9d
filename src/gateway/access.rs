//! The access log: a line for each request, where `log.access` asks for it. Nothing is gathered for
//! it where not. Queries and bodies are left out, because they may hold secrets; what a client
//! chose is escaped by the log's format (f76).

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Uri};

use super::Trace;
use super::identify::Caller;
use super::worker::Connection;
use crate::core::ids::Id;
use crate::directory::snapshot::{Key, Org, User};

/// Who asked.
pub struct Who {
    org: Arc<Org>,
    key: Arc<Key>,
    user: Option<Arc<User>>,
}

impl Who {
    /// A caller, kept until the line is written.
    pub fn of(caller: &Caller) -> Self {
        let Caller { org, key, user, .. } = caller;
        Self { org: Arc::clone(org), key: Arc::clone(key), user: user.clone() }
    }
}

/// What is known of a request before it is served.
pub struct Line {
    peer: http::HeaderValue,
    method: Method,
    uri: Uri,
}

impl Line {
    /// Begins with the request's head.
    pub fn new<T>(connection: &Connection, request: &Request<T>) -> Self {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        Self { peer: connection.peer.clone(), method, uri }
    }

    /// Writes the line when the response's head is ready.
    pub fn write(&self, trace: &Trace, status: u16, took: Duration, waited: Duration) {
        let id = |id: Option<&Id>| id.map(Id::as_str).map(str::to_owned);
        let who = trace.who.as_ref();
        tracing::info!(
            target: "tollgate::access",
            request_id = trace.request_id.as_ref().and_then(|id| id.to_str().ok()),
            peer = self.peer.to_str().ok(),
            method = self.method.as_str(),
            path = self.uri.path(),
            status,
            org = id(who.map(|who| &who.org.id)),
            key = id(who.map(|who| &who.key.id)),
            user = id(who.and_then(|who| who.user.as_ref()).map(|user| &user.id)),
            took_us = micros(took),
            backend_us = micros(waited),
            "request"
        );
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
