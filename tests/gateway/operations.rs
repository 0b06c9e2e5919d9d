//! What an operator relies on: the end of the process, logs, metrics with their documents.

use std::collections::BTreeSet;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{Access, Call, Client, Org, PATIENCE, Script, World, raw, run, until};

fn image(user: &str) -> Call {
    Call::post("/v1/images", "{}").user(user)
}

fn alice() -> Org {
    Org::new().user("alice", "10", Access::None)
}

/// Waits until nobody accepts connections any more.
async fn closed(world: &World) {
    let gateway = world.gateway();
    let connects = || std::net::TcpStream::connect(gateway).is_err().then_some(());
    until("it stops accepting", connects).await;
}

#[test]
fn f83_a_request_that_comes_after_the_listener_closed_is_told_so() {
    run(async {
        let mut world = World::new(&alice());
        let mut late = TcpStream::connect(world.gateway()).await.unwrap();
        let head = format!(
            "POST /v1/images HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\
             tollgate-user: alice\r\ncontent-length: 2\r\n",
            crate::support::org::STUDIO
        );
        // The head is not whole, so the gateway does not know yet what it is asked for.
        late.write_all(head.as_bytes()).await.unwrap();
        let gated = image("alice").script(&Script::gate("go"));
        let drain = async {
            until("one is in flight", || (world.backend.count() == 1).then_some(())).await;
            world.terminate();
            closed(&world).await;
            late.write_all(b"\r\n{}").await.unwrap();
            let mut answer = String::new();
            timeout(PATIENCE, late.read_to_string(&mut answer)).await.unwrap().unwrap();
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
            let answer = answer.to_lowercase();
            for part in ["\"code\":\"draining\"", "retry-after: 5", "connection: close"] {
                assert!(answer.contains(part), "{part}: {answer}");
            }
            world.backend.open("go");
        };
        let mut early = world.client().await;
        let (answer, ()) = tokio::join!(early.send(&gated), drain);
        answer.is(200).tells(&[("state", "captured")]);
        assert_eq!(world.stopped().await.code(), Some(0));
        assert_eq!(world.backend.count(), 1, "nothing late was forwarded");
        world.start();
        world.seat("alice", "1", "9", "0");
    });
}

#[test]
fn f83_a_second_signal_cuts_off_what_is_in_flight_and_leaves_exact_books() {
    for signal in ["TERM", "INT"] {
        run(async {
            let mut world = World::new(&alice());
            // Longer than a test waits for anything.
            world.edit(|text| text.replace("drain_timeout = \"10s\"", "drain_timeout = \"10m\""));
            world.signal("HUP");
            world.logged(&["read again", "gateway.drain_timeout"]).await;
            let gateway = world.gateway();
            let gated = image("alice").script(&Script::gate("never"));
            let half = Script { half: Some("never".into()), pad: 300_000, ..Script::default() };
            let mut clients = tokio::task::JoinSet::new();
            for call in [gated, image("alice").script(&half)] {
                clients.spawn(async move {
                    let answer = Client::connect(gateway).await.try_send(&call).await;
                    answer.is_err() || !answer.unwrap().whole
                });
            }
            until("both are in flight", || (world.backend.count() == 2).then_some(())).await;
            world.signal(signal);
            closed(&world).await;
            world.signal(signal);
            assert_eq!(world.stopped().await.code(), Some(0));
            assert!(clients.join_all().await.into_iter().all(|cut_off| cut_off));
            world.verify();
            world.start();
            assert_eq!(world.metric("tollgate_in_doubt_total", &[]), 0.0, "nothing was left open");
            world.seat("alice", "0", "10", "0");
        });
    }
}

#[test]
fn f83_a_connection_that_asks_for_nothing_does_not_hold_up_the_end() {
    run(async {
        let mut world = World::new(&alice());
        let _spare = TcpStream::connect(world.gateway()).await.unwrap();
        let mut idle = world.client().await;
        idle.send(&image("alice")).await.is(200);
        let lines = world.log_lines();
        world.terminate();
        assert_eq!(world.stopped().await.code(), Some(0));
        let cut_off = || lines.lock().unwrap().iter().any(|line| line.contains("cut off"));
        let ended = || lines.lock().unwrap().iter().any(|line| line.contains("stopped"));
        until("the log is whole", || ended().then_some(())).await;
        assert!(!cut_off(), "the drain's timeout was used up");
        world.start();
    });
}

