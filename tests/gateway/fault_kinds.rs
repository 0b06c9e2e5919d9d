//! The faults of the campaign.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::faults::{Campaign, OWNER_TIMEOUT, SHARDS};
use crate::support::redis::RedisServer;

/// What is different in the Redis of the campaign. No machine loses power, and whoever waits for a busy
/// disk is slow for no fault of its own.
pub const REDIS: [&str; 6] =
    ["--appendonly", "yes", "--appendfsync", "no", "--repl-diskless-sync-delay", "0"];
/// And in the servers of its Cluster, which give up a master after this time.
pub const OF_SERVERS: [&str; 6] =
    ["--appendonly", "yes", "--appendfsync", "no", "--cluster-node-timeout", "4000"];
/// A port on which nobody listens: a replica of that gets nothing more.
const NOBODY: &str = "2";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    GatewayKilled,
    GatewayStopped,
    GatewayStoppedLong,
    RedisKilled,
    RedisStopped,
    RedisStoppedLong,
    BothKilled,
    Paused,
    FunctionsFlushed,
    OldSnapshot,
    TinyMemory,
    ReadOnly,
    Promotion,
    PromotionWithLoss,
    ThereAndBack,
    PostgresKilled,
    Flushed,
    MasterFails,
    SlotsMove,
    /// Apart from the others, because it lasts.
    PostgresAway(Duration),
}

/// Those of a Cluster.
pub const OF_A_CLUSTER: [Kind; 2] = [Kind::MasterFails, Kind::SlotsMove];

/// Those of one Redis.
pub const KINDS: [Kind; 17] = [
    Kind::GatewayKilled,
    Kind::GatewayStopped,
    Kind::GatewayStoppedLong,
    Kind::RedisKilled,
    Kind::RedisStopped,
    Kind::RedisStoppedLong,
    Kind::BothKilled,
    Kind::Paused,
    Kind::FunctionsFlushed,
    Kind::OldSnapshot,
    Kind::TinyMemory,
    Kind::ReadOnly,
    Kind::Promotion,
    Kind::PromotionWithLoss,
    Kind::ThereAndBack,
    Kind::PostgresKilled,
    Kind::Flushed,
];

impl Kind {
    /// Whether what Redis acknowledged may be lost, and spent again before it is done again.
    pub fn is_lossy(self) -> bool {
        matches!(
            self,
            Self::RedisKilled
                | Self::BothKilled
                | Self::OldSnapshot
                | Self::PromotionWithLoss
                | Self::ThereAndBack
                | Self::Flushed
                | Self::MasterFails
        )
    }

    /// Makes it happen, and returns when it is over.
    pub async fn happens(self, campaign: &mut Campaign) {
        match self {
            Self::GatewayKilled => campaign.kill_gateway(false).await,
            Self::BothKilled => campaign.kill_gateway(true).await,
            Self::GatewayStopped => campaign.stop_gateway(OWNER_TIMEOUT / 4).await,
            Self::GatewayStoppedLong => campaign.stop_gateway(OWNER_TIMEOUT * 3 / 2).await,
            Self::RedisKilled => {
                campaign.redis.kill();
                campaign.some_time(300).await;
                campaign.redis.start_again();
            }
            Self::RedisStopped => campaign.stop_redis(OWNER_TIMEOUT / 4).await,
            Self::RedisStoppedLong => campaign.stop_redis(OWNER_TIMEOUT * 3 / 2).await,
            Self::Paused => {
                campaign.redis.ask::<()>(&["CLIENT", "PAUSE", "700"]);
                sleep(Duration::from_millis(700)).await;
            }
            Self::FunctionsFlushed => campaign.redis.ask(&["FUNCTION", "FLUSH"]),
            Self::OldSnapshot => campaign.old_snapshot().await,
            Self::Flushed => campaign.flushed().await,
            Self::MasterFails => campaign.master_fails().await,
            Self::SlotsMove => campaign.slots_move(),
            Self::TinyMemory => campaign.tiny_memory().await,
            Self::ReadOnly => campaign.read_only().await,
            Self::Promotion => campaign.promotion(false).await,
            Self::PromotionWithLoss => campaign.promotion(true).await,
            Self::ThereAndBack => campaign.there_and_back().await,
            Self::PostgresKilled => campaign.postgres_away(Duration::from_secs(1), true).await,
            Self::PostgresAway(time) => campaign.postgres_away(time, false).await,
        }
    }
}

