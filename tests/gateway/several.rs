//! Three gateways, one truth: books in Redis, directory and archive in PostgreSQL.

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use tokio::task::JoinSet;

use crate::support::fault_proxy::FaultProxy;
use crate::support::postgres::Postgres;
use crate::support::redis::RedisServer;
use crate::support::world::{TOKEN, in_redis, tollgate};
use crate::support::{
    Access, Answer, Call, Client, Org, PATIENCE, Script, Setup, World, burst_over, run, until,
};

/// What several gateways share.
pub struct Shared {
    pub redis: Arc<RedisServer>,
    pub environment: Vec<(String, String)>,
    _postgres: Arc<Postgres>,
}

impl Shared {
    pub async fn new() -> Self {
        Self::on(RedisServer::shared()).await
    }

    pub async fn on(redis: Arc<RedisServer>) -> Self {
        let postgres = Postgres::shared().await;
        let mut environment = in_redis(&redis.database()).to_vec();
        let mut set = |key: &str, value: &str| {
            environment.push((format!("TOLLGATE__{key}"), value.to_owned()));
        };
        set("DIRECTORY__URL", &postgres.database());
        set("BOOKS__SHARDS", "4");
        set("BOOKS__OWNER_TIMEOUT", "2s");
        Self { redis, environment, _postgres: postgres }
    }

    fn setup(&self) -> Setup {
        Setup { environment: self.environment.clone(), ..Setup::default() }
    }

    /// So many gateways with this org.
    fn gateways(&self, count: usize, org: &Org) -> Vec<World> {
        (0..count).map(|_| World::with(self.setup(), org)).collect()
    }
}

fn image() -> Call {
    Call::post("/v1/images", "{}").user("alice")
}

fn admin(method: &'static str, path: &str, body: &serde_json::Value) -> Call {
    Call::with(method, &format!("/v1/orgs/acme/{path}"), body.to_string())
        .header("content-type", "application/json")
        .key(TOKEN)
}

async fn ask_admin(world: &World, call: &Call) -> Answer {
    Client::connect(world.admin_address()).await.send(call).await
}

#[test]
fn d24_f22_three_gateways_admit_exactly_k_for_seat_and_pool() {
    run(async {
        let shared = Shared::new().await;
        // 600 credits, and 100 Operations for 200 images more.
        let org = Org::new().pool("100").user("alice", "600", Access::Pool);
        let worlds = shared.gateways(3, &org);
        let to: Vec<_> = worlds.iter().map(World::gateway).collect();
        let answers = burst_over(&to, (0..2000).map(|_| image()).collect(), 90).await;
        let (made, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|a| a.status == 200);
        assert_eq!((made.len(), refused.len()), (800, 1200));
        for answer in refused {
            answer.refused(402, "pool_exhausted");
        }
        let forwarded: usize = worlds.iter().map(|world| world.backend.count()).sum();
        assert_eq!(forwarded, 800);
        for world in &worlds {
            world.settled().await;
            world.seat("alice", "600", "0", "100");
            assert_eq!(world.pool()["available"], "0");
        }
        // Each charge is known at each gateway, whoever made it.
        for (at, answer) in made.iter().enumerate().step_by(40) {
            assert_eq!(worlds[at % 3].charge(&answer.told("charge"))["state"], "captured");
        }
    });
}

/// A seat near its end that is held for more than is used is never the same twice: what is planned on
/// it at one gateway is overtaken by what the others hold and give back.
#[test]
fn d24_d25_whoever_shares_a_seat_that_does_not_hold_still_is_served() {
    run(async {
        let shared = Shared::new().await;
        let org = Org::new().pool("1000000").user("alice", "100", Access::Pool);
        let worlds = shared.gateways(3, &org);
        let to: Vec<_> = worlds.iter().map(World::gateway).collect();
        let unused = Call::post("/v1/told", "{\"n\":3}").user("alice").script(&Script::usage(0));
        let began = Instant::now();
        let answers = burst_over(&to, vec![unused; 2000], 64).await;
        let contended = answers.iter().filter(|answer| answer.status == 503).count();
        let posts = |result: &str| -> f64 {
            let labels = ["operation=\"hold\"", result];
            let metric = "tollgate_books_duration_seconds_count";
            worlds.iter().map(|world| world.metric(metric, &labels)).sum()
        };
        let (done, short) = (posts("done"), posts("short"));
        println!("{contended} contended, {done} holds, {short} overtaken, {:?}", began.elapsed());
        for answer in &answers {
            answer.is(200).tells(&[("state", "captured"), ("cost", "0")]);
        }
        for world in &worlds {
            world.settled().await;
            world.seat("alice", "0", "100", "0");
        }
    });
}

