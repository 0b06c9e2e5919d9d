//! Streams that are held a slice at a time, and what the gateway sets behind the events of a
//! stream: D29, D30, f03, f82.

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::upstreams::{begin, read_until};
use super::usage::{
    DONE, SSE, Step, charge, chunk, event, gzip, head, is, metered_for, missing, now,
};
use crate::support::world::micro;
use crate::support::{Access, Call, Org, World, run, until};

/// Slices of five, of what the events tell.
pub const FIVE: &str =
    "hold = \"slice\"\nquantity = { const = 5 }\nusage = { sse_json = \"/usage/n\" }";

pub fn told(n: u32) -> String {
    format!("data: {{\"usage\":{{\"n\":{n}}}}}\n\n")
}

/// Events that tell so, each after the test said go on, and the end.
pub fn counting(from: u32, to: u32) -> Vec<Step> {
    let each = (from..=to).flat_map(|n| [Step::Wait, event(&n.to_string())]);
    [head(SSE)].into_iter().chain(each).chain([Step::Wait, chunk(DONE), Step::End("")]).collect()
}

pub async fn open(world: &World, path: &str) -> TcpStream {
    begin(world, &format!("POST {path}"), "content-length: 0\r\n").await
}

/// What is held of alice's seat.
fn held(world: &World) -> Value {
    world.balance("alice")["seat"]["held"].clone()
}

/// The data of the last event of a name, and what came before it.
#[track_caller]
fn last_event<'a>(text: &'a str, name: &str) -> (&'a str, Value) {
    let (before, rest) = text.rsplit_once(&format!("event: {name}\n")).expect(text);
    let data = rest.strip_prefix("data: ").and_then(|rest| rest.split_once("\n\n")).expect(text);
    (before, serde_json::from_str(data.0).unwrap())
}

/// The body of a chunked answer: its chunks put together, and whether it came to its end.
fn unchunked(text: &str) -> (String, bool) {
    let (mut body, mut rest) = (String::new(), text.split_once("\r\n\r\n").expect(text).1);
    while let Some((size, more)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (body, true);
        }
        let Some(piece) = more.get(..size) else { break };
        body += piece;
        rest = &more[size + 2..];
    }
    (body, false)
}

/// While it is open, a charge says what is held by now, and its legs cover that.
#[track_caller]
fn holds(charge: &Value, held: u32) {
    is(charge, "held", &held.to_string(), &json!([]));
    assert_eq!(charge["quantity"], charge["cost"], "{charge}");
    let covers = charge["legs"].as_array().unwrap().iter().map(|leg| micro(&leg["covers"]));
    assert_eq!(covers.sum::<u64>(), micro(&charge["cost"]), "{charge}");
}

pub async fn read_on(stream: &mut TcpStream, got: &mut String, text: &str) {
    if !got.contains(text) {
        *got += &read_until(stream, text).await;
    }
}

#[test]
fn d29_f82_a_stream_is_topped_up_slice_by_slice_and_exact_at_its_end() {
    run(async {
        let org = Org::new().user("alice", "20", Access::None);
        let (world, backend, go) =
            metered_for(&org, vec![("chat", counting(1, 12))], &[("/chat", FIVE)]);
        let mut stream =
            begin(&world, "POST /chat", "accept-encoding: gzip\r\ncontent-length: 0\r\n").await;
        let mut got = String::new();
        for n in 1..=12 {
            go.send(()).unwrap();
            // Each event passes when it has come; nothing waits for the next one.
            read_on(&mut stream, &mut got, &told(n)).await;
            let slices = n.div_ceil(5);
            assert_eq!(held(&world), (5 * slices).to_string(), "{n}");
            holds(&now(&world, &backend), 5 * slices);
        }
        assert!(got.contains("state=held, cost=\"5\""), "{got}");
        assert!(!backend.heads()[0].contains("accept-encoding"), "events are set among its own");
        go.send(()).unwrap();
        read_on(&mut stream, &mut got, "0\r\n\r\n").await;
        is(&now(&world, &backend), "captured", "12", &json!([]));
        assert_eq!(now(&world, &backend)["quantity"], "12");
        let whole: String = (1..=12).map(told).collect();
        assert_eq!(unchunked(&got), (whole + DONE, true));
        world.settled().await;
        world.seat("alice", "12", "8", "0");
    });
}

