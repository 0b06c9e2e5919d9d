//! Videos: jobs over HTTP.

use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use http::header::{HeaderMap, LOCATION};
use serde::Deserialize;

use super::answer::{Answer, Content, Refused, clipped, parse};
use super::ask::Told;
use super::jobs::{MAX_JOBS, Order, Touch, Unseen, View};
use super::plan::{Plan, Until};
use super::{CHARGE, Sample};

const MAX_SECONDS: u64 = 60;
const MAX_RESOLUTION: usize = 16;
const MAX_CHARGE: usize = 64;
/// So many jobs wait for their time or for somebody to take their reports, connections included.
const MAX_TASKS: usize = 2 * MAX_JOBS;

#[derive(Deserialize)]
struct Request {
    seconds: Option<u64>,
    resolution: Option<String>,
}

/// Makes a job.
pub(super) fn submit(
    sample: &Arc<Sample>,
    headers: &HeaderMap,
    body: &[u8],
    told: &Told,
) -> Result<Answer, Refused> {
    let request: Request = parse(body)?;
    let seconds = request.seconds.unwrap_or(5);
    if !(1..=MAX_SECONDS).contains(&seconds) {
        return Err(Refused("seconds is 1 to 60"));
    }
    let charge = headers.get(CHARGE).and_then(|charge| charge.to_str().ok());
    let order = Order {
        plan: Plan::from_headers(headers)?,
        seconds,
        resolution: clipped(request.resolution.as_deref().unwrap_or("540p"), MAX_RESOLUTION)
            .to_owned(),
        told: told.clone(),
        charge: charge.map(|charge| clipped(charge, MAX_CHARGE).to_owned()),
    };
    let made = sample.jobs.lock().make(order, Instant::now());
    wake(sample, &made);
    let mut answer = tell(&made);
    answer.header = Some((LOCATION, format!("/v1/videos/{}", made.id)));
    if made.plan.is_accepted {
        answer.status = StatusCode::ACCEPTED;
    }
    Ok(answer)
}

/// Tells where a job is, or cancels it. What `told` says is of this answer only.
pub(super) fn touch(sample: &Arc<Sample>, id: &str, touch: Touch, told: &Told) -> Answer {
    let touched = sample.jobs.lock().touch(id, touch, Instant::now());
    match touched {
        Ok(mut view) => {
            if view.has_ended {
                report(sample, &view);
            }
            if view.usage.is_some() && !matches!(told, Told::Truth) {
                let seconds = view.document["seconds"].as_u64().unwrap_or(0);
                view.usage = told.usage(("seconds", seconds), "", "");
            }
            tell(&view)
        }
        Err(Unseen::Unknown) => Answer::error(StatusCode::NOT_FOUND, "there is no such job"),
        Err(Unseen::Sick) => {
            Answer::error(StatusCode::SERVICE_UNAVAILABLE, "not to be asked yet, as asked")
        }
    }
}

fn tell(view: &View) -> Answer {
    Answer {
        status: StatusCode::OK,
        body: Content::Json(view.text().into()),
        usage: view.usage.as_ref().map(|usage| usage.value.get().to_owned()),
        header: None,
    }
}

/// A job that ends by the clock is ended when its time has come, so that its report does not wait
/// for somebody to ask. Where nothing is reported, nobody can tell.
fn wake(sample: &Arc<Sample>, made: &View) {
    let Until::Elapsed(time) = made.plan.until else { return };
    if sample.report.is_none() || sample.tasks.len() >= MAX_TASKS {
        return;
    }
    let (woken, id) = (sample.clone(), made.id.clone());
    sample.tasks.spawn(async move {
        let stop = woken.stop.clone();
        let waited = stop.run_until_cancelled(tokio::time::sleep(time)).await;
        if waited.is_some() {
            let view = woken.jobs.lock().touch(&id, Touch::Wake, Instant::now());
            if let Some(view) = view.ok().filter(|view| view.has_ended) {
                report(&woken, &view);
            }
        }
    });
}

/// Reports how a job ended, as often as its plan says.
fn report(sample: &Arc<Sample>, view: &View) {
    let Some(report) = sample.report.clone() else { return };
    if view.plan.reports == 0 {
        return;
    }
    if sample.tasks.len() >= MAX_TASKS {
        sample.seen.lock().reports_lost += view.plan.reports;
        return;
    }
    let body = view.report();
    let (id, charge) = (view.id.clone(), view.charge.clone().unwrap_or_default());
    let (times, seen, stop) = (view.plan.reports, sample.seen.clone(), sample.stop.clone());
    sample.tasks.spawn(async move {
        let sending = async {
            for _ in 0..times {
                let is_taken = report.send(&id, &charge, &body).await;
                let mut seen = seen.lock();
                seen.reports_taken += u64::from(is_taken);
                seen.reports_lost += u64::from(!is_taken);
            }
        };
        let _cut_off = stop.run_until_cancelled(sending).await;
    });
}
