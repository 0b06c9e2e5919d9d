//! Books as a whole, out of a Redis and into one, while no gateway uses them: what moving them needs.
//!
//! What is read is exact because the shards are shut afterwards, and that only where nothing has
//! happened in between. What is written has an epoch that nobody knows yet, so nobody uses it.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::{Cmd, FromRedisValue, Value};
use secrecy::{ExposeSecret, SecretString};

use super::carried::{OPEN_AGAIN, SHUT, account, entry, kept_key, owed, packed, stored};
use super::ledger::{Entry, scope_and_key};
use super::link::Link;
use super::pack::{In, Malformed, Out};
use super::place::Place;
use super::wire::once_field;
use super::{Keys, OpenError, welcome};
use crate::books::fold::{Fold, FoldAccount, FoldOnce};
use crate::core::account::AccountKey;
use crate::core::cycle::Label;
use crate::core::ids::{ChargeId, home_of};

/// A shard's accounts come in one reply, and nothing else waits for it.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How many accounts or keys an entry of the ledger names.
const CHUNK: usize = 256;
/// How many entries are read at once.
const PAGE: usize = 100;

/// The shards of a Redis.
#[derive(Debug)]
pub struct Shards {
    pub(super) link: Link,
    prefix: String,
    pub(super) count: usize,
}

/// Whether there are books in the shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// What an interrupted move from these books has left.
    Leftover,
    /// Books of this epoch.
    Books(String),
}

/// A shard as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// The position of the last entry of its ledger.
    pub end: u64,
    /// Its terms, and the position of the last entry before each.
    pub terms: Vec<(String, u64)>,
    /// A move has shut it already, and was interrupted.
    pub is_shut: bool,
    /// False where Redis was started again since a gateway used the shard: it may have lost what
    /// gateways do again.
    pub is_open: bool,
    /// Open holds.
    pub holds: Vec<ChargeId>,
    /// Sessions that were heard of within `owner_timeout`.
    pub sessions: Vec<String>,
}

/// Everything there is.
#[derive(Debug, Default)]
pub struct Read {
    /// Accounts, keys of captured charges, closed cycles.
    pub fold: Fold,
    /// Each shard.
    pub shards: Vec<Here>,
}

fn odd(error: Malformed) -> OpenError {
    OpenError::Books(error.to_string())
}

/// The epoch of books that are not these any more.
fn shut_epoch(epoch: &str) -> String {
    format!("{epoch}/moved")
}

impl Shards {
    /// The shards of a Redis.
    ///
    /// # Errors
    /// Where the address is none.
    pub fn new(url: &SecretString, prefix: &str, count: usize) -> Result<Self, OpenError> {
        let place = Place::read(url.expose_secret()).map_err(OpenError::Address)?;
        Ok(Self { link: Link::new(place, TIMEOUT), prefix: prefix.to_owned(), count })
    }

    pub(super) fn keys(&self, shard: usize) -> Keys {
        Keys::new(&self.prefix, shard)
    }

    pub(super) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, OpenError> {
        let value = self.link.send(command).await?;
        redis::from_redis_value(value).map_err(|error| OpenError::Redis(error.to_string()))
    }

    async fn tell(&self, command: &Cmd) -> Result<(), OpenError> {
        self.ask::<Value>(command).await.map(|_| ())
    }

