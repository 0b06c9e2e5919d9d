//! The end of a job: its charge is settled by whoever sees it first (D34).

use jiff::Timestamp;

use super::super::Refused;
use super::super::hold::unavailable;
use super::super::later::{Ending, Later};
use super::super::worker::Worker;
use super::status::{self, Standing, Used};
use crate::books::Books;
use crate::core::charge::State;
use crate::core::ids::ChargeId;
use crate::core::note::OutcomeNote;
use crate::core::refusal::Code;

/// Settles a job's charge where its status document says that it is over. Returns how the charge
/// stands, or nothing where it is not open.
///
/// # Errors
/// `books_unavailable`.
pub(super) async fn settle<B: Books + 'static>(
    worker: &Worker<B>,
    charge: ChargeId,
    text: &[u8],
    now: Timestamp,
) -> Result<Option<State>, Refused> {
    let open = worker.books.open_charge(charge).await.map_err(|error| unavailable(&error))?;
    let Some(open) = open else {
        worker.jobs.remove(charge);
        return Ok(None);
    };
    let later = Later::read(&open)?;
    let Some(job) = later.job() else { return Ok(Some(State::Held)) };
    let held: Vec<u64> = later.memo().measures.iter().map(|(_, quantity)| *quantity).collect();
    let ending = match status::read(job, &held, text) {
        Standing::Running => return Ok(Some(State::Held)),
        Standing::Failed => Ending::Void,
        Standing::Succeeded(Used::Unasked) => Ending::Whole,
        Standing::Succeeded(Used::Missing) => Ending::Missing,
        Standing::Succeeded(Used::Told(used)) => Ending::Used(used),
    };
    let ended = match later.end(worker, &ending, OutcomeNote::default(), now).await {
        // Usage that is beyond what an amount can hold is as good as none (f56, f57).
        Err(refused) if refused.refusal.code == Code::Unquotable => {
            later.end(worker, &Ending::Missing, OutcomeNote::default(), now).await
        }
        ended => ended,
    }?;
    worker.jobs.remove(charge);
    Ok(ended.map(|document| document.state))
}
