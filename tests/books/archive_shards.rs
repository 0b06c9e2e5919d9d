//! The archive behind the shards of books on Redis: in a file, and in PostgreSQL.

use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use sqlx::Connection as _;
use sqlx::postgres::PgConnection;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tollgate::books::embedded;
use tollgate::books::redis::{Engine, Options};
use tollgate::books::{Adjustment, Amended, Amendment, Ask, Books, Lasting, Resolution, Resolved};
use tollgate::core::account::{
    Account, AccountKey, AccountKind, AccountName, Grant, Stem, Version,
};
use tollgate::core::adjustment::{AdjustMemo, parse_signed};
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::core::ids::{ChargeId, home_of};
use tollgate::directory::{Directory, Place};
use tollgate::ledger::archive::{Archive, KeptLeg, Mark};

use crate::engine::{NOW, amendment, ask, done, resolution, run, second, take, temporary};
use crate::engine_redis::{EventLoop, options};
use crate::postgres::Postgres;
use crate::prune::{self, memo_of};
use crate::redis_server::RedisServer;

pub const SHARDS: usize = 4;
/// Orgs, of which each shard has some.
pub const ORGS: [&str; 8] = ["acme", "b", "c", "d", "e", "f", "g", "h"];

pub fn account(org: &'static str, id: &'static str) -> Account<'static> {
    let (period, kind) = ("2026-11-01".parse().unwrap(), AccountKind::Licence);
    Account {
        key: AccountKey { stem: Stem::new(&[org, id]), period, kind },
        name: AccountName { org, kind, ids: [id, ""], period },
        grant: Grant { base: 1_000_000_000, version: Version { epoch: 1, number: 1 } },
    }
}

pub fn charge_of(org: &str, turn: u64) -> ChargeId {
    ChargeId::v7(turn, u128::from(turn) << 16).at_home(home_of(org))
}

fn refund_of(org: &str, turn: u64) -> ChargeId {
    charge_of(org, 1_000_000 + turn)
}

/// In each turn every org begins a charge, amends the one before, ends the one before that, and
/// gives back an earlier one: what belongs together is in different entries.
pub async fn turn<S: Books>(session: &S, turn: u64) {
    for org in ORGS {
        let accounts = [account(org, "a"), account(org, "b")];
        let (memo, post) = (memo_of(org), take(10 + turn % 5, &[0]));
        let lasting = Some(Lasting { expires: Some(second(3_600)), ..Lasting::default() });
        let asked = Ask { memo: &memo, lasting, ..ask(0, &accounts, &post) };
        let asked = Ask { charge: charge_of(org, turn), ..asked };
        assert!(done(session.hold(&asked).await.unwrap()).is_some());
        if let Some(turn) = turn.checked_sub(1) {
            let post = take(5, &[1]);
            let answer: &[u8] = if turn.is_multiple_of(2) { b"202" } else { b"" };
            let more = Amendment { extra: Some((&accounts, &post)), answer, ..amendment() };
            let amended = session.amend(charge_of(org, turn), &more).await.unwrap();
            assert!(matches!(amended, Amended::Done(..)), "{amended:?}");
        }
        // Half of them stay open, and show what they took as it was recorded.
        if let Some(turn) = turn.checked_sub(2).filter(|turn| turn.is_multiple_of(2)) {
            end(session, org, turn).await;
        }
        if let Some(turn) = turn.checked_sub(3) {
            let memo = AdjustMemo {
                id: refund_of(org, turn).0,
                org,
                who: "operator",
                reason: "ticket 4711",
                charge: Some(charge_of(org, turn).0),
            };
            let memo = postcard::to_stdvec(&memo).unwrap();
            let adjustment =
                Adjustment { key: None, account: &accounts[0], delta: 3, now: NOW, memo: &memo };
            session.adjust(&adjustment).await.unwrap();
        }
    }
}

