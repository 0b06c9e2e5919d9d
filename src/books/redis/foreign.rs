//! What Redis says, read of any bytes: for whoever tries to break the readers (`fuzz/`), and for
//! nobody else.

use super::pack::{In, Out};
use super::stored::StoredHold;
use super::welcome;
use super::wire::{self, Called, Reply};
use crate::books::OpenCharge;
use crate::core::ids::ChargeId;

/// How many values were read of a reply to so many operations; `None` where it is no reply. The tag
/// is the one that it has.
pub fn reply(bytes: &[u8], operations: usize) -> Option<usize> {
    let tag = tag(bytes).unwrap_or_default();
    match wire::reply(bytes, tag, &vec![ChargeId([7; 16]); operations]).ok()? {
        Called::Done(done) => Some(done.replies.iter().map(size).sum()),
        Called::Refused(why, _) => Some(why.len()),
    }
}

fn tag(bytes: &[u8]) -> Option<u64> {
    let mut input = In::new(bytes);
    let (_, _) = (input.array().ok()?, input.text().ok()?);
    input.uint().ok()
}

fn size(reply: &Reply) -> usize {
    match reply {
        Reply::Done(legs, view) => legs.len() + known(view),
        Reply::Short(view) => known(view),
        Reply::Ended(_, open) => size_of_hold(open),
        Reply::Found(charges) => charges.len(),
        Reply::Again(view) => known(view),
        Reply::Known(_) | Reply::Unknown | Reply::Unsure => 1,
        Reply::Already(_) | Reply::Refused(_) => 1,
    }
}

fn known(view: &crate::core::account::View) -> usize {
    (0..=u8::MAX).filter(|slot| view.get(*slot).is_some()).count()
}

fn size_of_hold(open: &OpenCharge) -> usize {
    let names = open.legs.iter().map(|leg| leg.account.len());
    open.legs.len() + names.sum::<usize>() + open.memo.len() + open.note.len()
}

/// How many values were read of replies to a session that enters or does things again, and of a
/// shard's terms.
pub fn welcome(bytes: &[u8]) -> usize {
    let here = welcome::here(bytes).map_or(0, |here| here.map_or(1, |here| here.terms.len()));
    let ready = welcome::ready(bytes).map_or(0, |ready| ready.map_or(1, |ready| ready.1.len()));
    let again = welcome::again(bytes, None).map_or(0, |again| again.done.len());
    here + ready + again + welcome::terms(bytes).map_or(0, |terms| terms.len())
}

/// Reads a reply to `join`: the last number of a session, or the length of why not.
pub fn joined(bytes: &[u8]) -> Option<Result<u64, usize>> {
    let joined = welcome::joined(bytes).ok()?;
    Some(joined.map_err(|why| why.len()))
}

/// How many values were read of a hold as the library stores it; `None` where it is none.
pub fn hold(bytes: &[u8]) -> Option<usize> {
    let hold = StoredHold::read(&mut In::new(bytes)).ok()?;
    let (legs, owner) = (hold.legs.len(), hold.owner.len());
    let names = std::iter::repeat_n(String::new(), legs);
    Some(owner + size_of_hold(&hold.describe(ChargeId([7; 16]), names)))
}

/// A value, as it is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are what they are called")]
pub enum Value<'a> {
    Uint(u64),
    Int(i64),
    Flag(bool),
    Bytes(&'a [u8]),
    Array(usize),
}

/// Values, one behind the other, as far as there are any.
pub fn values(bytes: &[u8]) -> Vec<Value<'_>> {
    let (mut input, mut values) = (In::new(bytes), Vec::new());
    while let Some((value, rest)) = value(input) {
        values.push(value);
        input = rest;
    }
    values
}

fn value(input: In<'_>) -> Option<(Value<'_>, In<'_>)> {
    let [mut uint, mut int, mut flag, mut bytes, mut array] = [input; 5];
    uint.uint()
        .map(|value| (Value::Uint(value), uint))
        .or_else(|_| int.int().map(|value| (Value::Int(value), int)))
        .or_else(|_| flag.flag().map(|value| (Value::Flag(value), flag)))
        .or_else(|_| bytes.bytes().map(|value| (Value::Bytes(value), bytes)))
        .or_else(|_| array.array().map(|count| (Value::Array(count), array)))
        .ok()
}

/// Packs a value; behind an array as many nothings as it has values.
pub fn pack(value: Value<'_>) -> Vec<u8> {
    let mut out = Out::default();
    match value {
        Value::Uint(value) => out.uint(value),
        Value::Int(value) => out.int(value),
        Value::Flag(value) => out.flag(value),
        Value::Bytes(bytes) => out.bytes(bytes),
        Value::Array(count) => (0..count).fold(out.array(count), |out, _| out.flag(false)),
    };
    out.into_bytes()
}
