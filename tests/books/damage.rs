//! Journals that a power failure, a disk or a hand has changed: what is cut, what is refused,
//! and what a repair keeps.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tollgate::books::embedded::{Engine as Opened, OpenError, Options};
use tollgate::books::journal::{Damage, Frames, Journal};
use tollgate::books::recover::RecoverError;
use tollgate::books::repair::{Repair, RepairError};
use tollgate::books::{Adjustment, Books, Durability};
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::core::record::Record;

use crate::engine::{
    NOW, account, ask, balances, copy, done, files, id, name, resolution, run, take, temporary,
};

const HEADER: usize = 24;
const SEGMENT: u64 = 1 << 16;

/// Books with several segments and a snapshot in the middle, closed by the death of their
/// process: every process begins a segment.
pub fn books() -> TempDir {
    kept(Durability::Process)
}

fn kept(durability: Durability) -> TempDir {
    let dir = temporary();
    for process in 0..6 {
        let options = Options { segment_size: SEGMENT, durability };
        let engine = Opened::open_with(dir.path(), NOW, options).unwrap();
        if process == 3 {
            assert!(engine.snapshot(NOW).unwrap());
        }
        write(&engine, process * 10..process * 10 + 3);
    }
    assert_eq!(written(dir.path()).len(), 6);
    dir
}

fn open(dir: &Path) -> Result<Opened, OpenError> {
    Opened::open_with(dir, NOW, Options { segment_size: SEGMENT, ..Options::default() })
}

fn write(engine: &Opened, charges: std::ops::Range<u64>) {
    let session = engine.session();
    let accounts = [account("a", 1_000, 1), account("b", 1_000, 1)];
    let memo = OutcomeMemo::default();
    run(async {
        for charge in charges {
            let post = take(3, &[(charge % 2) as u8]);
            assert!(done(session.hold(&ask(charge, &accounts, &post)).await.unwrap()).is_some());
            let captured = resolution(State::Captured, &[2], &memo);
            session.resolve(id(charge), &captured).await.unwrap();
        }
        let adjustment =
            Adjustment { key: None, account: &accounts[0], delta: 5, now: NOW, memo: b"more" };
        session.adjust(&adjustment).await.unwrap();
    });
}

pub fn journals(dir: &Path) -> Vec<PathBuf> {
    let is_journal = |path: &PathBuf| path.extension().is_some_and(|e| e == "journal");
    files(dir).into_iter().filter(is_journal).collect()
}

/// Segments that hold records, oldest first: every engine begins one more.
pub fn written(dir: &Path) -> Vec<PathBuf> {
    let holds = |path: &PathBuf| std::fs::metadata(path).unwrap().len() > HEADER as u64;
    journals(dir).into_iter().filter(holds).collect()
}

/// Where the frames of a segment begin, and where the last one ends.
pub fn frames(path: &Path) -> Vec<usize> {
    let bytes = std::fs::read(path).unwrap();
    let mut at = vec![HEADER];
    while let Some(length) = bytes.get(at[at.len() - 1]..).and_then(|rest| rest.first_chunk()) {
        at.push(at[at.len() - 1] + 8 + u32::from_le_bytes(*length) as usize);
    }
    at
}

fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let plain = files(dir).into_iter().filter(|path| path.is_file());
    plain.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

pub fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// Opens what must not be opened, and sees that nothing was changed. Returns why.
#[track_caller]
fn refused(dir: &Path) -> (Damage, String) {
    let before = contents(dir);
    // An engine is too deep to be printed.
    let Err(error) = open(dir) else { panic!("it was opened") };
    let text = error.to_string();
    let after = contents(dir);
    assert!(before == after || before.len() + 1 == after.len(), "{text}");
    for (path, bytes) in before {
        assert_eq!(after[&path], bytes, "{} was changed: {text}", path.display());
    }
    match error {
        OpenError::Recover(RecoverError::Damage(damage)) => (damage, text),
        other => panic!("{other}"),
    }
}

