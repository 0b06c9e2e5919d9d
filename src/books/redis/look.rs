//! What is looked at now and then, for lists and gauges. It is read on a connection of its own, in
//! pieces, so that no charge waits for it (f37).

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use jiff::Timestamp;
use parking_lot::Mutex;

use super::wire::StoredHold;
use super::{Engine, OpenError};
use crate::books::{Books, OpenCharge, OpenLeg};
use crate::core::account::{Account, AccountKey, Balance, LegKind};
use crate::core::charge::State;
use crate::core::ids::ChargeId;
use crate::core::record::instant;

/// How many holds are described at once.
const PIECE: usize = 500;
/// Where the names of accounts are among a shard's keys.
const NAMES: usize = 2;
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
            let see = |_, hold: StoredHold| {
                oldest = oldest.into_iter().chain([hold.at]).min();
            };
            self.each_hold(shard, see).await?;
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
            let mut holds = Vec::new();
            let see = |charge, hold: StoredHold| {
                if is_wanted(&hold, &sessions) {
                    holds.push((charge, hold));
                }
            };
            self.each_hold(shard, see).await?;
            for some in holds.chunks_mut(PIECE) {
                let names = self.names(shard, some).await?;
                for (charge, hold) in some {
                    open.insert(*charge, describe(*charge, hold, &names));
                }
            }
        }
        Ok(open.into_values().collect())
    }

    async fn each_hold(
        &self,
        shard: usize,
        mut see: impl FnMut(ChargeId, StoredHold),
    ) -> Result<(), OpenError> {
        let mut at = 0;
        loop {
            let (next, holds) = self.some_holds(shard, at).await?;
            holds.into_iter().for_each(|(charge, hold)| see(charge, hold));
            at = next;
            if at == 0 {
                return Ok(());
            }
        }
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

fn describe(
    charge: ChargeId,
    hold: &mut StoredHold,
    names: &HashMap<AccountKey, String>,
) -> OpenCharge {
    let leg = |(key, kind, amount): &(AccountKey, LegKind, u64)| OpenLeg {
        account: names.get(key).cloned().unwrap_or_default(),
        account_kind: key.kind,
        kind: *kind,
        amount: *amount,
    };
    OpenCharge {
        charge,
        held_at: instant(hold.at),
        memo: std::mem::take(&mut hold.memo),
        legs: hold.legs.iter().map(leg).collect(),
        expires: (hold.expires > 0).then(|| instant(hold.expires)),
        note: std::mem::take(&mut hold.note),
    }
}
