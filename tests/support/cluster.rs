//! Servers of a Redis Cluster: slots that move, masters that die, replicas that take over.

use super::redis_server::{FREE, RedisServer, until};

/// Servers of one Cluster, the masters first.
pub struct Cluster {
    pub servers: Vec<RedisServer>,
    settings: Vec<&'static str>,
}

impl Cluster {
    /// So many masters with all slots, and a replica for each where that is wanted.
    pub fn start(masters: usize, replicas: bool) -> Self {
        // Nobody takes over by himself.
        Self::start_with(masters, replicas, &["--cluster-node-timeout", "60000"])
    }

    /// With other settings: after which time a master is given up is one.
    pub fn start_with(masters: usize, replicas: bool, settings: &[&'static str]) -> Self {
        let count = if replicas { 2 * masters } else { masters };
        let servers = (0..count).map(|_| server(settings)).collect();
        let cluster = Self { servers, settings: settings.to_vec() };
        for (at, server) in cluster.servers.iter().enumerate() {
            // Else two of them may claim the same one first.
            server.command::<()>(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]).unwrap();
            cluster.meet(server);
            if at < masters {
                let [first, last] = [at, at + 1].map(|at| 16_384 * at / masters);
                let (first, last) = (first.to_string(), (last - 1).to_string());
                server.command::<()>(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]).unwrap();
            }
        }
        cluster.settled();
        for (master, replica) in cluster.servers.iter().zip(&cluster.servers[masters..]) {
            let id: String = master.command(&["CLUSTER", "MYID"]).unwrap();
            replica.command::<()>(&["CLUSTER", "REPLICATE", &id]).unwrap();
            master.until_followed();
        }
        cluster
    }

    fn meet(&self, server: &RedisServer) {
        let (port, bus) = (self.servers[0].port.to_string(), self.servers[0].setting(BUS));
        server.command::<()>(&["CLUSTER", "MEET", "127.0.0.1", &port, bus]).unwrap();
    }

    /// All know all, and that all slots are somebody's.
    fn settled(&self) {
        let all = format!("cluster_known_nodes:{}\r", self.servers.len());
        for server in &self.servers {
            until("a Cluster is whole", || {
                let told: String = server.command(&["CLUSTER", "INFO"]).unwrap();
                told.contains("cluster_state:ok\r") && told.contains(&all)
            });
        }
    }

    /// One more master, which has no slot and no library.
    pub fn add_master(&mut self) {
        let server = server(&self.settings);
        self.meet(&server);
        self.servers.push(server);
        self.settled();
    }

    /// Two of its servers are enough to find it.
    pub fn url(&self) -> String {
        format!("{} {}", self.servers[0].url(), self.servers[1].url())
    }

    /// Which master has the keys of a shard.
    pub fn master_of(&self, shard: usize) -> usize {
        self.find_master_of(shard).unwrap()
    }

    /// The same where it may be nobody for a while.
    pub fn find_master_of(&self, shard: usize) -> Option<usize> {
        let key = format!("tollgate:{{s{shard}}}:meta");
        let is_there = |server: &RedisServer| server.command::<u64>(&["EXISTS", &key]) == Ok(1);
        self.servers.iter().position(is_there)
    }

    /// Moves a shard's slot, key by key.
    pub fn move_shard(&self, shard: usize, to: usize, between: impl Fn(usize)) {
        let (from, to) = (&self.servers[self.master_of(shard)], &self.servers[to]);
        let [from_id, to_id] =
            [from, to].map(|server| server.command::<String>(&["CLUSTER", "MYID"]).unwrap());
        let tag = format!("{{s{shard}}}");
        let slot: u64 = from.command(&["CLUSTER", "KEYSLOT", &tag]).unwrap();
        let slot = slot.to_string();
        let set = |server: &RedisServer, how: &[&str]| {
            let words = [&["CLUSTER", "SETSLOT", &slot], how].concat();
            server.command::<()>(&words).unwrap();
        };
        set(to, &["IMPORTING", &from_id]);
        set(from, &["MIGRATING", &to_id]);
        for step in 0.. {
            between(step);
            let keys: Vec<String> =
                from.command(&["CLUSTER", "GETKEYSINSLOT", &slot, "1"]).unwrap();
            let Some(key) = keys.first() else { break };
            let port = to.port.to_string();
            let moved = from.command::<String>(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
            // Whoever asked while it was moved may have deleted it.
            assert!(moved.is_ok_and(|told| told == "OK" || told == "NOKEY"), "{key}");
        }
        set(to, &["NODE", &to_id]);
        set(from, &["NODE", &to_id]);
        for server in &self.servers {
            // The others hear of it; those that are replicas may not be told so.
            let _ = server.command::<()>(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
        }
    }
}

const BUS: &str = "--cluster-port";

fn server(settings: &[&str]) -> RedisServer {
    let cluster = ["--cluster-enabled", "yes", BUS, FREE, "--repl-diskless-sync-delay", "0"];
    RedisServer::start_with(&[&cluster[..], settings].concat())
}