#[test]
fn f39_f38_of_every_byte_only_those_of_the_last_record_can_be_a_torn_tail() {
    let whole = books();
    let paths = written(whole.path());
    let from = whole_snapshot(whole.path());
    let behind = paths.iter().filter(|path| start(path) >= from);
    let last = paths.last().unwrap();
    for path in behind {
        let places = frames(path);
        let end = places[places.len() - 1];
        let last_record = if path == last { places[places.len() - 2] } else { end };
        for at in (0..end).step_by(3) {
            let dir = temporary();
            copy(whole.path(), dir.path());
            let changed = dir.path().join(path.file_name().unwrap());
            change(&changed, |bytes| bytes[at] ^= 0x40);
            if at >= last_record {
                let engine = open(dir.path()).unwrap();
                assert_eq!(engine.recovery().torn_bytes, (end - last_record) as u64, "byte {at}");
                continue;
            }
            let (damage, text) = refused(dir.path());
            let file = changed.display().to_string();
            assert!(text.starts_with(&file), "{text}");
            let is_newer = matches!(damage, Damage::Newer { .. });
            assert!(is_newer || text.contains("`tollgate books repair`"), "{text}");
            match damage {
                Damage::Record { place, valid: Some(valid), .. } => {
                    let frame = places.iter().rev().find(|start| **start <= at).unwrap();
                    assert_eq!(place.offset, *frame as u64, "byte {at}");
                    assert!(text.contains(&format!("at byte {frame}: ")), "{text}");
                    assert!(text.contains(&format!("position {}", place.position)), "{text}");
                    assert!(valid.position > place.position, "{text}");
                }
                Damage::Header { .. } => assert!(at < HEADER, "{text}"),
                // A version that is not this one's, for all that can be known.
                Damage::Newer { .. } => assert!((8..10).contains(&at), "{text}"),
                other => panic!("{other}"),
            }
        }
    }
}

pub fn start(path: &Path) -> u64 {
    path.file_stem().unwrap().to_str().unwrap().parse().unwrap()
}

/// The position of the newest snapshot.
pub fn whole_snapshot(dir: &Path) -> u64 {
    let snapshots =
        files(dir).into_iter().filter(|p| p.extension().is_some_and(|e| e == "snapshot"));
    snapshots.map(|path| start(&path)).max().unwrap()
}

/// Segments are synced behind the writer: after a power failure the last two may be torn.
#[test]
fn f38_a_torn_last_but_one_segment_is_cut_when_nothing_whole_is_behind_it() {
    let whole = books();
    let paths = written(whole.path());
    let (torn, next) = (&paths[paths.len() - 2], &paths[paths.len() - 1]);
    let places = frames(torn);
    let kept = places[places.len() - 2];
    for next_has in [Some(0), Some(10), Some(HEADER), Some(HEADER + 5), None] {
        for cut in [kept + 1, kept + 9, places[places.len() - 1] - 1] {
            let dir = temporary();
            copy(whole.path(), dir.path());
            let file = |path: &Path| dir.path().join(path.file_name().unwrap());
            change(&file(torn), |bytes| bytes.truncate(cut));
            match next_has {
                Some(length) => change(&file(next), |bytes| bytes.truncate(length)),
                // Its length was written, and none of its bytes.
                None => change(&file(next), |bytes| bytes.fill(0)),
            }
            for empty in journals(dir.path()).iter().filter(|path| start(path) > start(next)) {
                std::fs::remove_file(empty).unwrap();
            }
            let engine = open(dir.path()).unwrap();
            assert!(engine.recovery().torn_bytes >= (cut - kept) as u64);
            assert_eq!(std::fs::metadata(file(torn)).unwrap().len(), kept as u64);
            let first = balances(&engine);
            drop(engine);
            let engine = open(dir.path()).unwrap();
            assert_eq!((engine.recovery().torn_bytes, balances(&engine)), (0, first));
        }
    }
    change(torn, |bytes| bytes.truncate(kept + 9));
    let (damage, text) = refused(whole.path());
    assert!(matches!(damage, Damage::Record { valid: Some(_), .. }), "{text}");
    assert!(text.contains(next.file_name().unwrap().to_str().unwrap()), "{text}");
}

