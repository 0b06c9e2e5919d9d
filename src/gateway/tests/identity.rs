//! Who asks, and what is refused before anything is priced.

use super::bench::*;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn refused(
    bench: &Bench,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (u16, String) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = bench.send(request.body(Full::<Bytes>::default()).unwrap()).await;
    (answer.status.as_u16(), answer.code())
}

const KEY: (&str, &str) = ("authorization", STUDIO);

#[tokio::test]
async fn refusals_come_in_the_contracts_order() {
    let bench = Bench::new().await;
    let alice = ("tollgate-user", "alice");
    let nobody = ("tollgate-user", "nobody");
    let wrong = ("authorization", "Bearer tg_wrong_0123456789abcdef");
    for (method, path, headers, expected) in [
        ("POST", "/v1//x", &[][..], (400, "bad_request")),
        ("POST", "/v1/x", &[KEY, KEY, alice], (400, "bad_request")),
        ("POST", "/v1/x", &[KEY, alice, alice], (400, "bad_request")),
        ("POST", "/v1/x", &[KEY, alice, ("upgrade", "h2c")], (501, "not_implemented")),
        ("POST", "/v1/x", &[], (401, "unauthenticated")),
        ("POST", "/v1/x", &[wrong, alice], (401, "unauthenticated")),
        ("POST", "/v1/x", &[("authorization", "Basic Zm9v")], (401, "unauthenticated")),
        ("POST", "/v1/x", &[KEY], (400, "user_required")),
        ("POST", "/v1/x", &[KEY, nobody], (403, "unknown_user")),
        ("POST", "/v1/x", &[KEY, ("tollgate-user", "Alice")], (403, "unknown_user")),
        ("POST", "/v1/x", &[KEY, ("tollgate-user", "carl")], (403, "user_suspended")),
        (
            "POST",
            "/v1/x",
            &[("tollgate-key", "tg_doraonly_0123456789abcd"), alice],
            (403, "key_not_allowed"),
        ),
        (
            "POST",
            "/v1/x",
            &[("tollgate-key", "tg_alice_0123456789abcdef0"), ("tollgate-user", "dora")],
            (403, "key_not_allowed"),
        ),
        (
            "POST",
            "/v1/x",
            &[("tollgate-key", "tg_robot_0123456789abcdef0"), alice],
            (403, "key_not_allowed"),
        ),
        ("POST", "/v1/x", &[KEY, alice], (404, "unknown_route")),
        ("GET", "/v1/images", &[KEY, alice], (405, "method_not_allowed")),
        ("POST", "/v1/images", &[KEY, alice], (400, "unquotable")),
        ("GET", "/.tollgate/v1/nothing", &[KEY, alice], (404, "unknown_route")),
        ("GET", "/.tollgate/v1/me/credits", &[], (401, "unauthenticated")),
        ("POST", "/.tollgate/v1/me/credits", &[KEY, alice], (405, "method_not_allowed")),
    ] {
        let got = refused(&bench, method, path, headers).await;
        assert_eq!((got.0, got.1.as_str()), expected, "{method} {path} {headers:?}");
    }
    assert!(bench.backend.seen().is_empty());
}

#[tokio::test]
async fn a_users_key_needs_no_header_and_another_header_leaves_authorization_to_the_backend() {
    let bench = Bench::new().await;
    bench.backend.answers("200 OK", "x");
    let request = Request::get("/v1/models")
        .header("tollgate-key", "tg_alice_0123456789abcdef0")
        .header("authorization", "Bearer the-backends-own");
    let answer = bench.send(request.body(Full::default()).unwrap()).await;
    assert_eq!(answer.status, 200);
    let seen = &bench.backend.seen()[0];
    assert_eq!(seen.header("authorization"), ["Bearer the-backends-own"]);
    assert_eq!(seen.header("tollgate-user"), ["alice"]);
    assert!(seen.header("tollgate-key").is_empty());
}

#[tokio::test]
async fn f60_a_key_that_is_shown_in_both_headers_reaches_no_backend() {
    let bench = Bench::new().await;
    bench.backend.answers("200 OK", "x");
    let request = get("/v1/models")
        .header("tollgate-user", "alice")
        .header("tollgate-key", STUDIO.trim_start_matches("Bearer "));
    let answer = bench.send(request.body(Full::default()).unwrap()).await;
    assert_eq!(answer.status, 200);
    assert!(bench.backend.seen()[0].header("authorization").is_empty());
}

