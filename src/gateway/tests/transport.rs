//! Connections: reuse, staleness, draining, and heads that are too large.

use super::bench::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn connections_to_the_backend_are_used_again() {
    let bench = Bench::new().await;
    bench.backend.answers("200 OK", "x");
    for _ in 0..5 {
        assert_eq!(bench.post("/v1/images", "alice", "{}").await.status, 200);
        assert_eq!(bench.post("/v1/models", "alice", "").await.status, 200);
    }
    assert_eq!(bench.backend.connections(), 1);
}

#[tokio::test]
async fn f16_a_connection_that_went_stale_is_replaced_and_the_charge_is_one() {
    let bench = Bench::new().await;
    let text = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx".to_vec();
    bench.backend.plays([Step::Send(text), Step::Close]);
    for _ in 0..3 {
        let answer = bench.post("/v1/images", "alice", "{}").await;
        assert_eq!(answer.receipt()["state"], "captured");
        // The backend's end of the connection is seen before the next request is sent.
        bench.until("its end is seen", || bench.worker.upstreams[0].idle() == 0).await;
    }
    assert_eq!(bench.backend.seen().len(), 3);
    assert_eq!(bench.backend.connections(), 3);
    assert_eq!(bench.seat("alice").await, "100");
}

#[tokio::test]
async fn a_connection_serves_one_request_after_another() {
    let bench = Bench::new().await;
    bench.backend.answers("200 OK", "x");
    let mut stream = bench.connect().await;
    for turn in 0..3 {
        let user = ["alice", "dora", "alice"][turn];
        let text = format!(
            "POST /v1/recolor HTTP/1.1\r\nhost: gate\r\nauthorization: {STUDIO}\r\n\
             tollgate-user: {user}\r\ncontent-length: 0\r\n\r\n"
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        while !got.ends_with(b"\r\n\r\nx") {
            assert_ne!(stream.read_buf(&mut got).await.unwrap(), 0);
        }
        assert_eq!(bench.backend.seen()[turn].header("tollgate-user"), [user]);
    }
}

#[tokio::test]
async fn f71_a_header_block_over_64_kib_is_431() {
    let bench = Bench::new().await;
    let mut stream = bench.connect().await;
    let mut text = b"GET /v1/models HTTP/1.1\r\nhost: gate\r\nx-large: ".to_vec();
    text.resize(70_000, b'x');
    // The gateway may answer and close before it has read all of it.
    let _ = stream.write_all(&text).await;
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got).await;
    assert!(got.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&got));
}

#[tokio::test]
async fn draining_finishes_what_is_served_and_closes() {
    let bench = Bench::new().await;
    let text = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx".to_vec();
    bench.backend.plays([Step::Wait, Step::Send(text)]);
    let mut stream = bench.connect().await;
    let text = format!(
        "GET /v1/models HTTP/1.1\r\nhost: gate\r\nauthorization: {STUDIO}\r\n\
         tollgate-user: alice\r\n\r\n"
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    bench.until("it is forwarded", || !bench.backend.seen().is_empty()).await;
    bench.worker.drain.cancel();
    bench.backend.go_on();
    let mut got = String::new();
    stream.read_to_string(&mut got).await.unwrap();
    assert!(got.starts_with("HTTP/1.1 200") && got.ends_with("\r\n\r\nx"), "{got}");
}

#[tokio::test]
async fn f65_a_backend_that_switches_protocols_unasked_is_broken() {
    let bench = Bench::new().await;
    let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nraw";
    bench.backend.plays([Step::Send(head.as_bytes().to_vec())]);
    let answer = bench.post("/v1/images", "alice", "{}").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (502, "upstream_failed"));
    assert_eq!(bench.seat("alice").await, "103");
}

#[tokio::test]
async fn answers_without_a_body_pass_as_they_are() {
    let bench = Bench::new().await;
    let head = |text: &str| [Step::Send(text.as_bytes().to_vec())];
    bench.backend.plays(head("HTTP/1.1 200 OK\r\ncontent-length: 70000\r\n\r\n"));
    for path in ["/v1/models", "/v1/recolor"] {
        let request = get(path).method("HEAD").header("tollgate-user", "alice");
        let answer = bench.send(request.body(http_body_util::Full::default()).unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-length")), (200, "70000"));
        assert!(answer.body.is_empty() && answer.whole);
    }
    bench.backend.plays(head("HTTP/1.1 204 No Content\r\n\r\n"));
    let answer = bench.post("/v1/images", "alice", "{}").await;
    assert_eq!((answer.status.as_u16(), answer.receipt()["state"].as_str()), (204, "captured"));
    assert_eq!(bench.engine.open_holds().0, 0);
}
