//! The verifier: D37 from the records alone. It shares nothing with the books but the records'
//! format, and adds up in its own plain way: `held = Σ open legs`, `captured = Σ captured legs`,
//! `granted = Σ grant and adjustment records`, and no account spends beyond what it was granted,
//! except as recorded overdraft.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;

use crate::core::account::{AccountKey, Balance, LegKind, Version};
use crate::core::charge::{Flags, State};
use crate::core::cycle::Label;
use crate::core::record::{Amend, Carried, Finish, Lasting, Leg, Record, Resolve};

/// Something that does not add up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The account's name, or the charge.
    pub subject: String,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.what)
    }
}

/// What the verifier knows of an account.
#[derive(Clone, Debug, Default)]
struct Tally {
    name: String,
    base: i128,
    version: Version,
    adjusted: i128,
    held: i128,
    captured: i128,
    /// Taken without regard to what was there (D31).
    forced: i128,
    /// The most it was ever granted: what was taken under a grant stays taken when the grant is
    /// lowered later. No record can be judged by the grant of its own moment: a debit takes effect
    /// before its record is written, so the record of a lower grant may come before it.
    peak: i128,
}

/// How many resolved charges are remembered, to find what is held or resolved twice: bounded,
/// because a journal has more charges than a memory. What is farther apart than that is found all
/// the same where it is resolved: as not held.
const REMEMBERED: usize = 1 << 20;

/// Adds up records.
#[derive(Debug, Default)]
pub struct Verifier {
    accounts: HashMap<AccountKey, Tally>,
    /// Legs of open charges.
    open: HashMap<[u8; 16], Vec<Leg>>,
    /// The last charges that are over, also in their order; true for those that were captured.
    over: HashMap<[u8; 16], bool>,
    order: VecDeque<[u8; 16]>,
    findings: Vec<Finding>,
    /// Cycles before it are closed.
    closed: Label,
    begins: u64,
    records: u64,
    charges: u64,
    /// What is seen was done before, and is done again whatever accounts have by now.
    again: bool,
}

/// Numbers for the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// The journal's position from which on records were added up: 0, or that of a snapshot.
    pub begins: u64,
    /// Records read.
    pub records: u64,
    /// Charges seen.
    pub charges: u64,
    /// Charges not resolved yet.
    pub open: usize,
    /// Accounts seen.
    pub accounts: usize,
}

impl Verifier {
    /// Begins at a position, because the records before it are not kept.
    pub fn begin_at(&mut self, position: u64) {
        self.begins = position;
    }

    /// Begins with the cycles that are closed.
    pub fn begin_closed(&mut self, below: Label) {
        self.closed = below;
    }

    /// Begins with what others say an account has, because the records before it are not kept.
    pub fn begin_account(
        &mut self,
        key: AccountKey,
        name: &str,
        balance: Balance,
        version: Version,
    ) {
        let tally = Tally {
            name: name.to_owned(),
            base: balance.base.into(),
            version,
            adjusted: balance.adjusted.into(),
            held: balance.held.into(),
            captured: balance.captured.into(),
            ..Tally::default()
        };
        let (granted, spent) = (tally.base + tally.adjusted, tally.held + tally.captured);
        // What it owes was taken without regard to what was there, or under a higher grant.
        let forced = (spent - granted).max(0);
        self.accounts.insert(key, Tally { forced, peak: granted, ..tally });
    }

    /// Begins with a charge that is open, because the record of its hold is not kept.
    pub fn begin_hold(&mut self, charge: [u8; 16], legs: &[Leg]) {
        self.charges += 1;
        self.open.insert(charge, legs.to_vec());
    }

    /// Begins behind so many records, of so many charges that are over.
    pub fn begin_with(&mut self, records: u64, charges: u64) {
        self.records += records;
        self.charges += charges;
    }

    /// Adds one record of what was lost and is done again: what somebody spent meanwhile leaves its
    /// accounts in the red.
    pub fn see_again(&mut self, record: &Record<'_>) {
        self.again = true;
        self.see(record);
        self.again = false;
    }

