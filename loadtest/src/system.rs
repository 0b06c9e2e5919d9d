//! The processes of a measurement: started on a core, waited for, stopped by their ids.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::http;

/// The core of the system under test.
pub const SYSTEM_CORE: &str = "0";
/// The core of driver and backend.
pub const DRIVER_CORE: &str = "1";
/// Whatever core is free, for what is not measured.
pub const ANY_CORE: &str = "0,1";
/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(120);

/// Addresses of the loopback that nobody listens on now, all different.
///
/// # Errors
/// When there are none.
pub fn free<const N: usize>() -> anyhow::Result<[SocketAddr; N]> {
    let mut listeners = Vec::with_capacity(N);
    let mut found = [SocketAddr::from(([127, 0, 0, 1], 0)); N];
    for address in &mut found {
        let listener = TcpListener::bind(*address)?;
        *address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(found)
}

/// A committed configuration with its `@PLACES@` filled in.
///
/// # Errors
/// When a place is left, or the file cannot be written.
pub fn fill(
    template: &str,
    to: &Path,
    values: &[(&str, &dyn std::fmt::Display)],
) -> anyhow::Result<()> {
    let mut text = template.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("@{name}@"), &value.to_string());
    }
    let place = |piece: &str| !piece.is_empty() && piece.bytes().all(|b| b.is_ascii_uppercase());
    let mut lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let left = lines.find(|line| line.split('@').skip(1).any(place));
    if let Some(line) = left {
        bail!("{}: a place is left: {line}", to.display());
    }
    std::fs::write(to, text).with_context(|| to.display().to_string())
}

/// Has a process run on a core, with all its threads.
///
/// # Errors
/// When there is no such core.
pub fn pin(pid: u32, core: &str) -> anyhow::Result<()> {
    let done = Command::new("taskset").args(["-a", "-c", "-p", core, &pid.to_string()]).output();
    let done = done.context("taskset is not installed; on Debian: apt-get install util-linux")?;
    ensure!(
        done.status.success(),
        "needs cores 0 and 1: one for the system, one for driver and backend"
    );
    Ok(())
}

/// Waits a little before something is asked again.
pub async fn pause() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// A server on a core.
pub struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it; what it prints goes to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        name: &'static str,
        command: &mut Command,
        core: &str,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let mut pinned = Command::new("taskset");
        pinned.args(["-c", core]).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => pinned.env(key, value),
                None => pinned.env_remove(key),
            };
        }
        // A group of its own, so that nothing that it starts is left behind.
        pinned.process_group(0).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = pinned.spawn().with_context(|| format!("{name} cannot be started"))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    /// Its id: taskset becomes the command.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `path` answers 200.
    ///
    /// # Errors
    /// When it ends before, or takes too long.
    pub async fn wait_for(&mut self, address: SocketAddr, path: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.check()?;
            let asked = http::ask(address, "GET", path, &[], b"").await;
            if asked.is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{} is not ready:\n{}", self.name, self.tail());
            pause().await;
        }
    }

    /// Waits until it takes connections.
    ///
    /// # Errors
    /// When it ends before, or takes too long.
    pub async fn wait_until_connected(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while tokio::net::TcpStream::connect(address).await.is_err() {
            self.check()?;
            ensure!(Instant::now() < deadline, "{} is not ready:\n{}", self.name, self.tail());
            pause().await;
        }
        Ok(())
    }

    /// Fails where it has ended.
    ///
    /// # Errors
    /// When it has.
    pub fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}:\n{}", self.name, self.tail());
        }
        Ok(())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is not there.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed()).context("no process")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Ends it by a signal, and tells whether it said that all went well.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(&mut self, signal: Signal) -> anyhow::Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        if self.child.try_wait()?.is_none() {
            self.signal(signal)?;
        }
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.success());
            }
            ensure!(Instant::now() < deadline, "{} does not end:\n{}", self.name, self.tail());
            pause().await;
        }
    }

    /// The end of what it printed.
    pub fn tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..]).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            if let Some(group) = Pid::from_raw(self.child.id().cast_signed()) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = self.child.wait();
        }
    }
}
