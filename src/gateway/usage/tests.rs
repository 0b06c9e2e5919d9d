//! How a body is cut into pieces changes nothing of what is found in it; and what is found.

use std::io::Write;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use http::HeaderMap;
use proptest::prelude::*;
use smallvec::smallvec;

use super::*;
use crate::config::{Pick, Usage};

const N: u64 = 1_000_000;

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// Where the backends of these tests tell usage, in any kind of body.
fn anywhere(pointer: &str) -> Usage {
    Usage {
        json: some(pointer),
        sse_json: some(pointer),
        ndjson_json: some(pointer),
        ..Usage::default()
    }
}

fn rules(pick: Pick, meters: &[Usage]) -> Arc<Rules> {
    let mut rules = Rules::new(pick);
    for meter in meters {
        rules.add(Some(meter)).unwrap();
    }
    Arc::new(rules)
}

fn head(fields: &[(&'static str, &str)]) -> HeaderMap {
    let mut head = HeaderMap::new();
    for (name, value) in fields {
        head.append(*name, value.parse().unwrap());
    }
    head
}

const EVENTS: [(&str, &str); 1] = [("content-type", "text/event-stream; charset=utf-8")];

/// What a response came to, and how much of its body passed before the end of it.
#[derive(Debug, PartialEq)]
struct Found {
    reported: Option<SmallVec<[u64; 2]>>,
    unreadable: bool,
    conflicting: bool,
    done: bool,
}

fn read<'a>(
    rules: &Arc<Rules>,
    fields: &[(&'static str, &str)],
    pieces: impl IntoIterator<Item = &'a [u8]>,
    complete: bool,
) -> (Found, Vec<u8>) {
    let mut reading = Reading::new(rules, &head(fields), Names::new());
    let mut passed = Vec::new();
    for piece in pieces {
        let passes = reading.feed(piece);
        passed.extend_from_slice(&piece[..passes]);
    }
    let done = reading.is_done();
    reading.end(complete);
    let quoted = [7 * N, 7 * N];
    let found = Found {
        reported: reading.reported(&quoted),
        unreadable: reading.is_unreadable(),
        conflicting: reading.is_conflicting(),
        done,
    };
    (found, passed)
}

fn events(rules: &Arc<Rules>, text: &str) -> Found {
    read(rules, &EVENTS, [text.as_bytes()], true).0
}

/// Pieces of these lengths, and the rest.
fn cut<'a>(bytes: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let (mut pieces, mut rest) = (Vec::new(), bytes);
    for length in lengths {
        let (piece, more) = rest.split_at((*length).min(rest.len()));
        pieces.push(piece);
        rest = more;
    }
    pieces.push(rest);
    pieces
}

fn one() -> Arc<Rules> {
    rules(Pick::Last, &[anywhere("/usage/n")])
}

/// Streams as backends send them, and as they should not.
const STREAMS: &[&str] = &[
    "data: {\"x\":1,\"usage\":null}\n\ndata: {\"usage\":{\"n\":12}}\n\ndata: [DONE]\n\n",
    "data:{\"usage\":{\"n\":1}}\r\n\r\ndata:{\"usage\":{\"n\":2}}\r\n\r\ndata:[DONE]\r\n\r\n",
    "\u{feff}data: {\"usage\":{\"n\":3}}\r\rdata:  [DONE]\r\r",
    ": hello\n\nevent: message\nid: 7\ndata: {\"usage\":\ndata: {\"n\":\ndata\ndata: 4}}\nretry: 1\n\n",
    "data: {\"us\\u0061ge\":{\"\\u006e\":5}}\n\ndata: {\"t\":\"\\u4e2d\"}\n\n",
    "data: {\"usage\":{\"n\":6}}\ndata: [DONE]\n\ndata: {\"usage\":{\"n\":9}}\n\n",
    "event: ping\ndata: {\"usage\":{\"n\":7}}",
    "data: {\"usage\":{\"n\":8}\n\ndata: {\"usage\":{\"n\":-1}}\n\ndata: x \"n\" y\n\n",
    "data: {\"usage\":{\"n\":1e400}}\n\ndata: {\"usage\":{\"n\":\"1.5\"}}\n\n\n\ndata: [DONE]garbage",
    "datax: {\"usage\":{\"n\":1}}\nDATA: {\"usage\":{\"n\":1}}\n\ndata: [DON\n\ndata: DONE]\n\n",
    "\n\r\n\r",
    "data: ",
    "\u{feff}",
];

const EXPECTED: &[Option<u64>] = &[
    Some(12 * N),
    Some(2 * N),
    Some(3 * N),
    Some(4 * N),
    Some(5 * N),
    Some(6 * N),
    Some(7 * N),
    None,
    Some(1_500_000),
    None,
    None,
    None,
    None,
];

#[test]
fn f15_streams_are_read_as_the_standard_says_and_as_backends_write_them() {
    for (text, expected) in STREAMS.iter().zip(EXPECTED) {
        let found = events(&one(), text);
        assert_eq!(found.reported, expected.map(|n| smallvec![n]), "{text:?}");
        assert_eq!(found.done, text.contains("[DONE]"), "{text:?}");
    }
}

#[test]
fn d30_every_split_of_a_stream_comes_out_the_same_and_keeps_done_back() {
    for text in STREAMS {
        let bytes = text.as_bytes();
        let whole = events(&one(), text);
        // `]` of `[DONE]` is the byte that tells.
        let told = text.find("[DONE]").map_or(bytes.len(), |at| at + 5);
        let begins = text.find("[DONE]").map(|at| {
            let before = text[..at].rfind("\n\n").map(|at| at + 2);
            before.or_else(|| text[..at].rfind("\r\n\r\n").map(|at| at + 4)).unwrap_or(0)
        });
        for first in 0..=bytes.len() {
            for second in 0..=bytes.len() - first {
                let (found, passed) = read(&one(), &EVENTS, cut(bytes, &[first, second]), true);
                assert_eq!(found, whole, "{text:?} at {first}, {second}");
                assert!(bytes.starts_with(&passed) && passed.len() <= told, "{text:?}");
                if !whole.done {
                    assert_eq!(passed.len(), bytes.len());
                }
            }
        }
        let (found, _) = read(&one(), &EVENTS, bytes.chunks(1), true);
        assert_eq!(found, whole, "{text:?}");
        // In one piece all before the event passes, and nothing of it.
        if let Some(begins) = begins.filter(|_| !text.contains('\r') || text.contains("\r\n")) {
            let (_, passed) = read(&one(), &EVENTS, [bytes], true);
            assert_eq!(passed.len(), begins, "{text:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn d30_any_bytes_in_any_pieces_come_out_as_they_do_whole(
        parts in prop::collection::vec(prop::sample::select(vec![
            "\n", "\r", "\r\n", "\n\n", "data", "data:", "data: ", ":", " ", "\u{feff}", "event: x",
            "{\"usage\":{\"n\":1}}", "{\"usage\":{\"n\":22}}", "{\"usage\":{\"n\":null}}",
            "{\"usage\":{\"n\":-4}}", "{\"usage\":", "{\"n\":3}}", "{\"u\\u0073age\":{\"n\":4}}",
            "[DONE]", "[DO", "NE]", "x", "\u{0}", "1", "{}", "\"n\"",
        ]), 0..24),
        lengths in prop::collection::vec(0_usize..9, 0..60),
        pick in prop::sample::select(vec![Pick::Last, Pick::Sum, Pick::Max]),
        complete: bool,
        kind in prop::sample::select(vec!["text/event-stream", "application/x-ndjson", "text/json"]),
    ) {
        let text = parts.concat();
        let rules = rules(pick, &[anywhere("/usage/n")]);
        let fields = [("content-type", kind)];
        let (whole, _) = read(&rules, &fields, [text.as_bytes()], complete);
        let (found, passed) = read(&rules, &fields, cut(text.as_bytes(), &lengths), complete);
        prop_assert_eq!(&found, &whole);
        prop_assert!(text.as_bytes().starts_with(&passed));
        if !found.done {
            prop_assert_eq!(passed.len(), text.len());
        }
        let coded = gzip(text.as_bytes());
        let fields = [("content-type", kind), ("content-encoding", "gzip")];
        let (decoded, _) = read(&rules, &fields, cut(&coded, &lengths), complete);
        prop_assert_eq!(&decoded, &whole);
    }
}

#[test]
fn f15_of_several_usages_the_route_says_which_counts() {
    let text = "data: {\"usage\":{\"n\":2}}\n\ndata: {\"usage\":{\"n\":5}}\n\n\
                data: {\"usage\":null}\n\ndata: {\"usage\":{\"n\":3}}\n\n";
    for (pick, n, conflicting) in
        [(Pick::Last, 3, true), (Pick::Sum, 10, false), (Pick::Max, 5, false)]
    {
        let found = events(&rules(pick, &[anywhere("/usage/n")]), text);
        assert_eq!(found.reported, Some(smallvec![n * N]));
        assert_eq!((found.conflicting, found.unreadable), (conflicting, false), "{pick:?}");
        let lines = text.replace("data: ", "");
        let fields = [("content-type", "application/x-ndjson")];
        let rules = rules(pick, &[anywhere("/usage/n")]);
        let (found, _) = read(&rules, &fields, [lines.as_bytes()], true);
        assert_eq!(found.reported, Some(smallvec![n * N]));
    }
    // The same again is no conflict.
    let found = events(&one(), "data: {\"usage\":{\"n\":2}}\n\ndata: {\"usage\":{\"n\":2.0}}\n\n");
    assert_eq!((found.reported, found.conflicting), (Some(smallvec![2 * N]), false));
}

#[test]
fn d41_meters_are_told_in_one_event_or_in_several() {
    let rules = rules(Pick::Last, &[anywhere("/message/usage/in"), anywhere("/usage/out")]);
    let text = "data: {\"message\":{\"usage\":{\"in\":25}}}\n\n\
                data: {\"usage\":{\"out\":1}}\n\ndata: {\"usage\":{\"out\":15}}\n\n";
    assert_eq!(events(&rules, text).reported, Some(smallvec![25 * N, 15 * N]));
    assert_eq!(events(&rules, "data: {\"usage\":{\"out\":1}}\n\n").reported, None);
}

#[test]
fn f56_what_is_no_quantity_is_not_told_and_spoils_a_sum_only() {
    for bad in ["-1", "\"NaN\"", "1e400", "\"-0.5\"", "9007199254741", "1e3", "{}", "[1]", "true"] {
        let text =
            format!("data: {{\"usage\":{{\"n\":2}}}}\n\ndata: {{\"usage\":{{\"n\":{bad}}}}}\n\n");
        for (pick, expected) in [(Pick::Last, Some(2)), (Pick::Max, Some(2)), (Pick::Sum, None)] {
            let found = events(&rules(pick, &[anywhere("/usage/n")]), &text);
            assert_eq!(found.reported, expected.map(|n: u64| smallvec![n * N]), "{pick:?} {bad}");
            assert!(found.unreadable && !found.conflicting, "{bad}");
        }
    }
    // Two that an amount can hold, and their sum that it cannot.
    let text = "data: {\"usage\":{\"n\":9007199254}}\n\n".repeat(2);
    assert_eq!(events(&rules(Pick::Sum, &[anywhere("/usage/n")]), &text).reported, None);
    // A key that is there twice tells two things.
    let found = events(&one(), "data: {\"usage\":{\"n\":1,\"n\":2}}\n\n");
    assert!(found.reported.is_none() && found.unreadable);
}

#[test]
fn f15_of_header_fields_the_first_valid_one_counts() {
    let rules = rules(Pick::Last, &[Usage { header: some("x-used"), ..Usage::default() }]);
    for (values, n, conflicting, unreadable) in [
        (&["3"][..], Some(3), false, false),
        (&["3", "3"], Some(3), false, false),
        (&["3", "4"], Some(3), true, false),
        (&["-3", "4"], Some(4), false, true),
        (&["NaN"], None, false, true),
        (&[], None, false, false),
    ] {
        let fields: Vec<_> = values.iter().map(|value| ("x-used", *value)).collect();
        let (found, _) = read(&rules, &fields, [], true);
        assert_eq!(found.reported, n.map(|n: u64| smallvec![n * N]), "{values:?}");
        assert_eq!((found.conflicting, found.unreadable), (conflicting, unreadable), "{values:?}");
    }
}

#[test]
fn f68_a_trailer_tells_usage_only_where_the_response_declares_it() {
    let rules = rules(Pick::Last, &[Usage { trailer: some("x-used"), ..Usage::default() }]);
    let trailing = head(&[("x-used", "3")]);
    for (declared, n) in [(&[("trailer", "a, X-Used")][..], Some(3)), (&[], None)] {
        let names = rules.declared(&head(declared));
        let mut reading = Reading::new(&rules, &head(&[("x-used", "9")]), names);
        reading.feed(b"anything");
        assert_eq!(reading.is_final(), declared.is_empty());
        reading.trailers(&trailing);
        assert!(reading.is_final());
        reading.end(true);
        assert_eq!(reading.reported(&[N]), n.map(|n: u64| smallvec![n * N]));
    }
}

#[test]
fn d32_f11_what_was_cut_counts_where_it_is_whole_in_itself() {
    let whole = rules(Pick::Last, &[anywhere("")]);
    for (kind, text, n) in [
        ("text/event-stream", "data: {\"usage\":{\"n\":3}}", Some(3)),
        ("text/event-stream", "data: {\"usage\":{\"n\":3}}\n\ndata: {\"usage\":{\"n\":4", Some(3)),
        ("application/x-ndjson", "{\"usage\":{\"n\":3}}\n{\"usage\":{\"n\":4}", Some(3)),
        ("application/json", "{\"usage\":{\"n\":3}}  ", Some(3)),
        ("application/json", "{\"usage\":{\"n\":3}", None),
    ] {
        let fields = [("content-type", kind)];
        let (found, _) = read(&one(), &fields, [text.as_bytes()], false);
        assert_eq!(found.reported, n.map(|n: u64| smallvec![n * N]), "{text}");
        assert!(!found.unreadable, "{text}");
    }
    // Half a number is a number.
    for (kind, text) in [
        ("text/event-stream", "data: 12"),
        ("application/x-ndjson", "12"),
        ("application/json", "12"),
    ] {
        let fields = [("content-type", kind)];
        let cut = read(&whole, &fields, [text.as_bytes()], false).0;
        assert_eq!(cut.reported, None, "{kind}");
        let all = read(&whole, &fields, [text.as_bytes()], true).0;
        assert_eq!(all.reported, Some(smallvec![12 * N]), "{kind}");
    }
}

#[test]
fn f74_what_is_longer_than_is_read_is_skipped_and_counted() {
    let long = "x".repeat(MAX_TEXT);
    let rest = "{\"usage\":{\"n\":3}}";
    for (kind, text) in [
        ("text/event-stream", format!("data: {long}\n\ndata: {rest}\n\n")),
        (
            "text/event-stream",
            format!("data: aaaaaaaaaa\ndata: {}\n\ndata: {rest}\n\n", &long[6..]),
        ),
        ("application/x-ndjson", format!("{long}y\n{rest}\n")),
    ] {
        let fields = [("content-type", kind)];
        for size in [text.len(), 1000, 65_536] {
            let (found, _) = read(&one(), &fields, text.as_bytes().chunks(size), true);
            assert_eq!(found.reported, Some(smallvec![3 * N]), "{kind} {size}");
            assert!(found.unreadable, "{kind} {size}");
        }
    }
    // What is no data may be as long as it likes.
    let text = format!(": {long}\nevent: {long}\ndata: {rest}\n\n");
    let found = events(&one(), &text);
    assert_eq!((found.reported, found.unreadable), (Some(smallvec![3 * N]), false));
    let found = read(&one(), &[], [long.as_bytes(), rest.as_bytes()], true).0;
    assert_eq!((found.reported, found.unreadable), (None, true));
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn deflate(text: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn zstd(text: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(text, 3).unwrap()
}

/// `{"usage":{"n":3}}` by the reference encoder.
const BROTLI: &[u8] = &[
    0x0b, 0x08, 0x80, 0x7b, 0x22, 0x75, 0x73, 0x61, 0x67, 0x65, 0x22, 0x3a, 0x7b, 0x22, 0x6e, 0x22,
    0x3a, 0x33, 0x7d, 0x7d, 0x03,
];

#[test]
fn f74_usage_is_found_in_bodies_that_are_encoded() {
    let text = b"{\"usage\":{\"n\":3}}";
    let twice = [gzip(&text[..9]), gzip(&text[9..])].concat();
    let behind = [gzip(text), b"what is not of it".to_vec()].concat();
    let frames = [zstd(&text[..5]), zstd(&text[5..])].concat();
    for (coding, coded) in [
        ("gzip", &gzip(text)),
        ("X-GZIP", &gzip(text)),
        ("gzip", &twice),
        ("gzip", &behind),
        ("deflate", &deflate(text)),
        ("br", &BROTLI.to_vec()),
        ("identity, zstd", &zstd(text)),
        ("zstd", &frames),
    ] {
        let fields = [("content-encoding", coding)];
        for size in [coded.len(), 1, 7] {
            let (found, passed) = read(&one(), &fields, coded.chunks(size), true);
            assert_eq!(found.reported, Some(smallvec![3 * N]), "{coding} {size}");
            assert!(!found.unreadable && passed == **coded, "{coding} {size}");
        }
    }
    for (coding, coded) in [
        ("gzip, br", gzip(text)),
        ("compress", gzip(text)),
        ("gzip", zstd(text)),
        ("zstd", gzip(text)),
        ("br", vec![0xff; 40]),
        ("deflate", gzip(text)),
    ] {
        let (found, _) = read(&one(), &[("content-encoding", coding)], coded.chunks(9), true);
        assert_eq!((found.reported, found.unreadable), (None, true), "{coding}");
    }
}

#[test]
fn d30_done_is_kept_back_in_an_encoded_stream_too() {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(b"data: {\"usage\":{\"n\":3}}\n\n").unwrap();
    encoder.flush().unwrap();
    let before = encoder.get_ref().len();
    encoder.write_all(b"data: [DONE]\n\n").unwrap();
    let coded = encoder.finish().unwrap();
    let fields = [EVENTS[0], ("content-encoding", "gzip")];
    for size in [1, 3, 1000] {
        let pieces = cut(&coded, &[before]);
        let pieces = pieces.iter().flat_map(|piece| piece.chunks(size));
        let (found, passed) = read(&one(), &fields, pieces, true);
        assert!(found.done && found.reported == Some(smallvec![3 * N]));
        assert!((before..coded.len()).contains(&passed.len()), "{}", passed.len());
    }
}

#[test]
fn f74_a_bomb_is_not_unpacked() {
    // A thousand times its size, and nothing else in it.
    let zeros = vec![b' '; 80 << 20];
    for (coding, bomb) in [("gzip", gzip(&zeros)), ("zstd", zstd(&zeros))] {
        let head = head(&[("content-encoding", coding)]);
        let Coding::Known(mut decoding) = Coding::of(&head) else { panic!("{coding}") };
        let mut unpacked = 0_usize;
        let ended = bomb.chunks(4096).try_for_each(|piece| {
            decoding.feed(piece, |part| {
                assert!(part.len() <= 64 << 10);
                unpacked += part.len();
            })
        });
        assert_eq!(ended, Err(coding::Lost));
        assert!(unpacked < 8 << 20, "{coding}: {unpacked}");
        let (found, passed) = read(&one(), &[("content-encoding", coding)], bomb.chunks(9), true);
        assert_eq!((found.reported, found.unreadable), (None, true));
        assert_eq!(passed.len(), bomb.len());
    }
    // A window that takes more memory than HTTP's readers need is refused.
    let mut encoder = zstd::stream::raw::Encoder::new(3).unwrap();
    encoder.set_parameter(zstd::stream::raw::CParameter::WindowLog(27)).unwrap();
    let mut writer = zstd::stream::zio::Writer::new(Vec::new(), encoder);
    writer.write_all(b"{\"usage\":{\"n\":3}}").unwrap();
    writer.flush().unwrap();
    let coded = writer.into_inner().0;
    let (found, _) = read(&one(), &[("content-encoding", "zstd")], [&coded[..]], true);
    assert_eq!((found.reported, found.unreadable), (None, true));
}

#[test]
fn a_body_that_answers_whole_or_as_a_stream_is_read_by_what_it_says_it_is() {
    let usage = Usage { json: some("/a"), sse_json: some("/b"), ..Usage::default() };
    let rules = rules(Pick::Last, &[usage]);
    for (kind, text, n) in [
        ("application/json", "{\"a\":1,\"b\":2}", Some(1)),
        ("Text/Event-Stream ; charset=utf-8", "data: {\"a\":1,\"b\":2}\n\n", Some(2)),
        ("text/event-stream", "{\"a\":1,\"b\":2}", None),
        ("text/plain", "{\"a\":1}", Some(1)),
    ] {
        let (found, _) = read(&rules, &[("content-type", kind)], [text.as_bytes()], true);
        assert_eq!(found.reported, n.map(|n: u64| smallvec![n * N]), "{kind}");
    }
}
