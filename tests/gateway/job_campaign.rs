//! Jobs by the thousand, with every ending there is, polls, reports, and a gateway and a backend
//! that are killed again and again: no hold stays open, and what is charged is what the backend
//! made and somebody could see.
//!
//! `TOLLGATE_JOBS` says how many; `tests/job-campaign` sets it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::jobs::{Jobs, poll};
use crate::support::org::STUDIO;
use crate::support::sample::{Sample, free_address};
use crate::support::world::micro;
use crate::support::{Access, Answer, Call, Client, Org, World, run, until};

const JOBS: usize = 300;
const CLIENTS: usize = 32;
/// After how many jobs the gateway is killed, and the backend.
const KILLS: [usize; 2] = [70, 200];
const MOST_KILLS: usize = 25;
const USERS: [&str; 2] = ["alice", "bob"];
/// How far the planned end of a job and the backend's death must be apart to tell which came first.
const SLACK: Duration = Duration::from_millis(500);

/// A seat that lasts, and one that is soon split into the pool.
fn org() -> Org {
    Org::new().pool("10000000").user("alice", "10000000", Access::None).user(
        "bob",
        "50.5",
        Access::Pool,
    )
}

/// What becomes of a job, if its backend lives.
struct Plan {
    end: &'static str,
    ms: u64,
    sick: usize,
    reports: usize,
    used: usize,
    polls: usize,
    user: &'static str,
}

