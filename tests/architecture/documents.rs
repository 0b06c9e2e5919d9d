//! The documentation holds together: links lead somewhere, every page is reached from the index,
//! and what `ARCHITECTURE.md` says is there.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::source::{self, Source};

const INDEX: &str = "docs/README.md";
const ARCHITECTURE: &str = "src/ARCHITECTURE.md";

fn pages() -> Vec<Source> {
    let mut pages = source::read(&["docs", "src"], "md");
    for path in ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"] {
        let text = std::fs::read_to_string(source::root().join(path)).unwrap();
        pages.push(Source { path: path.to_owned(), text });
    }
    pages
}

/// A page without its code blocks and code spans, in which brackets are no links.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let mut prose = String::new();
    for line in text.lines() {
        let fence = line.trim_start().starts_with("```");
        if !fence && !fenced {
            prose.extend(line.split('`').step_by(2));
        }
        fenced ^= fence;
        prose.push('\n');
    }
    prose
}

/// The targets of a page's links and pictures.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    let inline = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    let attributes = prose.split("src=\"").skip(1).filter_map(|rest| rest.split_once('"'));
    inline.chain(attributes).map(|(target, _)| target.to_owned()).collect()
}

/// The anchors of a page's headings, as the usual renderers make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced || !line.starts_with('#') {
            continue;
        }
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        found.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
    }
    found
}

/// A link's file from the package's root, and its anchor; `None` for what is elsewhere.
fn resolve(page: &str, target: &str) -> Option<(PathBuf, Option<String>)> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').map_or((target, None), |(f, a)| (f, Some(a)));
    let joined = if file.is_empty() {
        PathBuf::from(page)
    } else {
        Path::new(page).parent().unwrap_or(Path::new("")).join(file)
    };
    let mut path = PathBuf::new();
    for part in joined.components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    Some((path, anchor.map(str::to_owned)))
}

fn broken(pages: &[Source], exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut findings = Vec::new();
    for page in pages {
        for target in links(&page.text) {
            let Some((path, anchor)) = resolve(&page.path, &target) else { continue };
            let linked = pages.iter().find(|known| Path::new(&known.path) == path);
            let there = linked.is_some() || exists(&path);
            let known = match (anchor, linked) {
                (Some(anchor), Some(linked)) => anchors(&linked.text).contains(&anchor),
                _ => true,
            };
            if !there || !known {
                findings.push(format!("{}: {target} leads nowhere", page.path));
            }
        }
    }
    findings
}

fn unreached(pages: &[Source]) -> Vec<String> {
    let mut reached = BTreeSet::new();
    let mut left = vec![PathBuf::from(INDEX)];
    while let Some(path) = left.pop() {
        let page = pages.iter().find(|page| Path::new(&page.path) == path);
        if let Some(page) = page.filter(|page| reached.insert(page.path.as_str())) {
            let targets = links(&page.text);
            left.extend(targets.iter().filter_map(|to| Some(resolve(&page.path, to)?.0)));
        }
    }
    let all = pages.iter().filter(|page| page.path.starts_with("docs/"));
    let missing = all.filter(|page| !reached.contains(page.path.as_str()));
    missing.map(|page| format!("{}: no way leads here from {INDEX}", page.path)).collect()
}

