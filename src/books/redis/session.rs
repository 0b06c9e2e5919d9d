//! A session: what a worker asks the books goes into a queue for its shard, in the order of the
//! calls, and from there in batches to Redis.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio_util::sync::DropGuard;

use super::Shared;
use super::drive::Driver;
use super::queue::{Kind, Pending, Queue, Told, heard, silent};
use super::recorded::{self, Capture};
use super::wire::{self, Endable, Reply};
use crate::books::{
    Abandoned, Adjusted, Adjustment, Amended, Amendment, Ask, Books, BooksError, Key, KnownCharge,
    OpenCharge, Posted, Resolution, Resolved,
};
use crate::core::account::{Account, AccountKey, View};
use crate::core::charge::State;
use crate::core::ids::{ChargeId, home_of};

/// How many operations wait for one shard before a session refuses more. What gives back is never
/// refused: there are no more of them than there are open holds.
const MAX_WAITING: usize = 10_000;

/// A worker's session. Its clones are the same session; when the last one goes, what it has asked
/// is still done.
#[derive(Clone, Debug)]
pub struct Session {
    inner: Arc<Inner>,
    _left: Arc<DropGuard>,
}

/// What the clones of a session share.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    /// What its names in Redis begin with: it has another one where it was removed.
    pub(super) name: String,
    /// A queue for each shard.
    pub(super) shards: Box<[Queue]>,
}

const NO_CHARGE: ChargeId = ChargeId([0; 16]);

impl Session {
    /// A session of this name; its tasks run where the engine's do.
    pub(super) fn start(shared: &Arc<Shared>, name: String) -> Self {
        let shards = (0..shared.shards).map(|_| Queue::default()).collect();
        let inner = Arc::new(Inner { shared: Arc::clone(shared), name, shards });
        let left = shared.closing.child_token();
        for shard in 0..inner.shards.len() {
            let driver = Driver::new(&inner, shard).run(left.clone());
            let driving = shared.end.clone().run_until_cancelled_owned(driver);
            shared.tasks.spawn_on(driving, &shared.runtime);
        }
        Self { inner, _left: Arc::new(left.drop_guard()) }
    }

    /// Puts an operation behind those that were asked before. What comes back waits for its reply.
    pub(super) fn ask(
        &self,
        shard: usize,
        charge: ChargeId,
        kind: Kind,
        op: Result<Vec<u8>, BooksError>,
    ) -> impl Future<Output = Result<Reply, BooksError>> + Send + use<> {
        let told = self.ask_when(shard, charge, kind, op);
        async move { Ok(told.await?.reply) }
    }

    /// As [`Session::ask`]; says also when it was sent.
    fn ask_when(
        &self,
        shard: usize,
        charge: ChargeId,
        kind: Kind,
        op: Result<Vec<u8>, BooksError>,
    ) -> impl Future<Output = Result<Told, BooksError>> + Send + use<> {
        let patience = self.inner.shared.deadline;
        self.ask_for(shard, charge, kind, op, patience)
    }

    /// As [`Session::ask_when`], for as long as this.
    pub(super) fn ask_for(
        &self,
        shard: usize,
        charge: ChargeId,
        kind: Kind,
        op: Result<Vec<u8>, BooksError>,
        patience: Duration,
    ) -> impl Future<Output = Result<Told, BooksError>> + Send + use<> {
        let asked = op.and_then(|op| self.enqueue(shard, charge, kind, op, patience));
        let inner = Arc::clone(&self.inner);
        async move {
            // Whoever drives may wait for a connection itself, and tells nobody meanwhile.
            let Ok(told) = tokio::time::timeout(patience, asked?).await else {
                // It may still be made, and whoever asked is told that it is not.
                if let Kind::Hold(at) = kind {
                    inner.shards[shard].take_back(charge, at);
                }
                return Err(silent());
            };
            heard(told)
        }
    }

