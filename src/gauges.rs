//! Gauges: what the operators' listener reads from the books, the directory and the archive when
//! it is scraped. None of it costs a request anything.

mod process;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::books::Engine;
use crate::books::embedded::Recovery;
use crate::clock::Clock;
use crate::config::OrgLabel;
use crate::core::account::Balance;
use crate::core::amount::MICRO;
use crate::directory::snapshot::Live;
use crate::gateway::admit::Limits;
use crate::gateway::health::Addresses;
use crate::gateway::jobs::Jobs;
use crate::ledger::archive::Archive;
use crate::telemetry::{Sample, Telemetry};

/// What gauges look at.
#[derive(Clone)]
pub struct Watched {
    /// Balances and open holds.
    pub engine: Engine,
    /// Orgs and their terms.
    pub live: Arc<Live>,
    /// Requests in flight.
    pub limits: Arc<Limits>,
    /// Jobs that are not over.
    pub jobs: Arc<Jobs>,
    /// How far behind the archive is.
    pub archive: Archive,
    /// What time it is.
    pub clock: Clock,
    /// Which orgs have their own label.
    pub label: OrgLabel,
    /// Whether the configuration could be read again.
    pub reloads: Arc<Reloads>,
    /// What the self-check found.
    pub mismatched: Arc<AtomicUsize>,
    /// Whose file system must not be full.
    pub data_dir: PathBuf,
}

/// How the last reload went; the start counts as one.
#[derive(Debug)]
pub struct Reloads {
    successful: AtomicBool,
    /// When one last succeeded, in seconds since the epoch.
    succeeded: AtomicI64,
}

impl Reloads {
    /// The start has succeeded.
    #[expect(clippy::new_without_default, reason = "it reads the clock")]
    pub fn new() -> Self {
        let new = Self { successful: AtomicBool::new(true), succeeded: AtomicI64::new(0) };
        new.note(true);
        new
    }

    /// A reload succeeded, or not.
    pub fn note(&self, successful: bool) {
        self.successful.store(successful, Relaxed);
        if successful {
            self.succeeded.store(jiff::Timestamp::now().as_second(), Relaxed);
        }
    }

    /// Whether the last one succeeded, and when one last did.
    pub fn last(&self) -> (bool, i64) {
        (self.successful.load(Relaxed), self.succeeded.load(Relaxed))
    }
}

/// Registers every gauge.
pub fn watch(telemetry: &Telemetry, watched: &Watched) {
    let all = GAUGES.iter().chain(ABOUT_THE_PROCESS);
    for &(name, help, read) in all {
        let watched = watched.clone();
        telemetry.watch(name, help, move || read(&watched));
    }
    watch_holds(telemetry, watched);
    process::watch(telemetry);
}

fn watch_holds(telemetry: &Telemetry, watched: &Watched) {
    // One look at all holds for both: the second uses what the first found in the same scrape.
    let seen: Arc<Mutex<Option<Option<Timestamp>>>> = Arc::default();
    let (engine, see) = (watched.engine.clone(), Arc::clone(&seen));
    let help = "Charges that are held and not settled";
    telemetry.watch("tollgate_holds_open", help, move || {
        let (open, oldest) = engine.open_holds();
        *see.lock() = Some(oldest);
        one(open as f64)
    });
    let (engine, clock) = (watched.engine.clone(), watched.clock.clone());
    let help = "Seconds since the oldest open hold was made";
    telemetry.watch("tollgate_hold_oldest_age_seconds", help, move || {
        let seen = seen.lock().take();
        let oldest = seen.unwrap_or_else(|| engine.open_holds().1);
        one(oldest.map_or(0.0, |at| clock.now().duration_since(at).as_secs_f64()))
    });
    let (found, here) = (watched.engine.in_doubt(), telemetry.in_doubt());
    let help = "Charges that were settled without their owner, at the start or since, by how";
    telemetry.watch("tollgate_in_doubt_total", help, move || {
        let both = ["captured", "voided"].into_iter().zip(found);
        let sample = |((word, before), since): ((&str, usize), &AtomicU64)| {
            let count = before as f64 + since.load(Relaxed) as f64;
            (vec![("resolution", word.to_owned())], count)
        };
        both.zip(here.iter()).map(sample).collect()
    });
    let replays = telemetry.replays();
    let help = "Answers that were given again to a request under the same Idempotency-Key";
    let count = move || one(replays.load(Relaxed) as f64);
    telemetry.watch("tollgate_idempotent_replays_total", help, count);
}

type Gauge = (&'static str, &'static str, fn(&Watched) -> Vec<Sample>);

