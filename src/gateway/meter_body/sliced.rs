//! A body whose hold is topped up while it passes (D29, f82): what it waits for, and how it ends
//! where nothing can pay.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::timeout_at;

use super::super::Refused;
use super::super::carry::Carried;
use super::super::flow::Break;
use super::super::hold::Held;
use super::super::problem;
use super::super::slices::{self, Next};
use super::super::usage::Reading;
use super::{End, MAX_DRAINED, MeteredBody, Open, State, settle, tells, truncated};
use crate::books::Books;
use crate::telemetry::Phase;

impl<B: Books + 'static> MeteredBody<B> {
    /// Begins to hold the next slice.
    pub(super) fn top_up(&mut self) {
        let State::Streaming(mut open) = std::mem::replace(&mut self.state, State::Done) else {
            return;
        };
        let tasks = open.held.worker.tasks.clone();
        let work = async move {
            let Open { held, reading, .. } = &mut *open;
            let topped_up = slices::top_up(held, reading).await;
            (open, topped_up)
        };
        self.state = State::ToppingUp(Box::pin(work), tasks);
    }

    /// Begins to settle a stream that ends here, because its next slice was refused. That is told
    /// in a last event, where there may be one; else the stream breaks off.
    pub(super) fn stop(&mut self, open: Open<B>, refused: Refused) {
        let (mut held, mut reading, end, status) = open.give_up(&refused);
        let error = held.slices.as_ref().filter(|slices| slices.may_end_cleanly()).map(|slices| {
            let request_id = slices.request_id.to_str().unwrap_or_default();
            problem::event(&refused, request_id, held.route.manner)
        });
        let tells = tells(&held, &reading);
        let tasks = held.worker.tasks.clone();
        let work = async move {
            let settled = settle(&mut held, &mut reading, end, status).await?;
            let mut last = error.ok_or(refused)?;
            if tells {
                last.extend(settled.event(&held));
            }
            Ok(last.into())
        };
        self.state = State::Settling(Carried::new(&tasks, work), Box::default());
    }
}

impl<B: Books + 'static> Open<B> {
    /// Takes a piece of a stream that is held in slices.
    pub(super) fn push(&mut self, piece: Bytes) {
        if let Some(slices) = &mut self.held.slices {
            slices.push(piece);
        }
    }

    /// What becomes of such a stream next.
    pub(super) fn next(&mut self) -> Next {
        let Self { held, reading, prefix, waiting, .. } = self;
        let Held { slices, quoted, .. } = &mut **held;
        match slices {
            None => Next::Read,
            Some(slices) => slices.next(reading, &quoted.quantities, prefix, waiting),
        }
    }

    /// Gives up a stream whose next slice was refused. The connection is closed before the books
    /// are asked, so that the backend stops.
    fn give_up(self, refused: &Refused) -> (Box<Held<B>>, Reading, End, u16) {
        let Self { held, reading, flow, status, began, delivered, .. } = self;
        // One that cannot be read is charged for what the client got.
        let end = if reading.is_lost() { End::Abandoned { delivered } } else { End::Stopped };
        drop(flow);
        held.worker.meters.upstream(held.route.upstream, Phase::Body, began.elapsed());
        held.caller.meters.refusal(refused.refusal.code);
        (held, reading, end, status)
    }
}

/// Settles a stream that ends before its next slice and that nobody reads.
pub(super) async fn stop<B: Books + 'static>(open: Open<B>, refused: &Refused) {
    let (mut held, mut reading, end, status) = open.give_up(refused);
    // What could not be recorded was logged where it failed.
    let _ = settle(&mut held, &mut reading, end, status).await;
}

/// Reads what is left of a stream that is held in slices, as long as they can be paid.
pub(super) async fn finish<B: Books + 'static>(mut open: Box<Open<B>>, bound: Duration) {
    let (until, mut bytes) = (Instant::now() + bound, 0);
    let end = loop {
        match open.next() {
            Next::Pass => open.prefix.clear(),
            Next::TopUp => {
                let Open { held, reading, .. } = &mut *open;
                if let Err(refused) = slices::top_up(held, reading).await {
                    return stop(*open, &refused).await;
                }
            }
            Next::Read if open.is_complete() => break End::Complete,
            Next::Read => match timeout_at(until.into(), open.flow.next()).await {
                Ok(Some(Ok(piece))) if bytes <= MAX_DRAINED => {
                    bytes += piece.len() as u64;
                    open.push(piece);
                }
                Ok(None) => break End::Complete,
                Ok(Some(Err(error @ Break::Broken(_)))) => {
                    break truncated(&open.held, &error, open.delivered);
                }
                _ => break End::Abandoned { delivered: open.delivered },
            },
        }
    };
    let Open { mut held, mut reading, mut flow, status, .. } = *open;
    if let Some(trailers) = flow.take_trailers() {
        reading.trailers(&trailers);
    }
    drop(flow);
    // What could not be recorded was logged where it failed.
    let _ = settle(&mut held, &mut reading, end, status).await;
}