    /// Adds one record, in the journal's order.
    pub fn see(&mut self, record: &Record<'_>) {
        self.records += 1;
        for opening in record.openings() {
            if opening.key.is_closed(self.closed) {
                self.find(opening.name.to_owned(), "is opened in a cycle that was closed");
            }
            let tally = self.accounts.entry(opening.key).or_default();
            if tally.name.is_empty() {
                opening.name.clone_into(&mut tally.name);
            }
            if opening.grant.version >= tally.version {
                tally.version = opening.grant.version;
                tally.base = i128::from(opening.grant.base);
            }
            tally.peak = tally.peak.max(tally.base + tally.adjusted);
        }
        match record {
            Record::Hold(hold) | Record::Lasting(Lasting { hold, .. }) => {
                self.charges += 1;
                let is_over = self.over.contains_key(&hold.charge);
                for leg in &hold.legs {
                    self.debit(leg, |tally, amount| tally.held += amount);
                }
                let before = self.open.insert(hold.charge, hold.legs.to_vec());
                if is_over || before.is_some() {
                    self.find_charge(hold.charge, "is held twice");
                }
            }
            Record::Amend(amend) => self.amend(amend),
            Record::Resolve(resolve) | Record::Finish(Finish { resolve, .. })
                if resolve.memo.flags.has(Flags::LATE) =>
            {
                self.late(resolve);
            }
            Record::Resolve(resolve) | Record::Finish(Finish { resolve, .. }) => {
                let open = self.open.remove(&resolve.charge);
                if open.is_none() {
                    let again = self.over.contains_key(&resolve.charge);
                    let what = if again { "is resolved twice" } else { "is resolved but not open" };
                    self.find_charge(resolve.charge, what);
                }
                self.remember(resolve.charge, resolve.state == State::Captured);
                let legs = open.unwrap_or_default();
                for (index, leg) in legs.iter().enumerate() {
                    let kept = resolve.keep.get(index).copied().unwrap_or(0);
                    if kept > leg.amount {
                        self.find_charge(resolve.charge, "captures more than it held");
                    }
                    if let Some(tally) = self.accounts.get_mut(&leg.key) {
                        tally.held -= i128::from(leg.amount);
                        tally.captured += i128::from(kept);
                        if leg.kind == LegKind::Overdraft {
                            tally.forced -= i128::from(leg.amount - kept.min(leg.amount));
                        }
                    }
                }
                for leg in &resolve.extra {
                    self.debit(leg, |tally, amount| tally.captured += amount);
                }
            }
            Record::Adjust(adjust) => match self.accounts.get_mut(&adjust.key) {
                Some(tally) => {
                    tally.adjusted += i128::from(adjust.delta);
                    tally.peak = tally.peak.max(tally.base + tally.adjusted);
                }
                None => self.find(format!("{:?}", adjust.key), "is adjusted but was never opened"),
            },
            Record::Synced(_) => {}
            Record::Close(close) => self.close(close.below),
            Record::Carried(carried) => self.carried(carried),
        }
    }

    /// What accounts had in other books: whatever they overdrew there is not judged again here.
    fn carried(&mut self, carried: &Carried<'_>) {
        if carried.used.len() != carried.openings.len() {
            self.find("accounts of other books".to_owned(), "are not as many as what they had");
        }
        for (opening, used) in carried.openings.iter().zip(&carried.used) {
            let Some(tally) = self.accounts.get_mut(&opening.key) else { continue };
            if (tally.adjusted, tally.held, tally.captured) != (0, 0, 0) {
                let (subject, what) =
                    (tally.name.clone(), "comes from other books when it is used");
                self.findings.push(Finding { subject, what: what.to_owned() });
            }
            tally.adjusted += i128::from(used.adjusted);
            tally.captured += i128::from(used.captured);
            tally.peak = tally.peak.max(tally.base + tally.adjusted);
            tally.forced += (tally.captured - tally.peak).max(0);
        }
    }

    /// What is taken for an open charge joins its legs: one of the same account and kind grows,
    /// others follow.
    fn amend(&mut self, amend: &Amend<'_>) {
        for leg in &amend.legs {
            self.debit(leg, |tally, amount| tally.held += amount);
        }
        let Some(legs) = self.open.get_mut(&amend.charge) else {
            return self.find_charge(amend.charge, "is amended but not open");
        };
        for more in &amend.legs {
            match legs.iter().position(|leg| (leg.key, leg.kind) == (more.key, more.kind)) {
                Some(at) => legs[at].amount += more.amount,
                None => legs.push(*more),
            }
        }
    }

    /// Cycles are over for good: what belongs to them is gone, and nobody may name it again.
    fn close(&mut self, below: Label) {
        let gone: Vec<AccountKey> =
            self.accounts.keys().filter(|key| key.is_closed(below)).copied().collect();
        for key in gone {
            if let Some(tally) = self.accounts.remove(&key).filter(|tally| tally.held != 0) {
                self.find(tally.name, "is closed while something is held");
            }
        }
        self.closed = self.closed.max(below);
    }

