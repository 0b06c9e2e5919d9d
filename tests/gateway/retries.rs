//! Requests under keys by the thousand, with answers that are lost, duplicates at once and a
//! gateway that is killed again and again: nothing is charged twice, nothing that was answered is
//! not charged, repetitions are answered alike, and what was charged is never forwarded again.
//!
//! `TOLLGATE_REPEATED_REQUESTS` says how many; `tests/idempotency-campaign` sets it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::idempotency::repeats;
use crate::support::world::micro;
use crate::support::{Access, Answer, Call, Client, Org, Script, World, run};

const REQUESTS: usize = 2_000;
/// How many one gateway is sent: what the backend has seen is kept in memory.
const ROUND: usize = 20_000;
/// How often it is killed meanwhile.
const KILLS: usize = 4;
const CLIENTS: usize = 12;
const KINDS: usize = 8;
/// The kind that comes to more than was held.
const EXCESS: usize = 1;
const USERS: [&str; 3] = ["alice", "bob", "carol"];
/// Which answers are looked at again at the end.
const SAMPLE: usize = 61;

/// A seat that lasts, one that is soon split into the pool, and none at all.
fn org() -> Org {
    Org::new()
        .pool("10000000")
        .user("alice", "10000000", Access::None)
        .user("bob", "100.5", Access::Pool)
        .user("carol", "", Access::Pool)
}

/// What a request is like, so often as its backend failed: the call, what it costs in the end,
/// and whether its answer is certainly kept.
fn call(at: usize, failures: usize) -> (Call, &'static str, bool) {
    let fails = |script: Script| if failures == 0 { script } else { Script::default() };
    let hang_up = Script { hang_up: true, ..Script::default() };
    let truncate = Script { truncate: true, ..Script::default() };
    let big = Script { pad: 70_000, ..Script::default() };
    let pieces = Script { chunked: true, pad: 70_000, ..Script::default() };
    let image = |body: &str| Call::post("/v1/images", body.to_owned());
    let (call, cost, kept) = match at % KINDS {
        0 => (Call::post("/v1/told", "{\"n\":3}").script(&Script::usage(1)), "1", true),
        // More than held is taken first, and captured then. Who is killed in between has no answer.
        EXCESS => (Call::post("/v1/told", "{\"n\":2}").script(&Script::usage(5)), "5", false),
        2 => (image("{\"n\":2}").script(&fails(Script::status(500))), "2", true),
        3 => (image("{\"n\":0.25}").script(&fails(hang_up)), "0.25", true),
        4 => (image("{\"n\":0.5}").script(&fails(truncate)), "0.5", true),
        5 => (image("{\"n\":1.5}").script(&big), "1.5", false),
        6 => (Call::post("/v1/streamed", "{}").script(&pieces), "1", false),
        _ => (image("{}"), "1", true),
    };
    let user = USERS[at / KINDS % USERS.len()];
    (call.user(user).header("idempotency-key", &format!("key-{at}")), cost, kept)
}

/// What clients share.
struct Shared {
    gateway: Mutex<SocketAddr>,
    next: AtomicUsize,
    done: AtomicUsize,
}

/// A client that connects again where its connection is gone.
struct Line {
    client: Option<Client>,
    shared: Arc<Shared>,
}

impl Line {
    fn new(shared: &Arc<Shared>) -> Self {
        Self { client: None, shared: Arc::clone(shared) }
    }

