//! Cycles of seats and terms of pools: labels, anchors, zones (D4–D7, f46–f51).
//!
//! There is no reset job. A cycle is computed from the org's schedule and the instant of the
//! request, and named by the local date on which it starts.

use std::fmt;
use std::str::FromStr;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde::{Deserialize, Serialize};

use super::ids::Id;

/// The name of a cycle: the local date on which it starts, as `yyyymmdd`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Label(u32);

impl Label {
    /// For accounts that belong to no cycle.
    pub const NONE: Self = Self(0);
    /// Behind every other.
    pub const MAX: Self = Self(u32::MAX);

    /// The label of a cycle that starts on `date`.
    pub fn of(date: Date) -> Self {
        let (year, month, day) = (date.year(), date.month(), date.day());
        Self(year.unsigned_abs() as u32 * 10_000 + month as u32 * 100 + day as u32)
    }

    /// The digits `yyyymmdd` as a number.
    pub const fn digits(self) -> u32 {
        self.0
    }

    /// From [`Label::digits`].
    pub const fn from_digits(digits: u32) -> Self {
        Self(digits)
    }

    /// The label of the UTC day so many days after the Unix epoch.
    pub fn of_day(day: i32) -> Self {
        let date = jiff::civil::date(1970, 1, 1).saturating_add(jiff::Span::new().days(day));
        Self::of(date)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.0 / 10_000, self.0 / 100 % 100, self.0 % 100)
    }
}

impl FromStr for Label {
    type Err = jiff::Error;
    fn from_str(text: &str) -> Result<Self, jiff::Error> {
        text.parse().map(Self::of)
    }
}

/// On which day of the month a cycle starts (D5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Anchor {
    /// The first of the month.
    #[default]
    CalendarMonth,
    /// This day (1 to 31), clamped to the month's last day; the anchor itself is kept.
    Day(u8),
}

impl Anchor {
    const fn day(self) -> i8 {
        match self {
            Self::CalendarMonth => 1,
            Self::Day(day) => day as i8,
        }
    }

    /// The anchor's date in the month of `date`.
    fn in_month_of(self, date: Date) -> Date {
        let first = date.first_of_month();
        let day = self.day().clamp(1, first.days_in_month());
        first.with().day(day).build().unwrap_or(first)
    }
}

/// A cycle: from its start (included) to its end (excluded).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cycle {
    /// Its name.
    pub label: Label,
    /// When it starts.
    pub start: Timestamp,
    /// When the next one starts.
    pub end: Timestamp,
}

impl Cycle {
    /// True when `now` is in the cycle.
    pub fn contains(&self, now: Timestamp) -> bool {
        self.start <= now && now < self.end
    }
}

/// One setting of anchor and zone, and the instant from which it applies.
#[derive(Clone, Debug, PartialEq)]
pub struct Era {
    /// The start of the first cycle under this setting; `None` for the org's first setting.
    pub from: Option<Timestamp>,
    /// The day of the month.
    pub anchor: Anchor,
    /// The org's IANA time zone.
    pub zone: TimeZone,
}

/// How long after a change of anchor the first cycle lasts at least, in days (D6).
const SHORTEST_FIRST_CYCLE: i64 = 15;

/// An org's settings of anchor and zone over time, oldest first. A change takes effect when the
/// current cycle ends (D6), so past and present cycles never move.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    eras: Vec<Era>,
}

impl Schedule {
    /// A schedule that always had this setting.
    pub fn new(anchor: Anchor, zone: TimeZone) -> Self {
        Self { eras: vec![Era { from: None, anchor, zone }] }
    }

    /// A schedule from stored eras, oldest first; `None` unless there is a first one without a
    /// start and the others start in order.
    pub fn from_eras(eras: Vec<Era>) -> Option<Self> {
        let ordered = eras.windows(2).all(|pair| pair[0].from < pair[1].from);
        let first = eras.first().is_some_and(|era| era.from.is_none());
        (ordered && first).then_some(Self { eras })
    }

