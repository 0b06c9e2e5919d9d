//! Entries of a shard's ledger: the records of one call, as the archive, the verifier and repairs
//! read them.

use smallvec::SmallVec;

use super::cycles;
use super::pack::{In, Malformed};
use super::wire::{leg_kind, state_of};
use crate::core::account::{AccountKey, Grant, Version};
use crate::core::charge::{InDoubt, OutcomeMemo};
use crate::core::cycle::Label;
use crate::core::record::{
    Adjust, Amend, Carried, CarriedKey, Close, Finish, Hold, Known, Lasting, Leg, Once, Opening,
    Record, Resolve, Used,
};

/// What one call changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Whose call it was.
    pub session: &'a str,
    /// Which of that session's it was.
    pub number: u64,
    /// What it did, in order.
    pub records: Vec<Record<'a>>,
    /// What else is said of some of its records, by their places.
    pub more: Vec<(usize, More)>,
    /// Of what was done again, because Redis had lost it: the term that it was in first, and its
    /// position there.
    pub before: Option<(&'a str, u64)>,
}

impl<'a> Entry<'a> {
    /// Reads an entry, whole.
    ///
    /// # Errors
    /// When the bytes are anything else than one entry.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut input = In::new(bytes);
        let has_before = match input.array()? {
            3 => false,
            4 => true,
            count => return Err(Malformed(format!("an entry of {count} values"))),
        };
        let (session, number) = (input.text()?, input.uint()?);
        let (mut records, mut more) = (Vec::new(), Vec::new());
        for at in 0..input.array()? {
            let (record, said) = record(&mut input)?;
            records.push(record);
            more.extend(said.map(|said| (at, said)));
        }
        let mut before = None;
        if has_before {
            input.tuple(2)?;
            before = Some((input.text()?, input.uint()?));
        }
        input.end()?;
        Ok(Self { session, number, records, more, before })
    }
}

/// What only whoever builds books again wants to know of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum More {
    /// A hold that was put back by another session than its owner.
    Back(Back),
    /// The names that an amended charge has from then on.
    Names(Vec<Name>),
    /// The key under which an adjustment was made.
    Key(Once),
    /// What there is to the end of a charge.
    End(End),
}

/// What there is to the end of a charge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// It is remembered, because another session than its owner's made it.
    pub remembered: bool,
    /// Whether a captured charge has its key: one that was captured late may have it again, and of
    /// another one it may be somebody else's by then.
    pub has_key: Option<bool>,
}

impl End {
    /// As it is written: `REMEMBERED`, `KEY_LOST` and `HAS_KEY` of the library.
    fn read(bits: u64) -> Self {
        let has_key = match bits & 6 {
            2 => Some(false),
            4 => Some(true),
            _ => None,
        };
        Self { remembered: bits & 1 == 1, has_key }
    }
}

/// A name of an open charge, with its scope, as a shard has it.
pub type Name = [u8; 24];

/// What a hold had that was put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Back {
    /// Whose it is.
    pub owner: String,
    /// What was known of its use.
    pub known: Option<Known>,
    /// Its names.
    pub names: Vec<Name>,
    /// Which entry of the ledger has what it was then.
    pub carried: u64,
}

fn record<'a>(input: &mut In<'a>) -> Result<(Record<'a>, Option<More>), Malformed> {
    let count = input.array()?;
    let kind = input.small()?;
    let record = match (kind, count) {
        (1, 10 | 11) => hold(input)?,
        (2, 10 | 11) => resolve(input)?,
        (3, 9 | 10) => amend(input)?,
        (5, 7) => return adjust(input),
        (CARRIED, 5) => carried(input)?,
        (cycles::CLOSE, 4) => close(input)?,
        _ => return Err(Malformed(format!("a record of kind {kind} with {count} values"))),
    };
    let more = match (kind, count) {
        (1, 11) => Some(More::Back(back(input)?)),
        (2, 11) => Some(More::End(End::read(input.uint()?))),
        (3, 10) => Some(More::Names(names(input)?)),
        _ => None,
    };
    Ok((record, more))
}