#[test]
fn d09_d13_what_is_taken_at_one_gateway_pays_at_none_within_a_second() {
    run(async {
        let shared = Shared::new().await;
        let org = Org::new().pool("1000").user("alice", "5", Access::Pool);
        let worlds = shared.gateways(3, &org);
        for _ in 0..5 {
            worlds[0].send(&image()).await.is(200);
        }
        // From the pool at all of them.
        for world in &worlds {
            world.send(&image()).await.is(200);
        }
        let off = admin("PATCH", "users/alice", &json!({ "suspended": true }));
        ask_admin(&worlds[0], &off).await.is(200);
        let began = Instant::now();
        for world in &worlds {
            while world.send(&image()).await.status == 200 {
                assert!(began.elapsed() < PATIENCE);
            }
        }
        println!("refused by all of them after {:?}", began.elapsed());
    });
}

#[test]
fn d35_a_key_of_one_gateway_is_known_to_the_others() {
    run(async {
        let shared = Shared::new().await;
        let worlds = shared.gateways(3, &Org::new().user("alice", "10", Access::None));
        let keyed = Call::post("/v1/keyed", "{}").user("alice").header("idempotency-key", "once");
        let first = worlds[0].send(&keyed).await;
        let charge = first.is(200).told("charge");
        for world in &worlds[1..] {
            let again = world.send(&keyed).await;
            assert_eq!(again.is(200).told("charge"), charge);
            assert_eq!(again.body, first.body);
        }
        worlds[2].seat("alice", "1", "9", "0");
    });
}

#[test]
fn d32_a_charge_is_given_back_once_whoever_is_asked() {
    run(async {
        let shared = Shared::new().await;
        let worlds = shared.gateways(3, &Org::new().user("alice", "10", Access::None));
        for _ in 0..5 {
            let charge = worlds[0].send(&image()).await.is(200).told("charge");
            let path = format!("charges/{charge}/refund");
            let refund = admin("POST", &path, &json!({ "reason": "a test" }));
            let mut asking = JoinSet::new();
            for world in &worlds {
                let (to, refund) = (world.admin_address(), refund.clone());
                asking.spawn(async move { Client::connect(to).await.send(&refund).await.status });
            }
            let mut answers = asking.join_all().await;
            answers.sort_unstable();
            assert_eq!(answers, [201, 409, 409]);
        }
        // Five were captured, and five given back.
        let balance = worlds[1].balance("alice");
        assert_eq!(balance["seat"]["available"], "10", "{balance}");
    });
}

