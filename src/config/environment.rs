//! Every key may come from the environment: `TOLLGATE__ROUTE__0__UPSTREAM=media` is
//! `route[0].upstream`. A variable wins over the file.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize as _;
use toml::Value;

use super::document::{Document, Key, Step};
use super::error::{Place, Problem};

const PREFIX: &str = "TOLLGATE__";

/// The process's variables, for [`load`](super::load). What is not Unicode keeps a mark in place
/// of the bytes that are not, so that it is refused where it is used and not overlooked.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (lossy(name), lossy(value)))
}

/// Texts of variables whose value also reads as TOML: where that has the wrong type, the text is
/// what was meant (`TOLLGATE__UPSTREAM__0__NAME=9`).
pub(super) type Texts = BTreeMap<Key, String>;

/// Puts the variables over the file's values.
pub(super) fn overlay(
    document: &mut Document,
    variables: impl Iterator<Item = (String, String)>,
) -> Result<Texts, Vec<Problem>> {
    let mut ordered: Vec<_> = variables
        .filter_map(|(name, text)| {
            let rest = name.strip_prefix(PREFIX)?;
            let parts: Vec<Part> = rest.split("__").map(Part::new).collect();
            Some((parts, name, text))
        })
        .collect();
    // Parents come before what is in them, and elements of an array in their order.
    ordered.sort();
    let mut texts = Texts::new();
    let mut problems = Vec::new();
    let mut set = BTreeMap::new();
    for (parts, name, text) in ordered {
        let place = Place::Variable(Arc::from(&*name));
        let fail = |key: String, expected: String| Problem { place: place.clone(), key, expected };
        match resolve(&mut document.root, &parts) {
            Err((key, expected)) => problems.push(fail(key.to_string(), expected)),
            Ok((key, _)) if set.contains_key(&key) => {
                let expected =
                    format!("expected one variable for this key, ${} sets it too", set[&key]);
                problems.push(fail(key.to_string(), expected));
            }
            Ok((key, slot)) => {
                match parse(&text) {
                    Some(value) if !value.is_str() => {
                        *slot = value;
                        texts.insert(key.clone(), text);
                    }
                    Some(value) => *slot = value,
                    None => *slot = Value::String(text),
                }
                document.claim(&key, &place);
                set.insert(key, name);
            }
        }
    }
    if problems.is_empty() { Ok(texts) } else { Err(problems) }
}

/// One part of a variable's name; an index is ordered as a number.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Index(usize, String),
    Name(String),
}

impl Part {
    fn new(text: &str) -> Self {
        match text.parse() {
            Ok(index) if text.bytes().all(|b| b.is_ascii_digit()) => {
                Self::Index(index, text.to_owned())
            }
            _ => Self::Name(text.to_owned()),
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Index(_, text) | Self::Name(text) => text,
        }
    }
}

/// The key that the parts name, and its place in the tree, made where it is missing.
fn resolve<'a>(root: &'a mut Value, parts: &[Part]) -> Result<(Key, &'a mut Value), (Key, String)> {
    let mut key = Key::default();
    let mut value = root;
    for (at, part) in parts.iter().enumerate() {
        let fresh = match parts.get(at + 1) {
            Some(Part::Index(..)) => Value::Array(Vec::new()),
            _ => Value::Table(toml::Table::new()),
        };
        value = match value {
            Value::Table(table) => {
                let name = name_in(table, part.text());
                key = key.name(&*name);
                if name.is_empty() {
                    return Err((key, "expected a key's name between `__` and `__`".to_owned()));
                }
                table.entry(name).or_insert(fresh)
            }
            Value::Array(array) => {
                let length = array.len();
                match part {
                    Part::Index(index, _) if *index <= length => {
                        key = key.step(Step::Index(*index));
                        if *index == length {
                            array.push(fresh);
                        }
                        &mut array[*index]
                    }
                    _ => return Err((key, format!("expected an index from 0 to {length}"))),
                }
            }
            _ => return Err((key, format!("expected no `{}` in a single value", part.text()))),
        };
    }
    Ok((key, value))
}

/// A key that is there keeps its spelling; a new one is in lower case, as all fixed keys are.
fn name_in(table: &toml::Table, part: &str) -> String {
    if table.contains_key(part) {
        return part.to_owned();
    }
    let mut alike = table.keys().filter(|name| name.eq_ignore_ascii_case(part));
    match (alike.next(), alike.next()) {
        (Some(name), None) => name.clone(),
        _ => part.to_ascii_lowercase(),
    }
}

fn parse(text: &str) -> Option<Value> {
    Value::deserialize(toml::de::ValueDeserializer::parse(text).ok()?).ok()
}
