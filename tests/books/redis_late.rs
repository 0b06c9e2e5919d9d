//! Captures of charges that others have voided without their owner (f23): posted all the same, once.

use std::collections::HashMap;
use std::time::Duration;

use jiff::SignedDuration;
use tokio::task::JoinSet;
use tollgate::books::redis::{self, Session, ledger::Entry};
use tollgate::books::{
    Amended, Ask, Books, BooksError, InDoubt, KEPT_KEYS, Once, Resolution, Resolved,
};
use tollgate::core::account::{Account, Balance, LegKind, Post, Source};
use tollgate::core::amount::MAX_MICRO;
use tollgate::core::charge::{Flags, OutcomeMemo, State};
use tollgate::core::record::{Record, Resolve};
use tollgate::ledger::verify::Verifier;

use crate::engine::{
    NOW, account, amendment, ask, balance, done, id, key, name, payer, post, resolution, second,
    take, under, until,
};
use crate::engine_redis::{EventLoop, options};
use crate::redis_server::RedisServer;

/// Two gateways, of which the second one ends what the first one holds.
struct Two {
    engine: redis::Engine,
    owner: Session,
    other: Session,
    runtime: EventLoop,
    server: RedisServer,
}

impl Two {
    fn start() -> Self {
        let (server, runtime) = (RedisServer::start(), EventLoop::start());
        // Nobody is absent here, however slow the machine is.
        let owner_timeout = Duration::from_secs(600);
        let options = redis::Options { owner_timeout, ..options(&server) };
        let opening = redis::Engine::open(options, runtime.handle.clone(), NOW);
        let engine = runtime.handle.block_on(opening).unwrap();
        Self { owner: engine.session(), other: engine.session(), engine, runtime, server }
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.handle.block_on(future)
    }

    fn hold(&self, asked: &Ask<'_>) {
        assert!(done(self.run(self.owner.hold(asked)).unwrap()).is_some());
    }

    fn abandon(&self, charge: u64) -> State {
        self.run(self.other.abandon(id(charge), NOW)).unwrap().unwrap().state
    }

    fn resolve(&self, charge: u64, state: State, keep: &[u64]) -> Resolved {
        let memo = OutcomeMemo::default();
        self.run(self.owner.resolve(id(charge), &resolution(state, keep, &memo))).unwrap()
    }

