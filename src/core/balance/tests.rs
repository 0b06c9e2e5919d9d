//! D10, D11 and D31: what of a licence that changed hands is whose, and what a user is shown.

use super::super::account::{
    Account, AccountKey, AccountKind, AccountName, Balance, Grant, Slot, Stem,
};
use super::super::cycle::{Anchor, Label, Schedule};
use super::super::entitlement::Overage;
use super::super::price::{Price, Quote, Tier};
use super::super::waterfall::{Plan, PoolSide, Split, Tally, plan};
use super::*;

/// Slots behind the two licences.
const OVERDRAFT: Slot = 2;
const POOL: Slot = 3;
const DRAW: Slot = 4;
const TALLY: Slot = 5;

fn account(id: &'static str, kind: AccountKind, base: u64) -> Account<'static> {
    let name = AccountName { org: "acme", kind, ids: [id, ""], period: Label::NONE };
    let key = AccountKey { stem: Stem::new(&["acme", id]), period: Label::NONE, kind };
    Account { key, name, grant: Grant { base, ..Grant::default() } }
}

fn balance(base: u64, adjusted: i64, held: u64, captured: u64) -> Balance {
    Balance { base, adjusted, held, captured }
}

fn position(tallies: &[Tally]) -> Position<'static> {
    let schedule = Schedule::new(Anchor::CalendarMonth, jiff::tz::TimeZone::UTC);
    let accounts = [
        ("lic-0", AccountKind::Licence, 9_000_000),
        ("lic-1", AccountKind::Licence, 7_000_000),
        ("alice", AccountKind::Overdraft, 0),
        ("2026", AccountKind::Pool, 50),
        ("draws", AccountKind::Draw, 8),
        ("tally-a", AccountKind::Tally, 0),
        ("tally-b", AccountKind::Tally, 0),
    ];
    Position {
        accounts: accounts.map(|(id, kind, base)| account(id, kind, base)).into_iter().collect(),
        licences: 2,
        tallies: tallies.iter().copied().collect(),
        overdraft: Some(OVERDRAFT),
        pool: PoolAccess::Open(PoolSide {
            pool: POOL,
            overage: None,
            profile_cap: None,
            draw: DRAW,
            policy: Overage::Reject,
            limit: None,
            profile: "creative".parse().unwrap(),
        }),
        split: Split::Split,
        cycle: schedule.cycle_at("2026-11-20T00:00:00Z".parse().unwrap()),
    }
}

fn view(known: &[(Slot, Balance)]) -> View {
    let mut view = View::new(7);
    for (slot, balance) in known {
        view.set(*slot, *balance);
    }
    view
}

fn tally(licence: Slot, account: Slot, own: bool) -> Tally {
    Tally { licence, account, own }
}

#[test]
fn d10_what_others_took_of_a_licence_is_not_granted_any_more() {
    let whole = balance(100, 10, 20, 30);
    let parts = |a: (u64, u64), b: (u64, u64)| {
        view(&[(0, whole), (TALLY, balance(0, 0, a.0, a.1)), (TALLY + 1, balance(0, 0, b.0, b.1))])
    };
    let none = [];
    let elsewhere = [tally(1, TALLY, true)];
    let own = [tally(0, TALLY, true)];
    let of_others = [tally(0, TALLY, false), tally(0, TALLY + 1, false)];
    for (what, tallies, a, b, expected) in [
        ("nobody shares", &none[..], (4, 6), (1, 2), whole),
        ("another licence is shared", &elsewhere, (4, 6), (1, 2), whole),
        ("the caller's own part", &own, (4, 6), (1, 2), balance(100, -30, 4, 6)),
        ("a part that is ahead of the whole", &own, (50, 60), (0, 0), whole),
        ("less what two others took", &of_others, (4, 6), (1, 2), balance(100, -3, 15, 22)),
        ("others that are ahead", &of_others, (50, 60), (0, 0), balance(100, -40, 0, 0)),
    ] {
        let shown = position(tallies).own(0, &parts(a, b));
        assert_eq!(shown, expected, "{what}");
        assert_eq!(shown.remaining(), whole.remaining(), "{what}");
    }
    // A licence that was never used has what the directory grants it.
    assert_eq!(position(&none).own(1, &view(&[])), balance(7_000_000, 0, 0, 0));
}

