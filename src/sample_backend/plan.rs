//! How a video job goes: what `X-Sample-Job` says, as `name=value, …`.

use std::time::Duration;

use http::header::HeaderMap;

use super::JOB;
use super::answer::Refused;

const MAX_POLLS: u64 = 1_000_000;
/// A day.
const MAX_MS: u64 = 86_400_000;
const MAX_REPORTS: u64 = 3;

/// How a job goes, decided when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub until: Until,
    pub end: End,
    /// So many polls at the beginning are answered 503.
    pub sick: u64,
    /// How many times its end is reported.
    pub reports: u64,
    /// Whether it is answered 202 and not 200.
    pub is_accepted: bool,
}

/// When a job ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// At its poll of this number.
    Polls(u64),
    /// So long after it was made.
    Elapsed(Duration),
}

/// How a job ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Succeeded,
    Failed,
    Never,
    /// The backend forgets it.
    Lost,
}

const SYNTAX: Refused = Refused(
    "x-sample-job is a list of polls=N or ms=N, end=succeeded|failed|never|lost, sick=N, \
     reports=0..3, status=200|202",
);

impl Plan {
    const DEFAULT: Plan = Plan {
        until: Until::Polls(2),
        end: End::Succeeded,
        sick: 0,
        reports: 1,
        is_accepted: false,
    };

    /// Reads it.
    pub(super) fn from_headers(headers: &HeaderMap) -> Result<Plan, Refused> {
        let Some(value) = headers.get(JOB) else { return Ok(Plan::DEFAULT) };
        let value = value.to_str().map_err(|_| SYNTAX)?;
        let mut plan = Plan::DEFAULT;
        for setting in value.split(',').map(str::trim).filter(|setting| !setting.is_empty()) {
            plan.set(setting).ok_or(SYNTAX)?;
        }
        Ok(plan)
    }

    fn set(&mut self, setting: &str) -> Option<()> {
        let (name, value) = setting.split_once('=')?;
        let number = |max: u64| value.parse().ok().filter(|number: &u64| *number <= max);
        match name.trim_end() {
            "polls" => self.until = Until::Polls(number(MAX_POLLS)?),
            "ms" => self.until = Until::Elapsed(Duration::from_millis(number(MAX_MS)?)),
            "sick" => self.sick = number(MAX_POLLS)?,
            "reports" => self.reports = number(MAX_REPORTS)?,
            "status" => {
                self.is_accepted = match value {
                    "200" => false,
                    "202" => true,
                    _ => return None,
                }
            }
            "end" => {
                self.end = match value {
                    "succeeded" => End::Succeeded,
                    "failed" => End::Failed,
                    "never" => End::Never,
                    "lost" => End::Lost,
                    _ => return None,
                }
            }
            _ => return None,
        }
        Some(())
    }
}
