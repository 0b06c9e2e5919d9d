//! Jobs: routes whose answer is no result but the name of one that is still being made.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::text;

/// How the outcome of what a route submits is found out (D34).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Where the answer to a submission tells the job's id: a JSON pointer.
    pub id: String,
    /// The path of the job's status document at the same upstream, with `{job}` for the id.
    pub status_path: String,
    /// Where that document tells how the job stands: a JSON pointer.
    pub status: String,
    /// What is there when the job has succeeded.
    pub succeeded: Vec<String>,
    /// What is there when it has ended otherwise.
    pub failed: Vec<String>,
    /// When the gateway asks first; twice as long after each time.
    #[serde(default = "defaults::poll", with = "text::duration")]
    pub poll: Duration,
    /// How long a job is waited for.
    #[serde(default = "defaults::deadline", with = "text::duration")]
    pub deadline: Duration,
    /// What the backend shows when it reports how a job stands; without it there are no reports.
    pub report: Option<Report>,
}

/// Where the secret of reports is read from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The environment variable that holds it.
    pub env: Option<String>,
    /// The file that holds it.
    pub file: Option<PathBuf>,
}

impl Job {
    /// What stands for the job's id in `status_path`.
    pub const PLACE: &str = "{job}";
}

mod defaults {
    use std::time::Duration;

    pub fn poll() -> Duration {
        Duration::from_secs(5)
    }
    pub fn deadline() -> Duration {
        Duration::from_secs(3600)
    }
}
