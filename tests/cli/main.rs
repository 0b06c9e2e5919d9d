//! The command line of the real binary.
//!
//! - `act`: quotes, holds and tokens.
//! - `check`: every key of the configuration, with values that it does not take.
//! - `deploy`: what is in deploy/.
//! - `look`: commands that ask a running gateway.
//! - `errors`: what they say when it does not work.
//! - `moving`: books that move into Redis and back.
//! - `repairing`: books in Redis that are built again, and added up.
//! - `text`: completions, the manual, and where output goes.
//! - `mutated`: valid inputs with something wrong in them, for everything that reads foreign text.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that panics has failed"
)]

#[path = "../support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the gateway's tests need more of it")]
mod support;

mod act;
mod check;
mod deploy;
mod errors;
mod look;
mod moving;
mod mutated;
mod repairing;
mod text;

use std::process::Output;

use crate::support::World;
use crate::support::world::tollgate;

/// What a command came to.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn ran(output: Output) -> Ran {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(!err.contains("panicked"), "{err}");
    // Nobody looks at a pipe: no colours in it.
    assert!(!out.contains('\u{1b}') && !err.contains('\u{1b}'), "{out}{err}");
    Ran { code: output.status.code().expect("it was killed"), out, err }
}

/// Runs a command that needs no server.
fn run(args: &[&str]) -> Ran {
    ran(tollgate().args(args).output().unwrap())
}

/// Runs a command against this gateway.
fn ask(world: &World, args: &[&str]) -> Ran {
    ran(tollgate().args(args).args(["--admin", &world.admin_url()]).output().unwrap())
}

/// As [`ask`], for what must work.
#[track_caller]
fn told(world: &World, args: &[&str]) -> String {
    let ran = ask(world, args);
    assert_eq!((ran.code, &*ran.err), (0, ""), "{args:?}: {ran:?}");
    ran.out
}
