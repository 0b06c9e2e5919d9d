//! Cycles that are long over: closed in the ledger of each shard, by the rule of the embedded books, and
//! then forgotten account by account.
//!
//! Any gateway does it, and several at once do no more than one: what is closed stays so, the library
//! looks at the open holds once more in the step that closes, and what one leaves is forgotten by
//! the next.

use std::sync::atomic::{AtomicU32, Ordering};

use jiff::Timestamp;

use super::pack::{In, Out};
use super::{ACCOUNTS, Engine, META, OpenError, Shared};
use crate::books::fold::{DAY, DAYS};
use crate::core::account::AccountKey;
use crate::core::cycle::Label;
use crate::core::ids::home_of;

/// The kinds of these operations; the record of a closing is of the first.
pub(super) const CLOSE: u8 = 11;
const FORGET: u8 = 12;
/// How many accounts are looked at at once.
const PAGE: usize = 1_000;
/// How many days before an open hold the cycle may have begun that it may still take from (D7).
const LONGEST: i64 = 47;

/// Fields of a hash, and their values.
type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// Below which label the cycles of a shard are closed, as it was seen last.
#[derive(Debug, Default)]
pub(super) struct Closed(AtomicU32);

impl Closed {
    pub(super) fn below(&self) -> Label {
        Label::from_digits(self.0.load(Ordering::Relaxed))
    }

    fn see(&self, below: Label) {
        self.0.store(below.digits(), Ordering::Relaxed);
    }
}

/// What a shard knows of cycles.
struct Cycles {
    closed: Label,
    /// Accounts of cycles before it are gone.
    forgotten: Label,
    /// The last days on which something was recorded.
    days: Vec<i32>,
}

impl Shared {
    /// Whether an account's cycle is closed, as it was seen last.
    pub(super) fn is_closed(&self, org: &str, key: &AccountKey) -> bool {
        key.is_closed(self.closed[self.shard_of(home_of(org))].below())
    }
}

impl Engine {
    /// Closes the cycles that are long over by the time of what is recorded (D6), and forgets their
    /// accounts. Nothing is ever taken from them again, whatever any clock says. Returns how many
    /// accounts went. To be called now and then, by whichever gateways there are, which also say again
    /// what they have to agree on.
    ///
    /// # Errors
    /// When Redis does not answer, or not as expected.
    pub async fn close_cycles(&self, now: Timestamp) -> Result<usize, OpenError> {
        self.says_timeouts().await?;
        let mut gone = 0;
        for shard in 0..self.shared.shards {
            gone += self.close_cycles_in(shard, now).await?;
        }
        Ok(gone)
    }

    async fn close_cycles_in(&self, shard: usize, now: Timestamp) -> Result<usize, OpenError> {
        let Cycles { mut closed, forgotten, days } = self.cycles(shard).await?;
        if let [first, ..] = days[..]
            && days.len() == DAYS
            && Label::of_day(first) > closed
        {
            let (open, not_before) = self.kept_open(shard, first).await?;
            let below = Label::of_day(first).min(open);
            let close = close(below, now.as_microsecond(), not_before, first);
            if below > closed && self.session.does(shard, close).await? {
                closed = below;
            }
        }
        self.shared.closed[shard].see(closed);
        if forgotten < closed { self.forget(shard, closed).await } else { Ok(0) }
    }

    /// Sees which cycles are closed.
    pub(super) async fn see_closed(&self) -> Result<(), OpenError> {
        for shard in 0..self.shared.shards {
            self.shared.closed[shard].see(self.cycles(shard).await?.closed);
        }
        Ok(())
    }

    async fn cycles(&self, shard: usize) -> Result<Cycles, OpenError> {
        let mut read = redis::cmd("HMGET");
        read.arg(&self.shared.keys(shard).0[META]).arg("closed").arg("forgotten").arg("days");
        let (closed, forgotten, bytes): (Option<u32>, Option<u32>, Option<Vec<u8>>) =
            self.read(&read).await?;
        let odd = |_| OpenError::Books(format!("shard {shard}: days that cannot be read"));
        let mut days = Vec::new();
        if let Some(bytes) = bytes {
            let mut input = In::new(&bytes);
            for _ in 0..input.array().map_err(odd)? {
                days.extend(i32::try_from(input.int().map_err(odd)?).ok());
            }
        }
        let label = |digits: Option<u32>| Label::from_digits(digits.unwrap_or_default());
        Ok(Cycles { closed: label(closed), forgotten: label(forgotten), days })
    }

    /// Before which label no open hold keeps cycles open, where the first of the last days is this one;
    /// and from when on holds are made that keep none.
    async fn kept_open(&self, shard: usize, first: i32) -> Result<(Label, i64), OpenError> {
        let (mut below, mut not_before) = (Label::MAX, (i64::from(first) + LONGEST) * DAY);
        let mut cursor = 0;
        loop {
            let (next, holds) = self.some_holds(shard, cursor).await?;
            for (_, hold) in holds {
                let began = Label::of_day((hold.at.div_euclid(DAY) - LONGEST) as i32);
                let ends = hold
                    .legs
                    .iter()
                    .map(|leg| leg.0)
                    .filter(|key| key.kind.ends_with_its_cycle() && key.period != Label::NONE);
                below = ends.map(|key| key.period).chain([began, below]).min().unwrap_or(below);
                not_before = not_before.min(hold.at);
            }
            cursor = next;
            if cursor == 0 {
                return Ok((below, not_before));
            }
        }
    }

    /// Forgets the accounts of cycles that are closed, some at once, and says how many there were.
    async fn forget(&self, shard: usize, below: Label) -> Result<usize, OpenError> {
        let (mut gone, mut cursor) = (0, 0_u64);
        loop {
            let mut scan = redis::cmd("HSCAN");
            scan.arg(&self.shared.keys(shard).0[ACCOUNTS]).arg(cursor).arg("COUNT").arg(PAGE);
            let (next, accounts): (u64, Fields) = self.read(&scan).await?;
            let key = |(key, _): (Vec<u8>, Vec<u8>)| AccountKey::from_bytes(&key.try_into().ok()?);
            let keys = accounts.into_iter().filter_map(key).filter(|key| key.is_closed(below));
            let keys: Vec<AccountKey> = keys.collect();
            cursor = next;
            for some in keys.chunks(PAGE) {
                self.session.does(shard, forget(below, some, false)).await?;
            }
            gone += keys.len();
            if cursor == 0 {
                self.session.does(shard, forget(below, &[], true)).await?;
                return Ok(gone);
            }
        }
    }
}

/// Closes the cycles before a label. `not_before`: holds that were made then or later keep only those
/// open whose accounts they name. `day`: the first one of those by which the cycles are over.
fn close(below: Label, at: i64, not_before: i64, day: i32) -> Vec<u8> {
    let mut out = Out::default();
    out.array(5).uint(CLOSE.into()).uint(below.digits().into()).int(at);
    out.int(not_before).int(day.into());
    out.into_bytes()
}

/// Forgets accounts of cycles before a label, which are closed; `is_last`: there are no others.
fn forget(below: Label, keys: &[AccountKey], is_last: bool) -> Vec<u8> {
    let mut out = Out::default();
    out.array(4).uint(FORGET.into()).uint(below.digits().into()).array(keys.len());
    for key in keys {
        out.bytes(&key.to_bytes());
    }
    out.flag(is_last);
    out.into_bytes()
}
