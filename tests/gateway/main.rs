//! The gateway over real sockets: the real binary, a scripted backend, and clients that do what
//! clients do.

#[path = "../support/mod.rs"]
mod support;

mod burst;
mod crash;
mod identity;
mod pool;
mod price;
mod seats;
mod settle;
