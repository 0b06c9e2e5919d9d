//! Jobs (D34): held with the submission, settled once by whoever sees the end first.

use serde_json::{Value, json};

use crate::support::org::STUDIO;
use crate::support::sample::{REPORT_SECRET, Sample, free_address};
use crate::support::world::micro;
use crate::support::{Access, Call, Org, Script, Setup, World, burst, run, until};

/// So long that the gateway never asks by itself.
const NEVER: &str = "1h";
const SOON: &str = "200ms";

/// How jobs are made here.
pub struct Jobs<'a> {
    pub poll: &'a str,
    pub deadline: &'a str,
    /// More keys of the route.
    pub more: &'a str,
    /// Where the gateway listens.
    pub gateway: String,
}

impl Default for Jobs<'_> {
    fn default() -> Self {
        Self { poll: NEVER, deadline: "2h", more: "", gateway: "127.0.0.1:0".to_owned() }
    }
}

impl Jobs<'_> {
    /// A gateway with a route that makes videos, of which each second is a credit.
    pub fn setup(&self, sample: &Sample) -> Setup {
        let Self { poll, deadline, more, gateway } = self;
        let rules = format!(
            "id = \"/id\"\nstatus_path = \"/v1/videos/{{job}}\"\nstatus = \"/status\"\n\
             report = {{ env = \"JOB_SECRET\" }}\nsucceeded = [\"succeeded\"]\nfailed = [\"failed\", \"cancelled\"]\n\
             poll = \"{poll}\"\ndeadline = \"{deadline}\"\n"
        );
        let limits = format!(
            "[[upstream]]\nname = \"videos\"\nurls = [\"http://{}\"]\nresponse_timeout = \"1m\"\n\
             [[route]]\nmethod = \"POST\"\npath = \"/v1/videos\"\nupstream = \"videos\"\n\
             feature = \"image\"\nquantity = {{ json = \"/seconds\", default = 5 }}\n\
             usage = {{ json = \"/usage/seconds\" }}\n{more}\n\
             [route.job]\n{rules}\
             [[route]]\npath = \"/v1/videos/{{id}}\"\nupstream = \"videos\"\nfree = true\n\
             [[route]]\npath = \"/v1/videos/{{id}}/cancel\"\nupstream = \"videos\"\nfree = true\n\
             [[route]]\nmethod = \"POST\"\npath = \"/v1/scripted\"\nupstream = \"media\"\n\
             feature = \"image\"\nusage = {{ json = \"/usage/seconds\" }}\n\
             [route.job]\n{}\
             [[route]]\nmethod = \"GET\"\npath = \"/v1/other/{{id}}\"\nupstream = \"media\"\n\
             free = true\n",
            sample.address,
            rules.replace("/v1/videos", "/v1/other")
        );
        let environment = vec![
            ("JOB_SECRET".to_owned(), REPORT_SECRET.to_owned()),
            ("TOLLGATE__GATEWAY__LISTEN".to_owned(), gateway.clone()),
        ];
        Setup { limits, environment, ..Setup::default() }
    }

    pub fn world(&self, sample: &Sample) -> World {
        World::with(self.setup(sample), &org())
    }
}

pub fn org() -> Org {
    Org::new().pool("100").user("alice", "100", Access::None).user("bob", "7", Access::Pool)
}

pub fn submission(plan: &str) -> Call {
    Call::post("/v1/videos", "{\"seconds\":5}").user("alice").header("x-sample-job", plan)
}

/// A job that was submitted: its id, and its charge's.
pub async fn submit(world: &World, call: &Call) -> (String, String) {
    let answer = world.send(call).await;
    answer.is(200).tells(&[("state", "held")]);
    (answer.json()["id"].as_str().unwrap().to_owned(), answer.told("charge"))
}

pub fn poll(job: &str) -> Call {
    Call::get(&format!("/v1/videos/{job}")).user("alice")
}

#[track_caller]
pub fn state(world: &World, charge: &str) -> String {
    world.charge(charge)["state"].as_str().unwrap().to_owned()
}

