//! One change of the directory, from the condition it is made on to the snapshot it leaves.

use jiff::Timestamp;
use secrecy::SecretString;

use super::build::Unbuildable;
use super::difference::Change;
use super::edit::Refused;
use super::file::Problem;
use super::store::StoreError;
use super::things::Thing;
use crate::core::account::Version;
use crate::core::ids::Id;
use crate::sql::LinkError;

pub use super::store::once::{Answer, OnceKey};

/// Who makes a change, when, and on what condition.
pub struct Write {
    /// The name of the token that asks; the audit shows it.
    pub who: String,
    /// When.
    pub now: Timestamp,
    /// On what condition: `If-Match` or `If-None-Match`.
    pub condition: Condition,
    /// What makes it happen once, where the request carries an `Idempotency-Key`.
    pub once: Option<Once>,
    /// Only tells what would change.
    pub dry_run: bool,
}

/// What must be so for a change to be made (RFC 9110, section 13.1). It is about the thing that
/// is edited; for a document, about the org.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    #[default]
    Any,
    /// It is there: `If-Match: *`.
    Exists,
    /// It has one of these tags, given without quotes: `If-Match: "…"`.
    Matches(Vec<String>),
    /// It is not there: `If-None-Match: *`.
    Absent,
}

/// A request that changes something once, however often it comes.
pub struct Once {
    /// What it is known by.
    pub key: OnceKey,
    /// The answer that is kept, of what was done less its secrets.
    pub answer: Box<dyn Fn(&Applied) -> Answer + Send + Sync>,
}

/// What became of a change.
#[derive(Debug)]
pub enum Written {
    /// It was made, or would be.
    Now(Applied),
    /// It had been made before, by the same request.
    Before(Answer),
}

/// What a change changed, or would change.
#[derive(Debug)]
pub struct Applied {
    /// Each thing that came, went or became different; none when all already was as asked.
    pub changes: Vec<Change>,
    /// Secrets that were made, by key. They are shown once; only their hashes are kept. None on
    /// a dry run.
    pub secrets: Vec<(Id, SecretString)>,
    /// The org's version now.
    pub version: Version,
    /// The thing that was edited, as it is now; `None` for documents and for what is removed.
    pub thing: Option<Thing>,
}

/// Where an operation outside the directory stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It was not begun before.
    Fresh,
    /// It was begun before, as this operation, and what became of it is not known here.
    Again(String),
    /// It was answered before.
    Before(Answer),
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The document is wrong, or names what is not there.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
    /// What is to be changed is not there.
    #[error("there is no {0}")]
    NotFound(String),
    /// It cannot be done to what is there.
    #[error("{0}")]
    Conflict(String),
    /// The condition does not hold: what is there is not what the caller saw.
    #[error("it was changed in between")]
    Stale,
    /// The Idempotency-Key came with another request before.
    #[error("this Idempotency-Key came with another request before")]
    KeyReused,
    /// The request was carried out before, and its answer was too large to keep.
    #[error("this was done before; its answer is not kept, because it was too large")]
    AnswerGone,
    /// The token has sent as many Idempotency-Keys as are kept.
    #[error("as many requests with an Idempotency-Key as are kept came within 24 hours")]
    TooManyKeys,
    /// Another gateway changes books on what they say, for longer than it is waited for.
    #[error("another gateway makes an adjustment for too long")]
    Busy,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database holds what cannot be.
    #[error("the directory's database is damaged: {0}")]
    Damaged(#[from] Unbuildable),
    /// No random bytes for a secret.
    #[error("no randomness for a secret: {0}")]
    Random(String),
}

impl Write {
    /// A change without conditions.
    pub fn new(who: impl Into<String>, now: Timestamp) -> Self {
        let condition = Condition::Any;
        Self { who: who.into(), now, condition, once: None, dry_run: false }
    }
}

impl Condition {
    /// Whether it holds of what is there; `tag` is only asked for where it matters.
    pub fn holds(&self, tag: impl FnOnce() -> Option<String>) -> bool {
        match self {
            Self::Any => true,
            Self::Exists => tag().is_some(),
            Self::Absent => tag().is_none(),
            Self::Matches(tags) => tag().is_some_and(|tag| tags.contains(&tag)),
        }
    }
}

impl From<LinkError> for ApplyError {
    fn from(error: LinkError) -> Self {
        Self::Store(error.into())
    }
}

impl From<Refused> for ApplyError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Invalid(problems) => Self::Invalid(problems),
            Refused::NotFound(what) => Self::NotFound(what),
            Refused::Conflict(detail) => Self::Conflict(detail),
        }
    }
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}
