//! Jobs that one gateway took and another one sees: whoever sees the end first settles it (D34).

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::jobs::{Jobs, comes_to, org, poll, state, submission, submit};
use super::several::Shared;
use crate::support::redis::RedisServer;
use crate::support::sample::Sample;
use crate::support::{Call, Client, World, run, until};

/// Two gateways of one backend for jobs.
fn gateways(shared: &Shared, jobs: &Jobs<'_>, sample: &Sample) -> [World; 2] {
    let world = || {
        let mut setup = jobs.setup(sample);
        setup.environment.extend(shared.environment.clone());
        World::with(setup, &org())
    };
    [world(), world()]
}

fn open_jobs(world: &World) -> f64 {
    world.metric("tollgate_jobs_open", &[])
}

fn change(method: &'static str, job: &str, below: &str) -> Call {
    Call::with(method, &format!("/v1/videos/{job}{below}"), "").user("alice")
}

#[test]
fn d34_the_poll_that_sees_the_end_at_another_gateway_settles_before_it_is_answered() {
    run(async {
        let (sample, shared) = (Sample::start(), Shared::new().await);
        let [one, two] = gateways(&shared, &Jobs::default(), &sample);
        let (job, charge) = submit(&one, &submission("polls=2")).await;
        let first = two.send(&poll(&job)).await;
        assert_eq!(first.is(200).json()["status"], "in_progress");
        // From now on both look after it.
        assert_eq!((open_jobs(&one), open_jobs(&two)), (1.0, 1.0));
        assert_eq!(state(&two, &charge), "held");
        let second = two.send(&poll(&job)).await;
        assert_eq!(second.is(200).json()["status"], "succeeded");
        let settled = two.charge(&charge);
        assert_eq!((&settled["state"], &settled["cost"]), (&json!("captured"), &json!("5")));
        assert_eq!((open_jobs(&one), open_jobs(&two)), (1.0, 0.0));
        // The one that took it finds it over.
        assert_eq!(one.send(&poll(&job)).await.is(200).body, second.body);
        assert_eq!((open_jobs(&one), open_jobs(&two)), (0.0, 0.0));
        let captured =
            |world: &World| world.metric("tollgate_requests_total", &["outcome=\"captured\""]);
        assert_eq!((captured(&one), captured(&two)), (0.0, 1.0));
        for world in [&one, &two] {
            world.seat("alice", "5", "95", "0");
        }
        // One that is over is nobody's, and one that failed costs nothing.
        two.send(&poll(&job)).await.is(200);
        let (job, charge) = submit(&one, &submission("polls=1, end=failed")).await;
        two.send(&poll(&job)).await.is(200);
        assert_eq!((state(&one, &charge), open_jobs(&two)), ("voided".to_owned(), 0.0));
        // Another org's callers know nothing of it, and what names no job is only passed on.
        let (job, charge) = submit(&one, &submission("polls=1")).await;
        assert_eq!(two.send(&poll("nothing")).await.status, 404);
        assert_eq!(open_jobs(&two), 0.0);
        two.send(&poll(&job)).await.is(200);
        assert_eq!(state(&one, &charge), "captured");
        two.seat("alice", "10", "90", "0");
    });
}

#[test]
fn d34_nothing_is_done_to_a_job_of_another_gateway_before_it_was_asked_how_it_stands() {
    run(async {
        let (sample, shared) = (Sample::start(), Shared::new().await);
        let [one, two] = gateways(&shared, &Jobs::default(), &sample);
        let own = |seen: &Value| seen["headers"]["x-request-id"].as_str().map(str::to_owned);
        for (method, below) in [("DELETE", ""), ("POST", "/cancel"), ("PATCH", "?x")] {
            let (job, charge) = submit(&one, &submission("polls=1")).await;
            let answer = two.send(&change(method, &job, below)).await;
            assert!(matches!(answer.status, 200 | 405), "{answer:?}");
            assert_eq!(state(&two, &charge), "captured", "{method}");
            let seen = sample.requests(&format!("/v1/videos/{job}"));
            assert_eq!((&seen[0]["method"], own(&seen[0])), (&json!("GET"), Some(charge)));
        }
        // What only looks has it asked for soon.
        let (job, charge) = submit(&one, &submission("polls=1")).await;
        two.send(&Call::get(&format!("/v1/videos/{job}?x")).user("alice")).await.is(200);
        comes_to(&two, &charge, "captured").await;
        // Where the backend does not tell, nothing is done.
        let (job, charge) = submit(&one, &submission("polls=2, sick=1")).await;
        let cancel = change("POST", &job, "/cancel");
        two.send(&cancel).await.refused(502, "upstream_failed");
        assert_eq!(state(&two, &charge), "held");
        two.send(&cancel).await.is(200);
        assert_eq!(state(&two, &charge), "captured");
        two.seat("alice", "25", "75", "0");
    });
}

