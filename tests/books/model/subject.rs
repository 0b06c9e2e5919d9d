//! What the test needs of an engine: opening it, crashing it, and what it owes at which moment.

use std::pin::Pin;

use jiff::Timestamp;
use tollgate::books::Books;
use tollgate::core::account::{AccountKey, Balance};
use tollgate::core::charge::State;
use tollgate::core::ids::ChargeId;

use super::play::{Answer, Future, Play};
use super::world::Random;

/// The sessions of a world, and the engine's own.
pub const SESSIONS: usize = 3;

/// What waits to be told.
pub type Waits<'a, T> = Pin<Box<dyn std::future::Future<Output = T> + 'a>>;

pub trait Subject: Sized {
    type Session: Books + Clone + 'static;

    /// Whether a call has all of its effect in one step, in the order of a session's calls, and its
    /// answer says what was then. The other kind of engine takes when it is asked, gives back when
    /// that is written, and shows the balances of the moment of the answer. Where this is true,
    /// others remember how they ended a charge.
    const AT_ONCE: bool;

    /// What every long run must have come across beside what every engine must.
    const KINDS: &'static [&'static str];

    /// Empty books.
    fn start(random: &mut Random) -> Self;

    fn session(&self) -> Self::Session;

    /// The answer of what needs no record.
    fn tell<T>(&self, future: Waits<'_, T>) -> T;

    /// Looks for an answer for the first time.
    fn begin(&self, future: &mut Future) -> Option<Answer>;

    /// Waits for an answer.
    fn finish(&self, future: Future) -> Answer;

    /// The holds end whose time is over.
    fn expire(&self, now: Timestamp) -> Vec<(ChargeId, State)>;

    /// Every account.
    fn balances(&mut self) -> Vec<(AccountKey, Balance)>;

    fn open_holds(&self) -> usize;

    /// What is done now and then to keep the books in order.
    fn look_after(_play: &mut Play<Self>, _die: usize) {}

    /// Somebody asks for what is long over.
    fn ask_for_the_past(_play: &mut Play<Self>) {}

    /// The process dies, and another one opens the books.
    fn crash(play: &mut Play<Self>);
}
