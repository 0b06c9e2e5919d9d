//! A session: one worker's way into the embedded books, with the records that wait to be written.
//!
//! The rule that keeps every prefix of the journal a state without overspend: **debits take
//! effect in memory before their record is written, credits only after it.** A session collects
//! the records of one turn of its worker's event loop; whoever is polled first on the next turn
//! writes them all.

mod adjust;
mod amend;
mod effects;
mod expire;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use parking_lot::Mutex;
use smallvec::SmallVec;

use self::effects::{After, note_grants, take_effect};
use super::Shared;
use super::open::{self, Keep, Open, OpenHold, OpenHolds};
use super::table::{self, Applied, Into, Places};
use crate::books::journal::Frames;
use crate::books::{
    Abandoned, Adjusted, Adjustment, Amended, Amendment, Ask, Books, BooksError, KnownCharge,
    Lasting, OpenCharge, Posted, Resolution, Resolved, bounded,
};
use crate::core::account::{Account, AccountKey, Grant, Legs, Slot, View};
use crate::core::charge::State;
use crate::core::cycle::Label;
use crate::core::ids::ChargeId;
use crate::core::record::{self, Leg, Opening, Record};

/// A session with the embedded books. Cheap to clone; clones share the session.
#[derive(Clone)]
pub struct Session(Arc<Inner>);

pub(super) struct Inner {
    shared: Arc<Shared>,
    /// Open holds, records that wait, and what follows from their being written. Held during the
    /// write, so that batches of a session keep their order.
    queue: Mutex<Queue>,
    /// The number of the last batch that was written, and where it ends in the journal. Both are
    /// stored under `queue`'s lock.
    written: AtomicU64,
    position: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    open: OpenHolds,
    /// Open holds that end by themselves, by when.
    expiring: BTreeSet<(i64, [u8; 16])>,
    frames: Frames,
    after: Vec<After>,
    /// The batch that records are collected for.
    batch: u64,
}