#[test]
fn f38_an_empty_newest_segment_without_a_whole_header_does_not_stop_the_start() {
    for header in 0..=HEADER {
        for fill in [None, Some(0)] {
            let dir = books();
            let newest = journals(dir.path()).pop().unwrap();
            let is_new = std::fs::metadata(&newest).unwrap().len() == HEADER as u64;
            let newest = if is_new { newest } else { next_of(&newest) };
            let before = open(dir.path()).map(|engine| balances(&engine)).unwrap();
            let mut bytes = std::fs::read(&newest).unwrap_or_default();
            bytes.resize(HEADER, 0);
            bytes.truncate(header);
            if let Some(byte) = fill {
                bytes.fill(byte);
            }
            std::fs::write(&newest, bytes).unwrap();
            let engine = open(dir.path()).unwrap();
            assert_eq!(balances(&engine), before, "{header} bytes of a header");
        }
    }
}

/// The name of the segment that follows.
fn next_of(path: &Path) -> PathBuf {
    let length = std::fs::metadata(path).unwrap().len() - HEADER as u64;
    path.with_file_name(format!("{:020}.journal", start(path) + length))
}

#[test]
fn f38_a_tail_of_zeros_and_of_noise_is_cut_and_counted() {
    for tail in [vec![0; 9_000], (0..9_000_u32).map(|n| (n * 97 % 251) as u8).collect()] {
        let dir = books();
        let last = written(dir.path()).pop().unwrap();
        let next = next_of(&last);
        if next.exists() {
            std::fs::remove_file(next).unwrap();
        }
        change(&last, |bytes| bytes.extend_from_slice(&tail));
        let engine = open(dir.path()).unwrap();
        assert_eq!(engine.recovery().torn_bytes, 9_000);
        write(&engine, 100..103);
    }
}

#[test]
fn f45_a_newer_version_anywhere_is_refused_and_every_file_untouched() {
    let whole = books();
    let paths = written(whole.path());
    let newer = |dir: &Path, path: &Path| {
        change(&dir.join(path.file_name().unwrap()), |bytes| bytes[8..10].copy_from_slice(&[9, 0]));
    };
    let snapshots: Vec<PathBuf> = files(whole.path())
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == "snapshot"))
        .collect();
    for path in paths.iter().chain(&snapshots) {
        let dir = temporary();
        copy(whole.path(), dir.path());
        newer(dir.path(), path);
        let (damage, text) = refused(dir.path());
        assert!(matches!(damage, Damage::Newer { version: 9, .. }), "{text}");
        let error = Repair::plan(dir.path()).unwrap_err();
        assert!(error.to_string().contains("newer version"), "{error}");
    }
    // Nothing of this version is whole behind the torn place: it is not a tail all the same.
    let (torn, next) = (&paths[paths.len() - 2], &paths[paths.len() - 1]);
    let end = frames(torn).pop().unwrap();
    change(torn, |bytes| bytes.truncate(end - 3));
    change(next, |bytes| bytes[HEADER..].fill(0xee));
    newer(whole.path(), next);
    assert!(matches!(refused(whole.path()).0, Damage::Newer { version: 9, .. }));
}

#[test]
fn f39_a_missing_segment_is_told() {
    let whole = books();
    let paths = written(whole.path());
    let dir = temporary();
    copy(whole.path(), dir.path());
    std::fs::remove_file(dir.path().join(paths[paths.len() - 2].file_name().unwrap())).unwrap();
    refused(dir.path());
    // The snapshot knows of more than there is.
    let snapshot = whole_snapshot(whole.path());
    for path in journals(whole.path()).iter().filter(|path| start(path) >= snapshot) {
        std::fs::remove_file(path).unwrap();
    }
    let last = written(whole.path()).pop().unwrap();
    let end = frames(&last).pop().unwrap();
    OpenOptions::new().write(true).open(&last).unwrap().set_len(end as u64 - 1).unwrap();
    assert!(matches!(refused(whole.path()).0, Damage::Gap { .. }));
}