/// Two gateways whose requests of this kind get no farther, and one that is not hindered.
#[test]
fn f26_what_an_administrator_was_told_503_of_is_done_once_however_often_it_is_asked_for() {
    run(async {
        let mut shared = Shared::new().await;
        let mut set = |key: &str, value: &str| {
            shared.environment.push((format!("TOLLGATE__BOOKS__{key}"), value.to_owned()));
        };
        // Nobody is given up here.
        set("OWNER_TIMEOUT", "10m");
        let org = Org::new().user("alice", "10", Access::None);
        let url = shared.environment.iter().find(|(key, _)| key == "TOLLGATE__BOOKS__URL");
        let url = url.unwrap().1.clone();
        let proxies = [(); 2].map(|()| FaultProxy::start(shared.redis.port, 0));
        let free = World::with(shared.setup(), &org);
        let slow = proxies.each_ref().map(|proxy| {
            let mut setup = shared.setup();
            let port = [shared.redis.port, proxy.port].map(|port| format!(":{port}/"));
            let url = url.replace(&port[0], &port[1]);
            let set = [("URL", url), ("TIMEOUT", "1s".to_owned())];
            let named = |(key, value)| (format!("TOLLGATE__BOOKS__{key}"), value);
            setup.environment.extend(set.map(named));
            World::with(setup, &org)
        });
        let charge = free.send(&image()).await.is(200).told("charge");
        let adjust = |amount: &str, reason: &str| {
            let body = json!({ "account": "licence", "user": "alice", "amount": amount,
                "reason": reason });
            admin("POST", "adjustments", &body).header("idempotency-key", reason)
        };
        let refund = json!({ "reason": "kept-back" });
        let refund = admin("POST", &format!("charges/{charge}/refund"), &refund);
        let asked = [adjust("5", "kept-back"), refund];
        for ((world, proxy), call) in slow.iter().zip(&proxies).zip(&asked) {
            proxy.keep_requests("kept-back");
            for _ in 0..2 {
                ask_admin(world, call).await.refused(503, "books_unavailable");
            }
            assert!(proxy.kept() > 0);
        }
        for call in &asked {
            ask_admin(&free, call).await.is(201);
        }
        free.seat("alice", "1", "15", "0");
        for ((world, proxy), last) in slow.iter().zip(&proxies).zip(["one", "two"]) {
            proxy.release();
            // What was asked before is done before, if it is done.
            let began = Instant::now();
            while ask_admin(world, &adjust("1", last)).await.status != 201 {
                assert!(began.elapsed() < PATIENCE);
            }
        }
        free.seat("alice", "1", "17", "0");
        let made = free.admin("/v1/orgs/acme/adjustments").1;
        assert_eq!(made["items"].as_array().unwrap().len(), 4, "{made}");
        // Whoever asks for the same is told the same; what was given back is given back.
        let told = ask_admin(&slow[0], &asked[0]).await;
        assert_eq!(told.is(201).json()["amount"], "5");
        ask_admin(&slow[1], &asked[1]).await.refused(409, "conflict");
        free.seat("alice", "1", "17", "0");
    });
}

#[test]
fn d36_f36_holds_of_a_gateway_that_is_gone_are_resolved_by_another() {
    run(async {
        let shared = Shared::new().await;
        let mut worlds = shared.gateways(2, &Org::new().user("alice", "10", Access::None));
        let hanging = image().script(&Script { gate: Some("never".into()), ..Script::default() });
        let doubtful = Call::post("/v1/doubt", "{}").user("alice");
        let doubtful = doubtful.script(&Script { gate: Some("never".into()), ..Script::default() });
        let mut asking = JoinSet::new();
        for call in [hanging, doubtful] {
            let to = worlds[0].gateway();
            asking.spawn(async move { Client::connect(to).await.try_send(&call).await.is_ok() });
        }
        let gone = &worlds[0];
        until("both are forwarded", || (gone.backend.count() == 2).then_some(())).await;
        worlds[0].kill();
        // One says `in_doubt = "capture"`.
        let other = &worlds[1];
        let settled = || (other.balance("alice")["seat"]["held"] == "0").then_some(());
        until("another one resolves them", settled).await;
        other.seat("alice", "1", "9", "0");
        // The one that is gone comes back, and finds nothing to do.
        worlds[0].start();
        worlds[0].seat("alice", "1", "9", "0");
        worlds[0].send(&image()).await.is(200);
    });
}

