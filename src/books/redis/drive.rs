//! Takes a session's operations for one shard to Redis: batch by batch, one at a time, each with
//! the next number. What arrives meanwhile is the next batch, so nobody waits for a timer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::entrance::{Entered, tag};
use super::journal::{self, Kept};
use super::link::CallError;
use super::pack::Out;
use super::queue::{Kind, Lease, Pending, Queue, Told, give_up, refused, take};
use super::sent::Sent;
use super::session::Inner;
use super::wire::{self, Called, Reply};
use super::{Keys, Shared, library};
use crate::books::BooksError;
use crate::core::ids::ChargeId;

/// How long it rests after a call that was not executed, first and at most.
const FIRST_REST: Duration = Duration::from_millis(5);
const MAX_REST: Duration = Duration::from_millis(250);

/// The task of a session and a shard.
pub(super) struct Driver {
    inner: Arc<Inner>,
    shared: Arc<Shared>,
    shard: usize,
    keys: Keys,
    /// The session's name in this shard: another one after each time that it was removed, because a
    /// call under the old name may still be on its way.
    name: String,
    lives: u32,
    /// The number of the last batch; `None` before the session has joined the shard.
    number: Option<u64>,
    /// The last one that changed something.
    kept: Option<Kept>,
    /// Where the last one stands before it is asked.
    sent: Option<Sent>,
    /// Whether the shard is open to it, as far as it knows.
    has_entered: bool,
    /// When it is heard of next, if nothing else is asked.
    renew_at: Option<Instant>,
    /// What is asked once more, because nobody knows yet, and when.
    unsure: Vec<Pending>,
    unsure_until: Option<Instant>,
}

impl Driver {
    pub(super) fn new(inner: &Arc<Inner>, shard: usize) -> Self {
        let (inner, shared) = (Arc::clone(inner), Arc::clone(&inner.shared));
        let (keys, name) = (shared.keys(shard), inner.name.clone());
        let (number, renew_at) = (None, None);
        let sent = shared.journal.as_ref().map(|journal| Sent::new(journal, shard, &name));
        let (lives, kept, has_entered) = (0, None, false);
        let (unsure, unsure_until) = (Vec::new(), None);
        Self {
            inner,
            shared,
            shard,
            keys,
            name,
            lives,
            number,
            kept,
            sent,
            has_entered,
            renew_at,
            unsure,
            unsure_until,
        }
    }

    /// Until the session has been left and nothing waits any more.
    pub(super) async fn run(mut self, left: CancellationToken) {
        let mut began = self.shared.began[self.shard].subscribe();
        loop {
            let batch = self.take();
            if !batch.is_empty() || self.renew_at.is_some_and(|at| at <= Instant::now()) {
                self.deliver(batch).await;
                continue;
            }
            tokio::select! {
                () = self.queue().wake.notified() => {}
                () = until(self.renew_at) => continue,
                () = until(self.unsure_until) => continue,
                Ok(()) = began.changed(), if self.number.is_some() => {
                    self.renew_at = Some(Instant::now());
                    continue;
                }
                () = left.cancelled(), if self.unsure.is_empty() => {
                    if self.queue().waiting.lock().is_empty() {
                        return;
                    }
                }
            }
            // One turn of the event loop: whoever else is ready adds what they ask.
            tokio::task::yield_now().await;
        }
    }

    fn queue(&self) -> &Queue {
        &self.inner.shards[self.shard]
    }

    fn take(&mut self) -> Vec<Pending> {
        let mut waiting = self.inner.shards[self.shard].waiting.lock();
        if self.unsure_until.is_some_and(|until| until <= Instant::now()) {
            self.unsure_until = None;
            for pending in self.unsure.drain(..).rev() {
                waiting.push_front(pending);
            }
        }
        take(&mut waiting)
    }

