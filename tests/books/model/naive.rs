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

/// What a leg stands for, and that of a cap.
pub type Kind = u8;
pub const CAP: Kind = 0;

#[derive(Clone, Debug)]
pub struct Payer {
    pub account: Id,
    pub kind: Kind,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    pub account: Id,
    pub kind: Kind,
    pub amount: u64,
}

/// A key under which a charge is made once: scope and name.
pub type Key = (u64, u8);

/// How long the key of a captured charge is kept, in microseconds.
const KEPT: i64 = 48 * 3_600 * 1_000_000;

/// Who has a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub charge: u64,
    pub request: u8,
    pub captured: bool,
    at: i64,
}

/// Base, adjusted, held, captured.
pub type Sums = (i128, i128, i128, i128);

#[derive(Clone, Debug, Default)]
struct Account {
    grant: Option<Grant>,
    adjustments: i128,
    captured: i128,
}

/// What there is to a hold beyond a plain one.
#[derive(Clone, Debug, Default)]
pub struct More {
    pub expires: Option<i64>,
    pub once: Option<(Key, u8)>,
    pub known: Option<Vec<u64>>,
    pub note: Vec<u8>,
}

/// How a hold ends that nobody resolves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Void,
    Capture,
}

#[derive(Clone, Debug)]
pub struct Hold {
    pub at: i64,
    pub more: More,
    pub legs: Vec<Leg>,
    /// Captured, not voided, when its process dies.
    pub capture_in_doubt: bool,
    /// Which session wrote it.
    pub home: usize,
    pub resolving: bool,
}

impl Hold {
    /// How it ends in doubt, and what is kept of it.
    fn in_doubt(&self) -> (End, Vec<u64>) {
        match (&self.more.known, self.capture_in_doubt) {
            (Some(keep), _) => (End::Capture, keep.clone()),
            (None, true) => (End::Capture, self.legs.iter().map(|leg| leg.amount).collect()),
            (None, false) => (End::Void, Vec::new()),
        }
    }
}

/// Legs with more of them: one of the same account and kind grows, others follow.
pub fn joined(legs: &[Leg], more: &[Leg]) -> Vec<Leg> {
    let mut joined = legs.to_vec();
    for leg in more {
        let mut same = joined.iter_mut();
        match same.find(|known| (known.account, known.kind) == (leg.account, leg.kind)) {
            Some(known) => known.amount += leg.amount,
            None => joined.push(*leg),
        }
    }
    joined
}

/// What an amendment says.
#[derive(Clone, Debug, Default)]
pub struct Amendment {
    pub known: Option<Vec<u64>>,
    pub expires: Option<i64>,
    pub note: Option<Vec<u8>>,
}

/// What a record says.
#[derive(Clone, Debug)]
pub enum Fact {
    Hold { charge: u64, hold: Hold, grants: Vec<(Id, Grant)> },
    Amend { charge: u64, legs: Vec<Leg>, grants: Vec<(Id, Grant)>, said: Amendment },
    Resolve { charge: u64, end: End, keep: Vec<u64>, extra: Vec<Leg>, grants: Vec<(Id, Grant)> },
    Adjust { account: Id, delta: i64, grant: Grant },
}

/// Everything as facts make it.
#[derive(Clone, Debug, Default)]
pub struct State {
    accounts: BTreeMap<Id, Account>,
    pub open: BTreeMap<u64, Hold>,
    /// Who has which key: charges that are open or captured.
    owners: BTreeMap<Key, Owner>,
}

