//! An open hold, as a shard stores it.

use super::pack::{In, Malformed};
use super::wire::leg_kind;
use crate::books::{OpenCharge, OpenLeg};
use crate::core::account::{AccountKey, LegKind};
use crate::core::ids::ChargeId;
use crate::core::record::instant;

/// As far as anybody here wants to know.
#[derive(Debug)]
pub(super) struct StoredHold {
    /// The session that made it.
    pub(super) owner: String,
    pub(super) at: i64,
    /// When it ends by itself; zero where it does not.
    pub(super) expires: i64,
    pub(super) legs: Vec<(AccountKey, LegKind, u64)>,
    pub(super) memo: Box<[u8]>,
    pub(super) note: Box<[u8]>,
}

impl StoredHold {
    /// The charge that it is, with the names of its legs' accounts.
    pub(super) fn describe(
        self,
        charge: ChargeId,
        names: impl IntoIterator<Item = String>,
    ) -> OpenCharge {
        let legs = self.legs.into_iter().zip(names);
        let leg = |((key, kind, amount), account): ((AccountKey, LegKind, u64), String)| OpenLeg {
            account,
            account_kind: key.kind,
            kind,
            amount,
        };
        OpenCharge {
            charge,
            held_at: instant(self.at),
            memo: self.memo,
            legs: legs.map(leg).collect(),
            expires: (self.expires > 0).then(|| instant(self.expires)),
            note: self.note,
        }
    }

    pub(super) fn read(input: &mut In<'_>) -> Result<Self, Malformed> {
        // What comes behind the others is not there in every hold.
        let values = input.array()?;
        if !(11..=14).contains(&values) {
            return Err(Malformed(format!("a hold of {values} values")));
        }
        let owner = input.text()?.to_owned();
        let (at, expires) = (input.int()?, input.int()?);
        if !input.is_nothing() {
            input.tuple(2)?;
            let (_, _) = (input.bytes()?, input.bytes()?);
        }
        let count = input.array()?;
        let legs = (0..count / 3).map(|_| {
            let key = AccountKey::from_bytes(&input.fixed()?);
            let key = key.ok_or_else(|| Malformed("an account of no kind".into()))?;
            Ok((key, leg_kind(input.small()?)?, input.uint()?))
        });
        let legs = legs.collect::<Result<Vec<_>, Malformed>>()?;
        let named = input.array()?;
        for _ in 0..named / 6 {
            input.small()?;
            input.bytes()?;
            for _ in 0..4 {
                input.uint()?;
            }
        }
        input.small()?;
        let finish = input.array()?;
        let (_, _) = (input.small()?, input.bytes()?);
        if finish > 2 {
            for _ in 0..input.array()? {
                input.uint()?;
            }
        }
        input.small()?;
        let (memo, note) = (input.bytes()?.into(), input.bytes()?.into());
        if values > 11 && !input.is_nothing() {
            for _ in 0..input.array()? {
                input.bytes()?;
            }
        }
        if values > 12 && !input.is_nothing() {
            input.uint()?;
        }
        if values > 13 {
            input.flag()?;
        }
        Ok(Self { owner, at, expires, legs, memo, note })
    }
}
