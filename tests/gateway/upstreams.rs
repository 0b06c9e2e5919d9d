//! Backends over sockets: several addresses, health, deadlines, and what is sent again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::wild::Wire;
use crate::support::{Access, Call, Client, Org, PATIENCE, Setup, Wild, World, burst, run, until};

/// Nobody listens there.
const DEAD: &str = "127.0.0.1:2";
pub const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// `[[upstream]]` with these addresses.
pub fn upstream(name: &str, addresses: &[SocketAddr], more: &str) -> String {
    let urls: Vec<String> = addresses.iter().map(|at| format!("\"http://{at}\"")).collect();
    format!("[[upstream]]\nname = \"{name}\"\nurls = [{}]\n{more}\n", urls.join(", "))
}

/// `[[route]]` of one credit a request, any method.
pub fn route(path: &str, upstream: &str, more: &str) -> String {
    format!(
        "[[route]]\npath = \"{path}\"\nupstream = \"{upstream}\"\nfeature = \"image\"\n{more}\n"
    )
}

/// A gateway with these sections more, and alice with 1,000 credits.
pub fn world(sections: &[String]) -> World {
    let setup = Setup { limits: sections.concat(), ..Setup::default() };
    World::with(setup, &Org::new().user("alice", "1000", Access::None))
}

pub fn post(path: &str) -> Call {
    Call::post(path, "").user("alice")
}

/// Checks what alice has paid when no hold is open any more.
pub async fn paid(world: &World, credits: u32) {
    world.settled().await;
    world.seat("alice", &credits.to_string(), &(1000 - credits).to_string(), "0");
    world.verify();
}

