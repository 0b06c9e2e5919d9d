//! Requests that are repeated under one `Idempotency-Key` (D35): f17–f20, and what is lost on the
//! way. The campaign is in `retries`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::org::{OWN, ROBOT, STUDIO};
use crate::support::peer::head;
use crate::support::{
    Access, Answer, Call, Client, Org, PATIENCE, Peer, Script, Setup, World, burst, run, until,
};

/// A request under a key.
fn keyed(key: &str, body: &str) -> Call {
    Call::post("/v1/images", body.to_owned()).header("idempotency-key", key)
}

fn alice(key: &str) -> Call {
    keyed(key, "{\"n\":2}").user("alice")
}

fn org() -> Org {
    Org::new().user("alice", "100", Access::None).user("bob", "10", Access::Pool)
}

/// What of a head is the same in every answer to one request: all but when and to whom it was sent.
fn lasting(answer: &Answer) -> Vec<(String, Vec<u8>)> {
    let own = ["date", "x-request-id", "idempotency-replayed"];
    let fields = answer.headers.iter().filter(|(name, _)| !own.contains(&name.as_str()));
    fields.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect()
}

/// Checks that an answer is another one given again.
#[track_caller]
pub fn repeats(first: &Answer, again: &Answer) {
    assert_eq!(again.header("idempotency-replayed"), Some("true"), "{again:?}");
    assert_eq!((again.status, &again.body), (first.status, &first.body), "{again:?}");
    assert_eq!(lasting(again), lasting(first));
    assert!(first.whole && again.whole);
    let id = |answer: &Answer| answer.header("x-request-id").unwrap().to_owned();
    assert!(!id(again).is_empty());
}

/// Checks that an answer is the refusal of what was charged so, and returns its receipt's charge.
#[track_caller]
fn charged(answer: &Answer, told: &[(&str, &str)]) -> String {
    assert_eq!(answer.status, 409, "{answer:?}");
    assert_eq!(answer.json()["code"], "already_charged", "{answer:?}");
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    assert_eq!(answer.header("idempotency-replayed"), None);
    answer.tells(&[("state", "captured")]).tells(told).told("charge")
}

/// Sends what is not answered while its gate is shut, and returns when the backend has it.
async fn begun(world: &World, call: &Call) -> JoinSet<Result<Answer, hyper::Error>> {
    let (gateway, call, before) = (world.gateway(), call.clone(), world.backend.count());
    let mut asking = JoinSet::new();
    asking.spawn(async move { Client::connect(gateway).await.try_send(&call).await });
    until("it is forwarded", || (world.backend.count() > before).then_some(())).await;
    asking
}

