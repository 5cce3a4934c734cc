//! The orderly end of the VM.
//!
//! ```text
//! SIGTERM to every user process -> up to 2 s -> cgroup.kill -> data disk synced, read-only -> power off | restart
//! ```

use crate::{exec::Cgroups, init::DataDisk};
use offshoot_guest_proto::message::ShutdownKind;
use rustix::{
    process::{Pid, Signal, kill_process},
    system::{RebootCommand, reboot},
};
use std::{fs, io, path::Path, time::Duration};
use tokio::{sync::watch, time::Instant};

/// For user processes to end by themselves; then they are killed.
const GRACE: Duration = Duration::from_secs(2);
/// For killed processes to be gone.
const DEATH: Duration = Duration::from_secs(2);

/// Ends all user processes, leaves a clean disk, and the machine.
pub async fn shut_down(kind: ShutdownKind, data: &DataDisk, mut reaper_passes: watch::Receiver<u64>) -> ! {
    let user = Path::new(Cgroups::TOP);
    // A process that is stopped gets the signal once it goes on: SIGCONT lets it.
    for pid in processes_below(user) {
        for signal in [Signal::TERM, Signal::CONT] {
            // Gone meanwhile: as wanted.
            let _gone = kill_process(pid, signal);
        }
    }
    if !emptied(user, &mut reaper_passes, GRACE).await {
        if let Err(error) = fs::write(user.join("cgroup.kill"), "1") {
            crate::console::warn(format_args!("kill user processes: {error}"));
        }
        emptied(user, &mut reaper_passes, DEATH).await;
    }
    if let Err(error) = data.make_clean() {
        crate::console::warn(format_args!("leave a clean data disk: {error}"));
    }
    leave(kind)
}

/// Whether no process is left below `cgroup` within `limit`. Each of them is reaped by us in the end: they are
/// orphans by the time their parents are gone.
async fn emptied(cgroup: &Path, reaper_passes: &mut watch::Receiver<u64>, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
        if !events.lines().any(|line| line == "populated 1") {
            return true;
        }
        tokio::select! {
            _ = reaper_passes.changed() => {}
            () = tokio::time::sleep_until(deadline) => return false,
        }
    }
}

pub fn processes_below(cgroup: &Path) -> Vec<Pid> {
    let mut found = Vec::new();
    let mut pending = vec![cgroup.to_owned()];
    while let Some(directory) = pending.pop() {
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)));
        if let Ok(entries) = fs::read_dir(&directory) {
            let directories =
                entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            pending.extend(directories.map(|entry| entry.path()));
        }
    }
    found
}

/// Ends the machine at once.
pub fn leave(kind: ShutdownKind) -> ! {
    let command = match kind {
        ShutdownKind::PowerOff => RebootCommand::PowerOff,
        ShutdownKind::Reboot => RebootCommand::Restart,
    };
    // A machine that cannot power off restarts, which ends its VMM (`-no-reboot`).
    for command in [command, RebootCommand::Restart] {
        let error: io::Result<()> = reboot(command).map_err(Into::into);
        crate::console::warn(format_args!("leave the machine: {error:?}"));
    }
    // Refused both: ending PID 1 makes the kernel panic, which restarts by `panic=-1`.
    std::process::abort()
}
