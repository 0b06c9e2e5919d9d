//! The books on a Cluster: each shard is at one master, slots move, masters die and others take
//! over, and the sums are exact.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tollgate::books::redis::{self, Options, Session};
use tollgate::books::{Books, BooksError, Posted, Resolved};
use tollgate::core::charge::{OutcomeMemo, State};

use crate::cluster::Cluster;
use crate::engine::{NOW, account, ask, balance, done, id, name, resolution, take};
use crate::engine_redis::{EventLoop, folded_in, options};
use crate::redis_connect::errors;
use crate::redis_server::{RedisServer, until};

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);
const SHARDS: usize = 6;
const GRANT: u64 = 1_000_000;

/// A gateway on a Cluster.
struct Gateway {
    engine: redis::Engine,
    session: Session,
    runtime: EventLoop,
}

impl Gateway {
    fn on(url: &str, name: &str, deadline: Duration) -> Self {
        Self::with(Options {
            url: url.into(),
            gateway: name.into(),
            deadline,
            ..options(&RedisServer::shared())
        })
    }

    fn with(options: Options) -> Self {
        let runtime = EventLoop::start();
        let options = Options {
            shards: SHARDS,
            // It is not heard of by itself: what it writes may be lost with an old master.
            owner_timeout: 60 * PATIENCE,
            ..options
        };
        let opening = redis::Engine::open(options, runtime.handle.clone(), NOW);
        let engine = runtime.handle.block_on(opening).unwrap();
        Self { session: engine.session(), engine, runtime }
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.handle.block_on(future)
    }

    /// A charge whose number says in which shard it is.
    fn hold(&self, number: u64) -> Result<bool, BooksError> {
        self.run(hold(&self.session, number)).map(|posted| done(posted).is_some())
    }

    /// What each shard's account has captured, which its records say too; nothing is held.
    fn captured(&self) -> [u64; SHARDS] {
        let all = self.run(self.engine.balances()).unwrap();
        let mut found = [0; SHARDS];
        for shard in 0..SHARDS {
            let folded = folded_in(&self.engine, &self.runtime.handle, shard);
            let Some(folded) = folded.get(&name("a")) else { continue };
            assert_eq!(*folded, balance(GRANT, 0, 0, folded.captured));
            assert!(all.iter().any(|(_, _, found)| found == folded), "shard {shard}");
            found[shard] = folded.captured;
        }
        found
    }
}

async fn hold(session: &Session, number: u64) -> Result<Posted, BooksError> {
    let (accounts, ten) = ([account("a", GRANT, 1)], take(10, &[0]));
    session.hold(&ask(number, &accounts, &ten)).await
}

async fn capture(session: &Session, number: u64, keep: u64) -> Result<Resolved, BooksError> {
    let (memo, keep) = (OutcomeMemo::default(), [keep]);
    session.resolve(id(number), &resolution(State::Captured, &keep, &memo)).await
}

fn errors_in(cluster: &Cluster, code: &str) -> u64 {
    cluster.servers.iter().map(|server| errors(server, code)).sum()
}

/// Charges in all shards, many at once, until it is dropped.
struct Load {
    tasks: JoinSet<[u64; SHARDS]>,
    ends: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
}

impl Load {
    fn start(gateway: &Gateway) -> Self {
        let (mut tasks, ends, made) = (JoinSet::new(), Arc::default(), Arc::default());
        let next = Arc::new(AtomicU64::new(0));
        for _ in 0..2 * SHARDS {
            let (session, next) = (gateway.engine.session(), Arc::clone(&next));
            let (ends, made): (Arc<AtomicBool>, Arc<AtomicU64>) =
                (Arc::clone(&ends), Arc::clone(&made));
            let charging = async move {
                let mut captured = [0; SHARDS];
                while !ends.load(Ordering::SeqCst) {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    assert!(done(hold(&session, number).await.unwrap()).is_some());
                    let keep = 1 + number % 9;
                    let told = capture(&session, number, keep).await.unwrap();
                    assert!(matches!(told, Resolved::Done(..)), "{told:?}");
                    // The home of a charge is the end of its id.
                    captured[usize::from(number as u16) % SHARDS] += keep;
                    made.fetch_add(1, Ordering::SeqCst);
                }
                captured
            };
            tasks.spawn_on(charging, &gateway.runtime.handle);
        }
        Self { tasks, ends, made }
    }

    fn made(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }

    /// Some more were made.
    fn goes_on(&self) {
        let before = self.made();
        until("charges go on", || self.made() > before + 20);
    }