pub async fn comes_to(world: &World, charge: &str, expected: &str) {
    until("it is settled", || (state(world, charge) == expected).then_some(())).await;
}

pub fn report(charge: &str, body: &Value, secret: &str) -> Call {
    let path = format!("/.tollgate/v1/jobs/{charge}");
    Call::post(&path, body.to_string()).key(secret)
}

#[test]
fn d34_the_poll_that_sees_the_end_settles_before_it_is_answered() {
    run(async {
        let sample = Sample::start();
        let world = Jobs::default().world(&sample);
        let (job, charge) = submit(&world, &submission("polls=2, status=200")).await;
        let held = world.charge(&charge);
        assert_eq!((&held["state"], &held["cost"]), (&json!("held"), &json!("5")));
        assert_eq!(held["expires_at"], "2026-11-20T14:00:00Z");
        assert_eq!(world.balance("alice")["seat"]["available"], "95");
        assert_eq!(world.metric("tollgate_jobs_open", &[]), 1.0);

        let first = world.send(&poll(&job)).await;
        assert_eq!((first.is(200).json()["status"].as_str()), Some("in_progress"));
        assert_eq!(first.header("tollgate-receipt"), None);
        assert_eq!(state(&world, &charge), "held");
        let second = world.send(&poll(&job).header("accept-encoding", "gzip")).await;
        assert_eq!(second.is(200).json()["status"], "succeeded");
        let settled = world.charge(&charge);
        assert_eq!((&settled["state"], &settled["cost"]), (&json!("captured"), &json!("5")));
        assert_eq!(settled["flags"], json!([]));
        assert_eq!(world.metric("tollgate_jobs_open", &[]), 0.0);
        world.seat("alice", "5", "95", "0");
        // A poll of a job that is over costs nothing either.
        let third = world.send(&poll(&job)).await;
        assert_eq!(third.is(200).body, second.body);
        world.seat("alice", "5", "95", "0");
        let count = |outcome| world.metric("tollgate_requests_total", &[outcome]);
        assert_eq!(count("outcome=\"held\""), 1.0);
        assert_eq!(count("outcome=\"captured\""), 1.0);
        assert_eq!(count("outcome=\"free\""), 3.0);
        assert_eq!(world.metric("tollgate_credits_captured_total", &["feature=\"image\""]), 5.0);

        for (plan, by) in [("polls=1, end=failed", ""), ("end=never", "/cancel")] {
            let trap = submission(plan).header("x-sample-usage", "{\"seconds\":3}");
            let (job, charge) = submit(&world, &trap).await;
            if !by.is_empty() {
                let cancel = Call::post(&format!("/v1/videos/{job}{by}"), "").user("alice");
                world.send(&cancel).await.is(200);
                assert_eq!(state(&world, &charge), "held");
            }
            world.send(&poll(&job)).await.is(200);
            assert_eq!(state(&world, &charge), "voided", "{plan}");
        }
        world.seat("alice", "5", "95", "0");
    });
}

#[test]
fn d34_a_job_costs_what_its_end_tells() {
    run(async {
        let sample = Sample::start();
        let world = Jobs::default().world(&sample);
        let mut captured = 0;
        for (usage, cost, flags) in [
            ("{\"seconds\":2}", "2", json!([])),
            ("{\"seconds\":\"7.25\"}", "7.25", json!([])),
            ("{\"seconds\":0}", "0", json!([])),
            ("{\"seconds\":-1}", "5", json!(["usage_missing"])),
            ("{\"seconds\":null}", "5", json!(["usage_missing"])),
            ("{\"seconds\":9007199255}", "5", json!(["usage_missing"])),
        ] {
            let call = submission("polls=1").header("x-sample-usage", usage);
            let (job, charge) = submit(&world, &call).await;
            world.send(&poll(&job)).await.is(200);
            let settled = world.charge(&charge);
            assert_eq!((&settled["state"], &settled["cost"]), (&json!("captured"), &json!(cost)));
            assert_eq!(settled["flags"], flags, "{usage}");
            captured += micro(&json!(cost));
        }
        let balance = world.balance("alice");
        assert_eq!(micro(&balance["seat"]["captured"]), captured);

        // What exceeds the hold goes through the waterfall: of 12, bob's seat has 7.
        let call = Call::post("/v1/videos", "{\"seconds\":5}").user("bob");
        let call = call.header("x-sample-job", "polls=1");
        let (job, charge) =
            submit(&world, &call.header("x-sample-usage", "{\"seconds\":12}")).await;
        // Anybody of the org may look.
        world.send(&poll(&job)).await.is(200);
        assert_eq!(world.charge(&charge)["cost"], "12");
        world.seat("bob", "7", "0", "2.5");
        world.verify();
    });
}

