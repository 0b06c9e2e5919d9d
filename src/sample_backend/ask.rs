//! What a request asks of the backend beside what it asks for: how to fail, what usage to tell,
//! how fast to be. All of it is in headers, so that it works on every endpoint.

use std::time::Duration;

use http::header::{HeaderMap, HeaderName};
use serde_json::value::RawValue;

use super::answer::Refused;
use super::{FAIL, PACE, TOKENS, USAGE};

/// What `slow` waits before each piece of the body.
const SLOW: Duration = Duration::from_millis(100);
const MAX_PACE: u64 = 60_000;
/// The longest answer of the chat.
pub(super) const MAX_TOKENS: u64 = 32_768;

/// What a request's headers ask for.
#[derive(Debug)]
pub(super) struct Ask {
    /// How to fail.
    pub fail: Option<Fail>,
    /// The wait before each piece of the body.
    pub pace: Option<Duration>,
    /// What usage to tell.
    pub told: Told,
    /// How long an answer of the chat is.
    pub tokens: Option<u64>,
}

/// How a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fail {
    /// This status, and nothing is made.
    Status(u16),
    /// No answer until shutdown.
    Hang,
    /// Half of the body, then nothing until shutdown.
    HangMid,
    /// Half of the body, then the connection ends.
    Truncate,
    /// No answer: the connection is reset.
    Reset,
    /// Half of the body, then the connection is reset.
    ResetMid,
}

/// The usage that is told.
#[derive(Debug, Clone)]
pub(super) enum Told {
    /// What it came to.
    Truth,
    /// None.
    Nothing,
    /// Any JSON, so that a gateway can be shown what it must not believe. An object stands for all
    /// of the usage.
    This(Box<RawValue>),
}

/// Usage as an answer tells it.
#[derive(Debug)]
pub(super) struct Usage {
    /// The member `usage`.
    pub object: Box<RawValue>,
    /// What it comes to, for the header.
    pub value: Box<RawValue>,
}

impl Ask {
    /// Reads them.
    pub(super) fn from_headers(headers: &HeaderMap) -> Result<Ask, Refused> {
        let mut ask = Ask {
            fail: None,
            pace: number(headers, &PACE, MAX_PACE)?.map(Duration::from_millis),
            told: match headers.get(USAGE) {
                Some(told) => Told::This(raw(told.as_bytes())?),
                None => Told::Truth,
            },
            tokens: number(headers, &TOKENS, MAX_TOKENS)?,
        };
        let Some(fail) = headers.get(FAIL) else { return Ok(ask) };
        match fail.as_bytes() {
            b"hang" => ask.fail = Some(Fail::Hang),
            b"hang-mid" => ask.fail = Some(Fail::HangMid),
            b"truncate" => ask.fail = Some(Fail::Truncate),
            b"reset" => ask.fail = Some(Fail::Reset),
            b"reset-mid" => ask.fail = Some(Fail::ResetMid),
            b"no-usage" => ask.told = Told::Nothing,
            b"bad-usage" => ask.told = Told::This(raw(b"\"many\"")?),
            b"negative-usage" => ask.told = Told::This(raw(b"-1")?),
            b"slow" => ask.pace = Some(SLOW),
            status => ask.fail = Some(Fail::Status(error_status(status).ok_or(UNKNOWN)?)),
        }
        Ok(ask)
    }
}

const UNKNOWN: Refused = Refused(
    "x-sample-fail is a status from 400 to 599, hang, hang-mid, truncate, reset, reset-mid, \
     no-usage, bad-usage, negative-usage or slow",
);

impl Told {
    /// The usage that is `{meter: truth}`, with more members before and after; `None` where none
    /// is told. The names are the backend's own and need no escaping.
    pub(super) fn usage(
        &self,
        (meter, truth): (&str, u64),
        before: &str,
        after: &str,
    ) -> Option<Usage> {
        let value = match self {
            Told::Nothing => return None,
            Told::This(told) => told.clone(),
            Told::Truth => RawValue::from_string(truth.to_string()).ok()?,
        };
        let object = if value.get().starts_with('{') {
            value.clone()
        } else {
            RawValue::from_string(format!("{{{before}\"{meter}\":{value}{after}}}")).ok()?
        };
        Some(Usage { object, value })
    }

    /// What is told instead of a number of tokens or seconds, where that is a number too.
    pub(super) fn number(&self) -> Option<u64> {
        match self {
            Told::This(told) => told.get().parse().ok(),
            _ => None,
        }
    }
}

fn error_status(text: &[u8]) -> Option<u16> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let status: u16 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (400..600).contains(&status).then_some(status)
}

fn number(headers: &HeaderMap, name: &HeaderName, max: u64) -> Result<Option<u64>, Refused> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|value| value.parse().ok());
    match number.filter(|number| *number <= max) {
        Some(number) => Ok(Some(number)),
        None => Err(Refused("x-sample-pace is 0 to 60000 ms, x-sample-tokens 0 to 32768")),
    }
}

fn raw(json: &[u8]) -> Result<Box<RawValue>, Refused> {
    serde_json::from_slice(json).map_err(|_| Refused("x-sample-usage is not JSON"))
}
