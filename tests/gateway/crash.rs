//! A gateway that is killed where it stands, and comes back with exact books.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::task::JoinSet;

use crate::support::world::micro;
use crate::support::{Access, Answer, Call, Client, Org, Script, World, run, until};

const USERS: [&str; 4] = ["alice", "bob", "carol", "dave"];
const CYCLES: usize = 20;
const CLIENTS: usize = 12;

/// Seats of every kind: one that lasts, one that is split into the pool, one without a seat, one
/// that is soon exhausted.
fn org() -> Org {
    Org::new()
        .pool("100000")
        .user("alice", "1000000", Access::None)
        .user("bob", "700.5", Access::Pool)
        .user("carol", "", Access::Pool)
        .user("dave", "40", Access::None)
}

/// A mix of what routes do: quoted and told usage, more and less than held, failures.
fn call(at: usize) -> Call {
    let user = USERS[at % USERS.len()];
    let call = match at % 7 {
        0 => Call::post("/v1/told", "{\"n\":3}").script(&Script::usage(1)),
        1 => Call::post("/v1/told", "{\"n\":2}").script(&Script::usage(5)),
        2 => Call::post("/v1/images", "{}").script(&Script::status(500)),
        3 => Call::post("/v1/images", "{\"n\":2}")
            .script(&Script { chunked: true, ..Script::default() }),
        4 => Call::post("/v1/images", "{\"n\":0.25}")
            .script(&Script { pad: 100_000, ..Script::default() }),
        _ => Call::post("/v1/images", "{\"n\":1.5}"),
    };
    call.user(user)
}

/// Load until the gateway is gone: every answer that arrived whole.
async fn load(world: &mut World, first: usize, kill_after: usize) -> Vec<Answer> {
    let (next, arrived) = (Arc::new(AtomicUsize::new(first)), Arc::new(AtomicUsize::new(0)));
    let killed = Arc::new(AtomicBool::new(false));
    let seen = world.backend.count();
    let mut clients = JoinSet::new();
    // Two that are certainly in flight when the gateway dies.
    let gated = Script::gate("never");
    for user in ["alice", "carol"] {
        let (call, gateway) =
            (Call::post("/v1/images", "{}").user(user).script(&gated), world.gateway());
        clients.spawn(async move {
            let answer = Client::connect(gateway).await.try_send(&call).await;
            assert!(answer.is_err(), "{answer:?}");
            Vec::new()
        });
    }
    let both = || world.backend.seen()[seen..].iter().filter(|seen| seen.is_gated()).count() == 2;
    until("two are in flight for good", || both().then_some(())).await;
    for _ in 0..CLIENTS {
        let (next, arrived) = (Arc::clone(&next), Arc::clone(&arrived));
        let (killed, gateway) = (Arc::clone(&killed), world.gateway());
        clients.spawn(async move {
            let mut answers = Vec::new();
            let mut client = Client::connect(gateway).await;
            loop {
                let call = call(next.fetch_add(1, Ordering::Relaxed));
                match client.try_send(&call).await {
                    Ok(answer) if answer.whole => {
                        arrived.fetch_add(1, Ordering::Relaxed);
                        answers.push(answer);
                    }
                    _ if killed.load(Ordering::Acquire) => return answers,
                    broken => panic!("before the kill: {broken:?}"),
                }
            }
        });
    }
    let enough = || (arrived.load(Ordering::Relaxed) >= kill_after).then_some(());
    until("enough answers arrived", enough).await;
    killed.store(true, Ordering::Release);
    world.kill();
    clients.join_all().await.into_iter().flatten().collect()
}

/// What is charged to each user, from the charges that the backend saw: seat, pool.
#[derive(Default)]
struct Sums {
    seen: usize,
    in_doubt: usize,
    seat: BTreeMap<&'static str, u64>,
    drawn: BTreeMap<&'static str, u64>,
}

impl Sums {
    /// Adds what the backend saw since the last time.
    fn add(&mut self, world: &World) {
        let seen = world.backend.seen();
        for seen in &seen[self.seen..] {
            let charge = world.charge(seen.charge().expect("forwarded without a charge"));
            let user = *USERS.iter().find(|user| charge["user"] == **user).unwrap();
            let flags = charge["flags"].as_array().unwrap();
            self.in_doubt += usize::from(flags.contains(&"in_doubt".into()));
            match charge["state"].as_str().unwrap() {
                "captured" => assert!(!flags.contains(&"in_doubt".into()), "{charge}"),
                "voided" => {
                    assert_eq!(charge["cost"], "0", "{charge}");
                    assert_eq!(charge["legs"].as_array().map(Vec::len), Some(0), "{charge}");
                }
                state => panic!("{state}: {charge}"),
            }
            for leg in charge["legs"].as_array().unwrap() {
                let sums = match leg["kind"].as_str().unwrap() {
                    "licence" => &mut self.seat,
                    "pool" => &mut self.drawn,
                    "overdraft" => continue,
                    kind => panic!("{kind}: {charge}"),
                };
                *sums.entry(user).or_default() += micro(&leg["amount"]);
            }
        }
        self.seen = seen.len();
    }
}

#[test]
fn f02_d36_d37_twenty_kills_under_load_leave_exact_books() {
    run(async {
        let mut world = World::new(&org());
        let mut sums = Sums::default();
        let mut whole = 0;
        for cycle in 0..CYCLES {
            // Never the same moment: right after the start, in the middle, after thousands.
            let kill_after = [1, 40, 333, 7, 120][cycle % 5] + cycle;
            let answers = load(&mut world, cycle * 1009, kill_after).await;
            assert!(answers.len() >= kill_after);
            world.verify();
            world.start();
            assert_eq!(world.metric("tollgate_holds_open", &[]), 0.0, "after a start");
            let mut ids: Vec<String> = Vec::new();
            for answer in &answers {
                if answer.header("tollgate-receipt").is_none() {
                    assert_eq!(answer.status, 402, "{answer:?}");
                    continue;
                }
                let receipt = answer.receipt();
                let charge = world.charge(&receipt["charge"]);
                match receipt["state"].as_str() {
                    // It was too big to wait for, but it came to its end: it is captured.
                    "held" => assert_eq!(charge["state"], "captured", "{charge}"),
                    state => assert_eq!(charge["state"], state, "{charge}"),
                }
                assert_eq!(charge["cost"], receipt["cost"].as_str(), "{charge}");
                ids.push(receipt["charge"].clone());
            }
            whole += ids.len();
            let answered = ids.len();
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), answered, "a charge was told twice");
            sums.add(&world);
            assert!(sums.in_doubt >= 2 * (cycle + 1), "what was in flight is in doubt");
            for user in USERS {
                let balance = world.balance(user);
                let sum = |of: &BTreeMap<&str, u64>| of.get(user).copied().unwrap_or(0);
                let stated =
                    (micro(&balance["seat"]["captured"]), micro(&balance["pool"]["drawn"]));
                assert_eq!(stated, (sum(&sums.seat), sum(&sums.drawn)), "{user} in cycle {cycle}");
                assert_eq!(balance["seat"]["held"], "0");
            }
            let drawn: u64 = sums.drawn.values().sum();
            assert_eq!(micro(&world.pool()["captured"]), drawn);
            world.verify();
        }
        assert!(whole > 1000, "{whole} answers are too few to mean anything");
    });
}

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
