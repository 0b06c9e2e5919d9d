//! The administrators' face: `/v1/…` on the admin listener. [`table`] lists every endpoint with
//! who may use it; the router, the checks in [`call`] and the OpenAPI document are made of it.

mod api;
mod ask;
mod call;
mod documents;
mod endpoint;
mod openapi;
mod page;
mod problem;
mod table;
mod test_clock;
mod token;
mod who;

pub use documents::Documents;
pub use token::{Token, TokenError};

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::response::Response;
use axum::routing::{MethodFilter, on, put};
use jiff::Timestamp;
use tokio_util::task::TaskTracker;

use crate::books::Session;
use crate::clock::Clock;
use crate::core::charge::ChargeDocument;
use crate::core::ids::ChargeId;
use crate::directory::Directory;
use crate::ledger::lookup::ChargeBook;
use call::{Params, refuse, serve};
use endpoint::Endpoint;
use problem::{Code, Problem};

/// Told of a charge that an administrator has voided.
pub type Voided = Box<dyn Fn(ChargeId, &ChargeDocument) + Send + Sync>;

/// What the admin API works on.
pub struct Admin {
    /// Orgs, users, keys.
    pub directory: Arc<Directory>,
    /// A session of its own with the books.
    pub books: Session,
    /// Charges and adjustments, open and archived.
    pub charges: ChargeBook,
    /// Told of each that is voided here.
    pub voided: Voided,
    /// What time it is.
    pub clock: Clock,
    /// The operator's token.
    pub token: Token,
    /// Held while an adjustment is made: whether one was made before is asked and answered
    /// under it.
    pub adjusting: tokio::sync::Mutex<()>,
    /// How many large org files are in work.
    pub documents: Documents,
    /// Changes that are being made: whoever ends the event loop waits for them.
    pub changes: TaskTracker,
}

/// The routes of the admin listener. Nothing is answered without a token.
pub fn router(admin: Arc<Admin>) -> Router {
    let mut router = Router::new();
    if admin.clock.is_manual() {
        router = router.route(test_clock::PATH, put(test_clock::put));
    }
    for endpoint in table::endpoints() {
        let handler = move |State(admin): State<Arc<Admin>>, params: Given, request: Request| {
            answer(endpoint, admin, params, request)
        };
        router = router.route(&endpoint.path, on(filter(endpoint), handler));
    }
    router
        .fallback(|State(admin): State<Arc<Admin>>, request: Request| {
            refuse(admin, request, Problem::not_found("such path in the admin API"))
        })
        .method_not_allowed_fallback(|State(admin): State<Arc<Admin>>, request: Request| {
            let detail = "`Allow` lists the methods it takes";
            refuse(admin, request, Problem::new(Code::MethodNotAllowed, detail))
        })
        .with_state(admin)
}

fn filter(endpoint: &Endpoint) -> MethodFilter {
    match endpoint.method {
        "POST" => MethodFilter::POST,
        "PUT" => MethodFilter::PUT,
        "PATCH" => MethodFilter::PATCH,
        "DELETE" => MethodFilter::DELETE,
        _ => MethodFilter::GET,
    }
}

/// The parameters of a path, unless they cannot be read.
type Given = Result<RawPathParams, RawPathParamsRejection>;

async fn answer(
    endpoint: &'static Endpoint,
    admin: Arc<Admin>,
    params: Given,
    request: Request,
) -> Response {
    match params {
        Ok(params) => {
            let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
            let params: Params = params.iter().map(owned).collect();
            serve(endpoint, admin, params, request).await
        }
        Err(_) => refuse(admin, request, Problem::not_found("such path in the admin API")).await,
    }
}

/// A new id: the time, and bits that nobody else draws. Where the system has no randomness only
/// the time is left, which is good enough to name a request.
fn new_id(now: Timestamp) -> ChargeId {
    let mut random = [0; 16];
    if getrandom::fill(&mut random).is_err() {
        tracing::error!("no randomness for an id");
    }
    ChargeId::v7(u64::try_from(now.as_millisecond()).unwrap_or(0), u128::from_be_bytes(random))
}
