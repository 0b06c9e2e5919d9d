//! Shards that were emptied or damaged are built again from the archive, and gateways do again what came
//! later: then the books are what they were. And books in Redis are added up, while gateways run.

mod bench;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ::redis::Commands;
use jiff::SignedDuration;
use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;
use tollgate::books::{Ask, Books, Posted, Resolution, Resolved};
use tollgate::core::account::Account;
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::directory::Place;
use tollgate::ledger::add_up::add_up;
use tollgate::ledger::archive::Archive;
use tollgate::ledger::repair::{Repair, RepairError};

use crate::archive_shards::{polled, stopped};
use crate::closed::{at_day, of_day};
use crate::engine::{NOW, account, ask, balance, id, key, name, run, take, under};
use crate::postgres::Postgres;
use crate::prune::memo_of;
use crate::redis_cycles::debt;
use crate::redis_rejoin::{Running, seen};

use self::bench::{Bench, key_of, same};

fn plays(seed: u64) {
    let mut bench = Bench::new(seed);
    for round in 0..4 {
        for _ in 0..bench.random.below(25) {
            bench.something();
        }
        let then = bench.dumps();
        let keep = [0, 3, 1_000][bench.random.below(3)];
        if bench.random.below(4) > 0 {
            bench.archive(keep);
            bench.given_up.clear();
        }
        for _ in 0..bench.random.below(25) {
            bench.something();
        }
        let before = seen(&bench.books, 0, &bench.charges);
        let (once, ended) = (bench.fields("once"), bench.fields("ended"));
        let what = bench.damage(&then);
        let at = format!("seed {seed}, round {round}: {what}");
        if !bench.is_whole() {
            bench.is_refused();
            bench.repaired();
        }
        bench.books.all_enter();
        same(&bench, &before, &at);
        assert_eq!(bench.fields("once"), once, "{at}");
        assert!(ended.is_subset(&bench.fields("ended")), "{at}");
        assert_eq!(bench.findings(), [""; 0], "{at}");
    }
    bench.archive(0);
    assert_eq!(bench.findings(), [""; 0], "seed {seed}");
}

#[test]
fn f34_after_any_history_a_shard_that_is_built_again_is_what_it_was() {
    let seeds = std::env::var("TOLLGATE_TEST_REPAIRS").map_or(12, |count| count.parse().unwrap());
    let first = std::env::var("TOLLGATE_TEST_REPAIR").map_or(1, |seed| seed.parse().unwrap());
    for seed in first..first + seeds {
        plays(seed);
    }
}

/// Ten of "a" are held by each of two charges, and the first is captured.
fn two_charges(bench: &mut Bench) {
    let (accounts, ten) = ([account("a", 100, 1)], take(10, &[0]));
    let memo = memo_of("acme");
    for charge in [1, 2] {
        let asked = Ask { memo: &memo, ..ask(charge, &accounts, &ten) };
        bench.books.run(0, async |session| session.hold(&asked).await.unwrap());
    }
    let memo = OutcomeMemo::default();
    let ended = Resolution::plain(State::Captured, &[4], NOW, &memo);
    let resolved =
        bench.books.run(0, async |session| session.resolve(id(1), &ended).await.unwrap());
    assert!(matches!(resolved, Resolved::Done(..)));
}

#[test]
fn f05_f34_a_repair_that_dies_anywhere_leaves_the_shard_refused_and_the_next_finishes_it() {
    let mut bench = Bench::new(1);
    two_charges(&mut bench);
    bench.archive(0);
    let mut finished = false;
    for polls in 1..400 {
        let () = ::redis::cmd("FLUSHALL").query(&mut bench.books.connection()).unwrap();
        let died = run(async {
            // A connection ends with the event loop that it was made on.
            let shards = bench.shards();
            shards.prepare().await.unwrap();
            let repair = bench.repair(&shards);
            polled(repair.apply(&[0], "first"), polls).await.is_none()
        });
        if died && !bench.is_whole() {
            if polls % 8 == 0 {
                bench.is_refused();
            }
            bench.repaired();
        }
        finished |= !died;
        if finished || polls % 8 == 0 {
            bench.books.all_enter();
            assert_eq!(bench.books.balances(0)[&name("a")], balance(100, 0, 10, 4), "{polls}");
            assert_eq!(bench.findings(), [""; 0], "{polls}");
        }
        if finished {
            return;
        }
    }
    panic!("it never ends");
}

