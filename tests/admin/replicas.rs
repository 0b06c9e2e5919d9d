//! Two gateways on one directory in PostgreSQL.

use std::time::Instant;

use super::support::postgres::{PASSWORD, Postgres};
use super::support::redis::RedisServer;
use super::support::world::{in_redis, tollgate};
use super::support::{PATIENCE, Setup, run};
use super::*;

/// A gateway on a server's database; those on one share the books that are named after it.
fn on(url: &str, books: &str) -> World {
    let mut environment = in_redis(books).to_vec();
    environment.push(("TOLLGATE__DIRECTORY__URL".to_owned(), url.to_owned()));
    // Whoever tries until a change is there spends credits meanwhile.
    let org = Org::new().user("bob", "100000", Access::None).extra("[[group]]\nid = \"design\"\n");
    World::with(Setup { environment, ..Setup::default() }, &org)
}

fn image() -> Call {
    Call::post("/v1/images", "{}").user("bob")
}

#[test]
fn d09_a_licence_taken_at_one_gateway_pays_at_none() {
    run(async {
        let server = Postgres::shared().await;
        let (redis, url) = (RedisServer::shared(), server.database());
        let books = redis.database();
        let (one, two) = (on(&url, &books), on(&url, &books));
        for round in 0..4 {
            two.send(&image()).await.is(200);
            let take = json!({ "user": null });
            admin(&one, "PATCH", "licences/lic-bob", take).await.is(200);
            one.send(&image()).await.refused(402, "seat_exhausted");
            let began = Instant::now();
            while two.send(&image()).await.status != 402 {
                assert!(began.elapsed() < PATIENCE);
            }
            println!("{round}: refused by the other gateway after {:?}", began.elapsed());
            let give = json!({ "user": "bob" });
            admin(&two, "PATCH", "licences/lic-bob", give).await.is(200);
            while one.send(&image()).await.status != 200 {
                assert!(began.elapsed() < PATIENCE);
            }
        }
    });
}

#[test]
fn while_the_server_is_away_traffic_goes_on_and_changes_are_refused() {
    run(async {
        let server = Postgres::start().await;
        let redis = RedisServer::shared();
        let world = on(&server.database(), &redis.database());
        world.send(&image()).await.is(200);
        let group = |id: &str| json!({ "id": id });
        admin(&world, "POST", "groups", group("before")).await.is(201);
        server.pause(true);
        let refused = admin(&world, "POST", "groups", group("refused")).await;
        refused.refused(503, "directory_unavailable");
        assert_eq!(refused.header("retry-after"), Some("1"));
        world.send(&image()).await.is(200);
        assert!(world.metric("tollgate_directory_age_seconds", &[]) > 1.0);
        assert_eq!(world.ops("/readyz").0, 200);
        world.logged(&["the directory's database is away"]).await;
        server.pause(false);
        world.logged(&["the directory's database is back"]).await;
        admin(&world, "POST", "groups", group("after")).await.is(201);
        assert_eq!(ids(&read(&world, "groups")), ["after", "before", "design"]);
        assert!(!world.log().join("\n").contains(PASSWORD));
    });
}

#[test]
fn a_directory_is_copied_from_a_file_to_a_server() {
    run(async {
        let server = Postgres::shared().await;
        let first = World::new(&Org::new().user("bob", "100000", Access::None));
        let file = first.data().join("directory.db");
        let copy = |from: &str, to: &str| {
            let mut copy = tollgate();
            copy.args(["directory", "copy", "--from", from]).env("TOLLGATE_COPY_TO", to);
            let output = copy.output().unwrap();
            let shown = [output.stdout, output.stderr].concat();
            let shown = String::from_utf8(shown).unwrap();
            assert!(!shown.contains(PASSWORD), "{shown}");
            (output.status.code().unwrap(), shown)
        };
        let from = format!("sqlite:{}", file.display());
        let url = server.database();
        let (code, shown) = copy(&from, &url);
        assert_eq!(code, 0, "{shown}");
        assert!(shown.starts_with("copied 1 orgs, ") && shown.ends_with("epoch 2\n"), "{shown}");
        let (code, shown) = copy(&from, &url);
        assert_eq!(code, 1, "{shown}");
        assert!(shown.contains("there is a directory already"), "{shown}");
        let (code, shown) = copy(&from, &format!("mysql://u:{PASSWORD}@h/d"));
        assert_eq!(code, 2, "{shown}");
        let redis = RedisServer::shared();
        let second = on(&url, &redis.database());
        assert_eq!(read(&second, "users"), read(&first, "users"));
    });
}

#[test]
fn f81_a_start_without_its_server_says_why_and_not_the_password() {
    run(async {
        let server = Postgres::shared().await;
        let world = World::new(&org());
        let absent = format!("{}_none", server.database());
        let mut serve = tollgate();
        serve.arg("serve").arg("-c").arg(world.config()).env("TOLLGATE__DIRECTORY__URL", absent);
        serve.env("TOLLGATE__DATA__DIR", world.data().with_file_name("other"));
        let output = serve.output().unwrap();
        let shown = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(1), "{shown}");
        assert!(shown.contains("directory.url postgres://***@127.0.0.1:"), "{shown}");
        assert!(shown.contains("does not exist") && !shown.contains(PASSWORD), "{shown}");
    });
}
