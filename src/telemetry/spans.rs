//! Spans on their way out: batches of OTLP over HTTP in its JSON encoding (opentelemetry-proto
//! 1.x, `ExportTraceServiceRequest`). Built with the feature `otel` only.
//!
//! The queue is bounded and nobody waits for it: a collector that is slow or away costs spans,
//! never requests.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::header::{HeaderName, HeaderValue};
use serde_json::{Value, json};

use crate::config;
use crate::fetch::agent;

/// How many spans wait at most.
const QUEUE: usize = 8192;
/// The largest batch.
const BATCH: usize = 512;
/// How long a span waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// How long the collector may take for a batch. Also the longest that the process waits for it at
/// its end, because [`FLUSH`] is not longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long after the end spans are still sent: it is a part of the time that the process has to
/// end (docs/operations.md).
const FLUSH: Duration = Duration::from_secs(3);
/// How much of its answer is read.
const LONGEST_ANSWER: u64 = 64 << 10;
/// How often a collector that fails is mentioned in the log.
const REPORT: Duration = Duration::from_secs(60);

/// A span that is over. Times are nanoseconds since the Unix epoch.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its trace.
    pub trace: u128,
    /// Its own id.
    pub id: u64,
    /// The span it is part of; 0 for none.
    pub parent: u64,
    /// What was done.
    pub name: &'static str,
    /// Whether somebody else's request began it, or it was a request to somebody else.
    pub kind: Kind,
    /// When it began.
    pub start: u64,
    /// When it ended.
    pub end: u64,
    /// What else there is to know.
    pub attributes: Vec<(&'static str, String)>,
}

/// OTLP's `SpanKind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Work of our own.
    Internal = 1,
    /// A request that we answer.
    Server = 2,
    /// A request that we make.
    Client = 3,
}

/// Where spans go.
#[derive(Debug)]
pub struct Exporter {
    queue: SyncSender<Finished>,
    one_in: u64,
    begun: AtomicU64,
    /// When the last of its users was gone.
    ended: Arc<OnceLock<Instant>>,
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.ended.set(Instant::now());
    }
}

impl Exporter {
    /// Exports to where the configuration says, on a thread that ends with the last use of the
    /// exporter; `None` where it names no endpoint.
    ///
    /// # Errors
    /// When there is no thread.
    pub fn start(
        config: &config::Traces,
        credential: Option<(HeaderName, HeaderValue)>,
    ) -> std::io::Result<Option<(Arc<Self>, JoinHandle<()>)>> {
        let Some(endpoint) = &config.endpoint else { return Ok(None) };
        let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let (queue, spans) = mpsc::sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("spans".to_owned());
        let ended = Arc::<OnceLock<Instant>>::default();
        let known = Arc::clone(&ended);
        let thread = thread.spawn(move || export(&spans, &url, credential.as_ref(), &known))?;
        let one_in = u64::from(config.one_in.get());
        Ok(Some((Arc::new(Self { queue, one_in, begun: AtomicU64::new(0), ended }), thread)))
    }

    /// Whether a request that nobody traces yet is to be traced.
    pub fn samples(&self) -> bool {
        self.begun.fetch_add(1, Relaxed).is_multiple_of(self.one_in)
    }

    /// Hands a span over; where too many wait it is dropped.
    pub fn send(&self, span: Finished) {
        let _ = self.queue.try_send(span);
    }
}

