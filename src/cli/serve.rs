//! `tollgate serve`: the gateway.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{FAILED, USAGE, fail};
use crate::app::{App, Options as AppOptions};
use crate::clock::Clock;
use crate::config;

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
    /// Start at this time and stand still; for tests
    #[arg(long, value_name = "TIME")]
    test_clock: Option<Timestamp>,
}

/// Runs until SIGTERM or SIGINT, then drains.
pub fn run(options: &Options) -> ExitCode {
    log_to_stderr();
    let loaded = match config::load(options.config.as_deref(), config::environment()) {
        Ok(loaded) => loaded,
        Err(error) => return fail(USAGE, error),
    };
    let app_options = AppOptions {
        clock: options.test_clock.map(Clock::manual).unwrap_or_default(),
        admin_token: std::env::var("TOLLGATE_ADMIN_TOKEN").ok().map(Into::into),
    };
    let app = match App::start(&loaded.config, app_options) {
        Ok(app) => app,
        Err(error) => return fail(FAILED, format!("{error:#}")),
    };
    tracing::info!(gateway = %app.gateway(), admin = %app.admin(), ops = %app.ops(), "serving");
    if let Some(path) = app.token_file() {
        tracing::info!(path = %path.display(), "the operator's token is in this file");
    }
    if let Err(error) = wait_for_signal() {
        tracing::error!(%error, "signals cannot be received; stopping");
    }
    match app.shut_down() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(FAILED, format!("{error:#}")),
    }
}

/// Logs to standard error; `RUST_LOG` says how much.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // Colours are for eyes: in a file they would only be noise.
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // A second subscriber (two demos in one process) changes nothing.
    let _first_wins = subscriber.try_init();
}

/// Waits for SIGTERM or SIGINT.
///
/// # Errors
/// When signals cannot be received.
pub fn wait_for_signal() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}
