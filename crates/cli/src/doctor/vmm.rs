//! What runs VMs here, and how strong the wall around them is.

use super::{Check, Verdict};
use crate::agent;
use offshoot_image::Store;
use offshoot_provider::{Provider, gvisor::GvisorProvider, qemu::QemuProvider, speed::Speed};
use offshoot_types::IsolationClass;
use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

const INSTALL: &str = "install it:
  Debian, Ubuntu:  apt-get install --no-install-recommends qemu-system-x86
  Fedora:          dnf install qemu-system-x86-core
  Arch:            pacman -S qemu-system-x86";

/// Which program, and what it was proven to give. Proving boots a kernel once per boot of the host, measuring one more.
pub async fn qemu(store: Option<&Store>) -> Vec<Check> {
    let exe = std::env::current_exe().unwrap_or_else(|_| "offshoot".into());
    let options = offshoot_server::qemu_options(exe, store);
    let provider = QemuProvider::new(options);
    let found = provider.capabilities().await;
    let Some(vmm) = found.vmm else {
        let why = found.isolation.err().unwrap_or_else(|| "not found".into());
        return vec![Check::fail("qemu", why).remedy(INSTALL)];
    };
    let notes = found.notes.join("; ");
    let isolation = match found.isolation {
        Ok(class) => isolation(class, &notes),
        Err(why) => Check::fail("isolation", format!("none: {why}")).remedy(INSTALL),
    };
    let speed = match store.map(measuring_agent) {
        _ if isolation.verdict == Verdict::Fail => None,
        None => Some("how fast programs compute is measured once there is an image".into()),
        Some(Ok(agent)) => Some(told(provider.speed(agent).await)),
        Some(Err(error)) => Some(not_measured(&error)),
    };
    vec![Check::ok("qemu", said([Some(vmm), speed])), isolation]
}

const AGENT: &str = "agent-";

/// The agent as a program of this host, beside what the images' owner keeps of probes.
fn measuring_agent(store: &Store) -> io::Result<PathBuf> {
    let agent =
        agent::binary().map_err(|_refused| io::Error::other("there is no guest agent in this build"))?;
    let directory = store.root().join("probe");
    let path = directory.join(format!("{AGENT}{:.12}", agent.digest().hex()));
    if !path.exists() {
        fs::create_dir_all(&directory)?;
        remove_agents(&directory)?;
        // A name that is removed with the others if we die before it has its own.
        let new = directory.join(format!("{AGENT}new-{}", std::process::id()));
        fs::write(&new, agent.bytes())?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
        fs::rename(&new, &path)?;
    }
    Ok(path)
}

/// Those of other builds. One that another `doctor` is about to run is written again by its next call.
fn remove_agents(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(AGENT.as_bytes()) {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

fn not_measured(error: &io::Error) -> String {
    format!("how fast programs compute was not measured: {error}")
}

fn told(measured: Result<Speed, String>) -> String {
    measured.map_or_else(|why| why, |speed| speed.to_string())
}

fn said<const N: usize>(parts: [Option<String>; N]) -> String {
    let parts: Vec<String> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
    parts.join(", ")
}

/// Whether there are sandboxes as well: for work that needs the host's speed where there is no KVM.
pub async fn gvisor(store: Option<&Store>) -> Check {
    let exe = std::env::current_exe().unwrap_or_else(|_| "offshoot".into());
    let provider = GvisorProvider::new(offshoot_server::gvisor_options(exe, store));
    let found = provider.capabilities().await;
    let notes = found.notes.join("; ");
    match found.isolation {
        Ok(class) => {
            let speed = match store.map(measuring_agent) {
                None => None,
                Some(Ok(agent)) => Some(told(provider.speed(agent).await)),
                Some(Err(error)) => Some(not_measured(&error)),
            };
            let detail = said([found.vmm, Some(class.to_string()), speed]);
            Check::ok("gvisor", if notes.is_empty() { detail } else { format!("{detail}: {notes}") })
        }
        Err(why) if notes.is_empty() => Check::warn("gvisor", why),
        Err(why) => Check::warn("gvisor", why).remedy(notes),
    }
}

fn isolation(class: IsolationClass, notes: &str) -> Check {
    let separator = if notes.is_empty() { "" } else { ": " };
    let detail = format!("{class}{separator}{notes}");
    match class {
        IsolationClass::HardwareVm => Check::new("isolation", Verdict::Ok, detail),
        IsolationClass::EmulatedVm | IsolationClass::UserSpaceKernel => {
            Check::new("isolation", Verdict::Warn, detail)
                .remedy("VMs are as separate, but slower: a host with working KVM makes them fast")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_of_other_builds_go_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["agent-0123456789ab", "agent-new-17", "speed-qemu", "kvm"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        remove_agents(dir.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["kvm", "speed-qemu"]);
    }
}
