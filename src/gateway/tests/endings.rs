//! Endings: streams, and clients that leave (D30, D33).

use super::bench::*;
use crate::core::charge::State;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LARGE: usize = 200_000;

fn head(headers: &str) -> Step {
    Step::Send(format!("HTTP/1.1 200 OK\r\n{headers}\r\n").into_bytes())
}

fn chunk(text: &str) -> Step {
    Step::Send(format!("{:x}\r\n{text}\r\n", text.len()).into_bytes())
}

fn end() -> Step {
    Step::Send(b"0\r\n\r\n".to_vec())
}

const CHUNKED: &str = "transfer-encoding: chunked\r\n";

/// Sends a request over a raw connection.
async fn begin(bench: &Bench, path: &str, body: &str) -> TcpStream {
    let mut stream = bench.connect().await;
    let text = format!(
        "POST {path} HTTP/1.1\r\nhost: gate\r\nauthorization: {STUDIO}\r\n\
         tollgate-user: alice\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// Reads until the text has come.
async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut got = Vec::new();
    while !String::from_utf8_lossy(&got).contains(text) {
        assert_ne!(stream.read_buf(&mut got).await.unwrap(), 0, "closed early");
    }
    String::from_utf8(got).unwrap()
}

#[tokio::test]
async fn d30_a_large_answer_is_held_first_and_captured_before_its_last_byte() {
    let bench = Bench::new().await;
    bench.backend.answers("200 OK", &"x".repeat(LARGE));
    let answer = bench.post("/v1/images", "alice", r#"{"n": 2}"#).await;
    // Whoever has the last byte was charged: nothing is waited for here.
    assert_eq!(bench.engine.open_holds().0, 0);
    assert_eq!((answer.body.len(), answer.whole), (LARGE, true));
    let receipt = answer.receipt();
    assert_eq!((receipt["state"].as_str(), receipt["cost"].as_str()), ("held", "2"));
    assert_eq!(bench.charge(&receipt["charge"]).await.state, State::Captured);
    assert_eq!(bench.seat("alice").await, "101");
}

#[tokio::test]
async fn d30_the_end_of_a_stream_waits_for_its_capture_and_its_pieces_do_not() {
    let bench = Bench::new().await;
    bench.backend.plays([head(CHUNKED), chunk("one"), Step::Wait, chunk("two"), end()]);
    let mut stream = begin(&bench, "/v1/images", "{}").await;
    let first = read_until(&mut stream, "one").await;
    assert!(first.contains("state=held"), "{first}");
    assert_eq!(bench.engine.open_holds().0, 1);
    bench.backend.go_on();
    read_until(&mut stream, "0\r\n\r\n").await;
    assert_eq!(bench.engine.open_holds().0, 0);
    assert_eq!(bench.seat("alice").await, "102");
}

#[tokio::test]
async fn a_short_answer_without_a_length_is_captured_before_its_head() {
    let bench = Bench::new().await;
    let mut whole = Vec::new();
    for step in [head(CHUNKED), chunk(r#"{"usage": "#), chunk(r#"{"images": 2}}"#), end()] {
        if let Step::Send(bytes) = step {
            whole.extend(bytes);
        }
    }
    bench.backend.plays([Step::Send(whole)]);
    let answer = bench.post("/v1/used", "alice", "").await;
    let receipt = answer.receipt();
    assert_eq!((receipt["state"].as_str(), receipt["cost"].as_str()), ("captured", "2"));
    assert_eq!(&answer.body[..], br#"{"usage": {"images": 2}}"#);
}

#[tokio::test]
async fn d30_usage_is_read_from_a_stream_as_it_passes() {
    let bench = Bench::new().await;
    bench.backend.plays([
        head(CHUNKED),
        chunk(r#"{"data": "#),
        Step::Wait,
        chunk(r#"1, "usage": {"images": 3}}"#),
        end(),
    ]);
    let mut stream = begin(&bench, "/v1/used", "").await;
    read_until(&mut stream, "data").await;
    bench.backend.go_on();
    read_until(&mut stream, "0\r\n\r\n").await;
    assert_eq!(bench.seat("alice").await, "100");
}

#[tokio::test]
async fn d32_f11_a_truncated_stream_costs_nothing_and_is_no_clean_end() {
    let bench = Bench::new().await;
    for headers in [CHUNKED.to_owned(), format!("content-length: {LARGE}\r\n")] {
        let piece = if headers == CHUNKED { chunk("one") } else { Step::Send(vec![b'x'; 100_000]) };
        bench.backend.plays([head(&headers), piece, Step::Wait, Step::Close]);
        let mut stream = begin(&bench, "/v1/images", "{}").await;
        // It breaks off after its head was sent; before that it would be a 502.
        let mut got = read_until(&mut stream, "state=held").await;
        bench.backend.go_on();
        stream.read_to_string(&mut got).await.unwrap();
        assert!(!got.ends_with("0\r\n\r\n") && got.len() < LARGE, "{}", got.len());
        bench.settled().await;
        assert_eq!(bench.seat("alice").await, "103");
    }
}

#[tokio::test]
async fn d33_f07_a_client_that_leaves_before_the_answer_pays_when_it_comes() {
    let bench = Bench::new().await;
    let small = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx".to_vec();
    bench.backend.plays([Step::Wait, Step::Send(small)]);
    let stream = begin(&bench, "/v1/images", r#"{"n": 2}"#).await;
    bench.until("it is forwarded", || !bench.backend.seen().is_empty()).await;
    drop(stream);
    bench.until("the handler is gone", || bench.connections() == 0).await;
    assert_eq!(bench.engine.open_holds().0, 1);
    // The work goes on, and keeps its place among the requests in flight: clients that come and
    // leave do not get more done at once than those that stay.
    assert_eq!(bench.worker.limits.in_flight(), 1);
    bench.backend.go_on();
    bench.settled().await;
    assert_eq!(bench.seat("alice").await, "101");
    bench.until("its place is free", || bench.worker.limits.in_flight() == 0).await;
}

#[tokio::test]
async fn d33_a_route_that_cancels_voids_when_the_client_leaves_before_the_answer() {
    let bench = Bench::new().await;
    bench.backend.plays([Step::Wait]);
    let stream = begin(&bench, "/v1/cancel/2", "").await;
    bench.until("it is forwarded", || !bench.backend.seen().is_empty()).await;
    assert_eq!(bench.engine.open_holds().0, 1);
    drop(stream);
    bench.settled().await;
    assert_eq!(bench.seat("alice").await, "103");
}

#[tokio::test]
async fn d33_f08_a_client_that_leaves_in_the_middle_pays_what_the_backend_reports() {
    let bench = Bench::new().await;
    bench.backend.plays([
        head(CHUNKED),
        chunk(r#"{"data": "#),
        Step::Wait,
        chunk(r#"1, "usage": {"images": 3}}"#),
        end(),
    ]);
    let mut stream = begin(&bench, "/v1/used", "").await;
    read_until(&mut stream, "data").await;
    drop(stream);
    bench.until("the handler is gone", || bench.connections() == 0).await;
    assert_eq!(bench.worker.limits.in_flight(), 1);
    bench.backend.go_on();
    bench.settled().await;
    assert_eq!(bench.seat("alice").await, "100");
    bench.until("its place is free", || bench.worker.limits.in_flight() == 0).await;
}

#[tokio::test]
async fn d33_a_route_that_cancels_charges_the_hold_once_something_was_delivered() {
    let bench = Bench::new().await;
    bench.backend.plays([head(CHUNKED), chunk("one"), Step::Wait]);
    let mut stream = begin(&bench, "/v1/cancel/2", "").await;
    let got = read_until(&mut stream, "one").await;
    drop(stream);
    bench.settled().await;
    assert_eq!(bench.seat("alice").await, "101");
    let id = got.split("charge=\"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(bench.charge(id).await.flags, ["usage_missing"]);
}

#[tokio::test]
async fn d33_a_backend_that_never_ends_is_not_drained_for_ever() {
    let bench = Bench::new().await;
    bench.backend.plays([head(CHUNKED), chunk("one"), Step::Wait]);
    let mut stream = begin(&bench, "/v1/hasty", r#"{"n": 2}"#).await;
    read_until(&mut stream, "one").await;
    drop(stream);
    // The bound is the upstream's response timeout; the client had some of the answer.
    bench.settled().await;
    assert_eq!(bench.seat("alice").await, "101");
}

#[tokio::test]
async fn f06_a_client_that_leaves_before_its_request_is_whole_holds_nothing() {
    let bench = Bench::new().await;
    let mut stream = bench.connect().await;
    let text = format!(
        "POST /v1/images HTTP/1.1\r\nhost: gate\r\nauthorization: {STUDIO}\r\n\
         tollgate-user: alice\r\ncontent-length: 100\r\n\r\n{{"
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    bench.until("it is being read", || bench.worker.limits.in_flight() == 1).await;
    drop(stream);
    bench.until("the handler is gone", || bench.worker.limits.in_flight() == 0).await;
    assert_eq!(bench.engine.open_holds().0, 0);
    assert!(bench.backend.seen().is_empty());
}

#[tokio::test]
async fn d33_who_never_ends_its_upload_pays_for_the_answer_it_got() {
    let bench = Bench::new().await;
    bench.backend.plays([head(CHUNKED), chunk("one"), Step::Wait]);
    // One client leaves, the other stays and breaks its upload.
    for (left, broken) in [("101", &b""[..]), ("99", &b"not a chunk\r\n"[..])] {
        let mut stream = bench.connect().await;
        let text = format!(
            "POST /v1/patient?n=2 HTTP/1.1\r\nhost: gate\r\nauthorization: {STUDIO}\r\n\
             tollgate-user: alice\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        read_until(&mut stream, "one").await;
        stream.write_all(broken).await.unwrap();
        let kept = (!broken.is_empty()).then_some(stream);
        bench.settled().await;
        assert_eq!(bench.seat("alice").await, left);
        drop(kept);
    }
}

#[tokio::test]
async fn d33_a_backend_that_hangs_in_a_small_answer_keeps_no_hold_of_a_client_that_left() {
    let bench = Bench::new().await;
    bench.backend.plays([head("content-length: 10\r\n"), Step::Wait]);
    let stream = begin(&bench, "/v1/hasty", "{}").await;
    bench.until("it is forwarded", || !bench.backend.seen().is_empty()).await;
    drop(stream);
    bench.settled().await;
    assert_eq!(bench.seat("alice").await, "103");
}
