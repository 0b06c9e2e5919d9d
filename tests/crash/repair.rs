//! `tollgate books repair` on damage that stops the real binary.

use std::process::Output;

use crate::support::world::tollgate;
use crate::support::{Access, Call, Org, World, run};

fn repair(world: &World, apply: bool) -> Output {
    let mut command = tollgate();
    command.args(["books", "repair", "-c"]).arg(world.config());
    if apply {
        command.arg("--apply");
    }
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn f39_damage_stops_the_start_with_its_place_and_a_repair_says_what_it_costs() {
    run(async {
        let mut world = World::new(&Org::new().user("alice", "1000", Access::None));
        for _ in 0..5 {
            world.send(&Call::post("/v1/images", "{}").user("alice")).await.is(200);
        }
        let in_use = repair(&world, true);
        assert_eq!(in_use.status.code(), Some(1));
        assert!(text(&in_use).contains("stop the gateway first"), "{}", text(&in_use));
        world.kill();
        assert!(text(&repair(&world, true)).contains("nothing to repair"));

        let books = world.data().join("books");
        let journals = std::fs::read_dir(&books).unwrap().map(|entry| entry.unwrap().path());
        let journal =
            journals.filter(|p| p.extension().is_some_and(|e| e == "journal")).max().unwrap();
        let mut bytes = std::fs::read(&journal).unwrap();
        let damaged = bytes.len() / 2;
        bytes[damaged] ^= 0xff;
        std::fs::write(&journal, &bytes).unwrap();
        let refused = world.serve_again();
        assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
        for what in ["damaged record at byte", "position", "a whole record follows", "books repair"]
        {
            assert!(text(&refused).contains(what), "{what}: {}", text(&refused));
        }
        let shown = repair(&world, false);
        assert_eq!(shown.status.code(), Some(0), "{}", text(&shown));
        for what in ["found: ", "to be cut: ", "captures of", "acme/licence/lic-alice", "--apply"] {
            assert!(text(&shown).contains(what), "{what}: {}", text(&shown));
        }
        assert_eq!(std::fs::read(&journal).unwrap(), bytes, "a dry run changed it");
        let done = repair(&world, true);
        assert_eq!(done.status.code(), Some(0), "{}", text(&done));
        assert!(text(&done).contains("ok: the ledger adds up"), "{}", text(&done));
        let kept = books.join("repair-1");
        assert_eq!(std::fs::read(kept.join(journal.file_name().unwrap())).unwrap(), bytes);
        assert!(std::fs::read_to_string(kept.join("report.txt")).unwrap().contains("lost: "));
        world.start();
        let answer = world.send(&Call::post("/v1/images", "{}").user("alice")).await;
        assert_eq!(world.charge(&answer.is(200).told("charge"))["state"], "captured");
    });
}
