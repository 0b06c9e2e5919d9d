//! The real binary on a disk that is full, that fails, that writes less than it was given.

use tokio::task::JoinSet;

use crate::support::faults::Faults;
use crate::support::{Access, Call, Client, Org, Script, Setup, World, burst, run, until};

const NO_SPACE: i64 = -28;
const FAILED: i64 = -5;
/// The exit code of a gateway whose books' files failed.
const BOOKS_FAILED: i32 = 4;

fn world(faults: &Faults, durability: &str) -> World {
    with(faults, durability, &[])
}

fn with(faults: &Faults, durability: &str, more: &[(&str, &str)]) -> World {
    let mut environment = faults.environment().to_vec();
    let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    environment.extend(more);
    environment.push(("TOLLGATE__BOOKS__DURABILITY".to_owned(), durability.to_owned()));
    environment.push(("TOLLGATE__BOOKS__SEGMENT_SIZE".to_owned(), "16KiB".to_owned()));
    let setup = Setup { environment, ..Setup::default() };
    World::with(setup, &Org::new().user("alice", "1000", Access::None))
}

/// Drains that no test waits for: what ends before is ended by something else.
const LONG_DRAIN: [(&str, &str); 2] =
    [("TOLLGATE__GATEWAY__DRAIN_DELAY", "10m"), ("TOLLGATE__GATEWAY__DRAIN_TIMEOUT", "10m")];

/// Waits until the process has ended by itself, for that reason, and has said so once.
async fn gives_up(world: &mut World) {
    let log = world.log_lines();
    assert_eq!(world.stopped().await.code(), Some(BOOKS_FAILED), "{:?}", log.lock());
    // The thread that reads them may be behind.
    until("it is said", || {
        let log = log.lock().unwrap();
        let lines = log.iter().filter(|line| line.contains("the process stops")).count();
        assert!(lines <= 1, "{log:?}");
        (lines == 1 && log.iter().any(|line| line.contains("start again"))).then_some(())
    })
    .await;
}

fn image() -> Call {
    Call::post("/v1/images", "{}").user("alice")
}

#[test]
fn f42_short_writes_and_interruptions_are_gone_on_from() {
    run(async {
        let faults = Faults::new();
        let mut world = world(&faults, "power");
        faults.say("write short\nwrite EINTR\n");
        for answer in burst(world.gateway(), vec![image(); 200], 20).await {
            answer.is(200);
        }
        assert!(faults.count("write", Some(-4)) > 20, "nothing was interrupted");
        world.seat("alice", "200", "800", "0");
        world.kill();
        world.verify();
        faults.say("");
        world.start();
        assert_eq!(world.metric("tollgate_journal_torn_bytes", &[]), 0.0);
        world.seat("alice", "200", "800", "0");
    });
}

/// The space of a segment is taken before it is written to. When there is none for the next one,
/// the rest of this one is for what is open; admission comes back by itself.
#[test]
fn f40_on_a_full_disk_admission_stops_and_open_charges_settle_and_it_goes_on_by_itself() {
    run(async {
        let faults = Faults::new();
        let world = world(&faults, "process");
        let gateway = world.gateway();
        let mut clients = JoinSet::new();
        let excess = Script { gate: Some("later".to_owned()), ..Script::usage(5) };
        let big = Script { pad: 100_000, chunked: true, ..Script::gate("later") };
        let failed = Script { status: 500, ..Script::gate("later") };
        for (path, script) in [
            ("/v1/images", Script::gate("later")),
            ("/v1/told", excess),
            ("/v1/images", big),
            ("/v1/images", failed),
        ] {
            let call = Call::post(path, "{}").user("alice").script(&script);
            clients.spawn(async move { Client::connect(gateway).await.send(&call).await });
        }
        until("all are forwarded", || (world.backend.count() == 4).then_some(())).await;
        faults.say("fallocate ENOSPC");
        let mut refused = world.send(&image()).await;
        // What is reserved already is used up to its half.
        while refused.status == 200 {
            refused = world.send(&image()).await;
        }
        assert!(faults.count("fallocate", Some(NO_SPACE)) > 0, "nothing found the disk full");
        refused.refused(503, "books_unavailable");
        assert!(refused.header("retry-after").is_some());
        let forwarded = world.backend.count();
        for _ in 0..20 {
            world.send(&image()).await.refused(503, "books_unavailable");
        }
        assert_eq!(world.backend.count(), forwarded, "what is refused is not forwarded");
        world.backend.open("later");
        for answer in clients.join_all().await {
            assert!(answer.whole && [200, 500].contains(&answer.status), "{answer:?}");
        }
        world.settled().await;
        let charged = 1 + 5 + 1 + (forwarded - 4);
        world.seat("alice", &charged.to_string(), &(1000 - charged).to_string(), "0");
        let (status, _) = world.ops("/readyz");
        assert_eq!(status, 200, "a full disk does not make it unready");
        world.verify();
        faults.say("");
        let mut answer = world.send(&image()).await;
        while answer.status == 503 {
            answer = world.send(&image()).await;
        }
        answer.is(200);
    });
}

/// A file system that cannot take space in advance tells of its end in the middle of a write.
#[test]
fn f40_a_write_that_finds_no_space_ends_the_process_and_a_restart_goes_on_exactly() {
    run(async {
        let faults = Faults::new();
        let mut world = world(&faults, "process");
        for answer in burst(world.gateway(), vec![image(); 50], 5).await {
            answer.is(200);
        }
        faults.say("write ENOSPC");
        world.send(&image()).await.refused(503, "books_unavailable");
        gives_up(&mut world).await;
        assert_eq!(faults.count("write", Some(NO_SPACE)), 1, "what failed is not tried again");
        assert_eq!(world.backend.count(), 50);
        world.verify();
        faults.say("");
        world.start();
        world.seat("alice", "50", "950", "0");
        world.send(&image()).await.is(200);
    });
}

