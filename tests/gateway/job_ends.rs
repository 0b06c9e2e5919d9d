//! Jobs and holds that end without their owner: by their deadline, or by an administrator.

use serde_json::json;

use super::jobs::{Jobs, comes_to, org, poll, state, submission, submit};
use crate::support::org::STUDIO;
use crate::support::sample::Sample;
use crate::support::world::TOKEN;
use crate::support::{Access, Answer, Call, Client, Org, Script, World, run, until};

/// An administrator voids an open charge.
pub async fn void(world: &World, charge: &str) -> Answer {
    let path = format!("/v1/orgs/acme/holds/{charge}/void");
    let mut administrator = Client::connect(world.admin_address()).await;
    administrator.send(&Call::post(&path, "").key(TOKEN)).await
}

/// A hold of the holds API.
async fn held(world: &World) -> String {
    let body = json!({"user": "alice", "feature": "image", "ttl": "10m"});
    let made = world.send(&Call::post("/.tollgate/v1/holds", body.to_string()).key(STUDIO)).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.json()["charge"].as_str().unwrap().to_owned()
}

/// How many requests came to this.
fn counted(world: &World, labels: [&str; 3]) -> f64 {
    let [route, outcome, class] = labels;
    let route = format!("route=\"{route}\"");
    let (outcome, class) = (format!("outcome=\"{outcome}\""), format!("class=\"{class}\""));
    world.metric("tollgate_requests_total", &[&route, &outcome, &class])
}

fn open_jobs(world: &World) -> f64 {
    world.metric("tollgate_jobs_open", &[])
}

#[test]
fn d34_d38_what_an_administrator_voids_is_forgotten_at_once_and_counted_once() {
    run(async {
        let sample = Sample::start();
        let world = Jobs::default().world(&sample);
        let (job, charge) = submit(&world, &submission("polls=1")).await;
        let hold = held(&world).await;
        assert_eq!(open_jobs(&world), 1.0);
        for charge in [&charge, &hold, &charge] {
            assert_eq!(void(&world, charge).await.is(200).json()["state"], "voided");
        }
        // Nobody asks any more how it stands, and a poll that tells its end charges nothing.
        assert_eq!(open_jobs(&world), 0.0);
        world.send(&poll(&job)).await.is(200);
        assert_eq!(sample.asked(&format!("/v1/videos/{job}")), 1);
        for route in ["/v1/videos", "-"] {
            assert_eq!(counted(&world, [route, "voided", "none"]), 1.0, "{route}");
        }
        // A request that goes on counts by itself what it finds.
        let call = Call::post("/v1/images", "{}").user("alice").script(&Script::gate("g"));
        let voiding = async {
            until("it is forwarded", || (world.backend.count() == 1).then_some(())).await;
            let charge = world.backend.last().charge().unwrap().to_owned();
            void(&world, &charge).await.is(200);
            world.backend.open("g");
        };
        let (answer, ()) = tokio::join!(world.send(&call), voiding);
        answer.is(200).tells(&[("state", "voided")]);
        assert_eq!(counted(&world, ["/v1/images", "in_doubt", "2xx"]), 1.0);
        assert_eq!(world.metric("tollgate_requests_total", &["\"voided\""]), 2.0);
        world.seat("alice", "0", "100", "0");
    });
}

#[test]
fn d34_d38_what_ends_by_its_deadline_is_counted_once_as_in_doubt() {
    run(async {
        for (more, captured) in [("", 0.0), ("in_doubt = \"capture\"", 1.0)] {
            let sample = Sample::start();
            let world = Jobs { more, ..Jobs::default() }.world(&sample);
            submit(&world, &submission("end=never")).await;
            held(&world).await;
            let in_doubt = |resolution| world.metric("tollgate_in_doubt_total", &[resolution]);
            let of_hold = || counted(&world, ["-", "in_doubt", "none"]);
            let of_job = || counted(&world, ["/v1/videos", "in_doubt", "none"]);
            world.pass_until("2026-11-20T12:10:00Z");
            until("the hold is over", || (in_doubt("voided") == 1.0).then_some(())).await;
            assert_eq!((of_hold(), of_job(), open_jobs(&world)), (1.0, 0.0, 1.0));
            world.pass_until("2026-11-20T14:00:00Z");
            let over = || in_doubt("voided") + in_doubt("captured") == 2.0;
            until("the job is over", || over().then_some(())).await;
            assert_eq!(in_doubt("captured"), captured);
            assert_eq!((of_hold(), of_job(), open_jobs(&world)), (1.0, 1.0, 0.0));
            // They were submitted and made, and nothing else is counted of them.
            let all = world.metric("tollgate_requests_total", &[]);
            let held = world.metric("tollgate_requests_total", &["outcome=\"held\""]);
            assert_eq!((all, held), (4.0, 2.0));
        }
    });
}