/// A raw connection on which a request was begun.
pub async fn begin(world: &World, line: &str, headers: &str) -> TcpStream {
    let mut stream = TcpStream::connect(world.gateway()).await.unwrap();
    let head = format!(
        "{line} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\ntollgate-user: alice\r\n\
         {headers}\r\n",
        crate::support::org::STUDIO
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// Reads until the text has come.
pub async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut got = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&got).contains(text) {
            let count = stream.read_buf(&mut got).await.unwrap();
            assert_ne!(count, 0, "closed early: {}", String::from_utf8_lossy(&got));
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("it never came");
    String::from_utf8_lossy(&got).into_owned()
}

fn charges(heads: &[String]) -> Vec<String> {
    let of = |head: &String| {
        let line = head.lines().find(|line| line.starts_with("tollgate-charge: "));
        line.expect("forwarded without a charge").to_owned()
    };
    heads.iter().map(of).collect()
}

fn ok(_: &str, wire: &mut Wire) -> bool {
    wire.send(OK)
}

#[test]
fn requests_are_spread_over_all_addresses() {
    run(async {
        let backends = [Wild::start(ok), Wild::start(ok), Wild::start(ok)];
        let addresses = backends.each_ref().map(|backend| backend.address);
        let world = world(&[upstream("three", &addresses, ""), route("/v1/three", "three", "")]);
        let mut client = world.client().await;
        for _ in 0..30 {
            client.send(&post("/v1/three")).await.is(200);
        }
        for backend in &backends {
            assert_eq!((backend.heads().len(), backend.connections()), (10, 1));
        }
        paid(&world, 30).await;
    });
}

#[test]
fn f16_a_request_that_finds_no_connection_goes_to_another_address_under_one_hold() {
    run(async {
        let live = Wild::start(ok);
        let addresses = [DEAD.parse().unwrap(), live.address];
        let world = world(&[upstream("half", &addresses, ""), route("/v1/half", "half", "")]);
        let mut client = world.client().await;
        for _ in 0..20 {
            client.send(&post("/v1/half")).await.is(200).tells(&[("state", "captured")]);
        }
        let mut charges = charges(&live.heads());
        charges.sort_unstable();
        charges.dedup();
        assert_eq!(charges.len(), 20, "each was sent once, under a charge of its own");
        assert_eq!(world.metric("tollgate_upstream_healthy", &["\"half\""]), 1.0);
        paid(&world, 20).await;
    });
}

#[test]
fn d32_f10_without_an_address_in_use_a_request_is_502_and_free_and_the_metric_says_so() {
    run(async {
        let works = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&works);
        let shaky = Wild::start(move |_, wire| {
            let status = if flag.load(Ordering::Acquire) { "200 OK" } else { "503 Busy" };
            wire.send(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n"))
        });
        let world = world(&[
            upstream("none", &[DEAD.parse().unwrap(), "127.0.0.1:3".parse().unwrap()], ""),
            route("/v1/none", "none", ""),
            upstream("shaky", &[shaky.address], ""),
            route("/v1/shaky", "shaky", ""),
        ]);
        let mut client = world.client().await;
        let healthy = |name: &str| world.metric("tollgate_upstream_healthy", &[name]);
        assert_eq!((healthy("\"none\""), healthy("\"shaky\"")), (1.0, 1.0));
        for _ in 0..6 {
            client.send(&post("/v1/none")).await.refused(502, "upstream_unreachable");
            client.send(&post("/v1/shaky")).await.is(503).tells(&[("state", "voided")]);
        }
        assert_eq!((healthy("\"none\""), healthy("\"media\"")), (0.0, 1.0));
        // The only address is tried all the same, and its first answer brings it back.
        works.store(true, Ordering::Release);
        client.send(&post("/v1/shaky")).await.is(200);
        assert_eq!(healthy("\"shaky\""), 1.0);
        assert_eq!(shaky.heads().len(), 7);
        paid(&world, 1).await;
    });
}

#[test]
fn an_address_that_fails_in_a_row_is_left_alone_until_a_probe_succeeds() {
    run(async {
        let works = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&works);
        let shaky = Wild::start(move |_, wire| {
            let status = if flag.load(Ordering::Acquire) { "200 OK" } else { "500 No" };
            wire.send(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n"))
        });
        let steady = Wild::start(ok);
        let addresses = [shaky.address, steady.address];
        let free = "[[route]]\npath = \"/v1/two\"\nupstream = \"two\"\nfree = true\n";
        let world = world(&[upstream("two", &addresses, ""), free.to_owned()]);
        let mut client = world.client().await;
        let began = Instant::now();
        let mut failed = 0;
        for _ in 0..60 {
            failed += u64::from(client.send(&post("/v1/two")).await.status == 500);
        }
        let probes = began.elapsed().as_secs() + 1;
        assert!((5..=5 + probes).contains(&failed), "{failed} failed, {probes} probes");
        works.store(true, Ordering::Release);
        let before = shaky.heads().len();
        while shaky.heads().len() < before + 5 {
            client.send(&post("/v1/two")).await.is(200);
            assert!(began.elapsed() < PATIENCE, "it never comes back");
        }
        world.settled().await;
        world.verify();
    });
}

#[test]
fn health_is_asked_for_only_where_it_is_configured_and_decides_who_is_asked() {
    run(async {
        let well = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&well);
        let checked = Wild::start(move |head, wire| {
            let fails = head.starts_with("GET /healthz") && !flag.load(Ordering::Acquire);
            let status = if fails { "503 Draining" } else { "200 OK" };
            wire.send(format!(
                "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            ));
            false
        });
        let steady = Wild::start(ok);
        let health = "health = { path = \"/healthz\", interval = \"1s\" }";
        let world = world(&[
            upstream("one", &[checked.address], health),
            upstream("two", &[checked.address, steady.address], health),
            route("/v1/two", "two", ""),
        ]);
        let healthy = |wanted: f64| {
            (world.metric("tollgate_upstream_healthy", &["\"one\""]) == wanted).then_some(())
        };
        until("its check fails", || healthy(0.0)).await;
        for name in ["upstream=one", "upstream=two"] {
            world.logged(&["check failed", name, &checked.address.to_string()]).await;
        }
        let mut client = world.client().await;
        for _ in 0..20 {
            client.send(&post("/v1/two")).await.is(200);
        }
        let asked =
            |backend: &Wild| backend.heads().iter().filter(|head| head.starts_with("POST")).count();
        assert_eq!((asked(&checked), asked(&steady)), (0, 20));
        well.store(true, Ordering::Release);
        until("its check passes", || healthy(1.0)).await;
        while asked(&checked) == 0 {
            client.send(&post("/v1/two")).await.is(200);
        }
        let checks = checked.heads();
        let check = checks.iter().find(|head| head.starts_with("GET")).unwrap();
        assert!(!check.to_lowercase().contains("authorization"), "{check}");
        // Nobody asked the backends that have no check.
        assert!(world.backend.seen().is_empty());
        world.settled().await;
        world.verify();
    });
}

#[test]
fn f16_only_a_safe_request_is_sent_again_when_its_connection_turns_out_closed() {
    run(async {
        // The second request of a connection finds it closed by the backend.
        let backend = Wild::start(|_, wire| wire.turn == 0 && wire.send(OK));
        let world =
            world(&[upstream("brief", &[backend.address], ""), route("/v1/brief", "brief", "")]);
        let mut client = world.client().await;
        client.send(&post("/v1/brief")).await.is(200);
        // It may have been processed, and is not safe to process twice.
        client.send(&post("/v1/brief")).await.refused(502, "upstream_failed");
        assert_eq!(backend.heads().len(), 2, "what was sent is never sent again");
        client.send(&post("/v1/brief")).await.is(200);
        let call = Call::get("/v1/brief").user("alice");
        client.send(&call).await.is(200).tells(&[("state", "captured"), ("cost", "1")]);
        let seen = charges(&backend.heads());
        assert_eq!(seen.len(), 5);
        assert_eq!(seen[3], seen[4], "twice sent, one hold");
        paid(&world, 3).await;
        // Nor is one that was sent and whose answer did not come in time.
        let late = Wild::start(|_, wire| {
            if wire.turn == 0 {
                return wire.send(OK);
            }
            wire.closed();
            false
        });
        world.edit(|text| {
            text + &upstream("late", &[late.address], "response_timeout = \"300ms\"")
                + &route("/v1/late", "late", "")
        });
        world.signal("HUP");
        world.logged(&["read again", "upstream"]).await;
        let slow = Call::get("/v1/late").user("alice");
        client.send(&slow).await.is(200);
        client.send(&slow).await.refused(504, "upstream_timeout");
        assert_eq!(late.heads().len(), 2);
        // One that finds no answer on a new connection is not sent again at all.
        let mute = Wild::start(|_, _| false);
        world.edit(|text| {
            text + &upstream("mute", &[mute.address], "") + &route("/v1/mute", "mute", "")
        });
        world.signal("HUP");
        let read = || world.log().iter().filter(|line| line.contains("read again")).count();
        until("both are there", || (read() == 2).then_some(())).await;
        let unanswered = Call::get("/v1/mute").user("alice");
        client.send(&unanswered).await.refused(502, "upstream_failed");
        assert_eq!(mute.heads().len(), 1);
        // A request that breaks a new connection is not sent a third time.
        let seen = backend.heads().len();
        client.send(&call).await.is(200);
        assert!(backend.heads().len() <= seen + 2);
        paid(&world, 5).await;
    });
}

#[test]
fn f10_a_backend_with_a_short_queue_is_busy_and_not_down() {
    run(async {
        // One connection at a time, one answer each, and a queue of one.
        let backend = Wild::listening(1, false, |_, wire| {
            wire.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok");
            false
        });
        let world =
            world(&[upstream("short", &[backend.address], ""), route("/v1/short", "short", "")]);
        // Many more, and the kernel may keep connections that nobody uses in the queue for longer
        // than a test waits.
        let answers = burst(world.gateway(), vec![post("/v1/short"); 24], 12).await;
        for answer in &answers {
            answer.is(200).tells(&[("state", "captured")]);
        }
        assert_eq!(backend.heads().len(), 24, "each was sent once");
        paid(&world, 24).await;
    });
}

/// An address whose queue is full and whom nobody accepts from, and what fills it.
fn stuck() -> (SocketAddr, Vec<Socket>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut sockets = vec![listener];
    for _ in 0..8 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&address);
        sockets.push(socket);
    }
    (address.as_socket().unwrap(), sockets)
}

