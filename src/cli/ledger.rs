//! `tollgate ledger`: the ledger from the records alone.

mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::output::{Format, Output, plain, print};
use super::{FAILED, USAGE, fail};
use crate::config;
use crate::ledger::verify::Verifier;

pub use verify::verify;

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
