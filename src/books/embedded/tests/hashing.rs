//! How keys are spread: whoever finds all of them in one place is right, and slow.

use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault};

use super::super::open::ChargeHasher;
use super::super::table::KeyHasher;
use super::*;
use crate::core::cycle::Label;

/// A table looks for a place by the lowest bits, and compares the highest first.
fn is_spread(hashes: &[u64], least: usize) {
    let places = |hash: fn(&u64) -> u64| hashes.iter().map(hash).collect::<HashSet<_>>().len();
    assert_eq!(hashes.len(), 4096);
    let (low, high) = (places(|hash| hash & 0xfff), places(|hash| hash >> 57));
    assert!(low > least && high == 128, "{low} and {high} places");
}

#[test]
fn keys_of_accounts_are_spread_by_each_of_their_parts() {
    let hash = |stem, period, kind| {
        let period = Label::from_digits(period);
        BuildHasherDefault::<KeyHasher>::default().hash_one(AccountKey { stem, period, kind })
    };
    let stem = |n: u32| Stem::new(&["acme", &n.to_string()]);
    let stems = |n: u32| hash(stem(n), 20_261_101, AccountKind::Licence);
    is_spread(&(0..4096).map(stems).collect::<Vec<_>>(), 2_000);
    let periods = |n: u32| hash(stem(1), 20_000_000 + n, AccountKind::Licence);
    is_spread(&(0..4096).map(periods).collect::<Vec<_>>(), 2_000);
    let kinds = AccountKind::ADJUSTED.map(|kind| hash(stem(1), 20_261_101, kind));
    assert_eq!(HashSet::from(kinds).len(), kinds.len());
}

#[test]
fn ids_of_charges_are_spread_by_their_random_bits() {
    let hash = |n: u128| {
        // Random bits of one millisecond: those that an id made of a counter would not have.
        let random = n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        BuildHasherDefault::<ChargeHasher>::default().hash_one(ChargeId::v7(1, random).0)
    };
    // Two of the lowest bits are those of the version of ids: a quarter of the places.
    is_spread(&(0..4096).map(hash).collect::<Vec<_>>(), 900);
}
