//! `tollgate balance`: what a user has left.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::client::OrgServer;
use super::output::{Output, cell, fields, table};
use crate::core::ids::Id;

/// See `--help`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tollgate balance alice --org acme
  tollgate balance alice --org acme --output json | jq -r .seat.available
  TOLLGATE_ORG=acme tollgate balance alice")]
pub struct Options {
    /// The user
    user: Id,
    #[command(flatten)]
    org: OrgServer,
    #[command(flatten)]
    output: Output,
}

/// Runs the command.
pub fn run(options: &Options) -> ExitCode {
    match options.org.get(&format!("users/{}/balance", options.user)) {
        Ok(answer) => answer.print(options.output.format, show),
        Err(error) => error.end(),
    }
}

/// A balance document for people.
pub fn show(balance: &Value) -> String {
    let at = |pointer: &str| cell(balance.pointer(pointer).unwrap_or(&Value::Null));
    let pool = match balance["pool"]["access"].as_bool() {
        Some(true) => match &balance["pool"]["limit"] {
            Value::Null => format!("{} Operations drawn, no limit", at("/pool/drawn")),
            _ => format!("{} of {} Operations drawn", at("/pool/drawn"), at("/pool/limit")),
        },
        _ => format!("no access; missing: {}", at("/pool/missing")),
    };
    let head = fields(&[
        ("user", format!("{} of {}", at("/user"), at("/org"))),
        ("cycle", format!("{}, until {}", at("/cycle/label"), at("/cycle/end"))),
        ("pool", pool),
        ("overdraft", format!("{} credits", at("/overdraft"))),
    ]);
    let amounts = ["granted", "held", "captured", "available"];
    let row = |name: String, plan: String, of: &Value| {
        [name, plan].into_iter().chain(amounts.map(|amount| cell(&of[amount]))).collect()
    };
    let seat = &balance["seat"];
    let licences = seat["licences"].as_array().into_iter().flatten();
    let rows = licences
        .map(|licence| row(cell(&licence["id"]), cell(&licence["plan"]), licence))
        .chain([row("seat".to_owned(), "-".to_owned(), seat)]);
    let headings = ["CREDITS", "PLAN", ">GRANTED", ">HELD", ">CAPTURED", ">AVAILABLE"];
    format!("{head}\n{}", table(&headings, rows.collect::<Vec<_>>()))
}
