//! What the books should do, as simply as it can be said: a list of facts and their sums. It
//! knows plain numbers only, and imports nothing of what it judges.

use std::collections::{BTreeMap, BTreeSet};

/// What a resolution takes beyond its hold, and what is granted to whom it names.
pub type Extra<'a> = (&'a [Source], &'a [(Id, Grant)]);

/// An account is a number here.
pub type Id = usize;

/// A version of a grant: epoch and number.
pub type Version = (u32, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub base: u64,
    pub version: Version,
}

#[derive(Clone, Debug)]
pub struct Payer {
    pub account: Id,
    pub cap: Option<Id>,
}

#[derive(Clone, Debug)]
pub struct Source {
    pub take: u64,
    pub below: Option<u64>,
    pub solvent: bool,
    pub forced: bool,
    pub payers: Vec<Payer>,
}

/// What one account gave.
pub type Leg = (Id, u64);

/// Base, adjusted, held, captured.
pub type Sums = (i128, i128, i128, i128);

#[derive(Clone, Debug, Default)]
struct Account {
    grant: Option<Grant>,
    adjustments: i128,
    captured: i128,
}

#[derive(Clone, Debug)]
pub struct Hold {
    pub legs: Vec<Leg>,
    /// Captured, not voided, when its process dies.
    pub capture_in_doubt: bool,
    /// Which session wrote it.
    pub home: usize,
    pub resolving: bool,
}

/// What a record says.
#[derive(Clone, Debug)]
pub enum Fact {
    Hold { charge: u64, hold: Hold, grants: Vec<(Id, Grant)> },
    Resolve { charge: u64, keep: Vec<u64>, extra: Vec<Leg>, grants: Vec<(Id, Grant)> },
    Adjust { account: Id, delta: i64, grant: Grant },
}

/// Everything as facts make it.
#[derive(Clone, Debug, Default)]
pub struct State {
    accounts: BTreeMap<Id, Account>,
    pub open: BTreeMap<u64, Hold>,
}

impl State {
    /// D37: what is held is the sum of open legs, what is captured the sum of captured ones,
    /// what is granted the grant and the sum of adjustments.
    pub fn sums(&self, id: Id) -> Sums {
        let legs = self.open.values().flat_map(|hold| &hold.legs);
        let held = legs.filter(|(account, _)| *account == id).map(|(_, a)| i128::from(*a)).sum();
        let account = self.accounts.get(&id).cloned().unwrap_or_default();
        let base = account.grant.map_or(0, |grant| i128::from(grant.base));
        (base, account.adjustments, held, account.captured)
    }

    /// The sums as a post finds them that brings this grant.
    pub fn sums_under(&self, id: Id, grant: Grant) -> Sums {
        let (base, adjusted, held, captured) = self.sums(id);
        let known = self.accounts.get(&id).and_then(|account| account.grant);
        let newer = known.is_none_or(|known| grant.version > known.version);
        (if newer { i128::from(grant.base) } else { base }, adjusted, held, captured)
    }

    pub fn ids(&self) -> Vec<Id> {
        self.accounts.keys().copied().collect()
    }

    /// The part of a fact that counts as soon as it is decided.
    fn debit(&mut self, fact: &Fact) {
        match fact {
            Fact::Hold { charge, hold, grants } => {
                self.learn(grants);
                self.open.insert(*charge, hold.clone());
            }
            Fact::Resolve { extra, grants, .. } => {
                self.learn(grants);
                for (id, amount) in extra {
                    self.account(*id).captured += i128::from(*amount);
                }
            }
            Fact::Adjust { account, delta, grant } => {
                self.learn(&[(*account, *grant)]);
                self.account(*account).adjustments += i128::from(*delta.min(&0));
            }
        }
    }

    /// The part of a fact that counts once it is written.
    fn credit(&mut self, fact: &Fact) {
        match fact {
            Fact::Hold { .. } => {}
            Fact::Resolve { charge, keep, .. } => {
                let hold = self.open.remove(charge).expect("resolved once");
                for (index, (id, amount)) in hold.legs.iter().enumerate() {
                    let kept = keep.get(index).copied().unwrap_or(0).min(*amount);
                    self.account(*id).captured += i128::from(kept);
                }
            }
            Fact::Adjust { account, delta, .. } => {
                self.account(*account).adjustments += i128::from(*delta.max(&0));
            }
        }
    }

    fn learn(&mut self, grants: &[(Id, Grant)]) {
        for (id, grant) in grants {
            let known = &mut self.account(*id).grant;
            if known.is_none_or(|known| grant.version > known.version) {
                *known = Some(*grant);
            }
        }
    }

    fn account(&mut self, id: Id) -> &mut Account {
        self.accounts.entry(id).or_default()
    }

