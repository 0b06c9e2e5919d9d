//! `tollgate apply`: makes an org be what a file says.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::client::Server;
use super::{FAILED, USAGE, fail};
use crate::core::ids::Id;
use crate::directory::file::Source;

/// The exit code of `--dry-run --exit-code` when something would change.
const DIFFERENT: u8 = 3;

/// See `--help`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tollgate apply acme.toml
  tollgate apply --dry-run --exit-code acme.toml    exit 3 if it would change anything
  generate-org | tollgate apply -")]
pub struct Options {
    /// The org file, or - for standard input
    file: PathBuf,
    /// Only tell what would change
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: exit 3 if anything would change
    #[arg(long, requires = "dry_run")]
    exit_code: bool,
    #[command(flatten)]
    server: Server,
}

/// Runs the command.
pub fn run(options: &Options) -> ExitCode {
    let text = match read(&options.file) {
        Ok(text) => text,
        Err(error) => return fail(USAGE, format!("{}: {error}", options.file.display())),
    };
    let name = options.file.display();
    let mut source = match Source::from_toml(&text) {
        Ok(source) => source,
        Err(error) => return fail(USAGE, format!("{name}: {error}")),
    };
    let variable = |name: &str| std::env::var(name).ok();
    if let Err(problems) = source.resolve_secrets(variable, |path| std::fs::read_to_string(path)) {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return fail(USAGE, format!("{name}: {}", lines.join("\n")));
    }
    let Some(org) = source.org_id().filter(|id| id.parse::<Id>().is_ok()) else {
        return fail(USAGE, format!("{name}: expected a valid `id` in [org]"));
    };
    let path = format!("/v1/orgs/{org}/apply?dry_run={}", options.dry_run);
    match options.server.post(&path, "application/json", &source.to_json()) {
        Ok(answer) => report(options, org, &answer),
        Err(error) => fail(FAILED, error),
    }
}

fn report(options: &Options, org: &str, answer: &Value) -> ExitCode {
    let changes: Vec<&str> =
        answer["changes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for change in &changes {
        println!("{change}");
    }
    match (changes.len(), options.dry_run) {
        (0, _) => println!("{org}: is already what the file says"),
        (count, true) => println!("{org}: {count} to change"),
        (count, false) => println!("{org}: {count} changed"),
    }
    for (key, secret) in answer["secrets"].as_object().into_iter().flatten() {
        let secret = secret.as_str().unwrap_or_default();
        println!("key {key}: {secret}   (shown once; only its hash is kept)");
    }
    if options.exit_code && !changes.is_empty() {
        return ExitCode::from(DIFFERENT);
    }
    ExitCode::SUCCESS
}

fn read(path: &Path) -> std::io::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(path)
}
