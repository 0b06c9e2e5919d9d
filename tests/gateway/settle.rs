//! Settlement over sockets: D29–D33.

use serde_json::json;

use crate::support::{Access, Call, Client, Org, Script, World, run, until};

fn told(n: &str, script: &Script) -> Call {
    Call::post("/v1/told", format!("{{\"n\":{n}}}")).user("alice").script(script)
}

fn streamed(n: &str, script: &Script) -> Call {
    Call::post("/v1/streamed", "x").user("alice").header("x-count", n).script(script)
}

fn header_usage(usage: &str) -> Script {
    Script { headers: vec![("x-usage".to_owned(), usage.to_owned())], ..Script::default() }
}

/// Waits until the charge of the last request is what it should be.
async fn charge_becomes(world: &World, state: &str, cost: &str, flags: serde_json::Value) {
    world.settled().await;
    let charge = world.last_charge();
    assert_eq!((&charge["state"], &charge["cost"]), (&json!(state), &json!(cost)), "{charge}");
    assert_eq!(charge["flags"], flags, "{charge}");
}

#[test]
fn d30_usage_below_the_hold_returns_the_difference_last_leg_first() {
    run(async {
        let world = World::new(&Org::new().pool("10").user("alice", "3", Access::Pool));
        let mut client = world.client().await;
        // Held 3 + 1 Operation; used 4: half of the pool's leg returns.
        let answer = client.send(&told("5", &Script::usage(4))).await;
        answer.is(200).tells(&[
            ("state", "captured"),
            ("cost", "4"),
            ("seat", "3"),
            ("pool", "0.5"),
        ]);
        answer.tells(&[("seat-remaining", "0"), ("pool-remaining", "9.5")]);
        let charge = world.last_charge();
        assert_eq!((&charge["quantity"], &charge["cost"]), (&json!("4"), &json!("4")));
        world.seat("alice", "3", "0", "0.5");
        let answer = client.send(&told("4", &Script::usage(0))).await;
        answer.is(200).tells(&[("state", "captured"), ("cost", "0"), ("seat", "0"), ("pool", "0")]);
        let answer = client.send(&told("2", &Script::usage("\"1.5\""))).await;
        answer.is(200).tells(&[("cost", "1.5"), ("pool", "0.75"), ("pool-remaining", "8.75")]);
        let answer = client.send(&told("2", &Script::usage(2))).await;
        answer.is(200).tells(&[("cost", "2"), ("pool", "1")]);
        world.accounts_for(&["alice"]).await;
    });
}

#[test]
fn d30_f15_f56_usage_missing_or_invalid_captures_the_whole_hold_flagged() {
    run(async {
        let world = World::new(&Org::new().user("alice", "100", Access::None));
        let mut client = world.client().await;
        let mut spent = 0;
        for body in [
            "{}",
            "not json",
            "",
            "{\"usage\":{\"images\":null}}",
            "{\"usage\":{\"images\":-1}}",
            "{\"usage\":{\"images\":1e3}}",
            "{\"usage\":{\"images\":\"NaN\"}}",
            "{\"usage\":{\"images\":9999999999999}}",
            "{\"usage\":3}",
        ] {
            let answer = client.send(&told("3", &Script::body(body))).await;
            answer.is(200).tells(&[("state", "captured"), ("cost", "3")]);
            assert_eq!(&answer.body[..], body.as_bytes());
            charge_becomes(&world, "captured", "3", json!(["usage_missing"])).await;
            spent += 3;
        }
        for (usage, cost) in [("1", "1"), (" 2.25 ", "2.25"), ("0", "0"), ("x", "3"), ("-1", "3")] {
            let answer = client.send(&streamed("3", &header_usage(usage))).await;
            answer.is(200).tells(&[("cost", cost)]);
            let flags = if cost == "3" { json!(["usage_missing"]) } else { json!([]) };
            charge_becomes(&world, "captured", cost, flags).await;
        }
        let left = 100.0 - f64::from(spent) - 9.25;
        world.seat("alice", &format!("{}", 100.0 - left), &format!("{left}"), "0");
        world.accounts_for(&["alice"]).await;
    });
}

