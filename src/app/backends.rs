//! The addresses of all backends, and what asks for their health: one task a backend for the
//! process, away from the workers' event loops. A backend that a reload leaves as it is keeps both.

use std::sync::Arc;

use anyhow::Context;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config;
use crate::gateway::health::Addresses;

/// The backends of the configuration in force.
#[derive(Clone)]
pub(super) struct Backends {
    known: Arc<Mutex<Vec<Known>>>,
    /// Where they are asked.
    control: Handle,
    /// The tasks that ask. Nobody waits for them: what they learn is for this process only.
    checks: TaskTracker,
    end: CancellationToken,
}

/// One of them.
#[derive(Clone)]
struct Known {
    upstream: config::Upstream,
    addresses: Arc<Addresses>,
    /// Ends its checks; `None` before they began.
    end: Option<CancellationToken>,
}

/// The backends of a configuration that is about to be in force, in its order.
pub(super) struct Next(Vec<Known>);

impl Backends {
    /// None yet; their tasks will run on `control` until `end`.
    pub(super) fn new(control: Handle, end: CancellationToken) -> Self {
        Self { known: Arc::default(), control, checks: TaskTracker::new(), end }
    }

    /// Those of another configuration. Nothing is asked yet.
    pub(super) fn next(&self, upstreams: &[config::Upstream]) -> Next {
        let known = self.known.lock();
        // By what it is: one that is added moves those behind it.
        let next = upstreams.iter().map(|upstream| {
            match known.iter().find(|known| known.upstream == *upstream) {
                Some(kept) => kept.clone(),
                None => Known {
                    upstream: upstream.clone(),
                    addresses: Arc::new(Addresses::new(upstream)),
                    end: None,
                },
            }
        });
        Next(next.collect())
    }

    /// Puts them in force: asks those that are new, and no longer those that are gone.
    pub(super) fn put(&self, next: Next) {
        let mut known = self.known.lock();
        let Next(mut next) = next;
        for gone in known.iter() {
            if !next.iter().any(|kept| Arc::ptr_eq(&kept.addresses, &gone.addresses))
                && let Some(end) = &gone.end
            {
                end.cancel();
            }
        }
        for new in next.iter_mut().filter(|known| known.end.is_none()) {
            let end = self.end.child_token();
            let check = Arc::clone(&new.addresses).check(end.clone());
            self.checks.spawn_on(check, &self.control);
            new.end = Some(end);
        }
        *known = next;
    }

    /// All of them.
    pub(super) fn list(&self) -> Vec<Arc<Addresses>> {
        self.known.lock().iter().map(|known| Arc::clone(&known.addresses)).collect()
    }
}

impl Next {
    /// The addresses of the backend at this place.
    pub(super) fn addresses(&self, index: usize) -> anyhow::Result<Arc<Addresses>> {
        let known = self.0.get(index).context("a backend without addresses")?;
        Ok(Arc::clone(&known.addresses))
    }
}