const GAUGES: &[Gauge] = &[
    (
        "tollgate_journal_torn_bytes",
        "Bytes of a torn write that this start cut off the journal's end",
        |w| one(recovery(w).torn_bytes as f64),
    ),
    ("tollgate_in_flight_requests", "Requests in flight", |w| one(w.limits.in_flight() as f64)),
    ("tollgate_jobs_open", "Jobs whose outcome is not known yet", |w| one(w.jobs.len() as f64)),
    ("tollgate_connections", "Clients connected", |w| one(w.limits.connections() as f64)),
    ("tollgate_ledger_lag_records", "Records that are not archived yet", |w| {
        one(w.archive.lag(w.engine.embedded().map_or(0, |engine| engine.records_written())) as f64)
    }),
    (
        "tollgate_ledger_lag_seconds",
        "Seconds since the last archived record, while there are others",
        |w| {
            let Some(engine) = w.engine.embedded() else {
                return one(w.archive.waits().as_secs_f64());
            };
            let behind = w.archive.position() < engine.written();
            let age = |at| w.clock.now().duration_since(at).as_secs_f64().max(0.0);
            one(if behind { w.archive.newest().map_or(0.0, age) } else { 0.0 })
        },
    ),
    ("tollgate_ledger_dead_letters", "Records that the archive keeps and cannot read", |w| {
        one(w.archive.dead_letters() as f64)
    }),
    (
        "tollgate_pool_granted_operations",
        "Operations granted to the pool of the current term",
        |w| pools(w, |pool, _| pool.granted()),
    ),
    (
        "tollgate_pool_available_operations",
        "Operations left in the pool of the current term",
        |w| pools(w, |pool, _| pool.available()),
    ),
    ("tollgate_pool_held_operations", "Operations of the pool in open charges", |w| {
        pools(w, |pool, _| pool.held)
    }),
    ("tollgate_overage_operations", "Operations used past the pool in the current term", |w| {
        pools(w, |_, overage| overage.captured)
    }),
    ("tollgate_overdraft_credits", "Credits that users owe", overdrafts),
    (
        "tollgate_books_redone_total",
        "Batches that Redis had lost, and that this gateway did again",
        |w| w.engine.redone().map_or(Vec::new(), |redone| one(redone as f64)),
    ),
];

const ABOUT_THE_PROCESS: &[Gauge] = &[
    (
        "tollgate_books_mismatched_accounts",
        "Accounts whose balance differs from what their records add up to",
        |w| one(w.mismatched.load(Relaxed) as f64),
    ),
    (
        "tollgate_directory_age_seconds",
        "Seconds since the directory in memory was last known to be the newest",
        |w| one(w.live.age().as_secs_f64()),
    ),
    (
        "tollgate_config_last_reload_successful",
        "1 when the configuration in force is the file's, 0 when the file was refused",
        |w| one(f64::from(u8::from(w.reloads.last().0))),
    ),
    (
        "tollgate_config_last_reload_success_timestamp_seconds",
        "When the configuration was last read with success",
        |w| one(w.reloads.last().1 as f64),
    ),
    ("tollgate_data_free_bytes", "What is free for the data dir", |w| {
        // A file system that cannot say has no sample.
        let free = rustix::fs::statvfs(&w.data_dir).ok();
        free.map_or(Vec::new(), |free| one((free.f_bavail * free.f_frsize) as f64))
    }),
    (
        "tollgate_clock_offset_seconds",
        "How far the system's clock is ahead of the gateway's time",
        |w| one(w.clock.offset() as f64 / 1e6),
    ),
];

/// Registers whether backends are healthy: 1 where at least one address is in use.
pub fn watch_backends(
    telemetry: &Telemetry,
    backends: impl Fn() -> Vec<Arc<Addresses>> + Send + Sync + 'static,
) {
    let help = "Whether at least one address of the backend is in use";
    telemetry.watch("tollgate_upstream_healthy", help, move || {
        let sample = |backend: &Arc<Addresses>| {
            let healthy = if backend.healthy() { 1.0 } else { 0.0 };
            (vec![("upstream", backend.upstream().to_owned())], healthy)
        };
        backends().iter().map(sample).collect()
    });
}

fn recovery(watched: &Watched) -> Recovery {
    watched.engine.embedded().map_or_else(Recovery::default, |engine| engine.recovery())
}

fn one(value: f64) -> Vec<Sample> {
    vec![(Vec::new(), value)]
}

/// A number of each org's pool and overage, summed over the orgs that share a label.
fn pools(watched: &Watched, read: fn(&Balance, &Balance) -> u64) -> Vec<Sample> {
    let now = watched.clock.now();
    let snapshot = watched.live.load();
    let mut sums = BTreeMap::new();
    for org in snapshot.orgs.values() {
        let moment = org.moment(now);
        let Some(accounts) = org.pool_accounts(&moment) else { continue };
        let [pool, overage] = accounts.each_ref().map(|account| watched.engine.balance(account));
        let (Some(pool), Some(overage)) = (pool, overage) else { continue };
        let sum: &mut u64 = sums.entry(label(&watched.label, org.id.as_str())).or_default();
        *sum = sum.saturating_add(read(&pool, &overage));
    }
    samples(sums)
}

/// What users owe in the current cycle, by org: the reset ends it (D31). Embedded books look at every
/// account: a scrape may take a while where there are millions of them, but no request waits for it
/// longer than for one account. Those in Redis keep the sums.
fn overdrafts(watched: &Watched) -> Vec<Sample> {
    let now = watched.clock.now();
    let snapshot = watched.live.load();
    let mut sums = BTreeMap::new();
    watched.engine.for_each_owed(|org, period, owed| {
        let cycle = snapshot.orgs.get(org).map(|org| org.moment(now).cycle.label);
        if cycle == Some(period) {
            let sum: &mut u64 = sums.entry(label(&watched.label, org)).or_default();
            *sum = sum.saturating_add(owed);
        }
    });
    samples(sums)
}

fn samples(sums: BTreeMap<String, u64>) -> Vec<Sample> {
    let sample = |(org, micro): (String, u64)| (vec![("org", org)], micro as f64 / MICRO as f64);
    sums.into_iter().map(sample).collect()
}

fn label(policy: &OrgLabel, org: &str) -> String {
    if policy.names(org) { org } else { OrgLabel::OTHER }.to_owned()
}
