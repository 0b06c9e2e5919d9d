//! A million random operations on the books and on a naive model of them. After every step all
//! accounts it touched are compared with the sums of the model's open and captured legs, grants
//! and adjustments (D37); every [`EVERYTHING`] steps and after every recovery all accounts are.
//!
//! The engine is a parameter: `on_files`, where a crash leaves a part of what was written, and
//! `on_redis`, where it leaves what Redis has done, and less of it is played because Redis is asked.
//!
//! `TOLLGATE_MODEL_SEED` replays one world, `TOLLGATE_MODEL_STEPS` runs another number of steps.

mod ask;
mod disk;
mod naive;
mod on_files;
mod on_redis;
mod play;
mod subject;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use self::play::Play;
use self::subject::Subject;

/// Operations altogether, on files and on Redis.
const STEPS: u64 = 1_000_000;
const STEPS_ON_REDIS: u64 = 40_000;
/// Operations of one world, on one data dir.
const WORLD: u64 = 10_000;
/// After how many operations every account is compared, and not only those just touched.
const EVERYTHING: u64 = 200;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

fn play<S: Subject>(seed: u64) -> BTreeMap<&'static str, u64> {
    let mut play = Play::<S>::new(seed);
    match catch_unwind(AssertUnwindSafe(|| play.run(WORLD))) {
        Ok(()) => play.seen,
        Err(_) => panic!("step {}; replay with TOLLGATE_MODEL_SEED={seed}", play.step),
    }
}

#[test]
fn d37_a_million_random_operations_come_out_as_a_naive_model_says() {
    play_all::<on_files::OnFiles>(STEPS);
}

#[test]
fn d37_random_operations_on_redis_come_out_as_a_naive_model_says() {
    play_all::<on_redis::OnRedis>(STEPS_ON_REDIS);
}

fn play_all<S: Subject>(steps: u64) {
    if let Some(seed) = number("TOLLGATE_MODEL_SEED") {
        play::<S>(seed);
        return;
    }
    let steps = number("TOLLGATE_MODEL_STEPS").unwrap_or(steps);
    let next = AtomicU64::new(0);
    let seen = Mutex::new(BTreeMap::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        let work = || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed * WORLD >= steps {
                    break;
                }
                for (what, count) in play::<S>(seed) {
                    *seen.lock().unwrap().entry(what).or_default() += count;
                }
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            thread.join().unwrap();
        }
    });
    // A generator that misses a kind of operation proves nothing about it.
    let seen: BTreeMap<&str, u64> = seen.into_inner().unwrap();
    for what in play::KINDS.iter().chain(S::KINDS) {
        let count = seen.get(what).copied().unwrap_or(0);
        assert!(count * 10_000 >= steps, "{what}: only {count} of {steps}; {seen:?}");
    }
    assert!(seen["operations"] >= steps);
}