impl State {
    /// D37: what is held is the sum of open legs, what is captured the sum of captured ones,
    /// what is granted the grant and the sum of adjustments.
    pub fn sums(&self, id: Id) -> Sums {
        let legs = self.open.values().flat_map(|hold| &hold.legs);
        let held = legs.filter(|leg| leg.account == id).map(|leg| i128::from(leg.amount)).sum();
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
                if let Some((key, request)) = hold.more.once {
                    let (charge, at, captured) = (*charge, hold.at, false);
                    self.owners.insert(key, Owner { charge, request, captured, at });
                }
                self.open.insert(*charge, hold.clone());
            }
            Fact::Amend { charge, legs, grants, said } => {
                self.learn(grants);
                let hold = self.open.get_mut(charge).expect("amended while open");
                hold.legs = joined(&hold.legs, legs);
                hold.more.known = said.known.clone().or(hold.more.known.take());
                hold.more.expires = said.expires.or(hold.more.expires);
                hold.more.note = said.note.clone().unwrap_or(std::mem::take(&mut hold.more.note));
            }
            Fact::Resolve { extra, grants, .. } => {
                self.learn(grants);
                for leg in extra {
                    self.account(leg.account).captured += i128::from(leg.amount);
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
            Fact::Hold { .. } | Fact::Amend { .. } => {}
            Fact::Resolve { charge, end, keep, .. } => self.end(*charge, *end, keep),
            Fact::Adjust { account, delta, .. } => {
                self.account(*account).adjustments += i128::from(*delta.max(&0));
            }
        }
    }

    /// A hold ends.
    fn end(&mut self, charge: u64, end: End, keep: &[u64]) {
        let hold = self.open.remove(&charge).expect("resolved once");
        for (index, leg) in hold.legs.iter().enumerate() {
            let kept = keep.get(index).copied().unwrap_or(0).min(leg.amount);
            self.account(leg.account).captured += i128::from(kept);
        }
        let Some((key, _)) = hold.more.once else { return };
        let Some(owner) = self.owners.get_mut(&key).filter(|owner| owner.charge == charge) else {
            return;
        };
        owner.captured = true;
        if end == End::Void {
            self.owners.remove(&key);
        }
    }

