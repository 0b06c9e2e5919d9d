//! What reached the backend can be asked for, and is bounded.

use http::Request;
use serde_json::json;

use super::*;

#[tokio::test]
async fn stats_count_paths_charges_and_failures_but_not_themselves() {
    let backend = start().await;
    let free = "GET /v1/models HTTP/1.1";
    assert_eq!(backend.ask_json(free, "").await["data"][0]["id"], "sample");
    backend.ask_json("GET /healthz HTTP/1.1", "").await;
    backend.ask(&format!("{IMAGES}\r\nTollgate-Charge: c1"), "{}").await;
    backend.ask(&format!("{IMAGES}\r\nTollgate-Charge: c2\r\nX-Sample-Fail: 500"), "{}").await;
    for invented in ["/a", "/b", "/v1/videos/", "/v1/videos/a/b"] {
        let (head, _) = backend.ask(&format!("GET {invented} HTTP/1.1"), "").await;
        assert!(head.starts_with("http/1.1 404"), "{head}");
    }
    for (wrong, allowed) in [
        ("GET /v1/videos", "post"),
        ("PUT /v1/videos/a", "get, delete"),
        ("GET /v1/videos/a/cancel", "post"),
    ] {
        let (head, _) = backend.ask(&format!("{wrong} HTTP/1.1"), "").await;
        assert!(head.starts_with("http/1.1 405"), "{head}");
        assert!(head.contains(&format!("allow: {allowed}")), "{head}");
    }
    let expected = json!({
        "requests": {
            "/v1/images/generate": 2, "/v1/images/generations": 0, "/v1/chat/completions": 0,
            "/v1/videos": 1, "/v1/videos/{id}": 1, "/v1/videos/{id}/cancel": 1, "/v1/uploads": 0,
            "/v1/models": 1, "/healthz": 1, "other": 4,
        },
        "charges": 2,
        "failures": 1,
        "abandoned": 0,
        "jobs": {
            "made": 0, "succeeded": 0, "failed": 0, "cancelled": 0, "lost": 0, "forgotten": 0,
        },
        "reports": { "taken": 0, "lost": 0 },
    });
    assert_eq!(backend.seen("stats").await, expected);
    assert_eq!(backend.seen("stats").await, expected);
    let (head, _) = backend.ask("GET /sample/nothing HTTP/1.1", "").await;
    assert!(head.starts_with("http/1.1 404"), "{head}");
    backend.stop().await;
}

#[tokio::test]
async fn requests_are_told_with_what_they_were_forwarded_under_and_no_credential() {
    let backend = start().await;
    let kept = "Tollgate-Org: acme\r\nTollgate-Charge: c1\r\nIdempotency-Key: k";
    backend.ask(&format!("{IMAGES}\r\n{kept}\r\nAuthorization: Bearer canary"), "{\"n\":3}").await;
    backend.ask(&format!("{CHAT}\r\nTollgate-Charge: c1\r\nX-Sample-Fail: 503"), "{}").await;
    let reset = backend.send(&format!("{VIDEOS}\r\nX-Sample-Fail: reset"), "{}").await;
    assert!(drain(reset).await.1.is_err());

    let all = backend.seen("requests").await;
    assert_eq!(all["total"], 3);
    let items = all["items"].as_array().unwrap();
    let told = |at: usize| {
        let of = |name: &str| items[at][name].clone();
        json!([of("method"), of("path"), of("charge"), of("bytes"), of("status")])
    };
    assert_eq!(told(0), json!(["POST", "/v1/images/generate", "c1", 7, 200]));
    assert_eq!(told(1), json!(["POST", "/v1/chat/completions", "c1", 2, 503]));
    assert_eq!(told(2), json!(["POST", "/v1/videos", null, 2, null]));
    let headers = &items[0]["headers"];
    assert_eq!(
        (&headers["tollgate-org"], &headers["idempotency-key"]),
        (&"acme".into(), &"k".into())
    );
    assert!(!all.to_string().contains("canary"), "{all}");

    let count = |found: &Value| found["items"].as_array().unwrap().len();
    for (query, found) in
        [("?last=2", 2), ("?charge=c1", 2), ("?charge=c", 0), ("?path=/v1/videos&last=9", 1)]
    {
        assert_eq!(count(&backend.seen(&format!("requests{query}")).await), found, "{query}");
    }
    let twice = backend.seen("charges?min=2").await;
    assert_eq!(twice, json!({ "known": 1, "uncounted": 0, "matching": 1, "items": { "c1": 2 } }));
    assert_eq!(backend.seen("charges?min=3").await["matching"], 0);
    assert_eq!(backend.seen("charges?charge=c1").await["items"]["c1"], 2);
    assert_eq!(backend.seen("charges?charge=c").await["items"], json!({}));
    backend.stop().await;
}

#[tokio::test]
async fn clients_that_leave_are_counted_and_those_that_stay_are_not() {
    let backend = start().await;
    backend.ask_json(IMAGES, "{}").await;
    backend.ask(CHAT, r#"{"stream":true}"#).await;
    backend.ask(&format!("{CHAT}\r\nX-Sample-Fail: truncate"), r#"{"stream":true}"#).await;
    backend.ask("HEAD /healthz HTTP/1.1", "").await;
    backend.counted("/abandoned", 0).await;
    let hanging = backend.send(&format!("{IMAGES}\r\nX-Sample-Fail: hang"), "{}").await;
    backend.counted("/failures", 2).await;
    drop(hanging);
    backend.counted("/abandoned", 1).await;
    let head = format!("{CHAT}\r\nX-Sample-Pace: 1000");
    let streaming = backend.send(&head, r#"{"stream":true}"#).await;
    backend.counted("/requests/~1v1~1chat~1completions", 3).await;
    drop(streaming);
    backend.counted("/abandoned", 2).await;
    backend.stop().await;
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut seen = Seen::default();
    let long = "a".repeat(5000);
    for number in 0..1026 {
        let request = Request::post(format!("http://a/{long}"))
            .header("tollgate-charge", format!("c{number}-{long}"))
            .header("idempotency-key", &long)
            .body(())
            .unwrap();
        assert_eq!(seen.note(&request.into_parts().0), number + 1);
    }
    seen.note_status(1, 200);
    seen.note_status(1026, 201);
    let all = seen.requests("last=9999");
    let items = all["items"].as_array().unwrap();
    assert_eq!((&all["total"], items.len()), (&1026.into(), 1024));
    assert_eq!((&items[0]["number"], &items[0]["status"]), (&3.into(), &Value::Null));
    assert_eq!(items[1023]["status"], 201);
    for text in [&items[0]["path"], &items[0]["charge"], &items[0]["headers"]["idempotency-key"]] {
        assert_eq!(text.as_str().unwrap().len(), 256);
    }
    let charges = seen.charges("");
    assert_eq!((&charges["known"], &charges["matching"]), (&1026.into(), &1026.into()));
    assert_eq!(charges["items"].as_object().unwrap().len(), 1000);
}
