//! Which part of the crate may use which, and which outside crates may be named where.

use super::source::{self, Source, is_word, words};

/// Every module at the crate's root, and the others that it may use. Lower layers come first: a
/// module may only name ones above itself in this list.
const EDGES: &[(&str, &[&str])] = &[
    // Pure: std, and crates without I/O.
    ("core", &[]),
    ("clock", &[]),
    ("fetch", &[]),
    ("config", &["core"]),
    ("telemetry", &["core", "fetch", "config"]),
    ("log", &["config"]),
    // The three stores.
    ("books", &["core"]),
    ("sql", &[]),
    ("directory", &["core", "sql"]),
    ("ledger", &["core", "books", "sql"]),
    // The faces, side by side.
    ("gateway", &["core", "clock", "config", "telemetry", "books", "directory"]),
    ("admin", &["core", "clock", "books", "directory", "ledger"]),
    ("ops", &["telemetry"]),
    ("serve", &["books", "gateway"]),
    ("sample_backend", &[]),
    ("self_check", &["core", "books"]),
    (
        "gauges",
        &["core", "clock", "config", "telemetry", "books", "directory", "ledger", "gateway"],
    ),
    // The composition root, and what starts it.
    (
        "app",
        &[
            "core",
            "clock",
            "config",
            "telemetry",
            "books",
            "directory",
            "ledger",
            "gateway",
            "admin",
            "ops",
            "serve",
            "gauges",
            "self_check",
        ],
    ),
    (
        "cli",
        &[
            "core",
            "clock",
            "fetch",
            "config",
            "log",
            "books",
            "directory",
            "ledger",
            "sample_backend",
            "app",
        ],
    ),
    ("main", &["cli"]),
    ("lib", &[]),
];

/// Outside crates, and the places that may name them. What is not listed may be named anywhere.
const CRATES: &[(&str, &[&str])] = &[
    ("hyper", &["gateway", "serve", "sample_backend"]),
    ("hyper_util", &["gateway", "serve", "sample_backend"]),
    ("axum", &["admin", "ops", "app"]),
    ("sqlx", &["sql", "directory", "ledger"]),
    ("redis", &["books/redis"]),
    ("ureq", &["fetch", "cli"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("comfy_table", &["cli"]),
    ("strsim", &["config"]),
    ("governor", &["gateway"]),
    ("prometheus_client", &["telemetry"]),
    ("dashmap", &["books"]),
    ("tracing_subscriber", &["log"]),
    ("mimalloc", &["main"]),
];

/// What the core may name: nothing that does I/O, reads a clock or is random.
const CORE_CRATES: &[&str] =
    &["std", "core", "jiff", "postcard", "serde", "serde_json", "sha2", "smallvec", "thiserror"];
const CORE_BANS: &[&str] = &[
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::process",
    "std::thread",
    "std::time",
    "Timestamp::now",
    "Zoned::now",
    "SystemTime",
];

/// The module at the crate's root that a file belongs to.
fn module(path: &str) -> &str {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
}

/// How many steps of `super` lead from a file's code to the crate's root.
fn depth(path: &str) -> usize {
    let inside = path.strip_prefix("src/").unwrap_or(path).trim_end_matches(".rs");
    inside.trim_end_matches("/mod").split('/').count()
}

/// The names behind `prefix::` at `at`: one, or all that a group has.
fn behind(code: &str, at: usize) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| is_word(*c)).collect::<String>();
    let rest = code[at..].trim_start();
    let Some(group) = rest.strip_prefix('{') else { return vec![word(rest)] };
    let mut level = 0;
    let mut names = vec![String::new()];
    for c in group.chars() {
        match c {
            '{' => level += 1,
            '}' if level == 0 => break,
            '}' => level -= 1,
            ',' if level == 0 => names.push(String::new()),
            _ => {}
        }
        if c != ',' || level > 0 {
            names.last_mut().unwrap().push(c);
        }
    }
    names.iter().map(|name| word(name.trim())).filter(|name| !name.is_empty()).collect()
}

/// Every use of another root module: which, and what of it, where one name is taken.
fn uses(source: &Source) -> Vec<(usize, String, String)> {
    let code = source.code();
    let mut prefixes = vec!["crate::".to_owned(), "tollgate::".to_owned()];
    prefixes.push("super::".repeat(depth(&source.path)));
    let mut found = Vec::new();
    for prefix in prefixes {
        for at in words(&code, &prefix).filter(|at| !code[..*at].ends_with("::")) {
            let start = at + prefix.len();
            for name in behind(&code, start) {
                let tail = code[start..].strip_prefix(&*format!("{name}::")).unwrap_or_default();
                let what = tail.chars().take_while(|c| is_word(*c)).collect();
                found.push((source::line(&code, at), name, what));
            }
        }
    }
    found
}

