//! `tollgate serve`: the gateway.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};

use clap::Args;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{BOOKS_FAILED, FAILED, USAGE, fail};
use crate::app::{App, BooksFailed, Options as AppOptions};
use crate::clock::Clock;
use crate::config::{self, Loaded};
use crate::log::Logs;

/// See `--help`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tollgate serve                                   with ./tollgate.toml
  tollgate serve -c /etc/tollgate/tollgate.toml
  TOLLGATE__GATEWAY__LISTEN=0.0.0.0:8080 tollgate serve")]
pub struct Options {
    /// The configuration [default: tollgate.toml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Start at this time and stand still until the admin API moves it; for tests
    #[arg(long, value_name = "TIME")]
    test_clock: Option<Timestamp>,
}

/// Runs until SIGTERM or SIGINT, then drains; or until the books' files fail (f41). SIGHUP and a change of the file read the
/// configuration again; a second SIGTERM or SIGINT ends the drain.
pub fn run(options: &Options) -> ExitCode {
    // First of all: a SIGHUP that nobody expects would end the process.
    let failed = CancellationToken::new();
    let events = match events(failed.clone()) {
        Ok(events) => events,
        Err(error) => return fail(FAILED, format!("signals cannot be received: {error}")),
    };
    let path = options.config.as_deref();
    let mut watch = config::Watch::new(path.unwrap_or(Path::new(config::DEFAULT_FILE)));
    let loaded = match config::load(path, config::environment()) {
        Ok(loaded) => loaded,
        Err(error) => return fail(USAGE, error),
    };
    let logs = Logs::start(&loaded.config.log, rust_log());
    tell_warnings(&loaded);
    watch.follow(&loaded.config);
    let app_options = AppOptions {
        clock: options.test_clock.map(Clock::manual).unwrap_or_default(),
        admin_token: std::env::var("TOLLGATE_ADMIN_TOKEN").ok().map(Into::into),
        failed,
    };
    let app = match App::start(&loaded.config, app_options) {
        Ok(app) => app,
        Err(error) => return fail(FAILED, format!("{error:#}")),
    };
    tracing::info!(gateway = %app.gateway(), admin = %app.admin(), ops = %app.ops(), "serving");
    if let Some(path) = app.token_file() {
        tracing::info!(path = %path.display(), "the operator's token is in this file");
    }
    loop {
        match events.recv_timeout(config::WATCH_INTERVAL) {
            Ok(Event::Stop | Event::Failed) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if !watch.has_changed() => {}
            Ok(Event::Reload) | Err(RecvTimeoutError::Timeout) => {
                watch.reads();
                let read = config::load(path, config::environment());
                if app.reload(read.as_ref())
                    && let Ok(loaded) = read
                {
                    logs.set(&loaded.config.log);
                    tell_warnings(&loaded);
                    watch.follow(&loaded.config);
                }
            }
        }
    }
    let now = app.now();
    // It ends with the process.
    std::thread::spawn(move || {
        for event in events {
            match event {
                Event::Stop => {
                    tracing::warn!("asked to stop once more: what is in flight is cut off");
                    now.cancel();
                }
                Event::Reload => tracing::warn!("no reload while the process stops"),
                // It cuts off what is in flight by itself.
                Event::Failed => {}
            }
        }
    });
    match app.shut_down() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<BooksFailed>() => fail(BOOKS_FAILED, error),
        Err(error) => fail(FAILED, format!("{error:#}")),
    }
}

/// Tells once of what is valid and hardly meant so, as `check` does.
fn tell_warnings(loaded: &Loaded) {
    for warning in &loaded.warnings {
        tracing::warn!(%warning, "the configuration is valid, and hardly meant so");
    }
}

/// Why the process does something else than to serve.
enum Event {
    Stop,
    Reload,
    Failed,
}

/// Receives signals on a thread of its own, from now on, and whether the books `failed`.
fn events(failed: CancellationToken) -> std::io::Result<mpsc::Receiver<Event>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut terminate, mut interrupt, mut hang_up) = {
        let _in = runtime.enter();
        (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        )
    };
    let (sender, events) = mpsc::channel();
    let receive = async move {
        let mut is_told = false;
        loop {
            let event = tokio::select! {
                () = failed.cancelled(), if !is_told => {
                    is_told = true;
                    Event::Failed
                }
                _ = terminate.recv() => Event::Stop,
                _ = interrupt.recv() => Event::Stop,
                _ = hang_up.recv() => Event::Reload,
            };
            if sender.send(event).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || runtime.block_on(receive))?;
    Ok(events)
}

/// Logs to standard error as it is without a configuration.
pub fn log_to_stderr() {
    Logs::start(&config::Log::default(), rust_log());
}

fn rust_log() -> Option<String> {
    std::env::var("RUST_LOG").ok()
}

/// Waits for SIGTERM or SIGINT, or for `failed`.
///
/// # Errors
/// When signals cannot be received.
pub fn wait_for_signal(failed: &CancellationToken) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = failed.cancelled() => {}
        }
        Ok(())
    })
}