/// No lock is taken, and what all sessions share is not shown by each.
impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("batches_written", &self.0.written.load(Ordering::Relaxed))
            .field("position", &self.0.position.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let queue = Mutex::new(Queue { batch: 1, ..Queue::default() });
        let (written, position) = (AtomicU64::new(0), AtomicU64::new(0));
        Self(Arc::new(Inner { shared, queue, written, position }))
    }

    pub(super) fn of(inner: Arc<Inner>) -> Self {
        Self(inner)
    }

    /// Writes what waits. Called by whoever waits for a record; callers that hold or resolve
    /// without awaiting (a benchmark) call it themselves.
    ///
    /// # Errors
    /// [`BooksError::Unavailable`] for good after the first write error.
    pub fn flush(&self) -> Result<(), BooksError> {
        let inner = &*self.0;
        let mut queue = inner.queue.lock();
        if queue.frames.is_empty() {
            return inner.shared.check();
        }
        let appended = inner.shared.journal.append(&mut queue.frames);
        let position = appended.map_err(|error| BooksError::Unavailable(error.to_string()))?;
        let Queue { after, open, expiring, .. } = &mut *queue;
        for effect in after.drain(..) {
            take_effect(effect, open, expiring, &inner.shared.once);
        }
        inner.position.store(position, Ordering::Release);
        inner.written.store(queue.batch, Ordering::Release);
        queue.batch += 1;
        Ok(())
    }

    /// What the session's clones share.
    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }

    /// Resolves a hold that recovery found open. Nobody waits for it: its record is written with
    /// all the others by the next [`Session::flush`].
    pub(super) fn resolve_left_open(
        &self,
        charge: ChargeId,
        resolution: &Resolution<'_>,
    ) -> Result<(), BooksError> {
        if let Step::Written { mut wait, .. } = self.resolve_now(charge, resolution)? {
            wait.batch = 0;
        }
        Ok(())
    }

    /// Records that cycles are closed.
    pub(super) fn close(&self, at: Timestamp, below: Label) -> Result<(), BooksError> {
        let record = Record::Close(record::Close { at: at.as_microsecond(), below });
        push(&mut self.0.queue.lock().frames, &record)?;
        self.flush()
    }

    /// Puts a hold in that recovery found open.
    pub(super) fn adopt(&self, hold: OpenHold) {
        self.0.queue.lock().adopt(Arc::new(hold));
    }

    fn hold_now(&self, ask: &Ask<'_>) -> Result<(Posted, Option<Written>), BooksError> {
        let inner = &*self.0;
        inner.shared.check_space()?;
        bounded(ask.memo)?;
        let Some(once) = ask.lasting.as_ref().and_then(|lasting| lasting.once) else {
            return self.post(ask);
        };
        let keys = &inner.shared.once;
        if let Some(known) = keys.begin(&once, ask.charge, ask.now.as_microsecond())? {
            return Ok((Posted::Known(known), None));
        }
        let posted = self.post(ask);
        if !matches!(posted, Ok((Posted::Done(..), _))) {
            keys.end(&once, ask.charge, false);
        }
        posted
    }

    fn post(&self, ask: &Ask<'_>) -> Result<(Posted, Option<Written>), BooksError> {
        let inner = &*self.0;
        let lasting = match ask.lasting {
            None => None,
            Some(Lasting { expires, once, note }) => {
                bounded(note)?;
                let expires = expires.map(|at| at.as_microsecond());
                Some(Box::new(open::Lasting { expires, once, known: None, note: note.into() }))
            }
        };
        let applied = match table::apply(&inner.shared.table, ask.accounts, ask.post, Into::Held)? {
            Ok(applied) => applied,
            Err(view) => return Ok((Posted::Short(view), None)),
        };
        let Applied { legs, view, places, openings } = applied;
        let unopened = |(slot, account): (usize, &Account<'_>)| {
            let slot = slot as Slot;
            let named = places[usize::from(slot)].entry.is_none() && view.get(slot).is_some();
            named.then_some((slot, account.key))
        };
        let unopened = ask.accounts.iter().enumerate().filter_map(unopened).collect();
        let hold = Arc::new(OpenHold {
            charge: ask.charge.0,
            at: ask.now.as_microsecond(),
            places,
            unopened,
            legs: legs.clone(),
            memo: ask.memo.into(),
            in_doubt: ask.in_doubt,
            lasting,
        });
        let plain = record::Hold {
            charge: hold.charge,
            at: hold.at,
            in_doubt: ask.in_doubt,
            openings: describe(&openings, &hold.places),
            legs: legs_of(&hold.legs, ask.accounts),
            memo: ask.memo,
        };
        let record = match &hold.lasting {
            None => Record::Hold(plain),
            Some(lasting) => Record::Lasting(record::Lasting {
                hold: plain,
                expires: lasting.expires,
                once: lasting.once,
                note: &lasting.note,
            }),
        };
        let batch = {
            let mut queue = inner.queue.lock();
            push(&mut queue.frames, &record)?;
            note_grants(&mut queue.after, &openings, &hold.places);
            drop(record);
            queue.adopt(hold);
            queue.batch
        };
        let wait = Written { session: self.clone(), batch };
        Ok((Posted::Done(legs, view), Some(wait)))
    }

    fn resolve_now(
        &self,
        charge: ChargeId,
        resolution: &Resolution<'_>,
    ) -> Result<Step, BooksError> {
        let shared = &self.0.shared;
        shared.check()?;
        bounded(resolution.note)?;
        bounded(resolution.answer)?;
        // Mostly it is this session's own.
        if let Some(step) = self.resolve_here(charge, resolution)? {
            return Ok(step);
        }
        for session in shared.sessions() {
            if let Some(step) = session.resolve_here(charge, resolution)? {
                return Ok(step);
            }
        }
        Ok(Step::Ready(Resolved::Unknown))
    }

    /// Resolves a hold of this session; `None` when it has none of this id.
    fn resolve_here(
        &self,
        charge: ChargeId,
        resolution: &Resolution<'_>,
    ) -> Result<Option<Step>, BooksError> {
        self.resolve_in(&mut self.0.queue.lock(), charge, resolution)
    }

    fn resolve_in(
        &self,
        queue: &mut Queue,
        charge: ChargeId,
        resolution: &Resolution<'_>,
    ) -> Result<Option<Step>, BooksError> {
        let Queue { open, frames, after, batch, .. } = queue;
        let written = |batch| Written { session: self.clone(), batch };
        let Some(Open { hold, resolved }) = open.get_mut(&charge.0) else { return Ok(None) };
        if let Some((state, _)) = *resolved {
            // Its record may still wait in the queue, and the answer must not outrun it.
            return Ok(Some(Step::Already(written(*batch), state)));
        }
        let (accounts, applied) = match resolution.extra {
            None => (&[][..], None),
            Some((accounts, post)) => {
                match table::apply(&self.0.shared.table, accounts, post, Into::Captured)? {
                    Ok(applied) => (accounts, Some(applied)),
                    Err(view) => return Ok(Some(Step::Ready(Resolved::Short(view)))),
                }
            }
        };
        let (extra, openings) = match &applied {
            Some(applied) => {
                (legs_of(&applied.legs, accounts), describe(&applied.openings, &applied.places))
            }
            None => (SmallVec::new(), SmallVec::new()),
        };
        let keep: Keep = hold
            .legs
            .iter()
            .enumerate()
            .map(|(index, leg)| resolution.keep.get(index).map_or(0, |&keep| keep.min(leg.amount)))
            .collect();
        {
            let plain = record::Resolve {
                charge: charge.0,
                at: resolution.now.as_microsecond(),
                state: resolution.state,
                keep,
                openings,
                extra,
                memo: resolution.memo.clone(),
            };
            let (note, answer) = (resolution.note, resolution.answer);
            let record = match (note, answer) {
                (&[], &[]) => Record::Resolve(plain),
                _ => Record::Finish(record::Finish { resolve: plain, note, answer }),
            };
            push(frames, &record)?;
            if let Record::Resolve(record)
            | Record::Finish(record::Finish { resolve: record, .. }) = record
            {
                *resolved = Some((record.state, record.keep));
            }
        }
        if let Some(applied) = &applied {
            note_grants(after, &applied.openings, &applied.places);
        }
        after.push(After::Settle(charge.0));
        let extra = applied.map(|applied| applied.legs).unwrap_or_default();
        let hold = Arc::clone(hold);
        Ok(Some(Step::Written { wait: written(*batch), hold, extra }))
    }
}

