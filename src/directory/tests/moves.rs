//! Licences that change hands by edits of the licence itself (D8–D10).

use super::edits::{assign, body, put};
use super::*;
use crate::directory::edit::{Edit, How};
use crate::directory::things::Kind;
use serde_json::json;

const LATE: &str = "2026-11-30T23:59:59Z";
const RESET: &str = "2026-12-01T00:00:00Z";

async fn with_policy(policy: &str) -> Bench {
    let bench = Bench::acme().await;
    bench.edit(put(Kind::User, How::Create, &json!({ "id": "carol" }))).await;
    let settings = Edit::Put {
        kind: Kind::Org,
        id: None,
        body: body(&json!({ "on_reassign": policy })),
        how: How::Merge,
    };
    bench.write(settings, NOVEMBER).await.unwrap();
    bench
}

impl Bench {
    async fn give(&self, user: &str, now: &str) {
        self.write(assign("lic-1", user), now).await.unwrap();
    }

    /// The bucket that a user pays from with `lic-1`, if it pays.
    fn bucket(&self, user: &str, now: &str) -> Option<String> {
        let seat = self.seat(user, now);
        let name = seat.iter().find_map(|(name, _)| name.strip_prefix("acme/licence/lic-1/"))?;
        Some(name.to_owned())
    }
}

fn own(user: &str, month: &str) -> Option<String> {
    Some(format!("{user}/2026-{month}-01"))
}

#[tokio::test]
async fn d08_a_new_licence_counts_in_full_from_the_next_request() {
    let bench = Bench::acme().await;
    let licence = json!({ "id": "new", "plan": "addon-2000", "user": "bob" });
    let lines = bench.edit(put(Kind::Licence, How::Create, &licence)).await;
    assert_eq!(lines, ["+ licence new"]);
    assert_eq!(bench.seat("bob", NOVEMBER), [("acme/licence/new/bob/2026-11-01".to_owned(), 2000)]);
}

#[tokio::test]
async fn d09_an_unassigned_licence_stops_paying_from_the_next_request() {
    let bench = Bench::acme().await;
    assert_eq!(bench.edit(assign("lic-1", "")).await, ["~ licence lic-1 holder alice → none"]);
    assert_eq!(bench.bucket("alice", NOVEMBER), None);
    assert_eq!(bench.seat("alice", NOVEMBER).len(), 1);
    assert!(bench.edit(assign("lic-1", "")).await.is_empty());
    assert_eq!(bench.refused(assign("lic-9", "bob")).await, "404 there is no licence lic-9");
    assert_eq!(bench.refused(assign("lic-1", "eve")).await, "/user");
    // It is still there, and shown.
    let document = bench.thing(Kind::Licence, "lic-1").await.unwrap().document;
    assert_eq!(document, json!({ "id": "lic-1", "plan": "cc-pro", "priority": 1 }));
}

#[tokio::test]
async fn d10_each_policy_through_two_moves_back_and_over_the_edge() {
    // Who may pay from which bucket after: → bob, → carol, → alice, → bob, all in one cycle.
    let alice = || own("alice", "11");
    let cases = [
        ("remaining", [alice(), alice(), alice(), alice()]),
        ("next-cycle", [None, None, alice(), None]),
        ("full", [own("bob", "11"), own("carol", "11"), alice(), own("bob", "11")]),
    ];
    for (policy, expected) in cases {
        let mut bench = with_policy(policy).await;
        for (holder, expected) in ["bob", "carol", "alice", "bob"].into_iter().zip(expected) {
            // Lying unassigned in between changes nothing.
            bench.give("", NOVEMBER).await;
            bench.give(holder, LATE).await;
            bench = bench.reopen(1).await;
            assert_eq!(bench.bucket(holder, LATE), expected, "{policy}: {holder}");
            for other in ["alice", "bob", "carol"].iter().filter(|other| **other != holder) {
                assert_eq!(bench.bucket(other, LATE), None, "{policy}: {other}");
            }
        }
        // At the reset the holder pays from their own, without any change.
        assert_eq!(bench.bucket("bob", RESET), own("bob", "12"), "{policy}");
        // What happened before the edge no longer matters to a move after it.
        bench.give("carol", RESET).await;
        let moved = match policy {
            "remaining" => own("bob", "12"),
            "next-cycle" => None,
            _ => own("carol", "12"),
        };
        assert_eq!(bench.bucket("carol", RESET), moved, "{policy}");
        bench.give("bob", DECEMBER).await;
        assert_eq!(bench.bucket("bob", DECEMBER), own("bob", "12"), "{policy}");
        assert_eq!(bench.bucket("bob", "2027-01-01T00:00:00Z").unwrap(), "bob/2027-01-01");
    }
}

