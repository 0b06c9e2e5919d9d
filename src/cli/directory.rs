//! `tollgate directory`: the directory's database itself.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use secrecy::{ExposeSecret, SecretString};

use super::{FAILED, USAGE, fail, output};
use crate::directory::copy::{Copied, copy};
use crate::directory::{Directory, Place};

/// What to do with the directory.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Copy the directory into another database, which has to be empty
    Copy(Copy),
    /// Let the next gateway's books be those of the directory, where its own will never run again
    Release(Release),
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

/// See `--help`.
#[derive(Debug, Args)]
#[command(
    after_help = "A directory belongs to one set of books, because others would give out every \
seat's credits once more; a gateway with others does not start, and says whose the directory is. After \
this command the next gateway to start has it. What was used in the books that it had is then not \
counted any more, and is given out again.

A place is sqlite:FILE or postgres://USER:PASSWORD@HOST:PORT/DATABASE. Others on the machine can read \
arguments: give one with a password in TOLLGATE_DIRECTORY.\n\nExamples:
  tollgate directory release --at postgres://127.0.0.1/tollgate --books 5f0c7ad1e6c94b1b8f6b0e7e1a2d3c4b"
)]
pub struct Release {
    /// Where the directory is
    #[arg(long, value_name = "PLACE", env = "TOLLGATE_DIRECTORY", hide_env_values = true)]
    at: SecretString,
    /// Whose it is, as the gateway says that does not start
    #[arg(long, value_name = "NAME")]
    books: String,
}

/// Runs the command.
pub fn run(command: &Command) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILED, error),
    };
    let done = match command {
        Command::Copy(Copy { from, to }) => {
            let (from, to) = match (place("--from", from), place("--to", to)) {
                (Ok(from), Ok(to)) => (from, to),
                (Err(code), _) | (_, Err(code)) => return code,
            };
            runtime.block_on(copy_it(from, to))
        }
        Command::Release(Release { at, books }) => match place("--at", at) {
            Ok(at) => runtime.block_on(release(at, books)),
            Err(code) => return code,
        },
    };
    match done.and_then(|line| Ok(output::say(&line)?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(FAILED, format!("{error:#}")),
    }
}

fn place(name: &str, text: &SecretString) -> Result<Place, ExitCode> {
    text.expose_secret().parse().map_err(|expected| fail(USAGE, format!("{name}: {expected}")))
}

async fn copy_it(from: Place, to: Place) -> anyhow::Result<String> {
    let done = copy(from, to).await?;
    let Copied { orgs, rows, epoch } = done;
    Ok(format!("copied {orgs} orgs, {rows} rows; the copy has epoch {epoch}\n"))
}

async fn release(at: Place, books: &str) -> anyhow::Result<String> {
    if let Place::File(file) = &at {
        anyhow::ensure!(file.is_file(), "--at: there is no file {}", file.display());
    }
    let directory = Directory::open(at, 0).await?;
    anyhow::ensure!(
        directory.forget_books(books).await?,
        "--books: the directory does not belong to {books}"
    );
    Ok("the next gateway to start has the directory\n".to_owned())
}
