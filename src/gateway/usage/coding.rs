//! Bodies that a backend encoded although it was not asked to: what usage is read from is decoded
//! beside them, within bounds, and what passes to the client is not touched (f74).

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::{Decompress, FlushDecompress, Status};
use http::header::{CONTENT_ENCODING, HeaderMap};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

/// The most that is decoded of one body.
const MAX_DECODED: u64 = 64 << 20;
/// How much a body may grow: so much at once, and so many times its bytes. Texts of events shrink
/// to a twentieth or so; only what was made to grow does so more.
const FREE: u64 = 1 << 20;
const MAX_RATIO: u64 = 64;
/// How much is decoded at a time.
const STEP: usize = 8 << 10;
/// The largest window of zstd that HTTP knows (RFC 9659): 8 MiB. That of brotli is 16 MiB, of
/// deflate 32 KiB.
const ZSTD_WINDOW: u32 = 23;

/// The rest of a body is not decoded: it is broken, or beyond a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

/// How a body is encoded.
#[derive(Debug)]
pub enum Coding {
    /// Not at all.
    Plain,
    /// In a way that is read.
    Known(Box<Decoding>),
    /// In one that is not.
    Unknown,
}

impl Coding {
    /// What a response's head says.
    pub fn of(head: &HeaderMap) -> Self {
        let values = head.get_all(CONTENT_ENCODING).iter();
        let tokens = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        let named = |token: &&[u8]| !token.is_empty() && !token.eq_ignore_ascii_case(b"identity");
        let mut codings = tokens.map(<[u8]>::trim_ascii).filter(named);
        match (codings.next(), codings.next()) {
            (None, _) => Self::Plain,
            (Some(name), None) => match Decoding::of(name) {
                Some(decoding) => Self::Known(Box::new(decoding)),
                None => Self::Unknown,
            },
            _ => Self::Unknown,
        }
    }
}

/// A body that is being decoded.
pub struct Decoding {
    engine: Engine,
    read: u64,
    written: u64,
    /// A member or frame came to its end.
    between: bool,
    /// It came to its end: what follows is not of it, as every decoder has it.
    ended: bool,
    lost: bool,
}

enum Engine {
    /// gzip may have several members.
    Gzip(Decompress),
    Deflate(Decompress),
    Brotli(Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>),
    Zstd(Decoder<'static>),
}

impl std::fmt::Debug for Decoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { read, written, ended, lost, .. } = self;
        write!(f, "Decoding {{ read: {read}, written: {written}, ended: {ended}, lost: {lost} }}")
    }
}

/// What one step did.
struct Step {
    read: usize,
    written: usize,
    ended: bool,
}

impl Decoding {
    fn of(name: &[u8]) -> Option<Self> {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        let engine = if is("gzip") || is("x-gzip") {
            Engine::Gzip(Decompress::new_gzip(15))
        } else if is("deflate") {
            Engine::Deflate(Decompress::new(true))
        } else if is("br") {
            let alloc = StandardAlloc::default;
            Engine::Brotli(Box::new(BrotliState::new_strict(alloc(), alloc(), alloc())))
        } else if is("zstd") {
            let mut decoder = Decoder::new().ok()?;
            decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW)).ok()?;
            Engine::Zstd(decoder)
        } else {
            return None;
        };
        Some(Self { engine, read: 0, written: 0, between: false, ended: false, lost: false })
    }

    /// Decodes one more piece, and gives what it holds in parts.
    ///
    /// # Errors
    /// When the body is no such coding, or grows beyond the bounds. Nothing more is decoded then.
    pub fn feed(&mut self, piece: &[u8], mut take: impl FnMut(&[u8])) -> Result<(), Lost> {
        if self.lost {
            return Err(Lost);
        }
        let mut rest = piece;
        let mut decoded = [0; STEP];
        while !self.ended && !piece.is_empty() {
            if self.between {
                let Some(next) = rest.first() else { break };
                self.begin_again(*next);
                continue;
            }
            let step = self.step(rest, &mut decoded)?;
            take(&decoded[..step.written]);
            rest = &rest[step.read..];
            self.between = step.ended;
            if !step.ended && rest.is_empty() && step.written < STEP {
                break;
            }
        }
        Ok(())
    }

    fn step(&mut self, rest: &[u8], decoded: &mut [u8]) -> Result<Step, Lost> {
        let step = self.engine.step(rest, decoded).ok().and_then(|step| {
            self.read += step.read as u64;
            self.written += step.written as u64;
            let most = (FREE + self.read.saturating_mul(MAX_RATIO)).min(MAX_DECODED);
            let moves = step.ended || rest.is_empty() || step.read + step.written > 0;
            (moves && self.written <= most).then_some(step)
        });
        self.lost = step.is_none();
        step.ok_or(Lost)
    }

    /// What follows a whole member or frame: another one, or what is not of the body.
    fn begin_again(&mut self, next: u8) {
        self.between = false;
        match &mut self.engine {
            Engine::Gzip(engine) if next == 0x1f => *engine = Decompress::new_gzip(15),
            Engine::Zstd(_) => {}
            Engine::Gzip(_) | Engine::Deflate(_) | Engine::Brotli(_) => self.ended = true,
        }
    }
}

impl Engine {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Lost> {
        match self {
            Self::Gzip(engine) | Self::Deflate(engine) => {
                let (read, written) = (engine.total_in(), engine.total_out());
                let status = engine.decompress(input, output, FlushDecompress::None);
                let ended = match status {
                    Ok(status) => status == Status::StreamEnd,
                    Err(_) => return Err(Lost),
                };
                let read = usize::try_from(engine.total_in() - read).map_err(|_| Lost)?;
                let written = usize::try_from(engine.total_out() - written).map_err(|_| Lost)?;
                Ok(Step { read, written, ended })
            }
            Self::Brotli(state) => {
                let (mut left, mut read) = (input.len(), 0);
                let (mut room, mut written, mut total) = (output.len(), 0, 0);
                let result = BrotliDecompressStream(
                    &mut left,
                    &mut read,
                    input,
                    &mut room,
                    &mut written,
                    output,
                    &mut total,
                    state,
                );
                match result {
                    BrotliResult::ResultFailure => Err(Lost),
                    result => {
                        let ended = matches!(result, BrotliResult::ResultSuccess);
                        Ok(Step { read, written, ended })
                    }
                }
            }
            Self::Zstd(decoder) => {
                let mut from = InBuffer::around(input);
                let mut to = OutBuffer::around(output);
                let hint = decoder.run(&mut from, &mut to).map_err(|_| Lost)?;
                Ok(Step { read: from.pos(), written: to.pos(), ended: hint == 0 })
            }
        }
    }
}
