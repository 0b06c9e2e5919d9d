//! Systems that others made, by what they are started with. Another one is a configuration in
//! `peers/` and a constant here.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::measure::Watched;
use crate::system::{self, Process, SYSTEM_CORE};

/// A system: all the processes that it needs, the one that is loaded first.
///
/// In each part's configuration `@DIR@` is its own directory, `@BACKEND@` the backend's port, and
/// `@NAME@` the port of the part of that name, in capitals; `@PORT@` is that of the first.
pub struct Peer {
    /// What it is called.
    pub name: &'static str,
    /// Its processes.
    pub parts: &'static [Part],
}

/// A process of a peer.
pub struct Part {
    /// What it is called.
    pub name: &'static str,
    /// Its configuration.
    pub config: &'static str,
    /// The command that starts it with the configuration, in its directory.
    pub command: fn(&Path) -> Command,
    /// What it is part of for whoever has to install it.
    pub package: &'static str,
}

/// What P1 compares with.
pub const NGINX: Peer = Peer {
    name: "nginx forwards",
    parts: &[Part {
        name: "nginx",
        config: include_str!("../peers/nginx.conf"),
        command: |config| {
            let mut command = Command::new("nginx");
            let errors = config.with_file_name("error.log");
            command.arg("-c").arg(config).arg("-e").arg(errors);
            command
        },
        package: "nginx-light",
    }],
};

/// A peer that serves.
pub struct Running {
    /// Where it takes requests.
    pub address: SocketAddr,
    processes: Vec<(&'static str, Process)>,
}

impl Peer {
    /// Starts it on the system's core, and waits until it forwards to the backend.
    ///
    /// # Errors
    /// When a part of it does not start.
    pub async fn start(&self, dir: &Path, backend: SocketAddr) -> anyhow::Result<Running> {
        let mut addresses = Vec::new();
        for _ in self.parts {
            let [address] = system::free()?;
            addresses.push(address);
        }
        let address = addresses[0];
        let mut processes = Vec::new();
        // What others need comes last in the list, and first to life.
        for part in self.parts.iter().rev() {
            let dir = dir.join(part.name);
            std::fs::create_dir_all(&dir)?;
            let names: Vec<String> =
                self.parts.iter().map(|part| part.name.to_uppercase()).collect();
            let ports: Vec<u16> = addresses.iter().map(SocketAddr::port).collect();
            let (shown, backend_port, port) = (dir.display(), backend.port(), address.port());
            let mut values: Vec<(&str, &dyn std::fmt::Display)> =
                vec![("DIR", &shown), ("BACKEND", &backend_port), ("PORT", &port)];
            for (name, port) in names.iter().zip(&ports) {
                values.push((name, port));
            }
            let config = dir.join("config");
            system::fill(part.config, &config, &values)?;
            let mut command = (part.command)(&config);
            let started = Process::start(part.name, &mut command, SYSTEM_CORE, &dir.join("log"));
            let process = started.map_err(|error| {
                error.context(format!("on Debian: apt-get install {}", part.package))
            })?;
            processes.insert(0, (part.name, process));
        }
        if let Some((_, first)) = processes.first_mut() {
            first.wait_for(address, "/backend/status").await?;
        }
        Ok(Running { address, processes })
    }
}

impl Running {
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
