//! The stores of a gateway: books, directory and archive.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use tokio::runtime::Runtime;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::books::embedded::{self, Recovery};
use crate::books::redis::{Engine as InRedis, Options};
use crate::books::{Durability, Engine};
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::directory::books::ItsBooks;
use crate::directory::{Directory, Place};
use crate::ledger::archive::{Archive, KEPT_ENTRIES};

/// What every key in Redis begins with.
pub(crate) const PREFIX: &str = "tollgate";
/// How far this machine's clock may be off that of Redis at the start.
const MAX_OFFSET: SignedDuration = SignedDuration::from_secs(10);
/// Hexadecimal digits of the id of a data dir.
const ID_LENGTH: usize = 32;

/// The three stores.
pub(super) struct Stores {
    pub(super) engine: Engine,
    pub(super) directory: Arc<Directory>,
    pub(super) archive: Archive,
    pub(super) lent: Lent,
}

/// What is held for as long as the stores are in use.
pub(super) struct Lent {
    /// Locked: nobody else has the data dir.
    _id: File,
    /// Ends the thread that talks to Redis.
    _redis: Option<DropGuard>,
}

impl Stores {
    pub(super) fn open(config: &Config, clock: &Clock, runtime: &Runtime) -> anyhow::Result<Self> {
        let data_dir = &config.data.dir;
        // Directory and archive hold names, addresses and hashes of keys.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(data_dir)
            .with_context(|| format!("data.dir {} cannot be made", data_dir.display()))?;
        let (id_file, id) = identity(data_dir)?;
        tracing::debug!(%id, "the data dir is this gateway's");
        // Their lock comes before anything else of them.
        let embedded = match config.books.engine {
            config::Engine::Embedded => Some(open_embedded(config, clock)?),
            config::Engine::Redis => None,
        };
        let directory = runtime.block_on(open_directory(config))?;
        let (engine, archive, redis) = match embedded {
            Some(engine) => {
                runtime.block_on(claim(&directory, config, &id))?;
                let archive = runtime.block_on(open_archive(config, &engine))?;
                (Engine::Embedded(engine), archive, None)
            }
            None => {
                let (engine, thread) = open_redis(config, clock, runtime, &directory, id)?;
                let place = match &config.directory.url {
                    Some(url) => Place::Server(url.expose().into()),
                    None => Place::File(data_dir.join("archive.db")),
                };
                let archive = Archive::of_shards(place, Arc::clone(&engine), KEPT_ENTRIES);
                (Engine::Redis(engine), runtime.block_on(archive)?, Some(thread))
            }
        };
        // Time goes on from the newest charge, also where the system's clock was set back (f46). What is
        // far ahead in an archive of many was made by a gateway whose clock was wrong.
        let newest = runtime.block_on(archive.newest_charge())?;
        let sane = clock.now().saturating_add(MAX_OFFSET).unwrap_or(clock.now());
        let trusts = |newest: &Timestamp| {
            matches!(engine, Engine::Embedded(_)) || clock.is_manual() || *newest <= sane
        };
        if let Some(newest) = newest.filter(trusts) {
            clock.not_before(newest);
        }
        let lent = Lent { _id: id_file, _redis: redis };
        Ok(Self { engine, directory: Arc::new(directory), archive, lent })
    }
}

/// The id of a data dir, made where there is none; no other process has it while the file is open.
pub(crate) fn identity(data_dir: &Path) -> anyhow::Result<(File, String)> {
    let path = data_dir.join("gateway-id");
    let of = || format!("{}", path.display());
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).with_context(of)?;
    if embedded::lock_alone(&file).is_err() {
        bail!("{}: another process uses this data dir; give each gateway its own", of());
    }
    let mut id = String::new();
    (&mut file).take(1 << 10).read_to_string(&mut id).with_context(of)?;
    let id = id.trim();
    if !id.is_empty() {
        let is_ours = id.len() == ID_LENGTH && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        ensure!(is_ours, "{}: expected the id of a gateway", of());
        return Ok((file, id.to_owned()));
    }
    let id = new_name()?;
    let mut to = &file;
    std::io::Write::write_all(&mut to, format!("{id}\n").as_bytes()).with_context(of)?;
    file.sync_all().with_context(of)?;
    Ok((file, id))
}

/// A name that nothing else has.
pub(crate) fn new_name() -> anyhow::Result<String> {
    let random = || getrandom::u64().context("no randomness for a name");
    Ok(format!("{:016x}{:016x}", random()?, random()?))
}

fn open_embedded(config: &Config, clock: &Clock) -> anyhow::Result<Arc<embedded::Engine>> {
    let durability = match config.books.durability {
        // Checking the configuration refuses `replica` here.
        config::Durability::Process | config::Durability::Replica => Durability::Process,
        config::Durability::Power => Durability::Power,
    };
    let options = embedded::Options { segment_size: config.books.segment_size, durability };
    let books = config.data.dir.join("books");
    let engine = embedded::Engine::open_with(&books, clock.now(), options)?;
    report(&engine.recovery());
    Ok(Arc::new(engine))
}