impl Campaign {
    async fn kill_gateway(&mut self, with_redis: bool) {
        let at = self.random.below(3);
        self.worlds[at].kill();
        if with_redis {
            self.redis.kill();
        }
        self.some_time(300).await;
        if with_redis {
            self.redis.start_again();
            // It may come when the shards are open again.
            self.some_time(3000).await;
        }
        self.start_gateway(at);
    }

    async fn stop_gateway(&mut self, time: Duration) {
        let at = self.random.below(3);
        self.worlds[at].signal("STOP");
        sleep(time).await;
        self.worlds[at].signal("CONT");
    }

    async fn stop_redis(&mut self, time: Duration) {
        self.redis.pause(true);
        sleep(time).await;
        self.redis.pause(false);
    }

    /// Redis comes back with what it had some time ago, which may be before the last faults.
    async fn old_snapshot(&mut self) {
        if self.random.below(2) == 0 {
            self.snapshot = (self.redis.snapshot(), Instant::now());
            self.some_time(500).await;
        }
        self.redis.kill();
        self.redis.put_back(&self.snapshot.0);
        self.put_back_by = self.snapshot.1.elapsed();
        self.redis.start_again();
    }

    /// Everything is deleted, which serves nobody, until somebody puts back what there was.
    async fn flushed(&mut self) {
        self.snapshot = (self.redis.snapshot(), Instant::now());
        self.some_time(500).await;
        self.redis.ask::<()>(&["FLUSHALL"]);
        for at in 0..3 {
            self.probe(at, &self.org).await.refused(503, "books_unavailable");
        }
        self.some_time(500).await;
        self.redis.kill();
        self.redis.put_back(&self.snapshot.0);
        self.put_back_by = self.snapshot.1.elapsed();
        self.redis.start_again();
    }

    /// A master of the Cluster dies, the others have its replica take over, and it comes back as one.
    async fn master_fails(&mut self) {
        let shard = self.random.below(SHARDS);
        let cluster = self.cluster.as_mut().expect("it is a Cluster");
        let dead = cluster.master_of(shard);
        cluster.servers[dead].kill();
        let began = Instant::now();
        while cluster.find_master_of(shard).is_none() {
            assert!(began.elapsed() < Duration::from_secs(90), "nobody takes over");
            sleep(Duration::from_millis(20)).await;
        }
        cluster.servers[dead].start_again();
        let follows = ["role:slave", "master_link_status:up", "master_sync_in_progress:0"];
        wait_for(&cluster.servers[dead], "replication", &follows).await;
    }

    /// Each shard goes to another master, while it is used.
    fn slots_move(&mut self) {
        let cluster = self.cluster.as_ref().expect("it is a Cluster");
        for shard in 0..SHARDS {
            let from = cluster.master_of(shard);
            let is_other = |at: &usize| {
                let told: String = cluster.servers[*at].ask(&["INFO", "replication"]);
                *at != from && told.contains("role:master")
            };
            let others: Vec<usize> = (0..cluster.servers.len()).filter(is_other).collect();
            cluster.move_shard(shard, others[self.random.below(others.len())], |_| ());
        }
    }

    /// At `maxmemory` nothing is held, and what is open still ends.
    async fn tiny_memory(&mut self) {
        self.redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1mb"]);
        for at in 0..3 {
            let answer = self.probe(at, &self.org).await;
            answer.refused(503, "books_unavailable");
        }
        self.some_time(500).await;
        self.redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    }

