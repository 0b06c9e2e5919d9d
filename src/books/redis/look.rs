//! What is looked at now and then, for lists and gauges. It is read on a connection of its own, in
//! pieces, so that no charge waits for it (f37).

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use jiff::Timestamp;
use parking_lot::Mutex;

use super::stored::StoredHold;
use super::{Engine, NAMES, OpenError};
use crate::books::{Books, OpenCharge};
use crate::core::account::{Account, AccountKey, Balance};
use crate::core::charge::State;
use crate::core::ids::ChargeId;
use crate::core::record::instant;

/// How many balances are read at once; a view has room for this many.
const BALANCES: usize = 32;

/// What was seen when it was last looked.
#[derive(Debug, Default)]
pub struct Seen {
    holds: Mutex<(usize, Option<Timestamp>)>,
    balances: Mutex<HashMap<AccountKey, Balance>>,
    failed: AtomicBool,
    /// Captured and voided.
    in_doubt: Mutex<[usize; 2]>,
}

impl Seen {
    /// How many holds were open, and since when the oldest was.
    pub fn open_holds(&self) -> (usize, Option<Timestamp>) {
        *self.holds.lock()
    }

    /// An account's balance, where it was one of those looked at.
    pub fn balance(&self, key: &AccountKey) -> Option<Balance> {
        self.balances.lock().get(key).copied()
    }

    /// How many holds were resolved at the start that this gateway had left open: captured, voided.
    pub fn in_doubt(&self) -> [usize; 2] {
        *self.in_doubt.lock()
    }

    pub(super) fn resolved(&self, state: State) {
        self.in_doubt.lock()[usize::from(state != State::Captured)] += 1;
    }

    /// True where Redis did not answer.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Relaxed)
    }
}

impl Engine {
    /// What was seen when it was last looked.
    pub fn seen(&self) -> &Seen {
        &self.shared.seen
    }

    /// Counts open holds.
    ///
    /// # Errors
    /// When Redis does not answer; what was seen before stays.
    pub async fn count(&self) -> Result<(), OpenError> {
        let counted = self.open_holds().await;
        self.shared.seen.failed.store(counted.is_err(), Relaxed);
        self.shared.seen.holds.lock().0 = counted?;
        Ok(())
    }

    /// Looks for the oldest hold, and at these accounts.
    ///
    /// # Errors
    /// When Redis does not answer; what was seen before stays.
    pub async fn look(&self, accounts: &[Account<'_>]) -> Result<(), OpenError> {
        let mut oldest = None::<i64>;
        for shard in 0..self.shared.shards {
            let mut at = 0;
            loop {
                let (next, holds) = self.some_holds(shard, at).await?;
                oldest = oldest.into_iter().chain(holds.iter().map(|(_, hold)| hold.at)).min();
                at = next;
                if at == 0 {
                    break;
                }
            }
        }
        self.shared.seen.holds.lock().1 = oldest.map(instant);
        let mut balances = HashMap::new();
        for some in accounts.chunks(BALANCES) {
            let view = self.session.balances(some).await?;
            let balance = |slot: usize| view.get(slot as u8).unwrap_or_default();
            balances.extend(some.iter().enumerate().map(|(slot, of)| (of.key, balance(slot))));
        }
        *self.shared.seen.balances.lock() = balances;
        Ok(())
    }

    /// Every open hold, in no order; one that is made or ends meanwhile is among them or not.
    ///
    /// # Errors
    /// When Redis does not answer, or not as expected.
    pub async fn list_open(&self) -> Result<Vec<OpenCharge>, OpenError> {
        self.list(|_, _| true).await
    }

    /// Open holds that outlive their process, and whose process is not there any more: jobs, which
    /// somebody else has to ask for now.
    ///
    /// # Errors
    /// When Redis does not answer, or not as expected.
    pub async fn orphans(&self) -> Result<Vec<OpenCharge>, OpenError> {
        let lasts = |hold: &StoredHold| hold.expires > 0;
        self.list(|hold, sessions| lasts(hold) && !sessions.contains(&hold.owner)).await
    }

    async fn list(
        &self,
        is_wanted: impl Fn(&StoredHold, &HashSet<String>) -> bool,
    ) -> Result<Vec<OpenCharge>, OpenError> {
        let mut open = HashMap::new();
        for shard in 0..self.shared.shards {
            let sessions = self.owners(shard).await?.into_iter().map(|owner| owner.name).collect();
            let mut at = 0;
            loop {
                let (next, mut holds) = self.some_holds(shard, at).await?;
                holds.retain(|(_, hold)| is_wanted(hold, &sessions));
                let names = self.names(shard, &holds).await?;
                for (charge, hold) in holds {
                    let name = |leg: &(AccountKey, _, _)| names.get(&leg.0).cloned();
                    let names: Vec<String> =
                        hold.legs.iter().map(|leg| name(leg).unwrap_or_default()).collect();
                    open.insert(charge, hold.describe(charge, names));
                }
                at = next;
                if at == 0 {
                    break;
                }
            }
        }
        Ok(open.into_values().collect())
    }

    /// The names of the accounts that holds took from.
    async fn names(
        &self,
        shard: usize,
        holds: &[(ChargeId, StoredHold)],
    ) -> Result<HashMap<AccountKey, String>, OpenError> {
        let keys = holds.iter().flat_map(|(_, hold)| hold.legs.iter().map(|leg| leg.0));
        let mut keys: Vec<AccountKey> = keys.collect();
        keys.sort_unstable();
        keys.dedup();
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let mut command = redis::cmd("HMGET");
        command.arg(&self.shared.keys(shard).0[NAMES]);
        for key in &keys {
            command.arg(&key.to_bytes());
        }
        let names: Vec<Option<String>> = self.read(&command).await?;
        let known = keys.into_iter().zip(names);
        Ok(known.filter_map(|(key, name)| Some((key, name?))).collect())
    }
}