#[tokio::test]
async fn f60_f61_nobody_speaks_for_the_gateway_in_either_direction() {
    let bench = Bench::new().await;
    bench.backend.answers(
        "200 OK\r\ntollgate-receipt: forged\r\nTollgate_User: x\r\nRateLimit: forged\r\n\
         Keep-Alive: 5\r\nConnection: x-secret\r\nX-Secret: 1\r\nX-Kept: 1",
        "x",
    );
    let request = get("/v1/models")
        .header("tollgate-user", "alice")
        .header("tollgate_user", "mallory")
        .header("tollgate.user", "mallory")
        .header("tollgate~org", "mallory")
        .header("tollgate-charge", "forged")
        .header("connection", "tollgate-user, x-hop")
        .header("x-hop", "1")
        .header("te", "trailers")
        .header("x-forwarded-for", "6.6.6.6")
        .header("forwarded", "for=6.6.6.6")
        .header("x-request-id", "mine-1");
    let answer = bench.send(request.body(Full::default()).unwrap()).await;
    let seen = &bench.backend.seen()[0];
    assert_eq!(seen.header("tollgate-user"), ["alice"]);
    assert_eq!(seen.header("x-forwarded-for"), ["127.0.0.1"]);
    for name in ["tollgate_user", "tollgate-charge", "x-hop", "te", "connection", "forwarded"] {
        assert!(seen.header(name).is_empty(), "{name}");
    }
    assert!(!seen.head.contains("mallory"), "{}", seen.head);
    assert_eq!(seen.header("x-request-id"), ["mine-1"]);
    assert_eq!(answer.header("x-request-id"), "mine-1");
    assert_eq!(answer.header("x-kept"), "1");
    for name in ["tollgate-receipt", "tollgate_user", "ratelimit", "keep-alive", "x-secret"] {
        assert!(!answer.headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn a_change_of_the_directory_counts_from_the_next_request_of_a_kept_connection() {
    let bench = Bench::new().await;
    bench.backend.answers("200 OK", "x");
    let mut stream = bench.connect().await;
    let text = format!(
        "GET /v1/models HTTP/1.1\r\nhost: gate\r\nauthorization: {STUDIO}\r\n\
         tollgate-user: alice\r\n\r\n"
    );
    let mut statuses = Vec::new();
    for _ in 0..3 {
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut got = [0; 4096];
        let read = stream.read(&mut got).await.unwrap();
        statuses.push(String::from_utf8_lossy(&got[9..read.min(12)]).into_owned());
        if statuses.len() == 2 {
            let mut next = crate::directory::snapshot::Snapshot::clone(&bench.worker.live.load());
            next.keys.clear();
            bench.worker.live.swap(next);
        }
    }
    assert_eq!(statuses, ["200", "200", "401"]);
}

#[tokio::test]
async fn a_request_id_that_is_not_plain_is_replaced() {
    let bench = Bench::new().await;
    bench.backend.answers("200 OK", "x");
    for id in ["a b", &"x".repeat(129), "é"] {
        let request = get("/v1/models").header("tollgate-user", "alice");
        let request = request.header("x-request-id", id.as_bytes());
        let answer = bench.send(request.body(Full::default()).unwrap()).await;
        assert_eq!(answer.header("x-request-id").len(), 36);
    }
}

#[tokio::test]
async fn d11_users_see_their_own_balance_and_their_own_charges() {
    let bench = Bench::new().await;
    bench.backend.answers("200 OK", "x");
    let receipt = bench.post("/v1/images", "dora", r#"{"n": 13}"#).await.receipt();
    let request = get("/.tollgate/v1/me/credits").header("tollgate-user", "dora");
    let answer = bench.send(request.body(Full::default()).unwrap()).await;
    let expected = serde_json::json!({
        "org": "acme", "user": "dora",
        "cycle": {"label": "2026-11-01", "start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"},
        "seat": {"granted": "3", "held": "0", "captured": "3", "available": "0", "licences": [
            {"id": "lic-3", "plan": "small", "granted": "3", "held": "0", "captured": "3", "available": "0"}
        ]},
        "pool": {"access": true, "missing": [], "limit": "1", "drawn": "0.2"},
        "overdraft": "0"
    });
    assert_eq!(answer.json(), expected);

    let path = format!("/.tollgate/v1/charges/{}", receipt["charge"]);
    for (secret, expected) in [
        ("tg_alice_0123456789abcdef0", 404),
        ("tg_robot_0123456789abcdef0", 404),
        ("tg_doraonly_0123456789abcd", 404),
        ("tg_studio_0123456789abcdef", 200),
    ] {
        let request = Request::get(&path).header("tollgate-key", secret);
        let answer = bench.send(request.body(Full::default()).unwrap()).await;
        assert_eq!(answer.status, expected, "{secret}");
    }
    let request = Request::get(&path).header("tollgate-key", "tg_doraonly_0123456789abcd");
    let request = request.header("tollgate-user", "dora").body(Full::default()).unwrap();
    assert_eq!(bench.send(request).await.json()["legs"][1]["kind"], "pool");
}

#[tokio::test]
async fn d11_a_service_key_that_names_a_user_sees_that_users_charges_only() {
    let bench = Bench::new().await;
    bench.backend.answers("200 OK", "x");
    let charge = bench.post("/v1/images", "alice", "{}").await.receipt()["charge"].clone();
    let path = format!("/.tollgate/v1/charges/{charge}");
    for (user, expected) in [(Some("dora"), 404), (Some("alice"), 200), (None, 200)] {
        let mut request = get(&path);
        if let Some(user) = user {
            request = request.header("tollgate-user", user);
        }
        let answer = bench.send(request.body(Full::default()).unwrap()).await;
        assert_eq!(answer.status, expected, "{user:?}");
    }
    // Hers, whichever key made it.
    let request = Request::get(&path).header("tollgate-key", "tg_alice_0123456789abcdef0");
    assert_eq!(bench.send(request.body(Full::default()).unwrap()).await.status, 200);
}

/// Every kind of request that the gateway answers itself for a key.
fn own_requests() -> [Request<Full<Bytes>>; 3] {
    let charge = "/.tollgate/v1/charges/01a1f8d3-ea00-7261-9c5f-0123456789ab";
    let alices = |path| get(path).header("tollgate-user", "alice");
    [alices("/.tollgate/v1/me/credits"), alices(charge), get(charge)]
        .map(|request| request.body(Full::default()).unwrap())
}

#[tokio::test]
async fn what_the_gateway_answers_itself_has_its_place_in_flight() {
    let bench = Bench::with("[limits]\nmax_in_flight = 1\n").await;
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx".to_vec();
    bench.backend.plays([Step::Wait, Step::Send(answer)]);
    let (first, ()) = tokio::join!(bench.post("/v1/models", "alice", ""), async {
        bench.until("the first is in flight", || !bench.backend.seen().is_empty()).await;
        for request in own_requests() {
            assert_eq!(bench.send(request).await.code(), "too_many_in_flight");
        }
        bench.backend.go_on();
    });
    assert_eq!(first.status, 200);
    bench.until("the place is free again", || bench.worker.limits.in_flight() == 0).await;
    let statuses = own_requests().map(|request| bench.send(request));
    for (answer, expected) in statuses.into_iter().zip([200, 404, 404]) {
        assert_eq!(answer.await.status, expected);
        bench.until("its place is free again", || bench.worker.limits.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn what_the_gateway_answers_itself_counts_against_the_rate() {
    for at in 0..own_requests().len() {
        let bench = Bench::with("[limits]\nper_user = { rps = 1 }\n").await;
        let mut limited = false;
        // More than a second's worth, however slow the machine is.
        for _ in 0..1000 {
            let [a, b, c] = own_requests();
            let answer = bench.send([a, b, c].into_iter().nth(at).unwrap()).await;
            limited = answer.status == 429;
            if limited {
                break;
            }
        }
        assert!(limited, "{at}");
    }
}

#[tokio::test]
async fn limits_refuse_with_the_time_to_wait() {
    let bench = Bench::with("[limits]\nper_user = { rps = 1, burst = 2 }\n").await;
    bench.backend.answers("200 OK", "x");
    for _ in 0..2 {
        assert_eq!(bench.post("/v1/models", "alice", "").await.status, 200);
    }
    let answer = bench.post("/v1/models", "alice", "").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (429, "rate_limited"));
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(bench.post("/v1/models", "dora", "").await.status, 200);
}

#[tokio::test]
async fn requests_in_flight_are_bounded_until_their_responses_are_sent() {
    let bench = Bench::with("[limits]\nmax_in_flight = 1\n").await;
    let half = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na".to_vec();
    bench.backend.plays([Step::Send(half), Step::Wait, Step::Send(b"b".to_vec())]);
    let (first, second) = tokio::join!(bench.post("/v1/models", "alice", ""), async {
        bench.until("the first is in flight", || !bench.backend.seen().is_empty()).await;
        let second = bench.post("/v1/models", "alice", "").await;
        bench.backend.go_on();
        second
    });
    assert_eq!(second.code(), "too_many_in_flight");
    assert_eq!(&first.body[..], b"ab");
    bench.until("the place is free again", || bench.worker.limits.in_flight() == 0).await;
}

#[tokio::test]
async fn every_problem_has_its_page() {
    let bench = Bench::new().await;
    let request = Request::get("/.tollgate/problems/seat_exhausted").body(Full::default()).unwrap();
    let answer = bench.send(request).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.starts_with(b"`seat_exhausted`"));
    let request = Request::get("/.tollgate/problems/nonsense").body(Full::default()).unwrap();
    assert_eq!(bench.send(request).await.status, 401);
}
