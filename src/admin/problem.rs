//! The admin API's problems (RFC 9457), and the only place where it chooses a status.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};

use crate::books::BooksError;
use crate::directory::change::ApplyError;
use crate::directory::file::{MOST_PROBLEMS, Problem as Wrong, SourceError};

/// Why an admin request is not done. The words are the contract's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// No token, or one that is not known.
    Unauthenticated,
    /// The token's role does not reach this.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The path does not take this method.
    MethodNotAllowed,
    /// The body did not arrive in time.
    RequestTimeout,
    /// It contradicts what is there.
    Conflict,
    /// `If-Match` names another state than the one in force.
    Stale,
    /// The body is over its bound.
    BodyTooLarge,
    /// The body is of a media type that is not read here.
    UnsupportedMediaType,
    /// Something about the request is wrong; `errors` says what and where.
    Invalid,
    /// The `Idempotency-Key` belongs to another request.
    IdempotencyKeyReused,
    /// The token has sent as many keys as are kept.
    TooManyIdempotencyKeys,
    /// A defect of ours.
    Internal,
    /// The books do not answer.
    BooksUnavailable,
    /// The directory's database does not answer.
    DirectoryUnavailable,
    /// Others have to be served first, and that takes too long.
    Busy,
}

impl Code {
    /// Every code.
    pub const ALL: &'static [Self] = &[
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::Conflict,
        Self::Stale,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::Invalid,
        Self::IdempotencyKeyReused,
        Self::TooManyIdempotencyKeys,
        Self::Internal,
        Self::BooksUnavailable,
        Self::DirectoryUnavailable,
        Self::Busy,
    ];

    /// The stable code.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RequestTimeout => "request_timeout",
            Self::Conflict => "conflict",
            Self::Stale => "stale",
            Self::BodyTooLarge => "body_too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::Invalid => "invalid",
            Self::IdempotencyKeyReused => "idempotency_key_reused",
            Self::TooManyIdempotencyKeys => "too_many_idempotency_keys",
            Self::Internal => "internal",
            Self::BooksUnavailable => "books_unavailable",
            Self::DirectoryUnavailable => "directory_unavailable",
            Self::Busy => "busy",
        }
    }

    /// A short summary that does not change from one occurrence to the next.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Unauthenticated => "A valid token is required",
            Self::Forbidden => "The token may not do this",
            Self::NotFound => "Not found",
            Self::MethodNotAllowed => "The path does not take this method",
            Self::RequestTimeout => "The request did not arrive in time",
            Self::Conflict => "This contradicts what is there",
            Self::Stale => "It has changed in between",
            Self::BodyTooLarge => "The request body is too large",
            Self::UnsupportedMediaType => "The body is of another media type",
            Self::Invalid => "The request is invalid",
            Self::IdempotencyKeyReused => "This Idempotency-Key belongs to another request",
            Self::TooManyIdempotencyKeys => "The token sent too many Idempotency-Keys",
            Self::Internal => "Internal error",
            Self::BooksUnavailable => "The balances cannot be reached",
            Self::DirectoryUnavailable => "The directory cannot be reached",
            Self::Busy => "Too much is being done at once",
        }
    }

    /// The status.
    pub fn status(self) -> u16 {
        let status = match self {
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Stale => StatusCode::PRECONDITION_FAILED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Invalid | Self::IdempotencyKeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooManyIdempotencyKeys => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::BooksUnavailable | Self::DirectoryUnavailable | Self::Busy => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        status.as_u16()
    }
}

/// What went wrong.
#[derive(Debug)]
pub struct Problem {
    /// What kind of thing.
    pub code: Code,
    detail: String,
    errors: Vec<Wrong>,
}

