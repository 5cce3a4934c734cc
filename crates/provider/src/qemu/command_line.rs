//! QEMU's command line, from top to bottom. One function writes it; each block is one part of the machine.

use super::{ProbeImage, tsc};
use crate::{
    BootPlan, DiskStack, Durability,
    keeper::{self, spec},
};
use offshoot_types::{Bytes, IsolationClass, MemMib, VmId, VmName};
use serde_json::json;
use std::path::Path;

/// Name of the agent's port, as the guest looks it up.
pub(super) const PORT: &str = "org.offshoot.agent";
/// Said once for guest memory from `/dev/zero`, which has no size to set, and once for a device state that ends without
/// a description of itself; both mean nothing.
pub(super) const HARMLESS: [&str; 2] =
    ["ftruncate: Invalid argument", "qemu-system-x86_64: Expected vmdescription section, but got 0"];
/// The line of a machine that waits for its state, as `xen-save-devices-state` left it.
const WAIT_FOR_STATE: [&str; 2] = ["-incoming", "defer"];
/// QEMU itself, the kernel file it keeps, and buffers of devices.
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

    /// The machine type with what decides which devices it has.
    pub const fn machine(self) -> &'static str {
        match self {
            Self::Kvm => "microvm,rtc=on",
            // Told the frequency of its clock, the kernel needs neither of the old timers.
            Self::Tcg => "microvm,rtc=on,pit=off,pic=off",
        }
    }

    pub const fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "max",
        }
    }
}

/// How a machine comes to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    Boot,
    /// From a saved state; `based` on a complete memory or on zeros.
    Restore {
        based: bool,
    },
}

/// Sizes of the cache of translated guest code that an emulating VMM keeps, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TranslationCaches {
    /// Measured on a cold boot to a Python prompt: 16 costs 2 s, 32 costs 0.2 s, from 64 on nothing. QEMU's own choice
    /// would be up to 1 GiB.
    pub boot: u32,
    /// Of a VM that continues from a saved state: small, for there may be many of them, and each begins with an empty
    /// one. Guests that run much code want more.
    pub restore: u32,
}

impl Default for TranslationCaches {
    fn default() -> Self {
        Self { boot: 128, restore: 32 }
    }
}

/// What a machine's line depends on besides its plan.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub accelerator: Accelerator,
    pub start: Start,
    pub caches: TranslationCaches,
}

impl Setting {
    /// In MiB.
    const fn translation_cache(&self) -> u32 {
        match (self.accelerator, self.start) {
            (Accelerator::Kvm, _) => 0,
            (Accelerator::Tcg, Start::Boot) => self.caches.boot,
            (Accelerator::Tcg, Start::Restore { .. }) => self.caches.restore,
        }
    }

    /// What the VMM may use.
    pub fn memory_limit(&self, memory: MemMib) -> Bytes {
        // Whoever first touches a page that is a hole in a base pays for the page there and for its own copy.
        let copies = match self.start {
            Start::Boot | Start::Restore { based: false } => 1,
            Start::Restore { based: true } => 2,
        };
        Bytes(copies * memory.bytes().0 + ((u64::from(self.translation_cache()) + OVERHEAD) << 20))
    }
}

pub(super) fn build(plan: &BootPlan, setting: &Setting) -> Vec<String> {
    let mut line = Line::default();
    // First, so that a list of processes shows it.
    line.pair("-name", format!("{},debug-threads=on", plan.name));
    line.pair("-uuid", plan.vm);
    // No CPU runs before the keeper has put the VMM where its limits hold, and the memory is complete.
    line.flag("-S");
    machine(&mut line, plan.memory, plan.cpus.get(), setting);

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

    match setting.start {
        Start::Boot => {
            let arguments = kernel_arguments(plan.vm, &plan.name, setting.accelerator);
            kernel(&mut line, &plan.kernel, &plan.initramfs, &arguments);
        }
        // The kernel is in the memory; naming it would keep a second copy of it.
        Start::Restore { .. } => line.0.extend(WAIT_FOR_STATE.map(String::from)),
    }
    sandbox(&mut line);
    line.0
}

/// The same machine with a root disk that is none, to see whether a kernel gets to its `init`: the agent there
/// says at once that it cannot mount this, unless it is told something else to do.
pub(super) fn build_probe(accelerator: Accelerator, image: &ProbeImage, for_init: &str) -> Vec<String> {
    let mut line = Line::default();
    let caches = TranslationCaches::default();
    machine(&mut line, MemMib::MIN, 1, &Setting { accelerator, start: Start::Boot, caches });
    line.pair("-serial", "stdio");
    root_disk(&mut line, &image.kernel);
    let clock = clock_arguments(accelerator);
    let arguments = format!("console=ttyS0 panic=-1 reboot=t{clock}{for_init}");
    kernel(&mut line, &image.kernel, &image.initramfs, &arguments);
    sandbox(&mut line);
    line.0
}

