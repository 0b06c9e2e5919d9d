//! The composition root: configuration → parts → threads → drain.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, Admin, Token};
use crate::books::Session;
use crate::books::embedded::Engine;
use crate::clock::Clock;
use crate::config::Config;
use crate::core::ids::ChargeId;
use crate::directory::Directory;
use crate::gateway::admit::Limits;
use crate::gateway::health::Addresses;
use crate::gateway::pace::Pulse;
use crate::gateway::route::Routes;
use crate::gateway::upstream::Upstream;
use crate::gateway::{ChargeIds, Charges, FoundCharge, Worker};
use crate::gauges::{self, Watched};
use crate::ledger::archive::Archive;
use crate::ledger::lookup::ChargeBook;
use crate::ops::{self, Health};
use crate::serve::{Listeners, Stop, Workers};
use crate::telemetry::{RouteLabels, Telemetry};

/// How often sealed segments are looked for, to fold them into a snapshot.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(10);
/// How long the archive rests after an error before it tries again.
const ARCHIVE_RETRY: Duration = Duration::from_secs(5);

/// What the process is told besides its configuration.
#[derive(Debug, Default)]
pub struct Options {
    /// What time it is.
    pub clock: Clock,
    /// The operator's token, where the environment has one.
    pub admin_token: Option<SecretString>,
}

/// A running gateway with everything around it.
pub struct App {
    gateway: SocketAddr,
    admin: SocketAddr,
    ops: SocketAddr,
    token_file: Option<PathBuf>,
    drain_delay: Duration,
    health: Arc<Health>,
    stop: Stop,
    /// Cancelled last: admin and ops listeners, archive, snapshots.
    end: CancellationToken,
    workers: Workers,
    background: Vec<JoinHandle<()>>,
    engine: Arc<Engine>,
}

impl App {
    /// Starts everything, and returns when it serves.
    ///
    /// # Errors
    /// When a part cannot be had: the data dir, a listener, a secret.
    pub fn start(config: &Config, options: Options) -> anyhow::Result<Self> {
        let now = options.clock.now();
        let data_dir = &config.data.dir;
        // Directory and archive hold names, addresses and hashes of keys.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(data_dir)
            .with_context(|| format!("data.dir {} cannot be made", data_dir.display()))?;
        let engine = Arc::new(Engine::open(&data_dir.join("books"), now)?);
        report_recovery(&engine);

        // One small event loop for everything that is not generation traffic.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (directory, archive) = runtime.block_on(async {
            let directory = Directory::open(data_dir, 0).await?;
            let archive = Archive::open(data_dir, engine.dir(), engine.records_written()).await?;
            anyhow::Ok((Arc::new(directory), archive))
        })?;
        let (token, token_file) =
            Token::find(options.admin_token, config.admin.token_file.as_deref(), data_dir)?;

        let charges: Arc<dyn Charges> =
            Arc::new(ChargeBook::new(Arc::clone(&engine), archive.clone()));
        let telemetry = Arc::new(telemetry(config));
        let limits = Arc::new(Limits::new(&config.limits));
        let health = Arc::new(Health::default());
        let stop = Stop {
            accepting: CancellationToken::new(),
            drain_timeout: config.gateway.drain_timeout,
        };
        let end = CancellationToken::new();

        let count = match config.gateway.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let listeners = Listeners::bind(config.gateway.listen, count)
            .with_context(|| format!("gateway.listen {}", config.gateway.listen))?;
        let admin_listener = bind(&runtime, "admin.listen", config.admin.listen)?;
        let ops_listener = bind(&runtime, "ops.listen", config.ops.listen)?;
        let (gateway, admin, ops) =
            (listeners.address(), admin_listener.local_addr()?, ops_listener.local_addr()?);

        let addresses = backends(config, &telemetry, &runtime, &end);
        let shared = Parts {
            engine: &engine,
            directory: &directory,
            charges: &charges,
            limits: &limits,
            addresses: &addresses,
        };
        gauges::watch(
            &telemetry,
            &Watched {
                engine: Arc::clone(&engine),
                live: directory.live(),
                limits: Arc::clone(&limits),
                archive: archive.clone(),
                clock: options.clock.clone(),
                label: config.ops.org_label.clone(),
            },
        );
        let workers = (0..count)
            .map(|_| worker(config, &shared, &telemetry, &options.clock))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let workers = Workers::start(listeners, workers, &stop)?;

        let admin_router = admin::router(Arc::new(Admin {
            directory,
            books: engine.session(),
            charges,
            clock: options.clock,
            token,
        }));
        let ops_router = ops::router(Arc::clone(&health), telemetry);
        let background = vec![
            control(runtime, [(admin_listener, admin_router), (ops_listener, ops_router)], &end)?,
            follow(archive, &end)?,
            fold(Arc::clone(&engine), &end)?,
        ];
        health.started.store(true, Ordering::Release);
        let drain_delay = config.gateway.drain_delay;
        Ok(Self {
            gateway,
            admin,
            ops,
            token_file,
            drain_delay,
            health,
            stop,
            end,
            workers,
            background,
            engine,
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
    pub fn token_file(&self) -> Option<&std::path::Path> {
        self.token_file.as_deref()
    }

    /// Stops: not ready at once, serving for the drain delay, finishing what is in flight within
    /// the drain timeout, then everything on the disk. Blocks.
    ///
    /// # Errors
    /// When the books cannot be written to the end; what is open is then in doubt.
    pub fn shut_down(self) -> anyhow::Result<()> {
        self.health.draining.store(true, Ordering::Release);
        if !self.drain_delay.is_zero() {
            tracing::info!(delay = ?self.drain_delay, "draining: not ready, still serving");
            #[expect(
                clippy::disallowed_methods,
                reason = "the main thread has nothing else to do"
            )]
            std::thread::sleep(self.drain_delay);
        }
        self.stop.accepting.cancel();
        self.workers.join();
        let closed = self.engine.close();
        self.end.cancel();
        for thread in self.background {
            if thread.join().is_err() {
                tracing::error!("a background thread panicked");
            }
        }
        closed.context("the books cannot be closed")?;
        tracing::info!("stopped");
        Ok(())
    }
}

