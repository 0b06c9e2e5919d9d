//! Three gateways on one Redis and PostgreSQL under load, and whatever can happen to them, one fault
//! after the other. After each of them all three serve again in time, and what clients were told, what
//! the archive has and what the books say is the same.
//!
//! `TOLLGATE_FAULTS` says how many; `tests/fault-campaign` sets it. `TOLLGATE_FAULT_KINDS` is for whoever
//! looks for something: the only kinds that happen, like `ReadOnly,Promotion`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;

use crate::fault_check::{Figures, Round};
use crate::fault_kinds::{KINDS, Kind, OF_A_CLUSTER, OF_SERVERS};
use crate::fault_load::{Load, Random, secret};
use crate::support::cluster::Cluster;
use crate::support::fault_proxy::FaultProxy;
use crate::support::org::{OWN, ROBOT, STUDIO};
use crate::support::postgres::Postgres;
use crate::support::redis::RedisServer;
use crate::support::world::{TOKEN, in_redis};
use crate::support::{Access, Answer, Call, Client, Org, Setup, World, run};

pub const SHARDS: usize = 4;
pub const OWNER_TIMEOUT: Duration = Duration::from_secs(2);
const REJOIN_TIMEOUT: Duration = Duration::from_secs(1);
/// How long after a fault is over it mostly takes until all serve: what is documented, and some.
const SERVES_SOON: Duration = Duration::from_secs(3).saturating_add(REJOIN_TIMEOUT);
/// And at most: on a machine that has no time calls time out, and are made again.
const SERVES_WITHIN: Duration = Duration::from_secs(40);
/// After how many faults there is a new snapshot that can be put back.
const SNAPSHOT_EVERY: usize = 4;
/// How many earlier orgs are looked at after each fault: they are in other shards.
const LOOKED_AT: usize = 6;

/// What faults happen to.
pub struct Campaign {
    pub worlds: Vec<World>,
    pub proxy: FaultProxy,
    pub redis: RedisServer,
    /// Which has the books instead of it, if there is one.
    pub cluster: Option<Cluster>,
    pub postgres: Postgres,
    /// The URL of directory and archive.
    pub database: String,
    pub addresses: Arc<Mutex<Vec<SocketAddr>>>,
    /// What each backend was sent in earlier rounds.
    pub seen: Vec<usize>,
    pub random: Random,
    /// What Redis had some faults ago, and when that was.
    pub snapshot: (Vec<u8>, Instant),
    /// How far back Redis was put by this fault. What is lost is done again batch by batch, and that
    /// must not take longer than it took at first.
    pub put_back_by: Duration,
    /// The org that is used now.
    pub org: String,
    asked: AtomicUsize,
}

/// A seat that is soon empty, one that is soon split into the pool, which is soon empty too, and two
/// that last.
fn org_file(id: &str) -> String {
    let org = Org::new()
        .pool("20")
        .user("alice", "40", Access::None)
        .user("bob", "20", Access::Pool)
        .user("carol", "1000000", Access::None)
        .user("probe", "1000000", Access::None);
    let text = org.toml().replace("\"acme\"", &format!("\"{id}\""));
    let other = |name: &str| format!("{name}{:_>20}", id);
    text.replace(STUDIO, &secret(id))
        .replace(ROBOT, &other("tg_test_robot_"))
        .replace(OWN, &other("tg_test_own_"))
}

/// An environment of a gateway whose books are in a Cluster.
fn in_cluster(cluster: &Cluster) -> Vec<(String, String)> {
    let variable = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    vec![
        variable("TOLLGATE__BOOKS__ENGINE", "redis"),
        variable("TOLLGATE__BOOKS__URL_ENV", "REDIS_URL"),
        variable("REDIS_URL", &cluster.url()),
    ]
}

