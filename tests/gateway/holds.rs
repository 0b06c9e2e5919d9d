//! The holds API and quotes: work that does not pass through the proxy.

use serde_json::{Value, json};

use crate::support::org::{OWN, ROBOT};
use crate::support::world::micro;
use crate::support::{Access, Answer, Call, Org, Script, Setup, World, burst, run, until};

const HOLDS: &str = "/.tollgate/v1/holds";

fn hold(body: &Value) -> Call {
    Call::post(HOLDS, body.to_string())
}

fn studio(call: Call) -> Call {
    call.key(crate::support::org::STUDIO)
}

/// A resolution of a hold by its key.
fn end(charge: &Value, verb: &str, body: &Value) -> Call {
    let id = charge["charge"].as_str().unwrap();
    studio(Call::post(&format!("{HOLDS}/{id}/{verb}"), body.to_string()))
}

fn world() -> World {
    let org = Org::new()
        .pool("10")
        .user("alice", "10", Access::None)
        .user("bob", "3", Access::Pool)
        .user("carol", "5", Access::None);
    World::new(&org)
}

/// What of a seat is held and available, and what was drawn from the pool.
#[track_caller]
fn left(world: &World, user: &str, held: &str, available: &str, drawn: &str) {
    let balance = world.balance(user);
    let found =
        [&balance["seat"]["held"], &balance["seat"]["available"], &balance["pool"]["drawn"]];
    assert_eq!(found, [held, available, drawn], "{balance}");
}

async fn held(world: &World, body: Value) -> Value {
    let answer = world.send(&studio(hold(&body))).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()
}

#[test]
fn d29_a_hold_is_a_charge_and_is_captured_whole_in_part_or_by_credits() {
    run(async {
        let world = world();
        let answer = world
            .send(&studio(hold(&json!({"user": "alice", "feature": "image", "quantity": 4}))))
            .await;
        assert_eq!(answer.status, 201);
        let charge = answer.json();
        assert_eq!((&charge["state"], &charge["cost"]), (&json!("held"), &json!("4")));
        assert_eq!((&charge["route"], &charge["quantity"]), (&json!("holds"), &json!("4")));
        assert!(charge["expires_at"].is_string(), "{charge}");
        let at = format!("/.tollgate/v1/charges/{}", charge["charge"].as_str().unwrap());
        assert_eq!(answer.header("location"), Some(at.as_str()));
        assert_eq!(world.send(&studio(Call::get(&at))).await.json(), charge);
        left(&world, "alice", "4", "6", "0");

        let captured = world.send(&end(&charge, "capture", &json!({}))).await;
        assert_eq!(captured.status, 200);
        let captured = captured.json();
        assert_eq!((&captured["state"], &captured["cost"]), (&json!("captured"), &json!("4")));
        world.seat("alice", "4", "6", "0");

        let part =
            held(&world, json!({"user": "alice", "feature": "image", "quantity": "4.5"})).await;
        let part = world.send(&end(&part, "capture", &json!({"quantity": 1.25}))).await.json();
        assert_eq!((&part["cost"], &part["quantity"]), (&json!("1.25"), &json!("1.25")));
        world.seat("alice", "5.25", "4.75", "0");

        let credits = held(&world, json!({"user": "bob", "feature": "image", "quantity": 6})).await;
        left(&world, "bob", "3", "0", "1.5");
        let credits = world.send(&end(&credits, "capture", &json!({"credits": "4"}))).await.json();
        assert_eq!(credits["legs"].as_array().unwrap().len(), 2, "{credits}");
        world.seat("bob", "3", "0", "0.5");

        let void = held(&world, json!({"user": "alice", "feature": "image", "quantity": 4})).await;
        let void = world.send(&end(&void, "void", &json!({}))).await.json();
        assert_eq!((&void["state"], &void["cost"]), (&json!("voided"), &json!("0")));
        world.seat("alice", "5.25", "4.75", "0");
        // What the books answered at once is what the ledger says.
        for told in [captured, part, credits, void] {
            assert_eq!(world.charge(told["charge"].as_str().unwrap()), told);
        }
        assert_eq!(world.metric("tollgate_credits_captured_total", &["org=\"acme\""]), 8.25);
        world.verify();
    });
}

