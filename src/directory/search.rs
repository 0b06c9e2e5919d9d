//! The administrators' list of users (D11): searched, sorted, page by page.
//!
//! One page looks at every user of the org once and keeps the few that it shows, so its memory is
//! bounded by the page and its time by the org. Balances are not the directory's: whoever asks
//! offers each user with the value it is sorted by.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::file::Problem;
use super::rows::hex;
use super::snapshot::{Org, User};
use crate::core::account::{Slot, View};
use crate::core::ids::Id;
use crate::core::waterfall::{PoolAccess, Position};

/// What users are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Field {
    /// The id, byte by byte.
    #[default]
    Id,
    /// Credits granted for the cycle.
    Granted,
    /// Credits of open charges.
    Held,
    /// Credits used.
    Captured,
    /// Credits left.
    Available,
    /// Operations drawn from the pool in this cycle.
    Drawn,
    /// Credits owed.
    Overdraft,
}

/// An order of users; those with equal values are in the order of their ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sort {
    /// By what.
    pub field: Field,
    /// The largest first.
    pub descending: bool,
}

/// Which users are wanted.
#[derive(Clone, Debug, Default)]
pub struct UserQuery {
    /// Part of the id or the e-mail, ASCII letters in either case.
    pub q: Option<String>,
    /// In which order.
    pub sort: Sort,
    /// At most so many.
    pub limit: usize,
    /// Where a page ended.
    pub cursor: Option<String>,
    /// Only members of this group.
    pub group: Option<Id>,
    /// Only members of one of these profiles, directly or through a group.
    pub profiles: Option<Vec<Id>>,
}

/// A page as it is gathered.
#[derive(Debug)]
pub struct UserSearch {
    query: UserQuery,
    after: Option<Place>,
    /// The first users of the order, one more than the page shows.
    found: BTreeMap<Place, Arc<User>>,
}

/// A user's place in the order: the value, negated where the largest come first, then the id.
type Place = (i128, Flipped);

/// An id that sorts from the end where asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Flipped {
    id: Box<str>,
    flips: bool,
}

impl Ord for Flipped {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let order = self.id.cmp(&other.id);
        if self.flips { order.reverse() } else { order }
    }
}

impl PartialOrd for Flipped {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Field {
    const ALL: [(&str, Self); 7] = [
        ("id", Self::Id),
        ("granted", Self::Granted),
        ("held", Self::Held),
        ("captured", Self::Captured),
        ("available", Self::Available),
        ("drawn", Self::Drawn),
        ("overdraft", Self::Overdraft),
    ];

    /// The value of a user at a position, in millionths. Of an id it is zero.
    pub fn value(self, position: &Position<'_>, view: &View) -> i128 {
        let balance = |slot: Slot| view.get(slot).unwrap_or_default();
        let seat = |value: fn(&crate::core::account::Balance) -> u64| {
            (0..position.licences).map(|slot| i128::from(value(&position.own(slot, view)))).sum()
        };
        match self {
            Self::Id => 0,
            Self::Granted => seat(|balance| balance.granted()),
            Self::Held => seat(|balance| balance.held),
            Self::Captured => seat(|balance| balance.captured),
            Self::Available => seat(|balance| balance.available()),
            Self::Drawn => match &position.pool {
                PoolAccess::Open(side) => {
                    let draw = balance(side.draw);
                    i128::from(draw.held) + i128::from(draw.captured)
                }
                PoolAccess::None(_) | PoolAccess::NoTerm => 0,
            },
            Self::Overdraft => {
                position.overdraft.map_or(0, |slot| (-balance(slot).remaining()).max(0))
            }
        }
    }
}

impl Sort {
    /// Whether ids run from the end: only where they are what is asked for.
    fn flips(self) -> bool {
        self.descending && self.field == Field::Id
    }
}

impl std::str::FromStr for Sort {
    type Err = String;
    /// A field, with `-` for the largest first.
    fn from_str(text: &str) -> Result<Self, String> {
        let (descending, word) = match text.strip_prefix('-') {
            Some(word) => (true, word),
            None => (false, text),
        };
        let found = Field::ALL.iter().find(|(name, _)| *name == word);
        let names = || Field::ALL.map(|(name, _)| name).join(", ");
        let expected = || format!("expected one of {}, with - before it for descending", names());
        found.map(|(_, field)| Self { field: *field, descending }).ok_or_else(expected)
    }
}

impl UserSearch {
    /// Begins a page.
    ///
    /// # Errors
    /// A cursor of another list.
    pub fn new(query: UserQuery) -> Result<Self, Problem> {
        let wrong = || Problem {
            pointer: "/cursor".to_owned(),
            detail: "expected the `next_cursor` of a page of this list, sorted as it was"
                .to_owned(),
        };
        let place = |cursor: &String| place(cursor, query.sort).ok_or_else(wrong);
        let after = query.cursor.as_ref().map(place).transpose()?;
        Ok(Self { query, after, found: BTreeMap::new() })
    }

