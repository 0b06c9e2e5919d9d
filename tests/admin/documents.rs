//! Org files as they are sent: how large, how many problems, and who is answered meanwhile.

use std::pin::pin;

use serde_json::Value;

use super::support::peer::Peer;
use super::support::{Answer, Call, Client, World, run};
use super::{TOKEN, ask, org, token};

const APPLY: &str = "/v1/orgs/acme/apply";

/// A head of a request that applies a document.
fn head(secret: &str, media: &str, length: usize) -> String {
    format!(
        "POST {APPLY} HTTP/1.1\r\nhost: admin.test\r\nauthorization: Bearer {secret}\r\n\
         content-type: {media}\r\ncontent-length: {length}\r\n\r\n"
    )
}

#[test]
fn f71_while_a_long_document_is_read_others_are_answered() {
    run(async {
        let world = World::new(&org());
        let secret = token(&world, "own", "org-admin", Some("acme"), &[]).await;
        // That it is wrong is seen at its end.
        let users: String =
            (0..700_000).map(|user| format!("{{\"id\":\"user-{user}\"}},")).collect();
        let body = format!("{{\"user\":[{users}{{}}]}}");
        let (most, last) = body.split_at(body.len() - 1);
        let mut sender = Peer::connect(world.admin_address()).await;
        assert!(sender.send(head(&secret, "application/json", body.len())).await);
        assert!(sender.send(most).await);
        let mut ops = Client::connect(world.ops_address()).await;
        let mut admin = Client::connect(world.admin_address()).await;
        let list = Call::get("/v1/orgs").header("authorization", &format!("Bearer {TOKEN}"));
        // The event loop takes from the body whenever it answers, so that after this it has all
        // of it but the last byte.
        for _ in 0..1000 {
            ops.send(&Call::get("/readyz")).await.is(200);
        }
        assert!(sender.send(last).await);
        let mut others = 0;
        let answer = {
            let mut answer = pin!(sender.answer());
            loop {
                let asked = async {
                    ops.send(&Call::get("/readyz")).await.is(200);
                    admin.send(&list).await.is(200);
                };
                tokio::select! {
                    told = &mut answer => break told,
                    () = asked => others += 1,
                }
            }
        };
        let problem = answer.refused(422, "invalid");
        assert_eq!(problem["errors"][0]["pointer"], "/user/700000/id", "{problem}");
        // On one event loop with the reading it would be one at most: the one that was asked
        // before the last byte was there.
        assert!(others >= 20, "{others}");
    });
}

#[test]
fn f71_of_many_problems_the_first_hundred_are_told() {
    run(async {
        let world = World::new(&org());
        let secret = token(&world, "own", "org-admin", Some("acme"), &[]).await;
        let apply = async |media: &str, body: String| -> Value {
            let call = Call::post(APPLY, body).header("content-type", media);
            let answer: Answer = ask(&world, &secret, call).await;
            answer.refused(422, "invalid")
        };
        let lost = |count: usize| {
            let users =
                (0..count).map(|user| format!("{{\"id\":\"u{user}\",\"groups\":[\"no\"]}}"));
            format!("{{\"user\":[{}]}}", users.collect::<Vec<_>>().join(","))
        };
        let keys: String = (0..300).map(|key| format!("\"k{key}\":0,")).collect();
        for (media, body) in [
            (
                "application/json",
                format!("{{\"user\":[{}{{}}]}}", "{\"id\":\"u\"},".repeat(50_000)),
            ),
            ("application/json", lost(300)),
            ("application/json", format!("{{{keys}\"user\":[]}}")),
            ("application/json", format!("{{\"user\":[{{{keys}\"id\":\"u\"}}]}}")),
            ("application/toml", "[[user]]\nid = \"u\"\n".repeat(300)),
        ] {
            let problem = apply(media, body).await;
            let errors = problem["errors"].as_array().unwrap();
            assert_eq!(errors.len(), 101, "{problem}");
            assert!(errors[100]["detail"].as_str().unwrap().starts_with("and more"), "{problem}");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.starts_with("more than 100 problems"), "{problem}");
        }
        let problem = apply("application/json", lost(100)).await;
        assert_eq!(problem["errors"].as_array().unwrap().len(), 100);
        assert_eq!(problem["errors"][99]["pointer"], "/user/99/groups/0");
        assert_eq!(problem["detail"], "100 problem(s); nothing was changed");
    });
}

#[test]
fn f71_a_document_of_others_than_operators_has_a_smaller_bound() {
    run(async {
        let world = World::new(&org());
        let secret = token(&world, "own", "org-admin", Some("acme"), &[]).await;
        let (json, toml) = ("application/json", "application/toml");
        for (secret, media, most) in [
            (&*secret, json, 16 << 20),
            (&*secret, toml, 4 << 20),
            (TOKEN, json, 256 << 20),
            (TOKEN, toml, 256 << 20),
        ] {
            // Refused for what its head says, before a byte of it came.
            let mut peer = Peer::connect(world.admin_address()).await;
            assert!(peer.send(head(secret, media, most + 1)).await);
            peer.answer().await.refused(413, "body_too_large");
        }
        let spaces = |length: usize| Call::post(APPLY, format!("{{{}}}", " ".repeat(length - 2)));
        let apply = |length| spaces(length).header("content-type", json);
        ask(&world, &secret, apply(16 << 20)).await.is(200);
        ask(&world, TOKEN, apply((16 << 20) + 1)).await.is(200);
    });
}