#[test]
fn d31_what_exceeds_a_hold_goes_through_the_waterfall_also_after_a_restart() {
    run(async {
        let mut world = world();
        let two = json!({"user": "bob", "feature": "image", "quantity": 2});
        let (first, second) = (held(&world, two.clone()).await, {
            held(&world, json!({"user": "alice", "feature": "image"})).await
        });
        world.kill();
        world.start();
        assert_eq!(world.charge(first["charge"].as_str().unwrap()), first);
        let first = world.send(&end(&first, "capture", &json!({"quantity": 7}))).await.json();
        assert_eq!(first["cost"], "7");
        world.seat("bob", "3", "0", "2");
        let second = world.send(&end(&second, "capture", &json!({"quantity": 12}))).await.json();
        assert_eq!(world.balance("alice")["overdraft"], "2");
        for told in [first, second] {
            assert_eq!(world.charge(told["charge"].as_str().unwrap()), told);
        }
        let refused =
            world.send(&studio(hold(&json!({"user": "alice", "feature": "image"})))).await;
        refused.refused(402, "overdrawn");
        world.verify();
    });
}

#[test]
fn d31_an_excess_of_somebody_who_is_gone_is_charged_to_nobody_and_the_charge_adds_up() {
    run(async {
        let world = world();
        let four = json!({"user": "alice", "feature": "image", "quantity": 4});
        let charge = held(&world, four).await;
        let rest = Org::new().pool("10").user("bob", "3", Access::Pool);
        world.apply(&rest.extra("[apply]\nprune = [\"user\"]\n"));
        let told = world.send(&end(&charge, "capture", &json!({"quantity": 6}))).await.json();
        assert_eq!((&told["state"], &told["cost"]), (&json!("captured"), &json!("4")), "{told}");
        // What is shown is what was held, and that it is not what was used.
        let shown = (&told["quantity"], &told["flags"]);
        assert_eq!(shown, (&json!("4"), &json!(["usage_missing"])), "{told}");
        let covers = told["legs"].as_array().unwrap().iter().map(|leg| micro(&leg["covers"]));
        assert_eq!(covers.sum::<u64>(), micro(&told["cost"]), "{told}");
        assert_eq!(world.charge(told["charge"].as_str().unwrap()), told);
        world.settled().await;
        world.verify();
    });
}

#[test]
fn d34_the_same_resolution_again_is_told_the_same_and_another_is_refused() {
    run(async {
        let world = world();
        let ask = json!({"user": "alice", "feature": "image", "quantity": 2});
        let endings = [
            ("capture", json!({})),
            ("capture", json!({"quantity": 2})),
            ("capture", json!({"credits": "2"})),
            ("void", json!({})),
        ];
        for (verb, body) in &endings {
            let charge = held(&world, ask.clone()).await;
            let told = world.send(&end(&charge, verb, body)).await;
            assert_eq!(told.status, 200);
            for (other, with) in &endings {
                let again = world.send(&end(&charge, other, with)).await;
                if (verb, body) == (other, with) {
                    assert_eq!((again.status, again.json()), (200, told.json()));
                } else {
                    again.refused(409, "already_resolved");
                }
            }
        }
        world.seat("alice", "6", "4", "0");
        let mut nobody = json!({"charge": "0198c9f0-0000-7000-8000-000000000000"});
        world.send(&end(&nobody, "void", &json!({}))).await.refused(404, "unknown_route");
        nobody["charge"] = json!("x");
        world.send(&end(&nobody, "capture", &json!({}))).await.refused(404, "unknown_route");
    });
}