#[test]
fn d28_d34_what_nobody_pays_of_a_job_in_doubt_is_counted_where_it_is_charged() {
    run(async {
        for (more, state, operations) in
            [("", "expired", 0.0), ("in_doubt = \"capture\"", "captured", 1.0)]
        {
            let sample = Sample::start();
            let setup = Jobs { more, ..Jobs::default() }.setup(&sample);
            let org = Org::new().settings("mode = \"observe\"").user("alice", "3", Access::None);
            let world = World::with(setup, &org);
            let answer = world.send(&submission("end=never")).await;
            answer.is(200).tells(&[("state", "held"), ("would-refuse", "seat_exhausted")]);
            let charge = answer.told("charge");
            let uncovered = || world.metric("tollgate_uncovered_operations_total", &[]);
            assert_eq!(uncovered(), 0.0);
            world.pass_until("2026-11-20T14:00:00Z");
            comes_to(&world, &charge, state).await;
            until("it is counted", || (open_jobs(&world) == 0.0).then_some(())).await;
            until("so is what nobody pays", || (uncovered() == operations).then_some(())).await;
            let charge = world.charge(&charge);
            if state == "captured" {
                let nobody = json!({"credits": "2", "operations": "1"});
                assert_eq!((&charge["cost"], &charge["uncovered"]), (&json!("5"), &nobody));
                world.seat("alice", "3", "0", "0");
            } else {
                assert_eq!((&charge["cost"], charge.get("uncovered")), (&json!("0"), None));
                world.seat("alice", "0", "3", "0");
            }
        }
    });
}

