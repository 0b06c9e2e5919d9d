//! Charges that are made once (D35): the key that a request comes with, what tells a repetition
//! from another request, and what a repetition is told.

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use sha2::{Digest, Sha256};

use super::Refused;
use super::answers;
use super::forward::Forwarded;
use super::hold::{Held, unavailable};
use super::identify::Caller;
use super::meter_body::Content;
use super::route::Metered;
use super::worker::Worker;
use crate::books::{Books, KnownCharge, Once};
use crate::config::Idempotency;
use crate::core::account::{LegKind, Legs, Taken};
use crate::core::amount::parse_micro;
use crate::core::charge::{ChargeDocument, LegDocument};
use crate::core::ids::scope_of;
use crate::core::note::{self, HoldNote};
use crate::core::receipt::Receipt;
use crate::core::refusal::{Code, Refusal};
use crate::telemetry::Outcome;

/// A request's key (draft-ietf-httpapi-idempotency-key-header-07).
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer was given before.
pub const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// The longest key.
const MAX_KEY: usize = 255;

/// The key of a request, as its caller means it.
#[derive(Debug, PartialEq, Eq)]
pub struct Key(Vec<u8>);

/// The key that a request comes with; none where its route honours none.
///
/// # Errors
/// `bad_request` for two of them, and for one that is none.
pub fn key(rule: Idempotency, headers: &HeaderMap) -> Result<Option<Key>, Refused> {
    if rule == Idempotency::Off {
        return Ok(None);
    }
    let mut values = headers.get_all(&IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let bad = |detail| Refused::from(Refusal::new(Code::BadRequest, detail));
    if values.next().is_some() {
        return Err(bad("the header idempotency-key is there twice"));
    }
    let key = text(value.as_bytes());
    let wrong = "the header idempotency-key takes 1 to 255 visible ASCII characters, as they are \
                 or as one string in double quotes";
    key.map(Some).ok_or_else(|| bad(wrong))
}

/// The text of a key: a string (RFC 9651, 3.3.3), or what everybody sends, the bare text.
fn text(value: &[u8]) -> Option<Key> {
    let key = match value.strip_prefix(b"\"") {
        None => value.to_vec(),
        Some(quoted) => unquoted(quoted.strip_suffix(b"\"")?)?,
    };
    let visible = key.iter().all(u8::is_ascii_graphic);
    ((1..=MAX_KEY).contains(&key.len()) && visible).then_some(Key(key))
}

fn unquoted(quoted: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(quoted.len());
    let mut bytes = quoted.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return None,
            b'\\' => text.push(*bytes.next().filter(|byte| matches!(byte, b'"' | b'\\'))?),
            byte => text.push(*byte),
        }
    }
    Some(text)
}

/// What the books remember a request by that comes with a key: of its org and caller, and what it
/// is (f20). `body` is all of its body.
///
/// # Errors
/// `idempotency_key_required`.
pub fn once(
    metered: &Metered,
    caller: &Caller,
    key: Option<Key>,
    parts: &Parts,
    body: &[u8],
) -> Result<Option<Once>, Refused> {
    let Some(Key(key)) = key else {
        if metered.idempotency == Idempotency::Required {
            let detail = "this route takes requests with the header Idempotency-Key only: a name \
                          of your choice for this request, and the same one for its repetitions";
            return Err(Refusal::new(Code::IdempotencyKeyRequired, detail).into());
        }
        return Ok(None);
    };
    // What else may decide the price: a repetition has the same.
    let priced = metered.pricing.headers().flat_map(|name| {
        let values = parts.headers.get_all(name).iter().map(HeaderValue::as_bytes);
        std::iter::once(name.as_str().as_bytes()).chain(values)
    });
    Ok(Some(remembered(caller, &key, parts, body, priced)))
}

/// The same for a hold of the holds API.
pub fn of_hold(caller: &Caller, key: &Key, parts: &Parts, body: &[u8]) -> Once {
    remembered(caller, &key.0, parts, body, std::iter::empty())
}

