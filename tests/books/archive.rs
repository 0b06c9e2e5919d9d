//! The archive and the journal when they do not fit each other: records that the journal lost,
//! records that cannot be read.

use std::path::Path;

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tollgate::books::carry::write;
use tollgate::books::embedded::Engine;
use tollgate::books::journal::{Frames, Journal, SEGMENT_SIZE, Segments};
use tollgate::books::recover::recover;
use tollgate::books::{
    Adjustment, Amended, Amendment, Ask, Books, Durability, InDoubt, KEPT_KEYS, Lasting,
    Resolution, Resolved,
};
use tollgate::core::adjustment::AdjustMemo;
use tollgate::core::charge::{ChargeDocument, OutcomeMemo, State};
use tollgate::core::ids::ChargeId;
use tollgate::core::record::{Adjust, Record};
use tollgate::directory::Place;
use tollgate::ledger::archive::{Archive, Mark};

use crate::engine::{
    NOW, account, amendment, ask, done, id, resolution, run, second, take, temporary,
};
use crate::prune::{self, archive, at_day};

/// What runs on an event loop of its own, from within another one's.
fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

fn hold(engine: &Engine, charge: u64, day: u64) {
    apart(|| prune::hold(engine, charge, day));
}

fn capture(engine: &Engine, charge: u64, day: u64) {
    apart(|| prune::capture(engine, charge, day));
}

/// Adjusts an account under an id, for a charge where one is given back.
fn adjust(engine: &Engine, own: ChargeId, day: u64, charge: Option<ChargeId>) {
    let charge = charge.map(|charge| charge.0);
    let memo =
        AdjustMemo { id: own.0, org: "acme", who: "operator", reason: "ticket 4711", charge };
    adjust_with(engine, day, &postcard::to_stdvec(&memo).unwrap());
}

fn adjust_with(engine: &Engine, day: u64, memo: &[u8]) {
    let account = account("a", 1_000, 1);
    let adjustment = Adjustment { key: None, account: &account, delta: 50, now: at_day(day), memo };
    apart(|| run(engine.session().adjust(&adjustment)).unwrap());
}

/// A power failure takes all from a position on.
fn lose(dir: &Path, from: u64) {
    let place = Segments::list(dir).unwrap().place(from).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(place.path).unwrap();
    file.set_len(place.offset).unwrap();
}

/// All that is recorded by now.
fn mark(engine: &Engine) -> Mark {
    Mark::journal(engine.written())
}

/// What the archive knows of adjustments.
async fn known(archive: &Archive, end: Mark) -> Vec<String> {
    let listed = archive.adjustments("acme", None, 100, end).await.unwrap();
    listed.into_iter().rev().map(|(_, document)| document.id).collect()
}

/// Whoever asks for an adjustment or a refund again must not be told that it was made.
#[test]
fn f38_adjustments_that_the_journal_lost_are_not_kept_by_the_archive() {
    for is_pruned in [false, true] {
        let (dir, data) = (temporary(), temporary());
        let (kept, lost, refund) = (id(1_001), id(1_002), id(1_003));
        let charge = id(2_000);
        run(async {
            let engine = prune::open(dir.path(), 0).unwrap();
            adjust(&engine, id(1_000), 0, None);
            archive(&data, dir.path(), &engine).await.close().await;
            drop(engine);
            // Two snapshots have it, so its segment may go.
            let engine = prune::open(dir.path(), 1).unwrap();
            assert!(engine.snapshot(NOW).unwrap());
            hold(&engine, 1_999, 1);
            drop(engine);
            let engine = prune::open(dir.path(), 2).unwrap();
            assert!(engine.snapshot(NOW).unwrap());
            if is_pruned {
                assert!(engine.prune(at_day(1_000), engine.written()).unwrap() > 0);
            }
            let first = Segments::list(dir.path()).unwrap().as_slice()[0].start;
            assert_eq!(first > 0, is_pruned);
            hold(&engine, 2_000, 2);
            capture(&engine, 2_000, 2);
            adjust(&engine, kept, 2, None);
            let end = engine.written();
            adjust(&engine, lost, 2, None);
            adjust(&engine, refund, 2, Some(charge));
            let archived = archive(&data, dir.path(), &engine).await;
            let written = mark(&engine);
            assert!(archived.adjustment(lost, written).await.unwrap().is_some());
            assert_eq!(archived.given_back(charge, written).await.unwrap().len(), 1);
            let before = known(&archived, written).await;
            assert_eq!(before.len(), 4);
            archived.close().await;
            drop(engine);
            lose(dir.path(), end);

            let engine = prune::open(dir.path(), 3).unwrap();
            let again = archive(&data, dir.path(), &engine).await;
            let written = mark(&engine);
            assert_eq!(known(&again, written).await, before[..2], "pruned: {is_pruned}");
            assert_eq!(again.adjustment(lost, written).await.unwrap(), None);
            assert_eq!(again.given_back(charge, written).await.unwrap(), []);
            assert!(again.adjustment(kept, written).await.unwrap().is_some());
            assert_ne!(again.charge(charge, written).await.unwrap(), None);
            // Made again, under the same ids.
            adjust(&engine, lost, 3, None);
            adjust(&engine, refund, 3, Some(charge));
            again.close().await;
            let again = archive(&data, dir.path(), &engine).await;
            assert_eq!(known(&again, mark(&engine)).await, before);
            again.close().await;
        });
    }
}

