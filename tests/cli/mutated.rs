//! Valid inputs with something wrong in them, for everything that reads foreign text. The
//! promises are those of `fuzz/src/lib.rs`, which libFuzzer looks at for longer.

#[path = "../../fuzz/src/lib.rs"]
mod promises;

use proptest::prelude::*;
use proptest::test_runner::Config;
use smallvec::smallvec;
use tollgate::core::account::{AccountKey, AccountKind, Grant, LegKind, Stem, Version};
use tollgate::core::charge::{InDoubt, OutcomeMemo, State};
use tollgate::core::record::{Adjust, Hold, Leg, Opening, Record, Resolve};

use super::ran;
use crate::support::world::tollgate;

const CONFIGS: [&str; 3] = [
    include_str!("../../docs/examples/tollgate.toml"),
    include_str!("../../src/config/tests/every_key.toml"),
    include_str!("../../src/config/tests/contract.toml"),
];
const ORGS: [&str; 3] = [
    include_str!("../../docs/examples/acme.toml"),
    include_str!("../../src/cli/demo/acme.toml"),
    include_str!("../../src/cli/demo/globex.toml"),
];
const POINTED: [&str; 3] = [
    "/a/b\n{\"a\":{\"b\":[1,\"2\"]},\"c\":1e3}",
    "/0/x~1y\n[{\"x/y\":null,\"x/y \":\"\\u0041\"}]",
    "\n-0.5e-7",
];

const STREAMED: [&str; 3] = [
    "\0\u{4}data: {\"usage\":null}\n\ndata: {\"usage\":{\"n\":12}}\r\n\r\ndata: [DONE]\n\n",
    "\u{1}\0\u{feff}: c\rdata:1\r\rdata: {\"us\\u0061ge\":\rdata:{\"n\":-4}}\r\r",
    "\u{2}\u{5}{\"usage\":null}\n\n{\"usage\":{\"n\":\"1.5\"}}\r\n{\"usage\":{\"n\":2}}",
];

const FORMS: [&[u8]; 2] = [
    include_bytes!("../../fuzz/seeds/form/browser"),
    include_bytes!("../../fuzz/seeds/form/plain"),
];
const INJECTED: [&str; 2] = [
    include_str!("../../fuzz/seeds/inject/nested"),
    include_str!("../../fuzz/seeds/inject/missing"),
];

const HEADS: [&str; 2] =
    [include_str!("../../fuzz/seeds/head/post"), include_str!("../../fuzz/seeds/head/chunked")];
const QUERIES: [&str; 2] =
    [include_str!("../../fuzz/seeds/query/plain"), include_str!("../../fuzz/seeds/query/twice")];

const REPLIES: [&[u8]; 11] = [
    include_bytes!("../../fuzz/seeds/redis_reply/done"),
    include_bytes!("../../fuzz/seeds/redis_reply/done-nothing"),
    include_bytes!("../../fuzz/seeds/redis_reply/ended"),
    include_bytes!("../../fuzz/seeds/redis_reply/hold"),
    include_bytes!("../../fuzz/seeds/redis_reply/hold-lasting"),
    include_bytes!("../../fuzz/seeds/redis_reply/joined"),
    include_bytes!("../../fuzz/seeds/redis_reply/known"),
    include_bytes!("../../fuzz/seeds/redis_reply/refused"),
    include_bytes!("../../fuzz/seeds/redis_reply/short"),
    include_bytes!("../../fuzz/seeds/redis_reply/unknown"),
    include_bytes!("../../fuzz/seeds/redis_reply/values"),
];
const ENTRIES: [&[u8]; 6] = [
    include_bytes!("../../fuzz/seeds/redis_entry/adjust"),
    include_bytes!("../../fuzz/seeds/redis_entry/amend-2"),
    include_bytes!("../../fuzz/seeds/redis_entry/hold"),
    include_bytes!("../../fuzz/seeds/redis_entry/hold-4"),
    include_bytes!("../../fuzz/seeds/redis_entry/resolve-2"),
    include_bytes!("../../fuzz/seeds/redis_entry/resolve-5"),
];

/// What tends to matter where it is put.
const WORDS: &[&str] = &[
    "",
    "\0",
    "\n",
    "\"",
    "'",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ".",
    ",",
    "#",
    "\\",
    "\u{1b}",
    "\u{202e}",
    "é",
    "-1",
    "0",
    "1e400",
    "nan",
    "inf",
    "18446744073709551616",
    "9007199254.740992",
    "true",
    "null",
    "\"\"",
    "[]",
    "{}",
    "1979-05-27",
    "\"5 s\"",
    "\"99999999999d\"",
    "\\u0000",
    "\u{feff}",
    "\r\n",
    "\r\n--b",
    "--b--",
    "; name=\"n\"",
    "; filename=\"\"",
    "%6E",
];