#[test]
fn d34_a_job_that_nobody_polls_is_settled_by_the_gateway() {
    run(async {
        let sample = Sample::start();
        let world = Jobs { poll: SOON, ..Jobs::default() }.world(&sample);
        let (done, first) = submit(&world, &submission("ms=400, sick=2")).await;
        let (_, second) = submit(&world, &submission("ms=100, end=failed")).await;
        comes_to(&world, &first, "captured").await;
        comes_to(&world, &second, "voided").await;
        world.seat("alice", "5", "95", "0");
        // What failed twice was asked for again.
        let asked = sample.asked(&format!("/v1/videos/{done}"));
        assert!(asked >= 3, "{asked}");
        // Nobody asks for what is over, while another job is asked for on and on.
        let (other, _) = submit(&world, &submission("end=never")).await;
        let other = format!("/v1/videos/{other}");
        until("another is asked for", || (sample.asked(&other) > 2).then_some(())).await;
        assert_eq!(sample.asked(&format!("/v1/videos/{done}")), asked);
        let seen = sample.requests(&format!("/v1/videos/{done}"));
        let headers = &seen[0]["headers"];
        assert_eq!(
            (&headers["tollgate-org"], &headers["tollgate-user"]),
            (&json!("acme"), &json!("alice"))
        );
        assert_eq!((&headers["x-request-id"], &seen[0]["charge"]), (&json!(first), &Value::Null));
    });
}

