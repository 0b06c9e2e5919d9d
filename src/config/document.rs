//! The configuration before it has types: a tree of TOML values, and where each came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize as _;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Value};

use super::error::{Place, Problem};

/// A key's path: `route[0].usage.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(pub(super) Vec<Step>);

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// Into a table.
    Name(String),
    /// Into an array.
    Index(usize),
}

/// The tree, with the places of its keys and values.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) root: Value,
    origins: BTreeMap<Key, Origin>,
    file: Place,
}

/// Where a key and its value stand.
#[derive(Clone, Debug)]
struct Origin {
    key: Place,
    value: Place,
}

impl Key {
    /// The key in the table that this one names.
    pub(super) fn name(&self, name: impl Into<String>) -> Self {
        self.step(Step::Name(name.into()))
    }

    /// The element of the array that this one names.
    pub(super) fn index(&self, index: usize) -> Self {
        self.step(Step::Index(index))
    }

    pub(super) fn step(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bare = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        for (at, step) in self.0.iter().enumerate() {
            let dot = if at == 0 { "" } else { "." };
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Name(name) if !name.is_empty() && name.chars().all(bare) => {
                    write!(f, "{dot}{name}")?;
                }
                // Quoted and escaped: a key may hold anything, control characters included (f76).
                Step::Name(name) => write!(f, "{dot}{name:?}")?,
            }
        }
        Ok(())
    }
}

impl Document {
    /// A configuration without a file.
    pub(super) fn empty(path: PathBuf) -> Self {
        let file = Place::File(Arc::new(path));
        Self { root: Value::Table(toml::Table::new()), origins: BTreeMap::new(), file }
    }

    /// The file's text as a tree.
    pub(super) fn parse(path: PathBuf, text: &str) -> Result<Self, Problem> {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut document = Self::empty(path);
        let lines = Lines::new(text, document.path());
        document.locate(&lines, &Key::default(), table.get_ref());
        // What follows the first error in the syntax is often only its echo.
        if let Some(error) = errors.first() {
            return Err(lines.problem(error, error.message().trim_end(), &document));
        }
        let tree = toml::de::Deserializer::from(table);
        // What is syntax, yet no value, is a number out of range; serde's message would repeat it.
        let number = "expected a number of at most 64 bits";
        document.root =
            Value::deserialize(tree).map_err(|error| lines.problem(&error, number, &document))?;
        Ok(document)
    }

    /// Where the value is; for one that is absent, where the table is that lacks it.
    pub(super) fn place(&self, key: &Key) -> &Place {
        self.origin(key).map_or(&self.file, |origin| &origin.value)
    }

    /// What is wrong with a value.
    pub(super) fn problem(&self, key: &Key, expected: impl Into<String>) -> Problem {
        Problem { place: self.place(key).clone(), key: key.to_string(), expected: expected.into() }
    }

    /// What is wrong with a key as such.
    pub(super) fn problem_of_name(&self, key: &Key, expected: impl Into<String>) -> Problem {
        let place = self.origin(key).map_or(&self.file, |origin| &origin.key);
        Problem { place: place.clone(), key: key.to_string(), expected: expected.into() }
    }

    /// The value, to change it.
    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut Value> {
        key.0.iter().try_fold(&mut self.root, |value, step| match step {
            Step::Name(name) => value.as_table_mut()?.get_mut(name),
            Step::Index(index) => value.as_array_mut()?.get_mut(*index),
        })
    }

    /// Takes a table's key away; false where there is none.
    pub(super) fn remove(&mut self, key: &Key) -> bool {
        let Some((Step::Name(name), table)) = key.0.split_last() else { return false };
        let table = self.get_mut(&Key(table.to_vec())).and_then(Value::as_table_mut);
        table.is_some_and(|table| table.remove(name).is_some())
    }

    /// From now on the value, with all in it, comes from here.
    pub(super) fn claim(&mut self, key: &Key, place: &Place) {
        self.origins.retain(|at, _| !at.0.starts_with(&key.0));
        let origin = Origin { key: place.clone(), value: place.clone() };
        self.origins.insert(key.clone(), origin);
    }

    /// The origin of the key, else of something in it, as a table that variables made has none of
    /// its own; else of what it would be in.
    fn origin(&self, key: &Key) -> Option<&Origin> {
        (1..=key.0.len()).rev().find_map(|length| {
            let part = Key(key.0[..length].to_vec());
            let (first, origin) = self.origins.range(&part..).next()?;
            first.0.starts_with(&part.0).then_some(origin)
        })
    }

    fn path(&self) -> Arc<PathBuf> {
        match &self.file {
            Place::File(path) | Place::Line(path, ..) => Arc::clone(path),
            Place::Variable(_) => Arc::default(),
        }
    }

    fn locate(&mut self, lines: &Lines<'_>, at: &Key, table: &DeTable<'_>) {
        for (name, value) in table {
            let key = at.name(name.get_ref().as_ref());
            self.locate_value(lines, key, lines.place(name.span().start), value);
        }
    }

    fn locate_value(
        &mut self,
        lines: &Lines<'_>,
        key: Key,
        name: Place,
        value: &Spanned<DeValue<'_>>,
    ) {
        let here = lines.place(value.span().start);
        match value.get_ref() {
            DeValue::Table(table) => self.locate(lines, &key, table),
            DeValue::Array(array) => {
                for (index, element) in array.iter().enumerate() {
                    let place = lines.place(element.span().start);
                    self.locate_value(lines, key.index(index), place, element);
                }
            }
            _ => {}
        }
        self.origins.insert(key, Origin { key: name, value: here });
    }
}

/// From byte offsets to lines and columns.
struct Lines<'a> {
    text: &'a str,
    /// Where each line starts.
    starts: Vec<usize>,
    path: Arc<PathBuf>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str, path: Arc<PathBuf>) -> Self {
        let after = text.match_indices('\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(after).collect(), path }
    }

    fn place(&self, offset: usize) -> Place {
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts[line - 1];
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count()) + 1;
        Place::Line(Arc::clone(&self.path), line, column)
    }

    /// A syntax error belongs to the key that began last before it.
    fn problem(&self, error: &toml::de::Error, expected: &str, document: &Document) -> Problem {
        let place = self.place(error.span().map_or(0, |span| span.start));
        let before = document.origins.iter().filter(|(_, origin)| origin.key <= place);
        let key = before.max_by_key(|(key, origin)| (&origin.key, key.0.len()));
        let key = key.map(|(key, _)| key.to_string()).unwrap_or_default();
        Problem { place, key, expected: expected.to_owned() }
    }
}
