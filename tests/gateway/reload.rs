//! Another configuration while the gateway runs: f54.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{Access, Call, Client, Org, Script, World, burst, run, until};

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
