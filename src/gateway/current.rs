//! The configuration that a worker serves with, and how it takes the next one: between requests,
//! whole. A request has one configuration from its beginning to the end of its charge.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::worker::Worker;

/// What one event loop serves the next request with; swapped whole by a reload.
pub struct Current<B>(ArcSwap<Worker<B>>);

impl<B> Current<B> {
    /// Begins with a worker.
    pub fn new(worker: Arc<Worker<B>>) -> Self {
        Self(ArcSwap::new(worker))
    }

    /// The worker in force.
    pub fn load(&self) -> Arc<Worker<B>> {
        self.0.load_full()
    }

    /// Puts another worker in force, from the next request on.
    pub fn swap(&self, worker: Arc<Worker<B>>) {
        self.0.store(worker);
    }
}