#[test]
fn f36_a_gateway_that_was_paused_goes_on_and_its_holds_were_resolved_once() {
    run(async {
        let shared = Shared::new().await;
        let worlds = shared.gateways(2, &Org::new().user("alice", "10", Access::None));
        let script = Script { gate: Some("later".into()), ..Script::default() };
        let (to, call) = (worlds[0].gateway(), image().script(&script));
        let mut asking = JoinSet::new();
        asking.spawn(async move { Client::connect(to).await.send(&call).await });
        let paused = &worlds[0];
        until("it is forwarded", || (paused.backend.count() == 1).then_some(())).await;
        worlds[0].signal("STOP");
        let other = &worlds[1];
        let free = || (other.balance("alice")["seat"]["held"] == "0").then_some(());
        until("another one resolves it", free).await;
        worlds[0].signal("CONT");
        worlds[0].backend.open("later");
        // It was delivered, so it is charged: late, and once.
        let answer = asking.join_next().await.unwrap().unwrap();
        let charge = answer.is(200).told("charge");
        let captured =
            || (other.charge(&charge)["state"] == "captured").then(|| other.charge(&charge));
        let document = until("it is captured late", captured).await;
        assert!(document.to_string().contains("late"), "{document}");
        for world in &worlds {
            world.seat("alice", "1", "9", "0");
        }
        worlds[0].send(&image()).await.is(200);
    });
}

#[test]
fn d30_f25_a_hold_whose_capture_redis_is_silent_to_is_told_to_be_held_and_captured_once() {
    run(async {
        let mut shared = Shared::on(Arc::new(RedisServer::start())).await;
        let proxy = FaultProxy::start(shared.redis.port, 0);
        let url = format!("redis://127.0.0.1:{}", proxy.port);
        for (key, value) in [("SETTLE_TIMEOUT", "300ms"), ("OWNER_TIMEOUT", "10m"), ("URL", &url)] {
            shared.environment.push((format!("TOLLGATE__BOOKS__{key}"), value.to_owned()));
        }
        let world = shared.gateways(1, &Org::new().user("alice", "10", Access::None)).remove(0);
        let call = |path: &str, body: serde_json::Value| {
            Call::post(path, body.to_string())
                .key(crate::support::org::STUDIO)
                .header("content-type", "application/json")
        };
        let hold = json!({ "user": "alice", "feature": "image", "quantity": 4 });
        let held = world.send(&call("/.tollgate/v1/holds", hold)).await.is(201).json();
        let charge = held["charge"].as_str().unwrap();
        proxy.keep_requests("tollgate_1_settle");
        let path = format!("/.tollgate/v1/holds/{charge}/capture");
        let told = world.send(&call(&path, json!({ "quantity": 6 }))).await.is(200).json();
        assert_eq!((told["state"].as_str(), proxy.kept()), (Some("held"), 1), "{told}");
        proxy.release();
        let captured = || (world.charge(charge)["state"] == "captured").then_some(());
        until("it is captured", captured).await;
        world.seat("alice", "6", "4", "0");
    });
}

#[test]
fn d30_f25_an_answer_whose_capture_redis_is_silent_to_is_passed_on_and_charged_once() {
    run(async {
        let server = Arc::new(RedisServer::start_with(&["--appendonly", "yes"]));
        let mut shared = Shared::on(server).await;
        shared.environment.push(("TOLLGATE__BOOKS__SETTLE_TIMEOUT".into(), "300ms".into()));
        let mut worlds = shared.gateways(2, &Org::new().user("alice", "10", Access::None));
        let script = Script { gate: Some("later".into()), ..Script::default() };
        let (to, call) = (worlds[0].gateway(), image().script(&script));
        let mut asking = JoinSet::new();
        asking.spawn(async move { Client::connect(to).await.send(&call).await });
        until("it is forwarded", || (worlds[0].backend.count() == 1).then_some(())).await;
        shared.redis.pause(true);
        worlds[0].backend.open("later");
        let answer = asking.join_next().await.unwrap().unwrap();
        let answer = answer.is(200);
        assert_eq!(answer.told("state"), "held");
        let charge = answer.told("charge");
        // Its gateway is gone too, before Redis is heard of.
        worlds[0].kill();
        shared.redis.pause(false);
        worlds[0].start();
        let captured = || (worlds[1].charge(&charge)["state"] == "captured").then_some(());
        until("it is captured", captured).await;
        for world in &worlds {
            world.seat("alice", "1", "9", "0");
        }
    });
}

