//! What a submission and a poll are answered: again under a key, broken, encoded, too long, or
//! when its charge is over or cannot be kept.

use serde_json::json;

use super::idempotency::repeats;
use super::job_ends::void;
use super::jobs::{Jobs, org, poll, report, state, submission};
use crate::support::sample::{REPORT_SECRET, Sample};
use crate::support::{Call, Script, World, run, until};

fn scripted(script: &Script) -> Call {
    Call::post("/v1/scripted", "{}").user("alice").script(script)
}

#[test]
fn d34_a_poll_is_passed_on_as_it_came_and_read_where_it_can_be() {
    run(async {
        let sample = Sample::start();
        let world = Jobs::default().world(&sample);
        let call = Call::post("/v1/scripted", "{}").user("alice");
        let call = call.script(&Script::body("{\"id\":\"a b\"}"));
        let done = Script::body("{\"status\":\"succeeded\",\"usage\":{\"seconds\":1}}");
        let polled = Call::get("/v1/other/a%20b").user("alice").header("accept-encoding", "gzip");
        let encoded = vec![("content-encoding".to_owned(), "br".to_owned())];
        let stream = vec![("content-type".to_owned(), "text/event-stream".to_owned())];
        for (script, settles) in [
            (Script { status: 202, ..done.clone() }, false),
            (Script { status: 404, ..done.clone() }, false),
            (Script { headers: encoded, ..done.clone() }, false),
            (Script { pad: 1_100_000, ..done.clone() }, false),
            (Script { pad: 3_000_000, ..done.clone() }, false),
            (Script { pad: 3_000_000, chunked: true, ..done.clone() }, false),
            (Script { headers: stream, ..done.clone() }, false),
            (Script { truncate: true, ..done.clone() }, false),
            (Script { truncate: true, chunked: true, pad: 300_000, ..done.clone() }, false),
            (Script::body("succeeded"), false),
            (Script::body(""), false),
            (Script { chunked: true, ..done.clone() }, true),
            (Script { pad: 60_000, ..done.clone() }, true),
            (Script { pad: 900_000, chunked: true, ..done.clone() }, true),
            (done.clone(), true),
        ] {
            let charge = world.send(&call).await.told("charge");
            let answer = world.send(&polled.clone().script_plainly(&script)).await;
            let length = script.body.as_ref().unwrap().len() + script.pad;
            assert_eq!(
                (answer.status, answer.whole),
                (script.status, !script.truncate),
                "{script:?}"
            );
            if answer.whole {
                assert_eq!(answer.body.len(), length, "{script:?}");
            }
            let expected = if settles { "captured" } else { "held" };
            assert_eq!(state(&world, &charge), expected, "{script:?}");
            let seen = world.backend.last();
            assert_eq!((seen.charge(), seen.header("accept-encoding")), (None, None));
            // The backend gave one job to all of them.
            world.send(&polled.clone().script_plainly(&done)).await.is(200);
            assert_eq!(state(&world, &charge), "captured");
        }
    });
}

#[test]
fn d34_d35_a_submission_is_answered_again_while_its_job_runs_and_after() {
    run(async {
        let sample = Sample::start();
        let mut world = Jobs::default().world(&sample);
        let keyed = |plan: &str| submission(plan).header("idempotency-key", "k");
        let first = world.send(&keyed("polls=1")).await;
        first.is(200).tells(&[("state", "held")]);
        let job = first.json()["id"].as_str().unwrap().to_owned();
        repeats(&first, &world.send(&keyed("polls=1")).await);
        let other = Call::post("/v1/videos", "{\"seconds\":6}").user("alice");
        let other = other.header("idempotency-key", "k");
        world.send(&other).await.refused(422, "idempotency_key_reused");
        world.kill();
        world.start();
        repeats(&first, &world.send(&keyed("polls=1")).await);
        world.send(&other).await.refused(422, "idempotency_key_reused");
        assert_eq!(sample.stats()["jobs"]["made"], 1);
        world.send(&poll(&job)).await.is(200);
        assert_eq!(state(&world, &first.told("charge")), "captured");
        repeats(&first, &world.send(&keyed("polls=1")).await);
        world.kill();
        world.start();
        repeats(&first, &world.send(&keyed("polls=1")).await);
        world.send(&other).await.refused(422, "idempotency_key_reused");
        world.seat("alice", "5", "95", "0");

        // A job that failed was not charged, so the key makes another one (D35).
        let failing = || submission("polls=1, end=failed").header("idempotency-key", "f");
        let first = world.send(&failing()).await;
        let job = first.is(200).json()["id"].as_str().unwrap().to_owned();
        world.send(&poll(&job)).await.is(200);
        let second = world.send(&failing()).await;
        assert_eq!(second.is(200).header("idempotency-replayed"), None);
        assert_ne!(second.told("charge"), first.told("charge"));
        // A submission that is not answered is in flight.
        let slow = Call::post("/v1/scripted", "{}").user("alice");
        let slow = slow.script(&Script::gate("g")).header("idempotency-key", "s");
        let (mut one, mut two) = (world.client().await, world.client().await);
        let wait = async {
            until("it is held", || (world.backend.count() == 1).then_some(())).await;
            two.send(&slow).await.refused(409, "idempotency_in_flight");
            world.backend.open("g");
        };
        let (answer, ()) = tokio::join!(one.send(&slow), wait);
        answer.is(200);
    });
}

