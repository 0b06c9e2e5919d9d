//! The process around the gateway: metrics, health, the end, and the demo.

use std::time::{Duration, Instant};

use crate::support::world::{micro, tollgate};
use crate::support::{
    Access, Answer, Call, Client, Org, PATIENCE, Script, Setup, World, burst, run, until,
};

/// Names of the contract that exist now; the others come with the parts that they watch.
const METRICS: [&str; 14] = [
    "tollgate_requests_total",
    "tollgate_credits_captured_total",
    "tollgate_operations_captured_total",
    "tollgate_refusals_total",
    "tollgate_overhead_duration_seconds_bucket",
    "tollgate_upstream_duration_seconds_bucket",
    "tollgate_books_duration_seconds_bucket",
    "tollgate_in_flight_requests",
    "tollgate_holds_open",
    "tollgate_hold_oldest_age_seconds",
    "tollgate_in_doubt_total",
    "tollgate_ledger_lag_records",
    "tollgate_ledger_lag_seconds",
    "tollgate_build_info",
];

fn image(user: &str) -> Call {
    Call::post("/v1/images", "{}").user(user)
}

#[test]
fn d38_counters_equal_what_the_ledger_says() {
    run(async {
        let org = Org::new()
            .settings("overage = \"bill\"")
            .pool("20.25")
            .user("alice", "30.5", Access::None)
            .user("bob", "7", Access::Pool);
        let world = World::new(&org);
        let mut calls = Vec::new();
        for at in 0..300 {
            let call = match at % 6 {
                0 => Call::post("/v1/told", "{\"n\":3}").script(&Script::usage(1)),
                1 => Call::post("/v1/images", "{}").script(&Script::status(503)),
                2 => Call::post("/v1/images", "{\"n\":\"0.3\"}"),
                3 => Call::post("/v1/recolor", "x"),
                4 => Call::post("/v1/unpriced", "x"),
                _ => Call::post("/v1/images", "{}")
                    .script(&Script { pad: 100_000, ..Script::default() }),
            };
            calls.push(call.user(["alice", "bob"][at / 6 % 2]));
        }
        let answers = burst(world.gateway(), calls, 16).await;
        world.accounts_for(&["alice", "bob"]).await;
        let count = |is: &dyn Fn(&Answer) -> bool| answers.iter().filter(|a| is(a)).count() as f64;
        let total = |labels: &[&str]| world.metric("tollgate_requests_total", labels);
        let captured = count(&|answer| answer.status == 200);
        assert_eq!(
            total(&["outcome=\"captured\"", "status_class=\"2xx\"", "org=\"acme\""]),
            captured
        );
        let refusals = |code: &str| world.metric("tollgate_refusals_total", &[code]);
        // Whoever is overtaken too often where a seat runs out is refused with the status that the
        // backend answers with here.
        let is_contended = |answer: &Answer| {
            let is_ours = answer.header("content-type") == Some("application/problem+json");
            answer.status == 503 && is_ours && answer.json()["code"] == "books_contended"
        };
        let contended = count(&is_contended);
        assert_eq!(refusals("\"books_contended\""), contended);
        let failed = count(&|answer| answer.status == 503) - contended;
        assert!(failed > 0.0);
        assert_eq!(total(&["outcome=\"voided\"", "status_class=\"5xx\""]), failed);
        let refused = count(&|answer| [402, 422].contains(&answer.status));
        assert_eq!(total(&["outcome=\"refused\""]), refused + contended);
        assert_eq!(total(&[]), 300.0);
        assert_eq!(refusals("\"unpriced\""), 50.0);
        let exhausted = count(&|answer| answer.status == 402);
        assert!(exhausted > 0.0);
        assert_eq!(refusals("\"seat_exhausted\""), exhausted);
        let units = |value: f64| (value * 1e6).round() as u64;
        let balance = |user: &str| micro(&world.balance(user)["seat"]["captured"]);
        let credits = world.metric("tollgate_credits_captured_total", &["org=\"acme\""]);
        assert_eq!(units(credits), balance("alice") + balance("bob"));
        let pool = world.pool();
        for (source, captured) in
            [("pool", &pool["captured"]), ("overage", &pool["overage"]["captured"])]
        {
            let label = format!("source=\"{source}\"");
            let counted = world.metric("tollgate_operations_captured_total", &[&label]);
            assert_eq!(units(counted), micro(captured), "{source}");
            assert!(counted > 0.0);
        }
        for (name, stated) in [
            ("tollgate_pool_granted_operations", &pool["granted"]),
            ("tollgate_pool_available_operations", &pool["available"]),
            ("tollgate_pool_held_operations", &pool["held"]),
            ("tollgate_overage_operations", &pool["overage"]["captured"]),
        ] {
            assert_eq!(units(world.metric(name, &["org=\"acme\""])), micro(stated), "{name}");
        }
        let (_, text) = world.ops("/metrics");
        for name in METRICS {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name} is not there");
        }
        for secret in [crate::support::org::STUDIO, "alice", "bob", "lic-"] {
            assert!(!text.contains(secret), "{secret} is in the metrics");
        }
        let seen = world.metric("tollgate_upstream_duration_seconds_count", &["headers", "media"]);
        assert_eq!(seen, world.backend.count() as f64);
    });
}

