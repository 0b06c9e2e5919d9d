//! What all endpoints share: lists, tags, bodies, problems.

use serde_json::{Value, json};

use super::support::world::TOKEN;
use super::support::{Access, Call, Client, Org, Script, World, raw, run, until};
use super::{admin, ask, ids, json_call, org, read};

/// Follows a list's cursors to its end.
fn all(world: &World, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut next = String::new();
    loop {
        let list = read(world, &format!("{path}{next}"));
        found.extend(ids(&list).into_iter().map(str::to_owned));
        match list["next_cursor"].as_str() {
            Some(cursor) => next = format!("&cursor={cursor}"),
            None => return found,
        }
    }
}

#[test]
fn d11_users_are_listed_in_every_order_part_by_part() {
    run(async {
        let mut sample = Org::new();
        for (index, id) in ["eve", "adam", "dora", "ben", "carl"].into_iter().enumerate() {
            let access = if index % 2 == 0 { Access::Pool } else { Access::None };
            sample = sample.user(id, "10", access);
        }
        let world = World::new(&sample);
        for (user, n) in [("dora", 3), ("ben", 2), ("eve", 2)] {
            let body = format!("{{\"n\":{n}}}");
            world.send(&Call::post("/v1/images", body).user(user)).await.is(200);
        }
        for (sort, expected) in [
            ("id", ["adam", "ben", "carl", "dora", "eve"]),
            ("-id", ["eve", "dora", "carl", "ben", "adam"]),
            ("captured", ["adam", "carl", "ben", "eve", "dora"]),
            ("-captured", ["dora", "ben", "eve", "adam", "carl"]),
            ("available", ["dora", "ben", "eve", "adam", "carl"]),
        ] {
            for limit in [1, 2, 4, 5, 1000] {
                let path = format!("users?sort={sort}&limit={limit}");
                assert_eq!(all(&world, &path), expected, "{path}");
            }
        }
        assert_eq!(all(&world, "users?q=A"), ["adam", "carl", "dora"]);
        assert_eq!(all(&world, "users?profile=ffs&limit=2"), ["carl", "dora", "eve"]);
        let page = read(&world, "users?limit=1");
        assert_eq!(page["as_of"], "2026-11-20T12:00:00Z");
        assert_eq!(page["time_zone"], "UTC");
        let user = &page["items"][0];
        assert_eq!(user["seat"]["captured"], "0");
        assert_eq!((&user["email"], &user["groups"]), (&Value::Null, &json!([])));
    });
}

#[test]
fn d11_users_are_listed_by_what_they_hold_drew_and_owe() {
    run(async {
        let sample = Org::new()
            .user("abe", "1", Access::None)
            .user("zoe", "10", Access::Pool)
            .user("mia", "5", Access::None)
            .user("carl", "20", Access::None);
        let world = World::new(&sample);
        world.send(&Call::post("/v1/images", "{\"n\":30}").user("zoe")).await.is(200);
        let more = Call::post("/v1/told", "{\"n\":1}").user("mia").script(&Script::usage(7));
        world.send(&more).await.is(200);
        let open = Call::post("/v1/images", "{\"n\":2}").user("carl").script(&Script::gate("go"));
        let listing = async {
            until("it is held", || (world.backend.count() == 3).then_some(())).await;
            for (sort, expected) in [
                ("-granted", ["carl", "zoe", "mia", "abe"]),
                ("-held", ["carl", "abe", "mia", "zoe"]),
                ("-drawn", ["zoe", "abe", "carl", "mia"]),
                ("-overdraft", ["mia", "abe", "carl", "zoe"]),
            ] {
                for limit in [1, 3, 4] {
                    assert_eq!(all(&world, &format!("users?sort={sort}&limit={limit}")), expected);
                }
            }
            world.backend.open("go");
        };
        let (answer, ()) = tokio::join!(world.send(&open), listing);
        answer.is(200);
    });
}

#[test]
fn a_list_refuses_what_makes_no_sense_and_cursors_that_were_made_up() {
    run(async {
        let world = World::new(&org());
        let first = read(&world, "users?limit=1&sort=-captured");
        let cursor = first["next_cursor"].as_str().unwrap();
        let mut changed = cursor.to_owned().into_bytes();
        let last = changed.len() - 1;
        changed[last] = if changed[last] == b'0' { b'1' } else { b'0' };
        let changed = String::from_utf8(changed).unwrap();
        for path in [
            "users?limit=0",
            "users?limit=1001",
            "users?limit=x",
            "users?sort=email",
            "users?limit=1&limit=2",
            "users?offset=1",
            "users?cursor=00",
            "users?group=-",
            "licences?unassigned=maybe",
            "audit?from=yesterday",
            "pool?limit=1",
            // Of this list, but in another order; of another list; changed.
            &format!("users?cursor={cursor}"),
            &format!("plans?cursor={cursor}"),
            &format!("users?sort=-captured&cursor={changed}"),
        ] {
            let answer = admin(&world, "GET", path, Value::Null).await;
            let problem = answer.refused(422, "invalid");
            assert_eq!(problem["errors"].as_array().map(Vec::len), Some(1), "{path}: {problem}");
        }
    });
}

