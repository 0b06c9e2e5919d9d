//! Tollgate: a metering gateway for generative features.

pub mod books;
pub mod config;
pub mod core;
pub mod directory;
pub mod sample_backend;
