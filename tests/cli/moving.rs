//! `tollgate books move`: into Redis and back, and what it refuses.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::Ran;
use crate::support::redis::RedisServer;
use crate::support::world::{TOKEN, in_redis, tollgate};
use crate::support::{Access, Answer, Call, Client, Org, Script, World, run, until};

/// Of a database of its own: what a gateway with books there has in its environment.
fn redis() -> (Arc<RedisServer>, String, Vec<(String, String)>) {
    let server = RedisServer::shared();
    let url = server.database();
    let mut environment = in_redis(&url).to_vec();
    environment.push(("TOLLGATE__BOOKS__SHARDS".to_owned(), "3".to_owned()));
    environment.push(("TOLLGATE__BOOKS__OWNER_TIMEOUT".to_owned(), "1s".to_owned()));
    (server, url, environment)
}

fn embedded() -> Vec<(String, String)> {
    vec![("TOLLGATE__BOOKS__ENGINE".to_owned(), "embedded".to_owned())]
}

fn org() -> Org {
    Org::new().user("alice", "100", Access::None).user("bob", "10", Access::Pool)
}

/// A gateway on embedded books, whichever run of the suite this is.
fn world() -> World {
    let setup = crate::support::Setup { environment: embedded(), ..Default::default() };
    World::with(setup, &org())
}

fn mover(world: &World, environment: &[(String, String)], to: &str) -> std::process::Command {
    let from = if to == "redis" { "embedded" } else { "redis" };
    let mut command = tollgate();
    command.args(["books", "move", "--from", from, "--to", to, "-c"]).arg(world.config());
    command.envs(environment.iter().cloned());
    command
}

fn moved(world: &World, environment: &[(String, String)], to: &str) -> Ran {
    crate::ran(mover(world, environment, to).output().unwrap())
}

#[track_caller]
fn refused(world: &World, environment: &[(String, String)], to: &str, why: &str) {
    let ran = moved(world, environment, to);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains(why), "{ran:?}");
}

/// Once nobody was heard of for long enough.
async fn moves_back(world: &World, environment: &[(String, String)]) -> Ran {
    until("the books move", || {
        let ran = moved(world, environment, "embedded");
        let waits = ran.code == 1 && ran.err.contains("a gateway uses the books");
        (!waits).then_some(ran)
    })
    .await
}

fn image(user: &str, n: u32) -> Call {
    Call::post("/v1/images", format!("{{\"n\":{n}}}")).user(user)
}

fn keyed() -> Call {
    Call::post("/v1/keyed", "{}").user("alice").header("idempotency-key", "once")
}

async fn refund(world: &World, charge: &str) -> Answer {
    let body = json!({ "reason": "a test" }).to_string();
    let call = Call::with("POST", &format!("/v1/orgs/acme/charges/{charge}/refund"), body)
        .header("content-type", "application/json")
        .key(TOKEN);
    Client::connect(world.admin_address()).await.send(&call).await
}

async fn stop(world: &mut World) {
    world.terminate();
    assert!(world.stopped().await.success());
}

#[test]
fn d37_d35_books_move_into_redis_and_back_and_no_credit_is_lost_or_doubled() {
    run(async {
        let (_server, _, on_redis) = redis();
        let mut world = world();
        let given_back = world.send(&image("alice", 2)).await.is(200).told("charge");
        world.send(&image("alice", 5)).await.is(200);
        let first = world.send(&keyed()).await;
        let charge = first.is(200).told("charge");
        world.send(&image("bob", 30)).await.is(200);
        assert_eq!(refund(&world, &given_back).await.status, 201);
        let told = |world: &World| (world.balance("alice"), world.balance("bob"));
        let before = told(&world);
        stop(&mut world).await;

        let ran = moved(&world, &on_redis, "redis");
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.out.contains("and 1 keys of charges into Redis"), "{ran:?}");
        // The books that it left are not used any more.
        let left = world.serve_again();
        let said = String::from_utf8(left.stderr).unwrap();
        assert!(said.contains("this directory's books are in Redis"), "{said}");

        world.environment(&on_redis);
        world.start();
        assert_eq!(told(&world), before);
        assert_eq!(world.send(&keyed()).await.is(200).told("charge"), charge);
        world.send(&image("alice", 3)).await.is(200);
        world.settled().await;
        assert_eq!(world.charge(&charge)["state"], "captured");
        assert_eq!(refund(&world, &given_back).await.status, 409);
        let before = told(&world);
        stop(&mut world).await;

        let ran = moves_back(&world, &on_redis).await;
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.err.contains("put them aside"), "{ran:?}");
        std::fs::rename(world.data().join("books"), world.data().join("old")).unwrap();
        let ran = moves_back(&world, &on_redis).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        // Nor are those in Redis, by a gateway that has heard nothing of it.
        world.environment(&on_redis);
        let mut serve = tollgate();
        let serve = serve.arg("serve").arg("-c").arg(world.config()).envs(on_redis.clone());
        let said = String::from_utf8(serve.output().unwrap().stderr).unwrap();
        assert!(said.contains("belongs to the embedded books"), "{said}");

        world.environment(&embedded());
        world.start();
        assert_eq!(told(&world), before);
        assert_eq!(world.send(&keyed()).await.is(200).told("charge"), charge);
        assert_eq!(refund(&world, &given_back).await.status, 409);
        assert_eq!(world.charge(&charge)["state"], "captured");
        world.send(&image("alice", 1)).await.is(200);
        assert_eq!(world.metric("tollgate_ledger_dead_letters", &[]), 0.0);
    });
}

