//! The keys under which charges are made once (D35).

use std::collections::{BTreeSet, HashMap};

use parking_lot::Mutex;

use crate::books::{BooksError, KnownCharge, MAX_KEYS, MAX_SCOPE, Once, forgotten_before};
use crate::core::ids::ChargeId;

/// How many keys one sweep forgets: whoever holds under a key waits for it.
const MAX_SWEEP: usize = 10_000;

type Key = (u64, [u8; 16]);

/// Charges that are open or captured, by their keys. A leaf among the locks.
#[derive(Debug, Default)]
pub(super) struct OnceKeys(Mutex<Keys>);

#[derive(Debug, Default)]
struct Keys {
    charges: HashMap<Key, Kept>,
    scopes: HashMap<u64, u32>,
    /// All of them by when they were held.
    order: BTreeSet<(i64, Key)>,
}

#[derive(Debug)]
struct Kept {
    at: i64,
    charge: KnownCharge,
}

impl Kept {
    /// True for a charge that was captured and held before an instant. Others end before that; one
    /// that is not captured waits for its end to be recorded.
    fn is_over(&self, before: i64) -> bool {
        self.charge.captured && self.at < before
    }
}

impl OnceKeys {
    /// Gives a key to a charge, unless another one has it.
    pub(super) fn begin(
        &self,
        once: &Once,
        charge: ChargeId,
        at: i64,
    ) -> Result<Option<KnownCharge>, BooksError> {
        let mut keys = self.0.lock();
        if let Some(kept) = keys.charges.get(&(once.scope, once.key))
            && !kept.is_over(forgotten_before(at))
        {
            return Ok(Some(kept.charge));
        }
        let of_scope = keys.scopes.get(&once.scope).copied().unwrap_or(0);
        if of_scope >= MAX_SCOPE || keys.charges.len() >= MAX_KEYS {
            return Err(BooksError::TooManyKeys);
        }
        keys.put(once, KnownCharge { charge, request: once.request, captured: false }, at);
        Ok(None)
    }

    /// Puts a charge in that recovery found.
    pub(super) fn adopt(&self, once: &Once, charge: KnownCharge, at: i64) {
        self.0.lock().put(once, charge, at);
    }

    /// The charge that has a key.
    pub(super) fn find(&self, scope: u64, key: &[u8; 16]) -> Option<KnownCharge> {
        self.0.lock().charges.get(&(scope, *key)).map(|kept| kept.charge)
    }

    /// The end of a charge: a key that was not charged for is free again.
    pub(super) fn end(&self, once: &Once, charge: ChargeId, captured: bool) {
        let mut keys = self.0.lock();
        let key = (once.scope, once.key);
        match keys.charges.get_mut(&key) {
            Some(kept) if kept.charge.charge == charge && captured => kept.charge.captured = true,
            Some(kept) if kept.charge.charge == charge => keys.remove(&key),
            _ => {}
        }
    }

    /// Forgets captured charges that were held so long ago.
    pub(super) fn sweep(&self, now: i64) {
        let before = forgotten_before(now);
        let mut keys = self.0.lock();
        let old = keys.order.iter().take_while(|(at, _)| *at < before).map(|(_, key)| *key);
        let is_over = |key: &Key| keys.charges.get(key).is_some_and(|kept| kept.is_over(before));
        let over: Vec<Key> = old.filter(is_over).take(MAX_SWEEP).collect();
        for key in over {
            keys.remove(&key);
        }
    }
}

impl Keys {
    fn put(&mut self, once: &Once, charge: KnownCharge, at: i64) {
        let key = (once.scope, once.key);
        self.remove(&key);
        self.charges.insert(key, Kept { at, charge });
        self.order.insert((at, key));
        *self.scopes.entry(once.scope).or_default() += 1;
    }

    fn remove(&mut self, key: &Key) {
        let Some(kept) = self.charges.remove(key) else { return };
        self.order.remove(&(kept.at, *key));
        if let Some(count) = self.scopes.get_mut(&key.0) {
            *count -= 1;
            if *count == 0 {
                self.scopes.remove(&key.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::books::KEPT_KEYS;

    fn once(scope: u64, n: u64) -> Once {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&n.to_le_bytes());
        Once { scope, key, request: [0; 16] }
    }

    fn begin(keys: &OnceKeys, scope: u64, n: u64) -> Result<Option<KnownCharge>, BooksError> {
        keys.begin(&once(scope, n), ChargeId::v7(n, 0), 0)
    }

    fn sizes(keys: &OnceKeys) -> (usize, usize, usize) {
        let keys = keys.0.lock();
        (keys.charges.len(), keys.order.len(), keys.scopes.len())
    }

    #[test]
    fn d35_keys_have_a_bound_a_scope_and_one_over_all_and_leave_nothing() {
        let keys = OnceKeys::default();
        for scope in 0..4 {
            for n in 0..u64::from(MAX_SCOPE) {
                assert_eq!(begin(&keys, scope, n), Ok(None));
            }
            assert_eq!(begin(&keys, scope, u64::MAX), Err(BooksError::TooManyKeys));
        }
        assert_eq!(begin(&keys, 9, 0), Err(BooksError::TooManyKeys));
        // Who is known is told, and who ends makes room.
        assert!(matches!(begin(&keys, 0, 0), Ok(Some(_))));
        keys.end(&once(0, 7), ChargeId::v7(7, 0), false);
        assert_eq!(begin(&keys, 9, 0), Ok(None));
        assert_eq!(sizes(&keys), (MAX_KEYS, MAX_KEYS, 5));
        for n in 0..u64::from(MAX_SCOPE) {
            for scope in 0..4 {
                keys.end(&once(scope, n), ChargeId::v7(n, 0), n % 2 == 0);
            }
        }
        keys.end(&once(9, 0), ChargeId::v7(0, 0), true);
        assert_eq!(sizes(&keys), (MAX_KEYS / 2 + 1, MAX_KEYS / 2 + 1, 5));
        let over = KEPT_KEYS.as_micros() as i64 + 1;
        keys.sweep(over - 1);
        assert_eq!(sizes(&keys).0, MAX_KEYS / 2 + 1);
        // A bounded number at once.
        keys.sweep(over);
        assert_eq!(sizes(&keys).0, MAX_KEYS / 2 + 1 - MAX_SWEEP);
        for _ in 0..MAX_KEYS / MAX_SWEEP {
            keys.sweep(over);
        }
        assert_eq!(sizes(&keys), (0, 0, 0));
    }

    #[test]
    fn d35_who_ended_does_not_free_the_key_of_who_came_after() {
        let keys = OnceKeys::default();
        assert_eq!(begin(&keys, 1, 1), Ok(None));
        keys.end(&once(1, 1), ChargeId::v7(2, 0), false);
        keys.end(&once(1, 1), ChargeId::v7(2, 0), true);
        let known = keys.find(1, &once(1, 1).key).unwrap();
        assert_eq!((known.charge, known.captured), (ChargeId::v7(1, 0), false));
    }
}