fn back(input: &mut In<'_>) -> Result<Back, Malformed> {
    input.tuple(4)?;
    let owner = input.text()?.to_owned();
    let known = finish(input)?;
    let names = if input.is_nothing() { Vec::new() } else { names(input)? };
    Ok(Back { owner, known, names, carried: input.uint()? })
}

/// What becomes of a hold without its owner: only the use that is known is not in its record too.
fn finish(input: &mut In<'_>) -> Result<Option<Known>, Malformed> {
    let count = input.array()?;
    let (_, memo) = (input.small()?, input.bytes()?);
    if count < 3 {
        return Ok(None);
    }
    let count = input.array()?;
    let keep = (0..count).map(|_| input.uint()).collect::<Result<_, _>>()?;
    Ok(Some(Known { keep, memo: decode(memo)? }))
}

fn names(input: &mut In<'_>) -> Result<Vec<Name>, Malformed> {
    let count = input.array()?;
    (0..count).map(|_| input.fixed()).collect()
}

fn hold<'a>(input: &mut In<'a>) -> Result<Record<'a>, Malformed> {
    let (charge, at) = (input.fixed()?, input.int()?);
    let (openings, legs) = (openings(input)?, legs(input)?);
    let in_doubt = match input.small()? {
        0 => InDoubt::Void,
        1 => InDoubt::Capture,
        code => return Err(Malformed(format!("in doubt {code}"))),
    };
    let (memo, expires) = (input.bytes()?, input.int()?);
    let once = once(input)?;
    let note = input.bytes()?;
    let hold = Hold { charge, at, in_doubt, openings, legs, memo };
    let expires = (expires > 0).then_some(expires);
    if expires.is_none() && once.is_none() && note.is_empty() {
        return Ok(Record::Hold(hold));
    }
    Ok(Record::Lasting(Lasting { hold, expires, once, note }))
}

fn once(input: &mut In<'_>) -> Result<Option<Once>, Malformed> {
    if input.is_nothing() {
        return Ok(None);
    }
    input.tuple(2)?;
    let (scope, key) = field(input)?;
    Ok(Some(Once { scope, key, request: input.fixed()? }))
}

/// A scope, and a key in it.
fn field(input: &mut In<'_>) -> Result<(u64, [u8; 16]), Malformed> {
    Ok(scope_and_key(input.fixed()?))
}

pub(super) fn scope_and_key(field: [u8; 24]) -> (u64, [u8; 16]) {
    let (mut scope, mut key) = ([0; 8], [0; 16]);
    scope.copy_from_slice(&field[..8]);
    key.copy_from_slice(&field[8..]);
    (u64::from_be_bytes(scope), key)
}

fn resolve<'a>(input: &mut In<'a>) -> Result<Record<'a>, Malformed> {
    let (charge, at) = (input.fixed()?, input.int()?);
    let (openings, extra) = (openings(input)?, legs(input)?);
    let state = state_of(input.small()?)?;
    let count = input.array()?;
    let keep = (0..count).map(|_| input.uint()).collect::<Result<_, _>>()?;
    let memo = match input.bytes()? {
        // What ends in its time has nothing to say.
        [] => OutcomeMemo::default(),
        memo => decode(memo)?,
    };
    let resolve = Resolve { charge, at, state, keep, openings, extra, memo };
    match (input.bytes()?, input.bytes()?) {
        ([], []) => Ok(Record::Resolve(resolve)),
        (note, answer) => Ok(Record::Finish(Finish { resolve, note, answer })),
    }
}

