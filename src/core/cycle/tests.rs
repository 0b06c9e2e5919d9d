//! D4 to D7 and f46 to f51: where cycles and terms begin and end.

use super::*;

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn cycle(schedule: &Schedule, now: &str) -> (String, String, String) {
    let cycle = schedule.cycle_at(at(now));
    assert!(cycle.contains(at(now)), "{now}: {cycle:?}");
    (cycle.label.to_string(), cycle.start.to_string(), cycle.end.to_string())
}

fn expect(schedule: &Schedule, now: &str, label: &str, start: &str, end: &str) {
    assert_eq!(cycle(schedule, now), (label.into(), start.into(), end.into()), "{now}");
}

#[test]
fn d05_a_calendar_month_in_utc() {
    let schedule = Schedule::new(Anchor::CalendarMonth, TimeZone::UTC);
    let month = ("2026-02-01", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z");
    expect(&schedule, "2026-02-01T00:00:00Z", month.0, month.1, month.2);
    expect(&schedule, "2026-02-28T23:59:59.999999999Z", month.0, month.1, month.2);
}

#[test]
fn d05_f50_an_anchor_is_clamped_and_kept() {
    let schedule = Schedule::new(Anchor::Day(31), TimeZone::UTC);
    let starts: Vec<String> = (1..=12)
        .map(|month| {
            let now = format!("2028-{month:02}-15T12:00:00Z");
            schedule.cycle_at(at(&now)).label.to_string()
        })
        .collect();
    assert_eq!(starts[..4], ["2027-12-31", "2028-01-31", "2028-02-29", "2028-03-31"]);
    expect(
        &schedule,
        "2027-02-28T00:00:00Z",
        "2027-02-28",
        "2027-02-28T00:00:00Z",
        "2027-03-31T00:00:00Z",
    );
    let schedule = Schedule::new(Anchor::Day(30), TimeZone::UTC);
    assert_eq!(schedule.cycle_at(at("2027-03-01T00:00:00Z")).label.to_string(), "2027-02-28");
}

#[test]
fn d05_f51_cycles_follow_the_zone_through_dst() {
    let schedule = Schedule::new(Anchor::CalendarMonth, zone("America/Los_Angeles"));
    expect(
        &schedule,
        "2026-11-15T00:00:00Z",
        "2026-11-01",
        "2026-11-01T07:00:00Z",
        "2026-12-01T08:00:00Z",
    );
    // 06:59:59Z on 1 November is still October there.
    assert_eq!(schedule.cycle_at(at("2026-11-01T06:59:59Z")).label.to_string(), "2026-10-01");
}

#[test]
fn f51_a_missing_midnight_starts_at_the_first_instant_there_is() {
    // Santiago skips 2026-09-06 00:00 to 01:00.
    let schedule = Schedule::new(Anchor::Day(6), zone("America/Santiago"));
    let cycle = schedule.cycle_at(at("2026-09-10T00:00:00Z"));
    assert_eq!(cycle.start.to_string(), "2026-09-06T04:00:00Z");
    assert_eq!(cycle.label.to_string(), "2026-09-06");
    let before = schedule.cycle_at(at("2026-09-06T03:59:59Z"));
    assert_eq!(before.end, cycle.start);
}

#[test]
fn f51_a_skipped_day_loses_no_instant() {
    // Apia skipped 2011-12-30 altogether.
    let schedule = Schedule::new(Anchor::Day(30), zone("Pacific/Apia"));
    let mut now = at("2011-12-28T00:00:00Z");
    let mut previous = schedule.cycle_at(now);
    while now < at("2012-02-02T00:00:00Z") {
        let cycle = schedule.cycle_at(now);
        assert!(cycle.contains(now));
        assert!(cycle == previous || cycle.start == previous.end);
        previous = cycle;
        now += jiff::SignedDuration::from_mins(7);
    }
}

#[test]
fn d06_a_change_of_anchor_waits_for_the_end_of_the_cycle() {
    let mut schedule = Schedule::new(Anchor::CalendarMonth, TimeZone::UTC);
    schedule.change(at("2026-03-10T00:00:00Z"), Anchor::Day(10), TimeZone::UTC);
    // The current cycle keeps its end.
    expect(
        &schedule,
        "2026-03-20T00:00:00Z",
        "2026-03-01",
        "2026-03-01T00:00:00Z",
        "2026-04-01T00:00:00Z",
    );
    // 10 April is 9 days later, too soon: the first cycle runs to 10 May.
    expect(
        &schedule,
        "2026-04-30T00:00:00Z",
        "2026-04-01",
        "2026-04-01T00:00:00Z",
        "2026-05-10T00:00:00Z",
    );
    assert_eq!(schedule.cycle_at(at("2026-05-10T00:00:00Z")).label.to_string(), "2026-05-10");
}

#[test]
fn d06_exactly_fifteen_days_is_long_enough() {
    let mut schedule = Schedule::new(Anchor::CalendarMonth, TimeZone::UTC);
    schedule.change(at("2026-03-10T00:00:00Z"), Anchor::Day(16), TimeZone::UTC);
    assert_eq!(
        schedule.cycle_at(at("2026-04-02T00:00:00Z")).end.to_string(),
        "2026-04-16T00:00:00Z"
    );
}

#[test]
fn d06_a_change_back_before_it_took_effect_leaves_no_trace() {
    let mut schedule = Schedule::new(Anchor::Day(15), TimeZone::UTC);
    let before = schedule.clone();
    let now = at("2026-03-10T00:00:00Z");
    schedule.change(now, Anchor::Day(1), zone("Asia/Tokyo"));
    assert_ne!(schedule, before);
    schedule.change(now, Anchor::Day(15), TimeZone::UTC);
    assert_eq!(schedule, before);
}

#[test]
fn d06_cycles_follow_each_other_without_gap_through_changes() {
    let mut schedule = Schedule::new(Anchor::Day(31), zone("Pacific/Auckland"));
    schedule.change(at("2026-02-03T00:00:00Z"), Anchor::Day(2), zone("America/New_York"));
    schedule.change(at("2026-06-03T00:00:00Z"), Anchor::CalendarMonth, zone("Asia/Kolkata"));
    let mut now = at("2026-01-01T00:00:00Z");
    let mut previous = schedule.cycle_at(now);
    let mut labels = vec![previous.label];
    while now < at("2027-06-01T00:00:00Z") {
        let cycle = schedule.cycle_at(now);
        assert!(cycle.contains(now));
        if cycle != previous {
            assert_eq!(cycle.start, previous.end);
            assert!(cycle.label > previous.label, "{cycle:?} after {previous:?}");
            labels.push(cycle.label);
        }
        previous = cycle;
        now += jiff::SignedDuration::from_mins(31);
    }
    assert!(labels.len() >= 16);
}

fn era(from: Option<&str>, anchor: u8) -> Era {
    Era { from: from.map(at), anchor: Anchor::Day(anchor), zone: TimeZone::UTC }
}

#[test]
fn d06_stored_eras_are_a_schedule_only_in_order_and_with_a_first_one() {
    let (april, may) = (Some("2026-04-01T00:00:00Z"), Some("2026-05-01T00:00:00Z"));
    let whole = vec![era(None, 1), era(april, 10), era(may, 20)];
    let schedule = Schedule::from_eras(whole.clone()).unwrap();
    assert_eq!(schedule.eras(), whole);
    assert_eq!(schedule.latest(), &whole[2]);
    assert!(Schedule::from_eras(vec![era(None, 1)]).is_some());
    for wrong in [
        vec![],
        vec![era(april, 1)],
        vec![era(april, 1), era(may, 2)],
        vec![era(None, 1), era(None, 2)],
        vec![era(None, 1), era(may, 2), era(april, 3)],
        vec![era(None, 1), era(april, 2), era(april, 3)],
    ] {
        assert_eq!(Schedule::from_eras(wrong.clone()), None, "{wrong:?}");
    }
}

#[test]
fn d06_a_zone_is_in_force_from_the_first_instant_of_its_era() {
    let mut schedule = Schedule::new(Anchor::CalendarMonth, TimeZone::UTC);
    let tokyo = zone("Asia/Tokyo");
    schedule.change(at("2026-03-10T00:00:00Z"), Anchor::CalendarMonth, tokyo.clone());
    assert_eq!(schedule.latest().zone, tokyo);
    assert_eq!(schedule.eras().len(), 2);
    assert_eq!(schedule.zone_at(at("2026-03-31T23:59:59Z")), &TimeZone::UTC);
    assert_eq!(schedule.zone_at(at("2026-04-01T00:00:00Z")), &tokyo);
    // What was asked for last replaces what was still to come.
    schedule.change(at("2026-03-11T00:00:00Z"), Anchor::Day(2), TimeZone::UTC);
    assert_eq!(schedule.eras().len(), 2);
    assert_eq!(
        (schedule.latest().anchor, &schedule.latest().zone),
        (Anchor::Day(2), &TimeZone::UTC)
    );
}

#[test]
fn d04_a_term_holds_its_first_instant_and_not_its_last() {
    let term = Term {
        id: "2026".parse().unwrap(),
        start: at("2026-01-01T00:00:00Z"),
        end: at("2027-01-01T00:00:00Z"),
    };
    for (now, inside) in [
        ("2025-12-31T23:59:59.999999999Z", false),
        ("2026-01-01T00:00:00Z", true),
        ("2026-12-31T23:59:59.999999999Z", true),
        ("2027-01-01T00:00:00Z", false),
    ] {
        assert_eq!(term.contains(at(now)), inside, "{now}");
        let cycle = Cycle { label: Label::NONE, start: term.start, end: term.end };
        assert_eq!(cycle.contains(at(now)), inside, "{now}");
    }
}

#[test]
fn dates_beyond_the_calendar_end_at_its_edge() {
    assert_eq!(start_of(Date::MAX, &zone("Pacific/Pago_Pago")), Timestamp::MAX);
    assert_eq!(start_of(Date::MIN, &zone("Pacific/Kiritimati")), Timestamp::MIN);
}

#[test]
fn a_label_is_the_digits_of_its_date() {
    let label: Label = "2026-11-09".parse().unwrap();
    assert_eq!((label.digits(), label.to_string().as_str()), (20_261_109, "2026-11-09"));
    assert!("2026-02-30".parse::<Label>().is_err());
}

#[test]
fn a_label_of_a_day_is_that_of_its_date() {
    for (day, label) in [(-1, "1969-12-31"), (0, "1970-01-01"), (20_000, "2024-10-04")] {
        assert_eq!(Label::of_day(day).to_string(), label, "{day}");
    }
}