#[test]
fn f25_while_redis_is_away_nothing_is_forwarded_and_it_goes_on_by_itself() {
    run(async {
        let server = Arc::new(RedisServer::start_with(&["--appendonly", "yes"]));
        let mut shared = Shared::on(server).await;
        shared.environment.push(("TOLLGATE__BOOKS__TIMEOUT".to_owned(), "2s".to_owned()));
        let worlds = shared.gateways(2, &Org::new().user("alice", "1000", Access::None));
        for world in &worlds {
            world.send(&image()).await.is(200);
        }
        shared.redis.pause(true);
        for world in &worlds {
            world.send(&image()).await.refused(503, "books_unavailable");
            assert_eq!(world.backend.count(), 1);
        }
        shared.redis.pause(false);
        let began = Instant::now();
        for world in &worlds {
            while world.send(&image()).await.status != 200 {
                assert!(began.elapsed() < PATIENCE);
            }
        }
        println!("served again after {:?}", began.elapsed());
        worlds[0].settled().await;
        let forwarded: usize = worlds.iter().map(|world| world.backend.count()).sum();
        worlds[1].seat("alice", &forwarded.to_string(), &(1000 - forwarded).to_string(), "0");
    });
}

#[test]
fn f24_other_books_do_not_give_out_a_directory_s_credits_once_more() {
    run(async {
        let shared = Shared::new().await;
        let org = Org::new().user("alice", "10", Access::None);
        let worlds = shared.gateways(1, &org);
        let start = |environment: &[(String, String)]| {
            let dir = tempfile::tempdir().unwrap();
            let mut serve = tollgate();
            serve.arg("serve").arg("-c").arg(worlds[0].config());
            serve.envs(environment.iter().cloned());
            serve.env("TOLLGATE__DATA__DIR", dir.path());
            let output = serve.output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            String::from_utf8(output.stderr).unwrap()
        };
        let but = |key: &str, value: Option<&str>| {
            let mut environment = shared.environment.clone();
            environment.retain(|(name, _)| name != &format!("TOLLGATE__{key}"));
            environment.extend(value.map(|value| (format!("TOLLGATE__{key}"), value.to_owned())));
            environment
        };
        // Embedded ones.
        let mut embedded = but("BOOKS__ENGINE", None);
        embedded.retain(|(key, _)| key != "TOLLGATE__BOOKS__URL");
        let told = start(&embedded);
        assert!(told.contains("this directory's books are in Redis"), "{told}");
        // Another Redis, which has nothing of them.
        let told = start(&but("BOOKS__URL", Some(&shared.redis.database())));
        assert!(told.contains("shard 0 is gone"), "{told}");
        // Another number of shards.
        let told = start(&but("BOOKS__SHARDS", Some("5")));
        assert!(told.contains("were made with 4"), "{told}");
        // Another directory, whose books would be in the same place.
        let postgres = Postgres::shared().await;
        let told = start(&but("DIRECTORY__URL", Some(&postgres.database())));
        assert!(told.contains("belongs to the books"), "{told}");
        // And two with embedded books.
        let mut first = embedded.clone();
        first.retain(|(key, _)| key != "TOLLGATE__DIRECTORY__URL");
        let url = ("TOLLGATE__DIRECTORY__URL".to_owned(), postgres.database());
        first.push(url.clone());
        first.push(("TOLLGATE__BOOKS__ENGINE".to_owned(), "embedded".to_owned()));
        let one = World::with(Setup { environment: first.clone(), ..Setup::default() }, &org);
        one.send(&image()).await.is(200);
        let told = start(&first);
        assert!(told.contains("embedded books of another gateway ("), "{told}");
        let name = told.split("another gateway (").nth(1).unwrap().split(')').next().unwrap();
        let mut release = tollgate();
        release.args(["directory", "release", "--books", name]).env("TOLLGATE_DIRECTORY", url.1);
        let output = release.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        World::with(Setup { environment: first, ..Setup::default() }, &org);
    });
}
