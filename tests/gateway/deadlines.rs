//! Clients that are slow, many, or never done: each wait has an end, and every place is bounded.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::org::OWN;
use crate::support::peer::head;
use crate::support::{Access, Call, Org, PATIENCE, Peer, Script, Setup, World, run, until};

fn org() -> Org {
    Org::new().user("alice", "100", Access::None)
}

fn world(gateway: &str) -> World {
    World::with(Setup { gateway: gateway.to_owned(), ..Setup::default() }, &org())
}

fn image() -> Call {
    Call::post("/v1/images", "{}").user("alice")
}

const POST: &str = "POST /v1/images HTTP/1.1";

#[test]
fn f72_a_head_that_does_not_come_in_time_is_refused() {
    run(async {
        let world = world("header_timeout = \"400ms\"");
        let mut slow = Peer::connect(world.gateway()).await;
        slow.send("GET /v1/models HTTP/1.1\r\nhost: a\r\nx: ").await;
        let answer = slow.answer().await;
        answer.refused(408, "request_timeout");
        assert_eq!(answer.header("connection"), Some("close"));
        slow.ends().await;
        // A byte now and then does not help.
        let (mut from, mut to) =
            tokio::net::TcpStream::connect(world.gateway()).await.unwrap().into_split();
        let trickle = async {
            while to.write_all(b"x").await.is_ok() {
                tokio::task::yield_now().await;
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let read = async {
            let mut answer = String::new();
            let _ = from.read_to_string(&mut answer).await;
            answer
        };
        tokio::select! {
            () = trickle => {}
            answer = read => assert!(answer.starts_with("HTTP/1.1 408 "), "{answer:?}"),
        }
        // Who says nothing is told nothing.
        let mut silent = Peer::connect(world.gateway()).await;
        silent.ends().await;
        assert_eq!(world.metric("tollgate_refusals_total", &["request_timeout"]), 2.0);
        assert_eq!(world.backend.count(), 0);
    });
}

#[test]
fn f72_a_connection_without_a_request_is_closed() {
    run(async {
        let world = world("idle_timeout = \"400ms\"");
        let mut peer = Peer::connect(world.gateway()).await;
        for _ in 0..3 {
            peer.send(head("GET /v1/models HTTP/1.1", "")).await;
            assert_eq!(peer.answer().await.status, 200);
        }
        peer.ends().await;
        assert_eq!(world.metric("tollgate_refusals_total", &["request_timeout"]), 0.0);
    });
}

#[test]
fn f72_a_body_that_does_not_come_in_time_is_refused_and_costs_nothing() {
    run(async {
        let world = world("body_timeout = \"400ms\"");
        for (path, more) in [
            ("/v1/images", "content-length: 20\r\n"),
            ("/v1/images", "transfer-encoding: chunked\r\n"),
            ("/v1/images", "expect: 100-continue\r\ncontent-length: 20\r\n"),
        ] {
            let mut peer = Peer::connect(world.gateway()).await;
            let body = if more.contains("expect") { "" } else { "2\r\n{" };
            peer.send(head(&format!("POST {path} HTTP/1.1"), more) + body).await;
            if more.contains("expect") {
                assert_eq!(peer.answer().await.status, 100);
            }
            let answer = peer.answer().await;
            answer.refused(408, "request_timeout");
            assert_eq!(answer.header("connection"), Some("close"));
            peer.ends().await;
        }
        assert_eq!(world.backend.count(), 0);
        // What passes through while it comes was begun at the backend, and is voided.
        let mut peer = Peer::connect(world.gateway()).await;
        peer.send(head("POST /v1/streamed HTTP/1.1", "content-length: 20\r\n") + "{").await;
        peer.answer().await.refused(408, "request_timeout");
        peer.ends().await;
        world.settled().await;
        assert!(
            world.backend.seen().iter().all(|seen| seen.abandoned),
            "{:?}",
            world.backend.seen()
        );
        world.seat("alice", "0", "100", "0");
        assert_eq!(world.metric("tollgate_refusals_total", &["request_timeout"]), 4.0);
        // It is counted as what its client was told, and not as a failure of the backend.
        let counted = |class: &str| {
            let class = format!("status_class=\"{class}\"");
            world.metric("tollgate_requests_total", &["outcome=\"voided\"", &class])
        };
        assert_eq!((counted("4xx"), counted("5xx")), (1.0, 0.0));
        // The same where nothing is charged.
        let mut peer = Peer::connect(world.gateway()).await;
        peer.send(head("POST /v1/models HTTP/1.1", "content-length: 20\r\n") + "{").await;
        peer.answer().await.refused(408, "request_timeout");
        peer.ends().await;
    });
}

#[test]
fn f72_a_client_that_does_not_read_its_answer_is_left() {
    run(async {
        let world = world("write_timeout = \"400ms\"");
        let long = Script { pad: 48 << 20, ..Script::default() };
        let script = serde_json::to_string(&long).unwrap();
        let mut peer = Peer::connect(world.gateway()).await;
        let request = head("GET /v1/models HTTP/1.1", &format!("x-script: {script}\r\n"));
        peer.send(request).await;
        let in_flight = || world.metric("tollgate_in_flight_requests", &[]);
        until("it is in flight", || (in_flight() == 1.0).then_some(())).await;
        until("it is left", || (in_flight() == 0.0).then_some(())).await;
        let mut rest = Vec::new();
        let _ = peer.stream.read_to_end(&mut rest).await;
        assert!(rest.len() < 48 << 20, "{}", rest.len());
        // Who reads gets all of it, however long it is.
        let answer = world.send(&Call::get("/v1/models").key(OWN).script(&long)).await;
        assert_eq!(answer.is(200).body.len(), 11 + (48 << 20));
    });
}

#[test]
fn f72_a_client_is_not_late_while_the_backend_is() {
    run(async {
        let all = "header_timeout = \"300ms\"\nbody_timeout = \"300ms\"\nidle_timeout = \"300ms\"\n\
                   write_timeout = \"300ms\"";
        let world = world(all);
        let call = image().script(&Script::gate("go"));
        let streamed = Call::post("/v1/streamed", "x".repeat(100)).user("alice");
        let streamed = streamed.script(&Script {
            half: Some("go".to_owned()),
            chunked: true,
            ..Script::default()
        });
        let meanwhile = async {
            until("both wait", || (world.backend.count() == 2).then_some(())).await;
            // Each of these ends by a deadline that began after both were under way.
            for _ in 0..3 {
                let mut idle = Peer::connect(world.gateway()).await;
                idle.send(head("GET /v1/models HTTP/1.1", "")).await;
                assert_eq!(idle.answer().await.status, 200);
                idle.ends().await;
            }
            world.backend.open("go");
        };
        let (first, second, ()) = tokio::join!(world.send(&call), world.send(&streamed), meanwhile);
        first.is(200);
        second.is(200);
    });
}

#[test]
fn f67_what_can_be_decided_is_decided_before_a_body_is_asked_for() {
    run(async {
        let world = World::new(&org().user("erin", "0.5", Access::None));
        let asks = "expect: 100-continue\r\ncontent-length: 2\r\n";
        let studio = |line: &str, user: &str, more: &str| {
            let key = crate::support::org::STUDIO;
            format!(
                "{line}\r\nhost: a\r\nauthorization: Bearer {key}\r\ntollgate-user: {user}\r\n{more}\r\n"
            )
        };
        for (request, status, code) in [
            (studio(POST, "nobody", asks), 403, "unknown_user"),
            (studio("POST /nowhere HTTP/1.1", "alice", asks), 404, "unknown_route"),
            (studio("POST /v1/streamed HTTP/1.1", "erin", asks), 402, "seat_exhausted"),
            (
                studio(POST, "alice", "expect: 100-continue\r\ncontent-length: 9999999\r\n"),
                413,
                "body_too_large",
            ),
        ] {
            let mut peer = Peer::connect(world.gateway()).await;
            peer.send(request).await;
            peer.answer().await.refused(status, code);
        }
        assert_eq!(world.backend.count(), 0);
        // Where the body decides nothing, the hold is there when it is asked for.
        let mut peer = Peer::connect(world.gateway()).await;
        peer.send(studio("POST /v1/streamed HTTP/1.1", "alice", asks)).await;
        assert_eq!(peer.answer().await.status, 100);
        assert_eq!(world.metric("tollgate_holds_open", &[]), 1.0);
        peer.send("{}").await;
        assert_eq!(peer.answer().await.status, 200);
        assert_eq!(world.backend.last().header("expect"), None);
        assert_eq!(world.backend.last().body, b"{}");
        // An old client never sees an interim answer (RFC 9110, 10.1.1).
        let mut peer = Peer::connect(world.gateway()).await;
        peer.send(head("POST /v1/images HTTP/1.0", asks) + "{}").await;
        assert_eq!(peer.answer().await.status, 200);
    });
}

#[test]
fn f71_bodies_that_are_held_have_a_bound_over_all_requests() {
    run(async {
        let limits = "[limits]\nmax_buffered = \"1MiB\"".to_owned();
        let world = World::with(Setup { limits, ..Setup::default() }, &org());
        let asks = |length: usize| {
            head(POST, &format!("expect: 100-continue\r\ncontent-length: {length}\r\n"))
        };
        let mut first = Peer::connect(world.gateway()).await;
        first.send(asks(1_048_575)).await;
        assert_eq!(
            first.answer().await.status,
            100,
            "its body is awaited, so there is room for it"
        );
        for more in ["content-length: 100000\r\n", "transfer-encoding: chunked\r\n"] {
            let mut second = Peer::connect(world.gateway()).await;
            second.send(head(POST, more)).await;
            let answer = second.answer().await;
            answer.refused(429, "too_many_in_flight");
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
        // Small ones have room always, also where there is none.
        world.send(&image()).await.is(200);
        first.send(format!("{{}}{}", " ".repeat(1_048_573))).await;
        assert_eq!(first.answer().await.status, 200);
        assert_eq!(world.backend.last().body.len(), 1_048_575);
        world
            .send(&Call::post("/v1/images", " ".repeat(1_000_000) + "{}").user("alice"))
            .await
            .is(200);
        world.seat("alice", "3", "97", "0");
    });
}

#[test]
fn f72_connections_have_a_bound_and_who_is_one_too_many_is_told() {
    run(async {
        let limits = "[limits]\nmax_connections = 2".to_owned();
        let world = World::with(Setup { limits, ..Setup::default() }, &org());
        let request = head("GET /v1/models HTTP/1.1", "");
        let mut first = Peer::connect(world.gateway()).await;
        let mut second = Peer::connect(world.gateway()).await;
        for peer in [&mut first, &mut second] {
            peer.send(&request).await;
            assert_eq!(peer.answer().await.status, 200);
        }
        let mut third = Peer::connect(world.gateway()).await;
        let answer = third.answer().await;
        answer.refused(429, "too_many_in_flight");
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert_eq!(answer.header("connection"), Some("close"));
        third.ends().await;
        drop(second);
        let freed = async {
            loop {
                let mut next = Peer::connect(world.gateway()).await;
                next.send(&request).await;
                if next.answer().await.status == 200 {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, freed).await.expect("its place stays taken");
        first.send(&request).await;
        assert_eq!(first.answer().await.status, 200);
    });
}

#[test]
fn f72_a_process_without_a_free_file_rests_and_goes_on() {
    run(async {
        let world = World::with(Setup { open_files: Some(128), ..Setup::default() }, &org());
        let request = head("GET /v1/models HTTP/1.1", "");
        let mut peers = Vec::new();
        for _ in 0..160 {
            peers.push(Peer::connect(world.gateway()).await);
        }
        let full = || world.log().iter().any(|line| line.contains("no connection can be accepted"));
        until("no file is left", || full().then_some(())).await;
        drop(peers);
        let mut peer = Peer::connect(world.gateway()).await;
        peer.send(&request).await;
        assert_eq!(peer.answer().await.status, 200);
        world.send(&image()).await.is(200);
    });
}

/// Whoever says nothing, or only half of it, has a connection to administrators' and operators'
/// listeners no longer than one to the gateway.
#[test]
fn f72_the_control_listeners_wait_for_nobody_for_ever() {
    run(async {
        let world = world("header_timeout = \"400ms\"\nwrite_timeout = \"400ms\"");
        for address in [world.admin_address(), world.ops_address()] {
            let mut silent = Peer::connect(address).await;
            let mut half = Peer::connect(address).await;
            half.send("GET /livez HTTP/1.1\r\nhost: a\r\nx: ").await;
            let mut idle = Peer::connect(address).await;
            idle.send("GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await;
            idle.answer().await;
            let (mut from, mut to) =
                tokio::net::TcpStream::connect(address).await.unwrap().into_split();
            let trickle = async {
                while to.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            };
            let read = async { from.read_to_end(&mut Vec::new()).await };
            tokio::select! {
                () = trickle => {}
                _ = read => {}
            }
            for peer in [&mut silent, &mut half, &mut idle] {
                peer.ends().await;
            }
            // Nor does it answer for ever who does not read. Answers are many and cheap: how long it
            // takes until no more of them fit must not depend on the books.
            let deaf = tokio::net::TcpSocket::new_v4().unwrap();
            deaf.set_recv_buffer_size(4096).unwrap();
            let deaf = deaf.connect(address).await.unwrap();
            let requests = "GET /livez HTTP/1.1\r\nhost: a\r\n\r\n".repeat(1000);
            until("who does not read is left", || match deaf.try_write(requests.as_bytes()) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
                written => written.err(),
            })
            .await;
        }
        assert_eq!(world.ops("/livez").0, 200);
        assert_eq!(world.admin("/v1/orgs/acme/pool").0, 200);
    });
}

#[test]
fn f72_a_control_listener_has_a_bound_on_connections() {
    run(async {
        let world = world("header_timeout = \"10m\"");
        let (mut peers, begun) = (Vec::new(), "GET /v1/orgs HTTP/1.1\r\nhost: a\r\n");
        for _ in 0..256 {
            let mut peer = Peer::connect(world.admin_address()).await;
            peer.send(begun).await;
            peers.push(peer);
        }
        for _ in 0..20 {
            Peer::connect(world.admin_address()).await.ends().await;
        }
        // The other listener has its own, and those who are there are served.
        assert_eq!(world.ops("/livez").0, 200);
        let mut last = peers.pop().unwrap();
        last.send("\r\n").await;
        assert_eq!(last.answer().await.status, 401);
        drop(last);
        loop {
            let mut next = Peer::connect(world.admin_address()).await;
            next.send(format!("{begun}\r\n")).await;
            if next.try_answer().await.is_some() {
                break;
            }
        }
    });
}
