//! The architecture, kept by a test: which part may use which, how long files and functions get,
//! names that are banned, tests that name the rule they prove, and documentation that holds
//! together. Every check is a function from texts to findings, and is shown a planted violation
//! before it is believed.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod documents;
mod failures;
mod layers;
mod planted;
mod rules;
mod source;
mod supply;
mod wording;

use source::Source;

/// Every Rust source of the workspace.
fn sources() -> Vec<Source> {
    let mut found = source::read(&["src", "tests", "benches", "loadtest"], "rs");
    assert!(found.len() > 50, "only {} sources found", found.len());
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Fails with one finding a line.
fn none(findings: &[String]) {
    assert!(findings.is_empty(), "{} findings:\n{}\n", findings.len(), findings.join("\n"));
}
