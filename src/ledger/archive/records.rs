//! What stands in a charge's row: the record of its hold, with what amended it, and the record of
//! its end.

use std::collections::HashMap;

use super::more;
use super::{ArchiveError, At, dead, unreadable};
use crate::books::redis::ledger::Name;
use crate::core::account::{AccountKey, LegKind};
use crate::core::charge::{ChargeDocument, ChargeRecord, LegLine, leg_documents};
use crate::core::ids::ChargeId;
use crate::core::note;
use crate::core::record::{Amend, Finish, Hold, Lasting, Leg, Record, Resolve, add_legs, instant};
use crate::sql::{Connection, Value, query};

/// The end of a charge, with what was noted then.
pub(super) type End<'a> = (Resolve<'a>, &'a [u8]);

/// The records of a charge from their bytes: its hold, and its end.
pub(super) fn decoded<'a>(
    hold: &'a [u8],
    resolution: Option<&'a [u8]>,
) -> Result<(Lasting<'a>, Option<End<'a>>), ArchiveError> {
    let hold = lasting(hold).ok_or_else(|| unreadable("an archived hold"))?;
    match resolution.map(Record::decode) {
        None => Ok((hold, None)),
        Some(Ok(Record::Resolve(resolve))) => Ok((hold, Some((resolve, &[])))),
        Some(Ok(Record::Finish(Finish { resolve, note, .. }))) => Ok((hold, Some((resolve, note)))),
        Some(_) => Err(unreadable("an archived resolution")),
    }
}

/// A hold in the form of one that there is more to.
pub(super) fn lasting(bytes: &[u8]) -> Option<Lasting<'_>> {
    match Record::decode(bytes) {
        Ok(Record::Hold(hold)) => Some(Lasting { hold, expires: None, once: None, note: &[] }),
        Ok(Record::Lasting(lasting)) => Some(lasting),
        _ => None,
    }
}

/// The record of a hold with what amends it.
pub(super) fn amended(hold: &[u8], amend: &Amend<'_>) -> Option<Vec<u8>> {
    let mut lasting = lasting(hold)?;
    add_legs(&mut lasting.hold.legs, &amend.legs);
    lasting.expires = amend.expires.or(lasting.expires);
    if let Some(note) = amend.note {
        lasting.note = note;
    }
    let mut bytes = Vec::new();
    Record::Lasting(lasting).encode(&mut bytes).ok()?;
    Some(bytes)
}

/// Amends the row of a charge. True when there is none, and the record was kept beside a hold that
/// cannot be read.
pub(super) async fn amend(
    db: &mut Connection,
    at: At,
    charge: &[u8],
    record: &[u8],
    names: Option<&[Name]>,
) -> Result<bool, sqlx::Error> {
    let select = query("SELECT hold, more FROM charges WHERE id = $1").bind(charge);
    let row: Option<(Vec<u8>, Option<Vec<u8>>)> = match select.fetch_optional(&mut *db).await? {
        Some(row) => Some((row.try_get(0)?, row.try_get(1)?)),
        None => None,
    };
    let next = match (&row, Record::decode(record)) {
        (Some((hold, more)), Ok(Record::Amend(amend))) => {
            let mut open = more.as_deref().and_then(more::open);
            if let Some(open) = &mut open {
                open.amend(&amend, names);
            }
            amended(hold, &amend).map(|hold| (hold, open.as_ref().map(more::encode)))
        }
        _ => None,
    };
    let Some((hold, more)) = next else { return dead::resolution(db, at, charge, record).await };
    let update = query("UPDATE charges SET hold = $1, more = $2 WHERE id = $3");
    update.bind(hold).bind(Value::Bytes(more)).bind(charge).execute(db).await?;
    Ok(false)
}

/// What a charge took in the end, or holds.
pub(super) fn kept(hold: &Hold<'_>, resolution: Option<&Resolve<'_>>) -> Vec<Leg> {
    let mut legs: Vec<Leg> = hold.legs.to_vec();
    let Some(resolve) = resolution else { return legs };
    for (index, leg) in legs.iter_mut().enumerate() {
        leg.amount = resolve.keep.get(index).copied().unwrap_or(0);
    }
    for extra in &resolve.extra {
        let same = |leg: &&mut Leg| leg.key == extra.key && leg.kind == extra.kind;
        match legs.iter_mut().find(same) {
            Some(leg) => leg.amount += extra.amount,
            None => legs.push(*extra),
        }
    }
    legs
}

/// The document of a charge from its records.
pub(super) fn document(
    lasting: &Lasting<'_>,
    resolution: Option<End<'_>>,
    names: &HashMap<AccountKey, String>,
) -> Result<ChargeDocument, String> {
    let hold = &lasting.hold;
    let memo = postcard::from_bytes(hold.memo).map_err(|error| error.to_string())?;
    let (resolution, end) = resolution.unzip();
    let legs = kept(hold, resolution.as_ref());
    let record = ChargeRecord {
        id: ChargeId(hold.charge),
        held_at: instant(hold.at),
        expires: lasting.expires.map(instant),
        memo,
        resolved: resolution.map(|resolve| (resolve.state, instant(resolve.at), resolve.memo)),
        notes: (note::decode(lasting.note), note::decode(end.unwrap_or_default())),
    };
    let lines: Vec<LegLine<'_>> = legs
        .iter()
        .filter(|leg| leg.amount > 0 && leg.kind != LegKind::Limit && leg.kind != LegKind::Cap)
        .map(|leg| LegLine {
            account: names.get(&leg.key).map_or("", String::as_str),
            account_kind: leg.key.kind,
            kind: leg.kind,
            amount: leg.amount,
        })
        .collect();
    Ok(record.document(leg_documents(&lines, record.covered())))
}