#[test]
fn d32_f10_a_connection_that_never_comes_is_502_in_time_and_voids() {
    run(async {
        let (address, _sockets) = stuck();
        let world = world(&[
            upstream("stuck", &[address], "connect_timeout = \"300ms\""),
            route("/v1/stuck", "stuck", "on_timeout = \"capture\""),
        ]);
        let began = Instant::now();
        world.send(&post("/v1/stuck")).await.refused(502, "upstream_unreachable");
        assert!(began.elapsed() >= Duration::from_millis(300));
        // Nothing was sent, so it is no timeout of an answer.
        paid(&world, 0).await;
    });
}

#[test]
fn d33_f06_a_client_that_leaves_while_the_backend_is_connected_to_pays_nothing() {
    run(async {
        let (address, _sockets) = stuck();
        let world = world(&[
            upstream("stuck", &[address], "connect_timeout = \"1s\""),
            route("/v1/finish", "stuck", ""),
            route("/v1/cancel2", "stuck", "on_disconnect = \"cancel\""),
        ]);
        for path in ["/v1/finish", "/v1/cancel2"] {
            let stream = begin(&world, &format!("POST {path}"), "content-length: 0\r\n").await;
            let held = || (world.balance("alice")["seat"]["held"] == "1").then_some(());
            until("it is held", held).await;
            drop(stream);
            paid(&world, 0).await;
        }
    });
}

