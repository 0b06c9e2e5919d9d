//! Killed under load, plain and streamed, and started again on the same data. After each start
//! the ledger adds up, every answer that a client received whole is charged exactly once and for
//! what it is worth, and nothing is charged that the backend never saw.
//!
//! `TOLLGATE_CRASH_CYCLES` says how often; `tests/crash-campaign` sets it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use tokio::task::JoinSet;

use crate::support::world::micro;
use crate::support::{Access, Answer, Call, Client, Org, Script, Setup, World, run, until};

const USERS: [&str; 4] = ["alice", "bob", "carol", "dave"];
const CYCLES: usize = 10;
const CLIENTS: usize = 12;

/// Seats of every kind: one that lasts, one that is split into the pool, one without a seat, one
/// that is soon exhausted.
fn org() -> Org {
    Org::new()
        .pool("1000000")
        .user("alice", "10000000", Access::None)
        .user("bob", "700.5", Access::Pool)
        .user("carol", "", Access::Pool)
        .user("dave", "40", Access::None)
}

/// A mix of what routes do: quoted and told usage, more and less than held, failures, answers
/// that are too big to wait for, streams. And what each costs if it is answered: credits.
fn call(at: usize) -> (Call, &'static str) {
    let streamed = |usage: &str, pad| Script {
        chunked: true,
        pad,
        headers: vec![("x-usage".to_owned(), usage.to_owned())],
        ..Script::default()
    };
    let big = Script { pad: 100_000, ..Script::default() };
    let chunked = Script { chunked: true, ..Script::default() };
    let stream = || Call::post("/v1/streamed", "{}").header("x-count", "3");
    let (call, cost) = match at % 9 {
        0 => (Call::post("/v1/told", "{\"n\":3}").script(&Script::usage(1)), "1"),
        1 => (Call::post("/v1/told", "{\"n\":2}").script(&Script::usage(5)), "5"),
        2 => (Call::post("/v1/images", "{}").script(&Script::status(500)), "0"),
        3 => (Call::post("/v1/images", "{\"n\":2}").script(&chunked), "2"),
        4 => (Call::post("/v1/images", "{\"n\":0.25}").script(&big), "0.25"),
        5 => (stream().script(&streamed("2", 200_000)), "2"),
        6 => (stream().script(&streamed("0.5", 10)), "0.5"),
        _ => (Call::post("/v1/images", "{\"n\":1.5}"), "1.5"),
    };
    (call.user(USERS[at % USERS.len()]), cost)
}

