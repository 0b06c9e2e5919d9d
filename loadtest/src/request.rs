//! What is asked for: each kind's path, body and what has to come back. Requests are made once and
//! only the user is set in them, so that sending one allocates nothing.

use serde::{Deserialize, Serialize};

use crate::exact::Amount;

/// Bytes of an answer that is an image.
pub const IMAGE_BYTES: u64 = 256;
/// Bytes of a large body.
pub const LARGE_BYTES: u64 = 10_000_000;
/// What the sample chat's prompt comes to.
pub const PROMPT_TOKENS: u64 = 50;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// 200 bytes of JSON that ask for 1 to 4 images; 256 bytes come back.
    Image,
    /// The same on a route that costs nothing.
    Free,
    /// A chat that streams events and tells its usage in the last.
    Chat,
    /// A stream of two events with a long time between them.
    Idle,
    /// 10 MB there, 256 bytes back.
    Upload,
    /// A small request, 10 MB back.
    Download,
    /// 10 MB both ways.
    Copy,
}

impl Kind {
    /// Its path, at the gateway as at the backend.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Image => "/v1/images/generate",
            Self::Free => "/v1/free/generate",
            Self::Chat => "/v1/chat/completions",
            Self::Idle => "/v1/idle",
            Self::Upload => "/v1/uploads",
            Self::Download => "/v1/downloads",
            Self::Copy => "/v1/copies",
        }
    }

    /// Whether it costs something.
    pub const fn metered(self) -> bool {
        !matches!(self, Self::Free)
    }

    /// How many bytes go up behind the head, where they are many.
    pub const fn upload(self) -> u64 {
        match self {
            Self::Upload | Self::Copy => LARGE_BYTES,
            _ => 0,
        }
    }

    /// How many bytes have to come back, where the answer has a length.
    pub const fn wanted(self) -> Option<u64> {
        match self {
            Self::Image | Self::Free | Self::Upload => Some(IMAGE_BYTES),
            Self::Download | Self::Copy => Some(LARGE_BYTES),
            Self::Chat | Self::Idle => None,
        }
    }

    /// How many images this user asks for.
    const fn quantity(self, user: u64) -> u64 {
        match self {
            Self::Image | Self::Free => user % 4 + 1,
            _ => 1,
        }
    }

    /// What it costs this user, in credits, by the rate card of `org.rs`. An answer with so many
    /// events has three that are no token, and `[DONE]`.
    pub const fn cost(self, user: u64, events: u64) -> Amount {
        match self {
            Self::Free => Amount::millionths(0),
            Self::Image => Amount::millionths(1_000_000).times(self.quantity(user)),
            Self::Chat => {
                let output = Amount::millionths(4_000).times(events.saturating_sub(3));
                Amount::millionths(1_000).times(PROMPT_TOKENS).plus(output)
            }
            Self::Idle | Self::Upload | Self::Download | Self::Copy => {
                Amount::millionths(1_000_000)
            }
        }
    }
}

/// Whom requests are for, and with which key.
#[derive(Clone, Debug)]
pub struct Callers {
    /// The letter that their names begin with.
    pub letter: char,
    /// The secret of an org's key, without the org's number behind it.
    pub secret: String,
    /// How many orgs there are; user i is in org i modulo that.
    pub orgs: u64,
}

impl Callers {
    /// The name of a user.
    pub fn user(&self, number: u64) -> String {
        format!("{}{number:07}", self.letter)
    }

    /// The key of the org that a user is in.
    pub fn key(&self, number: u64) -> String {
        format!("{}{:05}", self.secret, number % self.orgs)
    }
}

/// The requests of one kind: heads and small bodies, in which user and key are set.
pub struct Requests {
    orgs: u64,
    variants: Vec<Variant>,
}

struct Variant {
    bytes: Vec<u8>,
    /// Where the digits of org and user stand.
    org: usize,
    user: usize,
}

const ORG_DIGITS: usize = 5;
const USER_DIGITS: usize = 7;

impl Requests {
    /// As these callers send them.
    pub fn new(kind: Kind, callers: &Callers) -> Self {
        let variants = (0..if kind == Kind::Image || kind == Kind::Free { 4 } else { 1 })
            .map(|user| {
                let body = body(kind, user);
                let length = if kind.upload() > 0 { kind.upload() } else { body.len() as u64 };
                let content =
                    if kind.upload() > 0 { "application/octet-stream" } else { "application/json" };
                let before = format!(
                    "POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {}",
                    kind.path(),
                    callers.secret
                );
                let between = format!("\r\nTollgate-User: {}", callers.letter);
                let behind = format!(
                    "\r\nContent-Type: {content}\r\nContent-Length: {length}\r\n\r\n{body}"
                );
                let org = before.len();
                let user = org + ORG_DIGITS + between.len();
                let zeros = |count| "0".repeat(count);
                let text =
                    [before, zeros(ORG_DIGITS), between, zeros(USER_DIGITS), behind].concat();
                Variant { bytes: text.into_bytes(), org, user }
            })
            .collect();
        Self { orgs: callers.orgs, variants }
    }

    /// The request of a user, in the place of what is in `out`.
    pub fn write(&self, user: u64, out: &mut Vec<u8>) {
        out.clear();
        let variant = &self.variants[(user % self.variants.len() as u64) as usize];
        out.extend_from_slice(&variant.bytes);
        digits(&mut out[variant.org..variant.org + ORG_DIGITS], user % self.orgs);
        digits(&mut out[variant.user..variant.user + USER_DIGITS], user);
    }
}

fn digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// What is sent behind the head, but for large bodies.
fn body(kind: Kind, user: u64) -> String {
    match kind {
        Kind::Image | Kind::Free => {
            let start =
                format!("{{\"n\":{},\"size\":\"1024x1024\",\"prompt\":\"", kind.quantity(user));
            let rest = "p".repeat(200 - start.len() - 2);
            format!("{start}{rest}\"}}")
        }
        Kind::Chat => {
            "{\"model\":\"m\",\"stream\":true,\"max_tokens\":256,\"messages\":[{\"role\":\"user\",\
                       \"content\":\"Tell me something about gates.\"}]}"
                .to_owned()
        }
        Kind::Idle | Kind::Download => "{}".to_owned(),
        Kind::Upload | Kind::Copy => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_as_the_method_says() {
        let callers = Callers { letter: 'u', secret: "tg_k".to_owned(), orgs: 10 };
        let requests = Requests::new(Kind::Image, &callers);
        let mut out = Vec::new();
        for user in [0, 3, 1_234_567] {
            requests.write(user, &mut out);
            let text = String::from_utf8(out.clone()).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert_eq!(body.len(), 200);
            let document: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(document["n"], user % 4 + 1);
            assert_eq!(document["size"], "1024x1024");
            assert!(head.starts_with("POST /v1/images/generate HTTP/1.1\r\n"));
            assert!(head.contains(&format!("\r\nAuthorization: Bearer {}\r\n", callers.key(user))));
            assert!(head.contains(&format!("\r\nTollgate-User: {}\r\n", callers.user(user))));
            assert!(head.ends_with("\r\nContent-Length: 200"));
        }
    }

    #[test]
    fn a_request_costs_what_the_rate_card_says() {
        assert_eq!(Kind::Image.cost(6, 0).to_string(), "3");
        assert_eq!(Kind::Chat.cost(0, 200).to_string(), "0.838");
        assert_eq!(Kind::Free.cost(3, 0).to_string(), "0");
    }
}