/// One change of a text.
#[derive(Clone, Debug)]
enum Change {
    Cut(prop::sample::Index, usize),
    Put(prop::sample::Index, &'static str),
    Repeat(prop::sample::Index, usize),
    Set(prop::sample::Index, u8),
    /// A whole line, so that a key or a heading is there twice or not at all.
    CutLine(prop::sample::Index),
    RepeatLine(prop::sample::Index),
    /// The value of a line.
    Value(prop::sample::Index, &'static str),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    let word = || prop::sample::select(WORDS);
    prop_oneof![
        (at(), 1..40_usize).prop_map(|(at, length)| Change::Cut(at, length)),
        (at(), word()).prop_map(|(at, word)| Change::Put(at, word)),
        (at(), 1..200_usize).prop_map(|(at, length)| Change::Repeat(at, length)),
        (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        at().prop_map(Change::CutLine),
        at().prop_map(Change::RepeatLine),
        (at(), word()).prop_map(|(at, word)| Change::Value(at, word)),
    ]
}

fn changed(seed: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for change in changes {
        let position = |at: &prop::sample::Index, bytes: &[u8]| at.index(bytes.len() + 1);
        let line = |at: &prop::sample::Index, bytes: &[u8]| {
            let at = position(at, bytes);
            let start = bytes[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let end = bytes[at..].iter().position(|byte| *byte == b'\n');
            start..end.map_or(bytes.len(), |end| at + end + 1)
        };
        match change {
            Change::Cut(at, length) => {
                let at = position(at, &bytes);
                bytes.drain(at..bytes.len().min(at + length));
            }
            Change::Put(at, word) => {
                let at = position(at, &bytes);
                bytes.splice(at..at, word.bytes());
            }
            Change::Repeat(at, length) => {
                let at = position(at, &bytes);
                let part = bytes[at..bytes.len().min(at + length)].to_vec();
                bytes.splice(at..at, part);
            }
            Change::Set(at, byte) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Change::Set(..) => {}
            Change::CutLine(at) => drop(bytes.drain(line(at, &bytes))),
            Change::RepeatLine(at) => {
                let line = line(at, &bytes);
                let copy = bytes[line.clone()].to_vec();
                bytes.splice(line.start..line.start, copy);
            }
            Change::Value(at, word) => {
                let line = line(at, &bytes);
                let equals = bytes[line.clone()].iter().position(|byte| *byte == b'=');
                if let Some(equals) = equals {
                    let end = line.end - usize::from(bytes[..line.end].ends_with(b"\n"));
                    bytes.splice(line.start + equals + 1..end, word.bytes());
                }
            }
        }
    }
    bytes
}

fn mutated(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (prop::sample::select(seeds), prop::collection::vec(change(), 0..6))
        .prop_map(|(seed, changes)| changed(&seed, &changes))
}

fn texts(seeds: &[&str]) -> Vec<Vec<u8>> {
    seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect()
}

/// A body in every coding.
fn coded() -> Vec<Vec<u8>> {
    let seeds: [&[u8]; 4] = [
        include_bytes!("../../fuzz/seeds/coding/gzip"),
        include_bytes!("../../fuzz/seeds/coding/deflate"),
        include_bytes!("../../fuzz/seeds/coding/br"),
        include_bytes!("../../fuzz/seeds/coding/zstd"),
    ];
    seeds.map(<[u8]>::to_vec).into()
}

/// A record of every kind, as bytes.
fn records() -> Vec<Vec<u8>> {
    let key = AccountKey {
        stem: Stem::new(&["acme", "licence", "lic-1", "alice"]),
        period: "2026-11-01".parse().unwrap(),
        kind: AccountKind::Licence,
    };
    let grant = Grant { base: 4_000_000_000, version: Version { epoch: 1, number: 7 } };
    let opening = Opening { key, name: "acme/licence/lic-1/alice/2026-11-01", grant };
    let leg = Leg { key, kind: LegKind::Licence, amount: 1_000_000 };
    let (charge, at, memo) = ([7; 16], 1_764_547_200_000_000, &b"memo"[..]);
    let hold = Hold {
        charge,
        at,
        in_doubt: InDoubt::Void,
        openings: smallvec![opening.clone()],
        legs: [leg, leg].into_iter().collect(),
        memo,
    };
    let resolve = Resolve {
        charge,
        at,
        state: State::Captured,
        keep: [1_000_000, 0].into_iter().collect(),
        openings: smallvec![opening.clone()],
        extra: [leg].into_iter().collect(),
        memo: OutcomeMemo { measures: Some(vec![1, 2]), ..OutcomeMemo::default() },
    };
    let adjust = Adjust { at, openings: smallvec![opening], key, delta: -5, memo };
    [Record::Hold(hold), Record::Resolve(resolve), Record::Adjust(adjust), Record::Synced(7)]
        .iter()
        .map(|record| {
            let mut bytes = Vec::new();
            record.encode(&mut bytes).unwrap();
            promises::record(&bytes);
            bytes
        })
        .collect()
}

fn cases(cases: u32) -> Config {
    Config { cases, failure_persistence: None, ..Config::default() }
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn f54_a_mutated_configuration_is_refused_with_its_place_or_can_be_printed(
        bytes in mutated(texts(&CONFIGS)),
    ) {
        promises::config_text(&bytes);
    }

    #[test]
    fn f58_a_mutated_org_file_is_read_or_its_problems_have_places(bytes in mutated(texts(&ORGS))) {
        promises::org_file(&bytes);
    }

    #[test]
    fn f70_what_is_picked_is_what_a_reader_of_the_whole_finds(bytes in mutated(texts(&POINTED))) {
        promises::pointer(&bytes);
    }

    #[test]
    fn f70_a_mutated_form_is_refused_or_reads_back(
        bytes in mutated(FORMS.map(<[u8]>::to_vec).into()),
    ) {
        promises::form(&bytes);
    }

    #[test]
    fn f70_what_is_set_in_a_mutated_text_is_there_and_nothing_else_changes(
        bytes in mutated(texts(&INJECTED)),
    ) {
        promises::inject(&bytes);
    }

    #[test]
    fn f63_a_mutated_head_ends_and_is_framed_as_hyper_reads_it(bytes in mutated(texts(&HEADS))) {
        promises::head(&bytes);
    }

    #[test]
    fn f70_a_mutated_query_is_refused_or_read_as_the_standard_says(
        bytes in mutated(texts(&QUERIES)),
    ) {
        promises::query(&bytes);
    }

    #[test]
    fn f15_a_mutated_stream_tells_the_same_however_it_is_cut(bytes in mutated(texts(&STREAMED))) {
        promises::sse(&bytes);
        promises::ndjson(&bytes);
    }

    #[test]
    fn f74_a_mutated_coding_is_decoded_within_bounds_or_not_at_all(bytes in mutated(coded())) {
        promises::coding(&bytes);
    }

    #[test]
    fn a_mutated_reply_of_redis_is_refused_or_read_within_its_bytes(
        bytes in mutated(REPLIES.map(<[u8]>::to_vec).into()),
    ) {
        promises::redis_reply(&bytes);
    }

    #[test]
    fn a_mutated_entry_of_a_ledger_in_redis_is_refused_or_reads_back(
        bytes in mutated(ENTRIES.map(<[u8]>::to_vec).into()),
    ) {
        promises::redis_entry(&bytes);
    }

    #[test]
    fn f39_a_mutated_record_is_refused_or_reads_back(bytes in mutated(records())) {
        promises::record(&bytes);
    }
}

proptest! {
    // Each opens files and syncs them.
    #![proptest_config(cases(150))]

    #[test]
    fn f38_whole_records_are_read_whatever_stands_behind_them(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        promises::journal(&bytes);
    }
}

proptest! {
    // Each starts the binary.
    #![proptest_config(cases(60))]

    #[test]
    fn f54_check_of_anything_exits_0_or_2_and_says_why(bytes in mutated(texts(&CONFIGS))) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.toml");
        std::fs::write(&file, bytes).unwrap();
        let ran = ran(tollgate().arg("check").arg("-c").arg(&file).output().unwrap());
        let told = if ran.code == 0 { &ran.out } else { &ran.err };
        prop_assert!([0, 2].contains(&ran.code), "{ran:?}");
        prop_assert!(told.contains(&*file.display().to_string()), "{ran:?}");
    }

    #[test]
    fn f58_apply_of_anything_says_why_and_never_asks_the_wrong_server(
        bytes in mutated(texts(&ORGS)),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("o.toml");
        std::fs::write(&file, bytes).unwrap();
        let mut command = tollgate();
        // Port 2 has no service: what is sent is refused.
        command.arg("apply").arg(&file).args(["--admin", "http://127.0.0.1:2"]);
        let ran = ran(command.output().unwrap());
        prop_assert!([1, 2].contains(&ran.code) && ran.out.is_empty(), "{ran:?}");
        prop_assert!(!ran.err.is_empty());
    }
}