impl Problem {
    /// A problem.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new() }
    }

    /// There is no such thing.
    pub fn not_found(what: &str) -> Self {
        Self::new(Code::NotFound, format!("there is no {what}"))
    }

    /// One thing about a request is wrong. The pointer is a JSON pointer into the body, or a
    /// slash and the name of a query parameter.
    pub fn invalid(pointer: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let wrong = Wrong { pointer: pointer.to_owned(), detail: detail.clone() };
        Self { errors: vec![wrong], ..Self::new(Code::Invalid, detail) }
    }

    /// A defect of ours.
    pub fn internal() -> Self {
        Self::new(Code::Internal, "it could not be done; the log has the reason")
    }

    /// The response, for the request with this id.
    pub fn respond(&self, request_id: &str) -> Response {
        let word = self.code.word();
        let mut body = json!({
            "type": format!("/.tollgate/problems/{word}"),
            "title": self.code.title(),
            "status": self.code.status(),
            "detail": self.detail,
            "code": word,
            "request_id": request_id,
        });
        if !self.errors.is_empty() {
            body["errors"] = json!(self.errors);
        }
        let mut response = respond(self.code.status(), Some(&body));
        let headers = response.headers_mut();
        let mut set = |name: HeaderName, value: &'static str| {
            headers.insert(name, HeaderValue::from_static(value));
        };
        set(header::CONTENT_TYPE, "application/problem+json");
        match self.code {
            Code::Unauthenticated => set(header::WWW_AUTHENTICATE, "Bearer"),
            Code::BooksUnavailable | Code::DirectoryUnavailable => set(header::RETRY_AFTER, "1"),
            // The oldest key has to become a day old: how long that takes is not worth a look.
            Code::TooManyIdempotencyKeys => set(header::RETRY_AFTER, "60"),
            Code::Busy => set(header::RETRY_AFTER, "10"),
            _ => {}
        }
        response
    }
}

/// A response of JSON, or of nothing.
pub fn respond(status: u16, body: Option<&Value>) -> Response {
    let mut response = Response::new(Body::empty());
    if let Ok(status) = StatusCode::from_u16(status) {
        *response.status_mut() = status;
    }
    let headers = response.headers_mut();
    // Balances and secrets are nobody's to keep.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(body) = body {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        *response.body_mut() = Body::from(body.to_string());
    }
    response
}

impl From<Vec<Wrong>> for Problem {
    fn from(errors: Vec<Wrong>) -> Self {
        let detail = match errors.len() {
            count @ ..=MOST_PROBLEMS => format!("{count} problem(s); nothing was changed"),
            _ => format!("more than {MOST_PROBLEMS} problems; nothing was changed"),
        };
        Self { errors, ..Self::new(Code::Invalid, detail) }
    }
}

impl From<SourceError> for Problem {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::TooLarge => Self::new(Code::BodyTooLarge, error.to_string()),
            error => Self::invalid("", error.to_string()),
        }
    }
}

impl From<BooksError> for Problem {
    fn from(error: BooksError) -> Self {
        match error {
            BooksError::Range => Self::invalid("/amount", error.to_string()),
            BooksError::Closed | BooksError::KeyReused => {
                Self::new(Code::Conflict, error.to_string())
            }
            error => {
                tracing::error!(%error, "the books did not do what was asked");
                Self::new(Code::BooksUnavailable, "nothing was changed that was not recorded")
            }
        }
    }
}

impl From<ApplyError> for Problem {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Invalid(problems) => problems.into(),
            ApplyError::NotFound(_) => Self::new(Code::NotFound, error.to_string()),
            ApplyError::Conflict(_) | ApplyError::AnswerGone => {
                Self::new(Code::Conflict, error.to_string())
            }
            ApplyError::Stale => Self::new(Code::Stale, error.to_string()),
            ApplyError::KeyReused => Self::new(Code::IdempotencyKeyReused, error.to_string()),
            ApplyError::Busy => Self::new(Code::DirectoryUnavailable, error.to_string()),
            ApplyError::TooManyKeys => {
                Self::new(Code::TooManyIdempotencyKeys, format!("{error}; nothing was changed"))
            }
            error => {
                // What the database says may name files; it goes to the log only.
                tracing::error!(%error, "the directory failed");
                let detail = "the directory's database failed; see the log";
                Self::new(Code::DirectoryUnavailable, detail)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_page_that_tells_its_status() {
        const PAGES: &str = include_str!("../../docs/problems.md");
        for code in Code::ALL {
            let head = format!("\n## `{}`\n", code.word());
            let (_, rest) = PAGES.split_once(&head).unwrap_or_else(|| panic!("{code:?}: no page"));
            let page = rest.split("\n## ").next().unwrap();
            assert!(page.contains(&code.status().to_string()), "{code:?}: {page}");
        }
        assert!(Code::ALL.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn problems_say_which_request_they_answer() {
        let response = Problem::invalid("/limit", "too many").respond("id-1");
        assert_eq!(response.status(), 422);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let response = Problem::new(Code::Unauthenticated, "").respond("");
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
    }
}