#[test]
fn d30_what_is_small_and_whole_is_captured_before_its_head_and_the_rest_before_its_end() {
    run(async {
        let world = World::new(&Org::new().user("alice", "100", Access::None));
        let mut client = world.client().await;
        let small = Script { pad: 60_000, ..Script::usage(1) };
        let chunked = Script { chunked: true, ..small.clone() };
        let big = Script { pad: 300_000, ..Script::usage(1) };
        let big_chunked = Script { chunked: true, ..big.clone() };
        for (script, state) in [(small, "captured"), (big, "held"), (big_chunked, "held")] {
            let answer = client.send(&told("2", &script)).await;
            let cost = if state == "held" { "2" } else { "1" };
            answer.is(200).tells(&[("state", state), ("cost", cost)]);
            assert_eq!(answer.body.len(), script.body.unwrap().len() + script.pad);
            // Whoever has the end of the answer was charged: without waiting for anything.
            let charge = world.last_charge();
            assert_eq!((&charge["state"], &charge["cost"]), (&json!("captured"), &json!("1")));
        }
        // Chunks that come at once may or may not be waited for; the charge is the same.
        let answer = client.send(&told("2", &chunked)).await;
        assert!(["captured", "held"].contains(&answer.is(200).told("state").as_str()));
        assert_eq!(world.last_charge()["cost"], "1");
        // Too big to be looked into: as if no usage was told.
        let huge = Script { pad: 3 << 20, ..Script::usage(1) };
        client.send(&told("2", &huge)).await.is(200);
        charge_becomes(&world, "captured", "2", json!(["usage_missing"])).await;
        world.seat("alice", "6", "94", "0");
    });
}

#[test]
fn d30_no_end_of_an_answer_arrives_before_its_capture() {
    run(async {
        let world = World::new(&Org::new().user("alice", "10", Access::None));
        let script = Script { half: Some("rest".to_owned()), pad: 200_000, ..Script::usage(1) };
        let call = told("3", &script);
        let meanwhile = async {
            until("it is forwarded", || (world.backend.count() == 1).then_some(())).await;
            let seat = world.balance("alice")["seat"].clone();
            assert_eq!((&seat["held"], &seat["captured"]), (&json!("3"), &json!("0")));
            assert_eq!(world.last_charge()["state"], "held");
            world.backend.open("rest");
        };
        let (answer, ()) = tokio::join!(world.send(&call), meanwhile);
        answer.is(200).tells(&[("state", "held"), ("cost", "3"), ("seat-remaining", "7")]);
        assert_eq!(world.last_charge()["state"], "captured");
        world.seat("alice", "1", "9", "0");
    });
}

#[test]
fn d31_usage_above_the_hold_goes_through_the_waterfall_and_ends_as_overdraft() {
    run(async {
        let org = Org::new().user("alice", "4", Access::None).user("bob", "1", Access::Pool);
        let mut world = World::new(&org.pool("1"));
        let mut client = world.client().await;
        let answer = client.send(&told("1", &Script::usage(3))).await;
        answer.is(200).tells(&[("cost", "3"), ("seat", "3"), ("seat-remaining", "1")]);
        let answer = client.send(&told("1", &Script::usage(4))).await;
        answer.is(200).tells(&[
            ("cost", "4"),
            ("seat", "1"),
            ("overdraft", "3"),
            ("seat-remaining", "0"),
        ]);
        assert_eq!(world.balance("alice")["overdraft"], "3");
        let kinds: Vec<String> = (world.last_charge()["legs"].as_array().unwrap().iter())
            .map(|leg| {
                format!("{} {}", leg["kind"].as_str().unwrap(), leg["covers"].as_str().unwrap())
            })
            .collect();
        assert_eq!(kinds, ["licence 1", "overdraft 3"]);
        assert_eq!(world.metric("tollgate_overdraft_credits", &["acme"]), 3.0);
        client.send(&told("1", &Script::usage(1))).await.refused(402, "overdrawn");
        client.send(&Call::post("/v1/recolor", "x").user("alice")).await.is(200);
        // The pool pays excess too, before there is overdraft.
        let call = Call::post("/v1/told", "{\"n\":1}").user("bob").script(&Script::usage(5));
        let answer = client.send(&call).await;
        answer.is(200).tells(&[("cost", "5"), ("seat", "1"), ("pool", "1"), ("overdraft", "2")]);
        client.send(&Call::post("/v1/images", "{}").user("bob")).await.refused(402, "overdrawn");
        world.settled().await;
        world.verify();
        world.move_clock("2026-12-01T00:00:00Z").await;
        world.send(&told("1", &Script::usage(1))).await.is(200).tells(&[("seat-remaining", "3")]);
        assert_eq!(world.balance("alice")["overdraft"], "0");
    });
}

