//! CPU time of a system: every process it needs, from /proc, archive threads apart.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, ensure};

/// Microseconds of user and system time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Of all threads but these.
    pub system: u64,
    /// Of threads named `archive*`.
    pub archive: u64,
    /// Whose.
    pub pids: BTreeSet<u32>,
}

impl Cpu {
    /// What was used between two looks.
    ///
    /// # Errors
    /// When a process came or went: it would take its time with it, and the sum would mean nothing.
    pub fn since(&self, before: &Self) -> anyhow::Result<Self> {
        let same = self.pids == before.pids;
        ensure!(same, "processes changed: {:?} to {:?}", before.pids, self.pids);
        Ok(Self {
            system: self.system.saturating_sub(before.system),
            archive: self.archive.saturating_sub(before.archive),
            pids: self.pids.clone(),
        })
    }
}

/// Name, parent and ticks of a stat line. The name may hold blanks and parentheses.
fn stat(text: &str) -> Option<(&str, u32, u64)> {
    let (open, close) = (text.find('(')?, text.rfind(')')?);
    let name = text.get(open + 1..close)?;
    let rest: Vec<&str> = text.get(close + 2..)?.split_whitespace().collect();
    // Fields 4 (ppid), 14 (utime) and 15 (stime) of proc(5); `rest` starts at field 3.
    let ticks = rest.get(11)?.parse::<u64>().ok()? + rest.get(12)?.parse::<u64>().ok()?;
    Some((name, rest.get(1)?.parse().ok()?, ticks))
}

/// `root` and all its descendants.
pub fn tree(root: u32) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Some other process may just have ended.
        let Ok(text) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some((_, parent, _)) = stat(&text) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = BTreeSet::new();
    let mut left = vec![root];
    while let Some(pid) = left.pop() {
        if found.insert(pid) {
            left.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
}

/// What the trees under these processes have used so far.
///
/// # Errors
/// When one of them is not there.
pub fn read(roots: &[u32]) -> anyhow::Result<Cpu> {
    of(roots.iter().flat_map(|root| tree(*root)).collect())
}

/// What a process has used so far, without its children.
///
/// # Errors
/// When it is not there.
pub fn own(pid: u32) -> anyhow::Result<Cpu> {
    of([pid].into())
}

fn of(pids: BTreeSet<u32>) -> anyhow::Result<Cpu> {
    let tick = 1_000_000 / rustix::param::clock_ticks_per_second();
    let (mut total, mut archive) = (0, 0);
    for pid in &pids {
        // The process's own line includes threads that have ended, so an archive thread that ended
        // counts as the system's: never the other way round.
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("process {pid} is gone"))?;
        total += stat(&text).context("a stat line that cannot be read")?.2;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let Ok(text) = std::fs::read_to_string(task.path().join("stat")) else { continue };
            if let Some((name, _, ticks)) = stat(&text)
                && name.starts_with("archive")
            {
                archive += ticks;
            }
        }
    }
    // The lines are read one after the other, and a tick may fall between.
    Ok(Cpu { system: total.saturating_sub(archive) * tick, archive: archive * tick, pids })
}

/// What a process has at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Holds {
    /// Resident memory in bytes.
    pub rss: u64,
    /// Open files and sockets.
    pub descriptors: u64,
}

/// What a process has now.
///
/// # Errors
/// When it is not there.
pub fn holds(pid: u32) -> anyhow::Result<Holds> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
    Ok(Holds { rss: kilobytes.unwrap_or(0) * 1024, descriptors })
}

/// Bytes of the files directly in a directory whose names end so.
pub fn disk(directory: &Path, ending: &str) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(ending));
    ours.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_is_read() {
        let line = format!("7 (a) b (c) S 3 {} 21 34 0 0", ["0"; 9].join(" "));
        assert_eq!(stat(&line), Some(("a) b (c", 3, 55)));
    }

    #[test]
    fn a_process_that_came_or_went_is_an_error() {
        let before = Cpu { system: 1, archive: 0, pids: [1, 2].into() };
        let after = Cpu { system: 9, archive: 0, pids: [1].into() };
        after.since(&before).unwrap_err();
    }

    /// This test again, as another process: threads that use a known CPU time each, then wait.
    const SPINS: &str = "TOLLGATE_LOADTEST_SPINS";

    fn spin(name: &str, length: Duration) {
        std::fs::write("/proc/thread-self/comm", name).unwrap();
        let used = || {
            let clock = rustix::time::ClockId::ThreadCPUTime;
            Duration::try_from(rustix::time::clock_gettime(clock)).unwrap()
        };
        let end = used() + length;
        while used() < end {
            std::hint::spin_loop();
        }
        std::thread::park();
    }

    #[test]
    fn threads_and_children_are_summed_and_archive_threads_are_apart() {
        let ms = Duration::from_millis;
        let test = "cpu::tests::threads_and_children_are_summed_and_archive_threads_are_apart";
        let again = |spins: &str| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args([test, "--exact"]).env(SPINS, spins).stdout(Stdio::null());
            command.spawn().unwrap()
        };
        match std::env::var(SPINS).as_deref() {
            Ok("parent") => {
                drop(again("child"));
                let threads = [("archive-sql", ms(500)), ("a (w) x", ms(700))]
                    .map(|(name, length)| std::thread::spawn(move || spin(name, length)));
                threads.into_iter().for_each(|thread| thread.join().unwrap());
            }
            Ok(_) => spin("child", ms(400)),
            Err(_) => {
                let mut parent = again("parent");
                let deadline = Instant::now() + Duration::from_secs(60);
                let (mut before, mut since) = (Cpu::default(), Instant::now());
                // Until it stands still: everyone has spun what it had to.
                while since.elapsed() < Duration::from_secs(1) || before.system < 1_000_000 {
                    assert!(Instant::now() < deadline, "{before:?}");
                    std::thread::yield_now();
                    let now = read(&[parent.id()]).unwrap();
                    if now != before {
                        (before, since) = (now, Instant::now());
                    }
                }
                for pid in tree(parent.id()) {
                    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
                parent.wait().unwrap();
                assert_eq!(before.pids.len(), 2);
                assert!((470_000..=530_000).contains(&before.archive), "{before:?}");
                // Starting two processes is in it.
                assert!((1_060_000..1_400_000).contains(&before.system), "{before:?}");
            }
        }
    }
}