/// The process died between its recovery and the archive, and what recovery wrote has filled what
/// was lost.
#[test]
fn f38_an_archive_whose_position_is_inside_a_record_is_built_again() {
    let (dir, data) = (temporary(), temporary());
    run(async {
        let engine = prune::open(dir.path(), 0).unwrap();
        adjust(&engine, id(1), 0, None);
        let end = engine.written();
        adjust(&engine, id(2), 0, None);
        archive(&data, dir.path(), &engine).await.close().await;
        let archived = engine.written();
        drop(engine);
        lose(dir.path(), end);
        let engine = prune::open(dir.path(), 1).unwrap();
        hold(&engine, 3, 1);
        assert!(engine.written() > archived);
        drop(engine);
        let engine = prune::open(dir.path(), 2).unwrap();
        let again = archive(&data, dir.path(), &engine).await;
        let written = mark(&engine);
        assert_eq!(again.position(), written.position);
        assert_eq!(known(&again, written).await, [id(1).to_string()]);
        assert_ne!(again.charge(id(3), written).await.unwrap(), None);
        again.close().await;
    });
}

fn hold_with(engine: &Engine, charge: u64, memo: &[u8]) {
    let (accounts, post) = ([account("a", 1_000, 1)], take(3, &[0]));
    let asked = Ask { memo, ..ask(charge, &accounts, &post) };
    let memo = OutcomeMemo::default();
    let captured = resolution(State::Captured, &[2], &memo);
    apart(|| {
        assert!(done(run(engine.session().hold(&asked)).unwrap()).is_some());
        run(engine.session().resolve(id(charge), &captured)).unwrap();
    });
}

async fn dead(data: &TempDir, dir: &Path, engine: &Engine, expected: u64) -> Archive {
    let archived = archive(data, dir, engine).await;
    assert_eq!(archived.position(), engine.written());
    assert_eq!(archived.dead_letters(), expected);
    archived
}

#[test]
fn d37_a_hold_whose_memo_cannot_be_read_does_not_stop_the_archive() {
    let (dir, data) = (temporary(), temporary());
    run(async {
        let engine = prune::open(dir.path(), 0).unwrap();
        hold_with(&engine, 1, b"\xff");
        hold(&engine, 2, 0);
        // The hold, and what became of it.
        let archived = dead(&data, dir.path(), &engine, 2).await;
        let written = mark(&engine);
        assert_eq!(archived.charge(id(1), written).await.unwrap(), None);
        assert_ne!(archived.charge(id(2), written).await.unwrap(), None);
        archived.close().await;
        // Counted once, also at the next start.
        dead(&data, dir.path(), &engine, 2).await.close().await;
    });
}

#[test]
fn d37_an_adjustment_whose_memo_cannot_be_read_is_found_by_its_id() {
    let (dir, data) = (temporary(), temporary());
    run(async {
        let engine = prune::open(dir.path(), 0).unwrap();
        let memo =
            AdjustMemo { id: id(1).0, org: "acme", who: "operator", reason: "", charge: None };
        let mut memo = postcard::to_stdvec(&memo).unwrap();
        // The org is no text any more.
        memo[20] = 0xff;
        adjust_with(&engine, 0, &memo);
        adjust_with(&engine, 0, b"");
        adjust(&engine, id(2), 0, None);
        let archived = dead(&data, dir.path(), &engine, 2).await;
        let found = archived.adjustment(id(1), mark(&engine)).await.unwrap().unwrap();
        assert_eq!((&*found.amount, &*found.account), ("0.00005", "acme/licence/a/2026-11-01"));
        assert_eq!(found.id, id(1).to_string());
        let all = [id(1).to_string(), id(2).to_string()];
        assert_eq!(known(&archived, mark(&engine)).await, all);
        archived.close().await;
    });
}

