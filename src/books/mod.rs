//! The books: every balance, and every open hold.
//!
//! The contract of [`Books`] is the same for every engine, and one suite of tests holds them to
//! it. An engine is a dumb, atomic ledger: it knows accounts, posts and legs, and nothing of
//! seats, profiles, prices or overage. All policy is in [`crate::core::waterfall`].

pub mod carry;
pub mod embedded;
pub mod engine;
pub mod fold;
pub mod journal;
pub mod prune;
pub mod recover;
pub mod redis;
pub mod repair;
pub mod snapshot;

use std::future::{Future, ready};
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

use crate::core::account::{Account, AccountKey, Balance, Legs, Post, View};
use crate::core::amount::Credits;
pub use crate::core::charge::InDoubt;
use crate::core::charge::{Flags, HoldMemo, OutcomeMemo, State};
use crate::core::ids::{ChargeId, scope_of};
pub use crate::core::record::{Known, Once};
pub use engine::{Engine, Session};

/// What an acknowledged change survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// `kill -9`.
    #[default]
    Process,
    /// A power failure: nothing is acknowledged before the disk has it (group commit).
    Power,
}

/// What a hold asks for.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// The new charge.
    pub charge: ChargeId,
    /// The accounts that the post's slots mean.
    pub accounts: &'a [Account<'a>],
    /// What to take.
    pub post: &'a Post,
    /// The instant of the request.
    pub now: Timestamp,
    /// What becomes of the hold if its owner disappears (D36).
    pub in_doubt: InDoubt,
    /// The encoded [`crate::core::charge::HoldMemo`]; opaque to the books.
    pub memo: &'a [u8],
    /// What there is beyond a plain hold.
    pub lasting: Option<Lasting<'a>>,
}

/// What a hold asks for that is more than a plain one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lasting<'a> {
    /// When it ends by itself, as its `in_doubt` says. Until then it outlives its process; a hold
    /// without it is resolved at the next start.
    pub expires: Option<Timestamp>,
    /// The key under which it is made once (D35): recorded with the hold, in the same step.
    pub once: Option<Once>,
    /// The encoded [`crate::core::note::HoldNote`]; opaque to the books.
    pub note: &'a [u8],
}

/// What became of a post.
#[derive(Clone, Debug)]
pub enum Posted {
    /// It is done and recorded: the legs it took, and balances after it.
    Done(Legs, View),
    /// Nothing was changed: some source could not give what was asked. Balances of every account
    /// the post named, all read in the same step.
    Short(View),
    /// Nothing was changed: a charge that is open or captured has the key.
    Known(KnownCharge),
}

/// The charge that a key belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownCharge {
    /// The charge.
    pub charge: ChargeId,
    /// What its request was.
    pub request: [u8; 16],
    /// False while it is open.
    pub captured: bool,
}

/// How a charge is resolved.
#[derive(Clone, Debug)]
pub struct Resolution<'a> {
    /// Captured, voided or expired.
    pub state: State,
    /// How much of each leg is captured, by the order in which the hold took them; missing
    /// entries are zero. The rest returns to its accounts.
    pub keep: &'a [u64],
    /// What is taken and captured beyond the hold, in the same step (D31). Its slots mean
    /// `accounts`.
    pub extra: Option<(&'a [Account<'a>], &'a Post)>,
    /// The instant of the resolution.
    pub now: Timestamp,
    /// What the ledger should remember of it.
    pub memo: &'a OutcomeMemo,
    /// The encoded [`crate::core::note::OutcomeNote`], or nothing.
    pub note: &'a [u8],
    /// The HTTP message that answered, where it is kept for who asks again; else empty.
    pub answer: &'a [u8],
    /// What is done where `extra` is short and whoever asked is told already that it is captured
    /// ([`Resolved::Recorded`]), so that nobody plans again. It cannot be short itself.
    pub last: Option<&'a Resolution<'a>>,
}

impl<'a> Resolution<'a> {
    /// A resolution that takes nothing beyond the hold, and of which there is no more to know.
    pub fn plain(state: State, keep: &'a [u64], now: Timestamp, memo: &'a OutcomeMemo) -> Self {
        Self { state, keep, extra: None, now, memo, note: &[], answer: &[], last: None }
    }
}

