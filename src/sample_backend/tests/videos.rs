//! Video jobs go as their submission says.

use super::jobs::{Jobs, MAX_JOBS, Order, Touch, Unseen};
use super::plan::{End, Plan, Until};
use super::*;

impl Running {
    /// Makes a job; its id.
    async fn job(&self, plan: &str) -> String {
        let head = format!("{VIDEOS}\r\nX-Sample-Job: {plan}");
        let made = self.ask_json(&head, r#"{"seconds":7,"resolution":"1080p"}"#).await;
        assert_eq!((&made["status"], &made["resolution"]), (&"queued".into(), &"1080p".into()));
        assert_eq!((made.get("usage"), made.get("url")), (None, None));
        made["id"].as_str().unwrap().to_owned()
    }

    async fn poll(&self, id: &str) -> Value {
        self.ask_json(&format!("GET /v1/videos/{id} HTTP/1.1"), "").await
    }

    async fn poll_status(&self, id: &str) -> String {
        let (head, _) = self.ask(&format!("GET /v1/videos/{id} HTTP/1.1"), "").await;
        head["http/1.1 ".len()..][..3].to_owned()
    }
}

#[tokio::test]
async fn a_job_succeeds_at_the_poll_that_was_named_and_tells_its_seconds() {
    let backend = start().await;
    let id = backend.job("polls=3").await;
    for (status, usage) in
        [("queued", None), ("in_progress", None), ("succeeded", Some(7)), ("succeeded", Some(7))]
    {
        let job = backend.poll(&id).await;
        assert_eq!((&job["id"], &job["status"]), (&(&*id).into(), &status.into()));
        assert_eq!(job["usage"]["seconds"].as_u64(), usage, "{job}");
        assert_eq!(job.get("url").is_some(), usage.is_some(), "{job}");
    }
    let (head, _) = backend.ask(&format!("GET /v1/videos/{id} HTTP/1.1"), "").await;
    assert!(head.contains("\r\nx-usage: 7"), "{head}");
    let at_once = backend.job("polls=0").await;
    assert_eq!(backend.poll(&at_once).await["status"], "succeeded");
    backend.stop().await;
}

#[tokio::test]
async fn a_submission_says_where_its_job_is_and_may_be_accepted() {
    let backend = start().await;
    let (head, body) = backend.ask(&format!("{VIDEOS}\r\nX-Sample-Job: status=202"), "{}").await;
    assert!(head.starts_with("http/1.1 202"), "{head}");
    let id = serde_json::from_str::<Value>(&body).unwrap()["id"].as_str().unwrap().to_owned();
    assert!(head.contains(&format!("\r\nlocation: /v1/videos/{id}")), "{head}");
    // Nobody said how it goes.
    assert_eq!(backend.poll(&id).await["status"], "in_progress");
    let job = backend.poll(&id).await;
    assert_eq!((&job["status"], &job["usage"]["seconds"]), (&"succeeded".into(), &5.into()));
    for body in [r#"{"seconds":0}"#, r#"{"seconds":61}"#, "[]", ""] {
        let (head, _) = backend.ask(VIDEOS, body).await;
        assert!(head.starts_with("http/1.1 400"), "{body}: {head}");
    }
    for odd in ["polls=-1", "end=soon", "ms=86400001", "reports=4", "status=201", "polls", "a=1"] {
        let (head, _) = backend.ask(&format!("{VIDEOS}\r\nX-Sample-Job: {odd}"), "{}").await;
        assert!(head.starts_with("http/1.1 400"), "{odd}: {head}");
    }
    assert_eq!(backend.seen("stats").await["jobs"]["made"], 1);
    backend.stop().await;
}

#[tokio::test]
async fn jobs_fail_are_lost_or_never_end() {
    let backend = start().await;
    let failed = backend.job("polls=1, end=failed").await;
    let job = backend.poll(&failed).await;
    assert_eq!((&job["status"], job.get("usage")), (&"failed".into(), None));
    assert_eq!(job["error"]["code"], "failed");

    let lost = backend.job("polls=2, end=lost").await;
    assert_eq!(backend.poll(&lost).await["status"], "in_progress");
    for _ in 0..2 {
        assert_eq!(backend.poll_status(&lost).await, "404");
    }
    let never = backend.job("polls=1, end=never").await;
    for _ in 0..3 {
        assert_eq!(backend.poll(&never).await["status"], "in_progress");
    }
    let sick = backend.job("polls=3, sick=2").await;
    for status in ["503", "503", "200"] {
        assert_eq!(backend.poll_status(&sick).await, status);
    }
    let jobs = &backend.seen("stats").await["jobs"];
    let counts = ["made", "succeeded", "failed", "cancelled", "lost"].map(|name| &jobs[name]);
    assert_eq!(counts, [4, 1, 1, 0, 1], "{jobs}");
    backend.stop().await;
}

#[tokio::test]
async fn a_job_is_cancelled_while_it_runs_and_not_after() {
    let backend = start().await;
    for cancel in ["DELETE /v1/videos/{} HTTP/1.1", "POST /v1/videos/{}/cancel HTTP/1.1"] {
        let id = backend.job("polls=1").await;
        for _ in 0..2 {
            let job = backend.ask_json(&cancel.replace("{}", &id), "").await;
            assert_eq!((&job["status"], job.get("usage")), (&"cancelled".into(), None));
        }
        assert_eq!(backend.poll(&id).await["status"], "cancelled");

        let done = backend.job("polls=1").await;
        backend.poll(&done).await;
        let job = backend.ask_json(&cancel.replace("{}", &done), "").await;
        assert_eq!((&job["status"], &job["usage"]["seconds"]), (&"succeeded".into(), &7.into()));
    }
    for unknown in ["none", "video_00000000_0", "%20"] {
        assert_eq!(backend.poll_status(unknown).await, "404", "{unknown}");
    }
    let id = backend.job("").await;
    assert_eq!(backend.poll_status(&id.replace("_4", "_04")).await, "404");
    backend.stop().await;
}

#[tokio::test]
async fn what_a_submission_says_of_usage_is_told_at_the_end() {
    let backend = start().await;
    let made = |headers: &str| format!("{VIDEOS}\r\nX-Sample-Job: polls=1\r\n{headers}");
    for (headers, usage) in [
        ("X-Sample-Usage: 1e400", Some("{\"seconds\":1e400}")),
        ("X-Sample-Fail: negative-usage", Some("{\"seconds\":-1}")),
        ("X-Sample-Fail: no-usage", None),
    ] {
        let job = backend.ask_json(&made(headers), "{}").await;
        let poll = format!("GET /v1/videos/{} HTTP/1.1", job["id"].as_str().unwrap());
        let (_, body) = backend.ask(&poll, "").await;
        assert!(body.contains("succeeded"), "{body}");
        let told = body.split_once("\"usage\":").map(|(_, rest)| rest.strip_suffix('}').unwrap());
        assert_eq!(told, usage, "{headers}");
    }
    // Of a poll it holds for that answer.
    let id = backend.job("polls=1").await;
    let head = format!("GET /v1/videos/{id} HTTP/1.1\r\nX-Sample-Fail: no-usage");
    assert_eq!(backend.ask_json(&head, "").await.get("usage"), None);
    assert_eq!(backend.poll(&id).await["usage"]["seconds"], 7);
    backend.stop().await;
}

#[tokio::test]
async fn a_job_whose_answer_was_lost_is_made() {
    let backend = start().await;
    let (_, body) = backend.ask(&format!("{VIDEOS}\r\nX-Sample-Fail: truncate"), "{}").await;
    assert!(serde_json::from_str::<Value>(&body).is_err(), "{body}");
    assert_eq!(backend.seen("stats").await["jobs"]["made"], 1);
    backend.stop().await;
}

fn order(until: Until, end: End) -> Order {
    let plan = Plan { until, end, sick: 0, reports: 0, is_accepted: false };
    let (resolution, told) = ("540p".to_owned(), ask::Told::Truth);
    Order { plan, seconds: 1, resolution, told, charge: None }
}

#[test]
fn a_job_by_the_clock_is_queued_then_in_progress_then_ended_once() {
    let (mut jobs, began) = (Jobs::new(), Instant::now());
    let at = |ms| began + Duration::from_millis(ms);
    let until = Until::Elapsed(Duration::from_millis(100));
    let id = jobs.make(order(until, End::Succeeded), began).id;
    let mut look = |touch, ms| {
        let view = jobs.touch(&id, touch, at(ms)).unwrap();
        (view.document["status"].as_str().unwrap().to_owned(), view.has_ended)
    };
    assert_eq!(look(Touch::Poll, 49), ("queued".to_owned(), false));
    assert_eq!(look(Touch::Wake, 99), ("in_progress".to_owned(), false));
    assert_eq!(look(Touch::Wake, 100), ("succeeded".to_owned(), true));
    assert_eq!(look(Touch::Poll, 101), ("succeeded".to_owned(), false));
    assert_eq!(look(Touch::Cancel, 102), ("succeeded".to_owned(), false));

    let lost = jobs.make(order(until, End::Lost), began).id;
    assert_eq!(jobs.touch(&lost, Touch::Poll, at(99)).unwrap().document["status"], "in_progress");
    assert_eq!(jobs.touch(&lost, Touch::Poll, at(100)).unwrap_err(), Unseen::Unknown);
}

#[test]
fn the_oldest_jobs_are_forgotten_for_the_next() {
    let (mut jobs, now) = (Jobs::new(), Instant::now());
    let ids: Vec<String> =
        (0..MAX_JOBS + 2).map(|_| jobs.make(order(Until::Polls(1), End::Never), now).id).collect();
    let mut is_known = |at: usize| jobs.touch(&ids[at], Touch::Poll, now).is_ok();
    let known = [0, 1, 2, MAX_JOBS + 1].map(&mut is_known);
    assert_eq!(known, [false, false, true, true]);
    assert_eq!(jobs.to_json()["forgotten"], 2);
    // Another process knows none of them.
    assert_eq!(Jobs::new().touch(&ids[2], Touch::Poll, now).unwrap_err(), Unseen::Unknown);
}
