//! Seats over sockets: D1–D11, D42.

use serde_json::json;

use crate::support::{Access, Call, Org, Script, World, run, until};

fn image(user: &str) -> Call {
    Call::post("/v1/images", "{}").user(user)
}

fn images(user: &str, n: &str) -> Call {
    Call::post("/v1/images", format!("{{\"n\":{n}}}")).user(user)
}

fn licence(id: &str, credits: &str, more: &str) -> (String, String, String) {
    (id.to_owned(), credits.to_owned(), more.to_owned())
}

#[test]
fn d01_the_seat_pays_before_the_pool() {
    run(async {
        let world = World::new(&Org::new().pool("10").user("alice", "2", Access::Pool));
        let mut client = world.client().await;
        for left in ["1", "0"] {
            let answer = client.send(&image("alice")).await;
            answer.is(200).tells(&[("seat", "1"), ("pool", "0"), ("seat-remaining", left)]);
            answer.tells(&[("pool-remaining", "10")]);
        }
        let answer = client.send(&image("alice")).await;
        answer.is(200).tells(&[("seat", "0"), ("pool", "0.5"), ("pool-remaining", "9.5")]);
        world.accounts_for(&["alice"]).await;
        world.seat("alice", "2", "0", "0.5");
    });
}

#[test]
fn d02_what_one_user_leaves_is_invisible_to_every_other() {
    run(async {
        let org = Org::new().user("alice", "1", Access::None).user("bob", "1000", Access::None);
        let world = World::new(&org);
        world.send(&image("alice")).await.is(200);
        let problem = world.send(&image("alice")).await.refused(402, "seat_exhausted");
        assert_eq!(problem["available"], json!({"credits": "0", "operations": "0"}));
        world.seat("bob", "0", "1000", "0");
    });
}

#[test]
fn d03_licences_stack_and_burn_by_expiry_then_priority_then_id() {
    run(async {
        let licences = vec![
            licence("a-low", "1", ", priority = 2"),
            licence("z-late", "1", ", expires = \"2027-06-01\""),
            licence("b-first", "1", ""),
            licence("c-second", "1", ""),
            licence("y-soon", "1", ", expires = \"2027-01-01\""),
        ];
        let world = World::new(&Org::new().stacked("alice", licences, Access::None));
        let balance = world.balance("alice");
        assert_eq!(balance["seat"]["granted"], "5", "one quota: {balance}");
        let order = ["y-soon", "z-late", "b-first", "c-second", "a-low"];
        let listed: Vec<&str> = (balance["seat"]["licences"].as_array().unwrap().iter())
            .map(|licence| licence["id"].as_str().unwrap())
            .collect();
        assert_eq!(listed, order);
        let mut client = world.client().await;
        client.send(&images("alice", "1.5")).await.is(200);
        let legs = world.last_charge()["legs"].clone();
        let paid = |at: usize| (legs[at]["account"].as_str().unwrap(), &legs[at]["amount"]);
        assert_eq!(legs.as_array().unwrap().len(), 2, "{legs}");
        assert!(paid(0).0.contains("y-soon") && paid(0).1 == "1", "{legs}");
        assert!(paid(1).0.contains("z-late") && paid(1).1 == "0.5", "{legs}");
        client.send(&images("alice", "3.5")).await.is(200);
        let legs = world.last_charge()["legs"].clone();
        let names: Vec<&str> =
            legs.as_array().unwrap().iter().map(|leg| leg["account"].as_str().unwrap()).collect();
        assert_eq!(names.len(), 4, "{legs}");
        for (name, id) in names.iter().zip(&order[1..]) {
            assert!(name.contains(id), "{name} is not {id}");
        }
        client.send(&images("alice", "0.000001")).await.refused(402, "seat_exhausted");
    });
}

#[test]
fn d03_an_expired_licence_pays_nothing() {
    run(async {
        let licences =
            vec![licence("old", "5", ", expires = \"2026-11-20\""), licence("new", "1", "")];
        let world = World::new(&Org::new().stacked("alice", licences, Access::None));
        world.send(&images("alice", "2")).await.refused(402, "seat_exhausted");
        world.send(&image("alice")).await.is(200).tells(&[("seat-remaining", "0")]);
    });
}

#[test]
fn d04_d06_d27_a_seat_resets_to_its_full_sum_and_pays_first_again() {
    run(async {
        let org = Org::new().pool("10").user("alice", "3", Access::Pool);
        let mut world = World::new(&org);
        world.send(&images("alice", "5")).await.is(200).tells(&[("seat", "3"), ("pool", "1")]);
        world.move_clock("2026-11-30T23:59:59.999999Z").await;
        let answer = world.send(&image("alice")).await;
        answer.is(200).tells(&[("seat", "0"), ("pool", "0.5"), ("resets", "2026-12-01T00:00:00Z")]);
        world.move_clock("2026-12-01T00:00:00Z").await;
        // Nothing rolled over, and nothing had to run for it.
        world.seat("alice", "0", "3", "0");
        let answer = world.send(&images("alice", "2")).await;
        answer.is(200).tells(&[("seat", "2"), ("pool", "0"), ("seat-remaining", "1")]);
        answer.tells(&[("resets", "2027-01-01T00:00:00Z"), ("pool-remaining", "8.5")]);
        assert_eq!(world.balance("alice")["cycle"]["label"], "2026-12-01");
        world.move_clock("2027-01-15T00:00:00Z").await;
        world.seat("alice", "0", "3", "0");
        assert_eq!(world.pool()["captured"], "1.5", "the pool's term goes on");
    });
}

