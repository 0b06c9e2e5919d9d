//! Heads of answers, and the few requests that the harness makes for itself.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::exact::Amount;

/// The most headers of an answer.
const HEADERS: usize = 64;
/// The header that the backend puts on errors which it was told to make.
pub const PLANTED: &str = "x-loadtest-planted";
/// How long an answer to the harness itself may take; an org of a million users is applied by a
/// command of its own.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many bytes.
    Known(u64),
    /// As its chunks say.
    Chunked,
    /// To the connection's end.
    Close,
}

/// What a receipt says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The charge's id.
    pub charge: [u8; 36],
    /// Whether its numbers are final.
    pub captured: bool,
    /// Credits that it cost.
    pub cost: Amount,
    /// Credits that the seat paid.
    pub seat: Amount,
    /// Operations of the pool.
    pub pool: Amount,
    /// Operations past it.
    pub overage: Amount,
}

impl Default for Receipt {
    fn default() -> Self {
        let nothing = Amount::default();
        let charge = [b'-'; 36];
        Self {
            charge,
            captured: false,
            cost: nothing,
            seat: nothing,
            pool: nothing,
            overage: nothing,
        }
    }
}

/// The head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its status.
    pub status: u16,
    /// Its length in bytes.
    pub bytes: usize,
    /// How long the body behind it is.
    pub length: Length,
    /// Whether the connection ends with it.
    pub close: bool,
    /// Whether the backend was told to make this error.
    pub planted: bool,
    /// Its receipt, where it has one that can be read.
    pub receipt: Option<Receipt>,
}

/// The head at the beginning of `bytes`; `None` where it is not whole yet.
///
/// # Errors
/// When it is no head.
pub fn head(bytes: &[u8]) -> Result<Option<Head>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut answer = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = answer.parse(bytes)? else { return Ok(None) };
    let mut head = Head {
        status: answer.code.unwrap_or(0),
        bytes: length,
        length: Length::Close,
        close: false,
        planted: false,
        receipt: None,
    };
    for header in answer.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        match header.name.len() {
            14 if is("content-length") => {
                let told = std::str::from_utf8(header.value).ok().and_then(|v| v.parse().ok());
                head.length = Length::Known(told.ok_or(httparse::Error::HeaderValue)?);
            }
            17 if is("transfer-encoding") => head.length = Length::Chunked,
            10 if is("connection") => head.close = header.value.eq_ignore_ascii_case(b"close"),
            16 if is("tollgate-receipt") => head.receipt = receipt(header.value),
            length if length == PLANTED.len() && is(PLANTED) => head.planted = true,
            _ => {}
        }
    }
    Ok(Some(head))
}

/// Reads a receipt: a dictionary whose values hold no comma.
fn receipt(value: &[u8]) -> Option<Receipt> {
    let mut receipt = Receipt::default();
    for member in value.split(|byte| *byte == b',') {
        let member = member.trim_ascii_start();
        let equals = memchr::memchr(b'=', member)?;
        let (name, value) = (&member[..equals], &member[equals + 1..]);
        let text = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
        match name {
            b"charge" => {
                receipt.charge.copy_from_slice(text.get(..36).filter(|_| text.len() == 36)?)
            }
            b"state" => receipt.captured = text == b"captured",
            b"cost" => receipt.cost = Amount::parse(text)?,
            b"seat" => receipt.seat = Amount::parse(text)?,
            b"pool" => receipt.pool = Amount::parse(text)?,
            b"overage" => receipt.overage = Amount::parse(text)?,
            _ => {}
        }
    }
    Some(receipt)
}

/// The text behind `"name":"` in a small document.
pub fn member<'a>(document: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut rest = document;
    loop {
        rest = &rest[memmem::find(rest, name.as_bytes())? + name.len()..];
        if let Some(text) = rest.strip_prefix(b"\":\"") {
            return memchr::memchr(b'"', text).map(|end| &text[..end]);
        }
    }
}

/// An answer to the harness itself.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text, for messages.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("no JSON: {}", self.text()))
    }
}

