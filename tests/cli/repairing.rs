//! `tollgate books repair` and `tollgate ledger verify` of books in Redis, beside a running gateway.

use std::time::Duration;

use crate::Ran;
use crate::support::redis::RedisServer;
use crate::support::world::{in_redis, tollgate};
use crate::support::{Access, Call, Org, Setup, World, run, until};

fn command(world: &World, environment: &[(String, String)], words: &[&str]) -> Ran {
    let mut command = tollgate();
    command.args(words).arg("-c").arg(world.config()).envs(environment.iter().cloned());
    crate::ran(command.output().unwrap())
}

fn image(user: &str, n: u32) -> Call {
    Call::post("/v1/images", format!("{{\"n\":{n}}}")).user(user)
}

fn keyed() -> Call {
    Call::post("/v1/keyed", "{}").user("alice").header("idempotency-key", "once")
}

#[test]
fn f34_d37_a_redis_that_was_emptied_is_built_again_while_gateways_run() {
    run(async {
        let server = RedisServer::shared();
        let url = server.database();
        let mut environment = in_redis(&url).to_vec();
        for (key, value) in [("SHARDS", "3"), ("OWNER_TIMEOUT", "1s"), ("REJOIN_TIMEOUT", "1s")] {
            environment.push((format!("TOLLGATE__BOOKS__{key}"), value.to_owned()));
        }
        let setup = Setup { environment: environment.clone(), ..Setup::default() };
        let org = Org::new().user("alice", "100", Access::None).user("bob", "10", Access::Pool);
        let world = World::with(setup, &org);
        let ask = |words: &[&str]| command(&world, &environment, words);
        world.send(&image("alice", 2)).await.is(200);
        let charge = world.send(&keyed()).await.is(200).told("charge");
        world.send(&image("bob", 30)).await.is(200);
        world.settled().await;
        let ran = ask(&["ledger", "verify"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.out.starts_with("ok: ") && ran.out.contains("3 shards"), "{ran:?}");
        let ran = ask(&["books", "repair"]);
        assert_eq!((ran.code, &*ran.out), (0, "3 of 3 shards are whole\nnothing to repair\n"));
        let told = |world: &World| (world.balance("alice"), world.balance("bob"));
        let before = told(&world);

        let mut connection = ::redis::Client::open(&*url).unwrap().get_connection().unwrap();
        ::redis::cmd("FLUSHDB").exec(&mut connection).unwrap();
        world.send(&image("alice", 1)).await.is(503);
        let ran = ask(&["ledger", "verify", "--output", "json"]);
        assert_eq!(ran.code, 1, "{ran:?}");
        let document: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!((&document["ok"], &document["shards"]), (&false.into(), &3.into()));
        let ran = ask(&["books", "repair"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.out.contains("shard 0: damaged: it is empty"), "{ran:?}");
        assert!(ran.out.ends_with("nothing was changed; --apply does it\n"), "{ran:?}");
        let size: u64 = ::redis::cmd("DBSIZE").query(&mut connection).unwrap();
        assert_eq!(size, 0);
        let ran = ask(&["books", "repair", "--shard", "3"]);
        assert!(ran.code == 1 && ran.err.contains("there are 3 shards"), "{ran:?}");
        let ran = ask(&["books", "repair", "--apply"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let ran = ask(&["books", "repair", "--shard", "1", "--apply"]);
        assert!(ran.code == 1 && ran.err.contains("it is whole"), "{ran:?}");
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while world.send(&image("alice", 1)).await.status != 200 {
            assert!(std::time::Instant::now() < deadline, "it never serves again");
        }
        world.seat("alice", "4", "96", "0");
        assert_eq!(told(&world).1, before.1);
        assert_eq!(world.send(&keyed()).await.is(200).told("charge"), charge);
        world.seat("alice", "4", "96", "0");
        world.settled().await;
        until("it adds up", || {
            let ran = ask(&["ledger", "verify"]);
            (ran.code == 0).then_some(())
        })
        .await;
    });
}
