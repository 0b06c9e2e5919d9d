//! The archive of a shard while another Redis takes its place (f27).

use std::sync::Arc;
use std::time::Duration;

use tollgate::books::redis::{Engine, Options};
use tollgate::directory::Place;
use tollgate::ledger::archive::Archive;

use crate::archive_shards::{SHARDS, all, expected, stopped, told, turn, until};
use crate::engine::{NOW, run, temporary};
use crate::engine_redis::{EventLoop, options};
use crate::fault_proxy::FaultProxy;
use crate::redis_server::RedisServer;

/// The archive has read how far a shard is, and reads its entries from one that lost some of them.
#[test]
fn f27_d37_entries_of_another_redis_do_not_count_as_those_that_it_lost() {
    let (runtime, dir) = (EventLoop::start(), temporary());
    let [server, mut other] = [(); 2].map(|()| RedisServer::start_with(&["--appendonly", "yes"]));
    let proxy = FaultProxy::start(server.port, 1);
    let options = Options {
        url: format!("redis://127.0.0.1:{}", proxy.port).into(),
        shards: SHARDS,
        journal: Some(dir.path().join("journal")),
        rejoin_timeout: Duration::from_millis(100),
        ..options(&server)
    };
    let opening = Engine::open(options, runtime.handle.clone(), NOW);
    let engine = Arc::new(runtime.handle.block_on(opening).unwrap());
    run(async {
        let expected = expected(9).await;
        let place = Place::File(dir.path().join("archive.db"));
        let archive = Archive::of_shards(place, Arc::clone(&engine), 0).await.unwrap();
        let session = engine.session();
        for number in 0..4 {
            turn(&session, number).await;
        }
        all(&archive).await;
        let snapshot = server.snapshot();
        for number in 4..7 {
            turn(&session, number).await;
        }
        other.kill();
        other.put_back(&snapshot);
        other.start_again();
        proxy.keep_requests("XRANGE");
        let switch = async {
            until("entries are asked for", async || proxy.kept() > 0).await;
            proxy.point_to(other.port);
            proxy.release();
        };
        let (followed, ()) = tokio::join!(archive.follow(stopped()), switch);
        followed.unwrap();
        for number in 7..9 {
            turn(&session, number).await;
        }
        all(&archive).await;
        assert_eq!(told(&archive, 9).await, expected);
        archive.close().await;
    });
}
