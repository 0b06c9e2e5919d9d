//! Notes: what the books keep with a charge that is settled by somebody who did not make it. They
//! are JSON, so that they may gain members: readers pass over what they do not know.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::price::Rates;

/// What is noted when a charge is held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldNote {
    /// How what is really used is priced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
    /// Whose outcome settles it, where it is a job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobNote>,
}

/// Where the outcome of a job is told (D34), as its route said when it was submitted: what becomes
/// of the route changes nothing of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobNote {
    /// The name of the upstream that makes it.
    pub upstream: String,
    /// The path of its status document there.
    pub path: String,
    /// Where in that document its status is: a JSON pointer.
    pub status: String,
    /// Which statuses are a success.
    pub succeeded: Vec<String>,
    /// Which are another end.
    pub failed: Vec<String>,
    /// Where the usage of each meter is told, if it is: JSON pointers.
    pub usage: Vec<Option<String>>,
    /// After how many milliseconds the gateway asks first.
    pub poll: u64,
}

/// What is noted when a charge is resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeNote {
    /// What was asked for, in one canonical form: whoever asks for the same again is told the same
    /// again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
}

/// The bytes of a note.
pub fn encode(note: &impl Serialize) -> Vec<u8> {
    // Structures of texts and numbers always serialise.
    serde_json::to_vec(note).unwrap_or_default()
}

/// A note from its bytes; an empty one where they cannot be read.
pub fn decode<T: DeserializeOwned + Default>(bytes: &[u8]) -> T {
    serde_json::from_slice(bytes).unwrap_or_default()
}