    /// What was captured in each shard, all told.
    fn end(self, gateway: &Gateway) -> [u64; SHARDS] {
        self.ends.store(true, Ordering::SeqCst);
        let mut captured = [0; SHARDS];
        for part in gateway.run(self.tasks.join_all()) {
            captured.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        captured
    }
}

#[test]
fn d24_f22_credit_for_k_admits_exactly_k_over_two_gateways_on_a_cluster() {
    let cluster = Cluster::start(3, false);
    let gateways = ["one", "two"].map(|name| Gateway::on(&cluster.url(), name, PATIENCE));
    let (admitted, most) = (Arc::new([const { AtomicU64::new(0) }; SHARDS]), 40);
    let mut tasks = JoinSet::new();
    for number in 0..(2 * most * SHARDS as u64) {
        let gateway = &gateways[number as usize / SHARDS % 2];
        let (session, admitted) = (gateway.session.clone(), Arc::clone(&admitted));
        let asking = async move {
            let (accounts, ten) = ([account("a", 10 * most, 1)], take(10, &[0]));
            let posted = session.hold(&ask(number, &accounts, &ten)).await.unwrap();
            if done(posted).is_some() {
                let told = capture(&session, number, 10).await.unwrap();
                assert!(matches!(told, Resolved::Done(..)));
                admitted[number as usize % SHARDS].fetch_add(1, Ordering::SeqCst);
            }
        };
        tasks.spawn_on(asking, &gateway.runtime.handle);
    }
    gateways[0].run(tasks.join_all());
    let admitted = admitted.each_ref().map(|count| count.load(Ordering::SeqCst));
    assert_eq!(admitted, [most; SHARDS]);
    let all = gateways[1].run(gateways[1].engine.balances()).unwrap();
    let expected = balance(10 * most, 0, 0, 10 * most);
    assert_eq!(all.iter().map(|found| found.2).collect::<Vec<_>>(), [expected; SHARDS]);
    // The shards are spread, and every server was seen to hold some.
    let masters: Vec<usize> = (0..SHARDS).map(|shard| cluster.master_of(shard)).collect();
    assert!((0..3).all(|master| masters.contains(&master)), "{masters:?}");
    assert_eq!(errors_in(&cluster, "CROSSSLOT"), 0);
}

#[test]
fn f32_slots_that_move_under_load_leave_exact_books() {
    let mut cluster = Cluster::start(3, false);
    let gateway = Gateway::on(&cluster.url(), "one", PATIENCE);
    // It has no library, and is in no list that the gateway has seen.
    cluster.add_master();
    let load = Load::start(&gateway);
    load.goes_on();
    for shard in [0, 3, 0] {
        let to = match cluster.master_of(shard) {
            3 => 1,
            _ => 3,
        };
        cluster.move_shard(shard, to, |_| {
            // What is asked of the shard waits, in the end for all there is.
            let (made, refused) = (load.made(), errors_in(&cluster, "TRYAGAIN"));
            until("the shard is asked", || {
                load.made() > made + 50 || errors_in(&cluster, "TRYAGAIN") > refused
            });
        });
        load.goes_on();
    }
    assert_eq!(cluster.master_of(3), 3);
    let captured = load.end(&gateway);
    assert_eq!(gateway.captured(), captured);
    let met = ["MOVED", "TRYAGAIN"].map(|code| errors_in(&cluster, code));
    assert!(met.iter().all(|count| *count > 0), "{met:?}");
}

#[test]
fn f32_a_key_that_has_left_is_asked_for_where_it_went() {
    let cluster = Cluster::start(2, false);
    let gateway = Gateway::on(&cluster.url(), "one", PATIENCE);
    assert!(gateway.hold(0).unwrap());
    assert!(gateway.run(capture(&gateway.session, 0, 4)).is_ok());
    let to = 1 - cluster.master_of(0);
    let (asked, ends) = (AtomicU64::new(0), gateway.engine.ledger_end(0));
    let before = gateway.run(ends).unwrap();
    cluster.move_shard(0, to, |_| {
        // Whether it is here or there by now.
        assert_eq!(gateway.run(gateway.engine.ledger_end(0)).unwrap(), before);
        assert_eq!(gateway.run(gateway.engine.open_holds()).unwrap(), 0);
        asked.fetch_add(1, Ordering::SeqCst);
    });
    assert!(asked.into_inner() > 2);
    assert!(errors_in(&cluster, "ASK") > 0);
    assert!(gateway.hold(SHARDS as u64).unwrap());
}

#[test]
fn f29_a_cluster_that_is_down_is_waited_for_and_told() {
    let cluster = Cluster::start(2, false);
    let patient = Gateway::on(&cluster.url(), "patient", PATIENCE);
    let hasty = Gateway::on(&cluster.url(), "hasty", Duration::from_millis(100));
    assert!(patient.hold(0).unwrap() && hasty.hold(SHARDS as u64).unwrap());
    // A slot that nobody has, and no shard needs.
    let used: Vec<u64> = (0..SHARDS)
        .map(|shard| {
            let tag = format!("{{s{shard}}}");
            cluster.servers[0].command(&["CLUSTER", "KEYSLOT", &tag]).unwrap()
        })
        .collect();
    let unused = (0..8192).find(|slot| !used.contains(slot)).unwrap().to_string();
    for server in &cluster.servers {
        server.command::<()>(&["CLUSTER", "DELSLOTS", &unused]).unwrap();
        until("a Cluster is down", || {
            let told: String = server.command(&["CLUSTER", "INFO"]).unwrap();
            told.contains("cluster_state:fail")
        });
    }
    match hasty.hold(2 * SHARDS as u64) {
        Err(BooksError::Unavailable(_)) => {}
        other => panic!("{other:?}"),
    }
    let before = errors_in(&cluster, "CLUSTERDOWN");
    let mut waiting = JoinSet::new();
    let session = patient.session.clone();
    let held = async move { done(hold(&session, 3 * SHARDS as u64).await.unwrap()).is_some() };
    waiting.spawn_on(held, &patient.runtime.handle);
    until("it is asked again", || errors_in(&cluster, "CLUSTERDOWN") > before + 2);
    cluster.servers[0].command::<()>(&["CLUSTER", "ADDSLOTS", &unused]).unwrap();
    assert!(patient.run(waiting.join_next()).unwrap().unwrap());
}

#[test]
fn f29_a_server_that_is_loading_is_waited_for() {
    let mut server =
        RedisServer::start_with(&["--appendonly", "yes", "--enable-debug-command", "yes"]);
    let gateway = Gateway::on(&server.url(), "one", PATIENCE);
    assert!(gateway.hold(0).unwrap());
    server.command::<()>(&["DEBUG", "POPULATE", "3000"]).unwrap();
    server.command::<()>(&["CONFIG", "SET", "appendfsync", "always"]).unwrap();
    server.command::<()>(&["BGREWRITEAOF"]).unwrap();
    until("its file is written", || {
        let told: String = server.command(&["INFO", "persistence"]).unwrap();
        told.contains("aof_rewrite_in_progress:0") && told.contains("aof_rewrites:1")
    });
    server.kill();
    // Slow as a large one is, until somebody says so.
    let often = ["--loading-process-events-interval-bytes", "1024"];
    server.start_again_with(&[&["--key-load-delay", "5000"][..], &often[..]].concat());
    let loading = || errors(&server, "LOADING");
    let mut waiting = JoinSet::new();
    let session = gateway.session.clone();
    let held = async move { done(hold(&session, SHARDS as u64).await.unwrap()) };
    waiting.spawn_on(held, &gateway.runtime.handle);
    until("it is told that it is loading", || loading() > 2);
    server.command::<()>(&["CONFIG", "SET", "key-load-delay", "0"]).unwrap();
    let view = gateway.run(waiting.join_next()).unwrap().unwrap().unwrap();
    assert_eq!(view.get(0), Some(balance(GRANT, 0, 20, 0)));
}

/// Without a look at what the replica has: whatever was told is there.
#[test]
fn f27_a_replica_in_a_cluster_has_all_that_was_acknowledged_when_it_takes_over() {
    let mut cluster = Cluster::start(2, true);
    let url = cluster.url();
    let shared = options(&RedisServer::shared());
    let options = Options { url: url.into(), replica: true, deadline: PATIENCE, ..shared };
    let gateway = Gateway::with(options);
    let replica = 2 + cluster.master_of(0);
    // One more, which the one that takes over waits for then.
    cluster.add_master();
    let follow = |cluster: &Cluster, master: usize| {
        let master_id: String = cluster.servers[master].command(&["CLUSTER", "MYID"]).unwrap();
        // It hears of the new master in its time.
        let _ = cluster.servers[4].command::<()>(&["CLUSTER", "REPLICATE", &master_id]);
    };
    let load = Load::start(&gateway);
    load.goes_on();
    cluster.servers[replica - 2].kill();
    cluster.servers[replica].command::<()>(&["CLUSTER", "FAILOVER", "TAKEOVER"]).unwrap();
    until("the other one knows of it", || {
        follow(&cluster, replica);
        let told: String = cluster.servers[replica].command(&["INFO", "replication"]).unwrap();
        told.contains("state=online")
    });
    load.goes_on();
    let captured = load.end(&gateway);
    assert_eq!(gateway.captured(), captured);
}

#[test]
fn f27_a_replica_that_takes_over_a_dead_master_is_found_and_asked() {
    let mut cluster = Cluster::start(2, true);
    let gateway = Gateway::on(&cluster.url(), "one", PATIENCE);
    let load = Load::start(&gateway);
    load.goes_on();
    let before = load.end(&gateway);
    assert_eq!(gateway.captured(), before);
    // Nothing is lost with the master: its replica has all that it had.
    let replica = 2 + cluster.master_of(0);
    until("the replica is in step", || {
        let offset = |at: usize, field: &str| {
            let told: String = cluster.servers[at].command(&["INFO", "replication"]).unwrap();
            let line = told.lines().find_map(|line| line.strip_prefix(field).map(str::to_owned));
            line.unwrap()
        };
        offset(replica - 2, "master_repl_offset:") == offset(replica, "slave_repl_offset:")
    });
    cluster.servers[replica - 2].kill();
    cluster.servers[replica].command::<()>(&["CLUSTER", "FAILOVER", "TAKEOVER"]).unwrap();
    let load = Load::start(&gateway);
    load.goes_on();
    let more = load.end(&gateway);
    let all: Vec<u64> = before.iter().zip(more).map(|(before, more)| before + more).collect();
    assert_eq!(gateway.captured()[..], all[..]);
}