#[test]
fn lists_of_things_are_in_parts_too() {
    run(async {
        let world = World::new(&org());
        for id in ["p1", "p2", "p3"] {
            let plan = json!({ "id": id, "credits": "1" });
            admin(&world, "POST", "plans", plan).await.is(201);
        }
        assert_eq!(all(&world, "plans?limit=1&q=p"), ["p1", "p10", "p2", "p20", "p3", "p30", "p5"]);
        assert_eq!(all(&world, "plans?limit=2&q=P3&sort=-id"), ["p30", "p3"]);
        // Nothing follows a part that is full and the last.
        assert_eq!(read(&world, "plans?limit=2&q=p3")["next_cursor"], Value::Null);
        assert_eq!(all(&world, "licences?limit=1"), ["lic-alice", "lic-bob", "lic-c1", "lic-c2"]);
        assert_eq!(all(&world, "licences?limit=1&user=carol"), ["lic-c1", "lic-c2"]);
        assert_eq!(all(&world, "licences?limit=1&plan=p30"), ["lic-c1"]);
        assert_eq!(all(&world, "licences?unassigned=true"), [""; 0]);
        let audit = read(&world, "audit?limit=2&kind=plan");
        let lines: Vec<&str> = (audit["items"].as_array().unwrap().iter())
            .map(|entry| entry["line"].as_str().unwrap())
            .collect();
        assert_eq!(lines, ["+ plan p3", "+ plan p2"]);
        let next = audit["next_cursor"].as_str().unwrap();
        let audit = read(&world, &format!("audit?limit=1&kind=plan&cursor={next}"));
        assert_eq!(audit["items"][0]["id"], "p1");
        assert_eq!(audit["items"][0]["who"], "operator");
    });
}

#[test]
fn a_write_honours_the_tag_that_was_read() {
    run(async {
        let world = World::new(&org());
        let plan = || Call::get("/v1/orgs/acme/plans/p10");
        let read = ask(&world, TOKEN, plan()).await;
        let tag = read.is(200).header("etag").unwrap().to_owned();
        let put = |credits: &str| {
            json_call("PUT", "/v1/orgs/acme/plans/p10", &json!({ "credits": credits }))
        };
        let send = async |call: Call| ask(&world, TOKEN, call).await;
        let written = send(put("11").header("if-match", &tag)).await;
        let newer = written.is(200).header("etag").unwrap().to_owned();
        assert_ne!(newer, tag);
        assert_eq!(send(plan()).await.header("etag"), Some(newer.as_str()));
        send(put("12").header("if-match", &tag)).await.refused(412, "stale");
        send(put("12").header("if-none-match", "*")).await.refused(412, "stale");
        send(put("12").header("if-match", &format!("W/{newer}"))).await.refused(412, "stale");
        for odd in ["x", "\"", "\"a\" \"b\"", ""] {
            send(put("12").header("if-match", odd)).await.refused(422, "invalid");
        }
        let both = put("12").header("if-match", "*").header("if-none-match", "*");
        send(both).await.refused(422, "invalid");
        let unknown = json_call("PUT", "/v1/orgs/acme/plans/new", &json!({"credits": "1"}));
        send(unknown.clone().header("if-match", "*")).await.refused(412, "stale");
        send(unknown.header("if-none-match", "*")).await.is(200);
        let delete = || Call::new("DELETE", "/v1/orgs/acme/plans/new");
        send(delete().header("if-match", &newer)).await.refused(412, "stale");
        send(put("12").header("if-match", &format!("\"0\", {newer}"))).await.is(200);
        send(delete()).await.is(204);
        // Where there is nothing to compare, a condition is not silently ignored.
        let body = json!({"account": "pool", "amount": "1", "reason": "r"});
        let adjust = json_call("POST", "/v1/orgs/acme/adjustments", &body);
        send(adjust.header("if-match", &newer)).await.refused(422, "invalid");
        for path in ["users", "pool", "users/alice", "users/alice/balance", "holds", "audit"] {
            let answer = admin(&world, "GET", path, Value::Null).await;
            assert!(answer.is(200).header("etag").is_some_and(|tag| tag.len() > 4), "{path}");
        }
    });
}

