//! Values picked out of a JSON text by pointer (RFC 6901), in one pass and without a tree.
//!
//! The pointers are compiled into a trie, and serde_json's visitors walk text and trie together:
//! what no pointer names is checked and skipped, what one names is left as raw text. A key that
//! is there twice on the way of a pointer is refused, because readers disagree on which one
//! counts (f70).

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use smallvec::SmallVec;

use crate::config::is_pointer;

/// What was found, by the order in which the pointers were given.
pub type Picked<'a> = SmallVec<[Option<&'a RawValue>; 4]>;

/// Compiled pointers.
#[derive(Debug, Default)]
pub struct Picker {
    root: Node,
    pointers: usize,
}

/// Why a text is not a JSON pointer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a JSON pointer like \"/usage/images\", got {0:?}")]
pub struct PointerError(String);

#[derive(Debug, Default)]
struct Node {
    /// Which picks end here.
    picks: SmallVec<[usize; 1]>,
    /// Where the others go on; few, so they are searched one by one.
    children: Vec<(Box<str>, Node)>,
}

impl Picker {
    /// Adds a pointer and returns its place in [`Picked`].
    ///
    /// # Errors
    /// When the text is not a pointer.
    pub fn add(&mut self, pointer: &str) -> Result<usize, PointerError> {
        if !is_pointer(pointer) {
            return Err(PointerError(pointer.to_owned()));
        }
        let mut node = &mut self.root;
        // The empty pointer is the whole document.
        for token in pointer.split('/').skip(1) {
            let key = token.replace("~1", "/").replace("~0", "~");
            let at = node.children.iter().position(|(name, _)| **name == *key);
            let at = at.unwrap_or_else(|| {
                node.children.push((key.into(), Node::default()));
                node.children.len() - 1
            });
            node = &mut node.children[at].1;
        }
        node.picks.push(self.pointers);
        self.pointers += 1;
        Ok(self.pointers - 1)
    }

    /// True when there is nothing to pick, so the text need not be read.
    pub fn is_empty(&self) -> bool {
        self.pointers == 0
    }

    /// How many pointers there are.
    pub fn len(&self) -> usize {
        self.pointers
    }

    /// Reads a whole JSON text.
    ///
    /// # Errors
    /// When it is not JSON, has something after its end, or repeats a key on a pointer's way.
    pub fn pick<'a>(&self, text: &'a [u8]) -> Result<Picked<'a>, serde_json::Error> {
        self.walk(text, false)
    }

    /// Reads a whole JSON text that a backend reads too, perhaps with less care: a key that
    /// differs from one on a pointer's way in its case only is refused as well, because some
    /// readers take one for the other (f70). So is a text that is no object where a pointer leads
    /// into it: some readers find in an array what the pointer does not.
    ///
    /// # Errors
    /// Those of [`Picker::pick`], look-alikes, and texts that are no objects.
    pub fn pick_strictly<'a>(&self, text: &'a [u8]) -> Result<Picked<'a>, serde_json::Error> {
        let picked = self.walk(text, true)?;
        // What came through the walk is one JSON value, so its first character tells its kind.
        if !self.root.children.is_empty() && !text.trim_ascii_start().starts_with(b"{") {
            return Err(de::Error::custom("it is no object"));
        }
        Ok(picked)
    }

    fn walk<'a>(&self, text: &'a [u8], strict: bool) -> Result<Picked<'a>, serde_json::Error> {
        let mut picked = SmallVec::from_elem(None, self.pointers);
        let mut reader = serde_json::Deserializer::from_slice(text);
        Walk { node: &self.root, picked: &mut picked, strict }.deserialize(&mut reader)?;
        reader.end()?;
        Ok(picked)
    }
}

/// Walks one value of the text along one node of the trie.
struct Walk<'n, 'p, 'a> {
    node: &'n Node,
    picked: &'p mut Picked<'a>,
    /// Whether look-alikes of keys are refused.
    strict: bool,
}

impl<'a> DeserializeSeed<'a> for Walk<'_, '_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<(), D::Error> {
        if self.node.picks.is_empty() {
            return from.deserialize_any(self);
        }
        let raw: &'a RawValue = de::Deserialize::deserialize(from)?;
        for &pick in &self.node.picks {
            self.picked[pick] = Some(raw);
        }
        if self.node.children.is_empty() {
            return Ok(());
        }
        // One pointer ends where another goes on, so this part is read twice.
        let mut inner = serde_json::Deserializer::from_str(raw.get());
        inner.deserialize_any(self).map_err(de::Error::custom)
    }
}

