//! Captures that Redis was silent to: on this gateway's disk, synced, they count as recorded, so that
//! whoever has an answer coming gets it (D30). They are asked of Redis as long as the gateway runs, and
//! again when it starts; a charge that others gave up meanwhile is captured late then (f23).

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::Engine;
use super::journal::{frame, frames};
use super::queue::{Kind, Told, heard};
use super::session::Session;
use super::wire::{self, Reply};
use crate::books::{BooksError, Resolved};
use crate::core::ids::ChargeId;

/// How much of them there may be, in bytes.
const MAX_FILE: u64 = 64 << 20;
/// How long a promise waits for Redis: longer than any gateway runs.
pub(super) const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Until a promise of a charge that nobody knows is asked again, and how long that goes on: as long as
/// keys are remembered.
const REST: Duration = Duration::from_millis(100);
const MAX_REST: Duration = Duration::from_secs(600);
const MOST_AWAY: Duration = Duration::from_secs(48 * 3600);

/// A capture, as the library takes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Capture {
    charge: [u8; 16],
    #[serde(with = "serde_bytes")]
    op: Vec<u8>,
    /// What is asked where that is short: nobody plans it again.
    #[serde(with = "serde_bytes")]
    last: Option<Vec<u8>>,
}

impl Capture {
    pub(super) fn new(charge: ChargeId, op: &[u8], last: Option<&[u8]>) -> Self {
        Self { charge: charge.0, op: wire::promised(op), last: last.map(wire::promised) }
    }
}

/// What is promised, and the file that has it.
#[derive(Debug)]
pub(super) struct Recorded {
    /// Those of this life and of earlier ones that Redis has not answered.
    waiting: Mutex<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    writer: Writer,
    /// How many of this life are asked.
    asked: usize,
    /// What an earlier life recorded and nobody asked yet.
    earlier: Vec<Capture>,
}

#[derive(Debug)]
struct Writer {
    file: File,
    /// Of whole records.
    length: u64,
}

impl Writer {
    /// Writes a record; it survives a power failure when this is done.
    fn write(&mut self, frame: &[u8]) -> std::io::Result<()> {
        if self.length >= MAX_FILE {
            return Err(std::io::Error::other("too many captures wait for Redis"));
        }
        // A write that failed may have left half a record, and what stands behind that is never read.
        self.file.set_len(self.length)?;
        self.file.write_all(frame)?;
        self.file.sync_data()?;
        self.length += frame.len() as u64;
        Ok(())
    }

    fn empty(&mut self) -> std::io::Result<()> {
        self.length = 0;
        self.file.set_len(0)
    }
}

impl Recorded {
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        let bytes = super::journal::read(path)?;
        let (mut earlier, mut length) = (Vec::new(), 0);
        for (end, record) in frames(&bytes) {
            match postcard::from_bytes::<Capture>(record) {
                Ok(capture) => earlier.push(capture),
                Err(error) => {
                    let path = path.display();
                    tracing::error!(%path, end, %error, "a recorded capture cannot be read");
                }
            }
            length = end as u64;
        }
        let file = File::options().create(true).append(true).open(path)?;
        let writer = Writer { file, length };
        Ok(Self { waiting: Mutex::new(Waiting { writer, asked: 0, earlier }) })
    }

    /// Records a capture that is to be asked; it survives a power failure when this is done.
    async fn record(self: Arc<Self>, capture: Capture) -> std::io::Result<()> {
        let write = move || {
            let mut waiting = self.waiting.lock();
            waiting.writer.write(&frame(&capture)?)?;
            waiting.asked += 1;
            Ok(())
        };
        tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other)?
    }

    /// What an earlier life left, to be asked now.
    fn take_earlier(&self) -> Vec<Capture> {
        let mut waiting = self.waiting.lock();
        waiting.asked += waiting.earlier.len();
        std::mem::take(&mut waiting.earlier)
    }

    /// One that was asked is answered. Once all are, the file begins anew.
    async fn answered(self: Arc<Self>) {
        let count = move || {
            let mut waiting = self.waiting.lock();
            waiting.asked -= 1;
            if waiting.asked == 0
                && waiting.earlier.is_empty()
                && let Err(error) = waiting.writer.empty()
            {
                tracing::error!(%error, "captures are asked once more at the next start");
            }
        };
        // The lock is held while another is written.
        let _ = tokio::task::spawn_blocking(count).await;
    }
}

/// Where the answer to a capture comes, if it did not come yet.
type Asked = Option<oneshot::Receiver<Result<Told, BooksError>>>;

impl Session {
    /// Records on this gateway's disk a capture that Redis is silent to. Where what Redis says after all
    /// is not that it is made, it is asked once more, because from now on it is a promise.
    pub(super) async fn record_here(
        self,
        capture: Capture,
        why: String,
        asked: Asked,
    ) -> Result<Resolved, BooksError> {
        let Some(recorded) = self.shared().recorded.clone() else {
            return Err(BooksError::Unavailable(why));
        };
        let charge = ChargeId(capture.charge);
        match recorded.record(capture.clone()).await {
            Ok(()) => {
                tracing::warn!(%charge, why, "a capture is recorded here, until Redis is heard of");
                let shared = Arc::clone(self.shared());
                // Nobody waits for it.
                shared.tasks.spawn_on(self.keep_promise(capture, asked), &shared.runtime);
                Ok(Resolved::Recorded)
            }
            Err(error) => {
                tracing::error!(%charge, %error, "a capture is recorded nowhere yet");
                Err(BooksError::Unavailable(why))
            }
        }
    }

