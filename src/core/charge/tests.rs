//! The charge document: what it says while a charge is held, and what once it is resolved.

use serde_json::json;

use super::super::note::{self, HeldNote, ObservedNote};
use super::super::waterfall::Observed;
use super::*;

fn credits(micro: u64) -> Credits {
    Credits::from_micro(micro).unwrap()
}

fn memo<'a>(measures: &[(Option<&'a str>, u64)]) -> HoldMemo<'a> {
    let operations = super::super::amount::Operations::ZERO;
    HoldMemo {
        org: "acme",
        user: Some("alice"),
        key: "key-1",
        feature: "image",
        route: "/v1/images",
        measures: measures.to_vec(),
        price: Price { cost: credits(5_000_000), operations },
        pool: true,
        rate_card: "2026-11",
        cycle: "2026-11-01".parse().unwrap(),
        term: Some("2026"),
        profile: None,
        request_id: None,
    }
}

fn record<'a>(memo: HoldMemo<'a>, outcome: Option<OutcomeMemo>) -> ChargeRecord<'a> {
    let resolved =
        outcome.map(|outcome| (State::Captured, "2026-11-20T00:00:01Z".parse().unwrap(), outcome));
    ChargeRecord {
        id: ChargeId::v7(1, 2),
        held_at: Timestamp::UNIX_EPOCH,
        expires: None,
        memo,
        resolved,
        notes: Default::default(),
    }
}

fn words(state: State) -> (&'static str, String, serde_json::Value) {
    (state.word(), state.to_string(), json!(state))
}

#[test]
fn a_state_has_one_word_everywhere() {
    for (state, word) in [
        (State::Held, "held"),
        (State::Captured, "captured"),
        (State::Voided, "voided"),
        (State::Expired, "expired"),
    ] {
        assert_eq!(words(state), (word, word.to_owned(), json!(word)));
    }
}

#[test]
fn d30_d36_flags_are_told_by_their_words_and_no_other() {
    assert_eq!(Flags::default().words(), [""; 0]);
    assert_eq!(Flags::WOULD_REFUSE.words(), ["would_refuse"]);
    assert_eq!(Flags::USAGE_MISSING.words(), ["usage_missing"]);
    assert_eq!(Flags::IN_DOUBT.words(), ["in_doubt"]);
    assert_eq!(Flags::LATE.words(), ["late"]);
    assert_eq!(Flags(6).words(), ["in_doubt", "late"]);
}

#[test]
fn a_held_charge_says_what_was_asked_for() {
    let record = record(memo(&[(None, 1_500_000)]), None);
    let document = record.document(Vec::new());
    assert_eq!(record.cost(), credits(5_000_000));
    assert_eq!((document.state, document.cost), (State::Held, credits(5_000_000)));
    assert_eq!(document.quantity, json!("1.5"));
    assert_eq!(document.request_id, record.id.to_string());
    assert_eq!((document.created_at, document.resolved_at), (Timestamp::UNIX_EPOCH, None));
    assert_eq!(document.flags, [""; 0]);
    assert_eq!((document.cycle.as_str(), document.term.as_deref()), ("2026-11-01", Some("2026")));
}

#[test]
fn d30_a_resolved_charge_says_what_was_used() {
    let outcome = OutcomeMemo {
        cost: credits(3_000_000),
        measures: Some(vec![2_000_000]),
        flags: Flags::LATE,
    };
    let memo = HoldMemo {
        request_id: Some("request-1"),
        ..memo(&[(Some("input"), 9_000_000), (Some("output"), 4_000_000)])
    };
    let record = record(memo, Some(outcome));
    let document = record.document(Vec::new());
    assert_eq!(record.cost(), credits(3_000_000));
    assert_eq!((document.state, document.cost), (State::Captured, credits(3_000_000)));
    // A meter whose usage was not told stands with what was held for it.
    assert_eq!(document.quantity, json!({ "input": "2", "output": "4" }));
    assert_eq!((document.request_id.as_str(), document.flags), ("request-1", vec!["late".into()]));
    assert_eq!(document.resolved_at.unwrap().to_string(), "2026-11-20T00:00:01Z");
}

#[test]
fn d25_d31_legs_that_pay_are_shown_with_what_they_cover() {
    let line =
        |account, account_kind, kind, amount| LegLine { account, account_kind, kind, amount };
    let lines = [
        line("licence", AccountKind::Licence, LegKind::Licence, 3_000_000),
        line("empty", AccountKind::Licence, LegKind::Licence, 0),
        line("pool", AccountKind::Pool, LegKind::Pool, 1_000_000),
        line("draw", AccountKind::Draw, LegKind::Limit, 1_000_000),
        line("overdraft", AccountKind::Overdraft, LegKind::Overdraft, 2_000_000),
    ];
    let legs = leg_documents(&lines, credits(10_000_000));
    let texts: Vec<_> = legs
        .iter()
        .map(|leg| {
            [&leg.account, &leg.kind, &leg.covers, &leg.amount, &leg.unit].map(String::as_str)
        })
        .collect();
    assert_eq!(
        texts,
        [
            ["licence", "licence", "3", "3", "credits"],
            ["pool", "pool", "5", "1", "operations"],
            ["overdraft", "overdraft", "2", "2", "credits"],
        ]
    );
}

