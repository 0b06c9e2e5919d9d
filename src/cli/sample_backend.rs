//! `tollgate sample-backend`: a generative backend to try the gateway with.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::output::say;
use super::{FAILED, USAGE, fail};
use crate::sample_backend::{BadReport, Report, SampleBackend};

/// The environment's name of what reports of jobs carry: an argument would be seen in the process
/// list.
const SECRET: &str = "TOLLGATE_SAMPLE_REPORT_SECRET";

/// See `--help`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Options {
    /// Where it listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9100")]
    listen: SocketAddr,
    /// Where it reports how each video job ended; {id} and {charge} in it stand for the job's.
    /// Six tries, 100 ms and then twice as long apart
    #[arg(long, value_name = "URL")]
    report: Option<String>,
    /// The header of a report that carries $TOLLGATE_SAMPLE_REPORT_SECRET, as it is
    #[arg(long, value_name = "NAME", default_value = "Authorization", requires = "report")]
    report_header: String,
}

const HELP: &str = "Endpoints:
  POST /v1/images/generate, /v1/images/generations   n (1 to 16), size
  POST /v1/chat/completions    messages, max_tokens (so many are said; 16), n, stream,
                               stream_options.include_usage; a prompt's word is a token
  POST /v1/videos              seconds (1 to 60), resolution: makes a job
  GET, DELETE /v1/videos/ID    a poll; cancels it, as POST /v1/videos/ID/cancel does
  POST /v1/uploads             counts bytes: of a raw body, or of a form's files
  GET  /v1/models, /healthz
  GET  /sample/stats           what was seen: requests, charges, failures, jobs, reports
  GET  /sample/requests        the last 1024 requests; ?charge= &path= &last=
  GET  /sample/charges         requests under each Tollgate-Charge; ?charge= &min=

Headers of requests, on every endpoint:
  X-Sample-Fail: 400 .. 599    this status (429: with Retry-After), and nothing is made
                 hang          no answer until shutdown
                 reset         no answer, the connection is reset
                 hang-mid, truncate, reset-mid    half of the body, then nothing until shutdown,
                               the connection's end, its reset; what was asked for is made
                 no-usage, bad-usage, negative-usage    usage is not told, is \"many\", is -1
                 slow          100 ms before each event, or half of a document
  X-Sample-Usage: JSON         told instead of the true usage; an object: of all of it
  X-Sample-Pace: MS            before each event, or half of a document
  X-Sample-Tokens: N           what the chat says, max_tokens at most
  X-Sample-Job: polls=2, end=succeeded, sick=0, reports=1, status=200
                 of a video job: polls=N or ms=N until its end; end=succeeded, failed, never or
                 lost (then 404); its first polls that are answered 503; how often its end is
                 reported; status=202 for its own answer

Example:
  tollgate sample-backend --listen 127.0.0.1:9100
  curl -d '{\"n\":2}' -H 'content-type: application/json' http://127.0.0.1:9100/v1/images/generate";

/// Runs until SIGTERM or SIGINT.
pub fn run(options: &Options) -> ExitCode {
    let report = match options.report() {
        Ok(report) => report,
        Err(error) => return fail(USAGE, format!("--report: {error}")),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILED, error),
    };
    runtime.block_on(async {
        let backend = match SampleBackend::bind(options.listen).await {
            Ok(backend) => backend.reporting(report),
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

impl Options {
    fn report(&self) -> Result<Option<Report>, BadReport> {
        let Some(url) = &self.report else { return Ok(None) };
        let secret = match std::env::var_os(SECRET) {
            Some(secret) => Some(secret.into_string().map_err(|_| BadReport::Secret)?),
            None => None,
        };
        let secret = secret.as_deref().map(|secret| (&*self.report_header, secret));
        Report::new(url, secret).map(Some)
    }
}
