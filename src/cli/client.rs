//! The admin API as commands reach it.

use std::time::Duration;

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

/// How a command finds the server.
#[derive(Debug, Args)]
pub struct Server {
    /// The admin listener
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8081")]
    admin: String,
}

/// How long a command waits for its answer.
const PATIENCE: Duration = Duration::from_secs(300);

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No token.
    #[error(
        "set TOLLGATE_ADMIN_TOKEN to the operator's token; a server that made one itself printed \
         the path of its file at start"
    )]
    NoToken,
    /// No answer.
    #[error("{url}: {error}; is the server running, and is --admin right?")]
    Unreachable {
        /// What was asked.
        url: String,
        /// What happened.
        error: String,
    },
    /// A problem document.
    #[error("{0}")]
    Refused(String),
}

impl Server {
    /// Posts a body and returns the answer.
    ///
    /// # Errors
    /// [`ClientError`] says what to do about it.
    pub fn post(&self, path: &str, media_type: &str, body: &[u8]) -> Result<Value, ClientError> {
        let token: SecretString =
            std::env::var("TOLLGATE_ADMIN_TOKEN").map_err(|_| ClientError::NoToken)?.into();
        let url = format!("{}{path}", self.admin.trim_end_matches('/'));
        let unreachable = |error: ureq::Error| ClientError::Unreachable {
            url: url.clone(),
            error: error.to_string(),
        };
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build()
            .into();
        let mut response = agent
            .post(&url)
            .header("Authorization", format!("Bearer {}", token.expose_secret().trim()))
            .header("Content-Type", media_type)
            .send(body)
            .map_err(unreachable)?;
        let status = response.status();
        let answer: Value = response.body_mut().read_json().map_err(unreachable)?;
        if status.is_success() { Ok(answer) } else { Err(ClientError::Refused(describe(&answer))) }
    }
}

/// A problem document as lines.
fn describe(problem: &Value) -> String {
    let text = |key: &str| problem[key].as_str().unwrap_or_default();
    let mut lines = format!("{}: {} ({})", text("title"), text("detail"), text("code"));
    for error in problem["errors"].as_array().into_iter().flatten() {
        let part = |key: &str| error[key].as_str().unwrap_or_default();
        lines += &format!("\n  {}: {}", part("pointer"), part("detail"));
    }
    lines
}