#[test]
fn health_lists_its_checks() {
    run(async {
        let world = World::new(&alice());
        let started = "[+] configuration\n[+] directory\n[+] data-dir\n[+] listeners\n";
        let not_required = "[+] books (not required)\n[+] last-reload (not required)\n";
        for (path, text) in [
            ("/livez", "ok\n".to_owned()),
            ("/livez?verbose", "ok\n".to_owned()),
            ("/startupz?verbose", format!("{started}ok\n")),
            ("/readyz?verbose", format!("{started}[+] not-draining\n{not_required}ok\n")),
            ("/readyz?verbose=1", format!("{started}[+] not-draining\n{not_required}ok\n")),
            ("/readyz", "ok\n".to_owned()),
        ] {
            assert_eq!(world.ops(path), (200, text), "{path}");
        }
    });
}

/// Names in backticks in the first column of the tables of a page.
fn documented(page: &str) -> BTreeSet<String> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" |"));
    let cells = rows.flat_map(|(cell, _)| cell.split(['`', ',', ' ']).map(str::to_owned));
    cells.filter(|name| name.starts_with("tollgate_") || name.starts_with("process_")).collect()
}

/// Names of the exposition, as queries use them.
fn exposed(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types
        .map(|(name, kind)| match kind {
            "counter" => format!("{name}_total"),
            _ => name.to_owned(),
        })
        .collect()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn every_metric_is_documented_and_every_documented_metric_is_there() {
    run(async {
        let world = World::new(&alice());
        let (_, text) = world.ops("/metrics");
        let (documented, exposed) = (documented(&read("docs/metrics.md")), exposed(&text));
        let missing: Vec<_> = exposed.difference(&documented).collect();
        let stale: Vec<_> = documented.difference(&exposed).collect();
        assert!(missing.is_empty(), "not in docs/metrics.md: {missing:?}");
        assert!(stale.is_empty(), "in docs/metrics.md, but not exposed: {stale:?}");
        for line in text.lines().filter(|line| line.starts_with("process_")) {
            let value: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
            // A young process may have used less than a tick of the processor.
            let is_ticks = line.starts_with("process_cpu_seconds_total");
            assert!(value > 0.0 || (is_ticks && value == 0.0), "{line}");
        }
        assert!(world.metric("tollgate_data_free_bytes", &[]) > 0.0);
        assert_eq!(world.metric("tollgate_books_mismatched_accounts", &[]), 0.0);
        let offset = world.metric("tollgate_clock_offset_seconds", &[]);
        assert_eq!(offset, 0.0, "a test clock is the system's");
    });
}

#[test]
fn every_alert_asks_for_metrics_that_exist_and_has_its_runbook() {
    run(async {
        let world = World::new(&alice());
        let exposed = exposed(&world.ops("/metrics").1);
        let rules = yaml_rust2::YamlLoader::load_from_str(&read("deploy/alerts.yaml")).unwrap();
        let runbook = read("docs/operations.md");
        let mut count = 0;
        for group in rules[0]["groups"].as_vec().unwrap() {
            assert!(group["name"].as_str().is_some());
            for rule in group["rules"].as_vec().unwrap() {
                count += 1;
                let name = rule["alert"].as_str().unwrap();
                let expr = rule["expr"].as_str().unwrap();
                let words = expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                let metrics = words
                    .filter(|word| word.starts_with("tollgate_") || word.starts_with("process_"));
                let mut asks = 0;
                for metric in metrics {
                    asks += 1;
                    let histogram = ["_bucket", "_sum", "_count"];
                    let base = histogram.iter().find_map(|end| metric.strip_suffix(end));
                    let known =
                        exposed.contains(metric) || base.is_some_and(|base| exposed.contains(base));
                    assert!(known, "{name} asks for {metric}");
                }
                assert!(asks > 0, "{name} asks for nothing");
                assert!(rule["labels"]["severity"].as_str().is_some(), "{name}");
                assert!(rule["annotations"]["summary"].as_str().is_some(), "{name}");
                assert!(runbook.contains(&format!("\n### {name}\n")), "{name} has no runbook");
            }
        }
        assert!(count >= 10);
        let headings = runbook.lines().filter(|line| line.starts_with("### Tollgate")).count();
        assert_eq!(headings, count, "a runbook without an alert");
    });
}

/// Every line is one that the gateway wrote as a line.
fn assert_lines(log: &[String]) {
    for line in log {
        assert!(!line.chars().any(char::is_control), "{line:?}");
        let begins = line.starts_with("{\"") || line.starts_with("20");
        assert!(begins, "not a line of the log: {line:?}");
    }
}

#[test]
fn f76_what_clients_send_cannot_forge_or_colour_the_log() {
    run(async {
        let world = World::new(&alice());
        let more = |format: &str| format!("[log]\naccess = true\nformat = \"{format}\"\n[admin]");
        for format in ["text", "json"] {
            world.edit(|text| {
                let rest = text.split_once("[admin]").unwrap();
                let before = rest.0.split("[log]").next().unwrap().to_owned();
                before + &more(format) + rest.1
            });
            world.signal("HUP");
            world
                .logged(&["read again", if format == "json" { "log.format" } else { "log.access" }])
                .await;
            let seen = world.log().len();
            let forged = "2026-11-20T12:00:00.000000Z ERROR forged: line";
            let path = format!("/v1/images%0A{}?token=secret", forged.replace(' ', "%20"));
            world.send(&Call::get(&path).user("alice")).await;
            world.send(&image("alice").header("x-request-id", "id\" x=\\\"{}")).await.is(200);
            world.send(&image("a\u{9b}b\u{202e}")).await;
            for hostile in [
                b"GET /\x1b[2J HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".as_slice(),
                b"GET /a\nERROR HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
                b"GET /a HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntollgate-user: \x9b31m\xff\r\n\r\n",
                b"GET /a HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-request-id: \x7f\r\n\r\n",
                b"\x1b]0;title\x07\r\n\r\n",
            ] {
                raw(world.gateway(), hostile).await;
            }
            let count = || {
                world.log()[seen..]
                    .iter()
                    .filter(|l| l.contains("\"request\"") || l.contains(": request "))
                    .count()
            };
            until("each request is logged", || (count() >= 3).then_some(())).await;
            let log = world.log();
            assert_lines(&log);
            assert!(!log.iter().any(|line| line.starts_with(forged)), "{log:#?}");
            assert!(!log.iter().any(|line| line.contains("token=secret")), "{log:#?}");
        }
    });
}

#[test]
fn the_access_log_has_a_line_for_each_request_where_it_is_asked_for() {
    run(async {
        let world = World::new(&alice());
        let lines = || -> Vec<String> {
            let log = world.log();
            log.into_iter().filter(|line| line.contains("tollgate::access")).collect()
        };
        world.send(&image("alice")).await.is(200);
        assert!(lines().is_empty(), "off unless asked for");
        world.edit(|text| {
            text.replace("[admin]", "[log]\naccess = true\nformat = \"json\"\n[admin]")
        });
        world.signal("HUP");
        world.logged(&["read again", "log.access log.format"]).await;
        let answer = world.send(&image("alice")).await;
        world.send(&image("nobody")).await.refused(403, "unknown_user");
        world
            .send(&Call::post("/v1/dead", "{}").user("alice"))
            .await
            .refused(502, "upstream_unreachable");
        until("they are logged", || (lines().len() == 3).then_some(())).await;
        let parsed: Vec<serde_json::Value> =
            lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let first = &parsed[0];
        for (key, value) in [
            ("message", "request"),
            ("level", "INFO"),
            ("method", "POST"),
            ("path", "/v1/images"),
            ("peer", "127.0.0.1"),
            ("org", "acme"),
            ("key", "studio"),
            ("user", "alice"),
            ("request_id", answer.header("x-request-id").unwrap()),
        ] {
            assert_eq!(first[key], value, "{first}");
        }
        assert_eq!(first["status"], 200);
        assert!(first["took_us"].as_u64().unwrap() >= first["backend_us"].as_u64().unwrap());
        assert_eq!(
            (&parsed[1]["status"], &parsed[1]["user"]),
            (&403.into(), &serde_json::Value::Null)
        );
        assert_eq!(parsed[2]["status"], 502);
        let id = parsed[2]["request_id"].as_str().unwrap().to_owned();
        // A failure that is not the caller's is told with the request's id.
        world.logged(&["WARN", "upstream_unreachable", &id]).await;
    });
}
