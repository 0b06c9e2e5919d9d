//! What may pass of a stream is decided event by event, and not by how it is cut.

use std::sync::Arc;

use http::HeaderMap;
use proptest::prelude::*;
use smallvec::smallvec;

use super::super::usage::{Names, Rules};
use super::*;
use crate::config::{Pick, Usage};

/// A meter that is told at `/n`, and one that counts events.
fn rules() -> Arc<Rules> {
    let mut rules = Rules::new(Pick::Last);
    let told = Usage { sse_json: Some("/n".to_owned()), ..Usage::default() };
    rules.add(Some(&told)).unwrap();
    rules.add(None).unwrap();
    rules.count_events();
    Arc::new(rules)
}

fn head(coding: &str) -> HeaderMap {
    let mut head = HeaderMap::new();
    head.insert("content-type", "text/event-stream".parse().unwrap());
    if !coding.is_empty() {
        head.insert("content-encoding", coding.parse().unwrap());
    }
    head
}

/// How a stream went.
#[derive(Debug, PartialEq)]
struct Went {
    passed: Vec<u8>,
    waits: Vec<u8>,
    /// What was held when it ended, or when nothing could pay the next slice.
    held: Quantities,
    stopped: bool,
    clean: bool,
}

/// Plays a stream in these pieces, with slices of two and three, so many of which can be paid.
fn play<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, payable: usize) -> Went {
    let sizes: Quantities = smallvec![2 * MICRO, 3 * MICRO];
    let mut held = sizes.clone();
    let mut reading = Reading::new(&rules(), &head(""), Names::new());
    let mut slices = Slices {
        sizes: sizes.clone(),
        request_id: HeaderValue::from_static("a"),
        gate: Gate::default(),
    };
    slices.begin(&mut reading);
    let (mut passing, mut waiting) = <(VecDeque<_>, VecDeque<_>)>::default();
    let (mut paid, mut stopped) = (0, false);
    'pieces: for piece in pieces {
        slices.push(Bytes::copy_from_slice(piece));
        loop {
            match slices.next(&mut reading, &held, &mut passing, &mut waiting) {
                Next::Pass => {}
                Next::Read => break,
                Next::TopUp if paid == payable => {
                    stopped = true;
                    break 'pieces;
                }
                Next::TopUp => {
                    held = super::held_for(&held, reading.progress(), &sizes);
                    paid += 1;
                }
            }
        }
    }
    let rest = if stopped { None } else { slices.rest() };
    let bytes = |pieces: VecDeque<Bytes>| pieces.into_iter().flatten().collect::<Vec<u8>>();
    let (passed, waits) = (bytes(passing), bytes(waiting.into_iter().chain(rest).collect()));
    Went { passed, waits, held, stopped, clean: slices.may_end_cleanly() }
}

const EVENTS: [&str; 7] = [
    "data: {\"n\":1}\n\n",
    ": nothing\r\n\r\n",
    "event: x\rdata: {}\r\r",
    "data: {\"n\":3}\r\n\r\n",
    "data: {\"n\":3}\ndata: \n\n",
    "data: {}\n\n",
    "data: {\"n\":9}\n\n",
];

#[test]
fn d29_f82_an_event_passes_when_it_is_paid_for_and_the_stream_ends_before_one_that_is_not() {
    let text = EVENTS.concat() + "data: [DONE]\n\n: bye";
    let length = |events: usize| EVENTS[..events].iter().map(|event| event.len()).sum::<usize>();
    for (payable, passed, held, stopped) in [
        // The fourth tells three of two.
        (0, length(3), [2, 3], true),
        // The fifth is the fourth with data.
        (1, length(4), [4, 3], true),
        (2, length(6), [4, 6], true),
        (3, length(7), [10, 6], false),
        (9, length(7), [10, 6], false),
    ] {
        let went = play([text.as_bytes()], payable);
        assert_eq!(went.passed, &text.as_bytes()[..passed], "{payable}");
        assert_eq!(went.held[..], held.map(|n| n * MICRO), "{payable}");
        assert_eq!((went.stopped, went.clean), (stopped, true), "{payable}");
        assert_eq!(went.waits.is_empty(), stopped, "{payable}");
    }
}

proptest! {
    #[test]
    fn f82_how_a_stream_is_cut_changes_nothing_of_what_passes(
        chosen in prop::collection::vec(0..EVENTS.len(), 0..12),
        end in prop::sample::select(vec!["", "data: [DONE]\n\n", "data: {\"n\":2}", "data: [DONE]\n: x"]),
        cuts in prop::collection::vec(0..200_usize, 0..12),
        payable in 0..5_usize,
    ) {
        let text: String = chosen.iter().map(|at| EVENTS[*at]).chain([end]).collect();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at.min(text.len())).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]);
        let (cut, whole) = (play(pieces, payable), play([text.as_bytes()], payable));
        prop_assert_eq!(&cut, &whole);
        let all = [&*whole.passed, &*whole.waits].concat();
        prop_assert!(text.as_bytes().starts_with(&all) && (whole.stopped || all.len() == text.len()));
    }
}

