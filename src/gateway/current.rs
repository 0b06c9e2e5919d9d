//! The configuration that a worker serves with, and how it takes the next one: between requests,
//! whole. A request has one configuration from its beginning to the end of its charge.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::worker::{Connection, Worker};
use crate::books::Books;

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

/// A connection's side of it: what is known of a connection belongs to one configuration (whom it
/// believes, which meters it counts into), so a new one begins anew.
pub struct Served<B> {
    current: Arc<Current<B>>,
    peer: SocketAddr,
    /// Weak, so that an idle connection does not keep an old configuration in memory. Taken by
    /// the connection's own task only; the lock is never waited for.
    last: Mutex<(Weak<Worker<B>>, Arc<Connection>)>,
}

impl<B: Books> Served<B> {
    /// A connection from `peer`.
    pub fn new(current: Arc<Current<B>>, peer: SocketAddr) -> Self {
        let worker = current.load();
        let connection = Arc::new(Connection::new(&worker, peer));
        let last = Mutex::new((Arc::downgrade(&worker), connection));
        Self { current, peer, last }
    }

    /// What the next request is served with.
    pub fn next(&self) -> (Arc<Worker<B>>, Arc<Connection>) {
        let worker = self.current.load();
        let mut last = self.last.lock();
        if !std::ptr::eq(last.0.as_ptr(), Arc::as_ptr(&worker)) {
            let connection = Arc::new(Connection::new(&worker, self.peer));
            *last = (Arc::downgrade(&worker), connection);
        }
        (worker, Arc::clone(&last.1))
    }
}
