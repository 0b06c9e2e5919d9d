//! The engine behind a gateway, whichever it is: who asks the books need not know.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use tokio_util::either::Either;

use super::redis::{Engine as InRedis, OpenError, Session as RedisSession};
use super::{
    Abandoned, Adjusted, Adjustment, Amended, Amendment, Ask, Books, BooksError, Key, KnownCharge,
    OpenCharge, Posted, Resolution, Resolved, embedded,
};
use crate::core::account::{Account, AccountKey, AccountKind, Balance, View};
use crate::core::charge::State;
use crate::core::cycle::Label;
use crate::core::ids::ChargeId;

/// The engine of a gateway. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Engine {
    /// In memory, with a journal.
    Embedded(Arc<embedded::Engine>),
    /// In Redis.
    Redis(Arc<InRedis>),
}

/// A session with it.
#[derive(Clone)]
pub enum Session {
    /// In memory, with a journal.
    Embedded(embedded::Session),
    /// In Redis.
    Redis(RedisSession),
}

impl Engine {
    /// A new session. Each worker has one.
    pub fn session(&self) -> Session {
        match self {
            Self::Embedded(engine) => Session::Embedded(engine.session()),
            Self::Redis(engine) => Session::Redis(engine.session()),
        }
    }

    /// The engine in memory, for what only that has: files.
    pub fn embedded(&self) -> Option<&Arc<embedded::Engine>> {
        match self {
            Self::Embedded(engine) => Some(engine),
            Self::Redis(_) => None,
        }
    }

    /// Every open hold, in no order.
    ///
    /// # Errors
    /// [`BooksError::Unavailable`].
    pub async fn list_open(&self) -> Result<Vec<OpenCharge>, BooksError> {
        match self {
            Self::Embedded(engine) => Ok(engine.list_open()),
            Self::Redis(engine) => engine.list_open().await.map_err(unavailable),
        }
    }

    /// The open holds that an earlier process left: in Redis, those of which no gateway is there.
    ///
    /// # Errors
    /// [`BooksError::Unavailable`].
    pub async fn left_open(&self) -> Result<Vec<OpenCharge>, BooksError> {
        match self {
            Self::Embedded(engine) => Ok(engine.list_open()),
            Self::Redis(engine) => engine.orphans().await.map_err(unavailable),
        }
    }

    /// Ends the holds whose time is over, and those whose owners are gone, as their records say
    /// (D34, D36), a bounded number at once. A hold with names that this gateway does not look after
    /// has some time more, where others may. Returns how each hold ended that did, and why others
    /// did not, where that could not be recorded.
    pub async fn expire(
        &self,
        now: Timestamp,
        looks_after: impl Fn(ChargeId) -> bool + Send,
    ) -> (Vec<(OpenCharge, State)>, Option<BooksError>) {
        match self {
            Self::Embedded(engine) => match engine.expire(now) {
                Ok(ended) => (ended, None),
                Err(error) => (Vec::new(), Some(error)),
            },
            Self::Redis(engine) => {
                let (mut due, absent) =
                    (engine.expire_but(now, looks_after).await, engine.resolve_absent(now).await);
                due.ended.extend(absent.ended);
                (due.ended, due.failed.or(absent.failed).map(unavailable))
            }
        }
    }

    /// How many holds are open, and since when the oldest is; in Redis as of the last look.
    pub fn open_holds(&self) -> (usize, Option<Timestamp>) {
        match self {
            Self::Embedded(engine) => engine.open_holds(),
            Self::Redis(engine) => engine.seen().open_holds(),
        }
    }

    /// How many holds of this gateway's last life were resolved at the start: captured, voided.
    pub fn in_doubt(&self) -> [usize; 2] {
        match self {
            Self::Embedded(engine) => {
                let found = engine.recovery();
                [found.captured, found.voided]
            }
            Self::Redis(engine) => engine.seen().in_doubt(),
        }
    }

    /// An account's balance; in Redis as of the last look, where it was one of those looked at.
    pub fn balance(&self, account: &Account<'_>) -> Option<Balance> {
        match self {
            Self::Embedded(engine) => Some(engine.balance(account)),
            Self::Redis(engine) => engine.seen().balance(&account.key),
        }
    }

    /// What users owe, by org and cycle, in no order; in Redis as of the last look. In memory it looks
    /// at every account, one at a time.
    pub fn for_each_owed(&self, mut see: impl FnMut(&str, Label, u64)) {
        match self {
            Self::Embedded(engine) => engine.for_each_balance(|key, name, balance| {
                if key.kind == AccountKind::Overdraft && balance.remaining() < 0 {
                    let org = name.split('/').next().unwrap_or_default();
                    let owed = u64::try_from(-balance.remaining()).unwrap_or(u64::MAX);
                    see(org, key.period, owed);
                }
            }),
            Self::Redis(engine) => {
                let owed = engine.seen().owed();
                owed.iter().for_each(|owed| see(&owed.org, owed.period, owed.amount));
            }
        }
    }

