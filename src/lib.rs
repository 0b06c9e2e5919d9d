//! Tollgate: a metering gateway for generative features.

pub mod core;
