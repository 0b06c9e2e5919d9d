//! What an endpoint is: who may use it, what it takes and what it gives. The router, the checks
//! before a handler runs and the OpenAPI document all read this, so none of them can say
//! anything else than the others.

use std::future::Future;
use std::pin::Pin;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::call::{Call, Reply};
use super::page::{MOST, USUAL};
use super::problem::{Code, Problem};
use crate::core::ids::Id;
use crate::directory::token::Role;

/// An answer that is being made.
pub type Answering = Pin<Box<dyn Future<Output = Result<Reply, Problem>> + Send>>;

/// One method of one path.
pub struct Endpoint {
    /// The method, in capitals.
    pub method: &'static str,
    /// The path, with its parameters in braces.
    pub path: String,
    /// Its name, unique: the document's `operationId`.
    pub name: String,
    /// What it does, in a line.
    pub summary: String,
    /// The roles that may use it; everyone else is refused.
    pub roles: &'static [Role],
    /// What of the org a token of its role reaches.
    pub scope: Scope,
    /// The query parameters it takes. Any other is refused.
    pub query: Vec<Parameter>,
    /// The body it takes.
    pub takes: Option<Takes>,
    /// The status of its success.
    pub status: u16,
    /// What it gives: a schema, unless its success has no body.
    pub gives: Option<Gives>,
    /// Whether `If-Match` and `If-None-Match` are honoured.
    pub conditional: bool,
    /// Whether an `Idempotency-Key` makes it happen once.
    pub once: bool,
    /// Problems beside those that follow from the rest.
    pub more: &'static [Code],
    answer: Box<dyn Fn(Call) -> Answering + Send + Sync>,
}

/// What of an org a token reaches. A token that belongs to an org reaches no other; this is what
/// a profile-admin is narrowed to within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The path names no org.
    All,
    /// The org as a whole: a profile-admin has no business here.
    Org,
    /// The user in the path must be a member of one of the token's profiles.
    User,
    /// The profile in the path must be one of the token's.
    Profile,
    /// The handler leaves out what is not of members of the token's profiles.
    Listed,
}

/// A body.
pub struct Takes {
    /// Its schema's name.
    pub schema: &'static str,
    /// False where it may be left out.
    pub required: bool,
    /// How many bytes at most.
    pub most: usize,
    /// True for an org file, which is read thing by thing and on a thread of its own.
    pub document: bool,
    /// Media types that are read, the usual one first.
    pub media: &'static [&'static str],
}

impl Takes {
    fn usual(schema: &'static str) -> Self {
        Self { schema, required: true, most: MAX_BODY, document: false, media: &[] }
    }
}

/// What a success gives.
pub enum Gives {
    /// One thing of this schema.
    One(&'static str),
    /// A part of a list of them.
    Page(&'static str),
}

/// A query parameter.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// What it may say.
    pub shape: Shape,
}

/// What a parameter may say.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// How many items.
    Limit,
    /// A cursor of an earlier part.
    Cursor,
    /// Some text.
    Text,
    /// An id.
    Id,
    /// True or false.
    Flag,
    /// An RFC 3339 time.
    Time,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// The longest text of a query parameter.
const LONGEST: usize = 256;
/// The longest cursor.
const LONGEST_CURSOR: usize = 1024;

impl Shape {
    /// Says what is wrong with a value, if anything is.
    pub fn check(self, text: &str) -> Result<(), String> {
        let fine = match self {
            Self::Limit => {
                let digits = text.bytes().all(|byte| byte.is_ascii_digit());
                digits && text.parse().is_ok_and(|limit: usize| (1..=MOST).contains(&limit))
            }
            Self::Cursor => text.len() <= LONGEST_CURSOR,
            Self::Text => text.chars().count() <= LONGEST,
            Self::Id => Id::is_valid(text),
            Self::Flag => matches!(text, "true" | "false"),
            Self::Time => text.parse::<Timestamp>().is_ok(),
            Self::Word(words) => words.contains(&text),
        };
        let expected = || match self {
            Self::Limit => format!("expected 1 to {MOST}"),
            Self::Cursor => "is not a cursor of this list".to_owned(),
            Self::Text => format!("expected at most {LONGEST} characters"),
            Self::Id => "expected an id".to_owned(),
            Self::Flag => "expected true or false".to_owned(),
            Self::Time => "expected an RFC 3339 time".to_owned(),
            Self::Word(words) => format!("expected one of {}", words.join(", ")),
        };
        if fine { Ok(()) } else { Err(expected()) }
    }

