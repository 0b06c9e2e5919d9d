//! Where a route's backend tells what was really used, compiled once.

use http::header::{HeaderMap, HeaderName, TRAILER};
use memchr::{memchr_iter, memmem};
use smallvec::SmallVec;

use super::super::pick::Picker;
use crate::config::{self, Pick};

/// Names of trailers.
pub type Names = SmallVec<[HeaderName; 1]>;

/// Where usage is told, by meter.
#[derive(Debug, Default)]
pub struct Rules {
    pub(super) meters: Vec<Places>,
    /// Pointers into a whole body.
    pub(super) plain: Finder,
    /// Pointers into the events of a stream.
    pub(super) events: Finder,
    /// Pointers into the lines of a stream.
    pub(super) lines: Finder,
    /// Which of several counts.
    pub(super) pick: Pick,
}

/// The places where one meter's usage is told. The pointers are of a body's different kinds.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub plain: Option<usize>,
    pub events: Option<usize>,
    pub lines: Option<usize>,
    pub header: Option<HeaderName>,
    pub trailer: Option<HeaderName>,
    /// Each event of a stream counts as one at least.
    pub counted: bool,
}

impl Places {
    fn read_body(&self) -> bool {
        self.plain.or(self.events).or(self.lines).is_some()
    }

    pub fn is_told(&self) -> bool {
        self.read_body() || self.header.is_some() || self.trailer.is_some()
    }
}

impl Rules {
    /// Rules without a meter.
    pub fn new(pick: Pick) -> Self {
        Self { pick, ..Self::default() }
    }

    /// Adds the next meter.
    ///
    /// # Errors
    /// What is wrong with where its usage is told.
    pub fn add(&mut self, usage: Option<&config::Usage>) -> Result<(), String> {
        let mut places = Places::default();
        if let Some(usage) = usage {
            if !usage.is_one_place() {
                return Err(format!("`usage` needs {}", config::Usage::EXPECTED));
            }
            let pointer = |finder: &mut Finder, pointer: &Option<String>| {
                pointer.as_deref().map(|pointer| finder.add(pointer)).transpose()
            };
            places.plain = pointer(&mut self.plain, &usage.json)?;
            places.events = pointer(&mut self.events, &usage.sse_json)?;
            places.lines = pointer(&mut self.lines, &usage.ndjson_json)?;
            let name = |name: &Option<String>| {
                let parsed = name.as_deref().map(str::parse::<HeaderName>).transpose();
                parsed.map_err(|_| format!("{name:?} is no header"))
            };
            places.header = name(&usage.header)?;
            places.trailer = name(&usage.trailer)?;
        }
        self.meters.push(places);
        Ok(())
    }

    /// Each event of a stream counts as one of the last meter at least.
    pub fn count_events(&mut self) {
        if let Some(places) = self.meters.last_mut() {
            places.counted = true;
        }
    }

    /// True when some meter's usage is told, or counted.
    pub fn has_usage(&self) -> bool {
        self.meters.iter().any(|places| places.counted || places.is_told())
    }

    /// True when it is told in a body.
    pub fn reads_body(&self) -> bool {
        self.meters.iter().any(Places::read_body)
    }

    /// True when it is told in trailers.
    pub fn reads_trailers(&self) -> bool {
        self.meters.iter().any(|places| places.trailer.is_some())
    }