/// How far a resolution came at once.
enum Step {
    Ready(Resolved),
    Already(Written, State),
    Written { wait: Written, hold: Arc<OpenHold>, extra: Legs },
}

impl Books for Session {
    fn hold(
        &self,
        ask: &Ask<'_>,
    ) -> impl Future<Output = Result<Posted, BooksError>> + Send + use<> {
        // All of it happens here, not at the first poll: a void that is called next meets it.
        let begun = self.hold_now(ask);
        // Who has the key may be captured in a record that is not on the disk yet.
        let known = matches!(begun, Ok((Posted::Known(_), _))).then(|| self.clone());
        async move {
            let (posted, wait) = begun?;
            if let Some(wait) = wait {
                wait.wait().await?;
            }
            if let Some(session) = known {
                session.0.shared.survives(session.0.shared.journal.written()).await?;
            }
            Ok(posted)
        }
    }

    fn resolve(
        &self,
        charge: ChargeId,
        resolution: &Resolution<'_>,
    ) -> impl Future<Output = Result<Resolved, BooksError>> + Send + use<> {
        let step = self.resolve_now(charge, resolution);
        async move {
            match step? {
                Step::Ready(resolved) => Ok(resolved),
                Step::Already(wait, state) => {
                    wait.wait().await?;
                    Ok(Resolved::Already(state))
                }
                Step::Written { wait, hold, extra } => {
                    wait.wait().await?;
                    Ok(Resolved::Done(extra, hold.view(&wait.session.0.shared.table)))
                }
            }
        }
    }

    fn amend(
        &self,
        charge: ChargeId,
        amendment: &Amendment<'_>,
    ) -> impl Future<Output = Result<Amended, BooksError>> + Send + use<> {
        let begun = self.amend_now(charge, amendment);
        async move {
            let (amended, wait) = begun?;
            if let Some(wait) = wait {
                wait.wait().await?;
            }
            Ok(amended)
        }
    }

