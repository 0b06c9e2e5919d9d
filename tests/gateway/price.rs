//! Prices over sockets: D19–D23, D29, D41.

use serde_json::json;

use crate::support::{Access, Call, Org, World, run};

fn video(body: &str) -> Call {
    Call::post("/v1/video", body.to_owned()).user("alice")
}

fn world() -> World {
    World::new(&Org::new().pool("100").user("alice", "1000", Access::Pool))
}

#[test]
fn d19_d20_the_most_specific_rate_prices_and_may_have_its_own_operations() {
    run(async {
        let world = World::new(&Org::new().pool("100").user("alice", "", Access::Pool));
        for (target, body, cost, operations) in [
            ("/v1/video", "{\"seconds\":2}", "200", "4"),
            ("/v1/video", "{\"seconds\":2,\"resolution\":\"720p\"}", "100", "2"),
            ("/v1/video?model=other", "{\"seconds\":2,\"resolution\":\"720p\"}", "100", "2"),
            // 2/3 of a credit, rounded up once; its Operations by the card's ratio.
            (
                "/v1/video?model=fine",
                "{\"seconds\":2,\"resolution\":\"720p\"}",
                "0.666667",
                "0.333334",
            ),
            (
                "/v1/video?model=f%69ne",
                "{\"seconds\":\"0.5\",\"resolution\":\"720p\"}",
                "0.166667",
                "0.083334",
            ),
        ] {
            let answer = world.send(&Call::post(target, body).user("alice")).await;
            answer.is(200).tells(&[("cost", cost), ("pool", operations)]);
        }
        world.accounts_for(&["alice"]).await;
    });
}

#[test]
fn d21_d41_meters_add_up_exactly_and_are_rounded_once() {
    run(async {
        let world = world();
        // 1/3 + 2/3 is one, not 0.333334 + 0.666667.
        let answer =
            world.send(&Call::post("/v1/chat", "{\"in\":1,\"out\":1}").user("alice")).await;
        answer.is(200).tells(&[("cost", "1")]);
        let script = crate::support::Script::body("{\"usage\":{\"in\":2,\"out\":\"0.5\"}}");
        let call = Call::post("/v1/chat", "{\"in\":10,\"out\":10}").user("alice").script(&script);
        world.send(&call).await.is(200).tells(&[("cost", "1")]);
        assert_eq!(world.last_charge()["quantity"], json!({"in": "2", "out": "0.5"}));
    });
}

#[test]
fn d22_what_has_no_rate_is_refused_and_never_forwarded() {
    run(async {
        let world = world();
        for call in [
            Call::post("/v1/unpriced", "{}").user("alice"),
            video("{\"resolution\":\"540p\"}"),
            video("{\"resolution\":\"540p\"}").header("x-anything", "else"),
        ] {
            world.send(&call).await.refused(422, "unpriced");
        }
        assert_eq!(world.backend.count(), 0);
        world.seat("alice", "0", "1000", "0");
    });
}

#[test]
fn d22_what_cannot_be_read_is_unquotable_and_never_forwarded() {
    run(async {
        let world = world();
        for body in [
            "",
            "not json",
            "{\"seconds\":null}",
            "{\"seconds\":-1}",
            "{\"seconds\":1e3}",
            "{\"seconds\":1e400}",
            "{\"seconds\":\"NaN\"}",
            "{\"seconds\":0.0000001}",
            "{\"seconds\":[1]}",
            "{\"seconds\":true}",
            "{\"seconds\":9007199254.740992}",
            "{\"seconds\":9007199254}",
            "{\"seconds\":1,\"seconds\":2}",
            "{\"seconds\":1,\"sec\\u006fnds\":2}",
            "{\"seconds\":1} x",
            "{\"resolution\":null}",
            "{\"resolution\":{}}",
        ] {
            let answer = world.send(&video(body)).await;
            answer.refused(400, "unquotable");
        }
        let twice = Call::post("/v1/video?model=fine&model=other", "{}").user("alice");
        world.send(&twice).await.refused(400, "unquotable");
        let encoded = video("{}").header("content-encoding", "gzip");
        world.send(&encoded).await.refused(400, "unquotable");
        let header = Call::post("/v1/streamed", "x").user("alice").header("x-count", "1,5");
        world.send(&header).await.refused(400, "unquotable");
        let twice = Call::post("/v1/streamed", "x").user("alice").header("x-count", "1");
        world.send(&twice.header("x-count", "1")).await.refused(400, "unquotable");
        world.send(&Call::get("/v1/tile/ten").user("alice")).await.refused(400, "unquotable");
        assert_eq!(world.backend.count(), 0);
        world.seat("alice", "0", "1000", "0");
    });
}

