//! Accounts, balances and posts: the language in which the waterfall speaks to the books.
//!
//! Everything that can run out is an account. A post names accounts and says what to take from
//! them; the books do it whole or not at all, and know nothing of seats, profiles or overage.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use super::amount::MAX_MICRO;
use super::cycle::Label;

/// What kind of thing runs out. The order is the order in which a caller's accounts are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum AccountKind {
    /// A licence in a cycle, in credits.
    Licence,
    /// The credits a user owes in a cycle (D31).
    Overdraft,
    /// The org's pool in a term, in Operations.
    Pool,
    /// What may be used past the pool in a term, in Operations (D26).
    Overage,
    /// What a user or key may draw from pool and overage in a cycle, in Operations (D17).
    Draw,
    /// What a user took in a cycle from a licence's account that is another's, in credits: it
    /// never runs out, and is only there to be told (D10).
    Tally,
}

impl AccountKind {
    /// All of them, in their order.
    pub const ALL: [Self; 6] =
        [Self::Licence, Self::Overdraft, Self::Pool, Self::Overage, Self::Draw, Self::Tally];

    /// What an admin can adjust: whatever limits somebody.
    pub const ADJUSTED: [Self; 5] =
        [Self::Licence, Self::Overdraft, Self::Pool, Self::Overage, Self::Draw];

    /// Whether an account of a cycle that is long over can go. What somebody owes stays, and so
    /// does what belongs to a term.
    pub const fn ends_with_its_cycle(self) -> bool {
        matches!(self, Self::Licence | Self::Draw | Self::Tally)
    }

    /// The word in an account's name.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Licence => "licence",
            Self::Overdraft => "overdraft",
            Self::Pool => "pool",
            Self::Overage => "overage",
            Self::Draw => "draw",
            Self::Tally => "tally",
        }
    }

    /// `credits` or `operations`.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Licence | Self::Overdraft | Self::Tally => "credits",
            Self::Pool | Self::Overage | Self::Draw => "operations",
        }
    }
}

/// The part of an account's identity that does not change from cycle to cycle: a digest of its
/// org and ids, computed once when the directory's snapshot is built, so that the hot path never
/// hashes or copies a name. 128 bits of SHA-256: two names never meet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stem([u64; 2]);

impl Serialize for Stem {
    /// As 16 bytes: of digits without a pattern, numbers of varying length are longer.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.0[0].to_le_bytes());
        bytes[8..].copy_from_slice(&self.0[1].to_le_bytes());
        serde_bytes::serialize(&bytes, serializer)
    }
}

impl<'de> Deserialize<'de> for Stem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: [u8; 16] = serde_bytes::deserialize(deserializer)?;
        let (words, _) = bytes.as_chunks();
        Ok(Self([0, 1].map(|word| u64::from_le_bytes(words[word]))))
    }
}

impl Stem {
    /// The digest of the ids that name an account, outermost first. Ids hold no `/`, so joining
    /// them with it is unambiguous.
    pub fn new(ids: &[&str]) -> Self {
        let mut digest = Sha256::new();
        for id in ids {
            digest.update(id.as_bytes());
            digest.update(b"/");
        }
        let bytes = digest.finalize();
        let word = |at: usize| {
            let mut half = [0; 8];
            half.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(half)
        };
        Self([word(0), word(8)])
    }
}

impl fmt::Debug for Stem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.0[0], self.0[1])
    }
}

/// An account's identity. Because it holds the cycle's label, a reset is a new account (D6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AccountKey {
    /// Which licence, user, key, term or profile.
    pub stem: Stem,
    /// The cycle, or [`Label::NONE`] for what belongs to a term (its id is in the stem).
    pub period: Label,
    /// What runs out.
    pub kind: AccountKind,
}

impl AccountKey {
    /// Stem, period and kind, as other engines than the embedded one store it.
    pub fn to_bytes(self) -> [u8; 21] {
        let mut bytes = [0; 21];
        bytes[..8].copy_from_slice(&self.stem.0[0].to_le_bytes());
        bytes[8..16].copy_from_slice(&self.stem.0[1].to_le_bytes());
        bytes[16..20].copy_from_slice(&self.period.digits().to_be_bytes());
        bytes[20] = self.kind as u8;
        bytes
    }

