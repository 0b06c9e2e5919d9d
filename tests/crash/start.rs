//! Killed at every step of a start: what is found next is what would have been found at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use jiff::Timestamp;
use tollgate::books::embedded::Engine;
use tollgate::core::account::Balance;

use crate::support::faults::{Faults, Made};
use crate::support::world::{NOON, tollgate};
use crate::support::{Access, Call, Client, Org, Script, Setup, World, run, until};

/// More than a start and a snapshot have.
const STEPS: usize = 32;

fn balances(books: &Path) -> BTreeMap<String, Balance> {
    let engine = Engine::open(books, NOON.parse::<Timestamp>().unwrap()).unwrap();
    let mut all = BTreeMap::new();
    engine.for_each_balance(|_, name, balance| {
        all.insert(name.to_owned(), balance);
    });
    all
}

fn newest(books: &Path) -> PathBuf {
    let files = std::fs::read_dir(books).unwrap().map(|entry| entry.unwrap().path());
    let mut journals: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|e| e == "journal")).collect();
    journals.sort();
    journals.pop().unwrap()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => std::fs::copy(entry.path(), to).map(|_| ()).unwrap(),
        }
    }
}

/// A data dir whose process was killed with charges open, some of them captured when in doubt,
/// in the middle of a write.
async fn left_behind(setup: Setup) -> World {
    let mut world = World::with(setup, &Org::new().user("alice", "1000", Access::Pool));
    for _ in 0..5 {
        world.send(&Call::post("/v1/images", "{}").user("alice")).await.is(200);
    }
    let gateway = world.gateway();
    let mut clients = tokio::task::JoinSet::new();
    for path in ["/v1/images", "/v1/doubt", "/v1/doubt"] {
        let call = Call::post(path, "{}").user("alice").script(&Script::gate("never"));
        clients.spawn(async move { Client::connect(gateway).await.try_send(&call).await.is_err() });
    }
    until("all are forwarded", || (world.backend.count() == 8).then_some(())).await;
    world.kill();
    assert!(clients.join_all().await.into_iter().all(|broken| broken));
    world
}

struct Killed {
    faults: Faults,
    data: PathBuf,
    child: Child,
}

#[test]
fn f05_f43_killed_at_every_step_of_a_start_and_a_snapshot_the_next_start_finds_the_same() {
    run(async {
        let world = left_behind(Setup::default()).await;
        let torn = newest(&world.data().join("books"));
        let mut bytes = std::fs::read(&torn).unwrap();
        bytes.extend_from_slice(&[40, 0, 0, 0, 1, 2, 3]);
        std::fs::write(&torn, bytes).unwrap();
        let dirs = tempfile::tempdir().unwrap();
        let expected = {
            let data = dirs.path().join("whole");
            copy(&world.data(), &data);
            balances(&data.join("books"))
        };
        let mut started: Vec<Killed> = (1..=STEPS)
            .map(|step| {
                let data = dirs.path().join(step.to_string());
                copy(&world.data(), &data);
                let faults = Faults::new();
                faults.say(&format!("any kill {step}"));
                let child = tollgate()
                    .arg("serve")
                    .arg("-c")
                    .arg(world.config())
                    .args(["--test-clock", NOON])
                    .env("TOLLGATE__DATA__DIR", &data)
                    .env("TOLLGATE__GATEWAY__WORKERS", "1")
                    .envs(faults.environment())
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap();
                Killed { faults, data, child }
            })
            .collect();
        let mut survived = 0;
        for (index, killed) in started.iter_mut().enumerate() {
            let step = index + 1;
            let has_snapshot = |made: &[Made]| {
                let renamed = made.iter().position(|made| {
                    made.call == "rename" && made.path.extension().is_some_and(|e| e == "snapshot")
                });
                // The directory is synced behind it (f43).
                renamed.is_some_and(|at| made[at..].iter().any(|made| made.call == "fsync"))
            };
            let is_dead = until("it dies, or has written a snapshot", || {
                match killed.child.try_wait().unwrap() {
                    Some(_) => Some(true),
                    None => has_snapshot(&killed.faults.made()).then_some(false),
                }
            })
            .await;
            if !is_dead {
                survived += 1;
                killed.child.kill().unwrap();
                killed.child.wait().unwrap();
            }
            let made = killed.faults.made();
            assert!(!is_dead || made.iter().any(|made| made.call == "killed"), "{step}: {made:?}");
            let books = killed.data.join("books");
            assert_eq!(balances(&books), expected, "killed at step {step}: {made:#?}");
            let verified = tollgate::cli::ledger::verify(&books).unwrap();
            assert_eq!(verified.findings(), [], "killed at step {step}");
        }
        assert!(survived > 0, "there are more steps than were tried");
        assert!(survived < STEPS - 10, "only {} steps were reached", STEPS - survived);
    });
}

