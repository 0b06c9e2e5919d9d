//! Who asks, what is refused and in which order, and what neither side is shown of the other.

use serde_json::json;

use crate::support::org::{OWN, ROBOT, STUDIO};
use crate::support::world::MEDIA_TOKEN;
use crate::support::{Access, Call, Org, Script, Setup, World, burst, run, until};

fn image() -> Call {
    Call::post("/v1/images", "{}")
}

/// alice may do everything, bob is suspended; the key `desk` acts for alice and for designers.
fn org() -> Org {
    Org::new()
        .user("alice", "100", Access::Pool)
        .user("bob", "100", Access::None)
        .more("suspended = true")
        .user("carol", "100", Access::None)
        .user("dora", "100", Access::None)
        .more("groups = [\"design\"]")
        .extra(
            "[[group]]\nid = \"design\"\n[[key]]\nid = \"desk\"\nkind = \"service\"\n\
             acts_for = { users = [\"alice\", \"bob\"], groups = [\"design\"] }\n\
             secret = \"tg_test_desk_000000000000001\"\n",
        )
}

const DESK: &str = "tg_test_desk_000000000000001";

#[test]
fn identity_is_decided_by_key_and_user_and_refused_with_one_code_each() {
    run(async {
        let world = World::new(&org());
        let as_user = |secret: &str, user: &str| image().key(secret).header("tollgate-user", user);
        let long = "a".repeat(200);
        for (call, status, code) in [
            (image(), 401, "unauthenticated"),
            (image().key("tg_nobody_has_this_key_0001"), 401, "unauthenticated"),
            (image().key(""), 401, "unauthenticated"),
            (image().header("authorization", STUDIO), 401, "unauthenticated"),
            (image().header("authorization", &format!("Basic {STUDIO}")), 401, "unauthenticated"),
            (image().header("tollgate-key", &format!("Bearer {STUDIO}")), 401, "unauthenticated"),
            (image().key(STUDIO), 400, "user_required"),
            (as_user(STUDIO, "nobody"), 403, "unknown_user"),
            (as_user(STUDIO, "Alice"), 403, "unknown_user"),
            (as_user(STUDIO, ""), 403, "unknown_user"),
            (as_user(STUDIO, &long), 403, "unknown_user"),
            (as_user(STUDIO, "bob"), 403, "user_suspended"),
            (as_user(DESK, "carol"), 403, "key_not_allowed"),
            (as_user(DESK, "bob"), 403, "user_suspended"),
            (as_user(DESK, "nobody"), 403, "unknown_user"),
            (as_user(OWN, "carol"), 403, "key_not_allowed"),
            (as_user(ROBOT, "alice"), 403, "key_not_allowed"),
        ] {
            let answer = world.send(&call).await;
            let problem = answer.refused(status, code);
            assert_eq!(answer.header("www-authenticate").is_some(), status == 401, "{code}");
            assert_eq!(answer.header("retry-after"), None, "{code}");
            let mut keys: Vec<&str> =
                problem.as_object().unwrap().keys().map(String::as_str).collect();
            keys.sort_unstable();
            assert_eq!(keys, ["code", "detail", "request_id", "status", "title", "type"]);
        }
        assert_eq!(world.backend.count(), 0);
        for call in [
            as_user(STUDIO, "alice"),
            as_user(DESK, "alice"),
            as_user(DESK, "dora"),
            image().key(OWN),
            as_user(OWN, "alice"),
            image().key(ROBOT),
            image().header("authorization", &format!("bEARER {OWN}")),
            image().header("tollgate-key", OWN),
        ] {
            world.send(&call).await.is(200);
        }
        assert_eq!(world.metric("tollgate_refusals_total", &["user_suspended"]), 2.0);
    });
}

#[test]
fn f59_what_decides_who_asks_must_not_be_there_twice() {
    run(async {
        let world = World::new(&org());
        for (first, second) in [
            (
                ("authorization", format!("Bearer {OWN}")),
                ("Authorization", format!("Bearer {OWN}")),
            ),
            (("tollgate-key", OWN.to_owned()), ("Tollgate-Key", OWN.to_owned())),
            (("tollgate-user", "alice".to_owned()), ("Tollgate-User", "alice".to_owned())),
        ] {
            let call = if first.0 == "authorization" { image() } else { image().key(STUDIO) };
            let call = call.header(first.0, &first.1).header(second.0, &second.1);
            world.send(&call).await.refused(400, "bad_request");
        }
        assert_eq!(world.backend.count(), 0);
    });
}

