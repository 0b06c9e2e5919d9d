//! How documents change an org: what they leave alone, what they default, what they prune, and
//! when they are refused.

use super::*;
use crate::directory::administration::AuditQuery;
use crate::directory::file::hash_secret;
use crate::directory::snapshot::{ActsFor, KeyKind};
use crate::sql::query;
use secrecy::ExposeSecret;
use serde_json::json;

#[tokio::test]
async fn applying_twice_changes_nothing() {
    let bench = Bench::empty().await;
    let lines = bench.apply(ACME).await;
    assert!(lines.contains(&"+ org acme".to_owned()) && lines.contains(&"+ user alice".to_owned()));
    assert!(bench.apply(ACME).await.is_empty());
    let bench = bench.reopen(1).await;
    assert!(bench.apply(ACME).await.is_empty());
}

#[tokio::test]
async fn a_dry_run_prints_the_difference_and_changes_nothing() {
    let bench = Bench::acme().await;
    let changed = ACME
        .replace("4000", "5000")
        .replace("id = \"bob\"", "id = \"bob\"\ngroups = [\"design\"]")
        .replace(
            "id = \"cce\"\nproduct = \"cce-4\"",
            "id = \"cce\"\nproduct = \"cce-4\"\nusers = [\"alice\"]",
        );
    let expected = [
        "~ plan cc-pro credits 4000 → 5000",
        "~ user alice profiles +cce",
        "~ user bob groups +design",
    ];
    assert_eq!(bench.dry_run(&changed).await, expected);
    assert_eq!(bench.seat("alice", NOVEMBER)[0].1, 4000);
    assert_eq!(bench.apply(&changed).await, expected);
    assert_eq!(bench.seat("alice", NOVEMBER)[0].1, 5000);
    assert!(bench.dry_run(&changed).await.is_empty());
}

#[tokio::test]
async fn an_absent_section_is_left_alone_and_a_present_one_keeps_what_it_omits() {
    let bench = Bench::acme().await;
    assert_eq!(bench.apply("[[plan]]\nid = \"new\"\ncredits = \"1\"").await, ["+ plan new"]);
    assert_eq!(bench.org().users.len(), 2);
    assert_eq!(bench.org().details.plans.len(), 3);
    assert!(bench.access("alice").is_ok());
}

#[tokio::test]
async fn a_missing_key_means_its_default() {
    let bench = Bench::acme().await;
    let lines = bench.apply("[[profile]]\nid = \"ffs-creative\"\nproduct = \"cce-4\"").await;
    let expected = "~ profile ffs-creative product firefly-services → cce-4, \
                    shared_credits true → false, pool_limit 100 → none, groups -design";
    assert_eq!(lines, [expected]);
    let lines = bench.apply("[[user]]\nid = \"alice\"").await;
    assert_eq!(lines[0], "~ user alice email alice@acme.example → none, groups -design");
}

#[tokio::test]
async fn prune_removes_what_a_file_made_and_omits() {
    let bench = Bench::acme().await;
    let rest = ACME.split("[[profile]]").next().unwrap();
    let without_bob = rest.split("[[user]]\nid = \"bob\"").next().unwrap();
    assert!(bench.apply(without_bob).await.is_empty());
    let pruning = format!("{without_bob}\n[apply]\nprune = [\"user\", \"key\"]\n");
    // The key section is absent, so it is left alone.
    assert_eq!(bench.apply(&pruning).await, ["- user bob"]);
    assert!(bench.org().users.get("bob").is_none());
    let bench = bench.reopen(1).await;
    assert_eq!(bench.org().users.len(), 1);
}

#[tokio::test]
async fn prune_leaves_what_the_api_made() {
    let bench = Bench::acme().await;
    bench.execute(query("UPDATE org_user SET made_by = 'api' WHERE id = 'bob'")).await;
    // Naming it in a file does not make it the file's.
    bench.apply("[[user]]\nid = \"bob\"\nsuspended = true").await;
    let lines = bench.apply("user = []\n[apply]\nprune = [\"user\"]").await;
    assert!(lines.contains(&"- user alice".to_owned()), "{lines:?}");
    let org = bench.org();
    assert!(org.users.get("alice").is_none() && org.users.get("bob").unwrap().standing.suspended);
}

