//! What another process finds when this one is killed: at every point of the journal a state
//! without overspend, and always the same.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tollgate::books::embedded::{Engine as Opened, Options};
use tollgate::books::recover::recover;
use tollgate::books::{Adjustment, Ask, Books, InDoubt, Resolution, Resolved};
use tollgate::core::account::{Account, Balance, Source};
use tollgate::core::charge::{OutcomeMemo, State};

use crate::engine::{
    Embedded, Engine, NOW, account, ask, balance, capped, copy, done, files, id, name, payer,
    poll_once, post, resolution, run, take, temporary,
};

const HEADER: u64 = 24;

/// What two sessions write who use up everything there is: every hold relies on what a void, a
/// capture, a raised grant or an adjustment gives back in the same turn, and is written by the
/// one session before or after the other writes what it relies on.
/// Thousands of journals are opened: none of them reserves more than it needs.
fn small() -> Options {
    Options { segment_size: 4096, ..Options::default() }
}

async fn write_history(engine: &Opened, rounds: Range<u64>) {
    let sessions = [engine.session(), engine.session()];
    let memo = OutcomeMemo::default();
    let forced = post([Source { forced: true, ..Source::take(1, [payer(4)]) }]);
    let mut open: Vec<u64> = Vec::new();
    for round in rounds {
        let turn = round as usize;
        let granted = |id| account(id, 10 + 2 * round, 1 + round);
        let mut accounts: Vec<Account<'_>> = ["a", "b", "pool", "cap"].map(granted).into();
        accounts.push(account("owes", 0, 1));
        let mut resolving = Vec::new();
        while open.len() > 3 {
            let charge = open.remove(turn % open.len());
            let extra = charge.is_multiple_of(4).then_some((&accounts[..], &forced));
            let state = if charge % 4 == 1 { State::Voided } else { State::Captured };
            let keep: &[u64] = if state == State::Voided { &[] } else { &[2, 1, 1] };
            let resolution = Resolution { extra, ..resolution(state, keep, &memo) };
            resolving.push(sessions[turn % 2].resolve(id(charge), &resolution));
        }
        let account = &accounts[turn % 4];
        let adjustment = Adjustment { key: None, account, delta: 3, now: NOW, memo: b"more" };
        let mut adjusting = Box::pin(sessions[turn / 3 % 2].adjust(&adjustment));
        assert!(!poll_once(&mut adjusting).await);
        let hold = |at: usize| {
            let charge = round * 10 + at as u64;
            let seat = Source::take(1 + round % 7, [payer(0), payer(1)]);
            let post = post([seat, Source::take(2, [capped(2, 3)])]);
            let in_doubt = if charge.is_multiple_of(3) { InDoubt::Capture } else { InDoubt::Void };
            let hold = sessions[at % 2].hold(&Ask { in_doubt, ..ask(charge, &accounts, &post) });
            async move { done(hold.await.unwrap()).map(|_| charge) }
        };
        let mut holding: Vec<_> = (0..4).map(|at| hold(turn / 2 + at)).collect();
        if turn % 4 > 1 {
            holding.reverse();
        }
        for hold in holding {
            open.extend(hold.await);
        }
        for resolved in resolving {
            assert!(matches!(resolved.await.unwrap(), Resolved::Done(..)));
        }
        adjusting.await.unwrap();
    }
}

/// Segment files with the positions from and up to which they go.
fn segments(dir: &Path) -> Vec<(u64, u64, PathBuf)> {
    let segment = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.strip_suffix(".journal")?;
        let start = name.parse().ok()?;
        let length = std::fs::metadata(&path).unwrap().len();
        Some((start, start + length - HEADER, path))
    };
    files(dir).into_iter().filter_map(segment).collect()
}

/// The position behind each record.
fn points(dir: &Path) -> Vec<u64> {
    let mut points = Vec::new();
    for (start, _, path) in segments(dir) {
        let bytes = std::fs::read(path).unwrap();
        let mut at = HEADER as usize;
        while at < bytes.len() {
            at += 8 + u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            points.push(start + at as u64 - HEADER);
        }
    }
    points
}

