//! Books in Redis, added up: what is archived of them, and what their streams have beyond that, beside
//! what they say themselves (D37). Gateways may run meanwhile.
//!
//! The archive is read as of one moment, which takes as long as it is large. Entries that come to the
//! streams in that time are collected, before they are trimmed. At the end each shard is asked in one
//! call for its accounts and for the entry after which it has them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::archive::whole::{Archived, Reader, Whole};
use super::repair::RepairError;
use super::verify::Verifier;
use crate::books::redis::carry::Shards;
use crate::books::redis::ledger::Entry;
use crate::books::redis::repair::Sums;
use crate::core::account::{AccountKey, Balance, Grant};
use crate::core::charge::Flags;
use crate::core::cycle::Label;
use crate::core::ids::{ChargeId, home_of};
use crate::core::record::{Hold, Leg, Opening, Record, Resolve};
use crate::sql::Place;

/// Entries of a stream that are read at once.
const PAGE: usize = 64;
/// How often streams are looked at while the archive is read.
const OFTEN: Duration = Duration::from_millis(200);
/// How often a shard is begun again that was trimmed before it was read.
const TRIES: usize = 5;

/// What all shards came to.
pub struct AddedUp {
    /// Of each shard.
    pub shards: Vec<Verifier>,
    /// False where the archive does not know all that came into the books.
    pub sure: bool,
}

/// Adds up all shards.
///
/// # Errors
/// When Redis or the archive fails.
pub async fn add_up(shards: &Shards, epoch: &str, archive: &Place) -> Result<AddedUp, RepairError> {
    let mut reader = Reader::open(archive.clone()).await?;
    let mut tries = 0;
    loop {
        tries += 1;
        let whole = reader.whole(epoch).await?;
        let mut whole = whole.ok_or_else(|| RepairError::NotArchived(epoch.to_owned()))?;
        let mut sums = Vec::new();
        for shard in 0..shards.count() {
            sums.push(Sum::new(whole.shard(shard).await?));
        }
        read(&mut whole, &mut sums, shards).await?;
        let sure = whole.is_sure();
        let mut verified = Vec::new();
        let mut trimmed = false;
        for (shard, mut sum) in sums.into_iter().enumerate() {
            let stated = shards.sums(shard).await?;
            let is_ours = stated.epoch == epoch;
            if is_ours {
                sum.follow(shards, shard, Some(stated.end)).await?;
                trimmed |= sum.is_trimmed;
            }
            verified.push(sum.compare(shard, &stated, is_ours.then_some(epoch)));
        }
        if !trimmed || tries == TRIES {
            reader.close().await?;
            return Ok(AddedUp { shards: verified, sure });
        }
    }
}

/// Reads all that is archived, and meanwhile what comes to the streams.
async fn read(whole: &mut Whole<'_>, sums: &mut [Sum], shards: &Shards) -> Result<(), RepairError> {
    let count = sums.len();
    let shard_of = |home: u16| usize::from(home) % count;
    let mut names = None;
    loop {
        let accounts = whole.accounts(names.as_ref()).await?;
        let Some(last) = accounts.last() else { break };
        names = Some(last.key);
        for account in accounts {
            let org = account.name.split('/').next().unwrap_or_default();
            let sum = &mut sums[shard_of(home_of(org))];
            sum.known.insert(account.key, (account.name, account.grant));
        }
    }
    for (shard, record) in whole.carried().await? {
        if let (Some(sum), Ok(Record::Carried(carried))) =
            (sums.get_mut(shard), Record::decode(&record))
        {
            for (opening, used) in carried.openings.iter().zip(&carried.used) {
                sum.open(opening);
                let tally = sum.tally(opening.key);
                tally.adjusted = tally.adjusted.saturating_add(used.adjusted);
                tally.captured = tally.captured.saturating_add(used.captured);
            }
        }
    }
    let mut last = [0; 16];
    let mut looked = Instant::now();
    loop {
        if looked.elapsed() >= OFTEN {
            for (shard, sum) in sums.iter_mut().enumerate() {
                sum.follow(shards, shard, None).await?;
            }
            looked = Instant::now();
        }
        let charges = whole.charges(last).await?;
        let Some(end) = charges.last() else { break };
        last = end.id;
        for charge in &charges {
            let id = ChargeId(charge.id);
            let sum = &mut sums[shard_of(id.home())];
            match charge.read() {
                Some((hold, end)) => sum.charge(&hold.hold, end.as_ref()),
                None => sum.unreadable.push(format!("charge {id}")),
            }
        }
    }
    let mut last = None;
    loop {
        let adjustments = whole.adjustments(last.as_ref()).await?;
        if adjustments.is_empty() {
            return Ok(());
        }
        for made in &adjustments {
            let sum = &mut sums[shard_of(home_of(&made.org))];
            match made.read() {
                Some(adjust) => {
                    sum.records += 1;
                    adjust.openings.iter().for_each(|opening| sum.open(opening));
                    let tally = sum.tally(adjust.key);
                    tally.adjusted = tally.adjusted.saturating_add(adjust.delta);
                }
                None => sum.unreadable.push(format!("an adjustment of {}", made.org)),
            }
        }
        last = adjustments.into_iter().next_back();
    }
}

