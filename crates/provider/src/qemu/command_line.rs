//! QEMU's command line, from top to bottom. One function writes it; each block is one part of the machine.

use super::tsc;
use crate::{BootPlan, DiskStack, Durability, keeper::spec};
use offshoot_types::{Bytes, IsolationClass, MemMib, VmName};
use serde_json::{Value, json};
use std::path::Path;

/// Name of the agent's port, as the guest looks it up.
pub(super) const PORT: &str = "org.offshoot.agent";
/// QEMU says this once for guest memory from `/dev/zero`, which has no size to set; it means nothing.
pub(super) const HARMLESS: &str = "ftruncate: Invalid argument";
/// Cache of translated guest code, in MiB. Measured on a cold boot to a Python prompt: 16 costs 2 s, 32 costs
/// 0.2 s, from 64 on nothing. QEMU's own choice would be up to 1 GiB.
const TRANSLATION_CACHE: u64 = 128;
/// QEMU itself, the kernel file it keeps, buffers of devices, and the keeper.
const OVERHEAD: u64 = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    Kvm,
    Tcg,
}

impl Accelerator {
    pub const fn isolation(self) -> IsolationClass {
        match self {
            Self::Kvm => IsolationClass::HardwareVm,
            Self::Tcg => IsolationClass::EmulatedVm,
        }
    }
}

/// What the VMM and its keeper may use together.
pub(super) fn memory_limit(memory: MemMib, accelerator: Accelerator) -> Bytes {
    let translation = match accelerator {
        Accelerator::Kvm => 0,
        Accelerator::Tcg => TRANSLATION_CACHE,
    };
    Bytes(memory.bytes().0 + ((translation + OVERHEAD) << 20))
}

pub(super) fn build(plan: &BootPlan, accelerator: Accelerator) -> Vec<String> {
    let mut line = Line::default();
    // First, so that a list of processes shows it.
    line.pair("-name", format!("{},debug-threads=on", plan.name));
    line.pair("-uuid", plan.vm);
    machine(&mut line, plan.memory, plan.cpus.get(), accelerator);

    // The serial console must exist before the kernel speaks; the keeper reads it.
    line.pair("-chardev", format!("socket,id=console,fd={}", spec::CONSOLE_FD));
    line.pair("-serial", "chardev:console");
    // Control: an unnamed socket pair, so that nobody else can ever connect.
    line.pair("-chardev", format!("socket,id=qmp,fd={}", spec::QMP_FD));
    line.pair("-mon", "chardev=qmp,mode=control");

    // Disks. Drivers and the backing file are said, never probed. The guest finds them by serial number.
    root_disk(&mut line, &plan.root);
    data_disk(&mut line, &plan.disk, plan.durability);

    // The channel: the keeper has connected to this listening socket before QEMU starts.
    line.pair("-device", "virtio-serial-device");
    line.pair("-chardev", format!("socket,id=channel,fd={},server=on,wait=off", spec::CHANNEL_FD));
    line.pair("-device", format!("virtserialport,chardev=channel,name={PORT}"));

    kernel(&mut line, &plan.kernel, &plan.initramfs, &kernel_arguments(&plan.name, accelerator));
    sandbox(&mut line);
    line.0
}

/// The same machine with a root disk that is none, to see whether a kernel gets to its `init`: the agent there
/// says at once that it cannot mount this.
pub(super) fn build_probe(kernel_path: &Path, initramfs: &Path) -> Vec<String> {
    let mut line = Line::default();
    machine(&mut line, MemMib::MIN, 1, Accelerator::Kvm);
    line.pair("-serial", "stdio");
    root_disk(&mut line, kernel_path);
    kernel(&mut line, kernel_path, initramfs, "console=ttyS0 panic=-1 reboot=t");
    sandbox(&mut line);
    line.0
}

