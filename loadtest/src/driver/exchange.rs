//! One request and its answer on a connection that is kept.

use std::net::SocketAddr;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::Spec;
use crate::http::{self, Chunks, Head, Length, Receipt};
use crate::request::Kind;

/// What a chat ends with.
const DONE: &[u8; 8] = b"[DONE]\n\n";
/// What large bodies are made of.
static BLOCK: [u8; 64 * 1024] = [b'x'; 64 * 1024];

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered as it should be.
    Served {
        /// The receipt, of a metered route.
        receipt: Option<Receipt>,
    },
    /// Refused: nothing of it was forwarded.
    Refused {
        /// The status.
        status: u16,
        /// Where its code stands in what was read.
        code: Option<Range<usize>>,
    },
    /// The backend failed, because it was told to.
    Planted,
    /// Answered with something else.
    Wrong(&'static str, u16),
    /// Sent, and nobody knows what became of it.
    Unknown(&'static str),
    /// Not sent.
    Unsent,
}

/// A connection.
pub struct Wire {
    to: SocketAddr,
    kind: Kind,
    events: u64,
    receipts: bool,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
    timeout: Duration,
    /// Set once for many requests; see [`Wire::exchange`].
    deadline: Pin<Box<Sleep>>,
}

/// What was read of an answer.
struct Reading {
    head: Head,
    bytes: u64,
    events: u64,
    done: bool,
    first: Instant,
    /// Where the body stands in the buffer, if all of it fits.
    kept: Range<usize>,
}

impl Wire {
    /// Not connected yet.
    pub fn new(spec: &Spec) -> Self {
        let size =
            if spec.kind.wanted().is_some_and(|bytes| bytes > 65_536) { 262_144 } else { 16_384 };
        Self {
            to: spec.to,
            kind: spec.kind,
            events: spec.events,
            receipts: spec.receipts,
            stream: None,
            buffer: vec![0; size],
            timeout: spec.timeout,
            deadline: Box::pin(tokio::time::sleep(spec.timeout)),
        }
    }

    /// Sends a request and reads its answer: what became of it, and when its first byte came.
    pub async fn exchange(&mut self, request: &[u8]) -> (Outcome, Option<Instant>) {
        if !self.connect().await {
            return (Outcome::Unsent, None);
        }
        let Some(mut stream) = self.stream.take() else { return (Outcome::Unsent, None) };
        let until = Instant::now() + self.timeout;
        let mut keep = false;
        let read = {
            let mut work = pin!(talk(&mut stream, request, self.kind, &mut self.buffer));
            loop {
                tokio::select! {
                    biased;
                    done = &mut work => break done,
                    // It is not set anew for every request: when it fires it looks how late it is.
                    () = self.deadline.as_mut() => {
                        if Instant::now() >= until {
                            break Err("it timed out");
                        }
                        self.deadline.as_mut().reset(until.into());
                    }
                }
            }
        };
        let told = match read {
            Ok((reading, whole)) => {
                keep = whole && !reading.head.close && reading.head.length != Length::Close;
                let first = reading.first;
                (self.judge(&reading), Some(first))
            }
            Err(why) => (Outcome::Unknown(why), None),
        };
        if keep {
            self.stream = Some(stream);
        }
        told
    }

    /// A piece of what was read last, as text.
    pub fn text(&self, at: Range<usize>) -> &str {
        std::str::from_utf8(self.buffer.get(at).unwrap_or_default()).unwrap_or("?")
    }

    /// Whether there is a connection. One that was closed meanwhile is made again, as nothing was
    /// sent on it.
    async fn connect(&mut self) -> bool {
        if let Some(stream) = &self.stream {
            let waits = stream.try_read(&mut self.buffer);
            if waits.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
                return true;
            }
        }
        self.stream = None;
        let connected = tokio::time::timeout(self.timeout, TcpStream::connect(self.to)).await;
        let Ok(Ok(stream)) = connected else {
            // Who is not there is not asked as fast as the loop can.
            tokio::time::sleep(Duration::from_millis(20)).await;
            return false;
        };
        if stream.set_nodelay(true).is_err() {
            return false;
        }
        self.stream = Some(stream);
        true
    }

    fn judge(&self, reading: &Reading) -> Outcome {
        let head = &reading.head;
        if head.planted {
            return Outcome::Planted;
        }
        if head.status != 200 {
            let code = reading.kept.clone();
            let body = self.buffer.get(code.clone()).unwrap_or_default();
            let code = http::member(body, "code").map(|text| {
                let start = text.as_ptr().addr() - self.buffer.as_ptr().addr();
                start..start + text.len()
            });
            return match code {
                Some(_) => Outcome::Refused { status: head.status, code },
                None => Outcome::Wrong("a status without a problem", head.status),
            };
        }
        if let Some(wanted) = self.kind.wanted()
            && reading.bytes != wanted
        {
            return Outcome::Wrong("a body of another length", head.status);
        }
        if self.kind == Kind::Chat && (reading.events <= self.events || !reading.done) {
            return Outcome::Wrong("a stream that is not whole", head.status);
        }
        let metered = self.receipts && self.kind.metered();
        match head.receipt {
            None if metered => Outcome::Wrong("no receipt", head.status),
            Some(_) if !metered => {
                Outcome::Wrong("a receipt where nothing is charged", head.status)
            }
            receipt => Outcome::Served { receipt },
        }
    }
}

