//! `tollgate ledger`: the ledger from the records alone.

mod shards;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::output::{Format, Output, plain, print};
use super::{FAILED, USAGE, fail};
use crate::config::{self, Engine};
use crate::ledger::verify::{Totals, Verifier};

pub use verify::verify;

/// What to do with the ledger.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Add up every record, and compare with what the books make of them
    #[command(
        after_help = "Works on the data of a running or a stopped gateway. Of books in Redis \
the archive is added up, with what the streams have beyond it, and compared with each shard, while \
gateways run. Exit code 1 if anything does not add up; each finding is printed.\n\nExamples:\n  \
tollgate ledger verify -c tollgate.toml\n  tollgate ledger verify -c tollgate.toml --output json"
    )]
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
    let verified = match loaded.config.books.engine {
        Engine::Embedded => verify(&loaded.config.data.dir.join("books")).map(Report::of_journal),
        Engine::Redis => shards::verify(&loaded.config),
    };
    match verified {
        Ok(report) => report.print(output.format),
        Err(error) => fail(FAILED, format!("{error:#}")),
    }
}

/// What is told of a ledger.
struct Report {
    findings: Vec<String>,
    totals: Totals,
    /// How many shards the books have, where they are in Redis.
    shards: Option<usize>,
    /// What there is to know besides.
    note: Option<&'static str>,
}

impl Report {
    fn of_journal(verifier: Verifier) -> Self {
        let findings = verifier.findings().iter().map(ToString::to_string).collect();
        Self { findings, totals: verifier.totals(), shards: None, note: None }
    }

    fn print(&self, format: Format) -> ExitCode {
        let Self { findings, totals, shards, note } = self;
        let mut counted = format!(
            "{} records, {} charges ({} open), {} accounts",
            totals.records, totals.charges, totals.open, totals.accounts
        );
        if let Some(shards) = shards {
            counted += &format!(", {shards} shards");
        }
        if totals.begins > 0 {
            counted += &format!(
                "; the journal before position {} is not kept: a snapshot stands for it",
                totals.begins
            );
        }
        if let Some(note) = note {
            counted += &format!("; {note}");
        }
        let lines = findings.iter().map(|finding| plain(finding));
        let text = match format {
            Format::Json => {
                let mut document = json!({
                    "ok": findings.is_empty(), "records": totals.records,
                    "charges": totals.charges, "open": totals.open,
                    "accounts": totals.accounts, "begins": totals.begins,
                    "findings": lines.collect::<Vec<_>>(),
                });
                if let Some(shards) = shards {
                    document["shards"] = json!(shards);
                }
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d37_a_finding_is_a_failure_in_either_format() {
        let came_to = |verifier: Verifier, code: ExitCode| {
            let report = Report::of_journal(verifier);
            for format in [Format::Table, Format::Json] {
                // A code compares with nothing but shows itself.
                assert_eq!(format!("{:?}", report.print(format)), format!("{code:?}"));
            }
        };
        came_to(Verifier::default(), ExitCode::SUCCESS);
        let mut verifier = Verifier::default();
        verifier.find("account a".to_owned(), "does not add up");
        came_to(verifier, ExitCode::from(FAILED));
    }
}