#[test]
fn d35_a_repetition_is_answered_as_before_byte_for_byte_and_not_forwarded() {
    run(async {
        let mut world = World::new(&org());
        let headers = [
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("x-odd", "a : \"b\""),
            ("date", "Fri, 01 Jan 2021 00:00:00 GMT"),
            ("idempotency-replayed", "false"),
            ("keep-alive", "timeout=5"),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let script = |script: Script| Script { headers: headers.clone(), ..script };
        let mut calls = vec![
            alice("plain").script(&script(Script::default())),
            alice("chunked").script(&Script { chunked: true, ..Script::default() }),
            alice("empty").script(&Script::body("")),
            alice("no-content").script(&Script::status(204)),
            // As large as is kept.
            alice("large").script(&Script { pad: 65_000, ..Script::default() }),
            keyed("split", "{\"n\":11}").user("bob"),
        ];
        let post = |path: &str, key| {
            let call = Call::post(path, "{\"n\":3}").header("idempotency-key", key);
            call.header("x-count", "3").user("alice")
        };
        calls.push(post("/v1/odd", "not-found").script(&Script::status(404)));
        calls.push(post("/v1/told", "less").script(&Script::usage(1)));
        calls.push(post("/v1/told", "more").script(&Script::usage(5)));
        // More than the seat has: the rest is owed.
        calls.push(post("/v1/told", "owed").script(&Script::usage(500)));
        calls.push(post("/v1/recolor", "standard"));
        calls.push(Call::new("HEAD", "/v1/tile/0").header("idempotency-key", "head").user("bob"));
        let mut answers = Vec::new();
        for call in &calls {
            let first = world.send(call).await;
            let replayed = first.header("idempotency-replayed");
            assert!(first.whole && replayed != Some("true"), "{first:?}");
            first.tells(&[("state", "captured")]);
            answers.push(first);
        }
        answers[8].tells(&[("cost", "5"), ("seat", "5")]);
        answers[9].tells(&[("cost", "500"), ("seat-remaining", "0")]);
        assert_eq!(answers[5].told("pool"), "0.5");
        let charges: Vec<Value> =
            world.backend.seen().iter().map(|seen| world.charge(seen.charge().unwrap())).collect();
        assert_eq!(charges.len(), calls.len());
        // From memory, and then from the disk; whatever else was charged in between.
        for start in 0..3 {
            for (call, first) in calls.iter().zip(&answers) {
                repeats(first, &world.send(call).await);
            }
            assert_eq!(world.backend.count(), calls.len() + start);
            for (charge, answer) in charges.iter().zip(&answers) {
                let id = charge["charge"].as_str().unwrap();
                assert_eq!((answer.told("charge"), &world.charge(id)), (id.to_owned(), charge));
            }
            let replays = (calls.len() + 1) as f64 - f64::from(u8::from(start == 0));
            let counted = world.metric("tollgate_idempotent_replays_total", &[]);
            assert_eq!(counted, replays, "of this process");
            world.verify();
            world.kill();
            world.start();
            world.send(&Call::post("/v1/images", "{}").user("bob")).await.is(200);
            // The same key in its other form.
            let quoted = keyed("\"split\"", "{\"n\":11}").user("bob");
            repeats(&answers[5], &world.send(&quoted).await);
        }
    });
}

#[test]
fn d35_f17_of_many_at_once_one_is_forwarded_and_the_others_are_told_to_wait() {
    run(async {
        let world = World::new(&org());
        for batch in 0..10 {
            let (key, gate) = (format!("key-{batch}"), format!("gate-{batch}"));
            let call = alice(&key).script(&Script::gate(&gate));
            let gateway = world.gateway();
            let mut asking = JoinSet::new();
            for _ in 0..24 {
                let call = call.clone();
                asking.spawn(async move { Client::connect(gateway).await.send(&call).await });
            }
            let mut refused = 0;
            while refused < 23 {
                let answer = asking.join_next().await.unwrap().unwrap();
                answer.refused(409, "idempotency_in_flight");
                assert_eq!(answer.header("retry-after"), Some("1"));
                refused += 1;
            }
            // Whatever else it may be: what has the key is in flight.
            let other = keyed(&key, "{\"n\":1}").user("alice");
            world.send(&other).await.refused(409, "idempotency_in_flight");
            world.backend.open(&gate);
            let first = asking.join_next().await.unwrap().unwrap();
            first.is(200).tells(&[("cost", "2")]);
            for answer in burst(gateway, vec![call; 24], 6).await {
                repeats(&first, &answer);
            }
            assert_eq!(world.backend.count(), batch + 1);
        }
        world.seat("alice", "20", "80", "0");
    });
}

#[test]
fn d35_f18_another_request_under_the_same_key_is_refused() {
    run(async {
        let world = World::new(&org());
        let streamed = |path: &str, count, body: &str| {
            let call = Call::post(path, body.to_owned()).header("x-count", count);
            call.header("idempotency-key", "k").user("alice")
        };
        let first = streamed("/v1/streamed?a=1", "2", "{}").header("content-type", "text/plain");
        world.send(&first).await.is(200);
        let plain = |call: Call| call.header("content-type", "text/plain");
        for other in [
            plain(streamed("/v1/streamed?a=1", "2", "{} ")),
            plain(streamed("/v1/streamed?a=1", "2", "")),
            plain(streamed("/v1/streamed?a=2", "2", "{}")),
            plain(streamed("/v1/images?a=1", "2", "{}")),
            // What it costs is told in a header.
            plain(streamed("/v1/streamed?a=1", "3", "{}")),
            streamed("/v1/streamed?a=1", "2", "{}"),
            streamed("/v1/streamed?a=1", "2", "{}").header("content-type", "text/html"),
        ] {
            world.send(&other).await.refused(422, "idempotency_key_reused");
        }
        repeats(&world.send(&first).await, &world.send(&first).await);
        assert_eq!(world.backend.count(), 1);
        world.seat("alice", "2", "98", "0");
        // A large body is read for its key, as far as the route takes it.
        let large = streamed("/v1/streamed", "1", &" ".repeat((1 << 20) + 1));
        world.send(&large).await.refused(413, "body_too_large");
    });
}

#[test]
fn d35_f19_a_key_is_remembered_for_two_days_and_then_charged_anew() {
    run(async {
        let mut world = World::new(&org());
        let first = world.send(&alice("k")).await;
        let clock = |world: &World, to: &str| world.pass_until(to);
        clock(&world, "2026-11-22T11:59:00Z");
        let later = world.send(&alice("later")).await;
        repeats(&first, &world.send(&alice("k")).await);
        // The next process has to know it too.
        world.crash_and_move_clock("2026-11-22T11:59:30Z");
        repeats(&first, &world.send(&alice("k")).await);
        assert_eq!(world.backend.count(), 2);
        clock(&world, "2026-11-22T12:00:01Z");
        let began = Instant::now();
        let renewed = loop {
            assert!(began.elapsed() < PATIENCE, "never charged anew");
            let answer = world.send(&alice("k")).await;
            if answer.header("idempotency-replayed").is_none() && answer.status == 200 {
                break answer;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert_ne!(renewed.told("charge"), first.told("charge"));
        assert_eq!(world.backend.count(), 3);
        repeats(&renewed, &world.send(&alice("k")).await);
        repeats(&later, &world.send(&alice("later")).await);
        world.seat("alice", "6", "94", "0");
        world.kill();
        world.start();
        repeats(&renewed, &world.send(&alice("k")).await);
    });
}

#[test]
fn d35_f20_callers_are_unrelated_whatever_keys_they_send() {
    run(async {
        let world = World::new(&org());
        let other = org().toml().replace("id = \"acme\"", "id = \"else\"");
        let other = other.replace("\"tg_test_", "\"tg_else_");
        assert!(world.try_apply(&other).status.success());
        let call = |secret: &str| keyed("k", "{}").key(secret);
        let elsewhere = STUDIO.replace("tg_test_", "tg_else_");
        let callers = [
            call(STUDIO).header("tollgate-user", "alice"),
            call(STUDIO).header("tollgate-user", "bob"),
            call(ROBOT),
            call(&elsewhere).header("tollgate-user", "alice"),
        ];
        let mut answers = Vec::new();
        for caller in &callers {
            let answer = world.send(caller).await;
            assert_eq!(answer.header("idempotency-replayed"), None);
            answers.push(answer);
        }
        for (caller, answer) in callers.iter().zip(&answers) {
            repeats(answer, &world.send(caller).await);
        }
        // A user is one caller, whichever key acts for it.
        repeats(&answers[0], &world.send(&call(OWN)).await);
        assert_eq!(world.backend.count(), callers.len());
    });
}

#[test]
fn d35_a_client_that_lost_its_answer_gets_it_when_it_asks_again() {
    run(async {
        let mut world = World::new(&org());
        for path in ["/v1/images", "/v1/streamed"] {
            let key = path.replace('/', "");
            let script = serde_json::to_string(&Script::gate(path)).unwrap();
            let more = format!("x-script: {script}\r\nidempotency-key: {key}\r\n");
            let before = world.backend.count();
            let mut peer = Peer::connect(world.gateway()).await;
            let request = head(&format!("POST {path} HTTP/1.1"), &more);
            peer.send(request.replace("\r\n\r\n", "\r\ncontent-length: 2\r\n\r\n{}")).await;
            let forwarded = || (world.backend.count() > before).then_some(());
            until("it is forwarded", forwarded).await;
            drop(peer);
            let again = Call::post(path, "{}").header("idempotency-key", &key).key(OWN);
            world.send(&again).await.refused(409, "idempotency_in_flight");
            world.backend.open(path);
            world.settled().await;
            let answer = world.send(&again).await;
            answer.is(200).tells(&[("cost", "1")]);
            assert_eq!(answer.header("idempotency-replayed"), Some("true"));
            repeats(&answer, &world.send(&again).await);
            // And when the gateway died before it could be sent.
            world.kill();
            world.start();
            repeats(&answer, &world.send(&again).await);
            assert_eq!(world.backend.count(), before + 1);
        }
        world.seat("alice", "2", "98", "0");
    });
}

#[test]
fn d35_what_was_not_charged_leaves_its_key_free() {
    run(async {
        let world = World::new(&org().user("carol", "1", Access::None));
        let failed = [Script::status(500), Script { truncate: true, ..Script::default() }];
        for (at, script) in failed.iter().enumerate() {
            let key = format!("failed-{at}");
            let answer = world.send(&alice(&key).script(script)).await;
            assert!(answer.status >= 500, "{answer:?}");
            let renewed = world.send(&alice(&key)).await;
            renewed.is(200).tells(&[("cost", "2"), ("state", "captured")]);
            repeats(&renewed, &world.send(&alice(&key)).await);
        }
        assert_eq!(world.backend.count(), 4);
        // Refused, for whichever reason.
        let carol = |body| keyed("carol", body).user("carol");
        world.send(&carol("{\"n\":2}")).await.refused(402, "seat_exhausted");
        world.send(&carol("{\"n\":-1}")).await.refused(400, "unquotable");
        world.send(&carol("{\"n\":1}")).await.is(200).tells(&[("seat-remaining", "0")]);
        // A seat that is used up by now refuses no repetition.
        world.send(&keyed("other", "{}").user("carol")).await.refused(402, "seat_exhausted");
        let again = world.send(&carol("{\"n\":1}")).await;
        assert_eq!(again.header("idempotency-replayed"), Some("true"));
        world.send(&carol("{\"n\":2}")).await.refused(422, "idempotency_key_reused");
        assert_eq!(world.backend.count(), 5);
        // Nor does one that nobody could be charged to any more.
        world.apply(&org().user("carol", "", Access::None));
        world.send(&keyed("other", "{}").user("carol")).await.refused(402, "seat_exhausted");
        let again = world.send(&carol("{\"n\":1}")).await;
        assert_eq!(again.header("idempotency-replayed"), Some("true"));
        // Cancelled by its client before there was anything.
        let cancel = Call::post("/v1/cancel", "{}").header("idempotency-key", "c").user("alice");
        let asking = begun(&world, &cancel.clone().script(&Script::gate("never"))).await;
        drop(asking);
        world.settled().await;
        world.send(&cancel).await.is(200).tells(&[("cost", "1")]);
        assert_eq!(world.backend.count(), 7);
        world.seat("alice", "5", "95", "0");
    });
}

#[test]
fn d35_an_answer_that_is_not_kept_is_not_sent_again_and_its_charge_is_told() {
    run(async {
        let mut world = World::new(&org().user("carol", "1000", Access::Pool));
        let post = |path: &str, key: &str| {
            Call::post(path, "{\"n\":3}").header("idempotency-key", key).user("alice")
        };
        let usage = |images| Script::usage(images);
        let cut = Script { pad: 70_000, chunked: true, truncate: true, ..usage(2) };
        let pieces = Script { chunked: true, pad: 70_000, ..Script::default() };
        let header = |name: &str| vec![(name.to_owned(), "a".repeat(40_000))];
        let calls = [
            (alice("large").script(&Script { pad: 70_000, ..Script::default() }), "2"),
            (post("/v1/told", "cut").script(&Script { pad: 0, chunked: false, ..cut }), "2"),
            (alice("stream").script(&pieces), "2"),
            // A body that would be kept, and a head that is too large with it.
            (
                alice("head").script(&Script {
                    pad: 60_000,
                    headers: header("x-a"),
                    ..Script::default()
                }),
                "2",
            ),
        ];
        let mut spent = 0;
        for (call, cost) in &calls {
            let answer = world.send(call).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            world.settled().await;
            spent += cost.parse::<u64>().unwrap();
            let charge = charged(&world.send(call).await, &[("cost", cost), ("seat", cost)]);
            assert_eq!(charge, answer.told("charge"));
            // What is left, is left by now.
            let remaining = (100 - spent).to_string();
            let again = world.send(call).await;
            charged(&again, &[("seat-remaining", &remaining), ("rate-card", "2026-11")]);
            assert_eq!(again.json()["detail"].as_str().map(str::is_empty), Some(false));
        }
        assert_eq!(world.backend.count(), calls.len());
        // A stream that its client left, which the backend went on with.
        let left = Script { chunked: true, half: Some("rest".to_owned()), ..Script::default() };
        let left = alice("left").script(&left);
        world.client().await.leave_after_some(&left).await;
        world.send(&left).await.refused(409, "idempotency_in_flight");
        world.backend.open("rest");
        world.settled().await;
        charged(&world.send(&left).await, &[("cost", "2")]);
        // Nobody knows what it was worth: the route says that it is charged.
        let patient = post("/v1/patient", "late").script(&Script::gate("never"));
        world.send(&patient).await.refused(504, "upstream_timeout");
        charged(&world.send(&patient).await, &[("cost", "1")]);
        let split = keyed("split", "{\"n\":1500}").user("carol");
        let split = split.script(&Script { pad: 70_000, ..Script::default() });
        world.send(&split).await.is(200);
        world.settled().await;
        let told = [("cost", "1500"), ("seat", "1000"), ("pool", "250"), ("overage", "0")];
        charged(&world.send(&split).await, &told);
        let doubt = post("/v1/doubt", "doubt").script(&Script::gate("never"));
        let gone = post("/v1/images", "gone");
        let stuck = gone.clone().script(&Script::gate("never"));
        let asking = [begun(&world, &doubt).await, begun(&world, &stuck).await];
        let seen = world.backend.count();
        world.kill();
        drop(asking);
        world.start();
        charged(&world.send(&doubt).await, &[("cost", "1")]);
        charged(&world.send(&split).await, &told);
        assert_eq!(world.backend.count(), seen);
        // In doubt and not charged: that is a new one.
        world.send(&gone).await.is(200).tells(&[("cost", "3")]);
        assert_eq!(world.backend.count(), seen + 1);
    });
}

#[test]
fn d35_a_route_says_what_becomes_of_keys() {
    run(async {
        let world = World::new(&org());
        let post = |path: &str| Call::post(path, "{}").user("alice");
        let key = |path: &str, key: &str| post(path).header("idempotency-key", key);
        let error = |answer: &Answer| answer.json()["error"].clone();
        let missing = world.send(&post("/v1/keyed")).await;
        assert_eq!(
            (missing.status, &error(&missing)["code"]),
            (400, &json!("idempotency_key_required"))
        );
        let first = world.send(&key("/v1/keyed", "\"k\"")).await;
        first.is(200);
        assert_eq!(world.backend.last().header("idempotency-key"), Some("\"k\""), "passed on");
        repeats(&first, &world.send(&key("/v1/keyed", "k")).await);
        let other = world
            .send(&Call::post("/v1/keyed", "[]").header("idempotency-key", "k").user("alice"))
            .await;
        assert_eq!((other.status, &error(&other)["code"]), (422, &json!("idempotency_key_reused")));
        assert_eq!(error(&other)["type"], "invalid_request_error");
        let long = "k".repeat(256);
        for wrong in ["", "a b", "\"a", "caf\u{e9}", &long] {
            world.send(&key("/v1/images", wrong)).await.refused(400, "bad_request");
            let free = Call::get("/v1/models").user("alice").header("idempotency-key", wrong);
            world.send(&free).await.is(200);
            world.send(&key("/v1/unkeyed", wrong)).await.is(200);
        }
        world
            .send(&key("/v1/images", "a").header("idempotency-key", "a"))
            .await
            .refused(400, "bad_request");
        let seen = world.backend.count();
        for _ in 0..2 {
            let answer = world.send(&key("/v1/unkeyed", "k")).await;
            assert_eq!(answer.header("idempotency-replayed"), None);
        }
        assert_eq!(world.backend.count(), seen + 2);
        assert_eq!(world.metric("tollgate_requests_total", &["/v1/keyed", "\"captured\""]), 1.0);
        assert_eq!(world.metric("tollgate_requests_total", &["/v1/keyed", "\"free\""]), 1.0);
        assert_eq!(world.metric("tollgate_requests_total", &["/v1/keyed", "\"refused\""]), 2.0);
    });
}

/// What a receipt says is left is recorded before the answer is given, whoever else spends.
#[test]
fn d35_what_is_recorded_is_what_was_sent_while_others_spend() {
    run(async {
        let mut world = World::with(Setup::default(), &org().user("carol", "10000", Access::Pool));
        let calls: Vec<Call> = (0..400)
            .map(|at| {
                let script = Script::usage(1 + at % 5);
                let call = Call::post("/v1/told", "{\"n\":3}").user("carol").script(&script);
                call.header("idempotency-key", &format!("k-{at}"))
            })
            .collect();
        let mut sent: Vec<Answer> = burst(world.gateway(), calls.clone(), 16).await;
        let by_charge = |answer: &Answer| answer.told("charge");
        sent.sort_by_key(by_charge);
        for start in 0..2 {
            let mut again = burst(world.gateway(), calls.clone(), 16).await;
            again.sort_by_key(by_charge);
            assert_eq!(sent.len(), again.len());
            for (first, again) in sent.iter().zip(&again) {
                repeats(first, again);
            }
            if start == 0 {
                world.kill();
                world.start();
            }
        }
        assert_eq!(world.backend.count(), calls.len());
        world.seat("carol", "1200", "8800", "0");
    });
}
