//! JSON in which every key of an object is there once: of two, a reader would pick one and
//! silently drop the other, be it a user or a whole section. And JSON that takes no more memory
//! than it may: a tree can be ninety times as large as its text.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// What a value takes in a list or map, besides what it points to.
const VALUE: usize = size_of::<Value>();
/// What a node of a map takes, and how many keys are in one at least, on average.
const NODE: (usize, usize) = (640, 6);

/// How much memory the trees of a text may still take, about.
pub struct Room(Cell<Option<usize>>);

impl Room {
    /// Room for this many bytes.
    pub const fn new(bytes: usize) -> Self {
        Self(Cell::new(Some(bytes)))
    }

    /// Makes room for this many bytes, because what was read is gone again.
    pub fn renew(&self, bytes: usize) {
        self.0.set(Some(bytes));
    }

    /// Whether there was not enough of it.
    pub fn is_used_up(&self) -> bool {
        self.0.get().is_none()
    }

    fn take<E: Error>(&self, bytes: usize) -> Result<(), E> {
        self.0.set(self.0.get().and_then(|left| left.checked_sub(bytes)));
        if self.is_used_up() { Err(E::custom("too large")) } else { Ok(()) }
    }
}

/// Reads a value without repeated keys.
#[derive(Clone, Copy)]
pub struct Strict<'a>(pub &'a Room);

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.0.take(VALUE + value.len())?;
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = access.next_element_seed(self)? {
            // A list that grows has room for twice as many.
            self.0.take(2 * VALUE)?;
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let (node, keys) = NODE;
            let node = if map.len().is_multiple_of(keys) { node } else { 0 };
            self.0.take(VALUE + key.len() + node)?;
            let value = access.next_value_seed(self)?;
            if map.contains_key(&key) {
                return Err(twice(&key));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// A key is there twice.
pub fn twice<E: Error>(key: &str) -> E {
    E::custom(format!("the key {key:?} is there twice"))
}
