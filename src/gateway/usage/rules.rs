//! Where a route's backend tells what was really used, compiled once.

use http::header::{HeaderMap, HeaderName, TRAILER};
use memchr::memmem;
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

/// Pointers into JSON texts of which most tell nothing: a text is parsed only where it has what a
/// pointer ends with.
#[derive(Debug, Default)]
pub(super) struct Finder {
    pub picker: Picker,
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
                if !self.keys.iter().any(|known| known.needle() == quoted.as_bytes()) {
                    self.keys.push(memmem::Finder::new(&quoted).into_owned());
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
            || (!self.keys.is_empty() && memmem::find(text, b"\\u00").is_some())
    }
}
