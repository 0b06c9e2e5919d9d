//! The keys under which charges are made once (D35).

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;

use crate::books::{BooksError, KEPT_KEYS, KnownCharge, Once};
use crate::core::ids::ChargeId;

/// How many keys are remembered of one scope, and of all together: some 130 bytes each.
const MAX_SCOPE: u32 = 250_000;
const MAX_KEYS: usize = 1_000_000;

type Key = (u64, [u8; 16]);

/// Charges that are open or captured, by their keys. A leaf among the locks.
#[derive(Debug, Default)]
pub(super) struct OnceKeys(Mutex<Keys>);

#[derive(Debug, Default)]
struct Keys {
    charges: HashMap<Key, Kept>,
    scopes: HashMap<u64, u32>,
    /// By when they were held; also such as are free again.
    order: VecDeque<(i64, Key)>,
}

#[derive(Debug)]
struct Kept {
    at: i64,
    charge: KnownCharge,
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
        if let Some(kept) = keys.charges.get(&(once.scope, once.key)) {
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
        let before = now.saturating_sub(KEPT_KEYS.as_micros() as i64);
        let mut keys = self.0.lock();
        let mut open = Vec::new();
        while let Some((at, key)) = keys.order.pop_front_if(|(at, _)| *at < before) {
            match keys.charges.get(&key) {
                Some(kept) if kept.at == at && kept.charge.captured => keys.remove(&key),
                // Holds end before that; this one waits for its end to be recorded.
                Some(kept) if kept.at == at => open.push((at, key)),
                _ => {}
            }
        }
        for entry in open.into_iter().rev() {
            keys.order.push_front(entry);
        }
    }
}

impl Keys {
    fn put(&mut self, once: &Once, charge: KnownCharge, at: i64) {
        let key = (once.scope, once.key);
        if self.charges.insert(key, Kept { at, charge }).is_none() {
            *self.scopes.entry(once.scope).or_default() += 1;
        }
        self.order.push_back((at, key));
        if self.order.len() > 2 * self.charges.len() + 1024 {
            let charges = &self.charges;
            self.order.retain(|(at, key)| charges.get(key).is_some_and(|kept| kept.at == *at));
        }
    }

    fn remove(&mut self, key: &Key) {
        if self.charges.remove(key).is_none() {
            return;
        }
        if let Some(count) = self.scopes.get_mut(&key.0) {
            *count -= 1;
            if *count == 0 {
                self.scopes.remove(&key.0);
            }
        }
    }
}
