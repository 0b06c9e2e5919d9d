//! Uploads, which are counted and dropped: raw, or the files of a form (RFC 7578).

use http::header::{CONTENT_TYPE, HeaderMap};
use memchr::memmem;
use serde::Serialize;
use serde_json::value::RawValue;

use super::answer::{Answer, Refused};
use super::ask::Told;

/// So many parts a form may have, and so long a boundary is (RFC 2046).
const MAX_PARTS: usize = 100;
const MAX_BOUNDARY: usize = 70;

const NO_FORM: Refused = Refused("the body is not the form that its content type says");

#[derive(Serialize)]
struct Upload<'a> {
    id: String,
    object: &'static str,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<Vec<Part>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<&'a RawValue>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Part {
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filename: Option<String>,
    bytes: usize,
}

/// Whether a body is a form, and has to be read as a whole.
pub(super) fn is_form(headers: &HeaderMap) -> bool {
    content_type(headers).is_some_and(|kind| {
        let kind = kind.split(';').next().unwrap_or_default();
        kind.trim().eq_ignore_ascii_case("multipart/form-data")
    })
}

/// The answer to the request of this number, whose body was `length` long. `form` is that body
/// where it is a form: then the bytes of its files count.
pub(super) fn upload(
    headers: &HeaderMap,
    form: &[u8],
    length: u64,
    told: &Told,
    number: u64,
) -> Result<Answer, Refused> {
    let parts = match boundary(headers).filter(|_| is_form(headers)) {
        Some(boundary) => Some(parts(form, boundary).ok_or(NO_FORM)?),
        None if is_form(headers) => return Err(NO_FORM),
        None => None,
    };
    let bytes = match &parts {
        Some(parts) => {
            let files = parts.iter().filter(|part| part.filename.is_some());
            u64::try_from(files.map(|part| part.bytes).sum::<usize>()).unwrap_or(u64::MAX)
        }
        None => length,
    };
    let usage = told.usage(("bytes", bytes), "", "");
    let body = Upload {
        id: format!("upload-{number}"),
        object: "upload",
        bytes,
        parts,
        usage: usage.as_ref().map(|usage| &*usage.object),
    };
    Answer::json(&body, usage.as_ref())
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(CONTENT_TYPE)?.to_str().ok()
}

fn boundary(headers: &HeaderMap) -> Option<&str> {
    let boundary = parameter(content_type(headers)?, "boundary")?;
    (1..=MAX_BOUNDARY).contains(&boundary.len()).then_some(boundary)
}

/// A parameter of a header's value. Quoted ones have no escapes here.
fn parameter<'a>(value: &'a str, name: &str) -> Option<&'a str> {
    let parameters = value.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
    let mut named = parameters.filter(|(known, _)| known.trim().eq_ignore_ascii_case(name));
    named.next().map(|(_, value)| value.trim().trim_matches('"'))
}

fn parts(form: &[u8], boundary: &str) -> Option<Vec<Part>> {
    let delimiter = format!("\r\n--{boundary}");
    let mut rest = form.strip_prefix(&delimiter.as_bytes()[2..])?;
    let mut parts = Vec::new();
    while !rest.starts_with(b"--") {
        if parts.len() == MAX_PARTS {
            return None;
        }
        let part = rest.strip_prefix(b"\r\n")?;
        let end = memmem::find(part, delimiter.as_bytes())?;
        parts.push(read(&part[..end])?);
        rest = &part[end + delimiter.len()..];
    }
    Some(parts)
}

fn read(part: &[u8]) -> Option<Part> {
    let head = memmem::find(part, b"\r\n\r\n")?;
    let lines = std::str::from_utf8(&part[..head]).ok()?.split("\r\n");
    let mut headers = lines.filter_map(|line| line.split_once(':'));
    let is_disposition = |name: &str| name.trim().eq_ignore_ascii_case("content-disposition");
    let disposition = headers.find(|(name, _)| is_disposition(name)).map_or("", |(_, value)| value);
    let named = |name| parameter(disposition, name).map(str::to_owned);
    Some(Part { name: named("name"), filename: named("filename"), bytes: part.len() - head - 4 })
}
