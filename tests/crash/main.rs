//! The real binary, killed where it stands and put on a disk that fails.
//!
//! - `campaign`: killed under load again and again; `tests/crash-campaign` runs it at length.
//! - `start`: killed at every step of its start, and of a snapshot.
//! - `repair`: damage, and what mends it.
//! - `disk`: full, failing, short and interrupted.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that panics has failed"
)]

#[path = "../support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "what the other suites use")]
mod support;

mod campaign;
mod disk;
mod repair;
mod start;
