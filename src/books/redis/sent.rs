//! What each session has asked of a shard last, on its gateway's disk. A gateway that is killed before it
//! is told what became of that knows in its next life what it was, and the shard still has its reply: so
//! the journal gets what Redis alone would know otherwise, and could lose (f27).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

/// The file of a session and a shard: it has the last batch, and nothing else. Opened for each: many
/// sessions of many shards would be more open files than a process may have.
#[derive(Debug)]
pub(super) struct Sent(PathBuf);

impl Sent {
    /// That of a session of this life.
    pub(super) fn new(journal: &Journal, shard: usize, session: &str) -> Self {
        let mut names = session.rsplit('/');
        let (number, life) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
        Self(journal.dir().join(format!("{}{life}-{number}", prefix(shard))))
    }

    /// Keeps a batch that is about to be asked; not synced, as the journal is not.
    pub(super) fn keep(&self, session: &str, number: u64, ops: &[u8]) -> std::io::Result<()> {
        let written = frame(&Asked { session, number, ops }).and_then(|frame| {
            let file = File::options().create(true).truncate(false).write(true).open(&self.0)?;
            file.write_all_at(&frame, 0)
        });
        if written.is_err() {
            // What it has is not what is asked now, and may have the same number.
            let _ = std::fs::remove_file(&self.0);
        }
        written
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

/// A file and what it has.
pub(super) type Earlier = (PathBuf, Vec<u8>);

/// The files of a shard and of earlier lives. One that cannot be read keeps nobody from being served.
pub(super) fn earlier(journal: &Journal, shard: usize, this_life: &str) -> Vec<Earlier> {
    let (all, own) = (prefix(shard), prefix(shard) + this_life + "-");
    let is_earlier = |name: &OsStr| {
        let name = name.to_string_lossy();
        name.starts_with(&all) && !name.starts_with(&own)
    };
    let read = |path: PathBuf| Ok((path.clone(), std::fs::read(&path)?));
    let found = std::fs::read_dir(journal.dir()).and_then(|entries| {
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        let entries = entries.into_iter().filter(|entry| is_earlier(&entry.file_name()));
        entries.map(|entry| read(entry.path())).collect::<std::io::Result<Vec<Earlier>>>()
    });
    found.unwrap_or_else(|error| {
        tracing::error!(shard, %error, "what earlier lives have asked last cannot be read");
        Vec::new()
    })
}

/// Those whose last batch the files of the journal do not have. The others go.
pub(super) fn untold(earlier: Vec<Earlier>, journal: &[Vec<u8>]) -> Vec<Earlier> {
    if earlier.is_empty() {
        return earlier;
    }
    let mut told: HashMap<&str, u64> = HashMap::new();
    for (_, batch) in journal.iter().flat_map(|bytes| batches(bytes)) {
        let newest = told.entry(batch.session).or_default();
        *newest = batch.number.max(*newest);
    }
    let is_untold =
        |asked: Asked<'_>| told.get(asked.session).is_none_or(|newest| *newest < asked.number);
    let (untold, over): (Vec<_>, Vec<_>) =
        earlier.into_iter().partition(|(_, bytes)| asked(bytes).is_some_and(is_untold));
    over.iter().for_each(|(path, _)| remove(path));
    untold
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "a file that is needed no more stays");
    }
}

impl Shared {
    /// Keeps in the journal what became of the last batches of earlier lives, where a shard knows it and
    /// they were not told.
    pub(super) async fn hears_of_the_last(&self, shard: usize) -> Result<(), Failed> {
        let Some(journal) = self.journal.clone() else { return Ok(()) };
        let _turn = self.reading.lock().await;
        let (reading, this_life) = (Arc::clone(&journal), self.incarnation.clone());
        let read = move || {
            let earlier = earlier(&reading, shard, &this_life);
            // Mostly there is none.
            let files =
                if earlier.is_empty() { Default::default() } else { reading.read(shard)? };
            Ok::<_, std::io::Error>(untold(earlier, &files))
        };
        let untold = tokio::task::spawn_blocking(read).await.map_err(odd)?.map_err(odd)?;
        self.hears_of(shard, &journal, untold).await
    }

