//! `tollgate apply`: makes an org be what a file says.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use toml::de::{DeTable, DeValue};

use super::client::{Answer, ClientError, Server};
use super::output::{Output, plain};
use super::{USAGE, fail};
use crate::core::ids::Id;
use crate::directory::file::{Problem, Source};

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
    #[command(flatten)]
    output: Output,
}

/// Runs the command.
pub fn run(options: &Options) -> ExitCode {
    let name = options.file.display();
    let text = match read(&options.file) {
        Ok(text) => text,
        Err(error) => return fail(USAGE, format!("{name}: {error}")),
    };
    let mut source = match Source::from_toml(&text) {
        Ok(source) => source,
        Err(error) => return fail(USAGE, format!("{name}: {error}")),
    };
    let wrong = |problems: &[Problem]| {
        let lines = problems.iter().map(|problem| located(&name.to_string(), &text, problem));
        fail(USAGE, lines.collect::<Vec<_>>().join("\n"))
    };
    let variable = |name: &str| std::env::var(name).ok();
    if let Err(problems) = source.resolve_secrets(variable, |path| std::fs::read_to_string(path)) {
        return wrong(&problems);
    }
    let Some(org) = source.org_id().filter(|id| id.parse::<Id>().is_ok()) else {
        return fail(USAGE, format!("{name}: org.id: expected a valid `id` in [org]"));
    };
    let path = format!("/v1/orgs/{org}/apply?dry_run={}", options.dry_run);
    match options.server.post(&path, &source.to_json()) {
        Ok(answer) => report(options, org, &answer),
        // What is wrong is known to the server, where it stands only to us.
        Err(ClientError::Refused { problems, .. }) if !problems.is_empty() => wrong(&problems),
        Err(error) => error.end(),
    }
}

/// A problem with the line and the column of what it is about, or of what lacks it.
fn located(name: &str, text: &str, problem: &Problem) -> String {
    let (mut key, mut start) = (String::new(), None);
    let root = DeTable::parse(text).ok().map(|root| DeValue::Table(root.into_inner()));
    let mut at = root.as_ref();
    for step in problem.pointer.split('/').skip(1) {
        let step = step.replace("~1", "/").replace("~0", "~");
        let found = match (at.take(), step.parse::<usize>()) {
            (Some(DeValue::Array(values)), Ok(index)) => values.get(index),
            (Some(DeValue::Table(table)), _) => table.get(&*step),
            _ => None,
        };
        match step.parse::<usize>() {
            Ok(index) => key += &format!("[{index}]"),
            Err(_) if key.is_empty() => key = step,
            Err(_) => key += &format!(".{step}"),
        }
        if let Some(value) = found {
            start = Some(value.span().start);
            at = Some(value.get_ref());
        }
    }
    let place = start.and_then(|start| text.get(..start)).map_or_else(String::new, |before| {
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        format!(":{}:{column}", before.matches('\n').count() + 1)
    });
    let key = if key.is_empty() { key } else { format!("{}: ", plain(&key)) };
    format!("{name}{place}: {key}{}", plain(&problem.detail))
}

fn report(options: &Options, org: &str, answer: &Answer) -> ExitCode {
    let changes = answer.document["changes"].as_array().map_or(&[][..], Vec::as_slice);
    let printed = answer.print(options.output.format, |answer| {
        let mut text = String::new();
        for change in changes {
            text += &format!("{}\n", plain(change.as_str().unwrap_or_default()));
        }
        text += &match (changes.len(), options.dry_run) {
            (0, _) => format!("{org}: is already what the file says\n"),
            (count, true) => format!("{org}: {count} to change\n"),
            (count, false) => format!("{org}: {count} changed\n"),
        };
        for (key, secret) in answer["secrets"].as_object().into_iter().flatten() {
            let secret = secret.as_str().unwrap_or_default();
            text += &format!("key {key}: {secret}   (shown once; only its hash is kept)\n");
        }
        text
    });
    if options.exit_code && !changes.is_empty() {
        return ExitCode::from(DIFFERENT);
    }
    printed
}

fn read(path: &Path) -> std::io::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_where_it_stands_in_the_file() {
        let text = "[org]\nid = \"a\"\n\n[[user]]\nid = \"é\"\nlicences = [{ id = \"l\", plan = \"x\" }]\n";
        for (pointer, expected) in [
            ("", "o.toml: d"),
            ("/org/id", "o.toml:2:6: org.id: d"),
            ("/user/0/licences/0/plan", "o.toml:6:32: user[0].licences[0].plan: d"),
            // What is absent is told where it would be.
            ("/user/0/email", "o.toml:4:1: user[0].email: d"),
            ("/term/0", "o.toml: term[0]: d"),
            ("/a~1b~0\u{1b}", "o.toml: a/b~\\u{1b}: d"),
        ] {
            let problem = Problem { pointer: pointer.to_owned(), detail: "d".to_owned() };
            assert_eq!(located("o.toml", text, &problem), expected);
        }
    }
}
