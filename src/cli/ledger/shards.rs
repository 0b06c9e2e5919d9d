//! Books in Redis, added up.

use super::Report;
use crate::cli::in_redis::InRedis;
use crate::config::Config;
use crate::ledger::add_up::add_up;
use crate::ledger::verify::Totals;

/// Adds up what is archived of all shards and what their streams have beyond that, and compares.
pub(super) fn verify(config: &Config) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let books = InRedis::of(config).await?;
        books.shards.prepare().await?;
        let added = add_up(&books.shards, &books.epoch, &books.archive).await?;
        let mut totals = Totals { begins: 0, records: 0, charges: 0, open: 0, accounts: 0 };
        let mut findings = Vec::new();
        for verifier in &added.shards {
            let of = verifier.totals();
            totals.records += of.records;
            totals.charges += of.charges;
            totals.open += of.open;
            totals.accounts += of.accounts;
            findings.extend(verifier.findings().iter().map(ToString::to_string));
        }
        let note = (!added.sure).then_some(
            "the archive does not know all that came into these books: what differs may be that",
        );
        Ok(Report { findings, totals, shards: Some(added.shards.len()), note })
    })
}
