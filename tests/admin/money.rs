//! Quotes, holds, adjustments and refunds.

use serde_json::{Value, json};

use super::support::{Access, Call, Org, Script, World, run, until};
use super::{admin, ask, ids, org, read, token};

async fn adjust(world: &World, account: &str, user: &str, amount: &str) -> Value {
    let mut body = json!({"account": account, "amount": amount, "reason": "because"});
    if !user.is_empty() {
        body["user"] = json!(user);
    }
    admin(world, "POST", "adjustments", body).await.is(201).json()
}

#[test]
fn a_quote_says_what_the_waterfall_would_do_and_holds_nothing() {
    run(async {
        let world = World::new(&org());
        let quote = async |body: Value| admin(&world, "POST", "quotes", body).await;
        let image = |user: &str, n: Value| json!({"user": user, "feature": "image", "quantity": n});
        for (body, cost, operations, code) in [
            (image("bob", json!(5)), "5", "2.5", Value::Null),
            (image("bob", json!("5.1")), "5.1", "2.55", json!("seat_exhausted")),
            (image("alice", json!("2010")), "2010", "1005", Value::Null),
            (image("alice", json!("2011")), "2011", "1005.5", json!("pool_exhausted")),
            (
                json!({"user": "bob", "feature": "video", "attributes": {"resolution": "720p"}}),
                "50",
                "1",
                json!("seat_exhausted"),
            ),
            (
                json!({"user": "bob", "feature": "chat", "quantity": {"in": "3", "out": 6}}),
                "5",
                "2.5",
                Value::Null,
            ),
            (json!({"user": "bob", "feature": "recolor"}), "0", "0", Value::Null),
        ] {
            let told = quote(body.clone()).await.is(200).json();
            assert_eq!(told["cost"], cost, "{body}: {told}");
            assert_eq!(told["operations"], operations, "{body}: {told}");
            assert_eq!(told["code"], code, "{body}: {told}");
            let verdict = if code.is_null() { "allow" } else { "refuse" };
            assert_eq!(told["verdict"], verdict, "{body}");
            assert_eq!(told["rate_card"], "2026-11");
            assert_eq!(told["balance"], world.balance(body["user"].as_str().unwrap()));
        }
        for (body, pointer) in [
            (json!({"user": "bob"}), "/feature"),
            (image("bob", json!(1.5)), "/quantity"),
            (image("bob", json!("1e3")), "/quantity"),
            (image("bob", json!(-1)), "/quantity"),
            (image("bob", json!({"": 1})), "/quantity/"),
            (json!({"user": "bob", "feature": "nothing"}), "/feature"),
            (json!({"user": "bob", "feature": "image", "hold": true}), "/hold"),
        ] {
            let problem = quote(body.clone()).await.refused(422, "invalid");
            assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}: {problem}");
        }
        quote(image("nobody", json!(1))).await.refused(404, "not_found");
        admin(&world, "PATCH", "users/bob", json!({"suspended": true})).await.is(200);
        assert_eq!(quote(image("bob", json!(1))).await.json()["code"], "user_suspended");
        assert_eq!(world.metric("tollgate_holds_open", &[]), 0.0);
    });
}

