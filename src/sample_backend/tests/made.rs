//! Images and uploads, and what usage they tell.

use super::*;

#[tokio::test]
async fn images_tell_as_many_as_were_asked_for_in_body_and_header() {
    let backend = start().await;
    for path in [IMAGES, "POST /v1/images/generations HTTP/1.1"] {
        let (head, body) = backend.ask(path, r#"{"n":2,"size":"512x512","prompt":"a"}"#).await;
        assert!(head.contains("\r\nx-usage: 2"), "{head}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&body["usage"]["images"], &body["size"]), (&2.into(), &"512x512".into()));
        assert_eq!(body["data"].as_array().unwrap().len(), 2);
        assert!(body["data"][1]["url"].as_str().unwrap().starts_with("data:image/png;base64,"));
        for refused in [r#"{"n":0}"#, r#"{"n":17}"#, r#"{"n":-1}"#, "[", ""] {
            let (head, _) = backend.ask(path, refused).await;
            assert!(head.starts_with("http/1.1 400"), "{refused}: {head}");
        }
    }
    backend.stop().await;
}

#[tokio::test]
async fn usage_is_what_the_header_says_or_is_not_told() {
    let backend = start().await;
    for told in ["9", "-1", "0.5", "1e400", "null", "\"7\""] {
        let (head, body) = backend.ask(&format!("{IMAGES}\r\nX-Sample-Usage: {told}"), "{}").await;
        assert!(body.contains(&format!(r#""usage":{{"images":{told}}}"#)), "{told}: {body}");
        assert!(head.contains(&format!("\r\nx-usage: {told}")), "{told}: {head}");
    }
    let all = r#"{"images":1,"images":2}"#;
    let (_, body) = backend.ask(&format!("{IMAGES}\r\nX-Sample-Usage: {all}"), "{}").await;
    assert!(body.contains(&format!(r#""usage":{all}"#)), "{body}");

    let stream = r#"{"stream":true,"stream_options":{"include_usage":true}}"#;
    let (_, body) = backend.ask(&format!("{CHAT}\r\nX-Sample-Usage: 5"), stream).await;
    assert!(body.contains(r#""completion_tokens":5,"total_tokens":5}"#), "{body}");

    for (fail, told) in [("bad-usage", "\"many\""), ("negative-usage", "-1")] {
        let (_, body) = backend.ask(&format!("{UPLOADS}\r\nX-Sample-Fail: {fail}"), "abc").await;
        assert!(body.contains(&format!(r#""usage":{{"bytes":{told}}}"#)), "{body}");
    }
    let (head, body) = backend.ask(&format!("{IMAGES}\r\nX-Sample-Fail: no-usage"), "{}").await;
    assert!(!body.contains("usage") && !head.contains("x-usage"), "{head} {body}");
    let (_, body) = backend.ask(&format!("{CHAT}\r\nX-Sample-Fail: no-usage"), stream).await;
    assert!(!body.contains("_tokens") && body.contains("[DONE]"), "{body}");
    let (head, _) = backend.ask(&format!("{IMAGES}\r\nX-Sample-Usage: many"), "{}").await;
    assert!(head.starts_with("http/1.1 400"), "{head}");
    backend.stop().await;
}

#[tokio::test]
async fn an_upload_is_as_long_as_its_body_however_it_comes() {
    let backend = start().await;
    // Longer than what other endpoints take.
    let body = "a".repeat(3 << 20);
    let answer = backend.ask_json(UPLOADS, &body).await;
    assert_eq!(
        (&answer["bytes"], &answer["usage"]["bytes"]),
        (&(3 << 20).into(), &(3 << 20).into())
    );
    let empty = backend.ask_json(UPLOADS, "").await;
    assert_eq!(empty["bytes"], 0);

    let mut stream = TcpStream::connect(backend.addr).await.unwrap();
    let head = "Host: sample\r\nConnection: close\r\nTransfer-Encoding: chunked";
    let chunked = format!("{UPLOADS}\r\n{head}\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    stream.write_all(chunked.as_bytes()).await.unwrap();
    let (answer, _) = drain(stream).await;
    assert!(String::from_utf8(answer).unwrap().contains(r#""bytes":5"#));
    backend.stop().await;
}

#[tokio::test]
async fn of_a_form_the_files_count() {
    let backend = start().await;
    let head = format!("{UPLOADS}\r\nContent-Type: multipart/form-data; boundary=\"x-y\"");
    let form = "--x-y\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n\
                --x-y\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.bin\"\r\n\
                Content-Type: application/octet-stream\r\n\r\n12\r\n--x\r\n34\r\n\
                --x-y\r\nContent-Disposition: form-data; name=\"file\"; filename=\"b\"\r\n\r\n\r\n\
                --x-y--\r\n";
    let answer = backend.ask_json(&head, form).await;
    assert_eq!(answer["bytes"], 11, "{answer}");
    let parts = answer["parts"].as_array().unwrap();
    assert_eq!(parts.len(), 3);
    assert_eq!((&parts[0]["name"], &parts[0]["bytes"]), (&"purpose".into(), &9.into()));
    assert_eq!((&parts[1]["filename"], &parts[2]["bytes"]), (&"a.bin".into(), &0.into()));

    let part = "--x-y\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nb\r\n";
    for odd in ["", "--x-y", "--x-y\r\n\r\nb", "--x-z--", part, &(part.repeat(101) + "--x-y--")] {
        let (status, _) = backend.ask(&head, odd).await;
        assert!(status.starts_with("http/1.1 400"), "{odd}: {status}");
    }
    let bare = format!("{UPLOADS}\r\nContent-Type: multipart/form-data");
    let (status, _) = backend.ask(&bare, form).await;
    assert!(status.starts_with("http/1.1 400"), "{status}");
    backend.stop().await;
}
