//! The books, held to what they promise.
//!
//! - `archive`: the archive behind a journal that lost records, or has some that cannot be read.
//! - `archive_shards`: the archive behind shards on Redis, in a file and in PostgreSQL.
//! - `closed`: cycles that are long over.
//! - `engine`, `engine_redis`: the engines, as the suites need them.
//! - `contract`: the suite of the `Books` trait, generic over the engine.
//! - `folded`: what records add up to, and snapshots of it.
//! - `golden`: the golden tables of the decision, on every engine.
//! - `grants`: in which records a grant stands, and how far it can be changed.
//! - `journal`: space, marks and counts.
//! - `model`: a million random operations against a naive model, and fewer on Redis.
//! - `threads`: sessions on several threads at once, added up at rest.
//! - `told`: what the engine tells of itself.
//! - `damage`: torn tails, damage, newer versions, and repairs.
//! - `repairs`: what a repair says that it does.
//! - `prune`: journals whose beginning is deleted, and the archive behind them.
//! - `redis_again`: what Redis has lost is done again before anybody is told what is not there.
//! - `redis_carry`: books in Redis as a whole, where they move.
//! - `redis_cluster`, `redis_sentinel`: masters that are several, move and die.
//! - `redis_connect`: users, protocols, TLS, and starts that are refused.
//! - `redis_cycles`: cycles that are closed on Redis, half done, lost and late.
//! - `redis_faults`: a bad network between the engine and Redis.
//! - `redis_promises`: captures that Redis is silent to.
//! - `redis_late`: captures of charges that others have voided.
//! - `redis_names`: charges that other gateways find.
//! - `redis_owners`: gateways that are not heard of any more.
//! - `redis_replica`: changes that count only when a replica has them.
//! - `redis_repair`: shards that are built again from the archive, and books in Redis added up.
//! - `redis_states`: a Redis that is down, full, busy, emptied or damaged.
//! - `redis_together`: batches of several shards in one call.
//! - `redis_visit`: an address that leads to another Redis for a while.
//! - `recorded`: what several threads wrote, cut at every byte.
//! - `crash_points`: a journal cut at every place, recovered twice.
//!
//! `tests/planted-bugs` shows that the model test finds bugs.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed")]

/// Where what is shared with the rule's own tests finds it.
use tollgate::core;

mod archive;
mod archive_shards;
mod archive_switch;
mod closed;
#[path = "../support/cluster.rs"]
mod cluster;
mod contract;
mod crash_points;
mod damage;
mod engine;
mod engine_redis;
#[path = "../support/fault_proxy.rs"]
mod fault_proxy;
mod folded;
mod golden;
mod grants;
mod journal;
mod model;
#[path = "../support/postgres.rs"]
#[expect(dead_code, reason = "other tests lend and pause servers")]
mod postgres;
mod prune;
mod recorded;
mod redis_again;
mod redis_carry;
mod redis_cluster;
mod redis_connect;
mod redis_cycles;
mod redis_faults;
mod redis_late;
mod redis_names;
mod redis_owners;
mod redis_promises;
mod redis_rejoin;
mod redis_repair;
mod redis_replica;
mod redis_retired;
mod redis_sentinel;
#[path = "../support/redis.rs"]
#[expect(dead_code, reason = "the gateway's tests need more of it")]
mod redis_server;
mod redis_states;
mod redis_together;
mod redis_visit;
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

/// And as a user with no more rights than the documentation gives it.
mod redis_restricted {
    crate::contract::suite!(crate::redis_connect::Restricted);
}