fn machine(line: &mut Line, memory: MemMib, cpus: u16, setting: &Setting) {
    // No BIOS devices, no PCI, no network card, nothing from configuration files.
    line.flag("-no-user-config").flag("-nodefaults").pair("-display", "none");
    // A guest that resets its machine is done: the same VM is started again from outside.
    line.flag("-no-reboot");
    let accelerator = setting.accelerator;
    line.pair("-machine", format!("{},memory-backend=ram", accelerator.machine()));
    match accelerator {
        Accelerator::Kvm => line.pair("-accel", "kvm"),
        Accelerator::Tcg => line.pair("-accel", format!("tcg,tb-size={}", setting.translation_cache())),
    };
    line.pair("-cpu", accelerator.cpu());
    // The clock on the board stands still with the CPUs: a machine that stands still is the same whenever it is looked
    // at. The agent sets the guest's time from the host's, not from this one.
    line.pair("-rtc", "base=utc,clock=vm");
    line.pair("-smp", cpus).pair("-m", format!("{}M", memory.mib()));
    // Guest memory is a private mapping of a complete memory, a file that nobody can write to, or of `/dev/zero`: a
    // base of zeros that costs nothing, however many VMs have it. An empty memory file in its place would hold every
    // touched page a second time.
    let base = match setting.start {
        Start::Restore { based: true } => format!("/proc/self/fd/{}", spec::MEMORY_BASE_FD),
        Start::Boot | Start::Restore { based: false } => "/dev/zero".into(),
    };
    line.pair(
        "-object",
        format!("memory-backend-file,id=ram,size={}M,mem-path={base},share=off", memory.mib()),
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
    let Some(top) = disk.top() else { return };
    let mut top = keeper::layer(top, durability, keeper::FIRST_NODE);
    top["backing"] = keeper::frozen(&disk.layers[1..], &disk.template);
    line.pair("-blockdev", top);
    line.pair("-device", format!("virtio-blk-device,drive={},serial=data", keeper::FIRST_NODE));
}

fn kernel(line: &mut Line, kernel: &Path, initramfs: &Path, arguments: &str) {
    line.pair("-kernel", kernel.display()).pair("-initrd", initramfs.display()).pair("-append", arguments);
}

fn sandbox(line: &mut Line) {
    let rules = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    line.pair("-sandbox", rules);
}

fn kernel_arguments(vm: VmId, name: &VmName, accelerator: Accelerator) -> String {
    // `panic=-1 reboot=t`: a panic ends the VMM at once. `cryptomgr.notests`: the self-tests of ciphers cost
    // 0.25 s of emulation.
    let common = "quiet console=ttyS0 panic=-1 reboot=t cryptomgr.notests";
    let machine_id = vm.as_uuid().simple();
    let clock = clock_arguments(accelerator);
    format!("{common}{clock} offshoot.hostname={name} systemd.machine_id={machine_id}")
}

/// Without them an emulated kernel measures a clock that is not there, and does not get beyond that.
fn clock_arguments(accelerator: Accelerator) -> String {
    match accelerator {
        // The guest has a clock of KVM's.
        Accelerator::Kvm => String::new(),
        Accelerator::Tcg => {
            // `spectre_v2=off`: an emulated return is an indirect jump of the host's, so the kernel's retpolines protect
            // nothing here, and each of them costs three translated blocks.
            format!(" tsc_early_khz={} tsc=reliable no_timer_check spectre_v2=off", tsc::frequency_khz())
        }
    }
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
    use offshoot_types::{CpuCount, Generation};
    use std::time::Duration;

    fn line_to(start: Start, accelerator: Accelerator, durability: Durability) -> Vec<String> {
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
        let setting = Setting { accelerator, start, caches: TranslationCaches::default() };
        build(&plan, &setting)
    }

    fn line(accelerator: Accelerator, durability: Durability) -> Vec<String> {
        line_to(Start::Boot, accelerator, durability)
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

    /// Anything else than the state to load, the cache and the memory's file would be another machine.
    #[test]
    fn a_restored_machine_has_the_devices_of_the_booted_one_in_their_order() {
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            let devices = |start| -> Vec<String> {
                let line = line_to(start, accelerator, Durability::Flushed);
                let end =
                    line.iter().position(|flag| ["-kernel", "-incoming"].contains(&flag.as_str())).unwrap();
                let differs = |argument: &str| argument.contains("mem-path") || argument.contains("tb-size");
                // The first four are the VM's own name and id.
                line[4..end].iter().filter(|argument| !differs(argument)).cloned().collect()
            };
            assert_eq!(devices(Start::Boot), devices(Start::Restore { based: true }));
        }
        let restored = line_to(Start::Restore { based: true }, Accelerator::Tcg, Durability::Flushed);
        assert_eq!(value(&restored, "-incoming", 0), "defer");
        assert!(restored.iter().any(|flag| flag == "-S"), "no CPU runs before the memory is complete");
        assert!(restored.iter().all(|flag| flag != "-kernel" && flag != "-append"));
        assert!(value(&restored, "-object", 0).contains("mem-path=/proc/self/fd/7,share=off"));
        let zeros = line_to(Start::Restore { based: false }, Accelerator::Tcg, Durability::Flushed);
        assert!(value(&zeros, "-object", 0).contains("mem-path=/dev/zero,share=off"));
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