#[test]
fn f72_the_time_for_an_answer_runs_from_the_end_of_the_request() {
    run(async {
        let backend = Wild::start(|_, wire| wire.read(12) && wire.send(OK));
        let world = world(&[
            upstream("slow", &[backend.address], "response_timeout = \"2s\""),
            route("/v1/slow", "slow", ""),
        ]);
        let mut stream = begin(&world, "POST /v1/slow", "content-length: 12\r\n").await;
        // Longer than the time-out as a whole, and each piece is far from late.
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            stream.write_all(b"ab").await.unwrap();
        }
        let got = read_until(&mut stream, "\r\n\r\nok").await;
        assert!(got.starts_with("HTTP/1.1 200"), "{got}");
        paid(&world, 1).await;
        // An upload that stops is not waited for.
        let mut stream = begin(&world, "POST /v1/slow", "content-length: 12\r\n").await;
        stream.write_all(b"abc").await.unwrap();
        let got = read_until(&mut stream, "\r\n\r\n{").await;
        assert!(got.starts_with("HTTP/1.1 504") || got.starts_with("HTTP/1.1 408"), "{got}");
        paid(&world, 1).await;
    });
}

#[test]
fn d32_f11_a_body_that_stalls_or_never_ends_is_broken_off_and_not_charged() {
    run(async {
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n";
        let stalls = Wild::start(move |_, wire| {
            wire.send(head);
            wire.closed();
            false
        });
        let trickles = Wild::start(move |_, wire| {
            wire.send(head);
            while wire.send("1\r\nx\r\n") {
                wire.rest(Duration::from_millis(20));
            }
            false
        });
        let small = Wild::start(|_, wire| {
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
            wire.closed();
            false
        });
        let limits = "idle_timeout = \"400ms\"\nbody_timeout = \"1s\"";
        let world = world(&[
            upstream("stalls", &[stalls.address], limits),
            route("/v1/stalls", "stalls", ""),
            upstream("trickles", &[trickles.address], limits),
            route("/v1/trickles", "trickles", ""),
            upstream("small", &[small.address], limits),
            route("/v1/small2", "small", ""),
        ]);
        for path in ["/v1/stalls", "/v1/trickles"] {
            let answer = world.send(&post(path)).await;
            assert_eq!((answer.status, answer.whole), (200, false), "{path}");
            assert!(answer.body.starts_with(b"first"));
        }
        // What could be waited for is told as it is.
        world.send(&post("/v1/small2")).await.refused(504, "upstream_timeout");
        for backend in [&stalls, &trickles, &small] {
            until("its connection is closed", || (backend.closed() == 1).then_some(())).await;
        }
        paid(&world, 0).await;
    });
}