#[test]
fn f23_of_many_resolutions_at_once_one_counts() {
    run(async {
        let world = world();
        for _ in 0..20 {
            let charge = held(&world, json!({"user": "carol", "feature": "image"})).await;
            let verbs = ["capture", "void"].into_iter().cycle().take(8);
            let calls = verbs.map(|verb| end(&charge, verb, &json!({}))).collect();
            let answers: Vec<Answer> = burst(world.gateway(), calls, 4).await;
            let state = world.charge(charge["charge"].as_str().unwrap())["state"].clone();
            let statuses = |status| answers.iter().filter(|a| a.status == status).count();
            assert_eq!((statuses(200), statuses(409)), (4, 4), "{state}: {answers:?}");
            if micro(&world.balance("carol")["seat"]["available"]) == 0 {
                break;
            }
        }
        world.verify();
    });
}

#[test]
fn d34_a_hold_ends_by_itself_at_its_time_and_outlives_a_crash() {
    run(async {
        let setup = Setup { clock: Some("2026-11-10T12:00:00Z".to_owned()), ..Setup::default() };
        let org = Org::new().user("alice", "10", Access::None);
        let mut world = World::with(setup, &org);
        let short = held(&world, json!({"user": "alice", "feature": "image", "ttl": "90s"})).await;
        assert_eq!(short["expires_at"], "2026-11-10T12:01:30Z");
        let usual = held(&world, json!({"user": "alice", "feature": "image"})).await;
        let long = held(&world, json!({"user": "alice", "feature": "image", "ttl": "24h"})).await;
        world.crash_and_move_clock("2026-11-10T12:01:00Z");
        left(&world, "alice", "3", "7", "0");
        world.pass_until("2026-11-10T12:01:30Z");
        let state = |world: &World, charge: &Value| {
            world.charge(charge["charge"].as_str().unwrap())["state"].clone()
        };
        until("it expires", || (state(&world, &short) == "expired").then_some(())).await;
        assert_eq!((state(&world, &usual), state(&world, &long)), (json!("held"), json!("held")));
        world.pass_until("2026-11-10T12:10:00Z");
        until("it expires", || (state(&world, &usual) == "expired").then_some(())).await;
        world.send(&end(&usual, "capture", &json!({}))).await.refused(409, "already_resolved");
        world.crash_and_move_clock("2026-11-11T13:00:00Z");
        until("it expires", || (state(&world, &long) == "expired").then_some(())).await;
        world.seat("alice", "0", "10", "0");
        // It is counted when the books have said that it is over, and others may see that before.
        let counted = || world.metric("tollgate_in_doubt_total", &["voided"]) == 1.0;
        until("it is counted", || counted().then_some(())).await;
        world.verify();
    });
}

#[test]
fn only_its_key_resolves_a_hold_and_no_request_in_flight_is_one() {
    run(async {
        let world = world();
        let charge = held(&world, json!({"user": "alice", "feature": "image"})).await;
        let id = charge["charge"].as_str().unwrap();
        for key in [OWN, ROBOT] {
            let void = Call::post(&format!("{HOLDS}/{id}/void"), "").key(key);
            world.send(&void).await.refused(404, "unknown_route");
        }
        // Its user may read it.
        let read = Call::get(&format!("/.tollgate/v1/charges/{id}")).key(OWN);
        assert_eq!(world.send(&read).await.json(), charge);
        let call = Call::post("/v1/images", "{}").user("bob").script(&Script::gate("end"));
        let meddle = async {
            let open = until("it is held", || {
                let (_, list) = world.admin("/v1/orgs/acme/holds");
                list["items"].as_array()?.iter().find(|item| item["user"] == "bob").cloned()
            })
            .await;
            world.send(&end(&open, "void", &json!({}))).await.refused(404, "unknown_route");
            world.backend.open("end");
        };
        let (answer, ()) = tokio::join!(world.send(&call), meddle);
        answer.tells(&[("state", "captured")]);
        world.send(&end(&charge, "void", &json!({}))).await;
        world.settled().await;
    });
}

