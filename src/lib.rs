//! Tollgate: a metering gateway for generative features.

pub mod books;
pub mod cli;
pub mod config;
pub mod core;
pub mod directory;
pub mod ledger;
pub mod sample_backend;