/// What more is taken for an open charge, or known of it.
#[derive(Clone, Copy, Debug)]
pub struct Amendment<'a> {
    /// What is taken beyond the hold. Its slots mean `accounts`. Comes with what is known and noted
    /// of it: the hold's memo has the price of what was taken at first.
    pub extra: Option<(&'a [Account<'a>], &'a Post)>,
    /// What resolves it from now on if its owner disappears. Its `keep` counts legs as they are
    /// with this amendment.
    pub known: Option<&'a Known>,
    /// When it ends by itself from now on.
    pub expires: Option<Timestamp>,
    /// Names under which others than its owner [find](Books::named) it as long as it is open, and
    /// which say that somebody is to ask a last time before it ends by itself. A name for which
    /// there is no room is not given.
    pub names: &'a [Key],
    /// What replaces the hold's note.
    pub note: Option<&'a [u8]>,
    /// The HTTP message that answered, where it is kept; else empty.
    pub answer: &'a [u8],
    /// The instant of the amendment.
    pub now: Timestamp,
}

impl Amendment<'_> {
    /// One that changes nothing.
    pub fn nothing(now: Timestamp) -> Self {
        Self { extra: None, known: None, expires: None, names: &[], note: None, answer: &[], now }
    }
}

/// What became of an amendment.
#[derive(Clone, Debug)]
pub enum Amended {
    /// It is done and recorded: what the extra post took, and the balances after it of all the
    /// accounts the hold named (by the hold's slots).
    Done(Legs, View),
    /// The extra post could not be done, so nothing was: balances of its accounts.
    Short(View),
    /// The charge had been resolved before; nothing was changed.
    Already(State),
    /// There is no such open charge.
    Unknown,
}

/// What became of a resolution.
#[derive(Clone, Debug)]
pub enum Resolved {
    /// It is done and recorded: what the extra post took, and the balances after it of all the
    /// accounts the hold named (by the hold's slots).
    Done(Legs, View),
    /// The extra post could not be done, so nothing was: balances of its accounts.
    Short(View),
    /// The charge had been resolved before; nothing was changed.
    Already(State),
    /// There is no such open charge.
    Unknown,
    /// The books are silent, and this gateway's disk has it: it is done when they are heard of again,
    /// whatever happens to this process. Only of a capture, and only where books are elsewhere.
    Recorded,
}

/// What is done or found once in an org, beside the charges that have a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Whose it is, and what for: it ends in the home of the org.
    pub scope: u64,
    /// Which of them.
    pub key: [u8; 16],
}

/// What a [`Key`] is for: those of one org and kind are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum KeyOf {
    /// An adjustment, by its id.
    Adjustment = 1,
    /// A part of a refund, by its charge and leg.
    Refund = 2,
    /// A job, by its backend and path.
    Job = 3,
}

impl Key {
    /// A key of an org.
    pub fn new(org: &str, of: KeyOf, key: [u8; 16]) -> Self {
        // The keys of its charges have the scope as it is.
        Self { scope: scope_of(org) ^ (of as u64) << 61, key }
    }
}

/// A change of an account by an admin.
#[derive(Clone, Debug)]
pub struct Adjustment<'a> {
    /// The key under which it is made once, for [`KEPT_KEYS`].
    pub key: Option<Key>,
    /// The account.
    pub account: &'a Account<'a>,
    /// Millionths of its unit, up or down.
    pub delta: i64,
    /// The instant of the change.
    pub now: Timestamp,
    /// Why, and by whom; kept in the record.
    pub memo: &'a [u8],
}

/// What became of an adjustment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adjusted {
    /// It is done and recorded: the balance after it.
    Done(Balance),
    /// The same was done under its key before, and nothing was changed: the balance now.
    Before(Balance),
}

impl Adjusted {
    /// The balance.
    pub const fn balance(self) -> Balance {
        match self {
            Self::Done(balance) | Self::Before(balance) => balance,
        }
    }
}

impl Adjustment<'_> {
    /// What it does: under one key it is always the same.
    fn content(&self) -> [u8; 16] {
        let mut digest = Sha256::new();
        digest.update(self.account.key.to_bytes());
        digest.update(self.delta.to_le_bytes());
        let digest: [u8; 32] = digest.finalize().into();
        std::array::from_fn(|at| digest[at])
    }
}

