//! What becomes of holds whose owner is not heard of any more (D36).
//!
//! A session that has joined a shard is heard of there four times in `owner_timeout`, whatever it has
//! to do. One that was not, for so long by Redis' clock, is absent: whichever gateway sees it ends its
//! holds as they say themselves, and takes its name away. Several may do so at once, and the owner may
//! come back meanwhile: each step names the session's mark as it was read, which changes with each of
//! its calls, and does nothing where it is another one by then.
//!
//! Nobody is absent by Redis' clock alone, which may jump (f47): a mark has to be the same also for
//! half of the timeout by this gateway's own clock. An owner forwards for no longer than that after
//! its last call (`Session::may_forward`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use super::pack::{In, Malformed};
use super::stored::StoredHold;
use super::wire::Endable;
use super::{
    Engine, HOLDS, MAX_SWEEP, META, OpenError, SESSIONS, Swept, forgotten_before, library,
};
use crate::books::OpenCharge;
use crate::core::charge::State;
use crate::core::ids::ChargeId;

/// How many fields of a hash are read at once.
const PAGE: usize = 500;

/// Of each shard the sessions that were silent for half of the timeout by Redis' clock, and since when
/// by this gateway's they have the mark that they have. Written by whoever looks for the absent.
#[derive(Debug, Default)]
pub(super) struct Silent(Mutex<HashMap<usize, Vec<(Owner, Instant)>>>);

impl Silent {
    /// Takes over what was seen of a shard, and says which sessions have their mark for so long.
    fn see(&self, shard: usize, seen: Vec<Owner>, now: Instant, long: Duration) -> Vec<Owner> {
        let mut shards = self.0.lock();
        let before = shards.remove(&shard).unwrap_or_default();
        let since = |owner: Owner| {
            let same = |(known, _): &&(Owner, Instant)| {
                known.name == owner.name && known.mark == owner.mark
            };
            let since = before.iter().find(same).map_or(now, |(_, since)| *since);
            (owner, since)
        };
        let silent: Vec<(Owner, Instant)> = seen.into_iter().map(since).collect();
        let is_long = |(_, since): &&(Owner, Instant)| now.duration_since(*since) >= long;
        let absent = silent.iter().filter(is_long).map(|(owner, _)| owner.clone()).collect();
        if !silent.is_empty() {
            shards.insert(shard, silent);
        }
        absent
    }
}

/// Fields of a hash, and their values.
type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// A session as a shard knows it.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) name: String,
    /// Its last number, and when it was seen, as they are stored.
    mark: Vec<u8>,
    /// When it was seen, in microseconds since the Unix epoch by Redis' clock.
    pub(super) seen: i64,
}

impl Engine {
    /// Resolves the holds of gateways that are not heard of any more (D36), as they say themselves,
    /// but those that outlive their process; their sessions are over. Whoever is heard of again in
    /// between keeps what is his. To be called every second or so: a session is not absent the first
    /// time that it is seen to be silent.
    pub async fn resolve_absent(&self, now: Timestamp) -> Swept {
        let mut swept = Swept::default();
        for shard in 0..self.shared.shards {
            let done = self.resolve_absent_in(shard, now, &mut swept.ended).await;
            swept.note(done);
        }
        swept
    }

    async fn resolve_absent_in(
        &self,
        shard: usize,
        now: Timestamp,
        ended: &mut Vec<(OpenCharge, State)>,
    ) -> Result<(), OpenError> {
        let timeout = self.shared.owner_timeout;
        let (long, half) = (timeout.as_micros() as i64, timeout.as_micros() as i64 / 2);
        // Asked first: who is seen after it is not silent.
        let clock = self.redis_clock().await?;
        let owners = self.owners(shard).await?;
        let names = owners.iter().map(|owner| owner.name.clone()).collect();
        let silent = owners.into_iter().filter(|owner| clock - owner.seen >= half).collect();
        let mut absent = self.silent.see(shard, silent, Instant::now(), timeout / 2);
        absent.retain(|owner| clock - owner.seen >= long);
        if absent.is_empty() {
            return Ok(());
        }
        self.end_holds_of(shard, &absent, &names, now, ended).await
    }

