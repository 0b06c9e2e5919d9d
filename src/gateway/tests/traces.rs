//! Traces of real requests (the feature `otel`).

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};

use http_body_util::Full;
use serde_json::Value;

use super::bench::*;

/// Takes exports until it has so many spans: by name.
fn collect(listener: &std::net::TcpListener, count: usize) -> BTreeMap<String, Value> {
    let mut spans = BTreeMap::new();
    let (mut stream, _) = listener.accept().unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while spans.len() < count {
        let (mut line, mut length) = (String::new(), 0);
        while reader.read_line(&mut line).unwrap() > 2 {
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        for span in body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap() {
            spans.insert(span["name"].as_str().unwrap().to_owned(), span.clone());
        }
    }
    spans
}

#[tokio::test]
async fn a_request_is_traced_from_its_callers_trace_to_the_backend_s() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let bench = Bench::with(&format!("[traces]\nendpoint = \"http://{address}\"\n")).await;
    bench.backend.answers("200 OK", "x");
    let (trace, caller) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let sampled = |flags: &str| {
        let mut request = post("/v1/images", "alice", "{}");
        let text = format!("00-{trace}-{caller}-{flags}");
        request.headers_mut().insert("traceparent", text.parse().unwrap());
        request
    };
    assert_eq!(bench.send(sampled("00")).await.status, 200);
    let passed = bench.backend.seen()[0].header("traceparent")[0].to_owned();
    assert!(passed.ends_with(&format!("{caller}-00")), "what is not sampled passes: {passed}");
    let collecting = tokio::task::spawn_blocking(move || collect(&listener, 4));
    assert_eq!(bench.send(sampled("01")).await.status, 200);
    let spans = collecting.await.unwrap();
    let names: Vec<&str> = spans.keys().map(String::as_str).collect();
    assert_eq!(names, ["hold", "request", "settle", "upstream"]);
    let request = &spans["request"];
    assert_eq!(request["parentSpanId"], caller);
    for (name, span) in &spans {
        assert_eq!(span["traceId"], trace, "{name}");
        let parent = if name == "request" { &caller.into() } else { &request["spanId"] };
        assert_eq!(&span["parentSpanId"], parent, "{name}");
    }
    let told = bench.backend.seen()[1].header("traceparent")[0].to_owned();
    let id = spans["upstream"]["spanId"].as_str().unwrap();
    assert_eq!(told, format!("00-{trace}-{id}-01"));
    let attributes = request["attributes"].to_string();
    assert!(attributes.contains("/v1/images") && attributes.contains("\"200\""), "{attributes}");
    assert!(!attributes.contains("alice"));
    // A free route has no hold and no settlement.
    let free = get("/v1/models").header("tollgate-user", "alice");
    let free = bench.send(free.body(Full::default()).unwrap());
    assert_eq!(free.await.status, 200);
}
