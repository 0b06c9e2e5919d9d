//! Where a request begins and ends, and for whom it is: whatever two readers could read in two
//! ways is refused, and nothing behind it is read as another request.

use crate::support::org::{OWN, STUDIO};
use crate::support::peer::head;
use crate::support::{Access, Org, Peer, World, run};

fn world() -> World {
    World::new(&Org::new().user("alice", "100", Access::None))
}

const POST: &str = "POST /v1/images HTTP/1.1";
/// What would be charged if what stands before it were taken to end earlier.
const SMUGGLED: &str = "POST /v1/images HTTP/1.1\r\nhost: gateway.test\r\n\
    authorization: Bearer tg_test_own_0000000000000001\r\ncontent-length: 2\r\n\r\n{}";

/// Nothing was forwarded, and alice has all of her credits.
fn untouched(world: &World) {
    assert_eq!(world.backend.count(), 0, "{:?}", world.backend.seen());
    world.seat("alice", "0", "100", "0");
}

/// Sends each, with another request behind it: one problem and an end is all that comes back.
async fn refuses_and_closes(world: &World, requests: &[String], code: &str, status: u16) {
    let label = format!("code=\"{code}\"");
    let before = world.metric("tollgate_refusals_total", &[&label]);
    for request in requests {
        let mut peer = Peer::connect(world.gateway()).await;
        peer.send(format!("{request}{SMUGGLED}")).await;
        let answer = peer.answer().await;
        let shown = &request[..request.len().min(300)];
        assert_eq!(answer.status, status, "{shown:?}: {answer:?}");
        answer.refused(status, code);
        assert_eq!(answer.header("connection"), Some("close"), "{shown:?}: {answer:?}");
        peer.ends().await;
    }
    let counted = world.metric("tollgate_refusals_total", &[&label]) - before;
    assert_eq!(counted, requests.len() as f64, "every refusal is counted");
}

#[test]
fn f63_a_request_whose_end_is_not_sure_is_refused_and_its_connection_closed() {
    run(async {
        let world = world();
        let chunks = "2\r\n{}\r\n0\r\n\r\n";
        let mut requests: Vec<String> = [
            "content-length: 2\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: chunked\r\ncontent-length: 2\r\n",
            "Transfer-Encoding: chunked\r\nCONTENT-LENGTH: 2\r\n",
            "content-length: 2\r\ncontent-length: 2\r\n",
            "content-length: 2\r\ncontent-length: 3\r\n",
            "content-length: 2, 2\r\n",
            "content-length: +2\r\n",
            "content-length: -2\r\n",
            "content-length: 0x2\r\n",
            "content-length: 2 2\r\n",
            "content-length:\r\n",
            "content-length: 99999999999999999999\r\n",
            "content-length : 2\r\n",
            "transfer-encoding: gzip\r\n",
            "transfer-encoding: gzip, chunked\r\n",
            "transfer-encoding: chunked, gzip\r\n",
            "transfer-encoding: chunked, chunked\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: identity\r\n",
            "transfer-encoding: xchunked\r\n",
            "transfer-encoding: chunked;q=1\r\n",
            "transfer-encoding: \"chunked\"\r\n",
            "transfer-encoding: ,chunked\r\n",
            "transfer-encoding:\r\n",
            "transfer-encoding : chunked\r\n",
            "x: a\r\n transfer-encoding: chunked\r\n",
            "x: a\ntransfer-encoding: chunked\r\n",
            "x: a\ncontent-length: 2\r\n",
            "x: a\rb\r\n",
        ]
        .iter()
        .map(|lines| head(POST, lines) + chunks)
        .collect();
        requests.push(head("POST /v1/images HTTP/1.0", "transfer-encoding: chunked\r\n") + chunks);
        requests.push(head(POST, "content-length: 2\r\n").replace("\r\n", "\n") + "{}");
        refuses_and_closes(&world, &requests, "bad_request", 400).await;
        let lengths = ["18446744073709551614", "18446744073709551615"];
        let beyond = lengths.map(|length| head(POST, &format!("content-length: {length}\r\n")));
        refuses_and_closes(&world, &beyond, "body_too_large", 413).await;
        untouched(&world);
        for lines in ["content-length: 2\r\n", "transfer-encoding: Chunked\r\n"] {
            let mut peer = Peer::connect(world.gateway()).await;
            let body = if lines.starts_with('c') { "{}" } else { chunks };
            peer.send(head(POST, lines) + body).await;
            assert_eq!(peer.answer().await.status, 200, "{lines}");
        }
    });
}

