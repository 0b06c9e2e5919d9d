//! The composition root: configuration → parts → threads → drain.

mod backends;
mod generation;
mod keeping;
mod stores;
mod upkeep;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use parking_lot::Mutex;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::backends::Backends;
use self::generation::Parts;
use self::keeping::Keeping;
use self::stores::{Lent, Stores};
pub(crate) use self::stores::{PREFIX, identity, new_name, redis_url};
use self::upkeep::upkeep;
use crate::admin::{self, Admin, Token};
use crate::books::{Engine, Session};
use crate::clock::Clock;
use crate::config::{self, Config, ConfigError, Loaded};
use crate::core::ids::ChargeId;
use crate::gateway::current::Current;
use crate::gateway::{self, Charges, FoundAnswer, FoundCharge, FoundNote};
use crate::gauges::{self, Watched};
use crate::ledger::archive::Archive;
use crate::ledger::lookup::ChargeBook;
use crate::ops::{self, Health, Shown};
use crate::self_check::SelfCheck;
use crate::serve::{self, Deadlines, Listeners, Stop, Workers};
use crate::telemetry::Telemetry;

/// How long requests that wait for failed books have to be told so.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long the archive rests after an error before it tries again.
const ARCHIVE_RETRY: Duration = Duration::from_secs(5);

/// What the process is told besides its configuration.
#[derive(Debug, Default)]
pub struct Options {
    /// What time it is.
    pub clock: Clock,
    /// The operator's token, where the environment has one.
    pub admin_token: Option<SecretString>,
    /// Cancelled when the books' files fail: then the process has to stop (f41).
    pub failed: CancellationToken,
}

/// Why the books are not as they should be at the end of a process.
#[derive(Debug, thiserror::Error)]
#[error("the books' files failed ({0}); look at the disk, then start again: the start recovers")]
pub struct BooksFailed(String);

/// A running gateway with everything around it.
pub struct App {
    gateway: SocketAddr,
    admin: SocketAddr,
    ops: SocketAddr,
    token_file: Option<PathBuf>,
    /// The configuration in force: what needs a restart is as it was at the start.
    config: Mutex<Config>,
    reloads: Arc<gauges::Reloads>,
    telemetry: Arc<Telemetry>,
    currents: Vec<Arc<Current<Session>>>,
    backends: Backends,
    health: Arc<Health>,
    stop: Stop,
    /// Cancelled last: admin and ops listeners, archive, snapshots.
    end: CancellationToken,
    failed: CancellationToken,
    workers: Workers,
    control: JoinHandle<()>,
    background: Vec<JoinHandle<()>>,
    engine: Engine,
    /// Given back last.
    lent: Lent,
}

impl App {
    /// Starts everything, and returns when it serves.
    ///
    /// # Errors
    /// When a part cannot be had: the data dir, a listener, a secret.
    pub fn start(config: &Config, options: Options) -> anyhow::Result<Self> {
        // One small event loop for everything that is not generation traffic.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let data_dir = &config.data.dir;
        let Stores { engine, directory, archive, lent } =
            Stores::open(config, &options.clock, &runtime)?;
        let (token, token_file) =
            Token::find(options.admin_token, config.admin.token_file.as_deref(), data_dir)?;
        let charges: Arc<dyn Charges> = Arc::new(ChargeBook::new(engine.clone(), archive.clone()));
        let telemetry = Arc::new(Telemetry::new(config.ops.org_label.clone()));
        let stop = Stop::new(config.gateway.drain_timeout);
        let end = CancellationToken::new();
        let faces = Faces::bind(config, &runtime)?;
        let (gateway, admin, ops) = faces.addresses()?;
        let (tracer, spans) = generation::tracer(config)?;
        let open = runtime.block_on(engine.left_open())?;
        let backends = Backends::new(runtime.handle().clone(), end.clone());
        let parts = Parts {
            engine: &engine,
            open: &open,
            live: directory.live(),
            charges: &charges,
            clock: &options.clock,
            tracer,
            backends: &backends,
        };
        let currents = generation::first(config, faces.gateway.count(), &telemetry, &parts)?;
        drop(parts);
        watch_backends(&telemetry, &backends);
        let reloads = Arc::new(gauges::Reloads::new());
        let (mismatched, changes) = (Arc::default(), TaskTracker::new());
        gauges::watch(
            &telemetry,
            &Watched {
                engine: engine.clone(),
                live: directory.live(),
                limits: Arc::clone(&currents[0].load().limits),
                jobs: Arc::clone(&currents[0].load().jobs),
                archive: archive.clone(),
                clock: options.clock.clone(),
                label: config.ops.org_label.clone(),
                reloads: Arc::clone(&reloads),
                mismatched: Arc::clone(&mismatched),
                data_dir: data_dir.clone(),
            },
        );
        let health = Arc::new(health(&engine, &reloads));
        let workers = Workers::start(faces.gateway, currents.clone(), &stop)?;
        let failed = options.failed.clone();
        // It ends with the runtime: what it waits for mostly never comes.
        let giving_up = give_up(engine.clone(), Arc::clone(&health), stop.clone(), failed);
        TaskTracker::new().spawn_on(giving_up, runtime.handle());
        let admin_router = admin::router(Arc::new(Admin {
            directory: Arc::clone(&directory),
            books: engine.session(),
            charges: ChargeBook::new(engine.clone(), archive.clone()),
            voided: voided(Arc::clone(&currents[0])),
            clock: options.clock.clone(),
            token,
            adjusting: tokio::sync::Mutex::default(),
            documents: admin::Documents::default(),
            changes: changes.clone(),
        }));
        let look = upkeep::look(&engine, &currents[0]);
        let ops_router = ops::router(Arc::clone(&health), Arc::clone(&telemetry), look);
        let served = [(faces.admin, admin_router), (faces.ops, ops_router)];
        let keeping = Keeping::new(&engine, &archive, &options.clock, &config.books);
        let watched = (Arc::clone(&currents[0]), engine.clone(), directory);
        let clock = options.clock.clone();
        let upkeep = upkeep(watched, telemetry.in_doubt(), options.clock);
        let config::Gateway { header_timeout: header, write_timeout: write, .. } = config.gateway;
        let control =
            control(runtime, served, Deadlines { header, write }, upkeep, (changes, &end))?;
        let mut background = vec![follow(archive, clock, &end)?];
        background.extend(keeping::start(keeping, SelfCheck::new(mismatched), &end)?);
        // The last: it ends when nobody traces any more.
        background.extend(spans);
        health.started.store(true, Ordering::Release);
        Ok(Self {
            gateway,
            admin,
            ops,
            token_file,
            config: Mutex::new(config.clone()),
            reloads,
            telemetry,
            currents,
            backends,
            health,
            stop,
            end,
            failed: options.failed,
            workers,
            control,
            background,
            engine,
            lent,
        })
    }

