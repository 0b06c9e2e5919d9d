//! The bugs that `tests/planted-bugs` plants still find their places: a patch that no longer
//! applies would prove nothing.

use std::path::Path;

use super::source;

/// The parts of a patch: which file, and the lines that it expects there.
fn hunks(patch: &str) -> Vec<(&str, String)> {
    let mut path = "";
    let mut hunks: Vec<(&str, String)> = Vec::new();
    for line in patch.lines() {
        if let Some(name) = line.strip_prefix("--- a/") {
            path = name;
        } else if line.starts_with("@@ ") {
            hunks.push((path, String::new()));
        } else if let (Some(old), Some((_, expected))) =
            (line.strip_prefix([' ', '-']), hunks.last_mut())
        {
            expected.push_str(old);
            expected.push('\n');
        }
    }
    hunks
}

fn misplaced(name: &str, patch: &str, root: &Path) -> Vec<String> {
    let hunks = hunks(patch);
    if hunks.is_empty() {
        return vec![format!("{name}: plants nothing")];
    }
    let there = |(path, expected): &(&str, String)| {
        let text = std::fs::read_to_string(root.join(path)).unwrap_or_default();
        text.contains(&**expected)
    };
    let gone = hunks.iter().filter(|hunk| !there(hunk));
    gone.map(|(path, _)| format!("{name}: its place is not in {path}")).collect()
}

#[test]
fn every_planted_bug_finds_its_place() {
    let root = source::root();
    let mut found = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(root.join("tests/books/planted")).unwrap() {
        let path = entry.unwrap().path();
        let patch = std::fs::read_to_string(&path).unwrap();
        found.extend(misplaced(&path.display().to_string(), &patch, root.as_ref()));
        count += 1;
    }
    assert!(count >= 10, "{count} bugs");
    super::none(&found);
}

#[test]
fn a_patch_without_its_place_is_found() {
    let root = source::root();
    let patch = "--- a/src/lib.rs\n+++ b/src/lib.rs\n@@ -1,1 +1,1 @@\n-no such line\n+other\n";
    assert_eq!(misplaced("a", patch, root.as_ref()).len(), 1);
    assert_eq!(misplaced("a", "", root.as_ref()).len(), 1);
    let there = "--- a/src/lib.rs\n+++ b/src/lib.rs\n@@ -1,1 +1,1 @@\n-pub mod core;\n+other\n";
    assert_eq!(misplaced("a", there, root.as_ref()).len(), 0);
}
