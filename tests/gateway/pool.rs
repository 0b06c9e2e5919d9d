//! The pool and what lies past it over sockets: D12–D18, D25, D26.

use serde_json::{Value, json};

use crate::support::{Access, Answer, Call, Org, Script, World, run, until};

fn images(user: &str, n: &str) -> Call {
    Call::post("/v1/images", format!("{{\"n\":{n}}}")).user(user)
}

fn missing(answer: &Answer) -> Value {
    let problem = answer.refused(402, "seat_exhausted");
    assert_eq!(problem["pool"]["access"], false);
    problem["pool"]["missing"].clone()
}

#[test]
fn d12_d14_a_refusal_names_what_is_missing_for_pool_access() {
    run(async {
        let org = Org::new()
            .user("none", "", Access::None)
            .user("base", "", Access::Base)
            .user("offer", "", Access::Offer)
            .user("both", "", Access::Pool);
        let world = World::new(&org);
        let ask = async |user: &str| world.send(&images(user, "1")).await;
        assert_eq!(missing(&ask("none").await), json!(["offer", "base"]));
        assert_eq!(missing(&ask("base").await), json!(["offer"]));
        assert_eq!(missing(&ask("offer").await), json!(["base"]));
        ask("both").await.is(200);
        let answer = world.send(&Call::post("/v1/thumb", "").user("both")).await;
        let problem = answer.refused(402, "seat_exhausted");
        assert_eq!(problem["pool"]["missing"], json!(["feature"]), "seats only");
        world.apply(&org.clone().settings("contract = \"vip\""));
        assert_eq!(missing(&ask("both").await), json!(["eligibility"]));
        assert_eq!(missing(&ask("base").await), json!(["eligibility", "offer"]));
        world.apply(&Org { shared: false, ..org.clone() });
        assert_eq!(missing(&ask("both").await), json!(["offer"]), "the switch is off");
        world.apply(&org);
        ask("both").await.is(200);
        world.accounts_for(&["none", "base", "offer", "both"]).await;
    });
}

#[test]
fn d12_groups_give_access_too() {
    run(async {
        let org = Org::new().user("alice", "", Access::None).more("groups = [\"design\"]").extra(
            "[[group]]\nid = \"design\"\n[[profile]]\nid = \"g-ffs\"\nproduct = \
                 \"firefly-services\"\nshared_credits = true\ngroups = [\"design\"]\n\
                 [[profile]]\nid = \"g-cce\"\nproduct = \"cce-4\"\ngroups = [\"design\"]\n",
        );
        let world = World::new(&org);
        world.send(&images("alice", "1")).await.is(200).tells(&[("pool", "0.5")]);
        world.apply(&org.change("alice", |alice| alice.more.clear()));
        let answer = world.send(&images("alice", "1")).await;
        assert_eq!(missing(&answer), json!(["offer", "base"]));
    });
}

#[test]
fn d13_a_removed_member_is_refused_at_the_next_request_and_their_hold_settles() {
    run(async {
        let org = Org::new().user("alice", "", Access::Pool);
        let world = World::new(&org);
        let mut client = world.client().await;
        client.send(&images("alice", "1")).await.is(200);
        let held = images("alice", "1").script(&Script::gate("go"));
        let remove = async {
            until("it is forwarded", || (world.backend.count() == 2).then_some(())).await;
            world.apply(&org.clone().change("alice", |alice| alice.access = Access::Offer));
            assert_eq!(missing(&client.send(&images("alice", "1")).await), json!(["base"]));
            world.backend.open("go");
        };
        let (answer, ()) = tokio::join!(world.send(&held), remove);
        answer.is(200).tells(&[("state", "captured"), ("pool", "0.5")]);
        assert_eq!(world.pool()["captured"], "1");
    });
}

