//! Lengths, and names that are banned.

use super::source::{self, Source, words};

/// A file of the product longer than this, its tests not counted, is two things.
const FILE_LINES: usize = 500;
/// A function longer than this is two functions.
const FUNCTION_LINES: usize = 100;

/// The load test is no product, and as short.
const LOAD_TEST: &str = "loadtest/src/";

/// Names that say nothing of what is in a module.
const EMPTY_NAMES: &[&str] = &[
    "utils", "util", "types", "common", "manager", "handler", "handlers", "helpers", "helper",
    "misc",
];

/// What no source has, tests included: the word, and what to do instead.
const BANNED: &[(&str, &str)] = &[
    ("AppState", "each part gets what it needs"),
    ("todo!", "finish it"),
    ("unimplemented!", "finish it"),
    ("dbg!", "remove it"),
    ("#[allow(", "#[expect(.., reason)]"),
    ("#![allow(", "#![expect(.., reason)]"),
];

/// What the product has in some places only: the word, where it may stand, and why.
const PLACED: &[(&str, &[&str], &str)] = &[
    ("unwrap()", &[], "an error has a type, and someone who is told"),
    ("expect(", &[], "an error has a type, and someone who is told"),
    ("panic!", &[], "an error has a type, and someone who is told"),
    ("unreachable!", &[], "let the types say so, or treat it as an error"),
    ("process::exit", &[], "what is open has to be settled: return from `main`"),
    (
        "tokio::spawn",
        // One task, awaited where it is made: it must survive the client, not the process.
        &["src/admin/call.rs"],
        "tasks are born in a tracker that drains them",
    ),
    ("println!", &["src/cli/"], "the program's output belongs to its commands"),
    ("eprintln!", &["src/cli/"], "the program's output belongs to its commands"),
    (
        "StatusCode",
        &["src/gateway/problem.rs", "src/admin/problem.rs", "src/ops.rs", "src/sample_backend"],
        "a refusal has a code; one place gives it a status",
    ),
];

/// Where money is: no floating point at all.
const EXACT: &[&str] = &["src/core/", "src/books/", "src/directory/", "src/ledger/"];
/// Reads any JSON into a tree, numbers included; amounts in a document are texts.
const INEXACT: &str = "src/directory/file/strict.rs";

fn too_long(sources: &[Source]) -> Vec<String> {
    let mut findings = Vec::new();
    let is_product = |source: &&Source| !source.is_test() || source.path.starts_with(LOAD_TEST);
    for source in sources.iter().filter(is_product) {
        let lines = source.product().lines().count();
        if lines > FILE_LINES {
            findings.push(format!("{}: {lines} lines, at most {FILE_LINES}", source.path));
        }
        for (line, lines) in functions(&source.code()) {
            if lines > FUNCTION_LINES {
                let place = format!("{}:{line}", source.path);
                findings.push(format!("{place}: {lines} lines, at most {FUNCTION_LINES}"));
            }
        }
    }
    findings
}

/// Where each function begins, and how many lines it has.
fn functions(code: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for at in words(code, "fn ") {
        let rest = &code[at..];
        let Some(open) = rest.find(['{', ';']).filter(|open| rest[*open..].starts_with('{')) else {
            continue;
        };
        let mut level = 0;
        let close = rest[open..].char_indices().find_map(|(index, c)| {
            level += i32::from(c == '{') - i32::from(c == '}');
            (level == 0).then_some(open + index)
        });
        let end = close.unwrap_or(rest.len());
        found.push((source::line(code, at), rest[..end].matches('\n').count() + 1));
    }
    found
}

fn banned(sources: &[Source]) -> Vec<String> {
    let mut findings = Vec::new();
    for source in sources {
        let names = source.path.trim_end_matches(".rs").split('/');
        for name in names.filter(|name| EMPTY_NAMES.contains(name)) {
            findings.push(format!("{}: a module called {name} says nothing", source.path));
        }
        let all = source::blank(&source.text);
        let product = if source.is_test() { String::new() } else { source.code() };
        let mut found = |code: &str, word: &str, why: &str| {
            for at in words(code, word) {
                let line = source::line(code, at);
                findings.push(format!("{}:{line}: `{word}`: {why}", source.path));
            }
        };
        for (word, instead) in BANNED {
            // `#[…]` has no word before it, and what follows is anybody's.
            found(&all, word, instead);
        }
        for (word, places, why) in PLACED {
            if !places.iter().any(|place| source.path.starts_with(place)) {
                // `#[expect(` is an attribute.
                found(&product.replace("[expect(", "[expect "), word, why);
            }
        }
        let exact = EXACT.iter().any(|place| source.path.starts_with(place));
        if exact && source.path != INEXACT {
            // A visitor of serde has to name the type of what it refuses.
            let exact = product.replace("_: f64", "_: ___");
            found(&exact, "f32", "money is exact");
            found(&exact, "f64", "money is exact");
        }
    }
    findings
}

#[test]
fn files_and_functions_are_short() {
    super::none(&too_long(&super::sources()));
}

#[test]
fn nothing_banned_is_there() {
    super::none(&banned(&super::sources()));
}

#[test]
fn planted_lengths_are_found() {
    let file = "// a line\n".repeat(FILE_LINES + 1);
    assert_eq!(too_long(&[Source::new("src/a.rs", &file)]).len(), 1);
    let function = format!("fn f() {{\n{}}}\n", "    g();\n".repeat(FUNCTION_LINES));
    assert_eq!(too_long(&[Source::new("src/a.rs", &function)]).len(), 1);
    let tests = format!("fn f() {{}}\n\n#[cfg(test)]\nmod tests {{\n{file}}}\n");
    assert!(too_long(&[Source::new("src/a.rs", &tests)]).is_empty());
    assert!(too_long(&[Source::new("tests/a.rs", &file)]).is_empty());
    assert_eq!(too_long(&[Source::new("loadtest/src/a.rs", &file)]).len(), 1);
}

#[test]
fn planted_words_are_found() {
    for (path, text) in [
        ("src/utils.rs", ""),
        ("src/gateway/helpers/a.rs", ""),
        ("src/a.rs", "struct AppState;"),
        ("src/a.rs", "fn f() { todo!() }"),
        ("tests/a.rs", "#[allow(dead_code)]"),
        ("src/a.rs", "#![allow(missing_docs)]"),
        ("src/a.rs", "x.unwrap();"),
        ("src/a.rs", "x.expect(\"y\");"),
        ("src/a.rs", "panic!(\"y\");"),
        ("src/cli/a.rs", "std::process::exit(1);"),
        ("src/gateway/a.rs", "tokio::spawn(f());"),
        ("src/gateway/a.rs", "println!();"),
        ("src/gateway/forward.rs", "StatusCode::OK"),
        ("src/core/a.rs", "let a: f64 = 1.0;"),
        ("src/books/a.rs", "a as f32"),
    ] {
        assert_eq!(banned(&[Source::new(path, text)]).len(), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("src/a.rs", "// todo!\nlet a = \"AppState\"; x.unwrap_or(1);"),
        ("src/a.rs", "#[expect(dead_code, reason = \"b\")]"),
        ("src/a.rs", "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { c.unwrap(); } }"),
        ("tests/a.rs", "x.unwrap();"),
        ("src/cli/a.rs", "println!();"),
        ("src/gateway/problem.rs", "StatusCode::OK"),
        ("src/telemetry.rs", "a as f64"),
        ("src/core/a.rs", "fn visit_f64(self, _: f64) {}"),
    ] {
        assert_eq!(banned(&[Source::new(path, text)]), [""; 0], "{path}: {text}");
    }
}
