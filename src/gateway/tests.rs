//! The pipeline over real sockets: a worker on the embedded books and a real directory, and a
//! backend that does byte for byte what a test tells it.

mod bench;
mod endings;
mod identity;
mod payment;
mod settlement;
#[cfg(feature = "otel")]
mod traces;
mod transport;
