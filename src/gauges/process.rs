//! The metrics that every process has, by the names that every dashboard knows; read from `/proc`
//! at each scrape.

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use super::one;
use crate::telemetry::Telemetry;

/// Registers them.
pub(super) fn watch(telemetry: &Telemetry) {
    for &(name, help, read) in PROCESS {
        telemetry.watch(name, help, move || read().map_or(Vec::new(), one));
    }
}

type Read = fn() -> Option<f64>;

const PROCESS: &[(&str, &str, Read)] = &[
    ("process_cpu_seconds_total", "User and system CPU time spent in seconds", || {
        let stat = Stat::read()?;
        Some((stat.number(14)? + stat.number(15)?) / clock_ticks_per_second() as f64)
    }),
    ("process_resident_memory_bytes", "Resident memory size in bytes", || {
        Some(Stat::read()?.number(24)? * page_size() as f64)
    }),
    ("process_virtual_memory_bytes", "Virtual memory size in bytes", || Stat::read()?.number(23)),
    ("process_threads", "Number of OS threads", || Stat::read()?.number(20)),
    ("process_start_time_seconds", "Start time since the epoch in seconds", || {
        let all = std::fs::read_to_string("/proc/stat").ok()?;
        let boot: f64 =
            all.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        Some(boot + Stat::read()?.number(22)? / clock_ticks_per_second() as f64)
    }),
    ("process_open_fds", "Number of open file descriptors", || {
        // The directory's own descriptor is one of them.
        Some(std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
    }),
    ("process_max_fds", "Maximum number of open file descriptors", || {
        Some(getrlimit(Resource::Nofile).current? as f64)
    }),
];

/// `/proc/self/stat`, behind the program's name, which may hold anything (proc_pid_stat(5)).
struct Stat(String);

impl Stat {
    fn read() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/self/stat").ok()?;
        Some(Self(text.rsplit_once(')')?.1.to_owned()))
    }

    /// A field, by the number that the manual gives it.
    fn number(&self, field: usize) -> Option<f64> {
        self.0.split_whitespace().nth(field - 3)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_the_process_is_there_and_makes_sense() {
        for (name, _, read) in PROCESS {
            let value = read().unwrap_or_else(|| panic!("{name} cannot be read"));
            assert!(value >= 0.0 && value.is_finite(), "{name} {value}");
        }
        let read = |name: &str| PROCESS.iter().find(|entry| entry.0 == name).unwrap().2().unwrap();
        let now = jiff::Timestamp::now().as_second() as f64;
        assert!((0.0..86_400.0).contains(&(now - read("process_start_time_seconds"))));
        assert!(read("process_resident_memory_bytes") > 1e5);
        assert!(read("process_open_fds") <= read("process_max_fds"));
    }
}
