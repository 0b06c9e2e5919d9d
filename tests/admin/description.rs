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
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/admin/schemathesis.toml");
    let examples = look.examples.to_string();
    let home = tempfile::tempdir().unwrap();
    Command::new(schemathesis)
        .current_dir(home.path())
        .args(["--config-file", config, "run"])
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
        let phases = "examples,coverage,fuzzing,stateful";
        fine(&look(&world, &schemathesis, &Look { token: TOKEN, phases, examples }));
    });
}

#[test]
fn f77_what_a_token_may_not_do_is_documented_and_changes_nothing() {
    run(async {
        let world = World::new(&org());
        let schemathesis = installed();
        ask(&world, TOKEN, json_call("PUT", "/v1/orgs/globex", &json!({}))).await.is(200);
        let viewer = token(&world, "guest", "viewer", Some("acme"), &[]).await;
        let other = token(&world, "other", "viewer", Some("globex"), &[]).await;
        let state = || -> Value {
            let of = |path: &str| world.admin(path).1["items"].clone();
            let lists = ["users", "licences", "terms", "plans", "groups", "profiles", "keys"];
            let lists = lists.map(|list| of(&format!("/v1/orgs/acme/{list}?limit=1000")));
            let audit = ["/v1/orgs/acme/audit", "/v1/orgs/globex/audit", "/v1/audit"].map(of);
            json!([lists, audit, of("/v1/tokens"), world.pool()])
        };
        let before = state();
        let examples = if is_long() { 100 } else { 2 };
        for token in [&viewer, &other, "tga_000000000000000000000000000000000000000000000000"] {
            let phases = "examples,coverage,stateful";
            fine(&look(&world, &schemathesis, &Look { token, phases, examples }));
            assert_eq!(state(), before);
        }
    });
}
