//! What the records of a journal come to, beside what the books make of them.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Context;

use crate::books::fold::Fold;
use crate::books::journal::{Cursor, Next, Segments};
use crate::books::{recover, snapshot};
use crate::core::account::{AccountKey, Balance};
use crate::core::record::Record;
use crate::ledger::verify::Verifier;

/// Adds up a journal, and compares with every snapshot on the way and with what recovery would
/// start from at its end. It begins with the first record, or where the first are not kept any
/// more with the oldest snapshot.
///
/// # Errors
/// When the journal is damaged or not there.
pub fn verify(dir: &Path) -> anyhow::Result<Verifier> {
    anyhow::ensure!(dir.is_dir(), "{}: no books here; check data.dir", dir.display());
    loop {
        let before = beginning(dir)?;
        let verified = add_up(dir);
        // A running gateway may have deleted what was about to be read.
        if verified.is_ok() || beginning(dir)? == before {
            return verified;
        }
    }
}

/// The oldest segment and the oldest snapshot.
fn beginning(dir: &Path) -> anyhow::Result<(Option<u64>, Option<u64>)> {
    let segment = Segments::list(dir)?.as_slice().first().map(|segment| segment.start);
    Ok((segment, snapshot::list(dir)?.first().map(|(at, _)| *at)))
}

fn add_up(dir: &Path) -> anyhow::Result<Verifier> {
    let mut verifier = Verifier::default();
    let first = Segments::list(dir)?.as_slice().first().map_or(0, |segment| segment.start);
    let mut snapshots = snapshot::list(dir)?.into_iter().filter(|(at, _)| *at >= first).peekable();
    let mut begins = first;
    if first > 0 {
        let missing =
            || format!("{}: records before {first} and a snapshot of them", dir.display());
        let (at, path) = snapshots.next().with_context(missing)?;
        begin(&mut verifier, &snapshot::read(&path)?);
        begins = at;
        verifier.begin_at(at);
    }
    let mut cursor = Cursor::new(dir, begins);
    loop {
        while let Some((_, path)) = snapshots.next_if(|(at, _)| *at == cursor.position()) {
            let who = format!("snapshot {}", path.display());
            match snapshot::read(&path) {
                Ok(fold) => verifier.compare(&who, &stated(fold)),
                // A running gateway has a newer one and has removed it meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => verifier.find(who, &format!("cannot be read: {error}")),
            }
        }
        if cursor.next()? == Next::Record {
            verifier.see(&Record::decode(&cursor.record)?);
        } else {
            // Damage, or the end: what is being written now is after it.
            cursor.tail()?;
            break;
        }
    }
    let recovered = recover::recover(dir, Some(cursor.position()))?;
    verifier.compare("the books", &stated(recovered.fold));
    Ok(verifier)
}

fn begin(verifier: &mut Verifier, fold: &Fold) {
    verifier.begin_closed(fold.closed);
    for (key, account) in &fold.accounts {
        verifier.begin_account(*key, &account.name, account.balance, account.version);
    }
    for (charge, hold) in &fold.holds {
        verifier.begin_hold(*charge, &hold.legs);
    }
}

fn stated(fold: Fold) -> HashMap<AccountKey, (String, Balance)> {
    let accounts = fold.accounts.into_iter();
    accounts.map(|(key, account)| (key, (account.name.into_string(), account.balance))).collect()
}
