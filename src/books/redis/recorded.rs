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
    file: Mutex<File>,
    /// What an earlier life recorded, and Redis has not heard of since.
    earlier: Mutex<Vec<Capture>>,
}

impl Recorded {
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        let bytes = super::journal::read(path)?;
        let captures = frames(&bytes).filter_map(|(_, record)| postcard::from_bytes(record).ok());
        let earlier: Vec<Capture> = captures.collect();
        let end = frames(&bytes).last().map_or(0, |(end, _)| end as u64);
        let file = File::options().create(true).append(true).open(path)?;
        file.set_len(end)?;
        Ok(Self { file: Mutex::new(file), earlier: Mutex::new(earlier) })
    }

    /// Records a capture; it survives a power failure when this is done.
    pub(super) async fn record(
        self: Arc<Self>,
        charge: ChargeId,
        op: Vec<u8>,
    ) -> std::io::Result<()> {
        let write = move || {
            let frame = frame(&Capture { charge: charge.0, op })?;
            let mut file = self.file.lock();
            if file.metadata()?.len() >= MAX_FILE {
                return Err(std::io::Error::other("too many captures wait for Redis"));
            }
            file.write_all(&frame)?;
            file.sync_data()
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
        if is_first { self.file.lock().set_len(0) } else { Ok(()) }
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
