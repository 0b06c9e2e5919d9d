//! The head of a request as bytes: what hyper's parsed heads no longer show.
//!
//! hyper repairs some heads (it drops a `Content-Length` beside a `Transfer-Encoding` and the
//! second of two equal ones, and takes a bare LF for a line's end), so the lines of a head are
//! looked at once more here, in one pass that stops at line ends only (RFC 9112, 2.2 and 6.3).

/// What the bytes of a head show. Kept in one byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts(u8);

impl Facts {
    /// All of the head was looked at.
    pub const SEEN: Self = Self(1);
    /// All of it was looked at, and there is one `Content-Length`: the usual request with a body.
    pub const SEEN_WITH_LENGTH: Self = Self(Self::SEEN.0 | Self::LENGTH.0);
    /// A line ends with LF alone.
    pub const BARE_LF: Self = Self(2);
    /// There is a `Content-Length`.
    pub const LENGTH: Self = Self(4);
    /// There are two.
    pub const LENGTHS: Self = Self(8);
    /// There is a `Transfer-Encoding`.
    pub const CODING: Self = Self(16);
    /// The target has a fragment.
    pub const FRAGMENT: Self = Self(32);
    /// The `Content-Length` is more than a body can have.
    pub const BEYOND: Self = Self(64);

    /// As one byte.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// From one byte.
    pub fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Whether it is so.
    pub fn has(self, fact: Self) -> bool {
        self.0 & fact.0 == fact.0
    }

    fn add(&mut self, fact: Self) {
        self.0 |= fact.0;
    }
}

/// A head that is being looked at, line by line.
#[derive(Debug, Default)]
pub struct Head {
    /// What was seen so far.
    pub facts: Facts,
    /// What `Content-Length` says; hyper refuses what is no number.
    pub length: u64,
    /// The request line was there.
    began: bool,
    /// The beginning of a line whose end has not come; at most hyper's bound of a head.
    line: Vec<u8>,
}

impl Head {
    /// Looks at more of it. Where it ends, says behind which byte.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            let rest = &bytes[start..end];
            start = end + 1;
            let ends = if self.line.is_empty() {
                self.line(rest)
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(rest);
                self.line(&line)
            };
            if ends {
                return Some(start);
            }
        }
        self.line.extend_from_slice(&bytes[start..]);
        None
    }

    /// Looks at one line without its LF. True for the empty line that ends a head.
    fn line(&mut self, line: &[u8]) -> bool {
        let line = match line {
            [line @ .., b'\r'] => line,
            _ => {
                self.facts.add(Facts::BARE_LF);
                line
            }
        };
        let Some(first) = line.first() else {
            // Empty lines before a request are skipped (RFC 9112, 2.2).
            return self.began;
        };
        if !self.began {
            self.began = true;
            if memchr::memchr(b'#', line).is_some() {
                self.facts.add(Facts::FRAGMENT);
            }
        } else if first | 0x20 == b'c' {
            if let Some(value) = value(line, b"content-length:") {
                let again = self.facts.has(Facts::LENGTH);
                self.facts.add(if again { Facts::LENGTHS } else { Facts::LENGTH });
                let digits = std::str::from_utf8(value.trim_ascii()).ok();
                self.length = digits.and_then(|digits| digits.parse().ok()).unwrap_or(0);
                if self.length > i64::MAX as u64 {
                    self.facts.add(Facts::BEYOND);
                }
            }
        } else if first | 0x20 == b't' && value(line, b"transfer-encoding:").is_some() {
            self.facts.add(Facts::CODING);
        }
        false
    }
}

fn value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(text: &str) -> (Option<usize>, Facts, u64) {
        let mut head = Head::default();
        let end = head.feed(text.as_bytes());
        // However a head comes in pieces, it is the same head.
        for cut in 0..text.len() {
            let mut parts = Head::default();
            let (first, second) = text.as_bytes().split_at(cut);
            let found = parts.feed(first).or_else(|| Some(cut + parts.feed(second)?));
            assert_eq!((found, parts.facts, parts.length), (end, head.facts, head.length), "{cut}");
        }
        (end, head.facts, head.length)
    }

    #[test]
    fn f63_the_lines_that_frame_a_request_are_seen_in_its_bytes() {
        let line = "POST / HTTP/1.1\r\n";
        for (lines, expected, length) in [
            ("", Facts(0), 0),
            ("Content-Length: 5\r\n", Facts::LENGTH, 5),
            ("content-length:5\r\ncontent-length:5\r\n", Facts(4 | 8), 5),
            ("Transfer-Encoding: chunked\r\nCONTENT-LENGTH: 7\r\n", Facts(4 | 16), 7),
            ("Transfer_Encoding: chunked\r\nx-content-length: 7\r\n", Facts(0), 0),
            ("Content-Length: 18446744073709551615\r\n", Facts(4 | 64), u64::MAX),
            ("A: b\nTransfer-Encoding: chunked\r\n", Facts(2 | 16), 0),
        ] {
            let text = format!("{line}{lines}\r\nGET");
            let end = Some(text.len() - 3);
            assert_eq!(facts(&text), (end, expected, length), "{lines:?}");
        }
        assert_eq!(facts("\r\n\r\nGET /#x HTTP/1.1\r\n\r\n").1, Facts::FRAGMENT);
        assert_eq!(facts("GET / HTTP/1.1\n\n").1, Facts::BARE_LF);
        assert_eq!(facts("GET / HTTP/1.1\r\nhost: a\r\n").0, None);
    }
}
