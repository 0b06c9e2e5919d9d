//! The directory as the hot path reads it: immutable, in memory, one `Arc` an org and a user.
//!
//! [`Live`] holds the current [`Snapshot`]; a change builds a new one that shares whatever it
//! did not touch, and swaps it in, so a request sees one state of the directory from beginning
//! to end and the next request sees the change.

pub mod stems;
mod user;
mod users;

pub use user::{Licence, Shared, Standing, Terms, User};

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::rows::Details;
use super::token::Tokens;
use crate::core::account::{
    Account, AccountKey, AccountKind, AccountName, Grant, Slot, Stem, Version,
};
use crate::core::amount::{Credits, Operations};
use crate::core::cycle::{Cycle, Label, Schedule, Term};
use crate::core::entitlement::{Access, Overage};
use crate::core::ids::Id;
use crate::core::price::RateCard;
use crate::core::refusal::{Code, Missing, Refusal};
use crate::core::waterfall::{PoolAccess, PoolSide, Position, Split, Tally};

pub use users::Users;

/// The SHA-256 of a key's secret. Keys are found by it, never by the secret (f79).
pub type KeyHash = [u8; 32];

/// Pool access, or what is missing for it; shared by all who stand alike.
pub type Decision = Result<Arc<Access>, Arc<[Missing]>>;

/// The snapshot in force; swapped whole.
#[derive(Debug, Default)]
pub struct Live {
    snapshot: ArcSwap<Snapshot>,
    /// Of a directory that others change too: when it was last known to be the newest, and whether
    /// it could be asked since.
    checked: Mutex<Option<(Instant, bool)>>,
}

impl Live {
    /// Starts with a snapshot.
    pub fn new(snapshot: Snapshot) -> Self {
        Self { snapshot: ArcSwap::from_pointee(snapshot), checked: Mutex::default() }
    }

    /// The snapshot in force.
    pub fn load(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Puts another snapshot in force, from the next request on.
    pub fn swap(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
    }

    /// Notes that the snapshot was the newest when it was `asked` for, or that nobody answered.
    pub fn checked(&self, asked: Option<Instant>) {
        let mut checked = self.checked.lock();
        match (asked, &mut *checked) {
            (Some(asked), _) => *checked = Some((asked, true)),
            (None, Some((_, answered))) => *answered = false,
            (None, None) => {}
        }
    }

    /// How long ago the snapshot was last known to be the newest: no time where nobody else can
    /// change the directory.
    pub fn age(&self) -> Duration {
        self.checked.lock().map_or(Duration::ZERO, |(at, _)| at.elapsed())
    }

    /// Whether the directory did not answer when it was last asked.
    pub fn away(&self) -> bool {
        self.checked.lock().is_some_and(|(_, answered)| !answered)
    }
}

/// Every org and every key.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Orgs by id.
    pub orgs: HashMap<Id, Arc<Org>>,
    /// Live keys by the hash of their secret; a key in rotation has two.
    pub keys: HashMap<KeyHash, Arc<Key>>,
    /// Administrators' tokens.
    pub tokens: Tokens,
}

/// How an org is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// What nobody can pay is refused.
    #[default]
    Enforce,
    /// Nothing is refused; decisions are only recorded (D28).
    Observe,
}

/// An org as the hot path reads it.
#[derive(Debug)]
pub struct Org {
    /// Its id.
    pub id: Id,
    /// Where its accounts and charges are at home.
    pub home: u16,
    /// Which state of the directory this is.
    pub version: Version,
    /// Enforce or observe.
    pub mode: Mode,
    /// What happens to a charge that the seat can pay in part.
    pub split: Split,
    /// The org's own overage policy: the base of its overage accounts.
    pub overage: Overage,
    /// Anchor and zone over time.
    pub schedule: Schedule,
    /// Contract periods of the pool, by start.
    pub terms: Vec<PoolTerm>,
    /// Checked rate cards; by effective time, those without one first.
    pub cards: Vec<Arc<RateCard>>,
    /// Users by id.
    pub users: Users,
    /// Overage caps of profiles that are stricter than the org, by profile.
    pub profile_caps: HashMap<Id, ProfileCap>,
    /// The cycle and term of the last request; almost always also that of the next.
    pub now: ArcSwapOption<Moment>,
    /// What administrators see and changes start from: plans, groups, profiles, keys.
    pub details: Arc<Details>,
}

