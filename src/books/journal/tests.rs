use std::sync::atomic::AtomicBool;

use super::*;

fn open(dir: &Path, position: u64, segment_size: u64) -> io::Result<Journal> {
    Journal::open(dir, position, segment_size, Durability::Process)
}

/// Marks of what is synced come when the disk is done, which no test can foresee.
fn is_mark(record: &[u8]) -> bool {
    matches!(Record::decode(record), Ok(Record::Synced(_)))
}

fn write(journal: &Journal, records: &[&[u8]]) -> u64 {
    let mut frames = Frames::default();
    for record in records {
        frames.push_bytes(record);
    }
    journal.append(&mut frames).unwrap()
}

fn read_all(dir: &Path, from: u64) -> Result<Vec<Vec<u8>>, Damage> {
    let mut cursor = Cursor::new(dir, from);
    let mut records = Vec::new();
    while cursor.next()? == Next::Record {
        if !is_mark(&cursor.record) {
            records.push(cursor.record.clone());
        }
    }
    Ok(records)
}

#[test]
fn records_come_back_in_order_across_segments() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), 0, 100).unwrap();
    let records: Vec<Vec<u8>> = (0..50u8).map(|n| vec![n; 1 + usize::from(n)]).collect();
    for record in &records {
        write(&journal, &[record]);
    }
    assert!(Segments::list(dir.path()).unwrap().as_slice().len() > 5);
    assert_eq!(read_all(dir.path(), 0).unwrap(), records);
    assert!(journal.sealed() <= journal.written());
}

#[test]
fn a_cursor_follows_a_journal_that_is_being_written() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), 0, 64).unwrap();
    let mut cursor = Cursor::new(dir.path(), 0);
    assert_eq!(cursor.next().unwrap(), Next::End);
    for n in 0..20u8 {
        write(&journal, &[&[n; 9]]);
        assert_eq!(cursor.next().unwrap(), Next::Record);
        assert_eq!(cursor.record, [n; 9]);
        while cursor.next().unwrap() == Next::Record {
            assert!(is_mark(&cursor.record));
        }
        assert_eq!(cursor.position(), journal.written());
    }
}

#[test]
fn f38_a_torn_tail_is_cut_at_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), 0, SEGMENT_SIZE).unwrap();
    let whole = write(&journal, &[b"first", b"second"]);
    write(&journal, &[b"third"]);
    drop(journal);
    let path = dir.path().join(segment_name(0));
    let bytes = std::fs::read(&path).unwrap();
    for end in HEADER + whole as usize..bytes.len() {
        std::fs::write(&path, &bytes[..end]).unwrap();
        let mut cursor = Cursor::new(dir.path(), 0);
        while cursor.next().unwrap() == Next::Record {}
        assert_eq!(cursor.position(), whole, "cut at {end}");
        let journal = open(dir.path(), whole, SEGMENT_SIZE).unwrap();
        write(&journal, &[b"fourth"]);
        assert_eq!(read_all(dir.path(), 0).unwrap(), [&b"first"[..], b"second", b"fourth"]);
        std::fs::remove_file(dir.path().join(segment_name(whole))).unwrap();
    }
}

#[test]
fn f39_damage_before_the_last_segment_is_told_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), 0, 40).unwrap();
    for _ in 0..6 {
        write(&journal, &[b"0123456789"]);
    }
    drop(journal);
    let path = dir.path().join(segment_name(0));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[HEADER + 10] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let error = read_all(dir.path(), 0).unwrap_err();
    assert!(error.to_string().contains("damaged record at byte 24: its checksum"), "{error}");
}

#[test]
fn f39_a_frame_in_another_place_is_not_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), 0, SEGMENT_SIZE).unwrap();
    write(&journal, &[b"same", b"same"]);
    let path = dir.path().join(segment_name(0));
    let bytes = std::fs::read(&path).unwrap();
    assert_ne!(bytes[HEADER..HEADER + 12], bytes[HEADER + 12..HEADER + 24]);
}

#[test]
fn f45_a_newer_journal_is_refused_and_untouched() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), 0, SEGMENT_SIZE).unwrap());
    let path = dir.path().join(segment_name(0));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 200;
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(read_all(dir.path(), 0), Err(Damage::Newer { version: 200, .. })));
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_cursor_that_follows_a_fast_writer_never_takes_a_new_segment_for_damage() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), 0, 64).unwrap();
    let is_done = AtomicBool::new(false);
    let read = std::thread::scope(|scope| {
        let follower = scope.spawn(|| {
            let mut cursor = Cursor::new(dir.path(), 0);
            let mut read = 0;
            loop {
                let was_done = is_done.load(Ordering::Acquire);
                while cursor.next().unwrap() == Next::Record {
                    read += u32::from(!is_mark(&cursor.record));
                }
                if was_done {
                    return read;
                }
            }
        });
        for _ in 0..400 {
            write(&journal, &[b"0123456789abcdef"]);
        }
        is_done.store(true, Ordering::Release);
        follower.join().unwrap()
    });
    assert_eq!(read, 400);
}

#[test]
fn f39_a_journal_that_ends_before_its_snapshot_is_refused_and_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let end = write(&open(dir.path(), 0, SEGMENT_SIZE).unwrap(), &[b"first"]);
    let path = dir.path().join(segment_name(0));
    let bytes = std::fs::read(&path).unwrap();
    assert!(open(dir.path(), end + 1, SEGMENT_SIZE).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    open(dir.path(), end, SEGMENT_SIZE).unwrap();
}

#[test]
fn f39_two_checksums_are_two_at_every_position() {
    for position in [0, 1, 24, 1 << 20, u64::MAX] {
        // What the position does to a checksum it does to each bit of it, and takes none away.
        let bound = [0, 1, 0x8000_0000, 0x1234_5678].map(|crc| crc ^ bound_crc(crc, position));
        assert_eq!(bound, [bound_crc(0, position); 4]);
    }
    assert_ne!(bound_crc(0, 1), bound_crc(0, 2));
}
