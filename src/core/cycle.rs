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
mod tests;
