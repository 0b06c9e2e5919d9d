//! What a shard has lost is done again: by each gateway what it was told of, from its journal, in order
//! and under the numbers that it had, with the legs that were taken then. Several batches go in one call.

use std::collections::BTreeMap;
use std::sync::Arc;

use redis::FromRedisValue;

use super::drive::Failed;
use super::entrance::{odd, tag};
use super::journal::{Batch, Journal, Term, batches};
use super::pack::Out;
use super::welcome::{self, Again, Repeated};
use super::{META, SESSIONS, Shared, library, sent, wire};

/// The most operations of a call, and the most bytes, unless one batch has more: so long nobody else is
/// served by Redis.
const MAX_OPS: usize = 256;
const MAX_BYTES: usize = 1 << 20;

/// A batch that a shard has lost, with what it takes to do it again.
#[derive(Debug)]
struct Lost {
    number: u64,
    term: String,
    entry: u64,
    ops: Vec<u8>,
    reply: Vec<u8>,
}

impl From<Batch<'_>> for Lost {
    fn from(batch: Batch<'_>) -> Self {
        Self {
            number: batch.number,
            term: batch.term.to_owned(),
            entry: batch.entry,
            ops: batch.ops.to_vec(),
            reply: batch.reply.to_vec(),
        }
    }
}

impl Lost {
    fn bytes(&self) -> usize {
        self.ops.len() + self.reply.len()
    }

    /// As it is sent.
    fn packed(&self) -> Vec<u8> {
        let mut out = Out::default();
        out.uint(self.number).bytes(&self.ops);
        out.array(2).bytes(self.term.as_bytes()).uint(self.entry).bytes(&self.reply);
        out.into_bytes()
    }

    /// Keeps where it is now.
    fn keep(&self, journal: &Journal, shard: usize, session: &str, term: &str, entry: u64) {
        let Self { number, ops, reply, .. } = self;
        journal.keep(shard, &Batch { session, number: *number, term, entry, ops, reply });
    }
}

/// What was lost of a session, by its numbers.
type OfSession = BTreeMap<u64, Lost>;

impl Shared {
    /// Does again what a shard has lost, once in a term: of all sessions of this gateway, in this life
    /// and in earlier ones; once more where `more` was told since. Says whether it did it now.
    pub(super) async fn does_its_part(
        &self,
        shard: usize,
        terms: &[Term],
        more: bool,
    ) -> Result<bool, Failed> {
        let Some(term) = terms.last() else { return Ok(false) };
        let mut done = self.entered[shard].lock().await;
        if *done == term.name && !more {
            return Ok(false);
        }
        // Whoever has nothing to ask is waited for too.
        self.began[shard].send_replace(());
        if let Some(journal) = self.journal.clone() {
            self.does_again(shard, &journal, terms).await?;
        }
        done.clone_from(&term.name);
        Ok(true)
    }

    async fn does_again(
        &self,
        shard: usize,
        journal: &Arc<Journal>,
        terms: &[Term],
    ) -> Result<(), Failed> {
        // One shard at a time: all of them at once would be more than there is memory.
        let _turn = self.reading.lock().await;
        let (mine, all) = (format!("{}/", self.gateway), terms.to_vec());
        let (reading, this_life) = (Arc::clone(journal), self.incarnation.clone());
        let read = move || {
            let files = reading.read(shard)?;
            let earlier = sent::earlier(&reading, shard, &this_life);
            Ok((sent::untold(earlier, &files), lost(&files, &mine, &all)))
        };
        let read = tokio::task::spawn_blocking(read).await.map_err(odd)?;
        let (untold, found) = read.map_err(|error: std::io::Error| {
            Failed::NotExecuted(format!("the journal of shard {shard}: {error}"))
        })?;
        self.hears_of(shard, journal, untold).await?;
        for (session, lost) in found {
            let known = self.look_in(shard, &session, 0).await?.known;
            // What was done again by a call whose reply did not come. A reply to something else is from
            // before.
            let told = self.last_reply(shard, &session).await?;
            let again = told.and_then(|told| welcome::again(&told, None).ok()).unwrap_or_default();
            let is_known = |number: &u64| match known {
                Some(known) => *number <= known,
                None => again.done.iter().any(|done| done.number == *number),
            };
            let (there, lost): (Vec<Lost>, Vec<Lost>) =
                lost.into_values().partition(|batch| is_known(&batch.number));
            if !there.is_empty() {
                is_there(journal, (shard, &session), &there, &again, terms);
            }
            let Some(first) = lost.first() else { continue };
            if known.is_none() {
                self.join(shard, &session, first.number - 1, false).await?;
            }
            self.do_again(journal, shard, &session, &lost).await?;
        }
        self.gone_are_ready(shard).await
    }

    /// Sessions of earlier lives, and under names that are used no more, have entered with this: nobody
    /// waits for them. The others enter themselves.
    async fn gone_are_ready(&self, shard: usize) -> Result<(), Failed> {
        let told = self.read_key(shard, SESSIONS, redis::cmd("HKEYS"), &[]).await?;
        let names = Vec::<String>::from_redis_value(told).map_err(odd)?;
        let (mine, this) = (format!("{}/", self.gateway), self.this_life());
        let retired = self.retired[shard].lock().clone();
        let is_gone = |name: &String| {
            let is_own = name.starts_with(&mine) && !name.ends_with(":r");
            is_own && (!name.starts_with(&this) || retired.contains(name))
        };
        for name in names.iter().filter(|name| is_gone(name)) {
            match self.ready(shard, name, 0).await {
                Ok(()) | Err(Failed::Waits(_)) => {}
                Err(failed) => return Err(failed),
            }
        }
        Ok(())
    }

