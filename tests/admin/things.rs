//! Terms, plans, groups, profiles, rate cards, keys, users and licences, one like the other; and
//! what each is for.

use serde_json::{Value, json};

use super::support::world::TOKEN;
use super::support::{Call, World, run};
use super::{admin, ask, ids, json_call, org, read};

#[test]
fn every_kind_of_thing_is_created_read_replaced_changed_and_removed() {
    run(async {
        let world = World::new(&org());
        for (path, key, first, replaced, patch, merged) in [
            (
                "terms",
                "id",
                json!({"id": "t9", "start": "2031-01-01", "end": "2032-01-01", "pool": "5"}),
                json!({"start": "2031-01-01", "end": "2032-01-01", "pool": "6", "currency": "USD"}),
                json!({"pool": "7", "currency": null}),
                json!({"id": "t9", "start": "2031-01-01", "end": "2032-01-01", "pool": "7"}),
            ),
            (
                "plans",
                "id",
                json!({"id": "basic", "credits": "1"}),
                json!({"credits": "2"}),
                json!({"credits": "3"}),
                json!({"id": "basic", "credits": "3"}),
            ),
            (
                "profiles",
                "id",
                json!({"id": "second", "product": "cce-4"}),
                json!({"product": "firefly-services", "shared_credits": true, "pool_limit": "4"}),
                json!({"groups": ["design"], "pool_limit": null}),
                json!({"id": "second", "product": "firefly-services", "shared_credits": true,
                    "groups": ["design"]}),
            ),
            (
                "rate-cards",
                "version",
                json!({"version": "2030", "operations_per_credit": "0.5", "rate": []}),
                json!({"operations_per_credit": "1/3", "effective": "2030-01-01T00:00:00Z"}),
                json!({"operations_per_credit": "0.25"}),
                json!({"version": "2030", "operations_per_credit": "0.25",
                    "effective": "2030-01-01T00:00:00Z", "rate": []}),
            ),
            (
                "users",
                "id",
                json!({"id": "zoe", "email": "zoe@acme.example"}),
                json!({"groups": ["design"], "licences": [{"id": "lic-z", "plan": "p10"}]}),
                json!({"pool_limit": "3", "suspended": true}),
                json!({"id": "zoe", "groups": ["design"], "suspended": true, "pool_limit": "3",
                    "licences": [{"id": "lic-z", "plan": "p10", "priority": 1}]}),
            ),
            (
                "licences",
                "id",
                json!({"id": "lic-9", "plan": "p10"}),
                json!({"plan": "p10", "user": "bob", "priority": 3}),
                json!({"user": null, "expires": "2026-12-31"}),
                json!({"id": "lic-9", "plan": "p10", "priority": 3, "expires": "2026-12-31"}),
            ),
        ] {
            let id = first[key].as_str().unwrap().to_owned();
            let one = format!("{path}/{id}");
            let send =
                async |method, path: &str, body: Value| admin(&world, method, path, body).await;
            send("GET", &one, Value::Null).await.refused(404, "not_found");
            send("PATCH", &one, patch.clone()).await.refused(404, "not_found");
            send("DELETE", &one, Value::Null).await.refused(404, "not_found");
            let made = send("POST", path, first.clone()).await.is(201).json();
            assert_eq!(read(&world, &one), made);
            send("POST", path, first.clone()).await.refused(409, "conflict");
            send("PUT", &one, replaced).await.is(200);
            let changed = send("PATCH", &one, patch).await.is(200).json();
            assert_eq!(changed, merged);
            assert_eq!(read(&world, &one), merged);
            let listed = read(&world, path);
            if path != "users" {
                let items = listed["items"].as_array().unwrap();
                assert!(items.contains(&merged), "{listed}");
            }
            let elsewhere = send("PUT", &one, json!({ key: "other" })).await;
            assert_eq!(
                elsewhere.refused(422, "invalid")["errors"][0]["pointer"],
                format!("/{key}")
            );
            send("DELETE", &one, Value::Null).await.is(204);
            send("GET", &one, Value::Null).await.refused(404, "not_found");
        }
        for line in ["plan basic", "term t9", "user zoe", "licence lic-9", "rate_card 2030"] {
            let (kind, id) = line.split_once(' ').unwrap();
            let audit = read(&world, &format!("audit?kind={kind}&id={id}"));
            let entries = audit["items"].as_array().unwrap();
            assert!(entries.len() >= 4, "{audit}");
            assert_eq!(entries[0]["after"], Value::Null);
            assert_eq!(entries.last().unwrap()["before"], Value::Null);
        }
    });
}