#[test]
fn f34_d35_keys_of_two_days_are_known_again_by_the_books_own_time() {
    let bench = Bench::new(1);
    let (accounts, one) = ([account("a", 100, 1)], take(1, &[0]));
    let memo = memo_of("acme");
    for (charge, hours) in [(1, 0), (2, 2), (3, 49)] {
        let now = NOW + SignedDuration::from_hours(hours);
        let lasting = under(key(1, charge as u8, 7));
        let asked = Ask { memo: &memo, now, lasting, ..ask(charge, &accounts, &one) };
        bench.books.run(0, async |session| session.hold(&asked).await.unwrap());
        let memo = OutcomeMemo::default();
        let ended = Resolution::plain(State::Captured, &[1], now, &memo);
        bench.books.run(0, async |session| session.resolve(id(charge), &ended).await.unwrap());
    }
    bench.archive(0);
    let () = ::redis::cmd("FLUSHALL").query(&mut bench.books.connection()).unwrap();
    bench.repaired();
    let known = bench.fields("once");
    let is_known = |key: u8| known.iter().any(|field| field.ends_with(&[key; 16]));
    assert_eq!([1, 2, 3].map(is_known), [false, true, true]);
}

#[test]
fn f34_what_is_whole_is_not_built_again_nor_what_is_of_others() {
    let mut bench = Bench::new(1);
    two_charges(&mut bench);
    let why = |bench: &Bench| {
        let shards = bench.shards();
        let repair = bench.repair(&shards);
        run(async { repair.apply(&[0], "token").await.unwrap_err().to_string() })
    };
    assert_eq!(why(&bench), "the books in Redis: shard 0 is whole");
    let () = bench.books.connection().hset(key_of("meta"), "epoch", "2").unwrap();
    assert_eq!(why(&bench), "the books in Redis: shard 0 refuses: epoch");
    assert_eq!(bench.findings().len(), 1, "{:?}", bench.findings());
    let () = bench.books.connection().hset(key_of("meta"), "epoch", "1").unwrap();
    assert_eq!(bench.books.balances(0)[&name("a")], balance(100, 0, 10, 4));
    // Who began a repair first has nothing to fill any more when another one has.
    let () = bench.books.connection().del(key_of("accounts")).unwrap();
    run(async {
        let shards = bench.shards();
        let built = bench.repair(&shards).build(&[0]).await.unwrap().remove(0);
        shards.give_up(0, "1", "first").await.unwrap();
        shards.give_up(0, "1", "second").await.unwrap();
        let place = |token| (0, "1", token);
        let made = shards.make_again(place("first"), &built.content, (built.end, true), &[]).await;
        assert!(made.unwrap_err().to_string().contains("another repair has taken over"));
    });
    bench.repaired();
    bench.books.all_enter();
    assert_eq!(bench.books.balances(0)[&name("a")], balance(100, 0, 10, 4));
    assert_eq!(bench.findings(), [""; 0]);
}

#[test]
fn d37_what_somebody_changes_in_redis_is_found_while_gateways_run() {
    let mut bench = Bench::new(1);
    for _ in 0..60 {
        bench.something();
    }
    bench.archive(5);
    for _ in 0..10 {
        bench.something();
    }
    assert_eq!(bench.findings(), [""; 0]);
    let mut connection = bench.books.connection();
    let accounts = key_of("accounts");
    let [one, other] = ["a", "b"].map(|id| account(id, 0, 0).key.to_bytes().to_vec());
    let was: Vec<u8> = connection.hget(&accounts, &one).unwrap();
    let others: Vec<u8> = connection.hget(&accounts, &other).unwrap();
    assert_ne!(was, others);
    let () = connection.hset(&accounts, &one, others).unwrap();
    let found = bench.findings();
    assert!(found.len() == 1 && found[0].starts_with(&name("a")), "{found:?}");
    let () = connection.hset(&accounts, &one, was).unwrap();
    let open: Vec<Vec<u8>> = connection.hkeys(key_of("holds")).unwrap();
    let hold: Vec<u8> = connection.hget(key_of("holds"), &open[0]).unwrap();
    let () = connection.hdel(key_of("holds"), &open[0]).unwrap();
    let () = connection.hset(key_of("holds"), vec![9; 16], hold).unwrap();
    assert_eq!(bench.findings().len(), 2, "{:?}", bench.findings());
}

