//! How a session comes to use a shard: the first time, and in every run of the Redis server behind it.
//!
//! A server that comes back may have less than it acknowledged (f27, f34): an older file was put back,
//! or a replica took over that had not heard of everything. So a shard is closed in each new run until
//! every session that it knows has entered it, and each does again what it has in its journal and the
//! shard does not: with the legs that were taken then, whatever the accounts have by now. What they
//! have not is an overdraft that everybody sees. One that comes when the shard is open again enters in
//! the same way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::drive::Failed;
use super::journal::{Batch, Journal, Term, batches};
use super::pack::Out;
use super::welcome::{self, Here};
use super::wire::{self, Called};
use super::{Engine, OpenError, Shared, library};
use crate::core::ids::ChargeId;

/// Where a session goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// Behind this number.
    At(u64),
    /// Nowhere: it was removed, because it was not heard of, and its holds are resolved.
    Removed,
}

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

impl Shared {
    /// Has a session enter a shard; `last` is the number of its last batch that was done, if any was.
    pub(super) async fn enter(
        &self,
        shard: usize,
        session: &str,
        last: Option<u64>,
    ) -> Result<Entered, Failed> {
        let here = self.look_in(shard, session, last.unwrap_or(0)).await?;
        self.earlier_lives(shard, &here.terms).await?;
        self.enter_as_found(shard, session, last, here).await
    }

    async fn enter_as_found(
        &self,
        shard: usize,
        session: &str,
        last: Option<u64>,
        Here { known, terms }: Here,
    ) -> Result<Entered, Failed> {
        let mark = match (known, last) {
            (Some(known), Some(last)) if known > last + 1 => {
                let why = format!("shard {shard}: another gateway has this one's name and data");
                return Err(Failed::Refused(why));
            }
            (Some(known), Some(last)) if known < last => {
                self.do_again(shard, session, Some(known), &terms).await?;
                last
            }
            (Some(known), last) => last.unwrap_or(known),
            (None, Some(last)) => {
                if self.do_again(shard, session, None, &terms).await? == 0 {
                    return Ok(Entered::Removed);
                }
                last
            }
            (None, None) => {
                self.join(shard, session, 0).await?;
                0
            }
        };
        self.ready(shard, session, mark).await?;
        Ok(Entered::At(mark))
    }

    /// Asks as a session, with numbers.
    async fn ask_as(
        &self,
        session: &str,
        shard: usize,
        function: &str,
        numbers: &[u128],
    ) -> Result<Vec<u8>, Failed> {
        let names = [&*self.epoch, session].map(|name| name.as_bytes().to_vec());
        let numbers = numbers.iter().map(|number| number.to_string().into_bytes());
        let args: Vec<Vec<u8>> = names.into_iter().chain(numbers).collect();
        self.ask(shard, function, &args).await
    }

    /// A call that may be made as often as one likes.
    async fn ask(&self, shard: usize, function: &str, args: &[Vec<u8>]) -> Result<Vec<u8>, Failed> {
        let called = self.call(&self.keys(shard), function, args, None).await;
        called.map_err(|failed| match failed {
            Failed::Unknown(why) => Failed::NotExecuted(why),
            failed => failed,
        })
    }

    /// What a shard says to a session that enters.
    async fn look_in(&self, shard: usize, session: &str, last: u64) -> Result<Here, Failed> {
        let told = self.ask_as(session, shard, library::ENTER, &[last.into()]).await?;
        welcome::here(&told).map_err(odd)?.map_err(|why| refused(shard, &why))
    }

    async fn join(&self, shard: usize, session: &str, number: u64) -> Result<(), Failed> {
        let told = self.ask_as(session, shard, library::JOIN, &[number.into()]).await?;
        welcome::joined(&told).map_err(odd)?.map_err(|why| refused(shard, &why)).map(|_| ())
    }

    /// Waits no longer than a call: a shard that is closed is asked again.
    async fn ready(&self, shard: usize, session: &str, number: u64) -> Result<(), Failed> {
        let numbers = [number.into(), self.rejoin_timeout.as_micros()];
        let told = self.ask_as(session, shard, library::READY, &numbers).await?;
        let (is_open, absent) = match welcome::ready(&told).map_err(odd)? {
            Ok(ready) => ready,
            // Yet another run, or removed meanwhile: enters again.
            Err(why) if why == "closed" || why == "session" => {
                return Err(Failed::NotExecuted(why));
            }
            Err(why) => return Err(refused(shard, &why)),
        };
        if !absent.is_empty() {
            tracing::error!(
                shard,
                ?absent,
                "Redis came back, and these sessions were not heard of: what they alone know of is \
                 lost until their gateways come back"
            );
        }
        match is_open {
            true => Ok(()),
            false => Err(Failed::Waits(format!(
                "Redis came back, and shard {shard} waits for the other gateways"
            ))),
        }
    }