    /// What was voided without its owner is captured all the same, once, whatever its accounts have
    /// by then.
    fn late(&mut self, resolve: &Resolve<'_>) {
        if self.open.contains_key(&resolve.charge) {
            self.find_charge(resolve.charge, "is captured late but still open");
        }
        if self.over.get(&resolve.charge) == Some(&true) {
            self.find_charge(resolve.charge, "is captured twice");
        }
        self.remember(resolve.charge, true);
        for leg in &resolve.extra {
            if let Some(tally) = self.accounts.get_mut(&leg.key) {
                let left = tally.peak + tally.forced - tally.held - tally.captured;
                // An overdraft is forced anyway.
                if leg.kind != LegKind::Overdraft {
                    tally.forced += (i128::from(leg.amount) - left.max(0)).max(0);
                }
            }
            self.debit(leg, |tally, amount| tally.captured += amount);
        }
    }

    fn remember(&mut self, charge: [u8; 16], captured: bool) {
        if self.over.insert(charge, captured).is_none() {
            self.order.push_back(charge);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.over.remove(&oldest);
        }
    }

    fn debit(&mut self, leg: &Leg, apply: impl FnOnce(&mut Tally, i128)) {
        let Some(tally) = self.accounts.get_mut(&leg.key) else {
            self.find(format!("{:?}", leg.key), "is debited but was never opened");
            return;
        };
        apply(tally, i128::from(leg.amount));
        if leg.kind == LegKind::Overdraft {
            tally.forced += i128::from(leg.amount);
        }
        let over = tally.held + tally.captured - tally.peak - tally.forced;
        if over > 0 && self.again {
            tally.forced += over;
        } else if over > 0 {
            let finding = Finding {
                subject: tally.name.clone(),
                what: format!("spent {over} micro beyond what it was granted"),
            };
            self.findings.push(finding);
        }
    }

    /// Compares the sums with balances that somebody states for the same records. An account
    /// that nobody stated must be empty; one that only they state must be so too.
    pub fn compare(&mut self, who: &str, stated: &HashMap<AccountKey, (String, Balance)>) {
        let mut findings = Vec::new();
        for (key, tally) in &self.accounts {
            let summed = (tally.base, tally.adjusted, tally.held, tally.captured);
            let balance = stated.get(key).map(|(_, balance)| *balance).unwrap_or_default();
            let claimed = (
                i128::from(balance.base),
                i128::from(balance.adjusted),
                i128::from(balance.held),
                i128::from(balance.captured),
            );
            if summed != claimed {
                findings.push(Finding {
                    subject: tally.name.clone(),
                    what: format!(
                        "(base, adjusted, held, captured) in micro is {summed:?} by the records, \
                         {claimed:?} by {who}"
                    ),
                });
            }
        }
        for (key, (name, balance)) in stated {
            if !self.accounts.contains_key(key) && *balance != Balance::default() {
                let what = format!("{who} states {balance:?}, and no record names it");
                findings.push(Finding { subject: name.clone(), what });
            }
        }
        findings.sort_by(|a, b| a.subject.cmp(&b.subject));
        self.findings.append(&mut findings);
    }

    /// Compares the charges that are open with those that somebody states.
    pub fn compare_open(&mut self, who: &str, stated: &HashSet<[u8; 16]>) {
        let only_here = self.open.keys().filter(|charge| !stated.contains(*charge)).copied();
        let only_there = stated.iter().filter(|charge| !self.open.contains_key(*charge)).copied();
        let (mut here, mut there): (Vec<_>, Vec<_>) = (only_here.collect(), only_there.collect());
        here.sort_unstable();
        there.sort_unstable();
        for charge in here {
            self.find_charge(charge, &format!("is open by the records, and not by {who}"));
        }
        for charge in there {
            self.find_charge(charge, &format!("is open by {who}, and not by the records"));
        }
    }

    /// All that does not add up.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Numbers for the report.
    pub fn totals(&self) -> Totals {
        Totals {
            begins: self.begins,
            records: self.records,
            charges: self.charges,
            open: self.open.len(),
            accounts: self.accounts.len(),
        }
    }

    fn find_charge(&mut self, charge: [u8; 16], what: &str) {
        self.find(format!("charge {}", crate::core::ids::ChargeId(charge)), what);
    }

