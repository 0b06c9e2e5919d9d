//! Systems that others made, by what they are started with. Another one is a configuration in
//! `peers/` and a constant here.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::measure::Watched;
use crate::resp;
use crate::system::{self, Process, SYSTEM_CORE};

/// How peers are installed.
const INSTALL: &str = "loadtest/peers/install";
/// Where those are that Debian does not have.
const BIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers/bin");
/// Takes a credit of a user's.
const TAKE: &str = include_str!("../peers/take.lua");
/// What each user has at first, where a peer counts.
const CREDITS: u64 = 1_000_000_000;

/// A system: all the processes that it needs, the one that is loaded first.
///
/// In each part's configuration `@DIR@` is its own directory, `@BACKEND@` the backend's port,
/// `@NAME@` the port of the part of that name, in capitals, `@PORT@` that of the first, and `@SHA@`
/// the script of a peer that counts.
pub struct Peer {
    /// What it is called on the command line.
    pub key: &'static str,
    /// What it is called in reports.
    pub name: &'static str,
    /// What it does with a request, and what it does not.
    pub does: &'static str,
    /// Its processes.
    pub parts: &'static [Part],
    /// Whether it takes a credit from a counter in its last part, a Redis.
    pub counts: bool,
}

/// A process of a peer.
pub struct Part {
    /// What it is called.
    pub name: &'static str,
    /// The name of its configuration, and what is in it.
    config: (&'static str, &'static str),
    /// The command that starts it with the configuration, in its directory.
    command: fn(&Path) -> Command,
    /// The program, and how it tells its version.
    pub version: (&'static str, &'static str),
}

fn nginx(config: &Path) -> Command {
    let mut command = Command::new("nginx");
    command.arg("-c").arg(config).arg("-e").arg(config.with_file_name("error.log"));
    command
}

fn haproxy(config: &Path) -> Command {
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(config);
    command
}

fn redis(config: &Path) -> Command {
    let mut command = Command::new("redis-server");
    command.arg(config);
    command
}

fn envoy(config: &Path) -> Command {
    let mut command = Command::new(Path::new(BIN).join("envoy"));
    command.arg("-c").arg(config).args(["--concurrency", "1", "--log-level", "error"]);
    command.args(["--disable-hot-restart", "--use-dynamic-base-id"]);
    command
}

/// All of them; the first is what P1 and P8 compare with.
pub const PEERS: &[Peer] = &[
    Peer {
        key: "nginx",
        name: "nginx",
        does: "forwards only",
        parts: &[Part {
            name: "nginx",
            config: ("nginx.conf", include_str!("../peers/nginx.conf")),
            command: nginx,
            version: ("nginx", "-v"),
        }],
        counts: false,
    },
    Peer {
        key: "haproxy",
        name: "HAProxy",
        does: "forwards only",
        parts: &[Part {
            name: "haproxy",
            config: ("haproxy.cfg", include_str!("../peers/haproxy.cfg")),
            command: haproxy,
            version: ("haproxy", "-v"),
        }],
        counts: false,
    },
    Peer {
        key: "nginx-redis",
        name: "nginx + Lua + Redis",
        does: "has Redis take one credit from the user's counter; knows no key, price, pool or record, and gives nothing back",
        parts: &[
            Part {
                name: "nginx",
                config: ("nginx.conf", include_str!("../peers/nginx-redis.conf")),
                command: nginx,
                version: ("nginx", "-v"),
            },
            Part {
                name: "redis",
                config: ("redis.conf", include_str!("../peers/redis.conf")),
                command: redis,
                version: ("redis-server", "--version"),
            },
        ],
        counts: true,
    },
    Peer {
        key: "envoy",
        name: "Envoy",
        does: "forwards only",
        parts: &[Part {
            name: "envoy",
            config: ("envoy.yaml", include_str!("../peers/envoy.yaml")),
            command: envoy,
            version: (
                concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers/bin/envoy"),
                "--version",
            ),
        }],
        counts: false,
    },
];