/// The space in front of the writer cannot be had, for a reason that is not want of it.
#[test]
fn f41_a_segment_that_cannot_be_made_ends_the_process() {
    run(async {
        let faults = Faults::new();
        let mut world = world(&faults, "process");
        faults.say("fallocate EIO");
        let mut client = world.client().await;
        let mut whole = 0;
        while client.try_send(&image()).await.is_ok_and(|answer| answer.status == 200) {
            whole += 1;
        }
        gives_up(&mut world).await;
        assert_eq!(faults.count("fallocate", Some(FAILED)), 1, "it was tried again");
        world.verify();
        faults.say("");
        world.start();
        world.seat("alice", &whole.to_string(), &(1000 - whole).to_string(), "0");
    });
}

#[test]
fn f41_a_sync_that_fails_is_never_tried_again_and_a_restart_recovers() {
    run(async {
        let faults = Faults::new();
        let mut world = world(&faults, "power");
        for answer in burst(world.gateway(), vec![image(); 50], 5).await {
            answer.is(200);
        }
        let synced = faults.count("fdatasync", Some(0));
        assert!(synced >= 2 * 50 / 5, "only {synced} syncs: who waited for them?");
        faults.say("fdatasync EIO");
        // Held in memory and in the file, and told to nobody: not forwarded.
        world.send(&image()).await.refused(503, "books_unavailable");
        gives_up(&mut world).await;
        assert_eq!(faults.count("fdatasync", Some(FAILED)), 1, "it was tried again");
        // Nor anything else behind it.
        let made = faults.made();
        let failed = made.iter().position(|made| made.result == FAILED).unwrap();
        let behind = made[failed + 1..].iter().filter(|made| made.call != "unlink").count();
        assert_eq!(behind, 0, "{made:?}");
        assert_eq!(world.backend.count(), 50);
        faults.say("");
        world.verify();
        world.start();
        world.seat("alice", "50", "950", "0");
        world.send(&image()).await.is(200);
    });
}

/// Who waits for the books is told; who waits for a backend is cut off, however long a drain may
/// take, and what was held for them comes back at the next start.
#[test]
fn f41_those_who_wait_for_failing_books_are_told_before_the_process_ends() {
    run(async {
        let faults = Faults::new();
        let mut world = with(&faults, "power", &LONG_DRAIN);
        let gateway = world.gateway();
        let mut cut_off = JoinSet::new();
        let middle = Script { half: Some("never".to_owned()), chunked: true, ..Script::default() };
        for script in [Script::gate("never"), Script { pad: 200_000, ..middle }] {
            let call = image().script(&script);
            cut_off.spawn(async move { Client::connect(gateway).await.try_send(&call).await });
        }
        until("both are forwarded", || (world.backend.count() == 2).then_some(())).await;
        faults.say("fdatasync wait");
        let mut waiting = JoinSet::new();
        for _ in 0..20 {
            waiting.spawn(async move { Client::connect(gateway).await.send(&image()).await });
        }
        let holds = || (world.metric("tollgate_holds_open", &[]) == 22.0).then_some(());
        until("their holds wait", holds).await;
        faults.say("fdatasync EIO");
        for answer in waiting.join_all().await {
            answer.refused(503, "books_unavailable");
        }
        gives_up(&mut world).await;
        for answer in cut_off.join_all().await {
            assert!(!answer.as_ref().is_ok_and(|answer| answer.whole), "{answer:?}");
        }
        assert_eq!(faults.count("fdatasync", Some(FAILED)), 1, "it was tried again");
        faults.say("");
        world.verify();
        world.start();
        world.seat("alice", "0", "1000", "0");
        assert_eq!(world.backend.count(), 2);
        world.send(&image()).await.is(200);
    });
}

#[test]
fn f41_books_that_fail_during_a_drain_end_it() {
    run(async {
        let faults = Faults::new();
        let mut world = with(&faults, "power", &LONG_DRAIN[1..]);
        let gateway = world.gateway();
        let mut clients = JoinSet::new();
        for gate in ["later", "never"] {
            let call = image().script(&Script::gate(gate));
            let send = async move { Client::connect(gateway).await.try_send(&call).await };
            clients.spawn(async move { (gate, send.await) });
        }
        until("both are forwarded", || (world.backend.count() == 2).then_some(())).await;
        world.terminate();
        world.logged(&["no longer accepting"]).await;
        faults.say("fdatasync EIO");
        // Its capture cannot be recorded, so nobody gets the answer (D30).
        world.backend.open("later");
        gives_up(&mut world).await;
        for (gate, answer) in clients.join_all().await {
            match gate {
                "later" => drop(answer.unwrap().refused(503, "books_unavailable")),
                _ => assert!(answer.is_err(), "{answer:?}"),
            }
        }
        faults.say("");
        world.verify();
        world.start();
        // The capture is in the file, and was promised to nobody: either would be right, and
        // what is there counts.
        world.seat("alice", "1", "999", "0");
    });
}

#[test]
fn f41_an_answer_of_durability_power_waits_for_the_disk() {
    run(async {
        let faults = Faults::new();
        let world = world(&faults, "power");
        faults.say("fdatasync wait");
        let gateway = world.gateway();
        let mut clients = JoinSet::new();
        clients.spawn(async move { Client::connect(gateway).await.send(&image()).await });
        until("the hold waits", || (world.metric("tollgate_holds_open", &[]) == 1.0).then_some(()))
            .await;
        assert_eq!(world.backend.count(), 0, "forwarded before its hold was synced");
        faults.say("");
        clients.join_all().await[0].is(200);
    });
}
