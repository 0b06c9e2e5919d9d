//! Every key of the configuration, with a value that no key takes.

use toml::{Table, Value};

const EVERY_KEY: &str = include_str!("../../src/config/tests/every_key.toml");

/// A way to a value, as errors write it, and by steps.
type Way = (String, Vec<String>);

/// Every key that holds no table itself.
fn leaves(value: &Value, way: Way, found: &mut Vec<Way>) {
    let (name, steps) = way;
    let down = |more: &str, step: &str| {
        (format!("{name}{more}"), [&steps[..], &[step.to_owned()]].concat())
    };
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                let dot = if name.is_empty() { "" } else { "." };
                leaves(value, down(&format!("{dot}{key}"), key), found);
            }
        }
        Value::Array(values) if values.iter().any(Value::is_table) => {
            for (index, value) in values.iter().enumerate() {
                leaves(value, down(&format!("[{index}]"), &index.to_string()), found);
            }
        }
        _ => found.push((name, steps)),
    }
}

fn put(tree: &mut Value, steps: &[String], new: Value) {
    let at = steps.iter().fold(tree, |value, step| match value {
        Value::Array(values) => &mut values[step.parse::<usize>().unwrap()],
        _ => &mut value[step.as_str()],
    });
    *at = new;
}

/// What `check` says of a tree.
fn errors(tree: &Value) -> Vec<String> {
    let text = toml::to_string(tree).unwrap();
    let loaded =
        tollgate::config::from_bytes("t.toml".into(), text.into_bytes(), std::iter::empty());
    let problems = loaded.map_or_else(|error| error.problems, |_| Vec::new());
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn every_key_refuses_what_no_key_takes_at_its_line_and_by_its_name() {
    let tree: Value = Value::Table(EVERY_KEY.parse::<Table>().unwrap());
    let mut found = Vec::new();
    leaves(&tree, <_>::default(), &mut found);
    // What is injected may be any value.
    found.retain(|(name, _)| !name.contains(".inject."));
    assert!(found.len() > 60, "only {} keys found", found.len());
    let nobody_s = Value::Array(vec![Value::Array(vec![Value::Table(Table::new())])]);
    for (name, steps) in found {
        let mut tree = tree.clone();
        put(&mut tree, &steps, nobody_s.clone());
        let errors = errors(&tree);
        let named = |error: &String| {
            let mut parts = error.splitn(3, ": ");
            let (place, key) = (parts.next().unwrap(), parts.next().unwrap_or_default());
            // Of a value with several forms only the whole of it can be named.
            let here = key.starts_with(&name) || (name.starts_with(key) && !key.is_empty());
            let places: Vec<&str> = place.split(':').collect();
            here && places.len() == 3
                && parts.next().is_some_and(|rest| rest.starts_with("expected"))
        };
        assert!(errors.iter().any(named), "{name}: {errors:#?}");
    }
}

#[test]
fn every_key_takes_values_of_any_type_without_a_panic() {
    let tree: Value = Value::Table(EVERY_KEY.parse::<Table>().unwrap());
    let mut found = Vec::new();
    leaves(&tree, <_>::default(), &mut found);
    let values: Vec<Value> = [
        "a = true",
        "a = -1",
        "a = 0",
        "a = 9223372036854775807",
        "a = 1.5",
        "a = nan",
        "a = \"\"",
        "a = \"\\u0000\\u202e\"",
        "a = []",
        "a = [\"\"]",
        "a = {}",
        "a = 1979-05-27T07:32:00Z",
    ]
    .iter()
    .map(|text| text.parse::<Table>().unwrap()["a"].clone())
    .collect();
    for (name, steps) in found {
        for value in &values {
            let mut tree = tree.clone();
            put(&mut tree, &steps, value.clone());
            for error in errors(&tree) {
                assert!(error.starts_with("t.toml"), "{name}: {error}");
                assert!(!error.contains(|c: char| c.is_control()), "{name}: {error:?}");
            }
        }
    }
}
