//! Rows of the failure catalogue that are about a charge's end, each by its name: the whole story
//! of each rule is in `settle`.

use std::time::Duration;

use serde_json::json;

use crate::support::{Access, Call, Client, Org, Script, Setup, World, run, until};

fn told(n: &str, script: &Script) -> Call {
    Call::post("/v1/told", format!("{{\"n\":{n}}}")).user("alice").script(script)
}

#[test]
fn f12_explicit_zero_usage_is_zero() {
    run(async {
        let world = World::new(&Org::new().user("alice", "10", Access::None));
        for usage in ["0", "\"0\"", "\"0.000000\""] {
            let answer = world.send(&told("4", &Script::usage(usage))).await;
            answer.is(200).tells(&[("state", "captured"), ("cost", "0"), ("seat", "0")]);
            let charge = world.last_charge();
            assert_eq!((&charge["state"], &charge["flags"]), (&json!("captured"), &json!([])));
        }
        world.settled().await;
        world.seat("alice", "0", "10", "0");
    });
}

#[test]
fn f13_usage_above_the_hold_goes_through_the_waterfall_then_into_overdraft() {
    run(async {
        let world = World::new(&Org::new().pool("1").user("alice", "3", Access::Pool));
        // Held 2; used 8: 1 more of the seat, 2 of the pool (1 Operation), 3 owed.
        let answer = world.send(&told("2", &Script::usage(8))).await;
        answer.is(200).tells(&[("cost", "8"), ("seat", "3"), ("pool", "1"), ("overdraft", "3")]);
        world.seat("alice", "3", "0", "1");
        assert_eq!(world.balance("alice")["overdraft"], "3");
        world.send(&told("1", &Script::usage(1))).await.refused(402, "overdrawn");
        assert_eq!(world.backend.count(), 1);
        world.settled().await;
    });
}

#[test]
fn f14_usage_below_the_hold_returns_to_its_legs_last_first() {
    run(async {
        let world = World::new(&Org::new().pool("6").user("alice", "3", Access::Pool));
        for (usage, seat, pool) in [(4, "3", "0.5"), (3, "0", "1.5"), (0, "0", "0")] {
            let answer = world.send(&told("6", &Script::usage(usage))).await;
            answer.is(200).tells(&[("seat", seat), ("pool", pool)]);
        }
        world.settled().await;
        world.seat("alice", "3", "0", "2");
        assert_eq!(world.pool()["available"], "4");
    });
}

#[test]
fn f21_a_charge_split_over_seat_and_pool_takes_both_or_neither() {
    run(async {
        let world = World::new(&Org::new().pool("0.5").user("alice", "1", Access::Pool));
        // The seat's credit is there, the pool's whole Operation is not.
        let n = |n: &str| Call::post("/v1/images", format!("{{\"n\":{n}}}")).user("alice");
        world.send(&n("3")).await.refused(402, "pool_exhausted");
        world.seat("alice", "0", "1", "0");
        assert_eq!(world.pool()["available"], "0.5");
        world.send(&n("2")).await.is(200).tells(&[("seat", "1"), ("pool", "0.5")]);
        assert_eq!(world.backend.count(), 1);
        world.settled().await;
    });
}

#[test]
fn f24_the_first_requests_of_an_unseen_account_open_it_once() {
    run(async {
        let world = World::new(&Org::new().user("alice", "5", Access::None));
        let call = Call::post("/v1/images", "{}").user("alice");
        let answers = crate::support::burst(world.gateway(), vec![call; 40], 20).await;
        let paid = answers.iter().filter(|answer| answer.status == 200).count();
        assert_eq!((paid, world.backend.count()), (5, 5));
        world.settled().await;
        world.seat("alice", "5", "0", "0");
    });
}

#[test]
fn f74_an_encoded_body_is_passed_on_and_not_looked_into() {
    run(async {
        let world = World::new(&Org::new().user("alice", "10", Access::None));
        // It says so, whatever it is: a bomb is no document.
        let headers = vec![("content-encoding".to_owned(), "gzip".to_owned())];
        let script = Script { headers, ..Script::usage(1) };
        let answer = world.send(&told("3", &script)).await;
        answer.is(200).tells(&[("state", "captured"), ("cost", "3")]);
        assert_eq!(answer.header("content-encoding"), Some("gzip"));
        assert_eq!(world.last_charge()["flags"], json!(["usage_missing"]));
        let plain = vec![("content-encoding".to_owned(), "identity".to_owned())];
        let script = Script { headers: plain, ..Script::usage(1) };
        world.send(&told("3", &script)).await.is(200).tells(&[("cost", "1")]);
        world.settled().await;
        world.seat("alice", "4", "6", "0");
    });
}