fn remembered<'a>(
    caller: &Caller,
    key: &[u8],
    parts: &'a Parts,
    body: &'a [u8],
    priced: impl Iterator<Item = &'a [u8]>,
) -> Once {
    let org = caller.org.id.as_str().as_bytes();
    let (kind, id) = match &caller.user {
        Some(user) => (&b"user"[..], user.id()),
        None => (&b"key"[..], caller.key.id.as_str()),
    };
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let kind_of_body = parts.headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let what = [parts.method.as_str().as_bytes(), path.as_bytes(), kind_of_body, body];
    Once {
        scope: scope_of(caller.org.id.as_str()),
        key: digest([org, kind, id.as_bytes(), key]),
        request: digest(what.into_iter().chain(priced)),
    }
}

/// The charge that has this key already, if there is one: its request is only answered.
///
/// # Errors
/// `books_unavailable`.
pub async fn known<B: Books>(
    worker: &Worker<B>,
    once: Option<&Once>,
) -> Result<Option<KnownCharge>, Refused> {
    let Some(once) = once else { return Ok(None) };
    let known = worker.books.known(once.scope, &once.key).await;
    known.map_err(|error| unavailable(&error))
}

/// Half of the SHA-256 of parts, each with its length.
pub(super) fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let hash: [u8; 32] = hash.finalize().into();
    std::array::from_fn(|at| hash[at])
}

/// The refusal of one more key than are remembered.
pub fn too_many() -> Refused {
    let detail = "so many charges were made under keys that no more of them can be remembered; \
                  wait, or send no Idempotency-Key where a repetition does no harm";
    let mut refused = Refused::from(Refusal::new(Code::RateLimited, detail));
    refused.retry_after = Some(60);
    refused
}

/// The refusal of a key that belongs to another request.
pub fn reused() -> Refused {
    let detail = "this Idempotency-Key was charged for another request: another method, path, \
                  query, type, body or priced header";
    Refusal::new(Code::IdempotencyKeyReused, detail).into()
}

/// Answers a request whose key a charge has already: nothing is forwarded. `held` holds nothing.
///
/// # Errors
/// `idempotency_in_flight`, `already_charged`, `idempotency_key_reused`; `books_unavailable` where
/// it cannot be known what the first answer was.
pub async fn again<B: Books + 'static>(
    held: Box<Held<B>>,
    known: KnownCharge,
) -> Result<Forwarded<B>, Refused> {
    let is_answered = known.captured || held.worker.jobs.is_open(known.charge);
    if !is_answered && !answered_elsewhere(&held, known).await? {
        let detail = "a request with this Idempotency-Key is being served; its answer is yours \
                      when it is there";
        return Err(Refusal::new(Code::IdempotencyInFlight, detail).into());
    }
    if held.once.is_none_or(|once| once.request != known.request) {
        return Err(reused());
    }
    let worker = &held.worker;
    let message = match worker.answers.get(known.charge) {
        Some(message) => Some(message),
        None => {
            let kept = worker.charges.answer(known.charge).await;
            let kept = kept.map_err(|error| unavailable(&error))?.map(bytes::Bytes::from);
            kept.inspect(|message| worker.answers.put(known.charge, message.clone()))
        }
    };
    let Some(mut response) = message.as_ref().and_then(answers::read) else {
        return Err(already_charged(&held, known).await);
    };
    response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    let status = response.status().as_u16();
    held.caller.meters.request(Some(held.route.index), Outcome::Free, Some(status));
    worker.meters.replayed();
    let response = response.map(|body| Content::Whole(Some(body)));
    Ok(Forwarded { response, waited: Duration::ZERO })
}

