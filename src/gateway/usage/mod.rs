//! What a response tells of its usage: in its head, in its body while that passes by, or in its
//! trailers. Nothing here does I/O or keeps a piece from passing; how a body is cut into pieces
//! changes nothing of what is found in it (D30, f15, f56).

use std::sync::Arc;

use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::settle::Actual;
use crate::core::amount::{MICRO, parse_micro};

mod coding;
mod ndjson;
mod plain;
mod rules;
mod sse;
mod tally;

use coding::Coding;
use ndjson::{Lines, Text};
use plain::Whole;
use rules::{Finder, Places};
pub use rules::{Names, Rules};
pub use sse::Fed;
use sse::{Event, Events};
use tally::Tally;

/// The longest text that is read: a whole body, an event, a line.
const MAX_TEXT: usize = 1 << 20;

/// What a response has told of its usage so far.
#[derive(Debug, Default)]
pub struct Reading {
    /// `None` where nothing is told, and no event has to be waited for.
    rules: Option<Arc<Rules>>,
    /// From headers and trailers, by meter.
    told: SmallVec<[Option<u64>; 2]>,
    /// How the body is read, also once it is over.
    kind: Kind,
    /// It says that it is a stream of events.
    streams: bool,
    body: Body,
    coding: Option<Box<coding::Decoding>>,
    tally: Tally,
    /// The trailers that the response declares, and that have not come.
    awaited: Names,
}

/// A body that is being read.
#[derive(Debug, Default)]
enum Body {
    #[default]
    Not,
    Whole(Whole),
    Events(Box<Events>),
    Lines(Box<Lines>),
}

impl Body {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::Not => Self::Not,
            Kind::Whole => Self::Whole(Whole::default()),
            Kind::Events => Self::Events(Box::default()),
            Kind::Lines => Self::Lines(Box::default()),
        }
    }

    fn feed(&mut self, piece: &[u8], rules: &Rules, tally: &mut Tally) -> usize {
        match self {
            Self::Not => {}
            Self::Whole(whole) => whole.feed(piece),
            Self::Events(events) => {
                let mut at = 0;
                while at < piece.len() {
                    match events.next(&piece[at..], |event| of_event(event, rules, tally)) {
                        Fed::On => break,
                        Fed::Event(end) => at += end,
                        Fed::Done => return at,
                    }
                }
            }
            Self::Lines(lines) => lines.feed(piece, |text| match text {
                Text::Line(text) => told(text, &rules.lines, tally),
                Text::TooLong => too_long(&rules.lines, tally),
            }),
        }
        piece.len()
    }
}

/// How a body is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Not,
    Whole,
    Events,
    Lines,
}

impl Kind {
    /// By what the response says that it is, as far as there are pointers for that; what names
    /// itself otherwise is read as the first kind there are pointers for.
    fn of(rules: &Rules, name: &[u8]) -> Self {
        let is = |known: &&str| name.eq_ignore_ascii_case(known.as_bytes());
        if is(&EVENTS) {
            // `[DONE]` waits for the capture, wherever usage is told.
            return Self::Events;
        }
        let told = |finder: &Finder| !finder.picker.is_empty();
        if told(&rules.lines) && (LINES.iter().any(is) || !told(&rules.plain)) {
            Self::Lines
        } else if told(&rules.plain) {
            Self::Whole
        } else if told(&rules.events) {
            Self::Events
        } else {
            Self::Not
        }
    }

    fn finder(self, rules: &Rules) -> Option<&Finder> {
        match self {
            Self::Not => None,
            Self::Whole => Some(&rules.plain),
            Self::Events => Some(&rules.events),
            Self::Lines => Some(&rules.lines),
        }
    }

    fn pointer(self, places: &Places) -> Option<usize> {
        match self {
            Self::Not => None,
            Self::Whole => places.plain,
            Self::Events => places.events,
            Self::Lines => places.lines,
        }
    }
}

/// What a response says that it is, without parameters.
fn media_type(head: &HeaderMap) -> &[u8] {
    let value = head.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}

/// What a stream of events calls itself.
const EVENTS: &str = "text/event-stream";

/// What newline-delimited JSON calls itself.
const LINES: [&str; 5] = [
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonlines",
    "application/jsonlines",
];

/// Reads an event of a stream.
fn of_event(event: Event<'_>, rules: &Rules, tally: &mut Tally) {
    tally.events = tally.events.saturating_add(1);
    match event {
        Event::Data(text) => told(text, &rules.events, tally),
        Event::TooLong => too_long(&rules.events, tally),
    }
}

/// Reads one text of several.
fn told(text: &[u8], finder: &Finder, tally: &mut Tally) {
    if finder.may_tell(text) {
        match finder.picker.pick(text) {
            Ok(picked) => tally.take(&picked),
            Err(_) => tally.broken(),
        }
    }
}