#[test]
fn f71_bodies_are_bounded_and_of_the_type_that_is_read() {
    run(async {
        let world = World::new(&org());
        let path = "/v1/orgs/acme/plans";
        let send = async |call: Call| ask(&world, TOKEN, call).await;
        let plan = r#"{"id":"x","credits":"1"}"#;
        send(Call::post(path, plan)).await.refused(415, "unsupported_media_type");
        for media in ["text/plain", "application/x-www-form-urlencoded", "application/toml", ""] {
            let call = Call::post(path, plan).header("content-type", media);
            send(call).await.refused(415, "unsupported_media_type");
        }
        let json = |body: &str| {
            Call::post(path, body.to_owned())
                .header("content-type", "application/json; charset=utf-8")
        };
        let gzip = json(plan).header("content-encoding", "gzip");
        send(gzip).await.refused(415, "unsupported_media_type");
        for (body, pointer) in [
            ("", ""),
            ("{", ""),
            ("[]", ""),
            ("null", ""),
            (r#"{"id":"x","id":"y","credits":"1"}"#, ""),
            (r#"{"id":"x","credits":"1","colour":"red"}"#, "/colour"),
            (r#"{"id":"x","credits":"1","a/b~c":1}"#, "/a~1b~0c"),
            (r#"{"id":"x"}"#, "/credits"),
            (r#"{"id":"x","credits":1}"#, "/credits"),
            (r#"{"id":"x","credits":"-1"}"#, "/credits"),
            (r#"{"credits":"1"}"#, "/id"),
            (r#"{"id":"-","credits":"1"}"#, "/id"),
        ] {
            let problem = send(json(body)).await.refused(422, "invalid");
            assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}: {problem}");
        }
        let deep = "[".repeat(100_000);
        send(json(&deep)).await.refused(422, "invalid");
        let large = format!("{:x}\r\n{}", (1 << 20) + 1, " ".repeat((1 << 20) + 1));
        for (length, body) in
            [("content-length: 99999999999", ""), ("transfer-encoding: chunked", &*large)]
        {
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {TOKEN}\r\n\
                 content-type: application/json\r\n{length}\r\nconnection: close\r\n\r\n"
            );
            let answer = raw(world.admin_address(), (head + body).as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        }
        send(json(plan)).await.is(201);
        for (patch, pointer) in [(r#"{"colour":null}"#, "/colour"), (r#"{"id":null}"#, "/id")] {
            let call = Call::with("PATCH", &format!("{path}/x"), patch);
            let call = call.header("content-type", "application/merge-patch+json");
            let problem = send(call).await.refused(422, "invalid");
            assert_eq!(problem["errors"][0]["pointer"], pointer, "{patch}: {problem}");
        }
    });
}

#[test]
fn paths_and_methods_that_are_not_there_are_told_to_those_who_may_ask() {
    run(async {
        let world = World::new(&org());
        let mut client = Client::connect(world.admin_address()).await;
        for (method, path, status, code) in [
            ("GET", "/v1/nothing", 404, "not_found"),
            ("GET", "/", 404, "not_found"),
            ("GET", "/v1/orgs/none/users", 404, "not_found"),
            ("GET", "/v1/orgs/acme/users/", 404, "not_found"),
            ("GET", "/v1/orgs/acme/users/%00", 404, "not_found"),
            ("GET", "/v1/orgs/acme/users/%ff", 404, "not_found"),
            ("GET", "/v1/orgs/acme/plans/..%2f..", 404, "not_found"),
            ("GET", "/v1/orgs/acme/charges/x", 404, "not_found"),
            ("DELETE", "/v1/orgs/acme/users", 405, "method_not_allowed"),
            ("TRACE", "/v1/orgs/acme/users", 405, "method_not_allowed"),
            ("POST", "/openapi.json", 405, "method_not_allowed"),
        ] {
            let call = Call::new(method, path).header("x-request-id", "mine-1");
            client.send(&call).await.refused(401, "unauthenticated");
            let answer = client.send(&call.key(TOKEN)).await;
            let problem = answer.refused(status, code);
            assert_eq!(problem["request_id"], "mine-1");
            if status == 405 {
                let allow = answer.header("allow").unwrap().to_owned();
                assert!(allow.contains("GET") && !allow.contains(method), "{path}: {allow}");
            }
        }
        let head = client.send(&Call::new("HEAD", "/v1/orgs/acme/users").key(TOKEN)).await;
        assert!(head.is(200).body.is_empty());
        let odd = Call::get("/v1/orgs/acme/pool").key(TOKEN).header("x-request-id", "a b");
        let answer = client.send(&odd).await;
        assert_ne!(answer.is(200).header("x-request-id"), Some("a b"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    });
}
