//! `tollgate charge`: one charge, and who paid it.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::client::OrgServer;
use super::output::{Output, cell, fields, table};
use crate::core::ids::ChargeId;

/// See `--help`.
#[derive(Debug, Args)]
#[command(after_help = "The id is in the receipt of the answer, and in `Tollgate-Charge` at the \
backend.\n\nExamples:
  tollgate charge 01a1fb54-b3cc-7d3b-8096-b6d771eb1dcb --org acme
  tollgate charge 01a1fb54-b3cc-7d3b-8096-b6d771eb1dcb --org acme --output json | jq .legs")]
pub struct Options {
    /// The charge's id
    #[arg(value_name = "ID", value_parser = charge_id)]
    charge: ChargeId,
    #[command(flatten)]
    org: OrgServer,
    #[command(flatten)]
    output: Output,
}

/// A charge's id as an argument.
///
/// # Errors
/// Says what was expected.
pub fn charge_id(text: &str) -> Result<ChargeId, String> {
    text.parse()
        .map_err(|_| "expected a charge's id like 01a1fb54-b3cc-7d3b-8096-b6d771eb1dcb".to_owned())
}

/// Runs the command.
pub fn run(options: &Options) -> ExitCode {
    match options.org.get(&format!("charges/{}", options.charge)) {
        Ok(answer) => answer.print(options.output.format, show),
        Err(error) => error.end(),
    }
}

/// A charge document for people.
pub fn show(charge: &Value) -> String {
    let at = |key: &str| cell(&charge[key]);
    let mut lines = vec![
        ("charge", at("charge")),
        ("state", at("state")),
        ("user", format!("{} of {}", at("user"), at("org"))),
        ("feature", at("feature")),
        ("quantity", at("quantity")),
        ("route", at("route")),
        ("cost", format!("{} credits", at("cost"))),
        ("rate card", at("rate_card")),
        ("cycle", at("cycle")),
        ("term", at("term")),
        ("flags", at("flags")),
        ("request", at("request_id")),
        ("created", at("created_at")),
        ("expires", at("expires_at")),
        ("resolved", at("resolved_at")),
    ];
    if charge["would_refuse"].is_string() {
        lines.push(("would refuse", at("would_refuse")));
    }
    if charge["uncovered"].is_object() {
        let of = |unit: &str| format!("{} {unit}", cell(&charge["uncovered"][unit]));
        lines.push(("uncovered", format!("{}, {}", of("credits"), of("operations"))));
    }
    let head = fields(&lines);
    let legs = charge["legs"].as_array().map_or(&[][..], Vec::as_slice);
    if legs.is_empty() {
        return head;
    }
    let row = |leg: &Value| {
        ["account", "kind", "covers", "amount", "unit"].map(|key| cell(&leg[key])).to_vec()
    };
    let headings = ["ACCOUNT", "KIND", ">COVERS", ">AMOUNT", "UNIT"];
    format!("{head}\n{}", table(&headings, legs.iter().map(row)))
}
