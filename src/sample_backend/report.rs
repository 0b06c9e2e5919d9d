//! How a job ended, told to somebody else: one POST, again after a while until it is taken.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST};
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// So many are sent at once.
const AT_ONCE: usize = 64;
const TRIES: u32 = 6;
/// The wait after the first try; twice as long after each next one.
const BACKOFF: Duration = Duration::from_millis(100);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where jobs are reported, and what with.
#[derive(Debug, Clone)]
pub struct Report {
    /// Host and port, as in the URL.
    authority: String,
    address: String,
    /// The path and query; `{id}` and `{charge}` in it stand for the job's.
    target: String,
    /// Marked as sensitive, so that it is not printed.
    secret: Option<(HeaderName, HeaderValue)>,
    room: Arc<Semaphore>,
}

/// What is wrong with a place for reports. It does not show the secret.
#[derive(Debug, thiserror::Error)]
pub enum BadReport {
    /// The URL.
    #[error("a report goes to http://HOST:PORT/PATH, in which {{id}} and {{charge}} may stand")]
    Url,
    /// The header's name or what is in it.
    #[error("the secret of reports, or the name of its header, cannot be in a header")]
    Secret,
}

impl Report {
    /// A place for reports; `secret` is a header's name and all of its value.
    ///
    /// # Errors
    /// When the URL is not `http://…`, or the header is none.
    pub fn new(url: &str, secret: Option<(&str, &str)>) -> Result<Report, BadReport> {
        let rest = url.strip_prefix("http://").ok_or(BadReport::Url)?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let report = Report {
            authority: authority.to_owned(),
            address: address(authority).ok_or(BadReport::Url)?,
            target: format!("/{path}"),
            secret: secret.map(header).transpose()?,
            room: Arc::new(Semaphore::new(AT_ONCE)),
        };
        report.request("id", "charge", Bytes::new()).ok_or(BadReport::Url)?;
        Ok(report)
    }

    /// Sends one; whether it was taken. A refusal that is no matter of time is the last word.
    pub(super) async fn send(&self, id: &str, charge: &str, body: &str) -> bool {
        let mut backoff = BACKOFF;
        for again in (0..TRIES).rev() {
            let status = {
                let Ok(_place) = self.room.acquire().await else { return false };
                let tried = tokio::time::timeout(TIMEOUT, self.try_once(id, charge, body)).await;
                tried.ok().flatten()
            };
            match status {
                Some(status) if status.is_success() => return true,
                Some(status) if status.is_client_error() && !is_for_now(status) => return false,
                _ => tracing::debug!(?status, again, "report"),
            }
            if again > 0 {
                tokio::time::sleep(backoff).await;
                backoff *= 2;
            }
        }
        false
    }

    /// The status of the answer, where there was one.
    async fn try_once(&self, id: &str, charge: &str, body: &str) -> Option<StatusCode> {
        let request = self.request(id, charge, Bytes::copy_from_slice(body.as_bytes()))?;
        let stream = TcpStream::connect(&self.address).await.ok()?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        let mut connection = std::pin::pin!(connection);
        let mut answer = std::pin::pin!(sender.send_request(request));
        let answered = tokio::select! {
            biased;
            answered = answer.as_mut() => answered,
            _closed = connection.as_mut() => answer.await,
        };
        answered.ok().map(|answer| answer.status())
    }

    fn request(&self, id: &str, charge: &str, body: Bytes) -> Option<Request<Full<Bytes>>> {
        let target = self.target.replace("{id}", id).replace("{charge}", charge);
        let mut request = Request::post(target.parse::<Uri>().ok()?)
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, "application/json")
            .header(CONNECTION, "close");
        if let Some((name, value)) = &self.secret {
            request = request.header(name, value);
        }
        request.body(Full::new(body)).ok()
    }
}

/// Host and port to connect to.
fn address(authority: &str) -> Option<String> {
    let parsed: http::uri::Authority = authority.parse().ok()?;
    if parsed.host().is_empty() || authority.contains('@') {
        return None;
    }
    Some(format!("{}:{}", parsed.host(), parsed.port_u16().unwrap_or(80)))
}

fn header((name, value): (&str, &str)) -> Result<(HeaderName, HeaderValue), BadReport> {
    let name = name.parse().map_err(|_| BadReport::Secret)?;
    let mut value: HeaderValue = value.parse().map_err(|_| BadReport::Secret)?;
    value.set_sensitive(true);
    Ok((name, value))
}

/// Whether the same may be taken later.
fn is_for_now(status: StatusCode) -> bool {
    matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}
