//! `PUT /v1/test/clock`: moves the clock of a gateway that was started with `--test-clock`. On any
//! other the route does not exist.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::problem::{Code, Problem, respond};
use super::who::Who;
use super::{Admin, new_id};
use crate::directory::token::Role;

/// Where it is. It is in no document: no gateway that serves anybody has it.
pub const PATH: &str = "/v1/test/clock";
/// No order to the clock is longer.
const MAX_ORDER: usize = 1024;

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
pub async fn put(State(admin): State<Arc<Admin>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    match moved(&admin, &head.headers, body).await {
        Ok(answer) => respond(200, Some(&answer)),
        Err(problem) => problem.respond(&new_id(admin.clock.now()).to_string()),
    }
}

async fn moved(admin: &Admin, headers: &HeaderMap, body: Body) -> Result<Value, Problem> {
    if Who::of(admin, headers, admin.clock.now())?.role != Role::Operator {
        return Err(Problem::new(Code::Forbidden, "this needs a token of role operator"));
    }
    let expected = || {
        let detail = "expected {\"now\": TIME}, {\"jump\": TIME} or {\"pass\": SECONDS}";
        Problem::invalid("", detail)
    };
    let body = axum::body::to_bytes(body, MAX_ORDER).await.map_err(|_| expected())?;
    let asked: Move = serde_json::from_slice(&body).map_err(|_| expected())?;
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
    Ok(json!({ "now": clock.now(), "system_ahead_us": clock.offset() }))
}
