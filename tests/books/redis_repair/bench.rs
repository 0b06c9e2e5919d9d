//! Gateways whose shard is damaged and built again: what somebody asks of them, and what may happen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ::redis::Commands;
use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use tollgate::books::redis::carry::Shards;
use tollgate::books::redis::repair::Condition;
use tollgate::books::{
    Adjustment, Amended, Amendment, Ask, Books, BooksError, InDoubt, Key, Posted, Resolution,
};
use tollgate::core::account::{Account, Balance};
use tollgate::core::adjustment::AdjustMemo;
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::directory::Place;
use tollgate::ledger::add_up::add_up;
use tollgate::ledger::archive::Archive;
use tollgate::ledger::repair::Repair;

use crate::archive_shards::stopped;
use crate::engine::{NOW, account, amendment, ask, id, key, known, run, take, temporary, under};
use crate::prune::memo_of;
use crate::redis_connect::{PASSWORD, documented_user};
use crate::redis_rejoin::{NAMES, Random, Running, Several, names, seen};

pub const KEYS: [&str; 10] =
    ["meta", "accounts", "names", "holds", "ending", "once", "kept", "sessions", "ledger", "ended"];

pub fn key_of(name: &str) -> String {
    format!("tollgate:{{s0}}:{name}")
}

/// Gateways, and where they archive.
pub struct Bench {
    pub books: Several,
    pub place: Place,
    pub dir: TempDir,
    pub random: Random,
    pub charges: Vec<u64>,
    pub next: u64,
    /// Time goes on with everything that is asked.
    pub clock: i64,
    /// What may have been given up since it was archived. That is not captured late here: where all of it
    /// is lost and done again, the capture may come first, and then its hold is in no record.
    pub given_up: BTreeSet<u64>,
}

impl Bench {
    pub fn new(seed: u64) -> Self {
        let dir = temporary();
        let place = Place::File(dir.path().join("archive.db"));
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let books = Several::start(3, Duration::from_millis(50));
        let bench = Self {
            books,
            place,
            dir,
            random,
            charges: Vec::new(),
            next: 0,
            clock: 0,
            given_up: BTreeSet::new(),
        };
        let more = "+type +xlen +del";
        assert!(include_str!("../../../docs/scaling.md").contains(more));
        let user = documented_user();
        let user: Vec<&str> = user.iter().map(String::as_str).chain(more.split(' ')).collect();
        bench.books.server.command::<String>(&user).unwrap();
        bench.archive(0);
        bench
    }

    pub fn now(&mut self) -> Timestamp {
        self.clock += 1;
        NOW + SignedDuration::from_micros(self.clock)
    }

    /// Archives all that there is, and keeps so many entries of it.
    pub fn archive(&self, keep: u64) {
        let Running { engine, runtime, .. } = self.books.gateways[0].running.as_ref().unwrap();
        let (engine, place) = (Arc::clone(engine), self.place.clone());
        runtime.handle.block_on(async move {
            let archive = Archive::of_shards(place, engine, keep).await.unwrap();
            archive.follow(stopped()).await.unwrap();
            archive.close().await;
        });
    }

    pub fn shards(&self) -> Shards {
        Shards::new(&self.books.server.url().into(), "tollgate", 1).unwrap()
    }

    /// The same for a user with no more rights than it takes.
    pub fn as_documented(&self) -> Shards {
        let url = format!("redis://tollgate:{PASSWORD}@127.0.0.1:{}", self.books.server.port);
        Shards::new(&url.into(), "tollgate", 1).unwrap()
    }