#[test]
fn f63_a_body_in_odd_chunks_is_refused_and_its_connection_closed() {
    run(async {
        let world = world();
        let requests = [
            "zz\r\n{}\r\n0\r\n\r\n",
            "-2\r\n{}\r\n0\r\n\r\n",
            "\r\n{}\r\n0\r\n\r\n",
            "fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
            "2\n{}\n0\n\n",
            "2\r\n{}0\r\n\r\n",
            "2\r\n{}\r\n0\r\nx\ry\r\n\r\n",
        ];
        let requests = requests.map(|chunks| head(POST, "transfer-encoding: chunked\r\n") + chunks);
        refuses_and_closes(&world, &requests, "bad_request", 400).await;
        untouched(&world);
    });
}

#[test]
fn f63_requests_behind_one_another_are_told_apart_however_they_come() {
    run(async {
        let world = World::new(&Org::new().user("alice", "1000", Access::None));
        let first = head("POST /v1/images HTTP/1.1", "content-length: 7\r\n") + "{\"n\":2}";
        let second = head("GET /v1/models HTTP/1.1", "");
        let third = head("POST /v1/tile/3 HTTP/1.1", "content-length: 5\r\n") + "\r\n\r\n0";
        let all = format!("{first}{second}{third}\r\n{second}");
        let cuts = (1..all.len()).step_by(7);
        let mut turns = 0;
        for cut in cuts.chain([all.len()]) {
            let mut peer = Peer::connect(world.gateway()).await;
            let (before, after) = all.split_at(cut);
            peer.send(before).await;
            if cut > first.len() {
                // The second part is sent when the gateway is in the middle of the first.
                assert_eq!(peer.answer().await.status, 200);
                peer.send(after).await;
            } else {
                peer.send(after).await;
                assert_eq!(peer.answer().await.status, 200);
            }
            for _ in 0..3 {
                assert_eq!(peer.answer().await.status, 200, "{cut}");
            }
            turns += 1;
            let targets: Vec<String> =
                world.backend.seen().iter().rev().take(4).map(|seen| seen.target.clone()).collect();
            assert_eq!(targets, ["/v1/models", "/v1/tile/3", "/v1/models", "/v1/images"], "{cut}");
        }
        assert_eq!(world.backend.count(), 4 * turns);
    });
}

#[test]
fn f63_a_request_behind_a_body_in_chunks_waits_for_its_answer() {
    run(async {
        let world = world();
        let chunked = head(POST, "transfer-encoding: chunked\r\n") + "2\r\n{}\r\n0\r\n\r\n";
        let next = head("GET /v1/models HTTP/1.1", "");
        let mut peer = Peer::connect(world.gateway()).await;
        for _ in 0..3 {
            peer.send(&chunked).await;
            assert_eq!(peer.answer().await.status, 200);
            peer.send(&next).await;
            assert_eq!(peer.answer().await.status, 200);
        }
        // One that does not wait may hide what hyper repairs, so nobody looks into it.
        peer.send(chunked.clone() + &next).await;
        assert_eq!(peer.answer().await.status, 200);
        peer.answer().await.refused(400, "bad_request");
        peer.ends().await;
        let mut peer = Peer::connect(world.gateway()).await;
        let (part, rest) = next.split_at(20);
        peer.send(chunked + part).await;
        assert_eq!(peer.answer().await.status, 200);
        peer.send(rest).await;
        peer.answer().await.refused(400, "bad_request");
        peer.ends().await;
        assert_eq!(world.backend.count(), 8);
    });
}

