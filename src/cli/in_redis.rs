//! Books in Redis, for commands: where they are, which ones, and where they are archived.

use anyhow::{Context, ensure};

use crate::app::{PREFIX, redis_url};
use crate::books::redis::carry::Shards;
use crate::config::Config;
use crate::directory::{Directory, Place};

/// The books of a configuration, as its directory knows them.
pub struct InRedis {
    /// Their shards.
    pub shards: Shards,
    /// Which books.
    pub epoch: String,
    /// Where they are archived.
    pub archive: Place,
}

impl InRedis {
    /// Those of a configuration.
    ///
    /// # Errors
    /// Where the directory does not say which they are, or says others.
    pub async fn of(config: &Config) -> anyhow::Result<Self> {
        let data_dir = &config.data.dir;
        let (directory, archive) = match &config.directory.url {
            Some(url) => {
                let place = || Place::Server(url.expose().into());
                (Directory::open(place(), 0).await, place())
            }
            None => {
                let file = data_dir.join("directory.db");
                ensure!(file.is_file(), "{}: there is no directory", file.display());
                let archive = Place::File(data_dir.join("archive.db"));
                (Directory::open(data_dir.as_path(), 0).await, archive)
            }
        };
        let directory = directory.context("the directory")?;
        let its = directory.books().await?.context("the directory has no books yet")?;
        directory.close().await?;
        ensure!(its.engine == "redis", "the directory's books are in a data dir");
        ensure!(
            its.shards == config.books.shards,
            "books.shards is {}, and these books were made with {}",
            config.books.shards,
            its.shards
        );
        let shards = Shards::new(&redis_url(config)?, PREFIX, usize::from(its.shards))?;
        Ok(Self { shards, epoch: its.name, archive })
    }
}
