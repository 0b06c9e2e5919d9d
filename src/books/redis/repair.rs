//! A shard that is not whole any more, and what it takes to build it again.
//!
//! It is given up first: from then on nobody uses it and nobody archives it, whatever it has. Then it is
//! filled key by key, by whoever gave it up last. What makes it a shard again is one call, which looks
//! whether all of it is there. So a repair that dies has changed nothing that anybody uses, and is
//! begun again.

use std::collections::{HashMap, HashSet};

use super::carried::account;
use super::carry::Shards;
use super::pack::{In, Malformed, Out};
use super::rebuild::Rebuilt;
use super::refill::Filled;
use super::stream::{LedgerEntry, StreamEntry};
use super::{LEDGER, OpenError, library, welcome};
use crate::core::account::{AccountKey, Balance};
use crate::core::cycle::Label;

/// How many values a call fills a key with at most, and how many bytes.
const VALUES: usize = 1_000;
const BYTES: usize = 1 << 20;
/// The keys of a shard, by their places.
pub(super) const ACCOUNTS: usize = 1;
pub(super) const NAMES: usize = 2;
pub(super) const HOLDS: usize = 3;
pub(super) const ENDING: usize = 4;
pub(super) const ONCE: usize = 5;
pub(super) const KEPT: usize = 6;
pub(super) const SESSIONS: usize = 7;
pub(super) const ENDED: usize = 9;

/// How a shard is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It is in use, or could be.
    Whole,
    /// In words, what is wrong.
    Damaged(Vec<String>),
    /// A repair of it was begun.
    Unfinished,
    /// It is of other books.
    Other(String),
}

/// A shard as it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// How it is.
    pub condition: Condition,
    /// Its terms, and the position of the last entry before each; none where they are gone.
    pub terms: Vec<(String, u64)>,
    /// Cycles before it are closed.
    pub closed: Label,
}

/// All that a shard has, of one moment.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// Its books.
    pub epoch: String,
    /// The last entry of its ledger.
    pub end: u64,
    /// Cycles before it are closed.
    pub closed: Label,
    /// Its accounts, with their names.
    pub accounts: HashMap<AccountKey, (String, Balance)>,
    /// The charges that are open.
    pub open: HashSet<[u8; 16]>,
}

fn odd(error: Malformed) -> OpenError {
    OpenError::Books(error.to_string())
}

fn refused(shard: usize, why: &str) -> OpenError {
    OpenError::Books(match why {
        "whole" => format!("shard {shard} is whole"),
        "token" => format!("shard {shard}: another repair has taken over"),
        "damaged" => format!("shard {shard} was changed by somebody else while it was filled"),
        why => format!("shard {shard} refuses: {why}"),
    })
}

/// A reply, behind the word that says that it was done.
fn done<'a>(shard: usize, told: &'a [u8]) -> Result<In<'a>, OpenError> {
    let mut input = In::new(told);
    input.array().map_err(odd)?;
    match input.text().map_err(odd)? {
        "done" => Ok(input),
        why => Err(refused(shard, why)),
    }
}

impl Shards {
    /// Has Redis load the function library, where it has lost it too.
    ///
    /// # Errors
    /// When Redis does not answer, or says no.
    pub async fn prepare(&self) -> Result<(), OpenError> {
        library::load(&self.link).await.map_err(OpenError::Redis)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    async fn function(
        &self,
        shard: usize,
        name: &str,
        args: &[Vec<u8>],
    ) -> Result<Vec<u8>, OpenError> {
        Ok(self.link.call(&self.keys(shard).function(name, args)).await?)
    }

    /// How a shard is.
    ///
    /// # Errors
    /// When Redis does not answer, or not as expected.
    pub async fn inspect(&self, shard: usize, epoch: &str) -> Result<Inspected, OpenError> {
        let told = self.function(shard, library::INSPECT, &[]).await?;
        let mut input = done(shard, &told)?;
        inspected(&mut input, epoch).map_err(odd)
    }

    /// Gives up a shard that is not whole; whoever has the token fills it.
    ///
    /// # Errors
    /// Where it is whole, or of other books.
    pub async fn give_up(&self, shard: usize, epoch: &str, token: &str) -> Result<(), OpenError> {
        let args = [epoch, token].map(|text| text.as_bytes().to_vec());
        let told = self.function(shard, library::UNMAKE, &args).await?;
        done(shard, &told).map(|_| ())
    }

    /// Fills a shard that was given up, and makes it one again. Its ledger ends at a position; its
    /// entries stay where `keeps` says so.
    ///
    /// # Errors
    /// When Redis does not answer, or somebody else fills it: it is still given up then.
    pub async fn make_again(
        &self,
        (shard, epoch, token): (usize, &str, &str),
        built: &Rebuilt,
        (end, keeps): (u64, bool),
        terms: &[(String, u64)],
    ) -> Result<(), OpenError> {
        let (seconds, micros): (i64, i64) = self.ask(&redis::cmd("TIME")).await?;
        let now = seconds.saturating_mul(1_000_000).saturating_add(micros);
        let filled = Filled::new(built, now);
        for (key, pairs) in &filled.keys {
            let mut args = Vec::new();
            let mut bytes = 0;
            for (field, value) in pairs {
                if args.is_empty() {
                    args = vec![token.as_bytes().to_vec(), (key + 1).to_string().into_bytes()];
                }
                bytes += field.len() + value.len();
                args.extend([field.clone(), value.clone()]);
                if args.len() >= VALUES || bytes >= BYTES {
                    let told =
                        self.function(shard, library::REFILL, &std::mem::take(&mut args)).await?;
                    done(shard, &told)?;
                    bytes = 0;
                }
            }
            if !args.is_empty() {
                let told = self.function(shard, library::REFILL, &args).await?;
                done(shard, &told)?;
            }
        }
        let mut list = Out::default();
        list.array(terms.len());
        for (name, from) in terms {
            list.array(2).bytes(name.as_bytes()).uint(*from);
        }
        let text = |number: u64| number.to_string().into_bytes();
        let mut args = vec![token.as_bytes().to_vec(), epoch.as_bytes().to_vec()];
        args.extend([text(keeps.into()), list.into_bytes(), text(built.closed.digits().into())]);
        args.push(text(end));
        args.extend(filled.counts.map(|count| text(count as u64)));
        args.extend(filled.meta.into_iter().flat_map(|(field, value)| [field, value]));
        let told = self.function(shard, library::REMAKE, &args).await?;
        done(shard, &told).map(|_| ())
    }

    /// All that a shard has, of one moment.
    ///
    /// # Errors
    /// When Redis does not answer, or not as expected.
    pub async fn sums(&self, shard: usize) -> Result<Sums, OpenError> {
        let told = self.function(shard, library::SUMS, &[]).await?;
        let mut input = done(shard, &told)?;
        sums(&mut input).map_err(odd)
    }

    /// Entries of a shard's ledger behind a position, so many at most; none where it has no ledger.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn entries(
        &self,
        shard: usize,
        behind: u64,
        most: usize,
    ) -> Result<Vec<LedgerEntry>, OpenError> {
        let mut read = redis::cmd("XRANGE");
        read.arg(&self.keys(shard).0[LEDGER]).arg(format!("({behind}-0")).arg("+");
        let entries: Vec<StreamEntry> = self.ask(read.arg("COUNT").arg(most)).await?;
        let entry = |(id, fields): StreamEntry| {
            let position = id.strip_suffix("-0")?.parse().ok()?;
            Some((position, fields.into_iter().next()?.1))
        };
        // What is none of ours is a hole, for whoever counts.
        Ok(entries.into_iter().filter_map(entry).collect())
    }
}