#[test]
fn f43_the_directory_is_synced_after_every_new_name() {
    run(async {
        let faults = Faults::new();
        let environment = faults.environment().to_vec();
        let setup = Setup { environment, ..Setup::default() };
        let mut world = World::with(setup, &Org::new().user("alice", "10", Access::None));
        world.send(&Call::post("/v1/images", "{}").user("alice")).await.is(200);
        world.terminate();
        assert!(world.stopped().await.success());
        let made = faults.made();
        let is_new = |made: &&Made| {
            (made.call == "open" || made.call == "rename")
                && made.path.extension().is_some_and(|e| e == "journal")
        };
        let names = made.iter().filter(is_new).count();
        assert!(names > 0, "{made:#?}");
        let last = made.iter().rposition(|made| is_new(&made)).unwrap();
        let books = world.data().join("books");
        let synced = made[last..].iter().any(|made| made.call == "fsync" && made.path == books);
        assert!(synced, "{made:#?}");
        world.start();
    });
}

/// A power failure takes what was not synced of the journal, and may leave the archive of it.
#[test]
fn f38_an_archive_that_knows_of_more_than_the_journal_is_built_again() {
    run(async {
        let mut world = World::new(&Org::new().user("alice", "1000", Access::None));
        let mut charges = Vec::new();
        for _ in 0..6 {
            let answer = world.send(&Call::post("/v1/images", "{}").user("alice")).await;
            charges.push(answer.is(200).told("charge"));
        }
        for charge in &charges {
            assert_eq!(world.charge(charge)["state"], "captured");
        }
        world.kill();
        // The last three charges with all their records, and a byte more.
        let newest = newest(&world.data().join("books"));
        let bytes = std::fs::read(&newest).unwrap();
        let mut ends = vec![24];
        while let Some(length) = bytes.get(ends[ends.len() - 1]..).and_then(<[u8]>::first_chunk) {
            ends.push(ends[ends.len() - 1] + 8 + u32::from_le_bytes(*length) as usize);
        }
        let fourth = tollgate::core::ids::ChargeId(uuid(&charges[3]));
        let first_of_it = ends.windows(2).find(|frame| {
            let record = tollgate::core::record::Record::decode(&bytes[frame[0] + 8..frame[1]]);
            record.unwrap().charge() == Some(fourth)
        });
        std::fs::write(&newest, &bytes[..first_of_it.unwrap()[0] + 1]).unwrap();
        world.start();
        assert_eq!(world.metric("tollgate_journal_torn_bytes", &[]), 1.0);
        world.seat("alice", "3", "997", "0");
        let answer = world.send(&Call::post("/v1/images", "{}").user("alice")).await;
        assert_eq!(world.charge(&answer.is(200).told("charge"))["state"], "captured");
        for (index, charge) in charges.iter().enumerate() {
            let known = world.try_charge(charge).map(|charge| charge["state"].clone());
            assert_eq!(known, (index < 3).then(|| "captured".into()), "charge {index}");
        }
    });
}

fn uuid(text: &str) -> [u8; 16] {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&digits, 16).unwrap().to_be_bytes()
}
