//! What a request says and a backend may read: numbers, ids, headers, paths and bodies that could
//! be taken for something else are refused or removed, on the real binary and byte for byte.

use std::collections::BTreeSet;

use crate::support::org::{OWN, STUDIO};
use crate::support::peer::head;
use crate::support::world::MEDIA_TOKEN;
use crate::support::{Access, Call, Org, Peer, Setup, World, run};

fn org() -> Org {
    Org::new().user("alice", "100", Access::None)
}

fn image(body: &str) -> Call {
    Call::post("/v1/images", body.to_owned()).user("alice")
}

/// Nothing was forwarded, and alice has all of her credits.
fn untouched(world: &World) {
    assert_eq!(world.backend.count(), 0, "{:?}", world.backend.seen());
    world.seat("alice", "0", "100", "0");
}

#[test]
fn f56_what_is_no_quantity_is_refused() {
    run(async {
        let world = World::new(&org());
        for number in [
            "-1",
            "-0",
            "1e400",
            "1e2",
            "1E2",
            "-1e400",
            "NaN",
            "Infinity",
            "-Infinity",
            "\"NaN\"",
            "\"Infinity\"",
            "\"inf\"",
            "\"-1\"",
            "\"1e2\"",
            "\"0x10\"",
            "\"\"",
            "\" 1\"",
            "\"1_000\"",
            "\"١\"",
            "1.0000001",
            "0.00000001",
            "01",
            "+1",
            ".5",
            "1.",
            "null",
            "true",
            "[]",
            "[1]",
            "{}",
            "{\"n\":1}",
        ] {
            let answer = world.send(&image(&format!("{{\"n\":{number}}}"))).await;
            answer.refused(400, "unquotable");
        }
        for path in ["-1", "1e2", "NaN", "Infinity", "%2B1", "0x1", "1_0", "%D9%A1"] {
            let answer = world.send(&Call::get(&format!("/v1/tile/{path}")).user("alice")).await;
            assert_eq!(answer.status, 400, "{path}");
        }
        for count in ["-1", "NaN", "inf", "1e400", "1,2", ""] {
            let call = Call::post("/v1/streamed", "").user("alice").header("x-count", count);
            world.send(&call).await.refused(400, "unquotable");
        }
        untouched(&world);
    });
}

#[test]
fn f57_what_is_beyond_the_largest_amount_is_refused() {
    run(async {
        let world = World::new(&org());
        for number in [
            "9007199254.740992",
            "9007199255",
            "18446744073709551616",
            "18446744073709.551616",
            "340282366920938463463374607431768211456",
            &"9".repeat(5000),
            &format!("\"{}\"", "9".repeat(400)),
        ] {
            world.send(&image(&format!("{{\"n\":{number}}}"))).await.refused(400, "unquotable");
        }
        // A quantity within the bound whose price is not.
        let call = Call::post("/v1/video", "{\"seconds\":9007199254}").user("alice");
        world.send(&call).await.refused(400, "unquotable");
        // The largest of all is a price that nobody here can pay.
        world.send(&image("{\"n\":9007199254.740991}")).await.refused(402, "seat_exhausted");
        untouched(&world);
    });
}