    /// Resolves what earlier lives of this gateway left open, but what outlives its process: no two
    /// that run have the same name.
    pub(super) async fn resolve_left_open(&self, now: Timestamp) {
        for shard in 0..self.shared.shards {
            let mut ended = Vec::new();
            let done = self.resolve_left_open_in(shard, now, &mut ended).await;
            for (_, state) in ended {
                self.shared.seen.resolved(state);
            }
            // Whoever is at the other shards is served all the same.
            if let Err(error) = done {
                tracing::error!(shard, %error, "what this gateway left open is not resolved yet");
            }
        }
    }

    async fn resolve_left_open_in(
        &self,
        shard: usize,
        now: Timestamp,
        ended: &mut Vec<(OpenCharge, State)>,
    ) -> Result<(), OpenError> {
        let is_earlier = self.shared.is_earlier();
        let mut owners = self.owners(shard).await?;
        let names = owners.iter().map(|owner| owner.name.clone()).collect();
        owners.retain(|owner| is_earlier(&owner.name));
        if owners.is_empty() {
            return Ok(());
        }
        self.end_holds_of(shard, &owners, &names, now, ended).await?;
        Ok(self.session.sweep(shard, forgotten_before(now.as_microsecond()), MAX_SWEEP).await?)
    }

    /// Ends the holds of sessions that are gone, and of those that are not even registered, and takes
    /// the sessions away.
    async fn end_holds_of(
        &self,
        shard: usize,
        gone: &[Owner],
        registered: &HashSet<String>,
        now: Timestamp,
        ended: &mut Vec<(OpenCharge, State)>,
    ) -> Result<(), OpenError> {
        let mark_of = |owner: &str| {
            let found = gone.iter().find(|gone| gone.name == owner);
            let unregistered = || (!registered.contains(owner)).then_some(&[][..]);
            found.map(|gone| &gone.mark[..]).or_else(unregistered)
        };
        let mut cursor = 0;
        loop {
            let (next, holds) = self.some_holds(shard, cursor).await?;
            let mine = holds.iter().filter(|(_, hold)| hold.expires == 0);
            // All of a page are asked for at once, and so go in few calls.
            let asked: Vec<_> = mine
                .filter_map(|(charge, hold)| {
                    let absent = Endable::Absent(mark_of(&hold.owner)?);
                    Some(self.session.end(shard, *charge, now, absent))
                })
                .collect();
            for end in asked {
                ended.extend(end.await?.map(|end| (end.charge, end.state)));
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        // With a session of an earlier life goes its last reply: nobody else asks for that.
        if let Err(failed) = self.shared.hears_of_the_last(shard).await {
            tracing::warn!(shard, %failed, "sessions that are over stay registered");
            return Ok(());
        }
        let is_earlier = self.shared.is_earlier();
        for Owner { name, mark, .. } in gone {
            let kept_from = match is_earlier(name) {
                true => String::new(),
                false => now.as_microsecond().to_string(),
            };
            let args = [self.shared.epoch.as_bytes(), name.as_bytes(), mark, kept_from.as_bytes()];
            let args = args.map(<[u8]>::to_vec);
            let leave = self.shared.keys(shard).function(library::LEAVE, &args);
            // Whoever looks next takes it away.
            if let Err(error) = self.shared.link.call(&leave).await {
                tracing::warn!(shard, %error, "a session that is over stays registered");
            }
        }
        // Most have left nothing: they ended as they should.
        if !ended.is_empty() {
            tracing::warn!(
                shard,
                sessions = gone.len(),
                holds = ended.len(),
                "gateways are not heard of: what they left open is resolved"
            );
        }
        Ok(())
    }

    /// How far a gateway's time is ahead of Redis' clock, which all gateways share; in a Cluster of that of
    /// one of its masters.
    ///
    /// # Errors
    /// When Redis does not answer, or not as expected.
    pub async fn ahead(&self, now: Timestamp) -> Result<SignedDuration, OpenError> {
        let clock = self.redis_clock().await?;
        Ok(SignedDuration::from_micros(now.as_microsecond().saturating_sub(clock)))
    }

    /// Redis' clock, in microseconds since the Unix epoch. In a Cluster it is that of the master of slot 0,
    /// and what a shard noted is by its own master's.
    pub(super) async fn redis_clock(&self) -> Result<i64, OpenError> {
        let (seconds, micros): (i64, i64) = self.read(&redis::cmd("TIME")).await?;
        Ok(seconds.saturating_mul(1_000_000).saturating_add(micros))
    }

    /// The sessions of a shard.
    pub(super) async fn owners(&self, shard: usize) -> Result<Vec<Owner>, OpenError> {
        let key = &self.shared.keys(shard).0[SESSIONS];
        let fields: Vec<Vec<u8>> = self.read(&redis::cmd("HKEYS").arg(key).clone()).await?;
        let names = fields.into_iter().filter_map(|name| String::from_utf8(name).ok());
        // Their last replies are there too, and long.
        let names: Vec<String> = names.filter(|name| !name.ends_with(":r")).collect();
        let mut owners = Vec::new();
        for names in names.chunks(PAGE) {
            let marks: Vec<Option<Vec<u8>>> =
                self.read(&redis::cmd("HMGET").arg(key).arg(names).clone()).await?;
            for (name, mark) in names.iter().zip(marks) {
                // One that has left in between is nobody's.
                let Some(mark) = mark else { continue };
                let seen = seen(&mark).map_err(odd)?;
                owners.push(Owner { name: name.clone(), mark, seen });
            }
        }
        Ok(owners)
    }

    /// What a shard says of itself in fields whose names are such: it may have others that are large.
    pub(super) async fn of_meta(
        &self,
        shard: usize,
        names: &str,
    ) -> Result<BTreeMap<String, Vec<u8>>, OpenError> {
        let (mut found, mut cursor) = (BTreeMap::new(), 0_u64);
        loop {
            let mut command = redis::cmd("HSCAN");
            command.arg(&self.shared.keys(shard).0[META]).arg(cursor);
            command.arg("MATCH").arg(names).arg("COUNT").arg(PAGE);
            let (next, fields): (u64, Fields) = self.read(&command).await?;
            let text = |(field, value)| Some((String::from_utf8(field).ok()?, value));
            found.extend(fields.into_iter().filter_map(text));
            cursor = next;
            if cursor == 0 {
                return Ok(found);
            }
        }
    }

    /// Some of the open holds of a shard, from a cursor on, and the next cursor. Each that is there
    /// all the time is among those of one round.
    pub(super) async fn some_holds(
        &self,
        shard: usize,
        cursor: u64,
    ) -> Result<(u64, Vec<(ChargeId, StoredHold)>), OpenError> {
        let mut command = redis::cmd("HSCAN");
        command.arg(&self.shared.keys(shard).0[HOLDS]).arg(cursor).arg("COUNT").arg(PAGE);
        let (next, pairs): (u64, Fields) = self.read(&command).await?;
        let hold = |(charge, bytes): (Vec<u8>, Vec<u8>)| {
            let charge = charge.try_into().map_err(|_| Malformed("a charge's id".into()))?;
            Ok((ChargeId(charge), StoredHold::read(&mut In::new(&bytes))?))
        };
        let holds = pairs.into_iter().map(hold).collect::<Result<_, _>>().map_err(odd)?;
        Ok((next, holds))
    }
}

/// When a session was seen, as its mark has it behind the last number.
fn seen(mark: &[u8]) -> Result<i64, Malformed> {
    let mut input = In::new(mark);
    input.uint()?;
    input.int()
}

fn odd(error: Malformed) -> OpenError {
    OpenError::Books(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str, mark: u8) -> Owner {
        Owner { name: name.into(), mark: vec![mark], seen: 0 }
    }

    #[test]
    fn d36_f47_whoever_is_silent_by_a_clock_that_jumped_is_absent_when_it_stays_silent() {
        let (silent, long) = (Silent::default(), Duration::from_secs(5));
        let start = Instant::now();
        let absent = |shard, after, seen: &[Owner]| {
            let absent = silent.see(shard, seen.to_vec(), start + Duration::from_secs(after), long);
            absent.into_iter().map(|owner| owner.name).collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        assert_eq!(absent(0, 0, &[owner("a", 1), owner("b", 1), owner("c", 1)]), none);
        assert_eq!(absent(0, 3, &[owner("a", 1), owner("b", 2)]), none);
        // b was heard of, c too for a while, and another shard is another thing.
        assert_eq!(absent(1, 5, &[owner("a", 1)]), none);
        assert_eq!(absent(0, 5, &[owner("a", 1), owner("b", 2), owner("c", 1)]), ["a"]);
        assert_eq!(absent(0, 8, &[owner("b", 2), owner("c", 1)]), ["b"]);
        assert_eq!(absent(0, 9, &[owner("c", 2)]), none);
        assert_eq!(absent(1, 10, &[owner("a", 1)]), ["a"]);
    }
}
