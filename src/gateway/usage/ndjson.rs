//! Newline-delimited JSON: a text a line, over any boundary of pieces.

use memchr::memchr;

use super::MAX_TEXT;

const MARK: &[u8] = b"\xef\xbb\xbf";
/// Memory that an unusual line took is given back above this.
const USUAL: usize = 16 << 10;

/// What a stream is found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text<'a> {
    /// A line that is not blank.
    Line(&'a [u8]),
    /// A line that is longer than is read.
    TooLong,
}

/// A stream that is being read.
#[derive(Debug, Default)]
pub struct Lines {
    /// The beginning of a line that goes on.
    line: Vec<u8>,
    /// It is longer than is read.
    long: bool,
    /// The first line was read.
    begun: bool,
}

impl Lines {
    /// Reads one more piece.
    pub fn feed(&mut self, piece: &[u8], mut take: impl FnMut(Text<'_>)) {
        let mut at = 0;
        while let Some(end) = memchr(b'\n', &piece[at..]) {
            let rest = &piece[at..at + end];
            at += end + 1;
            if self.line.is_empty() && !self.long && rest.len() <= MAX_TEXT {
                told(rest, !std::mem::replace(&mut self.begun, true), &mut take);
            } else {
                self.extend(rest);
                self.end(&mut take);
            }
        }
        self.extend(&piece[at..]);
    }

    /// Gives the last line, which needs no end.
    pub fn end(&mut self, mut take: impl FnMut(Text<'_>)) {
        let first = !std::mem::replace(&mut self.begun, true);
        if std::mem::take(&mut self.long) {
            take(Text::TooLong);
        } else {
            told(&self.line, first, &mut take);
        }
        self.line.clear();
        self.line.shrink_to(USUAL);
    }

    fn extend(&mut self, more: &[u8]) {
        if self.long {
            return;
        }
        if self.line.len() + more.len() > MAX_TEXT {
            (self.long, self.line) = (true, Vec::new());
        } else {
            self.line.extend_from_slice(more);
        }
    }
}

fn told(line: &[u8], first: bool, take: &mut impl FnMut(Text<'_>)) {
    let line = if first { line.strip_prefix(MARK).unwrap_or(line) } else { line };
    if !line.trim_ascii().is_empty() {
        take(Text::Line(line));
    }
}