fn upward(sources: &[Source]) -> Vec<String> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        let own = module(&source.path);
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == own) else {
            findings.push(format!("{}: `{own}` is in no layer", source.path));
            continue;
        };
        for (line, name, what) in uses(source) {
            let allowed = name == own
                || allowed.contains(&&*name)
                // What is not a module is a name at the root, of which there are none but these.
                || name == "super";
            if !allowed {
                let what = if what.is_empty() { String::new() } else { format!("::{what}") };
                findings.push(format!("{}:{line}: {own} uses {name}{what}", source.path));
            }
        }
    }
    findings
}

fn misplaced_crates(sources: &[Source]) -> Vec<String> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        let code = source.code();
        let inside = source.path.strip_prefix("src/").unwrap_or(&source.path);
        for (name, places) in CRATES {
            let here = places.iter().any(|place| inside.starts_with(place));
            let path = format!("{name}::");
            for at in words(&code, &path).filter(|at| !here && !code[..*at].ends_with("::")) {
                findings.push(format!("{}:{}: names {name}", source.path, source::line(&code, at)));
            }
        }
    }
    findings
}

fn impure_core(sources: &[Source]) -> Vec<String> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|s| !s.is_test() && s.path.starts_with("src/core/")) {
        let code = source.code();
        let mut found = |at: usize, what: &str| {
            let line = source::line(&code, at);
            findings.push(format!("{}:{line}: the core names {what}", source.path));
        };
        for ban in CORE_BANS {
            words(&code, ban).for_each(|at| found(at, ban));
        }
        for at in words(&code, "use ") {
            let name: String = code[at + 4..].chars().take_while(|c| is_word(*c)).collect();
            let own = ["super", "self", "crate"].contains(&&*name);
            if code[at + 4 + name.len()..].starts_with("::")
                && !own
                && !CORE_CRATES.contains(&&*name)
            {
                found(at, &name);
            }
        }
    }
    findings
}

#[test]
fn imports_point_only_down() {
    super::none(&upward(&super::sources()));
}

#[test]
fn the_table_of_layers_points_only_down_and_names_what_is_there() {
    let root = std::fs::read_to_string(source::root().join("src/lib.rs")).unwrap();
    for (index, (name, allowed)) in EDGES.iter().enumerate() {
        let there = root.contains(&format!("pub mod {name};"));
        assert!(there || ["main", "lib"].contains(name), "{name} is no module");
        for lower in *allowed {
            assert!(EDGES[..index].iter().any(|(known, _)| known == lower), "{name} → {lower}");
        }
    }
}

#[test]
fn outside_crates_stay_in_their_places() {
    super::none(&misplaced_crates(&super::sources()));
}

#[test]
fn the_core_is_pure() {
    super::none(&impure_core(&super::sources()));
}

#[test]
fn planted_upward_imports_are_found() {
    for (path, text) in [
        ("src/core/a.rs", "use crate::books::Books;"),
        ("src/core/a.rs", "use super::super::books::Books;"),
        ("src/books/mod.rs", "use super::{gateway, core};"),
        ("src/books/a.rs", "use crate::{core::ids::Id, directory};"),
        ("src/books/a.rs", "fn f() { crate::ledger::verify() }"),
        ("src/gateway/a.rs", "use crate::admin::Token;"),
        ("src/admin/a.rs", "use crate::gateway::Worker;"),
        ("src/gateway/a/b.rs", "fn f() -> super::super::super::app::App {}"),
        ("src/main.rs", "fn main() { tollgate::app::run() }"),
        ("src/misc2.rs", ""),
    ] {
        assert_eq!(upward(&[Source::new(path, text)]).len(), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("src/books/a.rs", "use crate::core::{ids::Id, amount};\nuse super::Books;"),
        ("src/books/a/b.rs", "use super::super::journal;"),
        ("src/admin/a.rs", "use crate::ledger::lookup::ChargeBook;"),
        ("src/core/a.rs", "// use crate::books::Books;\nconst A: &str = \"crate::books\";"),
        ("src/core/a/tests.rs", "use crate::books::Books;"),
        ("src/core/a.rs", "#[cfg(test)]\nmod tests { use super::*; }"),
    ] {
        assert_eq!(upward(&[Source::new(path, text)]), [""; 0], "{path}: {text}");
    }
}

#[test]
fn planted_crates_are_found() {
    for (path, text) in [
        ("src/core/a.rs", "use hyper::body::Bytes;"),
        ("src/gateway/a.rs", "sqlx::query(\"\")"),
        ("src/books/embedded/a.rs", "use redis::Client;"),
    ] {
        assert_eq!(misplaced_crates(&[Source::new(path, text)]).len(), 1, "{path}: {text}");
    }
    let fine = Source::new("src/gateway/a.rs", "use hyper::Request; // sqlx::query");
    assert!(misplaced_crates(&[fine]).is_empty());
    for text in ["use tokio::sync::Mutex;", "let now = Timestamp::now();", "use std::fs;"] {
        assert_eq!(impure_core(&[Source::new("src/core/a.rs", text)]).len(), 1, "{text}");
    }
}