#[tokio::test]
async fn deleting_a_user_unassigns_licences() {
    let bench = Bench::acme().await;
    let lines = bench.apply("user = []\n[apply]\nprune = [\"user\"]").await;
    assert!(lines.contains(&"~ licence lic-1 holder alice → none".to_owned()), "{lines:?}");
    bench.apply("[[user]]\nid = \"bob\"\nlicences = [{ id = \"lic-1\", plan = \"cc-pro\" }]").await;
    // Bob has what alice left in this cycle (D10).
    assert_eq!(bench.seat("bob", NOVEMBER)[0].0, "acme/licence/lic-1/alice/2026-11-01");
}

#[tokio::test]
async fn pruning_what_is_still_named_is_refused() {
    let bench = Bench::acme().await;
    let pruning = "plan = []\ngroup = []\n[apply]\nprune = [\"plan\", \"group\"]";
    let problems = bench.problems(pruning).await;
    assert!(problems.iter().all(|pointer| pointer == "/apply/prune"), "{problems:?}");
    // Two profiles and a user of the group, two licences.
    assert_eq!(problems.len(), 5);
    assert_eq!(bench.problems("[org]\nid = \"acme\"").await, ["/org/products"; 2]);
}

#[tokio::test]
async fn a_key_keeps_its_secret_and_a_new_one_gets_one_shown_once() {
    let bench = Bench::acme().await;
    let known = |bench: &Bench, secret: &str| {
        bench.directory.live.load().keys.get(&hash_secret(secret)).map(|key| key.id.to_string())
    };
    let studio = "tg_studio_0123456789abcdef";
    let omitted = "[[key]]\nid = \"studio\"\nkind = \"service\"\nacts_for = { groups = [\"design\"] }\n\
                   [[key]]\nid = \"new\"\nkind = \"user\"\nuser = \"bob\"";
    let applied = bench.try_apply(omitted, NOVEMBER).await.unwrap();
    assert_eq!(known(&bench, studio).as_deref(), Some("studio"));
    let [(key, secret)] = applied.secrets.as_slice() else { panic!("{applied:?}") };
    assert_eq!(*key, id("new"));
    assert!(secret.expose_secret().starts_with("tg_") && secret.expose_secret().len() == 67);
    assert_eq!(known(&bench, secret.expose_secret()).as_deref(), Some("new"));
    assert!(!format!("{applied:?}").contains(secret.expose_secret()));
    // Once.
    assert!(bench.try_apply(omitted, NOVEMBER).await.unwrap().secrets.is_empty());
    let bench = bench.reopen(1).await;
    let key = Arc::clone(&bench.directory.live.load().keys[&hash_secret(studio)]);
    let groups = vec![id("design")];
    assert_eq!(key.kind, KeyKind::Service(ActsFor::Some { users: Vec::new(), groups }));
    // Another secret replaces it.
    bench.apply(&ACME.replace(studio, "tg_studio_second_0123456789")).await;
    assert_eq!(known(&bench, studio), None);
    assert_eq!(known(&bench, "tg_studio_second_0123456789").as_deref(), Some("studio"));
}

#[tokio::test]
async fn two_secrets_may_be_live_during_rotation() {
    let bench = Bench::acme().await;
    let second = "tg_studio_second_0123456789";
    let sql = "INSERT INTO key_secret VALUES ($1, 'acme', 'studio', '2026-12-01T00:00:00Z')";
    bench.execute(query(sql).bind(rows::hex(&hash_secret(second)))).await;
    let bench = bench.reopen(1).await;
    let snapshot = bench.directory.live.load();
    assert_eq!(snapshot.keys.len(), 2);
    assert_eq!(snapshot.keys[&hash_secret(second)].expires, Some(at("2026-12-01T00:00:00Z")));
    // A file that names one of them ends no rotation.
    assert!(bench.apply(ACME).await.is_empty());
}

#[tokio::test]
async fn a_secret_belongs_to_one_key() {
    let bench = Bench::acme().await;
    let other =
        "[[key]]\nid = \"other\"\nkind = \"service\"\nsecret = \"tg_studio_0123456789abcdef\"";
    assert_eq!(bench.problems(other).await, ["/key/0/secret"]);
}