fn inspected(input: &mut In<'_>, epoch: &str) -> Result<Inspected, Malformed> {
    let (there, is_whole) = (input.text()?.to_owned(), input.small()? == 1);
    let list = |input: &mut In<'_>| {
        (0..input.array()?).map(|_| input.int()).collect::<Result<Vec<i64>, Malformed>>()
    };
    let (counts, found) = (list(input)?, list(input)?);
    let terms = welcome::some_terms(input)?;
    let closed = Label::from_digits(u32::try_from(input.uint()?).unwrap_or_default());
    let condition = match () {
        () if there == epoch && is_whole => Condition::Whole,
        () if there == format!("{epoch}/repair") => Condition::Unfinished,
        () if there.is_empty() || there == epoch => Condition::Damaged(damage(&counts, &found)),
        () => Condition::Other(there),
    };
    let terms = terms.into_iter().map(|term| (term.name, term.from)).collect();
    Ok(Inspected { condition, terms, closed })
}

/// What is wrong, by what `meta` counts and what there is.
fn damage(counts: &[i64], found: &[i64]) -> Vec<String> {
    if found.iter().all(|size| *size == 0) {
        return vec!["it is empty".to_owned()];
    }
    if found.first().is_none_or(|size| *size <= 0) || counts.len() < 9 || found.len() < 10 {
        return vec!["meta is gone".to_owned()];
    }
    let once = if counts[4] < 0 || counts[5] < 0 { -1 } else { counts[4] + counts[5] };
    let expected = [
        ("accounts", counts[1], found[ACCOUNTS]),
        ("names", counts[1], found[NAMES]),
        ("holds", counts[2], found[HOLDS]),
        ("ending", counts[3], found[ENDING]),
        ("once", once, found[ONCE]),
        ("kept", counts[6], found[KEPT]),
        ("sessions", counts[8].saturating_mul(2), found[SESSIONS]),
        ("ended", counts[7], found[ENDED]),
    ];
    let mut damage = Vec::new();
    for (key, expected, there) in expected {
        match there {
            there if there == expected => {}
            -1 => damage.push(format!("{key} is of another type")),
            there => damage.push(format!("{key} has {there} fields, and {expected} are expected")),
        }
    }
    if counts[0] < 0 {
        damage.push("meta has not all it should have".to_owned());
    }
    if damage.is_empty() {
        damage.push("the ledger is gone, or meta has not all it should have".to_owned());
    }
    damage
}

fn sums(input: &mut In<'_>) -> Result<Sums, Malformed> {
    let (epoch, end) = (input.text()?.to_owned(), input.uint()?);
    let closed = Label::from_digits(u32::try_from(input.uint()?).unwrap_or_default());
    let mut sums = Sums { epoch, end, closed, ..Sums::default() };
    let count = input.array()?;
    let fields = (0..count / 2).map(|_| Ok((input.bytes()?, input.bytes()?)));
    let fields = fields.collect::<Result<Vec<_>, Malformed>>()?;
    let count = input.array()?;
    let names = (0..count / 2).map(|_| Ok((input.bytes()?, input.text()?)));
    let names = names.collect::<Result<HashMap<_, _>, Malformed>>()?;
    for (key, bytes) in fields {
        let name = names.get(key).copied().unwrap_or_default();
        let (key, account) = account(key, name, bytes)?;
        sums.accounts.insert(key, (name.to_owned(), account.balance));
    }
    for _ in 0..input.array()? {
        sums.open.insert(input.fixed()?);
    }
    Ok(sums)
}