#[test]
fn d37_a_mark_does_not_take_away_when_the_last_record_was_made() {
    let (dir, data) = (temporary(), temporary());
    run(async {
        let journal = Journal::open(dir.path(), 0, SEGMENT_SIZE, Durability::Process).unwrap();
        let append = |record: &Record<'_>| {
            let mut frames = Frames::default();
            frames.push(record).unwrap();
            journal.append(&mut frames).unwrap()
        };
        let account = account("a", 1_000, 1);
        let (key, at) = (account.key, at_day(3).as_microsecond());
        append(&Record::Adjust(Adjust {
            at,
            openings: Default::default(),
            key,
            delta: 1,
            memo: b"",
        }));
        let archived = Archive::open(data.path(), dir.path(), 0, 0).await.unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        archived.follow(stop.clone()).await.unwrap();
        assert_eq!(archived.newest(), Some(at_day(3)));
        append(&Record::Synced(0));
        archived.follow(stop).await.unwrap();
        assert_eq!(archived.position(), journal.written());
        assert_eq!(archived.newest(), Some(at_day(3)));
        archived.close().await;
    });
}

/// A hold of three that lasts a minute, and whatever else is done to it.
fn lasting(engine: &Engine, charge: u64, in_doubt: InDoubt) {
    let (accounts, post) = ([account("a", 1_000, 1)], take(3, &[0]));
    let memo = prune::memo();
    let expires = Some(second(60));
    let lasting = Some(Lasting { expires, ..Lasting::default() });
    let asked = Ask { memo: &memo, in_doubt, lasting, ..ask(charge, &accounts, &post) };
    apart(|| assert!(done(run(engine.session().hold(&asked)).unwrap()).is_some()));
}

fn amend(engine: &Engine, charge: u64, amendment: &Amendment<'_>) {
    apart(|| {
        let amended = run(engine.session().amend(id(charge), amendment)).unwrap();
        assert!(matches!(amended, Amended::Done(..)), "{amended:?}");
    });
}

fn finish(engine: &Engine, charge: u64, keep: &[u64], answer: &[u8]) {
    let memo = OutcomeMemo::default();
    let captured = Resolution { answer, ..resolution(State::Captured, keep, &memo) };
    apart(|| {
        let resolved = run(engine.session().resolve(id(charge), &captured)).unwrap();
        assert!(matches!(resolved, Resolved::Done(..)));
    });
}

fn legs(document: &ChargeDocument) -> Vec<(&str, &str)> {
    document.legs.iter().map(|leg| (&*leg.account, &*leg.amount)).collect()
}

/// Amendments may come in the batch of their hold, in a later one, and behind a restart.
#[test]
fn d34_a_charge_is_archived_with_what_amended_it() {
    let a = "acme/licence/a/2026-11-01";
    let b = "acme/licence/b/2026-11-01";
    for is_apart in [false, true] {
        let (dir, data) = (temporary(), temporary());
        run(async {
            let engine = prune::open(dir.path(), 0).unwrap();
            for charge in 1..4 {
                lasting(&engine, charge, InDoubt::Capture);
            }
            if is_apart {
                archive(&data, dir.path(), &engine).await.close().await;
            }
            let (accounts, more) =
                ([account("a", 1_000, 1), account("b", 9, 1)], take(1_045, &[0, 1]));
            let longer = Amendment {
                extra: Some((&accounts, &more)),
                expires: Some(second(90)),
                ..amendment()
            };
            let used = crate::engine::known(&[2]);
            amend(&engine, 2, &Amendment { known: Some(&used), ..amendment() });
            adjust_with(&engine, 0, b"");
            amend(&engine, 1, &longer);
            let archived = archive(&data, dir.path(), &engine).await;
            let open = archived.charge(id(1), mark(&engine)).await.unwrap().unwrap();
            assert_eq!((open.state, open.expires_at), (State::Held, Some(second(90))));
            assert_eq!(legs(&open), [(a, "0.001044"), (b, "0.000004")]);
            assert_eq!(engine.expire(second(60)).unwrap().len(), 2);
            finish(&engine, 1, &[500, 4], b"");
            archived.close().await;
            let archived = archive(&data, dir.path(), &engine).await;
            let written = mark(&engine);
            let found = archived.charge(id(1), written).await.unwrap().unwrap();
            assert_eq!((found.state, found.expires_at), (State::Captured, Some(second(90))));
            assert_eq!(legs(&found), [(a, "0.0005"), (b, "0.000004")]);
            for (charge, amount) in [(2, "0.000002"), (3, "0.000003")] {
                let found = archived.charge(id(charge), written).await.unwrap().unwrap();
                assert_eq!((found.state, legs(&found)), (State::Captured, vec![(a, amount)]));
                assert_eq!(found.flags, ["in_doubt"]);
            }
            archived.close().await;
        });
    }
}

