//! Streams by the thousand, with clients that leave or read slowly and a backend that breaks off or
//! dies: no hold stays open, and every charge is what its backend told, or nothing.
//!
//! `TOLLGATE_STREAMS` says how many; `tests/stream-campaign` sets it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::upstreams::{route, upstream};
use crate::support::wild::Wire;
use crate::support::world::micro;
use crate::support::{Access, Call, Client, Org, Setup, Wild, World, run, until};

const STREAMS: usize = 1_500;
/// How many one gateway is sent: the test keeps what its backend saw.
const ROUND: usize = 5_000;
const CLIENTS: usize = 48;
/// How often the backend dies in a round, and for how long.
const DEATHS: usize = 6;
const DEAD: Duration = Duration::from_millis(8);
/// What is held for each: some use less, some more.
const HELD: u64 = 40;
const USERS: [&str; 3] = ["alice", "bob", "carol"];

/// A seat that lasts, one that is soon split into the pool, and none at all.
fn org() -> Org {
    Org::new()
        .pool("10000000")
        .user("alice", "10000000", Access::None)
        .user("bob", "1000.5", Access::Pool)
        .user("carol", "", Access::Pool)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Told {
    Each,
    Last,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Reader {
    Whole,
    Slow,
    /// Leaves after so many pieces of the body; before its head after none.
    Leaves(u64),
}

/// What becomes of a stream, by its number.
#[derive(Debug)]
struct Plan {
    user: &'static str,
    cancels: bool,
    events: u64,
    told: Told,
    done: bool,
    pad: usize,
    /// The backend breaks off before this event.
    breaks: Option<u64>,
    /// The backend rests for so long after every fourth event.
    pause: Option<Duration>,
    reader: Reader,
}

impl Plan {
    fn of(at: usize) -> Self {
        // SplitMix64: every bit of a stream's number decides about all of it.
        let mut state = at as u64;
        let mut dice = move |sides: u64| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed ^ (mixed >> 31)) % sides
        };
        let events = 1 + dice(60);
        Self {
            user: USERS[dice(3) as usize],
            cancels: dice(2) == 0,
            events,
            told: [Told::Each, Told::Each, Told::Last, Told::Never][dice(4) as usize],
            done: dice(3) > 0,
            pad: [0, 200, 200, 8_000, 60_000][dice(5) as usize],
            breaks: (dice(6) == 0).then(|| 1 + dice(events)),
            pause: (dice(2) == 0).then(|| Duration::from_millis(1 + dice(3))),
            reader: match dice(10) {
                0..=4 => Reader::Whole,
                5 => Reader::Slow,
                _ => Reader::Leaves(dice(30)),
            },
        }
    }

    fn call(&self, at: usize) -> Call {
        let path = if self.cancels { "/v1/s/cancel" } else { "/v1/s/finish" };
        Call::post(path, "").user(self.user).header("x-stream", &at.to_string())
    }

    /// Left when its backend has it and has answered nothing, and cancelled then.
    fn is_left_in_silence(&self) -> bool {
        self.cancels && self.reader == Reader::Leaves(0)
    }

    /// The usage that this event tells.
    fn usage(&self, event: u64) -> Option<u64> {
        let tells = match self.told {
            Told::Each => true,
            Told::Last => event == self.events,
            Told::Never => false,
        };
        tells.then_some(event)
    }
}

/// What the backend sent under a charge.
#[derive(Clone, Debug, Default)]
struct Sent {
    at: usize,
    /// The last usage it told.
    told: Option<u64>,
    whole: bool,
    /// Its connection was closed by the other side.
    refused: bool,
}

#[derive(Default)]
struct Stage {
    /// How often it died.
    deaths: AtomicUsize,
    is_dead: AtomicBool,
    /// Streams that are to be left now.
    silent: Mutex<HashSet<usize>>,
    sent: Mutex<HashMap<String, Sent>>,
}

impl Stage {
    fn play(&self, head: &str, wire: &mut Wire) -> bool {
        let field = |name| head.lines().find_map(|line| line.strip_prefix(name));
        let charge = field("tollgate-charge: ").expect("not held").to_owned();
        let mut sent =
            Sent { at: field("x-stream: ").unwrap().parse().unwrap(), ..Sent::default() };
        let goes_on = self.stream(&mut sent, wire);
        let before = self.sent.lock().unwrap().insert(charge, sent);
        assert!(before.is_none(), "forwarded twice under one charge: {before:?}");
        goes_on
    }