    /// Adds something that does not add up.
    pub fn find(&mut self, subject: String, what: &str) {
        self.findings.push(Finding { subject, what: what.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;
    use crate::core::account::{AccountKind, Grant, Stem};
    use crate::core::charge::{InDoubt, OutcomeMemo, State};
    use crate::core::record::{Adjust, Hold, Opening, Resolve};

    fn key() -> AccountKey {
        let period = "2026-11-01".parse().unwrap();
        AccountKey { stem: Stem::new(&["a"]), period, kind: AccountKind::Licence }
    }

    fn opening(base: u64, number: u64) -> Opening<'static> {
        let grant = Grant { base, version: Version { epoch: 1, number } };
        Opening { key: key(), name: "acme/licence/a", grant }
    }

    fn hold(charge: u8, amount: u64) -> Record<'static> {
        Record::Hold(Hold {
            charge: [charge; 16],
            at: 0,
            in_doubt: InDoubt::Void,
            openings: smallvec![opening(10, 1)],
            legs: smallvec![Leg { key: key(), kind: LegKind::Licence, amount }],
            memo: b"",
        })
    }

    fn resolve(charge: u8, keep: u64, extra: Option<LegKind>) -> Record<'static> {
        Record::Resolve(Resolve {
            charge: [charge; 16],
            at: 0,
            state: State::Captured,
            keep: smallvec![keep],
            openings: smallvec![],
            extra: extra.map(|kind| Leg { key: key(), kind, amount: 5 }).into_iter().collect(),
            memo: OutcomeMemo::default(),
        })
    }