    /// From [`AccountKey::to_bytes`]; `None` for a kind that there is not.
    pub fn from_bytes(bytes: &[u8; 21]) -> Option<Self> {
        let (words, rest) = bytes.as_chunks();
        let stem = Stem([0, 1].map(|word| u64::from_le_bytes(words[word])));
        let [a, b, c, d, kind] = *rest else { return None };
        let kind = AccountKind::ALL.into_iter().find(|known| *known as u8 == kind)?;
        Some(Self { stem, period: Label::from_digits(u32::from_be_bytes([a, b, c, d])), kind })
    }

    /// True for an account that is gone where every cycle before the label `below` is closed.
    pub fn is_closed(&self, below: Label) -> bool {
        self.period != Label::NONE && self.period < below && self.kind.ends_with_its_cycle()
    }
}

/// The ids an account is named by, borrowed from the directory's snapshot. Only an account that
/// is opened prints its name.
#[derive(Clone, Copy, Debug)]
pub struct AccountName<'a> {
    /// The org.
    pub org: &'a str,
    /// What runs out.
    pub kind: AccountKind,
    /// The ids behind the kind: licence and bucket, user, term, …
    pub ids: [&'a str; 2],
    /// The cycle, or [`Label::NONE`].
    pub period: Label,
}

impl<'a> AccountName<'a> {
    /// Takes the name of the account with this key apart. An id may look like a cycle, so only the
    /// key tells whether the last part is one.
    pub fn read(text: &'a str, key: &AccountKey) -> Option<Self> {
        let AccountKey { kind, period, .. } = *key;
        let (org, rest) = text.split_once('/')?;
        let mut rest = rest.strip_prefix(kind.word())?.strip_prefix('/')?;
        if period != Label::NONE {
            rest = rest.strip_suffix(&*format!("/{period}"))?;
        }
        let (first, second) = rest.split_once('/').unwrap_or((rest, ""));
        Some(Self { org, kind, ids: [first, second], period })
    }
}

impl fmt::Display for AccountName<'_> {
    /// `acme/licence/lic-1/alice/2026-11-01`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.kind.word())?;
        for id in self.ids.iter().filter(|id| !id.is_empty()) {
            write!(f, "/{id}")?;
        }
        if self.period != Label::NONE {
            write!(f, "/{}", self.period)?;
        }
        Ok(())
    }
}

/// Which state of the directory a grant comes from. A restored or copied directory has a higher
/// epoch, so that its numbers never lose against the old one's (D42).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Version {
    /// The directory's epoch.
    pub epoch: u32,
    /// The org's version within the epoch.
    pub number: u64,
}

/// What the directory grants an account. The books keep the newest by version (D42).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Millionths of the account's unit.
    pub base: u64,
    /// Where it comes from.
    pub version: Version,
}

/// An account as a post names it.
#[derive(Clone, Copy, Debug)]
pub struct Account<'a> {
    /// Its identity.
    pub key: AccountKey,
    /// Its name, printed only when it is opened.
    pub name: AccountName<'a>,
    /// What the directory grants it now.
    pub grant: Grant,
}

/// What the books know of an account, in millionths of its unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// From the directory.
    pub base: u64,
    /// The sum of adjustments.
    pub adjusted: i64,
    /// Σ open legs.
    pub held: u64,
    /// Σ captured legs.
    pub captured: u64,
}

impl Balance {
    /// base + adjusted, zero at least. Never more than an amount can be, although the directory
    /// may grant more to an account that was already adjusted (f57).
    pub fn granted(&self) -> u64 {
        self.base.saturating_add_signed(self.adjusted).min(MAX_MICRO)
    }

    /// base + adjusted − held − captured; negative for an account in the red.
    pub fn remaining(&self) -> i128 {
        i128::from(self.base) + i128::from(self.adjusted)
            - i128::from(self.held)
            - i128::from(self.captured)
    }