#[tokio::test]
async fn d10_a_move_in_the_last_instant_of_a_cycle_is_over_with_it() {
    for policy in ["remaining", "next-cycle", "full"] {
        let bench = with_policy(policy).await;
        bench.give("bob", "2026-11-30T23:59:59.999999Z").await;
        assert_eq!(bench.bucket("bob", RESET), own("bob", "12"), "{policy}");
        // Alice has it again in the next cycle: bob was the one who held it there.
        bench.give("alice", RESET).await;
        let expected = match policy {
            "remaining" => own("bob", "12"),
            "next-cycle" => None,
            _ => own("alice", "12"),
        };
        assert_eq!(bench.bucket("alice", RESET), expected, "{policy}");
    }
}

#[tokio::test]
async fn d10_a_licence_that_was_used_is_not_made_new_by_deleting_it() {
    let bench = Bench::acme().await;
    let delete = || Edit::Delete { kind: Kind::Licence, id: id("lic-1") };
    bench.edit(assign("lic-1", "")).await;
    let why = bench.refused(delete()).await;
    assert!(why.starts_with("409 licence lic-1 was held in the cycle that ends at 2026-12-01"));
    bench.edit(assign("lic-1", "bob")).await;
    assert_eq!(bench.bucket("bob", NOVEMBER), own("alice", "11"));
    bench.edit(assign("lic-1", "")).await;
    bench.write(delete(), RESET).await.unwrap();
    assert!(bench.thing(Kind::Licence, "lic-1").await.is_none());
    // One that nobody ever held goes at once.
    let licence = json!({ "id": "idle", "plan": "addon-2000" });
    bench.edit(put(Kind::Licence, How::Create, &licence)).await;
    let delete = Edit::Delete { kind: Kind::Licence, id: id("idle") };
    assert_eq!(bench.edit(delete).await, ["- licence idle"]);
}

#[tokio::test]
async fn d10_a_user_who_is_deleted_and_made_again_has_used_what_they_used() {
    let bench = Bench::acme().await;
    bench.edit(Edit::Delete { kind: Kind::User, id: id("alice") }).await;
    bench.edit(put(Kind::User, How::Create, &json!({ "id": "alice" }))).await;
    bench.edit(assign("lic-1", "bob")).await;
    assert_eq!(bench.bucket("bob", NOVEMBER), own("alice", "11"));
    bench.edit(assign("lic-1", "alice")).await;
    assert_eq!(bench.bucket("alice", NOVEMBER), own("alice", "11"));
}

#[tokio::test]
async fn d10_writing_a_user_or_licence_moves_it_like_any_other_way() {
    let bench = Bench::acme().await;
    let bob = json!({ "id": "bob", "licences": [{ "id": "lic-1", "plan": "cc-pro" }] });
    let lines = bench.edit(put(Kind::User, How::Replace, &bob)).await;
    assert_eq!(lines, ["~ licence lic-1 holder alice → bob"]);
    assert_eq!(bench.bucket("bob", NOVEMBER), own("alice", "11"));
    let back = Edit::Put {
        kind: Kind::Licence,
        id: Some(id("lic-1")),
        body: body(&json!({ "user": "alice", "priority": 9 })),
        how: How::Merge,
    };
    let expected = ["~ licence lic-1 holder bob → alice, priority 1 → 9"];
    assert_eq!(bench.edit(back).await, expected);
    assert_eq!(bench.bucket("alice", NOVEMBER), own("alice", "11"));
}