/// Repairs what is damaged, and sees that only a plan that is applied changes anything.
fn repaired(dir: &Path) -> Repair {
    let before = contents(dir);
    let plan = Repair::plan(dir).unwrap();
    assert!(!plan.is_needless());
    drop(plan);
    let mut after = contents(dir);
    after.retain(|path, _| before.contains_key(path));
    assert!(before == after, "a plan changed something");
    let plan = Repair::plan(dir).unwrap();
    let again = Repair::plan(dir).unwrap_err();
    assert!(matches!(again, RepairError::Locked(_)), "{again}");
    plan
}

#[test]
fn f39_a_repair_cuts_before_the_damage_and_keeps_a_copy_of_all_that_is_lost() {
    let whole = books();
    let paths = written(whole.path());
    let snapshot = whole_snapshot(whole.path());
    for (index, path) in paths.iter().enumerate().filter(|(_, path)| start(path) >= snapshot) {
        let places = frames(path);
        for (frame, at) in places[..places.len() - 1].iter().enumerate() {
            let is_last = index + 1 == paths.len() && frame + 2 >= places.len();
            if is_last {
                continue;
            }
            let dir = temporary();
            copy(whole.path(), dir.path());
            let damaged = dir.path().join(path.file_name().unwrap());
            change(&damaged, |bytes| bytes[at + 8] ^= 1);
            let original = contents(dir.path());
            let plan = repaired(dir.path());
            assert!(plan.loss.bytes > 0, "{:?}", plan.loss);
            assert_eq!(plan.loss.records > 0, plan.loss.times.is_some());
            assert_eq!(plan.loss.records > 0, !plan.loss.accounts.is_empty());
            let loss = plan.loss.clone();
            let done = plan.apply(NOW).unwrap();
            let report = std::fs::read_to_string(&done.report).unwrap();
            assert_eq!(report.matches("lost: ").count() as u64, loss.records, "{report}");
            // Everything that is not as it was is kept.
            for (file, bytes) in original {
                let here = std::fs::read(&file).unwrap_or_default();
                let kept = done.kept_in.join(file.file_name().unwrap());
                assert!(here == bytes || std::fs::read(kept).unwrap() == bytes);
            }
            let engine = open(dir.path()).unwrap();
            assert_eq!(engine.recovery().torn_bytes, 0);
            write(&engine, 200..203);
            drop(engine);
            let verified = tollgate::cli::ledger::verify(dir.path()).unwrap();
            assert_eq!(verified.findings(), []);
            assert!(Repair::plan(dir.path()).unwrap().is_needless());
        }
    }
}

#[test]
fn f39_a_repair_of_each_kind_of_damage_ends_with_a_ledger_that_adds_up() {
    let whole = books();
    let paths = written(whole.path());
    let (snapshot, expected) = {
        let dir = temporary();
        copy(whole.path(), dir.path());
        (whole_snapshot(whole.path()), balances(&open(dir.path()).unwrap()))
    };
    let old = paths.iter().rposition(|path| start(path) < snapshot).unwrap();
    type Plant = Box<dyn Fn(&Path)>;
    let plant = |index: usize, plant: fn(&mut Vec<u8>)| -> Plant {
        let name = paths[index].file_name().unwrap().to_owned();
        Box::new(move |dir| change(&dir.join(&name), plant))
    };
    let remove = |index: usize| -> Plant {
        let name = paths[index].file_name().unwrap().to_owned();
        Box::new(move |dir| std::fs::remove_file(dir.join(&name)).unwrap())
    };
    let kinds: Vec<(&str, bool, Plant)> = vec![
        ("a header", false, plant(old + 1, |bytes| bytes[2] ^= 1)),
        ("zeros in the middle", false, plant(old + 1, |bytes| bytes[60..120].fill(0))),
        ("a missing segment", false, remove(old + 2)),
        ("the end of a segment", false, plant(old + 1, |bytes| bytes.truncate(100))),
        // Balances stand on the snapshot.
        ("an old record", true, plant(old, |bytes| bytes[40] ^= 1)),
        ("an old header", true, plant(0, |bytes| bytes[20] ^= 1)),
        ("an old segment that is missing", true, remove(1)),
        (
            "a snapshot",
            true,
            Box::new(|dir| {
                let name = format!("{:020}.snapshot", whole_snapshot(dir));
                change(&dir.join(name), |bytes| bytes[30] ^= 1);
            }),
        ),
    ];
    for (what, keeps_all, plant) in kinds {
        let dir = temporary();
        copy(whole.path(), dir.path());
        plant(dir.path());
        let verified = tollgate::cli::ledger::verify(dir.path());
        assert!(verified.is_err() || !verified.unwrap().findings().is_empty(), "{what}");
        let plan = repaired(dir.path());
        assert_eq!(plan.loss.bytes == 0, keeps_all, "{what}: {:?}", plan.findings);
        plan.apply(NOW).unwrap();
        let engine = open(dir.path()).unwrap();
        if keeps_all {
            assert_eq!(balances(&engine), expected, "{what}");
        }
        write(&engine, 300..303);
        drop(engine);
        let verified = tollgate::cli::ledger::verify(dir.path()).unwrap();
        assert_eq!(verified.findings(), [], "{what}");
        assert!(Repair::plan(dir.path()).unwrap().is_needless(), "{what}");
    }
}

