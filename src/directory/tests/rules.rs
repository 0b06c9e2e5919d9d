//! Domain rules, as far as the directory keeps them.

use super::*;
use crate::core::entitlement::Overage;
use crate::core::price::Measure;
use crate::core::refusal::{Code, DecidedBy};
use crate::directory::file::hash_secret;
use crate::directory::snapshot::{Key, KeyKind};

/// Who holds `lic-1`, and how the org moves licences.
fn holders(on_reassign: &str, users: &[(&str, bool)]) -> String {
    let org = ACME.split("[[term]]").next().unwrap();
    let mut text = format!("{org}on_reassign = \"{on_reassign}\"\n");
    for (user, holds) in users {
        let licence = if *holds { "{ id = \"lic-1\", plan = \"cc-pro\" }" } else { "" };
        text += &format!("[[user]]\nid = \"{user}\"\nlicences = [{licence}]\n");
    }
    text
}

fn names(seat: Vec<(String, u64)>) -> Vec<String> {
    seat.into_iter().map(|(name, _)| name).collect()
}

#[tokio::test]
async fn d03_licences_stack_and_burn_by_expiry_then_priority_then_id() {
    let bench = Bench::acme().await;
    bench
        .apply(
            r#"[[user]]
            id = "alice"
            licences = [
                { id = "z", plan = "addon-2000" },
                { id = "a", plan = "addon-2000" },
                { id = "late", plan = "cc-pro", expires = "2027-06-01", priority = 0 },
                { id = "first", plan = "addon-2000", priority = 0 },
                { id = "soon", plan = "addon-2000", expires = "2026-11-20T00:00:00Z" },
            ]"#,
        )
        .await;
    let seat = bench.seat("alice", NOVEMBER);
    let order: Vec<&str> = seat.iter().map(|(name, _)| name.split('/').nth(2).unwrap()).collect();
    assert_eq!(order, ["soon", "late", "first", "a", "z"]);
    assert_eq!(seat.iter().map(|(_, credits)| credits).sum::<u64>(), 12_000);
    // An expired licence no longer pays.
    assert_eq!(bench.seat("alice", "2026-11-20T00:00:00Z").len(), 4);
}

#[tokio::test]
async fn d04_the_next_cycle_has_accounts_of_its_own_with_the_full_sum() {
    let bench = Bench::acme().await;
    let expected = |label: &str| {
        [
            (format!("acme/licence/lic-1/alice/{label}"), 4000),
            (format!("acme/licence/lic-2/alice/{label}"), 2000),
        ]
    };
    assert_eq!(bench.seat("alice", NOVEMBER), expected("2026-11-01"));
    assert_eq!(bench.seat("alice", DECEMBER), expected("2026-12-01"));
}

#[tokio::test]
async fn d05_anchor_and_zone_are_the_orgs() {
    let bench = Bench::empty().await;
    let zoned = ACME
        .replace("contract", "timezone = \"America/Los_Angeles\"\nanchor = { day = 15 }\ncontract");
    bench.apply(&zoned).await;
    let bench = bench.reopen(1).await;
    let cycle = bench.org().schedule.cycle_at(at(NOVEMBER));
    assert_eq!(cycle.label.to_string(), "2026-10-15");
    assert_eq!(cycle.end.to_string(), "2026-11-15T08:00:00Z");
    assert_eq!(bench.org().terms[0].term.start.to_string(), "2026-01-01T08:00:00Z");
}

