//! Quotes, holds and tokens: commands that need more of the admin API than looking.

use serde_json::Value;
use tokio::task::JoinSet;

use super::look::{org, paid};
use super::{ask, told};
use crate::support::{Call, Script, World, run, until};

#[test]
fn quote_says_what_it_would_cost_and_holds_nothing() {
    let (world, _) = paid();
    let quote = ["quote", "--org", "acme", "--user", "alice", "--feature"];
    let text = told(
        &world,
        &[&quote[..], &["video", "--quantity", "2.5", "-a", "resolution=1080p"]].concat(),
    );
    let expected = "\
verdict      allow
cost         250 credits, or 5 Operations
rate card    2026-11
seat         0 credits available
pool access  yes
";
    assert_eq!(text, expected);
    let meters = ["chat", "--quantity", "in=30", "--quantity", "out=60", "--output", "json"];
    let json = told(&world, &[&quote[..], &meters].concat());
    assert_eq!(json.parse::<Value>().unwrap()["cost"], "50");
    let mixed =
        ask(&world, &[&quote[..], &["chat", "--quantity", "1", "--quantity", "2"]].concat());
    assert_eq!(mixed.code, 2);
    let unknown = ask(&world, &[&quote[..], &["teleport"]].concat());
    assert_eq!((unknown.code, &*unknown.out), (1, ""));
    assert!(unknown.err.contains("/feature"), "{unknown:?}");
    let bob = told(&world, &["quote", "--org", "acme", "--user", "bob", "--feature", "image"]);
    assert!(bob.starts_with("verdict      refuse: ") && bob.contains("(seat_exhausted)"), "{bob}");
    assert_eq!(told(&world, &["holds", "list", "--org", "acme"]), "nothing is held\n");
}

#[test]
fn holds_are_listed_and_voided() {
    let world = World::new(&org());
    let gated = Call::post("/v1/images", "{\"n\":2}").user("alice").script(&Script::gate("go"));
    let id = run(async {
        let mut client = world.client().await;
        let mut sent = JoinSet::new();
        sent.spawn(async move { client.try_send(&gated).await });
        until("it is forwarded", || (world.backend.count() == 1).then_some(())).await;
        let id = world.backend.last().charge().unwrap().to_owned();
        let list = told(&world, &["holds", "list", "--org", "acme"]);
        assert!(
            list.starts_with("CHARGE ") && list.contains(&format!("{id}  alice  image")),
            "{list}"
        );
        let json = told(&world, &["holds", "list", "--org", "acme", "--user", "bob", "-o", "json"]);
        assert_eq!(json.parse::<Value>().unwrap()["items"], Value::Array(vec![]));
        let voided = told(&world, &["holds", "void", &id, "--org", "acme"]);
        assert!(voided.contains("state      voided"), "{voided}");
        world.backend.open("go");
        sent.join_next().await.unwrap().unwrap().unwrap();
        id
    });
    let missing = id.replace(|c: char| c.is_ascii_digit(), "0");
    assert_eq!(ask(&world, &["holds", "void", &missing, "--org", "acme"]).code, 1);
}

#[test]
fn f77_a_token_does_what_its_role_says_is_shown_once_and_can_be_revoked() {
    let world = World::new(&org());
    let create = ["token", "create", "reader", "--role", "viewer", "--org", "acme", "-o", "json"];
    let made: Value = told(&world, &create).parse().unwrap();
    let secret = made["secret"].as_str().unwrap();
    let with = |args: &[&str]| {
        let mut command = crate::support::world::tollgate();
        command.env("TOLLGATE_ADMIN_TOKEN", secret).args(args);
        super::ran(command.args(["--admin", &world.admin_url()]).output().unwrap())
    };
    assert_eq!(with(&["balance", "alice", "--org", "acme"]).code, 0);
    let refused = with(&["token", "create", "more", "--role", "operator"]);
    assert_eq!((refused.code, &*refused.out), (1, ""));
    let hint = "the role of the token in TOLLGATE_ADMIN_TOKEN";
    assert!(refused.err.contains("(forbidden)") && refused.err.contains(hint), "{refused:?}");
    let list = told(&world, &["token", "list"]);
    assert!(list.contains("\nreader  viewer  acme") && !list.contains(secret), "{list}");
    assert!(!told(&world, &["token", "list", "-o", "json"]).contains(secret));
    assert_eq!(told(&world, &["token", "revoke", "reader"]), "reader: revoked\n");
    let revoked = with(&["balance", "alice", "--org", "acme"]);
    assert_eq!(revoked.code, 1);
    assert!(!revoked.err.contains(secret), "{revoked:?}");
    assert_eq!(ask(&world, &["token", "revoke", "reader"]).code, 1);
    let shown = told(
        &world,
        &[
            "token",
            "create",
            "lead",
            "--role",
            "profile-admin",
            "--org",
            "acme",
            "--profile",
            "ffs",
        ],
    );
    assert!(shown.contains("shown once"), "{shown}");
}