#[test]
fn health_says_whether_traffic_should_come() {
    run(async {
        let world = World::new(&Org::new().user("alice", "1", Access::None));
        for path in ["/livez", "/readyz", "/startupz", "/readyz?verbose"] {
            assert_eq!(world.ops(path).0, 200, "{path}");
        }
        assert!(world.ops("/readyz?verbose").1.contains("[+]"));
        assert_eq!(world.ops("/nothing").0, 404);
        let (status, problem) = world.admin("/v1/orgs/nobody/pool");
        assert_eq!((status, problem["code"].as_str()), (404, Some("not_found")));
    });
}

#[test]
fn f83_sigterm_drains_serves_finishes_and_exits_with_0() {
    run(async {
        let setup = Setup { drain: "5s".to_owned(), ..Setup::default() };
        let mut world = World::with(setup, &Org::new().user("alice", "10", Access::None));
        let gateway = world.gateway();
        let mut early = Client::connect(gateway).await;
        let gated = image("alice").script(&Script::gate("go"));
        let slow = Script { half: Some("go".to_owned()), pad: 300_000, ..Script::default() };
        let slow = image("alice").script(&slow);
        let drain = async {
            until("both are in flight", || (world.backend.count() == 2).then_some(())).await;
            world.terminate();
            until("it is not ready", || (world.ops("/readyz").0 == 503).then_some(())).await;
            assert_eq!(world.ops("/livez").0, 200);
            // Whoever has not heard of it is still served.
            world.send(&image("alice")).await.is(200);
            let closed = async {
                let deadline = Instant::now() + PATIENCE;
                while Client::try_connect(gateway).await.is_some() {
                    assert!(Instant::now() < deadline, "it never stops accepting");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            closed.await;
            assert_eq!(world.metric("tollgate_holds_open", &[]), 2.0, "it waits for them");
            world.backend.open("go");
        };
        let (first, second, ()) = tokio::join!(early.send(&gated), world.send(&slow), drain);
        first.is(200).tells(&[("state", "captured")]);
        second.is(200).tells(&[("state", "held")]);
        let status = world.stopped().await;
        assert_eq!(status.code(), Some(0));
        world.verify();
        world.start();
        world.seat("alice", "3", "7", "0");
    });
}

#[test]
fn the_demo_plays_its_walk_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (tmp, cwd) = (dir.path().join("tmp"), dir.path().join("cwd"));
    for path in [&tmp, &cwd] {
        std::fs::create_dir(path).unwrap();
    }
    let demo = tollgate().args(["demo", "--once"]).env("TMPDIR", &tmp).current_dir(&cwd).output();
    let output = demo.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for word in
        ["state=captured", "seat_exhausted", "pool_limit_reached", "state=voided", "overage="]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
    for path in [&tmp, &cwd] {
        let left: Vec<_> = std::fs::read_dir(path).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_file_that_is_wrong_anywhere_changes_nothing() {
    run(async {
        let org = Org::new().user("alice", "10", Access::None);
        let world = World::new(&org);
        let wrong =
            org.clone().user("bob", "10", Access::None).more("groups = [\"nobody-defined\"]");
        let output = world.try_apply(&wrong.toml());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("nobody-defined"), "{output:?}");
        world.send(&image("bob")).await.refused(403, "unknown_user");
        world.send(&image("alice")).await.is(200);
        assert!(world.log().iter().all(|line| !line.contains(crate::support::org::STUDIO)));
    });
}
