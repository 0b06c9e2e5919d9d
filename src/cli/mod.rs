//! The command line. Each command is a function that returns the process's exit code: 0 fine,
//! 1 the thing asked for failed, 2 usage or configuration.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what commands are for")]

pub mod apply;
pub mod books;
pub mod check;
pub mod client;
pub mod demo;
pub mod ledger;
pub mod sample_backend;
pub mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The thing asked for failed.
pub const FAILED: u8 = 1;
/// Usage or configuration.
pub const USAGE: u8 = 2;

/// A metering gateway for generative features: prices a request, debits the user's monthly
/// credits and the org's pool in one atomic step, forwards it, and settles on what happened.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, propagate_version = true, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  tollgate demo                          a gateway, a backend and an org to try it with
  tollgate check -c tollgate.toml        is the configuration right?
  tollgate serve -c tollgate.toml        run the gateway
  tollgate apply --dry-run acme.toml     what would this org file change?
  tollgate ledger verify -c tollgate.toml";

#[derive(Debug, Subcommand)]
enum Command {
    /// Try Tollgate: a sample backend, a gateway and a sample org, with no configuration
    Demo(demo::Options),
    /// Run the gateway
    Serve(serve::Options),
    /// Validate a configuration
    #[command(
        after_help = "Examples:\n  tollgate check -c tollgate.toml\n  tollgate check --print"
    )]
    Check {
        /// The configuration [default: tollgate.toml]
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print the effective configuration, secrets hidden
        #[arg(long)]
        print: bool,
    },
    /// Make an org be what a file says
    Apply(apply::Options),
    /// Look into the ledger
    #[command(subcommand)]
    Ledger(ledger::Command),
    /// Mend the books' files
    #[command(subcommand)]
    Books(books::Command),
    /// Run the sample backend alone
    SampleBackend(sample_backend::Options),
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Command::Demo(options) => demo::run(&options),
        Command::Serve(options) => serve::run(&options),
        Command::Check { config, print } => check::check(config.as_deref(), print),
        Command::Apply(options) => apply::run(&options),
        Command::Ledger(command) => ledger::run(&command),
        Command::Books(command) => books::run(&command),
        Command::SampleBackend(options) => sample_backend::run(&options),
    }
}

/// Tells what went wrong, and returns the code for it.
pub fn fail(code: u8, error: impl std::fmt::Display) -> ExitCode {
    eprintln!("tollgate: {error}");
    ExitCode::from(code)
}