#[test]
fn f59_two_authorization_headers_are_refused() {
    run(async {
        let world = world();
        let other = "tg_nobody_has_this_key_00001";
        let requests = [
            format!("authorization: Bearer {OWN}\r\nauthorization: Bearer {OWN}\r\n"),
            format!("authorization: Bearer {OWN}\r\nAUTHORIZATION: Bearer {other}\r\n"),
            format!("authorization: Bearer {OWN}\r\nauthorization:\r\n"),
            format!("tollgate-key: {OWN}\r\nTollgate-Key: {OWN}\r\n"),
            format!("tollgate-key: {OWN}\r\nx: y\r\ntollgate-key: {other}\r\n"),
            format!("tollgate-key: {STUDIO}\r\ntollgate-user: alice\r\nTOLLGATE-USER: alice\r\n"),
        ];
        let requests = requests.map(|lines| {
            format!("{POST}\r\nhost: gateway.test\r\n{lines}content-length: 2\r\n\r\n{{}}")
        });
        refuses_and_closes(&world, &requests, "bad_request", 400).await;
        untouched(&world);
    });
}

#[test]
fn f62_cr_lf_and_nul_are_refused_in_whatever_becomes_a_header() {
    run(async {
        let world = world();
        let mut requests = Vec::new();
        for byte in ["\r", "\0", "\x01", "\x0b", "\x7f", "\n"] {
            for name in ["x-request-id", "tollgate-user", "x-own", "traceparent", "x-forwarded-for"]
            {
                requests.push(head(POST, &format!("{name}: a{byte}b\r\ncontent-length: 2\r\n")));
            }
            requests.push(head(POST, &format!("x{byte}y: a\r\ncontent-length: 2\r\n")));
            requests.push(head(&format!("POST /v1/tile/1{byte}2 HTTP/1.1"), ""));
            requests.push(head(&format!("POST /v1/images?a{byte}=b HTTP/1.1"), ""));
        }
        for escaped in ["%0d%0a", "%00", "%0A", "%7f"] {
            requests.push(head(&format!("POST /v1/tile/1{escaped} HTTP/1.1"), ""));
        }
        refuses_and_closes(&world, &requests, "bad_request", 400).await;
        untouched(&world);
    });
}

#[test]
fn f66_a_request_is_for_the_authority_it_names_and_for_one_only() {
    run(async {
        let world = world();
        let host = |line: &str, hosts: &str| {
            let key = format!("authorization: Bearer {OWN}\r\n");
            format!("{line}\r\n{hosts}{key}content-length: 2\r\n\r\n{{}}")
        };
        let requests = [
            host(POST, ""),
            host(POST, "host: a\r\nhost: a\r\n"),
            host(POST, "host: a\r\nHost: b\r\n"),
            host(POST, "host:\r\n"),
            host(POST, "host: a b\r\n"),
            host(POST, "host: a/b\r\n"),
            host(POST, "host: u@a\r\n"),
            host("POST http://u@a/v1/images HTTP/1.1", "host: a\r\n"),
            host("POST gateway.test:80 HTTP/1.1", "host: gateway.test\r\n"),
            host("POST v1/images HTTP/1.1", "host: a\r\n"),
            host("POST /v1/images#x HTTP/1.1", "host: a\r\n"),
            host("OPTIONS * HTTP/1.1", "host: a\r\n"),
            host("POST /v1/images", "host: a\r\n"),
            host("POST  /v1/images HTTP/1.1", "host: a\r\n"),
            host("POST /v1/images HTTP/1.2", "host: a\r\n"),
            host("POST /v1/images HTTP/2.0", "host: a\r\n"),
            host("POST /v1/images http/1.1", "host: a\r\n"),
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        ];
        refuses_and_closes(&world, &requests, "bad_request", 400).await;
        let requests = [
            host("POST http://a/v1/images HTTP/1.1", "host: b\r\n"),
            host("POST http://a:81/v1/images HTTP/1.1", "host: a\r\n"),
            host("POST https://a/v1/images HTTP/1.1", "host: a\r\n"),
        ];
        refuses_and_closes(&world, &requests, "misdirected", 421).await;
        let upgrade =
            |to: &str| host(POST, &format!("host: a\r\nconnection: upgrade\r\nupgrade: {to}\r\n"));
        let requests = [
            "CONNECT backend:80 HTTP/1.1\r\nhost: backend:80\r\n\r\n".to_owned(),
            host("TRACE /v1/models HTTP/1.1", "host: a\r\n"),
            upgrade("h2c"),
            upgrade("websocket"),
            upgrade("TLS/1.3"),
        ];
        refuses_and_closes(&world, &requests, "not_implemented", 501).await;
        untouched(&world);
        for (line, hosts, seen) in [
            ("POST http://A.test:80/v1/images?x=1 HTTP/1.1", "host: a.test\r\n", Some("a.test")),
            ("POST /v1/images?x=1 HTTP/1.1", "host: a.test:8080\r\n", Some("a.test:8080")),
            ("POST /v1/images?x=1 HTTP/1.0", "", None),
        ] {
            let mut peer = Peer::connect(world.gateway()).await;
            peer.send(host(line, hosts)).await;
            assert_eq!(peer.answer().await.status, 200, "{line}");
            assert_eq!(world.backend.last().target, "/v1/images?x=1");
            assert_eq!(world.backend.last().header("x-forwarded-host"), seen);
        }
    });
}