#[tokio::test]
async fn a_seat_takes_a_bounded_number_of_licences() {
    let bench = Bench::acme().await;
    let licences: Vec<_> =
        (0..100).map(|n| json!({ "id": format!("l{n}"), "plan": "addon-2000" })).collect();
    let bob = json!({ "id": "bob", "licences": licences });
    assert_eq!(bench.edit(put(Kind::User, How::Replace, &bob)).await.len(), 100);
    assert_eq!(bench.refused(assign("lic-1", "bob")).await, "/user");
    assert!(bench.edit(assign("l7", "bob")).await.is_empty());
}

/// Books beside the directory: what users take from a licence, and what they are shown of it.
mod shared {
    use super::*;
    use crate::books::embedded::{Engine, Session};
    use crate::books::{Ask, Books, Posted, Resolution};
    use crate::core::amount::{Credits, Operations};
    use crate::core::balance::LicenceDocument;
    use crate::core::charge::{InDoubt, OutcomeMemo, State};
    use crate::core::ids::ChargeId;
    use crate::core::price::{Price, Quote, Tier};
    use crate::core::waterfall::{Plan, plan};

    struct Shop {
        bench: Bench,
        engine: Engine,
        session: Session,
        charges: u64,
    }

    impl Shop {
        async fn with(policy: &str) -> Self {
            let bench = with_policy(policy).await;
            let engine = Engine::open(&bench.dir.path().join("books"), at(NOVEMBER)).unwrap();
            let session = engine.session();
            Self { bench, engine, session, charges: 0 }
        }

        /// Holds so many credits for a user; says in how many legs.
        async fn hold(&mut self, user: &str, credits: &str, now: &str) -> (ChargeId, usize) {
            let org = self.bench.org();
            let user = Arc::clone(org.users.get(user).unwrap());
            let position = org.position(Payer::User(&user), &org.moment(at(now)), at(now));
            let cost: Credits = credits.parse().unwrap();
            let price = Price { cost, operations: Operations::ZERO };
            let quote = Quote { price, tier: Tier::Premium, pool: false, rate_card: id("2026-11") };
            let Plan::Post(post) = plan(&quote, &position, None) else { panic!("refused") };
            self.charges += 1;
            let charge = ChargeId::v7(self.charges, 0);
            let ask = Ask {
                charge,
                accounts: &position.accounts,
                post: &post,
                now: at(now),
                in_doubt: InDoubt::Void,
                memo: &[],
                lasting: None,
            };
            let posted = self.session.hold(&ask).await.unwrap();
            let Posted::Done(legs, _) = posted else { panic!("{posted:?}") };
            (charge, legs.len())
        }

        /// Captures so many credits of a charge. Taken from a bucket of another's they are
        /// counted in a second leg.
        async fn capture(&self, (charge, legs): (ChargeId, usize), credits: &str) {
            let (state, memo) = (State::Captured, OutcomeMemo::default());
            let now = at(NOVEMBER);
            let keep = vec![credits.parse::<Credits>().unwrap().micro(); legs];
            let resolution = Resolution::plain(state, &keep, now, &memo);
            self.session.resolve(charge, &resolution).await.unwrap();
        }

        async fn spend(&mut self, user: &str, credits: &str, now: &str) {
            let charge = self.hold(user, credits, now).await;
            self.capture(charge, credits).await;
        }

