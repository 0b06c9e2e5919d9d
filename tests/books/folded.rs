//! What records add up to, and the snapshots of it: what contradicts what is before it, and what
//! is no whole snapshot, is refused.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tollgate::books::fold::{Fold, FoldError, FoldHold};
use tollgate::books::journal::{Damage, MAX_RECORD};
use tollgate::books::recover::{RecoverError, recover};
use tollgate::books::{InDoubt, snapshot};
use tollgate::core::account::{Account, Grant, LegKind};
use tollgate::core::record::{Close, Hold, Leg, Opening, Record};

use crate::engine::{account, balance, files, name, temporary};

/// Where the first entry of a snapshot begins: behind its magic and its version.
const HEAD: usize = 10;

fn hold<'a>(charge: u8, account: &Account<'_>, name: &'a str, grant: Grant) -> Record<'a> {
    Record::Hold(Hold {
        charge: [charge; 16],
        at: 0,
        in_doubt: InDoubt::Void,
        openings: [Opening { key: account.key, name, grant }].into_iter().collect(),
        legs: [Leg { key: account.key, kind: LegKind::Licence, amount: 3 }].into_iter().collect(),
        memo: b"",
    })
}

#[test]
fn d42_of_two_grants_of_one_version_the_first_is_folded() {
    let (mut fold, name) = (Fold::default(), name("a"));
    for (charge, base) in [(1, 10), (2, 20)] {
        let account = account("a", base, 1);
        fold.apply(&hold(charge, &account, &name, account.grant)).unwrap();
    }
    assert_eq!(fold.accounts[&account("a", 10, 1).key].balance, balance(10, 0, 6, 0));
}

#[test]
fn d06_a_cycle_is_not_closed_while_something_is_held_in_it() {
    let (mut fold, name, account) = (Fold::default(), name("a"), account("a", 10, 1));
    fold.apply(&hold(1, &account, &name, account.grant)).unwrap();
    let close = |below: &str| Record::Close(Close { at: 0, below: below.parse().unwrap() });
    assert_eq!(fold.clone().apply(&close("2026-11-01")), Ok(()));
    assert_eq!(fold.apply(&close("2026-11-02")), Err(FoldError::StillHeld(account.key)));
}

/// A snapshot with an account and a hold, whose memo is as long.
fn snapshot_of(memo: usize) -> (TempDir, PathBuf) {
    let (dir, name, account) = (temporary(), name("a"), account("a", 10, 1));
    let mut fold = Fold::default();
    fold.apply(&hold(1, &account, &name, account.grant)).unwrap();
    let hold: &mut FoldHold = fold.holds.get_mut(&[1; 16]).unwrap();
    hold.memo = vec![7; memo].into();
    snapshot::write(dir.path(), 0, &fold).unwrap();
    let path = files(dir.path()).remove(0);
    assert_eq!(snapshot::read(&path).unwrap(), fold);
    (dir, path)
}

/// Where each entry begins, and the end.
fn entries(bytes: &[u8]) -> Vec<usize> {
    let mut entries = vec![HEAD];
    while let Some(length) = bytes[entries[entries.len() - 1]..].first_chunk() {
        entries.push(entries[entries.len() - 1] + 8 + u32::from_le_bytes(*length) as usize);
    }
    entries
}

/// Why a file with these bytes is no snapshot, whoever looks at it.
#[track_caller]
fn refused(path: &Path, bytes: &[u8]) -> String {
    std::fs::write(path, bytes).unwrap();
    let why = snapshot::read(path).unwrap_err().to_string();
    assert_eq!(snapshot::check(path).unwrap_err().to_string(), why);
    why
}

#[test]
fn f43_what_is_no_whole_snapshot_is_refused() {
    let (_dir, path) = snapshot_of(10);
    let whole = std::fs::read(&path).unwrap();
    let entries = entries(&whole);
    assert_eq!((entries.len(), entries[4]), (5, whole.len()));
    let changed = |at: usize, to: u8| {
        let mut bytes = whole.clone();
        assert_ne!(bytes[at], to);
        bytes[at] = to;
        bytes
    };
    assert!(refused(&path, &changed(0, b't')).contains("not a snapshot of this version"));
    assert!(refused(&path, &changed(8, 0)).contains("not a snapshot of this version"));
    let last = whole.len() - 1;
    assert!(refused(&path, &changed(last, whole[last] ^ 1)).contains("checksum"));
    for end in [HEAD - 1, HEAD, entries[1], entries[3], last] {
        refused(&path, &whole[..end]);
    }
    // An entry is missing, and nothing else is wrong.
    for (from, to) in [(entries[0], entries[1]), (entries[1], entries[2])] {
        let without = [&whole[..from], &whole[to..]].concat();
        assert!(refused(&path, &without).contains("entries are missing"));
    }
}

/// A length is not believed before there is as much.
#[test]
fn f43_an_entry_is_as_long_as_a_record_can_be_and_no_longer() {
    let (_dir, path) = snapshot_of(MAX_RECORD / 2);
    let bytes = std::fs::read(&path).unwrap();
    let beside = entries(&bytes)[2] - entries(&bytes)[1] - 8 - MAX_RECORD / 2;
    let (_dir, path) = snapshot_of(MAX_RECORD - beside);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = entries(&bytes)[1];
    assert_eq!(bytes[at..at + 4], (MAX_RECORD as u32).to_le_bytes());
    bytes[at..at + 4].copy_from_slice(&(MAX_RECORD as u32 + 1).to_le_bytes());
    assert!(refused(&path, &bytes).contains("an entry is too long"));
}

#[test]
fn f39_a_snapshot_of_a_journal_that_is_gone_starts_nothing() {
    let dir = temporary();
    snapshot::write(dir.path(), 100, &Fold::default()).unwrap();
    let gone = recover(dir.path(), None).unwrap_err();
    assert!(matches!(gone, RecoverError::Damage(Damage::Gap { position: 100, .. })), "{gone:?}");
}
