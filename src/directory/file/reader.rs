//! Reads one object of an org file key by key, and notes every problem with its place instead
//! of stopping at the first.

use std::cell::RefCell;
use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Something wrong with an org file, and where: the admin API's `errors` entry.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// A JSON pointer into the document (RFC 6901).
    pub pointer: String,
    /// What was expected.
    pub detail: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.pointer, self.detail)
    }
}

/// How many problems are told. A document with more has one mistake many times, and a list of
/// them all would be longer than the document.
pub const MOST_PROBLEMS: usize = 100;

/// Problems as they are found, no more than [`MOST_PROBLEMS`]; then that there are more.
#[derive(Debug, Default)]
pub struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    /// Notes a problem.
    pub fn note(&self, pointer: impl Into<String>, detail: impl Into<String>) {
        let mut noted = self.0.borrow_mut();
        if noted.len() < MOST_PROBLEMS {
            noted.push(Problem { pointer: pointer.into(), detail: detail.into() });
        } else if noted.len() == MOST_PROBLEMS {
            let detail = format!("and more: only the first {MOST_PROBLEMS} problems are told");
            noted.push(Problem { pointer: String::new(), detail });
        }
    }

    /// Whether one was found that is not told: nobody needs to look for another.
    pub fn are_too_many(&self) -> bool {
        self.0.borrow().len() > MOST_PROBLEMS
    }

    /// All that are told.
    pub fn into_inner(self) -> Vec<Problem> {
        self.0.into_inner()
    }
}

impl From<Vec<Problem>> for Problems {
    fn from(noted: Vec<Problem>) -> Self {
        Self(RefCell::new(noted))
    }
}

/// Notes a problem.
pub fn note(problems: &Problems, pointer: impl Into<String>, detail: impl Into<String>) {
    problems.note(pointer, detail);
}

/// An object of the document and its place.
pub struct Object<'a> {
    /// Where it is.
    pub pointer: String,
    map: &'a Map<String, Value>,
    problems: &'a Problems,
}

impl<'a> Object<'a> {
    /// The object at a place; notes what is no object, and every key that is not in `keys`.
    pub fn new(
        value: &'a Value,
        pointer: String,
        keys: &[&str],
        problems: &'a Problems,
    ) -> Option<Self> {
        let Value::Object(map) = value else {
            note(problems, pointer, "expected a table of keys and values");
            return None;
        };
        for key in map.keys().filter(|key| !keys.contains(&key.as_str())) {
            if problems.are_too_many() {
                break;
            }
            let expected = keys.join(", ");
            // RFC 6901, section 3.
            let escaped = key.replace('~', "~0").replace('/', "~1");
            let detail = format!("unknown key; expected one of {expected}");
            note(problems, format!("{pointer}/{escaped}"), detail);
        }
        Some(Self { pointer, map, problems })
    }

    /// The place of one of its keys.
    pub fn at(&self, key: &str) -> String {
        format!("{}/{key}", self.pointer)
    }

    /// Notes a problem with one of its keys.
    pub fn note(&self, key: &str, detail: impl Into<String>) {
        note(self.problems, self.at(key), detail);
    }

    /// The raw value of a key.
    pub fn raw(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key)
    }

    /// The value of a key that may be absent.
    pub fn optional<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        read(self.map.get(key)?, || self.at(key), self.problems)
    }

    /// The value of a key that must be there.
    pub fn required<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        if !self.map.contains_key(key) {
            self.note(key, "is required");
        }
        self.optional(key)
    }

    /// The value of a key, or its type's default.
    pub fn or_default<T: DeserializeOwned + Default>(&self, key: &str) -> T {
        self.optional(key).unwrap_or_default()
    }

    /// The elements of a list; `None` where the key is absent. What cannot be read is noted and
    /// left out, so each element comes with its index.
    pub fn list<T: DeserializeOwned>(&self, key: &str) -> Option<Vec<(usize, T)>> {
        let elements = self.elements(key)?.iter().enumerate();
        let read_one = |(index, element)| {
            let place = || format!("{}/{key}/{index}", self.pointer);
            Some((index, read(element, place, self.problems)?))
        };
        let more = |_: &(usize, &Value)| !self.problems.are_too_many();
        Some(elements.take_while(more).filter_map(read_one).collect())
    }

    /// The elements of a list of objects, each `None` where it is something else; none where the
    /// key is absent.
    pub fn objects(&self, key: &str, keys: &[&str]) -> impl Iterator<Item = Option<Object<'a>>> {
        let elements = self.elements(key).map_or(&[][..], Vec::as_slice).iter().enumerate();
        let more = |_: &(usize, &Value)| !self.problems.are_too_many();
        elements.take_while(more).map(move |(index, element)| {
            let place = format!("{}/{key}/{index}", self.pointer);
            Object::new(element, place, keys, self.problems)
        })
    }

    /// The object of a key; `None` where it is absent.
    pub fn object(&self, key: &str, keys: &[&str]) -> Option<Object<'a>> {
        Object::new(self.map.get(key)?, self.at(key), keys, self.problems)
    }

    fn elements(&self, key: &str) -> Option<&'a Vec<Value>> {
        let elements = self.map.get(key)?.as_array();
        if elements.is_none() {
            self.note(key, "expected a list");
        }
        elements
    }
}

fn read<T: DeserializeOwned>(
    value: &Value,
    place: impl FnOnce() -> String,
    problems: &Problems,
) -> Option<T> {
    match T::deserialize(value) {
        Ok(read) => Some(read),
        Err(error) => {
            note(problems, place(), error.to_string());
            None
        }
    }
}