    /// Does again what a shard has lost of a session, and says how many batches that were.
    async fn do_again(
        &self,
        shard: usize,
        session: &str,
        known: Option<u64>,
        terms: &[Term],
    ) -> Result<usize, Failed> {
        let lost = self.lost(shard, session, known, terms).await?;
        let Some(first) = lost.first() else { return Ok(0) };
        if known.is_none() {
            self.join(shard, session, first.number - 1).await?;
        }
        let mut in_the_red = 0;
        for batch in &lost {
            in_the_red = in_the_red.max(self.repeat(shard, session, batch).await?);
            self.seen.did_again();
        }
        tracing::warn!(
            shard,
            session,
            batches = lost.len(),
            in_the_red,
            "Redis has lost what it had acknowledged; it is done again"
        );
        Ok(lost.len())
    }

    /// What a shard has lost of a session, in order.
    async fn lost(
        &self,
        shard: usize,
        session: &str,
        known: Option<u64>,
        terms: &[Term],
    ) -> Result<Vec<Lost>, Failed> {
        let Some(journal) = self.journal.clone() else { return Ok(Vec::new()) };
        let (session, terms) = (session.to_owned(), terms.to_vec());
        let find = move || {
            let files = journal.read(shard)?;
            let mut lost = BTreeMap::new();
            for (_, batch) in files.iter().flat_map(|bytes| batches(bytes)) {
                let is_lost = || match known {
                    Some(known) => batch.number > known,
                    None => !batch.is_there(&terms),
                };
                if batch.session != session {
                    continue;
                }
                // What was done again once has a later entry too.
                match is_lost() {
                    true => lost.insert(batch.number, Lost::from(batch)),
                    false => lost.remove(&batch.number),
                };
            }
            Ok::<_, std::io::Error>(lost.into_values().collect())
        };
        let found = self.read_journal(find).await?;
        found.map_err(|error| Failed::NotExecuted(format!("the journal of shard {shard}: {error}")))
    }

    /// Does a batch again, as it was done, and says how many accounts are in the red with it.
    async fn repeat(&self, shard: usize, session: &str, batch: &Lost) -> Result<u64, Failed> {
        let tag = tag(batch.number, shard);
        let mut head = Out::default();
        head.bytes(self.epoch.as_bytes()).bytes(session.as_bytes());
        head.uint(batch.number).uint(tag);
        let mut before = Out::default();
        before.array(2).bytes(batch.term.as_bytes()).uint(batch.entry);
        let args = [head.into_bytes(), batch.ops.clone(), before.into_bytes(), batch.reply.clone()];
        let told = self.ask(shard, library::SETTLE, &args).await?;
        let charges = vec![ChargeId([0; 16]); wire::count(&batch.ops).map_err(odd)?];
        match wire::reply(&told, tag, &charges).map_err(odd)? {
            Called::Done(done) => {
                let again = Batch {
                    session,
                    number: batch.number,
                    term: &done.term,
                    entry: done.entry,
                    ops: &batch.ops,
                    reply: &batch.reply,
                };
                if let Some(journal) = self.journal.as_ref().filter(|_| done.entry > 0) {
                    journal.keep(shard, &again);
                }
                Ok(done.in_the_red)
            }
            Called::Refused(why, _) => Err(Failed::NotExecuted(why)),
        }
    }
}

/// What the reply to a call says that it is one to.
pub(super) fn tag(number: u64, shard: usize) -> u64 {
    number << 16 | shard as u64
}

fn refused(shard: usize, why: &str) -> Failed {
    Failed::Refused(format!("shard {shard} refuses this gateway: {why}"))
}

fn odd(error: impl std::fmt::Display) -> Failed {
    Failed::NotExecuted(error.to_string())
}

