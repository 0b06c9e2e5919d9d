//! A gateway that is killed where it stands. The campaign under load is in `tests/crash`.

use tokio::task::JoinSet;

use crate::support::{Access, Call, Client, Org, Script, World, run, until};

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

#[test]
fn f44_a_second_gateway_on_the_same_data_does_not_start() {
    run(async {
        let world = World::new(&Org::new().user("alice", "10", Access::None));
        let output = world.serve_again();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        world.send(&Call::post("/v1/images", "{}").user("alice")).await.is(200);
    });
}
