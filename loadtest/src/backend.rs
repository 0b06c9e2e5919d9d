//! The backend of every measurement: answers that are made once and sent as they are, so that it
//! outruns whatever stands before it. A process of its own.
//!
//! `GET /backend/status` tells what it saw, `POST /backend/orders` has it stall or fail; neither is
//! counted.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, LocalSet};

use crate::http::PLANTED;
use crate::request::{IMAGE_BYTES, Kind, LARGE_BYTES, PROMPT_TOKENS};

/// The most headers of a request.
const HEADERS: usize = 100;
/// The longest head.
const HEAD: usize = 128 * 1024;

/// See `--help`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:9100")]
    pub listen: SocketAddr,
    /// Events of a chat, without [DONE]
    #[arg(long, default_value_t = 200)]
    pub events: u64,
    /// Milliseconds between the events of a chat
    #[arg(long, default_value_t = 0)]
    pub event_delay_ms: u64,
    /// Send all events of a chat in one write
    #[arg(long)]
    pub burst: bool,
    /// Seconds between the two events of an idle stream
    #[arg(long, default_value_t = 30)]
    pub idle_seconds: u64,
}

/// What it saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Requests that came whole and were answered, or are being answered.
    pub requests: u64,
    /// Those among them that it was told to fail.
    pub failed: u64,
    /// Bytes of bodies.
    pub bytes: u64,
}

/// What it is told to do from now on; what is absent is not done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Orders {
    /// Nothing is answered for so many milliseconds.
    pub stall_ms: u64,
    /// Every so many requests fail; 0: none.
    pub fail_every: u64,
    /// With this status.
    pub fail_status: u16,
}

struct Answers {
    image: Vec<u8>,
    large: Vec<u8>,
    chat: Vec<Vec<u8>>,
    idle: [Vec<u8>; 2],
}

struct Backend {
    options: Options,
    answers: Answers,
    seen: RefCell<Seen>,
    orders: RefCell<(Orders, Instant)>,
    unknown: Vec<u8>,
}

/// Runs until it is ended.
///
/// # Errors
/// When it cannot listen.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(options.clone()))
}

async fn serve(options: Options) -> anyhow::Result<()> {
    let listener = TcpListener::bind(options.listen).await?;
    let answers = Answers::new(&options);
    let unknown = answer(404, "application/json", b"{}");
    let orders = RefCell::new((Orders::default(), Instant::now()));
    let backend = Rc::new(Backend { options, answers, seen: RefCell::default(), orders, unknown });
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let backend = Rc::clone(&backend);
                tasks.spawn_local(async move {
                    // Whoever breaks a connection off has told nobody else to do something.
                    let _ = backend.connection(stream).await;
                });
            }
            Some(_) = tasks.join_next() => {}
        }
    }
}

impl Answers {
    fn new(options: &Options) -> Self {
        let image =
            format!("{{\"data\":[{{\"url\":\"{}\"}}]}}", "x".repeat(IMAGE_BYTES as usize - 21));
        let large = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {LARGE_BYTES}\r\n\r\n"
        );
        let mut chat: Vec<Vec<u8>> =
            std::iter::once(stream_head()).chain(events(options)).collect();
        if options.burst {
            chat = vec![chat.concat()];
        }
        let idle = [[stream_head(), event("{}")].concat(), [event("{}"), END.to_vec()].concat()];
        let image = answer(200, "application/json", image.as_bytes());
        Self { image, large: large.into_bytes(), chat, idle }
    }
}

const END: &[u8] = b"0\r\n\r\n";

