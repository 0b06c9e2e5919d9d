//! From a file and the environment to a configuration that is valid.

use std::path::{Path, PathBuf};

use serde_path_to_error::{Path as Trail, Segment};
use toml::Value;

use super::document::{Document, Key};
use super::environment::{Texts, overlay};
use super::error::{ConfigError, Problem};
use super::{Config, not_built, validate};

/// What is read where no file is named.
pub const DEFAULT_FILE: &str = "tollgate.toml";

/// A valid configuration. A flag of the command line may still overrule it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration, the environment applied.
    pub config: Config,
    /// The file it came from.
    pub file: PathBuf,
    /// What is valid and hardly meant so.
    pub warnings: Vec<Problem>,
}

/// Reads the file (default [`DEFAULT_FILE`]), puts the environment's `TOLLGATE__…` over it, and
/// checks the whole. Without a file the environment alone may say everything.
///
/// # Errors
/// Everything that is wrong: the first error of syntax, else all errors of type, else all others.
pub fn load(
    path: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    let file = path.unwrap_or(Path::new(DEFAULT_FILE)).to_owned();
    let mut env = env.filter(|(name, _)| name.starts_with("TOLLGATE__")).peekable();
    match std::fs::read(&file) {
        Ok(bytes) => from_bytes(file, bytes, env),
        Err(error) if path.is_none() && absent(&error) && env.peek().is_some() => {
            from_bytes(file, Vec::new(), env)
        }
        Err(error) => {
            let expected = format!("expected a configuration file: {}", error.kind());
            Err(Document::empty(file).problem(&Key::default(), expected).into())
        }
    }
}

/// As [`load`], with the file's bytes given to it.
///
/// # Errors
/// As [`load`].
pub fn from_bytes(
    file: PathBuf,
    bytes: Vec<u8>,
    env: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    let env = env.filter(|(name, _)| name.starts_with("TOLLGATE__"));
    let mut document = Document::parse(file.clone(), &decode(&file, bytes)?)?;
    let texts = overlay(&mut document, env)?;
    shapes(&Config::default(), &document)?;
    let config = types(&mut document, texts)?;
    shapes(&config, &document)?;
    let mut problems = validate::validate(&config, &document);
    problems.extend(not_built::find(&document));
    if !problems.is_empty() {
        return Err(problems.into());
    }
    let warnings = validate::warnings(&config, &document);
    Ok(Loaded { config, file, warnings })
}

fn absent(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
}

fn decode(file: &Path, bytes: Vec<u8>) -> Result<String, Problem> {
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        let document = Document::empty(file.to_owned());
        document.problem(&Key::default(), format!("expected UTF-8 text, line {line} is not"))
    })
}

/// Gives the tree its types. serde stops at the first error, so what is wrong is taken out and the
/// rest is read again; each turn takes something away or is the last.
fn types(document: &mut Document, mut texts: Texts) -> Result<Config, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut removed = Vec::new();
    loop {
        let error = match serde_path_to_error::deserialize(document.root.clone()) {
            Ok(config) if problems.is_empty() => return Ok(config),
            Ok(_) => return Err(problems),
            Err(error) => error,
        };
        let (key, whole) = key(error.path());
        let message = error.inner().message();
        if let Some(name) = message.strip_prefix("missing field `") {
            let key = key.name(name.trim_end_matches('`'));
            // What is missing because it was taken out has been reported.
            if !removed.contains(&key) {
                problems.push(document.problem(&key, "expected a value, it is required"));
            }
            return Err(problems);
        }
        if as_text(document, &mut texts, &key) {
            continue;
        }
        problems.push(match message.strip_prefix("unknown field ") {
            Some(rest) => document.problem_of_name(&key, unknown(rest)),
            None => document.problem(&key, expected(message)),
        });
        if !whole || !document.remove(&key) {
            return Err(problems);
        }
        removed.push(key);
    }
}

/// Turns one variable's value at or in this key back into its text; false where there is none.
/// For a type of several forms, serde only says that none of them fits, not where.
fn as_text(document: &mut Document, texts: &mut Texts, key: &Key) -> bool {
    let next = texts.range(key..).next().map(|(at, _)| at.clone());
    let Some(at) = next.filter(|at| at.0.starts_with(&key.0)) else { return false };
    let text = texts.remove(&at).unwrap_or_default();
    document.get_mut(&at).is_some_and(|value| {
        *value = Value::String(text);
        true
    })
}

/// serde takes a list of values for a table, by the order of the keys in the type, which is no part
/// of the contract; so no list of the file may stand where the types have a table.
fn shapes(config: &Config, document: &Document) -> Result<(), Vec<Problem>> {
    fn walk(file: &Value, types: &Value, key: Key, found: &mut dyn FnMut(Key)) {
        match (file, types) {
            (Value::Array(_), Value::Table(_)) => found(key),
            (Value::Array(file), Value::Array(types)) => {
                for (index, (file, types)) in file.iter().zip(types).enumerate() {
                    walk(file, types, key.index(index), found);
                }
            }
            (Value::Table(file), Value::Table(types)) => {
                for (name, file) in file {
                    types.get(name).into_iter().for_each(|types| {
                        walk(file, types, key.name(name), found);
                    });
                }
            }
            _ => {}
        }
    }
    let mut problems = Vec::new();
    let types = Value::try_from(config)
        .map_err(|_| vec![document.problem(&Key::default(), "expected values of TOML")])?;
    walk(&document.root, &types, Key::default(), &mut |key| {
        problems.push(document.problem(&key, "expected a table"));
    });
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// The path as a key; false where it goes on inside a value.
fn key(trail: &Trail) -> (Key, bool) {
    let mut key = Key::default();
    for segment in trail.iter() {
        key = match segment {
            Segment::Seq { index } => key.index(*index),
            Segment::Map { key: name } => key.name(name),
            Segment::Enum { .. } | Segment::Unknown => return (key, false),
        };
    }
    (key, true)
}

/// From serde's "unknown field `a`, expected one of `b`, `c`"; with the known key that it is a
/// slip of, if there is one.
fn unknown(rest: &str) -> String {
    let known = rest.rsplit_once(", expected ").map_or("another key", |(_, known)| known);
    let written = rest.trim_start_matches('`').split('`').next().unwrap_or_default();
    let near =
        known.split('`').skip(1).step_by(2).map(|key| (strsim::osa_distance(written, key), key));
    match near.min() {
        // More slips than a third of the word make another word.
        Some((slips, key)) if slips <= key.len().div_ceil(3) => {
            format!("unknown key, did you mean `{key}`? expected {known}")
        }
        _ => format!("unknown key, expected {known}"),
    }
}

/// From serde's "invalid type: string "…", expected u16": what was found is left out, as it
/// may be a secret, and types get names that a reader of TOML knows.
fn expected(message: &str) -> String {
    let wanted = message.rsplit_once("expected ").map_or(message, |(_, wanted)| wanted);
    let wanted = match wanted.trim_end() {
        "usize" | "u64" => "a whole number, not negative",
        "u16" => "a whole number from 0 to 65535",
        "a nonzero u32" => "a whole number from 1 to 4294967295",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a table",
        "path string" => "a path",
        "socket address" | "invalid socket address syntax" => "an address like \"127.0.0.1:8080\"",
        wanted if wanted.starts_with("struct ") => "a table",
        wanted => wanted,
    };
    format!("expected {wanted}")
}