#[test]
fn d32_f09_a_failed_generation_costs_nothing_and_is_passed_through() {
    run(async {
        let world = World::new(&Org::new().pool("5").user("alice", "10", Access::Pool));
        let mut client = world.client().await;
        for status in [400, 402, 404, 429, 500, 503] {
            let script = Script {
                headers: vec![("retry-after".to_owned(), "7".to_owned())],
                ..Script { status, ..Script::body("{\"error\":\"its own\"}") }
            };
            let answer = client.send(&told("3", &script)).await;
            answer.is(status).tells(&[
                ("state", "voided"),
                ("cost", "0"),
                ("seat", "0"),
                ("pool", "0"),
            ]);
            answer.tells(&[("overage", "0"), ("seat-remaining", "10"), ("pool-remaining", "5")]);
            assert_eq!(&answer.body[..], b"{\"error\":\"its own\"}");
            assert_eq!(answer.header("retry-after"), Some("7"));
            charge_becomes(&world, "voided", "0", json!([])).await;
        }
        for (path, status, state, cost) in [
            ("/v1/odd", 404, "captured", "1"),
            ("/v1/odd", 400, "voided", "0"),
            ("/v1/odd", 204, "captured", "1"),
            ("/v1/images", 204, "captured", "1"),
            ("/v1/images", 302, "voided", "0"),
            ("/v1/images", 304, "voided", "0"),
        ] {
            let call = Call::post(path, "{}").user("alice").script(&Script::status(status));
            let answer = client.send(&call).await;
            answer.is(status).tells(&[("state", state), ("cost", cost)]);
        }
        world.accounts_for(&["alice"]).await;
    });
}

#[test]
fn d32_f10_nobody_pays_for_no_answer_unless_the_route_says_so() {
    run(async {
        let world = World::new(&Org::new().user("alice", "10", Access::None));
        let call =
            |path: &str, script: &Script| Call::post(path, "{}").user("alice").script(script);
        world
            .send(&call("/v1/dead", &Script::default()))
            .await
            .refused(502, "upstream_unreachable");
        world.settled().await;
        world.seat("alice", "0", "10", "0");
        let hang_up = Script { hang_up: true, ..Script::default() };
        world.send(&call("/v1/images", &hang_up)).await.refused(502, "upstream_failed");
        charge_becomes(&world, "voided", "0", json!([])).await;
        assert_eq!(world.backend.count(), 1, "what was sent is never sent again");
        let never = Script::gate("never");
        world.send(&call("/v1/hasty", &never)).await.refused(504, "upstream_timeout");
        charge_becomes(&world, "voided", "0", json!([])).await;
        world.send(&call("/v1/patient", &never)).await.refused(504, "upstream_timeout");
        charge_becomes(&world, "captured", "1", json!(["usage_missing"])).await;
        world.accounts_for(&["alice"]).await;
    });
}

#[test]
fn d32_f11_a_truncated_body_is_not_charged_without_usage_and_never_ends_cleanly() {
    run(async {
        let world = World::new(&Org::new().user("alice", "100", Access::None));
        for (pad, chunked) in [(0, false), (0, true), (200_000, false), (200_000, true)] {
            let script = Script { truncate: true, pad, chunked, ..Script::default() };
            broken(&world, &Call::post("/v1/images", "{}").user("alice").script(&script)).await;
            charge_becomes(&world, "voided", "0", json!([])).await;
            broken(&world, &streamed("3", &script)).await;
            charge_becomes(&world, "voided", "0", json!([])).await;
        }
        for pad in [0, 200_000] {
            let script = Script { truncate: true, pad, ..header_usage("2") };
            broken(&world, &streamed("3", &script)).await;
            charge_becomes(&world, "captured", "2", json!([])).await;
        }
        world.seat("alice", "4", "96", "0");
        world.accounts_for(&["alice"]).await;
    });
}

/// Sends a request whose answer must not look as if it were whole.
async fn broken(world: &World, call: &Call) {
    let sent = world.client().await.try_send(call).await;
    match sent {
        Ok(answer) if answer.status == 200 => assert!(!answer.whole, "it ended cleanly"),
        Ok(answer) => drop(answer.refused(502, "upstream_failed")),
        Err(_) => {}
    }
}