#[test]
fn f58_an_id_that_is_not_byte_for_byte_the_users_is_nobody() {
    run(async {
        let world = World::new(&org());
        let ids: Vec<Vec<u8>> = [
            "Alice",
            "ALICE",
            "alicE",
            "аlice",
            "alice\u{200b}",
            "\u{202e}ecila",
            "al\u{131}ce",
            "alice\u{301}",
            "ａlice",
            "alice.",
            "alice@",
            "%61lice",
            "alice%00",
            "\"alice\"",
            "alice, alice",
            "alice;x",
            "alice alice",
            "../alice",
            "alice\tb",
        ]
        .iter()
        .map(|id| id.as_bytes().to_vec())
        .chain([b"alic\xe9".to_vec(), b"\xff\xfe".to_vec(), vec![b'a'; 10_000]])
        .collect();
        for id in ids {
            let mut peer = Peer::connect(world.gateway()).await;
            let start = format!(
                "POST /v1/images HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {STUDIO}\r\ntollgate-user: "
            );
            peer.send([start.as_bytes(), &id, b"\r\ncontent-length: 2\r\n\r\n{}"].concat()).await;
            let answer = peer.answer().await;
            answer.refused(403, "unknown_user");
            assert!(answer.body.len() < 1000, "an answer of bounded length");
        }
        // Nor can such an id be made.
        for id in ["al\\u0000ice", "\\u202Ealice", "аlice", "", ".alice", "a b", &"a".repeat(129)]
        {
            let org = org().toml().replace("id = \"alice\"", &format!("id = \"{id}\""));
            assert!(!world.try_apply(&org).status.success(), "{id}");
        }
        untouched(&world);
    });
}

#[test]
fn f60_nobody_but_the_gateway_says_who_asks() {
    run(async {
        let world = World::new(&org());
        let names = [
            "Tollgate-Org",
            "tollgate-charge",
            "TOLLGATE-ANYTHING",
            "Tollgate_User",
            "tollgate_org",
            "Tollgate_Charge",
            "tollgate.user",
            "Tollgate~Org",
            "tollgate-_user",
            "tollgate!key",
        ];
        let spoofed: String = names.iter().map(|name| format!("{name}: spoofed\r\n")).collect();
        let disguised: String = [
            "Content_Length",
            "Transfer_Encoding",
            "X_Request_Id",
            "X_Forwarded_For",
            "X_Forwarded-Host",
            "X-Forwarded_Proto",
            "x.forwarded.for",
            "X_Real_IP",
            "content_type",
        ]
        .iter()
        .map(|name| format!("{name}: spoofed\r\n"))
        .collect();
        let mut peer = Peer::connect(world.gateway()).await;
        let more = format!("{spoofed}{disguised}x_own: kept\r\ncontent-length: 2\r\n");
        peer.send(head("POST /v1/images HTTP/1.1", &more) + "{}").await;
        assert_eq!(peer.answer().await.status, 200);
        let seen = world.backend.last();
        assert!(!seen.head.contains("spoofed"), "{}", seen.head);
        assert!(!seen.head.contains(OWN), "{}", seen.head);
        let ours: Vec<&str> = (seen.head.lines())
            .filter(|line| line.to_ascii_lowercase().starts_with("tollgate"))
            .map(|line| line.split(':').next().unwrap())
            .collect();
        assert_eq!(ours.len(), 3, "{}", seen.head);
        assert_eq!(seen.header("tollgate-user"), Some("alice"));
        assert_eq!(seen.header("tollgate-org"), Some("acme"));
        assert_eq!(seen.header("x_own"), Some("kept"));
    });
}

#[test]
fn f61_identity_is_read_before_nominated_headers_go_and_ours_are_set_last() {
    run(async {
        let world = World::new(&org());
        for nominated in [
            "tollgate-user",
            "Tollgate-User, Tollgate-Org, Tollgate-Charge, close",
            "authorization, x-request-id, x-forwarded-for, host, content-length, x-secret",
        ] {
            let mut peer = Peer::connect(world.gateway()).await;
            peer.send(format!(
                "POST /v1/images HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {STUDIO}\r\n\
                 tollgate-user: alice\r\nx-request-id: req-1\r\nx-secret: s\r\n\
                 connection: {nominated}\r\ncontent-length: 2\r\n\r\n{{}}"
            ))
            .await;
            assert_eq!(peer.answer().await.status, 200, "{nominated}");
            let seen = world.backend.last();
            assert_eq!(seen.header("tollgate-user"), Some("alice"), "{nominated}");
            assert_eq!(seen.header("tollgate-org"), Some("acme"));
            assert!(seen.charge().is_some());
            assert_eq!(seen.header("x-request-id"), Some("req-1"));
            assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
            let own = format!("Bearer {MEDIA_TOKEN}");
            assert_eq!(seen.header("authorization"), Some(own.as_str()));
            assert_eq!(seen.header("x-secret").is_some(), !nominated.contains("x-secret"));
            assert_eq!(seen.body, b"{}");
        }
    });
}

