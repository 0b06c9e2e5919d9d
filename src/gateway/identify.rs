//! Who asks: a key by its secret, and the user it acts for.

use std::sync::{Arc, Weak};

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Refused;
use super::worker::{Connection, Worker};
use crate::books::Books;
use crate::core::charge::HoldMemo;
use crate::core::price::Quote;
use crate::core::refusal::{Code, Refusal};
use crate::directory::snapshot::{ActsFor, Key, KeyKind, Moment, Org, Payer, Snapshot, User};
use crate::telemetry::OrgMeters;

/// A key where the backend needs `Authorization` for itself.
pub const TOLLGATE_KEY: HeaderName = HeaderName::from_static("tollgate-key");
/// Whom a service key acts for.
pub const TOLLGATE_USER: HeaderName = HeaderName::from_static("tollgate-user");

/// A caller: an org's key, and the user it acts for.
pub struct Caller {
    /// The org.
    pub org: Arc<Org>,
    /// The key.
    pub key: Arc<Key>,
    /// The user; `None` for a principal.
    pub user: Option<Arc<User>>,
    /// What is counted for the org.
    pub meters: Arc<OrgMeters>,
    /// Whether `Authorization` held the key, so that it must not reach the backend.
    pub by_authorization: bool,
}

impl Caller {
    /// Who pays.
    pub fn payer(&self) -> Payer<'_> {
        match (&self.user, &self.key.kind) {
            (Some(user), _) => Payer::User(user),
            (None, KeyKind::Principal(access)) => Payer::Principal(&self.key, access),
            // `identify` makes a caller without a user from a principal's key only; whoever else
            // there were would have no seat and no pool.
            (None, _) => Payer::Principal(&self.key, &NOBODY),
        }
    }

    /// The encoded memo of a charge that is held for the caller: for what feature, on what route,
    /// and how much of it by meter.
    pub fn memo(
        &self,
        moment: &Moment,
        quote: &Quote,
        (feature, route, measures): (&str, &str, Vec<(Option<&str>, u64)>),
        request_id: Option<&str>,
    ) -> Vec<u8> {
        let memo = HoldMemo {
            org: self.org.id.as_str(),
            user: self.user.as_ref().map(|user| user.id()),
            key: self.key.id.as_str(),
            feature,
            route,
            measures,
            price: quote.price,
            pool: quote.pool,
            rate_card: quote.rate_card.as_str(),
            cycle: moment.cycle.label,
            term: moment.term.map(|index| self.org.terms[index].term.id.as_str()),
            profile: self.payer().access().ok().map(|access| access.profile.as_str()),
            request_id,
        };
        // A memo is texts and numbers, and a vector takes as many as there are.
        postcard::to_extend(&memo, Vec::with_capacity(256)).unwrap_or_default()
    }
}

impl Caller {
    /// The same caller as the directory has it now, for a request that took its time.
    ///
    /// # Errors
    /// `unauthenticated`, or those of [`Shown::identify`].
    pub fn again<B: Books>(self, worker: &Worker<B>, now: Timestamp) -> Result<Self, Refused> {
        let snapshot = worker.live.load();
        let gone = || unauthenticated("the key is not known");
        let key = snapshot.keys.get(&self.key.hash).ok_or_else(gone)?;
        let org = snapshot.orgs.get(&key.org).ok_or_else(gone)?;
        not_expired(key, now)?;
        let user = match &self.user {
            None => None,
            Some(user) => Some(user_of(org, key, user.id())?),
        };
        Ok(Self { org: Arc::clone(org), key: Arc::clone(key), user, ..self })
    }
}

static NOBODY: std::sync::LazyLock<
    Result<Arc<crate::core::entitlement::Access>, Arc<[crate::core::refusal::Missing]>>,
> = std::sync::LazyLock::new(|| Err(Arc::from([])));

