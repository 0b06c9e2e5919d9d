//! A gateway that is killed where it stands. The campaign under load is in `tests/crash`.

use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use crate::support::peer::head;
use crate::support::{Access, Call, Client, Org, Peer, Script, World, run, until};

#[test]
fn f02_d36_a_hold_in_doubt_is_resolved_once_as_its_route_says() {
    run(async {
        let mut world = World::new(&Org::new().user("alice", "10", Access::None));
        let gateway = world.gateway();
        let mut clients = JoinSet::new();
        for path in ["/v1/images", "/v1/doubt"] {
            let call = Call::post(path, "{}").user("alice").script(&Script::gate("never"));
            clients.spawn(
                async move { Client::connect(gateway).await.try_send(&call).await.is_err() },
            );
        }
        until("both are forwarded", || (world.backend.count() == 2).then_some(())).await;
        assert_eq!(world.balance("alice")["seat"]["held"], "2");
        world.kill();
        assert!(clients.join_all().await.into_iter().all(|broken| broken));
        // A second crash right after recovery repeats nothing (f05).
        for resolved in [1.0, 0.0] {
            world.start();
            for resolution in ["captured", "voided"] {
                let found = world.metric("tollgate_in_doubt_total", &[resolution]);
                assert_eq!(found, resolved, "{resolution}");
            }
            assert_eq!(world.metric("tollgate_holds_open", &[]), 0.0);
            for seen in world.backend.seen() {
                let charge = world.charge(seen.charge().unwrap());
                let (state, cost) = match seen.target.as_str() {
                    "/v1/doubt" => ("captured", "1"),
                    _ => ("voided", "0"),
                };
                assert_eq!((&charge["state"], &charge["cost"]), (&state.into(), &cost.into()));
                assert_eq!(charge["flags"], serde_json::json!(["in_doubt"]));
            }
            world.seat("alice", "1", "9", "0");
            world.verify();
            world.kill();
        }
        world.start();
    });
}

/// Killed while clients have read some of their answers, and not all. What is known of usage is
/// recorded with a capture only, so such a hold is in doubt like any other.
#[test]
fn f03_d36_streams_that_a_killed_gateway_broke_off_are_charged_as_their_routes_say() {
    run(async {
        let mut world = World::new(&Org::new().user("alice", "10", Access::None));
        let script = Script {
            half: Some("never".to_owned()),
            headers: vec![("x-usage".to_owned(), "2".to_owned())],
            chunked: true,
            pad: 200_000,
            ..Script::default()
        };
        let script = format!("x-script: {}\r\n", serde_json::to_string(&script).unwrap());
        let mut peers = Vec::new();
        for path in ["/v1/streamed", "/v1/doubt", "/v1/cancel-told"] {
            let mut peer = Peer::connect(world.gateway()).await;
            let more = format!("{script}x-count: 3\r\ncontent-length: 2\r\n");
            peer.send(head(&format!("POST {path} HTTP/1.1"), &more) + "{}").await;
            let mut some = Vec::new();
            while some.len() < 50_000 {
                assert!(peer.stream.read_buf(&mut some).await.unwrap() > 0, "{path}");
            }
            let head = String::from_utf8_lossy(&some[..500]).into_owned();
            assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("state=held"), "{head}");
            peers.push(peer);
        }
        assert_eq!(world.balance("alice")["seat"]["held"], "7");
        world.kill();
        for peer in &mut peers {
            while peer.stream.read_buf(&mut Vec::new()).await.is_ok_and(|count| count > 0) {}
        }
        for _ in 0..2 {
            world.start();
            for seen in world.backend.seen() {
                let charge = world.charge(seen.charge().unwrap());
                let (state, cost) = match seen.target.as_str() {
                    "/v1/doubt" => ("captured", "1"),
                    _ => ("voided", "0"),
                };
                assert_eq!((&charge["state"], &charge["cost"]), (&state.into(), &cost.into()));
                assert_eq!(charge["flags"], serde_json::json!(["in_doubt"]));
            }
            world.seat("alice", "1", "9", "0");
            world.verify();
            world.kill();
        }
        assert_eq!(world.backend.count(), 3, "nothing is sent again");
        world.start();
    });
}

#[test]
fn f44_a_second_gateway_on_the_same_data_does_not_start() {
    run(async {
        let world = World::new(&Org::new().user("alice", "10", Access::None));
        let output = world.serve_again();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        world.send(&Call::post("/v1/images", "{}").user("alice")).await.is(200);
    });
}
