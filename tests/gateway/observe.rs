//! Observe mode over sockets (D28): nothing is refused, what would have been is told, and nobody
//! owes anything for it.

use serde_json::{Value, json};

use super::upstreams::{begin, read_until};
use super::usage::{DONE, SSE, Step, charge, chunk, event, head, metered_for, now};
use crate::support::org::{ROBOT, STUDIO};
use crate::support::sample::Sample;
use crate::support::world::micro;
use crate::support::{Access, Answer, Call, Org, Script, Setup, World, burst, run, until};

fn images(user: &str, n: u32) -> Call {
    Call::post("/v1/images", format!("{{\"n\":{n}}}")).user(user)
}

/// Asks for so many and uses so many.
fn told(user: &str, n: u32, used: u32) -> Call {
    Call::post("/v1/told", format!("{{\"n\":{n}}}")).user(user).script(&Script::usage(used))
}

fn hold(body: &Value) -> Call {
    Call::post("/.tollgate/v1/holds", body.to_string()).key(STUDIO)
}

fn capture(charge: &Value, body: &Value) -> Call {
    let path = format!("/.tollgate/v1/holds/{}/capture", charge["charge"].as_str().unwrap());
    Call::post(&path, body.to_string()).key(STUDIO)
}

fn org() -> Org {
    Org::new().pool("2").user("alice", "10", Access::None).user("bob", "3", Access::Pool)
}

fn observing(org: Org) -> Org {
    org.settings("mode = \"observe\"")
}

/// Checks that a charge adds up, that it is owed by nobody and, where it would have been refused,
/// not overage either; and returns its code and what is uncovered of it.
#[track_caller]
fn adds_up(charge: &Value) -> (Option<String>, [String; 2]) {
    let legs = charge["legs"].as_array().unwrap();
    let uncovered = match charge.get("uncovered") {
        None => json!({"credits": "0", "operations": "0"}),
        Some(uncovered) => uncovered.clone(),
    };
    let covered: u64 = legs.iter().map(|leg| micro(&leg["covers"])).sum();
    assert_eq!(covered + micro(&uncovered["credits"]), micro(&charge["cost"]), "{charge}");
    let code = charge.get("would_refuse").map(|code| code.as_str().unwrap().to_owned());
    let flags = charge["flags"].as_array().unwrap();
    assert_eq!(flags.contains(&json!("would_refuse")), code.is_some(), "{charge}");
    for leg in legs {
        assert_ne!(leg["kind"], "overdraft", "{charge}");
        assert!(code.is_none() || leg["kind"] != "overage", "{charge}");
    }
    (code, ["credits", "operations"].map(|unit| uncovered[unit].as_str().unwrap().to_owned()))
}

/// The charge of an answer, and what is uncovered of it.
#[track_caller]
fn charged(world: &World, answer: &Answer) -> (Option<String>, [String; 2]) {
    let charge = world.charge(&answer.told("charge"));
    let found = adds_up(&charge);
    let told = answer.receipt().get("would-refuse").cloned();
    assert_eq!(told, found.0, "{charge}");
    found
}

fn would(code: &str, credits: &str, operations: &str) -> (Option<String>, [String; 2]) {
    let code = (code != "-").then(|| code.to_owned());
    (code, [credits.to_owned(), operations.to_owned()])
}

fn uncovered(world: &World) -> f64 {
    world.metric("tollgate_uncovered_operations_total", &["org=\"acme\""])
}