/// A copy of the directory as it was when the journal had come to `position`.
fn cut_at(dir: &Path, position: u64) -> tempfile::TempDir {
    let copied = temporary();
    copy(dir, copied.path());
    for (start, end, path) in segments(copied.path()) {
        if start > position {
            std::fs::remove_file(path).unwrap();
        } else if end > position {
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(HEADER + position - start).unwrap();
        }
    }
    for file in files(copied.path()) {
        let name = file.file_name().unwrap().to_str().unwrap();
        if name.strip_suffix(".snapshot").is_some_and(|at| at.parse::<u64>().unwrap() > position) {
            std::fs::remove_file(file).unwrap();
        }
    }
    copied
}

fn all(engine: &Opened) -> BTreeMap<String, Balance> {
    let mut all = BTreeMap::new();
    engine.for_each_balance(|_, name, balance| {
        all.insert(name.to_owned(), balance);
    });
    all
}

/// Recovers a copy that was cut, and checks all that must hold there.
fn check(dir: &Path, position: u64, whole: u64) {
    let cut = cut_at(dir, position);
    let found = recover(cut.path(), None).unwrap();
    assert_eq!(found.position, whole, "cut at {position}");
    for account in found.fold.accounts.values() {
        let is_forced = *account.name == name("owes");
        let remaining = account.balance.remaining();
        assert!(remaining >= 0 || is_forced, "{} at {position}: {remaining}", account.name);
    }
    let held: u64 =
        found.fold.holds.values().flat_map(|hold| &hold.legs).map(|leg| leg.amount).sum();
    let accounts = found.fold.accounts.values();
    assert_eq!(held, accounts.map(|account| account.balance.held).sum::<u64>());

    // Recovery writes what it resolves. A second start finds nothing to do, and a start that
    // died anywhere in the middle of the first leads to the same.
    let (first, recovered) = {
        let engine = Opened::open_with(cut.path(), NOW, small()).unwrap();
        (all(&engine), engine.written())
    };
    assert_eq!(first.values().map(|balance| balance.held).sum::<u64>(), 0);
    let middle = whole + (recovered - whole) / 2;
    // Torn bytes change nothing of what recovery reads, so one start more is enough for them.
    for again in [middle, recovered].into_iter().take(if position == whole { 2 } else { 1 }) {
        let interrupted = cut_at(cut.path(), again);
        let engine = Opened::open_with(interrupted.path(), NOW, small()).unwrap();
        assert_eq!(all(&engine), first, "cut at {position}, then at {again}");
    }
}

fn check_all_points(dir: &Path, sampled: usize) {
    let points = points(dir);
    assert!(points.len() >= 200, "{} records", points.len());
    check(dir, 0, 0);
    let mut before = 0;
    for (index, &end) in points.iter().enumerate() {
        check(dir, end, end);
        let step = if index + 3 >= points.len() { 1 } else { sampled };
        for torn in (before + 1..end).step_by(step) {
            check(dir, torn, before);
        }
        before = end;
    }
}

#[test]
fn f38_f05_every_prefix_of_the_journal_is_a_state_without_overspend() {
    let dir = temporary();
    {
        let engine = Opened::open_with(dir.path(), NOW, small()).unwrap();
        run(write_history(&engine, 0..30));
        assert!(engine.snapshot(NOW).unwrap());
        run(write_history(&engine, 30..60));
    }
    check_all_points(dir.path(), 151);
}

#[test]
fn f23_who_is_told_of_a_resolution_finds_it_again() {
    let engine = Embedded::start();
    let (mine, other) = (engine.session(), engine.session());
    let accounts = [account("a", 10, 1)];
    let memo = OutcomeMemo::default();
    run(async {
        assert!(done(mine.hold(&ask(1, &accounts, &take(10, &[0]))).await.unwrap()).is_some());
        let first = mine.resolve(id(1), &resolution(State::Captured, &[10], &memo));
        let second = other.resolve(id(1), &resolution(State::Voided, &[], &memo)).await.unwrap();
        assert!(matches!(second, Resolved::Already(State::Captured)));
        let found = engine.killed_now();
        assert_eq!(found.all()[&name("a")], balance(10, 0, 0, 10));
        first.await.unwrap();
    });
}
