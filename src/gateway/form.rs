//! Forms with files (`multipart/form-data`, RFC 7578), read whole and without I/O, and only where
//! every reader reads the same.
//!
//! Readers of forms disagree more than any others: on what ends a line and a part, on whose name
//! counts, on what is a file, on characters. So the grammar here is the one that all of them
//! share, which is what clients send, and whatever is outside of it is refused (f70). What is said
//! of a field that nobody asks for is left alone where it cannot change another field.

use std::borrow::Cow;

use memchr::memmem;
use smallvec::SmallVec;

use super::quote::{key_looks_like, unescape};

/// A form's parts.
#[derive(Debug)]
pub struct Form<'a> {
    parts: Vec<Part<'a>>,
}

/// One part of a form: a field or a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    /// The field's name.
    pub name: &'a str,
    /// The file's name; `None` for a field.
    pub filename: Option<&'a str>,
    /// What it is said to be.
    pub kind: Option<&'a str>,
    /// What it holds.
    pub content: &'a [u8],
}

/// What was uploaded under one name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Files {
    /// How many files.
    pub count: u64,
    /// How many bytes all of them have.
    pub bytes: u64,
}

/// Why a form is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Ambiguous(Cow<'static, str>);

type Read<T> = Result<T, Ambiguous>;

fn refuse<T>(why: impl Into<Cow<'static, str>>) -> Read<T> {
    Err(Ambiguous(why.into()))
}

/// Parts of one form. Readers have bounds of their own, and do without what is beyond.
const MAX_PARTS: usize = 256;
/// The longest boundary (RFC 2046, 5.1.1).
const MAX_BOUNDARY: usize = 70;

/// Fields that change what a backend makes of the others: their encoding, or the method.
const MEANINGFUL: [&str; 2] = ["_charset_", "_method"];

impl<'a> Form<'a> {
    /// Reads a form, by the header that says what it is.
    ///
    /// # Errors
    /// What is wrong with it, or what readers could read in two ways.
    pub fn read(content_type: &str, body: &'a [u8]) -> Read<Self> {
        let boundary = boundary(content_type)?;
        let delimiter = [b"--", boundary.as_bytes()].concat();
        let mut parts = Vec::new();
        let Some(mut rest) = body.strip_prefix(&*delimiter) else {
            return refuse("it does not begin with its boundary");
        };
        loop {
            // The last one, and what may follow it.
            if matches!(rest, b"--" | b"--\r\n") {
                return Ok(Self { parts });
            }
            let Some(begun) = rest.strip_prefix(b"\r\n") else {
                return refuse("its boundary is in a line with something else");
            };
            let Some(at) = memmem::find(begun, &delimiter) else {
                return refuse("it has no end");
            };
            // Some take a line feed for the end of a line, some look at no line at all.
            let Some(part) = begun[..at].strip_suffix(b"\r\n") else {
                return refuse("its boundary is not at the beginning of a line");
            };
            if parts.len() == MAX_PARTS {
                return refuse(format!("it has more than {MAX_PARTS} parts"));
            }
            parts.push(Part::read(part)?);
            rest = &begun[at + delimiter.len()..];
        }
    }

    /// Its parts, in their order.
    pub fn parts(&self) -> &[Part<'a>] {
        &self.parts
    }

    /// The text of a field; `None` where there is none.
    ///
    /// # Errors
    /// Where it is there twice, is a file, or could be read as another text, and where another
    /// field could be taken for it.
    pub fn text(&self, name: &str) -> Read<Option<&'a str>> {
        let mut named = self.alike(name);
        let Some(part) = named.next() else { return Ok(None) };
        if part.name != name {
            return refuse(format!("a field could be taken for {name}"));
        }
        if named.next().is_some() {
            return refuse(format!("the field {name} is there twice, or another looks like it"));
        }
        if part.filename.is_some() {
            return refuse(format!("the field {name} is a file"));
        }
        if !part.kind.is_none_or(is_plain) {
            return refuse(format!("the field {name} is said to be no text in UTF-8"));
        }
        match std::str::from_utf8(part.content) {
            Ok(text) if text.trim() == text && !text.contains(char::is_control) => Ok(Some(text)),
            _ => refuse(format!("the field {name} is not plain text")),
        }
    }

    /// What was uploaded under a name, and under any that a backend could take for it; `None`
    /// where nothing was.
    ///
    /// # Errors
    /// Where a field has that name that is no file.
    pub fn files(&self, name: &str) -> Read<Option<Files>> {
        let mut files = Files::default();
        for part in self.alike(name) {
            // Without a name some see no file, and some see one.
            if part.filename.is_none_or(str::is_empty) {
                return refuse(format!("the field {name} is no file"));
            }
            files.count += 1;
            files.bytes += part.content.len() as u64;
        }
        Ok((files.count > 0).then_some(files))
    }

    fn alike(&self, name: &str) -> impl Iterator<Item = &Part<'a>> {
        self.parts.iter().filter(move |part| is_alike(part.name, name))
    }
}

/// True for names that some reader takes for one another: those of a query, and every place of one
/// list.
fn is_alike(one: &str, other: &str) -> bool {
    // A bracket at the beginning begins no place.
    let other = other.trim();
    let end = other.char_indices().skip(1).find(|(_, c)| *c == '[').map(|(at, _)| at);
    let list = &other[..end.unwrap_or(other.len())];
    // Browsers escape what a quoted text cannot have, and few readers resolve that.
    let plain = unescape(one, true).unwrap_or(Cow::Borrowed(one));
    one.trim() == other || key_looks_like(&plain, list) || key_looks_like(one, list)
}