/// One job for two submissions, one at each gateway: what is done to it is done to both.
#[test]
fn d34_a_job_of_two_charges_is_asked_for_with_both_before_it_is_changed() {
    run(async {
        let (sample, shared) = (Sample::start(), Shared::new().await);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("script");
        let put = |script: &crate::support::Script| {
            std::fs::write(&file, serde_json::to_string(script).unwrap()).unwrap();
        };
        put(&crate::support::Script::body("{\"id\":\"a\"}"));
        let mut setup = Jobs::default().scripted(&sample, &file);
        setup.environment.extend(shared.environment.clone());
        let one = World::with(setup.clone(), &org());
        // Both have the first one's backend.
        let backend = one.backend.address.to_string();
        setup.limits = setup.limits.replace("@backend@", &backend);
        let two = World::with(setup, &org());
        let (_, first) = submit(&one, &submission("")).await;
        let (_, second) = submit(&two, &submission("")).await;
        let done = "{\"status\":\"succeeded\",\"usage\":{\"seconds\":2}}";
        put(&crate::support::Script::body(done));
        for world in [&one, &two] {
            world.signal("HUP");
            world.logged(&["read again"]).await;
        }
        two.send(&change("DELETE", "a", "")).await.is(200);
        for charge in [&first, &second] {
            assert_eq!(state(&one, charge), "captured");
        }
        one.seat("alice", "4", "96", "0");
    });
}

#[test]
fn d34_f23_of_two_gateways_that_see_the_end_at_once_one_settles() {
    run(async {
        let (sample, shared) = (Sample::start(), Shared::new().await);
        let jobs = Jobs { poll: "200ms", ..Jobs::default() };
        let worlds = gateways(&shared, &jobs, &sample);
        let small = Call::post("/v1/videos", "{\"seconds\":1}").user("alice");
        let small = small.header("x-sample-job", "polls=3");
        let mut charges = Vec::new();
        let mut asking = JoinSet::new();
        for at in 0..20 {
            let (job, charge) = submit(&worlds[at % 2], &small).await;
            for (world, call) in [
                (&worlds[0], poll(&job)),
                (&worlds[1], poll(&job)),
                (&worlds[1 - at % 2], change("POST", &job, "/cancel")),
            ] {
                let to = world.gateway();
                asking.spawn(async move { Client::connect(to).await.send(&call).await });
            }
            charges.push(charge);
        }
        for answer in asking.join_all().await {
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        for world in &worlds {
            until("no job is open", || (open_jobs(world) == 0.0).then_some(())).await;
        }
        let captured: Vec<&String> =
            charges.iter().filter(|charge| state(&worlds[0], charge) == "captured").collect();
        let (count, left) = (captured.len(), 100 - captured.len());
        worlds[1].seat("alice", &count.to_string(), &left.to_string(), "0");
        let counted = |outcome: &str| -> f64 {
            worlds.iter().map(|world| world.metric("tollgate_requests_total", &[outcome])).sum()
        };
        assert_eq!(counted("outcome=\"captured\""), count as f64);
        assert_eq!(counted("outcome=\"voided\""), (20 - count) as f64);
    });
}

#[test]
fn d34_f25_while_redis_is_away_polls_pass_and_nothing_is_done_to_a_job() {
    run(async {
        let server = Arc::new(RedisServer::start());
        let mut shared = Shared::on(server).await;
        shared.environment.push(("TOLLGATE__BOOKS__TIMEOUT".to_owned(), "2s".to_owned()));
        let sample = Sample::start();
        let [one, two] = gateways(&shared, &Jobs::default(), &sample);
        let (job, charge) = submit(&one, &submission("polls=1")).await;
        shared.redis.pause(true);
        assert_eq!(two.send(&poll(&job)).await.is(200).json()["status"], "succeeded");
        two.send(&change("DELETE", &job, "")).await.refused(503, "books_unavailable");
        let methods = sample.requests(&format!("/v1/videos/{job}"));
        assert!(methods.iter().all(|seen| seen["method"] == "GET"), "{methods:?}");
        shared.redis.pause(false);
        let delete = change("DELETE", &job, "");
        let mut answer = two.send(&delete).await;
        while answer.status == 503 {
            answer = two.send(&delete).await;
        }
        assert_eq!(state(&two, &charge), "captured");
        one.seat("alice", "5", "95", "0");
    });
}