    /// Where generation traffic is taken.
    pub fn gateway(&self) -> SocketAddr {
        self.gateway
    }

    /// Where admin requests are taken.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Where metrics and health are served.
    pub fn ops(&self) -> SocketAddr {
        self.ops
    }

    /// The file that holds the operator's token, if a file does.
    pub fn token_file(&self) -> Option<&Path> {
        self.token_file.as_deref()
    }

    /// Puts in force what of a configuration can change while the process runs, from each
    /// worker's next request on, and logs what it did. What is wrong changes nothing (f54): then
    /// this is false.
    pub fn reload(&self, read: Result<&Loaded, &ConfigError>) -> bool {
        let done = read.map_err(ToString::to_string).and_then(|loaded| {
            let mut running = self.config.lock();
            let (telemetry, backends) = (&self.telemetry, &self.backends);
            generation::reload(&mut running, &loaded.config, telemetry, backends, &self.currents)
                .inspect(|_| self.stop.set_drain_timeout(running.gateway.drain_timeout))
                .map_err(|error| format!("{error:#}"))
        });
        self.reloads.note(done.is_ok());
        match done {
            Ok(changes) => {
                for key in &changes.restart {
                    tracing::warn!(%key, "this key differs, and needs a restart to change");
                }
                let keys = changes.live.join(" ");
                tracing::info!(changed = %keys, "the configuration was read again");
                true
            }
            Err(errors) => {
                for error in errors.lines() {
                    tracing::error!(%error, "the configuration stays as it was");
                }
                false
            }
        }
    }

    /// Cancelled by whoever cannot wait: a shutdown that has begun cuts off what is in flight.
    pub fn now(&self) -> CancellationToken {
        self.stop.now.clone()
    }

    /// Cancelled when the books' files fail: whoever runs this has to shut it down (f41).
    pub fn failed(&self) -> &CancellationToken {
        &self.failed
    }

    /// Stops: not ready at once, serving for the drain delay, finishing what is in flight within
    /// the drain timeout, then everything on the disk. Blocks.
    ///
    /// # Errors
    /// [`BooksFailed`] when the books failed, before or now: what is open is then in doubt.
    pub fn shut_down(self) -> anyhow::Result<()> {
        self.health.draining.store(true, Ordering::Release);
        let delay = self.config.lock().gateway.drain_delay;
        if !delay.is_zero() && !self.stop.accepting.is_cancelled() {
            tracing::info!(?delay, "draining: not ready, still serving");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
            let now = self.stop.now.clone();
            // Whichever comes first.
            let _ = runtime.block_on(async { tokio::time::timeout(delay, now.cancelled()).await });
        }
        tracing::info!("draining: no longer accepting");
        self.stop.accepting.cancel();
        self.workers.join();
        let closed = self.engine.close();
        self.end.cancel();
        drop(self.currents);
        join(self.control);
        if let Err(why) = closed {
            // The other threads may wait for the same disk, and leave nothing that a start does
            // not find: they end with the process.
            return Err(BooksFailed(why).into());
        }
        self.background.into_iter().for_each(join);
        // Behind everybody who asks.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(self.engine.finish());
        drop((self.engine, self.lent));
        tracing::info!("stopped");
        Ok(())
    }
}

