//! What is said about the job of a route.

use super::*;

const RULES: &str = "id = \"/id\"\nstatus_path = \"/v1/videos/{job}\"\nstatus = \"/status\"\n\
                     succeeded = [\"completed\"]\nfailed = [\"failed\"]\n";

fn text(route: &str, job: &str) -> String {
    format!(
        "[[upstream]]\nname = \"m\"\nurls = [\"http://h:1\"]\n[[route]]\npath = \"/v1/videos\"\n\
         upstream = \"m\"\n{route}\n[route.job]\n{job}\n"
    )
}

/// The errors as `key: expected`.
fn said(route: &str, job: &str) -> Vec<String> {
    let error = load_text(&text(route, job), &[]).expect_err("this is not valid");
    let said = |problem: &Problem| format!("{}: {}", problem.key, problem.expected);
    error.problems.iter().map(said).collect()
}

#[test]
fn d34_a_job_has_what_it_takes_to_follow_it() {
    let route = "feature = \"f\"\nusage = { json = \"/used\" }";
    let config = load_text(&text(route, RULES), &[]).unwrap().config;
    let job = config.route[0].job.as_ref().unwrap();
    assert_eq!((job.poll.as_secs(), job.deadline.as_secs()), (5, 3600));
    let routes = crate::gateway::route::Routes::new(&config.route, &config.upstream).unwrap();
    assert_eq!(routes.submit("/v1/videos").collect::<Vec<_>>(), [0]);

    let path = "route[0].job.status_path: expected a path like \"/v1/videos/{job}\", with {job} \
                once and no query";
    let pointer = "expected a JSON pointer like \"/id\" (RFC 6901)";
    for (from, to, expected) in [
        ("\"/id\"", "\"id\"", format!("route[0].job.id: {pointer}")),
        ("\"/status\"", "\"\"", format!("route[0].job.status: {pointer}")),
        ("/v1/videos/{job}", "/v1/videos", path.to_owned()),
        ("/v1/videos/{job}", "v1/{job}", path.to_owned()),
        ("/v1/videos/{job}", "/{job}/{job}", path.to_owned()),
        ("/v1/videos/{job}", "/{id}/{job}", path.to_owned()),
        ("/v1/videos/{job}", "/v1?id={job}", path.to_owned()),
        ("/v1/videos/{job}", "/a/../{job}", path.to_owned()),
        ("/v1/videos/{job}", "/a//{job}", path.to_owned()),
        ("/v1/videos/{job}", "/a%2f{job}", path.to_owned()),
        ("/v1/videos/{job}", "/.tollgate/{job}", path.to_owned()),
        ("[\"completed\"]", "[]", "route[0].job.succeeded: expected at least one value".into()),
        ("[\"failed\"]", "[]", "route[0].job.failed: expected at least one value".into()),
        (
            "[\"failed\"]",
            "[\"failed\", \"completed\"]",
            "route[0].job.failed[1]: expected a value that does not stand in `succeeded`".into(),
        ),
    ] {
        assert_eq!(said(route, &RULES.replace(from, to)), [expected], "{to}");
    }
    let poll = "route[0].job.poll: expected a duration from \"100ms\" to \"1h\", and at most \
                `deadline`";
    let deadline = "route[0].job.deadline: expected a duration from \"1s\" to \"24h\"";
    let report = "route[0].job.report: expected exactly one of env, file";
    let variable = "route[0].job.report.env: expected the name of an environment variable";
    for (more, expected) in [
        ("poll = \"99ms\"", poll),
        ("poll = \"61m\"\ndeadline = \"2h\"", poll),
        ("deadline = \"4s\"", poll),
        ("deadline = \"25h\"", deadline),
        ("report = {}", report),
        ("report = { env = \"A\", file = \"a\" }", report),
        ("report = { env = \"A=B\" }", variable),
    ] {
        assert_eq!(said(route, &format!("{RULES}{more}")), [expected], "{more}");
    }
}

#[test]
fn d34_the_words_that_end_a_job_are_bounded() {
    let words = |count: usize, length: usize| {
        let words: Vec<String> = (0..count).map(|at| format!("{at:0length$}")).collect();
        format!("{words:?}")
    };
    let route = "feature = \"f\"";
    for key in ["completed", "failed"] {
        let rules = |to: &str| RULES.replace(&format!("[\"{key}\"]"), to);
        assert!(load_text(&text(route, &rules(&words(64, 256))), &[]).is_ok());
        let name = if key == "failed" { key } else { "succeeded" };
        let expected = format!("route[0].job.{name}: expected at most 64 values");
        assert_eq!(said(route, &rules(&words(65, 2))), [expected]);
        let long = format!("[\"a\", \"{}\"]", "é".repeat(129));
        let expected = format!("route[0].job.{name}[1]: expected at most 256 bytes");
        assert_eq!(said(route, &rules(&long)), [expected]);
    }
}

#[test]
fn d34_what_does_not_go_with_a_job_is_an_error_at_its_key() {
    let beside = "expected no such key beside `job`";
    let usage =
        "route[0].usage: expected `json` alone: the usage of a job is in its status document";
    for (route, expected) in [
        ("free = true", "route[0].job: expected no such key on a free route".to_owned()),
        (
            "feature = \"f\"\non_disconnect = \"cancel\"",
            "route[0].on_disconnect: expected \"finish\" beside `job`: the backend may have begun it"
                .to_owned(),
        ),
        ("feature = \"f\"\nusage = { header = \"x-used\" }", usage.to_owned()),
        ("feature = \"f\"\nusage = { json = \"/a\", sse_json = \"/a\" }", usage.to_owned()),
        (
            "feature = \"f\"\nmeter = [{ name = \"a\", usage = { trailer = \"x-used\" } }]",
            usage.replace("usage:", "meter[0].usage:"),
        ),
    ] {
        assert_eq!(said(route, RULES), [expected], "{route}");
    }
    for (key, value) in
        [("pick", "\"sum\""), ("hold", "\"slice\""), ("sse_receipt", "true"), ("front", "\"hold\"")]
    {
        let said = said(&format!("feature = \"f\"\n{key} = {value}"), RULES);
        assert!(said.contains(&format!("route[0].{key}: {beside}")), "{said:?}");
    }
}