    /// Has a recorded capture made. Once is enough, and more does no harm: a charge is resolved once.
    async fn keep_promise(self, capture: Capture, asked: Asked) {
        let told = match asked {
            Some(asked) => heard(asked.await).ok(),
            None => None,
        };
        if told.is_some_and(|told| matches!(told.reply, Reply::Done(..))) {
            self.is_answered().await;
        } else if let Some(capture) = self.ask_once(capture).await {
            self.ask_until_known(capture).await;
        }
    }

    /// Says which capture is of a charge that the books do not know. That may be one that another gateway
    /// has to do again, which a Redis that came back from an older file may not even know of.
    async fn ask_once(&self, capture: Capture) -> Option<Capture> {
        let charge = ChargeId(capture.charge);
        let shard = self.of_charge(charge);
        let ask =
            |op: &[u8]| self.ask_for(shard, charge, Kind::Promised, Ok(op.to_owned()), FOR_EVER);
        let told = match (ask(&capture.op).await, &capture.last) {
            (Ok(Told { reply: Reply::Short(_), .. }), Some(last)) => ask(last).await,
            (told, _) => told,
        };
        match told {
            // The gateway is stopping: it is asked again at the next start.
            Err(BooksError::Unavailable(_)) => return None,
            Ok(Told { reply: Reply::Unknown, .. }) => return Some(capture),
            Err(error) => tracing::error!(%charge, %error, "a recorded capture is not made"),
            Ok(Told { reply: Reply::Short(_), .. }) => {
                tracing::error!(%charge, "a recorded capture is not made: nobody can pay its excess");
            }
            Ok(_) => {}
        }
        self.is_answered().await;
        None
    }

    /// Asks, less and less often, for as long as a gateway may be away.
    async fn ask_until_known(self, mut capture: Capture) {
        let (began, mut rest) = (Instant::now(), REST);
        while began.elapsed() < MOST_AWAY {
            tokio::select! {
                () = self.shared().closing.cancelled() => return,
                () = tokio::time::sleep(rest) => {}
            }
            rest = (2 * rest).min(MAX_REST);
            match self.ask_once(capture).await {
                Some(unknown) => capture = unknown,
                None => return,
            }
        }
        let charge = ChargeId(capture.charge);
        tracing::warn!(%charge, "the books know nothing of the charge of a recorded capture");
        self.is_answered().await;
    }

    async fn is_answered(&self) {
        if let Some(recorded) = self.shared().recorded.clone() {
            recorded.answered().await;
        }
    }
}

impl Engine {
    /// Captures what an earlier life of this gateway recorded when Redis was silent.
    pub(super) async fn settle_recorded(&self) {
        let Some(recorded) = &self.shared.recorded else { return };
        let earlier = recorded.take_earlier();
        if earlier.is_empty() {
            return;
        }
        let captures = earlier.len();
        let mut first = Vec::with_capacity(captures);
        for capture in earlier {
            let session = self.session.clone();
            let (answered, waits) = oneshot::channel::<()>();
            first.push(waits);
            let keep = async move {
                // Those that were made before are unknown too.
                let unknown = session.ask_once(capture).await;
                drop(answered);
                if let Some(capture) = unknown {
                    session.ask_until_known(capture).await;
                }
            };
            self.shared.tasks.spawn_on(keep, &self.shared.runtime);
        }
        let all = async {
            for waits in first {
                // Nothing is sent: whoever asks lets go of it.
                let _ = waits.await;
            }
        };
        match tokio::time::timeout(self.shared.deadline, all).await {
            Ok(()) => tracing::info!(captures, "Redis has what it was silent to"),
            Err(_) => {
                tracing::warn!(captures, "captures of this gateway's last life wait for Redis");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d30_f25_what_is_recorded_behind_a_write_that_failed_half_way_is_found_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("books.captures");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let capture = |number| Capture::new(ChargeId([number; 16]), &[number; 20], None);
        let frame = |number| frame(&capture(number)).unwrap();
        for half in 0..frame(2).len() {
            let recorded = Recorded::open(&path).unwrap();
            recorded.waiting.lock().writer.write(&frame(1)).unwrap();
            // As far as the disk took it.
            recorded.waiting.lock().writer.file.write_all(&frame(2)[..half]).unwrap();
            recorded.waiting.lock().writer.write(&frame(3)).unwrap();
            drop(recorded);
            let again = Arc::new(Recorded::open(&path).unwrap());
            let found: Vec<_> = again.take_earlier().into_iter().map(|it| it.op).collect();
            assert_eq!(found, [1, 3].map(|number| capture(number).op), "{half}");
            // One of them is not answered yet.
            runtime.block_on(Arc::clone(&again).answered());
            assert_eq!(Recorded::open(&path).unwrap().take_earlier().len(), 2);
            runtime.block_on(again.answered());
            assert!(Recorded::open(&path).unwrap().take_earlier().is_empty());
        }
    }
}
