//! What integration tests share: the real binary on free loopback ports, a backend that does what
//! a request's own script says, and a client that shows answers as they came.

pub mod backend;
pub mod client;
pub mod cluster;
pub mod fault_proxy;
pub mod faults;
pub mod org;
pub mod peer;
pub mod postgres;
pub mod redis;
pub mod sample;
pub mod wild;
pub mod world;

use std::future::Future;
use std::time::{Duration, Instant};

/// As the books' tests call it.
pub use self::redis as redis_server;
pub use backend::{Backend, Script};
pub use client::{Answer, Call, Client, burst, burst_over, raw};
pub use org::{Access, Org};
pub use peer::Peer;
pub use wild::Wild;
pub use world::{Setup, World};

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test's future on an event loop of its own.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test)
}

/// Asks until the answer is there.
pub async fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
