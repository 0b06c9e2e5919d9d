//! A request's body as what it is priced by: JSON, a form, or bytes. What it is said to be must
//! not let a backend read something else.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName};

use super::super::form::Form;
use super::super::pick::{Picked, Picker};
use super::super::screen::looks_like;
use super::unquotable;
use crate::core::refusal::Refusal;

/// What of a body was read.
#[derive(Debug)]
pub enum Content<'a> {
    /// Nothing.
    Unread,
    /// What pointers found.
    Json(Picked<'a>),
    /// A form.
    Form(Form<'a>),
}

/// Refuses an encoded body: what is counted in it are not the bytes that a backend reads (f74).
///
/// # Errors
/// `unquotable`.
pub fn refuse_encoded(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(unquotable("a body that is priced must not be encoded"));
    }
    Ok(())
}

/// Reads a body that a backend reads as JSON.
///
/// # Errors
/// `unquotable` where it is none, or where it could be read in two ways (f70).
pub fn json<'a>(
    headers: &HeaderMap,
    body: &'a [u8],
    picker: &Picker,
) -> Result<Picked<'a>, Refusal> {
    if is_form(headers) {
        return Err(unquotable("a body that is priced is JSON and not a form"));
    }
    if !is_utf8(headers) {
        return Err(unquotable("a body that is priced is in UTF-8"));
    }
    let not_json = |error| unquotable(format!("the body is not the JSON that is priced: {error}"));
    picker.pick_strictly(body).map_err(not_json)
}

/// Reads a body that a backend reads as a form.
///
/// # Errors
/// `unquotable` where it is none, or where it could be read in two ways (f70).
pub fn form<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<Form<'a>, Refusal> {
    let mut told = headers.iter().filter(|(name, _)| is_like(name, &CONTENT_TYPE));
    let Some((_, kind)) = told.next().filter(|_| told.next().is_none()) else {
        return Err(unquotable("a form that is priced has one `Content-Type`"));
    };
    let ambiguous = |why: &dyn std::fmt::Display| unquotable(format!("the form is refused: {why}"));
    let kind = kind.to_str().map_err(|error| ambiguous(&error))?;
    Form::read(kind, body).map_err(|why| ambiguous(&why))
}

/// Whether some reader takes one name for the other.
pub fn is_like(one: &HeaderName, other: &HeaderName) -> bool {
    looks_like(one.as_str().as_bytes(), other.as_str().as_bytes())
}

/// True for a body that a backend reads as a form's fields, whatever else it could be read as.
fn is_form(headers: &HeaderMap) -> bool {
    let told = headers.iter().filter(|(name, _)| is_like(name, &CONTENT_TYPE));
    let mut parts = told.flat_map(|(_, value)| value.as_bytes().split(|b| b";,".contains(b)));
    parts.any(|part| {
        let (part, multipart) = (part.trim_ascii(), b"multipart/");
        part.eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
            || part.get(..multipart.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(multipart))
    })
}

/// True unless a body is said to be in another character encoding than JSON's: a backend that
/// believes it reads other characters.
fn is_utf8(headers: &HeaderMap) -> bool {
    let told = headers.iter().filter(|(name, _)| is_like(name, &CONTENT_TYPE));
    let mut parameters = told.flat_map(|(_, value)| value.as_bytes().split(|b| b";,".contains(b)));
    parameters.all(|parameter| {
        let mut sides = parameter.splitn(2, |&byte| byte == b'=');
        let name = sides.next().unwrap_or_default().trim_ascii();
        let Some(value) = sides.next() else { return true };
        let value = value.trim_ascii();
        let value = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
        !name.eq_ignore_ascii_case(b"charset") || value.eq_ignore_ascii_case(b"utf-8")
    })
}