fn report(found: &Recovery) {
    tracing::info!(
        records = found.records,
        accounts = found.accounts,
        voided = found.voided,
        captured = found.captured,
        lasting = found.lasting,
        "the books are open; holds of the previous process are resolved"
    );
}

async fn open_archive(config: &Config, engine: &embedded::Engine) -> anyhow::Result<Archive> {
    let (recovered, written) = (engine.recovery().position, engine.records_written());
    Ok(Archive::open(&config.data.dir, engine.dir(), recovered, written).await?)
}

/// The directory of the data dir, or of the server that is configured.
async fn open_directory(config: &Config) -> anyhow::Result<Directory> {
    let Some(url) = &config.directory.url else {
        return Ok(Directory::open(config.data.dir.as_path(), 0).await?);
    };
    let place = Place::Server(url.expose().into());
    Directory::open(place, 0).await.with_context(|| format!("directory.url {url}"))
}

/// Sees that a directory has no other books than those of this data dir.
async fn claim(directory: &Directory, config: &Config, id: &str) -> anyhow::Result<()> {
    let ours = ItsBooks { engine: "embedded".into(), name: id.into(), shards: 1, made: true };
    let found = directory.its_books(&ours).await?;
    ensure!(
        found.engine == ours.engine,
        "this directory's books are in Redis ({}): set books.engine = \"redis\" and books.url",
        found.name
    );
    // A data dir that is put together from others has their books too.
    ensure!(
        found == ours || config.directory.url.is_none(),
        "this directory belongs to the embedded books of another gateway ({}): a second one would \
         give out every seat's credits once more. Use books.engine = \"redis\" for several \
         gateways. If that gateway will never run again, `tollgate directory release` lets this \
         one have it, and what was used is forgotten",
        found.name
    );
    Ok(())
}

/// The books in Redis, with a thread of its own that talks to it.
fn open_redis(
    config: &Config,
    clock: &Clock,
    runtime: &Runtime,
    directory: &Directory,
    gateway: String,
) -> anyhow::Result<(Arc<InRedis>, DropGuard)> {
    let url = redis_url(config)?;
    let wanted = ItsBooks {
        engine: "redis".into(),
        name: new_name()?,
        shards: config.books.shards,
        made: false,
    };
    let found = runtime.block_on(directory.its_books(&wanted))?;
    ensure!(
        found.engine == wanted.engine,
        "this directory belongs to the embedded books of the gateway {}: books in Redis would \
         give out every seat's credits once more. If what was used may be forgotten, \
         `tollgate directory release` lets the next gateway have it",
        found.name
    );
    ensure!(
        found.shards == wanted.shards,
        "books.shards is {}, and these books were made with {}: they stay as they were made",
        wanted.shards,
        found.shards
    );
    let options = Options {
        url,
        prefix: PREFIX.into(),
        shards: usize::from(found.shards),
        gateway,
        epoch: found.name,
        make: !found.made,
        call_timeout: config.books.timeout / 2,
        deadline: config.books.timeout,
        owner_timeout: config.books.owner_timeout,
        rejoin_timeout: config.books.rejoin_timeout,
        settle_timeout: config.books.settle_timeout,
        replica: config.books.durability == config::Durability::Replica,
        journal: Some(config.data.dir.join("redis-journal")),
    };
    let (handle, thread) = redis_thread()?;
    let opening = InRedis::open(options, handle.clone(), clock.now());
    let engine = handle.block_on(opening)?;
    if !clock.is_manual() {
        let ahead = handle.block_on(engine.ahead(clock.now()))?;
        ensure!(
            ahead.abs() <= MAX_OFFSET,
            "this machine's clock is {ahead:#} ahead of Redis': keep both synchronised (NTP), \
             because holds and keys end by the clock"
        );
    }
    if !found.made {
        runtime.block_on(directory.its_books_are_made())?;
    }
    tracing::info!(shards = found.shards, "the books in Redis are open");
    Ok((Arc::new(engine), thread))
}

/// Where the books in Redis are.
pub(crate) fn redis_url(config: &Config) -> anyhow::Result<SecretString> {
    let look_up = |name: &str| std::env::var_os(name);
    config::secret::books_url(&config.books, look_up).context("books")
}

/// The event loop of whoever talks to Redis; it ends when the guard is dropped.
fn redis_thread() -> anyhow::Result<(tokio::runtime::Handle, DropGuard)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (handle, end) = (runtime.handle().clone(), CancellationToken::new());
    let ended = end.clone();
    let thread = std::thread::Builder::new().name("books-redis".to_owned());
    thread.spawn(move || runtime.block_on(ended.cancelled()))?;
    Ok((handle, end.drop_guard()))
}
