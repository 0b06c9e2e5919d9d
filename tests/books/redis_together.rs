//! Batches of several shards that go in one call.

use std::time::Duration;

use tokio::task::JoinSet;
use tollgate::books::redis::{Engine, Options, Session};
use tollgate::books::{Ask, Books, BooksError, Posted};

use crate::archive_shards::{ORGS, SHARDS, account, charge_of};
use crate::engine::{NOW, ask, done, take};
use crate::engine_redis::{EventLoop, options};
use crate::redis_retired::calls;
use crate::redis_server::{RedisServer, until};

/// Books of several shards on one server, where every org has an account.
struct Shards {
    engine: Engine,
    session: Session,
    runtime: EventLoop,
    server: RedisServer,
}

impl Shards {
    fn start() -> Self {
        let (runtime, server) = (EventLoop::start(), RedisServer::start());
        let deadline = Duration::from_secs(3);
        let options = Options { shards: SHARDS, deadline, ..options(&server) };
        let opening = Engine::open(options, runtime.handle.clone(), NOW);
        let engine = runtime.handle.block_on(opening).unwrap();
        let shards = Self { session: engine.session(), engine, runtime, server };
        assert!(shards.holds(0).into_iter().all(is_done));
        shards
    }

    /// A hold for every org, all asked in one turn of the event loop.
    fn holds(&self, turn: u64) -> Vec<Result<Posted, BooksError>> {
        self.runtime.handle.block_on(async {
            let mut asked = JoinSet::new();
            for org in ORGS {
                let session = self.session.clone();
                asked.spawn(async move {
                    let (accounts, ten) = ([account(org, "a")], take(10, &[0]));
                    let asked = Ask { charge: charge_of(org, turn), ..ask(0, &accounts, &ten) };
                    (org, session.hold(&asked).await)
                });
            }
            let mut told = asked.join_all().await;
            told.sort_by_key(|(org, _)| *org);
            told.into_iter().map(|(_, told)| told).collect()
        })
    }

    /// How many credits are held, over all.
    fn held(&self) -> u64 {
        let balances = self.runtime.handle.block_on(self.engine.balances()).unwrap();
        balances.iter().map(|(_, _, balance)| balance.held).sum()
    }
}

fn is_done(told: Result<Posted, BooksError>) -> bool {
    done(told.unwrap()).is_some()
}

#[test]
fn p12_shards_of_one_server_share_a_call_and_nothing_else() {
    let shards = Shards::start();
    let before = calls(&shards.server);
    assert!(shards.holds(1).into_iter().all(is_done));
    // The first of them goes alone, and what is asked meanwhile together.
    let after = calls(&shards.server) - before;
    assert!(after < SHARDS as u64, "{after} calls for {SHARDS} shards");
    assert_eq!(shards.held(), 2 * 10 * ORGS.len() as u64);
}

#[test]
fn f33_a_shard_that_fails_keeps_no_other_in_its_call_from_being_done() {
    let shards = Shards::start();
    assert!(shards.holds(1).into_iter().all(is_done));
    let broken = shards.engine.shard_of(tollgate::core::ids::home_of(ORGS[0]));
    let (key, aside) = (format!("tollgate:{{s{broken}}}:accounts"), "tollgate:aside");
    shards.server.ask::<()>(&["RENAME", &key, aside]);
    shards.server.ask::<()>(&["SET", &key, "no hash"]);
    for (org, told) in ORGS.into_iter().zip(shards.holds(2)) {
        let is_theirs = shards.engine.shard_of(tollgate::core::ids::home_of(org)) == broken;
        match told {
            Err(BooksError::Unavailable(_)) => assert!(is_theirs, "{org}"),
            told => assert!(!is_theirs && is_done(told), "{org}"),
        }
    }
    // The reply to such a call, here of two shards that are asked with another epoch.
    shards.server.ask::<()>(&["SET", "x:{s8}:meta", "no hash"]);
    let mut call = ::redis::cmd("FCALL");
    call.arg("tollgate_1_apply_together").arg(20);
    for shard in ["x:{s8}", "x:{s9}"] {
        let names = ["meta", "a", "b", "c", "d", "e", "f", "g", "h", "i"];
        call.arg(names.map(|name| format!("{shard}:{name}")).as_slice());
    }
    for _ in 0..2 {
        call.arg(b"\x94\xa1e\xa1s\x01\x01").arg(b"\x90");
    }
    let mut connection =
        ::redis::Client::open(shards.server.url()).unwrap().get_connection().unwrap();
    let told: Vec<Vec<u8>> = call.query(&mut connection).unwrap();
    assert!(told[0].starts_with(b"-WRONGTYPE") && told[1].starts_with(b"+"), "{told:?}");
    shards.server.ask::<()>(&["RENAME", aside, &key]);
    until("it is used again", || shards.holds(3).into_iter().all(|told| told.is_ok()));
}
