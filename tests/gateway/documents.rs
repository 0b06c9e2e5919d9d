//! What callers read: receipts, rate limit fields, balances, charges, pages; and bodies of every
//! size in both directions.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::org::{OWN, ROBOT, STUDIO};
use crate::support::world::NOON;
use crate::support::{Access, Call, Org, Script, World, raw, run, until};

fn image() -> Call {
    Call::post("/v1/images", "{}")
}

fn keys(object: &serde_json::Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn a_receipt_has_exactly_the_contracts_keys() {
    run(async {
        let org = Org::new()
            .pool("10")
            .user("alice", "10", Access::None)
            .user("bob", "10", Access::Pool)
            .user("carol", "1", Access::None);
        let world = World::new(&org);
        let always = ["charge", "cost", "overage", "pool", "rate-card", "seat", "state"];
        let overdrawn = Call::post("/v1/told", "{}").script(&Script::usage(2));
        for (call, more) in [
            (image().user("alice"), vec!["resets", "seat-remaining"]),
            (image().user("alice").script(&Script::status(500)), vec!["resets", "seat-remaining"]),
            (image().user("bob"), vec!["pool-remaining", "resets", "seat-remaining"]),
            (image().key(ROBOT), vec!["pool-remaining"]),
            (overdrawn.user("carol"), vec!["overdraft", "resets", "seat-remaining"]),
        ] {
            let receipt = world.send(&call).await.receipt();
            let mut expected: Vec<&str> = always.iter().copied().chain(more).collect();
            expected.sort_unstable();
            let found: Vec<&str> = receipt.keys().map(String::as_str).collect();
            assert_eq!(found, expected);
        }
        let answer = world.send(&image().user("alice")).await;
        let charge = answer.told("charge");
        let text = format!(
            "charge=\"{charge}\", state=captured, cost=\"1\", seat=\"1\", pool=\"0\", overage=\"0\", \
             seat-remaining=\"8\", resets=\"2026-12-01T00:00:00Z\", rate-card=\"2026-11\""
        );
        assert_eq!(answer.header("tollgate-receipt"), Some(text.as_str()));
    });
}

#[test]
fn a_seat_without_pool_access_gets_rate_limit_fields() {
    run(async {
        let org = Org::new().user("alice", "10.9", Access::None).user("bob", "10", Access::Pool);
        let world = World::new(&org);
        let answer = world.send(&image().user("alice")).await;
        let list = |name: &str| {
            let text = answer.header(name).unwrap_or_else(|| panic!("no {name}"));
            let list = sfv::Parser::new(text).parse::<sfv::List>().unwrap();
            let [sfv::ListEntry::Item(item)] = &list[..] else { panic!("{text}") };
            assert_eq!(item.bare_item.as_string().unwrap().as_str(), "seat");
            let params = item.params.iter().map(|(key, value)| match value.as_integer() {
                Some(number) => (key.as_str().to_owned(), number.to_string()),
                None => (key.as_str().to_owned(), value.as_string().unwrap().as_str().to_owned()),
            });
            params.collect::<Vec<_>>()
        };
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        // November has 30 days, and 10.5 of them are left.
        assert_eq!(
            list("ratelimit-policy"),
            [pair("q", "10"), pair("qu", "credits"), pair("w", "2592000")]
        );
        assert_eq!(list("ratelimit"), [pair("r", "9"), pair("t", "907200")]);
        for call in [image().user("bob"), image().key(ROBOT), Call::get("/v1/models").user("alice")]
        {
            let answer = world.send(&call).await;
            assert_eq!(answer.is(200).header("ratelimit"), None);
            assert_eq!(answer.header("ratelimit-policy"), None);
        }
    });
}

#[test]
fn d11_the_balance_document_is_exactly_the_contracts() {
    run(async {
        let licences = vec![
            ("lic-1".to_owned(), "4000".to_owned(), String::new()),
            ("lic-2".to_owned(), "2000".to_owned(), ", priority = 2".to_owned()),
        ];
        let org =
            Org::new().offer("pool_limit = \"100\"\n").stacked("alice", licences, Access::Pool);
        let org = org.user("bob", "", Access::Base);
        let world = World::new(&org);
        world.send(&Call::post("/v1/images", "{\"n\":20}").user("alice")).await.is(200);
        let credits = |secret: &str| Call::get("/.tollgate/v1/me/credits").key(secret);
        let answer = world.send(&credits(OWN)).await;
        assert_eq!(answer.is(200).header("content-type"), Some("application/json"));
        assert_eq!(
            answer.json(),
            json!({
                "org": "acme", "user": "alice",
                "cycle": {"label": "2026-11-01", "start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"},
                "seat": {"granted": "6000", "held": "0", "captured": "20", "available": "5980", "licences": [
                    {"id": "lic-1", "plan": "p4000", "granted": "4000", "held": "0", "captured": "20", "available": "3980"},
                    {"id": "lic-2", "plan": "p2000", "granted": "2000", "held": "0", "captured": "0", "available": "2000"},
                ]},
                "pool": {"access": true, "missing": [], "limit": "100", "drawn": "0"},
                "overdraft": "0",
            })
        );
        let answer = world.send(&credits(STUDIO).header("tollgate-user", "bob")).await;
        let bob = answer.is(200).json();
        assert_eq!(
            bob["seat"],
            json!({"granted": "0", "held": "0", "captured": "0", "available": "0", "licences": []})
        );
        assert_eq!(
            bob["pool"],
            json!({"access": false, "missing": ["offer"], "limit": null, "drawn": "0"})
        );
        world.send(&credits(STUDIO)).await.refused(400, "user_required");
        let answer = world.send(&Call::new("HEAD", "/.tollgate/v1/me/credits").key(OWN)).await;
        assert!(answer.is(200).body.is_empty());
    });
}

#[test]
fn a_charge_reads_exactly_so_and_only_for_its_user_and_key() {
    run(async {
        let key = |id: &str, more: &str| {
            format!("[[key]]\nid = \"{id}\"\nsecret = \"tg_test_{id}_000000000000001\"\n{more}\n")
        };
        let org = Org::new()
            .pool("10")
            .user("alice", "1", Access::Pool)
            .user("bob", "10", Access::None)
            .extra(&key("desk", "kind = \"service\"\nacts_for = \"*\""))
            .extra(&key("bobs", "kind = \"user\"\nuser = \"bob\""));
        let world = World::new(&org);
        let call = Call::post("/v1/images", "{\"n\":\"2.50\"}")
            .user("alice")
            .header("x-request-id", "r-1");
        let id = world.send(&call).await.told("charge");
        let path = format!("/.tollgate/v1/charges/{id}");
        let answer = world.send(&Call::get(&path).key(OWN)).await;
        let mut charge = answer.is(200).json();
        assert_eq!(charge, world.charge(&id), "one document for everybody");
        let legs = charge["legs"].take();
        assert_eq!(
            charge,
            json!({
                "charge": id, "state": "captured", "org": "acme", "user": "alice", "key": "studio",
                "feature": "image", "quantity": "2.5", "route": "/v1/images", "cost": "2.5", "legs": null,
                "rate_card": "2026-11", "cycle": "2026-11-01", "term": "t1", "flags": [],
                "request_id": "r-1", "created_at": NOON, "expires_at": null, "resolved_at": NOON,
            })
        );
        assert_eq!(keys(&legs[0]).len(), 5);
        for (leg, kind, covers, amount, unit) in
            [(0, "licence", "1", "1", "credits"), (1, "pool", "1.5", "0.75", "operations")]
        {
            let leg = &legs[leg];
            assert!(leg["account"].as_str().is_some_and(|name| name.contains("acme")));
            let found = [&leg["kind"], &leg["covers"], &leg["amount"], &leg["unit"]];
            assert_eq!(found, [kind, covers, amount, unit]);
        }
        let desk = || Call::get(&path).key("tg_test_desk_000000000000001");
        let bobs = Call::get(&path).key("tg_test_bobs_000000000000001");
        for call in [
            Call::get(&path).key(STUDIO),
            Call::get(&path).user("alice"),
            desk().header("tollgate-user", "alice"),
        ] {
            assert_eq!(world.send(&call).await.is(200).json()["charge"], id);
        }
        for call in [
            bobs,
            desk(),
            desk().header("tollgate-user", "bob"),
            Call::get(&path).key(ROBOT),
            Call::get("/.tollgate/v1/charges/01a1f8d3-ea00-7261-9c5f-0123456789ab").key(OWN),
            Call::get("/.tollgate/v1/charges/nonsense").key(OWN),
        ] {
            world.send(&call).await.refused(404, "unknown_route");
        }
        world.send(&Call::get(&path)).await.refused(401, "unauthenticated");
        assert_eq!(world.admin(&format!("/v1/orgs/other/charges/{id}")).0, 404);
    });
}

#[test]
fn every_problem_has_a_page() {
    run(async {
        let world = World::new(&Org::new().user("alice", "1", Access::None));
        let mut client = world.client().await;
        for code in tollgate::core::refusal::Code::ALL {
            let code = code.as_str();
            let answer = client.send(&Call::get(&format!("/.tollgate/problems/{code}"))).await;
            assert!(String::from_utf8_lossy(&answer.is(200).body).contains(code), "{code}");
        }
        client
            .send(&Call::get("/.tollgate/problems/nonsense").user("alice"))
            .await
            .refused(404, "unknown_route");
        client
            .send(&Call::post("/.tollgate/problems/draining", ""))
            .await
            .refused(405, "method_not_allowed");
    });
}

#[test]
fn a_free_route_is_authenticated_forwarded_and_not_metered() {
    run(async {
        let world = World::new(&Org::new().user("alice", "", Access::None));
        let models = || Call::get("/v1/models");
        world.send(&models()).await.refused(401, "unauthenticated");
        world.send(&models().key(STUDIO)).await.refused(400, "user_required");
        assert_eq!(world.backend.count(), 0);
        for script in
            [Script::default(), Script::status(404), Script { pad: 500_000, ..Script::default() }]
        {
            let answer = world.send(&models().user("alice").script(&script)).await;
            assert_eq!(answer.is(script.status).header("tollgate-receipt"), None);
            assert_eq!(world.backend.last().charge(), None);
        }
        world.send(&Call::new("DELETE", "/v1/models").user("alice")).await.is(200);
        assert_eq!(world.backend.last().method, "DELETE");
        let free = world.metric("tollgate_requests_total", &["outcome=\"free\"", "/v1/models"]);
        assert_eq!(free, 4.0);
        let hang_up = Script { hang_up: true, ..Script::default() };
        world.send(&models().user("alice").script(&hang_up)).await.refused(502, "upstream_failed");
    });
}

#[test]
fn connections_are_kept_on_both_sides() {
    run(async {
        let world = World::new(&Org::new().user("alice", "1000", Access::None));
        let mut client = world.client().await;
        for at in 0..50 {
            let script = match at % 5 {
                0 => Script { pad: 200_000, ..Script::default() },
                1 => Script { chunked: true, ..Script::default() },
                2 => Script::status(404),
                _ => Script::default(),
            };
            client.send(&image().user("alice").script(&script)).await.is(script.status);
            client.send(&image()).await.refused(401, "unauthenticated");
        }
        let made = world.backend.connections();
        assert!(made <= 5, "{made} connections for requests one after the other");
    });
}

#[test]
fn head_and_get_without_a_body_pass() {
    run(async {
        let world = World::new(&Org::new().user("alice", "10", Access::None));
        let mut client = world.client().await;
        let answer = client.send(&Call::new("HEAD", "/v1/tile/1").user("alice")).await;
        assert!(answer.is(200).body.is_empty());
        assert_eq!(answer.header("content-length"), Some("11"), "of the body that GET would have");
        answer.tells(&[("state", "captured"), ("cost", "1")]);
        let answer = client.send(&Call::get("/v1/tile/2").user("alice")).await;
        assert_eq!(&answer.is(200).body[..], b"{\"ok\":true}");
        let seen = world.backend.last();
        assert_eq!((seen.header("content-length"), seen.header("transfer-encoding")), (None, None));
        world.seat("alice", "3", "7", "0");
    });
}

#[test]
fn a_body_that_does_not_decide_the_price_is_streamed() {
    run(async {
        let world = World::new(&Org::new().user("alice", "10", Access::None));
        let body: Vec<u8> = (0..8_000_000_u32).map(|at| (at % 251) as u8).collect();
        let call = Call::post("/v1/streamed", body.clone()).user("alice");
        world.send(&call).await.is(200);
        assert_eq!(world.backend.last().body, body);
        // It does not wait for the end: the backend is there before the body is.
        let mut stream = tokio::net::TcpStream::connect(world.gateway()).await.unwrap();
        let head = format!(
            "POST /v1/streamed HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {OWN}\r\n\
             connection: close\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        until("the head is there", || (world.backend.count() == 2).then_some(())).await;
        assert_eq!(world.last_charge()["state"], "held");
        stream.write_all(b"4\r\nlast\r\n0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(world.backend.last().body, b"firstlast");
        world.accounts_for(&["alice"]).await;
    });
}

#[test]
fn d33_a_client_that_leaves_in_the_middle_of_its_body_is_not_charged() {
    run(async {
        let world = World::new(&Org::new().user("alice", "10", Access::None));
        let mut stream = tokio::net::TcpStream::connect(world.gateway()).await.unwrap();
        let head = format!(
            "POST /v1/streamed HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {OWN}\r\n\
             content-length: 100\r\n\r\nsome"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        until("the head is there", || (world.backend.count() == 1).then_some(())).await;
        drop(stream);
        world.settled().await;
        let gone = || world.backend.last().abandoned.then_some(());
        until("the backend is told that there is no more", gone).await;
        assert_eq!(world.last_charge()["state"], "voided");
        world.seat("alice", "0", "10", "0");
    });
}

#[test]
fn a_client_of_http_1_0_is_served_too() {
    run(async {
        let world = World::new(&Org::new().user("alice", "10", Access::None));
        let big = Script { pad: 200_000, chunked: true, ..Script::default() };
        for script in [Script::default(), big] {
            let request = format!(
                "POST /v1/images HTTP/1.0\r\nauthorization: Bearer {OWN}\r\nx-script: {}\r\n\
                 content-length: 2\r\n\r\n{{}}",
                serde_json::to_string(&script).unwrap()
            );
            let answer = raw(world.gateway(), request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.0 200"), "{answer:.300}");
            assert!(!answer.contains("transfer-encoding"), "{answer:.300}");
            let (_, body) = answer.split_once("\r\n\r\n").unwrap();
            assert_eq!(body.len(), 11 + script.pad);
        }
        world.settled().await;
        world.seat("alice", "2", "8", "0");
    });
}

#[test]
fn f71_a_body_that_decides_the_price_is_bounded() {
    run(async {
        let world = World::new(&Org::new().user("alice", "10", Access::None));
        let body = |length: usize| format!("{{\"n\":1{}}}", " ".repeat(length - 7));
        let small = |length: usize| Call::post("/v1/small", body(length)).user("alice");
        world.send(&small(1024)).await.is(200);
        assert_eq!(world.backend.last().body.len(), 1024);
        world.send(&small(1025)).await.refused(413, "body_too_large");
        let chunked = format!(
            "POST /v1/small HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {OWN}\r\nconnection: close\r\n\
             transfer-encoding: chunked\r\n\r\n401\r\n{}\r\n0\r\n\r\n",
            body(1025)
        );
        let answer = raw(world.gateway(), chunked.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        let told = format!(
            "POST /v1/small HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {OWN}\r\nconnection: close\r\n\
             content-length: 999999999\r\n\r\n"
        );
        let answer = raw(world.gateway(), told.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "before it was read: {answer}");
        assert_eq!(world.backend.count(), 1);
        world.seat("alice", "1", "9", "0");
    });
}

#[test]
fn f67_a_body_is_asked_for_with_100_continue_and_forwarded_without() {
    run(async {
        let world = World::new(&Org::new().user("alice", "10", Access::None));
        let mut stream = tokio::net::TcpStream::connect(world.gateway()).await.unwrap();
        let head = format!(
            "POST /v1/images HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {OWN}\r\nexpect: 100-continue\r\n\
             connection: close\r\ncontent-length: 2\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut first = [0; 25];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"{}").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(world.backend.last().header("expect"), None);
    });
}

#[test]
fn the_admin_api_tells_wrong_queries_as_problems() {
    run(async {
        let world = World::new(&Org::new().user("alice", "1", Access::None));
        for query in ["limit=0", "limit=1001", "limit=x", "unknown=1"] {
            let (status, body) = world.admin(&format!("/v1/orgs/acme/users?{query}"));
            assert_eq!((status, body["code"].as_str()), (422, Some("invalid")), "{query}: {body}");
            assert!(body["errors"][0]["detail"].is_string(), "{query}: {body}");
        }
        let (status, body) = world.admin("/v1/orgs/nobody/users");
        assert_eq!((status, body["code"].as_str()), (404, Some("not_found")));
    });
}
