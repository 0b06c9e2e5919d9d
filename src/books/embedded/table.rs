//! Accounts in memory, and the application of a post to them.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dashmap::DashMap;
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use crate::books::BooksError;
use crate::core::account::{
    Account, AccountKey, Balance, Grant, LegKind, Legs, Post, Slot, Source, Taken, Version, View,
};
use crate::core::cycle::Label;

/// An account in memory.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: AccountKey,
    pub(super) name: Box<str>,
    /// Written by posts and by the flush that follows them, each time under this lock only.
    pub(super) state: Mutex<State>,
}

/// What an account has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    pub(super) balance: Balance,
    /// The grant's version; the default for an account that nothing was ever taken from.
    pub(super) version: Version,
    /// True until a record that names the grant is written: every debit that relies on it
    /// repeats it until then, so that each prefix of the journal can be read by itself.
    pub(super) unwritten: bool,
}

impl State {
    /// The balance under the newer of two grants (D42).
    pub(super) fn under(&self, grant: &Grant) -> Balance {
        if grant.version > self.version {
            Balance { base: grant.base, ..self.balance }
        } else {
            self.balance
        }
    }
}

/// Spreads account keys, whose stems are uniform already.
#[derive(Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        // The words of a stem come as their bytes.
        let (words, rest) = bytes.as_chunks();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        for byte in rest {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }
    fn write_u8(&mut self, word: u8) {
        self.write_u64(u64::from(word));
    }
    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }
    fn write_usize(&mut self, _length: usize) {
        // The length prefix of a fixed array tells nothing.
    }
}

/// Every account that was ever taken from, but those of cycles that are closed.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: DashMap<AccountKey, Arc<Entry>, BuildHasherDefault<KeyHasher>>,
    /// The digits of the label below which cycles are closed. Whoever changes it then locks every
    /// account below it once; whoever takes from accounts reads it under their locks. So of the
    /// two, one sees the other.
    closed: AtomicU32,
}

impl Table {
    /// Accounts of cycles before `closed` are gone.
    pub(super) fn new(closed: Label) -> Self {
        Self { closed: AtomicU32::new(closed.digits()), ..Self::default() }
    }

    /// The label below which cycles are closed.
    pub(super) fn closed(&self) -> Label {
        Label::from_digits(self.closed.load(Ordering::SeqCst))
    }

    /// Closes cycles: from here on nothing is taken from accounts below the label. False, and
    /// nothing changed, where something is held in one of them.
    pub(super) fn close(&self, below: Label) -> bool {
        let before = self.closed.swap(below.digits(), Ordering::SeqCst);
        let mut free = true;
        self.for_each(|entry| {
            free &= !(entry.key.is_closed(below) && entry.state.lock().balance.held > 0);
        });
        if !free {
            self.closed.store(before, Ordering::SeqCst);
        }
        free
    }

    /// Forgets the accounts of closed cycles, and says how many there were.
    pub(super) fn forget_closed(&self) -> usize {
        let (closed, before) = (self.closed(), self.len());
        self.entries.retain(|key, _| !key.is_closed(closed));
        self.entries.shrink_to_fit();
        before.saturating_sub(self.len())
    }

    /// Puts an account in, at recovery.
    pub(super) fn insert(&self, entry: Entry) {
        self.entries.insert(entry.key, Arc::new(entry));
    }

    /// How many accounts there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Every account. They are listed first, so that nobody waits for the map while they are
    /// looked at.
    pub(super) fn for_each(&self, see: impl FnMut(&Entry)) {
        let entries: Vec<Arc<Entry>> =
            self.entries.iter().map(|entry| Arc::clone(&entry)).collect();
        entries.iter().map(Arc::as_ref).for_each(see);
    }

    /// An account, if anything was ever taken from it. The map's guard ends here.
    pub(super) fn get(&self, key: &AccountKey) -> Option<Arc<Entry>> {
        self.entries.get(key).map(|entry| Arc::clone(&entry))
    }

    /// An account, opened empty if need be.
    pub(super) fn get_or_open(&self, account: &Account<'_>) -> Arc<Entry> {
        if let Some(entry) = self.get(&account.key) {
            return entry;
        }
        let open = || {
            Arc::new(Entry {
                key: account.key,
                name: account.name.to_string().into(),
                state: Mutex::new(State { unwritten: true, ..State::default() }),
            })
        };
        Arc::clone(&self.entries.entry(account.key).or_insert_with(open))
    }

    /// The balance of an account as a post would find it now.
    pub(super) fn balance(&self, key: &AccountKey, grant: &Grant) -> Balance {
        match self.get(key) {
            _ if key.is_closed(self.closed()) => Balance::default(),
            Some(entry) => entry.state.lock().under(grant),
            None => State::default().under(grant),
        }
    }
}

