//! What an admin gives and takes.

use std::sync::Arc;

use super::super::table::Entry;
use super::{After, Session, Written, push};
use crate::books::{Adjusted, Adjustment, BooksError, Key, Once, bounded};
use crate::core::account::{Account, Balance, Grant};
use crate::core::amount::MAX_MICRO;
use crate::core::ids::ChargeId;
use crate::core::record::{self, Opening, Record};

impl Session {
    /// Adjusts, unless that was done under its key before.
    pub(super) async fn adjust_once(
        &self,
        adjustment: &Adjustment<'_>,
    ) -> Result<Adjusted, BooksError> {
        if self.adjusted_before(adjustment)? {
            let shared = &self.0.shared;
            // It may wait to be written yet, in whichever session it was asked.
            for session in shared.sessions() {
                session.flush()?;
            }
            shared.survives(shared.journal.written()).await?;
            let Account { key, grant, .. } = adjustment.account;
            return Ok(Adjusted::Before(shared.table.balance(key, grant)));
        }
        let begun = self.adjust_now(adjustment);
        if let Some(once) = once(adjustment) {
            // From here on it is the journal that decides what becomes of it.
            self.0.shared.once.end(&once, ChargeId(once.key), begun.is_ok());
        }
        let (entry, wait) = begun?;
        wait.wait().await?;
        let balance = entry.state.lock().balance;
        Ok(Adjusted::Done(balance))
    }

    /// Whether it was done under its key; else the key is its own from now on.
    fn adjusted_before(&self, adjustment: &Adjustment<'_>) -> Result<bool, BooksError> {
        let Some(once) = once(adjustment) else { return Ok(false) };
        let at = adjustment.now.as_microsecond();
        match self.0.shared.once.begin(&once, ChargeId(once.key), at)? {
            Some(known) if known.request != once.request => Err(BooksError::KeyReused),
            known => Ok(known.is_some()),
        }
    }

    /// Adjusts in memory what may be adjusted before the record is written.
    fn adjust_now(&self, adjustment: &Adjustment<'_>) -> Result<(Arc<Entry>, Written), BooksError> {
        let shared = &self.0.shared;
        shared.check_space()?;
        bounded(adjustment.memo)?;
        let account = adjustment.account;
        // Held until the record is queued, so that whoever closes cycles, and then writes what is
        // queued, either is seen here or finds the record.
        let mut queue = self.0.queue.lock();
        if account.key.is_closed(shared.table.closed()) {
            return Err(BooksError::Closed);
        }
        let entry = shared.table.get_or_open(account);
        let (grant, opening) = {
            let mut state = entry.state.lock();
            let newer = account.grant.version > state.version;
            let base = if newer { account.grant.base } else { state.balance.base };
            let adjusted = in_range(&Balance { base, ..state.balance }, adjustment.delta)?;
            if newer {
                state.balance.base = account.grant.base;
                state.version = account.grant.version;
                state.unwritten = true;
            }
            // Down at once, up only when it is written.
            if adjustment.delta < 0 {
                state.balance.adjusted = adjusted;
            }
            (Grant { base: state.balance.base, version: state.version }, state.unwritten)
        };
        let name = &entry.name;
        let opening = opening.then(|| Opening { key: entry.key, name, grant });
        let record = Record::Adjust(record::Adjust {
            at: adjustment.now.as_microsecond(),
            openings: opening.into_iter().collect(),
            key: entry.key,
            delta: adjustment.delta,
            memo: adjustment.memo,
        });
        push(&mut queue.frames, &record)?;
        queue.after.push(After::GrantWritten(Arc::clone(&entry), grant.version));
        if adjustment.delta > 0 {
            queue.after.push(After::Raise(Arc::clone(&entry), adjustment.delta));
        }
        let wait = Written { session: self.clone(), batch: queue.batch };
        drop(record);
        Ok((entry, wait))
    }
}

/// The key of an adjustment, with what it does.
fn once(adjustment: &Adjustment<'_>) -> Option<Once> {
    let Key { scope, key } = adjustment.key?;
    Some(Once { scope, key, request: adjustment.content() })
}

/// The sum of an account's adjustments after one more. What waits to be written is not in it, so
/// the bound is that of amounts, far below what the sum could hold. Nothing is added that leaves
/// more than an amount can be (f57); what was captured can be given back whatever the grant is.
fn in_range(before: &Balance, delta: i64) -> Result<i64, BooksError> {
    let sum = before.adjusted.checked_add(delta).ok_or(BooksError::Range)?;
    let largest = sum.unsigned_abs().max(delta.unsigned_abs());
    let left = i128::from(before.base) + i128::from(sum) - i128::from(before.captured);
    let too_much = delta > 0 && left > i128::from(MAX_MICRO);
    if too_much || largest > MAX_MICRO { Err(BooksError::Range) } else { Ok(sum) }
}
