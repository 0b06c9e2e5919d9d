//! What a backend is shown beside who asks: its own credential and nothing like it, nothing of the
//! client's connection, and bodies as they can be metered.

use crate::support::peer::head;
use crate::support::world::MEDIA_TOKEN;
use crate::support::{Access, Call, Org, Peer, World, run};

fn org() -> Org {
    Org::new().user("alice", "100", Access::None)
}

#[test]
fn f60_nothing_that_looks_like_the_backend_s_credential_comes_with_it() {
    run(async {
        // The backend's address is known when it runs, so the upstream is changed then.
        let world = World::new(&org());
        world.edit(|text| {
            text.replacen(
                "header = \"Authorization\", scheme = \"Bearer\"",
                "header = \"X-Api-Key\"",
                1,
            )
        });
        world.signal("HUP");
        world.logged(&["read again", "upstream"]).await;
        for name in ["x-api-key", "X_Api_Key", "x-api_key", "X.Api.Key"] {
            let mut peer = Peer::connect(world.gateway()).await;
            let more = format!("{name}: mine\r\nx-api-keys: kept\r\ncontent-length: 2\r\n");
            peer.send(head("POST /v1/images HTTP/1.1", &more) + "{}").await;
            assert_eq!(peer.answer().await.status, 200, "{name}");
            let seen = world.backend.last();
            assert!(!seen.head.contains("mine"), "{name}: {}", seen.head);
            assert_eq!(seen.header("x-api-key"), Some(MEDIA_TOKEN), "{name}");
            assert_eq!(seen.header("x-api-keys"), Some("kept"));
        }
    });
}

#[test]
fn f74_a_body_that_is_metered_is_not_asked_for_in_a_coding() {
    run(async {
        let world = World::new(&org());
        for (path, asked) in [("/v1/told", None), ("/v1/images", Some("gzip"))] {
            let call = Call::post(path, "{}").user("alice").header("accept-encoding", "gzip");
            world.send(&call).await;
            assert_eq!(world.backend.last().header("accept-encoding"), asked, "{path}");
        }
    });
}