/// The archive of a gateway of before this was written down.
#[test]
fn f34_books_that_are_older_than_what_is_known_of_them_are_built_only_where_that_is_said() {
    let mut bench = Bench::new(1);
    two_charges(&mut bench);
    bench.archive(0);
    run(async {
        let url = format!("sqlite:{}", bench.dir.path().join("archive.db").display());
        let mut database = SqliteConnection::connect(&url).await.unwrap();
        let sql = "DELETE FROM archived_books; UPDATE charges SET books = NULL, more = NULL;";
        sqlx::raw_sql(sql).execute(&mut database).await.unwrap();
        database.close().await.unwrap();
    });
    bench.archive(0);
    let () = ::redis::cmd("FLUSHALL").query(&mut bench.books.connection()).unwrap();
    let shards = bench.shards();
    run(async {
        shards.prepare().await.unwrap();
        let repair = bench.repair(&shards);
        let refused = repair.apply(&[0], "token").await;
        assert!(matches!(refused, Err(RepairError::Inexact)), "{refused:?}");
        assert_eq!(shards.inspect(0, "1").await.unwrap().terms, []);
        let repair = Repair { inexact: true, ..repair };
        repair.apply(&[0], "token").await.unwrap();
    });
    bench.books.all_enter();
    assert_eq!(bench.books.balances(0)[&name("a")], balance(100, 0, 10, 4));
}

#[test]
fn f34_a_shard_is_built_again_from_an_archive_on_a_server_while_others_archive() {
    let server = run(Postgres::shared());
    let mut bench = Bench::new(3);
    bench.place = Place::Server(server.database().into());
    bench.archive(0);
    for _ in 0..80 {
        bench.something();
    }
    bench.archive(3);
    let before = seen(&bench.books, 0, &bench.charges);
    let () = ::redis::cmd("FLUSHALL").query(&mut bench.books.connection()).unwrap();
    bench.archive(0);
    bench.repaired();
    bench.books.all_enter();
    same(&bench, &before, "from a server");
    assert_eq!(bench.findings(), [""; 0]);
}

/// Books that came from elsewhere: what they had then is archived with them.
#[test]
fn f34_d37_what_moved_into_a_shard_is_there_again_when_it_is_built_again() {
    let mut bench = Bench::new(5);
    for _ in 0..60 {
        bench.something();
    }
    bench.archive(0);
    let held: Vec<u64> = bench.charges.clone();
    for charge in held {
        bench.books.run(0, async |session| session.abandon(id(charge), NOW).await.unwrap());
    }
    bench.archive(0);
    let moved = run(async {
        let shards = bench.shards();
        let fold = shards.read("1", Duration::ZERO).await.unwrap().fold;
        shards.clear().await.unwrap();
        Archive::begin_shards(bench.place.clone()).await.unwrap();
        shards.write(&fold, "2", "me", NOW.as_microsecond()).await.unwrap();
        shards.moved().await.unwrap();
        fold
    });
    assert!(!moved.once.is_empty());
    let runtime = crate::engine_redis::EventLoop::start();
    let options = tollgate::books::redis::Options {
        epoch: "2".into(),
        make: false,
        gateway: "after".into(),
        rejoin_timeout: Duration::from_millis(50),
        ..crate::engine_redis::options(&bench.books.server)
    };
    let shards = bench.shards();
    runtime.handle.block_on(async {
        let handle = runtime.handle.clone();
        let engine = tollgate::books::redis::Engine::open(options, handle, NOW).await.unwrap();
        let engine = Arc::new(engine);
        let (accounts, ten) = ([account("a", 100_000, 1)], take(10, &[0]));
        let memo = memo_of("acme");
        let asked = Ask { memo: &memo, ..ask(77_777, &accounts, &ten) };
        let session = engine.session();
        session.hold(&asked).await.unwrap();
        let memo = OutcomeMemo::default();
        let ended = Resolution::plain(State::Captured, &[9], NOW, &memo);
        session.resolve(id(77_777), &ended).await.unwrap();
        let archive =
            Archive::of_shards(bench.place.clone(), Arc::clone(&engine), 0).await.unwrap();
        archive.follow(stopped()).await.unwrap();
        let before = shards.read("2", Duration::ZERO).await.unwrap().fold;
        let () = ::redis::cmd("FLUSHALL").query(&mut bench.books.connection()).unwrap();
        shards.prepare().await.unwrap();
        let repair = Repair { epoch: "2", ..bench.repair(&shards) };
        repair.apply(&[0], "token").await.unwrap();
        session.balances(&accounts).await.unwrap();
        let after = shards.read("2", Duration::ZERO).await.unwrap().fold;
        assert_eq!(tollgate::books::carry::differences(&before, &after), Vec::<String>::new());
        let added = add_up(&shards, "2", &bench.place).await.unwrap();
        assert_eq!(added.shards[0].findings(), []);
        archive.close().await;
    });
}

