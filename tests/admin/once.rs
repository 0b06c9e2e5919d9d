//! What is repeated under one `Idempotency-Key` happens once.

use serde_json::{Value, json};

use super::support::world::TOKEN;
use super::support::{Call, World, run};
use super::{admin, ask, json_call, org, read, token};

fn post(path: &str, body: &Value, key: &str) -> Call {
    json_call("POST", &format!("/v1/orgs/acme/{path}"), body).header("idempotency-key", key)
}

#[test]
fn the_same_request_is_told_the_same_and_another_is_refused() {
    run(async {
        let world = World::new(&org());
        let send = async |call: Call| ask(&world, TOKEN, call).await;
        let plan = json!({"id": "new", "credits": "7"});
        let made = send(post("plans", &plan, "k-1")).await;
        let again = send(post("plans", &plan, "k-1")).await;
        assert_eq!(made.is(201).json(), plan);
        assert_eq!(again.is(201).body, made.body);
        assert_eq!(again.header("etag"), made.header("etag"));
        let other = json!({"id": "new", "credits": "8"});
        send(post("plans", &other, "k-1")).await.refused(422, "idempotency_key_reused");
        send(post("terms", &plan, "k-1")).await.refused(422, "idempotency_key_reused");
        send(post("plans", &plan, "k-2")).await.refused(409, "conflict");
        // Keys belong to who sends them.
        let boss = token(&world, "boss", "org-admin", Some("acme"), &[]).await;
        ask(&world, &boss, post("plans", &plan, "k-1")).await.refused(409, "conflict");
        for odd in ["", "a b", &"x".repeat(256)] {
            send(post("plans", &plan, odd)).await.refused(422, "invalid");
        }
        let twice = post("plans", &plan, "a").header("idempotency-key", "b");
        send(twice).await.refused(422, "invalid");
        assert_eq!(read(&world, "audit?kind=plan&id=new")["items"].as_array().unwrap().len(), 1);
    });
}

#[test]
fn f81_a_secret_that_was_made_is_shown_once() {
    run(async {
        let world = World::new(&org());
        let send = async |call: Call| ask(&world, TOKEN, call).await;
        let key = json!({"id": "batch", "kind": "service"});
        let made = send(post("keys", &key, "k-1")).await.is(201).json();
        let secret = made["secret"].as_str().unwrap().to_owned();
        let mut without = made.clone();
        without.as_object_mut().unwrap().remove("secret");
        assert_eq!(send(post("keys", &key, "k-1")).await.is(201).json(), without);
        assert_eq!(read(&world, "keys/batch"), without);
        let rotated = send(post("keys/batch/rotate", &json!({}), "k-2")).await.is(200).json();
        let newer = rotated["secret"].as_str().unwrap().to_owned();
        let again = send(post("keys/batch/rotate", &json!({}), "k-2")).await.is(200).json();
        assert_eq!(again.get("secret"), None);
        assert_eq!(again["secrets"], rotated["secrets"]);
        let (_, audit) = world.admin("/v1/orgs/acme/audit");
        for secret in [secret, newer] {
            let image = Call::post("/v1/images", "{}").key(&secret).header("tollgate-user", "bob");
            world.send(&image).await.is(200);
            assert!(!audit.to_string().contains(&secret));
            assert!(!world.log().iter().any(|line| line.contains(&secret)));
        }
    });
}

#[test]
fn an_adjustment_under_one_key_is_made_once_also_after_a_crash() {
    run(async {
        let mut world = World::new(&org());
        let body = json!({"account": "licence", "user": "alice", "amount": "5", "reason": "gift"});
        let call = || post("adjustments", &body, "gift-1");
        let made = ask(&world, TOKEN, call()).await.is(201).json();
        assert_eq!(ask(&world, TOKEN, call()).await.is(201).json(), made);
        world.kill();
        world.start();
        assert_eq!(ask(&world, TOKEN, call()).await.is(201).json(), made);
        assert_eq!(world.balance("alice")["seat"]["granted"], "15");
        let mut other = body.clone();
        other["amount"] = json!("6");
        let reused = ask(&world, TOKEN, post("adjustments", &other, "gift-1")).await;
        reused.refused(422, "idempotency_key_reused");
        assert_eq!(read(&world, "adjustments")["items"], json!([made]));
        let audit = read(&world, "audit?kind=adjustment");
        assert_eq!(audit["items"].as_array().unwrap().len(), 1, "{audit}");
    });
}

#[test]
fn many_at_once_under_one_key_adjust_once() {
    run(async {
        let world = World::new(&org());
        let body = json!({"account": "pool", "amount": "-1", "reason": "correction"});
        let call = post("adjustments", &body, "k").key(TOKEN);
        let calls = vec![call; 16];
        let answers = super::support::burst(world.admin_address(), calls, 8).await;
        for answer in &answers {
            assert_eq!(answer.is(201).body, answers[0].body);
        }
        assert_eq!(world.pool()["granted"], "999");
    });
}

#[test]
fn a_refused_adjustment_may_be_tried_again_under_its_key() {
    run(async {
        let world = World::new(&org());
        let body = json!({"account": "licence", "user": "zoe", "amount": "5", "reason": "gift"});
        let call = || post("adjustments", &body, "k");
        ask(&world, TOKEN, call()).await.refused(422, "invalid");
        // Also with another body: of one that changed nothing, the key is free again.
        let mut zero = body.clone();
        zero["licence"] = json!("lic-c1");
        ask(&world, TOKEN, post("adjustments", &zero, "k")).await.refused(422, "invalid");
        let licences = json!([{"id": "lic-z", "plan": "p10"}]);
        admin(&world, "PUT", "users/zoe", json!({ "licences": licences })).await.is(200);
        ask(&world, TOKEN, call()).await.is(201);
        assert_eq!(world.balance("zoe")["seat"]["granted"], "15");
    });
}
