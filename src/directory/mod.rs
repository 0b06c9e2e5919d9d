//! Who may do what: orgs, users, licences, profiles, rate cards and keys.

pub mod snapshot;
