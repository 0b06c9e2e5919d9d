//! `tollgate sample-backend`: a generative backend to try the gateway with.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::output::say;
use super::{FAILED, fail};
use crate::sample_backend::SampleBackend;

/// See `--help`.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  tollgate sample-backend --listen 127.0.0.1:9100
  curl -d '{\"n\":2}' -H 'content-type: application/json' http://127.0.0.1:9100/v1/images/generate")]
pub struct Options {
    /// Where it listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9100")]
    listen: SocketAddr,
}

/// Runs until SIGTERM or SIGINT.
pub fn run(options: &Options) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILED, error),
    };
    runtime.block_on(async {
        let backend = match SampleBackend::bind(options.listen).await {
            Ok(backend) => backend,
            Err(error) => return fail(FAILED, format!("{}: {error}", options.listen)),
        };
        if let Err(error) = say(&format!("sample backend on http://{}\n", backend.local_addr())) {
            return fail(FAILED, format!("standard output: {error}"));
        }
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let signals = async move {
            let _either = tokio::signal::ctrl_c().await;
            stopping.cancel();
        };
        tokio::join!(backend.run(stop), signals);
        ExitCode::SUCCESS
    })
}