/// A term and what its pool has.
#[derive(Clone, Debug)]
pub struct PoolTerm {
    /// When it applies.
    pub term: Term,
    /// The pool's Operations.
    pub pool: Operations,
    /// Identity of the pool's account.
    pub pool_stem: Stem,
    /// Identity of the org's overage account.
    pub overage_stem: Stem,
}

/// A profile's own overage cap (D26).
#[derive(Clone, Debug)]
pub struct ProfileCap {
    /// Operations per term.
    pub cap: Operations,
    /// Identities of its account by term, in the order of [`Org::terms`].
    pub stems: Vec<Stem>,
}

/// What the clock says about an org: computed once per cycle and term.
#[derive(Debug)]
pub struct Moment {
    /// The cycle.
    pub cycle: Cycle,
    /// The cycle's end as RFC 3339, for receipts.
    pub resets: String,
    /// Index of the active term, if there is one.
    pub term: Option<usize>,
    /// From when, and until when, all of this holds: the nearest edges of cycle and terms.
    pub since: Timestamp,
    /// See `since`.
    pub until: Timestamp,
}

/// What a key may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// Acts for users whom it names in `Tollgate-User`.
    Service(ActsFor),
    /// Is one user.
    User(Id),
    /// Has no seat: draws on the pool (D18).
    Principal(Decision),
}

/// For whom a service key may act.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActsFor {
    /// Every user of the org.
    Everyone,
    /// These users, and the members of these groups.
    Some {
        /// Users by id.
        users: Vec<Id>,
        /// Groups by id.
        groups: Vec<Id>,
    },
}

/// A key.
#[derive(Debug)]
pub struct Key {
    /// Its id, unique in the org.
    pub id: Id,
    /// The org it belongs to.
    pub org: Id,
    /// What it may do.
    pub kind: KeyKind,
    /// The hash it is found by, compared once more in constant time.
    pub hash: KeyHash,
    /// From when it is refused; `None` for never.
    pub expires: Option<Timestamp>,
    /// Identity of a principal's draw account.
    pub stem: Stem,
}

/// Who pays: a user's seat and what stands behind it, or a principal.
#[derive(Clone, Copy, Debug)]
pub enum Payer<'a> {
    /// A user.
    User(&'a User),
    /// A machine without a seat.
    Principal(&'a Key, &'a Decision),
}

impl<'a> Payer<'a> {
    /// Pool access, or what is missing.
    pub fn access(&self) -> Result<&'a Access, &'a [Missing]> {
        let access = match self {
            Payer::User(user) => &user.standing.access,
            Payer::Principal(_, access) => access,
        };
        match access {
            Ok(access) => Ok(access),
            Err(missing) => Err(missing),
        }
    }
}

impl Org {
    /// Whether a user is a member of a profile, directly or through a group.
    pub fn is_member(&self, user: &User, profile: &Id) -> bool {
        let standing = &user.standing;
        let in_one_of = |groups: &[Id]| groups.iter().any(|id| standing.groups.contains(id));
        let through = |row: &super::rows::Profile| in_one_of(&row.groups);
        standing.profiles.contains(profile)
            || self.details.profiles.get(profile).is_some_and(|row| through(row))
    }

    /// The cycle and term of `now`, from the cache unless one of them has ended.
    pub fn moment(&self, now: Timestamp) -> Arc<Moment> {
        if let Some(moment) = &*self.now.load()
            && moment.since <= now
            && now < moment.until
        {
            return Arc::clone(moment);
        }
        let moment = Arc::new(self.compute_moment(now));
        self.now.store(Some(Arc::clone(&moment)));
        moment
    }

