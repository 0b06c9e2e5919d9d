//! `tollgate quote`: what a request would cost, and whether it would pass.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value, json};

use super::client::OrgServer;
use super::output::{Output, cell, fields};
use super::{USAGE, fail};
use crate::core::amount;
use crate::core::ids::Id;

/// See `--help`.
#[derive(Debug, Args)]
#[command(after_help = "Nothing is held. The decision is the one that a request would have had \
at this moment.\n\nExamples:
  tollgate quote --org acme --user alice --feature text-to-image --quantity 4
  tollgate quote --org acme --user alice --feature chat --quantity input=900 --quantity output=1024
  tollgate quote --org acme --user alice --feature text-to-video --quantity 5 \\
    --attribute resolution=1080p --output json | jq -r .verdict")]
pub struct Options {
    /// Who would ask
    #[arg(long, value_name = "ID")]
    user: Id,
    /// What would be generated, as the rate card names it
    #[arg(long, value_name = "NAME")]
    feature: Id,
    /// How much, in the rate's unit; by meter where a feature has several
    #[arg(long = "quantity", value_name = "[METER=]AMOUNT", default_value = "1", value_parser = quantity)]
    quantities: Vec<(Option<Id>, String)>,
    /// What the rate depends on; may be given several times
    #[arg(short, long = "attribute", value_name = "NAME=VALUE", value_parser = attribute)]
    attributes: Vec<(Id, String)>,
    #[command(flatten)]
    org: OrgServer,
    #[command(flatten)]
    output: Output,
}

/// Runs the command.
pub fn run(options: &Options) -> ExitCode {
    let quantity = match &options.quantities[..] {
        [(None, only)] => json!(only),
        quantities => {
            let mut meters = Map::new();
            for (meter, amount) in quantities {
                let Some(meter) = meter else {
                    return fail(USAGE, "of several quantities, each is --quantity METER=AMOUNT");
                };
                meters.insert(meter.to_string(), amount.as_str().into());
            }
            Value::Object(meters)
        }
    };
    let attributes: Map<String, Value> = options
        .attributes
        .iter()
        .map(|(name, value)| (name.to_string(), value.as_str().into()))
        .collect();
    let asked = json!({
        "user": options.user,
        "feature": options.feature,
        "quantity": quantity,
        "attributes": attributes,
    });
    match options.org.post("quotes", &asked) {
        Ok(answer) => answer.print(options.output.format, show),
        Err(error) => error.end(),
    }
}

fn show(quote: &Value) -> String {
    let at = |pointer: &str| cell(quote.pointer(pointer).unwrap_or(&Value::Null));
    let verdict = match &quote["code"] {
        Value::Null => at("/verdict"),
        code => format!("{}: {} ({})", at("/verdict"), at("/detail"), cell(code)),
    };
    fields(&[
        ("verdict", verdict),
        ("cost", format!("{} credits, or {} Operations", at("/cost"), at("/operations"))),
        ("rate card", at("/rate_card")),
        ("seat", format!("{} credits available", at("/balance/seat/available"))),
        ("pool access", at("/balance/pool/access")),
    ])
}

fn quantity(text: &str) -> Result<(Option<Id>, String), String> {
    let expected = "expected a quantity like 5 or 2.5, not negative, with at most six decimals";
    let (meter, amount) = match text.split_once('=') {
        Some((meter, amount)) => (Some(meter.parse().map_err(|_| expected)?), amount),
        None => (None, text),
    };
    amount::parse_micro(amount).map_err(|_| expected)?;
    Ok((meter, amount.to_owned()))
}

fn attribute(text: &str) -> Result<(Id, String), String> {
    let example = "expected a name and a value, like resolution=1080p";
    let (name, value) = text.split_once('=').ok_or(example)?;
    Ok((name.parse().map_err(|_| example)?, value.to_owned()))
}
