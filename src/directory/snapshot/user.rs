//! Users and their licences, as the hot path reads them.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Decision, Org};
use crate::core::account::{Stem, View};
use crate::core::balance::{self, BalanceDocument};
use crate::core::ids::Id;
use crate::core::refusal::{Code, Refusal};
use crate::core::waterfall::Position;

/// A user. There are many, so what many have alike is shared and their own texts are no longer
/// than they have to be.
#[derive(Debug)]
pub struct User {
    /// Its id and behind it the e-mail address: one text for both.
    text: Box<str>,
    /// How much of it is the id: 128 bytes at most.
    id_length: u8,
    has_email: bool,
    /// What many users have alike.
    pub standing: Arc<Standing>,
    /// Licences in burn order: soonest expiry, then priority, then id (D3).
    pub licences: Box<[Licence]>,
    /// Identity of the overdraft and draw accounts.
    pub stem: Stem,
}

/// What of a user many others have alike; users who stand alike share it.
#[derive(Debug)]
pub struct Standing {
    /// Refused while true.
    pub suspended: bool,
    /// Groups, by id.
    pub groups: Box<[Id]>,
    /// Profiles that name the user directly, by id.
    pub profiles: Box<[Id]>,
    /// Pool access, or what is missing for it (D12, D14).
    pub access: Decision,
}

impl User {
    /// A user.
    pub fn new(
        id: &Id,
        email: Option<&str>,
        standing: Arc<Standing>,
        licences: Box<[Licence]>,
        stem: Stem,
    ) -> Self {
        let text = [id.as_str(), email.unwrap_or_default()].concat().into();
        let (id_length, has_email) = (id.as_str().len() as u8, email.is_some());
        Self { text, id_length, has_email, standing, licences, stem }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        self.text.split_at(usize::from(self.id_length)).0
    }

    /// An attribute, not an identity.
    pub fn email(&self) -> Option<&str> {
        self.has_email.then(|| self.text.split_at(usize::from(self.id_length)).1)
    }

    /// Lets the user ask for something.
    ///
    /// # Errors
    /// `user_suspended`.
    pub fn active(&self) -> Result<(), Refusal> {
        if self.standing.suspended {
            return Err(Refusal::new(Code::UserSuspended, "an admin has suspended the user"));
        }
        Ok(())
    }

    /// The user's balance document, at a position and balances of its own (D11).
    pub fn balance(&self, org: &Org, position: &Position<'_>, view: &View) -> BalanceDocument {
        let access = self.standing.access.as_ref().ok();
        let limit = access.and_then(|access| access.limit.as_ref()).map(|limit| limit.limit);
        let plan_of = |id: &str| {
            let licence = self.licences.iter().find(|licence| &*licence.id == id);
            licence.map_or("", |licence| licence.terms.plan.as_str())
        };
        balance::document(org.id.as_str(), self.id(), position, view, limit, plan_of)
    }
}

/// A licence assigned to a user.
#[derive(Debug)]
pub struct Licence {
    /// Its id.
    pub id: Box<str>,
    /// What it pays, and until when.
    pub terms: Arc<Terms>,
    /// Identity of its holder's own bucket.
    pub stem: Stem,
    /// Where several users pay from one bucket in the cycle in which it changed hands. Few
    /// licences do, so the others carry nothing of it.
    pub shared: Option<Box<Shared>>,
}

/// What licences of one plan that end together have alike; they share it.
#[derive(Debug)]
pub struct Terms {
    /// The plan they are instances of.
    pub plan: Id,
    /// The plan's credits a month, in millionths.
    pub credits: u64,
    /// Until when they pay; `None` for always.
    pub expires: Option<Timestamp>,
}

/// A bucket that several users pay from (D10).
#[derive(Debug)]
pub struct Shared {
    /// The end of the cycle; from then on the holder pays from their own bucket.
    pub until: Timestamp,
    /// Whose it is: who held the licence when it was opened.
    pub bucket: Id,
    /// Identity of its account.
    pub stem: Stem,
    /// From when it pays; `None` for at once.
    pub pays_from: Option<Timestamp>,
    /// Who takes from a bucket that is not theirs, and the identity of the account that counts
    /// it: the holder, or all others where the bucket is the holder's.
    pub takers: Box<[(Id, Stem)]>,
}

impl Licence {
    /// The bucket that it shares at `now`.
    pub(super) fn shared_at(&self, now: Timestamp) -> Option<&Shared> {
        self.shared.as_deref().filter(|shared| now < shared.until)
    }

    pub(super) fn pays_at(&self, now: Timestamp) -> bool {
        let waits = |shared: &Shared| shared.pays_from.is_some_and(|from| now < from);
        self.terms.expires.is_none_or(|end| now < end) && !self.shared_at(now).is_some_and(waits)
    }
}