    /// The trailers that tell usage and that a response declares. Others are not read (f68).
    pub fn declared(&self, head: &HeaderMap) -> Names {
        let declares = |name: &HeaderName| {
            let values = head.get_all(TRAILER).iter();
            let mut names = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
            names.any(|one| one.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
        };
        let mut names = Names::new();
        for name in self.meters.iter().filter_map(|places| places.trailer.as_ref()) {
            if !names.contains(name) && declares(name) {
                names.push(name.clone());
            }
        }
        names
    }
}

/// The least that keys end with alike to be looked for as one.
const ALIKE: usize = 4;

/// Pointers into JSON texts of which most tell nothing: a text is parsed only where it has what a
/// pointer ends with.
#[derive(Debug, Default)]
pub(super) struct Finder {
    pub picker: Picker,
    /// Ends of keys, with the quote behind them.
    keys: Vec<memmem::Finder<'static>>,
    /// Every text is parsed: some pointer has no key that could be looked for.
    always: bool,
}

impl Finder {
    fn add(&mut self, pointer: &str) -> Result<usize, String> {
        let at = self.picker.add(pointer).map_err(|error| error.to_string())?;
        // A number may be an index, and then no key.
        let index = |token: &&str| token.bytes().all(|byte| byte.is_ascii_digit());
        match pointer.split('/').skip(1).filter(|token| !index(token)).last() {
            // What has none of these is written as it is, or with `\u00` for one of its letters.
            Some(key)
                if !key.contains(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-') =>
            {
                let quoted = format!("\"{key}\"");
                // Usage often has `prompt_tokens` beside `completion_tokens`: each text is searched
                // once for both.
                let known = self.keys.iter_mut().find_map(|known| {
                    let alike = alike(known.needle(), quoted.as_bytes());
                    let is_one = alike == quoted.len() || alike >= ALIKE;
                    is_one.then_some((known, &quoted[quoted.len() - alike..]))
                });
                match known {
                    Some((known, end)) => *known = memmem::Finder::new(end).into_owned(),
                    None => self.keys.push(memmem::Finder::new(&quoted).into_owned()),
                }
            }
            _ => self.always = true,
        }
        Ok(at)
    }

    /// False where the text tells nothing, whatever else is in it.
    pub fn may_tell(&self, text: &[u8]) -> bool {
        self.always
            || self.keys.iter().any(|key| key.find(text).is_some())
            || (!self.keys.is_empty() && has_escape(text))
    }
}

/// Whether something in it is written as `\u00` and two digits. Few texts have a backslash.
fn has_escape(text: &[u8]) -> bool {
    memchr_iter(b'\\', text).any(|at| text[at..].starts_with(b"\\u00"))
}

/// How many bytes two texts end with alike.
fn alike(one: &[u8], other: &[u8]) -> usize {
    one.iter().rev().zip(other.iter().rev()).take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finder(pointers: &[&str]) -> Finder {
        let mut finder = Finder::default();
        for pointer in pointers {
            finder.add(pointer).unwrap();
        }
        finder
    }

    #[test]
    fn f15_no_text_is_passed_over_that_a_pointer_finds_something_in() {
        let keys =
            ["/usage/prompt_tokens", "/usage/completion_tokens", "/usage/n", "/u/in", "/m/n"];
        // Each of them first: what is looked for does not depend on the order.
        for first in 0..keys.len() {
            let mut pointers = keys.to_vec();
            pointers.rotate_left(first);
            let finder = finder(&pointers);
            assert!(finder.keys.len() <= 3 && !finder.always);
            for key in keys.map(|key| key.rsplit('/').next().unwrap()) {
                assert!(finder.may_tell(format!("{{\"{key}\":1}}").as_bytes()), "{key}");
                let (letter, rest) = key.split_at(1);
                let escaped = format!("\\n{{\"\\u00{:02x}{rest}\":1}}", letter.as_bytes()[0]);
                assert!(finder.may_tell(escaped.as_bytes()), "{escaped}");
            }
            for text in ["{}", "{\"tokens\":1,\"on\":\"\\n \\\\ \\u4e2d\"}", "{\"usage\":null}"] {
                assert!(!finder.may_tell(text.as_bytes()), "{text}");
            }
        }
        assert!(finder(&["/usage/0", "/7"]).may_tell(b"{}"), "an index is no key");
        assert!(finder(&["/usage/a b"]).may_tell(b"{}"), "it may be written in many ways");
        assert!(!finder(&[]).may_tell(b"{}"));
    }
}