fn answer(status: u16, kind: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let planted = if status >= 400 { format!("{PLANTED}: 1\r\n") } else { String::new() };
    let head = format!(
        "HTTP/1.1 {status} x\r\n{planted}Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

fn stream_head() -> Vec<u8> {
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        .to_vec()
}

fn event(data: &str) -> Vec<u8> {
    let text = format!("data: {data}\n\n");
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

/// A chat as OpenAI's API sends it: the role, tokens, the end, the usage, `[DONE]`; each event a
/// chunk of its own.
fn events(options: &Options) -> Vec<Vec<u8>> {
    let chunk = |choices: &str, usage: &str| {
        event(&format!(
            "{{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\
             \"choices\":[{choices}],\"usage\":{usage}}}"
        ))
    };
    let choice = |delta: &str, finish: &str| {
        let choice = format!(
            "{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}}}"
        );
        chunk(&choice, "null")
    };
    let tokens = options.events.saturating_sub(3);
    let mut events = vec![choice("{\"role\":\"assistant\",\"content\":\"\"}", "null")];
    events.extend((0..tokens).map(|at| choice(&format!("{{\"content\":\" word{at}\"}}"), "null")));
    events.push(choice("{}", "\"stop\""));
    let total = PROMPT_TOKENS + tokens;
    events.push(chunk(
        "",
        &format!(
            "{{\"prompt_tokens\":{PROMPT_TOKENS},\"completion_tokens\":{tokens},\"total_tokens\":{total}}}"
        ),
    ));
    let mut last = event("[DONE]");
    last.extend_from_slice(END);
    events.push(last);
    events
}

impl Backend {
    async fn connection(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut buffer = vec![0; 64 * 1024];
        let mut filled = 0;
        loop {
            let parsed = head(&buffer[..filled])?;
            let Some((length, body, path)) = parsed else {
                if filled == buffer.len() {
                    if filled >= HEAD {
                        return Err(invalid());
                    }
                    buffer.resize(HEAD, 0);
                }
                let more = stream.read(&mut buffer[filled..]).await?;
                if more == 0 {
                    return Ok(());
                }
                filled += more;
                continue;
            };
            if let Path::Own(own) = path {
                let end = length + usize::try_from(body).unwrap_or(usize::MAX);
                if end > buffer.len() {
                    return Err(invalid());
                }
                while filled < end {
                    let more = stream.read(&mut buffer[filled..]).await?;
                    if more == 0 {
                        return Ok(());
                    }
                    filled += more;
                }
                let told = self.order(own, &buffer[length..end]);
                stream.write_all(&told).await?;
                buffer.copy_within(end..filled, 0);
                filled -= end;
                continue;
            }
            // The body, without keeping it.
            let here = ((filled - length) as u64).min(body) as usize;
            buffer.copy_within(length + here..filled, 0);
            filled -= length + here;
            let mut left = body - here as u64;
            while left > 0 {
                let space = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let more = stream.read(&mut buffer[..space]).await?;
                if more == 0 {
                    return Ok(());
                }
                left -= more as u64;
            }
            let failure = self.see(body);
            self.wait().await;
            match failure {
                Some(failure) => stream.write_all(&failure).await?,
                None => self.play(&mut stream, path).await?,
            }
        }
    }

    /// Counts a request; the answer, where it is to fail.
    fn see(&self, bytes: u64) -> Option<Vec<u8>> {
        let mut seen = self.seen.borrow_mut();
        seen.requests += 1;
        seen.bytes += bytes;
        let orders = self.orders.borrow().0;
        let fails = orders.fail_every > 0 && seen.requests.is_multiple_of(orders.fail_every);
        seen.failed += u64::from(fails);
        fails.then(|| answer(orders.fail_status, "application/json", b"{}"))
    }

    async fn wait(&self) {
        let until = self.orders.borrow().1;
        if until > Instant::now() {
            tokio::time::sleep_until(until.into()).await;
        }
    }

    async fn play(&self, stream: &mut TcpStream, path: Path) -> std::io::Result<()> {
        match path {
            Path::Of(Kind::Image | Kind::Free | Kind::Upload) => {
                send(stream, &self.answers.image).await
            }
            Path::Of(Kind::Download | Kind::Copy) => {
                stream.write_all(&self.answers.large).await?;
                let mut left = LARGE_BYTES;
                while left > 0 {
                    let piece = left.min(BLOCK.len() as u64);
                    stream.write_all(&BLOCK[..piece as usize]).await?;
                    left -= piece;
                }
                Ok(())
            }
            Path::Of(Kind::Chat) => {
                let delay = Duration::from_millis(self.options.event_delay_ms);
                for piece in &self.answers.chat {
                    send(stream, piece).await?;
                    if !delay.is_zero() {
                        tokio::time::sleep(delay).await;
                    }
                }
                Ok(())
            }
            Path::Of(Kind::Idle) => {
                let [first, last] = &self.answers.idle;
                send(stream, first).await?;
                tokio::time::sleep(Duration::from_secs(self.options.idle_seconds)).await;
                send(stream, last).await
            }
            Path::Own(_) | Path::Unknown => send(stream, &self.unknown).await,
        }
    }

    fn order(&self, own: Own, body: &[u8]) -> Vec<u8> {
        let (status, told) = match own {
            Own::Status => (200, serde_json::to_vec(&*self.seen.borrow()).unwrap_or_default()),
            Own::Orders => match serde_json::from_slice::<Orders>(body) {
                Ok(orders) => {
                    let until = Instant::now() + Duration::from_millis(orders.stall_ms);
                    *self.orders.borrow_mut() = (orders, until);
                    (200, b"{}".to_vec())
                }
                Err(error) => (400, error.to_string().into_bytes()),
            },
        };
        answer(status, "application/json", &told)
    }
}

static BLOCK: [u8; 64 * 1024] = [b'y'; 64 * 1024];

/// A small piece goes out at once.
async fn send(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    match stream.try_write(bytes) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(sent) => stream.write_all(&bytes[sent..]).await,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            stream.write_all(bytes).await
        }
        Err(error) => Err(error),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    Status,
    Orders,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Of(Kind),
    Own(Own),
    Unknown,
}

const KINDS: [Kind; 7] =
    [Kind::Image, Kind::Free, Kind::Chat, Kind::Idle, Kind::Upload, Kind::Download, Kind::Copy];

fn invalid() -> std::io::Error {
    std::io::Error::from(std::io::ErrorKind::InvalidData)
}

/// Length of the head, of the body, and what is asked for; `None` where the head is not whole.
fn head(bytes: &[u8]) -> std::io::Result<Option<(usize, u64, Path)>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(bytes).map_err(|_| invalid())?;
    let httparse::Status::Complete(length) = parsed else { return Ok(None) };
    let path = match request.path.unwrap_or_default() {
        "/backend/status" => Path::Own(Own::Status),
        "/backend/orders" => Path::Own(Own::Orders),
        path => match KINDS.into_iter().find(|kind| kind.path() == path) {
            Some(kind) => Path::Of(kind),
            None => Path::Unknown,
        },
    };
    let mut body = 0;
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let told = std::str::from_utf8(header.value).ok().and_then(|value| value.parse().ok());
            body = told.ok_or_else(invalid)?;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            // Every request of the driver has a length, and whoever forwards keeps it.
            return Err(invalid());
        }
    }
    Ok(Some((length, body, path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        let listen = "127.0.0.1:0".parse().unwrap();
        Options { listen, events: 200, event_delay_ms: 0, burst: false, idle_seconds: 0 }
    }

    #[test]
    fn an_image_is_256_bytes() {
        let answers = Answers::new(&options());
        let head = crate::http::head(&answers.image).unwrap().unwrap();
        assert_eq!(head.length, crate::http::Length::Known(IMAGE_BYTES));
        assert_eq!((answers.image.len() - head.bytes) as u64, IMAGE_BYTES);
        assert!(!head.planted);
    }

    #[test]
    fn a_chat_has_so_many_events_and_tells_its_usage_in_the_last() {
        let events = events(&options());
        assert_eq!(events.len(), 201);
        let text = String::from_utf8(events[199].clone()).unwrap();
        let document = text.split_once("data: ").unwrap().1.split_once("\n\n").unwrap().0;
        let document: serde_json::Value = serde_json::from_str(document).unwrap();
        assert_eq!(document["usage"]["completion_tokens"], 197);
        assert!(events[200].ends_with(b"data: [DONE]\n\n\r\n0\r\n\r\n"));
    }
}