#[test]
fn d34_a_backend_reports_and_is_told_the_same_again() {
    run(async {
        let gateway = free_address();
        let sample = Sample::reporting(Some(gateway));
        let jobs = Jobs { gateway: gateway.to_string(), ..Jobs::default() };
        let world = jobs.world(&sample);
        let (_, charge) = submit(&world, &submission("ms=100, reports=3")).await;
        let (_, failed) = submit(&world, &submission("ms=50, end=failed")).await;
        comes_to(&world, &charge, "captured").await;
        comes_to(&world, &failed, "voided").await;
        until("all are taken", || (sample.stats()["reports"]["taken"] == 4).then_some(())).await;
        assert_eq!(sample.stats()["reports"]["lost"], 0);
        world.seat("alice", "5", "95", "0");

        let (_, charge) = submit(&world, &submission("end=never")).await;
        let done = json!({"status": "succeeded", "usage": {"seconds": 3}});
        for secret in [STUDIO, "", &REPORT_SECRET[1..]] {
            world.send(&report(&charge, &done, secret)).await.refused(401, "unauthenticated");
        }
        let bare = Call::post(&format!("/.tollgate/v1/jobs/{charge}"), done.to_string());
        world.send(&bare).await.refused(401, "unauthenticated");
        let nobody = "0198c9f0-0000-7000-8000-000000000000";
        for id in [nobody, "x"] {
            world.send(&report(id, &done, REPORT_SECRET)).await.refused(404, "unknown_route");
        }
        let broken = Call::post(&format!("/.tollgate/v1/jobs/{charge}"), "{").key(REPORT_SECRET);
        world.send(&broken).await.refused(400, "bad_request");
        let get = Call::get(&format!("/.tollgate/v1/jobs/{charge}")).key(REPORT_SECRET);
        world.send(&get).await.refused(405, "method_not_allowed");
        // What is no end changes nothing.
        for running in [json!({"status": "in_progress"}), json!({}), json!([])] {
            let told = world.send(&report(&charge, &running, REPORT_SECRET)).await;
            assert_eq!(told.is(200).json(), json!({"charge": charge, "state": "held"}));
        }
        let told = world.send(&report(&charge, &done, REPORT_SECRET)).await;
        assert_eq!(told.is(200).json(), json!({"charge": charge, "state": "captured"}));
        assert_eq!(world.charge(&charge)["cost"], "3");
        let other = json!({"status": "failed"});
        for again in [&done, &other] {
            let again = world.send(&report(&charge, again, REPORT_SECRET)).await;
            assert_eq!((again.status, again.body), (200, told.body.clone()));
        }
        world.seat("alice", "8", "92", "0");
        // A charge that is no job's is none to report.
        let plain = world.send(&Call::post("/v1/images", "{}").user("alice")).await;
        let plain = report(&plain.told("charge"), &done, REPORT_SECRET);
        world.send(&plain).await.refused(404, "unknown_route");
        // Nor is one whose answer is on its way: it may be reported again.
        let held = Call::post("/.tollgate/v1/holds", "{\"user\":\"alice\",\"feature\":\"image\"}");
        let held = world.send(&held.key(STUDIO)).await.json();
        let held = report(held["charge"].as_str().unwrap(), &done, REPORT_SECRET);
        world.send(&held).await.refused(404, "unknown_route");
        // Nor is one whose submission is not answered: it may be reported again.
        let slow = Script { gate: Some("g".to_owned()), ..Script::body("{\"id\":\"slow\"}") };
        let call = Call::post("/v1/scripted", "{}").user("alice").script(&slow);
        let mut client = world.client().await;
        let early = async {
            until("it is there", || (world.backend.count() == 2).then_some(())).await;
            let charge = world.backend.last().charge().unwrap().to_owned();
            let early = world.send(&report(&charge, &done, REPORT_SECRET)).await;
            early.refused(503, "books_contended");
            world.backend.open("g");
            charge
        };
        let (answer, charge) = tokio::join!(client.send(&call), early);
        answer.is(200).tells(&[("state", "held")]);
        let told = world.send(&report(&charge, &done, REPORT_SECRET)).await;
        assert_eq!(told.is(200).json()["state"], "captured");
    });
}

#[test]
fn d34_f23_of_polls_questions_and_reports_at_once_one_settles() {
    run(async {
        let gateway = free_address();
        let sample = Sample::reporting(Some(gateway));
        let jobs = Jobs { poll: "100ms", gateway: gateway.to_string(), ..Jobs::default() };
        let world = jobs.world(&sample);
        const COUNT: usize = 20;
        let mut made = Vec::new();
        for at in 0..COUNT {
            let call = submission(&format!("ms={}, reports=2", 200 + at % 7));
            let call = call.header("x-sample-usage", &format!("{{\"seconds\":{}}}", at % 3));
            made.push(submit(&world, &call).await);
        }
        let polls = made.iter().flat_map(|(job, _)| std::iter::repeat_n(poll(job), 12)).collect();
        for answer in burst(world.gateway(), polls, 12).await {
            answer.is(200);
        }
        let mut sum = 0;
        for (at, (_, charge)) in made.iter().enumerate() {
            comes_to(&world, charge, "captured").await;
            assert_eq!(world.charge(charge)["cost"], (at % 3).to_string());
            sum += at % 3;
        }
        until("reports", || (sample.stats()["reports"]["taken"] == 2 * COUNT).then_some(())).await;
        world.seat("alice", &sum.to_string(), &(100 - sum).to_string(), "0");
        let captured = world.metric("tollgate_requests_total", &["outcome=\"captured\""]);
        assert_eq!(captured, COUNT as f64);
        assert_eq!(world.metric("tollgate_credits_captured_total", &[]), sum as f64);
        assert_eq!(world.metric("tollgate_jobs_open", &[]), 0.0);
        world.verify();
    });
}

