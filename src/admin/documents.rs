//! Org files that are sent: read, checked and applied on a thread of their own, because the event
//! loop also tells whether the process is ready; and no more of them at once than there is memory
//! for.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::endpoint::Takes;
use super::problem::{Code, Problem};
use super::who::Who;
use crate::directory::token::Role;

/// Bodies above this are large.
const LARGE: usize = 1 << 20;
/// How many large bodies of others than operators are in memory at once.
const HELD: usize = 4;
/// How long a large body waits for its place, and then again for its turn.
const PATIENCE: Duration = Duration::from_secs(30);
/// How large an org file of others than operators may be.
const MOST: usize = 16 << 20;
/// How large one in TOML may be: its tree is read as a whole.
const MOST_TOML: usize = 4 << 20;

/// Who may hold a large document, and whose turn it is.
pub struct Documents {
    held: Arc<Semaphore>,
    turn: Arc<Semaphore>,
    patience: Duration,
}

/// The right to hold a large document, or to have it read. It ends when it is dropped.
pub type Permit = OwnedSemaphorePermit;

impl Default for Documents {
    fn default() -> Self {
        Self::patient(PATIENCE)
    }
}

impl Documents {
    fn patient(patience: Duration) -> Self {
        let of = |permits| Arc::new(Semaphore::new(permits));
        Self { held: of(HELD), turn: of(1), patience }
    }

    /// A place for a body that is about to be read; none is needed for a small one, nor for an
    /// operator's. `told` is how long it says it is.
    ///
    /// # Errors
    /// `busy` when there was none for too long.
    pub async fn hold(&self, who: &Who, told: Option<u64>) -> Result<Option<Permit>, Problem> {
        let small = told.is_some_and(|length| length <= LARGE as u64);
        if small || who.role == Role::Operator {
            return Ok(None);
        }
        self.wait(&self.held).await.map(Some)
    }

    /// The turn of a body that was read; a small one need not wait for it.
    ///
    /// # Errors
    /// `busy` when others took too long.
    pub async fn turn(&self, length: usize) -> Result<Option<Permit>, Problem> {
        if length <= LARGE {
            return Ok(None);
        }
        self.wait(&self.turn).await.map(Some)
    }

    async fn wait(&self, of: &Arc<Semaphore>) -> Result<Permit, Problem> {
        match tokio::time::timeout(self.patience, Arc::clone(of).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Problem::new(Code::Busy, "other large documents are being applied")),
        }
    }
}

/// How large a body may be.
pub fn most(takes: &Takes, who: &Who, toml: bool) -> usize {
    match (takes.document, who.role, toml) {
        (true, Role::Operator, _) | (false, ..) => takes.most,
        (true, _, false) => MOST,
        (true, _, true) => MOST_TOML,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn f71_large_documents_wait_for_their_turn_and_not_for_ever() {
        let documents = Documents::patient(Duration::from_millis(1));
        assert!(documents.turn(LARGE).await.unwrap().is_none());
        let first = documents.turn(LARGE + 1).await.unwrap();
        assert!(first.is_some());
        assert_eq!(documents.turn(LARGE + 1).await.unwrap_err().code, Code::Busy);
        assert!(documents.turn(LARGE).await.unwrap().is_none());
        drop(first);
        assert!(documents.turn(LARGE + 1).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn f71_large_bodies_have_a_number_of_places() {
        let documents = Documents::patient(Duration::from_millis(1));
        let who = |role| Who::named("x", role);
        let admin = who(Role::OrgAdmin);
        let mut held = Vec::new();
        for told in [None, Some(LARGE as u64 + 1), None, None] {
            held.push(documents.hold(&admin, told).await.unwrap().unwrap());
        }
        assert_eq!(documents.hold(&admin, None).await.unwrap_err().code, Code::Busy);
        assert!(documents.hold(&admin, Some(LARGE as u64)).await.unwrap().is_none());
        assert!(documents.hold(&who(Role::Operator), None).await.unwrap().is_none());
        held.pop();
        assert!(documents.hold(&admin, None).await.unwrap().is_some());
    }
}