#[test]
fn d05_the_anchor_is_clamped_and_counts_in_the_orgs_zone() {
    run(async {
        let org = Org::new().user("alice", "3", Access::None);
        let org = org.settings("timezone = \"America/Los_Angeles\"\nanchor = { day = 31 }");
        let mut world = World::new(&org);
        let cycle = world.balance("alice")["cycle"].clone();
        // Daylight saving time ends in between; November has no 31st.
        assert_eq!(cycle["label"], "2026-10-31");
        assert_eq!(cycle["start"], "2026-10-31T07:00:00Z");
        assert_eq!(cycle["end"], "2026-11-30T08:00:00Z");
        let answer = world.send(&image("alice")).await;
        answer.is(200).tells(&[("resets", "2026-11-30T08:00:00Z")]);
        world.move_clock("2026-11-30T08:00:00Z").await;
        let cycle = world.balance("alice")["cycle"].clone();
        assert_eq!(
            (&cycle["label"], &cycle["end"]),
            (&json!("2026-11-30"), &json!("2026-12-31T08:00:00Z"))
        );
        world.seat("alice", "0", "3", "0");
    });
}

#[test]
fn d07_a_hold_left_open_before_the_reset_is_resolved_in_its_own_cycle() {
    run(async {
        let mut world = World::new(&Org::new().user("alice", "3", Access::None));
        let gateway = world.gateway();
        let call = Call::post("/v1/doubt", "{}").user("alice").script(&Script::gate("never"));
        let client = tokio::task::LocalSet::new();
        client
            .run_until(async {
                let asked = tokio::task::spawn_local(async move {
                    crate::support::Client::connect(gateway).await.try_send(&call).await.is_err()
                });
                until("it is forwarded", || (world.backend.count() == 1).then_some(())).await;
                world.crash_and_move_clock("2026-12-02T00:00:00Z");
                assert!(asked.await.unwrap());
            })
            .await;
        // It was captured, but not from the new cycle.
        world.seat("alice", "0", "3", "0");
        let charge = world.last_charge();
        assert_eq!(
            (&charge["state"], &charge["cycle"]),
            (&json!("captured"), &json!("2026-11-01"))
        );
        assert_eq!(charge["legs"][0]["amount"], "1");
    });
}

#[test]
fn d08_d09_a_licence_counts_from_the_next_request_and_stops_so() {
    run(async {
        let org = Org::new().user("alice", "1", Access::None);
        let world = World::new(&org);
        let mut client = world.client().await;
        client.send(&image("alice")).await.is(200);
        client.send(&image("alice")).await.refused(402, "seat_exhausted");
        let more = licence("extra", "2", "");
        let richer = org.clone().change("alice", |alice| alice.licences.push(more));
        world.apply(&richer);
        // The same connection, so that nothing it remembers of its caller is stale.
        client.send(&image("alice")).await.is(200).tells(&[("seat", "1"), ("seat-remaining", "1")]);
        world.seat("alice", "2", "1", "0");
        world.apply(&org);
        client.send(&image("alice")).await.refused(402, "seat_exhausted");
        world.apply(&richer);
        world.seat("alice", "2", "1", "0");
        world.accounts_for(&["alice"]).await;
    });
}

#[test]
fn d09_a_hold_of_a_licence_that_is_removed_settles_normally() {
    run(async {
        let org = Org::new().user("alice", "5", Access::None);
        let world = World::new(&org);
        let call = image("alice").script(&Script::gate("go"));
        let change = async {
            until("it is forwarded", || (world.backend.count() == 1).then_some(())).await;
            world.apply(&org.clone().change("alice", |alice| alice.licences.clear()));
            world.send(&image("alice")).await.refused(402, "seat_exhausted");
            world.backend.open("go");
        };
        let (answer, ()) = tokio::join!(world.send(&call), change);
        answer.is(200).tells(&[("state", "captured"), ("seat", "1")]);
        assert_eq!(world.last_charge()["state"], "captured");
    });
}