    /// The eras, oldest first.
    pub fn eras(&self) -> &[Era] {
        &self.eras
    }

    /// The setting last asked for, which may not have taken effect yet.
    pub fn latest(&self) -> &Era {
        &self.eras[self.eras.len() - 1]
    }

    /// The zone in force at `now`.
    pub fn zone_at(&self, now: Timestamp) -> &TimeZone {
        &self.eras[self.index_at(now)].zone
    }

    /// Asks for another anchor or zone: it takes effect when the cycle of `now` ends; a change
    /// that was still to come is replaced.
    pub fn change(&mut self, now: Timestamp, anchor: Anchor, zone: TimeZone) {
        let current = self.index_at(now);
        let from = self.cycle_at(now).end;
        self.eras.truncate(current + 1);
        let in_force = &self.eras[current];
        if in_force.anchor != anchor || in_force.zone != zone {
            self.eras.push(Era { from: Some(from), anchor, zone });
        }
    }

    /// The cycle that `now` is in.
    pub fn cycle_at(&self, now: Timestamp) -> Cycle {
        let index = self.index_at(now);
        let era = &self.eras[index];
        let regular = regular_cycle(era, now);
        let Some(from) = era.from else {
            return regular;
        };
        let first_date = from.to_zoned(era.zone.clone()).date();
        let earliest =
            first_date.checked_add(Span::new().days(SHORTEST_FIRST_CYCLE)).unwrap_or(first_date);
        let mut anchor = era.anchor.in_month_of(earliest);
        if anchor < earliest {
            anchor = next_anchor(era.anchor, anchor);
        }
        let first_end = start_of(anchor, &era.zone);
        if now < first_end {
            Cycle { label: Label::of(first_date), start: from, end: first_end }
        } else {
            regular
        }
    }

    fn index_at(&self, now: Timestamp) -> usize {
        self.eras.iter().rposition(|era| era.from.is_none_or(|from| from <= now)).unwrap_or(0)
    }
}

/// The cycle between two anchors around `now`, computed in the zone and compared as instants.
fn regular_cycle(era: &Era, now: Timestamp) -> Cycle {
    let today = now.to_zoned(era.zone.clone()).date();
    let mut date = era.anchor.in_month_of(today);
    let mut start = start_of(date, &era.zone);
    if start > now {
        date = previous_anchor(era.anchor, date);
        start = start_of(date, &era.zone);
    }
    let mut next = next_anchor(era.anchor, date);
    let mut end = start_of(next, &era.zone);
    // A zone that skips or repeats a whole day can put `now` just past the computed end.
    if end <= now {
        (date, start) = (next, end);
        next = next_anchor(era.anchor, date);
        end = start_of(next, &era.zone);
    }
    Cycle { label: Label::of(date), start, end }
}

fn next_anchor(anchor: Anchor, date: Date) -> Date {
    let next = date.last_of_month().tomorrow().unwrap_or(Date::MAX);
    anchor.in_month_of(next)
}

fn previous_anchor(anchor: Anchor, date: Date) -> Date {
    let previous = date.first_of_month().yesterday().unwrap_or(Date::MIN);
    anchor.in_month_of(previous)
}

/// The first instant of a local date. Where midnight does not exist (DST), the day starts at the
/// first instant that does; dates beyond what the calendar holds end at its edge.
pub fn start_of(date: Date, zone: &TimeZone) -> Timestamp {
    match date.to_zoned(zone.clone()) {
        Ok(zoned) => zoned.timestamp(),
        Err(_) if date.year() > 0 => Timestamp::MAX,
        Err(_) => Timestamp::MIN,
    }
}

/// A contract period of the pool: from its start (included) to its end (excluded).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// Its id, unique in the org.
    pub id: Id,
    /// When it starts.
    pub start: Timestamp,
    /// When it is over.
    pub end: Timestamp,
}

impl Term {
    /// True when `now` is in the term.
    pub fn contains(&self, now: Timestamp) -> bool {
        self.start <= now && now < self.end
    }
}

#[cfg(test)]
mod tests {
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
}