impl<'a> Visitor<'a> for Walk<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen: SmallVec<[bool; 8]> = SmallVec::from_elem(false, self.node.children.len());
        while let Some(Key(key)) = map.next_key()? {
            match self.node.children.iter().position(|(name, _)| **name == *key) {
                None if self.strict
                    && self.node.children.iter().any(|c| looks_like(&key, &c.0)) =>
                {
                    let error = format_args!("the key {key:?} could be taken for another");
                    return Err(de::Error::custom(error));
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
                Some(at) if seen[at] => {
                    return Err(de::Error::custom(format_args!("the key {key:?} is there twice")));
                }
                Some(at) => {
                    seen[at] = true;
                    let node = &self.node.children[at].1;
                    map.next_value_seed(Walk {
                        node,
                        picked: &mut *self.picked,
                        strict: self.strict,
                    })?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut items: A) -> Result<(), A::Error> {
        let index = |(name, _): &(Box<str>, Node)| name.bytes().all(|byte| byte.is_ascii_digit());
        if self.strict && !self.node.children.iter().all(index) {
            return Err(de::Error::custom("there is an array where an object is read"));
        }
        for index in 0_usize.. {
            let child = self.node.children.iter().find(|(name, _)| {
                // `01` is not an index (RFC 6901, section 4).
                name.parse() == Ok(index) && (name.len() == 1 || !name.starts_with(['0', '+']))
            });
            let more = match child {
                None => items.next_element::<IgnoredAny>()?.is_some(),
                Some((_, node)) => items
                    .next_element_seed(Walk {
                        node,
                        picked: &mut *self.picked,
                        strict: self.strict,
                    })?
                    .is_some(),
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    // Pointers that lead into a scalar find nothing.
    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        self.scalar()
    }
    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        self.scalar()
    }
    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        self.scalar()
    }
    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        self.scalar()
    }
    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        self.scalar()
    }
    // Where there is nothing, nothing is in it.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

impl Walk<'_, '_, '_> {
    /// A scalar where a pointer goes on: what a backend makes of it is not known (f70).
    fn scalar<E: de::Error>(&self) -> Result<(), E> {
        if self.strict && !self.node.children.is_empty() {
            return Err(E::custom("there is a value where an object is read"));
        }
        Ok(())
    }
}

/// True for keys that readers take for one another that ignore case, as Go's does.
fn looks_like(one: &str, other: &str) -> bool {
    if one.is_ascii() {
        return one.eq_ignore_ascii_case(other);
    }
    // Through upper case, because the long s and the Kelvin sign are ASCII's to such readers.
    let fold = |c: char| c.to_uppercase().flat_map(char::to_lowercase);
    one.chars().flat_map(fold).eq(other.chars().flat_map(fold))
}

/// A key with its escapes resolved, borrowed where it has none.
struct Key<'a>(Cow<'a, str>);

