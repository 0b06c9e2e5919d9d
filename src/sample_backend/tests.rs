//! Over a real socket, with a client that sees every byte, broken ends included.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

struct Running {
    addr: SocketAddr,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
    tasks: TaskTracker,
}

async fn start() -> Running {
    let backend = SampleBackend::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let (addr, stop) = (backend.local_addr(), CancellationToken::new());
    let tasks = TaskTracker::new();
    let served = tasks.spawn(backend.run(stop.clone()));
    Running { addr, stop, served, tasks }
}

impl Running {
    async fn send(&self, head: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let length = body.len();
        let request = format!(
            "{head}\r\nHost: sample\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// The head and what came of the body.
    async fn ask(&self, head: &str, body: &str) -> (String, String) {
        let mut stream = self.send(head, body).await;
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        let (head, body) = all.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    }

    async fn ask_json(&self, head: &str, body: &str) -> serde_json::Value {
        let (head, body) = self.ask(head, body).await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
        serde_json::from_str(&body).unwrap()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.served.await.unwrap();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

const IMAGES: &str = "POST /v1/images/generate HTTP/1.1";
const CHAT: &str = "POST /v1/chat/completions HTTP/1.1";

#[tokio::test]
async fn images_tell_as_many_as_were_asked_for_in_body_and_header() {
    let backend = start().await;
    let (head, body) = backend.ask(IMAGES, r#"{"n":2,"size":"1024x1024","prompt":"a"}"#).await;
    assert!(head.contains("\r\nx-usage: 2"), "{head}");
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["usage"]["images"], 2);
    assert_eq!(body["data"].as_array().unwrap().len(), 2);
    assert!(body["data"][1]["url"].as_str().unwrap().starts_with("data:image/png;base64,"));
    for refused in [r#"{"n":0}"#, r#"{"n":17}"#, r#"{"n":-1}"#, "[", ""] {
        let (head, _) = backend.ask(IMAGES, refused).await;
        assert!(head.starts_with("http/1.1 400"), "{refused}: {head}");
    }
    backend.stop().await;
}

#[tokio::test]
async fn videos_tell_seconds_and_resolution() {
    let backend = start().await;
    let head = "POST /v1/videos HTTP/1.1";
    let body = backend.ask_json(head, r#"{"seconds":7,"resolution":"1080p"}"#).await;
    assert_eq!(body["usage"]["seconds"], 7);
    assert_eq!(body["seconds"], 7);
    assert_eq!(body["resolution"], "1080p");
    backend.stop().await;
}

#[tokio::test]
async fn chat_tells_completion_tokens_plain_and_at_the_end_of_a_stream() {
    let backend = start().await;
    let plain = backend.ask_json(CHAT, r#"{"max_tokens":3}"#).await;
    assert_eq!(plain["usage"]["completion_tokens"], 3);

    let (head, body) = backend.ask(CHAT, r#"{"max_tokens":3,"stream":true}"#).await;
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    let events: Vec<_> = body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(events.len(), 5, "{body}");
    let usage: serde_json::Value = serde_json::from_str(events[3]).unwrap();
    assert_eq!(usage["usage"]["completion_tokens"], 3);
    assert_eq!(events[4], "[DONE]");
    assert!(body.ends_with("0\r\n\r\n"), "the stream has a clean end");
    backend.stop().await;
}

#[tokio::test]
async fn usage_is_what_the_header_says_or_is_not_told() {
    let backend = start().await;
    for told in ["9", "-1", "0.5", "1e400", "null", "\"7\""] {
        let (_, body) = backend.ask(&format!("{IMAGES}\r\nX-Sample-Usage: {told}"), "{}").await;
        assert!(body.contains(&format!(r#""usage":{{"images":{told}}}"#)), "{told}: {body}");
    }
    let head = format!("{CHAT}\r\nX-Sample-Usage: 5");
    let (_, body) = backend.ask(&head, r#"{"stream":true}"#).await;
    assert!(body.contains(r#""completion_tokens":5"#), "{body}");

    let silent = backend.ask_json(&format!("{IMAGES}\r\nX-Sample-Fail: no-usage"), "{}").await;
    assert_eq!(silent.get("usage"), None);
    let head = format!("{CHAT}\r\nX-Sample-Fail: no-usage");
    let (_, body) = backend.ask(&head, r#"{"stream":true}"#).await;
    assert!(!body.contains("usage") && body.contains("[DONE]"), "{body}");
    backend.stop().await;
}

#[tokio::test]
async fn failures_come_as_asked() {
    let backend = start().await;
    let (head, _) = backend.ask(&format!("{IMAGES}\r\nX-Sample-Fail: 500"), "{}").await;
    assert!(head.starts_with("http/1.1 500"), "{head}");
    let (head, _) = backend.ask(&format!("{IMAGES}\r\nX-Sample-Fail: maybe"), "{}").await;
    assert!(head.starts_with("http/1.1 400"), "{head}");

    let (head, body) = backend.ask(&format!("{IMAGES}\r\nX-Sample-Fail: truncate"), "{}").await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let length = head.split("content-length: ").nth(1).unwrap();
    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
    assert!(!body.is_empty() && body.len() < length, "{} of {length}", body.len());
    assert!(!body.contains("usage"), "{body}");

    let head = format!("{CHAT}\r\nX-Sample-Fail: truncate");
    let (_, body) = backend.ask(&head, r#"{"stream":true}"#).await;
    assert!(body.contains("delta"), "{body}");
    assert!(!body.contains("usage") && !body.ends_with("0\r\n\r\n"), "{body}");

    let slow = backend.ask_json(&format!("{IMAGES}\r\nX-Sample-Fail: slow"), "{}").await;
    assert_eq!(slow["usage"]["images"], 1);
    backend.stop().await;
}

#[tokio::test]
async fn a_hanging_request_is_never_answered_and_does_not_hold_up_shutdown() {
    let backend = start().await;
    let mut hanging = backend.send(&format!("{IMAGES}\r\nX-Sample-Fail: hang"), "{}").await;
    // Its being counted shows that it arrived before the shutdown.
    while backend.ask_json("GET /sample/stats HTTP/1.1", "").await["failures"] != 1 {}
    backend.stop().await;
    let mut answer = Vec::new();
    // A reset instead of an end is also no answer.
    let ended = hanging.read_to_end(&mut answer).await;
    assert!(answer.is_empty(), "{ended:?} {answer:?}");
}

#[tokio::test]
async fn stats_count_paths_charges_and_failures_but_not_themselves() {
    let backend = start().await;
    let free = "GET /v1/models HTTP/1.1";
    assert_eq!(backend.ask_json(free, "").await["data"][0]["id"], "sample");
    backend.ask_json("GET /healthz HTTP/1.1", "").await;
    backend.ask(&format!("{IMAGES}\r\nTollgate-Charge: c1"), "{}").await;
    backend.ask(&format!("{IMAGES}\r\nTollgate-Charge: c2\r\nX-Sample-Fail: 500"), "{}").await;
    for invented in ["/a", "/b"] {
        let (head, _) = backend.ask(&format!("GET {invented} HTTP/1.1"), "").await;
        assert!(head.starts_with("http/1.1 404"), "{head}");
    }
    let (head, _) = backend.ask("GET /v1/videos HTTP/1.1", "").await;
    assert!(head.starts_with("http/1.1 405") && head.contains("allow: post"), "{head}");

    let stats = "GET /sample/stats HTTP/1.1";
    let expected = json!({
        "requests": {
            "/v1/images/generate": 2, "/v1/videos": 1, "/v1/chat/completions": 0,
            "/v1/models": 1, "/healthz": 1, "other": 2,
        },
        "charges": 2,
        "failures": 1,
    });
    assert_eq!(backend.ask_json(stats, "").await, expected);
    assert_eq!(backend.ask_json(stats, "").await, expected);
    backend.stop().await;
}

#[tokio::test]
async fn a_body_over_the_bound_is_refused() {
    let backend = start().await;
    let body = format!(r#"{{"prompt":"{}"}}"#, "a".repeat(MAX_BODY));
    let mut stream = TcpStream::connect(backend.addr).await.unwrap();
    let head = format!("{IMAGES}\r\nHost: sample\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server may answer and close before it has taken everything.
    let (mut read, mut write) = stream.split();
    let (_, status) = tokio::join!(write.write_all(body.as_bytes()), async {
        let mut status = [0; 12];
        read.read_exact(&mut status).await.map(|_| status)
    });
    assert_eq!(&status.unwrap(), b"HTTP/1.1 413");
    backend.stop().await;
}
