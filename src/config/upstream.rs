//! Backends: where they are, how long they may take, what credential they are shown.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::text;
use crate::core::ids::Id;

/// The most addresses of one backend.
pub const MAX_URLS: usize = 64;

/// A generative backend.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Its name in routes and metrics.
    pub name: Id,
    /// `http://host:port`, one or more.
    pub urls: Vec<String>,
    /// How long a connection may take.
    #[serde(default = "defaults::connect_timeout", with = "text::duration")]
    pub connect_timeout: Duration,
    /// How long the response's headers may take, from the end of the request.
    #[serde(default = "defaults::response_timeout", with = "text::duration")]
    pub response_timeout: Duration,
    /// How long the next piece of a response's body may take.
    #[serde(default = "defaults::idle_timeout", with = "text::duration")]
    pub idle_timeout: Duration,
    /// How long a body may take as a whole, in either direction.
    #[serde(default = "defaults::body_timeout", with = "text::duration")]
    pub body_timeout: Duration,
    /// Active health checks.
    pub health: Option<Health>,
    /// What the backend is shown instead of the caller's credential.
    pub credential: Option<Credential>,
}

/// An active health check.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// What is asked for.
    pub path: String,
    /// How often.
    #[serde(default = "defaults::health_interval", with = "text::duration")]
    pub interval: Duration,
}

/// A backend's credential: where it is read from, and the header it goes into.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The header's name.
    #[serde(default = "defaults::credential_header")]
    pub header: String,
    /// What stands before the secret, with a space.
    pub scheme: Option<String>,
    /// The environment variable that holds it.
    pub env: Option<String>,
    /// The file that holds it.
    pub file: Option<PathBuf>,
}

mod defaults {
    use std::time::Duration;

    pub fn connect_timeout() -> Duration {
        Duration::from_secs(1)
    }
    pub fn response_timeout() -> Duration {
        Duration::from_secs(120)
    }
    pub fn idle_timeout() -> Duration {
        Duration::from_secs(120)
    }
    pub fn body_timeout() -> Duration {
        Duration::from_secs(3600)
    }
    pub fn health_interval() -> Duration {
        Duration::from_secs(5)
    }
    pub fn credential_header() -> String {
        "Authorization".to_owned()
    }
}
