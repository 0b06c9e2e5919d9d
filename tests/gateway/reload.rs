//! Another configuration while the gateway runs: f54.

use std::sync::atomic::{AtomicBool, Ordering};

use super::jobs::Jobs;
use super::upstreams::{OK, post, route, upstream, world};
use crate::support::sample::Sample;
use crate::support::{Access, Call, Client, Org, Script, Wild, World, burst, run, until};

fn image(user: &str) -> Call {
    Call::post("/v1/images", "{}").user(user)
}

fn alice() -> Org {
    Org::new().user("alice", "1000", Access::None)
}

const EXTRA: &str = "\n[[route]]\npath = \"/v1/extra\"\nupstream = \"plain\"\nfree = true\n";

#[test]
fn f54_a_bad_file_changes_nothing_and_is_told_with_file_line_and_key() {
    run(async {
        let world = World::new(&alice());
        world.reloaded(true).await;
        let good = std::fs::read_to_string(world.config()).unwrap();
        let line = good.lines().count() + 4;
        for (wrong, parts) in [
            (EXTRA.replace("plain", "nowhere"), ["route[", "].upstream"]),
            (EXTRA.replace("free = true", "free = 7"), ["route[", "].free"]),
            (EXTRA.replace("free", "\"fr\\u001b[31mee\""), ["route[", "fr\\\\u{1b}[31mee"]),
        ] {
            world.edit(|_| good.clone() + &wrong);
            world.signal("HUP");
            world.reloaded(false).await;
            let offset = usize::from(!wrong.contains("nowhere"));
            let place = format!("tollgate.toml:{}:", line + offset);
            world.logged(&["ERROR", &place, parts[0], parts[1]]).await;
            world.send(&Call::get("/v1/extra").user("alice")).await.refused(404, "unknown_route");
            world.send(&image("alice")).await.is(200);
            assert!(world.ops("/readyz?verbose").1.contains("[-] last-reload (not required)"));
            assert_eq!(world.ops("/readyz").0, 200);
            world.edit(|_| good.clone() + EXTRA);
            world.signal("HUP");
            world.reloaded(true).await;
            world.send(&Call::get("/v1/extra").user("alice")).await.is(200);
            world.edit(|_| good.clone());
            world.signal("HUP");
            let gone = async || world.send(&Call::get("/v1/extra").user("alice")).await.status;
            while gone().await != 404 {}
        }
        std::fs::remove_file(world.config()).unwrap();
        world.reloaded(false).await;
        std::fs::write(world.config(), &good).unwrap();
        world.reloaded(true).await;
    });
}

#[test]
fn f54_what_is_hardly_meant_so_is_told_once_at_the_start_and_by_each_reload() {
    run(async {
        let sample = Sample::start();
        let mut setup = Jobs::default().setup(&sample);
        setup.limits = setup.limits.replace("path = \"/v1/other/{id}\"", "path = \"/v1/o/{id}\"");
        let world = World::with(setup, &alice());
        let told = || {
            let log = world.log();
            let parts = ["WARN", "tollgate.toml:", ".job.status_path: expected a free route"];
            log.iter().filter(|line| parts.iter().all(|part| line.contains(part))).count()
        };
        assert_eq!(told(), 1);
        world.signal("HUP");
        until("it is told again", || (told() == 2).then_some(())).await;
        // What is not put in force is not told of.
        world.edit(|text| text.replace("path = \"/v1/scripted\"", "path = \"scripted\""));
        world.signal("HUP");
        world.reloaded(false).await;
        assert_eq!(told(), 2);
        // As it was, for whoever looks at the books in the end.
        world.edit(|text| text.replace("path = \"scripted\"", "path = \"/v1/scripted\""));
    });
}

#[test]
fn f54_a_request_has_one_configuration_and_the_next_one_the_new() {
    run(async {
        let world = World::new(&alice());
        let mut kept = Client::connect(world.gateway()).await;
        kept.send(&image("alice")).await.is(200).tells(&[("cost", "1")]);
        let call = image("alice").script(&Script::gate("go"));
        let reload = async {
            until("it is forwarded", || (world.backend.count() == 2).then_some(())).await;
            world.edit(|text| {
                // Everything moves: a route before all others, and other prices.
                let at = text.find("[[route]]").unwrap();
                let (before, after) = text.split_at(at);
                let after = after.replace("default = 1 }", "default = 3 }");
                format!("{before}{EXTRA}{after}")
            });
            world.signal("HUP");
            world.logged(&["read again", "route"]).await;
            // The same connection, and a new one.
            kept.send(&image("alice")).await.is(200).tells(&[("cost", "3")]);
            world.send(&image("alice")).await.is(200).tells(&[("cost", "3")]);
            world.backend.open("go");
        };
        let (answer, ()) = tokio::join!(world.send(&call), reload);
        answer.is(200).tells(&[("cost", "1"), ("state", "captured")]);
        world.seat("alice", "8", "992", "0");
        // Counters go on, under the names of the routes.
        let captured = ["outcome=\"captured\"", "route=\"/v1/images\""];
        assert_eq!(world.metric("tollgate_requests_total", &captured), 4.0);
        assert_eq!(world.metric("tollgate_credits_captured_total", &[]), 8.0);
        let took = "tollgate_overhead_duration_seconds_count";
        assert_eq!(world.metric(took, &["route=\"/v1/images\""]), 4.0);
    });
}