/// Names in backticks in the last column of the table of invariants.
fn proofs(text: &str) -> Vec<String> {
    let Some((_, section)) = text.split_once("\n## Invariants\n") else { return Vec::new() };
    let section = section.split("\n## ").next().unwrap_or_default();
    let last = |row: &str| row.trim_end_matches('|').rsplit_once('|').map(|(_, l)| l.to_owned());
    let rows = section.lines().filter(|line| line.starts_with('|')).filter_map(last);
    rows.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

fn unfounded(architecture: &str, sources: &[Source]) -> Vec<String> {
    let functions = super::rules::functions(sources);
    let mut findings = Vec::new();
    for proof in proofs(architecture) {
        if !functions.iter().any(|(_, name)| *name == proof) {
            findings.push(format!("{ARCHITECTURE}: there is no test {proof}"));
        }
    }
    for source in sources.iter().filter(|source| !source.is_test()) {
        let inside = source.path.trim_start_matches("src/");
        let name = inside.trim_end_matches(".rs").trim_end_matches("/mod");
        let module = name.rsplit('/').next().unwrap_or(name);
        let rust = architecture.contains(&format!("`{module}`"))
            || architecture.contains(&format!("`{module}/`"));
        if !rust && !["lib.rs", "main.rs"].contains(&inside) {
            findings.push(format!("{ARCHITECTURE}: {inside} is not on the map"));
        }
    }
    findings
}

#[test]
fn every_link_leads_somewhere() {
    super::none(&broken(&pages(), |path| source::root().join(path).exists()));
}

#[test]
fn every_page_is_reached_from_the_index() {
    super::none(&unreached(&pages()));
}

#[test]
fn the_map_has_every_file_and_every_proof_exists() {
    let text = std::fs::read_to_string(source::root().join(ARCHITECTURE)).unwrap();
    assert!(proofs(&text).len() > 10, "the table of invariants is not found");
    super::none(&unfounded(&text, &super::sources()));
}

#[test]
fn planted_links_are_found() {
    let page = |path: &str, text: &str| Source::new(path, text);
    let nowhere = |_: &Path| false;
    for text in ["[a](b.md)", "[a](#none)", "![a](img/b.svg)", "[a](../x.md#c)"] {
        assert_eq!(broken(&[page(INDEX, text)], nowhere).len(), 1, "{text}");
    }
    for text in ["[a](https://b.example)", "# A b\n[a](#a-b)", "`[a](b.md)`", "```\n[a](b)\n```"] {
        assert_eq!(broken(&[page(INDEX, text)], nowhere), [""; 0], "{text}");
    }
    let pages = [page(INDEX, "[a](a.md)"), page("docs/a.md", ""), page("docs/b.md", "")];
    assert_eq!(unreached(&pages).len(), 1);
    assert!(broken(&pages, nowhere).is_empty());
}

#[test]
fn planted_gaps_in_the_map_are_found() {
    let sources = [Source::new("src/a/b.rs", "fn d01_x() {}"), Source::new("src/a/mod.rs", "")];
    let map = |rest: &str| format!("`a/` `b`\n## Invariants\n\n| i | `d01_x` |\n{rest}\n## Next\n");
    assert_eq!(unfounded(&map(""), &sources), [""; 0]);
    assert_eq!(unfounded(&map("| i | `d01_y` |"), &sources).len(), 1);
    assert_eq!(unfounded("`a/`", &sources).len(), 1);
}

/// Names in backticks in the first column of the tables of docs/dependencies.md must be the
/// dependencies of the manifests.
fn unexplained(manifest: &str, page: &str) -> Vec<String> {
    let mut section = "";
    let mut wanted = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        } else if section.ends_with("dependencies]")
            && !line.starts_with('#')
            && let Some((name, _)) = line.split_once(" = ")
        {
            wanted.insert(name.to_owned());
        }
    }
    let rows = page.lines().filter_map(|line| line.strip_prefix('|')?.split_once('|'));
    let explained: BTreeSet<String> =
        rows.flat_map(|(cell, _)| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect();
    let differing = wanted.symmetric_difference(&explained);
    differing.map(|name| format!("docs/dependencies.md and Cargo.toml differ in {name}")).collect()
}

#[test]
fn every_dependency_has_its_reason() {
    let read = |path: &str| std::fs::read_to_string(source::root().join(path)).unwrap();
    let manifests = read("Cargo.toml") + &read("loadtest/Cargo.toml");
    super::none(&unexplained(&manifests, &read("docs/dependencies.md")));
}

#[test]
fn planted_dependencies_are_found() {
    let manifest =
        "[dependencies]\na = \"1\"\n[dev-dependencies]\nb = { version = \"1\" }\n[lib]\n";
    assert_eq!(unexplained(manifest, "| `a`, `b` | why |"), [""; 0]);
    assert_eq!(unexplained(manifest, "| `a` | `b` |").len(), 1);
    assert_eq!(unexplained(manifest, "| `a`, `b`, `c` | why |").len(), 1);
}

/// Examples that people copy must be right.
#[test]
fn the_examples_are_valid() {
    let path = source::root().join("docs/examples/tollgate.toml");
    tollgate::config::load(Some(&path), std::iter::empty()).unwrap();
    let text = std::fs::read_to_string(source::root().join("docs/examples/acme.toml")).unwrap();
    let file = tollgate::directory::file::Source::from_toml(&text).unwrap();
    assert_eq!(file.org_id(), Some("acme"));
}
