//! The real binary on a disk that is full, that fails, that writes less than it was given.

use crate::support::faults::Faults;
use crate::support::{Access, Call, Org, Setup, World, burst, run};

fn world(faults: &Faults) -> World {
    let environment = faults.environment().to_vec();
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
        let mut world = world(&faults);
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
