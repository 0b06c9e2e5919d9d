//! Admission: rates per user and org, and how many requests are in flight.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::Refused;
use super::body::Room;
use super::identify::Caller;
use crate::config;
use crate::core::account::Stem;
use crate::core::ids::Id;
use crate::core::refusal::{Code, Refusal};

/// The limits of this gateway, over all its workers. Rates only, never credit.
pub struct Limits {
    per_user: Rate<Stem>,
    per_org: Rate<Id>,
    clock: DefaultClock,
    max_in_flight: usize,
    /// Added to by `admit`, taken from by the drop of a [`Permit`]; goes on over reloads.
    in_flight: Arc<AtomicUsize>,
    max_connections: usize,
    /// Added to by `connect`, taken from by the drop of a [`Place`]; goes on over reloads.
    connections: Arc<AtomicUsize>,
    /// For bodies that are held to be priced.
    pub room: Arc<Room>,
}

/// A place among the connections, until it is dropped.
#[must_use]
pub struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A rate and who asked how often; `None` costs nothing.
type Rate<K> = Option<(config::RateLimit, Arc<DefaultKeyedRateLimiter<K>>)>;

/// A place among the requests in flight, until it is dropped.
#[must_use]
pub struct Permit(Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// How often rate limiters forget those who have not asked for a while.
pub const TIDY_INTERVAL: Duration = Duration::from_secs(60);

impl Limits {
    /// Limits as configured; a rate that is absent costs nothing.
    pub fn new(config: &config::Limits) -> Self {
        Self {
            per_user: rate(config.per_user, None),
            per_org: rate(config.per_org, None),
            clock: DefaultClock::default(),
            max_in_flight: config.max_in_flight,
            in_flight: Arc::default(),
            max_connections: config.max_connections,
            connections: Arc::default(),
            room: Arc::new(Room::new(config.max_buffered)),
        }
    }

    /// Limits as another configuration has them: what is in flight stays counted, and a rate that
    /// did not change goes on where it stands.
    pub fn reloaded(&self, config: &config::Limits) -> Self {
        Self {
            per_user: rate(config.per_user, self.per_user.as_ref()),
            per_org: rate(config.per_org, self.per_org.as_ref()),
            clock: self.clock.clone(),
            max_in_flight: config.max_in_flight,
            in_flight: Arc::clone(&self.in_flight),
            max_connections: config.max_connections,
            connections: Arc::clone(&self.connections),
            room: Arc::new(self.room.bounded(config.max_buffered)),
        }
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// A place for one more connection, if there is one.
    pub fn connect(&self) -> Option<Place> {
        let place = Place(Arc::clone(&self.connections));
        (self.connections.fetch_add(1, Relaxed) < self.max_connections).then_some(place)
    }

    /// Admits a caller, or not.
    ///
    /// # Errors
    /// `rate_limited` with the seconds to wait, or `too_many_in_flight`.
    pub fn admit(&self, caller: &Caller) -> Result<Permit, Refused> {
        if let Some((_, limiter)) = &self.per_user {
            let stem = caller.user.as_ref().map_or(caller.key.stem, |user| user.stem);
            let free = limiter.check_key(&stem);
            free.map_err(|until| self.limited("the user", until.wait_time_from(self.clock.now())))?;
        }
        if let Some((_, limiter)) = &self.per_org {
            let free = limiter.check_key(&caller.org.id);
            free.map_err(|until| self.limited("the org", until.wait_time_from(self.clock.now())))?;
        }
        let permit = Permit(Arc::clone(&self.in_flight));
        if self.in_flight.fetch_add(1, Relaxed) >= self.max_in_flight {
            let detail = "try again when other requests have finished";
            let mut refused = Refused::from(Refusal::new(Code::TooManyInFlight, detail));
            refused.retry_after = Some(1);
            return Err(refused);
        }
        Ok(permit)
    }

    fn limited(&self, whose: &str, wait: Duration) -> Refused {
        let detail = format!("the rate limit of {whose} is reached");
        let mut refused = Refused::from(Refusal::new(Code::RateLimited, detail));
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        refused.retry_after = Some(u32::try_from(seconds).unwrap_or(u32::MAX));
        refused
    }

    /// Forgets those who have not asked for a while; to be called every [`TIDY_INTERVAL`], in one place.
    pub fn tidy(&self) {
        if let Some((_, limiter)) = &self.per_user {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
        if let Some((_, limiter)) = &self.per_org {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }
}

fn rate<K: Clone + Hash + Eq>(
    wanted: Option<config::RateLimit>,
    before: Option<&(config::RateLimit, Arc<DefaultKeyedRateLimiter<K>>)>,
) -> Rate<K> {
    let wanted = wanted?;
    let same = before.filter(|(limit, _)| *limit == wanted).cloned();
    Some(same.unwrap_or_else(|| (wanted, Arc::new(RateLimiter::keyed(quota(wanted))))))
}

fn quota(limit: config::RateLimit) -> Quota {
    let burst: NonZeroU32 = limit.burst.unwrap_or(limit.rps);
    Quota::per_second(limit.rps).allow_burst(burst)
}
