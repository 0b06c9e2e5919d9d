//! What several workers write at once, cut at every byte: each prefix recovers to what a naive
//! reading of its records adds up to, overspends nothing, and has everything that was
//! acknowledged before its end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use tollgate::books::embedded::{Engine as Opened, Options};
use tollgate::books::fold::Fold;
use tollgate::books::recover::recover;
use tollgate::books::{
    Adjustment, Amended, Amendment, Ask, Books, InDoubt, Known, Lasting as More, Posted,
    Resolution, Resolved,
};
use tollgate::core::account::{Account, AccountKey, Balance, LegKind, Payer, Source};
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::core::record::{Finish, Lasting, Leg, Record};

use crate::engine::{
    NOW, account, amendment, ask, capped, files, id, key, known, name, payer, post, resolution,
    run, second, temporary,
};

const HEADER: usize = 24;
const WORKERS: u64 = 3;
const ROUNDS: u64 = 70;

/// Something that a worker was told, and how far the journal was when it was.
#[derive(Clone, Debug)]
enum Told {
    Held(u64),
    Amended(u64),
    Known([u8; 16], u8),
    Resolved(u64),
    Adjusted(i64),
}

/// One worker: seats with the pool behind them, captures with an excess that is owed, voids,
/// adjustments, raised and lowered grants, all on accounts that the others use up too; holds that
/// last, keys that the others use too, amendments.
fn work(engine: &Opened, worker: u64, turn: &AtomicU64) -> Vec<(u64, Told)> {
    let session = engine.session();
    let memo = OutcomeMemo::default();
    let owed = Payer { kind: LegKind::Overdraft, ..payer(4) };
    let forced = post([Source { forced: true, ..Source::take(2, [owed]) }]);
    let mut told = Vec::new();
    let mut open: Vec<u64> = Vec::new();
    run(async {
        for round in 0..ROUNDS {
            // Grants move up and down with the version that all workers share.
            let number = turn.fetch_add(1, Ordering::Relaxed);
            let granted = |id, base: u64| account(id, base + number % 23, 1 + number);
            let accounts: Vec<Account<'_>> = vec![
                granted("a", 130),
                granted("b", 90),
                granted("pool", 240),
                granted("cap", 200),
                account("owes", 0, 1),
            ];
            let charge = worker * 10_000 + round;
            let seat = Source::take(1 + round % 7, [payer(0), payer(1)]);
            let pool = Source::take(2 + round % 3, [capped(2, 3)]);
            let both = post([seat, pool]);
            let in_doubt = if charge.is_multiple_of(3) { InDoubt::Capture } else { InDoubt::Void };
            let which = (number % 5) as u8;
            let more = More {
                expires: charge.is_multiple_of(7).then(|| second(1_000 + round as i64)),
                once: round.is_multiple_of(2).then(|| key(1, which, 7)),
                note: b"note",
            };
            let lasting = (round % 3 > 0).then_some(more);
            let asked = Ask { in_doubt, lasting, ..ask(charge, &accounts, &both) };
            let hold = session.hold(&asked);
            let oldest = (open.len() > 2 || round % 5 == 4).then(|| open.pop()).flatten();
            let resolving = oldest.map(|charge| {
                let extra = charge.is_multiple_of(4).then_some((&accounts[..], &forced));
                let state = if charge % 3 == 1 { State::Voided } else { State::Captured };
                let keep: &[u64] = if state == State::Voided { &[] } else { &[3, 1, 1, 1] };
                let answer: &[u8] = if charge % 5 == 1 { b"HTTP/1.1 200 OK" } else { b"" };
                let how = Resolution { extra, answer, ..resolution(state, keep, &memo) };
                (charge, session.resolve(id(charge), &how))
            });
            let mut tell = |what| told.push((engine.written(), what));
            match hold.await.unwrap() {
                Posted::Done(..) => {
                    tell(Told::Held(charge));
                    open.push(charge);
                }
                Posted::Known(known) if known.captured => tell(Told::Known(known.charge.0, which)),
                Posted::Known(_) | Posted::Short(_) => {}
            }
            if let Some(charge) = open.last().filter(|_| round % 3 == 1) {
                let (used, top_up) =
                    (known(&[1, 1]), post([Source::take(1, [payer(1), payer(0)])]));
                let how = Amendment {
                    extra: Some((&accounts, &top_up)),
                    known: (round % 2 == 0).then_some(&used),
                    expires: (round % 4 == 0).then(|| second(5_000)),
                    note: Some(b"amended"),
                    ..amendment()
                };
                if let Amended::Done(..) = session.amend(id(*charge), &how).await.unwrap() {
                    tell(Told::Amended(*charge));
                }
            }
            if let Some((charge, resolving)) = resolving {
                assert!(matches!(resolving.await.unwrap(), Resolved::Done(..)));
                tell(Told::Resolved(charge));
            }
            if round % 6 == worker {
                let delta = if round % 4 == 0 { -1 } else { 4 };
                let at = (round % 4) as usize;
                let change =
                    Adjustment { key: None, account: &accounts[at], delta, now: NOW, memo: b"why" };
                session.adjust(&change).await.unwrap();
                tell(Told::Adjusted(delta));
            }
        }
    });
    told
}

