//! The admin API as commands reach it.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::output::{self, Format};
use super::{FAILED, USAGE, fail};
use crate::core::ids::Id;
use crate::directory::file::Problem;
use crate::fetch::agent;

/// How a command finds the server.
#[derive(Debug, Args)]
pub struct Server {
    /// The admin listener; the token is read from TOLLGATE_ADMIN_TOKEN
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8081", value_parser = admin_url)]
    admin: String,
}

/// How a command finds the server, and which org it is about.
#[derive(Debug, Args)]
pub struct OrgServer {
    /// The org
    #[arg(long, value_name = "ID", env = "TOLLGATE_ORG")]
    org: Id,
    #[command(flatten)]
    server: Server,
}

/// How long a command waits for its answer.
const PATIENCE: Duration = Duration::from_secs(300);
/// The longest answer that is read.
const LONGEST_ANSWER: u64 = 256 << 20;

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No token.
    #[error(
        "set TOLLGATE_ADMIN_TOKEN to an admin token; a server that made the operator's token \
         itself printed the path of its file at start:\n  export TOLLGATE_ADMIN_TOKEN=$(cat \
         tollgate-data/admin.token)"
    )]
    NoToken,
    /// What is in the variable is no token.
    #[error("TOLLGATE_ADMIN_TOKEN holds characters that no token has; is it the token, or a path?")]
    OddToken,
    /// No answer.
    #[error("{url}: {error}; is the server running, and is --admin its admin listener?")]
    Unreachable {
        /// What was asked.
        url: String,
        /// What happened.
        error: String,
    },
    /// An answer of something else.
    #[error(
        "{url} answered {status}, but not as the admin API does; is --admin the admin listener \
         (default port 8081), not the gateway (8080) or ops (9090)?"
    )]
    NotTheApi {
        /// What was asked.
        url: String,
        /// The answer's status.
        status: u16,
    },
    /// A problem document.
    #[error("{text}")]
    Refused {
        /// What to tell.
        text: String,
        /// What is wrong with the document that was sent.
        problems: Vec<Problem>,
    },
}

/// An answer: the document as it came.
#[derive(Debug)]
pub struct Answer {
    text: String,
    /// The document, read.
    pub document: Value,
}

impl Answer {
    /// Prints it: as it came, or as the table that `table` makes of it.
    pub fn print(&self, format: Format, table: impl FnOnce(&Value) -> String) -> ExitCode {
        match format {
            Format::Json => output::print(&format!("{}\n", self.text.trim_end())),
            Format::Table => output::print(&table(&self.document)),
        }
    }
}

impl ClientError {
    /// The command's end: 2 where the command was called wrongly, else 1.
    pub fn end(&self) -> ExitCode {
        let code = match self {
            Self::NoToken | Self::OddToken => USAGE,
            _ => FAILED,
        };
        fail(code, self)
    }
}

impl OrgServer {
    /// Asks for a document of the org: `path` is what follows `/v1/orgs/{org}/`.
    ///
    /// # Errors
    /// [`ClientError`] says what to do about it.
    pub fn get(&self, path: &str) -> Result<Answer, ClientError> {
        self.server.get(&self.path(path))
    }

    /// Posts a document to the org.
    ///
    /// # Errors
    /// [`ClientError`] says what to do about it.
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer, ClientError> {
        self.server.post(&self.path(path), body.to_string().as_bytes())
    }

    fn path(&self, path: &str) -> String {
        format!("/v1/orgs/{}/{path}", self.org)
    }
}

impl Server {
    /// Asks for a document.
    ///
    /// # Errors
    /// [`ClientError`] says what to do about it.
    pub fn get(&self, path: &str) -> Result<Answer, ClientError> {
        self.ask(path, |agent, url, bearer| agent.get(url).header("Authorization", bearer).call())
    }

    /// Posts a JSON document.
    ///
    /// # Errors
    /// [`ClientError`] says what to do about it.
    pub fn post(&self, path: &str, body: &[u8]) -> Result<Answer, ClientError> {
        self.ask(path, |agent, url, bearer| {
            agent
                .post(url)
                .header("Authorization", bearer)
                .header("Content-Type", "application/json")
                .send(body)
        })
    }

    /// Deletes what is there.
    ///
    /// # Errors
    /// [`ClientError`] says what to do about it.
    pub fn delete(&self, path: &str) -> Result<Answer, ClientError> {
        self.ask(path, |agent, url, bearer| {
            agent.delete(url).header("Authorization", bearer).call()
        })
    }

