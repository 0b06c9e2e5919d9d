//! `tollgate completions` and `tollgate man`: what a shell and `man` read.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::output::print;
use super::{Cli, FAILED, fail};

/// See `--help`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tollgate completions bash > /etc/bash_completion.d/tollgate
  tollgate completions zsh > ~/.zfunc/_tollgate
  tollgate completions fish > ~/.config/fish/completions/tollgate.fish")]
pub struct Completions {
    /// For which shell
    shell: Shell,
}

/// See `--help`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tollgate man | man -l -
  tollgate man --dir /usr/local/share/man/man1")]
pub struct Man {
    /// Write a page for each command into this directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints what the shell reads.
pub fn completions(options: &Completions) -> ExitCode {
    let mut text = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), "tollgate", &mut text);
    print(&String::from_utf8_lossy(&text))
}

/// Prints the manual page, or writes one for each command.
pub fn man(options: &Man) -> ExitCode {
    let written = match &options.dir {
        Some(dir) => pages(dir).map(|()| String::new()),
        None => page().map_err(|error| error.to_string()),
    };
    match written {
        Ok(text) => print(&text),
        Err(error) => fail(FAILED, error),
    }
}

fn page() -> std::io::Result<String> {
    let mut text = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn pages(dir: &Path) -> Result<(), String> {
    clap_mangen::generate_to(Cli::command(), dir)
        .map_err(|error| format!("{}: {error}", dir.display()))
}
