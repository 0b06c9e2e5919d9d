//! P9: how long the books take to open: a journal of many records without a snapshot, and the
//! same with one. A line of JSON for each round. `loadtest/p9` runs it; by itself:
//! `cargo bench --bench recovery -- --records 10000000 --accounts 1000000 --rounds 3`.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a bench tells what it measured")]

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use jiff::Timestamp;
use smallvec::smallvec;
use tollgate::books::embedded::{Engine, Session};
use tollgate::books::{Ask, Books, InDoubt, Posted, Resolution, Resolved};
use tollgate::core::account::{
    Account, AccountKey, AccountKind, AccountName, Grant, LegKind, Payer, Post, Source, Stem,
    Version,
};
use tollgate::core::amount::MAX_MICRO;
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::core::cycle::Label;
use tollgate::core::ids::ChargeId;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Arguments {
    /// Where the books are made, and stay; a directory of its own that is removed without it.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How many records; two for each charge.
    #[arg(long, default_value_t = 10_000_000)]
    records: u64,
    /// How many accounts they are of, one after the other.
    #[arg(long, default_value_t = 1_000_000)]
    accounts: u64,
    /// How often the books are opened, each way.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// What cargo says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

const IN_FLIGHT: u64 = 64;
/// The memo of a usual charge is about this long.
const MEMO: [u8; 96] = [7; 96];

fn main() {
    let Arguments { dir, records, accounts, rounds, .. } = Arguments::parse();
    let own = tempfile::tempdir().expect("a directory");
    let dir = dir.unwrap_or_else(|| own.path().to_owned());
    let began = Instant::now();
    let engine = Engine::open(&dir, Timestamp::UNIX_EPOCH).expect("opened");
    charge(&engine.session(), records / 2, accounts.max(1));
    engine.close().expect("closed");
    drop(engine);
    println!("{records} records written in {:.1} s", began.elapsed().as_secs_f64());
    for snapshot in [false, true] {
        if snapshot {
            let engine = Engine::open(&dir, Timestamp::UNIX_EPOCH).expect("opened");
            let (began, cpu) = (Instant::now(), cpu());
            assert!(engine.snapshot(Timestamp::UNIX_EPOCH).expect("folded"), "nothing to fold");
            let took = began.elapsed().as_secs_f64();
            println!("a snapshot took {took:.2} s, {:.2} s of CPU", self::cpu() - cpu);
        }
        for round in 1..=rounds {
            open(&dir, round, snapshot, records);
        }
    }
}

fn open(dir: &std::path::Path, round: u32, snapshot: bool, records: u64) {
    let (began, cpu) = (Instant::now(), cpu());
    let engine = Engine::open(dir, Timestamp::UNIX_EPOCH).expect("opened");
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), self::cpu() - cpu);
    let recovery = engine.recovery();
    let read = if snapshot { 0 } else { records / 2 * 2 };
    // The journal has marks of what is synced beside what was asked for: one every few MiB.
    let marks = recovery.records.checked_sub(read).expect("it read what it should");
    assert!(marks < 1_000, "{marks} records more than were made");
    println!(
        "{{\"round\":{round},\"snapshot\":{snapshot},\"records\":{read},\"accounts\":{},\
         \"seconds\":{seconds:.3},\"cpu\":{cpu:.2}}}",
        recovery.accounts
    );
}

/// One charge after the other of all accounts, as a worker with so many requests in flight.
fn charge(session: &Session, count: u64, accounts: u64) {
    let ids: Vec<[String; 2]> =
        (0..accounts).map(|n| [format!("lic-{n:07}"), format!("u{n:07}")]).collect();
    let period: Label = "2026-11-01".parse().expect("a date");
    let kind = AccountKind::Licence;
    let version = Version { epoch: 1, number: 1 };
    let account = |n: u64| {
        let [licence, user] = &ids[(n % accounts) as usize];
        let stem = Stem::new(&["load", "licence", licence, user]);
        let ids = [licence.as_str(), user.as_str()];
        Account {
            key: AccountKey { stem, period, kind },
            name: AccountName { org: "load", kind, ids, period },
            grant: Grant { base: MAX_MICRO, version },
        }
    };
    let payer = Payer { slot: 0, kind: LegKind::Licence, cap: None };
    let post = Post { sources: smallvec![Source::take(1, [payer])], look: smallvec![] };
    let (now, memo) = (Timestamp::UNIX_EPOCH, OutcomeMemo::default());
    let resolution = Resolution::plain(State::Captured, &[1], now, &memo);
    let id = |n| ChargeId::v7(n, u128::from(n) << 7);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        for first in (0..count).step_by(IN_FLIGHT as usize) {
            let turn = first..count.min(first + IN_FLIGHT);
            let hold = |n| {
                let (accounts, in_doubt) = (&[account(n)], InDoubt::Void);
                let (charge, post) = (id(n), &post);
                session.hold(&Ask {
                    charge,
                    accounts,
                    post,
                    now,
                    in_doubt,
                    memo: &MEMO,
                    lasting: None,
                })
            };
            // Begun when called: the first that waits writes the records of all.
            let holds: Vec<_> = turn.clone().map(hold).collect();
            for hold in holds {
                assert!(matches!(hold.await, Ok(Posted::Done(..))));
            }
            let captures: Vec<_> = turn.map(|n| session.resolve(id(n), &resolution)).collect();
            for capture in captures {
                assert!(matches!(capture.await, Ok(Resolved::Done(..))));
            }
        }
    });
}

/// Seconds of CPU that this process has used, in ticks of a hundredth.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
    let field = |at| behind.split_whitespace().nth(at).and_then(|word| word.parse::<f64>().ok());
    (field(11).unwrap_or_default() + field(12).unwrap_or_default()) / 100.0
}
