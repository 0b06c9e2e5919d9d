//! The users of an org, spread so that a change of a few copies little.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::User;
use crate::core::ids::Id;

/// How many buckets the users of an org are spread over: a change rebuilds one of them.
const BUCKETS: usize = 1024;

type Bucket = HashSet<ById>;

/// A user as their id finds them: a key beside it would be the id once more, for a million of
/// them.
#[derive(Clone, Debug)]
struct ById(Arc<User>);

impl Borrow<str> for ById {
    fn borrow(&self) -> &str {
        self.0.id()
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // As a text hashes: that is what users are looked up by.
        self.0.id().hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id() == other.0.id()
    }
}

impl Eq for ById {}

/// The users of an org, in buckets that snapshots share.
#[derive(Clone, Debug)]
pub struct Users {
    buckets: Box<[Arc<Bucket>]>,
    count: usize,
}

impl Users {
    /// Spreads users over the buckets.
    pub fn new(users: impl IntoIterator<Item = User>) -> Self {
        let mut buckets: Vec<Bucket> = Vec::new();
        buckets.resize_with(BUCKETS, Bucket::new);
        let mut count = 0;
        for user in users {
            let bucket = &mut buckets[Self::bucket(user.id())];
            count += usize::from(bucket.replace(ById(Arc::new(user))).is_none());
        }
        Self { buckets: buckets.into_iter().map(Arc::new).collect(), count }
    }

    /// Adds a user, or replaces the one with its id.
    pub fn insert(&mut self, user: User) {
        let bucket = Arc::make_mut(&mut self.buckets[Self::bucket(user.id())]);
        self.count += usize::from(bucket.replace(ById(Arc::new(user))).is_none());
    }

    /// The same users, with these added or in the place of those with their ids, and without
    /// those of these ids.
    #[must_use]
    pub fn with<'a>(
        &self,
        changed: impl IntoIterator<Item = User>,
        removed: impl IntoIterator<Item = &'a Id>,
    ) -> Self {
        let mut next = self.clone();
        for user in changed {
            next.insert(user);
        }
        for id in removed {
            let bucket = Arc::make_mut(&mut next.buckets[Self::bucket(id.as_str())]);
            next.count -= usize::from(bucket.remove(id.as_str()));
        }
        next
    }

    /// A user by id.
    pub fn get(&self, id: &str) -> Option<&Arc<User>> {
        self.buckets[Self::bucket(id)].get(id).map(|ById(user)| user)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Every user, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<User>> {
        self.buckets.iter().flat_map(|bucket| bucket.iter().map(|ById(user)| user))
    }

    fn bucket(id: &str) -> usize {
        // FNV-1a: the buckets only need to be of like size; the maps inside them are keyed with
        // a secret, so chosen ids cannot crowd one.
        let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        (hash % BUCKETS as u64) as usize
    }
}