/// Sends a request, and leaves as soon as the backend has it and `then` is true.
async fn leave_when(world: &World, call: Call, then: impl Fn() -> bool) {
    let seen = world.backend.count();
    let mut client = Client::connect(world.gateway()).await;
    {
        let mut asked = std::pin::pin!(client.try_send(&call));
        let forwarded =
            until("it is there", || (world.backend.count() > seen && then()).then_some(()));
        tokio::select! {
            answer = &mut asked => panic!("answered already: {answer:?}"),
            () = forwarded => {}
        }
    }
    client.leave().await;
}

#[test]
fn d33_f06_a_client_gone_before_the_forward_is_not_charged() {
    run(async {
        use tokio::io::AsyncWriteExt;
        let world = World::new(&Org::new().user("alice", "10", Access::None));
        let mut stream = tokio::net::TcpStream::connect(world.gateway()).await.unwrap();
        let head = format!(
            "POST /v1/images HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\
             tollgate-user: alice\r\ncontent-length: 10\r\n\r\n{{\"n\"",
            crate::support::org::STUDIO
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let in_flight =
            |count: f64| (world.metric("tollgate_in_flight_requests", &[]) == count).then_some(());
        until("it is in flight", || in_flight(1.0)).await;
        drop(stream);
        until("it is gone", || in_flight(0.0)).await;
        world.settled().await;
        assert_eq!(world.backend.count(), 0);
        world.seat("alice", "0", "10", "0");
    });
}

#[test]
fn d33_f07_finish_settles_on_what_the_backend_reports_to_nobody() {
    run(async {
        let world = World::new(&Org::new().user("alice", "10", Access::None));
        let gated = |name: &str, script: Script| Script { gate: Some(name.to_owned()), ..script };
        // Before the backend's head.
        leave_when(&world, told("3", &gated("a", Script::usage(2))), || true).await;
        assert_eq!(world.balance("alice")["seat"]["held"], "3", "the hold stands");
        world.backend.open("a");
        charge_becomes(&world, "captured", "2", json!([])).await;
        // In the middle of the body.
        let script = Script { half: Some("b".to_owned()), pad: 300_000, ..Script::usage(1) };
        leave_when(&world, told("3", &script), || true).await;
        world.backend.open("b");
        charge_becomes(&world, "captured", "1", json!([])).await;
        // A failure that nobody sees is a failure.
        leave_when(&world, told("3", &gated("c", Script::status(500))), || true).await;
        world.backend.open("c");
        charge_becomes(&world, "voided", "0", json!([])).await;
        assert!(world.backend.seen().iter().all(|seen| !seen.abandoned), "it was let finish");
        world.seat("alice", "3", "7", "0");
        world.accounts_for(&["alice"]).await;
    });
}

#[test]
fn d33_f07_cancel_stops_the_backend_and_settles_on_what_was_delivered() {
    run(async {
        let world = World::new(&Org::new().user("alice", "10", Access::None));
        let never = Script::gate("never");
        let abandoned = || world.backend.last().abandoned.then_some(());
        // Nothing was delivered.
        leave_when(&world, Call::post("/v1/cancel", "{}").user("alice").script(&never), || true)
            .await;
        charge_becomes(&world, "voided", "0", json!([])).await;
        until("the backend is stopped", abandoned).await;
        // Bytes were, and no usage.
        let half = Script { half: Some("never".to_owned()), pad: 300_000, ..Script::default() };
        deliver_some(&world, &Call::post("/v1/cancel", "{}").user("alice").script(&half)).await;
        charge_becomes(&world, "captured", "1", json!(["usage_missing"])).await;
        until("the backend is stopped", abandoned).await;
        // Bytes were, and usage was told in the head.
        let half = Script { half: Some("never".to_owned()), pad: 300_000, ..header_usage("2") };
        let call = Call::post("/v1/cancel-told", "x").user("alice").header("x-count", "5");
        deliver_some(&world, &call.script(&half)).await;
        charge_becomes(&world, "captured", "2", json!([])).await;
        // Whoever stays pays as ever.
        world
            .send(&Call::post("/v1/cancel", "{}").user("alice"))
            .await
            .is(200)
            .tells(&[("cost", "1")]);
        world.seat("alice", "4", "6", "0");
        world.accounts_for(&["alice"]).await;
    });
}

/// Leaves after the head and some of the body have arrived.
async fn deliver_some(world: &World, call: &Call) {
    let client = Client::connect(world.gateway()).await;
    client.leave_after_some(call).await;
}