/// Whether there is an answer to give again by what the books know: the one to a submission is there
/// long before its charge is captured, maybe by another gateway, or it was captured just now.
async fn answered_elsewhere<B: Books + 'static>(
    held: &Held<B>,
    known: KnownCharge,
) -> Result<bool, Refused> {
    let books = &held.worker.books;
    let open = books.open_charge(known.charge).await.map_err(|error| unavailable(&error))?;
    if let Some(open) = open {
        let note: HoldNote = note::decode(&open.note);
        return Ok(note.job.is_some());
    }
    let now = self::known(&held.worker, held.once.as_ref()).await?;
    Ok(now.is_some_and(|now| now.charge == known.charge && now.captured))
}

/// The refusal of what was charged and whose answer is not kept, with the charge's receipt and
/// what its caller has left by now.
async fn already_charged<B: Books + 'static>(held: &Held<B>, known: KnownCharge) -> Refused {
    let found = held.worker.charges.find(known.charge).await;
    let standing = held.foresee(&[]).await;
    let (charge, standing) = match (found, standing) {
        (Ok(charge), Ok(standing)) => (charge, standing),
        (Err(error), _) | (_, Err(error)) => return unavailable(&error),
    };
    let detail = "a request with this Idempotency-Key was charged, and its answer is not kept; \
                  it is not sent again. Its charge is in the header Tollgate-Receipt";
    let mut refused = Refused::from(Refusal::new(Code::AlreadyCharged, detail));
    refused.receipt = charge.map(|charge| {
        let (legs, card) = (legs_of(&charge), &*charge.rate_card);
        let cost = charge.cost.micro();
        let mut receipt = Receipt::new(known.charge, charge.state, cost, &legs, card);
        receipt.would_refuse = charge.would_refuse.as_deref();
        Box::new(held.complete(receipt, &standing))
    });
    refused
}

fn legs_of(charge: &ChargeDocument) -> Legs {
    let kinds = [LegKind::Licence, LegKind::Pool, LegKind::Overage, LegKind::Overdraft];
    let leg = |leg: &LegDocument| {
        let kind = kinds.into_iter().find(|kind| kind.word() == leg.kind)?;
        Some(Taken { slot: 0, kind, amount: parse_micro(&leg.amount).ok()? })
    };
    charge.legs.iter().filter_map(leg).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&[u8]]) -> Result<Option<Vec<u8>>, Code> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(IDEMPOTENCY_KEY, HeaderValue::from_bytes(value).unwrap());
        }
        let found = key(Idempotency::Optional, &headers);
        found.map(|key| key.map(|key| key.0)).map_err(|refused| refused.refusal.code)
    }

    #[test]
    fn d35_a_key_is_bare_text_or_a_string() {
        for (value, expected) in [
            (&b"4711"[..], &b"4711"[..]),
            (b"\"4711\"", b"4711"),
            (b"a,b;c=\\\"", b"a,b;c=\\\""),
            (br#""a\"b\\c""#, br#"a"b\c"#),
            (&[b'k'; 255], &[b'k'; 255]),
        ] {
            assert_eq!(read(&[value]), Ok(Some(expected.to_vec())));
        }
        assert_eq!(read(&[]), Ok(None));
        for wrong in [
            &b""[..],
            b"\"\"",
            b"a b",
            b"\"a b\"",
            b"\"a",
            b"\"",
            b"\"a\"b\"",
            br#""a\""#,
            br#""a\b""#,
            b"\"a\";q=1",
            b"caf\xe9",
            &[b'k'; 256],
        ] {
            assert_eq!(read(&[wrong]), Err(Code::BadRequest), "{wrong:?}");
        }
        assert_eq!(read(&[b"a", b"a"]), Err(Code::BadRequest));
        let mut headers = HeaderMap::new();
        headers.append(IDEMPOTENCY_KEY, HeaderValue::from_static(""));
        assert!(key(Idempotency::Off, &headers).is_ok_and(|key| key.is_none()));
    }

    #[test]
    fn d35_parts_of_a_digest_do_not_run_into_each_other() {
        let digests =
            [digest([&b"ab"[..], b"c"]), digest([&b"a"[..], b"bc"]), digest([&b"abc"[..]])];
        assert!(digests[0] != digests[1] && digests[1] != digests[2] && digests[0] != digests[2]);
    }
}