async fn end<S: Books>(session: &S, org: &str, turn: u64) {
    let memo = OutcomeMemo::default();
    let keep = [7, turn % 3];
    let ended = match turn % 8 {
        0 => resolution(State::Voided, &[], &memo),
        2 => Resolution {
            answer: b"200",
            note: b"note",
            ..resolution(State::Captured, &keep, &memo)
        },
        _ => resolution(State::Captured, &keep, &memo),
    };
    let resolved = session.resolve(charge_of(org, turn), &ended).await.unwrap();
    assert!(matches!(resolved, Resolved::Done(..)), "{resolved:?}");
}

/// All that an archive says of so many turns.
pub async fn told(archive: &Archive, turns: u64) -> Vec<String> {
    let mut told = Vec::new();
    let mark = Mark::default();
    for org in ORGS {
        for turn in 0..turns {
            let id = charge_of(org, turn);
            let charge = archive.charge(id, mark).await.unwrap();
            let charge = serde_json::to_string(&charge).unwrap();
            let (answer, note) = (archive.answer(id, mark).await, archive.note(id, mark).await);
            let given = archive.given_back(id, mark).await.unwrap();
            let refund = archive.adjustment(refund_of(org, turn), mark).await.unwrap();
            let legs = archive.legs(id, mark).await.unwrap();
            told.push(format!("{charge} {answer:?} {note:?} {legs:?} {given:?} {refund:?}"));
        }
        // Places have holes; what counts is the order.
        let listed = archive.adjustments(org, None, 1_000, mark).await.unwrap();
        assert!(listed.is_sorted_by(|(one, _), (next, _)| one > next));
        told.extend(listed.iter().map(|(_, document)| format!("{document:?}")));
    }
    told
}

/// What the archive of embedded books says after the same.
pub async fn expected(turns: u64) -> Vec<String> {
    let (dir, data) = (temporary(), temporary());
    let engine = embedded::Engine::open(dir.path(), NOW).unwrap();
    let session = engine.session();
    for number in 0..turns {
        turn(&session, number).await;
    }
    let archive = prune::archive(&data, dir.path(), &engine).await;
    let told = told(&archive, turns).await;
    for word in ["\"captured\"", "4711"] {
        assert!(told.iter().any(|line| line.contains(word)), "{word}");
    }
    archive.close().await;
    told
}

/// Books on Redis, and where they are archived.
struct Bench {
    engine: Arc<Engine>,
    place: Place,
    _dir: TempDir,
    runtime: EventLoop,
    server: RedisServer,
}

impl Bench {
    fn new(place: impl FnOnce(&Path) -> Place) -> Self {
        let (runtime, server, dir) = (EventLoop::start(), RedisServer::start(), temporary());
        let engine = Arc::new(open(&runtime, &server, dir.path()));
        let mut found: Vec<usize> = ORGS.map(|org| engine.shard_of(home_of(org))).into();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), SHARDS, "orgs in every shard");
        Self { engine, place: place(dir.path()), _dir: dir, runtime, server }
    }

    fn in_a_file() -> Self {
        Self::new(|dir| Place::File(dir.join("archive.db")))
    }

    fn on(server: &Postgres) -> Self {
        Self::new(|_| Place::Server(server.database().into()))
    }

    /// An archive as another gateway has it, which keeps nothing in the streams.
    async fn archive(&self) -> Archive {
        let open = || Archive::of_shards(self.place.clone(), Arc::clone(&self.engine), 0);
        let mut opened = open().await;
        let deadline = Instant::now() + Duration::from_secs(60);
        // A process that is killed leaves no locks. Here its connection ends on a thread of its own,
        // and SQLite waits for nobody where the last one is just closing the file.
        while opened.as_ref().is_err_and(|why| why.to_string().contains("database is locked")) {
            assert!(Instant::now() < deadline, "the file stays locked");
            tokio::time::sleep(Duration::from_millis(10)).await;
            opened = open().await;
        }
        opened.unwrap()
    }

    /// What is to be found when the server is started again.
    fn save(&self) {
        let mut connection =
            ::redis::Client::open(self.server.url()).unwrap().get_connection().unwrap();
        let saved: String = ::redis::cmd("SAVE").query(&mut connection).unwrap();
        assert_eq!(saved, "OK");
    }

    async fn ends(&self) -> Vec<u64> {
        let mut ends = Vec::new();
        for shard in 0..SHARDS {
            ends.push(self.engine.ledger_end(shard).await.unwrap().unwrap());
        }
        ends
    }

    /// How many entries are in the streams, of which none may be missing in between.
    async fn waiting(&self) -> u64 {
        let mut count = 0;
        for (shard, end) in self.ends().await.into_iter().enumerate() {
            let entries = self.engine.ledger(shard, 0, 100_000).await.unwrap();
            let here = entries.len() as u64;
            let expected = (end - here + 1)..=end;
            assert!(entries.iter().map(|(at, _)| *at).eq(expected), "shard {shard}");
            count += here;
        }
        count
    }
}

