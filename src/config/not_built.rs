//! Keys of parts that are still to come. They parse, so that a file need not change later; where
//! one asks for its part, `check` says that it is not built yet. Who builds a part deletes its rows.

use toml::Value;

use super::document::{Document, Key, Step};
use super::error::Problem;

/// The one list: a key (`*` is any element or name), and which of its values ask for the part.
const NOT_BUILT: &[(&str, Asks)] = &[
    ("directory.org_files", Asks::NotEmpty),
    ("upstream.*.urls.*", Asks::Prefix("https://")),
    ("route.*.front", Asks::Always),
    ("auth.jwt", Asks::Always),
    ("envoy.listen", Asks::Always),
    ("traces.endpoint", Asks::Feature("otel", cfg!(feature = "otel"))),
];

/// Which values of a key ask for the part that is not there.
#[derive(Clone, Copy)]
enum Asks {
    Always,
    NotEmpty,
    Prefix(&'static str),
    /// Always, unless the program was built with this feature.
    Feature(&'static str, bool),
}

/// The keys that ask for a part that is not built.
pub(super) fn find(document: &Document) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (pattern, asks) in NOT_BUILT {
        let steps: Vec<&str> = pattern.split('.').collect();
        walk(&document.root, Key::default(), &steps, &mut |key, value| {
            if asks.of(value) {
                problems.push(document.problem(&key, asks.expected()));
            }
        });
    }
    problems
}

impl Asks {
    fn of(self, value: &Value) -> bool {
        let empty = || match value {
            Value::Array(array) => array.is_empty(),
            Value::Table(table) => table.is_empty(),
            _ => false,
        };
        match self {
            Self::Always => true,
            Self::Feature(_, built) => !built,
            Self::NotEmpty => !empty(),
            Self::Prefix(prefix) => value.as_str().is_some_and(|text| text.starts_with(prefix)),
        }
    }

    fn expected(self) -> String {
        match self {
            Self::Always => "not built yet, expected the key to be absent".to_owned(),
            Self::Feature(name, _) => {
                format!("this program was built without `{name}`, expected the key to be absent")
            }
            Self::NotEmpty => "not built yet, expected nothing in it".to_owned(),
            Self::Prefix(prefix) => {
                let other = prefix.replacen("s://", "://", 1);
                format!("{prefix} is not built yet, expected {other}")
            }
        }
    }
}

fn walk(value: &Value, key: Key, steps: &[&str], found: &mut dyn FnMut(Key, &Value)) {
    let Some((step, rest)) = steps.split_first() else { return found(key, value) };
    match value {
        Value::Array(array) if *step == "*" => {
            for (index, element) in array.iter().enumerate() {
                walk(element, key.index(index), rest, found);
            }
        }
        Value::Table(table) => {
            for (name, value) in table.iter().filter(|(name, _)| *step == "*" || name == step) {
                walk(value, key.step(Step::Name(name.clone())), rest, found);
            }
        }
        _ => {}
    }
}