/// Small segments: their space is taken at every start.
fn open(dir: &Path) -> Opened {
    let options = Options { segment_size: 1 << 20, ..Options::default() };
    Opened::open_with(dir, NOW, options).unwrap()
}

/// The books as a naive reading of the records has them.
#[derive(Clone, Default)]
struct Naive {
    accounts: BTreeMap<AccountKey, Sum>,
    open: BTreeMap<[u8; 16], Left>,
    /// Who has which key, and whether it is captured.
    keys: BTreeMap<[u8; 16], ([u8; 16], bool)>,
    amended: BTreeSet<[u8; 16]>,
    held: BTreeSet<[u8; 16]>,
    resolved: BTreeSet<[u8; 16]>,
    adjusted: BTreeMap<i64, usize>,
}

/// An open hold.
#[derive(Clone)]
struct Left {
    legs: Vec<Leg>,
    in_doubt: InDoubt,
    known: Option<Known>,
    expires: Option<i64>,
    key: Option<[u8; 16]>,
    note: Vec<u8>,
}

#[derive(Clone, Default)]
struct Sum {
    name: String,
    version: (u32, u64),
    base: i128,
    adjusted: i128,
    held: i128,
    captured: i128,
    owed: i128,
    peak: i128,
}

impl Naive {
    fn read(&mut self, record: &Record<'_>) {
        for opening in record.openings() {
            let sum = self.accounts.entry(opening.key).or_default();
            sum.name = opening.name.to_owned();
            let version = (opening.grant.version.epoch, opening.grant.version.number);
            if version > sum.version {
                (sum.version, sum.base) = (version, opening.grant.base.into());
            }
        }
        match record {
            Record::Hold(hold) | Record::Lasting(Lasting { hold, .. }) => {
                for leg in &hold.legs {
                    self.sum(leg).held += i128::from(leg.amount);
                }
                let mut left = Left {
                    legs: hold.legs.to_vec(),
                    in_doubt: hold.in_doubt,
                    known: None,
                    expires: None,
                    key: None,
                    note: Vec::new(),
                };
                if let Record::Lasting(lasting) = record {
                    left.expires = lasting.expires;
                    left.key = lasting.once.map(|once| once.key);
                    left.note = lasting.note.to_vec();
                }
                if let Some(key) = left.key {
                    let before = self.keys.insert(key, (hold.charge, false));
                    assert_eq!(before, None, "two charges under one key");
                }
                self.open.insert(hold.charge, left);
                assert!(self.held.insert(hold.charge), "held twice");
            }
            Record::Amend(amend) => {
                for leg in &amend.legs {
                    self.sum(leg).held += i128::from(leg.amount);
                }
                let left = self.open.get_mut(&amend.charge).expect("amended and not open");
                for more in &amend.legs {
                    let same = |leg: &&mut Leg| (leg.key, leg.kind) == (more.key, more.kind);
                    match left.legs.iter_mut().find(same) {
                        Some(leg) => leg.amount += more.amount,
                        None => left.legs.push(*more),
                    }
                }
                left.known = amend.known.clone().or(left.known.take());
                left.expires = amend.expires.or(left.expires);
                if let Some(note) = amend.note {
                    left.note = note.to_vec();
                }
                self.amended.insert(amend.charge);
            }
            Record::Resolve(resolve) | Record::Finish(Finish { resolve, .. }) => {
                let left = self.open.remove(&resolve.charge).expect("resolved and not open");
                for (index, leg) in left.legs.iter().enumerate() {
                    let kept = resolve.keep.get(index).copied().unwrap_or(0);
                    assert!(kept <= leg.amount);
                    let sum = self.sum(leg);
                    sum.held -= i128::from(leg.amount);
                    sum.captured += i128::from(kept);
                }
                for leg in &resolve.extra {
                    let sum = self.sum(leg);
                    sum.captured += i128::from(leg.amount);
                    if leg.kind == LegKind::Overdraft {
                        sum.owed += i128::from(leg.amount);
                    }
                }
                self.settle(left.key, resolve.charge, resolve.state == State::Captured);
                assert!(self.resolved.insert(resolve.charge), "resolved twice");
            }
            Record::Adjust(adjust) => {
                let sum = self.accounts.get_mut(&adjust.key).unwrap();
                sum.adjusted += i128::from(adjust.delta);
                *self.adjusted.entry(adjust.delta).or_default() += 1;
            }
            Record::Carried(_) => panic!("nothing is moved"),
            Record::Synced(_) | Record::Close(_) => {}
        }
        for sum in self.accounts.values_mut() {
            sum.peak = sum.peak.max(sum.base + sum.adjusted);
            let spent = sum.held + sum.captured - sum.owed;
            assert!(spent <= sum.peak, "{} spent {spent} of {}", sum.name, sum.peak);
        }
    }

