//! What runs VMs here, and how strong the wall around them is.

use super::{Check, Verdict};
use offshoot_image::Store;
use offshoot_provider::{Provider, gvisor::GvisorProvider, qemu::QemuProvider};
use offshoot_types::IsolationClass;

const INSTALL: &str = "install it:
  Debian, Ubuntu:  apt-get install --no-install-recommends qemu-system-x86
  Fedora:          dnf install qemu-system-x86-core
  Arch:            pacman -S qemu-system-x86";

/// Which program, and what it was proven to give. Proving boots a kernel once per boot of the host.
pub async fn qemu(store: Option<&Store>) -> Vec<Check> {
    let exe = std::env::current_exe().unwrap_or_else(|_| "offshoot".into());
    let options = offshoot_server::qemu_options(exe, store);
    let found = QemuProvider::new(options).capabilities().await;
    let Some(vmm) = found.vmm else {
        let why = found.isolation.err().unwrap_or_else(|| "not found".into());
        return vec![Check::fail("qemu", why).remedy(INSTALL)];
    };
    let notes = found.notes.join("; ");
    let isolation = match found.isolation {
        Ok(class) => isolation(class, &notes),
        Err(why) => Check::fail("isolation", format!("none: {why}")).remedy(INSTALL),
    };
    vec![Check::ok("qemu", vmm), isolation]
}

/// Whether there are sandboxes as well: for work that needs the host's speed where there is no KVM.
pub async fn gvisor(store: Option<&Store>) -> Check {
    let exe = std::env::current_exe().unwrap_or_else(|_| "offshoot".into());
    let found = GvisorProvider::new(offshoot_server::gvisor_options(exe, store)).capabilities().await;
    let notes = found.notes.join("; ");
    match (found.isolation, found.vmm) {
        (Ok(class), Some(vmm)) => Check::ok("gvisor", format!("{vmm}, {class}: {notes}")),
        (Ok(class), None) => Check::ok("gvisor", format!("{class}: {notes}")),
        (Err(why), _) if notes.is_empty() => Check::warn("gvisor", why),
        (Err(why), _) => Check::warn("gvisor", why).remedy(notes),
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
