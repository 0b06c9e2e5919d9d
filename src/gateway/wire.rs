//! A client's connection as bytes, below hyper: what hyper's parsed heads no longer show, where
//! requests end, how long the client takes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::head::{Facts, Head};
use super::pace::Late;
use super::worker::Connection;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_four_bytes_are_kept_however_they_come() {
        let text = b"0\r\n\r\n";
        for cut in 0..=text.len() {
            let (first, second) = text.split_at(cut);
            assert_eq!(tail(tail([0; 4], first), second), *b"\r\n\r\n", "{cut}");
        }
    }
}