#[test]
fn d10_what_is_taken_from_anothers_licence_is_counted() {
    let cost = "1".parse().unwrap();
    let quote = Quote {
        price: Price { cost, operations: "1".parse().unwrap() },
        tier: Tier::Premium,
        pool: true,
        rate_card: "2026-11".parse().unwrap(),
    };
    let caps = |tallies: &[Tally]| {
        let Plan::Post(post) = plan(&quote, &position(tallies), None) else { panic!("refused") };
        let seat = post.sources.last().unwrap();
        assert_eq!(seat.take, 1_000_000);
        seat.payers.iter().map(|payer| payer.cap).collect::<Vec<_>>()
    };
    assert_eq!(caps(&[]), [None, None]);
    assert_eq!(caps(&[tally(1, TALLY, true)]), [None, Some(TALLY)]);
    assert_eq!(caps(&[tally(0, TALLY, false), tally(0, TALLY + 1, true)]), [Some(TALLY + 1), None]);
}

fn show(position: &Position<'_>, view: &View) -> BalanceDocument {
    document("acme", "alice", position, view, Some("8".parse().unwrap()), |id| {
        if id == "lic-0" { "pro" } else { "single" }
    })
}

#[test]
fn d11_the_document_adds_up_what_each_licence_has() {
    let view = view(&[
        (0, balance(9_000_000, 1_000_000, 2_000_000, 3_000_000)),
        (OVERDRAFT, balance(0, 500_000, 0, 2_000_000)),
        (DRAW, balance(8_000_000, 0, 1_000_000, 250_000)),
    ]);
    let shown = show(&position(&[]), &view);
    let row = |row: &LicenceDocument| {
        [&row.id, &row.plan, &row.granted, &row.held, &row.captured, &row.available]
            .map(Clone::clone)
    };
    let rows: Vec<_> = shown.seat.licences.iter().map(row).collect();
    // The second one was never used.
    assert_eq!(
        rows,
        [["lic-0", "pro", "10", "2", "3", "5"], ["lic-1", "single", "7", "0", "0", "7"]]
    );
    let seat = &shown.seat;
    let sums = [&seat.granted, &seat.held, &seat.captured, &seat.available].map(String::as_str);
    assert_eq!(sums, ["17", "2", "3", "12"]);
    assert_eq!((shown.pool.access, shown.pool.missing.len()), (true, 0));
    assert_eq!((shown.pool.limit.as_deref(), shown.pool.drawn.as_str()), (Some("8"), "1.25"));
    assert_eq!(shown.overdraft, "1.5");
    assert_eq!(shown.cycle.label, "2026-11-01");
}

#[test]
fn d11_d14_d31_without_access_or_debt_the_document_says_so() {
    let mut position = position(&[]);
    // More on the account of what is owed than is owed.
    let view = view(&[(OVERDRAFT, balance(5_000_000, 0, 0, 2_000_000))]);
    position.pool = PoolAccess::NoTerm;
    let shown = show(&position, &view);
    assert_eq!((shown.pool.access, shown.pool.drawn.as_str()), (true, "0"));
    assert_eq!(shown.overdraft, "0");
    position.pool = PoolAccess::None(vec![Missing::Offer]);
    let shown = show(&position, &view);
    assert_eq!((shown.pool.access, shown.pool.missing), (false, vec![Missing::Offer]));
    assert_eq!(show(&position, &View::default()).overdraft, "0");
    position.overdraft = None;
    assert_eq!(show(&position, &view).overdraft, "0");
}
