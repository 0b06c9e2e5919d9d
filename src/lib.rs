#![doc = include_str!("ARCHITECTURE.md")]

pub mod admin;
pub mod app;
pub mod books;
pub mod cli;
pub mod clock;
pub mod config;
pub mod core;
pub mod directory;
pub mod gateway;
pub mod gauges;
pub mod ledger;
pub mod ops;
pub mod sample_backend;
pub mod serve;
pub mod telemetry;