#[test]
fn d34_what_is_no_answer_of_a_submission_is_charged_or_not_at_once() {
    run(async {
        let sample = Sample::start();
        let world = Jobs::default().world(&sample);
        let body = |text: &str| Script::body(text);
        let encoded = Script {
            headers: vec![("content-encoding".to_owned(), "br".to_owned())],
            ..body("{\"id\":\"a\"}")
        };
        let whole = "1";
        for (script, cost, flags) in [
            (body("{}"), whole, json!(["usage_missing"])),
            (body("{\"id\":null}"), whole, json!(["usage_missing"])),
            (body("{\"id\":\"../a\"}"), whole, json!(["usage_missing"])),
            (body("{\"id\":\"\"}"), whole, json!(["usage_missing"])),
            (body("{\"id\":1.5}"), whole, json!(["usage_missing"])),
            (body("{\"id\":\"a\",\"id\":\"b\"}"), whole, json!(["usage_missing"])),
            (body("{\"id\":\"a\""), whole, json!(["usage_missing"])),
            (body("no json"), whole, json!(["usage_missing"])),
            (encoded, whole, json!(["usage_missing"])),
            (Script { pad: 70_000, ..body("{\"id\":\"a\"}") }, whole, json!(["usage_missing"])),
            (body("{\"status\":\"succeeded\",\"usage\":{\"seconds\":0.5}}"), "0.5", json!([])),
            (body("{\"status\":\"succeeded\"}"), whole, json!(["usage_missing"])),
            (Script { chunked: true, ..body("{}") }, whole, json!(["usage_missing"])),
        ] {
            let answer = world.send(&scripted(&script)).await;
            answer.is(200).tells(&[("state", "captured"), ("cost", cost)]);
            assert_eq!(answer.body.len(), script.body.as_ref().unwrap().len() + script.pad);
            assert_eq!(world.charge(&answer.told("charge"))["flags"], flags, "{script:?}");
        }
        let failed = world.send(&scripted(&body("{\"id\":\"a\",\"status\":\"failed\"}"))).await;
        failed.is(200).tells(&[("state", "voided"), ("cost", "0")]);
        let refused = world.send(&scripted(&Script::status(500))).await;
        refused.is(500).tells(&[("state", "voided")]);
        let cut = Script { truncate: true, ..body("{\"id\":\"a\"}") };
        world.send(&scripted(&cut)).await.refused(502, "upstream_failed");
        world.settled().await;
        assert_eq!(world.metric("tollgate_jobs_open", &[]), 0.0);
        // A client that leaves has its job made, and settled, all the same.
        let call = scripted(&Script { gate: Some("g".to_owned()), ..body("{\"id\":\"left\"}") });
        let before = world.backend.count();
        let mut client = world.client().await;
        tokio::select! {
            _ = client.try_send(&call) => panic!("the gate is shut"),
            () = until("it is there", || (world.backend.count() > before).then_some(())) => {}
        }
        client.leave().await;
        world.backend.open("g");
        let open = || (world.metric("tollgate_jobs_open", &[]) == 1.0).then_some(());
        until("the job is known", open).await;
        let charge = world.backend.last().charge().unwrap().to_owned();
        assert_eq!(state(&world, &charge), "held");
    });
}

