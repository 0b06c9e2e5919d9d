//! A client's connection as bytes, below hyper: what hyper's parsed heads no longer show, where
//! requests end, how long the client takes.
//!
//! hyper repairs some heads (it drops a `Content-Length` beside a `Transfer-Encoding` and the
//! second of two equal ones, and takes a bare LF for a line's end), so the lines of a head are
//! looked at once more here, in one pass that stops at line ends only (RFC 9112, 2.2 and 6.3).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::pace::Late;
use super::worker::Connection;

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

/// Where in its requests the bytes of a connection are.
#[derive(Debug)]
enum Place {
    /// In a head, or before one.
    Head,
    /// In a body that has so many bytes left; at 0 behind a request.
    Body(u64),
    /// In a body in chunks, whose end only hyper finds; the last four bytes that came.
    Chunks([u8; 4]),
    /// Nobody knows. Whatever comes next is refused.
    Lost,
}

/// A connection's bytes.
pub struct Wire {
    stream: TcpStream,
    connection: Arc<Connection>,
    place: Place,
    head: Head,
    /// What came behind a request while it was served. hyper sees it when the answer is written,
    /// so that each request's bytes are told from the next one's. At most one read.
    behind: Vec<u8>,
    /// hyper has answered a head that it could not read. What it wrote is thrown away: such a
    /// head is answered like any other refusal.
    dismissed: bool,
    /// The client has ended its side.
    ended: bool,
}

impl Wire {
    /// A connection that has just been made.
    pub fn new(stream: TcpStream, connection: Arc<Connection>) -> Self {
        Self {
            stream,
            connection,
            place: Place::Head,
            head: Head::default(),
            behind: Vec::new(),
            dismissed: false,
            ended: false,
        }
    }

    /// The stream, and whether the client might still be sending.
    pub fn into_inner(self) -> (TcpStream, bool) {
        (self.stream, !self.ended)
    }

    /// Looks at what was read behind `before`, and keeps back what is not part of the request.
    /// True where something is left for hyper.
    fn look(&mut self, buffer: &mut ReadBuf<'_>, before: usize) -> bool {
        let pace = &self.connection.pace;
        let idle = pace.is_between_requests();
        match self.place {
            Place::Body(0) if idle => self.place = Place::Head,
            Place::Chunks(end) if idle && !pace.is_uploading() => {
                // Unless the last bytes were the end of the chunks, hyper has some that were not
                // looked at.
                self.place = if end == *b"\r\n\r\n" { Place::Head } else { Place::Lost };
            }
            _ => {}
        }
        let new = &buffer.filled()[before..];
        let mut take = new.len();
        match &mut self.place {
            Place::Head => {
                pace.head_came();
                if let Some(end) = self.head.feed(new) {
                    let Head { facts, length, .. } = std::mem::take(&mut self.head);
                    self.connection.facts.store(facts.bits() | Facts::SEEN.bits(), Relaxed);
                    if facts.has(Facts::CODING) {
                        self.place = Place::Chunks(tail([0; 4], &new[end..]));
                    } else {
                        let body = u64::try_from(new.len() - end).map_or(length, |n| n.min(length));
                        self.place = Place::Body(length - body);
                        take = end + usize::try_from(body).unwrap_or(usize::MAX - end);
                    }
                }
            }
            Place::Body(left) => {
                take = usize::try_from(*left).map_or(take, |left| left.min(take));
                *left -= take as u64;
            }
            Place::Chunks(end) => *end = tail(*end, new),
            Place::Lost => pace.head_came(),
        }
        self.behind.extend_from_slice(&new[take..]);
        buffer.set_filled(before + take);
        take > 0
    }
}

/// The last four bytes.
fn tail(before: [u8; 4], new: &[u8]) -> [u8; 4] {
    match new.last_chunk::<4>() {
        Some(last) => *last,
        None => {
            let mut all = before;
            all.rotate_left(new.len());
            all[4 - new.len()..].copy_from_slice(new);
            all
        }
    }
}

fn late() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        let pace = &wire.connection.pace;
        if pace.late().is_some() {
            return Poll::Ready(Err(late()));
        }
        let before = buffer.filled().len();
        if wire.behind.is_empty() {
            ready!(Pin::new(&mut wire.stream).poll_read(context, buffer))?;
        } else if pace.is_between_requests() {
            let behind = std::mem::take(&mut wire.behind);
            let (now, later) = behind.split_at(behind.len().min(buffer.remaining()));
            buffer.put_slice(now);
            let shown = wire.look(buffer, before);
            wire.behind.extend_from_slice(later);
            return if shown { Poll::Ready(Ok(())) } else { Poll::Pending };
        } else {
            // `poll_flush` wakes whoever asks when this request's answer is written.
            return Poll::Pending;
        }
        if buffer.filled().len() == before {
            wire.ended = true;
            return Poll::Ready(Ok(()));
        }
        if wire.look(buffer, before) { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl Wire {
    /// Whether what is written now is hyper's own answer to a head that it could not read.
    fn dismisses(&mut self) -> bool {
        self.dismissed = self.dismissed || self.connection.pace.is_between_requests();
        self.dismissed
    }

    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Pending => self.connection.pace.write_awaited(),
            Poll::Ready(Ok(bytes)) => self.connection.pace.written(*bytes),
            Poll::Ready(Err(_)) => {}
        }
        written
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        if wire.dismisses() {
            return Poll::Ready(Ok(bytes.len()));
        }
        if wire.connection.pace.late() == Some(Late::Write) {
            return Poll::Ready(Err(late()));
        }
        let written = Pin::new(&mut wire.stream).poll_write(context, bytes);
        wire.wrote(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        if wire.dismisses() {
            return Poll::Ready(Ok(pieces.iter().map(|piece| piece.len()).sum()));
        }
        if wire.connection.pace.late() == Some(Late::Write) {
            return Poll::Ready(Err(late()));
        }
        let written = Pin::new(&mut wire.stream).poll_write_vectored(context, pieces);
        wire.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        if wire.connection.pace.flushed() && !wire.behind.is_empty() {
            context.waker().wake_by_ref();
        }
        // A TCP stream keeps nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        if wire.dismissed {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut wire.stream).poll_shutdown(context)
    }
}

/// A head that is being looked at, line by line.
#[derive(Debug, Default)]
struct Head {
    facts: Facts,
    /// What `Content-Length` says; hyper refuses what is no number.
    length: u64,
    /// The request line was there.
    began: bool,
    /// The beginning of a line whose end has not come; at most hyper's bound of a head.
    line: Vec<u8>,
}

impl Head {
    /// Looks at more of it. Where it ends, says behind which byte.
    fn feed(&mut self, bytes: &[u8]) -> Option<usize> {
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

    #[test]
    fn the_last_four_bytes_are_kept_however_they_come() {
        let text = b"0\r\n\r\n";
        for cut in 0..=text.len() {
            let (first, second) = text.split_at(cut);
            assert_eq!(tail(tail([0; 4], first), second), *b"\r\n\r\n", "{cut}");
        }
    }
}
