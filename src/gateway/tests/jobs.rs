//! The answer to a submission, when its charge is not kept as it should be.

use super::bench::*;
use super::payment::{Fault, Faulty};
use crate::core::charge::State;

/// A route that makes videos, of which each second is a credit.
pub const VIDEOS: &str = r#"
[[route]]
method = "POST"
path = "/v1/videos"
upstream = "media"
feature = "image"
quantity = { json = "/seconds", default = 5 }
[route.job]
id = "/id"
status_path = "/v1/videos/{job}"
status = "/status"
succeeded = ["succeeded"]
failed = ["failed"]
"#;

#[tokio::test]
async fn d34_f23_a_job_that_is_over_before_it_is_known_is_forgotten_and_charged_once() {
    let bench = Bench::over(VIDEOS, |session| Faulty(session, Fault::Captured)).await;
    bench.backend.answers("200 OK", r#"{"id": "a"}"#);
    let answer = bench.post("/v1/videos", "alice", "{}").await;
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &br#"{"id": "a"}"#[..]));
    let receipt = answer.receipt();
    assert_eq!((receipt["state"].as_str(), receipt["cost"].as_str()), ("held", "5"));
    assert!(bench.worker.jobs.is_empty(), "nobody would ever settle it");
    let charge = bench.charge(&receipt["charge"]).await;
    assert_eq!((charge.state, charge.cost.to_string()), (State::Captured, "5".to_owned()));
    assert_eq!(bench.seat("alice").await, "98");
}

#[tokio::test]
async fn d30_d34_nobody_has_the_answer_of_a_job_that_is_not_recorded() {
    let bench = Bench::over(VIDEOS, |session| Faulty(session, Fault::Unamended)).await;
    bench.backend.answers("200 OK", r#"{"id": "a"}"#);
    let answer = bench.post("/v1/videos", "alice", "{}").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "books_unavailable"));
    assert!(bench.worker.jobs.is_empty());
    // What was submitted cannot be followed: it ends as its route says, like any other in doubt.
    assert_eq!(bench.engine.list_open().len(), 0);
    assert_eq!(bench.seat("alice").await, "103");
}