#[test]
fn d10_a_licence_that_moves_gives_what_is_left() {
    run(async {
        let org = Org::new().user("alice", "5", Access::None).user("bob", "", Access::None);
        let world = World::new(&org);
        world.send(&images("alice", "2")).await.is(200);
        let moved = org.clone().change("alice", |alice| alice.licences.clear());
        let moved = moved.change("bob", |bob| bob.licences = vec![licence("lic-alice", "5", "")]);
        world.apply(&moved);
        world.send(&image("alice")).await.refused(402, "seat_exhausted");
        world.send(&images("bob", "4")).await.refused(402, "seat_exhausted");
        world.send(&images("bob", "3")).await.is(200).tells(&[("seat-remaining", "0")]);
        world.apply(&org.clone().change("bob", |bob| bob.licences.clear()));
        world.send(&image("alice")).await.refused(402, "seat_exhausted");
    });
}

#[test]
fn d11_everybody_sees_their_own_balance_and_admins_see_all() {
    run(async {
        let org = Org::new().user("alice", "5", Access::Pool).user("bob", "7", Access::None);
        let world = World::new(&org.more("email = \"bob@acme.example\""));
        world.send(&images("alice", "2")).await.is(200);
        let own = world.send(&Call::get("/.tollgate/v1/me/credits").user("alice")).await;
        assert_eq!(own.is(200).json(), world.balance("alice"));
        let (status, list) = world.admin("/v1/orgs/acme/users");
        assert_eq!(status, 200);
        let items = list["items"].as_array().unwrap();
        assert_eq!(items.len(), 2, "{list}");
        let mut bob = world.balance("bob");
        bob["email"] = json!("bob@acme.example");
        bob["groups"] = json!([]);
        assert_eq!(items[1], bob, "a user who has used nothing is listed too");
        assert_eq!(items[0]["seat"]["captured"], "2");
        assert_eq!((&list["next_cursor"], &list["time_zone"]), (&json!(null), &json!("UTC")));
        let (_, page) = world.admin("/v1/orgs/acme/users?limit=1");
        assert_eq!(page["items"][0]["user"], "alice");
        let next = page["next_cursor"].as_str().unwrap();
        let (_, page) = world.admin(&format!("/v1/orgs/acme/users?limit=1&cursor={next}"));
        assert_eq!(
            (&page["items"][0]["user"], &page["next_cursor"]),
            (&json!("bob"), &json!(null))
        );
    });
}

#[test]
fn d42_a_grant_that_changes_in_use_overwrites_nothing_that_was_used() {
    run(async {
        let org =
            Org::new().pool("10").user("alice", "5", Access::None).user("carol", "", Access::Pool);
        let world = World::new(&org);
        world.send(&images("alice", "3")).await.is(200);
        world.send(&images("carol", "8")).await.is(200);
        let with = |credits: &str, pool: &str| {
            let org = org.clone().pool(pool).change("alice", |alice| {
                alice.licences = vec![licence("lic-alice", credits, "")];
            });
            world.apply(&org);
        };
        with("8", "12");
        world.seat("alice", "3", "5", "0");
        world.send(&image("alice")).await.is(200).tells(&[("seat-remaining", "4")]);
        assert_eq!(world.pool()["available"], "8");
        // Lower than what was used: nothing is left, and nothing is taken back.
        with("2", "3");
        world.seat("alice", "4", "0", "0");
        world.send(&image("alice")).await.refused(402, "seat_exhausted");
        world.send(&image("carol")).await.refused(402, "pool_exhausted");
        assert_eq!(world.pool()["captured"], "4");
        with("4.5", "4.5");
        world.send(&image("alice")).await.refused(402, "seat_exhausted");
        world.send(&images("alice", "0.5")).await.is(200).tells(&[("seat-remaining", "0")]);
        world.send(&image("carol")).await.is(200).tells(&[("pool-remaining", "0")]);
        world.verify();
        world.accounts_for(&["alice", "carol"]).await;
    });
}

#[test]
fn d42_a_grant_that_changes_while_all_of_it_is_in_flight_counts_what_is_held() {
    run(async {
        let org = Org::new().user("alice", "5", Access::None);
        let world = World::new(&org);
        let with = |credits: &str| {
            world.apply(&org.clone().change("alice", |alice| {
                alice.licences = vec![licence("lic-alice", credits, "")];
            }));
        };
        let gateway = world.gateway();
        let mut held = tokio::task::JoinSet::new();
        for _ in 0..5 {
            let call = image("alice").script(&Script::gate("go"));
            held.spawn(
                async move { crate::support::Client::connect(gateway).await.send(&call).await },
            );
        }
        let forwarded = || (world.backend.count() == 5).then_some(());
        until("all are in flight", forwarded).await;
        world.send(&image("alice")).await.refused(402, "seat_exhausted");
        with("7");
        world.send(&image("alice")).await.is(200).tells(&[("seat-remaining", "1")]);
        with("3");
        world.send(&image("alice")).await.refused(402, "seat_exhausted");
        world.backend.open("go");
        for answer in held.join_all().await {
            answer.is(200).tells(&[("state", "captured")]);
        }
        world.seat("alice", "6", "0", "0");
        with("6.5");
        world.seat("alice", "6", "0.5", "0");
        world.accounts_for(&["alice"]).await;
    });
}