impl Campaign {
    async fn start(seed: u64, cluster: Option<Cluster>) -> Self {
        let redis = RedisServer::start_with(&crate::fault_kinds::REDIS);
        let postgres = Postgres::start().await;
        let proxy = FaultProxy::start(redis.port, seed);
        let database = postgres.database();
        let mut environment = match &cluster {
            Some(cluster) => in_cluster(cluster),
            None => in_redis(&format!("redis://127.0.0.1:{}", proxy.port)).to_vec(),
        };
        let mut set = |key: &str, value: &str| {
            environment.push((format!("TOLLGATE__{key}"), value.to_owned()));
        };
        set("DIRECTORY__URL", &database);
        set("BOOKS__SHARDS", &SHARDS.to_string());
        set("BOOKS__TIMEOUT", "2s");
        set("BOOKS__OWNER_TIMEOUT", &format!("{}s", OWNER_TIMEOUT.as_secs()));
        set("BOOKS__REJOIN_TIMEOUT", &format!("{}s", REJOIN_TIMEOUT.as_secs()));
        let setup = Setup { environment, ..Setup::default() };
        let nobody = Org::new();
        let worlds: Vec<_> = (0..3).map(|_| World::with(setup.clone(), &nobody)).collect();
        let addresses = worlds.iter().map(World::gateway).collect();
        let snapshot = redis.snapshot();
        Self {
            worlds,
            proxy,
            redis,
            cluster,
            postgres,
            database,
            addresses: Arc::new(Mutex::new(addresses)),
            seen: vec![0; 3],
            random: Random(seed),
            snapshot: (snapshot, Instant::now()),
            put_back_by: Duration::ZERO,
            org: String::new(),
            asked: AtomicUsize::new(0),
        }
    }

    /// Starts a gateway that was killed, again where PostgreSQL or Redis did not answer in time, as
    /// whatever looks after it would.
    pub fn start_gateway(&mut self, at: usize) {
        let is_slow = |log: &[String]| log.last().is_some_and(|line| line.contains("timed out"));
        let begun = Instant::now();
        while let Err(log) = self.worlds[at].try_start() {
            assert!(is_slow(&log) && begun.elapsed() < SERVES_WITHIN, "not serving: {log:?}");
        }
        self.addresses.lock().unwrap()[at] = self.worlds[at].gateway();
    }

    /// Some time, of so many milliseconds at most.
    pub async fn some_time(&mut self, most: usize) {
        sleep(Duration::from_millis(self.random.below(most) as u64)).await;
    }

    /// Whether somebody of an org is served at a gateway.
    pub async fn probe(&self, at: usize, org: &str) -> Answer {
        let number = self.asked.fetch_add(1, Ordering::SeqCst);
        let call = Call::post("/v1/images", "{}")
            .header("x-request-id", &format!("{org}-probe-{number}"))
            .key(&secret(org))
            .header("tollgate-user", "probe");
        self.worlds[at].send(&call).await
    }

    /// Changes something of the org at a gateway.
    pub async fn change(&self, at: usize) -> Answer {
        let path = format!("/v1/orgs/{}/users/alice", self.org);
        let body = json!({ "email": "alice@example.com" }).to_string();
        let call = Call::with("PATCH", &path, body).header("content-type", "application/json");
        Client::connect(self.worlds[at].admin_address()).await.send(&call.key(TOKEN)).await
    }

