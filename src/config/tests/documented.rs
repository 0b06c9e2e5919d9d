//! Every key of the types is documented, and every documented key exists.

use std::collections::BTreeSet;

use super::*;

const DOCUMENT: &str = include_str!("../../../docs/configuration.md");

/// Tables whose keys a user chooses.
const MAPS: [&str; 3] = ["route[].attributes", "route[].attributes.*.map", "route[].inject"];

/// Lists of what is a table of the types itself, so that its keys are those of that table.
const ALIKE: [&str; 2] = ["route[].quantity.times", "route[].meter[].quantity.times"];

/// All keys that the types take, found by asking serde: a table with a key that nobody has is
/// refused by an error that lists the keys it could have had. `full` leads the way into tables.
fn keys(full: &toml::Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![(String::new(), Vec::new())];
    while let Some((path, steps)) = open.pop() {
        if MAPS.contains(&&*path) {
            let (name, value) = at(full, &steps).as_table().unwrap().iter().next().unwrap();
            if value.is_table() {
                open.push((format!("{path}.*"), [&*steps, std::slice::from_ref(name)].concat()));
            }
            continue;
        }
        for name in fields(full, &steps) {
            let mut key = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let mut steps = [&*steps, &[name]].concat();
            let mut value = at(full, &steps);
            if ALIKE.contains(&&*key) {
                found.insert(key);
                continue;
            }
            if value.as_array().is_some_and(|array| array[..].first().is_some_and(|v| v.is_table()))
            {
                key += "[]";
                steps.push("0".to_owned());
                value = at(full, &steps);
            }
            if value.is_table() {
                open.push((key.clone(), steps));
            }
            if !value.is_table() || MAPS.contains(&&*key) {
                found.insert(key);
            }
        }
    }
    found
}

fn at<'a>(full: &'a toml::Value, steps: &[String]) -> &'a toml::Value {
    steps.iter().fold(full, |value, step| {
        let inner = match value {
            toml::Value::Array(array) => array.get(step.parse::<usize>().unwrap()),
            _ => value.get(step),
        };
        inner.unwrap_or_else(|| panic!("{steps:?} is missing in every_key.toml"))
    })
}

fn fields(full: &toml::Value, steps: &[String]) -> Vec<String> {
    let mut tree = full.clone();
    let table = steps.iter().fold(&mut tree, |value, step| match value {
        toml::Value::Array(array) => &mut array[step.parse::<usize>().unwrap()],
        _ => &mut value[step.as_str()],
    });
    table.as_table_mut().unwrap().insert("nobody_has_this".to_owned(), true.into());
    let error = tree.try_into::<Config>().expect_err("unknown keys are errors");
    let message = error.message();
    assert!(message.starts_with("unknown field `nobody_has_this`"), "{steps:?}: {message}");
    message.split('`').skip(3).step_by(2).map(str::to_owned).collect()
}

/// The keys of the document: the first cell of each row of a table that begins with `| `key` |`.
fn documented(document: &str) -> BTreeSet<String> {
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.filter_map(|row| row.split_once('`'));
    cells.filter(|(_, rest)| rest.starts_with(" |")).map(|(key, _)| key.to_owned()).collect()
}

fn every_key() -> BTreeSet<String> {
    keys(&toml::from_str(EVERY_KEY).unwrap())
}

#[test]
fn every_key_is_documented_and_every_documented_key_exists() {
    let (exist, documented) = (every_key(), documented(DOCUMENT));
    let missing: Vec<_> = exist.difference(&documented).collect();
    let stale: Vec<_> = documented.difference(&exist).collect();
    assert!(missing.is_empty(), "not in docs/configuration.md: {missing:#?}");
    assert!(stale.is_empty(), "in docs/configuration.md, but no key: {stale:#?}");
}

#[test]
fn a_key_that_is_not_documented_is_found() {
    let exist = every_key();
    for key in &exist {
        let cut: Vec<_> =
            DOCUMENT.lines().filter(|line| !line.starts_with(&format!("| `{key}` |"))).collect();
        let documented = documented(&cut.join("\n"));
        assert_eq!(exist.difference(&documented).collect::<Vec<_>>(), [key]);
    }
}

#[test]
fn the_walk_sees_every_level_of_the_types() {
    let keys = every_key();
    for key in [
        "gateway.listen",
        "books.shards",
        "limits.per_user.burst",
        "auth.jwt.issuer",
        "upstream[].credential.env",
        "route[].attributes",
        "route[].attributes.*.map",
        "route[].attributes.*.const",
        "route[].inject",
        "route[].meter[].usage.sse_json",
    ] {
        assert!(keys.contains(key), "{key}");
    }
}

#[test]
#[should_panic(expected = "[\"gateway\", \"drain_timeout\"] is missing in every_key.toml")]
fn a_key_of_the_types_that_the_full_example_lacks_is_found() {
    keys(&toml::from_str(&EVERY_KEY.replace("drain_timeout = \"30s\"\n", "")).unwrap());
}

#[test]
fn the_document_s_examples_are_valid() {
    let blocks = DOCUMENT.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let mut count = 0;
    for block in blocks {
        load_text(block, &[]).unwrap_or_else(|error| panic!("{error}\n{block}"));
        count += 1;
    }
    assert!(count > 0);
}
