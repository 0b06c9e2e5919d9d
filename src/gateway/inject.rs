//! Values that a route sets in the JSON of its requests, whatever its callers say.
//!
//! The text is edited where they stand, and every other byte of it stays. It is read as strictly
//! as what decides a price: with a key that is there twice, or in another case, a caller could
//! undo what is set (f70).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use http::HeaderMap;
use serde_json::value::RawValue;

use super::pick::{Picked, Picker};
use super::quote::{content, unquotable};
use crate::config::{Equals, InjectWhen, is_pointer};
use crate::core::refusal::Refusal;

/// What is set, and when.
#[derive(Debug)]
pub struct Inject {
    picker: Picker,
    members: Vec<Member>,
    when: Option<(usize, Equals)>,
}

/// A member of an object that is set, or in which something is.
#[derive(Debug)]
struct Member {
    key: String,
    /// Where the picker tells what is there.
    pick: usize,
    set: Set,
}

#[derive(Debug)]
enum Set {
    /// This JSON text.
    Value(String),
    /// These members of it.
    Members(Vec<Member>),
}

/// Puts a text in place of a part of the body.
struct Edit {
    at: Range<usize>,
    text: String,
}

impl Inject {
    /// Compiles what is set; `None` where that is nothing.
    ///
    /// # Errors
    /// A pointer that is none or leads into another's value, or a value that JSON does not have.
    pub fn new(
        values: &BTreeMap<String, toml::Value>,
        when: Option<&InjectWhen>,
    ) -> Result<Option<Self>, String> {
        let (mut picker, mut members) = (Picker::default(), Vec::new());
        for (pointer, value) in values {
            let text = json(value).ok_or("`inject` takes values that JSON has")?;
            if !is_pointer(pointer) {
                return Err(format!("`inject` takes JSON pointers, got {pointer:?}"));
            }
            let keys: Vec<&str> = pointer.split('/').skip(1).collect();
            let put = put(&mut picker, &mut members, "", &keys, &text.to_string())?;
            put.ok_or_else(|| format!("`inject` has two values for {pointer:?}"))?;
        }
        let when = when.map(|when| {
            let pick = picker.add(&when.json).map_err(|error| error.to_string());
            pick.map(|pick| (pick, when.equals.clone()))
        });
        let when = when.transpose()?;
        Ok((!members.is_empty()).then_some(Self { picker, members, when }))
    }

    /// The body as it is forwarded; `None` where that is as it came.
    ///
    /// # Errors
    /// `unquotable` where it is no JSON object, or could be read in two ways.
    pub fn apply(&self, headers: &HeaderMap, body: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
        content::refuse_encoded(headers)?;
        let picked = content::json(headers, body, &self.picker)?;
        if !self.is_wanted(&picked)? {
            return Ok(None);
        }
        let mut edits = Vec::new();
        let start = body.iter().position(|byte| *byte == b'{').unwrap_or_default();
        edit(&self.members, body, start, &picked, &mut edits)?;
        if edits.is_empty() {
            return Ok(None);
        }
        edits.sort_by_key(|edit| edit.at.start);
        let mut edited =
            Vec::with_capacity(body.len() + edits.iter().map(|e| e.text.len()).sum::<usize>());
        let mut from = 0;
        for edit in edits {
            edited.extend_from_slice(&body[from..edit.at.start]);
            edited.extend_from_slice(edit.text.as_bytes());
            from = edit.at.end;
        }
        edited.extend_from_slice(&body[from..]);
        Ok(Some(edited))
    }

    fn is_wanted(&self, picked: &Picked<'_>) -> Result<bool, Refusal> {
        let Some((pick, equals)) = &self.when else { return Ok(true) };
        let Some(raw) = picked[*pick].map(RawValue::get).filter(|raw| *raw != "null") else {
            return Ok(false);
        };
        let said = match equals {
            Equals::Flag(flag) => raw.parse().ok().map(|said: bool| said == *flag),
            Equals::Text(text) => {
                let said: Option<Cow<'_, str>> = serde_json::from_str(raw).ok();
                said.map(|said| said == **text)
            }
        };
        // Some take `"true"` or 1 for true.
        said.ok_or_else(|| unquotable("a member that decides what is forwarded is of another kind"))
    }
}

/// Adds a value; `None` where another one is in its way.
fn put(
    picker: &mut Picker,
    members: &mut Vec<Member>,
    above: &str,
    keys: &[&str],
    text: &str,
) -> Result<Option<()>, String> {
    let Some((token, below)) = keys.split_first() else { return Ok(None) };
    let pointer = format!("{above}/{token}");
    let key = token.replace("~1", "/").replace("~0", "~");
    let at = members.iter().position(|member| member.key == key);
    let at = match at {
        Some(at) => at,
        None => {
            let pick = picker.add(&pointer).map_err(|error| error.to_string())?;
            let set = match below {
                [] => Set::Value(text.to_owned()),
                _ => Set::Members(Vec::new()),
            };
            members.push(Member { key, pick, set });
            if below.is_empty() {
                return Ok(Some(()));
            }
            members.len() - 1
        }
    };
    match &mut members[at].set {
        Set::Members(members) => put(picker, members, &pointer, below, text),
        Set::Value(_) => Ok(None),
    }
}