    /// The same as a JSON Schema.
    pub fn schema(self) -> Value {
        match self {
            Self::Limit => {
                json!({"type": "integer", "minimum": 1, "maximum": MOST, "default": USUAL})
            }
            Self::Cursor => json!({"type": "string", "pattern": "^([0-9a-f]{2}){9,512}$"}),
            Self::Text => json!({"type": "string", "maxLength": LONGEST}),
            Self::Id => json!({"$ref": "#/components/schemas/Id"}),
            Self::Flag => json!({"type": "boolean"}),
            Self::Time => json!({"type": "string", "format": "date-time"}),
            Self::Word(words) => json!({"type": "string", "enum": words}),
        }
    }
}

impl Endpoint {
    /// An endpoint that reads, unless its method says otherwise, and that nobody may use yet.
    pub fn new<F, A>(method: &'static str, path: &str, name: &str, summary: &str, answer: F) -> Self
    where
        F: Fn(Call) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Reply, Problem>> + Send + 'static,
    {
        Self {
            method,
            path: path.to_owned(),
            name: name.to_owned(),
            summary: summary.to_owned(),
            roles: &[],
            scope: Scope::Org,
            query: Vec::new(),
            takes: None,
            status: 200,
            gives: None,
            conditional: false,
            once: false,
            more: &[],
            answer: Box::new(move |call| Box::pin(answer(call))),
        }
    }

    /// Who may use it, and what a token reaches.
    pub fn roles(mut self, roles: &'static [Role], scope: Scope) -> Self {
        (self.roles, self.scope) = (roles, scope);
        self
    }

    /// Its query parameters.
    pub fn query(mut self, parameters: &[Parameter]) -> Self {
        self.query.extend_from_slice(parameters);
        self
    }

    /// It takes a JSON body.
    pub fn takes(mut self, schema: &'static str) -> Self {
        self.takes = Some(Takes { media: &[JSON], ..Takes::usual(schema) });
        self
    }

    /// It takes a change of a thing (RFC 7396).
    pub fn takes_merge(mut self, schema: &'static str) -> Self {
        self.takes = Some(Takes { media: &[MERGE, JSON], ..Takes::usual(schema) });
        self
    }

    /// It takes an org file: of an operator, of at most this many bytes.
    pub fn takes_document(mut self, schema: &'static str, most: usize) -> Self {
        let media = &[JSON, TOML];
        self.takes = Some(Takes { most, media, document: true, ..Takes::usual(schema) });
        self
    }

    /// Its body may be left out.
    pub fn or_nothing(mut self) -> Self {
        self.takes = self.takes.map(|takes| Takes { required: false, ..takes });
        self
    }

    /// It gives one thing.
    pub fn gives(mut self, schema: &'static str) -> Self {
        self.gives = Some(Gives::One(schema));
        self
    }

    /// It gives a part of a list.
    pub fn lists(mut self, schema: &'static str) -> Self {
        self.gives = Some(Gives::Page(schema));
        self
    }

    /// Its success makes something: 201.
    pub fn creates(mut self) -> Self {
        self.status = 201;
        self
    }

    /// Its success has no body: 204.
    pub fn removes(mut self) -> Self {
        self.status = 204;
        self
    }

    /// It honours preconditions (RFC 9110, section 13).
    pub fn conditional(mut self) -> Self {
        self.conditional = true;
        self
    }

    /// It happens once for an `Idempotency-Key`.
    pub fn once(mut self) -> Self {
        self.once = true;
        self
    }

    /// It also has these problems.
    pub fn also(mut self, codes: &'static [Code]) -> Self {
        self.more = codes;
        self
    }

    /// Answers a call that was let through.
    pub fn answer(&self, call: Call) -> Answering {
        (self.answer)(call)
    }

    /// The names of the parameters in its path.
    pub fn params(&self) -> impl Iterator<Item = &str> {
        self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }

    /// True where nothing is changed.
    pub fn is_safe(&self) -> bool {
        self.method == "GET"
    }

    /// Every problem it can answer with.
    pub fn codes(&self) -> Vec<Code> {
        let mut codes = vec![Code::Unauthenticated, Code::Invalid, Code::Internal];
        let mut add = |condition: bool, some: &[Code]| {
            if condition {
                codes.extend_from_slice(some);
            }
        };
        add(!self.roles.is_empty(), &[Code::Forbidden]);
        add(self.params().next().is_some(), &[Code::NotFound]);
        add(!self.is_safe(), &[Code::Conflict, Code::DirectoryUnavailable]);
        add(self.conditional, &[Code::Stale]);
        add(self.once, &[Code::IdempotencyKeyReused, Code::TooManyIdempotencyKeys]);
        let body = [Code::RequestTimeout, Code::BodyTooLarge, Code::UnsupportedMediaType];
        add(self.takes.is_some(), &body);
        add(true, self.more);
        codes.sort_unstable();
        codes.dedup();
        codes
    }
}

/// How large a body may be, other than an org file.
const MAX_BODY: usize = 1 << 20;
/// Media types of bodies.
const JSON: &str = "application/json";
/// See [`JSON`]: RFC 7396.
const MERGE: &str = "application/merge-patch+json";
/// See [`JSON`].
pub const TOML: &str = "application/toml";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_that_makes_no_sense_is_refused() {
        for (shape, good, bad) in [
            (Shape::Limit, &["1", "1000"][..], &["0", "1001", "", "-1", "+1", "x", "1e3"][..]),
            (Shape::Id, &["a", "a@b.c"], &["", "-a", "a b", "a/b"]),
            (Shape::Flag, &["true", "false"], &["", "1", "yes", "TRUE"]),
            (Shape::Time, &["2026-11-01T00:00:00Z"], &["", "2026-11-01", "now"]),
            (Shape::Word(&["id", "-id"]), &["id", "-id"], &["", "email"]),
        ] {
            for text in good {
                assert_eq!(shape.check(text), Ok(()), "{shape:?} {text}");
            }
            for text in bad {
                assert!(shape.check(text).is_err(), "{shape:?} {text}");
            }
        }
    }
}
