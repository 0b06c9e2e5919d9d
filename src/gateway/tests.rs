//! The pipeline over real sockets: a worker on the embedded books and a real directory, and a
//! backend that does byte for byte what a test tells it.

pub mod bench;
mod endings;
mod identity;
pub mod jobs;
mod payment;
mod settlement;
#[cfg(feature = "otel")]
mod traces;
mod transport;
