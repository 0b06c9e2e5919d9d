//! The real binary on a disk that is full, that fails, that writes less than it was given.

use tokio::task::JoinSet;

use crate::support::faults::Faults;
use crate::support::{Access, Call, Client, Org, Script, Setup, World, burst, run, until};

const NO_SPACE: i64 = -28;
const FAILED: i64 = -5;

fn world(faults: &Faults, durability: &str) -> World {
    let mut environment = faults.environment().to_vec();
    environment.push(("TOLLGATE__BOOKS__DURABILITY".to_owned(), durability.to_owned()));
    environment.push(("TOLLGATE__BOOKS__SEGMENT_SIZE".to_owned(), "16KiB".to_owned()));
    let setup = Setup { environment, ..Setup::default() };
    World::with(setup, &Org::new().user("alice", "1000", Access::None))
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
fn f40_a_write_that_finds_no_space_closes_the_books_and_a_restart_goes_on_exactly() {
    run(async {
        let faults = Faults::new();
        let mut world = world(&faults, "process");
        for answer in burst(world.gateway(), vec![image(); 50], 5).await {
            answer.is(200);
        }
        faults.say("write ENOSPC");
        for _ in 0..5 {
            world.send(&image()).await.refused(503, "books_unavailable");
        }
        assert_eq!(faults.count("write", Some(NO_SPACE)), 1, "what failed is not tried again");
        assert_eq!(world.backend.count(), 50);
        world.kill();
        world.verify();
        faults.say("");
        world.start();
        world.seat("alice", "50", "950", "0");
        world.send(&image()).await.is(200);
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
        for _ in 0..5 {
            world.send(&image()).await.refused(503, "books_unavailable");
        }
        assert_eq!(faults.count("fdatasync", Some(FAILED)), 1, "it was tried again");
        assert_eq!(world.backend.count(), 50);
        faults.say("");
        world.send(&image()).await.refused(503, "books_unavailable");
        world.kill();
        world.verify();
        world.start();
        world.seat("alice", "50", "950", "0");
        world.send(&image()).await.is(200);
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