#[test]
fn the_first_refusal_of_the_contracts_order_is_told() {
    run(async {
        let org = org().user("erin", "0.5", Access::None);
        let world = World::new(&org);
        let big = "x".repeat(2000);
        let upgrade =
            |call: Call| call.header("connection", "upgrade").header("upgrade", "websocket");
        for (call, status, code) in [
            (Call::post("/v1//images", "{}"), 400, "bad_request"),
            (upgrade(Call::post("/v1//images", "{}")), 400, "bad_request"),
            (upgrade(image()), 501, "not_implemented"),
            (image().header("tollgate-user", "a").header("tollgate-user", "b"), 400, "bad_request"),
            (Call::post("/nowhere", "{}"), 401, "unauthenticated"),
            (Call::post("/nowhere", "{}").key(STUDIO), 400, "user_required"),
            (Call::post("/nowhere", "{}").user("nobody"), 403, "unknown_user"),
            (Call::post("/nowhere", "{}").user("alice"), 404, "unknown_route"),
            (Call::new("DELETE", "/v1/images").user("alice"), 405, "method_not_allowed"),
            (Call::new("DELETE", "/nowhere").user("alice"), 404, "unknown_route"),
            (Call::post("/v1/small", big.clone()).user("alice"), 413, "body_too_large"),
            (
                Call::post("/v1/video", "{\"seconds\":null,\"resolution\":\"9k\"}").user("alice"),
                400,
                "unquotable",
            ),
            (Call::post("/v1/video", "{\"resolution\":\"9k\"}").user("erin"), 422, "unpriced"),
            (image().user("erin"), 402, "seat_exhausted"),
            (Call::post("/v1/dead", "{}").user("erin"), 402, "seat_exhausted"),
            (Call::post("/v1/dead", "{}").user("alice"), 502, "upstream_unreachable"),
            (Call::get("/.tollgate/v1/nothing").user("alice"), 404, "unknown_route"),
            (Call::get("/.tollgate/v1/nothing"), 401, "unauthenticated"),
            (Call::post("/.tollgate/v1/me/credits", "").user("alice"), 405, "method_not_allowed"),
        ] {
            world.send(&call).await.refused(status, code);
        }
        let answer = world.send(&Call::new("DELETE", "/v1/images").user("alice")).await;
        assert_eq!(answer.header("allow"), Some("POST"));
        let answer = world.send(&image().user("erin")).await;
        assert_eq!(answer.header("x-should-retry"), Some("false"));
        assert_eq!(answer.header("retry-after"), None);
        let problem = answer.refused(402, "seat_exhausted");
        assert_eq!(problem["required"], json!({"credits": "1", "operations": "0.5"}));
        assert_eq!(problem["available"], json!({"credits": "0.5", "operations": "0"}));
        assert_eq!(problem["resets_at"], "2026-12-01T00:00:00Z");
        assert_eq!(problem["pool"], json!({"access": false, "missing": ["offer", "base"]}));
        assert_eq!(problem.get("decided_by"), None);
        assert_eq!(world.backend.count(), 0);
        world.settled().await;
    });
}

#[test]
fn f69_a_path_that_a_backend_could_read_otherwise_is_refused() {
    run(async {
        let world = World::new(&org());
        for path in [
            "/v1/tile/1/../images",
            "/v1/./images",
            "/v1/tile/%31",
            "/v1/tile/%2e%2e",
            "/v1/tile/1;n=9",
            "/v1/tile/a%2Fb",
            "/v1/tile/%00",
            "/v1/tile/%",
            "/v1/tile/1%0d%0aevil:%20yes",
        ] {
            let call = Call::get(path).user("alice");
            world.send(&call).await.refused(400, "bad_request");
        }
        world.send(&Call::get("/V1/tile/1").user("alice")).await.refused(404, "unknown_route");
        assert_eq!(world.backend.count(), 0);
        world.send(&Call::get("/v1/tile/1?x=%2F;a//..").user("alice")).await.is(200);
        assert_eq!(
            world.backend.last().target,
            "/v1/tile/1?x=%2F;a//..",
            "the bytes that were priced"
        );
    });
}

