//! `tollgate books move`: from a data dir into Redis, or back.
//!
//! The directory's row of which books it is for is changed last: until then whatever was written is
//! nobody's, and a move that was interrupted begins again from nothing.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;

use super::line;
use crate::app::{PREFIX, identity, new_name, redis_url};
use crate::books::fold::Fold;
use crate::books::recover::recover;
use crate::books::redis::carry::{Found, Here, Shards};
use crate::books::{carry, embedded};
use crate::clock::Clock;
use crate::config::{Config, Engine};
use crate::core::ids::ChargeId;
use crate::directory::books::ItsBooks;
use crate::directory::{Directory, Place};
use crate::ledger::archive::Archive;

/// Where books are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// In the data dir
    Embedded,
    /// In Redis
    Redis,
}

/// How many holds or sessions are named.
const SHOWN: usize = 5;

/// What both directions need.
struct Move<'a> {
    config: &'a Config,
    directory: Directory,
    its: ItsBooks,
    shards: Shards,
    /// The id of the data dir, which is locked.
    id: String,
    _id: File,
    /// When it is done, in microseconds since the Unix epoch.
    at: i64,
}

/// Moves the books.
pub fn run(config: &Config, to: Kind) -> anyhow::Result<()> {
    ensure!(
        config.books.engine == Engine::Redis,
        "books.engine: expected the configuration with \"redis\", which says where that is"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let work = Move::begin(config).await?;
        match to {
            Kind::Redis => work.into_redis().await,
            Kind::Embedded => work.into_embedded().await,
        }
    })
}

impl<'a> Move<'a> {
    async fn begin(config: &'a Config) -> anyhow::Result<Self> {
        let data_dir = &config.data.dir;
        ensure!(data_dir.is_dir(), "{}: there is no data dir", data_dir.display());
        let (id_file, id) = identity(data_dir)?;
        let directory = match &config.directory.url {
            Some(url) => Directory::open(Place::Server(url.expose().into()), 0).await,
            None => {
                let file = data_dir.join("directory.db");
                ensure!(file.is_file(), "{}: there is no directory", file.display());
                Directory::open(data_dir.as_path(), 0).await
            }
        };
        let directory = directory.context("the directory")?;
        let none = "the directory has no books yet: move with the directory that they are for, and \
                    copy it afterwards";
        let its = directory.books().await?.context(none)?;
        let url = redis_url(config)?;
        let shards = Shards::new(&url, PREFIX, usize::from(config.books.shards))?;
        let at = Clock::default().now().as_microsecond();
        Ok(Self { config, directory, its, shards, id, _id: id_file, at })
    }

    /// Where a gateway with books in Redis archives.
    fn shared_archive(&self) -> Place {
        match &self.config.directory.url {
            Some(url) => Place::Server(url.expose().into()),
            None => self.own_archive(),
        }
    }

    /// Where a gateway with embedded books archives.
    fn own_archive(&self) -> Place {
        Place::File(self.config.data.dir.join("archive.db"))
    }

    async fn into_redis(self) -> anyhow::Result<()> {
        let dir = self.config.data.dir.join("books");
        ensure!(self.its.engine == "embedded", "the directory's books are in Redis already");
        ensure!(
            self.its.name == self.id || self.config.directory.url.is_none(),
            "the directory's books are in the data dir of another gateway ({})",
            self.its.name
        );
        ensure!(dir.is_dir(), "{}: no books here; check data.dir", dir.display());
        let _lock = locked(&dir)?;
        let recovered = recover(&dir, None)?;
        let fold = recovered.fold;
        let holds: Vec<ChargeId> = fold.holds.keys().map(|id| ChargeId(*id)).collect();
        nothing_open(&fold, &holds)?;
        ensure!(
            Archive::has_journal(self.own_archive(), recovered.position).await?,
            "the archive is behind the books: start the gateway, and stop it when \
             tollgate_ledger_lag_records is 0"
        );
        match self.shards.find(&self.its.name).await? {
            Found::Nothing => {}
            Found::Leftover => self.shards.clear().await?,
            Found::Books(epoch) => bail!(
                "Redis has books already ({epoch}) in keys that begin with {PREFIX}:{{s0}}: use a \
                 database without them"
            ),
        }
        Archive::begin_shards(self.shared_archive()).await?;
        let epoch = new_name()?;
        self.shards.write(&fold, &epoch, &self.its.name, self.at).await?;
        let there = self.shards.read(&epoch, self.config.books.owner_timeout).await?;
        same(&fold, &there.fold)?;
        let summed = self.shards.folded().await?;
        // The streams do not say which cycles are closed.
        same(&fold, &Fold { closed: fold.closed, ..summed })?;
        if let Some(warning) = self.shards.on_disk().await? {
            line(&format!("warning: {warning}"))?;
        }
        let shards = self.config.books.shards;
        let to = ItsBooks { engine: "redis".into(), name: epoch.clone(), shards, made: true };
        ensure!(
            self.directory.move_books(&self.its, &to).await?,
            "the directory has other books by now; nothing was moved"
        );
        if let Err(error) = self.forget_in_data_dir(&to).await {
            line(&format!(
                "warning: the old directory in the data dir still says that these are its books, so \
                 start no gateway on it: {error:#}"
            ))?;
        }
        // What it is called in Redis does no harm where it stays.
        let _ = self.shards.moved().await;
        told(&fold, "Redis", &epoch)?;
        line(&format!("{} is not used any more, and can be put aside", dir.display()))?;
        self.other_archive()
    }

