//! A journal whose beginning is deleted: what may go and what may not, and that whoever reads what
//! is left finds the same balances, or says what is missing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tollgate::books::embedded::{Engine as Opened, OpenError, Options};
use tollgate::books::prune::{Ages, candidates};
use tollgate::books::recover::recover;
use tollgate::books::repair::{Repair, RepairError};
use tollgate::books::{Ask, Books};
use tollgate::cli::ledger::verify;
use tollgate::core::account::{Account, Balance};
use tollgate::core::charge::{HoldMemo, OutcomeMemo, State};
use tollgate::core::cycle::Label;
use tollgate::core::price::Price;
use tollgate::ledger::archive::{Archive, Mark};

use crate::engine::{
    NOW, account, ask, balances, copy, done, files, id, resolution, run, take, temporary,
};

/// How many processes wrote, a day each, and a segment each.
const DAYS: u64 = 8;
/// After which of them there is a snapshot.
const FOLDED: [u64; 2] = [4, 6];

pub fn at_day(day: u64) -> Timestamp {
    NOW + SignedDuration::from_hours(24 * day as i64)
}

pub fn open(dir: &Path, day: u64) -> Result<Opened, OpenError> {
    Opened::open_with(dir, at_day(day), Options { segment_size: 1 << 20, ..Options::default() })
}

fn accounts() -> [Account<'static>; 2] {
    [account("a", 1_000, 1), account("b", 1_000, 1)]
}

/// What the gateway writes with a hold.
pub fn memo() -> Vec<u8> {
    memo_of("acme")
}

pub fn memo_of(org: &str) -> Vec<u8> {
    let memo = HoldMemo {
        org,
        user: Some("alice"),
        key: "studio",
        feature: "text-to-image",
        route: "/v1/images",
        measures: Vec::new(),
        price: Price::default(),
        pool: true,
        rate_card: "2026-11",
        cycle: Label::NONE,
        term: None,
        profile: None,
        request_id: None,
    };
    postcard::to_stdvec(&memo).unwrap()
}

pub fn hold(engine: &Opened, charge: u64, day: u64) {
    let memo = memo();
    let (accounts, post) = (accounts(), take(3, &[(charge % 2) as u8]));
    let asked = Ask { now: at_day(day), memo: &memo, ..ask(charge, &accounts, &post) };
    assert!(done(run(engine.session().hold(&asked)).unwrap()).is_some());
}

pub fn capture(engine: &Opened, charge: u64, day: u64) {
    let memo = OutcomeMemo::default();
    let captured = resolution(State::Captured, &[2], &memo);
    let captured = tollgate::books::Resolution { now: at_day(day), ..captured };
    run(engine.session().resolve(id(charge), &captured)).unwrap();
}

/// Books of some days, a segment and three charges each. A charge a day is still open when its
/// segment is sealed, and resolved in the next.
pub fn books() -> TempDir {
    let dir = temporary();
    for day in 0..DAYS {
        let engine = open(dir.path(), day).unwrap();
        if FOLDED.contains(&day) {
            assert!(engine.snapshot(NOW).unwrap());
        }
        for charge in day * 10..day * 10 + 3 {
            hold(&engine, charge, day);
            if charge % 10 > 0 {
                capture(&engine, charge, day);
            }
        }
    }
    dir
}

pub fn with_extension(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let is = |path: &PathBuf| path.extension().is_some_and(|e| e == extension);
    files(dir).into_iter().filter(is).collect()
}

fn start(path: &Path) -> u64 {
    path.file_stem().unwrap().to_str().unwrap().parse().unwrap()
}

/// What a start finds in a copy, whose ledger adds up and that needs no repair.
#[track_caller]
fn found(dir: &Path) -> BTreeMap<String, Balance> {
    let copied = temporary();
    copy(dir, copied.path());
    assert_eq!(verify(copied.path()).unwrap().findings(), []);
    assert!(Repair::plan(copied.path()).unwrap().is_needless());
    let engine = open(copied.path(), DAYS).unwrap();
    let found = balances(&engine);
    hold(&engine, 1_000, DAYS);
    drop(engine);
    assert_eq!(verify(copied.path()).unwrap().findings(), []);
    found
}

/// A copy without all that may go.
pub fn pruned() -> (TempDir, BTreeMap<String, Balance>) {
    let dir = books();
    let expected = found(dir.path());
    let engine = open(dir.path(), DAYS).unwrap();
    assert!(engine.prune(at_day(100), engine.written()).unwrap() > 1);
    (dir, expected)
}

