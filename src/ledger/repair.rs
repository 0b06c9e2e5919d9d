//! Shards of books in Redis that are built again: from what is archived of them, and from what their
//! streams have beyond that.
//!
//! A shard is given up before it is read, so that nobody archives more of it meanwhile. It is written as
//! of the last entry that is archived or in its stream, and stays closed: gateways enter it as they do
//! where Redis has lost something, and do again what came behind that entry and is in their journals.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use super::archive::ArchiveError;
use super::archive::whole::{Archived, Reader, Whole};
use crate::books::KEPT_KEYS;
use crate::books::redis::OpenError;
use crate::books::redis::carry::Shards;
use crate::books::redis::ledger::Entry;
use crate::books::redis::rebuild::Rebuilt;
use crate::books::redis::repair::Inspected;
use crate::core::cycle::Label;
use crate::core::ids::{ChargeId, home_of};
use crate::core::record::Record;
use crate::sql::Place;

/// Entries of a stream that are read at once.
const PAGE: usize = 64;
/// How many of the terms that are archived a shard is told of.
const TERMS: usize = 200;

/// Why books are not built again.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Redis.
    #[error(transparent)]
    Books(#[from] OpenError),
    /// The archive has nothing of these books.
    #[error("the archive has nothing of the books {0}; nothing can be built from it")]
    NotArchived(String),
    /// The archive may have more or less than the books had.
    #[error(
        "these books are older than what the archive knows of them: what came into them when they were \
         moved is not archived, and charges from before may be counted; --inexact builds them all the \
         same"
    )]
    Inexact,
    /// A stream has entries that cannot be read, or lacks some.
    #[error(
        "the stream of shard {0} cannot be followed to its end: what it has beyond the archive would be \
         lost; --inexact builds the shard all the same, and gives that up"
    )]
    Unread(usize),
}

/// A shard as it is built again.
#[derive(Debug)]
pub struct Built {
    /// Which.
    pub shard: usize,
    /// What it has.
    pub content: Rebuilt,
    /// The last entry that is archived.
    pub archived: u64,
    /// The last entry of its stream that it has beyond that, where there are such.
    pub end: u64,
    /// Its stream has entries that do not go on from what is archived, or cannot be read: these are not
    /// in it.
    pub unread: bool,
    /// How many of its records could not be archived.
    pub dead: u64,
    terms: Vec<(String, u64)>,
}

/// The books whose shards are built again.
pub struct Repair<'a> {
    /// Where they are.
    pub shards: &'a Shards,
    /// Which.
    pub epoch: &'a str,
    /// Where they are archived.
    pub archive: Place,
    /// When.
    pub now: Timestamp,
    /// Whether they are built also where nobody knows whether they are what they were.
    pub inexact: bool,
}