    /// A directory of the data dir that was copied to a server is for these books too: a gateway that
    /// is started on it would give out again what was used since.
    async fn forget_in_data_dir(&self, to: &ItsBooks) -> anyhow::Result<()> {
        let data_dir = &self.config.data.dir;
        if self.config.directory.url.is_none() || !data_dir.join("directory.db").is_file() {
            return Ok(());
        }
        let directory = Directory::open(data_dir.as_path(), 0).await?;
        if let Some(its) = directory.books().await?.filter(|its| its.engine == "embedded") {
            directory.move_books(&its, to).await?;
        }
        Ok(())
    }

    async fn into_embedded(self) -> anyhow::Result<()> {
        ensure!(self.its.engine == "redis", "the directory's books are in a data dir already");
        ensure!(
            self.its.shards == self.config.books.shards,
            "books.shards is {}, and these books were made with {}",
            self.config.books.shards,
            self.its.shards
        );
        let epoch = self.its.name.clone();
        let done = self.copy_out(&epoch).await;
        // Where it is not known whether the directory changed over they stay shut: gateways on these
        // books have to wait for somebody who looks.
        if done.is_err() {
            let now = self.directory.books().await;
            if now.is_ok_and(|now| now.as_ref() == Some(&self.its)) {
                self.shards.open_again(&epoch).await?;
            }
        }
        done
    }

    async fn copy_out(&self, epoch: &str) -> anyhow::Result<()> {
        let silence = self.config.books.owner_timeout;
        let read = self.shards.read(epoch, silence).await?;
        let fold = &read.fold;
        let holds: Vec<ChargeId> = read.shards.iter().flat_map(|s| s.holds.clone()).collect();
        nobody_there(&read.shards)?;
        nothing_open(fold, &holds)?;
        let ledgers: Vec<_> = read.shards.iter().map(|s| (s.end, s.terms.clone())).collect();
        if let Some(shard) = Archive::lacks_of_shards(self.shared_archive(), &ledgers).await? {
            bail!(
                "the archive is behind shard {shard}: start a gateway, and stop it when \
                 tollgate_ledger_lag_records is 0"
            );
        }
        let dir = self.config.data.dir.join("books");
        if carry::is_from(&dir, epoch) {
            let _lock = locked(&dir)?;
            std::fs::remove_dir_all(&dir)?;
        } else if carry::has_books(&dir)? {
            bail!("{}: there are books already; put them aside", dir.display());
        }
        carry::write(&dir, epoch, fold, self.at)?;
        same(fold, &recover(&dir, None)?.fold)?;
        Archive::begin_journal(self.own_archive()).await?;
        self.shards.shut(epoch, &read.shards, silence).await?;
        let to =
            ItsBooks { engine: "embedded".into(), name: self.id.clone(), shards: 1, made: true };
        ensure!(
            self.directory.move_books(&self.its, &to).await?,
            "the directory has other books by now; nothing was moved"
        );
        told(fold, &dir.display().to_string(), &self.id)?;
        line("set books.engine = \"embedded\" before the gateway is started")?;
        self.other_archive()
    }

    fn other_archive(&self) -> anyhow::Result<()> {
        match self.config.directory.url {
            Some(_) => {
                line("charges made before are in the archive of the books they were made in")
            }
            None => Ok(()),
        }
    }
}

/// Keeps gateways away from embedded books.
fn locked(dir: &Path) -> anyhow::Result<File> {
    let lock = File::create(dir.join("lock"))?;
    let taken = embedded::lock_alone(&lock);
    taken.ok().with_context(|| format!("{}: a gateway has these books", dir.display()))?;
    Ok(lock)
}

fn nobody_there(shards: &[Here]) -> anyhow::Result<()> {
    let sessions: Vec<&str> = shards.iter().flat_map(|s| &s.sessions).map(String::as_str).collect();
    if let Some(first) = sessions.first() {
        bail!(
            "a gateway uses the books, or did until a moment ago ({first}): stop all of them, and \
             wait for owner_timeout"
        );
    }
    let asleep = shards.iter().position(|shard| !shard.is_open && !shard.is_shut);
    if let Some(shard) = asleep {
        bail!(
            "Redis was started again since shard {shard} was used, and may have lost what gateways \
             know: start them once, and stop them again"
        );
    }
    Ok(())
}

fn nothing_open(fold: &Fold, holds: &[ChargeId]) -> anyhow::Result<()> {
    if !holds.is_empty() {
        let some: Vec<String> = holds.iter().take(SHOWN).map(ToString::to_string).collect();
        bail!(
            "{} holds are open ({}{}): wait until they end, or end them with `tollgate holds void`, \
             and stop the gateway without killing it",
            holds.len(),
            some.join(", "),
            if holds.len() > SHOWN { ", …" } else { "" }
        );
    }
    match fold.accounts.values().find(|account| account.balance.held > 0) {
        Some(account) => bail!("{} has something held, and no hold is open", account.name),
        None => Ok(()),
    }
}

fn same(here: &Fold, there: &Fold) -> anyhow::Result<()> {
    let found = carry::differences(here, there);
    ensure!(found.is_empty(), "what was written does not read back: {}", found.join("; "));
    Ok(())
}

fn told(fold: &Fold, to: &str, name: &str) -> anyhow::Result<()> {
    let (accounts, keys) = (fold.accounts.len(), fold.once.len());
    line(&format!("moved {accounts} accounts and {keys} keys of charges into {to}; books {name}"))
}
