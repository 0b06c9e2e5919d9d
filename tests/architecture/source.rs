//! Reading sources: files, and their code without comments, texts and tests.

use std::path::{Path, PathBuf};

/// A file, by its path from the package's root.
#[derive(Debug)]
pub struct Source {
    pub path: String,
    pub text: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    /// True for what only tests are built from.
    pub fn is_test(&self) -> bool {
        !self.path.starts_with("src/")
            || self.path.contains("/tests/")
            || self.path.ends_with("/tests.rs")
            || self.path.ends_with("_tests.rs")
    }

    /// The part of the file before its test module.
    pub fn product(&self) -> &str {
        let end = self.text.find("\n#[cfg(test)]\n").map_or(self.text.len(), |at| at + 1);
        &self.text[..end]
    }

    /// The product's code: comments and texts are blank, lines stay where they are.
    pub fn code(&self) -> String {
        blank(self.product())
    }
}

/// The package's root.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file with this ending in these directories and below them.
pub fn read(directories: &[&str], ending: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut left: Vec<PathBuf> = directories.iter().map(|name| root().join(name)).collect();
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|found| found == ending) {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push(Source { path: relative(&path), text });
            }
        }
    }
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()
}

/// Replaces what is inside comments, texts and character literals with spaces.
pub fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = skipped(&chars, at);
        if end > at {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        } else {
            out.push(chars[at]);
            at += 1;
        }
    }
    out
}

/// Where the comment or literal that begins at `at` ends; `at` where none does.
fn skipped(chars: &[char], at: usize) -> usize {
    let next = |offset: usize| chars.get(at + offset).copied().unwrap_or(' ');
    let until = |from: usize, stop: &dyn Fn(usize) -> Option<usize>| {
        (from..chars.len()).find_map(stop).unwrap_or(chars.len())
    };
    match (chars[at], next(1)) {
        ('/', '/') => until(at, &|i| (chars[i] == '\n').then_some(i)),
        ('/', '*') => {
            until(at + 2, &|i| (chars[i] == '*' && chars.get(i + 1) == Some(&'/')).then_some(i + 2))
        }
        ('"', _) => quoted(chars, at + 1),
        ('r', '"' | '#') if !at.checked_sub(1).is_some_and(|i| is_word(chars[i])) => {
            let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            if next(1 + hashes) != '"' {
                return at;
            }
            let closes = |i: usize| {
                let tail = chars.get(i + 1..i + 1 + hashes);
                chars[i] == '"' && tail.is_some_and(|tail| tail.iter().all(|c| *c == '#'))
            };
            until(at + 2 + hashes, &|i| closes(i).then_some(i + 1 + hashes))
        }
        ('\'', '\\') => until(at + 3, &|i| (chars[i] == '\'').then_some(i + 1)),
        ('\'', _) if next(2) == '\'' => at + 3,
        _ => at,
    }
}

fn quoted(chars: &[char], from: usize) -> usize {
    let mut at = from;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where `word` stands by itself in `code`: byte offsets.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = code[..*at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        // A word that ends in punctuation needs nothing behind it.
        let open = word.ends_with(is_word) && after.is_some_and(is_word);
        !before.is_some_and(is_word) && !open
    })
}

/// The line, from 1, of a byte offset.
pub fn line(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

#[test]
fn comments_and_texts_are_no_code() {
    let text = "a /* b\n */ c // d\n\"e \\\" f\" 'g' '\\'' 'life r#\"h \" i\"# j";
    let code = blank(text);
    assert_eq!(code.lines().count(), text.lines().count());
    let left: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(left, ["a", "c", "'life", "j"]);
}

#[test]
fn tests_are_no_product() {
    let source = Source::new("src/a.rs", "fn a() {}\n\n#[cfg(test)]\nmod tests {\n fn b() {}\n}\n");
    assert_eq!(source.product(), "fn a() {}\n\n");
    assert!(!source.is_test());
    assert!(Source::new("src/a/tests/b.rs", "").is_test());
    assert!(Source::new("tests/a/main.rs", "").is_test());
}