fn machine(line: &mut Line, memory: MemMib, cpus: u16, accelerator: Accelerator) {
    // No BIOS devices, no PCI, no network card, nothing from configuration files.
    line.flag("-no-user-config").flag("-nodefaults").pair("-display", "none");
    // A guest that resets its machine is done: the same VM is started again from outside.
    line.flag("-no-reboot");
    match accelerator {
        Accelerator::Kvm => {
            line.pair("-machine", "microvm,rtc=on,memory-backend=ram")
                .pair("-accel", "kvm")
                .pair("-cpu", "host");
        }
        // Told the frequency of its clock, the kernel needs neither of the old timers.
        Accelerator::Tcg => {
            line.pair("-machine", "microvm,rtc=on,pit=off,pic=off,memory-backend=ram")
                .pair("-accel", format!("tcg,tb-size={TRANSLATION_CACHE}"))
                .pair("-cpu", "max");
        }
    }
    line.pair("-smp", cpus).pair("-m", format!("{}M", memory.mib()));
    // Guest memory is a private mapping of `/dev/zero`: a base of zeros that nobody can write to and that costs
    // nothing, however many VMs have it. A memory file would hold every touched page a second time.
    line.pair(
        "-object",
        format!("memory-backend-file,id=ram,size={}M,mem-path=/dev/zero,share=off", memory.mib()),
    );
    // Device state must be loadable by a process whose command line differs in what is no device.
    line.pair("-global", "migration.send-configuration=off");
}

fn root_disk(line: &mut Line, path: &Path) {
    // Shared by all VMs of the image and verified by digest before the start: no locks, no writers.
    let file = json!({
        "driver": "raw", "node-name": "root", "read-only": true,
        "file": { "driver": "file", "filename": path, "read-only": true, "locking": "off" },
    });
    line.pair("-blockdev", file).pair("-device", "virtio-blk-device,drive=root,serial=root");
}

fn data_disk(line: &mut Line, disk: &DiskStack, durability: Durability) {
    let template = json!({
        "driver": "raw", "read-only": true,
        "file": { "driver": "file", "filename": disk.template, "read-only": true, "locking": "off" },
    });
    // From the oldest layer to the one that is written to. Frozen layers are shared by VMs, so nobody locks them here.
    let frozen = disk.layers.iter().skip(1).rev().fold(template, |below, path| {
        json!({
            "driver": "qcow2", "read-only": true,
            "file": { "driver": "file", "filename": path, "read-only": true, "locking": "off" },
            "backing": below,
        })
    });
    let Some(top) = disk.top() else { return };
    let mut top = layer(top, durability, spec::DISK_NODE);
    top["backing"] = frozen;
    line.pair("-blockdev", top)
        .pair("-device", format!("virtio-blk-device,drive={},serial=data", spec::DISK_NODE));
}

/// A layer that is written to, apart from what it is over.
fn layer(path: &Path, durability: Durability, node: &str) -> Value {
    // A guest's fsync reaches the host's disk, at the price of one there, unless the VM is destroyed with its
    // request anyway. A boot takes less than a tenth of a second longer for it.
    let cache = json!({ "direct": false, "no-flush": durability == Durability::Volatile });
    json!({
        "driver": "qcow2", "node-name": node, "cache": cache, "discard": "unmap",
        // The keeper holds a lock that can name its holder; this one also keeps other programs out.
        "file": {
            "driver": "file", "filename": path, "cache": cache, "discard": "unmap", "locking": "auto",
        },
    })
}

fn kernel(line: &mut Line, kernel: &Path, initramfs: &Path, arguments: &str) {
    line.pair("-kernel", kernel.display()).pair("-initrd", initramfs.display()).pair("-append", arguments);
}

fn sandbox(line: &mut Line) {
    let rules = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    line.pair("-sandbox", rules);
}

fn kernel_arguments(name: &VmName, accelerator: Accelerator) -> String {
    // `panic=-1 reboot=t`: a panic ends the VMM at once. `cryptomgr.notests`: the self-tests of ciphers cost
    // 0.25 s of emulation.
    let common = "quiet console=ttyS0 panic=-1 reboot=t cryptomgr.notests";
    let clock = match accelerator {
        // The guest has a clock of KVM's.
        Accelerator::Kvm => String::new(),
        Accelerator::Tcg => {
            format!(" tsc_early_khz={} tsc=reliable no_timer_check", tsc::frequency_khz())
        }
    };
    format!("{common}{clock} offshoot.hostname={name}")
}