/// What `meta` says of cycles and of debts.
fn of_cycles(bench: &Bench) -> BTreeMap<String, Vec<u8>> {
    let mut meta: BTreeMap<String, Vec<u8>> =
        bench.books.connection().hgetall(key_of("meta")).unwrap();
    let names = ["closed", "forgotten", "day", "days"];
    meta.retain(|name, _| names.contains(&&**name) || name.starts_with("owed:"));
    meta
}

/// A charge of a day, of which so much stays captured.
fn charge_of(bench: &mut Bench, day: u64, of: Account<'static>, amount: u64, ends: bool) {
    bench.next += 1;
    let (number, accounts, memo) = (bench.next, [of], memo_of("acme"));
    let mut post = take(amount, &[0]);
    post.sources[0].forced = true;
    let now = at_day(day);
    let asked = Ask { now, memo: &memo, ..ask(number, &accounts, &post) };
    let held = bench.books.run(0, async |session| session.hold(&asked).await.unwrap());
    assert!(matches!(held, Posted::Done(..)));
    if ends {
        let (memo, keep) = (OutcomeMemo::default(), [amount]);
        let ended = Resolution::plain(State::Captured, &keep, now, &memo);
        bench.books.run(0, async |session| session.resolve(id(number), &ended).await.unwrap());
    }
}

#[test]
fn f34_d06_d31_a_shard_that_is_built_again_knows_what_is_closed_and_what_users_owe() {
    let mut bench = Bench::new(1);
    let close = |bench: &Bench, day: u64| {
        let Running { engine, runtime, .. } = bench.books.gateways[0].running.as_ref().unwrap();
        runtime.handle.block_on(engine.close_cycles(at_day(day))).unwrap()
    };
    charge_of(&mut bench, 0, debt("v", "acme", 0), 5, true);
    (0..150).for_each(|day| charge_of(&mut bench, day, of_day(day), 1, true));
    charge_of(&mut bench, 150, debt("u", "acme", 150), 7, true);
    charge_of(&mut bench, 150, debt("u", "beta", 150), 2, true);
    assert!(close(&bench, 150) > 0);
    charge_of(&mut bench, 151, debt("w", "acme", 150), 3, false);
    // One that is not archived, and one that nobody has recorded but the shard.
    bench.archive(2);
    for last in [152, 153] {
        charge_of(&mut bench, last, of_day(last), 1, true);
        let before = of_cycles(&bench);
        assert_eq!(before.iter().filter(|(name, _)| name.starts_with("owed:")).count(), 2);
        let accounts = bench.fields("accounts");
        let key = if last == 152 { "accounts" } else { "ledger" };
        let () = bench.books.connection().del(key_of(key)).unwrap();
        bench.repaired();
        bench.books.all_enter();
        assert_eq!(of_cycles(&bench), before, "{key}");
        assert_eq!(bench.fields("accounts"), accounts, "{key}");
        assert_eq!(bench.findings(), [""; 0], "{key}");
    }
    // It closes the next ones when a hundred days are over, and nothing before.
    assert_eq!(close(&bench, 154), 0);
    (154..200).for_each(|day| charge_of(&mut bench, day, of_day(day), 1, true));
    assert!(close(&bench, 200) > 0);
    assert_eq!(bench.findings(), [""; 0]);
}