#[test]
fn an_open_charge_is_listed_and_can_be_voided_once() {
    run(async {
        let world = World::new(&org());
        assert_eq!(read(&world, "holds")["items"], json!([]));
        let call = Call::post("/v1/images", "{\"n\":2}").user("bob").script(&Script::gate("g"));
        let mut client = world.client().await;
        let answer = async { client.send(&call).await };
        let voiding = async {
            until("the backend has it", || world.backend.seen().pop().filter(|s| s.is_gated()))
                .await;
            let id = world.backend.last().charge().unwrap().to_owned();
            let open = read(&world, "holds");
            assert_eq!(open["items"], json!([world.charge(&id)]));
            assert_eq!(open["items"][0]["state"], "held");
            assert_eq!(read(&world, "holds?user=alice")["items"], json!([]));
            // f77: who sees members of its profiles sees their charges, and no others.
            let lead = token(&world, "lead", "profile-admin", Some("acme"), &["ffs"]).await;
            let seen = || ask(&world, &lead, Call::get("/v1/orgs/acme/holds"));
            assert_eq!(seen().await.is(200).json()["items"], json!([]));
            let member = "profiles/ffs/members/bob";
            admin(&world, "PUT", member, Value::Null).await.is(204);
            assert_eq!(seen().await.is(200).json()["items"], open["items"]);
            admin(&world, "DELETE", member, Value::Null).await.is(204);
            assert_eq!(world.balance("bob")["seat"]["held"], "2");
            let void =
                async || admin(&world, "POST", &format!("holds/{id}/void"), Value::Null).await;
            let voided = void().await.is(200).json();
            assert_eq!(voided["state"], "voided");
            assert_eq!(void().await.is(200).json(), voided);
            assert_eq!(world.balance("bob")["seat"]["held"], "0");
            assert_eq!(read(&world, "holds")["items"], json!([]));
            world.backend.open("g");
            id
        };
        let (answer, id) = tokio::join!(answer, voiding);
        answer.is(200).tells(&[("state", "voided"), ("cost", "0")]);
        world.seat("bob", "0", "5", "0");
        let entry = &read(&world, "audit?kind=hold")["items"][0];
        assert_eq!((&entry["id"], &entry["who"]), (&json!(id), &json!("operator")));
        assert_eq!((&entry["before"]["state"], &entry["after"]), (&json!("held"), &Value::Null));
        let captured = world.send(&Call::post("/v1/images", "{}").user("bob")).await;
        let path = format!("holds/{}/void", captured.told("charge"));
        admin(&world, "POST", &path, Value::Null).await.refused(409, "conflict");
        let unknown = "holds/0198f3c2-6f2a-7000-8000-000000000001/void";
        admin(&world, "POST", unknown, Value::Null).await.refused(404, "not_found");
    });
}

#[test]
fn d42_an_adjustment_adds_to_an_account_or_takes_from_it() {
    run(async {
        let world = World::new(&org().settings("overage = { bill_up_to = \"5\" }"));
        let made = adjust(&world, "licence", "bob", "2.5").await;
        let account = "acme/licence/lic-bob/bob/2026-11-01";
        assert_eq!((&made["account"], &made["amount"]), (&json!(account), &json!("2.5")));
        assert_eq!((&made["unit"], &made["who"]), (&json!("credits"), &json!("operator")));
        assert_eq!(made["at"], "2026-11-20T12:00:00Z");
        world.seat("bob", "0", "7.5", "0");
        adjust(&world, "licence", "bob", "-7").await;
        world.seat("bob", "0", "0.5", "0");
        let image = Call::post("/v1/images", "{}").user("bob");
        world.send(&image).await.refused(402, "seat_exhausted");
        let second = json!({"account": "licence", "user": "carol", "licence": "lic-c2",
            "amount": "1", "reason": "r"});
        admin(&world, "POST", "adjustments", second).await.is(201);
        let licences = &world.balance("carol")["seat"]["licences"];
        let granted = [&licences[0]["granted"], &licences[1]["granted"]];
        assert_eq!(granted, ["30", "21"], "{licences}");
        adjust(&world, "pool", "", "-999.5").await;
        adjust(&world, "overage", "", "-5").await;
        assert_eq!(world.pool()["available"], "0.5");
        let video = Call::post("/v1/images", "{\"n\":12}").user("alice");
        world.send(&video).await.refused(402, "overage_cap_reached");
        let listed = read(&world, "adjustments?limit=2");
        let kinds: Vec<&str> = (listed["items"].as_array().unwrap().iter())
            .map(|one| one["kind"].as_str().unwrap())
            .collect();
        assert_eq!(kinds, ["overage", "pool"]);
        let next = format!("adjustments?cursor={}", listed["next_cursor"].as_str().unwrap());
        let rest = read(&world, &next);
        assert_eq!(rest["items"].as_array().unwrap().len(), 3);
        assert_eq!(rest["next_cursor"], Value::Null);
        // Nothing follows a part that is full and the last.
        assert_eq!(read(&world, "adjustments?limit=5")["next_cursor"], Value::Null);
        let audit = read(&world, "audit?kind=adjustment");
        assert_eq!(audit["items"].as_array().unwrap().len(), 5);
        assert_eq!(audit["items"][4]["after"], made);
        for (body, pointer) in [
            (json!({"account": "pool", "amount": "1"}), "/reason"),
            (json!({"account": "pool", "amount": "1", "reason": ""}), "/reason"),
            (json!({"account": "pool", "amount": "1", "reason": "a\nb"}), "/reason"),
            (json!({"account": "pool", "amount": "0", "reason": "r"}), "/amount"),
            (json!({"account": "pool", "amount": "+1", "reason": "r"}), "/amount"),
            (json!({"account": "purse", "amount": "1", "reason": "r"}), "/account"),
            (json!({"account": "licence", "amount": "1", "reason": "r"}), "/user"),
            (json!({"account": "pool", "user": "bob", "amount": "1", "reason": "r"}), "/user"),
            (
                json!({"account": "licence", "user": "bob", "licence": "lic-c1", "amount": "1",
                    "reason": "r"}),
                "/licence",
            ),
        ] {
            let answer = admin(&world, "POST", "adjustments", body.clone()).await;
            let problem = answer.refused(422, "invalid");
            assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}: {problem}");
        }
        let body = json!({"account": "draw", "user": "bob", "amount": "1", "reason": "r"});
        admin(&world, "POST", "adjustments", body).await.refused(409, "conflict");
    });
}

