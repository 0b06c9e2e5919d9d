//! The gateway over real sockets: the real binary, a scripted backend, and clients that do what
//! clients do.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that panics has failed"
)]

#[path = "../support/mod.rs"]
mod support;

mod burst;
mod crash;
mod documents;
mod identity;
mod pool;
mod price;
mod seats;
mod service;
mod settle;