impl<'a> de::Deserialize<'a> for Key<'a> {
    fn deserialize<D: Deserializer<'a>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'a> Visitor<'a> for Text {
            type Value = Key<'a>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Key<'a>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Key<'a>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        from.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picker(pointers: &[&str]) -> Picker {
        let mut picker = Picker::default();
        for pointer in pointers {
            picker.add(pointer).unwrap();
        }
        picker
    }

    fn pick(pointers: &[&str], text: &str) -> Result<Vec<Option<String>>, String> {
        let picker = picker(pointers);
        let picked = picker.pick(text.as_bytes()).map_err(|error| error.to_string())?;
        Ok(picked.iter().map(|raw| raw.map(|raw| raw.get().to_owned())).collect())
    }

    #[test]
    fn pointers_find_raw_text_wherever_it_is() {
        let text = r#" {"a": {"b": [1, {"c": "x\u0041"}, 2.50 ]}, "n" : 3, "z": {"n": 4}} "#;
        let found = pick(&["/n", "/a/b/1/c", "/a/b/2", "/z", "/missing/n", "/n/deeper"], text);
        let some = |text: &str| Some(text.to_owned());
        let expected =
            [some("3"), some(r#""x\u0041""#), some("2.50"), some(r#"{"n": 4}"#), None, None];
        assert_eq!(found.unwrap(), expected);
    }

    #[test]
    fn a_pointer_may_end_where_another_goes_on() {
        let found = pick(&["/a", "/a/b", "/a"], r#"{"a": {"b": 7}}"#).unwrap();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(found, [some(r#"{"b": 7}"#), some("7"), some(r#"{"b": 7}"#)]);
    }

    #[test]
    fn f70_a_repeated_key_on_the_way_is_refused_and_escaped_keys_are_the_same_key() {
        assert!(pick(&["/n"], r#"{"n": 1, "n": 2}"#).is_err());
        assert!(pick(&["/n"], r#"{"n": 1, "\u006e": 2}"#).is_err());
        assert!(pick(&["/a/n"], r#"{"a": {"n": 1}, "a": {}}"#).is_err());
        assert!(pick(&["/n"], r#"{"x": 1, "x": 2, "n": 3}"#).is_ok());
        assert_eq!(pick(&["/n"], r#"{"\u006e": 2}"#).unwrap(), [Some("2".to_owned())]);
    }

    #[test]
    fn f70_a_key_that_a_careless_reader_takes_for_another_is_refused_where_a_backend_reads_too() {
        let picker = picker(&["/seconds", "/a/task"]);
        for text in [
            r#"{"Seconds": 60}"#,
            r#"{"seconds": 1, "SECONDS": 60}"#,
            r#"{"\u017feconds": 60}"#,
            r#"{"a": {"tas\u212a": 1}}"#,
            r#"{"A": {}}"#,
        ] {
            assert!(picker.pick_strictly(text.as_bytes()).is_err(), "{text}");
            assert!(picker.pick(text.as_bytes()).is_ok(), "{text}");
        }
        for text in [r#"{"seconds": 1, "second": 2}"#, r#"{"x": {"Seconds": 1}, "sécs": 1}"#] {
            assert!(picker.pick_strictly(text.as_bytes()).is_ok(), "{text}");
        }
    }

    #[test]
    fn f70_what_is_no_object_is_refused_where_a_pointer_leads_into_what_a_backend_reads_too() {
        let into = picker(&["", "/n"]);
        for text in ["[]", r#"[{"n": 60}]"#, r#""n=60""#, " 60 ", "true", "null", ""] {
            assert!(into.pick_strictly(text.as_bytes()).is_err(), "{text}");
        }
        assert!(into.pick_strictly(b"\r\n\t {}").is_ok());
        assert!(picker(&["/0"]).pick_strictly(b"[60]").is_err());
        let whole = picker(&[""]);
        for text in ["[]", r#""n=60""#, " 60 ", "null", "{}"] {
            assert!(whole.pick_strictly(text.as_bytes()).is_ok(), "{text}");
        }
    }

    #[test]
    fn f70_another_kind_on_the_way_of_a_pointer_is_refused_where_a_backend_reads_too() {
        let nested = picker(&["/a/n", "/b/0/n"]);
        for text in [
            r#"{"a": [{"n": 60}]}"#,
            r#"{"a": []}"#,
            r#"{"a": "n=60"}"#,
            r#"{"a": 60}"#,
            r#"{"a": -6.5}"#,
            r#"{"a": true}"#,
            r#"{"b": [[60]]}"#,
            r#"{"b": [60]}"#,
            r#"{"b": "n"}"#,
        ] {
            assert!(nested.pick_strictly(text.as_bytes()).is_err(), "{text}");
            assert!(nested.pick(text.as_bytes()).is_ok(), "{text}");
        }
        for text in [r#"{"a": null, "b": [null, 7]}"#, r#"{"b": [{"n": 1}, 2]}"#, r#"{"b": []}"#] {
            assert!(nested.pick_strictly(text.as_bytes()).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_is_not_one_json_text_is_refused() {
        for text in ["", "{", r#"{"n": 1} x"#, r#"{"n": 1}{"n": 2}"#, "{'n': 1}", "{\"n\": 01}"] {
            assert!(pick(&["/n"], text).is_err(), "{text:?}");
        }
        assert_eq!(pick(&["/n"], "[1, 2]").unwrap(), [None]);
        assert_eq!(pick(&["/0", "/01"], "[1, 2]").unwrap(), [Some("1".to_owned()), None]);
    }

    #[test]
    fn keys_with_slashes_and_tildes_are_escaped_as_the_rfc_says() {
        let found = pick(&["/a~1b/~0"], r#"{"a/b": {"~": 1}}"#).unwrap();
        assert_eq!(found, [Some("1".to_owned())]);
        assert!(Picker::default().add("n").is_err());
        for text in ["/a~", "/a~2", "a/b"] {
            assert!(Picker::default().add(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_empty_pointer_is_the_whole_document() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(pick(&[""], " 2.5 ").unwrap(), [some("2.5")]);
        let found = pick(&["/n", ""], r#"{"n": 7}"#).unwrap();
        assert_eq!(found, [some("7"), some(r#"{"n": 7}"#)]);
        assert!(pick(&["", "/n"], r#"{"n": 7, "n": 8}"#).is_err());
        assert!(pick(&[""], "1 2").is_err());
    }
}
