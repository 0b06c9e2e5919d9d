//! `/openapi.json` says what happens: schemathesis sends what the document allows and what it
//! forbids, follows the answers, and compares. With an operator's token, and with tokens that may
//! do less and change nothing.

use std::process::{Command, Output};

use serde_json::{Value, json};

use super::support::world::TOKEN;
use super::support::{Call, World, run};
use super::{ask, json_call, org, token};

/// What a run is told beside the document.
struct Look<'a> {
    token: &'a str,
    phases: &'a str,
    config: &'a str,
    /// Examples for each endpoint.
    examples: u32,
}

fn is_long() -> bool {
    std::env::var("TOLLGATE_SCHEMATHESIS").is_ok_and(|form| form == "--long")
}

/// Where schemathesis is; it is installed where it is not.
fn installed() -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/schemathesis");
    let output = Command::new(script).arg("--install").output().unwrap();
    assert!(output.status.success(), "schemathesis cannot be installed: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn look(world: &World, schemathesis: &str, look: &Look<'_>) -> Output {
    let config = format!("{}/tests/admin/{}.toml", env!("CARGO_MANIFEST_DIR"), look.config);
    let examples = look.examples.to_string();
    let home = tempfile::tempdir().unwrap();
    Command::new(schemathesis)
        .current_dir(home.path())
        .args(["--config-file", &config, "run"])
        .arg(format!("http://{}/openapi.json", world.admin_address()))
        .args(["--header", &format!("Authorization: Bearer {}", look.token)])
        .args(["--phases", look.phases, "--max-examples", &examples, "--checks", "all"])
        // The same requests every time.
        .args(["--seed", "1", "--generation-database", "none", "--no-color", "--workers", "1"])
        .args(["--suppress-health-check", "all", "--continue-on-failure"])
        .output()
        .unwrap()
}

#[track_caller]
fn fine(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    if is_long() {
        eprintln!("{text}");
    }
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_endpoint_does_what_the_document_says() {
    run(async {
        let world = World::new(&org());
        let schemathesis = installed();
        ask(&world, TOKEN, json_call("PUT", "/v1/orgs/globex", &json!({}))).await.is(200);
        let examples = if is_long() { 200 } else { 5 };
        for (phases, config) in
            [("examples,coverage,fuzzing", "schemathesis-sample"), ("stateful", "schemathesis")]
        {
            fine(&look(&world, &schemathesis, &Look { token: TOKEN, phases, config, examples }));
        }
    });
}

/// What is in the orgs, and what was done to them.
fn state(world: &World) -> Value {
    let of = |path: &str| world.admin(path).1["items"].clone();
    let lists = ["users", "licences", "terms", "plans", "groups", "profiles", "keys"];
    let lists = lists.map(|list| of(&format!("/v1/orgs/acme/{list}?limit=1000")));
    let audit = ["/v1/orgs/acme/audit", "/v1/orgs/globex/audit", "/v1/audit"].map(of);
    json!([lists, audit, of("/v1/tokens"), world.pool()])
}

#[test]
fn f77_what_a_token_may_not_do_is_documented_and_changes_nothing() {
    run(async {
        let world = World::new(&org());
        let schemathesis = installed();
        ask(&world, TOKEN, json_call("PUT", "/v1/orgs/globex", &json!({}))).await.is(200);
        let viewer = token(&world, "guest", "viewer", Some("acme"), &[]).await;
        let other = token(&world, "other", "org-admin", Some("globex"), &[]).await;
        let state = || state(&world);
        let before = state();
        let examples = if is_long() { 100 } else { 2 };
        for token in [&viewer, &other] {
            let (phases, config) = ("examples,coverage,stateful", "schemathesis");
            fine(&look(&world, &schemathesis, &Look { token, phases, config, examples }));
            assert_eq!(state(), before);
        }
    });
}

/// A profile-admin may change one thing: who is in its profiles. All else stays as it was, and
/// what was changed is only that.
#[test]
fn f77_a_profile_admin_changes_who_is_in_its_profile_and_nothing_else() {
    run(async {
        let world = World::new(&org());
        let schemathesis = installed();
        ask(&world, TOKEN, json_call("PUT", "/v1/orgs/globex", &json!({}))).await.is(200);
        let lead = token(&world, "lead", "profile-admin", Some("acme"), &["ffs"]).await;
        let member = |user: &str| format!("/v1/orgs/acme/profiles/ffs/members/{user}");
        let before = state(&world);
        let examples = if is_long() { 100 } else { 2 };
        for (phases, config) in
            [("examples,coverage", "schemathesis-sample"), ("stateful", "schemathesis")]
        {
            fine(&look(&world, &schemathesis, &Look { token: &lead, phases, config, examples }));
        }
        let (_, audit) = world.admin("/v1/orgs/acme/audit?limit=1000&who=lead");
        let lines = audit["items"].as_array().unwrap();
        assert!(!lines.is_empty(), "it never changed what it may");
        for entry in lines {
            let (kind, line) = (&entry["kind"], entry["line"].as_str().unwrap());
            let change = line.split_once(" profiles ").map(|(_, change)| change);
            let own = matches!(change, Some("+ffs" | "-ffs"));
            assert!(*kind == "user" && own, "{entry}");
        }
        // Who was a member before is one again, and who was none is none: then all is as it was.
        for (method, user) in [("PUT", "alice"), ("DELETE", "bob"), ("DELETE", "carol")] {
            ask(&world, TOKEN, Call::new(method, &member(user))).await.is(204);
        }
        let after = state(&world);
        assert_eq!((&after[0], &after[2], &after[3]), (&before[0], &before[2], &before[3]));
        assert_eq!(after[1][1], before[1][1]);
    });
}
