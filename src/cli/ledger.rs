//! `tollgate ledger`: the ledger from the records alone.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use serde_json::json;

use super::output::{Format, Output, plain, print};
use super::{FAILED, USAGE, fail};
use crate::books::fold::Fold;
use crate::books::journal::{Cursor, Next, Segments};
use crate::books::{recover, snapshot};
use crate::config;
use crate::core::account::{AccountKey, Balance};
use crate::core::record::Record;
use crate::ledger::verify::Verifier;

/// What to do with the ledger.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Add up every record, and compare with what the books make of them
    #[command(after_help = "Works on the data of a running or a stopped gateway. Exit code 1 if \
anything does not add up; each finding is printed.\n\nExample:\n  tollgate ledger verify -c tollgate.toml")]
    Verify {
        /// The configuration [default: tollgate.toml]
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// How to print it.
        #[command(flatten)]
        output: Output,
    },
}

/// Runs the command.
pub fn run(command: &Command) -> ExitCode {
    let Command::Verify { config, output } = command;
    let loaded = match config::load(config.as_deref(), config::environment()) {
        Ok(loaded) => loaded,
        Err(error) => return fail(USAGE, error),
    };
    match verify(&loaded.config.data.dir.join("books")) {
        Ok(verifier) => report(&verifier, output.format),
        Err(error) => fail(FAILED, format!("{error:#}")),
    }
}

fn report(verifier: &Verifier, format: Format) -> ExitCode {
    let (findings, totals) = (verifier.findings(), verifier.totals());
    let mut counted = format!(
        "{} records, {} charges ({} open), {} accounts",
        totals.records, totals.charges, totals.open, totals.accounts
    );
    if totals.begins > 0 {
        counted += &format!(
            "; the journal before position {} is not kept: a snapshot stands for it",
            totals.begins
        );
    }
    let lines = findings.iter().map(|finding| plain(&finding.to_string()));
    let text = match format {
        Format::Json => {
            let document = json!({
                "ok": findings.is_empty(), "records": totals.records, "charges": totals.charges,
                "open": totals.open, "accounts": totals.accounts,
                "begins": totals.begins,
                "findings": lines.collect::<Vec<_>>(),
            });
            format!("{document}\n")
        }
        Format::Table if findings.is_empty() => format!("ok: {counted}\n"),
        Format::Table => lines.map(|line| line + "\n").collect(),
    };
    let printed = print(&text);
    match findings.len() {
        0 => printed,
        count => fail(FAILED, format!("{count} findings in {counted}")),
    }
}

/// Adds up a journal, and compares with every snapshot on the way and with what recovery would
/// start from at its end. It begins with the first record, or where the first are not kept any
/// more with the oldest snapshot.
///
/// # Errors
/// When the journal is damaged or not there.
pub fn verify(dir: &Path) -> anyhow::Result<Verifier> {
    anyhow::ensure!(dir.is_dir(), "{}: no books here; check data.dir", dir.display());
    loop {
        let before = beginning(dir)?;
        let verified = add_up(dir);
        // A running gateway may have deleted what was about to be read.
        if verified.is_ok() || beginning(dir)? == before {
            return verified;
        }
    }
}

/// The oldest segment and the oldest snapshot.
fn beginning(dir: &Path) -> anyhow::Result<(Option<u64>, Option<u64>)> {
    let segment = Segments::list(dir)?.as_slice().first().map(|segment| segment.start);
    Ok((segment, snapshot::list(dir)?.first().map(|(at, _)| *at)))
}

fn add_up(dir: &Path) -> anyhow::Result<Verifier> {
    let mut verifier = Verifier::default();
    let first = Segments::list(dir)?.as_slice().first().map_or(0, |segment| segment.start);
    let mut snapshots = snapshot::list(dir)?.into_iter().filter(|(at, _)| *at >= first).peekable();
    let mut begins = first;
    if first > 0 {
        let missing =
            || format!("{}: records before {first} and a snapshot of them", dir.display());
        let (at, path) = snapshots.next().with_context(missing)?;
        begin(&mut verifier, &snapshot::read(&path)?);
        begins = at;
        verifier.begin_at(at);
    }
    let mut cursor = Cursor::new(dir, begins);
    loop {
        while let Some((_, path)) = snapshots.next_if(|(at, _)| *at == cursor.position()) {
            let who = format!("snapshot {}", path.display());
            match snapshot::read(&path) {
                Ok(fold) => verifier.compare(&who, &stated(fold)),
                // A running gateway has a newer one and has removed it meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => verifier.find(who, &format!("cannot be read: {error}")),
            }
        }
        if cursor.next()? == Next::Record {
            verifier.see(&Record::decode(&cursor.record)?);
        } else {
            // Damage, or the end: what is being written now is after it.
            cursor.tail()?;
            break;
        }
    }
    let recovered = recover::recover(dir, Some(cursor.position()))?;
    verifier.compare("the books", &stated(recovered.fold));
    Ok(verifier)
}

fn begin(verifier: &mut Verifier, fold: &Fold) {
    verifier.begin_closed(fold.closed);
    for (key, account) in &fold.accounts {
        verifier.begin_account(*key, &account.name, account.balance, account.version);
    }
    for (charge, hold) in &fold.holds {
        verifier.begin_hold(*charge, &hold.legs);
    }
}

fn stated(fold: Fold) -> HashMap<AccountKey, (String, Balance)> {
    let accounts = fold.accounts.into_iter();
    accounts.map(|(key, account)| (key, (account.name.into_string(), account.balance))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d37_a_finding_is_a_failure_in_either_format() {
        let mut verifier = Verifier::default();
        let came_to = |verifier: &Verifier, code: ExitCode| {
            for format in [Format::Table, Format::Json] {
                // A code compares with nothing but shows itself.
                assert_eq!(format!("{:?}", report(verifier, format)), format!("{code:?}"));
            }
        };
        came_to(&verifier, ExitCode::SUCCESS);
        verifier.find("account a".to_owned(), "does not add up");
        came_to(&verifier, ExitCode::from(FAILED));
    }
}