/// Sends all of a request and reads all of its answer; the second tells whether all of the request
/// went out.
async fn talk(
    stream: &mut TcpStream,
    request: &[u8],
    kind: Kind,
    buffer: &mut [u8],
) -> Result<(Reading, bool), &'static str> {
    if kind.upload() == 0 {
        // A small request fits into the socket, and its answer comes later.
        match stream.try_write(request) {
            Ok(sent) if sent == request.len() => {}
            Ok(sent) => stream.write_all(&request[sent..]).await.or(Err("it was cut off"))?,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                stream.write_all(request).await.or(Err("it was cut off"))?;
            }
            Err(_) => return Err("it was cut off"),
        }
        return Ok((read(stream, buffer).await?, true));
    }
    let (mut reader, mut writer) = stream.split();
    let mut written = false;
    let mut write = pin!(async {
        writer.write_all(request).await?;
        let mut left = kind.upload();
        while left > 0 {
            let piece = left.min(BLOCK.len() as u64);
            writer.write_all(&BLOCK[..piece as usize]).await?;
            left -= piece;
        }
        std::io::Result::Ok(())
    });
    let mut read = pin!(read(&mut reader, buffer));
    let mut failed = false;
    loop {
        tokio::select! {
            sent = &mut write, if !written && !failed => {
                // Who answers early may close; the answer is what counts.
                written = sent.is_ok();
                failed = !written;
            }
            answer = &mut read => return Ok((answer?, written)),
        }
    }
}

async fn read<R: AsyncReadExt + Unpin>(
    stream: &mut R,
    buffer: &mut [u8],
) -> Result<Reading, &'static str> {
    let mut filled = 0;
    let mut first = None;
    let head = loop {
        if filled == buffer.len() {
            return Err("its head is too long");
        }
        let more = stream.read(&mut buffer[filled..]).await.or(Err("it was cut off"))?;
        if more == 0 {
            return Err("it was cut off");
        }
        first.get_or_insert_with(Instant::now);
        filled += more;
        match http::head(&buffer[..filled]) {
            Ok(Some(head)) => break head,
            Ok(None) => {}
            Err(_) => return Err("its head cannot be read"),
        }
    };
    let first = first.unwrap_or_else(Instant::now);
    let mut reading = Reading { head, bytes: 0, events: 0, done: false, first, kept: 0..0 };
    match head.length {
        Length::Known(length) if length <= (buffer.len() - head.bytes) as u64 => {
            let end = head.bytes + length as usize;
            while filled < end {
                let more = stream.read(&mut buffer[filled..end]).await.or(Err("it was cut off"))?;
                if more == 0 {
                    return Err("it was cut off");
                }
                filled += more;
            }
            reading.bytes = length;
            reading.kept = head.bytes..end;
            if filled > end {
                return Err("more came than was asked for");
            }
        }
        Length::Known(length) => {
            reading.bytes = (filled - head.bytes) as u64;
            while reading.bytes < length {
                let more = stream.read(buffer).await.or(Err("it was cut off"))?;
                if more == 0 {
                    return Err("it was cut off");
                }
                reading.bytes += more as u64;
            }
        }
        Length::Chunked => chunks(stream, buffer, head.bytes..filled, &mut reading).await?,
        Length::Close => return Err("its end is not told"),
    }
    Ok(reading)
}

/// Reads chunks to their end and counts the events in them: each ends with an empty line. A read
/// may end anywhere, so the last bytes of the data so far are kept.
async fn chunks<R: AsyncReadExt + Unpin>(
    stream: &mut R,
    buffer: &mut [u8],
    begun: Range<usize>,
    reading: &mut Reading,
) -> Result<(), &'static str> {
    let mut chunks = Chunks::default();
    let mut piece = begun;
    let mut tail = [0_u8; DONE.len()];
    loop {
        while piece.start < piece.end {
            let bytes = &buffer[piece.clone()];
            let (used, data) = chunks.step(bytes).ok_or("its chunks cannot be read")?;
            reading.bytes += data.len() as u64;
            for newline in memchr::memchr_iter(b'\n', data) {
                let last = if newline == 0 { tail[DONE.len() - 1] } else { data[newline - 1] };
                reading.events += u64::from(last == b'\n');
            }
            let kept = data.len().min(DONE.len());
            tail.rotate_left(kept);
            tail[DONE.len() - kept..].copy_from_slice(&data[data.len() - kept..]);
            piece.start += used;
        }
        if chunks.ended() {
            reading.done = tail == *DONE;
            return Ok(());
        }
        let more = stream.read(buffer).await.or(Err("it was cut off"))?;
        if more == 0 {
            return Err("it was cut off");
        }
        piece = 0..more;
    }
}