impl Charges for ChargeBook {
    fn find(&self, charge: ChargeId) -> FoundCharge<'_> {
        Box::pin(ChargeBook::find(self, charge))
    }
}

/// What workers share.
struct Parts<'a> {
    engine: &'a Arc<Engine>,
    directory: &'a Arc<Directory>,
    charges: &'a Arc<dyn Charges>,
    limits: &'a Arc<Limits>,
    /// In the configuration's order.
    addresses: &'a [Arc<Addresses>],
}

fn worker(
    config: &Config,
    parts: &Parts<'_>,
    telemetry: &Telemetry,
    clock: &Clock,
) -> anyhow::Result<Worker<Session>> {
    let upstreams = config.upstream.iter().enumerate().map(|(index, upstream)| {
        let variable = |name: &str| std::env::var_os(name);
        let credential = (upstream.credential.as_ref())
            .map(|credential| crate::config::secret::credential(credential, variable))
            .transpose()
            .with_context(|| format!("upstream {}", upstream.name))?;
        let addresses = Arc::clone(&parts.addresses[index]);
        Ok(Arc::new(Upstream::new(index, upstream, credential, addresses)?))
    });
    Ok(Worker {
        routes: Routes::new(&config.route, &config.upstream)?,
        upstreams: upstreams.collect::<anyhow::Result<_>>()?,
        live: parts.directory.live(),
        books: parts.engine.session(),
        charges: Arc::clone(parts.charges),
        limits: Arc::clone(parts.limits),
        clock: clock.clone(),
        meters: telemetry.worker(),
        tasks: TaskTracker::new(),
        ids: ChargeIds::new().context("no randomness for charge ids")?,
        pulse: Pulse::new(&config.gateway),
        trusted_proxies: config.gateway.trusted_proxies.clone(),
        drain: CancellationToken::new(),
    })
}

/// The addresses of all backends, in the configuration's order, and what asks for their health:
/// one task a backend for the process, away from the workers' event loops. It runs when the
/// control thread runs this event loop, and ends with it.
fn backends(
    config: &Config,
    telemetry: &Telemetry,
    runtime: &tokio::runtime::Runtime,
    end: &CancellationToken,
) -> Vec<Arc<Addresses>> {
    let addresses: Vec<_> =
        config.upstream.iter().map(|upstream| Arc::new(Addresses::new(upstream))).collect();
    let checks = TaskTracker::new();
    for backend in &addresses {
        checks.spawn_on(Arc::clone(backend).check(end.clone()), runtime.handle());
    }
    gauges::watch_backends(telemetry, addresses.clone());
    addresses
}

fn telemetry(config: &Config) -> Telemetry {
    let routes = config.route.iter().map(|route| RouteLabels {
        route: route.path.clone(),
        feature: route.feature.as_ref().filter(|_| !route.free).map(ToString::to_string),
    });
    let upstreams = config.upstream.iter().map(|upstream| upstream.name.to_string());
    Telemetry::new(config.ops.org_label.clone(), routes.collect(), upstreams.collect())
}

fn report_recovery(engine: &Engine) {
    let found = engine.recovery();
    tracing::info!(
        records = found.records,
        accounts = found.accounts,
        voided = found.voided,
        captured = found.captured,
        "the books are open; holds of the previous process are resolved"
    );
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
    end: &CancellationToken,
) -> std::io::Result<JoinHandle<()>> {
    let end = end.clone();
    let work = async move {
        let tasks = TaskTracker::new();
        for (listener, router) in faces {
            let end = end.clone();
            tasks.spawn(async move {
                let serving = axum::serve(listener, router);
                if let Err(error) = serving.with_graceful_shutdown(end.cancelled_owned()).await {
                    tracing::error!(%error, "a control listener failed");
                }
            });
        }
        tasks.close();
        end.cancelled().await;
        // Idle keep-alive connections would wait for ever.
        let _left = tokio::time::timeout(Duration::from_secs(1), tasks.wait()).await;
    };
    std::thread::Builder::new().name("control".to_owned()).spawn(move || runtime.block_on(work))
}

/// The thread of the archive: it follows the journal until the end.
fn follow(archive: Archive, end: &CancellationToken) -> anyhow::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let end = end.clone();
    let work = async move {
        while let Err(error) = archive.follow(end.clone()).await {
            tracing::error!(%error, "the archive is behind; charges are still made and recorded");
            if end.is_cancelled() {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(ARCHIVE_RETRY) => {}
                () = end.cancelled() => {}
            }
        }
        archive.close().await;
    };
    let thread = std::thread::Builder::new().name("archive".to_owned());
    Ok(thread.spawn(move || runtime.block_on(work))?)
}

/// The thread that folds sealed segments into snapshots.
fn fold(engine: Arc<Engine>, end: &CancellationToken) -> anyhow::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let end = end.clone();
    let work = async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(SNAPSHOT_INTERVAL) => {}
                () = end.cancelled() => return,
            }
            if let Err(error) = engine.snapshot() {
                tracing::error!(%error, "no snapshot was written; the next start takes longer");
            }
        }
    };
    let thread = std::thread::Builder::new().name("books-snapshot".to_owned());
    Ok(thread.spawn(move || runtime.block_on(work))?)
}