#[test]
fn d28_an_org_in_observe_mode_is_refused_nothing_and_told_what_would_have_been() {
    run(async {
        let world = World::new(&observing(org()));
        let first = world.send(&images("alice", 4)).await;
        first.is(200).tells(&[("state", "captured"), ("seat", "4"), ("seat-remaining", "6")]);
        assert_eq!(charged(&world, &first), would("-", "0", "0"));
        let answer = world.send(&images("alice", 9)).await;
        answer.is(200).tells(&[
            ("state", "captured"),
            ("cost", "9"),
            ("seat", "6"),
            ("pool", "0"),
            ("overage", "0"),
            ("seat-remaining", "0"),
        ]);
        assert!(!answer.receipt().contains_key("overdraft"));
        assert_eq!(charged(&world, &answer), would("seat_exhausted", "3", "1.5"));
        // 3 credits of the seat leave 8.5 Operations, of which the pool has 2.
        let answer = world.send(&images("bob", 20)).await;
        answer.is(200).tells(&[("seat", "3"), ("pool", "2"), ("pool-remaining", "0")]);
        assert_eq!(charged(&world, &answer), would("pool_exhausted", "13", "6.5"));
        // What only seats may pay has no price in Operations.
        let answer = world.send(&Call::post("/v1/thumb", "").user("bob")).await;
        assert_eq!(charged(&world, answer.is(200)), would("seat_exhausted", "1", "0"));
        let robot = world.send(&Call::post("/v1/images", "{}").key(ROBOT)).await;
        assert_eq!(charged(&world, robot.is(200)), would("pool_exhausted", "1", "0.5"));
        // A head that leaves before its end tells it too.
        let pad = Script { pad: 100_000, ..Script::default() };
        let large = world.send(&images("alice", 1).script(&pad)).await;
        large.is(200).tells(&[("state", "held"), ("would-refuse", "seat_exhausted")]);
        world.settled().await;
        assert_eq!(charged(&world, &large), would("seat_exhausted", "1", "0.5"));
        let failed = world.send(&images("alice", 1).script(&Script::status(503))).await;
        failed.tells(&[("state", "voided"), ("cost", "0")]);
        assert_eq!(charged(&world, &failed), would("seat_exhausted", "0", "0"));
        assert_eq!(world.backend.count(), 7);
        // Who is not known, and what has no price, is refused as ever.
        let stranger = Call::post("/v1/images", "{}").key("tg_nobody_00000000000000");
        world.send(&stranger).await.refused(401, "unauthenticated");
        world.send(&Call::post("/v1/unpriced", "").user("bob")).await.refused(422, "unpriced");
        let wrong = Call::post("/v1/images", "{\"n\":-1}").user("bob");
        world.send(&wrong).await.refused(400, "unquotable");
        assert_eq!(world.backend.count(), 7);

        let outcome = |word: &str| {
            let label = format!("outcome=\"{word}\"");
            world.metric("tollgate_requests_total", &["org=\"acme\"", &label])
        };
        let counted = ["captured", "observed", "voided", "refused"].map(outcome);
        assert_eq!(counted, [1.0, 5.0, 1.0, 2.0]);
        assert_eq!(world.metric("tollgate_refusals_total", &["\"seat_exhausted\""]), 0.0);
        assert_eq!(uncovered(&world), 1.5 + 6.5 + 0.5 + 0.5);
        world.seat("alice", "10", "0", "0");
        world.seat("bob", "3", "0", "2");
        assert_eq!(world.pool()["overage"]["captured"], "0");
        world.accounts_for(&["alice", "bob"]).await;
        world.verify();
    });
}

