//! What workers serve with, made from a configuration: at the start, and again by each reload. A
//! generation shares with the one before whatever a configuration does not decide (books, tasks,
//! requests in flight), and the backends that did not change.

use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;
use http::header::{HeaderName, HeaderValue};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::backends::{Backends, Next};
use crate::books::{Engine, OpenCharge, Session};
use crate::clock::Clock;
use crate::config::{self, Changes, Config};
use crate::directory::snapshot::Live;
use crate::gateway::admit::Limits;
use crate::gateway::answers::Answers;
use crate::gateway::current::Current;
use crate::gateway::jobs::{Jobs, Reporter};
use crate::gateway::pace::Pulse;
use crate::gateway::route::Routes;
use crate::gateway::span::Tracer;
use crate::gateway::upstream::Upstream;
use crate::gateway::{ChargeIds, Charges, Worker};
use crate::telemetry::{Labels, RouteLabels, Telemetry};

/// What an upstream is shown instead of the caller's credential.
type Credential = Option<(HeaderName, HeaderValue)>;

/// What all workers share.
pub(super) struct Parts<'a> {
    pub(super) engine: &'a Engine,
    /// Charges that are open from before.
    pub(super) open: &'a [OpenCharge],
    pub(super) live: Arc<Live>,
    pub(super) charges: &'a Arc<dyn Charges>,
    pub(super) clock: &'a Clock,
    pub(super) tracer: Tracer,
    pub(super) backends: &'a Backends,
}

/// So many workers.
pub(super) fn first(
    config: &Config,
    count: usize,
    telemetry: &Telemetry,
    parts: &Parts<'_>,
) -> anyhow::Result<Vec<Arc<Current<Session>>>> {
    let labels = Arc::new(labels(config));
    let limits = Arc::new(Limits::new(&config.limits));
    let answers = Arc::new(Answers::default());
    let jobs = Arc::new(Jobs::default());
    for open in parts.open {
        jobs.adopt(open, parts.clock.now());
    }
    let reporters = reporters(config)?;
    let credentials = credentials(config)?;
    let known = parts.backends.next(&config.upstream);
    let worker = |_| {
        let worker = Worker {
            generation: 0,
            routes: Routes::new(&config.route, &config.upstream)?,
            upstreams: upstreams(config, &credentials, &known, &[])?,
            live: Arc::clone(&parts.live),
            books: parts.engine.session(),
            charges: Arc::clone(parts.charges),
            answers: Arc::clone(&answers),
            jobs: Arc::clone(&jobs),
            reporters: Arc::clone(&reporters),
            limits: Arc::clone(&limits),
            clock: parts.clock.clone(),
            meters: telemetry.worker(&labels),
            tasks: TaskTracker::new(),
            ids: ids()?,
            pulse: Arc::new(Pulse::new(&config.gateway)),
            trusted_proxies: config.gateway.trusted_proxies.clone(),
            tracer: parts.tracer.clone(),
            access_log: config.log.access,
            drain: CancellationToken::new(),
            cut_off: CancellationToken::new(),
        };
        anyhow::Ok(Arc::new(Current::new(Arc::new(worker))))
    };
    let workers = (0..count.max(1)).map(worker).collect();
    parts.backends.put(known);
    workers
}

/// Gives every worker what `new` says and can change live, or none of them anything. `running` is
/// the configuration in force, before and after.
pub(super) fn reload(
    running: &mut Config,
    new: &Config,
    telemetry: &Telemetry,
    backends: &Backends,
    currents: &[Arc<Current<Session>>],
) -> anyhow::Result<Changes> {
    let changes = config::changes(running, new);
    let labels = Arc::new(labels(new));
    let reporters = reporters(new)?;
    let credentials = credentials(new)?;
    let known = backends.next(&new.upstream);
    let mut limits = None;
    let mut next = Vec::new();
    for current in currents {
        let old = current.load();
        let limits = limits.get_or_insert_with(|| Arc::new(old.limits.reloaded(&new.limits)));
        next.push(Arc::new(Worker {
            generation: old.generation + 1,
            routes: Routes::new(&new.route, &new.upstream)?,
            upstreams: upstreams(new, &credentials, &known, &old.upstreams)?,
            live: Arc::clone(&old.live),
            books: old.books.clone(),
            charges: Arc::clone(&old.charges),
            answers: Arc::clone(&old.answers),
            jobs: Arc::clone(&old.jobs),
            reporters: Arc::clone(&reporters),
            limits: Arc::clone(limits),
            clock: old.clock.clone(),
            meters: telemetry.worker(&labels),
            tasks: old.tasks.clone(),
            ids: ids()?,
            pulse: Arc::clone(&old.pulse),
            trusted_proxies: new.gateway.trusted_proxies.clone(),
            tracer: old.tracer.clone(),
            access_log: new.log.access,
            drain: old.drain.clone(),
            cut_off: old.cut_off.clone(),
        }));
    }
    backends.put(known);
    for (current, worker) in currents.iter().zip(next) {
        current.swap(worker);
    }
    config::put_live(running, new);
    Ok(changes)
}