    pub fn repair<'a>(&self, shards: &'a Shards) -> Repair<'a> {
        let archive = self.place.clone();
        // A clock that is ahead forgets no key: its request would be charged twice.
        let now = NOW + SignedDuration::from_hours(2_400);
        Repair { shards, epoch: "1", archive, now, inexact: false }
    }

    pub fn repaired(&self) {
        let shards = self.as_documented();
        run(async {
            shards.prepare().await.unwrap();
            let built = self.repair(&shards).apply(&[0], "token").await.unwrap();
            assert_eq!(built[0].content.odd, [""; 0]);
        });
    }

    /// What does not add up.
    pub fn findings(&self) -> Vec<String> {
        run(async {
            let added = add_up(&self.as_documented(), "1", &self.place).await.unwrap();
            let all = added.shards.iter().flat_map(|shard| shard.findings());
            all.map(ToString::to_string).collect()
        })
    }

    pub fn is_refused(&self) {
        let (accounts, ten) = ([account("a", 100_000, 1)], take(10, &[0]));
        let refused =
            self.books.run(0, async |session| session.hold(&ask(1_000_000, &accounts, &ten)).await);
        assert!(matches!(refused, Err(BooksError::Unavailable(_))), "{refused:?}");
    }

    pub fn fields(&self, name: &str) -> BTreeSet<Vec<u8>> {
        self.books.connection().hkeys(key_of(name)).unwrap()
    }

    /// What somebody asks of the books.
    pub fn something(&mut self) {
        let at = self.random.below(3);
        let one = NAMES[self.random.below(3)];
        let now = self.now();
        let charge = match &self.charges[..] {
            [] => 0,
            charges => charges[self.random.below(charges.len())],
        };
        match self.random.below(40) {
            0 => {
                self.books.gateways[at].running = None;
                self.books.now = now;
                self.given_up.extend(&self.charges);
                self.books.open(at);
            }
            number => match number % 9 {
                0..=3 => self.hold(at, one, now),
                4 | 5 if self.given_up.contains(&charge) => {}
                4 | 5 => {
                    let keep = [self.random.below(11) as u64, self.random.below(6) as u64];
                    let voids = self.random.below(3) == 0;
                    let state = if voids { State::Voided } else { State::Captured };
                    let memo = OutcomeMemo::default();
                    let ended = Resolution::plain(state, &keep, now, &memo);
                    self.books.run(at, async |session| {
                        session.resolve(id(charge), &ended).await.unwrap()
                    });
                }
                6 => self.amend(at, one, charge, now),
                7 => {
                    self.given_up.insert(charge);
                    self.books
                        .run(at, async |session| session.abandon(id(charge), now).await.unwrap());
                }
                _ => self.adjust(at, one, now),
            },
        }
    }

    pub fn hold(&mut self, at: usize, one: &'static str, now: Timestamp) {
        self.next += 1;
        let (accounts, post) = ([account(one, 100_000, 1)], take(10, &[0]));
        let memo = memo_of("acme");
        let once = key(1, self.random.below(20) as u8, 7);
        let lasting = if self.random.below(2) == 0 { under(once) } else { None };
        let captures = self.random.below(3) == 0;
        let in_doubt = if captures { InDoubt::Capture } else { InDoubt::Void };
        let asked = ask(self.next, &accounts, &post);
        let asked = Ask { lasting, now, in_doubt, memo: &memo, ..asked };
        let posted = self.books.run(at, async |session| session.hold(&asked).await.unwrap());
        if matches!(posted, Posted::Done(..)) {
            self.charges.push(self.next);
        }
    }

    pub fn amend(&mut self, at: usize, one: &'static str, charge: u64, now: Timestamp) {
        let (accounts, post) = ([account(one, 100_000, 1)], take(5, &[0]));
        let names = names(&mut self.random);
        let use_of = known(&[self.random.below(9) as u64]);
        let known = (self.random.below(2) == 0).then_some(&use_of);
        let extra = (self.random.below(3) > 0).then_some((&accounts[..], &post));
        let amended = Amendment { extra, names: &names, known, now, ..amendment() };
        let amended =
            self.books.run(at, async |session| session.amend(id(charge), &amended).await.unwrap());
        assert!(!matches!(amended, Amended::Short(_)));
    }

    pub fn adjust(&mut self, at: usize, one: &'static str, now: Timestamp) {
        self.next += 1;
        let account: Account<'_> = account(one, 100_000, 1);
        let delta = self.random.below(7) as i64 - 3;
        let field = self.random.below(50) as u8;
        let key = (self.random.below(2) == 0).then_some(Key { scope: 2, key: [field; 16] });
        let (org, who, reason) = ("acme", "operator", "ticket 4711");
        let memo = AdjustMemo { id: id(self.next).0, org, who, reason, charge: None };
        let memo = postcard::to_stdvec(&memo).unwrap();
        let adjustment = Adjustment { account: &account, delta, now, memo: &memo, key };
        // A key that was used for another one is refused.
        let _ = self.books.run(at, async |session| session.adjust(&adjustment).await);
    }

    /// Empties the shard, deletes a key of it, or puts one back as it was then.
    pub fn damage(&mut self, then: &[(String, Vec<u8>)]) -> String {
        let mut connection = self.books.connection();
        let name = KEYS[self.random.below(KEYS.len())];
        let what = self.random.below(4);
        match (what, then.get(self.random.below(then.len().max(1)))) {
            (0, _) => {
                ::redis::cmd("FLUSHALL").exec(&mut connection).unwrap();
                "everything".to_owned()
            }
            (1, Some((key, dump))) => {
                let dump_of = ::redis::cmd("DUMP").arg(key).clone();
                let now: Option<Vec<u8>> = dump_of.query(&mut connection).unwrap();
                let mut put = ::redis::cmd("RESTORE");
                put.arg(key).arg(0).arg(dump).arg("REPLACE").exec(&mut connection).unwrap();
                if self.is_whole() {
                    // It has as many fields: who adds it up finds it, and says so by taking it away.
                    let is_as_it_was = now.as_ref() == Some(dump) || *key != key_of("accounts");
                    assert!(is_as_it_was || !self.findings().is_empty());
                    let () = connection.del(key).unwrap();
                }
                format!("{key} of another time")
            }
            _ => {
                let () = connection.del(key_of(name)).unwrap();
                name.to_owned()
            }
        }
    }

    pub fn dumps(&self) -> Vec<(String, Vec<u8>)> {
        let mut connection = self.books.connection();
        let mut dumps = Vec::new();
        for name in KEYS {
            let key = key_of(name);
            let dump: Option<Vec<u8>> =
                ::redis::cmd("DUMP").arg(&key).query(&mut connection).unwrap();
            dumps.extend(dump.map(|dump| (key, dump)));
        }
        dumps
    }

    pub fn is_whole(&self) -> bool {
        let shards = self.shards();
        let found = run(async {
            shards.prepare().await.unwrap();
            shards.inspect(0, "1").await.unwrap()
        });
        found.condition == Condition::Whole
    }
}

/// All that anybody can ask of the books is as it was.
pub fn same(bench: &Bench, before: &(BTreeMap<String, Balance>, Vec<String>), at: &str) {
    let after = seen(&bench.books, 0, &bench.charges);
    assert_eq!(after.0, before.0, "{at}");
    for (now, then) in after.1.iter().zip(&before.1) {
        assert_eq!(now, then, "{at}");
    }
}