#[test]
fn d34_f02_a_job_outlives_a_killed_gateway_and_its_route() {
    run(async {
        let sample = Sample::start();
        let mut world = Jobs { poll: SOON, ..Jobs::default() }.world(&sample);
        let usage = "{\"seconds\":4}";
        let (_, charge) =
            submit(&world, &submission("ms=700").header("x-sample-usage", usage)).await;
        let (_, poller) = submit(&world, &submission("polls=9999")).await;
        let (_, other) = submit(&world, &submission("ms=1500")).await;
        world.kill();
        world.start();
        assert_eq!(state(&world, &charge), "held");
        assert_eq!(world.metric("tollgate_jobs_open", &[]), 3.0);
        comes_to(&world, &charge, "captured").await;
        assert_eq!(world.charge(&charge)["cost"], "4");
        // Its route goes, and its upstream stays.
        world.edit(|text| text.replace("path = \"/v1/videos\"", "path = \"/v1/movies\""));
        world.signal("HUP");
        comes_to(&world, &other, "captured").await;
        assert_eq!(state(&world, &poller), "held");
        world.terminate();
        assert!(world.stopped().await.success());
        world.start();
        assert_eq!(state(&world, &poller), "held");
        let seat = &world.balance("alice")["seat"];
        assert_eq!([&seat["captured"], &seat["held"], &seat["available"]], ["9", "5", "86"]);
    });
}

#[test]
fn d34_a_lost_job_ends_at_its_deadline_as_its_route_says() {
    run(async {
        for (more, expected) in [("", "expired"), ("in_doubt = \"capture\"", "captured")] {
            let mut sample = Sample::start();
            let jobs = Jobs { poll: SOON, deadline: "10m", more, ..Jobs::default() };
            let mut world = jobs.world(&sample);
            let (lost, first) = submit(&world, &submission("polls=1, end=lost")).await;
            let (never, second) = submit(&world, &submission("end=never")).await;
            world.send(&poll(&lost)).await.is(404);
            sample.kill();
            world.send(&poll(&never)).await.refused(502, "upstream_unreachable");
            sample.go_on();
            world.send(&poll(&never)).await.is(404);
            world.crash_and_move_clock("2026-11-20T12:09:59Z");
            assert_eq!(
                (state(&world, &first), state(&world, &second)),
                ("held".into(), "held".into())
            );
            world.pass_until("2026-11-20T12:10:01Z");
            for charge in [&first, &second] {
                comes_to(&world, charge, expected).await;
                let flags = if expected == "expired" { json!([]) } else { json!(["in_doubt"]) };
                assert_eq!(world.charge(charge)["flags"], flags);
            }
            let captured = if expected == "captured" { "10" } else { "0" };
            assert_eq!(world.balance("alice")["seat"]["captured"], captured);
            let counted = world.metric("tollgate_credits_captured_total", &[]);
            assert_eq!(counted, captured.parse::<f64>().unwrap());
            assert_eq!(world.metric("tollgate_jobs_open", &[]), 0.0);
            // It is too late for a report, which is told so.
            let done = json!({"status": "succeeded"});
            let told = world.send(&report(&first, &done, REPORT_SECRET)).await;
            assert_eq!(told.is(200).json()["state"], expected);
            assert_eq!(world.balance("alice")["seat"]["captured"], captured);
        }
    });
}