#[test]
fn f82_an_event_of_any_length_is_kept_back_up_to_a_bound() {
    let long = format!("data: {}\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\n", "x".repeat(MAX_KEPT * 3));
    let pieces = || long.as_bytes().chunks(MAX_KEPT / 2 + 1);
    let went = play(pieces(), 0);
    assert!(went.stopped && went.clean && went.passed.ends_with(b"data: 2\n\n"));
    // It is passed on while it comes, so an end within it is none.
    let torn = format!("{}data: {}\n\n", "data: 1\n\n".repeat(3), "x".repeat(MAX_KEPT * 3));
    let went = play(torn.as_bytes().chunks(MAX_KEPT / 2 + 1), 0);
    assert!(went.stopped && !went.clean);
}

#[test]
fn f82_an_event_that_comes_byte_by_byte_is_kept_in_one_piece() {
    let mut reading = Reading::new(&rules(), &head(""), Names::new());
    let mut slices = Slices {
        sizes: smallvec![MICRO, MICRO],
        request_id: HeaderValue::from_static("a"),
        gate: Gate::default(),
    };
    slices.begin(&mut reading);
    let text = format!("data: {}\n\ndata: 2", "x".repeat(10_000));
    let (mut passing, mut waiting) = <(VecDeque<_>, VecDeque<_>)>::default();
    for byte in text.as_bytes() {
        slices.push(Bytes::copy_from_slice(&[*byte]));
        while slices.next(&mut reading, &[MICRO, MICRO], &mut passing, &mut waiting) != Next::Read {
        }
    }
    let (event, rest) = text.split_at(text.len() - "data: 2".len());
    // One more, because the last byte of it came when the others were together.
    assert!(passing.len() <= 2, "{} pieces", passing.len());
    assert_eq!(passing.into_iter().flatten().collect::<Vec<u8>>(), event.as_bytes());
    assert_eq!((slices.rest().unwrap(), waiting.len()), (Bytes::from(rest.to_owned()), 0));
}

#[test]
fn f56_f82_usage_that_grows_by_more_than_a_million_slices_at_once_is_not_told() {
    let text = |numbers: &[u64]| -> String {
        numbers.iter().map(|n| format!("data: {{\"n\":{n}}}\n\n")).collect()
    };
    // A slice of what is told is two.
    for (pick, numbers, told, unreadable) in [
        (Pick::Last, &[1, 9_000_000_000, 3][..], Some(3), true),
        (Pick::Max, &[1, 9_000_000_000, 3], Some(3), true),
        // What is not known cannot be added up.
        (Pick::Sum, &[1, 9_000_000_000, 3], None, true),
        (Pick::Last, &[2_000_001], Some(2_000_001), false),
        (Pick::Last, &[2_000_002], None, true),
        (Pick::Last, &[2_000_000, 4_000_000, 6_000_000], Some(6_000_000), false),
        (Pick::Sum, &[2_000_000, 2_000_000], Some(4_000_000), false),
    ] {
        let mut rules = Rules::new(pick);
        rules.add(Some(&Usage { sse_json: Some("/n".to_owned()), ..Usage::default() })).unwrap();
        let mut reading = Reading::new(&Arc::new(rules), &head(""), Names::new());
        let mut slices = Slices {
            sizes: smallvec![2 * MICRO],
            request_id: HeaderValue::from_static("a"),
            gate: Gate::default(),
        };
        slices.begin(&mut reading);
        reading.feed(text(numbers).as_bytes());
        let found = reading.reported(&[0]).map(|told| told[0] / MICRO);
        assert_eq!((found, reading.is_unreadable()), (told, unreadable), "{pick:?} {numbers:?}");
    }
}

#[test]
fn f74_an_encoded_stream_passes_piece_by_piece() {
    let mut reading = Reading::new(&rules(), &head("gzip"), Names::new());
    let slices = &mut Slices {
        sizes: smallvec![MICRO, MICRO],
        request_id: HeaderValue::from_static("a"),
        gate: Gate::default(),
    };
    slices.begin(&mut reading);
    assert!(!slices.may_end_cleanly());
    slices.push(Bytes::from_static(b"\x1f\x8b\x08"));
    let (mut passing, mut waiting) = <(VecDeque<_>, VecDeque<_>)>::default();
    assert_eq!(slices.next(&mut reading, &[0, 0], &mut passing, &mut waiting), Next::Pass);
    assert_eq!(passing, [Bytes::from_static(b"\x1f\x8b\x08")]);
}

#[test]
fn d29_a_slice_is_as_many_as_are_needed_and_its_price_is_the_exact_difference() {
    let next = |held, progress, size| super::held_for(&[held], [progress], &[size])[0];
    assert_eq!(next(5, 5, 5), 5);
    assert_eq!(next(5, 6, 5), 10);
    assert_eq!(next(5, 11, 5), 15);
    assert_eq!(next(u64::MAX, u64::MAX, 1), u64::MAX);
    assert_eq!(next(1, u64::MAX, u64::MAX), u64::MAX);
    let price = |cost, operations| Price {
        cost: Credits::from_micro(cost).unwrap(),
        operations: Operations::from_micro(operations).unwrap(),
    };
    assert_eq!(difference(&price(7, 4), &price(5, 4)), Some(price(2, 0)));
    assert_eq!(difference(&price(7, 4), &price(5, 1)), Some(price(2, 3)));
    // What costs nothing yet is held with the next slice.
    assert_eq!(difference(&price(5, 4), &price(5, 1)), None);
}