    /// How many batches this gateway has done again that Redis had lost; `None` where that cannot be.
    pub fn redone(&self) -> Option<u64> {
        match self {
            Self::Embedded(_) => None,
            Self::Redis(engine) => Some(engine.seen().redone()),
        }
    }

    /// True when nothing can be recorded.
    pub fn has_failed(&self) -> bool {
        match self {
            Self::Embedded(engine) => engine.has_failed(),
            Self::Redis(engine) => engine.seen().has_failed(),
        }
    }

    /// Waits until the books fail for good, and says why; those in Redis never do.
    pub fn failed(&self) -> impl Future<Output = String> + Send + use<> {
        match self {
            Self::Embedded(engine) => Either::Left(engine.failed()),
            Self::Redis(_) => Either::Right(std::future::pending()),
        }
    }

    /// Waits until what sessions have asked is done in books that are elsewhere, for a while: nothing is
    /// asked of them behind this.
    pub async fn finish(&self) {
        if let Self::Redis(engine) = self {
            engine.close().await;
        }
    }

    /// Records what is not recorded yet.
    ///
    /// # Errors
    /// Says why that failed.
    pub fn close(&self) -> Result<(), String> {
        let Self::Embedded(engine) = self else { return Ok(()) };
        engine.close().map_err(|error| engine.failure().unwrap_or_else(|| error.to_string()))
    }
}

fn unavailable(error: OpenError) -> BooksError {
    BooksError::Unavailable(error.to_string())
}

impl Books for Session {
    fn hold(
        &self,
        ask: &Ask<'_>,
    ) -> impl Future<Output = Result<Posted, BooksError>> + Send + use<> {
        match self {
            Self::Embedded(session) => Either::Left(session.hold(ask)),
            Self::Redis(session) => Either::Right(session.hold(ask)),
        }
    }

    fn resolve(
        &self,
        charge: ChargeId,
        resolution: &Resolution<'_>,
    ) -> impl Future<Output = Result<Resolved, BooksError>> + Send + use<> {
        match self {
            Self::Embedded(session) => Either::Left(session.resolve(charge, resolution)),
            Self::Redis(session) => Either::Right(session.resolve(charge, resolution)),
        }
    }

    fn amend(
        &self,
        charge: ChargeId,
        amendment: &Amendment<'_>,
    ) -> impl Future<Output = Result<Amended, BooksError>> + Send + use<> {
        match self {
            Self::Embedded(session) => Either::Left(session.amend(charge, amendment)),
            Self::Redis(session) => Either::Right(session.amend(charge, amendment)),
        }
    }

    fn abandon(
        &self,
        charge: ChargeId,
        now: Timestamp,
    ) -> impl Future<Output = Result<Option<Abandoned>, BooksError>> + Send + use<> {
        match self {
            Self::Embedded(session) => Either::Left(session.abandon(charge, now)),
            Self::Redis(session) => Either::Right(session.abandon(charge, now)),
        }
    }

    async fn known(&self, scope: u64, key: &[u8; 16]) -> Result<Option<KnownCharge>, BooksError> {
        match self {
            Self::Embedded(session) => session.known(scope, key).await,
            Self::Redis(session) => session.known(scope, key).await,
        }
    }

    async fn named(&self, names: &[Key]) -> Result<Vec<ChargeId>, BooksError> {
        match self {
            Self::Embedded(session) => session.named(names).await,
            Self::Redis(session) => session.named(names).await,
        }
    }

    fn is_shared(&self) -> bool {
        matches!(self, Self::Redis(_))
    }

    async fn adjust(&self, adjustment: &Adjustment<'_>) -> Result<Adjusted, BooksError> {
        match self {
            Self::Embedded(session) => session.adjust(adjustment).await,
            Self::Redis(session) => session.adjust(adjustment).await,
        }
    }

    async fn balances(&self, accounts: &[Account<'_>]) -> Result<View, BooksError> {
        match self {
            Self::Embedded(session) => session.balances(accounts).await,
            Self::Redis(session) => session.balances(accounts).await,
        }
    }

    fn is_closed(&self, org: &str, key: &AccountKey) -> bool {
        match self {
            Self::Embedded(session) => session.is_closed(org, key),
            Self::Redis(session) => session.is_closed(org, key),
        }
    }

    fn may_forward(&self, charge: ChargeId, held: Instant) -> bool {
        match self {
            Self::Embedded(_) => true,
            Self::Redis(session) => session.may_forward(charge, held),
        }
    }

    async fn open_charge(&self, charge: ChargeId) -> Result<Option<OpenCharge>, BooksError> {
        match self {
            Self::Embedded(session) => session.open_charge(charge).await,
            Self::Redis(session) => session.open_charge(charge).await,
        }
    }
}
