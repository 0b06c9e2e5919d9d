//! Accounts by name and number, and what is left in them.

use super::*;

#[test]
fn names_read_from_the_outside_in() {
    let name = AccountName {
        org: "acme",
        kind: AccountKind::Licence,
        ids: ["lic-1", "alice"],
        period: "2026-11-01".parse().unwrap(),
    };
    assert_eq!(name.to_string(), "acme/licence/lic-1/alice/2026-11-01");
    let pool =
        AccountName { kind: AccountKind::Pool, ids: ["2026", ""], period: Label::NONE, ..name };
    assert_eq!(pool.to_string(), "acme/pool/2026");
}

#[test]
fn an_account_in_the_red_counts_as_empty() {
    let balance = Balance { base: 5, adjusted: -7, held: 1, captured: 0 };
    assert_eq!(balance.remaining(), -3);
    assert_eq!(balance.available(), 0);
    assert_eq!(balance.granted(), 0);
}

#[test]
fn stems_keep_ids_apart() {
    assert_ne!(Stem::new(&["a", "bc"]), Stem::new(&["ab", "c"]));
    assert_eq!(Stem::new(&["a", "b"]), Stem::new(&["a", "b"]));
}

#[test]
fn a_stem_is_the_digest_of_its_ids_and_reads_back_as_its_bytes() {
    let stem = Stem::new(&["acme", "alice"]);
    let bytes = postcard::to_stdvec(&stem).unwrap();
    // What is written in journals must mean the same account for ever.
    assert_eq!(bytes[0], 16);
    assert_eq!(bytes[1..], Sha256::digest(b"acme/alice/")[..16]);
    assert_eq!(postcard::from_bytes::<Stem>(&bytes).unwrap(), stem);
}

#[test]
fn what_runs_out_has_a_word_and_a_unit() {
    use AccountKind::{Draw, Licence, Overage, Overdraft, Pool, Tally};
    for (kind, word, unit) in [
        (Licence, "licence", "credits"),
        (Overdraft, "overdraft", "credits"),
        (Pool, "pool", "operations"),
        (Overage, "overage", "operations"),
        (Draw, "draw", "operations"),
        (Tally, "tally", "credits"),
    ] {
        assert_eq!((kind.word(), kind.unit()), (word, unit));
        assert_eq!(AccountKind::ADJUSTED.contains(&kind), kind != Tally);
    }
}

#[test]
fn d17_d26_limits_and_caps_count_and_pay_nothing() {
    for (kind, word, pays) in [
        (LegKind::Licence, "licence", true),
        (LegKind::Pool, "pool", true),
        (LegKind::Overage, "overage", true),
        (LegKind::Overdraft, "overdraft", true),
        (LegKind::Limit, "limit", false),
        (LegKind::Cap, "cap", false),
    ] {
        assert_eq!((kind.word(), kind.pays()), (word, pays));
    }
}

#[test]
fn what_is_left_is_what_was_granted_less_what_is_held_or_captured() {
    let balance = Balance { base: 100, adjusted: -20, held: 3, captured: 7 };
    assert_eq!((balance.granted(), balance.remaining(), balance.available()), (80, 70, 70));
    let raised = Balance { adjusted: 20, ..balance };
    assert_eq!((raised.granted(), raised.remaining(), raised.available()), (120, 110, 110));
}

#[test]
fn a_view_holds_the_slots_it_was_made_for() {
    let balance = Balance { base: 5, ..Balance::default() };
    let mut view = View::new(2);
    view.set(1, balance);
    view.set(2, balance);
    assert_eq!([view.get(0), view.get(1), view.get(2)], [None, Some(balance), None]);
    assert!(view.get_mut(0).is_none() && view.get_mut(2).is_none());
    view.get_mut(1).unwrap().base = 6;
    assert_eq!(view.get(1).unwrap().base, 6);
}

#[test]
fn legs_of_one_kind_add_up() {
    let leg = |kind, amount| Taken { slot: 0, kind, amount };
    let legs = [leg(LegKind::Pool, 2), leg(LegKind::Limit, 7), leg(LegKind::Pool, 3)];
    assert_eq!([LegKind::Pool, LegKind::Cap].map(|kind| sum_of(&legs, kind)), [5, 0]);
}

#[test]
fn a_name_is_taken_apart_as_it_was_put_together() {
    let cycle: Label = "2026-11-01".parse().unwrap();
    for (kind, ids, period) in [
        (AccountKind::Licence, ["lic-1", "2026-11-01"], cycle),
        (AccountKind::Overdraft, ["2026-11-01", ""], cycle),
        (AccountKind::Draw, ["user", "2026-11-01"], cycle),
        (AccountKind::Pool, ["2026-11-01", ""], Label::NONE),
    ] {
        let name = AccountName { org: "acme", kind, ids, period };
        let key = AccountKey { stem: Stem::new(&ids), period, kind };
        let text = name.to_string();
        let read = AccountName::read(&text, &key).unwrap();
        assert_eq!((read.org, read.ids, read.period), ("acme", ids, period), "{text}");
        assert!(AccountName::read("acme", &key).is_none());
    }
}

#[test]
fn f57_a_balance_is_never_beyond_the_largest_amount() {
    let balance = Balance { base: MAX_MICRO, adjusted: 1 << 53, held: 0, captured: MAX_MICRO / 2 };
    assert_eq!(balance.granted(), MAX_MICRO);
    assert_eq!(balance.available(), MAX_MICRO);
    let largest = Balance { base: MAX_MICRO, adjusted: i64::MAX, held: 1, captured: 0 };
    assert_eq!((largest.granted(), largest.available()), (MAX_MICRO, MAX_MICRO));
    let spent = Balance { captured: (1 << 54) - 3, adjusted: 1 << 53, ..balance };
    assert_eq!((spent.granted(), spent.available()), (MAX_MICRO, 2));
}