#[test]
fn d34_a_poll_is_believed_only_where_nothing_but_its_path_decides_it() {
    run(async {
        let sample = Sample::start();
        let world = Jobs::default().world(&sample);
        let other = org().toml().replace("id = \"acme\"", "id = \"else\"");
        let other = other.replace("\"tg_test_", "\"tg_else_");
        assert!(world.try_apply(&other).status.success());
        let elsewhere = STUDIO.replace("tg_test_", "tg_else_");
        // This backend tells an end where a request asks for one, and none to the gateway.
        let call = Call::post("/v1/scripted", "{}").user("alice");
        let call = call.script(&Script::body("{\"id\":\"a\"}"));
        let answer = world.send(&call).await;
        answer.is(200).tells(&[("state", "held")]);
        let charge = answer.told("charge");
        let (path, done) = ("/v1/other/a", Script::body("{\"status\":\"succeeded\"}"));
        let failed = Script { status: 500, ..done.clone() };
        let stranger = Call::get(path).key(&elsewhere).header("tollgate-user", "alice");
        let calls = [
            stranger.script_plainly(&done),
            Call::get(&format!("{path}?a=1")).user("alice").script_plainly(&done),
            Call::get(&format!("{path}?")).user("alice").script_plainly(&done),
            Call::with("GET", path, "body").user("alice").script_plainly(&done),
            Call::get(path).user("alice").script_plainly(&failed),
            Call::get(path).user("alice").script(&done),
            Call::get(path).user("alice").header("accept", "a/b").script_plainly(&done),
        ];
        for call in &calls {
            let answer = world.send(call).await;
            assert!(matches!(answer.status, 200 | 500), "{answer:?}");
            assert_eq!(state(&world, &charge), "held", "{call:?}");
        }
        world.send(&Call::get(path).user("alice").script_plainly(&done)).await.is(200);
        assert_eq!(state(&world, &charge), "captured");
    });
}

#[test]
fn d34_nothing_is_done_to_a_job_before_the_gateway_has_asked_how_it_stands() {
    run(async {
        let sample = Sample::start();
        let world = Jobs::default().world(&sample);
        let own = |seen: &Value| seen["headers"]["x-request-id"].as_str().map(str::to_owned);
        for (method, below) in [("DELETE", ""), ("POST", "/cancel"), ("PATCH", "?x")] {
            // Whoever asks first is told the end.
            let (job, charge) = submit(&world, &submission("polls=1")).await;
            let path = format!("/v1/videos/{job}");
            let call = Call::with(method, &format!("{path}{below}"), "").user("alice");
            let answer = world.send(&call).await;
            assert!(matches!(answer.status, 200 | 405), "{answer:?}");
            assert_eq!(state(&world, &charge), "captured", "{method}");
            let seen = sample.requests(&path);
            assert_eq!((&seen[0]["method"], own(&seen[0])), (&json!("GET"), Some(charge)));
        }
        // What only looks has it asked for soon.
        let (job, charge) = submit(&world, &submission("polls=1")).await;
        let look = Call::get(&format!("/v1/videos/{job}?x")).user("alice");
        world.send(&look).await.is(200);
        comes_to(&world, &charge, "captured").await;
        // Where the backend does not tell, nothing is done; and later it is asked again.
        let (job, charge) = submit(&world, &submission("polls=2, sick=1")).await;
        let cancel = Call::post(&format!("/v1/videos/{job}/cancel"), "").user("alice");
        world.send(&cancel).await.refused(502, "upstream_failed");
        assert_eq!(state(&world, &charge), "held");
        world.send(&cancel).await.is(200);
        assert_eq!(state(&world, &charge), "captured");
        world.seat("alice", "25", "75", "0");
        world.verify();
    });
}

#[test]
fn d34_a_backend_that_hangs_keeps_no_other_job_waiting() {
    run(async {
        let sample = Sample::start();
        let mut world = Jobs { poll: "100ms", ..Jobs::default() }.world(&sample);
        let small = Call::post("/v1/videos", "{\"seconds\":1}").user("alice");
        for _ in 0..40 {
            submit(&world, &small.clone().header("x-sample-job", "end=never")).await;
        }
        sample.pause();
        // The other backend tells nothing of this one, and is asked again and again.
        let call = Call::post("/v1/scripted", "{}").user("alice");
        let call = call.script(&Script::body("{\"id\":\"other\"}"));
        world.send(&call).await.is(200).tells(&[("state", "held")]);
        until("it is asked for", || (world.backend.count() > 3).then_some(())).await;
        assert_eq!(world.backend.last().target, "/v1/other/other");
        world.terminate();
        assert!(world.stopped().await.success());
        world.start();
        assert_eq!(world.metric("tollgate_jobs_open", &[]), 41.0);
        assert_eq!(world.balance("alice")["seat"]["held"], "41");
    });
}