#[test]
fn d28_what_is_used_is_paid_as_far_as_it_can_be_and_never_owed() {
    run(async {
        let org = org().settings("overage = { bill_up_to = \"1\" }");
        let world = World::new(&observing(org));
        // Not refused, and used beyond what anybody has: not an overdraft.
        let over = world.send(&told("alice", 8, 20)).await;
        over.is(200).tells(&[("cost", "20"), ("seat", "10")]);
        assert_eq!(charged(&world, &over), would("-", "10", "5"));
        assert_eq!(world.balance("alice")["overdraft"], "0");
        // Refused, and used less than was asked for, or more.
        let less = world.send(&told("alice", 5, 3)).await;
        assert_eq!(charged(&world, less.is(200)), would("seat_exhausted", "3", "1.5"));
        let more = world.send(&told("alice", 1, 4)).await;
        assert_eq!(charged(&world, more.is(200)), would("seat_exhausted", "4", "2"));
        // Not refused: what it uses beyond goes past the pool like in any other mode.
        let past = world.send(&told("bob", 3, 8)).await;
        past.is(200).tells(&[("seat", "3"), ("pool", "2"), ("overage", "0.5")]);
        assert_eq!(charged(&world, &past), would("-", "0", "0"));
        // Refused: nothing of it goes past the pool, though half an Operation is left there.
        let capped = world.send(&told("bob", 2, 6)).await;
        capped.is(200).tells(&[("seat", "0"), ("pool", "0"), ("overage", "0")]);
        assert_eq!(charged(&world, &capped), would("overage_cap_reached", "6", "3"));
        assert_eq!(world.pool()["overage"]["captured"], "0.5");
        // Under a key what exceeds the hold is taken before the capture, and the answer is kept.
        let carol = Org { users: Vec::new(), ..Org::new() }.user("carol", "5", Access::None);
        world.apply(&observing(carol));
        let key = |call: Call| call.header("idempotency-key", "once");
        let first = world.send(&key(told("carol", 2, 9))).await;
        first.is(200).tells(&[("cost", "9"), ("seat", "5"), ("seat-remaining", "0")]);
        assert_eq!(charged(&world, &first), would("-", "4", "2"));
        let again = world.send(&key(told("carol", 2, 9))).await;
        super::idempotency::repeats(&first, &again);
        let exhausted = told("carol", 2, 2).header("idempotency-key", "other");
        let first = world.send(&exhausted).await;
        assert_eq!(charged(&world, first.is(200)), would("seat_exhausted", "2", "1"));
        super::idempotency::repeats(&first, &world.send(&exhausted).await);
        let pad = Script { pad: 100_000, ..Script::default() };
        let large = images("carol", 1).header("idempotency-key", "large").script(&pad);
        world.send(&large).await.is(200);
        world.settled().await;
        let again = world.send(&large).await;
        assert_eq!(again.json()["code"], "already_charged");
        again.tells(&[("state", "captured"), ("would-refuse", "seat_exhausted")]);
        assert_eq!(uncovered(&world), 5.0 + 1.5 + 2.0 + 3.0 + 2.0 + 1.0 + 0.5);
        world.verify();
    });
}

#[test]
fn d28_a_hold_is_settled_in_the_mode_in_which_it_was_made_also_after_a_restart() {
    run(async {
        let mut world = World::new(&observing(org()));
        let ask = |n: u32| hold(&json!({"user": "alice", "feature": "image", "quantity": n}));
        let held = async |world: &World, n| {
            let answer = world.send(&ask(n)).await;
            assert_eq!(answer.status, 201, "{answer:?}");
            answer.json()
        };
        let plain = held(&world, 8).await;
        assert_eq!(adds_up(&plain), would("-", "0", "0"));
        let short = held(&world, 6).await;
        assert_eq!(adds_up(&short), would("seat_exhausted", "4", "2"));
        let void = held(&world, 2).await;
        assert_eq!(adds_up(&void), would("seat_exhausted", "2", "1"));
        let whole = held(&world, 1).await;
        assert_eq!(world.charge(short["charge"].as_str().unwrap()), short);
        world.kill();
        world.start();
        world.apply(&org());
        assert_eq!(world.charge(short["charge"].as_str().unwrap()), short);
        let ends = async |world: &World, charge: &Value, body: Value| {
            let answer = world.send(&capture(charge, &body)).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let ended = answer.json();
            // What is told at once is what the ledger says, and what is told again.
            assert_eq!(world.charge(charge["charge"].as_str().unwrap()), ended);
            assert_eq!(world.send(&capture(charge, &body)).await.json(), ended);
            ended
        };
        let ended = ends(&world, &plain, json!({"quantity": 12})).await;
        assert_eq!(adds_up(&ended), would("-", "4", "2"));
        let ended = ends(&world, &short, json!({"quantity": 3})).await;
        assert_eq!(adds_up(&ended), would("seat_exhausted", "1", "0.5"));
        let ended = ends(&world, &whole, json!({})).await;
        assert_eq!(adds_up(&ended), would("seat_exhausted", "1", "0.5"));
        let path = format!("/.tollgate/v1/holds/{}/void", void["charge"].as_str().unwrap());
        let ended = world.send(&Call::post(&path, "").key(STUDIO)).await.json();
        assert_eq!(adds_up(&ended), would("seat_exhausted", "0", "0"));
        assert_eq!(world.balance("alice")["overdraft"], "0");
        assert_eq!(uncovered(&world), 3.0);
        let outcome = |label| world.metric("tollgate_requests_total", &["org=\"acme\"", label]);
        assert_eq!(["\"captured\"", "\"observed\"", "\"voided\""].map(outcome), [1.0, 2.0, 1.0]);
        world.send(&ask(1)).await.refused(402, "seat_exhausted");
        world.verify();
    });
}

