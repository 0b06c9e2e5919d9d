//! The chat, in OpenAI's shapes.

use serde_json::json;

use super::*;

const MESSAGES: &str = r#""messages":[{"role":"system","content":"be brief"},{"role":"user","content":[{"type":"text","text":"one two three"}]}]"#;

#[tokio::test]
async fn an_answer_is_as_long_as_it_may_be_and_tells_every_token() {
    let backend = start().await;
    let body = format!(r#"{{"model":"m-1","max_tokens":300,{MESSAGES}}}"#);
    let plain = backend.ask_json(CHAT, &body).await;
    assert_eq!(
        plain["usage"],
        json!({ "prompt_tokens": 5, "completion_tokens": 300, "total_tokens": 305 })
    );
    assert_eq!((&plain["object"], &plain["model"]), (&json!("chat.completion"), &json!("m-1")));
    let choice = &plain["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["message"]["role"], "assistant");
    let content = choice["message"]["content"].as_str().unwrap();
    assert_eq!(content.split_whitespace().count(), 300);

    let next = backend.ask_json(CHAT, &body).await;
    assert_ne!(next["id"], plain["id"]);
    let newer = backend.ask_json(CHAT, r#"{"max_completion_tokens":2,"n":3}"#).await;
    assert_eq!(newer["usage"]["completion_tokens"], 6);
    assert_eq!(newer["choices"].as_array().unwrap().len(), 3);
    let unbounded = backend.ask_json(CHAT, "{}").await;
    assert_eq!(unbounded["usage"]["completion_tokens"], 16);
    assert_eq!(unbounded["choices"][0]["finish_reason"], "stop");
    backend.stop().await;
}

#[tokio::test]
async fn a_header_says_how_long_the_answer_really_is() {
    let backend = start().await;
    for (asked, told, finish) in [("3", 3, "stop"), ("10", 10, "stop"), ("11", 10, "length")] {
        let head = format!("{CHAT}\r\nX-Sample-Tokens: {asked}");
        let answer = backend.ask_json(&head, r#"{"max_tokens":10}"#).await;
        assert_eq!(answer["usage"]["completion_tokens"], told, "{asked}");
        assert_eq!(answer["choices"][0]["finish_reason"], finish, "{asked}");
    }
    for body in [r#"{"max_tokens":0}"#, r#"{"max_tokens":32769}"#, r#"{"n":9}"#, r#"{"n":0}"#] {
        let (head, answer) = backend.ask(CHAT, body).await;
        assert!(head.starts_with("http/1.1 400"), "{body}: {head}");
        assert!(answer.contains(r#""type":"invalid_request_error""#), "{answer}");
    }
    for odd in ["X-Sample-Tokens: -1", "X-Sample-Tokens: 32769", "X-Sample-Pace: 60001"] {
        let (head, _) = backend.ask(&format!("{CHAT}\r\n{odd}"), "{}").await;
        assert!(head.starts_with("http/1.1 400"), "{odd}: {head}");
    }
    backend.stop().await;
}

#[tokio::test]
async fn a_stream_has_role_tokens_end_usage_and_done() {
    let backend = start().await;
    let body = r#"{"max_tokens":3,"stream":true,"stream_options":{"include_usage":true}}"#;
    let (head, body) = backend.ask(CHAT, body).await;
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    let events = events(&body);
    assert_eq!(events.len(), 7, "{body}");
    assert_eq!(events[6], "[DONE]");
    let chunks: Vec<Value> =
        events[..6].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["id"], chunks[0]["id"]);
    }
    // In every chunk but the last one it is there, and null.
    assert!(chunks[..5].iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)), "{body}");
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    for token in &chunks[1..4] {
        assert_eq!(token["choices"][0]["delta"], json!({ "content": "word " }));
        assert_eq!(token["choices"][0]["finish_reason"], Value::Null);
    }
    assert_eq!(chunks[4]["choices"][0]["delta"], json!({}));
    assert_eq!(chunks[4]["choices"][0]["finish_reason"], "length");
    assert_eq!(chunks[5]["choices"], json!([]));
    assert_eq!(chunks[5]["usage"]["completion_tokens"], 3);
    assert!(body.ends_with("0\r\n\r\n"), "the stream has a clean end");
    backend.stop().await;
}

#[tokio::test]
async fn a_stream_tells_usage_only_where_it_is_asked_to() {
    let backend = start().await;
    for options in ["", r#","stream_options":{}"#, r#","stream_options":{"include_usage":false}"#] {
        let body = format!(r#"{{"max_tokens":2,"n":2,"stream":true{options}}}"#);
        let (_, body) = backend.ask(CHAT, &body).await;
        assert!(!body.contains("usage"), "{body}");
        // Two choices with role, two tokens and end each.
        assert_eq!(events(&body).len(), 9, "{body}");
    }
    backend.stop().await;
}

#[tokio::test]
async fn events_come_at_the_pace_that_is_asked_for() {
    let backend = start().await;
    for pace in ["X-Sample-Pace: 20", "X-Sample-Fail: slow"] {
        let head = format!("{CHAT}\r\n{pace}");
        let began = Instant::now();
        let (_, body) = backend.ask(&head, r#"{"max_tokens":2,"stream":true}"#).await;
        assert_eq!(events(&body).len(), 5);
        assert!(began.elapsed() >= Duration::from_millis(5 * 20), "{pace}");
    }
    backend.stop().await;
}
