//! `tollgate books repair` of books in Redis.

use anyhow::{bail, ensure};

use super::line;
use crate::app::new_name;
use crate::books::redis::repair::{Condition, Inspected};
use crate::cli::in_redis::InRedis;
use crate::clock::Clock;
use crate::config::Config;
use crate::core::record::instant;
use crate::ledger::repair::{Built, Repair};

/// What is asked for.
pub struct Asked<'a> {
    /// Do it.
    pub apply: bool,
    /// Which shards; none for all that are damaged.
    pub shards: &'a [u16],
    /// Also where the result may be something else than the books were.
    pub inexact: bool,
}

/// Shows how the shards are, and builds those again that are damaged.
pub fn run(config: &Config, asked: &Asked<'_>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let books = InRedis::of(config).await?;
        books.shards.prepare().await?;
        let repair = Repair {
            shards: &books.shards,
            epoch: &books.epoch,
            archive: books.archive.clone(),
            now: Clock::default().now(),
            inexact: asked.inexact,
        };
        let found = repair.inspect().await?;
        told(&found)?;
        let which = chosen(&found, asked.shards)?;
        if which.is_empty() {
            return line("nothing to repair");
        }
        if !asked.apply {
            for built in repair.build(&which).await? {
                describe(&built, "would have")?;
            }
            return line("nothing was changed; --apply does it");
        }
        for built in repair.apply(&which, &new_name()?).await? {
            describe(&built, "has")?;
        }
        line("done; the shards open when the gateways have entered them")
    })
}

fn told(found: &[Inspected]) -> anyhow::Result<()> {
    for (shard, found) in found.iter().enumerate() {
        let how = match &found.condition {
            Condition::Whole => continue,
            Condition::Damaged(what) => format!("damaged: {}", what.join("; ")),
            Condition::Unfinished => "a repair was begun, and not finished".to_owned(),
            Condition::Other(epoch) => format!("has books of another epoch: {epoch:?}"),
        };
        line(&format!("shard {shard}: {how}"))?;
    }
    let whole = found.iter().filter(|found| found.condition == Condition::Whole).count();
    line(&format!("{whole} of {} shards are whole", found.len()))
}

/// Which shards are built again.
fn chosen(found: &[Inspected], asked: &[u16]) -> anyhow::Result<Vec<usize>> {
    let is_broken = |shard: &usize| {
        matches!(found[*shard].condition, Condition::Damaged(_) | Condition::Unfinished)
    };
    if asked.is_empty() {
        return Ok((0..found.len()).filter(is_broken).collect());
    }
    let mut which: Vec<usize> = asked.iter().map(|shard| usize::from(*shard)).collect();
    which.sort_unstable();
    which.dedup();
    for shard in &which {
        ensure!(*shard < found.len(), "--shard {shard}: there are {} shards", found.len());
        match &found[*shard].condition {
            Condition::Whole => bail!("--shard {shard}: it is whole"),
            Condition::Other(epoch) => bail!("--shard {shard}: it belongs to the books {epoch}"),
            Condition::Damaged(_) | Condition::Unfinished => {}
        }
    }
    Ok(which)
}

fn describe(built: &Built, has: &str) -> anyhow::Result<()> {
    let Built { shard, content, archived, end, unread, dead, .. } = built;
    let [accounts, holds, keys] = content.counts();
    line(&format!(
        "shard {shard} {has} {accounts} accounts, {holds} open holds and {keys} keys, of {} charges and \
         {} adjustments up to entry {archived} in the archive",
        content.charges, content.adjustments
    ))?;
    if end > archived {
        line(&format!("shard {shard}: entries {} to {end} are from its stream", archived + 1))?;
    }
    if *unread {
        line(&format!(
            "shard {shard}: what its stream has does not go on from there, or cannot be read: it is \
             left out"
        ))?;
    }
    let newest = match content.newest {
        0 => String::new(),
        newest => format!(", made at {}", instant(newest)),
    };
    line(&format!(
        "shard {shard}: what came behind entry {end}{newest} is done again by the gateways that have it \
         in their journals; what none has is lost"
    ))?;
    if *dead > 0 {
        line(&format!(
            "shard {shard}: {dead} dead letters: records that could not be read are not counted"
        ))?;
    }
    for odd in &content.odd {
        line(&format!("shard {shard}: {odd}"))?;
    }
    Ok(())
}
