//! The operators' listener: metrics and health.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::telemetry::Telemetry;

/// What health checks look at; made and set by the composition root.
#[derive(Default)]
pub struct Health {
    /// Configuration and directory are loaded, the data dir is locked, listeners are bound.
    pub started: AtomicBool,
    /// Shutdown has begun.
    pub draining: AtomicBool,
    /// What an operator wants to see beside it. Traffic must not depend on it: where the books
    /// fail, they fail for every replica.
    pub shown: Vec<Shown>,
}

/// A check that decides nothing.
pub struct Shown {
    /// Its name.
    pub name: &'static str,
    /// Asked when somebody looks.
    pub passes: Box<dyn Fn() -> bool + Send + Sync>,
}

/// What must hold for traffic to come: all but the last hold from the start on.
const STARTED: [&str; 4] = ["configuration", "directory", "data-dir", "listeners"];

impl Health {
    fn startup(&self) -> Vec<(&'static str, bool)> {
        let started = self.started.load(Ordering::Acquire);
        STARTED.map(|name| (name, started)).to_vec()
    }

    fn ready(&self) -> Vec<(&'static str, bool)> {
        let mut checks = self.startup();
        checks.push(("not-draining", !self.draining.load(Ordering::Acquire)));
        checks
    }
}

/// Looks, before a scrape, at what is elsewhere. A scrape waits for it, so it is bounded.
pub type Look = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

#[derive(Clone)]
struct Ops {
    health: Arc<Health>,
    telemetry: Arc<Telemetry>,
    look: Look,
}

/// `/metrics`, `/livez`, `/readyz`, `/startupz`; with `?verbose` each check on a line.
pub fn router(health: Arc<Health>, telemetry: Arc<Telemetry>, look: Look) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        // A process that answers is alive; what else is wrong, a restart would not mend.
        .route("/livez", get(async |RawQuery(query)| answer(query, &[], &[])))
        .route("/startupz", get(startup))
        .route("/readyz", get(ready))
        .with_state(Ops { health, telemetry, look })
}

async fn metrics(State(ops): State<Ops>) -> Response {
    (ops.look)().await;
    ([(header::CONTENT_TYPE, Telemetry::MEDIA_TYPE)], ops.telemetry.expose()).into_response()
}

async fn startup(State(ops): State<Ops>, RawQuery(query): RawQuery) -> Response {
    answer(query, &ops.health.startup(), &[])
}

async fn ready(State(ops): State<Ops>, RawQuery(query): RawQuery) -> Response {
    answer(query, &ops.health.ready(), &ops.health.shown)
}

fn answer(query: Option<String>, checks: &[(&str, bool)], shown: &[Shown]) -> Response {
    let fine = checks.iter().all(|(_, passed)| *passed);
    let status = if fine { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let verdict = if fine { "ok" } else { "not ok" };
    let verbose =
        query.is_some_and(|query| query.split('&').any(|part| part.starts_with("verbose")));
    let mut text = String::new();
    if verbose {
        let sign = |passed| if passed { "+" } else { "-" };
        for (name, passed) in checks {
            text += &format!("[{}] {name}\n", sign(*passed));
        }
        for Shown { name, passes } in shown {
            text += &format!("[{}] {name} (not required)\n", sign(passes()));
        }
    }
    (status, text + verdict + "\n").into_response()
}