#[tokio::test]
async fn d06_a_change_of_anchor_waits_for_the_end_of_the_cycle() {
    let bench = Bench::acme().await;
    let org = ACME.split("[[term]]").next().unwrap();
    let changed = format!("{org}anchor = {{ day = 10 }}\n");
    let lines = bench.apply(&changed).await;
    assert_eq!(lines, [r#"~ org acme anchor calendar-month → {"day":10}"#]);
    // Applying it again, later in the same cycle, changes nothing.
    assert!(bench.apply_at(&changed, "2026-11-29T00:00:00Z").await.is_empty());
    let bench = bench.reopen(1).await;
    let cycle = |now: &str| bench.org().schedule.cycle_at(at(now));
    assert_eq!(cycle(NOVEMBER).end.to_string(), "2026-12-01T00:00:00Z");
    assert_eq!(cycle("2026-12-15T00:00:00Z").label.to_string(), "2026-12-01");
    assert_eq!(cycle("2026-12-15T00:00:00Z").end.to_string(), "2027-01-10T00:00:00Z");
}

#[tokio::test]
async fn d06_a_change_of_zone_waits_too_and_moves_no_term_that_began() {
    let bench = Bench::acme().await;
    let org = ACME.split("[[term]]").next().unwrap();
    bench.apply(&format!("{org}timezone = \"Asia/Tokyo\"\n")).await;
    let bench = bench.reopen(1).await;
    let org = bench.org();
    assert_eq!(org.schedule.cycle_at(at(NOVEMBER)).end.to_string(), "2026-12-01T00:00:00Z");
    assert_eq!(org.schedule.cycle_at(at(DECEMBER)).end.to_string(), "2026-12-31T15:00:00Z");
    assert_eq!(org.terms[0].term.start.to_string(), "2026-01-01T00:00:00Z");
    assert_eq!(org.terms[0].term.end.to_string(), "2026-12-31T15:00:00Z");
}

#[tokio::test]
async fn d08_a_licence_assigned_mid_cycle_counts_in_full_from_the_next_request() {
    let bench = Bench::acme().await;
    assert!(bench.seat("bob", NOVEMBER).is_empty());
    let toml = "[[user]]\nid = \"bob\"\nlicences = [{ id = \"lic-3\", plan = \"cc-pro\" }]";
    bench.apply(toml).await;
    let expected = [("acme/licence/lic-3/bob/2026-11-01".to_owned(), 4000)];
    assert_eq!(bench.seat("bob", NOVEMBER), expected);
}

#[tokio::test]
async fn d09_a_licence_removed_mid_cycle_stops_paying_from_the_next_request() {
    let bench = Bench::acme().await;
    let user = "[[user]]\nid = \"alice\"\nemail = \"alice@acme.example\"\ngroups = [\"design\"]";
    let expected = ["~ licence lic-1 holder alice → none", "~ licence lic-2 holder alice → none"];
    assert_eq!(bench.apply(user).await, expected);
    assert!(bench.seat("alice", NOVEMBER).is_empty());
}

#[tokio::test]
async fn d10_remaining_gives_the_new_holder_the_same_bucket_until_the_reset() {
    let bench = Bench::acme().await;
    bench.apply(&holders("remaining", &[("bob", true)])).await;
    let bench = bench.reopen(1).await;
    assert_eq!(names(bench.seat("alice", NOVEMBER)), ["acme/licence/lic-2/alice/2026-11-01"]);
    assert_eq!(names(bench.seat("bob", NOVEMBER)), ["acme/licence/lic-1/alice/2026-11-01"]);
    assert_eq!(names(bench.seat("bob", DECEMBER)), ["acme/licence/lic-1/bob/2026-12-01"]);
    // A change in the next cycle starts from what requests have used by then.
    bench.apply_at(&holders("remaining", &[("carol", true)]), DECEMBER).await;
    assert_eq!(names(bench.seat("carol", DECEMBER)), ["acme/licence/lic-1/bob/2026-12-01"]);
}

#[tokio::test]
async fn d10_next_cycle_pays_nothing_until_the_reset() {
    let bench = Bench::acme().await;
    bench.apply(&holders("next-cycle", &[("bob", true)])).await;
    assert!(bench.seat("bob", NOVEMBER).is_empty());
    assert_eq!(names(bench.seat("bob", DECEMBER)), ["acme/licence/lic-1/bob/2026-12-01"]);
    bench.apply(&holders("next-cycle", &[("alice", true)])).await;
    assert_eq!(names(bench.seat("alice", NOVEMBER)), ["acme/licence/lic-1/alice/2026-11-01"]);
}

#[tokio::test]
async fn d10_full_is_a_bucket_of_ones_own_and_lying_unassigned_changes_nothing() {
    let bench = Bench::acme().await;
    bench.apply(&holders("full", &[("alice", false)])).await;
    bench.apply(&holders("full", &[("bob", true)])).await;
    assert_eq!(names(bench.seat("bob", NOVEMBER)), ["acme/licence/lic-1/bob/2026-11-01"]);
    bench.apply(&holders("full", &[("bob", false)])).await;
    bench.apply(&holders("full", &[("alice", true)])).await;
    assert_eq!(names(bench.seat("alice", NOVEMBER)), ["acme/licence/lic-1/alice/2026-11-01"]);
}

#[tokio::test]
async fn d12_offer_and_base_and_eligibility_together_give_access() {
    let bench = Bench::acme().await;
    assert_eq!(bench.access("alice").unwrap().profile, id("ffs-creative"));
    let cases = [
        ("contract = \"etla\"", "contract = \"vip\"", vec!["eligibility"]),
        ("shared_credits = true", "", vec!["offer"]),
        ("groups = [\"design\"]\npool_limit", "users = [\"bob\"]\npool_limit", vec!["offer"]),
        ("product = \"cce-4\"", "product = \"firefly-services\"", vec!["base"]),
        ("contract", "bases = [\"other\"]\ncontract", vec!["eligibility", "base"]),
        ("contract", "offers = []\ncontract", vec!["eligibility", "offer"]),
    ];
    for (from, to, missing) in cases {
        assert!(ACME.contains(from));
        bench.apply(&ACME.replacen(from, to, 1)).await;
        assert_eq!(bench.access("alice"), Err(missing.iter().map(|m| m.to_string()).collect()));
        bench.apply(ACME).await;
        assert!(bench.access("alice").is_ok());
    }
    // Which products are offers and bases is the org's to say.
    let own = ACME
        .replace("contract", "offers = [\"x\"]\nbases = [\"y\"]\ncontract")
        .replace("firefly-services", "x")
        .replace("cce-4", "y");
    bench.apply(&own).await;
    assert_eq!(bench.access("alice").unwrap().offer, id("x"));
}

#[tokio::test]
async fn d12_direct_membership_counts_as_through_a_group() {
    let bench = Bench::acme().await;
    let direct = ACME.replace("groups = [\"design\"]", "users = [\"bob\"]");
    let direct = direct.replacen("users = [\"bob\"]\n[[user]]", "[[user]]", 1);
    bench.apply(&direct).await;
    assert!(bench.access("bob").is_ok());
    assert!(bench.access("alice").is_err());
    let bench = bench.reopen(1).await;
    assert!(bench.access("bob").is_ok());
}

#[tokio::test]
async fn d13_losing_a_membership_or_the_switch_ends_access_from_the_next_request() {
    let bench = Bench::acme().await;
    for (from, to) in [
        ("groups = [\"design\"]\n[[user]]", "[[user]]"),
        ("shared_credits = true", "shared_credits = false"),
        ("product = \"cce-4\"\ngroups = [\"design\"]", "product = \"cce-4\""),
    ] {
        assert!(bench.access("alice").is_ok());
        bench.apply(&ACME.replacen(from, to, 1)).await;
        assert!(bench.access("alice").is_err(), "{to}");
        bench.apply(ACME).await;
    }
}

#[tokio::test]
async fn d14_a_user_without_access_is_told_what_is_missing() {
    let bench = Bench::acme().await;
    assert_eq!(bench.access("bob"), Err(vec!["offer".to_owned(), "base".to_owned()]));
}

#[tokio::test]
async fn d17_the_most_generous_profile_grants_and_the_nearest_limit_decides() {
    let bench = Bench::acme().await;
    let limit = |bench: &Bench| {
        let access = bench.access("alice").unwrap();
        let limit = access.limit.clone().map(|limit| (limit.limit, limit.decided_by));
        (access.profile.to_string(), limit)
    };
    let is = |profile: &str, text: &str, by| (profile.to_owned(), Some((operations(text), by)));
    assert_eq!(limit(&bench), is("ffs-creative", "100", DecidedBy::Profile));
    let profile = |id: &str, limit: &str| {
        format!(
            "[[profile]]\nid = \"{id}\"\nproduct = \"firefly-services\"\nshared_credits = true\n\
             groups = [\"design\"]\n{limit}\n"
        )
    };
    bench.apply(&profile("big", "pool_limit = \"500\"")).await;
    assert_eq!(limit(&bench), is("big", "500", DecidedBy::Profile));
    bench.apply(&profile("also-big", "pool_limit = \"500\"")).await;
    assert_eq!(limit(&bench), is("also-big", "500", DecidedBy::Profile));
    bench.apply(&profile("open", "")).await;
    assert_eq!(limit(&bench), ("open".to_owned(), None));
    bench.apply(&ACME.replace("contract", "pool_limit = \"7\"\ncontract")).await;
    assert_eq!(limit(&bench), is("open", "7", DecidedBy::Org));
    bench.apply(&ACME.replacen("email", "pool_limit = \"9\"\nemail", 1)).await;
    assert_eq!(limit(&bench), is("open", "9", DecidedBy::User));
}

fn robot(bench: &Bench) -> Arc<Key> {
    let snapshot = bench.directory.live.load();
    Arc::clone(&snapshot.keys[&hash_secret("tg_robot_0123456789abcdefgh")])
}

#[tokio::test]
async fn d18_a_principal_needs_an_offer_profile_and_no_base() {
    let bench = Bench::acme().await;
    let key = |extra: &str| {
        format!(
            "[[key]]\nid = \"robot\"\nkind = \"principal\"\nprofile = \"ffs-creative\"\n\
             secret = \"tg_robot_0123456789abcdefgh\"\n{extra}"
        )
    };
    let limit = |bench: &Bench| match &robot(bench).kind {
        KeyKind::Principal(Ok(access)) => {
            access.limit.clone().map(|limit| (limit.limit, limit.decided_by))
        }
        other => panic!("{other:?}"),
    };
    bench.apply(&key("")).await;
    assert_eq!(limit(&bench), Some((operations("100"), DecidedBy::Profile)));
    bench.apply(&key("pool_limit = \"5000\"")).await;
    assert_eq!(limit(&bench), Some((operations("5000"), DecidedBy::Key)));
    let missing = |bench: &Bench| match &robot(bench).kind {
        KeyKind::Principal(Err(missing)) => missing.iter().map(rows::word).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    bench.apply(&key("").replace("ffs-creative", "cce")).await;
    assert_eq!(missing(&bench), ["offer"]);
    bench.apply(&key("")).await;
    bench.apply(&ACME.replace("etla", "vip")).await;
    assert_eq!(missing(&bench), ["eligibility"]);
    bench.apply(&ACME.replace("shared_credits = true", "")).await;
    assert_eq!(missing(&bench), ["offer"]);
}

#[tokio::test]
async fn d19_two_equally_specific_rates_are_an_error_at_load() {
    let bench = Bench::acme().await;
    let rate = "[[rate_card.rate]]\nfeature = \"text-to-image\"\ncredits = \"2\"\n";
    let twice = ACME.replace("[[key]]", &format!("{rate}[[key]]"));
    assert_eq!(bench.problems(&twice).await, ["/rate_card/0/rate"]);
}

#[tokio::test]
async fn d20_each_offer_may_have_its_rate_card() {
    let bench = Bench::acme().await;
    let card = "[[rate_card]]\nversion = \"ffs\"\noffer = \"firefly-services\"\n\
                operations_per_credit = \"1/3\"\n";
    bench.apply(card).await;
    let bench = bench.reopen(1).await;
    let (org, access) = (bench.org(), bench.access("alice").unwrap());
    let version = |access| org.card(access, at(NOVEMBER)).unwrap().file().version.to_string();
    assert_eq!(version(Some(&*access)), "ffs");
    assert_eq!(version(None), "2026-11");
}

#[tokio::test]
async fn d22_a_feature_without_a_rate_is_unpriced() {
    let bench = Bench::acme().await;
    let org = bench.org();
    let card = org.card(None, at(NOVEMBER)).unwrap();
    let one = [Measure { meter: None, quantity: 1_000_000 }];
    assert_eq!(card.quote("text-to-image", &[], &one).unwrap().price.cost.to_string(), "1");
    assert_eq!(card.quote("upscale", &[], &one).unwrap_err().code, Code::Unpriced);
}

#[tokio::test]
async fn d23_the_newest_card_in_force_prices() {
    let bench = Bench::acme().await;
    let card = |version: &str, effective: &str| {
        format!(
            "[[rate_card]]\nversion = \"{version}\"\neffective = \"{effective}\"\n\
             operations_per_credit = \"1\"\n"
        )
    };
    bench.apply(&card("a-late", "2026-12-01T00:00:00Z")).await;
    bench.apply(&card("b-early", "2026-11-15T00:00:00Z")).await;
    let org = bench.org();
    let version = |now: &str| org.card(None, at(now)).unwrap().file().version.to_string();
    assert_eq!(version(NOVEMBER), "2026-11");
    assert_eq!(version("2026-11-15T00:00:00Z"), "b-early");
    assert_eq!(version(DECEMBER), "a-late");
}

#[tokio::test]
async fn d26_a_profile_is_stricter_than_its_org_and_never_looser() {
    let bench = Bench::acme().await;
    let with = |org: &str, profile: &str| {
        ACME.replace("contract", &format!("overage = {org}\ncontract")).replacen(
            "shared_credits",
            &format!("overage = {profile}\nshared_credits"),
            1,
        )
    };
    bench.apply(&with("\"bill\"", "{ bill_up_to = \"50\" }")).await;
    let bench = bench.reopen(1).await;
    let access = bench.access("alice").unwrap();
    assert_eq!(access.overage, Overage::BillUpTo(operations("50")));
    let caps = bench.org().profile_caps[&id("ffs-creative")].clone();
    assert_eq!((caps.cap, caps.stems.len()), (operations("50"), 1));
    bench.apply(&with("{ bill_up_to = \"20\" }", "\"bill\"")).await;
    assert_eq!(bench.access("alice").unwrap().overage, Overage::BillUpTo(operations("20")));
    assert!(bench.org().profile_caps.is_empty());
}

#[tokio::test]
async fn d42_each_change_raises_the_version_and_a_restored_directory_the_epoch() {
    let bench = Bench::acme().await;
    assert_eq!(bench.org().version, Version { epoch: 1, number: 1 });
    bench.apply(&ACME.replace("4000", "5000")).await;
    assert_eq!(bench.org().version, Version { epoch: 1, number: 2 });
    assert_eq!(bench.seat("alice", NOVEMBER)[0].1, 5000);
    // What changes nothing is no new version.
    bench.apply(&ACME.replace("4000", "5000")).await;
    assert_eq!(bench.org().version.number, 2);
    let bench = bench.reopen(4).await;
    assert_eq!(bench.org().version, Version { epoch: 4, number: 2 });
    let bench = bench.reopen(1).await;
    assert_eq!(bench.org().version.epoch, 4);
}