/// Whom a connection's last request was from: clients that keep a connection mostly keep their
/// key, and then it is neither hashed nor looked up again while the same snapshot is in force.
pub struct Known {
    /// Meters are of one generation.
    generation: u64,
    /// Weak, so that an idle connection does not keep an old directory in memory.
    snapshot: Weak<Snapshot>,
    secret: Box<[u8]>,
    key: Arc<Key>,
    org: Weak<Org>,
    meters: Arc<OrgMeters>,
}

/// A key that was shown, before it is known whom it acts for.
pub struct Shown<'h> {
    org: Arc<Org>,
    key: Arc<Key>,
    meters: Arc<OrgMeters>,
    by_authorization: bool,
    named: Option<&'h HeaderValue>,
}

/// Finds the key that a request shows.
///
/// # Errors
/// `bad_request`, `unauthenticated`.
pub fn authenticate<'h, B: Books>(
    worker: &Worker<B>,
    connection: &Connection,
    headers: &'h HeaderMap,
    now: Timestamp,
) -> Result<Shown<'h>, Refused> {
    let authorization = single(headers, &AUTHORIZATION)?;
    let own = single(headers, &TOLLGATE_KEY)?;
    let named = single(headers, &TOLLGATE_USER)?;
    let secret = match (own, authorization) {
        (Some(own), _) => own.as_bytes(),
        (None, Some(authorization)) => bearer(authorization)?,
        (None, None) => return Err(unauthenticated("send `Authorization: Bearer <key>`")),
    };
    let snapshot = worker.live.load();
    let mut last = connection.last.lock();
    let known = last.as_ref().filter(|known| {
        known.generation == worker.generation
            && std::ptr::eq(known.snapshot.as_ptr(), Arc::as_ptr(&snapshot))
            && bool::from(known.secret.ct_eq(secret))
    });
    let known = known.and_then(|known| {
        Some((Arc::clone(&known.key), known.org.upgrade()?, Arc::clone(&known.meters)))
    });
    let (key, org, meters) = match known {
        Some(known) => known,
        None => {
            let (key, org) = find(&snapshot, secret)?;
            let meters = worker.meters.org(&org.id);
            *last = Some(Known {
                generation: worker.generation,
                snapshot: Arc::downgrade(&snapshot),
                secret: secret.into(),
                key: Arc::clone(&key),
                org: Arc::downgrade(&org),
                meters: Arc::clone(&meters),
            });
            (key, org, meters)
        }
    };
    not_expired(&key, now)?;
    // Whoever sends the key twice means it for the gateway both times.
    let again = authorization.and_then(|value| bearer(value).ok()) == Some(secret);
    Ok(Shown { org, key, meters, by_authorization: own.is_none() || again, named })
}

impl Shown<'_> {
    /// What is counted for the org.
    pub fn meters(&self) -> &Arc<OrgMeters> {
        &self.meters
    }

    /// True for a service key that names no user.
    pub fn is_unnamed_service(&self) -> bool {
        matches!(self.key.kind, KeyKind::Service(_)) && self.named.is_none()
    }

    /// The key itself as a caller, for what needs no user.
    pub fn key_alone(self) -> Caller {
        let Self { org, key, meters, by_authorization, .. } = self;
        Caller { org, key, user: None, meters, by_authorization }
    }

    /// Finds whom the key acts for.
    ///
    /// # Errors
    /// `user_required`, `unknown_user`, `user_suspended`, `key_not_allowed`, in this order.
    pub fn identify(self) -> Result<Caller, Refused> {
        let named = match self.named {
            None => None,
            Some(named) => Some(named.to_str().map_err(|_| unknown_user())?),
        };
        self.acting_for(named)
    }

    /// The same, for a user whom the request's body names too.
    ///
    /// # Errors
    /// `bad_request` where header and body name two, else as [`Shown::identify`].
    pub fn identify_as(self, user: &str) -> Result<Caller, Refused> {
        if self.named.is_some_and(|named| named.as_bytes() != user.as_bytes()) {
            let detail = "the header `Tollgate-User` names another user than the body";
            return Err(Refusal::new(Code::BadRequest, detail).into());
        }
        self.acting_for(Some(user))
    }

    fn acting_for(self, named: Option<&str>) -> Result<Caller, Refused> {
        let user = named_user(&self.org, &self.key, named)?;
        let Self { org, key, meters, by_authorization, .. } = self;
        Ok(Caller { org, key, user, meters, by_authorization })
    }
}