#[derive(Debug, Default)]
struct Line(Vec<String>);

impl Line {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn pair(&mut self, flag: &str, value: impl ToString) -> &mut Self {
        self.0.extend([flag.into(), value.to_string()]);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use offshoot_types::{CpuCount, Generation, VmId};
    use std::time::Duration;

    fn line(accelerator: Accelerator, durability: Durability) -> Vec<String> {
        let plan = BootPlan {
            vm: VmId::new(),
            name: "calc".parse().unwrap(),
            generation: Generation(1),
            image: "0a".repeat(32).parse().unwrap(),
            kernel: "/i/vmlinux".into(),
            initramfs: "/i/initramfs".into(),
            root: "/i/a, b.erofs".into(),
            disk: DiskStack {
                layers: vec!["/s/new.qcow2".into(), "/s/old.qcow2".into()],
                template: "/i/template".into(),
            },
            durability,
            memory: MemMib::from_mib(256).unwrap(),
            cpus: CpuCount::ONE,
            state_dir: "/s".into(),
            runtime_dir: "/r".into(),
            boot_deadline: Duration::from_secs(30),
            min_isolation: None,
        };
        build(&plan, accelerator)
    }

    fn value<'a>(line: &'a [String], flag: &str, nth: usize) -> &'a str {
        let mut found = line.iter().enumerate().filter(|(_, f)| *f == flag);
        &line[found.nth(nth).unwrap_or_else(|| panic!("{flag} number {nth}")).0 + 1]
    }

    #[test]
    fn no_vm_has_a_network_card_or_leaves_the_sandbox() {
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            let line = line(accelerator, Durability::Flushed);
            assert!(value(&line, "-sandbox", 0).contains("spawn=deny"));
            assert!(line.iter().any(|flag| flag == "-nodefaults"));
            assert!(!line.iter().any(|argument| argument.contains("net")), "{line:?}");
        }
    }

    #[test]
    fn disks_are_described_in_full_whatever_their_paths_hold() {
        let line = line(Accelerator::Tcg, Durability::Flushed);
        let root: serde_json::Value = serde_json::from_str(value(&line, "-blockdev", 0)).unwrap();
        assert_eq!(root["file"]["filename"], "/i/a, b.erofs");
        assert_eq!(root["read-only"], true);
        let data: serde_json::Value = serde_json::from_str(value(&line, "-blockdev", 1)).unwrap();
        assert_eq!(data["driver"], "qcow2");
        assert_eq!(data["file"]["filename"], "/s/new.qcow2");
        let frozen = &data["backing"];
        assert_eq!(frozen["file"]["filename"], "/s/old.qcow2");
        assert_eq!((&frozen["driver"], &frozen["read-only"]), (&json!("qcow2"), &json!(true)));
        assert_eq!(frozen["file"]["read-only"], true);
        assert_eq!(frozen["backing"]["driver"], "raw");
        assert_eq!(frozen["backing"]["file"]["filename"], "/i/template");
        assert_eq!(data["cache"]["no-flush"], false, "a guest's fsync is honoured");
    }

    #[test]
    fn only_a_volatile_disk_ignores_flushes() {
        let line = line(Accelerator::Tcg, Durability::Volatile);
        let data: serde_json::Value = serde_json::from_str(value(&line, "-blockdev", 1)).unwrap();
        assert_eq!(data["cache"]["no-flush"], true);
        assert_eq!(data["file"]["cache"]["no-flush"], true);
    }

    #[test]
    fn the_frequency_is_told_to_emulated_guests_only() {
        let told = |accelerator| {
            let line = line(accelerator, Durability::Flushed);
            value(&line, "-append", 0).contains(&format!("tsc_early_khz={}", tsc::frequency_khz()))
        };
        assert!(told(Accelerator::Tcg));
        assert!(!told(Accelerator::Kvm));
    }
}
