//! Orgs and their users, as files for `tollgate apply`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::request::Callers;
use crate::scenario::Scenario;

/// What every org has; prices are those of `Kind::cost`.
const REST: &str = r#"
[[group]]
id = "pool"

[[profile]]
id = "ffs"
product = "firefly-services"
shared_credits = true
groups = ["pool"]

[[profile]]
id = "cce"
product = "cce-4"
groups = ["pool"]

[[rate_card]]
version = "load-1"
operations_per_credit = "0.02"

[[rate_card.rate]]
feature = "text-to-image"
when = { resolution = "1k" }
unit = "image"
credits = "1"

[[rate_card.rate]]
feature = "text-to-image"
when = { resolution = "2k" }
unit = "image"
credits = "2"

[[rate_card.rate]]
feature = "chat"
meter = "input"
unit = "token"
credits = "0.001"

[[rate_card.rate]]
feature = "chat"
meter = "output"
unit = "token"
credits = "0.004"

[[rate_card.rate]]
feature = "stream"
credits = "1"

[[rate_card.rate]]
feature = "transfer"
credits = "1"
"#;

/// The name of an org.
pub fn name(number: u64) -> String {
    format!("load-{number:05}")
}

/// The callers of a group.
pub fn callers(scenario: &Scenario, letter: char, secret: &str) -> Callers {
    Callers { letter, secret: secret.to_owned(), orgs: scenario.org.count }
}

/// Writes one of the scenario's orgs.
///
/// # Errors
/// When the file cannot be written.
pub fn write(scenario: &Scenario, number: u64, secret: &str, to: &Path) -> anyhow::Result<()> {
    let mut out = BufWriter::new(File::create(to)?);
    let orgs = &scenario.org;
    writeln!(out, "[org]\nid = \"{}\"\ncontract = \"etla\"", name(number))?;
    writeln!(out, "products = [\"firefly-services\", \"cce-4\"]\noverage = {}", orgs.overage)?;
    let term = "\n[[term]]\nid = \"all\"\nstart = \"2020-01-01\"\nend = \"2100-01-01\"";
    writeln!(out, "{term}\npool = \"{}\"", orgs.pool)?;
    for (group, licence, credits) in plans(scenario) {
        writeln!(out, "\n[[plan]]\nid = \"{group}-{licence}\"\ncredits = \"{credits}\"")?;
    }
    writeln!(out, "{REST}")?;
    let key = callers(scenario, 'a', secret).key(number);
    writeln!(
        out,
        "[[key]]\nid = \"driver\"\nkind = \"service\"\nacts_for = \"*\"\nsecret = \"{key}\""
    )?;
    for (letter, group) in ('a'..='z').zip(&scenario.users) {
        let callers = callers(scenario, letter, secret);
        let groups = if group.pool { "\ngroups = [\"pool\"]" } else { "" };
        for user in (number..group.count).step_by(usize::try_from(orgs.count)?) {
            let user = callers.user(user);
            write!(out, "\n[[user]]\nid = \"{user}\"{groups}\nlicences = [")?;
            for licence in 1..=group.licences.len() {
                let plan = format!("{}-{licence}", group.name);
                let comma = if licence > 1 { ", " } else { "" };
                write!(
                    out,
                    "{comma}{{ id = \"{user}-{licence}\", plan = \"{plan}\", priority = {licence} }}"
                )?;
            }
            writeln!(out, "]")?;
        }
    }
    Ok(out.flush()?)
}

fn plans(scenario: &Scenario) -> impl Iterator<Item = (&str, usize, crate::exact::Amount)> {
    scenario.users.iter().flat_map(|group| {
        let licences = group.licences.iter().enumerate();
        licences.map(|(index, credits)| (group.name.as_str(), index + 1, *credits))
    })
}
