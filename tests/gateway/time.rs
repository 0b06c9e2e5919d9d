//! Time, moved by hand through the admin API: f46–f53.

use serde_json::{Value, json};

use crate::support::peer::head;
use crate::support::world::micro;
use crate::support::{Access, Call, Org, Peer, Script, Setup, World, burst, run, until};

fn image(user: &str) -> Call {
    Call::post("/v1/images", "{}").user(user)
}

fn label(world: &World) -> Value {
    world.balance("alice")["cycle"]["label"].clone()
}

#[test]
fn only_a_test_clock_can_be_moved() {
    run(async {
        let org = Org::new().user("alice", "1", Access::None);
        let world = World::new(&org);
        let (status, answer) = world.clock(&json!({ "now": "2026-11-21T00:00:00Z" }));
        assert_eq!((status, &answer["now"]), (200, &json!("2026-11-21T00:00:00Z")));
        for wrong in [json!({ "now": "2026-11-20T00:00:00Z" }), json!({}), json!({ "now": 1 })] {
            let (status, answer) = world.clock(&wrong);
            assert_eq!((status, &answer["code"]), (422, &json!("invalid")), "{wrong}");
        }
        let real = World::with(Setup { clock: None, ..Setup::default() }, &org);
        let (status, answer) = real.clock(&json!({ "now": "2126-11-21T00:00:00Z" }));
        assert_eq!((status, &answer["code"]), (404, &json!("not_found")));
    });
}

#[test]
fn f46_a_clock_set_back_opens_no_closed_cycle_also_after_a_restart() {
    run(async {
        let mut world = World::new(&Org::new().user("alice", "3", Access::None));
        world.send(&image("alice")).await.is(200);
        world.pass_until("2026-12-01T00:00:00Z");
        world.send(&image("alice")).await.is(200).tells(&[("seat-remaining", "2")]);
        world.clock(&json!({ "jump": "2026-11-20T12:00:00Z" }));
        world.clock(&json!({ "pass": 30 }));
        world.logged(&["set back"]).await;
        assert!(world.metric("tollgate_clock_offset_seconds", &[]) < -900_000.0);
        world.send(&image("alice")).await.is(200).tells(&[("seat-remaining", "1")]);
        assert_eq!(world.last_charge()["cycle"], "2026-12-01");
        let archived = || (world.metric("tollgate_ledger_lag_records", &[]) == 0.0).then_some(());
        until("it is archived", archived).await;
        // The next process reads the wrong clock first of all.
        world.crash_and_move_clock("2026-11-20T12:00:00Z");
        world.send(&image("alice")).await.is(200).tells(&[("seat-remaining", "0")]);
        world.send(&image("alice")).await.refused(402, "seat_exhausted");
        assert_eq!(label(&world), "2026-12-01");
    });
}

#[test]
fn f47_a_clock_far_ahead_resets_and_expires_nothing_until_it_has_stayed() {
    run(async {
        let licences = vec![("a".to_owned(), "2".to_owned(), ", expires = \"2027-06-01\"".into())];
        let world = World::new(&Org::new().stacked("alice", licences, Access::None));
        world.send(&image("alice")).await.is(200);
        let far = json!({ "jump": "2029-01-15T00:00:00Z" });
        world.clock(&far);
        world.clock(&json!({ "pass": 200 }));
        world.logged(&["jumped ahead", "nothing resets"]).await;
        world.send(&image("alice")).await.is(200).tells(&[("seat-remaining", "0")]);
        world.send(&image("alice")).await.refused(402, "seat_exhausted");
        assert_eq!(label(&world), "2026-11-01");
        world.clock(&json!({ "jump": "2026-11-20T12:03:21Z" }));
        world.clock(&json!({ "pass": 1 }));
        world.logged(&["right again"]).await;
        assert_eq!(label(&world), "2026-11-01");
        // The second time it stays where it is.
        world.clock(&far);
        world.clock(&json!({ "pass": 302 }));
        world.logged(&["followed now"]).await;
        assert_eq!(label(&world), "2029-01-01");
        assert_eq!(world.balance("alice")["seat"]["granted"], "0", "the licence has expired");
    });
}

