//! The orderly end of the VM.
//!
//! ```text
//! SIGTERM to every user process -> up to 2 s -> killed -> data disk synced, read-only -> power off | restart
//! ```

use crate::{cgroup, exec::Cgroups, init::DataDisk, kernel::Kernel};
use offshoot_guest_proto::message::ShutdownKind;
use rustix::{
    io::Errno,
    process::{Signal, kill_process},
    system::{RebootCommand, reboot},
};
use std::{path::Path, time::Duration};
use tokio::{sync::watch, time::Instant};

/// For user processes to end by themselves; then they are killed.
const GRACE: Duration = Duration::from_secs(2);
/// For killed processes to be gone.
const DEATH: Duration = Duration::from_secs(2);

/// Ends all user processes, leaves a clean disk, and the machine.
pub async fn shut_down(
    kernel: Kernel,
    kind: ShutdownKind,
    data: &DataDisk,
    reaper_passes: watch::Receiver<u64>,
) -> ! {
    end_programs(kernel, reaper_passes).await;
    if let Err(error) = data.make_clean() {
        crate::console::warn(format_args!("leave a clean data disk: {error}"));
    }
    leave(kind)
}

/// Ends all user processes: asks, then kills. Whether none is left.
pub async fn end_programs(kernel: Kernel, mut reaper_passes: watch::Receiver<u64>) -> bool {
    let user = Path::new(Cgroups::TOP);
    // A process that is stopped gets the signal once it goes on: SIGCONT lets it.
    for pid in cgroup::processes_below(user) {
        for signal in [Signal::TERM, Signal::CONT] {
            // Gone meanwhile: as wanted.
            let _gone = kill_process(pid, signal);
        }
    }
    if emptied(kernel, user, &mut reaper_passes, GRACE).await {
        return true;
    }
    if let Err(error) = cgroup::kill(kernel, user) {
        crate::console::warn(format_args!("kill user processes: {error}"));
    }
    emptied(kernel, user, &mut reaper_passes, DEATH).await
}

/// Whether no process is left below `cgroup` within `limit`. Each of them is reaped by us in the end: they are
/// orphans by the time their parents are gone.
async fn emptied(
    kernel: Kernel,
    cgroup: &Path,
    reaper_passes: &mut watch::Receiver<u64>,
    limit: Duration,
) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if !cgroup::is_populated(kernel, cgroup).unwrap_or(false) {
            return true;
        }
        tokio::select! {
            _ = reaper_passes.changed() => {}
            () = tokio::time::sleep_until(deadline) => return false,
        }
    }
}

/// Ends the machine at once.
pub fn leave(kind: ShutdownKind) -> ! {
    let command = match kind {
        ShutdownKind::PowerOff => RebootCommand::PowerOff,
        ShutdownKind::Reboot => RebootCommand::Restart,
    };
    // A machine that cannot power off restarts, which ends its VMM (`-no-reboot`).
    for command in [command, RebootCommand::Restart] {
        match reboot(command) {
            // gVisor's kernel, which ends with its PID 1.
            Err(Errno::NOSYS) => exit(),
            left => crate::console::warn(format_args!("leave the machine: {left:?}")),
        }
    }
    // Refused both: ending PID 1 makes the kernel panic, which restarts by `panic=-1`.
    std::process::abort()
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the power switch: nothing is left to be dropped or flushed"
)]
fn exit() -> ! {
    std::process::exit(0)
}