    /// Has a batch done, whatever it takes. Waiters are told when it takes too long; what they
    /// asked is done all the same, and a hold that nobody waits for any more is voided. A batch of
    /// nothing renews the session.
    async fn deliver(&mut self, mut batch: Vec<Pending>) {
        let mut rest = FIRST_REST;
        // When it was sent first of which nobody knows whether it was executed: Redis may have seen
        // the session then and not since, and only the same batch can tell.
        let mut unknown = None;
        let (began, mut is_told) = (Instant::now(), false);
        loop {
            let sent = unknown.unwrap_or_else(Instant::now);
            match self.attempt(&batch, unknown.is_some()).await {
                Ok(replies) => {
                    self.renewed(sent);
                    self.answer(batch, replies, sent);
                    return;
                }
                Err(Failed::NoMemory) => batch = give_up(batch, NO_MEMORY, Pending::gives_back),
                Err(Failed::NotExecuted(why) | Failed::Waits(why)) => {
                    self.tell_once(&mut is_told, began, &why);
                    self.tell_the_impatient(&mut batch, &why);
                    // What was asked meanwhile renews it too.
                    if batch.is_empty() && unknown.is_none() {
                        tokio::time::sleep(MAX_REST).await;
                    }
                }
                Err(Failed::Unknown(why)) => {
                    unknown = Some(sent);
                    self.tell_once(&mut is_told, began, &why);
                    self.tell_the_impatient(&mut batch, &why);
                }
                Err(Failed::Removed) => {
                    self.begin_anew();
                    if unknown.take().is_some() {
                        self.void_holds(&batch);
                    }
                    batch = give_up(batch, REMOVED, |pending| {
                        pending.gives_back() || pending.kind == Kind::Reads
                    });
                }
                Err(Failed::Forgotten) => {
                    unknown = None;
                    self.void_holds(&batch);
                    batch = give_up(batch, FORGOTTEN, |pending| {
                        pending.gives_back() || pending.kind == Kind::Reads
                    });
                }
                Err(Failed::Refused(why)) => {
                    // It may be another Redis than the one that did it, and that one may come back: what
                    // is not known is asked again whatever was said since, and what gives back is too.
                    batch = match unknown {
                        Some(_) => refused(batch, &why, |_| true),
                        None => refused(batch, &why, Pending::gives_back),
                    };
                    let mut waiting = self.queue().waiting.lock();
                    let behind = std::mem::take(&mut *waiting);
                    *waiting = refused(behind, &why, Pending::gives_back);
                    drop(waiting);
                    self.renew_at = self.renew_at.map(|_| self.next_renewal(Instant::now()));
                }
            }
            if batch.is_empty() && unknown.is_none() {
                return;
            }
            tokio::time::sleep(rest).await;
            rest = (rest * 2).min(MAX_REST);
        }
    }

    /// Says in the log why a batch waits for so long.
    fn tell_once(&self, is_told: &mut bool, began: Instant, why: &str) {
        if !*is_told && began.elapsed() >= self.shared.deadline {
            *is_told = true;
            let (shard, session) = (self.shard, &self.name);
            tracing::warn!(shard, session, why, "what is asked of the books waits");
        }
    }

    /// Redis has seen the session, at `sent` or later.
    fn renewed(&mut self, sent: Instant) {
        let half = self.shared.owner_timeout / 2;
        let mut lease = self.queue().lease.lock();
        *lease = Some(Lease::renew(*lease, sent, half));
        drop(lease);
        self.renew_at = Some(self.next_renewal(sent));
    }

    fn next_renewal(&self, after: Instant) -> Instant {
        after + self.shared.owner_timeout / 4
    }

    /// The session was removed, because it was not heard of: its holds are resolved, and whatever
    /// is asked from now on is another one's.
    fn begin_anew(&mut self) {
        self.lives += 1;
        let name = format!("{}.{}", self.inner.name, self.lives);
        tracing::warn!(
            shard = self.shard,
            session = self.name,
            next = name,
            "the books have removed a session that was not heard of in time; what it held is resolved"
        );
        let retired = std::mem::replace(&mut self.name, name);
        // Nobody waits for it when what is lost of it is done again.
        self.shared.retired[self.shard].lock().insert(retired);
        (self.number, self.renew_at) = (None, None);
        (self.kept, self.has_entered) = (None, false);
        *self.queue().lease.lock() = None;
    }

    /// What outlives its session is not resolved with it, and nobody will know of it.
    fn void_holds(&self, batch: &[Pending]) {
        for pending in batch {
            if let Kind::Hold(at) = pending.kind {
                self.queue().void(pending.charge, at);
            }
        }
    }