#[test]
fn f60_f61_neither_side_is_shown_what_belongs_to_the_other() {
    run(async {
        let world = World::new(&org());
        let spoofed = Script {
            headers: vec![
                ("tollgate-receipt".into(), "charge=\"spoofed\"".into()),
                ("Tollgate_Receipt".into(), "spoofed".into()),
                ("ratelimit".into(), "spoofed".into()),
                ("ratelimit-policy".into(), "spoofed".into()),
                ("x-request-id".into(), "spoofed".into()),
                ("connection".into(), "x-hop".into()),
                ("x-hop".into(), "private".into()),
                ("x-own".into(), "kept".into()),
            ],
            ..Script::default()
        };
        let call = image()
            .user("alice")
            .header("Tollgate-Org", "spoofed")
            .header("TOLLGATE-CHARGE", "spoofed")
            .header("tollgate_user", "spoofed")
            .header("Tollgate_Charge", "spoofed")
            .header("tollgate-anything", "spoofed")
            .header("connection", "x-hop, tollgate-user, authorization, keep-alive")
            .header("x-hop", "private")
            .header("proxy-authorization", "Basic secret")
            .header("te", "trailers")
            .header("x-own", "kept")
            .script(&spoofed);
        let answer = world.send(&call).await;
        let seen = world.backend.last();
        assert_eq!(seen.header("tollgate-org"), Some("acme"));
        assert_eq!(seen.header("tollgate-user"), Some("alice"));
        assert_eq!(seen.charge(), Some(answer.is(200).told("charge").as_str()));
        let ours = seen.headers.iter().filter(|(name, _)| name.starts_with("tollgate"));
        assert_eq!(ours.count(), 3, "{seen:?}");
        assert_eq!(seen.header("authorization"), Some(format!("Bearer {MEDIA_TOKEN}").as_str()));
        for gone in ["x-hop", "proxy-authorization", "te", "keep-alive"] {
            assert_eq!(seen.header(gone), None);
        }
        assert_eq!(seen.header("x-own"), Some("kept"));
        assert_eq!(seen.header("host"), Some(world.backend.address.to_string().as_str()));
        assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
        assert!(!format!("{seen:?}").contains(STUDIO), "the caller's key");
        assert_eq!(answer.header("x-own"), Some("kept"));
        assert_ne!(answer.header("x-request-id"), Some("spoofed"));
        for gone in ["x-hop", "tollgate_receipt", "ratelimit", "ratelimit-policy"] {
            assert_eq!(answer.header(gone), None, "{gone}");
        }
        assert!(!format!("{answer:?}").contains(MEDIA_TOKEN), "the backend's credential");
    });
}

#[test]
fn f74_a_backend_encodes_nothing_that_usage_is_read_from() {
    run(async {
        let world = World::new(&org());
        for (path, accepted) in [
            ("/v1/told", None),
            ("/v1/images", Some("gzip, br")),
            ("/v1/streamed", Some("gzip, br")),
        ] {
            let call = Call::post(path, "{}").user("alice").header("accept-encoding", "gzip, br");
            world.send(&call).await.is(200);
            assert_eq!(world.backend.last().header("accept-encoding"), accepted, "{path}");
        }
    });
}

#[test]
fn a_key_in_its_own_header_leaves_authorization_to_the_backend() {
    run(async {
        let world = World::new(&org());
        let hasty = || Call::post("/v1/hasty", "{}");
        let call = hasty().header("tollgate-key", OWN).header("authorization", "Basic abc");
        world.send(&call).await.is(200);
        let seen = world.backend.last();
        assert_eq!(seen.header("authorization"), Some("Basic abc"));
        assert_eq!(seen.header("tollgate-key"), None);
        world.send(&hasty().key(OWN)).await.is(200);
        assert_eq!(world.backend.last().header("authorization"), None, "it was the caller's key");
        let call = image().header("tollgate-key", OWN).header("authorization", "Basic abc");
        world.send(&call).await.is(200);
        let own = format!("Bearer {MEDIA_TOKEN}");
        assert_eq!(world.backend.last().header("authorization"), Some(own.as_str()));
    });
}

