//! Identities of accounts, by the ids in their names. The words keep kinds of owners apart.

use crate::core::account::Stem;

/// A licence's account: its org, id and bucket.
pub fn licence(org: &str, licence: &str, bucket: &str) -> Stem {
    Stem::new(&[org, "licence", licence, bucket])
}

/// What a user takes from a licence's bucket that is another's.
pub fn tally(org: &str, licence: &str, user: &str) -> Stem {
    Stem::new(&[org, "tally", licence, user])
}

/// A user's overdraft and draws.
pub fn user(org: &str, user: &str) -> Stem {
    Stem::new(&[org, "user", user])
}

/// A principal's draws.
pub fn key(org: &str, key: &str) -> Stem {
    Stem::new(&[org, "key", key])
}

/// A term's pool.
pub fn pool(org: &str, term: &str) -> Stem {
    Stem::new(&[org, "pool", term])
}

/// A term's overage.
pub fn overage(org: &str, term: &str) -> Stem {
    Stem::new(&[org, "overage", term])
}

/// A profile's overage cap in a term.
pub fn profile_overage(org: &str, term: &str, profile: &str) -> Stem {
    Stem::new(&[org, "overage", term, profile])
}
