//! `tollgate books`: the books' files themselves, while no gateway runs on them.

mod moving;
mod rebuilding;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;

use super::{FAILED, USAGE, fail, output};
use crate::books::repair::Repair;
use crate::clock::Clock;
use crate::config::{self, Engine};

/// What to do with the books.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what can be kept of damaged books and what would be lost; with --apply do it
    #[command(
        after_help = "Without --apply nothing is changed.\n\nEmbedded books: with --apply, copies of all \
that is cut and a report are kept in books/repair-N of the data dir, and the ledger is verified \
afterwards. Refused while a gateway runs on the data dir.\n\nBooks in Redis: shards that were emptied or \
damaged are built again from the archive, and from what their streams have beyond it. Gateways go on \
running; what came later they do again from their own journals.\n\nExamples:\n  \
tollgate books repair -c tollgate.toml\n  tollgate books repair -c tollgate.toml --apply\n  \
tollgate books repair -c tollgate.toml --shard 7 --apply"
    )]
    Repair {
        /// The configuration [default: tollgate.toml]
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Do what is shown
        #[arg(long)]
        apply: bool,
        /// Only this shard of books in Redis; several times
        #[arg(long, value_name = "NUMBER")]
        shard: Vec<u16>,
        /// Also where the archive does not know all that came into books in Redis
        #[arg(long)]
        inexact: bool,
    },
    /// Move balances and keys from a data dir into Redis, or back, while no gateway runs
    #[command(
        after_help = "The configuration is the one with engine = \"redis\", and data.dir is that of \
the embedded books. Every account is read back and compared before the directory changes over, in one \
step; a move that is interrupted before that changes nothing, and is begun again. Refused while a \
gateway runs, while holds are open or records not archived, and where there are books already.\n\n\
Examples:\n  tollgate books move --from embedded --to redis -c tollgate.toml\n  \
tollgate books move --from redis --to embedded -c tollgate.toml"
    )]
    Move {
        /// The configuration [default: tollgate.toml]
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Where the books are
        #[arg(long)]
        from: moving::Kind,
        /// Where they go
        #[arg(long)]
        to: moving::Kind,
    },
}

/// Runs the command.
pub fn run(command: &Command) -> ExitCode {
    let (Command::Repair { config, .. } | Command::Move { config, .. }) = command;
    let loaded = match config::load(config.as_deref(), config::environment()) {
        Ok(loaded) => loaded,
        Err(error) => return fail(USAGE, error),
    };
    let config = &loaded.config;
    let done = match command {
        Command::Repair { apply, shard, inexact, .. } => match config.books.engine {
            Engine::Redis => {
                let asked = rebuilding::Asked { apply: *apply, shards: shard, inexact: *inexact };
                rebuilding::run(config, &asked)
            }
            Engine::Embedded if shard.is_empty() && !inexact => {
                repair(&config.data.dir.join("books"), *apply)
            }
            Engine::Embedded => return fail(USAGE, "--shard, --inexact: only for books in Redis"),
        },
        Command::Move { from, to, .. } if from == to => {
            return fail(USAGE, "--to: expected the other one than --from");
        }
        Command::Move { to, .. } => moving::run(config, *to),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(FAILED, format!("{error:#}")),
    }
}

fn repair(dir: &Path, apply: bool) -> anyhow::Result<()> {
    anyhow::ensure!(dir.is_dir(), "{}: no books here; check data.dir", dir.display());
    let repair = Repair::plan(dir)?;
    for finding in &repair.findings {
        line(&format!("found: {finding}"))?;
    }
    if let Some(torn) = &repair.torn {
        line(&format!(
            "a torn tail of {} bytes at byte {} of {}: no damage, the next start cuts it",
            torn.bytes,
            torn.place.offset,
            torn.place.path.display()
        ))?;
    }
    if repair.is_needless() {
        line("nothing to repair")?;
        return Ok(());
    }
    for path in &repair.aside {
        line(&format!("to be put aside: {}", path.display()))?;
    }
    if let Some(cut) = &repair.cut {
        line(&format!("to be cut: {} at byte {}", cut.path.display(), cut.offset))?;
    }
    if let Some(begins) = repair.begins {
        line(&format!("balances lose nothing; the ledger is verified from position {begins} on"))?;
    }
    for loss in repair.loss.lines() {
        line(&loss)?;
    }
    for account in repair.loss.accounts.iter().take(SHOWN) {
        line(&format!("  {account}"))?;
    }
    if repair.loss.accounts.len() > SHOWN {
        line("  … all of them are in the report")?;
    }
    if !apply {
        line("nothing was changed; --apply does it")?;
        return Ok(());
    }
    let done = repair.apply(Clock::default().now())?;
    line(&format!(
        "done; copies are in {}, the report is {}",
        done.kept_in.display(),
        done.report.display()
    ))?;
    let verifier = super::ledger::verify(dir)?;
    anyhow::ensure!(verifier.findings().is_empty(), "the ledger still does not add up");
    line("ok: the ledger adds up")?;
    Ok(())
}

fn line(text: &str) -> anyhow::Result<()> {
    Ok(output::say(&format!("{text}\n"))?)
}

/// How many accounts are named on the screen.
const SHOWN: usize = 20;