    /// The key of a charge that ended.
    fn settle(&mut self, key: Option<[u8; 16]>, charge: [u8; 16], captured: bool) {
        let Some(key) = key else { return };
        assert_eq!(self.keys.remove(&key), Some((charge, false)));
        if captured {
            self.keys.insert(key, (charge, true));
        }
    }

    fn sum(&mut self, leg: &Leg) -> &mut Sum {
        self.accounts.get_mut(&leg.key).expect("taken from and never opened")
    }

    fn balances(&self) -> BTreeMap<String, Balance> {
        let balance = |sum: &Sum| Balance {
            base: sum.base.try_into().unwrap(),
            adjusted: sum.adjusted.try_into().unwrap(),
            held: sum.held.try_into().unwrap(),
            captured: sum.captured.try_into().unwrap(),
        };
        self.accounts.values().map(|sum| (sum.name.clone(), balance(sum))).collect()
    }

    /// Open holds and keys are as they are recovered.
    fn has_open(&self, fold: &Fold) {
        let holds = fold.holds.iter().map(|(charge, hold)| (*charge, hold));
        let holds: BTreeMap<_, _> = holds.collect();
        assert!(holds.keys().eq(self.open.keys()));
        for (hold, left) in holds.values().zip(self.open.values()) {
            assert_eq!((hold.legs.to_vec(), &hold.known), (left.legs.clone(), &left.known));
            assert_eq!((hold.expires, &*hold.note), (left.expires, &*left.note));
        }
        let keys = fold.once.iter();
        let keys: BTreeMap<_, _> =
            keys.map(|((_, key), known)| (*key, (known.charge, known.captured))).collect();
        assert_eq!(keys, self.keys);
    }

    /// What was acknowledged at this position or before it is there.
    fn has(&self, told: &[(u64, Told)], position: u64) {
        let mut adjusted: BTreeMap<i64, usize> = BTreeMap::new();
        for (_, told) in told.iter().filter(|(at, _)| *at <= position) {
            match told {
                Told::Held(charge) => assert!(self.held.contains(&id(*charge).0), "{told:?}"),
                Told::Amended(charge) => assert!(self.amended.contains(&id(*charge).0)),
                Told::Known(charge, which) => {
                    assert_eq!(self.keys[&[*which; 16]], (*charge, true), "{told:?}");
                }
                Told::Resolved(charge) => {
                    assert!(self.resolved.contains(&id(*charge).0), "{told:?}");
                }
                Told::Adjusted(delta) => *adjusted.entry(*delta).or_default() += 1,
            }
        }
        for (delta, count) in adjusted {
            assert!(self.adjusted.get(&delta).is_some_and(|known| *known >= count));
        }
    }
}

/// The only segment with records, its bytes, and where its frames begin and end.
fn journal(dir: &Path) -> (std::path::PathBuf, Vec<u8>, Vec<usize>) {
    let mut with_records: Vec<_> = files(dir)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "journal"))
        .map(|path| (std::fs::read(&path).unwrap(), path))
        .filter(|(bytes, _)| bytes.len() > HEADER)
        .collect();
    assert_eq!(with_records.len(), 1);
    let (bytes, path) = with_records.remove(0);
    let mut ends = vec![HEADER];
    while let Some(length) = bytes.get(ends[ends.len() - 1]..).and_then(|rest| rest.first_chunk()) {
        ends.push(ends[ends.len() - 1] + 8 + u32::from_le_bytes(*length) as usize);
    }
    (path, bytes, ends)
}

