//! Doing file operations as a user: the thread's filesystem identity, changed for the length of a closure. A kernel without
//! one (gVisor's) checks the thread's effective identity, which is changed then; real and saved ones stay root's.

use rustix::process::Gid;
use rustix::thread::set_thread_groups;
use std::io;

/// Whose permissions the kernel checks on file access by this thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileIdentity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

impl FileIdentity {
    /// Runs `work` with this identity. `setfsuid` also takes the capabilities that override file permissions
    /// from the thread while the uid is not 0, and supplementary groups are per thread at the system call
    /// level, so nothing else in the process is affected.
    pub fn run<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.uid == 0 || !rustix::process::geteuid().is_root() {
            return if self.uid == rustix::process::geteuid().as_raw() {
                work()
            } else {
                Err(io::ErrorKind::PermissionDenied.into())
            };
        }
        let _restore = Restore;
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        set_thread_groups(&groups)?;
        set_ids(self.uid, self.gid)?;
        work()
    }
}

/// Gives the thread back root's identity, also when `work` panics.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        // Failing to become root again would leave later work of this thread with too few rights, never with
        // too many; it cannot fail for a process whose effective uid is 0.
        let restored = set_ids(0, 0).and_then(|()| Ok(set_thread_groups(&[])?));
        debug_assert!(restored.is_ok(), "restoring the thread's identity: {restored:?}");
    }
}

/// What a call answers that the kernel does not have; no call of these answers it as an id.
const NO_SUCH_CALL: libc::c_int = -1;

fn set_ids(uid: u32, gid: u32) -> io::Result<()> {
    // The calls answer the previous id, never an error: asking for the invalid id -1 changes nothing and tells
    // whether the call before it took effect.
    // SAFETY: no memory is passed.
    let (gid_now, uid_now) = unsafe {
        if libc::setfsgid(gid) == NO_SUCH_CALL {
            return set_effective_ids(uid, gid);
        }
        let gid_now = libc::setfsgid(u32::MAX);
        libc::setfsuid(uid);
        (gid_now, libc::setfsuid(u32::MAX))
    };
    if gid_now.cast_unsigned() == gid && uid_now.cast_unsigned() == uid {
        Ok(())
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// Of this thread alone, which is why these are not the functions of libc.
fn set_effective_ids(uid: u32, gid: u32) -> io::Result<()> {
    const UNCHANGED: libc::c_long = -1;
    let set = |call, id: u32| {
        // SAFETY: no memory is passed.
        match unsafe { libc::syscall(call, UNCHANGED, libc::c_long::from(id), UNCHANGED) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // Root last on the way to a user, first on the way back: only root may change the group.
    if uid == 0 {
        set(libc::SYS_setresuid, uid)?;
        return set(libc::SYS_setresgid, gid);
    }
    set(libc::SYS_setresgid, gid)?;
    set(libc::SYS_setresuid, uid)
}
