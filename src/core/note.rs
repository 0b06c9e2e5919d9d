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