    /// What a post takes, or nothing.
    fn take(&self, sources: &[Source], grants: &BTreeMap<Id, Grant>) -> Option<Vec<Leg>> {
        let mut left: BTreeMap<Id, i128> = BTreeMap::new();
        for (&id, &grant) in grants {
            let (base, adjusted, held, captured) = self.sums_under(id, grant);
            left.insert(id, base + adjusted - held - captured);
        }
        let mut legs = Vec::new();
        for source in sources {
            let give = |left: &BTreeMap<Id, i128>, payer: &Payer| {
                let cap = payer.cap.map_or(i128::MAX, |cap| left[&cap].max(0));
                left[&payer.account].max(0).min(cap)
            };
            let total: i128 = source.payers.iter().map(|payer| give(&left, payer)).sum();
            if source.below.is_some_and(|below| total >= i128::from(below)) {
                return None;
            }
            if source.solvent && source.payers.iter().any(|payer| left[&payer.account] < 0) {
                return None;
            }
            let mut missing = i128::from(source.take);
            for payer in &source.payers {
                let amount = if source.forced { missing } else { missing.min(give(&left, payer)) };
                if amount > 0 {
                    missing -= amount;
                    for id in [Some(payer.account), payer.cap].into_iter().flatten() {
                        *left.get_mut(&id)? -= amount;
                        legs.push((id, amount as u64));
                    }
                }
            }
            if missing > 0 {
                return None;
            }
        }
        Some(legs)
    }
}

/// The live state, the recorded one, and what each session has decided and not yet written.
#[derive(Debug, Default)]
pub struct Model {
    pub live: State,
    pub recorded: State,
    /// Accounts that are over for good.
    pub closed: BTreeSet<Id>,
    waiting: [Vec<Fact>; 2],
}

impl Model {
    /// Takes, or says `None`.
    pub fn hold(
        &mut self,
        session: usize,
        charge: u64,
        sources: &[Source],
        named: &[(Id, Grant)],
        capture_in_doubt: bool,
    ) -> Option<Vec<Leg>> {
        let legs = self.live.take(sources, &named.iter().copied().collect())?;
        let hold = Hold { legs: legs.clone(), capture_in_doubt, home: session, resolving: false };
        let grants = self.grants(&legs, named);
        self.decide(session, Fact::Hold { charge, hold, grants });
        Some(legs)
    }

    /// Resolves an open charge that nobody resolves yet.
    pub fn resolve(
        &mut self,
        charge: u64,
        keep: &[u64],
        extra: Option<Extra<'_>>,
    ) -> Option<Vec<Leg>> {
        let (legs, grants) = match extra {
            None => (Vec::new(), Vec::new()),
            Some((sources, named)) => {
                let legs = self.live.take(sources, &named.iter().copied().collect())?;
                let grants = self.grants(&legs, named);
                (legs, grants)
            }
        };
        let hold = self.live.open.get_mut(&charge).expect("open");
        hold.resolving = true;
        let home = hold.home;
        let (keep, extra) = (keep.to_vec(), legs.clone());
        self.decide(home, Fact::Resolve { charge, keep, extra, grants });
        Some(legs)
    }

    pub fn adjust(&mut self, session: usize, account: Id, delta: i64, brought: Grant) {
        let grant = self.newest(account, brought);
        self.decide(session, Fact::Adjust { account, delta, grant });
    }

    /// Accounts that are over for good, after all that was decided is written.
    pub fn close(&mut self, ids: &[Id]) {
        assert!(self.waiting.iter().all(Vec::is_empty));
        for id in ids {
            self.live.accounts.remove(id);
            self.recorded.accounts.remove(id);
            self.closed.insert(*id);
        }
    }

    /// What the session decided is written.
    pub fn flush(&mut self, session: usize) {
        for fact in std::mem::take(&mut self.waiting[session]) {
            self.live.credit(&fact);
            self.recorded.debit(&fact);
            self.recorded.credit(&fact);
        }
    }

    /// The process dies. Sessions would have written what waits in this order; only the first
    /// `survived` records of it are there. Returns how many holds were voided and captured.
    pub fn crash(&mut self, order: &[usize], survived: usize) -> (usize, usize) {
        let tail: Vec<Fact> =
            order.iter().flat_map(|&session| std::mem::take(&mut self.waiting[session])).collect();
        assert!(self.waiting.iter().all(Vec::is_empty) && survived <= tail.len());
        for fact in &tail[..survived] {
            self.recorded.debit(fact);
            self.recorded.credit(fact);
        }
        let left_open = std::mem::take(&mut self.recorded.open);
        let (mut voided, mut captured) = (0, 0);
        for hold in left_open.values() {
            if hold.capture_in_doubt {
                captured += 1;
                for (id, amount) in &hold.legs {
                    self.recorded.account(*id).captured += i128::from(*amount);
                }
            } else {
                voided += 1;
            }
        }
        self.live = self.recorded.clone();
        (voided, captured)
    }

    pub fn is_waiting(&self, session: usize) -> bool {
        !self.waiting[session].is_empty()
    }

    fn decide(&mut self, session: usize, fact: Fact) {
        self.live.debit(&fact);
        self.waiting[session].push(fact);
    }

    /// The grants that the record of these legs stands on.
    fn grants(&self, legs: &[Leg], named: &[(Id, Grant)]) -> Vec<(Id, Grant)> {
        let is_taken = |id: &Id| legs.iter().any(|(account, _)| account == id);
        let taken = named.iter().filter(|(id, _)| is_taken(id));
        taken.map(|(id, brought)| (*id, self.newest(*id, *brought))).collect()
    }

    fn newest(&self, id: Id, brought: Grant) -> Grant {
        let known = self.live.accounts.get(&id).and_then(|account| account.grant);
        known.filter(|known| known.version >= brought.version).unwrap_or(brought)
    }
}