/// Why the books did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BooksError {
    /// The record could not be written. Whatever was asked is not acknowledged.
    #[error("the books cannot record: {0}")]
    Unavailable(String),
    /// The account's cycle was closed long ago, and nothing of it changes any more.
    #[error("the cycle is closed: its accounts are not kept any more")]
    Closed,
    /// More keys are remembered than there is room for.
    #[error("too many charges are remembered by their keys")]
    TooManyKeys,
    /// Something else was done under the key of an adjustment.
    #[error("another adjustment was made under this key")]
    KeyReused,
    /// An amount would leave its range, or a memo is longer than a record may be.
    #[error("an amount would leave its range")]
    Range,
}

/// An open charge, as the books hold it.
#[derive(Clone, Debug)]
pub struct OpenCharge {
    /// Its id.
    pub charge: ChargeId,
    /// When it was held.
    pub held_at: Timestamp,
    /// The hold's memo.
    pub memo: Box<[u8]>,
    /// What it took: account name, kind of leg, kind of account, millionths.
    pub legs: Vec<OpenLeg>,
    /// When it ends by itself, if it does.
    pub expires: Option<Timestamp>,
    /// The hold's note, as it was last amended.
    pub note: Box<[u8]>,
}

/// A leg of an open charge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenLeg {
    /// The account's name.
    pub account: String,
    /// What runs out there.
    pub account_kind: crate::core::account::AccountKind,
    /// What the leg stands for.
    pub kind: crate::core::account::LegKind,
    /// Millionths of the account's unit.
    pub amount: u64,
}

/// How a charge ended that its owner gave up.
#[derive(Clone, Debug)]
pub struct Abandoned {
    /// Captured or voided.
    pub state: State,
    /// The charge, of each leg as much as is captured.
    pub charge: OpenCharge,
}

/// A session with the books. Each worker has its own.
///
/// # Contract
/// - **Whole or not at all.** A post takes from its sources greedily in order if and only if for
///   every source Σ max(0, available) ≥ `take`, and Σ < `below` where given, and no account of a
///   `solvent` source is in the red; else nothing changes. A payer counts for no more than its
///   `cap` has, and sources see what those before them took. Either way every account named is
///   returned, read in the same step; accounts that are only looked at are read right after it.
/// - **Begun when called.** [`Books::resolve`] and [`Books::hold`] take effect from the call on,
///   in the order of the calls of a session; dropping the future that they return gives up the
///   answer, not the work. So a void called after a hold always meets it.
/// - **Acknowledged means recorded.** A future is ready only when the record would survive what
///   the configured durability says (`process`: `kill -9`).
/// - **Once.** A charge is resolved at most once.
/// - **One charge a key.** A hold under a key (D35) is made only while no other that is open or
///   captured has it. A key is free again when the void of its charge is recorded, or
///   [`KEPT_KEYS`] after the hold of a captured one.
/// - **One adjustment a key.** What was adjusted under a key is not done again, for [`KEPT_KEYS`]:
///   an answer that was given up may come late, and be asked for again meanwhile. An engine that
///   does nothing late remembers it only as long as its process runs, because whoever asks another
///   one can know from the records what was done.
/// - **Lasting holds** outlive their process, and end by themselves on the books' clock.
/// - **Closed cycles stay closed.** An engine may forget the accounts of cycles that are long over,
///   together with a mark below which none is opened again: whatever a post names there is empty,
///   and an adjustment is refused.
/// - **Grants.** A post carries what the directory grants its accounts. The newest by version
///   wins, and a change is recorded; an account that was never seen is opened by the post that
///   takes from it (D42, f24).
/// - **A crash loses no acknowledged change and overspends nothing**; the holds it leaves open
///   are resolved at the next start as their `in_doubt` says.
pub trait Books: Send + Sync {
    /// Takes from accounts and keeps what was taken until it is resolved. The future owns all it
    /// needs.
    fn hold(
        &self,
        ask: &Ask<'_>,
    ) -> impl Future<Output = Result<Posted, BooksError>> + Send + use<Self>;