#[test]
fn f39_records_that_contradict_each_other_are_cut_too() {
    let dir = temporary();
    let engine = open(dir.path()).unwrap();
    write(&engine, 0..4);
    drop(engine);
    // The same hold once more, in its place as the writer would put it.
    let first = journals(dir.path()).remove(0);
    let bytes = std::fs::read(&first).unwrap();
    let places = frames(&first);
    let mut frames = Frames::default();
    frames.push_bytes(&bytes[places[0] + 8..places[1]]);
    frames.push_bytes(&bytes[places[0] + 8..places[1]]);
    let end = (places[places.len() - 1] - HEADER) as u64;
    let journal = Journal::open(dir.path(), end, SEGMENT, Durability::Process).unwrap();
    journal.append(&mut frames).unwrap();
    drop(journal);
    let error = open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("held twice"), "{error}");
    let plan = repaired(dir.path());
    // The first repeats an open charge's id that is over by now: only the second contradicts.
    assert_eq!(plan.loss.records, 1);
    plan.apply(NOW).unwrap();
    let engine = open(dir.path()).unwrap();
    assert_eq!(balances(&engine)[&name("a")].captured, 4);
}

/// Of what was told only when it was synced, a power failure may keep what is behind what it
/// takes: a mark says what it cannot have taken.
#[test]
fn f38_f39_in_a_synced_journal_a_mark_tells_damage_from_a_torn_tail() {
    for marked in [false, true] {
        let dir = temporary();
        let whole = kept(Durability::Power);
        let oldest = written(whole.path()).remove(0);
        let bytes = std::fs::read(&oldest).unwrap();
        let places = frames(&oldest);
        // A batch of one write in a journal of its own, so that no other mark is in it.
        let mut batch = Frames::default();
        for pair in places.windows(2).take(4) {
            let record = &bytes[pair[0] + 8..pair[1]];
            if !matches!(Record::decode(record), Ok(Record::Synced(_))) {
                batch.push_bytes(record);
            }
        }
        if marked {
            batch.push(&Record::Synced(1_000)).unwrap();
        }
        let journal = Journal::open(dir.path(), 0, SEGMENT, Durability::Power).unwrap();
        journal.append(&mut batch).unwrap();
        drop(journal);
        let file = written(dir.path()).pop().unwrap();
        let places = frames(&file);
        change(&file, |bytes| bytes[places[1]..places[2]].fill(0));
        if marked {
            assert!(matches!(refused(dir.path()).0, Damage::Record { valid: Some(_), .. }));
        } else {
            let engine = open(dir.path()).unwrap();
            let torn = (places[places.len() - 1] - places[1]) as u64;
            assert_eq!(engine.recovery().torn_bytes, torn);
        }
    }
}
