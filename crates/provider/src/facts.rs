//! What a saved memory and device state are bound to, so that a snapshot of another machine is refused by name.
//!
//! Micro-VM machine types have no versions, and the widest processor model differs between builds of a VMM: a state is
//! loaded only by the very program that saved it, with the very same machine. The clock of an emulated guest runs at the
//! host's rate, which its kernel was told when it booted.

use crate::parts::Hash;
use offshoot_types::{CpuCount, IsolationClass, MemMib};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Clocks may differ by this much, in parts per million: the guest's time is slewed by the host anyway.
const MAX_CLOCK_DIFFERENCE: u64 = 500;

/// What a provider's VMM is on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// As in `x86_64`.
    pub arch: String,
    /// Name and version, e.g. `QEMU 7.2.22`.
    pub vmm: String,
    /// BLAKE3 of its program.
    pub vmm_digest: Hash,
    pub isolation: IsolationClass,
    /// Machine type and what decides which devices it has.
    pub machine: String,
    /// Processor model.
    pub cpu: String,
    /// Rate of the host's time-stamp counter in kHz.
    pub tsc_khz: u32,
}

/// The sizes of one VM, which its saved state has as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    pub memory: MemMib,
    pub cpus: CpuCount,
}

/// One reason why a state cannot be continued here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// As in "the VMM".
    pub what: &'static str,
    pub saved: String,
    pub here: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} was {}, here it is {}", self.what, self.saved, self.here)
    }
}

impl Facts {
    /// Why a state saved under `self` cannot be continued under `here`; empty if it can.
    pub fn mismatches(&self, here: &Self) -> Vec<Mismatch> {
        let mut found = Vec::new();
        let mut compare = |what, saved: &dyn fmt::Display, here: &dyn fmt::Display| {
            let (saved, here) = (saved.to_string(), here.to_string());
            if saved != here {
                found.push(Mismatch { what, saved, here });
            }
        };
        compare("the architecture", &self.arch, &here.arch);
        compare("the VMM", &self.vmm, &here.vmm);
        // Two programs of one version are told apart by their digests; of two versions they differ anyway.
        if self.vmm == here.vmm {
            compare("the VMM's program", &self.vmm_digest, &here.vmm_digest);
        }
        compare("the isolation", &self.isolation, &here.isolation);
        compare("the machine type", &self.machine, &here.machine);
        compare("the processor model", &self.cpu, &here.cpu);
        let (saved, now) = (u64::from(self.tsc_khz), u64::from(here.tsc_khz));
        if saved.abs_diff(now) * 1_000_000 > MAX_CLOCK_DIFFERENCE * saved.min(now) {
            let khz = |khz| format!("{khz} kHz");
            found.push(Mismatch { what: "the processor's clock", saved: khz(saved), here: khz(now) });
        }
        found
    }
}

impl Sizes {
    /// Why a state of a VM of these sizes cannot be continued by a VM of those of `wanted`.
    pub fn mismatches(&self, wanted: &Self) -> Vec<Mismatch> {
        let mut found = Vec::new();
        if self.memory != wanted.memory {
            let (saved, here) = (self.memory.bytes().to_string(), wanted.memory.bytes().to_string());
            found.push(Mismatch { what: "the memory's size", saved, here });
        }
        if self.cpus != wanted.cpus {
            let (saved, here) = (self.cpus.get().to_string(), wanted.cpus.get().to_string());
            found.push(Mismatch { what: "the number of processors", saved, here });
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::Part;

    fn facts() -> Facts {
        Facts {
            arch: "x86_64".into(),
            vmm: "QEMU 7.2.22".into(),
            vmm_digest: Part::of(b"one").root,
            isolation: IsolationClass::EmulatedVm,
            machine: "microvm".into(),
            cpu: "max".into(),
            tsc_khz: 2_000_000,
        }
    }

    #[test]
    fn a_state_of_the_same_machine_is_continued_whatever_the_clock_reads_in_its_last_digits() {
        for tsc_khz in [1_999_001, 2_000_000, 2_001_000] {
            assert_eq!(facts().mismatches(&Facts { tsc_khz, ..facts() }), []);
        }
        let text = serde_json::to_string(&facts()).unwrap();
        assert_eq!(serde_json::from_str::<Facts>(&text).unwrap(), facts());
    }

    #[test]
    fn every_difference_is_refused_by_name() {
        type Change = fn(&mut Facts);
        let cases: [(&str, Change); 7] = [
            ("architecture", |facts| facts.arch = "aarch64".into()),
            ("the VMM was QEMU 7.2.22, here it is QEMU 10.0.2", |facts| facts.vmm = "QEMU 10.0.2".into()),
            ("the VMM's program", |facts| facts.vmm_digest = Part::of(b"two").root),
            ("isolation", |facts| facts.isolation = IsolationClass::HardwareVm),
            ("machine type", |facts| facts.machine = "q35".into()),
            ("processor model", |facts| facts.cpu = "host".into()),
            ("clock was 2000000 kHz, here it is 2001001 kHz", |facts| facts.tsc_khz = 2_001_001),
        ];
        for (said, change) in cases {
            let mut here = facts();
            change(&mut here);
            let found = facts().mismatches(&here);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].to_string().contains(said), "{}", found[0]);
        }
        let nothing = Facts { tsc_khz: 0, ..facts() };
        assert_eq!(nothing.mismatches(&facts()).len(), 1, "a clock that says nothing is no match");
    }

    #[test]
    fn a_state_fits_only_a_vm_of_its_size() {
        let sizes =
            |mib, cpus| Sizes { memory: MemMib::from_mib(mib).unwrap(), cpus: CpuCount::new(cpus).unwrap() };
        assert_eq!(sizes(256, 1).mismatches(&sizes(256, 1)), []);
        let found = sizes(256, 1).mismatches(&sizes(512, 2));
        let said: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            ["the memory's size was 256M, here it is 512M", "the number of processors was 1, here it is 2"]
        );
    }
}
