//! `PUT /v1/test/clock`: moves the clock of a gateway that was started with `--test-clock`. On any
//! other the route does not exist.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Admin;
use super::problem::Problem;

/// How the clock is moved.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Move {
    /// Time passes until then.
    Now(Timestamp),
    /// The system's clock is set to this, and no time passes.
    Jump(Timestamp),
    /// So many seconds pass, and the clock is checked after each as it is in real life.
    Pass(u16),
}

/// Moves the clock, and tells what time it is then and how far the system's is ahead.
pub async fn put(
    State(admin): State<Arc<Admin>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Problem> {
    let expected = |_| {
        let detail = "expected {\"now\": TIME}, {\"jump\": TIME} or {\"pass\": SECONDS}";
        Problem::invalid("", detail)
    };
    let asked: Move = serde_json::from_slice(&body?).map_err(expected)?;
    let clock = &admin.clock;
    match asked {
        Move::Now(to) if !clock.set(to) => {
            return Err(Problem::invalid("/now", "time does not go back; expected a later time"));
        }
        Move::Now(_) => {}
        Move::Jump(to) => {
            clock.jump(to);
        }
        Move::Pass(seconds) => (0..seconds).for_each(|_| clock.pass_second()),
    }
    let ahead = clock.offset();
    Ok(Json(json!({ "now": clock.now(), "system_ahead_us": ahead })))
}
