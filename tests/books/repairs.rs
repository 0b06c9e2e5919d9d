//! What a repair says that it does, to the byte.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tollgate::books::repair::{Loss, Repair, RepairError};
use tollgate::core::amount::Credits;
use tollgate::core::record::{Record, instant};

use crate::damage::{books, change, frames, journals, start, whole_snapshot, written};
use crate::engine::{NOW, files, name};
use crate::prune::{books as days, pruned, with_extension};

/// The whole records of a segment from one of its frames on.
fn records(path: &Path, from: usize) -> Vec<Vec<u8>> {
    let (bytes, places) = (std::fs::read(path).unwrap(), frames(path));
    places.windows(2).skip(from).map(|pair| bytes[pair[0] + 8..pair[1]].to_vec()).collect()
}

#[test]
fn f39_a_repair_counts_what_it_loses_exactly() {
    let dir = books();
    let snapshot = whole_snapshot(dir.path());
    let behind: Vec<PathBuf> =
        written(dir.path()).into_iter().filter(|path| start(path) >= snapshot).collect();
    let (cut, later) = (&behind[1], &behind[2]);
    let frame = 2;
    let at = frames(cut)[frame] as u64;
    change(cut, |bytes| bytes[at as usize + 8] ^= 1);
    let length = |path: &PathBuf| std::fs::metadata(path).unwrap().len();
    let all: Vec<PathBuf> =
        journals(dir.path()).into_iter().filter(|path| start(path) > start(cut)).collect();
    let mut expected = Loss {
        bytes: length(cut) - at + all.iter().map(length).sum::<u64>(),
        accounts: ["a", "b"].map(name).into(),
        times: Some((NOW, NOW)),
        ..Loss::default()
    };
    for bytes in [records(cut, frame + 1), records(later, 0)].concat() {
        match Record::decode(&bytes).unwrap() {
            Record::Hold(_) => expected.holds += 1,
            Record::Resolve(_) => expected.captures += 1,
            Record::Adjust(_) => expected.adjustments += 1,
            other @ (Record::Lasting(_)
            | Record::Amend(_)
            | Record::Finish(_)
            | Record::Carried(_)) => panic!("{other:?}"),
            Record::Synced(_) | Record::Close(_) => continue,
        }
        expected.records += 1;
    }
    assert_eq!(expected.adjustments, 2);
    let plan = Repair::plan(dir.path()).unwrap();
    let place = plan.cut.clone().unwrap();
    assert_eq!((&place.path, place.offset), (cut, at));
    assert_eq!(plan.loss, expected);
    assert_eq!(plan.aside, all);
    let done = plan.apply(NOW).unwrap();
    let report = std::fs::read_to_string(done.report).unwrap();
    for line in expected.lines() {
        assert!(report.contains(&line), "{report}");
    }
}

#[test]
fn f39_what_ends_with_its_segment_is_not_cut() {
    let dir = books();
    let paths = written(dir.path());
    // Behind the snapshot, and without a beginning in the segment before it.
    let missing = &paths[paths.len() - 2];
    let behind: Vec<PathBuf> =
        journals(dir.path()).into_iter().filter(|path| start(path) > start(missing)).collect();
    std::fs::remove_file(missing).unwrap();
    let plan = Repair::plan(dir.path()).unwrap();
    assert_eq!((plan.cut.as_ref(), &plan.aside), (None, &behind));
    assert!(plan.loss.records > 0);
}

/// A ledger without its beginning is looked at from its oldest snapshot on.
#[test]
fn f39_damage_between_two_snapshots_puts_aside_all_that_is_before_the_newer_one() {
    let (dir, _) = pruned();
    let snapshots = with_extension(dir.path(), "snapshot");
    let (oldest, newest) = (start(&snapshots[0]), start(&snapshots[1]));
    let between: Vec<PathBuf> =
        journals(dir.path()).into_iter().filter(|path| start(path) < newest).collect();
    assert!(!between.is_empty() && start(&between[0]) == oldest);
    change(&between[0], |bytes| bytes[40] ^= 1);
    let plan = Repair::plan(dir.path()).unwrap();
    assert_eq!((plan.findings.len(), plan.begins), (1, Some(newest)));
    let aside: BTreeSet<PathBuf> = plan.aside.iter().cloned().collect();
    assert_eq!(aside, between.into_iter().chain([snapshots[0].clone()]).collect());
    assert_eq!((plan.loss.clone(), plan.cut.clone()), (Loss::default(), None));
    plan.apply(NOW).unwrap();
    assert!(!files(dir.path()).contains(&snapshots[0]));
    assert!(Repair::plan(dir.path()).unwrap().is_needless());
}

#[test]
fn f39_what_is_lost_is_told_in_words() {
    assert_eq!(Loss::default().lines(), ["no record is lost"]);
    let mut loss = Loss {
        bytes: 300,
        records: 4,
        holds: 2,
        captures: 1,
        cost: Credits::from_micro(2_500_000).unwrap(),
        adjustments: 1,
        ..Loss::default()
    };
    let counted = "behind the damage: 300 bytes with 4 whole records: 2 holds, 1 captures of 2.5 \
                   credits, 1 adjustments";
    assert_eq!(loss.lines(), [counted]);
    loss.reopened = 1;
    loss.accounts = ["a", "b"].map(name).into();
    loss.times = Some((NOW, instant(1_000_000)));
    let expected = [
        counted,
        "they were made from 1970-01-01T00:00:00Z to 1970-01-01T00:00:01Z",
        "1 charges from before lose their end: the next start resolves them as in doubt",
        "2 accounts get back what these records took",
    ];
    assert_eq!(loss.lines(), expected);
}

/// A charge a day is open when its process dies, and resolved by the next.
#[test]
fn f39_charges_that_lose_their_end_are_counted() {
    let dir = days();
    let newest = start(with_extension(dir.path(), "snapshot").last().unwrap());
    let cut = written(dir.path()).into_iter().find(|path| start(path) >= newest).unwrap();
    let places = frames(&cut);
    let at = places[places.len() - 2];
    change(&cut, |bytes| bytes[at + 8] ^= 1);
    let plan = Repair::plan(dir.path()).unwrap();
    assert_eq!((plan.loss.reopened, plan.cut.as_ref().unwrap().offset), (1, at as u64));
    // What was voided behind the damage was not captured.
    assert_eq!((plan.loss.holds, plan.loss.captures), (3, 2));
    let file = cut.display();
    let found = format!("{file}: damaged record at byte {at}: its checksum is wrong (position ");
    assert_eq!(plan.findings.len(), 1);
    assert!(plan.findings[0].starts_with(&found), "{}", plan.findings[0]);
    assert!(!plan.findings[0].contains("nothing was changed"), "{}", plan.findings[0]);
}

#[test]
fn f39_each_repair_keeps_in_a_directory_of_its_own_what_it_took() {
    let dir = books();
    for number in 1..=3 {
        let last = written(dir.path()).pop().unwrap();
        change(&last, |bytes| bytes[30] ^= 1);
        let plan = Repair::plan(dir.path()).unwrap();
        let kept_in = plan.apply(NOW).unwrap().kept_in;
        assert_eq!(kept_in, dir.path().join(format!("repair-{number}")));
    }
    let last = written(dir.path()).pop().unwrap();
    change(&last, |bytes| bytes[30] ^= 1);
    let plan = Repair::plan(dir.path()).unwrap();
    std::fs::remove_dir_all(dir.path()).unwrap();
    assert!(matches!(plan.apply(NOW), Err(RepairError::Io(_))));
}
