//! Event streams (WHATWG HTML, 9.2), read as they pass: lines and events are put together over any
//! boundary of pieces, in memory that does not grow with the stream.

use memchr::memchr2;

use super::MAX_TEXT;

/// The end of a stream, as OpenAI's backends say it and clients take it: by its beginning.
const DONE: &[u8] = b"[DONE]";
const MARK: &[u8] = b"\xef\xbb\xbf";
/// What is kept of a line that is too long: enough to know which field it is, and whether it says
/// that the stream is done.
const KEPT_OF_LONG: usize = 32;
/// Memory that an unusual event took is given back above this.
const USUAL: usize = 16 << 10;

/// What a stream is found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// An event's data.
    Data(&'a [u8]),
    /// An event whose data is longer than is read.
    TooLong,
}

/// How far a piece of a stream was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fed {
    /// All of it was, and the event at its end goes on.
    On,
    /// An event ended with so many of its bytes.
    Event(usize),
    /// The event that it begins or goes on with says `[DONE]`. Nothing behind that is read.
    Done,
}

/// A stream that is being read.
#[derive(Debug)]
pub struct Events {
    /// The beginning of a line that goes on, without a terminator.
    line: Vec<u8>,
    /// It is longer than what is kept of it.
    long: bool,
    /// It is the first line, so it may begin with a byte order mark.
    first: bool,
    /// The last piece ended with CR; a LF that follows is part of it.
    after_cr: bool,
    /// Some line of an event has come, and the event's end has not.
    begun: bool,
    /// Its data, where it has come in parts, and how long it is.
    data: Vec<u8>,
    length: usize,
    has_data: bool,
    done: bool,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            line: Vec::new(),
            long: false,
            first: true,
            after_cr: false,
            begun: false,
            data: Vec::new(),
            length: 0,
            has_data: false,
            done: false,
        }
    }
}