#[test]
fn f39_only_what_is_old_in_two_snapshots_and_archived_is_deleted() {
    let dir = books();
    let all = with_extension(dir.path(), "journal");
    let oldest = start(&with_extension(dir.path(), "snapshot")[0]);
    let engine = open(dir.path(), DAYS).unwrap();
    let end = engine.written();
    assert!(oldest > start(&all[2]), "nothing to be deleted");

    // Not old enough: a segment's newest record counts.
    assert_eq!(engine.prunable(at_day(0)).unwrap(), None);
    assert_eq!(engine.prune(at_day(0), end).unwrap(), 0);
    // Not archived: also not when it lacks its last byte.
    assert_eq!(engine.prune(at_day(100), 0).unwrap(), 0);
    assert_eq!(engine.prune(at_day(100), start(&all[1]) - 1).unwrap(), 0);
    assert_eq!(with_extension(dir.path(), "journal").len(), all.len() + 1);

    assert_eq!(engine.prune(at_day(1), end).unwrap(), 1);
    assert_eq!(with_extension(dir.path(), "journal")[0], all[1]);
    assert_eq!(engine.prune(at_day(100), start(&all[2])).unwrap(), 1);
    assert_eq!(engine.prunable(at_day(100)).unwrap(), Some(oldest));
    // And never what the oldest snapshot does not have.
    while engine.prune(at_day(100), end).unwrap() > 0 {}
    let left = with_extension(dir.path(), "journal");
    assert_eq!(start(&left[0]), oldest);
    assert_eq!(engine.prunable(at_day(100)).unwrap(), None);
    // A newer snapshot takes the oldest one's place, and more may go.
    assert!(engine.snapshot(NOW).unwrap());
    assert!(engine.prune(at_day(100), end).unwrap() > 0);
}

#[test]
fn f39_nothing_is_deleted_while_a_snapshot_is_missing_or_damaged() {
    let whole = books();
    for which in 0..2 {
        for missing in [true, false] {
            let dir = temporary();
            copy(whole.path(), dir.path());
            let engine = open(dir.path(), DAYS).unwrap();
            let snapshot = &with_extension(dir.path(), "snapshot")[which];
            if missing {
                std::fs::remove_file(snapshot).unwrap();
            } else {
                let mut bytes = std::fs::read(snapshot).unwrap();
                bytes[40] ^= 1;
                std::fs::write(snapshot, bytes).unwrap();
            }
            let before = files(dir.path());
            assert_ne!(engine.prune(at_day(100), engine.written()).ok(), Some(1));
            assert_eq!(files(dir.path()), before, "snapshot {which}, missing: {missing}");
        }
    }
}

#[test]
fn f39_a_damaged_snapshot_pushes_no_whole_one_out() {
    let (dir, _) = pruned();
    let expected = found(dir.path());
    let damage = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[40] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    let snapshots = with_extension(dir.path(), "snapshot");
    damage(&snapshots[1]);
    let engine = open(dir.path(), DAYS).unwrap();
    assert!(engine.snapshot(NOW).unwrap());
    let after = with_extension(dir.path(), "snapshot");
    assert_eq!(after[..2], snapshots);
    // The third is lost too: the first still starts the books.
    let copied = temporary();
    copy(dir.path(), copied.path());
    damage(&with_extension(copied.path(), "snapshot")[2]);
    assert_eq!(balances(&open(copied.path(), DAYS).unwrap()), expected);
    // With two whole ones behind it the damaged one goes, and segments go again.
    drop(engine);
    let engine = open(dir.path(), DAYS).unwrap();
    hold(&engine, 2_000, DAYS);
    drop(engine);
    let engine = open(dir.path(), DAYS).unwrap();
    assert!(engine.snapshot(NOW).unwrap());
    assert_eq!(with_extension(dir.path(), "snapshot")[0], after[2]);
    assert!(engine.prune(at_day(100), engine.written()).unwrap() > 0);
}

#[test]
fn f39_damage_is_not_deleted() {
    let dir = books();
    let first = &with_extension(dir.path(), "journal")[0];
    let mut bytes = std::fs::read(first).unwrap();
    bytes[60] ^= 1;
    std::fs::write(first, bytes).unwrap();
    let engine = open(dir.path(), DAYS).unwrap();
    engine.prunable(at_day(100)).unwrap_err();
    engine.prune(at_day(100), engine.written()).unwrap_err();
    assert!(first.exists());
}

#[test]
fn f05_killed_between_any_two_deletions_the_next_start_finds_the_same() {
    let dir = books();
    let expected = found(dir.path());
    let engine = open(dir.path(), DAYS).unwrap();
    let ends: Vec<u64> =
        with_extension(dir.path(), "journal").iter().skip(1).map(|path| start(path)).collect();
    let mut steps = 0;
    for end in ends {
        steps += engine.prune(at_day(100), end).unwrap();
        let killed = temporary();
        copy(dir.path(), killed.path());
        assert_eq!(found(killed.path()), expected, "after {steps}");
        // The newest snapshot is lost as well: the one before it and the records behind it do.
        let newest = with_extension(killed.path(), "snapshot").pop().unwrap();
        std::fs::remove_file(newest).unwrap();
        assert_eq!(found(killed.path()), expected, "after {steps}, without the newest snapshot");
    }
    assert!(steps >= 3, "{steps}");
}

