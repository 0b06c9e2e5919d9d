//! P11: what a charge costs where nothing is acknowledged before the disk has it. Hold and capture
//! of 256 charges in flight against what the same disk syncs, in turn, in one run.
//!
//! `cargo bench --bench power [-- ROUNDS [DIR]]`: DIR is on the disk in question; absent, the
//! build's own target directory.

#![expect(clippy::expect_used, reason = "a bench that panics has no result")]
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

mod worker;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tollgate::books::Durability;
use tollgate::books::embedded::{Engine, Options};
use tollgate::core::account::AccountKind;
use worker::{Seats, charge};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const IN_FLIGHT: u64 = 256;
const SEATS: usize = 10_000;
const ROUND: Duration = Duration::from_secs(3);
/// What a turn of holds is in the journal, roughly: the plain syncs write as much each.
const WRITTEN: usize = IN_FLIGHT as usize * 200;

fn main() {
    // cargo adds `--bench`.
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let rounds = words.next().map_or(5, |word| word.parse().expect("a number of rounds"));
    let base = words.next().unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").to_owned());
    let dir = tempfile::tempdir_in(base).expect("a directory");
    let options = Options { durability: Durability::Power, ..Options::default() };
    let engine = Engine::open_with(&dir.path().join("books"), Timestamp::UNIX_EPOCH, options);
    let (engine, seats) = (engine.expect("opened"), Seats::new(SEATS));
    let session = engine.session();
    let mut next = 0;
    let mut turn = || {
        let seat = |n: u64| (n % SEATS as u64) as usize;
        charge(&session, &seats, AccountKind::Licence, seat, IN_FLIGHT, next, IN_FLIGHT);
        next += IN_FLIGHT;
        IN_FLIGHT
    };
    // Every account is open before the clock starts.
    for _ in 0..=SEATS as u64 / IN_FLIGHT {
        turn();
    }
    let mut ratios = Vec::new();
    for round in 1..=rounds {
        let syncs = rate(sync_once(dir.path()));
        let charges = rate(&mut turn);
        let ratio = charges / syncs;
        println!("round {round}: {syncs:.0} syncs/s, {charges:.0} charges/s, ratio {ratio:.1}");
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "P11 hold + capture with {IN_FLIGHT} in flight ÷ syncs: median {:.1}, {:.1} to {:.1}; must ≥ 50, aim ≥ 200",
        ratios[ratios.len() / 2],
        ratios.first().expect("a round"),
        ratios.last().expect("a round"),
    );
}

/// How many a second, for as long as a round takes.
fn rate(mut work: impl FnMut() -> u64) -> f64 {
    let (start, mut done) = (Instant::now(), 0);
    while start.elapsed() < ROUND {
        done += work();
    }
    done as f64 / start.elapsed().as_secs_f64()
}

/// Writes as much as a turn does over what is there already, and syncs it: the fastest that a
/// file can be synced.
fn sync_once(dir: &Path) -> impl FnMut() -> u64 {
    const TURNS: usize = 64;
    let file = std::fs::File::create(dir.join("plain")).expect("a file");
    file.write_all_at(&[0; TURNS * WRITTEN], 0).expect("written");
    file.sync_all().expect("synced");
    let mut turn = 0;
    move || {
        turn = (turn + 1) % TURNS;
        file.write_all_at(&[7; WRITTEN], (turn * WRITTEN) as u64).expect("written");
        file.sync_data().expect("synced");
        1
    }
}
