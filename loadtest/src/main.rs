//! Load tests of Tollgate: see README.md beside it.

mod against;
mod audit;
mod backend;
mod compare;
mod cpu;
mod draw;
mod driver;
mod exact;
mod gateway;
mod http;
mod measure;
mod org;
mod peers;
mod plot;
mod progress;
mod report;
mod request;
mod resp;
mod result;
mod run;
mod scenario;
mod summary;
mod system;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tokio::task::LocalSet;

use progress::{say, table};
use result::Report;
use scenario::Scenario;

#[derive(Debug, Parser)]
#[command(name = "tollgate-loadtest", about = "Load tests of Tollgate", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run scenarios, one after the other
    #[command(
        after_help = "Examples:\n  loadtest/run quick\n  loadtest/run exhausted-flood sse-chat --out results\n  \
        loadtest/run quick --against results/quick.json\n  loadtest/run --list"
    )]
    Run(Run),
    /// Measure Tollgate against its peers, in turn
    #[command(
        after_help = "Examples:\n  loadtest/compare\n  loadtest/compare --rounds 5 --seconds 3 --against results/compare.json"
    )]
    Compare(Compare),
    /// The mock backend alone
    Backend(backend::Options),
    /// The report of a result once more, or compared with an older one
    #[command(after_help = "Examples:\n  tollgate-loadtest report results/quick.json\n  \
        tollgate-loadtest report results/quick.json --against older/quick.json")]
    Report {
        /// The result, as JSON; the page is written beside it
        result: PathBuf,
        #[command(flatten)]
        older: Older,
    },
}

#[derive(Debug, Args)]
struct Run {
    /// Names of scenarios, or their files
    #[arg(required_unless_present = "list")]
    scenarios: Vec<String>,
    /// Tell which scenarios there are
    #[arg(long)]
    list: bool,
    /// See that it works: short phases and few users; what it measures means nothing
    #[arg(long)]
    short: bool,
    #[command(flatten)]
    shared: Shared,
}

#[derive(Debug, Args)]
struct Compare {
    #[command(flatten)]
    options: compare::Options,
    #[command(flatten)]
    shared: Shared,
}

/// What `run` and `compare` share.
#[derive(Clone, Debug, Args)]
struct Shared {
    /// The gateway's binary, instead of building it
    #[arg(long, value_name = "PATH")]
    tollgate: Option<PathBuf>,
    /// Where NAME.json and NAME.html are written
    #[arg(long, value_name = "DIR", default_value = "target/loadtest")]
    out: PathBuf,
    #[command(flatten)]
    older: Older,
}

/// An older result.
#[derive(Clone, Debug, Args)]
struct Older {
    /// Fail where a figure is worse than in this result, or in DIR/NAME.json
    #[arg(long, value_name = "OLD")]
    against: Option<PathBuf>,
    /// Make the thresholds of --against so many times wider
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    tolerance: f64,
}

impl Older {
    fn changes(&self, report: &Report) -> anyhow::Result<Option<Vec<against::Change>>> {
        let Some(path) = &self.against else { return Ok(None) };
        let path = match path.is_dir() {
            true => path.join(&report.name).with_extension("json"),
            false => path.clone(),
        };
        against::compare(&Report::read(&path)?, report, self.tolerance).map(Some)
    }
}

/// Shows what changed, and tells whether something is worse.
fn regressed(changes: Option<&[against::Change]>) -> bool {
    let Some(changes) = changes else { return false };
    say("");
    say(&table(&["figure", "then", "now", "ratio", "bound", ""], &against::rows(changes)));
    changes.iter().any(|change| change.regressed)
}

fn main() -> ExitCode {
    match start(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("no result: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start(command: Command) -> anyhow::Result<bool> {
    match command {
        Command::Backend(options) => backend::run(&options).map(|()| true),
        Command::Report { result, older } => {
            let report = Report::read(&result)?;
            let changes = older.changes(&report)?;
            let page = result.with_extension("html");
            std::fs::write(&page, report::html(&report, changes.as_deref()))?;
            say(&page.display().to_string());
            Ok(!regressed(changes.as_deref()))
        }
        Command::Run(run) if run.list => {
            let described = |name: String| Ok(vec![name.clone(), Scenario::load(&name)?.about]);
            let rows: Vec<Vec<String>> =
                scenario::names().into_iter().map(described).collect::<anyhow::Result<_>>()?;
            rows.iter().for_each(|row| say(&format!("{:18} {}", row[0], row[1])));
            Ok(true)
        }
        Command::Run(run) => on_loop(run_all(run)),
        Command::Compare(compare) => on_loop(async {
            let binary = binary(&compare.shared)?;
            let report = compare::run(&compare.options, &binary).await?;
            finish(&report, &compare.shared)
        }),
    }
}

/// Runs on an event loop of its own; a signal unwinds it, so that what was started is ended.
fn on_loop(work: impl Future<Output = anyhow::Result<bool>>) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut term, mut int) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            done = work => done,
            _ = term.recv() => anyhow::bail!("ended by a signal"),
            _ = int.recv() => anyhow::bail!("ended by a signal"),
        }
    })
}

/// The gateway that is measured. From here on this process has the driver's core.
fn binary(shared: &Shared) -> anyhow::Result<PathBuf> {
    let binary = match &shared.tollgate {
        Some(path) => path.canonicalize().with_context(|| path.display().to_string())?,
        None => run::build()?,
    };
    system::pin(std::process::id(), system::DRIVER_CORE)?;
    Ok(binary)
}

async fn run_all(run: Run) -> anyhow::Result<bool> {
    // All are read before the first is run.
    let scenarios: Vec<Scenario> =
        run.scenarios.iter().map(|name| Scenario::load(name)).collect::<anyhow::Result<_>>()?;
    let binary = binary(&run.shared)?;
    let mut fine = true;
    for scenario in scenarios {
        let scenario = if run.short { scenario.short() } else { scenario };
        let report = run::run(&scenario, &binary, run.short).await?;
        fine &= finish(&report, &run.shared)?;
    }
    Ok(fine)
}

/// Prints the table, writes both files, and tells whether all is well.
fn finish(report: &Report, shared: &Shared) -> anyhow::Result<bool> {
    let changes = shared.older.changes(report)?;
    std::fs::create_dir_all(&shared.out)?;
    let file = |ending: &str| shared.out.join(format!("{}.{ending}", report.name));
    std::fs::write(file("json"), serde_json::to_vec_pretty(report)?)?;
    std::fs::write(file("html"), report::html(report, changes.as_deref()))?;
    show(report);
    let fine = report.failures().is_empty() & !regressed(changes.as_deref());
    say(&format!("\n{}\n{}", file("json").display(), file("html").display()));
    Ok(fine)
}

fn show(report: &Report) {
    let (head, rows) = summary::rows(report);
    say(&format!("\n{}: {}\n", report.name, report.about));
    say(&table(&head, &rows));
    for verdict in &report.verdicts {
        say(&format!("{}: {}", verdict.word(report.short), verdict.text()));
    }
    let differing = audit::findings(&report.audit);
    say(&match differing.is_empty() {
        true => format!("audit: {} comparisons agree", report.audit.len()),
        false => format!("AUDIT: {}", differing.join("; ")),
    });
    report.notes.iter().for_each(|note| say(&format!("note: {note}")));
}