#[test]
fn f83_d36_a_panic_in_a_handler_settles_what_it_held_and_harms_nobody_else() {
    run(async {
        let mut world = World::new(&Org::new().user("alice", "10", Access::None));
        world.may_have_panicked = true;
        let headers = vec![("x-planted-panic".to_owned(), "1".to_owned())];
        let planted = Script { headers, ..Script::default() };
        let gateway = world.gateway();
        // Of those that finish, and of one that is not carried.
        for (path, state) in
            [("/v1/images", "voided"), ("/v1/doubt", "captured"), ("/v1/cancel", "voided")]
        {
            let mut client = Client::connect(gateway).await;
            let call = Call::post(path, "{}").user("alice").script(&planted);
            assert!(client.try_send(&call).await.is_err(), "{path}");
            world.settled().await;
            let charge = world.last_charge();
            assert_eq!(charge["state"], json!(state), "{path}");
            assert_eq!(charge["flags"], json!(["in_doubt"]), "{path}");
        }
        let panics = || world.log().iter().filter(|line| line.contains("panicked")).count();
        until("three panics are logged", || (panics() == 3).then_some(())).await;
        assert_eq!(world.metric("tollgate_in_flight_requests", &[]), 0.0);
        // All were settled without their owner, and are counted as they are flagged.
        for (resolution, count) in [("voided", 2.0), ("captured", 1.0)] {
            let resolution = format!("resolution=\"{resolution}\"");
            let counted = || world.metric("tollgate_in_doubt_total", &[&resolution]) == count;
            until("they are counted", || counted().then_some(())).await;
        }
        let outcome = ["outcome=\"in_doubt\""];
        assert_eq!(world.metric("tollgate_requests_total", &outcome), 3.0);
        // All workers are there.
        let calls = vec![Call::post("/v1/images", "{}").user("alice"); 8];
        for answer in crate::support::burst(gateway, calls, 8).await {
            answer.is(200);
        }
        assert_eq!(panics(), 3, "nothing that panicked was polled again");
        world.settled().await;
        world.seat("alice", "9", "1", "0");
    });
}

#[test]
fn f83_a_request_that_ends_within_the_drain_is_answered_and_charged() {
    run(async {
        let mut world = World::new(&Org::new().user("alice", "10", Access::None));
        let call = told("3", &Script { gate: Some("end".to_owned()), ..Script::usage(2) });
        let mut client = world.client().await;
        let asked = async { client.send(&call).await };
        let meanwhile = async {
            until("it is forwarded", || (world.backend.count() == 1).then_some(())).await;
            world.terminate();
            until("it drains", || (world.ops("/readyz").0 == 503).then_some(())).await;
            world.backend.open("end");
        };
        let (answer, ()) = tokio::join!(asked, meanwhile);
        answer.is(200).tells(&[("state", "captured"), ("cost", "2")]);
        assert!(world.stopped().await.success());
        world.verify();
        world.start();
        assert_eq!(world.last_charge()["state"], "captured");
        world.seat("alice", "2", "8", "0");
    });
}

#[test]
fn f83_d36_what_outlasts_the_drain_is_in_doubt_and_resolved_as_its_route_says() {
    run(async {
        let environment = vec![("TOLLGATE__GATEWAY__DRAIN_TIMEOUT".to_owned(), "300ms".to_owned())];
        // Of those that finish, and of those that a client's leaving cancels: the end of the process
        // is nobody's leaving.
        let limits = r#"
[[route]]
method = "POST"
path = "/v1/cancel-doubt"
upstream = "media"
feature = "image"
on_disconnect = "cancel"
in_doubt = "capture"
"#;
        let setup = Setup { environment, limits: limits.to_owned(), ..Setup::default() };
        let mut world = World::with(setup, &Org::new().user("alice", "10", Access::None));
        let gateway = world.gateway();
        let mut clients = tokio::task::JoinSet::new();
        for path in ["/v1/images", "/v1/doubt", "/v1/cancel", "/v1/cancel-doubt"] {
            let call = Call::post(path, "{}").user("alice").script(&Script::gate("never"));
            clients.spawn(
                async move { Client::connect(gateway).await.try_send(&call).await.is_err() },
            );
        }
        until("all are forwarded", || (world.backend.count() == 4).then_some(())).await;
        world.terminate();
        let stopped = tokio::time::timeout(Duration::from_secs(20), world.stopped()).await;
        assert!(stopped.expect("it does not stop").success());
        assert!(clients.join_all().await.into_iter().all(|broken| broken));
        world.verify();
        world.start();
        assert_eq!(world.metric("tollgate_holds_open", &[]), 0.0);
        for seen in world.backend.seen() {
            let charge = world.charge(seen.charge().unwrap());
            let state = if seen.target.ends_with("doubt") { "captured" } else { "voided" };
            assert_eq!((&charge["state"], &charge["flags"]), (&json!(state), &json!(["in_doubt"])));
        }
        world.seat("alice", "2", "8", "0");
    });
}
