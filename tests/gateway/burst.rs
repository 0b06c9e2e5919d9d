//! D24 and f22: 2,000 requests at once against credit for K of them.

use crate::support::{Access, Answer, Call, Org, Script, World, burst, run, until};

/// How many requests there are, and over how many connections they come.
const REQUESTS: usize = 2000;
const CONNECTIONS: usize = 200;

/// Sends 2,000 requests of one credit (0.5 Operations) and checks that exactly `k` are admitted,
/// the others refused with `code`, and that the backend saw what was admitted and no more.
async fn admits(world: &World, users: &[&str], k: usize, code: &str) {
    let before = world.backend.count();
    let call = |at: usize| Call::post("/v1/images", "{}").user(users[at % users.len()]);
    let calls = (0..REQUESTS).map(call).collect();
    let answers = burst(world.gateway(), calls, CONNECTIONS).await;
    check(world, &answers, before, k, code);
    world.accounts_for(users).await;
    world.verify();
}

fn check(world: &World, answers: &[Answer], before: usize, k: usize, code: &str) {
    let mut charges: Vec<String> = Vec::new();
    let mut refused = 0;
    for answer in answers {
        if answer.status == 200 {
            answer.is(200).tells(&[("state", "captured"), ("cost", "1")]);
            charges.push(answer.told("charge"));
        } else {
            answer.refused(402, code);
            refused += 1;
        }
    }
    assert_eq!((charges.len(), refused), (k, REQUESTS - k), "{code}");
    let seen = world.backend.seen();
    let mut forwarded: Vec<&str> = seen[before..].iter().filter_map(|seen| seen.charge()).collect();
    assert_eq!(forwarded.len(), seen.len() - before, "something was forwarded without a charge");
    forwarded.sort_unstable();
    charges.sort_unstable();
    assert_eq!(charges, forwarded, "what was answered and what was forwarded");
}

#[test]
fn d24_f22_two_thousand_requests_admit_exactly_k_for_a_seat() {
    for k in [1, 777, 1999] {
        run(async {
            let world = World::new(&Org::new().user("alice", &k.to_string(), Access::None));
            admits(&world, &["alice"], k, "seat_exhausted").await;
            world.seat("alice", &k.to_string(), "0", "0");
        });
    }
}

#[test]
fn d24_f22_two_thousand_requests_admit_exactly_k_for_a_stacked_seat_that_the_pool_follows() {
    for (seat, pool) in [(100, 23), (1, 1400)] {
        run(async {
            let licences = vec![
                ("a".to_owned(), "0.5".to_owned(), String::new()),
                ("b".to_owned(), seat.to_string(), String::new()),
            ];
            // Half a credit and half of the pool's price for it make one more request.
            let operations = format!("{}.25", pool / 2 + pool % 2);
            let extra = (pool / 2 + pool % 2) * 2;
            let org = Org::new().pool(&operations).stacked("alice", licences, Access::Pool);
            let world = World::new(&org);
            admits(&world, &["alice"], seat + 1 + extra, "pool_exhausted").await;
            world.seat("alice", &format!("{seat}.5"), "0", &operations);
            assert_eq!(world.pool()["available"], "0");
        });
    }
}

#[test]
fn d24_f22_two_thousand_requests_admit_exactly_k_for_the_pool() {
    for k in [2, 900, 1998] {
        run(async {
            let operations = (k / 2).to_string();
            let org = Org::new().pool(&operations);
            let org =
                ["a", "b", "c", "d"].iter().fold(org, |org, id| org.user(id, "", Access::Pool));
            let world = World::new(&org);
            admits(&world, &["a", "b", "c", "d"], k, "pool_exhausted").await;
            let pool = world.pool();
            assert_eq!((&pool["captured"], &pool["available"]), (&operations.into(), &"0".into()));
        });
    }
}

#[test]
fn d24_f22_two_thousand_requests_admit_exactly_k_for_a_draw_limit() {
    for k in [2, 640, 1998] {
        run(async {
            let limit = (k / 2).to_string();
            let org = Org::new().pool("5000").offer(&format!("pool_limit = \"{limit}\"\n"));
            let world = World::new(&org.user("alice", "", Access::Pool));
            admits(&world, &["alice"], k, "pool_limit_reached").await;
            world.seat("alice", "0", "0", &limit);
            assert_eq!(world.pool()["captured"], limit);
        });
    }
}

#[test]
fn d24_f22_two_thousand_requests_admit_exactly_k_for_an_overage_cap() {
    for (pool, cap) in [(0, 1), (200, 123), (1, 998)] {
        run(async {
            let org = Org::new().pool(&pool.to_string());
            let org = org.settings(&format!("overage = {{ bill_up_to = \"{cap}\" }}"));
            let world =
                World::new(&org.user("alice", "", Access::Pool).user("bob", "", Access::Pool));
            admits(&world, &["alice", "bob"], 2 * (pool + cap), "overage_cap_reached").await;
            let found = world.pool();
            assert_eq!(found["captured"], pool.to_string());
            assert_eq!(found["overage"]["captured"], cap.to_string());
        });
    }
}

/// As before, but nothing that was admitted is answered before everything else was refused: it
/// is the holds in flight that keep others out, not captures.
#[test]
fn d24_f22_two_thousand_requests_admit_exactly_k_while_all_k_are_in_flight() {
    for k in [1, 99, 150] {
        run(async {
            let world = World::new(&Org::new().user("alice", &k.to_string(), Access::None));
            let script = Script::gate("all");
            let call = Call::post("/v1/images", "{}").user("alice").script(&script);
            let gateway = world.gateway();
            let burst = tokio::task::LocalSet::new();
            let sent = burst.run_until(async {
                let answers =
                    tokio::task::spawn_local(async move { burst_of(gateway, call).await });
                let refusals = || {
                    let refused = world.metric("tollgate_refusals_total", &["seat_exhausted"]);
                    (refused == (REQUESTS - k) as f64).then_some(())
                };
                until("all others are refused", refusals).await;
                assert_eq!(world.backend.count(), k);
                assert_eq!(world.metric("tollgate_holds_open", &[]), k as f64);
                let seat = world.balance("alice")["seat"].clone();
                assert_eq!(
                    (&seat["held"], &seat["captured"]),
                    (&k.to_string().into(), &"0".into())
                );
                world.backend.open("all");
                answers.await.unwrap()
            });
            check(&world, &sent.await, 0, k, "seat_exhausted");
            world.accounts_for(&["alice"]).await;
        });
    }
}

async fn burst_of(gateway: std::net::SocketAddr, call: Call) -> Vec<Answer> {
    burst(gateway, vec![call; REQUESTS], CONNECTIONS).await
}