    /// Resolves a charge: captures what is kept, returns the rest. The future owns all it needs,
    /// so that a guard's `Drop` can hand it to a task that lives on.
    fn resolve(
        &self,
        charge: ChargeId,
        resolution: &Resolution<'_>,
    ) -> impl Future<Output = Result<Resolved, BooksError>> + Send + use<Self>;

    /// Takes more for an open charge, or records what is known of it. Begun when called, like a
    /// resolution.
    fn amend(
        &self,
        charge: ChargeId,
        amendment: &Amendment<'_>,
    ) -> impl Future<Output = Result<Amended, BooksError>> + Send + use<Self>;

    /// Resolves a charge without its owner, as the next start would (D36): on the last use that was
    /// recorded, else as its hold asked for. Nothing where it is not open. Begun when called, like
    /// a resolution.
    fn abandon(
        &self,
        charge: ChargeId,
        now: Timestamp,
    ) -> impl Future<Output = Result<Option<Abandoned>, BooksError>> + Send + use<Self>;

    /// The charge that has a key.
    fn known(
        &self,
        scope: u64,
        key: &[u8; 16],
    ) -> impl Future<Output = Result<Option<KnownCharge>, BooksError>> + Send;

    /// The open charges that were given one of these names, each at least once. Books that one
    /// gateway has know none: it knows its own.
    fn named(
        &self,
        _names: &[Key],
    ) -> impl Future<Output = Result<Vec<ChargeId>, BooksError>> + Send {
        ready(Ok(Vec::new()))
    }

    /// Whether other gateways have the same books.
    fn is_shared(&self) -> bool {
        false
    }

    /// Changes what an account is granted, by an admin's word.
    fn adjust(
        &self,
        adjustment: &Adjustment<'_>,
    ) -> impl Future<Output = Result<Adjusted, BooksError>> + Send;

    /// The balances of accounts, each as if a post named it now; those never seen are shown as
    /// what they would be opened with.
    fn balances(
        &self,
        accounts: &[Account<'_>],
    ) -> impl Future<Output = Result<View, BooksError>> + Send;

    /// Whether a charge that was told to be held at an instant may still be forwarded: nobody else
    /// has resolved it meanwhile, or will in the next moments (D36).
    fn may_forward(&self, _charge: ChargeId, _held: Instant) -> bool {
        true
    }

    /// True for an account of a cycle that is closed.
    fn is_closed(&self, org: &str, key: &AccountKey) -> bool;

    /// An open charge.
    fn open_charge(
        &self,
        charge: ChargeId,
    ) -> impl Future<Output = Result<Option<OpenCharge>, BooksError>> + Send;
}

/// How long the key of a captured charge is remembered, from its hold on: longer than the longest
/// hold, which is a day (f19).
pub const KEPT_KEYS: SignedDuration = SignedDuration::from_hours(48);

/// How many keys are remembered of one scope, and of all together: some 130 bytes each.
const MAX_SCOPE: u32 = 250_000;
const MAX_KEYS: usize = 1_000_000;
/// How many more keys than charges may have are remembered of adjustments and jobs: those of charges
/// must not keep an admin from what is to be put right.
const MORE_KEYS: usize = 100_000;
/// How many open charges have one name.
const MAX_NAMED: usize = 32;

/// Refuses a memo, note or answer that could make its record longer than the journal reads back.
fn bounded(memo: &[u8]) -> Result<&[u8], BooksError> {
    if memo.len() > journal::MAX_RECORD / 4 { Err(BooksError::Range) } else { Ok(memo) }
}

/// Keys of captured charges that were held before it are forgotten.
fn forgotten_before(now: i64) -> i64 {
    now.saturating_sub(KEPT_KEYS.as_micros() as i64)
}

/// How a hold of which no use is known is resolved without its owner (D36): as its route says.
fn unowned(in_doubt: InDoubt, memo: &[u8]) -> (State, OutcomeMemo) {
    let mut outcome = OutcomeMemo { flags: Flags::IN_DOUBT, ..OutcomeMemo::default() };
    match in_doubt {
        InDoubt::Void => (State::Voided, outcome),
        InDoubt::Capture => {
            let hold = postcard::from_bytes::<HoldMemo<'_>>(memo);
            outcome.cost = hold.map_or(Credits::ZERO, |hold| hold.price.cost);
            (State::Captured, outcome)
        }
    }
}