    async fn connected(&mut self) -> Client {
        loop {
            if let Some(client) = self.client.take() {
                return client;
            }
            let gateway = *self.shared.gateway.lock().unwrap();
            self.client = Client::try_connect(gateway).await;
            if self.client.is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Sends a request; `None` where its answer did not come, or not whole.
    async fn send(&mut self, call: &Call) -> Option<Answer> {
        let mut client = self.connected().await;
        let answer = client.try_send(call).await.ok().filter(|answer| answer.whole)?;
        self.client = Some(client);
        Some(answer)
    }

    /// Sends a request and leaves, from before it is sent to when its answer was there.
    async fn leave(&mut self, call: &Call, patience: usize) {
        let mut client = self.connected().await;
        let wait = async {
            for _ in 0..patience {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = client.try_send(call) => {}
            () = wait => {}
        }
        client.leave().await;
    }
}

/// What was heard of one request.
struct Story {
    at: usize,
    /// How often its backend failed.
    failures: usize,
    /// The first answer, whichever it was.
    first: Option<Answer>,
    /// There was an answer that was no repetition.
    answered: bool,
}

/// How it ended: the refusal or repetition that tells its charge.
struct End {
    at: usize,
    told: Answer,
    first: Option<Answer>,
}

impl Story {
    /// Takes an answer; true where it tells the charge of one that was given before.
    fn hear(&mut self, answer: &Answer) -> bool {
        let code = |answer: &Answer| answer.json()["code"].as_str().map(str::to_owned);
        let (_, _, kept) = call(self.at, 0);
        match answer.status {
            200 => {}
            409 if code(answer).as_deref() == Some("idempotency_in_flight") => return false,
            409 if code(answer).as_deref() == Some("already_charged") => {
                assert!(!kept, "its answer is kept: {answer:?}");
                return true;
            }
            500 | 502 => {
                self.failures += 1;
                return false;
            }
            _ => panic!("{answer:?}"),
        }
        let is_repetition = answer.header("idempotency-replayed").is_some();
        if let (Some(first), true) = (&self.first, is_repetition) {
            repeats(first, answer);
        }
        if !is_repetition {
            assert!(!self.answered, "forwarded after it was charged: {answer:?}");
            self.answered = true;
        }
        self.first.get_or_insert_with(|| answer.clone());
        is_repetition
    }
}

/// One request, until its charge is told by a repetition.
async fn one(line: &mut Line, at: usize) -> End {
    let mut story = Story { at, failures: 0, first: None, answered: false };
    match at / KINDS / USERS.len() % 3 {
        1 => {
            let mut duplicates = JoinSet::new();
            for _ in 0..3 {
                let mut line = Line::new(&line.shared);
                duplicates.spawn(async move { line.send(&call(at, 0).0).await });
            }
            let answers = duplicates.join_all().await.into_iter().flatten();
            // The one that was forwarded comes first, however they arrived.
            let mut answers: Vec<Answer> = answers.collect();
            answers.sort_by_key(|answer| answer.header("idempotency-replayed").is_some());
            for answer in answers {
                story.hear(&answer);
            }
        }
        2 => line.leave(&call(at, 0).0, at % 41 * 3).await,
        _ => {}
    }
    loop {
        match line.send(&call(at, story.failures).0).await {
            Some(told) if story.hear(&told) => {
                let first = story.first.filter(|_| at.is_multiple_of(SAMPLE));
                return End { at, told, first };
            }
            _ => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

/// Sends so many requests, and kills the gateway in between.
async fn load(world: &mut World, count: usize) -> Vec<End> {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let shared = Arc::new(Shared { gateway: Mutex::new(world.gateway()), next, done });
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let shared = Arc::clone(&shared);
        clients.spawn(async move {
            let (mut line, mut ends) = (Line::new(&shared), Vec::new());
            loop {
                let at = shared.next.fetch_add(1, Ordering::Relaxed);
                if at >= count {
                    return ends;
                }
                ends.push(one(&mut line, at).await);
                shared.done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let mut ends = Vec::new();
    for kill in 1..=KILLS {
        while shared.done.load(Ordering::Relaxed) < kill * count / (KILLS + 1) {
            if let Some(ended) = clients.try_join_next() {
                ends.extend(ended.unwrap());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        world.kill();
        world.start();
        *shared.gateway.lock().unwrap() = world.gateway();
    }
    ends.extend(clients.join_all().await.into_iter().flatten());
    ends
}

/// Compares what clients were told with what the backend saw: the charge of a key is forwarded
/// once, and nothing under that key after it.
fn check_forwards(world: &World, ends: &[End]) -> usize {
    let mut forwards: HashMap<String, Vec<String>> = HashMap::new();
    let seen = world.backend.seen();
    for seen in &seen {
        let key = seen.header("idempotency-key").unwrap().to_owned();
        forwards.entry(key).or_default().push(seen.charge().unwrap().to_owned());
    }
    assert_eq!(forwards.len(), ends.len());
    for end in ends {
        let (key, charge) = (format!("key-{}", end.at), end.told.told("charge"));
        let forwards = &forwards[&key];
        let times = forwards.iter().filter(|forward| **forward == charge).count();
        assert_eq!((times, forwards.last()), (1, Some(&charge)), "{key}: {forwards:?}");
    }
    seen.len()
}

/// An answer that comes to more than was held is lost by a kill at one moment only.
fn check_excess(ends: &[End]) {
    let excess: Vec<&End> = ends.iter().filter(|end| end.at % KINDS == EXCESS).collect();
    let kept = excess.iter().filter(|end| end.told.status == 200).count();
    assert!(excess.len() - kept <= KILLS * CLIENTS, "{kept} of {}", excess.len());
}

/// Compares what clients were told with the books: every key is charged once, what it is worth.
fn check_books(world: &World, ends: &[End]) {
    let mut sums: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    for end in ends {
        end.told.tells(&[("state", "captured"), ("cost", call(end.at, 0).1)]);
        let user = USERS[end.at / KINDS % USERS.len()];
        let sum = sums.entry(user).or_default();
        for (sum, key) in sum.iter_mut().zip(["seat", "pool"]) {
            *sum += micro(&end.told.told(key).into());
        }
    }
    for user in USERS {
        let balance = world.balance(user);
        let stated = [micro(&balance["seat"]["captured"]), micro(&balance["pool"]["drawn"])];
        assert_eq!(stated, sums[user], "{user}");
        assert_eq!(balance["seat"]["held"], "0");
    }
    world.verify();
}

#[test]
fn d35_f17_requests_that_are_repeated_are_charged_once_whatever_is_lost() {
    let requests =
        std::env::var("TOLLGATE_REPEATED_REQUESTS").map_or(REQUESTS, |text| text.parse().unwrap());
    let begun = Instant::now();
    let (mut sent, mut forwarded) = (0, 0);
    while sent < requests {
        let count = ROUND.min(requests - sent);
        forwarded += run(async {
            let mut world = World::new(&org());
            let ends = load(&mut world, count).await;
            assert_eq!(ends.len(), count);
            world.settled().await;
            let forwarded = check_forwards(&world, &ends);
            check_books(&world, &ends);
            check_excess(&ends);
            world.kill();
            world.start();
            for end in ends.iter().filter(|end| end.at.is_multiple_of(SAMPLE)) {
                let again = world.send(&call(end.at, 1).0).await;
                assert_eq!(
                    (again.status, again.told("charge")),
                    (end.told.status, end.told.told("charge"))
                );
                if let (200, Some(first)) = (again.status, &end.first) {
                    repeats(first, &again);
                }
            }
            assert_eq!(world.backend.count(), forwarded);
            check_books(&world, &ends);
            forwarded
        });
        sent += count;
        let seconds = begun.elapsed().as_secs();
        eprintln!("{sent} requests repeated, {forwarded} forwards, {seconds} s");
    }
}