#[test]
fn d28_a_change_of_mode_is_in_force_at_once_and_nobody_is_overdrawn_by_it() {
    run(async {
        let world = World::new(&org());
        let mut client = world.client().await;
        // Alice owes from before.
        client.send(&told("alice", 10, 12)).await.is(200).tells(&[("overdraft", "2")]);
        client.send(&images("alice", 1)).await.refused(402, "overdrawn");
        for _ in 0..3 {
            world.apply(&observing(org()));
            let answer = client.send(&images("alice", 1)).await;
            assert_eq!(charged(&world, answer.is(200)), would("overdrawn", "1", "0.5"));
            client.send(&told("bob", 3, 30)).await.is(200);
            assert_eq!(world.balance("bob")["overdraft"], "0");
            let (status, settings) = world.admin("/v1/orgs/acme");
            assert_eq!((status, &settings["mode"]), (200, &json!("observe")), "{settings}");
            world.apply(&org());
            client.send(&images("alice", 1)).await.refused(402, "overdrawn");
            client.send(&images("bob", 1)).await.refused(402, "pool_exhausted");
        }
        assert_eq!(world.balance("alice")["overdraft"], "2");
        // What would be decided is what a quote says, in either mode.
        for org in [org(), observing(org())] {
            world.apply(&org);
            let body = json!({"feature": "image"}).to_string();
            let quote = world.send(&Call::post("/.tollgate/v1/quotes", body).user("bob")).await;
            let quote = quote.json();
            let found = (&quote["verdict"], &quote["code"]);
            assert_eq!(found, (&json!("refuse"), &json!("pool_exhausted")), "{quote}");
        }
        world.verify();
    });
}

#[test]
fn d28_a_route_in_observe_mode_is_one_of_many_and_may_change_while_it_runs() {
    run(async {
        let world = World::new(&org());
        let observed = |n: u32| Call::post("/v1/observed", format!("{{\"n\":{n}}}")).user("alice");
        let answer = world.send(&observed(12)).await;
        assert_eq!(charged(&world, answer.is(200)), would("seat_exhausted", "2", "1"));
        world.send(&images("alice", 1)).await.refused(402, "seat_exhausted");
        world
            .send(&hold(&json!({"user": "alice", "feature": "image"})))
            .await
            .refused(402, "seat_exhausted");
        world.reloaded(true).await;
        world.edit(|text| text.replace("mode = \"observe\"", "mode = \"enforce\""));
        world.signal("HUP");
        while world.send(&observed(1)).await.status != 402 {}
        world.send(&observed(1)).await.refused(402, "seat_exhausted");
        // A route does not take its org's mode back.
        world.apply(&observing(org()));
        let answer = world.send(&observed(1)).await;
        answer.is(200).tells(&[("would-refuse", "seat_exhausted")]);
        world.verify();
    });
}