impl Plan {
    /// The same for the same number, and nothing like that of the next one.
    fn of(at: usize) -> Self {
        let mut bits = (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut below = |bound: u64| {
            bits = (bits ^ (bits >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits ^= bits >> 32;
            bits % bound
        };
        let end = match below(20) {
            0..13 => "succeeded",
            13..17 => "failed",
            17..19 => "lost",
            _ => "never",
        };
        Self {
            end,
            ms: below(800),
            sick: below(3) as usize,
            reports: below(4) as usize,
            used: below(9) as usize,
            polls: below(5) as usize,
            user: USERS[below(2) as usize],
        }
    }

    fn call(&self, at: usize) -> Call {
        let Self { end, ms, sick, reports, used, user, .. } = self;
        let plan = format!("end={end}, ms={ms}, sick={sick}, reports={reports}");
        Call::post("/v1/videos", "{\"seconds\":5}")
            .user(user)
            .header("x-sample-job", &plan)
            .header("x-sample-usage", &format!("{{\"seconds\":{used}}}"))
            .header("idempotency-key", &format!("key-{at}"))
    }
}

/// A job that was submitted.
struct Made {
    at: usize,
    charge: String,
    /// When it was asked for first, and when it was answered: it was made in between.
    began: Instant,
    answered: Instant,
}

/// One request on a connection of its own; `None` where its answer did not come, or not whole.
async fn send(gateway: SocketAddr, call: &Call) -> Option<Answer> {
    let mut client = Client::try_connect(gateway).await?;
    client.try_send(call).await.ok().filter(|answer| answer.whole)
}

/// Submits one, again and again until there is an answer, and then polls it for a while.
async fn one(gateway: SocketAddr, at: usize) -> Made {
    let plan = Plan::of(at);
    let call = plan.call(at);
    let began = Instant::now();
    let answer = loop {
        if let Some(answer) = send(gateway, &call).await {
            match answer.status {
                200 => break answer,
                // In flight, its backend is down, or the gateway drains.
                409 | 502 | 503 => {}
                _ => panic!("{answer:?}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let job = answer.json()["id"].as_str().unwrap().to_owned();
    let made = Made { at, charge: answer.told("charge"), began, answered: Instant::now() };
    for _ in 0..plan.polls {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let Some(answer) = send(gateway, &poll(&job)).await else { continue };
        let over = answer.status == 200
            && matches!(answer.json()["status"].as_str(), Some("succeeded" | "failed"));
        if over {
            let call = Call::get(&format!("/.tollgate/v1/charges/{}", made.charge)).key(STUDIO);
            if let Some(charge) = send(gateway, &call).await.filter(|answer| answer.status == 200) {
                assert_ne!(charge.json()["state"], "held", "an end was told that is not settled");
            }
            break;
        }
    }
    made
}

/// When the backend died.
type Deaths = Vec<Instant>;

/// Makes all of them, and kills the gateway and the backend in between.
async fn load(world: &mut World, sample: &mut Sample, count: usize) -> (Vec<Made>, Deaths) {
    let (next, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let gateway = world.gateway();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (next, done) = (Arc::clone(&next), Arc::clone(&done));
        clients.spawn(async move {
            let mut made = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= count {
                    return made;
                }
                made.push(one(gateway, at).await);
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let mut steps: Vec<(usize, bool)> = Vec::new();
    for (every, is_backend) in KILLS.into_iter().zip([false, true]) {
        let every = every.max(count / MOST_KILLS);
        steps.extend((1..count.div_ceil(every)).map(|kill| (kill * every, is_backend)));
    }
    steps.sort_unstable();
    let (mut deaths, mut minute) = (Vec::new(), 0);
    for (after, is_backend) in steps {
        while done.load(Ordering::Relaxed) < after && !clients.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        if is_backend {
            sample.kill();
            deaths.push(Instant::now());
            tokio::time::sleep(Duration::from_millis(30)).await;
            sample.go_on();
        } else {
            minute += 1;
            world.crash_and_move_clock(&format!("2026-11-20T12:{minute:02}:00Z"));
        }
    }
    (clients.join_all().await.into_iter().flatten().collect(), deaths)
}

/// How a job must have ended; two ways where the backend died about then.
fn expected(made: &Made, deaths: &Deaths) -> Vec<(&'static str, String)> {
    let plan = Plan::of(made.at);
    let held = || ("expired", "0".to_owned());
    let end = match plan.end {
        "succeeded" => ("captured", plan.used.to_string()),
        "failed" => ("voided", "0".to_owned()),
        _ => return vec![held()],
    };
    let time = Duration::from_millis(plan.ms);
    let mut near = deaths.iter().filter(|death| **death + SLACK > made.began).peekable();
    if near.peek().is_none() {
        return vec![end];
    }
    let lost = |death: &Instant| *death > made.answered && made.began + time > *death + SLACK;
    if near.any(lost) { vec![held()] } else { vec![end, held()] }
}

fn check(world: &World, made: &[Made], deaths: &Deaths) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    let mut sums: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    for made in made {
        let charge = world.charge(&made.charge);
        let expected = expected(made, deaths);
        let (state, cost) = (charge["state"].as_str().unwrap(), charge["cost"].as_str().unwrap());
        let found = expected.iter().find(|(s, c)| (*s, c.as_str()) == (state, cost));
        let plan = Plan::of(made.at);
        let found =
            found.unwrap_or_else(|| panic!("{} {}: {expected:?}, {charge}", plan.end, plan.ms));
        *counts.entry(found.0).or_default() += 1;
        let sum = sums.entry(plan.user).or_default();
        for leg in charge["legs"].as_array().unwrap() {
            sum[usize::from(leg["kind"] != "licence")] += micro(&leg["amount"]);
        }
    }
    for (user, sum) in sums {
        let balance = world.balance(user);
        let stated = [micro(&balance["seat"]["captured"]), micro(&balance["pool"]["drawn"])];
        assert_eq!((stated, &balance["seat"]["held"]), (sum, &"0".into()), "{user}");
    }
    counts
}

#[test]
fn d34_f02_f23_jobs_with_restarts_of_both_sides_leave_no_hold_and_exact_books() {
    let count = std::env::var("TOLLGATE_JOBS").map_or(JOBS, |text| text.parse().unwrap());
    run(async {
        let begun = Instant::now();
        let gateway = free_address();
        let mut sample = Sample::reporting(Some(gateway));
        let gateway = gateway.to_string();
        let jobs = Jobs { poll: "100ms", deadline: "10m", gateway, ..Jobs::default() };
        let mut world = World::with(jobs.setup(&sample), &org());
        let (made, deaths) = load(&mut world, &mut sample, count).await;
        assert_eq!(made.len(), count);
        for made in &made {
            if expected(made, &deaths).iter().all(|(state, _)| *state != "expired") {
                let over = || (world.charge(&made.charge)["state"] != "held").then_some(());
                until("a job that is over is settled", over).await;
            }
        }
        // What nobody will ever tell of ends by its deadline.
        world.crash_and_move_clock("2026-11-20T13:00:00Z");
        world.settled().await;
        assert_eq!(world.metric("tollgate_jobs_open", &[]), 0.0);
        let counts = check(&world, &made, &deaths);
        world.verify();
        let seconds = begun.elapsed().as_secs();
        eprintln!("{count} jobs, {} deaths of the backend, {counts:?}, {seconds} s", deaths.len());
        assert!(counts["captured"] > count / 6 && counts["voided"] > count / 40, "{counts:?}");
    });
}