impl Shared {
    /// What is lost of earlier lives of this gateway is done again by whichever session enters first in
    /// a term, and so is what was done under names that were removed since.
    async fn earlier_lives(&self, shard: usize, terms: &[Term]) -> Result<(), Failed> {
        let Some(term) = terms.last() else { return Ok(()) };
        let mut done = self.entered[shard].lock().await;
        if *done == term.name {
            return Ok(());
        }
        if let Some(journal) = self.journal.clone() {
            self.earlier_lives_of(shard, journal, terms).await?;
        }
        done.clone_from(&term.name);
        self.began[shard].notify_waiters();
        Ok(())
    }

    async fn earlier_lives_of(
        &self,
        shard: usize,
        journal: Arc<Journal>,
        terms: &[Term],
    ) -> Result<(), Failed> {
        let (mine, this) = (format!("{}/", self.gateway), self.this_life());
        let (all, retired) = (terms.to_vec(), self.retired[shard].lock().clone());
        let find = move || {
            let files = journal.read(shard)?;
            let mut lives = BTreeMap::new();
            for (_, batch) in files.iter().flat_map(|bytes| batches(bytes)) {
                let is_earlier = batch.session.starts_with(&mine)
                    && (!batch.session.starts_with(&this) || retired.contains(batch.session));
                if is_earlier && (!batch.is_there(&all) || lives.contains_key(batch.session)) {
                    lives.insert(batch.session.to_owned(), batch.number);
                }
            }
            Ok::<_, std::io::Error>(lives)
        };
        let lives = self.read_journal(find).await?.map_err(odd)?;
        for (name, last) in lives {
            let here = self.look_in(shard, &name, last).await?;
            // Done again already.
            if here.known.is_some_and(|known| known >= last) {
                continue;
            }
            match self.enter_as_found(shard, &name, Some(last), here).await {
                Ok(_) | Err(Failed::Waits(_)) => {}
                Err(failed) => return Err(failed),
            }
        }
        Ok(())
    }

    /// Reads something of the journal, one shard's files at a time: all of them at once would be more
    /// than there is memory.
    async fn read_journal<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failed> {
        let _turn = self.reading.lock().await;
        tokio::task::spawn_blocking(read).await.map_err(odd)
    }

    /// What the names of all sessions of this life begin with.
    fn this_life(&self) -> String {
        format!("{}/{}/", self.gateway, self.incarnation)
    }
}

/// How long it rests before a shard that is closed is asked again.
const REST: Duration = Duration::from_millis(100);

impl Engine {
    /// Has earlier lives of this gateway enter, so that nobody waits for them. Waits for shards that are
    /// closed, so that what was left open there can be resolved; not for longer than anybody is waited
    /// for.
    pub(super) async fn earlier_lives_enter(&self) -> Result<(), OpenError> {
        let deadline = Instant::now() + self.shared.rejoin_timeout + 2 * REST;
        let mut closed: Vec<usize> = (0..self.shared.shards).collect();
        loop {
            let mut still = Vec::new();
            for shard in closed {
                if !self.earlier_lives_enter_shard(shard).await? {
                    still.push(shard);
                }
            }
            if still.is_empty() || Instant::now() >= deadline {
                return Ok(());
            }
            closed = still;
            tokio::time::sleep(REST).await;
        }
    }

    /// Whether the shard is open to them.
    async fn earlier_lives_enter_shard(&self, shard: usize) -> Result<bool, OpenError> {
        let shared = &self.shared;
        let (mine, this) = (format!("{}/", shared.gateway), shared.this_life());
        let owners = self.owners(shard).await?.into_iter().map(|owner| owner.name);
        let is_earlier = |name: &String| name.starts_with(&mine) && !name.starts_with(&this);
        let mut are_in = true;
        for name in owners.filter(is_earlier) {
            match shared.enter(shard, &name, None).await {
                Ok(_) => {}
                Err(Failed::NotExecuted(why) | Failed::Waits(why)) => {
                    tracing::info!(shard, why, "this gateway left something there");
                    are_in = false;
                }
                // The others are served all the same.
                Err(failed) => tracing::error!(shard, %failed, "an earlier life cannot enter"),
            }
        }
        // What is lost may be of one that the shard does not know any more.
        match shared.look_in(shard, &this, 0).await {
            Ok(Here { terms, .. }) => {
                if let Err(failed) = shared.earlier_lives(shard, &terms).await {
                    tracing::error!(shard, %failed, "what is lost of earlier lives stays so yet");
                }
            }
            Err(failed) => tracing::error!(shard, %failed, "a shard cannot be entered"),
        }
        Ok(are_in)
    }
}
