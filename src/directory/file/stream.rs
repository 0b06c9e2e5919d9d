//! An org file as JSON, read thing by thing: the tree of one is gone before the next is read, so
//! that a document takes no more memory than what it says. And the reading ends where so many
//! problems were found that no more are told, however long the text goes on.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::document::{Document, Reading};
use super::keys::LISTS;
use super::reader::Problems;
use super::strict::{Room, Strict, twice};
use super::{LARGEST_TREE, SourceError};

/// Reads a document.
pub fn read(text: &[u8]) -> Result<Document, SourceError> {
    let problems = Problems::default();
    let room = Room::new(LARGEST_TREE);
    let mut reading = Reading::new(&problems);
    let mut from = serde_json::Deserializer::from_slice(text);
    let root = Root { reading: &mut reading, room: &room, problems: &problems };
    let read = root.deserialize(&mut from).and_then(|rest| from.end().map(|()| rest));
    match read {
        Ok(rest) => reading.root(&rest),
        // The end was not looked for.
        Err(_) if problems.are_too_many() => {}
        Err(_) if room.is_used_up() => return Err(SourceError::TooLarge),
        Err(error) => return Err(SourceError::Json(error.to_string())),
    }
    let mut document = reading.done();
    document.problems = problems.into_inner();
    Ok(document)
}

/// The whole document: takes its lists, and gives the rest.
struct Root<'r, 'p> {
    reading: &'r mut Reading<'p>,
    room: &'r Room,
    problems: &'p Problems,
}

impl<'de> DeserializeSeed<'de> for Root<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Root<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let Self { reading, room, problems } = self;
        let mut rest = Map::new();
        let mut lists = Vec::new();
        while let Some(key) = access.next_key::<String>()? {
            if rest.contains_key(&key) || lists.contains(&key) {
                return Err(twice(&key));
            }
            match LISTS.iter().find(|name| **name == key) {
                None => {
                    room.renew(LARGEST_TREE);
                    let value = access.next_value_seed(Strict(room))?;
                    rest.insert(key, value);
                }
                Some(name) => {
                    let list = List { name, reading: &mut *reading, room, problems };
                    if !access.next_value_seed(list)? {
                        problems.note(format!("/{name}"), "expected a list");
                    }
                    lists.push(key);
                }
            }
        }
        Ok(Value::Object(rest))
    }
}

/// A section that is a list; false for one that is anything else.
struct List<'r, 'p> {
    name: &'static str,
    reading: &'r mut Reading<'p>,
    room: &'r Room,
    problems: &'p Problems,
}

impl<'de> DeserializeSeed<'de> for List<'_, '_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for List<'_, '_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<bool, A::Error> {
        let Self { name, reading, room, problems } = self;
        reading.begin(name);
        for index in 0.. {
            room.renew(LARGEST_TREE);
            let Some(value) = access.next_element_seed(Strict(room))? else { break };
            reading.element(name, index, &value);
            if problems.are_too_many() {
                return Err(A::Error::custom("too many problems"));
            }
        }
        Ok(true)
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_bool<E>(self, _: bool) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_u64<E>(self, _: u64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_i64<E>(self, _: i64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_f64<E>(self, _: f64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_str<E>(self, _: &str) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<bool, A::Error> {
        self.room.renew(LARGEST_TREE);
        Strict(self.room).visit_map(access).map(|_| false)
    }
}
