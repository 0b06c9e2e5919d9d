//! How a session comes to use a shard: the first time, and in every run of the Redis server behind it.
//!
//! A server that comes back may have less than it acknowledged (f27, f34): an older file was put back,
//! or a replica took over that had not heard of everything. So a shard is closed in each new run until
//! every session that it knows has entered it, and each does again what it has in its journal and the
//! shard does not: with the legs that were taken then, whatever the accounts have by now. What they
//! have not is an overdraft that everybody sees. One that comes when the shard is open again enters in
//! the same way.

use std::time::{Duration, Instant};

use super::drive::Failed;
use super::journal::Kept;
use super::welcome::{self, Here};
use super::{Engine, OpenError, Shared, library};

/// Where a session goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// Behind this number.
    At(u64),
    /// Nowhere: it was removed, because it was not heard of, and its holds are resolved.
    Removed,
}

impl Shared {
    /// Has a session enter a shard; `last` is the number of its last batch that was done, if any was, and
    /// `kept` is the last one in the journal. First this gateway does its part again, for all of its
    /// sessions: what one of them did another one may be asked for.
    pub(super) async fn enter(
        &self,
        shard: usize,
        session: &str,
        last: Option<u64>,
        kept: Option<&Kept>,
    ) -> Result<Entered, Failed> {
        let mut here = self.look_in(shard, session, last.unwrap_or(0)).await?;
        if self.does_its_part(shard, &here.terms, false).await? {
            here = self.look_in(shard, session, last.unwrap_or(0)).await?;
        }
        // It was told of something while the journal was read.
        if kept.is_some_and(|kept| kept.is_lost(here.known, &here.terms)) {
            self.does_its_part(shard, &here.terms, true).await?;
            here = self.look_in(shard, session, last.unwrap_or(0)).await?;
        }
        let mark = match (here.known, last) {
            (Some(known), Some(last)) if known > last + 1 => {
                let why = format!("shard {shard}: another gateway has this one's name and data");
                return Err(Failed::Refused(why));
            }
            // Behind what is there came what changed nothing.
            (Some(known), last) => last.unwrap_or(known),
            (None, Some(_)) => return Ok(Entered::Removed),
            (None, None) => {
                self.join(shard, session, 0, true).await?;
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
    pub(super) async fn ask(
        &self,
        shard: usize,
        function: &str,
        args: &[Vec<u8>],
    ) -> Result<Vec<u8>, Failed> {
        let called = self.call(&self.keys(shard), function, args, None).await;
        called.map_err(|failed| match failed {
            Failed::Unknown(why) => Failed::NotExecuted(why),
            failed => failed,
        })
    }

    /// What a shard says to a session that enters.
    pub(super) async fn look_in(
        &self,
        shard: usize,
        session: &str,
        last: u64,
    ) -> Result<Here, Failed> {
        let told = self.ask_as(session, shard, library::ENTER, &[last.into()]).await?;
        welcome::here(&told).map_err(odd)?.map_err(|why| refused(shard, &why))
    }

    /// Registers a session behind a number; a new one has nothing to do again.
    pub(super) async fn join(
        &self,
        shard: usize,
        session: &str,
        number: u64,
        is_new: bool,
    ) -> Result<(), Failed> {
        let numbers = [number.into(), is_new.into()];
        let told = self.ask_as(session, shard, library::JOIN, &numbers).await?;
        welcome::joined(&told).map_err(odd)?.map_err(|why| refused(shard, &why)).map(|_| ())
    }

    /// Waits no longer than a call: a shard that is closed is asked again.
    pub(super) async fn ready(
        &self,
        shard: usize,
        session: &str,
        number: u64,
    ) -> Result<(), Failed> {
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
}

/// What the reply to a call says that it is one to.
pub(super) fn tag(number: u64, shard: usize) -> u64 {
    number << 16 | shard as u64
}

fn refused(shard: usize, why: &str) -> Failed {
    Failed::Refused(format!("shard {shard} refuses this gateway: {why}"))
}

pub(super) fn odd(error: impl std::fmt::Display) -> Failed {
    Failed::NotExecuted(error.to_string())
}

impl Shared {
    /// What the names of all sessions of this life begin with.
    pub(super) fn this_life(&self) -> String {
        format!("{}/{}/", self.gateway, self.incarnation)
    }

    /// Whether a session is one of this gateway's earlier lives.
    pub(super) fn is_earlier(&self) -> impl Fn(&str) -> bool + use<> {
        let (mine, this) = (format!("{}/", self.gateway), self.this_life());
        move |name| name.starts_with(&mine) && !name.starts_with(&this)
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
        let (this, is_earlier) = (shared.this_life(), shared.is_earlier());
        let owners = self.owners(shard).await?.into_iter().map(|owner| owner.name);
        let mut are_in = true;
        for name in owners.filter(|name| is_earlier(name)) {
            match shared.enter(shard, &name, None, None).await {
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
                if let Err(failed) = shared.does_its_part(shard, &terms, false).await {
                    tracing::error!(shard, %failed, "what is lost of earlier lives stays so yet");
                }
            }
            Err(failed) => tracing::error!(shard, %failed, "a shard cannot be entered"),
        }
        Ok(are_in)
    }
}