    /// The same for a session of this life that was taken away, and that has not heard of this batch.
    pub(super) async fn hears_of_removed(
        &self,
        shard: usize,
        sent: &Sent,
        number: u64,
    ) -> Result<(), Failed> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let _turn = self.reading.lock().await;
        match std::fs::read(&sent.0) {
            Ok(bytes) if asked(&bytes).is_some_and(|asked| asked.number == number) => {
                self.hears_of(shard, journal, vec![(sent.0.clone(), bytes)]).await
            }
            // It has what changed nothing, and is not there.
            Ok(_) => Ok(()),
            // It could not be written then, which was told.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => {
                tracing::error!(shard, %error, "what was asked last cannot be read");
                Ok(())
            }
        }
    }

    pub(super) async fn hears_of(
        &self,
        shard: usize,
        journal: &Journal,
        untold: Vec<Earlier>,
    ) -> Result<(), Failed> {
        for (path, bytes) in untold {
            let Some(last) = asked(&bytes) else { continue };
            let known = self.look_in(shard, last.session, 0).await?.known;
            let is_over = match known {
                // It may still be on its way.
                Some(known) if known < last.number => false,
                // The session was told, and went on.
                Some(known) if known > last.number => true,
                _ => self.keeps_reply(shard, journal, &last).await?,
            };
            if is_over {
                remove(&path);
            }
        }
        Ok(())
    }

    /// Whether the journal has what became of a batch, or need not have it.
    async fn keeps_reply(
        &self,
        shard: usize,
        journal: &Journal,
        asked: &Asked<'_>,
    ) -> Result<bool, Failed> {
        let Asked { session, number, ops } = *asked;
        let Some(reply) = self.last_reply(shard, session).await? else { return Ok(true) };
        let charges = vec![ChargeId([0; 16]); wire::count(ops).unwrap_or_default()];
        let done = match wire::reply(&reply, tag(number, shard), &charges) {
            Ok(Called::Done(done)) if done.entry > 0 => done,
            // Nothing was changed; or what was lost was done again, and the journal has that.
            Ok(_) => return Ok(true),
            // It is to another one, and this was not done; or the shard was built again.
            Err(error) => {
                tracing::info!(shard, session, %error, "Redis does not know of what was asked last");
                return Ok(true);
            }
        };
        let (term, entry, reply) = (&*done.term, done.entry, &*reply);
        let is_kept = journal.keep(shard, &Batch { session, number, term, entry, ops, reply });
        tracing::info!(shard, session, is_kept, "Redis had done what this gateway was not told");
        Ok(is_kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f27_what_was_asked_last_is_found_after_a_kill_at_any_byte_and_this_life_keeps_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), "books", 2).unwrap();
        let open = |life: &str| Sent::new(&journal, 1, &format!("a/{life}/0"));
        let found = |shard| untold(earlier(&journal, shard, "two"), &journal.read(shard).unwrap());
        let (before, now) = (open("one"), open("two"));
        before.keep("a/one/0", 7, &[9; 100]).unwrap();
        before.keep("a/one/0", 8, b"shorter").unwrap();
        now.keep("a/two/0", 1, b"ops").unwrap();
        let untold = found(1);
        let [(path, bytes)] = &untold[..] else { panic!("{untold:?}") };
        let expected = Asked { session: "a/one/0", number: 8, ops: b"shorter" };
        assert_eq!(asked(bytes), Some(expected));
        assert_eq!(found(0), []);
        let whole = frame(&asked(bytes).unwrap()).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(path, &whole[..cut]).unwrap();
            assert_eq!(found(1), [], "{cut}");
            assert!(!path.exists(), "nothing is in it");
        }
        // What is in the journal was told.
        for (number, is_untold) in [(7, true), (8, false)] {
            std::fs::write(path, &whole).unwrap();
            let (session, term) = ("a/one/0", "x-1");
            journal.keep(1, &Batch { session, number, term, entry: 3, ops: b"", reply: b"" });
            assert_eq!(found(1).len(), usize::from(is_untold));
        }
        assert_eq!(
            std::fs::read_dir(journal.dir()).unwrap().count(),
            3,
            "two shards and this life"
        );
    }

    #[test]
    fn f27_what_could_not_be_written_does_not_leave_what_was_asked_before_under_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), "books", 1).unwrap();
        let sent = Sent::new(&journal, 0, "a/one/0");
        sent.keep("a/one/0", 8, b"ops").unwrap();
        let mut permissions = std::fs::metadata(&sent.0).unwrap().permissions();
        permissions.set_readonly(true);
        std::fs::set_permissions(&sent.0, permissions).unwrap();
        // Whoever may do all writes it all the same.
        let kept = sent.keep("a/one/0", 8, b"others");
        let found = untold(earlier(&journal, 0, "two"), &journal.read(0).unwrap());
        let found: Vec<_> = found.iter().map(|(_, bytes)| asked(bytes).unwrap().ops).collect();
        let expected: &[&[u8]] = if kept.is_ok() { &[b"others"] } else { &[] };
        assert_eq!(found, expected);
    }
}