/// Reads a text that nothing ended but the body's own end. One that was cut counts only where that
/// can be seen: half a number is a number.
fn last(text: &[u8], complete: bool, finder: &Finder, tally: &mut Tally) {
    if complete {
        return told(text, finder, tally);
    }
    if text.trim_ascii_start().starts_with(b"{")
        && let Ok(picked) = finder.picker.pick(text)
    {
        tally.take(&picked);
    }
}

fn too_long(finder: &Finder, tally: &mut Tally) {
    if !finder.picker.is_empty() {
        tally.broken();
    }
}

impl Reading {
    /// Begins with the response's head, without what is the connection's; `declared` are those
    /// trailers of [`Rules::declared`] that the head announced.
    pub fn new(rules: &Arc<Rules>, head: &HeaderMap, declared: Names) -> Self {
        let name = media_type(head);
        let kind = Kind::of(rules, name);
        if kind == Kind::Not && !rules.has_usage() {
            return Self::default();
        }
        let pointers = kind.finder(rules).map_or(0, |finder| finder.picker.len());
        let mut reading = Self {
            rules: Some(Arc::clone(rules)),
            told: SmallVec::from_elem(None, rules.meters.len()),
            kind,
            streams: name.eq_ignore_ascii_case(EVENTS.as_bytes()),
            body: Body::of(kind),
            coding: None,
            tally: Tally::new(rules.pick, pointers),
            awaited: declared,
        };
        for (meter, places) in rules.meters.iter().enumerate() {
            if let Some(name) = &places.header {
                reading.fields(meter, name, head);
            }
        }
        if kind != Kind::Not {
            match Coding::of(head) {
                Coding::Plain => {}
                Coding::Known(decoding) => reading.coding = Some(decoding),
                Coding::Unknown => reading.lose(),
            }
        }
        reading
    }

    /// Of several fields the first valid one counts (f15).
    fn fields(&mut self, meter: usize, name: &HeaderName, fields: &HeaderMap) {
        for value in fields.get_all(name) {
            let read = value.to_str().ok().and_then(|text| parse_micro(text.trim()).ok());
            match (self.told[meter], read) {
                (_, None) => self.tally.unreadable = true,
                (None, read) => self.told[meter] = read,
                (told, read) => self.tally.conflicting |= told != read,
            }
        }
    }

    /// Reads one more piece of the body, and returns how many of its bytes may pass now. The
    /// others are, or follow, what tells a client that its answer is complete.
    pub fn feed(&mut self, piece: &[u8]) -> usize {
        let Some(rules) = &self.rules else { return piece.len() };
        if self.is_done() {
            return 0;
        }
        let Some(decoding) = &mut self.coding else {
            return self.body.feed(piece, rules, &mut self.tally);
        };
        let (body, tally) = (&mut self.body, &mut self.tally);
        let decoded = decoding.feed(piece, |part| {
            body.feed(part, rules, tally);
        });
        if self.is_done() {
            return 0;
        }
        if decoded.is_err() {
            self.lose();
        }
        piece.len()
    }

    /// Says for each meter by how much its usage may grow in one text at most: what tells more is
    /// no usage (f56).
    pub fn bound_by(&mut self, most: impl Iterator<Item = u64>) {
        let meters = self.rules.iter().flat_map(|rules| &rules.meters).zip(most);
        for (places, most) in meters {
            if let Some(pointer) = self.kind.pointer(places) {
                self.tally.bound(pointer, most);
            }
        }
    }

    /// Reads on in an open stream, up to the end of an event; give it the rest of the piece then.
    /// Of everything else each piece is taken for one.
    pub fn next(&mut self, piece: &[u8]) -> Fed {
        if self.is_open_stream()
            && let (Some(rules), Body::Events(events)) = (&self.rules, &mut self.body)
        {
            return events.next(piece, |event| of_event(event, rules, &mut self.tally));
        }
        self.feed(piece);
        if self.is_done() { Fed::Done } else { Fed::Event(piece.len()) }
    }

