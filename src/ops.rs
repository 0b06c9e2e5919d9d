//! The operators' listener: metrics and health.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::telemetry::Telemetry;

/// What health checks look at. Each flag is set by the composition root.
#[derive(Debug, Default)]
pub struct Health {
    /// Configuration and directory are loaded, the data dir is locked, listeners are bound.
    pub started: AtomicBool,
    /// Shutdown has begun.
    pub draining: AtomicBool,
}

impl Health {
    fn checks(&self) -> [(&'static str, bool); 2] {
        [
            ("started", self.started.load(Ordering::Acquire)),
            ("not-draining", !self.draining.load(Ordering::Acquire)),
        ]
    }
}

#[derive(Clone)]
struct Ops {
    health: Arc<Health>,
    telemetry: Arc<Telemetry>,
}

/// `/metrics`, `/livez`, `/readyz`, `/startupz`; with `?verbose` each check on a line.
pub fn router(health: Arc<Health>, telemetry: Arc<Telemetry>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        // A process that answers is alive; what else is wrong, a restart would not mend.
        .route("/livez", get(async |RawQuery(query)| answer(query, &[])))
        .route("/startupz", get(startup))
        .route("/readyz", get(ready))
        .with_state(Ops { health, telemetry })
}

async fn metrics(State(ops): State<Ops>) -> Response {
    ([(header::CONTENT_TYPE, Telemetry::MEDIA_TYPE)], ops.telemetry.expose()).into_response()
}

async fn startup(State(ops): State<Ops>, RawQuery(query): RawQuery) -> Response {
    answer(query, &ops.health.checks()[..1])
}

async fn ready(State(ops): State<Ops>, RawQuery(query): RawQuery) -> Response {
    answer(query, &ops.health.checks())
}

fn answer(query: Option<String>, checks: &[(&str, bool)]) -> Response {
    let fine = checks.iter().all(|(_, passed)| *passed);
    let status = if fine { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let verdict = if fine { "ok" } else { "not ok" };
    let verbose =
        query.is_some_and(|query| query.split('&').any(|part| part.starts_with("verbose")));
    let mut text = String::new();
    if verbose {
        for (name, passed) in checks {
            text += &format!("[{}] {name}\n", if *passed { "+" } else { "-" });
        }
    }
    (status, text + verdict + "\n").into_response()
}