#[test]
fn f57_no_adjustment_leads_beyond_the_largest_amount() {
    const MOST: &str = "9007199254.740991";
    run(async {
        let world = World::new(&org());
        let post = async |user: &str, licence: &str, amount: &str| {
            let body = json!({"account": "licence", "user": user, "licence": licence,
                "amount": amount, "reason": "r"});
            admin(&world, "POST", "adjustments", body).await
        };
        for amount in [MOST, "9007199249.740992"] {
            let problem = post("bob", "lic-bob", amount).await.refused(422, "invalid");
            assert_eq!(problem["errors"][0]["pointer"], "/amount", "{problem}");
        }
        assert_eq!(world.balance("bob")["seat"]["available"], "5");
        post("bob", "lic-bob", "9007199249.740991").await.is(201);
        assert_eq!(world.balance("bob")["seat"]["available"], MOST);
        post("bob", "lic-bob", "0.000001").await.refused(422, "invalid");
        // What was taken can be given back all the same, and no more.
        world.send(&Call::post("/v1/images", "{}").user("bob")).await.is(200);
        assert_eq!(world.balance("bob")["seat"]["available"], "9007199253.740991");
        post("bob", "lic-bob", "1.000001").await.refused(422, "invalid");
        post("bob", "lic-bob", "1").await.is(201);
        assert_eq!(world.balance("bob")["seat"]["available"], MOST);
        // Taking away is always possible, and so is what the directory grants.
        post("bob", "lic-bob", "-1").await.is(201);
        let plan = world.balance("bob")["seat"]["licences"][0]["plan"].clone();
        let plan = format!("plans/{}", plan.as_str().unwrap());
        admin(&world, "PATCH", &plan, json!({"credits": MOST})).await.is(200);
        let seat = &world.balance("bob")["seat"];
        assert_eq!((&seat["granted"], &seat["available"]), (&json!(MOST), &json!(MOST)));
        assert_eq!(seat["licences"][0]["available"], MOST, "{seat}");
        // Sums are amounts, too.
        post("carol", "lic-c1", "9007199224.740991").await.is(201);
        post("carol", "lic-c2", "9007199234.740991").await.is(201);
        let seat = &world.balance("carol")["seat"];
        assert_eq!((&seat["granted"], &seat["available"]), (&json!(MOST), &json!(MOST)));
        let image = Call::post("/v1/images", "{}").user("carol");
        assert_eq!(world.send(&image).await.is(200).told("seat-remaining"), MOST);
    });
}