    fn lasting(charge: u8, amount: u64) -> Record<'static> {
        let Record::Hold(hold) = hold(charge, amount) else { unreachable!() };
        Record::Lasting(Lasting { hold, expires: Some(1), once: None, note: b"" })
    }

    fn amend(charge: u8, kind: LegKind, amount: u64) -> Record<'static> {
        Record::Amend(Amend {
            charge: [charge; 16],
            at: 0,
            openings: smallvec![],
            legs: smallvec![Leg { key: key(), kind, amount }],
            known: None,
            expires: None,
            note: None,
            answer: b"",
        })
    }

    fn finish(charge: u8, keep: &[u64]) -> Record<'static> {
        let Record::Resolve(resolve) = resolve(charge, 0, None) else { unreachable!() };
        let resolve = Resolve { keep: keep.iter().copied().collect(), ..resolve };
        Record::Finish(Finish { resolve, note: b"", answer: b"" })
    }

    fn late(charge: u8, amount: u64) -> Record<'static> {
        let Record::Resolve(resolve) = resolve(charge, 0, None) else { unreachable!() };
        let memo = OutcomeMemo { flags: Flags::LATE, ..OutcomeMemo::default() };
        let leg = Leg { key: key(), kind: LegKind::Licence, amount };
        Record::Resolve(Resolve { keep: smallvec![], extra: smallvec![leg], memo, ..resolve })
    }

    fn void(charge: u8) -> Record<'static> {
        let Record::Resolve(resolve) = resolve(charge, 0, None) else { unreachable!() };
        Record::Resolve(Resolve { state: State::Voided, ..resolve })
    }

    #[test]
    fn f23_d37_a_late_capture_adds_up_once_and_may_be_more_than_there_is() {
        let one = [hold(1, 6), void(1), hold(2, 8), late(1, 6)];
        assert!(verify(&one, Some(balance(8, 6))).is_empty());
        for (records, stated, what) in [
            (vec![hold(1, 6), void(1), late(1, 6), late(1, 6)], balance(0, 12), "captured twice"),
            (vec![hold(1, 6), late(1, 6)], balance(6, 6), "still open"),
            (vec![hold(1, 6), resolve(1, 6, None), late(1, 1)], balance(0, 7), "captured twice"),
            (vec![hold(1, 6), void(1), late(1, 6)], balance(0, 0), "by the records"),
            // Whatever is taken after it is judged as ever.
            (
                vec![hold(1, 6), void(1), hold(2, 8), late(1, 6), hold(3, 1)],
                balance(9, 6),
                "spent 1",
            ),
        ] {
            let findings = verify(&records, Some(stated));
            assert!(findings.iter().any(|f| f.contains(what)), "{what}: {findings:?}");
        }
    }

    fn verify(records: &[Record<'_>], stated: Option<Balance>) -> Vec<String> {
        let mut verifier = Verifier::default();
        for record in records {
            verifier.see(record);
        }
        if let Some(balance) = stated {
            verifier.compare("test", &[(key(), ("a".to_owned(), balance))].into());
        }
        verifier.findings().iter().map(|finding| finding.what.clone()).collect()
    }

    fn balance(held: u64, captured: u64) -> Balance {
        Balance { base: 10, adjusted: 0, held, captured }
    }

    #[test]
    fn d37_records_that_add_up_have_no_finding() {
        let records = [hold(1, 4), hold(2, 6), resolve(1, 3, None), hold(3, 1)];
        assert!(verify(&records, Some(balance(7, 3))).is_empty());
        let forced = [hold(1, 10), resolve(1, 10, Some(LegKind::Overdraft))];
        assert!(verify(&forced, Some(balance(0, 15))).is_empty());
    }

    #[test]
    fn d37_amended_holds_add_up_by_their_joined_legs() {
        use LegKind::{Cap, Licence};
        let joined = [lasting(1, 4), amend(1, Licence, 3), finish(1, &[7])];
        assert!(verify(&joined, Some(balance(0, 7))).is_empty());
        let apart = [lasting(1, 4), amend(1, Cap, 3), finish(1, &[1, 2]), hold(2, 7)];
        assert!(verify(&apart, Some(balance(7, 3))).is_empty());
        assert!(verify(&[lasting(1, 4), amend(1, Licence, 6)], Some(balance(10, 0))).is_empty());
        let owed = [lasting(1, 10), amend(1, LegKind::Overdraft, 3), finish(1, &[10, 2])];
        assert!(verify(&owed, Some(balance(0, 12))).is_empty());
    }

    #[test]
    fn d37_each_way_not_to_add_up_is_found() {
        use LegKind::{Cap, Licence};
        let stated = |held, captured| Some(balance(held, captured));
        let adjust = Record::Adjust(Adjust {
            at: 0,
            openings: smallvec![opening(10, 1)],
            key: key(),
            delta: -3,
            memo: b"",
        });
        for (records, stated, what) in [
            (vec![hold(1, 11)], None, "spent 1 micro beyond"),
            (vec![hold(1, 6), hold(2, 6)], None, "spent 2 micro beyond"),
            (vec![hold(1, 6), resolve(1, 6, Some(LegKind::Licence))], None, "spent 1 micro"),
            (vec![hold(1, 6), hold(1, 1)], None, "held twice"),
            (vec![hold(1, 6), resolve(1, 7, None)], None, "captures more"),
            (vec![hold(1, 6), resolve(1, 6, None), resolve(1, 6, None)], None, "resolved twice"),
            (vec![resolve(1, 6, None)], None, "not open"),
            (vec![hold(1, 6)], stated(5, 0), "by the records"),
            (vec![hold(1, 6), resolve(1, 6, None)], stated(0, 5), "by the records"),
            (vec![hold(1, 6), adjust], stated(6, 0), "by the records"),
            (vec![lasting(1, 11)], None, "spent 1 micro beyond"),
            (vec![lasting(1, 6), amend(1, Licence, 5)], None, "spent 1 micro beyond"),
            (vec![lasting(1, 6), hold(1, 1)], None, "held twice"),
            (vec![hold(2, 1), amend(1, Licence, 5)], None, "amended but not open"),
            (vec![lasting(1, 1), finish(1, &[1]), amend(1, Licence, 1)], None, "not open"),
            (vec![lasting(1, 1), amend(1, Cap, 2), finish(1, &[3])], None, "captures more"),
            (vec![lasting(1, 1), amend(1, Licence, 2), finish(1, &[3, 1])], stated(0, 4), "by the"),
            (vec![lasting(1, 1), finish(1, &[1]), finish(1, &[1])], None, "resolved twice"),
            (vec![lasting(1, 4), amend(1, Licence, 3)], stated(4, 0), "by the records"),
        ] {
            let findings = verify(&records, stated);
            assert!(findings.iter().any(|f| f.contains(what)), "{what}: {findings:?}");
        }
    }

    #[test]
    fn a_lowered_grant_does_not_accuse_what_was_taken_before() {
        let mut verifier = Verifier::default();
        verifier.see(&hold(1, 9));
        let lowered = Record::Hold(Hold {
            charge: [2; 16],
            at: 0,
            in_doubt: InDoubt::Void,
            openings: smallvec![opening(2, 2)],
            legs: smallvec![],
            memo: b"",
        });
        verifier.see(&lowered);
        assert!(verifier.findings().is_empty());
    }
}