#[test]
fn d28_a_charge_tells_what_was_not_refused_and_what_nobody_pays() {
    let both = |credits, operations| Both {
        credits: self::credits(credits),
        operations: super::super::amount::Operations::from_micro(operations).unwrap(),
    };
    let held = both(2_000_000, 1_000_000);
    let note = |uncovered| ObservedNote { would_refuse: Some("seat_exhausted".into()), uncovered };
    let outcome = |cost| OutcomeMemo { cost: credits(cost), ..OutcomeMemo::default() };
    let observed = HoldNote { observed: Some(note(held)), ..HoldNote::default() };
    let mut open = record(memo(&[(None, 5_000_000)]), None);
    open.notes.0 = observed.clone();
    assert_eq!((open.uncovered(), open.covered()), (Some(held), credits(3_000_000)));
    let told = json!(open.document(Vec::new()));
    assert_eq!(told["flags"], json!(["would_refuse"]));
    assert_eq!(told["would_refuse"], "seat_exhausted");
    assert_eq!(told["uncovered"], json!({"credits": "2", "operations": "1"}));

    // What it came to in the end; who captured it whole without its owner noted nothing of it.
    let mut captured = record(memo(&[(None, 5_000_000)]), Some(outcome(4_000_000)));
    captured.notes.0 = observed.clone();
    for (end, uncovered, covered) in [
        (Some(both(1_000_000, 500_000)), Some(both(1_000_000, 500_000)), 3_000_000),
        (Some(both(0, 0)), None, 4_000_000),
        (None, Some(held), 2_000_000),
    ] {
        captured.notes.1.uncovered = end;
        assert_eq!((captured.uncovered(), captured.covered()), (uncovered, credits(covered)));
        assert_eq!(json!(captured.document(Vec::new()))["flags"], json!(["would_refuse"]));
    }
    let mut voided = captured.clone();
    voided.resolved = Some((State::Voided, Timestamp::UNIX_EPOCH, OutcomeMemo::default()));
    assert_eq!((voided.uncovered(), voided.covered()), (None, Credits::ZERO));

    // Nothing of it where nothing was refused.
    open.notes.0.observed = Some(ObservedNote::default());
    let told = json!(open.document(Vec::new()));
    assert_eq!((&told["flags"], told.get("would_refuse")), (&json!([]), None));
    assert_eq!(told.get("uncovered"), None);
}

#[test]
fn d29_f82_a_hold_that_grew_says_what_is_held_by_now_and_in_the_end_what_was_used() {
    let observed = ObservedNote {
        would_refuse: Some("seat_exhausted".into()),
        // Of what is captured if nobody settles it.
        uncovered: Both { credits: credits(1_000_000), ..Both::default() },
    };
    let uncovered = Both { credits: credits(8_000_000), ..Both::default() };
    let held = HeldNote { cost: credits(15_000_000), measures: vec![9_500_000], uncovered };
    let note = HoldNote { observed: Some(observed), held: Some(held), ..HoldNote::default() };
    let mut open = record(memo(&[(None, 5_000_000)]), None);
    open.notes.0 = note::decode(&note::encode(&note));
    assert_eq!(open.notes.0, note);
    assert_eq!((open.cost(), open.covered()), (credits(15_000_000), credits(7_000_000)));
    let told = open.document(Vec::new());
    assert_eq!((told.cost, &told.quantity), (credits(15_000_000), &json!("9.5")));
    assert_eq!(told.uncovered, Some(uncovered));

    let mut ended = |measures| {
        let outcome = OutcomeMemo { cost: credits(6_000_000), measures, flags: Flags::default() };
        open.resolved = Some((State::Captured, Timestamp::UNIX_EPOCH, outcome));
        (open.cost(), open.covered(), open.document(Vec::new()).quantity)
    };
    let (cost, covered) = (credits(6_000_000), credits(5_000_000));
    assert_eq!(ended(Some(vec![6_000_000])), (cost, covered, json!("6")));
    // Where usage was not told the whole hold was captured, and that is its quantity.
    assert_eq!(ended(None), (cost, covered, json!("9.5")));
}

#[test]
fn d28_what_is_noted_of_observe_mode_is_read_back_and_older_notes_are_none() {
    let observed = Observed {
        code: Some(super::super::refusal::Code::PoolExhausted),
        uncovered: Both { credits: credits(1), ..Both::default() },
    };
    let hold = HoldNote { observed: Some((&observed).into()), ..HoldNote::default() };
    let bytes = note::encode(&hold);
    let text = r#"{"observed":{"would_refuse":"pool_exhausted","uncovered":{"credits":"0.000001","operations":"0"}}}"#;
    assert_eq!(std::str::from_utf8(&bytes).unwrap(), text);
    let read: HoldNote = note::decode(&bytes);
    assert_eq!(read, hold);
    assert_eq!(read.observed.as_ref().map(Observed::from), Some(observed));
    for older in [&b""[..], b"{}", br#"{"rates":null,"later":1}"#] {
        assert_eq!(note::decode::<HoldNote>(older), HoldNote::default());
    }
    // A code of a later version is one all the same.
    let unknown = ObservedNote { would_refuse: Some("new_code".to_owned()), ..Default::default() };
    assert!(Observed::from(&unknown).code.is_some());
}
