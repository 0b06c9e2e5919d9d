//! The admin API's problems (RFC 9457), and the only place where it chooses a status.

use axum::Json;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::directory::ApplyError;

/// What went wrong.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: String,
    errors: Vec<Value>,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, title: &'static str, detail: String) -> Self {
        Self { status, code, title, detail, errors: Vec::new() }
    }

    /// No token, or a wrong one.
    pub fn unauthenticated() -> Self {
        let detail = "send the operator's token as `Authorization: Bearer …`".to_owned();
        let title = "A valid token is required";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", title, detail)
    }

    /// There is no such thing.
    pub fn not_found(what: &str) -> Self {
        let detail = format!("there is no {what}");
        Self::new(StatusCode::NOT_FOUND, "not_found", "Not found", detail)
    }

    /// One thing about a request is wrong.
    pub fn invalid(pointer: &str, detail: &str) -> Self {
        let errors = vec![json!({ "pointer": pointer, "detail": detail })];
        Self {
            errors,
            ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", INVALID, detail.to_owned())
        }
    }

    /// A defect of ours.
    pub fn internal() -> Self {
        let detail = "the change could not be made; the log has the reason".to_owned();
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error", detail)
    }

    /// The books do not answer.
    pub fn books(error: &crate::books::BooksError) -> Self {
        let title = "The balances cannot be reached";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "books_unavailable", title, error.to_string())
    }
}

const INVALID: &str = "The request is invalid";

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid("", &rejection.body_text())
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let detail = format!("a document is at most {} MiB", super::MAX_DOCUMENT >> 20);
            let title = "The request body is too large";
            return Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", title, detail);
        }
        Self::invalid("", "the body broke off")
    }
}

impl From<ApplyError> for Problem {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Invalid(problems) => {
                let errors = problems
                    .iter()
                    .map(|p| json!({ "pointer": p.pointer, "detail": p.detail }))
                    .collect();
                let detail = format!("{} problem(s); nothing was applied", problems.len());
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                Self { errors, ..Self::new(status, "invalid", INVALID, detail) }
            }
            error => {
                // What the database says may name files; it goes to the log only.
                tracing::error!(%error, "the directory failed");
                let detail = "the directory's database failed; see the log".to_owned();
                let title = "The directory cannot be reached";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "directory_unavailable", title, detail)
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": format!("/.tollgate/problems/{}", self.code),
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.code,
        });
        if !self.errors.is_empty() {
            body["errors"] = self.errors.into();
        }
        let mut response = (self.status, Json(body)).into_response();
        let media_type = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, media_type);
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// For paths that mean nothing.
pub async fn not_found() -> Problem {
    Problem::not_found("such path in the admin API")
}

/// For methods that a path does not take.
pub async fn method_not_allowed() -> Problem {
    let detail = "the path does not take this method".to_owned();
    let title = "Method not allowed";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", title, detail)
}
