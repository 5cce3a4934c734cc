//! A provider in memory, for everything above it: stateful, scriptable, with a guest that speaks the real
//! protocol. It runs no guest code at all and says so.
//!
//! ```text
//! test --keeps--> FakeHost --holds--> machines (each a guest with files and processes)
//!                    ^
//! "daemon" ----> FakeProvider          dropped and made anew: the machines live on, as behind keepers
//! ```

mod bytes;
mod contexts;
mod devices;
mod disks;
mod entries;
mod exec;
mod files;
mod guest;
mod host;
mod machine;
mod pipe;
mod process;
mod program;
mod state;
mod stillness;
mod survey;
mod web;
mod world;

pub use host::{BootFault, CheckpointFault, FakeHost, FakeMachine, GuestFault};

use crate::{
    Adoption, BootError, BootPlan, BootStep, Capabilities, Exit, Instance, InstanceError, InstanceRecord,
    Provider, ReclaimReport, RestorePlan, UndoReport, disk::DiskError, facts::Facts, memory::Base,
    parts::Part,
};
use async_trait::async_trait;
use devices::Devices;
use host::Refusal;
use machine::FakeInstance;
use offshoot_types::ProviderKind;
use state::Stored;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

#[derive(Debug)]
pub struct FakeProvider {
    host: FakeHost,
}

impl FakeProvider {
    pub fn new(host: FakeHost) -> Self {
        Self { host }
    }

    fn failure(step: BootStep, message: impl Into<String>, undo: UndoReport) -> BootError {
        BootError { step, message: message.into(), hint: None, console_tail: Vec::new(), undo, source: None }
    }

    async fn start(
        &self,
        plan: &BootPlan,
        fault: Option<BootFault>,
        from: Option<(Stored, Option<Arc<Base>>)>,
    ) -> Result<Box<dyn Instance>, BootError> {
        let none = UndoReport::default;
        if let Some(wanted) = plan.min_isolation.filter(|wanted| self.host.isolation() < *wanted) {
            let message =
                format!("isolation `{wanted}` is required, this host gives `{}`", self.host.isolation());
            return Err(Self::failure(BootStep::Probe, message, none()));
        }
        if let Some(BootFault::Fail(step)) = fault {
            return Err(Self::failure(step, "a fault was injected", none()));
        }
        let machine = self.host.start(plan, fault, from).map_err(|refusal| {
            let message = match refusal {
                Refusal::InUse => format!("`{}` is in use by a keeper that lives", plan.state_dir.display()),
                Refusal::DiskInUse(holder) => {
                    let top = plan.disk.top().map(|path| path.display().to_string()).unwrap_or_default();
                    format!("the data disk `{top}` is in use by {}", holder.vm)
                }
                Refusal::NoGuest => "the memory does not hold a fake guest".to_owned(),
            };
            Self::failure(BootStep::Keeper, message, none())
        })?;
        if let Some(BootFault::FailAndLeave(step)) = fault {
            let undo = UndoReport { undone: Vec::new(), failed: vec![format!("machine of {}", plan.vm)] };
            return Err(Self::failure(step, "a fault was injected", undo));
        }
        Ok(Box::new(FakeInstance { machine, host: self.host.clone() }))
    }
}

#[async_trait]
impl Provider for FakeProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Fake
    }

    async fn capabilities(&self) -> Capabilities {
        Capabilities {
            kind: ProviderKind::Fake,
            isolation: Ok(self.host.isolation()),
            vmm: None,
            notes: vec!["nothing is run: this provider is for tests".into()],
            pause: true,
            live_snapshot: true,
            disk: true,
        }
    }

    async fn facts(&self) -> Result<Facts, String> {
        Ok(Facts {
            arch: std::env::consts::ARCH.into(),
            vmm: "none".into(),
            vmm_digest: Part::of(b"none").root,
            isolation: self.host.isolation(),
            machine: "memory".into(),
            cpu: "none".into(),
            tsc_khz: 1,
        })
    }

    async fn boot(&self, plan: &BootPlan) -> Result<Box<dyn Instance>, BootError> {
        self.start(plan, self.host.take_fault(), None).await
    }

    async fn restore(&self, plan: &RestorePlan) -> Result<Box<dyn Instance>, BootError> {
        let refused = |error: &dyn std::error::Error| {
            Self::failure(BootStep::Vmm, error.to_string(), UndoReport::default())
        };
        let size = plan.boot.memory.bytes();
        Devices::read(&plan.device_state)
            .and_then(|devices| devices.fit(size, &plan.boot.disk, |layers| self.host.stamp(layers)))
            .map_err(|error| refused(&error))?;
        let stored = Stored::read(&plan.memory, size).map_err(|error| refused(&error))?;
        let from = (stored, plan.memory.base.clone());
        self.start(&plan.boot, self.host.take_restore_fault(), Some(from)).await
    }

    fn merge_layers(&self, layers: &[PathBuf], to: &Path) -> Result<(), DiskError> {
        self.host.merge(layers, to)
    }

    async fn adopt(&self, record: &InstanceRecord) -> Result<Adoption, InstanceError> {
        let Some(machine) = self.host.find(record) else {
            self.host.forget(record);
            return Ok(Adoption::NeverStarted);
        };
        match machine.exit() {
            None => Ok(Adoption::Running(Box::new(FakeInstance { machine, host: self.host.clone() }))),
            Some(exit) => {
                self.host.forget(record);
                Ok(Adoption::Ended(Some(exit)))
            }
        }
    }

    async fn reclaim(&self, record: &InstanceRecord) -> ReclaimReport {
        let mut report = ReclaimReport::default();
        if let Some(machine) = self.host.forget(record)
            && machine.exit().is_none()
        {
            machine.end(Exit::Signal(libc::SIGKILL));
            report.removed.push(format!("machine of {}", record.vm));
        }
        report
    }
}
