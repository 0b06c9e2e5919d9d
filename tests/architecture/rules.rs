//! Tests are named after the rule of the domain (`d25_…`) or the row of the failure catalogue
//! (`f36_…`) that they prove.

use std::collections::BTreeMap;

use super::source::{Source, blank, words};

const RULES: std::ops::RangeInclusive<u32> = 1..=42;
const ROWS: std::ops::RangeInclusive<u32> = 1..=84;

/// Rules that are built, so that each has a proof.
const PROVEN: &[u32] = &[
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28,
    29, 30, 31, 32, 33, 34, 35, 37, 41, 42,
];

/// The names of all functions.
pub fn functions(sources: &[Source]) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    for source in sources {
        let code = blank(&source.text);
        for at in words(&code, "fn ") {
            let name = code[at + 3..].chars().take_while(|c| super::source::is_word(*c));
            found.push((source.path.as_str(), name.collect()));
        }
    }
    found
}

/// The rule or row that a name begins with.
fn prefix(name: &str) -> Option<(char, u32)> {
    let (head, _) = name.split_once('_')?;
    let kind = head.chars().next().filter(|kind| ['d', 'f'].contains(kind))?;
    let digits = head.get(1..).filter(|digits| digits.len() == 2)?;
    Some((kind, digits.parse().ok()?))
}

fn unknown(sources: &[Source]) -> Vec<String> {
    let outside = |(kind, number): (char, u32)| {
        let known = if kind == 'd' { RULES } else { ROWS };
        !known.contains(&number)
    };
    let named = functions(sources).into_iter();
    named
        .filter(|(_, name)| prefix(name).is_some_and(outside))
        .map(|(path, name)| format!("{path}: {name} names no rule or row"))
        .collect()
}

fn unproven(sources: &[Source]) -> Vec<String> {
    let mut proofs: BTreeMap<u32, usize> = BTreeMap::new();
    for (_, name) in functions(sources) {
        if let Some(('d', rule)) = prefix(&name) {
            *proofs.entry(rule).or_default() += 1;
        }
    }
    let missing = PROVEN.iter().filter(|rule| !proofs.contains_key(rule));
    missing.map(|rule| format!("no test is named d{rule:02}_…")).collect()
}

#[test]
fn tests_name_rules_and_rows_that_exist() {
    super::none(&unknown(&super::sources()));
}

#[test]
fn every_rule_that_is_built_has_a_test_named_after_it() {
    super::none(&unproven(&super::sources()));
}

#[test]
fn planted_names_are_found() {
    let source = |text| [Source::new("src/a.rs", text)];
    for text in ["fn d43_a() {}", "fn d00_a() {}", "fn f85_a() {}", "async fn f00_b() {}"] {
        assert_eq!(unknown(&source(text)).len(), 1, "{text}");
    }
    for text in ["fn d42_a() {}", "fn f84_a() {}", "fn do_it() {}", "// fn d43_a()"] {
        assert!(unknown(&source(text)).is_empty(), "{text}");
    }
    assert_eq!(unproven(&source("fn d01_a() {} fn d02_b() {}")).len(), PROVEN.len() - 2);
    assert_eq!(unproven(&source("// fn d01_a()")).len(), PROVEN.len());
}