    async fn attempt(&mut self, batch: &[Pending], is_unknown: bool) -> Result<Vec<Reply>, Failed> {
        let last = match self.number {
            Some(last) if self.has_entered => last,
            last => self.enter(last, is_unknown).await?,
        };
        let number = last + 1;
        let mut head = Out::default();
        head.bytes(self.shared.epoch.as_bytes()).bytes(self.name.as_bytes()).uint(number);
        let tag = tag(number, self.shard);
        head.uint(tag);
        let mut ops = Out::default();
        ops.array(batch.len());
        for pending in batch {
            ops.raw(&pending.op);
        }
        // What may have been executed is asked so that lack of memory does not hide its reply.
        let settles = is_unknown || batch.iter().all(Pending::gives_back);
        let function = if settles { library::SETTLE } else { library::APPLY };
        let args = [head.into_bytes(), ops.into_bytes()];
        // What changes nothing need not be anywhere else.
        let changes = batch.iter().any(|pending| pending.kind != Kind::Reads);
        if changes && !is_unknown {
            self.keep_sent(number, &args[1]);
        }
        let replica = self.shared.replica.filter(|_| changes);
        let called = self.shared.apply(&self.keys, function, &args, replica).await?;
        if called.is_empty() {
            self.number = Some(number);
            return Err(Failed::Forgotten);
        }
        let charges: Vec<ChargeId> = batch.iter().map(|pending| pending.charge).collect();
        match wire::reply(&called, tag, &charges) {
            Ok(Called::Done(done)) => {
                self.number = Some(number);
                if let Some(journal) = self.shared.journal.as_ref().filter(|_| done.entry > 0) {
                    let (session, term) = (&*self.name, &*done.term);
                    let (entry, ops, reply) = (done.entry, &*args[1], &*called);
                    let batch = journal::Batch { session, number, term, entry, ops, reply };
                    journal.keep(self.shard, &batch);
                    self.kept = Some(Kept { number, entry, term: done.term });
                }
                Ok(done.replies)
            }
            // It is another run of the server, or the server went back, or the session was removed.
            Ok(Called::Refused(why, _)) if matches!(&*why, "closed" | "number" | "session") => {
                self.has_entered = false;
                Err(Failed::NotExecuted(why))
            }
            Ok(Called::Refused(why, last)) => {
                let shard = self.shard;
                tracing::error!(shard, why, last, number, "the books refuse a session");
                Err(Failed::Refused(format!("shard {shard} refuses this gateway: {why}")))
            }
            Err(error) => {
                // Whatever comes next on this connection may be somebody else's too.
                self.shared.link.reset();
                tracing::error!(shard = self.shard, %error, "a reply that cannot be read");
                Err(Failed::Unknown(error.to_string()))
            }
        }
    }

    /// Keeps what is asked now, for the next life. Whatever goes wrong is told to the log, as with the
    /// journal.
    fn keep_sent(&self, number: u64, ops: &[u8]) {
        let Some(sent) = &self.sent else { return };
        if let Err(error) = sent.keep(&self.name, number, ops) {
            let shard = self.shard;
            tracing::error!(shard, %error, "what is asked of Redis is not kept on this disk");
        }
    }

    /// Enters the shard, and says which number was the last.
    async fn enter(&mut self, last: Option<u64>, is_unknown: bool) -> Result<u64, Failed> {
        match self.shared.enter(self.shard, &self.name, last, self.kept.as_ref()).await? {
            Entered::At(number) => {
                (self.number, self.has_entered) = (Some(number), true);
                Ok(number)
            }
            Entered::Removed => {
                // Under its next name nobody is told what was done, and Redis may lose it.
                if let (Some(sent), Some(last), true) = (&self.sent, last, is_unknown) {
                    self.shared.hears_of_removed(self.shard, sent, last + 1).await?;
                }
                Err(Failed::Removed)
            }
        }
    }