    /// By what users are sorted: `Id` needs no balance.
    pub fn field(&self) -> Field {
        self.query.sort.field
    }

    /// True for users that the query asks for.
    pub fn wants(&self, org: &Org, user: &User) -> bool {
        let query = &self.query;
        let named = |text: &str| {
            let email = user.email().unwrap_or_default();
            contains(user.id(), text) || contains(email, text)
        };
        query.q.as_deref().is_none_or(named)
            && query.group.as_ref().is_none_or(|group| user.standing.groups.contains(group))
            && query
                .profiles
                .as_ref()
                .is_none_or(|profiles| profiles.iter().any(|id| org.is_member(user, id)))
    }

    /// Offers a user with the value of the field.
    pub fn offer(&mut self, user: &Arc<User>, value: i128) {
        let sort = self.query.sort;
        let value = if sort.descending { -value } else { value };
        let flips = sort.flips();
        let later = |(other, id): &Place| {
            let by_id = || if flips { (*id.id).cmp(user.id()) } else { user.id().cmp(&id.id) };
            value.cmp(other).then_with(by_id).is_gt()
        };
        let full = self.found.len() > self.query.limit;
        let beyond = full && self.found.last_key_value().is_some_and(|(last, _)| later(last));
        if beyond || self.after.as_ref().is_some_and(|after| !later(after)) {
            return;
        }
        self.found.insert((value, Flipped { id: user.id().into(), flips }), Arc::clone(user));
        if full {
            self.found.pop_last();
        }
    }

    /// The page, and the cursor of the next one.
    pub fn page(mut self) -> (Vec<Arc<User>>, Option<String>) {
        let more = self.found.len() > self.query.limit;
        if more {
            self.found.pop_last();
        }
        let last = self.found.last_key_value().filter(|_| more);
        let cursor = last.map(|((value, flipped), _)| {
            let sort = self.query.sort;
            let name = Field::ALL.iter().find(|(_, field)| *field == sort.field);
            let name = name.map_or("", |(name, _)| name);
            let sign = if sort.descending { "-" } else { "" };
            hex(format!("{sign}{name} {value} {}", flipped.id).as_bytes())
        });
        (self.found.into_values().collect(), cursor)
    }
}

/// Reads a cursor.
fn place(cursor: &str, sort: Sort) -> Option<Place> {
    let digits = cursor.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = digits.map(byte).collect();
    let text = String::from_utf8(bytes?).ok()?;
    let mut words = text.split(' ');
    let (order, value, id) = (words.next()?, words.next()?, words.next()?);
    let same = words.next().is_none() && order.parse() == Ok(sort) && Id::is_valid(id);
    let id = Flipped { id: id.into(), flips: sort.flips() };
    same.then_some((value.parse().ok()?, id))
}

/// Whether a text holds another, ASCII letters in either case.
fn contains(text: &str, part: &str) -> bool {
    let part = part.as_bytes();
    part.is_empty()
        || text.as_bytes().windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
}