#[test]
fn d31_what_is_owed_is_forgiven_by_an_adjustment() {
    run(async {
        let world = World::new(&org());
        let call = Call::post("/v1/told", "{\"n\":1}").user("bob").script(&Script::usage(7));
        world.send(&call).await.is(200);
        assert_eq!(world.balance("bob")["overdraft"], "2");
        adjust(&world, "licence", "bob", "10").await;
        let image = Call::post("/v1/images", "{}").user("bob");
        world.send(&image).await.refused(402, "overdrawn");
        adjust(&world, "overdraft", "bob", "2").await;
        assert_eq!(world.balance("bob")["overdraft"], "0");
        world.send(&image).await.is(200);
    });
}

#[test]
fn a_refund_gives_every_account_its_part_back_once() {
    run(async {
        let sample = Org::new().pool("2").settings("overage = { bill_up_to = \"5\" }");
        let sample = sample.offer("pool_limit = \"6\"\n").user("alice", "10", Access::Pool);
        let world = World::new(&sample);
        let call = Call::post("/v1/images", "{\"n\":20}").user("alice");
        let answer = world.send(&call).await;
        answer.is(200).tells(&[("seat", "10"), ("pool", "2"), ("overage", "3")]);
        let id = answer.told("charge");
        let refund = async |id: &str| {
            let body = json!({"reason": "the picture was empty"});
            admin(&world, "POST", &format!("charges/{id}/refund"), body).await
        };
        let given = refund(&id).await.is(201).json();
        let mut parts: Vec<(String, String)> = (given["adjustments"].as_array().unwrap().iter())
            .map(|part| {
                assert_eq!(part["charge"], json!(id));
                let text = |key: &str| part[key].as_str().unwrap().to_owned();
                (text("account"), text("amount"))
            })
            .collect();
        parts.sort();
        let expected = [
            ("acme/draw/user/alice/2026-11-01", "5"),
            ("acme/licence/lic-alice/alice/2026-11-01", "10"),
            ("acme/overage/t1", "3"),
            ("acme/pool/t1", "2"),
        ];
        let expected = expected.map(|(account, amount)| (account.to_owned(), amount.to_owned()));
        assert_eq!(parts, expected);
        assert_eq!(world.balance("alice")["seat"]["available"], "10");
        assert_eq!(world.pool()["available"], "2");
        refund(&id).await.refused(409, "conflict");
        // Everything can be used once more.
        world.send(&call).await.is(200).tells(&[("seat", "10"), ("pool", "2"), ("overage", "3")]);
        let failed = call.script(&Script::status(500));
        adjust(&world, "licence", "alice", "100").await;
        let voided = world.send(&failed).await.told("charge");
        refund(&voided).await.refused(409, "conflict");
        refund("0198f3c2-6f2a-7000-8000-000000000001").await.refused(404, "not_found");
        let adjusted = read(&world, "adjustments?limit=1000");
        assert_eq!(ids(&adjusted).len(), 5);
    });
}

#[test]
fn a_refund_names_accounts_of_a_user_whose_id_looks_like_a_cycle() {
    run(async {
        let sample = Org::new().pool("5").user("2026-11-01", "10", Access::Pool);
        let world = World::new(&sample);
        let call = Call::post("/v1/images", "{\"n\":12}").user("2026-11-01");
        let charge = world.send(&call).await.told("charge");
        let body = json!({"reason": "the picture was empty"});
        let given = admin(&world, "POST", &format!("charges/{charge}/refund"), body).await;
        let names = |document: &Value, list: &str| {
            let parts = document[list].as_array().unwrap().iter();
            let mut names: Vec<String> =
                parts.map(|part| part["account"].as_str().unwrap().to_owned()).collect();
            names.sort();
            names
        };
        let expected = [
            "acme/draw/user/2026-11-01/2026-11-01",
            "acme/licence/lic-2026-11-01/2026-11-01/2026-11-01",
            "acme/pool/t1",
        ];
        assert_eq!(names(&given.is(201).json(), "adjustments"), expected);
        assert_eq!(names(&read(&world, "adjustments"), "items"), expected);
    });
}