    /// Waits until every gateway has heard of the org, within a second and some.
    async fn all_know(&self) {
        let began = Instant::now();
        for at in 0..3 {
            while self.probe(at, &self.org).await.status == 401 {
                assert!(began.elapsed() < SERVES_WITHIN, "gateway {at} does not know {}", self.org);
                sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Waits until all gateways serve these orgs, and says how long that took.
    async fn all_serve(&self, orgs: &[&str]) -> Duration {
        let began = Instant::now();
        for at in 0..3 {
            for org in orgs {
                loop {
                    let answer = self.probe(at, org).await;
                    if answer.status == 200 {
                        break;
                    }
                    assert_eq!(answer.status, 503, "{answer:?}");
                    let most = SERVES_WITHIN + self.put_back_by;
                    assert!(began.elapsed() < most, "gateway {at}, {org}: {answer:?}");
                    sleep(Duration::from_millis(10)).await;
                }
            }
        }
        began.elapsed()
    }

    /// Opens what waits in this round.
    fn open_gate(&self) {
        for world in &self.worlds {
            world.backend.open(&self.org);
        }
    }

    /// One fault under load, and what comes behind it.
    async fn round(
        &mut self,
        kind: Kind,
        earlier: &[Round],
        figures: &mut Figures,
    ) -> (Round, Duration) {
        self.org = format!("r{}", earlier.len());
        let applied = self.worlds[0].try_apply(&org_file(&self.org));
        assert!(applied.status.success(), "{applied:?}");
        let (seen, org) =
            (self.worlds.iter().map(|w| w.backend.count()).collect(), self.org.clone());
        self.seen = seen;
        let looked_at: Vec<_> = earlier.iter().rev().take(LOOKED_AT).collect();
        let orgs: Vec<&str> =
            [org.as_str()].into_iter().chain(looked_at.iter().map(|r| r.org.as_str())).collect();
        self.all_know().await;
        self.put_back_by = Duration::ZERO;
        if earlier.len().is_multiple_of(SNAPSHOT_EVERY) {
            self.snapshot = (self.redis.snapshot(), Instant::now());
        }
        let seed = self.random.below(usize::MAX) as u64;
        let load = Load::start(&org, &self.addresses, seed);
        sleep(Duration::from_millis(150)).await;
        self.some_time(200).await;
        let opens_early = self.random.below(3) == 0;
        if opens_early {
            self.open_gate();
        }
        kind.happens(self).await;
        let took = self.all_serve(&orgs).await;
        self.some_time(200).await;
        self.open_gate();
        let wanted = load.stop();
        let is_lossy = kind.is_lossy();
        let mut round = Round { org, wanted, is_lossy, used: BTreeMap::new() };
        self.check(&mut round, figures).await;
        for round in looked_at {
            self.is_as_before(round).await;
        }
        (round, took)
    }
}

/// The kinds in an order of their own, all of them before any comes again.
fn order(kinds: &[Kind], count: usize, random: &mut Random) -> Vec<Kind> {
    let mut all = Vec::new();
    while all.len() < count && !kinds.is_empty() {
        let mut kinds = kinds.to_vec();
        for at in (1..kinds.len()).rev() {
            kinds.swap(at, random.below(at + 1));
        }
        all.extend(kinds);
    }
    all.truncate(count);
    all
}

/// All of these kinds, or those that were asked for.
fn wanted(kinds: &[Kind]) -> Vec<Kind> {
    let Ok(names) = std::env::var("TOLLGATE_FAULT_KINDS") else { return kinds.to_vec() };
    let is_named = |kind: &Kind| names.split(',').any(|name| name == format!("{kind:?}"));
    kinds.iter().copied().filter(is_named).collect()
}

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// So many faults of these kinds, one after the other.
async fn happen(kinds: &[Kind], count: usize, seed: u64, cluster: Option<Cluster>) {
    let began = Instant::now();
    let mut campaign = Campaign::start(seed, cluster).await;
    let mut random = Random(seed);
    let (mut rounds, mut figures, mut late) = (Vec::new(), Figures::default(), 0);
    let mut times: BTreeMap<Kind, (usize, Duration)> = BTreeMap::new();
    for kind in order(kinds, count, &mut random) {
        let (round, took) = campaign.round(kind, &rounds, &mut figures).await;
        eprintln!("{} {kind:?}: {} wanted, {took:?}", round.org, round.wanted.len());
        late += usize::from(took > SERVES_SOON + campaign.put_back_by);
        let time = times.entry(kind).or_default();
        *time = (time.0 + 1, time.1.max(took));
        rounds.push(round);
    }
    // Nothing of what was checked has changed since.
    for round in &rounds {
        campaign.is_as_before(round).await;
    }
    for (kind, (count, longest)) in times {
        eprintln!("{kind:?}: {count}, served again after {longest:?} at most");
    }
    eprintln!("all serve soon, but for {late} times");
    assert!(late <= 2 + count / 10, "it takes too long mostly");
    eprintln!("{count} faults in {:?}: {figures:#?}", began.elapsed());
    assert!(figures.states.get("captured").is_some_and(|made| *made > 20 * count));
}

#[test]
fn d37_f27_f36_after_any_fault_all_serve_again_and_what_was_told_adds_up() {
    // All kinds once in an ordinary run.
    let kinds = wanted(&KINDS);
    let count = number("TOLLGATE_FAULTS", kinds.len());
    run(happen(&kinds, count, number("TOLLGATE_SEED", 1) as u64, None));
}

#[test]
fn d37_f27_f32_on_a_cluster_masters_fail_and_slots_move_and_what_was_told_adds_up() {
    let kinds = wanted(&OF_A_CLUSTER);
    // They take longer than others.
    let count = (number("TOLLGATE_FAULTS", 0) / 10).max(kinds.len());
    let cluster = Cluster::start_with(3, true, &OF_SERVERS);
    run(happen(&kinds, count, number("TOLLGATE_SEED", 1) as u64, Some(cluster)));
}

#[test]
fn d37_while_postgresql_is_away_traffic_goes_on_and_nothing_is_lost() {
    let away = Duration::from_secs(number("TOLLGATE_AWAY", 5) as u64);
    run(async {
        let mut campaign = Campaign::start(2, None).await;
        let mut figures = Figures::default();
        let (round, _) = campaign.round(Kind::PostgresAway(away), &[], &mut figures).await;
        eprintln!("{} wanted while PostgreSQL was away: {figures:#?}", round.wanted.len());
    });
}