    fn ask(
        &self,
        path: &str,
        send: impl FnOnce(
            &ureq::Agent,
            &str,
            &str,
        ) -> Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Answer, ClientError> {
        let bearer = bearer()?;
        let url = format!("{}{path}", self.admin.trim_end_matches('/'));
        let unreachable = |error: ureq::Error| ClientError::Unreachable {
            url: url.clone(),
            error: error.to_string(),
        };
        let mut response =
            send(&agent(PATIENCE), &url, bearer.expose_secret()).map_err(unreachable)?;
        let status = response.status().as_u16();
        let read = response.body_mut().with_config().limit(LONGEST_ANSWER).read_to_string();
        let text = read.map_err(unreachable)?;
        // 204: done, and nothing to say.
        let document = match (status, &*text) {
            (204, "") => Ok(Value::Null),
            _ => serde_json::from_str(&text),
        };
        match document {
            Ok(document) if (200..300).contains(&status) => Ok(Answer { text, document }),
            Ok(problem) if problem["code"].is_string() => Err(describe(status, &problem)),
            _ => Err(ClientError::NotTheApi { url, status }),
        }
    }
}

/// The credential, from the environment only: an argument would be seen in the process list.
fn bearer() -> Result<SecretString, ClientError> {
    let token = std::env::var_os("TOLLGATE_ADMIN_TOKEN").ok_or(ClientError::NoToken)?;
    let token: SecretString = token.into_string().map_err(|_| ClientError::OddToken)?.into();
    let text = token.expose_secret().trim();
    if text.is_empty() {
        return Err(ClientError::NoToken);
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ClientError::OddToken);
    }
    Ok(format!("Bearer {text}").into())
}

/// Text as it stands in a query (RFC 3986, section 2.1).
pub fn in_query(text: &str) -> String {
    let mut query = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            query.push(char::from(byte));
        } else {
            query += &format!("%{byte:02X}");
        }
    }
    query
}

fn admin_url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://").ok_or_else(|| match text.starts_with("https://") {
        true => "the admin listener has no TLS: expected a URL like http://127.0.0.1:8081, where \
                 what ends TLS is reached without it"
            .to_owned(),
        false => "expected a URL like http://127.0.0.1:8081".to_owned(),
    })?;
    let host = rest.trim_end_matches('/');
    if host.is_empty() || host.contains(['/', '?', '#', '@', ' ']) {
        return Err("expected only a scheme, a host and a port, like http://127.0.0.1:8081".into());
    }
    Ok(text.to_owned())
}

/// A problem document as lines, with what to do about it where that is known.
fn describe(status: u16, problem: &Value) -> ClientError {
    let text = |of: &Value, key: &str| of[key].as_str().unwrap_or_default().to_owned();
    let errors = problem["errors"].as_array().map_or(&[][..], Vec::as_slice);
    let problems: Vec<Problem> = errors
        .iter()
        .map(|error| Problem { pointer: text(error, "pointer"), detail: text(error, "detail") })
        .collect();
    let (title, detail) = (text(problem, "title"), text(problem, "detail"));
    let mut lines = format!("{title}: {detail} ({})", text(problem, "code"));
    // The detail of a document with one error often is that error.
    for problem in problems.iter().filter(|one| !one.pointer.is_empty() || one.detail != detail) {
        lines += &format!("\n  {problem}");
    }
    match status {
        401 => lines += "\n  TOLLGATE_ADMIN_TOKEN holds no token of this server",
        403 => lines += "\n  the role of the token in TOLLGATE_ADMIN_TOKEN does not reach this",
        _ => {}
    }
    ClientError::Refused { text: output::plain_lines(&lines), problems }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_url_is_a_scheme_a_host_and_a_port() {
        for text in ["http://127.0.0.1:8081", "http://gate.internal:80/", "http://[::1]:8081"] {
            assert_eq!(admin_url(text).as_deref(), Ok(text));
        }
        for text in ["", "127.0.0.1:8081", "https://a", "http://", "http://a/b", "http://u@a"] {
            assert!(admin_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_can_end_the_query_it_stands_in() {
        assert_eq!(in_query("aZ0-._~&=#é"), "aZ0-._~%26%3D%23%C3%A9");
    }

    #[test]
    fn f76_a_problem_is_described_without_its_control_characters() {
        let problem = serde_json::json!({
            "title": "T", "detail": "d\u{1b}[2J", "code": "invalid",
            "errors": [{ "pointer": "/a", "detail": "e" }],
        });
        let told = |status| describe(status, &problem).to_string();
        assert_eq!(told(422), "T: d\\u{1b}[2J (invalid)\n  /a: e");
        assert!(told(401).contains("TOLLGATE_ADMIN_TOKEN"));
    }
}
