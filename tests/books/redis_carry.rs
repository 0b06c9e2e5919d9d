//! Books in Redis as a whole, where they move: what is read is what there is, it is shut only where
//! nothing has happened since, and what is written adds up from its beginning.

use std::time::Duration;

use tollgate::books::carry::{differences, is_from, write};
use tollgate::books::fold::{Fold, FoldOnce};
use tollgate::books::recover::recover;
use tollgate::books::redis::carry::{Found, Shards};
use tollgate::books::redis::{Engine, Options};
use tollgate::books::{Adjustment, Ask, Books, Key, Once};
use tollgate::core::account::{
    Account, AccountKey, AccountKind, AccountName, Grant, Stem, Version,
};
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::core::ids::{ChargeId, home_of};
use tollgate::core::record::Record;

use crate::engine::{NOW, ask, done, resolution, second, take, temporary, under};
use crate::engine_redis::{EventLoop, options};
use crate::redis_server::RedisServer;

const SHARDS: usize = 3;
const ORGS: [&str; 5] = ["acme", "b", "c", "d", "e"];
/// Nobody is heard of.
const NONE: Duration = Duration::ZERO;

fn account(org: &'static str) -> Account<'static> {
    let (period, kind) = ("2026-11-01".parse().unwrap(), AccountKind::Licence);
    Account {
        key: AccountKey { stem: Stem::new(&[org, "a"]), period, kind },
        name: AccountName { org, kind, ids: ["a", ""], period },
        grant: Grant { base: 1_000, version: Version { epoch: 2, number: 7 } },
    }
}

fn once_of(org: &str) -> Once {
    let scope = (7 << 16) | u64::from(home_of(org));
    Once { scope, key: [3; 16], request: [4; 16] }
}

/// A charge of an org, under a key the first time.
async fn charge(engine: &Engine, org: &'static str, turn: u64) {
    let session = engine.session();
    let (accounts, post) = ([account(org)], take(10, &[0]));
    let id = ChargeId::v7(turn, u128::from(turn) << 16).at_home(home_of(org));
    let lasting = if turn == 1 { under(once_of(org)) } else { None };
    let asked = Ask { charge: id, lasting, ..ask(0, &accounts, &post) };
    assert!(done(session.hold(&asked).await.unwrap()).is_some());
    let memo = OutcomeMemo::default();
    session.resolve(id, &resolution(State::Captured, &[9], &memo)).await.unwrap();
}

async fn books(server: &RedisServer, runtime: &EventLoop, epoch: &str, make: bool) -> Engine {
    let options = Options { shards: SHARDS, epoch: epoch.into(), make, ..options(server) };
    Engine::open(options, runtime.handle.clone(), NOW).await.unwrap()
}

fn shards(server: &RedisServer) -> Shards {
    Shards::new(&server.url().into(), "tollgate", SHARDS).unwrap()
}

#[test]
fn d37_books_that_were_used_since_they_were_read_are_not_shut() {
    let (server, runtime) = (RedisServer::start(), EventLoop::start());
    runtime.handle.block_on(async {
        let (engine, shards) = (books(&server, &runtime, "1", true).await, shards(&server));
        for org in ORGS {
            charge(&engine, org, 1).await;
        }
        let read = shards.read("1", NONE).await.unwrap();
        assert_eq!(read.fold.accounts.len(), ORGS.len());
        assert_eq!(read.fold.once.len(), ORGS.len());
        assert!(read.shards.iter().all(|shard| shard.is_open && shard.holds.is_empty()));
        charge(&engine, "acme", 2).await;
        let why = shards.shut("1", &read.shards, NONE).await.unwrap_err().to_string();
        assert!(why.contains("it was used meanwhile"), "{why}");
        // And not while somebody is heard of.
        let long = Duration::from_secs(600);
        let read = shards.read("1", long).await.unwrap();
        assert!(read.shards.iter().any(|shard| !shard.sessions.is_empty()));
        let why = shards.shut("1", &read.shards, long).await.unwrap_err().to_string();
        assert!(why.contains("a gateway uses it"), "{why}");
        // All of them are as they were.
        for org in ORGS {
            charge(&engine, org, 3).await;
        }
        let read = shards.read("1", NONE).await.unwrap();
        shards.shut("1", &read.shards, NONE).await.unwrap();
        // Whoever comes late is not served from what has moved, and may be again.
        let (session, accounts, post) = (engine.session(), [account("acme")], take(1, &[0]));
        let asked = Ask { charge: ChargeId::v7(9, 9), ..ask(0, &accounts, &post) };
        assert!(session.hold(&asked).await.is_err());
        let again = shards.read("1", NONE).await.unwrap();
        assert_eq!(differences(&again.fold, &read.fold), Vec::<String>::new());
        assert!(again.shards.iter().all(|shard| shard.is_shut));
        shards.open_again("1").await.unwrap();
        drop(engine);
        let engine = books(&server, &runtime, "1", false).await;
        charge(&engine, "acme", 4).await;
    });
}

#[test]
fn d37_d35_what_moves_through_a_journal_and_back_is_the_same_to_the_last_key() {
    let (server, runtime) = (RedisServer::start(), EventLoop::start());
    let dir = temporary();
    let path = dir.path().join("books");
    runtime.handle.block_on(async {
        let (engine, shards) = (books(&server, &runtime, "1", true).await, shards(&server));
        for org in ORGS {
            charge(&engine, org, 1).await;
            let (account, now) = (account(org), second(5));
            // Its key is no charge's, and is forgotten.
            let key = Some(Key { scope: once_of(org).scope, key: [9; 16] });
            let adjustment = Adjustment { key, account: &account, delta: -1_200, now, memo: b"" };
            engine.session().adjust(&adjustment).await.unwrap();
        }
        let mut before = shards.read("1", NONE).await.unwrap().fold;
        before.closed = "2026-01-01".parse().unwrap();
        drop(engine);
        write(&path, "1", &before, NOW.as_microsecond()).unwrap();
        assert!(is_from(&path, "1") && !is_from(&path, "2"));
        let there = recover(&path, None).unwrap().fold;
        assert_eq!(differences(&before, &there), Vec::<String>::new());

        assert_eq!(shards.find("other").await.unwrap(), Found::Books("1".into()));
        shards.clear().await.unwrap();
        assert_eq!(shards.find("me").await.unwrap(), Found::Nothing);
        shards.write(&there, "2", "me", NOW.as_microsecond()).await.unwrap();
        assert_eq!(shards.find("me").await.unwrap(), Found::Leftover);
        shards.moved().await.unwrap();
        assert_eq!(shards.find("me").await.unwrap(), Found::Books("2".into()));
        let back = shards.read("2", NONE).await.unwrap().fold;
        assert_eq!(differences(&before, &back), Vec::<String>::new());
        // The ledger adds up to it from its beginning, and goes on.
        let engine = books(&server, &runtime, "2", false).await;
        for org in ORGS {
            let session = engine.session();
            let Once { scope, key, .. } = once_of(org);
            let known = session.known(scope, &key).await.unwrap().unwrap();
            assert!(known.captured && known.request == [4; 16]);
            // It owes, and has nothing to give.
            let (accounts, post) = ([account(org)], take(1, &[0]));
            let asked = Ask { charge: ChargeId::v7(8, 8), ..ask(0, &accounts, &post) };
            let asked = Ask { charge: asked.charge.at_home(home_of(org)), ..asked };
            assert!(done(session.hold(&asked).await.unwrap()).is_none());
            let (account, now) = (account(org), second(9));
            let adjustment =
                Adjustment { key: None, account: &account, delta: 500, now, memo: b"" };
            engine.session().adjust(&adjustment).await.unwrap();
            charge(&engine, org, 2).await;
        }
        let (read, folded) =
            (shards.read("2", NONE).await.unwrap(), shards.folded().await.unwrap());
        let folded = Fold { closed: read.fold.closed, ..folded };
        assert_eq!(differences(&read.fold, &folded), Vec::<String>::new());
        // What is different is seen.
        let account = read.fold.accounts.keys().next().unwrap();
        for change in [1_u64, 2, 3] {
            let mut other = read.fold.clone();
            let one = other.accounts.get_mut(account).unwrap();
            match change {
                1 => one.balance.captured += 1,
                2 => one.version.number += 1,
                _ => other.once.values_mut().for_each(|once: &mut FoldOnce| once.at += 1),
            }
            assert!(!differences(&read.fold, &other).is_empty());
        }
    });
}

#[test]
fn d37_more_accounts_than_what_they_had_are_no_record() {
    let opening = || tollgate::core::record::Opening {
        key: account("acme").key,
        name: "acme/licence/a",
        grant: account("acme").grant,
    };
    let record = Record::Carried(tollgate::core::record::Carried {
        at: 0,
        openings: [opening()].into_iter().collect(),
        used: Vec::new(),
        keys: Vec::new(),
    });
    assert!(Fold::default().apply(&record).is_err());
    let mut verifier = tollgate::ledger::verify::Verifier::default();
    verifier.see(&record);
    assert_eq!(verifier.findings().len(), 1);
    // Nor does an account come twice.
    let used = vec![tollgate::core::record::Used { adjusted: 1, captured: 2 }];
    let openings = [opening()].into_iter().collect();
    let carried = tollgate::core::record::Carried { at: 0, openings, used, keys: Vec::new() };
    let mut verifier = tollgate::ledger::verify::Verifier::default();
    for findings in [0, 1] {
        verifier.see(&Record::Carried(carried.clone()));
        assert_eq!(verifier.findings().len(), findings);
    }
}