    /// The cycle and term of another instant than now, without a place in the cache.
    pub fn moment_at(&self, at: Timestamp) -> Arc<Moment> {
        let cached = self.now.load();
        match &*cached {
            Some(moment) if moment.since <= at && at < moment.until => Arc::clone(moment),
            _ => Arc::new(self.compute_moment(at)),
        }
    }

    fn compute_moment(&self, now: Timestamp) -> Moment {
        let cycle = self.schedule.cycle_at(now);
        let term = self.terms.iter().position(|entry| entry.term.contains(now));
        let edges = || self.terms.iter().flat_map(|entry| [entry.term.start, entry.term.end]);
        let since = edges().filter(|edge| *edge <= now).fold(cycle.start, Timestamp::max);
        let until = edges().filter(|edge| *edge > now).fold(cycle.end, Timestamp::min);
        Moment { cycle, resets: cycle.end.to_string(), term, since, until }
    }

    /// The rate card for a caller: the newest in force of the granting profile's offer, else of
    /// those without an offer (D20, D23).
    pub fn card(&self, access: Option<&Access>, now: Timestamp) -> Option<&Arc<RateCard>> {
        let newest = |offer: Option<&Id>| {
            self.cards.iter().rev().find(|card| {
                let file = card.file();
                file.offer.as_ref() == offer && file.effective.is_none_or(|from| from <= now)
            })
        };
        access.and_then(|access| newest(Some(&access.offer))).or_else(|| newest(None))
    }

    /// The same for whom nothing has a price without one.
    ///
    /// # Errors
    /// `unpriced`.
    pub fn card_for(&self, payer: Payer<'_>, now: Timestamp) -> Result<&Arc<RateCard>, Refusal> {
        let none = || Refusal::new(Code::Unpriced, "no rate card of the org is in force");
        self.card(payer.access().ok(), now).ok_or_else(none)
    }