#[test]
fn d17_the_limit_counts_per_user_and_cycle_and_says_who_set_it() {
    run(async {
        let org = Org::new()
            .settings("pool_limit = \"1\"")
            .settings("overage = \"bill\"")
            .pool("1.5")
            .user("alice", "", Access::Pool)
            .user("bob", "", Access::Pool);
        let mut world = World::new(&org);
        let refuse = |answer: &Answer| answer.refused(402, "pool_limit_reached");
        for user in ["alice", "bob"] {
            world.send(&images(user, "2")).await.is(200);
            let problem = refuse(&world.send(&images(user, "1")).await);
            assert_eq!(problem["decided_by"], "org");
            assert_eq!(problem["pool"]["access"], true);
            assert_eq!(problem["available"]["operations"], "0");
            assert_eq!(problem["required"], json!({"credits": "1", "operations": "0.5"}));
            assert_eq!(world.balance(user)["pool"]["limit"], "1");
        }
        // Bob's second Operation lay half past the pool: overage counts for the limit too.
        assert_eq!(world.pool()["overage"]["captured"], "0.5");
        let by_profile = org.clone().offer("pool_limit = \"2\"\n");
        world.apply(&by_profile);
        world.send(&images("alice", "2")).await.is(200);
        let problem = refuse(&world.send(&images("alice", "1")).await);
        assert_eq!(
            (&problem["decided_by"], &problem["pool"]["profile"]),
            (&json!("profile"), &json!("ffs"))
        );
        let by_user =
            by_profile.change("alice", |alice| alice.more = "pool_limit = \"2.5\"\n".into());
        world.apply(&by_user);
        world.send(&images("alice", "1")).await.is(200);
        assert_eq!(refuse(&world.send(&images("alice", "1")).await)["decided_by"], "user");
        world.accounts_for(&["alice", "bob"]).await;
        world.move_clock("2026-12-01T00:00:00Z").await;
        world.send(&images("alice", "5")).await.is(200);
        refuse(&world.send(&images("alice", "1")).await);
    });
}

#[test]
fn d17_the_profile_with_the_largest_limit_grants() {
    run(async {
        let profile = |id: &str, limit: &str| {
            format!(
                "[[profile]]\nid = \"{id}\"\nproduct = \"firefly-services\"\nshared_credits = true\n\
                 users = [\"alice\"]\n{limit}\n"
            )
        };
        let small = Org::new().user("alice", "", Access::Pool).offer("pool_limit = \"1\"\n");
        let more = small.clone().extra(&profile("b", "pool_limit = \"2\""));
        let world = World::new(&more.clone().extra(&profile("c", "pool_limit = \"2\"")));
        let problem = world.send(&images("alice", "5")).await.refused(402, "pool_limit_reached");
        assert_eq!(problem["pool"]["profile"], "b", "of two alike the lowest id");
        world.apply(&more.extra(&profile("c", "")));
        world.send(&images("alice", "5")).await.is(200);
        assert_eq!(world.balance("alice")["pool"]["limit"], json!(null), "unlimited");
    });
}

#[test]
fn d18_a_principal_draws_on_the_pool_under_its_own_limit() {
    run(async {
        let key = "[[key]]\nid = \"robot\"\nkind = \"principal\"\nprofile = \"ffs\"\n\
                   pool_limit = \"1\"\nsecret = \"tg_test_robot_00000000000001\"\n";
        let org = Org::new().user("alice", "100", Access::Pool).extra(key);
        let world = World::new(&org);
        let call = Call::post("/v1/images", "{}").key(crate::support::org::ROBOT);
        let answer = world.send(&call).await;
        answer.is(200).tells(&[("cost", "1"), ("seat", "0"), ("pool", "0.5")]);
        let receipt = answer.receipt();
        assert!(!receipt.contains_key("seat-remaining") && !receipt.contains_key("resets"));
        assert_eq!(world.backend.last().header("tollgate-user"), None);
        assert_eq!(world.last_charge()["user"], json!(null));
        world.send(&call).await.is(200);
        let problem = world.send(&call).await.refused(402, "pool_limit_reached");
        assert_eq!(problem["decided_by"], "key");
        assert_eq!(problem.get("resets_at"), None, "it has no seat");
        world.seat("alice", "0", "100", "0");
        world.apply(&Org { shared: false, ..org });
        let problem = world.send(&call).await.refused(403, "pool_access_denied");
        assert_eq!(problem["pool"], json!({"access": false, "missing": ["offer"]}));
    });
}