/// Three that are certainly in flight when the gateway dies: two that wait for their answer, one
/// in the middle of its body.
fn endless(world: &World, clients: &mut JoinSet<Vec<(Answer, &'static str)>>) {
    let middle = Script { half: Some("never".to_owned()), chunked: true, ..Script::default() };
    let middle = Script { pad: 200_000, ..middle };
    let gated = Script::gate("never");
    for (user, script) in [("alice", &gated), ("carol", &gated), ("alice", &middle)] {
        let call = Call::post("/v1/images", "{}").user(user).script(script);
        let gateway = world.gateway();
        clients.spawn(async move {
            let answer = Client::connect(gateway).await.try_send(&call).await;
            assert!(!answer.as_ref().is_ok_and(|answer| answer.whole), "{answer:?}");
            Vec::new()
        });
    }
}

/// Load until the gateway is gone: every answer that arrived whole, with what it is worth.
async fn load(world: &mut World, first: usize, kill_after: usize) -> Vec<(Answer, &'static str)> {
    let (next, arrived) = (Arc::new(AtomicUsize::new(first)), Arc::new(AtomicUsize::new(0)));
    let killed = Arc::new(AtomicBool::new(false));
    let seen = world.backend.count();
    let mut clients = JoinSet::new();
    endless(world, &mut clients);
    until("three are in flight for good", || {
        (world.backend.seen_from(seen).len() >= 3).then_some(())
    })
    .await;
    for _ in 0..CLIENTS {
        let (next, arrived) = (Arc::clone(&next), Arc::clone(&arrived));
        let (killed, gateway) = (Arc::clone(&killed), world.gateway());
        clients.spawn(async move {
            let mut answers = Vec::new();
            let mut client = Client::connect(gateway).await;
            loop {
                let (call, cost) = call(next.fetch_add(1, Ordering::Relaxed));
                match client.try_send(&call).await {
                    Ok(answer) if answer.whole => {
                        arrived.fetch_add(1, Ordering::Relaxed);
                        answers.push((answer, cost));
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
    ids: BTreeSet<String>,
    in_doubt: usize,
    seat: BTreeMap<&'static str, u64>,
    drawn: BTreeMap<&'static str, u64>,
}

impl Sums {
    /// Adds what the backend saw since the last time.
    fn add(&mut self, world: &World) {
        let seen = world.backend.seen_from(self.seen);
        self.seen += seen.len();
        for seen in seen {
            let id = seen.charge().expect("forwarded without a charge").to_owned();
            let charge = world.charge(&id);
            assert!(self.ids.insert(id), "forwarded twice: {charge}");
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
    }

    /// Compares with what balances say: nothing but what the backend saw is charged.
    fn compare(&self, world: &World, cycle: usize) {
        for user in USERS {
            let balance = world.balance(user);
            let sum = |of: &BTreeMap<&str, u64>| of.get(user).copied().unwrap_or(0);
            let stated = (micro(&balance["seat"]["captured"]), micro(&balance["pool"]["drawn"]));
            assert_eq!(stated, (sum(&self.seat), sum(&self.drawn)), "{user} in cycle {cycle}");
            assert_eq!(balance["seat"]["held"], "0");
        }
        let drawn: u64 = self.drawn.values().sum();
        assert_eq!(micro(&world.pool()["captured"]), drawn);
    }
}

/// Checks the answers that arrived whole: each is charged, once, what it is worth. Returns how
/// many were charges.
fn check_answers(
    world: &World,
    answers: &[(Answer, &str)],
    charged: &mut BTreeSet<String>,
) -> usize {
    let before = charged.len();
    let mut count = 0;
    for (answer, cost) in answers {
        if answer.header("tollgate-receipt").is_none() {
            assert_eq!(answer.status, 402, "{answer:?}");
            continue;
        }
        count += 1;
        let receipt = answer.receipt();
        let charge = world.charge(&receipt["charge"]);
        let state = if *cost == "0" { "voided" } else { "captured" };
        assert_eq!(charge["state"], state, "{charge}");
        assert_eq!(charge["cost"], *cost, "{charge}");
        // What was too big to wait for came with its receipt before its capture.
        if receipt["state"] != "held" {
            assert_eq!((&*receipt["state"], &*receipt["cost"]), (state, *cost), "{charge}");
        }
        charged.insert(receipt["charge"].clone());
    }
    assert_eq!(charged.len() - before, count, "a charge was told twice");
    count
}

fn campaign(cycles: usize, setup: Setup) {
    run(async {
        let begun = Instant::now();
        let mut world = World::with(setup, &org());
        let (mut sums, mut charged, mut whole) = (Sums::default(), BTreeSet::new(), 0);
        for cycle in 0..cycles {
            // Never the same moment: right after the start, in the middle, after hundreds.
            let kill_after = [1, 40, 333, 7, 120][cycle % 5] + cycle % 50;
            let answers = load(&mut world, cycle * 1009, kill_after).await;
            assert!(answers.len() >= kill_after);
            world.verify();
            world.start();
            assert_eq!(world.metric("tollgate_holds_open", &[]), 0.0, "after a start");
            whole += check_answers(&world, &answers, &mut charged);
            sums.add(&world);
            assert!(sums.in_doubt >= 3 * (cycle + 1), "what was in flight is in doubt");
            assert!(charged.is_subset(&sums.ids), "an answer that the backend never gave");
            sums.compare(&world, cycle);
            world.verify();
            if (cycle + 1) % 10 == 0 {
                let seconds = begun.elapsed().as_secs();
                let (cycle, doubt) = (cycle + 1, sums.in_doubt);
                eprintln!("{cycle} kills, {whole} whole answers, {doubt} in doubt, {seconds} s");
            }
        }
        assert!(whole > 50 * cycles, "{whole} answers are too few to mean anything");
    });
}

#[test]
fn f02_f03_d36_d37_kills_under_load_leave_exact_books() {
    let cycles =
        std::env::var("TOLLGATE_CRASH_CYCLES").map_or(CYCLES, |text| text.parse().unwrap());
    campaign(cycles, Setup::default());
}
