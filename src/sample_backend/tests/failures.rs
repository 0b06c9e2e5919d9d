//! Failures come as they are asked for, on every endpoint.

use super::*;

const EVERYWHERE: &[&str] = &[
    IMAGES,
    "POST /v1/images/generations HTTP/1.1",
    CHAT,
    VIDEOS,
    "GET /v1/videos/none HTTP/1.1",
    "POST /v1/videos/none/cancel HTTP/1.1",
    UPLOADS,
    "GET /v1/models HTTP/1.1",
    "GET /healthz HTTP/1.1",
    "PUT /nowhere HTTP/1.1",
];

#[tokio::test]
async fn a_status_is_answered_everywhere_and_nothing_is_made() {
    let backend = start().await;
    for head in EVERYWHERE {
        for (status, kind) in
            [(400, "invalid_request_error"), (429, "rate_limit_error"), (503, "server_error")]
        {
            let head = format!("{head}\r\nX-Sample-Fail: {status}");
            let (answer, body) = backend.ask(&head, "{}").await;
            assert!(answer.starts_with(&format!("http/1.1 {status} ")), "{head}: {answer}");
            assert_eq!(answer.contains("retry-after: 1"), status == 429, "{answer}");
            let body: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(body["error"]["type"], kind);
        }
    }
    assert_eq!(backend.seen("stats").await["jobs"]["made"], 0);
    for odd in ["maybe", "200", "399", "600", "+500", ""] {
        let (answer, _) = backend.ask(&format!("{IMAGES}\r\nX-Sample-Fail: {odd}"), "{}").await;
        assert!(answer.starts_with("http/1.1 400"), "{odd}: {answer}");
    }
    backend.stop().await;
}

#[tokio::test]
async fn a_truncated_answer_ends_before_its_usage() {
    let backend = start().await;
    let (head, body) = backend.ask(&format!("{IMAGES}\r\nX-Sample-Fail: truncate"), "{}").await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let length = head.split("content-length: ").nth(1).unwrap();
    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
    assert!(!body.is_empty() && body.len() < length, "{} of {length}", body.len());
    assert!(!body.contains("usage"), "{body}");

    let head = format!("{CHAT}\r\nX-Sample-Fail: truncate");
    let stream = r#"{"stream":true,"stream_options":{"include_usage":true}}"#;
    let (_, body) = backend.ask(&head, stream).await;
    assert!(body.contains("delta"), "{body}");
    assert!(!body.contains("_tokens") && !body.ends_with("0\r\n\r\n"), "{body}");
    backend.stop().await;
}

#[tokio::test]
async fn a_reset_is_a_reset_before_the_answer_or_in_its_middle() {
    let backend = start().await;
    for head in EVERYWHERE {
        let (answer, ended) =
            drain(backend.send(&format!("{head}\r\nX-Sample-Fail: reset"), "{}").await).await;
        assert!(answer.is_empty(), "{head}: {answer:?}");
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "{head}");
    }
    for (head, body) in [(IMAGES, "{}"), (CHAT, r#"{"stream":true}"#)] {
        let (answer, ended) =
            drain(backend.send(&format!("{head}\r\nX-Sample-Fail: reset-mid"), body).await).await;
        let answer = String::from_utf8(answer).unwrap();
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "{answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && body.len() > 50, "{answer}");
        assert!(!body.contains("DONE") && !body.contains("usage"), "{body}");
    }
    // Neither of them is a client that left.
    assert_eq!(backend.seen("stats").await["abandoned"], 0);
    backend.stop().await;
}

#[tokio::test]
async fn a_hanging_request_is_never_answered_and_does_not_hold_up_shutdown() {
    let backend = start().await;
    let hanging = backend.send(&format!("{IMAGES}\r\nX-Sample-Fail: hang"), "{}").await;
    // Its being counted shows that it arrived before the shutdown.
    backend.counted("/failures", 1).await;
    backend.stop().await;
    // A reset instead of an end is also no answer.
    let (answer, ended) = drain(hanging).await;
    assert!(answer.is_empty(), "{ended:?} {answer:?}");
}

#[tokio::test]
async fn an_answer_that_hangs_in_its_middle_goes_on_until_shutdown() {
    let backend = start().await;
    let body = r#"{"stream":true,"max_tokens":4}"#;
    let mut hanging = backend.send(&format!("{CHAT}\r\nX-Sample-Fail: hang-mid"), body).await;
    // Seven events in all, so half are role and two tokens.
    let mut came = String::new();
    while events(&came).len() < 3 || !came.ends_with("\n\n\r\n") {
        let mut piece = [0; 4096];
        let length = hanging.read(&mut piece).await.unwrap();
        assert_ne!(length, 0, "{came}");
        came += std::str::from_utf8(&piece[..length]).unwrap();
    }
    let mut more = [0; 1];
    let waited = tokio::time::timeout(Duration::from_millis(50), hanging.read(&mut more)).await;
    assert!(waited.is_err(), "{waited:?}");
    backend.stop().await;
    let (rest, _) = drain(hanging).await;
    assert!(rest.is_empty(), "{rest:?}");
}

#[tokio::test]
async fn slow_answers_are_whole() {
    let backend = start().await;
    let slow = backend.ask_json(&format!("{IMAGES}\r\nX-Sample-Fail: slow"), "{}").await;
    assert_eq!(slow["usage"]["images"], 1);
    backend.stop().await;
}

#[tokio::test]
async fn a_body_over_the_bound_is_refused() {
    let backend = start().await;
    let body = format!(r#"{{"prompt":"{}"}}"#, "a".repeat(1 << 20));
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
