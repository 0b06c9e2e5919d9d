//! An answer before it becomes a response. Nothing here does I/O.

use bytes::Bytes;
use http::{HeaderName, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::ask::Usage;

/// When everything is said to have been made, in seconds of Unix time: the same request has the
/// same answer, whenever it is made.
pub(super) const CREATED: u64 = 1_760_000_000;

/// An answer, before it becomes a response.
pub(super) struct Answer {
    pub status: StatusCode,
    pub body: Content,
    /// The usage for the header, where the body is no stream and tells it.
    pub usage: Option<String>,
    /// One header more.
    pub header: Option<(HeaderName, String)>,
}

/// A body, in the pieces it is sent in.
pub(super) enum Content {
    Json(Bytes),
    /// Events, so many; made one by one, because there can be many of them.
    Events(usize, Box<dyn Iterator<Item = Bytes> + Send>),
}

/// Why a request makes no sense, in words.
#[derive(Debug)]
pub(super) struct Refused(pub &'static str);

impl Answer {
    /// A document.
    pub(super) fn json(body: &impl Serialize, usage: Option<&Usage>) -> Result<Answer, Refused> {
        let json = serde_json::to_vec(body).map_err(|_| Refused("the answer is not JSON"))?;
        let usage = usage.map(|usage| usage.value.get().to_owned());
        let body = Content::Json(json.into());
        Ok(Answer { status: StatusCode::OK, body, usage, header: None })
    }

    /// An event stream.
    pub(super) fn events(
        count: usize,
        events: impl Iterator<Item = Bytes> + Send + 'static,
    ) -> Answer {
        let body = Content::Events(count, Box::new(events));
        Answer { status: StatusCode::OK, body, usage: None, header: None }
    }

    /// An error, in the body that OpenAI's has.
    pub(super) fn error(status: StatusCode, message: &str) -> Answer {
        let kind = match status.as_u16() {
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        let error = json!({ "message": message, "type": kind, "param": null, "code": null });
        let body = Content::Json(json!({ "error": error }).to_string().into());
        Answer { status, body, usage: None, header: None }
    }
}

/// A request's document.
pub(super) fn parse<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(|_| Refused("the body is not the JSON expected here"))
}

/// What of a text is kept: the beginning, so that nobody fills the memory with one.
pub(super) fn clipped(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}
