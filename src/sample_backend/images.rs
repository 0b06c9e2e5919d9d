//! Images, which are all the same pixel.

use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::answer::{Answer, CREATED, Refused, parse};
use super::ask::Told;

/// One transparent pixel.
const PIXEL: &str = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

const MAX_IMAGES: u64 = 16;

#[derive(Deserialize)]
struct Request {
    n: Option<u64>,
    size: Option<String>,
}

#[derive(Serialize)]
struct Images<'a> {
    created: u64,
    data: Vec<serde_json::Value>,
    size: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<&'a RawValue>,
}

/// As many as were asked for.
pub(super) fn images(body: &[u8], told: &Told) -> Result<Answer, Refused> {
    let request: Request = parse(body)?;
    let n = request.n.unwrap_or(1);
    if !(1..=MAX_IMAGES).contains(&n) {
        return Err(Refused("n is 1 to 16"));
    }
    let usage = told.usage(("images", n), "", "");
    let body = Images {
        created: CREATED,
        data: (0..n).map(|_| json!({ "url": PIXEL })).collect(),
        size: request.size.as_deref().unwrap_or("1024x1024"),
        usage: usage.as_ref().map(|usage| &*usage.object),
    };
    Answer::json(&body, usage.as_ref())
}