    /// Everything that can pay for a caller at `now`.
    pub fn position<'a>(
        &'a self,
        payer: Payer<'a>,
        moment: &Moment,
        now: Timestamp,
    ) -> Position<'a> {
        let cycle = moment.cycle;
        let mut accounts: SmallVec<[Account<'a>; 8]> = SmallVec::new();
        let mut overdraft = None;
        let mut sharing: SmallVec<[(Slot, &Licence, &Shared); 1]> = SmallVec::new();
        if let Payer::User(user) = payer {
            let pays = |licence: &&Licence| licence.pays_at(now);
            // A seat of more than a hundred licences would not fit the slots beside the pool.
            for licence in user.licences.iter().filter(pays).take(MAX_LICENCES) {
                let mut own = (user.id(), licence.stem);
                if let Some(shared) = licence.shared_at(now) {
                    own = (shared.bucket.as_str(), shared.stem);
                    sharing.push((accounts.len() as Slot, licence, shared));
                }
                let (bucket, stem) = own;
                let ids = [&*licence.id, bucket];
                let kind = AccountKind::Licence;
                let credits = licence.terms.credits;
                accounts.push(self.account(kind, stem, ids, cycle.label, credits));
            }
            overdraft = Some(accounts.len() as Slot);
            let ids = [user.id(), ""];
            accounts.push(self.account(AccountKind::Overdraft, user.stem, ids, cycle.label, 0));
        }
        let licences = overdraft.unwrap_or(0);
        let pool = match (payer.access(), moment.term) {
            (Err(missing), _) => PoolAccess::None(missing.to_vec()),
            (Ok(_), None) => PoolAccess::NoTerm,
            (Ok(access), Some(term)) => {
                PoolAccess::Open(self.pool_side(payer, access, term, cycle.label, &mut accounts))
            }
        };
        let mut tallies = SmallVec::new();
        for (slot, licence, shared) in sharing {
            self.tally(slot, licence, shared, &mut accounts, &mut tallies);
        }
        Position { accounts, licences, tallies, overdraft, pool, split: self.split, cycle }
    }

    /// The accounts that tell who took what from a licence's bucket.
    fn tally<'a>(
        &'a self,
        slot: Slot,
        licence: &'a Licence,
        shared: &'a Shared,
        accounts: &mut SmallVec<[Account<'a>; 8]>,
        tallies: &mut SmallVec<[Tally; 1]>,
    ) {
        let period = accounts[usize::from(slot)].key.period;
        // The holder's own bucket is the one that the licence's stem names.
        let own = shared.stem != licence.stem;
        for (taker, stem) in &shared.takers {
            // Slots are few. What does not fit counts as the bucket's owner's.
            if accounts.len() > usize::from(Slot::MAX) {
                return;
            }
            let ids = [&*licence.id, taker.as_str()];
            let base = Credits::MAX.micro();
            tallies.push(Tally { licence: slot, account: accounts.len() as Slot, own });
            accounts.push(self.account(AccountKind::Tally, *stem, ids, period, base));
        }
    }

    /// The org's pool and overage of the moment's term, if there is a term.
    pub fn pool_accounts(&self, moment: &Moment) -> Option<[Account<'_>; 2]> {
        moment.term.map(|index| self.term_accounts(&self.terms[index]))
    }

    /// The pool of a term, and what may be used past it.
    fn term_accounts<'a>(&'a self, term: &'a PoolTerm) -> [Account<'a>; 2] {
        let ids = [term.term.id.as_str(), ""];
        let account = |kind, stem, base| self.account(kind, stem, ids, Label::NONE, base);
        [
            account(AccountKind::Pool, term.pool_stem, term.pool.micro()),
            account(AccountKind::Overage, term.overage_stem, self.overage.cap().micro()),
        ]
    }

    fn pool_side<'a>(
        &'a self,
        payer: Payer<'a>,
        access: &'a Access,
        index: usize,
        cycle: Label,
        accounts: &mut SmallVec<[Account<'a>; 8]>,
    ) -> PoolSide {
        let term = &self.terms[index];
        let id = term.term.id.as_str();
        let mut push = |account: Account<'a>| {
            accounts.push(account);
            (accounts.len() - 1) as Slot
        };
        let [pool, overage] = self.term_accounts(term);
        let pool = push(pool);
        let (stem, who) = match payer {
            Payer::User(user) => (user.stem, ["user", user.id()]),
            Payer::Principal(key, _) => (key.stem, ["key", key.id.as_str()]),
        };
        let limit = access.limit.as_ref().map_or(Operations::MAX, |limit| limit.limit).micro();
        let draw = push(self.account(AccountKind::Draw, stem, who, cycle, limit));
        let bills = !access.overage.cap().is_zero();
        let overage = bills.then(|| push(overage));
        let cap = self.profile_caps.get(&access.profile).filter(|_| bills && access.profile_cap);
        let profile_cap = cap.map(|cap| {
            let ids = [id, access.profile.as_str()];
            let kind = AccountKind::Overage;
            push(self.account(kind, cap.stems[index], ids, Label::NONE, cap.cap.micro()))
        });
        PoolSide {
            pool,
            overage,
            profile_cap,
            draw,
            policy: access.overage,
            limit: access.limit.clone(),
            profile: access.profile.clone(),
        }
    }

    fn account<'a>(
        &'a self,
        kind: AccountKind,
        stem: Stem,
        ids: [&'a str; 2],
        period: Label,
        base: u64,
    ) -> Account<'a> {
        Account {
            key: AccountKey { stem, period, kind },
            name: AccountName { org: self.id.as_str(), kind, ids, period },
            grant: Grant { base, version: self.version },
        }
    }
}

/// The most licences of one seat that are asked to pay.
pub const MAX_LICENCES: usize = 100;
