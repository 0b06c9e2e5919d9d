//! `tollgate token`: admin tokens and their roles.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::client::Server;
use super::output::{Output, cell, fields, print, table};
use super::{USAGE, fail};
use crate::core::ids::Id;

const PATH: &str = "/v1/tokens";

/// What to do with admin tokens.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token, and show it this once
    Create(Create),
    /// List tokens and their roles; never a token itself
    List(List),
    /// End a token: it opens nothing from the next request on
    Revoke(Revoke),
}

/// What a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Everything, in all orgs
    Operator,
    /// Everything in one org
    OrgAdmin,
    /// The members of given profiles of an org
    ProfileAdmin,
    /// Look, and change nothing
    Viewer,
}

/// See `--help`.
#[derive(Debug, Args)]
#[command(after_help = "The token is shown once; the server keeps only its hash.\n\nExamples:
  tollgate token create ci --role viewer --org acme
  tollgate token create design-lead --role profile-admin --org acme --profile ffs-creative
  TOLLGATE_ADMIN_TOKEN=$(tollgate token create ops --role operator --output json | jq -r .secret)")]
pub struct Create {
    /// A name for it
    #[arg(value_name = "ID")]
    id: Id,
    /// What it may do
    #[arg(long, value_enum)]
    role: Role,
    /// Where it may; a viewer without one sees every org
    #[arg(long, value_name = "ID")]
    org: Option<Id>,
    /// Whose members a profile-admin looks after; may be given several times
    #[arg(long = "profile", value_name = "ID")]
    profiles: Vec<Id>,
    /// When it ends by itself, like 2027-01-01T00:00:00Z
    #[arg(long, value_name = "TIME")]
    expires: Option<Timestamp>,
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
}

/// See `--help`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tollgate token list")]
pub struct List {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
}

/// See `--help`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tollgate token revoke ci")]
pub struct Revoke {
    /// Its name
    #[arg(value_name = "ID")]
    id: Id,
    #[command(flatten)]
    server: Server,
}

/// Runs the command.
pub fn run(command: &Command) -> ExitCode {
    match command {
        Command::Create(options) => create(options),
        // There are never more of them than one page holds.
        Command::List(options) => match options.server.get(&format!("{PATH}?limit=1000")) {
            Ok(answer) => answer.print(options.output.format, show_list),
            Err(error) => error.end(),
        },
        Command::Revoke(options) => {
            match options.server.delete(&format!("{PATH}/{}", options.id)) {
                Ok(_) => print(&format!("{}: revoked\n", options.id)),
                Err(error) => error.end(),
            }
        }
    }
}

fn create(options: &Create) -> ExitCode {
    if let Some(wrong) = misfit(options) {
        return fail(USAGE, wrong);
    }
    let mut asked = Map::new();
    asked.insert("id".to_owned(), json!(options.id));
    asked.insert("role".to_owned(), options.role.word().into());
    if let Some(org) = &options.org {
        asked.insert("org".to_owned(), json!(org));
    }
    if !options.profiles.is_empty() {
        asked.insert("profiles".to_owned(), json!(options.profiles));
    }
    if let Some(expires) = &options.expires {
        asked.insert("expires".to_owned(), json!(expires));
    }
    match options.server.post(PATH, Value::Object(asked).to_string().as_bytes()) {
        Ok(answer) => answer.print(options.output.format, show_made),
        Err(error) => error.end(),
    }
}

/// What a role needs beside it, so that the mistake is told where it was made.
fn misfit(options: &Create) -> Option<&'static str> {
    match (options.role, &options.org, options.profiles.is_empty()) {
        (Role::Operator, Some(_), _) => Some("an operator is of all orgs: leave out --org"),
        (Role::OrgAdmin | Role::ProfileAdmin, None, _) => {
            Some("this role is of one org: add --org ID")
        }
        (Role::ProfileAdmin, _, true) => Some("a profile-admin needs --profile ID, once or more"),
        (Role::Operator | Role::OrgAdmin | Role::Viewer, _, false) => {
            Some("--profile goes with --role profile-admin only")
        }
        _ => None,
    }
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::OrgAdmin => "org-admin",
            Self::ProfileAdmin => "profile-admin",
            Self::Viewer => "viewer",
        }
    }
}

fn show_made(made: &Value) -> String {
    let at = |key: &str| cell(&made[key]);
    let secret = format!("{}   (shown once; only its hash is kept)", at("secret"));
    let shown = ["id", "role", "org", "profiles", "expires"].map(|key| (key, at(key)));
    fields(&[&shown[..], &[("token", secret)]].concat())
}

fn show_list(list: &Value) -> String {
    let keys = ["id", "role", "org", "profiles", "created_at", "created_by", "expires"];
    let rows = list["items"].as_array().into_iter().flatten();
    let rows = rows.map(|token| keys.map(|key| cell(&token[key])).to_vec());
    table(&["ID", "ROLE", "ORG", "PROFILES", "CREATED", "BY", "EXPIRES"], rows)
}