#[test]
fn d34_d38_a_void_is_noted_and_counted_while_the_archive_cannot_be_read() {
    run(async {
        let sample = Sample::start();
        let world = Jobs::default().world(&sample);
        let (_, charge) = submit(&world, &submission("end=never")).await;
        let archive = world.data().join("archive.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(archive);
        let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
        sqlx::query("ALTER TABLE charges RENAME TO away").execute(&pool).await.unwrap();
        void(&world, &charge).await.refused(503, "books_unavailable");
        let voided = || counted(&world, ["/v1/videos", "voided", "none"]);
        assert_eq!((open_jobs(&world), voided()), (0.0, 1.0));
        let audit = world.admin("/v1/orgs/acme/audit?kind=hold").1;
        assert_eq!(audit["items"][0]["id"], charge);
        world.seat("alice", "0", "100", "0");
        sqlx::query("ALTER TABLE away RENAME TO charges").execute(&pool).await.unwrap();
        pool.close().await;
        let archived = || (world.metric("tollgate_ledger_lag_records", &[]) == 0.0).then_some(());
        until("it is archived", archived).await;
        assert_eq!(void(&world, &charge).await.is(200).json()["state"], "voided");
        assert_eq!(voided(), 1.0);
    });
}

/// A question that hangs while the moment of the last one comes is given up for that; another one
/// that began no later is not.
#[test]
fn d34_a_job_whose_first_question_hangs_is_asked_for_a_last_time_before_its_deadline() {
    run(async {
        let (sample, directory) = (Sample::start(), tempfile::tempdir().unwrap());
        let file = directory.path().join("script");
        let put = |script: &Script| {
            std::fs::write(&file, serde_json::to_string(script).unwrap()).unwrap();
        };
        put(&Script::body("{\"id\":\"a\"}"));
        let mut setup =
            Jobs { poll: "4s", deadline: "2h", ..Jobs::default() }.scripted(&sample, &file);
        let at = setup.limits.find("deadline = \"2h\"").unwrap();
        setup.limits.replace_range(at..at + "deadline = \"2h\"".len(), "deadline = \"12s\"");
        let world = World::with(setup, &org());
        let other = Call::post("/v1/scripted", "{}").user("alice");
        world.send(&other).await.is(200).tells(&[("state", "held")]);
        let (_, charge) = submit(&world, &submission("")).await;
        let done = Script::body("{\"status\":\"succeeded\",\"usage\":{\"seconds\":5}}");
        put(&Script { gate: Some("g".to_owned()), ..done });
        world.signal("HUP");
        world.logged(&["read again"]).await;
        let asked = |path: &str| {
            let seen = world.backend.seen().into_iter().filter(|seen| seen.target == path);
            seen.map(|seen| seen.abandoned).collect::<Vec<_>>()
        };
        let last = || (asked("/v1/videos/a").len() == 2).then(|| asked("/v1/other/a"));
        let of_other = until("it is asked for again", last).await;
        assert_eq!(asked("/v1/videos/a"), [true, false]);
        assert_eq!(of_other, [false], "that was not for the last time");
        world.backend.open("g");
        comes_to(&world, &charge, "captured").await;
        world.pass_until("2026-11-20T12:01:00Z");
        assert_eq!(state(&world, &charge), "captured");
    });
}

/// A job whose first question would come with its deadline is asked for five seconds before. What
/// is asked for in between shows that this was not the first question.
#[test]
fn d34_a_job_is_asked_for_a_last_time_before_its_deadline() {
    run(async {
        let sample = Sample::start();
        let mut setup = Jobs { poll: "8s", deadline: "8s", ..Jobs::default() }.setup(&sample);
        let (both, of_other) =
            ("poll = \"8s\"\ndeadline = \"8s\"", "poll = \"5s\"\ndeadline = \"2h\"");
        let at = setup.limits.rfind(both).unwrap();
        setup.limits.replace_range(at..at + both.len(), of_other);
        let org = Org::new().user("alice", "100", Access::None);
        let world = World::with(setup, &org);
        let (job, charge) = submit(&world, &submission("polls=1")).await;
        let between = Call::post("/v1/scripted", "{}").user("alice");
        let between = between.script(&Script::body("{\"id\":\"between\"}"));
        world.send(&between).await.is(200).tells(&[("state", "held")]);
        until("the other is asked for", || (world.backend.count() == 2).then_some(())).await;
        assert_eq!(sample.asked(&format!("/v1/videos/{job}")), 1);
        comes_to(&world, &charge, "captured").await;
        world.pass_until("2026-11-20T12:01:00Z");
        assert_eq!((state(&world, &charge), open_jobs(&world)), ("captured".to_owned(), 1.0));
    });
}

/// More than can be asked for at once, and the first of them hang longer than anything else ends.
#[test]
fn d34_all_jobs_whose_deadline_passed_are_asked_for_once_however_slow_their_backend_is() {
    run(async {
        let (sample, directory) = (Sample::start(), tempfile::tempdir().unwrap());
        let file = directory.path().join("script");
        let put = |script: &Script| {
            std::fs::write(&file, serde_json::to_string(script).unwrap()).unwrap();
        };
        put(&Script::body("{\"id\":\"a\"}"));
        let mut world = World::with(Jobs::default().scripted(&sample, &file), &org());
        const JOBS: usize = 70;
        // So many are asked for at once.
        const FIRST: usize = 64;
        let call = Call::post("/v1/scripted", "{}").user("alice");
        for _ in 0..JOBS {
            world.send(&call).await.is(200).tells(&[("state", "held")]);
        }
        let done = Script::body("{\"status\":\"succeeded\",\"usage\":{\"seconds\":1}}");
        put(&Script { gate: Some("g".to_owned()), ..done });
        world.crash_and_move_clock("2026-11-20T15:00:00Z");
        let asked = || (world.backend.count() == 2 * JOBS).then_some(());
        until("the last of them are asked for", asked).await;
        // Those did not begin in one moment, and do not end in one.
        let given_up = || world.backend.seen().iter().filter(|seen| seen.abandoned).count();
        until("nobody waits for the first of them", || (given_up() == FIRST).then_some(())).await;
        world.backend.open("g");
        until("all are over", || (open_jobs(&world) == 0.0).then_some(())).await;
        let captured = JOBS - FIRST;
        world.seat("alice", &captured.to_string(), &(100 - captured).to_string(), "0");
    });
}

#[test]
fn d34_jobs_whose_deadline_passed_while_the_gateway_was_down_are_asked_for_before_they_end() {
    run(async {
        let sample = Sample::start();
        let mut world = Jobs::default().world(&sample);
        let (_, done) = submit(&world, &submission("polls=1")).await;
        let (_, failed) = submit(&world, &submission("polls=1, end=failed")).await;
        let (never, lost) = submit(&world, &submission("end=never")).await;
        world.crash_and_move_clock("2026-11-20T15:00:00Z");
        comes_to(&world, &done, "captured").await;
        comes_to(&world, &failed, "voided").await;
        comes_to(&world, &lost, "expired").await;
        assert!(sample.asked(&format!("/v1/videos/{never}")) > 0);
        world.seat("alice", "5", "95", "0");
        world.verify();
    });
}
