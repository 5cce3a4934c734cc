//! The VM's figures, as its kernel reports them.

use crate::{clock, fault::Context};
use offshoot_guest_proto::message::{GuestError, GuestInfo};
use std::fs;

pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

pub fn boot_id() -> Result<String, GuestError> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path).context("read", path)?.trim().to_owned())
}

pub fn collect() -> Result<GuestInfo, GuestError> {
    let read = |path: &str| fs::read_to_string(path).context("read", path);
    let memory = read("/proc/meminfo")?;
    let disk = rustix::fs::statvfs("/").context("measure", "/")?;
    let processes = fs::read_dir("/proc").context("list", "/proc")?.flatten();
    let is_process = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    Ok(GuestInfo {
        kernel_release: kernel_release(),
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        boot_id: boot_id()?,
        uptime_ms: clock::uptime_ms(),
        memory_total: memory_field(&memory, "MemTotal:"),
        memory_available: memory_field(&memory, "MemAvailable:"),
        load_1m: read("/proc/loadavg")?.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
        disk_total: disk.f_blocks.saturating_mul(disk.f_frsize),
        disk_available: disk.f_bavail.saturating_mul(disk.f_frsize),
        processes: u32::try_from(processes.filter(|entry| is_process(&entry.file_name())).count())
            .unwrap_or(u32::MAX),
        time: clock::wall_clock(),
    })
}

/// Bytes of a line such as `MemTotal:  252312 kB`.
pub fn memory_field(meminfo: &str, field: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(field));
    let kib: Option<u64> = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:         252312 kB\nMemFree:  1 kB\nMemAvailable:     200000 kB\n";
        assert_eq!(memory_field(text, "MemTotal:"), 252_312 * 1024);
        assert_eq!(memory_field(text, "MemAvailable:"), 200_000 * 1024);
        assert_eq!(memory_field(text, "Nothing:"), 0);
    }

    #[test]
    fn figures_of_a_running_kernel_are_plausible() {
        let info = collect().unwrap();
        assert!(info.memory_total > info.memory_available && info.memory_available > 0, "{info:?}");
        assert!(info.processes > 0 && info.uptime_ms > 0 && info.disk_total > 0, "{info:?}");
    }
}