#[test]
fn d25_a_charge_that_the_seat_can_pay_in_part_is_split() {
    run(async {
        // 3 seconds at 1/3 credit, 0.5 Operations a credit; then 100 credits at 2 Operations.
        let org = Org::new().pool("10").user("alice", "31", Access::Pool);
        let world = World::new(&org);
        let answer = world.send(&Call::post("/v1/video", "{\"seconds\":1}").user("alice")).await;
        // x = 2 · 69 / 100
        answer.is(200).tells(&[("cost", "100"), ("seat", "31"), ("pool", "1.38")]);
        let legs = world.last_charge()["legs"].clone();
        assert_eq!(legs[0]["covers"], "31");
        assert_eq!((&legs[1]["covers"], &legs[1]["amount"]), (&json!("69"), &json!("1.38")));
        assert_eq!((&legs[1]["kind"], &legs[1]["unit"]), (&json!("pool"), &json!("operations")));
        world.accounts_for(&["alice"]).await;
    });
}

#[test]
fn d25_split_whole_sends_it_whole_to_the_pool() {
    run(async {
        let org =
            Org::new().pool("3").settings("split = \"whole\"").user("alice", "31", Access::Pool);
        let world = World::new(&org);
        let video = Call::post("/v1/video", "{\"seconds\":1}").user("alice");
        world.send(&video).await.is(200).tells(&[
            ("seat", "0"),
            ("pool", "2"),
            ("seat-remaining", "31"),
        ]);
        world.send(&video).await.refused(402, "pool_exhausted");
        world.send(&images("alice", "31")).await.is(200).tells(&[("seat", "31"), ("pool", "0")]);
    });
}

#[test]
fn d26_past_the_pool_the_policy_decides_and_no_leg_is_taken_in_part() {
    run(async {
        let org =
            Org::new().pool("1.2").user("alice", "0.5", Access::Pool).user("bob", "", Access::Pool);
        let world = World::new(&org);
        let problem = world.send(&images("alice", "4")).await.refused(402, "pool_exhausted");
        assert_eq!(problem["available"], json!({"credits": "0.5", "operations": "1.2"}));
        assert_eq!(problem["required"], json!({"credits": "4", "operations": "2"}));
        world.seat("alice", "0", "0.5", "0");
        world.apply(&org.clone().settings("overage = { bill_up_to = \"0.5\" }"));
        world.send(&images("alice", "4")).await.refused(402, "overage_cap_reached");
        let answer = world.send(&images("alice", "3.5")).await;
        answer.is(200).tells(&[("seat", "0.5"), ("pool", "1.2"), ("overage", "0.3")]);
        let legs = world.last_charge()["legs"].clone();
        let covers: Vec<&str> =
            legs.as_array().unwrap().iter().map(|leg| leg["covers"].as_str().unwrap()).collect();
        assert_eq!(covers, ["0.5", "2.4", "0.6"]);
        world.send(&images("bob", "1")).await.refused(402, "overage_cap_reached");
        world.apply(&org.clone().settings("overage = \"bill\""));
        world
            .send(&images("bob", "1000"))
            .await
            .is(200)
            .tells(&[("pool", "0"), ("overage", "500")]);
        let stricter = org.settings("overage = \"bill\"").offer("overage = \"reject\"\n");
        world.apply(&stricter);
        world.send(&images("bob", "1")).await.refused(402, "pool_exhausted");
        assert_eq!(world.pool()["overage"]["captured"], "500.3");
        world.accounts_for(&["alice", "bob"]).await;
    });
}

#[test]
fn d26_a_profiles_own_cap_is_counted_beside_the_orgs() {
    run(async {
        let org =
            Org::new().pool("0").settings("overage = \"bill\"").user("alice", "", Access::Pool);
        let world = World::new(&org.offer("overage = { bill_up_to = \"1\" }\n"));
        world.send(&images("alice", "3")).await.refused(402, "overage_cap_reached");
        world.send(&images("alice", "2")).await.is(200).tells(&[("overage", "1")]);
        world.send(&images("alice", "1")).await.refused(402, "overage_cap_reached");
    });
}

#[test]
fn without_a_term_there_is_no_pool() {
    run(async {
        let org = Org::new().no_term().user("alice", "1", Access::Pool);
        let world = World::new(&org);
        let problem = world.send(&images("alice", "2")).await.refused(402, "no_active_term");
        assert_eq!(problem["pool"]["access"], true);
        world.send(&images("alice", "1")).await.is(200);
    });
}
