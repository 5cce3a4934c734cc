//! What the VM uses of what it has, as its kernel counts it.

use crate::{fault::Context, info::memory_field};
use offshoot_guest_proto::message::{GuestError, Usage};
use std::{
    fs,
    sync::{Mutex, PoisonError},
};

/// Knows what it read last.
#[derive(Debug, Default)]
pub struct Meter {
    last: Mutex<Ticks>,
}

/// Of all processors together since the kernel started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    all: u64,
}

impl Meter {
    pub fn read(&self) -> Result<Usage, GuestError> {
        let read = |path: &str| fs::read_to_string(path).context("read", path);
        let (memory, stat) = (read("/proc/meminfo")?, read("/proc/stat")?);
        let disk = rustix::fs::statvfs("/").context("measure", "/")?;
        let total = memory_field(&memory, "MemTotal:");
        Ok(Usage {
            cpus: u32::try_from(cpus(&stat)).unwrap_or(u32::MAX).max(1),
            cpu_used_percent: self.since(ticks(&stat)),
            memory_total: total,
            memory_used: total.saturating_sub(memory_field(&memory, "MemAvailable:")),
            memory_cached: memory_field(&memory, "Cached:"),
            disk_total: disk.f_blocks.saturating_mul(disk.f_frsize),
            disk_used: disk.f_blocks.saturating_sub(disk.f_bfree).saturating_mul(disk.f_frsize),
        })
    }

    /// The share of busy time from the last reading to this one.
    fn since(&self, now: Ticks) -> f64 {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (busy, all) = (now.busy.saturating_sub(last.busy), now.all.saturating_sub(last.all));
        *last = now;
        if all == 0 { 0.0 } else { (busy as f64 * 100.0 / all as f64).clamp(0.0, 100.0) }
    }
}

/// `cpu  user nice system idle iowait irq softirq steal ...`; what guests of the VM use is part of `user`.
fn ticks(stat: &str) -> Ticks {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "));
    let fields: Vec<u64> = line
        .into_iter()
        .flat_map(str::split_ascii_whitespace)
        .take(8)
        .filter_map(|field| field.parse().ok())
        .collect();
    let all: u64 = fields.iter().sum();
    let idle: u64 = fields.iter().skip(3).take(2).sum();
    Ticks { busy: all - idle, all }
}

fn cpus(stat: &str) -> usize {
    let numbered = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|digit: char| digit.is_ascii_digit()))
    };
    stat.lines().filter(numbered).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str =
        "cpu  10 0 10 70 10 0 0 0 5 0\ncpu0 5 0 5 35 5 0 0 0 0 0\ncpu1 5 0 5 35 5 0 0 0 0 0\nintr 9\n";

    #[test]
    fn a_share_is_of_the_time_since_it_was_last_asked() {
        assert_eq!((ticks(STAT), cpus(STAT)), (Ticks { busy: 20, all: 100 }, 2));
        let meter = Meter::default();
        assert_eq!(meter.since(Ticks { busy: 20, all: 100 }), 20.0);
        assert_eq!(meter.since(Ticks { busy: 120, all: 200 }), 100.0);
        assert_eq!(meter.since(Ticks { busy: 120, all: 200 }), 0.0, "no time has passed");
        assert_eq!(meter.since(Ticks { busy: 1, all: 300 }), 0.0, "a counter that went back");
        assert_eq!(ticks("nonsense"), Ticks::default());
    }

    #[test]
    fn figures_of_a_running_kernel_are_plausible() {
        let usage = Meter::default().read().unwrap();
        assert!(usage.memory_total > usage.memory_used && usage.memory_used > 0, "{usage:?}");
        assert!(usage.cpus > 0 && usage.disk_total > usage.disk_used, "{usage:?}");
    }
}
