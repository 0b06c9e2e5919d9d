//! What the engine costs: planning, quoting, hold and capture with their journal records, and
//! the journal alone. Times are of this machine and this minute; compare within one run.

#![expect(clippy::expect_used, reason = "a bench that panics has no result")]

use std::hint::black_box;
use std::pin::Pin;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use jiff::Timestamp;
use smallvec::smallvec;
use tollgate::books::embedded::{Engine, Session};
use tollgate::books::journal::{Frames, Journal, SEGMENT_SIZE};
use tollgate::books::{Ask, Books, Durability, InDoubt, Posted, Resolution, Resolved};
use tollgate::core::account::{
    Account, AccountKey, AccountKind, AccountName, Grant, LegKind, Payer, Post, Source, Stem,
    Version,
};
use tollgate::core::amount::MAX_MICRO;
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::core::cycle::{Anchor, Label, Schedule};
use tollgate::core::ids::ChargeId;
use tollgate::core::price::{Measure, RateCard, RateCardFile};
use tollgate::core::waterfall::{self, PoolAccess, Position, Split};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEATS: usize = 100_000;
/// How many charges a worker has in flight: their holds share a write, and so do their captures.
const IN_FLIGHT: [u64; 2] = [16, 64];

/// What a snapshot knows of each seat that the books look at. Their names are all alike: the
/// books print one when they open an account, and never look at it again.
struct Seats {
    stems: Vec<Stem>,
}

impl Seats {
    fn new(count: usize) -> Self {
        let stems = (0..count).map(|n| Stem::new(&["acme", &format!("user-{n}")])).collect();
        Self { stems }
    }

    fn account(&self, n: usize, kind: AccountKind) -> Account<'_> {
        let period = if kind == AccountKind::Pool { Label::NONE } else { label() };
        Account {
            key: AccountKey { stem: self.stems[n], period, kind },
            name: AccountName { org: "acme", kind, ids: ["user", ""], period },
            grant: Grant { base: MAX_MICRO, version: Version { epoch: 1, number: 1 } },
        }
    }
}

fn label() -> Label {
    "2026-11-01".parse().expect("a date")
}

fn take(kind: LegKind) -> Post {
    let source = Source::take(1, [Payer { slot: 0, kind, cap: None }]);
    Post { sources: smallvec![source], look: smallvec![] }
}

/// The memo of a usual charge is about this long.
const MEMO: [u8; 96] = [7; 96];

/// Places for the futures of a turn, kept from turn to turn.
struct Turn<F>(Vec<Pin<Box<Option<F>>>>);

impl<F: Future> Turn<F> {
    fn new(places: u64) -> Self {
        Self((0..places).map(|_| Box::pin(None)).collect())
    }

    /// Polls each future once, as a worker polls its tasks: the work is done by then, the answer
    /// waits for the flush. Then takes every answer.
    async fn run(&mut self, futures: impl Iterator<Item = F>, mut see: impl FnMut(F::Output)) {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut begun = 0;
        for (place, future) in self.0.iter_mut().zip(futures) {
            place.set(Some(future));
            begun += 1;
        }
        for place in &mut self.0[..begun] {
            let future = place.as_mut().as_pin_mut().expect("a future");
            assert!(future.poll(&mut context).is_pending(), "acknowledged before it was written");
        }
        for place in &mut self.0[..begun] {
            see(place.as_mut().as_pin_mut().expect("a future").await);
            place.set(None);
        }
    }
}

/// Holds and captures `count` charges, a turn of holds and then a turn of captures at a time, as
/// a worker with as many requests in flight does.
fn charge(
    session: &Session,
    seats: &Seats,
    kind: AccountKind,
    seat: impl Fn(u64) -> usize,
    count: u64,
    base: u64,
    in_flight: u64,
) {
    let leg = if kind == AccountKind::Pool { LegKind::Pool } else { LegKind::Licence };
    let post = take(leg);
    let memo = OutcomeMemo::default();
    let now = Timestamp::UNIX_EPOCH;
    let resolution =
        Resolution { state: State::Captured, keep: &[1], extra: None, now, memo: &memo };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let (mut holds, mut captures) = (Turn::new(in_flight), Turn::new(in_flight));
        let id = |n| ChargeId::v7(base + n, u128::from(n) << 7);
        let hold = |n| {
            // A request's accounts are on its worker's stack, made from the snapshot's stems.
            let accounts = &[seats.account(seat(n), kind)];
            let in_doubt = InDoubt::Void;
            session.hold(&Ask { charge: id(n), accounts, post: &post, now, in_doubt, memo: &MEMO })
        };
        let capture = |n| session.resolve(id(n), &resolution);
        let mut n = 0;
        while n < count {
            let turn = n..count.min(n + in_flight);
            let held = |posted| assert!(matches!(posted, Ok(Posted::Done(..))));
            holds.run(turn.clone().map(hold), held).await;
            let captured = |resolved| assert!(matches!(resolved, Ok(Resolved::Done(..))));
            captures.run(turn.clone().map(capture), captured).await;
            n = turn.end;
        }
    });
}

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