#[test]
fn f60_only_a_trusted_proxy_is_believed_about_the_way_a_request_came() {
    run(async {
        let told = "forwarded: for=192.0.2.1;proto=https\r\nx-forwarded-for: 192.0.2.1\r\n\
                    x-forwarded-for: 192.0.2.2\r\nx-forwarded-proto: https\r\n\
                    x-forwarded-host: shop.test\r\nx-forwarded-port: 443\r\nx-real-ip: 192.0.2.1\r\n\
                    x_forwarded_for: 192.0.2.9\r\n";
        let request =
            head("POST /v1/images HTTP/1.1", &format!("{told}content-length: 2\r\n")) + "{}";
        for (trusted, forwarded, way, proto, host, port) in [
            ("[]", None, "127.0.0.1", "http", "gateway.test", None),
            ("[\"10.0.0.0/8\", \"::1\"]", None, "127.0.0.1", "http", "gateway.test", None),
            (
                "[\"10.0.0.0/8\", \"127.0.0.0/8\"]",
                Some("for=192.0.2.1;proto=https"),
                "192.0.2.1, 192.0.2.2, 127.0.0.1",
                "https",
                "shop.test",
                Some("443"),
            ),
        ] {
            let gateway = format!("trusted_proxies = {trusted}");
            let world = World::with(Setup { gateway, ..Setup::default() }, &org());
            let mut peer = Peer::connect(world.gateway()).await;
            peer.send(&request).await;
            assert_eq!(peer.answer().await.status, 200);
            let seen = world.backend.last();
            assert_eq!(seen.header("forwarded"), forwarded, "{trusted}");
            assert_eq!(seen.header("x-forwarded-for"), Some(way), "{trusted}");
            assert_eq!(seen.header("x-forwarded-proto"), Some(proto), "{trusted}");
            assert_eq!(seen.header("x-forwarded-host"), Some(host), "{trusted}");
            assert_eq!(seen.header("x-forwarded-port"), port, "{trusted}");
            assert_eq!(seen.header("x-real-ip").is_some(), port.is_some(), "{trusted}");
            assert!(!seen.head.contains("192.0.2.9"), "{}", seen.head);
        }
    });
}

#[test]
fn f69_the_path_that_is_priced_is_the_path_that_is_forwarded() {
    run(async {
        let world = World::new(&org());
        for path in [
            "//v1/images",
            "/v1//images",
            "/v1/images//",
            "/v1/./images",
            "/v1/../v1/images",
            "/v1/tile/..",
            "/v1/tile/.",
            "/v1/tile/%2e%2e",
            "/v1/tile/%2E",
            "/v1/%2e%2e/v1/images",
            "/v1%2Fimages",
            "/v1%2fimages",
            "/v1/tile/1%2f2",
            "/v1%5Cimages",
            "/v1\\images",
            "/v1/images;x=1",
            "/v1;x/images",
            "/v1/tile/1%3Bn",
            "/v1/%69mages",
            "/v1/im%61ges",
            "/v1/tile/%31",
            "/v1/tile/1%252e",
            "/v1/tile/%25%32%65",
            "/v1/tile/%c0%ae",
            "/v1/tile/%C0%AF1",
            "/v1/tile/%e0%80%ae",
            "/v1/tile/%ff",
            "/v1/tile/%ED%A0%80",
            "/v1/tile/%00",
            "/v1/tile/1%00",
            "/v1/tile/%",
            "/v1/tile/%1",
            "/v1/tile/%zz",
            "/v1/tile/%u0031",
            "/v1/tile/1%3fx",
            "/v1/tile/1%23",
            "/v1/tile/\u{e9}",
            "/v1/tile/1|2\u{1}",
        ] {
            let mut peer = Peer::connect(world.gateway()).await;
            let line = format!("POST {path} HTTP/1.1");
            peer.send(head(&line, "content-length: 2\r\n") + "{}").await;
            peer.answer().await.refused(400, "bad_request");
        }
        for path in [
            "/V1/images",
            "/v1/IMAGES",
            "/v1/images/",
            "/v1/images%20",
            "/v1/images.",
            "/v1/images:",
        ] {
            let mut peer = Peer::connect(world.gateway()).await;
            let line = format!("POST {path} HTTP/1.1");
            peer.send(head(&line, "content-length: 2\r\n") + "{}").await;
            peer.answer().await.refused(404, "unknown_route");
        }
        untouched(&world);
        for target in ["/v1/tile/2?x=%2F;a//..&y=%c0%ae", "/v1/tile/0.5?", "/v1/tile/1?a=b?c=/d"] {
            let mut peer = Peer::connect(world.gateway()).await;
            peer.send(head(&format!("GET {target} HTTP/1.1"), "")).await;
            assert_eq!(peer.answer().await.status, 200, "{target}");
            assert!(world.backend.last().head.starts_with(&format!("GET {target} HTTP/1.1\r\n")));
        }
    });
}