#[test]
fn f80_redirects_are_passed_on_and_never_followed() {
    run(async {
        let other = Wild::start(ok);
        let target = other.address;
        let backend = Wild::start(move |_, wire| {
            wire.send(format!(
                "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://{target}/v1/other\r\n\
                 content-length: 0\r\n\r\n"
            ))
        });
        let world =
            world(&[upstream("moved", &[backend.address], ""), route("/v1/moved", "moved", "")]);
        let answer = world.send(&post("/v1/moved")).await;
        answer.is(307).tells(&[("state", "voided")]);
        let location = format!("http://{target}/v1/other");
        assert_eq!(answer.header("location"), Some(location.as_str()));
        assert_eq!((other.connections(), backend.heads().len()), (0, 1));
        paid(&world, 0).await;
    });
}

#[test]
fn exhausted_status_is_what_the_route_says_and_the_code_stays() {
    run(async {
        let sections = [402, 403, 429].map(|status| {
            route(&format!("/v1/as{status}"), "media", &format!("exhausted_status = {status}"))
        });
        let setup = Setup { limits: sections.concat(), ..Setup::default() };
        let world = World::with(setup, &Org::new().user("alice", "0.5", Access::None));
        for status in [402, 403, 429] {
            let answer = world.send(&post(&format!("/v1/as{status}"))).await;
            let problem = answer.refused(status, "seat_exhausted");
            assert_eq!(answer.header("x-should-retry"), Some("false"));
            assert_eq!(answer.header("retry-after"), None);
            assert_eq!(problem["required"]["credits"], json!("1"));
            // Other refusals of the route keep their status.
            let call = Call::post(&format!("/v1/as{status}"), "").user("nobody");
            world.send(&call).await.refused(403, "unknown_user");
        }
        let refused = world.metric("tollgate_refusals_total", &["seat_exhausted"]);
        assert_eq!((refused, world.backend.count()), (3.0, 0));
    });
}

#[test]
fn d33_a_client_that_reads_nothing_and_leaves_leaves_no_hold() {
    run(async {
        const LENGTH: usize = 32 << 20;
        let backend = Wild::start(|_, wire| {
            wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n\r\n"))
                && wire.send(vec![b'x'; LENGTH])
        });
        let world = world(&[
            upstream("large", &[backend.address], ""),
            route("/v1/large", "large", ""),
            route("/v1/large-cancel", "large", "on_disconnect = \"cancel\""),
        ]);
        for (path, flags) in
            [("/v1/large", json!([])), ("/v1/large-cancel", json!(["usage_missing"]))]
        {
            let mut stream = begin(&world, &format!("POST {path}"), "content-length: 0\r\n").await;
            let got = read_until(&mut stream, "\r\n\r\nx").await;
            let id = got.split("charge=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
            assert_eq!(world.charge(&id)["state"], "held", "the backend is not read ahead of it");
            drop(stream);
            world.settled().await;
            let charge = world.charge(&id);
            assert_eq!((&charge["state"], &charge["flags"]), (&json!("captured"), &flags));
        }
        paid(&world, 2).await;
        let mut client = Client::connect(world.gateway()).await;
        let answer = client.send(&post("/v1/large")).await;
        assert_eq!(answer.is(200).body.len(), LENGTH);
        paid(&world, 3).await;
    });
}