#[test]
fn holds_and_quotes_refuse_what_they_cannot_read() {
    run(async {
        let world = world();
        let image = |more: Value| {
            let mut body = json!({"user": "alice", "feature": "image"});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        for (body, status, code) in [
            (image(json!({"ttl": "25h"})), 400, "bad_request"),
            (image(json!({"ttl": "0s"})), 400, "bad_request"),
            (image(json!({"ttl": "soon"})), 400, "bad_request"),
            (image(json!({"quantity": -1})), 400, "unquotable"),
            (image(json!({"quantity": null})), 400, "unquotable"),
            (image(json!({"quantity": {}})), 400, "unquotable"),
            (image(json!({"quantity": "9007199255"})), 400, "unquotable"),
            (image(json!({"quantity": {"in": 1}})), 422, "unpriced"),
            (image(json!({"feature": "nothing"})), 422, "unpriced"),
            (image(json!({"amount": 1})), 400, "bad_request"),
            (image(json!({"user": "nobody"})), 403, "unknown_user"),
            (json!({"feature": "image"}), 400, "user_required"),
            (image(json!({"quantity": 11})), 402, "seat_exhausted"),
        ] {
            world.send(&studio(hold(&body))).await.refused(status, code);
        }
        for text in ["", "[]", "{", "{\"feature\":\"image\",\"feature\":\"image\"}"] {
            let call = studio(Call::post(HOLDS, text.to_owned()));
            world.send(&call).await.refused(400, "bad_request");
        }
        world.send(&studio(Call::get(HOLDS))).await.refused(405, "method_not_allowed");
        let two = hold(&image(json!({}))).user("bob");
        world.send(&two).await.refused(400, "bad_request");
        let charge = held(&world, image(json!({}))).await;
        for (body, status, code) in [
            (json!({"quantity": 1, "credits": "1"}), 400, "bad_request"),
            (json!({"quantity": {"in": 1}}), 400, "unquotable"),
            (json!({"credits": "-1"}), 400, "bad_request"),
            (json!({"all": true}), 400, "bad_request"),
        ] {
            world.send(&end(&charge, "capture", &body)).await.refused(status, code);
        }
        assert_eq!(world.send(&end(&charge, "void", &json!({}))).await.status, 200);
        assert!(world.backend.seen().is_empty());
    });
}

#[test]
fn quotes_tell_cost_and_verdict_and_hold_nothing() {
    run(async {
        let world = world();
        let quote = |body: Value| Call::post("/.tollgate/v1/quotes", body.to_string());
        let video =
            json!({"feature": "video", "quantity": 2, "attributes": {"resolution": "1080p"}});
        let told = world.send(&quote(video.clone()).user("bob")).await;
        assert_eq!(told.status, 200);
        let told = told.json();
        assert_eq!((&told["cost"], &told["operations"]), (&json!("200"), &json!("4")));
        assert_eq!((&told["verdict"], &told["code"]), (&json!("allow"), &Value::Null));
        assert_eq!(told["balance"], world.balance("bob"));
        let told = world.send(&quote(video).user("alice")).await.json();
        assert_eq!((&told["verdict"], &told["code"]), (&json!("refuse"), &json!("seat_exhausted")));
        let robot = world.send(&quote(json!({"feature": "image"})).key(ROBOT)).await.json();
        assert_eq!((&robot["verdict"], &robot["balance"]), (&json!("allow"), &Value::Null));
        let pair = json!({"feature": "chat", "quantity": {"in": 3, "out": "0.5"}});
        assert_eq!(world.send(&quote(pair).user("bob")).await.status, 200);
        world.seat("bob", "0", "3", "0");
        assert_eq!(world.metric("tollgate_holds_open", &[]), 0.0);
    });
}

fn keyed(key: &str, body: &Value) -> Call {
    studio(hold(body)).header("idempotency-key", key)
}

/// Checks that an answer is a hold that was made before, and returns it.
#[track_caller]
fn made_before(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("idempotency-replayed"), Some("true"));
    let charge = answer.json();
    let at = format!("/.tollgate/v1/charges/{}", charge["charge"].as_str().unwrap());
    assert_eq!(answer.header("location"), Some(at.as_str()));
    charge
}