    fn answer(&mut self, batch: Vec<Pending>, replies: Vec<Reply>, sent: Instant) {
        for (mut pending, reply) in batch.into_iter().zip(replies) {
            match (pending.kind, &reply) {
                // Its waiter was told that the books do not answer, and forwards nothing.
                (Kind::Hold(at), Reply::Done(..)) if pending.answer.is_none() => {
                    self.queue().void(pending.charge, at);
                }
                // It must arrive.
                (Kind::GivesBack | Kind::Promised, Reply::Unsure) => {
                    self.unsure_until.get_or_insert_with(|| Instant::now() + MAX_REST);
                    self.unsure.push(pending);
                }
                (_, Reply::Unsure) => pending.answer(Err(BooksError::Unavailable(UNSURE.into()))),
                _ => pending.answer(Ok(Told { reply, sent })),
            }
        }
    }

    /// Tells those who have waited too long, in the batch and behind it. What was not sent yet and gives
    /// nothing back is not asked any more.
    fn tell_the_impatient(&self, batch: &mut [Pending], why: &str) {
        let now = Instant::now();
        let tell = |pending: &mut Pending| {
            let is_told = pending.until <= now;
            if is_told {
                pending.answer(Err(BooksError::Unavailable(why.to_owned())));
            }
            is_told
        };
        for pending in batch {
            tell(pending);
        }
        self.queue().waiting.lock().retain_mut(|pending| !tell(pending) || pending.gives_back());
    }
}

impl Shared {
    /// Applies a batch. With `replica` what it did is nowhere as long as no replica has it: the same has
    /// to be asked again. A server serves nobody else on a connection that waits for a replica, so that
    /// each such batch has one by itself.
    async fn apply(
        &self,
        keys: &Keys,
        function: &'static str,
        args: &[Vec<u8>; 2],
        replica: Option<Duration>,
    ) -> Result<Vec<u8>, Failed> {
        let called = match &self.together {
            Some(together) if replica.is_none() => {
                together.call(&self.link, keys, function, args.clone()).await
            }
            _ => self.link.call_kept(&keys.function(function, args), replica).await,
        };
        self.told(called).await
    }

    /// Calls a function of the library; `replica` as for [`Shared::apply`].
    pub(super) async fn call(
        &self,
        keys: &Keys,
        function: &str,
        args: &[Vec<u8>],
        replica: Option<Duration>,
    ) -> Result<Vec<u8>, Failed> {
        self.told(self.link.call_kept(&keys.function(function, args), replica).await).await
    }

    async fn told(&self, called: Result<Vec<u8>, CallError>) -> Result<Vec<u8>, Failed> {
        match called {
            Ok(bytes) => Ok(bytes),
            Err(CallError::NoMemory) => Err(Failed::NoMemory),
            Err(CallError::NoLibrary) => {
                tracing::warn!("Redis has lost the books' library");
                let loaded = library::load(&self.link).await;
                let again = loaded.err().unwrap_or_else(|| "the library was loaded again".into());
                Err(Failed::NotExecuted(again))
            }
            Err(CallError::NotExecuted(why)) => Err(Failed::NotExecuted(why)),
            Err(CallError::Unknown(why)) => Err(Failed::Unknown(why)),
        }
    }
}

/// Why a batch has no replies.
pub(super) enum Failed {
    /// It was not executed, and may be later.
    NotExecuted(String),
    /// The shard is closed until others have entered it too; else as above.
    Waits(String),
    /// It may have been executed: the same has to be asked again (f26).
    Unknown(String),
    /// There is no memory for what takes.
    NoMemory,
    /// It was not executed, because the session is not registered any more.
    Removed,
    /// It was executed, and the shard was built again since: nobody knows the reply any more.
    Forgotten,
    /// It was not executed, and will not be.
    Refused(String),
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotExecuted(why) | Self::Waits(why) | Self::Unknown(why) | Self::Refused(why) => {
                f.write_str(why)
            }
            Self::NoMemory => f.write_str(NO_MEMORY),
            Self::Removed => f.write_str(REMOVED),
            Self::Forgotten => f.write_str(FORGOTTEN),
        }
    }
}

const UNSURE: &str = "Redis came back, and not every gateway has done again what it has lost";
const NO_MEMORY: &str = "Redis has no memory left (maxmemory)";
const FORGOTTEN: &str = "the books were built again, and what they said is not known any more";
const REMOVED: &str = "the books have removed this session, because it was not heard of in time";

/// Until an instant, if there is one.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
