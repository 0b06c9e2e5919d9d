//! Streams that are held a slice at a time, where they end otherwise than a stream should, and what
//! is none of them: D29, D30, D36, D38, f74, f82.

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::slices::{FIVE, counting, open, read_on, told};
use super::upstreams::read_until;
use super::usage::{SSE, Step, charge, chunk, event, gzip, head, is, metered_for, missing, now};
use crate::support::{Access, Call, Org, PATIENCE, run};

const PLAIN: &str = "HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{\"usage\":{\"n\":2}}";
const JSON: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
                    content-length: 17\r\n\r\n{\"usage\":{\"n\":2}}";

/// Of each leg what it covers, and what it took.
fn legs(charge: &Value) -> Value {
    let legs = charge["legs"].as_array().unwrap().iter();
    json!(legs.map(|leg| [&leg["kind"], &leg["covers"], &leg["amount"]]).collect::<Vec<_>>())
}

#[test]
fn d29_d30_what_is_no_stream_passes_as_it_is_wherever_streams_tell_usage() {
    run(async {
        let org = Org::new().user("alice", "100", Access::None);
        let tells = "sse_receipt = true\nquantity = { const = 5 }\n\
                     usage = { sse_json = \"/usage/n\" }";
        let both = format!("sse_receipt = true\n{FIVE}");
        // It goes on being sent after its first piece is there.
        let slow =
            vec![head("content-type: application/json\r\n"), chunk("{\"usage\":"), Step::Wait];
        let slow = slow.into_iter().chain([chunk("{\"n\":2}}"), Step::End("")]).collect();
        let plays = vec![
            ("plain", vec![Step::Whole(PLAIN)]),
            ("json", vec![Step::Whole(JSON)]),
            ("plain-slices", vec![Step::Whole(PLAIN)]),
            ("json-slices", vec![Step::Whole(JSON)]),
            ("slow", slow),
        ];
        let routes = [
            ("/plain", tells),
            ("/json", tells),
            ("/plain-slices", &*both),
            ("/json-slices", &*both),
            ("/slow", &*both),
        ];
        let (world, backend, go) = metered_for(&org, plays, &routes);
        for path in ["/plain", "/json", "/plain-slices", "/json-slices"] {
            let call = Call::post(path, "").user("alice").header("idempotency-key", path);
            let answer = world.client().await.send(&call).await;
            assert_eq!(answer.is(200).body, "{\"usage\":{\"n\":2}}", "{path}");
            assert_eq!(answer.header("content-length"), Some("17"), "{path}");
            is(&charge(&world, &backend).await, "captured", "5", &missing());
            // What is kept for who asks again is what was sent.
            let again = world.send(&call).await;
            assert_eq!(again.header("idempotency-replayed"), Some("true"), "{path}");
            assert_eq!(again.is(200).body, answer.body, "{path}");
            assert_eq!(again.header("content-length"), Some("17"), "{path}");
        }
        let mut stream = open(&world, "/slow").await;
        let mut got = read_until(&mut stream, "{\"usage\":\r\n").await;
        go.send(()).unwrap();
        read_on(&mut stream, &mut got, "0\r\n\r\n").await;
        assert!(got.ends_with("{\"n\":2}}\r\n0\r\n\r\n"), "{got}");
        is(&charge(&world, &backend).await, "captured", "5", &missing());
    });
}

#[test]
fn d36_d38_a_stream_that_outlasts_the_drain_is_charged_what_it_was_known_to_be() {
    run(async {
        let org = Org::new().pool("100").user("alice", "7", Access::Pool);
        let doubt = format!("{FIVE}\nin_doubt = \"capture\"");
        let observed = format!("{doubt}\nmode = \"observe\"");
        let plays =
            ["first", "doubt", "second", "third", "observed"].map(|name| (name, counting(1, 12)));
        let routes = [
            ("/first", FIVE),
            ("/doubt", &*doubt),
            ("/second", FIVE),
            ("/third", &*doubt),
            ("/observed", &*observed),
        ];
        let alone = Org::new().user("alice", "7", Access::None);
        // As after `kill -9` (f03).
        for (path, events, state, cost, kept) in [
            ("/first", 4, "voided", "0", json!([])),
            ("/doubt", 5, "captured", "5", json!([["licence", "5", "5"]])),
            ("/second", 9, "captured", "5", json!([["licence", "5", "5"]])),
            ("/third", 12, "captured", "10", json!([["licence", "7", "7"], ["pool", "3", "1.5"]])),
            ("/observed", 12, "captured", "10", json!([["licence", "7", "7"]])),
        ] {
            let org = if path == "/observed" { &alone } else { &org };
            let (mut world, backend, go) = metered_for(org, plays.to_vec(), &routes);
            world.edit(|text| text.replace("drain_timeout = \"10s\"", "drain_timeout = \"100ms\""));
            world.signal("HUP");
            world.logged(&["read again", "gateway.drain_timeout"]).await;
            let mut stream = open(&world, path).await;
            let mut got = String::new();
            for n in 1..=events {
                go.send(()).unwrap();
                read_on(&mut stream, &mut got, &told(n)).await;
            }
            world.terminate();
            assert_eq!(world.stopped().await.code(), Some(0));
            world.start();
            assert_eq!(world.metric("tollgate_in_doubt_total", &[]), 0.0, "nothing was left open");
            let charge = now(&world, &backend);
            let mut flags = vec!["in_doubt"];
            flags.extend((path == "/observed").then_some("would_refuse"));
            is(&charge, state, cost, &json!(flags));
            assert_eq!(legs(&charge), kept, "{path}");
            let uncovered = if path == "/observed" { json!("3") } else { Value::Null };
            assert_eq!(charge["uncovered"]["credits"], uncovered, "{path}");
            assert_eq!(world.balance("alice")["seat"]["held"], "0");
            world.verify();
        }
    });
}

#[test]
fn f82_of_a_slice_that_nothing_can_pay_no_more_is_held_than_the_event_needs() {
    run(async {
        let seat = |credits| Org::new().user("alice", credits, Access::None);
        // With access to a pool that has no term.
        let over = Org::new().no_term().user("alice", "18", Access::Pool);
        // A slice of ten is more than the eight that are left; half of it is not, and then a
        // quarter. Of the two that are left of twelve an eighth is paid at once.
        let by_steps = &[(1, "10"), (15, "15"), (17, "17.5"), (18, "18")][..];
        let at_once = &[(1, "10"), (11, "11.25"), (12, "12")][..];
        for (org, all, code, paid) in [
            (seat("18"), 18, "seat_exhausted", by_steps),
            (over, 18, "no_active_term", by_steps),
            (seat("12"), 12, "seat_exhausted", at_once),
        ] {
            let ten = "hold = \"slice\"\nquantity = { const = 10 }\n\
                       usage = { sse_json = \"/usage/n\" }";
            let events = paid.iter().map(|(n, _)| *n).chain([all + 2]);
            let steps = events.flat_map(|n: u32| [Step::Wait, event(&n.to_string())]);
            let steps = [head(SSE)].into_iter().chain(steps);
            let steps: Vec<Step> = steps.chain([Step::Closed]).collect();
            let (world, backend, go) = metered_for(&org, vec![("chat", steps)], &[("/chat", ten)]);
            let mut stream = open(&world, "/chat").await;
            let mut got = String::new();
            for (n, held) in paid {
                go.send(()).unwrap();
                read_on(&mut stream, &mut got, &told(*n)).await;
                assert_eq!(&world.balance("alice")["seat"]["held"], held, "{n}");
            }
            go.send(()).unwrap();
            read_on(&mut stream, &mut got, "0\r\n\r\n").await;
            assert!(got.contains("event: error\n") && !got.contains(&told(all + 2)), "{got}");
            assert!(got.contains(code), "{got}");
            assert!(got.contains("\"required\":{\"credits\":\"2\""), "{got}");
            // What the last event told was not delivered, and is not owed.
            let all = all.to_string();
            is(&charge(&world, &backend).await, "captured", &all, &json!([]));
            world.seat("alice", &all, "0", "0");
            assert_eq!(world.balance("alice")["overdraft"], "0");
            world.verify();
        }
    });
}

#[test]
fn f82_the_last_slice_is_used_up_to_its_last_event_with_few_records() {
    run(async {
        let org = Org::new().user("alice", "1000", Access::None);
        let events: String = (1..=1_010).map(told).collect();
        let steps = vec![head(SSE), chunk(events), Step::Closed];
        let route = "hold = \"slice\"\nquantity = { const = 600 }\n\
                     usage = { sse_json = \"/usage/n\" }";
        let (world, backend, _go) = metered_for(&org, vec![("chat", steps)], &[("/chat", route)]);
        let mut stream = open(&world, "/chat").await;
        let got = read_until(&mut stream, "0\r\n\r\n").await;
        assert!(got.contains(&told(1_000)) && !got.contains(&told(1_001)), "{got}");
        is(&charge(&world, &backend).await, "captured", "1000", &json!([]));
        world.seat("alice", "1000", "0", "0");
        // 400 events behind the first slice: each size is refused once, and paid once or twice.
        let asked = world.metric("tollgate_books_duration_seconds_count", &["hold"]);
        assert!((2.0..40.0).contains(&asked), "the books were asked {asked} times");
        world.verify();
    });
}

#[test]
fn f56_f82_a_number_that_is_an_amount_is_believed_and_not_owed_where_it_stops_a_stream() {
    run(async {
        let org = Org::new().user("alice", "20", Access::None);
        let counted = format!("{FIVE}\nprogress = \"events\"");
        let sum = format!("{FIVE}\npick = \"sum\"");
        let zero = [head(SSE), event("0")].into_iter();
        let zero = zero.chain((1..=9).map(|_| chunk("data: {}\n\n")));
        let zero = zero.chain([event("300000000"), Step::Closed]).collect();
        let summed = [2, 3].map(|n: u32| event(&n.to_string()));
        let summed = [head(SSE)].into_iter().chain(summed).chain([event("9000000000")]);
        let plays = vec![("zero", zero), ("summed", summed.chain([Step::Closed]).collect())];
        let routes = [("/zero", &*counted), ("/summed", &*sum)];
        // Ten were counted when what was told stopped it; five were held when it was too much.
        for (path, cost, left) in [("/zero", "10", "10"), ("/summed", "5", "15")] {
            let (world, backend, _go) = metered_for(&org, plays.clone(), &routes);
            let mut stream = open(&world, path).await;
            let got = read_until(&mut stream, "0\r\n\r\n").await;
            assert!(got.contains("event: error\n") && !got.contains("00000}"), "{got}");
            is(&charge(&world, &backend).await, "captured", cost, &json!([]));
            world.seat("alice", cost, left, "0");
            assert_eq!(world.balance("alice")["overdraft"], "0");
            assert_eq!(world.metric("tollgate_usage_unreadable_total", &[path]), 0.0);
            world.verify();
        }
    });
}

#[test]
fn f74_f82_a_stream_whose_progress_cannot_be_read_is_broken_off() {
    run(async {
        let org = Org::new().user("alice", "100", Access::None);
        let counted = "hold = \"slice\"\nprogress = \"events\"\nquantity = { const = 3 }";
        let coding = |name| match name {
            "odd" => "content-type: text/event-stream\r\ncontent-encoding: odd\r\n",
            _ => "content-type: text/event-stream\r\ncontent-encoding: gzip\r\n",
        };
        let odd: Vec<Step> = [head(coding("odd"))]
            .into_iter()
            .chain((1..=50).map(|n| event(&n.to_string())))
            .chain([Step::Closed])
            .collect();
        let parts: Vec<Vec<u8>> = (1..=2).map(|n| told(n).into_bytes()).collect();
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let good =
            gzip(&parts).into_iter().take(2).flat_map(|piece| [Step::Chunk(piece), Step::Wait]);
        let broken: Vec<Step> = [head(coding("gzip"))]
            .into_iter()
            .chain(good)
            .chain((1..=50).map(|_| chunk("no deflate at all")))
            .chain([Step::Closed])
            .collect();
        let plays = vec![
            ("odd", odd.clone()),
            ("odd-counted", odd),
            ("broken", broken.clone()),
            ("broken-counted", broken),
        ];
        let routes = [
            ("/odd", FIVE),
            ("/odd-counted", counted),
            ("/broken", FIVE),
            ("/broken-counted", counted),
        ];
        for (path, state, cost, flags) in [
            // Nothing of it was delivered, and no event was counted.
            ("/odd", "voided", "0", json!([])),
            ("/odd-counted", "captured", "0", json!([])),
            // What was told before counts no more, and the client got some of it.
            ("/broken", "captured", "5", missing()),
            ("/broken-counted", "captured", "2", json!([])),
        ] {
            let (world, backend, go) = metered_for(&org, plays.clone(), &routes);
            let mut stream = open(&world, path).await;
            for _ in 0..2 {
                go.send(()).unwrap();
            }
            let mut got = Vec::new();
            let read =
                async { while stream.read_buf(&mut got).await.is_ok_and(|count| count > 0) {} };
            tokio::time::timeout(PATIENCE, read).await.expect("it breaks off");
            assert!(!got.ends_with(b"0\r\n\r\n"), "{path}: it is no end");
            let passed = got.windows(2).filter(|two| two == b"no").count();
            assert_eq!(passed, 0, "{path}");
            is(&charge(&world, &backend).await, state, cost, &flags);
            assert_eq!(world.metric("tollgate_refusals_total", &["upstream_failed"]), 1.0);
            world.verify();
        }
    });
}