/// One request over a connection of its own.
///
/// # Errors
/// When there is no whole answer.
pub async fn ask(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> anyhow::Result<Answer> {
    let asked = exchange(to, method, path, headers, body);
    let answer = tokio::time::timeout(PATIENCE, asked).await;
    answer.with_context(|| format!("{to}{path} does not answer"))?.with_context(|| path.to_owned())
}

async fn exchange(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect(to).await?;
    let length = body.len();
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += &format!("Content-Length: {length}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.write_all(body).await?;
    let mut bytes = Vec::new();
    loop {
        let more = stream.read_buf(&mut bytes).await?;
        // Not everybody closes because they are asked to.
        if let Some(answer) = whole(&bytes, more == 0)? {
            return Ok(answer);
        }
        if more == 0 {
            bail!("the answer is not whole");
        }
    }
}

/// The answer, where all of it is there.
fn whole(bytes: &[u8], ended: bool) -> anyhow::Result<Option<Answer>> {
    let Some(head) = head(bytes)? else { return Ok(None) };
    let body = &bytes[head.bytes..];
    let body = match head.length {
        Length::Known(length) => (body.len() as u64 >= length).then(|| body.to_vec()),
        Length::Close => ended.then(|| body.to_vec()),
        Length::Chunked => unchunk(body),
    };
    Ok(body.map(|body| Answer { status: head.status, body }))
}

fn unchunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    let mut chunks = Chunks::default();
    while !bytes.is_empty() {
        let (used, data) = chunks.step(bytes)?;
        whole.extend_from_slice(data);
        bytes = &bytes[used..];
    }
    chunks.ended().then_some(whole)
}

/// Reads chunks as they come, without keeping any of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    part: Part,
    size: u64,
    /// Bytes of the line so far.
    line: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Size,
    Extension,
    Data,
    DataEnd,
    Trailer,
    End,
}

impl Chunks {
    /// Takes some of `bytes`, which are not none: how many, and which of them are data. `None`
    /// where they are no chunks.
    pub fn step<'a>(&mut self, bytes: &'a [u8]) -> Option<(usize, &'a [u8])> {
        let byte = *bytes.first()?;
        match self.part {
            Part::Data => {
                let take = self.size.min(bytes.len() as u64) as usize;
                self.size -= take as u64;
                if self.size == 0 {
                    self.part = Part::DataEnd;
                }
                return Some((take, &bytes[..take]));
            }
            Part::Size if byte.is_ascii_hexdigit() => {
                let digit = u64::from((byte as char).to_digit(16)?);
                self.size = self.size.checked_mul(16)?.checked_add(digit)?;
            }
            Part::Size | Part::Extension if byte == b'\n' => {
                self.part = if self.size == 0 { Part::Trailer } else { Part::Data };
                self.line = 0;
            }
            Part::Size | Part::Extension => self.part = Part::Extension,
            Part::DataEnd if byte == b'\n' => self.part = Part::Size,
            Part::DataEnd if byte == b'\r' => {}
            Part::Trailer if byte == b'\n' && self.line == 0 => self.part = Part::End,
            Part::Trailer if byte == b'\n' => self.line = 0,
            Part::Trailer if byte == b'\r' => {}
            Part::Trailer => self.line += 1,
            Part::DataEnd | Part::End => return None,
        }
        Some((1, &[]))
    }

    /// Whether the last one is over.
    pub fn ended(self) -> bool {
        self.part == Part::End
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_with_its_receipt() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nTollgate-Receipt: \
            charge=\"01a1fb54-b3cc-7d3b-8096-b6d771eb1dcb\", state=captured, cost=\"100\", \
            seat=\"30\", pool=\"1.4\", overage=\"0\", rate-card=\"x\"\r\n\r\nhello";
        let head = head(text).unwrap().unwrap();
        assert_eq!((head.status, head.length), (200, Length::Known(5)));
        assert_eq!(&text[head.bytes..], b"hello");
        let receipt = head.receipt.unwrap();
        assert!(receipt.captured && receipt.charge.starts_with(b"01a1fb54"));
        assert_eq!(receipt.pool, Amount::millionths(1_400_000));
        assert_eq!(super::head(&text[..40]).unwrap(), None);
        super::head(b"HTP/1.1 200\r\n\r\n").unwrap_err();
    }

    #[test]
    fn chunks_are_read_however_they_come() {
        let text = b"5\r\nhello\r\nA;x=y\r\n, 9 bytes.\r\n0\r\nTrailer: x\r\n\r\n";
        assert_eq!(unchunk(text).unwrap(), b"hello, 9 bytes.");
        for cut in 1..text.len() {
            assert_eq!(unchunk(&text[..cut]), None, "{cut}");
            let mut chunks = Chunks::default();
            let mut data = Vec::new();
            for mut piece in [&text[..cut], &text[cut..]] {
                while !piece.is_empty() {
                    let (used, some) = chunks.step(piece).unwrap();
                    data.extend_from_slice(some);
                    piece = &piece[used..];
                }
            }
            assert!(chunks.ended());
            assert_eq!(data, b"hello, 9 bytes.");
        }
        assert_eq!(unchunk(b"5\r\nhelloX"), None);
    }

    #[test]
    fn a_code_is_found_in_a_document() {
        let document = br#"{"type":"code","code":"seat_exhausted","status":402}"#;
        assert_eq!(member(document, "code"), Some(&b"seat_exhausted"[..]));
        assert_eq!(member(b"{}", "code"), None);
    }
}
