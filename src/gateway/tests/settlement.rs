//! What is charged when a backend answers: quotes, usage, statuses.

use bytes::Bytes;
use http_body_util::Full;

use super::bench::*;
use crate::core::charge::State;

#[tokio::test]
async fn d30_what_was_really_used_is_captured_and_the_rest_returns() {
    let bench = Bench::new().await;
    for (body, cost, flags) in [
        (r#"{"usage": {"images": 2}}"#, "2", &[][..]),
        (r#"{"usage": {"images": "1.5"}}"#, "1.5", &[]),
        (r#"{"usage": {"images": 5}}"#, "5", &[]),
        // f12: an explicit zero is zero.
        (r#"{"usage": {"images": 0}}"#, "0", &[]),
        // f15, f56: what cannot be read is missing.
        (r#"{"usage": {"images": -1}}"#, "5", &["usage_missing"]),
        (r#"{"usage": {"images": 1e400}}"#, "5", &["usage_missing"]),
        (r#"{"usage": {"images": null}}"#, "5", &["usage_missing"]),
        (r#"{"usage": {"images": 1, "images": 2}}"#, "5", &["usage_missing"]),
        ("{}", "5", &["usage_missing"]),
        ("no json", "5", &["usage_missing"]),
    ] {
        bench.backend.answers("200 OK", body);
        let answer = bench.post("/v1/used", "alice", "").await;
        assert_eq!(&answer.body[..], body.as_bytes());
        let receipt = answer.receipt();
        assert_eq!(
            (receipt["state"].as_str(), receipt["cost"].as_str()),
            ("captured", cost),
            "{body}"
        );
        let charge = bench.charge(&receipt["charge"]).await;
        assert_eq!(charge.cost.to_string(), cost, "{body}");
        assert_eq!(charge.flags, flags, "{body}");
    }
    assert_eq!(bench.seat("alice").await, "64.5");
}

#[tokio::test]
async fn d30_usage_may_be_told_in_a_header() {
    let bench = Bench::new().await;
    bench.backend.answers("200 OK\r\nx-used: 1.25", "x");
    let answer = bench.post("/v1/told?n=3", "alice", "").await;
    assert_eq!(answer.receipt()["cost"], "1.25");
    assert_eq!(bench.seat("alice").await, "101.75");
}

#[tokio::test]
async fn d31_what_exceeds_the_hold_goes_through_the_waterfall_and_then_into_overdraft() {
    let bench = Bench::new().await;
    // Held: 3 of the seat and 0.04 of the pool. Used: 43 credits, so 0.8 of the pool.
    bench.backend.answers("200 OK", r#"{"usage": {"images": 43}}"#);
    let receipt = bench.post("/v1/used", "dora", "").await.receipt();
    assert_eq!((receipt["cost"].as_str(), receipt["seat"].as_str()), ("43", "3"));
    assert_eq!(receipt["pool"], "0.8");
    assert!(!receipt.contains_key("overdraft"));
    // Without pool access, what the seat cannot pay is overdraft.
    bench.backend.answers("200 OK", r#"{"usage": {"images": 110}}"#);
    let receipt = bench.post("/v1/used", "alice", "").await.receipt();
    assert_eq!((receipt["seat"].as_str(), receipt["overdraft"].as_str()), ("103", "7"));
    let answer = bench.post("/v1/images", "alice", "{}").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (402, "overdrawn"));
}

#[tokio::test]
async fn d32_a_status_that_is_not_charged_voids_and_passes_through() {
    let bench = Bench::new().await;
    for status in ["400 Bad", "404 None", "500 Oh", "503 Busy", "302 Away"] {
        bench.backend.answers(status, "why");
        let answer = bench.post("/v1/images", "alice", r#"{"n": 4}"#).await;
        assert!(status.starts_with(answer.status.as_str()));
        assert_eq!(&answer.body[..], b"why");
        let receipt = answer.receipt();
        for key in ["cost", "seat", "pool", "overage"] {
            assert_eq!(receipt[key], "0");
        }
        assert_eq!(
            (receipt["state"].as_str(), receipt["seat-remaining"].as_str()),
            ("voided", "103")
        );
        assert_eq!(bench.charge(&receipt["charge"]).await.state, State::Voided);
    }
}

#[tokio::test]
async fn d32_f10_a_backend_that_cannot_be_reached_or_breaks_costs_nothing() {
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = nowhere.local_addr().unwrap();
    drop(nowhere);
    let bench = Bench::with(&format!(
        "[[upstream]]\nname = \"gone\"\nurls = [\"http://{gone}\"]\n\
         [[route]]\npath = \"/v1/gone\"\nupstream = \"gone\"\nfeature = \"image\"\n"
    ))
    .await;
    let answer = bench.post("/v1/gone", "alice", "").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (502, "upstream_unreachable"));
    bench.backend.plays([Step::Close]);
    let answer = bench.post("/v1/images", "alice", "{}").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (502, "upstream_failed"));
    assert!(!answer.headers.contains_key("tollgate-receipt"));
    assert_eq!(bench.seat("alice").await, "103");
    assert_eq!(bench.engine.open_holds().0, 0);
    let metrics = bench.telemetry.expose();
    assert!(metrics.contains(r#"route="/v1/images",outcome="voided",status_class="5xx"} 1"#));
    assert!(!metrics.contains(r#"outcome="error""#));
}

#[tokio::test]
async fn d32_a_timeout_is_charged_where_the_route_says_so() {
    let bench = Bench::new().await;
    bench.backend.plays([Step::Wait]);
    let answer = bench.post("/v1/hasty", "alice", "{}").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (504, "upstream_timeout"));
    assert_eq!(bench.seat("alice").await, "103");
    let answer = bench.post("/v1/patient?n=3", "alice", "").await;
    assert_eq!(answer.code(), "upstream_timeout");
    assert_eq!(bench.seat("alice").await, "100");
}

#[tokio::test]
async fn d32_f11_a_truncated_small_body_is_void_unless_usage_was_told() {
    let bench = Bench::new().await;
    let cut = |head: &str| {
        let text = format!("HTTP/1.1 200 OK\r\n{head}content-length: 10\r\n\r\nhalf");
        [Step::Send(text.into_bytes()), Step::Close]
    };
    bench.backend.plays(cut(""));
    let answer = bench.post("/v1/images", "alice", "{}").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (502, "upstream_failed"));
    assert_eq!(bench.seat("alice").await, "103");
    bench.backend.plays(cut("x-used: 2\r\n"));
    let answer = bench.post("/v1/told", "alice", "").await;
    assert_eq!((&answer.body[..], answer.whole), (&b"half"[..], false));
    assert_eq!(answer.receipt()["cost"], "2");
    assert_eq!(bench.seat("alice").await, "101");
}

#[tokio::test]
async fn quantities_come_from_body_header_query_path_or_default() {
    let bench = Bench::new().await;
    bench.backend.answers("200 OK\r\nx-used: 1", "{\"usage\": {\"images\": 1}}");
    for (path, body, cost) in [
        ("/v1/images", "{}", "1"),
        ("/v1/images", r#"{"n": "2.5"}"#, "2.5"),
        ("/v1/images", r#"{"n": 3, "size": "4096"}"#, "30"),
        ("/v1/cancel/4", "", "4"),
        ("/v1/cancel/4.5", "ignored", "4.5"),
    ] {
        let receipt = bench.post(path, "alice", body).await.receipt();
        assert_eq!(receipt["cost"], cost, "{path} {body}");
    }
    for (path, body) in [
        ("/v1/images", r#"{"n": -1}"#),
        ("/v1/images", r#"{"n": null}"#),
        ("/v1/images", r#"{"n": 1e2}"#),
        ("/v1/images", r#"{"n": true}"#),
        ("/v1/images", r#"{"n": 1, "n": 2}"#),
        ("/v1/images", r#"{"size": "512"}"#),
        ("/v1/images", r#"{"size": null}"#),
        ("/v1/images", r#"{"n": 1} {}"#),
        ("/v1/images", r#"{"n": 9007199254, "size": "4096"}"#),
        ("/v1/told?n=1&n=2", ""),
        ("/v1/told?n=%zz", ""),
        ("/v1/cancel/many", ""),
    ] {
        let answer = bench.post(path, "alice", body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (400, "unquotable"),
            "{path} {body}"
        );
    }
    let answer = bench.post("/v1/images", "alice", r#"{"size": "512"}"#).await;
    assert_eq!(
        answer.json()["detail"],
        "`size`".replace("size", "resolution") + " takes one of: 1024, 4096"
    );
}

#[tokio::test]
async fn f71_a_body_that_must_be_held_is_bounded() {
    let bench = Bench::new().await;
    let answer = bench.post("/v1/images", "alice", &format!("{:1100}", "{}")).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "body_too_large"));
    assert!(bench.backend.seen().is_empty());
    // A body that is not read for its price passes through, whatever its size.
    bench.backend.answers("200 OK", "x");
    assert_eq!(bench.post("/v1/recolor", "alice", &"x".repeat(5000)).await.status, 200);
    assert_eq!(bench.backend.seen()[0].body.len(), 5000);
}

#[tokio::test]
async fn d07_a_hold_is_settled_in_its_own_cycle_and_so_is_what_exceeds_it() {
    let bench = Bench::new().await;
    let body = r#"{"usage": {"images": 110}}"#;
    let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    bench.backend.plays([Step::Wait, Step::Send(text.into_bytes())]);
    let reset = async {
        bench.until("it is forwarded", || !bench.backend.seen().is_empty()).await;
        assert!(bench.worker.clock.set("2026-12-02T00:00:00Z".parse().unwrap()));
        bench.backend.go_on();
    };
    let (answer, ()) = tokio::join!(bench.post("/v1/used", "alice", ""), reset);
    let receipt = answer.receipt();
    assert_eq!((receipt["seat"].as_str(), receipt["overdraft"].as_str()), ("103", "7"));
    let charge = bench.charge(&receipt["charge"]).await;
    assert_eq!(charge.cycle, "2026-11-01");
    for leg in &charge.legs {
        assert!(leg.account.ends_with("/2026-11-01"), "{leg:?}");
    }
    // The new cycle has lost nothing, and owes nothing.
    assert_eq!(bench.seat("alice").await, "103");
    bench.backend.answers("200 OK", "x");
    assert_eq!(bench.post("/v1/images", "alice", "{}").await.receipt()["seat"], "1");
}

#[tokio::test]
async fn d29_whatever_is_metered_is_held_when_the_backend_sees_it() {
    let bench = Bench::new().await;
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx".to_vec();
    bench.backend.plays([Step::Wait, Step::Send(answer)]);
    for (number, (path, held)) in [
        ("/v1/images", 1_000_000),
        ("/v1/used", 5_000_000),
        ("/v1/told?n=3", 3_000_000),
        ("/v1/cancel/2", 2_000_000),
        // Standard: a charge of zero, but a charge.
        ("/v1/recolor", 0),
    ]
    .into_iter()
    .enumerate()
    {
        let look = async {
            bench.until("it is forwarded", || bench.backend.seen().len() > number).await;
            let seen = bench.backend.seen().pop().unwrap();
            let open = bench.engine.list_open();
            assert_eq!(open.len(), 1, "{path}");
            assert_eq!(seen.header("tollgate-charge"), [open[0].charge.to_string()], "{path}");
            let sum: u64 = open[0].legs.iter().map(|leg| leg.amount).sum();
            assert_eq!(sum, held, "{path}");
            bench.backend.go_on();
        };
        let (answer, ()) = tokio::join!(bench.post(path, "alice", "{}"), look);
        assert_eq!(answer.receipt()["state"], "captured", "{path}");
    }
}

/// Routes of images at ten credits each, made at once and by jobs.
const LARGE: &str = r#"
[[route]]
method = "POST"
path = "/v1/large"
upstream = "media"
feature = "image"
quantity = { const = 2 }
attributes.resolution = { json = "/size", map = { "4096" = "4k" }, default = "4k" }
usage = { json = "/usage/images" }
[[route]]
method = "POST"
path = "/v1/jobs"
upstream = "media"
feature = "image"
quantity = { const = 2 }
attributes.resolution = { json = "/size", map = { "4096" = "4k" }, default = "4k" }
usage = { json = "/usage/images" }
[route.job]
id = "/id"
status_path = "/v1/jobs/{job}"
status = "/status"
succeeded = ["succeeded"]
failed = ["failed"]
[[route]]
path = "/v1/jobs/{id}"
upstream = "media"
free = true
"#;

#[tokio::test]
async fn f57_usage_whose_price_is_beyond_an_amount_is_as_good_as_none_and_flagged() {
    let bench = Bench::with(LARGE).await;
    // An amount by itself, and none at ten credits each.
    let used = r#"{"status": "succeeded", "usage": {"images": 9007199254}}"#;
    bench.backend.answers("200 OK", used);
    let receipt = bench.post("/v1/large", "alice", "{}").await.receipt();
    assert_eq!((&*receipt["state"], &*receipt["cost"]), ("captured", "20"));
    bench.backend.answers("200 OK", r#"{"id": "a"}"#);
    let job = bench.post("/v1/jobs", "alice", "{}").await.receipt();
    assert_eq!((&*job["state"], &*job["cost"]), ("held", "20"));
    bench.backend.answers("200 OK", used);
    let poll = get("/v1/jobs/a").header("tollgate-user", "alice").body(Full::<Bytes>::default());
    assert_eq!(bench.send(poll.unwrap()).await.status, 200);
    for charge in [&receipt["charge"], &job["charge"]] {
        let found = bench.charge(charge).await;
        assert_eq!((found.state, found.cost.to_string()), (State::Captured, "20".to_owned()));
        assert_eq!((found.quantity, found.flags), ("2".into(), vec!["usage_missing".to_owned()]));
    }
    assert_eq!(bench.seat("alice").await, "63");
}
