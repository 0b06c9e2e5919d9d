//! The self-check (D37): do balances in memory equal what the records add up to?
//!
//! Charges go on while it runs, and memory is ahead of the file by what waits to be written. So
//! an account counts as mismatched only when two checks, [`CONFIRM`] ticks apart, find it with the
//! same two different balances: whatever waited then has long been written.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::books::embedded::Engine;
use crate::books::fold::Fold;
use crate::books::recover::{RecoverError, recover};
use crate::core::account::{AccountKey, Balance};

/// How many ticks of the snapshot thread (10 s) lie between checks: a check reads what was
/// written since the newest snapshot.
const EVERY: u32 = 60;
/// And before one that confirms what the last one suspects.
const CONFIRM: u32 = 1;
/// At most so many accounts are named in the log.
const NAMED: usize = 20;

/// Compares memory with the records, now and then.
#[derive(Debug)]
pub struct SelfCheck {
    ticks: u32,
    /// In memory, by the records.
    suspects: HashMap<AccountKey, (Balance, Balance)>,
    /// How many accounts differ; read by scrapes.
    mismatched: Arc<AtomicUsize>,
}

impl SelfCheck {
    /// A check that tells its result to `mismatched`.
    pub fn new(mismatched: Arc<AtomicUsize>) -> Self {
        Self { ticks: EVERY - 6, suspects: HashMap::new(), mismatched }
    }

    /// Counts a tick; checks when it is time.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn tick(&mut self, engine: &Engine) -> Result<(), RecoverError> {
        self.ticks += 1;
        if self.ticks < if self.suspects.is_empty() { EVERY } else { CONFIRM } {
            return Ok(());
        }
        self.ticks = 0;
        let fold = recover(engine.dir(), Some(engine.written()))?.fold;
        let mut memory = Vec::new();
        engine.for_each_balance(|key, _, balance| memory.push((key, balance)));
        self.compare(&fold, memory.into_iter());
        Ok(())
    }

    fn compare(&mut self, fold: &Fold, memory: impl Iterator<Item = (AccountKey, Balance)>) {
        // A raised grant is recorded with the next debit that relies on it, so `base` may be
        // ahead for as long as nobody pays from the account.
        let differs = |memory: &Balance, recorded: &Balance| {
            (memory.held, memory.captured, memory.adjusted)
                != (recorded.held, recorded.captured, recorded.adjusted)
        };
        let found = memory.filter_map(|(key, balance)| {
            // What is closed is forgotten by both, each at its own time.
            if key.is_closed(fold.closed) {
                return None;
            }
            let recorded = fold.accounts.get(&key).map(|account| account.balance);
            let recorded = recorded.unwrap_or_default();
            differs(&balance, &recorded).then_some((key, (balance, recorded)))
        });
        let suspects: HashMap<_, _> = found.collect();
        let confirmed = suspects.iter().filter(|(key, pair)| self.suspects.get(key) == Some(pair));
        let confirmed: Vec<_> = confirmed.collect();
        if !self.suspects.is_empty() || suspects.is_empty() {
            self.mismatched.store(confirmed.len(), Relaxed);
        }
        for (key, (memory, recorded)) in confirmed.iter().take(NAMED) {
            let account = fold.accounts.get(key).map_or("-", |account| &*account.name);
            tracing::error!(
                account,
                ?memory,
                ?recorded,
                "a balance differs from what its records add up to"
            );
        }
        // What is confirmed is told once, and looked at again with the next check.
        self.suspects = if self.suspects.is_empty() { suspects } else { HashMap::new() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::books::fold::FoldAccount;
    use crate::core::account::{AccountKind, Stem};

    fn balance(captured: u64) -> Balance {
        Balance { base: 100, adjusted: 0, held: 0, captured }
    }

    #[test]
    fn d37_a_balance_that_stays_different_is_counted_and_one_in_flight_is_not() {
        let period = "2026-11-01".parse().unwrap();
        let key = |name| AccountKey { stem: Stem::new(&[name]), period, kind: AccountKind::Pool };
        let (busy, wrong, fine) = (key("busy"), key("wrong"), key("fine"));
        let mut fold = Fold::default();
        for key in [busy, wrong, fine] {
            let account =
                FoldAccount { name: "a".into(), balance: balance(5), version: Default::default() };
            fold.accounts.insert(key, account);
        }
        let mismatched = Arc::new(AtomicUsize::new(0));
        let mut check = SelfCheck::new(Arc::clone(&mismatched));
        let mut see = |busy_has: u64, wrong_has: u64| {
            let memory =
                [(busy, balance(busy_has)), (wrong, balance(wrong_has)), (fine, balance(5))];
            check.compare(&fold, memory.into_iter());
            mismatched.load(Relaxed)
        };
        assert_eq!(see(6, 7), 0, "suspected");
        assert_eq!(see(8, 7), 1, "confirmed");
        assert_eq!(see(9, 5), 1, "the next round begins");
        assert_eq!(see(10, 5), 0, "it is right again");
    }
}