/// What the records of a shard add up to.
#[derive(Default)]
struct Sum {
    archived: Archived,
    /// Accounts that were ever named, and their newest grants.
    known: HashMap<AccountKey, (String, Grant)>,
    accounts: HashMap<AccountKey, (String, Balance, Grant)>,
    open: HashMap<[u8; 16], Vec<Leg>>,
    /// Entries beyond what is archived.
    behind: Vec<(u64, Vec<u8>)>,
    /// Some of them were not there any more.
    is_trimmed: bool,
    unreadable: Vec<String>,
    records: u64,
    charges: u64,
}

impl Sum {
    fn new(archived: Archived) -> Self {
        Self { archived, ..Self::default() }
    }

    fn account(&mut self, key: AccountKey) -> &mut (String, Balance, Grant) {
        let known = &self.known;
        self.accounts.entry(key).or_insert_with(|| {
            let (name, grant) = known.get(&key).cloned().unwrap_or_default();
            (name, Balance { base: grant.base, ..Balance::default() }, grant)
        })
    }

    fn tally(&mut self, key: AccountKey) -> &mut Balance {
        &mut self.account(key).1
    }

    fn open(&mut self, opening: &Opening<'_>) {
        let (name, balance, grant) = self.account(opening.key);
        if name.is_empty() {
            opening.name.clone_into(name);
        }
        if opening.grant.version > grant.version {
            (*grant, balance.base) = (opening.grant, opening.grant.base);
        }
    }

    fn charge(&mut self, hold: &Hold<'_>, end: Option<&Resolve<'_>>) {
        self.charges += 1;
        self.records += 1 + u64::from(end.is_some());
        hold.openings.iter().for_each(|opening| self.open(opening));
        let Some(end) = end else {
            for leg in &hold.legs {
                let tally = self.tally(leg.key);
                tally.held = tally.held.saturating_add(leg.amount);
            }
            self.open.insert(hold.charge, hold.legs.to_vec());
            return;
        };
        end.openings.iter().for_each(|opening| self.open(opening));
        // What is captured late is all in its record: its hold was void before.
        let is_late = end.memo.flags.has(Flags::LATE);
        let kept = |at: usize| end.keep.get(at).copied().filter(|_| !is_late).unwrap_or(0);
        let legs = hold.legs.iter().enumerate().map(|(at, leg)| (leg.key, kept(at)));
        let extra = end.extra.iter().map(|leg| (leg.key, leg.amount));
        for (key, amount) in legs.chain(extra) {
            let tally = self.tally(key);
            tally.captured = tally.captured.saturating_add(amount);
        }
    }

    /// Collects what came to the stream, up to an entry where one is given.
    async fn follow(
        &mut self,
        shards: &Shards,
        shard: usize,
        to: Option<u64>,
    ) -> Result<(), RepairError> {
        loop {
            let last = self.behind.last().map_or(self.archived.position, |(at, _)| *at);
            if to.is_some_and(|to| last >= to) {
                break;
            }
            let page = shards.entries(shard, last, PAGE).await?;
            let (Some((first, _)), count) = (page.first(), page.len()) else {
                self.is_trimmed |= to.is_some();
                break;
            };
            self.is_trimmed |= *first > last + 1;
            self.behind.extend(page);
            if to.is_none() && count < PAGE {
                break;
            }
        }
        Ok(())
    }

    /// What it comes to, beside what the shard says.
    fn compare(self, shard: usize, stated: &Sums, epoch: Option<&str>) -> Verifier {
        let mut verifier = Verifier::default();
        verifier.begin_closed(Label::from_digits(self.archived.closed));
        verifier.begin_with(self.records, self.charges - self.open.len() as u64);
        // What belongs to cycles that are closed goes in its time.
        let stays = |key: &AccountKey| !key.is_closed(stated.closed);
        for (key, (name, balance, grant)) in self.accounts.iter().filter(|(key, _)| stays(key)) {
            verifier.begin_account(*key, name, *balance, grant.version);
        }
        for (charge, legs) in &self.open {
            verifier.begin_hold(*charge, legs);
        }
        let of = format!("shard {shard}");
        for what in &self.unreadable {
            verifier.find(of.clone(), &format!("{what} cannot be read in the archive"));
        }
        if epoch.is_none() {
            verifier.find(of, &format!("is refused to everybody: its epoch is {:?}", stated.epoch));
            return verifier;
        }
        if self.is_trimmed {
            verifier.find(of.clone(), "entries of its ledger are neither archived nor there");
        }
        for (position, bytes) in self.behind.iter().filter(|(at, _)| *at <= stated.end) {
            match Entry::read(bytes) {
                Ok(entry) if entry.before.is_some_and(|before| self.has(before)) => {}
                Ok(entry) => {
                    let again = entry.before.is_some();
                    entry.records.iter().for_each(|record| match again {
                        true => verifier.see_again(record),
                        false => verifier.see(record),
                    });
                }
                Err(error) => verifier.find(format!("{of}, entry {position}"), &error.to_string()),
            }
        }
        let accounts = stated.accounts.iter().filter(|(key, _)| stays(key));
        let accounts = accounts.map(|(key, account)| (*key, account.clone())).collect();
        verifier.compare("Redis", &accounts);
        verifier.compare_open("Redis", &stated.open);
        verifier
    }

    /// Whether an entry is archived that had this position in this term.
    fn has(&self, (term, position): (&str, u64)) -> bool {
        let has = |(name, through): &(String, u64)| name == term && position <= *through;
        self.archived.terms.iter().any(has)
    }
}
