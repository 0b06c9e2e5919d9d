//! The gateway over real sockets: the real binary, a scripted backend, and clients that do what
//! clients do.
//!
//! - `burst`: 2,000 requests at once against credit for K of them.
//! - `crash`: killed under load, and started again on the same data.
//! - `seats`, `pool`, `price`, `settle`: the rules of the domain.
//! - `identity`, `documents`: what is refused, and what callers read.
//! - `service`: metrics, health, the drain, the demo.

// Marked as tests, so that lints know their helpers for what they are.
#[cfg(test)]
#[path = "../support/mod.rs"]
mod support;

#[cfg(test)]
mod burst;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod documents;
#[cfg(test)]
mod identity;
#[cfg(test)]
mod pool;
#[cfg(test)]
mod price;
#[cfg(test)]
mod seats;
#[cfg(test)]
mod service;
#[cfg(test)]
mod settle;
