//! Notes: what the books keep with a charge that is settled by somebody who did not make it. They
//! are JSON, so that they may gain members: readers pass over what they do not know.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::amount::Credits;
use super::price::Rates;
use super::refusal::{Both, Code};
use super::waterfall::Observed;

/// What is noted when a charge is held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldNote {
    /// How what is really used is priced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
    /// What there is to it in observe mode (D28): whoever settles it goes on in that mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<ObservedNote>,
    /// Whose outcome settles it, where it is a job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobNote>,
    /// What is held, where that is more than at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<HeldNote>,
}

/// What is noted of a hold that more was taken for: the memo says what it was at first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldNote {
    /// Credits held.
    pub cost: Credits,
    /// The quantities that they are the price of, in millionths by meter.
    pub measures: Vec<u64>,
    /// What nobody pays of it, in observe mode. [`ObservedNote`] has what nobody pays of what is
    /// captured without its owner, which may be less.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub uncovered: Both,
}

/// What is noted of a charge of observe mode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedNote {
    /// The code of the refusal that was not carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would_refuse: Option<String>,
    /// What nobody pays.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub uncovered: Both,
}

/// Where the outcome of a job is told (D34), as its route said when it was submitted: what becomes
/// of the route changes nothing of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobNote {
    /// The name of the upstream that makes it.
    pub upstream: String,
    /// The path of its status document there.
    pub path: String,
    /// How many bytes of that name the job, with what stands before; none where it is all of them.
    #[serde(default)]
    pub root: usize,
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
    /// What nobody paid in the end of a charge of observe mode (D28).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncovered: Option<Both>,
}

impl From<&Observed> for ObservedNote {
    fn from(observed: &Observed) -> Self {
        let would_refuse = observed.code.map(|code| code.as_str().to_owned());
        Self { would_refuse, uncovered: observed.uncovered }
    }
}

impl From<&ObservedNote> for Observed {
    /// A code that this version does not know would have refused all the same.
    fn from(note: &ObservedNote) -> Self {
        let known = |text: &String| {
            let code = Code::ALL.iter().find(|code| code.as_str() == text);
            code.copied().unwrap_or(Code::Internal)
        };
        Self { code: note.would_refuse.as_ref().map(known), uncovered: note.uncovered }
    }
}

fn is_nothing(both: &Both) -> bool {
    *both == Both::default()
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