#[tokio::test]
async fn an_undefined_reference_applies_nothing() {
    let bench = Bench::acme().await;
    let broken = r#"
        [[plan]]
        id = "fine"
        credits = "1"
        [[user]]
        id = "carol"
        groups = ["design", "nobody"]
        licences = [{ id = "x", plan = "no-plan" }]
        [[profile]]
        id = "p"
        product = "no-product"
        users = ["bob", "no-user"]
        groups = ["no-group"]
        [[rate_card]]
        version = "v"
        offer = "no-offer"
        operations_per_credit = "1"
        [[key]]
        id = "a"
        kind = "user"
        user = "no-user"
        [[key]]
        id = "b"
        kind = "principal"
        profile = "no-profile"
        [[key]]
        id = "c"
        kind = "service"
        acts_for = { users = ["alice", "no-user"], groups = ["no-group"] }
    "#;
    let expected = [
        "/user/0/groups/1",
        "/user/0/licences/0/plan",
        "/profile/0/product",
        "/profile/0/groups/0",
        "/profile/0/users/1",
        "/rate_card/0/offer",
        "/key/0/user",
        "/key/1/profile",
        "/key/2/acts_for/users/1",
        "/key/2/acts_for/groups/0",
    ];
    assert_eq!(bench.problems(broken).await, expected);
    assert!(!bench.org().details.plans.contains_key("fine"));
    assert_eq!(bench.org().version.number, 1);
}

#[tokio::test]
async fn overlapping_terms_are_refused_also_with_one_that_is_there() {
    let bench = Bench::acme().await;
    let term =
        "[[term]]\nid = \"late\"\nstart = \"2026-12-31\"\nend = \"2027-12-31\"\npool = \"1\"";
    assert_eq!(bench.problems(term).await, ["/term/0"]);
    let next = term.replace("2026-12-31", "2027-01-01");
    assert_eq!(bench.apply(&next).await, ["+ term late"]);
}

#[tokio::test]
async fn an_org_needs_its_section_to_come_into_being() {
    let bench = Bench::empty().await;
    assert_eq!(bench.problems("[[plan]]\nid = \"p\"\ncredits = \"1\"").await, ["/org"]);
    assert_eq!(bench.problems(&ACME.replace("\"acme\"", "\"other\"")).await, ["/org/id"]);
    assert!(bench.directory.live.load().orgs.is_empty());
}

#[tokio::test]
async fn a_change_shares_the_users_it_does_not_touch() {
    let bench = Bench::acme().await;
    let before = bench.org();
    bench.apply("[[user]]\nid = \"bob\"\nsuspended = true").await;
    let after = bench.org();
    let same =
        |user: &str| Arc::ptr_eq(before.users.get(user).unwrap(), after.users.get(user).unwrap());
    assert!(same("alice") && !same("bob"));
    assert!(after.users.get("bob").unwrap().standing.suspended);
}

#[tokio::test]
async fn moving_a_licence_rebuilds_both_holders() {
    let bench = Bench::acme().await;
    let toml = "[[user]]\nid = \"bob\"\nlicences = [{ id = \"lic-1\", plan = \"cc-pro\" }]";
    assert_eq!(bench.apply(toml).await, ["~ licence lic-1 holder alice → bob"]);
    assert_eq!(bench.seat("alice", NOVEMBER).len(), 1);
    assert_eq!(bench.seat("bob", NOVEMBER).len(), 1);
}

#[tokio::test]
async fn every_change_is_audited() {
    let bench = Bench::acme().await;
    bench.apply(&ACME.replace("4000", "5000")).await;
    let query = AuditQuery { limit: 1_000, ..AuditQuery::default() };
    let page = bench.directory.audit(Some(&id("acme")), &query).await.unwrap();
    let newest = &page.entries[0];
    assert_eq!((newest.who.as_str(), newest.at, newest.version), ("tests", at(NOVEMBER), Some(2)));
    assert_eq!((newest.kind.as_str(), newest.id.as_str()), ("plan", "cc-pro"));
    assert_eq!(newest.line, "~ plan cc-pro credits 4000 → 5000");
    assert_eq!(newest.before, Some(json!({ "credits": "4000" })));
    assert_eq!(newest.after, Some(json!({ "credits": "5000" })));
    // Every line of the first change, and no secret in any of them.
    let text = serde_json::to_string(&page.entries).unwrap();
    assert!(page.entries.len() > 10 && !text.contains("tg_studio"));
}

#[tokio::test]
async fn an_org_of_many_users_is_read_page_by_page() {
    let bench = Bench::acme().await;
    let mut toml = String::new();
    for number in 0..9_000 {
        toml += &format!(
            "[[user]]\nid = \"u{number}\"\ngroups = [\"design\"]\n\
             licences = [{{ id = \"l{number}\", plan = \"cc-pro\" }}]\n"
        );
    }
    bench.apply(&toml).await;
    assert!(bench.apply(&toml).await.is_empty());
    let bench = bench.reopen(1).await;
    assert_eq!(bench.org().users.len(), 9_002);
    for user in bench.org().users.iter().filter(|user| user.id().starts_with('u')) {
        assert_eq!((user.licences.len(), user.standing.access.is_ok()), (1, true), "{}", user.id());
    }
}