#[test]
fn a_requests_id_is_kept_where_it_can_be_and_echoed() {
    run(async {
        let world = World::new(&org());
        let longest = "~".repeat(128);
        for (id, kept) in [
            ("abc-1", true),
            (&*longest, true),
            (&"x".repeat(129), false),
            ("a b", false),
            ("", false),
        ] {
            let answer = world.send(&image().user("alice").header("x-request-id", id)).await;
            let seen = world.backend.last();
            let echoed = answer.is(200).header("x-request-id").unwrap();
            assert_eq!(seen.header("x-request-id"), Some(echoed));
            assert_eq!(echoed == id, kept, "{id:?}: {echoed:?}");
            assert!(kept || echoed.len() == 36, "{echoed:?}");
            assert_eq!(world.last_charge()["request_id"], echoed);
            let refused = world.send(&image().header("x-request-id", id)).await;
            let problem = refused.refused(401, "unauthenticated");
            assert_eq!(problem["request_id"] == id, kept);
        }
    });
}

#[test]
fn f79_what_the_directory_says_of_a_key_or_a_user_holds_from_the_next_request() {
    run(async {
        let world = World::new(&org());
        let mut client = world.client().await;
        let alice = image().user("alice");
        client.send(&alice).await.is(200);
        world.apply(&org().change("alice", |alice| alice.more = "suspended = true\n".to_owned()));
        client.send(&alice).await.refused(403, "user_suspended");
        world.apply(&org());
        client.send(&alice).await.is(200);
        let desk = image().key(DESK).header("tollgate-user", "alice");
        client.send(&desk).await.is(200);
        let mut changed = org();
        changed.extra = changed.extra.replace(DESK, "tg_test_another_secret_00001");
        world.apply(&changed);
        client.send(&desk).await.refused(401, "unauthenticated");
        let other = image().key("tg_test_another_secret_00001").header("tollgate-user", "alice");
        client.send(&other).await.is(200);
        let mut gone = org();
        gone.users.retain(|user| user.id != "alice");
        gone.extra = gone.extra.replace("\"alice\", ", "");
        world.apply(&gone.extra("[apply]\nprune = [\"user\", \"key\"]\n"));
        client.send(&alice).await.refused(403, "unknown_user");
        client.send(&other).await.refused(401, "unauthenticated");
    });
}

#[test]
fn a_user_and_an_org_have_a_rate() {
    run(async {
        let limits = "[limits]\nper_user = { rps = 1, burst = 2 }".to_owned();
        let world = World::with(Setup { limits, ..Setup::default() }, &org());
        let answers = burst(world.gateway(), vec![image().user("alice"); 40], 8).await;
        let refused: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
        assert!(answers.len() - refused.len() >= 2 && refused.len() >= 5, "{}", refused.len());
        for answer in refused {
            answer.refused(429, "rate_limited");
            let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=2).contains(&wait), "{wait}");
        }
        world.send(&image().user("carol")).await.is(200);
        drop(world);
        let limits = "[limits]\nper_org = { rps = 1, burst = 2 }".to_owned();
        let world = World::with(Setup { limits, ..Setup::default() }, &org());
        // Decided before the route is looked for, and after who asks.
        let calls = (0..40).map(|at| match at % 4 {
            0 => image(),
            1 => Call::get("/nowhere").user("alice"),
            at => image().user(["alice", "carol"][at % 2]),
        });
        let calls = calls.collect();
        let answers = burst(world.gateway(), calls, 8).await;
        let count = |status| answers.iter().filter(|answer| answer.status == status).count();
        assert_eq!(count(401), 10);
        assert_eq!(count(200) + count(404) + count(429), 30);
        assert!(count(404) < 10 && count(429) >= 5, "{} {}", count(404), count(429));
    });
}

#[test]
fn too_many_in_flight_are_told_to_come_back() {
    run(async {
        let limits = "[limits]\nmax_in_flight = 2".to_owned();
        let world = World::with(Setup { limits, ..Setup::default() }, &org());
        let gated = image().user("alice").script(&Script::gate("go"));
        let meanwhile = async {
            until("two are in flight", || (world.backend.count() == 2).then_some(())).await;
            let answer = world.send(&image().user("alice")).await;
            answer.refused(429, "too_many_in_flight");
            assert_eq!(answer.header("retry-after"), Some("1"));
            world.backend.open("go");
        };
        let (first, second, ()) = tokio::join!(world.send(&gated), world.send(&gated), meanwhile);
        first.is(200);
        second.is(200);
        world.send(&image().user("alice")).await.is(200);
        let none = || (world.metric("tollgate_in_flight_requests", &[]) == 0.0).then_some(());
        until("nothing is in flight", none).await;
    });
}