#[test]
fn f48_a_charge_belongs_to_the_cycle_in_which_it_was_planned() {
    run(async {
        let world = World::new(&Org::new().pool("10").user("alice", "5", Access::Pool));
        world.pass_until("2026-11-30T23:59:59.999999Z");
        // The backend uses more than was held, and that is paid by the old cycle too.
        let script = Script { gate: Some("go".to_owned()), ..Script::usage(3) };
        let call = Call::post("/v1/told", "{\"n\":1}").user("alice").script(&script);
        let turn = async {
            until("it is forwarded", || (world.backend.count() == 1).then_some(())).await;
            world.pass_until("2026-12-01T00:00:00Z");
            world.send(&image("alice")).await.is(200).tells(&[("seat-remaining", "4")]);
            world.backend.open("go");
        };
        let (answer, ()) = tokio::join!(world.send(&call), turn);
        answer.is(200).tells(&[("cost", "3"), ("seat", "3"), ("seat-remaining", "2")]);
        answer.tells(&[("resets", "2026-12-01T00:00:00Z")]);
        let charge = world.charge(&answer.told("charge"));
        assert_eq!((&charge["cycle"], &charge["cost"]), (&json!("2026-11-01"), &json!("3")));
        world.seat("alice", "1", "4", "0");
        assert_eq!(label(&world), "2026-12-01");
    });
}

#[test]
fn f49_two_workers_that_open_a_cycle_at_once_make_one_account_with_one_grant() {
    run(async {
        let world = World::new(&Org::new().user("alice", "40", Access::None));
        world.send(&image("alice")).await.is(200);
        for month in ["2026-12", "2027-01", "2027-02"] {
            world.pass_until(&format!("{month}-01T00:00:00Z"));
            let calls = (0..200).map(|_| image("alice")).collect();
            let answers = burst(world.gateway(), calls, 32).await;
            let paid = answers.iter().filter(|answer| answer.status == 200).count();
            assert_eq!(paid, 40, "{month}");
            assert_eq!(label(&world), format!("{month}-01"));
            let seat = world.balance("alice")["seat"].clone();
            assert_eq!((micro(&seat["granted"]), micro(&seat["available"])), (40_000_000, 0));
        }
        world.verify();
    });
}

#[test]
fn f50_anchors_29_30_and_31_are_clamped_and_kept() {
    run(async {
        // Each month's start, by anchor, in a common year and in a leap year.
        for (day, starts) in [
            (29, ["2027-01-29", "2027-02-28", "2027-03-29", "2028-02-29", "2028-03-29"]),
            (30, ["2027-01-30", "2027-02-28", "2027-03-30", "2028-02-29", "2028-03-30"]),
            (31, ["2027-01-31", "2027-02-28", "2027-03-31", "2028-02-29", "2028-04-30"]),
        ] {
            let org = Org::new().settings(&format!("anchor = {{ day = {day} }}"));
            let world = World::new(&org.user("alice", "2", Access::None));
            for start in starts {
                let midnight = format!("{start}T00:00:00Z");
                let before = midnight.parse::<jiff::Timestamp>().unwrap();
                let before = before - jiff::Span::new().microseconds(1);
                world.pass_until(&before.to_string());
                world.send(&image("alice")).await.is(200).tells(&[("resets", &midnight)]);
                world.pass_until(&midnight);
                assert_eq!(label(&world), start, "anchor {day}");
                world.send(&image("alice")).await.is(200).tells(&[("seat-remaining", "1")]);
            }
        }
    });
}

#[test]
fn f51_cycles_begin_at_the_orgs_midnight_also_where_clocks_change() {
    run(async {
        // Summer time begins on 2027-03-28 and ends on 2027-10-31 in Berlin; Santiago's clocks
        // go ahead at midnight of 2027-09-05, which is its anchor here: that day begins at 1.
        for (zone, anchor, start, instant) in [
            ("Europe/Berlin", 28, "2027-03-28", "2027-03-27T23:00:00Z"),
            ("Europe/Berlin", 29, "2027-03-29", "2027-03-28T22:00:00Z"),
            ("Europe/Berlin", 31, "2027-10-31", "2027-10-30T22:00:00Z"),
            ("Europe/Berlin", 1, "2027-11-01", "2027-10-31T23:00:00Z"),
            ("America/Santiago", 5, "2027-09-05", "2027-09-05T04:00:00Z"),
            ("Pacific/Kiritimati", 1, "2027-01-01", "2026-12-31T10:00:00Z"),
        ] {
            let settings = format!("timezone = \"{zone}\"\nanchor = {{ day = {anchor} }}");
            let world =
                World::new(&Org::new().settings(&settings).user("alice", "2", Access::None));
            let edge: jiff::Timestamp = instant.parse().unwrap();
            world.pass_until(&(edge - jiff::Span::new().microseconds(1)).to_string());
            assert_ne!(label(&world), start, "{zone} {start}");
            world.send(&image("alice")).await.is(200).tells(&[("resets", instant)]);
            world.pass_until(instant);
            assert_eq!(label(&world), start, "{zone}");
            assert_eq!(world.balance("alice")["cycle"]["start"], instant, "{zone}");
            world.send(&image("alice")).await.is(200).tells(&[("seat-remaining", "1")]);
        }
    });
}