fn export(
    spans: &Receiver<Finished>,
    url: &str,
    credential: Option<&(HeaderName, HeaderValue)>,
    ended: &OnceLock<Instant>,
) {
    let agent = agent(PATIENCE);
    let mut reported: Option<Instant> = None;
    while let Some(batch) = batch(spans) {
        let left = ended.get().map_or(PATIENCE, |at| FLUSH.saturating_sub(at.elapsed()));
        if left.is_zero() {
            let lost = batch.len() + spans.try_iter().count();
            tracing::warn!(lost, "spans were not exported before the end");
            return;
        }
        let mut request = agent.post(url).header("content-type", "application/json");
        if let Some((name, value)) = credential {
            request = request.header(name, value);
        }
        let request = request.config().timeout_global(Some(left.min(PATIENCE))).build();
        let problem = match request.send(document(&batch).to_string()) {
            Ok(mut answer) => {
                // Read, so that the connection can be used again.
                let _ = answer.body_mut().with_config().limit(LONGEST_ANSWER).read_to_vec();
                let status = answer.status();
                (!status.is_success()).then(|| format!("it answered {}", status.as_u16()))
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = problem
            && reported.is_none_or(|at| at.elapsed() > REPORT)
        {
            reported = Some(Instant::now());
            tracing::warn!(error, lost = batch.len(), "spans cannot be exported");
        }
    }
}

/// The next spans; `None` when there will be none.
fn batch(spans: &Receiver<Finished>) -> Option<Vec<Finished>> {
    let mut batch = vec![spans.recv().ok()?];
    let until = Instant::now() + LINGER;
    while batch.len() < BATCH {
        match spans.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(span) => batch.push(span),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    Some(batch)
}

/// The request's body. Ids are hexadecimal and times are texts in OTLP's JSON.
fn document(batch: &[Finished]) -> Value {
    let attribute =
        |key: &str, value: &str| json!({ "key": key, "value": { "stringValue": value } });
    let span = |span: &Finished| {
        let attributes: Vec<Value> =
            span.attributes.iter().map(|(key, value)| attribute(key, value)).collect();
        let parent = if span.parent == 0 { String::new() } else { format!("{:016x}", span.parent) };
        json!({
            "traceId": format!("{:032x}", span.trace),
            "spanId": format!("{:016x}", span.id),
            "parentSpanId": parent,
            "name": span.name,
            "kind": span.kind as u8,
            "startTimeUnixNano": span.start.to_string(),
            "endTimeUnixNano": span.end.to_string(),
            "attributes": attributes,
        })
    };
    let spans: Vec<Value> = batch.iter().map(span).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": [
            attribute("service.name", "tollgate"),
            attribute("service.version", env!("CARGO_PKG_VERSION")),
        ] },
        "scopeSpans": [{ "scope": { "name": "tollgate" }, "spans": spans }],
    }] })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};

    use super::*;

    #[test]
    fn spans_arrive_at_a_collector_with_the_credential() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let config = config::Traces {
            endpoint: Some(format!("http://{}/", listener.local_addr().unwrap())),
            ..config::Traces::default()
        };
        let mut secret = HeaderValue::from_static("Bearer canary");
        secret.set_sensitive(true);
        let credential = Some((http::header::AUTHORIZATION, secret));
        let (exporter, thread) = Exporter::start(&config, credential).unwrap().unwrap();
        for id in [2, 3] {
            exporter.send(Finished {
                trace: 0xabc,
                id,
                parent: id - 2,
                name: "hold",
                kind: Kind::Internal,
                start: 1,
                end: 2,
                attributes: vec![("tollgate.org", "acme".to_owned())],
            });
        }
        drop(exporter);
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let from = head.len();
            reader.read_line(&mut head).unwrap();
            let line = head[from..].to_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
        thread.join().unwrap();
        assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
        assert!(head.to_lowercase().contains("authorization: bearer canary\r\n"), "{head}");
        let body: Value = serde_json::from_slice(&body).unwrap();
        let spans = &body["resourceSpans"][0]["scopeSpans"][0]["spans"];
        assert_eq!(spans.as_array().unwrap().len(), 2);
        assert_eq!(spans[0]["traceId"], "00000000000000000000000000000abc");
        assert_eq!(
            (&spans[0]["parentSpanId"], &spans[1]["parentSpanId"]),
            (&"".into(), &"0000000000000001".into())
        );
        assert_eq!(spans[0]["attributes"][0]["value"]["stringValue"], "acme");
    }

    #[test]
    fn a_collector_that_is_away_costs_no_request_and_one_in_n_is_sampled() {
        let config = config::Traces {
            endpoint: Some("http://127.0.0.1:2".to_owned()),
            one_in: std::num::NonZeroU32::new(3).unwrap(),
            credential: None,
        };
        let (exporter, thread) = Exporter::start(&config, None).unwrap().unwrap();
        let sampled = (0..9).filter(|_| exporter.samples()).count();
        assert_eq!(sampled, 3);
        let span = span();
        (0..QUEUE * 2).for_each(|_| exporter.send(span.clone()));
        drop(exporter);
        thread.join().unwrap();
    }

    fn span() -> Finished {
        Finished {
            trace: 1,
            id: 1,
            parent: 0,
            name: "request",
            kind: Kind::Server,
            start: 1,
            end: 2,
            attributes: Vec::new(),
        }
    }

    fn exporter_to(listener: &std::net::TcpListener) -> (Arc<Exporter>, JoinHandle<()>) {
        let config = config::Traces {
            endpoint: Some(format!("http://{}", listener.local_addr().unwrap())),
            ..config::Traces::default()
        };
        Exporter::start(&config, None).unwrap().unwrap()
    }

    #[test]
    fn a_collector_cannot_send_spans_elsewhere() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        elsewhere.set_nonblocking(true).unwrap();
        let (exporter, thread) = exporter_to(&listener);
        exporter.send(span());
        drop(exporter);
        let (mut stream, _) = listener.accept().unwrap();
        let to = elsewhere.local_addr().unwrap();
        let head = format!("HTTP/1.1 303 See Other\r\nlocation: http://{to}/\r\n");
        stream.write_all(format!("{head}content-length: 0\r\n\r\n").as_bytes()).unwrap();
        thread.join().unwrap();
        assert!(elsewhere.accept().is_err(), "the redirect was followed");
    }

    #[test]
    fn a_collector_that_does_not_answer_keeps_the_end_waiting_for_seconds_only() {
        // It takes connections, and nobody reads what comes.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (exporter, thread) = exporter_to(&listener);
        (0..QUEUE).for_each(|_| exporter.send(span()));
        let (over, end) = mpsc::channel();
        drop(exporter);
        std::thread::spawn(move || {
            thread.join().unwrap();
            over.send(()).unwrap();
        });
        // A batch alone may take its whole time; there are sixteen.
        let waited = end.recv_timeout(PATIENCE * 4);
        assert!(waited.is_ok(), "the last spans kept the process from its end");
    }
}