#[test]
fn f01_f02_f38_every_torn_byte_of_what_workers_wrote_at_once_recovers_as_a_naive_reading_says() {
    let dir = temporary();
    let turn = AtomicU64::new(0);
    let told: Vec<(u64, Told)> = {
        let engine = open(dir.path());
        std::thread::scope(|scope| {
            let work = |worker| {
                let (engine, turn) = (&engine, &turn);
                scope.spawn(move || work(engine, worker, turn))
            };
            let workers: Vec<_> = (0..WORKERS).map(work).collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        })
    };
    let (path, bytes, ends) = journal(dir.path());
    assert!(ends.len() > 150, "{} records", ends.len());
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut naive = Naive::default();
    let (mut next, cut) = (1, temporary());
    let file = cut.path().join(path.file_name().unwrap());
    for end in HEADER..=bytes.len() {
        if ends.get(next) == Some(&end) {
            let record = Record::decode(&bytes[ends[next - 1] + 8..end]).unwrap();
            let kind = match &record {
                Record::Hold(_) => "held",
                Record::Lasting(_) => "lasting",
                Record::Amend(_) => "amended",
                Record::Finish(_) => "finished",
                Record::Resolve(resolve) if !resolve.extra.is_empty() => "excess",
                Record::Resolve(resolve) if resolve.state == State::Voided => "voided",
                Record::Resolve(_) => "captured",
                Record::Adjust(_) => "adjusted",
                Record::Synced(_) | Record::Close(_) | Record::Carried(_) => "mark",
            };
            *seen.entry(kind).or_default() += 1;
            naive.read(&record);
            naive.has(&told, (end - HEADER) as u64);
            next += 1;
        }
        std::fs::write(&file, &bytes[..end]).unwrap();
        let found = recover(cut.path(), None).unwrap();
        let whole = ends[next - 1];
        assert_eq!(found.position, (whole - HEADER) as u64, "cut at {end}");
        assert_eq!(found.torn.map_or(0, |torn| torn.bytes), (end - whole) as u64);
        let accounts = found.fold.accounts.values();
        let recovered: BTreeMap<_, _> =
            accounts.map(|account| (account.name.to_string(), account.balance)).collect();
        assert_eq!(recovered, naive.balances(), "cut at {end}");
        if end == whole {
            naive.has_open(&found.fold);
            restarted(&file, &naive);
        }
    }
    assert_eq!(next, ends.len());
    let kinds =
        ["held", "excess", "voided", "captured", "adjusted", "lasting", "amended", "finished"];
    for kind in kinds {
        assert!(seen.get(kind).is_some_and(|count| *count > 5), "{kind}: {seen:?}");
    }
    assert!(naive.balances()[&name("owes")].captured > 0);
}

/// A start after this prefix resolves what is open as its holds say, but for those that last, and
/// nothing else.
fn restarted(file: &Path, naive: &Naive) {
    let dir = temporary();
    std::fs::copy(file, dir.path().join(file.file_name().unwrap())).unwrap();
    let engine = open(dir.path());
    let mut expected = naive.clone();
    for (charge, left) in &naive.open {
        if left.expires.is_some() {
            continue;
        }
        expected.open.remove(charge);
        for (index, leg) in left.legs.iter().enumerate() {
            let kept = match (&left.known, left.in_doubt) {
                (Some(known), _) => known.keep.get(index).copied().unwrap_or(0).min(leg.amount),
                (None, InDoubt::Capture) => leg.amount,
                (None, InDoubt::Void) => 0,
            };
            let sum = expected.sum(leg);
            sum.held -= i128::from(leg.amount);
            sum.captured += i128::from(kept);
        }
        let captured = left.known.is_some() || left.in_doubt == InDoubt::Capture;
        expected.settle(left.key, *charge, captured);
    }
    let mut found = BTreeMap::new();
    engine.for_each_balance(|_, name, balance| {
        found.insert(name.to_owned(), balance);
    });
    assert_eq!(found, expected.balances());
    let open = engine.list_open().into_iter();
    let open: BTreeMap<_, _> =
        open.map(|open| (open.charge.0, open.expires.map(|at| at.as_microsecond()))).collect();
    assert_eq!(open, expected.open.iter().map(|(charge, left)| (*charge, left.expires)).collect());
    let session = engine.session();
    for which in 0..5 {
        let known = run(session.known(1, &[which; 16])).unwrap();
        let known = known.map(|known| (known.charge.0, known.captured));
        assert_eq!(known, expected.keys.get(&[which; 16]).copied());
    }
}