#[test]
fn d19_quantities_come_from_body_header_path_or_are_one() {
    run(async {
        let world = world();
        for (call, cost) in [
            (Call::post("/v1/images", "{\"n\":\"2.5\"}"), "2.5"),
            (Call::post("/v1/images", "{}"), "1"),
            (Call::post("/v1/streamed", "any body").header("x-count", "3"), "3"),
            (Call::post("/v1/streamed", "any body"), "1"),
            (Call::get("/v1/tile/4"), "4"),
            (Call::post("/v1/hasty", "any body"), "1"),
        ] {
            world.send(&call.user("alice")).await.is(200).tells(&[("cost", cost)]);
        }
    });
}

#[test]
fn d29_standard_features_are_recorded_at_zero_and_never_refused_for_lack_of_credit() {
    run(async {
        let org = Org::new().user("alice", "", Access::None).user("bob", "", Access::Pool);
        let world = World::new(&org);
        for user in ["alice", "bob"] {
            let answer = world.send(&Call::post("/v1/recolor", "x").user(user)).await;
            answer.is(200).tells(&[
                ("state", "captured"),
                ("cost", "0"),
                ("seat", "0"),
                ("pool", "0"),
            ]);
            let charge = world.last_charge();
            assert_eq!(
                (&charge["state"], &charge["feature"]),
                (&json!("captured"), &json!("recolor"))
            );
            assert_eq!((&charge["cost"], &charge["legs"]), (&json!("0"), &json!([])));
        }
        world.accounts_for(&["alice", "bob"]).await;
    });
}

#[test]
fn d23_a_charge_keeps_the_version_it_was_held_under() {
    run(async {
        let org = Org::new().user("alice", "1000", Access::None);
        let mut world = World::new(&org);
        world.send(&video("{}")).await.is(200).tells(&[("rate-card", "2026-11"), ("cost", "100")]);
        let first = world.last_charge()["charge"].as_str().unwrap().to_owned();
        let card = "[[rate_card]]\nversion = \"2026-12\"\neffective = 2026-11-25T00:00:00Z\n\
                    operations_per_credit = \"0.5\"\n[[rate_card.rate]]\nfeature = \"video\"\n\
                    credits = \"7\"\n";
        world.apply(&org.extra(card));
        world.send(&video("{}")).await.is(200).tells(&[("rate-card", "2026-11")]);
        world.move_clock("2026-11-25T00:00:00Z").await;
        world.send(&video("{}")).await.is(200).tells(&[("rate-card", "2026-12"), ("cost", "7")]);
        assert_eq!(world.last_charge()["rate_card"], "2026-12");
        assert_eq!(world.charge(&first)["rate_card"], "2026-11");
    });
}

#[test]
fn f55_a_price_that_changes_in_flight_changes_no_charge() {
    run(async {
        let org = Org::new().user("alice", "1000", Access::None);
        let world = World::new(&org);
        let script = crate::support::Script {
            gate: Some("go".to_owned()),
            ..crate::support::Script::usage(2)
        };
        let call = Call::post("/v1/told", "{\"n\":5}").user("alice").script(&script);
        let change = async {
            let forwarded = || (world.backend.count() == 1).then_some(());
            crate::support::until("it is forwarded", forwarded).await;
            let card = "[[rate_card]]\nversion = \"2026-12\"\neffective = 2026-11-01T00:00:00Z\n\
                        operations_per_credit = \"0.5\"\n[[rate_card.rate]]\nfeature = \"image\"\n\
                        credits = \"7\"\n";
            world.apply(&org.clone().extra(card));
            world.backend.open("go");
        };
        let (answer, ()) = tokio::join!(world.send(&call), change);
        answer.is(200).tells(&[("rate-card", "2026-11"), ("cost", "2")]);
        let next = world.send(&Call::post("/v1/images", "{}").user("alice")).await;
        next.is(200).tells(&[("rate-card", "2026-12"), ("cost", "7")]);
    });
}
