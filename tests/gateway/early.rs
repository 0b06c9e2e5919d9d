//! What a backend may not do to a client or to the next request: answers that come early, come
//! unasked, or can be read in two ways.

use std::sync::{Arc, Mutex, mpsc};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::upstreams::{OK, begin, paid, post, read_until, route, upstream, world};
use crate::support::{Call, PATIENCE, Wild, run, until};

#[test]
fn f64_an_early_answer_reaches_its_client_and_its_connection_serves_nobody_else() {
    run(async {
        // Answers the head and reads nothing of the body, until the test is over.
        let (_over, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let backend = Wild::start(move |head, wire| {
            wire.send(OK);
            if head.contains("content-length: 900000") {
                let _ = wait.lock().unwrap().recv();
            }
            true
        });
        let world =
            world(&[upstream("early", &[backend.address], ""), route("/v1/early", "early", "")]);
        let mut stream = begin(&world, "POST /v1/early", "content-length: 900000\r\n").await;
        stream.write_all(&vec![b'x'; 100_000]).await.unwrap();
        let got = read_until(&mut stream, "\r\n\r\nok").await;
        assert!(got.starts_with("HTTP/1.1 200") && got.contains("state=captured"), "{got}");
        // Its own connection goes on with the rest, and the backend's is not used again.
        stream.write_all(&vec![b'x'; 800_000]).await.unwrap();
        let head = format!(
            "POST /v1/early HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\
             tollgate-user: alice\r\ncontent-length: 0\r\n\r\n",
            crate::support::org::STUDIO
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        read_until(&mut stream, "\r\n\r\nok").await;
        assert_eq!((backend.heads().len(), backend.connections()), (2, 2));
        paid(&world, 2).await;
    });
}

#[test]
fn f64_an_upload_that_never_ends_ends_with_its_answer() {
    run(async {
        let backend = Wild::start(|_, wire| {
            wire.send(OK);
            wire.closed();
            false
        });
        let world =
            world(&[upstream("early", &[backend.address], ""), route("/v1/early", "early", "")]);
        let chunked = "transfer-encoding: chunked\r\n";
        let mut stream = begin(&world, "POST /v1/early", chunked).await;
        stream.write_all(b"3\r\nabc\r\n").await.unwrap();
        let got = read_until(&mut stream, "\r\n\r\nok").await;
        assert!(got.contains("state=captured"), "{got}");
        until("the backend's connection is closed", || (backend.closed() == 1).then_some(())).await;
        paid(&world, 1).await;
        // Then the client's, although it never ends.
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, async {
            while stream.write_all(b"1\r\nx\r\n").await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            let _ = stream.read_to_end(&mut rest).await;
        });
        closed.await.expect("the connection stays for ever");
        assert_eq!(world.metric("tollgate_in_flight_requests", &[]), 0.0);
    });
}

#[test]
fn f64_a_connection_on_which_more_came_than_was_asked_for_serves_nobody() {
    run(async {
        let backend = Wild::start(|_, wire| {
            let evil = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
            if wire.turn == 0 { wire.send([OK, evil].concat()) } else { wire.send(evil) }
        });
        let world =
            world(&[upstream("chatty", &[backend.address], ""), route("/v1/chatty", "chatty", "")]);
        let mut client = world.client().await;
        for _ in 0..5 {
            let answer = client.send(&post("/v1/chatty")).await;
            assert_eq!(&answer.is(200).body[..], b"ok");
        }
        assert_eq!((backend.heads().len(), backend.connections()), (5, 5));
        paid(&world, 5).await;
    });
}

#[test]
fn f62_f63_a_response_that_can_be_read_in_two_ways_is_passed_to_nobody() {
    run(async {
        let head = Arc::new(Mutex::new(String::new()));
        let own = Arc::clone(&head);
        let backend = Wild::start(move |_, wire| {
            wire.send(own.lock().unwrap().as_bytes());
            false
        });
        let world = world(&[upstream("odd", &[backend.address], ""), route("/v1/odd2", "odd", "")]);
        let mut client = world.client().await;
        let chunked = "transfer-encoding: chunked";
        for fields in [
            format!("content-length: 2\r\n{chunked}"),
            "content-length: 2\r\ncontent-length: 3".to_owned(),
            "content-length: 2, 2".to_owned(),
            "content-length: +2".to_owned(),
            "transfer-encoding: gzip, chunked".to_owned(),
            format!("{chunked}\r\n{chunked}"),
            "x-a: b\rset-cookie: c=d\r\ncontent-length: 2".to_owned(),
            "x-a: b\0c\r\ncontent-length: 2".to_owned(),
            "x-a: b\r\n folded\r\ncontent-length: 2".to_owned(),
            "x a: b\r\ncontent-length: 2".to_owned(),
            ": b\r\ncontent-length: 2".to_owned(),
        ] {
            *head.lock().unwrap() = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nok");
            let answer = client.send(&post("/v1/odd2")).await;
            answer.refused(502, "upstream_failed");
            assert_eq!(answer.header("set-cookie"), None);
        }
        for status in
            ["HTTP/1.1 101 Switching Protocols", "HTTP/2.0 200 OK", "ICY 200 OK", "HTTP/1.1 20 OK"]
        {
            *head.lock().unwrap() = format!("{status}\r\ncontent-length: 2\r\n\r\nok");
            client.send(&post("/v1/odd2")).await.refused(502, "upstream_failed");
        }
        paid(&world, 0).await;
        // What is said twice alike has one meaning.
        *head.lock().unwrap() =
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok".to_owned();
        let answer = client.send(&post("/v1/odd2")).await;
        assert_eq!(answer.is(200).header("content-length"), Some("2"));
        paid(&world, 1).await;
    });
}

#[test]
fn f67_what_a_backend_says_before_its_answer_is_not_the_answer() {
    run(async {
        let backend = Wild::start(|head, wire| {
            assert!(!head.to_lowercase().contains("\r\nexpect"), "{head}");
            wire.read(3)
                && wire.send("HTTP/1.1 100 Continue\r\n\r\n")
                && wire.send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
                && wire.send(OK)
        });
        let world =
            world(&[upstream("hints", &[backend.address], ""), route("/v1/hints", "hints", "")]);
        let headers = "expect: 100-continue\r\ncontent-length: 3\r\n";
        let mut stream = begin(&world, "POST /v1/hints", headers).await;
        // The gateway's own, once the request is held.
        let got = read_until(&mut stream, "\r\n\r\n").await;
        assert!(got.starts_with("HTTP/1.1 100 "), "{got}");
        assert_eq!(world.balance("alice")["seat"]["held"], "1");
        stream.write_all(b"abc").await.unwrap();
        let got = read_until(&mut stream, "\r\n\r\nok").await;
        assert!(got.starts_with("HTTP/1.1 200") && !got.contains("link:"), "{got}");
        // Whoever is refused, or whose backend is not there, is not told to go on.
        for (path, status) in [("/v1/dead", "502"), ("/v1/unpriced", "422")] {
            let mut stream = begin(&world, &format!("POST {path}"), headers).await;
            let got = read_until(&mut stream, "\r\n\r\n").await;
            assert!(got.starts_with(&format!("HTTP/1.1 {status}")), "{got}");
        }
        paid(&world, 1).await;
    });
}

#[test]
fn f60_f68_trailers_and_fields_of_a_backend_decide_nothing() {
    run(async {
        let backend = Wild::start(|head, wire| {
            let declared = if head.contains("/v1/declared") { "trailer: x-usage\r\n" } else { "" };
            wire.send(format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n{declared}\
                 connection: x-secret\r\nx-secret: 1\r\nkeep-alive: timeout=5\r\n\
                 tollgate-receipt: state=captured, cost=\"0\"\r\ntollgate-x: 1\r\n\
                 tollgate_user: 1\r\nratelimit: \"seat\";r=1\r\nproxy-authenticate: Basic\r\n\r\n\
                 2\r\nok\r\n0\r\nx-usage: 1\r\ntollgate-receipt: cost=\"0\"\r\n\r\n"
            ))
        });
        let usage = "quantity = { const = 3 }\nusage = { header = \"x-usage\" }";
        let world = world(&[
            upstream("trailing", &[backend.address], ""),
            route("/v1/declared", "trailing", usage),
            route("/v1/undeclared", "trailing", usage),
        ]);
        for path in ["/v1/declared", "/v1/undeclared"] {
            let mut stream =
                begin(&world, &format!("POST {path}"), "te: trailers\r\ncontent-length: 0\r\n")
                    .await;
            stream.write_all(b"").await.unwrap();
            let mut got = read_until(&mut stream, "ok").await;
            stream.shutdown().await.unwrap();
            stream.read_to_string(&mut got).await.unwrap();
            for gone in ["x-usage", "x-secret", "keep-alive", "cost=\"0\"", "tollgate-x", "proxy-a"]
            {
                assert!(!got.to_lowercase().contains(gone), "{gone}: {got}");
            }
            assert!(!got.contains("tollgate_user") && !got.contains("r=1\r"), "{got}");
            assert_eq!(got.matches("tollgate-receipt").count(), 1, "{got}");
        }
        world.settled().await;
        for head in backend.heads() {
            let id = head.lines().find_map(|line| line.strip_prefix("tollgate-charge: ")).unwrap();
            let charge = world.charge(id);
            assert_eq!(charge["flags"], json!(["usage_missing"]), "{charge}");
            assert!(!head.contains("\r\nte:"), "{head}");
        }
        paid(&world, 6).await;
    });
}

#[test]
fn answers_without_a_body_end_where_they_end() {
    run(async {
        let backend = Wild::start(|head, wire| {
            let status = head.split("/v1/").nth(1).unwrap().split(' ').next().unwrap();
            if head.starts_with("HEAD") {
                return wire.send("HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n");
            }
            wire.send(format!("HTTP/1.1 {status} X\r\netag: \"a\"\r\n\r\n"))
        });
        let routes = ["/v1/204", "/v1/304"].map(|path| route(path, "bare", ""));
        let world = world(&[upstream("bare", &[backend.address], ""), routes.concat()]);
        let mut client = world.client().await;
        client.send(&post("/v1/204")).await.is(204).tells(&[("state", "captured")]);
        let answer = client.send(&post("/v1/304")).await;
        answer.is(304).tells(&[("state", "voided")]);
        assert_eq!(answer.header("etag"), Some("\"a\""));
        let answer = client.send(&Call::new("HEAD", "/v1/204").user("alice")).await;
        assert_eq!(answer.is(200).header("content-length"), Some("5000"));
        client.send(&post("/v1/204")).await.is(204);
        assert_eq!(backend.connections(), 1, "each ended where it ends");
        paid(&world, 3).await;
    });
}