    /// remaining, zero at least: what can still be taken. Never more than an amount can be, which
    /// is more than any charge takes (f57).
    pub fn available(&self) -> u64 {
        u64::try_from(self.remaining().max(0)).unwrap_or(MAX_MICRO).min(MAX_MICRO)
    }
}

/// What a leg stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum LegKind {
    /// Seat credits.
    Licence,
    /// Operations of the pool.
    Pool,
    /// Operations past the pool.
    Overage,
    /// What nobody could pay (D31): credits of a user's overdraft, or Operations a principal
    /// takes from the pool beyond its grant.
    Overdraft,
    /// Counts against a limit and pays nothing (D17).
    Limit,
    /// Counts against the cap of the leg right before it and pays nothing (D26).
    Cap,
}

impl LegKind {
    /// All of them, in their order.
    pub const ALL: [Self; 6] =
        [Self::Licence, Self::Pool, Self::Overage, Self::Overdraft, Self::Limit, Self::Cap];

    /// The word in charge documents.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Licence => "licence",
            Self::Pool => "pool",
            Self::Overage => "overage",
            Self::Overdraft => "overdraft",
            Self::Limit => "limit",
            Self::Cap => "cap",
        }
    }

    /// True for what pays; limits and caps only count.
    pub const fn pays(self) -> bool {
        !matches!(self, Self::Limit | Self::Cap)
    }
}

/// An index into the accounts that travel with a post.
pub type Slot = u8;

/// One account of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payer {
    /// Which account.
    pub slot: Slot,
    /// What its leg stands for.
    pub kind: LegKind,
    /// A second account that must also have what is taken here, and loses the same amount.
    pub cap: Option<Slot>,
}

/// Accounts of one unit in burn order, and what to take from them together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Taken greedily in order, in millionths.
    pub take: u64,
    /// When given: nothing happens unless Σ available, each no more than its cap, is below this.
    pub below: Option<u64>,
    /// When true: nothing happens if one of the accounts is in the red.
    pub solvent: bool,
    /// When true: taken from the first account whatever it has (D31, late captures).
    pub forced: bool,
    /// The accounts.
    pub payers: SmallVec<[Payer; 4]>,
}

impl Source {
    /// Takes `take` from `payers`, in order.
    pub fn take(take: u64, payers: impl IntoIterator<Item = Payer>) -> Self {
        Self {
            take,
            below: None,
            solvent: false,
            forced: false,
            payers: payers.into_iter().collect(),
        }
    }
}

/// What the books are asked to do: all of it or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Post {
    /// Sources, payers and limits alike.
    pub sources: SmallVec<[Source; 4]>,
    /// Accounts whose balance is only wanted back.
    pub look: SmallVec<[Slot; 4]>,
}

/// What one account gave to a post.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Which account.
    pub slot: Slot,
    /// What it stands for.
    pub kind: LegKind,
    /// Millionths of the account's unit.
    pub amount: u64,
}

/// What the legs of one kind come to.
pub fn sum_of(legs: &[Taken], kind: LegKind) -> u64 {
    legs.iter().filter(|leg| leg.kind == kind).map(|leg| leg.amount).sum()
}

/// The legs of a hold, in the order of its post.
pub type Legs = SmallVec<[Taken; 4]>;

/// Balances by slot: those of the accounts a post named, all read in the same step. On the heap,
/// because a view passes through many hands and its balances are long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View(Vec<Option<Balance>>);

impl View {
    /// A view of `slots` accounts, none of them known yet.
    pub fn new(slots: usize) -> Self {
        Self(vec![None; slots])
    }

    /// Records the balance of a slot.
    pub fn set(&mut self, slot: Slot, balance: Balance) {
        if let Some(entry) = self.0.get_mut(usize::from(slot)) {
            *entry = Some(balance);
        }
    }

    /// The balance of a slot to be changed, if the post named it.
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut Balance> {
        self.0.get_mut(usize::from(slot)).and_then(Option::as_mut)
    }

    /// The balance of a slot, if the post named it.
    pub fn get(&self, slot: Slot) -> Option<Balance> {
        self.0.get(usize::from(slot)).copied().flatten()
    }
}

#[cfg(test)]
mod tests;
