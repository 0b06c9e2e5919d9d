//! Tollgate: a metering gateway for generative features.

pub mod books;
pub mod cli;
pub mod clock;
pub mod config;
pub mod core;
pub mod directory;
pub mod gateway;
pub mod ledger;
pub mod telemetry;