fn amend<'a>(input: &mut In<'a>) -> Result<Record<'a>, Malformed> {
    let (charge, at) = (input.fixed()?, input.int()?);
    let (openings, legs) = (openings(input)?, legs(input)?);
    let known: Option<Known> = match input.is_nothing() {
        true => None,
        false => Some(decode(input.bytes()?)?),
    };
    let expires = input.int()?;
    let note = match input.is_nothing() {
        true => None,
        false => Some(serde_bytes::Bytes::new(input.bytes()?)),
    };
    let answer = input.bytes()?;
    let expires = (expires > 0).then_some(expires);
    Ok(Record::Amend(Amend { charge, at, openings, legs, known, expires, note, answer }))
}

fn adjust<'a>(input: &mut In<'a>) -> Result<(Record<'a>, Option<More>), Malformed> {
    let (once, at) = (input.bytes()?, input.int()?);
    let openings = openings(input)?;
    let (key, delta, memo) = (account(input)?, input.int()?, input.bytes()?);
    let once = match once.split_first_chunk() {
        None => None,
        Some((field, request)) => {
            let (scope, key) = scope_and_key(*field);
            let odd = |_| Malformed(format!("a request of {} bytes", request.len()));
            Some(More::Key(Once { scope, key, request: request.try_into().map_err(odd)? }))
        }
    };
    Ok((Record::Adjust(Adjust { at, openings, key, delta, memo }), once))
}

fn close<'a>(input: &mut In<'a>) -> Result<Record<'a>, Malformed> {
    let (_, at, below) = (input.bytes()?, input.int()?, input.uint()?);
    let below = u32::try_from(below).map_err(|_| Malformed(format!("a cycle {below}")))?;
    Ok(Record::Close(Close { at, below: Label::from_digits(below) }))
}

/// The kind of a record of accounts that come from other books.
pub(super) const CARRIED: u8 = 10;

fn carried<'a>(input: &mut In<'a>) -> Result<Record<'a>, Malformed> {
    let (at, openings) = (input.int()?, openings(input)?);
    let count = input.array()?;
    let used = (0..count / 2).map(|_| Ok(Used { adjusted: input.int()?, captured: input.uint()? }));
    let used = used.collect::<Result<Vec<Used>, Malformed>>()?;
    let count = input.array()?;
    let keys = (0..count / 4).map(|_| {
        let (scope, key) = field(input)?;
        let once = Once { scope, key, request: input.fixed()? };
        Ok(CarriedKey { once, charge: input.fixed()?, held_at: input.int()? })
    });
    let keys = keys.collect::<Result<Vec<CarriedKey>, Malformed>>()?;
    Ok(Record::Carried(Carried { at, openings, used, keys }))
}

fn openings<'a>(input: &mut In<'a>) -> Result<SmallVec<[Opening<'a>; 1]>, Malformed> {
    let count = input.array()?;
    (0..count)
        .map(|_| {
            input.tuple(5)?;
            let (key, name, base) = (account(input)?, input.text()?, input.uint()?);
            let epoch = u32::try_from(input.uint()?);
            let epoch = epoch.map_err(|_| Malformed("an epoch beyond 32 bits".into()))?;
            let version = Version { epoch, number: input.uint()? };
            Ok(Opening { key, name, grant: Grant { base, version } })
        })
        .collect()
}

fn legs(input: &mut In<'_>) -> Result<SmallVec<[Leg; 2]>, Malformed> {
    let count = input.array()?;
    if count % 3 != 0 {
        return Err(Malformed(format!("{count} values of legs")));
    }
    (0..count / 3)
        .map(|_| {
            let (key, kind) = (account(input)?, leg_kind(input.small()?)?);
            Ok(Leg { key, kind, amount: input.uint()? })
        })
        .collect()
}

fn account(input: &mut In<'_>) -> Result<AccountKey, Malformed> {
    let key = AccountKey::from_bytes(&input.fixed()?);
    key.ok_or_else(|| Malformed("an account of no kind".into()))
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    postcard::from_bytes(bytes).map_err(|error| Malformed(error.to_string()))
}