/// The account of a slot of a post.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    /// `None` for a slot that the post does not name, or whose account does not exist.
    pub(super) entry: Option<Arc<Entry>>,
    /// What the directory granted it when the post was made: an account that was named and not
    /// taken from knows nothing of it.
    pub(super) grant: Grant,
}

/// Accounts by the slots of a post. On the heap, because they move into the hold.
pub(super) type Places = Vec<Place>;

/// A post that was applied in memory.
pub(super) struct Applied {
    pub(super) legs: Legs,
    pub(super) view: View,
    pub(super) places: Places,
    /// Slots whose grant the record has to repeat, with the grant.
    pub(super) openings: SmallVec<[(Slot, Grant); 1]>,
}

/// What becomes of what a post takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Into {
    Held,
    Captured,
}

/// Applies a post: all of it or nothing, in which case the view is the error's.
pub(super) fn apply(
    table: &Table,
    accounts: &[Account<'_>],
    post: &Post,
    into: Into,
) -> Result<Result<Applied, View>, BooksError> {
    loop {
        let closed = table.closed();
        let places = find(table, accounts, post, closed)?;
        if let Some(applied) = apply_to(table, accounts, post, into, closed, places)? {
            return Ok(applied);
        }
    }
}

/// Applies a post to the places it names; `None` where a cycle was closed meanwhile.
fn apply_to(
    table: &Table,
    accounts: &[Account<'_>],
    post: &Post,
    into: Into,
    closed: Label,
    mut places: Places,
) -> Result<Option<Result<Applied, View>>, BooksError> {
    let mut guards = lock(&places)?;
    // What did not exist before the locks can have been opened since, and then what it has is
    // not of the same step as the rest. Accounts stay once opened, so this ends.
    loop {
        let opened = opened_since(table, accounts, post, &places, closed);
        if opened.is_empty() {
            break;
        }
        drop(guards);
        for (index, entry) in opened {
            places[index].entry = Some(entry);
        }
        guards = lock(&places)?;
    }
    if table.closed() != closed {
        return Ok(None);
    }
    let mut view = View::new(accounts.len());
    read(&guards, accounts, post, closed, &mut view);
    let Some(legs) = take(post, &mut view, into)? else {
        // Sources before the one that cannot give were taken from in the view.
        read(&guards, accounts, post, closed, &mut view);
        drop(guards);
        look(table, accounts, post, &mut view);
        return Ok(Some(Err(view)));
    };
    let mut openings = SmallVec::new();
    for leg in &legs {
        let index = usize::from(leg.slot);
        // Every slot with a leg has an entry: `find` opened it.
        let Some(state) = guards[index].as_mut() else { return Err(BooksError::Range) };
        let grant = &accounts[index].grant;
        if grant.version > state.version {
            let changed = grant.base != state.balance.base || state.version == Version::default();
            state.unwritten |= changed;
            state.version = grant.version;
        }
        let Some(balance) = view.get(leg.slot) else { return Err(BooksError::Range) };
        state.balance = balance;
        if state.unwritten && !openings.iter().any(|(slot, _)| *slot == leg.slot) {
            let grant = Grant { base: state.balance.base, version: state.version };
            openings.push((leg.slot, grant));
        }
    }
    drop(guards);
    look(table, accounts, post, &mut view);
    for slot in &post.look {
        let index = usize::from(*slot);
        if places[index].entry.is_none() {
            places[index].entry = table.get(&accounts[index].key);
        }
    }
    Ok(Some(Ok(Applied { legs, view, places, openings })))
}

/// Reads the accounts of a post's sources, all of which are locked.
fn read(
    guards: &Guards<'_>,
    accounts: &[Account<'_>],
    post: &Post,
    closed: Label,
    view: &mut View,
) {
    for slot in named(post) {
        let index = usize::from(slot);
        let Account { key, grant, .. } = &accounts[index];
        let found = match &guards[index] {
            Some(state) => state.under(grant),
            // Whatever the directory grants it: it was used in its time, or never.
            None if key.is_closed(closed) => Balance::default(),
            None => State::default().under(grant),
        };
        view.set(slot, found);
    }
}

/// The slots that a post's sources name, possibly more than once.
fn named(post: &Post) -> impl Iterator<Item = Slot> {
    let payers = post.sources.iter().flat_map(|source| source.payers.iter());
    payers.flat_map(|payer| std::iter::once(payer.slot).chain(payer.cap))
}

/// Finds the accounts of a post's sources, and opens those that may be taken from.
fn find(
    table: &Table,
    accounts: &[Account<'_>],
    post: &Post,
    closed: Label,
) -> Result<Places, BooksError> {
    let grants = accounts.iter().map(|account| account.grant);
    let mut places: Places = grants.map(|grant| Place { entry: None, grant }).collect();
    for source in &post.sources {
        for slot in source.payers.iter().flat_map(|payer| [Some(payer.slot), payer.cap]).flatten() {
            let index = usize::from(slot);
            let account = accounts.get(index).ok_or(BooksError::Range)?;
            if places[index].entry.is_some() || account.key.is_closed(closed) {
                continue;
            }
            places[index].entry = if source.take > 0 {
                Some(table.get_or_open(account))
            } else {
                table.get(&account.key)
            };
        }
    }
    Ok(places)
}

/// Named accounts that [`find`] did not meet, and that exist now.
fn opened_since(
    table: &Table,
    accounts: &[Account<'_>],
    post: &Post,
    places: &Places,
    closed: Label,
) -> SmallVec<[(usize, Arc<Entry>); 1]> {
    let missed = named(post)
        .map(usize::from)
        .filter(|index| places[*index].entry.is_none() && !accounts[*index].key.is_closed(closed));
    missed.filter_map(|index| Some((index, table.get(&accounts[index].key)?))).collect()
}

type Guards<'a> = SmallVec<[Option<MutexGuard<'a, State>>; 8]>;

/// Locks each account once, in the one order that all posts share: by address.
fn lock(places: &Places) -> Result<Guards<'_>, BooksError> {
    let mut order: SmallVec<[(*const Entry, usize); 8]> = places
        .iter()
        .enumerate()
        .filter_map(|(index, place)| Some((Arc::as_ptr(place.entry.as_ref()?), index)))
        .collect();
    order.sort_unstable();
    if order.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        // Two slots of one account would wait for each other.
        return Err(BooksError::Range);
    }
    let mut guards: Guards<'_> = SmallVec::new();
    guards.resize_with(places.len(), || None);
    for (_, index) in order {
        guards[index] = places[index].entry.as_ref().map(|entry| entry.state.lock());
    }
    Ok(guards)
}

/// Takes greedily from every source, or returns `None` where one cannot give.
fn take(post: &Post, view: &mut View, into: Into) -> Result<Option<Legs>, BooksError> {
    let mut legs = Legs::new();
    for source in &post.sources {
        if !take_from(source, view, into, &mut legs)? {
            return Ok(None);
        }
    }
    Ok(Some(legs))
}

fn take_from(
    source: &Source,
    view: &mut View,
    into: Into,
    legs: &mut Legs,
) -> Result<bool, BooksError> {
    let one = |view: &View, slot: Slot| view.get(slot).map_or(0, |balance| balance.available());
    let available = |view: &View, slot: Slot, cap: Option<Slot>| {
        let own = one(view, slot);
        cap.map_or(own, |cap| own.min(one(view, cap)))
    };
    let total = source
        .payers
        .iter()
        .fold(0_u64, |sum, payer| sum.saturating_add(available(view, payer.slot, payer.cap)));
    let in_the_red = |slot: Slot| view.get(slot).is_some_and(|balance| balance.remaining() < 0);
    if (source.solvent && source.payers.iter().any(|payer| in_the_red(payer.slot)))
        || (!source.forced && total < source.take)
        || source.below.is_some_and(|below| total >= below)
    {
        return Ok(false);
    }
    let mut rest = source.take;
    for payer in &source.payers {
        let amount = match source.forced {
            true => rest,
            false => rest.min(available(view, payer.slot, payer.cap)),
        };
        if amount == 0 {
            continue;
        }
        rest -= amount;
        debit(view, payer.slot, amount, into)?;
        legs.push(Taken { slot: payer.slot, kind: payer.kind, amount });
        if let Some(cap) = payer.cap {
            debit(view, cap, amount, into)?;
            legs.push(Taken { slot: cap, kind: LegKind::Cap, amount });
        }
    }
    // Payers that share a cap can give less together than each by itself.
    Ok(rest == 0)
}

fn debit(view: &mut View, slot: Slot, amount: u64, into: Into) -> Result<(), BooksError> {
    let balance = view.get_mut(slot).ok_or(BooksError::Range)?;
    let side = match into {
        Into::Held => &mut balance.held,
        Into::Captured => &mut balance.captured,
    };
    *side = side.checked_add(amount).ok_or(BooksError::Range)?;
    Ok(())
}

/// Reads the accounts that a post only looks at.
fn look(table: &Table, accounts: &[Account<'_>], post: &Post, view: &mut View) {
    for &slot in &post.look {
        let index = usize::from(slot);
        // One that is also a source was read under its lock already.
        if let Some(account) = accounts.get(index)
            && view.get(slot).is_none()
        {
            view.set(slot, table.balance(&account.key, &account.grant));
        }
    }
}