    fn abandon(
        &self,
        charge: ChargeId,
        now: Timestamp,
    ) -> impl Future<Output = Result<Option<Abandoned>, BooksError>> + Send + use<> {
        let begun = self.abandon_now(charge, now);
        async move {
            let Some((abandoned, wait)) = begun? else { return Ok(None) };
            wait.wait().await.map(|()| Some(abandoned))
        }
    }

    async fn known(&self, scope: u64, key: &[u8; 16]) -> Result<Option<KnownCharge>, BooksError> {
        Ok(self.0.shared.once.find(scope, key))
    }

    async fn adjust(&self, adjustment: &Adjustment<'_>) -> Result<Adjusted, BooksError> {
        self.adjust_once(adjustment).await
    }

    async fn balances(&self, accounts: &[Account<'_>]) -> Result<View, BooksError> {
        self.0.shared.check()?;
        let mut view = View::new(accounts.len());
        for (slot, account) in accounts.iter().enumerate() {
            view.set(slot as Slot, self.0.shared.table.balance(&account.key, &account.grant));
        }
        Ok(view)
    }

    fn is_closed(&self, _org: &str, key: &AccountKey) -> bool {
        key.is_closed(self.0.shared.table.closed())
    }

    async fn open_charge(&self, charge: ChargeId) -> Result<Option<OpenCharge>, BooksError> {
        Ok(self.0.shared.find_open(charge).map(|hold| hold.describe()))
    }
}

impl Inner {
    pub(super) fn find(&self, charge: &[u8; 16]) -> Option<Arc<OpenHold>> {
        self.queue.lock().open.get(charge).map(|open| Arc::clone(&open.hold))
    }

    /// How many holds are open, and since when the oldest is.
    pub(super) fn open_holds(&self) -> (usize, Option<i64>) {
        let open = &self.queue.lock().open;
        (open.len(), open.values().map(|open| open.hold.at).min())
    }

    pub(super) fn list_open(&self) -> Vec<Arc<OpenHold>> {
        self.queue.lock().open.values().map(|open| Arc::clone(&open.hold)).collect()
    }
}

impl Queue {
    fn adopt(&mut self, hold: Arc<OpenHold>) {
        if let Some(at) = hold.expires() {
            self.expiring.insert((at, hold.charge));
        }
        self.open.insert(hold.charge, Open { hold, resolved: None });
    }
}

fn push(frames: &mut Frames, record: &Record<'_>) -> Result<(), BooksError> {
    frames.push(record).map_err(|error| BooksError::Unavailable(error.to_string()))
}

/// Waits until a batch is written, and writes it if nobody else did. Dropped before that, it
/// writes at once: giving up an answer must not leave a record waiting for the next caller.
struct Written {
    session: Session,
    batch: u64,
}

impl Written {
    async fn wait(&self) -> Result<(), BooksError> {
        // One turn of the event loop: whatever else is ready adds its records first.
        tokio::task::yield_now().await;
        self.finish()?;
        let Inner { shared, position, .. } = &*self.session.0;
        shared.survives(position.load(Ordering::Acquire)).await
    }

    fn is_done(&self) -> bool {
        self.session.0.written.load(Ordering::Acquire) >= self.batch
    }

    fn finish(&self) -> Result<(), BooksError> {
        if self.is_done() { Ok(()) } else { self.session.flush() }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        // An error closes the books for everyone, which the next caller is told.
        let _closed = self.finish();
    }
}

fn describe<'a>(openings: &[(Slot, Grant)], places: &'a Places) -> SmallVec<[Opening<'a>; 1]> {
    openings
        .iter()
        .filter_map(|(slot, grant)| {
            let entry = places[usize::from(*slot)].entry.as_ref()?;
            Some(Opening { key: entry.key, name: &entry.name, grant: *grant })
        })
        .collect()
}

fn legs_of(legs: &Legs, accounts: &[Account<'_>]) -> SmallVec<[Leg; 2]> {
    legs.iter()
        .map(|leg| Leg {
            key: accounts[usize::from(leg.slot)].key,
            kind: leg.kind,
            amount: leg.amount,
        })
        .collect()
}