        /// `granted held captured available` of `lic-1` as its holder is shown it.
        async fn shown(&self, user: &str, now: &str) -> String {
            let org = self.bench.org();
            let user = Arc::clone(org.users.get(user).unwrap());
            let position = org.position(Payer::User(&user), &org.moment(at(now)), at(now));
            let view = self.session.balances(&position.accounts).await.unwrap();
            let document = user.balance(&org, &position, &view);
            let lic = |licence: &&LicenceDocument| licence.id == "lic-1";
            let LicenceDocument { granted, held, captured, available, .. } =
                document.seat.licences.iter().find(lic).unwrap();
            format!("{granted} {held} {captured} {available}")
        }
    }

    #[tokio::test]
    async fn d10_each_holder_of_a_shared_licence_is_shown_their_own_use() {
        let mut shop = Shop::with("remaining").await;
        shop.spend("alice", "20", NOVEMBER).await;
        assert_eq!(shop.shown("alice", NOVEMBER).await, "4000 0 20 3980");
        shop.bench.give("bob", NOVEMBER).await;
        assert_eq!(shop.shown("bob", NOVEMBER).await, "3980 0 0 3980");
        shop.spend("bob", "30", NOVEMBER).await;
        let open = shop.hold("bob", "5", NOVEMBER).await;
        assert_eq!(shop.shown("bob", NOVEMBER).await, "3980 5 30 3945");
        // Who has it next sees what both left; and alice, when she has it back, her own.
        shop.bench.give("carol", NOVEMBER).await;
        assert_eq!(shop.shown("carol", NOVEMBER).await, "3945 0 0 3945");
        shop.spend("carol", "45", NOVEMBER).await;
        assert_eq!(shop.shown("carol", NOVEMBER).await, "3945 0 45 3900");
        shop.bench.give("alice", NOVEMBER).await;
        assert_eq!(shop.shown("alice", NOVEMBER).await, "3920 0 20 3900");
        shop.spend("alice", "100", NOVEMBER).await;
        assert_eq!(shop.shown("alice", NOVEMBER).await, "3920 0 120 3800");
        // What was open when it moved is settled with whoever made it.
        shop.capture(open, "3").await;
        assert_eq!(shop.shown("alice", NOVEMBER).await, "3922 0 120 3802");
        shop.bench.give("bob", NOVEMBER).await;
        assert_eq!(shop.shown("bob", NOVEMBER).await, "3835 0 33 3802");
        // The reset ends it, and what is recorded adds up.
        assert_eq!(shop.shown("bob", RESET).await, "4000 0 0 4000");
        shop.session.flush().unwrap();
        let mut names = Vec::new();
        shop.engine.for_each_balance(|_, name, _| names.push(name.to_owned()));
        names.retain(|name| name.contains("tally"));
        names.sort();
        let expected = ["acme/tally/lic-1/bob/2026-11-01", "acme/tally/lic-1/carol/2026-11-01"];
        assert_eq!(names, expected);
    }

    #[tokio::test]
    async fn d10_whoever_has_a_full_bucket_shares_nothing() {
        let mut shop = Shop::with("full").await;
        shop.spend("alice", "20", NOVEMBER).await;
        shop.bench.give("bob", NOVEMBER).await;
        shop.spend("bob", "30", NOVEMBER).await;
        assert_eq!(shop.shown("bob", NOVEMBER).await, "4000 0 30 3970");
        shop.bench.give("alice", NOVEMBER).await;
        assert_eq!(shop.shown("alice", NOVEMBER).await, "4000 0 20 3980");
    }

    #[tokio::test]
    async fn d10_a_seat_drawn_on_by_others_is_used_up_for_all_of_them() {
        let mut shop = Shop::with("remaining").await;
        shop.bench.give("bob", NOVEMBER).await;
        shop.spend("bob", "4000", NOVEMBER).await;
        assert_eq!(shop.shown("bob", NOVEMBER).await, "4000 0 4000 0");
        shop.bench.give("alice", NOVEMBER).await;
        assert_eq!(shop.shown("alice", NOVEMBER).await, "0 0 0 0");
    }
}
