//! What comes in with dependencies is what `deny.toml` lets in: from where, under which licence,
//! and nothing that is banned. `cargo deny` says the same and more; this needs nothing but cargo.

use std::process::Command;

use serde_json::Value;

use super::source;

/// The part of `deny.toml` that is checked here.
struct Policy {
    licences: Vec<String>,
    banned: Vec<String>,
    platform: String,
}

fn policy() -> Policy {
    let text = std::fs::read_to_string(source::root().join("deny.toml")).unwrap();
    let tree: toml::Table = text.parse().unwrap();
    let texts = |value: &toml::Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let banned = tree["bans"]["deny"].as_array().unwrap().iter();
    Policy {
        licences: texts(&tree["licenses"]["allow"]),
        banned: banned.map(|ban| ban["crate"].as_str().unwrap().to_owned()).collect(),
        platform: texts(&tree["graph"]["targets"])[0].clone(),
    }
}

/// Every package that a build for the platform needs, tests and benches included.
fn packages(platform: &str) -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--all-features"])
        .args(["--filter-platform", platform])
        .current_dir(source::root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let needed: Vec<&Value> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|node| &node["id"]).collect();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages.filter(|package| needed.contains(&&package["id"])).cloned().collect()
}

/// Whether an SPDX expression can be met with these licences: one side of an `OR`, both of an
/// `AND`. An exception (`WITH`) only lets more be done.
fn is_met(expression: &str, licences: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (met, rest) = any_of(&words, licences);
    met && rest.is_empty()
}

fn any_of<'a>(words: &'a [&'a str], licences: &[String]) -> (bool, &'a [&'a str]) {
    let (mut met, mut rest) = all_of(words, licences);
    while let Some((&"OR", next)) = rest.split_first() {
        let (other, after) = all_of(next, licences);
        (met, rest) = (met | other, after);
    }
    (met, rest)
}

fn all_of<'a>(words: &'a [&'a str], licences: &[String]) -> (bool, &'a [&'a str]) {
    let (mut met, mut rest) = one(words, licences);
    while let Some((&"AND", next)) = rest.split_first() {
        let (other, after) = one(next, licences);
        (met, rest) = (met & other, after);
    }
    (met, rest)
}

fn one<'a>(words: &'a [&'a str], licences: &[String]) -> (bool, &'a [&'a str]) {
    match words {
        ["(", inside @ ..] => match any_of(inside, licences) {
            (met, [")", rest @ ..]) => (met, rest),
            (_, rest) => (false, rest),
        },
        [licence, "WITH", _, rest @ ..] | [licence, rest @ ..] => {
            (licences.iter().any(|allowed| allowed == licence), rest)
        }
        [] => (false, words),
    }
}

fn findings(packages: &[Value], policy: &Policy) -> Vec<String> {
    let mut findings = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().unwrap_or("(none)");
        if !is_met(licence, &policy.licences) {
            findings.push(format!("{name}: its licence is {licence}"));
        }
        if policy.banned.iter().any(|banned| banned == name) {
            findings.push(format!("{name}: deny.toml bans it"));
        }
    }
    findings
}

/// The packages of the workspace.
const OWN: [&str; 2] = ["tollgate", "tollgate-loadtest"];

/// Packages of a lock file that are neither our own nor out of one registry with a checksum.
fn strangers(lock: &str) -> Vec<String> {
    let tree: toml::Table = lock.parse().unwrap();
    let packages = tree["package"].as_array().unwrap();
    let source = |package: &toml::Value| package.get("source").map(|source| source.to_string());
    let registry = packages.iter().find_map(source).unwrap_or_default();
    let is_strange = |package: &&toml::Value| match source(package) {
        None => !package["name"].as_str().is_some_and(|name| OWN.contains(&name)),
        Some(from) => {
            from != registry || !from.contains("registry+") || package.get("checksum").is_none()
        }
    };
    packages.iter().filter(is_strange).map(|package| package["name"].to_string()).collect()
}

#[test]
fn licences_and_bans_are_those_of_deny_toml() {
    let policy = policy();
    let packages = packages(&policy.platform);
    assert!(packages.len() > 50, "only {} packages found", packages.len());
    super::none(&findings(&packages, &policy));
}

#[test]
fn every_dependency_is_published_and_has_a_checksum() {
    let lock = std::fs::read_to_string(source::root().join("Cargo.lock")).unwrap();
    super::none(&strangers(&lock));
}

#[test]
fn planted_licences_are_found() {
    let allowed = ["MIT".to_owned(), "Apache-2.0".to_owned()];
    for fine in [
        "MIT",
        "MIT OR GPL-3.0-only",
        "MIT/Apache-2.0",
        "(MIT OR X) AND Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
        "X AND Y OR MIT",
    ] {
        assert!(is_met(fine, &allowed), "{fine}");
    }
    for wrong in ["", "GPL-3.0-only", "MIT AND X", "(MIT OR X) AND Y", "MIT MIT", "(MIT", "mit"] {
        assert!(!is_met(wrong, &allowed), "{wrong}");
    }
    let planted = serde_json::json!([{ "name": "chrono", "license": "MIT" }, { "name": "a" }]);
    assert_eq!(findings(planted.as_array().unwrap(), &policy()).len(), 2);
}

#[test]
fn planted_sources_are_found() {
    let package = |name: &str, more: &str| format!("[[package]]\nname = \"{name}\"\n{more}\n");
    let fine = "source = \"registry+a\"\nchecksum = \"0\"";
    let lock = |more: &str| package("tollgate", "") + &package("a", fine) + &package("b", more);
    assert_eq!(strangers(&lock(fine)), [""; 0]);
    for wrong in [
        "",
        "source = \"registry+a\"",
        "source = \"registry+b\"\nchecksum = \"0\"",
        "source = \"git+a\"\nchecksum = \"0\"",
    ] {
        assert_eq!(strangers(&lock(wrong)).len(), 1, "{wrong}");
    }
}
