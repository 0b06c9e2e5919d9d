//! Commands that ask a running gateway.

use serde_json::Value;

use super::{ask, told};
use crate::support::{Access, Call, Org, World, run};

pub fn org() -> Org {
    Org::new().user("alice", "30", Access::Pool).user("bob", "0.5", Access::None)
}

/// A gateway in which alice has paid 100 credits from seat and pool; the charge's id.
pub fn paid() -> (World, String) {
    let world = World::new(&org());
    let call = Call::post("/v1/images", "{\"n\":100}").user("alice");
    run(async { world.send(&call).await }).is(200);
    let id = world.backend.last().charge().unwrap().to_owned();
    (world, id)
}

#[test]
fn d11_balance_is_a_table_of_licences_or_the_api_s_own_document() {
    let (world, _) = paid();
    let expected = "\
user       alice of acme
cycle      2026-11-01, until 2026-12-01T00:00:00Z
pool       35 Operations drawn, no limit
overdraft  0 credits

CREDITS    PLAN  GRANTED  HELD  CAPTURED  AVAILABLE
lic-alice  p30        30     0        30          0
seat       -          30     0        30          0
";
    assert_eq!(told(&world, &["balance", "alice", "--org", "acme"]), expected);
    let json = told(&world, &["balance", "alice", "--org", "acme", "--output", "json"]);
    assert_eq!(json.parse::<Value>().unwrap(), world.balance("alice"));
    let bob = told(&world, &["balance", "bob", "--org", "acme"]);
    assert!(bob.contains("pool       no access; missing: offer, base\n"), "{bob}");
}

#[test]
fn charge_shows_who_paid() {
    let (world, id) = paid();
    let text = told(&world, &["charge", &id, "--org", "acme"]);
    for line in [
        format!("charge     {id}"),
        "state      captured".to_owned(),
        "user       alice of acme".to_owned(),
        "cost       100 credits".to_owned(),
        "KIND     COVERS  AMOUNT  UNIT".to_owned(),
    ] {
        assert!(text.contains(&line), "{line:?} is not in\n{text}");
    }
    let legs: Vec<Vec<&str>> =
        text.lines().rev().take(2).map(|line| line.split_whitespace().skip(1).collect()).collect();
    assert_eq!(
        legs,
        [["pool", "70", "35", "operations"], ["licence", "30", "30", "credits"]],
        "{text}"
    );
    let json = told(&world, &["charge", &id, "--org", "acme", "-o", "json"]);
    assert_eq!(json.parse::<Value>().unwrap(), world.charge(&id));
}

#[test]
fn the_org_may_come_from_the_environment() {
    let (world, id) = paid();
    let admin = world.admin_url();
    let mut command = crate::support::world::tollgate();
    command.env("TOLLGATE_ORG", "acme").args(["charge", &id, "--admin", &admin]);
    assert_eq!(super::ran(command.output().unwrap()).code, 0);
    let nowhere = ask(&world, &["charge", &id]);
    assert_eq!(nowhere.code, 2);
    assert!(nowhere.err.contains("--org"), "{nowhere:?}");
}

#[test]
fn apply_and_verify_have_a_document_for_programs() {
    let world = World::new(&org());
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), org().user("carol", "1", Access::None).toml()).unwrap();
    let file = path.path().to_str().unwrap();
    let json = told(&world, &["apply", file, "--dry-run", "--output", "json"]);
    let document: Value = json.parse().unwrap();
    assert_eq!(document["dry_run"], true);
    assert!(document["changes"].as_array().unwrap().contains(&"+ user carol".into()), "{json}");
    // For scripts: 3 where something would change, and only there.
    let would = ask(&world, &["apply", file, "--dry-run", "--exit-code"]);
    assert_eq!(would.code, 3, "{would:?}");
    assert_eq!(ask(&world, &["apply", file]).code, 0);
    assert_eq!(ask(&world, &["apply", file, "--dry-run", "--exit-code"]).code, 0);
    let verified =
        super::run(&["ledger", "verify", "-o", "json", "-c", world.config().to_str().unwrap()]);
    assert_eq!(verified.code, 0, "{verified:?}");
    let document: Value = verified.out.parse().unwrap();
    assert_eq!((&document["ok"], &document["findings"]), (&true.into(), &Value::Array(vec![])));
}
