//! The admin API of the real binary, over sockets.
//!
//! - `roles`: every endpoint with every role (f77), and that nothing is changed by a refusal.
//! - `protocol`: lists, tags, bodies, problems.
//! - `once`: what is repeated happens once.
//! - `replicas`: two gateways on one directory in PostgreSQL.
//! - `things`: terms, plans, users, licences, keys and what else an org has.
//! - `money`: quotes, holds, adjustments, refunds.
//! - `documents`: org files, however large.
//! - `description`: what `/openapi.json` says is what happens, told by schemathesis.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that panics has failed"
)]

#[path = "../support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "other tests use the rest")]
mod support;

mod description;
mod documents;
mod money;
mod once;
mod protocol;
mod replicas;
mod roles;
mod things;

use serde_json::{Value, json};

use support::world::TOKEN;
use support::{Access, Answer, Call, Client, Org, World};

/// An org with a member of the pool's profiles, one who is in none, and one with two licences.
fn org() -> Org {
    let licences = [("lic-c1", "30"), ("lic-c2", "20")];
    let licences = licences.map(|(id, credits)| (id.to_owned(), credits.to_owned(), String::new()));
    Org::new()
        .user("alice", "10", Access::Pool)
        .user("bob", "5", Access::None)
        .stacked("carol", licences.to_vec(), Access::None)
        .extra("[[group]]\nid = \"design\"\n")
}

/// A call with a JSON body.
fn json_call(method: &'static str, path: &str, body: &Value) -> Call {
    Call::with(method, path, body.to_string()).header("content-type", "application/json")
}

/// Asks the admin API, as the holder of a token.
async fn ask(world: &World, token: &str, call: Call) -> Answer {
    let call = call.header("authorization", &format!("Bearer {token}"));
    Client::connect(world.admin_address()).await.send(&call).await
}

/// Asks as the operator, with a body where there is one.
async fn admin(world: &World, method: &'static str, path: &str, body: Value) -> Answer {
    let path = format!("/v1/orgs/acme/{path}");
    let call = match body {
        Value::Null => Call::new(method, &path),
        body => json_call(method, &path, &body),
    };
    ask(world, TOKEN, call).await
}

/// Reads as the operator what must be there.
#[track_caller]
fn read(world: &World, path: &str) -> Value {
    let (status, body) = world.admin(&format!("/v1/orgs/acme/{path}"));
    assert_eq!(status, 200, "{path}: {body}");
    body
}

/// Makes a token and returns its secret.
async fn token(
    world: &World,
    id: &str,
    role: &str,
    org: Option<&str>,
    profiles: &[&str],
) -> String {
    let mut body = json!({ "id": id, "role": role });
    if let Some(org) = org {
        body["org"] = json!(org);
    }
    if !profiles.is_empty() {
        body["profiles"] = json!(profiles);
    }
    let made = ask(world, TOKEN, json_call("POST", "/v1/tokens", &body)).await;
    made.is(201).json()["secret"].as_str().unwrap().to_owned()
}

/// The ids of a list's items.
fn ids(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap_or_else(|| panic!("{list}"));
    items.iter().map(|item| item["id"].as_str().or(item["user"].as_str()).unwrap()).collect()
}