fn open(runtime: &EventLoop, server: &RedisServer, dir: &Path) -> Engine {
    let (journal, rejoin_timeout) = (Some(dir.join("journal")), Duration::from_millis(100));
    let options = Options { shards: SHARDS, journal, rejoin_timeout, ..options(server) };
    // On its own thread, because this one may be in an event loop already.
    let opening = || runtime.handle.block_on(Engine::open(options, runtime.handle.clone(), NOW));
    std::thread::scope(|scope| scope.spawn(opening).join().unwrap()).unwrap()
}

pub fn stopped() -> CancellationToken {
    let stop = CancellationToken::new();
    stop.cancel();
    stop
}

pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Archives all that there is, also what a connection that ends keeps locked for a while.
pub async fn all(archive: &Archive) {
    until("everything is archived", async || {
        archive.follow(stopped()).await.unwrap();
        archive.lag(0) == 0
    })
    .await;
}

/// What charges took according to the archive, and what refunds gave, is what the books say.
async fn adds_up(bench: &Bench, archive: &Archive, turns: u64) {
    let balances = bench.engine.balances().await.unwrap();
    assert_eq!(balances.len(), 2 * ORGS.len());
    for (key, name, balance) in balances {
        let org = name.split('/').next().unwrap();
        let (mut captured, mut adjusted) = (0, 0);
        for turn in 0..turns {
            let legs = archive.legs(charge_of(org, turn), Mark::default()).await.unwrap();
            let own = |leg: &&KeptLeg| leg.account == key;
            captured += legs.iter().filter(own).map(|leg| leg.amount).sum::<u64>();
        }
        for (_, made) in archive.adjustments(org, None, 1_000, Mark::default()).await.unwrap() {
            adjusted += if made.account == name { parse_signed(&made.amount).unwrap() } else { 0 };
        }
        assert_eq!((captured, adjusted), (balance.captured, balance.adjusted), "{name}");
    }
}

#[test]
fn d37_what_is_done_on_redis_is_archived_as_embedded_books_archive_it() {
    run(async {
        let expected = expected(9).await;
        let server = Postgres::shared().await;
        for bench in [Bench::in_a_file(), Bench::on(&server)] {
            let session = bench.engine.session();
            let archive = bench.archive().await;
            for number in 0..9 {
                turn(&session, number).await;
                if number % 2 == 0 {
                    all(&archive).await;
                }
            }
            all(&archive).await;
            assert_eq!(told(&archive, 9).await, expected);
            adds_up(&bench, &archive, 9).await;
            assert_eq!((archive.dead_letters(), bench.waiting().await), (0, 0));
            assert_eq!(archive.archived(), bench.ends().await.iter().sum::<u64>());
            assert_eq!(
                archive.newest_charge().await.unwrap(),
                Some(second(0) + Duration::from_millis(8))
            );
            archive.close().await;
        }
    });
}