impl<'a> Part<'a> {
    fn read(part: &'a [u8]) -> Read<Self> {
        // A head of no line is none: every part has a name.
        let Some(end) = memmem::find(part, b"\r\n\r\n") else {
            return refuse("a part has no head");
        };
        let content = &part[end + 4..];
        let Ok(head) = std::str::from_utf8(&part[..end]) else {
            return refuse("a part's head is not in UTF-8");
        };
        let (mut disposition, mut kind, mut length) = (None, None, None);
        for line in head.split("\r\n") {
            if line.contains(|c: char| c.is_control() && c != '\t') {
                return refuse("a part's head has a control character");
            }
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let field = match &*name.to_ascii_lowercase() {
                "content-disposition" => &mut disposition,
                "content-type" => &mut kind,
                "content-length" => &mut length,
                // Lines that go on, encodings of one part, and whatever else some reader knows.
                _ => return refuse("a part's head says more than name and type"),
            };
            if field.replace(value.trim_matches([' ', '\t'])).is_some() {
                return refuse("a part's head says something twice");
            }
        }
        if length.is_some_and(|length| length != content.len().to_string()) {
            return refuse("a part is not as long as it says");
        }
        if kind.is_some_and(is_nested) {
            return refuse("a part has parts itself");
        }
        // Who looks for a name in all of the head finds it there.
        if kind.is_some_and(|kind| kind.to_ascii_lowercase().contains("name")) {
            return refuse("a part's type has a name");
        }
        let Some(disposition) = disposition else { return refuse("a part has no name") };
        let (name, filename) = names(disposition)?;
        if MEANINGFUL.iter().any(|known| is_alike(name, known)) {
            return refuse("a field could change what another says");
        }
        Ok(Self { name, filename, kind, content })
    }
}

/// The names that `form-data; name="…"; filename="…"` says, in this order: who looks for `name=`
/// finds it in `filename=` too.
fn names(disposition: &str) -> Read<(&str, Option<&str>)> {
    match &*parameters(disposition)? {
        [("form-data", ""), ("name", name)] if is_name(name) => Ok((name, None)),
        [("form-data", ""), ("name", name), ("filename", file)] if is_name(name) => {
            Ok((name, Some(file)))
        }
        _ => refuse("a part is called something else than by `name` and `filename`"),
    }
}

/// A name; an encoded word stands for another one where mail is read (RFC 2047).
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains("=?")
}

/// The boundary that a header tells. Its characters are those that need no quotes anywhere.
fn boundary(content_type: &str) -> Read<&str> {
    let parameters = parameters(content_type)?;
    let mut boundary = None;
    for (at, (name, value)) in parameters.iter().enumerate() {
        let fine = match at {
            0 => name.eq_ignore_ascii_case("multipart/form-data"),
            _ if name.eq_ignore_ascii_case("boundary") => boundary.replace(*value).is_none(),
            _ => is_utf8(name, value),
        };
        if !fine {
            return refuse("its type is not `multipart/form-data` with a boundary");
        }
    }
    match boundary {
        Some(text) if is_token(text) && text.len() <= MAX_BOUNDARY => Ok(text),
        _ => refuse("its boundary is not up to 70 letters, digits, `-`, `_`, `.` and `+`"),
    }
}

fn is_nested(kind: &str) -> bool {
    kind.get(..10).is_some_and(|kind| kind.eq_ignore_ascii_case("multipart/"))
}

/// True for what every reader takes for a text in UTF-8.
fn is_plain(kind: &str) -> bool {
    let Ok(parameters) = parameters(kind) else { return false };
    match &*parameters {
        [(kind, "")] => kind.eq_ignore_ascii_case("text/plain"),
        [(kind, ""), (name, value)] => {
            kind.eq_ignore_ascii_case("text/plain") && is_utf8(name, value)
        }
        _ => false,
    }
}

fn is_utf8(name: &str, value: &str) -> bool {
    name.eq_ignore_ascii_case("charset") && value.eq_ignore_ascii_case("utf-8")
}

/// A header's value and its parameters: `value; name=token; name="text"`. The value is the first,
/// as a name.
fn parameters(text: &str) -> Read<SmallVec<[(&str, &str); 4]>> {
    let mut found = SmallVec::new();
    let (value, mut rest) = split(text);
    found.push((value, ""));
    while let Some(more) = rest {
        let Some((name, value)) = more.trim_start_matches([' ', '\t']).split_once('=') else {
            return refuse("a parameter has no value");
        };
        if !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return refuse("a parameter is in another form than `name=value`");
        }
        let value = match value.strip_prefix('"') {
            // Some resolve a backslash and some do not, and some split wherever there is a `;`.
            Some(quoted) => match quoted.split_once('"') {
                Some((text, after)) if !text.contains(['\\', ';']) => {
                    let (between, more) = split(after);
                    rest = more;
                    if between.is_empty() { Some(text) } else { None }
                }
                _ => None,
            },
            None => {
                let (text, more) = split(value);
                rest = more;
                is_token(text).then_some(text)
            }
        };
        let Some(value) = value else {
            return refuse("a parameter's value is not quoted plainly");
        };
        found.push((name, value));
    }
    Ok(found)
}

/// Up to a semicolon, and what is behind it, if there is one.
fn split(text: &str) -> (&str, Option<&str>) {
    let (one, more) = text.split_once(';').map_or((text, None), |(one, more)| (one, Some(more)));
    (one.trim_matches([' ', '\t']), more)
}

fn is_token(text: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
    !text.is_empty() && text.bytes().all(fine)
}

#[cfg(test)]
mod tests;
