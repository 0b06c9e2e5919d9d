//! `tollgate directory`: the directory's database itself.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use secrecy::{ExposeSecret, SecretString};

use super::{FAILED, USAGE, fail, output};
use crate::directory::Place;
use crate::directory::copy::copy;

/// What to do with the directory.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Copy the directory into another database, which has to be empty
    Copy(Copy),
}

/// See `--help`.
#[derive(Debug, Args)]
#[command(
    after_help = "A place is sqlite:FILE or postgres://USER:PASSWORD@HOST:PORT/DATABASE. Others on \
the machine can read arguments: give a place with a password in TOLLGATE_COPY_FROM or \
TOLLGATE_COPY_TO.

Everything is copied in one transaction: orgs, keys, tokens, the audit. What is changed in the first \
directory afterwards is not in the copy, so stop its gateway before. The copy has a higher epoch: its \
grants count as newer than those that the books have.\n\nExamples:
  tollgate directory copy --from sqlite:tollgate-data/directory.db --to postgres://127.0.0.1/tollgate
  tollgate directory copy --from postgres://127.0.0.1/tollgate --to sqlite:directory.db"
)]
pub struct Copy {
    /// Where the directory is
    #[arg(long, value_name = "PLACE", env = "TOLLGATE_COPY_FROM", hide_env_values = true)]
    from: SecretString,
    /// Where the copy goes
    #[arg(long, value_name = "PLACE", env = "TOLLGATE_COPY_TO", hide_env_values = true)]
    to: SecretString,
}

/// Runs the command.
pub fn run(command: &Command) -> ExitCode {
    let Command::Copy(Copy { from, to }) = command;
    let place = |name, text: &SecretString| match text.expose_secret().parse::<Place>() {
        Ok(place) => Ok(place),
        Err(expected) => Err(fail(USAGE, format!("{name}: {expected}"))),
    };
    let (from, to) = match (place("--from", from), place("--to", to)) {
        (Ok(from), Ok(to)) => (from, to),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILED, error),
    };
    match runtime.block_on(copy(from, to)) {
        Ok(done) => {
            let line = format!(
                "copied {} orgs, {} rows; the copy has epoch {}\n",
                done.orgs, done.rows, done.epoch
            );
            output::say(&line).map_or_else(|error| fail(FAILED, error), |()| ExitCode::SUCCESS)
        }
        Err(error) => fail(FAILED, error),
    }
}
