//! The gateway over real sockets: the real binary, a scripted backend, and clients that do what
//! clients do.
//!
//! - `burst`: 2,000 requests at once against credit for K of them.
//! - `crash`: killed with charges open, and started again on the same data.
//! - `seats`, `pool`, `price`, `settle`: the rules of the domain; `races`: two that end one hold.
//! - `identity`, `documents`: what is refused, and what callers read.
//! - `framing`, `deadlines`, `hygiene`: hostile bytes, slow clients, and what is read from both.
//! - `upstreams`, `early`, `failures`: backends that fail, in every way they can.
//! - `quoting`: products, forms, uploads, bytes, and what is set in requests.
//! - `faults`, `fault_load`, `fault_kinds`, `fault_check`: whatever can happen to three gateways, their
//!   Redis and their PostgreSQL, and that what was told adds up behind it.
//! - `headers`: what of a request's headers a backend is shown.
//! - `holds`: the holds API, and quotes.
//! - `idempotency`, `retries`: what is sent again under one key, by hand and by the thousand.
//! - `jobs`, `job_answers`, `job_ends`, `job_campaign`: charges that are settled when a job is over,
//!   by hand and by the thousand, and when nobody tells how it is.
//! - `observe`: what is let through that would be refused.
//! - `usage`: where backends tell what was used; `slices`: streams that outlive their holds.
//! - `routes`: the examples of docs/routes.md.
//! - `several`: three gateways on books in Redis; `elsewhere`: jobs that another one took.
//! - `service`: metrics, health, the drain, the demo.
//! - `streams`: what is left, broken off or read slowly, by the thousand.
//! - `time`, `reload`, `operations`, `secrets`: the clock, another configuration, the end, logs and
//!   metrics, and what no output may show.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that panics has failed"
)]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "what the other suites use")]
mod support;

mod burst;
mod compat;
mod crash;
mod deadlines;
mod documents;
mod early;
mod elsewhere;
mod failures;
mod fault_check;
mod fault_kinds;
mod fault_load;
mod faults;
mod framing;
mod headers;
mod holds;
mod hygiene;
mod idempotency;
mod identity;
mod job_answers;
mod job_campaign;
mod job_ends;
mod jobs;
mod observe;
mod operations;
mod pool;
mod price;
mod quoting;
mod races;
mod reload;
mod retries;
mod routes;
mod seats;
mod secrets;
mod service;
mod settle;
mod several;
mod sliced;
mod slices;
mod streams;
mod time;
mod upstreams;
mod usage;