    /// Captures a charge with more, and makes a hold in the same batch behind it: what was not done
    /// must leave nothing that is written with that.
    fn capture_with(
        &self,
        charge: u64,
        keep: [u64; 2],
        accounts: [Account<'static>; 2],
        post: &Post,
        next: u64,
    ) -> Result<Resolved, BooksError> {
        let (session, post) = (self.owner.clone(), post.clone());
        let mut task = JoinSet::new();
        let both = async move {
            let memo = OutcomeMemo::default();
            let capture = resolution(State::Captured, &keep, &memo);
            let capture = Resolution { extra: Some((&accounts[..], &post)), ..capture };
            // On the driver's own event loop, so that it takes both at once.
            let captured = session.resolve(id(charge), &capture);
            let other = [account("other", 100, 1)];
            let one = take(1, &[0]);
            let held = session.hold(&ask(next, &other, &one));
            (captured.await, held.await)
        };
        task.spawn_on(both, &self.runtime.handle);
        let (captured, held) = self.run(task.join_all()).remove(0);
        assert!(done(held.unwrap()).is_some());
        captured
    }

    /// Every account, when it is what the records add up to, and the verifier finds nothing.
    fn found(&self) -> HashMap<String, Balance> {
        let all = self.run(self.engine.balances()).unwrap();
        assert_eq!(self.findings(&all), [] as [&str; 0]);
        let folded = crate::engine_redis::folded(&self.engine, &self.runtime.handle);
        let all: HashMap<_, _> = all.into_iter().map(|(_, name, found)| (name, found)).collect();
        assert_eq!(folded.into_iter().collect::<HashMap<_, _>>(), all);
        all
    }

    fn findings(
        &self,
        all: &[(tollgate::core::account::AccountKey, String, Balance)],
    ) -> Vec<String> {
        let mut verifier = Verifier::default();
        for (_, bytes) in &self.entries() {
            for record in &Entry::read(bytes).unwrap().records {
                verifier.see(record);
            }
        }
        let stated = all.iter().map(|(key, name, found)| (*key, (name.clone(), *found)));
        verifier.compare("Redis", &stated.collect());
        verifier.findings().iter().map(ToString::to_string).collect()
    }

    fn entries(&self) -> Vec<redis::LedgerEntry> {
        self.run(self.engine.ledger(0, 0, 1000)).unwrap()
    }

    fn known(&self, once: Once) -> Option<(u64, bool)> {
        let known = self.run(self.owner.known(once.scope, &once.key)).unwrap()?;
        let charge = (1..100).find(|charge| id(*charge) == known.charge).unwrap();
        Some((charge, known.captured))
    }
}

fn already(resolved: &Resolved) -> Option<State> {
    match resolved {
        Resolved::Already(state) => Some(*state),
        _ => None,
    }
}

#[test]
fn f23_late_capture_of_what_others_voided_is_posted_once_and_recorded() {
    let books = Two::start();
    let accounts = [account("a", 20, 1)];
    let (ten, all) = (take(10, &[0]), take(20, &[0]));
    books.hold(&ask(1, &accounts, &ten));
    assert_eq!(books.abandon(1), State::Voided);
    books.hold(&Ask { in_doubt: InDoubt::Capture, ..ask(2, &accounts, &all) });
    assert_eq!(books.abandon(2), State::Captured);

    // There is nothing left to pay it with.
    match books.resolve(1, State::Captured, &[7]) {
        Resolved::Done(legs, view) => {
            assert!(legs.is_empty());
            assert_eq!(view.get(0), Some(balance(20, 0, 0, 27)));
        }
        other => panic!("{other:?}"),
    }
    for (charge, state) in
        [(1, State::Captured), (1, State::Voided), (2, State::Captured), (2, State::Voided)]
    {
        let again = books.resolve(charge, state, &[10]);
        assert_eq!(already(&again), Some(State::Captured), "{charge} {state}");
    }
    assert_eq!(books.found()[&name("a")], balance(20, 0, 0, 27));
    let entries = books.entries();
    let last = Entry::read(&entries.last().unwrap().1).unwrap().records;
    match &last[..] {
        [Record::Resolve(Resolve { charge, state, keep, extra, memo, .. })] => {
            assert_eq!((*charge, *state, keep.len()), (id(1).0, State::Captured, 0));
            assert_eq!((memo.flags, extra.len()), (Flags::LATE, 1));
            let leg = extra[0];
            assert_eq!((leg.key, leg.kind, leg.amount), (accounts[0].key, LegKind::Licence, 7));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn f23_what_else_is_late_is_told_how_it_ended() {
    let books = Two::start();
    let (accounts, ten) = ([account("a", 100, 1)], take(10, &[0]));
    for charge in [1, 2] {
        books.hold(&ask(charge, &accounts, &ten));
    }
    books.hold(&Ask { lasting: until(60), ..ask(3, &accounts, &ten) });
    books.abandon(1);
    assert_eq!(books.run(books.engine.expire(second(60))).whole().unwrap().len(), 1);
    assert_eq!(already(&books.resolve(1, State::Voided, &[])), Some(State::Voided));
    // Its time was over, and nobody was in doubt.
    assert!(matches!(books.resolve(3, State::Captured, &[10]), Resolved::Unknown));
    let amended = books.run(books.owner.amend(id(1), &amendment())).unwrap();
    assert!(matches!(amended, Amended::Already(State::Voided)), "{amended:?}");
    // What its owner ended was no doubt.
    assert!(matches!(books.resolve(2, State::Voided, &[]), Resolved::Done(..)));
    assert!(matches!(books.resolve(2, State::Captured, &[10]), Resolved::Unknown));
    assert!(matches!(books.resolve(4, State::Captured, &[10]), Resolved::Unknown));
    assert_eq!(books.found()[&name("a")], balance(100, 0, 0, 0));
}

#[test]
fn f23_what_somebody_else_ended_by_a_word_is_told_to_its_owner() {
    let books = Two::start();
    let (accounts, ten) = ([account("a", 100, 1)], take(10, &[0]));
    for charge in [1, 2] {
        books.hold(&ask(charge, &accounts, &ten));
    }
    books.hold(&Ask { lasting: until(60), ..ask(3, &accounts, &ten) });
    let memo = OutcomeMemo::default();
    for (charge, state, keep) in
        [(1, State::Voided, 0), (2, State::Captured, 4), (3, State::Voided, 0)]
    {
        let keep = [keep];
        let by_other = books.other.resolve(id(charge), &resolution(state, &keep, &memo));
        assert!(matches!(books.run(by_other).unwrap(), Resolved::Done(..)));
    }
    // Nothing of it comes late: whoever ended it knew how.
    for (charge, state) in [(1, State::Voided), (2, State::Captured)] {
        for _ in 0..2 {
            let resolved = books.resolve(charge, State::Captured, &[10]);
            assert_eq!(already(&resolved), Some(state), "{charge}");
        }
    }
    // Nobody is at work on one that lasts: whoever sees its end asks for it.
    assert!(matches!(books.resolve(3, State::Captured, &[10]), Resolved::Unknown));
    assert_eq!(books.found()[&name("a")], balance(100, 0, 0, 4));
}

#[test]
fn f23_d31_what_a_late_capture_takes_beyond_its_hold_is_done_with_it_or_not_at_all() {
    let books = Two::start();
    let held = [account("a", 10, 1), account("full", MAX_MICRO, 1)];
    let two = post([Source::take(10, [payer(0)]), Source::take(10, [payer(1)])]);
    books.hold(&ask(1, &held, &two));
    books.abandon(1);
    let others = [account("b", 3, 1), account("owes", 0, 1)];
    let five = take(5, &[0]);
    match books.capture_with(1, [10, 10], others, &five, 10).unwrap() {
        Resolved::Short(view) => assert_eq!(view.get(0), Some(balance(3, 0, 0, 0))),
        other => panic!("b cannot give 5: {other:?}"),
    }
    assert_eq!(books.found()[&name("a")], balance(10, 0, 0, 0));
    // An account that has given all that a number can hold gives no more: all or nothing.
    let most = Source::take(MAX_MICRO - 5, [payer(1)]);
    books.hold(&ask(2, &held, &post([most])));
    let owed = Source { forced: true, ..Source::take(2, [payer(1)]) };
    let excess = post([Source::take(3, [payer(0)]), owed]);
    let range = books.capture_with(1, [10, 10], others, &excess, 11);
    assert!(matches!(range, Err(BooksError::Range)), "{range:?}");
    assert_eq!(books.found()[&name("a")], balance(10, 0, 0, 0));
    assert!(matches!(books.resolve(2, State::Voided, &[]), Resolved::Done(..)));

    match books.capture_with(1, [10, 10], others, &excess, 12).unwrap() {
        Resolved::Done(legs, view) => {
            assert_eq!(legs.iter().map(|leg| leg.amount).collect::<Vec<u64>>(), [3, 2]);
            assert_eq!(view.get(0), Some(balance(10, 0, 0, 10)));
        }
        other => panic!("{other:?}"),
    }
    let all = books.run(books.engine.balances()).unwrap();
    let folded = crate::engine_redis::folded(&books.engine, &books.runtime.handle);
    for (which, captured) in [("a", 10), ("full", 10), ("b", 3), ("owes", 2)] {
        let found = all.iter().find(|(_, found, _)| *found == name(which)).unwrap().2;
        assert_eq!((found.held, found.captured), (0, captured), "{which}");
        assert_eq!(folded[&name(which)], found);
    }
}

#[test]
fn f23_d35_a_late_capture_has_its_key_again_and_is_forgotten_with_it() {
    let books = Two::start();
    let (accounts, ten) = ([account("a", 100, 1)], take(10, &[0]));
    let [free, taken] = [key(1, 1, 7), key(1, 2, 7)];
    books.hold(&Ask { lasting: under(free), ..ask(1, &accounts, &ten) });
    books.hold(&Ask { lasting: under(taken), ..ask(2, &accounts, &ten) });
    books.abandon(1);
    books.abandon(2);
    assert_eq!((books.known(free), books.known(taken)), (None, None));
    books.hold(&Ask { lasting: under(taken), ..ask(3, &accounts, &ten) });
    for charge in [1, 2] {
        assert!(matches!(books.resolve(charge, State::Captured, &[10]), Resolved::Done(..)));
    }
    assert_eq!((books.known(free), books.known(taken)), (Some((1, true)), Some((3, false))));

    let count = |command: &str, key: &str| -> u64 {
        let client = ::redis::Client::open(books.server.url()).unwrap();
        let mut connection = client.get_connection().unwrap();
        ::redis::cmd(command).arg(format!("tollgate:{{s0}}:{key}")).query(&mut connection).unwrap()
    };
    assert_eq!((count("HLEN", "ended"), count("ZCARD", "kept")), (2, 3));
    let sweep =
        |after: SignedDuration| books.run(books.engine.expire(NOW + after)).whole().unwrap();
    sweep(KEPT_KEYS);
    assert_eq!((count("HLEN", "ended"), count("ZCARD", "kept")), (2, 3));
    sweep(KEPT_KEYS + SignedDuration::from_secs(1));
    assert_eq!((count("HLEN", "ended"), count("ZCARD", "kept")), (0, 0));
    assert_eq!((books.known(free), books.known(taken)), (None, Some((3, false))));
    assert!(matches!(books.resolve(1, State::Captured, &[10]), Resolved::Unknown));
    // What is counted is what there is: the shard still answers.
    assert!(matches!(books.resolve(3, State::Captured, &[10]), Resolved::Done(..)));
    assert_eq!(books.found()[&name("a")], balance(100, 0, 0, 30));
}