#[test]
fn d28_f22_many_at_once_are_all_served_and_nothing_is_spent_twice() {
    run(async {
        let org = Org::new()
            .pool("20.25")
            .user("alice", "30.5", Access::None)
            .user("bob", "7", Access::Pool)
            .user("carol", "", Access::Pool);
        let world = World::new(&observing(org));
        let calls = (0..600).map(|at: usize| match at % 3 {
            0 => told("alice", 2, 3),
            1 => images("bob", 1),
            _ => told("carol", 3, 1),
        });
        let answers = burst(world.gateway(), calls.collect(), 40).await;
        assert!(answers.iter().all(|answer| answer.status == 200));
        world.accounts_for(&["alice", "bob", "carol"]).await;
        let (mut operations, mut observed) = (0, 0);
        for seen in world.backend.seen() {
            let charge = world.charge(seen.charge().unwrap());
            let (code, [_, uncovered]) = adds_up(&charge);
            operations += micro(&json!(uncovered));
            observed += usize::from(code.is_some());
        }
        let counted = world.metric("tollgate_requests_total", &["outcome=\"observed\""]);
        assert_eq!(counted, observed as f64);
        assert!((500..600).contains(&observed), "{observed}");
        assert_eq!((uncovered(&world) * 1e6).round() as u64, operations);
        // All that there was is spent: once.
        let balance = world.balance("alice");
        assert_eq!(
            (&balance["seat"]["captured"], &balance["overdraft"]),
            (&json!("30.5"), &json!("0"))
        );
        assert_eq!(world.pool()["captured"], "20.25");
        assert_eq!(world.pool()["overage"]["captured"], "0");
        world.verify();
    });
}

#[test]
fn d28_d36_a_charge_that_a_crash_captures_says_what_nobody_paid() {
    run(async {
        let mut world = World::new(&observing(org()));
        world.send(&images("alice", 8)).await.is(200);
        let gate = Script::gate("never");
        let call = Call::post("/v1/doubt", "{}").user("bob").script(&gate);
        let seat = Call::post("/v1/thumb", "").user("alice");
        for _ in 0..2 {
            world.send(&seat).await.is(200);
        }
        let doubt = Call::post("/v1/doubt", "{}").user("alice").script(&gate);
        let gateway = world.gateway();
        let mut asking = tokio::task::JoinSet::new();
        for call in [call, doubt] {
            asking.spawn(async move {
                crate::support::Client::connect(gateway).await.try_send(&call).await
            });
        }
        until("they are forwarded", || (world.backend.count() == 5).then_some(())).await;
        world.kill();
        asking.join_all().await;
        world.start();
        let seen = world.backend.seen();
        let doubts = seen.iter().filter(|seen| seen.target == "/v1/doubt");
        let mut found: Vec<_> = doubts
            .map(|seen| {
                let charge = world.charge(seen.charge().unwrap());
                assert_eq!(charge["state"], "captured");
                assert!(charge["flags"].as_array().unwrap().contains(&json!("in_doubt")));
                adds_up(&charge)
            })
            .collect();
        found.sort();
        assert_eq!(found, [would("-", "0", "0"), would("seat_exhausted", "1", "0.5")]);
        world.verify();
    });
}

/// A stream that tells usage up to 12 and is held five at a time, against a seat of seven: what
/// came of it when its client got to this event, and the gateway was killed or went on.
async fn sliced(events: u32, kill: bool) -> (Value, World) {
    let each = (1..=12).flat_map(|n| [Step::Wait, event(&n.to_string())]);
    let end = [Step::Wait, chunk(DONE), Step::End("")];
    let steps: Vec<Step> = [head(SSE)].into_iter().chain(each).chain(end).collect();
    let five = "hold = \"slice\"\nquantity = { const = 5 }\nusage = { sse_json = \"/usage/n\" }";
    let org = observing(Org::new().user("alice", "7", Access::None));
    let (mut world, backend, go) = metered_for(&org, vec![("chat", steps)], &[("/chat", five)]);
    let mut stream = begin(&world, "POST /chat", "content-length: 0\r\n").await;
    for n in 1..=events {
        go.send(()).unwrap();
        read_until(&mut stream, &format!("\"n\":{n}}}")).await;
    }
    // Three slices are held, of which the seat has seven.
    let open = now(&world, &backend);
    assert_eq!((&open["state"], &open["cost"]), (&json!("held"), &json!("15")), "{open}");
    assert_eq!(
        (&open["quantity"], adds_up(&open)),
        (&json!("15"), would("seat_exhausted", "8", "4"))
    );
    if kill {
        world.kill();
        world.start();
    } else {
        go.send(()).unwrap();
        read_until(&mut stream, "0\r\n\r\n").await;
    }
    (charge(&world, &backend).await, world)
}

