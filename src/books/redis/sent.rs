//! What each session has asked of a shard last, on its gateway's disk. A gateway that is killed before it
//! is told what became of that knows in its next life what it was, and the shard still has its reply: so
//! the journal gets what Redis alone would know otherwise, and could lose (f27).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redis::FromRedisValue;
use serde::{Deserialize, Serialize};

use super::Shared;
use super::drive::Failed;
use super::entrance::{odd, tag};
use super::journal::{Batch, Journal, batches, frame, frames};
use super::wire::{self, Called};
use crate::core::ids::ChargeId;

/// A batch that was asked, and of which nothing is known yet.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Asked<'a> {
    session: &'a str,
    number: u64,
    /// As they were sent.
    #[serde(with = "serde_bytes")]
    ops: &'a [u8],
}

/// The file of a session and a shard: it has the last batch, and nothing else.
#[derive(Debug)]
pub(super) struct Sent(File);

impl Sent {
    /// Opens the file of a session of this life.
    pub(super) fn open(dir: &Path, shard: usize, session: &str) -> std::io::Result<Self> {
        let name = session.rsplit('/').take(2).collect::<Vec<_>>();
        let path = dir.join(prefix(shard) + &name.into_iter().rev().collect::<Vec<_>>().join("-"));
        Ok(Self(OpenOptions::new().create(true).truncate(false).write(true).open(path)?))
    }

    /// Keeps a batch that is about to be asked; not synced, as the journal is not.
    pub(super) fn keep(&self, session: &str, number: u64, ops: &[u8]) -> std::io::Result<()> {
        self.0.write_all_at(&frame(&Asked { session, number, ops })?, 0)
    }
}

/// What the names of a shard's files begin with.
fn prefix(shard: usize) -> String {
    format!("sent-{shard}-")
}

/// What a file has; nothing of one that was being written when its gateway was killed, and so had not
/// asked yet.
fn asked(bytes: &[u8]) -> Option<Asked<'_>> {
    let (_, record) = frames(bytes).next()?;
    postcard::from_bytes(record).ok()
}

/// The files of a shard and of earlier lives whose last batch the journal does not have. The others go.
fn untold(
    journal: &Journal,
    shard: usize,
    this_life: &str,
) -> std::io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let (all, own) = (prefix(shard), prefix(shard) + this_life + "-");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(journal.dir())? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&all) && !name.starts_with(&own) {
            found.push((entry.path(), std::fs::read(entry.path())?));
        }
    }
    if found.is_empty() {
        return Ok(found);
    }
    let files = journal.read(shard)?;
    let is_untold = |asked: Asked<'_>| {
        let mut all = files.iter().flat_map(|bytes| batches(bytes)).map(|(_, batch)| batch);
        !all.any(|batch| batch.session == asked.session && batch.number >= asked.number)
    };
    let (untold, told): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|(_, bytes)| asked(bytes).is_some_and(is_untold));
    told.iter().try_for_each(|(path, _)| std::fs::remove_file(path))?;
    Ok(untold)
}

impl Shared {
    /// Keeps in the journal what became of the last batches of earlier lives, where a shard knows it and
    /// they were not told.
    pub(super) async fn hears_of_the_last(
        &self,
        shard: usize,
        journal: &Arc<Journal>,
    ) -> Result<(), Failed> {
        let (reading, this_life) = (Arc::clone(journal), self.incarnation.clone());
        let found = move || untold(&reading, shard, &this_life);
        let found = tokio::task::spawn_blocking(found).await.map_err(odd)?.map_err(odd)?;
        for (path, bytes) in found {
            let Some(Asked { session, number, ops }) = asked(&bytes) else { continue };
            let known = self.look_in(shard, session, 0).await?.known;
            if known.is_some_and(|known| known < number) {
                // It may still be on its way.
                continue;
            }
            // Behind it the session was told, and where it was removed nobody knows.
            if known == Some(number) {
                self.keep_reply(shard, journal, session, number, ops).await?;
            }
            std::fs::remove_file(&path).map_err(odd)?;
        }
        Ok(())
    }

    async fn keep_reply(
        &self,
        shard: usize,
        journal: &Journal,
        session: &str,
        number: u64,
        ops: &[u8],
    ) -> Result<(), Failed> {
        let told = self.read_key(shard, redis::cmd("HGET"), &[&format!("{session}:r")]).await?;
        let reply = Option::<Vec<u8>>::from_redis_value(told).map_err(odd)?.unwrap_or_default();
        let charges = vec![ChargeId([0; 16]); wire::count(ops).map_err(odd)?];
        // One to something else says that what was lost was done again, and that the journal has.
        let Ok(Called::Done(done)) = wire::reply(&reply, tag(number, shard), &charges) else {
            return Ok(());
        };
        if done.entry > 0 {
            let (term, entry, reply) = (&*done.term, done.entry, &*reply);
            journal.keep(shard, &Batch { session, number, term, entry, ops, reply });
            tracing::info!(
                shard,
                session,
                "Redis had done what this gateway was not told before it ended"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f27_what_was_asked_last_is_found_after_a_kill_at_any_byte_and_this_life_keeps_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), "books", 2).unwrap();
        let open = |life: &str| Sent::open(journal.dir(), 1, &format!("a/{life}/0")).unwrap();
        let (before, now) = (open("one"), open("two"));
        before.keep("a/one/0", 7, &[9; 100]).unwrap();
        before.keep("a/one/0", 8, b"shorter").unwrap();
        now.keep("a/two/0", 1, b"ops").unwrap();
        let found = untold(&journal, 1, "two").unwrap();
        let [(path, bytes)] = &found[..] else { panic!("{found:?}") };
        let expected = Asked { session: "a/one/0", number: 8, ops: b"shorter" };
        assert_eq!(asked(bytes), Some(expected));
        assert_eq!(untold(&journal, 0, "two").unwrap(), []);
        let whole = frame(&asked(bytes).unwrap()).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(path, &whole[..cut]).unwrap();
            assert_eq!(untold(&journal, 1, "two").unwrap(), [], "{cut}");
            assert!(!path.exists(), "nothing is in it");
        }
        // What is in the journal was told.
        for (number, is_there) in [(7, true), (8, false)] {
            std::fs::write(path, &whole).unwrap();
            let batch =
                Batch { session: "a/one/0", number, term: "x-1", entry: 3, ops: b"", reply: b"" };
            journal.keep(1, &batch);
            assert_eq!(untold(&journal, 1, "two").unwrap().len(), usize::from(is_there));
        }
        assert_eq!(
            std::fs::read_dir(journal.dir()).unwrap().count(),
            3,
            "two shards and this life"
        );
    }
}