fn find(snapshot: &Snapshot, secret: &[u8]) -> Result<(Arc<Key>, Arc<Org>), Refused> {
    let unknown = || unauthenticated("the key is not known");
    let hash: [u8; 32] = Sha256::digest(secret).into();
    let key = snapshot.keys.get(&hash).ok_or_else(unknown)?;
    // The map was asked with a hash that nobody can steer to a near miss; this comparison does
    // not depend on how far the two agree (f79).
    if !bool::from(key.hash.ct_eq(&hash)) {
        return Err(unknown());
    }
    let org = snapshot.orgs.get(&key.org).ok_or_else(unknown)?;
    Ok((Arc::clone(key), Arc::clone(org)))
}

fn not_expired(key: &Key, now: Timestamp) -> Result<(), Refused> {
    match key.expires {
        Some(end) if end <= now => Err(unauthenticated("the key has expired")),
        _ => Ok(()),
    }
}

/// The user a key acts for; `None` for a principal.
fn named_user(org: &Org, key: &Key, named: Option<&str>) -> Result<Option<Arc<User>>, Refused> {
    let refuse = |code, detail| Err(Refusal::new(code, detail).into());
    let id = match (&key.kind, named) {
        (KeyKind::Service(_), None) => {
            return refuse(Code::UserRequired, "name the user in the header `Tollgate-User`");
        }
        (KeyKind::Service(_), Some(named)) => named,
        (KeyKind::User(own), None) => own.as_str(),
        (KeyKind::User(own), Some(named)) if named == own.as_str() => named,
        (KeyKind::User(_), Some(_)) => {
            return refuse(Code::KeyNotAllowed, "a user's key acts for that user only");
        }
        (KeyKind::Principal(_), None) => return Ok(None),
        (KeyKind::Principal(_), Some(_)) => {
            return refuse(Code::KeyNotAllowed, "a principal's key acts for no user");
        }
    };
    user_of(org, key, id).map(Some)
}

fn unknown_user() -> Refusal {
    Refusal::new(Code::UnknownUser, "the org has no user with this id")
}

fn user_of(org: &Org, key: &Key, id: &str) -> Result<Arc<User>, Refused> {
    let refuse = |code, detail| Err(Refusal::new(code, detail).into());
    let user = org.users.get(id).ok_or_else(unknown_user)?;
    user.active()?;
    if let KeyKind::Service(ActsFor::Some { users, groups }) = &key.kind {
        let listed = users.iter().any(|listed| listed.as_str() == id);
        if !listed && !user.standing.groups.iter().any(|group| groups.contains(group)) {
            return refuse(Code::KeyNotAllowed, "the key may act for other users only");
        }
    }
    Ok(Arc::clone(user))
}

/// The only value of a header that decides who asks (f59).
///
/// # Errors
/// `bad_request`.
pub fn single<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'h HeaderValue>, Refused> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (first, None) => Ok(first),
        _ => {
            Err(Refusal::new(Code::BadRequest, format!("the header {name} is there twice")).into())
        }
    }
}

/// The credential of `Bearer <credential>`; the scheme's case does not matter (RFC 9110, 11.1).
///
/// # Errors
/// `unauthenticated`.
pub fn bearer(value: &HeaderValue) -> Result<&[u8], Refused> {
    match value.as_bytes().split_at_checked(7) {
        Some((scheme, secret)) if scheme.eq_ignore_ascii_case(b"bearer ") => {
            Ok(secret.trim_ascii())
        }
        _ => Err(unauthenticated("`Authorization` must be `Bearer <key>`")),
    }
}

fn unauthenticated(detail: &'static str) -> Refused {
    Refusal::new(Code::Unauthenticated, detail).into()
}
