//! Captures that Redis was silent to: on this gateway's disk, synced, they count as recorded, so that
//! whoever has an answer coming gets it (D30). They are asked of Redis as long as the gateway runs, and
//! again when it starts; a charge that others gave up meanwhile is captured late then (f23).

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::journal::{frame, frames};
use super::session::{Kind, Session};
use super::{Engine, wire};
use crate::books::{BooksError, Resolved};
use crate::core::ids::ChargeId;

/// How much of them there may be, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// A capture, as the library takes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Capture {
    charge: [u8; 16],
    #[serde(with = "serde_bytes")]
    pub(super) op: Vec<u8>,
}

impl Capture {
    pub(super) fn charge(&self) -> ChargeId {
        ChargeId(self.charge)
    }
}

/// The file.
#[derive(Debug)]
pub(super) struct Recorded {
    writer: Mutex<Writer>,
    /// What an earlier life recorded, and Redis has not heard of since.
    earlier: Mutex<Vec<Capture>>,
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
            earlier.extend(postcard::from_bytes::<Capture>(record).ok());
            length = end as u64;
        }
        let file = File::options().create(true).append(true).open(path)?;
        let writer = Mutex::new(Writer { file, length });
        Ok(Self { writer, earlier: Mutex::new(earlier) })
    }

    /// Records a capture; it survives a power failure when this is done.
    pub(super) async fn record(
        self: Arc<Self>,
        charge: ChargeId,
        op: Vec<u8>,
    ) -> std::io::Result<()> {
        let write = move || {
            let frame = frame(&Capture { charge: charge.0, op })?;
            self.writer.lock().write(&frame)
        };
        tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other)?
    }

    /// What an earlier life left, for whoever asks Redis.
    pub(super) fn earlier(&self) -> Vec<Capture> {
        self.earlier.lock().clone()
    }

    /// Redis has heard of all that an earlier life left. Where this one has recorded nothing yet, the
    /// file begins anew.
    pub(super) fn heard(&self, is_first: bool) -> std::io::Result<()> {
        self.earlier.lock().clear();
        if is_first { self.writer.lock().empty() } else { Ok(()) }
    }
}

impl Session {
    /// Records on this gateway's disk a capture that Redis is silent to. It is asked once more, behind
    /// the one that Redis was silent to, because from now on it is a promise.
    pub(super) async fn record_here(
        self,
        charge: ChargeId,
        op: &[u8],
        why: String,
    ) -> Result<Resolved, BooksError> {
        let Some(recorded) = self.shared().recorded.clone() else {
            return Err(BooksError::Unavailable(why));
        };
        let op = wire::promised(op);
        match recorded.record(charge, op.clone()).await {
            Ok(()) => {
                let asked = self.ask(self.of_charge(charge), charge, Kind::GivesBack, Ok(op));
                // Nobody waits for it.
                drop(asked);
                tracing::warn!(%charge, why, "a capture is recorded here, until Redis is heard of");
                Ok(Resolved::Recorded)
            }
            Err(error) => {
                tracing::error!(%charge, %error, "a capture is recorded nowhere yet");
                Err(BooksError::Unavailable(why))
            }
        }
    }
}

impl Engine {
    /// Captures what an earlier life of this gateway recorded when Redis was silent. Once is enough, and
    /// more does no harm: a charge is resolved once.
    pub(super) async fn settle_recorded(&self, is_first: bool) {
        let Some(recorded) = &self.shared.recorded else { return };
        let earlier = recorded.earlier();
        if earlier.is_empty() {
            return;
        }
        let asked: Vec<_> = earlier
            .iter()
            .map(|capture| {
                let (charge, op) = (capture.charge(), Ok(capture.op.clone()));
                let shard = self.session.of_charge(charge);
                self.session.ask(shard, charge, Kind::GivesBack, op)
            })
            .collect();
        for asked in asked {
            if let Err(error @ BooksError::Unavailable(_)) = asked.await {
                tracing::error!(%error, "captures of this gateway's last life wait for Redis");
                return;
            }
        }
        match recorded.heard(is_first) {
            Ok(()) => tracing::info!(captures = earlier.len(), "Redis has what it was silent to"),
            Err(error) => tracing::error!(%error, "captures are asked once more at the next start"),
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
        let op = |number: u8| vec![number; 20];
        let frame = |number| frame(&Capture { charge: [number; 16], op: op(number) }).unwrap();
        for half in 0..frame(2).len() {
            let recorded = Recorded::open(&path).unwrap();
            recorded.writer.lock().write(&frame(1)).unwrap();
            // As far as the disk took it.
            recorded.writer.lock().file.write_all(&frame(2)[..half]).unwrap();
            recorded.writer.lock().write(&frame(3)).unwrap();
            drop(recorded);
            let again = Recorded::open(&path).unwrap();
            let found: Vec<Vec<u8>> = again.earlier().into_iter().map(|found| found.op).collect();
            assert_eq!(found, [op(1), op(3)], "{half}");
            again.heard(true).unwrap();
            assert!(Recorded::open(&path).unwrap().earlier().is_empty());
        }
    }
}
