//! What an instance must have in common with a VM to become it.

use offshoot_store::VmRecord;
use offshoot_types::{CpuCount, DiskMib, ImageDigest, IsolationClass, MemMib, ProviderKind};

/// Which VMs one template can be. That it fits the VMM and the clock of this host is said by its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub image: ImageDigest,
    pub memory: MemMib,
    pub cpus: CpuCount,
    pub disk: DiskMib,
    pub provider: ProviderKind,
    pub isolation: IsolationClass,
}

impl Key {
    pub fn of(vm: &VmRecord) -> Self {
        let spec = &vm.spec;
        Self {
            image: spec.image_digest.clone(),
            memory: spec.memory,
            cpus: spec.cpus,
            disk: spec.disk,
            provider: vm.provider,
            isolation: vm.isolation,
        }
    }

    /// In what a VM differs from the one of this key, in words.
    pub fn differences(&self, vm: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |what: &str, ours: String, its: String| {
            if ours != its {
                found.push(format!("its {what} is {its}, not {ours}"));
            }
        };
        compare("image", self.image.to_string(), vm.image.to_string());
        compare("memory", self.memory.bytes().to_string(), vm.memory.bytes().to_string());
        compare("number of CPUs", self.cpus.get().to_string(), vm.cpus.get().to_string());
        compare("disk", self.disk.bytes().to_string(), vm.disk.bytes().to_string());
        compare("provider", self.provider.to_string(), vm.provider.to_string());
        compare("isolation", self.isolation.to_string(), vm.isolation.to_string());
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_named_with_both_values() {
        let key = Key {
            image: "0a".repeat(32).parse().unwrap(),
            memory: MemMib::from_mib(256).unwrap(),
            cpus: CpuCount::ONE,
            disk: DiskMib::from_mib(1024).unwrap(),
            provider: ProviderKind::Qemu,
            isolation: IsolationClass::EmulatedVm,
        };
        assert!(key.differences(&key).is_empty());
        let larger = Key { memory: MemMib::from_mib(512).unwrap(), ..key.clone() };
        let differs = key.differences(&larger);
        assert_eq!(differs.len(), 1);
        assert!(differs[0].starts_with("its memory is 512") && differs[0].contains("not 256"), "{differs:?}");
    }
}
