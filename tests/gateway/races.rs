//! Two that want to end one hold: whoever is first does, and everybody is told the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::support::world::{TOKEN, micro};
use crate::support::{Access, Answer, Call, Client, Org, Script, World, run, until};

const BATCHES: usize = 40;
const AT_ONCE: usize = 8;

/// Which of the two goes first; `None` lets them race.
type First = Option<&'static str>;

fn void(charge: &str) -> Call {
    Call::post(&format!("/v1/orgs/acme/holds/{charge}/void"), "").key(TOKEN)
}

/// What is asked: as quoted, less than held, and more, so that the capture takes from the seat
/// and the pool once more (D31).
fn ask(at: usize, gate: &str) -> Call {
    let usage = [None, Some(1), Some(5)][at % 3];
    let script = Script { gate: Some(gate.to_owned()), ..Script::default() };
    let (path, script) = match usage {
        None => ("/v1/images", script),
        Some(usage) => ("/v1/told", Script { gate: script.gate, ..Script::usage(usage) }),
    };
    Call::post(path, "{\"n\":3}").user("alice").script(&script)
}

/// Holds that an administrator voids while their backend answers: each answer, and the void's.
async fn batch(world: &World, n: usize, first: First) -> Vec<(Answer, Answer)> {
    let (gateway, admin, gate) = (world.gateway(), world.admin_address(), format!("gate-{n}"));
    let before = world.backend.count();
    let mut asking = JoinSet::new();
    for at in 0..AT_ONCE {
        let call = ask(n + at, &gate);
        asking.spawn(async move { Client::connect(gateway).await.send(&call).await });
    }
    until("all are forwarded", || (world.backend.count() == before + AT_ONCE).then_some(())).await;
    let mut answers = Vec::new();
    if first == Some("captured") {
        world.backend.open(&gate);
        answers = std::mem::take(&mut asking).join_all().await;
    }
    let start = Arc::new(Barrier::new(AT_ONCE + 1));
    let mut voiding = JoinSet::new();
    for (at, seen) in world.backend.seen_from(before).into_iter().enumerate() {
        let (charge, start) = (seen.charge().unwrap().to_owned(), Arc::clone(&start));
        voiding.spawn(async move {
            let mut administrator = Client::connect(admin).await;
            start.wait().await;
            // Nearer to the answer, which takes a longer way, or behind it.
            for _ in 0..(n + at) % 7 * 10 {
                tokio::task::yield_now().await;
            }
            let voided = administrator.send(&void(&charge)).await;
            (charge, voided)
        });
    }
    start.wait().await;
    if first.is_none() {
        world.backend.open(&gate);
    }
    let mut voided: BTreeMap<String, Answer> = voiding.join_all().await.into_iter().collect();
    world.backend.open(&gate);
    answers.extend(asking.join_all().await);
    let both = answers.into_iter().map(|answer| {
        let voided = voided.remove(&answer.told("charge")).expect("a charge that was not asked");
        (answer, voided)
    });
    both.collect()
}

#[test]
fn f23_of_a_void_and_a_capture_that_race_one_wins_and_all_say_the_same() {
    run(async {
        let org = Org::new().pool("10000").user("alice", "300", Access::Pool);
        let mut world = World::new(&org);
        let mut charged = BTreeMap::new();
        for n in 0..BATCHES {
            // The first rounds have a winner for sure, so that both are always seen.
            let first = [Some("voided"), Some("captured"), None][n.min(2)];
            for (answer, voided) in batch(&world, n, first).await {
                let receipt = answer.is(200).receipt();
                let state = receipt["state"].as_str();
                assert!(first.is_none_or(|first| first == state), "{first:?}: {receipt:?}");
                match state {
                    "voided" => assert_eq!(voided.is(200).json()["state"], "voided"),
                    "captured" => drop(voided.refused(409, "conflict")),
                    state => panic!("{state}: {receipt:?}"),
                }
                charged.insert(receipt["charge"].clone(), receipt);
            }
        }
        assert_eq!(charged.len(), BATCHES * AT_ONCE);
        world.settled().await;
        // What was told, what each charge says, and what the balances say, also when they are
        // made of the records alone.
        for again in [true, false] {
            let (mut seat, mut pool) = (0, 0);
            for (id, receipt) in &charged {
                let charge = world.charge(id);
                assert_eq!(
                    (&charge["state"], &charge["cost"]),
                    (&receipt["state"].clone().into(), &receipt["cost"].clone().into(),)
                );
                for leg in charge["legs"].as_array().unwrap() {
                    match leg["kind"].as_str().unwrap() {
                        "licence" => seat += micro(&leg["amount"]),
                        "pool" => pool += micro(&leg["amount"]),
                        kind => panic!("{kind}: {charge}"),
                    }
                }
                assert_eq!(charge["legs"] == serde_json::json!([]), receipt["state"] == "voided");
            }
            let balance = world.balance("alice");
            assert_eq!(balance["seat"]["held"], "0");
            assert_eq!(micro(&balance["seat"]["captured"]), seat);
            assert_eq!(micro(&balance["pool"]["drawn"]), pool);
            world.verify();
            if again {
                world.kill();
                world.start();
            }
        }
    });
}
