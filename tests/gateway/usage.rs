//! Usage from wherever a backend tells it, over sockets: D30, D32, D33, D41. What does not depend on
//! sockets is proved beside the scanner.

use std::io::Write;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::upstreams::{begin, paid, post, read_until, route, upstream};
use crate::support::{Access, Org, Setup, Wild, World, run};

/// What a backend does for a request.
#[derive(Clone)]
pub enum Step {
    /// The head's fields; the body is chunked.
    Head(&'static str),
    /// One chunk, sent at once.
    Chunk(Vec<u8>),
    /// Waits until the test lets it go on.
    Wait,
    /// The last chunk, with these trailers.
    End(&'static str),
    /// All of that in one piece.
    Whole(&'static str),
    /// Waits until the other side has closed the connection.
    Closed,
    /// Closes the connection.
    Break,
}

pub fn chunk(text: impl AsRef<[u8]>) -> Step {
    Step::Chunk(text.as_ref().to_vec())
}

pub fn event(n: &str) -> Step {
    chunk(format!("data: {{\"usage\":{{\"n\":{n}}}}}\n\n"))
}

pub const SSE: &str = "content-type: text/event-stream\r\n";
pub const DONE: &str = "data: [DONE]\n\n";

pub fn head(fields: &'static str) -> Step {
    Step::Head(fields)
}

/// A gateway before a backend that does this by the path's last segment, with these routes.
fn metered(
    plays: Vec<(&'static str, Vec<Step>)>,
    routes: &[(&str, &str)],
) -> (World, Wild, Sender<()>) {
    metered_for(&Org::new().user("alice", "1000", Access::None), plays, routes)
}

/// The same for this org.
pub fn metered_for(
    org: &Org,
    plays: Vec<(&'static str, Vec<Step>)>,
    routes: &[(&str, &str)],
) -> (World, Wild, Sender<()>) {
    let (go, wait) = channel();
    let wait = Arc::new(Mutex::new(wait));
    let backend = Wild::start(move |head, wire| {
        let path = head.split(' ').nth(1).unwrap().rsplit('/').next().unwrap();
        let (_, steps) = plays.iter().find(|(name, _)| *name == path).unwrap();
        for step in steps {
            let bytes = match step {
                Step::Head(fields) => {
                    format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n{fields}\r\n").into()
                }
                Step::Chunk(bytes) => {
                    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
                }
                Step::Wait => {
                    let _ = wait.lock().unwrap().recv();
                    continue;
                }
                Step::End(trailers) => format!("0\r\n{trailers}\r\n").into(),
                Step::Whole(answer) => (*answer).into(),
                Step::Closed => {
                    wire.closed();
                    return false;
                }
                Step::Break => return false,
            };
            if !wire.send(bytes) {
                return false;
            }
        }
        true
    });
    let mut sections = vec![upstream("told", &[backend.address], "")];
    sections.extend(routes.iter().map(|(path, more)| route(path, "told", more)));
    let setup = Setup { limits: sections.concat(), ..Setup::default() };
    (World::with(setup, org), backend, go)
}

const TOLD: &str = "quantity = { const = 7 }\nusage = { json = \"/usage/n\", \
                    sse_json = \"/usage/n\", ndjson_json = \"/usage/n\" }";

/// The charge of the backend's last request, settled.
pub async fn charge(world: &World, backend: &Wild) -> Value {
    world.settled().await;
    now(world, backend)
}

/// The same as it is now.
pub fn now(world: &World, backend: &Wild) -> Value {
    let heads = backend.heads();
    let head = heads.last().unwrap();
    let id = head.lines().find_map(|line| line.strip_prefix("tollgate-charge: ")).unwrap();
    world.charge(id)
}

#[track_caller]
pub fn is(charge: &Value, state: &str, cost: &str, flags: &Value) {
    assert_eq!((&charge["state"], &charge["cost"]), (&json!(state), &json!(cost)), "{charge}");
    assert_eq!(&charge["flags"], flags, "{charge}");
}

pub fn missing() -> Value {
    json!(["usage_missing"])
}

pub fn gzip(parts: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let mut pieces = Vec::new();
    for part in parts {
        encoder.write_all(part).unwrap();
        encoder.flush().unwrap();
        pieces.push(std::mem::take(encoder.get_mut()));
    }
    pieces.push(encoder.finish().unwrap());
    pieces
}

#[test]
fn d30_done_reaches_no_client_before_its_capture() {
    run(async {
        let stream = |end: Vec<Step>| [vec![head(SSE), event("3"), Step::Wait], end].concat();
        let rest = |chunks: &[&str]| {
            let mut steps: Vec<Step> = chunks.iter().map(chunk).collect();
            steps.extend([Step::Wait, chunk(": bye\n\n"), Step::End("")]);
            steps
        };
        let coded = gzip(&[b"data: {\"usage\":{\"n\":3}}\n\n", DONE.as_bytes()]);
        let zipped = "content-type: text/event-stream\r\ncontent-encoding: gzip\r\n";
        let plays = vec![
            ("whole", stream(rest(&[DONE]))),
            ("split", stream(rest(&["data: [DO", "NE]\n\n"]))),
            ("quoted", stream(rest(&[DONE]))),
            (
                "coded",
                vec![
                    head(zipped),
                    chunk(&coded[0]),
                    Step::Wait,
                    chunk(&coded[1]),
                    Step::Wait,
                    chunk(&coded[2]),
                    Step::End(""),
                ],
            ),
        ];
        let quoted = "quantity = { const = 3 }";
        let routes = [("/whole", TOLD), ("/split", TOLD), ("/quoted", quoted), ("/coded", TOLD)];
        let (world, backend, go) = metered(plays, &routes);
        for (path, first, done) in [
            ("/whole", &b"\"n\":3}}\n\n"[..], &b"[DONE]\n\n"[..]),
            ("/split", b"\"n\":3}}\n\n", b"NE]\n\n"),
            ("/quoted", b"\"n\":3}}\n\n", b"[DONE]\n\n"),
            ("/coded", &coded[0], &coded[1]),
        ] {
            let mut stream = begin(&world, &format!("POST {path}"), "content-length: 0\r\n").await;
            let mut got = Vec::new();
            let mut read = async |text: &[u8]| {
                while !got.windows(text.len()).any(|part| part == text) {
                    assert_ne!(stream.read_buf(&mut got).await.unwrap(), 0, "closed early");
                }
            };
            read(first).await;
            assert_eq!(now(&world, &backend)["state"], "held");
            go.send(()).unwrap();
            read(done).await;
            // The backend has not ended its body, and nothing was waited for here.
            is(&now(&world, &backend), "captured", "3", &json!([]));
            go.send(()).unwrap();
            read(b"0\r\n\r\n").await;
            if path != "/coded" {
                assert!(
                    String::from_utf8(got).unwrap().contains(": bye\n\n"),
                    "what follows passes"
                );
            }
        }
        paid(&world, 12).await;
    });
}

#[test]
fn d33_f08_a_client_that_leaves_pays_what_is_reported_to_nobody_or_what_it_saw() {
    run(async {
        let lines = "content-type: application/x-ndjson\r\n";
        let zipped = "content-type: text/event-stream\r\ncontent-encoding: gzip\r\n";
        let coded = gzip(&[b"data: {\"usage\":{\"n\":2}}\n\n", b"data: {\"usage\":{\"n\":5}}\n\n"]);
        let two = |head: Step, first: Step, second: Step| {
            vec![head, first, Step::Wait, second, Step::End("")]
        };
        let kinds: Vec<(&'static str, Vec<Step>)> = vec![
            ("sse", two(head(SSE), event("2"), event("5"))),
            // Nothing but the end of the stream is missing, and it never comes.
            (
                "done",
                vec![head(SSE), event("2"), Step::Wait, event("5"), chunk(DONE), Step::Closed],
            ),
            (
                "lines",
                two(head(lines), chunk("{\"usage\":{\"n\":2}}\n"), chunk("{\"usage\":{\"n\":5}}")),
            ),
            ("plain", two(head(""), chunk("{\"usage\":"), chunk("{\"n\":5}}"))),
            (
                "coded",
                two(head(zipped), chunk(&coded[0]), chunk([&coded[1][..], &coded[2]].concat())),
            ),
        ];
        let cancels = format!("{TOLD}\non_disconnect = \"cancel\"");
        let paths: Vec<(String, &str)> = (kinds.iter())
            .flat_map(|(name, _)| {
                [(format!("/finish/{name}"), TOLD), (format!("/cancel/{name}"), &cancels)]
            })
            .collect();
        let routes: Vec<(&str, &str)> = paths.iter().map(|(path, more)| (&**path, *more)).collect();
        let (world, backend, go) = metered(kinds, &routes);
        for (path, _) in &paths {
            let mut stream = begin(&world, &format!("POST {path}"), "content-length: 0\r\n").await;
            let mut got = Vec::new();
            let behind_head = |got: &[u8]| {
                let end = got.windows(4).position(|part| part == b"\r\n\r\n");
                end.is_some_and(|end| got.len() > end + 4)
            };
            while !behind_head(&got) {
                assert_ne!(stream.read_buf(&mut got).await.unwrap(), 0, "closed early");
            }
            drop(stream);
            if path.starts_with("/cancel") {
                let charge = charge(&world, &backend).await;
                match path.ends_with("plain") {
                    true => is(&charge, "captured", "7", &missing()),
                    false => is(&charge, "captured", "2", &json!([])),
                }
                go.send(()).unwrap();
            } else {
                crate::support::until("the client's connection is gone", || {
                    (world.metric("tollgate_connections", &[]) == 0.0).then_some(())
                })
                .await;
                assert_eq!(now(&world, &backend)["state"], "held", "{path}");
                go.send(()).unwrap();
                is(&charge(&world, &backend).await, "captured", "5", &json!([]));
            }
        }
        paid(&world, 5 * 5 + 4 * 2 + 7).await;
    });
}

#[test]
fn d32_f11_a_stream_that_breaks_off_costs_what_it_told_and_never_ends_cleanly() {
    run(async {
        let broken =
            |chunks: Vec<Step>| [vec![head(SSE)], chunks, vec![Step::Wait, Step::Break]].concat();
        let plays = vec![
            ("told", broken(vec![event("2")])),
            ("cut", broken(vec![event("2"), chunk("data: {\"usage\":{\"n\":5")])),
            ("untold", broken(vec![chunk("data: {\"x\":1}\n\n")])),
        ];
        let routes = [("/told", TOLD), ("/cut", TOLD), ("/untold", TOLD)];
        let (world, backend, go) = metered(plays, &routes);
        for (path, state, cost) in
            [("/told", "captured", "2"), ("/cut", "captured", "2"), ("/untold", "voided", "0")]
        {
            let mut stream = begin(&world, &format!("POST {path}"), "content-length: 0\r\n").await;
            let mut got = read_until(&mut stream, "}\n\n").await;
            go.send(()).unwrap();
            stream.read_to_string(&mut got).await.unwrap();
            assert!(!got.ends_with("0\r\n\r\n"), "{got}");
            is(&charge(&world, &backend).await, state, cost, &json!([]));
        }
        paid(&world, 4).await;
    });
}

#[test]
fn f12_f13_f14_f15_f56_what_a_stream_tells_is_what_is_charged() {
    run(async {
        let stream = |events: &[&str]| {
            let mut steps = vec![head(SSE)];
            steps.extend(events.iter().map(|n| event(n)));
            steps.extend([chunk(DONE), Step::End("")]);
            steps
        };
        let plays = vec![
            ("zero", stream(&["0"])),
            ("below", stream(&["null", "3"])),
            ("above", stream(&["9"])),
            ("several", stream(&["2", "6", "4"])),
            ("negative", stream(&["-1"])),
            ("infinite", stream(&["1e400"])),
            ("nan", stream(&["\"NaN\""])),
            ("none", stream(&["null"])),
            ("spoilt", stream(&["2", "-1"])),
        ];
        let sum = format!("{TOLD}\npick = \"sum\"");
        let max = format!("{TOLD}\npick = \"max\"");
        let (world, backend, _go) = metered(
            plays,
            &[("/last/{of}", TOLD), ("/sum/{of}", sum.as_str()), ("/max/{of}", max.as_str())],
        );
        let mut client = world.client().await;
        let mut total = 0;
        for (path, cost, flagged) in [
            ("/last/zero", 0, false),
            ("/last/below", 3, false),
            ("/last/above", 9, false),
            ("/last/several", 4, false),
            ("/sum/several", 12, false),
            ("/max/several", 6, false),
            ("/last/negative", 7, true),
            ("/last/infinite", 7, true),
            ("/max/nan", 7, true),
            ("/last/none", 7, true),
            ("/last/spoilt", 2, false),
            ("/sum/spoilt", 7, true),
        ] {
            let answer = client.send(&post(path)).await;
            assert!(answer.is(200).body.ends_with(DONE.as_bytes()));
            let flags = if flagged { missing() } else { json!([]) };
            // Whoever has the end was charged.
            is(&now(&world, &backend), "captured", &cost.to_string(), &flags);
            total += cost;
        }
        let counted = |what: &str, route: &str| {
            let name = format!("tollgate_usage_{what}_total");
            world.metric(&name, &[&format!("route=\"{route}\"")])
        };
        assert_eq!(counted("conflicts", "/last/{of}"), 1.0);
        assert_eq!(counted("conflicts", "/sum/{of}") + counted("conflicts", "/max/{of}"), 0.0);
        assert_eq!(counted("unreadable", "/last/{of}"), 3.0);
        assert_eq!(counted("unreadable", "/sum/{of}"), 1.0);
        assert_eq!(counted("unreadable", "/max/{of}"), 1.0);
        paid(&world, total).await;
    });
}

#[test]
fn d41_one_stream_tells_several_meters() {
    run(async {
        let (first, second) = (
            chunk("data: {\"message\":{\"usage\":{\"in\":6}},\"usage\":{\"out\":1}}\n\n"),
            chunk("data: {\"usage\":{\"out\":9}}\n\n"),
        );
        let plays = vec![
            ("both", vec![head(SSE), first.clone(), second, Step::End("")]),
            ("one", vec![head(SSE), chunk("data: {\"usage\":{\"out\":9}}\n\n"), Step::End("")]),
        ];
        let meters = "[[route.meter]]\nname = \"in\"\nquantity = { const = 30 }\n\
                      usage = { sse_json = \"/message/usage/in\" }\n\
                      [[route.meter]]\nname = \"out\"\nquantity = { const = 30 }\n\
                      usage = { sse_json = \"/usage/out\" }";
        let chat = |path: &str| {
            format!(
                "[[route]]\npath = \"{path}\"\nupstream = \"told\"\nfeature = \"chat\"\n{meters}\n"
            )
        };
        let images = format!("quantity = {{ const = 1 }}\n{}{}", chat("/both"), chat("/one"));
        let (world, backend, _go) = metered(plays, &[("/other", images.as_str())]);
        let mut client = world.client().await;
        client.send(&post("/both")).await.is(200);
        // 6 at a third and 9 at two thirds.
        is(&now(&world, &backend), "captured", "8", &json!([]));
        assert_eq!(now(&world, &backend)["quantity"], json!({"in": "6", "out": "9"}));
        client.send(&post("/one")).await.is(200);
        is(&now(&world, &backend), "captured", "30", &missing());
        paid(&world, 38).await;
    });
}

#[test]
fn f68_a_declared_trailer_tells_usage_and_passes_to_who_takes_it() {
    run(async {
        const TRAILERS: &str = "x-used: 3\r\nx-other: 1\r\ntollgate-receipt: cost=\"0\"\r\n";
        let declared = "trailer: x-used, x-other\r\n";
        let stream = "content-type: text/event-stream\r\ntrailer: x-used\r\n";
        let plays = vec![
            (
                "small",
                vec![Step::Whole(
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-used, x-other\r\n\r\n\
                     2\r\nok\r\n0\r\nx-used: 3\r\nx-other: 1\r\ntollgate-receipt: cost=\"0\"\r\n\r\n",
                )],
            ),
            (
                "slow",
                vec![head(declared), chunk("ok"), Step::Wait, chunk("!"), Step::End(TRAILERS)],
            ),
            ("done", vec![head(stream), chunk("ok"), Step::Wait, chunk(DONE), Step::End(TRAILERS)]),
            ("silent", vec![head(""), chunk("ok"), Step::End(TRAILERS)]),
            ("none", vec![head(declared), chunk("ok"), Step::End("")]),
        ];
        let usage = "quantity = { const = 7 }\nusage = { trailer = \"X-Used\" }";
        let (world, backend, go) = metered(plays, &[("/{of}", usage)]);
        let mut total = 0;
        for (path, cost) in
            [("/small", 3), ("/slow", 3), ("/done", 3), ("/silent", 7), ("/none", 7)]
        {
            for takes in [true, false] {
                let te = if takes { "te: trailers\r\n" } else { "" };
                let headers = format!("{te}content-length: 0\r\nconnection: close\r\n");
                let mut stream = begin(&world, &format!("POST {path}"), &headers).await;
                let mut got = read_until(&mut stream, "ok").await;
                if matches!(path, "/slow" | "/done") {
                    go.send(()).unwrap();
                }
                stream.read_to_string(&mut got).await.unwrap();
                let flags = if cost == 7 { missing() } else { json!([]) };
                is(&now(&world, &backend), "captured", &cost.to_string(), &flags);
                let passes = takes && cost == 3;
                assert_eq!(got.contains("x-used: 3\r\n"), passes, "{path} {takes}: {got}");
                assert!(!got.contains("x-other") && !got.contains("cost=\"0\""), "{got}");
                let is_small = matches!(path, "/small");
                assert_eq!(got.contains("state=captured, cost=\"3\""), is_small, "{got}");
                assert!(backend.heads().last().unwrap().contains("\r\nte: trailers\r\n"));
                total += cost;
            }
        }
        paid(&world, total).await;
    });
}

#[test]
fn f74_usage_is_read_in_encoded_bodies_within_a_bound_and_their_bytes_are_untouched() {
    run(async {
        let text = b"{\"usage\":{\"n\":3}}";
        let bomb = gzip(&[&vec![b' '; 20 << 20]]).concat();
        let bodies: Vec<(&'static str, &'static str, Vec<u8>)> = vec![
            ("gzip", "content-encoding: gzip\r\n", gzip(&[text]).concat()),
            ("zstd", "content-encoding: zstd\r\n", zstd::stream::encode_all(&text[..], 3).unwrap()),
            ("br", "content-encoding: br\r\n", [&[0x0b, 8, 0x80][..], text, &[3]].concat()),
            ("odd", "content-encoding: compress\r\n", text.to_vec()),
            ("bomb", "content-encoding: gzip\r\n", bomb),
        ];
        let plays = (bodies.iter())
            .map(|(name, fields, body)| (*name, vec![head(fields), chunk(body), Step::End("")]))
            .collect();
        let (world, backend, _go) = metered(plays, &[("/{of}", TOLD)]);
        let mut client = world.client().await;
        for (name, _, body) in &bodies {
            let answer = client.send(&post(&format!("/{name}"))).await;
            assert_eq!(answer.is(200).body, body, "{name}");
            match *name {
                "odd" | "bomb" => is(&now(&world, &backend), "captured", "7", &missing()),
                _ => is(&now(&world, &backend), "captured", "3", &json!([])),
            }
        }
        assert_eq!(world.metric("tollgate_usage_unreadable_total", &["/{of}"]), 2.0);
        paid(&world, 23).await;
    });
}