#[test]
fn what_is_still_named_is_not_removed() {
    run(async {
        let world = World::new(&org());
        let delete = async |path: &str| admin(&world, "DELETE", path, Value::Null).await;
        delete("plans/p10").await.refused(409, "conflict");
        delete("profiles/ffs").await.refused(409, "conflict");
        delete("users/alice").await.refused(409, "conflict");
        admin(&world, "PUT", "groups/design/members/bob", Value::Null).await.is(204);
        delete("groups/design").await.refused(409, "conflict");
        admin(&world, "DELETE", "groups/design/members/bob", Value::Null).await.is(204);
        delete("groups/design").await.is(204);
        delete("users/bob").await.is(204);
        assert_eq!(ids(&read(&world, "licences?unassigned=true")), ["lic-bob"]);
    });
}

#[test]
fn d09_a_licence_that_is_taken_away_stops_paying_from_the_next_request() {
    run(async {
        let world = World::new(&org());
        let image = Call::post("/v1/images", "{}").user("bob");
        world.send(&image).await.is(200);
        let take = json!({ "user": null });
        admin(&world, "PATCH", "licences/lic-bob", take).await.is(200);
        world.send(&image).await.refused(402, "seat_exhausted");
        // D10: what is left in its bucket goes to whoever holds it next.
        let give = json!({ "user": "carol" });
        admin(&world, "PATCH", "licences/lic-bob", give).await.is(200);
        let seat = &world.balance("carol")["seat"];
        assert_eq!((&seat["granted"], &seat["available"]), (&json!("54"), &json!("54")));
    });
}

#[test]
fn a_key_is_rotated_with_an_overlap() {
    run(async {
        let world = World::new(&org());
        let made = admin(&world, "POST", "keys", json!({"id": "k", "kind": "service"})).await;
        let made = made.is(201).json();
        let old = made["secret"].as_str().unwrap().to_owned();
        let use_key = async |secret: &str| {
            world
                .send(&Call::post("/v1/images", "{}").key(secret).header("tollgate-user", "carol"))
                .await
        };
        let rotated = admin(&world, "POST", "keys/k/rotate", Value::Null).await;
        let new = rotated.is(200).json()["secret"].as_str().unwrap().to_owned();
        use_key(&old).await.is(200);
        use_key(&new).await.is(200);
        admin(&world, "POST", "keys/k/rotate", json!({})).await.refused(409, "conflict");
        let secret = made["secrets"][0]["id"].as_str().unwrap();
        let path = format!("keys/k/secrets/{secret}");
        admin(&world, "DELETE", &path, Value::Null).await.is(204);
        use_key(&old).await.refused(401, "unauthenticated");
        use_key(&new).await.is(200);
        admin(&world, "DELETE", &path, Value::Null).await.refused(404, "not_found");
    });
}

#[test]
fn an_org_is_made_and_changed_without_a_file() {
    run(async {
        let world = World::new(&org());
        let send = async |call: Call| ask(&world, TOKEN, call).await;
        let globex = "/v1/orgs/globex";
        send(Call::get(globex)).await.refused(404, "not_found");
        let settings = json!({"timezone": "America/Los_Angeles", "anchor": {"day": 15}});
        let made = send(json_call("PUT", globex, &settings)).await.is(200).json();
        assert_eq!((&made["id"], &made["anchor"]), (&json!("globex"), &json!({"day": 15})));
        let patch = json!({"overage": {"bill_up_to": "5"}, "pool_limit": "7"});
        let patched = json_call("PATCH", globex, &patch);
        assert_eq!(send(patched).await.is(200).json()["overage"], json!({"bill_up_to": "5"}));
        let read = send(Call::get(globex)).await.is(200).json();
        assert_eq!((&read["pool_limit"], &read["anchor"]), (&json!("7"), &json!({"day": 15})));
        assert_eq!(ids(&world.admin("/v1/orgs").1), ["acme", "globex"]);
        let odd = json_call("PATCH", globex, &json!({"timezone": "Mars/Olympus"}));
        let problem = send(odd).await.refused(422, "invalid");
        assert_eq!(problem["errors"][0]["pointer"], "/timezone");
    });
}

#[test]
fn an_org_file_is_applied_on_a_condition_and_as_toml() {
    run(async {
        let world = World::new(&org());
        let send = async |call: Call| ask(&world, TOKEN, call).await;
        let apply = |body: &str| {
            Call::post("/v1/orgs/acme/apply", body.to_owned())
                .header("content-type", "application/toml")
        };
        let toml = "[[plan]]\nid = \"new\"\ncredits = \"1\"\n";
        let tag = send(Call::get("/v1/orgs/acme/plans")).await.header("etag").unwrap().to_owned();
        let first = send(apply(toml).header("if-match", &tag)).await;
        assert_eq!(first.is(200).json()["changes"], json!(["+ plan new"]));
        send(apply(toml).header("if-match", &tag)).await.refused(412, "stale");
        assert_eq!(send(apply(toml)).await.is(200).json()["changes"], json!([]));
        send(apply("[[plan]]\nid = 1\n")).await.refused(422, "invalid");
        send(apply("plan = ")).await.refused(422, "invalid");
    });
}