    /// Who has a key at an instant; `Err` with whoever had it for too long.
    pub fn owner(&self, key: Key, now: i64) -> Result<Option<Owner>, Owner> {
        match self.owners.get(&key) {
            Some(owner) if owner.captured && owner.at < now - KEPT => Err(*owner),
            owner => Ok(owner.copied()),
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
    pub fn take(&self, sources: &[Source], grants: &BTreeMap<Id, Grant>) -> Option<Vec<Leg>> {
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
                    let own = (payer.account, payer.kind);
                    for (account, kind) in
                        [Some(own), payer.cap.map(|cap| (cap, CAP))].into_iter().flatten()
                    {
                        *left.get_mut(&account)? -= amount;
                        legs.push(Leg { account, kind, amount: amount as u64 });
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

/// A charge that was ended by others, who remember it.
#[derive(Clone, Debug)]
struct Ended {
    end: End,
    /// What it was.
    hold: Hold,
    at: i64,
    /// On somebody's word, who knew how: nothing of it comes late.
    is_final: bool,
}

/// The live state, the recorded one, and what each session has decided and not yet written.
#[derive(Debug, Default)]
pub struct Model {
    /// Nothing that was decided waits to be written, and ends by others are remembered.
    at_once: bool,
    ended: BTreeMap<u64, Ended>,
    pub live: State,
    pub recorded: State,
    /// Accounts that are over for good.
    pub closed: BTreeSet<Id>,
    waiting: [Vec<Fact>; 3],
}

/// The session that has the holds which outlived their process: the engine's own.
pub const RECOVERED: usize = 2;

/// Legs, and the grants that they stand on.
type Taken = (Vec<Leg>, Vec<(Id, Grant)>);

/// What became of the holds of a process that died.
pub type LeftOpen = (usize, usize, usize);

/// What a late capture takes beyond its hold, and all that it takes.
type Late = (Vec<Leg>, Vec<Leg>);

impl Model {
    pub fn new(at_once: bool) -> Self {
        Self { at_once, ..Self::default() }
    }

    /// How a charge ended that others have ended.
    pub fn ended(&self, charge: u64) -> Option<End> {
        self.ended.get(&charge).map(|ended| ended.end)
    }

    pub fn ended_count(&self) -> usize {
        self.ended.len()
    }

    pub fn ended_at(&self, at: usize) -> Option<u64> {
        self.ended.keys().nth(at).copied()
    }

    /// What a charge took that others have voided.
    pub fn voided_by_others(&self, charge: u64) -> Option<Vec<Leg>> {
        let is_late = |ended: &&Ended| ended.end == End::Void && !ended.is_final;
        let ended = self.ended.get(&charge).filter(is_late);
        ended.map(|ended| ended.hold.legs.clone())
    }

    fn remember(&mut self, charge: u64, end: End, hold: Hold, at: i64) {
        if self.at_once {
            self.ended.insert(charge, Ended { end, hold, at, is_final: false });
        }
    }

    /// A session has resolved a charge. Another one that is still at work on it is told at its end.
    pub fn tell(&mut self, session: usize, charge: u64, end: End, hold: Hold, at: i64) {
        if self.at_once && session != hold.home && hold.more.expires.is_none() {
            self.ended.insert(charge, Ended { end, hold, at, is_final: true });
        }
    }

    /// What is remembered is forgotten in its time.
    pub fn forget(&mut self, now: i64) {
        if self.at_once {
            let before = now - KEPT;
            self.ended.retain(|_, ended| ended.at >= before);
            self.live.owners.retain(|_, owner| !owner.captured || owner.at >= before);
            self.recorded.owners = self.live.owners.clone();
        }
    }

    /// Whoever asks for a key that was kept for long enough has it forgotten, also where no hold is
    /// made then.
    pub fn forget_key(&mut self, key: &Key) {
        if self.at_once {
            self.live.owners.remove(key);
            self.recorded.owners.remove(key);
        }
    }

    /// Captures what others have voided: what is kept of it whatever there is, and an extra with it
    /// or nothing at all. Else says how everything would be with what is kept.
    pub fn capture_late(
        &mut self,
        charge: u64,
        keep: &[u64],
        extra: Option<Extra<'_>>,
    ) -> Result<Late, State> {
        let before = self.live.clone();
        let Hold { legs, more, at, .. } = self.ended[&charge].hold.clone();
        let amounts = keep.iter().copied().chain(std::iter::repeat(0));
        let kept = legs.into_iter().zip(amounts);
        let kept: Vec<Leg> =
            kept.map(|(leg, keep)| Leg { amount: keep.min(leg.amount), ..leg }).collect();
        for leg in &kept {
            self.live.account(leg.account).captured += i128::from(leg.amount);
        }
        let Some((taken, grants)) = self.take(extra) else {
            return Err(std::mem::replace(&mut self.live, before));
        };
        self.live.learn(&grants);
        for leg in &taken {
            self.live.account(leg.account).captured += i128::from(leg.amount);
        }
        if let Some((key, request)) = more.once {
            let owner = Owner { charge, request, captured: true, at };
            self.live.owners.entry(key).or_insert(owner);
        }
        self.ended.get_mut(&charge).expect("ended").end = End::Capture;
        self.recorded = self.live.clone();
        let all = kept.into_iter().chain(taken.iter().copied()).collect();
        Ok((taken, all))
    }

    /// Takes what the hold says nothing of yet, or says `None`.
    pub fn hold(&mut self, charge: u64, extra: Extra<'_>, hold: Hold) -> Option<Vec<Leg>> {
        let (legs, grants) = self.take(Some(extra))?;
        let hold = Hold { legs: legs.clone(), ..hold };
        self.decide(hold.home, Fact::Hold { charge, hold, grants });
        Some(legs)
    }

    /// Takes more for an open charge that nobody resolves yet.
    pub fn amend(
        &mut self,
        charge: u64,
        extra: Option<Extra<'_>>,
        said: Amendment,
    ) -> Option<Vec<Leg>> {
        let (legs, grants) = self.take(extra)?;
        let home = self.live.open[&charge].home;
        self.decide(home, Fact::Amend { charge, legs: legs.clone(), grants, said });
        Some(legs)
    }

    fn take(&self, extra: Option<Extra<'_>>) -> Option<Taken> {
        let Some((sources, named)) = extra else { return Some(Default::default()) };
        let legs = self.live.take(sources, &named.iter().copied().collect())?;
        let grants = self.grants(&legs, named);
        Some((legs, grants))
    }

    /// Holds end whose time is over.
    pub fn expire(&mut self, now: i64) -> Vec<(u64, End)> {
        let is_due = |hold: &Hold| !hold.resolving && hold.more.expires.is_some_and(|at| at <= now);
        let due = self.live.open.iter().filter(|(_, hold)| is_due(hold));
        let due: Vec<_> = due.map(|(charge, hold)| (*charge, hold.in_doubt())).collect();
        for (charge, (end, keep)) in &due {
            let hold = self.live.open[charge].clone();
            self.resolve(*charge, *end, keep, None);
            // Of one that ended in its time, and took nothing, nothing comes late.
            if *end == End::Capture {
                self.remember(*charge, *end, hold, now);
            }
        }
        due.into_iter().map(|(charge, (end, _))| (charge, end)).collect()
    }

    /// Resolves an open charge that nobody resolves yet.
    pub fn resolve(
        &mut self,
        charge: u64,
        end: End,
        keep: &[u64],
        extra: Option<Extra<'_>>,
    ) -> Option<Vec<Leg>> {
        let (legs, grants) = self.take(extra)?;
        let hold = self.live.open.get_mut(&charge).expect("open");
        hold.resolving = true;
        let home = hold.home;
        let (keep, extra) = (keep.to_vec(), legs.clone());
        self.decide(home, Fact::Resolve { charge, end, keep, extra, grants });
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
    /// `survived` records of it are there. Returns how many holds were voided, were captured and
    /// go on.
    pub fn crash(&mut self, order: &[usize], survived: usize, now: i64) -> LeftOpen {
        let tail: Vec<Fact> =
            order.iter().flat_map(|&session| std::mem::take(&mut self.waiting[session])).collect();
        assert!(self.waiting.iter().all(Vec::is_empty) && survived <= tail.len());
        for fact in &tail[..survived] {
            self.recorded.debit(fact);
            self.recorded.credit(fact);
        }
        let (mut voided, mut captured, mut lasting) = (0, 0, 0);
        for (charge, hold) in self.recorded.open.clone() {
            let (end, keep) = hold.in_doubt();
            if hold.more.expires.is_some() {
                lasting += 1;
                let hold = self.recorded.open.get_mut(&charge).expect("open");
                (hold.home, hold.resolving) = (RECOVERED, false);
                continue;
            }
            self.recorded.end(charge, end, &keep);
            self.remember(charge, end, hold, now);
            *if end == End::Void { &mut voided } else { &mut captured } += 1;
        }
        self.live = self.recorded.clone();
        (voided, captured, lasting)
    }

    pub fn is_waiting(&self, session: usize) -> bool {
        !self.waiting[session].is_empty()
    }

    fn decide(&mut self, session: usize, fact: Fact) {
        self.live.debit(&fact);
        self.waiting[session].push(fact);
        if self.at_once {
            self.flush(session);
        }
    }

    /// The grants that the record of these legs stands on.
    fn grants(&self, legs: &[Leg], named: &[(Id, Grant)]) -> Vec<(Id, Grant)> {
        let is_taken = |id: &Id| legs.iter().any(|leg| leg.account == *id);
        let taken = named.iter().filter(|(id, _)| is_taken(id));
        taken.map(|(id, brought)| (*id, self.newest(*id, *brought))).collect()
    }

    fn newest(&self, id: Id, brought: Grant) -> Grant {
        let known = self.live.accounts.get(&id).and_then(|account| account.grant);
        known.filter(|known| known.version >= brought.version).unwrap_or(brought)
    }
}