#[test]
fn f39_a_hole_in_what_is_left_is_damage_as_before() {
    let (whole, _) = pruned();
    let journals = with_extension(whole.path(), "journal");
    let newest = start(&with_extension(whole.path(), "snapshot")[1]);
    let held = journals.iter().rev().skip(2).take_while(|path| start(path) >= newest);
    let mut tried = 0;
    for path in held {
        let dir = temporary();
        copy(whole.path(), dir.path());
        std::fs::remove_file(dir.path().join(path.file_name().unwrap())).unwrap();
        assert!(matches!(open(dir.path(), DAYS), Err(OpenError::Recover(_))), "{path:?}");
        tried += 1;
    }
    assert!(tried > 0);
    // Neither a beginning nor a snapshot: nothing is guessed.
    for snapshot in with_extension(whole.path(), "snapshot") {
        std::fs::remove_file(snapshot).unwrap();
    }
    assert!(matches!(open(whole.path(), DAYS), Err(OpenError::Recover(_))));
    assert!(recover(whole.path(), None).is_err());
    assert!(matches!(Repair::plan(whole.path()), Err(RepairError::NoBase(_))));
}

#[test]
fn d37_a_ledger_without_its_beginning_adds_up_and_says_where_it_begins() {
    let (dir, expected) = pruned();
    assert_eq!(found(dir.path()), expected);
    let verified = verify(dir.path()).unwrap();
    assert_eq!(verified.findings(), []);
    let first = start(&with_extension(dir.path(), "snapshot")[0]);
    assert_eq!(verified.totals().begins, first);
    assert!(first > 0);
}

pub async fn archive(data: &TempDir, dir: &Path, engine: &Opened) -> Archive {
    let recovered = engine.recovery().position;
    let archive = Archive::open(data.path(), dir, recovered, engine.records_written()).await;
    let archive = archive.unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    archive.follow(stop).await.unwrap();
    archive
}

#[test]
fn d37_an_archive_behind_a_journal_without_its_beginning_has_all_that_there_is() {
    let (dir, data) = (books(), temporary());
    run(async {
        let engine = open(dir.path(), DAYS).unwrap();
        let archived = archive(&data, dir.path(), &engine).await;
        let end = engine.written();
        let charges: Vec<u64> = (0..DAYS).flat_map(|day| day * 10..day * 10 + 3).collect();
        let mut before = BTreeMap::new();
        for charge in &charges {
            let found = archived.charge(id(*charge), Mark::journal(end)).await.unwrap().unwrap();
            assert_ne!(found.state, State::Held, "{charge}");
            before.insert(*charge, serde_json::to_string(&found).unwrap());
        }
        let kept = archived.kept().await.unwrap();
        assert_eq!(kept, end);
        assert!(engine.prune(at_day(100), kept).unwrap() > 1);
        archived.close().await;
        drop(engine);

        // The archive goes on where it was, and lacks nothing.
        let engine = open(dir.path(), DAYS).unwrap();
        let again = archive(&data, dir.path(), &engine).await;
        for (charge, document) in &before {
            let found = again.charge(id(*charge), Mark::journal(end)).await.unwrap().unwrap();
            assert_eq!(&serde_json::to_string(&found).unwrap(), document);
        }
        again.close().await;
        drop(engine);

        // Removed, it is built again from what there is: what was deleted is missing, and what is
        // there is as it was, with the names of accounts that only deleted records had.
        let data = temporary();
        let engine = open(dir.path(), DAYS).unwrap();
        let rebuilt = archive(&data, dir.path(), &engine).await;
        let first = start(&with_extension(dir.path(), "journal")[0]);
        let mut missing = 0;
        for (charge, document) in &before {
            match rebuilt.charge(id(*charge), Mark::journal(end)).await.unwrap() {
                None => missing += 1,
                Some(found) => assert_eq!(&serde_json::to_string(&found).unwrap(), document),
            }
        }
        assert!(missing > 0 && missing < before.len(), "{missing}");
        // One was open when the oldest snapshot was made, and its hold is deleted.
        let open_then = FOLDED[0] * 10 - 10;
        assert!(rebuilt.charge(id(open_then), Mark::journal(end)).await.unwrap().is_some());
        assert_eq!(rebuilt.position(), end);
        assert_eq!(rebuilt.begins().await.unwrap(), first);
        rebuilt.close().await;
    });
}

/// A segment is read once, and forgotten with its file.
#[test]
fn what_is_known_of_segments_is_kept_as_long_as_they_are() {
    let dir = books();
    let segments = with_extension(dir.path(), "journal");
    let mut ages = Ages::new();
    let found = candidates(dir.path(), at_day(100), &mut ages).unwrap();
    let starts: Vec<u64> = found.iter().map(|(segment, _)| segment.start).collect();
    assert!(starts.len() > 1);
    assert_eq!(ages.keys().copied().collect::<Vec<_>>(), starts);
    // Who looks at what is known does not read again.
    ages.insert(starts[0], Some(at_day(200).as_microsecond()));
    assert!(candidates(dir.path(), at_day(100), &mut ages).unwrap().is_empty());
    std::fs::remove_file(&segments[0]).unwrap();
    let left = candidates(dir.path(), at_day(100), &mut ages).unwrap().len();
    assert_eq!((left, ages.keys().next()), (starts.len() - 1, Some(&starts[1])));
}