    /// The address leads to a replica, and back.
    async fn read_only(&mut self) {
        let replica = replica_of(&self.redis).await;
        self.proxy.point_to(replica.port);
        for at in 0..3 {
            let answer = self.probe(at, &self.org).await;
            answer.refused(503, "books_unavailable");
        }
        self.some_time(500).await;
        self.proxy.point_to(self.redis.port);
    }

    /// A replica takes over: with everything, or without the last things.
    async fn promotion(&mut self, with_loss: bool) {
        let replica = replica_of(&self.redis).await;
        if with_loss {
            replica.ask::<()>(&["REPLICAOF", "127.0.0.1", NOBODY]);
            sleep(Duration::from_millis(100)).await;
            self.some_time(500).await;
            self.redis.kill();
        } else {
            has_everything(&self.redis, &replica).await;
        }
        replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
        self.proxy.point_to(replica.port);
        self.redis = replica;
    }

    /// A replica takes over, and then the first one again: as the same process, and without the last
    /// things.
    async fn there_and_back(&mut self) {
        let mut replica = replica_of(&self.redis).await;
        has_everything(&self.redis, &replica).await;
        replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
        self.proxy.point_to(replica.port);
        self.redis.ask::<()>(&["CLIENT", "UNPAUSE"]);
        becomes_replica(&self.redis, &replica).await;
        sleep(Duration::from_millis(500)).await;
        self.redis.ask::<()>(&["REPLICAOF", "127.0.0.1", NOBODY]);
        sleep(Duration::from_millis(100)).await;
        self.some_time(500).await;
        replica.kill();
        self.redis.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
        self.proxy.point_to(self.redis.port);
    }

    /// Traffic goes on from what is known, and changes are refused.
    async fn postgres_away(&mut self, time: Duration, is_killed: bool) {
        if is_killed {
            self.postgres.kill();
        } else {
            self.postgres.pause(true);
        }
        let began = Instant::now();
        loop {
            for at in 0..3 {
                self.probe(at, &self.org).await.is(200);
                self.change(at).await.refused(503, "directory_unavailable");
            }
            if began.elapsed() >= time {
                break;
            }
            sleep(Duration::from_millis(200)).await;
        }
        match is_killed {
            true => self.postgres.start_again().await,
            false => self.postgres.pause(false),
        }
        for at in 0..3 {
            let began = Instant::now();
            loop {
                let answer = self.change(at).await;
                if answer.status == 200 {
                    break;
                }
                answer.refused(503, "directory_unavailable");
                assert!(began.elapsed() < Duration::from_secs(15), "{answer:?}");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// A new replica that has caught up.
async fn replica_of(master: &RedisServer) -> RedisServer {
    let replica = RedisServer::start_with(&REDIS);
    becomes_replica(&replica, master).await;
    replica
}

async fn becomes_replica(replica: &RedisServer, master: &RedisServer) {
    replica.ask::<()>(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]);
    wait_for(replica, "replication", &["master_link_status:up", "master_sync_in_progress:0"]).await;
    // Whoever is killed before that comes back with nothing.
    let kept = ["aof_enabled:1", "aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0"];
    wait_for(replica, "persistence", &kept).await;
}

async fn wait_for(server: &RedisServer, section: &str, lines: &[&str]) {
    let began = Instant::now();
    loop {
        let told: String = server.ask(&["INFO", section]);
        if lines.iter().all(|line| told.lines().any(|known| known == *line)) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{told}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Lets nobody write any more, and waits until the replica has all that was written.
async fn has_everything(master: &RedisServer, replica: &RedisServer) {
    master.ask::<()>(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    let told: String = master.ask(&["INFO", "replication"]);
    let line = told.lines().find_map(|line| line.strip_prefix("master_repl_offset:"));
    let offset: u64 = line.unwrap().parse().unwrap();
    let began = Instant::now();
    loop {
        let told: String = replica.ask(&["INFO", "replication"]);
        let line = told.lines().find_map(|line| line.strip_prefix("slave_repl_offset:"));
        if line.unwrap().parse::<u64>().unwrap() >= offset {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{told}");
        sleep(Duration::from_millis(5)).await;
    }
}