/// What the data plane does when an administrator has voided a charge: where it was a job's, nobody
/// asks for that any more.
fn voided(current: Arc<Current<Session>>) -> admin::Voided {
    Box::new(move |charge, document| {
        let worker = current.load();
        worker.jobs.remove(charge);
        gateway::count_voided(&worker, document);
    })
}

fn watch_backends(telemetry: &Telemetry, backends: &Backends) {
    let watched = backends.clone();
    gauges::watch_backends(telemetry, move || watched.list());
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a background thread panicked");
    }
}

/// When the books fail nothing more can be charged, and nothing of them is tried again (f41).
/// Takes no more connections, lets requests that wait for the books be told, and cuts off the
/// rest, also in the middle of a drain.
async fn give_up(engine: Engine, health: Arc<Health>, stop: Stop, failed: CancellationToken) {
    let why = engine.failed().await;
    tracing::error!(
        %why,
        "the books' files failed, and the process stops: look at the disk, then start again, \
         which recovers from the files"
    );
    health.draining.store(true, Ordering::Release);
    stop.accepting.cancel();
    failed.cancel();
    tokio::time::sleep(LAST_WORDS).await;
    stop.now.cancel();
}

impl Charges for ChargeBook {
    fn find(&self, charge: ChargeId) -> FoundCharge<'_> {
        Box::pin(ChargeBook::find(self, charge))
    }

    fn note(&self, charge: ChargeId) -> FoundNote<'_> {
        Box::pin(ChargeBook::note(self, charge))
    }

    fn answer(&self, charge: ChargeId) -> FoundAnswer<'_> {
        Box::pin(ChargeBook::answer(self, charge))
    }
}

/// The three listeners.
struct Faces {
    gateway: Listeners,
    admin: TcpListener,
    ops: TcpListener,
}

impl Faces {
    fn bind(config: &Config, runtime: &tokio::runtime::Runtime) -> anyhow::Result<Self> {
        let count = match config.gateway.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let gateway = Listeners::bind(config.gateway.listen, count)
            .with_context(|| format!("gateway.listen {}", config.gateway.listen))?;
        let admin = bind(runtime, "admin.listen", config.admin.listen)?;
        let ops = bind(runtime, "ops.listen", config.ops.listen)?;
        Ok(Self { gateway, admin, ops })
    }

    fn addresses(&self) -> std::io::Result<(SocketAddr, SocketAddr, SocketAddr)> {
        Ok((self.gateway.address(), self.admin.local_addr()?, self.ops.local_addr()?))
    }
}

fn health(engine: &Engine, reloads: &Arc<gauges::Reloads>) -> Health {
    let (engine, reloads) = (engine.clone(), Arc::clone(reloads));
    let books = Shown { name: "books", passes: Box::new(move || !engine.has_failed()) };
    let reload = Shown { name: "last-reload", passes: Box::new(move || reloads.last().0) };
    Health { shown: vec![books, reload], ..Health::default() }
}

fn bind(
    runtime: &tokio::runtime::Runtime,
    key: &str,
    address: SocketAddr,
) -> anyhow::Result<TcpListener> {
    runtime.block_on(TcpListener::bind(address)).with_context(|| format!("{key} {address}"))
}

/// The thread of the admin and ops listeners.
fn control(
    runtime: tokio::runtime::Runtime,
    faces: [(TcpListener, axum::Router); 2],
    deadlines: Deadlines,
    upkeep: impl Future<Output = ()> + Send + 'static,
    (changes, end): (TaskTracker, &CancellationToken),
) -> std::io::Result<JoinHandle<()>> {
    let end = end.clone();
    let work = async move {
        let tasks = TaskTracker::new();
        for (listener, router) in faces {
            let (end, of_clients) = (end.clone(), tasks.clone());
            tasks.spawn(serve::control(listener, router, deadlines, of_clients, end));
        }
        tasks.close();
        tokio::select! {
            () = upkeep => {}
            () = end.cancelled() => {}
        }
        // What is being changed is changed or not, and whoever asked is told.
        changes.close();
        changes.wait().await;
        // What a client has begun may still be answered, for a while.
        let _left = tokio::time::timeout(Duration::from_secs(1), tasks.wait()).await;
    };
    std::thread::Builder::new().name("control".to_owned()).spawn(move || runtime.block_on(work))
}

/// The thread of the archive: it follows the journal until the end.
fn follow(
    archive: Archive,
    clock: Clock,
    end: &CancellationToken,
) -> anyhow::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let end = end.clone();
    let work = async move {
        let following = async {
            while let Err(error) = archive.follow(end.clone()).await {
                let what = "the archive is behind; charges are still made and recorded";
                tracing::error!(%error, "{what}");
                if end.is_cancelled() {
                    break;
                }
                tokio::select! {
                    () = tokio::time::sleep(ARCHIVE_RETRY) => {}
                    () = end.cancelled() => {}
                }
            }
        };
        tokio::select! {
            () = following => {}
            () = keeping::forget(&archive, &clock) => {}
        }
        archive.close().await;
    };
    let thread = std::thread::Builder::new().name("archive".to_owned());
    Ok(thread.spawn(move || runtime.block_on(work))?)
}