#[test]
fn d34_submissions_that_are_given_the_same_job_are_charged_each_for_itself() {
    run(async {
        let sample = Sample::start();
        let world = Jobs::default().world(&sample);
        let call = scripted(&Script::body("{\"id\":\"same\"}"));
        let mut charges = Vec::new();
        for _ in 0..3 {
            let answer = world.send(&call).await;
            answer.is(200).tells(&[("state", "held")]);
            charges.push(answer.told("charge"));
        }
        assert_eq!(world.metric("tollgate_jobs_open", &[]), 3.0);
        // A report is of one charge.
        let failed = json!({"status": "failed"});
        let told = world.send(&report(&charges[0], &failed, REPORT_SECRET)).await;
        assert_eq!(told.is(200).json(), json!({"charge": charges[0], "state": "voided"}));
        let states = || charges.iter().map(|charge| state(&world, charge)).collect::<Vec<_>>();
        assert_eq!(states(), ["voided", "held", "held"]);
        // A poll is of the job.
        let done = Script::body("{\"status\":\"succeeded\",\"usage\":{\"seconds\":2}}");
        let polled = Call::get("/v1/other/same").user("alice").script_plainly(&done);
        world.send(&polled).await.is(200);
        assert_eq!(states(), ["voided", "captured", "captured"]);
        assert_eq!(world.metric("tollgate_jobs_open", &[]), 0.0);
        world.seat("alice", "4", "96", "0");
        // The job that is over may be given once more.
        let again = world.send(&call).await;
        again.is(200).tells(&[("state", "held")]);
        assert_eq!(states(), ["voided", "captured", "captured"]);
        assert_eq!(world.metric("tollgate_jobs_open", &[]), 1.0);
    });
}

#[test]
fn d34_f23_a_submission_whose_charge_was_voided_meanwhile_is_answered_and_costs_nothing() {
    run(async {
        let sample = Sample::start();
        let world = Jobs::default().world(&sample);
        let slow = Script { gate: Some("g".to_owned()), ..Script::body("{\"id\":\"late\"}") };
        let call = scripted(&slow).header("idempotency-key", "k");
        let voiding = async {
            until("it is forwarded", || (world.backend.count() == 1).then_some(())).await;
            let charge = world.backend.last().charge().unwrap().to_owned();
            assert_eq!(void(&world, &charge).await.is(200).json()["state"], "voided");
            world.backend.open("g");
            charge
        };
        let mut client = world.client().await;
        let (answer, charge) = tokio::join!(client.send(&call), voiding);
        answer.is(200).tells(&[("charge", &charge), ("state", "voided"), ("cost", "0")]);
        assert_eq!(answer.json(), json!({"id": "late"}));
        assert_eq!(world.metric("tollgate_jobs_open", &[]), 0.0);
        // Nobody follows the job, so whoever sees its end charges nothing.
        let done = Script::body("{\"status\":\"succeeded\",\"usage\":{\"seconds\":2}}");
        let polled = Call::get("/v1/other/late").user("alice").script_plainly(&done);
        world.send(&polled).await.is(200);
        let done = json!({"status": "succeeded"});
        let told = world.send(&report(&charge, &done, REPORT_SECRET)).await;
        assert_eq!(told.is(200).json()["state"], "voided");
        world.seat("alice", "0", "100", "0");
        let counted = |outcome| world.metric("tollgate_requests_total", &[outcome]);
        assert_eq!((counted("\"in_doubt\""), counted("\"held\"")), (1.0, 0.0));
        // What costs nothing leaves its key free.
        let again = world.send(&call).await;
        again.is(200).tells(&[("state", "held")]);
        assert_ne!(again.told("charge"), charge);
        assert_eq!(world.backend.count(), 3);
    });
}

/// The words of a route that stand with each job's hold may be longer than a record.
#[test]
fn d34_a_job_that_cannot_be_recorded_is_charged_whole_and_its_answer_is_given() {
    run(async {
        let sample = Sample::start();
        let mut setup = Jobs::default().setup(&sample);
        let words = format!("succeeded = [\"{}\", ", "x".repeat(300_000));
        setup.limits = setup.limits.replace("succeeded = [", &words);
        let mut world = World::with(setup, &org());
        let call = scripted(&Script::body("{\"id\":\"a\"}")).header("idempotency-key", "k");
        let answer = world.send(&call).await;
        answer.is(200).tells(&[("state", "captured"), ("cost", "1")]);
        assert_eq!(answer.json(), json!({"id": "a"}));
        world.logged(&["what a job's end needs cannot be recorded"]).await;
        let charge = answer.told("charge");
        for _ in 0..2 {
            assert_eq!(world.charge(&charge)["flags"], json!(["usage_missing"]));
            assert_eq!(world.metric("tollgate_jobs_open", &[]), 0.0);
            world.seat("alice", "1", "99", "0");
            repeats(&answer, &world.send(&call).await);
            world.kill();
            world.start();
        }
        assert_eq!(world.backend.count(), 1);
    });
}
