//! The org file: one document, as TOML for people and as JSON for the admin API.
//!
//! A [`Source`] is the text, read; a [`Document`] is what it says, with every problem that can be
//! seen without knowing the org. References are checked against the org in
//! [`super::apply::plan`].

mod document;
mod keys;
mod reader;
mod stream;
mod strict;

use std::path::Path;

use serde::de::DeserializeSeed;
use serde_json::Value;
use sha2::{Digest, Sha256};

use self::strict::{Room, Strict};

pub use document::{
    Document, Entry, KeyEntry, LicenceEntry, OrgEntry, ProfileEntry, UserEntry, licence, read_one,
    rotation,
};
pub use keys::{
    ACTS_FOR_KEYS, APPLY_KEYS, GROUP_KEYS, KEY_KEYS, LICENCE_KEYS, ORG_KEYS, OWN_LICENCE_KEYS,
    PLAN_KEYS, PROFILE_KEYS, RATE_CARD_KEYS, RATE_KEYS, ROTATION_KEYS, SECTIONS, TERM_KEYS,
    USER_KEYS,
};
pub use reader::{MOST_PROBLEMS, Object, Problem, Problems, note};

use super::snapshot::KeyHash;

/// The shortest secret of a key.
pub const SHORTEST_SECRET: usize = 24;

/// How much memory the tree of a JSON text may take, about; of an org file, that of one thing in
/// it. A profile of two million members fits.
const LARGEST_TREE: usize = 256 << 20;

/// An org file as it was written. It may hold secrets, so it cannot be printed.
#[derive(Clone)]
pub struct Source(Value);

/// Why a text is no org file at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Not TOML. The message has line and column.
    #[error("not TOML: {0}")]
    Toml(String),
    /// Not JSON.
    #[error("not JSON: {0}")]
    Json(String),
    /// Read, it would take too much memory.
    #[error("one thing in it is too large to be read")]
    TooLarge,
}

impl Source {
    /// Reads TOML.
    ///
    /// # Errors
    /// When the text is not TOML.
    pub fn from_toml(text: &str) -> Result<Self, SourceError> {
        let table: toml::Table = text.parse().map_err(|error| toml_error(text, &error))?;
        Ok(Self(json(toml::Value::Table(table))))
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// When the text is not JSON, or has a key twice in one object, or is too large.
    pub fn from_json(text: &[u8]) -> Result<Self, SourceError> {
        let room = Room::new(LARGEST_TREE);
        let mut from = serde_json::Deserializer::from_slice(text);
        let read = Strict(&room).deserialize(&mut from);
        match read.and_then(|value| from.end().map(|()| value)) {
            Ok(value) => Ok(Self(value)),
            Err(_) if room.is_used_up() => Err(SourceError::TooLarge),
            Err(error) => Err(SourceError::Json(error.to_string())),
        }
    }

    /// The document as JSON, secrets included: what `tollgate apply` sends.
    pub fn to_json(&self) -> Vec<u8> {
        self.0.to_string().into_bytes()
    }

    /// A document that was put together.
    pub fn from_value(value: Value) -> Self {
        Self(value)
    }

    /// What it holds, secrets included.
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// The text of a key.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_str()
    }

    /// The id in its `[org]` section.
    pub fn org_id(&self) -> Option<&str> {
        self.0.pointer("/org/id")?.as_str()
    }

    /// Puts the secrets that `secret_env` and `secret_file` name in their place. This happens
    /// where the file is read and never on a server that is sent the document, because its
    /// environment and files are not the sender's business.
    ///
    /// # Errors
    /// Every secret that cannot be had.
    pub fn resolve_secrets(
        &mut self,
        variable: impl Fn(&str) -> Option<String>,
        file: impl Fn(&Path) -> std::io::Result<String>,
    ) -> Result<(), Vec<Problem>> {
        let mut problems = Vec::new();
        let keys = self.0.get_mut("key").and_then(Value::as_array_mut);
        for (index, key) in keys.into_iter().flatten().enumerate() {
            let Some(key) = key.as_object_mut() else { continue };
            let sources = ["secret", "secret_env", "secret_file"];
            if sources.iter().filter(|source| key.contains_key(**source)).count() != 1 {
                continue;
            }
            let mut problem = |source: &str, detail: String| {
                problems.push(Problem { pointer: format!("/key/{index}/{source}"), detail });
            };
            if let Some(name) = key.get("secret_env").and_then(Value::as_str) {
                match variable(name) {
                    Some(secret) => drop(key.insert("secret".to_owned(), secret.into())),
                    None => problem("secret_env", format!("the variable {name} is not set")),
                }
                key.remove("secret_env");
            } else if let Some(path) = key.get("secret_file").and_then(Value::as_str) {
                match file(Path::new(path)) {
                    Ok(secret) => {
                        drop(key.insert("secret".to_owned(), secret.trim_end().into()));
                    }
                    Err(error) => problem("secret_file", format!("cannot read {path}: {error}")),
                }
                key.remove("secret_file");
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    /// What it says. Problems are in the document.
    pub fn document(&self) -> Document {
        document::read(&self.0)
    }
}

impl Document {
    /// What JSON says, without a tree of all of it.
    ///
    /// # Errors
    /// As [`Source::from_json`], and when it is no object.
    pub fn from_json(text: &[u8]) -> Result<Self, SourceError> {
        stream::read(text)
    }
}

/// The hash under which a secret is kept and found.
pub fn hash_secret(secret: &str) -> KeyHash {
    Sha256::digest(secret.as_bytes()).into()
}

/// The error without the line it is in, which may hold a secret.
fn toml_error(text: &str, error: &toml::de::Error) -> SourceError {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    SourceError::Toml(format!("line {line}, column {column}: {}", error.message()))
}

fn json(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => {
            serde_json::Number::from_f64(number).map_or(Value::Null, Value::Number)
        }
        toml::Value::Boolean(flag) => flag.into(),
        // TOML's own dates mean what their text means.
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(values) => values.into_iter().map(json).collect(),
        toml::Value::Table(table) => {
            Value::Object(table.into_iter().map(|(key, value)| (key, json(value))).collect())
        }
    }
}

#[cfg(test)]
mod tests;
