//! Answers of charges that were made under a key (D35), kept for whoever asks again: as HTTP
//! messages, with the capture's record, and the recent ones in memory too.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use http::header::{DATE, HeaderName, HeaderValue};
use http::{Response, response};
use parking_lot::Mutex;

use crate::core::ids::ChargeId;

/// The largest message that is kept: a small answer, and a head of the usual size.
const MAX_MESSAGE: usize = 96 << 10;
/// How much of recent answers is in memory, and what one of them takes beside its message.
const MAX_RECENT: usize = 16 << 20;
const ENTRY: usize = 128;

/// An answer that will be kept when its charge is captured.
#[derive(Debug)]
pub struct Draft {
    head: Response<()>,
    body: Bytes,
    /// The receipt is its last event.
    pub tells: bool,
}

impl Draft {
    /// An answer as its client gets it, but for what the gateway says of its charge.
    pub fn new(head: &response::Parts, body: &Bytes) -> Self {
        let mut kept = Response::new(());
        *kept.status_mut() = head.status;
        *kept.headers_mut() = head.headers.clone();
        Self { head: kept, body: body.clone(), tells: false }
    }

    /// The message with these fields behind its own, and this behind its body; `None` where it is
    /// too large. Its `Date` is left out: an answer has that of the moment at which it is sent.
    pub fn message(&self, fields: &[(HeaderName, HeaderValue)], last: &[u8]) -> Option<Bytes> {
        let own = self.head.headers().iter().filter(|(name, _)| **name != DATE);
        let own = own.filter(|(name, _)| fields.iter().all(|(known, _)| known != *name));
        let fields = own.chain(fields.iter().map(|(name, value)| (name, value)));
        let mut message = Vec::with_capacity(512 + self.body.len());
        message.extend_from_slice(b"HTTP/1.1 ");
        message.extend_from_slice(self.head.status().as_str().as_bytes());
        message.extend_from_slice(b" \r\n");
        for (name, value) in fields {
            message.extend_from_slice(name.as_str().as_bytes());
            message.extend_from_slice(b": ");
            message.extend_from_slice(value.as_bytes());
            message.extend_from_slice(b"\r\n");
        }
        message.extend_from_slice(b"\r\n");
        message.extend_from_slice(&self.body);
        message.extend_from_slice(last);
        (message.len() <= MAX_MESSAGE).then(|| message.into())
    }
}

/// The answer that a message is; `None` for bytes that are none.
pub fn read(message: &Bytes) -> Option<Response<Bytes>> {
    let end = message.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let mut lines = message[..end].split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let status = lines.next()?.strip_prefix(b"HTTP/1.1 ")?;
    let response = Response::builder().status(status);
    let mut response = response.body(message.slice(end + 4..)).ok()?;
    for line in lines {
        let at = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..at]).ok()?;
        let value = HeaderValue::from_bytes(line[at + 1..].trim_ascii_start()).ok()?;
        response.headers_mut().append(name, value);
    }
    Some(response)
}

/// The messages of recent charges, so that a repetition does not wait for the archive. Shared by
/// all workers; its lock is a leaf, and taken for requests with a key only.
#[derive(Debug, Default)]
pub struct Answers(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    messages: HashMap<ChargeId, Bytes>,
    /// The oldest first.
    order: VecDeque<ChargeId>,
    bytes: usize,
}

impl Answers {
    /// Keeps a message, and lets the oldest ones go where there is no room.
    pub fn put(&self, charge: ChargeId, message: Bytes) {
        let mut recent = self.0.lock();
        recent.bytes += message.len() + ENTRY;
        if let Some(before) = recent.messages.insert(charge, message) {
            recent.bytes -= before.len() + ENTRY;
        } else {
            recent.order.push_back(charge);
        }
        while recent.bytes > MAX_RECENT
            && let Some(oldest) = recent.order.pop_front()
        {
            let gone = recent.messages.remove(&oldest);
            recent.bytes -= gone.map_or(0, |message| message.len() + ENTRY);
        }
    }

    /// The message of a charge, if it is a recent one.
    pub fn get(&self, charge: ChargeId) -> Option<Bytes> {
        self.0.lock().messages.get(&charge).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(status: u16, fields: &[(&str, &[u8])]) -> response::Parts {
        let mut response = Response::new(());
        *response.status_mut() = status.try_into().unwrap();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            response.headers_mut().append(name, HeaderValue::from_bytes(value).unwrap());
        }
        response.into_parts().0
    }

    #[test]
    fn d35_a_message_is_read_as_it_was_written() {
        let fields: [(&str, &[u8]); 5] = [
            ("set-cookie", b"a=1"),
            ("set-cookie", b"b: 2"),
            ("x-odd", b"caf\xe9 : \"x\"\ttab"),
            ("x-empty", b""),
            ("date", b"Fri, 20 Nov 2026 12:00:00 GMT"),
        ];
        let receipt = (HeaderName::from_static("tollgate-receipt"), HeaderValue::from_static("a"));
        for body in [&b""[..], b"\r\n\r\n", b"{\"ok\":true}\r\n\r\nx: y"] {
            let draft = Draft::new(&head(207, &fields), &Bytes::from_static(body));
            let read = read(&draft.message(std::slice::from_ref(&receipt), b"").unwrap()).unwrap();
            assert_eq!((read.status().as_u16(), &**read.body()), (207, body));
            let mut expected = head(207, &fields[..4]).headers;
            expected.insert(receipt.0.clone(), receipt.1.clone());
            assert_eq!(*read.headers(), expected);
        }
        let bare = Draft::new(&head(204, &[]), &Bytes::new());
        assert_eq!(read(&bare.message(&[], b"").unwrap()).unwrap().status(), 204);
        let large = Draft::new(&head(200, &[("x-large", &[b'a'; 32 << 10])]), &Bytes::new());
        assert!(large.message(&[], b"").is_some());
        let large = Draft { body: vec![b'a'; 64 << 10].into(), ..large };
        assert_eq!(large.message(&[], b""), None);
    }

    #[test]
    fn d35_bytes_that_are_no_message_are_none() {
        for bytes in [&b""[..], b"HTTP/1.1 200 \r\n", b"HTTP/1.1 xx \r\n\r\n", b"\r\n\r\n"] {
            assert!(read(&Bytes::from_static(bytes)).is_none(), "{bytes:?}");
        }
        for bytes in [&b"HTTP/1.1 200 \r\nx\r\n\r\n"[..], b"HTTP/1.1 200 \r\n: x\r\n\r\n"] {
            assert!(read(&Bytes::from_static(bytes)).is_none(), "{bytes:?}");
        }
    }

    #[test]
    fn d35_recent_answers_are_bounded_by_their_bytes() {
        let (answers, message) = (Answers::default(), Bytes::from(vec![0; 64 << 10]));
        let charges: Vec<ChargeId> = (0..400).map(|at| ChargeId::v7(1, at)).collect();
        for charge in &charges {
            answers.put(*charge, message.clone());
            answers.put(*charge, message.clone());
        }
        let kept = charges.iter().filter(|charge| answers.get(**charge).is_some()).count();
        assert_eq!(kept, MAX_RECENT / ((64 << 10) + ENTRY));
        assert!(answers.get(charges[399]).is_some());
        assert!(answers.get(charges[399 - kept]).is_none());
    }
}