/// The archive may be in the directory's database, and many gateways may start at once.
#[test]
fn d37_gateways_at_once_archive_each_entry_once_beside_a_directory() {
    run(async {
        let server = Postgres::shared().await;
        let bench = Bench::on(&server);
        let mut opening = JoinSet::new();
        for _ in 0..3 {
            let (place, engine) = (bench.place.clone(), Arc::clone(&bench.engine));
            opening.spawn(async move {
                let directory = Directory::open(place.clone(), 1).await.unwrap();
                let archive = Archive::of_shards(place, engine, 0).await.unwrap();
                directory.close().await.unwrap();
                archive
            });
        }
        let archives = opening.join_all().await;
        let (stop, mut followers) = (CancellationToken::new(), JoinSet::new());
        for archive in &archives {
            let (archive, stop) = (archive.clone(), stop.clone());
            followers.spawn(async move { archive.follow(stop).await.unwrap() });
        }
        let session = bench.engine.session();
        for number in 0..30 {
            turn(&session, number).await;
            // Whoever was told of an end does not read that the charge is held.
            let org = ORGS[number as usize % ORGS.len()];
            let Some(ended) = number.checked_sub(2) else { continue };
            let shard = bench.engine.shard_of(home_of(org));
            let position = bench.engine.ledger_end(shard).await.unwrap().unwrap();
            let mark = Mark { shard: shard as u16, position };
            let reader = &archives[number as usize % 3];
            let found = reader.charge(charge_of(org, ended), mark).await.unwrap().unwrap();
            assert_eq!(found.state == State::Held, !ended.is_multiple_of(2));
            if let Some(given) = number.checked_sub(3) {
                let given = reader.adjustment(refund_of(org, given), mark).await.unwrap();
                assert!(given.is_some());
            }
        }
        stop.cancel();
        followers.join_all().await;
        all(&archives[0]).await;
        let made = bench.ends().await.iter().sum::<u64>();
        assert_eq!(archives.iter().map(Archive::archived).sum::<u64>(), made);
        assert_eq!(told(&archives[1], 30).await, expected(30).await);
        adds_up(&bench, &archives[2], 30).await;
        assert_eq!(bench.waiting().await, 0);
    });
}

/// What becomes of a future that is polled so many times.
pub async fn polled<F: Future>(future: F, most: usize) -> Option<F::Output> {
    let (mut future, mut polls) = (std::pin::pin!(future), 0);
    std::future::poll_fn(move |context| {
        polls += 1;
        if polls > most { Poll::Ready(None) } else { future.as_mut().poll(context).map(Some) }
    })
    .await
}

/// Wherever it waits for a server it may be the last that is heard of a gateway.
#[test]
fn f05_d37_a_gateway_killed_anywhere_while_it_archives_repeats_nothing_and_loses_nothing() {
    const TURNS: u64 = 50;
    run(async {
        let expected = expected(TURNS).await;
        let server = Postgres::shared().await;
        for bench in [Bench::in_a_file(), Bench::on(&server)] {
            let session = bench.engine.session();
            let mut killed = 0;
            for number in 0..TURNS {
                turn(&session, number).await;
                for half in 0..2 {
                    let archive = bench.archive().await;
                    let polls = 1 + (2 * number as usize + half) * 7 % 97;
                    killed += u32::from(polled(archive.follow(stopped()), polls).await.is_none());
                }
            }
            assert!(killed > 10, "{killed}");
            let archive = bench.archive().await;
            all(&archive).await;
            assert_eq!(archive.dead_letters(), 0);
            assert_eq!(told(&archive, TURNS).await, expected);
            adds_up(&bench, &archive, TURNS).await;
            archive.close().await;
        }
    });
}

