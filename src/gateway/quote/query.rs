//! Parameters of a query, and names that readers take for one another.

use std::borrow::Cow;

use super::unquotable;
use crate::core::refusal::Refusal;

/// The value of a parameter. What some backend could read as another value of it is refused.
pub fn parameter<'a>(query: &'a str, name: &str) -> Result<Option<Cow<'a, str>>, Refusal> {
    // Some split at semicolons, and some end at a NUL.
    if query.contains(';') || query.contains("%00") {
        return Err(unquotable("a query that is priced must not have a semicolon or NUL"));
    }
    let mut found = None;
    for pair in query.split('&') {
        let (spelt, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = unescape(spelt, true)?;
        if key == name && !escapes_needlessly(spelt) {
            if found.is_some() {
                return Err(unquotable(format!("the parameter {name} is there twice")));
            }
            found = Some(unescape(value, true)?);
            continue;
        }
        // Some resolve escapes twice.
        let again = unescape(&key, true).unwrap_or(Cow::Borrowed(&key));
        if key_looks_like(&again, name) {
            return Err(unquotable(format!("a parameter could be taken for {name}")));
        }
    }
    Ok(found)
}

/// True where an escape stands for what needs none (RFC 3986, 2.3): a client that means a name
/// to be read writes it plainly.
fn escapes_needlessly(text: &str) -> bool {
    text.split('%').skip(1).any(|rest| {
        let byte = rest.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
    })
}

/// True for keys of a query that readers take for a name that ignore case, trim, make
/// underscores of what a variable's name cannot have, or make a list of `name[]`.
pub fn key_looks_like(key: &str, name: &str) -> bool {
    // Upper case first, as the keys of bodies are compared. A bracket at the beginning begins no
    // list.
    let fold = |(at, c): (usize, char)| {
        let plain = if c.is_alphanumeric() || (c == '[' && at > 0) { c } else { '_' };
        plain.to_uppercase().flat_map(char::to_lowercase)
    };
    let mut key = key.trim().chars().enumerate().flat_map(fold);
    let mut name = name.trim().chars().enumerate().flat_map(fold);
    name.all(|c| key.next() == Some(c)) && matches!(key.next(), None | Some('['))
}

/// Resolves escapes, and `+` in a query.
pub fn unescape(text: &str, plus: bool) -> Result<Cow<'_, str>, Refusal> {
    if !text.bytes().any(|byte| byte == b'%' || (plus && byte == b'+')) {
        return Ok(Cow::Borrowed(text));
    }
    let broken = || unquotable("a parameter has a broken escape");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut hex = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                let (high, low) = hex().zip(hex()).ok_or_else(broken)?;
                (high * 16 + low) as u8
            }
            b'+' if plus => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).map(Cow::Owned).map_err(|_| broken())
}
