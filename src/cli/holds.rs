//! `tollgate holds`: charges that are not settled yet.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::charge;
use super::client::{OrgServer, in_query};
use super::output::{Output, cell, plain, table};
use crate::core::ids::{ChargeId, Id};

/// What to do with holds.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List what is held and not settled yet
    List(List),
    /// Give a hold's credit back: its charge ends as voided
    Void(Void),
}

/// See `--help`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tollgate holds list --org acme --user alice
  tollgate holds list --org acme --limit 1000 --output json | jq -r '.items[].charge'")]
pub struct List {
    /// Only this user's
    #[arg(long, value_name = "ID")]
    user: Option<Id>,
    /// At most so many, from 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Go on where the last list ended
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
    #[command(flatten)]
    org: OrgServer,
    #[command(flatten)]
    output: Output,
}

/// See `--help`.
#[derive(Debug, Args)]
#[command(
    after_help = "To void a charge again changes nothing. One that was captured stays as it \
is, and the command exits 1.\n\nExample:
  tollgate holds void 01a1fb54-b3cc-7d3b-8096-b6d771eb1dcb --org acme"
)]
pub struct Void {
    /// The charge's id
    #[arg(value_name = "ID", value_parser = charge::charge_id)]
    charge: ChargeId,
    #[command(flatten)]
    org: OrgServer,
    #[command(flatten)]
    output: Output,
}

/// Runs the command.
pub fn run(command: &Command) -> ExitCode {
    let (answer, output, show): (_, _, fn(&Value) -> String) = match command {
        Command::List(options) => {
            let mut path = format!("holds?limit={}", options.limit);
            if let Some(user) = &options.user {
                path += &format!("&user={}", in_query(user.as_str()));
            }
            if let Some(cursor) = &options.cursor {
                path += &format!("&cursor={}", in_query(cursor));
            }
            (options.org.get(&path), options.output, show_list)
        }
        Command::Void(options) => {
            let path = format!("holds/{}/void", options.charge);
            (options.org.post(&path, &json!({})), options.output, charge::show)
        }
    };
    match answer {
        Ok(answer) => answer.print(output.format, show),
        Err(error) => error.end(),
    }
}

fn show_list(list: &Value) -> String {
    let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
    if items.is_empty() {
        return "nothing is held\n".to_owned();
    }
    let keys = ["charge", "user", "feature", "quantity", "cost", "created_at", "expires_at"];
    let headings = ["CHARGE", "USER", "FEATURE", ">QUANTITY", ">COST", "CREATED", "EXPIRES"];
    let rows = items.iter().map(|hold| keys.map(|key| cell(&hold[key])).to_vec());
    let more = match &list["next_cursor"] {
        Value::String(cursor) => format!("more: --cursor {}\n", plain(cursor)),
        _ => String::new(),
    };
    format!("{}{more}", table(&headings, rows))
}