    fn enqueue(
        &self,
        shard: usize,
        charge: ChargeId,
        kind: Kind,
        op: Vec<u8>,
        patience: Duration,
    ) -> Result<oneshot::Receiver<Result<Told, BooksError>>, BooksError> {
        let queue = &self.inner.shards[shard];
        let (answer, waits) = oneshot::channel();
        {
            let mut waiting = queue.waiting.lock();
            let until = Instant::now() + patience;
            let pending = Pending { op, charge, kind, until, answer: Some(answer) };
            if waiting.len() >= MAX_WAITING && !pending.gives_back() {
                return Err(BooksError::Unavailable("too much waits for Redis".into()));
            }
            waiting.push_back(pending);
        }
        queue.wake.notify_one();
        Ok(waits)
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    pub(super) fn of_charge(&self, charge: ChargeId) -> usize {
        self.inner.shared.shard_of(charge.home())
    }

    /// Whether a charge that was told to be held at `held` may be forwarded, or goes on to be, right
    /// now (D36): others have not resolved it, and do not as long as half of `owner_timeout` has not
    /// passed since this gateway was heard of. False for ever once it was not heard of for so long.
    ///
    /// The hold itself says no to a gateway that was paused before it was told; this is for what may
    /// pause it between that and the first byte to a backend.
    pub fn may_forward(&self, charge: ChargeId, held: Instant) -> bool {
        let lease = *self.inner.shards[self.of_charge(charge)].lease.lock();
        let half = self.inner.shared.owner_timeout / 2;
        lease.is_some_and(|lease| lease.renewed.elapsed() < half && lease.unbroken <= held)
    }

    /// Fails at once where Redis has not answered for a while: what is asked with every request of
    /// a kind must not let each of them wait.
    fn is_heard(&self, shard: usize) -> Result<(), BooksError> {
        let lease = *self.inner.shards[shard].lease.lock();
        match lease {
            Some(lease) if lease.renewed.elapsed() >= self.inner.shared.owner_timeout / 2 => {
                Err(BooksError::Unavailable("Redis has been silent for a while".into()))
            }
            _ => Ok(()),
        }
    }

    /// Ends a hold without its owner (D36).
    pub(super) fn end(
        &self,
        shard: usize,
        charge: ChargeId,
        now: Timestamp,
        which: Endable<'_>,
    ) -> impl Future<Output = Result<Option<Abandoned>, BooksError>> + Send + use<> {
        let op = wire::end(charge, now.as_microsecond(), which);
        let asked = self.ask(shard, charge, Kind::GivesBack, Ok(op));
        async move {
            match asked.await? {
                Reply::Ended(state, charge) => Ok(Some(Abandoned { state, charge })),
                Reply::Unknown => Ok(None),
                other => Err(odd(&other)),
            }
        }
    }

    /// Has a shard do something that is about no charge; false where it says no.
    pub(super) async fn does(&self, shard: usize, op: Vec<u8>) -> Result<bool, BooksError> {
        let reply = self.ask(shard, NO_CHARGE, Kind::GivesBack, Ok(op)).await?;
        Ok(matches!(reply, Reply::Done(..)))
    }

    /// Forgets what is forgotten in its time (f19), and was there before an instant.
    pub(super) async fn sweep(
        &self,
        shard: usize,
        before: i64,
        most: u64,
    ) -> Result<(), BooksError> {
        self.does(shard, wire::sweep(before, most)).await.map(|_| ())
    }
}

impl Books for Session {
    fn hold(
        &self,
        ask: &Ask<'_>,
    ) -> impl Future<Output = Result<Posted, BooksError>> + Send + use<> {
        let shard = self.of_charge(ask.charge);
        let (charge, at) = (ask.charge, ask.now);
        let asked = self.ask_when(shard, charge, Kind::Hold(at), wire::hold(ask));
        let inner = Arc::clone(&self.inner);
        async move {
            let Told { reply, sent } = asked.await?;
            match reply {
                // Others may have resolved it since it was sent: the call was slow, or whoever takes
                // this slept (D36, f36).
                Reply::Done(..) if sent.elapsed() >= inner.shared.owner_timeout / 2 => {
                    inner.shards[shard].void(charge, at);
                    let why = "this gateway was not heard of for too long";
                    Err(BooksError::Unavailable(why.into()))
                }
                Reply::Done(legs, view) => Ok(Posted::Done(legs, view)),
                Reply::Short(view) => Ok(Posted::Short(view)),
                Reply::Known(known) => Ok(Posted::Known(known)),
                other => Err(odd(&other)),
            }
        }
    }

    fn resolve(
        &self,
        charge: ChargeId,
        resolution: &Resolution<'_>,
    ) -> impl Future<Output = Result<Resolved, BooksError>> + Send + use<> {
        let op = wire::resolve(charge, resolution);
        let shared = Arc::clone(&self.inner.shared);
        let captures = resolution.state == State::Captured && shared.recorded.is_some();
        let patience = if captures { shared.settle_timeout } else { shared.deadline };
        // Once it is recorded it still counts what this is answered.
        let until = if captures { recorded::FOR_EVER } else { patience };
        // The disk has it where Redis is silent.
        let own = op.as_ref().ok().filter(|_| captures).map(|op| {
            let last = resolution.last.and_then(|last| wire::resolve(charge, last).ok());
            Capture::new(charge, op, last.as_deref())
        });
        let shard = self.of_charge(charge);
        let asked = op.and_then(|op| self.enqueue(shard, charge, Kind::GivesBack, op, until));
        let session = own.is_some().then(|| self.clone());
        async move {
            let mut asked = asked?;
            let (told, asked) = match tokio::time::timeout(patience, &mut asked).await {
                Ok(told) => (heard(told), None),
                Err(_) => (Err(silent()), Some(asked)),
            };
            let reply = match (told, own.zip(session)) {
                (Ok(told), _) => told.reply,
                (Err(BooksError::Unavailable(why)), Some((capture, session))) => {
                    return session.record_here(capture, why, asked).await;
                }
                (Err(error), _) => return Err(error),
            };
            match reply {
                Reply::Done(legs, view) => Ok(Resolved::Done(legs, view)),
                Reply::Short(view) => Ok(Resolved::Short(view)),
                Reply::Unknown => Ok(Resolved::Unknown),
                Reply::Already(state) => Ok(Resolved::Already(state)),
                other => Err(odd(&other)),
            }
        }
    }

