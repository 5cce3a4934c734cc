//! The conformance suite on the fake provider.

use async_trait::async_trait;
use offshoot_provider::{
    BootPlan, DiskStack, Durability, InstanceRecord, Provider,
    conformance::Harness,
    fake::{FakeHost, FakeProvider},
};
use offshoot_types::{CpuCount, Generation, LayerId, MemMib, ProviderKind, VmId};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;

struct Fake {
    host: FakeHost,
    directory: TempDir,
}

impl Fake {
    fn new() -> Self {
        Self { host: FakeHost::new(), directory: tempfile::tempdir().unwrap() }
    }
}

#[async_trait]
impl Harness for Fake {
    fn provider(&self) -> Arc<dyn Provider> {
        Arc::new(FakeProvider::new(self.host.clone()))
    }

    fn plan(&self) -> BootPlan {
        let vm = VmId::new();
        let directory = PathBuf::from(format!("/nowhere/{vm}"));
        BootPlan {
            vm,
            name: "conformance".parse().unwrap(),
            generation: Generation(1),
            image: "0a".repeat(32).parse().unwrap(),
            kernel: directory.join("kernel"),
            initramfs: directory.join("initramfs"),
            root: directory.join("root"),
            disk: DiskStack { layers: vec![directory.join("disk")], template: directory.join("template") },
            durability: Durability::Volatile,
            memory: MemMib::MIN,
            cpus: CpuCount::ONE,
            state_dir: directory.join("state"),
            runtime_dir: directory.join("run"),
            boot_deadline: Duration::from_secs(10),
            min_isolation: None,
        }
    }

    fn record(&self, plan: &BootPlan) -> InstanceRecord {
        InstanceRecord {
            provider: ProviderKind::Fake,
            isolation: self.host.isolation(),
            vm: plan.vm,
            generation: plan.generation,
            state_dir: plan.state_dir.clone(),
            runtime_dir: plan.runtime_dir.clone(),
            memory_base: None,
        }
    }

    fn layer(&self, below: &Path) -> PathBuf {
        below.with_file_name(LayerId::new().simple())
    }

    fn checkpoint_dir(&self) -> PathBuf {
        let directory = self.directory.path().join(LayerId::new().simple());
        std::fs::create_dir(&directory).unwrap();
        directory
    }

    fn permit_start(&self, _: &BootPlan) {
        // A fake boot is one step: there is nothing between the permission and the start.
    }

    async fn kill_vmm(&self, record: &InstanceRecord) {
        assert!(self.host.kill_vmm(record.vm));
    }

    async fn leftovers(&self, record: &InstanceRecord) -> Vec<String> {
        let running = self.host.running_vms().contains(&record.vm);
        running.then(|| format!("machine of {}", record.vm)).into_iter().collect()
    }
}

offshoot_provider::conformance_tests!(Fake::new());