#[test]
fn f70_what_two_readers_read_in_two_ways_is_not_priced() {
    run(async {
        let limits = "[[route]]\nmethod = \"POST\"\npath = \"/v1/nested\"\nupstream = \"media\"\n\
            feature = \"image\"\nquantity = { json = \"/a/n\", default = 1 }\n";
        let world = World::with(Setup { limits: limits.to_owned(), ..Setup::default() }, &org());
        for body in [
            r#"{"n":1,"n":60}"#,
            r#"{"n":60,"\u006e":1}"#,
            r#"{"N":60}"#,
            r#"{"n":1,"N":60}"#,
            r#"{"n":1}{"n":60}"#,
            r#"{"n":1} x"#,
            r#"[{"n":60}]"#,
            r#""n""#,
            "null",
            "",
            "{",
            "{'n':1}",
            "{\"n\":1,}",
            "\u{feff}{\"n\":1}",
            "{\"n\":1/*x*/}",
            "{n:1}",
            "n=60",
        ] {
            world.send(&image(body)).await.refused(400, "unquotable");
        }
        for body in [
            r#"{"a":[{"n":60}]}"#,
            r#"{"a":[]}"#,
            r#"{"a":"n=60"}"#,
            r#"{"a":60}"#,
            r#"{"a":true}"#,
            r#"{"a":{"n":1},"a":{"n":60}}"#,
            r#"{"a":{"n":1},"A":{"n":60}}"#,
            r#"{"a":{"N":60}}"#,
        ] {
            let call = Call::post("/v1/nested", body.to_owned()).user("alice");
            world.send(&call).await.refused(400, "unquotable");
        }
        for (name, value) in [
            ("x-http-method-override", "DELETE"),
            ("X_HTTP_Method_Override", "DELETE"),
            ("x-http-method", "DELETE"),
            ("x-method-override", "DELETE"),
            ("x-original-url", "/v1/video"),
            ("x-rewrite-url", "/v1/video"),
        ] {
            world.send(&image("{}").header(name, value)).await.refused(400, "bad_request");
        }
        for query in ["_method=DELETE", "a=1&%5Fmethod=DELETE", "_METHOD[]=PUT"] {
            let call = Call::post(&format!("/v1/images?{query}"), "{}").user("alice");
            world.send(&call).await.refused(400, "bad_request");
        }
        for (name, value) in [
            ("content-type", "application/x-www-form-urlencoded"),
            ("content-type", "multipart/form-data; boundary=x"),
            ("content-encoding", "gzip"),
            ("content-type", "application/json; charset=utf-7"),
        ] {
            world.send(&image("{}").header(name, value)).await.refused(400, "unquotable");
        }
        untouched(&world);
        for (path, body) in [
            ("/v1/images", r#"{"\u006e":2}"#),
            ("/v1/nested", r#"{"a":{"n":2}}"#),
            ("/v1/images", "{\"x\":1,\"x\":2,\"n\":2}"),
        ] {
            let answer = world.send(&Call::post(path, body).user("alice")).await;
            assert_eq!(answer.is(200).told("cost"), "2", "{body}");
            assert_eq!(world.backend.last().body, body.as_bytes(), "the bytes that were priced");
        }
        for body in ["{}", r#"{"a":null}"#, r#"{"a":{}}"#] {
            let answer = world.send(&Call::post("/v1/nested", body).user("alice")).await;
            assert_eq!(answer.is(200).told("cost"), "1", "{body}");
        }
    });
}

/// Every series of the exposition, without its value.
fn series(world: &World) -> BTreeSet<String> {
    let (status, text) = world.ops("/metrics");
    assert_eq!(status, 200);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
}

#[test]
fn f75_no_request_makes_a_metric_label() {
    run(async {
        let world = World::new(&org());
        // What a first request makes: one series of each label that the configuration has.
        let odd = |mark: &str| {
            vec![
                Call::get(&format!("/{mark}")).user("alice"),
                Call::new("PURGE", &format!("/v1/images?{mark}")).user("alice"),
                Call::post(&format!("/.tollgate/{mark}"), "").user("alice"),
                Call::get(&format!("/.tollgate/problems/{mark}")).user("alice"),
                Call::get(&format!("/v1/tile/{mark}")).user("alice"),
                Call::post("/v1/images", "{}").key(&format!("tg_{mark}_00000000000000000000")),
                Call::post("/v1/images", "{}").user(mark),
                image("{}").header("host", mark),
                image("{}").header("x-request-id", mark).header("user-agent", mark),
                image(&format!("{{\"{mark}\":1}}")).header(mark, mark),
                Call::post("/v1/video", format!("{{\"resolution\":\"{mark}\"}}")).user("alice"),
            ]
        };
        for call in odd("zzfirst") {
            world.send(&call).await;
        }
        let first = series(&world);
        for turn in 0..20 {
            for call in odd(&format!("zzmark{turn}")) {
                world.send(&call).await;
            }
        }
        let after = series(&world);
        assert_eq!(first, after);
        assert!(!after.iter().any(|line| line.contains("zz")), "{after:#?}");
    });
}

#[test]
fn f79_a_key_that_is_nearly_right_is_as_wrong_as_any() {
    run(async {
        let world = World::new(&org());
        let mut wrong: Vec<String> = (0..OWN.len())
            .map(|at| {
                let mut secret = OWN.as_bytes().to_vec();
                secret[at] ^= 1;
                String::from_utf8(secret).unwrap()
            })
            .collect();
        wrong.extend([
            OWN[..OWN.len() - 1].to_owned(),
            format!("{OWN}0"),
            OWN.to_uppercase(),
            format!("{OWN} {OWN}"),
            "tg_nothing_like_it_at_all_00".to_owned(),
        ]);
        // The connection remembers whose key it saw last; that makes no near miss right.
        let mut client = world.client().await;
        let mut told = BTreeSet::new();
        for secret in &wrong {
            client.send(&Call::post("/v1/images", "{}").key(OWN)).await.is(200);
            for call in [
                Call::post("/v1/images", "{}").key(secret),
                Call::post("/v1/images", "{}").header("tollgate-key", secret),
            ] {
                let mut problem = client.send(&call).await.refused(401, "unauthenticated");
                problem["request_id"].take();
                told.insert(problem.to_string());
            }
        }
        assert_eq!(told.len(), 1, "no answer tells how near it was: {told:?}");
        assert_eq!(world.backend.count(), wrong.len());
    });
}