    fn stream(&self, sent: &mut Sent, wire: &mut Wire) -> bool {
        let plan = Plan::of(sent.at);
        let deaths = self.deaths.load(Ordering::Acquire);
        if self.is_dead.load(Ordering::Acquire) {
            return false;
        }
        if plan.is_left_in_silence() {
            self.silent.lock().unwrap().insert(sent.at);
            wire.closed();
            sent.refused = true;
            return false;
        }
        let mut send = |wire: &mut Wire, text: String| {
            let chunk = format!("{:x}\r\n{text}\r\n", text.len());
            sent.refused |= !wire.send(if text.starts_with("HTTP") { text } else { chunk });
            !sent.refused
        };
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        if !send(wire, head.to_owned()) {
            return false;
        }
        let pad = "x".repeat(plan.pad);
        for event in 1..=plan.events {
            if plan.breaks == Some(event) || self.deaths.load(Ordering::Acquire) != deaths {
                return false;
            }
            let usage = plan.usage(event);
            let text = json!({"text": pad, "usage": {"n": usage}}).to_string();
            if !send(wire, format!("data: {text}\n\n")) {
                return false;
            }
            sent.told = usage.or(sent.told);
            if let Some(pause) = plan.pause.filter(|_| event % 4 == 0) {
                wire.rest(pause);
            }
        }
        if plan.done && !send(wire, "data: [DONE]\n\n".to_owned()) {
            return false;
        }
        sent.whole = wire.send("0\r\n\r\n");
        sent.whole
    }
}

/// What a client saw of its stream.
#[derive(Debug, PartialEq)]
enum Saw {
    /// All of it, with a clean end.
    End,
    /// A response that broke off, or the gateway's word that there is none.
    Break,
    /// It left after so many pieces.
    Left(u64),
}

async fn read(gateway: SocketAddr, stage: &Stage, at: usize) -> Saw {
    let plan = Plan::of(at);
    let (mut client, call) = (Client::connect(gateway).await, plan.call(at));
    if plan.reader == Reader::Leaves(0) {
        let some_time = async {
            match plan.is_left_in_silence() {
                true => {
                    let is_silent = || stage.silent.lock().unwrap().contains(&at).then_some(());
                    until("its backend has it", is_silent).await;
                }
                false => tokio::time::sleep(Duration::from_micros(at as u64 % 2_000)).await,
            }
        };
        tokio::select! {
            _ = client.begin(&call) => {}
            () = some_time => {}
        }
        client.leave().await;
        return Saw::Left(0);
    }
    let Ok(mut response) = client.begin(&call).await else { return Saw::Break };
    while response.status() == 503 {
        // Overtaken too often by who shares its seat: nothing is held, and it is to come again.
        let problem = response.into_body().collect().await.unwrap().to_bytes();
        let problem: Value = serde_json::from_slice(&problem).unwrap();
        assert_eq!(problem["code"], "books_contended", "{problem}");
        let Ok(again) = client.begin(&call).await else { return Saw::Break };
        response = again;
    }
    let status = response.status().as_u16();
    assert!([200, 502].contains(&status), "{response:?}");
    let (mut body, mut pieces) = (response.into_body(), 0);
    while let Some(frame) = body.frame().await {
        if frame.is_err() || status == 502 {
            return Saw::Break;
        }
        pieces += 1;
        match plan.reader {
            Reader::Leaves(after) if pieces == after => {
                client.leave().await;
                return Saw::Left(pieces);
            }
            Reader::Slow => tokio::time::sleep(Duration::from_millis(3)).await,
            _ => {}
        }
    }
    Saw::End
}

/// Reads so many streams, and lets the backend die in between.
async fn load(
    gateway: SocketAddr,
    stage: &Arc<Stage>,
    streams: std::ops::Range<usize>,
) -> Vec<Saw> {
    let (begin, count) = (streams.start, streams.len());
    let next = Arc::new(AtomicUsize::new(0));
    let seen: Arc<Mutex<Vec<Option<Saw>>>> =
        Arc::new(Mutex::new(std::iter::repeat_with(|| None).take(count).collect()));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (next, seen, stage) = (Arc::clone(&next), Arc::clone(&seen), Arc::clone(stage));
        clients.spawn(async move {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= count {
                    return;
                }
                let saw = read(gateway, &stage, begin + at).await;
                seen.lock().unwrap()[at] = Some(saw);
            }
        });
    }
    for death in 1..=DEATHS {
        while next.load(Ordering::Relaxed) < death * count / (DEATHS + 1) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stage.is_dead.store(true, Ordering::Release);
        stage.deaths.fetch_add(1, Ordering::AcqRel);
        tokio::time::sleep(DEAD).await;
        stage.is_dead.store(false, Ordering::Release);
    }
    clients.join_all().await;
    seen.lock().unwrap().drain(..).map(Option::unwrap).collect()
}

