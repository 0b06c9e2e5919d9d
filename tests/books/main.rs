//! The books, held to what they promise.
//!
//! - `archive`: the archive behind a journal that lost records, or has some that cannot be read.
//! - `archive_shards`: the archive behind shards on Redis, in a file and in PostgreSQL.
//! - `closed`: cycles that are long over.
//! - `engine`, `engine_redis`: the engines, as the suites need them.
//! - `contract`: the suite of the `Books` trait, generic over the engine.
//! - `folded`: what records add up to, and snapshots of it.
//! - `grants`: in which records a grant stands, and how far it can be changed.
//! - `journal`: space, marks and counts.
//! - `model`: a million random operations against a naive model.
//! - `threads`: sessions on several threads at once, added up at rest.
//! - `told`: what the engine tells of itself.
//! - `damage`: torn tails, damage, newer versions, and repairs.
//! - `repairs`: what a repair says that it does.
//! - `prune`: journals whose beginning is deleted, and the archive behind them.
//! - `redis_carry`: books in Redis as a whole, where they move.
//! - `redis_faults`: a bad network between the engine and Redis.
//! - `redis_late`: captures of charges that others have voided.
//! - `redis_owners`: gateways that are not heard of any more.
//! - `redis_states`: a Redis that is down, full, busy, emptied or damaged.
//! - `recorded`: what several threads wrote, cut at every byte.
//! - `crash_points`: a journal cut at every place, recovered twice.
//!
//! `tests/planted-bugs` shows that the model test finds bugs.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed")]

mod archive;
mod archive_shards;
mod closed;
mod contract;
mod crash_points;
mod damage;
mod engine;
mod engine_redis;
#[path = "../support/fault_proxy.rs"]
mod fault_proxy;
mod folded;
mod grants;
mod journal;
mod model;
#[path = "../support/postgres.rs"]
#[expect(dead_code, reason = "other tests lend and pause servers")]
mod postgres;
mod prune;
mod recorded;
mod redis_carry;
mod redis_faults;
mod redis_late;
mod redis_owners;
mod redis_rejoin;
#[path = "../support/redis.rs"]
#[expect(dead_code, reason = "the gateway's tests need more of it")]
mod redis_server;
mod redis_states;
mod repairs;
mod threads;
mod told;

/// The suite of the contract, once for each engine.
mod embedded {
    crate::contract::suite!(crate::engine::Embedded);
}

/// The same on a real Redis.
mod redis {
    crate::contract::suite!(crate::engine_redis::OnRedis);
}