#[test]
fn d37_books_do_not_move_while_anything_is_open_behind_or_in_the_way() {
    run(async {
        let (server, url, on_redis) = redis();
        let mut world = world();
        world.send(&image("alice", 2)).await.is(200);
        // A gateway runs.
        refused(&world, &on_redis, "redis", "another process uses this data dir");
        // A hold is open.
        let gateway = world.gateway();
        let call = image("alice", 7).script(&Script::gate("never"));
        let mut asking = tokio::task::JoinSet::new();
        asking.spawn(async move { Client::connect(gateway).await.try_send(&call).await.is_err() });
        until("the backend has it", || (world.backend.count() == 2).then_some(())).await;
        world.kill();
        assert!(asking.join_next().await.unwrap().unwrap());
        refused(&world, &on_redis, "redis", "1 holds are open");
        world.start();
        stop(&mut world).await;
        // The archive has not everything.
        let (archive, aside) = (world.data().join("archive.db"), world.data().join("aside.db"));
        std::fs::rename(&archive, &aside).unwrap();
        refused(&world, &on_redis, "redis", "the archive is behind the books");
        std::fs::rename(&aside, &archive).unwrap();
        // There are books.
        let mut connection = redis_at(&url);
        let set =
            |key: &str, field: &str| ::redis::cmd("HSET").arg(key).arg(field).arg("other").clone();
        set("tollgate:{s1}:meta", "epoch").exec(&mut connection).unwrap();
        refused(&world, &on_redis, "redis", "Redis has books already (other)");
        ::redis::cmd("FLUSHDB").exec(&mut connection).unwrap();
        // Nothing of that has changed anything.
        world.start();
        world.seat("alice", "2", "98", "0");
        stop(&mut world).await;
        assert_eq!(moved(&world, &on_redis, "redis").code, 0);
        refused(&world, &on_redis, "redis", "are in Redis already");
        let ran = crate::run(&["books", "move", "--from", "redis", "--to", "redis"]);
        assert_eq!(ran.code, 2, "{ran:?}");

        // The way back.
        std::fs::rename(world.data().join("books"), world.data().join("old")).unwrap();
        world.environment(&on_redis);
        world.start();
        world.send(&image("alice", 1)).await.is(200);
        refused(&world, &on_redis, "embedded", "another process uses this data dir");
        world.kill();
        refused(&world, &on_redis, "embedded", "a gateway uses the books");
        let mut few = on_redis.clone();
        few.push(("TOLLGATE__BOOKS__SHARDS".to_owned(), "2".to_owned()));
        refused(&world, &few, "embedded", "were made with 3");
        drop(server);
        std::fs::remove_dir_all(world.data().join("old")).unwrap();
    });
}

fn redis_at(url: &str) -> ::redis::Connection {
    ::redis::Client::open(url).unwrap().get_connection().unwrap()
}

#[test]
fn f05_a_move_that_is_killed_anywhere_is_begun_again_and_moves_everything_once() {
    run(async {
        let (_server, url, on_redis) = redis();
        let mut world = world();
        world.send(&image("alice", 2)).await.is(200);
        world.send(&keyed()).await.is(200);
        stop(&mut world).await;
        kill_often(&world, &on_redis, "redis").await;
        let books = world.data().join("books");
        std::fs::rename(&books, world.data().join("old")).unwrap();
        world.environment(&on_redis);
        world.start();
        world.seat("alice", "3", "97", "0");
        world.send(&keyed()).await.is(200);
        world.seat("alice", "3", "97", "0");
        world.settled().await;
        stop(&mut world).await;
        // It has shut some of the shards, and the journal is half there.
        let mut connection = redis_at(&url);
        let meta = "tollgate:{s0}:meta";
        let epoch: String =
            ::redis::cmd("HGET").arg(meta).arg("epoch").query(&mut connection).unwrap();
        let shut = format!("{epoch}/moved");
        ::redis::cmd("HSET").arg(meta).arg("epoch").arg(shut).exec(&mut connection).unwrap();
        std::fs::create_dir(&books).unwrap();
        std::fs::write(books.join("moved-from"), &epoch).unwrap();
        std::fs::write(books.join("00000000000000000000.journal"), "half").unwrap();
        kill_often(&world, &on_redis, "embedded").await;
        world.environment(&embedded());
        world.start();
        world.seat("alice", "3", "97", "0");
        world.send(&keyed()).await.is(200);
        world.seat("alice", "3", "97", "0");
        std::fs::remove_dir_all(world.data().join("old")).unwrap();
    });
}

/// Kills it later each time, until it has done its work.
async fn kill_often(world: &World, environment: &[(String, String)], to: &str) {
    let mut after = Duration::ZERO;
    loop {
        let mut command = mover(world, environment, to);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        tokio::time::sleep(after).await;
        after += Duration::from_millis(4);
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        if output.status.success() || said.contains("already") {
            return;
        }
        let waits = said.is_empty() || said.contains("a gateway uses the books");
        assert!(waits, "{said}");
    }
}
