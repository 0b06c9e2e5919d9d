//! What a shard says to a session that enters it.

use super::journal::Term;
use super::pack::{In, Malformed};

/// A shard, as a session finds it that enters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Here {
    /// The last number that is known of the session, if it is registered.
    pub(super) known: Option<u64>,
    pub(super) terms: Vec<Term>,
}

/// Reads the reply to `enter`, or why not.
pub(super) fn here(bytes: &[u8]) -> Result<Result<Here, String>, Malformed> {
    let mut input = In::new(bytes);
    input.array()?;
    match input.text()? {
        "done" => {}
        why => return Ok(Err(why.to_owned())),
    }
    let known = u64::try_from(input.int()?).ok();
    let terms = some_terms(&mut input)?;
    Ok(Ok(Here { known, terms }))
}

/// Reads the terms of a shard.
pub(super) fn terms(bytes: &[u8]) -> Result<Vec<Term>, Malformed> {
    some_terms(&mut In::new(bytes))
}

pub(super) fn some_terms(input: &mut In<'_>) -> Result<Vec<Term>, Malformed> {
    let count = input.array()?;
    (0..count)
        .map(|_| {
            input.tuple(2)?;
            Ok(Term { name: input.text()?.to_owned(), from: input.uint()? })
        })
        .collect()
}

/// Reads the reply to `ready`: whether the shard is open, and who was not waited for; or why not.
pub(super) fn ready(bytes: &[u8]) -> Result<Result<(bool, Vec<String>), String>, Malformed> {
    let mut input = In::new(bytes);
    input.array()?;
    match input.text()? {
        "done" => {}
        why => return Ok(Err(why.to_owned())),
    }
    let is_open = input.small()? == 1;
    let absent = (0..input.array()?).map(|_| Ok(input.text()?.to_owned()));
    Ok(Ok((is_open, absent.collect::<Result<_, Malformed>>()?)))
}

/// Reads the reply to `join`: the last number of the session.
pub(super) fn joined(bytes: &[u8]) -> Result<Result<u64, String>, Malformed> {
    let mut input = In::new(bytes);
    // Why not may come without more.
    input.array()?;
    match input.text()? {
        "done" => Ok(Ok(input.uint()?)),
        why => Ok(Err(why.to_owned())),
    }
}

/// What became of batches that were done again.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Again {
    /// Those that were, in order.
    pub(super) done: Vec<Repeated>,
    /// How many accounts have less than nothing with one of them, at most.
    pub(super) in_the_red: u64,
    /// Why not all were.
    pub(super) why: Option<String>,
}

/// A batch that was done again, and the term and the entry with which it is there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Repeated {
    pub(super) number: u64,
    pub(super) entry: u64,
    pub(super) term: String,
}

/// Reads the reply to `again`; `tag` is that of the call, where it is known.
pub(super) fn again(bytes: &[u8], tag: Option<u64>) -> Result<Again, Malformed> {
    let mut input = In::new(bytes);
    input.tuple(5)?;
    let (what, of) = (input.text()?, input.uint()?);
    if what != "again" || tag.is_some_and(|tag| tag != of) {
        return Err(Malformed(format!("{what}, of call {of}")));
    }
    let done = (0..input.array()?).map(|_| {
        input.tuple(3)?;
        let (number, entry) = (input.uint()?, input.uint()?);
        Ok(Repeated { number, entry, term: input.text()?.to_owned() })
    });
    let done = done.collect::<Result<_, Malformed>>()?;
    let in_the_red = input.uint()?;
    let why = if input.is_nothing() { None } else { Some(input.text()?.to_owned()) };
    Ok(Again { done, in_the_red, why })
}