#[test]
fn d37_while_postgresql_is_away_the_streams_keep_what_is_not_archived() {
    run(async {
        let mut server = Postgres::start().await;
        let bench = Bench::on(&server);
        let (archive, session) = (bench.archive().await, bench.engine.session());
        let (stop, mut follower) = (CancellationToken::new(), JoinSet::new());
        let (following, until_then) = (archive.clone(), stop.clone());
        follower.spawn(async move { following.follow(until_then).await.unwrap() });
        for number in 0..4 {
            turn(&session, number).await;
        }
        until("all is archived", async || bench.waiting().await == 0).await;
        server.kill();
        for number in 4..16 {
            turn(&session, number).await;
        }
        let made = bench.ends().await.iter().sum::<u64>() - archive.archived();
        until("the lag is told", async || archive.lag(0) == made).await;
        assert!(archive.waits() > Duration::ZERO);
        assert!(archive.charge(charge_of("b", 1), Mark::default()).await.is_err());
        // Nothing leaves that is not archived, also while it is tried.
        assert_eq!(bench.waiting().await, made);
        server.start_again().await;
        until("all is archived", async || archive.lag(0) == 0 && bench.waiting().await == 0).await;
        assert_eq!((archive.waits(), archive.dead_letters()), (Duration::ZERO, 0));
        stop.cancel();
        follower.join_all().await;
        // A server that did not answer is not asked again at once.
        until("look-ups work", async || {
            archive.charge(charge_of("b", 1), Mark::default()).await.is_ok()
        })
        .await;
        assert_eq!(told(&archive, 16).await, expected(16).await);
        adds_up(&bench, &archive, 16).await;
    });
}

/// As many gateways as there are may stand still or die while they archive a shard.
#[test]
fn d37_a_shard_that_somebody_else_archives_keeps_no_other_waiting() {
    run(async {
        let server = Postgres::shared().await;
        let bench = Bench::on(&server);
        let (archive, session) = (bench.archive().await, bench.engine.session());
        let Place::Server(url) = &bench.place else { unreachable!() };
        let url = secrecy::ExposeSecret::expose_secret(url);
        for number in 0..5 {
            turn(&session, number).await;
        }
        let mut other = PgConnection::connect(url).await.unwrap();
        let lock = "BEGIN; SELECT position FROM shards WHERE shard = 1 FOR UPDATE";
        sqlx::raw_sql(lock).execute(&mut other).await.unwrap();
        archive.follow(stopped()).await.unwrap();
        let ends = bench.ends().await;
        assert_eq!(archive.lag(0), ends[1]);
        assert_eq!(archive.archived(), ends.iter().sum::<u64>() - ends[1]);
        // It dies, and its place is taken.
        drop(other);
        all(&archive).await;
        assert_eq!(archive.archived(), ends.iter().sum::<u64>());
        assert_eq!(told(&archive, 5).await, expected(5).await);
    });
}

#[test]
fn f34_entries_that_are_missing_are_told_and_what_follows_is_archived() {
    run(async {
        let server = Postgres::shared().await;
        for bench in [Bench::in_a_file(), Bench::on(&server)] {
            let (archive, session) = (bench.archive().await, bench.engine.session());
            turn(&session, 0).await;
            all(&archive).await;
            let before = bench.ends().await;
            turn(&session, 1).await;
            // The next entry of one shard, and all new ones of another.
            bench.engine.trim_ledger(0, before[0] + 1).await.unwrap();
            bench.engine.trim_ledger(1, bench.ends().await[1]).await.unwrap();
            all(&archive).await;
            assert_eq!(archive.dead_letters(), 2);
            turn(&session, 2).await;
            all(&archive).await;
            assert_eq!(archive.dead_letters(), 2);
            for org in ORGS {
                let found = archive.charge(charge_of(org, 2), Mark::default()).await.unwrap();
                assert!(found.is_some(), "{org}");
            }
            // Somebody empties Redis, and the books begin again.
            let redis = ::redis::Client::open(bench.server.url()).unwrap();
            let mut redis = redis.get_connection().unwrap();
            ::redis::cmd("FLUSHALL").exec(&mut redis).unwrap();
            let engine = Arc::new(open(&bench.runtime, &bench.server, bench._dir.path()));
            let place = bench.place.clone();
            let again = Archive::of_shards(place, Arc::clone(&engine), 0).await.unwrap();
            assert_eq!(again.dead_letters(), 2);
            let new = Bench { engine, ..bench };
            for number in 3..5 {
                let session = new.engine.session();
                for org in ORGS {
                    let (accounts, post) = ([account(org, "a")], take(1, &[0]));
                    let memo = memo_of(org);
                    let asked = Ask { memo: &memo, ..ask(0, &accounts, &post) };
                    let asked = Ask { charge: charge_of(org, number), ..asked };
                    assert!(done(session.hold(&asked).await.unwrap()).is_some());
                }
                all(&again).await;
            }
            assert_eq!(again.dead_letters(), 2 + SHARDS as u64);
            for (org, turn) in ORGS.iter().flat_map(|org| [(org, 2), (org, 3), (org, 4)]) {
                let found = again.charge(charge_of(org, turn), Mark::default()).await.unwrap();
                assert!(found.is_some(), "{org} {turn}");
            }
        }
    });
}

