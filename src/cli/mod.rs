//! The command line. Each command is a function that returns the process's exit code: 0 fine,
//! 1 the thing asked for failed, 2 usage or configuration; `apply --dry-run` has 3, `serve` has 4.

pub mod apply;
pub mod balance;
pub mod books;
pub mod charge;
pub mod check;
pub mod client;
pub mod demo;
pub mod directory;
pub mod holds;
mod in_redis;
pub mod ledger;
pub mod output;
pub mod quote;
pub mod sample_backend;
pub mod serve;
pub mod shell;
pub mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The thing asked for failed.
pub const FAILED: u8 = 1;
/// Usage or configuration.
pub const USAGE: u8 = 2;
/// The books' files failed while a gateway ran (f41). 3 is of [`apply`].
pub const BOOKS_FAILED: u8 = 4;

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
  tollgate balance alice --org acme      what has a user left?
  tollgate ledger verify -c tollgate.toml

Exit codes: 0 fine, 1 the thing asked for failed, 2 usage or configuration;
serve: 4 the books' files failed, look at the disk and start again.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Try Tollgate: a sample backend, a gateway and a sample org, with no configuration
    Demo(demo::Options),
    /// Run the gateway
    Serve(serve::Options),
    /// Validate a configuration
    Check(check::Options),
    /// Make an org be what a file says
    Apply(apply::Options),
    /// What would a request cost, and would it pass?
    Quote(quote::Options),
    /// Look at one charge, and who paid it
    Charge(charge::Options),
    /// What has a user left?
    Balance(balance::Options),
    /// Look at holds, or void one
    #[command(subcommand)]
    Holds(holds::Command),
    /// Make, list and revoke admin tokens
    #[command(subcommand)]
    Token(token::Command),
    /// Look into the ledger
    #[command(subcommand)]
    Ledger(ledger::Command),
    /// Mend the books' files
    #[command(subcommand)]
    Books(books::Command),
    /// Copy the directory into another database
    #[command(subcommand)]
    Directory(directory::Command),
    /// Run the sample backend alone
    SampleBackend(sample_backend::Options),
    /// Print what a shell needs to complete commands
    Completions(shell::Completions),
    /// Print the manual
    Man(shell::Man),
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Command::Demo(options) => demo::run(&options),
        Command::Serve(options) => serve::run(&options),
        Command::Check(options) => check::check(&options),
        Command::Apply(options) => apply::run(&options),
        Command::Quote(options) => quote::run(&options),
        Command::Charge(options) => charge::run(&options),
        Command::Balance(options) => balance::run(&options),
        Command::Holds(command) => holds::run(&command),
        Command::Token(command) => token::run(&command),
        Command::Ledger(command) => ledger::run(&command),
        Command::Books(command) => books::run(&command),
        Command::Directory(command) => directory::run(&command),
        Command::SampleBackend(options) => sample_backend::run(&options),
        Command::Completions(options) => shell::completions(&options),
        Command::Man(options) => shell::man(&options),
    }
}

/// Tells what went wrong, and returns the code for it.
pub fn fail(code: u8, error: impl std::fmt::Display) -> ExitCode {
    output::warn(&format!("tollgate: {error}\n"));
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn commands(of: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
        for command in of.get_subcommands() {
            let path = format!("{path} {}", command.get_name());
            if command.has_subcommands() {
                commands(command, &path, found);
            } else {
                found.push((path, command.clone()));
            }
        }
    }

    #[test]
    fn every_command_has_an_example_that_parses_and_a_place_in_the_documentation() {
        Cli::command().debug_assert();
        let (mut found, page) = (Vec::new(), include_str!("../../docs/cli.md"));
        commands(&Cli::command(), "tollgate", &mut found);
        for (path, command) in found {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            // A line may go on after a backslash; what a shell does with the output is its own.
            let help = help.replace("\\\n", " ").replace("$(", "\n");
            let lines = help.lines().filter_map(|line| Some(&line[line.find(&path)?..]));
            let examples: Vec<&str> =
                lines.map(|line| line.split(['|', '>', ')']).next().unwrap_or_default()).collect();
            assert!(!examples.is_empty(), "{path} has no example");
            for example in examples {
                let words: Vec<&str> =
                    example.split("   ").next().unwrap_or_default().split_whitespace().collect();
                let parsed = Cli::try_parse_from(&words)
                    .or_else(|_| Cli::try_parse_from([&words[..], &["--org", "acme"]].concat()));
                assert!(parsed.is_ok(), "{example}: {parsed:?}");
            }
            assert!(page.contains(&format!("## `{path}")), "docs/cli.md: {path}");
        }
    }
}
