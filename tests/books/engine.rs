//! What a suite needs of an engine, and the words it speaks to the books with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use smallvec::SmallVec;
use tempfile::TempDir;
use tollgate::books::embedded;
use tollgate::books::{
    Amendment, Ask, Books, InDoubt, Known, Lasting, Once, OpenCharge, Posted, Resolution,
};
use tollgate::core::account::{
    Account, AccountKey, AccountKind, AccountName, Balance, Grant, LegKind, Legs, Payer, Post,
    Slot, Source, Stem, Version, View,
};
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::core::ids::ChargeId;

pub const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// An engine on books of its own, which end with it.
pub trait Engine: Sized + Sync {
    type Session: Books + Clone + 'static;

    /// Whether sessions of one engine see what another has been asked before it is recorded, so
    /// that the order of the calls is that of the books. Elsewhere only a session's own is.
    const IN_ORDER: bool;

    /// Empty books.
    fn start() -> Self;

    /// A worker's session.
    fn session(&self) -> Self::Session;

    /// The process dies without closing anything, and another one opens the books. No session
    /// may be left.
    fn restart(self) -> Self {
        self.restart_at(NOW)
    }

    /// As [`Engine::restart`], and the other process starts at this instant.
    fn restart_at(self, now: Timestamp) -> Self;

    /// The holds end whose time is over.
    fn expire(&self, now: Timestamp) -> Vec<(OpenCharge, State)>;

    /// Every account that has ever been taken from or adjusted, by its name.
    fn all(&self) -> BTreeMap<String, Balance>;
}

pub struct Embedded {
    engine: embedded::Engine,
    dir: TempDir,
}

impl Engine for Embedded {
    type Session = embedded::Session;

    const IN_ORDER: bool = true;

    fn start() -> Self {
        let dir = temporary();
        Self { engine: embedded::Engine::open(dir.path(), NOW).unwrap(), dir }
    }

    fn session(&self) -> Self::Session {
        self.engine.session()
    }

    fn restart_at(self, now: Timestamp) -> Self {
        let Self { engine, dir } = self;
        drop(engine);
        Self { engine: embedded::Engine::open(dir.path(), now).unwrap(), dir }
    }

    fn expire(&self, now: Timestamp) -> Vec<(OpenCharge, State)> {
        self.engine.expire(now).unwrap()
    }

    fn all(&self) -> BTreeMap<String, Balance> {
        let mut all = balances(&self.engine);
        all.retain(|_, balance| *balance != Balance::default());
        all
    }
}

impl Embedded {
    /// What a process would find that starts after this one was killed right now.
    pub fn killed_now(&self) -> Self {
        let dir = temporary();
        copy(self.dir.path(), dir.path());
        Self { engine: embedded::Engine::open(dir.path(), NOW).unwrap(), dir }
    }
}

/// Every account in memory, by its name.
pub fn balances(engine: &embedded::Engine) -> BTreeMap<String, Balance> {
    let mut all = BTreeMap::new();
    engine.for_each_balance(|_, name, balance| {
        all.insert(name.to_owned(), balance);
    });
    all
}

/// A directory in memory where the system has one: these tests are about order, not about disks.
pub fn temporary() -> TempDir {
    let memory = Path::new("/dev/shm");
    let builder = tempfile::Builder::new();
    if memory.is_dir() { builder.tempdir_in(memory) } else { builder.tempdir() }.unwrap()
}

/// Copies the files of one directory into another.
pub fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        std::fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

/// The files of a directory, by name.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

pub fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Polls a future once; true when it is done.
pub async fn poll_once<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_ready())
    })
    .await
}

/// A licence's account.
pub fn account(id: &'static str, base: u64, number: u64) -> Account<'static> {
    let period = "2026-11-01".parse().unwrap();
    let kind = AccountKind::Licence;
    Account {
        key: AccountKey { stem: Stem::new(&["acme", id]), period, kind },
        name: AccountName { org: "acme", kind, ids: [id, ""], period },
        grant: Grant { base, version: Version { epoch: 1, number } },
    }
}

pub fn name(id: &str) -> String {
    format!("acme/licence/{id}/2026-11-01")
}

pub fn payer(slot: Slot) -> Payer {
    Payer { slot, kind: LegKind::Licence, cap: None }
}

pub fn capped(slot: Slot, cap: Slot) -> Payer {
    Payer { slot, kind: LegKind::Overage, cap: Some(cap) }
}

pub fn post(sources: impl IntoIterator<Item = Source>) -> Post {
    Post { sources: sources.into_iter().collect(), look: Default::default() }
}

/// Takes an amount from slots, in order.
pub fn take(amount: u64, slots: &[Slot]) -> Post {
    post([Source::take(amount, slots.iter().map(|&slot| payer(slot)))])
}

pub fn id(number: u64) -> ChargeId {
    ChargeId::v7(number, u128::from(number))
}

pub fn ask<'a>(charge: u64, accounts: &'a [Account<'a>], post: &'a Post) -> Ask<'a> {
    Ask {
        charge: id(charge),
        accounts,
        post,
        now: NOW,
        in_doubt: InDoubt::Void,
        memo: b"",
        lasting: None,
    }
}

/// So many seconds after [`NOW`].
pub fn second(seconds: i64) -> Timestamp {
    NOW + SignedDuration::from_secs(seconds)
}

/// A hold that ends by itself.
pub fn until<'a>(seconds: i64) -> Option<Lasting<'a>> {
    Some(Lasting { expires: Some(second(seconds)), ..Lasting::default() })
}

/// A key with the request that is made under it.
pub fn key(scope: u64, key: u8, request: u8) -> Once {
    Once { scope, key: [key; 16], request: [request; 16] }
}

/// A hold that is made once.
pub fn under<'a>(once: Once) -> Option<Lasting<'a>> {
    Some(Lasting { once: Some(once), ..Lasting::default() })
}

pub fn known(keep: &[u64]) -> Known {
    Known { keep: SmallVec::from_slice(keep), memo: OutcomeMemo::default() }
}

/// An amendment of nothing.
pub fn amendment<'a>() -> Amendment<'a> {
    Amendment::nothing(NOW)
}

pub fn resolution<'a>(state: State, keep: &'a [u64], memo: &'a OutcomeMemo) -> Resolution<'a> {
    Resolution::plain(state, keep, NOW, memo)
}

/// The balances after a hold that was made; `None` for one that was not.
pub fn done(posted: Posted) -> Option<View> {
    legs(posted).map(|(_, view)| view)
}

pub fn legs(posted: Posted) -> Option<(Legs, View)> {
    match posted {
        Posted::Done(legs, view) => Some((legs, view)),
        Posted::Short(_) | Posted::Known(_) => None,
    }
}

pub fn balance(base: u64, adjusted: i64, held: u64, captured: u64) -> Balance {
    Balance { base, adjusted, held, captured }
}
