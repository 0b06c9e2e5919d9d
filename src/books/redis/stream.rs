//! The entries of the shards' ledgers, how many shards there are, how far their ledgers are, and to trim
//! what is archived.

use super::journal::Term;
use super::{Engine, Keys, LEDGER, META, OpenError, welcome};
use crate::core::cycle::Label;

/// How far a shard's ledger is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// The position of the last entry that it was ever given.
    pub end: u64,
    /// Its terms, the oldest first: the name of each, and the position of the last entry before it.
    /// A new one begins whenever Redis comes back, for it may have lost entries.
    pub terms: Vec<(String, u64)>,
    /// Cycles that began before it are closed.
    pub closed: Label,
}

/// An entry of a stream: its id, and its fields.
pub(super) type StreamEntry = (String, Vec<(Vec<u8>, Vec<u8>)>);

/// An entry of a shard's ledger: its position, and its bytes for [`super::ledger::Entry::read`].
pub type LedgerEntry = (u64, Vec<u8>);

impl Engine {
    /// Entries of a shard's ledger behind a position, so many at most.
    ///
    /// # Errors
    /// When Redis does not answer, or not as expected.
    pub async fn ledger(
        &self,
        shard: usize,
        behind: u64,
        most: usize,
    ) -> Result<Vec<LedgerEntry>, OpenError> {
        let mut command = redis::cmd("XRANGE");
        command.arg(&self.shared.keys(shard).0[LEDGER]).arg(format!("({behind}-0")).arg("+");
        command.arg("COUNT").arg(most);
        let entries: Vec<StreamEntry> = self.read(&command).await?;
        let odd = || OpenError::Books("an entry of the ledger that nobody of ours wrote".into());
        let entry = |(id, fields): StreamEntry| {
            let position = id.strip_suffix("-0").and_then(|id| id.parse().ok()).ok_or_else(odd)?;
            let (_, bytes) = fields.into_iter().next().ok_or_else(odd)?;
            Ok((position, bytes))
        };
        entries.into_iter().map(entry).collect()
    }

    /// How many shards the books have.
    pub fn shards(&self) -> usize {
        self.shared.shards
    }

    /// Which books these are.
    pub fn epoch(&self) -> &str {
        &self.shared.epoch
    }

    /// The shard of an org, or of a charge, by its home.
    pub fn shard_of(&self, home: u16) -> usize {
        self.shared.shard_of(home)
    }

    /// The position of the last entry that a shard's ledger was ever given; `None` where the books
    /// have no such shard (any more).
    ///
    /// # Errors
    /// When Redis does not answer, or not as expected.
    pub async fn ledger_end(&self, shard: usize) -> Result<Option<u64>, OpenError> {
        let Keys(keys) = self.shared.keys(shard);
        self.read(&redis::cmd("HGET").arg(&keys[META]).arg("seq").clone()).await
    }

    /// How far a shard's ledger is, and its terms; `None` where the books have no such shard (any more).
    ///
    /// # Errors
    /// When Redis does not answer, or not as expected.
    pub async fn ledger_terms(&self, shard: usize) -> Result<Option<Ledger>, OpenError> {
        let Keys(keys) = self.shared.keys(shard);
        let mut read = redis::cmd("HMGET");
        read.arg(&keys[META]).arg("seq").arg("terms").arg("closed");
        let (end, terms, closed): (Option<u64>, Option<Vec<u8>>, Option<u32>) =
            self.read(&read).await?;
        let Some(end) = end else { return Ok(None) };
        let terms = welcome::terms(terms.as_deref().unwrap_or(&[0x90]));
        let terms = terms.map_err(|error| OpenError::Books(error.to_string()))?;
        let terms = terms.into_iter().map(|Term { name, from }| (name, from)).collect();
        let closed = Label::from_digits(closed.unwrap_or_default());
        Ok(Some(Ledger { end, terms, closed }))
    }

    /// Deletes the entries of a shard's ledger up to a position. The ledger itself stays, also
    /// without entries.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn trim_ledger(&self, shard: usize, through: u64) -> Result<u64, OpenError> {
        let Keys(keys) = self.shared.keys(shard);
        let mut command = redis::cmd("XTRIM");
        command.arg(&keys[LEDGER]).arg("MINID").arg("=");
        self.read(command.arg(format!("{}-0", through.saturating_add(1)))).await
    }
}