#[test]
fn f51_a_term_ends_at_the_orgs_midnight() {
    run(async {
        let term = "[[term]]\nid = \"short\"\nstart = \"2026-01-01\"\nend = \"2026-12-01\"\n\
                    pool = \"5\"\n";
        let org = Org::new().no_term().extra(term).settings("timezone = \"America/New_York\"");
        let world = World::new(&org.user("alice", "", Access::Pool));
        world.pass_until("2026-12-01T04:59:59.999999Z");
        world.send(&image("alice")).await.is(200).tells(&[("pool", "0.5")]);
        world.pass_until("2026-12-01T05:00:00Z");
        world.send(&image("alice")).await.refused(402, "no_active_term");
    });
}

#[test]
fn f52_d09_a_licence_removed_mid_cycle_pays_no_more_and_what_it_paid_stays() {
    run(async {
        let org = Org::new().user("alice", "5", Access::None);
        let world = World::new(&org);
        world.send(&image("alice")).await.is(200);
        let paid = world.last_charge();
        let call = image("alice").script(&Script::gate("go"));
        let remove = async {
            until("it is forwarded", || (world.backend.count() == 2).then_some(())).await;
            world.apply(&org.clone().change("alice", |alice| alice.licences.clear()));
            world.send(&image("alice")).await.refused(402, "seat_exhausted");
            world.backend.open("go");
        };
        let (answer, ()) = tokio::join!(world.send(&call), remove);
        answer.is(200).tells(&[("state", "captured"), ("seat", "1")]);
        assert_eq!(world.charge(paid["charge"].as_str().unwrap()), paid, "the ledger stays");
        world.verify();
        // Back in the same cycle, it has not been filled up meanwhile (D10).
        world.pass_until("2026-11-28T00:00:00Z");
        world.apply(&org);
        world.seat("alice", "2", "3", "0");
        world.pass_until("2026-12-01T00:00:00Z");
        world.seat("alice", "0", "5", "0");
    });
}

#[test]
fn f53_a_plan_changed_mid_cycle_is_recorded_and_overwrites_nothing() {
    run(async {
        let org = Org::new().user("alice", "5", Access::None);
        let world = World::new(&org);
        world.send(&Call::post("/v1/images", "{\"n\":4}").user("alice")).await.is(200);
        let plan = |credits: &str| {
            let toml = org.toml().replace("credits = \"5\"", &format!("credits = \"{credits}\""));
            let output = world.try_apply(&toml);
            assert!(output.status.success(), "{output:?}");
        };
        plan("9");
        world.seat("alice", "4", "5", "0");
        world.send(&image("alice")).await.is(200).tells(&[("seat-remaining", "4")]);
        plan("3");
        world.seat("alice", "5", "0", "0");
        world.send(&image("alice")).await.refused(402, "seat_exhausted");
        // Nobody spent beyond what was granted when it was spent.
        world.verify();
        world.pass_until("2026-12-01T00:00:00Z");
        world.seat("alice", "0", "3", "0");
        plan("6");
        world.send(&image("alice")).await.is(200).tells(&[("seat-remaining", "5")]);
    });
}

#[test]
fn d04_d09_a_request_is_held_when_it_is_whole_and_not_when_it_began() {
    run(async {
        let world = World::new(&Org::new().user("alice", "1", Access::None));
        let begin = async |length: usize| {
            let mut peer = Peer::connect(world.gateway()).await;
            let more = format!("content-length: {length}\r\n");
            peer.send(head("POST /v1/images HTTP/1.1", &more) + "{").await;
            let in_flight = || world.metric("tollgate_in_flight_requests", &[]);
            until("its head was read", || (in_flight() == 1.0).then_some(())).await;
            peer
        };
        // It began in November and ends in December: so does what pays for it.
        let mut slow = begin(2).await;
        world.pass_until("2026-12-01T00:00:00Z");
        slow.send("}").await;
        assert_eq!(slow.answer().await.status, 200);
        assert_eq!(world.last_charge()["cycle"], "2026-12-01");
        world.seat("alice", "1", "0", "0");
        // What an admin changes while it comes counts too.
        world.pass_until("2027-01-01T00:00:00Z");
        let mut slow = begin(2).await;
        world.apply(&Org::new().user("alice", "0.5", Access::None));
        world.clock(&json!({ "pass": 1 }));
        slow.send("}").await;
        slow.answer().await.refused(402, "seat_exhausted");
        assert_eq!(world.backend.count(), 1);
    });
}
