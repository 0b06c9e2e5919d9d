//! What becomes of a response whose client left (D33, f08), or whose backend did.

use std::time::Duration;

use tokio::time::timeout;

use super::super::flow::{Break, Flow};
use super::super::hold::Held;
use super::super::usage::Reading;
use super::{End, MAX_DRAINED, Open, settle, sliced};
use crate::books::Books;
use crate::config::OnDisconnect;

/// The end of a response that broke off. Where the client broke off its request first, or keeps
/// the backend waiting for the rest of it, the backend could not finish: that is a client that
/// left, or else whoever never ends an upload would have its answer for nothing.
pub(super) fn truncated<B: Books + 'static>(held: &Held<B>, error: &Break, delivered: bool) -> End {
    let waits = matches!(error, Break::Stalled) && held.upload.is_open();
    if waits || held.upload.broke_off() { End::Abandoned { delivered } } else { End::Truncated }
}

pub(super) async fn leave<B: Books + 'static>(open: Box<Open<B>>) {
    let is_complete = open.is_complete();
    let metered = open.held.metered();
    let finishes = metered.is_some_and(|metered| metered.on_disconnect == OnDisconnect::Finish);
    let bound: Duration = open.held.worker.upstreams[open.held.route.upstream].response_timeout;
    if finishes && !is_complete && open.held.slices.is_some() {
        return sliced::finish(open, bound).await;
    }
    let Open { mut held, mut reading, mut flow, delivered, status, .. } = *open;
    let mut end = End::Abandoned { delivered };
    if is_complete {
        end = End::Complete;
    } else if finishes {
        let drained = timeout(bound, drain(&mut flow, &mut reading)).await;
        end = match drained {
            Ok(Ok(true)) => End::Complete,
            Ok(Err(error @ Break::Broken(_))) => truncated(&held, &error, delivered),
            _ => end,
        };
    }
    // The connection is closed before the books are asked, so that a backend whose work nobody
    // wants stops.
    drop(flow);
    // What could not be recorded was logged where it failed.
    let _ = settle(&mut held, &mut reading, end, status).await;
}

/// Reads what is left of a response, up to where it says that it is done; false where that is too
/// much.
async fn drain(flow: &mut Flow, reading: &mut Reading) -> Result<bool, Break> {
    let mut bytes = 0;
    while let Some(piece) = flow.next().await {
        let piece = piece?;
        bytes += piece.len() as u64;
        reading.feed(&piece);
        if reading.is_done() && reading.is_final() {
            return Ok(true);
        }
        if bytes > MAX_DRAINED {
            return Ok(false);
        }
    }
    if let Some(trailers) = flow.take_trailers() {
        reading.trailers(&trailers);
    }
    Ok(true)
}
