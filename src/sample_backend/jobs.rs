//! Video jobs, in memory: made, looked at, ended once. Time is an argument.

use std::collections::VecDeque;
use std::time::Instant;

use serde_json::{Value, json};

use super::answer::CREATED;
use super::ask::{Told, Usage};
use super::plan::{End, Plan, Until};

/// So many are remembered; the oldest are forgotten for the next.
pub(super) const MAX_JOBS: usize = 32_768;

/// A video without a frame.
const NO_FRAME: &str = "data:video/mp4;base64,AAAAFGZ0eXBpc29tAAACAGlzb20=";

/// All jobs of a process.
#[derive(Debug)]
pub(super) struct Jobs {
    /// Begins every id, so that a backend that was started again knows none of the last one's.
    prefix: String,
    /// The number of the first one in the list.
    first: u64,
    jobs: VecDeque<Job>,
    counts: Counts,
}

/// A job to make.
#[derive(Debug)]
pub(super) struct Order {
    pub plan: Plan,
    pub seconds: u64,
    pub resolution: String,
    pub told: Told,
    /// The charge it was forwarded under.
    pub charge: Option<String>,
}

#[derive(Debug)]
struct Job {
    id: String,
    order: Order,
    made: Instant,
    polls: u64,
    ended: Option<Status>,
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Queued,
    InProgress,
    Succeeded,
    Failed,
    Cancelled,
    Lost,
}

/// What became of the jobs.
#[derive(Debug, Default)]
struct Counts {
    made: u64,
    succeeded: u64,
    failed: u64,
    cancelled: u64,
    lost: u64,
    forgotten: u64,
}

/// A job as it is told.
#[derive(Debug)]
pub(super) struct View {
    pub id: String,
    pub document: Value,
    pub usage: Option<Usage>,
    pub plan: Plan,
    pub charge: Option<String>,
    /// It ended just now, and is to be reported.
    pub has_ended: bool,
}

/// Why a job is not told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unseen {
    /// There is none, or no longer.
    Unknown,
    /// Its plan says that it cannot be asked yet.
    Sick,
}

/// What is done to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Touch {
    /// A client asks for it.
    Poll,
    /// Its time has come.
    Wake,
    Cancel,
}

impl Jobs {
    pub(super) fn new() -> Jobs {
        // Without randomness ids repeat after a restart, which a sample survives.
        let boot = getrandom::u32().unwrap_or(0);
        Jobs {
            prefix: format!("video_{boot:08x}_"),
            first: 0,
            jobs: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// Makes one.
    pub(super) fn make(&mut self, order: Order, now: Instant) -> View {
        if self.jobs.len() == MAX_JOBS {
            self.jobs.pop_front();
            self.first += 1;
            self.counts.forgotten += 1;
        }
        let id = format!("{}{}", self.prefix, self.counts.made);
        self.counts.made += 1;
        let job = Job { id, order, made: now, polls: 0, ended: None };
        let view = job.view(Status::Queued, false);
        self.jobs.push_back(job);
        view
    }

    /// Does that to a job, and tells where it is.
    pub(super) fn touch(&mut self, id: &str, touch: Touch, now: Instant) -> Result<View, Unseen> {
        let number: Option<u64> = id.strip_prefix(&self.prefix).and_then(|id| id.parse().ok());
        let at = number.and_then(|number| number.checked_sub(self.first));
        let at = at.and_then(|at| usize::try_from(at).ok());
        // A number has other spellings, an id has none.
        let job = at.and_then(|at| self.jobs.get_mut(at)).filter(|job| job.id == id);
        let job = job.ok_or(Unseen::Unknown)?;
        if touch == Touch::Poll {
            job.polls += 1;
            if job.polls <= job.order.plan.sick {
                return Err(Unseen::Sick);
            }
        }
        let was_ended = job.ended.is_some();
        let status = job.status(touch, now);
        let has_ended = job.ended.is_some() && !was_ended;
        if has_ended {
            self.counts.count(status);
        }
        if status == Status::Lost { Err(Unseen::Unknown) } else { Ok(job.view(status, has_ended)) }
    }

    /// What became of them.
    pub(super) fn to_json(&self) -> Value {
        let Counts { made, succeeded, failed, cancelled, lost, forgotten } = self.counts;
        json!({
            "made": made, "succeeded": succeeded, "failed": failed, "cancelled": cancelled,
            "lost": lost, "forgotten": forgotten,
        })
    }
}

impl View {
    /// The document with its usage, which is JSON that a value could not hold as it is.
    pub(super) fn text(&self) -> String {
        self.with_usage(&self.document)
    }

    /// The same, with the charge it was made under.
    pub(super) fn report(&self) -> String {
        let mut document = self.document.clone();
        document["charge"] = self.charge.clone().into();
        self.with_usage(&document)
    }

    fn with_usage(&self, document: &Value) -> String {
        let document = document.to_string();
        match (&self.usage, document.strip_suffix('}')) {
            (Some(usage), Some(members)) => format!("{members},\"usage\":{}}}", usage.object),
            _ => document,
        }
    }
}

impl Job {
    /// Where it is, after it was moved on.
    fn status(&mut self, touch: Touch, now: Instant) -> Status {
        if let Some(ended) = self.ended {
            return ended;
        }
        if touch == Touch::Cancel {
            self.ended = Some(Status::Cancelled);
            return Status::Cancelled;
        }
        let (done, all) = match self.order.plan.until {
            Until::Polls(polls) => (u128::from(self.polls), u128::from(polls)),
            Until::Elapsed(time) => {
                (now.saturating_duration_since(self.made).as_millis(), time.as_millis())
            }
        };
        let end = match self.order.plan.end {
            End::Succeeded => Some(Status::Succeeded),
            End::Failed => Some(Status::Failed),
            End::Lost => Some(Status::Lost),
            End::Never => None,
        };
        if done >= all && end.is_some() {
            self.ended = end;
        }
        let underway = if done * 2 < all { Status::Queued } else { Status::InProgress };
        self.ended.unwrap_or(underway)
    }

    fn view(&self, status: Status, has_ended: bool) -> View {
        let seconds = self.order.seconds;
        let mut document = json!({
            "id": self.id,
            "object": "video",
            "created_at": CREATED,
            "status": status.name(),
            "seconds": seconds,
            "resolution": self.order.resolution,
        });
        // A job that made nothing tells usage only where it was told to: a trap.
        let is_told = match status {
            Status::Succeeded => {
                document["url"] = NO_FRAME.into();
                true
            }
            Status::Failed => {
                document["error"] = json!({ "code": "failed", "message": "failed, as asked" });
                matches!(self.order.told, Told::This(_))
            }
            Status::Cancelled => matches!(self.order.told, Told::This(_)),
            _ => false,
        };
        let usage = is_told.then(|| self.order.told.usage(("seconds", seconds), "", "")).flatten();
        let (plan, charge) = (self.order.plan, self.order.charge.clone());
        View { id: self.id.clone(), document, usage, plan, charge, has_ended }
    }
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Status::Queued => "queued",
            Status::InProgress => "in_progress",
            Status::Succeeded => "succeeded",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
            Status::Lost => "lost",
        }
    }
}

impl Counts {
    fn count(&mut self, ended: Status) {
        match ended {
            Status::Succeeded => self.succeeded += 1,
            Status::Failed => self.failed += 1,
            Status::Cancelled => self.cancelled += 1,
            Status::Lost => self.lost += 1,
            Status::Queued | Status::InProgress => {}
        }
    }
}