#[test]
fn d35_an_answer_is_kept_as_long_as_its_key() {
    let (dir, data) = (temporary(), temporary());
    run(async {
        let engine = prune::open(dir.path(), 0).unwrap();
        for charge in 1..4 {
            lasting(&engine, charge, InDoubt::Void);
        }
        amend(&engine, 1, &Amendment { answer: b"202", ..amendment() });
        finish(&engine, 2, &[3], b"200");
        finish(&engine, 3, &[3], b"");
        let archived = archive(&data, dir.path(), &engine).await;
        let kept = async |archived: &Archive, charge| {
            archived.answer(id(charge), mark(&engine)).await.unwrap()
        };
        let answers: [Option<&[u8]>; 4] = [Some(b"202"), Some(b"200"), None, None];
        for (charge, answer) in (1..).zip(answers) {
            assert_eq!(kept(&archived, charge).await.as_deref(), answer, "{charge}");
        }
        // What is said last is the answer.
        finish(&engine, 1, &[3], b"200 job");
        archived.close().await;
        let archived = archive(&data, dir.path(), &engine).await;
        assert_eq!(kept(&archived, 1).await.as_deref(), Some(&b"200 job"[..]));
        assert_eq!(archived.forget_answers(NOW + KEPT_KEYS).await.unwrap(), 0);
        assert_eq!(archived.forget_answers(NOW + KEPT_KEYS * 2).await.unwrap(), 2);
        assert_eq!(kept(&archived, 1).await, None);
        assert_ne!(archived.charge(id(1), mark(&engine)).await.unwrap(), None);
        archived.close().await;
    });
}

/// What came before a move is in no journal any more: an archive that is built again keeps it.
#[test]
fn f38_an_archive_that_is_built_again_keeps_what_was_before_the_books_moved() {
    let (before, dir, data) = (temporary(), temporary(), temporary());
    let path = dir.path().join("books");
    let charge = |day: u64| at_day(day).as_millisecond() as u64;
    let place = || Place::File(data.path().join("archive.db"));
    let (kept, lost) = (id(charge(0) + 1), id(charge(2) + 1));
    run(async {
        let engine = prune::open(before.path(), 0).unwrap();
        hold(&engine, charge(0), 0);
        capture(&engine, charge(0), 0);
        adjust(&engine, kept, 0, None);
        archive(&data, before.path(), &engine).await.close().await;
        let end = engine.written();
        assert!(Archive::has_journal(place(), end).await.unwrap());
        assert!(!Archive::has_journal(place(), end + 1).await.unwrap());
        drop(engine);
        let fold = recover(before.path(), None).unwrap().fold;
        write(&path, "others", &fold, at_day(1).as_microsecond()).unwrap();
        Archive::begin_journal(place()).await.unwrap();

        let engine = prune::open(&path, 2).unwrap();
        let end = engine.written();
        hold(&engine, charge(2), 2);
        capture(&engine, charge(2), 2);
        adjust(&engine, lost, 2, None);
        let archived = archive(&data, &path, &engine).await;
        let written = mark(&engine);
        for made in [charge(0), charge(2)] {
            let found = archived.charge(id(made), written).await.unwrap().unwrap();
            assert_eq!(found.state, State::Captured);
        }
        assert_eq!(known(&archived, written).await.len(), 2);
        archived.close().await;
        drop(engine);
        lose(&path, end);

        let engine = prune::open(&path, 3).unwrap();
        let archived = archive(&data, &path, &engine).await;
        let written = mark(&engine);
        let found = archived.charge(id(charge(0)), written).await.unwrap();
        assert_eq!(found.unwrap().state, State::Captured);
        assert!(archived.charge(id(charge(2)), written).await.unwrap().is_none());
        assert_eq!(known(&archived, written).await, [kept.to_string()]);
        assert_eq!(archived.dead_letters(), 0);
        archived.close().await;
    });
}
