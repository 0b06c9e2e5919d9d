//! What a Redis that came back has lost is done again by each gateway as a whole, before anybody is told
//! what is not there (f27, f34).

use std::time::Duration;

use tollgate::books::redis::foreign::{Value, values};
use tollgate::books::{Ask, Books, BooksError, Resolved};
use tollgate::core::charge::{OutcomeMemo, State};

use crate::engine::{account, ask, balance, done, id, key, name, resolution, take, under};
use crate::redis_rejoin::Several;
use crate::redis_retired::calls;
use crate::redis_server::{RedisServer, until};

#[test]
fn f27_f34_hundreds_of_batches_are_done_again_in_order_and_in_few_calls() {
    let mut books = Several::start(1, Duration::from_millis(50));
    let charges = 300;
    let (accounts, take_ten) = ([account("a", 100_000_000, 1)], take(10, &[0]));
    books.hold(0, &ask(1, &accounts, &take_ten)).unwrap();
    books.save();
    for charge in 2..=charges {
        // Each one's key is free again: only in order are they what they were.
        let lasting = under(key(1, 1, 7));
        let asked = Ask { lasting, ..ask(charge, &accounts, &take_ten) };
        assert!(done(books.hold(0, &asked).unwrap()).is_some());
        let memo = OutcomeMemo::default();
        let void = resolution(State::Voided, &[], &memo);
        if charge < charges {
            books.run(0, async |session| session.resolve(id(charge), &void).await.unwrap());
        }
    }
    let batches = 2 * charges - 3;
    books.crash();
    books.all_enter();
    let calls = calls(&books.server);
    assert!(calls < batches / 4, "{batches} batches are done again in {calls} calls");
    assert_eq!(books.balances(0)[&name("a")], balance(100_000_000, 0, 20, 0));
    let known = books.run(0, async |session| session.known(1, &key(1, 1, 7).key).await.unwrap());
    assert_eq!(known.unwrap().charge, id(charges));
    books.is_as_recorded(0);
}

#[test]
fn f27_nobody_is_told_of_a_hold_before_this_gateway_has_done_its_part_again() {
    let mut books = Several::start(1, Duration::from_millis(1));
    let (accounts, take_ten) = ([account("a", 100_000, 1)], take(10, &[0]));
    let other = books.gateways[0].running.as_ref().unwrap().engine.session();
    let handle = books.gateways[0].running.as_ref().unwrap().runtime.handle.clone();
    books.hold(0, &ask(1, &accounts, &take_ten)).unwrap();
    handle.block_on(other.balances(&accounts)).unwrap();
    books.save();
    for charge in 2..=600 {
        books.hold(0, &ask(charge, &accounts, &take_ten)).unwrap();
    }
    books.crash();
    // The last one is done again last, by the session that made it.
    let memo = OutcomeMemo::default();
    let capture = resolution(State::Captured, &[10], &memo);
    let resolved = handle.block_on(other.resolve(id(600), &capture)).unwrap();
    assert!(matches!(resolved, Resolved::Done(..)), "{resolved:?}");
    assert_eq!(books.balances(0)[&name("a")], balance(100_000, 0, 5990, 10));
    books.is_as_recorded(0);
}

#[test]
fn f27_nobody_is_told_that_a_hold_is_unknown_before_all_have_entered() {
    let mut books = Several::start(2, Duration::from_millis(1));
    let (accounts, take_ten) = ([account("a", 100, 1)], take(10, &[0]));
    for at in [0, 1] {
        books.run(at, async |session| session.balances(&accounts).await.unwrap());
    }
    books.save();
    books.hold(0, &ask(1, &accounts, &take_ten)).unwrap();
    books.crash();
    // The shard is open to whoever comes.
    assert!(done(books.hold(1, &ask(2, &accounts, &take_ten)).unwrap()).is_some());
    let look = |books: &Several, charge| {
        books.run(1, async |session| session.open_charge(id(charge)).await)
    };
    assert!(matches!(look(&books, 1), Err(BooksError::Unavailable(_))));
    std::thread::scope(|scope| {
        let capture = scope.spawn(|| books.capture(1, 1, 4));
        // Asked again until all know.
        assert!(matches!(look(&books, 1), Err(BooksError::Unavailable(_))));
        assert!(!capture.is_finished());
        books.run(0, async |session| session.balances(&accounts).await.unwrap());
        let resolved = capture.join().unwrap();
        assert!(matches!(resolved, Resolved::Done(..)), "{resolved:?}");
    });
    assert!(look(&books, 7).unwrap().is_none());
    assert_eq!(books.balances(0)[&name("a")], balance(100, 0, 10, 4));
    books.is_as_recorded(0);
}

#[test]
fn f27_a_master_that_was_a_replica_of_what_had_less_is_closed_before_anybody_is_served() {
    let books = Several::start(2, Duration::from_millis(50));
    let (accounts, take_ten) = ([account("a", 100, 1)], take(10, &[0]));
    books.hold(0, &ask(1, &accounts, &take_ten)).unwrap();
    books.hold(1, &ask(2, &accounts, &take_ten)).unwrap();
    let is_in_step = |replica: &RedisServer| {
        until("the replica is in step", || {
            let told: String = replica.ask(&["INFO", "replication"]);
            told.contains("master_link_status:up") && told.contains("master_sync_in_progress:0")
        });
    };
    let of = |server: &RedisServer| server.port.to_string();
    let replica = RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]);
    replica.ask::<()>(&["REPLICAOF", "127.0.0.1", &of(&books.server)]);
    is_in_step(&replica);
    replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    // This is lost, and the shard's entries are given again.
    assert!(matches!(books.capture(0, 1, 4), Resolved::Done(..)));
    books.server.ask::<()>(&["REPLICAOF", "127.0.0.1", &of(&replica)]);
    is_in_step(&books.server);
    books.server.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    // The other one has lost nothing itself, and comes first.
    assert!(matches!(books.capture(1, 2, 5), Resolved::Done(..)));
    assert!(matches!(books.capture(0, 1, 4), Resolved::Already(State::Captured)));
    // All that is written since is of a new term, and so it is archived: the entry before it is the last
    // one that is not lost.
    let (meta, terms) = ("tollgate:{s0}:meta", ["HGET", "tollgate:{s0}:meta", "terms"]);
    let terms: Vec<u8> = books.server.ask(&terms);
    let last: u64 = replica.ask(&["HGET", meta, "seq"]);
    assert_eq!(values(&terms).last(), Some(&Value::Uint(last)));
    assert_eq!(books.balances(0)[&name("a")], balance(100, 0, 0, 9));
    books.is_as_recorded(0);
}