#[test]
fn d35_a_hold_is_made_once_a_key_and_told_again_as_it_is() {
    run(async {
        let mut world = world();
        // All that there is: a repetition is not refused for what the first one took.
        let ask = json!({"user": "alice", "feature": "image", "quantity": 10});
        let first = world.send(&keyed("a", &ask)).await;
        assert_eq!((first.status, first.header("idempotency-replayed")), (201, None));
        let first = first.json();
        for _ in 0..2 {
            assert_eq!(made_before(&world.send(&keyed("a", &ask)).await), first);
            left(&world, "alice", "10", "0", "0");
            world.kill();
            world.start();
        }
        // Another body, a request of another kind, another caller.
        let other = json!({"user": "alice", "feature": "image", "quantity": 9});
        world.send(&keyed("a", &other)).await.refused(422, "idempotency_key_reused");
        let image = Call::post("/v1/images", "{}").user("alice").header("idempotency-key", "route");
        world.send(&keyed("b", &other)).await.refused(402, "seat_exhausted");
        let carol = json!({"user": "carol", "feature": "image", "quantity": 1});
        let of_carol = world.send(&keyed("a", &carol)).await;
        assert_eq!(of_carol.status, 201);
        let part = json!({"credits": "4"});
        let captured = world.send(&end(&first, "capture", &part)).await.json();
        assert_eq!(captured["state"], "captured");
        assert_eq!(made_before(&world.send(&keyed("a", &ask)).await), captured);
        world.send(&keyed("a", &other)).await.refused(422, "idempotency_key_reused");
        world.send(&image).await.is(200);
        world.send(&keyed("route", &other)).await.refused(422, "idempotency_key_reused");
        // What was refused, voided or ended by itself left its key free.
        let mut short = json!({"user": "alice", "feature": "image", "ttl": "1s"});
        let second = world.send(&keyed("b", &short)).await;
        assert_eq!(second.status, 201, "{second:?}");
        let id = second.json()["charge"].as_str().unwrap().to_owned();
        world.pass_until("2026-11-20T12:00:01Z");
        until("it expires", || (world.charge(&id)["state"] == "expired").then_some(())).await;
        short["ttl"] = json!("1m");
        let third = world.send(&keyed("b", &short)).await;
        assert_eq!(third.status, 201, "{third:?}");
        world.send(&end(&third.json(), "void", &json!({}))).await.is(200);
        let fourth = world.send(&keyed("b", &short)).await;
        assert_eq!(fourth.status, 201, "{fourth:?}");
        assert_eq!(made_before(&world.send(&keyed("b", &short)).await), fourth.json());
        world.send(&keyed("", &short)).await.refused(400, "bad_request");
        assert_eq!(world.metric("tollgate_idempotent_replays_total", &[]), 2.0);
        left(&world, "carol", "1", "4", "0");
        world.verify();
    });
}

#[test]
fn d35_of_many_holds_at_once_under_a_key_one_is_made() {
    run(async {
        let world = world();
        for round in 0..10 {
            let ask = json!({"user": "bob", "feature": "image", "quantity": 2});
            let key = format!("round-{round}");
            let calls = (0..24).map(|_| keyed(&key, &ask)).collect();
            let answers: Vec<Answer> = burst(world.gateway(), calls, 12).await;
            let made = answers.iter().filter(|answer| answer.status == 201).count();
            assert_eq!(made, 1, "{answers:?}");
            let charge = answers[0].json();
            for answer in answers.iter().filter(|answer| answer.status != 201) {
                assert_eq!(made_before(answer), charge);
            }
            world.send(&end(&charge, "void", &json!({}))).await.is(200);
        }
        assert_eq!(world.metric("tollgate_holds_open", &[]), 0.0);
        world.verify();
    });
}