    /// Reads the trailers of those that were declared.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        let awaited = std::mem::take(&mut self.awaited);
        let Some(rules) = self.rules.clone().filter(|_| !awaited.is_empty()) else { return };
        for (meter, places) in rules.meters.iter().enumerate() {
            if let Some(name) = places.trailer.as_ref().filter(|name| awaited.contains(name)) {
                self.fields(meter, name, trailers);
            }
        }
    }

    /// Reads the end: all of the response came, or something broke it off. What was cut counts
    /// where it is whole in itself.
    pub fn end(&mut self, complete: bool) {
        let Some(rules) = &self.rules else { return };
        let tally = &mut self.tally;
        match std::mem::take(&mut self.body) {
            Body::Not => {}
            Body::Whole(whole) => match whole.text() {
                None => tally.lose(),
                Some(text) if text.trim_ascii().is_empty() => {}
                Some(text) => last(text, complete, &rules.plain, tally),
            },
            Body::Events(mut events) => events.end(|event| {
                // What was cut is no event.
                tally.events = tally.events.saturating_add(u32::from(complete));
                match event {
                    Event::Data(text) => last(text, complete, &rules.events, tally),
                    Event::TooLong => too_long(&rules.events, tally),
                }
            }),
            Body::Lines(mut lines) => lines.end(|text| match text {
                Text::Line(text) => last(text, complete, &rules.lines, tally),
                Text::TooLong => too_long(&rules.lines, tally),
            }),
        }
    }

    fn lose(&mut self) {
        (self.body, self.coding) = (Body::Not, None);
        if self.rules.as_ref().is_some_and(|rules| rules.reads_body()) {
            self.tally.lose();
        }
    }

    /// Whether the body said that it is done: nothing that follows in it is read.
    pub fn is_done(&self) -> bool {
        matches!(&self.body, Body::Events(events) if events.is_done())
    }

    /// Whether nothing that follows can change what is told.
    pub fn is_final(&self) -> bool {
        self.awaited.is_empty() && (matches!(self.body, Body::Not) || self.is_done())
    }

    /// Whether something that was told could not be read (f56).
    pub fn is_unreadable(&self) -> bool {
        self.tally.unreadable
    }

    /// Whether values differ of which one counts (f15).
    pub fn is_conflicting(&self) -> bool {
        self.tally.conflicting
    }

    /// Where each meter's usage is told, and what it comes to by what was told so far. A body that
    /// is one JSON text tells nothing before its end.
    fn told_so_far(&self) -> impl Iterator<Item = (&Places, Option<u64>)> {
        let meters = self.rules.as_ref().map_or(&[][..], |rules| &rules.meters);
        meters.iter().zip(&self.told).map(|(places, told)| {
            let pointer = self.kind.pointer(places);
            (places, pointer.map_or(*told, |pointer| self.tally.get(pointer)))
        })
    }

    /// What was really used, as told by all of the response.
    pub fn actual(&self, quoted: &[u64]) -> Actual {
        match &self.rules {
            Some(rules) if rules.has_usage() => {
                self.reported(quoted).map_or(Actual::Missing, Actual::Reported)
            }
            _ => Actual::Quoted,
        }
    }

    /// The same of a response that is not complete: only a report counts. Meters whose usage is
    /// told nowhere have what was quoted.
    pub fn reported(&self, quoted: &[u64]) -> Option<SmallVec<[u64; 2]>> {
        self.rules.as_ref().filter(|rules| rules.has_usage())?;
        self.told_so_far()
            .zip(quoted)
            .map(|((places, told), quoted)| match places.is_told() {
                true => told,
                false => Some(self.counted(places).unwrap_or(*quoted)),
            })
            .collect()
    }

    /// Whether the body is a stream of events. What is only read as one is none.
    pub fn is_stream(&self) -> bool {
        self.streams
    }

    /// Whether it is a stream of events of which nothing more is read: how it is encoded is not
    /// known, or nothing it could be.
    pub fn is_lost(&self) -> bool {
        self.streams && matches!(self.body, Body::Not)
    }

    /// Whether events may be set among its own: it comes as it is.
    pub fn is_open_stream(&self) -> bool {
        self.streams && matches!(self.body, Body::Events(_)) && self.coding.is_none()
    }

    fn counted(&self, places: &Places) -> Option<u64> {
        let counts = places.counted && self.streams;
        counts.then(|| u64::from(self.tally.events) * MICRO)
    }

    /// How far a stream has come by each meter: what was told, and at least the events of it where
    /// they count.
    pub fn progress(&self) -> impl Iterator<Item = u64> {
        self.told_so_far().map(|(places, told)| told.max(self.counted(places)).unwrap_or(0))
    }

    /// What a stream that ends here came to, of which so much was held and no more was delivered:
    /// what was told, else its events where they count, else what was held; and whether all of it
    /// was told.
    pub fn so_far(&self, held: &[u64]) -> (SmallVec<[u64; 2]>, bool) {
        if self.rules.is_none() {
            return (SmallVec::from_slice(held), false);
        }
        let mut all_told = true;
        let quantities = self.told_so_far().zip(held).map(|((places, told), held)| {
            all_told &= told.is_some() || !places.is_told();
            told.unwrap_or_else(|| self.counted(places).map_or(*held, |events| events.min(*held)))
        });
        (quantities.collect(), all_told)
    }
}

#[cfg(test)]
mod tests;
