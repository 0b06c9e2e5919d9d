//! The journal's own promises, beside those to the books that write it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tollgate::books::Durability;
use tollgate::books::journal::{
    Cursor, Damage, Frames, Journal, MAX_RECORD, Next, SEGMENT_SIZE, Segments,
};
use tollgate::core::record::Record;

use crate::engine::{files, run, temporary};

fn open(dir: &Path, segment_size: u64) -> Journal {
    Journal::open(dir, 0, segment_size, Durability::Process).unwrap()
}

fn append(journal: &Journal, records: &[&[u8]]) -> u64 {
    let mut frames = Frames::default();
    records.iter().for_each(|record| frames.push_bytes(record));
    journal.append(&mut frames).unwrap()
}

#[test]
fn records_are_counted_and_forgotten_once_they_are_written() {
    let dir = temporary();
    let journal = open(dir.path(), SEGMENT_SIZE);
    let mut frames = Frames::default();
    assert!(frames.is_empty());
    for (count, record) in [b"one", b"two"].into_iter().enumerate() {
        frames.push_bytes(record);
        assert_eq!((frames.len(), frames.is_empty()), (count + 1, false));
    }
    journal.append(&mut frames).unwrap();
    assert_eq!((frames.len(), frames.is_empty(), journal.records_written()), (0, true, 2));
}

/// Recovery takes what is wrong before a mark for damage: without marks nothing would be.
#[test]
fn f39_the_first_write_behind_a_sync_says_what_is_synced_and_no_other() {
    let dir = temporary();
    let journal = open(dir.path(), SEGMENT_SIZE);
    let first = append(&journal, &[b"first"]);
    journal.sync().unwrap();
    append(&journal, &[b"second"]);
    append(&journal, &[b"third"]);
    let mut cursor = Cursor::new(dir.path(), 0);
    let mut found = Vec::new();
    while cursor.next().unwrap() == Next::Record {
        found.push(match Record::decode(&cursor.record) {
            Ok(Record::Synced(position)) => format!("synced to {position}"),
            _ => String::from_utf8(cursor.record.clone()).unwrap(),
        });
    }
    assert_eq!(found, ["first", "second", &format!("synced to {first}"), "third"]);
}

/// What open holds need to settle is there before the disk is full.
#[test]
fn f40_there_is_space_ahead_of_the_writer_before_it_is_needed() {
    const CHUNK: u64 = 8 << 20;
    let dir = temporary();
    let journal = open(dir.path(), SEGMENT_SIZE);
    let reserved = || {
        let segment = files(dir.path()).into_iter();
        let mut segment = segment.filter(|path| path.extension().is_some_and(|e| e == "journal"));
        std::fs::metadata(segment.next().unwrap()).unwrap().blocks() * 512
    };
    let record = vec![b'x'; 1 << 19];
    for chunks in 1..=3 {
        while journal.written() < chunks * CHUNK - CHUNK / 8 {
            append(&journal, &[&record]);
        }
        // Where space cannot be reserved there is only what was written.
        if reserved() < CHUNK {
            return;
        }
        for _ in 0..2_000 {
            if reserved() >= (chunks + 1) * CHUNK {
                break;
            }
            run(async { tokio::time::sleep(Duration::from_millis(10)).await });
        }
        assert!(reserved() >= (chunks + 1) * CHUNK, "{chunks}: {} bytes", reserved());
    }
}

#[test]
fn what_is_not_written_does_not_survive() {
    let dir = temporary();
    let journal = open(dir.path(), SEGMENT_SIZE);
    let written = append(&journal, &[b"first"]);
    assert!(run(journal.survives(written)).is_ok());
    assert!(run(journal.survives(written + 1)).is_err());
}

#[test]
fn the_longest_record_there_can_be_is_read_back() {
    let dir = temporary();
    let journal = open(dir.path(), SEGMENT_SIZE);
    let longest = vec![b'x'; MAX_RECORD];
    append(&journal, &[&longest, b"last"]);
    let mut cursor = Cursor::new(dir.path(), 0);
    let mut salvage = Segments::list(dir.path()).unwrap().salvage(0);
    for record in [&longest[..], b"last"] {
        assert_eq!(cursor.next().unwrap(), Next::Record);
        assert!(cursor.record == record);
        assert!(salvage.next_record().unwrap().unwrap().1 == record);
    }
    assert_eq!(cursor.next().unwrap(), Next::End);
    assert_eq!(cursor.tail().unwrap(), None);
}

/// The writer may be at it: only who knows that there is none asks what stands behind the end.
#[test]
fn f39_in_the_last_segment_a_cursor_comes_to_an_end_and_its_tail_tells_the_damage() {
    let dir = temporary();
    let first = append(&open(dir.path(), SEGMENT_SIZE), &[b"first", b"second", b"third"]) / 3;
    let path = files(dir.path()).remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(6).position(|bytes| bytes == b"second").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let mut cursor = Cursor::new(dir.path(), 0);
    assert_eq!(cursor.next().unwrap(), Next::Record);
    for _ in 0..2 {
        assert_eq!(cursor.next().unwrap(), Next::End);
        assert!(cursor.position() <= first);
    }
    assert!(matches!(cursor.tail(), Err(Damage::Record { valid: Some(_), .. })));
}

/// What the file system refuses to read is no end of anything.
#[test]
fn f38_an_error_of_the_file_system_is_no_torn_tail() {
    let dir = temporary();
    std::fs::create_dir(dir.path().join(format!("{:020}.journal", 0))).unwrap();
    assert!(matches!(Cursor::new(dir.path(), 0).next(), Err(Damage::Io { .. })));
}

#[test]
fn f43_what_a_killed_process_left_of_a_next_segment_has_to_go() {
    let dir = temporary();
    let next = dir.path().join("next.segment");
    std::fs::write(&next, b"left").unwrap();
    drop(open(dir.path(), SEGMENT_SIZE));
    assert!(!next.exists());
    // No file, and not to be removed like one: a segment could never be made.
    std::fs::create_dir(&next).unwrap();
    assert!(Journal::open(dir.path(), 0, SEGMENT_SIZE, Durability::Process).is_err());
}

/// Nothing is reserved for it.
#[test]
fn f38_a_length_that_no_record_has_is_not_believed() {
    let dir = temporary();
    append(&open(dir.path(), SEGMENT_SIZE), &[b"first"]);
    let path = files(dir.path()).remove(0);
    let whole = std::fs::read(&path).unwrap();
    let at = whole.len() - 8 - b"first".len();
    for length in [0, MAX_RECORD as u32 + 1, u32::MAX] {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        let mut cursor = Cursor::new(dir.path(), 0);
        assert_eq!(cursor.next().unwrap(), Next::End);
        let torn = cursor.tail().unwrap().unwrap();
        assert_eq!((torn.what, torn.bytes), (format!("its length says {length}"), 13));
    }
}