#[test]
fn f54_reloads_under_load_disturb_no_request() {
    run(async {
        let world = World::new(&alice());
        let done = AtomicBool::new(false);
        let reloads = async {
            let mut count = 0;
            while !done.load(Ordering::Acquire) || count < 5 {
                let other = if count % 2 == 0 { EXTRA } else { "" };
                world.edit(|text| text.replace(EXTRA, "") + other);
                world.signal("HUP");
                count += 1;
                let read = || world.log().iter().filter(|line| line.contains("read again")).count();
                until("it is read", || (read() >= count).then_some(())).await;
            }
        };
        let load = async {
            let calls = (0..600).map(|_| image("alice")).collect();
            let answers = burst(world.gateway(), calls, 8).await;
            done.store(true, Ordering::Release);
            answers
        };
        let (answers, ()) = tokio::join!(load, reloads);
        for answer in &answers {
            answer.is(200).tells(&[("cost", "1"), ("state", "captured")]);
        }
        world.seat("alice", "600", "400", "0");
        assert_eq!(world.metric("tollgate_requests_total", &["captured"]), 600.0);
        world.accounts_for(&["alice"]).await;
    });
}

#[test]
fn f54_what_needs_a_restart_is_told_by_key_and_the_rest_is_in_force() {
    run(async {
        let world = World::new(&alice());
        world.edit(|text| text.replace("workers = 2", "workers = 3") + EXTRA);
        world.signal("HUP");
        world.logged(&["WARN", "key=gateway.workers", "restart"]).await;
        world.logged(&["read again", "changed=route"]).await;
        world.reloaded(true).await;
        world.send(&Call::get("/v1/extra").user("alice")).await.is(200);
    });
}

#[test]
fn f54_a_swap_of_links_and_a_rotated_credential_are_taken_without_a_signal() {
    run(async {
        let world = World::new(&alice());
        let path = |name: &str| world.config().parent().unwrap().join(name);
        let text = std::fs::read_to_string(world.config()).unwrap();
        std::fs::write(path("credential"), "first-secret-of-the-backend").unwrap();
        let file = format!("file = \"{}\" }}", path("credential").display());
        let text = text.replace("env = \"MEDIA_TOKEN\" }", &file);
        for (version, more) in [("..1", ""), ("..2", EXTRA)] {
            std::fs::create_dir(path(version)).unwrap();
            std::fs::write(path(version).join("tollgate.toml"), text.clone() + more).unwrap();
        }
        // As Kubernetes lays out a ConfigMap.
        std::os::unix::fs::symlink("..1", path("..data")).unwrap();
        std::os::unix::fs::symlink("..data/tollgate.toml", path("link")).unwrap();
        std::fs::rename(path("link"), world.config()).unwrap();
        world.logged(&["read again", "changed=upstream"]).await;
        world.send(&image("alice")).await.is(200);
        let shown = || world.backend.last().header("authorization").unwrap().to_owned();
        assert_eq!(shown(), "Bearer first-secret-of-the-backend");
        std::os::unix::fs::symlink("..2", path("..tmp")).unwrap();
        std::fs::rename(path("..tmp"), path("..data")).unwrap();
        world.logged(&["read again", "changed=route"]).await;
        world.send(&Call::get("/v1/extra").user("alice")).await.is(200);
        let count = || world.log().iter().filter(|line| line.contains("read again")).count();
        let before = count();
        std::fs::write(path("credential"), "second-secret-of-the-backend").unwrap();
        until("it is read again", || (count() > before).then_some(())).await;
        world.send(&image("alice")).await.is(200);
        assert_eq!(shown(), "Bearer second-secret-of-the-backend");
    });
}

#[test]
fn f54_a_rate_is_one_for_all_workers_and_goes_on_over_reloads() {
    run(async {
        let world = World::new(&alice());
        let began = std::time::Instant::now();
        let mut admitted = 0;
        // The first reload brings the rate, the second leaves it as it is.
        for (more, key) in
            [("[limits]\nper_user = { rps = 1, burst = 5 }\n", "limits"), (EXTRA, "route")]
        {
            world.edit(|text| {
                let at =
                    if key == "limits" { text.find("[[upstream]]").unwrap() } else { text.len() };
                let (before, after) = text.split_at(at);
                format!("{before}{more}{after}")
            });
            world.signal("HUP");
            world.logged(&["read again", key]).await;
            let answers = burst(world.gateway(), vec![image("alice"); 40], 16).await;
            admitted += answers.iter().filter(|answer| answer.status == 200).count();
        }
        // One more a second; slower than it takes, so that a second rate would be seen.
        let most = 5 + 1 + usize::try_from(began.elapsed().as_secs()).unwrap();
        assert!((5..=most).contains(&admitted), "{admitted} of at most {most}");
    });
}

