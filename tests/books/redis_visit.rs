//! An address that leads to another Redis for a while (f34): nothing that was asked before is forgotten
//! or taken for something else's.

use std::time::{Duration, Instant};

use tollgate::books::redis::{self, Options, Session};
use tollgate::books::{Books, Resolution, Resolved};
use tollgate::core::charge::{OutcomeMemo, State};

use crate::engine::{NOW, account, ask, balance, done, id, legs, name, take};
use crate::engine_redis::{EventLoop, folded, options};
use crate::fault_proxy::FaultProxy;
use crate::redis_server::RedisServer;

struct Visited {
    ours: RedisServer,
    other: RedisServer,
    proxy: FaultProxy,
    engine: redis::Engine,
    session: Session,
    gateway: EventLoop,
}

impl Visited {
    fn start() -> Self {
        let (ours, other) = (RedisServer::start(), RedisServer::start());
        let proxy = FaultProxy::start(ours.port, 1);
        let options = Options {
            url: format!("redis://127.0.0.1:{}", proxy.port).into(),
            call_timeout: Duration::from_millis(200),
            deadline: Duration::from_millis(500),
            owner_timeout: Duration::from_secs(600),
            ..options(&ours)
        };
        let gateway = EventLoop::start();
        let opening = redis::Engine::open(options, gateway.handle.clone(), NOW);
        let engine = gateway.handle.block_on(opening).unwrap();
        let session = engine.session();
        Self { ours, other, proxy, engine, session, gateway }
    }

    /// How often the other one was asked by a function.
    fn asked(&self) -> u64 {
        let mut other = ::redis::Client::open(self.other.url()).unwrap().get_connection().unwrap();
        let stats: String = ::redis::cmd("INFO").arg("commandstats").query(&mut other).unwrap();
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_fcall:calls="));
        line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    }

    /// Until the other one has said that it has no such books.
    async fn visit(&self) {
        self.proxy.point_to(self.other.port);
        self.proxy.release();
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.asked() == 0 {
            assert!(Instant::now() < deadline, "the other one was never asked");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn comes_to(&self, held: u64, captured: u64) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let all = self.engine.balances().await.unwrap_or_default();
            let found = all.iter().find(|(_, of, _)| *of == name("a")).map(|(_, _, is)| *is);
            if found == Some(balance(100, 0, held, captured)) {
                break;
            }
            assert!(Instant::now() < deadline, "{found:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[test]
fn f34_what_was_asked_before_a_visit_to_another_redis_is_not_answered_with_something_else() {
    let books = Visited::start();
    let (accounts, take_ten) = ([account("a", 100, 1)], take(10, &[0]));
    books.gateway.handle.block_on(async {
        assert!(done(books.session.hold(&ask(1, &accounts, &take_ten)).await.unwrap()).is_some());
        // It is done, and nobody hears of it.
        books.proxy.keep_replies();
        let lost = books.session.hold(&ask(2, &accounts, &take_ten)).await;
        assert!(lost.is_err());
        books.visit().await;
        books.proxy.point_to(books.ours.port);
        let take_seven = take(7, &[0]);
        let deadline = Instant::now() + Duration::from_secs(60);
        let held = loop {
            if let Ok(posted) = books.session.hold(&ask(3, &accounts, &take_seven)).await {
                break legs(posted).unwrap().0;
            }
            assert!(Instant::now() < deadline, "it does not go on");
        };
        assert_eq!(held[0].amount, 7);
        books.comes_to(17, 0).await;
    });
    assert_eq!(folded(&books.engine, &books.gateway.handle)[&name("a")], balance(100, 0, 17, 0));
}

#[test]
fn f34_what_gives_back_is_asked_again_after_a_visit_to_another_redis() {
    let books = Visited::start();
    let (accounts, take_ten) = ([account("a", 100, 1)], take(10, &[0]));
    books.gateway.handle.block_on(async {
        for charge in [1, 2] {
            books.session.hold(&ask(charge, &accounts, &take_ten)).await.unwrap();
        }
        books.proxy.point_to(books.other.port);
        let memo = OutcomeMemo::default();
        let void = Resolution::plain(State::Voided, &[], NOW, &memo);
        assert!(books.session.resolve(id(1), &void).await.is_err());
        let capture = Resolution::plain(State::Captured, &[4], NOW, &memo);
        let told = books.session.resolve(id(2), &capture).await;
        assert!(!matches!(told, Ok(Resolved::Done(..))), "{told:?}");
        books.visit().await;
        books.proxy.point_to(books.ours.port);
        books.comes_to(0, 4).await;
    });
}
