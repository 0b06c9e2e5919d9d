//! Refusals: every reason for which a request is not served, in the contract's order, with one
//! stable code each. A refusal is an outcome, not an error; its one [`Code::as_str`] serves the
//! body, the metric and the log. Which HTTP status a code has is decided in the gateway.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::amount::{Credits, Operations};
use super::ids::Id;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $title:literal;)*) => {
        /// Why a request is refused. Where several apply, the first in this order is told.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($(#[$doc])* $variant,)*
        }

        impl Code {
            /// Every code, in the contract's order.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// The stable code.
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $code,)* }
            }

            /// A short summary that does not change from one occurrence to the next.
            pub const fn title(self) -> &'static str {
                match self { $(Code::$variant => $title,)* }
            }
        }
    };
}

codes! {
    /// The header block is over 64 KiB.
    HeadersTooLarge = "headers_too_large", "The request's header block is too large";
    /// Malformed or ambiguous HTTP.
    BadRequest = "bad_request", "The request is malformed or ambiguous";
    /// CONNECT, or an unknown upgrade.
    NotImplemented = "not_implemented", "The gateway does not do this";
    /// The request was meant for another authority.
    Misdirected = "misdirected", "The request was sent to the wrong server";
    /// No credential, or one that is not known.
    Unauthenticated = "unauthenticated", "A valid key is required";
    /// A service key without `Tollgate-User`.
    UserRequired = "user_required", "A service key must name the user it acts for";
    /// The user named does not exist.
    UnknownUser = "unknown_user", "The user is not known in this org";
    /// The user may not use anything now.
    UserSuspended = "user_suspended", "The user is suspended";
    /// The key may not act for this user.
    KeyNotAllowed = "key_not_allowed", "The key may not act for this user";
    /// Too many requests a second.
    RateLimited = "rate_limited", "Too many requests";
    /// Too many requests at once.
    TooManyInFlight = "too_many_in_flight", "The gateway has too many requests in flight";
    /// No route matches.
    UnknownRoute = "unknown_route", "No route matches this request";
    /// A route matches the path, but not the method.
    MethodNotAllowed = "method_not_allowed", "The route does not take this method";
    /// The body is over the route's bound.
    BodyTooLarge = "body_too_large", "The request body is too large";
    /// The body did not arrive in time.
    RequestTimeout = "request_timeout", "The request did not arrive in time";
    /// The quantity or an attribute cannot be read.
    Unquotable = "unquotable", "The request cannot be priced";
    /// There is no rate for what is asked.
    Unpriced = "unpriced", "There is no rate for this request";
    /// The route wants an `Idempotency-Key`.
    IdempotencyKeyRequired = "idempotency_key_required", "An Idempotency-Key is required";
    /// The same key is being served.
    IdempotencyInFlight = "idempotency_in_flight", "A request with this Idempotency-Key is in flight";
    /// The same key was charged and its response was too large to keep.
    AlreadyCharged = "already_charged", "This Idempotency-Key was charged already";
    /// The same key came with another request.
    IdempotencyKeyReused = "idempotency_key_reused", "This Idempotency-Key belongs to another request";
    /// The charge was resolved in another way.
    AlreadyResolved = "already_resolved", "The charge is resolved already";
    /// The user owes credits in this cycle (D31).
    Overdrawn = "overdrawn", "The user owes credits in this cycle";
    /// The seat cannot pay, and there is no pool access (D14).
    SeatExhausted = "seat_exhausted", "The monthly credits are used up";
    /// There is pool access, but no term now.
    NoActiveTerm = "no_active_term", "The org has no active term";
    /// The user's or key's limit on pool draws (D17).
    PoolLimitReached = "pool_limit_reached", "The limit on pool draws is reached";
    /// The pool is used up, and overage is refused (D26).
    PoolExhausted = "pool_exhausted", "The org's pool is used up";
    /// The pool is used up, and so is the overage cap (D26).
    OverageCapReached = "overage_cap_reached", "The org's overage cap is reached";
    /// A principal whose profile gives no pool access.
    PoolAccessDenied = "pool_access_denied", "The key has no access to the pool";
    /// The books do not answer.
    BooksUnavailable = "books_unavailable", "The balances cannot be reached";
    /// Planning met changed balances too often.
    BooksContended = "books_contended", "The balances changed too often while deciding";
    /// The gateway is shutting down.
    Draining = "draining", "The gateway is shutting down";
    /// No connection to the backend.
    UpstreamUnreachable = "upstream_unreachable", "The backend cannot be reached";
    /// The backend broke the exchange.
    UpstreamFailed = "upstream_failed", "The backend failed";
    /// The backend did not answer in time.
    UpstreamTimeout = "upstream_timeout", "The backend did not answer in time";
    /// A defect of the gateway.
    Internal = "internal", "Internal error";
}

/// What is missing for pool access (D14).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// The org is not eligible: contract or products.
    Eligibility,
    /// A profile of an offer product with the switch on.
    Offer,
    /// A profile of a base product.
    Base,
    /// The feature may be paid by seats only.
    Feature,
}

/// Whose limit on pool draws decided (D17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecidedBy {
    /// The user's own limit.
    User,
    /// The granting profile's.
    Profile,
    /// The key's.
    Key,
    /// The org's.
    Org,
}

/// Credits and Operations side by side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Both {
    /// What the seat would pay, or has, or nobody paid.
    pub credits: Credits,
    /// What the pool would pay, or has, or would have paid.
    pub operations: Operations,
}

/// The numbers behind a refusal for lack of credit, all from the same step of the books.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The price of the request.
    pub required: Both,
    /// What could have paid.
    pub available: Both,
    /// When the seat resets.
    pub resets_at: Option<Timestamp>,
    /// What is missing for pool access; `None` when there is access.
    pub missing: Option<Vec<Missing>>,
    /// Whose limit decided, and the profile's id where it is a profile's.
    pub decided_by: Option<(DecidedBy, Option<Id>)>,
}

/// A request that is not served, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub code: Code,
    /// What happened this time, and what to do about it.
    pub detail: Cow<'static, str>,
    /// The numbers, for refusals of the waterfall.
    pub facts: Option<Box<Facts>>,
}

impl Refusal {
    /// A refusal without numbers.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), facts: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_stable_unique_and_in_order() {
        let codes: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        let mut unique = codes.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), codes.len());
        assert!(Code::ALL.is_sorted());
        for code in codes {
            assert!(code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        }
    }
}