    /// Asks for something of one of a shard's keys.
    pub(super) async fn read_key(
        &self,
        shard: usize,
        key: usize,
        mut command: redis::Cmd,
        more: &[&str],
    ) -> Result<redis::Value, Failed> {
        command.arg(&self.keys(shard).0[key]).arg(more);
        let told = self.link.send(&command).await;
        told.map_err(|error| Failed::NotExecuted(error.to_string()))
    }

    async fn do_again(
        &self,
        journal: &Journal,
        shard: usize,
        session: &str,
        lost: &[Lost],
    ) -> Result<(), Failed> {
        let (mut rest, mut in_the_red) = (lost, 0);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(together(rest)?);
            in_the_red = in_the_red.max(self.repeat(journal, shard, session, now).await?);
            rest = later;
        }
        tracing::warn!(
            shard,
            session,
            batches = lost.len(),
            in_the_red,
            "Redis has lost what it had acknowledged; it is done again"
        );
        Ok(())
    }

    /// Does batches again, as they were done, and says how many accounts are in the red with one of them
    /// at most.
    async fn repeat(
        &self,
        journal: &Journal,
        shard: usize,
        session: &str,
        lost: &[Lost],
    ) -> Result<u64, Failed> {
        let tag = tag(lost.last().map_or(0, |last| last.number), shard);
        let mut head = Out::default();
        head.bytes(self.epoch.as_bytes()).bytes(session.as_bytes()).uint(tag);
        let batches = lost.iter().map(Lost::packed);
        let args: Vec<Vec<u8>> = [head.into_bytes()].into_iter().chain(batches).collect();
        let told = self.ask(shard, library::AGAIN, &args).await?;
        let again = welcome::again(&told, Some(tag)).map_err(odd)?;
        for (Repeated { term, entry, .. }, batch) in again.done.iter().zip(lost) {
            batch.keep(journal, shard, session, term, *entry);
            self.seen.did_again();
        }
        match again.why {
            None if again.done.len() == lost.len() => Ok(again.in_the_red),
            why => Err(Failed::NotExecuted(why.unwrap_or_else(|| "not all was done".into()))),
        }
    }

    /// The last reply to a session, also of one that was taken away, if it told of a change.
    pub(super) async fn last_reply(
        &self,
        shard: usize,
        session: &str,
    ) -> Result<Option<Vec<u8>>, Failed> {
        let field = format!("{session}:r");
        let told = self.read_key(shard, SESSIONS, redis::cmd("HGET"), &[&field]).await?;
        if let Some(reply) = Option::from_redis_value(told).map_err(odd)? {
            return Ok(Some(reply));
        }
        let field = format!("{}{session}", library::LAST_REPLY);
        let told = self.read_key(shard, META, redis::cmd("HGET"), &[&field]).await?;
        Option::from_redis_value(told).map_err(odd)
    }
}

/// Keeps where batches are that the shard has, and of which the journal does not say so: they were done
/// again by a call whose reply did not come, and the shard has that still, because the session has asked
/// nothing since. Others were there before this term began.
fn is_there(
    journal: &Journal,
    (shard, session): (usize, &str),
    there: &[Lost],
    again: &Again,
    terms: &[Term],
) {
    let Some(last) = terms.last() else { return };
    tracing::info!(shard, session, batches = there.len(), "what was done again is there");
    for batch in there {
        let done = again.done.iter().find(|done| done.number == batch.number);
        let (term, entry) = done.map_or((&last.name, last.from), |at| (&at.term, at.entry));
        batch.keep(journal, shard, session, term, entry);
    }
}

/// What the journal's files have of a shard and of this gateway's sessions, and the shard has lost.
fn lost(files: &[Vec<u8>], mine: &str, terms: &[Term]) -> BTreeMap<String, OfSession> {
    let mut found: BTreeMap<String, OfSession> = BTreeMap::new();
    let all = files.iter().flat_map(|bytes| batches(bytes)).map(|(_, batch)| batch);
    for batch in all.filter(|batch| batch.session.starts_with(mine)) {
        // What was done again once has a later entry too.
        if !batch.is_there(terms) {
            let of = found.entry(batch.session.to_owned()).or_default();
            of.insert(batch.number, Lost::from(batch));
        } else if let Some(of) = found.get_mut(batch.session) {
            of.remove(&batch.number);
        }
    }
    found.retain(|_, of| !of.is_empty());
    found
}

/// How many batches go in one call: one at least.
fn together(lost: &[Lost]) -> Result<usize, Failed> {
    let (mut ops, mut bytes) = (0, 0);
    for (at, batch) in lost.iter().enumerate() {
        ops += wire::count(&batch.ops).map_err(odd)?;
        bytes += batch.bytes();
        if at > 0 && (ops > MAX_OPS || bytes > MAX_BYTES) {
            return Ok(at);
        }
    }
    Ok(lost.len())
}