/// A peer that serves.
pub struct Running {
    /// Where it takes requests.
    pub address: SocketAddr,
    processes: Vec<(&'static str, Process)>,
    /// Its counters, and how many users have one.
    counters: Option<(SocketAddr, u64)>,
}

impl Peer {
    /// Starts it on the system's core, and waits until it forwards to the backend.
    ///
    /// # Errors
    /// When a part of it does not start.
    pub async fn start(
        &self,
        dir: &Path,
        backend: SocketAddr,
        users: u64,
    ) -> anyhow::Result<Running> {
        let free = system::free::<2>()?;
        let addresses = &free[..self.parts.len()];
        let address = addresses[0];
        let names: Vec<String> = self.parts.iter().map(|part| part.name.to_uppercase()).collect();
        let mut processes = Vec::new();
        let mut script = String::new();
        let mut counters = None;
        // What others need comes last in the list, and first to life.
        for (index, part) in self.parts.iter().enumerate().rev() {
            let dir = dir.join(self.key).join(part.name);
            std::fs::create_dir_all(&dir)?;
            let ports: Vec<u16> = addresses.iter().map(SocketAddr::port).collect();
            let (shown, backend_port, port) = (dir.display(), backend.port(), address.port());
            let mut values: Vec<(&str, &dyn std::fmt::Display)> = vec![
                ("DIR", &shown),
                ("BACKEND", &backend_port),
                ("PORT", &port),
                ("SHA", &script),
            ];
            for (name, port) in names.iter().zip(&ports) {
                values.push((name, port));
            }
            let config = dir.join(part.config.0);
            system::fill(part.config.1, &config, &values)?;
            let mut command = (part.command)(&config);
            let started = Process::start(part.name, &mut command, SYSTEM_CORE, &dir.join("log"));
            let mut process = started.with_context(install)?;
            if self.counts && index + 1 == self.parts.len() {
                process.wait_until_connected(addresses[index]).await.with_context(install)?;
                script = resp::call(addresses[index], &["SCRIPT", "LOAD", TAKE]).await?;
                give(addresses[index], users).await?;
                counters = Some((addresses[index], users));
            }
            processes.insert(0, (part.name, process));
        }
        if let Some((_, first)) = processes.first_mut() {
            first.wait_for(address, "/backend/status").await.with_context(install)?;
        }
        Ok(Running { address, processes, counters })
    }
}

fn install() -> String {
    format!("installed by {INSTALL}")
}

/// A counter for each of these users, whose names begin with an `a`.
async fn give(redis: SocketAddr, users: u64) -> anyhow::Result<()> {
    let each = "for i = 0, ARGV[1] - 1 do \
                redis.call('SET', string.format('credits:a%07d', i), ARGV[2]) end return 1";
    let (users, credits) = (users.to_string(), CREDITS.to_string());
    resp::call(redis, &["EVAL", each, "0", &users, &credits]).await.map(drop)
}

impl Running {
    /// How many credits it has taken so far; nothing where it does not count.
    ///
    /// # Errors
    /// When its Redis does not say.
    pub async fn taken(&self) -> anyhow::Result<Option<u64>> {
        let Some((redis, users)) = self.counters else { return Ok(None) };
        let sum = "local sum = 0 for i = 0, ARGV[1] - 1 do sum = sum + ARGV[2] - \
                   redis.call('GET', string.format('credits:a%07d', i)) end return sum";
        let (users, credits) = (users.to_string(), CREDITS.to_string());
        let sum = resp::call(redis, &["EVAL", sum, "0", &users, &credits]).await?;
        Ok(Some(sum.parse()?))
    }

    /// Its processes.
    pub fn watched(&self) -> Vec<Watched> {
        let named = self.processes.iter();
        named
            .map(|(name, process)| Watched {
                name: (*name).to_owned(),
                pid: process.pid(),
                children: true,
                system: true,
            })
            .collect()
    }
}