    /// Whether there are books already; `from` is who moves.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn find(&self, from: &str) -> Result<Found, OpenError> {
        let mut found = Found::Nothing;
        for shard in 0..self.count {
            let Keys(keys) = self.keys(shard);
            let read = redis::cmd("HMGET").arg(&keys[0]).arg("epoch").arg("moving").clone();
            let (epoch, moving): (Option<String>, Option<String>) = self.ask(&read).await?;
            let there: usize = self.ask(&redis::cmd("EXISTS").arg(&keys[..]).clone()).await?;
            if moving.as_deref() == Some(from) {
                found = Found::Leftover;
            } else if there > 0 {
                return Ok(Found::Books(epoch.unwrap_or_else(|| "of no epoch".to_owned())));
            }
        }
        Ok(found)
    }

    /// Deletes what is in the shards.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn clear(&self) -> Result<(), OpenError> {
        for shard in 0..self.count {
            self.tell(&redis::cmd("DEL").arg(&self.keys(shard).0[..]).clone()).await?;
        }
        Ok(())
    }

    /// Reads everything of the books of an epoch.
    ///
    /// # Errors
    /// When Redis does not answer, has other books, or not as expected.
    pub async fn read(&self, epoch: &str, silence: Duration) -> Result<Read, OpenError> {
        let mut read = Read::default();
        for shard in 0..self.count {
            let here = self.read_shard(shard, epoch, silence, &mut read.fold).await?;
            read.shards.push(here);
        }
        // One shard closes a cycle before another, and forgets its accounts in its time.
        let Fold { accounts, closed, .. } = &mut read.fold;
        accounts.retain(|key, _| !key.is_closed(*closed));
        Ok(read)
    }

    async fn read_shard(
        &self,
        shard: usize,
        epoch: &str,
        silence: Duration,
        fold: &mut Fold,
    ) -> Result<Here, OpenError> {
        let Keys(keys) = self.keys(shard);
        let meta = redis::cmd("HGETALL").arg(&keys[0]).clone();
        let meta: BTreeMap<String, Vec<u8>> = self.ask(&meta).await?;
        let text = |name: &str| {
            let bytes = meta.get(name).map(Vec::as_slice).unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        };
        let number = |name: &str| {
            let number = text(name).parse::<u64>();
            number.map_err(|_| OpenError::Books(format!("shard {shard}: {name} is no number")))
        };
        let is_shut = text("epoch") == shut_epoch(epoch);
        if text("epoch") != epoch && !is_shut {
            let found = text("epoch");
            return Err(OpenError::Books(format!(
                "shard {shard} has the epoch {found:?}, and the directory's books are {epoch}"
            )));
        }
        let names: BTreeMap<Vec<u8>, String> =
            self.ask(&redis::cmd("HGETALL").arg(&keys[2]).clone()).await?;
        let accounts: Vec<(Vec<u8>, Vec<u8>)> =
            self.ask(&redis::cmd("HGETALL").arg(&keys[1]).clone()).await?;
        if accounts.len() as u64 != number("accounts")? {
            return Err(OpenError::Books(format!(
                "shard {shard} is damaged: accounts are missing"
            )));
        }
        for (key, bytes) in accounts {
            let name = names.get(&key).map(String::as_str).unwrap_or_default();
            let (key, account) = account(&key, name, &bytes).map_err(odd)?;
            fold.accounts.insert(key, account);
        }
        let once: Vec<(Vec<u8>, Vec<u8>)> =
            self.ask(&redis::cmd("HGETALL").arg(&keys[5]).clone()).await?;
        if once.len() as u64 != number("keys")? + number("scopes")? {
            return Err(OpenError::Books(format!("shard {shard} is damaged: keys are missing")));
        }
        for (field, bytes) in once {
            // The others count how many a scope has.
            let Ok(field) = <[u8; 24]>::try_from(field) else { continue };
            let known = kept_key(&bytes).map_err(odd)?;
            if let Some(known) = known.filter(|known| known.captured) {
                fold.once.insert(scope_and_key(field), known);
            }
        }
        let closed = u32::try_from(number("closed")?).unwrap_or_default();
        fold.closed = fold.closed.max(Label::from_digits(closed));
        let holds: Vec<Vec<u8>> = self.ask(&redis::cmd("HKEYS").arg(&keys[3]).clone()).await?;
        let holds = holds.into_iter().filter_map(|id| Some(ChargeId(id.try_into().ok()?)));
        let terms = meta.get("terms").map(|bytes| welcome::terms(bytes)).transpose();
        let terms = terms.map_err(odd)?.unwrap_or_default();
        Ok(Here {
            end: number("seq")?,
            terms: terms.into_iter().map(|term| (term.name, term.from)).collect(),
            is_shut,
            is_open: text("run").split('-').next() == Some(&*self.run().await?),
            holds: holds.collect(),
            sessions: self.heard_of(&keys[7], silence).await?,
        })
    }

    /// The run of the server; in a Cluster that of the master of slot 0, so that shards at others seem to
    /// be from another run.
    async fn run(&self) -> Result<String, OpenError> {
        let told: String = self.ask(&redis::cmd("INFO").arg("server").clone()).await?;
        let run = told.lines().find_map(|line| line.strip_prefix("run_id:"));
        Ok(run.unwrap_or_default().trim().to_owned())
    }

    async fn heard_of(&self, key: &str, silence: Duration) -> Result<Vec<String>, OpenError> {
        let (seconds, micros): (i64, i64) = self.ask(&redis::cmd("TIME")).await?;
        let now = seconds.saturating_mul(1_000_000).saturating_add(micros);
        let fields: Vec<(String, Vec<u8>)> =
            self.ask(&redis::cmd("HGETALL").arg(key).clone()).await?;
        let mut heard_of = Vec::new();
        for (name, mark) in fields.into_iter().filter(|(name, _)| !name.ends_with(":r")) {
            let mut input = In::new(&mark);
            let seen = input.uint().and_then(|_| input.int()).map_err(odd)?;
            if now.saturating_sub(seen) < silence.as_micros() as i64 {
                heard_of.push(name);
            }
        }
        Ok(heard_of)
    }

    /// Shuts the books of an epoch for good, where nothing has happened since they were read. Where
    /// that is not so all of them stay as they were.
    ///
    /// # Errors
    /// Says which shard was used meanwhile.
    pub async fn shut(
        &self,
        epoch: &str,
        read: &[Here],
        silence: Duration,
    ) -> Result<(), OpenError> {
        for (shard, here) in read.iter().enumerate() {
            let Keys(keys) = self.keys(shard);
            let mut command = redis::cmd("EVAL");
            command.arg(SHUT).arg(3).arg(&keys[0]).arg(&keys[3]).arg(&keys[7]);
            command.arg(epoch).arg(here.end).arg(silence.as_micros() as u64);
            command.arg(shut_epoch(epoch));
            let told: Result<String, OpenError> = self.ask(&command).await;
            let why = match told {
                Ok(told) if told == "shut" => continue,
                Ok(told) => OpenError::Books(format!("shard {shard}: {told}")),
                Err(error) => error,
            };
            self.open_again(epoch).await?;
            return Err(why);
        }
        Ok(())
    }

    /// Gives books back that were shut.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn open_again(&self, epoch: &str) -> Result<(), OpenError> {
        for shard in 0..self.count {
            let mut command = redis::cmd("EVAL");
            command.arg(OPEN_AGAIN).arg(1).arg(&self.keys(shard).0[0]);
            self.tell(command.arg(epoch).arg(shut_epoch(epoch))).await?;
        }
        Ok(())
    }

    /// Writes books into shards that have nothing. `from` is who moves: it is noted until
    /// [`Shards::moved`].
    ///
    /// # Errors
    /// When Redis does not answer; what it has then is to be cleared.
    pub async fn write(
        &self,
        fold: &Fold,
        epoch: &str,
        from: &str,
        at: i64,
    ) -> Result<(), OpenError> {
        for shard in 0..self.count {
            let Keys(keys) = self.keys(shard);
            let mut mark = redis::cmd("HSET");
            mark.arg(&keys[0]).arg("epoch").arg(epoch).arg("moving").arg(from);
            self.tell(&mark).await?;
        }
        for shard in 0..self.count {
            self.write_shard(shard, fold, epoch, at).await?;
        }
        Ok(())
    }

    async fn write_shard(
        &self,
        shard: usize,
        fold: &Fold,
        epoch: &str,
        at: i64,
    ) -> Result<(), OpenError> {
        let Keys(keys) = self.keys(shard);
        let org = |name: &str| name.split('/').next().unwrap_or_default().to_owned();
        let is_here = |home: u16| usize::from(home) % self.count == shard;
        let accounts = fold.accounts.iter().filter(|(_, one)| is_here(home_of(&org(&one.name))));
        let accounts: Vec<(&AccountKey, &FoldAccount)> = accounts.collect();
        // The scope of an org's keys begins with its home.
        let once = fold.once.iter().filter(|((scope, _), _)| is_here(*scope as u16));
        let once: Vec<(&(u64, [u8; 16]), &FoldOnce)> = once.collect();
        let mut scopes = BTreeMap::<u64, u64>::new();
        let mut seq = 0;
        for some in accounts.chunks(CHUNK) {
            seq += 1;
            self.add_entry(&keys[8], seq, &entry(seq, at, some, &[])).await?;
            let (mut put, mut names) = (redis::cmd("HSET"), redis::cmd("HSET"));
            put.arg(&keys[1]);
            names.arg(&keys[2]);
            for (key, account) in some {
                put.arg(&key.to_bytes()).arg(stored(account));
                names.arg(&key.to_bytes()).arg(&*account.name);
            }
            self.tell(&put).await?;
            self.tell(&names).await?;
        }
        for some in once.chunks(CHUNK) {
            seq += 1;
            self.add_entry(&keys[8], seq, &entry(seq, at, &[], some)).await?;
            let (mut put, mut kept) = (redis::cmd("HSET"), redis::cmd("ZADD"));
            put.arg(&keys[5]);
            kept.arg(&keys[6]);
            for ((scope, key), known) in some {
                let field = once_field(*scope, key);
                let mut out = Out::default();
                out.array(4).bytes(&known.charge).bytes(&known.request).flag(true).int(known.at);
                put.arg(&field).arg(out.into_bytes());
                kept.arg(known.at).arg(&field);
                *scopes.entry(*scope).or_default() += 1;
            }
            self.tell(&put).await?;
            self.tell(&kept).await?;
        }
        for (scope, count) in &scopes {
            let mut put = redis::cmd("HSET");
            self.tell(put.arg(&keys[5]).arg(&scope.to_be_bytes()).arg(packed(*count))).await?;
        }
        let mut terms = Out::default();
        let term = format!("{}-{at}", epoch.get(..8).unwrap_or(epoch));
        terms.array(1).array(2).bytes(term.as_bytes()).uint(0);
        let mut meta = redis::cmd("HSET");
        meta.arg(&keys[0]).arg("closed").arg(fold.closed.digits()).arg("seq").arg(seq);
        meta.arg("accounts").arg(accounts.len()).arg("keys").arg(once.len());
        meta.arg("scopes").arg(scopes.len()).arg("kept").arg(once.len());
        for none in ["holds", "ending", "ended", "sessions", "since", "lost"] {
            meta.arg(none).arg(0);
        }
        for (field, sum) in owed(accounts.iter().copied(), fold.closed) {
            meta.arg(field).arg(sum);
        }
        // The first gateway opens the shard, as in any new run of the server.
        meta.arg("run").arg("").arg("opening").arg("").arg("terms").arg(terms.into_bytes());
        self.tell(&meta).await
    }

    async fn add_entry(&self, key: &str, seq: u64, bytes: &[u8]) -> Result<(), OpenError> {
        let mut add = redis::cmd("XADD");
        self.tell(add.arg(key).arg(format!("{seq}-0")).arg("b").arg(bytes)).await
    }

    /// What the entries of the ledgers add up to, from their beginning.
    ///
    /// # Errors
    /// When Redis does not answer, or the entries contradict each other.
    pub async fn folded(&self) -> Result<Fold, OpenError> {
        let mut fold = Fold::default();
        for shard in 0..self.count {
            let (mut position, keys) = (0_u64, self.keys(shard));
            loop {
                let mut read = redis::cmd("XRANGE");
                read.arg(&keys.0[8]).arg(format!("({position}-0")).arg("+").arg("COUNT").arg(PAGE);
                let entries: Vec<super::stream::StreamEntry> = self.ask(&read).await?;
                if entries.is_empty() {
                    break;
                }
                for (id, fields) in entries {
                    position = id.split('-').next().and_then(|id| id.parse().ok()).unwrap_or(0);
                    for (_, bytes) in &fields {
                        for record in Entry::read(bytes).map_err(odd)?.records {
                            let done = fold.apply(&record);
                            done.map_err(|error| OpenError::Books(error.to_string()))?;
                        }
                    }
                }
            }
        }
        Ok(fold)
    }

    /// Waits until Redis has on its disk what was written. Why not, where it does not say so.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn on_disk(&self) -> Result<Option<&'static str>, OpenError> {
        let told: String = self.ask(&redis::cmd("INFO").arg("persistence").clone()).await?;
        if !told.contains("aof_enabled:1") {
            return Ok(Some("Redis has appendonly off: a restart may lose what was moved"));
        }
        let wait = redis::cmd("WAITAOF").arg(1).arg(0).arg(TIMEOUT.as_millis() as u64 / 2).clone();
        match self.ask::<(u64, u64)>(&wait).await {
            Ok((1.., _)) => Ok(None),
            Ok(_) => Err(OpenError::Redis("its append-only file does not reach its disk".into())),
            // Redis 7.0 and 7.1 do not know it; `everysec` takes two seconds at most.
            Err(_) => {
                tokio::time::sleep(Duration::from_secs(2)).await;
                Ok(None)
            }
        }
    }

    /// The books that were written are used from now on.
    ///
    /// # Errors
    /// When Redis does not answer: then the note stays, and does no harm.
    pub async fn moved(&self) -> Result<(), OpenError> {
        for shard in 0..self.count {
            let done = redis::cmd("HDEL").arg(&self.keys(shard).0[0]).arg("moving").clone();
            self.tell(&done).await?;
        }
        Ok(())
    }
}