/// Whether a charge is what its stream was worth.
fn is_right(plan: &Plan, saw: &Saw, sent: &Sent, charge: &Value) -> bool {
    let millionths = |n: u64| n * 1_000_000;
    let cost = micro(&charge["cost"]);
    let is_void = charge["state"] == "voided" && cost == 0;
    let is_whole = charge["flags"] == json!(["usage_missing"]) && cost == millionths(HELD);
    let is = |told: u64| charge["flags"] == json!([]) && cost == millionths(told);
    let captured = charge["state"] == "captured";
    let leaves = matches!(saw, Saw::Left(_));
    match (sent.whole, sent.told) {
        // Nobody cancels what nobody left; and what is drained is drained to its end.
        _ if sent.refused && !(plan.cancels && leaves) => false,
        // By what was seen of it when it was left, whatever it told later.
        _ if plan.cancels && leaves => {
            let told = (1..=sent.told.unwrap_or(0)).filter(|event| plan.usage(*event).is_some());
            let reported = captured && told.into_iter().any(is);
            reported || (captured && is_whole) || (is_void && *saw == Saw::Left(0))
                // Broken off or dead before anybody could leave it.
                || (is_void && !sent.whole && !sent.refused)
        }
        (true, Some(told)) => captured && is(told),
        (true, None) => captured && is_whole,
        (false, Some(told)) => captured && is(told),
        (false, None) => is_void,
    }
}

/// Compares every charge with what the backend sent and the client saw, and balances with charges.
fn check(world: &World, stage: &Stage, saw: &[Saw], begin: usize) -> BTreeMap<String, usize> {
    let (mut sums, mut ways) = (BTreeMap::<&str, [u64; 2]>::new(), BTreeMap::new());
    for (id, sent) in stage.sent.lock().unwrap().drain() {
        let (plan, saw, charge) = (Plan::of(sent.at), &saw[sent.at - begin], world.charge(&id));
        assert!(
            is_right(&plan, saw, &sent, &charge),
            "{charge}\nwas {sent:?}\nby {plan:?}\nseen as {saw:?}"
        );
        // No clean end of what was not whole.
        assert!(*saw != Saw::End || sent.whole, "{sent:?} by {plan:?}");
        assert!(*saw != Saw::Break || !sent.whole, "{sent:?} by {plan:?}");
        for leg in charge["legs"].as_array().unwrap() {
            let at = usize::from(leg["kind"] != "licence");
            assert!(["licence", "pool"].contains(&leg["kind"].as_str().unwrap()), "{charge}");
            sums.entry(plan.user).or_default()[at] += micro(&leg["amount"]);
        }
        let saw = match saw {
            Saw::End => "read to its end",
            Saw::Break => "broken off",
            Saw::Left(_) if plan.cancels => "left, cancelled",
            Saw::Left(_) => "left, finished",
        };
        *ways.entry(format!("{saw}, {}", charge["state"].as_str().unwrap())).or_default() += 1;
    }
    for user in USERS {
        let balance = world.balance(user);
        let stated = [micro(&balance["seat"]["captured"]), micro(&balance["pool"]["drawn"])];
        assert_eq!(stated, sums.get(user).copied().unwrap_or_default(), "{user}");
        assert_eq!((&balance["seat"]["held"], &balance["overdraft"]), (&json!("0"), &json!("0")));
    }
    assert_eq!(world.pool()["held"], "0");
    world.verify();
    ways
}

#[test]
fn d33_f08_f11_streams_that_are_left_broken_or_read_slowly_leave_no_hold_and_exact_books() {
    let streams = std::env::var("TOLLGATE_STREAMS").map_or(STREAMS, |text| text.parse().unwrap());
    let (begun, mut sent) = (Instant::now(), 0);
    let mut ways = BTreeMap::<String, usize>::new();
    while sent < streams {
        let count = ROUND.min(streams - sent);
        let stage = Arc::new(Stage::default());
        let playing = Arc::clone(&stage);
        let backend = Wild::start(move |head, wire| playing.play(head, wire));
        let told =
            format!("quantity = {{ const = {HELD} }}\nusage = {{ sse_json = \"/usage/n\" }}\n");
        let sections = [
            upstream("streams", &[backend.address], ""),
            route("/v1/s/finish", "streams", &told),
            route("/v1/s/cancel", "streams", &(told + "on_disconnect = \"cancel\"\n")),
        ];
        run(async {
            let setup = Setup { limits: sections.concat(), ..Setup::default() };
            let world = World::with(setup, &org());
            let saw = load(world.gateway(), &stage, sent..sent + count).await;
            world.settled().await;
            for (way, times) in check(&world, &stage, &saw, sent) {
                *ways.entry(way).or_default() += times;
            }
        });
        sent += count;
        eprintln!("{sent} streams, {} s: {ways:?}", begun.elapsed().as_secs());
    }
    // What is to be survived has happened.
    for way in [
        "read to its end, captured",
        "broken off, captured",
        "broken off, voided",
        "left, cancelled, captured",
        "left, cancelled, voided",
        "left, finished, captured",
        "left, finished, voided",
    ] {
        assert!(ways.contains_key(way), "{way}: {ways:?}");
    }
}
