//! Spans on their way out: batches of OTLP over HTTP in its JSON encoding (opentelemetry-proto
//! 1.x, `ExportTraceServiceRequest`). Built with the feature `otel` only.
//!
//! The queue is bounded and nobody waits for it: a collector that is slow or away costs spans,
//! never requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::header::{HeaderName, HeaderValue};
use serde_json::{Value, json};

use crate::config;

/// How many spans wait at most.
const QUEUE: usize = 8192;
/// The largest batch.
const BATCH: usize = 512;
/// How long a span waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// How long the collector may take.
const PATIENCE: Duration = Duration::from_secs(10);
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
        let thread = thread.spawn(move || export(&spans, &url, credential.as_ref()))?;
        let one_in = u64::from(config.one_in.get());
        Ok(Some((Arc::new(Self { queue, one_in, begun: AtomicU64::new(0) }), thread)))
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

fn export(spans: &Receiver<Finished>, url: &str, credential: Option<&(HeaderName, HeaderValue)>) {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build().into();
    let mut reported: Option<Instant> = None;
    while let Some(batch) = batch(spans) {
        let mut request = agent.post(url).header("content-type", "application/json");
        if let Some((name, value)) = credential {
            request = request.header(name, value);
        }
        if let Err(error) = request.send(document(&batch).to_string())
            && reported.is_none_or(|at| at.elapsed() > REPORT)
        {
            reported = Some(Instant::now());
            tracing::warn!(%error, lost = batch.len(), "spans cannot be exported");
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
        let span = Finished {
            trace: 1,
            id: 1,
            parent: 0,
            name: "request",
            kind: Kind::Server,
            start: 1,
            end: 2,
            attributes: Vec::new(),
        };
        (0..QUEUE * 2).for_each(|_| exporter.send(span.clone()));
        drop(exporter);
        thread.join().unwrap();
    }
}