    fn amend(
        &self,
        charge: ChargeId,
        amendment: &Amendment<'_>,
    ) -> impl Future<Output = Result<Amended, BooksError>> + Send + use<> {
        let op = wire::amend(charge, amendment);
        let asked = self.ask(self.of_charge(charge), charge, Kind::Takes, op);
        async move {
            match asked.await? {
                Reply::Done(legs, view) => Ok(Amended::Done(legs, view)),
                Reply::Short(view) => Ok(Amended::Short(view)),
                Reply::Unknown => Ok(Amended::Unknown),
                Reply::Already(state) => Ok(Amended::Already(state)),
                other => Err(odd(&other)),
            }
        }
    }

    fn abandon(
        &self,
        charge: ChargeId,
        now: Timestamp,
    ) -> impl Future<Output = Result<Option<Abandoned>, BooksError>> + Send + use<> {
        self.end(self.of_charge(charge), charge, now, Endable::Any)
    }

    async fn known(&self, scope: u64, key: &[u8; 16]) -> Result<Option<KnownCharge>, BooksError> {
        // The scope of an org's keys begins with its home.
        let shard = self.inner.shared.shard_of(scope as u16);
        match self.ask(shard, NO_CHARGE, Kind::Reads, Ok(wire::find(scope, key))).await? {
            Reply::Known(known) => Ok(Some(known)),
            Reply::Unknown => Ok(None),
            other => Err(odd(&other)),
        }
    }

    async fn named(&self, names: &[Key]) -> Result<Vec<ChargeId>, BooksError> {
        // All of one org.
        let Some(first) = names.first() else { return Ok(Vec::new()) };
        let shard = self.inner.shared.shard_of(first.scope as u16);
        self.is_heard(shard)?;
        match self.ask(shard, NO_CHARGE, Kind::Reads, Ok(wire::named(names))).await? {
            Reply::Found(charges) => Ok(charges),
            other => Err(odd(&other)),
        }
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn adjust(&self, adjustment: &Adjustment<'_>) -> Result<Adjusted, BooksError> {
        let shard = self.inner.shared.shard_of(home_of(adjustment.account.name.org));
        match self.ask(shard, NO_CHARGE, Kind::Takes, wire::adjust(adjustment)).await? {
            Reply::Done(_, view) => Ok(Adjusted::Done(view.get(0).unwrap_or_default())),
            Reply::Again(view) => Ok(Adjusted::Before(view.get(0).unwrap_or_default())),
            other => Err(odd(&other)),
        }
    }

    async fn balances(&self, accounts: &[Account<'_>]) -> Result<View, BooksError> {
        let mut view = View::new(accounts.len());
        let shard = |account: &Account<'_>| self.inner.shared.shard_of(home_of(account.name.org));
        let mut shards: Vec<usize> = accounts.iter().map(shard).collect();
        let of = shards.clone();
        shards.sort_unstable();
        shards.dedup();
        // One org mostly, and so one shard.
        for here in shards {
            let slots = (0..accounts.len()).filter(|slot| of[*slot] == here);
            let slots: Vec<usize> = slots.collect();
            let named: Vec<&Account<'_>> = slots.iter().map(|slot| &accounts[*slot]).collect();
            match self.ask(here, NO_CHARGE, Kind::Reads, wire::read(&named)).await? {
                Reply::Done(_, found) => {
                    for (at, slot) in slots.iter().enumerate() {
                        view.set(*slot as u8, found.get(at as u8).unwrap_or_default());
                    }
                }
                other => return Err(odd(&other)),
            }
        }
        Ok(view)
    }

    fn is_closed(&self, org: &str, key: &AccountKey) -> bool {
        self.inner.shared.is_closed(org, key)
    }

    async fn open_charge(&self, charge: ChargeId) -> Result<Option<OpenCharge>, BooksError> {
        let shard = self.of_charge(charge);
        match self.ask(shard, charge, Kind::Reads, Ok(wire::look(charge))).await? {
            Reply::Ended(State::Held, open) => Ok(Some(open)),
            Reply::Unknown => Ok(None),
            other => Err(odd(&other)),
        }
    }
}

/// A reply that no such operation has.
fn odd(reply: &Reply) -> BooksError {
    let what = match reply {
        Reply::Done(..) => "done",
        Reply::Ended(..) => "ended",
        Reply::Short(_) => "short",
        Reply::Known(_) => "known",
        Reply::Unknown => "unknown",
        Reply::Unsure => "unsure",
        Reply::Found(_) => "found",
        Reply::Again(_) => "again",
        Reply::Already(_) => "already",
        Reply::Refused(_) => "refused",
    };
    BooksError::Unavailable(format!("the books' library gave a reply of another kind: {what}"))
}
