//! What the benches of the books share: seats, and charges as a worker makes them.

use std::pin::Pin;

use jiff::Timestamp;
use smallvec::smallvec;
use tollgate::books::embedded::Session;
use tollgate::books::{Ask, Books, InDoubt, Posted, Resolution, Resolved};
use tollgate::core::account::{
    Account, AccountKey, AccountKind, AccountName, Grant, LegKind, Payer, Post, Source, Stem,
    Version,
};
use tollgate::core::amount::MAX_MICRO;
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::core::cycle::Label;
use tollgate::core::ids::ChargeId;

/// What a snapshot knows of each seat that the books look at. Their names are all alike: the
/// books print one when they open an account, and never look at it again.
pub struct Seats {
    stems: Vec<Stem>,
}

impl Seats {
    pub fn new(count: usize) -> Self {
        let stems = (0..count).map(|n| Stem::new(&["acme", &format!("user-{n}")])).collect();
        Self { stems }
    }

    pub fn account(&self, n: usize, kind: AccountKind) -> Account<'_> {
        let period = if kind == AccountKind::Pool { Label::NONE } else { label() };
        Account {
            key: AccountKey { stem: self.stems[n], period, kind },
            name: AccountName { org: "acme", kind, ids: ["user", ""], period },
            grant: Grant { base: MAX_MICRO, version: Version { epoch: 1, number: 1 } },
        }
    }
}

pub fn label() -> Label {
    "2026-11-01".parse().expect("a date")
}

pub fn take(kind: LegKind) -> Post {
    let source = Source::take(1, [Payer { slot: 0, kind, cap: None }]);
    Post { sources: smallvec![source], look: smallvec![] }
}

/// The memo of a usual charge is about this long.
const MEMO: [u8; 96] = [7; 96];

/// Places for the futures of a turn, kept from turn to turn.
pub struct Turn<F>(Vec<Pin<Box<Option<F>>>>);

impl<F: Future> Turn<F> {
    pub fn new(places: u64) -> Self {
        Self((0..places).map(|_| Box::pin(None)).collect())
    }

    /// Polls each future once, as a worker polls its tasks: the work is done by then, the answer
    /// waits for the flush. Then takes every answer.
    pub async fn run(&mut self, futures: impl Iterator<Item = F>, mut see: impl FnMut(F::Output)) {
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
pub fn charge(
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
    let resolution = Resolution::plain(State::Captured, &[1], now, &memo);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let (mut holds, mut captures) = (Turn::new(in_flight), Turn::new(in_flight));
        let id = |n| ChargeId::v7(base + n, u128::from(n) << 7);
        let hold = |n| {
            // A request's accounts are on its worker's stack, made from the snapshot's stems.
            let accounts = &[seats.account(seat(n), kind)];
            let in_doubt = InDoubt::Void;
            session.hold(&Ask {
                charge: id(n),
                accounts,
                post: &post,
                now,
                in_doubt,
                memo: &MEMO,
                lasting: None,
            })
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