#[test]
fn d28_f82_a_stream_in_slices_goes_on_and_what_nobody_pays_of_it_is_told() {
    run(async {
        let (charge, world) = sliced(12, false).await;
        assert_eq!((&charge["state"], &charge["cost"]), (&json!("captured"), &json!("12")));
        let expected = (Some("seat_exhausted".to_owned()), ["5".to_owned(), "2.5".to_owned()]);
        assert_eq!(adds_up(&charge), expected);
        world.seat("alice", "7", "0", "0");
        assert_eq!(world.balance("alice")["overdraft"], "0");
        assert_eq!(world.metric("tollgate_uncovered_operations_total", &[]), 2.5);
        assert_eq!(world.metric("tollgate_refusals_total", &[]), 0.0);
    });
}

#[test]
fn d28_f03_what_nobody_pays_of_a_stream_in_slices_is_known_when_the_gateway_is_killed() {
    run(async {
        // The third slice, which nobody pays, was held when ten were known to be used.
        let (charge, world) = sliced(11, true).await;
        assert_eq!((&charge["state"], &charge["cost"]), (&json!("captured"), &json!("10")));
        let expected = (Some("seat_exhausted".to_owned()), ["3".to_owned(), "1.5".to_owned()]);
        assert_eq!(adds_up(&charge), expected);
        world.seat("alice", "7", "0", "0");
    });
}

#[test]
fn d28_d34_a_job_is_settled_in_the_mode_that_it_was_held_in() {
    run(async {
        let sample = Sample::start();
        let routes = format!(
            "[[upstream]]\nname = \"sample\"\nurls = [\"http://{}\"]\n\
             [[route]]\nmethod = \"POST\"\npath = \"/v1/videos\"\nupstream = \"sample\"\n\
             feature = \"image\"\nquantity = {{ json = \"/seconds\" }}\n\
             usage = {{ json = \"/usage/seconds\" }}\n\
             job = {{ id = \"/id\", status_path = \"/v1/videos/{{job}}\", status = \"/status\", \
             succeeded = [\"succeeded\"], failed = [\"failed\"], poll = \"1h\" }}\n\
             [[route]]\npath = \"/v1/videos/{{id}}\"\nupstream = \"sample\"\nfree = true\n",
            sample.address
        );
        let org = Org::new().user("alice", "3", Access::None);
        let setup = Setup { limits: routes, ..Setup::default() };
        let world = World::with(setup, &observing(org.clone()));
        // Nine seconds are used, which is more than was asked for and more than there is.
        let submit = Call::post("/v1/videos", "{\"seconds\":5}").user("alice");
        let submit = submit.header("x-sample-usage", "9").header("x-sample-job", "polls=1");
        let answer = world.send(&submit).await;
        answer.is(200).tells(&[("state", "held"), ("would-refuse", "seat_exhausted")]);
        // The mode of then, not of now.
        world.apply(&org.settings("mode = \"enforce\""));
        let poll = format!("/v1/videos/{}", answer.json()["id"].as_str().unwrap());
        world.send(&Call::get(&poll).user("alice")).await.is(200);
        world.settled().await;
        let charge = world.charge(&answer.told("charge"));
        assert_eq!((&charge["state"], &charge["cost"]), (&json!("captured"), &json!("9")));
        let expected = (Some("seat_exhausted".to_owned()), ["6".to_owned(), "3".to_owned()]);
        assert_eq!(adds_up(&charge), expected);
        assert_eq!(world.balance("alice")["overdraft"], "0");
    });
}