impl Events {
    /// Whether `[DONE]` has come. Nothing behind it is read.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Reads on, up to the end of an event; give it the rest of the piece then. A LF that completes
    /// the end of one in the piece before is told as one more.
    pub fn next(&mut self, piece: &[u8], mut take: impl FnMut(Event<'_>)) -> Fed {
        if self.done {
            return Fed::Done;
        }
        let mut at = 0;
        if !piece.is_empty() && std::mem::take(&mut self.after_cr) && piece[0] == b'\n' {
            at = 1;
            if !self.begun {
                return Fed::Event(at);
            }
        }
        // The only line of data so far, where it is in this piece: most events are one line in one
        // piece, and are not copied.
        let mut here: Option<&[u8]> = None;
        while let Some(end) = memchr2(b'\n', b'\r', &piece[at..]) {
            let rest = &piece[at..at + end];
            at += end + 1;
            if piece[at - 1] == b'\r' {
                match piece.get(at) {
                    Some(b'\n') => at += 1,
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
            if self.line.is_empty() {
                let long = rest.len() > MAX_TEXT;
                let first = std::mem::take(&mut self.first);
                match field(rest, first, long) {
                    Line::Blank => {
                        self.dispatch(here, &mut take);
                        return Fed::Event(at);
                    }
                    Line::Done => return self.done(here, take),
                    Line::Data(value) if !self.has_data && value.len() <= MAX_TEXT => {
                        (self.begun, self.has_data, self.length) = (true, true, value.len());
                        here = Some(value);
                    }
                    Line::Data(value) => {
                        self.gather(&mut here);
                        self.push(value);
                    }
                    Line::Long => self.too_long(&mut here),
                    Line::Other => self.begun = true,
                }
                continue;
            }
            self.extend_line(rest);
            let line = std::mem::take(&mut self.line);
            let (first, long) = (std::mem::take(&mut self.first), std::mem::take(&mut self.long));
            match field(&line, first, long) {
                // A line of which something has come is only blank with a mark at its front.
                Line::Blank => {
                    self.dispatch(here, &mut take);
                    return Fed::Event(at);
                }
                Line::Done => return self.done(here, take),
                Line::Data(value) => {
                    self.gather(&mut here);
                    self.push(value);
                }
                Line::Long => self.too_long(&mut here),
                Line::Other => self.begun = true,
            }
            self.line = line;
            self.line.clear();
            self.line.shrink_to(USUAL);
        }
        self.extend_line(&piece[at..]);
        if matches!(field(&self.line, self.first, self.long), Line::Done) {
            return self.done(here, take);
        }
        self.gather(&mut here);
        Fed::On
    }

    /// Gives what came without its end: the data of an event whose blank line is missing.
    pub fn end(&mut self, mut take: impl FnMut(Event<'_>)) {
        if self.done {
            return;
        }
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            match field(&line, self.first, self.long) {
                Line::Data(value) => self.push(value),
                Line::Long => self.too_long(&mut None),
                _ => {}
            }
        }
        self.dispatch(None, &mut take);
        self.done = true;
    }

    fn extend_line(&mut self, more: &[u8]) {
        if self.long {
            return;
        }
        if self.line.len() + more.len() <= MAX_TEXT {
            self.line.extend_from_slice(more);
            return;
        }
        self.long = true;
        let missing = KEPT_OF_LONG.saturating_sub(self.line.len()).min(more.len());
        self.line.extend_from_slice(&more[..missing]);
        self.line.truncate(KEPT_OF_LONG);
        self.line.shrink_to(USUAL);
    }

    /// Copies what would not outlive its piece.
    fn gather(&mut self, here: &mut Option<&[u8]>) {
        if let Some(value) = here.take() {
            self.data.extend_from_slice(value);
        }
    }

    /// Another line of data.
    fn push(&mut self, value: &[u8]) {
        let joins = usize::from(std::mem::replace(&mut self.has_data, true));
        self.begun = true;
        self.length = self.length.saturating_add(joins + value.len());
        if self.length > MAX_TEXT {
            self.data = Vec::new();
            return;
        }
        if joins > 0 {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(value);
    }

    fn too_long(&mut self, here: &mut Option<&[u8]>) {
        *here = None;
        (self.begun, self.has_data, self.length) = (true, true, usize::MAX);
        self.data = Vec::new();
    }

    fn dispatch(&mut self, here: Option<&[u8]>, take: &mut impl FnMut(Event<'_>)) {
        if self.length > MAX_TEXT {
            take(Event::TooLong);
        } else if self.length > 0 {
            take(Event::Data(here.unwrap_or(&self.data)));
        }
        (self.begun, self.has_data, self.length) = (false, false, 0);
        self.data.clear();
        self.data.shrink_to(USUAL);
    }

    /// `[DONE]` ends whatever came before it in the same event, too: some backends separate their
    /// lines by one line feed only.
    fn done(&mut self, here: Option<&[u8]>, mut take: impl FnMut(Event<'_>)) -> Fed {
        self.dispatch(here, &mut take);
        *self = Self { done: true, ..Self::default() };
        Fed::Done
    }
}

/// What a line is.
enum Line<'a> {
    Blank,
    Data(&'a [u8]),
    Done,
    /// Data, longer than is read.
    Long,
    Other,
}

fn field(line: &[u8], first: bool, long: bool) -> Line<'_> {
    let line = if first { line.strip_prefix(MARK).unwrap_or(line) } else { line };
    match line.strip_prefix(b"data") {
        Some([]) => Line::Data(b""),
        Some([b':', value @ ..]) => {
            let begin = &value[..value.len().min(KEPT_OF_LONG - b"data:".len() - MARK.len())];
            if begin.trim_ascii_start().starts_with(DONE) {
                return Line::Done;
            }
            match long {
                true => Line::Long,
                false => Line::Data(value.strip_prefix(b" ").unwrap_or(value)),
            }
        }
        None if line.is_empty() => Line::Blank,
        _ => Line::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of a stream that comes in these pieces, and what is left of it.
    fn events<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, Vec<u8>) {
        let (mut stream, mut found) = (Events::default(), Vec::<Vec<u8>>::new());
        let mut event = Vec::new();
        for mut piece in pieces {
            while let Fed::Event(end) = stream.next(piece, |_| {}) {
                event.extend_from_slice(&piece[..end]);
                match found.last_mut() {
                    Some(last) if event == b"\n" && last.ends_with(b"\r") => {
                        last.append(&mut event)
                    }
                    _ => found.push(std::mem::take(&mut event)),
                }
                piece = &piece[end..];
            }
            event.extend_from_slice(piece);
        }
        (found, event)
    }

    #[test]
    fn f82_events_end_where_the_standard_says_however_they_are_cut() {
        for (text, expected) in [
            ("data: a\n\ndata: b\n\nda", &["data: a\n\n", "data: b\n\n"][..]),
            ("data: a\r\n\r\ndata: b\r\n\r\n", &["data: a\r\n\r\n", "data: b\r\n\r\n"]),
            ("data: a\r\rdata: b\r", &["data: a\r\r"]),
            ("data: a\n\r\ndata: b\r\n\n: c", &["data: a\n\r\n", "data: b\r\n\n"]),
            ("\n\na\nb\n\n", &["\n", "\n", "a\nb\n\n"]),
            ("\u{feff}\ndata\n\n", &["\u{feff}\n", "data\n\n"]),
            ("data: a\n", &[]),
            // What is not read has no end.
            ("data: a\n\ndata: [DONE]\n\ndata: b\n\n", &["data: a\n\n"]),
            ("", &[]),
        ] {
            let (whole, rest) = events([text.as_bytes()]);
            assert_eq!(whole, expected.iter().map(|event| event.as_bytes()).collect::<Vec<_>>());
            assert_eq!([whole.concat(), rest].concat(), text.as_bytes());
            for (first, second) in
                (0..=text.len()).flat_map(|i| (i..=text.len()).map(move |j| (i, j)))
            {
                let (a, b) = text.as_bytes().split_at(first);
                let (b, c) = b.split_at(second - first);
                let (cut, _) = events([a, b, c]);
                assert_eq!(cut, whole, "{text:?} {first} {second}");
            }
        }
    }
}
