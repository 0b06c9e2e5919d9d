//! The command line: what is not a server.

pub mod check;