#[test]
fn f54_a_backend_that_stays_keeps_its_health_and_its_connections() {
    run(async {
        let steady = Wild::start(|_, wire| wire.send(OK));
        let world =
            world(&[upstream("steady", &[steady.address], ""), route("/v1/steady", "steady", "")]);
        let mut client = world.client().await;
        client.send(&post("/v1/steady")).await.is(200);
        for _ in 0..6 {
            client.send(&post("/v1/dead")).await.refused(502, "upstream_unreachable");
        }
        world.edit(|text| text + EXTRA);
        world.signal("HUP");
        world.logged(&["read again", "changed=route"]).await;
        assert_eq!(world.metric("tollgate_upstream_healthy", &["\"dead\""]), 0.0);
        client.send(&post("/v1/steady")).await.is(200);
        assert_eq!((steady.heads().len(), steady.connections()), (2, 1));
        // What is in force is compared with the next file, also where it came by a reload.
        world.edit(|text| text.replace("drain_timeout = \"10s\"", "drain_timeout = \"9s\""));
        world.signal("HUP");
        let line = world.logged(&["read again", "gateway.drain_timeout"]).await;
        assert!(!line.contains("route"), "{line}");
    });
}

#[test]
fn f54_checks_of_health_are_those_of_the_configuration_in_force() {
    run(async {
        let checked = Wild::start(|_, wire| {
            wire.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
            false
        });
        let health = "health = { path = \"/old\", interval = \"50ms\" }";
        let world = world(&[upstream("checked", &[checked.address], health)]);
        let asked = |path: &str| {
            let line = format!("GET {path} ");
            checked.heads().iter().filter(|head| head.starts_with(&line)).count()
        };
        until("it is asked", || (asked("/old") > 0).then_some(())).await;
        world.edit(|text| text.replace("\"/old\"", "\"/new\""));
        world.signal("HUP");
        until("it is asked anew", || (asked("/new") > 0).then_some(())).await;
        // What was on its way may still arrive; then there is nothing more of it.
        let before = asked("/old");
        until("it goes on", || (asked("/new") > 20).then_some(())).await;
        assert!(asked("/old") <= before + 1, "{} after {before}", asked("/old"));
    });
}

#[test]
fn f54_proxies_and_the_drain_change_too() {
    run(async {
        let mut world = World::new(&alice());
        world.edit(|text| {
            text.replace("drain_timeout = \"10s\"", "drain_timeout = \"150ms\"")
                .replace("drain_delay = \"0s\"", "drain_delay = \"70ms\"")
                .replace("[admin]", "trusted_proxies = [\"127.0.0.0/8\"]\n[admin]")
        });
        world.signal("HUP");
        world.logged(&["read again", "gateway.trusted_proxies"]).await;
        let call = image("alice").header("x-forwarded-for", "192.0.2.1");
        world.send(&call).await.is(200);
        let seen = world.backend.last();
        assert_eq!(seen.header("x-forwarded-for"), Some("192.0.2.1, 127.0.0.1"));
        let gated = image("alice").script(&Script::gate("never"));
        let mut client = world.client().await;
        let end = async {
            until("it is in flight", || (world.backend.count() == 2).then_some(())).await;
            world.terminate();
            world.logged(&["draining", "delay=70ms"]).await;
            world.logged(&["cut off", "after=150ms"]).await;
        };
        let (answer, ()) = tokio::join!(client.try_send(&gated), end);
        assert!(answer.is_err() || !answer.unwrap().whole);
        assert_eq!(world.stopped().await.code(), Some(0));
    });
}

#[test]
fn f54_limits_change_and_what_is_in_flight_stays_counted() {
    run(async {
        let world = World::new(&alice());
        let call = image("alice").script(&Script::gate("go"));
        let reload = async {
            until("it is forwarded", || (world.backend.count() == 1).then_some(())).await;
            world.edit(|text| {
                text.replace(
                    "[[upstream]]\nname = \"media\"",
                    "[limits]\nmax_in_flight = 1\n[[upstream]]\nname = \"media\"",
                )
            });
            world.signal("HUP");
            world.logged(&["read again", "limits.max_in_flight"]).await;
            assert_eq!(world.metric("tollgate_in_flight_requests", &[]), 1.0);
            world.send(&image("alice")).await.refused(429, "too_many_in_flight");
            world.backend.open("go");
        };
        let (answer, ()) = tokio::join!(world.send(&call), reload);
        answer.is(200);
        until("its place is free", || {
            (world.metric("tollgate_in_flight_requests", &[]) == 0.0).then_some(())
        })
        .await;
        world.send(&image("alice")).await.is(200);
    });
}