impl Repair<'_> {
    /// How each shard is.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn inspect(&self) -> Result<Vec<Inspected>, RepairError> {
        let mut all = Vec::new();
        for shard in 0..self.shards.count() {
            all.push(self.shards.inspect(shard, self.epoch).await?);
        }
        Ok(all)
    }

    /// What these shards would be.
    ///
    /// # Errors
    /// [`RepairError`].
    pub async fn build(&self, which: &[usize]) -> Result<Vec<Built>, RepairError> {
        let mut reader = Reader::open(self.archive.clone()).await?;
        let built = self.build_from(&mut reader, which).await;
        reader.close().await?;
        built
    }

    /// Builds these shards again. One that is whole is refused.
    ///
    /// # Errors
    /// [`RepairError`]: shards that were not made again by then are refused to everybody until they are.
    pub async fn apply(&self, which: &[usize], token: &str) -> Result<Vec<Built>, RepairError> {
        let mut reader = Reader::open(self.archive.clone()).await?;
        // Whatever would keep them from being built does so before they are given up.
        match reader.whole(self.epoch).await? {
            None => return Err(RepairError::NotArchived(self.epoch.to_owned())),
            Some(whole) if !whole.is_sure() && !self.inexact => return Err(RepairError::Inexact),
            Some(_) => {}
        }
        let built = self.build_from(&mut reader, which).await?;
        if let Some(built) = built.iter().find(|built| built.unread && !self.inexact) {
            return Err(RepairError::Unread(built.shard));
        }
        for shard in which {
            self.shards.give_up(*shard, self.epoch, token).await?;
            reader.rests(*shard).await?;
        }
        let built = self.build_from(&mut reader, which).await?;
        for built in &built {
            let place = (built.shard, self.epoch, token);
            let ledger = (built.end, built.end > built.archived);
            self.shards.make_again(place, &built.content, ledger, &built.terms).await?;
        }
        reader.close().await?;
        Ok(built)
    }

    async fn build_from(
        &self,
        reader: &mut Reader,
        which: &[usize],
    ) -> Result<Vec<Built>, RepairError> {
        let whole = reader.whole(self.epoch).await?;
        let mut whole = whole.ok_or_else(|| RepairError::NotArchived(self.epoch.to_owned()))?;
        if !whole.is_sure() && !self.inexact {
            return Err(RepairError::Inexact);
        }
        // The clock here may be ahead of the gateways': a key forgotten too early is charged twice.
        let newest = whole.newest().await?.unwrap_or(i64::MIN).min(self.now.as_microsecond());
        let before = newest.saturating_sub(KEPT_KEYS.as_micros() as i64);
        let mut contents = BTreeMap::new();
        let mut archived = HashMap::new();
        for shard in which {
            let known = whole.shard(*shard).await?;
            let mut content = Rebuilt::new(before, Label::from_digits(known.closed));
            for (session, number) in &known.sessions {
                content.heard(session, *number);
            }
            contents.insert(*shard, content);
            archived.insert(*shard, known);
        }
        self.read(&mut whole, &mut contents).await?;
        let mut all = Vec::new();
        for (shard, mut content) in contents {
            content.archived();
            let known = archived.remove(&shard).unwrap_or_default();
            all.push(self.go_on(shard, content, &known).await?);
        }
        Ok(all)
    }

    /// Reads all that is archived of some shards.
    async fn read(
        &self,
        whole: &mut Whole<'_>,
        contents: &mut BTreeMap<usize, Rebuilt>,
    ) -> Result<(), RepairError> {
        let shard_of = |home: u16| usize::from(home) % self.shards.count();
        let mut last = None;
        loop {
            let accounts = whole.accounts(last.as_ref()).await?;
            let Some(end) = accounts.last() else { break };
            last = Some(end.key);
            for account in accounts {
                let org = account.name.split('/').next().unwrap_or_default();
                if let Some(content) = contents.get_mut(&shard_of(home_of(org))) {
                    content.know(account.key, &account.name, account.grant);
                }
            }
        }
        for (shard, record) in whole.carried().await? {
            if let (Some(content), Ok(Record::Carried(carried))) =
                (contents.get_mut(&shard), Record::decode(&record))
            {
                content.carried(&carried);
            }
        }
        let mut last = [0; 16];
        loop {
            let charges = whole.charges(last).await?;
            let Some(end) = charges.last() else { break };
            last = end.id;
            for mut charge in charges {
                let id = ChargeId(charge.id);
                let Some(content) = contents.get_mut(&shard_of(id.home())) else { continue };
                let open = charge.open.take();
                match charge.read() {
                    Some((hold, end)) => content.charge(&hold, end.as_ref(), open),
                    None => content.odd.push(format!("{id} cannot be read")),
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
                let Some(content) = contents.get_mut(&shard_of(home_of(&made.org))) else {
                    continue;
                };
                match made.read() {
                    Some(adjust) => content.adjust(&adjust, made.once.as_ref()),
                    None => content.odd.push("an adjustment cannot be read".to_owned()),
                }
            }
            last = adjustments.into_iter().next_back();
        }
    }

    /// Adds what a stream has beyond what is archived: all of it, or where it does not go on from there
    /// nothing, because what gateways do again is what came behind some entry.
    async fn go_on(
        &self,
        shard: usize,
        mut content: Rebuilt,
        known: &Archived,
    ) -> Result<Built, RepairError> {
        let chain = self.shards.inspect(shard, self.epoch).await?.terms;
        let mut end = known.position;
        let mut behind = Vec::new();
        let mut unread = false;
        loop {
            let page = self.shards.entries(shard, end, PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            let (last, first) = (*last, end);
            let follows = (first + 1..).zip(&page).all(|(expected, (at, _))| expected == *at);
            end = last;
            unread |= !follows;
            behind.extend(page.into_iter().map(|(_, bytes)| bytes));
        }
        let entries: Vec<_> = behind.iter().map(|bytes| Entry::read(bytes)).collect();
        // Entries of another time have calls that are archived.
        let mut last: HashMap<&str, u64> =
            known.sessions.iter().map(|(session, number)| (&**session, *number)).collect();
        for entry in &entries {
            let Ok(entry) = entry else {
                unread = true;
                break;
            };
            let before = last.insert(entry.session, entry.number);
            let is_archived = |(term, at): (&str, u64)| has(&known.terms, term, at);
            unread |= before.is_some_and(|before| entry.number <= before)
                && !entry.before.is_some_and(is_archived);
        }
        if unread {
            end = known.position;
        } else {
            for entry in entries.iter().flatten() {
                match entry.before.is_some_and(|(term, at)| has(&known.terms, term, at)) {
                    true => content.heard(entry.session, entry.number),
                    false => content.entry(entry),
                }
            }
        }
        content.finish();
        let terms = terms(&chain, &known.terms, known.position, end);
        let (archived, dead) = (known.position, known.dead);
        Ok(Built { shard, content, archived, end, unread, dead, terms })
    }
}

/// Whether an entry is archived that had this position in this term.
fn has(terms: &[(String, u64)], term: &str, position: u64) -> bool {
    terms.iter().any(|(name, through)| name == term && position <= *through)
}

/// The terms that a shard is made with which ends at `end`, and of which the archive has all up to
/// `position`: the next one goes on from `end`.
///
/// A list of terms says of each up to where the shard has it: as far as the next one's beginning. Here
/// that is how far it is archived, so each is followed by one that nobody had and that begins there.
/// Of a term that is not listed the shard has what does not come behind the beginning of the first:
/// that one, too, nobody had.
fn terms(
    chain: &[(String, u64)],
    archived: &[(String, u64)],
    position: u64,
    end: u64,
) -> Vec<(String, u64)> {
    let through = |name: &str| archived.iter().find(|(known, _)| known == name).map(|(_, at)| *at);
    let was_there = |(name, from): &&(String, u64)| *from <= end && !is_nobodys(name);
    let mut chain: Vec<(String, u64)> = chain.iter().filter(was_there).cloned().collect();
    chain.drain(..chain.len().saturating_sub(TERMS));
    let reach = chain.last().map_or(0, |(name, from)| through(name).unwrap_or(0).max(*from));
    if reach < position {
        // It is of another time: the one that was archived last, by the times in their names.
        let last = archived.iter().filter(|(_, through)| *through == position);
        if let Some((last, _)) = last.max_by_key(|(name, _)| began(name)) {
            chain.retain(|(name, _)| name != last);
            chain.push((last.clone(), 0));
        }
    }
    if let Some((name, from)) = chain.first_mut()
        && through(name).is_some()
    {
        *from = 0;
    }
    // What its stream has beyond the archive is archived later: it is of some term, though nobody knows of
    // which.
    if end > position && chain.first().is_none_or(|(_, from)| *from > position) {
        chain.insert(0, nobodys(&archived.len().to_string(), position));
    }
    let is_listed = |name: &str| chain.iter().any(|(listed, _)| listed == name);
    let mut others: Vec<&(String, u64)> =
        archived.iter().filter(|(name, _)| !is_listed(name) && !is_nobodys(name)).collect();
    others.sort_by_key(|(name, _)| began(name));
    others.drain(..others.len().saturating_sub(TERMS));
    others.sort_by_key(|(_, through)| *through);
    let mut terms = vec![nobodys("", end)];
    for (name, through) in others {
        terms.extend([(name.clone(), 0), nobodys(name, *through)]);
    }
    for (at, (name, from)) in chain.iter().enumerate() {
        terms.push((name.clone(), *from));
        let next = chain.get(at + 1).map(|(_, from)| *from);
        // More of it was archived than the shard had in the end.
        let more = through(name).filter(|through| next.is_some_and(|next| *through > next));
        terms.extend(more.map(|through| nobodys(name, through)));
    }
    terms
}

/// A term that nobody had, behind another one.
fn nobodys(name: &str, from: u64) -> (String, u64) {
    (format!("{name}/"), from)
}

fn is_nobodys(name: &str) -> bool {
    name.ends_with('/')
}

/// When a term began, as its name says.
fn began(name: &str) -> u64 {
    name.rsplit('-').next().and_then(|at| at.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(terms: &[(&str, u64)]) -> Vec<(String, u64)> {
        terms.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect()
    }

    #[test]
    fn f34_a_shard_that_is_built_again_has_of_each_term_what_is_archived() {
        let made = |chain: &[_], archived: &[_], position, end| {
            terms(&list(chain), &list(archived), position, end)
        };
        // Nothing was ever lost, and nothing of the shard is there.
        let one = [("a-1", 90)];
        assert_eq!(made(&[], &one, 90, 90), list(&[("/", 90), ("a-1", 0)]));
        // Its stream has more.
        assert_eq!(made(&[("a-1", 0)], &one, 90, 95), list(&[("/", 95), ("a-1", 0)]));
        // The same, and its list is gone; and once more before anything of it is archived.
        assert_eq!(made(&[], &[], 0, 29), list(&[("/", 29), ("0/", 0)]));
        let kept = [("/", 29), ("0/", 0), ("d-4", 29)];
        assert_eq!(made(&kept, &[], 0, 35), list(&[("/", 35), ("0/", 0), ("d-4", 29)]));
        // A term has begun of which nothing is archived.
        let two = [("a-1", 0), ("b-2", 100)];
        assert_eq!(made(&two, &one, 90, 120), list(&[("/", 120), ("a-1", 0), ("b-2", 100)]),);
        assert_eq!(made(&two, &one, 90, 90), list(&[("/", 90), ("a-1", 0)]));
        // Entries were lost that are archived, once, and a whole term with them.
        let lost = [("a-1", 140), ("b-2", 120), ("c-3", 130)];
        assert_eq!(
            made(&[("a-1", 0), ("c-3", 80)], &lost, 130, 130),
            list(&[("/", 130), ("b-2", 0), ("b-2/", 120), ("a-1", 0), ("a-1/", 140), ("c-3", 80)]),
        );
        // The same without its list, and with one of another time.
        let all = [("/", 130), ("b-2", 0), ("b-2/", 120), ("a-1", 0), ("a-1/", 140), ("c-3", 0)];
        assert_eq!(made(&[], &lost, 130, 130), list(&all));
        let of_old =
            [("/", 130), ("a-1", 0), ("a-1/", 140), ("b-2", 100), ("b-2/", 120), ("c-3", 0)];
        assert_eq!(made(&two, &lost, 130, 130), list(&of_old));
        // A second time.
        let again: Vec<(&str, u64)> = all.into_iter().chain([("d-4", 130)]).collect();
        let archived = [("a-1", 140), ("b-2", 120), ("c-3", 130), ("d-4", 150)];
        let twice = [&[("/", 150)], &again[1..]].concat();
        let twice: Vec<(&str, u64)> = twice.into_iter().collect();
        let made = made(&again, &archived, 150, 150);
        assert_eq!(made.first(), Some(&("/".to_owned(), 150)));
        assert_eq!(made.last(), Some(&("d-4".to_owned(), 130)));
        assert!(twice.iter().all(|(name, _)| made.iter().any(|(listed, _)| listed == name)));
    }
}
