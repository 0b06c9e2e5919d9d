//! What commands say when it does not work: what happened, and what to do.

use std::net::TcpListener;

use super::{Ran, ask, ran, run};
use crate::support::world::tollgate;
use crate::support::{Access, Org, World};

const CHARGE: &str = "01a1fb54-b3cc-7d3b-8096-b6d771eb1dcb";

fn world() -> World {
    World::new(&Org::new().user("alice", "30", Access::Pool))
}

#[track_caller]
fn says(ran: &Ran, code: i32, parts: &[&str]) {
    assert_eq!((ran.code, &*ran.out), (code, ""), "{ran:?}");
    for part in parts {
        assert!(ran.err.contains(part), "{part:?} is not in {}", ran.err);
    }
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{free}");
    let ran = run(&["balance", "alice", "--org", "acme", "--admin", &url]);
    says(&ran, 1, &[&url, "is the server running", "--admin"]);
}

#[test]
fn without_a_token_it_says_where_one_is() {
    for token in [None, Some(""), Some(" ")] {
        let mut command = tollgate();
        command.env_remove("TOLLGATE_ADMIN_TOKEN").args(["balance", "alice", "--org", "acme"]);
        command.envs(token.map(|token| ("TOLLGATE_ADMIN_TOKEN", token)));
        says(&ran(command.output().unwrap()), 2, &["TOLLGATE_ADMIN_TOKEN", "admin.token"]);
    }
}

#[test]
fn f81_a_wrong_token_is_refused_and_not_repeated() {
    let world = world();
    let mut command = tollgate();
    let admin = world.admin_url();
    command.args(["balance", "alice", "--org", "acme", "--admin", &admin]);
    command.env("TOLLGATE_ADMIN_TOKEN", "canary-0123456789-canary-01");
    let refused = ran(command.output().unwrap());
    says(&refused, 1, &["unauthenticated", "TOLLGATE_ADMIN_TOKEN"]);
    assert!(!refused.err.contains("canary"), "{refused:?}");
    command.env("TOLLGATE_ADMIN_TOKEN", "canary\n0123456789-canary-01");
    let odd = ran(command.output().unwrap());
    says(&odd, 2, &["TOLLGATE_ADMIN_TOKEN"]);
    assert!(!odd.err.contains("canary"), "{odd:?}");
}

#[test]
fn another_listener_is_recognised() {
    let world = world();
    let url = format!("http://{}", world.ops_address());
    let ran = run(&["balance", "alice", "--org", "acme", "--admin", &url]);
    says(&ran, 1, &["not as the admin API does", &url]);
}

#[test]
fn what_does_not_exist_is_a_failure_and_what_cannot_exist_is_a_wrong_call() {
    let world = world();
    says(&ask(&world, &["balance", "nobody", "--org", "acme"]), 1, &["user", "not_found"]);
    says(&ask(&world, &["balance", "alice", "--org", "nowhere"]), 1, &["org", "not_found"]);
    says(&ask(&world, &["charge", CHARGE, "--org", "acme"]), 1, &["charge", "not_found"]);
    for args in [
        &["balance", "../x", "--org", "acme"][..],
        &["balance", "alice", "--org", "a/b"],
        &["charge", "7", "--org", "acme"],
        &["balance", "alice", "--org", "acme", "--admin", "https://127.0.0.1"],
        &["balance", "alice", "--org", "acme", "--admin", "127.0.0.1:8081"],
        &["balance", "alice", "--org", "acme", "--output", "xml"],
        &["quote", "--org", "acme", "--user", "alice", "--feature", "f", "--quantity", "-1"],
        &["quote", "--org", "acme", "--user", "alice", "--feature", "f", "-a", "resolution"],
        &["holds", "list", "--org", "acme", "--limit", "1001"],
        &["token", "create", "x", "--role", "org-admin"],
        &["token", "create", "x", "--role", "operator", "--org", "acme"],
        &["token", "create", "x", "--role", "profile-admin", "--org", "acme"],
        &["token", "create", "x", "--role", "viewer", "--profile", "p"],
        &["nothing-like-it"],
        &[],
    ] {
        let ran = run(args);
        assert_eq!((ran.code, &*ran.out), (2, ""), "{args:?}: {ran:?}");
        assert!(!ran.err.is_empty(), "{args:?}");
    }
}

#[test]
fn an_org_file_s_problems_have_line_and_column() {
    let world = world();
    let text = "[org]\nid = \"acme\"\n[[user]]\nid = \"zoe\"\n\
                licences = [{ id = \"lic-z\", plan = \"nope\" }]\n[[user]]\nid = \"y\"\nmail = 1\n";
    let refused = ran(world.try_apply(text));
    says(&refused, 2, &["org.toml:8:8: user[1].mail: unknown key"]);
    let known = text.replace("mail = 1\n", "");
    let refused = ran(world.try_apply(&known));
    says(&refused, 2, &["org.toml:5:36: user[0].licences[0].plan: there is no plan nope"]);
    says(&ran(world.try_apply("[org\n")), 2, &["org.toml", "line 1"]);
}