#[test]
fn f27_f34_what_redis_lost_and_a_gateway_did_again_is_archived_once() {
    run(async {
        let expected = expected(13).await;
        let server = Postgres::shared().await;
        for mut bench in [Bench::in_a_file(), Bench::on(&server)] {
            let (engine, archive) = (Arc::clone(&bench.engine), bench.archive().await);
            let session = engine.session();
            for number in 0..4 {
                turn(&session, number).await;
            }
            all(&archive).await;
            bench.save();
            for number in 4..6 {
                turn(&session, number).await;
            }
            // Is archived, and lost.
            all(&archive).await;
            for number in 6..9 {
                turn(&session, number).await;
            }
            bench.server.kill();
            bench.server.start_again();
            turn(&session, 9).await;
            all(&archive).await;
            turn(&session, 10).await;
            // The same file once more, and as much as it was is lost before anybody has archived it.
            bench.server.kill();
            bench.server.start_again();
            for number in 11..13 {
                turn(&session, number).await;
            }
            all(&archive).await;
            assert_eq!(told(&archive, 13).await, expected);
            adds_up(&bench, &archive, 13).await;
            // That entries were lost is told.
            assert!(archive.dead_letters() > 0);
            archive.close().await;
        }
    });
}

/// Entries of different shards have the same positions, and records of one entry too.
#[test]
fn d37_every_record_that_cannot_be_read_is_kept() {
    run(async {
        let server = Postgres::shared().await;
        for bench in [Bench::in_a_file(), Bench::on(&server)] {
            let (archive, session) = (bench.archive().await, bench.engine.session());
            let mut made = 0;
            // Until some go to Redis together.
            while made == bench.ends().await.iter().sum::<u64>() {
                let mut changes = JoinSet::new();
                for org in ORGS.iter().flat_map(|org| [org, org, org]) {
                    let session = session.clone();
                    changes.spawn(async move {
                        let account = account(org, "a");
                        let odd = Adjustment {
                            key: None,
                            account: &account,
                            delta: 3,
                            now: NOW,
                            memo: b"",
                        };
                        session.adjust(&odd).await.unwrap();
                    });
                    made += 1;
                }
                changes.join_all().await;
            }
            all(&archive).await;
            assert_eq!(archive.dead_letters(), made);
            assert_eq!(bench.archive().await.dead_letters(), made);
            archive.close().await;
        }
    });
}

#[test]
fn d37_a_stream_keeps_so_many_archived_entries() {
    run(async {
        let bench = Bench::in_a_file();
        let session = bench.engine.session();
        let archive = Archive::of_shards(bench.place.clone(), Arc::clone(&bench.engine), 3).await;
        let archive = archive.unwrap();
        for number in 0..4 {
            turn(&session, number).await;
            all(&archive).await;
        }
        for (shard, end) in bench.ends().await.into_iter().enumerate() {
            let left = bench.engine.ledger(shard, 0, 100).await.unwrap();
            let left: Vec<u64> = left.into_iter().map(|(at, _)| at).collect();
            assert_eq!(left, [end - 2, end - 1, end]);
        }
        archive.close().await;
    });
}