/// What there is to change in the object that begins at `start`.
fn edit(
    members: &[Member],
    body: &[u8],
    start: usize,
    picked: &Picked<'_>,
    edits: &mut Vec<Edit>,
) -> Result<(), Refusal> {
    let mut missing = Vec::new();
    for member in members {
        let Some(raw) = picked[member.pick] else {
            missing.push(member);
            continue;
        };
        // What was picked is a part of the body.
        let at = raw.get().as_ptr().addr() - body.as_ptr().addr();
        let whole = at..at + raw.get().len();
        match &member.set {
            Set::Value(text) if text == raw.get() => {}
            Set::Members(members) if raw.get().starts_with('{') => {
                edit(members, body, at, picked, edits)?;
            }
            Set::Members(_) if raw.get() != "null" => {
                return Err(unquotable("there is another value where an object is read"));
            }
            set => edits.push(Edit { at: whole, text: set.json() }),
        }
    }
    if !missing.is_empty() {
        let behind = start + 1;
        let mut text = object_members(missing.into_iter());
        if !body[behind..].trim_ascii_start().starts_with(b"}") {
            text.push(',');
        }
        edits.push(Edit { at: behind..behind, text });
    }
    Ok(())
}

impl Set {
    fn json(&self) -> String {
        match self {
            Self::Value(text) => text.clone(),
            Self::Members(members) => format!("{{{}}}", object_members(members.iter())),
        }
    }
}

fn object_members<'a>(members: impl Iterator<Item = &'a Member>) -> String {
    let one = |member: &Member| {
        let key = serde_json::Value::from(member.key.as_str());
        format!("{key}:{}", member.set.json())
    };
    members.map(one).collect::<Vec<_>>().join(",")
}

