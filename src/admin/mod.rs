//! The administrators' face: `/v1/…` on the admin listener.

mod api;
mod problem;
mod test_clock;
mod token;

pub use token::{Token, TokenError};

use std::sync::Arc;

use axum::Router;
use axum::middleware;
use axum::routing::{get, post, put};

use crate::books::Session;
use crate::clock::Clock;
use crate::directory::Directory;
use crate::gateway::Charges;

/// What the admin API works on.
pub struct Admin {
    /// Orgs, users, keys.
    pub directory: Arc<Directory>,
    /// A session of its own with the books.
    pub books: Session,
    /// Charges by id.
    pub charges: Arc<dyn Charges>,
    /// What time it is.
    pub clock: Clock,
    /// The operator's token.
    pub token: Token,
}

/// The largest document that `apply` takes.
const MAX_DOCUMENT: usize = 256 << 20;

/// The routes of the admin listener. Nothing is answered without a token.
pub fn router(admin: Arc<Admin>) -> Router {
    let mut router = Router::new();
    if admin.clock.is_manual() {
        router = router.route("/v1/test/clock", put(test_clock::put));
    }
    router
        .route("/v1/orgs/{org}/apply", post(api::apply))
        .route("/v1/orgs/{org}/users", get(api::users))
        .route("/v1/orgs/{org}/users/{user}/balance", get(api::balance))
        .route("/v1/orgs/{org}/pool", get(api::pool))
        .route("/v1/orgs/{org}/charges/{charge}", get(api::charge))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(axum::extract::DefaultBodyLimit::max(MAX_DOCUMENT))
        .layer(middleware::from_fn_with_state(Arc::clone(&admin), token::require))
        .with_state(admin)
}