#[test]
fn d30_f82_a_stream_that_nothing_can_pay_ends_with_an_event_and_exact_books() {
    run(async {
        let org = Org::new().user("alice", "7", Access::None);
        let counted = "hold = \"slice\"\nprogress = \"events\"\nquantity = { const = 3 }";
        let silent = "hold = \"slice\"\nprogress = \"events\"\nquantity = { const = 3 }\n\
                      usage = { sse_json = \"/usage/x\" }";
        let told_too = "hold = \"slice\"\nquantity = { const = 3 }\ncompat = \"openai\"\n\
                        exhausted_status = 429\nusage = { sse_json = \"/usage/n\" }";
        let routes = [("/counted", counted), ("/silent", silent), ("/told", told_too)];
        let plays = || {
            let mut steps = vec![head(SSE)];
            steps.extend((1..=8).map(|n| event(&n.to_string())));
            steps.push(Step::Closed);
            steps
        };
        for (path, cost, flags) in [
            // The eighth event was not delivered, and is not charged.
            ("/counted", "7", json!([])),
            ("/silent", "7", missing()),
            // What was told was used, and nobody has a credit for it.
            ("/told", "8", json!([])),
        ] {
            let name = path.trim_start_matches('/');
            let plays = vec![(
                ["counted", "silent", "told"].into_iter().find(|n| *n == name).unwrap(),
                plays(),
            )];
            let (world, backend, _go) = metered_for(&org, plays, &routes);
            let id = "x-request-id: stream-1\r\ncontent-length: 0\r\n";
            let mut stream = begin(&world, &format!("POST {path}"), id).await;
            let got = read_until(&mut stream, "0\r\n\r\n").await;
            let (body, ended) = unchunked(&got);
            let (before, data) = last_event(&body, "error");
            assert!(ended && body.ends_with("}\n\n"), "{body}");
            // Two slices of three, and what is left of the seat.
            assert_eq!(before, (1..=7).map(told).collect::<String>(), "all that is paid for");
            let problem = if path == "/told" { &data["error"]["problem"] } else { &data };
            let status = if path == "/told" { 429 } else { 402 };
            assert_eq!(problem["code"], "seat_exhausted", "{data}");
            assert_eq!(problem["status"], status, "{data}");
            assert_eq!(problem["request_id"], "stream-1", "{data}");
            assert_eq!(problem["required"]["credits"], "1", "{data}");
            assert_eq!(problem["available"]["credits"], "0", "{data}");
            if path == "/told" {
                assert_eq!(data["error"]["type"], "insufficient_quota", "{data}");
            }
            // Whoever reads the end was charged before.
            is(&now(&world, &backend), "captured", cost, &flags);
            until("the backend's connection is closed", || (backend.closed() == 1).then_some(()))
                .await;
            world.settled().await;
            world.seat("alice", "7", "0", "0");
            let owed = if path == "/told" { "1" } else { "0" };
            assert_eq!(world.balance("alice")["overdraft"], owed);
            assert_eq!(world.metric("tollgate_refusals_total", &["seat_exhausted"]), 1.0);
            assert_eq!(world.metric("tollgate_requests_total", &["captured", path]), 1.0);
            assert_eq!(world.metric("tollgate_requests_total", &["refused", path]), 0.0);
            // The connection goes on.
            use tokio::io::AsyncWriteExt;
            stream.write_all(b"GET /v1/nowhere HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            read_until(&mut stream, "HTTP/1.1 401").await;
            world.verify();
        }
    });
}

#[test]
fn f03_f82_what_the_last_slice_knew_is_charged_when_the_gateway_is_killed() {
    run(async {
        let org =
            Org::new().pool("100").user("alice", "7", Access::Pool).user("bob", "7", Access::Pool);
        let doubt = format!("{FIVE}\nin_doubt = \"capture\"");
        let both = (1..=5).flat_map(|n| {
            let text = format!("data: {{\"usage\":{{\"in\":3,\"n\":{n}}}}}\n\n");
            [Step::Wait, chunk(text)]
        });
        let both: Vec<Step> = [head(SSE)].into_iter().chain(both).chain([Step::Closed]).collect();
        let meters = "quantity = { const = 1 }\n\
                      [[route]]\npath = \"/meters\"\nupstream = \"told\"\nfeature = \"chat\"\n\
                      hold = \"slice\"\n\
                      [[route.meter]]\nname = \"in\"\nquantity = { const = 6 }\n\
                      usage = { sse_json = \"/usage/in\" }\n\
                      [[route.meter]]\nname = \"out\"\nquantity = { const = 3 }\n\
                      usage = { sse_json = \"/usage/n\" }";
        let plays = vec![
            ("first", counting(1, 12)),
            ("doubt", counting(1, 12)),
            ("second", counting(1, 12)),
            ("third", counting(1, 12)),
            ("meters", both),
        ];
        let routes = [
            ("/first", FIVE),
            ("/doubt", &*doubt),
            ("/second", FIVE),
            ("/third", FIVE),
            ("/other", meters),
        ];
        for (path, events, state, cost, legs) in [
            // Nothing is known before the second slice but what the route says.
            ("/first", 4, "voided", "0", json!([])),
            ("/doubt", 5, "captured", "5", json!([["licence", "5"]])),
            ("/second", 9, "captured", "5", json!([["licence", "5"]])),
            // Five of the seat, two of the seat and three of the pool.
            ("/third", 12, "captured", "10", json!([["licence", "7"], ["pool", "1.5"]])),
            // Three in at a third, told, and three out at two thirds, delivered.
            ("/meters", 5, "captured", "3", json!([["licence", "3"]])),
        ] {
            let (mut world, backend, go) = metered_for(&org, plays.clone(), &routes);
            let mut stream = open(&world, path).await;
            let mut got = String::new();
            for n in 1..=events {
                go.send(()).unwrap();
                read_on(&mut stream, &mut got, &format!("\"n\":{n}}}")).await;
            }
            world.kill();
            for _ in 0..2 {
                world.start();
                let charge = now(&world, &backend);
                is(&charge, state, cost, &json!(["in_doubt"]));
                let kept = charge["legs"].as_array().unwrap().iter();
                let kept: Vec<_> = kept.map(|leg| [&leg["kind"], &leg["amount"]]).collect();
                assert_eq!(json!(kept), legs, "{path}");
                assert_eq!(held(&world), "0");
                world.verify();
                world.kill();
            }
            world.start();
        }
    });
}

#[test]
fn d25_d29_slices_are_split_over_seat_and_pool() {
    run(async {
        let org = Org::new().pool("3").user("alice", "7", Access::Pool);
        let (world, backend, go) =
            metered_for(&org, vec![("chat", counting(1, 14))], &[("/chat", FIVE)]);
        let mut stream = open(&world, "/chat").await;
        let mut got = String::new();
        for (n, drawn) in [(1, "0"), (2, "0"), (3, "0"), (4, "0"), (5, "0"), (6, "1.5")] {
            go.send(()).unwrap();
            read_on(&mut stream, &mut got, &told(n)).await;
            assert_eq!(world.pool()["held"], drawn, "{n}");
            holds(&now(&world, &backend), if n > 5 { 10 } else { 5 });
        }
        // The third slice is 2.5 Operations, and 1.5 are left: so many events as they pay, and no
        // more than each needs.
        let drawn = ["1.5", "1.5", "1.5", "1.5", "2", "2.5", "3"];
        for (n, drawn) in (7..=13).zip(drawn) {
            go.send(()).unwrap();
            read_on(&mut stream, &mut got, &told(n)).await;
            assert_eq!(world.pool()["held"], drawn, "{n}");
        }
        go.send(()).unwrap();
        read_on(&mut stream, &mut got, "0\r\n\r\n").await;
        let (body, _) = unchunked(&got);
        assert_eq!(last_event(&body, "error").1["code"], "pool_exhausted");
        let charge = charge(&world, &backend).await;
        is(&charge, "captured", "14", &json!([]));
        world.seat("alice", "7", "0", "3");
        assert_eq!(world.pool()["available"], "0");
        assert_eq!(world.balance("alice")["overdraft"], "1");
    });
}

#[test]
fn d24_f82_streams_at_once_share_the_last_credits_and_spend_no_more() {
    run(async {
        let org = Org::new().user("alice", "25", Access::None);
        let steps: Vec<Step> = [head(SSE)]
            .into_iter()
            .chain([chunk("data: {}\n\n"), Step::Wait])
            .chain((1..8).map(|_| chunk("data: {}\n\n")))
            .chain([chunk(DONE), Step::End("")])
            .collect();
        let one = "hold = \"slice\"\nprogress = \"events\"\nquantity = { const = 1 }";
        let (world, _backend, go) = metered_for(&org, vec![("chat", steps)], &[("/chat", one)]);
        let mut begun = Vec::new();
        for _ in 0..10 {
            let mut stream = open(&world, "/chat").await;
            begun.push((read_until(&mut stream, "data: {}\n\n").await, stream));
        }
        let mut streams = JoinSet::new();
        for (got, mut stream) in begun {
            streams.spawn(async move { got + &read_until(&mut stream, "0\r\n\r\n").await });
            go.send(()).unwrap();
        }
        let answers = streams.join_all().await;
        let events = |answer: &String| answer.matches("data: {}\n").count();
        let delivered: usize = answers.iter().map(events).sum();
        assert_eq!(delivered, 25, "each credit is an event");
        let stopped = answers.iter().filter(|answer| answer.contains("event: error\n")).count();
        let done = answers.iter().filter(|answer| answer.contains(DONE)).count();
        assert!(stopped > 0 && stopped + done == 10, "{stopped} {done}");
        world.settled().await;
        world.seat("alice", "25", "0", "0");
        assert_eq!(world.balance("alice")["overdraft"], "0");
    });
}

#[test]
fn d30_the_receipt_is_the_last_event_where_a_route_says_so() {
    run(async {
        let org = Org::new().pool("100").user("alice", "40", Access::Pool);
        const WHOLE: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                             content-length: 44\r\n\r\ndata: {\"usage\":{\"n\":2}}\n\ndata: [DONE]\n\n: bye";
        const PLAIN: &str = "HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{\"usage\":{\"n\":2}}";
        let slow = vec![head(SSE), event("3"), Step::Wait, chunk("data: [DONE]\n"), Step::End("")];
        let plays = vec![
            ("whole", vec![Step::Whole(WHOLE)]),
            ("plain", vec![Step::Whole(PLAIN)]),
            ("slow", slow),
            ("slices", counting(1, 3)),
        ];
        let tells = "sse_receipt = true\nquantity = { const = 7 }\n\
                     usage = { json = \"/usage/n\", sse_json = \"/usage/n\" }";
        let slices = format!("sse_receipt = true\n{FIVE}");
        let routes =
            [("/whole", tells), ("/plain", tells), ("/slow", tells), ("/slices", &*slices)];
        let (world, backend, go) = metered_for(&org, plays, &routes);
        let mut left = 40;
        for (path, cost, before) in [
            ("/whole", 2, "data: {\"usage\":{\"n\":2}}\n\ndata: [DONE]\n\n: bye\n\n".to_owned()),
            ("/slow", 3, told(3) + "data: [DONE]\n\n"),
            ("/slices", 3, told(1) + &told(2) + &told(3) + DONE),
        ] {
            for _ in 0..4 {
                go.send(()).unwrap();
            }
            let call = Call::post(path, "").user("alice").header("idempotency-key", path);
            let answer = world.client().await.send(&call).await;
            let body = String::from_utf8(answer.is(200).body.to_vec()).unwrap();
            let (came, receipt) = last_event(&body, "tollgate.receipt");
            assert_eq!(came, before, "{path}");
            left -= cost;
            let charge = now(&world, &backend);
            is(&charge, "captured", &cost.to_string(), &json!([]));
            let expected = json!({
                "charge": charge["charge"],
                "state": "captured",
                "cost": cost.to_string(),
                "seat": cost.to_string(),
                "pool": "0",
                "overage": "0",
                "seat-remaining": left.to_string(),
                "pool-remaining": "100",
                "resets": charge_reset(&answer.receipt()["resets"]),
                "rate-card": "2026-11",
            });
            assert_eq!(receipt, expected, "{path}");
            // What is kept for who asks again is what was sent.
            if path == "/whole" {
                let again = world.send(&call).await;
                assert_eq!(again.header("idempotency-replayed"), Some("true"));
                assert_eq!(again.is(200).body, answer.body);
            }
        }
        let answer = world.send(&Call::post("/plain", "").user("alice")).await;
        assert_eq!(answer.is(200).body, "{\"usage\":{\"n\":2}}");
        assert_eq!(answer.header("content-length"), Some("17"));
        world.settled().await;
    });
}

fn charge_reset(resets: &str) -> Value {
    json!(resets.trim_matches('"'))
}

#[test]
fn d30_a_stream_that_was_stopped_has_its_receipt_behind_the_error() {
    run(async {
        let org = Org::new().user("alice", "7", Access::None);
        let mut steps = vec![head(SSE)];
        steps.extend((1..=8).map(|n| event(&n.to_string())));
        steps.push(Step::Closed);
        let route = format!("sse_receipt = true\n{FIVE}");
        let (world, _backend, _go) = metered_for(&org, vec![("chat", steps)], &[("/chat", &route)]);
        let mut stream = open(&world, "/chat").await;
        let got = read_until(&mut stream, "0\r\n\r\n").await;
        let (body, _) = unchunked(&got);
        let (before, receipt) = last_event(&body, "tollgate.receipt");
        let (events, problem) = last_event(before, "error");
        assert_eq!(events, (1..=7).map(told).collect::<String>());
        assert_eq!(problem["code"], "seat_exhausted");
        // Eight were told, and there was no credit for the eighth.
        let of = |key: &str| receipt[key].clone();
        assert_eq!(json!([of("state"), of("cost"), of("seat")]), json!(["captured", "8", "7"]));
        assert_eq!(of("seat-remaining"), "0");
        world.settled().await;
    });
}

#[test]
fn d33_f82_a_client_that_left_is_topped_up_for_as_long_as_something_can_pay() {
    run(async {
        let org = Org::new().user("alice", "13", Access::None);
        let cancels = format!("{FIVE}\non_disconnect = \"cancel\"");
        let endless = {
            let mut steps = vec![head(SSE), event("1"), Step::Wait];
            steps.extend((2..=100).map(|n| event(&n.to_string())));
            steps.push(Step::Closed);
            steps
        };
        let ends = {
            let mut steps = vec![head(SSE), event("1"), Step::Wait];
            steps.extend((2..=9).map(|n| event(&n.to_string())));
            steps.extend([chunk(DONE), Step::End("")]);
            steps
        };
        let plays = vec![("ends", ends), ("endless", endless.clone()), ("cancels", endless)];
        let routes = [("/ends", FIVE), ("/endless", FIVE), ("/cancels", &*cancels)];
        for (path, cost) in [("/ends", "9"), ("/endless", "14"), ("/cancels", "1")] {
            let (world, backend, go) = metered_for(&org, plays.clone(), &routes);
            let mut stream = open(&world, path).await;
            read_until(&mut stream, &told(1)).await;
            drop(stream);
            until("the client's connection is gone", || {
                (world.metric("tollgate_connections", &[]) == 0.0).then_some(())
            })
            .await;
            go.send(()).unwrap();
            is(&charge(&world, &backend).await, "captured", cost, &json!([]));
            let stopped = if path == "/endless" { 1.0 } else { 0.0 };
            assert_eq!(world.metric("tollgate_refusals_total", &["seat_exhausted"]), stopped);
            // Thirteen could be paid, and one more was told.
            assert_eq!(world.balance("alice")["overdraft"], stopped.to_string());
            world.verify();
        }
    });
}

#[test]
fn f74_f82_what_cannot_be_appended_to_breaks_off_visibly_or_is_settled_as_anywhere() {
    run(async {
        let org = Org::new().user("alice", "12", Access::None);
        let events: Vec<Vec<u8>> = (1..=8).map(|n| told(n).into_bytes()).collect();
        let parts: Vec<&[u8]> = events.iter().map(Vec::as_slice).collect();
        let mut coded = vec![head("content-type: text/event-stream\r\ncontent-encoding: gzip\r\n")];
        coded.extend(gzip(&parts).into_iter().flat_map(|piece| [Step::Wait, Step::Chunk(piece)]));
        coded.push(Step::Closed);
        let lines = vec![
            head("content-type: application/x-ndjson\r\n"),
            chunk("{\"usage\":{\"n\":4}}\n"),
            Step::Wait,
            chunk("{\"usage\":{\"n\":6}}\n"),
            Step::End(""),
        ];
        let usage = "hold = \"slice\"\nquantity = { const = 3 }\n\
                     usage = { sse_json = \"/usage/n\", ndjson_json = \"/usage/n\" }";
        let five =
            "hold = \"slice\"\nquantity = { const = 3 }\nusage = { sse_json = \"/usage/n\" }";
        let plays = vec![("lines", lines), ("coded", coded)];
        let routes = [("/lines", usage), ("/coded", five)];
        let (world, backend, go) = metered_for(&org, plays, &routes);
        // Lines are no events: nothing ends them, and what exceeds the hold is paid behind it.
        let mut stream = open(&world, "/lines").await;
        let mut got = read_until(&mut stream, "{\"n\":4}}\n").await;
        assert_eq!(held(&world), "3");
        go.send(()).unwrap();
        read_on(&mut stream, &mut got, "0\r\n\r\n").await;
        is(&now(&world, &backend), "captured", "6", &json!([]));
        // Six credits are left for two slices of three.
        let mut stream = open(&world, "/coded").await;
        for _ in 0..7 {
            go.send(()).unwrap();
        }
        let mut got = Vec::new();
        let read = async { while stream.read_buf(&mut got).await.is_ok_and(|count| count > 0) {} };
        tokio::time::timeout(crate::support::PATIENCE, read).await.expect("it breaks off");
        assert!(!got.ends_with(b"0\r\n\r\n"), "it is no end");
        let charge = charge(&world, &backend).await;
        assert_eq!((&charge["state"], &charge["cost"]), (&json!("captured"), &json!("7")));
        // The seventh was told, and nobody had a credit for it.
        assert_eq!(world.balance("alice")["overdraft"], "1");
        world.verify();
    });
}