/// A worker's way to each backend. One whose addresses and credential are the same as before keeps
/// its connections, wherever it stands now.
fn upstreams(
    config: &Config,
    credentials: &[Credential],
    known: &Next,
    before: &[Arc<Upstream>],
) -> anyhow::Result<Vec<Arc<Upstream>>> {
    let upstream = |(index, (upstream, credential)): (usize, (&config::Upstream, &Credential))| {
        let addresses = known.addresses(index)?;
        let same =
            |kept: &&Arc<Upstream>| kept.reaches(&addresses) && kept.credential == *credential;
        match before.iter().find(same) {
            Some(kept) => Ok(kept.at(index)),
            None => Ok(Arc::new(Upstream::new(index, upstream, credential.clone(), addresses)?)),
        }
    };
    config.upstream.iter().zip(credentials).enumerate().map(upstream).collect()
}

fn ids() -> anyhow::Result<ChargeIds> {
    ChargeIds::new().context("no randomness for charge ids")
}

fn labels(config: &Config) -> Labels {
    let routes = config.route.iter().map(|route| RouteLabels {
        route: route.path.clone(),
        feature: route.feature.as_ref().filter(|_| !route.free).map(ToString::to_string),
    });
    let upstreams = config.upstream.iter().map(|upstream| upstream.name.to_string());
    Labels { routes: routes.collect(), upstreams: upstreams.collect() }
}

/// Where traces go, and the thread that takes them there.
#[cfg(feature = "otel")]
pub(super) fn tracer(config: &Config) -> anyhow::Result<(Tracer, Option<JoinHandle<()>>)> {
    let variable = |name: &str| std::env::var_os(name);
    let credential = config.traces.credential.as_ref();
    let credential = credential
        .map(|credential| config::secret::credential(credential, variable))
        .transpose()
        .context("traces")?;
    let exporter = crate::telemetry::spans::Exporter::start(&config.traces, credential)?;
    let (exporter, thread) = exporter.unzip();
    Ok((Tracer::new(exporter), thread))
}

/// Nowhere.
#[cfg(not(feature = "otel"))]
pub(super) fn tracer(_config: &Config) -> anyhow::Result<(Tracer, Option<JoinHandle<()>>)> {
    Ok((Tracer::default(), None))
}

/// What each upstream is shown, read anew from its variable or file.
fn credentials(config: &Config) -> anyhow::Result<Vec<Credential>> {
    let read = |upstream: &config::Upstream| {
        let variable = |name: &str| std::env::var_os(name);
        let credential = upstream.credential.as_ref();
        credential
            .map(|credential| config::secret::credential(credential, variable))
            .transpose()
            .with_context(|| format!("upstream {}", upstream.name))
    };
    config.upstream.iter().map(read).collect()
}

/// Who may report how jobs stand, with secrets that are read anew.
fn reporters(config: &Config) -> anyhow::Result<Arc<[Reporter]>> {
    let routes = config.route.iter().filter_map(|route| Some((route, route.job.as_ref()?)));
    let reports = routes.filter_map(|(route, job)| Some((route, job.report.as_ref()?)));
    let read = |(route, report): (&config::Route, &config::Report)| {
        let secret = config::secret::report(report, |name| std::env::var_os(name));
        let secret = secret.with_context(|| format!("reports of route {}", route.path))?;
        Ok(Reporter::new(route.upstream.as_str(), &secret))
    };
    reports.map(read).collect()
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Handle;

    use super::*;

    fn config(names: &[&str]) -> Config {
        let entry = |name: &&str| {
            format!("[[upstream]]\nname = \"{name}\"\nurls = [\"http://{name}:1\"]\n")
        };
        toml::from_str(&names.iter().map(entry).collect::<String>()).unwrap()
    }

    #[tokio::test]
    async fn a_backend_that_only_moves_keeps_its_health_and_its_connections() {
        let backends = Backends::new(Handle::current(), CancellationToken::new());
        let none: [Credential; 3] = [None, None, None];
        let two = config(&["a", "b"]);
        let known = backends.next(&two.upstream);
        let before = upstreams(&two, &none[..2], &known, &[]).unwrap();
        backends.put(known);
        let three = config(&["new", "a", "b"]);
        let known = backends.next(&three.upstream);
        let after = upstreams(&three, &none, &known, &before).unwrap();
        for (at, kept) in before.iter().enumerate() {
            assert!(kept.reaches(&known.addresses(at + 1).unwrap()), "health of {at}");
            assert!(after[at + 1].shares_connections(kept), "connections of {at}");
            assert_eq!(after[at + 1].index, at + 1);
        }
        assert!(!after[0].shares_connections(&before[0]));
    }
}