#[test]
fn f71_a_head_that_is_too_large_is_refused_before_it_is_kept() {
    run(async {
        let world = world();
        let padded = |bytes: usize| {
            let empty = head("GET /v1/models HTTP/1.1", "x: \r\n").len();
            head("GET /v1/models HTTP/1.1", &format!("x: {}\r\n", "y".repeat(bytes - empty)))
        };
        let many = |count: usize| head("GET /v1/models HTTP/1.1", &"x: y\r\n".repeat(count - 2));
        let requests = [
            padded((64 << 10) + 1),
            padded(1 << 20),
            many(101),
            head(&format!("GET /v1/models?{} HTTP/1.1", "x".repeat(70_000)), ""),
        ];
        refuses_and_closes(&world, &requests, "headers_too_large", 431).await;
        untouched(&world);
        for request in [padded(64 << 10), many(100)] {
            let mut peer = Peer::connect(world.gateway()).await;
            peer.send(&request).await;
            assert_eq!(peer.answer().await.status, 200);
        }
    });
}

#[test]
fn f64_a_refusal_reaches_a_client_that_is_still_sending() {
    run(async {
        let world = world();
        let told = "content-length: 900000\r\n";
        let piece = vec![b' '; 30_000];
        for (line, lines, status, code) in [
            ("POST /nowhere HTTP/1.1", told, 404, "unknown_route"),
            ("POST /v1/small HTTP/1.1", told, 413, "body_too_large"),
            (
                "POST /v1/images HTTP/1.1",
                "tollgate-user: bob\r\ncontent-length: 900000\r\n",
                403,
                "key_not_allowed",
            ),
            (
                "POST /v1/images HTTP/1.1",
                "content-length: 900000\r\ntransfer-encoding: chunked\r\n",
                400,
                "bad_request",
            ),
        ] {
            let mut peer = Peer::connect(world.gateway()).await;
            peer.send(head(line, lines)).await;
            // All of it is taken, without a reset, and none of it for a request.
            for _ in 0..30 {
                assert!(peer.send(&piece).await, "{line}: reset");
            }
            peer.answer().await.refused(status, code);
            peer.ends().await;
        }
        // What is small is read, and the connection serves the next request.
        let mut peer = Peer::connect(world.gateway()).await;
        peer.send(head("POST /nowhere HTTP/1.1", "content-length: 10\r\n") + "0123456789").await;
        peer.answer().await.refused(404, "unknown_route");
        untouched(&world);
        peer.send(head("GET /v1/models HTTP/1.1", "")).await;
        assert_eq!(peer.answer().await.status, 200);
    });
}
