//! `tests/failures.md`: each row of the failure catalogue once, in order, with tests that exist,
//! or with the issue that builds it while no test is named after it.

use std::collections::BTreeSet;

use super::rules::functions;
use super::source::{self, Source};

const TABLE: &str = "tests/failures.md";
const ROWS: u32 = 84;

/// The rows that a name says it proves: `d32_f09_…` proves f09, `as_f64` nothing.
fn rows_of(name: &str) -> impl Iterator<Item = u32> {
    let first = name.split('_').next().unwrap_or_default().strip_prefix(['d', 'f']);
    let is_proof = first.is_some_and(|n| n.len() == 2 && n.parse::<u32>().is_ok());
    let name = if is_proof { name } else { "" };
    name.split('_').filter_map(|part| part.strip_prefix('f').filter(|n| n.len() == 2)?.parse().ok())
}

fn wrong(table: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let mut findings = Vec::new();
    let proven: BTreeSet<u32> = tests.iter().flat_map(|name| rows_of(name)).collect();
    let mut expected = 1..=ROWS;
    for line in table.lines().filter(|line| line.starts_with("| f")) {
        let row = expected.next().unwrap_or(0);
        if !line.starts_with(&format!("| f{row:02} | ")) {
            findings.push(format!("{TABLE}: expected f{row:02}: {line}"));
            break;
        }
        // A case may have a code span with a bar in it; proofs have none.
        let proof = line.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        let named: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
        for name in named.iter().filter(|name| !tests.contains(**name)) {
            findings.push(format!("{TABLE}: f{row:02}: there is no test {name}"));
        }
        if named.is_empty() && !proof.contains("issue ") && !proof.contains("the issue of ") {
            findings.push(format!("{TABLE}: f{row:02} names neither a test nor an issue"));
        }
        if named.is_empty() && proven.contains(&row) {
            findings.push(format!("{TABLE}: f{row:02} names no test, and there is one"));
        }
    }
    if let Some(row) = expected.next().filter(|_| findings.is_empty()) {
        findings.push(format!("{TABLE}: f{row:02} is missing"));
    }
    findings
}

/// What is written in this directory about names is no test.
fn tests(sources: &[Source]) -> BTreeSet<String> {
    let own = |path: &str| path.starts_with("tests/architecture/");
    let found = functions(sources).into_iter().filter(|(path, _)| !own(path));
    found.map(|(_, name)| name).collect()
}

#[test]
fn every_row_of_the_failure_catalogue_names_its_tests_or_its_issue() {
    let table = std::fs::read_to_string(source::root().join(TABLE)).unwrap();
    super::none(&wrong(&table, &tests(&super::sources())));
}

#[test]
fn planted_rows_are_found() {
    let tests: BTreeSet<String> = ["f02_a", "d01_f03_b"].map(str::to_owned).into();
    let line = |row: u32| match row {
        2 => "| f02 | `a|b` | `f02_a` |\n".to_owned(),
        3 => "| f03 | case | `d01_f03_b` |\n".to_owned(),
        row => format!("| f{row:02} | case | issue 4 builds it |\n"),
    };
    let table: String = (1..=ROWS).map(line).collect();
    assert_eq!(wrong(&table, &tests), [""; 0]);
    for (from, to) in [
        ("| f05 |", "| f06 |"),
        ("`f02_a`", "`f02_b`"),
        ("`d01_f03_b`", "issue 4 builds it"),
        ("| f07 | case | issue 4 builds it |", "| f07 | case | later |"),
        ("| f84 | case | issue 4 builds it |\n", ""),
    ] {
        assert_eq!(wrong(&table.replace(from, to), &tests).len(), 1, "{from}");
    }
}
