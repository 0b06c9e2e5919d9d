//! The accounts of a random world, in both languages: numbers for the model, names and grants
//! for the books. And the randomness.

use std::collections::HashMap;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use tollgate::core::account::{
    Account, AccountKey, AccountKind, AccountName, Grant, Stem, Version,
};
use tollgate::core::cycle::Label;

use super::naive::{self, Id};

/// SplitMix64: the same sequence for a seed everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Below a bound.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.word() % bound as u64) as usize
    }

    pub fn up_to(&mut self, largest: u64) -> u64 {
        self.word() % (largest + 1)
    }

    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// Some of the numbers below `bound`, in any order.
    pub fn some_of(&mut self, bound: usize, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..bound).collect();
        for at in 0..count.min(bound) {
            let other = at + self.below(bound - at);
            all.swap(at, other);
        }
        all.truncate(count);
        all
    }
}

/// What accounts there are for, what they are granted at most, and whether a reset renews them.
const ROLES: [(AccountKind, [&str; 2], u64, bool); 10] = [
    (AccountKind::Licence, ["lic-1", "alice"], 150, true),
    (AccountKind::Licence, ["lic-2", "alice"], 80, true),
    (AccountKind::Licence, ["lic-3", "alice"], 20, true),
    (AccountKind::Overdraft, ["alice", ""], 0, true),
    (AccountKind::Draw, ["alice", ""], 200, true),
    (AccountKind::Licence, ["lic-4", "bob"], 120, true),
    (AccountKind::Draw, ["bob", ""], 200, true),
    (AccountKind::Pool, ["2026", ""], 400, false),
    (AccountKind::Overage, ["2026", ""], 200, false),
    (AccountKind::Overage, ["2026", "profile"], 100, false),
];

pub const ROLE_COUNT: usize = ROLES.len();

/// When a world begins.
pub const START: Timestamp = Timestamp::constant(946_684_800, 0);

/// All accounts that there were, and which of them stand for the roles now.
pub struct World {
    accounts: Vec<Known>,
    by_key: HashMap<AccountKey, Id>,
    current: [Id; ROLE_COUNT],
    cycle: u32,
    /// The directory's versions begin here: a restarted gateway has read at least the newest
    /// that its predecessor had.
    version: u64,
}

struct Known {
    key: AccountKey,
    name: AccountName<'static>,
    role: usize,
    cycle: u32,
    /// Every grant since the last start, oldest first.
    grants: Vec<naive::Grant>,
}

impl World {
    pub fn new(random: &mut Random) -> Self {
        let mut world = Self {
            accounts: Vec::new(),
            by_key: HashMap::new(),
            current: [0; ROLE_COUNT],
            cycle: 0,
            version: 0,
        };
        for role in 0..ROLE_COUNT {
            world.open(role, random);
        }
        world
    }

    /// The first day of a cycle: they are months.
    fn first_day(cycle: u32) -> Date {
        jiff::civil::date(2000 + (cycle / 12) as i16, 1 + (cycle % 12) as i8, 1)
    }

    /// Time passes; true where a cycle ends.
    pub fn pass(&mut self, now: Timestamp, random: &mut Random) -> bool {
        let ends = now.to_zoned(TimeZone::UTC).date() >= Self::first_day(self.cycle + 1);
        if ends {
            self.reset(random);
        }
        ends
    }

    /// How many days ago an account's cycle began.
    pub fn age(&self, id: Id, now: Timestamp) -> i32 {
        let began = Self::first_day(self.accounts[id].cycle);
        (now.to_zoned(TimeZone::UTC).date() - began).get_days()
    }

    /// An account under its newest grant.
    pub fn newest(&self, id: Id) -> Account<'static> {
        let grants = &self.accounts[id].grants;
        self.account(id, grants[grants.len() - 1])
    }

    pub fn any(&self, random: &mut Random) -> Id {
        random.below(self.accounts.len())
    }

    fn open(&mut self, role: usize, random: &mut Random) {
        let (kind, ids, _, renewed) = ROLES[role];
        let cycle = self.cycle;
        let period = if renewed { Label::of(Self::first_day(cycle)) } else { Label::NONE };
        let key = AccountKey { stem: Stem::new(&["acme", ids[0], ids[1]]), period, kind };
        let name = AccountName { org: "acme", kind, ids, period };
        self.current[role] = self.accounts.len();
        self.by_key.insert(key, self.accounts.len());
        self.accounts.push(Known { key, name, role, cycle, grants: Vec::new() });
        self.grant(role, random);
    }

    /// A new cycle: other accounts for what is monthly.
    fn reset(&mut self, random: &mut Random) {
        self.cycle += 1;
        for (role, _) in ROLES.iter().enumerate().filter(|(_, role)| role.3) {
            self.open(role, random);
        }
    }

    /// The directory changes what an account is granted.
    pub fn grant(&mut self, role: usize, random: &mut Random) {
        let base = random.up_to(ROLES[role].2);
        self.version += 1;
        let grant = naive::Grant { base, version: (1, self.version) };
        self.accounts[self.current[role]].grants.push(grant);
    }

    /// After a start, everything is granted anew, by a directory at least as new as before.
    pub fn restart(&mut self) {
        for known in &mut self.accounts {
            self.version += 1;
            let base = known.grants.last().map_or(0, |grant| grant.base);
            known.grants = vec![naive::Grant { base, version: (1, self.version) }];
        }
    }

    pub fn current(&self, role: usize) -> Id {
        self.current[role]
    }

    /// The newest grant of an account, or sometimes one that comes late.
    pub fn brought(&self, id: Id, random: &mut Random) -> naive::Grant {
        let grants = &self.accounts[id].grants;
        let back = if random.percent(10) { random.below(grants.len()) } else { 0 };
        grants[grants.len() - 1 - back]
    }

    /// How the books are told of an account.
    pub fn account(&self, id: Id, grant: naive::Grant) -> Account<'static> {
        let Known { key, name, .. } = self.accounts[id];
        let (epoch, number) = grant.version;
        Account { key, name, grant: Grant { base: grant.base, version: Version { epoch, number } } }
    }

    pub fn id(&self, key: &AccountKey) -> Id {
        self.by_key[key]
    }

    pub fn is_overdraft(&self, id: Id) -> bool {
        ROLES[self.accounts[id].role].0 == AccountKind::Overdraft
    }
}