/// A value of TOML as JSON; `None` for one that JSON does not have.
fn json(value: &toml::Value) -> Option<serde_json::Value> {
    use serde_json::Value;
    Some(match value {
        toml::Value::String(text) => Value::from(text.as_str()),
        toml::Value::Integer(number) => Value::from(*number),
        toml::Value::Float(number) => Value::from(serde_json::Number::from_f64(*number)?),
        toml::Value::Boolean(flag) => Value::from(*flag),
        toml::Value::Datetime(_) => return None,
        toml::Value::Array(items) => Value::Array(items.iter().map(json).collect::<Option<_>>()?),
        toml::Value::Table(table) => {
            let member = |(key, value)| Some((String::clone(key), json(value)?));
            Value::Object(table.iter().map(member).collect::<Option<_>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inject(values: &str, when: Option<&str>) -> Result<Option<Inject>, String> {
        let values: BTreeMap<String, toml::Value> = toml::from_str(values).unwrap();
        let when = when.map(|text| toml::from_str(text).unwrap());
        Inject::new(&values, when.as_ref())
    }

    fn applied(inject: &Inject, body: &str) -> Result<String, ()> {
        let edited = inject.apply(&HeaderMap::new(), body.as_bytes()).map_err(|_| ())?;
        Ok(edited.map_or_else(|| "as it came".to_owned(), |text| String::from_utf8(text).unwrap()))
    }

    const USAGE: &str = "\"/stream_options/include_usage\" = true";

    #[test]
    fn what_is_set_is_put_where_it_belongs_and_every_other_byte_stays() {
        let usage = inject(USAGE, None).unwrap().unwrap();
        let all = r#""stream_options":{"include_usage":true}"#;
        for (body, expected) in [
            ("{}", format!("{{{all}}}")),
            (" {\r\n } ", format!(" {{{all}\r\n }} ")),
            (
                r#"{"n": 1.50e2, "a": "\u0041" }"#,
                format!(r#"{{{all},"n": 1.50e2, "a": "\u0041" }}"#),
            ),
            (r#"{"stream_options": null}"#, r#"{"stream_options": {"include_usage":true}}"#.into()),
            (r#"{"stream_options": {}}"#, r#"{"stream_options": {"include_usage":true}}"#.into()),
            (
                r#"{"stream_options": { "x": 1 }, "y": 2}"#,
                r#"{"stream_options": {"include_usage":true, "x": 1 }, "y": 2}"#.into(),
            ),
            (
                r#"{"stream_options":{"x":1,"include_usage" : false}}"#,
                r#"{"stream_options":{"x":1,"include_usage" : true}}"#.into(),
            ),
            (
                r#"{"stream_options":{"include_usage":[{"a":"}"}, 1]}}"#,
                r#"{"stream_options":{"include_usage":true}}"#.into(),
            ),
            (
                r#"{"stream\u005foptions":{"include\u005fusage":0}}"#,
                r#"{"stream\u005foptions":{"include\u005fusage":true}}"#.into(),
            ),
            (r#"{"stream_options":{"include_usage":true }}"#, "as it came".into()),
        ] {
            assert_eq!(applied(&usage, body).unwrap(), expected, "{body}");
        }
    }

    #[test]
    fn several_values_are_set_at_once_in_any_order_of_the_text() {
        let values = "\"/a/b\" = 1\n\"/a/c/d\" = \"x\\\"y\"\n\"/e~1f\" = [1, { g = false }]";
        let several = inject(values, None).unwrap().unwrap();
        for (body, expected) in [
            ("{}", r#"{"a":{"b":1,"c":{"d":"x\"y"}},"e/f":[1,{"g":false}]}"#),
            (
                r#"{"e/f":0,"a":{"c":{},"b":2},"z":3}"#,
                r#"{"e/f":[1,{"g":false}],"a":{"c":{"d":"x\"y"},"b":1},"z":3}"#,
            ),
            (
                r#"{"a":{"b":1,"c":null}}"#,
                r#"{"e/f":[1,{"g":false}],"a":{"b":1,"c":{"d":"x\"y"}}}"#,
            ),
        ] {
            assert_eq!(applied(&several, body).unwrap(), expected, "{body}");
        }
    }

    #[test]
    fn f70_what_a_caller_could_undo_or_a_backend_read_otherwise_is_refused() {
        let usage = inject(USAGE, Some("json = '/stream'\nequals = true")).unwrap().unwrap();
        for body in [
            "",
            "[]",
            "null",
            "{'a':1}",
            r#"{"stream":true,"stream":false}"#,
            r#"{"stream":true,"Stream":false}"#,
            r#"{"stream":true,"stream_options":{},"stream_options":{"include_usage":false}}"#,
            r#"{"stream":true,"stream\u005foptions":{},"stream_options":{}}"#,
            r#"{"stream":true,"Stream_Options":{"include_usage":false}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":1,"include_usage":false}}"#,
            r#"{"stream":true,"stream_options":{"Include_Usage":false}}"#,
            r#"{"stream":true,"stream_options":5}"#,
            r#"{"stream":true,"stream_options":[{"include_usage":false}]}"#,
            r#"{"stream":true} {}"#,
            // Some take these for true.
            r#"{"stream":"true"}"#,
            r#"{"stream":1}"#,
            r#"{"stream":[true]}"#,
        ] {
            assert_eq!(applied(&usage, body), Err(()), "{body}");
        }
        let listed = inject("\"/a/0\" = 1", None).unwrap().unwrap();
        assert_eq!(applied(&listed, r#"{"a":[0]}"#), Err(()));
        assert_eq!(applied(&listed, r#"{"a":{"0":0}}"#).unwrap(), r#"{"a":{"0":1}}"#);
        let mut headers = HeaderMap::new();
        headers.insert("content-type", "multipart/form-data; boundary=b".parse().unwrap());
        assert!(usage.apply(&headers, b"{}").is_err());
        headers.insert("content-type", "application/json; charset=utf-16".parse().unwrap());
        assert!(usage.apply(&headers, b"{}").is_err());
    }

    #[test]
    fn what_is_set_on_a_condition_is_set_where_it_holds() {
        let usage = inject(USAGE, Some("json = '/stream'\nequals = true")).unwrap().unwrap();
        for body in ["{}", r#"{"stream":false}"#, r#"{"stream":null}"#] {
            assert_eq!(applied(&usage, body).unwrap(), "as it came", "{body}");
        }
        let expected = r#"{"stream_options":{"include_usage":true},"stream" :true}"#;
        assert_eq!(applied(&usage, r#"{"stream" :true}"#).unwrap(), expected);
        let text = inject("\"/a\" = 1", Some("json = '/b/c'\nequals = 'x'")).unwrap().unwrap();
        assert_eq!(
            applied(&text, r#"{"b":{"c":"\u0078"}}"#).unwrap(),
            r#"{"a":1,"b":{"c":"\u0078"}}"#
        );
        for body in [r#"{"b":{"c":"X"}}"#, r#"{"b":null}"#, r#"{"b":{}}"#] {
            assert_eq!(applied(&text, body).unwrap(), "as it came", "{body}");
        }
        assert_eq!(applied(&text, r#"{"b":{"c":true}}"#), Err(()));
    }

    #[test]
    fn what_makes_no_sense_is_an_error_at_load() {
        for values in [
            "\"\" = 1",
            "a = 1",
            "\"a/b\" = 1",
            "\"/a~2\" = 1",
            "\"/a\" = 1979-05-27",
            "\"/a\" = [inf]",
            "\"/a\" = 1\n\"/a/b\" = 2",
            "\"/a/b/c\" = 1\n\"/a/b\" = 2",
        ] {
            assert!(inject(values, None).is_err(), "{values}");
        }
        assert!(inject(USAGE, Some("json = 'a'\nequals = true")).is_err());
        assert!(inject("", None).unwrap().is_none());
    }
}
