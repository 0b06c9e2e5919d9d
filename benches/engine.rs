//! What the engine costs: planning, quoting, hold and capture with their journal records, and
//! the journal alone. Times are of this machine and this minute; compare within one run.

#![expect(clippy::expect_used, reason = "a bench that panics has no result")]

mod worker;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use jiff::Timestamp;
use smallvec::smallvec;
use tollgate::books::Durability;
use tollgate::books::embedded::{Engine, Session};
use tollgate::books::journal::{Frames, Journal, SEGMENT_SIZE};
use tollgate::core::account::{Account, AccountKind};
use tollgate::core::cycle::{Anchor, Schedule};
use tollgate::core::price::{Measure, RateCard, RateCardFile};
use tollgate::core::waterfall::{self, PoolAccess, Position, Split};
use worker::{Seats, charge};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEATS: usize = 100_000;
/// How many charges a worker has in flight: their holds share a write, and so do their captures.
const IN_FLIGHT: [u64; 2] = [16, 64];

fn books(c: &mut Criterion) {
    let seats = Seats::new(SEATS);
    let mut group = c.benchmark_group("hold+capture");
    group
        .throughput(Throughput::Elements(1))
        .measurement_time(Duration::from_secs(3))
        .sample_size(20);
    type Case = (&'static str, AccountKind, fn(u64) -> usize);
    let cases: [Case; 3] = [
        ("one seat", AccountKind::Licence, |_| 0),
        ("many seats", AccountKind::Licence, |n| {
            (n.wrapping_mul(0x9e37_79b9) % SEATS as u64) as usize
        }),
        ("one hot pool", AccountKind::Pool, |_| 0),
    ];
    for (name, kind, seat) in cases {
        for (threads, in_flight) in [1, 2].into_iter().flat_map(|t| IN_FLIGHT.map(|f| (t, f))) {
            let dir = tempfile::tempdir().expect("a directory");
            let engine = Engine::open(dir.path(), Timestamp::UNIX_EPOCH).expect("opened");
            let sessions: Vec<Session> = (0..threads).map(|_| engine.session()).collect();
            let seats = &seats;
            // Every account is open before the clock starts: few charges are a seat's first of
            // the cycle.
            charge(&sessions[0], seats, kind, |n| n as usize % SEATS, SEATS as u64, 0, in_flight);
            let mut base = 1 << 40;
            group.bench_function(
                BenchmarkId::new(name, format!("{threads} threads, {in_flight} in flight each")),
                |b| {
                    b.iter_custom(|count| {
                        let each = count / threads + 1;
                        let start = Instant::now();
                        std::thread::scope(|scope| {
                            for session in &sessions {
                                base += each;
                                let base = base;
                                scope.spawn(move || {
                                    charge(session, seats, kind, seat, each, base, in_flight)
                                });
                            }
                        });
                        start.elapsed()
                    });
                },
            );
        }
    }
    group.finish();
}

fn journal(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = Journal::open(dir.path(), 0, SEGMENT_SIZE, Durability::Process).expect("opened");
    let mut group = c.benchmark_group("journal");
    for batch in [1_u64, 16, 64] {
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::new("append 200-byte records", batch), |b| {
            let mut frames = Frames::default();
            b.iter(|| {
                for _ in 0..batch {
                    frames.push_bytes(&[7; 200]);
                }
                journal.append(&mut frames).expect("written")
            });
        });
    }
    group.finish();
}

fn card() -> RateCard {
    let file: RateCardFile = toml::from_str(
        r#"
        version = "2026-11"
        operations_per_credit = "0.02"
        [[rate]]
        feature = "text-to-image"
        credits = "1"
        [[rate]]
        feature = "text-to-image"
        when = { resolution = "2k" }
        credits = "3"
        "#,
    )
    .expect("a card");
    RateCard::new(file).expect("valid")
}

fn policy(c: &mut Criterion) {
    let card = card();
    let measures = [Measure { meter: None, quantity: 2_000_000 }];
    let attributes = [("resolution", "2k")];
    let quoted = || card.quote("text-to-image", &attributes, &measures);
    c.bench_function("quote", |b| b.iter(|| black_box(quoted())));

    let quote = quoted().expect("priced");
    let seats = Seats::new(4);
    let mut accounts: smallvec::SmallVec<[Account<'_>; 8]> = smallvec![];
    accounts.extend((0..3).map(|n| seats.account(n, AccountKind::Licence)));
    accounts.push(seats.account(3, AccountKind::Overdraft));
    let cycle = Schedule::new(Anchor::CalendarMonth, jiff::tz::TimeZone::UTC)
        .cycle_at(Timestamp::UNIX_EPOCH);
    let position = Position {
        accounts,
        licences: 3,
        tallies: Default::default(),
        overdraft: Some(3),
        pool: PoolAccess::None(vec![]),
        split: Split::Split,
        cycle,
    };
    c.bench_function("plan", |b| b.iter(|| black_box(waterfall::plan(&quote, &position, None))));
}

criterion_group!(benches, books, journal, policy);
criterion_main!(benches);
