//! How a job ended is reported until somebody takes it.

use std::sync::mpsc;

use super::*;

const SECRET: &str = "Bearer canary-of-the-reports";

/// Answers these statuses one after another, the last one for ever, and tells what came.
async fn taker(
    statuses: &'static [&'static str],
    tasks: &TaskTracker,
) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/jobs/{{id}}?charge={{charge}}", listener.local_addr().unwrap());
    let (sender, came) = mpsc::channel();
    tasks.spawn(async move {
        let mut statuses = statuses.iter().copied();
        let mut status = statuses.next().unwrap();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
            }
            if sender.send(String::from_utf8(request).unwrap()).is_err() {
                return;
            }
            let answer = format!("HTTP/1.1 {status} Taken\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            status = statuses.next().unwrap_or(status);
        }
    });
    (url, came)
}

fn report(url: &str) -> Option<Report> {
    Some(Report::new(url, Some(("X-Secret", SECRET))).unwrap())
}

const CHARGED: &str = "POST /v1/videos HTTP/1.1\r\nTollgate-Charge: c-1\r\nX-Sample-Job:";

#[tokio::test]
async fn the_end_of_a_job_is_told_with_its_usage_charge_and_the_secret() {
    let tasks = TaskTracker::new();
    for plan in ["ms=0", "polls=1", "ms=20, polls=1"] {
        let (url, came) = taker(&["204"], &tasks).await;
        let backend = start_with(report(&url)).await;
        let job = backend.ask_json(&format!("{CHARGED} {plan}"), r#"{"seconds":3}"#).await;
        let id = job["id"].as_str().unwrap();
        if plan.ends_with("polls=1") {
            backend.ask_json(&format!("GET /v1/videos/{id} HTTP/1.1"), "").await;
        }
        backend.counted("/reports/taken", 1).await;
        let request = came.recv().unwrap();
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("POST /jobs/{id}?charge=c-1 HTTP/1.1")), "{head}");
        assert!(head.contains(&format!("x-secret: {SECRET}")), "{head}");
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!((&body["id"], &body["status"]), (&id.into(), &"succeeded".into()));
        assert_eq!((&body["usage"]["seconds"], &body["charge"]), (&3.into(), &"c-1".into()));
        // It ended once, and is told once.
        backend.ask_json(&format!("GET /v1/videos/{id} HTTP/1.1"), "").await;
        backend.stop().await;
        assert!(came.try_recv().is_err());
    }
}

#[tokio::test]
async fn a_report_is_sent_again_until_it_is_taken_or_refused() {
    let tasks = TaskTracker::new();
    for (statuses, tries, pointer) in [
        (&["500", "429", "200"][..], 3, "/reports/taken"),
        (&["503", "404", "200"], 2, "/reports/lost"),
    ] {
        let (url, came) = taker(statuses, &tasks).await;
        let backend = start_with(report(&url)).await;
        backend.ask_json(&format!("{CHARGED} ms=1, end=failed"), "{}").await;
        backend.counted(pointer, 1).await;
        let came: Vec<String> = came.try_iter().collect();
        assert_eq!(came.len(), tries);
        assert!(came.iter().all(|request| request.contains(r#""status":"failed""#)), "{came:?}");
        backend.stop().await;
    }
}

#[tokio::test]
async fn a_plan_says_how_often_an_end_is_reported() {
    let tasks = TaskTracker::new();
    let (url, came) = taker(&["200"], &tasks).await;
    let backend = start_with(report(&url)).await;
    for silent in ["ms=0, reports=0", "ms=0, end=never", "ms=0, end=lost"] {
        backend.ask_json(&format!("{CHARGED} {silent}"), "{}").await;
    }
    let twice = backend.ask_json(&format!("{CHARGED} polls=9, reports=2"), "{}").await;
    let id = twice["id"].as_str().unwrap();
    backend.ask_json(&format!("DELETE /v1/videos/{id} HTTP/1.1"), "").await;
    backend.counted("/reports/taken", 2).await;
    backend.counted("/jobs/lost", 1).await;
    backend.stop().await;
    let came: Vec<String> = came.try_iter().collect();
    assert_eq!(came.len(), 2);
    assert!(came.iter().all(|request| request.contains(r#""status":"cancelled""#)), "{came:?}");
}

#[tokio::test]
async fn reports_that_nobody_takes_do_not_hold_up_shutdown() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", free.local_addr().unwrap());
    let backend = start_with(report(&url)).await;
    backend.ask_json(&format!("{CHARGED} ms=0"), "{}").await;
    backend.ask_json(&format!("{CHARGED} ms=3600000"), "{}").await;
    backend.counted("/jobs/succeeded", 1).await;
    backend.stop().await;
}

#[test]
fn f81_a_place_for_reports_is_checked_and_does_not_print_its_secret() {
    for odd in ["", "https://a/", "http://", "http:///a", "http://u:p@a/", "http://a/ b", "a:80"] {
        assert!(Report::new(odd, None).is_err(), "{odd}");
    }
    for odd in [("", "a"), ("a b", "a"), ("a", "canary\n")] {
        let error = Report::new("http://a", Some(odd)).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
    let report = Report::new("http://[::1]/a?b={id}", Some(("Authorization", SECRET))).unwrap();
    assert!(!format!("{report:?}").contains("canary"), "{report:?}");
}
